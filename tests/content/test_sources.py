"""Sources: the same bytes wherever one begins to read, and a plain word where they cannot be had."""

from pathlib import Path

import pytest

from economics.geometry import BLOB_BYTES_MAX
from p2pnode.content.sources import BytesSource, FileSource, JoinedSource, Source, read_segments
from p2pnode.errors import InputError
from tests.clients.test_upload import FOUR, content


def test_a_source_is_read_segment_by_segment(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for length, want in ((0, [0]), (1000, [1000]), (2500, [1000, 1000, 500])):
        path.write_bytes(content(length))
        segments = list(read_segments(FileSource.open(path), FOUR.code))
        assert ([len(segment) for segment in segments], b"".join(segments)) == (want, content(length))


def test_a_file_that_cannot_be_stored_is_named(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(BLOB_BYTES_MAX + 1)
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "none", "cannot read"),
        (large, f"a blob has at most {BLOB_BYTES_MAX}"),
    ):
        with pytest.raises(InputError, match=message):
            FileSource.open(path)
    with pytest.raises(InputError, match="cannot read"):
        list(read_segments(FileSource(tmp_path / "none", 1), FOUR.code))


def test_sources_that_are_joined_read_as_one(tmp_path: Path) -> None:
    data = content(100)
    (tmp_path / "file").write_bytes(data[10:60])
    parts: list[Source] = [BytesSource(data[:10]), BytesSource(b""), FileSource.open(tmp_path / "file")]
    joined = JoinedSource([*parts, BytesSource(data[60:]), BytesSource(b"")], "all")
    assert joined.length == 100
    for start in range(101):
        for stop in range(start, 101):
            assert joined.read(start, stop) == data[start:stop]
    assert JoinedSource([], "nothing").read(0, 0) == b""
