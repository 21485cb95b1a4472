"""One owner's blobs at once: no storage is taken twice, and whoever wants the same blob waits."""

from dataclasses import replace
from functools import partial

import pytest
import trio
import trio.testing

from economics.blob import BlobId
from economics.commitments import ReservationId
from economics.crypto import OwnerId
from economics.state import Reservation
from p2pnode.clients import till as module
from p2pnode.clients.payments import Order, Reserved, reserve_for
from p2pnode.clients.till import Till
from tests.chain import key_of, reservations_of
from tests.p2pnode.ledgerchain import LedgerChain
from tests.small import OWNER, make_genesis

ID, OTHER = BlobId(bytes(32)), BlobId(bytes([1]) * 32)


class TestBlobs:
    async def test_the_same_one_is_had_by_one_at_a_time_and_another_meanwhile(self) -> None:
        till, events, freed = Till(), [], trio.Event()

        async def hold(name: str, blob_id: BlobId, until: trio.Event | None) -> None:
            async with till.blob(blob_id):
                events.append(name)
                if until is not None:
                    await until.wait()

        async with trio.open_nursery() as nursery:
            for name, blob_id, until in (("first", ID, freed), ("second", ID, None), ("other", OTHER, None)):
                nursery.start_soon(hold, name, blob_id, until)
                await trio.testing.wait_all_tasks_blocked()
            assert events == ["first", "other"]
            freed.set()
        assert events == ["first", "other", "second"]
        assert not till._locks

    async def test_one_that_fails_lets_the_next_go_on(self) -> None:
        till = Till()
        with pytest.raises(KeyError):
            async with till.blob(ID):
                raise KeyError
        with trio.fail_after(60):
            async with till.blob(ID):
                pass

    def test_those_stored_lately_are_remembered_and_the_oldest_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "REMEMBERED_MAX", 2)
        till = Till()
        ids = [BlobId(bytes([number]) * 32) for number in range(3)]
        for blob_id in (ids[0], ids[1], ids[0], ids[2]):
            till.note_stored(blob_id)
        assert [till.was_stored(blob_id) for blob_id in ids] == [True, False, True]
        till.note_deleted(ids[0])
        assert not till.was_stored(ids[0])


class TestReservations:
    async def test_one_that_is_being_filled_is_not_found_by_the_next(self) -> None:
        chain, order = LedgerChain(make_genesis()), Order(epochs=3)
        first = await reserve_for(chain, OWNER, units=10, order=order)
        second = await reserve_for(chain, OWNER, units=10, order=order)
        assert first.reservation != second.reservation
        order.till.give_back(first.reservation)
        third = await reserve_for(chain, OWNER, units=10, order=replace(order, epochs=2))
        assert (third.reservation, third.cost_frost) == (first.reservation, 0)

    async def test_one_that_another_has_just_bought_is_not_taken_for_unused(self) -> None:
        """What is bought shows on the chain before its buyer hears of it."""

        class Slow(LedgerChain):
            async def transact(self, *args: object, **options: object):  # type: ignore[no-untyped-def]
                outcome = await super().transact(*args, **options)  # type: ignore[arg-type]
                await trio.testing.wait_all_tasks_blocked()
                return outcome

        chain, order, found = Slow(make_genesis()), Order(epochs=3), []

        async def buy() -> None:
            found.append((await reserve_for(chain, OWNER, units=10, order=order)).reservation)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(buy)
            nursery.start_soon(buy)
        assert len(set(found)) == 2
        assert len(reservations_of(chain.ledger, key_of(OWNER))) == 2

    async def test_one_that_is_being_bought_is_not_found_though_storage_has_come_back(self) -> None:
        class Slow(LedgerChain):
            shown = trio.Event()
            heard = trio.Event()

            async def transact(self, *args: object, **options: object):  # type: ignore[no-untyped-def]
                outcome = await super().transact(*args, **options)  # type: ignore[arg-type]
                if not self.shown.is_set():
                    self.shown.set()
                    await self.heard.wait()
                return outcome

        chain, order = Slow(make_genesis()), Order(epochs=3)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(reserve_for, chain, OWNER, units=10, order=order))
                await chain.shown.wait()
                order.till.note_change()
                second = await reserve_for(chain, OWNER, units=10, order=order)
                chain.heard.set()
        assert second.cost_frost > 0
        assert len(reservations_of(chain.ledger, key_of(OWNER))) == 2

    async def test_are_bought_at_once(self) -> None:
        """Each waits for its block, not for the other's."""

        class Slow(LedgerChain):
            buying = 0
            both = trio.Event()

            async def transact(self, *args: object, **options: object):  # type: ignore[no-untyped-def]
                self.buying += 1
                if self.buying == 2:
                    self.both.set()
                await self.both.wait()
                return await super().transact(*args, **options)  # type: ignore[arg-type]

        chain, order = Slow(make_genesis()), Order(epochs=3)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(partial(reserve_for, chain, OWNER, units=10, order=order))
        assert len(reservations_of(chain.ledger, key_of(OWNER))) == 2

    def test_one_that_was_filled_is_free_once_the_chain_shows_what_is_left_of_it(self) -> None:
        """A proof of the state before would have it filled twice, which members refuse."""
        till = Till()
        before = Reservation(ReservationId(bytes(32)), key_of(OWNER), 10, 0, 3)
        till.take(before.reservation)
        assert not till.is_free(before)
        till.fill(before.reservation, units_left=4)
        assert [till.is_free(replace(before, units=units)) for units in (10, 4, 1)] == [False, True, True]
        assert till.is_free(replace(before, reservation=ReservationId(bytes([1]) * 32)))

    async def test_an_owner_without_any_is_not_asked_again_until_some_comes_back(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        class Asked(LedgerChain):
            asked = 0

            async def reservations(self, owner: OwnerId) -> list[Reservation]:
                self.asked += 1
                return await super().reservations(owner)

        chain, order = Asked(make_genesis()), Order(epochs=3)

        async def buy() -> tuple[Reserved, int]:
            return await reserve_for(chain, OWNER, units=10, order=order), chain.asked

        first, asked = await buy()
        order.till.fill(first.reservation, units_left=0)
        second, again = await buy()
        assert (asked, again) == (1, 1)
        order.till.give_back(second.reservation)
        third, asked = await buy()
        assert (third.reservation, asked) == (second.reservation, 2)
        assert (await buy())[1] == 3
        order.till.fill(third.reservation, units_left=1)
        assert (await buy())[1] == 4
        order.till.note_deleted(ID)
        assert (await buy())[1] == 5
        assert (await buy())[1] == 5
        await trio.sleep(module.EMPTY_S)
        assert (await buy())[1] == 6

    async def test_one_whose_purchase_was_broken_off_is_found_by_the_next_call(self) -> None:
        """An upload that fails ends the purchase beside it, whose transaction may be on its way."""

        class Lost(LedgerChain):
            is_lost = True

            async def transact(self, *args: object, **options: object):  # type: ignore[no-untyped-def]
                outcome = await super().transact(*args, **options)  # type: ignore[arg-type]
                if self.is_lost:
                    await trio.sleep_forever()
                return outcome

        chain, order = Lost(make_genesis()), Order(epochs=3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(reserve_for, chain, OWNER, units=10, order=order))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        chain.is_lost = False
        bought = reservations_of(chain.ledger, key_of(OWNER))
        found = await reserve_for(chain, OWNER, units=10, order=order)
        assert [(one.reservation, 0) for one in bought] == [(found.reservation, found.cost_frost)]

    async def test_what_is_left_of_one_that_was_held_is_told(self) -> None:
        chain, order = LedgerChain(make_genesis()), Order(epochs=3)
        bought = await reserve_for(chain, OWNER, units=10, order=order)
        order.till.give_back(bought.reservation)
        held = await reserve_for(chain, OWNER, units=3, order=order)
        assert (bought.units_left, held.units_left, held.reservation) == (0, 7, bought.reservation)

    def test_taking_one_twice_is_a_fault_of_ours(self) -> None:
        till, reservation = Till(), ReservationId(bytes(32))
        till.take(reservation)
        with pytest.raises(AssertionError):
            till.take(reservation)
