"""A file is there whole or not at all; what a killed call left is checked, kept as far as it is right, continued."""

import fcntl
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from economics.blob import Header
from economics.geometry import Code
from p2pnode.coding.codec import Codec
from p2pnode.content import resume
from p2pnode.content.resume import Saved, build_part_path, output_file, save
from p2pnode.content.sealed import SealedSource
from p2pnode.content.sources import BytesSource, compute_header
from p2pnode.content.views import Write
from p2pnode.errors import InconsistentBlob, InputError, NodeError, SpaceError, Unavailable
from tests.clients.test_upload import content
from tests.small import KERNEL

CODEC = Codec(Code(4, 100_000), KERNEL)
DATA = content(650_000)
"""Seven segments; sealed, ten frames, of which none ends with a segment."""
KEY = bytes(range(32))
CHUNK = 10_000


@dataclass
class MemoryView:
    """Bytes that come in chunks, until they do not."""

    data: bytes = DATA
    ends_at: int | None = None
    fault: NodeError = field(default_factory=lambda: Unavailable("gone"))
    started_at: int | None = None
    on_chunk: Callable[[], None] = lambda: None

    @property
    def length(self) -> int:
        return len(self.data)

    async def read(self, write: Write, *, start: int = 0, stop: int | None = None) -> None:
        self.started_at = start
        for at in range(start, self.length if self.ends_at is None else self.ends_at, CHUNK):
            self.on_chunk()
            await write([memoryview(self.data)[at : at + CHUNK]])
        if self.ends_at is not None:
            raise self.fault


def header_of(data: bytes, key: bytes | None) -> Header:
    source = BytesSource(data)
    return compute_header(source if key is None else SealedSource(source, key), CODEC)


PLAIN, SEALED = header_of(DATA, None), header_of(DATA, KEY)
BOTH = pytest.mark.parametrize(("header", "key"), [(PLAIN, None), (SEALED, KEY)], ids=["plain", "sealed"])


async def run(view: MemoryView, path: Path, header: Header = PLAIN, key: bytes | None = None) -> Saved:
    return await save(view, path, header=header, codec=CODEC, key=key)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@BOTH
@pytest.mark.parametrize("cut", [CHUNK, 90_000, 100_000, 330_000, 640_000])
async def test_an_interrupted_file_goes_on_after_its_last_whole_segment(
    cut: int, header: Header, key: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(Unavailable):
        await run(MemoryView(ends_at=cut), path, header, key)
    assert path.read_bytes() == b"old"
    assert build_part_path(path, header.blob_id).read_bytes() == DATA[:cut]
    view = MemoryView()
    saved = await run(view, path, header, key)
    assert path.read_bytes() == DATA
    assert names(tmp_path) == ["file"]
    assert saved == Saved(len(DATA), view.started_at or 0)
    lost = cut - saved.kept_bytes
    assert 0 <= lost <= 100_000 + (0 if key is None else 2 * 65_536)


@BOTH
async def test_a_part_that_is_whole_needs_nothing_more(header: Header, key: bytes | None, tmp_path: Path) -> None:
    build_part_path(tmp_path / "file", header.blob_id).write_bytes(DATA)
    view = MemoryView()
    assert await run(view, tmp_path / "file", header, key) == Saved(len(DATA), len(DATA))
    assert view.started_at is None
    assert (tmp_path / "file").read_bytes() == DATA


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@BOTH
@pytest.mark.parametrize(
    ("left", "kept_plain", "kept_sealed"),
    [
        (b"of another blob" * 50_000, 0, 0),
        (flip(DATA, 0), 0, 0),
        (flip(DATA, 250_000), 200_000, 3 * 65_536),
        (flip(DATA, len(DATA) - 1), 600_000, 9 * 65_536),
        (DATA + b"and more", len(DATA), len(DATA)),
        (bytes(len(DATA)), 0, 0),
        (b"", 0, 0),
    ],
    ids=["foreign", "first byte", "in the middle", "last byte", "too long", "zeros", "empty"],
)
async def test_what_a_part_holds_is_never_believed(
    left: bytes, kept_plain: int, kept_sealed: int, header: Header, key: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    build_part_path(path, header.blob_id).write_bytes(left)
    assert (await run(MemoryView(), path, header, key)).kept_bytes == (kept_plain if key is None else kept_sealed)
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("length", [0, 1, 65_536, 100_000])
@pytest.mark.parametrize("key", [None, KEY])
async def test_a_file_may_have_any_length(length: int, key: bytes | None, tmp_path: Path) -> None:
    data, path = DATA[:length], tmp_path / "file"
    header = header_of(data, key)
    for left in (None, data, data + b"more"):
        if left is not None:
            build_part_path(path, header.blob_id).write_bytes(left)
        assert await run(MemoryView(data), path, header, key) == Saved(length, length if left is not None else 0)
        assert path.read_bytes() == data
        assert names(tmp_path) == ["file"]


async def test_progress_counts_what_was_there(tmp_path: Path) -> None:
    build_part_path(tmp_path / "file", PLAIN.blob_id).write_bytes(DATA[:300_000])
    told: list[tuple[int, int]] = []
    view = MemoryView()
    await save(view, tmp_path / "file", header=PLAIN, codec=CODEC, key=None, report=lambda *now: told.append(now))
    done = [1, 2, 3, 3, *[3 + chunk / 10 for chunk in range(1, 36)]]
    assert told == [(round(one * 100_000), len(DATA)) for one in done]


async def test_a_second_process_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    refused: list[str] = []

    async with trio.open_nursery() as nursery:
        begun, go_on = trio.Event(), trio.Event()

        class Slow(MemoryView):
            async def read(self, write: Write, *, start: int = 0, stop: int | None = None) -> None:
                begun.set()
                await go_on.wait()
                await super().read(write, start=start)

        nursery.start_soon(run, Slow(), path)
        await begun.wait()
        with pytest.raises(InputError) as fault:
            await run(MemoryView(), path)
        refused.append(str(fault.value))
        go_on.set()
    assert refused == [
        f"another process is writing the same blob to {path}: wait until it is done, or name another file"
    ]
    assert (path.read_bytes(), names(tmp_path)) == (DATA, ["file"])


async def test_a_part_that_was_put_in_place_meanwhile_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the opening of a part and its lock, the process before is done with it."""
    path, lock = tmp_path / "file", fcntl.flock
    part = build_part_path(path, PLAIN.blob_id)
    kept = tmp_path / "kept"

    def be_late(handle: int, how: int) -> None:
        if not kept.exists():
            part.write_bytes(b"what it wrote")
            part.rename(kept)
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", be_late)
    assert await run(MemoryView(), path) == Saved(len(DATA), 0)
    assert (kept.read_bytes(), path.read_bytes()) == (b"what it wrote", DATA)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_is_named_and_what_came_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(SpaceError, match="free some space and run the same command again"), files_of_at_most(234_567):
        await run(MemoryView(), path)
    assert build_part_path(path, PLAIN.blob_id).read_bytes() == DATA[:234_567]
    assert await run(MemoryView(), path) == Saved(len(DATA), 200_000)


@pytest.mark.parametrize(("ends_at", "fault"), [(0, Unavailable("gone")), (200_000, InconsistentBlob("no reader"))])
async def test_nothing_is_left_of_what_nobody_can_go_on_with(ends_at: int, fault: NodeError, tmp_path: Path) -> None:
    with pytest.raises(type(fault)):
        await run(MemoryView(ends_at=ends_at, fault=fault), tmp_path / "file")
    assert names(tmp_path) == []


async def test_a_cancelled_call_leaves_what_came(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        view = MemoryView()

        def cancel() -> None:
            if build_part_path(tmp_path / "file", PLAIN.blob_id).stat().st_size >= 320_000:
                scope.cancel()

        view.on_chunk = cancel
        await run(view, tmp_path / "file")
    assert scope.cancelled_caught
    assert await run(MemoryView(), tmp_path / "file") == Saved(len(DATA), 300_000)


async def test_a_link_in_the_place_of_a_part_is_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_bytes(b"precious")
    part = build_part_path(path, PLAIN.blob_id)
    for link in (part.symlink_to, part.hardlink_to):
        link(victim)
        with pytest.raises(InputError):
            await run(MemoryView(), path)
        part.unlink()
    os.mkfifo(part)
    with pytest.raises(InputError, match="is not a part file"):
        await run(MemoryView(), path)
    assert victim.read_bytes() == b"precious"
    assert not path.exists()


async def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write .*none/file: No such file or directory"):
        await run(MemoryView(), tmp_path / "none" / "file")
    with pytest.raises(InputError, match="is a folder: name a file in it"):
        await run(MemoryView(), tmp_path)


async def test_a_target_that_is_no_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for special in (pipe, tmp_path):
        with pytest.raises(InputError):
            async with output_file(special):
                pass
        with pytest.raises(InputError):
            await run(MemoryView(), special)
    assert pipe.is_fifo()
    assert names(tmp_path) == ["pipe"]


async def test_an_output_that_begins_anew_replaces_a_file_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    async def fail() -> None:
        async with output_file(path) as sink:
            sink.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert (path.read_bytes(), names(tmp_path)) == (b"old", ["file"])
    async with output_file(path) as sink:
        sink.write(b"new")
        assert path.read_bytes() == b"old"
    assert (path.read_bytes(), names(tmp_path)) == (b"new", ["file"])


async def test_two_tasks_of_one_program_do_not_write_into_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    async with output_file(path) as slow:
        slow.write(b"slow and ")
        slow.flush()
        async with output_file(path) as quick:
            quick.write(b"quick")
        assert path.read_bytes() == b"quick"
        slow.write(b"whole")
    assert (path.read_bytes(), names(tmp_path)) == (b"slow and whole", ["file"])


async def test_an_output_whose_folder_goes_away_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    async def write() -> None:
        async with output_file(folder / "file") as sink:
            sink.write(b"bytes")
            shutil.rmtree(folder)

    with pytest.raises(InputError, match=f"cannot write {folder}/file"):
        await write()


@pytest.mark.parametrize("name", ["f" * 255, "\N{SNOWMAN}" * 85])
async def test_the_longest_name_has_a_part_too(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(Unavailable):
        await run(MemoryView(ends_at=200_000), path)
    assert await run(MemoryView(), path) == Saved(len(DATA), 200_000)
    assert names(tmp_path) == [name]
    assert len(os.fsencode(build_part_path(path, PLAIN.blob_id).name)) <= resume.NAME_BYTES_MAX
