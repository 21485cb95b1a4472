"""The node's side of the storage protocol (FORMATS.md 7): takes uploads and signs for them; others answer the rest.

It holds no more of a peer's bytes than one message, checks before it stores, and stores before it signs.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from economics import cbor
from economics.blob import HEADER_BYTES_MAX, Header, Root, SegmentMetadata, header_bytes
from economics.commitments import (
    STATEMENT_BYTES,
    TICKET_BYTES,
    ZERO_RESERVATION,
    Commitment,
    OwnerStatement,
    ReservationId,
    Ticket,
)
from economics.crypto import DIGEST_BYTES, SIGNATURE_BYTES, NodeId, Signature
from economics.errors import Reason, Rejected
from economics.genesis import Genesis, build_key_text
from economics.geometry import HEADER_ROOTS_MAX, Code
from economics.ledger import Ledger
from p2pnode.budget import ByteBudget
from p2pnode.coding.codec import Codec, Kind
from p2pnode.errors import SpaceError
from p2pnode.network.frames import Incoming, receive_message_or_end, send_message
from p2pnode.network.stream import Patience, Stream
from p2pnode.slivers.admission import Admission, OpenUpload
from p2pnode.slivers.certifier import Certifier
from p2pnode.slivers.certifier import Entry as CommitmentEntry
from p2pnode.slivers.records import Entry
from p2pnode.slivers.sliverfile import Pair
from p2pnode.slivers.store import CorruptSliver, SliverStore

log = logging.getLogger("p2pnode.slivers.storage")

PAYLOAD_BUDGET_BYTES = 128 << 20
"""Payloads in memory at once, over all peers: a home node has 256 MiB to give."""
RETRIED = (Reason.OVER_BUDGET, Reason.NOT_FOUND, Reason.INCOMPLETE, Reason.WRONG_EPOCH)
"""The same request may succeed later."""
REFUSED_MAX = 1_024
"""Peers whose refusals are counted: a key costs nothing to make, and who came first stays named."""
UPLOADING = Patience(idle_s=60.0)
"""Who has sent all of an upload may wait for its reservation before it closes: twice a client's deadline for that."""
LAG_S = 3.0
"""A client names a reservation as soon as one member has executed it; others may be a block behind, or busy."""
REPLY_BUDGET_BYTES = 64 << 20
"""Slivers and headers on their way to readers at once: a reader that takes them slowly keeps them in memory."""

Reply = tuple[Mapping[str, cbor.Value], tuple[bytes | memoryview, ...]]
Manner = Callable[[Stream, str, Reply], Awaitable[None]]
"""How a reply to an operation is put on the stream; adversaries have another one."""
EPOCHS_MAX = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation that another module answers."""

    answer: Callable[[NodeId, Incoming, bytes], Awaitable[Reply]]
    """Takes the peer, the request and its payload; raises `Rejected`, `SpaceError` and `CorruptSliver`."""
    payload_max: int = 0
    reply_bytes: Callable[[Incoming], int] = lambda message: 0
    """The size of a reply that a slow reader could pile up, before anything of it is in memory."""


async def send_honestly(stream: Stream, operation: str, reply: Reply) -> None:
    header, payload = reply
    await send_message(stream, header, *payload)


@dataclass(slots=True)
class _Session:
    """What one stream has said so far."""

    stream: Stream
    upload: OpenUpload
    ticket: Ticket | None = None
    shards: tuple[int, ...] = ()
    """What this node held when the upload was opened, which is what the client deals to it."""
    roots: set[Root] = field(default_factory=set)


class StorageServer:
    """Answers the storage protocol for one member of the committee."""

    def __init__(
        self,
        *,
        genesis: Genesis,
        node: NodeId,
        store: SliverStore,
        codec: Codec,
        admission: Admission,
        certifier: Certifier,
        sign: Callable[[bytes], Signature],
        ledger: Callable[[], Ledger],
        status: Callable[[], dict[str, cbor.Value]],
        on_commitment: Callable[[CommitmentEntry], Awaitable[None]],
        operations: dict[str, Operation],
        manner: Manner = send_honestly,
    ) -> None:
        self.genesis = genesis
        self.node = node
        self.store = store
        self.codec = codec
        self.admission = admission
        self.certifier = certifier
        self.sign = sign
        self._ledger = ledger
        self.status = status
        self.on_commitment = on_commitment
        self.operations = operations
        """What else can be asked, by name; more may come with what answers it."""
        self.manner = manner
        self.refused: Counter[tuple[str, Reason]] = Counter()
        """Refusals by (peer, reason): who misbehaved, or met a budget."""
        self._payloads = ByteBudget(PAYLOAD_BUDGET_BYTES)
        self._replies = ByteBudget(REPLY_BUDGET_BYTES)

    @property
    def code(self) -> Code:
        return self.codec.code

    @property
    def index(self) -> int | None:
        """This node's place in the committee of the current epoch."""
        return self._ledger().committee.index_of(self.node)

    @property
    def shards(self) -> tuple[int, ...]:
        """What this node holds in the current epoch, ascending."""
        return self._ledger().committee.shards_of_node(self.node)

    def height(self) -> int:
        """Return the height that tickets and statements are judged at: that of the newest final block executed here."""
        return self._ledger().height

    async def handle(self, stream: Stream) -> None:
        """Answer one stream until the peer ends it; raises `NetworkError` if the peer breaks off or stalls."""
        with self.admission.upload(stream.peer) as upload:
            session = _Session(stream, upload)
            with self.store.held(session.roots):
                while (message := await self._next_message(session)) is not None:
                    if not await self._answer(session, message):
                        break
                await stream.close()

    async def _next_message(self, session: _Session) -> Incoming | None:
        """Return the next request, or None at the end; a header that breaks the rules ends the stream."""
        session.stream.patience = UPLOADING if session.ticket is not None else Patience()
        try:
            return await receive_message_or_end(session.stream)
        except Rejected as fault:
            await self._refuse(session, fault.reason, fault.detail)
            return None
        finally:
            session.stream.patience = Patience()

    async def _answer(self, session: _Session, message: Incoming) -> bool:
        """Answer one request; return False if the stream cannot go on, because a payload was refused unread."""
        operation = message.header.get("op")
        try:
            other = self.operations.get(str(operation))
            size = 0 if other is None else other.reply_bytes(message)
            async with self._replies.taken(session.stream.peer, size):
                reply = await self._dispatch(session, message)
                with self._replies.moving(size):
                    await self.manner(session.stream, str(operation), reply)
        except Rejected as fault:
            await self._refuse(session, fault.reason, fault.detail)
            return not message.size
        except SpaceError as fault:
            await self._refuse(session, Reason.OVER_BUDGET, str(fault))
            return not message.size
        except CorruptSliver as fault:
            log.error("%s", fault)
            await self._refuse(session, Reason.NOT_FOUND, "the copy here was damaged and has been dropped")
            return True
        return True

    async def _refuse(self, session: _Session, reason: Reason, detail: str) -> None:
        peer = build_key_text(session.stream.peer)
        if (peer, reason) in self.refused or len(self.refused) < REFUSED_MAX:
            self.refused[peer, reason] += 1
            if self.refused[peer, reason] == 1 and reason is not Reason.NOT_FOUND:  # a peer must not fill the log
                log.warning("refused peer %s: %s %s", peer, reason, detail)
        retry = reason in RETRIED
        await send_message(session.stream, {"detail": detail, "error": str(reason), "ok": False, "retry": retry})

    async def _dispatch(self, session: _Session, message: Incoming) -> Reply:
        operation = message.header.get("op")
        match operation:
            case "have":
                return await self._have(session, message)
            case "segment":
                return await self._take_segment(session, message)
            case "close":
                return await self._close(session, message)
            case str() if operation in self.operations:
                return await self._pass_on(session, message, self.operations[operation])
        if message.size:
            raise Rejected(Reason.MALFORMED, "this operation has no payload")
        match operation:
            case "open":
                return await self._open(session, message)
            case "status":
                return {"ok": True, "status": self.status()}, ()
            case _:
                raise Rejected(Reason.UNKNOWN_OPERATION, "no such operation")

    async def _pass_on(self, session: _Session, message: Incoming, operation: Operation) -> Reply:
        if message.size > operation.payload_max:
            raise Rejected(Reason.MALFORMED, f"this operation has a payload of at most {operation.payload_max} bytes")
        payload = await self._receive(session, message) if message.size else b""
        return await operation.answer(session.stream.peer, message, payload)

    @staticmethod
    def _payload(*parts: bytes | memoryview) -> Reply:
        return {"ok": True}, parts

    # --- uploads -------------------------------------------------------------------------------------------------

    async def _open(self, session: _Session, message: Incoming) -> Reply:
        await self._await_epoch(message.integer("epoch", high=EPOCHS_MAX))
        if self.index is None:
            raise Rejected(Reason.UNKNOWN_SIGNER, "this node has no shards in the current epoch")
        ticket = Ticket.decode(message.raw("ticket", TICKET_BYTES), chain_id=self.genesis.chain_id)
        signature = message.raw("signature", SIGNATURE_BYTES)
        ticket.verify(signature, uploader=session.stream.peer, height=self.height())
        await self._await_reservation(ticket.reservation)
        self.admission.verify_ticket(ticket)
        session.ticket, session.shards = ticket, self.shards
        return {"height": self.height(), "index": self.index, "ok": True}, ()

    async def _await_epoch(self, epoch: int) -> None:
        """Raise `Rejected(WRONG_EPOCH)` unless it is the current one; one that others know to have begun may come."""
        with trio.move_on_after(LAG_S):
            while epoch == self._ledger().epoch + 1:  # noqa: ASYNC110
                await trio.sleep(LAG_S / 60)
        if epoch != self._ledger().epoch:
            raise Rejected(Reason.WRONG_EPOCH, f"this is epoch {self._ledger().epoch}")

    def _require_ticket(self, session: _Session) -> Ticket:
        if session.ticket is None:
            raise Rejected(Reason.UNKNOWN_SIGNER, "show a ticket first")
        return session.ticket

    def _verify_seat(self, shards: Sequence[int]) -> None:
        """Raise `Rejected(WRONG_EPOCH)` unless these are still what this node holds."""
        if shards != self.shards:
            raise Rejected(Reason.WRONG_EPOCH, "this node's shards are others since this upload was opened")

    async def _receive(self, session: _Session, message: Incoming) -> bytes:
        async with self._payloads.taken(session.stream.peer, message.size):
            with self._payloads.moving(message.size):
                return await session.stream.receive_exactly(message.size)

    async def _have(self, session: _Session, message: Incoming) -> Reply:
        """Tell which segments need not be sent, and keep those from eviction while the stream lasts."""
        self._require_ticket(session)
        if message.size % DIGEST_BYTES or message.size > HEADER_ROOTS_MAX * DIGEST_BYTES:
            raise Rejected(Reason.MALFORMED, "the payload is segment roots of 32 bytes")
        data = await self._receive(session, message)
        answer = bytearray()
        for at in range(0, len(data), DIGEST_BYTES):
            root = Root(data[at : at + DIGEST_BYTES])
            held = not self.store.missing(root, session.shards)
            if held:
                self.store.hold(session.roots, root)
            answer.append(held)
        return self._payload(bytes(answer))

    async def _take_segment(self, session: _Session, message: Incoming) -> Reply:
        ticket = self._require_ticket(session)
        self._verify_seat(session.shards)
        code = self.code
        z = message.integer("symbol_bytes", high=code.symbol_bytes(code.segment_bytes))
        owed = len(session.shards) * code.pair_bytes(z)
        if not z or message.size != DIGEST_BYTES * (1 + 2 * code.n) + owed:
            raise Rejected(Reason.MALFORMED, "the payload is root, metadata and every sliver that this node owes")
        if ticket.reservation == ZERO_RESERVATION:
            await self._admit(session, owed)
        self.admission.accept(ticket, owed)  # last: what is refused unread is not charged
        async with self._payloads.taken(session.stream.peer, message.size):
            buffer = bytearray(message.size)
            with self._payloads.moving(message.size):
                await session.stream.receive_into(memoryview(buffer))
            root = Root(bytes(buffer[:DIGEST_BYTES]))
            self.store.hold(session.roots, root)
            payload = memoryview(buffer)[DIGEST_BYTES:]
            await trio.to_thread.run_sync(self._check_and_store, session.shards, root, z, payload)
        return {"ok": True}, ()

    async def _admit(self, session: _Session, size: int) -> None:
        """Find room for bytes that nothing pays for yet, in the budget of unclosed uploads."""
        session.upload.grow(size)
        unclosed = self.store.unclosed_bytes + size - self.admission.limits.unclosed_bytes_max
        if unclosed > 0:
            await trio.to_thread.run_sync(self.store.evict, unclosed)
        if self.store.unclosed_bytes + size > self.admission.limits.unclosed_bytes_max:
            raise Rejected(Reason.OVER_BUDGET, "this node's budget for uploads under way is used up")

    def _check_and_store(self, shards: Sequence[int], root: Root, z: int, payload: memoryview) -> None:
        """Re-expand every sliver and compare it with its commitment, then store all of them; for a worker thread."""
        code = self.code
        at = 2 * code.n * DIGEST_BYTES
        metadata = SegmentMetadata.decode(bytes(payload[:at]), n=code.n, root=root)
        pairs = []
        for shard in shards:
            pair = code.pair_of_shard(shard, root)
            middle = at + code.columns * z
            primary, secondary = payload[at:middle], payload[middle : middle + code.rows * z]
            at = middle + code.rows * z
            primary_leaves = self.codec.check_sliver(metadata, Kind.PRIMARY, pair, primary, z)
            secondary_leaves = self.codec.check_sliver(metadata, Kind.SECONDARY, code.n - 1 - pair, secondary, z)
            pairs.append(Pair(shard, primary, secondary, primary_leaves, secondary_leaves))
        self.store.put_segment(metadata, z, pairs)

    async def _close(self, session: _Session, message: Incoming) -> Reply:
        ticket = self._require_ticket(session)
        self._verify_seat(session.shards)
        body = message.raw("statement", STATEMENT_BYTES)
        statement = OwnerStatement.decode(body, chain_id=self.genesis.chain_id)
        signature = Signature(message.raw("signature", SIGNATURE_BYTES))
        statement.verify(signature, height=self.height())
        if statement.owner != ticket.owner or ticket.reservation not in (ZERO_RESERVATION, statement.reservation):
            raise Rejected(Reason.UNKNOWN_SIGNER, "the statement and the ticket are not of one owner and reservation")
        if message.size != header_bytes(self.code, statement.length) or message.size > HEADER_BYTES_MAX:
            raise Rejected(Reason.MALFORMED, "the payload is the header of a blob of the statement's length")
        if self._ledger().is_invalid(statement.blob_id):
            raise Rejected(Reason.INVALID, "its writer encoded it wrongly: nobody signs for it")
        await self._await_reservation(statement.reservation)
        self.admission.verify_statement(statement)  # first: what follows costs time for each segment
        data = await self._receive(session, message)
        header = Header.decode(data, code=self.code, blob_id=statement.blob_id)
        if header.length != statement.length:
            raise Rejected(Reason.MALFORMED, "the statement's length is not the header's")
        for root in header.roots:
            self.store.hold(session.roots, root)
        await trio.to_thread.run_sync(self._check_held, header, session.shards)
        with self.admission.closing(statement):
            index, entry = await self._sign_for(header, statement, signature, session.shards)
        return {"epoch": entry.epoch, "index": index, "ok": True, "signature": entry.signature}, ()

    async def _await_reservation(self, reservation: ReservationId) -> None:
        """Give a reservation that others know to be final a moment to be so here too."""
        with trio.move_on_after(LAG_S):
            while reservation != ZERO_RESERVATION and self._ledger().reservation(reservation) is None:  # noqa: ASYNC110
                await trio.sleep(LAG_S / 60)

    async def _sign_for(
        self, header: Header, statement: OwnerStatement, signature: Signature, shards: Sequence[int]
    ) -> tuple[int, Entry]:
        """Sign a statement under the current epoch, store that, and tell of it; return (own index, what was stored).

        The node holds these shards of the blob: raises `Rejected(WRONG_EPOCH)` if it owes others by now. Once more
        where an epoch ends meanwhile: `sign_again` may have looked before this was on disk.
        """
        while True:
            self._verify_seat(shards)
            index = self.index
            assert index is not None  # who has shards is a member
            commitment = Commitment.build(statement, epoch=self._ledger().epoch, signer=index)
            entry = Entry(statement, signature, commitment.epoch, self.sign(commitment.encode()))
            await trio.to_thread.run_sync(self.store.put_entry, header, entry)
            if entry.epoch == self._ledger().epoch:
                break
        await self.on_commitment(entry.as_commitment(index))
        return index, entry

    async def sign_again(self) -> None:
        """Sign for a new epoch what was signed for under an earlier one and is not on chain yet; no bytes move.

        Left out is what this node does not hold all it owes of now, and what a full disk has no room for: nothing is
        told that is not on it.
        """
        shards = self.shards
        live = self.admission.live_statements() if shards else {}
        for record in self.store.records().values():
            for entry in record.entries:
                if entry.epoch < self._ledger().epoch and entry.statement.hash in live:
                    try:
                        await trio.to_thread.run_sync(self._check_held, record.header, shards)
                        await self._sign_for(record.header, entry.statement, entry.statement_signature, shards)
                    except Rejected as fault:  # shards have come since: who uploads it sends them what is missing
                        log.info("a blob held here is not signed for again: %s", fault)
                    except (SpaceError, CorruptSliver) as fault:
                        log.error("a blob held here is not signed for again: %s", fault)

    def _check_held(self, header: Header, shards: Sequence[int]) -> None:
        """Raise `Rejected` unless this node holds all that it owes of a blob; for a worker thread."""
        last = len(header.roots) - 1
        lengths = dict.fromkeys(header.roots[:last], self.code.segment_bytes).items()  # one may come many times
        for root, length in (*lengths, (header.roots[last], self.code.segment_length(header.length, last))):
            self.store.check_segment(root, length, shards)
