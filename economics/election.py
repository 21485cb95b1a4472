"""What the cut-off of an epoch fixes: who holds which shards in the next one, and on which terms it sells storage."""

from economics import handover, staking
from economics.apportionment import apportion, reseat
from economics.committee import Committee
from economics.crypto import NodeId
from economics.genesis import Parameters
from economics.nodes import NodeEntry, Seats, Terms
from economics.pricing import highest_enough, lowest_enough
from economics.working import WorkingState

PRICE_FROST_MAX = 1 << 40
"""As of a price in genesis: products of an amount and a price stay far below 2^128."""


def fix_next_epoch(state: WorkingState, committee: Committee, parameters: Parameters) -> None:
    """Write seats and terms of the epoch after the committee's (FORMATS.md 18)."""
    sold = sold_units(state, from_epoch=committee.epoch + 1)
    following = _elect(state, committee, parameters, sold_units=sold)
    state.write(Seats(following))
    state.write(_vote(state, following, sold_units=sold))


def sold_units(state: WorkingState, *, from_epoch: int) -> int:
    """Return the most that is sold of any epoch from this one on."""
    return max((state.bucket(epoch).used_units for epoch in state.indexes.buckets if epoch >= from_epoch), default=0)


def _elect(state: WorkingState, committee: Committee, parameters: Parameters, *, sold_units: int) -> Committee:
    """Return the next committee; the current one goes on while shards are waited for, or if the caps are too low."""
    same = committee.in_epoch(committee.epoch + 1)
    if handover.is_waited_for(state.handover(), next_epoch=same.epoch, parameters=parameters):
        return same
    stakes = staking.stakes_in(state, committee.epoch + 1)
    candidates: dict[NodeId, NodeEntry] = {}
    for node, stake_frost in stakes.items():
        entry = state.node(node)
        if entry is not None and stake_frost and _is_candidate(entry, parameters):
            candidates[node] = entry
    faulty = committee.n - committee.quorum
    caps = {
        node: min(faulty, entry.capacity_units * committee.n // max(sold_units, 1))
        for node, entry in candidates.items()
    }
    due = apportion({node: stakes[node] for node in candidates}, caps, n=committee.n)
    if due is None or due == {member.node: member.shards for member in committee.members}:
        return same
    owners = {node: entry.owner for node, entry in candidates.items()}
    return reseat(committee, due, owners, epoch=committee.epoch + 1)


def _is_candidate(entry: NodeEntry, parameters: Parameters) -> bool:
    return entry.capacity_units > 0 and entry.missed_epochs < parameters.missed_epochs_max


def _vote(state: WorkingState, committee: Committee, *, sold_units: int) -> Terms:
    """Return what the members of a committee will sell storage for; what is sold already stays sold."""
    voters: list[tuple[NodeEntry, int]] = []
    for member in committee.members:
        entry = state.node(member.node)
        assert entry is not None, "a member of a committee is registered"
        voters.append((entry, member.shards))
    quorum = committee.quorum
    storage = lowest_enough(((entry.storage_vote_frost, shards) for entry, shards in voters), quorum=quorum)
    write = lowest_enough(((entry.write_vote_frost, shards) for entry, shards in voters), quorum=quorum)
    offers = ((entry.capacity_units * committee.n // shards, shards) for entry, shards in voters)
    capacity = max(sold_units, highest_enough(offers, quorum=quorum))
    return Terms(
        committee.epoch,
        capacity_units=min(capacity, (1 << 64) - 1),
        storage_frost_per_unit=min(storage, PRICE_FROST_MAX),
        write_frost_per_unit=min(write, PRICE_FROST_MAX),
    )
