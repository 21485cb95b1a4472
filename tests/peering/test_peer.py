"""Peers without any network find and serve each other; with one, its nodes give what peers do not."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
import trio

from dht.discovery import Discovery, DiscoveryError
from economics.blob import BlobId, Header
from economics.genesis import build_key_text
from economics.geometry import Code
from p2pnode.clients.chainview import Seating
from p2pnode.clients.download import Reader
from p2pnode.content.sources import FileSource, compute_header
from p2pnode.content.views import View, read_all
from p2pnode.errors import NetworkError, ProtocolUnsupported, Unavailable
from p2pnode.home import Home
from p2pnode.keys import load_key
from p2pnode.network.frames import Incoming, send_message
from p2pnode.network.stream import Stream
from p2pnode.peering import peer as peers
from p2pnode.peering import providers, pursuit
from p2pnode.peering.blobserver import PROTOCOL, BlobServer
from p2pnode.peering.library import Library
from p2pnode.peering.peer import Growing, Peer, open_peer
from p2pnode.peering.providers import Contact
from tests.p2pnode.server import MemoryNetwork, Server, make_members
from tests.p2pnode.swarming import (
    BLOB,
    BLOB_ID,
    CODE,
    LOOPBACK,
    Shown,
    collect,
    header_then,
    lie,
    open_swarm,
    right,
    serve,
)
from tests.small import OPERATORS, encode_blob, make_codec, make_genesis, make_pairs

SIZE = 300_000


@asynccontextmanager
async def open_one(path: Path, *known: Contact, listen: Sequence[str] = LOOPBACK) -> AsyncIterator[Peer]:
    with trio.fail_after(240):
        async with open_peer(Home(path), listen=listen, peers=known) as peer:
            yield peer


def contact(peer: Peer) -> Contact:
    return peer.network.node_id, peer.network.addresses()


def share(peer: Peer, path: Path, *, seed: int = 1) -> BlobId:
    path.write_bytes(Random(seed).randbytes(SIZE))
    return peer.library.share(FileSource.open(path), peer.codec).blob_id


async def read(peer: Peer, blob_id: BlobId) -> bytes:
    view: View = await peer.swarm.open(blob_id)
    return await read_all(view, size_max=SIZE)


class TestWithoutAnyNetwork:
    async def test_one_reads_what_another_shares_under_the_code_that_all_such_peers_have(self, tmp_path: Path) -> None:
        async with open_one(tmp_path / "a") as server, open_one(tmp_path / "b", contact(server), listen=()) as reader:
            blob_id = share(server, tmp_path / "file")
            assert await read(reader, blob_id) == (tmp_path / "file").read_bytes()
            assert reader.codec.code == Code(10)
            assert (reader.session, reader.swarm.received) == (None, {server.network.node_id: SIZE})

    async def test_a_provider_is_found_by_the_dht_of_a_peer_that_has_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(peers, "ANNOUNCE_S", 0.2)
        async with (
            open_one(tmp_path / "hub") as hub,
            open_one(tmp_path / "a", contact(hub)) as server,
            open_one(tmp_path / "b", contact(hub), listen=()) as reader,
        ):
            blob_id = share(server, tmp_path / "file")
            while server.network.node_id not in await reader.discovery.find_providers(blob_id):  # noqa: ASYNC110
                await trio.sleep(0.2)
            assert await read(reader, blob_id) == (tmp_path / "file").read_bytes()
            assert reader.swarm.received == {server.network.node_id: SIZE}

    async def test_a_reader_that_listens_serves_what_it_has_read_to_others_who_are_told_of_it(
        self, tmp_path: Path
    ) -> None:
        async with (
            open_one(tmp_path / "a") as server,
            open_one(tmp_path / "b", contact(server)) as first,
            open_one(tmp_path / "c", contact(server), listen=()) as second,
        ):
            blob_id = share(server, tmp_path / "file")
            await read(first, blob_id)
            while not server.discovery.held_addresses(first.network.node_id):  # noqa: ASYNC110 - the DHT has no event
                await trio.sleep(0.1)
            told = server.server.tell(blob_id, [first.network.node_id])
            assert told == [f"{build_key_text(first.network.node_id)}@{first.network.addresses()[0]}"]
            server.library.remove(blob_id)
            second.swarm.add_peers([contact(first)])
            assert await read(second, blob_id) == (tmp_path / "file").read_bytes()
            assert second.swarm.received == {first.network.node_id: SIZE}

    async def test_what_another_process_of_the_home_puts_into_the_library_is_served(self, tmp_path: Path) -> None:
        async with open_one(tmp_path / "a") as server, open_one(tmp_path / "b", contact(server), listen=()) as reader:
            (tmp_path / "file").write_bytes(bytes(SIZE))
            source = FileSource.open(tmp_path / "file")
            header = compute_header(source, server.codec)
            with pytest.raises(Unavailable):
                await read(reader, header.blob_id)
            Library(Home(tmp_path / "a").library_path).add(header, source)
        async with (
            open_one(tmp_path / "a") as server,
            open_one(tmp_path / "b", contact(server), listen=()) as reader,
        ):
            assert await read(reader, header.blob_id) == bytes(SIZE)

    async def test_what_found_no_room_in_the_dht_is_announced_once_there_is_some(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Narrow:
            def __init__(self) -> None:
                self.said: set[bytes] = set()
                self.refused = trio.Event()
                self.said_again = trio.Event()

            async def provide(self, blob_id: bytes) -> None:
                await trio.lowlevel.checkpoint()
                if self.said:
                    self.refused.set()
                    raise DiscoveryError("full")
                self.said.add(blob_id)
                if self.refused.is_set():
                    self.said_again.set()

            def withdraw(self, blob_id: bytes) -> None:
                self.said.remove(blob_id)

        monkeypatch.setattr(peers, "ANNOUNCE_S", 0.01)
        blobs = [encode_blob(CODE, bytes([number])) for number in range(2)]
        shown, narrow = Shown(*blobs), Narrow()
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peers.keep_announcing, cast(Discovery, narrow), BlobServer(shown))
                await narrow.refused.wait()
                (first,) = narrow.said
                del shown.blobs[BlobId(first)]
                await narrow.said_again.wait()
                nursery.cancel_scope.cancel()
        assert narrow.said == set(shown.blobs)

    async def test_who_serves_keeps_its_key_and_who_only_reads_has_another_each_time(self, tmp_path: Path) -> None:
        async with open_one(tmp_path / "a") as one:
            assert one.network.node_id == load_key(Home(tmp_path / "a").peer_key_path).public
            async with open_one(tmp_path / "a") as other, open_one(tmp_path / "a", listen=()) as reader:
                assert len({each.network.node_id for each in (one, other, reader)}) == 3
        async with open_one(tmp_path / "a") as again:
            assert again.network.node_id == one.network.node_id

    async def test_an_address_that_is_in_use_is_named_or_gone_round(self, tmp_path: Path) -> None:
        async with open_one(tmp_path / "a") as one:
            (address,) = one.network.addresses()
            with pytest.raises(NetworkError, match="cannot listen"):
                async with open_one(tmp_path / "b", listen=[address]):
                    pass
            async with open_peer(Home(tmp_path / "b"), listen=[address], or_else=LOOPBACK) as other:
                (elsewhere,) = other.network.addresses()
                assert elsewhere != address
                await other.network.connect(one.network.node_id, addresses=[address])
            with pytest.raises(NetworkError, match="cannot listen"):
                async with open_peer(Home(tmp_path / "b"), listen=[address], or_else=[address]):
                    pass

    async def test_a_reader_serves_nobody(self, tmp_path: Path) -> None:
        async with open_one(tmp_path / "a") as server, open_one(tmp_path / "b", contact(server), listen=()) as reader:
            await reader.network.connect(server.network.node_id, addresses=server.network.addresses())
            with pytest.raises(ProtocolUnsupported):
                await server.network.open_stream(reader.network.node_id, PROTOCOL)


class TestMembers:
    """Of a network, who hold slivers of a blob that some peers may have too."""

    GENESIS = make_genesis((1,) * 7, segment_bytes=5_000)
    BLOB = encode_blob(GENESIS.code, Random(5).randbytes(52_000))

    @asynccontextmanager
    async def reader(self, directory: Path, *, holders: int = 7) -> AsyncIterator[Reader]:
        """Yield a reader of seven members, of whom so many hold what is dealt to them."""
        async with trio.open_nursery() as nursery:
            servers = [Server(directory / str(at), genesis=self.GENESIS, key=OPERATORS[at]) for at in range(7)]
            for segment in self.BLOB.segments:
                for at, server in enumerate(servers[:holders]):
                    server.store.put_segment(segment.metadata, segment.z, make_pairs(segment, [at]))
            network: Any = MemoryNetwork(servers, nursery)
            members = make_members(network, self.GENESIS)
            terms = servers[0].chain.ledger.terms
            committee = self.GENESIS.committee

            async def seats() -> Seating:
                await trio.lowlevel.checkpoint()
                return Seating(committee, None, committee.epoch, terms)

            reader = Reader(members=members, seats=seats, codec=make_codec(self.GENESIS), rng=Random(1))
            yield reader
            nursery.cancel_scope.cancel()

    async def test_give_all_where_no_peer_has_it(self, tmp_path: Path) -> None:
        async with self.reader(tmp_path) as reader, serve(1, Shown()) as peer:
            async with open_swarm(peer.contact, reader=reader) as swarm:
                data = bytearray()
                for index in range(len(self.BLOB.header.roots)):
                    data += await swarm.segment(self.BLOB.header, index)
                assert data == self.BLOB.data
                assert swarm.received == {None: len(data)}

    async def test_give_the_segments_that_peers_do_not(self, tmp_path: Path) -> None:
        half = Shown(self.BLOB, only=range(5))
        async with self.reader(tmp_path) as reader, serve(1, half) as peer:
            async with open_swarm(peer.contact, reader=reader) as swarm:
                assert await collect(swarm, self.BLOB) == self.BLOB.data
                assert swarm.received == {peer.network.node_id: 25_000, None: 27_000}

    async def test_step_in_for_a_liar(self, tmp_path: Path) -> None:
        async with self.reader(tmp_path) as reader, serve(1, header_then(lie, self.BLOB)) as liar:
            async with open_swarm(liar.contact, reader=reader) as swarm:
                assert await collect(swarm, self.BLOB) == self.BLOB.data
                assert [fault.word for fault in swarm.faults] == ["caught"]
                assert swarm.received == {None: 52_000}

    async def test_that_are_too_few_are_named_with_the_peers(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(providers, "LACK_S", 0.01)
        async with self.reader(tmp_path, holders=2) as reader, serve(1, Shown()) as peer:
            async with open_swarm(peer.contact, reader=reader) as swarm:
                with pytest.raises(Unavailable, match="2 of 3 slivers"):
                    await swarm.segment(self.BLOB.header, 0)

    async def test_that_failed_are_left_alone_while_a_peer_that_is_slow_serves(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pursuit, "MEMBERS_WAIT_S", 0.05)

        async def slowly(stream: Stream, message: Incoming) -> None:
            await trio.sleep(0.3)
            await send_message(stream, {"ok": True}, right(message, self.BLOB))

        async with self.reader(tmp_path, holders=0) as reader, serve(1, header_then(slowly, self.BLOB)) as peer:
            asked = 0
            inner = reader.segment

            async def count(header: Header, index: int) -> list[memoryview]:
                nonlocal asked
                asked += 1
                return await inner(header, index)

            monkeypatch.setattr(reader, "segment", count)
            async with open_swarm(peer.contact, reader=reader) as swarm:
                assert await collect(swarm, self.BLOB) == self.BLOB.data
            assert 1 <= asked <= 8, "those that began before the first had failed"

    async def test_are_not_asked_about_another_code(self, tmp_path: Path) -> None:
        async with self.reader(tmp_path) as reader, open_swarm(reader=reader) as swarm:
            with pytest.raises(Unavailable, match="nobody is known"):
                await swarm.segment(BLOB.header, 0)


class TestAFileThatGrows:
    async def test_is_served_as_far_as_it_is(self) -> None:
        growing = Growing(BLOB_ID, BLOB.header, lambda start, stop: BLOB.data[start:stop])
        size = BLOB.header.code.segment_bytes
        assert growing.header(BLOB_ID) == BLOB.header
        assert growing.header(BlobId(bytes(32))) is None
        for done, there in ((0, 0), (size - 1, 0), (size, 1), (3 * size + 5, 3), (len(BLOB.data), 13)):
            growing.done = done
            given = [growing.segment(BLOB_ID, index) for index in range(13)]
            assert given == [BLOB.data[at * size : (at + 1) * size] if at < there else None for at in range(13)]

    def test_that_is_cut_or_gone_is_not(self) -> None:
        def gone(start: int, stop: int) -> bytes:
            raise FileNotFoundError

        for read in (gone, lambda start, stop: BLOB.data[start : stop - 1]):
            growing = Growing(BLOB_ID, BLOB.header, read)
            growing.done = len(BLOB.data)
            assert growing.segment(BLOB_ID, 0) is None
