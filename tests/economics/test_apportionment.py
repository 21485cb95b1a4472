"""Seats by stake: D'Hondt to the seat, caps kept, more stake never fewer shards, and only surplus shards move."""

from fractions import Fraction

from hypothesis import assume, given
from hypothesis import strategies as st

from economics.apportionment import apportion, reseat
from economics.committee import Committee, Member
from economics.crypto import NodeId, OwnerId

NODES = [NodeId(bytes([index]) * 32) for index in range(1, 9)]
OWNERS = {node: OwnerId(node) for node in NODES}
stakes_of_nodes = st.lists(st.integers(1, 10**18), min_size=2, max_size=8)


def named(values: list[int]) -> dict[NodeId, int]:
    return dict(zip(NODES, values, strict=False))


def uncapped(stakes: dict[NodeId, int], n: int) -> dict[NodeId, int]:
    return dict.fromkeys(stakes, n)


def test_a_known_election_comes_out_as_in_the_textbook() -> None:
    """Eight seats for 100,000, 80,000, 30,000 and 20,000 votes: the common example of the method."""
    stakes = named([100_000, 80_000, 30_000, 20_000])
    assert apportion(stakes, uncapped(stakes, 8), n=8) == named([4, 3, 1])


def test_equal_stakes_go_to_the_lower_id_first() -> None:
    stakes = named([7, 7, 7])
    assert apportion(stakes, uncapped(stakes, 4), n=4) == named([2, 1, 1])


def test_what_is_over_a_cap_goes_to_the_next() -> None:
    assert apportion(named([1_000, 10, 10]), named([2, 2, 3]), n=6) == named([2, 2, 2])


def test_caps_that_hold_fewer_than_all_shards_give_nothing() -> None:
    assert apportion(named([5, 5]), named([2, 3]), n=6) is None


@given(stakes_of_nodes, st.lists(st.integers(0, 9), min_size=8, max_size=8), st.integers(4, 30))
def test_all_shards_are_dealt_within_the_caps_and_no_seat_has_a_better_claim(
    values: list[int], limits: list[int], n: int
) -> None:
    stakes, caps = named(values), named(limits)
    due = apportion(stakes, caps, n=n)
    assume(due is not None)
    assert due is not None
    assert sum(due.values()) == n
    assert all(0 < count <= caps[node] for node, count in due.items())
    lowest_served = min(Fraction(stakes[node], count) for node, count in due.items())
    waiting = [node for node in stakes if due.get(node, 0) < caps[node]]
    assert all(Fraction(stakes[node], due.get(node, 0) + 1) <= lowest_served for node in waiting)


@given(stakes_of_nodes, st.integers(0, 7), st.integers(1, 10**18), st.integers(4, 30))
def test_more_stake_is_never_fewer_shards(values: list[int], who: int, more: int, n: int) -> None:
    stakes = named(values)
    node = NODES[who % len(values)]
    before = apportion(stakes, uncapped(stakes, n), n=n)
    after = apportion({**stakes, node: stakes[node] + more}, uncapped(stakes, n), n=n)
    assert before is not None
    assert after is not None
    assert after.get(node, 0) >= before.get(node, 0)


def committee(counts: list[int]) -> Committee:
    return Committee(3, tuple(Member(node, OWNERS[node], count) for node, count in zip(NODES, counts, strict=False)))


def test_who_stays_keeps_its_place_and_its_lowest_shards_and_new_ones_come_after() -> None:
    due = {NODES[7]: 1, NODES[5]: 2, NODES[0]: 2, NODES[2]: 4}
    after = reseat(committee([3, 2, 4]), due, OWNERS, epoch=4)
    assert after.epoch == 4
    assert [(member.node, member.shards) for member in after.members] == [
        (NODES[0], 2),
        (NODES[2], 4),
        (NODES[5], 2),
        (NODES[7], 1),
    ]
    assert after.holders == (0, 0, 2, 2, 3, 1, 1, 1, 1)


@given(st.lists(st.integers(1, 5), min_size=4, max_size=8), st.lists(st.integers(1, 10**6), min_size=2, max_size=8))
def test_only_surplus_shards_move(counts: list[int], values: list[int]) -> None:
    before, stakes = committee(counts), named(values)
    due = apportion(stakes, uncapped(stakes, before.n), n=before.n)
    assert due is not None
    after = reseat(before, due, OWNERS, epoch=4)
    assert {member.node: member.shards for member in after.members} == due
    assert after.n == before.n
    for member in after.members:
        held, holds = set(before.shards_of_node(member.node)), set(after.shards_of_node(member.node))
        assert len(holds) == member.shards
        assert len(held & holds) == min(len(held), len(holds))
