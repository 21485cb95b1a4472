"""Votes and certificates: their bytes, and what is refused of them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from economics.committee import Committee
from economics.crypto import Digest, Signature
from economics.errors import Reason, Rejected
from economics.votes import CERTIFICATE_FIXED_BYTES, SIGNED_VOTE_BYTES, SIGNER_BYTES, ZERO_HASH, Kind, SignedVote, Vote
from economics.votes import VoteCertificate as Certificate
from tests.refusals import reason
from tests.small import OPERATORS, make_genesis

CHAIN = Digest(bytes([7]) * 32)
BLOCK = Digest(bytes([8]) * 32)
COMMITTEE = make_genesis((2, 2, 3)).committee  # n = 7, f = 2, q = 5
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "blocks.json").read_text(encoding="utf-8"))


def vote(kind: Kind, signer: int, *, view: int = 9, epoch: int = 0, block_hash: Digest = BLOCK) -> SignedVote:
    made = Vote(kind, epoch, view, ZERO_HASH if kind is Kind.NULLIFY else block_hash, signer)
    return SignedVote(made, OPERATORS[signer].sign(made.encode(CHAIN)))


def certify(kind: Kind, signers: Sequence[int], *, view: int = 9, epoch: int = 0) -> Certificate:
    votes = [vote(kind, signer, view=view, epoch=epoch) for signer in signers]
    first = votes[0].vote if votes else vote(kind, 0, view=view, epoch=epoch).vote
    signatures = tuple((signed.vote.signer, signed.signature) for signed in votes)
    return Certificate(kind, epoch, view, first.block_hash, signatures)


def check(certificate: Certificate) -> None:
    """As a stranger does: from bytes."""
    read = Certificate.decode(certificate.encode())
    assert read == certificate
    read.verify(chain_id=CHAIN, committee=COMMITTEE)


class TestVote:
    @pytest.mark.parametrize("kind", list(Kind))
    def test_is_98_bytes_signed_and_115_sent_and_comes_back(self, kind: Kind) -> None:
        signed = vote(kind, 2)
        assert len(signed.vote.encode(CHAIN)) == 98
        assert len(signed.encode()) == SIGNED_VOTE_BYTES == 115
        assert SignedVote.decode(signed.encode()) == signed
        signed.verify(chain_id=CHAIN, committee=COMMITTEE)

    @pytest.mark.parametrize("kind", list(Kind))
    def test_its_bytes_are_those_of_the_reference(self, kind: Kind) -> None:
        known = VECTORS["votes"][kind.name.lower()]
        block_hash = ZERO_HASH if kind is Kind.NULLIFY else BLOCK
        made = Vote(kind, 5, 1_000, block_hash, 2)
        assert made.encode(CHAIN).hex() == known["signed"]
        assert SignedVote(made, OPERATORS[2].sign(made.encode(CHAIN))).encode().hex() == known["wire"]

    def test_every_field_is_signed(self) -> None:
        signed = vote(Kind.NOTARIZE, 1)
        changes: list[dict[str, object]] = [
            {"kind": Kind.FINALIZE},
            {"view": 10},
            {"block_hash": Digest(bytes([9]) * 32)},
            {"signer": 2},
        ]
        for change in changes:
            changed = replace(signed, vote=replace(signed.vote, **change))  # type: ignore[arg-type]
            assert reason(changed.verify, chain_id=CHAIN, committee=COMMITTEE) is Reason.BAD_SIGNATURE
        assert reason(signed.verify, chain_id=BLOCK, committee=COMMITTEE) is Reason.BAD_SIGNATURE

    def test_of_another_epoch_or_of_nobody_is_refused_before_anything_is_computed(self) -> None:
        """CometBFT ABC-0021: a panic on an index out of range."""
        later = Committee(1, COMMITTEE.members)
        assert reason(vote(Kind.NULLIFY, 1).verify, chain_id=CHAIN, committee=later) is Reason.WRONG_EPOCH
        for signer in (3, 65_535):
            signed = replace(vote(Kind.NULLIFY, 1), vote=Vote(Kind.NULLIFY, 0, 9, ZERO_HASH, signer))
            assert reason(signed.verify, chain_id=CHAIN, committee=COMMITTEE) is Reason.UNKNOWN_SIGNER

    def test_a_kind_or_hash_that_says_nothing_is_refused(self) -> None:
        data = vote(Kind.NOTARIZE, 1).encode()
        for kind in (0, 4, 255):
            assert reason(SignedVote.decode, bytes([kind]) + data[1:]) is Reason.MALFORMED
        assert reason(SignedVote.decode, bytes([Kind.NULLIFY]) + data[1:]) is Reason.MALFORMED
        none = data[:17] + ZERO_HASH + data[49:]
        assert reason(SignedVote.decode, none) is Reason.MALFORMED
        assert reason(SignedVote.decode, bytes([Kind.FINALIZE]) + none[1:]) is Reason.MALFORMED

    @given(st.binary(max_size=120) | st.binary(min_size=115, max_size=115))
    def test_of_any_bytes_is_refused_or_the_same_bytes_again(self, data: bytes) -> None:
        try:
            read = SignedVote.decode(data)
        except Rejected:
            return
        assert read.encode() == data

    def test_of_another_length_is_refused(self) -> None:
        data = vote(Kind.NULLIFY, 0).encode()
        for other in (b"", data[:-1], data + b"\0"):
            assert reason(SignedVote.decode, other) is Reason.MALFORMED


class TestCertificate:
    @pytest.mark.parametrize("kind", list(Kind))
    @pytest.mark.parametrize("signers", [(0, 2), (1, 2)])
    def test_of_a_quorum_holds_for_anyone_with_its_bytes(self, kind: Kind, signers: tuple[int, ...]) -> None:
        certificate = certify(kind, signers)
        assert len(certificate.encode()) == CERTIFICATE_FIXED_BYTES + 2 * SIGNER_BYTES == 51 + 2 * 66
        check(certificate)

    def test_its_bytes_are_those_of_the_reference(self) -> None:
        assert certify(Kind.NOTARIZE, (0, 2), view=1_000, epoch=5).encode().hex() == VECTORS["certificate"]

    def test_weight_is_counted_in_shards(self) -> None:
        """A commit of absent signatures passed elsewhere (tendermint-rs)."""
        for signers in ((), (0,), (2,), (0, 1)):
            assert reason(check, certify(Kind.NOTARIZE, signers)) is Reason.NO_QUORUM
        assert reason(check, certify(Kind.NOTARIZE, (0, 1, 2))) is Reason.NOT_MINIMAL

    @pytest.mark.parametrize("signers", [(2, 1), (2, 2), (0, 2, 2), (1, 2, 0)])
    def test_signers_not_strictly_ascending_are_refused(self, signers: tuple[int, ...]) -> None:
        assert reason(check, certify(Kind.NULLIFY, signers)) is Reason.MALFORMED

    def test_a_signer_that_is_no_member_is_refused(self) -> None:
        assert reason(check, certify(Kind.NULLIFY, (1, 2, 3))) is Reason.UNKNOWN_SIGNER
        assert reason(check, certify(Kind.NULLIFY, (2, 7))) is Reason.UNKNOWN_SIGNER

    def test_nobody_speaks_for_another(self) -> None:
        certificate = certify(Kind.NULLIFY, (1, 2))
        ones = certificate.signatures[0][1]
        assert reason(check, replace(certificate, signatures=((1, ones), (2, ones)))) is Reason.BAD_SIGNATURE

    def test_what_it_says_cannot_be_changed(self) -> None:
        certificate = certify(Kind.NOTARIZE, (1, 2))
        for changed in (
            replace(certificate, kind=Kind.FINALIZE),
            replace(certificate, view=10),
            replace(certificate, block_hash=CHAIN),
        ):
            assert reason(check, changed) is Reason.BAD_SIGNATURE
        assert reason(check, replace(certificate, epoch=1)) is Reason.WRONG_EPOCH

    def test_a_bit_changed_anywhere_is_refused(self) -> None:
        data = certify(Kind.NOTARIZE, (1, 2)).encode()
        for at in range(len(data)):
            forged = bytes([*data[:at], data[at] ^ 1, *data[at + 1 :]])
            with pytest.raises(Rejected):
                Certificate.decode(forged).verify(chain_id=CHAIN, committee=COMMITTEE)

    @settings(max_examples=200)
    @given(st.binary(max_size=300), st.booleans())
    def test_of_any_bytes_is_refused(self, tail: bytes, front: bool) -> None:
        data = (certify(Kind.NULLIFY, ()).encode()[:49] if front else b"") + tail
        try:
            read = Certificate.decode(data)
        except Rejected:
            return
        assert read.encode() == data
        with pytest.raises(Rejected):
            read.verify(chain_id=CHAIN, committee=COMMITTEE)

    def test_a_count_of_more_than_there_is_costs_nothing(self) -> None:
        data = certify(Kind.NULLIFY, (1, 2)).encode()
        assert reason(Certificate.decode, data[:49] + b"\xff\xff" + data[51:]) is Reason.MALFORMED

    @given(st.lists(st.integers(1, 9), min_size=2, max_size=7).filter(lambda shares: sum(shares) >= 4), st.data())
    def test_what_is_built_is_valid_whenever_the_weight_is_there(self, shares: list[int], data: st.DataObject) -> None:
        committee = make_genesis(shares).committee
        present = data.draw(st.sets(st.integers(0, len(shares) - 1)))
        signatures = {index: Signature(bytes([index]) * 64) for index in sorted(present, reverse=True)}
        made = Certificate.build(vote(Kind.NOTARIZE, 0).vote, committee=committee, signatures=signatures)
        enough = any(
            committee.weight(chosen) >= committee.quorum
            for count in range(len(present) + 1)
            for chosen in combinations(sorted(present), count)
        )
        assert (made is not None) == enough
        if made is not None:
            made.verify(chain_id=CHAIN, committee=committee, verify=lambda signer, message, signature: None)
            assert Certificate.decode(made.encode()) == made


def test_the_same_words_under_another_tag_are_another_message() -> None:
    signed = {Vote(kind, 0, 9, BLOCK, 1).encode(CHAIN) for kind in Kind}
    assert len({data[:16] for data in signed}) == 3
    assert len({data[16:] for data in signed}) == 1
