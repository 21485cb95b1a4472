"""Stores a file the whole way: quotes and reserves, uploads meanwhile, and has the certificate put on the chain.

Interrupted, the same call goes on: what was sent stays, what was paid is found again, what is certified costs nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import trio

from economics.arguments import Certify
from economics.blob import BlobId
from economics.commitments import ZERO_RESERVATION, ReservationId
from economics.committee import Committee
from economics.crypto import OwnerId
from economics.ledger import Code
from economics.state import BlobEntry, BlobSummary
from p2pnode.clients.chainclient import ChainClient
from p2pnode.clients.chainview import Outcome
from p2pnode.clients.payments import Order, Reserved, find_blob, keep_live, reserve_for
from p2pnode.clients.session import Session
from p2pnode.clients.upload import Deal, EpochEnded, Progress, Stored, TooFewNodes, Uploader
from p2pnode.coding.encoder import open_encoder
from p2pnode.content.sources import Source, compute_blob_id
from p2pnode.errors import TransactionFailed
from p2pnode.keys import Key

PROOF_S = 6.0
PROOF_PAUSE_S = 0.3
"""What a block did is proven by the next ones: within a second, or the timeouts of a few leaders."""
ATTEMPTS = 3
"""An epoch may end between the commitments and their certificate's block; the next try moves no bytes."""
PARALLEL_BYTES_MAX = 256 << 20
"""Uploads beyond this wait for their reservation: unpaid bytes fill a small budget of every node."""


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
    transactions: int
    upload: tuple[Stored, Outcome] | None
    """What was uploaded, and the block that certified it; None if the network owed the blob already.

    It may have come to owe it during the call: a node puts on chain what an earlier call had uploaded.
    """
    reservation: ReservationId
    """Names the owner's entry of the blob."""
    extended_epochs: int = 0
    """By which an entry that the owner had lasts longer."""


class _Reserving:
    """A reservation on its way, while the upload goes on."""

    def __init__(self) -> None:
        self._done = trio.Event()
        self._reserved: Reserved | None = None

    async def run(self, chain: ChainClient, key: Key, *, units: int, order: Order) -> None:
        self._reserved = await reserve_for(chain, key, units=units, order=order)
        self._done.set()

    @property
    def reserved(self) -> Reserved | None:
        return self._reserved

    async def wait(self) -> Reserved:
        await self._done.wait()
        assert self._reserved is not None
        return self._reserved


@dataclass(frozen=True, slots=True)
class Publisher:
    """Stores files of one owner through one client."""

    client: Session
    key: Key
    order: Order
    report: Callable[[Progress], None] = lambda progress: None
    on_named: Callable[[BlobId], None] = lambda blob_id: None
    """Told a blob's ID in a worker thread, before anything is paid or sent: from then on it may come to be stored,
    whatever becomes of the call, so what opens it must be kept by then."""

    @property
    def chain(self) -> ChainClient:
        return self.client.chain

    async def publish(self, source: Source) -> Published:
        """Store a source and return when its certificate is in a final block.

        Raises `Unpaid` before anything is paid if the owner cannot or will not pay, `TransactionFailed`, and what
        `Uploader.run` does.
        """
        blob_id = await trio.to_thread.run_sync(compute_blob_id, source, self.client.genesis.code)
        await trio.to_thread.run_sync(self.on_named, blob_id)
        owner, till = OwnerId(self.key.public), self.order.till
        async with till.blob(blob_id):
            was_stored = till.was_stored(blob_id)
            await self.chain.settle_others(owner)  # what an earlier call certified shows from here
            live = await (find_blob(self.chain, blob_id) if was_stored else self.chain.blob(blob_id))
            if live is not None:
                await self.chain.settled_account(owner)  # and from here what this client has deleted since
                live = await self.chain.blob(blob_id)
            published = await self._keep(live) if live is not None else await self._publish(source, blob_id)
            till.note_stored(blob_id)
        return published

    async def _keep(self, live: BlobSummary) -> Published:
        units = self.client.genesis.code.encoded_units(live.length)
        kept = await keep_live(self.chain, self.key, live, order=self.order)
        return Published(
            live.blob_id,
            live.length,
            units,
            kept.end_epoch,
            kept.cost_frost,
            kept.transactions,
            None,
            kept.reservation,
            kept.extended_epochs,
        )

    async def _publish(self, source: Source, blob_id: BlobId) -> Published:
        units = self.client.genesis.code.encoded_units(source.length)
        reserving = _Reserving()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(reserving.run, self.chain, self.key, units=units, order=self.order))
                upload = await self._upload(source, blob_id, reserving)
            reserved = await reserving.wait()
            self.order.till.fill(reserved.reservation, units_left=reserved.units_left)
        finally:
            if reserving.reserved is not None:
                self.order.till.give_back(reserving.reserved.reservation)
        fee, transactions = (0, 0) if upload is None else (upload[1].fee_frost, 1)
        paid, transactions = reserved.cost_frost + fee, transactions + (1 if reserved.cost_frost else 0)
        end, reservation = reserved.end_epoch, reserved.reservation
        return Published(blob_id, source.length, units, end, paid, transactions, upload, reservation)

    async def _upload(self, source: Source, blob_id: BlobId, reserving: _Reserving) -> tuple[Stored, Outcome] | None:
        """Upload and certify; once more where an epoch ended meanwhile: no bytes move but those of shards that did.

        Returns None where the members refuse because the blob has been certified under its reservation already.
        """
        for left in reversed(range(ATTEMPTS)):
            try:
                seating = await self.client.seats(fresh=left < ATTEMPTS - 1)
                stored = await self._send(source, seating.current, reserving)
                return stored, await self._certify(stored)
            except TransactionFailed as fault:
                if fault.code != Code.WRONG_EPOCH or not left:
                    raise
            except EpochEnded:
                if not left:
                    raise
            except TooFewNodes as few:
                reserved = reserving.reserved
                if few.unpaid and reserved is not None and await self._find_entry(blob_id, reserved.reservation):
                    return None
                raise
        raise AssertionError("the last attempt returns or raises")

    async def _certify(self, stored: Stored) -> Outcome:
        """Put the certificate on the chain.

        Where a member was quicker, with this statement or that of an earlier call, the outcome has the height of its
        block, and the fee of the transaction that came too late.
        """
        outcome = await self.chain.settle(self.key, Certify(stored.certificate))
        if outcome.code == Code.OK:
            return outcome
        if outcome.code != Code.WRONG_EPOCH:
            entry = await self._find_entry(stored.blob_id, stored.certificate.statement.reservation)
            if entry is not None:
                return replace(outcome, height=entry.certified_height)
        raise TransactionFailed(outcome.code, fee_frost=outcome.fee_frost)

    async def _find_entry(self, blob_id: BlobId, reservation: ReservationId) -> BlobEntry | None:
        """Return the owner's entry of a blob under its reservation, waiting for one that cannot be proven yet."""
        with trio.move_on_after(PROOF_S):
            while (entry := await self.chain.entry(blob_id, reservation)) is None:  # noqa: ASYNC110 - a peer has no event
                await trio.sleep(PROOF_PAUSE_S)
            return entry if entry.owner == OwnerId(self.key.public) else None
        return None

    async def _send(self, source: Source, committee: Committee, reserving: _Reserving) -> Stored:
        async def agree() -> Deal:
            reserved = await reserving.wait()
            head = await self.chain.head()
            seating = await self.chain.seats()
            return Deal(seating.current, head.height, reserved.reservation, self.order.deletable)

        height = (await self.chain.head()).height
        paid = (await reserving.wait()).reservation if source.length > PARALLEL_BYTES_MAX else ZERO_RESERVATION
        async with open_encoder(self.client.codec, length=source.length, workers=self.client.has_workers) as encoder:
            uploader = Uploader(
                members=self.client.members.seated(committee),
                encoder=encoder,
                owner=self.key,
                uploader=self.client.key.public,
                height=height,
                reservation=paid,
                report=self.report,
            )
            return await uploader.run(source, agree)
