"""Which manifest each folder of this machine was stored as last (FORMATS.md 23). Blocking: for worker threads."""

import os
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from economics import cbor
from economics.blob import BlobId
from economics.crypto import DIGEST_BYTES
from economics.errors import Rejected
from p2pnode.content.manifest import SEALING_KEY_BYTES
from p2pnode.errors import ConfigError
from p2pnode.files import make_directory, replace_synced

CACHED_BYTES_MAX = 1 << 16
"""Sixteen times what the longest path takes."""


@dataclass(frozen=True, slots=True)
class FolderCache:
    """The newest manifests, a file for each folder."""

    path: Path
    """A home's `cache/folders`."""

    def newest(self, directory: Path) -> tuple[BlobId, bytes] | None:
        """Return (ID, key) of a folder's newest manifest; None if it is not known, or the file is damaged."""
        name = self._name(directory)
        try:
            with self._file(name).open("rb") as file:
                data = file.read(CACHED_BYTES_MAX)
            match cbor.decode(data):
                case [bytes(path), bytes(blob_id), bytes(key)] if path == name:
                    sizes = len(blob_id) == DIGEST_BYTES and len(key) in (0, SEALING_KEY_BYTES)
                    return (BlobId(blob_id), key) if sizes else None
        except (OSError, Rejected):
            pass
        return None

    def remember(self, directory: Path, blob_id: BlobId, key: bytes) -> None:
        """Keep it in place of the one before; raises `ConfigError`."""
        name = self._name(directory)
        try:
            make_directory(self.path)
            replace_synced(self._file(name), (cbor.encode([name, bytes(blob_id), key]),), mode=0o600)
        except OSError as fault:
            raise ConfigError(f"cannot keep what was stored in {self.path}: {fault.strerror}") from fault

    def _name(self, directory: Path) -> bytes:
        return os.fsencode(directory.resolve())

    def _file(self, name: bytes) -> Path:
        return self.path / blake3(name).hexdigest()
