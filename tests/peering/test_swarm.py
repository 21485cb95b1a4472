"""A blob comes whole and right from any peers that have it, whatever others do; real sockets, one process."""

from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from blake3 import blake3

from economics import cbor
from economics.crypto import NodeId
from economics.errors import Reason, Rejected
from economics.genesis import build_key_text
from p2pnode.errors import NetworkError, NodeError, StreamBroken, Unavailable
from p2pnode.members import FaultKind
from p2pnode.network.frames import Incoming, build_header, send_message
from p2pnode.network.stream import Patience, Stream
from p2pnode.peering import blobserver, providers, pursuit
from p2pnode.peering import swarm as swarms
from p2pnode.peering.blobserver import PROTOCOL, refuse
from p2pnode.peering.providers import Provider
from p2pnode.peering.pursuit import PROVIDERS_MAX, TOLD_MAX, Search
from p2pnode.peering.recent import Recent
from p2pnode.peering.swarm import Swarm
from p2pnode.testnet import free_addresses
from tests.p2pnode.swarming import (
    BLOB,
    BLOB_ID,
    CODE,
    Handler,
    Shown,
    answering,
    collect,
    have_no_room,
    have_not,
    header_then,
    lie,
    open_swarm,
    right,
    serve,
    stall,
)
from tests.peering.conftest import PATIENT_S
from tests.small import encode_blob, make_blob


def faults_of(swarm: Swarm) -> dict[str, FaultKind]:
    return {fault.node: fault.kind for fault in swarm.faults}


async def test_one_peer_gives_it_all() -> None:
    async with serve(1, Shown(BLOB)) as peer, open_swarm(peer.contact) as swarm:
        assert await collect(swarm) == BLOB.data
        assert swarm.received == {peer.network.node_id: len(BLOB.data)}
        assert swarm.faults == ()


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 1), (19_999, 20_001), (20_000, 40_000), (12 * 20_000, None), (5, 5), (0, None)],
)
async def test_a_range_is_the_slice(start: int, stop: int | None) -> None:
    async with serve(1, Shown(BLOB)) as peer, open_swarm(peer.contact) as swarm:
        assert await collect(swarm, start=start, stop=stop) == BLOB.data[start:stop]


async def test_an_empty_blob_is_had() -> None:
    empty = encode_blob(CODE, b"")
    async with serve(1, Shown(empty)) as peer, open_swarm(peer.contact) as swarm:
        assert await collect(swarm, empty) == b""
        assert await swarm.segment(empty.header, 0) == b""


async def test_a_blob_of_another_code_is_had_too() -> None:
    other = make_blob(type(CODE)(31, 5_000), 12_345)
    async with serve(1, Shown(other)) as peer, open_swarm(peer.contact) as swarm:
        assert await collect(swarm, other) == other.data


async def test_several_peers_share_the_work() -> None:
    """Each takes a moment for a segment, so that none of them is quick enough to give all."""

    async def slowly(stream: Stream, message: Incoming) -> None:
        await trio.sleep(0.05)
        await send_message(stream, {"ok": True}, right(message))

    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(serve(number, header_then(slowly))) for number in (1, 2, 3)]
        swarm = await stack.enter_async_context(open_swarm(*(peer.contact for peer in peers)))
        assert await collect(swarm) == BLOB.data
        assert set(swarm.received) == {peer.network.node_id for peer in peers}
        assert swarm.faults == ()


async def test_peers_that_have_a_part_each_give_the_whole_together() -> None:
    evens, odds = Shown(BLOB, only=range(0, 13, 2)), Shown(BLOB, only=range(1, 13, 2))
    async with serve(1, evens) as one, serve(2, odds) as two, open_swarm(one.contact, two.contact) as swarm:
        assert await collect(swarm) == BLOB.data
        assert swarm.faults == ()


class TestOfThreePeers:
    async def test_one_that_lies_is_named_and_not_asked_again_and_one_that_stalls_is_gone_round(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pursuit, "STALL_S", 2.0)
        lies = 0

        async def count_lies(stream: Stream, message: Incoming) -> None:
            nonlocal lies
            lies += 1
            await lie(stream, message)

        async with AsyncExitStack() as stack:
            honest = await stack.enter_async_context(serve(1, Shown(BLOB)))
            liar = await stack.enter_async_context(serve(2, header_then(count_lies)))
            staller = await stack.enter_async_context(serve(3, header_then(stall)))
            swarm = await stack.enter_async_context(open_swarm(liar.contact, staller.contact, honest.contact))
            assert await collect(swarm) == BLOB.data
            faults = faults_of(swarm)
            faults.pop(build_key_text(honest.network.node_id), None)  # on a busy machine it may have stalled, too
            assert faults == {
                build_key_text(liar.network.node_id): FaultKind.WRONG_BYTES,
                build_key_text(staller.network.node_id): FaultKind.TOO_SLOW,
            }
            told, swarm.recent = lies, Recent()
            assert await collect(swarm) == BLOB.data
            assert lies == told

    async def test_one_that_says_it_has_it_and_has_not_costs_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(providers, "LACK_S", PATIENT_S)
        async with (
            serve(1, Shown(BLOB)) as honest,
            serve(2, answering(have_not)) as boaster,
            serve(3, header_then(have_not)) as half,
            open_swarm(boaster.contact, half.contact, honest.contact) as swarm,
        ):
            assert await collect(swarm) == BLOB.data
            assert swarm.faults == ()

    async def test_one_that_is_away_and_one_that_breaks_off_do_not_matter(self) -> None:
        async def break_off(stream: Stream, message: Incoming) -> None:
            await stream.reset()

        async with serve(9, Shown()) as gone:
            away = gone.contact
        async with (
            serve(1, Shown(BLOB)) as honest,
            serve(2, header_then(break_off)) as breaking,
            open_swarm(away, breaking.contact, honest.contact) as swarm,
        ):
            assert await collect(swarm) == BLOB.data
            assert set(faults_of(swarm).values()) <= {FaultKind.UNREACHABLE, FaultKind.BROKE_OFF}


class TestALiar:
    """Alone, so that nothing hides what it does."""

    async def end(self, answer: Handler) -> tuple[NodeError, list[FaultKind]]:
        async with serve(1, answer) as peer, open_swarm(peer.contact) as swarm:
            with pytest.raises((Unavailable, NetworkError)) as caught:
                await collect(swarm)
            return caught.value, list(faults_of(swarm).values())

    async def test_with_wrong_bytes_ends_it_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(providers, "PAUSE_S", PATIENT_S)
        fault, kinds = await self.end(header_then(lie))
        assert "segment" in str(fault)
        assert kinds == [FaultKind.WRONG_BYTES]

    async def test_with_a_segment_of_another_size(self) -> None:
        async def short(stream: Stream, message: Incoming) -> None:
            await send_message(stream, {"ok": True}, right(message)[:-1] or b"xx")

        assert (await self.end(header_then(short)))[1] == [FaultKind.WRONG_BYTES]

    async def test_with_more_bytes_than_a_segment_has_is_cut_off_before_they_come(self) -> None:
        async def bomb(stream: Stream, message: Incoming) -> None:
            await stream.send(build_header({"ok": True}, 64 << 20))
            await trio.sleep_forever()

        assert (await self.end(header_then(bomb)))[1] == [FaultKind.WRONG_BYTES]

    async def test_with_a_header_that_is_too_large_is_cut_off_before_it_comes(self) -> None:
        async def bomb(stream: Stream, message: Incoming) -> None:
            await stream.send(build_header({"ok": True}, 5 << 20))
            await trio.sleep_forever()

        assert (await self.end(answering(bomb)))[1] == [FaultKind.WRONG_BYTES]

    @pytest.mark.parametrize(
        "header",
        [
            pytest.param(make_blob(CODE, 100, seed=7).header.encode(), id="another blob's"),
            pytest.param(b"", id="nothing"),
            pytest.param(BLOB.header.encode()[:-1], id="cut"),
        ],
    )
    async def test_with_a_wrong_header(self, header: bytes) -> None:
        async def give(stream: Stream, message: Incoming) -> None:
            await send_message(stream, {"ok": True, "peers": []}, *([header] if header else []))

        assert (await self.end(answering(give)))[1] == [FaultKind.WRONG_BYTES]

    @pytest.mark.parametrize("peers", [["x"] * 9, ["no peer"], [7], "text", ["a" * 43 + "@" + "/" * 400]])
    async def test_with_peers_that_are_none(self, peers: object) -> None:
        async def give(stream: Stream, message: Incoming) -> None:
            await send_message(stream, {"ok": True, "peers": peers}, BLOB.header.encode())  # type: ignore[dict-item]

        assert (await self.end(answering(give)))[1] == [FaultKind.WRONG_BYTES]


async def test_who_has_no_room_is_asked_again() -> None:
    refused = 0

    async def sometimes(stream: Stream, message: Incoming) -> None:
        nonlocal refused
        if refused < 3:
            refused += 1
            await have_no_room(stream, message)
        else:
            await send_message(stream, {"ok": True}, right(message))

    async with serve(1, header_then(sometimes)) as peer, open_swarm(peer.contact) as swarm:
        assert await collect(swarm) == BLOB.data
        assert swarm.faults == ()
        assert refused == 3


async def test_who_never_has_room_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "REFUSALS_MAX", 3)

    async def never(stream: Stream, message: Incoming) -> None:
        await refuse(stream, Rejected(Reason.OVER_BUDGET, "come back"))

    async with serve(1, header_then(never)) as peer, open_swarm(peer.contact) as swarm:
        with pytest.raises(NodeError, match="segment"):
            await collect(swarm)


async def test_a_peer_that_comes_back_is_asked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first run ends in the middle of the blob, with requests on their way."""
    monkeypatch.setattr(providers, "PAUSE_S", 0.05)
    monkeypatch.setattr(providers, "STRIKES_MAX", 12)  # two minutes
    (address,) = free_addresses(1)
    stuck, done = trio.Event(), trio.Event()
    read: list[bytes] = []

    async def three_segments(stream: Stream, message: Incoming) -> None:
        if message.header["index"] == 3:
            stuck.set()
            await trio.sleep_forever()
        await send_message(stream, {"ok": True}, right(message))

    async def run_twice(task_status: Any) -> None:
        async with serve(1, header_then(three_segments), listen=[address]) as peer:
            task_status.started(peer.contact)
            await stuck.wait()
        async with serve(1, Shown(BLOB), listen=[address]):
            await done.wait()

    async with trio.open_nursery() as nursery:
        async with open_swarm(await nursery.start(run_twice)) as swarm:
            read.append(await collect(swarm))
        done.set()
    assert read == [BLOB.data]


async def test_who_had_nothing_is_asked_again_after_a_while_and_a_liar_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lies = 0

    async def count_lies(stream: Stream, message: Incoming) -> None:
        nonlocal lies
        lies += 1
        await lie(stream, message)

    late = Shown(BLOB, only=())
    async with serve(1, late) as one, serve(2, header_then(count_lies)) as liar:
        async with open_swarm(one.contact, liar.contact) as swarm:
            for _ in range(2):
                with pytest.raises(Unavailable):
                    await collect(swarm)
                late.only = None
            told = lies
            monkeypatch.setattr(swarms, "FORGIVE_S", 0.0)
            assert await collect(swarm) == BLOB.data
            assert lies == told
            assert faults_of(swarm) == {build_key_text(liar.network.node_id): FaultKind.WRONG_BYTES}


async def test_only_so_many_peers_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may tell of peers that there are not, for as long as a gateway runs."""
    monkeypatch.setattr(providers, "KNOWN_MAX", 3)
    async with open_swarm() as swarm:
        busy = swarm.providers.get(NodeId(bytes(32)))
        busy.in_flight = 1
        told = [swarm.providers.get(NodeId(bytes([number]) * 32)) for number in range(1, 5)]
        swarm.providers.blame(told[-1], StreamBroken("away"))
        assert list(swarm.providers._known.values()) == [busy, *told[-2:]]
        assert swarm.providers.get(NodeId(bytes([5]) * 32)) not in told
        assert len(swarm.providers._known) == 3


async def test_nobody_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "LACK_S", PATIENT_S)
    async with serve(1, Shown()) as peer, open_swarm(peer.contact) as swarm:
        with pytest.raises(Unavailable, match="not to be had from 1 peers"):
            await swarm.header(BLOB_ID)


async def test_nobody_is_known() -> None:
    async with open_swarm() as swarm:
        with pytest.raises(Unavailable, match="name a --peer"):
            await swarm.header(BLOB_ID)


async def test_a_peer_tells_of_another_which_gives_what_the_first_has_not() -> None:
    async with serve(2, Shown(BLOB)) as whole:
        node, addresses = whole.contact

        async def tell(stream: Stream, message: Incoming) -> None:
            if message.header["op"] == "segment":
                await have_not(stream, message)
            else:
                told = [f"{build_key_text(node)}@{addresses[0]}"]
                await send_message(stream, {"ok": True, "peers": told}, BLOB.header.encode())  # type: ignore[dict-item]

        async with serve(1, answering(tell)) as teller, open_swarm(teller.contact) as swarm:
            assert await collect(swarm) == BLOB.data
            assert swarm.sources_of(BLOB_ID) == [
                f"{build_key_text(peer.network.node_id)}@{peer.network.addresses()[0]}" for peer in (teller, whole)
            ]


async def test_a_peer_that_makes_up_others_leaves_room_for_those_that_are_there() -> None:
    """It gives what it has and names eight new ones in each reply; then it has nothing more."""
    made_up = 0

    async def tell(stream: Stream, message: Incoming) -> None:
        nonlocal made_up
        if made_up >= 8 * 12:
            await have_not(stream, message)
            return
        keys = [build_key_text(blake3(bytes([number])).digest()) for number in range(made_up, made_up + 8)]
        made_up += 8
        told: list[cbor.Value] = [f"{key}@/ip4/127.0.0.1/tcp/1" for key in keys]
        await send_message(stream, {"ok": True, "peers": told}, right(message))

    async with serve(1, header_then(tell)) as teller, serve(2, Shown(BLOB)) as honest:
        async with open_swarm(teller.contact) as swarm:
            for index in range(12):
                await swarm.segment(BLOB.header, index)
            assert len(swarm.providers._known) <= 1 + TOLD_MAX
            swarm.add_peers([honest.contact])
            assert await swarm.segment(BLOB.header, 12) == BLOB.data[12 * CODE.segment_bytes :]


def test_who_is_not_asked_any_more_makes_room() -> None:
    search = Search(BLOB_ID)
    first, *others = [Provider(NodeId(blake3(bytes([number])).digest())) for number in range(PROVIDERS_MAX + 1)]
    last = others.pop()
    for provider in (first, *others, last):
        search.add(provider)
    assert last not in search.providers
    first.is_excluded = True
    search.add(last)
    assert search.providers == [*others, last]


async def test_memory_is_bounded_by_the_window_while_the_writer_waits() -> None:
    shown = Shown(make_blob(CODE, 60 * CODE.segment_bytes))
    (blob,) = shown.blobs.values()
    async with serve(1, shown) as peer, open_swarm(peer.contact) as swarm:
        view = await swarm.open(blob.header.blob_id)

        async def write(views: list[memoryview]) -> None:
            while sum(shown.asked.values()) < 16:  # noqa: ASYNC110 - a counter has no event
                await trio.sleep(0.01)
            with trio.move_on_after(1):
                while sum(shown.asked.values()) <= 16:  # noqa: ASYNC110 - what must not happen has no event
                    await trio.sleep(0.01)
            assert sum(shown.asked.values()) == 16
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await view.read(write)


async def test_a_stream_without_requests_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobserver, "IDLE_S", 1.0)
    async with serve(1, Shown(BLOB)) as peer, open_swarm() as swarm:
        node, addresses = peer.contact
        stream = await swarm.network.open_stream(node, PROTOCOL, addresses=addresses)
        stream.patience = Patience(idle_s=PATIENT_S)
        with pytest.raises(StreamBroken):
            await stream.receive_some(1)
