"""Files and folders move from peer to peer, sealed or not, go on after a kill, and are served on."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from blake3 import blake3

from economics.blob import BlobId
from p2pnode.content.contents import NoKey
from p2pnode.content.manifest import FolderBlob, FolderFile, Manifest
from p2pnode.content.placing import Restored
from p2pnode.content.resume import build_part_path
from p2pnode.content.sharing import Link
from p2pnode.content.sources import BytesSource, FileSource
from p2pnode.errors import InputError, NodeError
from p2pnode.home import Home
from p2pnode.peering import providers
from p2pnode.peering.blobserver import BlobServer
from p2pnode.peering.library import Library
from p2pnode.peering.mirror import Fetcher, Got, Shared, recall_mirror, remember_mirror, share
from p2pnode.peering.peer import Peer, open_peer
from p2pnode.peering.providers import Contact
from tests.p2pnode.swarming import LOOPBACK

SEGMENT = 8 << 20
FILES = {"a": b"first", "empty": b"", "in/one/b": bytes(3_000), "in/c": Random(1).randbytes(70_000)}


def make_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def read_folder(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


class Pair:
    """A peer that shares, and how to be another one."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.directory = directory
        self._nursery = nursery
        self.server: Peer

    async def share(self, path: Path, *, sealed: bool = False) -> Shared:
        keyring = self.server.keyring if sealed else None
        return await trio.to_thread.run_sync(share, path, self.server.library, self.server.codec, keyring)

    async def reader(self, name: str = "reader", *, of: Peer | None = None, listens: bool = False) -> Peer:
        known = self.server if of is None else of
        return await self.open(name, (known.network.node_id, known.network.addresses()), listens=listens)

    async def open(self, name: str, *known: Contact, listens: bool) -> Peer:
        async def hold(task_status: Any) -> None:
            listen = LOOPBACK if listens else ()
            async with open_peer(Home(self.directory / name), listen=listen, peers=known) as peer:
                task_status.started(peer)
                await trio.sleep_forever()

        peer = await self._nursery.start(hold)
        assert isinstance(peer, Peer)
        return peer


@pytest.fixture
async def pair(tmp_path: Path, nursery: trio.Nursery) -> Pair:
    made = Pair(tmp_path, nursery)
    made.server = await made.open("server", listens=True)
    return made


async def get(peer: Peer, link: Link, output: Path) -> Got:
    with trio.fail_after(240):
        return await Fetcher(peer, link).get(output, sys.stdout.buffer, lambda done, total: None)


async def sync(peer: Peer, link: Link, target: Path, *, delete: bool = False) -> Restored:
    with trio.fail_after(240):
        return await Fetcher(peer, link).sync(target, delete=delete, report=lambda done, total: None)


def whole(library: Library, blob_id: BlobId) -> bool:
    """Return whether a library has every segment of a blob."""
    header = library.header(blob_id)
    if header is None:
        return False
    return all(library.segment(blob_id, index) is not None for index in range(len(header.roots)))


@pytest.mark.parametrize("sealed", [False, True])
class TestAFile:
    async def test_comes_whole_and_is_served_on(self, pair: Pair, tmp_path: Path, sealed: bool) -> None:
        file = tmp_path / "file"
        file.write_bytes(Random(1).randbytes(SEGMENT + 12_345))
        shared = await pair.share(file, sealed=sealed)
        reader = await pair.reader(listens=True)
        link = Link(shared.blob_id, key=shared.key)
        assert await get(reader, link, tmp_path / "back") == Got(SEGMENT + 12_345)
        assert (tmp_path / "back").read_bytes() == file.read_bytes()
        pair.server.library.remove(shared.blob_id)
        third = await pair.reader("third", of=reader)
        assert await get(third, link, tmp_path / "again") == Got(SEGMENT + 12_345)
        assert (tmp_path / "again").read_bytes() == file.read_bytes()
        assert whole(third.library, shared.blob_id)

    async def test_goes_on_with_what_an_earlier_call_left(self, pair: Pair, tmp_path: Path, sealed: bool) -> None:
        data = Random(1).randbytes(2 * SEGMENT + 5)
        (tmp_path / "file").write_bytes(data)
        shared = await pair.share(tmp_path / "file", sealed=sealed)
        part = build_part_path(tmp_path / "back", shared.blob_id)
        part.write_bytes(data[: SEGMENT + 1_000_000])
        reader = await pair.reader()
        got = await get(reader, Link(shared.blob_id, key=shared.key), tmp_path / "back")
        assert SEGMENT - 65_536 <= got.kept_bytes <= SEGMENT, "a frame that was cut comes again"
        assert (tmp_path / "back").read_bytes() == data
        sent = pair.server.server.sent_bytes
        assert sent <= 2 * SEGMENT + 1_000 + SEGMENT, "the front, and what was lacking"


async def test_a_sealed_file_without_its_key_is_fetched_as_it_is(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100_000))
    shared = await pair.share(tmp_path / "file", sealed=True)
    got = await get(await pair.reader(), Link(shared.blob_id), tmp_path / "back")
    (sealed,) = shared.sources
    assert got == Got(sealed.length, is_sealed=True)
    assert (tmp_path / "back").read_bytes() == sealed.read(0, sealed.length)


async def test_a_file_that_grows_is_served_meanwhile(pair: Pair, tmp_path: Path) -> None:
    """The server forgets the blob when the first reader is halfway: the second one has that half from it."""
    data = Random(1).randbytes(4 * SEGMENT)
    (tmp_path / "file").write_bytes(data)
    shared = await pair.share(tmp_path / "file")
    reader, halfway, may_go_on = await pair.reader(listens=True), trio.Event(), trio.Event()
    reader.swarm.recent._bytes_max = 0
    held: list[bytes | bytearray | None] = []

    class Slow:
        """Gives two segments, and the others when it is told."""

        def header(self, blob_id: BlobId) -> object:
            return pair.server.library.header(blob_id)

        def segment(self, blob_id: BlobId, index: int) -> bytes | None:
            if index >= 2:
                trio.from_thread.run_sync(halfway.set)
                trio.from_thread.run(may_go_on.wait)
            return pair.server.library.segment(blob_id, index)

        def blob_ids(self) -> tuple[BlobId, ...]:
            return ()

    pair.server.server.holdings[:] = [Slow()]  # type: ignore[list-item]

    async def look() -> None:
        await halfway.wait()
        (growing,) = [one for one in reader.server.holdings if shared.blob_id in one.blob_ids()]
        while not (done := growing.segment(shared.blob_id, 1)):  # noqa: ASYNC110 - it grows without an event
            await trio.sleep(0.02)
        held.extend([growing.segment(shared.blob_id, 0), done, growing.segment(shared.blob_id, 2)])
        may_go_on.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        assert await get(reader, Link(shared.blob_id), tmp_path / "back") == Got(4 * SEGMENT)
    assert held == [data[:SEGMENT], data[SEGMENT : 2 * SEGMENT], None]
    assert isinstance(reader.server, BlobServer)
    assert whole(reader.library, shared.blob_id)


@pytest.mark.parametrize("sealed", [False, True])
class TestAFolder:
    async def test_becomes_equal_and_is_served_on(self, pair: Pair, tmp_path: Path, sealed: bool) -> None:
        large = {**FILES, "large": Random(2).randbytes((1 << 20) + 5)}
        shared = await pair.share(make_folder(tmp_path / "folder", large), sealed=sealed)
        link = Link(shared.blob_id, key=shared.key)
        first = await pair.reader(listens=True)
        assert await sync(first, link, tmp_path / "one") == Restored(0, 0, 5, 0, sum(map(len, large.values())))
        assert read_folder(tmp_path / "one") == large
        for blob_id in pair.server.library.blob_ids():
            assert whole(first.library, blob_id)
            pair.server.library.remove(blob_id)
        second = await pair.reader("second", of=first)
        await sync(second, link, tmp_path / "two")
        assert read_folder(tmp_path / "two") == large

    async def test_that_changed_moves_what_changed(self, pair: Pair, tmp_path: Path, sealed: bool) -> None:
        folder = make_folder(tmp_path / "folder", FILES)
        before = await pair.share(folder, sealed=sealed)
        reader = await pair.reader()
        target = tmp_path / "copy"
        await sync(reader, Link(before.blob_id, key=before.key), target)
        assert recall_mirror(reader.home, target) == Link(before.blob_id, key=before.key)
        (folder / "a").write_bytes(b"second")
        (folder / "in/c").unlink()
        (folder / "new").write_bytes(b"new")
        (target / "stranger").write_bytes(b"mine")
        after = await pair.share(folder, sealed=sealed)
        link = Link(after.blob_id, key=after.key)
        done = await sync(reader, link, target)
        assert (done.kept, done.fetched, done.fetched_bytes, done.removed) == (2, 2, 9, 0)
        assert read_folder(target) == {**read_folder(folder), "stranger": b"mine", "in/c": FILES["in/c"]}
        done = await sync(reader, link, target, delete=True)
        assert (done.kept, done.fetched, done.removed) == (4, 0, 2)
        assert read_folder(target) == read_folder(folder)


async def test_a_folder_in_a_folder_comes_alone(pair: Pair, tmp_path: Path) -> None:
    shared = await pair.share(make_folder(tmp_path / "folder", FILES))
    reader = await pair.reader()
    await sync(reader, Link(shared.blob_id, "in"), tmp_path / "in")
    assert read_folder(tmp_path / "in") == {"c": FILES["in/c"], "one/b": FILES["in/one/b"]}
    with pytest.raises(InputError, match="no folder"):
        await sync(reader, Link(shared.blob_id, "out"), tmp_path / "out")


async def test_a_folder_that_names_blobs_of_nothing_is_equal_though_nobody_has_them(pair: Pair, tmp_path: Path) -> None:
    """No byte is needed of a blob of empty files, so none of thousands is looked for in vain."""
    count = 2_000
    blobs = tuple(FolderBlob(BlobId(blake3(b"%d" % number).digest()), 0) for number in range(count))
    files = tuple(FolderFile(f"{no:04}", 0, False, blake3().digest(), no, 0) for no in range(count))
    manifest = Manifest(blobs, files).encode()
    header = await trio.to_thread.run_sync(pair.server.library.share, BytesSource(manifest), pair.server.codec)
    reader = await pair.reader()
    done = await sync(reader, Link(header.blob_id), tmp_path / "copy")
    assert (done.fetched, done.fetched_bytes) == (count, 0)
    assert read_folder(tmp_path / "copy") == {file.path: b"" for file in files}
    assert whole(reader.library, header.blob_id)


async def test_a_file_in_a_folder_comes_alone(pair: Pair, tmp_path: Path) -> None:
    shared = await pair.share(make_folder(tmp_path / "folder", FILES))
    reader = await pair.reader()
    assert await get(reader, Link(shared.blob_id, "in/c"), tmp_path / "c") == Got(70_000)
    assert (tmp_path / "c").read_bytes() == FILES["in/c"]


async def test_what_is_no_folder_and_what_is_one_are_told_apart(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"bytes")
    file, folder = await pair.share(tmp_path / "file"), await pair.share(make_folder(tmp_path / "folder", FILES))
    sealed = await pair.share(tmp_path / "folder", sealed=True)
    reader = await pair.reader()
    with pytest.raises(InputError, match="not a folder"):
        await sync(reader, Link(file.blob_id), tmp_path / "out")
    with pytest.raises(InputError, match="p2pnode sync"):
        await get(reader, Link(folder.blob_id), tmp_path / "out")
    with pytest.raises(NoKey):
        await sync(reader, Link(sealed.blob_id), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="not synchronised"):
        recall_mirror(reader.home, tmp_path / "out")


async def test_what_cannot_be_shared_is_named_and_left_out(pair: Pair, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", {"a": b"a"})
    os.symlink("/etc/passwd", folder / "link")
    shared = await pair.share(folder)
    assert [skipped.path for skipped in shared.skipped] == [str(folder / "link")]
    await sync(await pair.reader(), Link(shared.blob_id), tmp_path / "copy")
    assert read_folder(tmp_path / "copy") == {"a": b"a"}


def test_a_mirror_is_remembered_by_its_folder_and_readable_by_its_user_alone(tmp_path: Path) -> None:
    home, link = Home(tmp_path / "home"), Link(BlobId(bytes(32)), key=bytes(range(32)))
    with pytest.raises(InputError, match="not synchronised from this home yet"):
        recall_mirror(home, tmp_path / "folder")
    remember_mirror(home, tmp_path / "folder", link)
    assert recall_mirror(home, tmp_path / "x" / ".." / "folder") == link
    (kept,) = home.mirrors_path.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    kept.write_bytes(b"\xff")
    with pytest.raises(NodeError, match="name the folder's ID or link"):
        recall_mirror(home, tmp_path / "folder")


async def test_a_file_that_changes_is_not_served_any_more(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "LACK_S", 0.01)
    (tmp_path / "file").write_bytes(b"before")
    shared = await pair.share(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"after!")
    with pytest.raises(NodeError):
        await get(await pair.reader(), Link(shared.blob_id), tmp_path / "back")
    assert FileSource.open(tmp_path / "file").length == 6
    assert not (tmp_path / "back").exists()
