"""Blobs as the gateway has them: read through the cache, each segment fetched once, and what the chain says of each.

Whether a blob was never stored, is gone, is wrong or is only out of reach just now is decided here, and nowhere else.
"""

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio

from economics.blob import BlobId, Header, build_blob_id_text
from economics.commitments import Certificate
from economics.errors import Rejected
from economics.slots import blob_key, invalid_slot, state_key
from economics.state import BlobEntry, BlobSummary
from p2pnode.cache import CachedSegment, SegmentCache
from p2pnode.chainview import Head
from p2pnode.errors import InconsistentBlob, NodeError, Unavailable
from p2pnode.gateway.faults import HttpFault, unavailable
from p2pnode.gateway.flights import Flights
from p2pnode.network.host import sole_exception
from p2pnode.session import Session
from p2pnode.views import Write, verify_range

log = logging.getLogger("p2pnode.gateway")

FETCHES_MAX = 12
"""Segments fetched at once, for all clients together: each takes some 25 MiB until it is in the cache."""
AHEAD = 2
"""Segments fetched before a client comes to them: with the one it reads as many as any reader fetches at once."""
LOOSE_MAX = 24
"""Segments in memory alone, where the cache takes none: 192 MiB."""
PIECE_BYTES = 1 << 20
"""Read from the disk and sent at once."""
WHOLE_SHARE = 16
"""A range of less than one part in so many of a segment fetches only its symbols, the first time."""
HOT_BYTES_MAX = 64 << 20
"""Of segments kept in memory: quilts and small blobs, of which every request wants a little."""
HOT_ITEM_MAX = 8 << 20
KNOWN_MAX = 4_096
FRESH_S = 60.0
"""For which what the chain said of a blob holds: what was deleted elsewhere is found gone after this at the latest."""
CERTIFICATE_S = 5.0
"""For a member to show a blob's certificate: members are asked one after the other."""
PROVING_S = 4.0
PROVING_PAUSE_S = 0.5
"""What a block did is proven by the next ones: a blob that was certified just now is not gone."""


@dataclass(frozen=True, slots=True)
class Known:
    """A blob that can be read, as far as is known."""

    header: Header
    content_type: str
    """As its owner said on chain; empty where nobody did."""
    is_live: bool
    """Whether the chain says that the network owes it."""


class Blobs:
    """What the routes read from. Its tasks are in the nursery."""

    def __init__(self, session: Session, cache: SegmentCache, nursery: trio.Nursery) -> None:
        self.session = session
        self.cache = cache
        self.nursery = nursery
        self._known: OrderedDict[BlobId, tuple[Known, float]] = OrderedDict()
        self._gone: OrderedDict[BlobId, None] = OrderedDict()
        self._types: OrderedDict[BlobId, str] = OrderedDict()
        """Content types that were put on chain through this gateway: by another entry, maybe, than the first."""
        self._lookups: Flights[BlobId, Known] = Flights(nursery)
        self._segments: Flights[tuple[BlobId, int], bytes | None] = Flights(nursery)
        self._fetching = trio.CapacityLimiter(FETCHES_MAX)
        self._loose = trio.CapacityLimiter(LOOSE_MAX)
        self._hot: OrderedDict[tuple[BlobId, int], bytes] = OrderedDict()
        self._hot_bytes = 0
        self._asked: OrderedDict[tuple[BlobId, int], None] = OrderedDict()
        """Segments of which a small range was fetched lately."""
        self._checking = trio.CapacityLimiter(1)

    # --- what is known of a blob ---------------------------------------------------------------------------------

    def learn(self, blob_id: BlobId, content_type: str | None) -> None:
        """Remember that a blob was certified just now, so that who stored it can read it at once."""
        self._gone.pop(blob_id, None)
        self._known.pop(blob_id, None)
        if content_type:
            self._types[blob_id] = content_type
            if len(self._types) > KNOWN_MAX:
                self._types.popitem(last=False)

    def forget(self, blob_id: BlobId) -> None:
        """Remember that a blob is deleted, and drop what is cached of it; for a worker thread is `cache.drop`."""
        self._known.pop(blob_id, None)
        self._gone[blob_id] = None
        if len(self._gone) > KNOWN_MAX:
            self._gone.popitem(last=False)
        for key in [key for key in self._hot if key[0] == blob_id]:
            self._hot_bytes -= len(self._hot.pop(key))

    def _remember(self, known: Known) -> Known:
        blob_id = known.header.blob_id
        self._known[blob_id] = known, trio.current_time() + FRESH_S
        self._known.move_to_end(blob_id)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        return known

    def doubt(self, blob_id: BlobId, fault: NodeError) -> None:
        """Look again at a blob that could not be read, and have the network know of one that is encoded wrongly."""
        self._known.pop(blob_id, None)
        if isinstance(fault, InconsistentBlob):
            self.nursery.start_soon(self._accuse, fault)

    async def _accuse(self, fault: InconsistentBlob) -> None:
        try:
            log.warning("%s", await self.session.accuse(fault))
        except (NodeError, Rejected) as failed:
            log.warning("%s; nobody could be told: %s", fault, failed)

    async def find(self, blob_id: BlobId) -> Known:
        """Return what is known of a blob that can be read.

        Raises `HttpFault`: 404 if nobody has it and the chain does not know it, 410 if it was certified and is owed no
        more, 422 if it is proven wrong, 503 if it cannot be told or read now.
        """
        if blob_id in self._gone:
            raise gone(blob_id)
        known, until = self._known.get(blob_id, (None, 0.0))
        if known is not None and trio.current_time() < until:
            return known
        return await self._lookups.get(blob_id, partial(self._look_up, blob_id))

    async def _look_up(self, blob_id: BlobId) -> Known:
        cached = await trio.to_thread.run_sync(self._cached, blob_id)
        if cached is not None:
            return self._remember(cached)
        found = _Found(await trio.to_thread.run_sync(self.cache.header, blob_id))
        async with trio.open_nursery() as nursery:
            if found.header is None:
                nursery.start_soon(found.look, "header", partial(self.session.reader.header, blob_id))
            nursery.start_soon(found.look, "state", partial(self._state, blob_id))
            nursery.start_soon(found.look, "certificate", partial(self._certificate, blob_id))
        await self._look_closer(blob_id, found)
        known = self._judge(blob_id, found)
        kept_type = known.content_type if found.stored_as is not None else None
        await trio.to_thread.run_sync(self.cache.put_header, known.header, kept_type)
        return self._remember(known)

    def _cached(self, blob_id: BlobId) -> Known | None:
        """Return a blob that is here whole and whose content type is known: nobody is asked for it."""
        if not self.cache.is_whole(blob_id):
            return None
        header, content_type = self.cache.header(blob_id), self.cache.content_type(blob_id)
        if header is None or content_type is None or not self.cache.has_all(header):
            return None
        return Known(header, content_type, True)

    async def _state(self, blob_id: BlobId) -> tuple[BlobSummary | None, bool]:
        """Return what the chain says: the blob if the network owes it, and whether it is proven to be wrong."""
        keys = [blob_key(blob_id), state_key(invalid_slot(blob_id))]
        blob, wrong = (await self.session.chain.prove(keys)).values
        return None if blob is None else BlobSummary.decode(blob), wrong is not None

    async def _certificate(self, blob_id: BlobId) -> Certificate | None:
        with trio.move_on_after(CERTIFICATE_S):
            return await self.session.certificate(blob_id)
        return None

    async def _look_closer(self, blob_id: BlobId, found: "_Found") -> None:
        """Look again for a blob that was certified just now, and for what its first owner said that it is."""
        if found.certificate is None:
            found.stored_as = self._types.get(blob_id)
            return
        until = trio.current_time() + PROVING_S
        while found.state == (None, False) and trio.current_time() < until:
            await found.look("head", self.session.chain.head)
            if found.head is None or found.head.epoch != found.certificate.epoch:
                break
            await trio.sleep(PROVING_PAUSE_S)
            await found.look("state", partial(self._state, blob_id))
        reservation = found.certificate.statement.reservation
        await found.look("entry", partial(self.session.chain.entry, blob_id, reservation))
        found.stored_as = self._types.get(blob_id) or ("" if found.entry is None else found.entry.content_type)

    def _judge(self, blob_id: BlobId, found: "_Found") -> Known:
        """Return the blob, or raise what its absence means."""
        if found.state is not None:
            live, is_invalid = found.state
            if is_invalid:
                raise invalid(blob_id)
            if live is None and found.certificate is not None:
                raise gone(blob_id)
        if found.header is not None:
            is_live = found.state is not None and found.state[0] is not None
            return Known(found.header, found.stored_as or "", is_live)
        fault = found.faults.get("header")
        match found.state:
            case None:
                raise unavailable(f"the network does not answer, so nobody knows of this blob: {fault}") from fault
            case (None, _) if isinstance(fault, Unavailable):
                raise missing(blob_id) from fault
            case (None, _):
                raise unavailable(f"too few nodes answer to tell whether the blob was ever stored: {fault}") from fault
            case _:
                raise unavailable(f"the network owes this blob and cannot be read now: {fault}") from fault

    # --- bytes ---------------------------------------------------------------------------------------------------

    def view(self, known: Known, *, strict: bool = False) -> "CachedView":
        return CachedView(self, known.header, strict)

    def hot(self, key: tuple[BlobId, int]) -> bytes | None:
        data = self._hot.get(key)
        if data is not None:
            self._hot.move_to_end(key)
        return data

    def warm(self, key: tuple[BlobId, int], data: bytes) -> None:
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
        return await self._segments.get(key, partial(self._fetch, header, index))

    async def _fetch(self, header: Header, index: int) -> bytes | None:
        async with self._fetching:
            try:
                pieces = await self.session.reader.segment(header, index)
            except BaseExceptionGroup as group:
                raise sole_exception(group) from None
            if await trio.to_thread.run_sync(self.cache.put, header.blob_id, index, pieces):
                return None
            return await trio.to_thread.run_sync(b"".join, pieces)

    def is_first_range(self, key: tuple[BlobId, int]) -> bool:
        """Return whether no small range of this segment was wanted lately; from here on one was."""
        is_first = key not in self._asked
        self._asked[key] = None
        if len(self._asked) > KNOWN_MAX:
            self._asked.popitem(last=False)
        return is_first

    def offer(self, header: Header) -> None:
        """Have a blob checked that was just read to its end, so that others may have it from here."""
        if self.cache.is_usable:
            self.nursery.start_soon(self._check, header)

    async def _check(self, header: Header) -> None:
        def check() -> None:
            if self.cache.has_all(header) and not self.cache.is_whole(header.blob_id):
                self.cache.verify_whole(header)

        await trio.to_thread.run_sync(check, limiter=self._checking)

    def hold(self) -> trio.CapacityLimiter:
        """Return what bounds the segments that are in memory alone."""
        return self._loose


class _Found:
    """What the questions about a blob came to."""

    def __init__(self, header: Header | None) -> None:
        self.header = header
        self.state: tuple[BlobSummary | None, bool] | None = None
        self.certificate: Certificate | None = None
        self.head: Head | None = None
        self.entry: BlobEntry | None = None
        self.stored_as: str | None = None
        """The content type; "" where the owner gave none, None where the blob has no certificate."""
        self.faults: dict[str, Exception] = {}

    async def look(self, name: str, ask: Callable[[], Awaitable[object]]) -> None:
        """Keep the answer under its name, or how it failed."""
        try:
            setattr(self, name, await ask())
        except BaseExceptionGroup as group:
            fault = sole_exception(group)
            if not isinstance(fault, NodeError | Rejected):
                raise
            self.faults[name] = fault
        except (NodeError, Rejected) as fault:
            self.faults[name] = fault


@dataclass(frozen=True, slots=True)
class CachedView:
    """A blob's bytes, from memory, the disk or the network. A `View`."""

    blobs: Blobs
    header: Header
    strict: bool = False

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
                self.blobs.doubt(self.header.blob_id, fault)
            raise fault from None

    async def _read(self, write: Write, start: int, stop: int | None) -> None:
        stop = verify_range(start, stop, self.length)
        code = self.header.code
        first, last = start // code.segment_bytes, max(start, stop - 1) // code.segment_bytes
        async with trio.open_nursery() as ahead:
            for index in range(first, last + 1 if start < stop else first):
                if index < last and self.blobs.cache.is_usable:
                    for later in range(index + 1, min(index + AHEAD, last) + 1):
                        ahead.start_soon(self._prepare, later)
                begin = index * code.segment_bytes
                low, high = max(start - begin, 0), min(stop - begin, code.segment_length(self.length, index))
                await self._pass_on(write, index, low, high)
        if (start, stop) == (0, self.length):
            self.blobs.offer(self.header)

    async def _prepare(self, index: int) -> None:
        """Have a segment fetched before it is wanted; what fails is told when it is."""
        key = self.header.blob_id, index
        length = self.header.code.segment_length(self.length, index)
        try:
            if self.blobs.hot(key) is None and not await trio.to_thread.run_sync(self._is_here, index, length):
                await self.blobs.fetch(self.header, index)
        except (NodeError, Rejected):
            pass

    def _is_here(self, index: int, length: int) -> bool:
        segment = self.blobs.cache.open(self.header.blob_id, index, length)
        if segment is not None:
            segment.close()
        return segment is not None

    async def _pass_on(self, write: Write, index: int, low: int, high: int) -> None:
        """Write bytes [low, high) of a segment from where they are."""
        key = self.header.blob_id, index
        length = self.header.code.segment_length(self.length, index)
        data = self.blobs.hot(key)
        if data is None:
            segment = await self._open(index, length)
            if segment is not None:
                await self._pass_file(write, segment, key, low, high)
                return
            small = (high - low) * WHOLE_SHARE < length
            if small and not self.strict and self.blobs.is_first_range(key):
                await write(await self.blobs.session.reader.segment_range(self.header, index, low, high))
                return
            async with self.blobs.hold():
                data = await self.blobs.fetch(self.header, index)
                segment = None if data is not None else await self._open(index, length)
                if data is not None:
                    await self._pass_memory(write, data, index, low, high)
            if data is None:
                if segment is None:
                    raise Unavailable("the disk lost a segment that was just cached: try again")
                await self._pass_file(write, segment, key, low, high)
            return
        await self._pass_memory(write, data, index, low, high)

    async def _open(self, index: int, length: int) -> CachedSegment | None:
        return await trio.to_thread.run_sync(self.blobs.cache.open, self.header.blob_id, index, length)

    async def _pass_file(
        self, write: Write, segment: CachedSegment, key: tuple[BlobId, int], low: int, high: int
    ) -> None:
        """Write a part of a segment's file, and close it; what is small, or wanted in parts, stays in memory."""
        try:
            if self.strict or segment.length <= PIECE_BYTES or (high - low) * WHOLE_SHARE < segment.length:
                data = await trio.to_thread.run_sync(segment.read, 0, segment.length)
                self.blobs.warm(key, data)
                await self._pass_memory(write, data, key[1], low, high)
                return
            for begin in range(low, high, PIECE_BYTES):
                piece = await trio.to_thread.run_sync(segment.read, begin, min(high, begin + PIECE_BYTES))
                await write([memoryview(piece)])
        except OSError as fault:
            raise Unavailable(f"the disk failed under a cached segment: {fault}") from fault
        finally:
            segment.close()

    async def _pass_memory(self, write: Write, data: bytes, index: int, low: int, high: int) -> None:
        if self.strict:
            await self._verify(index, data)
        view = memoryview(data)
        for begin in range(low, high, PIECE_BYTES):
            await write([view[begin : min(high, begin + PIECE_BYTES)]])

    async def _verify(self, index: int, data: bytes) -> None:
        """Raise `InconsistentBlob` unless the segment encodes to its root."""
        codec = self.blobs.cache.codec

        def check() -> None:
            codec.check_strictly(self.header.roots[index], data, memoryview(bytearray(codec.matrix_bytes(len(data)))))

        try:
            await trio.to_thread.run_sync(check)
        except Rejected as fault:
            raise InconsistentBlob(f"segment {index} does not encode to its root ({fault})") from fault


def missing(blob_id: BlobId) -> HttpFault:
    return HttpFault(
        404, f"no blob {build_blob_id_text(blob_id)}: nobody has it, and the chain does not know it", "BLOB_NOT_FOUND"
    )


def gone(blob_id: BlobId) -> HttpFault:
    return HttpFault(
        410, f"the blob {build_blob_id_text(blob_id)} was stored, and has expired or was deleted", "BLOB_GONE"
    )


def invalid(blob_id: BlobId) -> HttpFault:
    return HttpFault(
        422,
        f"the blob {build_blob_id_text(blob_id)} was encoded wrongly by its writer, which is proven on chain",
        "INVALID_BLOB",
    )
