"""Nodes in a round of challenges: real stores and servers, spoken to in memory; the round is what a test says."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import trio

from economics.arguments import Operation
from economics.blob import Root
from economics.crypto import Digest, NodeId
from economics.genesis import Genesis
from economics.ledger import Ledger
from economics.nodes import Round, Tally
from p2pnode.auditing.answers import Answers
from p2pnode.auditing.audit import Auditor
from p2pnode.auditing.rounds import Rounds, Sheet, draw
from p2pnode.consensus.executor import Executor
from p2pnode.slivers.store import SliverStore
from tests.chain import Chain
from tests.p2pnode.reseated import Reseated
from tests.p2pnode.server import MemoryNetwork, Server, make_members
from tests.small import OPERATORS, Blob, make_blob, make_codec, make_genesis, make_pairs

GENESIS = make_genesis((2, 2, 1, 1, 1))
"""n = 7: f = 2, P = 3, S = 5. Members 0 and 1 have two shards each."""
CODE = GENESIS.code
AUDITOR, TARGET, OTHER, WITNESS = range(4)
BLOBS = tuple(make_blob(CODE, length, seed) for seed, length in enumerate((2500, 700, 0)))
"""Five segments: fewer than are sampled, so every round asks about all of them."""
ROOTS = tuple(root for blob in BLOBS for root in blob.header.roots)
SEED = Digest(b"\x09" * 32)
WINDOW_S = 30.0
"""Of the parameters' rounds of an hour."""


def make_round(number: int = 1, *, epoch: int = 0, height: int = 50, targets: Sequence[int] = (TARGET,)) -> Round:
    tallies = tuple(Tally(member) for member in targets)
    return Round(epoch, number, height, GENESIS.time_ms, SEED, tallies, ())


class Challenged(Reseated):
    """A ledger in which a round began."""

    round: Round


def make_ledger(current: Round | None = None, *blobs: Blob, genesis: Genesis = GENESIS) -> Challenged:
    """Return the state in which a round began and these blobs were live, certified before."""
    ledger = Challenged(Ledger.at_genesis(genesis), {0: genesis.committee, 1: genesis.committee.in_epoch(1)})
    ledger.certify(*(blob.header for blob in blobs or BLOBS), epoch=0)
    ledger.round = current or make_round(epoch=1)
    ledger.epoch = ledger.round.epoch
    return ledger


@dataclass
class StandIn:
    """In place of an executor."""

    genesis: Genesis = GENESIS
    round_ledger: Ledger | None = None
    round_since: float = 0.0
    advanced: trio.Event = field(default_factory=trio.Event)

    def begin(self, ledger: Challenged, *, ago_s: float = 0.0) -> None:
        """Let a round begin, so long ago."""
        self.round_ledger, self.round_since = ledger.as_ledger(), trio.current_time() - ago_s
        self.advanced.set()
        self.advanced = trio.Event()

    def as_executor(self) -> Executor:
        return cast(Executor, self)


def put_all(store: SliverStore, shards: Sequence[int], blobs: Sequence[Blob] = BLOBS) -> None:
    """Let a node hold its part of the blobs."""
    for blob in blobs:
        store.put_header(blob.header)
        for segment in blob.segments:
            store.put_segment(segment.metadata, segment.z, make_pairs(segment, shards))


class Node:
    """A member: its server, which answers challenges, and its audits."""

    def __init__(self, directory: Path, index: int, blobs: Sequence[Blob] = BLOBS) -> None:
        self.index = index
        self.node = NodeId(OPERATORS[index].public)
        self.server = Server(directory, genesis=GENESIS, key=OPERATORS[index], chain=Chain.begin(GENESIS))
        self.server.chain.ledger = make_ledger().as_ledger()
        self.store = self.server.store
        self.shards = GENESIS.committee.shards_of(index)
        put_all(self.store, self.shards, blobs)
        self.executor = StandIn()
        self.rounds = Rounds(executor=self.executor.as_executor(), store=self.store)
        self.answers = Answers(rounds=self.rounds, store=self.store, codec=make_codec(GENESIS), node=self.node)
        self.server.serving.frozen = self.rounds.frozen
        operations = {**self.server.serving.operations(), **self.answers.operations()}
        self.server.server.operations = operations
        self.wanted: list[tuple[bytes, Operation]] = []
        """What the operator is to send."""
        self.has_wanted = trio.Event()

    def begin(self, ledger: Challenged | None = None, *, ago_s: float = 0.0) -> Sheet:
        """Be in a round that began so long ago, without the task that draws it."""
        made = (ledger or make_ledger()).as_ledger()
        self.rounds.sheet = draw(made, self.store, None)
        self.rounds.began = trio.current_time() - ago_s
        return self.rounds.sheet

    def auditor(self, network: MemoryNetwork) -> Auditor:
        return Auditor(
            rounds=self.rounds,
            store=self.store,
            codec=make_codec(GENESIS),
            members=make_members(network, GENESIS),
            node=self.node,
            want=self._want,
        )

    def _want(self, name: bytes, operation: Operation, is_wanted: Callable[[Ledger], bool]) -> None:
        self.wanted.append((name, operation))
        self.has_wanted.set()

    def drop(self, root: Root, shard: int) -> None:
        self.store.drop_shard_file(root, shard)


@dataclass
class World:
    """An auditor, and the members it may ask."""

    nodes: list[Node]
    network: MemoryNetwork
    auditor: Auditor


@asynccontextmanager
async def open_world(directory: Path, count: int = 4, blobs: Sequence[Blob] = BLOBS) -> AsyncIterator[World]:
    nodes = [Node(directory / str(index), index, blobs) for index in range(count)]
    async with trio.open_nursery() as nursery:
        network = MemoryNetwork([node.server for node in nodes], nursery, client=nodes[AUDITOR].node)
        yield World(nodes, network, nodes[AUDITOR].auditor(network))
        nursery.cancel_scope.cancel()
