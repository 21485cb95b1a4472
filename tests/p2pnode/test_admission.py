"""Budgets are hard, a refusal leaves no trace, and what an upload held is given back when it ends."""

from dataclasses import replace

import pytest

from economics.blob import BlobId
from economics.commitments import ZERO_RESERVATION, OwnerStatement, ReservationId
from economics.crypto import NodeId, OwnerId
from economics.errors import Reason, Rejected
from p2pnode.admission import Admission, UploadLimits
from tests.refusals import reason
from tests.small import OTHER_OWNER, OWNER, make_blob, make_genesis, make_statement

GENESIS = make_genesis()
PLAIN = make_statement(GENESIS, make_blob(GENESIS.code, 1).header)
LIMITS = UploadLimits(
    free_owner_bytes_max=100, free_bytes_max=150, unclosed_peer_bytes_max=50, unclosed_bytes_max=1_000
)
ONE, TWO = NodeId(bytes([1]) * 32), NodeId(bytes([2]) * 32)


def statement(blob: int, owner: bytes = OWNER.public) -> OwnerStatement:
    return replace(PLAIN, blob_id=BlobId(bytes([blob]) * 32), owner=OwnerId(owner))


def close(admission: Admission, statement: OwnerStatement, size: int) -> None:
    with admission.closing(statement, size):
        pass


class TestClosedUploads:
    def test_of_one_owner_fill_its_budget_to_the_last_byte(self) -> None:
        admission = Admission(LIMITS)
        close(admission, statement(1), 60)
        assert reason(close, admission, statement(2), 41) is Reason.OVER_BUDGET
        close(admission, statement(2), 40)
        assert reason(close, admission, statement(3), 1) is Reason.OVER_BUDGET

    def test_of_all_owners_fill_the_node_s_budget_to_the_last_byte(self) -> None:
        admission = Admission(LIMITS)
        close(admission, statement(1), 100)
        assert reason(close, admission, statement(2, OTHER_OWNER.public), 51) is Reason.OVER_BUDGET
        close(admission, statement(2, OTHER_OWNER.public), 50)
        assert reason(close, admission, statement(3, bytes(32)), 1) is Reason.OVER_BUDGET

    def test_of_the_same_blob_cost_once_for_each_owner(self) -> None:
        admission = Admission(LIMITS)
        close(admission, statement(1), 100)
        close(admission, replace(statement(1), salt=bytes([1]) * 16), 100)
        assert reason(close, admission, statement(1, OTHER_OWNER.public), 100) is Reason.OVER_BUDGET

    def test_that_are_on_disk_at_the_start_count(self) -> None:
        admission = Admission(LIMITS)
        admission.restore([(statement(1), 60), (replace(statement(1), salt=bytes([1]) * 16), 60)])
        assert reason(close, admission, statement(2), 41) is Reason.OVER_BUDGET
        close(admission, statement(1), 60)
        close(admission, statement(2), 40)

    def test_that_could_not_be_stored_are_not_counted(self) -> None:
        admission = Admission(LIMITS)
        with pytest.raises(OSError, match="disk"), admission.closing(statement(1), 100):
            raise OSError("disk")
        assert not admission._free
        close(admission, statement(2), 100)
        with pytest.raises(OSError, match="disk"), admission.closing(statement(2), 100):
            raise OSError("disk")
        assert reason(close, admission, statement(3), 1) is Reason.OVER_BUDGET  # the first time of 2 was stored

    def test_that_are_refused_leave_nothing_behind(self) -> None:
        """An owner's key costs nothing to make: even an empty place for each would fill the memory."""
        admission = Admission(LIMITS)
        for owner in range(100):
            assert reason(close, admission, statement(1, bytes([owner]) * 32), 151) is Reason.OVER_BUDGET
        assert not admission._free


class TestOpenUploads:
    def test_of_one_peer_share_its_budget_until_they_end(self) -> None:
        admission = Admission(LIMITS)
        with admission.upload(ONE) as first, admission.upload(ONE) as second:
            first.grow(30)
            assert reason(second.grow, 21) is Reason.OVER_BUDGET
            second.grow(20)
            with admission.upload(TWO) as other:
                other.grow(50)
        with admission.upload(ONE) as again:
            again.grow(50)
        assert not admission._open

    def test_that_fail_give_back_what_they_held(self) -> None:
        admission = Admission(LIMITS)
        with pytest.raises(Rejected), admission.upload(ONE) as upload:  # noqa: PT012  # the second one fails
            for size in (50, 1):
                upload.grow(size)
        assert not admission._open


def test_only_the_zero_reservation_is_known() -> None:
    admission = Admission(LIMITS)
    admission.verify_reservation(ZERO_RESERVATION)
    assert reason(admission.verify_reservation, ReservationId(bytes(31) + b"\1")) is Reason.NOT_FOUND
