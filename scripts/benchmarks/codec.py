"""Encode and decode against plain zfec doing the same two dimensions and hashing."""

from collections.abc import Sequence
from functools import partial

import zfec

from economics.blob import SegmentMetadata, join_leaves, leaf, sliver_hash
from economics.geometry import SEGMENT_BYTES, Code
from p2pnode.coding.codec import Codec
from p2pnode.coding.kernel import Kernel, load_kernel
from scripts.benchmarks.timing import MIB, Row, random_bytes, seconds_of


def encode_plainly(code: Code, segment: bytes) -> bytes:
    """Encode with zfec alone as its own documentation does it: blocks in, blocks out; same dimensions, same hashes."""
    z, n = code.symbol_bytes(len(segment)), code.n
    padded = segment.ljust(code.rows * code.columns * z, b"\0")
    rows = [padded[at : at + code.columns * z] for at in range(0, len(padded), code.columns * z)]
    rows = list(zfec.Encoder(code.rows, n).encode(rows))
    along = zfec.Encoder(code.columns, n)
    matrix = [along.encode([row[at : at + z] for at in range(0, len(row), z)]) for row in rows]
    leaves = [[leaf(symbol) for symbol in row] for row in matrix]
    primary = [sliver_hash(join_leaves(row)) for row in leaves]
    secondary = [sliver_hash(join_leaves(column)) for column in zip(*leaves, strict=True)]
    return SegmentMetadata.build(primary=primary, secondary=secondary).root


def bench_codec(shards: Sequence[int], sizes: Sequence[int]) -> list[Row]:
    """Encode and decode rates for each n and blob size, with the kernel, with zfec behind our codec, and plainly."""
    rows: list[Row] = []
    kernels = [load_kernel("zfec")]
    if load_kernel().name != kernels[0].name:
        kernels.insert(0, load_kernel())
    for n in shards:
        for size in sizes:
            # The rate of zfec does not depend on the size, and 128 MiB would take it minutes.
            rows += [bench_kernel(n, size, kernel) for kernel in kernels[: 1 if size > 16 * MIB else None]]
        rows.append(bench_plain(n))
    return rows


def bench_kernel(n: int, size: int, kernel: Kernel) -> Row:
    codec = Codec(Code(n), kernel)
    blob = random_bytes(size)
    segments = [blob[at : at + SEGMENT_BYTES] for at in range(0, size, SEGMENT_BYTES)]
    buffer = memoryview(bytearray(codec.matrix_bytes(len(segments[0]))))
    encode_s, _ = seconds_of(lambda: [codec.encode(part, buffer) for part in segments])
    decode_s = seconds_of_decode(codec, segments[0], buffer) * len(segments)
    rates = {"encode MB/s": size / encode_s / 1e6, "decode MB/s, f primaries lost": size / decode_s / 1e6}
    return {"n": n, "MiB": size // MIB, "kernel": kernel.name, **rates}


def bench_plain(n: int) -> Row:
    segment = random_bytes(SEGMENT_BYTES)
    plain_s, _ = seconds_of(lambda: encode_plainly(Code(n), segment), repeats=1)
    return {"n": n, "MiB": 8, "kernel": "plain zfec", "encode MB/s": len(segment) / plain_s / 1e6}


def seconds_of_decode(codec: Codec, segment: bytes, buffer: memoryview) -> float:
    """Return the seconds to get a segment from the last P primary slivers, each decoded row expanded and compared."""
    code = codec.code
    encoded = codec.encode(segment, buffer)
    slivers = {row: bytes(encoded.primary(row)) for row in range(code.f, code.f + code.rows)}
    decode = partial(codec.decode_from_primary, encoded.metadata, slivers, len(segment))
    assert b"".join(decode()) == segment
    return seconds_of(decode)[0]
