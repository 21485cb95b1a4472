"""Makes blocks and judges those of others: what needs the clock, the state and the transactions. Casts no vote.

Blocks that are not final yet are held here with their transactions, by hash, until the chain has passed them.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace

import trio

from economics.arguments import inner_signatures
from economics.block import AHEAD_MS_MAX, Block, BlockHeader, block_time_ms, transactions_root
from economics.crypto import Digest, Signature
from economics.errors import Reason, Rejected
from economics.transactions import (
    BLOCK_BYTES_MAX,
    BLOCK_SIGNATURES_MAX,
    SignedTransaction,
    verify_bodies,
)
from economics.votes import ZERO_HASH
from p2pnode.consensus.executor import Candidate, Executor
from p2pnode.consensus.mempool import Mempool

log = logging.getLogger("p2pnode.consensus.blockmaker")

SETTLE_MS = 500
"""After the last transactions one more block is made this soon: only it shows their effect in its state root."""

Pull = Callable[[Sequence[Digest], int | None], Awaitable[list[bytes]]]
"""Fetches the transactions of these hashes, from this member first; raises `NetworkError` or `Rejected`."""
Reveal = Callable[[BlockHeader, Sequence[BlockHeader]], bytes]
"""Returns what a new block reveals, given this member's own blocks from the executed head to its parent, ascending."""


class BlockMaker:
    """What one member builds blocks from and judges them by."""

    def __init__(
        self,
        *,
        executor: Executor,
        mempool: Mempool,
        sign: Callable[[bytes], Signature],
        clock_ms: Callable[[], int],
        pull: Pull,
        reveal: Reveal,
    ) -> None:
        self.executor = executor
        self.mempool = mempool
        self.parameters = executor.genesis.parameters
        self.clock_ms = clock_ms
        self._sign = sign
        self._pull = pull
        self._reveal = reveal
        self._held: dict[Digest, Candidate] = {}
        """Blocks above the head."""
        self._bodies_held: dict[Digest, SignedTransaction] = {}
        """Their transactions, by hash: whoever asks for bodies must not make this node search every block."""

    # --- blocks that are not final yet ---------------------------------------------------------------------------

    def hold(self, candidate: Candidate) -> None:
        self._held[candidate.block.hash] = candidate
        self._bodies_held.update((signed.hash, signed) for signed in candidate.transactions)

    def held(self, block_hash: Digest) -> Candidate | None:
        return self._held.get(block_hash)

    def transaction(self, tx_hash: Digest) -> SignedTransaction | None:
        """Return a transaction that waits, or is in a block that is not final yet; from any thread."""
        return self.mempool.get(tx_hash) or self._bodies_held.get(tx_hash)

    def drop_passed(self) -> None:
        """Forget blocks at or below the head."""
        height = self.executor.height
        passed = [key for key, item in self._held.items() if item.block.header.height <= height]
        for block_hash in passed:
            del self._held[block_hash]
        if passed:
            kept = (signed for item in self._held.values() for signed in item.transactions)
            self._bodies_held = {signed.hash: signed for signed in kept}

    def _flight(self, tip: BlockHeader) -> Iterator[Candidate]:
        """Yield `tip` and what it builds on, down to the head."""
        block_hash = tip.hash
        while (candidate := self._held.get(block_hash)) is not None:
            if candidate.block.header.height <= self.executor.height:
                break
            yield candidate
            block_hash = candidate.block.header.parent_hash

    def in_flight(self, tip: BlockHeader) -> list[SignedTransaction] | None:
        """Return the transactions of `tip` and of what it builds on, down to the head.

        None where one of these blocks is not here: a quorum may have voted for what this member still waits for.
        """
        blocks = list(self._flight(tip))
        lowest = blocks[-1].block.header.height if blocks else tip.height + 1
        if lowest > self.executor.height + 1:
            return None
        return [signed for candidate in reversed(blocks) for signed in candidate.transactions]

    def _with_reveal(self, header: BlockHeader, parent: BlockHeader) -> BlockHeader:
        """Return a header of this member with what it reveals."""
        flight = [candidate.block.header for candidate in self._flight(parent)]
        own = [one for one in reversed(flight) if one.leader == header.leader]
        return replace(header, reveal=self._reveal(header, own))

    def earliest_ms(self, tip: BlockHeader) -> int:
        return tip.time_ms + self.parameters.block_interval_ms

    def due_ms(self, tip: BlockHeader) -> int:
        """Return from when on a block after `tip` is wanted.

        At once for transactions, soon to settle, else at the next heartbeat, or where the epoch turns.
        """
        earliest = self.earliest_ms(tip)
        if self.executor.ends_epoch(tip) and tip != self.executor.root_header:
            return earliest  # only what builds on a boundary can finalize it
        flight = self.in_flight(tip) or ()
        if next(self.mempool.executable(ledger=self.executor.ledger, in_flight=flight), None) is not None:
            return earliest
        shown = tip != self.executor.root_header and tip.state_root == self.executor.ledger.root
        settled = shown and tip.height == self.executor.height
        pause = self.parameters.heartbeat_ms if settled else min(SETTLE_MS, self.parameters.heartbeat_ms)
        return max(earliest, min(tip.time_ms + pause, self._turning_ms(tip)))

    def _turning_ms(self, tip: BlockHeader) -> int:
        """Return when a block is wanted on `tip` for the epoch's sake: at the cut-off, and behind that at the end."""
        begun, epoch_ms = self.executor.root_header.time_ms, self.parameters.epoch_ms
        cut_off = begun + epoch_ms // 2
        return cut_off if tip.time_ms < cut_off else begun + epoch_ms

    # --- making --------------------------------------------------------------------------------------------------

    def build(self, *, view: int, leader: int, parent: BlockHeader, is_empty: bool) -> Block:
        """Return a signed block on `parent`, holding what waits now; `leader` is this node's index."""
        executor = self.executor
        is_first = parent == executor.root_header
        chosen = () if is_empty else self._choose(parent)
        hashes = tuple(signed.hash for signed in chosen)
        executed = parent.height if is_first else executor.height
        root = executor.root(executed)
        assert root is not None
        named = ZERO_HASH if is_first or is_empty else executor.ledger.next_committee_hash
        header = BlockHeader(
            chain_id=parent.chain_id,
            epoch=executor.ledger.epoch,
            view=view,
            height=parent.height + 1,
            parent_view=0 if is_first else parent.view,
            parent_hash=parent.hash,
            time_ms=block_time_ms(
                self.clock_ms(),
                parent=parent,
                root=executor.root_header,
                epoch_ms=self.parameters.epoch_ms,
                names_next=named != ZERO_HASH,
            ),
            leader=leader,
            transactions_root=transactions_root(hashes),
            transactions_count=len(hashes),
            executed_height=executed,
            state_root=root,
            committee_hash=executor.ledger.committee.hash,
            next_committee_hash=named,
        )
        if not is_empty:  # what finalizes a boundary is no part of the chain
            header = self._with_reveal(header, parent)
        block = Block(header, self._sign(header.encode()), hashes)
        self.hold(Candidate(block, chosen))
        return block

    def _choose(self, parent: BlockHeader) -> tuple[SignedTransaction, ...]:
        flight = self.in_flight(parent)
        if flight is None:  # whatever waits may be in there already
            return ()
        chosen: list[SignedTransaction] = []
        size = signatures = 0
        waiting = self.mempool.executable(ledger=self.executor.ledger, in_flight=flight)
        for signed in waiting:
            size += len(signed.raw)
            signatures += inner_signatures(signed.transaction.operation)
            full = size > BLOCK_BYTES_MAX or signatures > BLOCK_SIGNATURES_MAX
            if full or len(chosen) >= self.parameters.block_transactions_max:
                break
            chosen.append(signed)
        return tuple(chosen)

    # --- judging -------------------------------------------------------------------------------------------------

    async def judge(self, block: Block, *, sender: int | None) -> None:
        """Raise `Rejected` for a block that must not be voted for; wait for the state and the bodies that it needs."""
        header = block.header
        ahead_ms = header.time_ms - self.clock_ms()
        if ahead_ms > AHEAD_MS_MAX:
            raise Rejected(Reason.WRONG_TIME, f"a block {ahead_ms} ms ahead of this clock")
        bodies = await self._bodies(block, sender)
        await self.executor.wait_beyond(header.executed_height - 1)
        root = self.executor.root(header.executed_height)
        if root is not None and root != header.state_root:
            raise Rejected(Reason.WRONG_STATE, f"another state root after height {header.executed_height}")
        self._verify_next_committee(header)
        self.hold(Candidate(block, bodies))

    def _verify_next_committee(self, header: BlockHeader) -> None:
        """Raise `Rejected` unless the header names what the state it has executed has fixed.

        Behind a boundary it names nothing, as the engine has seen to. What is not known here is zero or what is fixed
        by now: nobody may bring in a third, which those who know better could never build on.
        """
        executor, named = self.executor, header.next_committee_hash
        if named == ZERO_HASH and executor.ends_epoch(header):
            return
        known = executor.next_committee_hash(header.executed_height)
        if named not in ((ZERO_HASH, executor.ledger.next_committee_hash) if known is None else (known,)):
            raise Rejected(Reason.WRONG_STATE, f"another next committee after height {header.executed_height}")

    async def fetch(self, block: Block) -> None:
        """Hold a block that is final, with its bodies: there is nothing left to judge."""
        self.hold(Candidate(block, await self._bodies(block, None)))

    async def _bodies(self, block: Block, sender: int | None) -> tuple[SignedTransaction, ...]:
        """Return the block's transactions, pulling those that are not here; every one is valid at its height."""
        found = {tx_hash: signed for tx_hash in block.transactions if (signed := self.transaction(tx_hash))}
        missing = [tx_hash for tx_hash in block.transactions if tx_hash not in found]
        if missing:
            for tx_hash, raw in zip(missing, await self._pull(missing, sender), strict=True):
                found[tx_hash] = SignedTransaction.decode(raw, chain_id=block.header.chain_id)
                if found[tx_hash].hash != tx_hash:
                    raise Rejected(Reason.HASH_MISMATCH, "a transaction that was not asked for")
            fresh = [found[tx_hash] for tx_hash in missing]
            await trio.to_thread.run_sync(self._verify_all, fresh)
        bodies = tuple(found[tx_hash] for tx_hash in block.transactions)
        verify_bodies(bodies, height=block.header.height)
        return bodies

    def _verify_all(self, transactions: Sequence[SignedTransaction]) -> None:
        for signed in transactions:
            signed.verify(parameters=self.parameters)
