"""The beacon: a reveal that counts changes the seed, once a round; any other changes nothing."""

from dataclasses import replace

import pytest

from economics import beacon, challenges
from economics.arguments import CommitBeacon
from economics.crypto import Digest, Level, digest
from economics.nodes import NO_COMMITMENT, Beacon
from economics.operations import Code, Failed
from tests.economics.rounds import SEED, Rounds, node_id

LAYERS = 8


def make_onion(core: bytes) -> list[Digest]:
    """Return an onion's layers, the tip first: each is the reveal of the one before it."""
    layers = [Digest(core)]
    for _ in range(LAYERS):
        layers.append(beacon.peel(layers[-1]))
    return layers[::-1]


ONION, LATER = make_onion(b"\x01" * 32), make_onion(b"\x02" * 32)
NODE = node_id(0)


def committed(rounds: Rounds, tip: Digest) -> None:
    beacon.commit(rounds.context(NODE), CommitBeacon(tip))


@pytest.fixture
def rounds() -> Rounds:
    """Node 0 has committed to an onion in epoch 0, which counts since epoch 2, the current one."""
    made = Rounds.begin((1, 1, 1, 1))
    committed(made, ONION[0])
    made.enter(1)
    made.enter(2)
    return made


def apply(rounds: Rounds, at_ms: int, reveal: bytes, *, leader: int = 0) -> Digest:
    """Apply a block and return the seed after it."""
    header = rounds.header(at_ms, leader=leader, reveal=reveal)
    challenges.begin_block(rounds.state, header, committee=rounds.committee, parameters=rounds.parameters)
    return rounds.state.system().seed


def mixed(seed: Digest, *reveals: Digest) -> Digest:
    for reveal in reveals:
        seed = digest(Level.SEED, seed + reveal)
    return seed


def tip(rounds: Rounds) -> Beacon | None:
    return beacon.beacon_of(rounds.state, NODE)


def test_reveals_walk_down_the_onion_and_each_changes_the_seed(rounds: Rounds) -> None:
    assert apply(rounds, 0, ONION[1]) == mixed(SEED, ONION[1])
    assert apply(rounds, 1_000, ONION[2]) == mixed(SEED, ONION[1], ONION[2])
    assert tip(rounds) == Beacon(NODE, ONION[2], 2, NO_COMMITMENT, 0, 2, 2)


def test_one_reveal_a_round_counts(rounds: Rounds) -> None:
    apply(rounds, 0, ONION[1])
    assert apply(rounds, 999, ONION[2]) == mixed(SEED, ONION[1])
    assert apply(rounds, 1_000, ONION[2]) == mixed(SEED, ONION[1], ONION[2])


def test_the_same_round_of_another_epoch_is_another_round(rounds: Rounds) -> None:
    apply(rounds, 0, ONION[1])
    rounds.enter(3)
    assert apply(rounds, 0, ONION[2]) == mixed(SEED, ONION[1], ONION[2])


@pytest.mark.parametrize("wrong", [bytes(32), ONION[0], ONION[2], LATER[1]])
def test_a_wrong_reveal_changes_nothing(rounds: Rounds, wrong: bytes) -> None:
    before = tip(rounds)
    assert apply(rounds, 0, wrong) == SEED
    assert tip(rounds) == before


def test_a_reveal_in_another_leader_s_block_changes_nothing(rounds: Rounds) -> None:
    assert apply(rounds, 0, ONION[1], leader=1) == SEED


def test_a_reveal_that_was_lost_with_its_block_counts_when_it_is_made_again(rounds: Rounds) -> None:
    lost = Rounds(rounds.state, rounds.committee)
    rounds.state.flush()
    lost.state = rounds.state.fork()
    apply(lost, 0, ONION[1])
    assert apply(rounds, 2_000, ONION[1]) == mixed(SEED, ONION[1])


def test_a_commitment_counts_from_the_second_epoch_after_it() -> None:
    rounds = Rounds.begin((1, 1, 1, 1))
    committed(rounds, ONION[0])
    assert tip(rounds) == Beacon(NODE, ONION[0], 2, NO_COMMITMENT, 0, 0, 0)
    for epoch in (0, 1):
        assert apply(rounds, 0, ONION[1]) == SEED
        rounds.enter(epoch + 1)
    assert apply(rounds, 0, ONION[1]) == mixed(SEED, ONION[1])


def test_a_later_onion_takes_over_in_the_second_epoch_and_the_first_one_counts_until_then(rounds: Rounds) -> None:
    committed(rounds, LATER[0])
    apply(rounds, 0, ONION[1])
    rounds.enter(3)
    assert apply(rounds, 0, ONION[2]) == mixed(SEED, ONION[1], ONION[2])
    rounds.enter(4)
    assert apply(rounds, 0, ONION[3]) == mixed(SEED, ONION[1], ONION[2])
    assert apply(rounds, 0, LATER[1]) == mixed(SEED, ONION[1], ONION[2], LATER[1])
    assert tip(rounds) == Beacon(NODE, LATER[1], 4, NO_COMMITMENT, 0, 4, 1)


def test_an_onion_that_does_not_count_yet_is_replaced_and_starts_waiting_anew(rounds: Rounds) -> None:
    committed(rounds, LATER[0])
    rounds.enter(3)
    other = make_onion(b"\x03" * 32)
    committed(rounds, other[0])
    rounds.enter(4)
    assert apply(rounds, 0, LATER[1]) == SEED
    rounds.enter(5)
    assert apply(rounds, 0, other[1]) == mixed(SEED, other[1])


def test_an_onion_that_counts_but_was_not_used_is_not_lost_to_a_later_one(rounds: Rounds) -> None:
    committed(rounds, LATER[0])
    rounds.enter(4)
    committed(rounds, make_onion(b"\x03" * 32)[0])
    assert apply(rounds, 0, LATER[1]) == mixed(SEED, LATER[1])


def test_only_a_registered_node_s_key_commits(rounds: Rounds) -> None:
    with pytest.raises(Failed) as failure:
        beacon.commit(rounds.context(node_id(9)), CommitBeacon(ONION[0]))
    assert failure.value.code is Code.NOT_A_NODE


def test_without_rounds_one_reveal_an_epoch_counts(rounds: Rounds) -> None:
    rounds.parameters = replace(rounds.parameters, challenge_rounds=0)
    apply(rounds, 0, ONION[1])
    assert apply(rounds, 20_000, ONION[2]) == mixed(SEED, ONION[1])
