"""A slow pass over all sliver files, for ever: what no longer matches its root is dropped, and healing restores it."""

import logging
from collections.abc import Callable
from random import Random

import trio

from economics import cbor
from economics.blob import Root
from economics.errors import Rejected
from p2pnode.mending.throttle import Throttle
from p2pnode.slivers.store import CorruptSliver, SliverStore

log = logging.getLogger("p2pnode.mending.scrub")

PASS_S = 7 * 86_400.0
"""A whole store is looked at once a week at least: an unread bit of a disk is lost within years, not days."""
IDLE_S = 60.0
"""Between two passes: a store of a few files need not be read all day."""


class Scrub:
    """One node's scrubbing."""

    def __init__(self, *, store: SliverStore, bytes_per_s: int, on_rotten: Callable[[], None], rng: Random) -> None:
        """`bytes_per_s` is the least pace; a large store is read faster, within a week. 0: no scrubbing."""
        self.store = store
        self.bytes_per_s = bytes_per_s
        self.checked_bytes = 0
        self.rotten = 0
        self._on_rotten = on_rotten
        self._rng = rng
        self._throttle = Throttle(in_flight=1, bytes_per_s=bytes_per_s)

    def status(self) -> dict[str, cbor.Value]:
        return {"checked_bytes": self.checked_bytes, "rotten": self.rotten}

    async def run(self) -> None:
        while self.bytes_per_s:
            self._throttle.bytes_per_s = max(self.bytes_per_s, int(self.store.used_bytes / PASS_S))
            await self.check_all()
            await trio.sleep(IDLE_S)

    async def check_all(self) -> None:
        """Check every file once, from any place on: a node that never runs for long gets everywhere too."""
        files = self.store.files()
        start = self._rng.randrange(len(files)) if files else 0
        for root, shard, size in (*files[start:], *files[:start]):
            await self._throttle.pace(size)
            await self._check(root, shard)
            self.checked_bytes += size

    async def _check(self, root: Root, shard: int) -> None:
        try:
            await trio.to_thread.run_sync(self.store.read_pair, root, shard)
        except Rejected:
            return  # it has gone meanwhile
        except (CorruptSliver, OSError) as fault:
            log.error("%s", fault)
            self.rotten += 1
            self._on_rotten()
