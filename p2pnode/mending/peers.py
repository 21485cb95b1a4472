"""Other nodes as sources of what this one lost: asks them with deadlines, counts what came, excludes who lied.

A node that served wrong bytes, or would not show what it is bound to, is not asked again in the same epoch.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random

import trio

from economics import cbor
from economics.blob import HEADER_BYTES_MAX, BlobId, Header, Root, SegmentMetadata, build_blob_id_text
from economics.crypto import DIGEST_BYTES, NodeId
from economics.errors import Reason, Rejected
from economics.genesis import build_key_text
from economics.geometry import Code
from p2pnode.coding.codec import Kind
from p2pnode.errors import NetworkError, TooSlow
from p2pnode.members import REQUEST_FAULTS, Members, Refused
from p2pnode.network.frames import Incoming
from p2pnode.slivers.serving import HEADERS_BYTES_MAX, ITEMS_MAX, LENGTH_BYTES

log = logging.getLogger("p2pnode.mending.peers")

ANSWER_S = 20.0
FLOOR_BYTES_PER_S = 64 << 10
"""A reply has `ANSWER_S`, and for its bytes what a slow home line needs."""
PAGE_BYTES_PER_S = 256 << 10
"""Who gives whole pairs more slowly is left: the symbols of all others together come faster."""
HEADER_S = 0.1
"""What a header is worth of the time that one node has: all others may have it too."""


@dataclass(slots=True)
class Patience:
    """Time that one node has for all that it is asked about: what it gives earns back what it takes.

    Without it a node that gives one thing at a time, each just before a deadline, holds up all healing.
    """

    left_s: float = ANSWER_S

    def spend(self, seconds: float, *, earned_s: float) -> None:
        """Raise `TooSlow` once there is none left."""
        self.left_s = min(ANSWER_S, self.left_s - seconds + earned_s)
        if self.left_s <= 0:
            raise TooSlow("too little for the time that it takes")


@dataclass(slots=True)
class Traffic:
    """Bytes of payloads received for healing since the start, by what they were, and what came of them."""

    transfer_bytes: int = 0
    """Whole pairs."""
    symbols_bytes: int = 0
    metadata_bytes: int = 0
    """Headers, segment metadata and leaves."""
    restored_bytes: int = 0
    """Of sliver files that were missing and are there again."""
    restored_pairs: int = 0

    def show(self) -> dict[str, cbor.Value]:
        return dict(asdict(self))


class Peers:
    """All that healing asks of other nodes."""

    def __init__(self, *, members: Members, code: Code, rng: Random) -> None:
        self.members = members
        self.code = code
        self.rng = rng
        self.traffic = Traffic()
        self.excluded: dict[NodeId, str] = {}
        """Who is not asked again in this epoch, and why."""
        self.epoch = 0

    def begin(self, epoch: int) -> None:
        """Give everybody another chance in a new epoch."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.excluded.clear()

    def exclude(self, node: NodeId, why: str) -> None:
        if node not in self.excluded:
            self.excluded[node] = why
            log.warning("node %s is not asked again in this epoch: %s", build_key_text(node)[:8], why)

    def willing(self, nodes: Iterable[NodeId]) -> list[NodeId]:
        return [node for node in nodes if node not in self.excluded]

    async def ask(
        self, node: NodeId, header: Mapping[str, cbor.Value], *, size_max: int, payload: bytes = b""
    ) -> tuple[Incoming, bytes]:
        """Ask once; raises `REQUEST_FAULTS`. Who breaks the protocol is excluded."""
        try:
            with trio.fail_after(ANSWER_S + size_max / FLOOR_BYTES_PER_S):
                return await self.members.request(node, header, size_max=size_max, payload=payload)
        except trio.TooSlowError as late:
            fault = TooSlow("no answer in time")
            self.members.blame(node, fault)
            raise fault from late
        except Rejected as fault:
            self.exclude(node, str(fault))
            raise
        except (NetworkError, Refused) as fault:
            self.members.blame(node, fault)
            raise

    async def ask_items(
        self,
        node: NodeId,
        header: Mapping[str, cbor.Value],
        names: Sequence[bytes],
        *,
        size_max: int,
        each: int = 1,
    ) -> tuple[list[list[memoryview]], int]:
        """Ask about 1 to 256 roots or blobs; return (`each` items for as many as were answered, bytes received).

        Raises as `ask`: a reply of another shape is a fault too.
        """
        assert 1 <= len(names) <= ITEMS_MAX
        message, payload = await self.ask(node, header, size_max=size_max, payload=b"".join(names))
        try:
            count = message.integer("count", high=len(names))
            items = list(split_items(payload))
            if not count or len(items) != count * each:
                raise Rejected(Reason.MALFORMED, f"{len(items)} items for {count} names")
        except Rejected as fault:
            self.exclude(node, str(fault))
            raise
        return [items[at : at + each] for at in range(0, len(items), each)], len(payload)

    # --- headers and metadata ------------------------------------------------------------------------------------

    def _in_any_order(self, nodes: Iterable[NodeId]) -> list[NodeId]:
        """Return those that are not excluded: who failed lately comes last."""
        found = self.willing(nodes)
        self.rng.shuffle(found)
        return sorted(found, key=lambda node: self.members.fault(node) is not None)

    async def headers(self, nodes: Iterable[NodeId], wanted: Sequence[BlobId]) -> dict[BlobId, Header]:
        """Return the headers that any of these nodes has, of blobs that are live."""
        found: dict[BlobId, Header] = {}
        for node in self._in_any_order(nodes):
            left = [blob_id for blob_id in wanted if blob_id not in found]
            patience = Patience()
            while left:
                try:
                    answered = await self._headers_of(node, left[:ITEMS_MAX], found, patience)
                except REQUEST_FAULTS as fault:
                    self.members.blame(node, fault)
                    break
                left = left[answered:]
        return found

    async def _headers_of(
        self, node: NodeId, wanted: Sequence[BlobId], found: dict[BlobId, Header], patience: Patience
    ) -> int:
        begin, known = trio.current_time(), len(found)
        size_max = HEADERS_BYTES_MAX + HEADER_BYTES_MAX + ITEMS_MAX * LENGTH_BYTES
        items, size = await self.ask_items(node, {"op": "headers"}, wanted, size_max=size_max)
        self.traffic.metadata_bytes += size

        def decode() -> None:
            for blob_id, (item,) in zip(wanted, items, strict=False):
                if item:
                    found[blob_id] = Header.decode(bytes(item), code=self.code, blob_id=blob_id)

        try:
            await trio.to_thread.run_sync(decode)
        except Rejected as fault:
            self.exclude(node, f"the header of {build_blob_id_text(wanted[0])[:8]} or of one after it: {fault}")
            raise
        earned_s = HEADER_S * (len(found) - known) + size / FLOOR_BYTES_PER_S
        patience.spend(trio.current_time() - begin, earned_s=earned_s)
        return len(items)

    async def metadata(self, nodes: Iterable[NodeId], root: Root) -> SegmentMetadata:
        """Return a segment's metadata from whoever has it; raises `Rejected(NOT_FOUND)` where nobody does."""
        for node in self._in_any_order(nodes):
            try:
                size_max = 2 * self.code.n * DIGEST_BYTES
                _, payload = await self.ask(node, {"op": "metadata", "root": root}, size_max=size_max)
            except REQUEST_FAULTS:
                continue
            self.traffic.metadata_bytes += len(payload)
            try:
                return SegmentMetadata.decode(payload, n=self.code.n, root=root)
            except Rejected as fault:
                self.exclude(node, str(fault))
        raise Rejected(Reason.NOT_FOUND, "nobody has the metadata of a segment")

    async def leaves(self, node: NodeId, root: Root, kind: Kind, index: int) -> bytes:
        """Return the leaves of a sliver that a helper has; nothing if it will not show them."""
        request: dict[str, cbor.Value] = {
            "count": 0,
            "first": 0,
            "index": index,
            "kind": int(kind),
            "op": "sliver",
            "root": root,
        }
        try:
            _, payload = await self.ask(node, request, size_max=self.code.n * DIGEST_BYTES)
        except REQUEST_FAULTS:
            return b""
        self.traffic.metadata_bytes += len(payload)
        return payload


def split_items(payload: bytes) -> Iterator[memoryview]:
    """Yield the parts that each come behind their length; raises `Rejected` if they do not fill the payload."""
    view, at = memoryview(payload), 0
    while at < len(view):
        end = at + LENGTH_BYTES + int.from_bytes(view[at : at + LENGTH_BYTES], "big")
        if end > len(view) or at + LENGTH_BYTES > len(view):
            raise Rejected(Reason.MALFORMED, "an item is cut off")
        yield view[at + LENGTH_BYTES : end]
        at = end
