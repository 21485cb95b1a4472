"""The state's values about nodes: bytes that no ledger would write are no values, and an audit's words add up."""

import json
from typing import Any

import pytest

from economics.committee import Committee, Member
from economics.crypto import NodeId, OwnerId
from economics.errors import Reason
from economics.nodes import Handover, Outcome, Seats, Stage, Tally
from economics.state import decode_value
from tests import reference
from tests.refusals import reason

FROZEN: dict[str, Any] = json.loads((reference.VECTORS / "chain.json").read_text())["values"]
ONE = bytes([1]) * 32


@pytest.mark.parametrize("phase", [0, 5, 255])
def test_a_stake_is_in_one_of_four_phases(phase: int) -> None:
    data = reference.stake(ONE, ONE, ONE, phase, 1, 1, 1)
    assert reason(decode_value, data) is Reason.MALFORMED
    for known in (1, 2, 3, 4):
        assert (
            decode_value(reference.stake(ONE, ONE, ONE, known, 1, 1, 1)).encode()
            == data[:97] + bytes([known]) + (data[98:])
        )


@pytest.mark.parametrize("reporters", [[1, 1], [2, 1], [0, 3, 2]])
def test_members_that_reported_are_ascending_and_distinct(reporters: list[int]) -> None:
    assert reason(decode_value, reference.handover(3, 2, 1, reporters)) is Reason.MALFORMED
    assert reason(decode_value, reference.round_of((3, 4, 5, 6), ONE, [], reporters)) is Reason.MALFORMED


@pytest.mark.parametrize("members", [[1, 1], [2, 1]])
def test_challenged_members_are_ascending_and_distinct(members: list[int]) -> None:
    tallies = [(member, 0, 0, 0, 0) for member in members]
    assert reason(decode_value, reference.round_of((3, 4, 5, 6), ONE, tallies, [])) is Reason.MALFORMED


@pytest.mark.parametrize(("kind", "at"), [("handover", 26), ("round", 60), ("standing", 12), ("seats", 10)])
def test_a_count_of_more_than_there_is_is_refused(kind: str, at: int) -> None:
    """The count is a `u16` of which the second byte is at `at`."""
    data = bytes.fromhex(FROZEN[kind]["value"])
    assert reason(decode_value, data[: at - 1] + b"\xff\xff" + data[at + 1 :]) is Reason.MALFORMED


def test_a_handover_is_done_when_its_source_is_the_committee_itself() -> None:
    assert Handover(3, 3, 9, (0,)).is_done
    assert not Handover(3, 2, 0, (0,)).is_done


@pytest.mark.parametrize(
    "data",
    [
        reference.handover(9, 9, 3, [], ((2, 1),)),
        reference.handover(9, 8, 0, [], ((2, 1), (2, 1))),
        reference.handover(9, 8, 0, [], ((5, 4), (2, 1))),
        reference.handover(9, 4, 0, [], ((5, 4),)),
        reference.handover(9, 8, 0, [], ((2, 3),)),
    ],
)
def test_stages_of_a_handover_that_do_not_follow_each_other_are_refused(data: bytes) -> None:
    assert reason(decode_value, data) is Reason.MALFORMED


def test_what_was_certified_before_a_stage_is_with_its_source_and_all_later_ones() -> None:
    going = Handover(9, 8, 0, (), (Stage(2, 1), Stage(5, 4)))
    assert [going.sources(epoch) for epoch in (1, 2, 4, 5, 8, 9)] == [[1, 4, 8], [4, 8], [4, 8], [8], [8], []]
    assert Handover(9, 9, 3, ()).sources(1) == []


def test_seats_live_in_the_slot_of_their_epoch() -> None:
    members = tuple(Member(NodeId(bytes([index]) * 32), OwnerId(ONE), 2) for index in range(2))
    slots = {Seats(Committee(epoch, members)).slot for epoch in (0, 1, 256)}
    assert slots == {b"\x0a" + epoch.to_bytes(8, "big") for epoch in (0, 1, 256)}


def test_an_outcome_counts_the_auditor_s_shards_where_it_belongs() -> None:
    said = Tally(7)
    for outcome, shards in ((Outcome.OK, 1), (Outcome.BAD, 2), (Outcome.OFFLINE, 3), (Outcome.SLOW, 4)):
        said = said.with_outcome(outcome, shards)
    assert said == Tally(7, ok=1, bad=2, offline=3, slow=4)
    assert said.with_outcome(Outcome.UNKNOWN, 5) == said
    assert said.with_outcome(Outcome.OK, 5) == Tally(7, ok=6, bad=2, offline=3, slow=4)
