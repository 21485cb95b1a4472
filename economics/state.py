"""The values of the ledger's state, their bytes and their keys (FORMATS.md 11). Formats only: no rule of the ledger.

A value's *slot* is its kind and id, the bytes that every value begins with; its key in the tree is the slot's hash.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from struct import Struct
from typing import ClassVar, NewType

from economics.blob import BlobId
from economics.commitments import ReservationId
from economics.crypto import DIGEST_BYTES, KEY_BYTES, Digest, Level, NodeId, OwnerId, digest
from economics.errors import Reason, Rejected
from economics.fields import Fields
from economics.tree import StateKey

Slot = NewType("Slot", bytes)
"""Kind and id of a value."""

_ACCOUNT = Struct(">B32sQQ")
_RESERVATION = Struct(">B32s32sQQQ")
_BLOB = Struct(">B32sQQQH")
_ROW = Struct(">QI")
_ENTRY = Struct(">B32s32s32sQQQB")
_STATEMENT = Struct(">B32sQ")
_BUCKET = Struct(">BQQQ")
_NODE = Struct(">B32s32sQQQQB")
_OFFENCE = Struct(">B32sQQQ")
_SYSTEM = Struct(">BQQQQ")


def state_key(slot: Slot) -> StateKey:
    """Return the place of a value in the state tree; 1 us."""
    return StateKey(digest(Level.STATE_KEY, slot))


def account_slot(owner: OwnerId) -> Slot:
    return Slot(b"\x01" + owner)


def reservation_slot(reservation: ReservationId) -> Slot:
    return Slot(b"\x02" + reservation)


def blob_slot(blob_id: BlobId) -> Slot:
    return Slot(b"\x03" + blob_id)


def entry_slot(blob_id: BlobId, reservation: ReservationId) -> Slot:
    return Slot(b"\x04" + blob_id + reservation)


def statement_slot(statement: Digest) -> Slot:
    return Slot(b"\x05" + statement)


def bucket_slot(epoch: int) -> Slot:
    return Slot(b"\x06" + epoch.to_bytes(8, "big"))


def node_slot(node: NodeId) -> Slot:
    return Slot(b"\x07" + node)


def offence_slot(node: NodeId, *, epoch: int, view: int) -> Slot:
    return Slot(b"\x08" + node + epoch.to_bytes(8, "big") + view.to_bytes(8, "big"))


SYSTEM_SLOT = Slot(b"\x09")


def account_key(owner: OwnerId) -> StateKey:
    return state_key(account_slot(owner))


def reservation_key(reservation: ReservationId) -> StateKey:
    return state_key(reservation_slot(reservation))


def blob_key(blob_id: BlobId) -> StateKey:
    return state_key(blob_slot(blob_id))


def entry_key(blob_id: BlobId, reservation: ReservationId) -> StateKey:
    return state_key(entry_slot(blob_id, reservation))


def _unpack(layout: Struct, data: bytes, *, kind: int, what: str) -> tuple[int | bytes, ...]:
    if len(data) != layout.size or data[0] != kind:
        raise Rejected(Reason.MALFORMED, f"{what} has {layout.size} bytes and begins with {kind}")
    return layout.unpack(data)[1:]


def _open_fields(data: bytes, *, kind: int, what: str) -> Fields:
    fields = Fields(data, what)
    if fields.take_int(1) != kind:
        raise Rejected(Reason.MALFORMED, f"{what} begins with {kind}")
    return fields


def encode_texts(texts: tuple[str, ...]) -> bytes:
    """Return texts one after the other, each behind its length in one byte."""
    raw = [text.encode("utf-8") for text in texts]
    return b"".join(len(text).to_bytes(1, "big") + text for text in raw)


@dataclass(frozen=True, slots=True)
class Account:
    """FROST that its key may spend, and how many of its transactions have cost a fee."""

    KIND: ClassVar[int] = 1
    owner: OwnerId
    balance_frost: int
    nonce: int

    @property
    def slot(self) -> Slot:
        return account_slot(self.owner)

    def encode(self) -> bytes:
        return _ACCOUNT.pack(self.KIND, self.owner, self.balance_frost, self.nonce)

    @classmethod
    def decode(cls, data: bytes) -> "Account":
        return cls(*_unpack(_ACCOUNT, data, kind=cls.KIND, what="an account"))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Reservation:
    """Prepaid storage that no blob has taken yet: `units` in each epoch of [start, end)."""

    KIND: ClassVar[int] = 2
    reservation: ReservationId
    owner: OwnerId
    units: int
    start_epoch: int
    end_epoch: int

    @property
    def slot(self) -> Slot:
        return reservation_slot(self.reservation)

    def encode(self) -> bytes:
        return _RESERVATION.pack(self.KIND, self.reservation, self.owner, self.units, self.start_epoch, self.end_epoch)

    @classmethod
    def decode(cls, data: bytes) -> "Reservation":
        return cls(*_unpack(_RESERVATION, data, kind=cls.KIND, what="a reservation"))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class BlobSummary:
    """A live blob: since when the network owes it, and how many entries end in which epoch."""

    KIND: ClassVar[int] = 3
    blob_id: BlobId
    length: int
    certified_height: int
    certified_epoch: int
    entries: tuple[tuple[int, int], ...]
    """(end epoch, number of entries that end then), epochs ascending, no number 0."""

    @property
    def slot(self) -> Slot:
        return blob_slot(self.blob_id)

    @property
    def end_epoch(self) -> int:
        """The first epoch in which nobody owes the blob, unless an entry is added or extended."""
        return self.entries[-1][0]

    def with_entry(self, end_epoch: int) -> "BlobSummary":
        return self._changed(end_epoch, 1)

    def without_entry(self, end_epoch: int) -> "BlobSummary | None":
        """Return the summary with one entry less, or None if that was the last one."""
        changed = self._changed(end_epoch, -1)
        return changed if changed.entries else None

    def _changed(self, end_epoch: int, by: int) -> "BlobSummary":
        rows = dict(self.entries)
        rows[end_epoch] = rows.get(end_epoch, 0) + by
        assert rows[end_epoch] >= 0
        return replace(self, entries=tuple((epoch, count) for epoch, count in sorted(rows.items()) if count))

    def encode(self) -> bytes:
        head = _BLOB.pack(
            self.KIND, self.blob_id, self.length, self.certified_height, self.certified_epoch, len(self.entries)
        )
        return head + b"".join(_ROW.pack(*row) for row in self.entries)

    @classmethod
    def decode(cls, data: bytes) -> "BlobSummary":
        head, rows = data[: _BLOB.size], data[_BLOB.size :]
        blob_id, length, height, epoch, count = _unpack(_BLOB, head, kind=cls.KIND, what="a blob's fixed part")
        if len(rows) != int(count) * _ROW.size:
            raise Rejected(Reason.MALFORMED, "a blob's size is not its count's")
        entries = tuple(_ROW.iter_unpack(rows))
        if not entries or any(low[0] >= high[0] for low, high in itertools.pairwise(entries)):
            raise Rejected(Reason.MALFORMED, "a blob's end epochs are ascending, and there is one")
        if any(row[1] == 0 for row in entries):
            raise Rejected(Reason.MALFORMED, "a blob names an end epoch of no entry")
        return cls(blob_id, length, height, epoch, entries)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """One owner's claim that a blob is kept until an epoch, under the reservation that paid for it."""

    KIND: ClassVar[int] = 4
    blob_id: BlobId
    reservation: ReservationId
    owner: OwnerId
    units: int
    end_epoch: int
    certified_height: int
    deletable: bool
    content_type: str = ""
    name: str = ""
    """The name that its owner gives the blob."""

    @property
    def slot(self) -> Slot:
        return entry_slot(self.blob_id, self.reservation)

    def encode(self) -> bytes:
        head = _ENTRY.pack(
            self.KIND,
            self.blob_id,
            self.reservation,
            self.owner,
            self.units,
            self.end_epoch,
            self.certified_height,
            self.deletable,
        )
        return head + encode_texts((self.content_type, self.name))

    @classmethod
    def decode(cls, data: bytes) -> "BlobEntry":
        fields = _open_fields(data, kind=cls.KIND, what="an entry")
        entry = cls(
            BlobId(fields.take(DIGEST_BYTES)),
            ReservationId(fields.take(DIGEST_BYTES)),
            OwnerId(fields.take(KEY_BYTES)),
            fields.take_int(8),
            fields.take_int(8),
            fields.take_int(8),
            fields.take_flag(),
            fields.take_text(1),
            fields.take_text(1),
        )
        fields.end()
        return entry


@dataclass(frozen=True, slots=True)
class UsedStatement:
    """An owner statement that a certificate has used up; remembered until it expires by itself."""

    KIND: ClassVar[int] = 5
    statement: Digest
    expiry_height: int

    @property
    def slot(self) -> Slot:
        return statement_slot(self.statement)

    def encode(self) -> bytes:
        return _STATEMENT.pack(self.KIND, self.statement, self.expiry_height)

    @classmethod
    def decode(cls, data: bytes) -> "UsedStatement":
        return cls(*_unpack(_STATEMENT, data, kind=cls.KIND, what="a used statement"))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Bucket:
    """What an epoch has sold, and what it will pay to its committee. One that holds nothing is not in the state."""

    KIND: ClassVar[int] = 6
    epoch: int
    used_units: int
    rewards_frost: int

    @property
    def slot(self) -> Slot:
        return bucket_slot(self.epoch)

    def encode(self) -> bytes:
        return _BUCKET.pack(self.KIND, self.epoch, self.used_units, self.rewards_frost)

    @classmethod
    def decode(cls, data: bytes) -> "Bucket":
        return cls(*_unpack(_BUCKET, data, kind=cls.KIND, what="a bucket"))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class NodeEntry:
    """A registered node; `owner` alone may change it."""

    KIND: ClassVar[int] = 7
    node: NodeId
    owner: OwnerId
    stake_frost: int
    capacity_units: int
    storage_vote_frost: int
    """What its owner would have one unit cost for one epoch."""
    write_vote_frost: int
    """What its owner would have the writing of one unit cost."""
    addresses: tuple[str, ...]

    @property
    def slot(self) -> Slot:
        return node_slot(self.node)

    def encode(self) -> bytes:
        head = _NODE.pack(
            self.KIND,
            self.node,
            self.owner,
            self.stake_frost,
            self.capacity_units,
            self.storage_vote_frost,
            self.write_vote_frost,
            len(self.addresses),
        )
        return head + encode_texts(self.addresses)

    @classmethod
    def decode(cls, data: bytes) -> "NodeEntry":
        fields = _open_fields(data, kind=cls.KIND, what="a node")
        node, owner = NodeId(fields.take(KEY_BYTES)), OwnerId(fields.take(KEY_BYTES))
        stake, capacity, storage, write = (fields.take_int(8) for _ in range(4))
        addresses = tuple(fields.take_text(1) for _ in range(fields.take_int(1)))
        fields.end()
        return cls(node, owner, stake, capacity, storage, write, addresses)


@dataclass(frozen=True, slots=True)
class Offence:
    """A view for which a node has been punished; it is not punished for it again."""

    KIND: ClassVar[int] = 8
    node: NodeId
    epoch: int
    view: int
    height: int

    @property
    def slot(self) -> Slot:
        return offence_slot(self.node, epoch=self.epoch, view=self.view)

    def encode(self) -> bytes:
        return _OFFENCE.pack(self.KIND, self.node, self.epoch, self.view, self.height)

    @classmethod
    def decode(cls, data: bytes) -> "Offence":
        return cls(*_unpack(_OFFENCE, data, kind=cls.KIND, what="an offence"))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class System:
    """The epoch, when it began, and all FROST that was ever made and destroyed."""

    KIND: ClassVar[int] = 9
    epoch: int
    epoch_start_ms: int
    minted_frost: int
    burned_frost: int

    @property
    def slot(self) -> Slot:
        return SYSTEM_SLOT

    def encode(self) -> bytes:
        return _SYSTEM.pack(self.KIND, self.epoch, self.epoch_start_ms, self.minted_frost, self.burned_frost)

    @classmethod
    def decode(cls, data: bytes) -> "System":
        return cls(*_unpack(_SYSTEM, data, kind=cls.KIND, what="the system's value"))  # type: ignore[arg-type]


Value = Account | Reservation | BlobSummary | BlobEntry | UsedStatement | Bucket | NodeEntry | Offence | System

_DECODERS: dict[int, Callable[[bytes], Value]] = {
    kind.KIND: kind.decode
    for kind in (Account, Reservation, BlobSummary, BlobEntry, UsedStatement, Bucket, NodeEntry, Offence, System)
}


def decode_value(data: bytes) -> Value:
    """Return the value that these bytes are; raises `Rejected(MALFORMED)`."""
    decoder = _DECODERS.get(data[0]) if data else None
    if decoder is None:
        raise Rejected(Reason.MALFORMED, "no value of the state is of this kind")
    return decoder(data)
