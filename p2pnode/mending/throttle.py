"""Bytes in flight at once, and bytes per second: healing and scrubbing leave the machine and the line to others."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Throttle:
    """Room for transfers under way, and a pace for them."""

    def __init__(self, *, in_flight: int, bytes_per_s: int) -> None:
        """0 bytes a second: as fast as it goes."""
        self._free = self._size = in_flight
        self.bytes_per_s = bytes_per_s
        self._turn = trio.Lock()
        self._freed = trio.Event()
        self._ready_at = 0.0

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """Wait in turn for room and pace for `size` bytes, and hold the room; one that is larger than all takes all."""
        size = min(size, self._size)
        async with self._turn:
            while self._free < size:
                await self._freed.wait()
            self._free -= size
            try:
                await self.pace(size)
            except BaseException:
                self._give_back(size)
                raise
        try:
            yield
        finally:
            self._give_back(size)

    def _give_back(self, size: int) -> None:
        self._free += size
        self._freed.set()
        self._freed = trio.Event()

    async def pace(self, size: int) -> None:
        """Wait until the bytes before these are through, at the rate that is set."""
        if not self.bytes_per_s:
            return
        start = max(self._ready_at, trio.current_time())
        self._ready_at = start + size / self.bytes_per_s
        await trio.sleep_until(start)
