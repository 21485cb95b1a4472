"""Vote log: what binds this node, durable before it is sent. Opaque records; one worker thread at a time writes.

File: head, then frames (integers big-endian).
  head  = magic 16 | chain ID 32 | tainted u8 | marker 8 | sealed u64 | CRC32 of all before it
  frame = marker 8 | sequence u64 | body length u32 | CRC32 of the body | CRC32 of the 24 bytes before it | body
  body  = {type u8, length u32, payload} for each record

`append` writes one frame, so what it was given is there as a whole or not at all. The marker is random and new in each
file: no payload, and no byte that a disk brings back from an older file, passes for a frame. `sealed` is the size with
which the file was put in place, by rename after fsync.

Torn tail or damage? A crash can tear the last frame alone, since the next one is begun when it is durable. So bytes
that are not the next frame are a torn tail, dropped, only if
  - they begin at or behind `sealed`,
  - no frame was begun behind them: the marker does not occur there, and
  - where a frame head of this file is whole there, it is the next in sequence and reaches to the file's end or past it.
All else is damage. Damage to the last frame alone looks like a tear; what others saw of it is left to tell (S7).
"""

import os
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import NoReturn

from economics.crypto import DIGEST_BYTES, Digest
from p2pnode.errors import ConfigError, DiskFailed, SpaceError
from p2pnode.files import FULL, make_directory, sync_directory, write_synced

MAGIC = b"p2pnode votes 1\n"
BODY_BYTES_MAX = 128 << 20
"""Of one append: a turn of 32 inputs keeps at most so many blocks, each with 2 MiB of transactions, twice over."""

_HEAD = Struct(f">16s{DIGEST_BYTES}sB8sQ")
_FRAME = Struct(">8sQII")
_CRC = Struct(">I")
_RECORD = Struct(">BI")
HEAD_BYTES = _HEAD.size + _CRC.size
FRAME_BYTES = _FRAME.size + _CRC.size
MARKER_BYTES = 8

Record = tuple[int, bytes]
"""(type, payload)."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What a log held when it was opened."""

    records: list[Record]
    """In the order they were appended; up to the damage, if there is any."""
    cut_bytes: int
    """Dropped: a torn tail, or the damage and all behind it."""
    corrupt: bool
    """Records may be missing, from now or from an earlier start: sign nothing before the chain has passed them."""
    created: bool
    """There was no log."""


@dataclass(frozen=True, slots=True)
class _Found:
    records: list[Record]
    cut_bytes: int
    damaged: bool
    tainted: bool


class VoteLog:
    """An open log. After `DiskFailed` it takes nothing more: the page cache may show bytes that the disk never got.

    Opening writes the log anew, so what it replayed is durable even where an fsync had failed before.
    """

    def __init__(self, path: Path, chain_id: Digest, *, tainted: bool) -> None:
        self.path = path
        self._chain_id = chain_id
        self._tainted = tainted
        self._lock = threading.RLock()
        self._handle = -1
        self._marker = b""
        self._sequence = 0
        self._size = 0
        self._failed = False

    @classmethod
    def open(cls, path: Path, chain_id: Digest) -> tuple["VoteLog", Replay]:
        """Return the log and what it held; raises `ConfigError` for another chain's, `SpaceError`, `DiskFailed`.

        A damaged file stays beside the new log as `.damaged-N`, and the log stays `corrupt` until `heal`.
        """
        try:
            make_directory(path.parent)
            data = path.read_bytes() if path.exists() else None
        except OSError as fault:
            raise DiskFailed(f"cannot read {path}: {fault.strerror}") from fault
        found = _Found([], 0, False, False) if data is None else _read(path, data, chain_id)
        if found.damaged:
            _keep_aside(path)
        log = cls(path, chain_id, tainted=found.damaged or found.tainted)
        log.rewrite(found.records)
        return log, Replay(found.records, found.cut_bytes, log._tainted, data is None)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    def append(self, records: Sequence[Record]) -> None:
        """Add records, all or none; durable on return.

        On `SpaceError` none was added and the log goes on. On `DiskFailed` nobody knows: the node must stop.
        """
        with self._lock:
            self._verify_sound()
            frame = _build_frame(self._marker, self._sequence, records)
            try:
                _write_at(self._handle, frame, self._size)
            except OSError as fault:
                self._undo_write(fault)
            try:
                os.fdatasync(self._handle)
            except OSError as fault:
                self._fail(fault)
            self._size += len(frame)
            self._sequence += 1

    def rewrite(self, records: Sequence[Record]) -> None:
        """Put a log of just these records in place; durable on return. On `SpaceError` the old one goes on.

        Nobody may append between the choice of the records and this: else `prune`.
        """
        with self._lock:
            self._verify_sound()
            marker = os.urandom(MARKER_BYTES)
            frames = [_build_frame(marker, at, (record,)) for at, record in enumerate(records)]
            size = HEAD_BYTES + sum(map(len, frames))
            head = _HEAD.pack(MAGIC, self._chain_id, self._tainted, marker, size)
            fresh = self.path.with_name(f"{self.path.name}.new")
            try:
                write_synced(fresh, (head, _CRC.pack(zlib.crc32(head)), *frames))
                self._take_place(fresh)
            except OSError as fault:
                self._fail(fault)
            self._marker, self._sequence, self._size = marker, len(frames), size

    def _take_place(self, fresh: Path) -> None:
        fresh.replace(self.path)
        sync_directory(self.path.parent)
        handle = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        self._close_handle()
        self._handle = handle

    def prune(self, keep: Callable[[int, bytes], bool]) -> None:
        """Drop the records for which `keep(type, payload)` is false, whatever was appended meanwhile."""
        with self._lock:
            self._verify_sound()
            found = _read(self.path, self.path.read_bytes(), self._chain_id)
            if found.damaged or found.cut_bytes:
                self._failed = True
                raise DiskFailed(f"{self.path} gives back other bytes than were written: start the node again")
            self.rewrite([record for record in found.records if keep(*record)])

    def heal(self) -> None:
        """Say durably that the chain has passed whatever a damaged log may have lost."""
        with self._lock:
            self._tainted = False
            self.prune(lambda _kind, _payload: True)

    def close(self) -> None:
        with self._lock:
            self._close_handle()
            self._failed = True

    # --- failures ------------------------------------------------------------------------------------------------

    def _close_handle(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _verify_sound(self) -> None:
        if self._failed:
            raise DiskFailed(f"{self.path} is closed, or failed before: start the node again")

    def _undo_write(self, fault: OSError) -> NoReturn:
        if fault.errno not in FULL:
            self._fail(fault)
        try:
            os.ftruncate(self._handle, self._size)
        except OSError:
            self._fail(fault)
        raise SpaceError(f"the disk that holds {self.path} is full: free some space") from fault

    def _fail(self, fault: OSError) -> NoReturn:
        self._failed = True
        raise DiskFailed(f"cannot write {self.path} durably: {fault.strerror}") from fault


def _build_frame(marker: bytes, sequence: int, records: Iterable[Record]) -> bytes:
    body = b"".join(_RECORD.pack(kind, len(payload)) + payload for kind, payload in records)
    assert 0 < len(body) <= BODY_BYTES_MAX, "a frame holds a record, and not more than a block"
    head = _FRAME.pack(marker, sequence, len(body), zlib.crc32(body))
    return b"".join((head, _CRC.pack(zlib.crc32(head)), body))


def _write_at(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(handle, view, offset)
        view, offset = view[count:], offset + count


def _keep_aside(path: Path) -> None:
    """Give a damaged file a second name; it keeps its own until the new log takes that, so one is always there."""
    number = 1
    while True:
        try:
            os.link(path, path.with_name(f"{path.name}.damaged-{number}"))
            break
        except FileExistsError:
            number += 1
        except OSError as fault:
            raise DiskFailed(f"cannot keep the damaged {path} aside: {fault.strerror}") from fault
    sync_directory(path.parent)


# --- reading -----------------------------------------------------------------------------------------------------


def _read(path: Path, data: bytes, chain_id: Digest) -> _Found:
    head = data[: _HEAD.size]
    if len(data) < HEAD_BYTES or data[_HEAD.size : HEAD_BYTES] != _CRC.pack(zlib.crc32(head)):
        return _Found([], len(data), damaged=True, tainted=True)
    magic, chain, tainted, marker, sealed = _HEAD.unpack(head)
    if magic != MAGIC:
        raise ConfigError(f"{path} is not a vote log of this version: move it away")
    if chain != chain_id:
        raise ConfigError(f"{path} holds another network's votes: put its genesis file back, or move the log away")
    records: list[Record] = []
    at, sequence = HEAD_BYTES, 0
    while at < len(data) and (found := _read_frame(data, at, marker, sequence)) is not None:
        fresh, at = found
        records += fresh
        sequence += 1
    damaged = at < sealed or (at < len(data) and not _is_torn(data, at, marker, sequence))
    return _Found(records, len(data) - at, damaged, bool(tainted))


def _frame_head(data: bytes, at: int) -> tuple[bytes, int, int, int] | None:
    """Return (marker, sequence, body length, body CRC) of a frame whose head is whole."""
    head = data[at : at + _FRAME.size]
    if data[at + _FRAME.size : at + FRAME_BYTES] != _CRC.pack(zlib.crc32(head)):
        return None
    marker, sequence, length, crc = _FRAME.unpack(head)
    return marker, sequence, length, crc


def _read_frame(data: bytes, at: int, marker: bytes, sequence: int) -> tuple[list[Record], int] | None:
    """Return the records of the frame at an offset and where it ends, None if it is not whole or not the next."""
    head = _frame_head(data, at)
    if head is None or head[:2] != (marker, sequence):
        return None
    _, _, length, crc = head
    end = at + FRAME_BYTES + length
    body = data[at + FRAME_BYTES : end]
    if len(body) != length or zlib.crc32(body) != crc:
        return None
    records: list[Record] = []
    place = 0
    while place < length:
        kind, size = _RECORD.unpack_from(body, place)
        place += _RECORD.size + size
        records.append((kind, body[place - size : place]))
    assert place == length
    return records, end


def _is_torn(data: bytes, at: int, marker: bytes, sequence: int) -> bool:
    """Return whether bytes that are not the next frame may be what a crash left of it."""
    if data.find(marker, at + 1) >= 0:
        return False
    head = _frame_head(data, at)
    if head is None or head[0] != marker:
        return True
    return head[1] == sequence and at + FRAME_BYTES + head[2] >= len(data)
