"""Folders: what is in one, which blobs it takes to hold it, and what of them the last time's hold already.

Knows no network. Small files travel in quilts, larger ones alone; a file whose bytes are in a blob of the manifest
before points there.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from economics.blob import BlobId
from p2pnode.content.keyring import Sealer
from p2pnode.content.manifest import FolderBlob, FolderFile, Manifest
from p2pnode.content.names import NAME_BYTES_MAX
from p2pnode.content.quilt import FILES_MAX, INDEX_BYTES_MAX, QuiltFile, build_quilt
from p2pnode.content.scan import Hashed, Scanned, Skipped, hash_files
from p2pnode.content.sources import Source

SMALL_BYTES_MAX = 1 << 20
"""A larger file is a blob of its own: a blob's fixed cost is small beside it, and nothing else makes it travel."""
QUILT_BYTES_MAX = 64 << 20
"""Eight segments: what has to travel again at most when files of a quilt are mostly gone."""
MERGED_BYTES_MAX = 256 << 10
"""Quilts up to this are packed anew with what is new, once there are more than a few of them: so a small change a day
does not make a blob a day."""
MERGED_MIN = 8
"""So many of them: a change mostly moves the file that changed alone."""
ENTRY_BYTES = 32
"""What a file takes in a quilt's index besides its name, at most."""


@dataclass(frozen=True, slots=True)
class NewBlob:
    """A blob to store for a folder."""

    source: Source
    """Its bytes, sealed or not."""
    length: int
    """Of its plain bytes."""
    key: bytes


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a content is: in a blob of the manifest before, or in a new one."""

    blob: FolderBlob | int
    offset: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What it takes to hold a folder."""

    new: tuple[NewBlob, ...]
    reused: tuple[FolderBlob, ...]
    skipped: tuple[Skipped, ...]
    files: tuple[Hashed, ...]
    places: dict[bytes, _Place]
    """By content hash."""
    empty: tuple[str, ...]

    @property
    def sources(self) -> list[Source]:
        """The blobs to store anew."""
        return [blob.source for blob in self.new]

    def build(self, ids: Sequence[BlobId]) -> Manifest:
        """Return the folder's manifest, given the IDs that the new blobs turned out to have."""
        fresh = [FolderBlob(id_, blob.length, blob.key) for id_, blob in zip(ids, self.new, strict=True)]
        numbers: dict[BlobId, int] = {}
        blobs: list[FolderBlob] = []
        files: list[FolderFile] = []
        for file in self.files:
            place = self.places[file.content_hash]
            blob = fresh[place.blob] if isinstance(place.blob, int) else place.blob
            number = numbers.setdefault(blob.blob_id, len(blobs))
            if number == len(blobs):
                blobs.append(blob)
            length = file.source.length
            files.append(FolderFile(file.path, length, file.executable, file.content_hash, number, place.offset))
        return Manifest(tuple(blobs), tuple(files), self.empty)


def plan(scanned: Scanned, previous: Manifest | None, *, sealer: Sealer | None, lost: Collection[BlobId] = ()) -> Plan:
    """Return what to store of a folder: for a worker thread, as it reads every file, and twice what it seals.

    Blobs of `previous` are used again where they are sealed just when there is a sealer, unless `lost` names them.
    Raises `InputError` for files that change meanwhile.
    """
    files, unread = hash_files(scanned)
    contents = {file.content_hash: file for file in reversed(files)}  # of equal files the first one names it
    known = reusable(contents, previous, is_sealed=sealer is not None, lost=lost)
    places = {content: _Place(blob, offset) for content, (blob, offset) in known.items()}
    fresh = [file for file in files if contents[file.content_hash] is file and file.content_hash not in places]
    new: list[NewBlob] = []
    for group in pack(fresh):
        source: Source = group[0].source
        if group[0].source.length > SMALL_BYTES_MAX:
            places[group[0].content_hash] = _Place(len(new), 0)
        else:
            by_name = {quilt_name(file): file for file in group}
            quilt = build_quilt([QuiltFile(name, file.source) for name, file in by_name.items()])
            for entry in quilt.index.entries:
                places[by_name[entry.name].content_hash] = _Place(len(new), entry.start)
            source = quilt.source
        sealed = None if sealer is None else sealer.seal(source)
        new.append(NewBlob(sealed or source, source.length, b"" if sealed is None else sealed.key))
    reused = dict.fromkeys(place.blob for place in places.values() if isinstance(place.blob, FolderBlob))
    return Plan(tuple(new), tuple(reused), (*scanned.skipped, *unread), tuple(files), places, scanned.empty)


def quilt_name(file: Hashed) -> str:
    """Return a file's path; where that is too long for a quilt its hash, behind a slash as no path has."""
    is_short = len(file.path.encode("utf-8")) <= NAME_BYTES_MAX
    return file.path if is_short else f"/{file.content_hash.hex()}"


def reusable(
    contents: dict[bytes, Hashed], previous: Manifest | None, *, is_sealed: bool, lost: Collection[BlobId]
) -> dict[bytes, tuple[FolderBlob, int]]:
    """Return (blob, offset) of each content that a blob of the manifest before holds and should go on holding.

    A blob is given up once less than half of it is of use, and small ones once they are many.
    """
    if previous is None:
        return {}
    held: dict[int, dict[bytes, int]] = {}
    seen: set[bytes] = set()
    for old in previous.files:
        blob = previous.blobs[old.blob]
        file = contents.get(old.content_hash)
        fits = bool(blob.key) == is_sealed and blob.blob_id not in lost
        if file is not None and file.source.length == old.length and fits and old.content_hash not in seen:
            held.setdefault(old.blob, {})[old.content_hash] = old.offset
            seen.add(old.content_hash)
    for number in list(held):
        used = sum(weight(contents[content]) for content in held[number])
        if 2 * used < previous.blobs[number].length:
            del held[number]
    kept = {content for offsets in held.values() for content in offsets}
    small = {number for number in held if previous.blobs[number].length <= MERGED_BYTES_MAX}
    is_packing = any(file.source.length <= SMALL_BYTES_MAX for content, file in contents.items() if content not in kept)
    if is_packing and len(small) >= MERGED_MIN:
        held = {number: offsets for number, offsets in held.items() if number not in small}
    return {
        content: (previous.blobs[number], offset)
        for number, offsets in held.items()
        for content, offset in offsets.items()
    }


def weight(file: Hashed) -> int:
    """Return what a file takes in a quilt, at most."""
    return file.source.length + len(file.path.encode("utf-8")) + ENTRY_BYTES


def pack(files: Sequence[Hashed]) -> list[list[Hashed]]:
    """Return the files of each new blob: a large one alone, small ones together as far as a quilt goes, in order."""
    groups = [[file] for file in files if file.source.length > SMALL_BYTES_MAX]
    group: list[Hashed] = []
    size = index = 0
    for file in files:
        if file.source.length > SMALL_BYTES_MAX:
            continue
        entry = weight(file) - file.source.length
        if size + weight(file) > QUILT_BYTES_MAX or index + entry > INDEX_BYTES_MAX or len(group) == FILES_MAX:
            groups.append(group)
            group, size, index = [], 0, 0
        group.append(file)
        size += weight(file)
        index += entry
    return [*groups, group] if group else groups
