"""However many clients take their time, no more waits for each than a piece."""

import tracemalloc
from functools import partial
from pathlib import Path
from random import Random
from typing import cast

import pytest
import trio

from p2pnode.clients.download import Reader
from p2pnode.gateway import segments as module
from p2pnode.gateway.segments import CachedView, Segments
from p2pnode.peering.cache import SegmentCache
from tests.gateway.shelf import Shelf
from tests.small import encode_blob, make_codec, make_genesis

GENESIS = make_genesis(segment_bytes=256 << 10)
CODEC = make_codec(GENESIS)
SEGMENTS = 32
PIECE_BYTES = 4_096
HOT_BYTES = 512 << 10
HELD_BYTES_MAX = HOT_BYTES + (2 << 20)
"""What is hot, pieces, and tasks: a quarter of the blob's 8 MiB."""


class Stuck:
    """Clients of which none ever takes what it is given."""

    def __init__(self) -> None:
        self.waiting = 0
        self._come = trio.Condition()

    async def write(self, views: list[memoryview]) -> None:
        async with self._come:
            self.waiting += 1
            self._come.notify_all()
        await trio.sleep_forever()

    async def wait_for(self, count: int) -> None:
        async with self._come:
            while self.waiting < count:
                await self._come.wait()


async def take(views: list[memoryview]) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("strict", "is_hot", "size"),
    [(True, False, 256 << 10), (False, True, 256 << 10), (False, True, 1_000), (False, False, 1_000)],
    ids=["checked strictly", "whole, from memory", "parts, from memory", "parts, from the disk"],
)
async def test_who_takes_nothing_holds_a_piece_and_no_segment(
    strict: bool, is_hot: bool, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", PIECE_BYTES)
    monkeypatch.setattr(module, "HOT_BYTES_MAX", HOT_BYTES)
    blob = encode_blob(GENESIS.code, Random(1).randbytes(SEGMENTS * GENESIS.code.segment_bytes))
    cache = SegmentCache(tmp_path, CODEC)
    blob_id = blob.header.blob_id
    for index in range(SEGMENTS):
        at = index * GENESIS.code.segment_bytes
        assert cache.put(blob_id, index, [blob.data[at : at + GENESIS.code.segment_bytes]])
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            segments = Segments(cast(Reader, Shelf()), cache, nursery)
            view, stuck = CachedView(segments, blob.header, strict), Stuck()
            tracemalloc.start()
            try:
                for index in range(SEGMENTS):
                    at = index * GENESIS.code.segment_bytes
                    if is_hot:
                        await CachedView(segments, blob.header).read(take, start=at, stop=at + 1)
                    nursery.start_soon(partial(view.read, stuck.write, start=at, stop=at + size))
                    await stuck.wait_for(index + 1)
                held, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            nursery.cancel_scope.cancel()
    assert held < HELD_BYTES_MAX
