"""A gateway on the real ledger, payments and server; members that take whatever is uploaded, and keep it in memory."""

import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from economics.arguments import Certify, Operation
from economics.blob import BlobId, Header
from economics.commitments import Certificate, ReservationId
from economics.state import BlobEntry
from economics.tree import StateKey
from p2pnode.clients.chainview import Make, Outcome
from p2pnode.clients.publish import Publisher
from p2pnode.clients.session import Session
from p2pnode.clients.upload import Stored
from p2pnode.content.sources import Source, compute_header
from p2pnode.errors import Unavailable
from p2pnode.gateway.access import Access
from p2pnode.gateway.app import create_app
from p2pnode.gateway.blobs import Blobs
from p2pnode.gateway.server import Bounds
from p2pnode.gateway.services import Limits, Services
from p2pnode.home import Home
from p2pnode.keys import Key
from p2pnode.peering.cache import SegmentCache
from tests.chain import key_of
from tests.gateway.raw import Answer, ask, serving
from tests.p2pnode.ledgerchain import LedgerChain
from tests.small import OWNER, certify, make_codec, make_genesis, make_statement

GENESIS = make_genesis(segment_bytes=64 << 10)
TOKEN = "a-token-of-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


class LedgerNet(LedgerChain):
    """A session whose chain executes each transaction at once, and whose members keep what they are sent."""

    def __init__(self) -> None:
        super().__init__(GENESIS)
        self.chain = self
        self.codec = make_codec(GENESIS)
        self.reader = self
        self.blobs: dict[BlobId, bytes] = {}
        self.headers_of: dict[BlobId, Header] = {}
        self.certificates: dict[BlobId, Certificate] = {}
        self.uploads: list[BlobId] = []
        self.under_way = 0
        self.most_under_way = 0
        self.gate: trio.Event | None = None
        """Uploads wait for it."""

    async def transact(self, key: Key, operation: Operation | Make, *, deadline_s: float = 30.0) -> Outcome:
        await trio.lowlevel.checkpoint()
        outcome = await super().transact(key, operation, deadline_s=deadline_s)
        await trio.lowlevel.checkpoint()
        return outcome

    async def upload(self, publisher: Publisher, source: Source, blob_id: BlobId, reserving: Any) -> Any:
        """Take the place of `Publisher._upload`."""
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            reserved = await reserving.wait()
            if self.gate is not None:
                await self.gate.wait()
            data = await trio.to_thread.run_sync(source.read, 0, source.length)
            header = await trio.to_thread.run_sync(compute_header, source, self.codec)
            assert header.blob_id == blob_id
            deletable = publisher.order.deletable
            salt = len(self.uploads).to_bytes(16, "big")
            statement = make_statement(
                GENESIS, header, reservation=reserved.reservation, deletable=deletable, salt=salt, expiry_height=10_000
            )
            certificate = certify(GENESIS, statement, (0, 1, 2), epoch=self.ledger.epoch)
            outcome = await self.transact(publisher.key, Certify(certificate))
        finally:
            self.under_way -= 1
        self.blobs[blob_id], self.headers_of[blob_id], self.certificates[blob_id] = data, header, certificate
        self.uploads.append(blob_id)
        return Stored(blob_id, header.length, certificate, 3, 0, 0, ()), outcome

    # --- what a reader asks --------------------------------------------------------------------------------------

    async def header(self, blob_id: BlobId) -> Header:
        await trio.lowlevel.checkpoint()
        if blob_id not in self.headers_of:
            raise Unavailable("no node has it")
        return self.headers_of[blob_id]

    async def segment(self, header: Header, index: int) -> list[memoryview]:
        return await self.segment_range(header, index, 0, header.code.segment_length(header.length, index))

    async def segment_range(self, header: Header, index: int, start: int, stop: int) -> list[memoryview]:
        await trio.lowlevel.checkpoint()
        begin = index * header.code.segment_bytes
        return [memoryview(self.blobs[header.blob_id][begin + start : begin + stop])]

    async def prove(self, keys: Sequence[StateKey]) -> Any:
        return SimpleNamespace(values=await self.values(keys))

    async def entry(self, blob_id: BlobId, reservation: ReservationId) -> BlobEntry | None:
        return self.ledger.entry(blob_id, reservation)

    async def certificate(self, blob_id: BlobId) -> Certificate | None:
        return self.certificates.get(blob_id)

    # --- what a test does ----------------------------------------------------------------------------------------

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def upload(publisher: Publisher, source: Source, blob_id: BlobId, reserving: Any) -> Any:
            return await self.upload(publisher, source, blob_id, reserving)

        monkeypatch.setattr(Publisher, "_upload", upload)

    def own_entries(self) -> list[BlobEntry]:
        return self.ledger.entries_of(key_of(OWNER))

    @property
    def spent_frost(self) -> int:
        return GENESIS.accounts[0].balance_frost - self.ledger.account(key_of(OWNER)).balance_frost


def make_services(
    net: LedgerNet,
    path: Path,
    *,
    owner: Key | None = OWNER,
    limits: Limits | None = None,
    is_loopback: bool = True,
    blobs: Blobs | None = None,
) -> Services:
    return Services(
        home=Home(path),
        session=cast(Session, net),
        owner=owner,
        access=Access(TOKEN, is_loopback=is_loopback),
        limits=limits or Limits(blob_bytes_max=4 << 20, quilt_bytes_max=4 << 20),
        blobs=blobs,
    )


@dataclass(frozen=True)
class Gateway:
    """A gateway that listens, and how to ask it."""

    net: LedgerNet
    services: Services
    port: int
    spool: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spool", self.services.home.path / "cache" / "spool")

    async def ask(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        return await ask(self.port, method, target, headers, body)

    async def json(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        status: int = 200,
    ) -> Any:
        answer = await self.ask(method, target, headers, body)
        assert (answer.status, answer.headers["content-type"]) == (status, "application/json"), answer
        assert answer.headers["cache-control"] == "no-store"
        return json.loads(answer.body)

    async def fails(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b"", *, status: int
    ) -> str:
        """Return the reason of a refusal, once it was seen to leave and cost nothing."""
        before = self.net.spent_frost, len(self.net.blobs)
        reason = reason_of(await self.ask(method, target, headers, body), status)
        assert (self.net.spent_frost, len(self.net.blobs)) == before
        return reason

    async def leaves_nothing(self) -> bool:
        """Return whether no body has a file, with or without a name, once what is under way has ended."""
        with trio.move_on_after(120):
            while self._spooled():  # noqa: ASYNC110 - a closed file has no event
                await trio.sleep(0.01)
        return not self._spooled()

    def _spooled(self) -> list[str]:
        opened: list[str] = []
        for link in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                opened.append(os.readlink(link))
        return [*os.listdir(self.spool), *(name for name in opened if name.startswith(str(self.spool)))]


def reason_of(answer: Answer, status: int) -> str:
    error = json.loads(answer.body)["error"]
    assert (answer.status, error["code"]) == (status, status), answer
    reason: str = error["details"][0]["reason"] if error["details"] else ""
    return reason


@asynccontextmanager
async def open_gateway(
    net: LedgerNet, path: Path, *, bounds: Bounds | None = None, patience_s: float = 240.0, **options: Any
) -> AsyncIterator[Gateway]:
    async with trio.open_nursery() as nursery:
        cache = SegmentCache(path / "cache" / "blobs", net.codec)
        services = make_services(net, path, blobs=Blobs(cast(Session, net), cache, nursery), **options)
        async with serving(create_app(services), bounds, patience_s=patience_s) as port:
            yield Gateway(net, services, port)
        nursery.cancel_scope.cancel()
