"""One network to be simulated, in the project's own geometry: who holds its shards, and what rebuilding one costs."""

import heapq
import math
from dataclasses import dataclass
from statistics import NormalDist

from economics.genesis import Parameters
from economics.geometry import Code
from scripts.modelling.churn import Churn

EPOCH_HOURS = Parameters().epoch_ms // 3_600_000
MISSED_EPOCHS_MAX = Parameters().missed_epochs_max
SEAT_LOST_HOURS = EPOCH_HOURS * (MISSED_EPOCHS_MAX + 1.5)
"""From a node's silent end to another in its seat: half an epoch, those that it misses, and one for the committee."""
ABSENCE_HOURS = EPOCH_HOURS * MISSED_EPOCHS_MAX
"""A node that was away for so long loses its seat too, and what it holds no longer counts."""
UPLINK_MBIT = 20.0
DOWN_PER_UP = 5.0
"""Home lines are asymmetric: 100 Mbit/s down to 20 up. Assumed."""
REPAIR_SHARE = 0.5
"""Of a line, that repair may use; the rest serves readers and the household. Assumed."""
SHARD_TB = 1.0
"""What one shard of a full network takes on a disk. Assumed."""
DISK_SHARDS = 4
"""As many shards fit on one node's disk (the cap per candidate in the apportionment). Assumed."""
STAKE_SIGMA = 1.0
"""Stakes are log-normal with this sigma: the first tenth of the nodes holds four tenths of all stake. Assumed."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """`nodes` candidates, of whom D'Hondt seats the holders of n shards; the others are standbys that hold nothing."""

    nodes: int
    n: int
    churn: Churn
    uplink_mbit: float = UPLINK_MBIT
    whole_blob: bool = False
    correlated: bool = True
    """Whether regions fail as a whole and disasters happen."""
    stake_sigma: float = STAKE_SIGMA
    years: float = 3.0
    networks: int = 8

    @property
    def code(self) -> Code:
        return Code(self.n)

    @property
    def uplink_bytes_per_hour(self) -> float:
        return self.uplink_mbit * 1e6 / 8 * 3600 * REPAIR_SHARE

    @property
    def downlink_bytes_per_hour(self) -> float:
        return self.uplink_bytes_per_hour * DOWN_PER_UP

    @property
    def segments(self) -> float:
        """Return how many full segments the network holds: as many as fill a shard."""
        code = self.code
        return SHARD_TB * 1e12 / (code.encoded_bytes(code.segment_bytes) / code.n)

    @property
    def stored_bytes(self) -> float:
        """Return the bytes of all blobs, before encoding."""
        return self.segments * self.code.segment_bytes

    def rebuild_bytes(self, shards: float) -> float:
        """Return what travels when one node rebuilds so many shards of all segments, with 2n hashes and a root of each.

        From symbols: the sliver's own size, S symbols of the crossings for a primary and P for a secondary. From the
        whole blob: P primary slivers, once for all the shards of the node.
        """
        code = self.code
        z = code.symbol_bytes(code.segment_bytes)
        metadata = 64 * code.n + 32
        if self.whole_blob:
            return self.segments * (code.rows * code.columns * z + metadata)
        return self.segments * shards * (code.pair_bytes(z) + metadata)

    def holder_weights(self) -> list[int]:
        """Return the shards of each holder, most first."""
        cap = min(self.code.f, max(DISK_SHARDS, -(-self.n // self.nodes)))
        return apportion(self.nodes, self.n, cap=cap, sigma=self.stake_sigma)


def apportion(nodes: int, seats: int, *, cap: int, sigma: float) -> list[int]:
    """Deal seats by D'Hondt over log-normal stakes, no node more than `cap`; return the winners' seats, most first.

    The stakes are the quantiles of their distribution, not draws: the same for every seed.
    """
    normal = NormalDist()
    stakes = [math.exp(sigma * normal.inv_cdf((index + 0.5) / nodes)) for index in range(nodes)]
    queue = [(-stake, index) for index, stake in enumerate(stakes)]
    heapq.heapify(queue)
    won = [0] * nodes
    for _ in range(seats):
        _, index = heapq.heappop(queue)
        won[index] += 1
        if won[index] < cap:
            heapq.heappush(queue, (-stakes[index] / (won[index] + 1), index))
    return sorted((count for count in won if count), reverse=True)
