"""What everything above the network sees of a peer: an authenticated stream with deadlines. No libp2p type passes.

`send` copies by encrypting: the caller may reuse its buffers as soon as it returns, and the bytes are then queued, not
delivered. A call that is cancelled or too slow after it moved a part of its message resets the stream, because what is
left on the wire has no beginning any more; one that moved nothing may be repeated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import trio
from libp2p.exceptions import BaseLibp2pError

from economics.crypto import NodeId
from p2pnode.errors import Busy, StreamBroken, TooSlow
from p2pnode.network.fence import shielded
from p2pnode.network.mux import MuxStream, Why
from p2pnode.network.noise import CLOSED, Buffer

CLOSING_S = 2.0
"""Saying goodbye only queues a frame; the library's locks around it must not hold anybody longer than this."""
YAMUX_SEND = 65_507
"""Yamux frames of 12 + 65,507 bytes fill one Noise message exactly."""
YAMUX_POLL_S = 0.01
"""The library's yamux has no event for a window that opens; its own writer polls at this pace, too."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How slow a peer may be. `math.inf` waits for ever, as for the next request on a stream that is kept open."""

    idle_s: float = 10.0
    """Nothing at all may move for so long; also how long a transfer may run before its rate is judged."""
    floor_bytes_per_s: int = 16_384
    """Least average rate of one call that runs longer than `idle_s`: without it, one byte a second holds a slot."""


class Pace:
    """The clock of one transfer: when it would be too slow if nothing more came. It stands still while paused, since
    what an application does between two calls is not its peer's fault."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._start = self._last = trio.current_time()
        self._paused: float | None = None
        self.moved_bytes = 0

    def moved(self, size: int) -> None:
        self.moved_bytes += size
        self._last = trio.current_time()

    def pause(self) -> None:
        self._paused = trio.current_time()

    def resume(self) -> None:
        if self._paused is not None:
            gap = trio.current_time() - self._paused
            self._start, self._last, self._paused = self._start + gap, self._last + gap, None

    def deadline(self) -> float:
        floor = self._patience.floor_bytes_per_s
        by_rate = self._start + max(self._patience.idle_s, self.moved_bytes / floor if floor else math.inf)
        return min(self._last + self._patience.idle_s, by_rate)

    def too_slow(self) -> TooSlow:
        spent_s = trio.current_time() - self._start
        return TooSlow(f"the peer moved {self.moved_bytes} bytes in {spent_s:.1f} s")


class Channel(Protocol):
    """What `Stream` needs of a muxer's stream. Cancelled, `pieces` has taken nothing and `room` has sent nothing."""

    async def pieces(self, size_max: int) -> list[Buffer]: ...
    async def room(self) -> int: ...
    async def put(self, slices: Sequence[Buffer], size: int) -> None: ...
    async def close_write(self) -> None: ...


class YamuxChannel:
    """A foreign peer's stream. Three faults of the library's yamux are kept away from the callers: a reset and a dead
    connection look like a clean end; a writer whose window is shut for 5 s fails; a full stream table waits for ever
    (see `Network.open_stream`)."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._conn = stream.muxed_conn

    async def pieces(self, size_max: int) -> list[Buffer]:
        try:
            data: bytes = await self._stream.read(size_max)
        except CLOSED as error:
            data, cause = b"", error
        else:
            cause = None
        if data:
            return [data]
        if self._ended_cleanly():
            return []
        raise StreamBroken("the peer reset the stream or went away") from cause

    def _ended_cleanly(self) -> bool:
        ended: bool = self._stream.recv_closed
        return ended and not self._stream.reset_received and not self._conn.event_shutting_down.is_set()

    async def room(self) -> int:
        try:
            await self._conn.secured_conn.wait_room()
        except BaseLibp2pError as error:
            raise StreamBroken(str(error)) from error
        await trio.lowlevel.checkpoint()
        while self._stream.send_window <= 0 and not self._stream.send_closed:  # noqa: ASYNC110  # it has no event
            await trio.sleep(YAMUX_POLL_S)
        if self._stream.send_closed:
            raise StreamBroken("the stream is closed for writing")
        return min(int(self._stream.send_window), YAMUX_SEND)

    async def put(self, slices: Sequence[Buffer], size: int) -> None:
        try:
            with trio.CancelScope(shield=True):  # it only queues; cancelled halfway, its window would be wrong
                await self._stream.write(b"".join(slices))
        except CLOSED as error:
            raise StreamBroken("the peer reset the stream or went away") from error

    async def close_write(self) -> None:
        try:
            with trio.CancelScope(shield=True):
                await self._stream.close()
        except CLOSED as error:
            raise StreamBroken("the connection is gone") from error


class Stream:
    """One stream to one authenticated peer. Use it as a context manager: an exception resets it, otherwise it closes.

    One task may receive while another sends. Every receiving or sending call raises `StreamBroken` when the stream was
    reset or the connection ended, `Busy` when the peer had no room for it, and `TooSlow` by its patience.
    """

    def __init__(self, net_stream: Any, channel: Channel, peer: NodeId, protocol: str) -> None:
        self.peer = peer
        self.protocol = protocol
        self._patience = Patience()
        self._net_stream = net_stream
        self._channel = channel
        self._pace_some: Pace | None = None
        self._ended = False

    @property
    def patience(self) -> Patience:
        return self._patience

    @patience.setter
    def patience(self, patience: Patience) -> None:
        self._patience, self._pace_some = patience, None

    # Sending

    async def send(self, *parts: Buffer) -> None:
        """Send `parts` as one run of bytes, waiting for the peer's credit. Costs about 1.5 ms per MiB."""
        views = [view for part in parts if len(view := memoryview(part).cast("B"))]
        pace = Pace(self._patience)
        try:
            while views:
                room = await self._room(pace)
                slices, views, size = split(views, room)
                await self._channel.put(slices, size)
                pace.moved(size)
        except BaseException as error:
            await self._give_up(pace, error)
            raise

    async def _room(self, pace: Pace) -> int:
        with trio.CancelScope(deadline=pace.deadline()):
            return await self._channel.room()
        raise pace.too_slow()

    async def _give_up(self, pace: Pace, error: BaseException) -> None:
        """Reset a stream whose message stays half moved. One that the peer ended is left alone: what the peer said
        before, such as why it did not want the rest, can still be read."""
        if pace.moved_bytes and not isinstance(error, StreamBroken | Busy):
            await self.reset()

    # Receiving

    async def receive_exactly(self, size: int) -> bytes:
        """Return `size` bytes. Raise `StreamBroken` if the stream ends first. The caller bounds `size`."""
        self._pace_some = None
        return b"".join(await self._receive(size))

    async def receive_into(self, buffer: memoryview) -> None:
        """Fill `buffer`, which must be contiguous and writable. The same errors; one copy."""
        self._pace_some = None
        view, at = buffer.cast("B"), 0
        pace = Pace(self._patience)
        try:
            while at < len(view):
                for piece in await self._pieces(len(view) - at, pace):
                    view[at : at + len(piece)] = piece
                    at += len(piece)
        except BaseException as error:
            await self._give_up(pace, error)
            raise

    async def _receive(self, size: int) -> list[Buffer]:
        pace = Pace(self._patience)
        pieces: list[Buffer] = []
        try:
            while pace.moved_bytes < size:
                pieces += await self._pieces(size - pace.moved_bytes, pace)
        except BaseException as error:
            await self._give_up(pace, error)
            raise
        return pieces

    async def _pieces(self, size_max: int, pace: Pace) -> list[Buffer]:
        pieces = await self._pieces_or_end(size_max, pace)
        if not pieces:
            raise StreamBroken("the stream ended inside a message")
        return pieces

    async def _pieces_or_end(self, size_max: int, pace: Pace) -> list[Buffer]:
        with trio.CancelScope(deadline=pace.deadline()):
            pieces = await self._channel.pieces(size_max)
            pace.moved(sum(map(len, pieces)))
            return pieces
        raise pace.too_slow()

    async def receive_some(self, size_max: int) -> bytes:
        """Return 1 to `size_max` bytes, or b"" at the clean end of the stream, never after a reset or a crash.

        Calls in a row are one transfer for the floor on progress; setting `patience` starts a new one."""
        pace = self._pace_some = self._pace_some or Pace(self._patience)
        pace.resume()
        try:
            return b"".join(await self._pieces_or_end(size_max, pace))
        except TooSlow:
            self._pace_some = None
            raise
        finally:
            pace.pause()

    # Ending

    async def close_write(self) -> None:
        """Say that no more bytes follow; the peer's may still come."""
        await self._channel.close_write()

    async def close(self) -> None:
        """Finish both directions: what was sent arrives, what the peer still sends is thrown away. Never raises."""
        await self._end(self._net_stream.close)

    async def reset(self) -> None:
        """Kill the stream at once: the peer sees `StreamBroken`. Never raises, does nothing after `close`."""
        await self._end(self._net_stream.reset)

    async def refuse(self) -> None:
        """Reset the stream so that a peer of our kind sees `Busy`. Never raises."""
        if isinstance(self._channel, MuxStream):
            self._channel.refuse(Why.BUSY)
        await self.reset()

    async def _end(self, verb: Any) -> None:
        """Call the library's verb shielded: it gives back what the library counted for this stream."""
        if self._ended:
            return
        self._ended = True
        with shielded(CLOSING_S):
            try:
                await verb()
            except CLOSED:
                return  # the connection went first

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.close()
        else:
            await self.reset()


def split(views: Sequence[memoryview], size_max: int) -> tuple[list[memoryview], list[memoryview], int]:
    """Return the first `size_max` bytes of `views`, the rest, and how many bytes the first part has."""
    taken: list[memoryview] = []
    size = 0
    for index, view in enumerate(views):
        if size + len(view) > size_max:
            cut = size_max - size
            return [*taken, view[:cut]] if cut else taken, [view[cut:], *views[index + 1 :]], size_max
        taken.append(view)
        size += len(view)
    return taken, [], size
