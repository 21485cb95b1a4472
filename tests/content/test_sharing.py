"""Links: what is built is read again, and what no link says is refused in one line that does not repeat it."""

import json
import traceback
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from economics.blob import BlobId, build_blob_id_text
from economics.crypto import NodeId
from economics.genesis import build_key_text
from p2pnode.content.sharing import LINK_BYTES_MAX, PEERS_MAX, Link, parse_link, verify_multiaddr
from p2pnode.errors import InputError
from tests import reference

BLOB = BlobId(bytes([1]) * 32)
ID = build_blob_id_text(BLOB)
KEY = bytes([255]) * 32
KEY_TEXT = build_key_text(KEY)
NODE = NodeId(bytes([3]) * 32)
PEER = f"peer={build_key_text(NODE)}@%2Fip4%2F203.0.113.5%2Ftcp%2F4001"

identifiers = st.binary(min_size=32, max_size=32)
parts = st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/"), min_size=1, max_size=12).filter(
    lambda part: part not in (".", "..")
)
paths = st.lists(parts, min_size=1, max_size=5).map("/".join)
ports = st.integers(1, 65_535)
names = st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z0-9]{1,10}){0,3}", fullmatch=True)
addresses = st.one_of(
    st.builds("/ip4/{}/tcp/{}".format, st.ip_addresses(v=4), ports),
    st.builds("/ip6/{}/tcp/{}".format, st.ip_addresses(v=6), ports),
    st.builds("/{}/{}/tcp/{}".format, st.sampled_from(["dns", "dns4", "dns6"]), names, ports),
)
links = st.builds(
    Link,
    identifiers.map(BlobId),
    st.none() | paths,
    st.none() | identifiers,
    st.lists(st.tuples(identifiers.map(NodeId), addresses), max_size=PEERS_MAX, unique=True).map(tuple),
)


@given(links)
@example(Link(BLOB, "a b/ä?#&%2F+.txt", KEY, ((NODE, "/ip6/::1/tcp/1"), (NODE, "/ip4/127.0.0.1/tcp/1"))))
def test_a_link_says_again_what_it_was_built_of(link: Link) -> None:
    text = link.build()
    assert text.isascii()
    assert parse_link(text) == link
    assert parse_link(f" {text}\n") == link


def test_links_are_the_frozen_ones() -> None:
    peers = ((NODE, "/ip4/203.0.113.5/tcp/4001"), (NodeId(bytes([4]) * 32), "/dns/a.example/tcp/1"))
    made = [
        Link(BLOB),
        Link(BLOB, key=KEY),
        Link(BLOB, "a b/é?#&%.txt", KEY, peers[:1]),
        Link(BLOB, "x", None, peers),
        Link(BLOB, key=KEY, peers=peers),
    ]
    frozen: Any = json.loads((reference.VECTORS / "sealed.json").read_text())["links"]
    assert [link.build() for link in made] == frozen
    assert [parse_link(text) for text in frozen] == made


HOSTILE = {
    "": "begins with p2pnode://get/",
    "https://example.com": "begins with p2pnode://get/",
    f"P2PNODE://get/{ID}": "begins with p2pnode://get/",
    f"p2pnode://put/{ID}": "begins with p2pnode://get/",
    "p2pnode://get/": "its blob ID has 43 characters",
    f"p2pnode://get/{ID[:-1]}": "its blob ID has 43 characters",
    f"p2pnode://get/{ID}=": "its blob ID has 43 characters",
    f"p2pnode://get/{ID[:-1]}F": "its blob ID has 43 characters",
    f"p2pnode://get/{ID}/": "an empty part, or one that is . or ..",
    f"p2pnode://get/{ID}//etc/passwd": "an empty part, or one that is . or ..",
    f"p2pnode://get/{ID}/../x": "an empty part, or one that is . or ..",
    f"p2pnode://get/{ID}/a/%2e%2E/x": "an empty part, or one that is . or ..",
    f"p2pnode://get/{ID}/a%2f..%2fx": "an empty part, or one that is . or ..",
    f"p2pnode://get/{ID}/a%00b": "control characters",
    f"p2pnode://get/{ID}/a%1b[31mb": "control characters",
    f"p2pnode://get/{ID}/a%C2%9Bb": "control characters",
    f"p2pnode://get/{ID}/a%zz": "a % in it is not followed by two hex digits",
    f"p2pnode://get/{ID}/a%1": "a % in it is not followed by two hex digits",
    f"p2pnode://get/{ID}/a%ff": "do not give UTF-8",
    f"p2pnode://get/{ID}/a%ed%a0%80": "do not give UTF-8",
    f"p2pnode://get/{ID}/a b": "no blanks and no signs beyond ASCII",
    f"p2pnode://get/{ID}/a\nb": "no blanks and no signs beyond ASCII",
    f"p2pnode://get/{ID}/é": "no blanks and no signs beyond ASCII",
    f"p2pnode://get/{ID}?": "says .peer=<node key>@<address> behind its blob ID, and nothing else",
    f"p2pnode://get/{ID}?{PEER}&": "says .peer=<node key>@<address> behind its blob ID, and nothing else",
    f"p2pnode://get/{ID}?x=1": "says .peer=<node key>@<address> behind its blob ID, and nothing else",
    f"p2pnode://get/{ID}?peer=": "a peer that is not <node key>@<address>",
    f"p2pnode://get/{ID}?peer=abc@%2Fip4%2F1.2.3.4%2Ftcp%2F1": "a peer that is not <node key>@<address>",
    f"p2pnode://get/{ID}?peer={build_key_text(NODE)}": "a peer that is not <node key>@<address>",
    f"p2pnode://get/{ID}?peer={build_key_text(NODE)}@": "not like /ip4/203.0.113.5/tcp/4001",
    f"p2pnode://get/{ID}?peer={build_key_text(NODE)}@%2Fip4%2F1.2.3.4": "not like /ip4/203.0.113.5/tcp/4001",
    f"p2pnode://get/{ID}?{PEER}&{PEER}": "a peer's address twice",
    f"p2pnode://get/{ID}#": "its key has 43 characters",
    f"p2pnode://get/{ID}#{KEY_TEXT[:-1]}": "its key has 43 characters",
    f"p2pnode://get/{ID}#{KEY_TEXT}#": "its key has 43 characters",
    f"p2pnode://get/{ID}#{KEY_TEXT}?{PEER}": "its key has 43 characters",
    f"p2pnode://get/{ID}#{KEY_TEXT[:-1]}9": "its key has 43 characters",
    f"p2pnode://get/{ID}/{'a' * LINK_BYTES_MAX}": "at most 8192 characters",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_link_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match=HOSTILE[text]) as caught:
        parse_link(text)
    assert "\n" not in str(caught.value)


@given(st.text() | st.text().map("p2pnode://get/".__add__) | st.text(max_size=50).map(f"p2pnode://get/{ID}".__add__))
def test_any_text_is_a_link_or_refused(text: str) -> None:
    try:
        link = parse_link(text)
    except InputError:
        return
    assert parse_link(link.build()) == link


@pytest.mark.parametrize(
    "fragment", [KEY_TEXT[:-1], f"{KEY_TEXT}A", f"{KEY_TEXT}&", f"{KEY_TEXT}\n{KEY_TEXT}", f"{KEY_TEXT}/x"]
)
def test_no_message_shows_a_key(fragment: str) -> None:
    """Nor does a traceback, which a log may hold."""
    for front in (f"p2pnode://get/{ID}", f"p2pnode://get/{ID}/..", f"p2pnode://get/{ID[:-1]}", f"x://get/{ID}"):
        try:
            parse_link(f"{front}#{fragment}")
        except InputError as fault:
            shown = "".join(traceback.format_exception(fault))
            assert KEY_TEXT[:20] not in shown
        else:
            raise AssertionError("it is no link")
    link = parse_link(f"p2pnode://get/{ID}#{KEY_TEXT}")
    assert link.key == KEY
    assert repr(KEY) not in repr(link)
    assert KEY_TEXT not in repr(link)


def test_what_no_link_can_say_is_not_built() -> None:
    peers = tuple((NODE, f"/ip4/127.0.0.1/tcp/{port}") for port in range(1, PEERS_MAX + 2))
    with pytest.raises(InputError, match="at most 8 peers, this one 9"):
        Link(BLOB, peers=peers)
    assert len(parse_link(Link(BLOB, peers=peers[:-1]).build()).peers) == PEERS_MAX
    with pytest.raises(InputError, match="at most 8192 characters"):
        Link(BLOB, "é" * 1_400).build()
    with pytest.raises(InputError, match="has 32 bytes, this one has 31"):
        Link(BLOB, key=bytes(31))
    for path in ("", "a/", "/a", "a//b", ".", "a/..", "a\0", "a\x7f", "\ud800"):
        with pytest.raises(InputError, match="the path in the link"):
            Link(BLOB, path)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "/",
            "ip4/1.2.3.4/tcp/1",
            "/ip4/1.2.3.4/udp/1",
            "/ip4/1.2.3/tcp/1",
            "/ip4/::1/tcp/1",
            "/ip6/1.2.3.4/tcp/1",
        ),
        *("/ip4/1.2.3.4/tcp/0", "/ip4/1.2.3.4/tcp/65536", "/ip4/1.2.3.4/tcp/01", "/ip4/1.2.3.4/tcp/1/", "/dns//tcp/1"),
        *("/ip4/1.2.3.4/tcp/¹", "/dns/a b/tcp/1", "/dns/-a/tcp/1", f"/dns/{'a' * 64}/tcp/1", "/ip6/fe80::1%eth0/tcp/1"),
        *("/ip4/1.2.3.4/tcp/1/p2p/abc", f"/dns/{'a.' * 150}a/tcp/1", "/dns/a..b/tcp/1"),
    ],
)
def test_an_address_that_cannot_be_dialled_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not like /ip4/203"):
        verify_multiaddr(text)
