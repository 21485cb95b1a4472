"""Puts all files of a quilt into a folder: the quilt beside them first, as it can be continued, then they out of it."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import trio
from blake3 import blake3

from economics.blob import BlobId, Header, build_blob_id_text
from economics.crypto import DIGEST_BYTES
from economics.errors import Rejected
from p2pnode.coding.codec import Codec
from p2pnode.content.manifest import FolderBlob, FolderFile, Manifest
from p2pnode.content.placing import Restored, verify_names
from p2pnode.content.quilt import Index
from p2pnode.content.restore import restore
from p2pnode.content.resume import build_part_path, save
from p2pnode.content.scan import PART_SUFFIX
from p2pnode.content.sources import FileSource, Source
from p2pnode.content.views import View, Write, verify_range
from p2pnode.errors import InputError

PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SourceView:
    """Bytes of this machine, to be read in order."""

    source: Source

    @property
    def length(self) -> int:
        return self.source.length

    async def read(self, write: Write, *, start: int = 0, stop: int | None = None) -> None:
        end = verify_range(start, stop, self.length)
        for at in range(start, end, PIECE_BYTES):
            await write([memoryview(await trio.to_thread.run_sync(self.source.read, at, min(at + PIECE_BYTES, end)))])


async def unpack(
    view: View,
    index: Index,
    target: Path,
    *,
    header: Header,
    codec: Codec,
    key: bytes | None,
    report: Callable[[int, int], None],
) -> Restored:
    """Put the files of a quilt, whose plain bytes `view` has, into `target`; what else is there stays.

    Takes the room of the quilt twice while it goes on; interrupted, the same call does. Raises `InputError` before
    anything is fetched where the names are no paths below a folder, and what `save` and `restore` do.
    """
    draft = build_folder(index, header.blob_id, view.length)
    whole = target / f".{build_blob_id_text(header.blob_id)}{PART_SUFFIX}"
    await trio.to_thread.run_sync(take_up, whole, header.blob_id)
    await save(view, whole, header=header, codec=codec, key=key, report=report)
    source = await trio.to_thread.run_sync(FileSource.open, whole)
    manifest = await trio.to_thread.run_sync(hash_files, draft, source)

    async def open_whole(blob_id: BlobId, key: bytes | None) -> View:
        await trio.lowlevel.checkpoint()
        return SourceView(source)

    restored = await restore(manifest, target, open_whole)
    await trio.to_thread.run_sync(lambda: whole.unlink(missing_ok=True))
    return restored


def take_up(whole: Path, blob_id: BlobId) -> None:
    """Make the folder, and what an earlier call fetched whole the part that the next one checks and goes on with."""
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            whole.replace(build_part_path(whole, blob_id))
    except OSError as fault:
        raise InputError(f"cannot use {whole.parent}: {fault.strerror}") from fault


def build_folder(index: Index, blob_id: BlobId, length: int) -> Manifest:
    """Return a quilt as a folder but for the content hashes; raises `InputError` if its names make none."""
    files = tuple(FolderFile(one.name, one.length, False, bytes(DIGEST_BYTES), 0, one.start) for one in index.entries)
    made = Manifest((FolderBlob(blob_id, length),) if files else (), files)
    try:
        made.verify()
    except Rejected as fault:
        raise InputError(f"these files make no folder ({fault.detail}): read them one by one, ID/NAME") from fault
    verify_names(made)
    return made


def hash_files(draft: Manifest, source: Source) -> Manifest:
    """Return a folder with its content hashes: for a worker thread."""
    return replace(draft, files=tuple(replace(file, content_hash=hash_file(file, source)) for file in draft.files))


def hash_file(file: FolderFile, source: Source) -> bytes:
    hashed = blake3()
    end = file.offset + file.length
    for at in range(file.offset, end, PIECE_BYTES):
        hashed.update(source.read(at, min(at + PIECE_BYTES, end)))
    return hashed.digest()
