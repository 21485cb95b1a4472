"""Votes and their certificates (FORMATS.md 9): fixed-width bytes, signatures, weights. Decides nothing about views.

Signed bytes are never CBOR: two encodings of one vote would look like equivocation.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from economics.committee import Committee
from economics.crypto import (
    DIGEST_BYTES,
    SIGNATURE_BYTES,
    TAG_FINALIZE,
    TAG_NOTARIZE,
    TAG_NULLIFY,
    Digest,
    Signature,
    verify_signature,
)
from economics.errors import Reason, Rejected
from economics.fields import Fields

SIGNED_VOTE_BYTES = 115
CERTIFICATE_FIXED_BYTES = 51
SIGNER_BYTES = 2 + SIGNATURE_BYTES
ZERO_HASH = Digest(bytes(DIGEST_BYTES))
"""What a nullify vote has in place of a block hash."""

Verify = Callable[[bytes, bytes, bytes], None]
"""Raises `Rejected` unless (key, message, signature) hold together; a simulation may stand in for Ed25519."""


class Kind(IntEnum):
    """What a vote says of its view."""

    NOTARIZE = 1
    NULLIFY = 2
    FINALIZE = 3


TAGS = {Kind.NOTARIZE: TAG_NOTARIZE, Kind.NULLIFY: TAG_NULLIFY, Kind.FINALIZE: TAG_FINALIZE}


def _take_kind(fields: Fields) -> Kind:
    try:
        return Kind(fields.take_int(1))
    except ValueError as fault:
        raise Rejected(Reason.MALFORMED, "a vote is of kind 1, 2 or 3") from fault


def _verify_hash(kind: Kind, block_hash: bytes) -> None:
    if (kind is Kind.NULLIFY) != (block_hash == ZERO_HASH):
        raise Rejected(Reason.MALFORMED, "a nullify vote names no block, every other vote does")


@dataclass(frozen=True, slots=True)
class Vote:
    """What a member says of a view; `signer` is its index in the committee of `epoch`."""

    kind: Kind
    epoch: int
    view: int
    block_hash: Digest
    signer: int

    def encode(self, chain_id: Digest) -> bytes:
        """Return the 98 bytes that are signed."""
        return b"".join(
            (
                TAGS[self.kind],
                chain_id,
                self.epoch.to_bytes(8, "big"),
                self.view.to_bytes(8, "big"),
                self.block_hash,
                self.signer.to_bytes(2, "big"),
            )
        )


@dataclass(frozen=True, slots=True)
class SignedVote:
    """A vote with its signature, as it travels and as it is logged."""

    vote: Vote
    signature: Signature

    def encode(self) -> bytes:
        """Return the 115 bytes of the wire and of the log."""
        vote = self.vote
        return b"".join(
            (
                vote.kind.to_bytes(1, "big"),
                vote.epoch.to_bytes(8, "big"),
                vote.view.to_bytes(8, "big"),
                vote.block_hash,
                vote.signer.to_bytes(2, "big"),
                self.signature,
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> "SignedVote":
        fields = Fields(data, "a vote")
        kind, epoch, view = _take_kind(fields), fields.take_int(8), fields.take_int(8)
        block_hash, signer = Digest(fields.take(DIGEST_BYTES)), fields.take_int(2)
        signature = Signature(fields.take(SIGNATURE_BYTES))
        fields.end()
        _verify_hash(kind, block_hash)
        return cls(Vote(kind, epoch, view, block_hash, signer), signature)

    def verify(self, *, chain_id: Digest, committee: Committee, verify: Verify = verify_signature) -> None:
        """Raise `Rejected` unless the member of that index in the committee of that epoch signed it."""
        vote = self.vote
        if vote.epoch != committee.epoch:
            raise Rejected(Reason.WRONG_EPOCH, f"epoch {vote.epoch}, the committee is of epoch {committee.epoch}")
        if vote.signer >= len(committee.members):
            raise Rejected(Reason.UNKNOWN_SIGNER, f"no member {vote.signer}")
        verify(committee.members[vote.signer].node, vote.encode(chain_id), self.signature)


@dataclass(frozen=True, slots=True)
class VoteCertificate:
    """Votes of a quorum for one thing: a notarization, a nullification or a finalization by its kind."""

    kind: Kind
    epoch: int
    view: int
    block_hash: Digest
    signatures: tuple[tuple[int, Signature], ...]
    """(signer index, signature), indices ascending; no more signers than reach the quorum."""

    @classmethod
    def build(
        cls, vote: Vote, *, committee: Committee, signatures: Mapping[int, Signature]
    ) -> "VoteCertificate | None":
        """Return a certificate of what `vote` says, by no more signers than reach the quorum, or None."""
        chosen: list[int] = []
        weight = 0
        for index in sorted(signatures, key=lambda index: (-committee.members[index].shards, index)):
            if weight >= committee.quorum:
                break
            chosen.append(index)
            weight += committee.members[index].shards
        if weight < committee.quorum:
            return None
        picked = tuple((index, signatures[index]) for index in sorted(chosen))
        return cls(vote.kind, vote.epoch, vote.view, vote.block_hash, picked)

    def encode(self) -> bytes:
        return b"".join(
            (
                self.kind.to_bytes(1, "big"),
                self.epoch.to_bytes(8, "big"),
                self.view.to_bytes(8, "big"),
                self.block_hash,
                len(self.signatures).to_bytes(2, "big"),
                *(index.to_bytes(2, "big") + signature for index, signature in self.signatures),
            )
        )

    @classmethod
    def take(cls, fields: Fields) -> "VoteCertificate":
        """Return the certificate at the cursor; its signatures and weight are not yet checked."""
        kind, epoch, view = _take_kind(fields), fields.take_int(8), fields.take_int(8)
        block_hash, count = Digest(fields.take(DIGEST_BYTES)), fields.take_int(2)
        if fields.left < count * SIGNER_BYTES:
            raise Rejected(Reason.MALFORMED, "a certificate is shorter than its count")
        signatures = tuple((fields.take_int(2), Signature(fields.take(SIGNATURE_BYTES))) for _ in range(count))
        _verify_hash(kind, block_hash)
        return cls(kind, epoch, view, block_hash, signatures)

    @classmethod
    def decode(cls, data: bytes) -> "VoteCertificate":
        fields = Fields(data, "a vote certificate")
        certificate = cls.take(fields)
        fields.end()
        return certificate

    def verify(self, *, chain_id: Digest, committee: Committee, verify: Verify = verify_signature) -> None:
        """Raise `Rejected` unless distinct members with a quorum of shards, and no more than a quorum, signed it."""
        if self.epoch != committee.epoch:
            raise Rejected(Reason.WRONG_EPOCH, f"epoch {self.epoch}, the committee is of epoch {committee.epoch}")
        indices = [index for index, _ in self.signatures]
        if any(low >= high for low, high in itertools.pairwise(indices)):
            raise Rejected(Reason.MALFORMED, "signers are not in ascending order")
        if any(index >= len(committee.members) for index in indices):
            raise Rejected(Reason.UNKNOWN_SIGNER, "a signer is not of the committee")
        committee.verify_minimal_quorum(indices)
        for index, signature in self.signatures:
            vote = Vote(self.kind, self.epoch, self.view, self.block_hash, index)
            verify(committee.members[index].node, vote.encode(chain_id), signature)
