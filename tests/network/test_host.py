"""The network as the project uses it, and stock libp2p peers as it meets them: noise and yamux, both directions."""

import math
import os
import subprocess
import sys
from contextlib import suppress

import pytest
import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.ping import PingService

from economics.crypto import NodeId
from p2pnode.errors import PeerUnreachable, ProtocolUnsupported, TooSlow
from p2pnode.network import host as module
from p2pnode.network.host import node_id_of, open_network, peer_id_of
from p2pnode.network.mux import Mux
from p2pnode.network.stream import Stream
from tests.network.conftest import (
    ECHO,
    HOLD,
    LOCAL,
    PATIENT_S,
    assert_echoes,
    echo,
    hold_until,
    node_id,
    nodes,
    pair,
    seed,
    stock_addresses,
    stock_connect,
    stock_host,
    stock_id,
    until,
)


def test_a_node_id_and_its_peer_id_are_one_key() -> None:
    assert node_id_of(peer_id_of(node_id(5))) == node_id(5)


def test_what_is_no_key_is_unreachable() -> None:
    with pytest.raises(PeerUnreachable):
        peer_id_of(NodeId(b"too short"))


async def test_two_nodes_know_each_other_by_their_keys_and_speak_our_muxer() -> None:
    peers: list[NodeId] = []

    async def note_peer(stream: Stream) -> None:
        peers.append(stream.peer)

    async with pair() as (server, client):
        server.serve(ECHO, note_peer)
        async with await client.open_stream(server.node_id, ECHO) as stream:
            assert stream.peer == server.node_id == node_id(1)
            assert stream.protocol == ECHO
            assert await stream.receive_some(1) == b""
        assert peers == [client.node_id]
        assert client.connected() == {server.node_id}
        (connection,) = client.host.get_network().get_connections()
        assert isinstance(connection.muxed_conn, Mux)


async def test_a_protocol_that_the_peer_does_not_serve_is_unsupported() -> None:
    async with pair() as (server, client):
        with pytest.raises(ProtocolUnsupported):
            await client.open_stream(server.node_id, "/test/other/1")


async def test_a_peer_without_addresses_or_with_dead_ones_is_unreachable() -> None:
    async with open_network(seed=seed(1), listen=[]) as client:
        assert client.addresses() == ()
        for addresses in ([], ["/ip4/127.0.0.1/tcp/1"], ["not an address"], ["/ip4/127.0.0.1/udp/1/quic-v1"]):
            with pytest.raises(PeerUnreachable):
                await client.open_stream(node_id(2), ECHO, addresses=addresses)
        with pytest.raises(PeerUnreachable):
            await client.connect(client.node_id, addresses=[])
        assert client._dials == {}


async def test_why_a_dial_failed_is_said_in_the_system_s_words() -> None:
    async with open_network(seed=seed(1), listen=[]) as client:
        with pytest.raises(PeerUnreachable, match=r"^/ip4/127\.0\.0\.1/tcp/1: Connection refused$"):
            await client.connect(node_id(2), addresses=["/ip4/127.0.0.1/tcp/1"])


async def test_a_peer_with_another_key_than_asked_for_is_unreachable() -> None:
    async with nodes(2) as (server, client):
        with pytest.raises(PeerUnreachable):
            await client.connect(node_id(99), addresses=server.addresses())


async def test_the_living_address_is_found_among_dead_ones() -> None:
    async with nodes(2) as (server, client):
        addresses = [
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/127.0.0.1/tcp/2",
            f"{server.addresses()[0]}/p2p/{server.host.get_id()}",
        ]
        await client.connect(server.node_id, addresses=addresses)
        assert client.connected() == {server.node_id}


async def test_a_socket_that_accepts_and_never_speaks_is_unreachable_by_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "UPGRADE_S", math.inf)
    async with open_network(seed=seed(1), listen=[]) as client:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        address = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"
        with pytest.raises(PeerUnreachable), trio.fail_after(PATIENT_S):
            await client.connect(node_id(2), addresses=[address], deadline_s=0.3)
        await listener.aclose()


async def test_concurrent_openings_share_one_connection() -> None:
    async with nodes(2) as (server, client):
        server.serve(ECHO, echo, streams_per_peer=20)
        streams: list[Stream] = []

        async def open_one() -> None:
            streams.append(await client.open_stream(server.node_id, ECHO, addresses=server.addresses()))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(open_one)
        assert len(streams) == 20
        assert len(client.host.get_network().get_connections()) == 1


async def test_cancelled_dials_leave_nothing_counted() -> None:
    async with nodes(2) as (server, client):
        for _ in range(5):
            with trio.move_on_after(0.002):
                await client.connect(server.node_id, addresses=server.addresses())
            await client.disconnect(server.node_id)
        await until(lambda: client.host.get_network()._resource_manager._current_connections == 0)


async def test_a_restarted_peer_is_reached_at_its_new_address() -> None:
    async with nodes(1) as (client,):
        for _ in range(3):
            async with open_network(seed=seed(2), listen=[LOCAL]) as server:
                server.serve(ECHO, echo)
                client.forget(server.node_id)
                async with await client.open_stream(server.node_id, ECHO, addresses=server.addresses()) as stream:
                    await stream.send(b"a")
                    assert await stream.receive_exactly(1) == b"a"
            await until(lambda: not client.connected())


async def test_what_the_block_raises_leaves_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_network(seed=seed(1), listen=[LOCAL]):
            raise KeyError("mine")


def test_the_library_installs_no_root_handler_and_prints_nothing() -> None:
    program = """
import logging, trio
from p2pnode.errors import PeerUnreachable
from p2pnode.network.host import open_network
from tests.network.conftest import pair, echo, ECHO, node_id
async def main():
    async with pair() as (server, client):
        server.serve(ECHO, echo)
        async with await client.open_stream(server.node_id, ECHO) as stream:
            await stream.send(b"a")
        try:
            await client.connect(node_id(9), addresses=["/ip4/127.0.0.1/tcp/1"])
        except PeerUnreachable:
            pass
trio.run(main)
assert logging.getLogger().handlers == []
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert (run.stdout, run.stderr) == ("", "")


async def test_a_connection_that_proves_dead_is_replaced_at_the_next_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair() as (server, client):
        server.serve(ECHO, echo)
        (old,) = client.host.get_network().get_connections()
        usual = old.muxed_conn.open_stream

        async def open_and_die() -> object:
            stream = await usual()
            old.muxed_conn._session._break()
            return stream

        monkeypatch.setattr(old.muxed_conn, "open_stream", open_and_die)
        await assert_echoes(client, server.node_id)
        assert old not in client.host.get_network().get_connections()


# Stock peers


async def test_a_stock_peer_that_fills_our_memory_loses_its_connection() -> None:
    release = trio.Event()
    async with nodes(1) as (server,), stock_host(9) as foreign:
        server.serve(HOLD, hold_until(release))
        await stock_connect(foreign, server)
        stream = await foreign.new_stream(peer_id_of(server.node_id), [HOLD])
        with trio.move_on_after(PATIENT_S), suppress(BaseLibp2pError):
            while server.connected():
                stream.muxed_stream.send_window = 1 << 20  # a liar's: it has no credit
                await stream.write(bytes(1 << 20))
        assert not server.connected()
        release.set()


async def test_a_stock_peer_connects_identifies_and_pings_us() -> None:
    async with nodes(1) as (server,), stock_host(9) as foreign:
        server.serve(ECHO, echo)
        await stock_connect(foreign, server)
        peer_id = peer_id_of(server.node_id)
        await until(lambda: knows_protocol(foreign, peer_id))
        assert len(await PingService(foreign).ping(peer_id)) == 1
        assert server.connected() == {stock_id(foreign)}


def knows_protocol(host: object, peer_id: object) -> bool:
    store = host.get_peerstore()  # type: ignore[attr-defined]
    return ECHO in (store.get_protocols(peer_id) if peer_id in store.peer_ids() else [])


async def test_a_stock_peer_echoes_on_a_protocol_of_ours() -> None:
    data = os.urandom(600_000)
    async with nodes(1) as (server,), stock_host(9) as foreign:
        server.serve(ECHO, echo)
        await stock_connect(foreign, server)
        stream = await foreign.new_stream(peer_id_of(server.node_id), [ECHO])
        received = bytearray()
        with trio.fail_after(PATIENT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.write, data)
                while len(received) < len(data):
                    received += await stream.read(65_536)
        assert received == data


async def test_we_connect_identify_ping_and_echo_at_a_stock_peer() -> None:
    async def stock_echo(stream: object) -> None:
        while True:
            await stream.write(await stream.read(65_536))  # type: ignore[attr-defined]

    data = os.urandom(600_000)
    async with nodes(1) as (client,), stock_host(9) as foreign:
        foreign.set_stream_handler(ECHO, stock_echo)
        peer = stock_id(foreign)
        async with await client.open_stream(peer, ECHO, addresses=stock_addresses(foreign)) as stream:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send, data)
                assert await stream.receive_exactly(len(data)) == data
            await until(lambda: knows_protocol(client.host, foreign.get_id()))
            assert len(await PingService(client.host).ping(foreign.get_id())) == 1


async def test_a_stock_peer_that_never_answers_is_too_slow() -> None:
    async def say_nothing(stream: object) -> None:
        await trio.sleep_forever()

    async with nodes(1) as (client,), stock_host(9) as foreign:
        foreign.get_network().set_stream_handler(say_nothing)
        await client.connect(stock_id(foreign), addresses=stock_addresses(foreign))
        with pytest.raises(TooSlow):
            await client.open_stream(stock_id(foreign), ECHO, addresses=stock_addresses(foreign), deadline_s=0.5)


async def test_a_stock_peers_clean_end_is_a_clean_end() -> None:
    async def stock_answer(stream: object) -> None:
        await stream.write(b"answer")  # type: ignore[attr-defined]
        await stream.close()  # type: ignore[attr-defined]

    async with nodes(1) as (client,), stock_host(9) as foreign:
        foreign.set_stream_handler(ECHO, stock_answer)
        peer = stock_id(foreign)
        async with await client.open_stream(peer, ECHO, addresses=stock_addresses(foreign)) as stream:
            assert await stream.receive_exactly(6) == b"answer"
            assert await stream.receive_some(1) == b""
