"""Joining pays once for what it takes, leaving takes it back, and neither lets a node in that has no chance."""

from dataclasses import replace

import pytest
import trio.testing

from economics.crypto import NodeId, OwnerId
from economics.genesis import FROST_PER_WAL
from economics.geometry import STORAGE_UNIT_BYTES
from economics.nodes import Phase
from p2pnode.clients import enrolment
from p2pnode.clients.enrolment import OPERATOR_FROST, Bid, Demand, Offer, Owed
from p2pnode.clients.overview import find_overview
from p2pnode.clients.payments import Order, reserve_for
from p2pnode.errors import ConfigError, InputError, SpaceError, Unpaid
from p2pnode.keys import Key
from tests.p2pnode.ledgerchain import LedgerChain
from tests.small import BALANCE_FROST, OTHER_OWNER, OWNER, make_genesis

GENESIS = make_genesis()
NEW = Key(bytes([0x91]) * 32)
NODE = NodeId(NEW.public)
SELF = OwnerId(OWNER.public)
OFFER = Offer(1 << 20, 1_000, 500, 1_000, ("/ip4/10.0.0.9/tcp/4001",))
BID = Bid(FROST_PER_WAL, OFFER)


@pytest.fixture
def chain() -> LedgerChain:
    return LedgerChain(GENESIS)


def spent(chain: LedgerChain) -> int:
    return BALANCE_FROST - chain.ledger.account(SELF).balance_frost


async def join(chain: LedgerChain, bid: Bid = BID) -> int:
    """Join, and return what was planned to be paid."""
    steps = await enrolment.plan_joining(chain, SELF, NODE, bid)
    await enrolment.join(chain, OWNER, NEW, bid, steps)
    return steps.total_frost


class TestJoining:
    async def test_costs_what_was_planned(self, chain: LedgerChain) -> None:
        planned = await join(chain)
        assert spent(chain) == planned
        entry = await enrolment.find_node(chain, NODE)
        assert entry is not None
        assert (entry.owner, enrolment.offer_of(entry)) == (SELF, OFFER)
        assert chain.ledger.account(OwnerId(NODE)).balance_frost == OPERATOR_FROST
        assert [(one.node, one.frost, one.phase) for one in chain.ledger.stakes_of(SELF) if one.node == NODE] == [
            (NODE, FROST_PER_WAL, Phase.WAITING)
        ]

    async def test_again_costs_nothing(self, chain: LedgerChain) -> None:
        await join(chain)
        steps = await enrolment.plan_joining(chain, SELF, NODE, BID)
        assert (steps.total_frost, steps.register) == (0, False)
        assert str(steps) == "nothing: all of it is there"

    async def test_again_with_more_stake_adds_what_is_missing(self, chain: LedgerChain) -> None:
        await join(chain)
        steps = await enrolment.plan_joining(chain, SELF, NODE, replace(BID, stake_frost=5 * FROST_PER_WAL))
        assert (steps.register, steps.stake_frost, steps.fund_frost) == (False, 4 * FROST_PER_WAL, 0)

    async def test_without_the_money_pays_nothing(self, chain: LedgerChain) -> None:
        bid = replace(BID, stake_frost=BALANCE_FROST)
        with pytest.raises(Unpaid):
            await join(chain, bid)
        assert spent(chain) == 0

    async def test_of_anothers_node_is_refused(self, chain: LedgerChain) -> None:
        await join(chain)
        with pytest.raises(InputError, match="another owner's"):
            await enrolment.plan_joining(chain, OwnerId(OTHER_OWNER.public), NODE, BID)

    async def test_with_less_than_a_stake_is_refused(self, chain: LedgerChain) -> None:
        with pytest.raises(InputError, match="at least 1 WAL"):
            await enrolment.plan_joining(chain, SELF, NODE, replace(BID, stake_frost=FROST_PER_WAL - 1))

    async def test_needs_room_for_one_shard_of_what_is_sold(self, chain: LedgerChain) -> None:
        assert await enrolment.find_demand(chain) == Demand(0, 0)
        await reserve_for(chain, OWNER, units=10, order=Order(epochs=3))
        demand = await enrolment.find_demand(chain)
        assert demand == Demand(10 * STORAGE_UNIT_BYTES // 4, 10)
        enrolment.verify_room(demand, capacity_bytes=demand.shard_bytes, free_bytes=1 << 40)
        with pytest.raises(SpaceError, match="--capacity is"):
            enrolment.verify_room(demand, capacity_bytes=demand.shard_bytes - 1, free_bytes=1 << 40)
        with pytest.raises(SpaceError, match="the disk's free space is"):
            enrolment.verify_room(demand, capacity_bytes=1 << 40, free_bytes=demand.shard_bytes - 1)

    async def test_takes_more_stake_than_a_member_has_for_its_last_shard(self, chain: LedgerChain) -> None:
        least = await enrolment.find_seat_frost(chain)
        assert least == chain.genesis.parameters.stake_frost_per_shard + 1

    @pytest.mark.parametrize(("ahead_ms", "is_right"), [(0, True), (-5_000, True), (-5_001, False), (25_001, False)])
    async def test_needs_the_chains_clock(self, chain: LedgerChain, ahead_ms: int, is_right: bool) -> None:
        chain.apply()
        now_ms = (await chain.head()).time_ms + ahead_ms
        if is_right:
            await enrolment.verify_clock(chain, now_ms)
        else:
            with pytest.raises(ConfigError, match="set it by a time server"):
                await enrolment.verify_clock(chain, now_ms)


class TestLeaving:
    async def test_takes_the_stakes_back_and_offers_nothing(self, chain: LedgerChain) -> None:
        await join(chain)
        await enrolment.leave(chain, OWNER, NEW)
        entry = await enrolment.find_node(chain, NODE)
        assert entry is not None
        assert enrolment.offer_of(entry) == replace(OFFER, capacity_units=0)
        assert [one for one in chain.ledger.stakes_of(SELF) if one.node == NODE] == []  # it was waiting still

    async def test_of_a_node_that_is_not_ones_own_is_refused(self, chain: LedgerChain) -> None:
        await join(chain)
        with pytest.raises(InputError, match="is owned by"):
            await enrolment.leave(chain, OTHER_OWNER, NEW)

    async def test_is_over_when_nobody_needs_the_nodes_slivers(
        self, chain: LedgerChain, autojump_clock: trio.testing.MockClock
    ) -> None:
        told: list[Owed] = []
        member = GENESIS.members[0].node
        assert await enrolment.find_owed(chain, member) == Owed(0, 1, None, True)
        assert await enrolment.wait_until_free(chain, NODE, tell=told.append) == Owed(0, 0, None, True)
        assert told == []
        assert [Owed(1, 0, 1, True).is_nothing, Owed(1, 0, 0, False).is_nothing] == [False, False]

    def test_says_why_it_takes_time(self) -> None:
        assert str(Owed(1, 3, None, True)) == "epoch 1: 3 shards, in the next one not fixed yet"
        assert "being handed over" in str(Owed(1, 3, 3, False))
        assert "too few or too full" in str(Owed(1, 3, 3, True))


class TestStakes:
    async def test_are_put_and_taken(self, chain: LedgerChain) -> None:
        put, _ = await enrolment.put_stake(chain, OWNER, GENESIS.members[1].node, 2 * FROST_PER_WAL)
        held = chain.ledger.stake(put)
        assert held is not None
        assert (held.owner, held.frost) == (SELF, 2 * FROST_PER_WAL)
        await enrolment.take_stake(chain, OWNER, put, 0)
        assert chain.ledger.stake(put) is None

    async def test_on_nobody_and_of_others_are_refused(self, chain: LedgerChain) -> None:
        with pytest.raises(InputError, match="offers nothing"):
            await enrolment.put_stake(chain, OWNER, NODE, FROST_PER_WAL)
        put, _ = await enrolment.put_stake(chain, OWNER, GENESIS.members[1].node, FROST_PER_WAL)
        with pytest.raises(InputError, match="has no stake"):
            await enrolment.take_stake(chain, OTHER_OWNER, put, 0)
        with pytest.raises(InputError, match="0 shares"):
            await enrolment.take_stake(chain, OWNER, put, 1)


async def test_an_overview_is_what_the_ledger_says(chain: LedgerChain) -> None:
    found = await find_overview(chain)
    ledger = chain.ledger
    assert (found.committee, found.following, found.terms) == (ledger.committee, None, ledger.terms)
    assert (found.handover, found.standing, found.round) == (ledger.handover, ledger.standing, None)
    assert list(found.nodes) == [member.node for member in GENESIS.members]
    assert found.reported_shards == 4
