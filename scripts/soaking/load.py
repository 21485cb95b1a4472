"""The load: transfers between funded accounts and small blobs, all the time, and a record of what was acknowledged.

Acknowledged is what the client was told to be final. Requests that fail are counted and forgotten: nodes are dying.
"""

import random
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from economics.arguments import Transfer
from economics.blob import BlobId
from economics.crypto import OwnerId
from economics.errors import Rejected
from economics.genesis import FROST_PER_WAL
from economics.operations import EPOCHS_AHEAD_MAX
from p2pnode.clients.chainview import Outcome
from p2pnode.clients.payments import Order
from p2pnode.clients.publish import Publisher
from p2pnode.clients.session import Session
from p2pnode.clients.streaming import Blobs, write_to
from p2pnode.content.sources import FileSource
from p2pnode.errors import NodeError, TooSlow
from p2pnode.keys import Key

ACCOUNTS = 12
OWNERS = 2
"""Of blobs, beside the accounts: each stores one blob after the other."""
FUNDS_FROST = 1_000 * FROST_PER_WAL
BLOB_BYTES_MAX = 50_000
WAIT_S = 30.0
PAUSE_S = 0.3
NO_EFFECT = ("wrong_nonce", "unfunded_fee")
"""A transaction with such a code cost nothing, and may still take effect in a later block."""


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob that the network owes: where its bytes are on this side."""

    blob_id: BlobId
    path: Path


class Load:
    """What runs beside the kills, and what came of it."""

    def __init__(
        self,
        client: Session,
        faucet: Key,
        directory: Path,
        *,
        seed: int,
        accounts: int = ACCOUNTS,
        pause_s: float = PAUSE_S,
    ) -> None:
        self.client = client
        self.faucet = faucet
        self.directory = directory
        self.seed = seed
        self.pause_s = pause_s
        self.accounts = [self._make_key(index) for index in range(accounts)]
        self.owners = [self._make_key(accounts + index) for index in range(OWNERS)]
        self.outcomes: list[Outcome] = []
        self.blobs: list[StoredBlob] = []
        self.failures: Counter[str] = Counter()

    def _make_key(self, index: int) -> Key:
        return Key(random.Random(f"{self.seed} account {index}").randbytes(32))

    async def fund(self) -> None:
        """Give every account something to spend; before any node dies, so that any failure is one."""
        for key in (*self.accounts, *self.owners):
            await self.client.chain.transact(self.faucet, Transfer(OwnerId(key.public), FUNDS_FROST))

    async def run(self) -> None:
        """Send and store until cancelled."""
        async with trio.open_nursery() as nursery:
            for index in range(len(self.accounts)):
                nursery.start_soon(self._send_always, index, random.Random(f"{self.seed} transfers {index}"))
            for index in range(OWNERS):
                nursery.start_soon(self._store_always, index, random.Random(f"{self.seed} blobs {index}"))

    async def _send_always(self, index: int, rng: random.Random) -> None:
        while True:
            to = rng.choice([key for at, key in enumerate(self.accounts) if at != index])
            try:
                await self._send(self.accounts[index], Transfer(OwnerId(to.public), rng.randint(1, 1_000_000)))
            except (NodeError, Rejected) as fault:
                self._count("transfer", fault)
            await trio.sleep(rng.random() * self.pause_s)

    async def _send(self, key: Key, operation: Transfer) -> None:
        chain = self.client.chain
        signed = await chain.sign(key, operation)
        await chain.submit(signed)
        outcome = await chain.wait(signed.hash, deadline_s=WAIT_S)
        if outcome.code in NO_EFFECT:
            self.failures[f"transfer {outcome.code}"] += 1
        else:
            self.outcomes.append(outcome)

    async def _store_always(self, index: int, rng: random.Random) -> None:
        order = Order(epochs=EPOCHS_AHEAD_MAX)
        publisher = Publisher(self.client, self.owners[index], order)
        number = 0
        while True:
            path = self.directory / f"blob-{index}-{number}"
            number += 1
            await trio.to_thread.run_sync(path.write_bytes, rng.randbytes(rng.randint(0, BLOB_BYTES_MAX)))
            try:
                published = await publisher.publish(FileSource.open(path))
            except* (NodeError, Rejected) as faults:
                for fault in flatten(faults):
                    self._count("blob", fault)
            else:
                self.blobs.append(StoredBlob(published.blob_id, path))
                if published.upload is not None and published.upload[1].code == "ok":
                    self.outcomes.append(published.upload[1])
            await trio.sleep(rng.random() * self.pause_s)

    def _count(self, what: str, fault: BaseException) -> None:
        detail = "" if isinstance(fault, TooSlow) else f" {str(fault)[:60]}"
        self.failures[f"{what} {type(fault).__name__}{detail}"] += 1

    async def lost_blobs(self) -> list[str]:
        """Read every acknowledged blob back; return what is wrong with those that do not come back as they were."""
        found: list[str] = []
        limit = trio.CapacityLimiter(4)
        async with trio.open_nursery() as nursery:
            for blob in self.blobs:
                nursery.start_soon(partial(self._read_back, blob, limit, found))
        return found

    async def _read_back(self, blob: StoredBlob, limit: trio.CapacityLimiter, found: list[str]) -> None:
        back = blob.path.with_suffix(".back")
        async with limit:
            try:
                with back.open("wb") as sink:  # a few KB
                    await write_to(await Blobs(self.client).open(blob.blob_id), sink)
                if await self.client.chain.blob(blob.blob_id) is None:
                    found.append(f"{blob.path.name} is not on the chain")
                elif back.read_bytes() != blob.path.read_bytes():
                    found.append(f"{blob.path.name} came back with other bytes")
            except* (NodeError, Rejected) as faults:
                found.append(f"{blob.path.name}: {'; '.join(str(fault) for fault in flatten(faults))}")


def flatten(fault: BaseException) -> list[BaseException]:
    """Return the exceptions in a group, however deep."""
    if isinstance(fault, BaseExceptionGroup):
        return [leaf for part in fault.exceptions for leaf in flatten(part)]
    return [fault]
