"""A state with what challenges need, and blocks that are only looked at by them."""

from collections.abc import Sequence
from dataclasses import dataclass

from economics.block import BlockHeader, transactions_root
from economics.committee import Committee, Member
from economics.crypto import Digest, NodeId, OwnerId
from economics.genesis import Parameters
from economics.geometry import Code as Geometry
from economics.nodes import Handover, Marks, NodeEntry, Standing
from economics.operations import Context
from economics.state import System, Value
from economics.votes import ZERO_HASH
from economics.working import WorkingState

START_MS = 1_000_000
PARAMETERS = Parameters(epoch_ms=24_000, challenge_rounds=24, challenge_samples=4)
"""Rounds of a second."""
SEED = Digest(b"\x07" * 32)


def node_id(index: int) -> NodeId:
    return NodeId(bytes([index + 1]) * 32)


def make_committee(shards: Sequence[int], *, epoch: int = 0) -> Committee:
    owner = OwnerId(b"\xee" * 32)
    return Committee(epoch, tuple(Member(node_id(index), owner, count) for index, count in enumerate(shards)))


@dataclass
class Rounds:
    """A state, and the committee of its epoch."""

    state: WorkingState
    committee: Committee
    parameters: Parameters = PARAMETERS

    @classmethod
    def begin(cls, shards: Sequence[int], *, epoch: int = 0, parameters: Parameters = PARAMETERS) -> "Rounds":
        committee = make_committee(shards, epoch=epoch)
        entries = [NodeEntry(member.node, member.owner, 0, 0, 1, 0, 0, 0, 0, 0, 0, ()) for member in committee.members]
        marks = tuple(Marks() for _ in committee.members)
        values: tuple[Value, ...] = (
            System(epoch, START_MS, 0, 0, SEED),
            Handover(0, 0, 0, ()),
            Standing(epoch, 0, marks),
            *entries,
        )
        return cls(WorkingState.load(value.encode() for value in values), committee, parameters)

    def enter(self, epoch: int) -> None:
        """Let the next epoch begin, with the same committee and no marks."""
        system = self.state.system()
        self.state.write(System(epoch, system.epoch_start_ms + self.parameters.epoch_ms, 0, 0, system.seed))
        self.state.write(Standing(epoch, 0, tuple(Marks() for _ in self.committee.members)))
        self.committee = self.committee.in_epoch(epoch)

    def header(self, at_ms: int, *, height: int = 1, leader: int = 0, reveal: bytes = bytes(32)) -> BlockHeader:
        """Return the header of a block `at_ms` after the epoch began."""
        return BlockHeader(
            chain_id=ZERO_HASH,
            epoch=self.committee.epoch,
            view=height,
            height=height,
            parent_view=height - 1,
            parent_hash=ZERO_HASH,
            time_ms=self.state.system().epoch_start_ms + at_ms,
            leader=leader,
            transactions_root=transactions_root(()),
            transactions_count=0,
            executed_height=height - 1,
            state_root=ZERO_HASH,
            committee_hash=self.committee.hash,
            next_committee_hash=ZERO_HASH,
            reveal=reveal,
        )

    def context(self, sender: NodeId, *, height: int = 1) -> Context:
        return Context(
            state=self.state,
            parameters=self.parameters,
            geometry=Geometry(self.committee.n, 1000),
            height=height,
            epoch=self.committee.epoch,
            sender=OwnerId(sender),
            transaction=ZERO_HASH,
            open_epoch=self.committee.epoch + 1,
            verify_certificate=lambda certificate: None,
        )
