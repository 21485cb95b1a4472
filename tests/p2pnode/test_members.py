"""A client's way to the members: streams are kept and replaced, replies bounded, and the first fault remembered."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from dht.discovery import Discovery
from economics import cbor
from economics.committee import Committee, Member
from economics.crypto import NodeId
from economics.errors import Reason, Rejected
from economics.genesis import build_key_text
from p2pnode.errors import PeerUnreachable, ProtocolUnsupported, StreamBroken, TooSlow
from p2pnode.members import REQUESTS_AT_ONCE, FaultKind, Members, Refused, ask_many, verify_reply
from p2pnode.network.frames import Incoming, send_message
from p2pnode.network.stream import Stream
from p2pnode.slivers.storage import Reply
from tests.p2pnode.patience import patience as patience
from tests.p2pnode.server import GENESIS, MemoryNetwork, Server, make_members
from tests.small import OPERATORS

STATUS: dict[str, cbor.Value] = {"op": "status"}


@asynccontextmanager
async def open_members(directory: Path, count: int = 3) -> AsyncIterator[tuple[MemoryNetwork, Members]]:
    servers = [Server(directory / str(index), key=OPERATORS[index]) for index in range(count)]
    async with trio.open_nursery() as nursery:
        network = MemoryNetwork(servers, nursery)
        yield network, make_members(network, GENESIS)
        nursery.cancel_scope.cancel()


class TestRequest:
    async def test_reuses_a_stream_after_an_answer_and_after_a_refusal(self, tmp_path: Path) -> None:
        async with open_members(tmp_path) as (network, members):
            reply, payload = await members.request(1, STATUS, size_max=0)
            assert (reply.header, payload) == ({"ok": True, "status": {"blobs": 0}}, b"")
            with pytest.raises(Refused) as refusal:
                await members.request(1, {"blob": bytes(32), "op": "header"}, size_max=100)
            assert (refusal.value.reason, refusal.value.retry) == (Reason.NOT_FOUND, True)
            await members.request(1, STATUS, size_max=0)
            assert [member for member, _ in network.dialled] == [1]

    async def test_opens_no_more_streams_than_a_member_has_room_for(self, tmp_path: Path) -> None:
        async with open_members(tmp_path) as (network, members):
            async with trio.open_nursery() as nursery:
                for _ in range(2 * REQUESTS_AT_ONCE):
                    nursery.start_soon(lambda: members.request(0, STATUS, size_max=0))
            assert len(network.dialled) == REQUESTS_AT_ONCE

    async def test_replaces_a_kept_stream_that_is_dead_and_lets_none_of_the_others_linger(self, tmp_path: Path) -> None:
        async with open_members(tmp_path) as (network, members):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(lambda: members.request(0, STATUS, size_max=0))
            *others, next_one = members._nodes.idle[members.node_of(0)]
            await next_one.reset()
            await members.request(0, STATUS, size_max=0)
            assert (len(others), len(network.dialled)) == (2, 4)
            for stream in others:
                with pytest.raises(StreamBroken), trio.fail_after(60):
                    await stream.receive_some(1)

    async def test_that_breaks_on_a_new_stream_too_fails(self, tmp_path: Path) -> None:
        async def hang_up(stream: Stream, operation: str, reply: Reply) -> None:
            await stream.reset()

        async with open_members(tmp_path) as (network, members):
            next(iter(network.servers.values())).server.manner = hang_up
            with pytest.raises(StreamBroken):
                await members.request(0, STATUS, size_max=0)
            assert len(network.dialled) == 1

    async def test_takes_no_more_bytes_than_it_asked_for(self, tmp_path: Path) -> None:
        async def answer_much(stream: Stream, operation: str, reply: Reply) -> None:
            await send_message(stream, {"ok": True}, bytes(11))

        async with open_members(tmp_path) as (network, members):
            next(iter(network.servers.values())).server.manner = answer_much
            assert (await members.request(0, STATUS, size_max=11))[1] == bytes(11)
            with pytest.raises(Rejected) as verdict:
                await members.request(0, STATUS, size_max=10)
            assert verdict.value.reason is Reason.TOO_LARGE
            await members.request(0, STATUS, size_max=11)
            assert len(network.dialled) == 2  # a payload was left on the first one


class TestOpenStream:
    async def find(self, members: Members, addresses: tuple[str, ...]) -> None:
        class Found:
            async def find_node(self, node: NodeId, *, fresh: bool) -> tuple[str, ...]:
                assert (node, fresh) == (OPERATORS[1].public, True)
                return addresses

        members.discovery = cast(Discovery, Found())
        await members.open_stream(1)

    async def test_looks_up_who_is_not_where_the_genesis_says(self, tmp_path: Path) -> None:
        known = GENESIS.members[1].addresses
        async with open_members(tmp_path) as (network, members):
            network.down = {1}
            with pytest.raises(PeerUnreachable):
                await members.open_stream(1)
            assert network.dialled == [(1, known)]
            with pytest.raises(PeerUnreachable):
                await self.find(members, ("/ip4/127.0.0.1/tcp/2",))
            assert network.dialled[1:] == [(1, known), (1, ("/ip4/127.0.0.1/tcp/2",))]

    @pytest.mark.parametrize("addresses", [(), GENESIS.members[1].addresses])
    async def test_does_not_dial_the_same_addresses_twice(self, tmp_path: Path, addresses: tuple[str, ...]) -> None:
        async with open_members(tmp_path) as (network, members):
            network.down = {1}
            with pytest.raises(PeerUnreachable, match="no answer at any known address"):
                await self.find(members, addresses)
            assert len(network.dialled) == 1


class TestFaults:
    async def test_are_named_once_by_what_came_first(self, tmp_path: Path) -> None:
        async with open_members(tmp_path) as (_, members):
            for fault in (TooSlow("1 byte"), Rejected(Reason.MALFORMED)):
                members.blame(2, fault)
            members.blame(1, Refused(Reason.NOT_FOUND, "not here", retry=True))
            assert {member: fault.kind for member, fault in members.faults.items()} == {2: FaultKind.TOO_SLOW}
            assert str(members.faults[2]).endswith(") too slow: 1 byte")

    @pytest.mark.parametrize(
        ("fault", "kind"),
        [
            (Rejected(Reason.HASH_MISMATCH), FaultKind.WRONG_BYTES),
            (Refused(Reason.OVER_BUDGET, "", retry=True), FaultKind.REFUSED),
            (PeerUnreachable(), FaultKind.UNREACHABLE),
            (ProtocolUnsupported(), FaultKind.FOREIGN),
            (StreamBroken(), FaultKind.BROKE_OFF),
        ],
    )
    async def test_have_the_name_that_a_user_reads(self, tmp_path: Path, fault: Exception, kind: FaultKind) -> None:
        async with open_members(tmp_path) as (_, members):
            members.blame(0, fault)
            assert members.faults[0].kind is kind


class TestSeats:
    """The committee changes: members 0 and 1 change places, member 2 leaves, and a fourth node takes a seat."""

    def reseated(self) -> Committee:
        first, second, _ = GENESIS.members
        newcomer = Member(NodeId(OPERATORS[3].public), first.owner, 1, ("/ip4/127.0.0.1/tcp/4",))
        moved = replace(second, addresses=("/ip4/127.0.0.1/tcp/9",))
        return Committee(1, (moved, replace(first, addresses=()), newcomer))

    async def test_keep_the_streams_of_who_stays_and_end_those_of_who_left(self, tmp_path: Path) -> None:
        async with open_members(tmp_path, count=4) as (network, members):
            for member in range(3):
                await members.request(member, STATUS, size_max=0)
            await members.seat(self.reseated())
            with pytest.raises(StreamBroken), trio.fail_after(60):
                await network.streams[2].receive_some(1)
            for member in range(3):
                await members.request(member, STATUS, size_max=0)
            await members.request(NodeId(OPERATORS[2].public), STATUS, size_max=0)
            known = GENESIS.members[0].addresses
            assert network.dialled == [
                *((member, known) for member in range(3)),
                (3, ("/ip4/127.0.0.1/tcp/4",)),
                (2, known),
            ]

    async def test_say_where_a_node_is_before_the_genesis_file_does(self, tmp_path: Path) -> None:
        async with open_members(tmp_path, count=4) as (network, members):
            await members.seat(self.reseated())
            for member in range(2):
                await members.open_stream(member)
            assert network.dialled == [(1, ("/ip4/127.0.0.1/tcp/9",)), (0, GENESIS.members[0].addresses)]

    async def test_move_faults_to_their_nodes_new_places(self, tmp_path: Path) -> None:
        async with open_members(tmp_path) as (_, members):
            for member in (1, 2):
                members.blame(member, TooSlow("1 byte"))
            await members.seat(self.reseated())
            assert {index: fault.member for index, fault in members.faults.items()} == {0: 0}
            stranger = NodeId(OPERATORS[7].public)
            members.blame(stranger, TooSlow("1 byte"))
            assert str(members.fault(stranger)) == f"node {build_key_text(stranger)[:8]} too slow: 1 byte"
            members.forgive(0)
            assert members.faults == {}

    async def test_get_another_chance_but_for_liars(self, tmp_path: Path) -> None:
        async with open_members(tmp_path, count=4) as (_, members):
            other = members.seated(self.reseated())
            for member, fault in enumerate(
                (TooSlow("1 byte"), Rejected(Reason.HASH_MISMATCH, ""), StreamBroken("away"))
            ):
                members.blame(member, fault)
            other.forgive_all()
            assert set(members.faults) == {1}

    async def test_of_another_committee_share_streams_and_faults(self, tmp_path: Path) -> None:
        async with open_members(tmp_path, count=4) as (network, members):
            other = members.seated(self.reseated())
            await members.request(0, STATUS, size_max=0)
            await other.request(1, STATUS, size_max=0)
            other.blame(0, TooSlow("1 byte"))
            assert set(members.faults) == {1}
            assert len(network.dialled) == 1

    async def test_weigh_who_answers(self, tmp_path: Path) -> None:
        """By genesis the first member has two of four shards, in the committee that is asked only one of three."""
        async with open_members(tmp_path, count=4) as (_, members):
            other = members.seated(self.reseated())
            assert GENESIS.committee.weight([0, 1]) == 3

            async def ask(member: int) -> int:
                await other.request(member, STATUS, size_max=0)
                return member

            answers, faults = await ask_many(other, [2, 0, 1], ask, shards=2, patience_s=1)
            assert (answers, faults) == ({2: 2, 0: 0}, {})


class TestReply:
    @pytest.mark.parametrize(
        "header",
        [
            {},
            {"ok": 1},
            {"ok": False},
            {"detail": "", "error": "no such reason", "ok": False},
            {"detail": 1, "error": "expired", "ok": False},
            {"detail": "", "error": None, "ok": False},
        ],
    )
    def test_that_is_neither_an_answer_nor_a_refusal_is_the_member_s_fault(self, header: Any) -> None:
        with pytest.raises(Rejected):
            verify_reply(Incoming(header, 0))

    def test_that_refuses_says_whether_to_come_back(self) -> None:
        for retry in (True, False):
            with pytest.raises(Refused) as refusal:
                verify_reply(Incoming({"detail": "why", "error": "expired", "ok": False, "retry": retry}, 0))
            assert (refusal.value.reason, refusal.value.retry) == (Reason.EXPIRED, retry)
            assert str(refusal.value) == "expired: why"
