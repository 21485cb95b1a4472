"""Of a group of exceptions one is raised: the one that whoever called can act on."""

import pytest
import trio

from economics.errors import Reason, Rejected
from p2pnode.clients.plain import plainly
from p2pnode.errors import InputError, NetworkError, TransactionFailed, Unavailable


def fails(*faults: BaseException) -> BaseException:
    """Return what is raised of a group of these, nested."""
    with pytest.raises(BaseException) as raised, plainly():  # noqa: PT011
        raise BaseExceptionGroup("outer", [BaseExceptionGroup("inner", [fault]) for fault in faults])
    return raised.value


def test_the_only_exception_is_raised_as_it_is() -> None:
    fault = InputError("no such file")
    assert fails(fault) is fault


def test_what_trying_again_does_not_mend_goes_before_what_it_may() -> None:
    fault = InputError("no such file")
    assert fails(Unavailable("a"), fault, NetworkError("b")) is fault


def test_a_fault_of_ours_goes_before_the_worlds() -> None:
    fault = AssertionError()
    assert fails(InputError("a"), fault) is fault


def test_what_ends_the_program_goes_before_any_fault() -> None:
    fault = KeyboardInterrupt()
    assert fails(AssertionError(), fault, InputError("a")) is fault


def test_a_peers_fault_alone_is_one_of_the_network() -> None:
    fault = fails(Rejected(Reason.MALFORMED, "not a header"))
    assert isinstance(fault, NetworkError)
    assert fault.retry
    with pytest.raises(NetworkError, match="not a header"), plainly():
        raise Rejected(Reason.MALFORMED, "not a header")


async def test_a_cancellation_reaches_whoever_asked_for_it() -> None:
    with trio.CancelScope() as scope:
        with plainly():
            async with trio.open_nursery() as nursery:
                scope.cancel()
                try:
                    await trio.sleep_forever()
                finally:
                    nursery.start_soon(trio.sleep, 0)
                    raise InputError("tidying up failed")
    assert scope.cancelled_caught


def test_a_transaction_that_another_came_before_may_be_tried_again() -> None:
    codes = ("wrong_nonce", "wrong_epoch", "no_space", "unfunded", "not_deletable", "over_capacity", "new_code")
    assert [TransactionFailed(code, fee_frost=0).retry for code in codes] == [True, True, True, *[False] * 4]
