"""Reads a blob or a range: header, then each segment from any P verified primary slivers or S secondary ones.

Nothing is passed on that has not been checked against the blob ID. A member that fails is named and asked last. While
shards are on their way to other members, those who held them before are asked first, and the others when these fail.
"""

import itertools
import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import trio

from economics import cbor
from economics.blob import BlobId, Header, Leaves, Root, SegmentMetadata, header_bytes
from economics.committee import Committee
from economics.crypto import DIGEST_BYTES, NodeId
from economics.errors import Reason, Rejected
from economics.geometry import BLOB_BYTES_MAX, row_spans
from p2pnode.clients.chainview import Seating
from p2pnode.coding.codec import Codec, Kind
from p2pnode.coding.recovery import Held, InconsistencyProof, find_inconsistency
from p2pnode.errors import (
    InconsistentBlob,
    InputError,
    NetworkError,
    NodeError,
    PeerUnreachable,
    TooSlow,
    Unavailable,
)
from p2pnode.members import REQUEST_FAULTS, Members, Refused

log = logging.getLogger("p2pnode.clients.download")

SEGMENTS_AHEAD = 3
"""Segments being fetched at once: as many as keep a slow line busy, and all that is in memory."""
HEDGE_S = 2.0
"""When nothing has come for so long, one more sliver is asked for elsewhere."""
RANGE_BYTES_PER_S = 262_144
"""A range has one holder for each of its symbols; one slower than this is gone round by reading the whole segment."""
HEADER_ASKED = 3
"""Members asked for a header or metadata at once: any one right answer will do."""
SEATS_OLD_S = 5.0
"""Who holds what is asked again when it may have changed, but not more often than this."""
FROZEN_PAUSE_S = 1.0
FROZEN_S = 40.0
"""Slivers that are being audited are refused for up to 30 s; those of other members are enough, unless these fail."""

Seats = Callable[[], Awaitable[Seating]]
"""Returns who holds what; raises `NetworkError` where nobody can prove it now."""

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A sliver to fetch, whole or some adjacent symbols of it."""

    kind: Kind
    index: int
    first: int
    count: int


class Reader:
    """Reads blobs from the members of one network."""

    def __init__(self, *, members: Members, seats: Seats, codec: Codec, rng: random.Random) -> None:
        self.members = members
        self.code = members.genesis.code
        self.codec = codec
        self.rng = rng
        self.said_invalid = False
        """A member has said that a blob was proven to be encoded wrongly; it is for the chain to prove that."""
        self.suspect: tuple[Header, int] | None = None
        """The segment that a read found to be encoded inconsistently."""
        self._seats = seats
        self._seating: Seating | None = None
        self._seats_at = -math.inf
        self._frozen = 0
        """How many slivers were refused because they are being audited, to any of the reads that go on at once."""

    # --- who holds what ------------------------------------------------------------------------------------------

    async def _look_up_seats(self, *, old_s: float = SEATS_OLD_S) -> None:
        """Ask who holds what unless that was done in the last `old_s` seconds."""
        if trio.current_time() - self._seats_at >= old_s:
            self._seats_at = trio.current_time()
            try:
                self._seating = await self._seats()
            except NetworkError as fault:  # who held it last may still be there, though no quorum is
                log.info("who holds what is not known: %s", fault)

    def _committees(self) -> tuple[Committee, ...]:
        """Return whose members to ask, those who are sure to have what is older than their seats first."""
        return (self.members.committee,) if self._seating is None else self._seating.committees

    def _nodes(self) -> list[NodeId]:
        """Return all nodes that hold something, each once."""
        return list(dict.fromkeys(member.node for committee in self._committees() for member in committee.members))

    # --- small things that any member may answer -----------------------------------------------------------------

    async def header(self, blob_id: BlobId) -> Header:
        """Return the blob's header; raises `Unavailable` if no member has it, `PeerUnreachable` if too few answer."""
        size_max = header_bytes(self.code, BLOB_BYTES_MAX)
        decode = partial(Header.decode, code=self.code, blob_id=blob_id)
        return await self._ask_any({"blob": blob_id, "op": "header"}, size_max, decode, what="the blob")

    async def _metadata(self, root: Root) -> SegmentMetadata:
        decode = partial(SegmentMetadata.decode, n=self.code.n, root=root)
        size_max = 2 * DIGEST_BYTES * self.code.n
        return await self._ask_any({"op": "metadata", "root": root}, size_max, decode, what="the segment")

    async def _ask_any(
        self, request: dict[str, cbor.Value], size_max: int, decode: Callable[[bytes], T], *, what: str
    ) -> T:
        """Return the first answer that decodes, asking a few members at once and more as they fail."""

        async def ask(node: NodeId) -> T:
            _, payload = await self.members.request(node, request, size_max=size_max)
            return decode(payload)

        await self._look_up_seats()
        nodes = self._nodes()
        order = self._by_trust(self.rng.sample(nodes, len(nodes)))
        absent = 0

        def note(node: NodeId, fault: Exception) -> None:
            nonlocal absent
            self._blame(node, fault)
            absent += isinstance(fault, Refused) and fault.reason is Reason.NOT_FOUND

        found = await self._race(order, ask, wanted=1, ahead=HEADER_ASKED, on_fault=note)
        if found:
            return next(iter(found.values()))
        raise self._nothing(what, absent, len(nodes))

    @staticmethod
    def _nothing(what: str, absent: int, count: int) -> NodeError:
        if absent:
            return Unavailable(f"{absent} of {count} nodes answered, and none has {what}: check the ID")
        return PeerUnreachable(f"none of {count} nodes could be asked for {what}: check that the network is up")

    def _by_trust(self, nodes: Iterable[NodeId]) -> list[NodeId]:
        """Return nodes with those that failed before at the end."""
        return sorted(nodes, key=self._has_failed)

    def _has_failed(self, node: NodeId) -> bool:
        return self.members.fault(node) is not None

    def _blame(self, node: NodeId, fault: Exception) -> None:
        """Remember who failed; what the rules have a member refuse is no fault of its own."""
        match fault:
            case Refused(reason=Reason.INVALID):
                self.said_invalid = True
            case Refused(reason=Reason.OVER_BUDGET, retry=True):
                self._frozen += 1
            case _:
                self.members.blame(node, fault)

    async def _race(
        self,
        order: list[K],
        fetch: Callable[[K], Awaitable[T]],
        *,
        wanted: int,
        ahead: int,
        on_fault: Callable[[K, Exception], None],
        on_slow: Callable[[K], None] = lambda key: None,
    ) -> dict[K, T]:
        """Run `fetch` on the first `ahead` of `order`, one more for each that fails or when nothing comes for a while.

        Returns what came when `wanted` results are there, or fewer if all have failed. Those that keep everybody
        waiting when others have answered are reported to `on_slow`.
        """
        found: dict[K, T] = {}
        left = iter(order)
        running: set[K] = set()
        send, receive = trio.open_memory_channel[tuple[K, T | None]](len(order) + 1)

        async def attempt(key: K) -> None:
            try:
                send.send_nowait((key, await fetch(key)))
            except REQUEST_FAULTS as fault:
                on_fault(key, fault)
                send.send_nowait((key, None))

        async with trio.open_nursery() as nursery:

            def start() -> None:
                for key in itertools.islice(left, 1):
                    running.add(key)
                    nursery.start_soon(attempt, key)

            for _ in range(ahead):
                start()
            while running and len(found) < wanted:
                with trio.move_on_after(HEDGE_S) as scope:
                    key, result = await receive.receive()
                if scope.cancelled_caught:
                    for late in running if found else ():
                        on_slow(late)
                    start()
                    continue
                running.remove(key)
                if result is None:
                    start()
                else:
                    found[key] = result
            nursery.cancel_scope.cancel()
        return found

    # --- slivers -------------------------------------------------------------------------------------------------

    def _holders(self, root: Root, wanted: Wanted) -> list[NodeId]:
        """Return who holds a sliver, who is sure to first, but who failed before last."""
        pair = wanted.index if wanted.kind is Kind.PRIMARY else self.code.n - 1 - wanted.index
        shard = self.code.shard_of_pair(pair, root)
        held = (committee.members[committee.holder(shard)].node for committee in self._committees())
        return self._by_trust(dict.fromkeys(held))

    async def _fetch(self, root: Root, metadata: SegmentMetadata, z: int, wanted: Wanted) -> Held:
        """Return the symbols of a sliver, and its leaves, from one of its holders: the next one when one fails or is
        slow."""
        faults: list[Exception] = []
        found = await self._race(
            self._holders(root, wanted),
            partial(self._fetch_from, root, metadata, z, wanted),
            wanted=1,
            ahead=1,
            on_fault=lambda node, fault: faults.append(fault),
        )
        if not found:
            raise faults[0]
        return next(iter(found.values()))

    async def _fetch_from(self, root: Root, metadata: SegmentMetadata, z: int, wanted: Wanted, node: NodeId) -> Held:
        """Return the symbols of a sliver, checked by its leaf list; blames the node for anything else."""
        leaves_bytes = DIGEST_BYTES * self.code.n
        size = leaves_bytes + wanted.count * z
        request: dict[str, cbor.Value] = {
            "count": wanted.count,
            "first": wanted.first,
            "index": wanted.index,
            "kind": int(wanted.kind),
            "op": "sliver",
            "root": root,
        }
        try:
            _, payload = await self.members.request(node, request, size_max=size)
            if len(payload) != size:
                raise Rejected(Reason.MALFORMED, "a sliver of another size")
            symbols = memoryview(payload)[leaves_bytes:]
            self.codec.check_symbols(
                metadata, wanted.kind, wanted.index, payload[:leaves_bytes], first=wanted.first, symbols=symbols, z=z
            )
        except REQUEST_FAULTS as fault:
            self._blame(node, fault)
            raise
        return Held(symbols, Leaves(payload[:leaves_bytes]))

    def _blame_slow(self, root: Root, wanted: Wanted) -> None:
        holder = self._holders(root, wanted)[0]
        self.members.blame(holder, TooSlow(f"no sliver within {HEDGE_S:.0f} s while others came"))

    def _order(self, root: Root, kind: Kind, width: int) -> list[Wanted]:
        """Return all slivers of one kind: systematic ones first, but those of members that failed before last."""
        slivers = [Wanted(kind, index, 0, width) for index in range(self.code.n)]
        return sorted(slivers, key=lambda sliver: self._has_failed(self._holders(root, sliver)[0]))

    async def _gather(self, root: Root, metadata: SegmentMetadata, z: int, kind: Kind) -> dict[int, Held]:
        width = self.codec.symbols(kind)
        wanted = self.codec.symbols(kind.other)
        found = await self._race(
            self._order(root, kind, width),
            partial(self._fetch, root, metadata, z),
            wanted=wanted,
            ahead=wanted,
            on_fault=lambda sliver, fault: None,
            on_slow=partial(self._blame_slow, root),
        )
        return {sliver.index: data for sliver, data in found.items()}

    # --- segments ------------------------------------------------------------------------------------------------

    async def segment(self, header: Header, index: int) -> list[memoryview]:
        """Return a segment as views to be written one after another.

        Raises `Unavailable` if too few slivers can be had, `InconsistentBlob` if the writer's commitments contradict
        each other. Tries again where shards have moved meanwhile, or are being audited.
        """
        until = trio.current_time() + FROZEN_S
        while True:
            await self._look_up_seats()
            asked, frozen = self._committees(), self._frozen
            try:
                return await self._segment(header, index)
            except Unavailable:
                if self._frozen != frozen and trio.current_time() < until:
                    await trio.sleep(FROZEN_PAUSE_S)
                    continue
                await self._look_up_seats(old_s=0.0)
                if self._committees() == asked:
                    raise

    async def _segment(self, header: Header, index: int) -> list[memoryview]:
        root = header.roots[index]
        length = self.code.segment_length(header.length, index)
        metadata = await self._metadata(root)
        z = self.code.symbol_bytes(length)
        primaries = await self._gather(root, metadata, z, Kind.PRIMARY)
        if len(primaries) >= self.code.rows:
            return await self._decode(self.codec.decode_from_primary, metadata, primaries, header, index)
        secondaries = await self._gather(root, metadata, z, Kind.SECONDARY)
        if len(secondaries) >= self.code.columns:
            return await self._decode(self.codec.decode_from_secondary, metadata, secondaries, header, index)
        faults = "; ".join(str(fault) for fault in self.members.faults.values())
        raise Unavailable(
            f"segment {index}: {len(primaries)} of {self.code.rows} slivers can be had ({faults}): "
            "try again when more nodes are up"
        )

    async def _decode(
        self,
        decode: Callable[[SegmentMetadata, dict[int, memoryview], int], list[memoryview]],
        metadata: SegmentMetadata,
        slivers: dict[int, Held],
        header: Header,
        index: int,
    ) -> list[memoryview]:
        length = self.code.segment_length(header.length, index)
        symbols = {place: memoryview(one.sliver) for place, one in slivers.items()}
        try:
            return await trio.to_thread.run_sync(decode, metadata, symbols, length)
        except Rejected as fault:
            self.suspect = header, index
            raise InconsistentBlob(f"the blob was encoded inconsistently by its writer ({fault})") from fault

    async def segment_range(self, header: Header, index: int, start: int, stop: int) -> list[memoryview]:
        """Return bytes [start, stop) of a segment, fetching only the systematic symbols that hold them if it can."""
        length = self.code.segment_length(header.length, index)
        if (start, stop) == (0, length):
            return await self.segment(header, index)
        root = header.roots[index]
        metadata = await self._metadata(root)
        z = self.code.symbol_bytes(length)
        spans = row_spans(self.code, segment_length=length, start=start, stop=stop)
        wanted = [Wanted(Kind.PRIMARY, span.row, span.first, span.count) for span in spans]
        found: dict[Wanted, Held] = {}
        with trio.move_on_after(2 * HEDGE_S + sum(sliver.count for sliver in wanted) * z / RANGE_BYTES_PER_S):
            found = await self._race(
                wanted,
                partial(self._fetch, root, metadata, z),
                wanted=len(wanted),
                ahead=len(wanted),
                on_fault=lambda sliver, fault: None,
                on_slow=partial(self._blame_slow, root),
            )
        if len(found) < len(wanted):
            whole = b"".join(await self.segment(header, index))
            return [memoryview(whole)[start:stop]]
        joined = b"".join(found[sliver].sliver for sliver in wanted)
        begin = (spans[0].row * self.code.columns + spans[0].first) * z
        if any(memoryview(joined)[max(length - begin, 0) :]):
            self.suspect = header, index
            raise InconsistentBlob(
                f"segment {index} has bytes behind its end: its writer padded it with other than zero"
            )
        offset = start - begin
        return [memoryview(joined)[offset : offset + stop - start]]

    async def _verify_strictly(self, header: Header, index: int, views: list[memoryview]) -> None:
        length = self.code.segment_length(header.length, index)

        def check() -> None:
            buffer = memoryview(bytearray(self.codec.matrix_bytes(length)))
            self.codec.check_strictly(header.roots[index], b"".join(views), buffer)

        try:
            await trio.to_thread.run_sync(check)
        except Rejected as fault:
            self.suspect = header, index
            raise InconsistentBlob(f"segment {index} does not encode to its root ({fault})") from fault

    async def prove_inconsistent(self, header: Header, index: int) -> InconsistencyProof | None:
        """Return a proof against the writer of a segment, made of slivers that are fetched again; None if none is."""
        root, length = header.roots[index], self.code.segment_length(header.length, index)
        metadata = await self._metadata(root)
        z = self.code.symbol_bytes(length)
        held = await self._gather(root, metadata, z, Kind.PRIMARY)
        if len(held) < self.code.rows:
            return None

        def find() -> InconsistencyProof | None:
            buffer = memoryview(bytearray(self.codec.matrix_bytes(length)))
            return find_inconsistency(
                self.codec, metadata, Kind.PRIMARY, held, segment=index, length=length, buffer=buffer
            )

        return await trio.to_thread.run_sync(find)

    # --- blobs ---------------------------------------------------------------------------------------------------

    async def read(
        self,
        header: Header,
        write: Callable[[list[memoryview]], Awaitable[None]],
        *,
        start: int = 0,
        stop: int | None = None,
        strict: bool = False,
    ) -> None:
        """Pass bytes [start, stop) of a blob to `write`, segment by segment, in order, fetching a few ahead.

        With `strict` every segment is encoded again: then every other reader gets the same, by whatever slivers.
        """
        stop = header.length if stop is None else stop
        if not 0 <= start <= stop <= header.length:
            raise InputError(f"the range {start}-{stop} is not within the blob's {header.length} bytes")
        size = self.code.segment_bytes
        slots = trio.Semaphore(SEGMENTS_AHEAD)

        async def fetch(index: int, done: trio.MemorySendChannel[list[memoryview]]) -> None:
            low = max(0, start - index * size)
            high = min(self.code.segment_length(header.length, index), stop - index * size)
            if strict:
                views = await self.segment(header, index)
                await self._verify_strictly(header, index, views)
                views = [memoryview(b"".join(views))[low:high]]
            else:
                views = await self.segment_range(header, index, low, high)
            done.send_nowait(views)

        async def fetch_all(order: trio.MemorySendChannel[trio.MemoryReceiveChannel[list[memoryview]]]) -> None:
            async with trio.open_nursery() as fetching, order:
                for index in range(start // size, max(start // size + 1, -(-stop // size))):
                    await slots.acquire()
                    done, result = trio.open_memory_channel[list[memoryview]](1)
                    order.send_nowait(result)
                    fetching.start_soon(fetch, index, done)

        order, results = trio.open_memory_channel[trio.MemoryReceiveChannel[list[memoryview]]](SEGMENTS_AHEAD + 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch_all, order)
            async for result in results:
                await write(await result.receive())
                slots.release()
