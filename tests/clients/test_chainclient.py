"""A client while committees change: the newest one is asked, whoever leads there, and who holds what is proven."""

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from economics.arguments import ReportSync, Transfer
from economics.crypto import Digest, NodeId, OwnerId
from economics.transactions import SignedTransaction
from p2pnode.clients import chainclient as module
from p2pnode.clients.chainclient import IN_FLIGHT_MAX, ChainClient
from p2pnode.clients.chainview import Outcome, Seating
from p2pnode.consensus.executor import Executor
from p2pnode.errors import TooSlow
from tests.p2pnode.chainnet import ChainNet, Handler, serve
from tests.p2pnode.finalchain import end_epoch, extend, open_executor, sign
from tests.p2pnode.member import node_of
from tests.p2pnode.standbys import GENESIS, lose, stake, unstake
from tests.small import OPERATORS, OTHER_OWNER, OWNER

STANDBYS = range(4, 8)


@pytest.fixture
async def executor(tmp_path: Path) -> Executor:
    executor = open_executor(tmp_path / "node", GENESIS)
    for own in STANDBYS:
        await stake(executor, own)
    return executor


async def report_missing(executor: Executor) -> None:
    """Have the standbys with seats report that they hold all, and go on until that is shown."""
    for own in STANDBYS:
        index = executor.ledger.committee.index_of(node_of(own))
        if index is not None and index not in executor.ledger.handover.reporters:
            await extend(executor, sign(executor.ledger, OPERATORS[own], ReportSync(executor.ledger.epoch)))
    for _ in range(2):
        await extend(executor)


class Asking:
    """A client of a home, and whom it asks."""

    def __init__(self, home: Path, executor: Executor, answering: Sequence[int], nursery: trio.Nursery) -> None:
        self.late_ms = 1_000
        self.executor = executor
        handlers: list[Handler | None] = [serve(executor).handle if own in answering else None for own in range(8)]
        self.net = ChainNet(handlers, nursery, GENESIS)
        self.client = ChainClient(members=self.net.members(), cache=home / "trusted.cbor", clock_ms=self.clock_ms)

    def clock_ms(self) -> int:
        return self.executor.head.time_ms + self.late_ms


@asynccontextmanager
async def asking(home: Path, executor: Executor, answering: Sequence[int]) -> AsyncIterator[Asking]:
    async with trio.open_nursery() as nursery:
        with trio.fail_after(60):
            yield Asking(home, executor, answering, nursery)
        nursery.cancel_scope.cancel()


def seating(executor: Executor) -> Seating:
    """Return what the ledger says itself."""
    ledger = executor.ledger
    handover = ledger.handover
    source = None if handover.is_done else ledger.committee_of(handover.source_epoch)
    return Seating(ledger.committee, source, handover.since_epoch, ledger.terms)


def addresses(found: Seating) -> list[tuple[str, ...]]:
    return [member.addresses for committee in found.committees for member in committee.members]


async def test_a_client_with_the_genesis_alone_gets_to_the_newest_committee(executor: Executor, tmp_path: Path) -> None:
    """Of those it knows one still answers, which has no seat any more; and none of the others is a member either."""
    for member in range(4):
        await lose(executor, member)
        await report_missing(executor)
    newest = executor.ledger.committee
    assert {member.node for member in newest.members} == {node_of(own) for own in STANDBYS}
    async with asking(tmp_path, executor, (2, *STANDBYS)) as ask:
        found = await ask.client.seats()
        assert (found, addresses(found)) == (seating(executor), [member.addresses for member in newest.members])
        assert ask.client.trusted.epoch == 4
        ask.net.asked.clear()
        assert await ask.client.account(OwnerId(OWNER.public)) == executor.ledger.account(OwnerId(OWNER.public))
        told = await ask.client._next_nonce(OwnerId(OWNER.public))
        assert told == executor.ledger.account(OwnerId(OWNER.public)).nonce
        assert set(ask.net.asked) <= set(STANDBYS)


async def test_a_client_whose_home_knows_members_that_are_gone_gets_in_by_the_first_ones(
    executor: Executor, tmp_path: Path
) -> None:
    await lose(executor, 0)
    async with asking(tmp_path, executor, range(8)) as ask:
        known = (await ask.client.seats()).current
    for member in (1, 2, 3):
        await lose(executor, member)
    gone = {own for own in range(8) if known.index_of(node_of(own)) is not None}
    async with asking(tmp_path, executor, sorted({0, *STANDBYS} - gone)) as ask:
        assert ask.client.trusted.committee == known
        assert await ask.client.seats() == seating(executor)
        assert set(ask.net.asked[: len(gone)]) == gone


class TestSeats:
    async def test_name_the_source_while_not_all_is_handed_over(self, executor: Executor, tmp_path: Path) -> None:
        await lose(executor, 0, 1)  # two new members of one shard each: those that stay are no quorum
        expected = seating(executor)
        async with asking(tmp_path, executor, range(8)) as ask:
            found = await ask.client.seats()
        assert found == expected
        assert found.source == GENESIS.committee
        assert found.readers(0) == (GENESIS.committee, executor.ledger.committee)
        assert found.readers(1) == (executor.ledger.committee,)
        known = {node: entry.addresses for node in map(node_of, range(8)) if (entry := executor.ledger.node(node))}
        assert addresses(found) == [known[m.node] for committee in found.committees for m in committee.members]

    async def test_are_remembered_for_as_long_as_the_epoch_cannot_have_ended(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        await lose(executor, 0)
        async with asking(tmp_path, executor, range(8)) as ask:
            expected = await ask.client.seats()
        async with asking(tmp_path, executor, range(8)) as ask:
            found = await ask.client.seats()
            assert (found, addresses(found), ask.net.asked) == (expected, addresses(expected), [])
            assert await ask.client.seats(fresh=True) == expected
            assert ask.net.asked
        await lose(executor, 1)
        async with asking(tmp_path, executor, range(8)) as ask:
            assert await ask.client.seats() == seating(executor) != expected

    async def test_are_asked_for_by_a_clock_that_is_epochs_behind(self, executor: Executor, tmp_path: Path) -> None:
        for own in (0, 1):
            await lose(executor, own)
            async with asking(tmp_path, executor, range(8)) as ask:
                ask.late_ms = -3 * GENESIS.parameters.epoch_ms
                assert await ask.client.seats() == seating(executor)

    async def test_are_asked_for_again_while_not_all_is_handed_over(self, executor: Executor, tmp_path: Path) -> None:
        await lose(executor, 0, 1)
        async with asking(tmp_path, executor, range(8)) as ask:
            assert not (await ask.client.seats()).is_handed_over
        await report_missing(executor)
        async with asking(tmp_path, executor, range(8)) as ask:
            assert await ask.client.seats() == seating(executor)
            assert (await ask.client.seats()).is_handed_over

    async def test_come_with_the_first_block_behind_a_boundary(self, executor: Executor, tmp_path: Path) -> None:
        """Its own header shows the state before it: that is of another epoch."""
        await unstake(executor, 0)
        await end_epoch(executor)
        async with asking(tmp_path, executor, range(8)) as ask, trio.open_nursery() as nursery:
            found: list[Seating] = []

            async def look() -> None:
                found.append(await ask.client.seats())

            nursery.start_soon(look)
            while not ask.net.asked:  # noqa: ASYNC110 - a dial has no event
                await trio.sleep(0.01)
            assert not found
            await extend(executor)
            await extend(executor)
        assert found == [seating(executor)]

    @pytest.mark.parametrize("data", [b"", b"\xa0", b"junk"])
    async def test_that_a_home_has_damaged_are_asked_for_again(
        self, executor: Executor, tmp_path: Path, data: bytes
    ) -> None:
        await lose(executor, 0)
        (tmp_path / "trusted.seats").write_bytes(data)
        async with asking(tmp_path, executor, range(8)) as ask:
            assert await ask.client.seats() == seating(executor)


async def test_a_transaction_is_given_to_members_of_the_newest_committee(executor: Executor, tmp_path: Path) -> None:
    await lose(executor, 0)
    async with asking(tmp_path, executor, range(1, 8)) as ask:
        await ask.client.head()
        ask.net.asked.clear()
        await ask.client.submit(sign(executor.ledger, OWNER, Transfer(OwnerId(OTHER_OWNER.public), 1)))
        members = {member.node for member in executor.ledger.committee.members}
        assert {NodeId(OPERATORS[own].public) for own in ask.net.asked} <= members


async def test_transactions_of_one_account_go_one_after_the_other(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two at once each has a nonce of its own."""
    sent: list[SignedTransaction] = []

    async def submit(self: ChainClient, signed: SignedTransaction) -> None:
        await trio.testing.wait_all_tasks_blocked()  # for another to sign meanwhile
        sent.append(signed)
        await extend(executor, signed)

    async def wait(self: ChainClient, tx_hash: Digest, *, deadline_s: float) -> Outcome:
        await extend(executor)
        return Outcome(tx_hash, executor.head.height, 0, "ok", 1)

    monkeypatch.setattr(ChainClient, "submit", submit)
    monkeypatch.setattr(ChainClient, "wait", wait)
    async with asking(tmp_path, executor, range(8)) as ask, trio.open_nursery() as nursery:
        for amount in (1, 2, 3):
            nursery.start_soon(ask.client.transact, OWNER, Transfer(OwnerId(OTHER_OWNER.public), amount))
    first = sent[0].transaction.nonce
    assert [signed.transaction.nonce for signed in sent] == [first, first + 1, first + 2]
    assert executor.ledger.account(OwnerId(OWNER.public)).nonce == first + 3


class Sending(Asking):
    """A client whose transactions members take and forget, and that hears of their blocks when the test says so."""

    def __init__(self, home: Path, executor: Executor, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(home, executor, range(8), nursery)
        self.nonces: list[int] = []
        self.final = trio.Event()
        monkeypatch.setattr(self.client, "submit", self.take)
        monkeypatch.setattr(self.client, "wait", self.hear)

    async def take(self, signed: SignedTransaction) -> None:
        self.nonces.append(signed.transaction.nonce)

    async def hear(self, tx_hash: Digest, *, deadline_s: float) -> Outcome:
        with trio.move_on_after(deadline_s):
            await self.final.wait()
            return Outcome(tx_hash, self.executor.head.height, 0, "ok", 1)
        raise TooSlow("not in a final block")

    async def send(self, amount: int) -> None:
        await self.client.transact(OWNER, Transfer(OwnerId(OTHER_OWNER.public), amount))


async def test_transactions_of_one_account_wait_for_their_blocks_together(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many are sent at once: no more than a client may have under way."""
    count = IN_FLIGHT_MAX + 3
    async with trio.open_nursery() as nursery:
        sending = Sending(tmp_path, executor, nursery, monkeypatch)
        first = executor.ledger.account(OwnerId(OWNER.public)).nonce
        async with trio.open_nursery() as calls:
            for amount in range(count):
                calls.start_soon(sending.send, amount)
            with trio.fail_after(60):
                while len(sending.nonces) < IN_FLIGHT_MAX:
                    await trio.testing.wait_all_tasks_blocked(0.01)
            assert sending.nonces == list(range(first, first + IN_FLIGHT_MAX))
            sending.final.set()
        nursery.cancel_scope.cancel()
    assert sending.nonces == list(range(first, first + count))


async def test_a_transaction_that_is_in_no_block_leaves_its_nonce_to_the_next(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came after it would wait for it in vain."""
    async with trio.open_nursery() as nursery:
        sending = Sending(tmp_path, executor, nursery, monkeypatch)
        first = executor.ledger.account(OwnerId(OWNER.public)).nonce
        with pytest.raises(TooSlow):
            await sending.client.transact(OWNER, Transfer(OwnerId(OTHER_OWNER.public), 1), deadline_s=0)
        sending.final.set()
        await sending.send(2)
        await sending.send(3)
        nursery.cancel_scope.cancel()
    assert sending.nonces == [first, first, first + 1]


async def test_what_another_client_sent_is_waited_for_and_what_this_one_did_is_not(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = OwnerId(OWNER.public)
    monkeypatch.setattr(module, "SETTLE_S", math.inf)
    await extend(executor)
    async with trio.open_nursery() as nursery:
        sending = Sending(tmp_path, executor, nursery, monkeypatch)
        nursery.start_soon(sending.send, 1)
        with trio.fail_after(60):
            while not sending.nonces:
                await trio.testing.wait_all_tasks_blocked(0.01)
            await sending.client.settle_others(owner)
        for amount in (2, 3):
            await extend(executor, sign(executor.ledger, OWNER, Transfer(OwnerId(OTHER_OWNER.public), amount)))
        with trio.move_on_after(1) as waiting:
            await sending.client.settle_others(owner)
        assert waiting.cancelled_caught
        nursery.cancel_scope.cancel()
