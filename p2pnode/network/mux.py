"""Our muxer, `/p2pnode/mux/1`: large frames, one credit window per stream, resets that are seen as resets.

A frame is a kind, a stream id and a value (9 bytes, big-endian); a DATA frame is followed by `value` bytes.

| kind   | value            | meaning                                                              |
|--------|------------------|----------------------------------------------------------------------|
| OPEN   | 0                | a new stream; ids of the dialling side are odd, all ids only grow     |
| DATA   | 1 .. FRAME_MAX   | bytes; may not exceed the credit that the receiver has granted        |
| WINDOW | credit, not 0    | the receiver has room for so many more bytes                          |
| CLOSE  | 0                | the sender's last byte was sent; the other direction stays open       |
| RESET  | 0 plain, 1 busy  | the sender is gone; what it sent is whole only if CLOSE came before    |
| PING   | any, stream is 0 | answer with a PONG of the same value                                  |
| PONG   | any, stream is 0 | the answer                                                            |
| BYE    | 0, stream is 0   | the sender closes the connection                                      |

Every stream starts with WINDOW_START of credit both ways; a receiver grants more as its application *reads*, so what
a peer can park here is bounded by windows. Anything else on the wire is a violation and closes the connection. The one
reader task never waits for anything but the next bytes: it can never be part of a deadlock.
"""

import logging
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import trio
from libp2p.abc import IMuxedConn, IMuxedStream
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)

from p2pnode.errors import Busy, NetworkError, StreamBroken
from p2pnode.network.noise import PLAINTEXT_MAX, Buffer, NoiseSession

PROTOCOL_ID = "/p2pnode/mux/1"

log = logging.getLogger(__name__)

HEADER = struct.Struct("!BII")
FRAME_MAX = 1024 * 1024
"""Longest DATA frame accepted. It is not buffered as a whole, so this only bounds how long others wait behind it."""
FRAME_SEND = 4 * PLAINTEXT_MAX
"""Longest DATA frame sent: four full Noise messages, so that no message is left nearly empty."""
WINDOW_START = 64 * 1024
"""Credit of a fresh stream, before its application has read: what an idle stream can hold of our memory."""
CREDIT_MAX = 1 << 30
"""A peer that grants more is broken: no receiver has that much room for one stream."""
SMALL_PIECE = 4 * 1024
"""Received pieces below this are gathered, so that a thousand one-byte frames do not cost a thousand objects."""
assert FRAME_SEND <= FRAME_MAX


class Kind(IntEnum):
    OPEN = 0
    DATA = 1
    WINDOW = 2
    CLOSE = 3
    RESET = 4
    PING = 5
    PONG = 6
    BYE = 7


class Why(IntEnum):
    """The value of a RESET."""

    PLAIN = 0
    BUSY = 1


@dataclass(frozen=True, slots=True)
class MuxLimits:
    streams_max: int = 256
    """Live streams of one connection in each direction; more are refused as busy, at once."""
    window_bytes: int = 2 * 1024 * 1024
    """Credit of a stream whose application reads bulk: 160 Mbit/s over a path of 100 ms."""
    keepalive_s: float = 30.0
    """A peer that sends nothing for this long is dead; it is pinged at a third of it."""


class Budget:
    """Bytes that all streams of a node may grant beyond WINDOW_START. When it is used up, streams stay small."""

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max

    def take(self, size: int) -> bool:
        if size > self._left:
            return False
        self._left -= size
        return True

    def give(self, size: int) -> None:
        self._left += size


class Violation(Exception):
    """The peer broke the rules of the wire: the connection ends."""


class TooManyStreams(MuxedStreamError):  # type: ignore[misc]
    """All streams that we may open on this connection are open."""


class Mux(IMuxedConn):  # type: ignore[misc]
    """One connection's streams. The library calls `start`, `open_stream`, `accept_stream` and `close`."""

    def __init__(self, session: NoiseSession, peer_id: ID, limits: MuxLimits, budget: Budget) -> None:
        self.peer_id = peer_id
        self.secured_conn = session
        self.limits = limits
        self.budget = budget
        self.event_started = trio.Event()
        self.on_close: Any = None  # the library sets it; `accept_stream` tells it the same
        self._session = session
        self._streams: dict[int, MuxStream] = {}
        self._inbound = 0
        self._next_id = 1 if session.is_initiator else 2
        self._peer_id_last = 0 if session.is_initiator else -1
        self._accept_in, self._accept_out = trio.open_memory_channel[MuxStream](limits.streams_max)
        self._partial = bytearray()
        self._body_left = 0
        self._body_stream: MuxStream | None = None
        self._replies = bytearray()
        self._pong: int | None = None
        self._closed = False

    @property
    def is_initiator(self) -> bool:
        initiator: bool = self._session.is_initiator
        return initiator

    @property
    def is_established(self) -> bool:
        return self.event_started.is_set() and not self._closed

    @property
    def is_closed(self) -> bool:
        return self._closed

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._session.get_remote_address()

    def get_transport_addresses(self) -> Any:
        return self._session.get_transport_addresses()

    def get_connection_type(self) -> Any:
        return self._session.get_connection_type()

    # Lifetime

    async def start(self) -> None:
        """Read until the connection ends. Never raises but `Cancelled`: an exception here would end the host."""
        self.event_started.set()
        self._session.tolerate_silence(self.limits.keepalive_s)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_alive)
            try:
                await self._read_frames()
            except Violation as violation:
                self.shut(f"the peer broke the wire's rules: {violation}")
            except Exception:  # a fault of ours that some frame laid bare must cost this connection, not the host
                log.exception("the muxer failed on a connection to %s", self.peer_id)
            nursery.cancel_scope.cancel()
        self.shut("the connection ended")
        await self._session.close()

    async def _read_frames(self) -> None:
        while messages := await self._session.receive():
            for message in messages:
                self.feed(message)
            if self._closed:
                return
            self._flush_replies()

    async def _keep_alive(self) -> None:
        """Give a living peer a reason to speak; the session ends the connection when it stays silent."""
        while True:
            await trio.sleep(self.limits.keepalive_s / 3)
            self.send_control(Kind.PING, 0, 0)

    def shut(self, reason: str) -> None:
        """End every stream: those whose end was received stay readable, all others are broken."""
        if self._closed:
            return
        self._closed = True
        self._accept_in.close()
        for stream in list(self._streams.values()):
            stream.connection_lost(reason)
        self._streams.clear()

    async def close(self) -> None:
        """Say goodbye and close. Never raises `Cancelled` (see `TcpStream.close`)."""
        self.send_control(Kind.BYE, 0, 0)
        self.shut("this side closed the connection")
        await self._session.close()

    # Streams

    @property
    def is_full(self) -> bool:
        """Whether all streams that this side may open are open."""
        return len(self._streams) - self._inbound >= self.limits.streams_max

    async def open_stream(self) -> "MuxStream":
        """Open a stream at once. Raise `TooManyStreams` rather than wait: the library's muxer waits for ever."""
        if self._closed:
            raise MuxedConnUnavailable("the connection is closed")
        if self.is_full:
            raise TooManyStreams(f"{self.limits.streams_max} streams are open to this peer")
        stream = MuxStream(self, self._next_id)
        self._streams[self._next_id] = stream
        self._next_id += 2
        self.send_control(Kind.OPEN, stream.id, 0)
        return stream

    async def accept_stream(self) -> "MuxStream":
        try:
            return await self._accept_out.receive()
        except trio.EndOfChannel:
            raise MuxedConnUnavailable("the connection is closed") from None

    def drop(self, stream: "MuxStream") -> None:
        """Forget a stream that this side has finished with; late frames for it are thrown away."""
        if self._streams.pop(stream.id, None) is not None and not self._is_ours(stream.id):
            self._inbound -= 1

    def _is_ours(self, stream_id: int) -> bool:
        return stream_id % 2 == self._next_id % 2

    # Sending

    @property
    def is_congested(self) -> bool:
        return self._session.is_congested

    async def wait_room(self) -> None:
        """Wait until bulk may be queued. Raise `StreamBroken` if the connection ended."""
        try:
            await self._session.wait_room()
        except ConnectionClosedError as error:
            raise StreamBroken(str(error)) from error

    def send_data(self, stream_id: int, slices: Sequence[Buffer], size: int) -> None:
        """Queue one DATA frame. The buffers may be reused at once."""
        try:
            self._session.queue(HEADER.pack(Kind.DATA, stream_id, size), *slices)
        except ConnectionClosedError as error:
            raise StreamBroken(str(error)) from error

    def send_control(self, kind: Kind, stream_id: int, value: int) -> None:
        """Queue one frame without a body. On a dead connection this does nothing: the reader task ends it."""
        try:
            self._session.queue(HEADER.pack(kind, stream_id, value))
        except ConnectionClosedError:
            return

    def _flush_replies(self) -> None:
        """Send what one read provoked as one run. A peer that provokes but does not read is cut off by the fuse;
        pings are answered once per read, and not at all while the queue is long."""
        if self._pong is not None and not self.is_congested:
            self._replies += HEADER.pack(Kind.PONG, 0, self._pong)
        self._pong = None
        if self._replies:
            replies, self._replies = self._replies, bytearray()
            try:
                self._session.queue(replies)
            except ConnectionClosedError:
                return

    # Receiving

    def feed(self, data: Buffer) -> None:
        """Take the next bytes of the wire, cut anywhere. Raise `Violation`."""
        view = memoryview(data)
        while len(view):
            view = self._feed_body(view) if self._body_left else self._feed_header(view)

    def _feed_body(self, view: memoryview) -> memoryview:
        piece = view[: self._body_left]
        self._body_left -= len(piece)
        if self._body_stream is not None:
            self._body_stream.push(piece)
        return view[len(piece) :]

    def _feed_header(self, view: memoryview) -> memoryview:
        missing = HEADER.size - len(self._partial)
        self._partial += view[:missing]
        if len(self._partial) == HEADER.size:
            kind, stream_id, value = HEADER.unpack(self._partial)
            self._partial.clear()
            self._handle(kind, stream_id, value)
        return view[missing:]

    def _handle(self, kind: int, stream_id: int, value: int) -> None:
        match kind:
            case Kind.DATA:
                self._handle_data(stream_id, value)
            case Kind.WINDOW:
                if stream := self._find(stream_id):
                    stream.credited(value)
                elif not value:
                    raise Violation("a window of nothing")
            case Kind.OPEN:
                self._handle_open(stream_id, value)
            case Kind.CLOSE:
                if stream := self._find(stream_id):
                    stream.peer_closed()
            case Kind.RESET:
                if stream := self._find(stream_id):
                    stream.peer_reset(value)
            case Kind.PING if stream_id == 0:
                self._pong = value
            case Kind.PONG if stream_id == 0:
                pass  # any bytes prove life
            case Kind.BYE if stream_id == 0:
                self.shut("the peer closed the connection")
            case _:
                raise Violation(f"frame of kind {kind} for stream {stream_id}")

    def _handle_open(self, stream_id: int, value: int) -> None:
        if value or self._is_ours(stream_id) or stream_id <= self._peer_id_last:
            raise Violation(f"stream {stream_id} cannot be opened")
        self._peer_id_last = stream_id
        if self._closed:
            return
        if self._inbound >= self.limits.streams_max:
            self._reply_reset(stream_id, Why.BUSY)
            return
        stream = MuxStream(self, stream_id)
        try:
            self._accept_in.send_nowait(stream)
        except trio.WouldBlock:
            self._reply_reset(stream_id, Why.BUSY)
            return
        self._streams[stream_id] = stream
        self._inbound += 1

    def _handle_data(self, stream_id: int, size: int) -> None:
        if not 0 < size <= FRAME_MAX:
            raise Violation(f"a frame of {size} bytes")
        stream = self._find(stream_id)
        if stream is None:
            self._reply_reset(stream_id, Why.PLAIN)  # we are done with it: the peer may stop
        else:
            stream.expect(size)
        self._body_stream, self._body_left = stream, size

    def _reply_reset(self, stream_id: int, why: Why) -> None:
        self._replies += HEADER.pack(Kind.RESET, stream_id, why)

    def _find(self, stream_id: int) -> "MuxStream | None":
        """Return a live stream, None for one that has ended. Raise `Violation` for one that never was."""
        stream = self._streams.get(stream_id)
        if stream is None:
            known = stream_id < self._next_id if self._is_ours(stream_id) else stream_id <= self._peer_id_last
            if not known or stream_id == 0:
                raise Violation(f"stream {stream_id} was never opened")
        return stream


class MuxStream(IMuxedStream):  # type: ignore[misc]
    """One stream: `pieces` and `room` for our `Stream`; `read`, `write` for the library's services."""

    def __init__(self, mux: Mux, stream_id: int) -> None:
        self.id = stream_id
        self.muxed_conn = mux
        self._mux = mux
        self._fault: NetworkError | None = None
        self._pieces: deque[Buffer] = deque()
        self._window = WINDOW_START
        self._receive_credit = WINDOW_START
        self._owed = 0
        self._read_total = 0
        self._peer_closed = False
        self._send_credit = WINDOW_START
        self._write_closed = False
        self._finished = False
        self._readable = trio.lowlevel.ParkingLot()
        self._writable = trio.lowlevel.ParkingLot()

    # What the connection's reader tells

    def expect(self, size: int) -> None:
        """A DATA frame of `size` bytes begins."""
        if self._peer_closed:
            raise Violation("data after the end of a stream")
        if size > self._receive_credit:
            raise Violation(f"{size} bytes with a credit of {self._receive_credit}")
        self._receive_credit -= size

    def push(self, piece: memoryview) -> None:
        if self._fault is not None or self._finished:
            return
        last = self._pieces[-1] if self._pieces else None
        if len(piece) >= SMALL_PIECE:
            self._pieces.append(piece)
        elif isinstance(last, bytearray) and len(last) < PLAINTEXT_MAX:
            last += piece
        else:
            self._pieces.append(bytearray(piece))
        self._readable.unpark_all()

    def credited(self, credit: int) -> None:
        self._send_credit += credit
        if not credit or self._send_credit > CREDIT_MAX:
            raise Violation(f"a window of {credit} bytes")
        self._writable.unpark_all()

    def peer_closed(self) -> None:
        if self._peer_closed:
            raise Violation("a stream ended twice")
        self._peer_closed = True
        self._readable.unpark_all()

    def peer_reset(self, why: int) -> None:
        """The peer reads no more. If its end came before, its bytes are whole and stay readable."""
        if why == Why.BUSY:
            self._fail(Busy("the peer has no room for another stream"))
        else:
            self._fail(StreamBroken("the peer reset the stream"))

    def connection_lost(self, reason: str) -> None:
        self._narrow()
        if self._peer_closed:
            self._write_closed = True  # all its bytes are here: let them be read
            self._writable.unpark_all()
        else:
            self._fail(StreamBroken(reason))

    def _fail(self, fault: NetworkError) -> None:
        if self._fault is None:
            self._fault = fault
        self._readable.unpark_all()
        self._writable.unpark_all()

    # Receiving

    async def pieces(self, size_max: int) -> list[Buffer]:
        """Return 1 to `size_max` bytes as buffers that the caller may keep; none at the clean end of the stream.
        Raise `StreamBroken` or `Busy`, once what came before is read. Cancelled, it has taken nothing."""
        self._widen(size_max)
        await trio.lowlevel.checkpoint()
        while not self._pieces and self._fault is None and not self._peer_closed:
            await self._readable.park()
        if self._fault is not None and not self._pieces and (self._finished or not self._peer_closed):
            raise self._fault.__class__(*self._fault.args)
        return self._take(size_max)

    def _take(self, size_max: int) -> list[Buffer]:
        taken: list[Buffer] = []
        left = size_max
        while self._pieces and left:
            piece = self._pieces.popleft()
            if len(piece) > left:
                view = memoryview(piece)
                self._pieces.appendleft(view[left:])
                piece = view[:left]
            taken.append(piece)
            left -= len(piece)
        self._consumed(size_max - left)
        return taken

    def _consumed(self, size: int) -> None:
        self._owed += size
        self._read_total += size
        if self._owed * 2 >= self._window and not self._peer_closed and self._fault is None:
            self._grant(self._owed)
            self._owed = 0

    def _widen(self, size_max: int) -> None:
        """Open the window fully once the application reads bulk, if the node's budget allows."""
        if self._window != WINDOW_START or self._peer_closed or self._fault is not None:
            return
        growth = self._mux.limits.window_bytes - WINDOW_START
        is_bulk = max(size_max, self._read_total) > WINDOW_START
        if growth > 0 and is_bulk and self._mux.budget.take(growth):
            self._window += growth
            self._grant(growth)

    def _grant(self, credit: int) -> None:
        self._receive_credit += credit
        self._mux.send_control(Kind.WINDOW, self.id, credit)

    # Sending

    async def room(self) -> int:
        """Wait for credit and return how many bytes `put` may take. Raise `StreamBroken` or `Busy`. Cancelled, it
        has sent nothing."""
        await trio.lowlevel.checkpoint()
        while True:
            self._check_writable()
            if not self._send_credit:
                await self._writable.park()
            elif self._mux.is_congested:
                await self._mux.wait_room()
            else:
                return min(self._send_credit, FRAME_SEND)

    async def put(self, slices: Sequence[Buffer], size: int) -> None:
        """Queue `size` bytes, at most what `room` returned just before. Does not wait; the buffers are free again."""
        self._check_writable()
        assert size <= self._send_credit
        self._send_credit -= size
        self._mux.send_data(self.id, slices, size)

    def _check_writable(self) -> None:
        if self._fault is not None:
            raise self._fault.__class__(*self._fault.args)
        if self._write_closed:
            raise StreamBroken("this side has closed the stream for writing")

    # Ending

    async def close_write(self) -> None:
        """Say that no more bytes follow."""
        if not self._write_closed and self._fault is None:
            self._write_closed = True
            self._mux.send_control(Kind.CLOSE, self.id, 0)
            self._writable.unpark_all()

    async def close(self) -> None:
        """Finish both directions: our bytes arrive, and the peer learns that nobody reads its own any more."""
        await self.close_write()
        if not self._finished and not self._peer_closed and self._fault is None:
            self._mux.send_control(Kind.RESET, self.id, Why.PLAIN)
        self._finish("this side closed the stream")

    async def reset(self) -> None:
        self.refuse(Why.PLAIN)

    def refuse(self, why: Why) -> None:
        """Kill the stream at once and say why. On a lost connection this does nothing: what came before stays."""
        if self._finished or self._mux.is_closed:
            return
        if self._fault is None:
            self._mux.send_control(Kind.RESET, self.id, why)
        self._finish("this side reset the stream")

    def _finish(self, reason: str) -> None:
        if not self._finished:
            self._finished = True
            self._mux.drop(self)
            self._pieces.clear()
            self._narrow()
            self._fail(StreamBroken(reason))

    def _narrow(self) -> None:
        """Give the window's growth back to the node."""
        self._mux.budget.give(self._window - WINDOW_START)
        self._window = WINDOW_START

    # The library's verbs

    async def read(self, n: int | None = None) -> bytes:
        """Return up to `n` bytes, what is here if None."""
        if n == 0:
            return b""
        size_max = n if n is not None and n > 0 else WINDOW_START
        try:
            pieces = await self.pieces(size_max)
        except NetworkError as error:
            raise MuxedStreamReset(str(error)) from error
        if not pieces:
            raise MuxedStreamEOF("the peer has closed the stream")
        return b"".join(pieces)

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while len(view):
            try:
                size = min(await self.room(), len(view))
                await self.put([view[:size]], size)
            except NetworkError as error:
                raise (MuxedStreamClosed if self._write_closed else MuxedStreamReset)(str(error)) from error
            view = view[size:]

    def set_deadline(self, ttl: int) -> None:
        raise NotImplementedError("deadlines are the caller's cancel scopes")

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._mux.get_remote_address()

    async def __aenter__(self) -> "MuxStream":
        return self
