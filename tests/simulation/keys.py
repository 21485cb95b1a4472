"""Keys of simulated members: Ed25519, or a stand-in that costs a microsecond and that nobody in a simulation forges."""

from collections.abc import Callable
from dataclasses import dataclass

from blake3 import blake3

from economics.crypto import SIGNATURE_BYTES, Signature, verify_signature
from economics.errors import Reason, Rejected
from economics.votes import Verify
from p2pnode.keys import Key


@dataclass(frozen=True, slots=True)
class Signer:
    """A public key and what signs for it."""

    public: bytes
    sign: Callable[[bytes], Signature]


def _stand_in(public: bytes, message: bytes) -> bytes:
    return blake3(message, key=public).digest(SIGNATURE_BYTES)


def verify_stand_in(public: bytes, message: bytes, signature: bytes) -> None:
    """Raise `Rejected` unless the stand-in of `public` signed: whoever has only its own `Signer` cannot pretend it."""
    if blake3(message, key=public).digest(SIGNATURE_BYTES) != signature:
        raise Rejected(Reason.BAD_SIGNATURE)


def make_signer(index: int, *, is_real: bool) -> Signer:
    """Return the key of one number: of members from 0, of account holders from 1,000."""
    seed = index.to_bytes(4, "big") * 8
    if is_real:
        key = Key(seed)
        return Signer(key.public, key.sign)
    public = blake3(seed).digest()
    return Signer(public, lambda message: Signature(_stand_in(public, message)))


def make_verify(*, is_real: bool) -> Verify:
    """Return what checks signatures in one simulation: n nodes check the same vote, the answer is kept."""
    if not is_real:
        return verify_stand_in
    valid: set[tuple[bytes, bytes, bytes]] = set()

    def verify(public: bytes, message: bytes, signature: bytes) -> None:
        if (public, message, signature) not in valid:
            verify_signature(public, message, signature)
            valid.add((public, message, signature))

    return verify
