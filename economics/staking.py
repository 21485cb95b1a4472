"""Stake: FROST that its owner puts on a node. A node's stakes are shares of one pool: a reward or a slash is one sum.

All divisions favour the pool: who puts FROST in and takes it out again never gains by it.
"""

from collections import defaultdict
from dataclasses import replace

from economics.arguments import PutStake, Unstake
from economics.crypto import Level, NodeId, digest
from economics.genesis import FROST_MAX, FROST_PER_WAL
from economics.nodes import NodeEntry, Phase, Stake
from economics.operations import Code, Context, Failed, credit
from economics.slots import StakeId
from economics.working import WorkingState

STAKE_FROST_MIN = FROST_PER_WAL
"""1 WAL: less would cost the state more than it secures."""
LOSS_SHARE = 1_000
"""Rounding may take so small a part of a stake: else who leaves one share in a pool that still earns, as nobody can
take the node's seats, would have up to half of what others put there."""


def put(context: Context, operation: PutStake) -> None:
    entry = context.state.node(operation.node)
    if entry is None or not entry.capacity_units:
        raise Failed(Code.NOT_A_NODE)
    if operation.amount_frost < STAKE_FROST_MIN:
        raise Failed(Code.WRONG_AMOUNT)
    context.pay(operation.amount_frost)
    context.state.write(
        Stake(
            stake=_new_id(context),
            owner=context.sender,
            node=operation.node,
            phase=Phase.WAITING,
            frost=operation.amount_frost,
            shares=0,
            turn_epoch=context.open_epoch,
        )
    )


def _new_id(context: Context) -> StakeId:
    return StakeId(digest(Level.STAKE, context.transaction))


def unstake(context: Context, operation: Unstake) -> None:
    """Take a stake back: a waiting one at once; an active one, or a part, when it has left the pool and unbound.

    A waiting one that the cut-off has counted stays: its node has seats for it, and is to have something to lose.
    """
    stake = context.state.stake(operation.stake)
    if stake is None:
        raise Failed(Code.NOT_FOUND)
    if stake.owner != context.sender:
        raise Failed(Code.NOT_OWNER)
    match stake.phase:
        case Phase.WAITING:
            if operation.shares or stake.turn_epoch < context.open_epoch:
                raise Failed(Code.WRONG_PHASE)
            context.state.put(stake.slot, None)
            credit(context.state, stake.owner, stake.frost)
        case Phase.ACTIVE:
            _leave(context, stake, operation.shares or stake.shares)
        case Phase.LEAVING | Phase.UNBONDING:
            raise Failed(Code.WRONG_PHASE)


def _leave(context: Context, stake: Stake, shares: int) -> None:
    if shares > stake.shares:
        raise Failed(Code.WRONG_AMOUNT)
    leaving = replace(stake, phase=Phase.LEAVING, shares=shares, turn_epoch=context.open_epoch)
    if shares < stake.shares:
        context.state.write(replace(stake, shares=stake.shares - shares))
        leaving = replace(leaving, stake=_new_id(context))
    context.state.write(leaving)


def stakes_in(state: WorkingState, epoch: int) -> defaultdict[NodeId, int]:
    """Return what will stand behind each node when `epoch` begins, should nothing change until then.

    Only nodes on which there is stake are looked at, which costs who put it: registering alone is cheap.
    """
    waiting: defaultdict[NodeId, int] = defaultdict(int)
    leaving: defaultdict[NodeId, int] = defaultdict(int)
    for slot in state.indexes.turning.get(epoch):
        stake = state.stake_at(slot)
        waiting[stake.node] += stake.frost if stake.phase is Phase.WAITING else 0
        leaving[stake.node] += stake.shares
    stakes: defaultdict[NodeId, int] = defaultdict(int)
    for node in sorted(state.indexes.staked):
        entry = state.node(node)
        assert entry is not None, "a node that has stake is registered"
        staying = entry.stake_frost * (entry.shares - leaving[entry.node]) // max(entry.shares, 1)
        stakes[node] = staying + waiting[node]
    return stakes


def turn(state: WorkingState, epoch: int, *, unbonding_epochs: int) -> None:
    """End the phase of every stake that turns as `epoch` begins, ascending by ID."""
    for slot in sorted(state.indexes.turning.get(epoch)):
        stake = state.stake_at(slot)
        match stake.phase:
            case Phase.WAITING:
                _join_pool(state, stake)
            case Phase.LEAVING:
                _leave_pool(state, stake, epoch + unbonding_epochs)
            case Phase.UNBONDING:
                _pay_back(state, stake)
            case Phase.ACTIVE:
                raise AssertionError("an active stake turns when its owner says so")
        unbound = state.stake(stake.stake)
        if not unbonding_epochs and unbound is not None and unbound.phase is Phase.UNBONDING:
            _pay_back(state, unbound)


def _node_of(state: WorkingState, stake: Stake) -> NodeEntry:
    entry = state.node(stake.node)
    assert entry is not None, "a node that has stake is registered"
    return entry


def _join_pool(state: WorkingState, stake: Stake) -> None:
    """Turn FROST into shares at the pool's rate; where that loses too much by rounding, as where it gives none, or
    makes too many for a u64, it is paid back."""
    entry = _node_of(state, stake)
    if not entry.shares:
        shares = worth = stake.frost
    elif not entry.stake_frost:
        shares = worth = 0
    else:
        shares = stake.frost * entry.shares // entry.stake_frost
        worth = shares * entry.stake_frost // entry.shares
    if (stake.frost - worth) * LOSS_SHARE > stake.frost or shares > FROST_MAX - entry.shares:
        _pay_back(state, stake)
        return
    pool = replace(entry, stake_frost=entry.stake_frost + stake.frost, shares=entry.shares + shares)
    state.write(pool)
    state.write(replace(stake, phase=Phase.ACTIVE, frost=0, shares=shares, turn_epoch=0))


def _leave_pool(state: WorkingState, stake: Stake, paid_epoch: int) -> None:
    """Turn shares into FROST at the pool's rate; the last ones take what divisions have left in it."""
    entry = _node_of(state, stake)
    frost = stake.shares * entry.stake_frost // entry.shares
    state.write(replace(entry, stake_frost=entry.stake_frost - frost, shares=entry.shares - stake.shares))
    unbonding = replace(stake, phase=Phase.UNBONDING, frost=frost, shares=0, turn_epoch=paid_epoch)
    state.put(stake.slot, unbonding if frost else None)


def _pay_back(state: WorkingState, stake: Stake) -> None:
    state.put(stake.slot, None)
    credit(state, stake.owner, stake.frost)


def slash(state: WorkingState, node: NodeId, percent: int) -> int:
    """Take so much of a node's pool and of what is unbonding from it; returns the FROST, which the caller owes on."""
    entry = state.node(node)
    assert entry is not None, "a member of a committee is registered"
    slashed = entry.stake_frost * percent // 100
    state.write(replace(entry, stake_frost=entry.stake_frost - slashed))
    for slot in sorted(state.indexes.staked.get(node)):
        stake = state.stake_at(slot)
        if stake.phase is Phase.UNBONDING:
            part = stake.frost * percent // 100
            state.put(slot, replace(stake, frost=stake.frost - part) if stake.frost > part else None)
            slashed += part
    return slashed


def burn(state: WorkingState, amount_frost: int) -> None:
    """Destroy FROST that has been taken from somebody."""
    if amount_frost:
        system = state.system()
        state.write(replace(system, burned_frost=system.burned_frost + amount_frost))
