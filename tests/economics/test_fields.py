"""Parts behind their lengths: what one writes the other reads, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from economics.errors import Reason, Rejected
from economics.fields import sized, split_sized


@given(st.lists(st.binary(max_size=300)))
def test_parts_come_back_as_they_were(parts: list[bytes]) -> None:
    assert split_sized(b"".join(map(sized, parts)), "parts") == parts


@pytest.mark.parametrize("data", [b"\x00", b"\x00\x00\x00\x02a", sized(b"ab")[:-1], sized(b"") + b"\x01"])
def test_what_ends_early_is_refused(data: bytes) -> None:
    with pytest.raises(Rejected) as verdict:
        split_sized(data, "parts")
    assert verdict.value.reason is Reason.MALFORMED


def test_a_length_is_four_bytes() -> None:
    assert sized(b"ab") == b"\x00\x00\x00\x02ab"
