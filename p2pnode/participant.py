"""A node's part in the chain: puts executor, mempool, validator, catch-up and server together, and owns their tasks.

A member votes; any other node follows the announcements of final blocks and passes transactions on by gossip.
"""

import logging
import os
import random
from collections.abc import Callable, Sequence

import trio

from economics import cbor
from economics.arguments import Evidence
from economics.block import HEADER_BYTES, BlockHeader, Finality
from economics.consensus import Guilty
from economics.crypto import Digest, NodeId
from economics.transactions import BLOCK_BYTES_MAX
from economics.votes import SignedVote
from gossip.pubsub import Gossip, Ignored
from p2pnode.blockmaker import BlockMaker
from p2pnode.chainserver import ChainServer
from p2pnode.chainsync import ChainSync, pull_bodies
from p2pnode.executor import Candidate, Executor
from p2pnode.intake import GOSSIP_BYTES_MAX, Intake
from p2pnode.journal import Binding
from p2pnode.keys import Key
from p2pnode.links import Links
from p2pnode.members import Members
from p2pnode.membership import Membership
from p2pnode.mempool import Mempool
from p2pnode.onion import Revealer
from p2pnode.operator import Operator
from p2pnode.protocols import blocks_topic
from p2pnode.speech import Speak, speak_honestly

log = logging.getLogger("p2pnode.participant")

POLL_S = 10.0
"""A node that is no member asks for news as often, should no announcement reach it."""
ANNOUNCE_S = 1.0
"""A gossip message costs every node 5 ms of CPU: at most one announcement a second."""
ANNOUNCED_BEHIND_MAX = 64
"""Announcements of blocks that are this much older than the head are of no use to anybody."""
CATCH_UP_S = 0.5
"""Least time between two rounds of catching up."""


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
        self.gossip = gossip
        self.intake = Intake(
            executor=executor,
            node=self.node,
            mempool=self.mempool,
            gossip=gossip,
            members=chain_members,
            links=lambda: self.links,
            came=self._transaction_came,
        )
        self.operator = Operator(executor=executor, key=key, submit=self.intake.submit)
        self._members = chain_members
        self._behind = trio.Event()
        self._ahead: NodeId | None = None
        self._announced = 0
        """The highest block whose announcement was passed on."""
        self._accused: set[tuple[int, int]] = set()
        """(member, epoch) of reported equivocations."""
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
            on_behind=self.fall_behind,
            speak=speak,
        )
        self.sync = ChainSync(
            executor=executor,
            members=chain_members,
            own=self.node,
            apply=self.apply,
            rng=random.Random(os.urandom(16)),
            snapshot_blocks=snapshot_blocks,
        )
        self.server = ChainServer(
            executor=executor,
            submit=self.intake.submit,
            waiting=self.maker.transaction,
            next_nonce=lambda owner: self.mempool.next_nonce(owner, ledger=executor.ledger),
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
        await self.gossip.subscribe(
            blocks_topic(self.genesis),
            size_max=GOSSIP_BYTES_MAX,
            validate=self._verify_announcement,
            handle=self._handle_announcement,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.membership.run)
            nursery.start_soon(self.intake.run)
            nursery.start_soon(self.operator.run)
            nursery.start_soon(self.revealer.run)
            nursery.start_soon(self._follow_epochs)
            nursery.start_soon(self._keep_up)
            nursery.start_soon(self._poll)
            nursery.start_soon(self._announce)

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

    def fall_behind(self, member: NodeId | None) -> None:
        """Say that others may have gone on without this node; a member who showed it is asked first."""
        self._ahead = member
        self._behind.set()

    async def _keep_up(self) -> None:
        """Catch up whenever something says that others have gone on, and once at the start."""
        self._behind.set()
        while True:
            await self._behind.wait()
            self._behind = trio.Event()
            if await self.sync.catch_up(self._ahead):
                self.mempool.review(ledger=self.executor.ledger)
                if self.membership.validator is not None:
                    self.membership.validator.synced()
            await trio.sleep(CATCH_UP_S)

    async def _poll(self) -> None:
        """Ask for news where none came for a while; a member's validator sees to that itself."""
        height = -1
        while True:
            if self.membership.own is None and height == self.executor.height:
                self.fall_behind(None)
            height = self.executor.height
            await trio.sleep(POLL_S)

    async def _announce(self) -> None:
        """Tell those who are no members of new final blocks: the leader of the newest does, at most once a second.

        Of a boundary too, whether or not it has a seat in the epoch that begins: new members wait for it.
        """
        told = self.executor.height
        while True:
            await self.executor.wait_beyond(told)
            told = self.executor.height
            head, finality = self.executor.head, self.executor.finality
            committee = self.executor.ledger.committee_of(head.epoch)
            leads = committee is not None and committee.index_of(self.node) == head.leader
            if leads and finality is not None:
                data = head.encode() + finality.encode()
                if len(data) <= GOSSIP_BYTES_MAX:  # a proof with many links, in the midst of a catch-up, is no news
                    await self.gossip.publish(blocks_topic(self.genesis), data)
            await trio.sleep(ANNOUNCE_S)

    def _verify_announcement(self, author: NodeId, data: bytes) -> None:
        """Raise `Rejected` for an announcement of no final block, `Ignored` for what cannot be told or was passed on.

        Each height goes on once, and none below it: a quorum's signatures make many proofs of one block.
        """
        header = BlockHeader.decode(data[:HEADER_BYTES], chain_id=self.genesis.chain_id)
        finality = Finality.decode(data[HEADER_BYTES:], chain_id=self.genesis.chain_id)
        ledger = self.executor.ledger
        if header.height <= self._announced or header.height < self.executor.height - ANNOUNCED_BEHIND_MAX:
            raise Ignored("no news")
        committee = ledger.committee_of(header.epoch)
        if committee is None:
            raise Ignored("of an epoch whose committee is not known here")
        finality.verify(header, committee=committee)
        self._announced = header.height

    async def _handle_announcement(self, author: NodeId, data: bytes) -> None:
        header = BlockHeader.decode(data[:HEADER_BYTES], chain_id=self.genesis.chain_id)
        if self.membership.own is None and header.height > self.executor.height:
            self.fall_behind(author)

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
