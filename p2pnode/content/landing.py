"""One file of a folder on its way to its place: written beside it, checked, made durable, renamed. For worker threads.

The part is named by the file's name and content, so an interrupted restore finds it again. Nothing is written through
a link: not a symbolic one, and not a hard one to a file elsewhere.
"""

import contextlib
import errno
import os
import stat
from typing import Self

from blake3 import blake3

from p2pnode.content.beneath import FILE, Below, Blocked, split
from p2pnode.content.manifest import FolderFile
from p2pnode.content.scan import PART_SUFFIX, PIECE_BYTES, stop_if_cancelled

RESUMED_BYTES_MIN = 1 << 20
"""Less than that is fetched again at once."""


def part_of(file: FolderFile) -> tuple[str, str]:
    """Return (folder, name) of the part of a file."""
    folder, name = split(file.path)
    tag = blake3(file.content_hash + name.encode("utf-8")).hexdigest()[:32]
    return folder, f".{tag}{PART_SUFFIX}"


def find_part(below: Below, file: FolderFile) -> int:
    """Return how many bytes of a file an interrupted restore left in its part."""
    folder, name = part_of(file)
    status = below.status(f"{folder}/{name}" if folder else name)
    if status is None or not is_own(status) or status.st_size > file.length:
        return 0
    return status.st_size if status.st_size >= RESUMED_BYTES_MIN else 0


def is_own(status: os.stat_result) -> bool:
    """Return whether writing to this changes nothing that has another name too, or another owner."""
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == os.geteuid()


def set_executable(file: int, executable: bool) -> None:
    """Let whoever may read an open file run it, or nobody."""
    mode = stat.S_IMODE(os.fstat(file).st_mode)
    wanted = mode | (mode & 0o444) >> 2 if executable else mode & ~0o111
    if wanted != mode:
        os.fchmod(file, wanted)


class Landing:
    """A file that is being written: `finish` puts it in its place; the end of the block leaves its part for later."""

    def __init__(self, below: Below, file: FolderFile, *, resumed: int, replace: bool) -> None:
        """Take up the part's first `resumed` bytes; `replace` lets the file take the place of a folder and of links
        above it. Raises `Blocked`, `OSError`."""
        self.below = below
        self.file = file
        self.replace = replace
        self.written = 0
        self._hasher = blake3()
        self._open = contextlib.ExitStack()
        folder, self._part = part_of(file)
        if replace:
            clear_way(below, folder)
        try:
            self._folder = self._open.enter_context(below.folder(folder, make=True))
            self._file = self._open_part(resumed)
            self._open.callback(os.close, self._file)
            self._take_up(resumed)
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _open_part(self, resumed: int) -> int:
        if resumed:
            with contextlib.suppress(OSError):
                file = os.open(self._part, os.O_RDWR | FILE, dir_fd=self._folder)
                if is_own(os.fstat(file)):
                    return file
                os.close(file)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._part, dir_fd=self._folder)
        return os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_EXCL | FILE, 0o666, dir_fd=self._folder)

    def _take_up(self, resumed: int) -> None:
        while self.written < resumed:
            piece = os.pread(self._file, min(PIECE_BYTES, resumed - self.written), self.written)
            if not piece:
                break
            stop_if_cancelled()
            self._hasher.update(piece)
            self.written += len(piece)
        os.ftruncate(self._file, self.written)
        os.lseek(self._file, self.written, os.SEEK_SET)

    def write(self, piece: memoryview | bytes) -> None:
        """Append bytes."""
        self._hasher.update(piece)
        view = memoryview(piece)
        self.written += len(view)
        while view:
            view = view[os.write(self._file, view) :]

    def finish(self) -> bool:
        """Put the file in its place, durably but for its name, and return True; False if it has other bytes than it
        should: then its part is gone. Raises `Blocked` for a folder in its place."""
        if self.written != self.file.length or self._hasher.digest() != self.file.content_hash:
            os.unlink(self._part, dir_fd=self._folder)
            return False
        set_executable(self._file, self.file.executable)
        os.fsync(self._file)
        try:
            self._rename()
        except OSError as fault:
            if fault.errno != errno.EISDIR:
                raise
            if not self.replace:
                raise Blocked(f"{self.below.show(self.file.path)} is a folder, where a file belongs") from fault
            self.below.remove(self.file.path)
            self._rename()
        return True

    def _rename(self) -> None:
        _, name = split(self.file.path)
        os.rename(self._part, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)


def clear_way(below: Below, folder: str) -> None:
    """Remove what is in the place of a folder or of one above it, and is none; links are not followed."""
    parts = folder.split("/") if folder else []
    for depth in range(1, len(parts) + 1):
        path = "/".join(parts[:depth])
        status = below.status(path)
        if status is None:
            return
        if not stat.S_ISDIR(status.st_mode):
            below.remove(path)
            return
