"""Encodes segments off the trio thread into a few reused buffers: in threads, or in processes where symbols are small.

Memory is bounded by the buffers, whatever the blob's size. A leaf of a few KiB is hashed with Python's lock held, so
threads gain nothing there and the trio thread would starve.
"""

import multiprocessing
import signal
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import lru_cache, partial
from multiprocessing.shared_memory import SharedMemory

import trio

from economics.geometry import Code
from p2pnode.coding.codec import Codec, EncodedSegment
from p2pnode.coding.kernel import load_kernel

SLOTS = 3
"""Encoded segments in memory at once: one is being made, one is on its way, one waits for the slower nodes."""
PROCESS_SYMBOL_BYTES = 16_384
"""Below this symbol size hashing holds Python's lock for most of its time (scripts/bench)."""
PROCESS_SEGMENTS_MIN = 2
"""A worker process takes 0.3 s to start: not worth it for one segment."""
WORKERS = 2
IGNORE_CTRL_C = (signal.SIGINT, signal.SIG_IGN)
"""A terminal sends it to the workers too; the client ends them."""


class _Shared(SharedMemory):
    """Shared memory that may be let go while views of it are left, as after a failed upload: they unmap it."""

    def __del__(self) -> None:
        with suppress(BufferError):
            super().__del__()


class Slot:
    """One buffer and the segment that is encoded in it; `Encoder.release` makes it free again."""

    def __init__(self, memory: SharedMemory | bytearray, *, segment_bytes: int) -> None:
        self.memory = memory
        self.segment_bytes = segment_bytes
        self.segment: EncodedSegment | None = None

    @property
    def view(self) -> memoryview:
        return _view(self.memory) if isinstance(self.memory, SharedMemory) else memoryview(self.memory)


class Encoder:
    """A pool of `SLOTS` buffers for segments of at most `segment_bytes`."""

    def __init__(self, codec: Codec, *, segment_bytes: int, pool: ProcessPoolExecutor | None) -> None:
        self.codec = codec
        self._pool = pool
        size = codec.matrix_bytes(segment_bytes)
        self.slots = [
            Slot(
                bytearray(size) if pool is None else _Shared(create=True, size=size + segment_bytes),
                segment_bytes=segment_bytes,
            )
            for _ in range(SLOTS)
        ]
        self._free = list(self.slots)

    @property
    def has_free_slot(self) -> bool:
        return bool(self._free)

    async def encode(self, data: bytes) -> Slot:
        """Encode one segment into a free slot; there must be one."""
        slot = self._free.pop()
        if isinstance(slot.memory, SharedMemory):
            slot.segment = await self._encode_in_process(slot, slot.memory, data)
        else:
            slot.segment = await trio.to_thread.run_sync(self.codec.encode, data, slot.view)
        return slot

    async def _encode_in_process(self, slot: Slot, memory: SharedMemory, data: bytes) -> EncodedSegment:
        assert self._pool is not None
        code = self.codec.code
        matrix_bytes = len(slot.view) - slot.segment_bytes
        slot.view[matrix_bytes : matrix_bytes + len(data)] = data
        future = self._pool.submit(
            encode_shared, memory.name, code, self.codec.kernel.name, start=matrix_bytes, length=len(data)
        )
        leaves = await trio.to_thread.run_sync(future.result)
        return EncodedSegment.build(code, slot.view, length=len(data), leaves=leaves)

    def release(self, slot: Slot) -> None:
        """Take a slot back; nobody may use its segment from here on."""
        slot.segment = None
        self._free.append(slot)

    def close(self) -> None:
        for slot in self.slots:
            slot.segment = None
            if isinstance(slot.memory, SharedMemory):
                slot.memory.unlink()


def encode_shared(name: str, code: Code, kernel: str, *, start: int, length: int) -> bytes:
    """Encode the segment at `start` of a shared memory into its front and return the n x n leaves, joined."""
    view = _view(_attach(name))
    return _codec(code, kernel).encode(view[start : start + length], view).leaves


def _view(memory: SharedMemory) -> memoryview:
    assert memory.buf is not None  # only a closed one has none
    return memory.buf


@lru_cache(maxsize=SLOTS)
def _attach(name: str) -> SharedMemory:
    return SharedMemory(name=name)


@lru_cache(maxsize=1)
def _codec(code: Code, kernel: str) -> Codec:
    return Codec(code, load_kernel("zfec" if kernel.startswith("zfec") else "auto"))


@asynccontextmanager
async def open_encoder(codec: Codec, *, length: int, workers: bool = True) -> AsyncIterator[Encoder]:
    """Open an encoder that fits a blob of `length` bytes; its buffers and workers end with the block.

    Without `workers` it uses threads for any symbol size.
    """
    code = codec.code
    segment_bytes = code.segment_length(length, 0)
    small = code.symbol_bytes(segment_bytes) < PROCESS_SYMBOL_BYTES
    if not workers or not small or code.segment_count(length) < PROCESS_SEGMENTS_MIN:
        encoder = Encoder(codec, segment_bytes=segment_bytes, pool=None)
        yield encoder
        return
    pool = ProcessPoolExecutor(
        WORKERS, mp_context=multiprocessing.get_context("spawn"), initializer=signal.signal, initargs=IGNORE_CTRL_C
    )
    encoder = Encoder(codec, segment_bytes=segment_bytes, pool=pool)
    try:
        yield encoder
    finally:
        encoder.close()
        await trio.to_thread.run_sync(partial(pool.shutdown, wait=True, cancel_futures=True))
