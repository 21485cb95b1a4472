"""The fence around the library: what a peer may provoke inside it ends one stream, never the node. Decides no protocol.

It stands at one place, the swarm's stream handler, through which every inbound stream passes: those of our protocols,
of the DHT, of gossip, of identify, and those that never name a protocol.
"""

import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import libp2p
import trio
from libp2p.abc import INotifee
from libp2p.exceptions import ParseError
from libp2p.network.connection import swarm_connection
from libp2p.protocol_muxer import multiselect_communicator
from libp2p.stream_muxer.exceptions import MuxedStreamReset
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.utils import read_delim
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from p2pnode.network.mux import MuxStream, Why

log = logging.getLogger(__name__)

LIBRARY_VERSION = "0.8.1"
MULTISTREAM_BYTES_MAX = 1024
"""Longest message while a protocol is negotiated, as in js-libp2p. The library takes any length, unauthenticated."""
IDLE_S = 60.0
"""A foreign protocol's stream that moves less than IDLE_BYTES in this time is reset: the library's handlers have no
deadline on reads, and twelve silent streams used to shut the DHT for everyone. Other libp2p peers open anew."""
IDLE_BYTES = 32
"""Less than the shortest DHT request, more than anybody drips."""
LONG_LIVED = ("/meshsub/", "/floodsub/")
"""Gossip streams are silent by design for as long as nobody publishes."""
YAMUX_PARKED_MAX = 32 * 1024 * 1024
"""Unread bytes of one yamux connection: twice the largest window that one stream can have."""

StreamHandler = Callable[[Any], Awaitable[None]]


class Fence:
    """Contains every inbound stream of one host. `faults` counts what was caught, by kind, for metrics and tests."""

    def __init__(self, streams_per_peer: int, idle_s: float) -> None:
        self.faults: Counter[str] = Counter()
        self.exempt: set[str] = set()
        self._streams_per_peer = streams_per_peer
        self._idle_s = idle_s
        self._streams: Counter[Any] = Counter()

    def around(self, inner: StreamHandler) -> StreamHandler:
        """Return `inner`, the library's handler of inbound streams, made harmless."""

        async def fenced(net_stream: Any) -> None:
            peer_id = net_stream.muxed_conn.peer_id
            if self._streams[peer_id] >= self._streams_per_peer:
                self.faults["streams over the peer's budget"] += 1
                await refuse(net_stream)
                return
            self._streams[peer_id] += 1
            try:
                await self._contain(inner, net_stream)
            finally:
                self._streams[peer_id] -= 1
                if not self._streams[peer_id]:
                    del self._streams[peer_id]

        return fenced

    async def _contain(self, inner: StreamHandler, net_stream: Any) -> None:
        """`SwarmConn` runs handlers in the swarm's own nursery, so an exception of any of them ends the host. What
        they can raise is unknowable; hence the broad net. `except*` leaves `Cancelled` alone, even inside groups."""
        net_stream.muxed_stream = WatchedStream(net_stream, self._idle_s, self.exempt)
        try:
            await inner(net_stream)
        except* Exception as group:
            self.faults["library handlers"] += 1
            log.debug("a handler of %s failed: %r", net_stream.get_protocol(), group.exceptions)
            await reset(net_stream)


class WatchedStream:
    """A muxer's stream with a limit on silence, for handlers that have none. All else passes through."""

    def __init__(self, net_stream: Any, idle_s: float, exempt: set[str]) -> None:
        self.inner = net_stream.muxed_stream
        self._net_stream = net_stream
        self._idle_s = idle_s
        self._exempt = exempt
        self._since = trio.current_time()
        self._read_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def _deadline(self) -> float:
        protocol = self._net_stream.get_protocol() or ""
        is_exempt = protocol in self._exempt or protocol.startswith(LONG_LIVED)
        return float("inf") if is_exempt else self._since + self._idle_s

    async def read(self, n: int | None = None) -> bytes:
        with trio.CancelScope(deadline=self._deadline()):
            data: bytes = await self.inner.read(n)
            self._read_bytes += len(data)
            if self._read_bytes >= IDLE_BYTES:
                self._start_again()
            return data
        return await self._give_up()

    async def write(self, data: bytes) -> None:
        with trio.CancelScope(deadline=self._deadline()):
            await self.inner.write(data)
            self._start_again()
            return
        await self._give_up()

    def _start_again(self) -> None:
        self._since, self._read_bytes = trio.current_time(), 0

    async def _give_up(self) -> bytes:
        await self.inner.reset()
        raise MuxedStreamReset(f"less than {IDLE_BYTES} bytes in {self._idle_s} s")


class YamuxGuard(INotifee):  # type: ignore[misc]
    """Ends the connection of a foreign peer that fills our memory: the library takes in, with a line in its log, what
    exceeds a yamux stream's window. Knows of connections by the library's notices; all others mean nothing here."""

    async def connected(self, network: Any, conn: Any) -> None:
        muxed = conn.muxed_conn
        if isinstance(muxed, Yamux):
            muxed.secured_conn.is_overfull = lambda: sum(map(len, muxed.stream_buffers.values())) > YAMUX_PARKED_MAX

    async def disconnected(self, network: Any, conn: Any) -> None: ...
    async def opened_stream(self, network: Any, stream: Any) -> None: ...
    async def closed_stream(self, network: Any, stream: Any) -> None: ...
    async def listen(self, network: Any, multiaddr: Any) -> None: ...
    async def listen_close(self, network: Any, multiaddr: Any) -> None: ...


async def refuse(net_stream: Any) -> None:
    """Reset a library's stream; a peer of our kind learns that it was one too many."""
    if isinstance(net_stream.muxed_stream, MuxStream):
        net_stream.muxed_stream.refuse(Why.BUSY)
    await reset(net_stream)


async def reset(net_stream: Any) -> None:
    """Reset a library's stream, whatever state it is in, and give back what was counted for it."""
    with shielded(2):
        try:
            await net_stream.reset()
        except Exception:  # the border: a stream that cannot even be reset is left to its connection
            log.debug("a stream could not be reset", exc_info=True)


def shielded(seconds: float) -> trio.CancelScope:
    """Return a scope for tidying up: not cancelled from outside, and not for ever."""
    return trio.CancelScope(deadline=trio.current_time() + seconds, shield=True)


def mend_library() -> None:
    """Mend what no argument of the library reaches. Idempotent; the version is pinned, and asserted to be the one
    that was read.

    The names of two modules are rebound, here and nowhere else: the reader of multistream messages, which takes any
    length and lets `UnicodeDecodeError` out to callers that do not expect it, and the `logging` of `SwarmConn`, whose
    bare `logging.debug` installs a handler on the root logger of the whole process.
    """
    assert libp2p.__version__ == LIBRARY_VERSION, "the mends were made for another version of libp2p"
    assert multiselect_communicator.read_delim in (read_delim, read_negotiation)
    multiselect_communicator.read_delim = read_negotiation
    swarm_connection.logging = logging.getLogger("libp2p.network.connection")
    os.environ.setdefault("PY_YAMUX_RELEASE_ON_READ", "0")  # read at call time: a window update for each byte read
    quiet_library_log()


def quiet_library_log() -> None:
    """Hand the library's log to ours, without its errors: it logs every refused dial and hung-up peer as one. Whoever
    asks for more by the library's own LIBP2P_DEBUG keeps what it set up."""
    library_log = logging.getLogger("libp2p")
    if library_log.level == logging.WARNING:  # its default, as of import
        library_log.setLevel(logging.CRITICAL)
        library_log.propagate = True
    logging.getLogger("libp2p.network.auto_connector").setLevel(logging.NOTSET)


async def read_negotiation(reader: Any) -> bytes:
    """Read one multistream message of at most MULTISTREAM_BYTES_MAX bytes of UTF-8, without its newline."""
    try:
        message: bytes = await read_varint_prefixed_bytes_limited(reader, MULTISTREAM_BYTES_MAX)
        message.decode()
    except ValueError as error:
        raise ParseError(f"a multistream message that is none: {error}") from error
    if message[-1:] != b"\n":
        raise ParseError("a multistream message ends with a newline")
    return message[:-1]
