"""What a node owes by a ledger, what of it is not on its disk, and who may have it. Asks nobody; for worker threads."""

from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from math import inf

from economics.blob import BlobId, Root
from economics.committee import Committee
from economics.crypto import NodeId
from economics.ledger import Ledger
from economics.state import BlobSummary
from p2pnode.store import SliverKey, SliverStore

WANTS_MAX = 1_024
"""Found in one survey, 4 GiB of full segments at most: the next one begins behind them, and by the newest ledger."""
SOURCES_MAX = 3
"""Former holders of one shard that are asked for its slivers, before these are recovered from symbols."""


@dataclass(frozen=True, slots=True)
class Want:
    """One pair of slivers that this node owes and does not hold."""

    root: Root
    shard: int
    blob_id: BlobId
    segment: int
    length: int
    """Of the segment, in bytes."""
    since: int
    """The epoch in which the blob was certified: whoever held the shard then or later has had the pair."""


@dataclass(slots=True)
class Survey:
    """What one look at the ledger and the disk found."""

    headers: list[BlobId] = field(default_factory=list)
    """Live blobs whose header is not held."""
    wants: list[Want] = field(default_factory=list)
    synced: bool = True
    """Whether all is held that this member owes now of what was certified before its committee's shards moved."""
    next_due: float = inf
    """When the first blob is due whose upload may still be under way."""
    rest: tuple[BlobId, int] | None = None
    """The blob and segment from where on there was no room for more."""


class _Look:
    """One look at the blobs of a ledger."""

    def __init__(self, ledger: Ledger, node: NodeId, store: SliverStore) -> None:
        later = ledger.next_committee
        self.store = store
        self.current = ledger.committee.shards_of_node(node)
        self.owed = sorted({*self.current, *(() if later is None else later.shards_of_node(node))})
        self.since = ledger.handover.since_epoch
        self.found = Survey()
        self._wanted: set[SliverKey] = set()

    def at(self, blob: BlobSummary, first: int) -> bool:
        """Add what is missing of a blob from a segment on; return whether anything of it is."""
        record = self.store.record(blob.blob_id)
        is_old = blob.certified_epoch < self.since
        if record is None:
            self.found.headers.append(blob.blob_id)
            self.found.synced &= not (is_old and self.current)
            return True
        is_missing = False
        for segment, root in enumerate(record.header.roots):
            shards = self.store.missing(root, self.owed)
            if shards:
                is_missing = True
                self.found.synced &= not (is_old and set(shards) & set(self.current))
                if segment >= first:
                    self._want(blob, segment, root, shards)
        return is_missing

    def _want(self, blob: BlobSummary, segment: int, root: Root, shards: list[int]) -> None:
        """Want a segment's pairs, all of them, as they are recovered together, or none where there is no room."""
        if len(self._wanted) >= WANTS_MAX:
            self.found.rest = self.found.rest or (blob.blob_id, segment)
            return
        length = self.store.code.segment_length(blob.length, segment)
        for shard in shards:
            if (root, shard) not in self._wanted:
                self._wanted.add((root, shard))
                self.found.wants.append(Want(root, shard, blob.blob_id, segment, length, blob.certified_epoch))


class Surveyor:
    """Looks for what is missing; remembers since when, so that an upload under way is left to its client."""

    def __init__(self, *, node: NodeId, store: SliverStore, delay_s: float) -> None:
        self.node = node
        self.store = store
        self.delay_s = delay_s
        self._noticed: dict[BlobId, float] | None = None
        """When blobs of the current epoch were first found incomplete; None before the first survey."""
        self._rest: tuple[BlobId, int] | None = None
        """Where the last survey had no more room."""

    def survey(self, ledger: Ledger, *, now: float, proven: Set[BlobId]) -> Survey:
        """Return what is missing, without the blobs that are proven to be encoded wrongly: 1 us a segment and shard."""
        look = _Look(ledger, self.node, self.store)
        noticed: dict[BlobId, float] = {}
        for blob, first in self._in_turn(ledger) if look.owed else ():
            if blob.blob_id in proven or not look.at(blob, first):
                continue
            if blob.certified_epoch == ledger.epoch:
                noticed[blob.blob_id] = self._notice(blob.blob_id, now)
        if noticed:
            self._hold_back(look.found, noticed, now)
        self._noticed, self._rest = noticed, look.found.rest
        return look.found

    def _in_turn(self, ledger: Ledger) -> Iterator[tuple[BlobSummary, int]]:
        """Yield the live blobs, and from which segment on to look; begins where the last survey had no more room."""
        blobs = list(ledger.live_blobs())
        blob_id, first = (BlobId(b""), 0) if self._rest is None else self._rest
        start = sum(blob.blob_id < blob_id for blob in blobs)
        for at, blob in enumerate((*blobs[start:], *blobs[:start])):
            yield blob, 0 if at or blob.blob_id != blob_id else first
        if first and blobs[start:]:
            yield blobs[start], 0

    def _notice(self, blob_id: BlobId, now: float) -> float:
        """Return since when a blob is known to be incomplete; what no upload is under way for has waited long enough.

        That is what is so at the start, and what was complete: it has a record.
        """
        if self._noticed is None:
            return -inf
        return self._noticed.get(blob_id, now if self.store.record(blob_id) is None else -inf)

    def _hold_back(self, found: Survey, noticed: dict[BlobId, float], now: float) -> None:
        """Leave out what is not due yet: its client may still be sending it."""
        early = {blob_id: at + self.delay_s for blob_id, at in noticed.items() if at + self.delay_s > now}
        found.headers = [blob_id for blob_id in found.headers if blob_id not in early]
        found.wants = [want for want in found.wants if want.blob_id not in early]
        found.next_due = min(early.values(), default=inf)


def past_committees(ledger: Ledger, since: int) -> Iterator[Committee]:
    """Yield the committees whose holders have had what was certified in epoch `since`, newest first."""
    handover = ledger.handover
    epochs = {*range(max(since, ledger.epoch - ledger.genesis.parameters.unbonding_epochs), ledger.epoch + 1)}
    epochs |= {epoch for epoch in (handover.source_epoch, *handover.sources(since)) if epoch >= since}
    for epoch in sorted(epochs, reverse=True):
        if (committee := ledger.committee_of(epoch)) is not None:
            yield committee


def holders(ledger: Ledger, shard: int, since: int) -> list[NodeId]:
    """Return who holds or held a shard's slivers of what was certified in epoch `since`, newest first."""
    found = (committee.members[committee.holder(shard)].node for committee in past_committees(ledger, since))
    return list(dict.fromkeys(found))[: SOURCES_MAX + 1]


def helpers(ledger: Ledger, shard: int, since: int) -> list[NodeId]:
    """Return whom to ask for symbols of a shard: while a handover lasts, who is sure to have them before who may."""
    found = holders(ledger, shard, since)
    sure = [source.members[source.holder(shard)].node for source in ledger.sources(since)[:1]]
    return [*sure, *(node for node in found if node not in sure)]
