"""What the routes that store share: the wallet, the places for uploads, and the one way from bytes to an answer.

The answer has the shape of Walrus' publisher. What this ledger has not is named in `openapi`: it knows no objects, so
`id` is the key of the ledger's entry for this blob under this storage, and `storage.id` is that storage's reservation.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import trio

from economics.arguments import Attributes
from economics.blob import build_blob_id_text
from economics.crypto import OwnerId
from economics.geometry import STORAGE_UNIT_BYTES
from economics.slots import blob_key, entry_slot, state_key
from economics.state import BlobEntry, BlobSummary
from p2pnode.clients.payments import Order, Quote
from p2pnode.clients.publish import Published, Publisher
from p2pnode.clients.till import Till
from p2pnode.content.sources import Source
from p2pnode.errors import NodeError
from p2pnode.gateway.faults import RETRY_AFTER_S, HttpFault
from p2pnode.gateway.orders import ENCODING, Wanted
from p2pnode.gateway.services import Services
from p2pnode.gateway.spool import Spool
from p2pnode.keys import Key

ENCODING_BYTES_MAX = 16 << 20
"""Of segments that uploads encode at once: each takes some 15 times as much memory, and there are few cores."""
PROOF_S = 6.0
"""For the chain to show what a block just did: half a second, or the timeouts of a few leaders."""
PROOF_PAUSE_S = 0.1


class Desk:
    """Where what is to be stored is handed in. One for a gateway."""

    def __init__(self, services: Services, spool: Spool) -> None:
        self.services = services
        self.spool = spool
        self.till = Till()
        self.uploads = 0
        self._room_bytes = ENCODING_BYTES_MAX
        self._room_freed = trio.Condition()

    @property
    def owner(self) -> Key:
        """Return the wallet that pays; raises `HttpFault(403)` where there is none."""
        if self.services.owner is None:
            raise HttpFault(
                403,
                "this gateway only reads: it has no wallet to pay from; its operator starts it in a home that has one",
                "NO_WALLET",
            )
        return self.services.owner

    @property
    def owner_id(self) -> OwnerId:
        return OwnerId(self.owner.public)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places for uploads; raises `HttpFault(429)` where all are taken."""
        if self.uploads >= self.services.limits.uploads_max:
            raise HttpFault(
                429,
                f"{self.uploads} uploads are under way, and this gateway takes no more at once: try again later",
                "BUSY",
                {"Retry-After": str(RETRY_AFTER_S)},
            )
        self.uploads += 1
        try:
            yield
        finally:
            self.uploads -= 1

    async def store(self, source: Source, wanted: Wanted, *, content_type: str | None) -> dict[str, Any]:
        """Store a source and return the answer's JSON. Raises what `Publisher.publish` does."""
        chain = self.services.session.chain
        epoch = (await chain.head()).epoch
        quotes: list[Quote] = []
        order = Order(epochs=wanted.epochs, deletable=wanted.deletable, on_quote=quotes.append, till=self.till)
        async with self._room(source.length):
            done = await Publisher(self.services.session, self.owner, order).publish(source)
        entry, summary = await self._find(done)
        kept, notice = await self._describe_type(done, entry, content_type)
        self.services.note_stored(done.blob_id, kept)
        answer = Answer(
            done, wanted, quotes, epoch=epoch, certified_epoch=summary.certified_epoch if summary else epoch
        )
        return answer.build(self.services.session.genesis.code.encoded_bytes(done.length), kept, notice)

    @asynccontextmanager
    async def _room(self, length: int) -> AsyncIterator[None]:
        """Wait for memory to encode a blob in, and hold it while the block lasts."""
        size = min(length, self.services.session.genesis.code.segment_bytes, ENCODING_BYTES_MAX)
        async with self._room_freed:
            while self._room_bytes < size:
                await self._room_freed.wait()
            self._room_bytes -= size
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                async with self._room_freed:
                    self._room_bytes += size
                    self._room_freed.notify_all()

    async def _find(self, done: Published) -> tuple[BlobEntry | None, BlobSummary | None]:
        """Return the owner's entry and the blob once the chain shows them: who reads it next is to find it there."""
        keys = [state_key(entry_slot(done.blob_id, done.reservation)), blob_key(done.blob_id)]
        with trio.move_on_after(PROOF_S):
            while True:
                entry, summary = await self.services.session.chain.values(keys)
                if entry is not None and summary is not None:
                    found = BlobEntry.decode(entry)
                    if found.end_epoch >= done.end_epoch:  # an extension may not show yet
                        return found, BlobSummary.decode(summary)
                await trio.sleep(PROOF_PAUSE_S)
        return None, None

    async def _describe_type(
        self, done: Published, entry: BlobEntry | None, content_type: str | None
    ) -> tuple[str | None, str | None]:
        """Put a content type on chain unless it is there; return what is there now, and what went wrong.

        The blob is stored and paid for by now: that its type cannot be is no failure of the request.
        """
        there = None if entry is None else entry.content_type
        if content_type is None or content_type == there:
            return there or None, None
        name = "" if entry is None else entry.name
        try:
            await self.services.session.chain.transact(
                self.owner, Attributes(done.blob_id, done.reservation, content_type, name)
            )
        except NodeError as fault:
            return there or None, f"the blob is stored, its content type is not: {fault}"
        return content_type, None


def build_entry_id(done_blob: bytes, reservation: bytes) -> str:
    """Return how an answer names an entry of the ledger: 0x and the key under which the state has it."""
    return "0x" + state_key(entry_slot(done_blob, reservation)).hex()  # type: ignore[arg-type]


class Answer:
    """What storing ended with, in the words of Walrus' publisher."""

    def __init__(
        self, done: Published, wanted: Wanted, quotes: list[Quote], *, epoch: int, certified_epoch: int
    ) -> None:
        self.done = done
        self.wanted = wanted
        self.quote = quotes[-1] if quotes else Quote(0, 0, 0)
        self.epoch = epoch
        self.certified_epoch = certified_epoch

    def build(self, encoded_bytes: int, content_type: str | None, notice: str | None) -> dict[str, Any]:
        extra = {} if notice is None else {"notice": notice}
        is_old = self.done.upload is None and not self.done.transactions
        if is_old:
            return {"alreadyCertified": {**self._certified(), "contentType": content_type, **extra}}
        return {
            "newlyCreated": {
                "blobObject": {**self._blob_object(), "contentType": content_type},
                "cost": self.quote.storage_frost + self.quote.write_frost,
                "resourceOperation": self._operation(encoded_bytes),
                **extra,
            }
        }

    @property
    def _id(self) -> str:
        return build_entry_id(self.done.blob_id, self.done.reservation)

    def _certified(self) -> dict[str, Any]:
        return {
            "blobId": build_blob_id_text(self.done.blob_id),
            "endEpoch": self.done.end_epoch,
            "event": {"eventSeq": "0", "txDigest": self._id},
            "object": self._id,
        }

    def _blob_object(self) -> dict[str, Any]:
        return {
            "blobId": build_blob_id_text(self.done.blob_id),
            "certifiedEpoch": self.certified_epoch,
            "deletable": self.wanted.deletable,
            "encodingType": ENCODING,
            "id": self._id,
            "registeredEpoch": self.epoch,
            "size": self.done.length,
            "storage": {
                "endEpoch": self.done.end_epoch,
                "id": "0x" + self.done.reservation.hex(),
                "startEpoch": self.epoch,
                "storageSize": self.done.units * STORAGE_UNIT_BYTES,
            },
        }

    def _operation(self, encoded_bytes: int) -> dict[str, Any]:
        length = {"encodedLength": encoded_bytes}
        if self.done.extended_epochs:
            return {"reuseAndExtend": {**length, "epochsExtended": self.done.extended_epochs}}
        if not self.quote.storage_frost:
            return {"reuseStorage": length}
        return {"registerFromScratch": {**length, "epochsAhead": self.wanted.epochs}}
