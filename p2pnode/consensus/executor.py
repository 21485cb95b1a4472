"""Executes final blocks on the ledger and stores them: one durable transaction each time. Knows no vote and no peer.

Readers see the ledger as it was after some final height, never in between: a block is executed on a fork in a worker
thread, and the fork takes the ledger's place when it is on disk.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from economics.arguments import HandOver, Transfer
from economics.block import Block, BlockHeader, Finality, genesis_header, is_boundary
from economics.committee import Committee
from economics.crypto import Digest, OwnerId
from economics.errors import Reason, Rejected
from economics.genesis import Genesis
from economics.ledger import Ledger, Receipt
from economics.light import Boundary
from economics.transactions import SignedTransaction
from economics.tree import Tree
from economics.votes import ZERO_HASH
from p2pnode.consensus.chain import ChainStore, FinalBlock, StoredReceipt
from p2pnode.consensus.snapshots import Snapshots
from p2pnode.errors import SpaceError

log = logging.getLogger("p2pnode.consensus.executor")

STATES_KEPT = 64
"""Versions of the state that proofs can be made for: a header's state root is a few blocks old when it is final."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A block with the bodies of its transactions, in order."""

    block: Block
    transactions: tuple[SignedTransaction, ...]


@dataclass(frozen=True, slots=True)
class _State:
    """The state after one height, as far as headers speak of it."""

    tree: Tree
    next_committee_hash: Digest

    @classmethod
    def of(cls, ledger: Ledger) -> "_State":
        return cls(ledger.tree, ledger.next_committee_hash)


class Diverged(AssertionError):
    """A final header's state root is not what executing the chain gives here: this node must not go on."""


class Executor:
    """The chain as far as it is final and executed here."""

    def __init__(self, genesis: Genesis, store: ChainStore, snapshots: Snapshots) -> None:
        self.genesis = genesis
        self.store = store
        self.snapshots = snapshots
        start = Ledger.at_genesis(genesis)
        self.genesis_header = genesis_header(
            chain_id=genesis.chain_id,
            time_ms=genesis.time_ms,
            state_root=start.root,
            committee_hash=start.committee.hash,
            next_committee_hash=start.next_committee_hash,
        )
        height = store.head()
        self.ledger = Ledger.load(genesis, items=store.state_values(), height=height) if height else start
        self.head = self.genesis_header if not height else self._stored_header(height)
        self.finality = store.finality(height) if height else None
        """What proves the head final; None at genesis."""
        self.root_header = self._epoch_root()
        """The root of the current epoch: what its view 0 stands for."""
        self.round_ledger: Ledger | None = None
        """The state after the block that began the newest round of challenges; None if that was not executed here."""
        self.round_since = 0.0
        """When that block was executed here, by trio's clock."""
        self.advanced = trio.Event()
        """Set, and replaced, whenever the head moves."""
        self._states: OrderedDict[int, _State] = OrderedDict({self.ledger.height: _State.of(self.ledger)})
        if self.head.state_root == self.ledger.root:  # the head vouches for it: nobody need wait for the next block
            self._states[self.head.executed_height] = _State.of(self.ledger)
            self._states.move_to_end(self.ledger.height)
        self._turn = trio.Lock()

    def _stored_header(self, height: int) -> BlockHeader:
        header = self.store.header(height)
        assert header is not None, f"block {height} is not in the store"
        return header

    def _epoch_root(self) -> BlockHeader:
        if not self.ledger.epoch:
            return self.genesis_header
        height = self.store.boundary(self.ledger.epoch - 1)
        assert height is not None
        return self._stored_header(height)

    @property
    def height(self) -> int:
        return self.ledger.height

    def header(self, height: int) -> BlockHeader | None:
        return self.store.header(height) if height else self.genesis_header

    def root(self, height: int) -> Digest | None:
        """Return the state root after the block of `height`, None if it is not executed here or too old."""
        recent = self._states.get(height)
        if recent is not None:  # without the store, which may be busy with the next block
            return recent.tree.root
        return self.store.root(height) if height else self.genesis_header.state_root

    def tree(self, height: int) -> Tree | None:
        """Return the state after one of the last heights."""
        recent = self._states.get(height)
        return None if recent is None else recent.tree

    def next_committee_hash(self, height: int) -> Digest | None:
        """Return what a header names that has executed up to `height`: zero until the next committee was fixed.

        None if that is not known here, as it was fixed since, or the height is one of an earlier epoch.
        """
        recent = self._states.get(height)
        if recent is not None:
            return recent.next_committee_hash
        is_open = self.root_header.height <= height <= self.height and not self.ledger.cut_off_passed
        return ZERO_HASH if is_open else None

    async def wait_beyond(self, height: int) -> None:
        """Wait until the head is above `height`."""
        while self.height <= height:
            await self.advanced.wait()

    async def wait_epoch_beyond(self, epoch: int) -> None:
        """Wait until an epoch has ended."""
        while self.ledger.epoch <= epoch:
            await self.advanced.wait()

    async def apply(self, candidates: Sequence[Candidate], finality: Finality) -> tuple[Receipt, ...]:
        """Execute final blocks that follow the head, all of one epoch, and store them; `finality` is of the last one.

        Blocks at or below the head are passed over. Returns the receipts of what was executed.
        """
        async with self._turn:
            fresh = [item for item in candidates if item.block.header.height > self.height]
            if not fresh:
                return ()
            with trio.CancelScope(shield=True):  # half done it would be on disk and not in memory
                ledger, receipts, states, began = await trio.to_thread.run_sync(self._execute, fresh, finality)
                if began is not None:
                    self.round_ledger, self.round_since = began, trio.current_time()
                self._take(ledger, states, fresh[-1].block.header, finality)
            return receipts

    def _execute(
        self, candidates: Sequence[Candidate], finality: Finality
    ) -> tuple[Ledger, tuple[Receipt, ...], dict[int, "_State"], Ledger | None]:
        """For a worker thread. The last is the state in which a round began, if one did and is not over with it."""
        ledger = self.ledger.fork()
        began: Ledger | None = None
        changes: dict[bytes, bytes | None] = {}
        rows: list[FinalBlock] = []
        receipts: list[Receipt] = []
        states: dict[int, _State] = {}
        for item in candidates:
            header = item.block.header
            self._verify_executed(header, states.get(header.executed_height))
            committee = ledger.committee
            applied = ledger.apply(header, item.transactions)
            if applied.round_began and not applied.epoch_ended:
                began = ledger.fork()
            changes.update(applied.changes.items())
            receipts += applied.receipts
            states[header.height] = _State.of(ledger)
            following = ledger.committee if applied.epoch_ended else None
            rows.append(build_row(item, applied.receipts, root=ledger.root, committee=committee, following=following))
        self.store.append(rows, finality=finality, changes=changes)
        if ledger.epoch != self.ledger.epoch:
            self._write_snapshot(self.ledger.epoch, ledger)
        return ledger, tuple(receipts), states, began

    def _verify_executed(self, header: BlockHeader, recent: "_State | None") -> None:
        """Raise `Diverged` unless a final header says of the state it has executed what is known of that here."""
        height = header.executed_height
        root = self.root(height) if recent is None else recent.tree.root
        if root is not None and root != header.state_root:
            raise Diverged(f"block {header.height} has another state root for height {height}")
        following = self.next_committee_hash(height) if recent is None else recent.next_committee_hash
        if following is not None and following != header.next_committee_hash:
            raise Diverged(f"block {header.height} names another next committee for height {height}")

    def _write_snapshot(self, epoch: int, ledger: Ledger) -> None:
        """Keep the state after an epoch for others; the blocks are on disk by now, so a failure must not undo them."""
        try:
            self.snapshots.write(epoch, (value for _, value in ledger.tree.items()))
        except (SpaceError, OSError) as fault:
            log.warning("no snapshot of the state after epoch %d: %s", epoch, fault)

    def _take(self, ledger: Ledger, states: dict[int, "_State"], head: BlockHeader, finality: Finality) -> None:
        if ledger.epoch != self.ledger.epoch:
            self.root_header = head
            log.info("epoch %d begins at height %d", ledger.epoch, head.height)
        self.ledger, self.head, self.finality = ledger, head, finality
        self._states.update(states)
        while len(self._states) > STATES_KEPT:
            self._states.popitem(last=False)
        self.advanced.set()
        self.advanced = trio.Event()

    async def install(self, trail: Sequence[Boundary], values: Sequence[bytes], *, root: Digest) -> bool:
        """Take the state after the last of these boundaries as it is in a snapshot; return whether it was still news.

        The caller has checked the boundaries, which follow on the current epoch, and `root`. Raises `Rejected` and
        changes nothing if these values are not what hashes to it.
        """
        boundary = trail[-1].header
        async with self._turn:
            ahead = [item for item in trail if item.header.height > self.height]
            if not ahead:  # blocks came first while the snapshot was fetched
                return False

            def load() -> Ledger:
                ledger = Ledger.load(self.genesis, items=values, height=boundary.height)
                if ledger.root != root or ledger.epoch != boundary.epoch + 1:
                    raise Rejected(Reason.HASH_MISMATCH, "the snapshot is not the state that was signed for")
                if ledger.committee.hash != boundary.next_committee_hash:
                    raise Rejected(Reason.HASH_MISMATCH, "the snapshot seats another committee than its boundary")
                self.store.install_snapshot(ahead, ledger.tree.items(), root=root)
                return ledger

            with trio.CancelScope(shield=True):
                ledger = await trio.to_thread.run_sync(load)
                self._states.clear()
                self.round_ledger = None
                self._take(ledger, {boundary.height: _State.of(ledger)}, boundary, trail[-1].finality)
            return True

    def ends_epoch(self, header: BlockHeader) -> bool:
        """Return whether a block of the current epoch is its boundary, or builds on it."""
        return is_boundary(header, root=self.root_header, epoch_ms=self.genesis.parameters.epoch_ms)


def touched(signed: SignedTransaction) -> tuple[OwnerId, ...]:
    """Return whose history a transaction belongs to."""
    match signed.transaction.operation:
        case Transfer(to, _) | HandOver(_, to):
            return (signed.transaction.sender, to)
        case _:
            return (signed.transaction.sender,)


def build_row(
    item: Candidate, receipts: Sequence[Receipt], *, root: Digest, committee: Committee, following: Committee | None
) -> FinalBlock:
    """Return a block of an epoch with this committee as the store keeps it; `following` is given by a boundary."""
    stays = following is None or following == committee.in_epoch(following.epoch)
    return FinalBlock(
        block=item.block,
        bodies=tuple(signed.raw for signed in item.transactions),
        receipts=tuple(StoredReceipt(receipt.hash, str(receipt.code), receipt.fee_frost) for receipt in receipts),
        touched=tuple(touched(signed) for signed in item.transactions),
        root=root,
        is_boundary=following is not None,
        members=b"" if following is None or stays else following.encode(),
    )
