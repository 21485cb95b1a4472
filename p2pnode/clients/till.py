"""Keeps apart the blobs that one owner stores at once: nothing is taken or stored twice.

Whoever stores more than one blob at a time gives all its orders the same till. It asks nobody and pays nothing.
"""

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import trio

from economics.blob import BlobId
from economics.commitments import ReservationId
from economics.state import Reservation

REMEMBERED_MAX = 4_096
"""Blobs stored lately that are remembered: what a block did is proven half a second later, and this is far more."""
EMPTY_S = 10.0
"""For which an owner without unused storage is taken to have none: looking takes as long as buying does. What another
program of the owner's gives back meanwhile is found after that."""

K = TypeVar("K")
V = TypeVar("V")


class Till:
    """What one owner is buying, filling and storing right now."""

    def __init__(self) -> None:
        self.looking = trio.Lock()
        """Held from looking for storage until it is taken, or found that it has to be bought."""
        self._buyers = 0
        self._taken: set[ReservationId] = set()
        self._left: dict[ReservationId, int] = {}
        """Units that blobs certified lately have left of their reservations."""
        self._empty_until = -math.inf
        self._holders: dict[BlobId, int] = {}
        self._locks: dict[BlobId, trio.Lock] = {}
        self._stored: dict[BlobId, None] = {}

    def is_free(self, one: Reservation) -> bool:
        """Return whether a reservation is as the chain shows it, and no blob on its way fills it.

        What a blob has just been certified under may be shown for a while as it was before.
        """
        return one.reservation not in self._taken and one.units <= self._left.get(one.reservation, one.units)

    @property
    def is_empty(self) -> bool:
        """Return whether looking for unused storage is in vain: there was none just now, and none has come since.

        While some is being bought nobody looks: it must not look unused before its buyer takes it.
        """
        return self._buyers > 0 or trio.current_time() < self._empty_until

    def note_empty(self) -> None:
        self._empty_until = trio.current_time() + EMPTY_S

    def note_change(self) -> None:
        """Have unused storage be looked for again: the owner may have come by some."""
        self._empty_until = -math.inf

    @contextmanager
    def buying(self) -> Iterator[None]:
        """Keep others from looking while the block lasts; by its end what was bought is taken."""
        self._buyers += 1
        try:
            yield
        except BaseException:  # what breaks off may come to its end without us: the next call looks for it
            self.note_change()
            raise
        finally:
            self._buyers -= 1

    def take(self, reservation: ReservationId) -> None:
        assert reservation not in self._taken
        self._taken.add(reservation)

    def give_back(self, reservation: ReservationId) -> None:
        """Have a reservation be free again that nothing was certified under; one that is not taken is left alone."""
        if reservation in self._taken:
            self._taken.remove(reservation)
            self.note_change()

    def fill(self, reservation: ReservationId, *, units_left: int) -> None:
        """Have the rest of a reservation be free again, now that a blob was certified under it."""
        self._taken.discard(reservation)
        _remember(self._left, reservation, units_left)
        if units_left:
            self.note_change()

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
        _remember(self._stored, blob_id, None)

    def note_deleted(self, blob_id: BlobId) -> None:
        """Forget a blob whose storage came back."""
        self.note_change()
        self._stored.pop(blob_id, None)

    def was_stored(self, blob_id: BlobId) -> bool:
        """Return whether a blob was stored lately: then a chain that does not show it yet is worth waiting for."""
        return blob_id in self._stored


def _remember(kept: dict[K, V], key: K, value: V) -> None:
    """Keep a value as the newest, in the place of the oldest where there are too many."""
    kept.pop(key, None)
    kept[key] = value
    while len(kept) > REMEMBERED_MAX:
        del kept[next(iter(kept))]
