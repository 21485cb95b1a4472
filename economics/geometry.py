"""The arithmetic of the code (FORMATS.md 2): how many slivers, how large a symbol, which shard. Integers only."""

from collections.abc import Iterator
from dataclasses import dataclass

SHARDS_MIN = 4
"""Below four shards no shard may fail."""
SHARDS_MAX = 256
"""GF(2^8) has no more rows."""
SEGMENT_BYTES = 8 << 20
"""The largest segment, and the default: its matrix fits the second-level caches (scripts/bench)."""
SEGMENT_BYTES_MIN = 1
BLOB_BYTES_MAX = 1 << 40
"""Bounds the header: 131,072 segment roots of 32 bytes at 8 MiB a segment."""
HEADER_ROOTS_MAX = 131_072
STORAGE_UNIT_BYTES = 65_536
assert HEADER_ROOTS_MAX * SEGMENT_BYTES >= BLOB_BYTES_MAX


def faulty_max(n: int) -> int:
    """Return f = floor((n - 1) / 3): as many of n shards may be lost or lie."""
    return (n - 1) // 3


def quorum(n: int) -> int:
    """Return q = n - f: any two sets of this many shards share at least one correct shard."""
    return n - faulty_max(n)


@dataclass(frozen=True, slots=True)
class Code:
    """The two-dimensional code of one network: P rows x S columns of symbols, expanded to n x n."""

    n: int
    segment_bytes: int = SEGMENT_BYTES

    def __post_init__(self) -> None:
        assert SHARDS_MIN <= self.n <= SHARDS_MAX
        assert SEGMENT_BYTES_MIN <= self.segment_bytes <= SEGMENT_BYTES

    @property
    def f(self) -> int:
        return faulty_max(self.n)

    @property
    def rows(self) -> int:
        """P = n - 2f: as many primary slivers make the segment."""
        return self.n - 2 * self.f

    @property
    def columns(self) -> int:
        """S = n - f: as many secondary slivers make the segment."""
        return self.n - self.f

    def symbol_bytes(self, length: int) -> int:
        """Return z for a segment of `length` bytes."""
        return max(1, -(-length // (self.rows * self.columns)))

    def segment_count(self, length: int) -> int:
        return max(1, -(-length // self.segment_bytes))

    def segment_length(self, length: int, index: int) -> int:
        """Return the bytes of segment `index` of a blob of `length` bytes: full, but for the last."""
        assert 0 <= index < self.segment_count(length)
        return min(self.segment_bytes, length - index * self.segment_bytes)

    def segment_lengths(self, length: int) -> Iterator[int]:
        return (self.segment_length(length, index) for index in range(self.segment_count(length)))

    def shard_of_pair(self, pair: int, root: bytes) -> int:
        return (pair + int.from_bytes(root, "big")) % self.n

    def pair_of_shard(self, shard: int, root: bytes) -> int:
        return (shard - int.from_bytes(root, "big")) % self.n

    def pair_bytes(self, z: int) -> int:
        """Return the bytes of one primary and one secondary sliver."""
        return (self.rows + self.columns) * z

    def encoded_bytes(self, length: int) -> int:
        """Return what a blob of `length` bytes takes of the network, with its metadata, before rounding to units."""
        full, rest = divmod(length, self.segment_bytes)
        held = full * self._encoded_segment(self.segment_bytes)
        return held + (self._encoded_segment(rest) if rest or not full else 0)

    def _encoded_segment(self, length: int) -> int:
        return self.n * (self.pair_bytes(self.symbol_bytes(length)) + 128 * self.n + 32)

    def encoded_units(self, length: int) -> int:
        """Return `encoded_bytes` in units of 64 KiB, rounded up once."""
        return -(-self.encoded_bytes(length) // STORAGE_UNIT_BYTES)


@dataclass(frozen=True, slots=True)
class RowSpan:
    """Symbols `first` to `first + count - 1` of systematic primary sliver `row`."""

    row: int
    first: int
    count: int


def row_spans(code: Code, *, segment_length: int, start: int, stop: int) -> list[RowSpan]:
    """Return the systematic symbols that hold bytes [start, stop) of a segment, row by row; none for an empty range."""
    assert 0 <= start <= stop <= segment_length
    if start == stop:
        return []
    z = code.symbol_bytes(segment_length)
    first, last = start // z, (stop - 1) // z
    spans = []
    for row in range(first // code.columns, last // code.columns + 1):
        low = max(first, row * code.columns)
        high = min(last, (row + 1) * code.columns - 1)
        spans.append(RowSpan(row, low - row * code.columns, high - low + 1))
    return spans
