"""News of the chain: new final blocks announced by gossip, and the catching up with who has gone on."""

import os
import random
from collections.abc import Awaitable, Callable, Sequence

import trio

from economics.block import HEADER_BYTES, BlockHeader, Finality
from economics.crypto import NodeId
from gossip.pubsub import Gossip, Ignored
from p2pnode.consensus.chainsync import ChainSync
from p2pnode.consensus.executor import Candidate, Executor
from p2pnode.members import Members
from p2pnode.protocols import blocks_topic

ANNOUNCEMENT_BYTES_MAX = 65_536
"""A larger one has a proof with many links, in the midst of a catch-up: that is no news."""
POLL_S = 10.0
"""A node that is no member asks for news as often, should no announcement reach it."""
ANNOUNCE_S = 1.0
"""A gossip message costs every node 5 ms of CPU: at most one announcement a second."""
ANNOUNCED_BEHIND_MAX = 64
"""Announcements of blocks that are this much older than the head are of no use to anybody."""
CATCH_UP_S = 0.5
"""Least time between two rounds of catching up."""


class News:
    """What one node tells and hears of new final blocks."""

    def __init__(
        self,
        *,
        executor: Executor,
        node: NodeId,
        gossip: Gossip,
        members: Members,
        apply: Callable[[Sequence[Candidate], Finality], Awaitable[None]],
        caught_up: Callable[[], None],
        snapshot_blocks: int,
    ) -> None:
        """`apply` executes blocks that came by a catch-up; `caught_up` hears that there were some."""
        self.executor = executor
        self.genesis = executor.genesis
        self.node = node
        self.gossip = gossip
        self._caught_up = caught_up
        self._behind = trio.Event()
        self._ahead: NodeId | None = None
        self._announced = 0
        """The highest block whose announcement was passed on."""
        self.sync = ChainSync(
            executor=executor,
            members=members,
            own=node,
            apply=apply,
            rng=random.Random(os.urandom(16)),
            snapshot_blocks=snapshot_blocks,
        )

    @property
    def _is_seated(self) -> bool:
        return self.executor.ledger.committee.index_of(self.node) is not None

    async def subscribe(self) -> None:
        """Hear what is announced from here on."""
        await self.gossip.subscribe(
            blocks_topic(self.genesis),
            size_max=ANNOUNCEMENT_BYTES_MAX,
            validate=self._verify_announcement,
            handle=self._handle_announcement,
        )

    async def run(self) -> None:
        """Tell and catch up until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_up)
            nursery.start_soon(self._poll)
            nursery.start_soon(self._announce)

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
                self._caught_up()
            await trio.sleep(CATCH_UP_S)

    async def _poll(self) -> None:
        """Ask for news where none came for a while; a member's validator sees to that itself."""
        height = -1
        while True:
            if not self._is_seated and height == self.executor.height:
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
                if len(data) <= ANNOUNCEMENT_BYTES_MAX:
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
        if not self._is_seated and header.height > self.executor.height:
            self.fall_behind(author)
