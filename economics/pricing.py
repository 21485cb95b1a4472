"""What members' votes make of prices and capacity, by weight: no f shards move either past all honest votes."""

from collections.abc import Iterable

Vote = tuple[int, int]
"""(what is voted for, shards)."""


def lowest_enough(votes: Iterable[Vote], *, quorum: int) -> int:
    """Return the lowest value that votes of a quorum of shards do not exceed: the 66.67th percentile (prices)."""
    return _reach(sorted(votes), quorum)


def highest_enough(votes: Iterable[Vote], *, quorum: int) -> int:
    """Return the highest value that votes of a quorum of shards reach (capacity)."""
    return _reach(sorted(votes, reverse=True), quorum)


def _reach(votes: list[Vote], quorum: int) -> int:
    weight = 0
    for value, shards in votes:
        weight += shards
        if weight >= quorum:
            return value
    raise AssertionError("all members together are a quorum")
