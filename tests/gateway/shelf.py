"""A network in memory for the gateway to read from: blobs, what the chain says of each, and what fails."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import trio

from economics.blob import BlobId, Header
from economics.commitments import Certificate
from economics.crypto import Digest, OwnerId
from economics.slots import blob_key, invalid_slot, state_key
from economics.state import BlobEntry, BlobSummary
from economics.tree import StateKey
from p2pnode.clients.chainview import Head
from p2pnode.clients.session import Session
from p2pnode.errors import NodeError, PeerUnreachable, Unavailable
from p2pnode.gateway.access import Access
from p2pnode.gateway.app import create_app
from p2pnode.gateway.blobs import Blobs
from p2pnode.gateway.server import Bounds, open_server
from p2pnode.gateway.services import Limits, Services
from p2pnode.home import Home
from p2pnode.peering.cache import SegmentCache
from p2pnode.peering.swarm import Swarm
from tests.small import OWNER, Blob, certify, encode_blob, make_codec, make_genesis, make_statement

GENESIS = make_genesis(segment_bytes=64 << 10)
CODEC = make_codec(GENESIS)
TOKEN = "the-token-of-this-test"


@dataclass(frozen=True)
class Proven:
    values: tuple[bytes | None, ...]


@dataclass
class Shelf:
    """A session whose members have these blobs. What is asked of them is counted."""

    blobs: dict[BlobId, Blob] = field(default_factory=dict)
    live: dict[BlobId, BlobSummary] = field(default_factory=dict)
    certificates: dict[BlobId, Certificate] = field(default_factory=dict)
    entries: dict[BlobId, BlobEntry] = field(default_factory=dict)
    invalid: set[BlobId] = field(default_factory=set)
    asked: Counter[str] = field(default_factory=Counter)
    fault: NodeError | None = None
    """What every read of bytes ends with."""
    chain_fault: NodeError | None = None
    breaks_at: int | None = None
    """The segment whose read fails."""
    gate: trio.Event | None = None
    """Segments wait for it."""
    epoch: int = 5
    accused: list[NodeError] = field(default_factory=list)
    suspect: tuple[Header, int] | None = None
    forgiven: int = 0
    genesis = GENESIS
    codec = CODEC

    def forgive(self) -> None:
        self.forgiven += 1

    @property
    def reader(self) -> "Shelf":
        return self

    @property
    def chain(self) -> "Shelf":
        return self

    def put(
        self, data: bytes, *, content_type: str = "", is_live: bool = True, is_certified: bool = True, epoch: int = 0
    ) -> BlobId:
        """Store a blob, as the chain and members would show it, and return its ID."""
        blob = encode_blob(GENESIS.code, data)
        blob_id = blob.header.blob_id
        self.blobs[blob_id] = blob
        statement = make_statement(GENESIS, blob.header)
        if is_certified:
            self.certificates[blob_id] = certify(GENESIS, statement, (0, 1, 2), epoch=epoch)
        if is_live:
            self.live[blob_id] = BlobSummary(blob_id, len(data), 3, epoch, ((9, 1),))
            self.entries[blob_id] = BlobEntry(
                blob_id, statement.reservation, OwnerId(OWNER.public), 1, 9, 3, True, content_type, ""
            )
        return blob_id

    def lose(self, blob_id: BlobId) -> None:
        """Have no member hold a blob any more."""
        del self.blobs[blob_id]

    # What a session has

    async def certificate(self, blob_id: BlobId) -> Certificate | None:
        self.asked["certificate"] += 1
        await trio.lowlevel.checkpoint()
        return self.certificates.get(blob_id)

    async def accuse(self, fault: NodeError) -> NodeError:
        await trio.lowlevel.checkpoint()
        self.accused.append(fault)
        return fault

    # What a chain has

    async def prove(self, keys: Sequence[StateKey]) -> Proven:
        self.asked["prove"] += 1
        await trio.lowlevel.checkpoint()
        if self.chain_fault is not None:
            raise self.chain_fault
        state = {blob_key(blob_id): summary.encode() for blob_id, summary in self.live.items()}
        state |= {state_key(invalid_slot(blob_id)): b"proven" for blob_id in self.invalid}
        return Proven(tuple(state.get(key) for key in keys))

    async def entry(self, blob_id: BlobId, reservation: object) -> BlobEntry | None:
        self.asked["entry"] += 1
        await trio.lowlevel.checkpoint()
        return self.entries.get(blob_id)

    async def head(self) -> Head:
        await trio.lowlevel.checkpoint()
        if self.chain_fault is not None:
            raise self.chain_fault
        return Head(self.epoch, 100, Digest(bytes(32)), 0)

    # What a reader has

    async def header(self, blob_id: BlobId) -> Header:
        self.asked["header"] += 1
        await trio.lowlevel.checkpoint()
        if isinstance(self.fault, PeerUnreachable):
            raise self.fault
        if blob_id not in self.blobs:
            raise Unavailable("4 of 4 nodes answered, and none has the blob")
        return self.blobs[blob_id].header

    async def segment(self, header: Header, index: int) -> list[memoryview]:
        self.asked["segment"] += 1
        await trio.lowlevel.checkpoint()
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        if self.breaks_at == index:
            raise Unavailable(f"segment {index}: 1 of 2 slivers can be had")
        if header.blob_id not in self.blobs:
            raise Unavailable(f"segment {index}: 0 of 2 slivers can be had")
        size = GENESIS.code.segment_bytes
        data = memoryview(self.blobs[header.blob_id].data)[index * size : (index + 1) * size]
        return [data[: len(data) // 3], data[len(data) // 3 :]]

    async def segment_range(self, header: Header, index: int, start: int, stop: int) -> list[memoryview]:
        self.asked["range"] += 1
        self.asked["segment"] -= 1
        whole = b"".join(await self.segment(header, index))
        return [memoryview(whole)[start:stop]]


@dataclass(frozen=True)
class Opened:
    """A gateway that listens."""

    port: int
    services: Services
    cache: SegmentCache


@dataclass
class Peers:
    """What peers have: another shelf."""

    shelf: Shelf

    async def header(self, blob_id: BlobId) -> Header:
        return await self.shelf.header(blob_id)

    async def segment(self, header: Header, index: int) -> bytes:
        return b"".join(await self.shelf.segment(header, index))


@asynccontextmanager
async def open_shelf(
    shelf: Shelf,
    path: Path,
    *,
    quota_bytes: int = 64 << 20,
    access: Access | None = None,
    limits: Limits | None = None,
    bounds: Bounds | None = None,
    peers: "Shelf | None" = None,
) -> AsyncIterator[Opened]:
    """Serve a shelf over a real socket while the block lasts."""
    cache = SegmentCache(path / "cache" / "blobs", CODEC, quota_bytes=quota_bytes)
    session = cast(Session, shelf)
    with trio.fail_after(240):
        async with trio.open_nursery() as nursery:
            swarm = None if peers is None else cast(Swarm, Peers(peers))
            blobs = Blobs(session, cache, nursery, swarm=swarm)
            services = Services(Home(path), session, None, access or Access(TOKEN), limits or Limits(), blobs)
            bounds = replace(bounds or Bounds(), grace_s=0.1)
            app: Any = create_app(services)
            async with open_server(lambda addresses: app, "127.0.0.1", 0, bounds) as addresses:
                yield Opened(addresses[0][1], services, cache)
            nursery.cancel_scope.cancel()
