"""The bytes of blobs: from memory, from the cache on disk or from the network, each segment fetched once for all."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from economics.blob import BlobId, Header
from economics.errors import Rejected
from p2pnode.clients.download import Reader
from p2pnode.content.views import Write, verify_range
from p2pnode.errors import InconsistentBlob, NetworkError, NodeError, Unavailable
from p2pnode.gateway.flights import Flights
from p2pnode.network.host import sole_exception
from p2pnode.peering.cache import CachedSegment, SegmentCache
from p2pnode.peering.swarm import Swarm

log = logging.getLogger("p2pnode.gateway")

FETCHES_MAX = 12
"""Segments fetched at once, for all clients together: each takes some 25 MiB until it is in the cache."""
PEERS_S = 4.0
"""For peers to give what members do not: who asks is waiting for an answer."""
AHEAD = 2
"""Segments fetched before a client comes to them: with the one it reads as many as any reader fetches at once."""
LOOSE_MAX = 24
"""Segments in memory alone, where the cache takes none: 192 MiB."""
PIECE_BYTES = 1 << 20
"""Read from the disk and sent at once, and all that waits for a slow client."""
WHOLE_MAX = 4
"""Segments read whole from the disk at once, 8 MiB each; where they are encoded again, with 28 MiB more at n = 10."""
WHOLE_SHARE = 16
"""A range of less than one part in so many of a segment fetches only its symbols, the first time."""
HOT_BYTES_MAX = 64 << 20
"""Of segments kept in memory: quilts and small blobs, of which every request wants a little."""
HOT_ITEM_MAX = 8 << 20
ASKED_MAX = 4_096

Key = tuple[BlobId, int]
"""A blob and the index of a segment in it."""


class Segments:
    """Where a gateway's segments come from. What fetches and checks them runs in the nursery."""

    def __init__(self, reader: Reader, cache: SegmentCache, nursery: trio.Nursery, swarm: Swarm | None = None) -> None:
        self.reader = reader
        self.swarm = swarm
        self.cache = cache
        self.loose = trio.CapacityLimiter(LOOSE_MAX)
        """Bounds the segments that are in memory alone."""
        self._nursery = nursery
        self._flights: Flights[Key, bytes | None] = Flights(nursery)
        self._fetching = trio.CapacityLimiter(FETCHES_MAX)
        self._checking = trio.CapacityLimiter(1)
        self.whole = trio.CapacityLimiter(WHOLE_MAX)
        """Bounds the threads that have all of a segment in memory."""
        self._hot: OrderedDict[Key, bytes] = OrderedDict()
        self._hot_bytes = 0
        self._asked: OrderedDict[Key, None] = OrderedDict()
        """Segments of which a small range was fetched lately."""
        self._offered: OrderedDict[BlobId, None] = OrderedDict()

    @property
    def under_way(self) -> int:
        """Fetches that somebody waits for."""
        return len(self._flights)

    def forget(self, blob_id: BlobId) -> None:
        self._offered.pop(blob_id, None)
        for key in [key for key in self._hot if key[0] == blob_id]:
            self._hot_bytes -= len(self._hot.pop(key))

    def hot(self, key: Key) -> bytes | None:
        data = self._hot.get(key)
        if data is not None:
            self._hot.move_to_end(key)
        return data

    def hot_part(self, key: Key, low: int, high: int) -> bytes | None:
        """Return bytes [low, high) of a segment in memory: a slow client is to hold no more than these."""
        data = self.hot(key)
        return None if data is None else data[low:high]

    def warm(self, key: Key, data: bytes) -> None:
        """Keep a segment in memory, in the place of those used longest ago."""
        if len(data) > HOT_ITEM_MAX or key in self._hot:
            return
        self._hot[key] = data
        self._hot_bytes += len(data)
        while self._hot_bytes > HOT_BYTES_MAX:
            self._hot_bytes -= len(self._hot.popitem(last=False)[1])

    async def fetch(self, header: Header, index: int) -> bytes | None:
        """Have a segment put into the cache; returns its bytes where the cache does not take it."""
        key = header.blob_id, index
        return await self._flights.get(key, partial(self._fetch, header, index))

    async def _fetch(self, header: Header, index: int) -> bytes | None:
        async with self._fetching:
            if await trio.to_thread.run_sync(self.is_cached, header, index):  # since it was looked for
                return None
            pieces = await self._pieces(header, index)
            if await trio.to_thread.run_sync(self.cache.put, header.blob_id, index, pieces):
                return None
            return await trio.to_thread.run_sync(b"".join, pieces)

    def is_cached(self, header: Header, index: int) -> bool:
        segment = self.cache.open(header.blob_id, index, header.code.segment_length(header.length, index))
        if segment is not None:
            segment.close()
        return segment is not None

    async def _pieces(self, header: Header, index: int) -> Sequence[memoryview]:
        """Return a segment from the members, or from peers where these have not enough of it."""
        try:
            return await self.reader.segment(header, index)
        except (NodeError, BaseExceptionGroup) as raised:
            fault = sole_exception(raised) if isinstance(raised, BaseExceptionGroup) else raised
            if self.swarm is None or not isinstance(fault, Unavailable | NetworkError):
                raise fault from None
        with trio.move_on_after(PEERS_S):
            try:
                return [memoryview(await self.swarm.segment(header, index))]
            except NodeError as none:
                log.debug("no peer gives segment %d: %s", index, none)
        raise fault from None

    def is_first_range(self, key: Key) -> bool:
        """Return whether no small range of this segment was wanted lately; from here on one was."""
        is_first = key not in self._asked
        self._asked[key] = None
        if len(self._asked) > ASKED_MAX:
            self._asked.popitem(last=False)
        return is_first

    def offer(self, header: Header) -> None:
        """Have a blob checked that was just read to its end, so that others may have it from here."""
        if self.cache.is_usable and header.blob_id not in self._offered:
            self._offered[header.blob_id] = None
            if len(self._offered) > ASKED_MAX:
                self._offered.popitem(last=False)
            self._nursery.start_soon(self._check, header)

    async def _check(self, header: Header) -> None:
        def check() -> None:
            if self.cache.has_all(header) and not self.cache.is_whole(header.blob_id):
                self.cache.verify_whole(header)

        await trio.to_thread.run_sync(check, limiter=self._checking)


@dataclass(frozen=True, slots=True)
class CachedView:
    """A blob's bytes, from memory, the disk or the network. A `View`."""

    segments: Segments
    header: Header
    strict: bool = False
    """Whether each segment is encoded again: then every other reader gets the same."""
    doubt: Callable[[NodeError], None] = lambda fault: None
    """Is told of a read that failed on the blob itself."""

    @property
    def length(self) -> int:
        return self.header.length

    async def read(self, write: Write, *, start: int = 0, stop: int | None = None) -> None:
        """Pass bytes [start, stop) to `write`, fetching ahead what is not here; raises what a `View` does."""
        try:
            await self._read(write, start, stop)
        except (NodeError, Rejected, BaseExceptionGroup) as raised:
            fault = sole_exception(raised) if isinstance(raised, BaseExceptionGroup) else raised
            if isinstance(fault, Unavailable | InconsistentBlob):
                self.doubt(fault)
            raise fault from None

    async def _read(self, write: Write, start: int, stop: int | None) -> None:
        stop = verify_range(start, stop, self.length)
        code = self.header.code
        first, last = start // code.segment_bytes, max(start, stop - 1) // code.segment_bytes
        if first == last:  # as of every small blob: with nothing to fetch ahead
            if start < stop:
                await self._pass_on(write, first, start - first * code.segment_bytes, stop - first * code.segment_bytes)
        else:
            await self._read_many(write, start, stop, first, last)
        if (start, stop) == (0, self.length):
            self.segments.offer(self.header)

    async def _read_many(self, write: Write, start: int, stop: int, first: int, last: int) -> None:
        code, prepared = self.header.code, first
        async with trio.open_nursery() as ahead:
            for index in range(first, last + 1):
                while self.segments.cache.is_usable and prepared < min(index + AHEAD, last):
                    prepared += 1
                    ahead.start_soon(self._prepare, prepared)
                begin = index * code.segment_bytes
                low, high = max(start - begin, 0), min(stop - begin, code.segment_length(self.length, index))
                await self._pass_on(write, index, low, high)

    async def _prepare(self, index: int) -> None:
        """Have a segment fetched before it is wanted; what fails is told when it is."""
        here = self.segments.hot((self.header.blob_id, index)) is not None
        try:
            if not here and not await trio.to_thread.run_sync(self.segments.is_cached, self.header, index):
                await self.segments.fetch(self.header, index)
        except (NodeError, Rejected) as fault:
            log.debug("segment %d cannot be fetched ahead: %s", index, fault)

    async def _pass_on(self, write: Write, index: int, low: int, high: int) -> None:
        """Write bytes [low, high) of a segment from where they are; no more than a piece waits for who takes them."""
        key = self.header.blob_id, index
        length = self.header.code.segment_length(self.length, index)
        if high - low <= PIECE_BYTES and not self.strict:
            piece = self.segments.hot_part(key, low, high)
            if piece is not None:
                await write([memoryview(piece)])
                return
        segment = await self._open(index, length)
        if segment is None:
            small = (high - low) * WHOLE_SHARE < length
            if small and not self.strict and self.segments.is_first_range(key):
                try:
                    views = await self.segments.reader.segment_range(self.header, index, low, high)
                except (Unavailable, NetworkError) as fault:
                    log.debug("a range needs its whole segment: %s", fault)
                else:
                    await write(views)
                    return
            async with self.segments.loose:
                data = self.segments.hot(key) or await self.segments.fetch(self.header, index)
                if data is not None:
                    if small:
                        self.segments.warm(key, data)
                    await self._pass_memory(write, data, index, low, high)
                    return
            segment = await self._open(index, length)
            if segment is None:
                raise Unavailable("the disk lost a segment that was just cached: try again")
        await self._pass_file(write, segment, key, low, high)

    async def _open(self, index: int, length: int) -> CachedSegment | None:
        return await trio.to_thread.run_sync(self.segments.cache.open, self.header.blob_id, index, length)

    async def _pass_file(self, write: Write, segment: CachedSegment, key: Key, low: int, high: int) -> None:
        """Write a part of a segment's file, and close it; what is small, or wanted in parts, stays in memory."""
        try:
            if self.strict:
                await self._verify(key[1], partial(segment.read, 0, segment.length))
            elif segment.length <= PIECE_BYTES or (high - low) * WHOLE_SHARE < segment.length:
                piece = await self._load_part(segment, key, low, high)
                await write([memoryview(piece)])
                return
            for begin in range(low, high, PIECE_BYTES):
                piece = await trio.to_thread.run_sync(segment.read, begin, min(high, begin + PIECE_BYTES))
                await write([memoryview(piece)])
        except OSError as fault:
            raise Unavailable(f"the disk failed under a cached segment: {fault}") from fault
        finally:
            segment.close()

    async def _load_part(self, segment: CachedSegment, key: Key, low: int, high: int) -> bytes:
        """Bring a segment's file into memory, and return a part of it."""
        data = await trio.to_thread.run_sync(segment.read, 0, segment.length, limiter=self.segments.whole)
        self.segments.warm(key, data)
        return data[low:high]

    async def _pass_memory(self, write: Write, data: bytes, index: int, low: int, high: int) -> None:
        if self.strict:
            await self._verify(index, lambda: data)
        view = memoryview(data)
        for begin in range(low, high, PIECE_BYTES):
            await write([view[begin : min(high, begin + PIECE_BYTES)]])

    async def _verify(self, index: int, load: Callable[[], bytes]) -> None:
        """Raise `InconsistentBlob` unless the segment that `load` returns encodes to its root."""
        codec = self.segments.cache.codec

        def check() -> None:
            data = load()
            codec.check_strictly(self.header.roots[index], data, memoryview(bytearray(codec.matrix_bytes(len(data)))))

        try:
            await trio.to_thread.run_sync(check, limiter=self.segments.whole)
        except Rejected as fault:
            self.segments.reader.suspect = self.header, index
            raise InconsistentBlob(f"segment {index} does not encode to its root ({fault})") from fault
