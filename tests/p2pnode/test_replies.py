"""What a hostile member says is judged before it is shown or passed on."""

from typing import Any

import pytest

from economics import cbor
from economics.errors import Rejected
from p2pnode.clients.session import parse_status
from p2pnode.members import DETAIL_CHARS_MAX, Refused, verify_reply
from p2pnode.network.frames import Incoming


def test_the_words_of_a_refusal_are_one_short_printable_line() -> None:
    """Whoever is spot-checked chooses them, and the checker's own `status` repeats them: at 60 KB that had no room."""
    words = "\x1b[2J\n2026 ERROR forged " + "x" * 60_000
    reply = Incoming({"detail": words, "error": "not_found", "ok": False, "retry": False}, 0)
    with pytest.raises(Refused) as caught:
        verify_reply(reply)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= DETAIL_CHARS_MAX + 20


STATUS: dict[str, Any] = {"blobs": 1, "caught": ["node 1: x"], "refused": {"peer over budget": 1}, "used_bytes": 2}


def test_an_honest_status_is_shown_as_it_is() -> None:
    assert parse_status(STATUS) == STATUS


@pytest.mark.parametrize("status", [None, [], {}, {**STATUS, "blobs": "many"}, {**STATUS, "caught": 1}])
def test_a_status_without_the_essential_is_refused(status: cbor.Value) -> None:
    with pytest.raises(Rejected):
        parse_status(status)


def test_a_hostile_status_is_made_fit_to_show() -> None:
    shown = parse_status({**STATUS, "caught": ["\x1b]0;x", b"raw"], "kernel": b"raw", "reachable": "no"})
    assert shown == {**STATUS, "caught": ["?]0;x", "?"], "kernel": "?"}
