"""What the calls of a client take and give: arguments made certain, results. Asks nobody anything."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from economics.blob import BlobId, build_blob_id_text
from economics.crypto import DIGEST_BYTES
from economics.operations import EPOCHS_AHEAD_MAX
from economics.state import BlobEntry
from p2pnode.clients.payments import parse_amount
from p2pnode.clients.publish import Published
from p2pnode.clients.session import parse_id
from p2pnode.clients.upload import Progress as UploadProgress
from p2pnode.content.contents import Kind
from p2pnode.content.folderstore import StoredFolder
from p2pnode.content.manifest import is_folder
from p2pnode.content.quilt import QuiltFile, build_quilt, is_quilt
from p2pnode.content.sealed import is_sealed
from p2pnode.content.sources import BytesSource, FileSource, Source
from p2pnode.errors import InputError

READ_BYTES_MAX = 1 << 30
"""What `read` returns at most unless told otherwise: more is rather streamed or written to a file."""
Progress = Callable[[int, int], None]
"""Hears of (bytes that a quorum of nodes holds, all bytes), in the thread of the trio loop: it must not block."""
Target = str | Path | BinaryIO
Content = bytes | bytearray | memoryview | str | Path


@dataclass(frozen=True, slots=True)
class Stored:
    """A blob that the network owes from now on."""

    blob_id: str
    length: int
    """Of the blob in bytes; a quilt's or a sealed one's is more than that of what is in it."""
    end_epoch: int
    """The first epoch in which this wallet's claim has ended."""
    paid: int
    """FROST that this call took from the wallet, fees included."""
    was_there: bool
    """The network owed the blob already: no bytes moved."""

    @classmethod
    def of(cls, done: Published) -> "Stored":
        blob_id = build_blob_id_text(done.blob_id)
        return cls(blob_id, done.length, done.end_epoch, done.paid_frost, done.upload is None)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that the network owes from now on."""

    blob_id: str
    """Of the list of its files; `read(blob_id, path)` reads one, `read_folder` all."""
    files: int
    length: int
    """Of all files together."""
    end_epoch: int
    """The first epoch in which this wallet's claim on any part has ended."""
    paid: int
    """FROST that this call took from the wallet, fees included."""
    was_there: bool
    """The network owed all of it already: no bytes moved."""
    skipped: tuple[str, ...]
    """What is in the folder and was not stored, each with its reason."""

    @classmethod
    def of(cls, done: StoredFolder) -> "Folder":
        return cls(
            blob_id=build_blob_id_text(done.blob_id),
            files=len(done.manifest.files),
            length=sum(file.length for file in done.manifest.files),
            end_epoch=done.end_epoch,
            paid=done.paid_frost,
            was_there=all(one.upload is None for one in done.published),
            skipped=tuple(f"{one.path}: {one.why}" for one in done.skipped),
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """This wallet's claim that a blob is kept."""

    blob_id: str
    length: int | None
    """None where the chain does not show it yet."""
    end_epoch: int
    deletable: bool
    name: str
    content_type: str

    @classmethod
    def of(cls, entry: BlobEntry, *, length: int | None) -> "Entry":
        text = build_blob_id_text(entry.blob_id)
        return cls(text, length, entry.end_epoch, entry.deletable, entry.name, entry.content_type)


@dataclass(frozen=True, slots=True)
class Info:
    """What chain and nodes say of a blob."""

    blob_id: str
    is_live: bool
    """The network owes it to somebody."""
    length: int | None
    """None where it is not live and no node that answers has it."""
    epoch: int
    """The current one."""
    end_epoch: int | None
    """The first epoch in which nobody's claim on it holds; None where it is not live."""
    entries: tuple[tuple[int, int], ...]
    """(end epoch, how many claims of any owner end then), ascending."""
    own: tuple[Entry, ...]
    """The claims of this wallet."""
    is_encrypted: bool
    """Its own first bytes say so."""
    kind: str | None
    """"bytes", "quilt" or "folder", of a sealed one by what is in it; "sealed" where this home has no key that opens
    it; None where its first bytes cannot be had now."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """What of this wallet's claims on a blob has ended."""

    blob_id: str
    entries: int
    permanent: int
    """Claims that last until they expire: what was stored with `deletable=False`."""


def parse_blob(blob_id: str | BlobId) -> BlobId:
    """Return a blob ID given as text or bytes; raises `InputError`."""
    if isinstance(blob_id, str):
        return parse_id(blob_id)
    if isinstance(blob_id, bytes) and len(blob_id) == DIGEST_BYTES:
        return BlobId(blob_id)
    raise InputError(f"{blob_id!r} is not a blob ID: it is a text of 43 characters, or {DIGEST_BYTES} bytes")


def parse_count(value: int, name: str, *, low: int, high: int) -> int:
    """Return a whole number in [low, high]; raises `InputError`."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{name} is a whole number from {low} to {high}, not {value!r}")
    return value


def parse_epochs(epochs: int) -> int:
    """Return a number of epochs for which storage is sold; raises `InputError`."""
    return parse_count(epochs, "epochs", low=1, high=EPOCHS_AHEAD_MAX)


def parse_cost(max_cost: int | str | None) -> int | None:
    """Return the FROST of an amount, given as a number of them or as a text in WAL; raises `InputError`."""
    if isinstance(max_cost, str):
        return parse_amount(max_cost)
    return None if max_cost is None else parse_count(max_cost, "max_cost", low=0, high=(1 << 63) - 1)


def parse_path(path: str | Path, name: str) -> Path:
    """Return a path, the home directory for ~ put in; raises `InputError` for what is none."""
    if not isinstance(path, str | Path):
        raise InputError(f"{name} is a path, not {type(path).__name__}")
    if "\0" in str(path):
        raise InputError(f"{name} has a zero byte")
    try:
        return Path(path).expanduser()
    except RuntimeError as fault:
        raise InputError(f"{path} names a user that there is not") from fault


def source_of(what: Content) -> Source:
    """Return bytes, or the file of a path, as a source; for worker threads. Raises `InputError`."""
    if isinstance(what, bytes | bytearray | memoryview):
        return BytesSource(bytes(what))
    if not isinstance(what, str | Path):
        raise InputError(f"bytes or the path of a file can be stored, not {type(what).__name__}")
    path = parse_path(what, "what")
    if path.is_dir():
        raise InputError(f"{path} is a folder: `store_folder` stores it")
    return FileSource.open(path)


def quilt_of(files: Mapping[str, Content]) -> Source:
    """Return the quilt of these files; for worker threads. Raises `InputError`."""
    if not isinstance(files, Mapping) or not all(isinstance(name, str) for name in files):
        raise InputError("files are named by texts: {name: bytes or path}")
    return build_quilt([QuiltFile(name, source_of(what)) for name, what in files.items()]).source


def folder_of(path: str | Path) -> Path:
    """Return the path of a folder; for worker threads. Raises `InputError`."""
    directory = parse_path(path, "path")
    if not directory.is_dir():
        raise InputError(f"{directory} is not a folder")
    return directory


def kind_of(prefix: bytes) -> Kind:
    """Return what a blob claims to be by its first bytes."""
    kinds = {Kind.SEALED: is_sealed, Kind.QUILT: is_quilt, Kind.FOLDER: is_folder}
    return next((kind for kind, is_one in kinds.items() if is_one(prefix)), Kind.BYTES)


def progress_of(progress: Progress | None, source: Source, segment_bytes: int) -> Callable[[UploadProgress], None]:
    """Return how an upload's progress is told in bytes."""
    if progress is None:
        return lambda now: None
    told = progress
    return lambda now: told(min(source.length, now.stored * segment_bytes), source.length)
