"""The round of challenges that goes on: who is asked about what, and which slivers nobody is to have meanwhile.

Both sides read from here: who answers, and who audits. It asks nobody and decides nothing.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from functools import partial
from math import inf

import trio

from economics.blob import BlobId, Root
from economics.challenges import Owed, sample, slice_ms
from economics.committee import Committee
from economics.genesis import Parameters
from economics.ledger import Ledger
from economics.nodes import Round
from p2pnode.consensus.executor import Executor
from p2pnode.slivers.store import SliverStore

WINDOW_S = 30.0
"""For an answer at most: a home node that reads 16 slivers of 8 MiB segments has a hundred times what it needs."""


def window_s(parameters: Parameters) -> float:
    """Return how long after its beginning a round's answers count and its slivers are frozen: half a round at most."""
    return min(slice_ms(parameters) / 2_000, WINDOW_S)


@dataclass(frozen=True, slots=True)
class Sampled:
    """One segment that a challenged shard is asked about."""

    blob_id: BlobId
    segment: int
    root: Root | None
    """None while this node knows no header of the blob."""
    is_fresh: bool
    """Certified less than a round ago: an upload ends with a quorum, and others need time to recover their part."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """What is asked in one round."""

    round: Round
    committee: Committee
    samples: Mapping[int, tuple[Sampled, ...]]
    """By challenged shard."""
    pairs: frozenset[tuple[Root, int]] = field(default=frozenset())
    """All that is sampled, as far as this node knows the blobs: (root, shard)."""

    @property
    def name(self) -> tuple[int, int]:
        return self.round.epoch, self.round.number


def draw(ledger: Ledger, store: SliverStore, ripe_height: int | None) -> Sheet:
    """Return what is asked in the round that begins in this state; 10 us a live blob, for a worker thread.

    Fresh is what was certified above `ripe_height`, where the round before began; if that is not known, in this epoch.
    """
    current, committee, parameters = ledger.round, ledger.committee, ledger.genesis.parameters
    assert current is not None
    live = {blob.blob_id: blob for blob in ledger.live_blobs()}
    owed = Owed.of(((blob.blob_id, blob.length) for blob in live.values()), ledger.genesis.code)

    def look_up(blob_id: BlobId, segment: int) -> Sampled:
        record, blob = store.record(blob_id), live[blob_id]
        root = None if record is None else record.header.roots[segment]
        fresh = blob.certified_epoch == current.epoch if ripe_height is None else blob.certified_height > ripe_height
        return Sampled(blob_id, segment, root, fresh)

    shards = [shard for tally in current.tallies for shard in committee.shards_of(tally.member)]
    drawn = partial(sample, owed, seed=current.seed, count=parameters.challenge_samples)
    samples = {shard: tuple(look_up(*place) for place in drawn(shard=shard)) for shard in shards}
    pairs = ((one.root, shard) for shard, asked in samples.items() for one in asked if one.root is not None)
    return Sheet(current, committee, samples, frozenset(pairs))


class Rounds:
    """Follows the chain's rounds."""

    def __init__(self, *, executor: Executor, store: SliverStore) -> None:
        self.executor = executor
        self.store = store
        self.sheet: Sheet | None = None
        """Of the newest round whose beginning this node executed; None before the first."""
        self.began = -inf
        """When that was, by trio's clock."""
        self.window_s = window_s(executor.genesis.parameters)
        self._changed = trio.Event()

    async def run(self) -> None:
        """Draw each round that begins."""
        drawn: Ledger | None = None
        while True:
            ledger, began = self.executor.round_ledger, self.executor.round_since
            if ledger is not None and ledger is not drawn:
                drawn = ledger
                ripe = None if self.sheet is None else self.sheet.round.height
                self.sheet = await trio.to_thread.run_sync(draw, ledger, self.store, ripe)
                self.began = began
                self._changed.set()
                self._changed = trio.Event()
            else:
                await self.executor.advanced.wait()

    def is_current(self, sheet: Sheet) -> bool:
        return self.sheet is sheet

    async def wait_until(self, is_it: Callable[[Sheet], bool]) -> Sheet:
        """Return the first sheet of which this is true, from the present one on."""
        while self.sheet is None or not is_it(self.sheet):
            await self._changed.wait()
        return self.sheet

    def frozen(self) -> Set[tuple[Root, int]]:
        """Return the shards of segments under a challenge: who was asked must not have them from others now."""
        is_open = self.sheet is not None and trio.current_time() < self.began + self.window_s
        return self.sheet.pairs if is_open and self.sheet is not None else frozenset()
