"""What an epoch brings its members: slashes for who failed its challenges, then the bucket, by how they stood."""

from collections.abc import Sequence
from dataclasses import replace

from economics import staking
from economics.arguments import BASIS_POINTS
from economics.committee import Committee, Member
from economics.genesis import Parameters
from economics.nodes import Marks, NodeEntry
from economics.operations import add_rewards, credit
from economics.working import WorkingState

STORAGE_SLASH_PERCENT = 5
"""Of a node that answered most of an epoch's challenges wrongly: as much as for an equivocation."""
ABSENCE_SLASH_PERCENT = 1
"""Of a node that was away for `missed_epochs_max` epochs, once: others repair what it held."""


def settle(
    state: WorkingState, committee: Committee, marks: Sequence[Marks], *, rounds: int, parameters: Parameters
) -> None:
    """Slash and pay for an epoch that ends; `rounds` is in how many of its rounds enough members reported."""
    for member, mark in zip(committee.members, marks, strict=True):
        _judge(state, member, mark, parameters)
    _pay(state, committee, marks, rounds=rounds, parameters=parameters)


def _node_of(state: WorkingState, member: Member) -> NodeEntry:
    entry = state.node(member.node)
    assert entry is not None, "a member of a committee is registered"
    return entry


def _judge(state: WorkingState, member: Member, mark: Marks, parameters: Parameters) -> None:
    """Lies are slashed in the epoch, absence only when it lasts: one missed epoch costs its rewards and no stake."""
    if not mark.challenged:
        return
    lied = mark.challenged >= 2 and 2 * mark.bad > mark.challenged
    if lied:
        staking.burn(state, staking.slash(state, member.node, STORAGE_SLASH_PERCENT))
    away = not lied and 2 * mark.passed < mark.challenged
    entry = _node_of(state, member)
    missed = min(entry.missed_epochs + 1, parameters.missed_epochs_max) if away else 0
    state.write(replace(entry, missed_epochs=missed))
    if missed == parameters.missed_epochs_max and entry.missed_epochs < missed:
        staking.burn(state, staking.slash(state, member.node, ABSENCE_SLASH_PERCENT))


def _pay(
    state: WorkingState, committee: Committee, marks: Sequence[Marks], *, rounds: int, parameters: Parameters
) -> None:
    """Empty the epoch's bucket: a part is burned, members are paid, and what is left goes to the next epoch's."""
    bucket = state.bucket(committee.epoch)
    state.put(bucket.slot, None)
    burned = bucket.rewards_frost * parameters.burn_basis_points // BASIS_POINTS
    staking.burn(state, burned)
    rest = left = bucket.rewards_frost - burned
    handover = state.handover()
    for index, (member, mark) in enumerate(zip(committee.members, marks, strict=True)):
        passed, challenged = (mark.passed, mark.challenged) if mark.challenged else (1, 1)
        if (
            not handover.is_done and index not in handover.reporters
        ):  # nobody lives on shards that it does not take over
            passed = 0
        reward = rest * member.shards * passed // (committee.n * challenged)
        if 2 * mark.unreported > rounds:
            reward //= 2
        _reward(state, member, reward, epoch=committee.epoch)
        left -= reward
    add_rewards(state, committee.epoch + 1, left)


def _reward(state: WorkingState, member: Member, amount_frost: int, *, epoch: int) -> None:
    """Give the owner its commission and the rest to the pool, as more FROST behind the same shares."""
    entry = _node_of(state, member)
    is_next = epoch >= entry.commission_epoch
    rate = entry.next_commission_basis_points if is_next else entry.commission_basis_points
    commission = amount_frost * rate // BASIS_POINTS if entry.shares else amount_frost
    credit(state, member.owner, commission)
    if amount_frost > commission:
        state.write(replace(entry, stake_frost=entry.stake_frost + amount_frost - commission))
