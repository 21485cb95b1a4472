"""What a client stores and pays for: the orders of one wallet, a few at a time."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from economics.blob import BlobId
from economics.crypto import OwnerId
from economics.state import BlobEntry
from p2pnode.clients import payments
from p2pnode.clients.calls import Progress, parse_epochs, progress_of
from p2pnode.clients.payments import Deleted, Order
from p2pnode.clients.publish import Published, Publisher
from p2pnode.clients.session import Session
from p2pnode.clients.streaming import Blobs
from p2pnode.clients.till import Till
from p2pnode.content.foldercache import FolderCache
from p2pnode.content.folderstore import FolderProgress, StoredFolder, store_folder
from p2pnode.content.keyring import Keyring
from p2pnode.content.manifest import Manifest, read_manifest
from p2pnode.content.sources import Source
from p2pnode.errors import ConfigError, InputError, Unavailable
from p2pnode.home import Home
from p2pnode.keys import Key
from p2pnode.wallet import read_wallet

STORES_AT_ONCE = 4
"""Each has a stream to every node, which gives a client 16, and buffers for three encoded segments: some 100 MiB. A
folder's has two of either."""


class Depot:
    """What the wallet of one home keeps in its network."""

    def __init__(self, session: Session, keyring: Keyring, owner: Key | OwnerId | None) -> None:
        self._session = session
        self._keyring = keyring
        self._owner = owner
        self._till = Till()
        self._turns = trio.CapacityLimiter(STORES_AT_ONCE)

    @property
    def owner(self) -> OwnerId | None:
        """The account of the wallet; None for a home without one."""
        return OwnerId(self._owner.public) if isinstance(self._owner, Key) else self._owner

    def account(self) -> OwnerId:
        """Return the account; raises `ConfigError` without a wallet."""
        if self.owner is None:
            raise ConfigError("this home has no wallet: make one with `p2pnode wallet new`")
        return self.owner

    def key(self) -> Key:
        """Return what signs for the account; raises `ConfigError` where it is not to be had."""
        self.account()
        if not isinstance(self._owner, Key):
            raise ConfigError("the wallet of this home is sealed: open the client with its passphrase")
        return self._owner

    def order(self, epochs: int, deletable: bool, max_cost_frost: int | None) -> Order:
        epochs = parse_epochs(epochs)
        return Order(epochs=epochs, deletable=bool(deletable), max_cost_frost=max_cost_frost, till=self._till)

    async def publish(self, source: Source, order: Order, *, encrypt: bool, progress: Progress | None) -> Published:
        """Store a source, sealed or not, and keep its key."""
        owner = self.key()
        async with self._turns:
            sealed = await trio.to_thread.run_sync(self._keyring.seal, source) if encrypt else None
            whole: Source = source if sealed is None else sealed
            report = progress_of(progress, whole, self._session.genesis.code.segment_bytes)
            publisher = Publisher(self._session, owner, order, report)
            if sealed is not None:
                publisher = replace(publisher, on_named=partial(self._keyring.remember, key=sealed.key))
            return await publisher.publish(whole)

    async def publish_folder(
        self, directory: Path, order: Order, *, encrypt: bool, progress: Progress | None
    ) -> StoredFolder:
        """Store a folder, moving only what the blobs of its last time do not hold, and keep its key."""

        def report(now: FolderProgress) -> None:
            if progress is not None:
                progress(now.stored, now.length)

        publisher = Publisher(self._session, self.key(), order)
        async with self._turns:
            return await store_again(publisher, directory, self._keyring, encrypt=encrypt, report=report)

    async def claims(self) -> list[tuple[BlobEntry, int | None]]:
        """Return what the wallet keeps, each with the blob's length; None where the chain does not show that yet."""
        chain = self._session.chain
        entries = await chain.entries(self.account())
        found = await payments.find_blobs(chain, list(dict.fromkeys(entry.blob_id for entry in entries)))
        lengths = {blob_id: summary.length for blob_id, summary in found.items()}
        return [(entry, lengths.get(entry.blob_id)) for entry in entries]

    async def extend(self, blob_id: BlobId, end_epoch: int, *, max_cost_frost: int | None) -> BlobEntry:
        """Have a blob of this wallet kept until `end_epoch` at least, and return the claim that lasts longest."""
        owner, chain = self.key(), self._session.chain
        async with self._till.blob(blob_id):
            entry = (await payments.own_entries(chain, OwnerId(owner.public), blob_id))[0]
            if entry.end_epoch >= end_epoch:
                return entry
            await payments.extend(
                chain,
                owner,
                blob_id,
                epochs=parse_epochs(end_epoch - entry.end_epoch),
                max_cost_frost=max_cost_frost,
                on_quote=lambda quoted: None,
            )
            return (await payments.own_entries(chain, OwnerId(owner.public), blob_id))[0]

    async def delete(self, blob_id: BlobId) -> Deleted:
        """End the claims of this wallet that can be ended."""
        owner = self.key()
        async with self._till.blob(blob_id):
            done = await payments.delete(self._session.chain, owner, blob_id)
            self._till.note_deleted(blob_id)
        return done


async def store_again(
    publisher: Publisher,
    directory: Path,
    keyring: Keyring,
    *,
    encrypt: bool,
    report: Callable[[FolderProgress], None],
) -> StoredFolder:
    """Store a folder, moving only what the blobs of its last time do not hold, and keep its key and its ID."""
    cache = FolderCache(keyring.home.folders_path)
    previous = await find_previous(publisher.client, cache, directory)
    sealer = keyring if encrypt else None
    done = await store_folder(publisher, directory, previous=previous, sealer=sealer, report=report)
    if done.key:
        await trio.to_thread.run_sync(keyring.remember, done.blob_id, done.key)
    await trio.to_thread.run_sync(cache.remember, directory, done.blob_id, done.key)
    return done


async def find_previous(session: Session, cache: FolderCache, directory: Path) -> Manifest | None:
    """Return the manifest that a folder was stored as last; None where there is none any more."""
    newest = await trio.to_thread.run_sync(cache.newest, directory)
    if newest is None:
        return None
    blob_id, key = newest
    try:
        return await read_manifest(await Blobs(session).open_plain(blob_id, key or None))
    except (Unavailable, InputError):  # it has expired, or the key is another's: what is owed still moves no bytes
        return None


def load_owner(home: Home, passphrase: str | None) -> Key | OwnerId | None:
    """Return the wallet's key; only its account where it is sealed and there is no passphrase; None without a wallet.

    For worker threads. Raises `ConfigError` for a passphrase that does not open it.
    """
    if not home.owner_key_path.exists():
        return None
    held = read_wallet(home.owner_key_path)
    if isinstance(held, Key):
        return held
    return held.public if passphrase is None else held.open(passphrase, home.owner_key_path)
