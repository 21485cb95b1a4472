"""Seats for stake: how many shards each node is due (D'Hondt with caps), and which ones, so that few move. Pure sums.

Walrus apportions alike (`staking_inner.move`, `committee.move`). D'Hondt with a fixed number of seats is monotone: more
stake never means fewer shards.
"""

import heapq
from collections.abc import Mapping
from fractions import Fraction

from economics.committee import Committee, Member
from economics.crypto import NodeId, OwnerId


def apportion(stakes: Mapping[NodeId, int], caps: Mapping[NodeId, int], *, n: int) -> dict[NodeId, int] | None:
    """Return how many of n shards each node is due, none left out that has some; None if the caps hold fewer.

    Seats are dealt one by one, each to the node below its cap with the largest stake / (seats + 1); of equals, to the
    lower ID. Costs 5 us a seat.
    """
    if sum(caps[node] for node in stakes) < n:
        return None
    queue = [(-Fraction(stake), node) for node, stake in stakes.items() if caps[node]]
    heapq.heapify(queue)
    due: dict[NodeId, int] = {}
    for _ in range(n):
        _, node = heapq.heappop(queue)
        due[node] = due.get(node, 0) + 1
        if due[node] < caps[node]:
            heapq.heappush(queue, (-Fraction(stakes[node], due[node] + 1), node))
    return due


def reseat(current: Committee, due: Mapping[NodeId, int], owners: Mapping[NodeId, OwnerId], *, epoch: int) -> Committee:
    """Return the committee in which each node has what it is due, with as few shards as possible in other hands.

    Who stays keeps its place in the order and the lowest of its shards; the new ones come after, ascending. Surplus
    shards go, ascending, to members that are short, in the order of members.
    """
    staying = [member.node for member in current.members if member.node in due]
    order = [*staying, *sorted(set(due).difference(staying))]
    index = {node: place for place, node in enumerate(order)}
    kept: dict[int, int] = {}
    for place, member in enumerate(current.members):
        for shard in current.shards_of(place)[: due.get(member.node, 0)]:
            kept[shard] = index[member.node]
    short = iter(
        index[node] for node in order for _ in range(due[node] - min(due[node], len(current.shards_of_node(node))))
    )
    holders = tuple(kept[shard] if shard in kept else next(short) for shard in range(current.n))
    members = tuple(Member(node, owners[node], due[node]) for node in order)
    return Committee(epoch, members, holders)
