"""Peers over real sockets in one process: honest ones with blobs in memory, and some who lie, stall or have nothing."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from economics.blob import BlobId, Header
from economics.errors import Reason, Rejected
from economics.geometry import Code
from p2pnode.network.frames import Incoming, build_header, receive_message_or_end, send_message
from p2pnode.network.host import Network, open_network
from p2pnode.network.stream import Stream
from p2pnode.peering.blobserver import PROTOCOL, STREAMS_PER_PEER, BlobServer, Holdings, refuse
from p2pnode.peering.providers import Contact
from p2pnode.peering.swarm import Swarm
from tests.small import KERNEL, Blob, make_blob

CODE = Code(10, 20_000)
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
BLOB = make_blob(CODE, 12 * CODE.segment_bytes + 1)
"""13 segments, the last of one byte."""
BLOB_ID = BLOB.header.blob_id
Handler = Callable[[Stream], Awaitable[None]]


class Shown:
    """Holdings in memory: all segments of some blobs, or those of these indices."""

    def __init__(self, *blobs: Blob, only: Sequence[int] | None = None) -> None:
        self.blobs = {blob.header.blob_id: blob for blob in blobs}
        self.only = only
        self.asked: Counter[int] = Counter()

    def header(self, blob_id: BlobId) -> Header | None:
        blob = self.blobs.get(blob_id)
        return None if blob is None else blob.header

    def segment(self, blob_id: BlobId, index: int) -> bytes | None:
        blob = self.blobs.get(blob_id)
        if blob is None or (self.only is not None and index not in self.only):
            return None
        self.asked[index] += 1
        size = blob.header.code.segment_bytes
        return blob.data[index * size : (index + 1) * size]

    def blob_ids(self) -> Sequence[BlobId]:
        return list(self.blobs) if self.only is None else []


def seed_of(number: int) -> bytes:
    return bytes([number]) * 32


@dataclass
class Served:
    """One peer that serves."""

    network: Network

    @property
    def contact(self) -> Contact:
        return self.network.node_id, self.network.addresses()


@asynccontextmanager
async def serve(number: int, handler: Handler | Holdings, *, listen: Sequence[str] = LOOPBACK) -> AsyncIterator[Served]:
    """Run a peer with the seed `number` that answers by a handler, or honestly from holdings."""
    async with open_network(seed=seed_of(number), listen=listen) as network:
        server = handler if callable(handler) else BlobServer(handler).handle
        network.serve(PROTOCOL, server, streams_per_peer=STREAMS_PER_PEER)
        yield Served(network)


@asynccontextmanager
async def open_swarm(*peers: Contact, number: int = 99, **options: object) -> AsyncIterator[Swarm]:
    """Run a reader without any network but these peers."""
    with trio.fail_after(120):
        async with open_network(seed=seed_of(number), listen=()) as network:
            yield Swarm(network, None, KERNEL, peers=peers, **options)  # type: ignore[arg-type]


Answer = Callable[[Stream, Incoming], Awaitable[None]]


def answering(answer: Answer) -> Handler:
    """Return a handler that answers each request by `answer`."""

    async def handle(stream: Stream) -> None:
        while (message := await receive_message_or_end(stream)) is not None:
            await answer(stream, message)

    return handle


def header_then(answer: Answer, blob: Blob = BLOB) -> Handler:
    """Return a peer that gives the right header, and answers for segments by `answer`."""

    async def choose(stream: Stream, message: Incoming) -> None:
        if message.header["op"] == "header":
            await send_message(stream, {"ok": True, "peers": []}, blob.header.encode())
        else:
            await answer(stream, message)

    return answering(choose)


def right(message: Incoming, blob: Blob = BLOB) -> bytes:
    """Return the segment that a request is for."""
    index = message.header["index"]
    assert isinstance(index, int)
    size = blob.header.code.segment_bytes
    return blob.data[index * size : (index + 1) * size]


async def lie(stream: Stream, message: Incoming) -> None:
    data = bytearray(right(message))
    data[len(data) // 2] ^= 1
    await send_message(stream, {"ok": True}, data)


async def stall(stream: Stream, message: Incoming) -> None:
    """Send the first half and nothing more."""
    data = right(message)
    await stream.send(build_header({"ok": True}, len(data)), data[: len(data) // 2])
    await trio.sleep_forever()


async def have_not(stream: Stream, message: Incoming) -> None:
    await refuse(stream, Rejected(Reason.NOT_FOUND, "not here"))


async def have_no_room(stream: Stream, message: Incoming) -> None:
    await refuse(stream, Rejected(Reason.OVER_BUDGET, "come back"))


async def collect(swarm: Swarm, blob: Blob = BLOB, *, start: int = 0, stop: int | None = None) -> bytes:
    """Read a blob, or a range of it."""
    view = await swarm.open(blob.header.blob_id)
    pieces: list[bytes] = []

    async def keep(views: list[memoryview]) -> None:
        await trio.lowlevel.checkpoint()
        pieces.extend(map(bytes, views))

    await view.read(keep, start=start, stop=stop)
    return b"".join(pieces)
