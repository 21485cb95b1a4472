"""Who gets seats, and what a rebuilding costs, counted a second way."""

import math
from dataclasses import replace
from statistics import NormalDist

import pytest

from scripts.modelling.churn import CASUAL, DEDICATED, PROFILES
from scripts.modelling.scenario import SHARD_TB, Scenario, apportion


def test_equal_stakes_share_equally_and_no_seat_is_lost() -> None:
    assert apportion(7, 21, cap=6, sigma=0.0) == [3] * 7
    assert apportion(100, 21, cap=6, sigma=0.0) == [1] * 21


@pytest.mark.parametrize(("nodes", "n"), [(100, 256), (1_000, 256), (10_000, 256), (7, 21), (1_000, 4)])
def test_all_shards_are_seated_within_the_cap(nodes: int, n: int) -> None:
    weights = Scenario(nodes, n, DEDICATED).holder_weights()
    assert sum(weights) == n
    assert len(weights) <= nodes
    assert max(weights) <= max(4, -(-n // nodes))
    assert weights == sorted(weights, reverse=True)


def test_more_nodes_spread_the_shards_over_more_holders() -> None:
    holders = [len(Scenario(nodes, 256, DEDICATED).holder_weights()) for nodes in (100, 1_000, 10_000)]
    assert holders == sorted(set(holders))


@pytest.mark.parametrize("n", [4, 31, 256])
def test_a_shard_is_rebuilt_for_its_own_size_a_whole_blob_for_all_of_it(n: int) -> None:
    scenario = Scenario(1_000, n, DEDICATED)
    code = scenario.code
    z = code.symbol_bytes(code.segment_bytes)
    hashes = 2 * n * 32 + 32
    symbols = sum(z for _ in range(code.columns)) + sum(z for _ in range(code.rows))
    assert scenario.rebuild_bytes(1) == pytest.approx(scenario.segments * (symbols + hashes))
    assert scenario.rebuild_bytes(1) < SHARD_TB * 1e12, "a shard keeps leaf lists that are computed, not sent"
    whole = replace(scenario, whole_blob=True)
    assert whole.rebuild_bytes(1) == whole.rebuild_bytes(3) >= scenario.stored_bytes


def test_the_profiles_are_as_available_as_their_sources_say() -> None:
    assert [round(churn.availability, 2) for churn in PROFILES] == [0.95, 0.95, 0.67, 0.30]


def test_unpaid_sessions_meet_both_quantiles_of_their_source() -> None:
    normal = NormalDist(math.log(CASUAL.session_median), CASUAL.session_sigma)
    hours = [math.exp(normal.inv_cdf(share)) for share in (0.876, 0.975)]
    assert hours == pytest.approx([8.0, 24.0], rel=0.02)
