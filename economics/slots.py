"""Where each value of the ledger's state lives: its slot, and its key in the tree (FORMATS.md 11).

A value's *slot* is its kind and id, the bytes that every value begins with; its key in the tree is the slot's hash.
"""

from struct import Struct
from typing import NewType

from economics.blob import BlobId
from economics.commitments import ReservationId
from economics.crypto import Digest, Level, NodeId, OwnerId, digest
from economics.errors import Reason, Rejected
from economics.fields import Fields
from economics.tree import StateKey

Slot = NewType("Slot", bytes)
"""Kind and id of a value."""
StakeId = NewType("StakeId", Digest)
"""H(stake, hash of the transaction that made it); of a first member's, H(stake, node)."""


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


def seats_slot(epoch: int) -> Slot:
    return Slot(b"\x0a" + epoch.to_bytes(8, "big"))


def terms_slot(epoch: int) -> Slot:
    return Slot(b"\x0b" + epoch.to_bytes(8, "big"))


def stake_slot(stake: StakeId) -> Slot:
    return Slot(b"\x0c" + stake)


HANDOVER_SLOT = Slot(b"\x0d")
ROUND_SLOT = Slot(b"\x0e")
STANDING_SLOT = Slot(b"\x0f")


def beacon_slot(node: NodeId) -> Slot:
    return Slot(b"\x10" + node)


def invalid_slot(blob_id: BlobId) -> Slot:
    return Slot(b"\x11" + blob_id)


def account_key(owner: OwnerId) -> StateKey:
    return state_key(account_slot(owner))


def blob_key(blob_id: BlobId) -> StateKey:
    return state_key(blob_slot(blob_id))


def unpack(layout: Struct, data: bytes, *, kind: int, what: str) -> tuple[int | bytes, ...]:
    """Return the fields behind the kind of a value of fixed width; raises `Rejected(MALFORMED)`."""
    if len(data) != layout.size or data[0] != kind:
        raise Rejected(Reason.MALFORMED, f"{what} has {layout.size} bytes and begins with {kind}")
    return layout.unpack(data)[1:]


def open_fields(data: bytes, *, kind: int, what: str) -> Fields:
    """Return the fields behind the kind of a value of variable width; raises `Rejected(MALFORMED)`."""
    fields = Fields(data, what)
    if fields.take_int(1) != kind:
        raise Rejected(Reason.MALFORMED, f"{what} begins with {kind}")
    return fields


def encode_texts(texts: tuple[str, ...]) -> bytes:
    """Return texts one after the other, each behind its length in one byte."""
    raw = [text.encode("utf-8") for text in texts]
    return b"".join(len(text).to_bytes(1, "big") + text for text in raw)
