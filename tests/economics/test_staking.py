"""Stake: it joins and leaves with epochs, is a share of its node's pool, and nobody gains by going in and out."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from economics.arguments import PutStake, RegisterNode, Unstake, node_message
from economics.beginning import first_stake_id
from economics.crypto import Level, NodeId, digest
from economics.genesis import FROST_PER_WAL as WAL
from economics.ledger import Code
from economics.nodes import NodeEntry, Phase, Stake
from economics.slots import StakeId
from tests.chain import Chain, key_of, sign
from tests.small import BALANCE_FROST, OPERATORS, OTHER_OWNER, OWNER, make_genesis

PLAIN = make_genesis()
PARAMETERS = replace(
    PLAIN.parameters,
    unbonding_epochs=2,
    stake_frost_per_shard=10 * WAL,
    fee_frost_per_byte=0,  # fees would be rewards, and change what a share is worth
    fee_frost_per_signature=0,
)
GENESIS = replace(PLAIN, parameters=PARAMETERS)
NODE = NodeId(OPERATORS[1].public)
ALICE, BOB = key_of(OWNER), key_of(OTHER_OWNER)


@pytest.fixture
def chain() -> Chain:
    return Chain.begin(GENESIS)


def node(chain: Chain) -> NodeEntry:
    entry = chain.ledger.node(NODE)
    assert entry is not None
    return entry


def put(chain: Chain, amount_frost: int) -> Stake:
    """Have the other owner put stake on the node."""
    signed = sign(chain.ledger, OTHER_OWNER, PutStake(NODE, amount_frost))
    assert chain.block(signed).receipts[0].code is Code.OK
    stake = chain.ledger.stake(StakeId(digest(Level.STAKE, signed.hash)))
    assert stake is not None
    return stake


def found(chain: Chain, stake: Stake) -> Stake:
    again = chain.ledger.stake(stake.stake)
    assert again is not None
    return again


def pass_cut_off(chain: Chain) -> None:
    chain.block(after_ms=GENESIS.parameters.epoch_ms // 2)
    assert chain.ledger.cut_off_passed


def set_pool(chain: Chain, stake_frost: int) -> None:
    """Make the node's pool worth this much, as rewards and slashes do; what is more, or less, is minted or burned."""
    entry, system = node(chain), chain.ledger.system
    chain.ledger._state.write(replace(entry, stake_frost=stake_frost))
    minted = system.minted_frost + stake_frost - entry.stake_frost
    chain.ledger._state.write(replace(system, minted_frost=minted))
    chain.ledger._state.flush()


class TestPut:
    def test_waits_for_the_next_epoch_and_is_then_shares_of_the_pool(self, chain: Chain) -> None:
        stake = put(chain, 5 * WAL)
        assert stake == Stake(stake.stake, BOB, NODE, Phase.WAITING, 5 * WAL, 0, turn_epoch=1)
        assert node(chain).stake_frost == 10 * WAL
        chain.end_epoch()
        assert found(chain, stake) == Stake(stake.stake, BOB, NODE, Phase.ACTIVE, 0, 5 * WAL, turn_epoch=0)
        assert (node(chain).stake_frost, node(chain).shares) == (15 * WAL, 15 * WAL)

    def test_after_the_cut_off_it_waits_for_the_epoch_after(self, chain: Chain) -> None:
        pass_cut_off(chain)
        stake = put(chain, 5 * WAL)
        assert stake.turn_epoch == 2
        chain.end_epoch()
        assert found(chain, stake).phase is Phase.WAITING
        chain.end_epoch()
        assert found(chain, stake).phase is Phase.ACTIVE

    def test_buys_shares_at_the_pools_rate(self, chain: Chain) -> None:
        set_pool(chain, 40 * WAL)
        stake = put(chain, 5 * WAL + 3)
        chain.end_epoch()
        assert found(chain, stake).shares == (5 * WAL + 3) // 4

    @pytest.mark.parametrize(
        ("operation", "code"),
        [
            (PutStake(NODE, WAL - 1), Code.WRONG_AMOUNT),
            (PutStake(NodeId(BOB), WAL), Code.NOT_A_NODE),
            (PutStake(NODE, BALANCE_FROST + 1), Code.UNFUNDED),
        ],
    )
    def test_is_refused(self, chain: Chain, operation: PutStake, code: Code) -> None:
        assert chain.run(OTHER_OWNER, operation) is code

    def test_a_node_that_is_leaving_takes_none(self, chain: Chain) -> None:
        nonce = chain.ledger.account(ALICE).nonce
        agreed = OPERATORS[1].sign(node_message(chain_id=GENESIS.chain_id, sender=ALICE, nonce=nonce))
        assert chain.run(OWNER, RegisterNode(NODE, 0, 1, 1, 0, (), agreed)) is Code.OK
        assert chain.run(OTHER_OWNER, PutStake(NODE, WAL)) is Code.NOT_A_NODE

    def test_is_paid_back_where_the_pools_shares_are_worth_nothing(self, chain: Chain) -> None:
        set_pool(chain, 0)
        before = chain.ledger.account(BOB).balance_frost
        put(chain, WAL)
        chain.end_epoch()
        assert chain.ledger.account(BOB).balance_frost == before
        assert chain.ledger.stakes_of(BOB) == []

    def test_is_paid_back_where_a_share_is_so_dear_that_rounding_takes_a_part_of_it(self, chain: Chain) -> None:
        """Whoever leaves one share in a pool that still earns would have a third of what the next one puts in."""
        shares = node(chain).shares
        assert chain.run(OWNER, Unstake(first_stake_id(NODE), shares - 1)) is Code.OK
        chain.end_epoch()
        set_pool(chain, 100 * WAL)
        assert node(chain).shares == 1
        before = chain.ledger.account(BOB).balance_frost
        dear, fair = put(chain, 199 * WAL), put(chain, 200 * WAL)
        chain.end_epoch()
        assert chain.ledger.stake(dear.stake) is None
        assert found(chain, fair).shares == 2
        assert node(chain).stake_frost == 300 * WAL
        assert chain.ledger.account(BOB).balance_frost == before - 200 * WAL

    def test_is_paid_back_where_it_would_be_more_shares_than_can_be(self, chain: Chain) -> None:
        set_pool(chain, 1)
        before = chain.ledger.account(BOB).balance_frost
        put(chain, WAL)
        chain.end_epoch()
        assert chain.ledger.account(BOB).balance_frost == before


class TestUnstake:
    def test_a_waiting_one_comes_back_at_once(self, chain: Chain) -> None:
        before = chain.ledger.account(BOB).balance_frost
        stake = put(chain, 5 * WAL)
        assert chain.run(OTHER_OWNER, Unstake(stake.stake, 0)) is Code.OK
        assert chain.ledger.stake(stake.stake) is None
        assert chain.ledger.account(BOB).balance_frost == before

    def test_a_waiting_one_that_seats_were_given_for_stays_until_it_can_leave_the_pool(self, chain: Chain) -> None:
        """Else a fortune that is put and taken around the cut-off would buy seats, and have nothing to lose in them."""
        counted = put(chain, 5 * WAL)
        pass_cut_off(chain)
        late = put(chain, 5 * WAL)
        assert chain.run(OTHER_OWNER, Unstake(counted.stake, 0)) is Code.WRONG_PHASE
        assert chain.run(OTHER_OWNER, Unstake(late.stake, 0)) is Code.OK
        chain.end_epoch()
        assert chain.run(OTHER_OWNER, Unstake(counted.stake, 0)) is Code.OK
        assert found(chain, counted).phase is Phase.LEAVING

    def test_an_active_one_leaves_with_the_epoch_and_is_paid_when_unbound(self, chain: Chain) -> None:
        stake = put(chain, 5 * WAL)
        chain.end_epoch()
        assert chain.run(OTHER_OWNER, Unstake(stake.stake, 0)) is Code.OK
        assert found(chain, stake) == Stake(stake.stake, BOB, NODE, Phase.LEAVING, 0, 5 * WAL, turn_epoch=2)
        assert node(chain).shares == 15 * WAL
        chain.end_epoch()
        assert found(chain, stake) == Stake(stake.stake, BOB, NODE, Phase.UNBONDING, 5 * WAL, 0, turn_epoch=4)
        assert (node(chain).stake_frost, node(chain).shares) == (10 * WAL, 10 * WAL)
        chain.end_epoch()
        before = chain.ledger.account(BOB).balance_frost
        chain.end_epoch()
        assert chain.ledger.stake(stake.stake) is None
        assert chain.ledger.account(BOB).balance_frost == before + 5 * WAL

    def test_after_the_cut_off_it_serves_for_one_epoch_more(self, chain: Chain) -> None:
        pass_cut_off(chain)
        assert chain.run(OWNER, Unstake(first_stake_id(NODE), 0)) is Code.OK
        stake = chain.ledger.stake(first_stake_id(NODE))
        assert stake is not None
        assert stake.turn_epoch == 2

    def test_a_part_leaves_as_a_stake_of_its_own(self, chain: Chain) -> None:
        stake = put(chain, 5 * WAL)
        chain.end_epoch()
        signed = sign(chain.ledger, OTHER_OWNER, Unstake(stake.stake, 2 * WAL))
        assert chain.block(signed).receipts[0].code is Code.OK
        part = chain.ledger.stake(StakeId(digest(Level.STAKE, signed.hash)))
        assert part == Stake(StakeId(digest(Level.STAKE, signed.hash)), BOB, NODE, Phase.LEAVING, 0, 2 * WAL, 2)
        assert found(chain, stake) == Stake(stake.stake, BOB, NODE, Phase.ACTIVE, 0, 3 * WAL, 0)
        assert chain.ledger.stakes_of(BOB) == sorted([part, found(chain, stake)], key=lambda one: one.slot)

    def test_the_last_shares_take_all_that_is_in_the_pool(self, chain: Chain) -> None:
        set_pool(chain, 10 * WAL + 7)
        assert chain.run(OWNER, Unstake(first_stake_id(NODE), 0)) is Code.OK
        chain.end_epoch()
        assert (node(chain).stake_frost, node(chain).shares) == (0, 0)

    def test_is_refused(self, chain: Chain) -> None:
        stake = put(chain, 5 * WAL)
        chain.end_epoch()
        assert chain.run(OWNER, Unstake(stake.stake, 0)) is Code.NOT_OWNER
        assert chain.run(OTHER_OWNER, Unstake(StakeId(digest(Level.STAKE, b"")), 0)) is Code.NOT_FOUND
        assert chain.run(OTHER_OWNER, Unstake(stake.stake, 5 * WAL + 1)) is Code.WRONG_AMOUNT
        assert chain.run(OTHER_OWNER, Unstake(stake.stake, 0)) is Code.OK
        assert chain.run(OTHER_OWNER, Unstake(stake.stake, 0)) is Code.WRONG_PHASE
        waiting = put(chain, WAL)
        assert chain.run(OTHER_OWNER, Unstake(waiting.stake, 1)) is Code.WRONG_PHASE

    def test_without_an_unbonding_time_it_is_paid_as_it_leaves(self) -> None:
        genesis = replace(GENESIS, parameters=replace(PARAMETERS, unbonding_epochs=0))
        chain = Chain.begin(genesis)
        assert chain.run(OWNER, Unstake(first_stake_id(NODE), 0)) is Code.OK
        before = chain.ledger.account(ALICE).balance_frost
        chain.end_epoch()
        assert chain.ledger.account(ALICE).balance_frost == before + 10 * WAL
        assert chain.ledger.stake(first_stake_id(NODE)) is None


@settings(max_examples=60, deadline=None)
@given(worth=st.integers(1, 10**13), amount=st.integers(WAL, 10**12 - 10**9))
def test_going_in_and_out_never_gains(worth: int, amount: int) -> None:
    chain = Chain.begin(replace(GENESIS, parameters=replace(PARAMETERS, unbonding_epochs=0)))
    set_pool(chain, worth)
    stake = put(chain, amount)
    chain.end_epoch()
    held = chain.ledger.stake(stake.stake)
    if held is None:  # paid back: the pool's shares are too dear, or too many for their worth
        return
    before = chain.ledger.account(BOB).balance_frost
    assert chain.run(OTHER_OWNER, Unstake(stake.stake, 0)) is Code.OK
    chain.end_epoch()
    assert chain.ledger.account(BOB).balance_frost - before <= amount
