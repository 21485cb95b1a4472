"""Streams in memory, with the methods of `p2pnode.network.stream.Stream`; real sockets are in tests/network."""

from collections import deque
from typing import cast

import trio

from economics import cbor
from economics.crypto import NodeId
from p2pnode.errors import StreamBroken
from p2pnode.network.frames import Incoming, receive_message, send_message
from p2pnode.network.stream import Stream


class Pipe:
    """One direction: bytes on their way, and how they end."""

    def __init__(self) -> None:
        self.pieces: deque[bytes] = deque()
        self.size = 0
        self.ended = False
        self.broken = False
        self.thrown_away = False
        self.changed = trio.Event()

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class MemoryStream:
    """One end of a pair. `window` is how many bytes may wait unread before `send` does."""

    def __init__(self, peer: NodeId, incoming: Pipe, outgoing: Pipe, window: int) -> None:
        self.peer = peer
        self.protocol = "/memory/1"
        self.sent_bytes = 0
        self.received_bytes = 0
        self._in = incoming
        self._out = outgoing
        self._window = window
        self._over = False

    async def send(self, *parts: bytes | bytearray | memoryview) -> None:
        for part in parts:
            await trio.lowlevel.checkpoint()
            while self._out.size >= self._window and not (self._out.broken or self._out.thrown_away):
                await self._out.changed.wait()
            if self._out.broken or self._over:
                raise StreamBroken("the peer reset the stream")
            if self._out.thrown_away:
                continue
            self._out.pieces.append(bytes(part))
            self._out.size += len(part)
            self.sent_bytes += len(part)
            self._out.wake()

    async def receive_some(self, size_max: int) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self._in.size and not self._in.ended and not self._in.broken:
            await self._in.changed.wait()
        if self._in.broken:
            raise StreamBroken("the peer reset the stream")
        joined = b"".join(self._in.pieces)
        data = joined[:size_max]
        self._in.pieces = deque([joined[size_max:]])
        self._in.size = len(joined) - len(data)
        self.received_bytes += len(data)
        self._in.wake()
        return data

    async def receive_exactly(self, size: int) -> bytes:
        made = bytearray(size)
        await self.receive_into(memoryview(made))
        return bytes(made)

    async def receive_into(self, buffer: memoryview) -> None:
        at = 0
        while at < len(buffer):
            data = await self.receive_some(len(buffer) - at)
            if not data:
                raise StreamBroken("the stream ended inside a message")
            buffer[at : at + len(data)] = data
            at += len(data)

    async def close_write(self) -> None:
        self._out.ended = True
        self._out.wake()

    async def close(self) -> None:
        """What was sent arrives; what still comes is thrown away."""
        await self.close_write()
        self._over = self._in.thrown_away = True
        self._in.wake()

    async def reset(self) -> None:
        if self._over:
            return
        self._over = True
        for pipe in (self._in, self._out):
            pipe.broken = True
            pipe.wake()


def stream_pair(one: NodeId, other: NodeId, *, window: int = 1 << 20) -> tuple[MemoryStream, MemoryStream]:
    """Return the ends that `one` and `other` hold; each end's peer is the other."""
    there, back = Pipe(), Pipe()
    return MemoryStream(other, back, there, window), MemoryStream(one, there, back, window)


def as_stream(stream: MemoryStream) -> Stream:
    return cast(Stream, stream)


async def ask(
    stream: MemoryStream, header: dict[str, cbor.Value], *payload: bytes | memoryview
) -> tuple[Incoming, bytes]:
    """Send one request and return the whole reply."""
    await send_message(stream, header, *payload)
    reply = await receive_message(stream)
    return reply, await stream.receive_exactly(reply.size)
