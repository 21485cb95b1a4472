"""A node's part in the chain: puts executor, mempool, validator, catch-up and server together, and owns their tasks.

A member votes; any other node follows the announcements of final blocks and passes transactions on by gossip.
"""

import logging
from collections.abc import Callable, Sequence

import trio

from economics import cbor
from economics.arguments import Evidence
from economics.block import Finality
from economics.consensus import Guilty
from economics.crypto import Digest, NodeId
from economics.transactions import BLOCK_BYTES_MAX
from economics.votes import SignedVote
from gossip.pubsub import Gossip
from p2pnode.auditing.onion import Revealer
from p2pnode.consensus.blockmaker import BlockMaker
from p2pnode.consensus.chainserver import ChainServer
from p2pnode.consensus.chainsync import pull_bodies
from p2pnode.consensus.executor import Candidate, Executor
from p2pnode.consensus.intake import Intake
from p2pnode.consensus.journal import Binding
from p2pnode.consensus.links import Links
from p2pnode.consensus.membership import Membership
from p2pnode.consensus.mempool import Mempool
from p2pnode.consensus.news import News
from p2pnode.consensus.operator import Operator
from p2pnode.consensus.speech import Speak, speak_honestly
from p2pnode.keys import Key
from p2pnode.members import Members

log = logging.getLogger("p2pnode.consensus.participant")


class Participant:
    """What one running node knows and does of the chain."""

    def __init__(
        self,
        *,
        executor: Executor,
        key: Key,
        clock_ms: Callable[[], int],
        binding: Binding,
        chain_members: Members,
        consensus_members: Members,
        gossip: Gossip,
        snapshot_blocks: int,
        speak: Speak = speak_honestly,
    ) -> None:
        self.executor = executor
        self.genesis = executor.genesis
        self.node = NodeId(key.public)
        self.mempool = Mempool()
        self._members = chain_members
        self._accused: set[tuple[int, int]] = set()
        """(member, epoch) of reported equivocations."""
        self.intake = self._make_intake(gossip)
        self.news = self._make_news(gossip, snapshot_blocks)
        self.operator = Operator(executor=executor, key=key, submit=self.intake.submit)
        self.revealer = Revealer(executor=executor, node=self.node, seed=key.seed, want=self.operator.want)
        self.maker = BlockMaker(
            executor=executor,
            mempool=self.mempool,
            sign=key.sign,
            clock_ms=clock_ms,
            pull=self._pull,
            reveal=self.revealer.reveal,
        )
        self.membership = Membership(
            executor=executor,
            maker=self.maker,
            binding=binding,
            key=key,
            members=consensus_members,
            clock_ms=clock_ms,
            take=self.intake.take_batch,
            on_guilty=self._accuse,
            on_behind=self.news.fall_behind,
            speak=speak,
        )
        self.server = self._make_server()

    def _make_intake(self, gossip: Gossip) -> Intake:
        return Intake(
            executor=self.executor,
            node=self.node,
            mempool=self.mempool,
            gossip=gossip,
            members=self._members,
            links=lambda: self.links,
            came=self._transaction_came,
        )

    def _make_news(self, gossip: Gossip, snapshot_blocks: int) -> News:
        return News(
            executor=self.executor,
            node=self.node,
            gossip=gossip,
            members=self._members,
            apply=self.apply,
            caught_up=self._caught_up,
            snapshot_blocks=snapshot_blocks,
        )

    def _make_server(self) -> ChainServer:
        return ChainServer(
            executor=self.executor,
            submit=self.intake.submit,
            waiting=self.maker.transaction,
            next_nonce=lambda owner: self.mempool.next_nonce(owner, ledger=self.executor.ledger),
        )

    @property
    def links(self) -> Links | None:
        """The streams to the other members; None where this node has no seat in the current epoch."""
        return None if self.membership.own is None else self.membership.links

    def _transaction_came(self) -> None:
        if self.membership.validator is not None:
            self.membership.validator.transaction_came()

    async def run(self) -> None:
        """Take part until cancelled."""
        await self.intake.subscribe()
        await self.news.subscribe()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.membership.run)
            nursery.start_soon(self.intake.run)
            nursery.start_soon(self.news.run)
            nursery.start_soon(self.operator.run)
            nursery.start_soon(self.revealer.run)
            nursery.start_soon(self._follow_epochs)

    async def _follow_epochs(self) -> None:
        """At the start and in each new epoch turn to its committee."""
        while True:
            committee = self.executor.ledger.committee
            await self._members.seat(committee)
            await self.executor.wait_epoch_beyond(committee.epoch)

    def status(self) -> dict[str, cbor.Value]:
        validator, links = self.membership.validator, self.links
        return {
            "epoch": self.executor.ledger.epoch,
            "height": self.executor.height,
            "leader": None if validator is None else validator.engine.leader,
            "links": 0 if links is None else len(links.up),
            "mempool": len(self.mempool),
            "quiet": validator is not None and validator.is_quiet,
            "refused_messages": {} if validator is None else {str(key): n for key, n in validator.refused.items()},
            "refused_transactions": {str(key): n for key, n in self.intake.refused.items()},
            "root": self.executor.ledger.root.hex(),
            "view": 0 if validator is None else validator.engine.view,
        }

    # --- blocks --------------------------------------------------------------------------------------------------

    async def _pull(self, hashes: Sequence[Digest], sender: int | None) -> list[bytes]:
        """Fetch bodies from the validator's committee; `sender` is one of its members."""
        validator = self.membership.validator
        committee = self.executor.ledger.committee if validator is None else validator.committee
        members = self._members.seated(committee)
        return await pull_bodies(members, self.node, hashes, sender, bytes_max=BLOCK_BYTES_MAX)

    async def apply(self, candidates: Sequence[Candidate], finality: Finality) -> None:
        """Execute final blocks that came by a catch-up."""
        if self.membership.validator is not None:
            await self.membership.validator.apply(candidates, finality)
        else:
            await self.executor.apply(candidates, finality)
            executed = [signed for item in candidates for signed in item.transactions]
            self.mempool.drop_executed(executed, ledger=self.executor.ledger)
            self.maker.drop_passed()

    def _caught_up(self) -> None:
        self.mempool.review(self.mempool.senders(), ledger=self.executor.ledger)
        if self.membership.validator is not None:
            self.membership.validator.synced()

    # --- evidence ------------------------------------------------------------------------------------------------

    def _accuse(self, guilty: Guilty) -> None:
        first, second = guilty.first, guilty.second
        if isinstance(first, SignedVote):
            index, epoch, view = first.vote.signer, first.vote.epoch, first.vote.view
        else:
            index, epoch, view = first[0].leader, first[0].epoch, first[0].view
        if (index, epoch) in self._accused:
            return  # once an epoch: it is slashed each time, and each time costs every node a block
        self._accused = {key for key in self._accused if key[1] == epoch} | {(index, epoch)}
        committee = self.executor.ledger.committee_of(epoch)
        if committee is None:
            return  # so long ago that nobody is punished for it any more
        node = committee.members[index].node
        log.warning("caught: member %d signed two things that contradict each other in view %d", index, view)
        self.operator.accuse(Evidence(first, second), node=node, epoch=epoch, view=view)
