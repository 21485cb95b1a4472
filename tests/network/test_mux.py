"""The muxer against a hostile peer: whatever the frames, memory is bounded and the connection ends, never the node."""

from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from p2pnode.errors import Busy, StreamBroken
from p2pnode.network.host import Limits, Network
from p2pnode.network.mux import FRAME_MAX, HEADER, WINDOW_START, Budget, Kind, Mux, MuxLimits, Violation, Why
from p2pnode.network.noise import Buffer
from p2pnode.network.stream import Stream
from tests.network.conftest import ECHO, HOLD, assert_echoes, echo, hold_until, nodes, pair, seed, until

STREAMS = 8
WINDOW = 256 * 1024


class FakeSession:
    """A session that keeps what is queued: a muxer under test needs no socket."""

    is_congested = False

    def __init__(self, is_initiator: bool) -> None:
        self.is_initiator = is_initiator
        self.queued = bytearray()

    def queue(self, *parts: Buffer) -> None:
        for part in parts:
            self.queued += part


def fake_mux(is_initiator: bool = False) -> Mux:
    session: Any = FakeSession(is_initiator)
    peer_id = ID.from_pubkey(create_new_key_pair(seed(1)).public_key)
    return Mux(session, peer_id, MuxLimits(streams_max=STREAMS, window_bytes=WINDOW), Budget(4 * WINDOW))


def frame(kind: int, stream_id: int, value: int, body: bytes = b"") -> bytes:
    return HEADER.pack(kind, stream_id, value) + body


def replies(mux: Mux) -> list[tuple[int, ...]]:
    """Return what the muxer answered so far."""
    mux._flush_replies()
    queued: Any = mux._session
    return [HEADER.unpack_from(queued.queued, at) for at in range(0, len(queued.queued), HEADER.size)]


def parked_bytes(mux: Mux) -> int:
    return sum(len(piece) for stream in mux._streams.values() for piece in stream._pieces)


IDS = st.integers(0, 24)
VALUES = st.one_of(
    st.integers(0, 3), st.sampled_from([WINDOW_START, WINDOW_START + 1, FRAME_MAX, 1 << 30, (1 << 32) - 1])
)
FRAMES = st.one_of(
    st.builds(frame, st.integers(0, 9), IDS, VALUES),
    st.builds(lambda index: frame(Kind.OPEN, 2 * index + 1, 0), st.integers(0, 12)),
    st.builds(lambda sid, body: frame(Kind.DATA, sid, len(body), body), IDS, st.binary(min_size=1, max_size=40)),
    st.builds(lambda sid, size: frame(Kind.DATA, sid, size, bytes(size)), IDS, st.integers(1, WINDOW_START)),
    st.binary(max_size=30),
)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(FRAMES, max_size=40), st.integers(1, 70_000))
def test_any_frames_leave_the_muxer_bounded_or_end_the_connection(frames: list[bytes], step: int) -> None:
    mux = fake_mux()
    wire = b"".join(frames)
    try:
        for at in range(0, len(wire), step):
            mux.feed(wire[at : at + step])
    except Violation:
        pass
    assert len(mux._streams) <= STREAMS
    assert parked_bytes(mux) <= STREAMS * WINDOW_START
    assert len(mux._partial) < HEADER.size
    assert len(replies(mux)) <= len(frames) + 4  # a frame provokes one frame at most; junk may hide a few


@pytest.mark.parametrize(
    "hostile",
    [
        frame(8, 1, 0),
        frame(255, 0, 0),
        frame(Kind.OPEN, 2, 0),
        frame(Kind.OPEN, 0, 0),
        frame(Kind.OPEN, 3, 7),
        frame(Kind.OPEN, 1, 0) * 2,
        frame(Kind.DATA, 5, 1, b"x"),
        frame(Kind.DATA, 0, 1, b"x"),
        frame(Kind.DATA, 2, 1, b"x"),
        frame(Kind.OPEN, 1, 0) + frame(Kind.DATA, 1, 0),
        frame(Kind.OPEN, 1, 0) + frame(Kind.DATA, 1, WINDOW_START + 1),
        frame(Kind.OPEN, 1, 0) + frame(Kind.DATA, 1, WINDOW_START, bytes(WINDOW_START)) + frame(Kind.DATA, 1, 1, b"x"),
        frame(Kind.OPEN, 1, 0) + frame(Kind.CLOSE, 1, 0) + frame(Kind.DATA, 1, 1, b"x"),
        frame(Kind.OPEN, 1, 0) + frame(Kind.CLOSE, 1, 0) * 2,
        frame(Kind.OPEN, 1, 0) + frame(Kind.WINDOW, 1, 0),
        frame(Kind.OPEN, 1, 0) + frame(Kind.WINDOW, 1, 1 << 30),
        frame(Kind.WINDOW, 7, 1),
        frame(Kind.RESET, 7, 0),
        frame(Kind.PING, 1, 0),
        frame(Kind.BYE, 1, 0),
    ],
)
def test_a_breach_of_the_rules_is_a_violation(hostile: bytes) -> None:
    with pytest.raises(Violation):
        fake_mux().feed(hostile)


def test_one_stream_too_many_is_reset_as_busy_and_a_dead_one_counts_until_it_is_let_go() -> None:
    mux = fake_mux()
    for index in range(STREAMS):
        mux.feed(frame(Kind.OPEN, 2 * index + 1, 0) + frame(Kind.RESET, 2 * index + 1, 0))
    mux.feed(frame(Kind.OPEN, 101, 0))
    assert replies(mux) == [(Kind.RESET, 101, Why.BUSY)]
    mux._streams[1]._finish("let go")
    mux._accept_out.receive_nowait()
    mux.feed(frame(Kind.OPEN, 103, 0))
    assert 103 in mux._streams


def test_a_thousand_pings_in_one_read_get_one_answer() -> None:
    mux = fake_mux()
    mux.feed(b"".join(frame(Kind.PING, 0, index) for index in range(1000)))
    assert replies(mux) == [(Kind.PONG, 0, 999)]


def test_a_stream_of_one_byte_frames_costs_few_objects() -> None:
    mux = fake_mux()
    mux.feed(frame(Kind.OPEN, 1, 0) + frame(Kind.DATA, 1, 1, b"x") * 10_000)
    assert parked_bytes(mux) == 10_000
    assert len(mux._streams[1]._pieces) == 1


@pytest.mark.parametrize("hostile", [frame(9, 0, 0), frame(Kind.DATA, 999, 5, b"hello"), b"\xff" * 64])
async def test_a_hostile_frame_ends_that_connection_and_not_the_node(hostile: bytes) -> None:
    async with nodes(3) as (server, liar, client):
        server.serve(ECHO, echo)
        for network in (liar, client):
            await network.connect(server.node_id, addresses=server.addresses())
        (connection,) = liar.host.get_network().get_connections()
        connection.muxed_conn._session.queue(hostile)
        await until(lambda: server.connected() == {client.node_id})
        await assert_echoes(client, server.node_id)


async def test_a_reader_that_does_not_read_bounds_what_the_writer_can_send() -> None:
    release = trio.Event()
    async with pair() as (server, client):
        server.serve(HOLD, hold_until(release))
        async with await client.open_stream(server.node_id, HOLD) as stream:
            sent = 0
            with trio.move_on_after(0.3):
                while True:
                    await stream.send(bytes(1024))
                    sent += 1024
            assert sent <= WINDOW_START
        release.set()


async def test_windows_beyond_the_nodes_budget_stay_small_and_work() -> None:
    async with pair(Limits(windows_bytes_max=0)) as (server, client):
        server.serve(ECHO, echo)
        async with await client.open_stream(server.node_id, ECHO) as stream, trio.open_nursery() as nursery:
            data = bytes(range(256)) * 4096
            nursery.start_soon(stream.send, data)
            assert await stream.receive_exactly(len(data)) == data


async def test_the_window_budget_is_given_back_with_the_stream_and_with_the_connection() -> None:
    async with pair() as (server, client):
        server.serve(ECHO, echo)
        budget = budget_of(client)
        full = budget._left
        for ending in ("close", "reset", "lose the connection"):
            stream = await client.open_stream(server.node_id, ECHO, addresses=server.addresses())
            await use_window(stream)
            assert budget._left < full
            if ending == "close":
                await stream.close()
            elif ending == "reset":
                await stream.reset()
            else:
                await client.disconnect(server.node_id)
            assert budget._left == full


async def use_window(stream: Stream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send, bytes(200_000))
        await stream.receive_exactly(200_000)


def budget_of(network: Network) -> Budget:
    (connection,) = network.host.get_network().get_connections()
    budget: Budget = connection.muxed_conn.budget
    return budget


async def test_an_answer_whose_sender_left_at_once_is_still_read() -> None:
    async def answer(stream: Stream) -> None:
        await stream.send(b"the answer")
        await stream.close()

    async with pair() as (server, client):
        server.serve(ECHO, answer)
        async with await client.open_stream(server.node_id, ECHO) as stream:
            await server.disconnect(client.node_id)
            await until(lambda: not client.connected())
            assert await stream.receive_some(100) == b"the answer"
            assert await stream.receive_some(100) == b""
            with pytest.raises(StreamBroken):
                await stream.send(b"too late")


async def test_a_full_budget_of_a_peer_is_busy_whatever_the_protocol() -> None:
    release = trio.Event()
    async with pair(Limits(streams_per_peer=4)) as (server, client):
        server.serve(HOLD, hold_until(release), streams_per_peer=100)
        await until(lambda: not any(c.get_streams() for c in server.host.get_network().get_connections()))  # identify
        for _ in range(4):
            await client.open_stream(server.node_id, HOLD)
        with pytest.raises(Busy):
            await client.open_stream(server.node_id, HOLD)
        assert server.faults["streams over the peer's budget"] == 1
        release.set()


async def test_a_full_protocol_budget_is_busy() -> None:
    release = trio.Event()
    async with pair() as (server, client):
        server.serve(HOLD, hold_until(release), streams_per_peer=2)
        streams = [await client.open_stream(server.node_id, HOLD) for _ in range(2)]
        with pytest.raises(Busy):
            async with await client.open_stream(server.node_id, HOLD) as one_too_many:
                await one_too_many.receive_exactly(1)
        release.set()
        for stream in streams:
            assert await stream.receive_some(1) == b""
        async with await client.open_stream(server.node_id, HOLD) as stream:
            assert await stream.receive_some(1) == b""
