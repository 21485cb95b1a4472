"""Shapes, sizes, shards and ranges of the code, each against a slower way to count it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from economics.geometry import (
    BLOB_BYTES_MAX,
    HEADER_ROOTS_MAX,
    SEGMENT_BYTES,
    SHARDS_MAX,
    SHARDS_MIN,
    STORAGE_UNIT_BYTES,
    Code,
    faulty_max,
    quorum,
    row_spans,
)
from tests import reference

CODES = st.builds(Code, st.integers(SHARDS_MIN, SHARDS_MAX), st.integers(1, 5000))


@pytest.mark.parametrize("n", range(SHARDS_MIN, SHARDS_MAX + 1))
def test_quorums_intersect_and_survive_f_faults(n: int) -> None:
    code, f = Code(n), faulty_max(n)
    assert 3 * f < n <= 3 * f + 3
    assert 2 * quorum(n) - n > f, "two quorums share a correct shard"
    assert quorum(n) <= n - f, "the correct ones alone are a quorum"
    assert (code.f, code.rows, code.columns) == (f, n - 2 * f, n - f)
    assert code.rows > f, "f liars cannot make up primary slivers for a reader"
    assert code.columns > code.rows or f == 0


@pytest.mark.parametrize(
    ("n", "shape"), [(4, (1, 2, 3)), (7, (2, 3, 5)), (10, (3, 4, 7)), (21, (6, 9, 15)), (100, (33, 34, 67))]
)
def test_the_shapes_that_people_know(n: int, shape: tuple[int, int, int]) -> None:
    assert (Code(n).f, Code(n).rows, Code(n).columns) == shape


@pytest.mark.parametrize(("n", "segment_bytes"), [(3, 1), (257, 1), (4, 0), (4, SEGMENT_BYTES + 1)])
def test_no_other_codes_exist(n: int, segment_bytes: int) -> None:
    with pytest.raises(AssertionError):
        Code(n, segment_bytes)


@given(CODES, st.integers(0, 10**6))
def test_a_symbol_is_the_smallest_that_holds_the_segment_and_never_empty(code: Code, length: int) -> None:
    z, area = code.symbol_bytes(length), code.rows * code.columns
    assert z >= 1
    assert z * area >= length
    assert z == 1 or (z - 1) * area < length
    assert z == reference.symbol_bytes(code.n, length)


@given(CODES, st.integers(0, 20_000))
def test_segments_are_the_blob_cut_and_an_empty_blob_has_one(code: Code, length: int) -> None:
    parts = reference.cut(bytes(length), code.segment_bytes)
    assert list(code.segment_lengths(length)) == [len(part) for part in parts]
    assert code.segment_count(length) == len(parts)
    assert sum(code.segment_lengths(length)) == length


def test_the_largest_blob_has_a_bounded_header() -> None:
    assert Code(SHARDS_MIN).segment_count(BLOB_BYTES_MAX) == HEADER_ROOTS_MAX


@given(CODES, st.integers(0, 20_000))
def test_encoded_size_is_the_sum_over_segments_rounded_once(code: Code, length: int) -> None:
    size = reference.encoded_bytes(code.n, code.segment_bytes, length)
    assert code.encoded_bytes(length) == size
    assert (
        (code.encoded_units(length) - 1) * STORAGE_UNIT_BYTES < size <= code.encoded_units(length) * STORAGE_UNIT_BYTES
    )


def test_encoded_size_of_a_terabyte_is_counted_at_once() -> None:
    assert Code(100).encoded_bytes(BLOB_BYTES_MAX) == HEADER_ROOTS_MAX * Code(100).encoded_bytes(SEGMENT_BYTES)


@given(CODES, st.binary(min_size=32, max_size=32))
def test_pairs_and_shards_are_one_to_one(code: Code, root: bytes) -> None:
    shards = [code.shard_of_pair(pair, root) for pair in range(code.n)]
    assert sorted(shards) == list(range(code.n))
    assert [code.pair_of_shard(shard, root) for shard in shards] == list(range(code.n))
    assert shards[0] == int.from_bytes(root, "big") % code.n


@given(st.integers(SHARDS_MIN, 40), st.integers(0, 3000), st.data())
def test_a_range_needs_just_the_symbols_that_hold_its_bytes(n: int, length: int, data: st.DataObject) -> None:
    code = Code(n)
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length))
    z = code.symbol_bytes(length)
    needed = {divmod(at // z, code.columns) for at in range(start, stop)}
    spans = row_spans(code, segment_length=length, start=start, stop=stop)
    assert [(span.row, span.first + at) for span in spans for at in range(span.count)] == sorted(needed)
    assert all(low.row + 1 == high.row for low, high in itertools.pairwise(spans)), "one span for each row"
