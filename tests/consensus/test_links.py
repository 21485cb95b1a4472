"""Between members frames arrive whole and in order; who breaks the rules is cut off, and a broken stream comes back."""

import itertools
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from economics.committee import Committee, Member
from economics.crypto import NodeId, OwnerId
from economics.errors import Reason, Rejected
from p2pnode.consensus import links as links_module
from p2pnode.consensus.links import (
    FRAME_BYTES_MAX,
    RETRY_S_MAX,
    RETRY_S_MIN,
    FrameType,
    Links,
    _Outbox,
    build_frame,
    split_frames,
)
from p2pnode.errors import NetworkError, PeerUnreachable, StreamBroken
from p2pnode.members import Members, Who
from p2pnode.network.stream import Stream
from tests.refusals import reason
from tests.small import OPERATORS, OWNER, make_genesis
from tests.streams import MemoryStream, as_stream, stream_pair

GENESIS = make_genesis((1, 1, 1, 1))
Frames = list[tuple[FrameType, bytes]]
SOME: Frames = [
    (FrameType.VOTE, b"one"),
    (FrameType.ASK, b""),
    (FrameType.PROPOSAL, bytes(300)),
    (FrameType.VOTE, b"x"),
]


def node(member: int) -> NodeId:
    return NodeId(OPERATORS[member].public)


RESEATED = Committee(1, tuple(Member(node(own), OwnerId(OWNER.public), 1) for own in (4, 2, 1, 0)))
"""The next committee: member 3 has left, 4 is new, and everybody sits in another place."""
INDEX = {node(member): member for member in range(8)}


def build_all(frames: Frames) -> bytes:
    return b"".join(build_frame(kind, body) for kind, body in frames)


def take_frames(data: bytes) -> tuple[Frames, bytes]:
    """Return the whole frames at the front of some bytes, and the rest."""
    buffer = bytearray(data)
    return list(split_frames(buffer)), bytes(buffer)


class TestFrames:
    def test_have_the_bytes_that_the_format_says(self) -> None:
        assert build_frame(FrameType.PROPOSAL, b"ab") == b"\0\0\0\x03\x03ab"
        assert [int(kind) for kind in FrameType] == [1, 2, 3, 4, 5]

    def test_are_read_back_wherever_the_stream_cuts_them(self) -> None:
        data = build_all(SOME)
        for cut in range(len(data) + 1):
            buffer = bytearray(data[:cut])
            first = list(split_frames(buffer))
            assert len(buffer) < len(data) - len(build_all(first)) or cut == len(data)
            buffer += data[cut:]
            assert [*first, *split_frames(buffer)] == SOME
            assert not buffer

    def test_are_read_back_byte_by_byte(self) -> None:
        buffer, found = bytearray(), []
        for byte in build_all(SOME):
            buffer.append(byte)
            found += list(split_frames(buffer))
        assert (found, bytes(buffer)) == (SOME, b"")

    @pytest.mark.parametrize("size", [0, FRAME_BYTES_MAX + 1, 2**32 - 1])
    def test_of_a_size_that_none_has_are_refused_before_their_bytes_come(self, size: int) -> None:
        assert reason(take_frames, size.to_bytes(4, "big")) is Reason.TOO_LARGE
        assert take_frames(FRAME_BYTES_MAX.to_bytes(4, "big") + b"\1")[0] == []

    def test_of_the_largest_size_are_read(self) -> None:
        largest = [(FrameType.TRANSACTIONS, bytes(FRAME_BYTES_MAX - 1))]
        assert take_frames(build_all(largest)) == (largest, b"")

    @pytest.mark.parametrize("kind", [0, 6, 255])
    def test_of_a_type_that_none_has_are_refused(self, kind: int) -> None:
        assert reason(take_frames, b"\0\0\0\x02" + bytes([kind, 0])) is Reason.UNKNOWN_OPERATION

    def test_before_one_that_is_refused_are_taken_out(self) -> None:
        buffer, found = bytearray(build_all(SOME) + bytes(4)), []
        with pytest.raises(Rejected):  # noqa: PT012  # what came before it counts too
            for frame in split_frames(buffer):
                found.append(frame)
        assert (found, bytes(buffer)) == (SOME, bytes(4))

    @given(st.binary(max_size=40))
    def test_of_any_bytes_are_those_bytes_or_a_refusal(self, data: bytes) -> None:
        with suppress(Rejected):
            frames, rest = take_frames(data)
            assert build_all(frames) + rest == data


class TestOutbox:
    async def test_gives_all_that_waits_in_order_and_then_waits(self) -> None:
        outbox = _Outbox()
        for frame in (b"a", b"b", b"c"):
            outbox.put(frame)
        assert await outbox.take() == [b"a", b"b", b"c"]
        assert (outbox.size, outbox.dropped) == (0, 0)
        async with trio.open_nursery() as nursery:

            async def take() -> None:
                assert await outbox.take() == [b"d"]

            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            outbox.put(b"d")

    def test_forgets_the_oldest_beyond_so_many_frames(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(links_module, "QUEUE_FRAMES_MAX", 3)
        outbox = _Outbox()
        for number in range(5):
            outbox.put(bytes([number]))
        assert (list(outbox.frames), outbox.size, outbox.dropped) == ([b"\2", b"\3", b"\4"], 3, 2)

    def test_forgets_the_oldest_beyond_so_many_bytes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(links_module, "QUEUE_BYTES_MAX", 10)
        outbox = _Outbox()
        for size in (4, 4, 2):
            outbox.put(bytes(size))
        assert outbox.dropped == 0
        outbox.put(bytes(5))
        assert ([len(frame) for frame in outbox.frames], outbox.size, outbox.dropped) == ([2, 5], 7, 2)


class Mesh:
    """The links of four members, and of one of the next committee, joined by streams that can be refused and broken."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.down: set[int] = set()
        """Members that cannot be dialled."""
        self.window = 1 << 20
        self.dials: list[tuple[int, int, float]] = []
        """(who, whom, when)."""
        self.inbound: dict[tuple[int, int], MemoryStream] = {}
        """The receiving end of the newest stream, by (sender, receiver)."""
        self.received: list[list[tuple[int, FrameType, bytes]]] = [[] for _ in range(5)]
        self.news = trio.Event()
        self.members = [
            Links(
                members=cast(Members, _Way(self, own)),
                committee=GENESIS.committee if own < 4 else RESEATED,
                own=node(own),
                receive=self.taker(own),
                greet=self.greeter(own),
            )
            for own in range(5)
        ]

    def taker(self, own: int) -> links_module.Receive:
        async def take(sender: NodeId, kind: FrameType, body: bytes) -> None:
            if body == b"forged":
                raise Rejected(Reason.BAD_SIGNATURE, "forged")
            self.received[own].append((INDEX[sender], kind, body))
            self.news.set()
            self.news = trio.Event()

        return take

    @staticmethod
    def greeter(own: int) -> Callable[[], bytes]:
        return lambda: build_frame(FrameType.ASK, bytes([own]))

    async def dial(self, own: int, member: int) -> Stream:
        await trio.lowlevel.checkpoint()
        self.dials.append((own, member, trio.current_time()))
        if member in self.down:
            raise PeerUnreachable("no answer")
        here, there = stream_pair(node(own), node(member), window=self.window)
        self.inbound[own, member] = there
        self.nursery.start_soon(self.handle, member, there)
        return as_stream(here)

    async def handle(self, member: int, stream: MemoryStream) -> None:
        """Serve one inbound stream as `Network.serve` does."""
        with suppress(NetworkError):
            await self.members[member].handle(as_stream(stream))
        await stream.close()

    def connect(self, peer: NodeId, member: int) -> MemoryStream:
        """Open a stream to a member by hand."""
        here, there = stream_pair(peer, node(member))
        self.nursery.start_soon(self.handle, member, there)
        return here

    async def until(self, member: int, sender: int, bodies: Iterable[bytes]) -> None:
        """Wait until a member has had just these frames of another, in this order."""
        wanted = list(bodies)
        while (found := [body for who, _, body in self.received[member] if who == sender]) != wanted:
            assert len(found) <= len(wanted), found
            await self.news.wait()


class _Way:
    """One member's way to the others."""

    def __init__(self, mesh: Mesh, own: int) -> None:
        self.mesh = mesh
        self.own = own

    async def open_stream(self, who: Who) -> Stream:
        assert not isinstance(who, int)
        return await self.mesh.dial(self.own, INDEX[who])

    async def seat(self, committee: Committee) -> None:
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def open_mesh() -> AsyncIterator[Mesh]:
    async with trio.open_nursery() as nursery:
        with trio.fail_after(60):
            yield Mesh(nursery)
        nursery.cancel_scope.cancel()


def vote(body: bytes) -> bytes:
    return build_frame(FrameType.VOTE, body)


class TestSending:
    async def test_brings_frames_in_order_after_a_greeting_to_everyone_else(self) -> None:
        async with open_mesh() as mesh:
            one = mesh.members[1]
            mesh.nursery.start_soon(one.run)
            bodies = [number.to_bytes(2, "big") for number in range(1000)]
            for body in bodies:
                one.broadcast(vote(body))
            one.send(node(2), vote(b"for 2 alone"))
            for member in (0, 3):
                await mesh.until(member, 1, [b"\1", *bodies])
            await mesh.until(2, 1, [b"\1", *bodies, b"for 2 alone"])
            assert one.up == {node(0), node(2), node(3)}
            assert mesh.received[1] == []

    async def test_waits_for_who_cannot_be_reached_and_asks_less_and_less_often(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with open_mesh() as mesh:
            mesh.down = {3}
            start = trio.current_time()
            mesh.nursery.start_soon(mesh.members[0].run)
            mesh.members[0].broadcast(vote(b"news"))
            await mesh.until(1, 0, [b"\0", b"news"])
            await trio.sleep(20)
            times = [round(when - start, 3) for _, member, when in mesh.dials if member == 3]
            pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
            assert pauses == pytest.approx([RETRY_S_MIN, 0.4, 0.8, 1.6, 3.2, RETRY_S_MAX, RETRY_S_MAX])
            mesh.down.clear()
            await mesh.until(3, 0, [b"\0", b"news"])
            assert mesh.members[0].up == {node(1), node(2), node(3)}

    @pytest.mark.parametrize("end", [MemoryStream.reset, MemoryStream.close], ids=["reset", "ended"])
    async def test_greets_again_on_a_new_stream_when_one_is(
        self, end: Callable[[MemoryStream], object], autojump_clock: trio.testing.MockClock
    ) -> None:
        """Only the stream that ended: whatever a peer does to its own ends nothing else here."""
        async with open_mesh() as mesh:
            mesh.nursery.start_soon(mesh.members[0].run)
            for member in (1, 2, 3):
                await mesh.until(member, 0, [b"\0"])
            await end(mesh.inbound[0, 1])  # type: ignore[misc]
            await mesh.until(1, 0, [b"\0", b"\0"])
            mesh.members[0].broadcast(vote(b"news"))
            await mesh.until(1, 0, [b"\0", b"\0", b"news"])
            for member in (2, 3):
                await mesh.until(member, 0, [b"\0", b"news"])
            assert sorted(member for _, member, _ in mesh.dials) == [1, 1, 2, 3]

    async def test_to_who_reads_nothing_holds_up_nobody_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(links_module, "QUEUE_FRAMES_MAX", 10)
        async with open_mesh() as mesh:
            mesh.window = 1
            stuck = trio.Event()

            async def sleep(member: int, stream: MemoryStream) -> None:
                if member == 3:
                    await stuck.wait()
                with suppress(NetworkError):
                    await mesh.members[member].handle(as_stream(stream))

            monkeypatch.setattr(mesh, "handle", sleep)
            mesh.nursery.start_soon(mesh.members[0].run)
            bodies = [bytes([number]) for number in range(30)]
            for count, body in enumerate(bodies, start=1):
                mesh.members[0].broadcast(vote(body))
                await trio.testing.wait_all_tasks_blocked()
                await mesh.until(1, 0, [b"\0", *bodies[:count]])
            stuck.set()
            # What was on its way, then the newest: the engine says again what still matters of the rest.
            await mesh.until(3, 0, [b"\0", bodies[0], *bodies[-10:]])
            assert mesh.members[0]._outboxes[node(3)].dropped == 19

    async def test_that_end_at_once_are_tried_less_and_less_often(
        self, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A member that does not know yet that it is one refuses each."""

        async def refuse(member: int, stream: MemoryStream) -> None:
            await stream.reset()

        async with open_mesh() as mesh:
            monkeypatch.setattr(mesh, "handle", refuse)
            mesh.nursery.start_soon(mesh.members[0].run)
            await trio.sleep(30)
            times = [when for _, member, when in mesh.dials if member == 3]
            pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
            assert pauses == pytest.approx([RETRY_S_MIN, 0.4, 0.8, 1.6, 3.2, *[RETRY_S_MAX] * (len(pauses) - 5)])
            assert len(pauses) > 5


class TestSeat:
    async def test_keeps_the_streams_of_who_stays_and_ends_those_of_who_left(self) -> None:
        async with open_mesh() as mesh:
            one = mesh.members[1]
            mesh.nursery.start_soon(one.run)
            for member in (0, 2, 3):
                await mesh.until(member, 1, [b"\1"])
            staying, leaving = mesh.connect(node(2), 1), mesh.connect(node(3), 1)
            for stream in (staying, leaving):
                await stream.send(vote(b"before"))
            for member in (2, 3):
                await mesh.until(1, member, [b"before"])
            one.broadcast(vote(b"last"))
            await one.seat(RESEATED)
            await expect_reset(leaving)
            one.broadcast(vote(b"first"))
            await mesh.until(4, 1, [b"\1", b"first"])
            for member in (0, 2):
                await mesh.until(member, 1, [b"\1", b"last", b"first"])
            await staying.send(vote(b"after"))
            await mesh.until(1, 2, [b"before", b"after"])
            assert sorted(member for _, member, _ in mesh.dials) == [0, 2, 3, 4]
            while one.up != {node(0), node(2), node(4)}:
                await trio.lowlevel.checkpoint()
            assert b"first" not in [body for _, _, body in mesh.received[3]]

    async def test_shuns_whoever_was_and_nobody_in_its_place(self) -> None:
        """Member 2 moves to where member 1 was shunned for a lie, and member 1 to 2."""
        async with open_mesh() as mesh:
            zero = mesh.members[0]
            await zero.shun(node(1))
            await zero.seat(RESEATED)
            await expect_reset(mesh.connect(node(1), 0))
            honest = mesh.connect(node(2), 0)
            await honest.send(vote(b"heard"))
            await mesh.until(0, 2, [b"heard"])

    async def test_takes_frames_of_new_members_and_none_of_who_left(self) -> None:
        async with open_mesh() as mesh:
            await mesh.members[0].seat(RESEATED)
            await expect_reset(mesh.connect(node(3), 0))
            new = mesh.connect(node(4), 0)
            await new.send(vote(b"hello"))
            await mesh.until(0, 4, [b"hello"])


async def expect_reset(stream: MemoryStream) -> None:
    with trio.fail_after(60), pytest.raises(StreamBroken):
        await stream.receive_some(1)


class TestReceiving:
    async def test_from_a_later_stream_of_a_member_ends_the_earlier_one(self) -> None:
        async with open_mesh() as mesh:
            first = mesh.connect(node(1), 0)
            await first.send(vote(b"first"))
            await mesh.until(0, 1, [b"first"])
            second = mesh.connect(node(1), 0)
            await expect_reset(first)
            await second.send(vote(b"second"))
            await mesh.until(0, 1, [b"first", b"second"])
            third = mesh.connect(node(1), 0)
            await expect_reset(second)  # the end of the first took nothing with it
            await third.send(vote(b"third"))
            await mesh.until(0, 1, [b"first", b"second", b"third"])

    @pytest.mark.parametrize("peer", [NodeId(OWNER.public), node(0)], ids=["a stranger", "itself"])
    async def test_from_who_is_no_other_member_is_refused(self, peer: NodeId) -> None:
        async with open_mesh() as mesh:
            stream = mesh.connect(peer, 0)
            with suppress(StreamBroken):
                await stream.send(vote(b"vote"))
            await expect_reset(stream)
            assert mesh.received[0] == []
            assert mesh.members[0]._inbound == {}

    @pytest.mark.parametrize(
        "hostile",
        [bytes(4), b"\xff" * 4, b"\0\0\0\x01\x00", vote(b"forged")],
        ids=["no size", "a huge size", "no type", "what the receiver refuses"],
    )
    async def test_from_who_breaks_the_rules_ends_its_stream_and_no_other(self, hostile: bytes) -> None:
        async with open_mesh() as mesh:
            liar, honest = mesh.connect(node(1), 0), mesh.connect(node(2), 0)
            await honest.send(vote(b"before"))
            await liar.send(vote(b"true") + hostile + vote(b"too late"))
            await expect_reset(liar)
            await honest.send(vote(b"after"))
            await mesh.until(0, 2, [b"before", b"after"])
            await mesh.until(0, 1, [b"true"])
            assert set(mesh.members[0]._inbound) == {node(2)}

    async def test_of_a_frame_that_is_cut_off_waits_for_the_rest(self) -> None:
        async with open_mesh() as mesh:
            stream = mesh.connect(node(1), 0)
            data = vote(b"first") + vote(b"second")
            for at in range(len(data)):
                await stream.send(data[at : at + 1])
                await trio.testing.wait_all_tasks_blocked()
            assert [body for _, _, body in mesh.received[0]] == [b"first", b"second"]

    async def test_ends_with_the_stream_and_begins_with_the_next(self) -> None:
        async with open_mesh() as mesh:
            stream = mesh.connect(node(1), 0)
            await stream.send(vote(b"whole") + vote(b"half")[:-1])
            await stream.close()
            await mesh.until(0, 1, [b"whole"])
            await trio.testing.wait_all_tasks_blocked()
            assert mesh.members[0]._inbound == {}
            again = mesh.connect(node(1), 0)
            await again.send(vote(b"again"))
            await mesh.until(0, 1, [b"whole", b"again"])
