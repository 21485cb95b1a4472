"""Ed25519 keys on disk: made, kept (mode 0600), loaded, used to sign. Verifying is `economics.crypto`."""

import errno
import os
import stat
import threading
from pathlib import Path

from nacl.exceptions import CryptoError
from nacl.signing import SigningKey

from economics.crypto import KEY_BYTES, Signature
from p2pnode.errors import ConfigError
from p2pnode.files import read_bounded, sync_directory, write_synced

SECRET_BYTES_MAX = 64 << 10
"""A sealed wallet has some hundreds."""


class Key:
    """One Ed25519 key pair."""

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        self._signing = SigningKey(seed)
        self.public = bytes(self._signing.verify_key)

    def sign(self, message: bytes) -> Signature:
        """Return the signature of `message` (22 us)."""
        return Signature(bytes(self._signing.sign(message).signature))

    @classmethod
    def generate(cls) -> "Key":
        return cls(os.urandom(KEY_BYTES))


def create_key(path: Path) -> Key:
    """Make a key and keep it in a new file; durable on return, and of two processes at once only one succeeds."""
    key = Key.generate()
    keep_secret(path, key.seed.hex().encode("ascii") + b"\n")
    return key


def keep_secret(path: Path, data: bytes) -> None:
    """Put a new file in place that only its owner may read, durably; raises `ConfigError` where one is already."""
    for missing in reversed([folder for folder in path.parents if not folder.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)  # `parents=True` would give those above it another mode
    fresh = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.new")
    write_synced(fresh, (data,), mode=0o600)
    try:
        os.link(fresh, path)  # unlike a rename it takes no name that is in use
    except FileExistsError as fault:
        raise ConfigError(f"{path} exists already: a key is never overwritten") from fault
    finally:
        fresh.unlink()
    sync_directory(path.parent)


def load_or_create_key(path: Path) -> Key:
    """Return the key of a file, which is made at first use; raises `ConfigError`."""
    if not path.exists():
        try:
            return create_key(path)
        except ConfigError:
            pass  # another process was first
    return load_key(path)


def load_key(path: Path) -> Key:
    """Return the key of a file, or raise `ConfigError` if there is none, or others may read it."""
    text = read_secret(path)
    if text is None:
        raise ConfigError(f"no key at {path}: make one with `p2pnode init`, or name the --home of a node")
    return parse_seed(path, text)


def read_secret(path: Path) -> str | None:
    """Return the text of a file of secrets, None where there is none; raises `ConfigError` if others may read it."""
    try:
        mode = path.stat().st_mode
        text = read_bounded(path, SECRET_BYTES_MAX).decode("ascii").strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as fault:
        raise ConfigError(f"{path} is not a key file: it is not ASCII") from fault
    except OSError as fault:
        if fault.errno == errno.EFBIG:
            raise ConfigError(f"{path} is not a key file: {fault.strerror}") from fault
        raise ConfigError(f"cannot read the key in {path}: {fault.strerror}") from fault
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"{path} can be read by others: chmod 600 it, and make a new key if they did")
    return text


def parse_seed(path: Path, text: str) -> Key:
    """Return the key of a plain key file's text, or raise `ConfigError` naming the file."""
    try:
        return Key(bytes.fromhex(text))
    except (ValueError, CryptoError) as fault:
        raise ConfigError(f"{path} is not a key file: 64 hex digits") from fault
