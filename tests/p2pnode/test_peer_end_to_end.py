"""Peers beside a real network: its nodes serve what their homes have, and take over what a peer has served."""

import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pnode.cli import peers as commands
from p2pnode.cli.peers import store_all
from p2pnode.clients.payments import Order
from p2pnode.clients.publish import Published
from p2pnode.content.sharing import Link
from p2pnode.content.sources import BytesSource, FileSource, compute_header
from p2pnode.errors import NetworkError, Unpaid
from p2pnode.home import Home
from p2pnode.keys import load_key
from p2pnode.peering.library import Library
from p2pnode.peering.mirror import Fetcher, share
from p2pnode.peering.peer import Peer, open_peer
from p2pnode.testing import Nodes, open_testnet
from p2pnode.testnet import home_of
from tests.p2pnode.patience import patience as patience
from tests.p2pnode.swarming import LOOPBACK
from tests.peering.conftest import patience_with_peers as patience_with_peers
from tests.peering.test_mirror import FILES, make_folder, read_folder
from tests.small import make_codec

ORDER = Order(epochs=2, deletable=True)


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Nodes]:
    opened = open_testnet(nodes=4, shards=4, epoch_s=None, segment_bytes=1 << 20, directory=tmp_path / "net")
    with trio.fail_after(480):
        async with opened as net:
            yield net


def follow(home: Path, net: Nodes) -> Home:
    """Return a new home of the network, without a wallet."""
    Home(home).put_genesis(net.genesis)
    return Home(home)


async def test_a_folder_that_was_served_is_stored_and_then_had_of_the_nodes_alone(net: Nodes, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", {**FILES, "large": Random(3).randbytes((2 << 20) + 7)})
    owner = load_key(net.client_home.owner_key_path)
    async with open_peer(net.client_home, listen=LOOPBACK) as server:
        shared = await trio.to_thread.run_sync(share, folder, server.library, server.codec, server.keyring)
        await store_all(server, owner, ORDER, list(shared.sources))
    link = Link(shared.blob_id, key=shared.key)
    async with open_peer(follow(tmp_path / "reader", net)) as reader:
        await Fetcher(reader, link).sync(tmp_path / "copy", delete=False, report=lambda done, total: None)
        assert set(reader.swarm.received) == {None}
    assert read_folder(tmp_path / "copy") == read_folder(folder)


async def test_a_node_serves_the_library_of_its_home_and_is_found_there(net: Nodes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(Random(4).randbytes(3 << 20))
    source = FileSource.open(tmp_path / "file")
    header = await trio.to_thread.run_sync(compute_header, source, make_codec(net.genesis))
    library = Library(home_of(net.directory, 2).library_path)
    await trio.to_thread.run_sync(partial(library.add, header, source))
    async with open_peer(follow(tmp_path / "reader", net)) as reader:
        while not await reader.discovery.find_providers(header.blob_id):  # noqa: ASYNC110 - the DHT has no event
            await trio.sleep(0.5)
        got = Fetcher(reader, Link(header.blob_id))
        await got.get(tmp_path / "back", sys.stdout.buffer, lambda done, total: None)
        assert list(reader.swarm.received) == [net.genesis.members[2].node]
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()


class Flaky:
    """A publisher whose network is away at first, and whose owner cannot pay for the second blob."""

    tried: list[str]

    def __init__(self, session: object, owner: object, order: Order) -> None:
        Flaky.tried = []

    async def publish(self, source: BytesSource) -> Published:
        Flaky.tried.append(source.name)
        if source.name == "poor":
            raise Unpaid("it costs too much")
        if len(Flaky.tried) < 4:
            raise ExceptionGroup("members", [NetworkError("3 of 4 nodes do not answer")])
        return Published(make_id(source), 1, 1, 7, 5, 1, None, reservation=None)  # type: ignore[arg-type]


def make_id(source: BytesSource) -> Any:
    return source.data.ljust(32, b"\0")


class NoSession:
    class members:  # noqa: N801
        @staticmethod
        def forgive_all() -> None:
            """Nobody has failed."""


async def test_storing_waits_for_the_network_longer_each_time_and_says_so(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("p2pnode.clients.publish.Publisher", Flaky)
    monkeypatch.setattr(commands, "PAUSE_MAX_S", 4.0)
    peer: Any = type("P", (), {"session": NoSession})
    assert not isinstance(peer, Peer)
    sources = [BytesSource(b"a", "first"), BytesSource(b"b", "poor"), BytesSource(b"c", "last")]
    begun = trio.current_time()
    await store_all(peer, load_key, ORDER, sources)  # type: ignore[arg-type]
    assert trio.current_time() - begun == 2 + 4 + 4
    assert Flaky.tried == ["first"] * 4 + ["poor", "last"]
    said = capsys.readouterr().err
    assert [line.split(":")[0] for line in said.splitlines()] == [
        "not stored yet, tried again in 2 s",
        "not stored yet, tried again in 4 s",
        "not stored yet, tried again in 4 s",
        "stored",
        "poor is served and not stored",
        "stored",
    ]
