"""Nodes that hold blobs as a committee deals them, in memory, and the healing of one of them."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import cast

import trio

from economics import cbor
from economics.arguments import Operation
from economics.blob import Header, SegmentMetadata
from economics.committee import Committee
from economics.crypto import NodeId
from economics.genesis import Genesis
from economics.ledger import Ledger
from economics.nodes import Handover
from p2pnode.mending.healing import IN_FLIGHT_BYTES, Healing
from p2pnode.mending.peers import Peers
from p2pnode.mending.proofs import Proofs
from p2pnode.mending.throttle import Throttle
from p2pnode.network.frames import Incoming
from p2pnode.slivers.sliverfile import Pair
from p2pnode.slivers.storage import Manner, Reply, send_honestly
from tests.chain import Chain
from tests.p2pnode.reseated import Reseated, seat
from tests.p2pnode.server import MemoryNetwork, Server, make_members
from tests.small import OPERATORS, Blob, make_codec, make_genesis, make_pairs

Asked = tuple[int, dict[str, cbor.Value], bytes]
"""(member, request, payload)."""


@dataclass
class Town:
    """Nodes with a ledger that tests move; the first one heals."""

    directory: Path
    genesis: Genesis = field(default_factory=make_genesis)
    manners: dict[int, Manner] = field(default_factory=dict)
    quota: int = 1 << 30

    def __post_init__(self) -> None:
        chain = Chain.begin(self.genesis)
        self.view = Reseated(chain.ledger, {0: self.genesis.committee})
        self.view.handover = Handover(0, 0, 0, tuple(range(len(self.genesis.members))))
        chain.ledger = self.view.as_ledger()
        self.code = self.genesis.code
        self.wanted: list[tuple[Operation, Callable[[Ledger], bool]]] = []
        self.asked: list[Asked] = []
        self.servers = [self._make_server(index, chain) for index in range(len(self.genesis.members))]

    def _make_server(self, index: int, chain: Chain) -> Server:
        server = Server(
            self.directory / str(index),
            genesis=self.genesis,
            key=OPERATORS[index],
            manner=self.manners.get(index, send_honestly),
            chain=chain,
            quota=self.quota if not index else 1 << 30,
        )
        for name, operation in server.operations.items():
            answer = operation.answer

            async def note(
                peer: NodeId, message: Incoming, payload: bytes, answer: Callable[..., object] = answer
            ) -> Reply:
                self.asked.append((index, dict(message.header), payload))
                return cast(Reply, await answer(peer, message, payload))  # type: ignore[misc]

            server.operations[name] = type(operation)(note, operation.payload_max, operation.reply_bytes)
        return server

    @property
    def ledger(self) -> Ledger:
        return self.view.as_ledger()

    def seat(self, *holders: int, epoch: int) -> Committee:
        """Fix the committee of an epoch by the members that hold each shard."""
        self.view.committees[epoch] = seat(self.genesis, holders, epoch=epoch)
        return self.view.committees[epoch]

    def store_blob(
        self, blob: Blob, committee: Committee | None = None, *, epoch: int = 0, but: Sequence[int] = ()
    ) -> None:
        """Have all members but some hold what they owe of a blob, and the ledger owe it."""
        pairs = [(segment.metadata, segment.z, make_pairs(segment, range(self.code.n))) for segment in blob.segments]
        self.store_pairs(blob.header, pairs, committee, epoch=epoch, but=but)

    def store_pairs(
        self,
        header: Header,
        segments: Sequence[tuple[SegmentMetadata, int, Sequence[Pair]]],
        committee: Committee | None = None,
        *,
        epoch: int = 0,
        but: Sequence[int] = (),
    ) -> None:
        """As `store_blob`, with the slivers of any writer."""
        committee = self.view.committees[epoch] if committee is None else committee
        for index, server in enumerate(self.servers):
            shards = committee.shards_of_node(NodeId(server.key.public))
            if index in but or not shards:
                continue
            for metadata, z, pairs in segments:
                server.store.put_segment(metadata, z, [pair for pair in pairs if pair.shard in shards])
            server.store.put_header(header)
        self.view.certify(header, epoch=epoch)

    @asynccontextmanager
    async def healing(self) -> AsyncIterator["Healer"]:
        async with trio.open_nursery() as nursery:
            yield Healer(self, nursery)
            nursery.cancel_scope.cancel()


class Healer:
    """The first node's healing with all that it drives."""

    def __init__(self, town: Town, nursery: trio.Nursery) -> None:
        self.town = town
        own = town.servers[0]
        node, codec = NodeId(own.key.public), make_codec(town.genesis)
        self.store = own.store
        self.wished = trio.Event()
        """Set by the first operation that is wanted on the chain."""
        self.network = MemoryNetwork(town.servers, nursery, client=node)
        self.peers = Peers(members=make_members(self.network, town.genesis), code=town.code, rng=Random(1))

        def want(name: bytes, operation: Operation, is_wanted: Callable[[Ledger], bool]) -> None:
            if all(operation != earlier for earlier, _ in town.wanted):
                town.wanted.append((operation, is_wanted))
                self.wished.set()

        self.proofs = Proofs(
            genesis=town.genesis,
            node=node,
            store=self.store,
            codec=codec,
            peers=self.peers,
            ledger=lambda: town.ledger,
            sign=own.key.sign,
            want=want,
        )
        for server in town.servers[1:]:
            proofs = Proofs(
                genesis=town.genesis,
                node=NodeId(server.key.public),
                store=server.store,
                codec=codec,
                peers=self.peers,
                ledger=lambda: town.ledger,
                sign=server.key.sign,
                want=want,
            )
            server.operations.update(proofs.operations())
        self.healing = Healing(
            node=node,
            store=self.store,
            codec=codec,
            peers=self.peers,
            ledger=lambda: town.ledger,
            throttle=Throttle(in_flight=IN_FLIGHT_BYTES, bytes_per_s=0),
            accuse=self.proofs.found,
            want=want,
            rng=Random(2),
        )

    async def once(self) -> bool:
        """Look and heal once; return whether something came."""
        with trio.fail_after(240):
            survey = await self.healing.look(self.town.ledger)
            return await self.healing.heal(self.town.ledger, survey)

    async def missing(self) -> int:
        await self.healing.look(self.town.ledger)
        return self.healing.missing
