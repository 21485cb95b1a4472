"""The handover: whether a new committee holds what was certified before it (facts: Walrus' epoch change, 2.7).

Until a quorum of shards has reported, the source committee is read from too. Nobody else takes seats for a while; then
seats are dealt anew, the handover has one more stage, and what was certified before each stage goes on being read from
all that have had it since. No stage ends before the others: a quorum's reports are of all that is older.
"""

from dataclasses import replace

from economics.arguments import ReportSync
from economics.committee import Committee
from economics.crypto import NodeId
from economics.genesis import Parameters
from economics.nodes import Handover
from economics.operations import Code, Context, Failed
from economics.working import WorkingState

STAGES_MAX = 4
"""Committees beside the current one that a reader may have to ask: then seats wait for the handover after all."""


def begin(state: WorkingState, before: Committee, committee: Committee, *, height: int) -> None:
    """Begin a handover as an epoch begins, unless its committee is the one before it: then what goes on goes on.

    Who had reported and gains no shard owes nothing new, and counts as having reported. Who had not is still to say
    that it holds what it gained before: its word lets the old holders delete.
    """
    if before.in_epoch(committee.epoch) == committee:
        return
    last = state.handover()
    reported = {before.members[index].node for index in last.reporters}
    settled = tuple(
        index
        for index, member in enumerate(committee.members)
        if member.node in reported and set(committee.shards_of(index)) <= set(before.shards_of_node(member.node))
    )
    fresh = Handover(
        since_epoch=committee.epoch,
        source_epoch=before.epoch,
        done_height=0,
        reporters=settled,
        older=last.stages,
    )
    state.write(_ended_if_done(fresh, committee, height=height))


def is_waited_for(handover: Handover, *, next_epoch: int, parameters: Parameters) -> bool:
    """Return whether the seats of the next epoch stay as they are because shards are on their way.

    Not for ever: members that will not or cannot take over what they were dealt keep nobody else out.
    """
    if handover.is_done:
        return False
    is_overdue = next_epoch - handover.since_epoch >= parameters.missed_epochs_max
    return not is_overdue or len(handover.stages) >= STAGES_MAX


def is_overdue(handover: Handover, *, epoch: int, parameters: Parameters) -> bool:
    """Return whether members are challenged though shards are on their way: they have been for too long.

    Else who holds up a handover would never be missed, and keep its seat for ever.
    """
    return bool(handover.stages) and epoch - handover.stages[0].since_epoch >= parameters.missed_epochs_max


def report(context: Context, operation: ReportSync, committee: Committee) -> None:
    """Take a member's word that it holds all it owes; after the handover is done it still lets old holders delete."""
    index, handover = committee.index_of(NodeId(context.sender)), context.state.handover()
    if index is None:
        raise Failed(Code.NOT_MEMBER)
    if operation.epoch != context.epoch:
        raise Failed(Code.WRONG_EPOCH)
    if index in handover.reporters:
        raise Failed(Code.ALREADY_REPORTED)
    told = replace(handover, reporters=tuple(sorted((*handover.reporters, index))))
    context.state.write(_ended_if_done(told, committee, height=context.height))


def _ended_if_done(handover: Handover, committee: Committee, *, height: int) -> Handover:
    if handover.is_done or committee.weight(handover.reporters) < committee.quorum:
        return handover
    return replace(handover, source_epoch=handover.since_epoch, done_height=height, older=())
