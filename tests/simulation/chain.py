"""What one simulated member knows of the chain: what is final and executed, and what waits. Casts no vote.

Makes blocks, judges their bodies and state, executes and stores them, as the real executor and block maker do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from economics.block import (
    Block,
    BlockHeader,
    Finality,
    block_time_ms,
    is_boundary,
    transactions_root,
    verify_successor,
)
from economics.crypto import DIGEST_BYTES, Digest, NodeId, OwnerId, Signature
from economics.errors import Reason, Rejected
from economics.genesis import Genesis
from economics.ledger import Ledger
from economics.transactions import SignedTransaction
from economics.votes import ZERO_HASH, Verify
from tests.simulation.disk import Disk, FinalBlock, Kept

SETTLE_MS = 500
NOTHING = bytes(DIGEST_BYTES)
BLOCKS_MAX = 16
"""Of one answer to a member that was away."""
Row = tuple[Block, tuple[SignedTransaction, ...]]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Consecutive final blocks of one epoch, with the proof that the last is final."""

    rows: tuple[Row, ...]
    finality: Finality


class Chain:
    """The ledger of one life of a member, executed anew from its disk, and the blocks above it."""

    def __init__(
        self,
        genesis: Genesis,
        disk: Disk,
        *,
        origin: tuple[Ledger, BlockHeader],
        node: NodeId,
        onion: Mapping[bytes, bytes],
        sign: Callable[[bytes], Signature],
        verify: Verify,
        clock_ms: Callable[[], int],
        tell: Callable[[BlockHeader, Ledger], None],
    ) -> None:
        """`tell` hears of each block that is executed, and of the ledger after it."""
        self.genesis = genesis
        self.ledger = origin[0].fork()
        self.head = self.root_header = origin[1]
        self.roots = [self.ledger.root]
        """By height."""
        self.nexts = [self.ledger.next_committee_hash]
        """The next committee's hash, or zero, by height."""
        self.mempool: dict[Digest, SignedTransaction] = {}
        self.candidates: dict[Digest, Kept] = {}
        """Blocks above the head that are judged good or came from the log, with their bodies."""
        self._disk = disk
        self._node = node
        self._onion = onion
        self._sign = sign
        self._verify = verify
        self._clock_ms = clock_ms
        self._tell = tell
        for row in disk.chain:
            self.execute(row.block, row.transactions)

    def is_ahead(self, header: BlockHeader) -> bool:
        return header.epoch == self.ledger.epoch and header.height > self.head.height

    def body(self, tx_hash: Digest) -> SignedTransaction | None:
        waiting = self.mempool.get(tx_hash)
        if waiting is not None:
            return waiting
        for kept in self.candidates.values():
            for signed in kept.transactions:
                if signed.hash == tx_hash:
                    return signed
        for row in reversed(self._disk.chain):
            for signed in row.transactions:
                if signed.hash == tx_hash:
                    return signed
        return None

    def _in_flight(self, tip: BlockHeader) -> list[SignedTransaction]:
        """Return the transactions in blocks that end with `tip` and are not executed yet."""
        found: list[SignedTransaction] = []
        kept = self.candidates.get(tip.hash)
        while kept is not None and kept.proposal.block.header.height > self.head.height:
            found += kept.transactions
            kept = self.candidates.get(kept.proposal.block.header.parent_hash)
        return found

    def _choose(self, parent: BlockHeader) -> tuple[SignedTransaction, ...]:
        """Return what waits and may come next: each sender's in order of their nonces."""
        if not self.mempool:
            return ()
        following: dict[OwnerId, int] = {}
        for signed in self._in_flight(parent):
            sender = signed.transaction.sender
            following[sender] = max(following.get(sender, 0), signed.transaction.nonce + 1)
        chosen: list[SignedTransaction] = []
        for signed in sorted(self.mempool.values(), key=lambda signed: signed.transaction.nonce):
            transaction = signed.transaction
            nonce = max(self.ledger.account(transaction.sender).nonce, following.get(transaction.sender, 0))
            if transaction.nonce == nonce and transaction.expiry_height > parent.height + 1:
                chosen.append(signed)
                following[transaction.sender] = nonce + 1
        return tuple(chosen[: self.genesis.parameters.block_transactions_max])

    def due_ms(self, tip: BlockHeader) -> int:
        parameters = self.genesis.parameters
        earliest = tip.time_ms + parameters.block_interval_ms
        if tip != self.root_header and self.ends_epoch(tip):
            return earliest
        if self._choose(tip):
            return earliest
        is_settled = tip.height == self.ledger.height and tip.state_root == self.ledger.root
        pause_ms = parameters.heartbeat_ms if is_settled else min(SETTLE_MS, parameters.heartbeat_ms)
        begun = self.root_header.time_ms
        cut_off, end = begun + parameters.epoch_ms // 2, begun + parameters.epoch_ms
        return max(earliest, min(tip.time_ms + pause_ms, cut_off if tip.time_ms < cut_off else end))

    def ends_epoch(self, header: BlockHeader) -> bool:
        return is_boundary(header, root=self.root_header, epoch_ms=self.genesis.parameters.epoch_ms)

    def make_block(self, view: int, parent: BlockHeader, *, is_empty: bool) -> Row:
        is_first = parent == self.root_header
        bodies = () if is_empty else self._choose(parent)
        hashes = tuple(signed.hash for signed in bodies)
        executed = parent.height if is_first else self.ledger.height
        named = ZERO_HASH if is_empty else self.nexts[executed]
        leader = self.ledger.committee.index_of(self._node)
        assert leader is not None, "who has no seat leads no view"
        header = BlockHeader(
            chain_id=self.genesis.chain_id,
            epoch=self.ledger.epoch,
            view=view,
            height=parent.height + 1,
            parent_view=0 if is_first else parent.view,
            parent_hash=parent.hash,
            time_ms=self.date(self._clock_ms(), parent, names_next=named != ZERO_HASH),
            leader=leader,
            transactions_root=transactions_root(hashes),
            transactions_count=len(hashes),
            executed_height=executed,
            state_root=self.roots[executed],
            committee_hash=self.ledger.committee.hash,
            next_committee_hash=named,
            reveal=self._reveal(),
        )
        return Block(header, self._sign(header.encode()), hashes), bodies

    def _reveal(self) -> bytes:
        """Return what this node is bound to reveal next; what it says twice counts once."""
        beacon = self.ledger.beacon(self._node)
        return NOTHING if beacon is None else self._onion.get(beacon.tip, NOTHING)

    def date(self, now_ms: int, parent: BlockHeader, *, names_next: bool) -> int:
        return block_time_ms(
            now_ms,
            parent=parent,
            root=self.root_header,
            epoch_ms=self.genesis.parameters.epoch_ms,
            names_next=names_next,
        )

    def is_true(self, header: BlockHeader) -> bool:
        """Return whether a header says of the state it has executed what is so."""
        executed, named = header.executed_height, header.next_committee_hash
        is_tail = named == ZERO_HASH and self.ends_epoch(header)
        return self.roots[executed] == header.state_root and (is_tail or self.nexts[executed] == named)

    def collect(self, blocks: Sequence[Block]) -> tuple[list[Row], tuple[Digest, ...]]:
        """Return blocks with their bodies, and the hashes of bodies that are not here."""
        rows: list[Row] = []
        missing: list[Digest] = []
        for block in blocks:
            kept = self.candidates.get(block.hash)
            bodies = [self.body(tx_hash) for tx_hash in block.transactions] if kept is None else list(kept.transactions)
            missing += [tx_hash for tx_hash, body in zip(block.transactions, bodies, strict=True) if body is None]
            rows.append((block, tuple(body for body in bodies if body is not None)))
        return rows, tuple(missing)

    def apply(self, rows: Sequence[Row], finality: Finality) -> bool:
        """Execute and store final blocks above the head in one step; return whether an epoch ended."""
        epoch = self.ledger.epoch
        fresh = [row for row in rows if row[0].header.height > self.head.height]
        for block, bodies in fresh:
            self.execute(block, bodies)
        stored = [FinalBlock(block, bodies, None) for block, bodies in fresh]
        stored[-1] = FinalBlock(fresh[-1][0], fresh[-1][1], finality)
        self._disk.append(stored)
        self.candidates = {
            block_hash: kept
            for block_hash, kept in self.candidates.items()
            if self.is_ahead(kept.proposal.block.header)
        }
        return self.ledger.epoch != epoch

    def execute(self, block: Block, bodies: tuple[SignedTransaction, ...]) -> None:
        header = block.header
        assert self.is_true(header), "a final header of another state"
        applied = self.ledger.apply(header, bodies)
        self.roots.append(self.ledger.root)
        self.nexts.append(self.ledger.next_committee_hash)
        self.head = header
        if applied.epoch_ended:
            self.root_header = header
        for receipt in applied.receipts:
            self.mempool.pop(receipt.hash, None)
        self._tell(header, self.ledger)

    def rows_from(self, first: int) -> Blocks | None:
        """Return final blocks from a height on, up to a boundary or some number that has a finality."""
        rows = self._disk.chain
        if not 1 <= first <= len(rows):
            return None
        epoch = rows[first - 1].block.header.epoch
        last = 0
        for height in range(first, len(rows) + 1):
            row = rows[height - 1]
            if row.block.header.epoch != epoch or (last and height >= first + BLOCKS_MAX):
                break
            if row.finality is not None:
                last = height
        finality = rows[last - 1].finality
        assert finality is not None, "the last row has one"
        return Blocks(tuple((row.block, row.transactions) for row in rows[first - 1 : last]), finality)

    def verify_blocks(self, rows: Sequence[Row], finality: Finality) -> None:
        parent = self.head
        for block, bodies in rows:
            verify_successor(
                block.header,
                parent=parent,
                root=self.root_header,
                committee=self.ledger.committee,
                epoch_ms=self.genesis.parameters.epoch_ms,
            )
            hashes = tuple(signed.hash for signed in bodies)
            if hashes != block.transactions or transactions_root(hashes) != block.header.transactions_root:
                raise Rejected(Reason.HASH_MISMATCH, "other bodies than the block's")
            parent = block.header
        finality.verify(parent, committee=self.ledger.committee, verify=self._verify)
