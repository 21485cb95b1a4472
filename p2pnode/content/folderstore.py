"""Stores a folder the whole way: new blobs, a longer life for those that the network has, and then the manifest.

Interrupted, the same call goes on: the same files make the same blobs, and what is stored costs nothing again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from economics.blob import BlobId
from economics.crypto import DIGEST_BYTES, OwnerId
from economics.errors import Rejected
from economics.state import BlobEntry, BlobSummary
from p2pnode.clients.chainview import Chain
from p2pnode.clients.payments import (
    SETTLE_S,
    Kept,
    Order,
    Quote,
    find_blobs,
    keep_live,
    quote,
    quote_extension,
    verify_cost,
    verify_funds,
)
from p2pnode.clients.plain import choose
from p2pnode.clients.publish import Published, Publisher
from p2pnode.clients.upload import Progress
from p2pnode.content.folders import Plan, plan
from p2pnode.content.keyring import Sealer
from p2pnode.content.manifest import Manifest
from p2pnode.content.scan import Skipped, scan
from p2pnode.content.sources import BytesSource, Source, compute_blob_id
from p2pnode.errors import InputError, Unpaid

BLOBS_AT_ONCE = 2
"""One is encoded while the other waits for its block; each has an encoder's three buffers."""


@dataclass(frozen=True, slots=True)
class FolderProgress:
    """How far storing a folder is, once it is known what of it is new."""

    blobs: int
    """To store, the manifest not counted."""
    blobs_done: int
    length: int
    """Of these blobs."""
    stored: int
    """Bytes that a quorum has on disk."""


@dataclass(frozen=True, slots=True)
class StoredFolder:
    """What storing a folder ended with."""

    blob_id: BlobId
    """The manifest's: names the folder."""
    key: bytes
    """Opens it: none if it is not sealed. Whoever is to read it again remembers it in a keyring."""
    manifest: Manifest
    published: tuple[Published, ...]
    """The new blobs, then the manifest."""
    kept: tuple[Kept, ...]
    """How blobs of the manifest before go on being kept."""
    skipped: tuple[Skipped, ...]

    @property
    def end_epoch(self) -> int:
        """The first epoch in which the owner's claim on any part has ended."""
        return min([*(one.end_epoch for one in self.published), *(one.end_epoch for one in self.kept)])

    @property
    def paid_frost(self) -> int:
        return sum(one.paid_frost for one in self.published) + sum(one.cost_frost for one in self.kept)

    @property
    def transactions(self) -> int:
        return sum(one.transactions for one in self.published) + sum(one.transactions for one in self.kept)

    @property
    def sent_bytes(self) -> int:
        """Sliver bytes, over all members."""
        return sum(one.upload[0].sent_bytes for one in self.published if one.upload is not None)


async def store_folder(
    publisher: Publisher,
    directory: Path,
    *,
    previous: Manifest | None,
    sealer: Sealer | None,
    report: Callable[[FolderProgress], None] = lambda progress: None,
) -> StoredFolder:
    """Store a folder, moving only what is not in blobs of `previous` that the network owes still.

    The owner hears one price, the most that all of it costs. Raises `Unpaid` before anything is paid, `InputError` for
    files that change meanwhile, and what `Publisher.publish` does.
    """
    scanned = await trio.to_thread.run_sync(scan, directory)
    known = [] if previous is None else [blob.blob_id for blob in previous.blobs]
    live = await find_live(publisher.chain, known)
    lost = {blob_id for blob_id in known if blob_id not in live}
    made = await trio.to_thread.run_sync(lambda: plan(scanned, previous, sealer=sealer, lost=lost))
    storing = _Storing(publisher, made, sealer, report)
    reused = [live[blob.blob_id] for blob in made.reused]
    await storing.agree(reused)
    kept = await storing.keep(reused)
    published = await storing.publish_new()
    manifest = made.build([one.blob_id for one in published])
    source, key = await trio.to_thread.run_sync(build_manifest_source, manifest, sealer)
    last = await storing.publish(source)
    return StoredFolder(last.blob_id, key, manifest, (*published, last), kept, made.skipped)


async def find_live(chain: Chain, blob_ids: Sequence[BlobId]) -> dict[BlobId, BlobSummary]:
    """Return what the chain says of those blobs that the network owes, waiting a moment for one certified just now."""
    live = await find_blobs(chain, blob_ids)
    with trio.move_on_after(SETTLE_S):
        while missing := [blob_id for blob_id in blob_ids if blob_id not in live]:
            await trio.sleep(SETTLE_S / 8)
            live |= await find_blobs(chain, missing)
    return live


def build_manifest_source(manifest: Manifest, sealer: Sealer | None) -> tuple[Source, bytes]:
    """Return a manifest's bytes, sealed if there is a sealer, and the key that opens them.

    Raises `InputError` for a folder of more files than one manifest holds: some 700,000 of them.
    """
    try:
        plain = BytesSource(manifest.encode(), "the folder's list of files")
    except Rejected as fault:
        raise InputError(f"this folder cannot be stored as one: {fault.detail}") from fault
    if sealer is None:
        return plain, b""
    sealed = sealer.seal(plain)
    return sealed, sealed.key


class _Storing:
    """One folder that is being paid for and stored."""

    def __init__(
        self, publisher: Publisher, made: Plan, sealer: Sealer | None, report: Callable[[FolderProgress], None]
    ) -> None:
        self._publisher = publisher
        self._chain: Chain = publisher.chain
        self._owner = OwnerId(publisher.key.public)
        self._made = made
        self._sealer = sealer
        self._report = report
        self._paid_frost = 0
        self._stored = [0] * len(made.new)
        self._done: dict[int, Published] = {}

    def _order(self) -> Order:
        """Return the order of one blob: all have been agreed to, and none may cost more than is left of that."""
        order = self._publisher.order
        left = None if order.max_cost_frost is None else order.max_cost_frost - self._paid_frost
        return replace(order, max_cost_frost=left, on_quote=lambda quoted: None)

    # --- the price ---------------------------------------------------------------------------------------------------

    async def agree(self, reused: Sequence[BlobSummary]) -> None:
        """Say what all of it costs at most, and raise `Unpaid` if that is too much.

        What an interrupted call has stored already is found only where it matters: it takes encoding everything.
        """
        order = self._publisher.order
        manifest_length = await trio.to_thread.run_sync(self._manifest_length)
        lengths = [blob.source.length for blob in self._made.new]
        quoted = await self._quote(reused, [*lengths, manifest_length])
        try:
            await self._verify(quoted)
        except Unpaid:
            ids = await trio.to_thread.run_sync(self._compute_ids)
            stored = await find_blobs(self._chain, ids)
            left = [length for blob_id, length in zip(ids, lengths, strict=True) if blob_id not in stored]
            quoted = await self._quote([*reused, *stored.values()], [*left, manifest_length])
        order.on_quote(quoted)
        await self._verify(quoted)

    async def _verify(self, quoted: Quote) -> None:
        verify_cost(quoted, max_cost_frost=self._publisher.order.max_cost_frost)
        await verify_funds(self._chain, self._owner, quoted.total_frost)

    def _compute_ids(self) -> list[BlobId]:
        return [compute_blob_id(source, self._chain.genesis.code) for source in self._made.sources]

    def _manifest_length(self) -> int:
        """Return how long the manifest will be: IDs are of one length, whatever they are."""
        ids = [BlobId(number.to_bytes(DIGEST_BYTES, "big")) for number in range(len(self._made.new))]
        return build_manifest_source(self._made.build(ids), self._sealer)[0].length

    async def _quote(self, live: Sequence[BlobSummary], lengths: Sequence[int]) -> Quote:
        """Return what it costs to keep blobs that are live, and to store others of these lengths."""
        genesis, epochs = self._chain.genesis, self._publisher.order.epochs
        seating, own = await self._chain.seats(), await self._own_entries()
        end = (await self._chain.head()).epoch + epochs
        quotes = []
        for blob in live:
            entry = own.get(blob.blob_id)
            if entry is None:
                units = genesis.code.encoded_units(blob.length)
                quotes.append(quote(genesis, seating, units=units, epochs=epochs))
            elif entry.end_epoch < end:
                quotes.append(quote_extension(genesis, seating.terms, entry, end - entry.end_epoch))
        for length in lengths:
            quotes.append(quote(genesis, seating, units=genesis.code.encoded_units(length), epochs=epochs))
        return Quote(
            sum(one.storage_frost for one in quotes),
            sum(one.write_frost for one in quotes),
            sum(one.fees_frost for one in quotes),
        )

    async def _own_entries(self) -> dict[BlobId, BlobEntry]:
        """Return the owner's entry of each blob that lasts longest."""
        found: dict[BlobId, BlobEntry] = {}
        for entry in await self._chain.entries(self._owner):
            if entry.deletable == self._publisher.order.deletable:
                last = found.get(entry.blob_id)
                if last is None or (entry.end_epoch, entry.reservation) > (last.end_epoch, last.reservation):
                    found[entry.blob_id] = entry
        return found

    # --- the work ----------------------------------------------------------------------------------------------------

    async def keep(self, reused: Sequence[BlobSummary]) -> tuple[Kept, ...]:
        """Have live blobs kept as long as is ordered."""
        own = await self._own_entries()
        end = (await self._chain.head()).epoch + self._publisher.order.epochs
        kept = []
        for blob in reused:
            entry = own.get(blob.blob_id)
            if entry is not None and entry.end_epoch >= end:
                kept.append(Kept(entry.end_epoch, 0, 0, entry.reservation))
                continue
            async with self._publisher.order.till.blob(blob.blob_id):
                kept.append(await keep_live(self._chain, self._publisher.key, blob, order=self._order()))
            self._paid_frost += kept[-1].cost_frost
        return tuple(kept)

    async def publish_new(self) -> list[Published]:
        """Store the new blobs, a few at once, in their order; the first that fails ends it."""
        waiting = iter(range(len(self._made.new)))

        async def publish_next() -> None:
            for number in waiting:
                await self._publish_new(number)

        try:
            async with trio.open_nursery() as nursery:
                for _ in range(BLOBS_AT_ONCE):
                    nursery.start_soon(publish_next)
        except BaseExceptionGroup as group:
            raise choose(group) from None
        return [self._done[number] for number in range(len(self._made.new))]

    async def _publish_new(self, number: int) -> None:
        source = self._made.new[number].source
        segment_bytes = self._chain.genesis.code.segment_bytes

        def report(now: Progress) -> None:
            self._stored[number] = min(source.length, now.stored * segment_bytes)
            self._tell()

        self._done[number] = await self.publish(source, report)
        self._stored[number] = source.length
        self._tell()

    async def publish(self, source: Source, report: Callable[[Progress], None] = lambda now: None) -> Published:
        """Store one blob."""
        published = await replace(self._publisher, order=self._order(), report=report).publish(source)
        self._paid_frost += published.paid_frost
        return published

    def _tell(self) -> None:
        length = sum(blob.source.length for blob in self._made.new)
        self._report(FolderProgress(len(self._made.new), len(self._done), length, sum(self._stored)))
