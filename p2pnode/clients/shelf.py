"""What a client can read: blobs, opened with the keys of its home, and the files that are in them."""

import logging
from dataclasses import dataclass
from pathlib import Path

from economics.blob import BlobId, build_blob_id_text
from p2pnode.clients.calls import kind_of
from p2pnode.clients.session import Session
from p2pnode.clients.streaming import Blobs
from p2pnode.content.contents import Content, Kind, describe, find_key, open_content, read_prefix
from p2pnode.content.keyring import Keyring
from p2pnode.content.manifest import Manifest
from p2pnode.content.resume import save
from p2pnode.content.sealed import WrongKey, is_sealed
from p2pnode.content.views import View
from p2pnode.errors import InconsistentBlob, InputError, NetworkError, Unavailable

log = logging.getLogger("p2pnode.client")


@dataclass(frozen=True, slots=True)
class Shelf:
    """The blobs of a network, as the holder of a keyring sees them."""

    session: Session
    keyring: Keyring

    async def open(self, blob_id: BlobId, path: str | None) -> View:
        """Return the plain bytes of a blob, or of a file in it; raises what `open_content` does."""
        if not isinstance(path, str | None):
            raise InputError(f"a file in a blob is named by a text, not {type(path).__name__}")
        return await open_content(Blobs(self.session).open, self.keyring.key_of, blob_id, path)

    async def save(self, blob_id: BlobId, target: Path) -> int:
        """Put a whole blob into a file, going on with what an interrupted call has left of it; returns its length."""
        blobs = Blobs(self.session)
        key = await find_key(await blobs.open(blob_id), self.keyring.key_of, blob_id)
        view, header = await blobs.open_plain(blob_id, key), await blobs.header(blob_id)
        return (await save(view, target, header=header, codec=self.session.codec, key=key)).length

    async def describe(self, blob_id: BlobId) -> Content:
        """Return what a blob is, with its files where it has some."""
        return await describe(Blobs(self.session).open, self.keyring.key_of, blob_id)

    async def manifest(self, blob_id: BlobId) -> Manifest:
        """Return what is in a folder; raises `InputError` for a blob that is none."""
        content = await self.describe(blob_id)
        if content.manifest is None:
            raise content.why or InputError(f"{build_blob_id_text(blob_id)} is no folder: `info` tells what it is")
        return content.manifest

    async def look(self, blob_id: BlobId) -> tuple[int | None, bool, Kind | None]:
        """Return a blob's length, whether it is sealed, and what is in it; None for what cannot be had now."""
        length: int | None = None
        try:
            whole = await Blobs(self.session).open(blob_id)
            length, prefix = whole.length, await read_prefix(whole)
            if not is_sealed(prefix):
                return length, False, kind_of(prefix)
            return length, True, kind_of(await read_prefix(await self.open(blob_id, None)))
        except WrongKey:
            return length, True, Kind.SEALED
        except (Unavailable, NetworkError, InconsistentBlob) as fault:
            log.info("the first bytes of %s cannot be had: %s", build_blob_id_text(blob_id), fault)
            return length, False, None
