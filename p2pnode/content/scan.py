"""What is in a folder: its files, what is in each, and what cannot be stored. Writes nothing and knows no network."""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import trio
from blake3 import blake3

from economics.errors import Rejected
from p2pnode.content.beneath import KEY_FILES, KEYS_FOLDER, Below, Blocked, Found, faults_named
from p2pnode.content.names import encode_path
from p2pnode.content.sources import verify_length
from p2pnode.errors import InputError

PIECE_BYTES = 1 << 20
"""Read at once: large enough that the disk and not the calls take the time."""
PART_SUFFIX = ".p2pnode-part"
"""Files with such a name are what an interrupted restore left."""
ATTEMPTS = 3
"""To read a file while nobody changes it."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """What is in a folder and is not stored."""

    path: str
    """Fit to be shown."""
    why: str


@dataclass(frozen=True, slots=True)
class Scanned:
    """What is in a folder."""

    root: Path
    files: tuple[str, ...]
    """Paths of regular files, ascending by their UTF-8 bytes."""
    empty: tuple[str, ...]
    """Folders with nothing in them that can be stored, ascending."""
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A file below a folder, as it was when it was hashed: reads fail once it has changed."""

    root: Path
    path: str
    length: int
    stamp: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        return str(self.root / self.path)

    def read(self, start: int, stop: int) -> bytes:
        with faults_named(self.name), Below(self.root) as below, below.file(self.path) as file:
            data = os.pread(file, stop - start, start)
            while data and len(data) < stop - start:
                more = os.pread(file, stop - start - len(data), start + len(data))
                if not more:
                    break
                data += more
            is_same = stamp_of(os.fstat(file)) == self.stamp
        if not is_same or len(data) != stop - start:
            raise InputError(f"{self.name} changed while it was stored: store the folder again")
        return data


@dataclass(frozen=True, slots=True)
class Hashed:
    """A file of a folder and what is in it."""

    source: FolderSource
    executable: bool
    content_hash: bytes

    @property
    def path(self) -> str:
        return self.source.path


def stamp_of(status: os.stat_result) -> tuple[int, int, int, int]:
    """Return what differs once a file is another or has other bytes."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def scan(directory: Path) -> Scanned:
    """Return what is in a folder; what cannot be stored is named, and no link is followed. Raises `InputError`."""
    skipped: list[Skipped] = []
    files: list[str] = []
    folders: list[str] = []
    with Below(directory) as below, faults_named(str(directory)):
        waiting = [""]
        while waiting:
            at = waiting.pop()
            try:
                found = below.list(at)
            except (OSError, Blocked) as fault:
                if not at:
                    raise
                skipped.append(Skipped(below.show(at), f"cannot be read: {why(fault)}"))
                continue
            if holds_keys(below, at, found):
                if not at:
                    raise InputError(
                        f"{directory} is a home of p2pnode: its keys are for nobody else, store other folders"
                    )
                folders.remove(at)
                skipped.append(Skipped(below.show(at), "it is a home of p2pnode, with its keys"))
                continue
            for one in found:
                if cause := unfit(one):
                    skipped.append(Skipped(below.show(one.path), cause))
                elif one.is_folder:
                    waiting.append(one.path)
                    folders.append(one.path)
                else:
                    files.append(one.path)
    full = {above for path in (*files, *folders) if (above := path.rpartition("/")[0])}
    empty = [path for path in folders if path not in full]
    return Scanned(directory, tuple(ascending(files)), tuple(ascending(empty)), tuple(skipped))


def holds_keys(below: Below, at: str, found: Iterable[Found]) -> bool:
    """Return whether a folder is the home of a node or client, or the folder of its keys."""
    names = {one.path.rpartition("/")[2] for one in found}
    if (at or str(below.root.resolve())).rpartition("/")[2] == KEYS_FOLDER:
        return not names.isdisjoint(KEY_FILES)
    if KEYS_FOLDER not in names:
        return False
    with contextlib.suppress(OSError, Blocked):
        keys = below.list(f"{at}/{KEYS_FOLDER}" if at else KEYS_FOLDER)
        return any(one.path.rpartition("/")[2] in KEY_FILES for one in keys)
    return False


def ascending(paths: Iterable[str]) -> list[str]:
    return sorted(paths, key=lambda path: path.encode("utf-8"))


def unfit(found: Found) -> str | None:
    """Return why a thing cannot be stored; None if it can."""
    if not found.is_file and not found.is_folder:
        return f"it is {found.kind}"
    if found.path.endswith(PART_SUFFIX):
        return "an interrupted download left it"
    try:
        encode_path(found.path)
    except Rejected as fault:
        return fault.detail
    return None


def why(fault: Exception) -> str:
    return str(fault.strerror) if isinstance(fault, OSError) else str(fault)


def hash_files(scanned: Scanned) -> tuple[list[Hashed], list[Skipped]]:
    """Return each file with what is in it now, and those that cannot be read. Reads every byte: 1 s for each GB."""
    hashed: list[Hashed] = []
    skipped: list[Skipped] = []
    with Below(scanned.root) as below:
        for path in scanned.files:
            try:
                hashed.append(hash_file(below, path))
            except (OSError, Blocked) as fault:
                skipped.append(Skipped(below.show(path), f"cannot be read: {why(fault)}"))
    return hashed, skipped


def hash_file(below: Below, path: str) -> Hashed:
    """Return a file and what is in it; raises `OSError`, `Blocked`, `InputError` if it keeps changing."""
    for _ in range(ATTEMPTS):
        with below.file(path) as file:
            before = os.fstat(file)
            content_hash = hash_handle(file)
            if stamp_of(os.fstat(file)) == stamp_of(before):
                verify_length(before.st_size, below.show(path))
                source = FolderSource(below.root, path, before.st_size, stamp_of(before))
                return Hashed(source, bool(before.st_mode & 0o100), content_hash)
    raise InputError(f"{below.show(path)} is being written to: store the folder when that is done")


def hash_handle(file: int) -> bytes:
    """Return the BLAKE3 hash of an open file's bytes."""
    hasher, at = blake3(), 0
    while piece := os.pread(file, PIECE_BYTES, at):
        stop_if_cancelled()
        hasher.update(piece)
        at += len(piece)
    return hasher.digest()


def stop_if_cancelled() -> None:
    """Raise `trio.Cancelled` in a worker thread whose task is cancelled: reading a disk takes minutes."""
    with contextlib.suppress(RuntimeError):  # no task of trio waits for this thread
        trio.from_thread.check_cancelled()
