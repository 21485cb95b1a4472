"""Whole blobs made of this machine's own files, by reference: what a home serves to peers without a copy of it.

Each blob is a file in the library that says what makes it up: files, with what they looked like, and bytes of its own,
such as a quilt's index. The directory is the index: a `serve` or `run` of the home serves what a `get` has put there
meanwhile. A file that has changed drops its blob at the next look; one that cannot be read now, as on a disk that is
unplugged, only hides it. What has changed unnoticed harms nobody: a reader compares all bytes with the blob's ID.

A sealed blob is sealed again for each reader, so its plain bytes are held to their hashes first: other bytes under the
same key would give the key's stream away (see sealed).
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from economics import cbor
from economics.blob import BlobId, Header, build_blob_id_text, parse_blob_id
from economics.crypto import DIGEST_BYTES
from economics.errors import Reason, Rejected
from p2pnode.coding.codec import Codec
from p2pnode.coding.kernel import load_kernel
from p2pnode.content.keyring import UNIT_BYTES, PinnedSource, pin
from p2pnode.content.scan import FolderSource
from p2pnode.content.sealed import SealedSource
from p2pnode.content.sources import BytesSource, FileSource, JoinedSource, Source, compute_header
from p2pnode.errors import ConfigError, InputError
from p2pnode.files import make_directory, read_bounded, replace_synced

VERSION = 1
RECIPE_BUDGET = cbor.Budget(size_max=160 << 20, depth_max=4, elements_max=400_000)
"""A folder's manifest is 64 MiB, the largest header 4, hashes of a sealed blob of 1 TiB 128; a quilt has 65,535 files
of five items each."""
RECIPES_HELD = 16
"""Recipes in memory: those of blobs that are being read now."""


class Changed(InputError):
    """A file is not any more what a blob was made of."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """A file, and what it looked like."""

    path: Path
    length: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path, length: int) -> "FilePart":
        """Return what a file looks like now; raises `InputError` if it cannot be seen, `Changed` if it is not a file
        of that length."""
        path = Path(os.path.abspath(path))
        try:
            found = path.stat()
        except OSError as fault:
            raise InputError(f"cannot read {path}: {fault.strerror}") from fault
        if found.st_size != length or not path.is_file():
            raise Changed(f"{path} has {found.st_size} bytes and had {length}: it changed meanwhile")
        return cls(path, length, found.st_mtime_ns, found.st_ino)

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes [start, stop); raises `Changed` where the file looks different before or after."""
        self.verify()
        data = FileSource(self.path, self.length).read(start, stop)
        self.verify()
        return data

    def verify(self) -> None:
        if FilePart.of(self.path, self.length) != self:
            raise Changed(f"{self.path} has changed")


Part = FilePart | BytesSource


@dataclass(frozen=True, slots=True)
class Recipe:
    """What makes up a blob."""

    header: Header
    parts: tuple[Part, ...]
    digests: bytes | None
    """Of a sealed blob: the BLAKE3 hash of each 256 KiB of its plain bytes."""

    def build_source(self, key: bytes | None) -> Source:
        """Return the blob's bytes. Raises `InputError` for a sealed one whose key is not known."""
        plain = self.parts[0] if len(self.parts) == 1 else JoinedSource(self.parts, "a blob of the library")
        if self.digests is None:
            return plain
        if key is None:
            raise InputError("the key of a sealed blob in the library is not in the keyring")
        return SealedSource(PinnedSource(plain, self.digests), key)

    def encode(self) -> bytes:
        return cbor.encode(
            {
                "digests": self.digests,
                "header": self.header.encode(),
                "parts": [encode_part(part) for part in self.parts],
                "version": VERSION,
            }
        )

    @classmethod
    def decode(cls, data: bytes, *, blob_id: BlobId) -> "Recipe":
        """Return a blob's recipe, or raise `Rejected`."""
        match cbor.decode(data, budget=RECIPE_BUDGET):
            case {"digests": None | bytes() as digests, "header": bytes(header), "parts": [*parts], "version": 1}:
                recipe = cls(
                    Header.decode_any(header, blob_id=blob_id), tuple(decode_part(part) for part in parts), digests
                )
            case _:
                raise Rejected(Reason.MALFORMED, "not a blob of a library")
        plain = sum(part.length for part in recipe.parts)
        if not recipe.parts or (digests is not None and len(digests) != -(-plain // UNIT_BYTES) * DIGEST_BYTES):
            raise Rejected(Reason.MALFORMED, "not a blob of a library")
        if digests is None and plain != recipe.header.length:
            raise Rejected(Reason.MALFORMED, "its parts do not have the blob's length")
        return recipe


def encode_part(part: Part) -> cbor.Value:
    if isinstance(part, BytesSource):
        return part.data
    return [os.fsencode(part.path), part.length, part.mtime_ns, part.inode]


def decode_part(value: Any) -> Part:
    match value:
        case bytes():
            return BytesSource(value)
        case [bytes(path), int(length), int(mtime_ns), int(inode)]:
            return FilePart(Path(os.fsdecode(path)), length, mtime_ns, inode)
        case _:
            raise Rejected(Reason.MALFORMED, "not a part of a blob")


def find_parts(source: Source) -> tuple[tuple[Part, ...], bytes | None]:
    """Return (parts, hashes of the plain bytes of a sealed source), as the files look now.

    Raises `InputError` for a file that cannot be seen, `Changed` for one of another length.
    """
    if not isinstance(source, SealedSource):
        return tuple(walk_parts(source)), None
    inner = source.inner
    pinned = inner if isinstance(inner, PinnedSource) else pin(inner)[1]
    return tuple(walk_parts(pinned.inner)), pinned.digests


def walk_parts(source: Source) -> Iterator[Part]:
    match source:
        case FileSource():
            yield FilePart.of(source.path, source.length)
        case FolderSource():
            yield FilePart.of(source.root / source.path, source.length)
        case FilePart() | BytesSource():
            yield source
        case JoinedSource():
            for part in source.parts:
                yield from walk_parts(part)
        case _:
            raise AssertionError(f"{type(source).__name__} is not made of files and bytes")


class Library:
    """The blobs of one directory; its methods are for worker threads, several at once. A `Holdings`."""

    def __init__(self, path: Path, *, key_of: Callable[[BlobId], bytes | None] = lambda blob_id: None) -> None:
        """Open a library, which need not exist; `key_of` gives the keys of sealed blobs."""
        self.path = path
        self._key_of = key_of
        self._lock = threading.Lock()
        self._held: OrderedDict[BlobId, tuple[int, Recipe, Source]] = OrderedDict()

    # --- what a reader asks for --------------------------------------------------------------------------------------

    def header(self, blob_id: BlobId) -> Header | None:
        found = self._find(blob_id)
        return None if found is None else found[0].header

    def segment(self, blob_id: BlobId, index: int) -> bytes | None:
        found = self._find(blob_id)
        if found is None:
            return None
        header, source = found[0].header, found[1]
        start = index * header.code.segment_bytes
        try:
            return source.read(start, start + header.code.segment_length(header.length, index))
        except Changed:
            self.remove(blob_id)
            return None
        except InputError:
            return None

    def blob_ids(self) -> Sequence[BlobId]:
        """Return all blobs, whether or not their files are as they were: `drop_changed` looks at these."""
        return self._names()

    # --- what comes and goes -----------------------------------------------------------------------------------------

    def share(self, source: Source, codec: Codec) -> Header:
        """Encode a source and keep it as a blob; raises `InputError` if it cannot be read or changes meanwhile."""
        before = find_parts(source)
        header = compute_header(source, codec)
        if find_parts(source) != before:
            raise InputError(f"{source.name} changed while it was read: try again when nobody writes to it")
        self._put(header, *before)
        return header

    def add(self, header: Header, source: Source, *, is_checked: bool = False) -> None:
        """Keep a blob that came from elsewhere and is made of these files now.

        It is encoded again to see that it is this blob, unless that was seen of an unsealed one while it came. Raises
        `InputError` for a file that is gone, `Changed` for other bytes.
        """
        if isinstance(source, SealedSource) and not isinstance(source.inner, PinnedSource):
            source, is_checked = SealedSource(pin(source.inner)[1], source.key), False
        before = find_parts(source)
        if not is_checked and compute_header(source, Codec(header.code, load_kernel())) != header:
            raise Changed(f"{source.name} has other bytes than the blob")
        self._put(header, *before)

    def _put(self, header: Header, parts: tuple[Part, ...], digests: bytes | None) -> None:
        recipe = Recipe(header, parts or (BytesSource(b""),), digests)
        path = self._path(header.blob_id)
        try:
            make_directory(self.path)
            replace_synced(path, (recipe.encode(),), mode=0o600)
        except OSError as fault:
            raise ConfigError(f"cannot keep {path}: {fault.strerror}") from fault

    def remove(self, blob_id: BlobId) -> None:
        with self._lock:
            self._held.pop(blob_id, None)
        self._path(blob_id).unlink(missing_ok=True)

    def drop_changed(self) -> None:
        """Remove the blobs one of whose files looks different, and files that are no recipes."""
        for blob_id in self._names():
            found = self._find(blob_id)
            if found is None:
                continue
            try:
                for part in found[0].parts:
                    if isinstance(part, FilePart):
                        part.verify()
            except Changed:
                self.remove(blob_id)
            except InputError:
                continue

    def _path(self, blob_id: BlobId) -> Path:
        return self.path / build_blob_id_text(blob_id)

    def _names(self) -> list[BlobId]:
        try:
            names = sorted(os.listdir(self.path))
        except OSError:
            return []
        found = []
        for name in names:
            try:
                found.append(parse_blob_id(name))
            except Rejected:
                continue
        return found

    def _find(self, blob_id: BlobId) -> tuple[Recipe, Source] | None:
        """Return a blob's recipe and bytes, read again if its file is another one than before."""
        path = self._path(blob_id)
        try:
            mtime_ns = path.stat().st_mtime_ns
            with self._lock:
                held = self._held.get(blob_id)
                if held is not None and held[0] == mtime_ns:
                    self._held.move_to_end(blob_id)
                    return held[1], held[2]
            recipe = Recipe.decode(read_bounded(path, RECIPE_BUDGET.size_max), blob_id=blob_id)
            source = recipe.build_source(None if recipe.digests is None else self._key_of(blob_id))
        except (OSError, ConfigError, InputError):
            return None
        except Rejected:
            self.remove(blob_id)
            return None
        with self._lock:
            self._held[blob_id] = (mtime_ns, recipe, source)
            if len(self._held) > RECIPES_HELD:
                self._held.popitem(last=False)
        return recipe, source
