"""Transactions: operations, their bytes, and what can be told of one without the state (FORMATS.md 10). No keys here.

Whether a transaction has an effect is the ledger's to say; what is wrong here makes every block that holds it invalid.
"""

import itertools
from collections.abc import Callable, Sequence
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
    TAG_TRANSACTION,
    Digest,
    Level,
    NodeId,
    OwnerId,
    Signature,
    digest,
    verify_signature,
)
from economics.errors import Reason, Rejected
from economics.fields import Fields
from economics.genesis import ADDRESS_BYTES_MAX, ADDRESSES_MAX, Parameters
from economics.nodes import Outcome
from economics.slots import StakeId
from economics.votes import SIGNED_VOTE_BYTES, SignedVote

TRANSACTION_BYTES_MAX = 24_576
"""Holds a certificate of 256 members of one shard each twice over."""
BLOCK_BYTES_MAX = 2 << 20
"""Of the transactions of one block: two seconds of a 10 Mbit/s uplink."""
BLOCK_SIGNATURES_MAX = 2_000
"""Inside the arguments of a block's transactions: a tenth of a second to check, should the mempool not have."""
BASIS_POINTS = 10_000
VOTES_FORM = 1
HEADERS_FORM = 2

_HEAD = Struct(">16s32s32sQQQB")
"""Tag, chain ID, sender, nonce, fee, expiry height, operation."""
_LEAST_BYTES = _HEAD.size + SIGNATURE_BYTES

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


def _encode_text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return len(raw).to_bytes(1, "big") + raw


def _encode_arguments(operation: Operation) -> bytes:
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


def _decode_arguments(number: int, data: bytes, *, chain_id: Digest) -> Operation:
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


@dataclass(frozen=True, slots=True)
class Transaction:
    """What a sender asks of the ledger, once: `nonce` is the one of its account when it is executed."""

    chain_id: Digest
    sender: OwnerId
    nonce: int
    fee_frost: int
    expiry_height: int
    """It can be in a block of a height below this."""
    operation: Operation

    def signing_bytes(self) -> bytes:
        head = _HEAD.pack(
            TAG_TRANSACTION,
            self.chain_id,
            self.sender,
            self.nonce,
            self.fee_frost,
            self.expiry_height,
            _NUMBERS[type(self.operation)],
        )
        return head + _encode_arguments(self.operation)

    @property
    def encoded_bytes(self) -> int:
        """Its size on the wire, signature included; the fee is of fixed width, so it may still be open."""
        return len(self.signing_bytes()) + SIGNATURE_BYTES


def least_fee(transaction: Transaction, parameters: Parameters) -> int:
    """Return the FROST below which no node takes the transaction (FORMATS.md 10)."""
    return _least_fee(transaction.encoded_bytes, transaction.operation, parameters)


def _least_fee(size: int, operation: Operation, parameters: Parameters) -> int:
    return size * parameters.fee_frost_per_byte + inner_signatures(operation) * parameters.fee_frost_per_signature


@dataclass(frozen=True, slots=True)
class SignedTransaction:
    """A transaction as it travels."""

    transaction: Transaction
    signature: Signature
    raw: bytes
    """All its bytes, signature included."""
    hash: Digest

    @classmethod
    def decode(cls, data: bytes, *, chain_id: Digest) -> "SignedTransaction":
        """Return the transaction, or raise `Rejected`; its signatures are not yet checked."""
        if len(data) > TRANSACTION_BYTES_MAX:
            raise Rejected(Reason.TOO_LARGE, f"a transaction has at most {TRANSACTION_BYTES_MAX} bytes")
        if len(data) < _LEAST_BYTES or not data.startswith(TAG_TRANSACTION):
            raise Rejected(Reason.MALFORMED, "not a transaction")
        _, chain, sender, nonce, fee, expiry_height, number = _HEAD.unpack_from(data)
        if chain != chain_id:
            raise Rejected(Reason.WRONG_CHAIN, "a transaction of another network")
        operation = _decode_arguments(number, data[_HEAD.size : -SIGNATURE_BYTES], chain_id=chain_id)
        transaction = Transaction(chain_id, sender, nonce, fee, expiry_height, operation)
        return cls(transaction, Signature(data[-SIGNATURE_BYTES:]), data, digest(Level.TRANSACTION, data))

    def verify(self, *, parameters: Parameters) -> None:
        """Raise `Rejected` unless the sender, and a node that it registers, signed it, and it pays the least fee.

        That is all that can be told without the state, but for the expiry height and a certificate's signatures.
        """
        transaction = self.transaction
        least = _least_fee(len(self.raw), transaction.operation, parameters)
        if transaction.fee_frost < least:
            raise Rejected(Reason.LOW_FEE, f"{transaction.fee_frost} FROST, the least fee is {least}")
        verify_signature(transaction.sender, self.raw[:-SIGNATURE_BYTES], self.signature)
        if isinstance(transaction.operation, RegisterNode):
            message = node_message(chain_id=transaction.chain_id, sender=transaction.sender, nonce=transaction.nonce)
            verify_signature(transaction.operation.node, message, transaction.operation.signature)


def build(transaction: Transaction, sign: Callable[[bytes], Signature]) -> SignedTransaction:
    """Return the transaction with its sender's signature."""
    message = transaction.signing_bytes()
    signature = sign(message)
    raw = message + signature
    return SignedTransaction(transaction, signature, raw, digest(Level.TRANSACTION, raw))


def verify_bodies(transactions: Sequence[SignedTransaction], *, height: int) -> None:
    """Raise `Rejected` unless a block of this height may hold these transactions together (FORMATS.md 10).

    Each has been verified by itself.
    """
    if len({signed.hash for signed in transactions}) != len(transactions):
        raise Rejected(Reason.MALFORMED, "a transaction twice in one block")
    if sum(len(signed.raw) for signed in transactions) > BLOCK_BYTES_MAX:
        raise Rejected(Reason.TOO_LARGE, f"transactions of over {BLOCK_BYTES_MAX} bytes in one block")
    if sum(inner_signatures(signed.transaction.operation) for signed in transactions) > BLOCK_SIGNATURES_MAX:
        raise Rejected(Reason.TOO_LARGE, f"over {BLOCK_SIGNATURES_MAX} signatures in the arguments of one block")
    if any(signed.transaction.expiry_height <= height for signed in transactions):
        raise Rejected(Reason.EXPIRED, "a block holds a transaction that has expired")
