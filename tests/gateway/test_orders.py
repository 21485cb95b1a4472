"""Whatever a query says, it is an order within the bounds or a reason why not."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from economics.crypto import OwnerId
from economics.genesis import build_key_text
from p2pnode.gateway.faults import HttpFault
from p2pnode.gateway.orders import (
    QUILT_PARAMETERS,
    Wanted,
    parse_content_type,
    parse_wanted,
    read_length,
    read_query,
)

OWNER = OwnerId(bytes(range(32)))
FIXED = settings(derandomize=True, database=None, deadline=None, max_examples=300)


def ask(query: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> Request:
    scope = {"headers": headers or [], "method": "PUT", "path": "/", "query_string": query, "type": "http"}
    return Request(scope)


def read(query: bytes) -> Wanted:
    return parse_wanted(read_query(ask(query), QUILT_PARAMETERS), owner=OWNER)


VALUES = st.one_of(
    st.sampled_from(["true", "false", "1", "53", "54", "0", "v1", "RS2", "rs2", "", build_key_text(OWNER)]),
    st.text(st.characters(codec="ascii", exclude_characters="&;#"), max_size=50),
)


@given(pairs=st.lists(st.tuples(st.sampled_from([*QUILT_PARAMETERS, "other"]), VALUES), max_size=5))
@FIXED
def test_parameters_of_any_value(pairs: list[tuple[str, str]]) -> None:
    _judge("&".join(f"{name}={value}" for name, value in pairs).encode())


@given(query=st.binary(max_size=200))
@FIXED
def test_a_query_of_any_bytes(query: bytes) -> None:
    _judge(query)


@contextmanager
def suppress_bad() -> Iterator[None]:
    """Let a bad request pass, and nothing else."""
    try:
        yield
    except HttpFault as fault:
        if fault.code != 400:
            raise


def _judge(query: bytes) -> None:
    with suppress_bad():
        wanted = read(query)
        assert 1 <= wanted.epochs <= 53
        assert wanted.deletable is not (b"permanent=true" in query)


def test_nothing_said_is_what_walrus_does() -> None:
    assert read(b"") == Wanted(epochs=1, deletable=True)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (None, None),
        ("", None),
        (" ", None),
        ("application/octet-stream", None),
        ("Application/Octet-Stream; x=y", None),
        ("application/x-www-form-urlencoded", None),
        ("image/png", "image/png"),
        (" text/html; charset=utf-8\t", "text/html; charset=utf-8"),
        ("image/svg+xml", "image/svg+xml"),
    ],
)
def test_a_content_type_is_kept_where_it_says_something(text: str | None, kept: str | None) -> None:
    assert parse_content_type(text) == kept


@given(text=st.text(max_size=300))
@FIXED
def test_a_content_type_of_any_text(text: str) -> None:
    with suppress_bad():
        kept = parse_content_type(text)
        assert kept is None or re.fullmatch(r"[\t -~]{3,255}", kept)


@pytest.mark.parametrize("text", ["-1", "+1", "1.0", "0x1", "", "\u0661", "9" * 20])
def test_a_length_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(HttpFault):
        read_length(ask(b"", [(b"content-length", text.encode())]))
