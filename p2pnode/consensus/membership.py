"""A node's seats, epoch after epoch: a validator for each epoch in which it has some, and links while it keeps them.

What binds a member goes on with it, through epochs without a seat too. Decides no vote.
"""

import logging
from collections.abc import Awaitable, Callable

import trio

from economics.consensus import Guilty
from economics.crypto import NodeId
from p2pnode.consensus.blockmaker import BlockMaker
from p2pnode.consensus.executor import Executor
from p2pnode.consensus.journal import Binding
from p2pnode.consensus.links import FrameType, Links
from p2pnode.consensus.speech import Speak
from p2pnode.consensus.validator import Validator
from p2pnode.keys import Key
from p2pnode.members import Members
from p2pnode.network.stream import Stream

log = logging.getLogger("p2pnode.consensus.membership")

LINGER_S = 20.0
"""How long a member that has lost its seats still answers those who have not executed the boundary: they ask around
for blocks when they have seen nothing final for 5 s."""
ARRIVAL_S = 5.0
"""How long a stream from a member of the next committee waits for that committee's time to come here too."""


class Membership:
    """One node's part in the committees."""

    def __init__(
        self,
        *,
        executor: Executor,
        maker: BlockMaker,
        binding: Binding,
        key: Key,
        members: Members,
        clock_ms: Callable[[], int],
        take: Callable[[NodeId, bytes], Awaitable[None]],
        on_guilty: Callable[[Guilty], None],
        on_behind: Callable[[NodeId | None], None],
        speak: Speak,
    ) -> None:
        """`take` gets the transactions that members pass on."""
        self.node = NodeId(key.public)
        self.links: Links | None = None
        """None where this node has no seat; so is `validator`, and for an instant between two epochs."""
        self.validator: Validator | None = None
        self._executor = executor
        self._maker = maker
        self._binding = binding
        self._key = key
        self._members = members
        self._clock_ms = clock_ms
        self._take = take
        self._on_guilty = on_guilty
        self._on_behind = on_behind
        self._speak = speak
        self._hearing: set[trio.CancelScope] = set()
        """Frames that the validator is taking: what still waits when its epoch is over means nothing to the next."""
        self._seated = trio.Event()
        """Set, and replaced, whenever a committee takes its seats here."""
        self._begin(is_restart=True)

    @property
    def own(self) -> int | None:
        """This node's index in the committee of the current epoch."""
        return self._executor.ledger.committee.index_of(self.node)

    def _begin(self, *, is_restart: bool) -> None:
        """Make a validator for the current epoch, if this node has a seat."""
        executor, own = self._executor, self.own
        if own is None:
            return
        committee = executor.ledger.committee
        if self.links is None:
            self.links = Links(
                members=self._members, committee=committee, own=self.node, receive=self._receive, greet=self._greet
            )
        self.validator = Validator(
            executor=executor,
            maker=self._maker,
            binding=self._binding,
            links=self.links,
            sign=self._key.sign,
            own=own,
            clock_ms=self._clock_ms,
            on_guilty=self._on_guilty,
            on_behind=self._on_behind,
            speak=self._speak,
            is_restart=is_restart,
        )

    def _greet(self) -> bytes:
        return b"" if self.validator is None else self.validator.greet()

    # --- epochs --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take part in each epoch that gives this node a seat, until cancelled."""
        while True:
            epoch = self._executor.ledger.epoch
            if self.validator is None:
                self._begin(is_restart=False)
            if self.validator is not None:
                await self._serve()
            else:
                await self._executor.wait_epoch_beyond(epoch)

    async def _serve(self) -> None:
        """Vote in one epoch after the other for as long as this node keeps a seat."""
        links = self.links
        assert links is not None
        async with trio.open_nursery() as nursery:
            await links.seat(self._executor.ledger.committee)
            nursery.start_soon(links.run)
            while self.validator is not None:
                self._seated.set()
                self._seated = trio.Event()
                await self._vote(self.validator)
                self._begin(is_restart=False)
                if self.validator is not None:
                    await links.seat(self.validator.committee)
            nursery.cancel_scope.cancel()
        self.links = None
        log.info("this node has no seat any more: it follows the chain")

    async def _vote(self, validator: Validator) -> None:
        """Vote in one epoch; a node that has no seat in the next lingers, and is done sooner if it gets one back."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(validator.run)
            await self._executor.wait_epoch_beyond(validator.committee.epoch)
            with trio.move_on_after(LINGER_S):
                while self.own is None:
                    await self._executor.advanced.wait()
            nursery.cancel_scope.cancel()
        self.validator = None
        for scope in self._hearing:
            scope.cancel()
        self._binding = await validator.hand_on()

    # --- streams of others ---------------------------------------------------------------------------------------

    async def handle(self, stream: Stream) -> None:
        """Take the frames of a member's stream. One of the next committee's shows that the epoch has ended there."""
        if self._is_to_come(stream.peer):
            self._on_behind(stream.peer)
            with trio.move_on_after(ARRIVAL_S):
                while self._is_to_come(stream.peer):
                    await self._seated.wait()
        if self.links is None:
            await stream.reset()
        else:
            await self.links.handle(stream)

    def _is_to_come(self, peer: NodeId) -> bool:
        """Return whether a node is to be heard from the next epoch on, or from one that is just beginning here."""
        if self.links is not None and self.links.committee.index_of(peer) is not None:
            return False
        ledger = self._executor.ledger
        coming = [ledger.next_committee, ledger.committee]
        return any(
            committee is not None and None not in (committee.index_of(self.node), committee.index_of(peer))
            for committee in coming
        )

    async def _receive(self, sender: NodeId, kind: FrameType, body: bytes) -> None:
        """Take one frame of a member. Between two epochs none is heard: the next engine asks for what it missed."""
        if kind is FrameType.TRANSACTIONS:
            await self._take(sender, body)
        elif self.validator is not None:
            with trio.CancelScope() as scope:
                self._hearing.add(scope)
                try:
                    await self.validator.receive(sender, kind, body)
                finally:
                    self._hearing.discard(scope)
