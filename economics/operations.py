"""What each operation demands of the state and does to it: money and storage. Order, fees and nonces are the ledger's.

An operation that fails raises `Failed` with a code; whatever it has written by then, its caller takes back.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from economics.arguments import (
    Attributes,
    CertifyAgain,
    Delete,
    Extend,
    HandOver,
    Merge,
    Reserve,
    SplitEpochs,
    SplitUnits,
    Transfer,
)
from economics.blob import BlobId
from economics.commitments import EXPIRY_AHEAD_MAX, Certificate, ReservationId
from economics.crypto import Digest, Level, OwnerId, digest
from economics.errors import Rejected
from economics.genesis import Parameters
from economics.geometry import Code as Geometry
from economics.nodes import Terms
from economics.slots import invalid_slot, reservation_slot, statement_slot
from economics.state import BlobEntry, BlobSummary, Reservation, UsedStatement
from economics.working import WorkingState

EPOCHS_AHEAD_MAX = 53
"""Storage is sold for epochs that end at most this far ahead: as in Walrus, a year of weeks."""


class Code(StrEnum):
    """What became of a transaction in a block. The names are part of the protocol."""

    OK = "ok"
    WRONG_NONCE = "wrong_nonce"
    """No effect, no fee: the account's nonce is another."""
    UNFUNDED_FEE = "unfunded_fee"
    """No effect, no fee: the balance is below the fee."""
    UNFUNDED = "unfunded"
    """The balance, without the fee, does not cover it."""
    NOT_FOUND = "not_found"
    """No such reservation, entry or live blob."""
    NOT_OWNER = "not_owner"
    WRONG_AMOUNT = "wrong_amount"
    """FROST, units or epochs: none, or not a part of what is there."""
    WRONG_EPOCHS = "wrong_epochs"
    """Epochs that are past, end before they begin, or lie outside the reservation."""
    TOO_FAR_AHEAD = "too_far_ahead"
    """Ends over 53 epochs ahead, or a statement that expires over 1,000,000 heights ahead."""
    OVER_CAPACITY = "over_capacity"
    """More units than the network has left in one of the epochs."""
    NOT_MERGEABLE = "not_mergeable"
    """Reservations of different owners, or that are neither side by side nor one after the other."""
    WRONG_EPOCH = "wrong_epoch"
    """Of another epoch than the current one, or than those that the operation may be of."""
    EXPIRED_STATEMENT = "expired_statement"
    USED_STATEMENT = "used_statement"
    NOT_COVERED = "not_covered"
    """The reservation does not cover the current epoch."""
    NO_SPACE = "no_space"
    """The reservation has fewer unspent units than the blob takes."""
    WRONG_LENGTH = "wrong_length"
    """The blob is live with another length."""
    BAD_CERTIFICATE = "bad_certificate"
    ALREADY_CERTIFIED = "already_certified"
    """The blob has an entry under this reservation."""
    NOT_DELETABLE = "not_deletable"
    NOT_EVIDENCE = "not_evidence"
    """Two signed things that an honest member may sign both, or that a member did not sign."""
    TOO_OLD = "too_old"
    """Evidence of an epoch whose members have taken their stakes and gone."""
    ALREADY_PUNISHED = "already_punished"
    NOT_A_NODE = "not_a_node"
    """No node of this key is registered, or it is leaving."""
    WRONG_PHASE = "wrong_phase"
    """The stake is on its way out already."""
    NOT_MEMBER = "not_member"
    """The sender is no member of the current committee."""
    ALREADY_REPORTED = "already_reported"
    WRONG_ROUND = "wrong_round"
    """Of another round of challenges than the one that is going on."""
    INVALID_BLOB = "invalid_blob"
    """The blob was proven to be encoded wrongly."""
    NOT_PROVEN = "not_proven"
    """Fewer than f + 1 shards attest it, or one of them did not sign."""


class Failed(Exception):
    """An operation that the state does not allow."""

    def __init__(self, code: Code) -> None:
        super().__init__(str(code))
        self.code = code


@dataclass(frozen=True, slots=True)
class Context:
    """Where and for whom an operation is executed."""

    state: WorkingState
    parameters: Parameters
    geometry: Geometry
    height: int
    epoch: int
    sender: OwnerId
    transaction: Digest
    open_epoch: int
    """The first epoch whose committee and terms are not fixed yet."""
    verify_certificate: Callable[[Certificate], None]

    def pay(self, amount_frost: int) -> None:
        """Take FROST from the sender; the caller owes it to someone at once."""
        account = self.state.account(self.sender)
        if account.balance_frost < amount_frost:
            raise Failed(Code.UNFUNDED)
        self.state.write(replace(account, balance_frost=account.balance_frost - amount_frost))

    def new_reservation(self, owner: OwnerId, *, units: int, start_epoch: int, end_epoch: int) -> None:
        """Write the one reservation that a transaction can make; its ID is a hash of the transaction's."""
        reservation = ReservationId(digest(Level.RESERVATION, self.transaction))
        assert self.state.reservation(reservation) is None
        self.state.write(Reservation(reservation, owner, units, start_epoch, end_epoch))

    def own_reservation(self, reservation: ReservationId) -> Reservation:
        return self.reservation_of(self.sender, reservation)

    def reservation_of(self, owner: OwnerId, reservation: ReservationId) -> Reservation:
        found = self.state.reservation(reservation)
        if found is None:
            raise Failed(Code.NOT_FOUND)
        if found.owner != owner:
            raise Failed(Code.NOT_OWNER)
        return found

    def own_entry(self, blob_id: BlobId, reservation: ReservationId) -> BlobEntry:
        """Return a live entry of the sender's; an entry leaves the state when it ends."""
        found = self.state.entry(blob_id, reservation)
        if found is None:
            raise Failed(Code.NOT_FOUND)
        if found.owner != self.sender:
            raise Failed(Code.NOT_OWNER)
        return found


def quote(terms: Terms, *, units: int, epochs: int) -> int:
    """Return the FROST that storing and writing `units` for `epochs` costs; a Python int, it may be over u64."""
    return units * (terms.storage_frost_per_unit * epochs + terms.write_frost_per_unit)


def credit(state: WorkingState, owner: OwnerId, amount_frost: int) -> None:
    if amount_frost:
        account = state.account(owner)
        state.write(replace(account, balance_frost=account.balance_frost + amount_frost))


def add_rewards(state: WorkingState, epoch: int, amount_frost: int) -> None:
    if amount_frost:
        bucket = state.bucket(epoch)
        state.write(replace(bucket, rewards_frost=bucket.rewards_frost + amount_frost))


def transfer(context: Context, operation: Transfer) -> None:
    if operation.amount_frost == 0:
        raise Failed(Code.WRONG_AMOUNT)
    context.pay(operation.amount_frost)
    credit(context.state, operation.to, operation.amount_frost)


def reserve(context: Context, operation: Reserve) -> None:
    start, end = operation.start_epoch, operation.end_epoch
    if operation.units == 0:
        raise Failed(Code.WRONG_AMOUNT)
    if not context.epoch <= start < end:
        raise Failed(Code.WRONG_EPOCHS)
    _buy(context, units=operation.units, start_epoch=start, end_epoch=end)
    context.new_reservation(context.sender, units=operation.units, start_epoch=start, end_epoch=end)


def _buy(context: Context, *, units: int, start_epoch: int, end_epoch: int) -> None:
    """Take `units` of each epoch's capacity and pay for them: storage to each epoch, writing to the current one.

    The current epoch's prices hold; an epoch whose terms are not fixed yet has as much room as the last that is.
    """
    if end_epoch - context.epoch > EPOCHS_AHEAD_MAX:
        raise Failed(Code.TOO_FAR_AHEAD)
    state = context.state
    terms, newest = state.terms(context.epoch), state.terms(context.open_epoch - 1)
    buckets = [state.bucket(epoch) for epoch in range(start_epoch, end_epoch)]
    for bucket in buckets:
        room = terms if bucket.epoch == context.epoch else newest
        if bucket.used_units + units > room.capacity_units:
            raise Failed(Code.OVER_CAPACITY)
    context.pay(quote(terms, units=units, epochs=end_epoch - start_epoch))
    storage_frost = units * terms.storage_frost_per_unit
    for bucket in buckets:
        rewards = bucket.rewards_frost + storage_frost
        state.write(replace(bucket, used_units=bucket.used_units + units, rewards_frost=rewards))
    add_rewards(state, context.epoch, units * terms.write_frost_per_unit)


def split_units(context: Context, operation: SplitUnits) -> None:
    old = context.own_reservation(operation.reservation)
    if not 0 < operation.units < old.units:
        raise Failed(Code.WRONG_AMOUNT)
    context.state.write(replace(old, units=old.units - operation.units))
    context.new_reservation(old.owner, units=operation.units, start_epoch=old.start_epoch, end_epoch=old.end_epoch)


def split_epochs(context: Context, operation: SplitEpochs) -> None:
    """Both parts must have an epoch left: the first would otherwise end before it is made."""
    old = context.own_reservation(operation.reservation)
    if not max(old.start_epoch, context.epoch) < operation.epoch < old.end_epoch:
        raise Failed(Code.WRONG_EPOCHS)
    context.state.write(replace(old, end_epoch=operation.epoch))
    context.new_reservation(old.owner, units=old.units, start_epoch=operation.epoch, end_epoch=old.end_epoch)


def merge(context: Context, operation: Merge) -> None:
    if operation.reservation == operation.other:
        raise Failed(Code.NOT_MERGEABLE)
    kept, other = context.own_reservation(operation.reservation), context.own_reservation(operation.other)
    context.state.put(other.slot, None)
    if _ahead(kept, context.epoch) == _ahead(other, context.epoch):
        context.state.write(replace(kept, units=kept.units + other.units))
    elif kept.units == other.units and kept.end_epoch == other.start_epoch:
        context.state.write(replace(kept, end_epoch=other.end_epoch))
    elif kept.units == other.units and other.end_epoch == kept.start_epoch:
        context.state.write(replace(kept, start_epoch=other.start_epoch))
    else:
        raise Failed(Code.NOT_MERGEABLE)


def _ahead(reservation: Reservation, epoch: int) -> tuple[int, int]:
    """Return the epochs that a reservation still covers: when it began matters no more once it has."""
    return max(reservation.start_epoch, epoch), reservation.end_epoch


def hand_over(context: Context, operation: HandOver) -> None:
    """What was certified under the reservation stays with who owned it then."""
    context.state.write(replace(context.own_reservation(operation.reservation), owner=operation.to))


def certify(context: Context, certificate: Certificate) -> None:
    """Whoever sends it pays its fee; all else is between the ledger and the statement's owner.

    The signatures come last: they cost 55 us each, everything before them next to nothing.
    """
    statement = certificate.statement
    if certificate.epoch != context.epoch:
        raise Failed(Code.WRONG_EPOCH)
    if statement.expiry_height <= context.height:
        raise Failed(Code.EXPIRED_STATEMENT)
    if statement.expiry_height > context.height + EXPIRY_AHEAD_MAX:
        raise Failed(Code.TOO_FAR_AHEAD)
    if context.state.get(statement_slot(statement.hash)) is not None:
        raise Failed(Code.USED_STATEMENT)
    reservation = context.reservation_of(statement.owner, statement.reservation)
    entry = _claim(
        context, reservation, blob_id=statement.blob_id, length=statement.length, deletable=statement.deletable
    )
    try:
        context.verify_certificate(certificate)
    except Rejected as verdict:
        raise Failed(Code.BAD_CERTIFICATE) from verdict
    _store(context, reservation, entry, length=statement.length)
    context.state.write(UsedStatement(statement.hash, statement.expiry_height))


def certify_again(context: Context, operation: CertifyAgain) -> None:
    reservation = context.own_reservation(operation.reservation)
    blob = context.state.blob(operation.blob_id)
    if blob is None:
        raise Failed(Code.NOT_FOUND)
    entry = _claim(context, reservation, blob_id=blob.blob_id, length=blob.length, deletable=operation.deletable)
    _store(context, reservation, entry, length=blob.length)


def _claim(context: Context, reservation: Reservation, *, blob_id: BlobId, length: int, deletable: bool) -> BlobEntry:
    """Return the entry that a blob may have under a reservation, or raise `Failed`; writes nothing."""
    if context.state.get(invalid_slot(blob_id)) is not None:
        raise Failed(Code.INVALID_BLOB)
    if not reservation.start_epoch <= context.epoch < reservation.end_epoch:
        raise Failed(Code.NOT_COVERED)
    live = context.state.blob(blob_id)
    if live is not None and live.length != length:
        raise Failed(Code.WRONG_LENGTH)
    if context.state.entry(blob_id, reservation.reservation) is not None:
        raise Failed(Code.ALREADY_CERTIFIED)
    units = context.geometry.encoded_units(length)
    if units > reservation.units:
        raise Failed(Code.NO_SPACE)
    return BlobEntry(
        blob_id=blob_id,
        reservation=reservation.reservation,
        owner=reservation.owner,
        units=units,
        end_epoch=reservation.end_epoch,
        certified_height=context.height,
        deletable=deletable,
    )


def _store(context: Context, reservation: Reservation, entry: BlobEntry, *, length: int) -> None:
    left = reservation.units - entry.units
    context.state.put(reservation_slot(reservation.reservation), replace(reservation, units=left) if left else None)
    context.state.write(entry)
    live = context.state.blob(entry.blob_id) or BlobSummary(entry.blob_id, length, context.height, context.epoch, ())
    context.state.write(live.with_entry(entry.end_epoch))


def extend(context: Context, operation: Extend) -> None:
    entry = context.own_entry(operation.blob_id, operation.reservation)
    if context.state.get(invalid_slot(entry.blob_id)) is not None:
        raise Failed(Code.INVALID_BLOB)
    if operation.epochs == 0:
        raise Failed(Code.WRONG_AMOUNT)
    end = entry.end_epoch + operation.epochs
    _buy(context, units=entry.units, start_epoch=entry.end_epoch, end_epoch=end)
    blob = context.state.blob(entry.blob_id)
    assert blob is not None
    context.state.write(replace(entry, end_epoch=end))
    moved = blob.with_entry(end).without_entry(entry.end_epoch)
    assert moved is not None
    context.state.write(moved)


def delete(context: Context, operation: Delete) -> None:
    entry = context.own_entry(operation.blob_id, operation.reservation)
    if not entry.deletable:
        raise Failed(Code.NOT_DELETABLE)
    end_entry(context.state, entry)
    context.new_reservation(entry.owner, units=entry.units, start_epoch=context.epoch, end_epoch=entry.end_epoch)


def end_entry(state: WorkingState, entry: BlobEntry) -> None:
    """Take an entry out of the state, and the blob with its last one."""
    blob = state.blob(entry.blob_id)
    assert blob is not None
    state.put(entry.slot, None)
    state.put(blob.slot, blob.without_entry(entry.end_epoch))


def attributes(context: Context, operation: Attributes) -> None:
    entry = context.own_entry(operation.blob_id, operation.reservation)
    context.state.write(replace(entry, content_type=operation.content_type, name=operation.name))
