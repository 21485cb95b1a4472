"""The first committee and a network's parameters. Its hash is the chain ID, so networks never mix (FORMATS.md 6)."""

import base64
import binascii
import itertools
import json
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from economics import cbor
from economics.committee import Committee, Member
from economics.crypto import KEY_BYTES, Digest, Level, NodeId, OwnerId, digest
from economics.errors import Reason, Rejected
from economics.geometry import SEGMENT_BYTES, SEGMENT_BYTES_MIN, SHARDS_MAX, SHARDS_MIN, Code

VERSION = 3
FROST_PER_WAL = 10**9
FROST_MAX = (1 << 63) - 1
"""No balance and no sum of all balances is larger: every amount fits a signed 64-bit integer."""
ACCOUNTS_MAX = 4_096
NAME_CHARS_MAX = 64
ADDRESSES_MAX = 8
ADDRESS_BYTES_MAX = 128


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a network's founders choose once: times in ms, prices in FROST (FORMATS.md 14)."""

    block_interval_ms: int = 100
    """Least time from a block to the next."""
    block_transactions_max: int = 1_000
    burn_basis_points: int = 300
    """Of an epoch's rewards, destroyed before they are paid: 3 %, as in Walrus."""
    capacity_units: int = 1 << 24
    """Units of 64 KiB that may be reserved in each of the first two epochs, 1 TiB; what each first member offers."""
    challenge_rounds: int = 24
    """Rounds of challenges in an epoch; 0 for none."""
    challenge_samples: int = 16
    """Segments that a challenged shard is asked about in a round: 24 rounds of a third of the shards are 128 a day."""
    epoch_ms: int = 86_400_000
    fee_frost_per_byte: int = 10
    fee_frost_per_signature: int = 500
    """A signature costs every node 55 us, as much as executing a transfer."""
    heartbeat_ms: int = 10_000
    """An idle chain still makes a block this often, so that time and epochs go on."""
    missed_epochs_max: int = 7
    """A node that was away in so many epochs running is slashed and loses its seat: a week, no outage of a day."""
    stake_frost_per_shard: int = 1_000 * FROST_PER_WAL
    storage_frost_per_unit: int = 1_000
    """Of one unit for one epoch."""
    timeout_ms: int = 2_000
    """How long a leader may take at first; grows while nothing is finalized."""
    unbonding_epochs: int = 14
    """Who held shards may be punished, and is trusted by a light client, for this long."""
    write_frost_per_unit: int = 500
    """Of reserving or extending one unit, however long."""


PARAMETERS_MIN = {
    "block_interval_ms": 1,
    "block_transactions_max": 1,
    "epoch_ms": 1,
    "heartbeat_ms": 1,
    "missed_epochs_max": 1,
    "timeout_ms": 1,
}
PARAMETERS_MAX = {
    "block_transactions_max": 10_000,
    "burn_basis_points": 10_000,
    "challenge_rounds": 1_000,
    "challenge_samples": 1_000,
    "missed_epochs_max": 1 << 15,
    "unbonding_epochs": 1 << 20,
}
"""Every other parameter is at most 2^40: products of an amount and a price stay far below 2^128."""


@dataclass(frozen=True, slots=True)
class GenesisAccount:
    """FROST that exists from the start."""

    key: OwnerId
    balance_frost: int


@dataclass(frozen=True)
class Genesis:
    """What every node of a network starts from."""

    name: str
    time_ms: int
    segment_bytes: int
    members: tuple[Member, ...]
    accounts: tuple[GenesisAccount, ...] = ()
    """Ascending by key."""
    parameters: Parameters = field(default_factory=Parameters)

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
        accounts: list[cbor.Value] = [
            {"balance_frost": account.balance_frost, "key": bytes(account.key)} for account in self.accounts
        ]
        return cbor.encode(
            {
                "accounts": accounts,
                "members": members,
                "name": self.name,
                "parameters": asdict(self.parameters),
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
        accounts = [
            {"key": build_key_text(account.key), "balance_frost": account.balance_frost} for account in self.accounts
        ]
        return (
            json.dumps(
                {
                    "version": VERSION,
                    "name": self.name,
                    "time_ms": self.time_ms,
                    "segment_bytes": self.segment_bytes,
                    "parameters": asdict(self.parameters),
                    "accounts": accounts,
                    "members": members,
                },
                indent=2,
            )
            + "\n"
        )


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
        value = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise Rejected(Reason.MALFORMED, f"not JSON: {fault}") from fault
    names = {"version", "name", "time_ms", "segment_bytes", "parameters", "accounts", "members"}
    if not isinstance(value, dict) or set(value) != names:
        raise Rejected(Reason.MALFORMED, f"the fields are {', '.join(sorted(names))}")
    if value["version"] != VERSION:
        raise Rejected(Reason.MALFORMED, f"version {value['version']!r} is not {VERSION}")
    if not _is_text(value["name"], NAME_CHARS_MAX):
        raise Rejected(Reason.MALFORMED, f"name is text of at most {NAME_CHARS_MAX} characters")
    if not isinstance(value["members"], list):
        raise Rejected(Reason.MALFORMED, "members is a list")
    if not isinstance(value["accounts"], list) or len(value["accounts"]) > ACCOUNTS_MAX:
        raise Rejected(Reason.MALFORMED, f"accounts is a list of at most {ACCOUNTS_MAX}")
    genesis = Genesis(
        name=value["name"],
        time_ms=_bounded(value, "time_ms", 0, (1 << 63) - 1),
        segment_bytes=_bounded(value, "segment_bytes", SEGMENT_BYTES_MIN, SEGMENT_BYTES),
        members=tuple(_parse_member(member) for member in value["members"]),
        accounts=tuple(_parse_account(account) for account in value["accounts"]),
        parameters=_parse_parameters(value["parameters"]),
    )
    _verify_members(genesis)
    _verify_supply(genesis)
    return genesis


def _parse_account(value: Any) -> GenesisAccount:
    if not isinstance(value, dict) or set(value) != {"key", "balance_frost"}:
        raise Rejected(Reason.MALFORMED, "an account is key, balance_frost")
    return GenesisAccount(OwnerId(parse_key(value["key"])), _bounded(value, "balance_frost", 0, FROST_MAX))


def _parse_parameters(value: Any) -> Parameters:
    names = [item.name for item in fields(Parameters)]
    if not isinstance(value, dict) or set(value) != set(names):
        raise Rejected(Reason.MALFORMED, f"the parameters are {', '.join(names)}")
    bounded = {
        name: _bounded(value, name, PARAMETERS_MIN.get(name, 0), PARAMETERS_MAX.get(name, 1 << 40)) for name in names
    }
    return Parameters(**bounded)


def _parse_member(fields: Any) -> Member:
    if not isinstance(fields, dict) or set(fields) != {"addresses", "node", "owner", "shards"}:
        raise Rejected(Reason.MALFORMED, "a member is addresses, node, owner, shards")
    addresses = fields["addresses"]
    if (
        not isinstance(addresses, list)
        or len(addresses) > ADDRESSES_MAX
        or not all(_is_text(text, ADDRESS_BYTES_MAX) for text in addresses)
        or any(len(text.encode("utf-8")) > ADDRESS_BYTES_MAX for text in addresses)
    ):
        raise Rejected(Reason.MALFORMED, "a member has at most 8 addresses of at most 128 bytes")
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


def _verify_supply(genesis: Genesis) -> None:
    if any(low.key >= high.key for low, high in itertools.pairwise(genesis.accounts)):
        raise Rejected(Reason.MALFORMED, "accounts are in ascending order of their keys, each once")
    stakes = genesis.committee.n * genesis.parameters.stake_frost_per_shard
    if sum(account.balance_frost for account in genesis.accounts) + stakes > FROST_MAX:
        raise Rejected(Reason.MALFORMED, f"accounts and stakes are more than {FROST_MAX} FROST together")
