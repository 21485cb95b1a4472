"""Serves an ASGI application over HTTP/1.1 under trio: Hypercorn's protocol on connections of our own.

Hypercorn's own loop lets a client that reads nothing hold a connection, and a shutdown, for ever; leaks the reading
task of a body that no route wants; answers a refused body with a reset; and switches to HTTP/2 or a websocket where a
request asks for it. Here each wait has a bound, and a request is HTTP/1.1 or refused.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Request as StreamRequest
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.task_group import TaskGroup, _handle
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import wrap_app

from p2pnode.errors import ConfigError
from p2pnode.gateway.faults import STATUS

log = logging.getLogger("p2pnode.gateway")

RECEIVE_BYTES = 65_536
HEADER_BYTES_MAX = 16_384
"""Of a request's line and headers together, as in nginx and h11."""
HEADERS_MAX = 64
TARGET_BYTES_MAX = 12_300
"""The longest path of a folder, 4,096 bytes each written as %XX."""
KEEP_ALIVE_S = 30.0
"""For the next request, or the rest of its headers."""
STALL_S = 30.0
"""For a client to take some bytes of an answer, or to send some of its body."""
GRACE_S = 3.0
"""For answers under way when the gateway is told to stop."""
LINGER_S = 2.0
"""For a client to notice that its body is refused: closing at once would reset the answer away."""
CONNECTIONS_MAX = 512
CONNECTIONS_ADDRESS_MAX = 128
"""Of one client's address; browsers open 6, a load test some dozens."""
BACKLOG = 256

JOINED_BYTES_MAX = 32_768
"""What is copied behind an answer's head rather than sent by itself."""

DISCONNECT = {"type": "http.disconnect"}

Stream = trio.SocketStream


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the server takes; the tests make it impatient."""

    keep_alive_s: float = KEEP_ALIVE_S
    stall_s: float = STALL_S
    grace_s: float = GRACE_S
    connections_max: int = CONNECTIONS_MAX
    connections_address_max: int = CONNECTIONS_ADDRESS_MAX


def build_config() -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = log
    config.include_server_header = False
    config.h11_max_incomplete_size = HEADER_BYTES_MAX
    return config


# --- requests --------------------------------------------------------------------------------------------------------


class StrictParser(h11.Connection):
    """h11, refusing also what two parsers in a row may read differently, and what no route of ours needs."""

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            verify_request(event)
        return event


def verify_request(request: h11.Request) -> None:
    """Raise `h11.RemoteProtocolError` with the status that answers it."""
    names = Counter(name.lower() for name, _ in request.headers)
    if b"transfer-encoding" in names and b"content-length" in names:
        raise h11.RemoteProtocolError("both a length and chunks", 400)
    if names[b"host"] > 1 or (request.http_version == b"1.1" and not names[b"host"]):
        raise h11.RemoteProtocolError("one Host", 400)
    size = sum(len(name) + len(value) + 4 for name, value in request.headers)
    if sum(names.values()) > HEADERS_MAX or size > HEADER_BYTES_MAX:  # h11 itself bounds only what it waits for
        raise h11.RemoteProtocolError("too many headers", 431)
    if len(request.target) > TARGET_BYTES_MAX:
        raise h11.RemoteProtocolError("a long target", 414)
    if not request.target.startswith(b"/") and request.target != b"*":
        raise h11.RemoteProtocolError("a target that is no path", 400)
    if request.http_version not in (b"1.0", b"1.1"):
        raise h11.RemoteProtocolError("another version", 505)


MESSAGES = {
    400: "this is not an HTTP/1.1 request",
    414: f"a path has at most {TARGET_BYTES_MAX} bytes",
    431: f"headers have at most {HEADER_BYTES_MAX} bytes and {HEADERS_MAX} lines",
    501: "no such transfer coding is known here",
    505: "this is not an HTTP/1.1 request",
    503: "too many connections: try again later",
}


def build_error(code: int) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return headers and body of an answer to what never reaches a route."""
    error = {"code": code, "details": [], "message": MESSAGES.get(code, MESSAGES[400])}
    body = json.dumps({"error": {**error, "status": STATUS.get(code, "INVALID_ARGUMENT")}}).encode()
    return [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
    ], body


class Http11(H11Protocol):
    """Hypercorn's protocol, with a strict parser, no change of protocol, and errors that say what was wrong."""

    def __init__(self, *args: Any, on_refused: Callable[[], None]) -> None:
        super().__init__(*args)
        self.connection = StrictParser(h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size)
        self.on_refused = on_refused
        self._head = b""

    async def _send_h11_event(self, event: Any) -> None:
        """Send an event's bytes, an answer's head with what follows it: one packet where that is short."""
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response):
            self._head = data or b""
        elif self._head and len(data or b"") > JOINED_BYTES_MAX:
            head, self._head = self._head, b""
            await self.send(RawData(data=head))
            await self.send(RawData(data=data))
        elif self._head or data:
            data, self._head = self._head + (data or b""), b""
            await self.send(RawData(data=data))

    async def _check_protocol(self, event: h11.Request) -> None:
        """Stay with HTTP/1.1, whatever the request offers."""

    async def _create_stream(self, request: h11.Request) -> None:
        self.stream = HTTPStream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await self.stream.handle(
            StreamRequest(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1

    async def _send_error_response(self, status_code: int) -> None:
        self.on_refused()
        headers, body = build_error(status_code)
        all_headers = [*headers, *self.config.response_headers("h11")]
        await self._send_h11_event(h11.Response(status_code=status_code, headers=all_headers))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())

    async def _maybe_recycle(self) -> None:
        if self.connection.their_state is h11.SEND_BODY:
            self.on_refused()
        await super()._maybe_recycle()


# --- connections -----------------------------------------------------------------------------------------------------


class Tasks(TaskGroup):
    """The tasks of a connection; what a client sends on after its route has answered is dropped."""

    async def spawn_app(self, app: Any, config: Config, scope: Any, send: Any) -> Callable[[Any], Awaitable[None]]:
        put, take = trio.open_memory_channel[Any](config.max_app_queue_size)

        async def receive() -> Any:
            try:
                return await take.receive()
            except trio.EndOfChannel:
                return DISCONNECT

        async def run() -> None:
            async with take:
                await _handle(app, config, scope, receive, send, trio.to_thread.run_sync, trio.from_thread.run)

        async def give(event: Any) -> None:
            if event == DISCONNECT:  # also told by the route itself once it has answered: it must not wait for itself
                put.close()
                return
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await put.send(event)

        assert self._nursery is not None
        self._nursery.start_soon(run)
        return give


class Connection:
    """One client's connection, from the first byte to the last."""

    def __init__(self, app: AppWrapper, config: Config, context: WorkerContext, stream: Stream, bounds: Bounds) -> None:
        self.app = app
        self.config = config
        self.context = context
        self.stream = stream
        self.bounds = bounds
        self._sending = trio.Lock()
        self._idle = trio.CancelScope()
        """Around reading: its deadline is when a client must have sent a request, if none is being answered."""
        self._lingers = False
        self._closed = False
        self._ended = trio.Event()
        """Nothing more is read: the client has ended its side, or is given up."""

    async def run(self) -> None:
        client, server = self.stream.socket.getpeername()[:2], self.stream.socket.getsockname()[:2]
        try:
            async with Tasks() as tasks:
                self._tasks = tasks
                self.protocol = Http11(
                    self.app,
                    self.config,
                    self.context,
                    tasks,
                    ConnectionState(cast(Any, {})),
                    False,
                    client,
                    server,
                    self.protocol_send,
                    on_refused=self._linger,
                )
                self._wait_for_request()
                await self._read()
        finally:
            await trio.aclose_forcefully(self.stream)

    def end_idle(self) -> None:
        """Take no further request, and wait for none."""
        if self._idle.deadline != math.inf:
            self._idle.deadline = -math.inf

    def _wait_for_request(self) -> None:
        ending = self.context.terminated.is_set()
        self._idle.deadline = -math.inf if ending else trio.current_time() + self.bounds.keep_alive_s

    def _linger(self) -> None:
        self._lingers = True

    async def protocol_send(self, event: Event) -> None:
        match event:
            case RawData():
                await self._send(event.data)
            case Closed():
                await self._close()
                await self.protocol.handle(Closed())
            case Updated(idle=True):
                self._wait_for_request()
            case _:
                self._idle.deadline = math.inf

    async def _send(self, data: bytes) -> None:
        """Send all of it, or end the connection where the client takes nothing for a while."""
        async with self._sending:
            left = memoryview(data)
            try:
                while left and not self._closed:
                    with trio.fail_after(self.bounds.stall_s):
                        left = left[await self.stream.socket.send(left) :]
            except (OSError, trio.ClosedResourceError, trio.TooSlowError):
                self._closed = True
                await trio.aclose_forcefully(self.stream)
        if self._closed:
            await self.protocol.handle(Closed())

    async def _read(self) -> None:
        """Pass on what comes until the client ends; once the connection is closed here, drop it."""
        with self._idle, suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            while True:
                data = await self.stream.receive_some(RECEIVE_BYTES)
                if not self._closed:
                    await self.protocol.handle(RawData(bytes(data)))
                if not data:
                    break
        self._closed = self._closed or self._idle.cancelled_caught
        self._ended.set()
        await self.protocol.handle(Closed())

    async def _close(self) -> None:
        """End this side; where the client is still sending, let it first hear what it was answered."""
        if self._closed:
            return
        self._closed = True
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            await self.stream.send_eof()
        self._tasks.spawn(self._end)

    async def _end(self) -> None:
        if self._lingers:
            with trio.move_on_after(LINGER_S):
                await self._ended.wait()
        await self.stream.aclose()


# --- listening -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Doors:
    """How many connections there are, in all and of each address."""

    bounds: Bounds
    count: int = 0
    of: Counter[str] = field(default_factory=Counter)

    async def admit(self, serve: Callable[[Stream], Awaitable[None]], stream: Stream) -> None:
        try:
            address = stream.socket.getpeername()[0]
        except OSError:  # gone already
            await trio.aclose_forcefully(stream)
            return
        if self.count >= self.bounds.connections_max or self.of[address] >= self.bounds.connections_address_max:
            await turn_away(stream)
            return
        self.count += 1
        self.of[address] += 1
        try:
            await serve(stream)
        except OSError as fault:
            log.debug("a connection ended: %s", fault)
        finally:
            self.count -= 1
            self.of[address] -= 1
            self.of += Counter()  # forget addresses with none


async def turn_away(stream: Stream) -> None:
    """Say that there are too many connections, and end this one."""
    headers, body = build_error(503)
    lines = b"".join(b"%b: %b\r\n" % header for header in [*headers, (b"retry-after", b"5")])
    with trio.move_on_after(LINGER_S), suppress(trio.BrokenResourceError):
        async with stream:
            await stream.send_all(b"HTTP/1.1 503 \r\n" + lines + b"\r\n" + body)
            await stream.send_eof()
            while await stream.receive_some(RECEIVE_BYTES):
                pass


async def listen(host: str, port: int) -> Sequence[trio.SocketListener]:
    """Return listeners; raises `ConfigError` naming the address where there can be none."""
    try:
        return await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    except OSError as fault:
        reason = fault.strerror or fault
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}; name another address") from fault


@asynccontextmanager
async def open_server(
    make_app: Callable[[Sequence[tuple[str, int]]], Any], host: str, port: int, bounds: Bounds | None = None
) -> AsyncIterator[Sequence[tuple[str, int]]]:
    """Serve the application that `make_app` makes of the addresses listened on, while the block lasts; yields these.

    At the end answers under way have the grace to come to their end, then are cut. Raises `ConfigError`.
    """
    bounds = bounds or Bounds()
    config, context = build_config(), WorkerContext(None)
    listeners = await listen(host, port)
    addresses = [listener.socket.getsockname()[:2] for listener in listeners]
    app = wrap_app(make_app(addresses), 0, "asgi")
    doors = Doors(bounds)

    open_now: set[Connection] = set()

    async def serve(stream: Stream) -> None:
        connection = Connection(app, config, context, stream, bounds)
        open_now.add(connection)
        try:
            await connection.run()
        finally:
            open_now.remove(connection)

    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(
                partial(
                    trio.serve_listeners,
                    partial(doors.admit, serve),
                    list(listeners),
                    handler_nursery=connections,
                )
            )
            try:
                yield addresses
            finally:
                accepting.cancel_scope.cancel()
                await context.terminated.set()
                for connection in open_now:
                    connection.end_idle()
                connections.cancel_scope.deadline = trio.current_time() + bounds.grace_s
