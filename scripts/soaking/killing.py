"""The killer: SIGKILL, SIGSTOP and power cuts of the whole network, from one seed; never more than f shards down.

It alone starts and ends nodes, so that it knows which should run.
"""

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from p2pnode import testnet

PAUSE_S = (0.5, 3.0)
AWAY_S = (0.0, 8.0)
"""How long a killed node stays down, and a stopped one stopped."""
POLL_S = 0.1
START_S_MAX = 60.0
STOP_SHARE = 0.15
"""Of SIGSTOP among all blows."""
OUTAGE_SHARE = 0.05
"""Of rounds in which every node is killed at once: more than f, so the network stands still until they are back."""


class NodeFailed(Exception):
    """A node ended by itself, or did not come up."""


@dataclass(slots=True)
class Counts:
    kills: int = 0
    stops: int = 0
    outages: int = 0


async def wait_until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110  # processes have no event
        await trio.sleep(POLL_S)


class Killer:
    """Who is up, who is down until when, and what happens to them next."""

    def __init__(self, network: testnet.Network, *, seed: int, report: Callable[[Counts], None]) -> None:
        self.network = network
        self.counts = Counts()
        self._rng = random.Random(f"{seed} kills")
        self._report = report
        self._genesis = network.client_home.load_genesis()
        self._due: dict[int, float] = {}
        """When a node that is down is started, or one that is stopped goes on."""
        self._stopped: set[int] = set()
        self._starting: dict[int, float] = {}
        """Since when a node is on its way up: it still counts as down."""

    @property
    def down(self) -> set[int]:
        return set(self._due) | set(self._starting)

    def _shards(self, nodes: set[int]) -> int:
        return sum(self._genesis.members[index].shards for index in nodes)

    async def run(self, kills: int) -> None:
        """Deal so many kills, then bring everybody back. Raises `NodeFailed`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tend)
            while self.counts.kills < kills:
                await trio.sleep(self._rng.uniform(*PAUSE_S))
                if self._rng.random() < OUTAGE_SHARE:
                    await self._cut_power()
                else:
                    await self._strike()
            await wait_until(lambda: not self.down)
            nursery.cancel_scope.cancel()

    async def _strike(self) -> None:
        index = self._rng.choice(range(len(self.network.processes)))
        is_stop = self._rng.random() < STOP_SHARE
        away_s = self._rng.uniform(*AWAY_S)
        limit = self._genesis.code.f
        await wait_until(lambda: index not in self.down and self._shards(self.down | {index}) <= limit)
        self._due[index] = trio.current_time() + away_s
        if is_stop:
            self._stopped.add(index)
            self.network.process(index).send(signal.SIGSTOP)
            self.counts.stops += 1
            return
        await self._kill(index)
        self.counts.kills += 1
        if self.counts.kills % 10 == 0:
            self._report(self.counts)

    async def _kill(self, index: int) -> None:
        self._verify_running(index)
        await trio.to_thread.run_sync(testnet.kill, self.network, index)

    async def _cut_power(self) -> None:
        """Kill all nodes that run, at once, and start them again."""
        await wait_until(lambda: not self._starting and not self._stopped)
        due = trio.current_time() + self._rng.uniform(*AWAY_S)
        running = set(range(len(self.network.processes))) - self.down
        self._due |= dict.fromkeys(range(len(self.network.processes)), due)
        async with trio.open_nursery() as nursery:
            for index in running:
                nursery.start_soon(self._kill, index)
        self.counts.outages += 1
        await wait_until(lambda: not self.down)

    # --- bringing back -------------------------------------------------------------------------------------------

    async def _tend(self) -> None:
        while True:
            for index in [index for index, at in self._due.items() if at <= trio.current_time()]:
                if index in self._stopped:
                    self.network.process(index).send(signal.SIGCONT)
                    self._stopped.remove(index)
                elif not self.network.process(index).is_running:
                    await self._start(index)
                else:
                    continue  # about to be killed
                del self._due[index]
            for index in list(self._starting):
                self._look_at(index)
            for index in set(range(len(self.network.processes))) - self.down:
                self._verify_running(index)
            await trio.sleep(POLL_S)

    async def _start(self, index: int) -> None:
        old = self.network.process(index)
        member = self._genesis.members[index]
        fresh = await trio.to_thread.run_sync(testnet.start, self.network.directory, index, member, old.behaviour)
        processes = tuple(fresh if process.index == index else process for process in self.network.processes)
        self.network = replace(self.network, processes=processes)
        await trio.to_thread.run_sync(self.network.save)
        self._starting[index] = trio.current_time()

    def _look_at(self, index: int) -> None:
        """Count a node as up once it has printed its line."""
        self._verify_running(index)
        if (Path(self.network.process(index).home) / "ready.json").stat().st_size:
            del self._starting[index]
        elif trio.current_time() > self._starting[index] + START_S_MAX:
            raise NodeFailed(f"node {index} did not start within {START_S_MAX:.0f} s")

    def _verify_running(self, index: int) -> None:
        if not self.network.process(index).is_running:
            raise NodeFailed(f"node {index} ended by itself")
