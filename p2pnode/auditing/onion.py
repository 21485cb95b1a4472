"""This node's hash onions: what it reveals in the blocks that it leads, and which onion it is bound to next.

They come from the operator's seed alone: a node that lost its disk and kept its key finds its place on the chain again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import trio
from blake3 import blake3

from economics import beacon, challenges
from economics.arguments import CommitBeacon, Operation
from economics.block import BlockHeader
from economics.crypto import DIGEST_BYTES, Digest, NodeId
from economics.ledger import Ledger
from economics.nodes import NO_COMMITMENT, Beacon
from p2pnode.consensus.executor import Executor

LAYERS = 4_096
"""Reveals in one onion: half a year of 24 a day, in 128 KiB."""
SPARE = 512
"""With fewer left the next onion is committed to: three weeks of 24 a day, and it counts after two days."""
LATE_EPOCHS = 4
"""A commitment is on chain in the epoch in which it was made, or at most so many later."""
CONTEXT = "p2pnode/1 onion"
NOTHING = bytes(DIGEST_BYTES)

Want = Callable[[bytes, Operation, Callable[[Ledger], bool]], None]
"""Has the operator send an operation, by a name, for as long as the ledger shows that it is wanted."""


@dataclass(frozen=True, slots=True)
class Onion:
    """All layers of one onion, each the reveal of the one before it; the first is the tip."""

    layers: bytes

    @classmethod
    def build(cls, seed: bytes, chain_id: Digest, generation: int) -> "Onion":
        """Return the onion that a node commits to in the epoch `generation`; 5 ms."""
        core = blake3(seed + chain_id + generation.to_bytes(8, "big"), derive_key_context=CONTEXT).digest()
        grown = [core]
        for _ in range(LAYERS):
            grown.append(beacon.peel(grown[-1]))
        return cls(b"".join(reversed(grown)))

    @property
    def tip(self) -> Digest:
        return Digest(self.layers[:DIGEST_BYTES])

    def left(self, tip: Digest) -> int | None:
        """Return how many reveals there are below a tip, or None if it is of another onion; 20 us."""
        at = self.layers.find(tip)
        return None if at < 0 else LAYERS - at // DIGEST_BYTES

    def below(self, tip: Digest) -> bytes:
        """Return the reveal of a tip of this onion."""
        at = self.layers.find(tip) + DIGEST_BYTES
        return self.layers[at : at + DIGEST_BYTES]


class Onions:
    """The onions of one operator that matter now."""

    def __init__(self, *, seed: bytes, chain_id: Digest) -> None:
        self._seed = seed
        self._chain_id = chain_id
        self._made: dict[int, Onion] = {}
        """By generation."""

    def prepare(self, committed: Beacon | None, *, epoch: int) -> None:
        """Make what the chain binds this node to, and what it could commit to in `epoch`; for a worker thread."""
        kept = {epoch: self._make(epoch)}
        for tip, since in _tips(committed):
            newest = since - beacon.COMMITMENT_EPOCHS
            for generation in range(newest, max(newest - LATE_EPOCHS, 0) - 1, -1):
                made = self._make(generation)
                if made.left(tip) is not None:
                    kept[generation] = made
                    break
        self._made = kept

    def _make(self, generation: int) -> Onion:
        return self._made.get(generation) or Onion.build(self._seed, self._chain_id, generation)

    def _of(self, tip: Digest) -> Onion | None:
        return next((made for made in self._made.values() if made.left(tip) is not None), None)

    def below(self, tip: Digest) -> bytes:
        """Return the reveal of a tip that the chain has, nothing if it is not of these onions or used up."""
        onion = self._of(tip)
        return NOTHING if onion is None else onion.below(tip) or NOTHING

    def due(self, committed: Beacon | None, *, epoch: int) -> Digest | None:
        """Return the tip to commit to now, None if the chain binds this node to an onion that lasts."""
        tips = [tip for tip, _ in _tips(committed)]
        newest = self._of(tips[-1]) if tips else None
        if newest is not None and (newest.left(tips[-1]) or 0) >= SPARE:
            return None
        fresh = self._made.get(epoch)
        return None if fresh is None or fresh.tip in tips else fresh.tip


def _tips(committed: Beacon | None) -> Iterator[tuple[Digest, int]]:
    """Yield each tip that the chain has of a node, and from which epoch on it counts; the newest last."""
    if committed is not None:
        yield committed.tip, committed.from_epoch
        if committed.next_tip != NO_COMMITMENT:
            yield committed.next_tip, committed.next_epoch


class Revealer:
    """Reveals for one node, and keeps it bound to an onion."""

    def __init__(self, *, executor: Executor, node: NodeId, seed: bytes, want: Want) -> None:
        self.executor = executor
        self.node = node
        self._want = want
        self._onions = Onions(seed=seed, chain_id=executor.genesis.chain_id)

    def reveal(self, header: BlockHeader, flight: Sequence[BlockHeader]) -> bytes:
        """Return what a block by this node reveals: zeros where it would not count, and only be known too early.

        `flight` are this node's own blocks from the executed head, exclusive, to the block's parent, ascending.
        """
        ledger = self.executor.ledger
        bound = ledger.beacon(self.node)
        if bound is None:
            return NOTHING
        for own in flight:
            left = beacon.revealed(bound, own.reveal, epoch=own.epoch, number=self._number(own))
            bound = left or bound
        if not beacon.is_due(bound, epoch=header.epoch, number=self._number(header)):
            return NOTHING
        return self._onions.below(beacon.in_force(bound, epoch=header.epoch).tip)

    def _number(self, header: BlockHeader) -> int:
        parameters = self.executor.genesis.parameters
        return challenges.round_number(header.time_ms, system=self.executor.ledger.system, parameters=parameters)

    async def run(self) -> None:
        """At the start and in each new epoch see to it that the chain binds this node to an onion that lasts."""
        while True:
            ledger = self.executor.ledger
            bound, epoch = ledger.beacon(self.node), ledger.epoch
            await trio.to_thread.run_sync(lambda: self._onions.prepare(bound, epoch=epoch))  # noqa: B023
            tip = self._due(ledger)
            if tip is not None:
                self._want(b"beacon" + tip, CommitBeacon(tip), lambda now: self._due(now) == tip)  # noqa: B023
            await self.executor.wait_epoch_beyond(epoch)

    def _due(self, ledger: Ledger) -> Digest | None:
        if ledger.node(self.node) is None:
            return None
        return self._onions.due(ledger.beacon(self.node), epoch=ledger.epoch)
