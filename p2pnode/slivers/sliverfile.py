"""The layout of a sliver file (FORMATS.md 8): parts to write, and the head as it is read and checked. No disk."""

from dataclasses import dataclass

from economics.blob import Leaves, Root, SegmentMetadata
from economics.crypto import DIGEST_BYTES
from economics.errors import Reason, Rejected
from economics.geometry import Code
from p2pnode.coding.codec import Kind

MAGIC = b"p2pnode sliver 1"
HEAD_FIXED_BYTES = len(MAGIC) + 8 + DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class Pair:
    """The two slivers of one shard of one segment, with the leaf lists their check computed."""

    shard: int
    primary: memoryview
    """S*z bytes."""
    secondary: memoryview
    """P*z bytes."""
    primary_leaves: Leaves
    secondary_leaves: Leaves


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before the slivers."""

    metadata: SegmentMetadata
    leaves: tuple[Leaves, Leaves]
    """By kind; not yet compared with the metadata."""
    z: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is in the sliver files of one code."""

    code: Code

    @property
    def head_bytes(self) -> int:
        return HEAD_FIXED_BYTES + 4 * DIGEST_BYTES * self.code.n

    def file_bytes(self, z: int) -> int:
        """Return the size of one sliver file with symbols of `z` bytes."""
        return self.head_bytes + self.code.pair_bytes(z)

    def symbol_bytes(self, size: int) -> int:
        """Return the z of a file of this size."""
        return max(size - self.head_bytes, 0) // (self.code.rows + self.code.columns)

    def symbol_offset(self, kind: Kind, first: int, z: int) -> int:
        return self.head_bytes + (first if kind is Kind.PRIMARY else self.code.columns + first) * z

    def parts(self, metadata: SegmentMetadata, root: Root, z: int, pair: Pair) -> tuple[bytes | memoryview, ...]:
        """Return the file of a pair, in pieces."""
        head = MAGIC + self.code.n.to_bytes(2, "big") + pair.shard.to_bytes(2, "big") + z.to_bytes(4, "big") + root
        return (head, metadata.encode(), pair.primary_leaves, pair.secondary_leaves, pair.primary, pair.secondary)

    def parse_head(self, head: bytes, *, size: int, root: Root, shard: int) -> Head:
        """Return the head of this shard's file of `size` bytes, or raise `Rejected` if it is not that."""
        n = self.code.n
        expected = MAGIC + n.to_bytes(2, "big") + shard.to_bytes(2, "big")
        z = int.from_bytes(head[len(expected) : len(expected) + 4], "big")
        own = head.startswith(expected) and head[len(expected) + 4 : HEAD_FIXED_BYTES] == root
        if not own or not z or size != self.file_bytes(z):
            raise Rejected(Reason.MALFORMED, "not this shard's sliver file")
        leaves_at = HEAD_FIXED_BYTES + 2 * n * DIGEST_BYTES
        metadata = SegmentMetadata.decode(head[HEAD_FIXED_BYTES:leaves_at], n=n, root=root)
        middle = leaves_at + n * DIGEST_BYTES
        return Head(metadata, (Leaves(head[leaves_at:middle]), Leaves(head[middle : self.head_bytes])), z)
