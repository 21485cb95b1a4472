"""What is in a blob: bytes, a quilt or a folder, sealed or not; and the plain bytes of it, or of one file in it.

A blob's first bytes say what it may be, and any bytes can say so: what then does not hold to the format is bytes, and
without a key a sealed blob is bytes too. So whatever was stored is read again as it was. Only who asks for a file in
a blob that has none gets an error.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import trio
from blake3 import blake3

from economics.blob import BlobId
from economics.errors import Rejected
from p2pnode.content.manifest import MANIFEST_BYTES_MAX, FolderFile, Manifest, NotAFolder, is_folder, read_manifest
from p2pnode.content.quilt import Entry, Index, NotAQuilt, build_patch_id, is_quilt, read_index
from p2pnode.content.sealed import FRONT_BYTES, SealedView, is_sealed, plain_length
from p2pnode.content.views import SliceView, View, Write, read_all, verify_range
from p2pnode.errors import InputError

OpenBlob = Callable[[BlobId], Awaitable[View]]
"""Returns a blob's own bytes; raises `Unavailable`, `NetworkError`."""
Keys = Callable[[BlobId], bytes | None]
"""Returns the key of a sealed blob where it is known, in a worker thread: `Keyring.key_of`, or what a link says."""


class NoKey(InputError):
    """A blob is sealed, and nobody here knows its key."""


class WrongFolder(InputError):
    """A file is not what its folder says: the folder's maker was wrong, or means harm."""


class Kind(StrEnum):
    """What a blob is."""

    BYTES = "bytes"
    QUILT = "quilt"
    FOLDER = "folder"
    SEALED = "sealed"
    """It begins as a sealed one, and there is no key: what is in it cannot be told."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A file in a quilt or a folder, for a list of them."""

    path: str
    """With a slash at its end for a folder that has nothing in it."""
    length: int
    executable: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    patch_id: str | None = None
    """Names a quilt's file by itself."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a blob holds."""

    blob_id: BlobId
    view: View
    """Its plain bytes; its own where it is not sealed, or the key is not known."""
    kind: Kind
    is_sealed: bool = False
    """That it was opened with a key."""
    index: Index | None = None
    """Of a quilt."""
    manifest: Manifest | None = None
    """Of a folder."""
    why: InputError | None = None
    """Why it is bytes although it begins as a quilt or a folder."""

    def open_entry(self, entry: Entry) -> View:
        """Return the bytes of a quilt's file."""
        return SliceView(self.view, entry.start, entry.length)

    def listing(self) -> tuple[Listed, ...]:
        """Return the files, ascending; raises `InputError` for a blob that has none."""
        if self.index is not None:
            return tuple(
                Listed(entry.name, entry.length, tags=entry.tags, patch_id=build_patch_id(self.blob_id, entry.number))
                for entry in self.index.entries
            )
        if self.manifest is not None:
            files = [Listed(file.path, file.length, file.executable) for file in self.manifest.files]
            empty = [Listed(f"{path}/", 0) for path in self.manifest.empty]
            return tuple(sorted([*files, *empty], key=lambda file: file.path.encode()))
        raise self._no_files()

    async def open_file(self, open_blob: OpenBlob, path: str) -> View:
        """Return the plain bytes of a file in a quilt or a folder.

        Raises `InputError` where there is none, `NoKey`, and what `open_blob` does.
        """
        if self.index is not None:
            return self.open_entry(self.index.find(path))
        if self.manifest is not None:
            return await open_folder_file(open_blob, self.manifest, self.manifest.find(path))
        raise self._no_files()

    def _no_files(self) -> InputError:
        if self.kind is Kind.SEALED:
            return NoKey("this blob is sealed and its key is not known here: open the link that has the key")
        return self.why or InputError("this blob is one file, neither a quilt nor a folder: read it without a path")


async def describe(
    open_blob: OpenBlob, keys: Keys, blob_id: BlobId, *, manifest_bytes_max: int = MANIFEST_BYTES_MAX
) -> Content:
    """Return what a blob is, reading its first bytes, and all of an index or manifest.

    Raises `WrongKey` for a key that does not open it, and what `open_blob` and `keys` do. A folder of more bytes than
    `manifest_bytes_max` counts as bytes.
    """
    view = await open_blob(blob_id)
    prefix = await read_prefix(view)
    opened = False
    if is_sealed(prefix) and is_sealed_length(view.length):
        key = await trio.to_thread.run_sync(keys, blob_id)
        if key is None:
            return Content(blob_id, view, Kind.SEALED)
        view, opened = SealedView(view, key), True
        prefix = await read_prefix(view)
    try:
        if is_quilt(prefix):
            return Content(blob_id, view, Kind.QUILT, opened, index=await read_index(view))
        if is_folder(prefix):
            manifest = await read_manifest(view, size_max=manifest_bytes_max)
            return Content(blob_id, view, Kind.FOLDER, opened, manifest=manifest)
    except (NotAQuilt, NotAFolder) as fault:
        return Content(blob_id, view, Kind.BYTES, opened, why=fault)
    return Content(blob_id, view, Kind.BYTES, opened)


async def open_content(open_blob: OpenBlob, keys: Keys, blob_id: BlobId, path: str | None) -> View:
    """Return the plain bytes of a blob, or of the file at `path` in a quilt or folder.

    Without a path a sealed blob whose key is known is opened with it, and any other is given as it is. Raises
    `InputError` (`NoKey`, `WrongKey`, no such file), and what `open_blob` and `keys` do.
    """
    if path is not None:
        content = await describe(open_blob, keys, blob_id)
        return await content.open_file(open_blob, path)
    view = await open_blob(blob_id)
    key = await find_key(view, keys, blob_id)
    return view if key is None else SealedView(view, key)


async def find_key(view: View, keys: Keys, blob_id: BlobId) -> bytes | None:
    """Return the key to open a blob with; None where none is known, or the blob does not begin as a sealed one.

    A link can name a key for any blob, and must not make one unreadable that is not sealed.
    """
    key = await trio.to_thread.run_sync(keys, blob_id)
    if key is None or not is_sealed_length(view.length) or not is_sealed(await read_prefix(view)):
        return None
    return key


async def open_folder_file(open_blob: OpenBlob, manifest: Manifest, file: FolderFile) -> View:
    """Return the plain bytes of a folder's file, which may be in a sealed blob.

    Raises `WrongKey` and `WrongFolder`, as reading does, and what `open_blob` does.
    """
    blob = manifest.blobs[file.blob]
    view = await open_blob(blob.blob_id)
    if blob.key:
        view = SealedView(view, blob.key)
    if view.length != blob.length:
        raise WrongFolder(f"the folder is wrong about the blob that {file.path!r} is in: it has {view.length} bytes")
    return HashedView(SliceView(view, file.offset, file.length), file.content_hash, file.path)


@dataclass(frozen=True, slots=True)
class HashedView:
    """A view of bytes whose BLAKE3 hash is known: a read of all of them ends with an error if they are others.

    A blob is what its ID says, but a folder can be wrong about what is where in it.
    """

    inner: View
    content_hash: bytes
    name: str

    @property
    def length(self) -> int:
        return self.inner.length

    async def read(self, write: Write, *, start: int = 0, stop: int | None = None) -> None:
        stop = verify_range(start, stop, self.length)
        if (start, stop) != (0, self.length):
            await self.inner.read(write, start=start, stop=stop)
            return
        hashed = blake3()

        def update(views: list[memoryview]) -> None:
            for view in views:
                hashed.update(view)

        async def pass_on(views: list[memoryview]) -> None:
            await trio.to_thread.run_sync(update, views)
            await write(views)

        if self.length:
            await self.inner.read(pass_on)
        if hashed.digest() != self.content_hash:
            raise WrongFolder(f"{self.name!r} is not what the folder says: its maker was wrong, or means harm")


async def read_prefix(view: View) -> bytes:
    """Return as many first bytes as say what a blob may be."""
    return await read_all(view, stop=min(view.length, FRONT_BYTES), size_max=FRONT_BYTES)


def is_sealed_length(length: int) -> bool:
    try:
        plain_length(length)
    except Rejected:
        return False
    return True
