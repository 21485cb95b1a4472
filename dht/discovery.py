"""Discovery: finds a node's addresses and a blob's providers in the library's Kademlia DHT. Nothing here is trusted.

The library *serves* (its routing table, its stores, its stream handler, under our protocol's name); this room *asks*,
with lookups of its own, because the library's stop at the local store, wait 10 s for each frozen peer, forget the
addresses of whom they hear of, and report nothing of a put. Its constants stay as they are: the protocol's name is
given where the handler is registered and where a stream is opened, so several networks may live in one process.

What the stock handler lacks is added round it: a deadline on each read, a limit on each message, and a budget of
streams and requests for each peer. Addresses are taken from signed node records; hearsay is only ever dialled, and a
dial proves the identity.
"""

import heapq
import logging
import random
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import MessageTooLarge
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message, Record
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.kad_dht.value_store import ValueStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import PeerStoreError
from libp2p.records.validator import NamespacedValidator, Validator
from libp2p.utils.varint import encode_uvarint, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from dht.cache import PEERS_MAX, KnownPeer, read_cache, write_cache
from dht.lookup import CLOSEST, PARALLEL, STRAGGLER_S, lookup
from dht.records import (
    ADDRESS_BYTES_MAX,
    ADDRESSES_MAX,
    LIFE_MS_MAX,
    NAMESPACE,
    NodeRecord,
    build_record,
    decode_record,
    newest,
    next_sequence,
    node_of_key,
    parse_record,
    provider_key,
    record_key,
)
from economics.crypto import KEY_BYTES, NodeId, Signature
from economics.errors import Rejected

logger = logging.getLogger(__name__)

LIBP2P_VERSION = "0.8.1"
"""The stores and the handler are used by attributes that no other version promises."""
STOCK_PROTOCOL = "/ipfs/kad/1.0.0"
ED25519_ID_PREFIX = bytes.fromhex("002408011220")
"""A peer ID is this and the 32-byte key: the identity multihash of the key's protobuf."""

LOOKUPS_MAX = 16
"""Lookups at once; further ones wait."""
QUORUM = 3
"""Valid records after which an ordinary lookup stops; a fresh one asks all of the closest."""
LOOKUP_S = 15.0
ASK_S = 6.0
"""All requests on one stream to one peer, with the dial that may come first."""
FAILED_S = 15.0
"""A peer that failed is not asked again before."""
STRIKES_MAX = 2
"""Failures in a row after which a peer leaves the routing table."""

MESSAGE_BYTES_MAX = 65_536
"""Twenty peers with eight addresses and a signed record each are 30 KiB; the library would take 4 MiB."""
STREAM_IDLE_S = 30.0
STREAMS_MAX = 256
"""Open kad streams, all peers; the library's 12 can be held open by one."""
STREAMS_PER_PEER = 8
REQUESTS_PER_S = 20.0
REQUESTS_BURST = 200
VALUES_MAX = 4_096
"""Records held for others, 3 KiB each at most."""
PROVIDER_KEYS_MAX = 16_384
"""Walking through all of them, for those that are over, stalls the loop for some 10 ms."""
HEARSAY_MAX = 1_024

UPKEEP_FIRST_S = 5.0
UPKEEP_S = 600.0
"""From start to rest the own record is put after 5, 10, 20 ... s, so that a network that grows up together finds it."""
assert UPKEEP_S * 1_000 * 4 < LIFE_MS_MAX  # three refreshes may fail
ADDRESS_POLL_S = 2.0
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 60.0
BOOTSTRAP_PARALLEL = 4

PROVIDE_BURST = 5
PROVIDE_PER_S = 0.5
"""A server drops the eleventh announcement of a peer within 10 s: 5 + 10 * 0.5 = 10."""
PROVIDE_AGAIN_S = 12 * 3_600.0
"""A provider record lives 48 h."""
PROVIDED_MAX = 16_384
assert PROVIDED_MAX / PROVIDE_PER_S < PROVIDE_AGAIN_S  # the queue keeps up with itself
PROVIDERS_FOUND = 20

Contact = tuple[ID, tuple[str, ...]]
Connect = Callable[[NodeId, Sequence[str]], Awaitable[None]]
"""Have a connection to the node, dialling these addresses if there is none; raise if that fails."""


class DiscoveryError(Exception):
    """The DHT cannot do this now; `str(error)` is one line for the user, and the same call may succeed later."""


def protocol_name(chain_id: bytes) -> str:
    """Return the DHT's protocol name: private to the chain, so that no public node is ever taken in (FORMATS.md 7)."""
    return f"/p2pnode/{chain_id[:4].hex()}/kad/1.0.0"


def peer_of(node: NodeId) -> ID:
    """Return a node's peer ID; `node_of` reverses it."""
    return ID(ED25519_ID_PREFIX + node)


def node_of(peer: ID) -> NodeId | None:
    """Return the node behind a peer ID, or None if its key is not Ed25519: then it is none of ours."""
    raw = peer.to_bytes()
    if len(raw) != len(ED25519_ID_PREFIX) + KEY_BYTES or not raw.startswith(ED25519_ID_PREFIX):
        return None
    return NodeId(raw[len(ED25519_ID_PREFIX) :])


class Bucket:
    """A token bucket: `burst` at once, `per_s` in the long run."""

    def __init__(self, *, burst: float, per_s: float) -> None:
        self.burst = burst
        self.per_s = per_s
        self.tokens = burst
        self.filled_at = trio.current_time()

    async def take(self) -> None:
        """Take one token; wait for it in turn."""
        now = trio.current_time()
        self.tokens = min(self.burst, self.tokens + (now - self.filled_at) * self.per_s) - 1
        self.filled_at = now
        if self.tokens < 0:
            await trio.sleep(-self.tokens / self.per_s)


# ---- The library's side: what it serves, with bounds of ours.


class _RecordValidator(Validator):  # type: ignore[misc]
    """Lets node records in, and only those that hold here and now."""

    def __init__(self, chain_id: bytes, clock_ms: Callable[[], int]) -> None:
        self.chain_id = chain_id
        self.clock_ms = clock_ms

    def validate(self, key: str, value: bytes) -> None:
        parse_record(value, chain_id=self.chain_id, node=node_of_key(key), now_ms=self.clock_ms())

    def select(self, key: str, values: list[bytes]) -> int:
        return newest(values)


class _Values(ValueStore):  # type: ignore[misc]
    """The library's value store, bounded: when full, the record farthest from this node makes room."""

    def __init__(self, host: Any) -> None:
        super().__init__(host, host.get_id())
        self.own = sha256(host.get_id().to_bytes()).digest()

    def put_record(self, key: bytes, record: Any) -> None:
        """Keep a validated record until it expires: the library would serve it for a day."""
        if key not in self.store and len(self.store) >= VALUES_MAX:
            farthest = max(self.store, key=self.distance)
            if self.distance(key) >= self.distance(farthest):
                return
            del self.store[farthest]
        self.store[key] = (record, decode_record(record.value).record.expires_ms / 1_000)

    def distance(self, key: bytes) -> int:
        return distance(key, self.own)


class _Providers(ProviderStore):  # type: ignore[misc]
    """The library's provider store, bounded, and without the addresses that a provider claims to have."""

    def add_provider(self, key: bytes, provider: Any) -> None:
        if key not in self.providers and len(self.providers) >= PROVIDER_KEYS_MAX:
            del self.providers[next(iter(self.providers))]
        super().add_provider(key, PeerInfo(provider.peer_id, []))


class _Kad(KadDHT):  # type: ignore[misc]
    """The library's DHT, whose table takes no client in."""

    protocol = ""

    async def add_peer(self, peer_id: ID, *, skip_server_mode_check: bool = False) -> bool:
        """Called for each inbound stream: the stock node then hands out every client that asked it once."""
        if not serves(self.host, peer_id, self.protocol):
            return False
        return bool(await super().add_peer(peer_id, skip_server_mode_check=True))


def serves(host: Any, peer: ID, protocol: str) -> bool:
    """Return whether identify has shown that `peer` speaks `protocol`; a client does not."""
    try:
        return protocol in host.get_peerstore().get_protocols(peer)
    except PeerStoreError:  # the peer is unknown
        return False


class _BoundedStream:
    """An inbound kad stream with what the stock handler lacks: a deadline on each read, a limit, a pace."""

    def __init__(self, stream: Any, bucket: Bucket) -> None:
        self.stream = stream
        self.bucket = bucket
        self.muxed_conn = stream.muxed_conn
        self.metric_send_channel = None
        self.bytes_left = MESSAGE_BYTES_MAX

    async def read(self, count: int) -> bytes:
        if count > self.bytes_left:
            raise MessageTooLarge(f"a kad message of more than {MESSAGE_BYTES_MAX} bytes")
        with trio.fail_after(STREAM_IDLE_S):
            data: bytes = await self.stream.read(count)
        self.bytes_left -= len(data)
        return data

    async def write(self, data: bytes) -> None:
        """Replies are paced, so a peer that asks without pause waits, and costs at most REQUESTS_PER_S."""
        if self.bytes_left < MESSAGE_BYTES_MAX:
            self.bytes_left = MESSAGE_BYTES_MAX
            await self.bucket.take()
        with trio.fail_after(STREAM_IDLE_S):
            await self.stream.write(data)

    async def close(self) -> None:
        await self.stream.close()

    async def reset(self) -> None:
        await self.stream.reset()


class _Server:
    """The inbound side: the library's handler behind a budget for each peer."""

    def __init__(self, kad: _Kad) -> None:
        self.kad = kad
        self.streams: Counter[ID] = Counter()
        self.buckets: OrderedDict[ID, Bucket] = OrderedDict()

    async def handle(self, stream: Any) -> None:
        """Serve one stream. Nothing a peer sends may raise out of here: it would end a stock host."""
        peer = stream.muxed_conn.peer_id
        if self.streams[peer] >= STREAMS_PER_PEER or self.streams.total() >= STREAMS_MAX:
            await _drop(stream)
            return
        self.streams[peer] += 1
        try:
            await self.kad.handle_stream(_BoundedStream(stream, self.bucket(peer)))
        except Exception as fault:  # whatever the library let out
            logger.debug("kad stream of %s: %r", peer, fault)
            await _drop(stream)
        finally:
            self.streams[peer] -= 1
            if not self.streams[peer]:
                del self.streams[peer]

    def bucket(self, peer: ID) -> Bucket:
        bucket = self.buckets.pop(peer, None) or Bucket(burst=REQUESTS_BURST, per_s=REQUESTS_PER_S)
        self.buckets[peer] = bucket
        if len(self.buckets) > HEARSAY_MAX:
            self.buckets.popitem(last=False)
        return bucket


async def _drop(stream: Any) -> None:
    """Reset a stream, whatever state it is in."""
    with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
        try:
            await stream.reset()
        except Exception as fault:
            logger.debug("reset: %r", fault)


def distance(key: bytes, target: bytes) -> int:
    """Return the XOR distance of a key or a peer ID to a hashed target, as the library counts it."""
    return int.from_bytes(sha256(key).digest(), "big") ^ int.from_bytes(target, "big")


# ---- Our side: what this node asks.


class Discovery:
    """What one node knows of where others are. Made by `open_discovery`, whose tasks keep it up."""

    def __init__(
        self,
        *,
        host: Any,
        chain_id: bytes,
        sign: Callable[[bytes], Signature],
        node_id: NodeId,
        addresses: Callable[[], Sequence[str]],
        connect: Connect,
        server: bool,
        clock_ms: Callable[[], int],
    ) -> None:
        self._host = host
        self._chain_id = chain_id
        self._sign = sign
        self._node = node_id
        self._peer = peer_of(node_id)
        self._own_addresses = addresses
        self._connect = connect
        self._is_server = server
        self._clock_ms = clock_ms
        self.protocol = protocol_name(chain_id)
        validator = NamespacedValidator({NAMESPACE: _RecordValidator(chain_id, clock_ms)})
        # Made as a client, so that it does not register itself under the public name; `validator_changed` keeps the
        # public namespaces out.
        self._kad = _Kad(host, DHTMode.CLIENT, validator=validator, validator_changed=True, strict_validation=True)
        self._kad.protocol = self.protocol
        self._kad.value_store = _Values(host)
        self._kad.provider_store = _Providers(host, self._kad.peer_routing)
        self._kad._inbound_limiter.total_tokens = STREAMS_MAX
        self._server = _Server(self._kad)
        self._sequence = 0
        self._announced: tuple[str, ...] | None = None
        self._announcing = trio.Lock()
        self._lookups = trio.CapacityLimiter(LOOKUPS_MAX)
        self._hearsay: OrderedDict[ID, tuple[str, ...]] = OrderedDict()
        self._failed_at: OrderedDict[ID, float] = OrderedDict()
        self._strikes: Counter[ID] = Counter()
        self._good: OrderedDict[NodeId, tuple[str, ...]] = OrderedDict()
        self._seeds: dict[NodeId, tuple[str, ...]] = {}
        self._provided: dict[bytes, float] = {}
        self._provide_queue: list[tuple[float, bytes]] = []
        self._provide_wake = trio.Event()

    def serve(self) -> None:
        """Answer others. A client never does, and so never enters a table."""
        self._kad.mode = DHTMode.SERVER
        self._host.set_stream_handler(TProtocol(self.protocol), self._server.handle)

    # -- Nodes

    async def find_node(
        self, node: NodeId, *, deadline_s: float = LOOKUP_S, fresh: bool = False
    ) -> tuple[str, ...] | None:
        """Return the addresses in the newest valid record of `node`, or None if nobody has one.

        May answer from the local store. After a failed dial ask with `fresh`: what is held here is forgotten and all
        of the closest peers are asked, since any of them may have missed the newest record.
        """
        if node == self._node:
            return self._current()
        if fresh:
            self._kad.value_store.store.pop(record_key(node).encode("ascii"), None)
        else:
            held = self._held(node)
            if held is not None:
                return held.addresses
        async with self._lookups:
            value, _ = await self._get(node, quorum=None if fresh else QUORUM, deadline_s=deadline_s)
        return None if value is None else decode_record(value).record.addresses

    def held_addresses(self, node: NodeId) -> tuple[str, ...]:
        """Return where a node is by its record, if one is held here; asks nobody."""
        record = self._held(node)
        return () if record is None else record.addresses

    def _current(self) -> tuple[str, ...]:
        """Return the own addresses, as far as a record can hold them."""
        return tuple(_clean(self._own_addresses()))

    def _held(self, node: NodeId) -> NodeRecord | None:
        """Return the record of `node` in the local store, if it still holds."""
        entry = self._kad.value_store.store.get(record_key(node).encode("ascii"))
        return None if entry is None else self._valid(entry[0].value, node)

    def _valid(self, value: bytes, node: NodeId) -> NodeRecord | None:
        try:
            return parse_record(value, chain_id=self._chain_id, node=node, now_ms=self._clock_ms())
        except Rejected as fault:
            logger.debug("a record of %s: %s", node.hex(), fault)
            return None

    async def _get(self, node: NodeId, *, quorum: int | None, deadline_s: float) -> tuple[bytes | None, list[ID]]:
        """Return the newest record that *remote* peers hold, and the closest peers that answered.

        The record is kept here, and put to those that answered with an older one.
        """
        key = record_key(node).encode("ascii")
        held: list[tuple[ID, bytes]] = []

        def take(peer: ID, reply: Any) -> None:
            value = bytes(reply.record.value)
            if value and self._valid(value, node) is not None:
                held.append((peer, value))

        answered = await self._walk(
            key,
            Message(type=Message.GET_VALUE, key=key),
            take,
            is_enough=lambda: quorum is not None and len(held) >= quorum,
            deadline_s=deadline_s,
        )
        if not held:
            return None, answered
        best = held[newest([value for _, value in held])][1]
        current = self._kad.value_store.get(key)
        if current is None or newest([current.value, best]) == 1:
            self._kad.value_store.put_record(key, Record(key=key, value=best))
        outdated = [peer for peer, value in held if newest([value, best]) == 1 and value != best]
        with trio.move_on_after(STRAGGLER_S):
            async with trio.open_nursery() as nursery:
                for peer in outdated[:PARALLEL]:
                    nursery.start_soon(self._ask, peer, _put_message(key, best))
        return best, answered

    async def announce(self) -> int:
        """Put the own record to the closest peers; return how many of them give it back when asked.

        Raises `DiscoveryError` if none does.
        """
        async with self._announcing:
            addresses = self._current()
            value, closest = await self._get(self._node, quorum=None, deadline_s=LOOKUP_S)
            # A clock that went back across a restart must not make the new record the older one.
            last = 0 if value is None else decode_record(value).record.sequence_ms
            self._sequence = next_sequence(self._clock_ms(), max(self._sequence, last))
            key = record_key(self._node).encode("ascii")
            record = build_record(
                node=self._node,
                addresses=addresses,
                sequence_ms=self._sequence,
                life_ms=LIFE_MS_MAX,
                chain_id=self._chain_id,
                sign=self._sign,
            )
            self._kad.value_store.put_record(key, Record(key=key, value=record))
            verified = await self._put(closest, key, record)
            if not verified:
                raise DiscoveryError(f"no peer holds this node's record ({len(closest)} asked); it is tried again")
            self._announced = addresses
            return verified

    async def _put(self, peers: Sequence[ID], key: bytes, value: bytes) -> int:
        """Return how many of `peers` hold `value` afterwards: each is asked for it after the put."""
        verified = 0

        async def put(peer: ID) -> None:
            nonlocal verified
            replies = await self._ask(peer, _put_message(key, value), Message(type=Message.GET_VALUE, key=key))
            if replies is not None and bytes(replies[1].record.value) == value:
                verified += 1

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(put, peer)
        return verified

    # -- Providers

    async def provide(self, blob_id: bytes) -> None:
        """Say from now on that this node serves the whole blob; queued, since a peer takes one a second at most."""
        if len(self._provided) >= PROVIDED_MAX:
            raise DiscoveryError(f"this node announces {PROVIDED_MAX} blobs already")
        if blob_id not in self._provided:
            self._schedule_provide(blob_id, trio.current_time())
        await trio.lowlevel.checkpoint()

    def withdraw(self, blob_id: bytes) -> None:
        """Say it no more; what was said expires within 48 h."""
        self._provided.pop(blob_id, None)

    def _schedule_provide(self, blob_id: bytes, due: float) -> None:
        self._provided[blob_id] = due
        heapq.heappush(self._provide_queue, (due, blob_id))
        self._provide_wake.set()

    async def find_providers(
        self, blob_id: bytes, *, count: int = PROVIDERS_FOUND, deadline_s: float = LOOKUP_S
    ) -> tuple[NodeId, ...]:
        """Return who is said to serve the blob, those that more peers name first. Anybody may say so of himself."""
        key = provider_key(blob_id)
        named: Counter[NodeId] = Counter()

        def take(peer: ID, reply: Any) -> None:
            named.update({node for entry in reply.providerPeers[:CLOSEST] if (node := node_of(ID(entry.id)))})

        for entry in self._kad.provider_store.get_providers(key):
            if node := node_of(entry.peer_id):
                named[node] += 1
        async with self._lookups:
            request = Message(type=Message.GET_PROVIDERS, key=key)
            await self._walk(key, request, take, is_enough=lambda: False, deadline_s=deadline_s)
        del named[self._node]
        return tuple(node for node, _ in named.most_common(count))

    async def _announce_provider(self, blob_id: bytes) -> int:
        """Return how many peers took the announcement."""
        key = provider_key(blob_id)
        addresses = [Multiaddr(address).to_bytes() for address in self._current()]
        request = Message(type=Message.ADD_PROVIDER, key=key)
        request.providerPeers.add(id=self._peer.to_bytes(), addrs=addresses)
        closest = await self._walk(
            key, Message(type=Message.FIND_NODE, key=key), _ignore, is_enough=lambda: False, deadline_s=LOOKUP_S
        )
        taken = 0

        async def tell(peer: ID) -> None:
            nonlocal taken
            taken += await self._ask(peer, request) is not None

        async with trio.open_nursery() as nursery:
            for peer in closest:
                nursery.start_soon(tell, peer)
        return taken

    # -- Asking

    async def _walk(
        self,
        key: bytes,
        request: Any,
        take: Callable[[ID, Any], None],
        *,
        is_enough: Callable[[], bool],
        deadline_s: float,
    ) -> list[ID]:
        """Ask ever closer peers; call `take` with each answer; return the closest that answered, at most CLOSEST."""
        target = sha256(key).digest()

        async def ask(peer: ID) -> Any:
            replies = await self._ask(peer, request)
            return None if replies is None else replies[0]

        def take_all(peer: ID, reply: Any) -> list[ID]:
            take(peer, reply)
            named = [contact for contact in _contacts(reply) if contact[0] != self._peer]
            for contact, addresses in named:
                self._hear(contact, addresses)
            return [contact for contact, _ in named if not self._has_failed(contact)]

        return await lookup(
            self._starts(key),
            distance=lambda peer: distance(peer.to_bytes(), target),
            ask=ask,
            take=take_all,
            is_enough=is_enough,
            give_up=self._note_failed,
            deadline_s=deadline_s,
        )

    def _starts(self, key: bytes) -> set[ID]:
        """Return whom to ask first: the table's closest, and while it is nearly empty everybody else that is known."""
        starts = [
            peer
            for peer in self._kad.routing_table.find_local_closest_peers(key, CLOSEST)
            if not self._has_failed(peer)
        ]
        if len(starts) < QUORUM:
            starts += [peer_of(node) for node in self._seeds]
            starts += [peer for peer in self._host.get_connected_peers() if serves(self._host, peer, self.protocol)]
        return {peer for peer in starts if peer != self._peer}

    def _hear(self, peer: ID, addresses: tuple[str, ...]) -> None:
        if addresses:
            self._hearsay[peer] = addresses
            self._hearsay.move_to_end(peer)
            if len(self._hearsay) > HEARSAY_MAX:
                self._hearsay.popitem(last=False)

    def _has_failed(self, peer: ID) -> bool:
        return trio.current_time() < self._failed_at.get(peer, -FAILED_S) + FAILED_S

    async def _ask(self, peer: ID, *requests: Any) -> list[Any] | None:
        """Send `requests` on one stream; return the replies, or None unless each is answered by its own kind.

        Notes the peer as alive (it enters the table: who answers here is a server) or as failed.
        """
        with trio.move_on_after(ASK_S):
            try:
                replies = await self._converse(peer, requests)
            except Exception as fault:  # a dead peer shows as any of a dozen library errors, some in groups
                logger.debug("asking %s: %r", peer, fault)
                replies = None
            if replies is not None:
                self._strikes.pop(peer, None)
                self._failed_at.pop(peer, None)
                await self._note_good(peer)
                return replies
        self._note_failed(peer)
        return None

    def _note_failed(self, peer: ID) -> None:
        self._failed_at[peer] = trio.current_time()
        self._failed_at.move_to_end(peer)
        if len(self._failed_at) > HEARSAY_MAX:
            self._strikes.pop(self._failed_at.popitem(last=False)[0], None)
        self._strikes[peer] += 1
        if self._strikes[peer] >= STRIKES_MAX:
            self._kad.routing_table.remove_peer(peer)

    async def _converse(self, peer: ID, requests: Sequence[Any]) -> list[Any] | None:
        node = node_of(peer)
        if node is None:
            return None
        await self._connect(node, self._addresses_of(peer))
        stream = await self._host.new_stream(peer, [TProtocol(self.protocol)])
        is_done = False
        try:
            replies = []
            for request in requests:
                data = request.SerializeToString()
                await stream.write(encode_uvarint(len(data)) + data)
                reply = Message()
                reply.ParseFromString(await read_varint_prefixed_bytes_limited(stream, MESSAGE_BYTES_MAX))
                if reply.type != request.type:
                    return None
                replies.append(reply)
            is_done = True
            return replies
        finally:
            if is_done:
                with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
                    await stream.close()
            else:
                await _drop(stream)

    def _addresses_of(self, peer: ID) -> list[str]:
        node = node_of(peer)
        record = None if node is None else self._held(node)
        signed = () if record is None else record.addresses
        seed = () if node is None else self._seeds.get(node, ())
        try:
            stored = [str(address) for address in self._host.get_peerstore().addrs(peer)]
        except PeerStoreError:  # the peer is unknown, or was too long ago
            stored = []
        return list(dict.fromkeys(_clean([*signed, *self._hearsay.get(peer, ()), *seed, *stored])))[:ADDRESSES_MAX]

    async def _note_good(self, peer: ID) -> None:
        node = node_of(peer)
        addresses = tuple(self._addresses_of(peer))
        if node is None or not addresses:
            return
        self._good[node] = addresses
        self._good.move_to_end(node)
        if len(self._good) > PEERS_MAX:
            self._good.popitem(last=False)
        info = PeerInfo(peer, [Multiaddr(address) for address in addresses])
        await self._kad.routing_table.add_peer(info, skip_server_mode_check=True)

    # -- Upkeep

    def good_peers(self) -> tuple[KnownPeer, ...]:
        """Return the servers that answered, the latest first, at most PEERS_MAX: the cache on disk."""
        return tuple(reversed(self._good.items()))

    def table_size(self) -> int:
        """Return how many peers the routing table holds."""
        return int(self._kad.routing_table.size())

    async def keep_bootstrapped(self) -> None:
        """Ask every seed that is not in the table, a few at a time, each again after 1, 2, 4 ... 60 s."""
        retry = dict.fromkeys(map(peer_of, self._seeds), (0.0, RETRY_FIRST_S))
        limiter = trio.CapacityLimiter(BOOTSTRAP_PARALLEL)

        async def ask(peer: ID) -> None:
            async with limiter:
                if await self._ask(peer, Message(type=Message.FIND_NODE, key=self._peer.to_bytes())) is not None:
                    retry[peer] = (trio.current_time(), RETRY_FIRST_S)
                    return
            delay = retry[peer][1]
            retry[peer] = (trio.current_time() + delay * random.uniform(0.8, 1.2), min(delay * 2, RETRY_MAX_S))

        while True:
            now = trio.current_time()
            async with trio.open_nursery() as nursery:
                for peer, (due, _) in retry.items():
                    if due <= now and not self._kad.routing_table.peer_in_table(peer):
                        nursery.start_soon(ask, peer)
            await trio.sleep(RETRY_FIRST_S)

    async def keep_up(self, cache_path: Path | None) -> None:
        """Look round, announce, forget what is over and save the good peers: often at first, then every 10 minutes."""
        delay = UPKEEP_FIRST_S
        while True:
            while not self.table_size():  # noqa: ASYNC110 - the library's table tells nobody
                await trio.sleep(RETRY_FIRST_S / 4)
            with _contained("upkeep"):
                await self._look_round()
            is_announced = not self._is_server
            if self._is_server:
                with _contained("announcing"):
                    await self.announce()
                    is_announced = True
            with _contained("upkeep"):
                self._kad.value_store.cleanup_expired()
                self._kad.provider_store.cleanup_expired()
                if cache_path is not None:
                    await trio.to_thread.run_sync(write_cache, cache_path, self.good_peers())
            has_moved = await self._rest(delay * random.uniform(0.9, 1.1) if is_announced else RETRY_FIRST_S)
            delay = UPKEEP_FIRST_S if has_moved else min(delay * 2, UPKEEP_S)

    async def _rest(self, delay_s: float) -> bool:
        """Wait, but no longer than until the own addresses change; return whether they did."""
        with trio.move_on_after(delay_s):
            while not self._is_server or self._announced in (None, self._current()):  # noqa: ASYNC110 - nobody tells
                await trio.sleep(ADDRESS_POLL_S)
            return True
        return False

    async def _look_round(self) -> None:
        """Fill the table: look for oneself, and for a random place."""
        for key in (self._peer.to_bytes(), ED25519_ID_PREFIX + random.randbytes(KEY_BYTES)):
            async with self._lookups:
                request = Message(type=Message.FIND_NODE, key=key)
                await self._walk(key, request, _ignore, is_enough=lambda: False, deadline_s=LOOKUP_S)

    async def keep_providing(self) -> None:
        """Send the queued announcements at the pace that servers accept, and each again after 12 h."""
        bucket = Bucket(burst=PROVIDE_BURST, per_s=PROVIDE_PER_S)
        while True:
            while not self._provide_queue:
                self._provide_wake = trio.Event()
                await self._provide_wake.wait()
            due, blob_id = self._provide_queue[0]
            self._provide_wake = trio.Event()
            with trio.move_on_after(max(0.0, due - trio.current_time())) as waiting:
                await self._provide_wake.wait()
            if not waiting.cancelled_caught:
                continue  # an earlier one came in
            heapq.heappop(self._provide_queue)
            if self._provided.get(blob_id) != due:
                continue  # withdrawn
            await bucket.take()
            taken = 0
            with _contained("providing"):
                taken = await self._announce_provider(blob_id)
            if blob_id in self._provided:
                delay = PROVIDE_AGAIN_S if taken else RETRY_FIRST_S * 5
                self._schedule_provide(blob_id, trio.current_time() + delay)


def _ignore(*_: Any) -> None:
    """Want nothing of an answer."""


@contextmanager
def _contained(what: str) -> Iterator[None]:
    """Log a failure of one round; the next round is the cure."""
    try:
        yield
    except DiscoveryError as fault:
        logger.info("%s: %s", what, fault)
    except Exception:
        logger.exception("%s failed", what)


def _put_message(key: bytes, value: bytes) -> Any:
    return Message(type=Message.PUT_VALUE, key=key, record=Record(key=key, value=value))


def _clean(addresses: Collection[str]) -> list[str]:
    """Return those that are multiaddresses within the record's limits, without the `/p2p/...` end, at most eight."""
    kept = []
    for address in addresses:
        try:
            text = str(Multiaddr(address)).split("/p2p/")[0]
        except Exception:  # the parser raises what it likes
            continue
        if text and len(text.encode("utf-8")) <= ADDRESS_BYTES_MAX:
            kept.append(text)
    return kept[:ADDRESSES_MAX]


def _contacts(reply: Any) -> list[Contact]:
    """Return the peers that an answer names, as far as they can be ours."""
    contacts: list[Contact] = []
    for entry in reply.closerPeers[:CLOSEST]:
        peer = ID(bytes(entry.id))
        if node_of(peer) is None:
            continue
        addresses = []
        for raw in entry.addrs[:ADDRESSES_MAX]:
            try:
                addresses.append(str(Multiaddr(raw)))
            except Exception as fault:  # the parser raises what it likes
                logger.debug("an address: %r", fault)
        contacts.append((peer, tuple(_clean(addresses))))
    return contacts


@asynccontextmanager
async def open_discovery(
    *,
    host: Any,
    chain_id: bytes,
    sign: Callable[[bytes], Signature],
    node_id: NodeId,
    addresses: Callable[[], Sequence[str]],
    connect: Connect,
    server: bool,
    bootstrap: Sequence[tuple[NodeId, Sequence[str]]],
    cache_path: Path | None,
    clock_ms: Callable[[], int],
) -> AsyncIterator[Discovery]:
    """Run discovery on a running libp2p host for as long as the block lasts.

    `addresses` is asked again and again: a change is announced within seconds. `connect` is the one dialler of the
    host. `sign` signs with the node's key, which
    is also the host's. A client (`server=False`) announces nothing and answers nothing.
    """
    if version("libp2p") != LIBP2P_VERSION:
        raise DiscoveryError(f"libp2p is {version('libp2p')}, this program is made for {LIBP2P_VERSION}: install that")
    assert host.get_id() == peer_of(node_id), "the host's identity is the node's"
    assert STOCK_PROTOCOL not in host.get_mux().get_protocols(), "the public DHT's name is never served"
    discovery = Discovery(
        host=host,
        chain_id=chain_id,
        sign=sign,
        node_id=node_id,
        addresses=addresses,
        connect=connect,
        server=server,
        clock_ms=clock_ms,
    )
    cached = [] if cache_path is None else await trio.to_thread.run_sync(read_cache, cache_path)
    for node, known in [*cached, *((node, tuple(_clean(known))) for node, known in bootstrap)]:
        if node != node_id:
            discovery._seeds[node] = known
    if server:
        discovery.serve()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(discovery.keep_bootstrapped)
            nursery.start_soon(discovery.keep_up, cache_path)
            nursery.start_soon(discovery.keep_providing)
            yield discovery
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _sole(group) from None
    finally:
        if server:
            host.remove_stream_handler(TProtocol(discovery.protocol))
        if cache_path is not None:
            with trio.CancelScope(shield=True), _contained("saving the cache of peers"):
                await trio.to_thread.run_sync(write_cache, cache_path, discovery.good_peers())


def _sole(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the exception inside groups of one: what the caller's block raised leaves as it was."""
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    return inner
