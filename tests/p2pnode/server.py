"""Real storage servers on real stores, spoken to over streams in memory."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import cast

import trio

from economics.blob import Root
from economics.crypto import NodeId, Signature
from economics.genesis import Genesis
from p2pnode.errors import NetworkError, PeerUnreachable
from p2pnode.keys import Key
from p2pnode.members import Members
from p2pnode.network.host import Network
from p2pnode.network.stream import Stream
from p2pnode.slivers.admission import Admission, UploadLimits
from p2pnode.slivers.certifier import Certifier, Entry
from p2pnode.slivers.serving import Serving
from p2pnode.slivers.storage import Manner, StorageServer, send_honestly
from p2pnode.slivers.store import SliverStore
from tests.chain import Chain
from tests.small import OPERATORS, UPLOADER, make_codec, make_genesis
from tests.streams import MemoryStream, as_stream, stream_pair

CLIENT = NodeId(UPLOADER.public)
GENESIS = make_genesis((2, 1, 1))
"""n = 4: P = 2, S = 3."""


class Server:
    """A node's storage server on a store in a directory, and what it told and signed."""

    def __init__(
        self,
        directory: Path,
        *,
        limits: UploadLimits | None = None,
        quota: int = 1 << 30,
        genesis: Genesis = GENESIS,
        key: Key = OPERATORS[0],
        manner: Manner = send_honestly,
        chain: Chain | None = None,
    ) -> None:
        self.directory = directory
        self.key = key
        self.chain = chain or Chain.begin_reserved(genesis)
        codec = make_codec(genesis)
        self.store = SliverStore(directory, codec=codec, chain_id=genesis.chain_id, quota_bytes=quota)
        self.told: list[Entry] = []
        self.signed: list[bytes] = []
        self.admission = Admission(
            limits or UploadLimits(),
            code=genesis.code,
            node=NodeId(key.public),
            ledger=lambda: self.chain.ledger,
        )
        self.frozen: set[tuple[Root, int]] = set()
        self.serving = Serving(
            store=self.store,
            codec=codec,
            ledger=lambda: self.chain.ledger,
            frozen=self.show_frozen,
        )
        self.operations = dict(self.serving.operations())
        """More may be added."""
        self.server = StorageServer(
            genesis=genesis,
            node=NodeId(key.public),
            store=self.store,
            codec=codec,
            admission=self.admission,
            certifier=Certifier(
                chain_id=genesis.chain_id,
                committee=genesis.committee,
                committee_of=lambda epoch: self.chain.ledger.committee_of(epoch),
            ),
            sign=self.sign,
            ledger=lambda: self.chain.ledger,
            status=lambda: {"blobs": len(self.store.records())},
            on_commitment=self.tell,
            operations=self.operations,
            manner=manner,
        )

    def show_frozen(self) -> set[tuple[Root, int]]:
        """Return what is frozen; as a node's rounds do, by trio's clock, which worker threads do not have."""
        trio.current_time()
        return self.frozen

    def sign(self, message: bytes) -> Signature:
        self.signed.append(message)
        return self.key.sign(message)

    async def tell(self, entry: Entry) -> None:
        statement = entry[0]
        assert self.store.record(statement.blob_id) is not None
        self.told.append(entry)

    @asynccontextmanager
    async def stream(self, peer: NodeId = CLIENT) -> AsyncIterator[MemoryStream]:
        """Open a stream to the server, which runs while the block lasts."""
        client, server = stream_pair(peer, NodeId(self.key.public))
        async with trio.open_nursery() as nursery:

            async def handle() -> None:
                try:
                    await self.server.handle(as_stream(server))
                except NetworkError:
                    await server.reset()

            nursery.start_soon(handle)
            with trio.fail_after(240):
                yield client
            await client.close()


class MemoryNetwork:
    """Dials servers in memory, for `Members`; those in `down` do not answer."""

    def __init__(self, servers: Sequence[Server], nursery: trio.Nursery, *, client: NodeId = CLIENT) -> None:
        self.client = client
        self.servers = {NodeId(server.key.public): server for server in servers}
        self.down: set[int] = set()
        self.dialled: list[tuple[int, tuple[str, ...]]] = []
        self.streams: list[MemoryStream] = []
        """The servers' ends, in the order of dialling."""
        self._nursery = nursery
        """Who dials."""

    async def open_stream(
        self, peer: NodeId, protocol: str, *, addresses: Sequence[str] = (), deadline_s: float = 10.0
    ) -> Stream:
        await trio.lowlevel.checkpoint()
        index = list(self.servers).index(peer)
        self.dialled.append((index, tuple(addresses)))
        if index in self.down:
            raise PeerUnreachable("no answer")
        client, server = stream_pair(self.client, peer)
        self.streams.append(server)

        async def handle() -> None:
            with suppress(NetworkError):
                await self.servers[peer].server.handle(as_stream(server))

        self._nursery.start_soon(handle)
        return as_stream(client)


def make_members(network: MemoryNetwork, genesis: Genesis) -> Members:
    return Members(cast(Network, network), genesis, "/memory/1", None)
