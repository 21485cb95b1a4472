"""Real nodes and stock libp2p hosts on 127.0.0.1, with keys from small numbers."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from economics.crypto import NodeId
from p2pnode.network.fence import shielded
from p2pnode.network.host import Limits, Network, node_id_of, open_network, peer_id_of
from p2pnode.network.stream import Stream

LOCAL = "/ip4/127.0.0.1/tcp/0"
ECHO = "/test/echo/1"
SINK = "/test/sink/1"
HOLD = "/test/hold/1"


def seed(number: int) -> bytes:
    return bytes([number]) * 32


def node_id(number: int) -> NodeId:
    return NodeId(create_new_key_pair(seed(number)).public_key.to_bytes())


@asynccontextmanager
async def nodes(count: int, limits: Limits | None = None, first: int = 1) -> AsyncIterator[list[Network]]:
    """Run `count` nodes with the seeds `first`, `first` + 1, …"""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(open_network(seed=seed(first + index), listen=[LOCAL], limits=limits))
            for index in range(count)
        ]


@asynccontextmanager
async def pair(limits: Limits | None = None) -> AsyncIterator[tuple[Network, Network]]:
    """Run two nodes; the second is connected to the first."""
    async with nodes(2, limits) as (server, client):
        await client.connect(server.node_id, addresses=server.addresses())
        yield server, client


@asynccontextmanager
async def stock_host(number: int, **options: Any) -> AsyncIterator[Any]:
    """Run a libp2p host as the library makes it."""
    host = new_host(key_pair=create_new_key_pair(seed(number)), **options)
    async with host.run(listen_addrs=[Multiaddr(LOCAL)]):
        try:
            yield host
        finally:
            with shielded(3):
                await host.close()


async def stock_connect(host: Any, network: Network) -> None:
    addresses = [Multiaddr(address) for address in network.addresses()]
    await host.connect(PeerInfo(peer_id_of(network.node_id), addresses))


def stock_id(host: Any) -> NodeId:
    found = node_id_of(host.get_id())
    assert found is not None
    return found


def stock_addresses(host: Any) -> tuple[str, ...]:
    return tuple(str(address) for address in host.get_transport_addrs())


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some(256 * 1024):
        await stream.send(data)
    await stream.close_write()


def hold_until(event: trio.Event) -> Callable[[Stream], Awaitable[None]]:
    """Return a handler that neither reads nor writes before `event`."""

    async def hold(stream: Stream) -> None:
        await event.wait()

    return hold


async def assert_echoes(client: Network, server: NodeId) -> None:
    """A fresh stream to `server`'s echo works: node and connection are alive."""
    async with await client.open_stream(server, ECHO) as stream:
        await stream.send(b"are you there?")
        assert await stream.receive_exactly(14) == b"are you there?"


PATIENT_S = 60.0
"""For what takes milliseconds, on a machine that has much else to do."""


async def until(condition: Callable[[], bool], within_s: float = PATIENT_S) -> None:
    """Wait for what has no event: the library's tables change in tasks of its own."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


class PeerProcess:
    """A node in a process of its own, which a test may stop or kill."""

    def __init__(self, number: int) -> None:
        command = [sys.executable, "-m", "tests.network.peer", str(number)]
        self.node_id = node_id(number)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    async def address(self) -> str:
        assert self._process.stdout is not None
        return (await trio.to_thread.run_sync(self._process.stdout.readline)).strip()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def peer_process() -> Iterator[PeerProcess]:
    process = PeerProcess(77)
    yield process
    process.end()
