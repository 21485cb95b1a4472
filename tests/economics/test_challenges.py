"""Challenges: rounds by block time, at most f shards asked, seeds that no block chooses, and marks no f shards sway."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from economics import challenges
from economics.arguments import ReportAudit
from economics.beacon import peel
from economics.blob import BlobId, Root
from economics.challenges import Owed
from economics.crypto import Digest, Level, digest
from economics.geometry import Code as Geometry
from economics.geometry import faulty_max
from economics.nodes import NO_COMMITMENT, Beacon, Handover, Marks, Outcome, Round, Stage, Tally
from economics.operations import Code, Failed
from economics.state import System
from tests import reference
from tests.chain import make_id
from tests.economics.rounds import PARAMETERS, SEED, START_MS, Rounds, make_committee, node_id
from tests.small import encode_blob

UNKNOWN, OK, BAD, OFFLINE, SLOW = Outcome
CODE = Geometry(10, 1000)


def seed_of(number: int) -> Digest:
    return digest(Level.SEED, number.to_bytes(4, "big"))


def apply(rounds: Rounds, at_ms: int, *, height: int = 1, leader: int = 0, reveal: bytes = bytes(32)) -> bool:
    header = rounds.header(at_ms, height=height, leader=leader, reveal=reveal)
    return challenges.begin_block(rounds.state, header, committee=rounds.committee, parameters=rounds.parameters)


def current(rounds: Rounds) -> Round:
    found = challenges.current_round(rounds.state)
    assert found is not None
    return found


class TestRounds:
    def test_a_round_begins_with_the_first_block_of_its_slice_and_numbers_may_be_skipped(self) -> None:
        rounds = Rounds.begin((1, 1, 1, 1))
        times = (0, 1, 999, 1_000, 1_001, 7_999, 8_000, 23_999, 24_000, 99_000)
        began = [(apply(rounds, at_ms, height=height), current(rounds).number) for height, at_ms in enumerate(times)]
        assert began == [
            (True, 1),
            (False, 1),
            (False, 1),
            (True, 2),
            (False, 2),
            (True, 8),
            (True, 9),
            (True, 24),
            (False, 24),
            (False, 24),
        ]
        assert (current(rounds).height, current(rounds).start_ms) == (7, START_MS + 23_999)

    def test_each_epoch_counts_from_one(self) -> None:
        rounds = Rounds.begin((1, 1, 1, 1))
        apply(rounds, 8_000)
        rounds.enter(1)
        assert apply(rounds, 0)
        assert (current(rounds).epoch, current(rounds).number) == (1, 1)

    def test_while_shards_are_on_their_way_none_begins(self) -> None:
        rounds = Rounds.begin((1, 1, 1, 1), epoch=1)
        rounds.state.write(Handover(since_epoch=1, source_epoch=0, done_height=0, reporters=()))
        assert not apply(rounds, 0)
        rounds.state.write(Handover(since_epoch=1, source_epoch=1, done_height=2, reporters=()))
        assert apply(rounds, 1)

    def test_an_overdue_handover_holds_up_none(self) -> None:
        """Counted from its oldest stage on: seats that are dealt anew meanwhile give nobody another respite."""
        overdue = 1 + PARAMETERS.missed_epochs_max
        went_on = Handover(since_epoch=1, source_epoch=0, done_height=0, reporters=())
        staged = Handover(overdue - 1, overdue - 2, 0, (), older=(Stage(1, 0),))
        for going in (went_on, staged):
            began = []
            for epoch in (overdue - 1, overdue):
                rounds = Rounds.begin((1, 1, 1, 1), epoch=epoch)
                rounds.state.write(going)
                began.append(apply(rounds, 0))
            assert began == [False, True], going

    def test_a_network_may_have_none(self) -> None:
        rounds = Rounds.begin((1, 1, 1, 1))
        rounds.parameters = replace(rounds.parameters, challenge_rounds=0)
        assert not apply(rounds, 0)
        assert challenges.current_round(rounds.state) is None

    def test_more_rounds_than_milliseconds_still_make_rounds(self) -> None:
        rounds = Rounds.begin((1, 1, 1, 1))
        rounds.parameters = replace(rounds.parameters, epoch_ms=3, challenge_rounds=24)
        assert [apply(rounds, at_ms) for at_ms in (0, 1, 2)] == [True, True, True]

    def test_the_block_that_begins_a_round_has_no_say_in_its_seed_but_to_reveal_or_not(self) -> None:
        reveal = Digest(b"\x01" * 32)
        seeds = []
        for at_ms, height, shown in (
            (1_000, 1, reveal),
            (1_700, 5, reveal),
            (1_000, 1, bytes(32)),
            (1_000, 1, b"\x02" * 32),
        ):
            rounds = Rounds.begin((1, 1, 1, 1), epoch=2)
            rounds.state.write(Beacon(node_id(0), peel(reveal), 2, NO_COMMITMENT, 0, 0, 0))
            apply(rounds, at_ms, height=height, reveal=shown)
            seeds.append(current(rounds).seed)
        told = challenges.round_seed(digest(Level.SEED, SEED + reveal), epoch=2, number=2)
        untold = challenges.round_seed(SEED, epoch=2, number=2)
        assert seeds == [told, told, untold, untold]

    def test_nobody_but_the_leader_who_begins_a_round_knows_before_what_it_asks_for(self) -> None:
        """Else who stores nothing fetches in time what it will be asked for, and stands every round."""
        rounds = Rounds.begin((1, 1, 1, 1), epoch=2)
        cores = [bytes([index + 1]) * 32 for index in range(4)]
        for index, core in enumerate(cores):
            rounds.state.write(Beacon(node_id(index), peel(peel(core)), 2, NO_COMMITMENT, 0, 0, 0))
        for index, core in enumerate(cores):
            apply(rounds, index, height=index, leader=index, reveal=peel(core))
        foreseen = challenges.round_seed(rounds.state.system().seed, epoch=2, number=2)
        apply(rounds, 1_000, height=4, leader=3, reveal=cores[3])
        assert current(rounds).number == 2
        assert current(rounds).seed != foreseen

    def test_a_reveal_in_one_round_changes_who_is_asked_what_in_the_next(self) -> None:
        reveal = Digest(b"\x01" * 32)
        seeds = set()
        for shown in (reveal, bytes(32)):
            rounds = Rounds.begin((1, 1, 1, 1), epoch=2)
            rounds.state.write(Beacon(node_id(0), peel(reveal), 2, NO_COMMITMENT, 0, 0, 0))
            apply(rounds, 0, reveal=shown)
            apply(rounds, 1_000)
            seeds.add(current(rounds).seed)
        assert len(seeds) == 2

    def test_rounds_differ_though_nobody_reveals_anything(self) -> None:
        rounds = Rounds.begin((1,) * 10)
        seeds = set()
        for epoch in range(2):
            for number in range(24):
                apply(rounds, number * 1_000)
                seeds.add(current(rounds).seed)
            rounds.enter(epoch + 1)
        assert len(seeds) == 48


class TestChallenged:
    @given(
        st.lists(st.integers(1, 9), min_size=4, max_size=12).filter(lambda shards: sum(shards) <= 64),
        st.binary(min_size=32, max_size=32),
    )
    @settings(deadline=None, max_examples=50)
    def test_at_most_f_shards_and_nobody_else_would_fit(self, shards: list[int], seed: bytes) -> None:
        committee = make_committee(shards)
        taken = challenges.challenged(committee, Digest(seed))
        left = faulty_max(committee.n) - committee.weight(taken)
        assert list(taken) == sorted(set(taken))
        assert left >= 0
        assert all(member.shards > left for index, member in enumerate(committee.members) if index not in taken)

    def test_who_holds_more_than_f_shards_is_never_asked(self) -> None:
        committee = make_committee((4, 3, 3))
        assert {challenges.challenged(committee, seed_of(number)) for number in range(50)} == {(1,), (2,)}

    def test_over_many_rounds_each_shard_is_asked_about_as_often(self) -> None:
        committee = make_committee((1,) * 10)
        counts = Counter(
            index for number in range(2_000) for index in challenges.challenged(committee, seed_of(number))
        )
        assert all(abs(counts[index] - 600) < 5 * (2_000 * 0.3 * 0.7) ** 0.5 for index in range(10))


def make_blobs(segments: list[int]) -> list[tuple[BlobId, int]]:
    return [(BlobId(seed_of(index)), count * 1_000) for index, count in enumerate(segments)]


class TestSample:
    def test_positions_run_through_the_blobs_in_order(self) -> None:
        blobs = make_blobs([2, 1, 3])
        owed = Owed.of(blobs, CODE)
        places = [(blobs[place][0], index) for place, index in ((0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2))]
        assert [owed.at(position) for position in range(owed.total)] == places

    def test_where_there_is_little_all_of_it_is_asked_about(self) -> None:
        owed = Owed.of(make_blobs([2, 1]), CODE)
        asked = challenges.sample(owed, seed=SEED, shard=0, count=3)
        assert asked == [owed.at(position) for position in range(3)]
        assert challenges.sample(Owed.of([], CODE), seed=SEED, shard=0, count=3) == []

    def test_an_empty_blob_has_a_segment_too(self) -> None:
        assert Owed.of([(BlobId(SEED), 0)], CODE).total == 1

    def test_draws_are_distinct_and_of_this_shard_and_seed(self) -> None:
        owed = Owed.of(make_blobs([40, 1, 59]), CODE)
        asked = challenges.sample(owed, seed=SEED, shard=0, count=16)
        assert len(asked) == len(set(asked))
        assert 8 < len(asked) <= 16
        assert challenges.sample(owed, seed=SEED, shard=1, count=16) != asked
        assert challenges.sample(owed, seed=seed_of(1), shard=0, count=16) != asked

    def test_every_segment_is_as_likely(self) -> None:
        owed = Owed.of(make_blobs([7, 1, 12]), CODE)
        drawn = [challenges.sample(owed, seed=seed_of(number), shard=3, count=1) for number in range(4_000)]
        counts = Counter(place for places in drawn for place in places)
        assert len(counts) == 20
        assert max(abs(count - 200) for count in counts.values()) < 5 * (4_000 * 0.05 * 0.95) ** 0.5

    @pytest.mark.parametrize("stored", [0.99, 0.95, 0.9, 0.8])
    def test_who_keeps_a_part_p_stands_a_round_with_a_probability_of_p_to_the_k(self, stored: float) -> None:
        count, trials = 16, 2_000
        owed = Owed.of(make_blobs([100] * 10), CODE)
        kept = {owed.at(position) for position in range(int(owed.total * stored))}
        samples = (challenges.sample(owed, seed=seed_of(number), shard=0, count=count) for number in range(trials))
        passed = sum(kept.issuperset(places) for places in samples)
        expected = stored**count
        assert abs(passed / trials - expected) < 5 * (expected * (1 - expected) / trials) ** 0.5


def test_an_answer_names_everything_it_is_an_answer_to() -> None:
    base = {
        "seed": SEED,
        "target": node_id(0),
        "root": Root(seed_of(1)),
        "shard": 1,
        "auditor_shard": 2,
        "row": b"row",
        "column": b"column",
    }
    other = {
        "seed": seed_of(2),
        "target": node_id(1),
        "root": Root(seed_of(3)),
        "shard": 2,
        "auditor_shard": 1,
        "row": b"rot",
        "column": b"columm",
    }
    answers = {challenges.answer(**base | {name: value}) for name, value in other.items()}  # type: ignore[arg-type]
    assert len(answers | {challenges.answer(**base)}) == 8  # type: ignore[arg-type]


class TestFrozenVectors:
    """What the reference encoder makes of FORMATS.md 17."""

    vectors: Any = json.loads((reference.VECTORS / "challenges.json").read_text(encoding="utf-8"))

    def test_rounds_seeds_and_members(self) -> None:
        system, parameters = System(0, 50, 0, 0), replace(PARAMETERS, epoch_ms=1_000, challenge_rounds=9)
        for elapsed_ms, number in self.vectors["rounds"]:
            assert challenges.round_number(50 + elapsed_ms, system=system, parameters=parameters) == number
        for shards, members in self.vectors["challenged"]:
            assert list(challenges.challenged(make_committee(shards), SEED)) == members
        assert challenges.round_seed(SEED, epoch=5, number=3).hex() == self.vectors["seed_of_a_round"]

    def test_samples(self) -> None:
        blobs = sorted((BlobId(make_id(index)), 1_000 * index) for index in range(6))
        owed = Owed.of(blobs, Geometry(4, 777))
        made = {
            count: [
                [
                    [blob_id.hex(), index]
                    for blob_id, index in challenges.sample(owed, seed=SEED, shard=shard, count=count)
                ]
                for shard in range(4)
            ]
            for count in (0, 1, 8, 22, 23)
        }
        assert made == {int(count): rows for count, rows in self.vectors["samples"].items()}

    def test_answers(self) -> None:
        code = Geometry(7, 1000)
        segment = encode_blob(code, reference.content(1000)).segments[0]
        assert segment.root.hex() == self.vectors["root"]

        def crossing(row: int, column: int) -> bytes:
            start = (row * 7 + column) * segment.z
            return bytes(segment.matrix[start : start + segment.z])

        pairs = [code.pair_of_shard(shard, segment.root) for shard in range(7)]
        made = [
            [
                challenges.answer(
                    SEED,
                    target=node_id(1),
                    root=segment.root,
                    shard=shard,
                    auditor_shard=own,
                    row=crossing(p, 6 - a),
                    column=crossing(a, 6 - p),
                ).hex()
                for own, a in enumerate(pairs)
            ]
            for shard, p in enumerate(pairs)
        ]
        assert made == self.vectors["answers"]


def begin(shards: tuple[int, ...], *members: int) -> Rounds:
    """Return a state with a round of epoch 0 in which these members are challenged."""
    rounds = Rounds.begin(shards)
    rounds.state.write(Round(0, 1, 1, START_MS, SEED, tuple(Tally(index) for index in members), ()))
    return rounds


def report(rounds: Rounds, member: int, *outcomes: Outcome, epoch: int = 0, number: int = 1) -> Code:
    try:
        context = rounds.context(node_id(member))
        challenges.report_audit(context, ReportAudit(epoch, number, outcomes), rounds.committee)
    except Failed as failure:
        return failure.code
    return Code.OK


class TestReports:
    def test_each_word_weighs_its_speaker_s_shards(self) -> None:
        rounds = begin((1, 2, 3, 4), 0, 1)
        said = ((2, (OK, BAD)), (3, (OFFLINE, SLOW)), (1, (UNKNOWN, UNKNOWN)))
        assert [report(rounds, member, *outcomes) for member, outcomes in said] == [Code.OK] * 3
        tallies = (Tally(0, ok=3, offline=4), Tally(1, bad=3, slow=4))
        assert current(rounds) == Round(0, 1, 1, START_MS, SEED, tallies, (1, 2, 3))

    def test_nobody_s_word_on_itself_counts(self) -> None:
        rounds = begin((1, 1, 1, 1), 0)
        assert report(rounds, 0, OK) is Code.OK
        assert current(rounds).tallies == (Tally(0),)
        assert current(rounds).reporters == (0,)

    def test_what_is_refused_changes_nothing(self) -> None:
        rounds = begin((1, 1, 1, 1), 0)
        assert report(rounds, 1, OK) is Code.OK
        before = current(rounds)
        assert report(rounds, 1, BAD) is Code.ALREADY_REPORTED
        assert report(rounds, 7, BAD) is Code.NOT_MEMBER
        assert report(rounds, 2, BAD, epoch=1) is Code.WRONG_EPOCH
        assert report(rounds, 2, BAD, number=2) is Code.WRONG_ROUND
        assert report(rounds, 2, BAD, BAD) is Code.WRONG_AMOUNT
        assert report(rounds, 2) is Code.WRONG_AMOUNT
        assert current(rounds) == before

    def test_a_round_of_the_last_epoch_takes_none_in_this_one(self) -> None:
        rounds = begin((1, 1, 1, 1), 0)
        rounds.enter(1)
        assert report(rounds, 1, OK, epoch=1) is Code.WRONG_ROUND

    def test_before_the_first_round_there_is_none(self) -> None:
        assert report(Rounds.begin((1, 1, 1, 1)), 1) is Code.WRONG_ROUND


def closed(rounds: Rounds) -> tuple[Marks, ...]:
    return challenges.close_epoch(rounds.state, rounds.committee).marks


def verdict(rounds: Rounds) -> Marks:
    """Return what the round did to member 0, but for its own report."""
    return replace(closed(rounds)[0], unreported=0)


class TestMarks:
    @pytest.mark.parametrize("target", [1, 2, 3])
    def test_f_shards_of_liars_cannot_fail_an_honest_member(self, target: int) -> None:
        """n = 10: the target has up to 3 shards, as the liars have; the 7 to 4 others are honest."""
        shards = (target, *(1,) * (10 - target))
        rounds = begin(shards, 0)
        for member in range(1, len(shards)):
            report(rounds, member, BAD if member <= 3 else OK)
        assert verdict(rounds) == Marks(challenged=1, passed=1)

    @pytest.mark.parametrize("target", [1, 2, 3])
    def test_f_shards_of_liars_cannot_pass_one_of_themselves(self, target: int) -> None:
        shards = (target, *(1,) * (10 - target))
        rounds = begin(shards, 0)
        for member in range(1, len(shards)):
            report(rounds, member, OK if member <= 3 - target else BAD)
        assert verdict(rounds) == Marks(challenged=1, bad=1)

    def test_who_was_away_is_not_bad(self) -> None:
        rounds = begin((1,) * 10, 0)
        for member, outcome in enumerate((OFFLINE,) * 5 + (SLOW,) * 4, start=1):
            report(rounds, member, outcome)
        assert verdict(rounds) == Marks(challenged=1)

    def test_half_is_not_most(self) -> None:
        rounds = begin((1,) * 10, 0)
        for member in range(1, 9):
            report(rounds, member, OK if member % 2 else BAD)
        assert verdict(rounds) == Marks(challenged=1)

    def test_the_word_of_f_shards_makes_no_round(self) -> None:
        rounds = begin((1,) * 10, 0)
        for member in range(1, 10):
            report(rounds, member, BAD if member <= 3 else UNKNOWN)
        assert verdict(rounds) == Marks()
        rounds = begin((1,) * 10, 0)
        for member in range(1, 10):
            report(rounds, member, BAD if member <= 4 else UNKNOWN)
        assert verdict(rounds) == Marks(challenged=1, bad=1)

    def test_who_does_not_report_is_marked_where_enough_others_have(self) -> None:
        rounds = begin((1,) * 10, 0)
        for member in (1, 2, 3):
            report(rounds, member, UNKNOWN)
        assert closed(rounds) == (Marks(),) * 10
        rounds = begin((1,) * 10, 0)
        for member in (1, 2, 3, 4):
            report(rounds, member, UNKNOWN)
        assert closed(rounds) == tuple(Marks(unreported=member not in (1, 2, 3, 4)) for member in range(10))

    def test_a_round_is_closed_once_by_the_next_one_or_by_the_epoch_s_end(self) -> None:
        rounds = begin((1, 1, 1, 1), 0)
        for member in (1, 2, 3):
            report(rounds, member, OK)
        apply(rounds, 1_000)
        (target,) = (tally.member for tally in current(rounds).tallies)
        for member in range(4):
            report(rounds, member, OK, number=2)
        marks = closed(rounds)
        assert sum(row.passed for row in marks) == 2
        assert marks[0] == Marks(challenged=1 + (target == 0), passed=1 + (target == 0), unreported=1)
        rounds.enter(1)
        apply(rounds, 0)
        assert closed(rounds) == (Marks(),) * 4

    def test_an_epoch_without_rounds_has_no_marks(self) -> None:
        assert closed(Rounds.begin((1, 1, 1, 1))) == (Marks(),) * 4
