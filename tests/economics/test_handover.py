"""Seats change hands: joins and leaves by stake, who is read from meanwhile, and when it is done."""

from dataclasses import replace

import pytest

from economics.arguments import PutStake, RegisterNode, ReportSync, Reserve, Unstake, node_message
from economics.beginning import first_stake_id
from economics.blob import BlobId
from economics.committee import Committee
from economics.crypto import NodeId
from economics.genesis import FROST_PER_WAL as WAL
from economics.ledger import Code
from economics.nodes import Handover, Stage
from economics.state import BlobSummary
from tests.chain import Chain, key_of, make_id
from tests.small import OPERATORS, OTHER_OWNER, OWNER, make_genesis

PLAIN = make_genesis((3, 3, 3, 3))
GENESIS = replace(
    PLAIN, parameters=replace(PLAIN.parameters, stake_frost_per_shard=10 * WAL, unbonding_epochs=2, capacity_units=400)
)
"""n = 12, f = 3, q = 9."""
JOINER = OPERATORS[6]
NEW = NodeId(JOINER.public)
OLD = [NodeId(key.public) for key in OPERATORS[:4]]
BLOB = BlobId(make_id(1))


def register(chain: Chain, *, capacity_units: int = 1_000, node: int = 6) -> Code:
    owner = OTHER_OWNER if node == 6 else OWNER
    nonce = chain.ledger.account(key_of(owner)).nonce
    message = node_message(chain_id=chain.ledger.genesis.chain_id, sender=key_of(owner), nonce=nonce)
    agreed = OPERATORS[node].sign(message)
    operation = RegisterNode(
        NodeId(OPERATORS[node].public), capacity_units, 1_000, 500, 0, ("/ip4/127.0.0.1/tcp/7",), agreed
    )
    return chain.run(owner, operation)


@pytest.fixture
def chain() -> Chain:
    """Return a chain on which a fifth node has as much stake as each of the four."""
    chain = Chain.begin(GENESIS)
    assert register(chain) is Code.OK
    assert chain.run(OTHER_OWNER, PutStake(NEW, 30 * WAL)) is Code.OK
    return chain


def pass_cut_off(chain: Chain) -> Committee:
    chain.block(after_ms=GENESIS.parameters.epoch_ms // 2)
    assert chain.ledger.next_committee is not None
    return chain.ledger.next_committee


def report(chain: Chain, member: int) -> Code:
    return chain.run(OPERATORS[member], ReportSync(chain.ledger.epoch))


def blob(certified_epoch: int) -> BlobSummary:
    return BlobSummary(BLOB, 1, 1, certified_epoch, ((9, 1),))


class TestJoin:
    def test_with_stake_before_the_cut_off_a_node_has_seats_in_the_next_epoch(self, chain: Chain) -> None:
        chosen = pass_cut_off(chain)
        assert chosen.epoch == 1
        assert [(member.node, member.shards) for member in chosen.members][:4] == [(node, 3) for node in OLD[:2]] + [
            (member.node, member.shards) for member in chosen.members[2:4]
        ]
        assert {member.node: member.shards for member in chosen.members}[NEW] >= 2
        assert chosen.members[-1].addresses == ("/ip4/127.0.0.1/tcp/7",)
        chain.end_epoch()
        assert chain.ledger.committee == chosen

    def test_only_surplus_shards_move(self, chain: Chain) -> None:
        before, chosen = chain.ledger.committee, pass_cut_off(chain)
        gained = {shard for shard in range(12) if chosen.members[chosen.holder(shard)].node == NEW}
        for shard in set(range(12)) - gained:
            old, new = (seats.members[seats.holder(shard)].node for seats in (before, chosen))
            assert old == new

    def test_after_the_cut_off_it_waits_for_an_epoch_more(self) -> None:
        chain = Chain.begin(GENESIS)
        pass_cut_off(chain)
        assert register(chain) is Code.OK
        assert chain.run(OTHER_OWNER, PutStake(NEW, 30 * WAL)) is Code.OK
        chain.end_epoch()
        assert chain.ledger.committee.index_of(NEW) is None
        assert pass_cut_off(chain).index_of(NEW) is not None

    def test_a_node_has_no_more_shards_than_its_disk_holds_of_what_is_sold(self) -> None:
        chain = Chain.begin(GENESIS)
        assert chain.run(OWNER, Reserve(240, 0, 3)) is Code.OK  # 20 units a shard
        assert register(chain, capacity_units=39) is Code.OK
        assert chain.run(OTHER_OWNER, PutStake(NEW, 300 * WAL)) is Code.OK
        chosen = pass_cut_off(chain)
        assert {member.node: member.shards for member in chosen.members}[NEW] == 1

    def test_nobody_has_more_than_f_shards(self, chain: Chain) -> None:
        assert chain.run(OTHER_OWNER, PutStake(NEW, 500 * WAL)) is Code.OK
        assert {member.node: member.shards for member in pass_cut_off(chain).members}[NEW] == 3


class TestLeave:
    def test_without_capacity_a_node_has_no_seat(self, chain: Chain) -> None:
        assert register(chain, capacity_units=0, node=1) is Code.OK
        assert pass_cut_off(chain).index_of(OLD[1]) is None

    def test_without_stake_a_node_has_no_seat(self, chain: Chain) -> None:
        assert chain.run(OWNER, Unstake(first_stake_id(OLD[2]), 0)) is Code.OK
        assert pass_cut_off(chain).index_of(OLD[2]) is None

    def test_the_committee_goes_on_if_the_others_may_not_hold_all(self) -> None:
        chain = Chain.begin(GENESIS)
        assert register(chain, capacity_units=0, node=1) is Code.OK
        assert pass_cut_off(chain) == chain.ledger.committee.in_epoch(1)


class TestHandover:
    @pytest.fixture
    def changed(self, chain: Chain) -> Chain:
        """Return the chain at the beginning of the epoch in which the fifth node has seats."""
        assert register(chain, capacity_units=0, node=0) is Code.OK
        chain.end_epoch()
        assert [member.node for member in chain.ledger.committee.members] == [*OLD[1:], NEW]
        return chain

    def test_who_gains_nothing_has_reported(self, changed: Chain) -> None:
        assert changed.ledger.handover == Handover(1, 1, changed.ledger.height, (0, 1, 2))

    def test_who_gained_reports_after_it_is_done_too(self, changed: Chain) -> None:
        done = changed.ledger.handover.done_height
        assert report(changed, 6) is Code.OK
        assert changed.ledger.handover == Handover(1, 1, done, (0, 1, 2, 3))
        assert report(changed, 6) is Code.ALREADY_REPORTED

    def test_others_than_members_and_other_epochs_do_not_count(self, changed: Chain) -> None:
        assert report(changed, 0) is Code.NOT_MEMBER
        assert changed.run(OPERATORS[6], ReportSync(0)) is Code.WRONG_EPOCH

    def test_an_unchanged_committee_hands_nothing_over(self) -> None:
        chain = Chain.begin(GENESIS)
        chain.end_epoch()
        assert chain.ledger.handover == Handover(0, 0, 0, (0, 1, 2, 3))


class TestLongHandover:
    """Two nodes leave for one that joins: three members gain, and a quorum has to report."""

    @pytest.fixture
    def chain(self) -> Chain:
        plain = make_genesis((2, 2, 2, 2, 2, 2))
        chain = Chain.begin(replace(plain, parameters=GENESIS.parameters))
        for node in (0, 1):
            nonce = chain.ledger.account(key_of(OWNER)).nonce
            message = node_message(chain_id=chain.ledger.genesis.chain_id, sender=key_of(OWNER), nonce=nonce)
            leave = RegisterNode(OLD[node], 0, 1, 1, 0, (), OPERATORS[node].sign(message))
            assert chain.run(OWNER, leave) is Code.OK
        chain.end_epoch()
        assert [member.shards for member in chain.ledger.committee.members] == [3, 3, 3, 3]
        return chain

    def test_old_blobs_are_read_from_the_source_and_new_ones_from_the_new_committee(self, chain: Chain) -> None:
        ledger = chain.ledger
        assert ledger.handover == Handover(1, 0, 0, ())
        source = ledger.committee_of(0)
        assert ledger.readers(blob(0)) == (source, ledger.committee)
        assert ledger.readers(blob(1)) == (ledger.committee,)

    def test_it_is_done_with_a_quorum(self, chain: Chain) -> None:
        assert report(chain, 2) is Code.OK
        assert report(chain, 4) is Code.OK
        assert chain.ledger.handover == Handover(1, 0, 0, (0, 2))
        assert report(chain, 3) is Code.OK
        assert chain.ledger.handover == Handover(1, 1, chain.ledger.height, (0, 1, 2))
        assert chain.ledger.readers(blob(0)) == (chain.ledger.committee,)

    def test_who_never_reported_has_not_reported_in_the_next_one_though_it_gains_nothing(self, chain: Chain) -> None:
        for member in (2, 3, 4):
            assert report(chain, member) is Code.OK
        silent = NodeId(OPERATORS[5].public)
        assert register(chain) is Code.OK
        assert chain.run(OTHER_OWNER, PutStake(NEW, 30 * WAL)) is Code.OK
        before = chain.ledger.committee
        chain.end_epoch()
        committee = chain.ledger.committee
        assert set(committee.shards_of_node(silent)) <= set(before.shards_of_node(silent))
        assert chain.ledger.handover.since_epoch == 2
        reporters = {committee.members[index].node for index in chain.ledger.handover.reporters}
        assert reporters == {NodeId(OPERATORS[member].public) for member in (2, 3, 4)}
        assert report(chain, 5) is Code.OK

    def test_no_seats_are_chosen_and_nobody_is_challenged_until_then(self, chain: Chain) -> None:
        assert chain.run(OWNER, Unstake(first_stake_id(OLD[2]), 0)) is Code.OK
        rounds = chain.ledger.round
        for epoch in (2, 3):
            chain.end_epochs(epoch)
            assert chain.ledger.committee == chain.ledger.committee_of(1).in_epoch(epoch)  # type: ignore[union-attr]
        assert chain.ledger.handover == Handover(1, 0, 0, ())
        assert chain.ledger.round == rounds

    def test_who_has_not_reported_earns_nothing_until_then(self, chain: Chain) -> None:
        assert report(chain, 2) is Code.OK
        assert chain.ledger.handover.reporters == (0,)
        before = [chain.ledger.node(OLD[2]), chain.ledger.node(OLD[3])]
        assert chain.run(OTHER_OWNER, Reserve(1_000 // 12, 1, 2)) is Code.OK
        chain.end_epoch()
        after = [chain.ledger.node(OLD[2]), chain.ledger.node(OLD[3])]
        gains = [new.stake_frost - old.stake_frost for new, old in zip(after, before, strict=True) if new and old]
        assert gains[0] > gains[1] == 0

    def test_the_sources_seats_are_kept_however_long_it_lasts(self, chain: Chain) -> None:
        chain.end_epochs(6)
        assert chain.ledger.committee_of(0) is not None
        assert [epoch for epoch in range(7) if chain.ledger.committee_of(epoch)] == [0, 4, 5, 6]

    def test_seats_are_dealt_anew_after_as_many_epochs_as_a_node_may_be_away(self, chain: Chain) -> None:
        assert chain.run(OWNER, Unstake(first_stake_id(OLD[2]), 0)) is Code.OK
        assert register(chain) is Code.OK
        assert chain.run(OTHER_OWNER, PutStake(NEW, 30 * WAL)) is Code.OK
        chain.end_epochs(7)
        first = chain.ledger.committee
        assert first.index_of(OLD[2]) == 0
        chain.end_epoch()
        ledger = chain.ledger
        assert [ledger.committee.index_of(node) for node in (OLD[2], NEW)] == [None, 3]
        assert ledger.handover == Handover(8, 7, 0, (), older=(Stage(1, 0),))
        source = ledger.committee_of(0)
        assert ledger.readers(blob(0)) == (source, first, ledger.committee)
        assert ledger.readers(blob(7)) == (first, ledger.committee)
        assert ledger.readers(blob(8)) == (ledger.committee,)

    def test_it_is_done_at_once_with_all_that_was_to_be_handed_over_before(self, chain: Chain) -> None:
        assert report(chain, 2) is Code.OK
        assert register(chain) is Code.OK
        assert chain.run(OTHER_OWNER, PutStake(NEW, 30 * WAL)) is Code.OK
        chain.end_epochs(11)
        ledger = chain.ledger
        assert ledger.handover.stages == (Stage(1, 0), Stage(8, 7))
        assert [epoch for epoch in range(12) if ledger.committee_of(epoch)] == [0, 7, 9, 10, 11]
        told = [index for index in range(5) if index not in ledger.handover.reporters]
        for index in told[:-1]:
            assert not ledger.handover.is_done
            key = next(key for key in OPERATORS if key.public == ledger.committee.members[index].node)
            assert chain.run(key, ReportSync(11)) is Code.OK
        assert ledger.handover.is_done
        assert (ledger.handover.older, ledger.handover.done_height) == ((), ledger.height)
        assert ledger.readers(blob(0)) == (ledger.committee,)
        chain.end_epochs(14)
        assert [epoch for epoch in range(15) if chain.ledger.committee_of(epoch)][-3:] == [12, 13, 14]
        assert chain.ledger.committee_of(0) is None
