"""Sealed blobs: the frozen bytes, any range alone, and nothing passed on that the key does not authenticate."""

import json
import tracemalloc
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt

from economics.errors import Rejected
from economics.geometry import BLOB_BYTES_MAX
from p2pnode.content.sealed import (
    FRAME_BYTES,
    FRONT,
    SEALED_FRAME_BYTES,
    SealedSource,
    SealedView,
    WrongKey,
    build_nonce,
    is_sealed,
    plain_length,
    sealed_length,
)
from p2pnode.content.sources import BytesSource
from p2pnode.content.views import read_all
from p2pnode.errors import InputError
from tests import reference
from tests.p2pnode.bytesview import BytesView

KEY = bytes(range(32))
VECTORS: list[dict[str, Any]] = json.loads((reference.VECTORS / "sealed.json").read_text())["blobs"]
PLAIN = reference.content(3 * FRAME_BYTES + 1_000)
"""Four frames, the last one short."""


def seal(plain: bytes, key: bytes = KEY) -> bytes:
    source = SealedSource(BytesSource(plain), key)
    return source.read(0, source.length)


SEALED = seal(PLAIN)
EDGES = sorted(
    {
        min(max(0, edge + step), len(SEALED))
        for edge in (0, 8, *(8 + index * SEALED_FRAME_BYTES for index in range(1, 4)), len(SEALED))
        for step in (-17, -1, 0, 1, 9)
    }
)


async def open_all(data: bytes, key: bytes = KEY, *, start: int = 0, stop: int | None = None) -> bytes:
    return await read_all(SealedView(BytesView(data), key), start=start, stop=stop, size_max=1 << 30)


# --- the bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["length"]))
async def test_a_blob_is_sealed_into_the_frozen_bytes_and_opens_again(vector: dict[str, Any]) -> None:
    plain, key = reference.content(vector["length"]), bytes.fromhex(vector["key"])
    data = seal(plain, key)
    assert len(data) == vector["sealed_length"]
    assert blake3(data).hexdigest() == vector.get(
        "blake3_of_sealed", blake3(bytes.fromhex(vector.get("sealed", ""))).hexdigest()
    )
    assert is_sealed(data)
    view = SealedView(BytesView(data), key)
    assert (view.length, await read_all(view, size_max=1 << 20)) == (len(plain), plain)


@dataclass
class CountedSource:
    """Bytes that note what is read of them."""

    data: bytes
    name: str = "counted"
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.data)

    def read(self, start: int, stop: int) -> bytes:
        self.reads.append((start, stop))
        return self.data[start:stop]


def test_any_part_of_a_sealed_source_is_that_part_of_the_whole() -> None:
    source = SealedSource(BytesSource(PLAIN), KEY)
    for start in EDGES:
        for stop in EDGES:
            if start <= stop:
                assert source.read(start, stop) == SEALED[start:stop], (start, stop)


def test_a_sealed_source_reads_only_the_frames_that_it_needs() -> None:
    plain = reference.content(40 * FRAME_BYTES)
    for frames, want in (
        ((5, 6), [(5, 6)]),
        ((15, 17), [(15, 16), (16, 17)]),
        ((3, 10), [(3, 4), (4, 8), (8, 10)]),
    ):
        source = CountedSource(plain)
        start, stop = (8 + index * SEALED_FRAME_BYTES for index in frames)
        SealedSource(source, KEY).read(start + 1, stop)
        assert source.reads == [(first * FRAME_BYTES, end * FRAME_BYTES) for first, end in want]
    source = CountedSource(plain)
    assert SealedSource(source, KEY).read(0, 8) == FRONT
    assert source.reads == []


@given(st.integers(0, BLOB_BYTES_MAX), st.integers(-40, 40))
def test_a_sealed_length_tells_the_plain_one_and_no_other_length_does(plain: int, step: int) -> None:
    for length in (plain, max(0, plain // FRAME_BYTES * FRAME_BYTES + step)):
        frames = max(1, -(-length // FRAME_BYTES))
        assert sealed_length(length) == 8 + length + 16 * frames
        assert plain_length(sealed_length(length)) == length


def test_lengths_that_no_sealed_blob_has_are_refused() -> None:
    possible = {sealed_length(length) for length in range(2 * FRAME_BYTES + 50)}
    for sealed in [*range(100), *range(SEALED_FRAME_BYTES - 50, SEALED_FRAME_BYTES + 50)]:
        if sealed in possible:
            assert sealed_length(plain_length(sealed)) == sealed
        else:
            with pytest.raises(Rejected, match=f"no sealed blob has {sealed} bytes"):
                plain_length(sealed)
    assert min(possible) == 24


def test_what_is_too_large_once_it_is_sealed_is_named() -> None:
    @dataclass(frozen=True)
    class Large:
        name: str = "large.bin"
        length: int = BLOB_BYTES_MAX

        def read(self, start: int, stop: int) -> bytes:
            raise AssertionError("nothing is read")

    with pytest.raises(InputError, match=r"large.bin, sealed, has \d+ bytes; a blob has at most"):
        SealedSource(Large(), KEY)


# --- ranges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 7, SEALED_FRAME_BYTES, 100_000, 5 << 20])
async def test_whatever_the_pieces_the_plain_bytes_come_in_order(piece: int) -> None:
    plain = PLAIN if piece > 7 else PLAIN[:300]
    view = SealedView(BytesView(seal(plain), piece), KEY)
    assert await read_all(view, size_max=1 << 20) == plain


async def test_any_range_opens_alone_and_asks_for_its_frames_only() -> None:
    edges = sorted({min(index * FRAME_BYTES + step, len(PLAIN)) for index in range(4) for step in (0, 1, 500, 65_535)})
    blob = BytesView(SEALED)
    view = SealedView(blob, KEY)
    await read_all(view, stop=1, size_max=1)
    assert blob.reads == [(0, 8 + SEALED_FRAME_BYTES)]
    for start in edges:
        for stop in edges:
            if start < stop:
                blob.reads.clear()
                assert await read_all(view, start=start, stop=stop, size_max=1 << 20) == PLAIN[start:stop]
                first, end = start // FRAME_BYTES, -(-stop // FRAME_BYTES)
                at = [first and 8 + first * SEALED_FRAME_BYTES, min(8 + end * SEALED_FRAME_BYTES, len(SEALED))]
                assert blob.reads == [tuple(at)]


async def test_nothing_is_read_for_an_empty_range_and_a_range_outside_is_refused() -> None:
    blob = BytesView(SEALED)
    view = SealedView(blob, KEY)
    pieces: list[memoryview] = []

    async def write(views: list[memoryview]) -> None:
        pieces.extend(views)

    for at in (0, 5, FRAME_BYTES, len(PLAIN)):
        await view.read(write, start=at, stop=at)
    assert (pieces, blob.reads) == ([], [])
    for start, stop in ((0, len(PLAIN) + 1), (2, 1), (-1, 5)):
        with pytest.raises(InputError, match="is not within"):
            await view.read(write, start=start, stop=stop)


async def test_whole_megabytes_pass_through_in_bounded_memory() -> None:
    """32 MiB that come in segments of 8 MiB: no more than a few batches are held besides the segment."""
    data = seal(bytes(32 << 20))
    view = SealedView(BytesView(data, 8 << 20), KEY)
    passed = 0

    async def count(views: list[memoryview]) -> None:
        nonlocal passed
        passed += sum(map(len, views))

    tracemalloc.start()
    try:
        await view.read(count)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert passed == 32 << 20
    assert peak < 30 << 20


# --- whoever lies ------------------------------------------------------------------------------------------------


async def passed_on(data: bytes, key: bytes = KEY) -> tuple[bytes, str]:
    """Return what a read passed on before it failed, and why."""
    got = bytearray()

    async def write(views: list[memoryview]) -> None:
        for view in views:
            got.extend(view)

    with pytest.raises(WrongKey) as caught:
        await SealedView(BytesView(data, 1_000), key).read(write)  # never the ends of two frames at once
    return bytes(got), str(caught.value)


def frame(index: int) -> slice:
    return slice(8 + index * SEALED_FRAME_BYTES, min(8 + (index + 1) * SEALED_FRAME_BYTES, len(SEALED)))


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


async def test_another_key_opens_nothing() -> None:
    for key in (bytes(32), bytes((KEY[0] ^ 1, *KEY[1:])), bytes((*KEY[:-1], KEY[-1] ^ 0x80))):
        assert await passed_on(SEALED, key) == (
            b"",
            "frame 0 of the sealed blob does not open: it is another blob's key, or damaged",
        )
    assert (await passed_on(seal(b""), bytes(32)))[0] == b""
    for size in (0, 31, 33):
        with pytest.raises(InputError, match=f"has 32 bytes, this one has {size}"):
            SealedView(BytesView(SEALED), bytes(size))
        with pytest.raises(InputError, match=f"has 32 bytes, this one has {size}"):
            SealedSource(BytesSource(b""), bytes(size))


@pytest.mark.parametrize("at", [8, 5_000, 8 + FRAME_BYTES, 8 + SEALED_FRAME_BYTES - 1])
async def test_a_flipped_bit_ends_the_read_before_its_frame(at: int) -> None:
    for index in range(4):
        place = min(at + index * SEALED_FRAME_BYTES, len(SEALED) - 1)
        got, why = await passed_on(flip(SEALED, place))
        assert (got, why.split(" of ")[0]) == (PLAIN[: index * FRAME_BYTES], f"frame {index}")


@pytest.mark.parametrize("at", range(8))
async def test_a_changed_front_is_refused_where_it_is_read(at: int) -> None:
    changed = flip(SEALED, at)
    assert not is_sealed(changed)
    got, why = await passed_on(changed)
    assert (got, why) == (
        b"",
        "the blob is not sealed: read it without a key"
        if at < 4
        else "the blob is sealed in another version of the format: a newer p2pnode may open it",
    )
    with pytest.raises(WrongKey):
        await open_all(changed, stop=1)


async def test_a_frame_that_was_sealed_under_another_front_opens_nowhere() -> None:
    front = b"p2px\2\0\0\0"
    frames = [PLAIN[at : at + FRAME_BYTES] for at in range(0, len(PLAIN), FRAME_BYTES)]
    sealed = [
        crypto_aead_xchacha20poly1305_ietf_encrypt(frame, front, build_nonce(index, is_last=index == 3), KEY)
        for index, frame in enumerate(frames)
    ]
    for start in range(0, len(PLAIN), FRAME_BYTES):
        with pytest.raises(WrongKey):
            await open_all(front + b"".join(sealed), start=start)


async def test_frames_that_changed_places_do_not_open() -> None:
    swapped = SEALED[:8] + SEALED[frame(0)] + SEALED[frame(2)] + SEALED[frame(1)] + SEALED[frame(3)]
    assert (await passed_on(swapped))[0] == PLAIN[:FRAME_BYTES]
    twice = SEALED[:8] + SEALED[frame(0)] * 3 + SEALED[frame(3)]
    assert (await passed_on(twice))[0] == PLAIN[:FRAME_BYTES]


async def test_a_cut_shows_where_the_end_is_read_and_not_before() -> None:
    """At a frame's border the length alone is right: then the last frame does not say that it is the last."""
    cut = SEALED[: frame(3).start]
    assert await passed_on(cut) == (
        PLAIN[: 2 * FRAME_BYTES],
        "frame 2 of the sealed blob does not open: it is another blob's key, or damaged",
    )
    assert await open_all(cut, stop=2 * FRAME_BYTES) == PLAIN[: 2 * FRAME_BYTES]
    assert (await passed_on(SEALED[:-1]))[0] == PLAIN[: 3 * FRAME_BYTES]
    for size in (0, 5, 8, 23, frame(3).start + 1, frame(3).start + 16):
        with pytest.raises(WrongKey, match="the blob is not sealed, or was cut: no sealed blob has"):
            SealedView(BytesView(SEALED[:size]), KEY)


async def test_what_was_appended_shows() -> None:
    whole = PLAIN[: 2 * FRAME_BYTES]
    extra = seal(whole) + SEALED[frame(2)]
    assert (await passed_on(extra))[0] == PLAIN[:FRAME_BYTES]
    assert (await passed_on(seal(whole) + SEALED[frame(0)]))[0] == PLAIN[:FRAME_BYTES]
    assert (await passed_on(seal(b"") + bytes(1)))[0] == b""


async def test_frames_of_another_blob_do_not_open() -> None:
    other = seal(PLAIN, bytes(32))
    assert (await passed_on(SEALED[: frame(1).start] + other[frame(1).start :]))[0] == PLAIN[:FRAME_BYTES]


async def test_an_empty_blob_checks_its_key() -> None:
    empty = seal(b"")
    assert (len(empty), await open_all(empty)) == (24, b"")
    view = SealedView(BytesView(empty), KEY)

    async def write(views: list[memoryview]) -> None:
        raise AssertionError("there is nothing to write")

    await view.read(write)
    for at in (8, 23):
        with pytest.raises(WrongKey):
            await SealedView(BytesView(flip(empty, at)), KEY).read(write)


async def test_a_read_that_is_cancelled_or_whose_sink_fails_ends_at_once() -> None:
    async def fail(views: list[memoryview]) -> None:
        raise InputError("the disk is full")

    with pytest.raises(InputError, match="the disk is full"):
        await SealedView(BytesView(SEALED), KEY).read(fail)

    async def hang(views: list[memoryview]) -> None:
        await trio.sleep_forever()

    with trio.move_on_after(0) as scope:
        await SealedView(BytesView(SEALED), KEY).read(hang)
    assert scope.cancelled_caught


def test_a_key_is_not_shown() -> None:
    shown = repr(SealedSource(BytesSource(b""), KEY)) + repr(SealedView(BytesView(seal(b"")), KEY))
    assert KEY.hex() not in shown
    assert repr(KEY) not in shown
