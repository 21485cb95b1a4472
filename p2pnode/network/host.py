"""The libp2p host, built here and nowhere else: open it, serve protocols, open streams to peers by their node id.

py-libp2p 0.8.1 has faults that end a process or shut a node for ever. Each is mended or fenced, by public arguments and
wrappers wherever the library has them (the two names that are rebound are in `fence.mend_library`):

| fault of the library | mend | test in tests/network |
|---|---|---|
| S1 an inbound slot is held until the node stops | tcp.serve_until_closed | test_s1_... |
| S2 an exception in a stream handler ends the host | Network.serve, fence.Fence | test_s2_... |
| S3 two-way bulk deadlocks the connection | noise.NoiseSession.queue | test_s3_... |
| S4 a cancelled write corrupts the connection | noise.NoiseSession.queue | test_s4_... |
| S5 a reset or a crash looks like a clean end | mux.Kind.RESET, stream.YamuxChannel | test_s5_... |
| S6 a reader that pauses for 5 s fails the writer | mux.MuxStream.room, stream.YamuxChannel | test_s6_... |
| S7 the 257th stream waits for ever | mux.TooManyStreams, Network._check_room | test_s7_... |
| S8 a failed dial blacks the peer out for 60 s | Network.connect | test_s8_... |
| S9 a failed listen is silent; two processes share a port | open_network, tcp.TcpListener | test_s9_... |
| S10 leaving the host leaves its listener open | run_host | test_s10_... |
| S11 it dials whomever it has heard of, 400 of them | run_host | test_s11_... |
| B1 a junk protocol name or RPC ends the host | fence.Fence, fence.read_negotiation | test_b1_... |
| B2 half-open sockets hold the slots (see also S1) | build_host: 3 s to upgrade | test_b2_... |
| B3 plaintext, secio and mplex are offered | build_host: noise; ours, yamux | test_b3_... |
| B4 twelve silent DHT streams shut the DHT | fence.WatchedStream; dht/discovery.py | test_b4_..., tests/dht |
"""

import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import Ed25519PublicKey, create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_static_key_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.rcmgr import ResourceLimits
from libp2p.rcmgr.manager import ResourceManager
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from economics.crypto import KEY_BYTES, NodeId
from p2pnode.errors import Busy, NetworkError, PeerUnreachable, ProtocolUnsupported, StreamBroken, TooSlow
from p2pnode.network.fence import (
    IDLE_S,
    MULTISTREAM_BYTES_MAX,
    Fence,
    WatchedStream,
    YamuxGuard,
    mend_library,
    reset,
    shielded,
)
from p2pnode.network.mux import PROTOCOL_ID as MUX_ID
from p2pnode.network.mux import Budget, Mux, MuxLimits, MuxStream
from p2pnode.network.noise import NoiseTransport, SessionLimits
from p2pnode.network.stream import Channel, Stream, YamuxChannel
from p2pnode.network.tcp import Tcp

log = logging.getLogger(__name__)

UPGRADE_S = 3.0
"""How long a socket may take to become an authenticated connection; until then it holds a slot for nothing."""
NEGOTIATION_S = 5.0
"""How long a peer may take to name the protocol of a stream."""
ADDRESS_LIFE_S = 3600
"""How long the library's address book keeps what we were told; who needs an address longer keeps it elsewhere."""
STAGGER_S = 0.25
"""Head start of one address over the next (RFC 8305)."""
CLOSING_S = 3.0
"""How long closing all connections may take in all."""
MULTISTREAM = "/multistream/1.0.0"
UNCOUNTED = 1 << 30
"""The library's own counters of connections and streams leak when a dial is cancelled; our limits stand elsewhere."""

Handler = Callable[[Stream], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one node gives to its peers. Bytes and streams beyond it are refused, never waited for."""

    connections_max: int = 1000
    streams_per_peer: int = 128
    """Inbound streams of one peer, all protocols together."""
    queue_bytes_max: int = 64 * 1024 * 1024
    """Fuse of a connection's write queue."""
    window_bytes: int = 2 * 1024 * 1024
    """Credit of one stream whose reader takes bulk."""
    windows_bytes_max: int = 256 * 1024 * 1024
    """All such credit of the node together; streams beyond it run with their first 64 KiB."""
    keepalive_s: float = 30.0
    """A connection of ours whose peer is silent for this long is closed."""
    foreign_idle_s: float = IDLE_S
    """A library protocol's inbound stream is reset after this silence."""


def peer_id_of(node_id: NodeId) -> ID:
    """Return the libp2p identity of a node: the same Ed25519 key, wrapped. Raise `PeerUnreachable` if it is no key."""
    try:
        return ID.from_pubkey(Ed25519PublicKey.from_bytes(node_id))
    except (ValueError, TypeError) as error:
        raise PeerUnreachable(f"{node_id.hex()} is not an Ed25519 key") from error


def node_id_of(peer_id: ID) -> NodeId | None:
    """Return the node id inside a libp2p identity; None for a peer with another kind of key."""
    key = peer_id.extract_public_key()
    return NodeId(key.to_bytes()) if isinstance(key, Ed25519PublicKey) else None


class Network:
    """One node's place in the network. Raises only `NetworkError` and its kinds."""

    def __init__(self, host: Any, fence: Fence, limits: Limits) -> None:
        node_id = node_id_of(host.get_id())
        assert node_id is not None
        self.node_id: NodeId = node_id
        self.host = host
        self.faults = fence.faults
        self._fence = fence
        self._limits = limits
        self._swarm = host.get_network()
        self._dials: dict[NodeId, trio.Lock] = {}

    def addresses(self) -> tuple[str, ...]:
        """Return the multiaddrs that are listened on, without /p2p/…, with their real ports; 0.0.0.0 stays 0.0.0.0."""
        return tuple(str(address) for address in self.host.get_transport_addrs())

    # Serving

    def serve(self, protocol: str, handler: Handler, *, streams_per_peer: int = 8) -> None:
        """Run `handler` for every inbound stream of `protocol`, closing the stream after it. A peer's streams beyond
        its budget are refused as busy. An exception of the handler is counted and resets its stream alone."""
        streams: Counter[NodeId] = Counter()

        async def entry(net_stream: Any) -> None:
            stream = wrap(net_stream, protocol)
            if stream is None:
                await reset(net_stream)
            elif streams[stream.peer] >= streams_per_peer:
                self.faults["streams over the protocol's budget"] += 1
                await stream.refuse()
            else:
                with counted(streams, stream.peer):
                    await self._run(handler, stream)

        self._fence.exempt.add(protocol)
        self.host.set_stream_handler(protocol, entry)

    async def _run(self, handler: Handler, stream: Stream) -> None:
        """Handlers fail for reasons of the world (`NetworkError`) and by faults of ours; neither may end the node."""
        try:
            async with stream:
                await handler(stream)
        except* NetworkError as group:
            self.faults["streams that failed"] += 1
            log.debug("%s with %s failed: %r", stream.protocol, stream.peer.hex(), group.exceptions)
        except* Exception:
            self.faults["handlers that raised"] += 1
            log.exception("the handler of %s raised on a stream of %s", stream.protocol, stream.peer.hex())

    # Reaching out

    async def open_stream(
        self, peer: NodeId, protocol: str, *, addresses: Sequence[str] = (), deadline_s: float = 10.0
    ) -> Stream:
        """Open a stream, connecting first if need be. One round trip on a live connection.

        Raise `PeerUnreachable`, `ProtocolUnsupported`, `TooSlow` (connected, but no answer) or `Busy`: too many streams
        or connections here, or too many streams of all protocols there. A peer's budget for this one protocol shows
        later, as `Busy` from the stream's first receiving call.
        """
        until = trio.current_time() + deadline_s
        try:
            return await self._open_once(peer, protocol, addresses, until)
        except StreamBroken as error:
            log.debug("the connection to %s was dead: %s", peer.hex(), error)
        try:
            return await self._open_once(peer, protocol, addresses, until)
        except StreamBroken as error:
            raise PeerUnreachable(f"{peer.hex()} ends every stream of {protocol}: {error}") from error

    async def _open_once(self, peer: NodeId, protocol: str, addresses: Sequence[str], until: float) -> Stream:
        """Raise `StreamBroken` too, as when an old connection proves dead at the first attempt to use it."""
        await self.connect(peer, addresses=addresses, deadline_s=until - trio.current_time())
        with trio.move_on_at(until):
            return await self._negotiated(peer, protocol)
        raise TooSlow(f"{peer.hex()} is connected and did not answer for {protocol} in time")

    async def _negotiated(self, peer: NodeId, protocol: str) -> Stream:
        net_stream = await self._new_stream(peer)
        try:
            stream = wrap(net_stream, protocol)
            assert stream is not None
            await select_protocol(stream, protocol)
            net_stream.set_protocol(protocol)
        except BaseException:
            await reset(net_stream)
            raise
        return stream

    async def _new_stream(self, peer: NodeId) -> Any:
        peer_id = peer_id_of(peer)
        self._check_room(peer_id)
        try:
            return await self._swarm.new_stream(peer_id)
        except (BaseLibp2pError, OSError) as error:
            raise PeerUnreachable(f"the connection to {peer.hex()} ended: {error}") from error

    def _check_room(self, peer_id: ID) -> None:
        """Raise `Busy` if every connection to the peer has all its streams open; the library would wait for ever."""
        connections = [connection.muxed_conn for connection in self._swarm.get_connections(peer_id)]
        if connections and all(map(is_full, connections)):
            raise Busy(f"all streams to {node_id_of(peer_id)!r} are open")

    async def connect(self, peer: NodeId, *, addresses: Sequence[str], deadline_s: float = 10.0) -> None:
        """Have a connection to `peer`, dialling `addresses` and what the address book knows. Concurrent calls share
        one dial. Raise `PeerUnreachable`, or `Busy` when this node has all its connections.

        Addresses are dialled one by one through `dial_addr`: the library's `dial_peer` refuses for 60 s after one
        failure, tries a single TCP address, and waits 250 ms even when it succeeds at once.
        """
        peer_id = peer_id_of(peer)
        if peer == self.node_id:
            raise PeerUnreachable("a node does not dial itself")
        with trio.move_on_after(max(deadline_s, 0)):
            async with self._only_dial(peer):
                if not self._is_connected(peer_id):
                    await self._dial(peer_id, self._known(peer_id, addresses))
                    await self._close_dead(peer_id)
            return
        raise PeerUnreachable(f"{peer.hex()} did not answer within {deadline_s:.1f} s")

    @asynccontextmanager
    async def _only_dial(self, peer: NodeId) -> AsyncIterator[None]:
        """Let one task at a time dial this peer."""
        lock = self._dials.setdefault(peer, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():  # nobody waited: a lock with waiters passes to the next of them at once
                self._dials.pop(peer, None)

    def _known(self, peer_id: ID, addresses: Sequence[str]) -> list[Multiaddr]:
        """Return what may be dialled: what the caller knows first, then the library's address book."""
        given = [address for text in addresses if (address := parse_address(text)) is not None]
        if given:
            self._swarm.peerstore.add_addrs(peer_id, given, ADDRESS_LIFE_S)
        try:
            booked = self._swarm.peerstore.addrs(peer_id)
        except PeerStoreError:
            booked = []
        known = list(dict.fromkeys([*given, *booked]))
        return [address for address in known if self._swarm.transport_manager.transport_for_dialing(address)]

    async def _dial(self, peer_id: ID, addresses: Sequence[Multiaddr]) -> None:
        """Dial all addresses, each a little after the one before; the first success ends the others."""
        if len(self._swarm.get_connections()) >= self._limits.connections_max:
            raise Busy("this node has all the connections that it may have")
        failures: list[str] = []
        failed = trio.Event()
        async with trio.open_nursery() as nursery:

            async def attempt(address: Multiaddr, failed: trio.Event) -> None:
                try:
                    await self._swarm.dial_addr(address, peer_id)
                except Exception as error:  # the border: a hostile peer's handshake chooses what the library raises
                    failures.append(f"{address}: {say_cause(error)}")
                    failed.set()
                else:
                    nursery.cancel_scope.cancel()

            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed)
                with trio.move_on_after(STAGGER_S):
                    await failed.wait()
        if not self._is_connected(peer_id):
            raise PeerUnreachable("; ".join(failures) or f"no address of {peer_id} is known")
        self._swarm.unblock_peer(peer_id)  # for the dials that the DHT makes by itself

    def _is_connected(self, peer_id: ID) -> bool:
        return any(map(is_alive, self._swarm.get_connections(peer_id)))

    async def _close_dead(self, peer_id: ID) -> None:
        """Take connections that have ended out of the library's table, which still offers them for new streams."""
        for connection in self._swarm.get_connections(peer_id):
            if not is_alive(connection):
                with shielded(CLOSING_S):
                    await connection.close()

    async def disconnect(self, peer: NodeId) -> None:
        """Close every connection to `peer`; what was queued has a second to leave."""
        await self._swarm.close_peer(peer_id_of(peer))

    def connected(self) -> frozenset[NodeId]:
        """Return the nodes that a live connection leads to; peers with other kinds of keys are left out."""
        live = (node_id_of(peer_id) for peer_id in list(self._swarm.connections) if self._is_connected(peer_id))
        return frozenset(node_id for node_id in live if node_id is not None)

    def forget(self, peer: NodeId) -> None:
        """Drop the known addresses of a peer, as after a failed dial: it may have moved."""
        self._swarm.peerstore.clear_addrs(peer_id_of(peer))
        self._swarm.unblock_peer(peer_id_of(peer))


@contextmanager
def counted(counter: Counter[Any], key: Any) -> Iterator[None]:
    """Count one more of `key` for as long as the block runs."""
    counter[key] += 1
    try:
        yield
    finally:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]


def wrap(net_stream: Any, protocol: str) -> Stream | None:
    """Return our view of a library's stream; None if the peer's identity is not an Ed25519 key."""
    muxed = net_stream.muxed_stream
    inner = muxed.inner if isinstance(muxed, WatchedStream) else muxed
    peer = node_id_of(inner.muxed_conn.peer_id)
    if peer is None:
        return None
    channel: Channel = inner if isinstance(inner, MuxStream) else YamuxChannel(inner)
    return Stream(net_stream, channel, peer, protocol)


def is_alive(connection: Any) -> bool:
    """Return whether bytes can still be sent on one of the library's connections."""
    return not connection.is_closed and not connection.muxed_conn.secured_conn.is_broken


def is_full(muxed_conn: Any) -> bool:
    """Return whether no further stream can be opened on this connection."""
    if isinstance(muxed_conn, Mux):
        return muxed_conn.is_full
    return bool(muxed_conn.stream_backlog_semaphore.value == 0)


async def select_protocol(stream: Stream, protocol: str) -> None:
    """Negotiate by multistream-select, both messages at once. Raise `ProtocolUnsupported`, `StreamBroken`, `Busy`."""
    await stream.send(delimited(MULTISTREAM), delimited(protocol))
    greeting = await receive_delimited(stream)
    if greeting != MULTISTREAM:
        raise StreamBroken(f"the peer negotiates by {greeting[:40]!r}")
    answer = await receive_delimited(stream)
    if answer != protocol:
        raise ProtocolUnsupported(f"{stream.peer.hex()} does not speak {protocol}")


def delimited(text: str) -> bytes:
    """Return a multistream message: its length as a varint, the text, a newline."""
    message = text.encode() + b"\n"
    assert len(message) < 128, "protocol names are short, so their length is one byte"
    return bytes([len(message)]) + message


async def receive_delimited(stream: Stream) -> str:
    """Receive one multistream message of at most MULTISTREAM_BYTES_MAX bytes."""
    size = (await stream.receive_exactly(1))[0]
    if size >= 128:
        size = size - 128 + 128 * (await stream.receive_exactly(1))[0]
    if not 0 < size <= MULTISTREAM_BYTES_MAX:
        raise StreamBroken(f"a multistream message of {size} bytes")
    return (await stream.receive_exactly(size)).decode(errors="replace").removesuffix("\n")


def parse_address(text: str) -> Multiaddr | None:
    """Return a multiaddr without its /p2p/… end; None if the text is not one."""
    try:
        return Multiaddr(text.split("/p2p/")[0])
    except Exception:  # the border: the parser raises whatever the part that it chokes on raises
        return None


def say_cause(error: BaseException) -> str:
    """Return the cause at the bottom of the wrappers of library and trio, which a user can act on, in its own words."""
    while True:
        if isinstance(error, BaseExceptionGroup):  # one for each attempt: there is one address
            error = error.exceptions[0]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


@asynccontextmanager
async def open_network(*, seed: bytes, listen: Sequence[str], limits: Limits | None = None) -> AsyncIterator[Network]:
    """Run the host of the node whose key is `seed` (32 bytes), listening on `listen`; () only dials.

    Raise `NetworkError` naming the address that cannot be listened on. On leaving, everything is closed. What the block
    raises leaves as it is, not inside the groups of the nurseries in between.
    """
    assert len(seed) == KEY_BYTES
    mend_library()
    limits = limits or Limits()
    listen_on = [must_parse(text) for text in listen]
    sole: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            transport = Tcp()
            host = build_host(create_new_key_pair(seed), transport, nursery, limits)
            async with run_host(host, listen_on):
                check_listening(host.get_network(), listen_on, transport)
                yield Network(host, raise_fence(host, limits), limits)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        sole = sole_exception(group)
    if isinstance(sole, BaseLibp2pError):
        raise NetworkError(f"the host ended: {sole}") from sole
    if sole is not None:
        raise sole


@asynccontextmanager
async def run_host(host: Any, listen_on: Sequence[Multiaddr]) -> AsyncIterator[None]:
    """Run the host for the block, and close it: leaving `host.run` alone would leave its listener open."""
    async with host.run(listen_addrs=listen_on):
        await host.get_network().auto_connector.stop()
        try:
            yield
        finally:
            await close_host(host)


def raise_fence(host: Any, limits: Limits) -> Fence:
    """Put the fence between the swarm and the host's negotiation of protocols."""
    fence = Fence(limits.streams_per_peer, limits.foreign_idle_s)
    swarm = host.get_network()
    swarm.set_stream_handler(fence.around(swarm.common_stream_handler))
    swarm.register_notifee(YamuxGuard())
    return fence


def sole_exception(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the exception inside nested groups of one; the group itself where it holds several."""
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    return inner


def must_parse(text: str) -> Multiaddr:
    address = parse_address(text)
    if address is None:
        raise NetworkError(f"cannot listen on {text!r}: not a multiaddr such as /ip4/0.0.0.0/tcp/4001")
    return address


def check_listening(swarm: Any, listen_on: Sequence[Multiaddr], transport: Tcp) -> None:
    """Raise `NetworkError` for the first address that is not listened on: the library only logs it."""
    for address in listen_on:
        listener = swarm.listeners.get(str(address))
        if listener is None or not listener.get_addrs():
            why = transport.listen_failures.get(str(address), "no transport for it")
            raise NetworkError(f"cannot listen on {address}: {why}")


def build_host(key_pair: KeyPair, transport: Tcp, nursery: trio.Nursery, limits: Limits) -> Any:
    """Make the host: TCP, noise, our muxer and yamux. No plaintext, secio or mplex, which the library would add."""
    session_limits = SessionLimits(queue_bytes_max=limits.queue_bytes_max)
    mux_limits = MuxLimits(window_bytes=limits.window_bytes, keepalive_s=limits.keepalive_s)
    noise = NoiseTransport(key_pair, create_static_key_pair().private_key, nursery, session_limits)
    host = new_host(
        key_pair=key_pair,
        transports=[transport],
        sec_opt={NOISE_ID: noise},
        muxer_opt={MUX_ID: partial(Mux, limits=mux_limits, budget=Budget(limits.windows_bytes_max)), YAMUX_ID: Yamux},
        connection_config=ConnectionConfig(
            max_connections=limits.connections_max,
            high_watermark=limits.connections_max * 4 // 5,
            low_watermark=limits.connections_max // 10,
            min_connections=limits.connections_max // 10,  # kept from inbound connections, for our own dials
            max_connections_per_peer=1,  # with 1, the library's own dials end at their first success
            inbound_upgrade_timeout=UPGRADE_S,
            outbound_upgrade_timeout=UPGRADE_S,
            inbound_stream_protocol_negotiation_timeout=NEGOTIATION_S,
            outbound_stream_protocol_negotiation_timeout=NEGOTIATION_S,
        ),
        resource_manager=ResourceManager(
            limits=ResourceLimits(max_connections=UNCOUNTED, max_streams=UNCOUNTED, max_memory_mb=UNCOUNTED),
            enable_circuit_breaker=False,  # five refusals would refuse everybody for a minute
            enable_graceful_degradation=False,
            enable_metrics=False,
        ),
    )
    host.get_network().retry_config = RetryConfig(max_retries=0)  # who dials decides whether to try again
    return host


async def close_host(host: Any) -> None:
    """Close all connections at once, then the host with its listeners, which leaving `host.run` would leave open."""
    with shielded(CLOSING_S):
        async with trio.open_nursery() as nursery:
            for connection in host.get_network().get_connections():
                nursery.start_soon(connection.close)
    with shielded(CLOSING_S):
        await host.close()
