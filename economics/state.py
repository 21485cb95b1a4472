"""The values of the ledger's state: money, storage, and the system's own; `nodes` has those of stake and committees.

Formats only (FORMATS.md 11): no rule of the ledger.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from struct import Struct
from typing import ClassVar

from economics.blob import BlobId
from economics.commitments import ReservationId
from economics.crypto import DIGEST_BYTES, KEY_BYTES, Digest, OwnerId
from economics.errors import Reason, Rejected
from economics.nodes import Beacon, Handover, NodeEntry, Offence, Round, Seats, Stake, Standing, Terms
from economics.slots import (
    SYSTEM_SLOT,
    Slot,
    account_slot,
    blob_slot,
    bucket_slot,
    encode_texts,
    entry_slot,
    invalid_slot,
    open_fields,
    reservation_slot,
    statement_slot,
    unpack,
)
from economics.votes import ZERO_HASH

_ACCOUNT = Struct(">B32sQQ")
_RESERVATION = Struct(">B32s32sQQQ")
_BLOB = Struct(">B32sQQQH")
_ROW = Struct(">QI")
_ENTRY = Struct(">B32s32s32sQQQB")
_STATEMENT = Struct(">B32sQ")
_BUCKET = Struct(">BQQQ")
_SYSTEM = Struct(">BQQQQ32s")
_INVALID = Struct(">B32sQQ32s")


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
        return cls(*unpack(_ACCOUNT, data, kind=cls.KIND, what="an account"))  # type: ignore[arg-type]


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
        return cls(*unpack(_RESERVATION, data, kind=cls.KIND, what="a reservation"))  # type: ignore[arg-type]


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
        blob_id, length, height, epoch, count = unpack(_BLOB, head, kind=cls.KIND, what="a blob's fixed part")
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
        fields = open_fields(data, kind=cls.KIND, what="an entry")
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
        return cls(*unpack(_STATEMENT, data, kind=cls.KIND, what="a used statement"))  # type: ignore[arg-type]


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
        return cls(*unpack(_BUCKET, data, kind=cls.KIND, what="a bucket"))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class System:
    """The epoch, when it began, all FROST that was ever made and destroyed, and the running seed."""

    KIND: ClassVar[int] = 9
    epoch: int
    epoch_start_ms: int
    minted_frost: int
    burned_frost: int
    seed: Digest = ZERO_HASH
    """Of the beacon: every reveal that counts changes it."""

    @property
    def slot(self) -> Slot:
        return SYSTEM_SLOT

    def encode(self) -> bytes:
        return _SYSTEM.pack(self.KIND, self.epoch, self.epoch_start_ms, self.minted_frost, self.burned_frost, self.seed)

    @classmethod
    def decode(cls, data: bytes) -> "System":
        return cls(*unpack(_SYSTEM, data, kind=cls.KIND, what="the system's value"))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Invalid:
    """A blob that its writer encoded wrongly, as f + 1 shards of one epoch attest; nobody owes it, now or later."""

    KIND: ClassVar[int] = 17
    blob_id: BlobId
    epoch: int
    height: int
    proof_hash: Digest

    @property
    def slot(self) -> Slot:
        return invalid_slot(self.blob_id)

    def encode(self) -> bytes:
        return _INVALID.pack(self.KIND, self.blob_id, self.epoch, self.height, self.proof_hash)

    @classmethod
    def decode(cls, data: bytes) -> "Invalid":
        return cls(*unpack(_INVALID, data, kind=cls.KIND, what="an invalid blob"))  # type: ignore[arg-type]


Value = (
    Account
    | Reservation
    | BlobSummary
    | BlobEntry
    | UsedStatement
    | Bucket
    | NodeEntry
    | Offence
    | System
    | Seats
    | Terms
    | Stake
    | Handover
    | Round
    | Standing
    | Beacon
    | Invalid
)

_DECODERS: dict[int, Callable[[bytes], Value]] = {
    Account.KIND: Account.decode,
    Reservation.KIND: Reservation.decode,
    BlobSummary.KIND: BlobSummary.decode,
    BlobEntry.KIND: BlobEntry.decode,
    UsedStatement.KIND: UsedStatement.decode,
    Bucket.KIND: Bucket.decode,
    NodeEntry.KIND: NodeEntry.decode,
    Offence.KIND: Offence.decode,
    System.KIND: System.decode,
    Seats.KIND: Seats.decode,
    Terms.KIND: Terms.decode,
    Stake.KIND: Stake.decode,
    Handover.KIND: Handover.decode,
    Round.KIND: Round.decode,
    Standing.KIND: Standing.decode,
    Beacon.KIND: Beacon.decode,
    Invalid.KIND: Invalid.decode,
}


def decode_value(data: bytes) -> Value:
    """Return the value that these bytes are; raises `Rejected(MALFORMED)`."""
    decoder = _DECODERS.get(data[0]) if data else None
    if decoder is None:
        raise Rejected(Reason.MALFORMED, "no value of the state is of this kind")
    return decoder(data)
