"""A ledger under test: blocks made on demand, with transactions signed by the keys of tests/small.py."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from economics.arguments import Operation
from economics.block import BlockHeader, transactions_root
from economics.commitments import Certificate, OwnerStatement, ReservationId
from economics.crypto import Digest, Level, OwnerId, digest
from economics.genesis import Genesis
from economics.ledger import Applied, Code, Ledger
from economics.slots import state_key
from economics.state import Reservation, decode_value
from economics.transactions import (
    SignedTransaction,
    Transaction,
    build,
    least_fee,
)
from economics.votes import ZERO_HASH
from p2pnode.keys import Key
from tests.small import EXPIRY_HEIGHT as EXPIRY_HEIGHT
from tests.small import OTHER_OWNER, OWNER, certify, reserve
from tests.small import made_by as made_by


def key_of(key: Key) -> OwnerId:
    return OwnerId(key.public)


def sign(
    ledger: Ledger, key: Key, operation: Operation, *, nonce: int | None = None, fee_frost: int | None = None
) -> SignedTransaction:
    """Return a transaction that the next block may hold: the account's nonce and the least fee, unless stated."""
    plain = Transaction(
        chain_id=ledger.genesis.chain_id,
        sender=key_of(key),
        nonce=ledger.account(key_of(key)).nonce if nonce is None else nonce,
        fee_frost=0,
        expiry_height=EXPIRY_HEIGHT,
        operation=operation,
    )
    fee = least_fee(plain, ledger.genesis.parameters) if fee_frost is None else fee_frost
    return build(replace(plain, fee_frost=fee), key.sign)


def reservations_of(ledger: Ledger, owner: OwnerId) -> list[Reservation]:
    """Return an owner's reservations, ascending by ID."""
    found = [ledger.tree.get(state_key(slot)) for slot in ledger.slots_of(owner)]
    values = [decode_value(data) for data in found if data is not None]
    return [value for value in values if isinstance(value, Reservation)]


def make_header(ledger: Ledger, transactions: Sequence[SignedTransaction], *, time_ms: int) -> BlockHeader:
    """Return the next block's header, as far as a ledger looks."""
    return BlockHeader(
        chain_id=ledger.genesis.chain_id,
        epoch=ledger.epoch,
        view=ledger.height + 1,
        height=ledger.height + 1,
        parent_view=ledger.height,
        parent_hash=ZERO_HASH,
        time_ms=time_ms,
        leader=0,
        transactions_root=transactions_root([signed.hash for signed in transactions]),
        transactions_count=len(transactions),
        executed_height=ledger.height,
        state_root=ledger.root,
        committee_hash=ledger.committee.hash,
        next_committee_hash=ledger.next_committee_hash,
    )


@dataclass
class Chain:
    """A ledger and the time of its last block."""

    ledger: Ledger
    time_ms: int

    @classmethod
    def begin(cls, genesis: Genesis) -> "Chain":
        return cls(Ledger.at_genesis(genesis), genesis.time_ms)

    @classmethod
    def begin_reserved(cls, genesis: Genesis) -> "Chain":
        """Return a chain of one block, in which both owners of tests/small.py have bought their storage."""
        chain = cls.begin(genesis)
        applied = chain.block(*(reserve(genesis, key) for key in (OWNER, OTHER_OWNER)))
        assert all(receipt.code is Code.OK for receipt in applied.receipts)
        return chain

    def pass_blocks(self, height: int) -> None:
        """Apply empty blocks up to a height."""
        while self.ledger.height < height:
            self.block()

    def block(self, *transactions: SignedTransaction, after_ms: int = 1) -> Applied:
        """Apply one block, and prove the supply whole."""
        self.time_ms += after_ms
        applied = self.ledger.apply(make_header(self.ledger, transactions, time_ms=self.time_ms), transactions)
        self.ledger.verify_supply()
        return applied

    def run(self, key: Key, operation: Operation) -> Code:
        """Apply a block of one transaction and return what became of it."""
        return self.block(sign(self.ledger, key, operation)).receipts[0].code

    def reserve(self, key: Key, operation: Operation) -> ReservationId:
        """Return the reservation that an operation makes; it must succeed."""
        signed = sign(self.ledger, key, operation)
        assert self.block(signed).receipts[0].code is Code.OK
        return made_by(signed)

    def end_epoch(self) -> Applied:
        applied = self.block(after_ms=self.ledger.genesis.parameters.epoch_ms)
        assert applied.epoch_ended
        return applied

    def end_epochs(self, epoch: int) -> None:
        """End epochs until the current one is `epoch`."""
        while self.ledger.epoch < epoch:
            self.end_epoch()

    def certificate(self, statement: OwnerStatement, owner: Key, *, epoch: int | None = None) -> Certificate:
        """Return what a quorum of the current committee gives for an owner's statement; four members of one shard."""
        made = certify(self.ledger.genesis, statement, (0, 1, 2), epoch=self.ledger.epoch if epoch is None else epoch)
        return replace(made, statement_signature=owner.sign(statement.encode()))


def make_id(seed: int) -> Digest:
    return digest(Level.MESSAGE, seed.to_bytes(8, "big"))
