"""Weight comes from the committee: shards are dealt in index order, and a member given twice weighs once."""

from hypothesis import given
from hypothesis import strategies as st

from economics.committee import Committee, Member
from economics.crypto import NodeId, OwnerId

SHARES = st.lists(st.integers(1, 20), min_size=1, max_size=12).filter(lambda shares: sum(shares) >= 4)


def make(shares: list[int]) -> Committee:
    members = tuple(
        Member(NodeId(bytes([index]) * 32), OwnerId(bytes(32)), share, ()) for index, share in enumerate(shares)
    )
    return Committee(3, members)


@given(SHARES)
def test_shards_are_dealt_in_index_order_each_to_one_member(shares: list[int]) -> None:
    committee = make(shares)
    dealt = [shard for index in range(len(shares)) for shard in committee.shards_of(index)]
    assert dealt == list(range(committee.n)) == list(range(sum(shares)))
    assert [committee.holder(shard) for shard in dealt] == [
        index for index, share in enumerate(shares) for _ in range(share)
    ]


@given(SHARES)
def test_any_two_quorums_share_a_correct_shard(shares: list[int]) -> None:
    committee = make(shares)
    faulty = (committee.n - 1) // 3
    assert 2 * committee.quorum - committee.n > faulty
    assert committee.n - faulty >= committee.quorum


def test_weight_counts_a_member_once() -> None:
    committee = make([1, 2, 4])
    assert committee.weight([2, 0]) == 5
    assert committee.weight([2, 2, 2]) == 4
    assert committee.weight([]) == 0


def test_a_node_without_a_seat_has_no_index() -> None:
    committee = make([1, 2, 4])
    assert committee.index_of(NodeId(bytes([2]) * 32)) == 2
    assert committee.index_of(NodeId(bytes([9]) * 32)) is None
