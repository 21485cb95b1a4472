"""The turnover: nodes join, leave and lose their disks, an epoch at a time, for as many epochs as the soak has.

Two things go on at once: what comes (a join in one epoch, a lost disk in the next) and what goes.
"""

import random
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from economics.crypto import NodeId
from economics.genesis import parse_key
from p2pnode.clients.session import STATUS_BYTES_MAX, parse_status
from p2pnode.members import REQUEST_FAULTS
from scripts.soaking.fleet import POLL_S, Fleet, wait_until
from scripts.soaking.load import Load

DELAY_SHARE = 0.8
"""Into which part of an epoch a change may come: before the next committee is fixed, and after it."""
LEAVE_EPOCHS = 3
"""A leave takes so many epochs at most: the one before the cut-off, the next committee's, and its handover."""


@dataclass(slots=True)
class Changes:
    """What came and went; seconds of each."""

    join_s: list[float] = field(default_factory=list)
    """Until the node was up."""
    leave_s: list[float] = field(default_factory=list)
    refill_s: list[float] = field(default_factory=list)
    """From the kill until the node held all that it owed."""


class Turnover:
    """Changes who the nodes of a fleet are."""

    def __init__(self, fleet: Fleet, load: Load, *, seed: int, epochs: int) -> None:
        self.fleet = fleet
        self.load = load
        self.epochs = epochs
        self.changes = Changes()
        self._nodes = len(fleet.indexes)
        self._rng = random.Random(f"{seed} turnover")
        self._epoch_s = fleet.client.genesis.parameters.epoch_ms / 1000

    @property
    def epoch(self) -> int:
        return self.fleet.committee.epoch

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._come)
            nursery.start_soon(self._go)

    async def _come(self) -> None:
        """In each epoch but the last two: a join, or a disk that is lost and refilled."""
        is_join = True
        while self.epoch + 2 <= self.epochs:
            epoch = self.epoch
            await trio.sleep(self._rng.random() * DELAY_SHARE * self._epoch_s)
            await (self._join() if is_join else self._replace())
            is_join = not is_join
            await wait_until(partial(self._is_beyond, epoch))

    def _is_beyond(self, epoch: int) -> bool:
        return self.epoch > epoch

    async def _join(self) -> None:
        begin = trio.current_time()
        await self.fleet.join()
        self.changes.join_s.append(trio.current_time() - begin)

    async def _replace(self) -> None:
        fleet = self.fleet
        index = self._rng.choice(sorted(fleet.seated & fleet.indexes))
        await wait_until(lambda: fleet.can_spare(index))
        begin, height = trio.current_time(), (await fleet.client.chain.head()).height
        blobs = len(self.load.blobs)
        if not fleet.can_spare(index):  # it was struck meanwhile
            return
        await fleet.replace(index)
        await wait_until_whole(fleet, index, height=height, blobs=blobs)
        fleet.refilling.discard(index)
        self.changes.refill_s.append(trio.current_time() - begin)

    async def _go(self) -> None:
        """Have one node after the other leave, as long as as many have seats as at the start."""
        fleet = self.fleet

        def is_late() -> bool:
            return self.epoch + LEAVE_EPOCHS > self.epochs

        while not is_late():
            await wait_until(lambda: is_late() or len(fleet.seated & fleet.indexes) >= self._nodes)
            if is_late():
                break
            begin = trio.current_time()
            await fleet.leave(self._rng.choice(sorted(fleet.seated & fleet.indexes - fleet.refilling)))
            self.changes.leave_s.append(trio.current_time() - begin)


async def node_status(fleet: Fleet, index: int) -> dict[str, Any] | None:
    """Return what a node says of itself, None where it does not answer."""
    node = NodeId(parse_key(fleet.network.process(index).node))
    try:
        reply, _ = await fleet.client.members.request(node, {"op": "status"}, size_max=STATUS_BYTES_MAX)
        return parse_status(reply.header.get("status"))
    except REQUEST_FAULTS:
        return None


async def wait_until_whole(fleet: Fleet, index: int, *, height: int, blobs: int) -> None:
    """Wait until a node knows the chain up to a height, so many blobs, and misses nothing of what it owes."""
    while True:
        status = await node_status(fleet, index) or {}
        chain, upkeep = status.get("chain") or {}, status.get("upkeep") or {}
        known = chain.get("height", 0) >= height and status.get("blobs", 0) >= blobs
        if known and upkeep.get("missing") == 0:
            return
        await trio.sleep(5 * POLL_S)
