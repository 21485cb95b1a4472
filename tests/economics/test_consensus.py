"""The engine by hand: a few engines in memory, messages one by one, time when the test says so."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from blake3 import blake3

from economics.block import Block, BlockHeader, Proposal, genesis_header, leader_of, transactions_root
from economics.committee import Committee, Member
from economics.consensus import (
    Broadcast,
    Build,
    Built,
    Due,
    Effect,
    Engine,
    Finalized,
    Guilty,
    Heard,
    Input,
    Judge,
    Judged,
    Keep,
    Message,
    Missing,
    Persist,
    Quiet,
    Send,
    Silenced,
    TimePassed,
)
from economics.crypto import Digest, NodeId, OwnerId, Signature
from economics.errors import Reason, Rejected
from economics.genesis import Parameters
from economics.votes import ZERO_HASH, Kind, SignedVote, Vote, VoteCertificate

CHAIN = Digest(bytes([7]) * 32)
TIMEOUT_MS = 1_000
PARAMETERS = Parameters(timeout_ms=TIMEOUT_MS, epoch_ms=1_000_000)
ROOT_MS = 1_000_000_000


def make_committee(shards: Sequence[int] = (1, 1, 1, 1), epoch: int = 0) -> Committee:
    members = (
        Member(NodeId(bytes([index + 1]) * 32), OwnerId(bytes(32)), share, ()) for index, share in enumerate(shards)
    )
    return Committee(epoch, tuple(members))


def sign(node: bytes, message: bytes) -> Signature:
    """A stand-in for Ed25519: right for its signer and message only, as long as nobody forges on purpose."""
    return Signature(blake3(node + message).digest(64))


def verify(node: bytes, message: bytes, signature: bytes) -> None:
    if sign(node, message) != signature:
        raise Rejected(Reason.BAD_SIGNATURE)


def make_root(committee: Committee) -> BlockHeader:
    later = Committee(committee.epoch + 1, committee.members)
    return genesis_header(
        chain_id=CHAIN,
        time_ms=ROOT_MS,
        state_root=ZERO_HASH,
        committee_hash=committee.hash,
        next_committee_hash=later.hash,
    )


@dataclass
class Node:
    """A member with what its disk holds."""

    engine: Engine
    log: list[SignedVote | VoteCertificate | Proposal] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    """All of them, ever."""
    blocks: list[Block] = field(default_factory=list)
    finalized: list[Finalized] = field(default_factory=list)
    builds: list[Build] = field(default_factory=list)
    builds_blocks: bool = True
    alive: bool = True

    def sent(self, kind: Kind | None = None) -> list[Vote]:
        """Return the own votes that left, each once."""
        votes = [
            effect.message.vote
            for effect in self.effects
            if isinstance(effect, Broadcast) and isinstance(effect.message, SignedVote)
        ]
        return list(dict.fromkeys(vote for vote in votes if kind in (None, vote.kind)))


def pass_all(sender: int, receiver: int, message: Message) -> bool:
    return True


class Net:
    """Members, the messages between them in the order sent, and one clock."""

    def __init__(self, shards: Sequence[int] = (1, 1, 1, 1), *, parameters: Parameters = PARAMETERS) -> None:
        self.parameters = parameters
        self.committee = make_committee(shards)
        self.root = make_root(self.committee)
        self.now_ms = 0
        self.passes: Callable[[int, int, Message], bool] = pass_all
        """Decides which messages arrive."""
        self.invalid: Callable[[int, BlockHeader], bool] = lambda judge, header: False
        self.queue: list[tuple[int, int, Message]] = []
        self.rejected: list[tuple[Message, Reason]] = []
        self.nodes = [Node(self.make_engine(index)) for index in range(len(shards))]

    def make_engine(
        self,
        own: int | None,
        restored: Sequence[SignedVote | VoteCertificate | Proposal] = (),
        finalized: tuple[Block, VoteCertificate] | None = None,
        quiet: Quiet | None = None,
    ) -> Engine:
        return Engine(
            chain_id=CHAIN,
            committee=self.committee,
            root=self.root,
            own=own,
            sign=lambda message: sign(self.committee.members[own or 0].node, message),
            parameters=self.parameters,
            next_committee_hash=self.root.next_committee_hash,
            now_ms=self.now_ms,
            restored=restored,
            finalized=finalized,
            quiet=quiet,
            verify=verify,
        )

    def start(self) -> None:
        for index, node in enumerate(self.nodes):
            self.act(index, node.engine.start(self.now_ms))

    def want(self, at_ms: int | None = 0) -> None:
        for index in range(len(self.nodes)):
            self.give(index, Due(at_ms))

    def give(self, index: int, item: Input) -> None:
        node = self.nodes[index]
        if not node.alive:
            return
        try:
            effects = node.engine.handle(self.now_ms, item)
        except Rejected as verdict:
            assert isinstance(item, Heard)
            self.rejected.append((item.message, verdict.reason))
            return
        self.act(index, effects)

    def act(self, index: int, effects: Sequence[Effect]) -> None:
        node = self.nodes[index]
        node.effects.extend(effects)
        for effect in effects:
            match effect:
                case Persist(record):
                    node.log.append(record)
                case Keep(proposal):
                    node.log.append(proposal)
                case Broadcast(message):
                    self.queue.extend((index, to, message) for to in range(len(self.nodes)) if to != index)
                case Send(member, message):
                    self.queue.append((index, member, message))
                case Build():
                    node.builds.append(effect)
                    if node.builds_blocks:
                        self.give(index, Built(effect.view, self.make_block(effect.view, effect.parent)))
                case Judge(proposal):
                    header = proposal.block.header
                    self.give(index, Judged(header.hash, not self.invalid(index, header)))
                case Finalized():
                    node.finalized.append(effect)
                    node.blocks.extend(effect.blocks)
                case Missing() | Guilty() | Silenced():
                    pass

    def make_block(self, view: int, parent: BlockHeader, **changes: object) -> Block:
        first = parent == self.root
        leader = leader_of(view, root_hash=self.root.hash, committee=self.committee)
        header = BlockHeader(
            chain_id=CHAIN,
            epoch=self.committee.epoch,
            view=view,
            height=parent.height + 1,
            parent_view=0 if first else parent.view,
            parent_hash=parent.hash,
            time_ms=max(parent.time_ms + 1, ROOT_MS + self.now_ms),
            leader=leader,
            transactions_root=transactions_root(()),
            transactions_count=0,
            executed_height=self.root.height if first else parent.executed_height,
            state_root=ZERO_HASH,
            committee_hash=self.root.committee_hash,
            next_committee_hash=self.root.next_committee_hash,
        )
        header = replace(header, **changes)  # type: ignore[arg-type]
        return Block(header, sign(self.committee.members[header.leader].node, header.encode()), ())

    def deliver(self, rounds: int = 1_000) -> int:
        """Deliver all that is under way, and what that causes, delay by delay; return how many delays it took."""
        for passed in range(rounds):
            if not self.queue:
                return passed
            batch, self.queue = self.queue, []
            for sender, receiver, message in batch:
                if self.passes(sender, receiver, message):
                    self.give(receiver, Heard(message, sender))
        return rounds

    def wait(self, span_ms: int) -> None:
        """Let time pass, deadline by deadline, delivering all there is at each."""
        end_ms = self.now_ms + span_ms
        self.deliver()
        while True:
            times = [node.engine.deadline() for node in self.nodes if node.alive]
            at_ms = min((at_ms for at_ms in times if at_ms is not None), default=end_ms)
            if at_ms >= end_ms:
                break
            self.now_ms = max(at_ms, self.now_ms)
            for index, node in enumerate(self.nodes):
                due_ms = node.engine.deadline()
                if node.alive and due_ms is not None and due_ms <= self.now_ms:
                    self.give(index, TimePassed())
            self.deliver()
        self.now_ms = end_ms

    def heights(self) -> list[int]:
        return [node.engine.final_height for node in self.nodes]


def test_a_block_is_final_everywhere_three_delays_after_it_was_proposed() -> None:
    net = Net()
    for node in net.nodes:
        node.builds_blocks = False
    net.start()
    net.deliver()
    net.want()
    leader = net.nodes[0].engine.leader
    net.give(leader, Built(1, net.make_block(1, net.root)))
    assert net.deliver() == 3
    assert net.heights() == [1, 1, 1, 1]
