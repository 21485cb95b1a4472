"""Operations: what a sender can ask of the ledger, and the bytes of their arguments (FORMATS.md 10). No rule of it."""

import itertools
from dataclasses import dataclass
from struct import Struct
from typing import Any

from economics.blob import BlobId
from economics.block import HEADER_BYTES, BlockHeader
from economics.commitments import Certificate, ReservationId
from economics.crypto import (
    DIGEST_BYTES,
    KEY_BYTES,
    SIGNATURE_BYTES,
    TAG_INVALID,
    TAG_NODE,
    Digest,
    NodeId,
    OwnerId,
    Signature,
)
from economics.errors import Reason, Rejected
from economics.fields import Fields
from economics.genesis import ADDRESS_BYTES_MAX, ADDRESSES_MAX
from economics.nodes import Outcome
from economics.slots import StakeId
from economics.votes import SIGNED_VOTE_BYTES, SignedVote

BASIS_POINTS = 10_000
VOTES_FORM = 1
HEADERS_FORM = 2

SignedHeader = tuple[BlockHeader, Signature]


@dataclass(frozen=True, slots=True)
class Transfer:
    """Give FROST to an account, which comes into being if it is new."""

    to: OwnerId
    amount_frost: int


@dataclass(frozen=True, slots=True)
class Reserve:
    """Buy `units` of storage in each epoch of [start, end)."""

    units: int
    start_epoch: int
    end_epoch: int


@dataclass(frozen=True, slots=True)
class SplitUnits:
    """Move `units` of a reservation to a new one of the same epochs."""

    reservation: ReservationId
    units: int


@dataclass(frozen=True, slots=True)
class SplitEpochs:
    """End a reservation at an epoch, where a new one of as many units begins."""

    reservation: ReservationId
    epoch: int


@dataclass(frozen=True, slots=True)
class Merge:
    """Put `other` into `reservation`; it is no more."""

    reservation: ReservationId
    other: ReservationId


@dataclass(frozen=True, slots=True)
class HandOver:
    """Give a reservation to another owner."""

    reservation: ReservationId
    to: OwnerId


@dataclass(frozen=True, slots=True)
class Certify:
    """Record that a quorum holds a blob: the point of availability. Anyone may, for the owner who signed."""

    certificate: Certificate


@dataclass(frozen=True, slots=True)
class CertifyAgain:
    """Have a blob that is live kept under a reservation of one's own too; no bytes move."""

    reservation: ReservationId
    blob_id: BlobId
    deletable: bool


@dataclass(frozen=True, slots=True)
class Extend:
    """Keep an entry for `epochs` more."""

    blob_id: BlobId
    reservation: ReservationId
    epochs: int


@dataclass(frozen=True, slots=True)
class Delete:
    """End a deletable entry; its storage comes back as a new reservation."""

    blob_id: BlobId
    reservation: ReservationId


@dataclass(frozen=True, slots=True)
class Attributes:
    """Say what an entry's blob is, for people and browsers."""

    blob_id: BlobId
    reservation: ReservationId
    content_type: str
    name: str


@dataclass(frozen=True, slots=True)
class RegisterNode:
    """Own a node and say what it offers, or change that. `signature` shows that the node's key agrees."""

    node: NodeId
    capacity_units: int
    """What its disk can hold; 0 to leave: its shards go to others at the next change of the committee."""
    storage_vote_frost: int
    write_vote_frost: int
    commission_basis_points: int
    """The owner's part of what the pool earns: counts from the second epoch after this one."""
    addresses: tuple[str, ...]
    signature: Signature


@dataclass(frozen=True, slots=True)
class Evidence:
    """Two signed things that no honest member signs both: two votes, or two headers with their leader's signatures."""

    first: SignedVote | SignedHeader
    second: SignedVote | SignedHeader


@dataclass(frozen=True, slots=True)
class PutStake:
    """Put FROST on a node: it joins the node's pool with the next epoch whose committee is not fixed yet."""

    node: NodeId
    amount_frost: int


@dataclass(frozen=True, slots=True)
class Unstake:
    """Take a stake, or so many of its shares, back: out of the pool with the next open epoch, paid when unbound."""

    stake: StakeId
    shares: int
    """0 for all of it; what is left of a part stays where it is."""


@dataclass(frozen=True, slots=True)
class ReportSync:
    """Say that the sending member holds all it owes of what was certified before this committee; of its own key."""

    epoch: int


@dataclass(frozen=True, slots=True)
class ReportAudit:
    """Say how the challenged members of a round did, ascending; sent by a member's own key."""

    epoch: int
    number: int
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class CommitBeacon:
    """Commit the sending node to a hash onion; it counts from the second epoch after this one."""

    tip: Digest


@dataclass(frozen=True, slots=True)
class Attestation:
    """One member's word that it has checked a proof."""

    signer: int
    signature: Signature


@dataclass(frozen=True, slots=True)
class Invalidate:
    """Have a blob refused for ever: f + 1 shards of one epoch have checked a proof that it is wrongly encoded."""

    blob_id: BlobId
    epoch: int
    proof_hash: Digest
    attestations: tuple[Attestation, ...]
    """Signers ascending and distinct."""


Operation = (
    Transfer
    | Reserve
    | SplitUnits
    | SplitEpochs
    | Merge
    | HandOver
    | Certify
    | CertifyAgain
    | Extend
    | Delete
    | Attributes
    | RegisterNode
    | Evidence
    | PutStake
    | Unstake
    | ReportSync
    | ReportAudit
    | CommitBeacon
    | Invalidate
)


class _Fixed:
    """The bytes of an operation of fixed width: its fields, in order."""

    def __init__(self, kind: type[Any], layout: str, *names: str) -> None:
        self.kind = kind
        self.layout = Struct(layout)
        self.names = names

    def encode(self, operation: Operation) -> bytes:
        return self.layout.pack(*(getattr(operation, name) for name in self.names))

    def decode(self, data: bytes) -> Operation:
        if len(data) != self.layout.size:
            raise Rejected(Reason.MALFORMED, f"the arguments of this operation are {self.layout.size} bytes")
        operation: Operation = self.kind(*self.layout.unpack(data))
        return operation


_FIXED: dict[int, _Fixed] = {
    1: _Fixed(Transfer, ">32sQ", "to", "amount_frost"),
    2: _Fixed(Reserve, ">QQQ", "units", "start_epoch", "end_epoch"),
    3: _Fixed(SplitUnits, ">32sQ", "reservation", "units"),
    4: _Fixed(SplitEpochs, ">32sQ", "reservation", "epoch"),
    5: _Fixed(Merge, ">32s32s", "reservation", "other"),
    6: _Fixed(HandOver, ">32s32s", "reservation", "to"),
    9: _Fixed(Extend, ">32s32sH", "blob_id", "reservation", "epochs"),
    10: _Fixed(Delete, ">32s32s", "blob_id", "reservation"),
    14: _Fixed(PutStake, ">32sQ", "node", "amount_frost"),
    15: _Fixed(Unstake, ">32sQ", "stake", "shares"),
    16: _Fixed(ReportSync, ">Q", "epoch"),
    18: _Fixed(CommitBeacon, ">32s", "tip"),
}
_NUMBERS: dict[type[Any], int] = {fixed.kind: number for number, fixed in _FIXED.items()} | {
    Certify: 7,
    CertifyAgain: 8,
    Attributes: 11,
    RegisterNode: 12,
    Evidence: 13,
    ReportAudit: 17,
    Invalidate: 19,
}


def number_of(operation: Operation) -> int:
    """Return the number by which a transaction names its operation."""
    return _NUMBERS[type(operation)]


def _encode_text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return len(raw).to_bytes(1, "big") + raw


def encode_arguments(operation: Operation) -> bytes:
    """Return what follows the operation's number in a transaction; `decode_arguments` reverses it."""
    match operation:
        case Certify(certificate):
            return certificate.encode()
        case CertifyAgain(reservation, blob_id, deletable):
            return reservation + blob_id + deletable.to_bytes(1, "big")
        case Attributes(blob_id, reservation, content_type, name):
            return blob_id + reservation + _encode_text(content_type) + _encode_text(name)
        case RegisterNode():
            return _encode_registration(operation)
        case Evidence(first, second):
            form = VOTES_FORM if isinstance(first, SignedVote) else HEADERS_FORM
            return form.to_bytes(1, "big") + _encode_exhibit(first) + _encode_exhibit(second)
        case ReportAudit(epoch, number, outcomes):
            head = (epoch.to_bytes(8, "big"), number.to_bytes(2, "big"), len(outcomes).to_bytes(2, "big"))
            return b"".join((*head, bytes(outcomes)))
        case Invalidate():
            return _encode_invalidation(operation)
        case _:
            return _FIXED[_NUMBERS[type(operation)]].encode(operation)


def _encode_invalidation(operation: Invalidate) -> bytes:
    rows = (row.signer.to_bytes(2, "big") + row.signature for row in operation.attestations)
    head = (operation.blob_id, operation.epoch.to_bytes(8, "big"), operation.proof_hash)
    return b"".join((*head, len(operation.attestations).to_bytes(2, "big"), *rows))


def _encode_registration(operation: RegisterNode) -> bytes:
    numbers = (operation.capacity_units, operation.storage_vote_frost, operation.write_vote_frost)
    return b"".join(
        (
            operation.node,
            *(number.to_bytes(8, "big") for number in numbers),
            operation.commission_basis_points.to_bytes(2, "big"),
            len(operation.addresses).to_bytes(1, "big"),
            *(_encode_text(address) for address in operation.addresses),
            operation.signature,
        )
    )


def _encode_exhibit(exhibit: SignedVote | SignedHeader) -> bytes:
    if isinstance(exhibit, SignedVote):
        return exhibit.encode()
    header, signature = exhibit
    return header.encode() + signature


def decode_arguments(number: int, data: bytes, *, chain_id: Digest) -> Operation:
    """Return the operation; raises `Rejected` for bytes that are none, or that name another chain."""
    fixed = _FIXED.get(number)
    if fixed is not None:
        return fixed.decode(data)
    if number == 7:
        return Certify(Certificate.decode(data, chain_id=chain_id))
    fields = Fields(data, "an operation's arguments")
    operation = _take_operation(number, fields, chain_id=chain_id)
    fields.end()
    return operation


def _take_operation(number: int, fields: Fields, *, chain_id: Digest) -> Operation:
    match number:
        case 8:
            reservation, blob_id = ReservationId(fields.take(DIGEST_BYTES)), BlobId(fields.take(DIGEST_BYTES))
            return CertifyAgain(reservation, blob_id, fields.take_flag())
        case 11:
            blob_id, reservation = BlobId(fields.take(DIGEST_BYTES)), ReservationId(fields.take(DIGEST_BYTES))
            return Attributes(blob_id, reservation, fields.take_text(1), fields.take_text(1))
        case 12:
            node = NodeId(fields.take(KEY_BYTES))
            capacity, storage, write = (fields.take_int(8) for _ in range(3))
            commission, addresses = fields.take_int(2), _take_addresses(fields)
            signature = Signature(fields.take(SIGNATURE_BYTES))
            if commission > BASIS_POINTS:
                raise Rejected(Reason.MALFORMED, f"a commission is at most {BASIS_POINTS} basis points")
            return RegisterNode(node, capacity, storage, write, commission, addresses, signature)
        case 13:
            form = fields.take_int(1)
            return Evidence(
                _take_exhibit(form, fields, chain_id=chain_id), _take_exhibit(form, fields, chain_id=chain_id)
            )
        case 17:
            epoch, number = fields.take_int(8), fields.take_int(2)
            return ReportAudit(epoch, number, _take_outcomes(fields))
        case 19:
            return _take_invalidation(fields)
        case _:
            raise Rejected(Reason.UNKNOWN_OPERATION, f"no operation {number}")


def _take_outcomes(fields: Fields) -> tuple[Outcome, ...]:
    try:
        return tuple(Outcome(value) for value in fields.take(fields.take_int(2)))
    except ValueError as fault:
        raise Rejected(Reason.MALFORMED, "an audit names an outcome that there is not") from fault


def _take_invalidation(fields: Fields) -> Invalidate:
    blob_id, epoch, proof_hash = BlobId(fields.take(DIGEST_BYTES)), fields.take_int(8), fields.take(DIGEST_BYTES)
    attestations = tuple(
        Attestation(fields.take_int(2), Signature(fields.take(SIGNATURE_BYTES))) for _ in range(fields.take_int(2))
    )
    if any(low.signer >= high.signer for low, high in itertools.pairwise(attestations)):
        raise Rejected(Reason.MALFORMED, "attestations are ascending and distinct")
    return Invalidate(blob_id, epoch, Digest(proof_hash), attestations)


def _take_addresses(fields: Fields) -> tuple[str, ...]:
    count = fields.take_int(1)
    if count > ADDRESSES_MAX:
        raise Rejected(Reason.TOO_LARGE, f"a node has at most {ADDRESSES_MAX} addresses")
    addresses = tuple(fields.take_text(1) for _ in range(count))
    if any(len(address.encode("utf-8")) > ADDRESS_BYTES_MAX for address in addresses):
        raise Rejected(Reason.TOO_LARGE, f"an address has at most {ADDRESS_BYTES_MAX} bytes")
    return addresses


def _take_exhibit(form: int, fields: Fields, *, chain_id: Digest) -> SignedVote | SignedHeader:
    match form:
        case 1:
            return SignedVote.decode(fields.take(SIGNED_VOTE_BYTES))
        case 2:
            header = BlockHeader.decode(fields.take(HEADER_BYTES), chain_id=chain_id)
            return header, Signature(fields.take(SIGNATURE_BYTES))
        case _:
            raise Rejected(Reason.MALFORMED, f"no form {form} of evidence")


def inner_signatures(operation: Operation) -> int:
    """Return how many signatures the arguments hold: each costs every node as much as a transfer does."""
    match operation:
        case Certify(certificate):
            return 1 + len(certificate.signatures)
        case RegisterNode():
            return 1
        case Evidence():
            return 2
        case Invalidate():
            return len(operation.attestations)
        case _:
            return 0


def node_message(*, chain_id: Digest, sender: OwnerId, nonce: int) -> bytes:
    """Return what a node signs to be owned by `sender`: it holds for the one transaction of that nonce."""
    return TAG_NODE + chain_id + sender + nonce.to_bytes(8, "big")


def invalid_message(*, chain_id: Digest, epoch: int, blob_id: BlobId, proof_hash: Digest) -> bytes:
    """Return what a member of that epoch signs when it has checked a proof that a blob is wrongly encoded."""
    return TAG_INVALID + chain_id + epoch.to_bytes(8, "big") + blob_id + proof_hash
