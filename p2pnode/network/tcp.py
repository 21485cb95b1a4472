"""TCP sockets for the libp2p host: dial, listen, give the slot of an ended connection back. No cryptography here."""

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp.tcp import TCP, TCPListener
from libp2p.utils.multiaddr_utils import extract_ip_from_multiaddr

LISTENER_GRACE_S = 0.5
"""How long the library may tidy up after a socket closed before its accepting task is cancelled. Tidying a handshake
that failed takes milliseconds; cancelling it midway would leak what the library counted for it."""

ConnectionHandler = Callable[["TcpStream"], Awaitable[None]]


class TcpStream(TrioTCPStream):  # type: ignore[misc]
    """One socket. `closed` is set once, whoever closes it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self.closed = trio.Event()
        self._remote: tuple[str, int] | None = None

    async def close(self) -> None:
        """Close at once and never raise `Cancelled`: the library releases its counters *after* this call, in
        `except` branches that a second cancellation would skip."""
        with trio.CancelScope(shield=True):
            await self.stream.aclose()
        self.closed.set()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return (ip, port). The library's version gives None for IPv6, whose socket names have four parts."""
        if self._remote is None:
            try:
                name = self.stream.socket.getpeername()
            except OSError:
                return None
            self._remote = (str(name[0]), int(name[1]))
        return self._remote


class TcpListener(TCPListener):  # type: ignore[misc]
    """The library's listener, with two faults mended.

    `Swarm._do_handle_inbound_connection` awaits the *swarm's* end while it holds an inbound slot, so a node would
    refuse newcomers for ever after as many connections as it has slots; here the accepting task ends with its socket.
    `TCPListener.listen` sets SO_REUSEPORT (hole punching needs it), so a second process would bind the same port in
    silence and take a share of the dials; here a plain socket probes the port first.
    """

    def __init__(self, handler: ConnectionHandler, failures: dict[str, str]) -> None:
        async def serve(accepted: TrioTCPStream) -> None:
            await serve_until_closed(TcpStream(accepted.stream), handler)

        super().__init__(serve)
        self._failures = failures

    async def listen(self, maddr: Any) -> None:
        """Bind `maddr`; raise `OpenConnectionError`, and note the reason for `open_network`, which the swarm hides."""
        try:
            await probe_port(extract_ip_from_multiaddr(maddr), int(maddr.value_for_protocol("tcp")))
            await super().listen(maddr)
        except (OSError, OverflowError, OpenConnectionError) as error:
            self._failures[str(maddr)] = str(error)
            raise OpenConnectionError(f"cannot listen on {maddr}: {error}") from error


async def serve_until_closed(stream: TcpStream, handler: ConnectionHandler) -> None:
    """Run the library's accepting task, and end it shortly after its socket closed."""
    async with trio.open_nursery() as nursery:
        done = trio.Event()

        async def accept() -> None:
            try:
                await handler(stream)
            finally:
                done.set()
            nursery.cancel_scope.cancel()

        nursery.start_soon(accept)
        await stream.closed.wait()
        with trio.move_on_after(LISTENER_GRACE_S):
            await done.wait()
        nursery.cancel_scope.cancel()


async def probe_port(host: str | None, port: int) -> None:
    """Raise `OSError` if another socket listens on this port, though SO_REUSEPORT would let us join it."""
    if port == 0:
        return
    address = host if host is not None else "0.0.0.0"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with trio.socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        await probe.bind((address, port))


class Tcp(TCP):  # type: ignore[misc]
    """The library's TCP transport with our sockets. `listen_failures` maps a multiaddr to why it could not be bound."""

    def __init__(self) -> None:
        super().__init__()
        self.listen_failures: dict[str, str] = {}

    def create_listener(self, handler_function: ConnectionHandler) -> TcpListener:
        return TcpListener(handler_function, self.listen_failures)

    async def _dial_resolved(self, maddr: Any, source: tuple[str, int] | None = None) -> RawConnection:
        """Dial one resolved address. Without a source port this does not call the library, which logs each refusal
        as an error: an unreachable peer is an ordinary event."""
        if source is not None:
            return await super()._dial_resolved(maddr, source)
        host, port = extract_ip_from_multiaddr(maddr), maddr.value_for_protocol("tcp")
        if host is None or port is None:
            raise OpenConnectionError(f"{maddr} has no IP address and TCP port")
        try:
            stream = await trio.open_tcp_stream(host, int(port))
        except (OSError, ValueError) as error:
            raise OpenConnectionError(f"{maddr}: {error}") from error
        return RawConnection(TcpStream(stream), True)
