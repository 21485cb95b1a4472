"""The state while a block changes it: decoded values over a tree, an undo list, and indexes that follow every change.

Nothing here is a rule of the ledger. The tree changes once a block, at `flush`; until then it is the state before it.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

from economics.blob import BlobId
from economics.commitments import ReservationId
from economics.committee import Committee
from economics.crypto import NodeId, OwnerId
from economics.errors import Reason, Rejected
from economics.nodes import Handover, NodeEntry, Offence, Seats, Stake, Standing, Terms
from economics.slots import (
    HANDOVER_SLOT,
    STANDING_SLOT,
    SYSTEM_SLOT,
    Slot,
    StakeId,
    account_slot,
    blob_slot,
    bucket_slot,
    entry_slot,
    node_slot,
    reservation_slot,
    seats_slot,
    stake_slot,
    state_key,
    terms_slot,
)
from economics.state import (
    Account,
    BlobEntry,
    BlobSummary,
    Bucket,
    Invalid,
    Reservation,
    System,
    UsedStatement,
    Value,
    decode_value,
)
from economics.tree import StateKey, Tree

_Key = TypeVar("_Key", int, OwnerId, NodeId)

CACHE_MAX = 1 << 17
"""Decoded values kept at most: 50 MB. A fork begins without any, and reading one from the tree costs 10 us."""
SPREAD = 256
"""Parts of an index: a copy duplicates only those that it changes, 4 us each where 100,000 slots have as many keys."""

_INDEXED = frozenset(
    kind.KIND
    for kind in (Reservation, BlobSummary, BlobEntry, UsedStatement, Bucket, NodeEntry, Offence, Seats, Stake, Invalid)
)


class Index(Generic[_Key]):
    """Slots by key. A copy shares every part and set with its original until one of the two changes it."""

    def __init__(self, parts: list[dict[_Key, set[Slot]]] | None = None) -> None:
        self._parts: list[dict[_Key, set[Slot]]] = parts or [{} for _ in range(SPREAD)]
        """By the last byte of a slot: no set in them is empty."""
        self._own_parts: set[int] = set()
        self._own_sets: set[tuple[int, _Key]] = set()
        """Parts and sets that no copy shares."""

    def __iter__(self) -> Iterator[_Key]:
        """Yield each key once, in no order that two nodes would agree on: sort them."""
        return iter(set().union(*self._parts))

    def get(self, key: _Key) -> Iterator[Slot]:
        """Yield the slots of a key, in no order that two nodes would agree on: sort them."""
        for part in self._parts:
            yield from part.get(key, ())

    def add(self, key: _Key, slot: Slot) -> None:
        self._owned(key, slot[-1]).setdefault(key, set()).add(slot)

    def remove(self, key: _Key, slot: Slot) -> None:
        part = self._owned(key, slot[-1])
        part[key].remove(slot)
        if not part[key]:
            del part[key]

    def _owned(self, key: _Key, place: int) -> dict[_Key, set[Slot]]:
        """Return a part that may be changed, as may its set of this key."""
        if place not in self._own_parts:
            self._parts[place] = dict(self._parts[place])
            self._own_parts.add(place)
        part = self._parts[place]
        if (place, key) not in self._own_sets:
            self._own_sets.add((place, key))
            if key in part:
                part[key] = set(part[key])
        return part

    def copy(self) -> "Index[_Key]":
        self._own_parts.clear()
        self._own_sets.clear()
        return Index(list(self._parts))


ALL = 0
"""The one key of an index of everything."""


class Indexes:
    """What ends when, and who owns what: derived from the values, so never part of the state."""

    def __init__(self) -> None:
        self.ending = Index[int]()
        """Reservations and entries by end epoch."""
        self.expiring = Index[int]()
        """Used statements by expiry height."""
        self.owned = Index[OwnerId]()
        """Reservations, entries and stakes by owner."""
        self.turning = Index[int]()
        """Stakes by the epoch in which they turn."""
        self.staked = Index[NodeId]()
        """Stakes by node."""
        self.aging = Index[int]()
        """Seats and offences by their epoch."""
        self.blobs = Index[int]()
        self.nodes = Index[int]()
        self.invalid = Index[int]()
        self.buckets = Index[int]()
        """By epoch."""

    def add(self, slot: Slot, value: Value) -> None:
        for index, key in self._places(value):
            index.add(key, slot)

    def remove(self, slot: Slot, value: Value) -> None:
        for index, key in self._places(value):
            index.remove(key, slot)

    def _places(self, value: Value) -> tuple[tuple[Index[Any], Any], ...]:
        """Return the indexes that a value is in, each with its key there."""
        match value:
            case Reservation() | BlobEntry():
                return (self.ending, value.end_epoch), (self.owned, value.owner)
            case UsedStatement():
                return ((self.expiring, value.expiry_height),)
            case Stake():
                return (self.owned, value.owner), (self.staked, value.node), (self.turning, value.turn_epoch)
            case Seats():
                return ((self.aging, value.committee.epoch),)
            case Offence():
                return ((self.aging, value.epoch),)
            case BlobSummary():
                return ((self.blobs, ALL),)
            case NodeEntry():
                return ((self.nodes, ALL),)
            case Invalid():
                return ((self.invalid, ALL),)
            case Bucket():
                return ((self.buckets, value.epoch),)
            case _:
                return ()

    def copy(self) -> "Indexes":
        """Return indexes that change apart from these: 15 us, however much is in them."""
        copied = Indexes.__new__(Indexes)
        for name, index in vars(self).items():
            setattr(copied, name, index.copy())
        return copied


class WorkingState:
    """Values by slot. A value that is written twice counts once; a value written back as it was does not count."""

    def __init__(self, tree: Tree, indexes: Indexes) -> None:
        self.tree = tree
        self.indexes = indexes
        self._cache: dict[Slot, Value | None] = {}
        self._before: dict[Slot, Value | None] = {}
        """What each changed slot held before the block."""
        self._undo: list[tuple[Slot, Value | None]] = []

    @classmethod
    def load(cls, values: Iterable[bytes]) -> "WorkingState":
        """Return the state of these values; raises `Rejected` for bytes that are none, or a slot given twice."""
        changes: dict[StateKey, bytes | None] = {}
        indexes = Indexes()
        for data in values:
            value = decode_value(data)
            key = state_key(value.slot)
            if key in changes:
                raise Rejected(Reason.MALFORMED, "a value of the state is given twice")
            changes[key] = data
            indexes.add(value.slot, value)
        return cls(Tree.empty().update(changes), indexes)

    def fork(self) -> "WorkingState":
        assert not self._before, "a block is half applied"
        return WorkingState(self.tree, self.indexes.copy())

    def get(self, slot: Slot) -> Value | None:
        try:
            return self._cache[slot]
        except KeyError:
            data = self.tree.get(state_key(slot))
            value = None if data is None else decode_value(data)
            if len(self._cache) < CACHE_MAX:
                self._cache[slot] = value
            return value

    def put(self, slot: Slot, value: Value | None) -> None:
        """Set a slot, or empty it."""
        old = self.get(slot)
        self._before.setdefault(slot, old)
        self._undo.append((slot, old))
        self._replace(slot, old, value)

    def write(self, value: Value) -> None:
        self.put(value.slot, value)

    def _replace(self, slot: Slot, old: Value | None, new: Value | None) -> None:
        self._cache[slot] = new
        if slot[0] in _INDEXED:
            if old is not None:
                self.indexes.remove(slot, old)
            if new is not None:
                self.indexes.add(slot, new)

    def mark(self) -> None:
        """Let `undo` come back to here."""
        self._undo.clear()

    def undo(self) -> None:
        """Take back every change since the mark."""
        for slot, old in reversed(self._undo):
            self._replace(slot, self._cache[slot], old)
        self._undo.clear()

    def flush(self) -> dict[StateKey, bytes | None]:
        """Bring what changed into the tree, and return it."""
        changes: dict[StateKey, bytes | None] = {}
        for slot, before in self._before.items():
            value = self._cache[slot]
            if value != before:
                changes[state_key(slot)] = None if value is None else value.encode()
        self.tree = self.tree.update(changes)
        self._before.clear()
        self._undo.clear()
        if len(self._cache) >= CACHE_MAX:
            self._cache.clear()
        return changes

    def account(self, owner: OwnerId) -> Account:
        """Return an account; one that nobody has paid to holds nothing."""
        value = self.get(account_slot(owner))
        assert value is None or isinstance(value, Account)
        return value or Account(owner, 0, 0)

    def reservation(self, reservation: ReservationId) -> Reservation | None:
        value = self.get(reservation_slot(reservation))
        assert value is None or isinstance(value, Reservation)
        return value

    def blob(self, blob_id: BlobId) -> BlobSummary | None:
        value = self.get(blob_slot(blob_id))
        assert value is None or isinstance(value, BlobSummary)
        return value

    def entry(self, blob_id: BlobId, reservation: ReservationId) -> BlobEntry | None:
        value = self.get(entry_slot(blob_id, reservation))
        assert value is None or isinstance(value, BlobEntry)
        return value

    def bucket(self, epoch: int) -> Bucket:
        value = self.get(bucket_slot(epoch))
        assert value is None or isinstance(value, Bucket)
        return value or Bucket(epoch, 0, 0)

    def node(self, node: NodeId) -> NodeEntry | None:
        value = self.get(node_slot(node))
        assert value is None or isinstance(value, NodeEntry)
        return value

    def nodes(self) -> Iterator[NodeEntry]:
        """Yield the registered nodes, ascending."""
        for slot in sorted(self.indexes.nodes.get(ALL)):
            value = self.get(slot)
            assert isinstance(value, NodeEntry)
            yield value

    def seats(self, epoch: int) -> Committee | None:
        """Return an epoch's committee, its members without addresses, if the state has it."""
        value = self.get(seats_slot(epoch))
        assert value is None or isinstance(value, Seats)
        return None if value is None else value.committee

    def terms(self, epoch: int) -> Terms:
        """Return the terms of the current epoch, or of the next one once they are fixed."""
        value = self.get(terms_slot(epoch))
        assert isinstance(value, Terms)
        return value

    def stake(self, stake: StakeId) -> Stake | None:
        value = self.get(stake_slot(stake))
        assert value is None or isinstance(value, Stake)
        return value

    def stake_at(self, slot: Slot) -> Stake:
        """Return the stake of a slot that an index names."""
        value = self.get(slot)
        assert isinstance(value, Stake)
        return value

    def handover(self) -> Handover:
        value = self.get(HANDOVER_SLOT)
        assert isinstance(value, Handover)
        return value

    def standing(self) -> Standing:
        value = self.get(STANDING_SLOT)
        assert isinstance(value, Standing)
        return value

    def system(self) -> System:
        value = self.get(SYSTEM_SLOT)
        assert isinstance(value, System)
        return value
