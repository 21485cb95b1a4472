"""Files below one folder, walked part by part from its open descriptor: no symbolic link is ever followed.

So nothing is read or written elsewhere, whatever others do in the folder meanwhile. Blocking: for worker threads.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from p2pnode.errors import InputError, SpaceError
from p2pnode.files import FULL

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""A pipe that is put in a file's place in the last moment is opened without waiting for its other end."""


MARK_LEVELS = 32
"""A folder of each so many levels stays open: a tree of 2,000 levels takes no two million steps to walk."""
MARKS_MAX = 128
"""Descriptors for that, of the thousand that a process has; a path has no more levels than they serve."""
KEYS_FOLDER = "keys"
KEY_FILES = frozenset({"operator.key", "owner.key", "faucet.key", "seal.secret"})
"""In a home. They are never stored with a folder, and never removed with one: wallet and stake would be lost."""


class Blocked(InputError):
    """A link, or what is no folder or no file, is where one is wanted."""


@dataclass(frozen=True, slots=True)
class Found:
    """One thing in a folder, itself and not what it links to."""

    path: str
    """As the system spells it: bytes that are not UTF-8 are half characters."""
    status: os.stat_result

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.status.st_mode)

    @property
    def kind(self) -> str:
        return name_kind(self.status.st_mode)


def name_kind(mode: int) -> str:
    kinds = ((stat.S_ISREG, "a file"), (stat.S_ISDIR, "a folder"), (stat.S_ISLNK, "a symbolic link"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "a pipe, a socket or a device")


@contextlib.contextmanager
def faults_named(what: str) -> Iterator[None]:
    """Raise `SpaceError` or `InputError` where the block meets a disk that is full or does not let it."""
    try:
        yield
    except OSError as fault:
        if fault.errno in FULL:
            raise SpaceError(f"the disk that holds {what} is full: free some space and run it again") from fault
        raise InputError(f"cannot use {what}: {fault.strerror}") from fault


def split(path: str) -> tuple[str, str]:
    """Return (folder, name)."""
    folder, _, name = path.rpartition("/")
    return folder, name


class Below:
    """An open folder. The folder itself may be reached through links: whoever named it chose them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with faults_named(str(root)):
            self._handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._marks: list[tuple[str, int]] = []
        """Folders on the way to the last one, each below the one before."""

    def __enter__(self) -> "Below":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lock(self) -> None:
        """Hold the folder for this process's writing alone, as long as it is open; raises `InputError`."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            raise InputError(f"another p2pnode is writing into {self.root}: wait until it is done") from fault

    def close(self) -> None:
        for _, handle in self._marks:
            os.close(handle)
        os.close(self._handle)

    def show(self, path: str) -> str:
        """Return how to call a path in a message."""
        return repr(os.path.join(self.root, path))[1:-1]

    @contextlib.contextmanager
    def folder(self, path: str, *, make: bool = False) -> Iterator[int]:
        """Yield a descriptor of a folder; `make` makes it with those above it, durably.

        Raises `Blocked`, and `FileNotFoundError` for one that is not there.
        """
        parts = path.split("/") if path else []
        begun, handle = self._nearest(path)
        try:
            for depth in range(begun + 1, len(parts) + 1):
                inner = self._step(handle, parts[:depth], make=make)
                os.close(handle)
                handle = inner
                if depth % MARK_LEVELS == 0 and len(self._marks) < MARKS_MAX:
                    self._marks.append(("/".join(parts[:depth]), os.dup(handle)))
            yield handle
        finally:
            os.close(handle)

    def _nearest(self, path: str) -> tuple[int, int]:
        """Return (depth, new descriptor) of the deepest open folder on the way to a path; close those beside it."""
        while self._marks and not f"{path}/".startswith(f"{self._marks[-1][0]}/"):
            os.close(self._marks.pop()[1])
        if not self._marks:
            return 0, os.dup(self._handle)
        at, handle = self._marks[-1]
        return at.count("/") + 1, os.dup(handle)

    def _step(self, handle: int, parts: list[str], *, make: bool) -> int:
        """Return a descriptor of the last of these folders, given that of the one above it."""
        try:
            return os.open(parts[-1], FOLDER, dir_fd=handle)
        except FileNotFoundError:
            if not make:
                raise
            with contextlib.suppress(FileExistsError):
                os.mkdir(parts[-1], 0o777, dir_fd=handle)
                os.fsync(handle)
            return self._step(handle, parts, make=False)
        except OSError as fault:
            if fault.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            shown = self.show("/".join(parts))
            raise Blocked(f"{shown} is a link or a file, where a folder is wanted: move it away") from fault

    def status(self, path: str) -> os.stat_result | None:
        """Return what is at a path, itself and not what it links to; None for nothing. Raises `Blocked`."""
        folder, name = split(path)
        try:
            with self.folder(folder) as handle:
                return os.stat(name, dir_fd=handle, follow_symlinks=False)
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def file(self, path: str) -> Iterator[int]:
        """Yield a descriptor to read a file with. Raises `Blocked` for what is none, `FileNotFoundError`."""
        folder, name = split(path)
        with self.folder(folder) as handle:
            mode = os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode
            if not stat.S_ISREG(mode):  # opening a device may do things
                raise Blocked(f"{self.show(path)} is {name_kind(mode)}")
            try:
                file = os.open(name, os.O_RDONLY | FILE, dir_fd=handle)
            except OSError as fault:
                if fault.errno != errno.ELOOP:
                    raise
                raise Blocked(f"{self.show(path)} is a symbolic link") from fault
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise Blocked(f"{self.show(path)} is not a file")
            yield file
        finally:
            os.close(file)

    def list(self, path: str) -> list[Found]:
        """Return what is in a folder, by name; what goes away meanwhile is left out. Raises as `folder` does."""
        found = []
        with self.folder(path) as handle, os.scandir(handle) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    found.append(Found(f"{path}/{entry.name}" if path else entry.name, status))
        return sorted(found, key=lambda one: one.path)

    def walk(self, path: str, *, enter: Callable[[Found], bool] = lambda found: True) -> Iterator[Found]:
        """Yield all below a folder, a folder before what is in it; `enter` says whether to look into one.

        Raises as `folder` does. What goes away meanwhile is left out. Depth costs neither stack nor descriptors.
        """
        waiting = [path]
        while waiting:
            try:
                found = self.list(waiting.pop())
            except FileNotFoundError:
                continue
            for one in found:
                yield one
                if one.is_folder and enter(one):
                    waiting.append(one.path)

    def remove(self, path: str) -> None:
        """Remove what is at a path, and all below it; links are removed and not followed.

        Raises `Blocked`, and removes nothing, where keys of p2pnode are there.
        """
        status = self.status(path)
        if status is None:
            return
        top = Found(path, status)
        found = [top, *self.walk(path)] if top.is_folder else [top]
        for one in found:
            if self.is_key(one.path):
                raise Blocked(f"{self.show(one.path)} is a key of p2pnode, and would be removed: move it away")
        for one in found:
            if not one.is_folder:
                self._unlink(one.path)
        for one in reversed(found):
            if one.is_folder:
                self.remove_folder(one.path)

    def is_key(self, path: str) -> bool:
        """Return whether a path is that of a key in a home."""
        folder, name = split(path)
        return name in KEY_FILES and (folder or self.root.resolve().name).rpartition("/")[2] == KEYS_FOLDER

    def _unlink(self, path: str) -> None:
        folder, name = split(path)
        with contextlib.suppress(FileNotFoundError), self.folder(folder) as handle:
            os.unlink(name, dir_fd=handle)

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder."""
        folder, name = split(path)
        with contextlib.suppress(FileNotFoundError), self.folder(folder) as handle:
            os.rmdir(name, dir_fd=handle)
