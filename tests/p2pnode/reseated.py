"""A ledger whose epoch, committees and handover are what a test says; all else is that of a real one."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from economics.blob import BlobId, Header
from economics.committee import Committee, Member
from economics.genesis import Genesis
from economics.ledger import Ledger
from economics.nodes import Handover
from economics.state import BlobSummary


def seat(genesis: Genesis, holders: Sequence[int], *, epoch: int = 0, members: Sequence[Member] = ()) -> Committee:
    """Return a committee in which `holders[s]` is the genesis member (or one of `members`) that holds shard s."""
    pool = tuple(members) or genesis.members
    seated = sorted(set(holders))
    counted = tuple(replace(pool[member], shards=holders.count(member)) for member in seated)
    return Committee(epoch, counted, tuple(seated.index(holder) for holder in holders))


@dataclass
class Reseated:
    """What `reseated` gives; a test may go on changing it."""

    ledger: Ledger
    committees: dict[int, Committee]
    epoch: int = 0
    handover: Handover = field(default_factory=lambda: Handover(0, 0, 0, ()))
    invalid: set[BlobId] = field(default_factory=set)
    blobs: dict[BlobId, BlobSummary] = field(default_factory=dict)

    @property
    def committee(self) -> Committee:
        return self.committees[self.epoch]

    @property
    def next_committee(self) -> Committee | None:
        return self.committees.get(self.epoch + 1)

    def committee_of(self, epoch: int) -> Committee | None:
        return self.committees.get(epoch)

    def sources(self, certified_epoch: int) -> tuple[Committee, ...]:
        return tuple(self.committees[epoch] for epoch in self.handover.sources(certified_epoch))

    def is_invalid(self, blob_id: BlobId) -> bool:
        return blob_id in self.invalid

    def blob(self, blob_id: BlobId) -> BlobSummary | None:
        return self.blobs.get(blob_id)

    def live_blobs(self) -> list[BlobSummary]:
        return [self.blobs[blob_id] for blob_id in sorted(self.blobs) if blob_id not in self.invalid]

    def certify(self, *headers: Header, epoch: int = 0) -> None:
        """Have the network owe these blobs from an epoch on."""
        for header in headers:
            blob_id = header.blob_id
            self.blobs[blob_id] = BlobSummary(blob_id, header.length, 1, epoch, ((epoch + 10, 1),))

    def as_ledger(self) -> Ledger:
        return cast(Ledger, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ledger, name)
