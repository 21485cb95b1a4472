"""The first committee and a network's parameters. Its hash is the chain ID, so networks never mix (FORMATS.md 6)."""

import base64
import binascii
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from economics import cbor
from economics.committee import Committee, Member
from economics.crypto import KEY_BYTES, Digest, Level, NodeId, OwnerId, digest
from economics.errors import Reason, Rejected
from economics.geometry import SEGMENT_BYTES, SEGMENT_BYTES_MIN, SHARDS_MAX, SHARDS_MIN, Code

VERSION = 1
NAME_CHARS_MAX = 64
ADDRESSES_MAX = 8
ADDRESS_CHARS_MAX = 128


@dataclass(frozen=True)
class Genesis:
    """What every node of a network starts from."""

    name: str
    time_ms: int
    segment_bytes: int
    members: tuple[Member, ...]

    def encode(self) -> bytes:
        members: list[cbor.Value] = [
            {
                "addresses": list(member.addresses),
                "node": bytes(member.node),
                "owner": bytes(member.owner),
                "shards": member.shards,
            }
            for member in self.members
        ]
        return cbor.encode(
            {
                "members": members,
                "name": self.name,
                "segment_bytes": self.segment_bytes,
                "time_ms": self.time_ms,
                "version": VERSION,
            }
        )

    @cached_property
    def chain_id(self) -> Digest:
        return digest(Level.GENESIS, self.encode())

    @property
    def chain_tag(self) -> str:
        """The first 8 hex digits of the chain ID: part of every protocol name."""
        return self.chain_id.hex()[:8]

    @cached_property
    def committee(self) -> Committee:
        """The committee of epoch 0."""
        return Committee(0, self.members)

    @cached_property
    def code(self) -> Code:
        return Code(self.committee.n, self.segment_bytes)

    def to_json(self) -> str:
        members = [
            {
                "addresses": list(member.addresses),
                "node": build_key_text(member.node),
                "owner": build_key_text(member.owner),
                "shards": member.shards,
            }
            for member in self.members
        ]
        fields = {"name": self.name, "time_ms": self.time_ms, "segment_bytes": self.segment_bytes}
        return json.dumps({"version": VERSION, **fields, "members": members}, indent=2) + "\n"


def build_key_text(key: bytes) -> str:
    """Return 43 characters of base64url for a 32-byte key."""
    return base64.urlsafe_b64encode(key).rstrip(b"=").decode("ascii")


def parse_key(text: object) -> bytes:
    """Return the 32 bytes that `build_key_text` shows, or raise `Rejected`."""
    try:
        raw = base64.b64decode(str(text).encode("ascii") + b"=", altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as fault:
        raise Rejected(Reason.MALFORMED, "a key is 43 characters of base64url") from fault
    if len(raw) != KEY_BYTES or build_key_text(raw) != text:
        raise Rejected(Reason.MALFORMED, "a key is 43 characters of base64url")
    return raw


def parse_genesis(text: str) -> Genesis:
    """Return the genesis that a JSON file holds; raises `Rejected` naming the first thing that is off."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise Rejected(Reason.MALFORMED, f"not JSON: {fault}") from fault
    if not isinstance(fields, dict) or set(fields) != {"version", "name", "time_ms", "segment_bytes", "members"}:
        raise Rejected(Reason.MALFORMED, "the fields are version, name, time_ms, segment_bytes, members")
    if fields["version"] != VERSION:
        raise Rejected(Reason.MALFORMED, f"version {fields['version']!r} is not {VERSION}")
    if not _is_text(fields["name"], NAME_CHARS_MAX):
        raise Rejected(Reason.MALFORMED, f"name is text of at most {NAME_CHARS_MAX} characters")
    if not isinstance(fields["members"], list):
        raise Rejected(Reason.MALFORMED, "members is a list")
    genesis = Genesis(
        name=fields["name"],
        time_ms=_bounded(fields, "time_ms", 0, (1 << 63) - 1),
        segment_bytes=_bounded(fields, "segment_bytes", SEGMENT_BYTES_MIN, SEGMENT_BYTES),
        members=tuple(_parse_member(member) for member in fields["members"]),
    )
    _verify_members(genesis)
    return genesis


def _parse_member(fields: Any) -> Member:
    if not isinstance(fields, dict) or set(fields) != {"addresses", "node", "owner", "shards"}:
        raise Rejected(Reason.MALFORMED, "a member is addresses, node, owner, shards")
    addresses = fields["addresses"]
    if (
        not isinstance(addresses, list)
        or len(addresses) > ADDRESSES_MAX
        or not all(_is_text(text, ADDRESS_CHARS_MAX) for text in addresses)
    ):
        raise Rejected(Reason.MALFORMED, "a member has at most 8 addresses of at most 128 characters")
    return Member(
        node=NodeId(parse_key(fields["node"])),
        owner=OwnerId(parse_key(fields["owner"])),
        shards=_bounded(fields, "shards", 1, SHARDS_MAX),
        addresses=tuple(addresses),
    )


def _is_text(value: object, chars_max: int) -> bool:
    """Return whether CBOR has an encoding of this text: JSON can also spell half a surrogate pair."""
    if not isinstance(value, str) or len(value) > chars_max:
        return False
    return not any("\ud800" <= char <= "\udfff" for char in value)


def _bounded(fields: dict[str, Any], name: str, low: int, high: int) -> int:
    value = fields[name]
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise Rejected(Reason.MALFORMED, f"{name} is a whole number from {low} to {high}")
    return value


def _verify_members(genesis: Genesis) -> None:
    if not SHARDS_MIN <= genesis.committee.n <= SHARDS_MAX:
        raise Rejected(Reason.MALFORMED, f"the members hold {SHARDS_MIN} to {SHARDS_MAX} shards together")
    if len({member.node for member in genesis.members}) != len(genesis.members):
        raise Rejected(Reason.MALFORMED, "a node is a member twice")
