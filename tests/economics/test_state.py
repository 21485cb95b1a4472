"""The state's values are the frozen bytes, and no other bytes are values."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from economics.blob import BlobId
from economics.commitments import ReservationId
from economics.committee import Committee, Member
from economics.crypto import Digest, NodeId, OwnerId
from economics.errors import Reason, Rejected
from economics.nodes import (
    Beacon,
    Handover,
    Marks,
    NodeEntry,
    Offence,
    Phase,
    Round,
    Seats,
    Stage,
    Stake,
    Standing,
    Tally,
    Terms,
)
from economics.slots import StakeId, account_key, blob_key, entry_slot, reservation_slot, state_key
from economics.state import (
    Account,
    BlobEntry,
    BlobSummary,
    Bucket,
    Invalid,
    Reservation,
    System,
    UsedStatement,
    Value,
    decode_value,
)
from tests import reference
from tests.refusals import reason

FROZEN: dict[str, Any] = json.loads((reference.VECTORS / "chain.json").read_text())["values"]

OWNER, NODE = OwnerId(bytes([1]) * 32), NodeId(bytes([2]) * 32)
BLOB, RESERVATION = BlobId(bytes([8]) * 32), ReservationId(bytes([9]) * 32)
ONE, SEED = Digest(bytes([9]) * 32), Digest(bytes([7]) * 32)
COMMITTEE = Committee(3, (Member(NODE, OWNER, 2), Member(NodeId(OWNER), OWNER, 3)), holders=(1, 0, 1, 1, 0))
VALUES: dict[str, Value] = {
    "account": Account(OWNER, balance_frost=2**63 - 1, nonce=5),
    "reservation": Reservation(RESERVATION, OWNER, units=6, start_epoch=7, end_epoch=8),
    "blob": BlobSummary(BLOB, length=9, certified_height=10, certified_epoch=11, entries=((12, 1), (13, 14))),
    "entry": BlobEntry(BLOB, RESERVATION, OWNER, 6, 8, 9, True, "text/plain", "é"),
    "used_statement": UsedStatement(Digest(bytes([10]) * 32), expiry_height=1002),
    "bucket": Bucket(3, used_units=4, rewards_frost=5),
    "node": NodeEntry(NODE, OWNER, 1, 2, 3, 4, 5, 6, 10_000, 8, 9, ("/ip4/127.0.0.1/tcp/1", "")),
    "offence": Offence(NODE, epoch=3, view=40, height=41),
    "system": System(epoch=3, epoch_start_ms=4, minted_frost=5, burned_frost=6, seed=SEED),
    "seats": Seats(COMMITTEE),
    "terms": Terms(3, capacity_units=4, storage_frost_per_unit=5, write_frost_per_unit=6),
    "stake": Stake(StakeId(ONE), OWNER, NODE, Phase.UNBONDING, frost=5, shares=0, turn_epoch=6),
    "handover": Handover(since_epoch=3, source_epoch=2, done_height=40, reporters=(0, 2)),
    "staged_handover": Handover(9, 8, done_height=0, reporters=(1,), older=(Stage(2, 1), Stage(5, 4))),
    "round": Round(3, 4, 50, 60, Digest(BLOB), (Tally(0, 1, 2, 3, 4), Tally(2, 5, 6, 7, 8)), reporters=(1, 3)),
    "standing": Standing(3, 4, (Marks(challenged=4, passed=3, bad=2, unreported=1), Marks(unreported=65_535))),
    "beacon": Beacon(NODE, ONE, 3, next_tip=Digest(BLOB), next_epoch=5, revealed_epoch=2, revealed_round=4),
    "invalid": Invalid(BLOB, epoch=3, height=40, proof_hash=ONE),
}


def frozen(name: str) -> bytes:
    return bytes.fromhex(FROZEN[name]["value"])


@pytest.mark.parametrize("name", VALUES)
def test_a_value_is_its_frozen_bytes_and_is_read_back(name: str) -> None:
    value, data = VALUES[name], frozen(name)
    assert value.encode() == data
    assert decode_value(data) == type(value).decode(data) == value
    assert data.startswith(value.slot)
    assert state_key(value.slot).hex() == FROZEN[name]["key"]


def test_every_kind_has_a_vector() -> None:
    assert set(VALUES) == set(FROZEN)
    assert list(dict.fromkeys(value.KIND for value in VALUES.values())) == list(range(1, 18))


def test_the_keys_that_a_light_client_asks_for_are_those_of_the_values() -> None:
    slots = (reservation_slot(RESERVATION), entry_slot(BLOB, RESERVATION))
    keys = [account_key(OWNER), blob_key(BLOB), *map(state_key, slots)]
    assert [key.hex() for key in keys] == [FROZEN[name]["key"] for name in ("account", "blob", "reservation", "entry")]


@pytest.mark.parametrize("name", VALUES)
def test_a_byte_less_or_more_is_no_value(name: str) -> None:
    data = frozen(name)
    whole = {len(data) - 16, len(data) - 32} if name == "staged_handover" else set()  # with fewer stages
    for other in (*(data[:size] for size in range(len(data)) if size not in whole), data + b"\0"):
        assert reason(decode_value, other) is Reason.MALFORMED


@pytest.mark.parametrize("name", VALUES)
def test_a_value_of_one_kind_is_none_of_another(name: str) -> None:
    for kind in range(256):
        other = bytes([kind]) + frozen(name)[1:]
        if kind != VALUES[name].KIND:
            assert reason(type(VALUES[name]).decode, other) is Reason.MALFORMED
    assert reason(decode_value, b"\x00" + frozen(name)[1:]) is Reason.MALFORMED
    assert reason(decode_value, b"\x12" + frozen(name)[1:]) is Reason.MALFORMED


@settings(max_examples=300)
@given(st.integers(0, 18), st.binary(max_size=200), st.sampled_from([b"", *(frozen(name)[1:] for name in VALUES)]))
def test_whatever_is_read_is_written_back_alike(kind: int, tail: bytes, front: bytes) -> None:
    data = bytes([kind]) + front + tail
    try:
        value = decode_value(data)
    except Rejected:
        return
    assert value.encode() == data


@settings(max_examples=300)
@given(st.sampled_from(list(VALUES)), st.data())
def test_a_value_with_a_few_bytes_changed_is_refused_or_written_back_alike(name: str, data: st.DataObject) -> None:
    changed = bytearray(frozen(name))
    for at in data.draw(st.lists(st.integers(1, len(changed) - 1), min_size=1, max_size=4)):
        changed[at] = data.draw(st.integers(0, 255))
    try:
        value = decode_value(bytes(changed))
    except Rejected:
        return
    assert value.encode() == changed


@pytest.mark.parametrize("rows", [[], [(12, 1), (12, 1)], [(13, 1), (12, 1)], [(12, 0)]])
def test_a_blob_that_nobody_keeps_or_whose_epochs_are_out_of_order_is_refused(rows: list[tuple[int, int]]) -> None:
    body = b"".join(epoch.to_bytes(8, "big") + count.to_bytes(4, "big") for epoch, count in rows)
    data = frozen("blob")[:57] + len(rows).to_bytes(2, "big") + body
    assert reason(decode_value, data) is Reason.MALFORMED


def test_an_entry_is_deletable_or_not_and_its_texts_are_text() -> None:
    data = frozen("entry")
    assert reason(decode_value, data[:121] + b"\x02" + data[122:]) is Reason.MALFORMED
    assert reason(decode_value, data[:-2] + b"\xff\xff") is Reason.MALFORMED


class TestBlobSummary:
    one = BlobSummary(BLOB, 1, 2, 3, ((7, 1),))

    def test_counts_its_entries_by_the_epoch_in_which_they_end(self) -> None:
        two = self.one.with_entry(5).with_entry(7)
        assert two.entries == ((5, 1), (7, 2))
        assert (two.end_epoch, two.with_entry(9).end_epoch) == (7, 9)
        assert two.without_entry(5) == self.one.with_entry(7)

    def test_is_gone_with_its_last_entry(self) -> None:
        assert self.one.without_entry(7) is None

    def test_never_loses_an_entry_that_it_does_not_have(self) -> None:
        with pytest.raises(AssertionError):
            self.one.without_entry(8)
