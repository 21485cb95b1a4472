"""Links that name a blob, a file in it, who may have it, and the key that opens it (FORMATS.md 21).

`p2pnode://get/<blob ID>[/<path>][?peer=<node key>@<multiaddr>[&peer=...]][#<key>]`

A link comes from anybody: it is parsed strictly, and no message of an error repeats it, as it may hold a key.
"""

import ipaddress
import re
import unicodedata
from dataclasses import dataclass, field
from urllib.parse import quote, unquote_to_bytes

from economics.blob import BlobId, build_blob_id_text, parse_blob_id
from economics.crypto import NodeId
from economics.errors import Rejected
from economics.genesis import build_key_text, parse_key
from p2pnode.content.sealed import verify_key
from p2pnode.errors import InputError

PREFIX = "p2pnode://get/"
LINK_BYTES_MAX = 8_192
"""What browsers, shells and chats take at the least, and a path of 1,024 bytes with eight peers needs."""
PEERS_MAX = 8
ADDRESS_CHARS_MAX = 300
"""A DNS name has at most 253."""
HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
IP_VERSIONS = {"ip4": 4, "ip6": 6}


@dataclass(frozen=True, slots=True)
class Link:
    """What a link says. Raises `InputError` for what no link can say."""

    blob_id: BlobId
    path: str | None = None
    """Of a file in the quilt or folder."""
    key: bytes | None = field(default=None, repr=False)
    """Opens the blob; None where it is not sealed."""
    peers: tuple[tuple[NodeId, str], ...] = ()
    """Who may have it: (node, multiaddr), in the order in which to ask."""

    def __post_init__(self) -> None:
        if self.path is not None:
            verify_path(self.path)
        if self.key is not None:
            verify_key(self.key)
        if len(self.peers) > PEERS_MAX:
            raise InputError(f"a link names at most {PEERS_MAX} peers, this one {len(self.peers)}")
        if len(set(self.peers)) != len(self.peers):
            raise InputError("a link names a peer's address twice")
        for _, address in self.peers:
            verify_multiaddr(address)

    def build(self) -> str:
        """Return the link's text; raises `InputError` if it is too long."""
        path = "" if self.path is None else f"/{quote(self.path, safe='/')}"
        peers = "&".join(f"peer={build_key_text(node)}@{quote(address, safe='')}" for node, address in self.peers)
        key = "" if self.key is None else f"#{build_key_text(self.key)}"
        text = f"{PREFIX}{build_blob_id_text(self.blob_id)}{path}{'?' if peers else ''}{peers}{key}"
        verify_size(text)
        return text


def parse_link(text: str) -> Link:
    """Return what a link says; raises `InputError` in one line without any of its text."""
    text = text.strip()
    verify_size(text)
    if not text.startswith(PREFIX):
        raise InputError(f"that is no link: one begins with {PREFIX}; `p2pnode read` takes an ID alone")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise InputError("a link has no blanks and no signs beyond ASCII: copy it once more, whole")
    front, hash_sign, fragment = text.removeprefix(PREFIX).partition("#")
    front, mark, query = front.partition("?")
    name, slash, path = front.partition("/")
    try:
        blob_id = parse_blob_id(name)
    except Rejected as fault:
        raise InputError("the link is cut or changed: its blob ID has 43 characters of A-Z a-z 0-9 - _") from fault
    return Link(
        blob_id=blob_id,
        path=decode_percent(path) if slash else None,
        key=_parse_fragment(fragment) if hash_sign else None,
        peers=tuple(map(_parse_peer, query.split("&"))) if mark else (),
    )


def _parse_fragment(fragment: str) -> bytes:
    try:
        return parse_key(fragment)
    except Rejected:  # which must not show what it was given, in no chain of causes
        raise InputError("the link is cut or changed: its key has 43 characters of A-Z a-z 0-9 - _") from None


def _parse_peer(pair: str) -> tuple[NodeId, str]:
    name, _, value = pair.partition("=")
    if name != "peer":
        raise InputError("a link says ?peer=<node key>@<address> behind its blob ID, and nothing else")
    node, at, address = value.partition("@")
    try:
        peer = NodeId(parse_key(node))
    except Rejected as fault:
        raise InputError("the link names a peer that is not <node key>@<address>") from fault
    if not at:
        raise InputError("the link names a peer that is not <node key>@<address>")
    return peer, decode_percent(address)


def decode_percent(text: str) -> str:
    """Return percent-encoded UTF-8 as text, or raise `InputError`."""
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise InputError("the link is cut or changed: a % in it is not followed by two hex digits")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError as fault:
        raise InputError("the link is cut or changed: its percent signs do not give UTF-8") from fault


def verify_size(text: str) -> None:
    if len(text) > LINK_BYTES_MAX:
        raise InputError(f"a link has at most {LINK_BYTES_MAX} characters, this one {len(text)}")


def verify_path(path: str) -> None:
    """Raise `InputError` for a path that could lead elsewhere, or that a terminal would not show as it is."""
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise InputError("the path in the link has an empty part, or one that is . or ..")
    if any(unicodedata.category(sign) in ("Cc", "Cs") for sign in path):
        raise InputError("the path in the link has control characters")


def verify_multiaddr(text: str) -> None:
    """Raise `InputError` unless the text is an address over TCP that can be dialled."""
    match text.split("/"):
        case ["", ("ip4" | "ip6") as kind, host, "tcp", port]:
            is_host = is_ip(host, version=IP_VERSIONS[kind])
        case ["", "dns" | "dns4" | "dns6", host, "tcp", port]:
            is_host = HOST_NAME.fullmatch(host) is not None
        case _:
            is_host, port = False, ""
    is_port = re.fullmatch(r"[1-9][0-9]{0,4}", port) is not None and int(port) < 1 << 16
    if not is_host or not is_port or len(text) > ADDRESS_CHARS_MAX:
        raise InputError("the link names a peer's address that is not like /ip4/203.0.113.5/tcp/4001")


def is_ip(text: str, *, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version and "%" not in text
    except ValueError:
        return False
