"""Gossip over real sockets: what holds reaches everybody, what does not goes no further, and junk ends nobody."""

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.exceptions import StreamFailure
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX
from libp2p.utils.varint import encode_uvarint

from economics.crypto import Level, NodeId, digest
from economics.errors import Reason, Rejected
from gossip.pubsub import (
    BACKOFF_S_MAX,
    CONTROL_MAX,
    ED25519_ID_PREFIX,
    IDS_MAX,
    INVALID_MAX,
    IWANT_MAX,
    MESSAGES_BURST,
    PROTOCOL,
    RPC_BYTES_MAX,
    Gossip,
    GossipError,
    kept_control,
    open_gossip,
)
from p2pnode.network.host import Network, open_network

TOPIC = "/p2pnode/00000000/commitments/1"
OTHER_TOPIC = "/p2pnode/00000000/transactions/1"
SIZE_MAX = 1_000
LISTEN = ["/ip4/127.0.0.1/tcp/0"]


def validate(author: NodeId, data: bytes) -> None:
    if data.startswith(b"bad"):
        raise Rejected(Reason.WRONG_EPOCH)
    if data.startswith(b"bug"):
        raise ValueError


def refuse(author: NodeId, data: bytes) -> None:
    raise Rejected(Reason.EXPIRED)


class Member:
    def __init__(self, network: Network, gossip: Gossip) -> None:
        self.network = network
        self.gossip = gossip
        self.got: list[bytes] = []
        self.authors: set[NodeId] = set()

    async def handle(self, author: NodeId, data: bytes) -> None:
        if data.startswith(b"crash"):
            raise ValueError
        self.got.append(data)
        self.authors.add(author)


@asynccontextmanager
async def open_member(index: int) -> AsyncIterator[Member]:
    async with (
        open_network(seed=bytes([index + 1]) * 32, listen=LISTEN) as network,
        open_gossip(host=network.host, topics=[TOPIC, OTHER_TOPIC]) as gossip,
    ):
        member = Member(network, gossip)
        await gossip.subscribe(TOPIC, size_max=SIZE_MAX, validate=validate, handle=member.handle)
        await gossip.subscribe(OTHER_TOPIC, size_max=SIZE_MAX, validate=refuse, handle=member.handle)
        yield member


@asynccontextmanager
async def open_line(count: int) -> AsyncIterator[list[Member]]:
    """Members in a line, each meshed with its neighbours only."""
    async with AsyncExitStack() as stack:
        members = [await stack.enter_async_context(open_member(index)) for index in range(count)]
        for left, right in itertools.pairwise(members):
            await link(left, right)
        await until(lambda: [member.gossip.mesh(TOPIC) for member in members] == [1] + [2] * (count - 2) + [1])
        yield members


async def link(one: Member, other: Member) -> None:
    await one.network.connect(other.network.node_id, addresses=other.network.addresses())


async def until(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while True:
            if is_so():
                return
            await trio.sleep(0.02)


class Rogue:
    """A peer that speaks gossip's protocol by hand."""

    def __init__(self, network: Network, victim: Member) -> None:
        self.network = network
        self.victim = victim
        self.stream: Any = None
        self.key = create_new_key_pair(b"r" * 32)

    async def open(self) -> None:
        await self.network.connect(self.victim.network.node_id, addresses=self.victim.network.addresses())
        self.stream = await self.network.host.new_stream(self.victim.network.host.get_id(), [TProtocol(PROTOCOL)])

    async def send(self, rpc: Any) -> None:
        await self.send_raw(rpc.SerializeToString())

    async def send_raw(self, data: bytes) -> None:
        if self.stream is None:
            await self.open()
        with suppress(StreamError):  # refused half-way
            await self.stream.write(encode_uvarint(len(data)) + data)

    def signed(self, data: bytes, *, topics: Sequence[str] = (TOPIC,), seqno: int = 0, author: ID | None = None) -> Any:
        """A message by this rogue; by another `author` if it lies."""
        from_id = self.network.host.get_id() if author is None else author
        message = rpc_pb2.Message(
            data=data, topicIDs=topics, from_id=from_id.to_bytes(), seqno=seqno.to_bytes(8, "big")
        )
        message.signature = self.key.private_key.sign(PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString())
        message.key = self.key.public_key.serialize()
        return message

    async def publish(self, *messages: Any) -> None:
        await self.send(rpc_pb2.RPC(publish=messages))


@asynccontextmanager
async def open_rogue(victim: Member) -> AsyncIterator[Rogue]:
    async with open_network(seed=b"r" * 32, listen=LISTEN) as network:
        yield Rogue(network, victim)


async def test_a_message_reaches_all() -> None:
    async with open_line(5) as members:
        await members[0].gossip.publish(TOPIC, b"news")
        await until(lambda: all(member.got == [b"news"] for member in members[1:]))
        assert all(member.authors == {members[0].network.node_id} for member in members[1:])
        assert members[0].got == []


async def test_an_invalid_message_is_not_forwarded_and_the_next_valid_one_is() -> None:
    async with open_line(3) as (a, b, c):
        await a.gossip.publish(TOPIC, b"bad news")
        await a.gossip.publish(TOPIC, b"good news")
        await until(lambda: c.got != [])
        assert (b.got, c.got) == ([b"good news"], [b"good news"])
        assert b.gossip.rejected == {Reason.WRONG_EPOCH: 1}
        assert b.gossip.rejected_of(a.network.node_id) == {Reason.WRONG_EPOCH: 1}
        assert c.gossip.rejected == {}


async def test_a_forged_author_is_refused() -> None:
    async with open_line(2) as (a, b), open_rogue(a) as rogue:
        await rogue.publish(rogue.signed(b"forged", author=b.network.host.get_id()), rogue.signed(b"own"))
        await until(lambda: a.got != [])
        assert a.got == [b"own"]
        assert a.gossip.rejected == {Reason.BAD_SIGNATURE: 1}


async def test_every_other_malformed_message_is_refused_by_name() -> None:
    async with open_member(0) as a, open_rogue(a) as rogue:
        unsigned = rogue.signed(b"unsigned")
        unsigned.ClearField("signature")
        keyless = rogue.signed(b"keyless", author=ID(b"\x12\x20" + bytes(32)))
        await rogue.publish(
            unsigned,
            keyless,
            rogue.signed(b"no topic", topics=[]),
            rogue.signed(b"two topics", topics=[TOPIC, OTHER_TOPIC]),
            rogue.signed(b"strange topic", topics=["/x"]),
            rogue.signed(bytes(SIZE_MAX + 1)),
            rogue.signed(b"bad"),
            rogue.signed(b"bug"),
            rogue.signed(b"good"),
        )
        await until(lambda: a.got != [])
        assert a.got == [b"good"]
        assert a.gossip.rejected == {
            Reason.BAD_SIGNATURE: 1,
            Reason.MALFORMED: 4,
            Reason.TOO_LARGE: 1,
            Reason.WRONG_EPOCH: 1,
        }
        assert a.gossip.counters.faults == 1


@pytest.mark.parametrize("shadow", ["junk topic", "refusing topic", "bad signature", "other topics too"])
async def test_a_refused_copy_does_not_shadow_the_good_one(shadow: str) -> None:
    async with open_member(0) as a, open_rogue(a) as rogue:
        copy = {
            "junk topic": rogue.signed(b"news", topics=["/x"]),
            "refusing topic": rogue.signed(b"news", topics=[OTHER_TOPIC]),
            "bad signature": rogue.signed(b"news", author=a.network.host.get_id()),
            "other topics too": rogue.signed(b"news", topics=[TOPIC, "/x"]),
        }[shadow]
        await rogue.publish(copy, rogue.signed(b"news"))
        await until(lambda: a.got != [])
        assert a.got == [b"news"]


async def test_the_same_data_of_two_authors_is_one_message() -> None:
    async with open_line(3) as (a, b, c):
        await a.gossip.publish(TOPIC, b"news")
        await until(lambda: c.got != [])
        await b.gossip.publish(TOPIC, b"news")
        await c.gossip.publish(TOPIC, b"last")
        await until(lambda: b"last" in a.got)
        assert (a.got, b.got, c.got) == ([b"last"], [b"news", b"last"], [b"news"])


@pytest.mark.parametrize(
    "junk",
    [b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", bytes(RPC_BYTES_MAX + 1), b""],
    ids=["junk", "cut", "oversize", "empty"],
)
async def test_junk_ends_its_stream_and_nothing_else(junk: bytes) -> None:
    async with open_line(2) as (a, b), open_rogue(a) as rogue:
        await rogue.send_raw(junk)
        await b.gossip.publish(TOPIC, b"news")
        await until(lambda: a.got == [b"news"])
        rogue.stream = None
        await rogue.publish(rogue.signed(b"from the rogue"))
        await until(lambda: b.got == [b"from the rogue"])


async def test_what_an_oversize_rpc_holds_is_not_read() -> None:
    async with open_line(2) as (a, b), open_rogue(a) as rogue:
        await rogue.publish(rogue.signed(b"hidden in it"), rogue.signed(bytes(RPC_BYTES_MAX)))
        await b.gossip.publish(TOPIC, b"news")
        await until(lambda: a.got != [])
        assert a.got == [b"news"]
        assert a.gossip.rejected == {}


async def test_the_handler_of_streams_never_raises_even_without_a_fence_around_it() -> None:
    class Broken:
        muxed_conn = SimpleNamespace(peer_id=ID(b"any peer"))

        async def read(self, count: int) -> bytes:
            raise ValueError

        async def reset(self) -> None:
            raise ValueError

    async with open_member(0) as a:
        await a.gossip._pubsub.stream_handler(Broken())


async def test_streams_of_one_peer_are_limited() -> None:
    async with open_line(2) as (a, b), open_rogue(a) as rogue:
        for _ in range(20):
            with suppress(StreamFailure):  # refused at once
                await rogue.open()
        neighbour = a.gossip.neighbour(rogue.network.host.get_id())
        await until(lambda: neighbour.streams_open == 4)
        await b.gossip.publish(TOPIC, b"news")
        await until(lambda: a.got == [b"news"])


async def test_a_handler_that_raises_loses_its_message_only() -> None:
    async with open_line(2) as (a, b):
        await a.gossip.publish(TOPIC, b"crash")
        await a.gossip.publish(TOPIC, b"news")
        await until(lambda: b.got == [b"news"])
        assert b.gossip.counters.faults == 1


async def test_a_flood_costs_its_sender_its_budget_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossip.pubsub.MESSAGES_PER_S", 0.001)  # else a slow machine gives it as fast as it takes
    async with open_line(2) as (a, b), open_rogue(a) as rogue:
        flood = [rogue.signed(b"flood %d" % index, seqno=index) for index in range(2 * MESSAGES_BURST)]
        await rogue.publish(*flood)
        await until(lambda: a.gossip.rejected[Reason.OVER_BUDGET] == 1)
        assert a.gossip.counters.received < 1.5 * MESSAGES_BURST
        await b.gossip.publish(TOPIC, b"news")
        await until(lambda: b"news" in a.got)


async def test_a_peer_that_sends_too_much_invalid_is_no_longer_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossip.pubsub.INVALID_DECAY", 1.0)  # nothing is forgotten, however long the test takes
    async with open_line(2) as (a, b), open_rogue(a) as rogue:
        await rogue.publish(*(rogue.signed(b"bad %d" % index) for index in range(2 * INVALID_MAX)))
        await rogue.publish(rogue.signed(b"now good"))
        await until(lambda: a.gossip.rejected[Reason.WRONG_EPOCH] >= INVALID_MAX)
        await b.gossip.publish(TOPIC, b"news")
        await until(lambda: a.got != [])
        assert a.got == [b"news"]
        assert a.gossip.rejected[Reason.WRONG_EPOCH] <= INVALID_MAX + 2


async def test_a_library_task_that_raises_does_not_end_the_node() -> None:
    async def fail(*_: object) -> None:
        raise ValueError

    async with open_member(0) as a, open_member(1) as b:
        a.gossip._router.on_peer_subscribed = fail
        await link(b, a)
        await until(lambda: a.gossip.counters.faults > 0 and a.gossip.mesh(TOPIC) == 1)
        await b.gossip.publish(TOPIC, b"news")
        await until(lambda: a.got == [b"news"])


async def test_a_peer_is_never_sent_more_than_it_takes() -> None:
    async with open_line(2) as members:
        for member in members:
            assert [queue.max_message_size for queue in member.gossip._pubsub.peer_queues.values()] == [RPC_BYTES_MAX]


async def test_a_late_joiner_is_meshed_and_hears_what_follows() -> None:
    async with open_line(2) as (a, b), open_member(7) as late:
        await link(late, b)
        await until(lambda: late.gossip.mesh(TOPIC) == 1)
        await a.gossip.publish(TOPIC, b"news")
        await until(lambda: late.got == [b"news"])


async def test_gossip_opened_after_the_connection_still_meets_its_neighbours() -> None:
    async with open_member(0) as a, open_network(seed=b"z" * 32, listen=LISTEN) as network:
        await network.connect(a.network.node_id, addresses=a.network.addresses())
        async with open_gossip(host=network.host, topics=[TOPIC]) as gossip:
            late = Member(network, gossip)
            await gossip.subscribe(TOPIC, size_max=SIZE_MAX, validate=validate, handle=late.handle)
            await until(lambda: late.gossip.mesh(TOPIC) == 1)
            await a.gossip.publish(TOPIC, b"news")
            await until(lambda: late.got == [b"news"])


async def test_a_neighbour_that_went_and_came_back_is_meshed_again() -> None:
    async with open_member(0) as a:
        for _ in range(2):
            async with open_member(1) as b:
                await link(b, a)
                await until(lambda: a.gossip.mesh(TOPIC) == 1)
                await a.gossip.publish(TOPIC, b"news %d" % a.gossip.counters.published)
                await until(lambda b=b: b.got != [])  # type: ignore[misc]
            await until(lambda: a.gossip.mesh(TOPIC) == 0)


async def test_what_is_too_large_is_not_published() -> None:
    async with open_member(0) as a:
        with pytest.raises(GossipError, match="at most 1000"):
            await a.gossip.publish(TOPIC, bytes(SIZE_MAX + 1))
        with pytest.raises(GossipError, match="no topic"):
            await a.gossip.publish("/x", b"")


async def test_messages_are_offered_under_the_ids_by_which_they_are_known() -> None:
    """With the library's own IDs in IHAVE, neighbours would ask for everything again."""
    async with open_member(0) as a:
        await a.gossip.publish(TOPIC, b"news")
        assert a.gossip._router.mcache.window(TOPIC) == [digest(Level.MESSAGE, b"news")]


async def test_what_the_block_raises_leaves_as_it_is() -> None:
    with pytest.raises(LookupError):
        async with open_member(0):
            raise LookupError


def test_of_a_control_message_only_our_part_is_kept() -> None:
    control = rpc_pb2.ControlMessage()
    for topic in (TOPIC, "/x"):
        control.ihave.add(topicID=topic, messageIDs=[b"i"] * (IDS_MAX + 1))
        control.graft.add(topicID=topic)
        prune = control.prune.add(topicID=topic, backoff=1 << 60)
        prune.peers.add(peerID=b"p")
        control.iwant.add(messageIDs=[b"w"] * (IWANT_MAX + 1))
    control.idontwant.add(messageIDs=[b"d"])
    kept = kept_control(control, {TOPIC})
    assert [(entry.topicID, len(entry.messageIDs)) for entry in kept.ihave] == [(TOPIC, IDS_MAX)]
    assert [entry.topicID for entry in kept.graft] == [TOPIC]
    assert [(entry.topicID, entry.backoff, len(entry.peers)) for entry in kept.prune] == [(TOPIC, BACKOFF_S_MAX, 0)]
    assert [len(entry.messageIDs) for entry in kept.iwant] == [IWANT_MAX]
    assert not kept.idontwant
    many = rpc_pb2.ControlMessage(graft=[rpc_pb2.ControlGraft(topicID=TOPIC)] * (CONTROL_MAX + 5))
    assert len(kept_control(many, {TOPIC}).graft) == CONTROL_MAX


def test_a_peer_id_is_the_key_behind_a_prefix() -> None:
    key = create_new_key_pair(b"r" * 32).public_key
    assert ID.from_pubkey(key).to_bytes() == ED25519_ID_PREFIX + key.to_bytes()
