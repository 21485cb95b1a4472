"""Stores a file: encodes segment by segment, sends each member what it owes, makes the certificate of a quorum.

Memory is bounded by the encoder's slots. A member that fails is dropped while a quorum remains, and heals later. What
was sent stays where it is, so the same call again sends only what is missing.
"""

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import trio

from economics.blob import BlobId, Header, Root
from economics.commitments import (
    EXPIRY_AHEAD_MAX,
    SALT_BYTES,
    ZERO_RESERVATION,
    Certificate,
    Commitment,
    OwnerStatement,
    ReservationId,
    Ticket,
)
from economics.committee import Committee
from economics.crypto import SIGNATURE_BYTES, OwnerId, Signature
from economics.errors import Reason, Rejected
from economics.genesis import build_key_text
from p2pnode.coding.codec import EncodedSegment
from p2pnode.coding.encoder import Encoder, Slot
from p2pnode.content.sources import Source, read_segments
from p2pnode.errors import NetworkError, SpaceError
from p2pnode.keys import Key
from p2pnode.members import REQUEST_FAULTS, Fault, Members, Refused, give_up, kind_of, verify_reply
from p2pnode.network import frames
from p2pnode.network.frames import receive_message, send_message
from p2pnode.network.host import sole_exception
from p2pnode.network.stream import Stream

BEHIND_SEGMENTS = 2
BEHIND_GRACE_S = 3.0
"""A member this far behind a quorum is waited for so long: nodes on one machine are late by chance, not by fault."""
TAIL_S = 3.0
"""After the quorum has signed, slower members get this long to sign too."""
EXPIRY_HEIGHTS = 20_000
"""How long nodes are bound by an upload that never reaches the chain: half an hour of full blocks, days of idle."""
assert EXPIRY_HEIGHTS < EXPIRY_AHEAD_MAX


def is_lack(fault: Exception) -> bool:
    """Return whether a member lacks what the upload needs there: no fault of its own, but the user is to know."""
    return isinstance(fault, Refused) and fault.reason is Reason.NOT_FOUND


class TooFewNodes(NetworkError):
    """Members with fewer than a quorum of shards take part."""

    def __init__(self, message: str, *, unpaid: bool) -> None:
        super().__init__(message)
        self.unpaid = unpaid
        """Some refused as the storage is not there, or not any more: the blob may be certified under it already."""


class EpochEnded(NetworkError):
    """Other members hold other shards by now: what was sent is kept, and the rest is for the new committee."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an upload is; counts are of segments, but for the last two, which are of shards."""

    segments: int
    encoded: int
    stored: int
    """Segments that a quorum has on disk."""
    committed: int
    quorum: int


@dataclass(frozen=True, slots=True)
class Deal:
    """What an upload is closed with: the storage that pays for it, and the committee that signs."""

    committee: Committee
    height: int
    """Of the chain, now."""
    reservation: ReservationId
    deletable: bool


Agree = Callable[[], Awaitable[Deal]]
"""Returns the deal when all is sent: storage may be reserved meanwhile."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What an upload ended with."""

    blob_id: BlobId
    length: int
    certificate: Certificate
    committed: int
    """Shards whose nodes signed, at least a quorum."""
    sent_bytes: int
    """Sliver bytes sent, over all members."""
    present_segments: int
    """How many times a member said that it has a segment already."""
    faults: tuple[Fault, ...]


@dataclass(slots=True)
class _InFlight:
    """One encoded segment and who still has to take it."""

    index: int
    slot: Slot
    waiting: set[int]


@dataclass(slots=True)
class _Part:
    """One member's part in the upload."""

    inbox: trio.MemorySendChannel[_InFlight]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Uploader:
    """One upload of one file. Use once."""

    def __init__(
        self,
        *,
        members: Members,
        encoder: Encoder,
        owner: Key,
        uploader: bytes,
        height: int,
        reservation: ReservationId = ZERO_RESERVATION,
        report: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self.members = members.seated(members.committee)
        self.genesis = members.genesis
        self.committee = members.committee
        self.code = members.genesis.code
        self.encoder = encoder
        self.owner = owner
        self.uploader = uploader
        self.report = report
        self.height = height
        self.reservation = reservation
        """What the ticket names; the zero reservation while the real one is on its way: the statement will name it."""
        self._ended: set[int] = set()
        """Members for which the epoch of this upload has ended, or not begun."""
        self.sent_bytes = 0
        self.present_segments = 0
        self._parts: dict[int, _Part] = {}
        self._dropped: dict[int, Exception] = {}
        """Members that take no part any more, and why: what they did before this upload does not count."""
        self._in_flight: list[_InFlight] = []
        self._signatures: dict[int, Signature] = {}
        self._statement: tuple[OwnerStatement, Signature, Header] | None = None
        self._changed = trio.Event()
        self._encoded = 0
        self._segments = 0
        self._behind_since: float | None = None

    # --- the course of an upload ---------------------------------------------------------------------------------

    async def run(self, source: Source, agree: Agree) -> Stored:
        """Store a source; raises `TooFewNodes`, `EpochEnded`, `SpaceError`, `InputError`, and what `agree` does."""
        try:
            return await self._run(source, agree)
        except BaseExceptionGroup as group:
            raise sole_exception(group) from None

    async def _run(self, source: Source, agree: Agree) -> Stored:
        length = source.length
        self._segments = self.code.segment_count(length)
        async with trio.open_nursery() as nursery:
            for member in range(self.members.count):
                send, receive = trio.open_memory_channel[_InFlight](len(self.encoder.slots))
                self._parts[member] = _Part(send)
                nursery.start_soon(self._serve_member, member, receive, self._parts[member].scope)
            roots = await self._encode_all(source)
            header = Header(self.code, length, tuple(roots))
            certificate = await self._close_all(header, await agree())
            nursery.cancel_scope.cancel()
        return Stored(
            blob_id=header.blob_id,
            length=length,
            certificate=certificate,
            committed=self.committee.weight(self._signatures),
            sent_bytes=self.sent_bytes,
            present_segments=self.present_segments,
            faults=tuple(self._fault(member) for member, why in self._dropped.items() if not is_lack(why)),
        )

    async def _encode_all(self, source: Source) -> list[Root]:
        roots = []
        with closing(read_segments(source, self.code)) as segments:
            while (data := await trio.to_thread.run_sync(next, segments, None)) is not None:
                await self._wait_for_slot()
                slot = await self.encoder.encode(data)
                assert slot.segment is not None
                roots.append(slot.segment.root)
                self._in_flight.append(_InFlight(self._encoded, slot, set(self._parts)))
                for part in self._parts.values():
                    part.inbox.send_nowait(self._in_flight[-1])
                self._encoded += 1
                self._change()
        for part in self._parts.values():
            part.inbox.close()
        return roots

    async def _close_all(self, header: Header, deal: Deal) -> Certificate:
        """Close the upload with every member and return the certificate of a quorum; raises `EpochEnded`."""
        if deal.committee != self.committee.in_epoch(deal.committee.epoch):
            raise EpochEnded("the committee changed while the file was stored: store it again, it sends what moved")
        self.committee = deal.committee
        self._statement = self._build_statement(header, deal)
        self._change()
        certificate = await self._certify()
        certificate.verify(committee=self.committee)
        return certificate

    def _build_statement(self, header: Header, deal: Deal) -> tuple[OwnerStatement, Signature, Header]:
        statement = OwnerStatement(
            chain_id=self.genesis.chain_id,
            owner=OwnerId(self.owner.public),
            reservation=deal.reservation,
            blob_id=header.blob_id,
            length=header.length,
            deletable=deal.deletable,
            salt=os.urandom(SALT_BYTES),
            expiry_height=deal.height + EXPIRY_HEIGHTS,
        )
        return statement, self.owner.sign(statement.encode()), header

    async def _certify(self) -> Certificate:
        """Wait for a quorum of commitments, then a short while for the rest."""
        assert self._statement is not None
        statement, signature, _ = self._statement
        while self.committee.weight(self._signatures) < self.committee.quorum:
            await self._next_change()
        with trio.move_on_after(TAIL_S):
            while set(self._signatures) < set(self._parts):
                await self._next_change()
        certificate = Certificate.build(statement, signature, committee=self.committee, signatures=self._signatures)
        assert certificate is not None
        return certificate

    # --- waiting and dropping ------------------------------------------------------------------------------------

    def _change(self) -> None:
        """Free what everybody has taken, and wake who waits for news."""
        for taken in [item for item in self._in_flight if not item.waiting]:
            self._in_flight.remove(taken)
            self.encoder.release(taken.slot)
        behind = bool(self._members_behind())
        if not behind:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = trio.current_time()
        self._changed.set()
        self._changed = trio.Event()
        self.report(self._progress())

    def _progress(self) -> Progress:
        stored = self._encoded
        for item in self._in_flight:
            if self.committee.weight(set(self._parts) - item.waiting) < self.committee.quorum:
                stored = min(stored, item.index)
        weight = self.committee.weight(self._signatures)
        return Progress(self._segments, self._encoded, stored, weight, self.committee.quorum)

    async def _next_change(self, limit_s: float = float("inf")) -> bool:
        """Wait for news, at most `limit_s`; return whether there was any. Raises `TooFewNodes`."""
        if self.committee.weight(self._parts) < self.committee.quorum:
            raise self._too_few()
        with trio.move_on_after(limit_s) as scope:
            await self._changed.wait()
        if not scope.cancelled_caught and self.committee.weight(self._parts) < self.committee.quorum:
            raise self._too_few()
        return not scope.cancelled_caught

    def _too_few(self) -> NetworkError | SpaceError:
        if self.committee.weight(self._parts.keys() | self._ended) >= self.committee.quorum:
            return EpochEnded("an epoch ended while the file was stored: store it again, it sends what moved")
        faults = "; ".join(str(self._fault(member)) for member in self._dropped)
        message = (
            f"members with {self.committee.weight(self._parts)} shards take part, {self.committee.quorum} are needed "
            f"({faults}). What was sent is kept: run the same command again when more nodes are up"
        )
        reasons = {why.reason for why in self._dropped.values() if isinstance(why, Refused)}
        if Reason.OVER_BUDGET in reasons:
            return SpaceError(message)
        return TooFewNodes(message, unpaid=not reasons.isdisjoint((Reason.UNPAID, Reason.NOT_FOUND)))

    def _fault(self, member: int) -> Fault:
        why = self._dropped[member]
        return Fault(member, build_key_text(self.members.node_of(member)), kind_of(why), str(why))

    async def _wait_for_slot(self) -> None:
        while not self.encoder.has_free_slot:
            if not await self._next_change(self._grace_left()):
                for member in self._members_behind():
                    self._drop(member, Refused(Reason.INCOMPLETE, f"{BEHIND_SEGMENTS} segments behind", retry=True))

    def _grace_left(self) -> float:
        if self._behind_since is None:
            return float("inf")
        return max(0.0, self._behind_since + BEHIND_GRACE_S - trio.current_time())

    def _members_behind(self) -> set[int]:
        """Return who lacks the oldest segment while a quorum of others has this and the next ones."""
        if len(self._in_flight) < BEHIND_SEGMENTS:
            return set()
        behind = set(self._in_flight[0].waiting)
        ahead = set(self._parts) - behind
        for item in self._in_flight[1:BEHIND_SEGMENTS]:
            ahead -= item.waiting
        return behind if self.committee.weight(ahead) >= self.committee.quorum else set()

    def _drop(self, member: int, fault: Exception) -> None:
        if isinstance(fault, Refused) and fault.reason is Reason.WRONG_EPOCH:
            self._ended.add(member)
        else:
            self._dropped[member] = fault
            self.members.blame(member, fault)
        part = self._parts.pop(member, None)
        if part is not None:
            part.scope.cancel()
            part.inbox.close()
        for item in self._in_flight:
            item.waiting.discard(member)
        self._change()

    # --- one member ----------------------------------------------------------------------------------------------

    async def _serve_member(
        self, member: int, inbox: trio.MemoryReceiveChannel[_InFlight], scope: trio.CancelScope
    ) -> None:
        with scope:
            try:
                stream = await self.members.open_stream(member)
                try:
                    await self._open(stream)
                    async for item in inbox:
                        await self._send_segment(stream, member, item)
                        item.waiting.discard(member)
                        self._change()
                    await self._close(stream, member)
                finally:
                    await give_up(stream)
            except REQUEST_FAULTS as fault:
                self._drop(member, fault)

    async def _open(self, stream: Stream) -> None:
        expiry_height = self.height + EXPIRY_HEIGHTS
        owner = OwnerId(self.owner.public)
        ticket = Ticket(self.genesis.chain_id, owner, self.reservation, self.uploader, expiry_height)
        signature = self.owner.sign(ticket.encode())
        await send_message(
            stream,
            {
                "epoch": self.members.committee.epoch,
                "op": "open",
                "signature": signature,
                "ticket": ticket.encode(),
            },
        )
        verify_reply(await receive_message(stream))

    async def _send_segment(self, stream: Stream, member: int, item: _InFlight) -> None:
        segment = item.slot.segment
        assert segment is not None
        await send_message(stream, {"op": "have"}, segment.root)
        answer = await receive_message(stream)
        verify_reply(answer)
        if answer.size != 1:
            raise Rejected(Reason.MALFORMED, "asked about one root")
        if await stream.receive_exactly(1) == b"\x01":
            self.present_segments += 1
            return
        parts = self._slivers_of(member, segment)
        header: frames.Header = {"op": "segment", "symbol_bytes": segment.z}
        await send_message(stream, header, segment.root, segment.metadata.encode(), *parts)
        self.sent_bytes += sum(len(part) for part in parts)
        verify_reply(await receive_message(stream))

    def _slivers_of(self, member: int, segment: EncodedSegment) -> Sequence[memoryview]:
        """Return all that a member owes of a segment, in the order of its shards, as views of the matrix."""
        parts: list[memoryview] = []
        for shard in self.committee.shards_of(member):
            pair = self.code.pair_of_shard(shard, segment.root)
            parts.append(segment.primary(pair))
            parts += segment.secondary(self.code.n - 1 - pair)
        return parts

    async def _close(self, stream: Stream, member: int) -> None:
        while self._statement is None:
            await self._changed.wait()
        statement, signature, header = self._statement
        request: frames.Header = {"op": "close", "signature": signature, "statement": statement.encode()}
        await send_message(stream, request, header.encode())
        reply = await receive_message(stream)
        verify_reply(reply)
        if reply.integer("epoch", high=1 << 62) != self.committee.epoch:
            raise Refused(Reason.WRONG_EPOCH, "it signed under another epoch than the chain's newest", retry=True)
        commitment = Commitment.build(statement, epoch=self.committee.epoch, signer=member)
        given = Signature(reply.raw("signature", SIGNATURE_BYTES))
        commitment.verify(given, committee=self.committee)
        self._signatures[member] = given
        self._change()
