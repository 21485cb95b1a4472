"""Arguments of a client's calls: what can be used is, and anything else is an `InputError`."""

from pathlib import Path
from typing import Any

import pytest

from economics.blob import BlobId, build_blob_id_text
from p2pnode.clients.calls import (
    kind_of,
    parse_blob,
    parse_cost,
    parse_epochs,
    parse_path,
    progress_of,
    quilt_of,
    source_of,
)
from p2pnode.clients.upload import Progress
from p2pnode.content.quilt import FRONT_BYTES
from p2pnode.content.sources import BytesSource
from p2pnode.errors import InputError

BLOB = BlobId(bytes(range(32)))


def test_a_blob_id_is_its_text_or_its_bytes() -> None:
    assert parse_blob(BLOB) == parse_blob(build_blob_id_text(BLOB)) == BLOB


@pytest.mark.parametrize("wrong", ["", "x", "A" * 44, "é" * 43, b"", bytes(31), None, 7, Path("x")])
def test_anything_else_is_no_blob_id(wrong: Any) -> None:
    with pytest.raises(InputError):
        parse_blob(wrong)


def test_epochs_are_those_that_are_sold() -> None:
    assert [parse_epochs(1), parse_epochs(53)] == [1, 53]
    for wrong in (0, 54, -1, True, 1.0, "3", None):
        with pytest.raises(InputError):
            parse_epochs(wrong)  # type: ignore[arg-type]


def test_a_cost_is_a_number_of_frost_or_a_text_in_wal() -> None:
    assert [parse_cost(None), parse_cost(0), parse_cost(7), parse_cost("0.5"), parse_cost("7frost")] == [
        *(None, 0, 7),
        500_000_000,
        7,
    ]
    for wrong in (-1, 0.5, True, "much", 1 << 63):
        with pytest.raises(InputError):
            parse_cost(wrong)  # type: ignore[arg-type]


def test_a_tilde_is_the_users_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert parse_path("~/files", "home") == Path("/somewhere/files")
    for wrong in (None, 7, b"files", "a\0b", "~nobody-of-this-name/x"):
        with pytest.raises(InputError):
            parse_path(wrong, "home")  # type: ignore[arg-type]


def test_what_is_stored_is_bytes_of_any_kind_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"text")
    whole = [source_of(what) for what in (b"text", bytearray(b"text"), memoryview(b"text"), file, str(file))]
    assert [source.read(0, source.length) for source in whole] == [b"text"] * 5


def test_bytes_that_change_later_are_stored_as_they_were() -> None:
    data = bytearray(b"text")
    source = source_of(data)
    data[:] = b"else"
    assert source.read(0, 4) == b"text"


@pytest.mark.parametrize("wrong", [None, 7, ["x"], "/no/such/file", "/dev/null", "a\0b"])
def test_anything_else_is_not_stored(wrong: Any) -> None:
    with pytest.raises(InputError):
        source_of(wrong)


def test_a_folder_is_sent_to_where_folders_are_stored(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="store_folder"):
        source_of(tmp_path)


def test_a_quilt_is_made_of_names(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"two")
    source = quilt_of({"b": tmp_path / "b", "a": b"one"})
    assert source.read(source.length - 6, source.length) == b"onetwo"
    assert source.length > FRONT_BYTES + 6
    for wrong in (None, [("a", b"one")], {1: b"one"}, {"": b"one"}, {"a": 7}, {"a": tmp_path / "none"}):
        with pytest.raises(InputError):
            quilt_of(wrong)  # type: ignore[arg-type]


def test_a_kind_is_told_by_the_first_bytes() -> None:
    fronts = (b"", b"p2pq\1\0\0\0", b"p2pf\1\x83\0\0", b"p2px\1\0\0\0", b"p2pq\2\0\0\0", b"p2px\1\0\0\1", b"text")
    assert [kind_of(front) for front in fronts] == ["bytes", "quilt", "folder", "sealed", *["bytes"] * 3]


def test_progress_is_told_in_bytes() -> None:
    told: list[tuple[int, int]] = []
    report = progress_of(lambda done, total: told.append((done, total)), BytesSource(bytes(25)), 10)
    for stored in range(4):
        report(Progress(segments=3, encoded=3, stored=stored, committed=0, quorum=3))
    assert told == [(0, 25), (10, 25), (20, 25), (25, 25)]
