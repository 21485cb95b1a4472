"""Serves an ASGI application over HTTP/1.1 under trio: Hypercorn's protocol on connections of our own.

Hypercorn's own loop lets a client that reads nothing hold a connection, and a shutdown, for ever; leaks the reading
task of a body that no route wants; answers a refused body with a reset; and switches to HTTP/2 or a websocket where a
request asks for it. Here each wait has a bound, and a request is HTTP/1.1 or refused.
"""

import ipaddress
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.task_group import TaskGroup, _handle
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import wrap_app

from p2pnode.errors import ConfigError
from p2pnode.gateway.protocol import HEADER_BYTES_MAX, Http11, build_error

log = logging.getLogger("p2pnode.gateway")

RECEIVE_BYTES = 65_536
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
TURNED_AWAY_MAX = 32
"""Connections that are told so at once; more are just ended: each takes a descriptor, and files need some too."""
REQUESTS_MAX = 1 << 20
"""Of one connection. Hypercorn ends one after 1,000 for the sake of load balancers, which a client notices."""
BACKLOG = 256
HOST_NETWORK_BITS = 64
"""What an IPv6 line has at the least."""

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
    config.keep_alive_max_requests = REQUESTS_MAX
    config.h11_max_incomplete_size = HEADER_BYTES_MAX
    return config


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
    turned_away: int = 0
    of: Counter[str] = field(default_factory=Counter)

    async def admit(self, serve: Callable[[Stream], Awaitable[None]], stream: Stream) -> None:
        try:
            address = group_of(stream.socket.getpeername()[0])
        except OSError:  # gone already
            await trio.aclose_forcefully(stream)
            return
        if self.count >= self.bounds.connections_max or self.of[address] >= self.bounds.connections_address_max:
            await self._turn_away(stream)
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

    async def _turn_away(self, stream: Stream) -> None:
        if self.turned_away >= TURNED_AWAY_MAX:
            await trio.aclose_forcefully(stream)
            return
        self.turned_away += 1
        try:
            await turn_away(stream)
        finally:
            self.turned_away -= 1


def group_of(host: str) -> str:
    """Return what an address counts for: of IPv6 its network, of which every machine there has all addresses."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.version == 4:
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((address, HOST_NETWORK_BITS), strict=False))


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
