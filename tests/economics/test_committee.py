"""Weight and place come from the committee: shards are where its holders say, and a member given twice weighs once."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from economics.committee import Committee, Member
from economics.crypto import NodeId, OwnerId
from economics.errors import Reason, Rejected
from tests import reference
from tests.refusals import reason
from tests.small import OPERATORS

FROZEN: dict[str, Any] = json.loads((reference.VECTORS / "blocks.json").read_text())
SHARES = st.lists(st.integers(1, 20), min_size=1, max_size=12).filter(lambda shares: sum(shares) >= 4)
HOLDERS = SHARES.flatmap(
    lambda shares: st.permutations([index for index, share in enumerate(shares) for _ in range(share)])
)
"""Shards of a few members, however they have moved."""


def make(shares: list[int], holders: tuple[int, ...] = ()) -> Committee:
    members = tuple(
        Member(NodeId(bytes([index]) * 32), OwnerId(bytes(32)), share, ()) for index, share in enumerate(shares)
    )
    return Committee(3, members, holders)


def make_held(holders: list[int]) -> Committee:
    held = Counter(holders)
    return make([held[index] for index in range(len(held))], tuple(holders))


@given(SHARES)
def test_shards_are_dealt_in_index_order_if_no_holders_are_given(shares: list[int]) -> None:
    committee = make(shares)
    dealt = [shard for index in range(len(shares)) for shard in committee.shards_of(index)]
    assert dealt == list(range(committee.n)) == list(range(sum(shares)))
    assert committee == make(shares, tuple(index for index, share in enumerate(shares) for _ in range(share)))


@given(HOLDERS)
def test_a_shard_is_its_holders_and_nobody_else_s(holders: list[int]) -> None:
    committee = make_held(holders)
    for index, member in enumerate(committee.members):
        shards = committee.shards_of(index)
        assert shards == committee.shards_of_node(member.node) == tuple(sorted(shards))
        assert (len(shards), {committee.holder(shard) for shard in shards}) == (member.shards, {index})
    assert sum(len(committee.shards_of(index)) for index in range(len(committee.members))) == committee.n


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


def test_is_its_frozen_bytes() -> None:
    members = tuple(
        Member(NodeId(key.public), OwnerId(bytes([0x20 + index]) * 32), shards)
        for index, (key, shards) in enumerate(zip(OPERATORS, (2, 2, 3), strict=False))
    )
    committee = Committee(6, members, holders=(2, 0, 1, 1, 2, 0, 2))
    assert committee.encode().hex() == FROZEN["committee"]
    assert committee.hash.hex() == FROZEN["committee_hash"]
    assert Committee.decode(committee.encode()) == committee


def test_its_hash_binds_who_holds_what_in_which_epoch() -> None:
    committee = make([1, 2, 4])
    others = [committee.in_epoch(4), make([1, 2, 4], (2, 1, 1, 0, 2, 2, 2)), make([2, 1, 4])]
    assert len({one.hash for one in (committee, *others)}) == 4
    assert committee.in_epoch(4).in_epoch(3) == committee


@given(HOLDERS)
def test_is_read_back_from_what_its_hash_is_of(holders: list[int]) -> None:
    committee = make_held(holders)
    assert Committee.decode(committee.encode()) == committee


def encode(holders: list[int], *, members: int = 3) -> bytes:
    keys = [(bytes([index]) * 32, bytes(32)) for index in range(members)]
    return reference.committee(3, keys, holders)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        encode([0, 1, 2, 2])[:-1],
        encode([0, 1, 2, 2]) + b"\0",
        encode([0, 1, 2]),
        encode([0, 1, 2, *[2] * 254]),
        encode([], members=0),
        encode([0, 1, 2, 3]),
        encode([0, 1, 1, 255]),
        encode([0, 1, 1, 0]),
        encode([0, 1, 2, 2], members=2),
        reference.committee(3, [(bytes(32), bytes(32)), (bytes(32), bytes([1]) * 32)], [0, 0, 1, 1]),
    ],
    ids=[
        "nothing",
        "a byte short",
        "a byte too many",
        "three shards",
        "257 shards",
        "nobody",
        "a holder that is no member",
        "a holder far out of range",
        "a member without a shard",
        "a member too few",
        "a node twice",
    ],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    assert reason(Committee.decode, data) is Reason.MALFORMED


def test_256_shards_are_not_too_many() -> None:
    assert Committee.decode(encode([0, 1, 2, *[2] * 253])).n == 256


@settings(max_examples=300)
@given(st.binary(max_size=300), st.integers(0, 207))
def test_whatever_is_read_is_written_back_alike(tail: bytes, front: int) -> None:
    data = encode([0, 1, 2, 2, 1])[:front] + tail
    try:
        committee = Committee.decode(data)
    except Rejected:
        return
    assert committee.encode() == data


def test_a_node_without_a_seat_has_no_index_and_no_shards() -> None:
    committee, nobody = make([1, 2, 4]), NodeId(bytes([9]) * 32)
    assert committee.index_of(NodeId(bytes([2]) * 32)) == 2
    assert (committee.index_of(nobody), committee.shards_of_node(nobody)) == (None, ())
