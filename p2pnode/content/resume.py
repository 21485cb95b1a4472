"""Puts bytes into a file that takes its name only when all of it is there.

A whole blob goes through a part file beside it, which outlives any kill and is checked and continued by the next call
(`save`); what is cheap to read again, such as a range, begins anew each time (`output_file`).
"""

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import trio
from blake3 import blake3

from economics.blob import BlobId, Header, Root, build_blob_id_text
from p2pnode.coding.codec import Codec
from p2pnode.content.contents import WrongFolder
from p2pnode.content.sealed import FRAME_BYTES, FRONT_BYTES, SEALED_FRAME_BYTES, SealedSource
from p2pnode.content.sources import Source
from p2pnode.content.views import View, verify_range
from p2pnode.errors import InconsistentBlob, InputError, OutputClosed, SpaceError
from p2pnode.files import FULL, sync_directory

HASH_BYTES = 1 << 20
NAME_BYTES_MAX = 255
"""Of every file system in common use; a part's name has some more bytes than its file's."""
ID_CHARACTERS = 8
"""Of the blob ID in a part's name: parts of two blobs do not meet, and a person can tell them apart."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What putting a blob into a file ended with."""

    length: int
    kept_bytes: int
    """Of these, what an earlier call had left in the part file and need not come again."""


class _Missing(Exception):
    """The part file ends before these bytes."""


@dataclass(frozen=True, slots=True)
class _PartSource:
    """An open part file as the source that it is to become."""

    handle: int
    name: str
    path: Path
    """What it is to be called."""
    length: int

    def read(self, start: int, stop: int) -> bytes:
        with _faults_named(self.path):
            data = os.pread(self.handle, stop - start, start)
        if len(data) != stop - start:
            raise _Missing
        return data


async def save(
    view: View,
    path: Path,
    *,
    header: Header,
    codec: Codec,
    key: bytes | None,
    content_hash: bytes | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Saved:
    """Put all bytes of a blob into `path`, going on with what an earlier call left beside it.

    `view` has the plain bytes of the blob of `header`, which is sealed where there is a `key`. What the part file holds
    is encoded again, segment by segment, and kept as far as it has the header's roots: nothing in it is believed.
    What is at `path` stays until all of the new bytes are on the disk. `report` is told how many bytes of how many are
    there. Raises `InputError`, also where another process is at it or the plain bytes have another BLAKE3 hash than
    `content_hash`, `SpaceError`, and what the view does; the part file stays where it can be of use.
    """
    assert codec.code == header.code
    verify_target(path)
    part = build_part_path(path, header.blob_id)
    handle = await trio.to_thread.run_sync(_open_part, part, path)
    try:
        source = _PartSource(handle, str(part), path, view.length)
        kept = await _keep_right(source, header, codec, key, report)
        if kept < view.length or not view.length:  # reading nothing still tells a wrong key
            await _fill(view, source, kept, report)
        if content_hash is not None:
            await trio.to_thread.run_sync(_verify_hash, source, content_hash)
        await trio.to_thread.run_sync(_put_in_place, handle, part, path)
    except BaseException as fault:
        if isinstance(fault, InconsistentBlob | WrongFolder) or not os.fstat(handle).st_size:
            part.unlink(missing_ok=True)  # nobody can ever go on with it
        raise
    finally:
        os.close(handle)
    return Saved(view.length, kept)


def build_part_path(path: Path, blob_id: BlobId) -> Path:
    """Return where a blob on its way to `path` is kept; a name that has no room for it is cut."""
    return _beside(path, build_blob_id_text(blob_id)[:ID_CHARACTERS])


def _beside(path: Path, tag: str) -> Path:
    name, end = path.name, f".{tag}.part"
    room = NAME_BYTES_MAX - 1 - len(end)
    if len(os.fsencode(name)) > room:
        name = os.fsencode(name)[:room].decode(errors="ignore")
    return path.with_name(f".{name}{end}")


def verify_target(path: Path) -> None:
    """Raise `InputError` unless a file may take this name."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file in it")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is a pipe or a device, which a file would replace: leave --output out and redirect")


def _open_part(part: Path, path: Path) -> int:
    """Return a part file opened for this process alone."""
    while True:
        with _faults_named(path):
            handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                state = os.fstat(handle)
                if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1:
                    raise InputError(f"{part} is not a part file, or has two names: remove it and run this again")
                if state.st_nlink and os.path.samestat(state, os.stat(part, follow_symlinks=False)):
                    return handle
            except FileNotFoundError:
                pass
            except BlockingIOError as fault:
                os.close(handle)
                raise InputError(
                    f"another process is writing the same blob to {path}: wait until it is done, or name another file"
                ) from fault
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)  # whoever had it was just done and gave it its name


async def _keep_right(
    part: _PartSource, header: Header, codec: Codec, key: bytes | None, report: Callable[[int, int], None]
) -> int:
    """Return how many bytes at the front of a part file are the blob's, and cut off the rest."""
    kept = 0
    if os.fstat(part.handle).st_size:
        source: Source = part if key is None else SealedSource(part, key)
        buffer = memoryview(bytearray(codec.matrix_bytes(header.code.segment_length(header.length, 0))))
        for index, root in enumerate(header.roots):
            start = index * header.code.segment_bytes
            stop = start + header.code.segment_length(header.length, index)
            if not await trio.to_thread.run_sync(_has_root, source, start, stop, root, codec, buffer):
                break
            kept = stop if key is None else _opened_bytes(stop, header.length, part.length)
            report(kept, part.length)
    with _faults_named(part.path):
        await trio.to_thread.run_sync(os.ftruncate, part.handle, kept)
    return kept


def _opened_bytes(stop: int, sealed: int, plain: int) -> int:
    """Return how many of a blob's `plain` bytes the frames hold that end before `stop` of its `sealed` bytes."""
    return plain if stop == sealed else max(0, stop - FRONT_BYTES) // SEALED_FRAME_BYTES * FRAME_BYTES


def _has_root(source: Source, start: int, stop: int, root: Root, codec: Codec, buffer: memoryview) -> bool:
    try:
        data = source.read(start, stop)
    except _Missing:
        return False
    return codec.encode(data, buffer).root == root


async def _fill(view: View, part: _PartSource, start: int, report: Callable[[int, int], None]) -> None:
    """Append the bytes from `start` on to a part file that has those before."""
    done = start
    with FileIO(part.handle, "r+b", closefd=False) as sink:
        sink.seek(start)

        async def write(views: list[memoryview]) -> None:
            nonlocal done
            with _faults_named(part.path):
                await trio.to_thread.run_sync(_write_all, sink, views)
            done += sum(len(piece) for piece in views)
            report(done, part.length)

        report(done, part.length)
        await view.read(write, start=start)


def _verify_hash(source: _PartSource, content_hash: bytes) -> None:
    hashed = blake3()
    for start in range(0, source.length, HASH_BYTES):
        hashed.update(source.read(start, min(start + HASH_BYTES, source.length)))
    if hashed.digest() != content_hash:
        raise WrongFolder(f"{source.path.name!r} is not what the folder says: its maker was wrong, or means harm")


def _put_in_place(handle: int, part: Path, path: Path) -> None:
    with _faults_named(path):
        os.fsync(handle)
        part.replace(path)
        sync_directory(path.parent)


@contextlib.asynccontextmanager
async def output_file(path: Path) -> AsyncIterator[BinaryIO]:
    """Open a file that takes its name only when all of it is written; what is there before stays until then.

    Raises `InputError`, `SpaceError`.
    """
    verify_target(path)
    part = _beside(path, secrets.token_hex(ID_CHARACTERS // 2))  # two who write one file do not write into each other
    with _faults_named(path):
        file = part.open("xb")
    try:
        with file:
            yield file
            with _faults_named(path):
                file.flush()
            await trio.to_thread.run_sync(_put_in_place, file.fileno(), part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


async def copy(
    view: View,
    sink: BinaryIO,
    report: Callable[[int, int], None],
    *,
    start: int = 0,
    stop: int | None = None,
) -> int:
    """Write bytes [start, stop) of a view to an open file or a pipe, and return how many; `report` as in `save`.

    Raises `SpaceError`, `InputError`, and what the view does.
    """
    stop = verify_range(start, stop, view.length)
    done = 0

    async def write(views: list[memoryview]) -> None:
        nonlocal done
        await trio.to_thread.run_sync(write_views, sink, views)
        done += sum(map(len, views))
        report(done, stop - start)

    await view.read(write, start=start, stop=stop)
    return done


def write_views(sink: BinaryIO, views: list[memoryview]) -> None:
    """Write pieces to a file or a pipe; raises `SpaceError`, and `InputError` naming the cause."""
    try:
        _write_all(sink, views)
    except OSError as fault:
        if fault.errno in FULL:
            raise SpaceError("the disk of the output is full: free some space and read again") from fault
        kind = OutputClosed if isinstance(fault, BrokenPipeError) else InputError
        raise kind(f"cannot write the output: {fault.strerror}") from fault


def _write_all(sink: BinaryIO | FileIO, views: list[memoryview]) -> None:
    for piece in views:
        left = piece
        while left:
            left = left[sink.write(left) :]


@contextlib.contextmanager
def _faults_named(path: Path) -> Iterator[None]:
    """Name the file where the disk says no."""
    try:
        yield
    except OSError as fault:
        if fault.errno in FULL:
            raise SpaceError(
                f"the disk of {path} is full: free some space and run the same command again, it goes on from there"
            ) from fault
        raise InputError(f"cannot write {path}: {fault.strerror}") from fault
