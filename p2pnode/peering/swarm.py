"""Blobs from peers that have them, several asked at once; from the members' slivers where no peer gives a segment.

A segment is passed on when it encodes to its root, which the blob's ID binds: so it matters to nobody who sent it.
Whoever sends anything else is named and never asked again in this run; whoever is away or has nothing is asked again
after a minute, between two requests. Whoever stalls keeps nobody waiting: another one
is asked for the same segment, and the first answer counts. Peers come from the caller (`--peer`, a link), from the DHT,
and from peers that were asked; anybody may say that he has a blob, and none of them costs more than a request.
"""

import math
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import trio

from dht.discovery import Discovery
from economics.blob import HEADER_BYTES_MAX, BlobId, Header
from economics.crypto import NodeId
from economics.errors import Reason, Rejected
from p2pnode.clients.download import Reader
from p2pnode.clients.plain import choose
from p2pnode.coding.codec import Codec
from p2pnode.coding.kernel import Kernel
from p2pnode.content.views import Write, verify_range
from p2pnode.errors import InconsistentBlob
from p2pnode.members import Fault
from p2pnode.network.host import Network
from p2pnode.peering.providers import Contact, Provider, Providers, build_contact
from p2pnode.peering.pursuit import Pursuit, Search, Want
from p2pnode.peering.recent import Recent

WINDOW_BYTES = 64 << 20
"""Segments that are on their way or wait for their turn: all that is in memory, beside the matrices they are checked
in. Eight of the largest keep two peers at four requests each busy."""
WINDOW_MIN, WINDOW_MAX = 2, 16
HEADER_ASKED = 2
"""Peers asked for a header at once: any one right answer will do."""
CHECKS_MAX = 4
"""Threads that encode: each takes a core and 35 MiB."""
SEARCHES_MAX = 1_024
LOOK_FIRST_S = 1.0
LOOK_AGAIN_S = 30.0
"""While a blob is read, the DHT is asked for further peers: first when that has gone on for a second, as a walk costs
more than a small blob, and then so often."""
FORGIVE_S = 60.0
"""A peer that was away, or had not what was asked, is given another chance after so long: a gateway runs for months."""

T = TypeVar("T")


class Swarm:
    """The peers of one process, and what can be had of them. A `reader` gives slivers where they do not."""

    def __init__(
        self,
        network: Network,
        discovery: Discovery | None,
        kernel: Kernel,
        *,
        reader: Reader | None = None,
        peers: Iterable[Contact] = (),
        on_fault: Callable[[Fault], None] = lambda fault: None,
    ) -> None:
        self.network = network
        self.discovery = discovery
        self.kernel = kernel
        self.reader = reader
        self.recent = Recent()
        """What came last: a range beside it, or the whole behind a look at its front, costs nothing again."""
        self.providers = Providers(network, discovery, on_fault=on_fault)
        self.received: Counter[NodeId | None] = Counter()
        """Right bytes of segments by who gave them; None for those that were put together from slivers."""
        self._peers: list[Provider] = []
        self._searches: OrderedDict[BlobId, Search] = OrderedDict()
        self._checking = trio.CapacityLimiter(min(CHECKS_MAX, os.cpu_count() or 1))
        self._matrices: list[bytearray] = []
        self._pursuits = 0
        self._forgiven_at = -math.inf
        self.add_peers(peers)

    def add_peers(self, peers: Iterable[Contact]) -> None:
        """Ask these for any blob."""
        for node, addresses in peers:
            if node != self.network.node_id:
                provider = self.providers.get(node, addresses)
                self._peers.append(provider)
                for search in self._searches.values():
                    search.add(provider)

    @property
    def faults(self) -> tuple[Fault, ...]:
        return tuple(self.providers.faults.values())

    def sources_of(self, blob_id: BlobId) -> list[str]:
        """Return who gave something of a blob, in words for others: `<node key>@<multiaddr>`."""
        search = self._searches.get(blob_id)
        good = [] if search is None else search.good
        return [build_contact(one.node, one.addresses[0]) for one in good if one.addresses and not one.is_excluded]

    def _search(self, blob_id: BlobId) -> Search:
        search = self._searches.get(blob_id)
        if search is None:
            search = self._searches[blob_id] = Search(blob_id)
            for provider in self._peers:
                search.add(provider)
            if len(self._searches) > SEARCHES_MAX:
                self._searches.popitem(last=False)
        return search

    # --- what is asked for -------------------------------------------------------------------------------------------

    async def header(self, blob_id: BlobId) -> Header:
        """Return a blob's header; raises `Unavailable` where nobody has it, `NetworkError` where nobody answers."""
        reader = self.reader

        def accept(data: bytearray) -> Header:
            return Header.decode_any(bytes(data), blob_id=blob_id)

        want = Want(
            search=self._search(blob_id),
            index=None,
            request={"blob": blob_id, "op": "header"},
            size_max=HEADER_BYTES_MAX,
            accept=accept,
            from_members=None if reader is None else partial(reader.header, blob_id),
        )
        header, _ = await self._pursue(want, ahead=HEADER_ASKED)
        return header

    async def open(self, blob_id: BlobId) -> "SwarmView":
        """Return a blob to be read; raises as `header` does."""
        return SwarmView(self, await self.header(blob_id), blob_id)

    async def segment(self, header: Header, index: int, *, blob_id: BlobId | None = None) -> bytes | bytearray:
        """Return a segment that encodes to its root; the blob's ID need not be computed where it is known.

        Raises `Unavailable`, `NetworkError`, `InconsistentBlob`.
        """
        blob_id = header.blob_id if blob_id is None else blob_id
        reader = self.reader
        known = self.recent.segment(blob_id, index)
        if known is not None:
            await trio.lowlevel.checkpoint()
            return known

        def accept(data: bytearray) -> bytes | bytearray:
            self._check(header, index, data)
            return data

        want = Want(
            search=self._search(blob_id),
            index=index,
            request={"blob": blob_id, "index": index, "op": "segment"},
            size_max=header.code.segment_length(header.length, index),
            accept=accept,
            from_members=None
            if reader is None or reader.code != header.code
            else partial(self._from_members, reader, header, index),
        )
        data, giver = await self._pursue(want, ahead=1)
        self.received[None if giver is None else giver.node] += len(data)
        self.recent.put(blob_id, header, index, data)
        return data

    async def _pursue(self, want: Want[T], *, ahead: int) -> tuple[T, Provider | None]:
        self._forgive()
        self._pursuits += 1
        try:
            return await Pursuit(want, self.providers, self.discovery, ahead=ahead, checking=self._checking).run()
        finally:
            self._pursuits -= 1

    def _forgive(self) -> None:
        """Give peers another chance, now and then, while nobody counts on what is known of them."""
        if not self._pursuits and trio.current_time() - self._forgiven_at > FORGIVE_S:
            self._forgiven_at = trio.current_time()
            self.providers.forgive()

    async def _from_members(self, reader: Reader, header: Header, index: int) -> bytes | bytearray:
        """Put a segment together from slivers; one that does not encode to its root is its writer's doing."""
        data = b"".join(await reader.segment(header, index))
        try:
            await trio.to_thread.run_sync(self._check, header, index, data, limiter=self._checking)
        except Rejected as fault:
            reader.suspect = header, index
            raise InconsistentBlob(f"segment {index} does not encode to its root: its writer made it so") from fault
        return data

    def _check(self, header: Header, index: int, data: bytes | bytearray) -> None:
        """Raise `Rejected` unless these bytes are a segment; 13 ms for 8 MiB at n = 10. For worker threads."""
        if len(data) != header.code.segment_length(header.length, index):
            raise Rejected(Reason.MALFORMED, f"segment {index} of {len(data)} bytes")
        codec = Codec(header.code, self.kernel)
        size = codec.matrix_bytes(len(data))
        matrix = self._matrices.pop() if self._matrices else bytearray()
        if len(matrix) < size:
            matrix = bytearray(size)
        try:
            if codec.encode(data, memoryview(matrix)).root != header.roots[index]:
                raise Rejected(Reason.HASH_MISMATCH, f"its segment {index} is not the blob's")
        finally:
            self._matrices.append(matrix)

    async def keep_looking(self, blob_id: BlobId) -> None:
        """Ask the DHT for further peers, in a second and every half minute."""
        if self.discovery is None:
            return
        search = self._search(blob_id)
        await trio.sleep(LOOK_FIRST_S)
        while True:
            if search.is_due(LOOK_AGAIN_S):
                await search.look(self.providers, self.discovery)
            await trio.sleep(LOOK_AGAIN_S)

    async def close(self) -> None:
        """End the streams to all peers."""
        await self.providers.close()


@dataclass(frozen=True, slots=True)
class SwarmView:
    """A blob, from peers and members."""

    swarm: Swarm
    header: Header
    blob_id: BlobId

    @property
    def length(self) -> int:
        return self.header.length

    async def read(self, write: Write, *, start: int = 0, stop: int | None = None) -> None:
        """Pass bytes [start, stop) to `write`, segment by segment, in order, fetching a few ahead."""
        stop = verify_range(start, stop, self.length)
        if start == stop:
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.swarm.keep_looking, self.blob_id)
                await self._read(write, start, stop)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise choose(group) from None

    async def _read(self, write: Write, start: int, stop: int) -> None:
        size = self.header.code.segment_bytes
        window = min(max(WINDOW_BYTES // size, WINDOW_MIN), WINDOW_MAX)
        slots = trio.Semaphore(window)

        async def fetch(index: int, done: trio.MemorySendChannel[memoryview]) -> None:
            data = await self.swarm.segment(self.header, index, blob_id=self.blob_id)
            done.send_nowait(memoryview(data)[max(0, start - index * size) : stop - index * size])

        async def fetch_all(order: trio.MemorySendChannel[trio.MemoryReceiveChannel[memoryview]]) -> None:
            async with trio.open_nursery() as fetching, order:
                for index in range(start // size, -(-stop // size)):
                    await slots.acquire()
                    done, result = trio.open_memory_channel[memoryview](1)
                    order.send_nowait(result)
                    fetching.start_soon(fetch, index, done)

        order, results = trio.open_memory_channel[trio.MemoryReceiveChannel[memoryview]](window + 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch_all, order)
            async for result in results:
                await write([await result.receive()])
                slots.release()
