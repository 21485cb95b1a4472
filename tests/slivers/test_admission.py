"""Nobody is signed for beyond what is paid, budgets are hard, and a refusal leaves no trace."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from economics.arguments import Certify, HandOver, Reserve
from economics.blob import BlobId
from economics.commitments import ZERO_RESERVATION, OwnerStatement, ReservationId, Ticket
from economics.crypto import NodeId
from economics.errors import Reason, Rejected
from economics.geometry import STORAGE_UNIT_BYTES
from economics.ledger import Code
from p2pnode.keys import Key
from p2pnode.slivers.admission import Admission, UploadLimits
from tests.chain import Chain, key_of
from tests.p2pnode.reseated import Reseated, seat
from tests.refusals import reason
from tests.small import OPERATORS, OTHER_OWNER, OWNER, make_blob, make_genesis, make_statement, make_ticket

GENESIS = make_genesis()
"""n = 4, a shard for each of four members."""
CODE = GENESIS.code
PLAIN = make_statement(GENESIS, make_blob(CODE, 1).header)
UNITS = 10
SHARE = UNITS * STORAGE_UNIT_BYTES // 4
"""What a node with one of four shards holds of blobs that fill a reservation, at most."""
ONE, TWO = NodeId(bytes([1]) * 32), NodeId(bytes([2]) * 32)


def length_of(units: int) -> int:
    """Return the length of a blob of full segments that takes so many units."""
    segments = units * STORAGE_UNIT_BYTES // CODE.encoded_bytes(CODE.segment_bytes)
    length = segments * CODE.segment_bytes
    assert CODE.encoded_units(length) == units
    return length


class Paid:
    """A chain in which OWNER has reserved 10 units for epochs 0 and 1, and one node's admission to storage."""

    def __init__(self) -> None:
        self.chain = Chain.begin(GENESIS)
        self.reservation = self.reserve(OWNER)
        self.admission = self.node()

    def reserve(self, key: Key, *, start: int = 0, end: int = 2) -> ReservationId:
        return self.chain.reserve(key, Reserve(UNITS, start, end))

    def node(self, *, member: int = 1, limits: UploadLimits | None = None) -> Admission:
        """Return the admission of a member of the genesis, by default of one with a single shard."""
        node = NodeId(OPERATORS[member].public)
        return Admission(limits or UploadLimits(), code=CODE, node=node, ledger=lambda: self.chain.ledger)

    def ticket(self, key: Key = OWNER, **changes: Any) -> Ticket:
        return make_ticket(GENESIS, owner=key_of(key), **{"reservation": self.reservation, **changes})

    def statement(self, blob: int, units: int, key: Key = OWNER, **changes: Any) -> OwnerStatement:
        changes = {"reservation": self.reservation, "length": length_of(units), **changes}
        return replace(PLAIN, blob_id=BlobId(bytes([blob]) * 32), owner=key_of(key), **changes)

    def close(self, statement: OwnerStatement) -> None:
        with self.admission.closing(statement):
            pass

    def certify(self, statement: OwnerStatement) -> None:
        certificate = self.chain.certificate(statement, OWNER)
        assert self.chain.run(OWNER, Certify(certificate)) is Code.OK

    def live(self) -> list[OwnerStatement]:
        return list(self.admission.live_statements().values())


@pytest.fixture
def paid() -> Paid:
    return Paid()


Show = Callable[[Paid, Key, ReservationId], None]


def open_with(paid: Paid, key: Key, reservation: ReservationId) -> None:
    paid.admission.verify_ticket(paid.ticket(key, reservation=reservation))


def send_against(paid: Paid, key: Key, reservation: ReservationId) -> None:
    paid.admission.accept(paid.ticket(key, reservation=reservation), 1)


def close_over(paid: Paid, key: Key, reservation: ReservationId) -> None:
    paid.close(paid.statement(1, 1, key, reservation=reservation))


@pytest.mark.parametrize("show", [open_with, send_against, close_over])
class TestReservation:
    """The same is asked of it when an upload opens, with every segment, and when it closes."""

    def test_of_the_owner_that_holds_now_is_enough(self, paid: Paid, show: Show) -> None:
        show(paid, OWNER, paid.reservation)
        paid.chain.end_epochs(1)
        show(paid, OWNER, paid.reservation)

    def test_of_another_owner_is_refused(self, paid: Paid, show: Show) -> None:
        assert reason(show, paid, OTHER_OWNER, paid.reservation) is Reason.UNKNOWN_SIGNER

    def test_that_was_handed_over_is_the_new_owner_s_alone(self, paid: Paid, show: Show) -> None:
        assert paid.chain.run(OWNER, HandOver(paid.reservation, key_of(OTHER_OWNER))) is Code.OK
        assert reason(show, paid, OWNER, paid.reservation) is Reason.UNKNOWN_SIGNER
        show(paid, OTHER_OWNER, paid.reservation)

    def test_that_nobody_bought_is_refused(self, paid: Paid, show: Show) -> None:
        assert reason(show, paid, OWNER, ReservationId(bytes([1]) * 32)) is Reason.NOT_FOUND

    def test_whose_epochs_are_over_is_refused(self, paid: Paid, show: Show) -> None:
        paid.chain.end_epochs(2)
        assert reason(show, paid, OWNER, paid.reservation) is Reason.NOT_FOUND

    def test_that_has_not_begun_is_refused_until_it_does(self, paid: Paid, show: Show) -> None:
        early = paid.reserve(OWNER, start=1)
        assert reason(show, paid, OWNER, early) is Reason.EXPIRED
        paid.chain.end_epochs(1)
        show(paid, OWNER, early)


class TestZeroReservation:
    def test_may_send_as_much_as_the_budget_for_unclosed_uploads_lets_it(self, paid: Paid) -> None:
        unpaid = paid.ticket(OTHER_OWNER, reservation=ZERO_RESERVATION)
        paid.admission.verify_ticket(unpaid)
        paid.admission.accept(unpaid, 1 << 40)
        assert not paid.admission._accepted

    def test_is_never_signed_for(self, paid: Paid) -> None:
        unpaid = paid.statement(1, 1, reservation=ZERO_RESERVATION)
        assert reason(paid.close, unpaid) is Reason.UNPAID
        assert paid.live() == []


class TestStatements:
    """One reservation, shown to many nodes with different blobs, is worth what it paid for at each."""

    def test_fill_a_reservation_to_the_last_unit(self, paid: Paid) -> None:
        paid.close(paid.statement(1, 6))
        assert reason(paid.close, paid.statement(2, 5)) is Reason.UNPAID
        paid.close(paid.statement(2, 4))
        assert reason(paid.close, paid.statement(3, 1)) is Reason.UNPAID
        assert paid.live() == [paid.statement(1, 6), paid.statement(2, 4)]

    def test_of_a_length_whose_units_nobody_paid_for_are_refused(self, paid: Paid) -> None:
        paid.admission.verify_statement(paid.statement(1, UNITS))
        assert reason(paid.close, paid.statement(1, UNITS + 1)) is Reason.UNPAID
        assert reason(paid.close, paid.statement(1, 1, length=2**64 - 1)) is Reason.UNPAID

    def test_count_at_each_node_for_what_that_node_signed(self, paid: Paid) -> None:
        first, second = paid.admission, paid.node()
        for blob, node in enumerate((first, second)):
            with node.closing(paid.statement(blob, UNITS)):
                pass
            assert reason(node.verify_statement, paid.statement(3, 1)) is Reason.UNPAID

    def test_of_one_blob_with_two_salts_count_once(self, paid: Paid) -> None:
        paid.close(paid.statement(1, 6))
        paid.close(paid.statement(1, 6, salt=bytes([1]) * 16))
        assert reason(paid.close, paid.statement(2, 6)) is Reason.UNPAID

    def test_that_are_shown_again_count_once(self, paid: Paid) -> None:
        for _ in range(3):
            paid.close(paid.statement(1, 6))
        paid.close(paid.statement(2, 4))

    def test_of_other_reservations_do_not_count(self, paid: Paid) -> None:
        paid.close(paid.statement(1, UNITS))
        paid.close(paid.statement(2, UNITS, reservation=paid.reserve(OWNER)))
        paid.close(paid.statement(3, UNITS, OTHER_OWNER, reservation=paid.reserve(OTHER_OWNER)))

    def test_that_are_certified_on_chain_no_longer_count_but_their_units_are_spent(self, paid: Paid) -> None:
        used = paid.statement(1, 6)
        paid.close(used)
        paid.close(paid.statement(2, 3))
        paid.certify(used)
        assert reason(paid.close, paid.statement(3, 2)) is Reason.UNPAID
        paid.close(paid.statement(3, 1))
        assert paid.live() == [paid.statement(2, 3), paid.statement(3, 1)]

    def test_of_a_blob_that_another_statement_certified_no_longer_count(self, paid: Paid) -> None:
        paid.certify(paid.statement(1, 6))
        paid.admission.restore([paid.statement(1, 6, salt=bytes([1]) * 16)])
        paid.close(paid.statement(2, 4))
        assert paid.live() == [paid.statement(2, 4)]

    def test_of_a_seller_do_not_count_against_who_bought_the_reservation(self, paid: Paid) -> None:
        paid.close(paid.statement(1, UNITS))
        assert paid.chain.run(OWNER, HandOver(paid.reservation, key_of(OTHER_OWNER))) is Code.OK
        paid.close(paid.statement(2, UNITS, OTHER_OWNER))
        assert paid.live() == [paid.statement(2, UNITS, OTHER_OWNER)]

    def test_that_are_used_up_are_not_signed_again(self, paid: Paid) -> None:
        used = paid.statement(1, 1)
        paid.certify(used)
        assert reason(paid.close, used) is Reason.EXPIRED

    def test_that_expired_no_longer_count(self, paid: Paid) -> None:
        paid.close(paid.statement(1, UNITS, expiry_height=5))
        paid.chain.pass_blocks(4)
        assert reason(paid.close, paid.statement(2, 1)) is Reason.UNPAID
        paid.chain.pass_blocks(5)
        paid.close(paid.statement(2, UNITS))
        assert paid.live() == [paid.statement(2, UNITS)]

    def test_that_are_on_disk_at_the_start_count(self, paid: Paid) -> None:
        used, live = paid.statement(1, 4), paid.statement(2, 5)
        paid.certify(used)
        paid.admission.restore([used, live])
        assert reason(paid.close, paid.statement(3, 2)) is Reason.UNPAID
        paid.close(live)
        paid.close(paid.statement(3, 1))

    def test_that_could_not_be_stored_do_not_count(self, paid: Paid) -> None:
        with pytest.raises(OSError, match="disk"), paid.admission.closing(paid.statement(1, UNITS)):
            raise OSError("disk")
        assert paid.live() == []
        paid.close(paid.statement(2, UNITS))
        with pytest.raises(OSError, match="disk"), paid.admission.closing(paid.statement(2, UNITS)):
            raise OSError("disk")
        assert paid.live() == [paid.statement(2, UNITS)]  # the first time it was stored

    def test_that_are_being_stored_count_already(self, paid: Paid) -> None:
        with paid.admission.closing(paid.statement(1, 6)):
            assert reason(paid.close, paid.statement(2, 6)) is Reason.UNPAID

    def test_that_are_refused_leave_nothing_behind(self, paid: Paid) -> None:
        """An owner's key costs nothing to make: even an empty place for each would fill the memory."""
        for number in range(100):
            foreign = paid.statement(1, 1, reservation=ReservationId(bytes([number]) * 32))
            assert reason(paid.close, foreign) in (Reason.NOT_FOUND, Reason.UNPAID)
            assert reason(send_against, paid, OTHER_OWNER, paid.reservation) is Reason.UNKNOWN_SIGNER
        assert not paid.admission._signed
        assert not paid.admission._accepted

    def test_are_live_only_while_their_owner_holds_the_reservation(self, paid: Paid) -> None:
        paid.close(paid.statement(1, 1))
        sold = paid.reserve(OWNER)
        paid.close(paid.statement(2, 1, reservation=sold))
        assert paid.chain.run(OWNER, HandOver(sold, key_of(OTHER_OWNER))) is Code.OK
        assert paid.live() == [paid.statement(1, 1)]
        paid.chain.end_epochs(2)
        assert paid.live() == []


class TestAcceptedBytes:
    def test_are_at_most_half_as_many_again_as_the_node_s_share(self, paid: Paid) -> None:
        paid.admission.accept(paid.ticket(), SHARE)
        paid.admission.accept(paid.ticket(), SHARE // 2)
        assert reason(paid.admission.accept, paid.ticket(), 1) is Reason.OVER_BUDGET

    def test_that_are_refused_do_not_count(self, paid: Paid) -> None:
        assert reason(paid.admission.accept, paid.ticket(), SHARE * 3 // 2 + 1) is Reason.OVER_BUDGET
        paid.admission.accept(paid.ticket(), SHARE * 3 // 2)

    def test_are_as_many_again_in_the_next_epoch(self, paid: Paid) -> None:
        paid.admission.accept(paid.ticket(), SHARE * 3 // 2)
        paid.chain.end_epoch()
        paid.admission.accept(paid.ticket(), SHARE * 3 // 2)
        assert reason(paid.admission.accept, paid.ticket(), 1) is Reason.OVER_BUDGET

    def test_count_for_each_reservation_apart(self, paid: Paid) -> None:
        paid.admission.accept(paid.ticket(), SHARE * 3 // 2)
        paid.admission.accept(paid.ticket(reservation=paid.reserve(OWNER)), SHARE * 3 // 2)

    def test_are_more_at_a_node_with_more_shards(self, paid: Paid) -> None:
        committee = seat(GENESIS, (1, 1, 1, 0))
        paid.chain.ledger = Reseated(paid.chain.ledger, {0: committee}).as_ledger()
        light, heavy, without = (paid.node(member=member) for member in range(3))
        for node, shards in ((light, 1), (heavy, 3)):
            node.accept(paid.ticket(), SHARE * shards * 3 // 2)
            assert reason(node.accept, paid.ticket(), 1) is Reason.OVER_BUDGET
        assert reason(without.accept, paid.ticket(), 1) is Reason.OVER_BUDGET

    def test_are_enough_for_all_blobs_that_share_a_reservation(self, paid: Paid) -> None:
        """The first is certified, and its units spent, before the second is sent: both were paid for."""
        for units in (9, 1):
            paid.admission.accept(paid.ticket(), SHARE * units // UNITS)
            paid.certify(paid.statement(units, units))


class TestOpenUploads:
    LIMITS = UploadLimits(unclosed_peer_bytes_max=50, unclosed_bytes_max=1_000)

    def test_of_one_peer_share_its_budget_until_they_end(self, paid: Paid) -> None:
        admission = paid.node(limits=self.LIMITS)
        with admission.upload(ONE) as first, admission.upload(ONE) as second:
            first.grow(30)
            assert reason(second.grow, 21) is Reason.OVER_BUDGET
            second.grow(20)
            with admission.upload(TWO) as other:
                other.grow(50)
        with admission.upload(ONE) as again:
            again.grow(50)
        assert not admission._open

    def test_that_fail_give_back_what_they_held(self, paid: Paid) -> None:
        admission = paid.node(limits=self.LIMITS)
        with pytest.raises(Rejected), admission.upload(ONE) as upload:  # noqa: PT012  # the second one fails
            for size in (50, 1):
                upload.grow(size)
        assert not admission._open
