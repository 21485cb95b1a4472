"""One member's validator with all that it drives, and nobody else: its links lead nowhere, its inbox takes anything."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import trio

from economics.block import BlockHeader
from economics.consensus import Guilty
from economics.crypto import DIGEST_BYTES, Digest, NodeId, Signature
from economics.errors import Reason, Rejected
from economics.genesis import Genesis
from economics.votes import Kind, SignedVote, Vote
from p2pnode.consensus.blockmaker import BlockMaker
from p2pnode.consensus.executor import Executor
from p2pnode.consensus.journal import Binding, Journal
from p2pnode.consensus.links import FrameType, Links
from p2pnode.consensus.mempool import Mempool
from p2pnode.consensus.speech import speak_honestly
from p2pnode.consensus.validator import Validator
from p2pnode.consensus.votelog import VoteLog
from p2pnode.errors import PeerUnreachable
from p2pnode.members import Members, Who
from p2pnode.network.stream import Stream
from tests.p2pnode.finalchain import GENESIS, open_executor
from tests.small import OPERATORS


class Nobody:
    """Members that cannot be reached."""

    async def open_stream(self, who: Who) -> Stream:
        await trio.lowlevel.checkpoint()
        raise PeerUnreachable("nobody is there")


def node_of(member: int) -> NodeId:
    return NodeId(OPERATORS[member].public)


HASH = Digest(b"h" * 32)


def vote(signer: int, *, view: int = 1, kind: Kind = Kind.NOTARIZE, epoch: int = 0, good: bool = True) -> SignedVote:
    plain = Vote(kind, epoch, view, HASH, signer)
    signature = OPERATORS[signer].sign(plain.encode(GENESIS.chain_id))
    return SignedVote(plain, signature if good else Signature(bytes(64)))


def open_binding(directory: Path, genesis: Genesis = GENESIS) -> tuple[VoteLog, Binding]:
    """Return the vote log of a directory, and what binds the member that has it."""
    votes, replay = VoteLog.open(directory / "votes.log", genesis.chain_id)
    journal = Journal(votes, replay.records, genesis=genesis)
    return votes, Binding(journal, None, on_silenced=lambda: None, on_loud=lambda: None)


@dataclass
class Member:
    """A validator on real files. `clock_ms` is the genesis time when it is made, and goes by trio's clock."""

    directory: Path
    own: int
    late_ms: int = 0
    behind: list[NodeId | None] = field(default_factory=list)
    guilty: list[Guilty] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    flights: list[tuple[BlockHeader, ...]] = field(default_factory=list)
    """What of its own blocks was in flight when it built one."""
    pull: Callable[[Sequence[Digest], int | None], list[bytes]] | None = None

    def __post_init__(self) -> None:
        self.begun = trio.current_time()
        self.executor: Executor = open_executor(self.directory)
        self.mempool = Mempool()
        self.key = OPERATORS[self.own]
        self.maker = BlockMaker(
            executor=self.executor,
            mempool=self.mempool,
            sign=self.key.sign,
            clock_ms=self.clock_ms,
            pull=self._pull,
            reveal=self._reveal,
        )
        self.links = Links(
            members=cast(Members, Nobody()),
            committee=self.executor.ledger.committee,
            own=NodeId(self.key.public),
            receive=lambda *frame: self.validator.receive(*frame),
            greet=lambda: b"",
        )
        self.votes, binding = open_binding(self.directory)
        self.validator = Validator(
            executor=self.executor,
            maker=self.maker,
            binding=binding,
            links=self.links,
            sign=self.key.sign,
            own=self.own,
            clock_ms=self.clock_ms,
            on_guilty=self.guilty.append,
            on_behind=self.behind.append,
            speak=speak_honestly,
            is_restart=True,
        )

    def clock_ms(self) -> int:
        return GENESIS.time_ms + self.late_ms + int((trio.current_time() - self.begun) * 1000)

    def _reveal(self, header: BlockHeader, flight: Sequence[BlockHeader]) -> bytes:
        self.flights.append(tuple(flight))
        return bytes([len(self.flights)]) * DIGEST_BYTES

    async def _pull(self, hashes: Sequence[Digest], sender: int | None) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        if self.pull is None:
            raise Rejected(Reason.NOT_FOUND, "nobody has them")
        return self.pull(hashes, sender)

    async def receive(self, sender: int, kind: FrameType, body: bytes) -> None:
        await self.validator.receive(node_of(sender), kind, body)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.validator.run)
            yield
            nursery.cancel_scope.cancel()
        self.votes.close()
