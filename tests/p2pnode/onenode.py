"""A client of one node alone, member or not: what it proves it proves without anybody else."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from economics.crypto import NodeId
from p2pnode.clients.chainclient import ChainClient
from p2pnode.clients.session import Session, open_session
from p2pnode.dialling import clock_ms
from p2pnode.home import Home
from p2pnode.members import DIAL_S, Members, Who
from p2pnode.network.stream import Stream
from p2pnode.protocols import chain_protocol


class OneNode(Members):
    """The one node as if it were each of the members."""

    def __init__(self, client: Session, node: NodeId, addresses: Sequence[str]) -> None:
        super().__init__(client.members.network, client.genesis, chain_protocol(client.genesis), None)
        self.node = node
        self.addresses = addresses

    async def open_stream(self, who: Who) -> Stream:
        return await self.network.open_stream(self.node, self.protocol, addresses=self.addresses, deadline_s=DIAL_S)


@asynccontextmanager
async def open_one(home: Home, node: NodeId, addresses: Sequence[str], cache: Path) -> AsyncIterator[ChainClient]:
    """Yield a client of the chain that knows this node and nobody else, and trusts the genesis file."""
    async with open_session(home) as client:
        yield ChainClient(members=OneNode(client, node, addresses), cache=cache, clock_ms=clock_ms)
