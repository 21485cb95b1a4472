"""The killer: SIGKILL, SIGSTOP and power cuts of the whole network, from one seed; never more than f shards down.

It decides whom and when; the fleet does it.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import trio

from scripts.soaking.fleet import Fleet, wait_until

PAUSE_S = (0.5, 3.0)
AWAY_S = (0.0, 8.0)
"""How long a killed node stays down, and a stopped one stopped."""
STOP_SHARE = 0.15
"""Of SIGSTOP among all blows."""
OUTAGE_SHARE = 0.05
"""Of rounds in which every node is killed at once: more than f, so the network stands still until they are back."""


@dataclass(slots=True)
class Counts:
    kills: int = 0
    stops: int = 0
    outages: int = 0


class Killer:
    """Deals blows to a fleet, one after the other."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        seed: int,
        report: Callable[[Counts], None] = lambda counts: None,
        pause_s: tuple[float, float] = PAUSE_S,
        outage_share: float = OUTAGE_SHARE,
    ) -> None:
        self.fleet = fleet
        self.counts = Counts()
        self._rng = random.Random(f"{seed} kills")
        self._report = report
        self._pause_s = pause_s
        self._outage_share = outage_share

    async def run(self, is_over: Callable[[Counts], bool]) -> None:
        """Strike until it is over, then wait until everybody is back."""
        while not is_over(self.counts):
            await trio.sleep(self._rng.uniform(*self._pause_s))
            if self._rng.random() < self._outage_share:
                await self._cut_power()
            else:
                await self._strike()
        await wait_until(lambda: not self.fleet.down)

    async def _strike(self) -> None:
        fleet = self.fleet
        index = self._rng.choice(sorted(fleet.indexes))
        is_stop = self._rng.random() < STOP_SHARE
        away_s = self._rng.uniform(*AWAY_S)
        await wait_until(lambda: index not in fleet.indexes or fleet.can_spare(index))
        if index not in fleet.indexes:  # it has left meanwhile
            return
        if is_stop:
            fleet.stop(index, until=trio.current_time() + away_s)
            self.counts.stops += 1
            return
        await fleet.kill(index, until=trio.current_time() + away_s)
        self.counts.kills += 1
        if self.counts.kills % 10 == 0:
            self._report(self.counts)

    async def _cut_power(self) -> None:
        """Kill all nodes that run, at once, and start them again."""
        await wait_until(lambda: self.fleet.is_settled)
        await self.fleet.kill_all(until=trio.current_time() + self._rng.uniform(*AWAY_S))
        self.counts.outages += 1
        await wait_until(lambda: not self.fleet.down)
