"""Segments that were read lately, on disk under a quota: the oldest go first. Blocking: for worker threads.

A file takes its name only when all of it is written, and is checked against its hash when it is read back; so a kill,
a power cut or a bad disk costs the file and nothing else. Processes of one home share the directory: each counts what
it writes itself and looks at the whole again now and then, so that together they pass the quota by a sixteenth each.
"""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from blake3 import blake3

from economics.blob import BlobId, Header, build_blob_id_text, header_bytes, parse_blob_id
from economics.crypto import DIGEST_BYTES
from economics.errors import Rejected
from economics.geometry import BLOB_BYTES_MAX
from p2pnode.coding.codec import Codec
from p2pnode.files import FULL

log = logging.getLogger("p2pnode.peering.cache")

QUOTA_BYTES = 8 << 30
"""Of a gateway unless it is told otherwise: a thousand segments of 8 MiB."""
FREE_BYTES_MIN = 512 << 20
"""Of the disk, which is left to others: a cache is no reason for a full disk."""
SLACK = 16
"""Of the quota: one part in so many is made free at once, and may be written before the disk is looked at again."""
PIECE_BYTES = 1 << 20
VERIFIED_S = 600.0
"""For which a file that was checked is not checked again: it is in the machine's memory meanwhile, or as good as."""
VERIFIED_MAX = 65_536
TOUCH_S = 60
"""A file's time is that of its last use, to within this."""
ABANDONED_S = 3_600
"""After which a file that never took its name is another process's crash."""
TYPE_BYTES_MAX = 255
"""As on chain."""
PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Says nothing of the disk: whoever opens many connections can take all descriptors for a while."""


@dataclass(slots=True)
class CachedSegment:
    """An open segment file: it stays readable though it is evicted meanwhile."""

    handle: int
    length: int

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes [start, stop), or raise `OSError`."""
        data = os.pread(self.handle, stop - start, start)
        if len(data) != stop - start:
            raise OSError(f"a segment file ends at {start + len(data)}")
        return data

    def close(self) -> None:
        handle, self.handle = self.handle, -1
        if handle >= 0:
            os.close(handle)


@dataclass(frozen=True, slots=True)
class _File:
    used_ns: int
    size: int
    path: Path


class SegmentCache:
    """The cache of one home, as one process sees it."""

    def __init__(self, path: Path, codec: Codec, *, quota_bytes: int = QUOTA_BYTES) -> None:
        self.path = path
        self.codec = codec
        self.code = codec.code
        self.quota_bytes = quota_bytes
        self._lock = threading.Lock()
        self._numbers = count()
        self._used = 0
        self._unseen = 0
        """Bytes written since the directory was last looked at."""
        self._verified: dict[tuple[BlobId, int], tuple[int, float]] = {}
        """(inode, until when) of files that were checked."""
        self._sound = True
        if quota_bytes:
            self._begin()

    def _begin(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._look(self.quota_bytes)
        except OSError as fault:
            self._give_up(fault)

    def _give_up(self, fault: OSError) -> None:
        """Do without, after a fault of the disk: reads go on from the network."""
        if fault.errno in PASSING:
            return
        if self._sound:
            log.warning("nothing more is cached in %s: %s", self.path, fault.strerror or fault)
        self._sound = False

    @property
    def is_usable(self) -> bool:
        """Whether anything is put here."""
        return self.quota_bytes > 0 and self._sound

    @property
    def used_bytes(self) -> int:
        return self._used

    def directory(self, blob_id: BlobId) -> Path:
        return self.path / build_blob_id_text(blob_id)

    # --- what a blob is ------------------------------------------------------------------------------------------

    def header(self, blob_id: BlobId) -> Header | None:
        try:
            with (self.directory(blob_id) / "header").open("rb") as file:
                raw = file.read(header_bytes(self.code, BLOB_BYTES_MAX) + 1)
            return Header.decode(raw, code=self.code, blob_id=blob_id)
        except FileNotFoundError:
            return None
        except OSError as fault:
            if fault.errno not in PASSING:
                self.drop(blob_id)
            return None
        except Rejected:
            self.drop(blob_id)
            return None

    def content_type(self, blob_id: BlobId) -> str | None:
        """Return what the blob was said to be when it was put here, "" for nothing; None if that is not known."""
        try:
            raw = (self.directory(blob_id) / "type").read_bytes()
            return raw.decode("utf-8") if len(raw) <= TYPE_BYTES_MAX else None
        except (OSError, UnicodeDecodeError):
            return None

    def put_header(self, header: Header, content_type: str | None) -> None:
        blob_id = header.blob_id
        raw = header.encode()
        if self._write(blob_id, "header", (raw,), len(raw)) and content_type is not None:
            encoded = content_type.encode()
            self._write(blob_id, "type", (encoded,), len(encoded))

    def has_all(self, header: Header) -> bool:
        """Return whether every segment has a file; they are checked when they are read."""
        try:
            names = {entry.name for entry in os.scandir(self.directory(header.blob_id))}
        except OSError:
            return False
        return all(str(index) in names for index in range(len(header.roots)))

    # --- segments ------------------------------------------------------------------------------------------------

    def open(self, blob_id: BlobId, index: int, length: int) -> CachedSegment | None:
        """Return a segment of `length` bytes, checked, for the caller to close; None if it is not here, or was damaged
        and is not here any more."""
        path = self.directory(blob_id) / str(index)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        segment = CachedSegment(handle, length)
        try:
            state = os.fstat(handle)
            now = time.monotonic()
            if state.st_size != length + DIGEST_BYTES:
                raise OSError("a segment file of another size")
            inode, until = self._verified.get((blob_id, index), (-1, 0.0))
            if inode != state.st_ino or now >= until:
                self._verify(segment)
                self._remember(blob_id, index, state.st_ino)
            if time.time() - state.st_mtime > TOUCH_S:
                os.utime(handle)
        except OSError as fault:
            segment.close()
            log.warning("a cached segment of %s is damaged: %s", build_blob_id_text(blob_id), fault)
            self._remove(path)
            return None
        return segment

    def _verify(self, segment: CachedSegment) -> None:
        hasher = blake3()
        for start in range(0, segment.length, PIECE_BYTES):
            hasher.update(segment.read(start, min(segment.length, start + PIECE_BYTES)))
        if segment.read(segment.length, segment.length + DIGEST_BYTES) != hasher.digest():
            raise OSError("other bytes than were written")

    def _remember(self, blob_id: BlobId, index: int, inode: int) -> None:
        if len(self._verified) >= VERIFIED_MAX:
            self._verified.clear()
        self._verified[blob_id, index] = inode, time.monotonic() + VERIFIED_S

    def put(self, blob_id: BlobId, index: int, pieces: Sequence[bytes | memoryview]) -> bool:
        """Keep a segment; returns whether it is here now."""
        hasher = blake3()
        size = DIGEST_BYTES
        for piece in pieces:
            hasher.update(piece)
            size += len(piece)
        return self._write(blob_id, str(index), (*pieces, hasher.digest()), size)

    def _write(self, blob_id: BlobId, name: str, parts: Iterable[bytes | memoryview], size: int) -> bool:
        if not self.is_usable or size > self.quota_bytes:
            return False
        self._make_room(size)
        directory = self.directory(blob_id)
        path = directory / name
        fresh = directory / f"{name}.{os.getpid()}.{next(self._numbers)}.new"
        try:
            if shutil.disk_usage(self.path).free < FREE_BYTES_MIN + size:
                return False
            for _ in range(2):  # another process may remove the empty directory meanwhile
                with contextlib.suppress(FileNotFoundError):
                    directory.mkdir(mode=0o700, exist_ok=True)
                    inode = _write_whole(fresh, parts)
                    old = path.stat().st_size if path.exists() else 0
                    fresh.replace(path)
                    break
            else:
                return False
        except OSError as fault:
            self._remove(fresh)
            if fault.errno not in FULL:
                self._give_up(fault)
            return False
        with self._lock:
            self._used += size - old
            self._unseen += size
        if name.isdigit():
            self._remember(blob_id, int(name), inode)
        return True

    def _remove(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink()

    def drop(self, blob_id: BlobId) -> None:
        """Forget a blob."""
        directory = self.directory(blob_id)
        with contextlib.suppress(OSError):
            size = sum(entry.stat().st_size for entry in os.scandir(directory))
            shutil.rmtree(directory, ignore_errors=True)
            with self._lock:
                self._used = max(0, self._used - size)

    # --- the quota -----------------------------------------------------------------------------------------------

    def _make_room(self, size: int) -> None:
        """Evict what was used longest ago where the quota asks for it."""
        with self._lock:
            if self._used + size <= self.quota_bytes and self._unseen <= self.quota_bytes // SLACK:
                return
        try:
            self._look(self.quota_bytes - size)
        except OSError as fault:
            self._give_up(fault)

    def _look(self, room: int) -> None:
        """Count what is here, and evict until it fits `room` with some slack, unless it does already."""
        with self._lock, (self.path / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process has looked in a few milliseconds
            files = sorted(self._files(), key=lambda file: file.used_ns)
            used = sum(file.size for file in files)
            if used > room:
                goal = max(0, room - self.quota_bytes // SLACK)
                for file in files:
                    if used <= goal:
                        break
                    used -= self._evict(file)
            self._used, self._unseen = used, 0

    def _files(self) -> Iterator[_File]:
        """Yield all files; what never took its name is removed when it is old."""
        old = time.time_ns() - ABANDONED_S * 10**9
        for directory in os.scandir(self.path):
            if not directory.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(FileNotFoundError):
                for entry in os.scandir(directory.path):
                    with contextlib.suppress(FileNotFoundError):
                        state = entry.stat(follow_symlinks=False)
                        if entry.name.endswith(".new") and state.st_mtime_ns < old:
                            self._remove(Path(entry.path))
                        else:
                            yield _File(state.st_mtime_ns, state.st_size, Path(entry.path))

    def _evict(self, file: _File) -> int:
        """Remove a segment, with its blob's last one what says what the blob is; return the bytes freed."""
        if not file.path.name.isdigit():
            return 0 if _has_segments(file.path.parent) else _free(file.path)
        _free(file.path.parent / "whole")
        freed = _free(file.path)
        if not _has_segments(file.path.parent):
            freed += sum(_free(file.path.parent / name) for name in ("header", "type"))
            with contextlib.suppress(OSError):
                file.path.parent.rmdir()
        return freed

    # --- what others may have ------------------------------------------------------------------------------------

    def verify_whole(self, header: Header) -> bool:
        """Return whether all of a blob is here and encodes to its ID; from then on it is offered to others.

        Costs 13 ms for each 8 MiB at n = 10: a segment that others cannot check would make this node a liar.
        """
        blob_id = header.blob_id
        buffer = memoryview(bytearray(self.codec.matrix_bytes(self.code.segment_length(header.length, 0))))
        for index, root in enumerate(header.roots):
            data = self._load(header, index)
            try:
                if data is None:
                    return False
                self.codec.check_strictly(root, data, buffer)
            except Rejected:
                return False
        return self._write(blob_id, "whole", (), 0)

    def _load(self, header: Header, index: int) -> bytes | None:
        length = self.code.segment_length(header.length, index)
        segment = self.open(header.blob_id, index, length)
        if segment is None:
            return None
        try:
            return segment.read(0, length)
        except OSError:
            return None
        finally:
            segment.close()

    def is_whole(self, blob_id: BlobId) -> bool:
        return (self.directory(blob_id) / "whole").exists()

    def segment(self, blob_id: BlobId, index: int) -> bytes | None:
        """Return a segment of a blob that is here whole and checked."""
        header = self.header(blob_id) if self.is_whole(blob_id) else None
        if header is None or not 0 <= index < len(header.roots):
            return None
        return self._load(header, index)

    def blob_ids(self) -> Sequence[BlobId]:
        """Return the blobs that are here whole and checked."""
        found = []
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.path):
                with contextlib.suppress(Rejected, OSError):
                    if os.path.exists(os.path.join(entry.path, "whole")):
                        found.append(parse_blob_id(entry.name))
        return found


def _has_segments(directory: Path) -> bool:
    """Return whether there is a segment, or one that is being written."""
    with contextlib.suppress(FileNotFoundError):
        return any(entry.name.isdigit() or entry.name.endswith(".new") for entry in os.scandir(directory))
    return False


def _free(path: Path) -> int:
    """Remove a file and return its size; 0 where it is gone already."""
    with contextlib.suppress(OSError):
        size = path.stat().st_size
        path.unlink()
        return size
    return 0


def _write_whole(path: Path, parts: Iterable[bytes | memoryview]) -> int:
    """Write a new file and return its inode. It is not synced: what a power cut leaves of it is found by its hash."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for part in parts:
            left = memoryview(part)
            while left:
                left = left[os.write(handle, left) :]
        return os.fstat(handle).st_ino
    finally:
        os.close(handle)
