"""Ranges and conditions against a model that writes the rules down another way."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.gateway.ranges import Span, Unsatisfiable, is_other, is_unchanged, matches, parse_ranges, wants_part

NUMBERS = st.integers(0, 40)
SPECS = st.one_of(
    st.builds(lambda a, b: f"{a}-{b}", NUMBERS, NUMBERS),
    st.builds(lambda a: f"{a}-", NUMBERS),
    st.builds(lambda a: f"-{a}", NUMBERS),
    st.sampled_from(["", " ", "x", "-", "1-2-3", "+1-2", "1 -2", "9" * 30 + "-"]),
)


def model(specs: list[str], length: int) -> set[int] | None:
    """Return the bytes that are asked for, one by one; None where the header is answered with 416."""
    wanted: set[int] = set()
    for raw in specs:
        spec = raw.strip(" \t")
        if not spec:
            continue
        found = re.fullmatch(r"([0-9]{1,20})-([0-9]{0,20})|-([0-9]{1,20})", spec)
        if found is None:
            return None
        first, last, suffix = found.groups()
        if suffix is not None:
            wanted |= set(range(length)[-int(suffix) :] if int(suffix) else [])
        elif last and int(last) < int(first):
            return None
        else:
            wanted |= set(range(length)[int(first) : int(last) + 1 if last else None])
    return wanted or None


@given(st.lists(SPECS, max_size=6), st.integers(0, 40))
@settings(max_examples=10_000)
def test_just_the_bytes_that_are_asked_for_are_sent_in_order_and_once(specs: list[str], length: int) -> None:
    expected = model(specs, length)
    try:
        spans = parse_ranges("bytes=" + ",".join(specs), length)
    except Unsatisfiable:
        assert expected is None
        return
    assert expected is not None
    sent = [at for span in spans or [Span(0, length)] for at in range(span.start, span.stop)]
    assert sent == sorted(expected)
    assert all(span.length > 0 for span in spans)


@given(st.text(max_size=30), st.integers(0, 100))
@settings(max_examples=2_000)
def test_no_header_is_a_fault_of_ours(value: str, length: int) -> None:
    try:
        spans = parse_ranges(value, length)
    except Unsatisfiable:
        return
    assert all(0 <= span.start < span.stop <= length for span in spans)


def test_many_small_ranges_are_the_whole() -> None:
    assert len(parse_ranges("bytes=" + ",".join(f"{3 * n}-{3 * n}" for n in range(16)), 100)) == 16
    assert parse_ranges("bytes=" + ",".join(f"{3 * n}-{3 * n}" for n in range(17)), 100) == ()
    assert parse_ranges("bytes=" + ",".join("0-0" for n in range(500)), 100) == ()


TAG = '"abc"'


@pytest.mark.parametrize(
    ("value", "strong", "weak"),
    [
        ('"abc"', True, True),
        ('W/"abc"', False, True),
        ('"x", "abc"', True, True),
        ('"x","y"', False, False),
        ("*", True, True),
        ("abc", False, False),
        ('"ab', False, False),
        ("", False, False),
    ],
)
def test_tags_are_compared_as_the_rfc_says(value: str, strong: bool, weak: bool) -> None:
    assert matches(value, TAG, weak=False) is strong
    assert matches(value, TAG, weak=True) is weak
    assert is_unchanged({"if-none-match": value}, TAG) is weak
    assert is_other({"if-match": value}, TAG) is not strong


def test_a_range_counts_only_for_the_bytes_it_was_made_for() -> None:
    assert not wants_part({}, TAG)
    assert wants_part({"range": "bytes=0-0"}, TAG)
    assert wants_part({"range": "bytes=0-0", "if-range": TAG}, TAG)
    assert not wants_part({"range": "bytes=0-0", "if-range": f"W/{TAG}"}, TAG)
    assert not wants_part({"range": "bytes=0-0", "if-range": '"other"'}, TAG)
    assert not wants_part({"range": "bytes=0-0", "if-range": "Wed, 21 Oct 2026 07:28:00 GMT"}, TAG)
