"""The genesis file names one network: any difference is another chain, and a file that is off is refused by name."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from economics import cbor
from economics.crypto import NodeId, OwnerId
from economics.errors import Reason, Rejected
from economics.genesis import FROST_MAX, Parameters, build_key_text, parse_genesis, parse_key
from economics.geometry import SEGMENT_BYTES, Code
from tests import reference
from tests.refusals import reason
from tests.small import OPERATORS, make_genesis

GENESIS = make_genesis((1, 2, 4))


def fields(change: Callable[[dict[str, Any]], None] = lambda fields: None) -> str:
    """Return the genesis as JSON after a change to it."""
    value = json.loads(GENESIS.to_json())
    change(value)
    return json.dumps(value)


def with_member(**changes: Any) -> str:
    return fields(lambda value: value["members"][1].update(changes))


def with_account(**changes: Any) -> str:
    return fields(lambda value: value["accounts"][1].update(changes))


def with_parameter(**changes: Any) -> str:
    return fields(lambda value: value["parameters"].update(changes))


def with_field(**changes: Any) -> str:
    return fields(lambda value: value.update(changes))


def test_is_read_back_from_json() -> None:
    read = parse_genesis(GENESIS.to_json())
    assert read == GENESIS
    assert read.chain_id == GENESIS.chain_id
    assert read.to_json() == GENESIS.to_json()


def test_its_chain_id_is_the_hash_of_its_canonical_cbor() -> None:
    members = [
        {"addresses": ["/ip4/127.0.0.1/tcp/1"], "node": m.node, "owner": m.owner, "shards": m.shards}
        for m in GENESIS.members
    ]
    accounts = [{"balance_frost": account.balance_frost, "key": account.key} for account in GENESIS.accounts]
    body: cbor.Value = {
        "accounts": accounts,  # type: ignore[dict-item]  # a list of one kind of map is a list of values
        "members": members,  # type: ignore[dict-item]
        "name": "small",
        "parameters": asdict(GENESIS.parameters),
        "segment_bytes": 1000,
        "time_ms": 1_700_000_000_000,
        "version": 3,
    }
    assert GENESIS.encode() == cbor.encode(body)
    assert GENESIS.chain_id == reference.hashed("genesis", cbor.encode(body))
    assert GENESIS.chain_tag == GENESIS.chain_id.hex()[:8]


def test_its_committee_is_of_epoch_0_and_its_code_has_all_shards() -> None:
    assert (GENESIS.committee.epoch, GENESIS.committee.members) == (0, GENESIS.members)
    assert GENESIS.code == Code(7, 1000)


def test_any_difference_is_another_chain() -> None:
    first, *rest = GENESIS.members
    others = [
        replace(GENESIS, name="Small"),
        replace(GENESIS, time_ms=GENESIS.time_ms + 1),
        replace(GENESIS, segment_bytes=1001),
        replace(GENESIS, members=(*rest, first)),
        replace(GENESIS, members=tuple(rest)),
        replace(GENESIS, members=(replace(first, shards=2), *rest)),
        replace(GENESIS, members=(replace(first, addresses=()), *rest)),
        replace(GENESIS, members=(replace(first, owner=OwnerId(bytes(32))), *rest)),
        replace(GENESIS, members=(replace(first, node=NodeId(bytes(32))), *rest)),
        replace(GENESIS, accounts=()),
        replace(GENESIS, accounts=(replace(GENESIS.accounts[0], balance_frost=1), *GENESIS.accounts[1:])),
        replace(GENESIS, parameters=Parameters(epoch_ms=1)),
    ]
    assert len({genesis.chain_id for genesis in (GENESIS, *others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no JSON", "{"),
        ("nothing", ""),
        ("a list", "[]"),
        ("a bottomless list", "[" * 100_000),
        ("an integer of 5,000 digits", with_field(time_ms=0).replace('"time_ms": 0', f'"time_ms": {"9" * 5000}')),
        ("a field missing", fields(lambda value: value.pop("name"))),
        ("a field too many", with_field(more=1)),
        ("another version", with_field(version=2)),
        ("accounts that are no list", with_field(accounts={})),
        ("an account that is no map", with_field(accounts=[1])),
        ("an account's field too many", with_account(more=1)),
        ("an account with a negative balance", with_account(balance_frost=-1)),
        ("an account with a balance of 64 bits", with_account(balance_frost=1 << 63)),
        ("an account with a balance as text", with_account(balance_frost="1")),
        ("accounts out of order", fields(lambda value: value["accounts"].reverse())),
        ("an account twice", fields(lambda value: value["accounts"].insert(0, value["accounts"][0]))),
        ("more FROST than there may be", with_account(balance_frost=FROST_MAX)),
        ("parameters that are no map", with_field(parameters=[])),
        ("a parameter missing", fields(lambda value: value["parameters"].pop("epoch_ms"))),
        ("a parameter too many", with_parameter(more=1)),
        ("epochs of no length", with_parameter(epoch_ms=0)),
        ("a price over the maximum", with_parameter(storage_frost_per_unit=(1 << 40) + 1)),
        ("blocks over the maximum", with_parameter(block_transactions_max=10_001)),
        ("more burned than there is", with_parameter(burn_basis_points=10_001)),
        ("more rounds than an epoch may have", with_parameter(challenge_rounds=1_001)),
        ("more samples than a round may have", with_parameter(challenge_samples=1_001)),
        ("a seat lost for nothing missed", with_parameter(missed_epochs_max=0)),
        ("a fractional parameter", with_parameter(timeout_ms=1.5)),
        ("no name", with_field(name=None)),
        ("a long name", with_field(name="x" * 65)),
        ("a name that no text encoding has", with_field(name="\ud800")),
        ("a negative time", with_field(time_ms=-1)),
        ("a time of 64 bits", with_field(time_ms=1 << 63)),
        ("a fractional time", with_field(time_ms=1.5)),
        ("a true time", with_field(time_ms=True)),
        ("no time at all", with_field(time_ms=float("nan"))),
        ("segments of nothing", with_field(segment_bytes=0)),
        ("segments over the maximum", with_field(segment_bytes=SEGMENT_BYTES + 1)),
        ("members that are no list", with_field(members={})),
        ("no members", with_field(members=[])),
        ("a member that is no map", with_field(members=[1, 2, 3, 4])),
        ("a member's field too many", with_member(more=1)),
        ("a member without shards", with_member(shards=0)),
        ("a member with shards as text", with_member(shards="2")),
        ("257 shards together", with_member(shards=252)),
        ("a key of 31 bytes", with_member(node=build_key_text(bytes(31)))),
        ("a key of 33 bytes", with_member(node=build_key_text(bytes(33)))),
        ("a padded key", with_member(node=build_key_text(bytes(32)) + "=")),
        ("a key with loose bits", with_member(node="A" * 42 + "B")),
        ("a key in the other alphabet", with_member(owner="+" * 43)),
        ("a key with a space", with_member(owner=" " + "A" * 42)),
        ("a key that is an integer", with_member(owner=int("1" * 43))),
        ("no key", with_member(owner=None)),
        ("a node twice", with_member(node=build_key_text(OPERATORS[0].public))),
        ("nine addresses", with_member(addresses=["/ip4/127.0.0.1/tcp/1"] * 9)),
        ("a long address", with_member(addresses=["x" * 129])),
        ("an address of few characters and many bytes", with_member(addresses=["\u00e9" * 65])),
        ("an address that no text encoding has", with_member(addresses=["\udfff"])),
        ("an address that is a number", with_member(addresses=[1])),
        ("addresses as one text", with_member(addresses="/ip4/127.0.0.1/tcp/1")),
    ],
)
def test_a_file_that_is_off_is_refused(name: str, text: str) -> None:
    assert reason(parse_genesis, text) is Reason.MALFORMED, name


def test_three_shards_are_too_few_and_256_are_not_too_many() -> None:
    assert reason(parse_genesis, replace(GENESIS, members=GENESIS.members[:2]).to_json()) is Reason.MALFORMED
    assert parse_genesis(with_member(shards=251)).code.n == 256


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300)
@given(
    st.sampled_from(["name", "time_ms", "segment_bytes", "members", "version"]),
    st.sampled_from(["addresses", "node", "owner", "shards"]),
    JSON,
    st.booleans(),
)
def test_a_field_of_any_value_is_refused_or_makes_a_network_that_reads_back(
    name: str, member_name: str, value: object, of_member: bool
) -> None:
    text = with_member(**{member_name: value}) if of_member else with_field(**{name: value})
    try:
        genesis = parse_genesis(text)
    except Rejected:
        return
    assert parse_genesis(genesis.to_json()).chain_id == genesis.chain_id


@given(st.text(max_size=200))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(Rejected):
        parse_genesis(text)


@given(st.binary(min_size=32, max_size=32))
def test_a_key_is_read_back_from_43_characters(key: bytes) -> None:
    assert len(build_key_text(key)) == 43
    assert parse_key(build_key_text(key)) == key
