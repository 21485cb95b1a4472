"""What names a blob: leaves, sliver hashes, segment roots, header, blob ID (FORMATS.md 3). Hashes, no coding."""

import base64
import binascii
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NewType

from economics.crypto import DIGEST_BYTES, Digest, Level, digest
from economics.errors import Reason, Rejected
from economics.geometry import (
    BLOB_BYTES_MAX,
    HEADER_ROOTS_MAX,
    SEGMENT_BYTES,
    SEGMENT_BYTES_MIN,
    SHARDS_MAX,
    SHARDS_MIN,
    Code,
)

BlobId = NewType("BlobId", bytes)
"""32 bytes; shown as 43 characters of base64url."""
Root = NewType("Root", bytes)
"""A segment root: names one segment's slivers, whichever blobs it is part of."""
Leaves = NewType("Leaves", bytes)
"""The n leaf hashes of one expanded sliver, joined: 32n bytes."""

ENCODING_TYPE = 1
HEADER_FIXED_BYTES = 15
HEADER_BYTES_MAX = HEADER_FIXED_BYTES + DIGEST_BYTES * HEADER_ROOTS_MAX
"""The header of the largest blob at the default segment size, 4 MiB."""


def leaf(symbol: bytes | bytearray | memoryview) -> Digest:
    return digest(Level.LEAF, symbol)


def join_leaves(leaves: Iterable[bytes]) -> Leaves:
    return Leaves(b"".join(leaves))


def sliver_hash(leaves: Leaves) -> Digest:
    """Return the commitment to one expanded sliver."""
    return digest(Level.SLIVER, leaves)


def split_hashes(joined: bytes) -> list[Digest]:
    return [Digest(joined[at : at + DIGEST_BYTES]) for at in range(0, len(joined), DIGEST_BYTES)]


def build_blob_id_text(blob_id: BlobId) -> str:
    return base64.urlsafe_b64encode(blob_id).rstrip(b"=").decode("ascii")


def parse_blob_id(text: str) -> BlobId:
    """Return the blob ID that 43 characters of base64url show; raises `Rejected` for anything else."""
    try:
        raw = base64.b64decode(text.encode("ascii") + b"=", altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as fault:
        raise Rejected(Reason.MALFORMED, "a blob ID is 43 characters of base64url") from fault
    blob_id = BlobId(raw)
    if len(raw) != DIGEST_BYTES or build_blob_id_text(blob_id) != text:
        raise Rejected(Reason.MALFORMED, "a blob ID is 43 characters of base64url")
    return blob_id


@dataclass(frozen=True, slots=True)
class SegmentMetadata:
    """The commitments to one segment: n primary sliver hashes, then n secondary ones."""

    hashes: tuple[Digest, ...]

    @classmethod
    def build(cls, *, primary: Sequence[Digest], secondary: Sequence[Digest]) -> "SegmentMetadata":
        assert len(primary) == len(secondary)
        return cls((*primary, *secondary))

    @classmethod
    def decode(cls, data: bytes, *, n: int, root: Root) -> "SegmentMetadata":
        """Return the metadata of `root`, or raise `Rejected` if these are not its 64n bytes."""
        if len(data) != 2 * n * DIGEST_BYTES:
            raise Rejected(Reason.MALFORMED, "segment metadata is 64n bytes")
        if Root(digest(Level.SEGMENT, data)) != root:
            raise Rejected(Reason.HASH_MISMATCH, "segment metadata is not that of the root")
        return cls(tuple(split_hashes(data)))

    def encode(self) -> bytes:
        return b"".join(self.hashes)

    @property
    def n(self) -> int:
        return len(self.hashes) // 2

    @property
    def root(self) -> Root:
        return Root(digest(Level.SEGMENT, self.encode()))

    def primary(self, index: int) -> Digest:
        return self.hashes[index]

    def secondary(self, index: int) -> Digest:
        return self.hashes[self.n + index]


@dataclass(frozen=True, slots=True)
class Header:
    """A blob's shape and segment roots; its hash is the blob ID, so whoever has the ID can check it."""

    code: Code
    length: int
    roots: tuple[Root, ...]

    def encode(self) -> bytes:
        return b"".join(
            (
                ENCODING_TYPE.to_bytes(1, "big"),
                self.code.n.to_bytes(2, "big"),
                self.length.to_bytes(8, "big"),
                self.code.segment_bytes.to_bytes(4, "big"),
                *self.roots,
            )
        )

    @property
    def blob_id(self) -> BlobId:
        return BlobId(digest(Level.BLOB, self.encode()))

    @classmethod
    def decode(cls, data: bytes, *, code: Code, blob_id: BlobId) -> "Header":
        """Return the header of `blob_id` under the network's own code.

        Raises `Rejected`: HASH_MISMATCH if it is another blob's, WRONG_ENCODING for another type, n or segment size,
        MALFORMED if the number of roots is not the one that the length asks for.
        """
        if BlobId(digest(Level.BLOB, data)) != blob_id:
            raise Rejected(Reason.HASH_MISMATCH, "the header is not that of the blob ID")
        if len(data) < HEADER_FIXED_BYTES:
            raise Rejected(Reason.MALFORMED, "the header is too short")
        n, length = int.from_bytes(data[1:3], "big"), int.from_bytes(data[3:11], "big")
        if (data[0], n, int.from_bytes(data[11:15], "big")) != (ENCODING_TYPE, code.n, code.segment_bytes):
            raise Rejected(Reason.WRONG_ENCODING, "another encoding type, n or segment size")
        if length > BLOB_BYTES_MAX:
            raise Rejected(Reason.TOO_LARGE, f"a blob has at most {BLOB_BYTES_MAX} bytes")
        if len(data) != header_bytes(code, length):
            raise Rejected(Reason.MALFORMED, "the number of segment roots is not the length's")
        return cls(code, length, tuple(Root(root) for root in split_hashes(data[HEADER_FIXED_BYTES:])))

    @classmethod
    def decode_any(cls, data: bytes, *, blob_id: BlobId) -> "Header":
        """Return the header of `blob_id`, whatever its code: the ID commits to it. Raises as `decode` does."""
        if not HEADER_FIXED_BYTES <= len(data) <= HEADER_BYTES_MAX:
            raise Rejected(Reason.MALFORMED, f"a header has {HEADER_FIXED_BYTES} to {HEADER_BYTES_MAX} bytes")
        n, segment_bytes = int.from_bytes(data[1:3], "big"), int.from_bytes(data[11:15], "big")
        if not SHARDS_MIN <= n <= SHARDS_MAX or not SEGMENT_BYTES_MIN <= segment_bytes <= SEGMENT_BYTES:
            raise Rejected(Reason.WRONG_ENCODING, f"no code has {n} shards and segments of {segment_bytes} bytes")
        return cls.decode(data, code=Code(n, segment_bytes), blob_id=blob_id)


def header_bytes(code: Code, length: int) -> int:
    return HEADER_FIXED_BYTES + DIGEST_BYTES * code.segment_count(length)
