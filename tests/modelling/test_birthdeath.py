"""Birth-death processes against closed forms, and the order in which their estimates must stand."""

import math
from dataclasses import replace

import pytest

from scripts.modelling.birthdeath import BirthDeath, data_loss, exceeded, fetch_hours, halting
from scripts.modelling.churn import DEDICATED, RESTLESS
from scripts.modelling.scenario import Scenario

BASE = Scenario(1_000, 31, DEDICATED)


@pytest.mark.parametrize(("birth", "death"), [(1e-4, 0.1), (0.5, 0.25), (1e-9, 10.0)])
def test_a_mirrored_pair_of_disks_has_its_closed_form(birth: float, death: float) -> None:
    pair = BirthDeath([2 * birth, birth], [0.0, death])
    assert pair.hours_to_end() == pytest.approx((3 * birth + death) / (2 * birth**2))


def test_without_repair_the_waits_add_up() -> None:
    assert BirthDeath([3.0, 2.0, 1.0], [0.0, 0.0, 0.0]).hours_to_end() == pytest.approx(1 / 3 + 1 / 2 + 1)


def test_units_that_fail_and_heal_by_themselves_are_binomial() -> None:
    units, birth, death = 12, 0.3, 0.7
    process = BirthDeath([(units - k) * birth for k in range(units)], [k * death for k in range(units)])
    p = birth / (birth + death)
    binomial = [math.comb(units, k) * p**k * (1 - p) ** (units - k) for k in range(units)]
    assert process.stationary() == pytest.approx([value / sum(binomial) for value in binomial])


def test_a_share_that_vanishes_from_a_whole_network_is_binomial() -> None:
    units, tolerated, share = 9, 4, 0.4
    whole = BirthDeath([1e-12] * (tolerated + 1), [0.0, *[1.0] * tolerated])
    above = sum(math.comb(units, k) * share**k * (1 - share) ** (units - k) for k in range(tolerated + 1, units + 1))
    assert exceeded(whole, units, share) == pytest.approx(above, rel=1e-6)


def test_two_hundred_and_fifty_six_shards_stay_within_a_float() -> None:
    estimate = data_loss(replace(BASE, n=256), healing_to_the_end=True)
    assert math.isfinite(estimate.hours_to_end())
    assert 0 < estimate.per_year() < 1e-30


@pytest.mark.parametrize("n", [7, 31, 100])
def test_loss_grows_with_churn_with_slow_lines_and_with_repair_from_whole_blobs(n: int) -> None:
    base = replace(BASE, n=n)
    worse = (replace(base, churn=RESTLESS), replace(base, uplink_mbit=2.0), replace(base, whole_blob=True))
    for healing in (True, False):
        least = data_loss(base, healing_to_the_end=healing).per_year()
        assert all(data_loss(scenario, healing_to_the_end=healing).per_year() > least for scenario in worse)


@pytest.mark.parametrize("n", [7, 31, 100])
def test_healing_to_the_end_loses_less_and_a_halt_is_one_way_to_miss_more_than_f_shards(n: int) -> None:
    base = replace(BASE, n=n)
    least, most = (data_loss(base, healing_to_the_end=healing).per_year() for healing in (True, False))
    assert least < halting(base).per_year()
    assert least < most


def test_many_receivers_share_the_uplinks_of_few_helpers() -> None:
    alone, together = (fetch_hours(BASE, receivers, 26) for receivers in (1, 20))
    assert alone == fetch_hours(BASE, 2, 26), "the downlink bounds it"
    line = BASE.uplink_bytes_per_hour * DEDICATED.availability**2
    assert together == pytest.approx(BASE.rebuild_bytes(31 / 26) / (6 / 20 * line)), "six uplinks for twenty"
