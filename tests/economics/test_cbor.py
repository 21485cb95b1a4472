"""One value has one encoding: whatever decodes, encodes to the same bytes, and all else is refused at little cost."""

import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from economics import cbor
from economics.errors import Reason, Rejected
from tests.refusals import reason

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.binary(max_size=300) | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=30), inner, max_size=5),
    max_leaves=20,
)


def mangled(value: cbor.Value, at: int, change: int) -> bytes:
    data = bytearray(cbor.encode(value))
    data[at % len(data)] ^= change
    return bytes(data)


MANGLED = st.builds(mangled, VALUES, st.integers(0, 10_000), st.integers(0, 255))


class TestOneEncoding:
    @given(VALUES)
    def test_a_value_is_read_back(self, value: cbor.Value) -> None:
        read = cbor.decode(cbor.encode(value))
        assert read == value
        assert cbor.encode(read) == cbor.encode(value)  # equality alone takes True for 1

    @settings(max_examples=300)
    @given(st.binary(max_size=64) | MANGLED)
    @example(b"\xa2\x61b\x00\x61a\x00")
    @example(b"\x18\x17")
    @example(b"\x5f\x41a\xff")
    def test_any_bytes_are_refused_or_are_the_one_encoding_of_their_value(self, data: bytes) -> None:
        try:
            value = cbor.decode(data)
        except Rejected:
            return
        assert cbor.encode(value) == data

    @pytest.mark.parametrize("integer", [0, 23, 24, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**64 - 1])
    def test_each_width_of_integer_begins_where_the_narrower_one_ends(self, integer: int) -> None:
        assert cbor.decode(cbor.encode(integer)) == integer
        assert cbor.decode(cbor.encode(-1 - integer)) == -1 - integer

    def test_map_keys_are_sorted_by_their_encoding_so_shorter_ones_come_first(self) -> None:
        assert cbor.encode({"b": 1, "aa": 2, "a": 3}) == bytes.fromhex("a3 6161 03 6162 01 626161 02")

    @pytest.mark.parametrize(
        ("name", "data"),
        [
            ("nothing", ""),
            ("23 in two bytes", "18 17"),
            ("255 in three bytes", "19 00ff"),
            ("65,535 in five bytes", "1a 0000ffff"),
            ("2^32 - 1 in nine bytes", "1b 00000000ffffffff"),
            ("-1 in two bytes", "38 00"),
            ("a length in a long form", "58 01 00"),
            ("a text length in a long form", "78 01 61"),
            ("an array length in a long form", "98 00"),
            ("a map length in a long form", "b8 00"),
            ("bytes without end", "5f 41 61 ff"),
            ("text without end", "7f 61 61 ff"),
            ("an array without end", "9f ff"),
            ("a map without end", "bf ff"),
            ("a lone end", "ff"),
            ("reserved length 28", "1c"),
            ("reserved length 30", "5e"),
            ("a half float", "f9 0000"),
            ("a float", "fa 00000000"),
            ("a double", "fb 0000000000000000"),
            ("undefined", "f7"),
            ("a simple value", "e0"),
            ("false as a long simple value", "f8 14"),
            ("a tag", "c0 60"),
            ("a tag of nothing", "c0"),
            ("a tag that counts like a map", "c1 6161 00"),
            ("a big number", "c2 41 01"),
            ("a shared value", "d8 1c 80"),
            ("a key twice", "a2 6161 00 6161 00"),
            ("keys in the wrong order", "a2 6162 00 6161 00"),
            ("a longer key first", "a2 626161 00 6162 00"),
            ("an integer as a key", "a1 00 00"),
            ("bytes as a key", "a1 4161 00"),
            ("a key without a value", "a1 6161"),
            ("text that is not UTF-8", "61 ff"),
            ("a surrogate as text", "63 eda080"),
            ("an overlong zero as text", "62 c080"),
            ("text cut inside a character", "61 c3"),
            ("bytes after the value", "00 00"),
            ("bytes that end early", "42 00"),
            ("a head that ends early", "19 00"),
            ("an array that ends early", "82 00"),
            ("a fault deep inside", "81 a1 6161 81 18 17"),
        ],
    )
    def test_no_other_encoding_is_taken(self, name: str, data: str) -> None:
        assert reason(cbor.decode, bytes.fromhex(data)) is Reason.MALFORMED, name

    def test_what_the_format_does_not_have_is_refused_when_read_back(self) -> None:
        assert reason(cbor.decode, cbor.encode(2**64)) is Reason.MALFORMED
        assert reason(cbor.decode, cbor.encode(-(2**64) - 1)) is Reason.MALFORMED


class TestBudget:
    def test_counts_bytes(self) -> None:
        data = cbor.encode(bytes(98))
        assert cbor.decode(data, budget=cbor.Budget(size_max=100)) == bytes(98)
        assert reason(cbor.decode, data, budget=cbor.Budget(size_max=99)) is Reason.TOO_LARGE

    def test_counts_depth(self) -> None:
        nested = b"\x81" * 8
        assert cbor.decode(nested + b"\x00") == [[[[[[[[0]]]]]]]]
        assert reason(cbor.decode, b"\x81" + nested + b"\x00") is Reason.TOO_LARGE
        assert reason(cbor.decode, b"\xa1\x61a" * 9 + b"\x00") is Reason.TOO_LARGE

    def test_counts_every_item_and_key(self) -> None:
        data = cbor.encode({"a": [1, 2], "b": None})
        assert cbor.decode(data, budget=cbor.Budget(elements_max=7)) == {"a": [1, 2], "b": None}
        assert reason(cbor.decode, data, budget=cbor.Budget(elements_max=6)) is Reason.TOO_LARGE

    def test_depth_that_would_end_the_interpreter_is_refused(self) -> None:
        assert reason(cbor.decode, b"\x81" * 60_000) is Reason.TOO_LARGE

    def test_a_megabyte_of_empty_arrays_costs_no_megabytes_of_objects(self) -> None:
        data = b"\x9a" + (1_000_000).to_bytes(4, "big") + b"\x80" * 1_000_000
        tracemalloc.start()
        try:
            assert reason(cbor.decode, data, budget=cbor.Budget(size_max=2_000_000)) is Reason.TOO_LARGE
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("major", [2, 3, 4, 5])
    def test_a_length_of_terabytes_is_refused_before_anything_is_made(self, major: int) -> None:
        data = bytes([major << 5 | 27]) + (1 << 40).to_bytes(8, "big") + b"\x00" * 20
        want = Reason.MALFORMED if major in (2, 3) else Reason.TOO_LARGE
        tracemalloc.start()
        try:
            assert reason(cbor.decode, data) is want
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()


class TestItems:
    @given(st.lists(VALUES, max_size=6))
    def test_a_list_is_taken_apart_as_it_is_read_whole(self, values: list[cbor.Value]) -> None:
        items = cbor.Items(cbor.encode(values))
        taken = [items.take(budget=cbor.Budget()) for _ in range(items.open_list(items_max=6))]
        items.end()
        assert cbor.encode(taken) == cbor.encode(values)

    def test_what_is_no_list_too_long_or_goes_on_is_refused(self) -> None:
        assert reason(cbor.Items(b"\x00").open_list, items_max=9) == Reason.MALFORMED
        assert reason(cbor.Items(b"").open_list, items_max=9) == Reason.MALFORMED
        assert reason(cbor.Items(b"\x98\x17").open_list, items_max=99) == Reason.MALFORMED
        assert reason(cbor.Items(b"\x82").open_list, items_max=1) == Reason.TOO_LARGE
        assert reason(cbor.Items(b"\x80").end) == Reason.MALFORMED
        assert reason(cbor.Items(b"\x81").take, budget=cbor.Budget()) == Reason.MALFORMED
        assert reason(cbor.Items(b"\x43abc").take, budget=cbor.Budget(size_max=3)) == Reason.TOO_LARGE
        assert reason(cbor.Items(b"\x82\x00\x00").take, budget=cbor.Budget(elements_max=2)) == Reason.TOO_LARGE
        assert reason(cbor.Items(b"\xc1\x00").take, budget=cbor.Budget()) == Reason.MALFORMED
