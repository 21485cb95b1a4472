"""One peer of others: it serves what its home's library has, finds and fetches what they have. Needs no chain.

With a genesis file in the home it is a client of that network too, and reads slivers where no peer gives a segment;
without one it uses n = 10 and a DHT under a chain ID of zeros (FORMATS.md 22).
"""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from dht.discovery import Discovery, DiscoveryError, open_discovery
from economics.blob import BlobId, Header
from economics.crypto import NodeId
from economics.geometry import Code
from p2pnode.coding.codec import Codec
from p2pnode.coding.kernel import load_kernel
from p2pnode.content.keyring import Keyring
from p2pnode.dialling import bootstrap_of, clock_ms, dialable, dialler
from p2pnode.errors import ConfigError, NetworkError
from p2pnode.files import lock_directory, make_directory
from p2pnode.home import Home
from p2pnode.keys import Key, load_or_create_key
from p2pnode.members import Fault
from p2pnode.network.host import Network, open_network, sole_exception
from p2pnode.peering.blobserver import PROTOCOL, STREAMS_PER_PEER, BlobServer, Holdings, Tell
from p2pnode.peering.library import Library
from p2pnode.peering.providers import Contact, build_contact
from p2pnode.peering.swarm import Swarm

if TYPE_CHECKING:
    from p2pnode.clients.session import Session

log = logging.getLogger("p2pnode.peering.peer")

NO_CHAIN = bytes(32)
SHARDS_WITHOUT_CHAIN = 10
USUAL = ("/ip4/0.0.0.0/tcp/4002",)
"""Where a peer listens unless told otherwise; a node's port is 4001."""
ANY = ("/ip4/0.0.0.0/tcp/0",)
"""Where it does if the usual port is taken; links then name the other one."""
SWITCH_S = 0.0005
"""How long a thread that checks or reads may keep the interpreter while the trio thread wants it, as in a node: at
Python's 5 ms every frame that comes meanwhile takes that long."""
ANNOUNCE_S = 3.0
"""How often it is looked whether there is something new to announce."""
LOOK_THROUGH_S = 600.0
"""How often the files of a library are looked at, so that nobody is sent here for a blob that has changed."""


@dataclass
class Peer:
    """A peer that is up."""

    home: Home
    network: Network
    discovery: Discovery
    codec: Codec
    keyring: Keyring
    library: Library
    server: BlobServer
    swarm: Swarm
    session: "Session | None"
    """None where the home has no genesis file."""
    announced: Sequence[str] = ()
    """Where others are told to dial, in place of what is listened on."""

    @property
    def is_listening(self) -> bool:
        return bool(self.network.addresses())

    def contacts(self) -> list[tuple[NodeId, str]]:
        """Return who this is and where others can dial, for links."""
        return [(self.network.node_id, address) for address in self.announced or dialable(self.network.addresses())]

    @contextlib.contextmanager
    def serving(self, holdings: Holdings) -> Iterator[None]:
        """Serve something more for as long as the block runs, such as a file that is being fetched."""
        self.server.holdings.append(holdings)
        try:
            yield
        finally:
            self.server.holdings.remove(holdings)


class Growing:
    """A file that is being fetched, as far as its segments are there. A `Holdings`."""

    def __init__(self, blob_id: BlobId, header: Header, read: Callable[[int, int], bytes]) -> None:
        """Take how to read bytes [start, stop) of it, which may raise `OSError`."""
        self._blob_id = blob_id
        self._header = header
        self._read = read
        self.done = 0
        """Bytes that are there."""

    def header(self, blob_id: BlobId) -> Header | None:
        return self._header if blob_id == self._blob_id else None

    def segment(self, blob_id: BlobId, index: int) -> bytes | None:
        start = index * self._header.code.segment_bytes
        stop = start + self._header.code.segment_length(self._header.length, index)
        if blob_id != self._blob_id or stop > self.done:
            return None
        try:
            data = self._read(start, stop)
        except OSError:
            return None
        return data if len(data) == stop - start else None

    def blob_ids(self) -> Sequence[BlobId]:
        """Return it, though it is not whole: those that look for it are to find it while it grows."""
        return (self._blob_id,)


@asynccontextmanager
async def open_listening(seed: bytes, listen: Sequence[str], or_else: Sequence[str]) -> AsyncIterator[Network]:
    """Open a network that listens where it is told to, or else, where that cannot be, elsewhere if there is such a
    place. It is tried, not asked before: the port that was free just now another process may have taken."""
    async with AsyncExitStack() as stack:
        try:
            network = await stack.enter_async_context(open_network(seed=seed, listen=listen))
        except NetworkError:
            if not or_else:
                raise
            network = await stack.enter_async_context(open_network(seed=seed, listen=or_else))
        yield network


@contextlib.contextmanager
def identity(home: Home, *, is_listening: bool) -> Iterator[Key]:
    """Yield the key to be known by: the home's own for one that serves, as links name it; another for everybody else.

    Two processes with one key would take each other's connections.
    """
    with contextlib.ExitStack() as stack:
        key = None
        if is_listening:
            make_directory(home.library_path)
            with contextlib.suppress(ConfigError):
                stack.enter_context(lock_directory(home.library_path))
                key = load_or_create_key(home.peer_key_path)
        yield key or Key.generate()


def telling(discovery: Discovery, swarm: Swarm | None) -> Tell:
    """Return how to tell a reader of others: those that gave something of the blob, then those that asked for it."""

    def tell(blob_id: BlobId, asked: Sequence[NodeId]) -> Sequence[str]:
        sources = [] if swarm is None else swarm.sources_of(blob_id)
        askers = [build_contact(node, address) for node in asked for address in discovery.held_addresses(node)[:1]]
        return list(dict.fromkeys([*sources, *askers]))

    return tell


async def keep_announcing(discovery: Discovery, server: BlobServer) -> None:
    """Tell the DHT what is served here, as it comes and goes."""
    announced: set[BlobId] = set()
    is_full = False

    def list_all() -> set[BlobId]:
        return {blob_id for holdings in list(server.holdings) for blob_id in holdings.blob_ids()}

    while True:
        present = await trio.to_thread.run_sync(list_all)
        for blob_id in announced - present:
            discovery.withdraw(blob_id)
        announced &= present
        try:
            for blob_id in present - announced:
                await discovery.provide(blob_id)
                announced.add(blob_id)
            is_full = False
        except DiscoveryError as fault:
            if not is_full:
                log.warning("not all blobs are announced: %s", fault)
            is_full = True
        await trio.sleep(ANNOUNCE_S)


async def look_through(library: Library) -> None:
    """Drop what has changed, now and every ten minutes."""
    while True:
        await trio.to_thread.run_sync(library.drop_changed)
        await trio.sleep(LOOK_THROUGH_S)


def begin_serving(
    network: Network, discovery: Discovery, server: BlobServer, library: Library, nursery: trio.Nursery
) -> None:
    """Serve peers, and tell the DHT of what there is, for as long as the nursery runs."""
    network.serve(PROTOCOL, server.handle, streams_per_peer=STREAMS_PER_PEER)
    nursery.start_soon(look_through, library)
    nursery.start_soon(keep_announcing, discovery, server)


@asynccontextmanager
async def open_peer(
    home: Home,
    *,
    listen: Sequence[str] = (),
    or_else: Sequence[str] = (),
    announce: Sequence[str] = (),
    peers: Sequence[Contact] = (),
    on_fault: Callable[[Fault], None] = lambda fault: None,
) -> AsyncIterator[Peer]:
    """Be a peer while the block lasts: one that serves where it listens, else one that only fetches.

    Raises `ConfigError`, and `NetworkError` for an address that cannot be listened on, unless it can at `or_else`.
    """
    genesis = home.load_genesis() if home.genesis_path.exists() else None
    kernel = await trio.to_thread.run_sync(load_kernel)
    keyring = Keyring(home)
    with identity(home, is_listening=bool(listen)) as key:
        async with (
            open_listening(key.seed, listen, or_else) as network,
            open_discovery(
                host=network.host,
                connect=dialler(network),
                chain_id=NO_CHAIN if genesis is None else genesis.chain_id,
                sign=key.sign,
                node_id=NodeId(key.public),
                addresses=lambda: announce or dialable(network.addresses()),
                server=bool(listen),
                bootstrap=[
                    *((node, addresses) for node, addresses in peers if addresses),
                    *bootstrap_of(home.load_config_or_default(), () if genesis is None else genesis.members),
                ],
                cache_path=home.make_cache(),
                clock_ms=clock_ms,
            ) as discovery,
        ):
            session = None
            if genesis is not None:
                from p2pnode.clients.session import build_session  # the half of a start, of no use without a chain

                session = await build_session(home, key, network, discovery, on_fault=on_fault)
            reader = None if session is None else session.reader
            swarm = Swarm(network, discovery, kernel, reader=reader, peers=peers, on_fault=on_fault)
            try:
                async with trio.open_nursery() as nursery:
                    library = Library(home.library_path, key_of=keyring.key_of)
                    server = BlobServer(swarm.recent, library, tell=telling(discovery, swarm))
                    if listen:
                        begin_serving(network, discovery, server, library, nursery)
                    codec = session.codec if session is not None else Codec(Code(SHARDS_WITHOUT_CHAIN), kernel)
                    yield Peer(
                        home, network, discovery, codec, keyring, library, server, swarm, session, tuple(announce)
                    )
                    nursery.cancel_scope.cancel()
            except BaseExceptionGroup as group:
                raise sole_exception(group) from None
            finally:
                with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
                    await swarm.close()
