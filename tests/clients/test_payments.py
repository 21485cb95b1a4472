"""Amounts are exact; a quote is what is then paid; nothing is paid in vain, and nothing over what was agreed."""

from dataclasses import replace
from functools import partial

import pytest

from economics import operations
from economics.arguments import CertifyAgain, Reserve, Transfer
from economics.blob import BlobId
from economics.committee import Committee
from economics.crypto import OwnerId
from economics.genesis import FROST_MAX, FROST_PER_WAL
from economics.state import Reservation
from p2pnode.clients import payments
from p2pnode.clients.payments import (
    Order,
    Quote,
    format_amount,
    keep_live,
    parse_amount,
    quote,
    reserve_for,
    signers_max,
)
from p2pnode.errors import ExitCode, InputError, TransactionFailed, Unavailable, Unpaid
from p2pnode.keys import Key
from tests.chain import reservations_of
from tests.p2pnode.ledgerchain import LedgerChain
from tests.small import BALANCE_FROST, OTHER_OWNER, OWNER, make_blob, make_genesis

GENESIS = make_genesis()
UNITS = GENESIS.code.encoded_units(5_000)
SELF = OwnerId(OWNER.public)
OTHER = OwnerId(OTHER_OWNER.public)
POOR = Key(bytes([0x77]) * 32)


@pytest.fixture
def chain() -> LedgerChain:
    return LedgerChain(GENESIS)


def spent(chain: LedgerChain, owner: OwnerId = SELF) -> int:
    return BALANCE_FROST - chain.ledger.account(owner).balance_frost


class TestAmount:
    @pytest.mark.parametrize(
        ("text", "frost"),
        [
            ("1.5", 1_500_000_000),
            ("0.000000001", 1),
            ("1", FROST_PER_WAL),
            ("0", 0),
            ("2 WAL", 2 * FROST_PER_WAL),
            ("1500000frost", 1_500_000),
            ("7 FROST", 7),
            ("0.1", 100_000_000),
            ("9223372036.854775807", FROST_MAX),
        ],
    )
    def test_is_read_exactly(self, text: str, frost: int) -> None:
        assert parse_amount(text) == frost

    @pytest.mark.parametrize(
        "text", ["", "-1", "1.", ".5", "1e3", "1,5", "1.0000000001", "1.5frost", "nan", "0x1", "٣", "9223372037", "1_0"]
    )
    def test_that_is_none_is_refused(self, text: str) -> None:
        with pytest.raises(InputError):
            parse_amount(text)

    @pytest.mark.parametrize("frost", [0, 1, 10, FROST_PER_WAL, 1_500_000_000, 123_456_789_012_345_678, FROST_MAX])
    def test_is_shown_so_that_it_reads_back(self, frost: int) -> None:
        assert parse_amount(format_amount(frost)) == frost

    def test_is_shown_without_needless_zeros(self) -> None:
        assert [format_amount(frost) for frost in (1_500_000_000, 10 * FROST_PER_WAL)] == ["1.5 WAL", "10 WAL"]


class TestQuote:
    async def test_is_what_reserving_and_certifying_cost(self, chain: LedgerChain) -> None:
        blob = make_blob(GENESIS.code, 5_000)
        quoted = quote(GENESIS, await chain.seats(), units=UNITS, epochs=3)
        reserved = await reserve_for(chain, OWNER, units=UNITS, order=Order(epochs=3))
        assert spent(chain) == reserved.cost_frost
        await chain.certify(blob, reserved.reservation)
        assert spent(chain) == quoted.total_frost
        assert quoted.storage_frost + quoted.write_frost == operations.quote(chain.ledger.terms, units=UNITS, epochs=3)

    def test_names_its_parts(self) -> None:
        assert str(Quote(10**9, 0, 5)) == "1.000000005 WAL (1 WAL storage, 0.000000005 WAL fees)"

    @pytest.mark.parametrize("shards", [(1, 1, 1, 1), (2, 1, 1), (3, 3, 1), (5, 1, 1, 1, 1, 1), (10,), (3,) * 7])
    def test_counts_no_fewer_signers_than_a_certificate_can_need(self, shards: tuple[int, ...]) -> None:
        committee = make_genesis(shards).committee
        assert largest_minimal_quorum(committee) <= signers_max(committee) <= len(shards)

    @pytest.mark.parametrize(("shards", "signers"), [((1, 1, 1, 1), 3), ((3,) * 7, 5), ((10,), 1)])
    def test_counts_just_these_where_members_are_alike(self, shards: tuple[int, ...], signers: int) -> None:
        committee = make_genesis(shards).committee
        assert signers_max(committee) == largest_minimal_quorum(committee) == signers


def largest_minimal_quorum(committee: Committee) -> int:
    """Return the size of the largest set that is a quorum and would not be without any one member: by trying all."""
    shares = [member.shards for member in committee.members]
    sizes = []
    for chosen in range(1 << len(shares)):
        taken = [share for index, share in enumerate(shares) if chosen >> index & 1]
        if sum(taken) >= committee.quorum and sum(taken) - min(taken) < committee.quorum:
            sizes.append(len(taken))
    return max(sizes)


class TestReserving:
    async def test_buys_from_this_epoch_on(self, chain: LedgerChain) -> None:
        chain.apply(ends_epoch=True)
        heard: list[Quote] = []
        reserved = await reserve_for(chain, OWNER, units=UNITS, order=Order(epochs=2, on_quote=heard.append))
        assert reservations_of(chain.ledger, SELF) == [Reservation(reserved.reservation, SELF, UNITS, 1, 3)]
        assert heard == [quote(GENESIS, await chain.seats(), units=UNITS, epochs=2)]

    async def test_takes_storage_that_the_owner_holds(self, chain: LedgerChain) -> None:
        held = await reserve_for(chain, OWNER, units=10 * UNITS, order=Order(epochs=5))
        paid = spent(chain)
        again = await reserve_for(chain, OWNER, units=UNITS, order=Order(epochs=4, max_cost_frost=10**5))
        assert again == replace(held, cost_frost=0, units_left=9 * UNITS)
        assert spent(chain) == paid

    @pytest.mark.parametrize(("units", "epochs"), [(UNITS + 1, 5), (UNITS, 6)])
    async def test_takes_none_that_is_too_small_or_too_short(self, chain: LedgerChain, units: int, epochs: int) -> None:
        held = await reserve_for(chain, OWNER, units=UNITS, order=Order(epochs=5))
        fresh = await reserve_for(chain, OWNER, units=units, order=Order(epochs=epochs))
        assert fresh.reservation != held.reservation
        assert fresh.cost_frost > 0

    def test_takes_what_wastes_least(self) -> None:
        def held(name: int, *, units: int, start: int, end: int) -> Reservation:
            return Reservation(bytes([name]) * 32, SELF, units, start, end)  # type: ignore[arg-type]

        later = held(1, units=9, start=0, end=9)
        large = held(2, units=9, start=0, end=5)
        small = held(3, units=8, start=0, end=5)
        future = held(4, units=8, start=1, end=5)
        few = held(5, units=7, start=0, end=5)
        found = payments.best_reservation([later, large, small, future, few], epoch=0, units=8, epochs=5)
        assert found == small

    async def test_pays_nothing_over_what_was_agreed(self, chain: LedgerChain) -> None:
        price = quote(GENESIS, await chain.seats(), units=UNITS, epochs=3).total_frost
        with pytest.raises(Unpaid, match=r"--max-cost says .*: nothing was paid") as fault:
            await reserve_for(chain, OWNER, units=UNITS, order=Order(epochs=3, max_cost_frost=price - 1))
        assert fault.value.exit_code == ExitCode.UNPAID
        assert spent(chain) == 0
        await reserve_for(chain, OWNER, units=UNITS, order=Order(epochs=3, max_cost_frost=price))

    async def test_needs_the_price_in_the_wallet(self, chain: LedgerChain) -> None:
        price = quote(GENESIS, await chain.seats(), units=UNITS, epochs=3).total_frost
        await chain.transact(OWNER, Transfer(OwnerId(POOR.public), price - 1))
        with pytest.raises(Unpaid, match=r"the wallet has .*wallet show.*faucet"):
            await reserve_for(chain, POOR, units=UNITS, order=Order(epochs=3))
        await chain.transact(OWNER, Transfer(OwnerId(POOR.public), 1))
        await reserve_for(chain, POOR, units=UNITS, order=Order(epochs=3))

    async def test_tries_again_when_the_epoch_ends_meanwhile(self, chain: LedgerChain) -> None:
        chain.ends_epoch_before_next = True
        reserved = await reserve_for(chain, OWNER, units=UNITS, order=Order(epochs=2))
        assert reserved.end_epoch == 3
        assert [row.code for row in chain.rows] == ["wrong_epochs", "ok"]

    async def test_says_when_the_network_is_full(self, chain: LedgerChain) -> None:
        await chain.transact(OWNER, Reserve(GENESIS.parameters.capacity_units, 1, 2))
        with pytest.raises(TransactionFailed, match="over_capacity: the network has not as much storage") as fault:
            await reserve_for(chain, OWNER, units=1, order=Order(epochs=2))
        assert fault.value.exit_code == ExitCode.REFUSED


class TestLiveBlob:
    @pytest.fixture
    async def live(self, chain: LedgerChain) -> BlobId:
        """A blob that the owner keeps for two epochs."""
        blob = make_blob(GENESIS.code, 5_000)
        reserved = await reserve_for(chain, OWNER, units=UNITS, order=Order(epochs=2))
        await chain.certify(blob, reserved.reservation)
        return blob.header.blob_id

    async def keep(self, chain: LedgerChain, key: Key, blob_id: BlobId, order: Order) -> tuple[int, int, int]:
        """Return the end epoch, the number of transactions and their cost, which must be what was said."""
        blob = chain.ledger.blob(blob_id)
        assert blob is not None
        owner = OwnerId(key.public)
        rows, before = len(chain.rows), chain.ledger.account(owner).balance_frost
        kept = await keep_live(chain, key, blob, order=order)
        assert kept.transactions == len(chain.rows) - rows
        assert kept.cost_frost == before - chain.ledger.account(owner).balance_frost
        return kept.end_epoch, kept.transactions, kept.cost_frost

    async def test_that_is_kept_as_long_already_costs_nothing(self, chain: LedgerChain, live: BlobId) -> None:
        assert await self.keep(chain, OWNER, live, Order(epochs=2)) == (2, 0, 0)

    async def test_of_one_s_own_is_extended_with_one_transaction(self, chain: LedgerChain, live: BlobId) -> None:
        end, transactions, _ = await self.keep(chain, OWNER, live, Order(epochs=5))
        assert (end, transactions) == (5, 1)
        assert [entry.end_epoch for entry in chain.ledger.entries_of(SELF)] == [5]

    async def test_of_another_is_kept_too_with_one_transaction_where_there_is_storage(
        self, chain: LedgerChain, live: BlobId
    ) -> None:
        await reserve_for(chain, OTHER_OWNER, units=UNITS, order=Order(epochs=3))
        end, transactions, _ = await self.keep(chain, OTHER_OWNER, live, Order(epochs=3))
        assert (end, transactions) == (3, 1)
        assert isinstance(chain.rows[-1].signed.transaction.operation, CertifyAgain)
        assert len(chain.ledger.entries_of(OTHER)) == 1

    async def test_of_another_needs_storage_bought_first(self, chain: LedgerChain, live: BlobId) -> None:
        assert (await self.keep(chain, OTHER_OWNER, live, Order(epochs=3)))[:2] == (3, 2)

    async def test_that_shall_be_permanent_gets_an_entry_that_is(self, chain: LedgerChain, live: BlobId) -> None:
        await self.keep(chain, OWNER, live, Order(epochs=2, deletable=False))
        assert sorted(entry.deletable for entry in chain.ledger.entries_of(SELF)) == [False, True]

    async def test_is_not_extended_over_what_was_agreed(self, chain: LedgerChain, live: BlobId) -> None:
        blob = chain.ledger.blob(live)
        assert blob is not None
        with pytest.raises(Unpaid):
            await keep_live(chain, OWNER, blob, order=Order(epochs=5, max_cost_frost=1))

    async def test_is_extended_by_what_one_says_for_what_was_quoted(self, chain: LedgerChain, live: BlobId) -> None:
        before, heard = spent(chain), list[Quote]()
        done = await payments.extend(chain, OWNER, live, epochs=4, max_cost_frost=None, on_quote=heard.append)
        assert done.end_epoch == 6
        assert spent(chain) - before == done.cost_frost == heard[0].total_frost

    async def test_is_not_extended_further_than_storage_is_sold_and_that_costs_nothing(
        self, chain: LedgerChain, live: BlobId
    ) -> None:
        paid, heard = spent(chain), list[Quote]()
        keep = partial(payments.extend, chain, OWNER, live, max_cost_frost=None, on_quote=heard.append)
        with pytest.raises(InputError, match=r"until epoch 2 already, and .* for 53 epochs ahead: .* for 51 more$"):
            await keep(epochs=52)
        assert (spent(chain), heard) == (paid, [])
        assert (await keep(epochs=51)).end_epoch == 53
        with pytest.raises(InputError, match=r"for none more now$"):
            await keep(epochs=1)

    async def test_of_one_s_own_is_deleted_and_its_storage_stored_into_again(
        self, chain: LedgerChain, live: BlobId
    ) -> None:
        await payments.delete(chain, OWNER, live)
        assert chain.ledger.blob(live) is None
        assert (await reserve_for(chain, OWNER, units=UNITS, order=Order(epochs=2))).cost_frost == 0

    async def test_that_is_permanent_is_not_deleted(self, chain: LedgerChain) -> None:
        blob = make_blob(GENESIS.code, 5_000)
        reserved = await reserve_for(chain, OWNER, units=UNITS, order=Order(epochs=2))
        await chain.certify(blob, reserved.reservation, deletable=False)
        paid = spent(chain)
        with pytest.raises(InputError, match="--permanent: it stays until it expires"):
            await payments.delete(chain, OWNER, blob.header.blob_id)
        assert spent(chain) == paid

    async def test_of_another_is_neither_extended_nor_deleted(self, chain: LedgerChain, live: BlobId) -> None:
        with pytest.raises(InputError, match=r"keeps no blob .*p2pnode list"):
            await payments.delete(chain, OTHER_OWNER, live)
        with pytest.raises(InputError, match="keeps no blob"):
            await payments.extend(chain, OTHER_OWNER, live, epochs=1, max_cost_frost=None, on_quote=lambda quoted: None)

    async def test_tells_how_long_it_is_kept(self, chain: LedgerChain, live: BlobId) -> None:
        chain.apply(ends_epoch=True)
        found = await payments.info(chain, live, owner=SELF)
        assert (found.epochs_left, len(found.own)) == (1, 1)
        assert (await payments.info(chain, live, owner=OTHER)).own == ()
        chain.apply(ends_epoch=True)
        with pytest.raises(Unavailable, match="it may have expired"):
            await payments.info(chain, live, owner=SELF)


class TestSending:
    async def test_moves_what_it_says(self, chain: LedgerChain) -> None:
        outcome = await payments.send(chain, OWNER, to=OTHER, amount_frost=7)
        assert spent(chain) == 7 + outcome.fee_frost
        assert spent(chain, OTHER) == -7

    async def test_of_all_but_the_fee_empties_the_account(self, chain: LedgerChain) -> None:
        fee = payments.fee_of(GENESIS, Transfer(OTHER, 1))
        with pytest.raises(Unpaid):
            await payments.send(chain, OWNER, to=OTHER, amount_frost=BALANCE_FROST - fee + 1)
        await payments.send(chain, OWNER, to=OTHER, amount_frost=BALANCE_FROST - fee)
        assert chain.ledger.account(SELF).balance_frost == 0

    async def test_of_nothing_is_refused(self, chain: LedgerChain) -> None:
        with pytest.raises(InputError):
            await payments.send(chain, OWNER, to=OTHER, amount_frost=0)


async def test_an_epoch_begins_no_later_than_said(chain: LedgerChain) -> None:
    said = payments.latest_ms(GENESIS, await chain.head(), 2)
    chain.apply(ends_epoch=True)
    chain.apply(ends_epoch=True)
    assert (await chain.head()).time_ms <= said
