"""Weight comes from the committee: shards are dealt in index order, and a member given twice weighs once."""

from hypothesis import given
from hypothesis import strategies as st

from economics.committee import Committee, Member
from economics.crypto import NodeId, OwnerId
from economics.errors import Reason
from tests.refusals import reason

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


@given(SHARES)
def test_is_read_back_from_what_its_hash_is_of(shares: list[int]) -> None:
    committee = make(shares)
    assert Committee.decode(committee.encode()) == committee


def test_of_another_size_or_impossible_shares_is_refused() -> None:
    data = make([1, 2, 4]).encode()
    for other in (b"", data[:-1], data + b"\0", data[:9] + b"\2" + data[10:], data[:9] + b"\4" + data[10:]):
        assert reason(Committee.decode, other) is Reason.MALFORMED
    for shares in ([], [1, 2], [4, 0], [200, 57], [65_535]):
        assert reason(Committee.decode, make(shares).encode()) is Reason.MALFORMED
    Committee.decode(make([200, 56]).encode())
    twice = data[:10] + data[10 : 10 + 66] * 2 + data[10 + 132 :]
    assert reason(Committee.decode, twice) is Reason.MALFORMED


def test_a_node_without_a_seat_has_no_index() -> None:
    committee = make([1, 2, 4])
    assert committee.index_of(NodeId(bytes([2]) * 32)) == 2
    assert committee.index_of(NodeId(bytes([9]) * 32)) is None
