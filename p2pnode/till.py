"""Keeps apart the blobs that one owner stores at once: one purchase after the other, nothing taken or stored twice.

Whoever stores more than one blob at a time gives all its orders the same till. It asks nobody and pays nothing.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from economics.blob import BlobId
from economics.commitments import ReservationId

STORED_MAX = 4_096
"""Blobs stored lately that are remembered: what a block did is proven half a second later, and this is far more."""


class Till:
    """What one owner is buying, filling and storing right now."""

    def __init__(self) -> None:
        self.buying = trio.Lock()
        """Held from looking for storage until it is found or bought: what another bought must not look unused."""
        self._taken: set[ReservationId] = set()
        self._holders: dict[BlobId, int] = {}
        self._locks: dict[BlobId, trio.Lock] = {}
        self._stored: dict[BlobId, None] = {}

    @property
    def taken(self) -> frozenset[ReservationId]:
        """The reservations that blobs on their way fill, as of now."""
        return frozenset(self._taken)

    def take(self, reservation: ReservationId) -> None:
        assert reservation not in self._taken
        self._taken.add(reservation)

    def give_back(self, reservation: ReservationId) -> None:
        self._taken.discard(reservation)

    @asynccontextmanager
    async def blob(self, blob_id: BlobId) -> AsyncIterator[None]:
        """Have a blob for oneself while the block lasts: whoever stores or deletes it too waits."""
        lock = self._locks.setdefault(blob_id, trio.Lock())
        self._holders[blob_id] = self._holders.get(blob_id, 0) + 1
        try:
            async with lock:
                yield
        finally:
            self._holders[blob_id] -= 1
            if not self._holders[blob_id]:
                del self._holders[blob_id], self._locks[blob_id]

    def note_stored(self, blob_id: BlobId) -> None:
        self._stored.pop(blob_id, None)
        self._stored[blob_id] = None
        while len(self._stored) > STORED_MAX:
            del self._stored[next(iter(self._stored))]

    def note_deleted(self, blob_id: BlobId) -> None:
        self._stored.pop(blob_id, None)

    def was_stored(self, blob_id: BlobId) -> bool:
        """Return whether a blob was stored lately: then a chain that does not show it yet is worth waiting for."""
        return blob_id in self._stored
