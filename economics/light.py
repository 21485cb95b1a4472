"""The light client: what is final, and what the state holds, for who trusts one epoch's root (FORMATS.md 13). No state.

From a trusted root the committees are followed with one boundary per epoch, each final by the committee before. A
signature costs 55 us to check, so a receipt costs about 0.5 ms per epoch at n = 10.

What builds on a boundary in its own epoch is later than the epoch's length too, but names no next committee.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from economics import cbor
from economics.blob import BlobId
from economics.block import BlockHeader, Finality, is_boundary
from economics.committee import Committee
from economics.crypto import DIGEST_BYTES, Digest, Level, digest, verify_signature
from economics.errors import Reason, Rejected
from economics.genesis import Parameters
from economics.slots import blob_key
from economics.state import BlobSummary
from economics.tree import Proof
from economics.votes import Verify

VERSION = 1
RECEIPT_BYTES_MAX = 4 << 20
"""Over 2,500 epochs at n = 10 with a new committee in each, 140 at n = 256."""
_BUDGET = cbor.Budget(size_max=RECEIPT_BYTES_MAX, depth_max=4, elements_max=1 << 15)


@dataclass(frozen=True, slots=True)
class Trusted:
    """An epoch that is known to be true; the first is `Trusted(genesis header, genesis.committee)`.

    Encoded it is a checkpoint: whoever hands one out vouches for it.
    """

    root: BlockHeader
    """The genesis header, or the boundary that ended the epoch before."""
    committee: Committee

    @property
    def epoch(self) -> int:
        return self.committee.epoch

    def encode(self) -> bytes:
        return cbor.encode({"committee": self.committee.encode(), "root": self.root.encode(), "version": VERSION})

    @classmethod
    def decode(cls, data: bytes, *, chain_id: Digest) -> "Trusted":
        """Return a checkpoint's epoch, its members without addresses; raises `Rejected` if it contradicts itself."""
        value = _open_map(cbor.decode(data), ("committee", "root", "version"), "a checkpoint")
        root = BlockHeader.decode(_as_bytes(value["root"]), chain_id=chain_id)
        committee = Committee.decode(_as_bytes(value["committee"]))
        seated = (0, root.committee_hash) if root.height == 0 else (root.epoch + 1, root.next_committee_hash)
        if (committee.epoch, committee.hash) != seated:
            raise Rejected(Reason.HASH_MISMATCH, "the checkpoint's committee is not the one that its root seats")
        return cls(root, committee)


@dataclass(frozen=True, slots=True)
class Boundary:
    """The end of an epoch, as it is shown to who trusts that epoch."""

    header: BlockHeader
    finality: Finality
    members: bytes = b""
    """The next committee as it is hashed; empty where it has the members and shards of this one."""


@dataclass(frozen=True, slots=True)
class Proven:
    """What a receipt proves: a blob that the network owed in the state of `state_height`."""

    blob_id: BlobId
    length: int
    certified_height: int
    end_epoch: int
    """The first epoch in which nobody need hold the blob."""
    end_ms: int
    """When that epoch begins at the earliest: no epoch is shorter than `epoch_ms`."""
    epoch: int
    height: int
    """Of the final header, whose time is `time_ms`; the state is a few blocks older."""
    state_height: int
    time_ms: int


def is_stale(trusted: Trusted, *, now_ms: int, parameters: Parameters) -> bool:
    """Return whether the epoch began longer ago than stakes are bound: its committee may forge and lose nothing."""
    return now_ms - trusted.root.time_ms > parameters.unbonding_epochs * parameters.epoch_ms


def verify_final(trusted: Trusted, *, header: BlockHeader, finality: Finality) -> None:
    """Raise `Rejected` unless the committee of the trusted epoch made this header of its epoch final."""
    _verify_epoch(trusted, header)
    finality.verify(header, committee=trusted.committee)


def _verify_epoch(trusted: Trusted, header: BlockHeader) -> None:
    if header.chain_id != trusted.root.chain_id:
        raise Rejected(Reason.WRONG_CHAIN, "a block of another network")
    if header.epoch != trusted.epoch:
        raise Rejected(Reason.WRONG_EPOCH, f"a block of epoch {header.epoch}, trusted is epoch {trusted.epoch}")


def follow(
    trusted: Trusted, boundary: Boundary, *, parameters: Parameters, verify: Verify = verify_signature
) -> Trusted:
    """Return the epoch that begins at a boundary of the trusted one, or raise `Rejected`."""
    _verify_epoch(trusted, boundary.header)
    if not is_boundary(boundary.header, root=trusted.root, epoch_ms=parameters.epoch_ms):
        raise Rejected(Reason.WRONG_TIME, "the block does not end its epoch")
    boundary.finality.verify(boundary.header, committee=trusted.committee, verify=verify)
    return Trusted(boundary.header, _next_committee(trusted.committee, boundary))


def _next_committee(committee: Committee, boundary: Boundary) -> Committee:
    """Return the committee whose hash the boundary names; what builds on a boundary names none."""
    same = committee.in_epoch(committee.epoch + 1)
    if digest(Level.COMMITTEE, boundary.members or same.encode()) != boundary.header.next_committee_hash:
        raise Rejected(Reason.HASH_MISMATCH, "the next committee is another")
    if not boundary.members:
        return same
    if boundary.members == same.encode():
        raise Rejected(Reason.MALFORMED, "a committee that stays is not named again")
    return Committee.decode(boundary.members)


@dataclass(frozen=True, slots=True)
class Receipt:
    """Shows offline, to who trusts the epoch of its first boundary, that the network owed a blob."""

    blob_id: BlobId
    epochs: tuple[Boundary, ...]
    header: BlockHeader
    finality: Finality
    proof: Proof
    value: bytes
    """The blob's value of kind 3."""

    def since(self, epoch: int) -> "Receipt":
        """Return the receipt for who trusts this later epoch."""
        return replace(self, epochs=tuple(item for item in self.epochs if item.header.epoch >= epoch))

    def encode(self) -> bytes:
        epochs: list[cbor.Value] = [
            [item.header.encode(), item.finality.encode(), item.members] for item in self.epochs
        ]
        return cbor.encode(
            {
                "blob": bytes(self.blob_id),
                "epochs": epochs,
                "final": [self.header.encode(), self.finality.encode()],
                "proof": self.proof.encode(),
                "value": self.value,
                "version": VERSION,
            }
        )

    @classmethod
    def decode(cls, data: bytes, *, chain_id: Digest) -> "Receipt":
        """Return what a receipt file says, of which nothing is proven yet; raises `Rejected` if it is none."""
        names = ("blob", "epochs", "final", "proof", "value", "version")
        value = _open_map(cbor.decode(data, budget=_BUDGET), names, "a receipt")
        blob_id = _as_bytes(value["blob"])
        if len(blob_id) != DIGEST_BYTES or not isinstance(value["epochs"], list):
            raise Rejected(Reason.MALFORMED, "a receipt has a blob ID of 32 bytes and a list of epochs")
        header, finality, _ = _decode_final(value["final"], 2, chain_id=chain_id)
        epochs = (_decode_final(row, 3, chain_id=chain_id) for row in value["epochs"])
        return cls(
            blob_id=BlobId(blob_id),
            epochs=tuple(Boundary(*row) for row in epochs),
            header=header,
            finality=finality,
            proof=Proof.decode(_as_bytes(value["proof"])),
            value=_as_bytes(value["value"]),
        )

    def verify(self, trusted: Trusted, *, parameters: Parameters) -> Proven:
        """Return what the receipt proves to who trusts this epoch, or raise `Rejected`."""
        for boundary in self.epochs:
            trusted = follow(trusted, boundary, parameters=parameters)
        verify_final(trusted, header=self.header, finality=self.finality)
        self.proof.verify(self.header.state_root, blob_key(self.blob_id), self.value)
        blob = BlobSummary.decode(self.value)
        if blob.blob_id != self.blob_id:
            raise Rejected(Reason.MALFORMED, "a value begins with its kind and id")
        return Proven(
            blob_id=self.blob_id,
            length=blob.length,
            certified_height=blob.certified_height,
            end_epoch=blob.end_epoch,
            end_ms=trusted.root.time_ms + (blob.end_epoch - trusted.epoch) * parameters.epoch_ms,
            epoch=self.header.epoch,
            height=self.header.height,
            state_height=self.header.executed_height,
            time_ms=self.header.time_ms,
        )


def _decode_final(row: Any, width: int, *, chain_id: Digest) -> tuple[BlockHeader, Finality, bytes]:
    """Return header, finality and what may come behind them in a row of this many byte strings."""
    if not isinstance(row, list) or len(row) != width:
        raise Rejected(Reason.MALFORMED, f"a row is {width} byte strings")
    header, finality, *rest = (_as_bytes(item) for item in row)
    return (
        BlockHeader.decode(header, chain_id=chain_id),
        Finality.decode(finality, chain_id=chain_id),
        rest[0] if rest else b"",
    )


def _open_map(value: Any, names: Sequence[str], what: str) -> dict[str, Any]:
    """Return a map of just these names and of our version."""
    if not isinstance(value, dict) or sorted(value) != list(names):
        raise Rejected(Reason.MALFORMED, f"{what} is {', '.join(names)}")
    if type(value["version"]) is not int or value["version"] != VERSION:
        raise Rejected(Reason.MALFORMED, f"{what} of another version than {VERSION}")
    return value


def _as_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise Rejected(Reason.MALFORMED, "not a byte string")
    return value
