"""The engine by hand: a few engines in memory, messages one by one, time when the test says so."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, TypeVar

import pytest
from blake3 import blake3

from economics.block import Block, BlockHeader, Proposal, genesis_header, is_boundary, leader_of, transactions_root
from economics.committee import Committee, Member
from economics.consensus import (
    Ask,
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
from tests.refusals import reason

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
    return genesis_header(
        chain_id=CHAIN,
        time_ms=ROOT_MS,
        state_root=ZERO_HASH,
        committee_hash=committee.hash,
        next_committee_hash=ZERO_HASH,
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
    builds_blocks: bool = False
    alive: bool = True

    def sent(self, kind: Kind | None = None) -> list[Vote]:
        """Return the own votes that left, each once."""
        votes = [
            effect.message.vote
            for effect in self.effects
            if isinstance(effect, Broadcast) and isinstance(effect.message, SignedVote)
        ]
        return list(dict.fromkeys(vote for vote in votes if kind in (None, vote.kind)))


T = TypeVar("T")


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
        is_restart: bool = True,
    ) -> Engine:
        return Engine(
            chain_id=CHAIN,
            committee=self.committee,
            root=self.root,
            own=own,
            sign=lambda message: sign(self.committee.members[own or 0].node, message),
            parameters=self.parameters,
            now_ms=self.now_ms,
            restored=restored,
            finalized=finalized,
            quiet=quiet,
            is_restart=is_restart,
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
        is_tail = not first and is_boundary(parent, root=self.root, epoch_ms=self.parameters.epoch_ms)
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
            next_committee_hash=ZERO_HASH if first or is_tail else self.committee.in_epoch(1).hash,
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

    def kill(self, index: int) -> None:
        self.queue = [(sender, to, message) for sender, to, message in self.queue if index not in (sender, to)]
        self.nodes[index].alive = False

    def restart(self, index: int, quiet: Quiet | None = None, *, is_restart: bool = True) -> None:
        """Start a node from its disk; what was under way to it is lost if it was alive."""
        node = self.nodes[index]
        if node.alive:
            self.kill(index)
        last = node.finalized[-1] if node.finalized else None
        finalized = None if last is None else (last.blocks[-1], last.finality.certificate)
        node.engine = self.make_engine(index, node.log, finalized, quiet, is_restart)
        node.alive = True
        self.act(index, node.engine.start(self.now_ms))

    def leader(self, view: int) -> int:
        return leader_of(view, root_hash=self.root.hash, committee=self.committee)

    def vote(self, signer: int, kind: Kind, view: int, block_hash: Digest = ZERO_HASH, epoch: int = 0) -> SignedVote:
        vote = Vote(kind, epoch, view, block_hash, signer)
        return SignedVote(vote, sign(self.committee.members[signer].node, vote.encode(CHAIN)))

    def certificate(
        self, kind: Kind, view: int, block_hash: Digest = ZERO_HASH, signers: Sequence[int] = (1, 2, 3)
    ) -> VoteCertificate:
        votes = [self.vote(signer, kind, view, block_hash) for signer in signers]
        signatures = tuple((signed.vote.signer, signed.signature) for signed in votes)
        return VoteCertificate(kind, 0, view, block_hash, signatures)

    def propose(self, view: int, parent: BlockHeader | None = None, **changes: object) -> Proposal:
        """Return a proposal of the view's leader, whoever that is."""
        block = self.make_block(view, parent or self.root, **changes)
        if parent is None:
            return Proposal(block, None)
        return Proposal(block, self.certificate(Kind.NOTARIZE, parent.view, parent.hash))

    def found(self, index: int, kind: type[T]) -> list[T]:
        return [effect for effect in self.nodes[index].effects if isinstance(effect, kind)]

    def verify(self) -> None:
        """S1, S7 and S11 as the wire and the disks show them, and that nobody honest was refused."""
        chains = [[block.hash for block in node.blocks] for node in self.nodes]
        longest = max(chains, key=len)
        assert all(chain == longest[: len(chain)] for chain in chains)
        for index, node in enumerate(self.nodes):
            votes = {(vote.view, vote.kind): vote.block_hash for vote in node.sent()}
            assert len(votes) == len(node.sent())
            both = [view for view, kind in votes if kind is Kind.FINALIZE and (view, Kind.NULLIFY) in votes]
            assert both == []
            assert self.found(index, Guilty) == []
            assert self.found(index, Silenced) == []
            logged = [record.vote for record in node.log if isinstance(record, SignedVote)]
            assert set(node.sent()) <= set(logged)
        assert self.rejected == []


def started(shards: Sequence[int] = (1, 1, 1, 1), *, builds: bool = False, due: bool = True, **changes: Any) -> Net:
    """Return a net in view 1 in which blocks are wanted; its leaders build if told so."""
    net = Net(shards, parameters=replace(PARAMETERS, **changes))
    net.start()
    net.deliver()
    if due:
        net.want()
    if builds:
        for node in net.nodes:
            node.builds_blocks = True
        build(net)
    return net


def build(net: Net) -> None:
    """Let the leader of the highest view build its block, once it was asked."""
    view = max(node.engine.view for node in net.nodes)
    leader = net.leader(view)
    asked = net.nodes[leader].builds[-1]
    assert asked.view == view
    net.give(leader, Built(view, net.make_block(view, asked.parent)))


class TestGoodCase:
    def test_a_block_is_final_everywhere_three_delays_after_it_was_proposed(self) -> None:
        net = started()
        build(net)
        assert net.deliver() == 3
        assert net.heights() == [1, 1, 1, 1]
        net.verify()

    def test_two_delays_after_a_proposal_the_next_leader_may_build(self) -> None:
        net = started()
        build(net)
        net.deliver(2)
        assert [node.engine.view for node in net.nodes] == [2, 2, 2, 2]
        (asked,) = net.nodes[net.leader(2)].builds[-1:]
        assert (asked.view, asked.parent.height, asked.parent_is_boundary) == (2, 1, False)

    def test_every_message_is_preceded_by_what_must_be_on_disk_before_it(self) -> None:
        net = started(builds=True)
        net.deliver(60)
        assert min(net.heights()) > 20
        for node in net.nodes:
            durable: list[object] = []
            for effect in node.effects:
                match effect:
                    case Persist(record):
                        durable.append(record)
                    case Keep(proposal):
                        durable.append(proposal.block.hash)
                    case Broadcast(SignedVote() as signed):
                        assert signed in durable
                        assert signed.vote.kind is Kind.NULLIFY or signed.vote.block_hash in durable
                    case Broadcast(Proposal() as proposal):
                        assert proposal.block.hash in durable
                    case _:
                        pass
        net.verify()

    def test_in_the_good_case_nobody_asks_for_anything(self) -> None:
        net = started(builds=True)
        net.deliver(60)
        assert [node.engine.counters.asked for node in net.nodes] == [0, 0, 0, 0]
        assert all(not net.found(index, Missing) for index in range(4))

    def test_one_member_with_all_shards_agrees_with_itself(self) -> None:
        net = started((4,))
        for height in range(1, 6):
            build(net)
            assert net.heights() == [height]
        net.wait(60_000)
        net.verify()

    def test_a_quorum_is_of_shards_not_of_members(self) -> None:
        net = started((5, 1, 1, 2, 1), builds=True)  # n = 10, f = 3, q = 7
        net.nodes[1].alive = net.nodes[2].alive = net.nodes[4].alive = False
        net.passes = lambda sender, to, message: len(net.nodes[0].blocks) < 10
        net.wait(20_000)
        assert net.nodes[0].engine.final_height == 10
        other = started((5, 1, 1, 2, 1), builds=True)
        other.nodes[0].alive = False
        other.wait(20_000)
        assert other.heights() == [0, 0, 0, 0, 0]
        other.verify()

    def test_an_observer_follows_and_says_nothing(self) -> None:
        net = started()
        watcher = net.make_engine(None)
        assert watcher.start(0) == []
        build(net)
        seen: list[Effect] = []
        while net.queue:
            for _, _, message in list(net.queue):
                seen += watcher.handle(0, Heard(message, None))
            net.deliver(1)
        assert watcher.final_height == 1
        assert {type(effect) for effect in seen} == {Persist, Finalized}


class TestIdle:
    def test_with_nothing_to_do_a_view_waits_for_ever_and_costs_nothing(self) -> None:
        net = started(due=False)
        for node in net.nodes:
            node.effects.clear()
            assert node.engine.deadline() is None
        net.wait(10**9)
        assert [node.effects for node in net.nodes] == [[], [], [], []]
        assert [node.engine.view for node in net.nodes] == [1, 1, 1, 1]

    def test_after_a_final_block_nothing_goes_on_by_itself(self) -> None:
        net = started()
        build(net)
        net.deliver()
        net.want(None)
        assert [node.engine.deadline() for node in net.nodes] == [None] * 4

    def test_the_timer_runs_from_when_a_block_is_due(self) -> None:
        net = started(due=False)
        net.wait(50_000)
        net.want(net.now_ms + 7_000)
        assert {node.engine.deadline() for node in net.nodes} == {net.now_ms + 7_000 + TIMEOUT_MS}
        net.want(net.now_ms)
        assert {node.engine.deadline() for node in net.nodes} == {net.now_ms + TIMEOUT_MS}

    def test_a_proposal_that_nobody_waited_for_is_voted_for_all_the_same(self) -> None:
        net = started(due=False)
        build(net)
        net.deliver()
        assert net.heights() == [1, 1, 1, 1]


class TestNullify:
    def test_a_silent_leader_costs_one_timeout(self) -> None:
        net = started()
        net.nodes[net.leader(1)].alive = False
        net.wait(TIMEOUT_MS)
        assert {node.engine.view for node in net.nodes} == {1}
        net.wait(1)
        assert {node.engine.view for node in net.nodes if node.alive} == {2}
        net.verify()

    @pytest.mark.parametrize("how", ["judged", "height", "parent_hash", "committee_hash", "executed_height"])
    def test_a_bad_proposal_of_each_view_s_leader_is_nullified_at_once(self, how: str) -> None:
        """Tendermint #3003: the chain stuck after an invalid proposal."""
        net = started()
        bad = {"height": 9, "parent_hash": Digest(bytes(32)), "committee_hash": Digest(bytes(32)), "executed_height": 7}
        for view in range(1, 9):
            changes: dict[str, Any] = {} if how == "judged" else {how: bad[how]}
            net.invalid = lambda judge, header: how == "judged"
            proposal = net.propose(view, **changes)
            for index in range(4):
                if index != net.leader(view):
                    net.give(index, Heard(proposal, net.leader(view)))
            net.deliver()
            assert {node.engine.view for node in net.nodes} == {view + 1}
        assert net.now_ms == 0
        net.invalid = lambda judge, header: False
        build(net)
        net.deliver()
        assert net.heights() == [1, 1, 1, 1]
        assert net.rejected == []

    def test_a_leader_that_gives_up_its_own_view_is_not_waited_for(self) -> None:
        net = started()
        leader = net.leader(1)
        other = (leader + 1) % 4
        net.give(other, Heard(net.vote(leader, Kind.NULLIFY, 1), leader))
        assert [vote.kind for vote in net.nodes[other].sent()] == [Kind.NULLIFY]

    def test_f_plus_1_shards_that_give_up_take_the_others_with_them(self) -> None:
        net = started(due=False)
        first, second, third, _ = sorted(range(4), key=lambda index: index == net.leader(1))
        net.give(first, Heard(net.vote(second, Kind.NULLIFY, 1), second))
        assert net.nodes[first].sent() == []
        net.give(first, Heard(net.vote(third, Kind.NULLIFY, 1), third))
        assert [vote.kind for vote in net.nodes[first].sent()] == [Kind.NULLIFY]

    def test_it_is_sent_again_each_timeout_with_the_certificate_of_entry(self) -> None:
        net = started(timeout_ms=200)
        entry = net.certificate(Kind.NULLIFY, 1)
        net.give(0, Heard(entry, 1))
        net.passes = lambda sender, to, message: False
        net.wait(1_400)  # well before a standstill
        own = net.vote(0, Kind.NULLIFY, 2)
        told = [effect.message for effect in net.found(0, Broadcast)[1:]]
        assert told == [own, own, entry, own, entry, own, entry]

    def test_timeouts_grow_with_each_view_and_fall_by_a_new_finalization_alone(self) -> None:
        net = started()
        spans = []
        proposal = net.propose(3)
        for view in range(1, 4):
            spans.append(net.nodes[0].engine.deadline())
            kind, block_hash = (Kind.NULLIFY, ZERO_HASH) if view < 3 else (Kind.NOTARIZE, proposal.block.hash)
            net.give(0, Heard(net.certificate(kind, view, block_hash), 1))
        net.give(0, Heard(proposal, 1))
        net.passes = lambda sender, to, message: False
        standstill_ms = 3_000
        assert [*spans, net.nodes[0].engine.deadline()] == [1_000, 1_500, 2_250, standstill_ms]
        net.give(0, Heard(net.certificate(Kind.FINALIZE, 3, proposal.block.hash), 1))
        assert net.nodes[0].engine.deadline() == 1_000

    def test_with_a_proposal_that_does_not_get_certified_the_view_takes_half_as_long_again(self) -> None:
        net = started()
        net.passes = lambda sender, to, message: isinstance(message, Proposal)
        build(net)
        net.deliver()
        assert {node.engine.deadline() for node in net.nodes} == {TIMEOUT_MS * 3 // 2}
        net.wait(TIMEOUT_MS * 3 // 2 + 1)
        assert all(len(node.sent(Kind.NULLIFY)) == 1 for node in net.nodes)
        net.verify()


class TestOwnVotes:
    def notarized(self, net: Net, index: int) -> Proposal:
        """Let one node hold a proposal of view 1, on which it has not voted to finalize yet."""
        proposal = net.propose(1)
        net.give(index, Heard(proposal, net.leader(1)))
        return proposal

    def test_notarize_is_cast_even_after_nullify(self) -> None:
        net = started()
        net.passes = lambda sender, to, message: False
        net.wait(TIMEOUT_MS + 1)
        proposal = self.notarized(net, 0)
        assert [vote.kind for vote in net.nodes[0].sent()] == [Kind.NULLIFY, Kind.NOTARIZE]
        net.give(0, Heard(net.certificate(Kind.NOTARIZE, 1, proposal.block.hash), 1))
        assert net.nodes[0].engine.view == 2
        assert net.nodes[0].sent(Kind.FINALIZE) == []

    def test_finalize_never_follows_nullify_not_even_over_a_restart(self) -> None:
        """Ava #280."""
        net = started()
        net.passes = lambda sender, to, message: False
        net.wait(TIMEOUT_MS + 1)
        proposal = self.notarized(net, 0)
        net.restart(0)
        net.wait(TIMEOUT_MS + 1)
        net.give(0, Heard(net.certificate(Kind.NOTARIZE, 1, proposal.block.hash), 1))
        net.restart(0)
        net.wait(10 * TIMEOUT_MS)
        assert net.nodes[0].engine.view == 2
        assert all(vote.view == 2 for vote in net.nodes[0].sent() if vote.kind is Kind.FINALIZE)
        net.verify()

    def test_nullify_never_follows_finalize_not_even_over_a_restart(self) -> None:
        net = started()
        net.passes = lambda sender, to, message: False
        proposal = self.notarized(net, 0)
        net.give(0, Heard(net.certificate(Kind.NOTARIZE, 1, proposal.block.hash), 1))
        assert [vote.kind for vote in net.nodes[0].sent()] == [Kind.NOTARIZE, Kind.FINALIZE]
        node = net.nodes[0]
        node.log = [record for record in node.log if not isinstance(record, VoteCertificate)]
        net.restart(0)  # in view 1 again: its disk has the votes alone
        assert node.engine.view == 1
        net.give(0, Due(0))
        for signer in (1, 2):
            net.give(0, Heard(net.vote(signer, Kind.NULLIFY, 1), signer))
        net.wait(10 * TIMEOUT_MS)
        assert node.sent(Kind.NULLIFY) == []
        net.verify()

    def test_one_notarize_a_view_whatever_the_leader_proposes_and_over_restarts(self) -> None:
        net = started()
        net.passes = lambda sender, to, message: False
        first, second = net.propose(1), net.propose(1, time_ms=ROOT_MS + 5)
        net.give(0, Heard(first, net.leader(1)))
        net.give(0, Heard(second, net.leader(1)))
        net.restart(0)
        net.give(0, Heard(second, net.leader(1)))
        net.wait(TIMEOUT_MS + 1)
        assert [vote.block_hash for vote in net.nodes[0].sent(Kind.NOTARIZE)] == [first.block.hash]

    def test_a_block_notarized_without_this_node_is_finalized_once_it_is_held(self) -> None:
        """Also long after its view."""
        net = started()
        net.passes = lambda sender, to, message: False
        proposal = net.propose(1)
        net.give(0, Heard(net.certificate(Kind.NOTARIZE, 1, proposal.block.hash), 1))
        for view in range(2, 4):
            net.give(0, Heard(net.certificate(Kind.NULLIFY, view), 1))
        assert net.nodes[0].sent() == []
        net.give(0, Heard(proposal, 3))
        assert [(vote.kind, vote.view) for vote in net.nodes[0].sent()] == [(Kind.FINALIZE, 1)]
        assert net.found(0, Keep) == [Keep(proposal)]

    def test_no_block_is_voted_for_before_the_shell_has_judged_it(self) -> None:
        net = started()
        engine = net.make_engine(0)
        engine.start(0)
        proposal = net.propose(1) if net.leader(1) != 0 else net.propose(2)
        view = proposal.block.header.view
        for below in range(1, view):
            engine.handle(0, Heard(net.certificate(Kind.NULLIFY, below), 1))
        effects = engine.handle(0, Heard(proposal, 1))
        effects += engine.handle(0, Heard(net.certificate(Kind.NOTARIZE, view, proposal.block.hash), 1))
        effects += engine.handle(0, TimePassed())
        assert [effect for effect in effects if isinstance(effect, Keep | Broadcast)] == []
        assert len([effect for effect in effects if isinstance(effect, Judge)]) == 1
        effects = engine.handle(0, Judged(proposal.block.hash, True))
        cast = [effect.message for effect in effects if isinstance(effect, Broadcast)]
        assert [signed.vote.kind for signed in cast if isinstance(signed, SignedVote)] == [Kind.FINALIZE]
        assert engine.handle(0, Judged(proposal.block.hash, False)) == []

    def test_the_leader_builds_no_second_block_in_a_view_after_a_restart(self) -> None:
        net = started()
        leader = net.leader(1)
        net.passes = lambda sender, to, message: False
        build(net)
        net.restart(leader)
        net.wait(TIMEOUT_MS + 1)
        assert len(net.nodes[leader].builds) == 1
        proposals = {e.message.block.hash for e in net.found(leader, Broadcast) if isinstance(e.message, Proposal)}
        assert len(proposals) == 1
        assert len([e for e in net.found(leader, Broadcast) if isinstance(e.message, Proposal)]) == 2


class TestRestart:
    @pytest.mark.parametrize("point", range(0, 60, 3))
    def test_all_killed_at_once_at_any_point_go_on(self, point: int) -> None:
        """L3; commonware #4275: nobody counted its own vote again, one was missing for ever."""
        net = started()
        build(net)
        for _ in range(point):
            if net.queue:
                sender, to, message = net.queue.pop(0)
                net.give(to, Heard(message, sender))
        for index in range(4):
            net.kill(index)
        for index in range(4):
            net.restart(index)
        net.want(net.now_ms)
        net.wait(2 * TIMEOUT_MS)
        before = min(net.heights())
        for _ in range(3):
            net.wait(5 * TIMEOUT_MS)
            if any(asked.view == max(n.engine.view for n in net.nodes) for n in net.nodes for asked in n.builds):
                build(net)
                net.deliver()
        assert min(net.heights()) > before
        net.verify()

    def test_all_that_voted_to_nullify_and_died_count_their_own_votes_again(self) -> None:
        net = started()
        net.nodes[net.leader(1)].alive = False
        net.passes = lambda sender, to, message: False
        net.wait(TIMEOUT_MS + 1)
        net.passes = pass_all
        alive = [index for index in range(4) if net.nodes[index].alive]
        for index in alive:
            net.kill(index)
        for index in alive:
            net.restart(index)
        net.deliver()
        assert {node.engine.view for node in net.nodes if node.alive} == {2}
        net.verify()

    def test_a_restart_listens_for_one_timeout_before_it_votes_anew(self) -> None:
        net = started()
        net.passes = lambda sender, to, message: False
        build(net)
        leader = net.leader(1)
        other = (leader + 1) % 4
        net.restart(leader)
        assert net.found(leader, Persist) == net.found(leader, Persist)[:1]
        others = [index for index in range(4) if index != other]
        net.nodes[other].log.append(net.certificate(Kind.NULLIFY, 1, signers=others))
        net.restart(other)
        proposal = net.propose(2)
        net.give(other, Heard(proposal, net.leader(2)))
        assert [vote for vote in net.nodes[other].sent() if vote.view == 2] == []
        net.wait(TIMEOUT_MS + 1)
        assert [vote.kind for vote in net.nodes[other].sent() if vote.view == 2] == [Kind.NOTARIZE]

    def test_an_engine_that_takes_another_s_place_votes_at_once(self) -> None:
        net = started()
        net.passes = lambda sender, to, message: False
        other = (net.leader(2) + 1) % 4
        others = [index for index in range(4) if index != other]
        net.nodes[other].log.append(net.certificate(Kind.NULLIFY, 1, signers=others))
        net.restart(other, is_restart=False)
        net.give(other, Heard(net.propose(2), net.leader(2)))
        assert [vote.kind for vote in net.nodes[other].sent() if vote.view == 2] == [Kind.NOTARIZE]

    def test_what_was_delivered_is_not_delivered_again_and_what_was_not_is(self) -> None:
        net = started(builds=True)
        net.deliver(30)
        node = net.nodes[0]
        height = node.engine.final_height
        net.restart(0)
        assert node.engine.final_height == height
        assert [block.header.height for block in node.blocks] == list(range(1, height + 1))
        lost = node.finalized.pop()
        for block in lost.blocks:
            assert node.blocks.pop() is not None or block
        net.restart(0)
        assert node.engine.final_height == height
        assert [block.header.height for block in node.blocks] == list(range(1, height + 1))

    def test_a_node_that_was_away_catches_up_and_votes(self) -> None:
        """L4, as far as the others still hold the blocks."""
        net = started()
        away = next(index for index in range(4) if index not in [net.leader(view) for view in range(1, 6)][:1])
        net.nodes[away].alive = False
        while max(net.heights()) < 10:
            view = max(node.engine.view for node in net.nodes)
            if net.leader(view) != away:
                build(net)
                net.deliver()
            else:
                net.want(net.now_ms)
                net.wait(3 * TIMEOUT_MS)
        net.restart(away)
        net.deliver()
        net.wait(3 * TIMEOUT_MS)
        assert len(set(net.heights())) == 1
        net.want(net.now_ms)
        net.wait(3 * TIMEOUT_MS)
        assert net.nodes[away].sent()
        net.verify()


class TestCatchingUp:
    def split(self, builder_nullified: bool) -> Net:
        """Half of the members left view 1 by its notarization, half by its nullification, and hold nothing else."""
        net = started()
        proposal = net.propose(1)
        notarized = net.certificate(Kind.NOTARIZE, 1, proposal.block.hash, (0, 1, 2))
        nullified = net.certificate(Kind.NULLIFY, 1, signers=(0, 1, 2))
        leader = net.leader(2)
        same = [leader, (leader + 1) % 4]
        for node in net.nodes:
            node.engine._voting.ballot.allows = lambda vote: vote.view > 1  # type: ignore[method-assign]
            node.engine._voting.meet_foreign = lambda view, what: None  # type: ignore[method-assign]
        net.passes = lambda sender, to, message: False
        for index in range(4):
            if (index in same) == builder_nullified:
                net.give(index, Heard(nullified, None))
            else:
                net.give(index, Heard(proposal, None))
                net.give(index, Heard(notarized, None))
        net.deliver()
        net.passes = pass_all
        net.now_ms += 200
        assert {node.engine.view for node in net.nodes} == {2}
        return net

    @pytest.mark.parametrize("builder_nullified", [False, True])
    def test_a_certified_split_is_healed_by_the_next_honest_leader_of_either_half(
        self, builder_nullified: bool
    ) -> None:
        """L7."""
        net = self.split(builder_nullified)
        build(net)
        assert net.nodes[net.leader(2)].builds[-1].parent.height == (0 if builder_nullified else 1)
        net.deliver()
        assert {block.header.view for node in net.nodes for block in node.blocks} == (
            {2} if builder_nullified else {1, 2}
        )
        assert len(set(net.heights())) == 1
        asked = [net.nodes[index].engine.counters.asked for index in range(4)]
        assert sum(asked) >= 2
        assert net.now_ms == 200

    def test_the_proposer_is_asked_first_for_a_missing_parent(self) -> None:
        net = started()
        first = net.propose(1)
        second = net.propose(2, first.block.header)
        index = next(index for index in range(4) if index not in (net.leader(1), net.leader(2)))
        net.passes = lambda sender, to, message: False
        net.give(index, Heard(second, net.leader(2)))
        height = second.block.header.height - 1
        assert Missing(first.block.hash, 0, 1, height) in net.found(index, Missing)
        assert Send(net.leader(2), Ask(0, 1)) in net.found(index, Send)
        assert net.nodes[index].sent() == []
        net.give(index, Heard(first, net.leader(2)))
        assert {(vote.kind, vote.view) for vote in net.nodes[index].sent()} == {(Kind.FINALIZE, 1), (Kind.NOTARIZE, 2)}

    def test_who_does_not_answer_is_not_asked_twice_in_a_row(self) -> None:
        net = started(due=False)
        net.passes = lambda sender, to, message: False
        net.give(0, Heard(net.certificate(Kind.FINALIZE, 3, net.propose(3).block.hash), None))
        net.wait(4 * TIMEOUT_MS)
        asked = [effect.member for effect in net.found(0, Send)]
        assert len(asked) >= 6
        assert asked[0] == (net.leader(3) or 1)
        assert set(asked) == {1, 2, 3}
        assert len(net.found(0, Missing)) == 1

    def test_final_blocks_are_delivered_in_order_once_the_missing_one_comes(self) -> None:
        net = started(due=False)
        chain = [net.propose(1)]
        for view in range(2, 6):
            chain.append(net.propose(view, chain[-1].block.header))
        net.give(0, Heard(net.certificate(Kind.FINALIZE, 5, chain[4].block.hash), None))
        for at in (4, 2, 3, 0):
            net.give(0, Heard(chain[at], None))
            assert net.nodes[0].blocks == []
        net.give(0, Heard(Proposal(chain[1].block, None), None))
        assert net.nodes[0].blocks == [proposal.block for proposal in chain]
        assert len(net.nodes[0].finalized) == 1

    def test_a_stuck_member_that_nullifies_again_is_told_how_the_view_ended(self) -> None:
        net = started()
        behind = (net.leader(1) + 1) % 4
        net.passes = lambda sender, to, message: to != behind
        build(net)
        net.deliver()
        net.wait(TIMEOUT_MS + 1)
        net.passes = pass_all
        assert net.nodes[behind].engine.view == 1
        net.wait(2 * TIMEOUT_MS)
        assert net.heights() == [1, 1, 1, 1]
        net.verify()

    def test_only_a_nullify_vote_that_comes_again_is_answered(self) -> None:
        net = started()
        for view in (1, 2):
            net.give(0, Heard(net.certificate(Kind.NULLIFY, view, signers=(1, 2, 3)), 1))
        build_from = len(net.nodes[0].effects)
        late = net.vote(3, Kind.NULLIFY, 2)
        net.now_ms += 200
        net.give(0, Heard(net.vote(2, Kind.NOTARIZE, 2, Digest(bytes([1]) * 32)), 2))
        assert [e for e in net.nodes[0].effects[build_from:] if isinstance(e, Send)] == []
        net.give(0, Heard(late, 3))
        told = [e for e in net.nodes[0].effects[build_from:] if isinstance(e, Send)]
        assert told == [Send(3, net.certificate(Kind.NULLIFY, 2))]

    def test_lost_votes_are_told_again_at_a_standstill(self) -> None:
        """Rule 7."""
        net = started()
        net.passes = lambda sender, to, message: (
            not (isinstance(message, SignedVote) and message.vote.kind is Kind.FINALIZE)
        )
        build(net)
        net.deliver()
        assert {node.engine.view for node in net.nodes} == {2}
        net.want(None)
        net.passes = pass_all
        net.wait(3_000 + 1)
        assert net.heights() == [1, 1, 1, 1]
        assert [node.engine.deadline() for node in net.nodes] == [None] * 4

    def test_a_standstill_of_hours_costs_ever_less_and_holds_no_more(self) -> None:
        """L6; TON's death spiral."""
        net = started()
        net.passes = lambda sender, to, message: False
        net.wait(60_000)
        before = len(net.nodes[0].effects)
        net.wait(3_600_000)
        assert net.nodes[0].engine.view == 1
        assert len(net.nodes[0].effects) - before < 3_600 * 2
        assert 55 <= net.nodes[0].engine.counters.standstills <= 75

    def test_an_answer_is_bounded_and_begins_with_the_highest_certificate(self) -> None:
        net = started(due=False)
        for view in range(1, 200):
            net.give(0, Heard(net.certificate(Kind.NULLIFY, view), None))
        net.nodes[0].effects.clear()
        net.now_ms += 200
        net.give(0, Heard(Ask(0, 3), 2))
        answer = [effect.message for effect in net.found(0, Send)]
        assert len(answer) == 64
        assert [item.view for item in answer if isinstance(item, VoteCertificate)] == [199, *range(3, 66)]
        net.give(0, Heard(Ask(0, 3), 2))
        assert len(net.found(0, Send)) == 64
        net.now_ms += 200
        net.give(0, Heard(Ask(0, (1 << 64) - 1), 2))
        assert [effect.message for effect in net.found(0, Send)[64:]] == [net.certificate(Kind.NULLIFY, 199)]

    def test_who_is_a_little_behind_gets_the_final_blocks_too(self) -> None:
        net = started()
        for _ in range(5):
            build(net)
            net.deliver()
        assert net.heights() == [5] * 4
        net.nodes[0].effects.clear()
        net.now_ms += 200
        net.give(0, Heard(Ask(0, 1), 2))
        blocks = [effect.message for effect in net.found(0, Send) if isinstance(effect.message, Proposal)]
        assert [proposal.block for proposal in blocks] == net.nodes[0].blocks

    def test_votes_of_dropped_views_and_old_blocks_are_not_held(self) -> None:
        net = started()
        for _ in range(100):
            build(net)
            net.deliver()
        engine = net.nodes[0].engine
        assert len(engine._voting.tally._views) <= 2
        assert len(engine._branches._proposals) == len(engine._branches._headers) - 1 == 32
        assert len(engine._judging._verdicts) + len(engine._judging._kept) + len(engine._judging._senders) <= 3 * 32
        assert engine._voting.ballot.votes() == []


class TestGuilt:
    def test_a_leader_of_two_blocks_is_blamed_once_and_by_both(self) -> None:
        net = started()
        leader = net.leader(1)
        index = (leader + 1) % 4
        proposals = [net.propose(1, time_ms=ROOT_MS + 5 + more) for more in range(4)]
        for proposal in proposals:
            net.give(index, Heard(proposal, leader))
        first, second = (proposal.block for proposal in proposals[:2])
        want = Guilty((first.header, first.signature), (second.header, second.signature))
        assert net.found(index, Guilty) == [want]
        assert len(net.nodes[index].engine._branches.proposals_of(1)) == 2

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ((Kind.NOTARIZE, 1), (Kind.NOTARIZE, 2)),
            ((Kind.FINALIZE, 1), (Kind.FINALIZE, 2)),
            ((Kind.FINALIZE, 1), (Kind.NULLIFY, 0)),
            ((Kind.NULLIFY, 0), (Kind.FINALIZE, 1)),
        ],
    )
    def test_a_voter_that_contradicts_itself_is_blamed_once(
        self, one: tuple[Kind, int], other: tuple[Kind, int]
    ) -> None:
        net = started()
        first, second = (net.vote(3, kind, 2, Digest(bytes([byte]) * 32)) for kind, byte in (one, other))
        for signed in (first, second, first, second, net.vote(3, Kind.NOTARIZE, 2, Digest(bytes([9]) * 32))):
            net.give(0, Heard(signed, 3))
        assert net.found(0, Guilty) == [Guilty(first, second)]

    def test_notarize_with_nullify_or_finalize_is_no_fault(self) -> None:
        net = started()
        for kind in Kind:
            for view in (2, 3):
                if (kind, view) != (Kind.NULLIFY, 3):
                    block_hash = ZERO_HASH if kind is Kind.NULLIFY else Digest(bytes([1]) * 32)
                    if (kind, view) != (Kind.FINALIZE, 2):
                        net.give(0, Heard(net.vote(3, kind, view, block_hash), 3))
        assert net.found(0, Guilty) == []

    def test_votes_inside_certificates_convict_too(self) -> None:
        net = started()
        one, other = Digest(bytes([1]) * 32), Digest(bytes([2]) * 32)
        net.give(0, Heard(net.certificate(Kind.NOTARIZE, 1, one), None))
        net.give(0, Heard(net.certificate(Kind.NOTARIZE, 1, other), None))
        blamed = [guilty.first.vote.signer for guilty in net.found(0, Guilty) if isinstance(guilty.first, SignedVote)]
        assert blamed == [1, 2, 3]

    def test_a_finalization_of_a_nullified_view_convicts_who_signed_both(self) -> None:
        net = started()
        block_hash = Digest(bytes([1]) * 32)
        net.give(0, Heard(net.certificate(Kind.NULLIFY, 1), None))
        net.give(0, Heard(net.certificate(Kind.FINALIZE, 1, block_hash), None))
        assert len(net.found(0, Guilty)) == 3

    def test_nobody_is_blamed_by_a_signature_that_is_not_its_own(self) -> None:
        """A vote that came too late to matter is remembered unchecked, and checked before anybody is blamed by it."""
        net = started()
        block_hash = Digest(bytes([1]) * 32)
        net.give(0, Heard(net.certificate(Kind.NOTARIZE, 1, block_hash), None))
        forged = replace(net.vote(2, Kind.NOTARIZE, 1, block_hash), signature=Signature(bytes(64)))
        other = Digest(bytes([2]) * 32)
        engine = net.nodes[0].engine
        engine._voting.tally.drop_below(2)
        net.give(0, Heard(forged, 2))
        net.give(0, Heard(net.vote(2, Kind.NOTARIZE, 1, other), 2))
        assert net.found(0, Guilty) == []


class TestBoundary:
    def test_the_boundary_is_delivered_once_and_nothing_behind_it(self) -> None:
        net = started(epoch_ms=1_000)
        build(net)
        net.deliver()
        net.now_ms = 1_000
        build(net)
        net.deliver()
        assert net.heights() == [2, 2, 2, 2]
        assert all(node.engine.ended for node in net.nodes)
        for index, node in enumerate(net.nodes):
            assert node.finalized[-1].finality.links == ()
            assert node.engine.deadline() is None
            count = len(node.effects)
            net.give(index, Due(0))
            net.give(index, TimePassed())
            net.give(index, Heard(net.vote(1, Kind.NULLIFY, 3), 1))
            assert len(node.effects) == count
            net.give(index, Heard(Ask(0, 1), (index + 1) % 4))
            assert len(node.effects) > count
        net.verify()

    def test_what_builds_on_a_boundary_makes_it_final_and_proves_it(self) -> None:
        net = started(epoch_ms=1_000)
        net.passes = lambda sender, to, message: (
            not (isinstance(message, SignedVote) and message.vote.kind is Kind.FINALIZE and message.vote.view < 4)
        )
        for view in (1, 2, 3, 4):
            build(net)
            net.deliver(2 if view < 4 else 10)
            assert net.nodes[net.leader(view)].builds[-1].parent_is_boundary is (view > 2)
            net.now_ms = 1_000
        assert net.heights() == [2, 2, 2, 2]
        for node in net.nodes:
            (done,) = node.finalized
            assert [block.header.view for block in done.blocks] == [1, 2]
            assert [link.view for link in done.finality.links] == [3, 4]
            done.finality.verify(done.blocks[1].header, committee=net.committee, verify=verify)

    def test_the_next_epoch_begins_on_it_with_views_from_1(self) -> None:
        net = started(epoch_ms=1_000)
        for net.now_ms in (0, 1_000):
            build(net)
            net.deliver()
        boundary = net.nodes[0].blocks[-1].header
        later = Net()
        later.now_ms = 1_000
        later.root = replace(boundary, view=57, committee_hash=later.root.committee_hash)
        later.nodes = [Node(later.make_engine(index)) for index in range(4)]
        later.start()
        later.deliver()
        later.want(later.now_ms)
        assert {node.engine.view for node in later.nodes} == {1}
        build(later)
        later.deliver()
        assert later.heights() == [3, 3, 3, 3]
        later.verify()


class TestQuiet:
    def go_on(self, net: Net, blocks: int = 1) -> None:
        for _ in range(blocks):
            build(net)
            net.deliver()

    def test_it_votes_again_only_behind_every_view_it_may_have_voted_in(self) -> None:
        net = started()
        quiet = next(index for index in range(4) if index not in {net.leader(view) for view in range(1, 4)})
        self.go_on(net, 3)
        node = net.nodes[quiet]
        node.log.clear()
        node.effects.clear()
        net.restart(quiet, Quiet())
        assert node.engine.quiet == Quiet(None)
        net.deliver()
        net.wait(TIMEOUT_MS + 1)
        reached = node.engine.view
        assert node.engine.quiet == Quiet(reached + 1)
        for _ in range(60):
            view = max(other.engine.view for other in net.nodes)
            if net.leader(view) == quiet and view <= reached + 1:
                net.want(net.now_ms)
                net.wait(4 * TIMEOUT_MS)
            else:
                self.go_on(net)
        assert node.engine.quiet is None
        votes = node.sent()
        assert votes
        assert min(vote.view for vote in votes) == reached + 2
        assert all(build.view > reached + 1 for build in node.builds if build.view > 4)
        net.verify()

    def test_it_waits_for_members_with_2f_plus_1_shards(self) -> None:
        net = started()
        self.go_on(net, 3)
        net.nodes[1].alive = False
        net.restart(0, Quiet())
        net.deliver()
        net.wait(5 * TIMEOUT_MS)
        assert net.nodes[0].engine.quiet == Quiet(None)
        net.restart(1)
        net.deliver()
        net.wait(5 * TIMEOUT_MS)
        assert net.nodes[0].engine.quiet != Quiet(None)

    def test_what_is_heard_in_the_first_moments_counts_for_nobody(self) -> None:
        """It may be the low end of an answer whose top was lost."""
        net = started()
        engine = net.make_engine(0, quiet=Quiet())
        engine.start(0)
        for now_ms, until in ((TIMEOUT_MS - 1, None), (TIMEOUT_MS, 3)):
            for member in (1, 2, 3):
                engine.handle(now_ms, Heard(net.certificate(Kind.NULLIFY, 1), member))
            assert engine.quiet == Quiet(until)

    def test_it_never_votes_below_not_even_to_finalize_what_it_learns_later(self) -> None:
        net = started()
        proposal = net.propose(2)
        others = [index for index in range(4) if index != net.leader(2)]
        own = others[0]
        signers = [index for index in range(4) if index != own]
        engine = net.make_engine(own, quiet=Quiet(3))
        engine.start(0)
        for view in (1, 2, 3):
            engine.handle(0, Heard(net.certificate(Kind.NULLIFY, view, signers=signers), 1))
        effects = engine.handle(0, Heard(proposal, 1))
        effects += engine.handle(0, Heard(net.certificate(Kind.NOTARIZE, 2, proposal.block.hash, signers), 1))
        effects += engine.handle(0, Judged(proposal.block.hash, True))
        assert engine.view == 4
        assert [effect for effect in effects if isinstance(effect, Broadcast)] == []

    def test_a_restart_does_not_make_it_forget_that_it_is_quiet(self) -> None:
        net = started()
        own = (net.leader(6) + 1) % 4
        others = [index for index in range(4) if index != own]
        engine = net.make_engine(own, quiet=Quiet(5))
        engine.start(0)
        assert engine.quiet == Quiet(5)
        for view in range(1, 6):
            engine.handle(0, Heard(net.certificate(Kind.NULLIFY, view, signers=others), 1))
        assert engine.view == 6
        assert engine.quiet == Quiet(5)
        proposal = net.propose(6)
        engine.handle(0, Heard(proposal, 1))
        effects = engine.handle(0, Judged(proposal.block.hash, True))
        assert [
            effect.message.vote.view
            for effect in effects
            if isinstance(effect, Broadcast) and isinstance(effect.message, SignedVote)
        ] == [6]
        engine.handle(0, Heard(net.certificate(Kind.FINALIZE, 6, proposal.block.hash, others), 1))
        assert engine.quiet is None
        assert engine.quiet_next_epoch is None

    @pytest.mark.parametrize(("until", "later"), [(1, None), (3, None), (4, Quiet()), (None, Quiet())])
    def test_it_is_bound_in_the_next_epoch_if_it_may_have_seen_this_one_end(
        self, until: int | None, later: Quiet | None
    ) -> None:
        """The boundary is of view 2: had it been final when the node forgot, others had put the bound at 4."""
        net = started(epoch_ms=1_000)
        quiet = next(index for index in range(4) if index != net.leader(2))
        self.go_on(net)
        net.restart(quiet, Quiet(until))
        net.passes = lambda sender, to, message: to != quiet or not isinstance(message, VoteCertificate)
        net.now_ms = 1_000
        self.go_on(net)
        engine = net.nodes[quiet].engine
        assert (engine.ended, engine.view) == (True, 3)
        assert engine.quiet_next_epoch == later

    def test_what_others_tell_before_the_boundary_frees_it_in_the_next_epoch(self) -> None:
        net = started(epoch_ms=5_000)
        quiet = next(index for index in range(4) if index != net.leader(2))
        self.go_on(net)
        net.want(None)
        net.restart(quiet, Quiet())
        net.wait(3 * TIMEOUT_MS)
        assert net.nodes[quiet].engine.quiet == Quiet(3)
        net.now_ms = 5_000
        self.go_on(net)
        assert net.nodes[quiet].engine.ended
        assert net.nodes[quiet].engine.quiet_next_epoch is None

    @pytest.mark.parametrize("how", ["vote", "certificate", "proposal"])
    def test_a_vote_of_its_own_that_it_did_not_cast_silences_it(self, how: str) -> None:
        net = started()
        leader = net.leader(1)
        foreign: Message = net.vote(leader, Kind.NULLIFY, 1)
        if how == "certificate":
            foreign = net.certificate(Kind.NULLIFY, 1, signers=sorted({leader, (leader + 1) % 4, (leader + 2) % 4}))
        if how == "proposal":
            foreign = net.propose(1)
        net.give(leader, Heard(foreign, (leader + 1) % 4))
        assert len(net.found(leader, Silenced)) == 1
        quiet = net.nodes[leader].engine.quiet
        net.wait(2 * TIMEOUT_MS)
        assert quiet == Quiet(None)
        assert net.nodes[leader].sent() == []
        net.wait(20 * TIMEOUT_MS)
        assert min(vote.view for vote in net.nodes[leader].sent()) > 3

    def test_its_own_votes_coming_back_do_not(self) -> None:
        net = started()
        build(net)
        net.deliver()
        for vote in net.nodes[0].sent():
            net.give(0, Heard(net.vote(0, vote.kind, vote.view, vote.block_hash), 1))
        net.verify()

    def test_a_second_foreign_vote_silences_it_for_the_epoch(self) -> None:
        net = started()
        engine = net.make_engine(0, quiet=Quiet(1))
        engine.start(0)
        for view in (1, 2, 3):
            engine.handle(0, Heard(net.certificate(Kind.NULLIFY, view), 1))
        effects = engine.handle(0, Heard(net.vote(0, Kind.NULLIFY, 4), 1))
        assert [type(effect) for effect in effects if isinstance(effect, Silenced)] == [Silenced]
        assert engine.quiet == Quiet((1 << 64) - 1)
        assert engine.quiet_next_epoch == Quiet()


class TestSkipList:
    def test_a_leader_that_is_away_costs_three_timeouts_and_no_more(self) -> None:
        net = started()
        away = net.leader(1)
        net.nodes[away].alive = False
        waited = 0
        while max(node.engine.view for node in net.nodes) < 60:
            view = max(node.engine.view for node in net.nodes)
            net.want(net.now_ms)
            if net.leader(view) == away:
                waited += 1
                net.wait(TIMEOUT_MS + 1)
            elif net.nodes[net.leader(view)].builds[-1].view == view:
                build(net)
            net.deliver()
        assert waited == 3
        assert [net.leader(view) for view in range(1, 60)].count(away) > 10
        net.verify()

    def test_while_nothing_is_due_nobody_is_skipped(self) -> None:
        net = started(due=False)
        engine = net.nodes[0].engine
        leader = net.leader(1) if net.leader(1) != 0 else net.leader(2)
        for _ in range(3):
            engine._skips.miss(leader)
        assert engine.deadline() is None


class TestHostile:
    def test_what_no_honest_member_sends_is_refused_and_changes_nothing(self) -> None:
        net = started()
        far = 1 + 64 + 1
        block_hash = Digest(bytes([1]) * 32)
        good = net.propose(1)
        leader, other = net.leader(1), (net.leader(1) + 1) % 4
        index = next(index for index in range(4) if index not in (leader, other))
        stolen = net.make_block(1, net.root, leader=other)
        third = net.propose(3, net.propose(2).block.header)
        assert third.parent is not None
        cases: list[tuple[Message, Reason]] = [
            (
                replace(net.vote(1, Kind.NOTARIZE, 1, block_hash), vote=Vote(Kind.NOTARIZE, 0, 1, block_hash, 4)),
                Reason.UNKNOWN_SIGNER,
            ),
            (SignedVote(Vote(Kind.NULLIFY, 0, 1, ZERO_HASH, 65_535), Signature(bytes(64))), Reason.UNKNOWN_SIGNER),
            (net.vote(other, Kind.NULLIFY, 1, epoch=1), Reason.WRONG_EPOCH),
            (net.vote(other, Kind.NULLIFY, far), Reason.TOO_FAR_AHEAD),
            (replace(net.vote(other, Kind.NULLIFY, 1), signature=Signature(bytes(64))), Reason.BAD_SIGNATURE),
            (replace(net.certificate(Kind.NULLIFY, 1), epoch=2), Reason.WRONG_EPOCH),
            (net.certificate(Kind.NULLIFY, 1, signers=(1, 2)), Reason.NO_QUORUM),
            (net.certificate(Kind.NULLIFY, 1, signers=(0, 1, 2, 3)), Reason.NOT_MINIMAL),
            (net.certificate(Kind.NULLIFY, 1, signers=(1, 1, 2)), Reason.MALFORMED),
            (replace(net.certificate(Kind.NULLIFY, 1), view=2), Reason.BAD_SIGNATURE),
            (
                VoteCertificate(
                    Kind.NULLIFY, 0, 1, ZERO_HASH, ((1, Signature(b"")), (2, Signature(b"")), (9, Signature(b"")))
                ),
                Reason.UNKNOWN_SIGNER,
            ),
            (Ask(1, 1), Reason.WRONG_EPOCH),
            (net.propose(far), Reason.TOO_FAR_AHEAD),
            (net.propose(1, epoch=1), Reason.WRONG_EPOCH),
            (Proposal(stolen, None), Reason.WRONG_LEADER),
            (Proposal(replace(good.block, signature=Signature(bytes(64))), None), Reason.BAD_SIGNATURE),
            (Proposal(third.block, None), Reason.MALFORMED),
            (replace(third, parent=replace(third.parent, kind=Kind.NULLIFY)), Reason.WRONG_PARENT),
            (replace(third, parent=net.certificate(Kind.NOTARIZE, 1, block_hash)), Reason.WRONG_PARENT),
            (replace(third, parent=replace(third.parent, signatures=third.parent.signatures[:2])), Reason.NO_QUORUM),
        ]
        engine = net.nodes[index].engine
        count = len(net.nodes[index].effects)
        for message, want in cases:
            assert reason(engine.handle, 0, Heard(message, other)) is want, message
        assert engine.view == 1
        assert len(net.nodes[index].effects) == count
        assert engine._voting.tally._views == {}
        assert engine._branches._proposals == {}
        net.give(index, Heard(good, leader))
        assert [vote.kind for vote in net.nodes[index].sent()] == [Kind.NOTARIZE]

    def test_signatures_that_nobody_checked_are_not_passed_on(self) -> None:
        """The leader signs its block, not the certificate that comes with it: anybody can put another there."""
        net = started(due=False)
        first = net.propose(1)
        second = net.propose(2, first.block.header)
        assert second.parent is not None
        net.give(0, Heard(first, None))
        net.give(0, Heard(second.parent, None))
        junk = replace(second.parent, signatures=((0, Signature(bytes(64))),))
        net.give(0, Heard(replace(second, parent=junk), None))
        assert net.found(0, Keep)[-1] == Keep(second)
        net.now_ms += 200
        net.give(0, Heard(Ask(0, 2), 1))
        told = [effect.message for effect in net.found(0, Send) if isinstance(effect.message, Proposal)]
        assert told == [second]

    def test_a_final_block_without_its_parent_s_certificate_is_delivered_and_not_passed_on(self) -> None:
        net = started(due=False)
        first = net.propose(1)
        second = net.propose(2, first.block.header)
        net.give(0, Heard(net.certificate(Kind.FINALIZE, 2, second.block.hash), None))
        net.give(0, Heard(Proposal(second.block, None), None))
        net.give(0, Heard(first, None))
        assert net.nodes[0].blocks == [first.block, second.block]
        net.now_ms += 200
        net.give(0, Heard(Ask(0, 1), 1))
        told = [effect.message for effect in net.found(0, Send) if isinstance(effect.message, Proposal)]
        assert told == [first]

    def test_a_certificate_of_any_later_view_is_followed(self) -> None:
        net = started()
        net.give(0, Heard(net.certificate(Kind.NULLIFY, 1 << 40), 1))
        assert net.nodes[0].engine.view == (1 << 40) + 1

    def test_many_votes_of_one_member_take_bounded_room(self) -> None:
        net = started()
        for view in range(1, 66):
            for byte in range(1, 20):
                net.give(0, Heard(net.vote(3, Kind.NOTARIZE, view, Digest(bytes([byte]) * 32)), 3))
        views = net.nodes[0].engine._voting.tally._views
        assert sum(len(cast) for seen in views.values() for cast in seen.cast.values()) == 65 * 2
        assert len(net.found(0, Guilty)) == 65

    def test_a_vote_counts_once_however_often_it_comes(self) -> None:
        net = started()
        for _ in range(5):
            for signer in (1, 2):
                net.give(3, Heard(net.vote(signer, Kind.NULLIFY, 9), signer))
        assert net.nodes[3].engine.view == 1

    def test_of_a_voter_s_two_votes_only_the_first_counts(self) -> None:
        net = started()
        one, other = Digest(bytes([1]) * 32), Digest(bytes([2]) * 32)
        for signer, block_hash in ((1, one), (1, other), (2, other), (3, other)):
            net.give(0, Heard(net.vote(signer, Kind.NOTARIZE, 9, block_hash), signer))
        assert net.nodes[0].engine.view == 1

    @pytest.mark.parametrize("seed", range(8))
    def test_hostile_schedules_make_no_honest_member_contradict_itself(self, seed: int) -> None:
        """Loss, restarts and a twin that signs everything: a small cousin of the simulation."""
        random = Random(seed)
        net = started()
        twin = random.randrange(4)
        net.nodes[twin].alive = False
        net.passes = lambda sender, to, message: random.random() < 0.7
        for _ in range(150):
            view = max(node.engine.view for node in net.nodes)
            net.want(net.now_ms)
            if net.leader(view) != twin:
                if any(asked.view == view for asked in net.nodes[net.leader(view)].builds):
                    build(net)
            else:
                for index in range(4):
                    net.give(index, Heard(net.propose(view, time_ms=ROOT_MS + 10**6 + index % 2), twin))
            known = [block.hash for node in net.nodes for block in node.blocks][-3:]
            for index in range(4):
                kind = random.choice(list(Kind))
                block_hash = ZERO_HASH if kind is Kind.NULLIFY else random.choice([*known, Digest(bytes([1]) * 32)])
                net.give(index, Heard(net.vote(twin, kind, view, block_hash), twin))
            if random.random() < 0.1:
                net.restart((twin + random.randrange(1, 4)) % 4)
            net.deliver(random.randrange(6))
            net.wait(random.randrange(400))
        net.passes = pass_all
        net.wait(120_000)
        chains = [[block.hash for block in node.blocks] for node in net.nodes]
        longest = max(chains, key=len)
        assert len(longest) >= 3
        for index, node in enumerate(net.nodes):
            assert chains[index] == longest[: len(chains[index])]
            kinds = {(vote.view, vote.kind) for vote in node.sent()}
            assert len(kinds) == len(node.sent())
            assert not [view for view, kind in kinds if kind is Kind.FINALIZE and (view, Kind.NULLIFY) in kinds]
            assert net.found(index, Silenced) == []
            for guilty in net.found(index, Guilty):
                signer = guilty.first.vote.signer if isinstance(guilty.first, SignedVote) else guilty.first[0].leader
                assert signer == twin
