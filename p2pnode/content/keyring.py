"""The keys of sealed blobs in one home: what they are derived from, and those that this home knows (FORMATS.md 21, 23).

`keys/seal.secret` is made at first use and never changes. A key comes of it and of the hash of the bytes that it seals,
so a home seals the same bytes into the same blob for ever, and two different ones never under the same key.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from economics.blob import BlobId, parse_blob_id
from economics.crypto import DIGEST_BYTES
from economics.errors import Rejected
from p2pnode.content.sealed import BATCH_FRAMES, FRAME_BYTES, KEY_BYTES, SealedSource, verify_key, verify_sealed_length
from p2pnode.content.sources import Source
from p2pnode.errors import ConfigError, InputError
from p2pnode.files import make_directory, replace_synced
from p2pnode.home import Home
from p2pnode.keys import keep_secret, read_secret

CONTEXT = b"p2pnode seal 1"
KEY_LINE = re.compile(r"([A-Za-z0-9_-]{43}) ([0-9a-f]{64})\n")
UNIT_BYTES = BATCH_FRAMES * FRAME_BYTES
"""A source is held to the hashes of such pieces, which it is sealed in: 32 bytes for 256 KiB, 128 MiB for 1 TiB."""


class Sealer(Protocol):
    """Whoever seals: a home's keyring."""

    def seal(self, source: Source) -> SealedSource:
        """Return a source under its own key; for worker threads: it reads all of it."""
        ...


@dataclass(frozen=True, slots=True)
class PinnedSource:
    """A source that gives the bytes that it had when it was hashed, or none."""

    inner: Source
    digests: bytes = field(repr=False)
    """The BLAKE3 hash of each unit."""

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def length(self) -> int:
        return self.inner.length

    def read(self, start: int, stop: int) -> bytes:
        pieces = []
        for index in range(start // UNIT_BYTES, -(-stop // UNIT_BYTES)):
            at = index * UNIT_BYTES
            unit = self.inner.read(at, min(at + UNIT_BYTES, self.length))
            if blake3(unit).digest() != self.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]:
                raise InputError(f"{self.name} changed while it was stored: store it again")
            pieces.append(unit[max(0, start - at) : stop - at])
        return b"".join(pieces)


def pin(source: Source) -> tuple[bytes, PinnedSource]:
    """Return (BLAKE3 of all bytes, the source held to them), reading it once."""
    whole, digests = blake3(), bytearray()
    for at in range(0, source.length, UNIT_BYTES):
        unit = source.read(at, min(at + UNIT_BYTES, source.length))
        whole.update(unit)
        digests += blake3(unit).digest()
    return whole.digest(), PinnedSource(source, bytes(digests))


def derive_key(secret: bytes, content_hash: bytes) -> bytes:
    """Return the one key of a home for the bytes of that BLAKE3 hash."""
    return blake3(CONTEXT + content_hash, key=secret).digest()


@dataclass(frozen=True, slots=True)
class Keyring:
    """A home's keys of sealed blobs. All of it blocks: for worker threads."""

    home: Home

    def seal(self, source: Source) -> SealedSource:
        """Return a source under the key of its bytes; reads it once (3 GB/s from memory).

        Raises `ConfigError` for a secret that cannot be used, `InputError` for a source that cannot be read; reading
        what is returned raises `InputError` where the source has changed since.
        """
        verify_sealed_length(source)
        content_hash, pinned = pin(source)
        return SealedSource(pinned, derive_key(self._secret(), content_hash))

    def _secret(self) -> bytes:
        """Return the home's secret, which is made at first use; of two processes at once both get the same."""
        path = self.home.seal_secret_path
        if not path.exists():
            try:
                with unwritable_named(path):
                    keep_secret(path, os.urandom(KEY_BYTES).hex().encode() + b"\n")
            except ConfigError:
                if not path.exists():
                    raise  # or else another process was first
        return parse_secret(path, read_secret(path) or "")

    def remember(self, blob_id: BlobId, key: bytes) -> None:
        """Keep the key of a sealed blob, durably, in place of another or of a damaged one."""
        verify_key(key)
        with contextlib.suppress(ConfigError):
            if self.key_of(blob_id) == key:
                return
        path = self.home.sealed_key_path(blob_id)
        with unwritable_named(path):
            make_directory(path.parent)
            replace_synced(path, (key.hex().encode() + b"\n",), mode=0o600)

    def key_of(self, blob_id: BlobId) -> bytes | None:
        """Return the key of a sealed blob, None if this home does not know it; raises `ConfigError` naming the file."""
        path = self.home.sealed_key_path(blob_id)
        text = read_secret(path)
        return None if text is None else parse_secret(path, text)

    def dump(self) -> bytes:
        """Return all keys, a line each, for a backup; raises `ConfigError` for a file that holds none."""
        folder = self.home.sealed_keys_path
        names = sorted(path.name for path in folder.iterdir() if path.suffix != ".new") if folder.is_dir() else []
        lines = []
        for name in names:
            try:
                key = self.key_of(parse_blob_id(name))
            except Rejected as fault:
                raise ConfigError(f"{folder / name} is not called by a blob's ID: move it away") from fault
            lines += [] if key is None else [f"{name} {key.hex()}\n"]
        return "".join(lines).encode()

    def load(self, dumped: bytes) -> None:
        """Keep all keys of a dump; raises `ValueError`, with nothing kept, for what is none."""
        keys = {}
        for line in dumped.decode("ascii").splitlines(keepends=True):
            match = KEY_LINE.fullmatch(line)
            try:
                blob_id = parse_blob_id(match[1] if match else "")
            except Rejected as fault:
                raise ValueError("a line of the keys is not <blob ID> <key>") from fault
            assert match is not None, "an empty ID is none"
            keys[blob_id] = bytes.fromhex(match[2])
        for blob_id, key in keys.items():
            self.remember(blob_id, key)


@contextlib.contextmanager
def unwritable_named(path: Path) -> Iterator[None]:
    """Raise `ConfigError` naming the file where the block cannot write it."""
    try:
        yield
    except OSError as fault:
        raise ConfigError(f"cannot keep the key in {path}: {fault.strerror}") from fault


def parse_secret(path: Path, text: str) -> bytes:
    """Return the 32 bytes of a file of secrets, or raise `ConfigError` naming it."""
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES or secret.hex() != text:
        raise ConfigError(f"{path} is not a key file, 64 hex digits: put it back from a backup")
    return secret
