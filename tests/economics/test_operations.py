"""Storage: what is bought, cut, joined, spent on blobs and given back. And each way to get more than was paid for."""

from dataclasses import replace
from typing import Any

import pytest

from economics.arguments import (
    Attributes,
    Certify,
    CertifyAgain,
    Delete,
    Extend,
    HandOver,
    Merge,
    Operation,
    Reserve,
    SplitEpochs,
    SplitUnits,
)
from economics.blob import BlobId
from economics.commitments import EXPIRY_AHEAD_MAX, ZERO_RESERVATION, Certificate, OwnerStatement, ReservationId
from economics.errors import Reason
from economics.genesis import Genesis
from economics.ledger import Code
from economics.operations import EPOCHS_AHEAD_MAX
from economics.slots import state_key, statement_slot
from economics.state import Bucket, Reservation
from economics.transactions import SignedTransaction
from p2pnode.keys import Key
from tests.chain import EXPIRY_HEIGHT, Chain, key_of, made_by, make_id, reservations_of, sign
from tests.refusals import reason
from tests.small import OPERATORS, OTHER_OWNER, OWNER, commit, make_genesis

GENESIS = make_genesis()
PARAMETERS = replace(GENESIS.parameters, capacity_units=100, storage_frost_per_unit=7, write_frost_per_unit=3)
SMALL = replace(GENESIS, parameters=PARAMETERS)
THIRD = OPERATORS[3]
ALICE, BOB = key_of(OWNER), key_of(OTHER_OWNER)
LENGTH = 100_000
UNITS = SMALL.code.encoded_units(LENGTH)
BLOB, OTHER_BLOB = BlobId(make_id(1)), BlobId(make_id(2))
NOWHERE = ReservationId(make_id(3))
U64_MAX = 2**64 - 1


@pytest.fixture
def chain() -> Chain:
    return Chain.begin(SMALL)


def used(chain: Chain, epochs: int = 12) -> list[int]:
    return [chain.ledger.bucket(epoch).used_units for epoch in range(epochs)]


def make_statement(
    reservation: ReservationId, *, genesis: Genesis = SMALL, owner: Key = OWNER, **changes: Any
) -> OwnerStatement:
    plain = OwnerStatement(genesis.chain_id, key_of(owner), reservation, BLOB, LENGTH, True, bytes(16), EXPIRY_HEIGHT)
    return replace(plain, **changes)


def certify(chain: Chain, reservation: ReservationId, *, owner: Key = OWNER, by: Key = THIRD, **changes: Any) -> Code:
    statement = make_statement(reservation, owner=owner, **changes)
    return chain.run(by, Certify(chain.certificate(statement, owner)))


def store(chain: Chain, *, key: Key = OWNER, units: int = UNITS, end_epoch: int = 5, **changes: Any) -> ReservationId:
    """Reserve, and certify BLOB under it."""
    reservation = chain.reserve(key, Reserve(units, chain.ledger.epoch, end_epoch))
    assert certify(chain, reservation, owner=key, **changes) is Code.OK
    return reservation


class TestReserve:
    def test_is_paid_into_each_epoch_and_its_writing_into_this_one(self, chain: Chain) -> None:
        before = chain.ledger.account(ALICE).balance_frost
        signed = sign(chain.ledger, OWNER, Reserve(10, 1, 4))
        chain.block(signed)
        fee = signed.transaction.fee_frost
        assert [chain.ledger.bucket(epoch) for epoch in range(5)] == [
            Bucket(0, 0, fee + 10 * 3),
            *(Bucket(epoch, 10, 10 * 7) for epoch in (1, 2, 3)),
            Bucket(4, 0, 0),
        ]
        assert chain.ledger.account(ALICE).balance_frost == before - fee - 10 * (3 * 7 + 3)
        assert chain.ledger.reservation(made_by(signed)) == Reservation(made_by(signed), ALICE, 10, 1, 4)

    @pytest.mark.parametrize(
        ("operation", "want"),
        [
            (Reserve(0, 0, 1), Code.WRONG_AMOUNT),
            (Reserve(1, 0, 0), Code.WRONG_EPOCHS),
            (Reserve(1, 2, 1), Code.WRONG_EPOCHS),
            (Reserve(1, 0, EPOCHS_AHEAD_MAX + 1), Code.TOO_FAR_AHEAD),
            (Reserve(1, 0, U64_MAX), Code.TOO_FAR_AHEAD),
            (Reserve(1, U64_MAX - 1, U64_MAX), Code.TOO_FAR_AHEAD),
            (Reserve(101, 0, 1), Code.OVER_CAPACITY),
            (Reserve(U64_MAX, 0, 53), Code.OVER_CAPACITY),
            (Reserve(100, 0, 53), Code.OK),
        ],
    )
    def test_of_impossible_sizes_or_epochs_fails(self, chain: Chain, operation: Reserve, want: Code) -> None:
        assert chain.run(OWNER, operation) is want

    def test_of_a_past_epoch_fails_and_53_ahead_is_counted_from_now(self, chain: Chain) -> None:
        chain.end_epoch()
        assert chain.run(OWNER, Reserve(1, 0, 2)) is Code.WRONG_EPOCHS
        assert chain.run(OWNER, Reserve(1, 1, 54)) is Code.OK
        assert chain.run(OWNER, Reserve(1, 53, 55)) is Code.TOO_FAR_AHEAD

    def test_of_more_than_one_of_its_epochs_has_left_fails(self, chain: Chain) -> None:
        assert chain.run(OWNER, Reserve(60, 2, 4)) is Code.OK
        assert chain.run(OTHER_OWNER, Reserve(41, 0, 3)) is Code.OVER_CAPACITY
        assert chain.run(OTHER_OWNER, Reserve(40, 0, 3)) is Code.OK
        assert chain.run(OTHER_OWNER, Reserve(100, 4, 5)) is Code.OK
        assert used(chain, 6) == [40, 40, 100, 60, 100, 0]

    def test_that_costs_more_than_there_is_or_than_any_integer_holds_fails(self) -> None:
        dear = replace(PARAMETERS, storage_frost_per_unit=1 << 40, capacity_units=1 << 40)
        chain = Chain.begin(replace(GENESIS, parameters=dear))
        assert chain.run(OWNER, Reserve(1, 0, 1)) is Code.UNFUNDED
        assert chain.run(OWNER, Reserve(1 << 40, 0, 53)) is Code.UNFUNDED
        assert used(chain) == [0] * 12


class TestReservation:
    @pytest.fixture
    def held(self, chain: Chain) -> ReservationId:
        return chain.reserve(OWNER, Reserve(10, 0, 6))

    def owned(self, chain: Chain) -> list[tuple[int, int, int]]:
        found = reservations_of(chain.ledger, ALICE)
        return sorted((one.units, one.start_epoch, one.end_epoch) for one in found)

    @pytest.mark.parametrize(
        "operation",
        [
            SplitUnits(NOWHERE, 1),
            SplitEpochs(NOWHERE, 1),
            HandOver(NOWHERE, BOB),
            CertifyAgain(NOWHERE, BLOB, False),
            Merge(NOWHERE, ZERO_RESERVATION),
        ],
    )
    def test_that_does_not_exist_is_not_found(self, chain: Chain, operation: Operation) -> None:
        assert chain.run(OWNER, operation) is Code.NOT_FOUND

    def test_of_another_owner_stays_as_it_is(self, chain: Chain, held: ReservationId) -> None:
        mine = chain.reserve(OTHER_OWNER, Reserve(10, 0, 6))
        before = chain.ledger.reservation(held)
        for operation in (
            SplitUnits(held, 1),
            SplitEpochs(held, 1),
            HandOver(held, BOB),
            Merge(held, mine),
            Merge(mine, held),
            CertifyAgain(held, BLOB, False),
        ):
            assert chain.run(OTHER_OWNER, operation) is Code.NOT_OWNER, operation
        assert chain.ledger.reservation(held) == before

    def test_is_split_by_units_and_merged_again(self, chain: Chain, held: ReservationId) -> None:
        part = chain.reserve(OWNER, SplitUnits(held, 3))
        assert self.owned(chain) == [(3, 0, 6), (7, 0, 6)]
        assert chain.run(OWNER, Merge(part, held)) is Code.OK
        assert chain.ledger.reservation(part) == Reservation(part, ALICE, 10, 0, 6)
        assert chain.ledger.reservation(held) is None

    @pytest.mark.parametrize("units", [0, 10, 11, U64_MAX])
    def test_is_not_split_into_nothing_or_more_than_it_has(self, chain: Chain, held: ReservationId, units: int) -> None:
        assert chain.run(OWNER, SplitUnits(held, units)) is Code.WRONG_AMOUNT

    @pytest.mark.parametrize("swapped", [False, True])
    def test_is_split_by_epochs_and_merged_again(self, chain: Chain, held: ReservationId, swapped: bool) -> None:
        late = chain.reserve(OWNER, SplitEpochs(held, 2))
        assert self.owned(chain) == [(10, 0, 2), (10, 2, 6)]
        assert chain.run(OWNER, Merge(late, held) if swapped else Merge(held, late)) is Code.OK
        assert self.owned(chain) == [(10, 0, 6)]

    @pytest.mark.parametrize("epoch", [0, 1, 6, 7, U64_MAX])
    def test_is_not_split_at_an_epoch_that_leaves_a_part_without_one(
        self, chain: Chain, held: ReservationId, epoch: int
    ) -> None:
        chain.end_epoch()
        assert chain.run(OWNER, SplitEpochs(held, epoch)) is Code.WRONG_EPOCHS

    def test_is_not_merged_with_itself(self, chain: Chain, held: ReservationId) -> None:
        assert chain.run(OWNER, Merge(held, held)) is Code.NOT_MERGEABLE
        assert self.owned(chain) == [(10, 0, 6)]

    @pytest.mark.parametrize("other", [Reserve(10, 7, 8), Reserve(9, 6, 8), Reserve(10, 5, 8), Reserve(10, 0, 5)])
    def test_is_not_merged_with_one_that_does_not_fit(self, chain: Chain, held: ReservationId, other: Reserve) -> None:
        made = chain.reserve(OWNER, other)
        for pair in (Merge(held, made), Merge(made, held)):
            assert chain.run(OWNER, pair) is Code.NOT_MERGEABLE
        assert len(self.owned(chain)) == 2

    def test_is_merged_with_one_that_began_at_another_time_once_both_have_begun(
        self, chain: Chain, held: ReservationId
    ) -> None:
        later = chain.reserve(OWNER, Reserve(4, 1, 6))
        assert chain.run(OWNER, Merge(held, later)) is Code.NOT_MERGEABLE
        chain.end_epoch()
        assert chain.run(OWNER, Merge(held, later)) is Code.OK
        assert self.owned(chain) == [(14, 0, 6)]

    def test_is_handed_over_with_all_rights(self, chain: Chain, held: ReservationId) -> None:
        assert chain.run(OWNER, HandOver(held, BOB)) is Code.OK
        assert chain.run(OWNER, SplitUnits(held, 1)) is Code.NOT_OWNER
        assert chain.run(OTHER_OWNER, SplitUnits(held, 1)) is Code.OK
        assert self.owned(chain) == []
        assert len(reservations_of(chain.ledger, BOB)) == 2

    def test_leaves_the_state_when_it_ends(self, chain: Chain, held: ReservationId) -> None:
        for _ in range(5):
            chain.end_epoch()
        assert chain.ledger.reservation(held) is not None
        chain.end_epoch()
        assert chain.ledger.reservation(held) is None
        assert self.owned(chain) == []

    def test_takes_no_capacity_twice_and_gives_none_back(self, chain: Chain, held: ReservationId) -> None:
        before = used(chain)
        part = chain.reserve(OWNER, SplitUnits(held, 3))
        chain.reserve(OWNER, SplitEpochs(part, 2))
        chain.run(OWNER, HandOver(part, BOB))
        assert used(chain) == before == [10] * 6 + [0] * 6


class TestCertify:
    def test_takes_the_blob_s_units_and_makes_it_live(self, chain: Chain) -> None:
        reservation = chain.reserve(OWNER, Reserve(UNITS + 2, 0, 5))
        certified_at = chain.ledger.height + 1
        assert certify(chain, reservation) is Code.OK
        blob, entry = chain.ledger.blob(BLOB), chain.ledger.entry(BLOB, reservation)
        assert blob is not None
        assert entry is not None
        assert (blob.length, blob.certified_height, blob.certified_epoch) == (LENGTH, certified_at, 0)
        assert blob.entries == ((5, 1),)
        assert (entry.owner, entry.units, entry.end_epoch, entry.deletable) == (ALICE, UNITS, 5, True)
        assert chain.ledger.reservation(reservation) == Reservation(reservation, ALICE, 2, 0, 5)

    def test_ends_a_reservation_that_it_fills(self, chain: Chain) -> None:
        reservation = store(chain)
        assert chain.ledger.reservation(reservation) is None
        assert chain.ledger.entries_of(ALICE)
        assert used(chain)[:6] == [UNITS] * 5 + [0]

    def test_needs_a_reservation_that_covers_this_epoch(self, chain: Chain) -> None:
        later = chain.reserve(OWNER, Reserve(UNITS, 1, 3))
        assert certify(chain, later) is Code.NOT_COVERED
        chain.end_epoch()
        assert certify(chain, later) is Code.OK

    def test_of_an_empty_blob_costs_a_unit(self, chain: Chain) -> None:
        reservation = chain.reserve(OWNER, Reserve(1, 0, 1))
        assert certify(chain, reservation, length=0) is Code.OK
        assert chain.ledger.reservation(reservation) is None

    def test_a_blob_has_an_entry_for_each_reservation_and_is_certified_once(self, chain: Chain) -> None:
        first = store(chain)
        before = chain.ledger.blob(BLOB)
        assert before is not None
        chain.end_epoch()
        second = store(chain, key=OTHER_OWNER, end_epoch=9)
        assert chain.ledger.blob(BLOB) == replace(before, entries=((5, 1), (9, 1)))
        entries = chain.ledger.entry(BLOB, first), chain.ledger.entry(BLOB, second)
        assert [entry and entry.owner for entry in entries] == [ALICE, BOB]

    @pytest.mark.parametrize("signers", [(), (0, 1), (0, 1, 2, 3)])
    def test_needs_just_a_quorum(self, chain: Chain, signers: tuple[int, ...]) -> None:
        reservation = chain.reserve(OWNER, Reserve(UNITS, 0, 5))
        statement = make_statement(reservation)
        signatures = tuple((index, commit(statement, index)[1]) for index in signers)
        certificate = Certificate(statement, OWNER.sign(statement.encode()), 0, signatures)
        assert chain.run(OWNER, Certify(certificate)) is Code.BAD_CERTIFICATE
        assert chain.ledger.blob(BLOB) is None

    def test_a_statement_is_remembered_until_it_expires(self, chain: Chain) -> None:
        reservation = chain.reserve(OWNER, Reserve(3 * UNITS, 0, 5))
        expiry_height = chain.ledger.height + 4
        statement = make_statement(reservation, expiry_height=expiry_height)
        assert certify(chain, reservation, expiry_height=expiry_height) is Code.OK
        key = state_key(statement_slot(statement.hash))
        assert chain.ledger.tree.get(key) is not None
        assert chain.run(OWNER, Delete(BLOB, reservation)) is Code.OK
        assert certify(chain, reservation, expiry_height=expiry_height) is Code.USED_STATEMENT
        assert chain.ledger.tree.get(key) is not None
        assert certify(chain, reservation, expiry_height=expiry_height) is Code.EXPIRED_STATEMENT
        assert chain.ledger.height == expiry_height
        assert chain.ledger.tree.get(key) is None


class TestCertifyAgain:
    def test_keeps_a_live_blob_under_one_s_own_reservation(self, chain: Chain) -> None:
        store(chain)
        mine = chain.reserve(OTHER_OWNER, Reserve(UNITS, 0, 9))
        assert chain.run(OTHER_OWNER, CertifyAgain(mine, BLOB, False)) is Code.OK
        entry = chain.ledger.entry(BLOB, mine)
        assert entry is not None
        assert (entry.owner, entry.units, entry.end_epoch, entry.deletable) == (BOB, UNITS, 9, False)
        for _ in range(5):
            chain.end_epoch()
        assert [blob.entries for blob in chain.ledger.live_blobs()] == [((9, 1),)]

    def test_of_a_blob_that_is_not_live_or_not_any_more_fails(self, chain: Chain) -> None:
        mine = chain.reserve(OTHER_OWNER, Reserve(UNITS, 0, 9))
        assert chain.run(OTHER_OWNER, CertifyAgain(mine, BLOB, True)) is Code.NOT_FOUND
        store(chain, end_epoch=1)
        chain.end_epoch()
        assert chain.run(OTHER_OWNER, CertifyAgain(mine, BLOB, True)) is Code.NOT_FOUND

    def test_needs_space_and_epochs_as_the_first_time(self, chain: Chain) -> None:
        store(chain)
        for operation, want in (
            (Reserve(UNITS - 1, 0, 9), Code.NO_SPACE),
            (Reserve(UNITS, 1, 9), Code.NOT_COVERED),
        ):
            mine = chain.reserve(OTHER_OWNER, operation)
            assert chain.run(OTHER_OWNER, CertifyAgain(mine, BLOB, True)) is want

    def test_under_the_same_reservation_fails(self, chain: Chain) -> None:
        mine = store(chain, units=2 * UNITS)
        assert chain.run(OWNER, CertifyAgain(mine, BLOB, True)) is Code.ALREADY_CERTIFIED


class TestExtend:
    def test_buys_more_epochs_as_a_reservation_does(self, chain: Chain) -> None:
        mine = store(chain, end_epoch=2)
        before, rewards = chain.ledger.account(ALICE).balance_frost, chain.ledger.bucket(0).rewards_frost
        signed = sign(chain.ledger, OWNER, Extend(BLOB, mine, 2))
        assert chain.block(signed).receipts[0].code is Code.OK
        fee = signed.transaction.fee_frost
        assert chain.ledger.account(ALICE).balance_frost == before - fee - UNITS * (2 * 7 + 3)
        assert chain.ledger.bucket(0).rewards_frost == rewards + fee + UNITS * 3
        assert [chain.ledger.bucket(epoch) for epoch in (2, 3, 4)] == [
            Bucket(2, UNITS, UNITS * 7),
            Bucket(3, UNITS, UNITS * 7),
            Bucket(4, 0, 0),
        ]
        entry, blob = chain.ledger.entry(BLOB, mine), chain.ledger.blob(BLOB)
        assert entry is not None
        assert blob is not None
        assert (entry.end_epoch, blob.entries) == (4, ((4, 1),))

    def test_goes_at_most_53_epochs_ahead(self, chain: Chain) -> None:
        mine = store(chain, end_epoch=2)
        assert chain.run(OWNER, Extend(BLOB, mine, 0)) is Code.WRONG_AMOUNT
        assert chain.run(OWNER, Extend(BLOB, mine, 52)) is Code.TOO_FAR_AHEAD
        assert chain.run(OWNER, Extend(BLOB, mine, 65_535)) is Code.TOO_FAR_AHEAD
        assert chain.run(OWNER, Extend(BLOB, mine, 51)) is Code.OK

    def test_needs_capacity_and_money(self, chain: Chain) -> None:
        mine = store(chain, end_epoch=2)
        chain.run(OTHER_OWNER, Reserve(100 - UNITS + 1, 3, 4))
        assert chain.run(OWNER, Extend(BLOB, mine, 2)) is Code.OVER_CAPACITY
        assert chain.run(OWNER, Extend(BLOB, mine, 1)) is Code.OK

    def test_of_another_s_entry_or_one_that_has_ended_fails(self, chain: Chain) -> None:
        mine = store(chain, end_epoch=1)
        assert chain.run(OTHER_OWNER, Extend(BLOB, mine, 1)) is Code.NOT_OWNER
        assert chain.run(OWNER, Extend(OTHER_BLOB, mine, 1)) is Code.NOT_FOUND
        chain.end_epoch()
        assert chain.run(OWNER, Extend(BLOB, mine, 1)) is Code.NOT_FOUND


class TestDelete:
    def test_gives_the_storage_back_and_no_money(self, chain: Chain) -> None:
        mine = store(chain)
        chain.end_epoch()
        before = chain.ledger.account(ALICE).balance_frost
        signed = sign(chain.ledger, OWNER, Delete(BLOB, mine))
        assert chain.block(signed).receipts[0].code is Code.OK
        assert chain.ledger.account(ALICE).balance_frost == before - signed.transaction.fee_frost
        returned = made_by(signed)
        assert chain.ledger.reservation(returned) == Reservation(returned, ALICE, UNITS, 1, 5)
        assert chain.ledger.blob(BLOB) is None
        assert chain.ledger.entries_of(ALICE) == []
        assert used(chain)[1:6] == [UNITS] * 4 + [0]

    def test_of_one_owner_leaves_the_other_s_blob_alone(self, chain: Chain) -> None:
        mine, theirs = store(chain), store(chain, key=OTHER_OWNER, end_epoch=7)
        assert chain.run(OWNER, Delete(BLOB, mine)) is Code.OK
        blob = chain.ledger.blob(BLOB)
        assert blob is not None
        assert blob.entries == ((7, 1),)
        assert chain.run(OWNER, Delete(BLOB, theirs)) is Code.NOT_OWNER
        assert chain.run(OWNER, Delete(BLOB, mine)) is Code.NOT_FOUND

    def test_of_what_was_promised_to_stay_fails(self, chain: Chain) -> None:
        mine = store(chain, deletable=False)
        assert chain.run(OWNER, Delete(BLOB, mine)) is Code.NOT_DELETABLE
        assert chain.ledger.blob(BLOB) is not None


class TestAttributes:
    def test_say_what_a_live_entry_is(self, chain: Chain) -> None:
        mine = store(chain)
        assert chain.run(OWNER, Attributes(BLOB, mine, "text/plain", "café")) is Code.OK
        entry = chain.ledger.entry(BLOB, mine)
        assert entry is not None
        assert (entry.content_type, entry.name) == ("text/plain", "café")
        assert chain.run(OTHER_OWNER, Attributes(BLOB, mine, "text/html", "")) is Code.NOT_OWNER
        assert chain.run(OWNER, Attributes(BLOB, mine, "", "")) is Code.OK

    def test_outlive_an_extension_and_not_the_entry(self, chain: Chain) -> None:
        mine = store(chain, end_epoch=1)
        chain.run(OWNER, Attributes(BLOB, mine, "text/plain", "a"))
        chain.run(OWNER, Extend(BLOB, mine, 1))
        entry = chain.ledger.entry(BLOB, mine)
        assert entry is not None
        assert entry.name == "a"
        chain.end_epoch()
        chain.end_epoch()
        assert chain.run(OWNER, Attributes(BLOB, mine, "", "")) is Code.NOT_FOUND


class TestAttacks:
    """Each is tried by someone with every key but those it names as a victim's."""

    def test_a_certificate_replayed_after_delete_stores_nothing(self, chain: Chain) -> None:
        reservation = chain.reserve(OWNER, Reserve(3 * UNITS, 0, 5))
        certificate = chain.certificate(make_statement(reservation), OWNER)
        assert chain.run(OWNER, Certify(certificate)) is Code.OK
        assert chain.run(OWNER, Delete(BLOB, reservation)) is Code.OK
        assert chain.run(THIRD, Certify(certificate)) is Code.USED_STATEMENT
        assert chain.ledger.blob(BLOB) is None

    def test_a_used_statement_certified_by_other_signers_stores_nothing(self, chain: Chain) -> None:
        reservation = chain.reserve(OWNER, Reserve(3 * UNITS, 0, 5))
        statement = make_statement(reservation)
        first = chain.certificate(statement, OWNER)
        assert chain.run(OWNER, Certify(first)) is Code.OK
        assert chain.run(OWNER, Delete(BLOB, reservation)) is Code.OK
        others = tuple((index, commit(statement, index)[1]) for index in (1, 2, 3))
        assert chain.run(THIRD, Certify(replace(first, signatures=others))) is Code.USED_STATEMENT

    def test_a_length_that_the_quorum_did_not_sign_is_refused(self, chain: Chain) -> None:
        reservation = chain.reserve(OWNER, Reserve(UNITS, 0, 5))
        honest = chain.certificate(make_statement(reservation), OWNER)
        lie = make_statement(reservation, length=1)
        forged = replace(honest, statement=lie, statement_signature=OWNER.sign(lie.encode()))
        assert chain.run(OWNER, Certify(forged)) is Code.BAD_CERTIFICATE

    def test_a_length_other_than_the_live_blob_s_is_refused(self, chain: Chain) -> None:
        store(chain)
        mine = chain.reserve(OTHER_OWNER, Reserve(UNITS, 0, 5))
        assert certify(chain, mine, owner=OTHER_OWNER, length=1) is Code.WRONG_LENGTH

    @pytest.mark.parametrize("length", [LENGTH + 20_000, 1 << 40, U64_MAX])
    def test_a_length_over_what_the_reservation_covers_is_refused(self, chain: Chain, length: int) -> None:
        mine = chain.reserve(OWNER, Reserve(UNITS, 0, 5))
        assert certify(chain, mine, length=length) is Code.NO_SPACE

    def test_one_reservation_does_not_pay_for_two_blobs(self, chain: Chain) -> None:
        mine = chain.reserve(OWNER, Reserve(2 * UNITS - 1, 0, 5))
        assert certify(chain, mine) is Code.OK
        assert certify(chain, mine, blob_id=OTHER_BLOB) is Code.NO_SPACE
        exactly = chain.reserve(OTHER_OWNER, Reserve(2 * UNITS, 0, 5))
        for blob_id, want in ((BLOB, Code.OK), (OTHER_BLOB, Code.OK), (BlobId(make_id(9)), Code.NOT_FOUND)):
            assert certify(chain, exactly, owner=OTHER_OWNER, blob_id=blob_id) is want

    def test_two_certificates_of_one_blob_and_reservation_make_one_entry(self, chain: Chain) -> None:
        mine = store(chain, units=2 * UNITS)
        assert certify(chain, mine, salt=bytes([1]) * 16) is Code.ALREADY_CERTIFIED

    def test_who_submits_for_another_pays_the_fee_and_gains_nothing(self, chain: Chain) -> None:
        reservation = chain.reserve(OWNER, Reserve(UNITS, 0, 5))
        owner, third = chain.ledger.account(ALICE), chain.ledger.account(key_of(THIRD))
        signed = sign(chain.ledger, THIRD, Certify(chain.certificate(make_statement(reservation), OWNER)))
        assert chain.block(signed).receipts[0].code is Code.OK
        paid = third.balance_frost - signed.transaction.fee_frost
        assert chain.ledger.account(key_of(THIRD)) == replace(third, balance_frost=paid, nonce=1)
        assert chain.ledger.account(ALICE) == owner
        assert [entry.owner for entry in chain.ledger.entries_of(ALICE)] == [ALICE]
        assert chain.ledger.entries_of(key_of(THIRD)) == []
        assert chain.run(THIRD, Delete(BLOB, reservation)) is Code.NOT_OWNER

    def test_a_statement_that_names_another_s_reservation_is_refused(self, chain: Chain) -> None:
        victim = chain.reserve(OWNER, Reserve(UNITS, 0, 5))
        assert certify(chain, victim, owner=OTHER_OWNER, by=OTHER_OWNER) is Code.NOT_OWNER

    def test_a_statement_in_another_s_name_is_refused(self, chain: Chain) -> None:
        victim = chain.reserve(OWNER, Reserve(UNITS, 0, 5))
        statement = make_statement(victim)
        forged = chain.certificate(statement, OTHER_OWNER)
        assert chain.run(OTHER_OWNER, Certify(forged)) is Code.BAD_CERTIFICATE

    def test_a_statement_signed_before_the_reservation_was_handed_over_is_refused(self, chain: Chain) -> None:
        sold = chain.reserve(OWNER, Reserve(UNITS, 0, 5))
        certificate = chain.certificate(make_statement(sold), OWNER)
        chain.run(OWNER, HandOver(sold, BOB))
        assert chain.run(OWNER, Certify(certificate)) is Code.NOT_OWNER

    @pytest.mark.parametrize("epoch", [0, 2, U64_MAX])
    def test_a_certificate_of_another_epoch_is_refused(self, chain: Chain, epoch: int) -> None:
        mine = chain.reserve(OWNER, Reserve(UNITS, 0, 5))
        chain.end_epoch()
        certificate = chain.certificate(make_statement(mine), OWNER, epoch=epoch)
        assert chain.run(OWNER, Certify(certificate)) is Code.WRONG_EPOCH

    def test_commitments_of_the_last_epoch_dressed_as_this_one_s_are_refused(self, chain: Chain) -> None:
        mine = chain.reserve(OWNER, Reserve(UNITS, 0, 5))
        old = chain.certificate(make_statement(mine), OWNER)
        chain.end_epoch()
        assert chain.run(OWNER, Certify(replace(old, epoch=1))) is Code.BAD_CERTIFICATE

    def test_a_statement_that_has_expired_or_binds_for_ever_is_refused(self, chain: Chain) -> None:
        mine = chain.reserve(OWNER, Reserve(UNITS, 0, 5))
        height = chain.ledger.height + 1
        assert certify(chain, mine, expiry_height=height) is Code.EXPIRED_STATEMENT
        for expiry_height in (U64_MAX, height + 3 + EXPIRY_AHEAD_MAX):
            assert certify(chain, mine, expiry_height=expiry_height) is Code.TOO_FAR_AHEAD
        assert certify(chain, mine, expiry_height=height + 3 + EXPIRY_AHEAD_MAX) is Code.OK

    def test_the_zero_reservation_pays_for_nothing(self, chain: Chain) -> None:
        assert certify(chain, ZERO_RESERVATION) is Code.NOT_FOUND

    def test_a_transaction_of_another_chain_does_not_decode(self, chain: Chain) -> None:
        raw = sign(Chain.begin(GENESIS).ledger, OWNER, Reserve(1, 0, 1)).raw
        assert reason(SignedTransaction.decode, raw, chain_id=SMALL.chain_id) is Reason.WRONG_CHAIN

    def test_units_do_not_multiply_through_delete_split_and_merge(self, chain: Chain) -> None:
        mine = store(chain, units=2 * UNITS)
        back = chain.reserve(OWNER, Delete(BLOB, mine))
        part = chain.reserve(OWNER, SplitUnits(back, 1))
        for operation in (Merge(mine, back), Merge(mine, part)):
            assert chain.run(OWNER, operation) is Code.OK
        assert chain.run(OWNER, Merge(mine, back)) is Code.NOT_FOUND
        assert reservations_of(chain.ledger, ALICE) == [Reservation(mine, ALICE, 2 * UNITS, 0, 5)]
        assert used(chain)[:6] == [2 * UNITS] * 5 + [0]
