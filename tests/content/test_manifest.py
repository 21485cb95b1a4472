"""Manifests: frozen bytes, one encoding, no path that leads out, and every other way to break the format refused."""

import json
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import example, given, settings
from hypothesis import strategies as st

from economics import cbor
from economics.blob import BlobId
from economics.errors import Reason, Rejected
from p2pnode.content.manifest import (
    FRONT,
    MANIFEST_BYTES_MAX,
    FolderBlob,
    FolderFile,
    Manifest,
    NotAFolder,
    is_folder,
    read_manifest,
)
from p2pnode.errors import InputError
from tests import reference
from tests.content.test_quilt import MemoryView
from tests.refusals import reason

VECTORS = json.loads((reference.VECTORS / "folders.json").read_text())
HASH = blake3(b"x").digest()
ID = BlobId(bytes(range(32)))
PARTS = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=8).filter(
    lambda part: part not in (".", "..")
)
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    paths: list[str] = []
    for path in draw(st.lists(PATHS, max_size=12, unique=True)):
        if not any(f"{path}/".startswith(f"{other}/") or f"{other}/".startswith(f"{path}/") for other in paths):
            paths.append(path)
    cut = draw(st.integers(0, len(paths)))
    blobs: list[FolderBlob] = []
    files: list[FolderFile] = []
    for path in sorted(paths[:cut], key=lambda path: path.encode()):
        at = draw(st.integers(0, len(blobs)))
        if at == len(blobs):
            key = draw(st.sampled_from([b"", bytes(32)]))
            blobs.append(FolderBlob(BlobId(len(blobs).to_bytes(32, "big")), draw(st.integers(0, 1 << 40)), key))
        length = draw(st.integers(0, blobs[at].length))
        offset = draw(st.integers(0, blobs[at].length - length))
        files.append(
            FolderFile(path, length, draw(st.booleans()), draw(st.binary(min_size=32, max_size=32)), at, offset)
        )
    return Manifest(tuple(blobs), tuple(files), tuple(sorted(paths[cut:], key=lambda path: path.encode())))


def packed(blobs: Any, files: Any, empty: Any) -> bytes:
    return FRONT + cbor.encode([blobs, files, empty])


def of_paths(*paths: str, empty: tuple[str, ...] = ()) -> bytes:
    return packed([[ID, 9, b""]] if paths else [], [[path, 1, False, HASH, 0, 0] for path in paths], list(empty))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(len(vector["files"])))
def test_a_manifest_has_the_frozen_bytes(vector: dict[str, Any]) -> None:
    blobs = [FolderBlob(BlobId(bytes.fromhex(b["id"])), b["length"], bytes.fromhex(b["key"])) for b in vector["blobs"]]
    files = [FolderFile(**{**file, "content_hash": bytes.fromhex(file["content_hash"])}) for file in vector["files"]]
    manifest = Manifest(tuple(blobs), tuple(files), tuple(vector["empty"]))
    data = bytes.fromhex(vector["data"])
    assert manifest.encode() == data
    assert Manifest.decode(data) == manifest
    assert is_folder(data)


@given(manifests())
async def test_a_manifest_is_read_back_and_each_file_found(manifest: Manifest) -> None:
    data = manifest.encode()
    assert await read_manifest(MemoryView(data)) == manifest
    assert [manifest.find(file.path) for file in manifest.files] == list(manifest.files)
    for path in ("none", "", "\udcff", *manifest.empty):
        with pytest.raises(InputError, match="the folder has no file"):
            manifest.find(path + "\0")


@settings(max_examples=300)
@given(manifests(), st.integers(0, 10_000), st.integers(1, 255))
def test_changed_bytes_are_refused_or_another_manifest(manifest: Manifest, at: int, change: int) -> None:
    data = bytearray(manifest.encode())
    data[at % len(data)] ^= change
    try:
        read = Manifest.decode(bytes(data))
    except Rejected:
        return
    assert read.encode() == bytes(data)
    assert read != manifest


@given(st.binary(max_size=80).map(lambda data: FRONT + data) | st.binary(max_size=80))
@example(FRONT + b"\x83\x80\x80\x80\x00")
@example(FRONT + b"\x82\x80\x80")
@example(b"p2pf\x02\x83\x80\x80\x80")
async def test_any_bytes_are_a_folder_or_none(data: bytes) -> None:
    try:
        manifest = await read_manifest(MemoryView(data))
    except NotAFolder:
        return
    assert manifest.encode() == data


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            "/",
            "/etc/passwd",
            "a/",
            "a//b",
            ".",
            "..",
            "./a",
            "../a",
            "a/..",
            "a/../../b",
            "a/./b",
            "../../../etc/x",
        ),
        *("a\0b", "a\nb", "\x1b[2J", "a\x7f", "a/\x85/b", "a/\t"),
        *("x" * 256, "a/" + "ü" * 128, "/".join(["xxxxxxx"] * 513)),
    ],
    ids=lambda path: repr(path)[:30],
)
def test_a_path_that_leads_elsewhere_or_breaks_names_is_refused(path: str) -> None:
    for data in (of_paths(path), of_paths(empty=(path,))):
        assert reason(Manifest.decode, data) in (Reason.MALFORMED, Reason.TOO_LARGE)
    bad = Manifest((FolderBlob(ID, 9),), (FolderFile(path, 1, False, HASH, 0, 0),))
    assert reason(bad.encode) in (Reason.MALFORMED, Reason.TOO_LARGE)


def test_names_that_only_look_odd_are_allowed() -> None:
    paths = (" ", "-rf", "...", "..a", "C:\\x", "a ", "a/...", "con", "x" * 255, "~", "ü/" + "é" * 127, "\u202e")
    ordered = tuple(sorted(paths, key=lambda path: path.encode()))
    assert [file.path for file in Manifest.decode(of_paths(*ordered)).files] == list(ordered)
    assert Manifest.decode(of_paths("/".join(["a"] * 2_048))).files[0].path.count("/") == 2_047


@pytest.mark.parametrize(
    ("paths", "empty"),
    [
        (("a", "a"), ()),
        (("b", "a"), ()),
        (("a", "a/b"), ()),
        (("a", "a-b", "a/b"), ()),
        (("a/b", "a/b/c/d"), ()),
        (("a",), ("a",)),
        (("a/b",), ("a",)),
        (("a",), ("a/b",)),
        (("a", "a.b"), ("a/b",)),
        ((), ("a", "a")),
        ((), ("b", "a")),
        ((), ("a", "a/b")),
        (("\uffee",), ("\U0001f600", "\uffee/a")),
    ],
    ids=str,
)
def test_paths_in_each_others_way_are_refused(paths: tuple[str, ...], empty: tuple[str, ...]) -> None:
    assert reason(Manifest.decode, of_paths(*paths, empty=empty)) == Reason.MALFORMED


FILE: list[Any] = ["a", 1, False, HASH, 0, 0]
BLOB: list[Any] = [ID, 9, b""]


def changed(row: list[Any], at: int, value: Any) -> list[Any]:
    return [*row[:at], value, *row[at + 1 :]]


@pytest.mark.parametrize(
    ("blobs", "files", "empty"),
    [
        ([BLOB], [], []),
        ([], [FILE], []),
        ([BLOB, BLOB], [FILE, changed(["b", *FILE[1:]], 4, 1)], []),
        ([BLOB, [bytes(32), 9, b""]], [changed(FILE, 4, 1), ["b", *FILE[1:]]], []),
        ([BLOB, [bytes(32), 9, b""]], [FILE], []),
        ([BLOB], [changed(FILE, 4, 1)], []),
        ([BLOB], [changed(FILE, 4, -1)], []),
        ([BLOB], [changed(FILE, 4, False)], []),
        ([BLOB], [changed(FILE, 5, 9)], []),
        ([BLOB], [changed(FILE, 1, 10)], []),
        ([BLOB], [changed(FILE, 5, -1)], []),
        ([BLOB], [changed(FILE, 5, 1 << 63)], []),
        ([BLOB], [changed(FILE, 1, -1)], []),
        ([BLOB], [changed(FILE, 1, True)], []),
        ([BLOB], [changed(FILE, 2, 1)], []),
        ([BLOB], [changed(FILE, 2, None)], []),
        ([BLOB], [changed(FILE, 3, HASH[:-1])], []),
        ([BLOB], [changed(FILE, 3, "x" * 32)], []),
        ([BLOB], [changed(FILE, 0, b"a")], []),
        ([BLOB], [FILE[:-1]], []),
        ([BLOB], [[*FILE, 0]], []),
        ([changed(BLOB, 0, ID[:-1])], [FILE], []),
        ([changed(BLOB, 1, (1 << 40) + 1)], [FILE], []),
        ([changed(BLOB, 1, True)], [FILE], []),
        ([changed(BLOB, 2, bytes(31))], [FILE], []),
        ([changed(BLOB, 2, "")], [FILE], []),
        ([BLOB[:-1]], [FILE], []),
        ([BLOB], [FILE], [b"e"]),
        ([BLOB], [FILE], [["e"]]),
        ([BLOB], {"a": 1}, []),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(blobs: Any, files: Any, empty: Any) -> None:
    assert reason(Manifest.decode, packed(blobs, files, empty)) == Reason.MALFORMED


def test_the_plain_one_that_those_break_is_right() -> None:
    want = Manifest((FolderBlob(ID, 9),), (FolderFile("a", 1, False, HASH, 0, 0),), ("e",))
    assert Manifest.decode(packed([BLOB], [FILE], ["e"])) == want
    assert reason(replace(want, files=()).encode) == Reason.MALFORMED


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x83\x9a\x02\x00\x00\x00" + b"\x80" * 1_000_000,
        b"\x83\x80\x81\x9a\x01\x00\x00\x00" + b"\x00" * 1_000_000,
        b"\x81" * 1_000_000,
        b"\x83\x80\x80\x81" + b"\x81" * 1_000_000,
        b"\x83\x80\x80\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
    ],
    ids=["too many", "wide", "deep", "deep path", "count"],
)
def test_a_bomb_costs_next_to_nothing(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        assert reason(Manifest.decode, FRONT + bomb) in (Reason.TOO_LARGE, Reason.MALFORMED)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_many_deep_paths_take_no_more_memory_than_they_have_bytes() -> None:
    """A set of all folders of these paths would have two gigabytes."""
    stem = "/".join(["a"] * 2_000)
    data = of_paths(*(f"{at:03}/{stem}" for at in range(500)))
    tracemalloc.start()
    try:
        assert len(Manifest.decode(data).files) == 500
        assert tracemalloc.get_traced_memory()[1] < 16 * len(data)
    finally:
        tracemalloc.stop()


async def test_a_blob_that_is_something_else_is_not_fetched_to_find_out() -> None:
    view = MemoryView(b"p2pq\x01" + bytes(1_000_000))
    with pytest.raises(NotAFolder, match="does not begin as one"):
        await read_manifest(view)
    assert view.asked == [(0, 5)]
    with pytest.raises(NotAFolder, match=f"at most {MANIFEST_BYTES_MAX}"):
        await read_manifest(MemoryView(FRONT + bytes(MANIFEST_BYTES_MAX)))
    with pytest.raises(NotAFolder, match="at most 10"):
        await read_manifest(MemoryView(packed([], [], ["a", "b"])), size_max=10)
    assert reason(Manifest.decode, FRONT + bytes(MANIFEST_BYTES_MAX)) == Reason.TOO_LARGE


def test_a_manifest_does_not_show_its_keys() -> None:
    """It may be in a traceback, and so in a log."""
    key = bytes(range(32))
    manifest = Manifest((FolderBlob(BlobId(bytes(32)), 1, key),), (), ())
    assert repr(key)[2:20] not in repr(manifest)
