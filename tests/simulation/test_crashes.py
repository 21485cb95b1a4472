"""Power fails at every record of a log in turn: at one member, and at all of them at once (S7 to S10, L3, L4)."""

from dataclasses import replace

import pytest

from economics.genesis import Parameters
from tests.simulation.batch import play
from tests.simulation.disk import Fuse
from tests.simulation.mutants import MUTANTS
from tests.simulation.scenario import Scenario

BASE = Scenario(
    seed=11,
    shards=(1, 1, 1, 1),
    dead=frozenset({3}),
    parameters=Parameters(timeout_ms=150, block_interval_ms=30, heartbeat_ms=300, epoch_ms=1_000),
    views=10,
    chaos_ms=6_000,
    down_ms=200,
)
"""Each of the three that live is needed for a quorum; the fourth costs a timeout whenever it leads."""


def crash_at(record: int, *, is_durable: bool, all_fall: bool) -> Scenario:
    return replace(BASE, fuses=((0, Fuse(record, is_durable)),), all_fall=all_fall)


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


def test_a_member_that_does_not_count_its_own_votes_again_stops_the_chain() -> None:
    """The crash of all is what finds it: else another still holds the vote."""
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name == "own votes not counted again after a restart")
    with mutant.planted():
        scenarios = (crash_at(record, is_durable=True, all_fall=True) for record in range(1, 41))
        assert any(play(scenario).rule == "L1" for scenario in scenarios)
