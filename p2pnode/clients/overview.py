"""What the chain says of its members: seats now and next, stake, standing, handover. Asks once, judges nothing."""

from dataclasses import dataclass

from economics.committee import Committee
from economics.crypto import NodeId
from economics.nodes import Handover, Marks, NodeEntry, Round, Seats, Standing, Terms
from economics.slots import (
    HANDOVER_SLOT,
    ROUND_SLOT,
    STANDING_SLOT,
    node_slot,
    seats_slot,
    state_key,
    terms_slot,
)
from p2pnode.clients.chainview import KEYS_AT_ONCE, Chain


@dataclass(frozen=True, slots=True)
class Overview:
    """The members of an epoch, and how they do."""

    committee: Committee
    following: Committee | None
    """Of the next epoch, once it is fixed."""
    terms: Terms
    next_terms: Terms | None
    handover: Handover
    standing: Standing
    round: Round | None
    nodes: dict[NodeId, NodeEntry]
    """The members of both committees."""

    def marks(self, index: int) -> Marks:
        """Return how a member has stood this epoch's challenges so far."""
        is_current = self.standing.epoch == self.committee.epoch and index < len(self.standing.marks)
        return self.standing.marks[index] if is_current else Marks()

    @property
    def reported_shards(self) -> int:
        """Shards of members that hold all they owe of what was certified before this committee."""
        return self.committee.weight(index for index in self.handover.reporters if index < len(self.committee.members))


async def find_overview(chain: Chain) -> Overview:
    """Return what the chain says of its members now."""
    seating = await chain.seats()
    epoch = seating.current.epoch
    slots = (HANDOVER_SLOT, STANDING_SLOT, ROUND_SLOT, seats_slot(epoch + 1), terms_slot(epoch + 1))
    handover, standing, current_round, later, next_terms = await chain.values([state_key(slot) for slot in slots])
    assert handover is not None
    assert standing is not None  # both are in every state
    following = None if later is None else Seats.decode(later).committee
    members = [*seating.current.members, *(() if following is None else following.members)]
    return Overview(
        seating.current,
        following,
        seating.terms,
        None if next_terms is None else Terms.decode(next_terms),
        Handover.decode(handover),
        Standing.decode(standing),
        None if current_round is None else Round.decode(current_round),
        await _find_nodes(chain, list(dict.fromkeys(member.node for member in members))),
    )


async def _find_nodes(chain: Chain, nodes: list[NodeId]) -> dict[NodeId, NodeEntry]:
    found: dict[NodeId, NodeEntry] = {}
    for at in range(0, len(nodes), KEYS_AT_ONCE):
        values = await chain.values([state_key(node_slot(node)) for node in nodes[at : at + KEYS_AT_ONCE]])
        entries = [NodeEntry.decode(value) for value in values if value is not None]
        found |= {entry.node: entry for entry in entries}
    return found
