"""The state that a network begins with (FORMATS.md 11): what genesis says, as values."""

from collections.abc import Iterator

from economics.committee import Member
from economics.crypto import Level, NodeId, digest
from economics.genesis import Genesis
from economics.nodes import Handover, Marks, NodeEntry, Phase, Seats, Stake, Standing, Terms
from economics.slots import StakeId
from economics.state import Account, System, Value

FIRST_COMMISSION_BASIS_POINTS = 1_000
"""What the first members' owners take of their pools' rewards until they say otherwise: a tenth."""


def genesis_values(genesis: Genesis) -> Iterator[Value]:
    """Yield the values of the state after height 0: every first member has its own stake and votes for what holds."""
    parameters = genesis.parameters
    nodes = [_first_node(genesis, member) for member in genesis.members]
    minted = sum(account.balance_frost for account in genesis.accounts) + sum(node.stake_frost for node in nodes)
    yield System(epoch=0, epoch_start_ms=genesis.time_ms, minted_frost=minted, burned_frost=0)
    yield from (Account(account.key, account.balance_frost, 0) for account in genesis.accounts)
    yield from nodes
    yield from (_first_stake(node) for node in nodes if node.shares)
    yield Seats(genesis.committee)
    yield Terms(0, parameters.capacity_units, parameters.storage_frost_per_unit, parameters.write_frost_per_unit)
    everyone = range(len(genesis.members))
    yield Handover(since_epoch=0, source_epoch=0, done_height=0, reporters=tuple(everyone))
    yield Standing(0, 0, tuple(Marks() for _ in everyone))


def _first_node(genesis: Genesis, member: Member) -> NodeEntry:
    parameters = genesis.parameters
    stake_frost = member.shards * parameters.stake_frost_per_shard
    return NodeEntry(
        node=member.node,
        owner=member.owner,
        stake_frost=stake_frost,
        shares=stake_frost,
        capacity_units=-(-parameters.capacity_units * member.shards // genesis.committee.n),
        storage_vote_frost=parameters.storage_frost_per_unit,
        write_vote_frost=parameters.write_frost_per_unit,
        commission_basis_points=FIRST_COMMISSION_BASIS_POINTS,
        next_commission_basis_points=FIRST_COMMISSION_BASIS_POINTS,
        commission_epoch=0,
        missed_epochs=0,
        addresses=member.addresses,
    )


def first_stake_id(node: NodeId) -> StakeId:
    """Return the ID of the stake that a first member begins with."""
    return StakeId(digest(Level.STAKE, node))


def _first_stake(node: NodeEntry) -> Stake:
    return Stake(first_stake_id(node.node), node.owner, node.node, Phase.ACTIVE, 0, node.shares, 0)
