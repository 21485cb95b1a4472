"""What a node keeps of a blob besides its slivers: header, what it signed for, certificate; proofs against writers."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from economics import cbor
from economics.blob import BlobId, Header, build_blob_id_text, parse_blob_id
from economics.commitments import Certificate, Commitment, OwnerStatement
from economics.crypto import SIGNATURE_BYTES, Digest, Signature
from economics.errors import Reason, Rejected
from economics.geometry import Code
from p2pnode.files import replace_synced

BLOB_RECORD_BUDGET = cbor.Budget(size_max=8 << 20, depth_max=4, elements_max=4_096)
ENTRIES_MAX = 256
"""Owner statements kept for one blob, of as many reservations."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One owner's statement about a blob, and what this node signed for it."""

    statement: OwnerStatement
    statement_signature: Signature
    epoch: int
    signature: Signature
    """This node's commitment under `epoch`."""

    def as_commitment(self, signer: int) -> tuple[OwnerStatement, Signature, Commitment, Signature]:
        """Return (statement, its signature, this node's commitment, its signature)."""
        commitment = Commitment.build(self.statement, epoch=self.epoch, signer=signer)
        return self.statement, self.statement_signature, commitment, self.signature


@dataclass(frozen=True, slots=True)
class BlobRecord:
    """All that a node keeps of a blob besides its slivers."""

    header: Header
    entries: tuple[Entry, ...]
    """None for a blob that came by transfer or recovery: this node never signed for it."""
    certificate: Certificate | None

    def encode(self) -> bytes:
        entries: list[cbor.Value] = [
            [entry.statement.encode(), entry.statement_signature, entry.epoch, entry.signature]
            for entry in self.entries
        ]
        certificate = None if self.certificate is None else self.certificate.encode()
        return cbor.encode({"certificate": certificate, "entries": entries, "header": self.header.encode()})

    @classmethod
    def decode(cls, data: bytes, *, code: Code, blob_id: BlobId, chain_id: Digest) -> "BlobRecord":
        """Return the record, or raise `Rejected` for a file that holds anything else."""
        match fields := cbor.decode(data, budget=BLOB_RECORD_BUDGET):
            case {"certificate": None | bytes() as held, "entries": list(rows), "header": bytes(raw)} if (
                len(fields) == 3
            ):
                header = Header.decode(raw, code=code, blob_id=blob_id)
                entries = tuple(_parse_entry(row, chain_id) for row in rows)
                return cls(header, entries, None if held is None else Certificate.decode(held, chain_id=chain_id))
            case _:
                raise Rejected(Reason.MALFORMED, "not a blob record")


def _parse_entry(row: object, chain_id: Digest) -> Entry:
    match row:
        case [bytes(body), bytes(owner_signature), int(epoch), bytes(signature)]:
            sizes = {len(owner_signature), len(signature)}
            if isinstance(epoch, bool) or not 0 <= epoch < 1 << 64 or sizes != {SIGNATURE_BYTES}:
                raise Rejected(Reason.MALFORMED, "not an entry of a blob record")
            statement = OwnerStatement.decode(body, chain_id=chain_id)
            return Entry(statement, Signature(owner_signature), epoch, Signature(signature))
        case _:
            raise Rejected(Reason.MALFORMED, "not an entry of a blob record")


class ProofFiles:
    """Inconsistency proofs that have been checked, one file for each blob. For worker threads."""

    def __init__(self, directory: Path) -> None:
        self.foreign_files = 0
        self._directory = directory
        self._known: set[BlobId] = set()
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.iterdir():
            if path.suffix == ".new":
                path.unlink()
                continue
            try:
                self._known.add(parse_blob_id(path.name))
            except Rejected:
                self.foreign_files += 1

    def put(self, blob_id: BlobId, proof: bytes) -> None:
        """Keep a proof; durable on return."""
        replace_synced(self._directory / build_blob_id_text(blob_id), (proof,))
        self._known.add(blob_id)

    def read(self, blob_id: BlobId) -> bytes | None:
        """Return the proof that is known of a blob."""
        if blob_id not in self._known:
            return None
        with suppress(FileNotFoundError):  # dropped at this moment
            return (self._directory / build_blob_id_text(blob_id)).read_bytes()
        return None

    def drop(self, blob_id: BlobId) -> None:
        """Forget the proof that is known of a blob."""
        self._known.discard(blob_id)
        (self._directory / build_blob_id_text(blob_id)).unlink(missing_ok=True)

    def known(self) -> frozenset[BlobId]:
        """Return the blobs whose writer is known to have encoded them wrongly."""
        return frozenset(self._known)
