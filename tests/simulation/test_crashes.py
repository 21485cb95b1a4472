"""Power fails at every record of a log in turn: at one member, and at all of them at once (S7 to S10, L3, L4)."""

import pytest

from tests.simulation.batch import play
from tests.simulation.scenario import crash_at


@pytest.mark.parametrize("all_fall", [False, True])
@pytest.mark.parametrize("is_durable", [False, True])
def test_the_chain_goes_on_after_a_crash_at_any_record(is_durable: bool, all_fall: bool) -> None:
    record = 1
    while True:
        result = play(crash_at(record, is_durable=is_durable, all_fall=all_fall))
        assert result.fault is None, (record, result.fault)
        if not result.crashes:
            break  # the first act writes no more records than these
        assert result.crashes == (3 if all_fall else 1)
        record += 1
    assert record > 25
