"""Bytes in memory that peers wait for: so many at once, and nobody shuts the others out by dripping."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from economics.crypto import NodeId
from economics.errors import Reason, Rejected
from p2pnode.errors import TooSlow

BUDGET_WAIT_S = 8.0
"""Who finds no room for a message waits this long, then is told to come back; peers give up after 10 s."""
FAIR_S = 2.0
"""A transfer may hold its room for so long, whoever waits."""


class ByteBudget:
    """Bytes that may be in memory at once. Whoever finds no room waits in turn, each peer once, up to a limit.

    While somebody waits, transfers that have held their room for `FAIR_S` are cut off, the slowest for their size
    first: nobody shuts the others out by dripping.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._changed = trio.Event()
        self._turn = trio.Lock()
        self._peer_turns: dict[NodeId, trio.Lock] = {}
        self._moving: dict[trio.CancelScope, tuple[float, int]] = {}

    @asynccontextmanager
    async def taken(self, peer: NodeId, size: int) -> AsyncIterator[None]:
        if size and (self._free < size or self._turn.locked()):
            await self._wait(peer, size)
        else:
            self._free -= size
        try:
            yield
        finally:
            self._free += size
            self._changed.set()
            self._changed = trio.Event()

    async def _wait(self, peer: NodeId, size: int) -> None:
        own = self._peer_turns.setdefault(peer, trio.Lock())
        try:
            with trio.move_on_after(BUDGET_WAIT_S):
                async with own, self._turn:
                    while self._free < size:
                        self._cut_slowest(size - self._free)
                        with trio.move_on_after(FAIR_S / 4):
                            await self._changed.wait()
                    self._free -= size
                    return
        finally:
            if not own.locked():
                self._peer_turns.pop(peer, None)
        raise Rejected(Reason.OVER_BUDGET, "too many transfers at once")

    def _cut_slowest(self, size: int) -> None:
        now = trio.current_time()
        slow = {scope: (now - since) / of for scope, (since, of) in self._moving.items() if now - since >= FAIR_S}
        for scope in sorted(slow, key=slow.__getitem__, reverse=True):
            if size <= 0:
                return
            size -= self._moving.pop(scope)[1]
            scope.cancel()

    @contextmanager
    def moving(self, size: int) -> Iterator[None]:
        """Run the transfer of `size` bytes for which room is taken; raises `TooSlow` if it is cut off."""
        with trio.CancelScope() as scope:
            self._moving[scope] = (trio.current_time(), max(size, 1))
            try:
                yield
            finally:
                self._moving.pop(scope, None)
        if scope.cancelled_caught:
            raise TooSlow(f"{size} bytes took longer than {FAIR_S:.0f} s while others waited for room")
