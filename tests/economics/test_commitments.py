"""Who signed what, for whom, until when: a byte changed anywhere, and it is nobody's word."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from economics.commitments import (
    CERTIFICATE_FIXED_BYTES,
    COMMITMENT_BYTES,
    EXPIRY_AHEAD_MAX,
    SIGNER_BYTES,
    STATEMENT_BYTES,
    TICKET_BYTES,
    Certificate,
    Commitment,
    OwnerStatement,
    Ticket,
)
from economics.committee import Committee
from economics.crypto import Digest, Signature
from economics.errors import Reason, Rejected
from tests.refusals import reason
from tests.small import (
    OTHER_OWNER,
    OWNER,
    UPLOADER,
    certify,
    commit,
    make_blob,
    make_genesis,
    make_statement,
    make_ticket,
    sign_statement,
)

GENESIS = make_genesis((1, 2, 4))
"""n = 7, quorum 5: the heaviest member needs any one other, and the two lightest are none."""
CHAIN = GENESIS.chain_id
COMMITTEE = GENESIS.committee
HEADER = make_blob(GENESIS.code, 1500).header
TICKET = make_ticket(GENESIS)
STATEMENT = make_statement(GENESIS, HEADER)
COMMITMENT, COMMITMENT_SIGNATURE = commit(STATEMENT, 2)


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def refusal(call: Callable[[], object]) -> Reason | None:
    try:
        call()
    except Rejected as verdict:
        return verdict.reason
    return None


class TestTicket:
    def verify(self, ticket: Ticket, *, height: int = 0, uploader: bytes = UPLOADER.public) -> None:
        ticket.verify(OWNER.sign(ticket.encode()), uploader=uploader, height=height)

    def test_is_read_back_from_its_152_bytes(self) -> None:
        assert len(TICKET.encode()) == TICKET_BYTES == 152
        assert Ticket.decode(TICKET.encode(), chain_id=CHAIN) == TICKET

    def test_holds_for_its_uploader_while_the_height_is_below_its_expiry(self) -> None:
        self.verify(TICKET)
        self.verify(TICKET, height=999)
        assert reason(self.verify, TICKET, height=1000) is Reason.EXPIRED
        assert reason(self.verify, TICKET, uploader=OWNER.public) is Reason.UNKNOWN_SIGNER

    def test_binds_nobody_for_ever(self) -> None:
        self.verify(replace(TICKET, expiry_height=EXPIRY_AHEAD_MAX))
        ahead = replace(TICKET, expiry_height=EXPIRY_AHEAD_MAX + 1)
        assert reason(self.verify, ahead) is Reason.TOO_FAR_AHEAD
        self.verify(ahead, height=1)

    def test_of_another_chain_size_or_tag_is_refused(self) -> None:
        data = TICKET.encode()
        assert reason(Ticket.decode, data, chain_id=Digest(bytes(32))) is Reason.WRONG_CHAIN
        for other in (data[:-1], data + b"\0", b"", flip(data, 15), STATEMENT.encode()):
            assert reason(Ticket.decode, other, chain_id=CHAIN) is Reason.MALFORMED

    def test_a_bit_changed_anywhere_is_refused(self) -> None:
        signature = OWNER.sign(TICKET.encode())
        for at in range(TICKET_BYTES):
            assert refusal(lambda at=at: self.check(flip(TICKET.encode(), at), signature)), at  # type: ignore[misc]
        for at in range(64):
            assert reason(self.check, TICKET.encode(), flip(signature, at)) is Reason.BAD_SIGNATURE
        assert reason(self.check, TICKET.encode(), signature[:-1]) is Reason.MALFORMED

    def check(self, data: bytes, signature: bytes) -> None:
        Ticket.decode(data, chain_id=CHAIN).verify(signature, uploader=UPLOADER.public, height=0)

    def test_signed_by_the_uploader_itself_is_refused(self) -> None:
        assert reason(self.check, TICKET.encode(), UPLOADER.sign(TICKET.encode())) is Reason.BAD_SIGNATURE


class TestOwnerStatement:
    def test_is_read_back_from_its_177_bytes(self) -> None:
        for deletable in (False, True):
            statement = replace(STATEMENT, deletable=deletable)
            assert len(statement.encode()) == STATEMENT_BYTES == 177
            assert OwnerStatement.decode(statement.encode(), chain_id=CHAIN) == statement

    def test_holds_while_the_height_is_below_its_expiry(self) -> None:
        signature = sign_statement(STATEMENT)
        STATEMENT.verify(signature, height=999)
        assert reason(STATEMENT.verify, signature, height=1000) is Reason.EXPIRED
        ahead = replace(STATEMENT, expiry_height=EXPIRY_AHEAD_MAX + 1)
        assert reason(ahead.verify, sign_statement(ahead), height=0) is Reason.TOO_FAR_AHEAD

    def test_of_another_chain_size_tag_or_deletable_is_refused(self) -> None:
        data = STATEMENT.encode()
        assert reason(OwnerStatement.decode, data, chain_id=Digest(bytes(32))) is Reason.WRONG_CHAIN
        two = data[:152] + b"\x02" + data[153:]
        for other in (data[:-1], data + b"\0", flip(data, 15), TICKET.encode(), two):
            assert reason(OwnerStatement.decode, other, chain_id=CHAIN) is Reason.MALFORMED

    def test_a_bit_changed_anywhere_is_refused(self) -> None:
        signature = sign_statement(STATEMENT)

        def check(data: bytes) -> None:
            OwnerStatement.decode(data, chain_id=CHAIN).verify(signature, height=0)

        check(STATEMENT.encode())
        for at in range(STATEMENT_BYTES):
            assert refusal(lambda at=at: check(flip(STATEMENT.encode(), at))), at  # type: ignore[misc]

    def test_its_hash_differs_with_every_field(self) -> None:
        changes: list[dict[str, Any]] = [
            {},
            {"chain_id": bytes(32)},
            {"owner": OTHER_OWNER.public},
            {"reservation": bytes([1]) * 32},
            {"blob_id": bytes(32)},
            {"length": 1},
            {"deletable": False},
            {"salt": bytes([1]) * 16},
            {"expiry_height": 1},
        ]
        assert len({replace(STATEMENT, **change).hash for change in changes}) == len(changes)


class TestCommitment:
    def test_is_130_bytes_and_taken_from_its_signer(self) -> None:
        assert len(COMMITMENT.encode()) == COMMITMENT_BYTES == 130
        COMMITMENT.verify(COMMITMENT_SIGNATURE, committee=COMMITTEE)

    @pytest.mark.parametrize(
        ("change", "want"),
        [
            ({"chain_id": bytes(32)}, Reason.BAD_SIGNATURE),
            ({"epoch": 1}, Reason.WRONG_EPOCH),
            ({"signer": 1}, Reason.BAD_SIGNATURE),
            ({"signer": 3}, Reason.UNKNOWN_SIGNER),
            ({"signer": 65_535}, Reason.UNKNOWN_SIGNER),
            ({"signer": -1}, Reason.UNKNOWN_SIGNER),
            ({"blob_id": bytes(32)}, Reason.BAD_SIGNATURE),
            ({"length": HEADER.length + 1}, Reason.BAD_SIGNATURE),
            ({"statement_hash": bytes(32)}, Reason.BAD_SIGNATURE),
        ],
    )
    def test_with_a_field_changed_is_refused(self, change: dict[str, Any], want: Reason) -> None:
        changed = replace(COMMITMENT, **change)
        assert reason(changed.verify, COMMITMENT_SIGNATURE, committee=COMMITTEE) is want

    def test_of_another_committee_s_epoch_is_refused_even_if_the_signature_holds(self) -> None:
        later = Committee(1, COMMITTEE.members)
        commitment, signature = commit(STATEMENT, 2, epoch=1)
        commitment.verify(signature, committee=later)
        assert reason(commitment.verify, signature, committee=COMMITTEE) is Reason.WRONG_EPOCH
        assert reason(COMMITMENT.verify, COMMITMENT_SIGNATURE, committee=later) is Reason.WRONG_EPOCH

    def test_two_statements_about_one_blob_are_signed_for_apart(self) -> None:
        other = replace(STATEMENT, salt=bytes([1]) * 16)
        again = Commitment.build(other, epoch=0, signer=2)
        assert reason(again.verify, COMMITMENT_SIGNATURE, committee=COMMITTEE) is Reason.BAD_SIGNATURE


class TestCertificate:
    def verify(self, certificate: Certificate) -> None:
        """As a stranger does: from bytes."""
        read = Certificate.decode(certificate.encode(), chain_id=CHAIN)
        assert read == certificate
        read.verify(committee=COMMITTEE)

    @pytest.mark.parametrize("signers", [(0, 2), (1, 2)])
    def test_of_a_quorum_holds_for_anyone_with_its_bytes(self, signers: tuple[int, ...]) -> None:
        certificate = certify(GENESIS, STATEMENT, signers)
        assert len(certificate.encode()) == CERTIFICATE_FIXED_BYTES + len(signers) * SIGNER_BYTES == 251 + 66 * 2
        self.verify(certificate)

    def test_weight_is_counted_in_shards_not_in_signers(self) -> None:
        for signers in ((), (0,), (2,), (0, 1)):
            assert reason(self.verify, certify(GENESIS, STATEMENT, signers)) is Reason.NO_QUORUM

    def test_a_signer_too_many_is_refused(self) -> None:
        assert reason(self.verify, certify(GENESIS, STATEMENT, (0, 1, 2))) is Reason.NOT_MINIMAL

    @pytest.mark.parametrize("signers", [(2, 1), (2, 2), (0, 2, 2), (1, 2, 0)])
    def test_signers_not_strictly_ascending_are_refused(self, signers: tuple[int, ...]) -> None:
        assert reason(self.verify, certify(GENESIS, STATEMENT, signers)) is Reason.MALFORMED

    def test_a_signer_that_is_no_member_is_refused(self) -> None:
        assert reason(self.verify, certify(GENESIS, STATEMENT, (1, 2, 3))) is Reason.UNKNOWN_SIGNER
        assert reason(self.verify, certify(GENESIS, STATEMENT, (2, 7))) is Reason.UNKNOWN_SIGNER

    def test_of_another_epoch_is_refused(self) -> None:
        assert reason(self.verify, certify(GENESIS, STATEMENT, (1, 2), epoch=1)) is Reason.WRONG_EPOCH

    def test_does_not_expire(self) -> None:
        self.verify(certify(GENESIS, replace(STATEMENT, expiry_height=1), (1, 2)))

    def test_a_bit_changed_anywhere_is_refused(self) -> None:
        data = certify(GENESIS, STATEMENT, (1, 2)).encode()
        for at in range(len(data)):
            forged = flip(data, at)
            assert refusal(
                lambda forged=forged: Certificate.decode(forged, chain_id=CHAIN).verify(committee=COMMITTEE)  # type: ignore[misc]
            ), at

    def test_signatures_of_another_statement_or_another_member_are_refused(self) -> None:
        other = replace(STATEMENT, salt=bytes([1]) * 16)
        theirs = commit(other, 1)[1], commit(other, 2)[1]
        forged = Certificate(STATEMENT, sign_statement(STATEMENT), 0, ((1, theirs[0]), (2, theirs[1])))
        assert reason(self.verify, forged) is Reason.BAD_SIGNATURE
        ones = commit(STATEMENT, 1)[1]
        borrowed = Certificate(STATEMENT, sign_statement(STATEMENT), 0, ((1, ones), (2, ones)))
        assert reason(self.verify, borrowed) is Reason.BAD_SIGNATURE

    def test_a_statement_that_the_owner_did_not_sign_is_refused(self) -> None:
        forged = replace(
            certify(GENESIS, STATEMENT, (1, 2)), statement_signature=sign_statement(STATEMENT, OTHER_OWNER)
        )
        assert reason(self.verify, forged) is Reason.BAD_SIGNATURE

    def test_of_another_chain_or_size_is_refused(self) -> None:
        data = certify(GENESIS, STATEMENT, (1, 2)).encode()
        assert reason(Certificate.decode, data, chain_id=Digest(bytes(32))) is Reason.WRONG_CHAIN
        for other in (b"", data[:-1], data + b"\0", data[:200], data[:251] + data[251 + 66 :]):
            assert reason(Certificate.decode, other, chain_id=CHAIN) is Reason.MALFORMED

    @settings(max_examples=300)
    @given(st.binary(max_size=600), st.sampled_from([b"", STATEMENT.encode(), STATEMENT.encode() + bytes(74)]))
    @example(b"\xff" * 74, STATEMENT.encode())
    def test_of_any_bytes_is_refused(self, tail: bytes, front: bytes) -> None:
        with pytest.raises(Rejected):
            Certificate.decode(front + tail, chain_id=CHAIN).verify(committee=COMMITTEE)

    @given(st.lists(st.integers(1, 9), min_size=2, max_size=7).filter(lambda shares: sum(shares) >= 4), st.data())
    def test_is_built_of_the_heaviest_signers_and_no_more_than_reach_the_quorum(
        self, shares: list[int], data: st.DataObject
    ) -> None:
        committee = make_genesis(shares).committee
        present = data.draw(st.sets(st.integers(0, len(shares) - 1)))
        signatures = {index: Signature(bytes([index]) * 64) for index in sorted(present, reverse=True)}
        made = Certificate.build(
            STATEMENT, Signature(bytes(64)), committee=Committee(5, committee.members), signatures=signatures
        )
        reaching = [
            chosen
            for count in range(len(present) + 1)
            for chosen in combinations(sorted(present), count)
            if committee.weight(chosen) >= committee.quorum
        ]
        if made is None:
            assert not reaching
            return
        chosen = tuple(index for index, _ in made.signatures)
        assert chosen in reaching
        assert len(chosen) == min(map(len, reaching))
        assert committee.weight(chosen) == max(committee.weight(one) for one in reaching if len(one) == len(chosen))
        assert made.signatures == tuple((index, signatures[index]) for index in chosen)
        assert made.epoch == 5

    def test_what_is_built_is_what_is_verified(self) -> None:
        signatures = {index: commit(STATEMENT, index)[1] for index in range(3)}
        made = Certificate.build(STATEMENT, sign_statement(STATEMENT), committee=COMMITTEE, signatures=signatures)
        assert made == certify(GENESIS, STATEMENT, (1, 2))
        self.verify(certify(GENESIS, STATEMENT, (1, 2)))
        del signatures[2]
        assert (
            Certificate.build(STATEMENT, sign_statement(STATEMENT), committee=COMMITTEE, signatures=signatures) is None
        )


def test_a_signature_under_one_tag_is_none_under_another() -> None:
    tags = {data[:16] for data in (TICKET.encode(), STATEMENT.encode(), COMMITMENT.encode())}
    assert len(tags) == 3
