"""Monte Carlo: what can never happen, the same seed, and agreement with what is known in closed form."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from scripts.modelling.birthdeath import data_loss, expected_rebuilt, halting
from scripts.modelling.churn import CASUAL, DEDICATED, HOURS_PER_YEAR, RESTLESS, Churn
from scripts.modelling.durability import accelerated
from scripts.modelling.network import Fleet, Outcome, simulate
from scripts.modelling.scenario import SEAT_LOST_HOURS, Scenario

SMALL = Scenario(40, 21, RESTLESS, years=0.3, networks=4)


def run(scenario: Scenario, seed: int = 1) -> Outcome:
    return simulate(scenario, np.random.default_rng(seed))


def comparable(outcome: Outcome) -> dict[str, object]:
    return {**asdict(outcome), "missing": outcome.missing.tolist()}


@pytest.mark.parametrize("churn", [RESTLESS, CASUAL])
@pytest.mark.parametrize("whole_blob", [False, True])
def test_there_are_never_more_shards_than_n_nor_fewer_than_none(churn: Churn, whole_blob: bool) -> None:
    fleet = Fleet(replace(SMALL, churn=churn, whole_blob=whole_blob), np.random.default_rng(1))
    assert fleet.weight.sum() == 21
    for hour in range(3_000):
        now = float(hour)
        fleet.come_and_go(now)
        fleet.lose(now)
        held, reached = fleet.held(), fleet.reached(now)
        assert (held >= 0).all()
        assert (held <= fleet.weight).all()
        assert (fleet.left >= 0).all()
        assert not (reached & fleet.gone).any(), "who has gone for good is not reached"
        assert not (held * fleet.gone).any(), "and takes its shards along"
        before = fleet.left.sum()
        sent = fleet.rebuild(now, reached, held)
        assert (sent > 0) == (fleet.left.sum() < before)
        fleet.end_hour(now, reached)


def test_one_seed_is_one_run_and_another_is_not() -> None:
    assert comparable(run(SMALL)) == comparable(run(SMALL))
    assert comparable(run(SMALL)) != comparable(run(SMALL, seed=2))


def test_every_hour_of_every_network_is_counted_once() -> None:
    outcome = run(SMALL)
    assert outcome.missing.sum() == pytest.approx(outcome.network_years * HOURS_PER_YEAR)
    assert outcome.missing.shape == (22,)


def test_the_traffic_is_that_of_the_failure_rates() -> None:
    scenario = Scenario(1_000, 31, DEDICATED, correlated=False, years=1.0, networks=40)
    assert run(scenario).rebuilt_per_stored == pytest.approx(expected_rebuilt(scenario), rel=0.15)


def test_a_seat_goes_to_another_when_its_holder_has_missed_seven_epochs() -> None:
    scenario = replace(accelerated(), networks=1)
    fleet = Fleet(scenario, np.random.default_rng(1))
    fleet.departs_at[0, 5] = 0.0
    for hour in range(int(SEAT_LOST_HOURS) + 48):
        now = float(hour)
        fleet.come_and_go(now)
        fleet.lose(now)
        if not fleet.gone[0, 5]:
            break
        fleet.end_hour(now, fleet.reached(now))
    assert hour == pytest.approx(SEAT_LOST_HOURS, abs=13)
    assert fleet.gained[0, 5]
    assert fleet.left[0, 5] == 1


def test_no_seat_is_given_away_below_the_quorum_and_elsewhere_it_is() -> None:
    scenario = replace(accelerated(), networks=2)
    fleet = Fleet(scenario, np.random.default_rng(1))
    fleet.departs_at[0, : scenario.code.f + 1] = 0.0
    fleet.departs_at[1, : scenario.code.f] = 0.0
    for hour in range(int(SEAT_LOST_HOURS) + 48):
        now = float(hour)
        fleet.come_and_go(now)
        fleet.lose(now)
        assert fleet.end_hour(now, fleet.reached(now)).tolist() == [True, False]
    assert fleet.gone.sum(axis=1).tolist() == [scenario.code.f + 1, 0]
    assert fleet.asked[0] == 0, "nor is any challenge asked"


def test_no_seat_is_given_away_while_a_handover_is_under_way() -> None:
    scenario = replace(accelerated(), networks=1)
    fleet = Fleet(scenario, np.random.default_rng(1))
    joined = scenario.code.f + 1
    fleet.gained[0, :joined], fleet.left[0, :joined] = True, 1.0
    fleet.departs_at[0, joined] = 0.0
    fleet.leaving[0, joined + 1] = True
    for hour in range(2 * int(SEAT_LOST_HOURS)):
        now = float(hour)
        fleet.come_and_go(now)
        fleet.lose(now)
        fleet.end_hour(now, fleet.reached(now))
    assert np.flatnonzero(fleet.gone[0]).tolist() == [joined]
    assert np.flatnonzero(fleet.leaving[0]).tolist() == [joined + 1], "who had lost its seat before keeps it too"
    assert not fleet.missed.any(), "and no challenge is asked"


def test_halts_come_as_often_as_birth_death_says() -> None:
    scenario = replace(accelerated(life_days=35.0), years=1.0)
    outcome = run(scenario)
    years = outcome.network_years / len(outcome.halts)
    assert len(outcome.halts) > 300
    assert years == pytest.approx(halting(scenario).hours_to_end() / HOURS_PER_YEAR, rel=0.25)


def test_losses_come_as_often_as_between_the_two_estimates() -> None:
    scenario = replace(accelerated(disk_deaths_per_year=35.0), years=0.5)
    outcome = run(scenario)
    years = outcome.network_years / len(outcome.losses)
    shortest, longest = (
        data_loss(scenario, healing_to_the_end=healing).hours_to_end() / HOURS_PER_YEAR for healing in (False, True)
    )
    assert len(outcome.losses) > 300
    assert shortest < years < longest
    assert not outcome.halts, "who lost a disk still votes"
