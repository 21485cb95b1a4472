"""Segments to slivers and back, and what is checked on the way (FORMATS.md 2, 3). Pure: no trio, no files, no peers.

Everything here is CPU work: it runs in worker threads or processes, never on the trio thread. A `Codec` may be shared
by threads. Who fetched or sent the bytes decides elsewhere what follows from a `Rejected`.

Before a node signs for a blob: `Header.decode`; for each segment `SegmentMetadata.decode` and `check_symbol_bytes`; for
each sliver that it owes `check_sliver` when it comes in, and `check_padding` as soon as the blob's length is known.
Before a reader accepts a segment: `check_symbols` for each sliver and its leaves, then `decode_from_primary` or
`decode_from_secondary`. Of a range: `check_symbols` for each of `row_spans`, and `check_padding` for an end of a row.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from blake3 import blake3

from economics.blob import Leaves, Root, SegmentMetadata, join_leaves, sliver_hash
from economics.crypto import DIGEST_BYTES, Digest, Level
from economics.errors import Reason, Rejected
from economics.geometry import Code
from p2pnode.coding.kernel import Blocks, Buffer, Kernel


class Kind(IntEnum):
    """The two directions of the matrix; the numbers are those of the storage protocol (FORMATS.md 7)."""

    PRIMARY = 0
    """A row: S symbols, of the code S of n."""
    SECONDARY = 1
    """A column: P symbols, of the code P of n."""

    @property
    def other(self) -> "Kind":
        return Kind(1 - self)


def hash_symbols(symbols: Buffer, z: int) -> bytes:
    """Return the leaves of adjacent symbols of z bytes, joined: 1 us for each, and 0.3 ms for each MiB."""
    view = memoryview(symbols)
    hasher = blake3(key=Level.LEAF.value)
    update, finish, reset = hasher.update, hasher.digest, hasher.reset
    digests = []
    for start in range(0, len(view), z):
        update(view[start : start + z])
        digests.append(finish())
        reset()  # one hasher for all: half the cost of a new one for short symbols
    return b"".join(digests)


def commitment(metadata: SegmentMetadata, kind: Kind, index: int) -> Digest:
    """Return the hash that the segment root binds this sliver to."""
    return metadata.primary(index) if kind is Kind.PRIMARY else metadata.secondary(index)


@dataclass(frozen=True, slots=True)
class EncodedSegment:
    """One segment's expanded matrix with its leaves: slivers are views of the caller's buffer, nothing is copied.

    It ends when the buffer is used again. Another process that maps the same buffer makes an equal one with `build`.
    """

    code: Code
    matrix: memoryview
    """n x n symbols of z bytes: [row][column][z]."""
    z: int
    length: int
    leaves: bytes
    """n x n leaf hashes, in the matrix's order."""
    metadata: SegmentMetadata

    @classmethod
    def build(cls, code: Code, buffer: memoryview, *, length: int, leaves: bytes) -> "EncodedSegment":
        """Return the segment whose matrix fills the front of `buffer` (1 ms for n = 100)."""
        n, z = code.n, code.symbol_bytes(length)
        assert len(leaves) == n * n * DIGEST_BYTES
        hashes = [leaves[at : at + DIGEST_BYTES] for at in range(0, len(leaves), DIGEST_BYTES)]
        rows = [join_leaves(hashes[row * n : row * n + n]) for row in range(n)]
        columns = [join_leaves(hashes[column::n]) for column in range(n)]
        metadata = SegmentMetadata.build(
            primary=[sliver_hash(row) for row in rows], secondary=[sliver_hash(column) for column in columns]
        )
        return cls(code, memoryview(buffer)[: n * n * z], z, length, leaves, metadata)

    @property
    def root(self) -> Root:
        return self.metadata.root

    def primary(self, index: int) -> memoryview:
        """Return primary sliver `index`: S*z adjacent bytes of the matrix."""
        start = index * self.code.n * self.z
        return self.matrix[start : start + self.code.columns * self.z]

    def secondary(self, index: int) -> list[memoryview]:
        """Return secondary sliver `index` as its P symbols; joined they are the sliver."""
        stride = self.code.n * self.z
        starts = range(index * self.z, index * self.z + self.code.rows * stride, stride)
        return [self.matrix[start : start + self.z] for start in starts]

    def leaves_of(self, kind: Kind, index: int) -> Leaves:
        n = self.code.n
        if kind is Kind.PRIMARY:
            return Leaves(self.leaves[index * n * DIGEST_BYTES : (index + 1) * n * DIGEST_BYTES])
        starts = range(index * DIGEST_BYTES, len(self.leaves), n * DIGEST_BYTES)
        return join_leaves(self.leaves[start : start + DIGEST_BYTES] for start in starts)


class Codec:
    """One network's code on one kernel. Holds scratch of at most n - P symbols for each thread that uses it."""

    def __init__(self, code: Code, kernel: Kernel) -> None:
        self.code = code
        self.kernel = kernel
        self._local = threading.local()

    # Shapes

    def symbols(self, kind: Kind) -> int:
        """Return how many symbols make a sliver, which is also how many crossing slivers recover it: S or P."""
        return self.code.columns if kind is Kind.PRIMARY else self.code.rows

    def sliver_bytes(self, kind: Kind, z: int) -> int:
        return self.symbols(kind) * z

    def matrix_bytes(self, length: int) -> int:
        """Return the size of the buffer in which a segment of `length` bytes is encoded: n * n * z."""
        return self.code.n**2 * self.code.symbol_bytes(length)

    def is_systematic(self, kind: Kind, index: int) -> bool:
        """Return whether this sliver holds the segment's own bytes: primary 0..P-1, secondary 0..S-1."""
        return index < self.symbols(kind.other)

    def padding_start(self, kind: Kind, index: int, length: int) -> int:
        """Return from which byte on this systematic sliver holds only padding: in both kinds, padding is its end."""
        assert self.is_systematic(kind, index)
        z, columns = self.code.symbol_bytes(length), self.code.columns
        if kind is Kind.PRIMARY:
            return min(max(length - index * columns * z, 0), columns * z)
        whole = min(max((length // z - index - 1) // columns + 1, 0), self.code.rows)
        if whole == self.code.rows:
            return whole * z
        return whole * z + min(max(length - (whole * columns + index) * z, 0), z)

    # Encoding

    def encode(self, segment: Buffer, buffer: memoryview) -> EncodedSegment:
        """Expand a segment into the front of `buffer`, which may be shared memory, and hash every symbol.

        An 8 MiB segment takes 13 ms for n = 10 and 80 ms for n = 100 on ISA-L, on one core. What the buffer held does
        not matter.
        """
        n, length = self.code.n, len(segment)
        assert length <= self.code.rows * self.code.columns * self.code.symbol_bytes(self.code.segment_bytes)
        z = self.code.symbol_bytes(length)
        row_bytes, sliver_bytes = n * z, self.code.columns * z
        matrix = memoryview(buffer)[: n * row_bytes]
        self._lay_out(memoryview(segment), matrix, row_bytes=row_bytes, sliver_bytes=sliver_bytes)
        data = Blocks(matrix, sliver_bytes, row_bytes)
        self.kernel.extend(self.code.rows, n, data, Blocks(matrix, sliver_bytes, row_bytes, self.code.rows * row_bytes))
        leaves = []
        for start in range(0, n * row_bytes, row_bytes):
            row = matrix[start : start + row_bytes]
            self.kernel.extend(self.code.columns, n, Blocks(row, z, z), Blocks(row, z, z, sliver_bytes))
            leaves.append(hash_symbols(row, z))  # while the row is in the cache
        return EncodedSegment.build(self.code, matrix, length=length, leaves=b"".join(leaves))

    def _lay_out(self, segment: memoryview, matrix: memoryview, *, row_bytes: int, sliver_bytes: int) -> None:
        """Copy the segment into the systematic rows and zero their rest."""
        for row in range(self.code.rows):
            part = segment[row * sliver_bytes : (row + 1) * sliver_bytes]
            start, end = row * row_bytes, row * row_bytes + sliver_bytes
            matrix[start : start + len(part)] = part
            matrix[start + len(part) : end] = bytes(sliver_bytes - len(part))

    def expand(self, kind: Kind, sliver: Buffer, z: int) -> Leaves:
        """Return the n leaves of the expanded sliver: extend S (or P) symbols of z bytes to n and hash all of them."""
        k, n = self.symbols(kind), self.code.n
        assert len(sliver) == k * z
        parity = self._scratch((n - k) * z)
        self.kernel.extend(k, n, Blocks(sliver, z, z), Blocks(parity, z, z))
        return Leaves(hash_symbols(sliver, z) + hash_symbols(parity, z))

    def _scratch(self, size: int) -> memoryview:
        """Return this thread's scratch bytes: new memory for each sliver would cost a page fault for each 4 KiB."""
        held: bytearray | None = getattr(self._local, "scratch", None)
        if held is None or len(held) < size:
            held = self._local.scratch = bytearray(size)
        return memoryview(held)[:size]

    def symbol(self, kind: Kind, sliver: Buffer, crossing: int, z: int) -> bytes:
        """Return symbol `crossing` of the expanded sliver: what a helper sends to whoever lost sliver `crossing`.

        Raises `Rejected(WRONG_INDEX)` for a crossing outside the code.
        """
        k, n = self.symbols(kind), self.code.n
        _check_index(crossing, n)
        assert len(sliver) == k * z
        if crossing < k:
            return bytes(memoryview(sliver)[crossing * z : crossing * z + z])
        made = bytearray(z)
        self.kernel.extend(k, n, Blocks(sliver, z, z), Blocks(made, z, z), rows=range(crossing, crossing + 1))
        return bytes(made)

    # Checks

    def check_sliver(self, metadata: SegmentMetadata, kind: Kind, index: int, sliver: Buffer, z: int) -> Leaves:
        """Return the leaves of a sliver that re-expands to its commitment: what a node does before it keeps one.

        Raises `Rejected`: MALFORMED for another size, HASH_MISMATCH for other bytes, WRONG_INDEX.
        """
        _check_index(index, self.code.n)
        if not 1 <= z <= self.code.symbol_bytes(self.code.segment_bytes) or len(sliver) != self.sliver_bytes(kind, z):
            raise Rejected(
                Reason.MALFORMED, f"a {kind.name.lower()} sliver is {self.symbols(kind)} symbols of one size"
            )
        leaves = self.expand(kind, sliver, z)
        if sliver_hash(leaves) != commitment(metadata, kind, index):
            raise Rejected(Reason.HASH_MISMATCH, f"{kind.name.lower()} sliver {index} does not expand to its hash")
        return leaves

    def check_symbol_bytes(self, z: int, length: int) -> None:
        """Raise `Rejected(MALFORMED)` unless slivers of symbols of z bytes are those of a segment of this length."""
        if z != self.code.symbol_bytes(length):
            raise Rejected(Reason.MALFORMED, f"a segment of {length} bytes has no symbols of {z} bytes")

    def check_leaves(self, metadata: SegmentMetadata, kind: Kind, index: int, leaves: bytes) -> None:
        """Raise `Rejected` unless these are the leaves that the segment root binds this sliver to."""
        _check_index(index, self.code.n)
        if len(leaves) != self.code.n * DIGEST_BYTES:
            raise Rejected(Reason.MALFORMED, "a sliver has n leaves")
        if sliver_hash(Leaves(leaves)) != commitment(metadata, kind, index):
            raise Rejected(Reason.HASH_MISMATCH, f"not the leaves of {kind.name.lower()} sliver {index}")

    def check_symbols(
        self,
        metadata: SegmentMetadata,
        kind: Kind,
        index: int,
        leaves: bytes,
        *,
        first: int,
        symbols: Buffer,
        z: int,
    ) -> None:
        """Check adjacent symbols of a sliver from `first` on by its leaf list, without arithmetic: a reader's check.

        Raises `Rejected`: WRONG_INDEX for symbols outside the code, MALFORMED for sizes, HASH_MISMATCH for leaves that
        are not the sliver's or symbols that are not the leaves'.
        """
        self.check_leaves(metadata, kind, index, leaves)
        count, rest = divmod(len(symbols), z)
        if rest or not count:
            raise Rejected(Reason.MALFORMED, f"not whole symbols of {z} bytes")
        _check_index(first, self.code.n)
        _check_index(first + count - 1, self.code.n)
        if hash_symbols(symbols, z) != leaves[first * DIGEST_BYTES : (first + count) * DIGEST_BYTES]:
            raise Rejected(
                Reason.HASH_MISMATCH, f"symbols of {kind.name.lower()} sliver {index} do not match its leaves"
            )

    def check_padding(self, kind: Kind, index: int, tail: Buffer, length: int) -> None:
        """Raise `Rejected(BAD_PADDING)` if the end of a systematic sliver has a byte that is neither data nor zero.

        `tail` is the whole sliver or any end of it; from `padding_start` on is enough. Parity slivers pass.
        """
        if not self.is_systematic(kind, index):
            return
        size = self.sliver_bytes(kind, self.code.symbol_bytes(length))
        if len(tail) > size:
            raise Rejected(Reason.MALFORMED, "the sliver is longer than its segment's")
        start = max(self.padding_start(kind, index, length) - (size - len(tail)), 0)
        if any(memoryview(tail)[start:]):
            raise Rejected(Reason.BAD_PADDING, f"{kind.name.lower()} sliver {index} has bytes behind the segment's end")

    # Decoding

    def decode_from_primary(
        self, metadata: SegmentMetadata, slivers: Mapping[int, Buffer], length: int
    ) -> list[memoryview]:
        """Return the segment as P views, to be written one after another, from any P or more primary slivers.

        The slivers are checked: each by `check_symbols` or `check_sliver`. With primary 0..P-1 there is no arithmetic.
        Any other is decoded, and accepted only if it expands to its commitment, so all readers get the same bytes.
        Raises `Rejected`: INCONSISTENT if one does not, which is the writer's doing (`find_inconsistency` proves it),
        BAD_PADDING, INCOMPLETE for fewer than P slivers, MALFORMED for a size.
        """
        z = self.code.symbol_bytes(length)
        rows = self.complete(Kind.SECONDARY, slivers, size=self.code.columns * z)
        lost = [row for row in range(self.code.rows) if row not in slivers]
        return self._accept(metadata, rows, unproven=lost, length=length)

    def decode_from_secondary(
        self, metadata: SegmentMetadata, slivers: Mapping[int, Buffer], length: int
    ) -> list[memoryview]:
        """Return the segment as P views from any S or more checked secondary slivers; as `decode_from_primary`.

        Every row is assembled, so every row is expanded.
        """
        z = self.code.symbol_bytes(length)
        columns = self.complete(Kind.PRIMARY, slivers, size=self.code.rows * z)
        rows = [b"".join([column[at : at + z] for column in columns]) for at in range(0, self.code.rows * z, z)]
        return self._accept(metadata, [memoryview(row) for row in rows], unproven=range(len(rows)), length=length)

    def _accept(
        self, metadata: SegmentMetadata, rows: Sequence[memoryview], *, unproven: Iterable[int], length: int
    ) -> list[memoryview]:
        """Expand the rows that came without leaves, check the padding of all and cut it off."""
        z = self.code.symbol_bytes(length)
        for row in unproven:
            if sliver_hash(self.expand(Kind.PRIMARY, rows[row], z)) != metadata.primary(row):
                raise Rejected(Reason.INCONSISTENT, f"primary sliver {row}, decoded, does not expand to its hash")
        for row, view in enumerate(rows):
            self.check_padding(Kind.PRIMARY, row, view, length)
        return [view[: self.padding_start(Kind.PRIMARY, row, length)] for row, view in enumerate(rows)]

    def complete(self, kind: Kind, blocks: Mapping[int, Buffer], *, size: int) -> list[memoryview]:
        """Return the systematic blocks of the code that `kind`'s slivers follow, from any k of its n blocks.

        A sliver's blocks are its symbols; whole rows are blocks of the code that columns, `Kind.SECONDARY`, follow.
        Systematic blocks are taken as they are. Raises `Rejected`: INCOMPLETE, WRONG_INDEX, MALFORMED for another size.
        """
        k, n = self.symbols(kind), self.code.n
        chosen = sorted(blocks)[:k]
        if len(chosen) < k:
            raise Rejected(Reason.INCOMPLETE, f"{len(chosen)} blocks, {k} are needed")
        lost = [index for index in range(k) if index not in blocks]
        made = memoryview(bytearray(len(lost) * size))
        self.kernel.decode(k, n, chosen, [blocks[index] for index in chosen], wanted=lost, out=Blocks(made, size, size))
        found = {index: made[at * size : at * size + size] for at, index in enumerate(lost)}
        return [found[index] if index in found else memoryview(blocks[index]) for index in range(k)]

    def check_strictly(self, root: Root, segment: Buffer, buffer: memoryview) -> EncodedSegment:
        """Encode an accepted segment again and compare roots: then every reader gets it, by whatever slivers.

        Raises `Rejected(INCONSISTENT)`. As costly as `encode`.
        """
        encoded = self.encode(segment, buffer)
        if encoded.root != root:
            raise Rejected(Reason.INCONSISTENT, "the segment does not encode to its root")
        return encoded


def _check_index(index: int, n: int) -> None:
    if not 0 <= index < n:
        raise Rejected(Reason.WRONG_INDEX, f"index {index} of {n}")
