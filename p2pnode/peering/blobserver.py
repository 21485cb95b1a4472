"""Whole blobs and parts of them served to any peer, in any network and in none (FORMATS.md 22). Judges nobody's bytes.

What there is to serve is elsewhere: this machine's files in library, a cache on disk, what a swarm has just fetched.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from economics import cbor
from economics.blob import BlobId, Header
from economics.crypto import DIGEST_BYTES, NodeId
from economics.errors import Reason, Rejected
from economics.geometry import HEADER_ROOTS_MAX
from p2pnode.budget import ByteBudget
from p2pnode.network.frames import Incoming, receive_message_or_end, send_message
from p2pnode.network.stream import Patience, Stream

log = logging.getLogger("p2pnode.peering.blobserver")

PROTOCOL = "/p2pnode/blobs/1"
STREAMS_PER_PEER = 8
"""A reader keeps four requests open at each provider; two readers of one home may share a key."""
STREAMS_MAX = 256
"""Of all peers: each holds a task, and keys cost nothing to make."""
REPLY_BUDGET_BYTES = 64 << 20
"""Segments on their way at once, eight of the largest: a home machine has 256 MiB to give."""
REQUESTS_PER_S = 200.0
REQUESTS_BURST = 400
"""A folder of small blobs is asked for in bursts; a segment of 8 MiB takes a fast reader 20 ms."""
BUCKETS_MAX = 1_024
"""Peers whose pace is remembered."""
IDLE_S = 60.0
"""How long a reader may keep a stream open between two requests."""
PEERS_TOLD = 8
ASKED_BLOBS_MAX = 1_024
"""Blobs of which it is remembered who asked for them lately."""
RETRIED = (Reason.NOT_FOUND, Reason.OVER_BUDGET)
"""The same request may succeed later."""


class Holdings(Protocol):
    """Something to serve. The methods run in worker threads, several at once."""

    def header(self, blob_id: BlobId) -> Header | None:
        """Return the header of a blob of which at least a part is here."""
        ...

    def segment(self, blob_id: BlobId, index: int) -> bytes | bytearray | None:
        """Return a segment that is here; whoever asks has compared the index with the header."""
        ...

    def blob_ids(self) -> Sequence[BlobId]:
        """Return the blobs that are here whole, to be announced."""
        ...


Tell = Callable[[BlobId, Sequence[NodeId]], Sequence[str]]
"""Returns where else a blob may be had, as `<node key>@<multiaddr>`, given who asked for it lately. Asks nobody."""


class BlobServer:
    """Answers the peer protocol from holdings, the first that has what is asked."""

    def __init__(self, *holdings: Holdings, tell: Tell = lambda blob_id, asked: ()) -> None:
        self.holdings = list(holdings)
        self.tell = tell
        self.sent_bytes = 0
        """Of segments, since the start."""
        self._replies = ByteBudget(REPLY_BUDGET_BYTES)
        self._streams = 0
        self._buckets: OrderedDict[NodeId, tuple[float, float]] = OrderedDict()
        self._asked: OrderedDict[BlobId, OrderedDict[NodeId, None]] = OrderedDict()

    async def handle(self, stream: Stream) -> None:
        """Answer one stream until the peer ends it; raises `NetworkError` if the peer breaks off or stalls."""
        if self._streams >= STREAMS_MAX:
            await stream.refuse()
            return
        self._streams += 1
        held: dict[BlobId, Header] = {}
        try:
            while (message := await self._next_message(stream)) is not None:
                if not await self._answer(stream, message, held):
                    break
            await stream.close()
        finally:
            self._streams -= 1

    async def _next_message(self, stream: Stream) -> Incoming | None:
        """Return the next request, or None at the end; a header that breaks the rules ends the stream."""
        stream.patience = Patience(idle_s=IDLE_S)
        try:
            return await receive_message_or_end(stream)
        except Rejected as fault:
            await refuse(stream, fault)
            return None
        finally:
            stream.patience = Patience()

    async def _answer(self, stream: Stream, message: Incoming, held: dict[BlobId, Header]) -> bool:
        """Answer one request; return False if the stream cannot go on."""
        if message.size:
            await refuse(stream, Rejected(Reason.MALFORMED, "no request of this protocol has a payload"))
            return False
        try:
            self._take_turn(stream.peer)
            match message.header.get("op"):
                case "header":
                    await self._send_header(stream, message, held)
                case "segment":
                    await self._send_segment(stream, message, held)
                case other:
                    raise Rejected(Reason.UNKNOWN_OPERATION, str(other)[:40])
        except Rejected as fault:
            await refuse(stream, fault)
        return True

    def _take_turn(self, peer: NodeId) -> None:
        """Raise `Rejected(OVER_BUDGET)` if the peer asks too often."""
        now = trio.current_time()
        tokens, filled_at = self._buckets.pop(peer, (float(REQUESTS_BURST), now))
        tokens = min(REQUESTS_BURST, tokens + (now - filled_at) * REQUESTS_PER_S)
        self._buckets[peer] = (max(tokens - 1, 0.0), now)
        if len(self._buckets) > BUCKETS_MAX:
            self._buckets.popitem(last=False)
        if tokens < 1:
            raise Rejected(Reason.OVER_BUDGET, f"more than {REQUESTS_PER_S:.0f} requests a second")

    async def _find_header(self, blob_id: BlobId, held: dict[BlobId, Header]) -> Header:
        """Return a blob's header, kept for the stream's next request: a reader asks for one segment after the other."""
        if blob_id in held:
            return held[blob_id]
        header = await trio.to_thread.run_sync(self._first_header, blob_id)
        if header is None:
            raise Rejected(Reason.NOT_FOUND, "this blob is not here")
        held.clear()
        held[blob_id] = header
        return header

    def _first_header(self, blob_id: BlobId) -> Header | None:
        found = (holding.header(blob_id) for holding in self.holdings)
        return next((header for header in found if header is not None), None)

    def _first_segment(self, blob_id: BlobId, index: int) -> bytes | bytearray | None:
        found = (holding.segment(blob_id, index) for holding in self.holdings)
        return next((data for data in found if data is not None), None)

    async def _send_header(self, stream: Stream, message: Incoming, held: dict[BlobId, Header]) -> None:
        blob_id = BlobId(message.raw("blob", DIGEST_BYTES))
        header = await self._find_header(blob_id, held)
        encoded = await trio.to_thread.run_sync(header.encode)
        told: list[cbor.Value] = list(self.tell(blob_id, self._note_asked(blob_id, stream.peer)))
        async with self._replies.taken(stream.peer, len(encoded)):
            with self._replies.moving(len(encoded)):
                await send_message(stream, {"ok": True, "peers": told[:PEERS_TOLD]}, encoded)

    async def _send_segment(self, stream: Stream, message: Incoming, held: dict[BlobId, Header]) -> None:
        blob_id = BlobId(message.raw("blob", DIGEST_BYTES))
        index = message.integer("index", high=HEADER_ROOTS_MAX - 1)
        header = await self._find_header(blob_id, held)
        if index >= len(header.roots):
            raise Rejected(Reason.WRONG_INDEX, f"the blob has {len(header.roots)} segments")
        size = header.code.segment_length(header.length, index)
        async with self._replies.taken(stream.peer, size):
            data = await trio.to_thread.run_sync(self._first_segment, blob_id, index)
            if data is None:
                held.clear()  # its file may have changed: then the blob is not here any more
                raise Rejected(Reason.NOT_FOUND, "this segment is not here")
            with self._replies.moving(size):
                await send_message(stream, {"ok": True}, *([data] if data else []))
        self.sent_bytes += size

    def _note_asked(self, blob_id: BlobId, peer: NodeId) -> list[NodeId]:
        """Return who else asked for the blob lately, the latest first, and remember that this peer did."""
        asked = self._asked.pop(blob_id, OrderedDict())
        self._asked[blob_id] = asked
        asked.pop(peer, None)
        others = list(reversed(asked))
        asked[peer] = None
        if len(asked) > PEERS_TOLD:
            asked.popitem(last=False)
        if len(self._asked) > ASKED_BLOBS_MAX:
            self._asked.popitem(last=False)
        return others


async def refuse(stream: Stream, fault: Rejected) -> None:
    header: dict[str, cbor.Value] = {
        "detail": fault.detail,
        "error": str(fault.reason),
        "ok": False,
        "retry": fault.reason in RETRIED,
    }
    await send_message(stream, header)
