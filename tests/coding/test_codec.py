"""A segment goes to slivers and comes back, and nobody who breaks a rule makes a reader or a node take a wrong byte."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from economics.blob import Leaves, SegmentMetadata, join_leaves, leaf, sliver_hash, split_hashes
from economics.crypto import Digest
from economics.errors import Reason, Rejected
from economics.geometry import Code, row_spans
from p2pnode.coding.codec import Codec, EncodedSegment, Kind, hash_symbols
from p2pnode.coding.kernel import Buffer, load_kernel

KERNEL = load_kernel()
ZFEC = load_kernel("zfec")
SHARDS = (4, 5, 6, 7, 10, 21)

SEGMENTS = st.builds(lambda length, seed: Random(seed).randbytes(length), st.integers(0, 700), st.integers(0, 9))


def make(n: int) -> Codec:
    return Codec(Code(n), KERNEL)


def encode(codec: Codec, segment: bytes) -> EncodedSegment:
    """In a dirty buffer: what it held must not matter."""
    return codec.encode(segment, memoryview(bytearray(b"\xa5" * codec.matrix_bytes(len(segment)))))


def sliver(encoded: EncodedSegment, kind: Kind, index: int) -> bytes:
    return bytes(encoded.primary(index)) if kind is Kind.PRIMARY else b"".join(encoded.secondary(index))


def decode(codec: Codec, metadata: SegmentMetadata, kind: Kind, slivers: dict[int, Buffer], length: int) -> bytes:
    run = codec.decode_from_primary if kind is Kind.PRIMARY else codec.decode_from_secondary
    return b"".join(run(metadata, slivers, length))


def reason(call: Callable[..., object], *args: object, **kwargs: object) -> Reason:
    with pytest.raises(Rejected) as verdict:
        call(*args, **kwargs)
    return verdict.value.reason


class TestEncoding:
    @pytest.mark.parametrize("n", SHARDS)
    def test_the_first_primary_slivers_joined_are_the_segment(self, n: int) -> None:
        codec, segment = make(n), os.urandom(1001)
        encoded = encode(codec, segment)
        assert b"".join(map(encoded.primary, range(codec.code.rows)))[:1001] == segment

    def test_slivers_are_views_of_the_caller_s_buffer(self) -> None:
        codec, buffer = make(7), bytearray(100_000)
        encoded = codec.encode(os.urandom(1000), memoryview(buffer))
        assert encoded.primary(6).obj is buffer
        assert all(symbol.obj is buffer for symbol in encoded.secondary(6))
        assert len(encoded.matrix) == codec.matrix_bytes(1000)

    def test_bytes_beside_the_matrix_stay(self) -> None:
        codec = make(10)
        size = codec.matrix_bytes(999)
        buffer = bytearray(b"\x5a" * (size + 64))
        codec.encode(os.urandom(999), memoryview(buffer))
        assert buffer[size:] == b"\x5a" * 64

    @pytest.mark.parametrize("n", SHARDS)
    def test_every_leaf_is_that_of_its_symbol_in_row_and_column(self, n: int) -> None:
        codec = make(n)
        encoded = encode(codec, os.urandom(500))
        z, at = encoded.z, [[row * n + column for column in range(n)] for row in range(n)]
        leaves = [leaf(encoded.matrix[index * z : index * z + z]) for index in range(n * n)]
        for line in range(n):
            assert encoded.leaves_of(Kind.PRIMARY, line) == join_leaves(leaves[index] for index in at[line])
            assert encoded.leaves_of(Kind.SECONDARY, line) == join_leaves(leaves[row[line]] for row in at)
            assert sliver_hash(encoded.leaves_of(Kind.PRIMARY, line)) == encoded.metadata.primary(line)
            assert sliver_hash(encoded.leaves_of(Kind.SECONDARY, line)) == encoded.metadata.secondary(line)

    def test_another_process_finds_the_segment_in_shared_memory(self) -> None:
        codec, segment = make(7), os.urandom(777)
        memory = SharedMemory(create=True, size=codec.matrix_bytes(777))
        mapped = SharedMemory(memory.name)
        assert memory.buf is not None
        assert mapped.buf is not None
        here = codec.encode(segment, memory.buf)
        there = EncodedSegment.build(codec.code, mapped.buf, length=777, leaves=here.leaves)
        same = (there.metadata, there.root, there.z) == (here.metadata, here.root, here.z)
        columns = [sliver(encoded, Kind.SECONDARY, 6) for encoded in (here, there)]
        for encoded, mapping in ((here, memory), (there, mapped)):
            encoded.matrix.release()
            mapping.close()
        memory.unlink()
        assert same
        assert columns[0] == columns[1]

    def test_both_kernels_make_one_root(self) -> None:
        segment = os.urandom(5001)
        for n in (*SHARDS, 100, 256):
            assert encode(Codec(Code(n), KERNEL), segment).root == encode(Codec(Code(n), ZFEC), segment).root

    def test_threads_share_a_codec(self) -> None:
        """With symbols so large that hashing and coding let go of the interpreter halfway."""
        codec = make(7)
        encoded = encode(codec, os.urandom(1 << 20))
        jobs = [(kind, index) for kind in Kind for index in range(7)] * 4
        with ThreadPoolExecutor(4) as threads:
            made = list(threads.map(lambda job: codec.expand(job[0], sliver(encoded, *job), encoded.z), jobs))
        assert made == [encoded.leaves_of(*job) for job in jobs]


class TestDecoding:
    @settings(max_examples=150, deadline=None)
    @given(segment=SEGMENTS, n=st.sampled_from(SHARDS), kind=st.sampled_from(Kind), data=st.data())
    def test_any_p_primary_or_s_secondary_slivers_give_the_segment(
        self, segment: bytes, n: int, kind: Kind, data: st.DataObject
    ) -> None:
        codec = make(n)
        encoded = encode(codec, segment)
        kept = data.draw(st.permutations(range(n)))[: codec.symbols(kind.other)]
        slivers: dict[int, Buffer] = {index: sliver(encoded, kind, index) for index in kept}
        assert decode(codec, encoded.metadata, kind, slivers, len(segment)) == segment

    @pytest.mark.parametrize("kind", Kind)
    @pytest.mark.parametrize("n", [31, 100, 256])
    def test_large_networks_too(self, n: int, kind: Kind) -> None:
        codec, segment = make(n), os.urandom(50_001)
        encoded = encode(codec, segment)
        kept = Random(n).sample(range(n), codec.symbols(kind.other))
        slivers: dict[int, Buffer] = {index: sliver(encoded, kind, index) for index in kept}
        assert decode(codec, encoded.metadata, kind, slivers, len(segment)) == segment

    @pytest.mark.parametrize("kind", Kind)
    def test_more_slivers_than_needed_are_welcome_and_fewer_are_refused(self, kind: Kind) -> None:
        codec, segment = make(10), os.urandom(999)
        encoded = encode(codec, segment)
        slivers: dict[int, Buffer] = {index: sliver(encoded, kind, index) for index in range(10)}
        assert decode(codec, encoded.metadata, kind, slivers, 999) == segment
        few = dict(list(slivers.items())[: codec.symbols(kind.other) - 1])
        assert reason(decode, codec, encoded.metadata, kind, few, 999) is Reason.INCOMPLETE
        short = {**slivers, 0: slivers[0][:-1]}
        assert reason(decode, codec, encoded.metadata, kind, short, 999) is Reason.MALFORMED

    def test_without_loss_there_is_no_arithmetic_and_no_copy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        codec, segment = make(10), os.urandom(999)
        encoded = encode(codec, segment)
        slivers: dict[int, Buffer] = {index: encoded.primary(index) for index in range(codec.code.rows)}
        monkeypatch.setattr(codec.kernel._backend, "extend", None)
        monkeypatch.setattr(codec.kernel._backend, "decode", None)
        parts = codec.decode_from_primary(encoded.metadata, slivers, 999)
        assert b"".join(parts) == segment
        assert all(part.obj is encoded.matrix.obj for part in parts)

    def test_a_sliver_for_a_decoded_row_is_taken_only_if_it_expands_to_its_hash(self) -> None:
        """A parity sliver that nobody checked: whatever it makes is refused."""
        codec, segment = make(7), os.urandom(300)
        encoded = encode(codec, segment)
        slivers: dict[int, Buffer] = {0: encoded.primary(0), 1: encoded.primary(1), 6: bytes(len(encoded.primary(6)))}
        verdict = reason(codec.decode_from_primary, encoded.metadata, slivers, 300)
        assert verdict is Reason.INCONSISTENT

    def test_strict_mode_tells_whether_every_reader_gets_the_same(self) -> None:
        codec, segment = make(7), os.urandom(300)
        encoded, buffer = encode(codec, segment), memoryview(bytearray(10_000))
        assert codec.check_strictly(encoded.root, segment, buffer).root == encoded.root
        other = encode(codec, segment + b"x").root
        assert reason(codec.check_strictly, other, segment, buffer) is Reason.INCONSISTENT


class TestWhatANodeChecks:
    @settings(max_examples=60, deadline=None)
    @given(segment=SEGMENTS, n=st.sampled_from(SHARDS), kind=st.sampled_from(Kind), data=st.data())
    def test_every_sliver_expands_to_its_commitment_and_no_other_bytes_do(
        self, segment: bytes, n: int, kind: Kind, data: st.DataObject
    ) -> None:
        codec = make(n)
        encoded = encode(codec, segment)
        index = data.draw(st.integers(0, n - 1))
        good = sliver(encoded, kind, index)
        assert codec.check_sliver(encoded.metadata, kind, index, good, encoded.z) == encoded.leaves_of(kind, index)
        bad = bytearray(good)
        bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
        verdict = reason(codec.check_sliver, encoded.metadata, kind, index, bad, encoded.z)
        assert verdict is Reason.HASH_MISMATCH

    @pytest.mark.parametrize("kind", Kind)
    def test_a_sliver_in_another_s_place_or_of_another_size_is_refused(self, kind: Kind) -> None:
        codec = make(7)
        encoded = encode(codec, os.urandom(300))
        good, z, metadata = sliver(encoded, kind, 2), encoded.z, encoded.metadata
        assert reason(codec.check_sliver, metadata, kind, 3, good, z) is Reason.HASH_MISMATCH
        assert reason(codec.check_sliver, metadata, kind, 7, good, z) is Reason.WRONG_INDEX
        assert reason(codec.check_sliver, metadata, kind, -1, good, z) is Reason.WRONG_INDEX
        for other in (good[:-1], good + b"\0", b""):
            assert reason(codec.check_sliver, metadata, kind, 2, other, z) is Reason.MALFORMED
        for size in (0, -1, 1 << 40):
            assert reason(codec.check_sliver, metadata, kind, 2, good, size) is Reason.MALFORMED

    def test_a_sliver_whose_list_is_right_but_whose_expansion_is_not_is_refused(self) -> None:
        """The reader's check passes it; the node's does not."""
        codec = make(7)
        encoded = encode(codec, os.urandom(300))
        lying = Leaves(encoded.leaves_of(Kind.PRIMARY, 1)[:-32] + bytes(32))
        metadata = replace(encoded.metadata, Kind.PRIMARY, 1, sliver_hash(lying))
        row, z = encoded.primary(1), encoded.z
        codec.check_symbols(metadata, Kind.PRIMARY, 1, lying, first=0, symbols=row, z=z)
        assert reason(codec.check_sliver, metadata, Kind.PRIMARY, 1, row, z) is Reason.HASH_MISMATCH

    def test_symbols_are_those_of_the_length(self) -> None:
        codec = make(7)
        codec.check_symbol_bytes(codec.code.symbol_bytes(1000), 1000)
        assert reason(codec.check_symbol_bytes, 1, 1000) is Reason.MALFORMED


class TestWhatAReaderChecks:
    @settings(max_examples=60, deadline=None)
    @given(n=st.sampled_from(SHARDS), kind=st.sampled_from(Kind), data=st.data())
    def test_symbols_pass_by_their_leaves_in_their_place_only(self, n: int, kind: Kind, data: st.DataObject) -> None:
        codec = make(n)
        # Without padding: two symbols of zeros may stand in each other's place.
        encoded = encode(codec, Random(n).randbytes(codec.code.rows * codec.code.columns * 8))
        index, z, metadata = data.draw(st.integers(0, n - 1)), encoded.z, encoded.metadata
        first = data.draw(st.integers(0, codec.symbols(kind) - 1))
        count = data.draw(st.integers(1, codec.symbols(kind) - first))
        leaves = encoded.leaves_of(kind, index)
        symbols = sliver(encoded, kind, index)[first * z : (first + count) * z]
        codec.check_symbols(metadata, kind, index, leaves, first=first, symbols=symbols, z=z)

        def verdict(at: int = first, by: bytes = leaves, of: bytes = symbols, who: int = index) -> Reason:
            return reason(codec.check_symbols, metadata, kind, who, by, first=at, symbols=of, z=z)

        flipped = bytearray(symbols)
        flipped[data.draw(st.integers(0, len(flipped) - 1))] ^= 1
        assert verdict(of=bytes(flipped)) is Reason.HASH_MISMATCH
        assert verdict(at=first - 1) is (Reason.HASH_MISMATCH if first else Reason.WRONG_INDEX)
        assert verdict(at=n - count + 1) is Reason.WRONG_INDEX
        assert verdict(who=(index + 1) % n) is Reason.HASH_MISMATCH
        assert verdict(who=n) is Reason.WRONG_INDEX
        assert verdict(by=leaves[:-1]) is Reason.MALFORMED
        assert verdict(by=leaves[:-1] + bytes([leaves[-1] ^ 1])) is Reason.HASH_MISMATCH
        assert verdict(of=b"") is Reason.MALFORMED
        assert verdict(of=symbols + b"\0") is Reason.MALFORMED

    def test_hash_symbols_is_one_leaf_after_another(self) -> None:
        data = os.urandom(100)
        assert split_hashes(hash_symbols(data, 10)) == [leaf(data[at : at + 10]) for at in range(0, 100, 10)]

    @settings(max_examples=100, deadline=None)
    @given(segment=SEGMENTS, n=st.sampled_from(SHARDS), data=st.data())
    def test_the_symbols_of_a_range_hold_its_bytes(self, segment: bytes, n: int, data: st.DataObject) -> None:
        codec = make(n)
        encoded = encode(codec, segment)
        start = data.draw(st.integers(0, len(segment)))
        stop = data.draw(st.integers(start, len(segment)))
        z, got = encoded.z, b""
        for span in row_spans(codec.code, segment_length=len(segment), start=start, stop=stop):
            symbols = encoded.primary(span.row)[span.first * z : (span.first + span.count) * z]
            leaves = encoded.leaves_of(Kind.PRIMARY, span.row)
            codec.check_symbols(
                encoded.metadata, Kind.PRIMARY, span.row, leaves, first=span.first, symbols=symbols, z=z
            )
            got += symbols
        assert got[start % z :][: stop - start] == segment[start:stop]


class TestPadding:
    @settings(max_examples=200, deadline=None)
    @given(segment=SEGMENTS, n=st.sampled_from(SHARDS), kind=st.sampled_from(Kind), data=st.data())
    def test_starts_where_the_segment_ends(self, segment: bytes, n: int, kind: Kind, data: st.DataObject) -> None:
        """Marked by encoding ones: what is not one is padding, and padding is the end of the sliver."""
        codec, length = make(n), len(segment)
        encoded = encode(codec, b"\1" * length)
        index = data.draw(st.integers(0, codec.symbols(kind.other) - 1))
        good = sliver(encoded, kind, index)
        start = codec.padding_start(kind, index, length)
        assert good == b"\1" * start + bytes(len(good) - start)
        codec.check_padding(kind, index, good, length)
        codec.check_padding(kind, index, good[start:], length)
        codec.check_padding(kind, index, b"", length)
        if start < len(good):
            bad = bytearray(good)
            bad[data.draw(st.integers(start, len(good) - 1))] = data.draw(st.integers(1, 255))
            assert reason(codec.check_padding, kind, index, bad, length) is Reason.BAD_PADDING
            assert reason(codec.check_padding, kind, index, bad[start:], length) is Reason.BAD_PADDING
        assert reason(codec.check_padding, kind, index, good + b"\0", length) is Reason.MALFORMED

    def test_parity_has_none(self) -> None:
        codec = make(7)
        encoded = encode(codec, b"\1" * 10)
        codec.check_padding(Kind.PRIMARY, 6, encoded.primary(6), 10)

    @pytest.mark.parametrize("kind", Kind)
    def test_a_writer_who_fills_it_is_refused_by_every_reader(self, kind: Kind) -> None:
        codec = make(7)
        full = codec.code.rows * codec.code.columns * codec.code.symbol_bytes(301)
        length = 301
        encoded = encode(codec, b"\1" * (full - 1) + b"\0")
        assert codec.code.symbol_bytes(length) == encoded.z
        slivers: dict[int, Buffer] = {index: sliver(encoded, kind, index) for index in range(7)}
        assert reason(decode, codec, encoded.metadata, kind, slivers, length) is Reason.BAD_PADDING
        parity = dict(list(slivers.items())[7 - codec.symbols(kind.other) :])
        assert reason(decode, codec, encoded.metadata, kind, parity, length) is Reason.BAD_PADDING


def replace(metadata: SegmentMetadata, kind: Kind, index: int, value: Digest) -> SegmentMetadata:
    hashes = list(metadata.hashes)
    hashes[kind * metadata.n + index] = value
    return SegmentMetadata(tuple(hashes))


class TestTheTwoMatrixWriter:
    """Commits to rows of one matrix and columns of another: readers get one value, or an error, never two values."""

    codec = make(7)
    a, b = encode(codec, b"A" * 300), encode(codec, b"B" * 300)
    metadata = SegmentMetadata((*a.metadata.hashes[:7], *b.metadata.hashes[7:]))

    def test_primary_readers_all_get_the_value_of_the_rows(self) -> None:
        for kept in ((0, 1, 2), (4, 5, 6), (0, 3, 6)):
            slivers: dict[int, Buffer] = {index: self.a.primary(index) for index in kept}
            assert decode(self.codec, self.metadata, Kind.PRIMARY, slivers, 300) == b"A" * 300

    def test_secondary_readers_get_an_error_although_every_sliver_matches_its_hash(self) -> None:
        for kept in (range(5), range(2, 7)):
            slivers: dict[int, Buffer] = {index: sliver(self.b, Kind.SECONDARY, index) for index in kept}
            for index, column in slivers.items():
                self.codec.check_sliver(self.metadata, Kind.SECONDARY, index, column, self.b.z)
            verdict = reason(decode, self.codec, self.metadata, Kind.SECONDARY, slivers, 300)
            assert verdict is Reason.INCONSISTENT

    def test_strict_readers_get_an_error(self) -> None:
        buffer = memoryview(bytearray(10_000))
        verdict = reason(self.codec.check_strictly, self.metadata.root, b"A" * 300, buffer)
        assert verdict is Reason.INCONSISTENT

    @settings(max_examples=300, deadline=None)
    @given(n=st.sampled_from((4, 5, 7)), data=st.data())
    def test_whatever_slivers_it_mixes_and_whatever_leaves_it_invents(self, n: int, data: st.DataObject) -> None:
        """Each of 2n slivers is committed to one of two matrices, with true or invented parity leaves. Readers of all
        kinds, with any slivers that pass their checks, never get two different values."""
        codec = make(n)
        matrices = [encode(codec, bytes([65 + which]) * 40) for which in range(2)]
        picks = data.draw(st.lists(st.tuples(st.integers(0, 1), st.booleans()), min_size=2 * n, max_size=2 * n))
        held, hashes = {}, []
        for at, (which, invented) in enumerate(picks):
            kind, index = Kind(at // n), at % n
            leaves = matrices[which].leaves_of(kind, index)
            if invented:
                leaves = Leaves(leaves[: codec.symbols(kind) * 32].ljust(n * 32, b"?"))
            held[kind, index] = sliver(matrices[which], kind, index), leaves
            hashes.append(sliver_hash(leaves))
        metadata, z, values = SegmentMetadata(tuple(hashes)), matrices[0].z, set()
        for (kind, index), (symbols, leaves) in held.items():
            codec.check_symbols(metadata, kind, index, leaves, first=0, symbols=symbols, z=z)
        readers = [(Kind.PRIMARY, tuple(range(codec.code.rows)))]
        for kind in Kind:
            orders = [data.draw(st.permutations(range(n))) for _ in range(3)]
            readers += [(kind, tuple(order[: codec.symbols(kind.other)])) for order in orders]
        for kind, chosen in readers:
            slivers: dict[int, Buffer] = {index: held[kind, index][0] for index in chosen}
            with suppress(Rejected):
                values.add(decode(codec, metadata, kind, slivers, 40))
        assert len(values) <= 1
