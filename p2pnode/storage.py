"""The node's side of the storage protocol (FORMATS.md 7): takes uploads, signs for them, serves slivers.

It holds no more of a peer's bytes than one message, checks before it stores, and stores before it signs.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import trio

from economics import cbor
from economics.blob import HEADER_FIXED_BYTES, BlobId, Header, Root, SegmentMetadata, header_bytes
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
from p2pnode.admission import Admission, OpenUpload
from p2pnode.certifier import Certifier
from p2pnode.certifier import Entry as CommitmentEntry
from p2pnode.codec import Codec, Kind
from p2pnode.errors import SpaceError, TooSlow
from p2pnode.network.frames import Incoming, receive_message_or_end, send_message
from p2pnode.network.stream import Patience, Stream
from p2pnode.store import BlobRecord, CorruptSliver, Entry, Pair, SliverStore

log = logging.getLogger("p2pnode.storage")

PAYLOAD_BUDGET_BYTES = 128 << 20
"""Payloads in memory at once, over all peers: a home node has 256 MiB to give."""
HEADER_BYTES_MAX = HEADER_FIXED_BYTES + HEADER_ROOTS_MAX * DIGEST_BYTES
"""The header of the largest blob at the default segment size, 4 MiB."""
REFUSED_MAX = 1_024
"""Peers whose refusals are counted: a key costs nothing to make, and who came first stays named."""
WITH_PAYLOAD = ("have", "segment", "close")
UPLOADING = Patience(idle_s=60.0)
"""Who has sent all of an upload may wait for its reservation before it closes: twice a client's deadline for that."""
LAG_S = 3.0
"""A client names a reservation as soon as one member has executed it; others may be a block behind, or busy."""
REPLY_BUDGET_BYTES = 64 << 20
"""Slivers and headers on their way to readers at once: a reader that takes them slowly keeps them in memory."""
BUDGET_WAIT_S = 8.0
"""Who finds no room for a message waits this long, then is told to come back; peers give up after 10 s."""
FAIR_S = 2.0
"""A transfer may hold its room for so long, whoever waits."""

Reply = tuple[Mapping[str, cbor.Value], tuple[bytes | memoryview, ...]]
Manner = Callable[[Stream, str, Reply], Awaitable[None]]
"""How a reply to an operation is put on the stream; adversaries have another one."""


async def send_honestly(stream: Stream, operation: str, reply: Reply) -> None:
    header, payload = reply
    await send_message(stream, header, *payload)


class ByteBudget:
    """Bytes that may be in memory at once. Whoever finds no room waits in turn, each peer once, up to a limit.

    While somebody waits, transfers that have held their room for `FAIR_S` are cut off, the slowest for their size
    first: nobody shuts the others out by dripping.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._changed = trio.Event()
        self._turn = trio.Lock()
        self._peer_turns: dict[NodeId, trio.Lock] = {}
        self._moving: dict[trio.CancelScope, tuple[float, int]] = {}

    @asynccontextmanager
    async def taken(self, peer: NodeId, size: int) -> AsyncIterator[None]:
        if size and (self._free < size or self._turn.locked()):
            await self._wait(peer, size)
        else:
            self._free -= size
        try:
            yield
        finally:
            self._free += size
            self._changed.set()
            self._changed = trio.Event()

    async def _wait(self, peer: NodeId, size: int) -> None:
        own = self._peer_turns.setdefault(peer, trio.Lock())
        try:
            with trio.move_on_after(BUDGET_WAIT_S):
                async with own, self._turn:
                    while self._free < size:
                        self._cut_slowest(size - self._free)
                        with trio.move_on_after(FAIR_S / 4):
                            await self._changed.wait()
                    self._free -= size
                    return
        finally:
            if not own.locked():
                self._peer_turns.pop(peer, None)
        raise Rejected(Reason.OVER_BUDGET, "too many transfers at once")

    def _cut_slowest(self, size: int) -> None:
        now = trio.current_time()
        slow = {scope: (now - since) / of for scope, (since, of) in self._moving.items() if now - since >= FAIR_S}
        for scope in sorted(slow, key=slow.__getitem__, reverse=True):
            if size <= 0:
                return
            size -= self._moving.pop(scope)[1]
            scope.cancel()

    @contextmanager
    def moving(self, size: int) -> Iterator[None]:
        """Run the transfer of `size` bytes for which room is taken; raises `TooSlow` if it is cut off."""
        with trio.CancelScope() as scope:
            self._moving[scope] = (trio.current_time(), max(size, 1))
            try:
                yield
            finally:
                self._moving.pop(scope, None)
        if scope.cancelled_caught:
            raise TooSlow(f"{size} bytes took longer than {FAIR_S:.0f} s while others waited for room")


@dataclass(slots=True)
class _Session:
    """What one stream has said so far."""

    stream: Stream
    upload: OpenUpload
    ticket: Ticket | None = None
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
        manner: Manner = send_honestly,
    ) -> None:
        self.genesis = genesis
        self.node = node
        self.index = genesis.committee.index_of(node)
        """This node's place in every committee so far: they have the same members."""
        self.store = store
        self.codec = codec
        self.admission = admission
        self.certifier = certifier
        self.sign = sign
        self._ledger = ledger
        self.status = status
        self.on_commitment = on_commitment
        self.manner = manner
        self.refused: Counter[tuple[str, Reason]] = Counter()
        """Refusals by (peer, reason): who misbehaved, or met a budget."""
        self._payloads = ByteBudget(PAYLOAD_BUDGET_BYTES)
        self._replies = ByteBudget(REPLY_BUDGET_BYTES)

    @property
    def code(self) -> Code:
        return self.codec.code

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
            size = self._reply_bytes(message)
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
        retry = reason in (Reason.OVER_BUDGET, Reason.NOT_FOUND, Reason.INCOMPLETE)
        await send_message(session.stream, {"detail": detail, "error": str(reason), "ok": False, "retry": retry})

    async def _dispatch(self, session: _Session, message: Incoming) -> Reply:
        operation = message.header.get("op")
        if message.size and operation not in WITH_PAYLOAD:
            raise Rejected(Reason.MALFORMED, "this operation has no payload")
        match operation:
            case "open":
                return await self._open(session, message)
            case "have":
                return await self._have(session, message)
            case "segment":
                return await self._take_segment(session, message)
            case "close":
                return await self._close(session, message)
            case "header":
                return self._payload(self._record(message).header.encode())
            case "certificate":
                return self._certificate(message)
            case "metadata":
                return await self._metadata(message)
            case "sliver":
                return await self._sliver(message)
            case "status":
                return {"ok": True, "status": self.status()}, ()
            case _:
                raise Rejected(Reason.UNKNOWN_OPERATION, "no such operation")

    @staticmethod
    def _payload(*parts: bytes | memoryview) -> Reply:
        return {"ok": True}, parts

    # --- uploads -------------------------------------------------------------------------------------------------

    async def _open(self, session: _Session, message: Incoming) -> Reply:
        if self.index is None:
            raise Rejected(Reason.UNKNOWN_SIGNER, "this node has no shards in the current epoch")
        ticket = Ticket.decode(message.raw("ticket", TICKET_BYTES), chain_id=self.genesis.chain_id)
        signature = message.raw("signature", SIGNATURE_BYTES)
        ticket.verify(signature, uploader=session.stream.peer, height=self.height())
        await self._await_reservation(ticket.reservation)
        self.admission.verify_ticket(ticket)
        session.ticket = ticket
        return {"height": self.height(), "index": self.index, "ok": True}, ()

    def _require_ticket(self, session: _Session) -> Ticket:
        if session.ticket is None:
            raise Rejected(Reason.UNKNOWN_SIGNER, "show a ticket first")
        return session.ticket

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
            held = self.store.has_segment(root)
            if held:
                self.store.hold(session.roots, root)
            answer.append(held)
        return self._payload(bytes(answer))

    async def _take_segment(self, session: _Session, message: Incoming) -> Reply:
        ticket = self._require_ticket(session)
        code = self.code
        z = message.integer("symbol_bytes", high=code.symbol_bytes(code.segment_bytes))
        owed = len(self.store.shards) * code.pair_bytes(z)
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
            await trio.to_thread.run_sync(self._check_and_store, root, z, memoryview(buffer)[DIGEST_BYTES:])
        return {"ok": True}, ()

    async def _admit(self, session: _Session, size: int) -> None:
        """Find room for bytes that nothing pays for yet, in the budget of unclosed uploads."""
        session.upload.grow(size)
        unclosed = self.store.unclosed_bytes + size - self.admission.limits.unclosed_bytes_max
        if unclosed > 0:
            await trio.to_thread.run_sync(self.store.evict, unclosed)
        if self.store.unclosed_bytes + size > self.admission.limits.unclosed_bytes_max:
            raise Rejected(Reason.OVER_BUDGET, "this node's budget for uploads under way is used up")

    def _check_and_store(self, root: Root, z: int, payload: memoryview) -> None:
        """Re-expand every sliver and compare it with its commitment, then store all of them; for a worker thread."""
        code = self.code
        at = 2 * code.n * DIGEST_BYTES
        metadata = SegmentMetadata.decode(bytes(payload[:at]), n=code.n, root=root)
        pairs = []
        for shard in self.store.shards:
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
        assert self.index is not None  # a ticket is only taken by a member
        body = message.raw("statement", STATEMENT_BYTES)
        statement = OwnerStatement.decode(body, chain_id=self.genesis.chain_id)
        signature = Signature(message.raw("signature", SIGNATURE_BYTES))
        statement.verify(signature, height=self.height())
        if statement.owner != ticket.owner or ticket.reservation not in (ZERO_RESERVATION, statement.reservation):
            raise Rejected(Reason.UNKNOWN_SIGNER, "the statement and the ticket are not of one owner and reservation")
        if message.size != header_bytes(self.code, statement.length) or message.size > HEADER_BYTES_MAX:
            raise Rejected(Reason.MALFORMED, "the payload is the header of a blob of the statement's length")
        await self._await_reservation(statement.reservation)
        self.admission.verify_statement(statement)  # first: what follows costs time for each segment
        data = await self._receive(session, message)
        header = Header.decode(data, code=self.code, blob_id=statement.blob_id)
        if header.length != statement.length:
            raise Rejected(Reason.MALFORMED, "the statement's length is not the header's")
        for root in header.roots:
            self.store.hold(session.roots, root)
        await trio.to_thread.run_sync(self._check_held, header)
        with self.admission.closing(statement):
            entry = await self._sign_for(header, statement, signature)
        return {"epoch": entry.epoch, "index": self.index, "ok": True, "signature": entry.signature}, ()

    async def _await_reservation(self, reservation: ReservationId) -> None:
        """Give a reservation that others know to be final a moment to be so here too."""
        with trio.move_on_after(LAG_S):
            while reservation != ZERO_RESERVATION and self._ledger().reservation(reservation) is None:  # noqa: ASYNC110
                await trio.sleep(LAG_S / 60)

    async def _sign_for(self, header: Header, statement: OwnerStatement, signature: Signature) -> Entry:
        """Sign a statement under the current epoch, store that, and tell of it.

        Once more where an epoch ends meanwhile: `sign_again` may have looked before this was on disk.
        """
        assert self.index is not None
        while True:
            commitment = Commitment.build(statement, epoch=self._ledger().epoch, signer=self.index)
            entry = Entry(statement, signature, commitment.epoch, self.sign(commitment.encode()))
            await trio.to_thread.run_sync(self.store.put_entry, header, entry)
            if entry.epoch == self._ledger().epoch:
                break
        await self.on_commitment(entry.as_commitment(self.index))
        return entry

    async def sign_again(self) -> None:
        """Sign for a new epoch what was signed for under an earlier one and is not on chain yet; no bytes move.

        A full disk leaves out what it has no room for: nothing is told that is not on it.
        """
        live = self.admission.live_statements()
        for record in self.store.records().values():
            for entry in record.entries:
                if entry.epoch < self._ledger().epoch and entry.statement.hash in live:
                    try:
                        await self._sign_for(record.header, entry.statement, entry.statement_signature)
                    except SpaceError as fault:
                        log.error("a blob held here is not signed for again: %s", fault)

    def _check_held(self, header: Header) -> None:
        """Raise `Rejected` unless this node holds all that it owes of a blob; for a worker thread."""
        last = len(header.roots) - 1
        lengths = dict.fromkeys(header.roots[:last], self.code.segment_bytes).items()  # one may come many times
        for root, length in (*lengths, (header.roots[last], self.code.segment_length(header.length, last))):
            self.store.check_segment(root, length)

    # --- reads ---------------------------------------------------------------------------------------------------

    def _record(self, message: Incoming) -> BlobRecord:
        record = self.store.record(BlobId(message.raw("blob", DIGEST_BYTES)))
        if record is None:
            raise Rejected(Reason.NOT_FOUND, "no such blob here")
        return record

    def _certificate(self, message: Incoming) -> Reply:
        certificate = self._record(message).certificate
        if certificate is None:
            raise Rejected(Reason.NOT_FOUND, "this node knows no certificate of that blob yet")
        return self._payload(certificate.encode())

    async def _metadata(self, message: Incoming) -> Reply:
        root = Root(message.raw("root", DIGEST_BYTES))
        metadata = await trio.to_thread.run_sync(self.store.read_metadata, root)
        return self._payload(metadata.encode())

    def _reply_bytes(self, message: Incoming) -> int:
        """Return the size of a reply that a slow reader could pile up, before anything of it is in memory."""
        match message.header:
            case {"op": "sliver", "root": bytes(root), "count": int(count)}:
                z = self.store.symbol_bytes_of(Root(root))
                return DIGEST_BYTES * self.code.n + z * min(max(count, 0), self.code.columns)
            case {"op": "header", "blob": bytes(blob)} if (record := self.store.record(BlobId(blob))) is not None:
                return header_bytes(self.code, record.header.length)
            case _:
                return 0

    async def _sliver(self, message: Incoming) -> Reply:
        root = Root(message.raw("root", DIGEST_BYTES))
        kind = Kind(message.integer("kind", high=1))
        index = message.integer("index", high=self.code.n - 1)
        first = message.integer("first", high=self.code.columns)
        count = message.integer("count", high=self.code.columns)

        def read() -> Reply:
            symbols = self.store.read_symbols(root, kind, index, first=first, count=count)
            return self._payload(symbols.leaves, symbols.data)

        return await trio.to_thread.run_sync(read)
