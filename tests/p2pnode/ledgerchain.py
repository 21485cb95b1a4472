"""A chain with the real ledger and no network: a transaction is executed at once, in a block of its own."""

from collections.abc import Sequence

from economics.arguments import Certify, Operation
from economics.blob import BlobId
from economics.block import BlockHeader
from economics.crypto import Digest, OwnerId
from economics.genesis import Genesis
from economics.ledger import Code, Ledger
from economics.nodes import Stake
from economics.state import Account, BlobEntry, BlobSummary, Reservation
from economics.transactions import (
    SignedTransaction,
    Transaction,
    build,
    least_fee,
)
from economics.tree import StateKey
from p2pnode.clients.chainview import Head, HistoryRow, Make, Outcome, Seating
from p2pnode.errors import TransactionFailed
from p2pnode.keys import Key
from tests.chain import reservations_of
from tests.small import OWNER, Blob, certify, make_statement

NEVER = 1 << 40


class LedgerChain:
    """Fulfils `p2pnode.clients.chainview.Chain`."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        self.ledger = Ledger.at_genesis(genesis)
        self.headers: list[BlockHeader] = []
        self.rows: list[HistoryRow] = []
        self.ends_epoch_before_next = False

    def apply(self, transactions: Sequence[SignedTransaction] = (), *, ends_epoch: bool = False) -> list[HistoryRow]:
        """Execute a block; `ends_epoch` makes it a boundary."""
        ledger, parameters = self.ledger, self.genesis.parameters
        before = self.headers[-1].time_ms if self.headers else self.genesis.time_ms
        boundary = ledger.system.epoch_start_ms + parameters.epoch_ms
        header = BlockHeader(
            chain_id=self.genesis.chain_id,
            epoch=ledger.epoch,
            view=ledger.height + 1,
            height=ledger.height + 1,
            parent_view=ledger.height,
            parent_hash=self.headers[-1].hash if self.headers else Digest(bytes(32)),
            time_ms=boundary if ends_epoch else before + parameters.block_interval_ms,
            leader=0,
            transactions_root=Digest(bytes(32)),
            transactions_count=len(transactions),
            executed_height=ledger.height,
            state_root=ledger.root,
            committee_hash=ledger.committee.hash,
            next_committee_hash=ledger.next_committee_hash,
        )
        receipts = ledger.apply(header, transactions).receipts
        ledger.verify_supply()
        self.headers.append(header)
        rows = [
            HistoryRow(header.height, index, str(receipt.code), receipt.fee_frost, signed)
            for index, (receipt, signed) in enumerate(zip(receipts, transactions, strict=True))
        ]
        self.rows += rows
        return rows

    def sign(self, key: Key, wanted: Operation | Make) -> SignedTransaction:
        sender = OwnerId(key.public)
        nonce = self.ledger.account(sender).nonce
        operation = wanted(nonce) if callable(wanted) else wanted
        blank = Transaction(self.genesis.chain_id, sender, nonce, 0, NEVER, operation)
        fee = least_fee(blank, self.genesis.parameters)
        return build(Transaction(self.genesis.chain_id, sender, nonce, fee, NEVER, operation), key.sign)

    async def transact(self, key: Key, operation: Operation | Make, *, deadline_s: float = 30.0) -> Outcome:
        signed = self.sign(key, operation)
        if self.ends_epoch_before_next:
            self.ends_epoch_before_next = False
            self.apply(ends_epoch=True)
        row = self.apply([signed])[0]
        if row.code != Code.OK:
            raise TransactionFailed(row.code, fee_frost=row.fee_frost)
        return Outcome(signed.hash, row.height, row.index, row.code, row.fee_frost)

    async def certify(self, blob: Blob, reservation: bytes, *, owner: Key = OWNER, deletable: bool = True) -> Outcome:
        """Have every member sign for a blob, as far as needed, and certify it."""
        plain = make_statement(
            self.genesis, blob.header, owner=owner.public, reservation=reservation, deletable=deletable
        )
        signers = range(self.genesis.committee.quorum)
        certificate = certify(self.genesis, plain, signers, epoch=self.ledger.epoch, owner=owner)
        return await self.transact(owner, Certify(certificate))

    async def head(self) -> Head:
        if not self.headers:
            return Head(0, 0, Digest(bytes(32)), self.genesis.time_ms)
        last = self.headers[-1]
        return Head(self.ledger.epoch, last.height, last.hash, last.time_ms)

    async def account(self, owner: OwnerId) -> Account:
        return self.ledger.account(owner)

    async def settled_account(self, owner: OwnerId) -> Account:
        return await self.account(owner)

    async def settle_others(self, owner: OwnerId) -> None:
        pass

    async def blob(self, blob_id: BlobId) -> BlobSummary | None:
        return self.ledger.blob(blob_id)

    async def seats(self, *, fresh: bool = False) -> Seating:
        handover = self.ledger.handover
        source = None if handover.is_done else self.ledger.committee_of(handover.source_epoch)
        return Seating(self.ledger.committee, source, handover.since_epoch, self.ledger.terms)

    async def entries(self, owner: OwnerId) -> list[BlobEntry]:
        return self.ledger.entries_of(owner)

    async def reservations(self, owner: OwnerId) -> list[Reservation]:
        return reservations_of(self.ledger, owner)

    async def stakes(self, owner: OwnerId) -> list[Stake]:
        return self.ledger.stakes_of(owner)

    async def values(self, keys: Sequence[StateKey]) -> tuple[bytes | None, ...]:
        return tuple(self.ledger.tree.get(key) for key in keys)

    async def history(self, owner: OwnerId, *, limit: int) -> list[HistoryRow]:
        own = [row for row in self.rows if row.signed.transaction.sender == owner]
        return own[::-1][:limit]

    async def transaction(self, tx_hash: Digest) -> HistoryRow | None:
        return next((row for row in self.rows if row.signed.hash == tx_hash), None)

    async def blocks(self, *, limit: int) -> list[BlockHeader]:
        return self.headers[::-1][:limit]
