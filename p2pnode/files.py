"""Durable files: what is acknowledged survives a crash of the process or the machine. Blocking: for worker threads."""

import contextlib
import errno
import fcntl
import os
import resource
from collections.abc import Iterable, Iterator
from pathlib import Path

from p2pnode.errors import ConfigError, SpaceError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
DESCRIPTORS = 16_384
"""Asked for by what serves others: 512 connections of a gateway with a file each are the 1,024 of most systems."""


def allow_descriptors() -> None:
    """Let this process open as many files and connections as the system allows it, up to `DESCRIPTORS`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(directory: Path) -> None:
    """Make a directory for the user alone, and those above it, durably; one that is there stays as it is."""
    if not directory.is_dir():
        make_directory(directory.parent)
        with full_disk_named(directory.parent):
            directory.mkdir(mode=0o700, exist_ok=True)
            sync_directory(directory.parent)


def read_bounded(path: Path, bytes_max: int) -> bytes:
    """Return what is in a file; raises `OSError` for one that is larger than any of its kind."""
    with path.open("rb") as file:
        data = file.read(bytes_max + 1) if os.fstat(file.fileno()).st_size <= bytes_max else None
    if data is None or len(data) > bytes_max:
        raise OSError(errno.EFBIG, f"it is larger than {bytes_max} bytes")
    return data


@contextlib.contextmanager
def full_disk_named(directory: Path) -> Iterator[None]:
    """Raise `SpaceError` naming the disk where the block finds it full."""
    try:
        yield
    except OSError as fault:
        if fault.errno in FULL:
            raise SpaceError(f"the disk that holds {directory} is full: free some space or lower the quota") from fault
        raise


def write_synced(path: Path, parts: Iterable[bytes | bytearray | memoryview], *, mode: int = 0o644) -> None:
    """Write a new file and fsync it; its name is not yet durable. A full disk leaves nothing behind: `SpaceError`."""
    with full_disk_named(path.parent):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            try:
                for part in parts:
                    view = memoryview(part)
                    while view:
                        view = view[os.write(handle, view) :]
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
            raise


def replace_synced(path: Path, parts: Iterable[bytes | bytearray | memoryview], *, mode: int = 0o644) -> None:
    """Put a file in place at once and durably: a reader sees the old bytes or all of the new ones.

    Threads and processes that do it at once do not meet: the last one's bytes stay.
    """
    fresh = path.with_name(f"{path.name}.{os.urandom(4).hex()}.new")
    write_synced(fresh, parts, mode=mode)
    with full_disk_named(path.parent):
        fresh.replace(path)
        sync_directory(path.parent)


@contextlib.contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Hold the directory for this process alone, or raise `ConfigError` naming it."""
    handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            raise ConfigError(f"{directory} is in use by another p2pnode process: stop that one first") from fault
        yield
    finally:
        os.close(handle)
