"""Commitments from anywhere make a certificate at the quorum, and one forged entry spoils its whole batch."""

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from economics import cbor
from economics.commitments import EXPIRY_AHEAD_MAX, Certificate, Commitment, OwnerStatement
from economics.committee import Committee
from economics.crypto import Digest, NodeId, Signature
from economics.errors import Reason, Rejected
from gossip.pubsub import Ignored
from p2pnode.slivers.certifier import (
    BATCH_BYTES_MAX,
    BATCH_ENTRIES_MAX,
    TALLIES_MAX,
    UNSENT_MAX,
    Certifier,
    Entry,
    build_batch,
    parse_batch,
)
from tests.refusals import reason
from tests.small import OPERATORS, OTHER_OWNER, certify, commit, make_blob, make_genesis, make_statement, sign_statement

GENESIS = make_genesis((1, 2, 4))
"""n = 7, quorum 5."""
CHAIN = GENESIS.chain_id
PLAIN = make_statement(GENESIS, make_blob(GENESIS.code, 10).header)


def statement(salt: int = 0) -> OwnerStatement:
    return replace(PLAIN, salt=salt.to_bytes(16, "big"))


def entry(signer: int, salt: int = 0, *, epoch: int = 0) -> Entry:
    made = statement(salt)
    return made, sign_statement(made), *commit(made, signer, epoch=epoch)


def committee_of(epoch: int) -> Committee:
    return Committee(epoch, GENESIS.members)


def certifier(epoch: int = 0) -> Certifier:
    return Certifier(chain_id=CHAIN, committee=committee_of(epoch), committee_of=committee_of)


def node(member: int) -> NodeId:
    return NodeId(OPERATORS[member].public)


def verify(one: Certifier, data: bytes, *, height: int = 0, author: int = 0) -> list[Entry]:
    """Judge a batch of a member as gossip does."""
    return one.verify_batch(one.open_batch(data, author=node(author)), height=height)


def unsigned(salt: int) -> Entry:
    """An entry whose signatures nobody looks at, for tests of bounds."""
    made = statement(salt)
    return made, Signature(bytes(64)), commit(PLAIN, 0)[0], Signature(bytes(64))


class TestBatch:
    def test_is_read_back(self) -> None:
        entries = [entry(1), entry(1, salt=1), entry(1, salt=2)]
        assert parse_batch(build_batch(entries), chain_id=CHAIN) == entries
        assert verify(certifier(), build_batch(entries), author=1) == entries

    def test_of_the_most_entries_fits_a_message(self) -> None:
        full = build_batch([entry(0)] * BATCH_ENTRIES_MAX)
        assert len(full) <= BATCH_BYTES_MAX
        assert len(parse_batch(full, chain_id=CHAIN)) == BATCH_ENTRIES_MAX
        with pytest.raises(Rejected):
            parse_batch(build_batch([entry(0)] * (BATCH_ENTRIES_MAX + 1)), chain_id=CHAIN)

    def test_without_entries_is_refused(self) -> None:
        assert reason(parse_batch, cbor.encode([]), chain_id=CHAIN) is Reason.MALFORMED

    @pytest.mark.parametrize("place", [0, 1, 2, 3, 4])
    @pytest.mark.parametrize("value", [None, True, False, -1, 2**64 - 1, "x" * 64, b"", bytes(63), bytes(178), [], {}])
    def test_with_a_field_of_another_kind_is_refused(self, place: int, value: cbor.Value) -> None:
        row: list[cbor.Value] = [statement().encode(), sign_statement(statement()), 0, 1, commit(statement(), 1)[1]]
        assert len(parse_batch(cbor.encode([list(row)]), chain_id=CHAIN)) == 1
        row[place] = value
        if place == 2 and value == 2**64 - 1:  # an epoch, if a far one
            assert len(parse_batch(cbor.encode([row]), chain_id=CHAIN)) == 1
        else:
            assert reason(parse_batch, cbor.encode([row]), chain_id=CHAIN) is Reason.MALFORMED

    def test_with_a_field_missing_or_too_many_is_refused(self) -> None:
        row: list[cbor.Value] = [statement().encode(), sign_statement(statement()), 0, 1, commit(statement(), 1)[1]]
        for other in (row[:4], [*row, 0], []):
            assert reason(parse_batch, cbor.encode([other]), chain_id=CHAIN) is Reason.MALFORMED

    def test_of_another_chain_is_refused(self) -> None:
        assert reason(parse_batch, build_batch([entry(0)]), chain_id=Digest(bytes(32))) is Reason.WRONG_CHAIN

    @settings(max_examples=300)
    @given(st.binary(max_size=300), st.integers(0, 2000), st.integers(1, 255))
    def test_of_any_bytes_is_refused_or_is_those_bytes(self, noise: bytes, at: int, change: int) -> None:
        mangled = bytearray(build_batch([entry(0), entry(0, salt=1)]))
        mangled[at % len(mangled)] ^= change
        for data in (noise, bytes(mangled)):
            with suppress(Rejected):
                assert build_batch(parse_batch(data, chain_id=CHAIN)) == data
            with pytest.raises((Rejected, Ignored)):
                verify(certifier(), data)

    def test_with_one_forged_commitment_is_refused_whole(self) -> None:
        good, (made, signature, commitment, _) = entry(0), entry(0, salt=1)
        forged = made, signature, commitment, OPERATORS[2].sign(commitment.encode())
        batch = build_batch([good, forged])
        assert reason(verify, certifier(), batch) is Reason.BAD_SIGNATURE

    def test_with_one_forged_statement_is_refused_whole(self) -> None:
        good, (made, _, commitment, signature) = entry(0), entry(0, salt=1)
        forged = made, sign_statement(made, OTHER_OWNER), commitment, signature
        assert reason(verify, certifier(), build_batch([good, forged])) is Reason.BAD_SIGNATURE

    def test_with_a_statement_that_does_not_hold_at_this_height_goes_nowhere_and_is_nobody_s_fault(self) -> None:
        """Who passed it on may be a block behind, or ahead: it must not be taken for a liar."""
        batch = build_batch([entry(0)])
        assert len(verify(certifier(), batch, height=999)) == 1
        with pytest.raises(Ignored):
            verify(certifier(), batch, height=1000)
        made = replace(statement(), expiry_height=EXPIRY_AHEAD_MAX + 6)
        far = build_batch([(made, sign_statement(made), *commit(made, 0))])
        assert len(verify(certifier(), far, height=6)) == 1
        with pytest.raises(Ignored):
            verify(certifier(), far, height=5)

    def test_of_others_commitments_is_refused_before_a_signature_is_checked(self) -> None:
        """Else anyone could put what he heard together anew, and every node would check and pass on each message."""
        for batch, author in ((build_batch([entry(1)]), 0), (build_batch([entry(0), entry(1)]), 0)):
            assert reason(certifier().open_batch, batch, author=node(author)) is Reason.UNKNOWN_SIGNER
        assert reason(certifier().open_batch, build_batch([entry(1)]), author=node(6)) is Reason.UNKNOWN_SIGNER

    def test_about_a_statement_that_is_known_is_not_excused_from_the_owner_s_signature(self) -> None:
        """Otherwise the tally could be forgotten and made again with the forged one, and certificates with it."""
        one = certifier()
        one.add(entry(0))
        made, _, commitment, signature = entry(1)
        assert verify(one, build_batch([entry(1)]), height=1000, author=1) == [entry(1)]  # known: checked once
        forged = made, sign_statement(made, OTHER_OWNER), commitment, signature
        assert reason(verify, one, build_batch([forged]), author=1) is Reason.BAD_SIGNATURE


class TestNeighbouringEpochs:
    """Nodes execute the block that ends an epoch at different times; that is nobody's fault, and no commitment."""

    @pytest.mark.parametrize("epoch", [1, 3])
    def test_are_left_out_of_a_batch_and_the_rest_is_taken(self, epoch: int) -> None:
        batch = build_batch([entry(1, epoch=epoch), entry(1, epoch=2)])
        assert verify(certifier(epoch=2), batch, author=1) == [entry(1, epoch=2)]
        assert verify(certifier(epoch=2), build_batch([entry(0, epoch=epoch)])) == []

    @pytest.mark.parametrize("epoch", [0, 4, 2**64 - 1])
    def test_end_there_and_a_batch_of_any_other_goes_nowhere(self, epoch: int) -> None:
        """A node that catches up must not take all the others for liars, nor they it."""
        made = statement()
        far = made, sign_statement(made), *commit(made, 1, epoch=epoch)
        batch = build_batch([entry(1, epoch=2), far])
        with pytest.raises(Ignored):
            verify(certifier(epoch=2), batch, author=1)

    @pytest.mark.parametrize("epoch", [1, 3])
    def test_are_signed_for_by_the_committee_of_that_time(self, epoch: int) -> None:
        """Member 1 of the batch's epoch is another node than member 1 of this one."""
        there = Committee(epoch, GENESIS.members[::-1])
        one = Certifier(chain_id=CHAIN, committee=committee_of(2), committee_of=lambda _: there)
        made = statement()
        commitment = Commitment.build(made, epoch=epoch, signer=2)
        good = made, sign_statement(made), commitment, OPERATORS[0].sign(commitment.encode())
        assert verify(one, build_batch([good])) == []
        assert reason(verify, one, build_batch([entry(2, epoch=epoch)])) is Reason.BAD_SIGNATURE
        assert reason(verify, one, build_batch([entry(2, epoch=epoch)]), author=2) is Reason.UNKNOWN_SIGNER

    def test_go_nowhere_while_their_committee_is_not_known(self) -> None:
        one = Certifier(chain_id=CHAIN, committee=committee_of(2), committee_of=lambda _: None)
        with pytest.raises(Ignored):
            verify(one, build_batch([entry(1, epoch=3)]), author=1)

    @pytest.mark.parametrize("epoch", [1, 3])
    def test_excuse_no_forged_signature(self, epoch: int) -> None:
        """A batch is passed on whole, and may be counted only when the next epoch has begun here too."""
        made, signature, commitment, _ = entry(1, epoch=epoch)
        forged = made, signature, commitment, OPERATORS[2].sign(commitment.encode())
        batch = build_batch([entry(1, epoch=2), forged])
        assert reason(verify, certifier(epoch=2), batch, author=1) is Reason.BAD_SIGNATURE
        stranger = made, signature, *commit(made, 7, epoch=epoch)
        assert reason(verify, certifier(epoch=2), build_batch([stranger]), author=7) is Reason.UNKNOWN_SIGNER

    @pytest.mark.parametrize("epoch", [0, 2])
    def test_give_a_commitment_no_weight(self, epoch: int) -> None:
        one = certifier(epoch=1)
        assert one.add(entry(1, epoch=1)) is None
        assert one.add(entry(2, epoch=epoch)) is None
        certificate = one.add(entry(2, epoch=1))
        assert certificate == certify(GENESIS, statement(), (1, 2), epoch=1)
        assert one.add(entry(0, epoch=epoch), own=True) is None


class TestBoundary:
    def test_makes_what_was_signed_before_it_count_for_nothing(self) -> None:
        one = certifier()
        one.add(entry(2))
        one.begin_epoch(committee_of(1))
        assert one.add(entry(1, epoch=1)) is None
        assert one.add(entry(0, epoch=1)) is None
        assert one.add(entry(2, epoch=1)) == certify(GENESIS, statement(), (1, 2), epoch=1)

    def test_makes_what_is_signed_anew_a_certificate_anew(self) -> None:
        one = certifier()
        one.add(entry(1))
        assert one.add(entry(2)) is not None
        one.begin_epoch(committee_of(1))
        one.add(entry(1, epoch=1))
        certificate = one.add(entry(2, epoch=1))
        assert certificate is not None
        certificate.verify(committee=committee_of(1))

    def test_keeps_what_is_still_to_be_gossiped(self) -> None:
        one = certifier()
        one.add(entry(0), own=True)
        one.begin_epoch(committee_of(1))
        one.add(entry(0, salt=1, epoch=1), own=True)
        batch = one.take_batch()
        assert batch is not None
        assert parse_batch(batch, chain_id=CHAIN) == [entry(0), entry(0, salt=1, epoch=1)]
        assert verify(one, batch) == [entry(0, salt=1, epoch=1)]

    def test_has_a_statement_s_newest_commitment_gossiped_alone(self) -> None:
        one = certifier()
        one.add(entry(0), own=True)
        one.begin_epoch(committee_of(1))
        one.add(entry(0, epoch=1), own=True)
        batch = one.take_batch()
        assert batch is not None
        assert parse_batch(batch, chain_id=CHAIN) == [entry(0, epoch=1)]


class TestTally:
    def test_is_complete_exactly_at_the_quorum(self) -> None:
        one = certifier()
        assert one.add(entry(0)) is None
        assert one.add(entry(1)) is None
        assert one.add(entry(1)) is None  # twice is once
        certificate = one.add(entry(2))
        assert certificate == certify(GENESIS, statement(), (1, 2))
        certificate.verify(committee=GENESIS.committee)

    def test_counts_each_statement_apart(self) -> None:
        one = certifier()
        assert one.add(entry(2)) is None
        assert one.add(entry(1, salt=1)) is None
        assert one.add(entry(1)) == certify(GENESIS, statement(), (1, 2))

    def test_that_is_complete_answers_own_commitments_only(self) -> None:
        one = certifier()
        one.add(entry(1))
        first = one.add(entry(2))
        assert isinstance(first, Certificate)
        assert one.add(entry(0)) is None
        assert one.add(entry(0), own=True) is first
        assert one.add(entry(0), own=True) is first

    def test_is_forgotten_when_as_many_newer_ones_of_its_member_wait_as_are_kept(self) -> None:
        one = certifier()
        one.add(entry(0))
        one.add(entry(2))
        for salt in range(1, TALLIES_MAX):
            one.add(unsigned(salt))
        assert one.add(entry(1), own=True) is not None
        one.add(unsigned(TALLIES_MAX))
        assert len(one._tallies) == TALLIES_MAX
        assert one.add(entry(1), own=True) is None  # the oldest is gone, its certificate too

    def test_of_an_honest_member_outlasts_all_that_another_makes_up(self) -> None:
        """Else one member could keep every upload whose client went away from being certified."""
        one = certifier()
        one.add(entry(2))
        for salt in range(1, 2 * TALLIES_MAX):
            one.add(unsigned(salt))
        assert len(one._tallies) == TALLIES_MAX
        assert one.add(entry(1)) is not None


class TestGossip:
    def test_takes_own_commitments_once_and_nobody_else_s(self) -> None:
        one = certifier()
        assert one.take_batch() is None
        one.add(entry(0), own=True)
        one.add(entry(1))
        batch = one.take_batch()
        assert batch is not None
        assert parse_batch(batch, chain_id=CHAIN) == [entry(0)]
        assert one.take_batch() is None

    def test_goes_out_in_batches_oldest_first(self) -> None:
        one = certifier()
        for salt in range(BATCH_ENTRIES_MAX + 1):
            one.add(entry(0, salt), own=True)
        batches = [one.take_batch(), one.take_batch(), one.take_batch()]
        salts = [
            [int.from_bytes(made.salt, "big") for made, *_ in parse_batch(batch, chain_id=CHAIN)]
            for batch in batches
            if batch is not None
        ]
        assert salts == [list(range(BATCH_ENTRIES_MAX)), [BATCH_ENTRIES_MAX]]

    def test_waits_in_a_queue_with_a_bound(self) -> None:
        one = certifier()
        for salt in range(UNSENT_MAX + 10):
            one.add(unsigned(salt), own=True)
        assert len(one._unsent) == UNSENT_MAX
        batch = one.take_batch()
        assert batch is not None
        assert parse_batch(batch, chain_id=CHAIN)[0][0] == statement(10)
