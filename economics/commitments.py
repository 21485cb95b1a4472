"""Signed statements about a blob and the certificate they make (FORMATS.md 4). Fixed-width bytes; no keys here."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NewType

from economics.blob import BlobId
from economics.committee import Committee
from economics.crypto import (
    DIGEST_BYTES,
    KEY_BYTES,
    SIGNATURE_BYTES,
    TAG_BYTES,
    TAG_COMMIT,
    TAG_OWNER,
    TAG_TICKET,
    Digest,
    Level,
    OwnerId,
    Signature,
    digest,
    verify_signature,
)
from economics.errors import Reason, Rejected
from economics.fields import Fields

ReservationId = NewType("ReservationId", bytes)
"""32 bytes; names prepaid storage."""

ZERO_RESERVATION = ReservationId(bytes(DIGEST_BYTES))
"""Names no reservation: served within a bounded budget."""
EXPIRY_AHEAD_MAX = 1_000_000
"""A statement or ticket expires at most this many heights ahead (11 days at 1 s each): nobody is bound for ever."""
SALT_BYTES = 16
TICKET_BYTES = 152
STATEMENT_BYTES = 177
COMMITMENT_BYTES = 130
CERTIFICATE_FIXED_BYTES = STATEMENT_BYTES + SIGNATURE_BYTES + 10
SIGNER_BYTES = 2 + SIGNATURE_BYTES


def _open_fields(data: bytes, *, size: int, tag: bytes, chain_id: Digest, what: str) -> Fields:
    """Check size, tag and chain of a signed object and return its remaining fields."""
    if len(data) != size or data[:TAG_BYTES] != tag:
        raise Rejected(Reason.MALFORMED, f"not {what} of {size} bytes")
    fields = Fields(data, what)
    fields.take(TAG_BYTES)
    if fields.take(DIGEST_BYTES) != chain_id:
        raise Rejected(Reason.WRONG_CHAIN, f"{what} of another network")
    return fields


def _verify_expiry(expiry_height: int, height: int, what: str) -> None:
    if expiry_height <= height:
        raise Rejected(Reason.EXPIRED, f"{what} expired at height {expiry_height}")
    if expiry_height > height + EXPIRY_AHEAD_MAX:
        raise Rejected(Reason.TOO_FAR_AHEAD, f"{what} expires over {EXPIRY_AHEAD_MAX} heights ahead")


@dataclass(frozen=True, slots=True)
class Ticket:
    """Lets one peer upload against a reservation before the blob ID is known. Signed by the owner."""

    chain_id: Digest
    owner: OwnerId
    reservation: ReservationId
    uploader: bytes
    """The Ed25519 key that the uploading peer authenticates as, 32 bytes."""
    expiry_height: int

    def encode(self) -> bytes:
        height = self.expiry_height.to_bytes(8, "big")
        return b"".join((TAG_TICKET, self.chain_id, self.owner, self.reservation, self.uploader, height))

    @classmethod
    def decode(cls, data: bytes, *, chain_id: Digest) -> "Ticket":
        fields = _open_fields(data, size=TICKET_BYTES, tag=TAG_TICKET, chain_id=chain_id, what="a ticket")
        return cls(
            chain_id,
            OwnerId(fields.take(KEY_BYTES)),
            ReservationId(fields.take(DIGEST_BYTES)),
            fields.take(KEY_BYTES),
            fields.take_int(8),
        )

    def verify(self, signature: bytes, *, uploader: bytes, height: int) -> None:
        """Raise `Rejected` unless the owner signed it, for this peer, and it still holds at `height`."""
        if self.uploader != uploader:
            raise Rejected(Reason.UNKNOWN_SIGNER, "the ticket is another peer's")
        _verify_expiry(self.expiry_height, height, "the ticket")
        verify_signature(self.owner, self.encode(), signature)


@dataclass(frozen=True, slots=True)
class OwnerStatement:
    """Closes an upload: the owner wants this blob stored against this reservation. Signed by the owner."""

    chain_id: Digest
    owner: OwnerId
    reservation: ReservationId
    blob_id: BlobId
    length: int
    deletable: bool
    salt: bytes
    """16 bytes; two statements about one blob differ, since each is used up by its certificate."""
    expiry_height: int

    def encode(self) -> bytes:
        return b"".join(
            (
                TAG_OWNER,
                self.chain_id,
                self.owner,
                self.reservation,
                self.blob_id,
                self.length.to_bytes(8, "big"),
                self.deletable.to_bytes(1, "big"),
                self.salt,
                self.expiry_height.to_bytes(8, "big"),
            )
        )

    @classmethod
    def decode(cls, data: bytes, *, chain_id: Digest) -> "OwnerStatement":
        fields = _open_fields(data, size=STATEMENT_BYTES, tag=TAG_OWNER, chain_id=chain_id, what="an owner statement")
        owner, reservation = OwnerId(fields.take(KEY_BYTES)), ReservationId(fields.take(DIGEST_BYTES))
        blob_id, length, deletable = BlobId(fields.take(DIGEST_BYTES)), fields.take_int(8), fields.take_int(1)
        if deletable > 1:
            raise Rejected(Reason.MALFORMED, "deletable is 0 or 1")
        salt, expiry_height = fields.take(SALT_BYTES), fields.take_int(8)
        return cls(chain_id, owner, reservation, blob_id, length, bool(deletable), salt, expiry_height)

    @property
    def hash(self) -> Digest:
        return digest(Level.STATEMENT, self.encode())

    def verify(self, signature: bytes, *, height: int) -> None:
        """Raise `Rejected` unless the owner signed it and it still holds at `height`."""
        _verify_expiry(self.expiry_height, height, "the owner statement")
        verify_signature(self.owner, self.encode(), signature)


@dataclass(frozen=True, slots=True)
class Commitment:
    """A member's signed word that all slivers it owes of a blob are on its disk: FORMATS.md 4, storage commitment."""

    chain_id: Digest
    epoch: int
    signer: int
    """The member's index in the committee of `epoch`."""
    blob_id: BlobId
    length: int
    statement_hash: Digest

    @classmethod
    def build(cls, statement: OwnerStatement, *, epoch: int, signer: int) -> "Commitment":
        return cls(statement.chain_id, epoch, signer, statement.blob_id, statement.length, statement.hash)

    def encode(self) -> bytes:
        return b"".join(
            (
                TAG_COMMIT,
                self.chain_id,
                self.epoch.to_bytes(8, "big"),
                self.signer.to_bytes(2, "big"),
                self.blob_id,
                self.length.to_bytes(8, "big"),
                self.statement_hash,
            )
        )

    def verify(self, signature: bytes, *, committee: Committee) -> None:
        """Raise `Rejected` unless the member of that index in the committee of that epoch signed it."""
        if self.epoch != committee.epoch:
            raise Rejected(Reason.WRONG_EPOCH, f"epoch {self.epoch}, the committee is of epoch {committee.epoch}")
        if not 0 <= self.signer < len(committee.members):
            raise Rejected(Reason.UNKNOWN_SIGNER, f"no member {self.signer}")
        verify_signature(committee.members[self.signer].node, self.encode(), signature)


@dataclass(frozen=True, slots=True)
class Certificate:
    """An owner statement with commitments of a quorum: proves to anyone with the committee that the blob is held."""

    statement: OwnerStatement
    statement_signature: Signature
    epoch: int
    signatures: tuple[tuple[int, Signature], ...]
    """(signer index, signature), indices ascending."""

    @classmethod
    def build(
        cls,
        statement: OwnerStatement,
        statement_signature: Signature,
        *,
        committee: Committee,
        signatures: Mapping[int, Signature],
    ) -> "Certificate | None":
        """Return a certificate of no more signers than reach the quorum, heaviest first, or None."""
        chosen: list[int] = []
        for index in sorted(signatures, key=lambda index: (-committee.members[index].shards, index)):
            if committee.weight(chosen) >= committee.quorum:
                break
            chosen.append(index)
        if committee.weight(chosen) < committee.quorum:
            return None
        picked = tuple((index, signatures[index]) for index in sorted(chosen))
        return cls(statement, statement_signature, committee.epoch, picked)

    def encode(self) -> bytes:
        return b"".join(
            (
                self.statement.encode(),
                self.statement_signature,
                self.epoch.to_bytes(8, "big"),
                len(self.signatures).to_bytes(2, "big"),
                *(index.to_bytes(2, "big") + signature for index, signature in self.signatures),
            )
        )

    @classmethod
    def decode(cls, data: bytes, *, chain_id: Digest) -> "Certificate":
        if len(data) < CERTIFICATE_FIXED_BYTES:
            raise Rejected(Reason.MALFORMED, "the certificate is too short")
        statement = OwnerStatement.decode(data[:STATEMENT_BYTES], chain_id=chain_id)
        fields = Fields(data[STATEMENT_BYTES:], "a certificate")
        statement_signature = Signature(fields.take(SIGNATURE_BYTES))
        epoch, count = fields.take_int(8), fields.take_int(2)
        if len(data) != CERTIFICATE_FIXED_BYTES + count * SIGNER_BYTES:
            raise Rejected(Reason.MALFORMED, "the certificate's size is not its count's")
        signatures = tuple((fields.take_int(2), Signature(fields.take(SIGNATURE_BYTES))) for _ in range(count))
        return cls(statement, statement_signature, epoch, signatures)

    def verify(self, *, committee: Committee) -> None:
        """Raise `Rejected` unless a quorum of `committee`, and no more than a quorum, signed for the owner's statement.

        The expiry height is not judged: it bounds when a ledger may take the certificate, not what was true.
        """
        indices = [index for index, _ in self.signatures]
        if any(low >= high for low, high in itertools.pairwise(indices)):
            raise Rejected(Reason.MALFORMED, "signers are not in ascending order")
        if any(index >= len(committee.members) for index in indices):
            raise Rejected(Reason.UNKNOWN_SIGNER, "a signer is not of the committee")
        committee.verify_minimal_quorum(indices)
        verify_signature(self.statement.owner, self.statement.encode(), self.statement_signature)
        for index, signature in self.signatures:
            Commitment.build(self.statement, epoch=self.epoch, signer=index).verify(signature, committee=committee)
