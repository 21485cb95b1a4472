"""Sliver store: one self-describing file per (segment root, shard), one record per blob. For worker threads.

What it acknowledges is on disk: file, then name, each fsynced. The index is in memory and is read off the directory at
each start, so it cannot disagree with the files. It decides nothing about money or signatures.
"""

import base64
import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from economics import cbor
from economics.blob import BlobId, Header, Leaves, Root, SegmentMetadata, build_blob_id_text, parse_blob_id
from economics.commitments import Certificate, Commitment, OwnerStatement
from economics.crypto import DIGEST_BYTES, SIGNATURE_BYTES, Digest, Signature
from economics.errors import Reason, Rejected
from economics.geometry import Code
from p2pnode.codec import Codec, Kind
from p2pnode.errors import NodeError, SpaceError
from p2pnode.files import full_disk_named, replace_synced, sync_directory, write_synced

MAGIC = b"p2pnode sliver 1"
HEAD_FIXED_BYTES = len(MAGIC) + 8 + DIGEST_BYTES
BLOB_RECORD_BUDGET = cbor.Budget(size_max=8 << 20, depth_max=4, elements_max=4_096)
ENTRIES_MAX = 256
"""Owner statements kept for one blob."""
DISK_RESERVE_BYTES = 16 << 20
"""Left free on the disk so that blob records and a clean shutdown always find room."""

SliverKey = tuple[Root, int]
"""(segment root, shard)."""


class CorruptSliver(NodeError):
    """A sliver file no longer matches its root; it has been dropped, and other nodes have the same bytes."""


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
class Symbols:
    """Some symbols of a sliver with the sliver's leaf list: verifiable by whoever has the segment's metadata."""

    leaves: Leaves
    data: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One owner's statement about a blob, and what this node signed for it."""

    statement: OwnerStatement
    statement_signature: Signature
    epoch: int
    signature: Signature
    """This node's commitment under `epoch`."""

    def as_commitment(self, signer: int) -> tuple[OwnerStatement, Signature, Commitment, Signature]:
        """Return (statement, its signature, this node's commitment, its signature)."""
        commitment = Commitment.build(self.statement, epoch=self.epoch, signer=signer)
        return self.statement, self.statement_signature, commitment, self.signature


@dataclass(frozen=True, slots=True)
class BlobRecord:
    """All that a node keeps of a blob besides its slivers."""

    header: Header
    entries: tuple[Entry, ...]
    certificate: Certificate | None

    def encode(self) -> bytes:
        entries: list[cbor.Value] = [
            [entry.statement.encode(), entry.statement_signature, entry.epoch, entry.signature]
            for entry in self.entries
        ]
        certificate = None if self.certificate is None else self.certificate.encode()
        return cbor.encode({"certificate": certificate, "entries": entries, "header": self.header.encode()})

    @classmethod
    def decode(cls, data: bytes, *, code: Code, blob_id: BlobId, chain_id: Digest) -> "BlobRecord":
        """Return the record, or raise `Rejected` for a file that holds anything else."""
        match fields := cbor.decode(data, budget=BLOB_RECORD_BUDGET):
            case {"certificate": None | bytes() as held, "entries": list(rows), "header": bytes(raw)} if (
                len(fields) == 3
            ):
                header = Header.decode(raw, code=code, blob_id=blob_id)
                entries = tuple(_parse_entry(row, chain_id) for row in rows)
                return cls(header, entries, None if held is None else Certificate.decode(held, chain_id=chain_id))
            case _:
                raise Rejected(Reason.MALFORMED, "not a blob record")


def _parse_entry(row: object, chain_id: Digest) -> Entry:
    match row:
        case [bytes(body), bytes(owner_signature), int(epoch), bytes(signature)]:
            sizes = {len(owner_signature), len(signature)}
            if isinstance(epoch, bool) or not 0 <= epoch < 1 << 64 or sizes != {SIGNATURE_BYTES}:
                raise Rejected(Reason.MALFORMED, "not an entry of a blob record")
            statement = OwnerStatement.decode(body, chain_id=chain_id)
            return Entry(statement, Signature(owner_signature), epoch, Signature(signature))
        case _:
            raise Rejected(Reason.MALFORMED, "not an entry of a blob record")


class SliverStore:
    """The slivers and blob records of one node under one directory. Safe to call from several threads."""

    def __init__(
        self, directory: Path, *, codec: Codec, chain_id: Digest, shards: Sequence[int], quota_bytes: int
    ) -> None:
        self.directory = directory
        self.codec = codec
        self.code = codec.code
        self.chain_id = chain_id
        self.shards = tuple(shards)
        self.quota_bytes = quota_bytes
        self.used_bytes = 0
        self.unclosed_bytes = 0
        """Bytes of slivers that no blob record refers to: uploads that are under way or were given up."""
        self.corrupt_slivers = 0
        """Slivers dropped since the start because their file no longer matched the root."""
        self.foreign_files = 0
        """Files found at the start that are not this network's slivers or records; left alone, not counted as used."""
        self._lock = threading.RLock()
        """Guards the index; never held while a file is written and synced, since the trio thread takes it too."""
        self._record_lock = threading.Lock()
        """Held while a blob record is changed and written."""
        self._sizes: dict[Root, dict[int, int]] = {}
        """Bytes of each shard's file, by root; roots in the order they came."""
        self._records: dict[BlobId, BlobRecord] = {}
        self._references: dict[Root, set[tuple[BlobId, int]]] = {}
        self._holds: defaultdict[Root, int] = defaultdict(int)
        """Live uploads that rely on a root."""
        self._unclosed: dict[Root, None] = {}
        """Roots without a reference, oldest first: the order in which they are evicted."""
        self._load()

    # --- start: the directory is the index -----------------------------------------------------------------------

    def _load(self) -> None:
        for room in ("slivers", "blobs", "tmp"):
            (self.directory / room).mkdir(parents=True, exist_ok=True)
        for leftover in (self.directory / "tmp").iterdir():
            if leftover.is_file():
                leftover.unlink()
        for path in (self.directory / "blobs").iterdir():
            self._load_record(path)
        found: list[tuple[int, Root, int, int]] = []
        for drawer in os.scandir(self.directory / "slivers"):
            for file in os.scandir(drawer) if drawer.is_dir() else (drawer,):
                key = _parse_sliver_name(file.name)
                if not file.is_file() or key is None or key[1] not in self.shards or Path(file) != self._path(*key):
                    self.foreign_files += 1
                    continue
                found.append((file.stat().st_mtime_ns, *key, file.stat().st_size))
        for _, root, shard, size in sorted(found):
            self._add_file(root, shard, size)

    def _load_record(self, path: Path) -> None:
        if not path.is_file():
            self.foreign_files += 1
            return
        if path.suffix == ".new":
            path.unlink()
            return
        try:
            blob_id = parse_blob_id(path.name)
            record = BlobRecord.decode(path.read_bytes(), code=self.code, blob_id=blob_id, chain_id=self.chain_id)
        except Rejected:
            self.foreign_files += 1
            return
        self._index_record(blob_id, record)

    def _add_file(self, root: Root, shard: int, size: int) -> None:
        shards = self._sizes.setdefault(root, {})
        assert shard not in shards
        shards[shard] = size
        self.used_bytes += size
        if root not in self._references:
            self._unclosed.setdefault(root)
            self.unclosed_bytes += size

    def _index_record(self, blob_id: BlobId, record: BlobRecord) -> None:
        self._records[blob_id] = record
        for index, root in enumerate(record.header.roots):
            if root in self._unclosed:
                del self._unclosed[root]
                self.unclosed_bytes -= sum(self._sizes[root].values())
            self._references.setdefault(root, set()).add((blob_id, index))

    # --- writing -------------------------------------------------------------------------------------------------

    def _path(self, root: Root, shard: int) -> Path:
        name = base64.urlsafe_b64encode(root).rstrip(b"=").decode("ascii")
        return self.directory / "slivers" / root[:1].hex() / f"{name}.{shard}"

    def file_bytes(self, z: int) -> int:
        """Return the size of one sliver file with symbols of `z` bytes."""
        return self._data_offset + self.code.pair_bytes(z)

    @property
    def _data_offset(self) -> int:
        return HEAD_FIXED_BYTES + 4 * DIGEST_BYTES * self.code.n

    def symbol_bytes_of(self, root: Root) -> int:
        """Return the symbol size of a segment's files, by their size alone; 0 for none."""
        with self._lock:
            size = max(self._sizes.get(root, {}).values(), default=self._data_offset)
        return max(size - self._data_offset, 0) // (self.code.rows + self.code.columns)

    def missing_shards(self, root: Root) -> list[int]:
        """Return the shards of this node whose slivers of the segment are not on its disk."""
        with self._lock:
            held = self._sizes.get(root, {})
            return [shard for shard in self.shards if shard not in held]

    def has_segment(self, root: Root) -> bool:
        return not self.missing_shards(root)

    @contextmanager
    def held(self, roots: set[Root]) -> Iterator[None]:
        """Keep these roots from eviction; the set may grow while it is held, through `hold`."""
        try:
            yield
        finally:
            with self._lock:
                for root in roots:
                    self._holds[root] -= 1
                    if not self._holds[root]:
                        del self._holds[root]

    def hold(self, roots: set[Root], root: Root) -> None:
        with self._lock:
            if root not in roots:
                roots.add(root)
                self._holds[root] += 1

    def put_segment(self, metadata: SegmentMetadata, z: int, pairs: Iterable[Pair]) -> None:
        """Store slivers that have been checked; durable on return. On `SpaceError` nothing of it is kept."""
        root = metadata.root
        missing = set(self.missing_shards(root))
        fresh = [pair for pair in pairs if pair.shard in missing]
        size = self.file_bytes(z)
        self._reserve(size * len(fresh))
        try:
            self._write_files(metadata, root, z, fresh)
        except BaseException:
            with self._lock:
                self.used_bytes -= size * len(fresh)
            raise
        with self._lock:  # at once, so that no byte on disk is ever uncounted
            self.used_bytes -= size * len(fresh)
            for shard in set(self.missing_shards(root)) & {pair.shard for pair in fresh}:
                self._add_file(root, shard, size)

    def _write_files(self, metadata: SegmentMetadata, root: Root, z: int, pairs: Sequence[Pair]) -> None:
        """Write all files or none: each under a name of its own first, since one that is cut off must not be read."""
        written: list[tuple[Path, int]] = []
        try:
            for pair in pairs:
                path = self.directory / "tmp" / f"{root.hex()}.{pair.shard}.{threading.get_ident()}"
                write_synced(path, self._file_parts(metadata, root, z, pair))
                written.append((path, pair.shard))
            self._place(root, written)
        except BaseException:
            for path, shard in written:
                path.unlink(missing_ok=True)
                with self._lock:
                    if shard not in self._sizes.get(root, {}):
                        self._path(root, shard).unlink(missing_ok=True)
            raise

    def _file_parts(
        self, metadata: SegmentMetadata, root: Root, z: int, pair: Pair
    ) -> tuple[bytes | bytearray | memoryview, ...]:
        head = MAGIC + self.code.n.to_bytes(2, "big") + pair.shard.to_bytes(2, "big") + z.to_bytes(4, "big") + root
        return (head, metadata.encode(), pair.primary_leaves, pair.secondary_leaves, pair.primary, pair.secondary)

    def _place(self, root: Root, written: Sequence[tuple[Path, int]]) -> None:
        if not written:
            return
        drawer = self._path(root, 0).parent
        with full_disk_named(self.directory):
            if not drawer.exists():
                drawer.mkdir(exist_ok=True)
                sync_directory(drawer.parent)
            for path, shard in written:
                path.replace(self._path(root, shard))
            sync_directory(drawer)

    def _reserve(self, size: int) -> None:
        """Count `size` bytes as used before they are written; evict what nothing refers to, or raise `SpaceError`."""
        with self._lock:
            if self.used_bytes + size > self.quota_bytes:
                self.evict(self.used_bytes + size - self.quota_bytes)
            if self.used_bytes + size > self.quota_bytes:
                raise SpaceError(f"the quota of {self.quota_bytes} bytes is used up: raise it or store less")
            disk = os.statvfs(self.directory)
            if disk.f_bavail * disk.f_frsize < size + DISK_RESERVE_BYTES:
                raise SpaceError(f"the disk that holds {self.directory} is full: free some space or lower the quota")
            self.used_bytes += size

    def evict(self, size: int) -> None:
        """Delete slivers that no record and no live upload refers to, oldest first, until `size` bytes are free."""
        with self._lock:
            freed = 0
            for root in [root for root in self._unclosed if root not in self._holds]:
                if freed >= size:
                    return
                freed += sum(self._sizes[root].values())
                for shard in list(self._sizes[root]):
                    self._drop_file(root, shard)

    def _drop_file(self, root: Root, shard: int) -> None:
        self._path(root, shard).unlink(missing_ok=True)
        size = self._sizes[root].pop(shard)
        self.used_bytes -= size
        if root in self._unclosed:
            self.unclosed_bytes -= size
        if not self._sizes[root]:
            del self._sizes[root]
            self._unclosed.pop(root, None)

    # --- reading -------------------------------------------------------------------------------------------------

    def read_metadata(self, root: Root) -> SegmentMetadata:
        """Return the metadata of a segment this node holds slivers of; raises `Rejected(NOT_FOUND)`."""
        for shard in list(self._sizes.get(root, {})):
            try:
                return self._read_head(root, shard)[0]
            except CorruptSliver:
                continue
        raise Rejected(Reason.NOT_FOUND, "no sliver of this segment here")

    def read_symbols(self, root: Root, kind: Kind, index: int, *, first: int, count: int) -> Symbols:
        """Return symbols `first` to `first + count - 1` of a sliver, each checked against its leaf.

        Raises `Rejected`: NOT_FOUND if this node does not hold the sliver, WRONG_INDEX outside of it; and
        `CorruptSliver` if its file is damaged, which is then dropped.
        """
        width = self.code.columns if kind is Kind.PRIMARY else self.code.rows
        if not (0 <= index < self.code.n and first >= 0 and count >= 1 and first + count <= width):
            raise Rejected(Reason.WRONG_INDEX, f"symbols {first}+{count} of {kind.name.lower()} sliver {index}")
        pair = index if kind is Kind.PRIMARY else self.code.n - 1 - index
        shard = self.code.shard_of_pair(pair, root)
        if shard not in self._sizes.get(root, {}):
            raise Rejected(Reason.NOT_FOUND, "this node does not hold that sliver")
        metadata, leaves, z = self._read_head(root, shard)
        start = self._data_offset + (first * z if kind is Kind.PRIMARY else (self.code.columns + first) * z)
        with self._opened(root, shard) as handle:
            data = os.pread(handle, count * z, start)
        try:
            self.codec.check_symbols(metadata, kind, index, leaves[kind], first=first, symbols=data, z=z)
        except Rejected as fault:
            raise self._drop_corrupt(root, shard) from fault
        return Symbols(leaves[kind], data)

    def _read_head(self, root: Root, shard: int) -> tuple[SegmentMetadata, tuple[Leaves, Leaves], int]:
        """Return (metadata, leaf lists by kind, z), all checked from the root down."""
        n = self.code.n
        with self._opened(root, shard) as handle:
            head = os.pread(handle, self._data_offset, 0)
            size = os.fstat(handle).st_size
        expected = MAGIC + n.to_bytes(2, "big") + shard.to_bytes(2, "big")
        z = int.from_bytes(head[len(expected) : len(expected) + 4], "big")
        try:
            own = head.startswith(expected) and head[len(expected) + 4 : HEAD_FIXED_BYTES] == root
            if not own or not z or size != self.file_bytes(z):
                raise Rejected(Reason.MALFORMED, "not this shard's sliver file")
            leaves_at = HEAD_FIXED_BYTES + 2 * n * DIGEST_BYTES
            metadata = SegmentMetadata.decode(head[HEAD_FIXED_BYTES:leaves_at], n=n, root=root)
            middle = leaves_at + n * DIGEST_BYTES
            return metadata, (Leaves(head[leaves_at:middle]), Leaves(head[middle:])), z
        except Rejected as fault:
            raise self._drop_corrupt(root, shard) from fault

    @contextmanager
    def _opened(self, root: Root, shard: int) -> Iterator[int]:
        try:
            handle = os.open(self._path(root, shard), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as fault:
            raise self._drop_corrupt(root, shard) from fault
        try:
            yield handle
        finally:
            os.close(handle)

    def _drop_corrupt(self, root: Root, shard: int) -> CorruptSliver:
        """Forget a damaged file, so that it is neither served nor counted on again."""
        with self._lock:
            if shard in self._sizes.get(root, {}):
                self.corrupt_slivers += 1
                self._drop_file(root, shard)
        return CorruptSliver(f"sliver file {self._path(root, shard).name} was damaged and has been dropped")

    def check_segment(self, root: Root, segment_length: int) -> None:
        """Raise `Rejected` unless this node holds all it owes of the segment, with symbols of the size and padding
        that `segment_length` asks for."""
        if self.missing_shards(root):
            raise Rejected(Reason.INCOMPLETE, f"slivers of segment {root[:4].hex()} are missing")
        code = self.code
        for shard in self.shards:
            z = self._read_head(root, shard)[2]
            if z != code.symbol_bytes(segment_length):
                raise Rejected(Reason.WRONG_ENCODING, "the symbol size is not that of the segment's length")
            pair = code.pair_of_shard(shard, root)
            for kind, index, width in (
                (Kind.PRIMARY, pair, code.columns),
                (Kind.SECONDARY, code.n - 1 - pair, code.rows),
            ):
                if not self.codec.is_systematic(kind, index):
                    continue
                padding = self.codec.padding_start(kind, index, segment_length)
                if padding < width * z:
                    first = padding // z
                    tail = self.read_symbols(root, kind, index, first=first, count=width - first).data
                    self.codec.check_padding(kind, index, tail, segment_length)

    # --- blob records --------------------------------------------------------------------------------------------

    def record(self, blob_id: BlobId) -> BlobRecord | None:
        with self._lock:
            return self._records.get(blob_id)

    def records(self) -> dict[BlobId, BlobRecord]:
        with self._lock:
            return dict(self._records)

    def put_entry(self, header: Header, entry: Entry) -> None:
        """Keep what this node is about to sign for; durable on return. Its slivers are referred to from here on."""
        blob_id = entry.statement.blob_id
        with self._record_lock:
            known = self.record(blob_id) or BlobRecord(header, (), None)
            others = tuple(old for old in known.entries if old.statement != entry.statement)
            if len(others) >= ENTRIES_MAX:
                raise Rejected(Reason.OVER_BUDGET, f"{ENTRIES_MAX} statements about this blob are held already")
            self._write_record(blob_id, BlobRecord(header, (*others, entry), known.certificate))

    def put_certificate(self, certificate: Certificate) -> bool:
        """Keep the first certificate of a blob that is held here, durably; return whether this was it."""
        blob_id = certificate.statement.blob_id
        with self._record_lock:
            known = self.record(blob_id)
            if known is None or known.certificate is not None:
                return False
            self._write_record(blob_id, BlobRecord(known.header, known.entries, certificate))
            return True

    def _write_record(self, blob_id: BlobId, record: BlobRecord) -> None:
        replace_synced(self.directory / "blobs" / build_blob_id_text(blob_id), (record.encode(),))
        with self._lock:
            self._index_record(blob_id, record)


def _parse_sliver_name(name: str) -> SliverKey | None:
    text, dot, shard = name.rpartition(".")
    try:
        root = Root(parse_blob_id(text))
    except Rejected:
        return None
    return (root, int(shard)) if dot and shard.isdecimal() and shard == str(int(shard)) else None
