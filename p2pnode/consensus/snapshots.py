"""Snapshots: the state after an epoch in one file, in chunks that a node which is far behind can ask for one by one.

File: magic 16, chain ID 32, epoch u64, chunks, {chunk bytes u32, CRC32 u32} for each, number of chunks u32, CRC32 u32
of these rows and the number. A chunk = {length u32, value} for each value; values ascend by their keys in the tree.
Whoever takes chunks checks them by the state root; the sums here only keep a damaged file from being served.
"""

import contextlib
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

from economics.crypto import Digest
from economics.fields import sized
from p2pnode.files import make_directory, replace_synced, sync_directory

MAGIC = b"p2pnode state 1\n"
CHUNK_BYTES_MAX = 1 << 20
KEPT = 2
"""The last one, and the one before for who is in the midst of fetching it."""

_HEAD = Struct(">16s32sQ")
_ROW = Struct(">II")
_LENGTH = Struct(">I")
SUFFIX = ".state"


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the chunks of one file are."""

    rows: tuple[tuple[int, int], ...]
    """(bytes, CRC32) of each chunk."""

    def offset(self, index: int) -> int:
        return _HEAD.size + sum(size for size, _ in self.rows[:index])


class Snapshots:
    """The last snapshots under one directory. Blocking: for worker threads."""

    def __init__(self, directory: Path, chain_id: Digest) -> None:
        self.directory = directory
        self.chain_id = chain_id

    def _path(self, epoch: int) -> Path:
        return self.directory / f"{epoch}{SUFFIX}"

    def epochs(self) -> list[int]:
        """Return the epochs of which there is a snapshot, ascending."""
        with contextlib.suppress(FileNotFoundError):
            names = (name.removesuffix(SUFFIX) for name in os.listdir(self.directory) if name.endswith(SUFFIX))
            return sorted(int(name) for name in names if name.isdecimal())
        return []

    def write(self, epoch: int, values: Iterable[bytes]) -> None:
        """Keep the state after an epoch, its values ascending by key; durable on return. Older ones go."""
        make_directory(self.directory)
        for cut_short in self.directory.glob("*.new"):
            cut_short.unlink()
        replace_synced(self._path(epoch), self._parts(epoch, values))
        for old in self.epochs()[:-KEPT]:
            self._path(old).unlink(missing_ok=True)
        sync_directory(self.directory)

    def _parts(self, epoch: int, values: Iterable[bytes]) -> Iterator[bytes]:
        yield _HEAD.pack(MAGIC, self.chain_id, epoch)
        rows: list[bytes] = []
        for chunk in _chunks(values):
            rows.append(_ROW.pack(len(chunk), zlib.crc32(chunk)))
            yield chunk
        table = b"".join((*rows, _LENGTH.pack(len(rows))))
        yield table + _LENGTH.pack(zlib.crc32(table))

    def chunks(self, epoch: int) -> int:
        """Return how many chunks the snapshot of an epoch has; 0 where there is none or it is damaged."""
        layout = self._layout(epoch)
        return 0 if layout is None else len(layout.rows)

    def chunk(self, epoch: int, index: int) -> bytes | None:
        """Return one chunk, None where there is none or it is damaged."""
        layout = self._layout(epoch)
        if layout is None or not 0 <= index < len(layout.rows):
            return None
        size, crc = layout.rows[index]
        data = self._read(epoch, layout.offset(index), size)
        return data if len(data) == size and zlib.crc32(data) == crc else None

    def _read(self, epoch: int, offset: int, size: int) -> bytes:
        try:
            with self._path(epoch).open("rb") as file:
                file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
                return file.read(size)
        except OSError:  # dropped meanwhile, or shorter than the offset
            return b""

    def _layout(self, epoch: int) -> _Layout | None:
        if not 0 <= epoch < 1 << 64 or self._read(epoch, 0, _HEAD.size) != _HEAD.pack(MAGIC, self.chain_id, epoch):
            return None
        end = self._read(epoch, -2 * _LENGTH.size, 2 * _LENGTH.size)
        if len(end) != 2 * _LENGTH.size:
            return None
        (count,) = _LENGTH.unpack_from(end)
        size = count * _ROW.size
        table = self._read(epoch, -size - 2 * _LENGTH.size, size + _LENGTH.size)
        if len(table) != size + _LENGTH.size or _LENGTH.pack(zlib.crc32(table)) != end[_LENGTH.size :]:
            return None
        return _Layout(tuple(_ROW.iter_unpack(table[:size])))


def _chunks(values: Iterable[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    size = 0
    for value in values:
        part = sized(value)
        assert len(part) <= CHUNK_BYTES_MAX
        if size + len(part) > CHUNK_BYTES_MAX:
            yield b"".join(parts)
            parts, size = [], 0
        parts.append(part)
        size += len(part)
    if parts:
        yield b"".join(parts)
