"""Keys of simulated nodes, and which node is which member in an epoch.

A key is Ed25519, or a stand-in that costs a microsecond and that nobody in a simulation forges.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from blake3 import blake3

from economics.committee import Committee
from economics.crypto import SIGNATURE_BYTES, Digest, Level, NodeId, Signature, digest, verify_signature
from economics.errors import Reason, Rejected
from economics.votes import Verify
from p2pnode.keys import Key


@dataclass(frozen=True, slots=True)
class Signer:
    """A public key and what signs for it."""

    public: bytes
    sign: Callable[[bytes], Signature]


class Roster:
    """All nodes there will ever be, by number, which is also their place on the wires; an epoch's index is another."""

    def __init__(self, signers: Sequence[Signer]) -> None:
        self.signers = tuple(signers)
        self.nodes = tuple(NodeId(signer.public) for signer in signers)
        self._numbers = {node: number for number, node in enumerate(self.nodes)}

    def number(self, committee: Committee, index: int) -> int:
        """Return the number of a member."""
        return self._numbers[committee.members[index].node]

    def numbers(self, committee: Committee) -> list[int]:
        """Return the numbers of all members, in index order."""
        return [self._numbers[member.node] for member in committee.members]

    def index(self, committee: Committee, number: int) -> int | None:
        return committee.index_of(self.nodes[number])

    def weight(self, committee: Committee, numbers: Iterable[int]) -> int:
        """Return the shards of these nodes; those without a seat have none."""
        return sum(len(committee.shards_of_node(self.nodes[number])) for number in set(numbers))


def make_onion(node: NodeId, layers: int) -> tuple[Digest, dict[bytes, bytes]]:
    """Return what a node commits to, and what each value that it then stands for is the hash of (FORMATS.md 17)."""
    tip = digest(Level.BEACON, node)
    inner: dict[bytes, bytes] = {}
    for _ in range(layers):
        core, tip = tip, digest(Level.BEACON, tip)
        inner[tip] = core
    return tip, inner


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
