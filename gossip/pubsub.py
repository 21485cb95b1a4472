"""Gossip: small announcements to everybody, over the library's GossipSub. Each message is judged before it goes on.

The library keeps the mesh; everything that comes in passes through here first, because its own inbound path ends the
node on junk, starts a task for each message, takes addresses and strangers from whoever sends them, and remembers
verdicts and message IDs under names of its own:

- a message has one topic, one we know; the ID is a hash of its data, so the same data from two authors is one message;
- signature and validator are asked once for each copy that is not known as good: a bad copy never shadows a good one;
- control messages are cut down to our topics; signed addresses and peer exchange are dropped;
- each peer has a budget of messages and of streams;
- nothing that a task of the library raises ends the node.
"""

import logging
import os
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import time
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.mcache import CacheEntry, MessageCache
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.score import ScoreParams, TopicScoreParams
from libp2p.pubsub.validators import signature_validator
from libp2p.tools.anyio_service.trio_manager import TrioManager
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from economics.crypto import KEY_BYTES, Level, NodeId, digest
from economics.errors import Reason, Rejected

logger = logging.getLogger(__name__)

PROTOCOL = "/meshsub/1.1.0"
"""1.2 costs twice the CPU for each message; 1.3 and later are drafts of this library alone."""
ED25519_ID_PREFIX = bytes.fromhex("002408011220")
"""A peer ID is this and the 32-byte key."""

MESSAGE_BYTES_MAX = 65_536
RPC_BYTES_MAX = 262_144
assert RPC_BYTES_MAX > 2 * MESSAGE_BYTES_MAX  # a message always fits, with its envelope
MESSAGES_PER_S = 50.0
MESSAGES_BURST = 200
"""Five times what 100 members say when each sends a batch every 10 s, should one peer pass on all of them."""
STREAMS_PER_S = 0.1
STREAMS_BURST = 10
STREAMS_OPEN_MAX = 4
CONTROL_MAX = 16
"""Entries of each kind that are read of one control message."""
IDS_MAX = 512
"""Message IDs that are read of one IHAVE."""
IWANT_MAX = 16
BACKOFF_S_MAX = 3_600
INVALID_MAX = 20
"""So many invalid messages, of late, and a peer is no longer listened to."""
INVALID_DECAY = 0.99
"""A second: half is forgotten after 69 s."""
QUEUE_MAX = 256
"""Messages of a topic that wait for its handler; the rest is dropped: whoever needs it can still ask."""
PEERS_REMEMBERED = 1_024
TIDY_S = 60.0


class GossipError(Exception):
    """This message cannot be sent: it breaks a limit of ours."""


class Ignored(Exception):
    """A message that is not passed on, and is nobody's fault: who sent it may know more than this node, or less."""


Validate = Callable[[NodeId, bytes], None]
"""Judge (author, data): raise `Rejected` or `Ignored`. Called on the trio thread before it is forwarded: be quick."""
Handle = Callable[[NodeId, bytes], Awaitable[None]]


@dataclass(slots=True)
class Counters:
    """What passed through, since the start. `rejected` counts every reason, `rejected_of` the latest peers'."""

    published: int = 0
    received: int = 0
    dropped: int = 0
    """Valid and forwarded, but the own handler was too far behind."""
    ignored: int = 0
    """Not passed on, though nobody's fault."""
    faults: int = 0
    """Exceptions of validators, handlers and library tasks, contained and logged."""


@dataclass(slots=True)
class _Topic:
    size_max: int
    validate: Validate
    send: "trio.MemorySendChannel[tuple[NodeId, bytes]]"


class Bucket:
    """A token bucket that never waits."""

    def __init__(self, *, burst: float, per_s: float) -> None:
        self.burst = burst
        self.per_s = per_s
        self.tokens = burst
        self.filled_at = trio.current_time()

    def take(self, count: float = 1) -> bool:
        now = trio.current_time()
        self.tokens = min(self.burst, self.tokens + (now - self.filled_at) * self.per_s)
        self.filled_at = now
        if self.tokens < count:
            return False
        self.tokens -= count
        return True


class _Neighbour:
    """What is remembered of one peer, also when it comes back on a new connection."""

    def __init__(self) -> None:
        self.messages = Bucket(burst=MESSAGES_BURST, per_s=MESSAGES_PER_S)
        self.streams = Bucket(burst=STREAMS_BURST, per_s=STREAMS_PER_S)
        self.streams_open = 0
        self.rejected: Counter[Reason] = Counter()


def node_of(peer_id: bytes) -> NodeId:
    """Return the key in a peer ID, or raise `Rejected`: an author has an Ed25519 key."""
    if len(peer_id) != len(ED25519_ID_PREFIX) + KEY_BYTES or not peer_id.startswith(ED25519_ID_PREFIX):
        raise Rejected(Reason.MALFORMED, "an author is an Ed25519 key")
    return NodeId(peer_id[len(ED25519_ID_PREFIX) :])


def message_id(message: Any) -> bytes:
    """Return the ID of a message: H(message, data), whoever wrote it (FORMATS.md 3)."""
    return digest(Level.MESSAGE, message.data)


# ---- The library's side, with our bounds.


class _Manager(TrioManager):  # type: ignore[misc]
    """The library's task manager, whose tasks cannot end the node, nor be slowed by each other's number."""

    on_fault: Callable[[str], None]

    def _find_parent_task(self, trio_task: Any) -> None:
        """Every task is a root: the stock search walks all tasks for each new one, and ends at 1000 children."""

    def run_task(
        self, async_fn: Any, *args: Any, daemon: bool = False, name: str | None = None, _internal: bool = False
    ) -> None:
        async def contained() -> None:
            while True:
                try:
                    await async_fn(*args)
                    return
                except Exception:
                    self.on_fault(f"gossip task {async_fn.__name__}")
                if not daemon:
                    return
                await trio.sleep(1)

        super().run_task(contained, daemon=daemon, name=name or async_fn.__name__, _internal=_internal)


class _Cache(MessageCache):  # type: ignore[misc]
    """The message cache under *our* IDs: with its own, every IHAVE would be answered with messages long seen."""

    def put(self, msg: Any) -> None:
        key = message_id(msg)
        if key not in self.msgs:
            self.msgs[key] = msg
            self.history[0].append(CacheEntry(key, msg.topicIDs))


class _Queues(dict[ID, Any]):
    """The outbound queues, which split at *our* limit: what is longer would be refused by every peer."""

    def __setitem__(self, peer: ID, queue: Any) -> None:
        queue.max_message_size = RPC_BYTES_MAX
        super().__setitem__(peer, queue)


class _Router(GossipSub):  # type: ignore[misc]
    async def publish(self, msg_forwarder: ID, pubsub_msg: Any) -> None:
        await super().publish(msg_forwarder, pubsub_msg)
        self.recent_message_deliveries.clear()  # grows by one for each message, and is read by nobody here


class _Pubsub(Pubsub):  # type: ignore[misc]
    """The library's pubsub with an inbound path of ours."""

    gossip: "Gossip"

    async def stream_handler(self, stream: Any) -> None:
        """Read one peer's RPCs until it ends or breaks a rule. Raises nothing: that would end a stock host.

        The peer keeps its place in the mesh: forgetting it here, as the library does, would leave it deaf until it
        happened to write again. Whether it is gone shows on the connection, or when it is written to.
        """
        peer = stream.muxed_conn.peer_id
        neighbour = self.gossip.neighbour(peer)
        if neighbour.streams_open >= STREAMS_OPEN_MAX or not neighbour.streams.take():
            await _drop(stream)
            return
        neighbour.streams_open += 1
        try:
            await self.continuously_read_stream(stream)
        except Exception as fault:  # end of file, reset, junk, oversize
            logger.debug("gossip stream of %s: %r", peer, fault)
            await _drop(stream)
        finally:
            neighbour.streams_open -= 1

    async def continuously_read_stream(self, stream: Any) -> None:
        peer = stream.muxed_conn.peer_id
        while True:
            data = await read_varint_prefixed_bytes_limited(stream, RPC_BYTES_MAX)
            rpc = rpc_pb2.RPC()
            rpc.ParseFromString(data)
            await self.gossip.handle_rpc(peer, rpc)

    async def push_msg(self, msg_forwarder: ID, msg: Any) -> None:
        """Judge a message, then hand it on; our own come here too, judged already."""
        if self._is_msg_seen(msg):
            return
        if msg_forwarder != self.my_id and not self.gossip.is_valid(msg_forwarder, msg):
            return
        self._mark_msg_seen(msg)
        if msg_forwarder != self.my_id:
            self.gossip.deliver(msg)
        await self.router.publish(msg_forwarder, msg)

    def _handle_dead_peer(self, peer_id: ID) -> None:
        """The library forgets the outbound stream without closing it."""
        stream = self.peers.get(peer_id)
        super()._handle_dead_peer(peer_id)
        if stream is not None and self.manager.is_running:
            self.manager.run_task(_drop, stream)


async def _drop(stream: Any) -> None:
    """Reset a stream, whatever state it is in."""
    with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
        try:
            await stream.reset()
        except Exception as fault:
            logger.debug("reset: %r", fault)


# ---- Our side.


class Gossip:
    """Publishes and delivers. Made by `open_gossip`."""

    def __init__(self, *, host: Any, topics: Collection[str], nursery: trio.Nursery) -> None:
        self.counters = Counters()
        self.rejected: Counter[Reason] = Counter()
        self._host = host
        self._names = frozenset(topics)
        self._topics: dict[str, _Topic] = {}
        self._nursery = nursery
        self._neighbours: OrderedDict[ID, _Neighbour] = OrderedDict()
        score = ScoreParams(
            p4_invalid_messages=TopicScoreParams(weight=1.0, cap=5.0 * INVALID_MAX, decay=INVALID_DECAY),
            publish_threshold=-INVALID_MAX,
            gossip_threshold=-INVALID_MAX,
            graylist_threshold=-INVALID_MAX,
        )
        self._router = _Router(
            [TProtocol(PROTOCOL)],
            degree=6,
            degree_low=4,
            degree_high=12,
            heartbeat_interval=1,
            score_params=score,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=False,
            eclipse_protection_enabled=False,
        )
        self._router.mcache = _Cache(self._router.mcache.window_size, self._router.mcache.history_size)
        self._pubsub = _Pubsub(
            host,
            self._router,
            strict_signing=True,
            msg_id_constructor=message_id,
            max_inbound_rpc_size=RPC_BYTES_MAX,
            allowed_topics=self._names,
        )
        self._pubsub.gossip = self
        self._pubsub.peer_queues = _Queues()
        # It would start at the time in seconds, and a node that restarts quickly would use numbers twice.
        self._pubsub.counter = int.from_bytes(os.urandom(7), "big")

    async def publish(self, topic: str, data: bytes) -> None:
        """Send `data` to the topic's mesh; return when it is queued, delivered or not. Raises `GossipError`."""
        size_max = self._topics[topic].size_max if topic in self._topics else MESSAGE_BYTES_MAX
        if topic not in self._names:
            raise GossipError(f"{topic} is no topic of this node")
        if len(data) > size_max:
            raise GossipError(f"{len(data)} bytes for {topic}, at most {size_max}: announce a hash instead")
        self.counters.published += 1
        await self._pubsub.publish(topic, data)

    async def subscribe(self, topic: str, *, size_max: int, validate: Validate, handle: Handle) -> None:
        """Join the topic: forward what `validate` lets pass, and give it to `handle`, one message at a time.

        Both get the message's author, who signed it, not the neighbour that passed it on. Own messages are not given.
        """
        assert topic in self._names, "topics are named when gossip is opened"
        assert topic not in self._topics
        assert size_max <= MESSAGE_BYTES_MAX
        send, receive = trio.open_memory_channel[tuple[NodeId, bytes]](QUEUE_MAX)
        self._topics[topic] = _Topic(size_max, validate, send)
        self._nursery.start_soon(self._drain, receive, handle)
        await self._pubsub.subscribe(topic)

    def rejected_of(self, node: NodeId) -> Counter[Reason]:
        """Return what the neighbour `node` passed on in vain, by reason."""
        neighbour = self._neighbours.get(ID(ED25519_ID_PREFIX + node))
        return Counter() if neighbour is None else neighbour.rejected.copy()

    def peers(self, topic: str) -> int:
        """Return how many neighbours are subscribed to the topic."""
        return len(self._pubsub.peer_topics.get(topic, ()))

    def mesh(self, topic: str) -> int:
        """Return how many neighbours pass the topic's messages on to each other with this node."""
        return len(self._router.mesh.get(topic, ()))

    # -- Inbound

    def neighbour(self, peer: ID) -> _Neighbour:
        neighbour = self._neighbours.pop(peer, None) or _Neighbour()
        self._neighbours[peer] = neighbour
        if len(self._neighbours) > PEERS_REMEMBERED:
            self._neighbours.popitem(last=False)
        return neighbour

    async def handle_rpc(self, peer: ID, rpc: Any) -> None:
        """Take what one RPC holds, within the peer's budget. Its signed addresses are nobody's business."""
        budget = self.neighbour(peer).messages
        control = kept_control(rpc.control, self._names)
        if not budget.take((not rpc.publish) + sum(len(entry.messageIDs) for entry in control.iwant)):
            self._reject(peer, Rejected(Reason.OVER_BUDGET), topic=None)
            return
        for entry in rpc.subscriptions[: 2 * len(self._names)]:
            self._pubsub.handle_subscription(peer, entry)
        for message in rpc.publish:
            if not budget.take():
                self._reject(peer, Rejected(Reason.OVER_BUDGET), topic=None)
                break
            await self._pubsub.push_msg(peer, message)
        if rpc.HasField("control"):
            await self._router.handle_rpc(rpc_pb2.RPC(control=control), peer)

    def is_valid(self, peer: ID, message: Any) -> bool:
        """Return whether a message may go on; if not it is counted, and `peer`, who passed it on, is scored."""
        if len(message.topicIDs) == 1 and not self._router.scorer.allow_publish(peer, list(message.topicIDs)):
            return False
        if message.from_id == self._host.get_id().to_bytes():
            return False  # an own message of before a restart: no offence
        try:
            self._judge(message)
        except Rejected as fault:
            self._reject(peer, fault, topic=message.topicIDs[0] if message.topicIDs else None)
            return False
        except Ignored as why:
            self.counters.ignored += 1
            logger.debug("gossip of %s is not passed on: %s", peer, why)
            return False
        except Exception:
            self._fault("a validator")
            return False
        return True

    def _judge(self, message: Any) -> None:
        if len(message.topicIDs) != 1:
            raise Rejected(Reason.MALFORMED, "a message has one topic")
        topic = self._topics.get(message.topicIDs[0])
        if topic is None:
            raise Rejected(Reason.MALFORMED, "no topic of this node")
        if len(message.data) > topic.size_max:
            raise Rejected(Reason.TOO_LARGE, f"{len(message.data)} bytes")
        author = node_of(message.from_id)
        try:
            is_signed = signature_validator(message)
        except Exception as fault:  # the key may be anything
            raise Rejected(Reason.BAD_SIGNATURE) from fault
        if not is_signed:
            raise Rejected(Reason.BAD_SIGNATURE)
        topic.validate(author, message.data)

    def _reject(self, peer: ID, fault: Rejected, *, topic: str | None) -> None:
        logger.debug("gossip of %s: %s", peer, fault)
        self.rejected[fault.reason] += 1
        self.neighbour(peer).rejected[fault.reason] += 1
        if topic in self._names:
            self._router.scorer.on_invalid_message(peer, topic)

    def _fault(self, what: str) -> None:
        self.counters.faults += 1
        logger.exception("%s failed", what)

    def deliver(self, message: Any) -> None:
        """Queue a valid message for the topic's handler."""
        self.counters.received += 1
        try:
            self._topics[message.topicIDs[0]].send.send_nowait((node_of(message.from_id), message.data))
        except trio.WouldBlock:
            self.counters.dropped += 1

    async def _drain(self, receive: "trio.MemoryReceiveChannel[tuple[NodeId, bytes]]", handle: Handle) -> None:
        async for author, data in receive:
            try:
                await handle(author, data)
            except Exception:
                self._fault("a gossip handler")

    # -- Upkeep

    async def run(self, task_status: Any) -> None:
        """Run the library's two services; ends only by cancellation."""
        async with trio.open_nursery() as nursery:
            for service in (self._router, self._pubsub):
                manager = _Manager(service)
                manager.on_fault = self._fault
                nursery.start_soon(manager.run)
                await manager.wait_started()
            await self._pubsub.wait_until_ready()
            for peer in self._host.get_connected_peers():
                self._pubsub.manager.run_task(self._pubsub.ensure_peer_stream, peer)
            task_status.started()
            while True:
                await trio.sleep(TIDY_S)
                self._tidy()

    def _tidy(self) -> None:
        """Forget what the library keeps of peers that are gone."""
        now = time()
        for backoffs in self._router.back_off.values():
            for peer in [peer for peer, until in backoffs.items() if until < now]:
                del backoffs[peer]
        for peer in self._router.scorer.behavior_penalty.keys() - self._pubsub.peers.keys():
            self._router.scorer.remove_peer(peer)


def kept_control(control: Any, names: Collection[str]) -> Any:
    """Return the part of a control message that concerns our topics, bounded, without peers to connect to."""

    def ours(entries: Iterable[Any]) -> list[Any]:
        return [entry for entry in list(entries)[:CONTROL_MAX] if entry.topicID in names]

    kept = rpc_pb2.ControlMessage()
    for entry in ours(control.ihave):
        kept.ihave.add(topicID=entry.topicID, messageIDs=entry.messageIDs[:IDS_MAX])
    for entry in control.iwant[:1]:
        kept.iwant.add(messageIDs=entry.messageIDs[:IWANT_MAX])
    for entry in ours(control.graft):
        kept.graft.add(topicID=entry.topicID)
    for entry in ours(control.prune):
        kept.prune.add(topicID=entry.topicID, backoff=min(entry.backoff, BACKOFF_S_MAX))
    return kept


@asynccontextmanager
async def open_gossip(*, host: Any, topics: Collection[str]) -> AsyncIterator[Gossip]:
    """Run gossip on a running libp2p host for as long as the block lasts. `topics` are all that this node speaks of.

    Neighbours are whoever the host is or gets connected to; nobody is dialled.
    """
    gossip: Gossip | None = None
    try:
        async with trio.open_nursery() as nursery:
            gossip = Gossip(host=host, topics=topics, nursery=nursery)
            await nursery.start(gossip.run)
            yield gossip
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _sole(group) from None
    finally:
        host.remove_stream_handler(TProtocol(PROTOCOL))
        if gossip is not None:
            gossip._pubsub.seen_messages.stop()


def _sole(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the exception inside groups of one: what the caller's block raised leaves as it was."""
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    return inner
