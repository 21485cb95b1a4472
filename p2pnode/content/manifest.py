"""Manifests: which files a folder has, and where the bytes of each are (FORMATS.md 20). Knows no disk."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import trio

from economics import cbor
from economics.blob import BlobId
from economics.crypto import DIGEST_BYTES
from economics.errors import Reason, Rejected
from economics.geometry import BLOB_BYTES_MAX
from p2pnode.content.names import PATH_BYTES_MAX, encode_path
from p2pnode.content.views import View, read_all
from p2pnode.errors import InputError

MAGIC = b"p2pf"
VERSION = 1
FRONT = MAGIC + bytes((VERSION,))
MANIFEST_BYTES_MAX = 64 << 20
SEALING_KEY_BYTES = 32
ITEM_BUDGET = cbor.Budget(size_max=PATH_BYTES_MAX + 256, depth_max=1, elements_max=8)
"""Of one blob, file or empty folder."""
ITEMS_MAX = MANIFEST_BYTES_MAX // 2
"""No list has more: its items have two bytes at least."""


class NotAFolder(InputError):
    """A blob is no folder's manifest, or one that breaks the format."""


@dataclass(frozen=True, slots=True)
class FolderBlob:
    """A blob that holds files of a folder."""

    blob_id: BlobId
    length: int
    """Of its plain bytes."""
    key: bytes = field(default=b"", repr=False)
    """Opens it: 32 bytes, or none where it is not sealed."""


@dataclass(frozen=True, slots=True)
class FolderFile:
    """A file of a folder: bytes [offset, offset + length) of the plain bytes of a blob."""

    path: str
    length: int
    executable: bool
    content_hash: bytes
    """BLAKE3 of its bytes."""
    blob: int
    """Index into the manifest's blobs."""
    offset: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in a folder."""

    blobs: tuple[FolderBlob, ...]
    """In the order of the first file in each."""
    files: tuple[FolderFile, ...]
    """Ascending by the path's UTF-8 bytes."""
    empty: tuple[str, ...] = ()
    """Paths of folders with nothing in them, ascending."""

    def encode(self) -> bytes:
        """Return the bytes of the blob; `decode` reverses it. Raises `Rejected` where a reader would."""
        self.verify()
        blobs: list[cbor.Value] = [[bytes(blob.blob_id), blob.length, blob.key] for blob in self.blobs]
        files: list[cbor.Value] = [
            [file.path, file.length, file.executable, file.content_hash, file.blob, file.offset] for file in self.files
        ]
        data = FRONT + cbor.encode([blobs, files, list(self.empty)])
        verify_size(len(data))
        return data

    @classmethod
    def decode(cls, data: bytes, *, paths_max: int = ITEMS_MAX) -> "Manifest":
        """Return the manifest that these bytes are; raises `Rejected`, also for more files or empty folders.

        Costs about 10 us for each file: for a worker thread.
        """
        verify_size(len(data))
        if not is_folder(data):
            raise Rejected(Reason.MALFORMED, "it does not begin as one")
        items = cbor.Items(data[len(FRONT) :])
        if items.open_list(items_max=3) != 3:
            raise Rejected(Reason.MALFORMED, "a folder is [blobs, files, empty]")
        blobs = tuple(decode_blob(items.take(budget=ITEM_BUDGET)) for _ in range(items.open_list(items_max=ITEMS_MAX)))
        files = tuple(decode_file(items.take(budget=ITEM_BUDGET)) for _ in range(items.open_list(items_max=paths_max)))
        empty = tuple(decode_path(items.take(budget=ITEM_BUDGET)) for _ in range(items.open_list(items_max=paths_max)))
        items.end()
        manifest = cls(blobs, files, empty)
        manifest.verify()
        return manifest

    def verify(self) -> None:
        """Raise `Rejected` unless all that FORMATS.md 20 demands holds."""
        verify_order(file.path for file in self.files)
        verify_order(self.empty)
        verify_tree([*(file.path for file in self.files), *self.empty])
        for blob in self.blobs:
            verify_blob(blob)
        named = 0
        for file in self.files:
            if not 0 <= file.blob <= min(named, len(self.blobs) - 1):
                raise Rejected(Reason.MALFORMED, f"{file.path!r} is in a blob that is not named, or not in order")
            named = max(named, file.blob + 1)
            verify_file(file, blob_length=self.blobs[file.blob].length)
        if named != len(self.blobs):
            raise Rejected(Reason.MALFORMED, "a blob holds no file of the folder")
        if len({blob.blob_id for blob in self.blobs}) != len(self.blobs):
            raise Rejected(Reason.MALFORMED, "a blob is named twice")

    def find(self, path: str) -> FolderFile:
        """Return the file at a path; raises `InputError` where there is none."""
        at = bisect_left(self.files, path.encode("utf-8", "surrogatepass"), key=lambda file: file.path.encode("utf-8"))
        if at == len(self.files) or self.files[at].path != path:
            raise InputError(f"the folder has no file {path!r}: `p2pnode ls` shows what it has")
        return self.files[at]

    def inside(self, path: str) -> "Manifest | None":
        """Return what a folder within this one has; None where there is none of this path."""
        front = f"{path}/"
        files = [file for file in self.files if file.path.startswith(front)]
        empty = tuple(name[len(front) :] for name in self.empty if name.startswith(front))
        if not files and not empty and path not in self.empty:
            return None
        numbers = {old: new for new, old in enumerate(dict.fromkeys(file.blob for file in files))}
        return Manifest(
            tuple(self.blobs[old] for old in numbers),
            tuple(replace(file, path=file.path[len(front) :], blob=numbers[file.blob]) for file in files),
            empty,
        )


async def read_manifest(
    view: View,
    *,
    size_max: int = MANIFEST_BYTES_MAX,
    paths_max: int = ITEMS_MAX,
    parsing: trio.CapacityLimiter | None = None,
) -> Manifest:
    """Return what is in a folder; raises `NotAFolder`, and what reading does.

    Whoever reads strangers' folders for others names less: a file takes some 400 bytes of memory, an empty folder some
    100 and as few as 5 of the manifest; and `parsing`, which limits the threads that parse.
    """
    if view.length > size_max:
        raise NotAFolder(f"this blob is not a folder: it has {view.length} bytes, at most {size_max}")
    front = await read_all(view, stop=min(view.length, len(FRONT)), size_max=len(FRONT))
    if front != FRONT:  # before all of a blob is fetched that is anything else
        raise NotAFolder("this blob is not a folder: it does not begin as one")
    data = await read_all(view, size_max=size_max)
    try:
        return await trio.to_thread.run_sync(lambda: Manifest.decode(data, paths_max=paths_max), limiter=parsing)
    except Rejected as fault:
        raise NotAFolder(f"this blob is not a folder: {fault.detail}") from fault


def is_folder(prefix: bytes) -> bool:
    """Return whether a blob that begins so claims to be a folder."""
    return prefix.startswith(FRONT)


def decode_blob(value: object) -> FolderBlob:
    match value:
        case [bytes(blob_id), int(length), bytes(key)] if not isinstance(length, bool):
            return FolderBlob(BlobId(blob_id), length, key)
        case _:
            raise Rejected(Reason.MALFORMED, "a blob of a folder is [ID, length, key]")


def decode_file(value: object) -> FolderFile:
    match value:
        case [str(path), int(length), bool(executable), bytes(content_hash), int(blob), int(offset)] if not any(
            isinstance(number, bool) for number in (length, blob, offset)
        ):
            return FolderFile(path, length, executable, content_hash, blob, offset)
        case _:
            raise Rejected(Reason.MALFORMED, "a file of a folder is [path, length, executable, hash, blob, offset]")


def decode_path(value: object) -> str:
    if not isinstance(value, str):
        raise Rejected(Reason.MALFORMED, "a path is text")
    return value


def verify_size(size: int) -> None:
    if size > MANIFEST_BYTES_MAX:
        raise Rejected(Reason.TOO_LARGE, f"a folder's manifest has {size} bytes, at most {MANIFEST_BYTES_MAX}")


def verify_blob(blob: FolderBlob) -> None:
    if len(blob.blob_id) != DIGEST_BYTES or len(blob.key) not in (0, SEALING_KEY_BYTES):
        raise Rejected(Reason.MALFORMED, "a blob's ID has 32 bytes, and its key none or 32")
    if not 0 <= blob.length <= BLOB_BYTES_MAX:
        raise Rejected(Reason.MALFORMED, f"a blob has a length of {blob.length}")


def verify_file(file: FolderFile, *, blob_length: int) -> None:
    if len(file.content_hash) != DIGEST_BYTES:
        raise Rejected(Reason.MALFORMED, f"the hash of {file.path!r} is not 32 bytes")
    if file.length < 0 or file.offset < 0 or file.offset + file.length > blob_length:
        raise Rejected(Reason.MALFORMED, f"{file.path!r} is not all in its blob")


def verify_order(paths: Iterable[str]) -> None:
    """Raise `Rejected` unless all are paths below a folder, ascending, none twice."""
    last = b""
    for path in paths:
        raw = encode_path(path)
        if raw == last:
            raise Rejected(Reason.MALFORMED, f"{path!r} is named twice")
        if raw < last:
            raise Rejected(Reason.MALFORMED, "the paths are not in order")
        last = raw


def verify_tree(paths: list[str]) -> None:
    """Raise `Rejected` where a path is named twice, or is that of a folder with something in it too."""
    conflict = find_conflict(paths)
    if conflict is not None:
        raise Rejected(Reason.MALFORMED, f"{conflict!r} is there twice, or with something in it that cannot be")


def find_conflict(paths: list[str]) -> str | None:
    """Return a path that is there twice, or that is above another one.

    With the lowest character in the place of the slash, what is in a folder comes right behind it: no need to hold
    every folder of every path, of which a small manifest can have billions of characters.
    """
    ordered = sorted(path.replace("/", "\0").encode("utf-8") for path in paths)
    for last, following in pairwise(ordered):
        if following == last or following.startswith(last + b"\0"):
            return last.decode("utf-8").replace("\0", "/")
    return None
