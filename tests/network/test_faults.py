"""The library's faults, S1 to S10 and B1 to B4 of p2pnode/network/host.py: each test is red without its mend."""

import math
import os
import socket
from contextlib import suppress

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.exceptions import StreamFailure
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.network.exceptions import SwarmException
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.stream_muxer.mplex.mplex import MPLEX_PROTOCOL_ID, Mplex
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

from economics.crypto import NodeId
from p2pnode.errors import Busy, NetworkError, PeerUnreachable, StreamBroken
from p2pnode.network import host as module
from p2pnode.network.host import Limits, Network, open_network, peer_id_of
from p2pnode.network.mux import PROTOCOL_ID as MUX_ID
from p2pnode.network.stream import Patience, Stream
from p2pnode.network.tcp import TcpStream
from tests.network.conftest import (
    ECHO,
    HOLD,
    LOCAL,
    PATIENT_S,
    SINK,
    assert_echoes,
    echo,
    hold_until,
    nodes,
    pair,
    seed,
    stock_addresses,
    stock_connect,
    stock_host,
    stock_id,
    until,
)

KAD = "/ipfs/kad/1.0.0"
MIB = 1024 * 1024


async def test_s1_a_closed_connection_gives_its_slot_back() -> None:
    async with nodes(2, Limits(connections_max=8)) as (server, client):
        server.serve(ECHO, echo)
        for _ in range(20):
            await client.connect(server.node_id, addresses=server.addresses())
            await assert_echoes(client, server.node_id)
            await client.disconnect(server.node_id)


async def test_s2_a_handler_that_raises_ends_its_stream_and_not_the_node() -> None:
    async def fail(stream: Stream) -> None:
        raise ValueError("a fault of ours")

    async with pair() as (server, client):
        server.serve(ECHO, echo)
        server.serve("/test/fail/1", fail)
        async with await client.open_stream(server.node_id, "/test/fail/1") as stream:
            with pytest.raises(StreamBroken):
                await stream.receive_exactly(1)
        await assert_echoes(client, server.node_id)
        assert server.faults == {"handlers that raised": 1}


async def test_s2_a_library_handler_that_raises_ends_its_stream_and_not_the_node() -> None:
    async def fail(stream: object) -> None:
        raise ValueError("a fault of the library's")

    async with pair() as (server, client):
        server.serve(ECHO, echo)
        server.host.set_stream_handler("/test/fail/1", fail)
        async with await client.open_stream(server.node_id, "/test/fail/1") as stream:
            with pytest.raises(StreamBroken):
                await stream.receive_exactly(1)
        await assert_echoes(client, server.node_id)
        assert server.faults == {"library handlers": 1}


async def swap(stream: Stream, size: int) -> None:
    """Send and receive `size` bytes at once."""
    data = bytes(MIB)
    buffer = memoryview(bytearray(MIB))

    async def send_all() -> None:
        for _ in range(size // MIB):
            await stream.send(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all)
        for _ in range(size // MIB):
            await stream.receive_into(buffer)


@pytest.fixture
def _narrow_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give sockets small buffers, as a slow line would: writers meet a full one at once."""
    usual = TcpStream.__init__

    def narrow(self: TcpStream, stream: trio.SocketStream) -> None:
        usual(self, stream)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)

    monkeypatch.setattr(TcpStream, "__init__", narrow)


@pytest.mark.usefixtures("_narrow_sockets")
async def test_s3_bulk_both_ways_on_streams_of_both_sides_does_not_hang() -> None:
    size = 4 * MIB
    finished: list[NodeId] = []

    async def serve_swap(stream: Stream) -> None:
        await swap(stream, size)
        finished.append(stream.peer)

    async def ask_swap(network: Network, peer: NodeId) -> None:
        async with await network.open_stream(peer, SINK) as stream:
            await swap(stream, size)

    async with pair() as (left, right):
        left.serve(SINK, serve_swap)
        right.serve(SINK, serve_swap)
        with trio.fail_after(PATIENT_S):
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(ask_swap, left, right.node_id)
                    nursery.start_soon(ask_swap, right, left.node_id)
            await until(lambda: len(finished) == 4)


@pytest.mark.usefixtures("_narrow_sockets")
async def test_s4_a_cancelled_send_leaves_the_connection_and_the_other_streams_alone() -> None:
    release = trio.Event()
    async with pair() as (server, client):
        server.serve(ECHO, echo)
        server.serve(HOLD, hold_until(release))
        async with await client.open_stream(server.node_id, ECHO) as other:
            for index in range(8):
                stream = await client.open_stream(server.node_id, HOLD)
                with trio.move_on_after(0.001 * index) as scope:
                    await stream.send(bytes(64 * MIB))
                assert scope.cancelled_caught
            await other.send(b"still here")
            assert await other.receive_exactly(10) == b"still here"
        release.set()


@pytest.mark.parametrize("is_stock", [False, True])
async def test_s5_a_reset_is_never_taken_for_a_clean_end(is_stock: bool) -> None:
    async def give_up(stream: Stream) -> None:
        await stream.send(b"half an answer")
        await stream.receive_exactly(1)
        await stream.reset()

    async def stock_give_up(stream: object) -> None:
        await stream.write(b"half an answer")  # type: ignore[attr-defined]
        await stream.read(1)  # type: ignore[attr-defined]
        await stream.reset()  # type: ignore[attr-defined]

    async with nodes(2) as (server, client), stock_host(9) as foreign:
        server.serve(SINK, give_up)
        foreign.set_stream_handler(SINK, stock_give_up)
        peer, addresses = (
            (stock_id(foreign), stock_addresses(foreign)) if is_stock else (server.node_id, server.addresses())
        )
        async with await client.open_stream(peer, SINK, addresses=addresses) as stream:
            assert await stream.receive_exactly(14) == b"half an answer"
            await stream.send(b"!")
            with pytest.raises(StreamBroken):
                await stream.receive_some(1)


async def test_s6_a_reader_that_pauses_for_six_seconds_does_not_fail_the_writer() -> None:
    size = 20 * MIB  # more than the library's largest window

    async def read_late(stream: Stream) -> None:
        stream.patience = Patience(idle_s=PATIENT_S)
        await trio.sleep(6)
        await stream.receive_exactly(size)
        await stream.send(b"done")

    async def write(client: Network, peer: NodeId) -> None:
        async with await client.open_stream(peer, SINK) as stream:
            stream.patience = Patience(idle_s=PATIENT_S)
            await stream.send(bytes(size))
            assert await stream.receive_exactly(4) == b"done"

    async def stock_read_late(stream: object) -> None:
        await trio.sleep(6)
        left = size
        while left:
            left -= len(await stream.read(MIB))  # type: ignore[attr-defined]
        await stream.write(b"done")  # type: ignore[attr-defined]

    async with pair() as (server, client), stock_host(9) as foreign:
        server.serve(SINK, read_late)
        foreign.set_stream_handler(SINK, stock_read_late)
        await client.connect(stock_id(foreign), addresses=stock_addresses(foreign))
        with trio.fail_after(PATIENT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, client, server.node_id)
                nursery.start_soon(write, client, stock_id(foreign))


@pytest.mark.parametrize("is_stock", [False, True])
async def test_s7_one_stream_too_many_is_refused_at_once(is_stock: bool) -> None:
    release = trio.Event()

    async def stock_hold(stream: object) -> None:
        await release.wait()
        await stream.close()  # type: ignore[attr-defined]

    async with nodes(2, Limits(streams_per_peer=1000)) as (server, client), stock_host(9) as foreign:
        server.serve(HOLD, hold_until(release), streams_per_peer=1000)
        foreign.set_stream_handler(HOLD, stock_hold)
        peer, addresses = (
            (stock_id(foreign), stock_addresses(foreign)) if is_stock else (server.node_id, server.addresses())
        )
        await client.connect(peer, addresses=addresses)
        await until(lambda: not any(c.get_streams() for c in client.host.get_network().get_connections()))  # identify
        streams = [await client.open_stream(peer, HOLD) for _ in range(256)]
        with trio.fail_after(PATIENT_S), pytest.raises(Busy):
            await client.open_stream(peer, HOLD)
        release.set()
        for stream in streams:
            assert await stream.receive_some(1) == b""
            await stream.close()
        await client.open_stream(peer, HOLD)


async def test_s8_a_peer_that_could_not_be_reached_is_dialled_again_at_once() -> None:
    async with nodes(1) as (client,):
        late = peer_id_of(NodeId(create_new_key_pair(seed(2)).public_key.to_bytes()))
        dead = free_address()
        with pytest.raises(SwarmException):  # as the library's own services dial; it now refuses this peer for 60 s
            await client.host.connect(PeerInfo(late, [Multiaddr(dead)]))
        async with open_network(seed=seed(2), listen=[LOCAL]) as server:
            server.serve(ECHO, echo)
            with pytest.raises(PeerUnreachable):
                await client.connect(server.node_id, addresses=[dead])
            await client.connect(server.node_id, addresses=[dead, *server.addresses()])
            await assert_echoes(client, server.node_id)


async def test_s8_a_dial_does_not_wait_when_it_has_succeeded() -> None:
    async with nodes(2) as (server, client):
        spent_s = math.inf
        with trio.fail_after(PATIENT_S):
            while spent_s > 0.2:  # the library's own dial takes 0.25 s at least
                start = trio.current_time()
                await client.connect(server.node_id, addresses=server.addresses())
                spent_s = trio.current_time() - start
                await client.disconnect(server.node_id)


def free_address() -> str:
    """Return the address of a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"/ip4/127.0.0.1/tcp/{probe.getsockname()[1]}"


async def test_s9_a_port_in_use_is_an_error_that_names_it() -> None:
    async with nodes(1) as (first,):
        (taken,) = first.addresses()
        with pytest.raises(NetworkError, match=taken):
            async with open_network(seed=seed(2), listen=[taken]):
                pytest.fail("two processes would share the port")


@pytest.mark.parametrize("address", ["/ip4/192.0.2.1/tcp/4001", "/ip4/127.0.0.1/udp/1", "/ip4/127.0.0.1/tcp/x", "?"])
async def test_s9_an_address_that_cannot_be_listened_on_is_an_error_that_names_it(address: str) -> None:
    with pytest.raises(NetworkError) as caught:
        async with open_network(seed=seed(1), listen=[LOCAL, address]):
            pytest.fail("it listens on less than it was told to")
    assert address in str(caught.value)


async def test_s10_leaving_closes_the_listener_and_leaves_nothing_behind() -> None:
    async def open_and_leave() -> str:
        async with nodes(2) as (server, client):
            await client.connect(server.node_id, addresses=server.addresses())
            return server.addresses()[0]

    await open_and_leave()
    before = resources()
    for _ in range(3):
        address = await open_and_leave()
    with pytest.raises(OSError, match="connect"):
        await trio.open_tcp_stream("127.0.0.1", int(address.rsplit("/", 1)[1]))
    await until(lambda: all(now <= then for now, then in zip(resources(), before, strict=True)))


def resources() -> tuple[int, int]:
    """Return the open file descriptors and the living tasks."""
    return len(os.listdir("/proc/self/fd")), trio.lowlevel.current_statistics().tasks_living


async def test_s11_the_library_does_not_dial_by_itself() -> None:
    async with pair() as (server, client):
        await client.disconnect(server.node_id)
        connector = client.host.get_network().auto_connector
        connector._get_candidate_peers = lambda: pytest.fail("it looks for somebody to dial")
        await connector.maybe_connect()


async def test_b1_a_protocol_name_that_is_not_utf8_ends_its_stream_and_not_the_node() -> None:
    async with nodes(1) as (server,), stock_host(9) as foreign:
        await stock_connect(foreign, server)
        stream = await foreign.get_network().new_stream(peer_id_of(server.node_id))
        await stream.write(encode_varint_prefixed(b"/multistream/1.0.0\n") + encode_varint_prefixed(b"\xff\xfe\n"))
        await until_ended(stream)
        await foreign_echo(foreign, server)


async def test_b1_junk_on_a_gossip_stream_ends_its_stream_and_not_the_node() -> None:
    async with nodes(1) as (server,), stock_host(9) as foreign:
        router = GossipSub(["/meshsub/1.1.0"], degree=6, degree_low=4, degree_high=12, heartbeat_interval=1)
        pubsub = Pubsub(server.host, router)
        async with background_trio_service(pubsub), background_trio_service(router):
            await pubsub.wait_until_ready()
            await stock_connect(foreign, server)
            stream = await foreign.new_stream(peer_id_of(server.node_id), ["/meshsub/1.1.0"])
            await stream.write(encode_varint_prefixed(b"\xff" * 100))
            await until(lambda: server.faults["library handlers"] == 1)
            await foreign_echo(foreign, server)


async def test_b1_a_peer_that_answers_our_negotiation_with_junk_is_only_unsupported_or_broken() -> None:
    async def never(stream: object) -> None:
        pytest.fail("nothing can be negotiated")

    async with nodes(1) as (client,), stock_host(9) as foreign:

        async def junk(stream: object) -> None:
            await stream.write(encode_varint_prefixed(b"\xff\xfe\n") * 2)  # type: ignore[attr-defined]

        foreign.get_network().set_stream_handler(junk)
        with pytest.raises(NetworkError):
            await client.open_stream(stock_id(foreign), ECHO, addresses=stock_addresses(foreign))
        with pytest.raises(StreamFailure):  # what the library's own services expect; UnicodeDecodeError ends them
            await client.host.new_stream(foreign.get_id(), [ECHO])


async def test_b1_a_negotiation_of_any_length_is_not_buffered_for_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UPGRADE_S", math.inf)
    async with nodes(1) as (server,):
        stream = await trio.open_tcp_stream("127.0.0.1", int(server.addresses()[0].rsplit("/", 1)[1]))
        await stream.send_all(encode_varint_prefixed(b"/multistream/1.0.0\n") + b"\x80\x80\x80\x80\x04" + bytes(4096))
        with trio.fail_after(PATIENT_S):  # not for its handshake, which never times out here
            while await receive(stream):
                pass


async def receive(stream: trio.SocketStream) -> bytes:
    try:
        return bytes(await stream.receive_some())
    except trio.BrokenResourceError:
        return b""


async def until_ended(stream: object) -> None:
    """Wait until the library's stream is reset or at its end."""
    with trio.fail_after(PATIENT_S), suppress(BaseLibp2pError):
        while True:
            await stream.read(1024)  # type: ignore[attr-defined]


async def foreign_echo(foreign: object, server: Network) -> None:
    """The node still answers a stock peer."""
    server.serve(ECHO, echo)
    stream = await foreign.new_stream(peer_id_of(server.node_id), [ECHO])  # type: ignore[attr-defined]
    await stream.write(b"are you there?")
    with trio.fail_after(PATIENT_S):
        assert await stream.read(14) == b"are you there?"


async def test_b2_sockets_that_never_speak_lose_their_slots_after_three_seconds() -> None:
    async with nodes(2, Limits(connections_max=4)) as (server, client):
        port = int(server.addresses()[0].rsplit("/", 1)[1])
        opened = trio.current_time()
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(4)]
        with trio.fail_after(PATIENT_S):
            while not client.connected():
                try:
                    await client.connect(server.node_id, addresses=server.addresses())
                except PeerUnreachable:
                    await trio.sleep(0.1)
        assert trio.current_time() - opened >= module.UPGRADE_S, "the four held all slots until then"
        for stream in silent:
            await stream.aclose()


async def test_b3_only_noise_and_two_muxers_are_offered() -> None:
    async with nodes(1) as (server,):
        upgrader = server.host.get_network().upgrader
        assert list(upgrader.security_multistream.transports) == ["/noise"]
        assert list(upgrader.muxer_multistream.transports) == [MUX_ID, "/yamux/1.0.0"]


async def test_b3_a_peer_that_speaks_plaintext_or_mplex_only_is_not_connected() -> None:
    plain = {PLAINTEXT_PROTOCOL_ID: InsecureTransport(create_new_key_pair(seed(9)))}
    async with nodes(1) as (server,):
        for options in ({"sec_opt": plain}, {"muxer_opt": {MPLEX_PROTOCOL_ID: Mplex}}):
            async with stock_host(9, **options) as foreign:
                with pytest.raises(SwarmException):
                    await stock_connect(foreign, server)
        assert server.connected() == frozenset()


async def test_b4_a_silent_dht_stream_is_reset() -> None:
    async with pair(Limits(foreign_idle_s=1.5)) as (server, client):
        dht = KadDHT(server.host, DHTMode.SERVER)
        async with background_trio_service(dht):
            async with await client.open_stream(server.node_id, KAD) as stream:
                with trio.fail_after(PATIENT_S), pytest.raises(StreamBroken):
                    await stream.receive_some(1)
            async with await client.open_stream(server.node_id, KAD) as stream:
                with trio.fail_after(PATIENT_S), pytest.raises(StreamBroken):
                    await drip(stream)
            await assert_dht_answers(client, server.node_id)


async def drip(stream: Stream) -> None:
    """Send one byte of a long message now and then, for ever."""
    await stream.send(b"\xff\x7f")
    while True:
        await trio.sleep(0.1)
        await stream.send(b"x")


async def assert_dht_answers(client: Network, peer: NodeId) -> None:
    question = Message(type=Message.MessageType.FIND_NODE, key=b"some key").SerializeToString()
    async with await client.open_stream(peer, KAD) as stream:
        await stream.send(encode_varint_prefixed(question))
        low, high = await stream.receive_exactly(2)
        answer = Message.FromString(await stream.receive_exactly(low - 128 + 128 * high))
    assert answer.type == Message.MessageType.FIND_NODE
