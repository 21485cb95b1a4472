"""What of a folder is there already, what is missing, and how files come to their places. Fetches nothing.

Nothing outside of the folder is written. For worker threads.
"""

import os
import unicodedata
from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from economics.errors import Rejected
from p2pnode.content.beneath import Below, Blocked, Found, faults_named, split
from p2pnode.content.landing import Landing, clear_way, find_part, is_own, set_executable
from p2pnode.content.manifest import FolderFile, Manifest, find_conflict
from p2pnode.content.scan import PART_SUFFIX, PIECE_BYTES, hash_handle, stop_if_cancelled
from p2pnode.errors import InconsistentBlob, InputError


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of a folder, in files."""

    kept: int
    """Were right already."""
    copied: int
    """Had their bytes elsewhere in the folder."""
    fetched: int
    removed: int
    """Things that the manifest does not have."""
    fetched_bytes: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to fetch from its byte `resumed` on."""

    file: FolderFile
    resumed: int = 0

    @property
    def length(self) -> int:
        return self.file.length - self.resumed

    @property
    def start(self) -> int:
        return self.file.offset + self.resumed

    @property
    def stop(self) -> int:
        return self.file.offset + self.file.length


@dataclass(slots=True)
class Placing:
    """One restore, but for what comes from elsewhere."""

    manifest: Manifest
    below: Below
    delete: bool
    kept: int = 0
    copied: int = 0
    fetched: int = 0
    fetched_bytes: int = 0
    missing: list[Wanted] = field(default_factory=list)
    twins: list[FolderFile] = field(default_factory=list)
    """Have the bytes of a file that is fetched."""
    coming: dict[bytes, str] = field(default_factory=dict)
    """Where the bytes that are fetched come to be, by content hash."""
    damaged: list[str] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)
    """Folders whose names are not yet durable."""

    # --- before --------------------------------------------------------------------------------------------------

    @classmethod
    def begin(cls, manifest: Manifest, target: Path, *, delete: bool) -> "Placing":
        """Look at all that is there, and put in place what needs no network."""
        verify_manifest(manifest)
        with faults_named(str(target)):
            target.mkdir(parents=True, exist_ok=True)
        below = Below(target)
        try:
            with faults_named(str(target)):
                below.lock()
                verify_cases(below, manifest)
                work = cls(manifest, below, delete)
                work._survey()
        except BaseException:
            below.close()
            raise
        return work

    def _survey(self) -> None:
        differ: list[FolderFile] = []
        at_hand: dict[bytes, str] = {}
        for file in self.manifest.files:
            found = self._look(file)
            if found is None:
                differ.append(file)
                continue
            at_hand.setdefault(file.content_hash, file.path)
            if self._fix_mode(file, found):
                self.kept += 1
            else:
                differ.append(file)
        for path in self.manifest.empty:
            self._look_for_folder(path)
        if self.delete and differ:
            self._find_strangers({file.content_hash: file.length for file in differ}, at_hand)
        done = self._copy([file for file in differ if file.content_hash in at_hand], at_hand)
        for file in differ:
            if file.path not in done:
                self._want(file)

    def _want(self, file: FolderFile) -> None:
        if file.length == 0:
            self.finish(Landing(self.below, file, resumed=0, replace=self.delete), Wanted(file))
        elif file.content_hash in self.coming:
            self.twins.append(file)
        else:
            self.coming[file.content_hash] = file.path
            self.missing.append(Wanted(file, self._find_part(file)))

    def _find_part(self, file: FolderFile) -> int:
        try:
            return find_part(self.below, file)
        except Blocked:  # what is in the way goes once the file comes, and there is no part behind it
            return 0

    def _look(self, file: FolderFile) -> Found | None:
        """Return what is in a file's place if it has its bytes; raises `Blocked` if something is in the way."""
        try:
            status = self.below.status(file.path)
        except Blocked:
            if not self.delete:
                raise
            return None
        if status is None:
            return None
        found = Found(file.path, status)
        if found.is_folder and not self.delete:
            raise Blocked(f"{self.below.show(file.path)} is a folder, where a file belongs: move it away")
        if found.is_file and status.st_size == file.length and self._hash(file.path) == file.content_hash:
            return found
        if self.below.is_key(file.path):
            raise Blocked(f"{self.below.show(file.path)} is a key of p2pnode, and would be replaced: move it away")
        return None

    def _hash(self, path: str) -> bytes | None:
        with suppress(FileNotFoundError, Blocked), self.below.file(path) as handle:
            return hash_handle(handle)
        return None

    def _fix_mode(self, file: FolderFile, found: Found) -> bool:
        """Make a file executable or not; False where that would change another name's file too: then it is copied."""
        if bool(found.status.st_mode & 0o100) == file.executable:
            return True
        if not is_own(found.status):
            return False
        with suppress(FileNotFoundError), self.below.file(file.path) as handle:
            set_executable(handle, file.executable)
        return True

    def _look_for_folder(self, path: str) -> None:
        if self.delete:
            return
        status = self.below.status(path)
        if status is not None and not Found(path, status).is_folder:
            raise Blocked(f"{self.below.show(path)} is in the way of a folder: move it away")

    def _find_strangers(self, wanted: dict[bytes, int], at_hand: dict[bytes, str]) -> None:
        """Add files that go, and have the bytes of one that comes: it was renamed."""
        lengths = set(wanted.values()) - {0}
        for found in self.below.walk(""):
            if found.is_file and found.status.st_size in lengths and not found.path.endswith(PART_SUFFIX):
                content = self._hash(found.path)
                if content in wanted:
                    at_hand.setdefault(content, found.path)

    def _copy(self, files: list[FolderFile], at_hand: dict[bytes, str]) -> set[str]:
        """Copy files from where their bytes are, and return the paths of those that are in place.

        All are written before the first is renamed: one may take the place of another's source.
        """
        written = [file for file in files if self._write_copy(file, at_hand[file.content_hash])]
        done = set()
        for file in written:
            with Landing(self.below, file, resumed=file.length, replace=self.delete) as landing:
                if landing.finish():
                    done.add(file.path)
                    self.touched.add(split(file.path)[0])
        self.copied += len(done)
        return done

    def _write_copy(self, file: FolderFile, source: str) -> bool:
        """Write the part of a file from another one; False if that is not there any more."""
        with suppress(FileNotFoundError, Blocked), self.below.file(source) as handle:
            with Landing(self.below, file, resumed=0, replace=self.delete) as landing:
                while piece := os.pread(handle, PIECE_BYTES, landing.written):
                    stop_if_cancelled()
                    landing.write(piece)
            return True
        return False

    def finish(self, landing: Landing, wanted: Wanted) -> bool:
        """Put a file in its place; False if its part had other bytes, and all of it is to be fetched."""
        with landing:
            if landing.finish():
                self.fetched += 1
                self.touched.add(split(wanted.file.path)[0])
            elif wanted.resumed:
                return False
            else:
                self.damaged.append(wanted.file.path)
        return True

    # --- after ---------------------------------------------------------------------------------------------------

    def end(self) -> Restored:
        """Put copies in place, make empty folders, and remove what does not belong there."""
        with faults_named(str(self.below.root)):
            done = self._copy(self.twins, self.coming)
            self.damaged += [file.path for file in self.twins if file.path not in done]
            if self.damaged:
                raise InconsistentBlob(
                    f"{len(self.damaged)} of {len(self.manifest.files)} files are not what the folder's writer said "
                    f"of them, such as {self.damaged[0]!r}: the others are in place"
                )
            for path in self.manifest.empty:
                if self.delete:
                    clear_way(self.below, path)
                with self.below.folder(path, make=True):
                    pass
            removed = self._remove_strangers() if self.delete else 0
            for path in self.touched:
                with suppress(FileNotFoundError), self.below.folder(path) as handle:
                    os.fsync(handle)
        return Restored(self.kept, self.copied, self.fetched, removed, self.fetched_bytes)

    def _remove_strangers(self) -> int:
        files = {file.path for file in self.manifest.files}
        empty = set(self.manifest.empty)
        ordered = sorted(key_below(path) for path in (*files, *empty))

        def is_folder_of_one(path: str) -> bool:
            key = key_below(path) + b"\0"
            at = bisect_left(ordered, key)
            return at < len(ordered) and ordered[at].startswith(key)

        def belongs(found: Found) -> bool:
            return found.path in empty or is_folder_of_one(found.path) if found.is_folder else found.path in files

        strangers = [found.path for found in self.below.walk("", enter=belongs) if not belongs(found)]
        for path in strangers:
            self.below.remove(path)
        return len(strangers)


def key_below(path: str) -> bytes:
    """Return what sorts a folder right before all that is in it."""
    return os.fsencode(path.replace("/", "\0"))


# --- what may be written ---------------------------------------------------------------------------------------------


def verify_manifest(manifest: Manifest) -> None:
    """Raise `InputError` for a manifest that breaks the format, or that names what a restore itself writes."""
    try:
        manifest.verify()
    except Rejected as fault:
        raise InputError(f"this is not a folder: {fault.detail}") from fault
    verify_names(manifest)


def verify_names(manifest: Manifest) -> None:
    """Raise `InputError` for a name that a restore itself writes."""
    for path in (*(file.path for file in manifest.files), *manifest.empty):
        if f"{PART_SUFFIX}/" in f"{path}/":
            raise InputError(f"the folder has {path!r}, a name that only unfinished downloads have")


def verify_cases(below: Below, manifest: Manifest) -> None:
    """Raise `InputError` where two paths would be one on this disk, since it takes A for a."""
    paths = [*(file.path for file in manifest.files), *manifest.empty]
    conflict = find_conflict([unicodedata.normalize("NFC", path).casefold() for path in paths])
    if conflict is not None and is_case_blind(below):
        raise InputError(f"two paths of the folder are both {conflict!r} to this disk: write it to another one")


def is_case_blind(below: Below) -> bool:
    """Return whether a disk takes A for a."""
    name = f".case{PART_SUFFIX}"
    with below.folder("") as handle:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=handle)
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=handle))
        try:
            return below.status(name.upper()) is not None
        finally:
            os.unlink(name, dir_fd=handle)
