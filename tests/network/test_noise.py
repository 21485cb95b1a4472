"""Noise sessions: messages are cut and joined without losing a byte, and the fuse blows."""

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.io.exceptions import ConnectionClosedError

from p2pnode.errors import StreamBroken
from p2pnode.network.host import Limits
from p2pnode.network.mux import Kind, Mux
from p2pnode.network.noise import JOIN_MAX, PLAINTEXT_MAX, plan_messages
from p2pnode.network.stream import Stream
from tests.network.conftest import ECHO, assert_echoes, echo, nodes, pair, until

SIZES = st.sampled_from([0, 1, 9, JOIN_MAX - 1, JOIN_MAX, JOIN_MAX + 1, PLAINTEXT_MAX, PLAINTEXT_MAX + 1, 300_000])


@settings(deadline=None, derandomize=True)
@given(st.lists(SIZES, max_size=12))
def test_messages_hold_the_same_bytes_in_order_and_each_fits(sizes: list[int]) -> None:
    parts = [bytes([index + 1]) * size for index, size in enumerate(sizes)]
    messages = plan_messages(parts)
    assert b"".join(messages) == b"".join(parts)
    assert all(0 < len(message) <= PLAINTEXT_MAX for message in messages)


async def test_a_peer_that_lets_control_frames_pile_up_is_cut_off_by_the_fuse() -> None:
    async with pair(Limits(queue_bytes_max=1024 * 1024)) as (server, client):
        mux = mux_of(client)
        for _ in range(16):  # no checkpoint in between, so nothing leaves the queue
            mux.send_control(Kind.PING, 0, 0)
            mux._session.queue(bytes(64 * 1024 - 50))
        with pytest.raises(ConnectionClosedError):
            mux._session.queue(bytes(64 * 1024))
        await until(lambda: not client.connected() and not server.connected())


async def test_what_a_peer_sent_before_it_stopped_reading_is_still_received(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(data: bytes) -> None:
        raise ConnectionClosedError("the peer has closed its socket")

    release = trio.Event()

    async def answer(stream: Stream) -> None:
        await release.wait()
        await stream.send(b"the answer")

    async with pair() as (server, client):
        server.serve(ECHO, answer)
        async with await client.open_stream(server.node_id, ECHO) as stream:
            monkeypatch.setattr(mux_of(client)._session._conn, "write", fail)
            mux_of(client).send_control(Kind.PING, 0, 0)
            await trio.testing.wait_all_tasks_blocked()
            release.set()
            assert await stream.receive_exactly(10) == b"the answer"
            with pytest.raises(StreamBroken):
                await stream.send(b"x")


async def test_a_forged_message_ends_the_connection_and_not_the_node() -> None:
    async with nodes(3) as (server, liar, client):
        server.serve(ECHO, echo)
        await liar.connect(server.node_id, addresses=server.addresses())
        session = mux_of(liar)._session
        session._encrypt_nonce += 1
        session.queue(b"not what the peer expects")
        await until(lambda: not server.connected())
        await client.connect(server.node_id, addresses=server.addresses())
        await assert_echoes(client, server.node_id)


@pytest.mark.parametrize(
    "junk",
    [b"", b"\x00", b"\x00\x01x", b"\xff" * 70_000, b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\0\x20" + b"x" * 40],
)
async def test_junk_before_the_handshake_costs_the_socket_only(junk: bytes) -> None:
    async with nodes(2) as (server, client):
        server.serve(ECHO, echo)
        stream = await trio.open_tcp_stream("127.0.0.1", int(server.addresses()[0].rsplit("/", 1)[1]))
        async with stream:
            await stream.send_all(junk)
            await stream.send_eof()
            await client.connect(server.node_id, addresses=server.addresses())
            await assert_echoes(client, server.node_id)


def mux_of(network: object) -> Mux:
    """Return the muxer of the node's only connection."""
    (connection,) = network.host.get_network().get_connections()  # type: ignore[attr-defined]
    mux = connection.muxed_conn
    assert isinstance(mux, Mux)
    return mux


def test_kinds_are_the_wire_and_must_not_change() -> None:
    assert {kind.name: kind.value for kind in Kind} == {
        "OPEN": 0, "DATA": 1, "WINDOW": 2, "CLOSE": 3, "RESET": 4, "PING": 5, "PONG": 6, "BYE": 7,
    }  # fmt: skip
