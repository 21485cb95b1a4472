"""Streams: every byte in order, half-close, patience with the slow, and peers that die or freeze."""

import math
import signal

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.errors import StreamBroken, TooSlow
from p2pnode.network.host import Limits, Network, open_network
from p2pnode.network.noise import Buffer
from p2pnode.network.stream import Patience, Stream, split
from tests.network.conftest import (
    ECHO,
    HOLD,
    PATIENT_S,
    SINK,
    PeerProcess,
    assert_echoes,
    echo,
    hold_until,
    pair,
    seed,
    until,
)

MIB = 1024 * 1024
HASTY = Patience(idle_s=0.5, floor_bytes_per_s=1000)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=9), max_size=9), st.integers(1, 40))
def test_split_takes_the_first_bytes_and_keeps_the_rest(parts: list[bytes], size_max: int) -> None:
    whole = b"".join(parts)
    taken, rest, size = split([memoryview(part) for part in parts if part], size_max)
    assert b"".join(taken) == whole[:size_max]
    assert b"".join(rest) == whole[size_max:]
    assert size == len(whole[:size_max])


async def test_parts_of_all_sizes_arrive_as_one_run_of_bytes() -> None:
    parts: list[Buffer] = [
        b"",
        b"a",
        bytearray(b"bc"),
        memoryview(b"d" * 8192),
        b"e" * 65_519,
        b"f" * 3_000_000,
        b"",
        b"g",
    ]
    whole = b"".join(parts)
    async with pair() as (server, client):
        server.serve(ECHO, echo)
        async with await client.open_stream(server.node_id, ECHO) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, *parts)
            assert await stream.receive_exactly(1000) == whole[:1000]
            buffer = bytearray(len(whole) - 1001)
            await stream.receive_into(memoryview(buffer))
            assert buffer == whole[1000:-1]
            assert await stream.receive_some(10) == b"g"


async def test_the_callers_buffer_is_free_once_send_returns() -> None:
    async with pair() as (server, client):
        server.serve(ECHO, echo)
        async with await client.open_stream(server.node_id, ECHO) as stream:
            buffer = bytearray(b"a" * 50_000)
            await stream.send(buffer)
            buffer[:] = b"b" * len(buffer)
            assert await stream.receive_exactly(50_000) == b"a" * 50_000


async def test_a_closed_writer_still_reads_and_the_end_is_clean() -> None:
    async def answer_at_the_end(stream: Stream) -> None:
        question = b""
        while data := await stream.receive_some(100):
            question += data
        await stream.send(question[::-1])

    async with pair() as (server, client):
        server.serve(SINK, answer_at_the_end)
        async with await client.open_stream(server.node_id, SINK) as stream:
            await stream.send(b"abc")
            await stream.close_write()
            assert await stream.receive_exactly(3) == b"cba"
            assert await stream.receive_some(1) == b""
            with pytest.raises(StreamBroken):
                await stream.receive_exactly(1)
            with pytest.raises(StreamBroken):
                await stream.send(b"more")


async def test_a_stream_that_the_peer_has_closed_stops_the_sender() -> None:
    async def leave(stream: Stream) -> None:
        await stream.receive_exactly(1)

    async with pair() as (server, client):
        server.serve(SINK, leave)
        async with await client.open_stream(server.node_id, SINK) as stream:
            with trio.fail_after(PATIENT_S), pytest.raises(StreamBroken):
                await stream.send(bytes(100_000_000))


async def test_what_the_peer_said_before_it_refused_the_rest_can_be_read() -> None:
    async def decline(stream: Stream) -> None:
        await stream.receive_exactly(1)
        await stream.send(b"too big")

    async with pair() as (server, client):
        server.serve(SINK, decline)
        async with await client.open_stream(server.node_id, SINK) as stream:
            with trio.fail_after(PATIENT_S), pytest.raises(StreamBroken):
                await stream.send(bytes(100_000_000))
            assert await stream.receive_exactly(7) == b"too big"


async def test_four_streams_of_16_mib_both_ways_do_not_hang() -> None:
    async def transfer(client: Network, server: Network) -> None:
        buffer = memoryview(bytearray(MIB))
        async with await client.open_stream(server.node_id, ECHO) as stream:

            async def send_all() -> None:
                for _ in range(16):
                    await stream.send(bytes(MIB))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all)
                for _ in range(16):
                    await stream.receive_into(buffer)

    async with pair() as (server, client):
        server.serve(ECHO, echo)
        with trio.fail_after(PATIENT_S):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(transfer, client, server)


async def test_a_silent_peer_is_too_slow_and_a_wait_that_took_nothing_may_be_repeated() -> None:
    release = trio.Event()
    async with pair() as (server, client):
        server.serve(HOLD, hold_until(release))
        async with await client.open_stream(server.node_id, HOLD) as stream:
            stream.patience = Patience(idle_s=0.2)
            with pytest.raises(TooSlow):
                await stream.receive_exactly(1)
            with pytest.raises(TooSlow):
                await stream.receive_some(1)
            stream.patience = Patience()
            release.set()
            assert await stream.receive_some(1) == b""


async def test_a_peer_that_does_not_read_is_too_slow() -> None:
    release = trio.Event()
    async with pair() as (server, client):
        server.serve(HOLD, hold_until(release))
        async with await client.open_stream(server.node_id, HOLD) as stream:
            stream.patience = Patience(idle_s=0.2)
            with pytest.raises(TooSlow):
                await stream.send(bytes(16 * MIB))
        release.set()


async def drip(stream: Stream) -> None:
    while True:
        await stream.send(b"x")
        await trio.sleep(0.05)


@pytest.mark.parametrize("verb", ["exactly", "into", "some"])
async def test_a_drip_is_too_slow_although_something_always_moves(verb: str) -> None:
    async with pair() as (server, client):
        server.serve(SINK, drip)
        async with await client.open_stream(server.node_id, SINK) as stream:
            stream.patience = HASTY
            with trio.fail_after(PATIENT_S), pytest.raises(TooSlow):
                await receive_for_ever(stream, verb)


async def receive_for_ever(stream: Stream, verb: str) -> None:
    while True:
        if verb == "exactly":
            await stream.receive_exactly(100_000)
        elif verb == "into":
            await stream.receive_into(memoryview(bytearray(100_000)))
        else:
            assert await stream.receive_some(100_000) != b""


async def test_what_the_application_does_between_two_reads_is_not_the_peers_fault() -> None:
    async with pair() as (server, client):
        server.serve(ECHO, echo)
        async with await client.open_stream(server.node_id, ECHO) as stream:
            await stream.send(b"abcd")
            assert await stream.receive_some(1) == b"a"  # and with it came the others
            stream.patience = Patience(idle_s=1, floor_bytes_per_s=1000)
            for expected in (b"b", b"c", b"d"):
                assert await stream.receive_some(1) == expected
                await trio.sleep(0.6)


async def test_a_patient_stream_waits_for_the_next_request() -> None:
    async with pair() as (server, client):
        server.serve(ECHO, echo)
        async with await client.open_stream(server.node_id, ECHO) as stream:
            stream.patience = Patience(idle_s=math.inf)
            with trio.move_on_after(0.2) as scope:
                await stream.receive_exactly(1)
            assert scope.cancelled_caught
            await stream.send(b"ab")
            assert await stream.receive_exactly(2) == b"ab"


async def test_a_send_that_is_cancelled_inside_a_message_resets_the_stream() -> None:
    release = trio.Event()
    async with pair() as (server, client):
        server.serve(HOLD, hold_until(release))
        async with await client.open_stream(server.node_id, HOLD) as stream:
            with trio.move_on_after(0.2):
                await stream.send(bytes(16 * MIB))
            with pytest.raises(StreamBroken):
                await stream.send(b"x")
        release.set()


async def test_a_receive_that_is_cancelled_inside_a_message_resets_the_stream() -> None:
    async with pair() as (server, client):
        server.serve(ECHO, echo)
        async with await client.open_stream(server.node_id, ECHO) as stream:
            await stream.send(b"half")
            assert await stream.receive_exactly(1) == b"h"  # and with it came the rest of that half
            with trio.move_on_after(0.2):
                await stream.receive_exactly(7)
            with pytest.raises(StreamBroken):
                await stream.receive_exactly(3)


async def test_a_killed_peer_is_a_broken_stream_never_a_clean_end(peer_process: PeerProcess) -> None:
    async with open_network(seed=seed(1), listen=[]) as client:
        address = await peer_process.address()
        async with await client.open_stream(peer_process.node_id, HOLD, addresses=[address]) as stream:
            await stream.receive_exactly(MIB)
            peer_process.signal(signal.SIGKILL)
            with trio.fail_after(PATIENT_S), pytest.raises(StreamBroken):
                await receive_for_ever(stream, "some")
            await until(lambda: not client.connected())


async def test_a_frozen_peer_is_too_slow_and_its_connection_goes_away(peer_process: PeerProcess) -> None:
    async with open_network(seed=seed(1), listen=[], limits=Limits(keepalive_s=4)) as client:
        address = await peer_process.address()
        async with await client.open_stream(peer_process.node_id, ECHO, addresses=[address]) as stream:
            peer_process.signal(signal.SIGSTOP)
            stream.patience = Patience(idle_s=0.5)
            with pytest.raises(TooSlow):
                await stream.receive_exactly(1)
            stream.patience = Patience()
            with trio.fail_after(PATIENT_S), pytest.raises(StreamBroken):
                await stream.receive_exactly(1)
            await until(lambda: not client.connected())
            peer_process.signal(signal.SIGCONT)


async def test_an_idle_connection_to_a_living_peer_stays() -> None:
    async with pair(Limits(keepalive_s=1)) as (server, client):
        server.serve(ECHO, echo)
        (connection,) = client.host.get_network().get_connections()
        await trio.sleep(3)
        assert client.host.get_network().get_connections() == [connection]
        await assert_echoes(client, server.node_id)
