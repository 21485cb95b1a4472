"""Answers whoever reads, takes over or recovers what this node holds (FORMATS.md 7). Changes nothing, trusts nobody.

All that is sent has been checked against its root, so a rotten disk is never taken for a lie.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import partial

import trio

from economics.blob import BlobId, Root, header_bytes
from economics.crypto import DIGEST_BYTES, NodeId
from economics.errors import Reason, Rejected
from economics.geometry import Code
from economics.ledger import Ledger
from p2pnode.coding.codec import Codec, Kind
from p2pnode.network.frames import Incoming
from p2pnode.slivers.records import BlobRecord
from p2pnode.slivers.storage import EPOCHS_MAX, Operation, Reply
from p2pnode.slivers.store import CorruptSliver, SliverStore

ITEMS_MAX = 256
"""Roots or blobs that one request may name."""
HEAVY_AT_ONCE = 2
"""Replies to many roots in the making: a symbol of parity has its whole sliver read, and readers come first."""
REPLY_BYTES_MAX = 8 << 20
"""Of one reply to many roots: it ends before the item that would exceed it, but for the first."""
HEADERS_BYTES_MAX = 4 << 20
LENGTH_BYTES = 4
LISTED_MAX = ITEMS_MAX * DIGEST_BYTES
NOTHING = bytes(LENGTH_BYTES)
"""In place of an item: not held, or not to be had now."""

Pairs = Set[tuple[Root, int]]
"""Shards of segments."""


class Serving:
    """The reads of the storage protocol."""

    def __init__(
        self,
        *,
        store: SliverStore,
        codec: Codec,
        ledger: Callable[[], Ledger],
        frozen: Callable[[], Pairs] = frozenset,
    ) -> None:
        self.store = store
        self.codec = codec
        self._ledger = ledger
        self.frozen = frozen
        """What is under a challenge now, and must not be had from others (FORMATS.md 17); asked in trio's thread."""
        self._heavy = trio.CapacityLimiter(HEAVY_AT_ONCE)

    @property
    def code(self) -> Code:
        return self.codec.code

    def operations(self) -> Mapping[str, Operation]:
        """Return all that this answers, by name."""
        return {
            "certificate": Operation(self._certificate),
            "header": Operation(self._header, reply_bytes=self._header_bytes),
            "headers": Operation(self._headers, LISTED_MAX, lambda message: HEADERS_BYTES_MAX),
            "metadata": Operation(self._metadata),
            "pairs": Operation(self._pairs, LISTED_MAX, self._pairs_bytes),
            "proof": Operation(self._proof),
            "sliver": Operation(self._sliver, reply_bytes=self._sliver_bytes),
            "symbols": Operation(self._symbols, LISTED_MAX, self._symbols_bytes),
        }

    # --- blobs ---------------------------------------------------------------------------------------------------

    def _record(self, blob_id: BlobId) -> BlobRecord:
        if self._ledger().is_invalid(blob_id):
            raise Rejected(Reason.INVALID, "its writer encoded it wrongly: nobody can have it")
        record = self.store.record(blob_id)
        if record is None:
            raise Rejected(Reason.NOT_FOUND, "no such blob here")
        return record

    async def _header(self, peer: NodeId, message: Incoming, payload: bytes) -> Reply:
        return {"ok": True}, (self._record(_blob_of(message)).header.encode(),)

    def _header_bytes(self, message: Incoming) -> int:
        record = self.store.record(_blob_of(message))
        return 0 if record is None else header_bytes(self.code, record.header.length)

    async def _headers(self, peer: NodeId, message: Incoming, payload: bytes) -> Reply:
        def parts() -> Iterator[list[bytes | memoryview]]:
            for blob_id in _split(payload):
                is_invalid = self._ledger().is_invalid(BlobId(blob_id))
                record = None if is_invalid else self.store.record(BlobId(blob_id))
                yield [NOTHING] if record is None else _sized([record.header.encode()])

        return _page(parts(), HEADERS_BYTES_MAX)

    async def _certificate(self, peer: NodeId, message: Incoming, payload: bytes) -> Reply:
        certificate = self._record(_blob_of(message)).certificate
        if certificate is None:
            raise Rejected(Reason.NOT_FOUND, "this node knows no certificate of that blob yet")
        return {"ok": True}, (certificate.encode(),)

    async def _proof(self, peer: NodeId, message: Incoming, payload: bytes) -> Reply:
        proof = await trio.to_thread.run_sync(self.store.proofs.read, _blob_of(message))
        if proof is None:
            raise Rejected(Reason.NOT_FOUND, "this node knows no proof against that blob")
        return {"ok": True}, (proof,)

    # --- one segment ---------------------------------------------------------------------------------------------

    def _verify_valid(self, root: Root) -> None:
        """Raise `Rejected(INVALID)` for a segment of invalid blobs alone."""
        blobs = self.store.blobs_of(root)
        if blobs and all(self._ledger().is_invalid(blob_id) for blob_id in blobs):
            raise Rejected(Reason.INVALID, "its writer encoded it wrongly: nobody can have it")

    async def _metadata(self, peer: NodeId, message: Incoming, payload: bytes) -> Reply:
        root = Root(message.raw("root", DIGEST_BYTES))
        self._verify_valid(root)
        metadata = await trio.to_thread.run_sync(self.store.read_metadata, root)
        return {"ok": True}, (metadata.encode(),)

    def _sliver_bytes(self, message: Incoming) -> int:
        z = self.store.symbol_bytes_of(Root(message.raw("root", DIGEST_BYTES)))
        return DIGEST_BYTES * self.code.n + z * message.integer("count", high=self.code.columns)

    async def _sliver(self, peer: NodeId, message: Incoming, payload: bytes) -> Reply:
        """Symbols of a sliver with its leaves; the leaves alone, which give nothing away, also while it is frozen."""
        root = Root(message.raw("root", DIGEST_BYTES))
        kind = Kind(message.integer("kind", high=1))
        index = message.integer("index", high=self.code.n - 1)
        first = message.integer("first", high=self.code.columns)
        count = message.integer("count", high=self.code.columns)
        self._verify_valid(root)
        pair = index if kind is Kind.PRIMARY else self.code.n - 1 - index
        if count and (root, self.code.shard_of_pair(pair, root)) in self.frozen():
            raise Rejected(Reason.OVER_BUDGET, "this sliver is under a challenge: come back in a minute")
        read = partial(self.store.read_symbols, root, kind, index, first=first, count=count)
        symbols = await trio.to_thread.run_sync(read)
        return {"ok": True}, (symbols.leaves, symbols.data)

    # --- many segments -------------------------------------------------------------------------------------------

    def _pairs_bytes(self, message: Incoming) -> int:
        return min(message.size // DIGEST_BYTES * self.store.layout.file_bytes(self._z_max), REPLY_BYTES_MAX)

    @property
    def _z_max(self) -> int:
        return self.code.symbol_bytes(self.code.segment_bytes)

    async def _pairs(self, peer: NodeId, message: Incoming, payload: bytes) -> Reply:
        """Whole pairs of one shard, to who holds it now or in the next epoch."""
        shard = message.integer("shard", high=self.code.n - 1)
        epoch = self._ledger().epoch
        if abs(message.integer("epoch", high=EPOCHS_MAX) - epoch) > 1:
            raise Rejected(Reason.WRONG_EPOCH, f"this is epoch {epoch}")
        self._verify_holder(peer, shard)
        roots = [Root(root) for root in _split(payload)]
        frozen = self.frozen()

        def read() -> Reply:
            return _page((self._read_pair(root, shard, frozen) for root in roots), REPLY_BYTES_MAX)

        return await trio.to_thread.run_sync(read, limiter=self._heavy)

    def _verify_holder(self, peer: NodeId, shard: int) -> None:
        """Raise `Rejected(UNKNOWN_SIGNER)` unless the peer holds the shard now or in the next epoch."""
        committees = (self._ledger().committee, self._ledger().next_committee)
        if not any(committee is not None and shard in committee.shards_of_node(peer) for committee in committees):
            raise Rejected(Reason.UNKNOWN_SIGNER, f"shard {shard} is not yours")

    def _read_pair(self, root: Root, shard: int, frozen: Pairs) -> list[bytes | memoryview]:
        if (root, shard) in frozen or self.store.missing(root, [shard]):
            return [NOTHING]
        try:
            metadata, pair = self.store.read_pair(root, shard)
        except (CorruptSliver, Rejected):
            return [NOTHING]
        return _sized([metadata.encode(), pair.primary, pair.secondary])

    def _symbols_bytes(self, message: Incoming) -> int:
        helpers = len(_shards_in(message, self.code))
        return min(message.size // DIGEST_BYTES * helpers * (LENGTH_BYTES + self._z_max), REPLY_BYTES_MAX)

    async def _symbols(self, peer: NodeId, message: Incoming, payload: bytes) -> Reply:
        """One symbol of each of some shards, for each root: where they cross the sliver of another shard."""
        shard = message.integer("shard", high=self.code.n - 1)
        kind = Kind(message.integer("kind", high=1))
        helpers = _shards_in(message, self.code)
        self._verify_holder(peer, shard)
        roots = [Root(root) for root in _split(payload)]
        frozen = self.frozen()

        def read() -> Reply:
            items = (self._read_crossings(root, shard, kind, helpers, frozen) for root in roots)
            return _page(items, REPLY_BYTES_MAX)

        return await trio.to_thread.run_sync(read, limiter=self._heavy)

    def _read_crossings(
        self, root: Root, shard: int, kind: Kind, helpers: Sequence[int], frozen: Pairs
    ) -> list[bytes | memoryview]:
        pair = self.code.pair_of_shard(shard, root)
        index = pair if kind is Kind.PRIMARY else self.code.n - 1 - pair
        made: list[bytes | memoryview] = []
        for helper in helpers:
            if (root, helper) in frozen or self.store.missing(root, [helper]):
                made.append(NOTHING)
                continue
            try:
                made += _sized([self.store.read_crossing(root, helper, kind, index)])
            except (CorruptSliver, Rejected):
                made.append(NOTHING)
        return made


def _blob_of(message: Incoming) -> BlobId:
    return BlobId(message.raw("blob", DIGEST_BYTES))


def _shards_in(message: Incoming, code: Code) -> list[int]:
    """Return the helper's shards that a request for symbols names, distinct; raises `Rejected`."""
    match message.header.get("from"):
        case [*named] if 1 <= len(named) <= code.n and len(set(map(str, named))) == len(named):
            return [Incoming({"from": shard}, 0).integer("from", high=code.n - 1) for shard in named]
        case _:
            raise Rejected(Reason.MALFORMED, "from is a list of distinct shards")


def _split(payload: bytes) -> list[bytes]:
    count, rest = divmod(len(payload), DIGEST_BYTES)
    if rest or not 1 <= count <= ITEMS_MAX:
        raise Rejected(Reason.MALFORMED, f"the payload is 1 to {ITEMS_MAX} names of {DIGEST_BYTES} bytes")
    return [payload[at : at + DIGEST_BYTES] for at in range(0, len(payload), DIGEST_BYTES)]


def _sized(parts: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    return [sum(len(part) for part in parts).to_bytes(LENGTH_BYTES, "big"), *parts]


def _page(items: Iterator[list[bytes | memoryview]], size_max: int) -> Reply:
    """Join items to a reply, as many as fit and one at least; the rest is not read."""
    parts: list[bytes | memoryview] = []
    count = size = 0
    for item in items:
        size += sum(len(part) for part in item)
        if count and size > size_max:
            break
        parts += item
        count += 1
    return {"count": count, "ok": True}, tuple(parts)
