"""Real nodes in one process: engines, ledgers and files, joined by streams and gossip in memory, on trio's clock."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

import trio

from economics.arguments import Transfer
from economics.crypto import NodeId, OwnerId
from economics.errors import Rejected
from economics.genesis import Genesis
from economics.transactions import SignedTransaction
from gossip.pubsub import Gossip, Ignored
from p2pnode.consensus.participant import Participant
from p2pnode.consensus.speech import speak_honestly
from p2pnode.errors import NetworkError, PeerUnreachable
from p2pnode.members import Members
from p2pnode.network.host import Network
from p2pnode.network.stream import Stream
from p2pnode.protocols import chain_protocol, consensus_protocol
from tests.p2pnode.finalchain import GENESIS as PLAIN
from tests.p2pnode.finalchain import open_executor, sign
from tests.p2pnode.member import node_of, open_binding
from tests.small import OPERATORS, OTHER_OWNER, OWNER
from tests.streams import as_stream, stream_pair

PACE = replace(PLAIN.parameters, block_interval_ms=20, timeout_ms=500, heartbeat_ms=2_000)
GENESIS = replace(PLAIN, parameters=PACE)
TO = OwnerId(OTHER_OWNER.public)
Handler = Callable[[Stream], Awaitable[None]]
Validate = Callable[[NodeId, bytes], None]
Handle = Callable[[NodeId, bytes], Awaitable[None]]


class World:
    """Who serves and hears what, the streams between them, and their common clock."""

    def __init__(self, nursery: trio.Nursery, genesis: Genesis) -> None:
        self.nursery = nursery
        self.genesis = genesis
        self.served: dict[tuple[NodeId, str], Handler] = {}
        self.heard: dict[tuple[NodeId, str], tuple[Validate, Handle]] = {}
        self._begun = trio.current_time()
        self._running: dict[NodeId, trio.CancelScope] = {}

    def clock_ms(self) -> int:
        return self.genesis.time_ms + int((trio.current_time() - self._begun) * 1000)

    def open_stream(self, caller: NodeId, peer: NodeId, protocol: str) -> Stream:
        handler = self.served.get((peer, protocol))
        if handler is None:
            raise PeerUnreachable("no answer")
        client, server = stream_pair(caller, peer, window=4 << 20)

        async def handle() -> None:
            with suppress(NetworkError):
                await handler(as_stream(server))

        self.nursery.start_soon(handle)
        return as_stream(client)

    def start(self, node: Participant) -> None:
        scope = self._running[node.node] = trio.CancelScope()

        async def run() -> None:
            with scope:
                await node.run()

        self.nursery.start_soon(run)

    def stop(self, node: Participant) -> None:
        """End a node at once; nobody reaches it from here on."""
        self._running.pop(node.node).cancel()
        for table in (self.served, self.heard):
            for key in [key for key in table if key[0] == node.node]:
                del table[key]


class Place:
    """One node's network."""

    def __init__(self, world: World, own: NodeId) -> None:
        self.world, self.own = world, own

    async def open_stream(
        self, peer: NodeId, protocol: str, *, addresses: Sequence[str] = (), deadline_s: float = 10.0
    ) -> Stream:
        await trio.lowlevel.checkpoint()
        return self.world.open_stream(self.own, peer, protocol)


class Square:
    """One node's gossip: everybody hears what anybody says, if it holds."""

    def __init__(self, world: World, own: NodeId) -> None:
        self.world, self.own = world, own

    async def subscribe(self, topic: str, *, size_max: int, validate: Validate, handle: Handle) -> None:
        await trio.lowlevel.checkpoint()
        self.world.heard[self.own, topic] = validate, handle

    async def publish(self, topic: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        hearers = [heard for (node, said), heard in self.world.heard.items() if said == topic and node != self.own]
        for validate, handle in hearers:
            with suppress(Rejected, Ignored):
                validate(self.own, data)
                await handle(self.own, data)


def join(world: World, path: Path, own: int) -> Participant:
    """Return a node that is reached by the others and does not run yet."""
    genesis, node = world.genesis, node_of(own)
    place = cast(Network, Place(world, node))
    participant = Participant(
        executor=open_executor(path, genesis),
        key=OPERATORS[own],
        clock_ms=world.clock_ms,
        binding=open_binding(path, genesis)[1],
        chain_members=Members(place, genesis, chain_protocol(genesis), None),
        consensus_members=Members(place, genesis, consensus_protocol(genesis), None),
        gossip=cast(Gossip, Square(world, node)),
        snapshot_blocks=5_000,
        speak=speak_honestly,
    )
    world.served[node, chain_protocol(genesis)] = participant.server.handle
    world.served[node, consensus_protocol(genesis)] = participant.membership.handle
    return participant


@asynccontextmanager
async def network(
    path: Path, nodes: Sequence[int], genesis: Genesis = GENESIS
) -> AsyncIterator[tuple[World, list[Participant]]]:
    """Run the nodes of these operators, members or not, while the block lasts."""
    with trio.fail_after(480):
        async with trio.open_nursery() as nursery:
            world = World(nursery, genesis)
            joined = [join(world, path / str(own), own) for own in nodes]
            for node in joined:
                world.start(node)
            yield world, joined
            nursery.cancel_scope.cancel()


def pay(node: Participant, nonce: int) -> SignedTransaction:
    return sign(node.executor.ledger, OWNER, Transfer(TO, 1), nonce=nonce)


async def settle(nodes: Sequence[Participant], nonce: int) -> None:
    """Wait until all have executed so many transactions of the owner, and compare what they hold."""
    for node in nodes:
        while node.executor.ledger.account(OwnerId(OWNER.public)).nonce < nonce:
            await node.executor.advanced.wait()
    height = min(node.executor.height for node in nodes)
    assert len({node.executor.root(height) for node in nodes}) == 1
