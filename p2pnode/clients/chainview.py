"""What a client sees of the chain: the interface that payments and commands are written against. Asks nobody itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from economics.arguments import Operation
from economics.blob import BlobId
from economics.block import BlockHeader
from economics.committee import Committee
from economics.crypto import Digest, OwnerId
from economics.genesis import Genesis
from economics.nodes import Stake, Terms
from economics.state import Account, BlobEntry, BlobSummary, Reservation
from economics.transactions import SignedTransaction
from economics.tree import StateKey
from p2pnode.keys import Key

Make = Callable[[int], Operation]
"""Returns the operation for a transaction of this nonce: what a node signs to be owned names it."""

KEYS_AT_ONCE = 64
"""Values that a member proves in one reply."""


@dataclass(frozen=True, slots=True)
class Head:
    """A final block, proven."""

    epoch: int
    height: int
    hash: Digest
    time_ms: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a transaction, as a member tells."""

    hash: Digest
    """Of the transaction: the ID of a reservation that it made comes from it."""
    height: int
    index: int
    code: str
    fee_frost: int


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """A transaction in a final block, as a member tells."""

    height: int
    index: int
    code: str
    fee_frost: int
    signed: SignedTransaction


@dataclass(frozen=True, slots=True)
class Seating:
    """Who holds what now, and on which terms, proven."""

    current: Committee
    """The committee of the current epoch, its members with their addresses."""
    source: Committee | None
    """Who holds what was certified before `since_epoch`; None once the current members have taken it over."""
    since_epoch: int
    """Since when exactly these members hold exactly these shards."""
    terms: Terms
    older: tuple[tuple[int, Committee], ...] = ()
    """(epoch, who holds what was certified before it), the oldest first, of handovers that were not done before the
    one from the source began."""

    @property
    def is_handed_over(self) -> bool:
        return self.source is None

    @property
    def committees(self) -> tuple[Committee, ...]:
        return (*(holders for _, holders in self._stages), self.current)

    def readers(self, certified_epoch: int) -> tuple[Committee, ...]:
        """Return whom to ask for a blob that was certified in this epoch, one committee after the other."""
        return (*(holders for since, holders in self._stages if certified_epoch < since), self.current)

    @property
    def _stages(self) -> tuple[tuple[int, Committee], ...]:
        return (*self.older, *(() if self.source is None else ((self.since_epoch, self.source),)))


class Chain(Protocol):
    """The chain of one network. What all return but `history`, `transaction` and outcomes is proven."""

    @property
    def genesis(self) -> Genesis: ...

    async def head(self) -> Head: ...

    async def account(self, owner: OwnerId) -> Account: ...

    async def blob(self, blob_id: BlobId) -> BlobSummary | None: ...

    async def entries(self, owner: OwnerId) -> list[BlobEntry]: ...

    async def reservations(self, owner: OwnerId) -> list[Reservation]: ...

    async def stakes(self, owner: OwnerId) -> list[Stake]: ...

    async def values(self, keys: Sequence[StateKey]) -> tuple[bytes | None, ...]:
        """Return the values of up to `KEYS_AT_ONCE` keys of one state; None where it has none."""
        ...

    async def seats(self, *, fresh: bool = False) -> Seating:
        """Return who holds what. Unless it is to be `fresh`, what is known may serve for as long as it must be true by
        this client's clock."""
        ...

    async def transact(self, key: Key, operation: Operation | Make, *, deadline_s: float = 30.0) -> Outcome:
        """Have a transaction executed; raises `TransactionFailed`, or `TooSlow` where nothing is known of it."""
        ...

    async def history(self, owner: OwnerId, *, limit: int) -> list[HistoryRow]: ...

    async def transaction(self, tx_hash: Digest) -> HistoryRow | None: ...

    async def blocks(self, *, limit: int) -> list[BlockHeader]:
        """Return the newest headers, newest first."""
        ...
