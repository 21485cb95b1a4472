"""Votes on prices and capacity: the 66.67th percentile by shards, which no f shards push past all honest votes."""

from hypothesis import given
from hypothesis import strategies as st

from economics.geometry import quorum
from economics.pricing import Vote, highest_enough, lowest_enough


def test_a_price_is_the_lowest_that_a_quorum_does_not_exceed() -> None:
    assert lowest_enough([(10, 1), (40, 1), (20, 1), (30, 1)], quorum=3) == 30


def test_a_capacity_is_the_highest_that_a_quorum_offers() -> None:
    assert highest_enough([(10, 1), (40, 1), (20, 1), (30, 1)], quorum=3) == 20


def test_votes_weigh_by_shards() -> None:
    assert lowest_enough([(5, 8), (9, 1), (7, 1)], quorum=7) == 5
    assert highest_enough([(5, 8), (9, 1), (7, 1)], quorum=7) == 5


votes_of_members = st.lists(st.tuples(st.integers(0, 1_000), st.integers(1, 5)), min_size=4, max_size=12)


@given(votes_of_members, st.data())
def test_the_outcome_is_between_honest_votes(votes: list[Vote], data: st.DataObject) -> None:
    n = sum(shards for _, shards in votes)
    order = data.draw(st.permutations(votes))
    liars: list[Vote] = []
    for vote in order:
        if sum(shards for _, shards in [*liars, vote]) <= n - quorum(n):
            liars.append(vote)
    honest = list(order)
    for liar in liars:
        honest.remove(liar)
    told = [(data.draw(st.sampled_from([0, 10**9])), shards) for _, shards in liars]
    values = [value for value, _ in honest]
    assert min(values) <= lowest_enough(honest + told, quorum=quorum(n)) <= max(values)
    assert min(values) <= highest_enough(honest + told, quorum=quorum(n)) <= max(values)


@given(votes_of_members, st.data())
def test_the_order_of_votes_does_not_matter(votes: list[Vote], data: st.DataObject) -> None:
    shuffled, q = data.draw(st.permutations(votes)), quorum(sum(shards for _, shards in votes))
    assert lowest_enough(shuffled, quorum=q) == lowest_enough(votes, quorum=q)
    assert highest_enough(shuffled, quorum=q) == highest_enough(votes, quorum=q)
