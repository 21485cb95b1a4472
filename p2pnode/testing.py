"""A small network of real nodes inside this process, for tests of programs that use p2pnode.

    from p2pnode.testing import local_testnet

    with local_testnet(nodes=4) as net:
        with net.client() as client:
            stored = client.store(b"as you like it")
            net.kill(3)
            assert client.read(stored.blob_id) == b"as you like it"

Nodes, chain and client are the real ones: libp2p on loopback, files in a temporary directory, a wallet with 1,000 WAL.
They run in one thread of their own, so tests may be synchronous, or open `open_client(net.home)` in a loop of theirs.
pytest has it as the fixture `p2pnode_testnet`, one network for all tests of a session. Nothing is left behind: no
thread, no file, no setting of the process.
"""

import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from economics.genesis import Genesis, Parameters, parse_genesis
from economics.geometry import SEGMENT_BYTES, SHARDS_MAX, SHARDS_MIN
from p2pnode.client import SyncClient, connect
from p2pnode.clients.plain import plainly
from p2pnode.clients.portal import Portal
from p2pnode.consensus.executor import Executor
from p2pnode.errors import InputError, PeerUnreachable
from p2pnode.home import Home
from p2pnode.node import Node, open_node
from p2pnode.testnet import deal_shards, free_addresses, home_of, make_accounts, make_node, parameters_of

READY_S = 240.0
"""Four nodes take two seconds; a loaded machine many times as long."""
TIMEOUT_MS = 1_000
"""A leader that was killed is waited for so long; nodes of one process answer within milliseconds."""


class _Running:
    """One node that runs: how to end it, and when it has ended."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.node: Node | None = None


class Nodes:
    """The nodes of a testnet, in the trio loop that runs them."""

    def __init__(self, directory: Path, genesis: Genesis, nursery: trio.Nursery) -> None:
        self.directory = directory
        self.genesis = genesis
        self.client_home = Home(directory / "client")
        self._nursery = nursery
        self._running: dict[int, _Running] = {}

    @property
    def count(self) -> int:
        return len(self.genesis.members)

    def is_running(self, index: int) -> bool:
        """Return whether a node runs; raises `InputError` for one that there is not."""
        if not isinstance(index, int) or not 0 <= index < self.count:
            raise InputError(f"there is no node {index}: nodes are 0 to {self.count - 1}")
        return index in self._running

    async def start(self, index: int) -> None:
        """Start a node and return when it takes requests; raises `InputError` if it runs."""
        if self.is_running(index):
            raise InputError(f"node {index} is running")
        await self._nursery.start(self._run, index)

    async def _run(self, index: int, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        running = self._running[index] = _Running()
        try:
            with running.scope:
                async with open_node(home_of(self.directory, index)) as (running.node, _):
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            del self._running[index]
            running.ended.set()

    async def kill(self, index: int) -> None:
        """End a node and return when it is gone; what it has on its disk stays. Raises `InputError` if it is down."""
        if not self.is_running(index):
            raise InputError(f"node {index} is not running")
        running = self._running[index]
        if running.node is None:
            raise InputError(f"node {index} is starting: kill it when it runs")
        running.scope.cancel()
        await running.ended.wait()

    async def wait_begun(self) -> None:
        """Wait until the nodes that run have executed the chain's first block."""
        for executor in self._executors():
            while not executor.height:
                await executor.advanced.wait()

    async def wait_epoch(self, number: int) -> None:
        """Wait until the nodes that run are in an epoch, or in a later one."""
        for executor in self._executors():
            await executor.wait_epoch_beyond(number - 1)

    def _executors(self) -> list[Executor]:
        return [running.node.executor for running in self._running.values() if running.node is not None]


@asynccontextmanager
async def open_testnet(
    *, nodes: int, shards: int, epoch_s: int | None, segment_bytes: int, directory: Path
) -> AsyncIterator[Nodes]:
    """Run a testnet in the caller's own trio loop; see `local_testnet`."""
    genesis = await trio.to_thread.run_sync(
        partial(make_homes, directory, nodes=nodes, shards=shards, epoch_s=epoch_s, segment_bytes=segment_bytes)
    )
    with plainly():
        async with trio.open_nursery() as nursery:
            running = Nodes(directory, genesis, nursery)
            with trio.move_on_after(READY_S) as starting:
                async with trio.open_nursery() as together:
                    for index in range(nodes):
                        together.start_soon(running.start, index)
                await running.wait_begun()
            if starting.cancelled_caught:
                raise PeerUnreachable(f"the nodes of the testnet made no block within {READY_S:.0f} s")
            yield running
            nursery.cancel_scope.cancel()


def make_homes(directory: Path, *, nodes: int, shards: int, epoch_s: int | None, segment_bytes: int) -> Genesis:
    """Make the homes of nodes and client, and the genesis that they share; for worker threads.

    Raises `InputError` for numbers that make no network.
    """
    if not SHARDS_MIN <= shards <= SHARDS_MAX or not 1 <= nodes <= shards:
        raise InputError(f"a testnet has {SHARDS_MIN} to {SHARDS_MAX} shards, and at least one for each node")
    if epoch_s is not None and epoch_s < 1:
        raise InputError("an epoch of a testnet has at least a second")
    client = Home(directory / "client")
    members = tuple(
        make_node(home_of(directory, index), address, share, {})
        for index, (address, share) in enumerate(zip(free_addresses(nodes), deal_shards(shards, nodes), strict=True))
    )
    parameters = Parameters(timeout_ms=TIMEOUT_MS) if epoch_s is None else parameters_of(epoch_s)
    genesis = Genesis(
        "testnet", time.time_ns() // 1_000_000, segment_bytes, members, make_accounts(client, members), parameters
    )
    parse_genesis(genesis.to_json())
    for home in (client, *(home_of(directory, index) for index in range(nodes))):
        home.put_genesis(genesis)
    return genesis


class LocalTestnet:
    """A testnet that runs in a thread of this process. Its methods may be called from any other thread."""

    def __init__(self, portal: Portal[Nodes]) -> None:
        self._portal = portal
        self._nodes = portal.value

    @property
    def home(self) -> Path:
        """The home of a client with a wallet of 1,000 WAL that has no passphrase: for `open_client` and `connect`."""
        return self._nodes.client_home.path

    @property
    def nodes(self) -> int:
        """How many nodes there are, running or not."""
        return self._nodes.count

    @property
    def running(self) -> tuple[int, ...]:
        """The nodes that run, by their number from 0."""
        return tuple(index for index in range(self.nodes) if self._nodes.is_running(index))

    @contextmanager
    def client(self) -> Iterator[SyncClient]:
        """Open one more client of the same wallet for the block."""
        with connect(self.home) as client:
            yield client

    def kill(self, index: int) -> None:
        """End a node at once; returns when it is gone. Its disk stays. Raises `InputError` if it does not run.

        Of four nodes one may be down while everything goes on.
        """
        self._portal.call(partial(self._nodes.kill, index))

    def restart(self, index: int) -> None:
        """Start a node that was killed, with what is on its disk; returns when it takes requests."""
        self._portal.call(partial(self._nodes.start, index))

    def wait_epoch(self, number: int) -> None:
        """Return when the nodes that run are in epoch `number` or a later one; the first one is 0."""
        self._portal.call(partial(self._nodes.wait_epoch, number))


@contextmanager
def local_testnet(
    *,
    nodes: int = 4,
    shards: int | None = None,
    epoch_s: int | None = None,
    segment_bytes: int = SEGMENT_BYTES,
    directory: Path | None = None,
) -> Iterator[LocalTestnet]:
    """Run a testnet in a thread of this process while the block lasts.

    `shards` of them all together, one a node if not given; f = (shards - 1) / 3 may fail. An epoch lasts a day unless
    `epoch_s` says how many seconds. Files go to a new temporary directory, which is removed at the end, or to
    `directory`, which is kept. Raises `InputError` for numbers that make no network, `PeerUnreachable` if it does not
    come up.
    """
    place = Path(tempfile.mkdtemp(prefix="p2pnode-")) if directory is None else directory
    try:
        opened = partial(
            open_testnet,
            nodes=nodes,
            shards=max(nodes, SHARDS_MIN) if shards is None else shards,
            epoch_s=epoch_s,
            segment_bytes=segment_bytes,
            directory=place,
        )
        portal = Portal(opened, name="p2pnode testnet")
        portal.open()
        try:
            yield LocalTestnet(portal)
        finally:
            portal.close()
    finally:
        if directory is None:
            shutil.rmtree(place, ignore_errors=True)
