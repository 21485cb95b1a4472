"""What a node owes by a ledger, what of it is not on its disk, and who may have it. Asks nobody; for worker threads."""

from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from math import inf

from economics.blob import BlobId, Root
from economics.committee import Committee
from economics.crypto import NodeId
from economics.ledger import Ledger
from economics.state import BlobSummary
from p2pnode.store import SliverStore

WANTS_MAX = 4_096
"""Found in one survey; when these are done, or cannot be had, the next one begins behind them."""
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
    last: BlobId | None = None
    """The last blob that something of is in `wants`."""


class Surveyor:
    """Looks for what is missing; remembers since when, so that an upload under way is left to its client."""

    def __init__(self, *, node: NodeId, store: SliverStore, delay_s: float) -> None:
        self.node = node
        self.store = store
        self.delay_s = delay_s
        self._noticed: dict[BlobId, float] | None = None
        """When blobs of the current epoch were first found incomplete; None before the first survey."""
        self._last: BlobId | None = None

    def survey(self, ledger: Ledger, *, now: float, proven: Set[BlobId]) -> Survey:
        """Return what is missing, without the blobs that are proven to be encoded wrongly: 1 us a segment and shard."""
        found = Survey()
        current = ledger.committee.shards_of_node(self.node)
        later = ledger.next_committee
        owed = sorted({*current, *(() if later is None else later.shards_of_node(self.node))})
        noticed: dict[BlobId, float] = {}
        wanted: set[tuple[Root, int]] = set()
        for blob in self._in_turn(ledger) if owed else ():
            if blob.blob_id in proven or not self._look_at(blob, found, owed, current, ledger, wanted):
                continue
            if blob.certified_epoch == ledger.epoch:
                noticed[blob.blob_id] = self._notice(blob.blob_id, now)
        if noticed:
            self._hold_back(found, noticed, now)
        self._noticed, self._last = noticed, found.last if len(wanted) >= WANTS_MAX else None
        return found

    def _in_turn(self, ledger: Ledger) -> Iterator[BlobSummary]:
        """Yield the live blobs, from where the last survey stopped."""
        blobs = list(ledger.live_blobs())
        start = 0 if self._last is None else sum(blob.blob_id <= self._last for blob in blobs)
        yield from blobs[start:]
        yield from blobs[:start]

    def _look_at(
        self,
        blob: BlobSummary,
        found: Survey,
        owed: list[int],
        current: tuple[int, ...],
        ledger: Ledger,
        wanted: set[tuple[Root, int]],
    ) -> bool:
        """Add what is missing of a blob; return whether anything is."""
        is_old = blob.certified_epoch < ledger.handover.since_epoch
        record = self.store.record(blob.blob_id)
        if record is None:
            found.headers.append(blob.blob_id)
            found.synced &= not (is_old and current)
            return True
        is_missing = False
        code = self.store.code
        for segment, root in enumerate(record.header.roots):
            is_full = len(wanted) >= WANTS_MAX  # a segment's pairs are recovered together
            for shard in self.store.missing(root, owed):
                is_missing = True
                found.synced &= not (is_old and shard in current)
                if is_full or (root, shard) in wanted:
                    continue
                wanted.add((root, shard))
                found.last = blob.blob_id
                length = code.segment_length(blob.length, segment)
                found.wants.append(Want(root, shard, blob.blob_id, segment, length, blob.certified_epoch))
        return is_missing

    def _notice(self, blob_id: BlobId, now: float) -> float:
        """Return since when a blob is known to be incomplete; what is so at the start has waited long enough."""
        return -inf if self._noticed is None else self._noticed.get(blob_id, now)

    def _hold_back(self, found: Survey, noticed: dict[BlobId, float], now: float) -> None:
        """Leave out what is not due yet: its client may still be sending it."""
        early = {blob_id: at + self.delay_s for blob_id, at in noticed.items() if at + self.delay_s > now}
        found.headers = [blob_id for blob_id in found.headers if blob_id not in early]
        found.wants = [want for want in found.wants if want.blob_id not in early]
        found.next_due = min(early.values(), default=inf)


def past_committees(ledger: Ledger, since: int) -> Iterator[Committee]:
    """Yield the committees whose holders have had what was certified in epoch `since`, newest first."""
    epochs = {*range(max(since, ledger.epoch - ledger.genesis.parameters.unbonding_epochs), ledger.epoch + 1)}
    if ledger.handover.source_epoch >= since:
        epochs.add(ledger.handover.source_epoch)
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
    handover = ledger.handover
    if handover.is_done or since >= handover.since_epoch:
        return found
    source = ledger.committee_of(handover.source_epoch)
    assert source is not None  # the state keeps it
    sure = source.members[source.holder(shard)].node
    return [sure, *(node for node in found if node != sure)]
