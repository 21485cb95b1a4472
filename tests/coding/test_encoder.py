"""Threads and processes make the same slivers, in buffers that are reused and end with the encoder."""

import gc
import sys
from pathlib import Path
from random import Random

import pytest

from economics.geometry import Code
from p2pnode.coding import encoder as encoder_module
from p2pnode.coding.codec import Codec, EncodedSegment
from p2pnode.coding.encoder import SLOTS, Encoder, Slot, open_encoder
from tests.small import KERNEL, encode_blob

CODE = Code(7, 1000)
DATA = Random(1).randbytes(5 * 1000 + 300)
BLOB = encode_blob(CODE, DATA)


async def encode_all(encoder: Encoder, *, slots: set[int]) -> None:
    """Encode every segment, at most `SLOTS` at a time, and compare all of it with the codec's own work."""
    held: list[tuple[Slot, EncodedSegment]] = []
    for index, want in enumerate(BLOB.segments):
        assert encoder.has_free_slot is (len(held) < SLOTS)
        if not encoder.has_free_slot:
            encoder.release(held.pop(0)[0])
        slot = await encoder.encode(DATA[index * 1000 : index * 1000 + 1000])
        held.append((slot, want))
        slots.add(id(slot.memory))
        for kept, wanted in held:
            made = kept.segment
            assert made is not None
            assert (made.root, made.leaves, made.z, made.length) == (
                wanted.root,
                wanted.leaves,
                wanted.z,
                wanted.length,
            )
            assert made.matrix == wanted.matrix


@pytest.mark.parametrize(
    ("small", "workers"), [(True, True), (False, True), (True, False)], ids=["processes", "threads", "no workers"]
)
async def test_every_mode_makes_the_codec_s_slivers_in_a_few_buffers(
    monkeypatch: pytest.MonkeyPatch, small: bool, workers: bool
) -> None:
    if not small:
        monkeypatch.setattr(encoder_module, "PROCESS_SYMBOL_BYTES", 0)
    slots: set[int] = set()
    async with open_encoder(Codec(CODE, KERNEL), length=len(DATA), workers=workers) as encoder:
        assert (encoder._pool is not None) is (small and workers)
        await encode_all(encoder, slots=slots)
    assert len(slots) == len(encoder.slots) == SLOTS


async def test_one_segment_is_not_worth_a_process() -> None:
    async with open_encoder(Codec(CODE, KERNEL), length=1000) as encoder:
        assert encoder._pool is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="shared memory has a directory on Linux only")
async def test_shared_memory_ends_with_the_encoder_even_if_a_segment_is_still_held() -> None:
    async with open_encoder(Codec(CODE, KERNEL), length=len(DATA)) as encoder:
        names = {
            Path("/dev/shm") / slot.memory.name for slot in encoder.slots if not isinstance(slot.memory, bytearray)
        }
        assert {path.exists() for path in names} == {True}
        segment = (await encoder.encode(DATA[:1000])).segment
    assert {path.exists() for path in names} == {False}
    assert len(names) == SLOTS
    assert segment is not None
    del encoder
    gc.collect()
    assert segment.matrix == BLOB.segments[0].matrix
