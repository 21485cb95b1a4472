"""CPU-seconds per GiB of blob for each stage of a store, beside its floor."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from economics.blob import leaf
from economics.crypto import Digest, Level
from economics.geometry import SEGMENT_BYTES, Code
from p2pnode.coding.codec import Codec, EncodedSegment, Kind
from p2pnode.coding.kernel import load_kernel
from p2pnode.slivers.sliverfile import Pair
from p2pnode.slivers.store import SliverStore
from scripts.benchmarks.timing import GIB, Row, random_bytes, seconds_of

DISK_ROUNDS = 8
"""The best counts: a page that the page cache has not had before costs a virtual machine several times as much."""


def bench_stages(n: int, directory: Path) -> list[Row]:
    """CPU-seconds per GiB of blob for each stage of a store on n nodes with a shard each, beside its floor."""
    code = Code(n)
    kernel = load_kernel()
    codec = Codec(code, kernel)
    segment = random_bytes(SEGMENT_BYTES)
    scale = GIB / len(segment)
    buffer = memoryview(bytearray(codec.matrix_bytes(len(segment))))
    encoded = codec.encode(segment, buffer)
    z = encoded.z
    pairs = [(encoded.primary(pair), b"".join(encoded.secondary(n - 1 - pair))) for pair in range(n)]
    sliver_bytes = sum(len(primary) + len(secondary) for primary, secondary in pairs)

    def cpu(work: Callable[[], object]) -> float:
        return seconds_of(work)[1] * scale

    hashed = n * n * z
    whole = memoryview(bytearray(hashed))
    hash_floor = cpu(lambda: blake3(whole, key=Level.LEAF.value).digest())
    hash_leaves = cpu(lambda: [leaf(whole[at : at + z]) for at in range(0, hashed, z)])
    encode = cpu(lambda: codec.encode(segment, buffer))
    copy_floor = cpu(lambda: bytes(whole[: len(segment)]))

    def expand() -> None:
        for pair, (primary, secondary) in enumerate(pairs):
            codec.check_sliver(encoded.metadata, Kind.PRIMARY, pair, primary, z)
            codec.check_sliver(encoded.metadata, Kind.SECONDARY, n - 1 - pair, secondary, z)

    cipher = ChaCha20Poly1305(bytes(32))
    message = bytes(65_519)
    sealed = cipher.encrypt(bytes(12), message, None)
    count = sliver_bytes // len(message)
    seal = cpu(lambda: [cipher.encrypt(bytes(12), message, None) for _ in range(count)])
    unseal = cpu(lambda: [cipher.decrypt(bytes(12), sealed, None) for _ in range(count)])
    rounds = [disk_seconds(codec, encoded, pairs, directory / str(number)) for number in range(DISK_ROUNDS)]
    disk, disk_floor = (min(seconds) for seconds in zip(*rounds, strict=True))
    return [
        stage("encode: arithmetic and copies", encode - hash_leaves, copy_floor, "memcpy"),
        stage("encode: hash of n*n leaves", hash_leaves, hash_floor, "one hash of as much"),
        stage("expand at all nodes", cpu(expand), 2 * hash_floor, "one hash of as much"),
        stage("secure: seal and open", seal + unseal, seal + unseal, "it is the cipher alone"),
        stage("disk at all nodes", disk * scale, disk_floor * scale, "write and fsync"),
    ]


def stage(name: str, seconds: float, floor: float, floor_is: str) -> Row:
    return {"stage": name, "CPU-s/GiB": seconds, "floor": floor, "floor is": floor_is}


def disk_seconds(
    codec: Codec, encoded: EncodedSegment, pairs: list[tuple[memoryview, bytes]], directory: Path
) -> tuple[float, float]:
    """Return the CPU seconds to store one segment's slivers on n stores, and to write as many bytes plainly."""
    n = codec.code.n
    stores = [
        SliverStore(directory / f"{shard}", codec=codec, chain_id=Digest(bytes(32)), quota_bytes=GIB)
        for shard in range(n)
    ]
    begin = time.process_time()
    for shard, store in enumerate(stores):
        pair = codec.code.pair_of_shard(shard, encoded.root)
        primary, secondary = pairs[pair]
        leaves = [encoded.leaves_of(Kind.PRIMARY, pair), encoded.leaves_of(Kind.SECONDARY, n - 1 - pair)]
        store.put_segment(encoded.metadata, encoded.z, [Pair(shard, primary, memoryview(secondary), *leaves)])
    taken = time.process_time() - begin
    begin = time.process_time()
    for number, pair_parts in enumerate(pairs):
        handle = os.open(directory / f"plain{number}", os.O_WRONLY | os.O_CREAT)
        os.writev(handle, pair_parts)
        os.fsync(handle)
        os.close(handle)
    plain = time.process_time() - begin
    shutil.rmtree(directory)
    return taken, plain
