"""An epoch's end: rewards by shards and performance, commissions, burns, and slashes for lies and long absence."""

from dataclasses import replace

import pytest

from economics.arguments import PutStake, RegisterNode, Reserve, Unstake, node_message
from economics.committee import Member
from economics.crypto import NodeId, OwnerId
from economics.genesis import FROST_PER_WAL as WAL
from economics.ledger import Code
from economics.nodes import Marks, NodeEntry, Phase, Round, Tally
from economics.state import Bucket
from economics.votes import ZERO_HASH
from tests.chain import Chain, key_of, sign
from tests.small import OPERATORS, OTHER_OWNER, OWNER, make_genesis

PLAIN = make_genesis((1, 2, 4))
OWNERS = tuple(OwnerId(bytes([0x80 + index]) * 32) for index in range(3))
NODES = [NodeId(key.public) for key in OPERATORS[:3]]
GENESIS = replace(
    PLAIN,
    members=tuple(
        Member(member.node, owner, member.shards) for member, owner in zip(PLAIN.members, OWNERS, strict=True)
    ),
    parameters=replace(
        PLAIN.parameters,
        burn_basis_points=0,
        challenge_rounds=2,
        fee_frost_per_byte=0,
        fee_frost_per_signature=0,
        missed_epochs_max=3,
        stake_frost_per_shard=1_000,
        unbonding_epochs=4,
    ),
)
"""n = 7, f = 2; a commission of a tenth."""
GOOD = Marks(challenged=4, passed=4)


@pytest.fixture
def chain() -> Chain:
    return Chain.begin(GENESIS)


def node(chain: Chain, member: int) -> NodeEntry:
    entry = chain.ledger.node(NODES[member])
    assert entry is not None
    return entry


def end_epoch(chain: Chain, *marks: Marks, rounds: int = 4) -> None:
    """End the epoch with these marks of the three members."""
    state, standing = chain.ledger._state, chain.ledger.standing
    state.write(replace(standing, rounds=rounds, marks=marks))
    over = Round(chain.ledger.epoch, 2, 1, chain.time_ms, ZERO_HASH, (), ())
    state.write(over)
    state.flush()
    chain.end_epoch()


def pay(chain: Chain, amount_frost: int) -> None:
    """Bring so much into the current epoch's bucket."""
    chain.block(sign(chain.ledger, OWNER, Reserve(1, 5, 6), fee_frost=amount_frost - 500))


def gained(
    chain: Chain, marks: tuple[Marks, Marks, Marks], *, amount_frost: int = 70_000, rounds: int = 4
) -> list[int]:
    """Return what each member gets of a bucket, commission and pool together."""
    pay(chain, amount_frost)
    before = [
        chain.ledger.account(owner).balance_frost + node(chain, at).stake_frost for at, owner in enumerate(OWNERS)
    ]
    end_epoch(chain, *marks, rounds=rounds)
    after = [chain.ledger.account(owner).balance_frost + node(chain, at).stake_frost for at, owner in enumerate(OWNERS)]
    return [new - old for new, old in zip(after, before, strict=True)]


class TestRewards:
    def test_are_by_shards_and_what_does_not_divide_goes_on(self, chain: Chain) -> None:
        assert gained(chain, (GOOD, GOOD, GOOD), amount_frost=70_006) == [10_000, 20_001, 40_003]
        assert chain.ledger.bucket(0) == Bucket(0, 0, 0)
        assert chain.ledger.bucket(1) == Bucket(1, 0, 2)

    def test_are_by_performance_and_what_is_not_earned_goes_on(self, chain: Chain) -> None:
        half, nothing = Marks(challenged=4, passed=2, bad=1), Marks(challenged=4, passed=0, bad=2)
        assert gained(chain, (GOOD, half, nothing)) == [10_000, 10_000, 0]
        assert chain.ledger.bucket(1).rewards_frost == 50_000

    def test_who_was_never_challenged_gets_all(self, chain: Chain) -> None:
        assert gained(chain, (Marks(), Marks(), Marks())) == [10_000, 20_000, 40_000]

    def test_who_audits_in_less_than_half_of_the_rounds_gets_half(self, chain: Chain) -> None:
        idle, lazy = replace(GOOD, unreported=2), replace(GOOD, unreported=3)
        assert gained(chain, (GOOD, idle, lazy)) == [10_000, 20_000, 20_000]

    def test_a_part_is_burned_first(self) -> None:
        chain = Chain.begin(replace(GENESIS, parameters=replace(GENESIS.parameters, burn_basis_points=300)))
        assert gained(chain, (GOOD, GOOD, GOOD), amount_frost=72_164) == [10_000, 20_000, 40_000]
        assert chain.ledger.system.burned_frost == 72_164 * 3 // 100

    def test_the_commission_is_the_owners_and_the_rest_the_pools(self, chain: Chain) -> None:
        gained(chain, (GOOD, GOOD, GOOD))
        assert [chain.ledger.account(owner).balance_frost for owner in OWNERS] == [1_000, 2_000, 4_000]
        assert [node(chain, at).stake_frost for at in range(3)] == [10_000, 20_000, 40_000]
        assert [node(chain, at).shares for at in range(3)] == [1_000, 2_000, 4_000]

    def test_of_storage_come_in_the_epochs_that_it_was_bought_for(self, chain: Chain) -> None:
        assert chain.run(OWNER, Reserve(7, 1, 3)) is Code.OK
        assert [chain.ledger.bucket(epoch).rewards_frost for epoch in range(4)] == [3_500, 7_000, 7_000, 0]


def commission(chain: Chain, basis_points: int) -> None:
    nonce = chain.ledger.account(key_of(OWNER)).nonce
    message = node_message(chain_id=chain.ledger.genesis.chain_id, sender=key_of(OWNER), nonce=nonce)
    agreed = OPERATORS[0].sign(message)
    assert chain.run(OWNER, RegisterNode(NODES[0], 100, 1, 1, basis_points, (), agreed)) is Code.OK


def test_a_commission_counts_from_the_second_epoch_after() -> None:
    mine = (replace(GENESIS.members[0], owner=key_of(OWNER)), *GENESIS.members[1:])
    chain = Chain.begin(replace(GENESIS, members=mine))
    commission(chain, 5_000)
    took = []
    for _ in range(3):
        pay(chain, 70_000)
        before = chain.ledger.account(key_of(OWNER)).balance_frost
        end_epoch(chain, GOOD, GOOD, GOOD)
        took.append(chain.ledger.account(key_of(OWNER)).balance_frost - before)
    assert took == [1_000, 1_000, 5_000]


class TestSlashes:
    def test_who_lies_in_most_rounds_loses_a_twentieth_of_its_pool(self, chain: Chain) -> None:
        end_epoch(chain, GOOD, Marks(challenged=4, passed=1, bad=3), GOOD)
        assert [node(chain, at).stake_frost for at in range(3)] == [1_000, 1_900, 4_000]
        assert chain.ledger.system.burned_frost == 100

    @pytest.mark.parametrize("marks", [Marks(challenged=4, passed=2, bad=2), Marks(challenged=1, bad=1)])
    def test_less_than_that_is_not_slashed(self, chain: Chain, marks: Marks) -> None:
        end_epoch(chain, GOOD, marks, GOOD)
        assert node(chain, 1).stake_frost == 2_000

    def test_what_unbonds_is_slashed_with_the_pool(self, chain: Chain) -> None:
        assert chain.run(OTHER_OWNER, PutStake(NODES[1], WAL)) is Code.OK
        [mine] = chain.ledger.stakes_of(key_of(OTHER_OWNER))
        chain.end_epoch()
        assert chain.run(OTHER_OWNER, Unstake(mine.stake, 0)) is Code.OK
        chain.end_epoch()
        [unbonding] = chain.ledger.stakes_of(key_of(OTHER_OWNER))
        assert (unbonding.phase, unbonding.frost) == (Phase.UNBONDING, WAL)
        end_epoch(chain, GOOD, Marks(challenged=4, bad=4), GOOD)
        [slashed] = chain.ledger.stakes_of(key_of(OTHER_OWNER))
        assert slashed == replace(unbonding, frost=WAL * 95 // 100)

    def test_an_absence_is_slashed_only_when_it_lasts_and_then_once(self, chain: Chain) -> None:
        away = Marks(challenged=4, passed=1)
        stakes = []
        for _ in range(5):
            end_epoch(chain, GOOD, away, GOOD)
            stakes.append((node(chain, 1).missed_epochs, node(chain, 1).stake_frost))
        assert stakes == [(1, 2_000), (2, 2_000), (3, 1_980), (3, 1_980), (3, 1_980)]

    def test_an_epoch_that_is_stood_ends_an_absence(self, chain: Chain) -> None:
        away, back = Marks(challenged=4, passed=1), Marks(challenged=4, passed=2)
        for marks in (away, away, back, away, away):
            end_epoch(chain, GOOD, marks, GOOD)
        assert (node(chain, 1).missed_epochs, node(chain, 1).stake_frost) == (2, 2_000)

    def test_registering_again_ends_an_absence_only_once_it_was_slashed(self) -> None:
        mine = (replace(GENESIS.members[0], owner=key_of(OWNER)), *GENESIS.members[1:])
        chain = Chain.begin(replace(GENESIS, members=mine))
        missed = []
        for _ in range(3):
            end_epoch(chain, Marks(challenged=4, passed=1), GOOD, GOOD)
            commission(chain, 0)
            missed.append(node(chain, 0).missed_epochs)
        assert missed == [1, 2, 0]
        assert node(chain, 0).stake_frost == 990

    def test_without_challenges_nothing_changes(self, chain: Chain) -> None:
        end_epoch(chain, GOOD, Marks(challenged=4), GOOD)
        end_epoch(chain, Marks(), Marks(), Marks())
        assert node(chain, 1).missed_epochs == 1


def test_the_last_round_is_closed_before_anybody_is_paid(chain: Chain) -> None:
    """Who is found wanting in it earns nothing."""
    pay(chain, 70_000)
    wanting = (Tally(1, ok=1, offline=4),)
    chain.ledger._state.write(Round(0, 2, 1, chain.time_ms, ZERO_HASH, wanting, reporters=(0, 2)))
    chain.ledger._state.flush()
    chain.end_epoch()
    assert [node(chain, at).stake_frost for at in range(3)] == [10_000, 2_000, 40_000]
    assert node(chain, 1).missed_epochs == 1
