"""Quilts: frozen bytes, one encoding, and every way to break it refused; each file is found by name and by number."""

import json
import random
import tracemalloc
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import example, given, settings
from hypothesis import strategies as st

from economics import cbor
from economics.blob import BlobId
from economics.errors import Reason, Rejected
from p2pnode.content.names import CONTROL
from p2pnode.content.quilt import (
    FIRST_BYTES,
    FRONT_BYTES,
    INDEX_BYTES_MAX,
    Entry,
    Index,
    NotAQuilt,
    QuiltFile,
    build_patch_id,
    build_quilt,
    is_quilt,
    parse_patch_id,
    read_index,
)
from p2pnode.content.sources import BytesSource
from p2pnode.content.views import SliceView, Write, read_all, verify_range
from p2pnode.errors import InputError
from tests import reference
from tests.refusals import reason

VECTORS = json.loads((reference.VECTORS / "quilts.json").read_text())
NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40)
TAGS = st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=16)
FILES = st.dictionaries(NAMES, st.tuples(TAGS, st.binary(max_size=50)), max_size=12)


class MemoryView:
    """Bytes as a view, in odd pieces; counts what is read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []

    @property
    def length(self) -> int:
        return len(self.data)

    async def read(self, write: Write, *, start: int = 0, stop: int | None = None) -> None:
        end = verify_range(start, stop, len(self.data))
        self.asked.append((start, end))
        for at in range(start, end, 7_777):
            await write(
                [memoryview(self.data)[at : min(at + 5, end)], memoryview(self.data)[at + 5 : min(at + 7_777, end)]]
            )


def quilt_of(files: dict[str, bytes]) -> bytes:
    built = build_quilt([QuiltFile(name, BytesSource(data)) for name, data in files.items()])
    return built.source.read(0, built.source.length)


def packed(rows: list[Any], behind: int = 0) -> bytes:
    """Return the bytes of a quilt with this index, whatever it says, and so many bytes behind it."""
    index = cbor.encode(rows)
    return b"p2pq\x01" + len(index).to_bytes(4, "big") + index + bytes(behind)


def refusal(data: bytes) -> Reason:
    length = int.from_bytes(data[5:9], "big")
    return reason(Index.decode, data[FRONT_BYTES : FRONT_BYTES + length], blob_length=len(data))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(len(vector["files"])))
def test_a_quilt_has_the_frozen_bytes(vector: dict[str, Any]) -> None:
    files = [
        QuiltFile(file["name"], BytesSource(reference.content(file["length"])), file["tags"])
        for file in vector["files"]
    ]
    built = build_quilt(files)
    data = built.source.read(0, built.source.length)
    front = bytes.fromhex(vector["front"])
    assert data[: len(front)] == front == built.index.encode()
    assert blake3(data).hexdigest() == vector["blake3"]
    assert is_quilt(data)
    assert Index.decode(front[FRONT_BYTES:], blob_length=len(data)) == built.index


@given(FILES, st.randoms(use_true_random=False))
async def test_every_file_is_read_back_by_its_name_whatever_the_order(
    files: dict[str, tuple[dict[str, str], bytes]], rng: random.Random
) -> None:
    listed = [QuiltFile(name, BytesSource(data), tags) for name, (tags, data) in files.items()]
    built = build_quilt(listed)
    data = built.source.read(0, built.source.length)
    rng.shuffle(listed)
    again = build_quilt(listed).source
    assert again.read(0, again.length) == data
    view = MemoryView(data)
    index = await read_index(view)
    assert index == built.index
    assert [entry.number for entry in index.entries] == list(range(len(files)))
    for name, (tags, want) in files.items():
        entry = index.find(name)
        assert (index.at(entry.number), dict(entry.tags)) == (entry, tags)
        assert await read_all(SliceView(view, entry.start, entry.length), size_max=100) == want


@settings(max_examples=300)
@given(FILES, st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_index_is_refused_or_another_quilt(
    files: dict[str, tuple[dict[str, str], bytes]], at: int, change: int
) -> None:
    built = build_quilt([QuiltFile(name, BytesSource(data), tags) for name, (tags, data) in files.items()])
    front = bytearray(built.index.encode())
    place = FRONT_BYTES + at % (len(front) - FRONT_BYTES)
    front[place] ^= change
    try:
        read = Index.decode(bytes(front[FRONT_BYTES:]), blob_length=built.source.length)
    except Rejected:
        return
    assert read.encode() == bytes(front)
    assert read != built.index


@given(st.binary(max_size=80))
@example(b"p2pq\x01\x00\x00\x00\x01\x80")
@example(b"p2pq\x01\xff\xff\xff\xff")
@example(b"p2pq\x02\x00\x00\x00\x01\x80")
async def test_any_bytes_are_a_quilt_or_no_quilt(data: bytes) -> None:
    try:
        index = await read_index(MemoryView(data))
    except NotAQuilt:
        return
    assert data.startswith(index.encode())


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([["a", 0]], Reason.MALFORMED),
        ([["a", 0, {}, 0]], Reason.MALFORMED),
        ([["a", 0, []]], Reason.MALFORMED),
        ([[b"a", 0, {}]], Reason.MALFORMED),
        ([["a", True, {}]], Reason.MALFORMED),
        ([["a", -1, {}], ["b", 1, {}]], Reason.MALFORMED),
        ([["a", (1 << 40) + 1, {}]], Reason.MALFORMED),
        ([["a", 0, {"tag": 1}]], Reason.MALFORMED),
        ([["a", 0, {"tag": []}]], Reason.MALFORMED),
        ([["a", 0, {}], ["a", 0, {}]], Reason.MALFORMED),
        ([["b", 0, {}], ["a", 0, {}]], Reason.MALFORMED),
        ([["\U0001f600", 0, {}], ["\uffee", 0, {}]], Reason.MALFORMED),
        ([["", 0, {}]], Reason.MALFORMED),
        ([["a\nb", 0, {}]], Reason.MALFORMED),
        ([["a\0", 0, {}]], Reason.MALFORMED),
        ([["a\x7f", 0, {}]], Reason.MALFORMED),
        ([["a\x9b", 0, {}]], Reason.MALFORMED),
        ([["x" * 1_025, 0, {}]], Reason.TOO_LARGE),
        ([["a", 0, {str(at): "" for at in range(17)}]], Reason.TOO_LARGE),
        ([["a", 0, {"t": "x" * 65_536}]], Reason.TOO_LARGE),
        ([[str(at), 0, {}] for at in range(65_536)], Reason.TOO_LARGE),
        ([["a", 1, {}]], Reason.MALFORMED),
        ({"a": 0}, Reason.MALFORMED),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_index_that_breaks_a_rule_is_refused(rows: list[Any], why: Reason) -> None:
    assert refusal(packed(rows)) == why


def test_nothing_may_stand_behind_the_last_file_or_the_index() -> None:
    assert refusal(packed([["a", 3, {}]], 4)) == Reason.MALFORMED
    assert refusal(packed([], 1)) == Reason.MALFORMED
    whole = packed([["a", 3, {}]], 3)
    index = whole[FRONT_BYTES:-3]
    assert Index.decode(index, blob_length=len(whole)) == Index((Entry(0, "a", len(whole) - 3, 3, {}),))
    assert reason(Index.decode, index + b"\x00", blob_length=len(whole) + 1) == Reason.MALFORMED
    assert reason(Index.decode, index[:-1], blob_length=len(whole) - 1) == Reason.MALFORMED


def test_the_limits_themselves_are_allowed() -> None:
    rows: list[Any] = [["x" * 1_024, 0, {"t": "x" * 65_535}], ["y", 0, {chr(65 + at): "" for at in range(16)}]]
    whole = packed(rows)
    read = Index.decode(whole[FRONT_BYTES:], blob_length=len(whole))
    assert [[entry.name, entry.length, entry.tags] for entry in read.entries] == rows
    many = [[f"{at:05}", 0, {}] for at in range(65_535)]
    whole = packed(many)
    assert len(Index.decode(whole[FRONT_BYTES:], blob_length=len(whole)).entries) == 65_535


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x9a\x00\x40\x00\x00" + b"\x80" * (INDEX_BYTES_MAX - 5),
        b"\x81" * INDEX_BYTES_MAX,
        b"\x99\xff\xff" + b"\x83" * (INDEX_BYTES_MAX - 3),
        b"\x81\x83\x61a\x00\xba\x00\x10\x00\x00" + b"\x60\x60" * 1_000_000,
        b"\x81\x9a\x00\x3f\xff\xf0" + b"\x00" * 0x3FFFF0,
        b"\xc1" * INDEX_BYTES_MAX,
    ],
    ids=["too many", "too deep", "nested", "tags", "wide", "cbor tags"],
)
def test_a_bomb_costs_next_to_nothing(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        assert reason(Index.decode, bomb, blob_length=FRONT_BYTES + len(bomb)) in (Reason.TOO_LARGE, Reason.MALFORMED)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


async def test_an_index_is_read_at_once_or_in_two_pieces_and_nothing_of_the_files() -> None:
    small = MemoryView(quilt_of({"a": bytes(200_000)}))
    await read_index(small)
    assert small.asked == [(0, FIRST_BYTES)]
    large = MemoryView(quilt_of({f"{at:05}" + "x" * 80: bytes(100) for at in range(1_000)}))
    index = await read_index(large)
    assert len(index.entries) == 1_000
    assert large.asked == [(0, FIRST_BYTES), (FIRST_BYTES, index.entries[0].start)]
    with pytest.raises(NotAQuilt, match="at most 4194304"):
        await read_index(MemoryView(b"p2pq\x01\x00\x40\x00\x01" + bytes(5_000_000)))
    with pytest.raises(NotAQuilt, match="its index ends early"):
        await read_index(MemoryView(b"p2pq\x01\x00\x00\x00\x02\x80"))


def test_files_that_make_no_quilt_are_named() -> None:
    def build(*names: str, tags: dict[str, str] | None = None) -> None:
        build_quilt([QuiltFile(name, BytesSource(b""), tags or {}) for name in names])

    for names, message in (
        (("a", "a"), "two files are called 'a'"),
        (("",), "a name is empty"),
        (("a\rb",), "control characters"),
        (("\udcff",), "is not UTF-8"),
    ):
        with pytest.raises(InputError, match=message):
            build(*names)
    with pytest.raises(InputError, match="a tag of 'a' is not UTF-8"):
        build("a", tags={"t": "\udcff"})
    with pytest.raises(InputError, match="17 tags, at most 16"):
        build("a", tags={str(at): "" for at in range(17)})


def test_a_file_that_is_not_there_is_named() -> None:
    index = build_quilt([QuiltFile("b", BytesSource(b"x")), QuiltFile("d", BytesSource(b"y"))]).index
    for name in ("a", "c", "e", "", "B", "\udcff", "b\0"):
        with pytest.raises(InputError, match="has no file"):
            index.find(name)
    for number in (-1, 2, 1 << 32):
        with pytest.raises(InputError, match="has 2 files"):
            index.at(number)


@given(st.binary(min_size=32, max_size=32).map(BlobId), st.integers(0, (1 << 32) - 1))
def test_a_patch_id_names_a_quilt_and_a_number(blob_id: BlobId, number: int) -> None:
    text = build_patch_id(blob_id, number)
    assert (len(text), parse_patch_id(text)) == (50, (blob_id, number))


def test_a_patch_id_has_one_spelling() -> None:
    good = build_patch_id(BlobId(bytes(range(32))), 7)
    assert good == "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8BAAAABw"
    other_version = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8CAAAABw"
    for text in ("", good[:-1], good + "A", good[:-1] + "x", good[:-1] + "=", good[:-1] + "+", "ü" * 50, other_version):
        with pytest.raises(InputError, match="is not the ID of a file in a quilt"):
            parse_patch_id(text)


def test_control_characters_are_those_of_unicode() -> None:
    import unicodedata

    cc = {chr(at) for at in range(0x11_0000) if unicodedata.category(chr(at)) == "Cc"}
    assert {chr(at) for at in range(0x11_0000) if CONTROL.search(chr(at))} == cc
