"""The handover: whether a new committee holds what was certified before it (facts: Walrus' epoch change, 2.7).

Until a quorum of shards has reported, the source committee is read from and nobody else takes seats.
"""

from dataclasses import replace

from economics.arguments import ReportSync
from economics.committee import Committee
from economics.crypto import NodeId
from economics.nodes import Handover
from economics.operations import Code, Context, Failed
from economics.working import WorkingState


def begin(state: WorkingState, before: Committee, committee: Committee, *, height: int) -> None:
    """Begin a handover as an epoch begins, unless its committee is the one before it: then what goes on goes on.

    Who had reported and gains no shard owes nothing new, and counts as having reported. Who had not is still to say
    that it holds what it gained before: its word lets the old holders delete.
    """
    if before.in_epoch(committee.epoch) == committee:
        return
    last = state.handover()
    assert last.is_done, "seats are chosen only when the last handover is done"
    reported = {before.members[index].node for index in last.reporters}
    settled = tuple(
        index
        for index, member in enumerate(committee.members)
        if member.node in reported and set(committee.shards_of(index)) <= set(before.shards_of_node(member.node))
    )
    fresh = Handover(since_epoch=committee.epoch, source_epoch=before.epoch, done_height=0, reporters=settled)
    state.write(_ended_if_done(fresh, committee, height=height))


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
    return replace(handover, source_epoch=handover.since_epoch, done_height=height)
