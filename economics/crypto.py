"""Hashes and signature checks, each under a tag of its own (FORMATS.md 1). Keys are made and held elsewhere."""

from enum import Enum
from typing import NewType

from blake3 import blake3
from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from economics.errors import Reason, Rejected

Digest = NewType("Digest", bytes)
"""32 bytes of keyed BLAKE3."""
NodeId = NewType("NodeId", bytes)
"""An operator's Ed25519 public key, 32 bytes; also its libp2p identity."""
OwnerId = NewType("OwnerId", bytes)
"""An account's Ed25519 public key, 32 bytes."""
Signature = NewType("Signature", bytes)
"""An Ed25519 signature, 64 bytes."""

DIGEST_BYTES = 32
KEY_BYTES = 32
SIGNATURE_BYTES = 64
TAG_BYTES = 16


def hash_key(level: str) -> bytes:
    """Return the BLAKE3 key of one level: ASCII, padded with zero bytes to 32 (FORMATS.md 1)."""
    return f"p2pnode/1 {level}".encode("ascii").ljust(KEY_BYTES, b"\0")


class Level(Enum):
    """Every level that is hashed; each has its own key, so no object of one level is ever one of another."""

    LEAF = hash_key("leaf")
    SLIVER = hash_key("sliver")
    SEGMENT = hash_key("segment")
    BLOB = hash_key("blob")
    GENESIS = hash_key("genesis")
    STATEMENT = hash_key("statement")
    MESSAGE = hash_key("message")
    BLOCK = hash_key("block")
    TRANSACTION = hash_key("tx")
    TRANSACTIONS = hash_key("txs")
    RESERVATION = hash_key("reservation")
    COMMITTEE = hash_key("committee")
    LEADER = hash_key("leader")
    STAKE = hash_key("stake")
    BEACON = hash_key("beacon")
    """One step of a node's hash onion."""
    SEED = hash_key("seed")
    """What a reveal makes of the running seed."""
    SAMPLE = hash_key("sample")
    ANSWER = hash_key("answer")
    PROOF = hash_key("proof")
    """Of an inconsistency proof."""
    STATE_KEY = hash_key("state-key")
    STATE_VALUE = hash_key("state-value")
    STATE_LEAF = hash_key("state-leaf")
    STATE_NODE = hash_key("state-node")


def digest(level: Level, data: bytes | bytearray | memoryview) -> Digest:
    """Return the 32-byte digest of `data` at this level: about 1 us, and 0.2 ms for each MiB."""
    return Digest(blake3(data, key=level.value).digest())


def tag(name: str) -> bytes:
    """Return a signing tag: ASCII, padded with zero bytes to 16 (FORMATS.md 1)."""
    raw = f"p2pnode/1 {name}".encode("ascii")
    assert len(raw) <= TAG_BYTES
    return raw.ljust(TAG_BYTES, b"\0")


TAG_TICKET = tag("ticket")
TAG_OWNER = tag("owner")
TAG_COMMIT = tag("commit")
TAG_RECORD = tag("record")
TAG_HEADER = tag("header")
TAG_NOTARIZE = tag("voteN")
TAG_NULLIFY = tag("voteX")
TAG_FINALIZE = tag("voteF")
TAG_TRANSACTION = tag("tx")
TAG_NODE = tag("node")
TAG_INVALID = tag("attest")


def verify_signature(signer: bytes, message: bytes, signature: bytes) -> None:
    """Raise `Rejected` unless `signature` is `signer`'s Ed25519 signature of `message` (55 us)."""
    if len(signer) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        raise Rejected(Reason.MALFORMED, "a key has 32 bytes and a signature 64")
    try:
        crypto_sign_open(signature + message, signer)
    except (BadSignatureError, ValueError) as fault:
        raise Rejected(Reason.BAD_SIGNATURE) from fault
