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

from economics.blob import BlobId, Header, Leaves, Root, SegmentMetadata, build_blob_id_text, parse_blob_id
from economics.commitments import Certificate
from economics.crypto import Digest
from economics.errors import Reason, Rejected
from p2pnode.coding.codec import Codec, Kind
from p2pnode.errors import NodeError, SpaceError
from p2pnode.files import full_disk_named, replace_synced, sync_directory, write_synced
from p2pnode.slivers.records import ENTRIES_MAX, BlobRecord, Entry, ProofFiles
from p2pnode.slivers.sliverfile import Head, Layout, Pair

DISK_RESERVE_BYTES = 16 << 20
"""Left free on the disk so that blob records and a clean shutdown always find room."""

SliverKey = tuple[Root, int]
"""(segment root, shard)."""


class CorruptSliver(NodeError):
    """A sliver file no longer matches its root; it has been dropped, and other nodes have the same bytes."""


@dataclass(frozen=True, slots=True)
class Symbols:
    """Some symbols of a sliver with the sliver's leaf list: verifiable by whoever has the segment's metadata."""

    leaves: Leaves
    data: bytes


class SliverStore:
    """The slivers and blob records of one node under one directory. Safe to call from several threads."""

    def __init__(self, directory: Path, *, codec: Codec, chain_id: Digest, quota_bytes: int) -> None:
        self.directory = directory
        self.codec = codec
        self.code = codec.code
        self.layout = Layout(codec.code)
        self.chain_id = chain_id
        self.quota_bytes = quota_bytes
        self.used_bytes = 0
        self.unclosed_bytes = 0
        """Bytes of slivers that no blob record refers to: uploads that are under way or were given up."""
        self.certificates = 0
        """Records that have one: counted here, as anybody may ask for it as often as he likes."""
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
        self.proofs = ProofFiles(directory / "proofs")
        """What is known of writers that encoded wrongly: for as long as their blobs have entries, and a grace."""
        self.foreign_files += self.proofs.foreign_files

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
                if not file.is_file() or key is None or key[1] >= self.code.n or Path(file) != self._path(*key):
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
        before = self._records.get(blob_id)
        self.certificates += (record.certificate is not None) - (before is not None and before.certificate is not None)
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

    def symbol_bytes_of(self, root: Root) -> int:
        """Return the symbol size of a segment's files, by their size alone; 0 for none."""
        with self._lock:
            return self.layout.symbol_bytes(max(self._sizes.get(root, {}).values(), default=0))

    def missing(self, root: Root, shards: Iterable[int]) -> list[int]:
        """Return those of the shards whose slivers of the segment are not on this node's disk."""
        with self._lock:
            held = self._sizes.get(root, {})
            return [shard for shard in shards if shard not in held]

    def files(self) -> list[tuple[Root, int, int]]:
        """Return (root, shard, bytes) of every sliver file."""
        with self._lock:
            return [(root, shard, size) for root, sizes in self._sizes.items() for shard, size in sizes.items()]

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
        given = {pair.shard: pair for pair in pairs}
        fresh = [given[shard] for shard in self.missing(root, given)]
        size = self.layout.file_bytes(z)
        self._reserve(size * len(fresh))
        try:
            self._write_files(metadata, root, z, fresh)
        except BaseException:
            with self._lock:
                self.used_bytes -= size * len(fresh)
            raise
        with self._lock:  # at once, so that no byte on disk is ever uncounted
            self.used_bytes -= size * len(fresh)
            for shard in self.missing(root, [pair.shard for pair in fresh]):
                self._add_file(root, shard, size)

    def _write_files(self, metadata: SegmentMetadata, root: Root, z: int, pairs: Sequence[Pair]) -> None:
        """Write all files or none: each under a name of its own first, since one that is cut off must not be read."""
        written: list[tuple[Path, int]] = []
        try:
            for pair in pairs:
                path = self.directory / "tmp" / f"{root.hex()}.{pair.shard}.{threading.get_ident()}"
                write_synced(path, self.layout.parts(metadata, root, z, pair))
                written.append((path, pair.shard))
            self._place(root, written)
        except BaseException:
            for path, shard in written:
                path.unlink(missing_ok=True)
                with self._lock:
                    if shard not in self._sizes.get(root, {}):
                        self._path(root, shard).unlink(missing_ok=True)
            raise

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

    def verify_room(self, size: int) -> None:
        """Raise `SpaceError` unless there is room for so many bytes, before anybody sends them."""
        with self._lock:
            self._reserve(size)
            self.used_bytes -= size

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

    def drop_shard_file(self, root: Root, shard: int) -> None:
        """Delete one sliver file, whatever refers to its root: for a shard that is another node's now."""
        with self._lock:
            if shard in self._sizes.get(root, {}):
                self._drop_file(root, shard)

    def drop_unreferenced(self, roots: Iterable[Root]) -> None:
        """Delete the slivers of segments, but for those that a record or a live upload refers to."""
        for root in roots:
            with self._lock:
                if root in self._unclosed and root not in self._holds:
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
                return self._read_head(root, shard).metadata
            except CorruptSliver:
                continue
        raise Rejected(Reason.NOT_FOUND, "no sliver of this segment here")

    def read_symbols(self, root: Root, kind: Kind, index: int, *, first: int, count: int) -> Symbols:
        """Return symbols `first` to `first + count - 1` of a sliver, each checked against its leaf; none for 0.

        Raises `Rejected`: NOT_FOUND if this node does not hold the sliver, WRONG_INDEX outside of it; and
        `CorruptSliver` if its file is damaged, which is then dropped.
        """
        width = self.codec.symbols(kind)
        if not (0 <= index < self.code.n and first >= 0 and count >= 0 and first + count <= width):
            raise Rejected(Reason.WRONG_INDEX, f"symbols {first}+{count} of {kind.name.lower()} sliver {index}")
        shard = self.code.shard_of_pair(self._pair(kind, index), root)
        head = self._read_head(root, shard)
        with self._opened(root, shard) as handle:
            data = os.pread(handle, count * head.z, self.layout.symbol_offset(kind, first, head.z))
        leaves = head.leaves[kind]
        with self._dropped_if_wrong(root, shard):
            if count:
                self.codec.check_symbols(head.metadata, kind, index, leaves, first=first, symbols=data, z=head.z)
            else:
                self.codec.check_leaves(head.metadata, kind, index, leaves)
        return Symbols(leaves, data)

    def read_crossing(self, root: Root, shard: int, kind: Kind, index: int) -> bytes:
        """Return the symbol of `shard`'s pair at which the sliver (kind, index), which another lost, is crossed.

        Only that symbol is read if it is systematic, else the whole sliver that crosses, and it is checked against its
        leaf. Raises as `read_symbols`.
        """
        if not 0 <= index < self.code.n:
            raise Rejected(Reason.WRONG_INDEX, f"no {kind.name.lower()} sliver {index}")
        own = self._pair(kind.other, self.code.pair_of_shard(shard, root))
        width = self.codec.symbols(kind.other)
        if index < width:
            return self.read_symbols(root, kind.other, own, first=index, count=1).data
        whole = self.read_symbols(root, kind.other, own, first=0, count=width)
        return self.codec.symbol(kind.other, whole.data, index, len(whole.data) // width)

    def read_pair(self, root: Root, shard: int) -> tuple[SegmentMetadata, Pair]:
        """Return all of a sliver file, each symbol checked against its leaf: 1 us for each, and 0.4 ms for each MiB.

        Raises as `read_symbols`.
        """
        head = self._read_head(root, shard)
        with self._opened(root, shard) as handle:
            data = memoryview(os.pread(handle, self.code.pair_bytes(head.z), self.layout.head_bytes))
        middle = self.code.columns * head.z
        pair = Pair(shard, data[:middle], data[middle:], *head.leaves)
        row = self.code.pair_of_shard(shard, root)
        with self._dropped_if_wrong(root, shard):
            for kind, sliver in ((Kind.PRIMARY, pair.primary), (Kind.SECONDARY, pair.secondary)):
                leaves, index = head.leaves[kind], self._pair(kind, row)
                self.codec.check_symbols(head.metadata, kind, index, leaves, first=0, symbols=sliver, z=head.z)
        return head.metadata, pair

    def _pair(self, kind: Kind, index: int) -> int:
        """Turn a sliver's index into its pair's, or back: pair i is (primary i, secondary n-1-i)."""
        return index if kind is Kind.PRIMARY else self.code.n - 1 - index

    def _read_head(self, root: Root, shard: int) -> Head:
        """Return a file's head, its metadata checked; raises `Rejected(NOT_FOUND)` for a file that is not here."""
        if shard not in self._sizes.get(root, {}):
            raise Rejected(Reason.NOT_FOUND, "this node does not hold that sliver")
        with self._opened(root, shard) as handle:
            head = os.pread(handle, self.layout.head_bytes, 0)
            size = os.fstat(handle).st_size
        with self._dropped_if_wrong(root, shard):
            return self.layout.parse_head(head, size=size, root=root, shard=shard)

    @contextmanager
    def _dropped_if_wrong(self, root: Root, shard: int) -> Iterator[None]:
        """Drop the file and raise `CorruptSliver` where the block finds that it is not what its root says."""
        try:
            yield
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

    def check_segment(self, root: Root, segment_length: int, shards: Sequence[int]) -> None:
        """Raise `Rejected` unless this node holds these shards of the segment, with symbols of the size and padding
        that `segment_length` asks for."""
        if self.missing(root, shards):
            raise Rejected(Reason.INCOMPLETE, f"slivers of segment {root[:4].hex()} are missing")
        for shard in shards:
            z = self._read_head(root, shard).z
            if z != self.code.symbol_bytes(segment_length):
                raise Rejected(Reason.WRONG_ENCODING, "the symbol size is not that of the segment's length")
            for kind in Kind:
                index, width = self._pair(kind, self.code.pair_of_shard(shard, root)), self.codec.symbols(kind)
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

    @property
    def blobs(self) -> int:
        """How many records there are."""
        return len(self._records)

    def records(self) -> dict[BlobId, BlobRecord]:
        with self._lock:
            return dict(self._records)

    def put_entry(self, header: Header, entry: Entry) -> None:
        """Keep what this node is about to sign for; durable on return. Its slivers are referred to from here on.

        Of a reservation only the newest statement is kept: it pays for the blob once (`Admission`), and must not fill
        the record for all other owners.
        """
        blob_id = entry.statement.blob_id
        with self._record_lock:
            known = self.record(blob_id) or BlobRecord(header, (), None)
            reservation = entry.statement.reservation
            others = tuple(old for old in known.entries if old.statement.reservation != reservation)
            if len(others) >= ENTRIES_MAX:
                raise Rejected(
                    Reason.OVER_BUDGET, f"{ENTRIES_MAX} reservations' statements about this blob are held already"
                )
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

    def put_header(self, header: Header) -> None:
        """Keep the header of a blob whose slivers come from other nodes; durable on return."""
        blob_id = header.blob_id
        with self._record_lock:
            if self.record(blob_id) is None:
                self._write_record(blob_id, BlobRecord(header, (), None))

    def drop_blob(self, blob_id: BlobId, record: BlobRecord) -> set[Root]:
        """Forget a blob, durably; return its roots that nothing refers to now, for `drop_unreferenced`.

        Nothing is forgotten if its record is another than this one: it has been signed for meanwhile.
        """
        with self._record_lock:
            if self.record(blob_id) is not record:
                return set()
            self._record_path(blob_id).unlink(missing_ok=True)
            sync_directory(self.directory / "blobs")
            with self._lock:
                del self._records[blob_id]
                self.certificates -= record.certificate is not None
                return self._unindex(blob_id, record.header)

    def _unindex(self, blob_id: BlobId, header: Header) -> set[Root]:
        freed: set[Root] = set()
        for index, root in enumerate(header.roots):
            self._references[root].discard((blob_id, index))
        for root in set(header.roots):
            if not self._references[root]:
                del self._references[root]
                if root in self._sizes:
                    self._unclosed[root] = None
                    self.unclosed_bytes += sum(self._sizes[root].values())
                    freed.add(root)
        return freed

    def blobs_of(self, root: Root) -> set[BlobId]:
        """Return the blobs held here that a segment is part of."""
        with self._lock:
            return {blob_id for blob_id, _ in self._references.get(root, ())}

    def _record_path(self, blob_id: BlobId) -> Path:
        return self.directory / "blobs" / build_blob_id_text(blob_id)

    def _write_record(self, blob_id: BlobId, record: BlobRecord) -> None:
        replace_synced(self._record_path(blob_id), (record.encode(),))
        with self._lock:
            self._index_record(blob_id, record)


def _parse_sliver_name(name: str) -> SliverKey | None:
    text, dot, shard = name.rpartition(".")
    try:
        root = Root(parse_blob_id(text))
    except Rejected:
        return None
    return (root, int(shard)) if dot and shard.isdecimal() and shard == str(int(shard)) else None
