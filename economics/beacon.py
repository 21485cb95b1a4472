"""The beacon: members peel their hash onions into a seed that no leader can choose (FORMATS.md 17).

A leader may only reveal the one value it is bound to, or lose its block: contents and order of blocks do not count.
"""

from dataclasses import replace

from economics.arguments import CommitBeacon
from economics.block import BlockHeader
from economics.committee import Committee
from economics.crypto import Digest, Level, NodeId, digest
from economics.nodes import NO_COMMITMENT, Beacon
from economics.operations import Code, Context, Failed
from economics.slots import beacon_slot, node_slot
from economics.working import WorkingState

COMMITMENT_EPOCHS = 2
"""A tip counts from so many epochs on: who commits to it cannot know the seed that its reveals will meet."""


def peel(reveal: bytes) -> Digest:
    """Return the tip that this value is the next reveal of."""
    return digest(Level.BEACON, reveal)


def in_force(beacon: Beacon, *, epoch: int) -> Beacon:
    """Return an onion as it is in `epoch`: a later tip has taken its place once it counts."""
    if beacon.next_tip == NO_COMMITMENT or beacon.next_epoch > epoch:
        return beacon
    return replace(beacon, tip=beacon.next_tip, from_epoch=beacon.next_epoch, next_tip=NO_COMMITMENT, next_epoch=0)


def is_due(beacon: Beacon, *, epoch: int, number: int) -> bool:
    """Return whether a reveal in round `number` of `epoch` may count: once a round, so that an onion lasts."""
    counts = in_force(beacon, epoch=epoch).from_epoch <= epoch
    return counts and (beacon.revealed_epoch, beacon.revealed_round) != (epoch, number)


def revealed(beacon: Beacon, shown: bytes, *, epoch: int, number: int) -> Beacon | None:
    """Return what is left of an onion after a reveal in round `number` of `epoch`, or None if it does not count."""
    if not is_due(beacon, epoch=epoch, number=number):
        return None
    beacon = in_force(beacon, epoch=epoch)
    if peel(shown) != beacon.tip:
        return None
    return replace(beacon, tip=Digest(shown), revealed_epoch=epoch, revealed_round=number)


def beacon_of(state: WorkingState, node: NodeId) -> Beacon | None:
    value = state.get(beacon_slot(node))
    assert value is None or isinstance(value, Beacon)
    return value


def commit(context: Context, operation: CommitBeacon) -> None:
    """Bind a node, whose key sends this, to an onion; one that does not count yet is replaced."""
    node, state = NodeId(context.sender), context.state
    if state.get(node_slot(node)) is None:
        raise Failed(Code.NOT_A_NODE)
    beacon = beacon_of(state, node)
    counts_from = context.epoch + COMMITMENT_EPOCHS
    if beacon is None:
        made = Beacon(node, operation.tip, counts_from, NO_COMMITMENT, 0, revealed_epoch=0, revealed_round=0)
    else:
        made = replace(in_force(beacon, epoch=context.epoch), next_tip=operation.tip, next_epoch=counts_from)
    state.write(made)


def reveal(state: WorkingState, header: BlockHeader, committee: Committee, *, number: int) -> None:
    """Take what a block's leader reveals in round `number`; what does not count changes nothing."""
    beacon = beacon_of(state, committee.members[header.leader].node)
    left = None if beacon is None else revealed(beacon, header.reveal, epoch=header.epoch, number=number)
    if left is None:
        return
    state.write(left)
    system = state.system()
    state.write(replace(system, seed=digest(Level.SEED, system.seed + header.reveal)))
