"""The ledger as a whole: nonces, fees, the genesis state, epochs, what a mempool asks, copies that go on alike."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from economics import ledger as ledger_module
from economics.arguments import Certify, Delete, Merge, Reserve, Transfer
from economics.beginning import first_stake_id
from economics.blob import BlobId
from economics.commitments import Certificate, OwnerStatement
from economics.committee import Committee, Member
from economics.crypto import NodeId, OwnerId
from economics.errors import Reason
from economics.genesis import FROST_MAX, Genesis, GenesisAccount, Parameters
from economics.ledger import Code, Ledger, Receipt
from economics.nodes import Handover, Marks, NodeEntry, Phase, Stake, Standing, Terms
from economics.operations import quote
from economics.slots import account_key, reservation_slot, state_key, terms_slot
from economics.state import Account, Bucket, System
from economics.votes import ZERO_HASH
from p2pnode.keys import Key
from tests import reference
from tests.chain import EXPIRY_HEIGHT, Chain, key_of, made_by, make_header, make_id, reservations_of, sign
from tests.refusals import reason
from tests.small import BALANCE_FROST, OPERATORS, OTHER_OWNER, OWNER, make_genesis

GENESIS = replace(make_genesis(), parameters=replace(make_genesis().parameters, challenge_rounds=0))
STAKE = GENESIS.parameters.stake_frost_per_shard
NEWCOMER = Key(bytes([0x77]) * 32)
ALICE, BOB, NEW = key_of(OWNER), key_of(OTHER_OWNER), key_of(NEWCOMER)


def begin(genesis: Genesis = GENESIS, **parameters: int) -> Chain:
    return Chain.begin(replace(genesis, parameters=replace(genesis.parameters, **parameters)))


@pytest.fixture
def chain() -> Chain:
    return begin()


class TestGenesis:
    def test_has_the_frozen_root(self) -> None:
        accounts = tuple(
            GenesisAccount(OwnerId(bytes([byte]) * 32), balance) for byte, balance in ((0x20, 0), (0x21, 77))
        )
        members = tuple(
            Member(NodeId(bytes([byte]) * 32), OwnerId(bytes([0x21]) * 32), shards, ("/a",))
            for byte, shards in ((1, 3), (2, 4))
        )
        parameters = Parameters(
            stake_frost_per_shard=10, capacity_units=50, storage_frost_per_unit=6, write_frost_per_unit=7
        )
        ledger = Ledger.at_genesis(Genesis("any", 1000, 8, members, accounts, parameters))
        frozen = json.loads((reference.VECTORS / "chain.json").read_text())["genesis_root"]
        assert ledger.root.hex() == frozen
        ledger.verify_supply()

    def test_holds_accounts_members_and_the_supply(self, chain: Chain) -> None:
        ledger = chain.ledger
        assert ledger.account(ALICE) == Account(ALICE, BALANCE_FROST, 0)
        assert ledger.account(NEW) == Account(NEW, 0, 0)
        member = GENESIS.members[0]
        assert ledger.node(member.node) == NodeEntry(
            member.node, ALICE, STAKE, STAKE, 1 << 22, 1_000, 500, 1_000, 1_000, 0, 0, member.addresses
        )
        stake = first_stake_id(member.node)
        assert ledger.stake(stake) == Stake(stake, ALICE, member.node, Phase.ACTIVE, 0, STAKE, 0)
        minted = 10 * BALANCE_FROST + 4 * STAKE
        assert ledger.system == System(0, GENESIS.time_ms, minted, 0)
        assert (ledger.height, ledger.epoch) == (0, 0)
        assert ledger.committee == Committee(0, GENESIS.members)
        assert [member.addresses for member in ledger.committee.members] == [("/ip4/127.0.0.1/tcp/1",)] * 4
        assert (ledger.next_committee, ledger.next_committee_hash) == (None, ZERO_HASH)
        assert ledger.terms == Terms(0, 1 << 24, 1_000, 500)
        assert ledger.handover == Handover(0, 0, 0, (0, 1, 2, 3))
        assert ledger.standing == Standing(0, 0, (Marks(),) * 4)


class TestNonceAndFee:
    def test_a_transfer_moves_the_amount_and_its_fee_goes_to_the_epoch(self, chain: Chain) -> None:
        signed = sign(chain.ledger, OWNER, Transfer(NEW, 7), fee_frost=3_000)
        applied = chain.block(signed)
        assert applied.receipts == (Receipt(signed.hash, ALICE, Code.OK, 3_000),)
        assert chain.ledger.account(ALICE) == Account(ALICE, BALANCE_FROST - 3_007, 1)
        assert chain.ledger.account(NEW) == Account(NEW, 7, 0)
        assert chain.ledger.bucket(0) == Bucket(0, 0, 3_000)

    @pytest.mark.parametrize("nonce", [0, 2, 2**64 - 1])
    def test_a_wrong_nonce_has_no_effect_and_costs_nothing(self, chain: Chain, nonce: int) -> None:
        chain.run(OWNER, Transfer(NEW, 1))
        root = chain.ledger.root
        signed = sign(chain.ledger, OWNER, Transfer(NEW, 1), nonce=nonce)
        assert chain.block(signed).receipts == (Receipt(signed.hash, ALICE, Code.WRONG_NONCE, 0),)
        assert chain.ledger.root == root

    def test_the_same_transaction_again_has_no_effect_in_its_block_or_in_a_later_one(self, chain: Chain) -> None:
        signed = sign(chain.ledger, OWNER, Transfer(NEW, 1))
        codes = [receipt.code for receipt in chain.block(signed, signed).receipts]
        assert codes == [Code.OK, Code.WRONG_NONCE]
        assert chain.block(signed).receipts[0].code is Code.WRONG_NONCE
        assert chain.ledger.account(NEW).balance_frost == 1

    def test_who_cannot_pay_the_fee_pays_nothing(self, chain: Chain) -> None:
        root = chain.ledger.root
        nobody = sign(chain.ledger, NEWCOMER, Transfer(ALICE, 1))
        assert chain.block(nobody).receipts == (Receipt(nobody.hash, NEW, Code.UNFUNDED_FEE, 0),)
        dear = sign(chain.ledger, OWNER, Transfer(NEW, 1), fee_frost=BALANCE_FROST + 1)
        assert chain.block(dear).receipts[0].code is Code.UNFUNDED_FEE
        assert chain.ledger.root == root

    def test_a_balance_of_just_the_fee_and_the_amount_suffices(self, chain: Chain) -> None:
        fee = 5_000
        assert chain.run(OWNER, Transfer(NEW, 2 * fee + 10)) is Code.OK
        short = sign(chain.ledger, NEWCOMER, Transfer(ALICE, fee + 11), fee_frost=fee)
        assert chain.block(short).receipts == (Receipt(short.hash, NEW, Code.UNFUNDED, fee),)
        assert chain.block(sign(chain.ledger, NEWCOMER, Transfer(ALICE, 10), fee_frost=fee)).receipts[0].code is Code.OK
        assert chain.ledger.account(NEW) == Account(NEW, 0, 2)

    def test_a_balance_of_just_the_fee_is_taken_for_it(self, chain: Chain) -> None:
        assert chain.run(OWNER, Transfer(NEW, 5_000)) is Code.OK
        signed = sign(chain.ledger, NEWCOMER, Transfer(ALICE, 1), fee_frost=5_000)
        assert chain.block(signed).receipts == (Receipt(signed.hash, NEW, Code.UNFUNDED, 5_000),)
        assert chain.ledger.account(NEW) == Account(NEW, 0, 1)

    def test_a_failed_operation_leaves_its_fee_and_no_other_trace(self, chain: Chain) -> None:
        """A merge has taken one reservation away by the time it finds that the two do not fit."""
        short, long = chain.reserve(OWNER, Reserve(1, 0, 2)), chain.reserve(OWNER, Reserve(2, 0, 3))
        owned, bucket = reservations_of(chain.ledger, ALICE), chain.ledger.bucket(0)
        fails = sign(chain.ledger, OWNER, Merge(long, short))
        applied = chain.block(fails)
        assert applied.receipts == (Receipt(fails.hash, ALICE, Code.NOT_MERGEABLE, fails.transaction.fee_frost),)
        assert set(applied.changes) == {account_key(ALICE), state_key(bucket.slot)}
        assert chain.ledger.bucket(0).rewards_frost == bucket.rewards_frost + fails.transaction.fee_frost
        assert reservations_of(chain.ledger, ALICE) == owned
        loaded = Ledger.load(GENESIS, items=[data for _, data in chain.ledger.tree.items()], height=3)
        assert reservations_of(loaded, ALICE) == owned

    def test_transactions_of_a_block_are_executed_in_its_order(self, chain: Chain) -> None:
        first = sign(chain.ledger, OWNER, Transfer(NEW, 1_000_000))
        second = sign(chain.ledger, NEWCOMER, Transfer(BOB, 1))
        assert [receipt.code for receipt in chain.block(first, second).receipts] == [Code.OK, Code.OK]
        third, fourth = (
            sign(chain.ledger, OWNER, Transfer(NEW, 1)),
            sign(chain.ledger, OWNER, Transfer(NEW, 1), nonce=2),
        )
        assert [receipt.code for receipt in chain.block(fourth, third).receipts] == [Code.WRONG_NONCE, Code.OK]

    @pytest.mark.parametrize("amount", [BALANCE_FROST, 2**63, 2**64 - 1])
    def test_more_than_there_is_cannot_be_given(self, chain: Chain, amount: int) -> None:
        assert chain.run(OWNER, Transfer(BOB, amount)) is Code.UNFUNDED
        assert chain.ledger.account(BOB).balance_frost == BALANCE_FROST

    def test_nothing_cannot_be_given(self, chain: Chain) -> None:
        assert chain.run(OWNER, Transfer(NEW, 0)) is Code.WRONG_AMOUNT

    def test_to_oneself_changes_nothing_but_fee_and_nonce(self, chain: Chain) -> None:
        signed = sign(chain.ledger, OWNER, Transfer(ALICE, BALANCE_FROST - 5_000), fee_frost=5_000)
        assert chain.block(signed).receipts[0].code is Code.OK
        assert chain.ledger.account(ALICE) == Account(ALICE, BALANCE_FROST - 5_000, 1)

    def test_all_there_can_ever_be_fits_one_account(self) -> None:
        stakes = 4 * GENESIS.parameters.stake_frost_per_shard
        richest = (GenesisAccount(ALICE, FROST_MAX - stakes - 10**6), GenesisAccount(BOB, 10**6))
        chain = begin(replace(GENESIS, accounts=tuple(sorted(richest, key=lambda account: account.key))))
        assert chain.run(OTHER_OWNER, Transfer(ALICE, 10**6 - 3_000)) is Code.OK
        assert chain.run(OWNER, Transfer(BOB, 2**63)) is Code.UNFUNDED


class TestBlock:
    def test_of_another_height_or_epoch_or_with_an_expired_transaction_is_ours_to_prevent(self, chain: Chain) -> None:
        signed = sign(chain.ledger, OWNER, Transfer(NEW, 1))
        expired = replace(signed, transaction=replace(signed.transaction, expiry_height=1))
        header = make_header(chain.ledger, [signed], time_ms=GENESIS.time_ms + 1)
        for wrong, transactions in (
            (replace(header, height=2), [signed]),
            (replace(header, epoch=1), [signed]),
            (header, []),
            (header, [expired]),
        ):
            with pytest.raises(AssertionError):
                chain.ledger.fork().apply(wrong, transactions)

    def test_says_what_changed_and_only_that(self, chain: Chain) -> None:
        before = dict(chain.ledger.tree.items())
        applied = chain.block(
            sign(chain.ledger, OWNER, Transfer(NEW, 1)), sign(chain.ledger, OTHER_OWNER, Transfer(BOB, 1))
        )
        after = dict(chain.ledger.tree.items())
        changed = {key: after.get(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert applied.changes == changed
        assert account_key(NEW) in changed

    def test_without_transactions_changes_nothing(self, chain: Chain) -> None:
        root = chain.ledger.root
        assert not chain.block().changes
        assert (chain.ledger.root, chain.ledger.height) == (root, 1)

    def test_what_comes_and_goes_within_a_block_is_no_change(self, chain: Chain) -> None:
        reserve = sign(chain.ledger, OWNER, Reserve(4, 0, 1))
        applied = chain.block(reserve, after_ms=GENESIS.parameters.epoch_ms)
        assert applied.epoch_ended
        assert reservations_of(chain.ledger, ALICE) == []
        assert state_key(reservation_slot(made_by(reserve))) not in applied.changes


class TestEpochs:
    def test_end_with_the_first_block_that_is_dated_late_enough(self, chain: Chain) -> None:
        chain.block(after_ms=GENESIS.parameters.epoch_ms - 1)
        assert chain.ledger.epoch == 0
        assert chain.block(after_ms=1).epoch_ended
        assert chain.ledger.system.epoch_start_ms == chain.time_ms == GENESIS.time_ms + GENESIS.parameters.epoch_ms
        assert (chain.ledger.epoch, chain.ledger.committee.epoch) == (1, 1)
        assert not chain.block(after_ms=1).epoch_ended

    def test_the_first_block_of_their_second_half_fixes_the_next_one(self, chain: Chain) -> None:
        half_ms = GENESIS.parameters.epoch_ms // 2
        chain.block(after_ms=half_ms - 1)
        assert (chain.ledger.cut_off_passed, chain.ledger.next_committee) == (False, None)
        chain.block(after_ms=1)
        following = Committee(1, GENESIS.members)
        assert (chain.ledger.cut_off_passed, chain.ledger.next_committee) == (True, following)
        assert chain.ledger.next_committee_hash == following.hash
        assert chain.ledger.tree.get(state_key(terms_slot(1))) == Terms(1, 1 << 24, 1_000, 500).encode()
        assert not chain.block(after_ms=1).changes
        chain.block(after_ms=half_ms)
        assert (chain.ledger.committee, chain.ledger.next_committee) == (following, None)

    def test_end_one_at_a_time_however_long_the_network_stood_still(self, chain: Chain) -> None:
        chain.block(after_ms=10 * GENESIS.parameters.epoch_ms)
        assert (chain.ledger.epoch, chain.ledger.system.epoch_start_ms) == (1, chain.time_ms)

    def test_the_block_that_ends_one_is_still_executed_in_it(self, chain: Chain) -> None:
        signed = sign(chain.ledger, OWNER, Reserve(1, 0, 2))
        applied = chain.block(signed, after_ms=GENESIS.parameters.epoch_ms)
        assert applied.receipts[0].code is Code.OK
        assert applied.epoch_ended
        [reservation] = reservations_of(chain.ledger, ALICE)
        assert (reservation.start_epoch, reservation.end_epoch) == (0, 2)


class TestMempool:
    """`verify_admissible` takes what the next block, or one soon after, may hold."""

    def test_takes_the_next_nonces_and_no_others(self, chain: Chain) -> None:
        chain.run(OWNER, Transfer(NEW, 1))
        for nonce in (1, 2, 17):
            chain.ledger.verify_admissible(sign(chain.ledger, OWNER, Transfer(NEW, 1), nonce=nonce), nonce_ahead_max=16)
        for nonce in (0, 18, 2**64 - 1):
            signed = sign(chain.ledger, OWNER, Transfer(NEW, 1), nonce=nonce)
            assert reason(chain.ledger.verify_admissible, signed, nonce_ahead_max=16) is Reason.WRONG_NONCE

    def test_refuses_who_cannot_pay_the_fee(self, chain: Chain) -> None:
        signed = sign(chain.ledger, NEWCOMER, Transfer(ALICE, 1))
        assert reason(chain.ledger.verify_admissible, signed, nonce_ahead_max=16) is Reason.UNFUNDED

    def test_refuses_what_the_next_block_may_not_hold(self, chain: Chain) -> None:
        signed = sign(chain.ledger, OWNER, Transfer(NEW, 1))
        for expiry_height, want in ((1, Reason.EXPIRED), (2, None)):
            dated = replace(signed, transaction=replace(signed.transaction, expiry_height=expiry_height))
            if want:
                assert reason(chain.ledger.verify_admissible, dated, nonce_ahead_max=16) is want
            else:
                chain.ledger.verify_admissible(dated, nonce_ahead_max=16)
                chain.block(dated)


def certified(chain: Chain) -> Certificate:
    """Return a certificate that the next block may take, over a reservation of Alice's."""
    reservation = chain.reserve(OWNER, Reserve(10, chain.ledger.epoch, chain.ledger.epoch + 5))
    statement = OwnerStatement(
        GENESIS.chain_id, ALICE, reservation, BlobId(make_id(1)), 1500, True, bytes(16), EXPIRY_HEIGHT
    )
    return chain.certificate(statement, OWNER)


class TestCertificates:
    def test_one_that_holds_is_not_checked_again(self, chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
        certificate = certified(chain)
        chain.ledger.verify_certificate(certificate)
        monkeypatch.delattr(Certificate, "verify")
        assert chain.run(OTHER_OWNER, Certify(certificate)) is Code.OK

    def test_one_that_does_not_hold_is_refused_each_time(self, chain: Chain) -> None:
        certificate = replace(certified(chain), signatures=())
        for _ in range(2):
            assert reason(chain.ledger.verify_certificate, certificate) is Reason.NO_QUORUM

    def test_one_of_the_last_epoch_is_refused_even_if_it_held_then(self, chain: Chain) -> None:
        certificate = certified(chain)
        chain.ledger.verify_certificate(certificate)
        chain.end_epoch()
        assert reason(chain.ledger.verify_certificate, certificate) is Reason.WRONG_EPOCH

    def test_the_oldest_are_forgotten_first(self, chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ledger_module, "CERTIFICATES_KEPT_MAX", 2)
        first = certified(chain)
        salted = [replace(first.statement, salt=bytes([index]) * 16) for index in range(3)]
        certificates = [chain.certificate(statement, OWNER) for statement in salted]
        for certificate in certificates:
            chain.ledger.verify_certificate(certificate)
        checked: list[Certificate] = []
        monkeypatch.setattr(Certificate, "verify", lambda self, **_: checked.append(self))
        for certificate in reversed(certificates):
            chain.ledger.verify_certificate(certificate)
        assert checked == certificates[:1]


def bustle(chain: Chain) -> None:
    """Put something of every kind into the state."""
    chain.run(OTHER_OWNER, Certify(certified(chain)))
    chain.run(OTHER_OWNER, Transfer(NEW, 5))


def copies(ledger: Ledger) -> list[Ledger]:
    values = [data for _, data in ledger.tree.items()]
    return [
        ledger.fork(),
        Ledger.load(ledger.genesis, items=values, height=ledger.height),
        Ledger.load(ledger.genesis, items=reversed(values), height=ledger.height),
    ]


class TestCopies:
    def test_a_copy_is_the_same_and_goes_on_alike(self, chain: Chain) -> None:
        bustle(chain)
        for copied in copies(chain.ledger):
            other = Chain(copied, chain.time_ms)
            assert (other.ledger.root, other.ledger.height) == (chain.ledger.root, chain.ledger.height)
            assert other.ledger.entries_of(ALICE) == chain.ledger.entries_of(ALICE)
            assert list(other.ledger.live_blobs()) == list(chain.ledger.live_blobs())
            twin = Chain(chain.ledger.fork(), chain.time_ms)
            for _ in range(6):
                assert other.end_epoch().changes == twin.end_epoch().changes
                assert other.ledger.root == twin.ledger.root

    def test_what_a_fork_does_the_first_never_sees(self, chain: Chain) -> None:
        bustle(chain)
        root, entries = chain.ledger.root, chain.ledger.entries_of(ALICE)
        fork = Chain(chain.ledger.fork(), chain.time_ms)
        fork.run(OWNER, Delete(entries[0].blob_id, entries[0].reservation))
        fork.end_epoch()
        assert fork.ledger.entries_of(ALICE) == []
        assert (chain.ledger.root, chain.ledger.entries_of(ALICE)) == (root, entries)
        assert len(list(chain.ledger.live_blobs())) == 1

    @pytest.mark.parametrize(
        "spoil",
        [
            *(lambda values, kind=kind: [data for data in values if data[0] != kind] for kind in (9, 10, 11, 13, 15)),
            lambda values: [*values, values[-1]],
            lambda values: [*values, b"\x00"],
        ],
    )
    def test_values_that_are_no_state_are_refused(
        self, chain: Chain, spoil: Callable[[list[bytes]], list[bytes]]
    ) -> None:
        values = [data for _, data in chain.ledger.tree.items()]
        assert reason(Ledger.load, GENESIS, items=spoil(values), height=0) is Reason.MALFORMED


def test_a_price_is_known_before_it_is_paid(chain: Chain) -> None:
    before = chain.ledger.account(ALICE).balance_frost
    signed = sign(chain.ledger, OWNER, Reserve(3, 1, 8))
    chain.block(signed)
    spent = before - chain.ledger.account(ALICE).balance_frost - signed.transaction.fee_frost
    assert spent == quote(chain.ledger.terms, units=3, epochs=7) == 3 * (7 * 1_000 + 500)


def test_an_unbalanced_ledger_is_noticed(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("economics.operations.add_rewards", lambda *_: None)
    with pytest.raises(AssertionError):
        chain.run(OWNER, Transfer(NEW, 1))


def test_operators_are_accounts_as_others_are(chain: Chain) -> None:
    assert chain.run(OPERATORS[0], Transfer(NEW, 1)) is Code.OK
