"""Files and folders between peers: shared from this machine, fetched to it, kept equal to a folder that others have.

Whatever was fetched is served in turn: a file and a folder's blobs come into the library once all their bytes are here.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import trio
from blake3 import blake3

from economics.blob import BlobId, Header
from economics.errors import Rejected
from p2pnode.coding.codec import Codec
from p2pnode.content.contents import Content, Kind, NoKey, describe
from p2pnode.content.folders import plan
from p2pnode.content.keyring import Keyring
from p2pnode.content.manifest import FolderFile, Manifest
from p2pnode.content.placing import Restored
from p2pnode.content.quilt import INDEX_BYTES_MAX
from p2pnode.content.restore import restore
from p2pnode.content.resume import build_part_path, copy, output_file, save
from p2pnode.content.scan import Skipped, scan
from p2pnode.content.sealed import SealedSource, SealedView
from p2pnode.content.sharing import LINK_BYTES_MAX, Link, parse_link
from p2pnode.content.sources import BytesSource, FileSource, JoinedSource, Source
from p2pnode.content.views import View, read_all
from p2pnode.errors import InputError, NodeError
from p2pnode.files import make_directory, read_bounded, replace_synced
from p2pnode.home import Home
from p2pnode.peering.library import Library
from p2pnode.peering.peer import Growing, Peer
from p2pnode.peering.swarm import SwarmView

log = logging.getLogger("p2pnode.peering.mirror")

Report = Callable[[int, int], None]
"""Hears of bytes done and bytes in all."""


# --- sharing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shared:
    """A file or a folder that the library has now."""

    path: Path
    blob_id: BlobId
    key: bytes | None
    """Opens it, where it is sealed."""
    is_folder: bool
    length: int
    """Bytes of the file, or of all files."""
    sources: tuple[Source, ...]
    """All blobs of it; of a folder the manifest last."""
    skipped: tuple[Skipped, ...] = ()
    """What of a folder cannot be shared."""


def share(path: Path, library: Library, codec: Codec, keyring: Keyring | None) -> Shared:
    """Put a file or folder into a library, sealed where there is a keyring: for a worker thread, as it reads it all.

    Raises `InputError` for what cannot be read, or changes meanwhile.
    """
    if path.is_dir():
        return share_folder(path, library, codec, keyring)
    source = FileSource.open(path)
    blob_id, key, sealed = put(source, library, codec, keyring)
    return Shared(path, blob_id, key, False, source.length, (sealed,))


def share_folder(path: Path, library: Library, codec: Codec, keyring: Keyring | None) -> Shared:
    planned = plan(scan(path), None, sealer=keyring)
    ids = []
    for new in planned.new:
        blob_id = library.share(new.source, codec).blob_id
        if keyring is not None:
            keyring.remember(blob_id, new.key)
        ids.append(blob_id)
    manifest = planned.build(ids)
    blob_id, key, source = put(BytesSource(manifest.encode(), f"the list of {path}"), library, codec, keyring)
    length = sum(file.length for file in manifest.files)
    return Shared(path, blob_id, key, True, length, (*planned.sources, source), planned.skipped)


def put(source: Source, library: Library, codec: Codec, keyring: Keyring | None) -> tuple[BlobId, bytes | None, Source]:
    """Put one blob into a library; return (its ID, its key if it is sealed, its bytes)."""
    if keyring is None:
        return library.share(source, codec).blob_id, None, source
    sealed = keyring.seal(source)
    blob_id = library.share(sealed, codec).blob_id
    keyring.remember(blob_id, sealed.key)
    return blob_id, sealed.key, sealed


# --- fetching --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Got:
    """What fetching a file ended with."""

    length: int
    kept_bytes: int = 0
    """Of these, what an earlier call had left in the part file."""
    is_sealed: bool = False
    """That nobody here has its key: these are the sealed bytes."""


class Fetcher:
    """Fetches what a link or an ID names, through one peer."""

    def __init__(self, peer: Peer, link: Link) -> None:
        self.peer = peer
        self.link = link
        self._views: dict[BlobId, SwarmView] = {}

    def key_of(self, blob_id: BlobId) -> bytes | None:
        if blob_id == self.link.blob_id and self.link.key is not None:
            return self.link.key
        return self.peer.keyring.key_of(blob_id)

    async def open(self, blob_id: BlobId) -> SwarmView:
        """Return a blob's own bytes."""
        if blob_id not in self._views:
            self._views[blob_id] = await self.peer.swarm.open(blob_id)
        return self._views[blob_id]

    async def open_plain(self, blob_id: BlobId, key: bytes | None) -> View:
        view = await self.open(blob_id)
        return view if key is None else SealedView(view, key)

    def codec_of(self, header: Header) -> Codec:
        return Codec(header.code, self.peer.swarm.kernel)

    # --- one file

    async def get(self, output: Path | None, sink: BinaryIO, report: Report) -> Got:
        """Fetch the blob, or the file in it that the link names, into `output` or else `sink`.

        Raises `InputError` for a folder or a path that is not there, `WrongKey`, and what fetching and writing do.
        """
        content = await describe(self.open, self.key_of, self.link.blob_id)
        is_sealed = content.kind is Kind.SEALED
        if self.link.path is None and content.kind is Kind.FOLDER:
            raise InputError("this is a folder: `p2pnode sync DIR` with the same ID or link makes DIR equal to it")
        if self.link.path is not None:
            view = await content.open_file(self.open, self.link.path)
        elif output is not None:
            return await self._get_blob(content, output, report)
        else:
            view = content.view
        if output is None:
            return Got(await copy(view, sink, report), is_sealed=is_sealed)
        async with output_file(output) as file:
            return Got(await copy(view, file, report))

    async def _get_blob(self, content: Content, output: Path, report: Report) -> Got:
        """Fetch a whole blob into a file, going on with what an earlier call left, and serving it meanwhile."""
        header, blob_id = (await self.open(content.blob_id)).header, content.blob_id
        key = await trio.to_thread.run_sync(self.key_of, blob_id) if content.is_sealed else None
        growing = Growing(blob_id, header, read_part(output, blob_id))

        def tell(done: int, total: int) -> None:
            growing.done = done if key is None else 0  # a sealed blob's plain bytes are nobody's
            report(done, total)

        with self.peer.serving(growing):
            saved = await save(content.view, output, header=header, codec=self.codec_of(header), key=key, report=tell)
        await trio.to_thread.run_sync(self._keep_file, header, output, key)
        return Got(saved.length, saved.kept_bytes, content.kind is Kind.SEALED)

    def _keep_file(self, header: Header, path: Path, key: bytes | None) -> None:
        """Serve a file from here on."""
        source = FileSource.open(path)
        if key is not None:
            self.peer.keyring.remember(header.blob_id, key)
        self.peer.library.add(header, source if key is None else SealedSource(source, key), is_checked=key is None)

    # --- a folder

    async def sync(self, target: Path, *, delete: bool, report: Report) -> Restored:
        """Make `target` equal to the folder, and serve from here on each of its blobs that is all there.

        From its first file on the home knows what `target` is to be equal to.
        Raises `InputError` where the blob is no folder or something is in the way, `NoKey`, and what `restore` does.
        """
        content = await describe(self.open, self.key_of, self.link.blob_id)
        if content.kind is Kind.SEALED:
            raise NoKey("this blob is sealed, and its key is not known here: use the link that has the key")
        if content.manifest is None:
            raise content.why or InputError("this is not a folder: `p2pnode get` fetches a blob")
        manifest = content.manifest
        if self.link.path is not None:
            inner = manifest.inside(self.link.path)
            if inner is None:
                raise InputError(f"the folder has no folder {self.link.path!r}: `p2pnode ls` shows what it has")
            manifest = inner
        await trio.to_thread.run_sync(remember_mirror, self.peer.home, target, self.link)
        restored = await restore(manifest, target, self.open_plain, delete=delete, report=report)
        await self._keep_folder(content, manifest, target)
        return restored

    async def _keep_folder(self, content: Content, manifest: Manifest, target: Path) -> None:
        """Serve the folder's blobs, its manifest first, that this machine has whole now.

        The folder is right by then: one that names blobs of nothing, which nobody has, keeps nobody waiting for each.
        """
        whole = content.manifest
        assert whole is not None
        key = await trio.to_thread.run_sync(self.key_of, content.blob_id) if content.is_sealed else None
        header = (await self.open(content.blob_id)).header
        await trio.to_thread.run_sync(self._keep, header, BytesSource(whole.encode()), key)
        for blob, files in zip(manifest.blobs, await trio.to_thread.run_sync(files_by_blob, manifest), strict=True):
            if await trio.to_thread.run_sync(self.peer.library.header, blob.blob_id) is None:
                try:
                    view = await self.open_plain(blob.blob_id, blob.key or None)
                    source = await assemble(view, files, target)
                except (NodeError, Rejected) as fault:
                    log.debug("the rest of the folder is not served on: %s", fault)
                    return
                if source is not None:
                    header = (await self.open(blob.blob_id)).header
                    await trio.to_thread.run_sync(self._keep, header, source, blob.key or None)

    def _keep(self, header: Header, source: Source, key: bytes | None) -> None:
        try:
            if key is not None:
                self.peer.keyring.remember(header.blob_id, key)
            self.peer.library.add(header, source if key is None else SealedSource(source, key))
        except InputError:
            return  # somebody has changed the file already: then it is not that blob any more


def files_by_blob(manifest: Manifest) -> list[list[FolderFile]]:
    """Return the files of each blob: for a worker thread, as a folder may have a million of either."""
    found: list[list[FolderFile]] = [[] for _ in manifest.blobs]
    for file in manifest.files:
        found[file.blob].append(file)
    return found


async def assemble(view: View, files: Sequence[FolderFile], target: Path) -> Source | None:
    """Return a blob as the files of a folder that are in it, behind a quilt's index; None if bytes are lacking."""
    ordered = sorted({file.offset: file for file in files if file.length}.values(), key=lambda file: file.offset)
    front = ordered[0].offset if ordered else view.length
    at = front
    for file in ordered:
        if file.offset != at:
            return None
        at += file.length
    if at != view.length or front > INDEX_BYTES_MAX + 64:
        return None
    parts: list[Source] = [FileSource(target / file.path, file.length) for file in ordered]
    if front:
        parts.insert(0, BytesSource(await read_all(view, stop=front, size_max=front)))
    return parts[0] if len(parts) == 1 else JoinedSource(parts, "a quilt")


def read_part(path: Path, blob_id: BlobId) -> Callable[[int, int], bytes]:
    """Return how to read what is there of a file that is being saved."""
    part = build_part_path(path, blob_id)

    def read(start: int, stop: int) -> bytes:
        handle = os.open(part if part.exists() else path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return os.pread(handle, stop - start, start)
        finally:
            os.close(handle)

    return read


# --- what a folder is kept equal to ----------------------------------------------------------------------------------


def mirror_path(home: Home, target: Path) -> Path:
    return home.mirrors_path / blake3(os.fsencode(os.path.abspath(target))).hexdigest()[:32]


def remember_mirror(home: Home, target: Path, link: Link) -> None:
    """Keep what a folder is to be equal to, for `sync DIR` alone."""
    path = mirror_path(home, target)
    make_directory(path.parent)
    replace_synced(path, (link.build().encode(),), mode=0o600)


def recall_mirror(home: Home, target: Path) -> Link:
    """Return what a folder is to be equal to; raises `InputError` where it was never said."""
    try:
        return parse_link(read_bounded(mirror_path(home, target), LINK_BYTES_MAX).decode("ascii"))
    except (OSError, UnicodeDecodeError, NodeError) as fault:
        raise InputError(f"{target} was not synchronised from this home yet: name the folder's ID or link") from fault
