"""The owner's key on disk: sealed with a passphrase, or plain on a testnet. Asks nobody anything: callers do.

A sealed wallet is a JSON object: the key that seals is Argon2id of the passphrase, the box is XSalsa20-Poly1305 of the
seed, and the public key is in the clear, since receiving and looking need no passphrase. A plain one is a key file.
"""

import json
import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.secret import SecretBox

from economics.crypto import KEY_BYTES, OwnerId
from economics.errors import Rejected
from economics.genesis import build_key_text, parse_key
from p2pnode.errors import ConfigError
from p2pnode.keys import Key, create_key, keep_secret, parse_seed, read_secret

VERSION = 1
KDF = "argon2id"
CIPHER = "xsalsa20poly1305"
BOX_BYTES = SecretBox.NONCE_SIZE + SecretBox.MACBYTES + KEY_BYTES
MEMORY_BYTES_MAX = 1 << 30
"""A file may come from elsewhere: it must not be able to ask for all memory. libsodium's own largest preset."""
PASSES_MAX = 16
"""At most half a minute with the largest memory."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one guess of a passphrase costs whoever guesses, and the owner once."""

    passes: int
    memory_bytes: int


MODERATE = Cost(argon2id.OPSLIMIT_MODERATE, argon2id.MEMLIMIT_MODERATE)
"""256 MiB, 0.6 s on a small virtual machine."""
INTERACTIVE = Cost(argon2id.OPSLIMIT_INTERACTIVE, argon2id.MEMLIMIT_INTERACTIVE)
"""64 MiB, 0.05 s."""
assert MODERATE.memory_bytes <= MEMORY_BYTES_MAX
assert MODERATE.passes <= PASSES_MAX


@dataclass(frozen=True, slots=True)
class Sealed:
    """A key that a passphrase opens."""

    public: OwnerId
    cost: Cost
    salt: bytes
    """16 bytes."""
    box: bytes
    """Nonce 24, authenticator 16, sealed seed 32."""

    def encode(self) -> bytes:
        fields = {
            "version": VERSION,
            "public": build_key_text(self.public),
            "kdf": KDF,
            "passes": self.cost.passes,
            "memory_bytes": self.cost.memory_bytes,
            "salt": self.salt.hex(),
            "cipher": CIPHER,
            "box": self.box.hex(),
        }
        return json.dumps(fields, indent=2).encode("ascii") + b"\n"

    def open(self, passphrase: str, path: Path) -> Key:
        """Return the key; takes what `cost` says. Raises `ConfigError` naming the file."""
        try:
            seed = SecretBox(derive(passphrase, self.salt, self.cost)).decrypt(self.box)
        except CryptoError as fault:
            raise ConfigError(
                f"the passphrase does not open {path}: try again, or put a copy of the file back if it is damaged"
            ) from fault
        key = Key(seed)
        if key.public != self.public:
            raise ConfigError(f"{path} names another public key than the one it holds: put a copy of the file back")
        return key


def create_wallet(path: Path, passphrase: str | None, *, cost: Cost = MODERATE) -> Key:
    """Make an owner's key and keep it, sealed, or plain where there is no passphrase; raises `ConfigError`."""
    if passphrase is None:
        return create_key(path)
    if not passphrase:
        raise ConfigError("an empty passphrase protects nothing: choose one, or ask for a plain key with --plain")
    key = Key.generate()
    salt = os.urandom(argon2id.SALTBYTES)
    box = bytes(SecretBox(derive(passphrase, salt, cost)).encrypt(key.seed))
    keep_secret(path, Sealed(OwnerId(key.public), cost, salt, box).encode())
    return key


def load_wallet(path: Path, ask: Callable[[], str]) -> Key:
    """Return the key of a wallet of either form; `ask` is called for the passphrase of a sealed one.

    Raises `ConfigError`: no wallet, one that others may read, a wrong passphrase, a damaged or foreign file.
    """
    held = read_wallet(path)
    return held if isinstance(held, Key) else held.open(ask(), path)


def read_wallet(path: Path) -> Key | Sealed:
    """Return what can be had without a passphrase; both forms have the `public` key. Raises `ConfigError`."""
    text = read_secret(path)
    if text is None:
        raise ConfigError(f"no wallet at {path}: make one with `p2pnode wallet new`, or name a --home that has one")
    return parse_sealed(path, text) if text.startswith("{") else parse_seed(path, text)


def parse_sealed(path: Path, text: str) -> Sealed:
    """Return a sealed wallet, or raise `ConfigError`; what it asks for is bounded before any of it is done."""
    try:
        fields = json.loads(text)
        version = fields["version"]
        if version != VERSION or isinstance(version, bool):
            raise ConfigError(f"{path} is a wallet of version {version!r}: a newer p2pnode may open it")
        if (fields["kdf"], fields["cipher"]) != (KDF, CIPHER):
            raise ConfigError(f"{path} is sealed in a way that this p2pnode does not know: a newer one may open it")
        cost = Cost(parse_count(fields["passes"]), parse_count(fields["memory_bytes"]))
        salt, box = bytes.fromhex(fields["salt"]), bytes.fromhex(fields["box"])
        sealed = Sealed(OwnerId(parse_key(fields["public"])), cost, salt, box)
    except (ValueError, KeyError, TypeError, RecursionError, Rejected) as fault:
        raise ConfigError(f"{path} is not a wallet: put a copy of the file back") from fault
    if len(salt) != argon2id.SALTBYTES or len(box) != BOX_BYTES:
        raise ConfigError(f"{path} is not a wallet: put a copy of the file back")
    if not argon2id.OPSLIMIT_MIN <= cost.passes <= PASSES_MAX:
        raise ConfigError(f"{path} asks for {cost.passes} passes to open it: put a copy of the file back")
    if not argon2id.MEMLIMIT_MIN <= cost.memory_bytes <= MEMORY_BYTES_MAX:
        raise ConfigError(
            f"{path} asks for {cost.memory_bytes} bytes of memory to open it: put a copy of the file back"
        )
    return sealed


def parse_count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("a whole number")
    return value


def derive(passphrase: str, salt: bytes, cost: Cost) -> bytes:
    """Return the key that seals; raises `ConfigError` where there is no memory for it."""
    spelled = unicodedata.normalize("NFC", passphrase)  # one passphrase, whatever keyboard spelled it
    try:
        return argon2id.kdf(
            SecretBox.KEY_SIZE,
            spelled.encode("utf-8", "surrogateescape"),
            salt,
            opslimit=cost.passes,
            memlimit=cost.memory_bytes,
        )
    except RuntimeError as fault:
        raise ConfigError(f"the passphrase needs {cost.memory_bytes >> 20} MiB of memory: free some") from fault
