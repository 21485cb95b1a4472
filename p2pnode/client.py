"""Store and read blobs from a Python program.

Without trio, from one thread or several:

    from p2pnode.client import connect

    with connect() as client:
        stored = client.store(b"as you like it", epochs=30)
        assert client.read(stored.blob_id) == b"as you like it"

With trio, from one task or several:

    from p2pnode.client import open_client

    async with open_client() as client:
        stored = await client.store(b"as you like it", epochs=30)
        assert await client.read(stored.blob_id) == b"as you like it"

Both have the same methods, and take the home to use: a path, or the command line's own where it is left out. A home is
a directory with a network's `genesis.json` and, to store, a wallet. A client stays open for as long as the program
likes, while nodes come and go and epochs pass. Amounts are in FROST, 10^9 to a WAL. A blob ID is a text of 43
characters, or its 32 bytes.

Whatever the world does to a call, it raises one exception of `p2pnode.errors`, all of them `NodeError`. `str()` of it
is one line for the user, and `.retry` says whether the same call may succeed later. Repeating a call is always safe:
what was sent is not sent again, what was paid is not paid again.

| error | what it means | `.retry` |
|---|---|---|
| `NetworkError` | too few nodes answered, or in time | True |
| `Unavailable` | nodes answered, and have not enough of the blob: a wrong ID, or too many are down | True |
| `SpaceError` | a disk or a budget is full, here or at the nodes | True |
| `TransactionFailed` | the chain refused it; `.code` says why | where another one came in between |
| `InputError` | an argument cannot be used: no such file, no ID, a range outside | False |
| `Unpaid` | the wallet has less than it costs, or `max_cost` is less; nothing was paid | False |
| `ConfigError` | the home lacks a file, or the passphrase does not open its wallet | False |
| `InconsistentBlob` | its writer encoded the blob so that nobody can have it, which is proven | False |
| `Closed` | the client was closed | False |

Reads go on side by side, and so do stores, four at a time: a wallet's transactions follow one another.
"""

import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import trio

from economics.blob import BlobId, build_blob_id_text
from economics.crypto import OwnerId
from p2pnode.clients import payments
from p2pnode.clients.calls import (
    READ_BYTES_MAX,
    Content,
    Deleted,
    Entry,
    Folder,
    Info,
    Progress,
    Stored,
    Target,
    folder_of,
    parse_blob,
    parse_cost,
    parse_count,
    parse_path,
    quilt_of,
    source_of,
)
from p2pnode.clients.depot import Depot, load_owner
from p2pnode.clients.payments import EPOCHS, Order
from p2pnode.clients.plain import plainly
from p2pnode.clients.portal import InPortal, Pieces, Portal, blocking
from p2pnode.clients.session import Session, open_session
from p2pnode.clients.shelf import Shelf
from p2pnode.clients.streaming import Blobs, Feed, parse_range, write_to
from p2pnode.content.contents import Listed
from p2pnode.content.keyring import Keyring
from p2pnode.content.placing import Restored
from p2pnode.content.restore import restore
from p2pnode.content.resume import output_file
from p2pnode.content.views import read_all
from p2pnode.errors import Closed, ConfigError, InputError
from p2pnode.home import Home, default_home
from p2pnode.members import Fault

log = logging.getLogger("p2pnode.client")

FORGIVE_S = 30.0
"""A node that failed is asked last; after so long, between two calls, it is given another chance."""


class Client:
    """A client for trio; get one from `open_client`. For any number of tasks at once."""

    def __init__(self, session: Session, depot: Depot, shelf: Shelf, nursery: trio.Nursery) -> None:
        self.session = session
        """What the calls are made of, for programs that need more than this class has."""
        self._depot = depot
        self._shelf = shelf
        self._nursery = nursery
        self._calls = 0
        self._forgiven_at = trio.current_time()
        self._is_open = True

    # --- storing -------------------------------------------------------------------------------------------------

    async def store(
        self,
        what: Content,
        *,
        epochs: int = EPOCHS,
        deletable: bool = True,
        max_cost: int | str | None = None,
        encrypt: bool = False,
        progress: Progress | None = None,
    ) -> Stored:
        """Store bytes, or the file of a path (a `str` is a path), and return when the network owes the blob.

        It is kept for `epochs` (1 to 53), the current one counted; unless `deletable` is False, `delete` ends it
        before. Nothing is paid if it may cost more than `max_cost`, in FROST or as a text in WAL such as "0.5". With
        `encrypt` the nodes get no more than a sealed blob, and only this home has its key. `progress` hears (bytes
        that a quorum of nodes holds, all bytes). A blob that the network owes already moves no bytes and costs what its
        keeping costs; one that this wallet has paid for long enough costs nothing.

        Raises `InputError`, `ConfigError` without a wallet, `Unpaid`, `TransactionFailed`, `SpaceError`,
        `NetworkError`.
        """
        with self._calling():
            order = self._order(epochs, deletable, max_cost)
            source = await trio.to_thread.run_sync(source_of, what)
            return Stored.of(await self._depot.publish(source, order, encrypt=encrypt, progress=progress))

    async def store_many(
        self,
        files: Mapping[str, Content],
        *,
        epochs: int = EPOCHS,
        deletable: bool = True,
        max_cost: int | str | None = None,
        encrypt: bool = False,
        progress: Progress | None = None,
    ) -> Stored:
        """Store many small files in one blob, a quilt, for a fraction of what as many blobs cost.

        `files` has bytes or a path for each name, at most 65,535 of them; `read(blob_id, name)` reads one alone. The
        other arguments and the errors are those of `store`.
        """
        with self._calling():
            order = self._order(epochs, deletable, max_cost)
            quilt = await trio.to_thread.run_sync(quilt_of, files)
            return Stored.of(await self._depot.publish(quilt, order, encrypt=encrypt, progress=progress))

    async def store_folder(
        self,
        path: str | Path,
        *,
        epochs: int = EPOCHS,
        deletable: bool = True,
        max_cost: int | str | None = None,
        encrypt: bool = False,
        progress: Progress | None = None,
    ) -> Folder:
        """Store a folder with all that is below it; after a change, what is new alone moves.

        `read(blob_id, path)` reads a file of it, `read_folder` all of them. Links, devices and names that are not UTF-8
        are skipped, and named in what is returned. The other arguments and the errors are those of `store`.
        """
        with self._calling():
            order = self._order(epochs, deletable, max_cost)
            directory = await trio.to_thread.run_sync(folder_of, path)
            return Folder.of(await self._depot.publish_folder(directory, order, encrypt=encrypt, progress=progress))

    def _order(self, epochs: int, deletable: bool, max_cost: int | str | None) -> Order:
        self._depot.key()
        return self._depot.order(epochs, deletable, parse_cost(max_cost))

    async def extend(self, blob_id: str | BlobId, end_epoch: int, *, max_cost: int | str | None = None) -> Entry:
        """Have a blob that this wallet keeps kept until `end_epoch` begins, at least, and return the claim as it is
        then.

        Nothing is paid where it lasts as long already. Raises `InputError` where this wallet keeps no such blob,
        `ConfigError` without a wallet, `Unpaid`, `TransactionFailed`, `NetworkError`.
        """
        with self._calling():
            self._depot.key()
            parsed, limit = parse_blob(blob_id), parse_cost(max_cost)
            end = parse_count(end_epoch, "end_epoch", low=0, high=1 << 62)
            entry = await self._depot.extend(parsed, end, max_cost_frost=limit)
            summary = await self.session.chain.blob(parsed)
            return Entry.of(entry, length=None if summary is None else summary.length)

    async def delete(self, blob_id: str | BlobId) -> Deleted:
        """End this wallet's claims on a blob; others' stay. What was paid and is left pays for the next blob.

        Raises `InputError` where this wallet keeps no such blob, or only one that cannot be deleted; `ConfigError`
        without a wallet, `TransactionFailed`, `NetworkError`.
        """
        with self._calling():
            done = await self._depot.delete(parse_blob(blob_id))
            return Deleted(build_blob_id_text(parse_blob(blob_id)), len(done.entries), len(done.permanent))

    # --- reading -------------------------------------------------------------------------------------------------

    async def read(self, blob_id: str | BlobId, path: str | None = None, *, size_max: int = READ_BYTES_MAX) -> bytes:
        """Return the bytes of a blob, or of the file `path` in a quilt or folder, every one checked against the ID.

        A sealed blob is opened where this home has its key, and is given as it is stored where not: `info` tells.
        Raises `InputError` for more than `size_max` bytes, or no such file; `Unavailable`, `NetworkError`,
        `InconsistentBlob`.
        """
        return await self.read_range(blob_id, 0, None, path, size_max=size_max)

    async def read_range(
        self,
        blob_id: str | BlobId,
        start: int,
        stop: int | None,
        path: str | None = None,
        *,
        size_max: int = READ_BYTES_MAX,
    ) -> bytes:
        """Return bytes [start, stop), to the end where `stop` is None; it costs what these bytes do, not the whole.

        Raises what `read` does, and `InputError` for a range that is not all within the bytes there are.
        """
        with self._calling():
            view = await self._shelf.open(parse_blob(blob_id), path)
            first, last = parse_range(start, stop, view)
            return await read_all(view, start=first, stop=last, size_max=size_max)

    async def read_to(self, blob_id: str | BlobId, target: Target, path: str | None = None) -> int:
        """Write the bytes of a blob, or of a file in it, to a path or an open file, and return how many.

        At a path a file appears when it is whole, in place of the one before; for a whole blob the same call goes on
        where an interrupted one stopped. Raises what `read` does, `InputError` where the target cannot be written,
        `SpaceError`.
        """
        with self._calling():
            if not isinstance(target, str | Path):
                return await write_to(await self._shelf.open(parse_blob(blob_id), path), target)
            place = parse_path(target, "target")
            if path is None:
                return await self._shelf.save(parse_blob(blob_id), place)
            view = await self._shelf.open(parse_blob(blob_id), path)
            async with output_file(place) as sink:
                return await write_to(view, sink)

    async def read_folder(
        self, blob_id: str | BlobId, target: str | Path, *, delete: bool = False, progress: Progress | None = None
    ) -> Restored:
        """Make the folder at `target` what was stored; only files that differ are fetched, and the same call goes on.

        With `delete` whatever else is in it goes. Nothing outside of it is written. Raises what `read` does,
        `InputError` where something is in the way, `SpaceError`.
        """
        with self._calling():
            directory = parse_path(target, "target")
            manifest = await self._shelf.manifest(parse_blob(blob_id))
            report = progress or (lambda done, total: None)
            return await restore(manifest, directory, Blobs(self.session).open_plain, delete=delete, report=report)

    @asynccontextmanager
    async def stream(
        self, blob_id: str | BlobId, path: str | None = None, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Yield an iterator of pieces of at most a few MiB, in bounded memory, for as long as the block lasts.

        Leaving the block ends the reading. It and the iterator raise what `read_range` does.
        """
        with self._calling():
            view = await self._shelf.open(parse_blob(blob_id), path)
            first, last = parse_range(start, stop, view)
            feed = Feed(view, start=first, stop=last)
            self._nursery.start_soon(feed.run)
        try:
            yield feed
        finally:
            await feed.close()

    # --- looking -------------------------------------------------------------------------------------------------

    async def info(self, blob_id: str | BlobId) -> Info:
        """Return what the chain, proven, and the nodes say of a blob; one that nobody knows is not live.

        Raises `InputError` for what is no ID, `NetworkError`.
        """
        with self._calling():
            parsed, chain = parse_blob(blob_id), self.session.chain
            claims = [] if self.owner is None else await chain.entries(self.owner)
            summary = await payments.find_blob(chain, parsed)
            head = await chain.head()
            length, is_encrypted, kind = await self._shelf.look(parsed)
            if summary is not None:
                length = summary.length
            return Info(
                blob_id=build_blob_id_text(parsed),
                is_live=summary is not None,
                length=length,
                epoch=head.epoch,
                end_epoch=None if summary is None else summary.end_epoch,
                entries=() if summary is None else summary.entries,
                own=tuple(Entry.of(claim, length=length) for claim in claims if claim.blob_id == parsed),
                is_encrypted=is_encrypted,
                kind=None if kind is None else str(kind),
            )

    async def files(self, blob_id: str | BlobId) -> tuple[Listed, ...]:
        """Return the files in a quilt or folder, ascending by name. Raises what `read` does."""
        with self._calling():
            return (await self._shelf.describe(parse_blob(blob_id))).listing()

    async def list(self) -> tuple[Entry, ...]:
        """Return what the network keeps for this wallet, proven, what ends first first.

        Raises `ConfigError` without a wallet, `NetworkError`.
        """
        with self._calling():
            claims = await self._depot.claims()
            claims.sort(key=lambda claim: (claim[0].end_epoch, claim[0].blob_id))
            return tuple(Entry.of(claim, length=length) for claim, length in claims)

    async def balance(self) -> int:
        """Return the FROST in this wallet, proven. Raises `ConfigError` without a wallet, `NetworkError`."""
        with self._calling():
            return (await self.session.chain.settled_account(self._depot.account())).balance_frost

    @property
    def owner(self) -> OwnerId | None:
        """The account of the wallet; None for a client without one."""
        return self._depot.owner

    def close(self) -> None:
        """Have every later call raise `Closed`; what goes on ends with the block of `open_client`."""
        self._is_open = False

    # --- how a call runs -----------------------------------------------------------------------------------------

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Let a call begin, and have it raise one exception."""
        if not self._is_open:
            raise Closed("the client is closed")
        self._forgive()
        self._calls += 1
        try:
            with plainly():
                yield
        finally:
            self._calls -= 1

    def _forgive(self) -> None:
        """Give every node another chance, now and then, while nobody counts on what is known of them."""
        if not self._calls and trio.current_time() - self._forgiven_at > FORGIVE_S:
            self._forgiven_at = trio.current_time()
            self.session.forgive()


@asynccontextmanager
async def open_client(home: Path | Home | str | None = None, *, passphrase: str | None = None) -> AsyncIterator[Client]:
    """Join the network of a home as a client while the block lasts; without one, of the command line's own home.

    `passphrase` opens a sealed wallet; without it, or without a wallet, the client only reads. The network is asked
    when the first call needs it. Raises `ConfigError` for a home without a network, or a passphrase that does not open
    the wallet; what the block raises leaves it as it is.
    """
    place = home if isinstance(home, Home) else Home(default_home() if home is None else parse_path(home, "home"))
    if not isinstance(passphrase, str | None):
        raise InputError("a passphrase is a text")
    place.load_genesis()
    owner = await trio.to_thread.run_sync(load_owner, place, passphrase)
    raised: BaseException | None = None
    try:
        with plainly():
            async with open_session(place, on_fault=note) as session, trio.open_nursery() as nursery:
                session.has_workers = False
                keyring = Keyring(place)
                client = Client(session, Depot(session, keyring, owner), Shelf(session, keyring), nursery)
                try:
                    yield client
                except (trio.Cancelled, GeneratorExit):
                    raise
                except BaseException as fault:
                    raised = fault
                finally:
                    client.close()
                nursery.cancel_scope.cancel()
    except OSError as fault:
        raise ConfigError(f"cannot use the files in {place.path}: {fault.strerror}") from fault
    if raised is not None:
        raise raised


def note(fault: Fault) -> None:
    log.info("%s: %s", fault.word, fault)


# --- without trio ----------------------------------------------------------------------------------------------------


class SyncClient(InPortal[Client]):
    """A client for programs without trio; get one from `connect`. For any number of threads at once.

    The methods are those of `Client`. Ctrl-C stops the call that waits, cleanly, and the client can still be used.
    """

    store = blocking(Client.store)
    store_many = blocking(Client.store_many)
    store_folder = blocking(Client.store_folder)
    extend = blocking(Client.extend)
    delete = blocking(Client.delete)
    read = blocking(Client.read)
    read_range = blocking(Client.read_range)
    read_to = blocking(Client.read_to)
    read_folder = blocking(Client.read_folder)
    info = blocking(Client.info)
    files = blocking(Client.files)
    list = blocking(Client.list)
    balance = blocking(Client.balance)

    def stream(
        self, blob_id: str | BlobId, path: str | None = None, *, start: int = 0, stop: int | None = None
    ) -> "Pieces":
        """Return an iterator of pieces of at most a few MiB, in bounded memory.

        Its end, its `close`, or the end of a `with` block around it ends the reading. This call and the iterator raise
        what `read_range` does.
        """
        return Pieces(self._portal, self._portal.value.stream(blob_id, path, start=start, stop=stop))

    @property
    def owner(self) -> OwnerId | None:
        """The account of the wallet; None for a client without one."""
        return self._portal.value.owner

    def close(self) -> None:
        """End every call that goes on in other threads, which raise `Closed`, and leave the network: within seconds."""
        self._portal.close()

    def __enter__(self) -> "SyncClient":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def connect(home: Path | Home | str | None = None, *, passphrase: str | None = None) -> SyncClient:
    """Join the network of a home as a client, until the end of a `with` block or `close`.

    The arguments and errors are those of `open_client`. The client's loop runs in a thread of its own.
    """
    portal = Portal(partial(open_client, home, passphrase=passphrase), name="p2pnode client")
    portal.open()
    return SyncClient(portal)
