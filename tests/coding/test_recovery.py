"""A lost sliver comes back in spite of f liars, an inconsistent writer is proven to anyone, an honest one never is."""

import os
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from economics import cbor
from economics.blob import Header, Leaves, SegmentMetadata, sliver_hash
from economics.errors import Reason, Rejected
from economics.geometry import Code
from p2pnode.coding.codec import Codec, EncodedSegment, Kind
from p2pnode.coding.kernel import Buffer, load_kernel
from p2pnode.coding.recovery import (
    Evidence,
    Held,
    InconsistencyProof,
    Witness,
    build_recovery_proof,
    find_inconsistency,
    find_liars,
    proof_bytes_max,
    recover,
)

KERNEL = load_kernel()
LENGTH = 300


def make(n: int) -> Codec:
    return Codec(Code(n), KERNEL)


def encode(codec: Codec, segment: bytes) -> EncodedSegment:
    return codec.encode(segment, memoryview(bytearray(codec.matrix_bytes(len(segment)))))


def sliver(encoded: EncodedSegment, kind: Kind, index: int) -> bytes:
    return bytes(encoded.primary(index)) if kind is Kind.PRIMARY else b"".join(encoded.secondary(index))


def reason(call: Callable[..., object], *args: object, **kwargs: object) -> Reason:
    with pytest.raises(Rejected) as verdict:
        call(*args, **kwargs)
    return verdict.value.reason


def crossings(codec: Codec, encoded: EncodedSegment, kind: Kind, index: int) -> dict[int, Buffer]:
    """Return what every helper would send for a lost sliver."""
    other = kind.other
    return {
        helper: codec.symbol(other, sliver(encoded, other, helper), index, encoded.z)
        for helper in range(encoded.code.n)
    }


class TestRecovery:
    @settings(max_examples=100, deadline=None)
    @given(n=st.sampled_from((4, 5, 7, 10, 31)), kind=st.sampled_from(Kind), data=st.data())
    def test_any_sliver_comes_back_from_any_helpers(self, n: int, kind: Kind, data: st.DataObject) -> None:
        codec = make(n)
        encoded = encode(codec, Random(n).randbytes(data.draw(st.integers(0, 2000))))
        index = data.draw(st.integers(0, n - 1))
        helpers = data.draw(st.permutations(range(n)))[: codec.symbols(kind)]
        every = crossings(codec, encoded, kind, index)
        symbols = {helper: every[helper] for helper in helpers}
        want = sliver(encoded, kind, index), encoded.leaves_of(kind, index)
        assert recover(codec, encoded.metadata, kind, index, symbols, z=encoded.z) == want

    @pytest.mark.parametrize("kind", Kind)
    @pytest.mark.parametrize("n", [4, 10, 31])
    def test_f_liars_are_told_from_the_honest_and_cost_one_round(self, n: int, kind: Kind) -> None:
        codec = make(n)
        encoded, z = encode(codec, os.urandom(5000)), codec.code.symbol_bytes(5000)
        symbols = crossings(codec, encoded, kind, 1)
        liars = set(Random(n).sample(range(codec.symbols(kind)), codec.code.f))
        for liar in liars:
            symbols[liar] = bytes(z)
        asked = {helper: symbols[helper] for helper in range(codec.symbols(kind))}
        verdict = reason(recover, codec, encoded.metadata, kind, 1, asked, z=z)
        assert verdict is Reason.HASH_MISMATCH
        leaves: dict[int, bytes] = {helper: encoded.leaves_of(kind.other, helper) for helper in asked}
        assert find_liars(codec, encoded.metadata, kind, 1, asked, leaves, z=z) == liars
        honest = {helper: symbol for helper, symbol in symbols.items() if helper not in liars}
        assert recover(codec, encoded.metadata, kind, 1, honest, z=z)[0] == sliver(encoded, kind, 1)

    def test_whoever_gives_no_or_false_leaves_or_another_size_is_a_liar(self) -> None:
        codec = make(7)
        encoded = encode(codec, os.urandom(LENGTH))
        symbols = crossings(codec, encoded, Kind.PRIMARY, 0)
        leaves: dict[int, bytes] = {helper: encoded.leaves_of(Kind.SECONDARY, helper) for helper in range(7)}
        del leaves[1]
        leaves[2] = leaves[3]
        leaves[4] = leaves[4] + b"x"
        symbols[5] = b""
        symbols[6] = sliver(encoded, Kind.SECONDARY, 6)[
            : 2 * encoded.z
        ]  # its leaves do bind both, where one is asked for
        found = find_liars(codec, encoded.metadata, Kind.PRIMARY, 0, symbols, leaves, z=encoded.z)
        assert found == {1, 2, 4, 5, 6}

    def test_hostile_symbols_are_refused(self) -> None:
        codec = make(7)
        encoded = encode(codec, os.urandom(LENGTH))
        good = crossings(codec, encoded, Kind.PRIMARY, 5)

        def verdict(symbols: dict[int, Buffer], index: int = 5) -> Reason:
            return reason(recover, codec, encoded.metadata, Kind.PRIMARY, index, symbols, z=encoded.z)

        assert verdict({helper: good[helper] for helper in range(4)}) is Reason.INCOMPLETE
        assert verdict({**good, 0: b"short"}) is Reason.MALFORMED
        assert verdict({-1: b"x" * encoded.z, **good}) is Reason.WRONG_INDEX
        assert verdict({**{helper: good[helper] for helper in range(4)}, 7: good[4]}) is Reason.WRONG_INDEX
        assert verdict(good, index=7) is Reason.WRONG_INDEX
        for crossing in (-1, 7):
            row = encoded.primary(0)
            assert reason(codec.symbol, Kind.PRIMARY, row, crossing, encoded.z) is Reason.WRONG_INDEX


class Writer:
    """What one writer put into the world: slivers with leaf lists, and commitments to them."""

    def __init__(self, codec: Codec, slivers: dict[tuple[Kind, int], Held], length: int) -> None:
        self.codec, self.slivers, self.length = codec, slivers, length
        n = codec.code.n
        self.metadata = SegmentMetadata(
            tuple(sliver_hash(slivers[kind, index].leaves) for kind in Kind for index in range(n))
        )
        self.header = Header(codec.code, length, (self.metadata.root,))

    @classmethod
    def honest(cls, codec: Codec, segment: bytes, length: int | None = None) -> "Writer":
        encoded = encode(codec, segment)
        keys = [(kind, index) for kind in Kind for index in range(codec.code.n)]
        slivers = {key: Held(sliver(encoded, *key), encoded.leaves_of(*key)) for key in keys}
        return cls(codec, slivers, len(segment) if length is None else length)

    def with_slivers(self, other: "Writer", keys: list[tuple[Kind, int]]) -> "Writer":
        return Writer(self.codec, self.slivers | {key: other.slivers[key] for key in keys}, self.length)

    def with_leaves(self, kind: Kind, index: int) -> "Writer":
        """Invent the leaf of one sliver's last parity symbol."""
        held = self.slivers[kind, index]
        lying = Held(held.sliver, Leaves(held.leaves[:-32] + bytes(32)))
        return Writer(self.codec, self.slivers | {(kind, index): lying}, self.length)

    def find(self, kind: Kind, indices: list[int]) -> InconsistencyProof | None:
        held = {index: self.slivers[kind, index] for index in indices}
        z = self.codec.code.symbol_bytes(self.length)
        for index, one in held.items():
            self.codec.check_symbols(self.metadata, kind, index, one.leaves, first=0, symbols=one.sliver, z=z)
        buffer = memoryview(bytearray(self.codec.matrix_bytes(self.length)))
        return find_inconsistency(self.codec, self.metadata, kind, held, segment=0, length=self.length, buffer=buffer)

    def recovery_proof(self, kind: Kind, index: int) -> InconsistencyProof:
        z, other = self.codec.code.symbol_bytes(self.length), kind.other
        helpers = range(self.codec.symbols(kind))
        symbols: dict[int, Buffer] = {
            helper: self.codec.symbol(other, self.slivers[other, helper].sliver, index, z) for helper in helpers
        }
        leaves: dict[int, bytes] = {helper: self.slivers[other, helper].leaves for helper in helpers}
        return build_recovery_proof(self.metadata, kind, index, symbols, leaves, segment=0, code=self.codec.code)

    def check(self, proof: InconsistencyProof) -> None:
        """As a signer of an invalidation does: from bytes, with nothing but the header."""
        data = proof.encode()
        assert len(data) <= proof_bytes_max(self.codec.code)
        decoded = InconsistencyProof.decode(data, code=self.codec.code)
        assert decoded == proof
        decoded.verify(self.codec, self.header)


CODEC = make(7)
A, B = Writer.honest(CODEC, b"A" * LENGTH), Writer.honest(CODEC, b"B" * LENGTH)
ROWS_AND_COLUMNS_DIFFER = A.with_slivers(B, [(Kind.SECONDARY, index) for index in range(7)])
ONE_ROW_DIFFERS = A.with_slivers(B, [(Kind.PRIMARY, 6)])
ONE_COLUMN_DIFFERS = A.with_slivers(B, [(Kind.SECONDARY, 0)])
ONE_LIST_LIES = A.with_leaves(Kind.PRIMARY, 4).with_leaves(Kind.SECONDARY, 2)
FULL = CODEC.code.rows * CODEC.code.columns * CODEC.code.symbol_bytes(LENGTH + 1)
PADDING_IS_FILLED = Writer.honest(CODEC, b"x" * FULL, LENGTH + 1)


class TestAnInconsistentWriterIsProven:
    @pytest.mark.parametrize(
        ("writer", "kind", "indices", "evidence", "target"),
        [
            (ROWS_AND_COLUMNS_DIFFER, Kind.PRIMARY, [0, 1, 2], Evidence.RECOVERY, (Kind.SECONDARY, 0)),
            (ROWS_AND_COLUMNS_DIFFER, Kind.PRIMARY, [3, 5, 6], Evidence.RECOVERY, (Kind.SECONDARY, 0)),
            (ROWS_AND_COLUMNS_DIFFER, Kind.SECONDARY, [0, 1, 2, 3, 4], Evidence.RECOVERY, (Kind.PRIMARY, 0)),
            (ROWS_AND_COLUMNS_DIFFER, Kind.SECONDARY, [2, 3, 4, 5, 6], Evidence.RECOVERY, (Kind.PRIMARY, 0)),
            (ONE_ROW_DIFFERS, Kind.PRIMARY, [0, 1, 2], Evidence.RECOVERY, (Kind.PRIMARY, 6)),
            (ONE_ROW_DIFFERS, Kind.PRIMARY, [0, 1, 6], Evidence.RECOVERY, (Kind.SECONDARY, 0)),
            (ONE_ROW_DIFFERS, Kind.SECONDARY, [0, 1, 2, 3, 4], Evidence.RECOVERY, (Kind.PRIMARY, 6)),
            (ONE_COLUMN_DIFFERS, Kind.PRIMARY, [4, 5, 6], Evidence.RECOVERY, (Kind.SECONDARY, 0)),
            (ONE_COLUMN_DIFFERS, Kind.SECONDARY, [2, 3, 4, 5, 6], Evidence.RECOVERY, (Kind.SECONDARY, 0)),
            (ONE_LIST_LIES, Kind.PRIMARY, [0, 4, 5], Evidence.EXPANSION, (Kind.PRIMARY, 4)),
            (ONE_LIST_LIES, Kind.SECONDARY, [0, 1, 2, 3, 4], Evidence.EXPANSION, (Kind.SECONDARY, 2)),
            (ONE_LIST_LIES, Kind.PRIMARY, [0, 1, 2], Evidence.RECOVERY, (Kind.SECONDARY, 2)),
            (PADDING_IS_FILLED, Kind.PRIMARY, [4, 5, 6], Evidence.PADDING, (Kind.PRIMARY, 2)),
            (PADDING_IS_FILLED, Kind.SECONDARY, [2, 3, 4, 5, 6], Evidence.PADDING, (Kind.PRIMARY, 2)),
        ],
    )
    def test_by_any_reader_s_slivers(
        self, writer: Writer, kind: Kind, indices: list[int], evidence: Evidence, target: tuple[Kind, int]
    ) -> None:
        proof = writer.find(kind, indices)
        assert proof is not None
        assert (proof.evidence, (proof.kind, proof.index)) == (evidence, target)
        writer.check(proof)

    def test_by_a_node_whose_recovery_failed_without_a_liar(self) -> None:
        writer = ROWS_AND_COLUMNS_DIFFER
        proof = writer.recovery_proof(Kind.PRIMARY, 3)
        symbols: dict[int, Buffer] = {witness.index: witness.symbols for witness in proof.witnesses}
        leaves: dict[int, bytes] = {witness.index: witness.leaves for witness in proof.witnesses}
        z = CODEC.code.symbol_bytes(LENGTH)
        verdict = reason(recover, CODEC, writer.metadata, Kind.PRIMARY, 3, symbols, z=z)
        assert verdict is Reason.HASH_MISMATCH
        assert find_liars(CODEC, writer.metadata, Kind.PRIMARY, 3, symbols, leaves, z=z) == set()
        writer.check(proof)

    def test_in_a_later_segment_too(self) -> None:
        codec = Codec(Code(7, 100), KERNEL)
        a, b = (Writer.honest(codec, byte * 100) for byte in (b"A", b"B"))
        fraud = a.with_slivers(b, [(Kind.PRIMARY, 0)])
        header = Header(codec.code, 300, (a.metadata.root, b.metadata.root, fraud.metadata.root))
        proof = fraud.recovery_proof(Kind.PRIMARY, 0)
        replace(proof, segment=2).verify(codec, header)
        assert reason(replace(proof, segment=1).verify, codec, header) is Reason.HASH_MISMATCH
        assert reason(replace(proof, segment=3).verify, codec, header) is Reason.WRONG_INDEX
        assert reason(replace(proof, segment=-1).verify, codec, header) is Reason.WRONG_INDEX

    @pytest.mark.parametrize("n", [4, 100, 256])
    def test_within_the_bound_on_a_proof_s_size(self, n: int) -> None:
        codec = Codec(Code(n, 50_000), KERNEL)
        fraud = Writer.honest(codec, os.urandom(50_000)).with_leaves(Kind.PRIMARY, 0)
        proof = fraud.find(Kind.PRIMARY, list(range(codec.code.rows)))
        assert proof is not None
        fraud.check(proof)
        for kind in Kind:
            size = len(fraud.recovery_proof(kind, 0).encode())
            assert size <= proof_bytes_max(codec.code)
        assert size < proof_bytes_max(codec.code) < 2 * max(size, 50_000, 200 * n * n)


class TestAnHonestWriterNeverIs:
    @pytest.mark.parametrize(("kind", "indices"), [(Kind.PRIMARY, [4, 5, 6]), (Kind.SECONDARY, [0, 2, 3, 5, 6])])
    def test_by_looking_for_it(self, kind: Kind, indices: list[int]) -> None:
        assert A.find(kind, indices) is None

    @pytest.mark.parametrize("kind", Kind)
    def test_by_a_recovery_that_went_well(self, kind: Kind) -> None:
        for index in range(7):
            proof = A.recovery_proof(kind, index)
            assert reason(proof.verify, CODEC, A.header) is Reason.UNPROVEN

    def test_by_symbols_that_its_leaves_do_not_bind(self) -> None:
        proof = A.recovery_proof(Kind.PRIMARY, 3)
        first, *others = proof.witnesses
        for forged in (
            replace(first, symbols=bytes([first.symbols[0] ^ 1]) + first.symbols[1:]),
            replace(first, leaves=Leaves(bytes(32) + first.leaves[32:])),
            replace(first, symbols=b"B" * len(first.symbols), leaves=B.slivers[Kind.SECONDARY, 0].leaves),
        ):
            forgery = replace(proof, witnesses=(forged, *others))
            assert reason(forgery.verify, CODEC, A.header) is Reason.HASH_MISMATCH

    def test_by_another_s_metadata(self) -> None:
        proof = ROWS_AND_COLUMNS_DIFFER.recovery_proof(Kind.PRIMARY, 3)
        assert reason(proof.verify, CODEC, A.header) is Reason.HASH_MISMATCH

    def test_by_fewer_more_or_repeated_helpers(self) -> None:
        proof = A.recovery_proof(Kind.PRIMARY, 3)
        few, one = proof.witnesses[:-1], proof.witnesses[0]
        for witnesses in ((), few, (*few, one), (one, *few), proof.witnesses[::-1], (*proof.witnesses, *few)):
            forgery = replace(proof, witnesses=witnesses)
            assert reason(forgery.verify, CODEC, A.header) is Reason.MALFORMED

    def test_by_a_target_or_helper_outside_the_code(self) -> None:
        proof = A.recovery_proof(Kind.PRIMARY, 3)
        last = replace(proof.witnesses[-1], index=7)
        for forgery in (
            replace(proof, index=7),
            replace(proof, index=-1),
            replace(proof, witnesses=(*proof.witnesses[:-1], last)),
        ):
            assert reason(forgery.verify, CODEC, A.header) is Reason.WRONG_INDEX

    def test_by_a_symbol_of_double_size(self) -> None:
        """Two adjacent symbols do have two adjacent leaves; they are still no evidence."""
        proof, z = A.recovery_proof(Kind.PRIMARY, 1), CODEC.code.symbol_bytes(LENGTH)
        row = A.slivers[Kind.SECONDARY, 0]
        double = replace(proof.witnesses[0], symbols=bytes(row.sliver[z : 3 * z]))
        forgery = replace(proof, witnesses=(double, *proof.witnesses[1:]))
        assert reason(forgery.verify, CODEC, A.header) is Reason.MALFORMED

    def test_by_an_expansion_that_is_right(self) -> None:
        held = A.slivers[Kind.PRIMARY, 6]
        witness = Witness(0, held.leaves, bytes(held.sliver))
        proof = InconsistencyProof(Evidence.EXPANSION, 0, A.metadata.encode(), Kind.PRIMARY, 6, (witness,))
        assert reason(proof.verify, CODEC, A.header) is Reason.UNPROVEN
        for forged, want in (
            ((), Reason.MALFORMED),
            ((witness, witness), Reason.MALFORMED),
            ((replace(witness, index=1),), Reason.MALFORMED),
            ((replace(witness, symbols=witness.symbols[:-1]),), Reason.MALFORMED),
            ((replace(witness, symbols=bytes(len(witness.symbols))),), Reason.HASH_MISMATCH),
        ):
            forgery = replace(proof, witnesses=forged)
            assert reason(forgery.verify, CODEC, A.header) is want

    def test_by_padding_that_its_leaves_do_not_bind(self) -> None:
        z, held = CODEC.code.symbol_bytes(LENGTH + 1), PADDING_IS_FILLED.slivers[Kind.PRIMARY, 2]
        honest = Writer.honest(CODEC, b"x" * (LENGTH + 1))
        for leaves in (held.leaves, honest.slivers[Kind.PRIMARY, 2].leaves):
            witness = Witness(4, leaves, bytes(held.sliver[4 * z :]))
            metadata = honest.metadata.encode()
            proof = InconsistencyProof(Evidence.PADDING, 0, metadata, Kind.PRIMARY, 2, (witness,))
            assert reason(proof.verify, CODEC, honest.header) is Reason.HASH_MISMATCH

    def test_by_bytes_that_are_no_padding(self) -> None:
        """The last symbol is data up to the segment's end; a parity symbol has no padding at all."""
        z = CODEC.code.symbol_bytes(LENGTH)
        held = A.slivers[Kind.PRIMARY, 2]
        for kind, index, place, want in (
            (Kind.PRIMARY, 2, 4, Reason.UNPROVEN),
            (Kind.PRIMARY, 0, 0, Reason.UNPROVEN),
            (Kind.SECONDARY, 4, 2, Reason.UNPROVEN),
            (Kind.PRIMARY, 3, 0, Reason.WRONG_INDEX),
            (Kind.PRIMARY, 2, 5, Reason.WRONG_INDEX),
            (Kind.SECONDARY, 5, 0, Reason.WRONG_INDEX),
            (Kind.SECONDARY, 4, 3, Reason.WRONG_INDEX),
        ):
            held = A.slivers[kind, index]
            symbol = CODEC.symbol(kind, held.sliver, place, z)
            witness = Witness(place, held.leaves, symbol)
            proof = InconsistencyProof(Evidence.PADDING, 0, A.metadata.encode(), kind, index, (witness,))
            assert reason(proof.verify, CODEC, A.header) is want


PROOFS = [
    ROWS_AND_COLUMNS_DIFFER.recovery_proof(Kind.PRIMARY, 3).encode(),
    *(
        proof.encode()
        for proof in (ONE_LIST_LIES.find(Kind.PRIMARY, [0, 4, 5]), PADDING_IS_FILLED.find(Kind.PRIMARY, [0, 1, 2]))
        if proof
    ),
]
FIELDS = st.one_of(st.integers(-9, 300), st.binary(max_size=70), st.text(max_size=9), st.booleans(), st.none())


class TestHostileBytes:
    """Only `Rejected`, and no blob of an honest writer is ever condemned."""

    def judge(self, data: bytes) -> None:
        for header in (A.header, PADDING_IS_FILLED.header):
            try:
                InconsistencyProof.decode(data, code=CODEC.code).verify(CODEC, header)
            except Rejected:
                continue
            assert header != A.header, "an honest writer is condemned"

    @settings(max_examples=200, deadline=None)
    @given(st.binary(max_size=300))
    def test_any_bytes(self, data: bytes) -> None:
        with pytest.raises(Rejected):
            InconsistencyProof.decode(data, code=CODEC.code)

    @settings(max_examples=300, deadline=None)
    @given(data=st.data())
    def test_a_true_proof_with_bytes_changed(self, data: st.DataObject) -> None:
        proof = bytearray(data.draw(st.sampled_from(PROOFS)))
        for _ in range(data.draw(st.integers(1, 3))):
            proof[data.draw(st.integers(0, len(proof) - 1))] = data.draw(st.integers(0, 255))
        self.judge(bytes(proof[: data.draw(st.integers(0, len(proof)) | st.just(len(proof)))]))

    @settings(max_examples=300, deadline=None)
    @given(data=st.data())
    def test_any_values_in_any_fields(self, data: st.DataObject) -> None:
        honest = A.recovery_proof(data.draw(st.sampled_from(Kind)), data.draw(st.integers(0, 6)))
        value = cbor.decode(honest.encode())
        for name in data.draw(st.lists(st.sampled_from(sorted(value)), max_size=2)):
            value[name] = data.draw(FIELDS | st.lists(FIELDS, max_size=4))
        if data.draw(st.booleans()):
            value["evidence"] = data.draw(st.sampled_from(list(Evidence))).value
        if isinstance(value["witnesses"], list) and data.draw(st.booleans()):
            value["witnesses"] = value["witnesses"][: data.draw(st.integers(0, 3))]
        self.judge(cbor.encode(value))

    @pytest.mark.parametrize(
        "change", [{"kind": 2}, {"kind": True}, {"index": False}, {"segment": -1}, {"more": 1}, {"evidence": "rumour"}]
    )
    def test_what_is_nearly_a_proof(self, change: dict[str, cbor.Value]) -> None:
        value = cbor.decode(PROOFS[0]) | change
        assert reason(InconsistencyProof.decode, cbor.encode(value), code=CODEC.code) is Reason.MALFORMED

    def test_more_than_this_code_needs_is_not_even_read(self) -> None:
        data = bytes(proof_bytes_max(CODEC.code) + 1)
        assert reason(InconsistencyProof.decode, data, code=CODEC.code) is Reason.TOO_LARGE
