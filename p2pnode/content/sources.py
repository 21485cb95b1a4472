"""Bytes to store or to serve, wherever they are: read at any place and any number of times. Knows no network."""

import os
from bisect import bisect_right
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from economics.blob import BlobId, Header, Root
from economics.geometry import BLOB_BYTES_MAX, Code
from p2pnode.coding.codec import Codec
from p2pnode.coding.kernel import load_kernel
from p2pnode.errors import InputError


class Source(Protocol):
    """Bytes that stay the same while they are used."""

    @property
    def name(self) -> str:
        """How to call it in messages."""
        ...

    @property
    def length(self) -> int: ...

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes [start, stop), all of them; for worker threads. Raises `InputError` if they cannot be had."""
        ...


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file, as long as it was when it was first looked at."""

    path: Path
    length: int

    @property
    def name(self) -> str:
        return str(self.path)

    @classmethod
    def open(cls, path: Path) -> "FileSource":
        """Return a readable file's bytes, or raise `InputError` naming the cause."""
        try:
            if path.is_dir():
                raise InputError(f"{path} is a folder, and a file is wanted here")
            if path.exists() and not path.is_file():  # its size would read as 0, and opening a pipe may wait for ever
                raise InputError(f"{path} is a pipe or a device: put its bytes into a file first")
            with path.open("rb") as file:
                length = os.fstat(file.fileno()).st_size
        except OSError as fault:
            raise InputError(f"cannot read {path}: {fault.strerror}") from fault
        verify_length(length, str(path))
        return cls(path, length)

    def read(self, start: int, stop: int) -> bytes:
        try:
            with self.path.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), stop - start, start)
                while data and len(data) < stop - start:  # a read of more than 2 GiB comes in parts
                    more = os.pread(file.fileno(), stop - start - len(data), start + len(data))
                    if not more:
                        break
                    data += more
        except OSError as fault:
            raise InputError(f"cannot read {self.path}: {fault.strerror}") from fault
        if len(data) != stop - start:
            raise InputError(f"{self.path} became shorter while it was read: store it again")
        return data


@dataclass(frozen=True, slots=True)
class BytesSource:
    """Bytes in memory."""

    data: bytes
    name: str = "these bytes"

    @property
    def length(self) -> int:
        return len(self.data)

    def read(self, start: int, stop: int) -> bytes:
        return self.data[start:stop]


@dataclass(frozen=True, slots=True)
class JoinedSource:
    """Sources one behind the other."""

    parts: Sequence[Source]
    name: str
    ends: Sequence[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", tuple(accumulate(part.length for part in self.parts)))
        verify_length(self.length, self.name)

    @property
    def length(self) -> int:
        return self.ends[-1] if self.ends else 0

    def read(self, start: int, stop: int) -> bytes:
        pieces = []
        at = bisect_right(self.ends, start)
        while start < stop:
            begin = self.ends[at] - self.parts[at].length
            end = min(stop, self.ends[at])
            if start < end:
                pieces.append(self.parts[at].read(start - begin, end - begin))
            start, at = end, at + 1
        return b"".join(pieces)


def verify_length(length: int, name: str) -> None:
    """Raise `InputError` for more bytes than a blob holds."""
    if length > BLOB_BYTES_MAX:
        raise InputError(f"{name} has {length} bytes; a blob has at most {BLOB_BYTES_MAX}")


def read_segments(source: Source, code: Code) -> Generator[bytes, None, None]:
    """Yield the segments of a source, for worker threads."""
    at = 0
    for size in code.segment_lengths(source.length):
        yield source.read(at, at + size)
        at += size


def compute_header(source: Source, codec: Codec) -> Header:
    """Return the header that a source has as a blob, without any network: one segment at a time."""
    code = codec.code
    buffer = memoryview(bytearray(codec.matrix_bytes(code.segment_length(source.length, 0))))
    roots: list[Root] = [codec.encode(data, buffer).root for data in read_segments(source, code)]
    return Header(code, source.length, tuple(roots))


def compute_blob_id(source: Source, code: Code) -> BlobId:
    """Return the ID that a source has under a code."""
    return compute_header(source, Codec(code, load_kernel())).blob_id
