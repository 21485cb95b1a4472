"""Stores a file the whole way: quotes and reserves, uploads meanwhile, and has the certificate put on the chain.

Interrupted, the same call goes on: what was sent stays, what was paid is found again, what is certified costs nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from economics.blob import BlobId, Header
from economics.commitments import ReservationId
from economics.committee import Committee
from economics.crypto import OwnerId
from economics.errors import Reason
from economics.ledger import Code
from economics.transactions import Certify, CertifyAgain
from p2pnode.chainclient import ChainClient, Outcome
from p2pnode.client import Client
from p2pnode.encoder import open_encoder
from p2pnode.errors import TransactionFailed
from p2pnode.keys import Key
from p2pnode.payments import Quote, reserve_for, verify_affordable
from p2pnode.upload import Deal, Progress, Stored, TooFewNodes, Uploader, file_length

ATTEMPTS = 3
"""An epoch may end between the commitments and their certificate's block; the next try moves no bytes."""
PARALLEL_BYTES_MAX = 256 << 20
"""Uploads beyond this wait for their reservation: unpaid bytes fill a small budget of every node."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the owner asks for."""

    epochs: int
    max_cost_frost: int | None
    deletable: bool


@dataclass(frozen=True, slots=True)
class Published:
    """What storing a file ended with."""

    blob_id: BlobId
    length: int
    units: int
    end_epoch: int
    """The first epoch in which the owner's claim has ended."""
    paid_frost: int
    """All that left the account: storage and fees."""
    outcome: Outcome | None
    """Of the transaction that certified it, the point of availability; None if the owner's claim was there already."""
    stored: Stored | None
    """What was uploaded; None if the network owed the blob already."""


class _Reserving:
    """A reservation on its way, while the upload goes on."""

    def __init__(self) -> None:
        self._done = trio.Event()
        self._reservation: ReservationId | None = None
        self.cost_frost = 0

    async def run(self, chain: ChainClient, key: Key, units: int, terms: Terms) -> None:
        self._reservation, self.cost_frost = await reserve_for(
            chain, key, units, terms.epochs, max_cost_frost=terms.max_cost_frost
        )
        self._done.set()

    async def wait(self) -> ReservationId:
        await self._done.wait()
        assert self._reservation is not None
        return self._reservation


@dataclass(frozen=True, slots=True)
class Publisher:
    """Stores files of one owner through one client."""

    client: Client
    key: Key
    terms: Terms
    on_quote: Callable[[int], None] = lambda quote_frost: None
    """Told what storing will cost, in FROST, before anything is paid or sent."""
    report: Callable[[Progress], None] = lambda progress: None

    @property
    def chain(self) -> ChainClient:
        return self.client.chain

    async def publish(self, path: Path) -> Published:
        """Store a file and return when its certificate is in a final block.

        Raises `Unpaid` before anything is sent if the owner cannot or will not pay, `TransactionFailed`, and what
        `Uploader.run` does.
        """
        length = await trio.to_thread.run_sync(file_length, path)
        blob_id = await trio.to_thread.run_sync(compute_blob_id, path, self.client.genesis.code)
        units = self.client.genesis.code.encoded_units(length)
        end_epoch = (await self.chain.head()).epoch + self.terms.epochs
        is_live = await self.chain.blob(blob_id) is not None
        if is_live:
            for entry in await self.chain.entries(OwnerId(self.key.public)):
                if entry.blob_id == blob_id and entry.end_epoch >= end_epoch:
                    return Published(blob_id, length, units, entry.end_epoch, 0, None, None)
        quote = await quote_for(self.chain, self.key, units, self.terms.epochs, max_cost_frost=self.terms.max_cost_frost)
        self.on_quote(quote)
        reserving = _Reserving()
        stored = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reserving.run, self.chain, self.key, units, self.terms)
            if is_live:
                again = CertifyAgain(await reserving.wait(), blob_id, self.terms.deletable)
                outcome = await self.chain.transact(self.key, again)
            else:
                stored, outcome = await self._upload(path, length, reserving)
        paid = reserving.cost_frost + outcome.fee_frost
        return Published(blob_id, length, units, end_epoch, paid, outcome, stored)

    async def _upload(self, path: Path, length: int, reserving: _Reserving) -> tuple[Stored, Outcome]:
        """Upload and certify; once more where an epoch ended between the two: no bytes move again."""
        if length > PARALLEL_BYTES_MAX:
            await reserving.wait()
        for left in reversed(range(ATTEMPTS)):
            try:
                stored = await self._send(path, length, reserving)
                return stored, await self.chain.transact(self.key, Certify(stored.certificate))
            except TransactionFailed as fault:
                if fault.code != Code.WRONG_EPOCH or not left:
                    raise
            except TooFewNodes:
                met = any(fault.detail.startswith(Reason.WRONG_EPOCH) for fault in self.client.members.faults.values())
                if not met or not left:
                    raise
                self.client.members.faults.clear()
        raise AssertionError("the last attempt returns or raises")

    async def _send(self, path: Path, length: int, reserving: _Reserving) -> Stored:
        async def agree() -> Deal:
            reservation = await reserving.wait()
            head = await self.chain.head()
            committee = Committee(head.epoch, self.client.genesis.members)
            return Deal(committee, head.height, reservation, self.terms.deletable)

        height = (await self.chain.head()).height
        async with open_encoder(self.client.codec, length=length) as encoder:
            uploader = Uploader(
                members=self.client.members,
                encoder=encoder,
                owner=self.key,
                uploader=self.client.session.public,
                height=height,
                report=self.report,
            )
            return await uploader.run(path, length, agree)
