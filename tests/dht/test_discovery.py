"""Discovery over real sockets, several nodes in one process, each with a host of its own."""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.host.exceptions import StreamFailure
from libp2p.io.exceptions import IOException
from libp2p.kad_dht.pb.kademlia_pb2 import Message, Record
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.peerinfo import PeerInfo
from libp2p.utils.varint import encode_uvarint, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr
from nacl.signing import SigningKey
from trio.testing import MockClock

from dht.discovery import (
    MESSAGE_BYTES_MAX,
    STREAMS_PER_PEER,
    Bucket,
    Discovery,
    DiscoveryError,
    open_discovery,
    peer_of,
)
from dht.records import LIFE_MS_MAX, build_record, record_key
from economics.crypto import NodeId, Signature
from p2pnode.network.host import Network, open_network
from p2pnode.testnet import free_addresses

CHAIN = b"a chain".ljust(32)
OTHER_CHAIN = b"b chain".ljust(32)
BLOB = b"blob".ljust(32)
LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody given up for being slow: all nodes share one thread, and the machine with much else."""
    monkeypatch.setattr("dht.lookup.STRAGGLER_S", 60.0)
    monkeypatch.setattr("dht.discovery.STRAGGLER_S", 60.0)
    monkeypatch.setattr("dht.discovery.ASK_S", 60.0)


def key_of(index: int) -> SigningKey:
    return SigningKey(bytes([index]) * 32)


def id_of(index: int) -> NodeId:
    return NodeId(bytes(key_of(index).verify_key))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Node:
    index: int
    network: Network
    discovery: Discovery
    extra: list[str] = field(default_factory=list)
    """Addresses that it claims besides its own."""

    @property
    def known_as(self) -> tuple[NodeId, Sequence[str]]:
        return self.network.node_id, self.network.addresses()


@asynccontextmanager
async def open_node(
    index: int,
    *others: tuple[NodeId, Sequence[str]],
    server: bool = True,
    chain: bytes = CHAIN,
    listen: Sequence[str] = LOOPBACK,
    cache: Path | None = None,
) -> AsyncIterator[Node]:
    extra: list[str] = []
    async with (
        open_network(seed=bytes([index]) * 32, listen=listen) as network,
        open_discovery(
            host=network.host,
            chain_id=chain,
            sign=lambda message: Signature(key_of(index).sign(message).signature),
            node_id=network.node_id,
            addresses=lambda: [*network.addresses(), *extra],
            connect=lambda node, addresses: network.connect(node, addresses=addresses, deadline_s=60),
            server=server,
            bootstrap=others,
            cache_path=cache,
            clock_ms=now_ms,
        ) as discovery,
    ):
        yield Node(index, network, discovery, extra)


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(120):
        while True:
            if await is_so():
                return
            await trio.sleep(0.05)


async def until_known(nodes: Sequence[Node]) -> None:
    """Wait until every one finds every other by its record."""

    async def all_known() -> bool:
        return all(
            [
                await one.discovery.find_node(other.network.node_id) == other.network.addresses()
                for one in nodes
                for other in nodes
            ]
        )

    await until(all_known)


async def open_stream(node: Node, other: Node) -> Any:
    """Open a stream in the DHT's protocol; None if it is refused."""
    await node.network.connect(other.network.node_id, addresses=other.network.addresses())
    with suppress(StreamFailure):
        return await node.network.host.new_stream(peer_of(other.network.node_id), [TProtocol(other.discovery.protocol)])


async def say(stream: Any, request: Any) -> Any:
    """Return the reply to a request; None if the stream ends instead."""
    data = request.SerializeToString()
    with trio.fail_after(60):
        try:
            await stream.write(encode_uvarint(len(data)) + data)
            reply = Message()
            reply.ParseFromString(await read_varint_prefixed_bytes_limited(stream, 1 << 20))
        except (StreamError, IOException):
            return None
    return reply


async def ask(node: Node, other: Node, request: Any) -> Any:
    """Return the reply to a request on a stream of its own; None if there is none."""
    stream = await open_stream(node, other)
    if stream is None:
        return None
    reply = await say(stream, request)
    await stream.reset()
    return reply


def record(index: int, *, subject: int | None = None, sequence_ms: int | None = None, chain: bytes = CHAIN) -> bytes:
    return build_record(
        node=id_of(index if subject is None else subject),
        addresses=["/ip4/10.0.0.1/tcp/1"],
        sequence_ms=now_ms() if sequence_ms is None else sequence_ms,
        life_ms=LIFE_MS_MAX,
        chain_id=chain,
        sign=lambda message: Signature(key_of(index).sign(message).signature),
    )


def put(key: str, value: bytes) -> Any:
    raw = key.encode("ascii")
    return Message(type=Message.PUT_VALUE, key=raw, record=Record(key=raw, value=value))


async def test_nodes_that_know_one_find_each_other() -> None:
    async with open_node(1) as a, open_node(2, a.known_as) as b, open_node(3, a.known_as) as c:
        await until_known([a, b, c])


async def test_a_bootstrap_peer_that_comes_late_is_found() -> None:
    async with open_node(1, listen=free_addresses(1)) as a:
        known = a.known_as
    async with open_node(2, known) as b:

        async def has_failed() -> bool:
            return bool(b.discovery._strikes)

        await until(has_failed)
        async with open_node(1, listen=known[1]):

            async def is_met() -> bool:
                return b.discovery.table_size() == 1

            await until(is_met)


async def test_a_node_alone_cannot_announce_and_says_so() -> None:
    async with open_node(1) as a:
        with pytest.raises(DiscoveryError, match="no peer holds"):
            await a.discovery.announce()


async def test_announcing_counts_those_that_give_the_record_back() -> None:
    async with open_node(1) as a, open_node(2, a.known_as) as b, open_node(3, a.known_as) as c:
        await until_known([a, b, c])
        assert await c.discovery.announce() == 2


async def test_a_put_that_is_only_acknowledged_does_not_count() -> None:
    async with open_node(1) as a, open_node(2, a.known_as) as b:
        await until_known([a, b])
        a.discovery._kad.value_store.put_record = lambda key, record: None
        with pytest.raises(DiscoveryError, match="no peer holds"):
            await b.discovery.announce()


async def test_an_unknown_node_is_none() -> None:
    async with open_node(1) as a, open_node(2, a.known_as) as b:
        await until_known([a, b])
        assert await b.discovery.find_node(id_of(99)) is None


async def test_a_new_address_is_announced_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dht.discovery.UPKEEP_FIRST_S", 600)
    async with open_node(1) as a, open_node(2, a.known_as) as b:
        await until_known([a, b])
        b.extra.append("/ip4/10.1.2.3/tcp/4001")

        async def is_known() -> bool:
            return await a.discovery.find_node(b.network.node_id) == (*b.network.addresses(), *b.extra)

        await until(is_known)


async def test_a_stale_record_here_is_mended_by_a_fresh_lookup() -> None:
    """As after a sleep: the local store holds a record that was valid, and was replaced meanwhile."""
    async with open_node(1) as a, open_node(2, a.known_as) as b, open_node(3, a.known_as) as c:
        await until_known([a, b, c])
        key = record_key(c.network.node_id).encode("ascii")
        stale = record(3, sequence_ms=now_ms() - 60_000)
        a.discovery._kad.value_store.store[key] = (Record(key=key, value=stale), time.time() + 60)
        assert await a.discovery.find_node(c.network.node_id) == ("/ip4/10.0.0.1/tcp/1",)
        assert await a.discovery.find_node(c.network.node_id, fresh=True) == c.network.addresses()
        assert await a.discovery.find_node(c.network.node_id) == c.network.addresses()


async def test_a_lookup_mends_the_peers_that_missed_the_newest_record() -> None:
    async with open_node(1) as a, open_node(2, a.known_as) as b, open_node(3, a.known_as) as c:
        await until_known([a, b, c])
        key = record_key(c.network.node_id).encode("ascii")
        stale = record(3, sequence_ms=now_ms() - 60_000)
        b.discovery._kad.value_store.store[key] = (Record(key=key, value=stale), time.time() + 60)
        assert await a.discovery.find_node(c.network.node_id, fresh=True) == c.network.addresses()
        assert await b.discovery.find_node(c.network.node_id) == c.network.addresses()


async def test_a_liars_answers_count_for_nothing() -> None:
    """It serves records that nobody signed, of others, of the past and of the far future."""
    async with open_node(1) as a, open_node(2, a.known_as) as b, open_node(3, a.known_as) as c:
        await until_known([a, b, c])
        key = record_key(c.network.node_id).encode("ascii")
        for lie in (
            record(2, subject=3),
            record(2),
            record(3, chain=OTHER_CHAIN),
            record(3, sequence_ms=now_ms() - 2 * LIFE_MS_MAX),
            record(3, sequence_ms=now_ms() + LIFE_MS_MAX),
            b"junk",
        ):
            b.discovery._kad.value_store.store[key] = (Record(key=key, value=lie), time.time() + 60)
            assert await a.discovery.find_node(c.network.node_id, fresh=True) == c.network.addresses()


async def test_only_valid_records_are_stored() -> None:
    async with open_node(1) as a, open_node(2, a.known_as) as b:
        await until_known([a, b])
        now = now_ms()
        key = record_key(id_of(7))
        assert set(a.discovery._kad.validator._validators) == {"pn"}
        refused = [
            put(key, record(8, subject=7)),
            put(key, record(8)),
            put(key, record(7, chain=OTHER_CHAIN)),
            put(key, record(7, sequence_ms=now - 2 * LIFE_MS_MAX)),
            put(key, record(7, sequence_ms=now + LIFE_MS_MAX)),
            put("/pk/" + key[4:], record(7)),
            put("/ipns/" + key[4:], record(7)),
            put("plain", b"value"),
        ]
        for request in refused:
            assert await ask(b, a, request) is None
        assert {bytes(held) for held in a.discovery._kad.value_store.store} == {
            record_key(id_of(index)).encode("ascii") for index in (1, 2)
        }
        good = put(key, record(7, sequence_ms=now))
        assert await ask(b, a, good) is not None
        assert await ask(b, a, good) is not None, "the same record may be put again"
        assert await ask(b, a, put(key, record(7, sequence_ms=now - 1))) is None, "an older one may not"


async def test_a_full_store_keeps_the_records_nearest_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dht.discovery.VALUES_MAX", 5)
    async with open_node(1) as a:
        store = a.discovery._kad.value_store
        keys = [record_key(id_of(index)).encode("ascii") for index in range(2, 30)]
        for index, key in enumerate(keys, 2):
            store.put_record(key, Record(key=key, value=record(index)))
        assert set(store.store) == set(sorted(keys, key=store.distance)[:5])


async def test_an_expired_record_is_served_no_more() -> None:
    async with open_node(1) as a:
        key = record_key(id_of(7)).encode("ascii")
        store = a.discovery._kad.value_store
        store.put_record(key, Record(key=key, value=record(7, sequence_ms=now_ms() - LIFE_MS_MAX - 1)))
        assert store.get(key) is None


async def test_provider_records_are_bounded_and_hold_no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dht.discovery.PROVIDER_KEYS_MAX", 5)
    async with open_node(1) as a:
        store = a.discovery._kad.provider_store
        claimed = PeerInfo(peer_of(id_of(2)), [Multiaddr("/ip4/10.0.0.1/tcp/1")])
        for index in range(9):
            store.add_provider(bytes([index]), claimed)
        assert list(store.providers) == [bytes([index]) for index in range(4, 9)]
        assert store.get_providers(bytes([8])) == [PeerInfo(claimed.peer_id, [])]


async def test_providers_are_found() -> None:
    async with (
        open_node(1) as a,
        open_node(2, a.known_as) as b,
        open_node(3, a.known_as) as c,
        open_node(4, a.known_as, server=False, listen=()) as client,
    ):
        await until_known([a, b, c])
        for node in (b, c):
            await node.discovery.provide(BLOB)

        async def are_found() -> bool:
            return set(await client.discovery.find_providers(BLOB)) == {b.network.node_id, c.network.node_id}

        await until(are_found)
        assert await a.discovery.find_providers(b"other".ljust(32)) == ()


@pytest.mark.parametrize("listen", [(), LOOPBACK], ids=["dials only", "listens"])
async def test_a_client_finds_nodes_and_enters_no_table(listen: Sequence[str]) -> None:
    async with (
        open_node(1) as a,
        open_node(2, a.known_as) as b,
        open_node(3, a.known_as, server=False, listen=listen) as client,
    ):
        await until_known([a, b])
        assert await client.discovery.find_node(b.network.node_id, fresh=True) == b.network.addresses()
        assert peer_of(client.network.node_id) in a.network.host.get_connected_peers()
        for node in (a, b):
            assert not node.discovery._kad.routing_table.peer_in_table(peer_of(client.network.node_id))
        assert await a.discovery.find_node(client.network.node_id, fresh=True) is None


async def test_two_chains_do_not_mix() -> None:
    async with (
        open_node(1) as a,
        open_node(2, a.known_as) as b,
        open_node(3, a.known_as, chain=OTHER_CHAIN) as stranger,
    ):
        await until_known([a, b])

        async def has_failed() -> bool:
            return bool(stranger.discovery._strikes)

        await until(has_failed)
        assert stranger.discovery.table_size() == 0
        assert not a.discovery._kad.routing_table.peer_in_table(peer_of(stranger.network.node_id))


async def test_the_public_name_is_not_served() -> None:
    async with open_node(1) as a:
        names = {str(name) for name in a.network.host.get_mux().get_protocols()}
        assert {name for name in names if "kad" in name} == {a.discovery.protocol}


async def test_a_kad_message_over_the_limit_ends_its_stream_and_no_more() -> None:
    async with open_node(1) as a, open_node(2, a.known_as) as b:
        await until_known([a, b])
        assert await ask(b, a, Message(type=Message.PING, key=bytes(MESSAGE_BYTES_MAX // 2))) is not None
        assert await ask(b, a, Message(type=Message.PING, key=bytes(MESSAGE_BYTES_MAX + 1))) is None
        assert await ask(b, a, Message(type=Message.PING)) is not None


async def test_the_handler_of_streams_never_raises_even_without_a_fence_around_it() -> None:
    class Broken:
        muxed_conn = SimpleNamespace(peer_id=peer_of(id_of(2)))

        def __getattr__(self, name: str) -> Any:
            raise ValueError

    async with open_node(1) as a:
        await a.discovery._server.handle(Broken())


async def test_silent_streams_of_one_peer_do_not_shut_the_dht() -> None:
    async with open_node(1) as a, open_node(2, a.known_as) as b, open_node(3, a.known_as) as c:
        await until_known([a, b, c])
        streams = [stream for _ in range(2 * STREAMS_PER_PEER) if (stream := await open_stream(b, a)) is not None]
        assert await ask(c, a, Message(type=Message.PING)) is not None
        answers = [await say(stream, Message(type=Message.PING)) for stream in streams]
        assert len([answer for answer in answers if answer is not None]) == STREAMS_PER_PEER
        for stream in streams:
            await stream.reset()
        assert await ask(b, a, Message(type=Message.PING)) is not None


async def test_good_peers_are_kept_on_disk_and_are_a_way_back(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    async with open_node(1) as a:
        async with open_node(2, a.known_as, cache=path) as b:
            await until_known([a, b])
            assert b.discovery.good_peers() == (a.known_as,)
        assert len(json.loads(path.read_bytes())["peers"]) == 1
        async with open_node(2, cache=path) as b:
            await until_known([a, b])


async def test_the_announced_sequence_outlives_a_clock_that_went_back() -> None:
    async with open_node(1) as a, open_node(2, a.known_as) as b:
        await until_known([a, b])
        ahead = record(2, sequence_ms=now_ms() + 200_000)
        assert await ask(b, a, put(record_key(b.network.node_id), ahead)) is not None
        b.discovery._sequence = 0
        assert await b.discovery.announce() == 1
        assert await a.discovery.find_node(b.network.node_id) == b.network.addresses()


async def test_what_the_block_raises_leaves_as_it_is() -> None:
    with pytest.raises(LookupError):
        async with open_node(1):
            raise LookupError


async def test_a_bucket_lets_a_burst_pass_and_then_one_at_a_time(autojump_clock: MockClock) -> None:
    bucket = Bucket(burst=5, per_s=0.5)
    started = trio.current_time()
    times = []
    for _ in range(12):
        await bucket.take()
        times.append(trio.current_time() - started)
    assert times[:5] == [0] * 5
    assert times[5:] == pytest.approx([2, 4, 6, 8, 10, 12, 14])
    assert all(sum(1 for other in times if 0 <= other - time < 10) <= 10 for time in times)
