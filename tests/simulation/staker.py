"""Who owns all first members and stakes on all nodes: turns the moves of a scenario into operations, one by one."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from economics.arguments import Operation, PutStake, RegisterNode, Unstake, node_message
from economics.beginning import first_stake_id
from economics.crypto import Level, OwnerId, digest
from economics.genesis import Genesis
from economics.slots import StakeId
from economics.transactions import SignedTransaction
from tests.simulation.keys import Roster
from tests.simulation.scenario import Move, MoveKind


@dataclass(slots=True)
class Staker:
    """Remembers what it has asked for, and which stakes that has made."""

    genesis: Genesis
    roster: Roster
    owner: OwnerId
    asked: list[SignedTransaction] = field(default_factory=list)
    """In order; whoever signs for it adds what it has signed."""
    _stakes: dict[int, list[StakeId]] = field(default_factory=dict)
    """Node -> the stakes on it."""

    def operations(self, move: Move) -> Iterator[Operation]:
        """Yield what a move takes; each is signed, and added to `asked`, before the next is made."""
        node = self.roster.nodes[move.node]
        first = [first_stake_id(node)] if move.node < len(self.genesis.members) else []
        stakes = self._stakes.setdefault(move.node, first)
        frost = move.shards_percent * self.genesis.parameters.stake_frost_per_shard // 100
        if move.kind in (MoveKind.JOIN, MoveKind.LEAVE):
            yield self._register(move.node, is_leaving=move.kind is MoveKind.LEAVE)
        if move.kind is MoveKind.LEAVE:
            for stake in stakes:
                yield Unstake(stake, 0)
            stakes.clear()
        elif move.kind is MoveKind.TAKE:
            yield Unstake(stakes[0], frost)
        else:
            yield PutStake(node, frost)
            stakes.append(StakeId(digest(Level.STAKE, self.asked[-1].hash)))

    def _register(self, number: int, *, is_leaving: bool) -> RegisterNode:
        parameters = self.genesis.parameters
        message = node_message(chain_id=self.genesis.chain_id, sender=self.owner, nonce=len(self.asked))
        return RegisterNode(
            node=self.roster.nodes[number],
            capacity_units=0 if is_leaving else parameters.capacity_units,
            storage_vote_frost=parameters.storage_frost_per_unit,
            write_vote_frost=parameters.write_frost_per_unit,
            commission_basis_points=0,
            addresses=(),
            signature=self.roster.signers[number].sign(message),
        )
