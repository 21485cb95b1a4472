"""A lost sliver from its crossing symbols, the helper who lied, and the proof that a writer did. Pure, as the codec.

A helper is a holder of a crossing sliver: a primary sliver is recovered from S symbols of secondary ones, a secondary
from P symbols of primary ones. First without leaves (`recover`); if that fails, `find_liars` with the leaves of all
helpers; if nobody lied, the writer did, and `build_recovery_proof` shows it to anyone who has the blob's header.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from economics import cbor
from economics.blob import Header, Leaves, SegmentMetadata, sliver_hash
from economics.crypto import DIGEST_BYTES
from economics.errors import Reason, Rejected
from economics.geometry import Code
from p2pnode.coding.codec import Codec, EncodedSegment, Kind, commitment
from p2pnode.coding.kernel import Buffer


def recover(
    codec: Codec, metadata: SegmentMetadata, kind: Kind, index: int, symbols: Mapping[int, Buffer], *, z: int
) -> tuple[bytes, Leaves]:
    """Return a sliver and its leaves from S (P) or more symbols at its crossings, by helper.

    Raises `Rejected`: HASH_MISMATCH if the sliver is not the committed one, so a helper or the writer lied; INCOMPLETE
    for too few symbols, MALFORMED for a size, WRONG_INDEX.
    """
    sliver = b"".join(codec.complete(kind, symbols, size=z))
    return sliver, codec.check_sliver(metadata, kind, index, sliver, z)


def find_liars(
    codec: Codec,
    metadata: SegmentMetadata,
    kind: Kind,
    index: int,
    symbols: Mapping[int, Buffer],
    leaves: Mapping[int, bytes],
    *,
    z: int,
) -> set[int]:
    """Return the helpers whose symbol is not the one their own sliver is bound to, or who did not give their leaves."""
    return {
        helper
        for helper, symbol in symbols.items()
        if not _is_bound(codec, metadata, kind.other, helper, leaves.get(helper, b""), index, symbol, z)
    }


def _is_bound(
    codec: Codec, metadata: SegmentMetadata, kind: Kind, helper: int, leaves: bytes, at: int, symbol: Buffer, z: int
) -> bool:
    if len(symbol) != z:
        return False
    try:
        codec.check_symbols(metadata, kind, helper, leaves, first=at, symbols=symbol, z=z)
    except Rejected:
        return False
    return True


class Evidence(StrEnum):
    """What a proof shows of its sliver."""

    RECOVERY = "recovery"
    """S (P) symbols, each bound by its helper's leaves, decode to a sliver that does not expand to the commitment."""
    EXPANSION = "expansion"
    """Its S (P) symbols are those of its committed leaves, but expand to other leaves."""
    PADDING = "padding"
    """A symbol bound by its leaves has a byte other than zero behind the segment's end."""


@dataclass(frozen=True, slots=True)
class Witness:
    """Symbols with the committed leaves that bind them."""

    index: int
    """RECOVERY: the helper, ascending. EXPANSION: 0. PADDING: the symbol's place in the sliver."""
    leaves: Leaves
    symbols: bytes
    """EXPANSION: all S (P) of the sliver. Otherwise one."""


@dataclass(frozen=True, slots=True)
class InconsistencyProof:
    """Shows anyone who has the blob's header that its writer's commitments contradict each other.

    Canonical CBOR {"evidence": text, "index": uint, "kind": uint, "metadata": bytes 64n, "segment": uint,
    "witnesses": [[index, leaves 32n, symbols]]}.
    """

    evidence: Evidence
    segment: int
    metadata: bytes
    kind: Kind
    index: int
    witnesses: tuple[Witness, ...]

    def encode(self) -> bytes:
        return cbor.encode(
            {
                "evidence": str(self.evidence),
                "index": self.index,
                "kind": int(self.kind),
                "metadata": self.metadata,
                "segment": self.segment,
                "witnesses": [[witness.index, witness.leaves, witness.symbols] for witness in self.witnesses],
            }
        )

    @classmethod
    def decode(cls, data: bytes, *, code: Code) -> "InconsistencyProof":
        """Return the proof, unverified. Raises `Rejected`: TOO_LARGE beyond what this code needs, MALFORMED."""
        budget = cbor.Budget(size_max=proof_bytes_max(code), depth_max=4, elements_max=16 + 4 * code.columns)
        value = cbor.decode(data, budget=budget)
        match value:
            case {
                "evidence": str(evidence),
                "index": int(index),
                "kind": int(kind),
                "metadata": bytes(metadata),
                "segment": int(segment),
                "witnesses": list(witnesses),
            } if len(value) == 6 and evidence in list(Evidence) and _natural(kind) <= 1:
                found = tuple(_decode_witness(witness, code) for witness in witnesses)
                return cls(Evidence(evidence), _natural(segment), metadata, Kind(kind), _natural(index), found)
            case _:
                raise Rejected(Reason.MALFORMED, "not an inconsistency proof")

    def verify(self, codec: Codec, header: Header) -> None:
        """Raise `Rejected` unless this proves the blob of `header` inconsistent: UNPROVEN if all agrees after all.

        At most one sliver is decoded and expanded: milliseconds, for any blob.
        """
        assert codec.code == header.code
        code = codec.code
        if not (0 <= self.segment < code.segment_count(header.length) and 0 <= self.index < code.n):
            raise Rejected(Reason.WRONG_INDEX, "the blob has no such sliver")
        metadata = SegmentMetadata.decode(self.metadata, n=code.n, root=header.roots[self.segment])
        length = code.segment_length(header.length, self.segment)
        match self.evidence:
            case Evidence.RECOVERY:
                self._verify_recovery(codec, metadata, code.symbol_bytes(length))
            case Evidence.EXPANSION:
                self._verify_expansion(codec, metadata, code.symbol_bytes(length))
            case Evidence.PADDING:
                self._verify_padding(codec, metadata, length)

    def _verify_recovery(self, codec: Codec, metadata: SegmentMetadata, z: int) -> None:
        helpers = [witness.index for witness in self.witnesses]
        if len(helpers) != codec.symbols(self.kind) or helpers != sorted(set(helpers)):
            raise Rejected(Reason.MALFORMED, "helpers are as many as the sliver has symbols, ascending")
        for witness in self.witnesses:
            self._check_witness(codec, metadata, self.kind.other, witness.index, witness, self.index, z)
        symbols = {witness.index: witness.symbols for witness in self.witnesses}
        try:
            recover(codec, metadata, self.kind, self.index, symbols, z=z)
        except Rejected as verdict:
            if verdict.reason is Reason.HASH_MISMATCH:
                return
            raise
        raise Rejected(Reason.UNPROVEN, "the symbols decode to the committed sliver")

    def _verify_expansion(self, codec: Codec, metadata: SegmentMetadata, z: int) -> None:
        witness = self._only_witness()
        size = codec.sliver_bytes(self.kind, z)
        if witness.index != 0 or len(witness.symbols) != size:
            raise Rejected(Reason.MALFORMED, f"all {size} bytes of the sliver are the evidence")
        self._check_witness(codec, metadata, self.kind, self.index, witness, 0, z)
        if codec.expand(self.kind, witness.symbols, z) == witness.leaves:
            raise Rejected(Reason.UNPROVEN, "the sliver expands to its leaves")

    def _verify_padding(self, codec: Codec, metadata: SegmentMetadata, length: int) -> None:
        witness, z = self._only_witness(), codec.code.symbol_bytes(length)
        if not codec.is_systematic(self.kind, self.index) or witness.index >= codec.symbols(self.kind):
            raise Rejected(Reason.WRONG_INDEX, "parity has no padding")
        if len(witness.symbols) != z:
            raise Rejected(Reason.MALFORMED, "one symbol is the evidence")
        self._check_witness(codec, metadata, self.kind, self.index, witness, witness.index, z)
        start = codec.padding_start(self.kind, self.index, length) - witness.index * z
        if not any(witness.symbols[max(start, 0) :]):
            raise Rejected(Reason.UNPROVEN, "the padding is zero")

    def _only_witness(self) -> Witness:
        if len(self.witnesses) != 1:
            raise Rejected(Reason.MALFORMED, "this evidence has one witness")
        return self.witnesses[0]

    @staticmethod
    def _check_witness(
        codec: Codec, metadata: SegmentMetadata, kind: Kind, index: int, witness: Witness, first: int, z: int
    ) -> None:
        codec.check_symbols(metadata, kind, index, witness.leaves, first=first, symbols=witness.symbols, z=z)


def proof_bytes_max(code: Code) -> int:
    """Return a bound on the size of a proof: S witnesses of one symbol of the largest segment, and the metadata."""
    n, z = code.n, code.symbol_bytes(code.segment_bytes)
    return 256 + 2 * n * DIGEST_BYTES + code.columns * (n * DIGEST_BYTES + z + 32)


def _decode_witness(value: Any, code: Code) -> Witness:
    match value:
        case [int(index), bytes(leaves), bytes(symbols)] if len(leaves) == code.n * DIGEST_BYTES:
            return Witness(_natural(index), Leaves(leaves), symbols)
        case _:
            raise Rejected(Reason.MALFORMED, "a witness is an index, n leaves and symbols")


def _natural(value: int) -> int:
    """Refuse what a `match` lets through: negative numbers, and booleans, which Python takes for integers."""
    if type(value) is not int or value < 0:
        raise Rejected(Reason.MALFORMED, "an index is an unsigned integer")
    return value


def build_recovery_proof(
    metadata: SegmentMetadata,
    kind: Kind,
    index: int,
    symbols: Mapping[int, Buffer],
    leaves: Mapping[int, bytes],
    *,
    segment: int,
    code: Code,
) -> InconsistencyProof:
    """Return the proof that a recovery without liars failed for the writer's fault: `find_liars` returned nobody."""
    count = code.columns if kind is Kind.PRIMARY else code.rows
    helpers = sorted(symbols)[:count]
    witnesses = tuple(Witness(helper, Leaves(leaves[helper]), bytes(symbols[helper])) for helper in helpers)
    return InconsistencyProof(Evidence.RECOVERY, segment, metadata.encode(), kind, index, witnesses)


@dataclass(frozen=True, slots=True)
class Held:
    """A sliver whose symbols `check_symbols` found to be those of its committed leaves."""

    sliver: Buffer
    leaves: Leaves


def find_inconsistency(
    codec: Codec,
    metadata: SegmentMetadata,
    kind: Kind,
    held: Mapping[int, Held],
    *,
    segment: int,
    length: int,
    buffer: memoryview,
) -> InconsistencyProof | None:
    """Return a proof against the writer from P primary (S secondary) slivers of a segment of `length` bytes, or None.

    For a reader whose decoding ended in INCONSISTENT or BAD_PADDING, or whose strict check failed. If no sliver
    contradicts its own leaves, the matrix that they span is encoded in `buffer`, and the first commitment that differs
    from it is proven wrong by the symbols that cross there. As costly as `encode`.
    """
    code, z = codec.code, codec.code.symbol_bytes(length)
    chosen = {index: held[index] for index in sorted(held)[: codec.symbols(kind.other)]}
    for index, one in chosen.items():
        if codec.expand(kind, one.sliver, z) != one.leaves:
            witness = Witness(0, one.leaves, bytes(one.sliver))
            return InconsistencyProof(Evidence.EXPANSION, segment, metadata.encode(), kind, index, (witness,))
    blocks = codec.complete(
        kind.other, {index: one.sliver for index, one in chosen.items()}, size=codec.sliver_bytes(kind, z)
    )
    encoded = codec.encode(_rows_joined(kind, blocks, z), buffer)
    # First those that cross the slivers held, whose leaves are bound. If all of them are right, their leaves are bound
    # too, and they prove a wrong one of the slivers' own kind.
    for target in (kind.other, kind):
        for index in range(code.n):
            if sliver_hash(encoded.leaves_of(target, index)) != commitment(metadata, target, index):
                helpers = sorted(chosen) if target is kind.other else range(codec.symbols(target))
                return _crossing_proof(codec, metadata, encoded, target, index, helpers, segment=segment)
    return _padding_proof(codec, metadata, encoded, segment=segment, length=length)


def _rows_joined(kind: Kind, blocks: Sequence[memoryview], z: int) -> bytes:
    """Return P rows of S symbols, joined, from P primary or S secondary systematic slivers."""
    if kind is Kind.PRIMARY:
        return b"".join(blocks)
    return b"".join(column[at : at + z] for at in range(0, len(blocks[0]), z) for column in blocks)


def _crossing_proof(
    codec: Codec,
    metadata: SegmentMetadata,
    encoded: EncodedSegment,
    kind: Kind,
    index: int,
    helpers: Sequence[int],
    *,
    segment: int,
) -> InconsistencyProof:
    symbols = {helper: _crossing(encoded, kind, index, helper) for helper in helpers}
    leaves = {helper: encoded.leaves_of(kind.other, helper) for helper in helpers}
    return build_recovery_proof(metadata, kind, index, symbols, leaves, segment=segment, code=codec.code)


def _crossing(encoded: EncodedSegment, kind: Kind, index: int, helper: int) -> memoryview:
    row, column = (index, helper) if kind is Kind.PRIMARY else (helper, index)
    start = (row * encoded.code.n + column) * encoded.z
    return encoded.matrix[start : start + encoded.z]


def _padding_proof(
    codec: Codec, metadata: SegmentMetadata, encoded: EncodedSegment, *, segment: int, length: int
) -> InconsistencyProof | None:
    """Return the proof of the first byte behind the segment's end that is not zero; the matrix is the committed one."""
    z = encoded.z
    for row in range(codec.code.rows):
        start = codec.padding_start(Kind.PRIMARY, row, length)
        sliver = bytes(encoded.primary(row))
        bad = next((at for at in range(start, len(sliver)) if sliver[at]), None)
        if bad is not None:
            column = bad // z
            leaves = encoded.leaves_of(Kind.PRIMARY, row)
            witness = Witness(column, leaves, sliver[column * z : column * z + z])
            return InconsistencyProof(Evidence.PADDING, segment, metadata.encode(), Kind.PRIMARY, row, (witness,))
    return None
