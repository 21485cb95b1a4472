"""A quilt becomes files in a folder, and nothing else there changes, whatever its files are called."""

from pathlib import Path

import pytest

from p2pnode.content.quilt import Index, QuiltFile, build_quilt
from p2pnode.content.sources import BytesSource, Source, compute_header
from p2pnode.content.unpack import unpack
from p2pnode.content.views import Write
from p2pnode.errors import InputError
from tests.content.test_resume import CODEC, MemoryView


def quilt_of(*names: str) -> tuple[Source, Index]:
    quilt = build_quilt([QuiltFile(name, BytesSource(name.encode() * 50_000)) for name in names])
    return quilt.source, quilt.index


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def unpacked(source: Source, index: Index, target: Path, kind: type[MemoryView] = MemoryView) -> None:
    header, view = compute_header(source, CODEC), kind(source.read(0, source.length))
    await unpack(view, index, target, header=header, codec=CODEC, key=None, report=lambda done, total: None)


class Unread(MemoryView):
    async def read(self, write: Write, *, start: int = 0, stop: int | None = None) -> None:
        raise AssertionError("nothing needs to be fetched")


async def test_a_file_of_any_name_comes_out(tmp_path: Path) -> None:
    names = (".quilt", ".quilt.part", "a")
    await unpacked(*quilt_of(*names), tmp_path)
    assert files_in(tmp_path) == {name: name.encode() * 50_000 for name in names}


async def test_what_else_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / ".quilt").write_bytes(b"mine")
    await unpacked(*quilt_of("a"), tmp_path)
    assert files_in(tmp_path) == {".quilt": b"mine", "a": b"a" * 50_000}


async def test_what_was_fetched_is_not_fetched_again_if_something_is_in_the_way(tmp_path: Path) -> None:
    source, index = quilt_of("a", "b")
    (tmp_path / "b" / "mine").mkdir(parents=True)
    with pytest.raises(InputError, match="is a folder, where a file belongs"):
        await unpacked(source, index, tmp_path)
    (tmp_path / "b" / "mine").rmdir()
    (tmp_path / "b").rmdir()
    await unpacked(source, index, tmp_path, Unread)
    assert files_in(tmp_path) == {name: name.encode() * 50_000 for name in "ab"}


async def test_a_name_that_only_unfinished_downloads_have_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only unfinished downloads"):
        await unpacked(*quilt_of("a.p2pnode-part"), tmp_path / "new")
    assert not files_in(tmp_path)
