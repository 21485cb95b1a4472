"""Kept-open streams between the members of a committee (FORMATS.md 12): frames out in order, frames in by sender.

Each member opens one stream to each other and only sends on it. What cannot be sent is forgotten, oldest first: the
engine sends again whatever still matters. Knows no vote.
"""

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from enum import IntEnum

import trio

from economics.committee import Committee
from economics.crypto import NodeId
from economics.errors import Reason, Rejected
from p2pnode.errors import NetworkError
from p2pnode.members import Members, give_up, nickname
from p2pnode.network.stream import Patience, Stream

log = logging.getLogger("p2pnode.consensus.links")

FRAME_BYTES_MAX = 1 << 20
"""The largest proposal has 10,000 transaction hashes: 320 KB."""
QUEUE_BYTES_MAX = 8 << 20
QUEUE_FRAMES_MAX = 4_096
RETRY_S_MIN = 0.2
RETRY_S_MAX = 5.0
READ_BYTES = 65_536
SHUN_S = 10.0
"""A member that sent what no honest one sends is not listened to for so long: each lie costs a signature check."""
PATIENT = Patience(idle_s=math.inf, floor_bytes_per_s=0)
"""A member may have nothing to say for as long as it likes."""


class FrameType(IntEnum):
    """The types of FORMATS.md 12."""

    VOTE = 1
    CERTIFICATE = 2
    PROPOSAL = 3
    TRANSACTIONS = 4
    ASK = 5


def build_frame(kind: FrameType, body: bytes) -> bytes:
    return (1 + len(body)).to_bytes(4, "big") + kind.to_bytes(1, "big") + body


def split_frames(buffer: bytearray) -> Iterator[tuple[FrameType, bytes]]:
    """Yield the whole frames at the front of `buffer` and take them out of it; raises `Rejected`."""
    at = 0
    try:
        while len(buffer) - at >= 4:
            size = int.from_bytes(buffer[at : at + 4], "big")
            if not 1 <= size <= FRAME_BYTES_MAX:
                raise Rejected(Reason.TOO_LARGE, f"a frame of {size} bytes")
            if len(buffer) - at < 4 + size:
                return
            try:
                kind = FrameType(buffer[at + 4])
            except ValueError as fault:
                raise Rejected(Reason.UNKNOWN_OPERATION, f"a frame of type {buffer[at + 4]}") from fault
            body = bytes(buffer[at + 5 : at + 4 + size])
            at += 4 + size
            yield kind, body
    finally:
        del buffer[:at]


class _Outbox:
    """Frames for one member, bounded; the oldest are forgotten first. Bulk goes frame by frame, behind all the rest."""

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()
        self.size = 0
        self.bulk: deque[bytes] = deque()
        self.bulk_size = 0
        self.dropped = 0
        self.news = trio.Event()
        self.scope = trio.CancelScope()
        """Of what feeds the member's stream."""

    def put(self, frame: bytes) -> None:
        self.frames.append(frame)
        self.size += len(frame)
        while self.size > QUEUE_BYTES_MAX or len(self.frames) > QUEUE_FRAMES_MAX:
            self.size -= len(self.frames.popleft())
            self.dropped += 1
        self.news.set()

    def put_bulk(self, frame: bytes) -> None:
        self.bulk.append(frame)
        self.bulk_size += len(frame)
        while self.bulk_size > QUEUE_BYTES_MAX or len(self.bulk) > QUEUE_FRAMES_MAX:
            self.bulk_size -= len(self.bulk.popleft())
            self.dropped += 1
        self.news.set()

    async def take(self) -> list[bytes]:
        """Return all that waits, and of what is bulk the oldest frame, once there is something."""
        await self.news.wait()
        taken = list(self.frames)
        self.frames.clear()
        self.size = 0
        if self.bulk:
            taken.append(self.bulk.popleft())
            self.bulk_size -= len(taken[-1])
        if not self.bulk:
            self.news = trio.Event()
        return taken


Receive = Callable[[NodeId, FrameType, bytes], Awaitable[None]]
"""Takes (sender, type, body); raises `Rejected` to have the stream ended."""


class Links:
    """One member's streams to and from all others of its committee; those of who stays outlast a change of it."""

    def __init__(
        self, *, members: Members, committee: Committee, own: NodeId, receive: Receive, greet: Callable[[], bytes]
    ) -> None:
        self.members = members
        self.committee = committee
        self.own = own
        self._receive = receive
        self._greet = greet
        self._outboxes: dict[NodeId, _Outbox] = {}
        self._inbound: dict[NodeId, Stream] = {}
        self._shunned: dict[NodeId, float] = {}
        self._nursery: trio.Nursery | None = None
        self.up: set[NodeId] = set()
        """Members that this node's stream leads to."""
        self._open_outboxes()

    def _open_outboxes(self) -> None:
        for member in self.committee.members:
            if member.node != self.own and member.node not in self._outboxes:
                self._outboxes[member.node] = outbox = _Outbox()
                if self._nursery is not None:
                    self._nursery.start_soon(self._feed, member.node, outbox)

    async def seat(self, committee: Committee) -> None:
        """Go on with the members of another committee; the streams of those who left are ended."""
        self.committee = committee
        for node in [node for node in self._outboxes if committee.index_of(node) is None]:
            self._outboxes.pop(node).scope.cancel()
        self._open_outboxes()
        async with trio.open_nursery() as nursery:
            for node in [node for node in self._inbound if committee.index_of(node) is None]:
                nursery.start_soon(give_up, self._inbound.pop(node))
            nursery.start_soon(self.members.seat, committee)

    def send(self, member: NodeId, frame: bytes) -> None:
        if member in self._outboxes:
            self._outboxes[member].put(frame)

    def broadcast(self, frame: bytes) -> None:
        for outbox in self._outboxes.values():
            outbox.put(frame)

    def broadcast_bulk(self, frame: bytes) -> None:
        """Send to all what may wait: on a slow line it must not hold up votes, nor push them out of the queue."""
        for outbox in self._outboxes.values():
            outbox.put_bulk(frame)

    async def shun(self, member: NodeId) -> None:
        """End a member's stream and take no other for a while."""
        self._shunned[member] = trio.current_time() + SHUN_S
        stream = self._inbound.pop(member, None)
        if stream is not None:
            log.warning("node %s sent what no honest one sends: not listened to for %d s", nickname(member), SHUN_S)
            await stream.reset()

    def is_shunned(self, member: NodeId) -> bool:
        return trio.current_time() < self._shunned.get(member, -math.inf)

    async def run(self) -> None:
        """Keep the streams until cancelled; then those from others end too."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for node, outbox in self._outboxes.items():
                    nursery.start_soon(self._feed, node, outbox)
                await trio.sleep_forever()
        finally:
            self._nursery = None
            while self._inbound:
                await give_up(self._inbound.popitem()[1])

    async def _feed(self, member: NodeId, outbox: _Outbox) -> None:
        """Keep a stream to a member and send what its outbox holds, until it leaves the committee."""
        pause = RETRY_S_MIN
        with outbox.scope:
            while True:
                try:
                    stream = await self.members.open_stream(member)
                except NetworkError as fault:
                    log.debug("no stream to node %s: %s", nickname(member), fault)
                else:
                    begun = trio.current_time()
                    try:
                        await self._feed_stream(member, stream, outbox)
                    except NetworkError as fault:
                        log.debug("the stream to node %s ended: %s", nickname(member), fault)
                    finally:
                        self.up.discard(member)
                        await give_up(stream)
                    if trio.current_time() - begun > RETRY_S_MAX:
                        pause = RETRY_S_MIN
                await trio.sleep(pause)
                pause = min(2 * pause, RETRY_S_MAX)

    async def _feed_stream(self, member: NodeId, stream: Stream, outbox: _Outbox) -> None:
        """Send on one stream until it ends; returns when the member ends it."""
        self.up.add(member)
        await stream.send(self._greet())
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                stream.patience = PATIENT
                with suppress(NetworkError):
                    await stream.receive_some(1)  # nobody sends here: whatever comes is the end
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            while True:
                frames = await outbox.take()
                try:
                    await stream.send(*frames)
                except NetworkError:
                    nursery.cancel_scope.cancel()
                    return

    async def handle(self, stream: Stream) -> None:
        """Take the frames of one member's stream; a later stream of the same member ends an earlier one."""
        sender = stream.peer
        if self.committee.index_of(sender) is None or sender == self.own or self.is_shunned(sender):
            await stream.reset()
            return
        old = self._inbound.pop(sender, None)
        self._inbound[sender] = stream
        if old is not None:
            await old.reset()
        try:
            await self._take_frames(stream)
        except Rejected as fault:
            log.warning("node %s broke the rules of its stream: %s", nickname(sender), fault)
            await self.shun(sender)
            await stream.reset()
        finally:
            if self._inbound.get(sender) is stream:
                del self._inbound[sender]

    async def _take_frames(self, stream: Stream) -> None:
        stream.patience = PATIENT
        buffer = bytearray()
        while data := await stream.receive_some(READ_BYTES):
            buffer += data
            for kind, body in split_frames(buffer):
                await self._receive(stream.peer, kind, body)
