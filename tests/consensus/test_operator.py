"""A node's own transactions: sent while they are wanted, paid for only where they can succeed, and never forgotten."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from economics.arguments import (
    Certify,
    Evidence,
    HandOver,
    Reserve,
    Transfer,
)
from economics.commitments import Certificate, ReservationId
from economics.crypto import Digest, Level, NodeId, OwnerId, digest
from economics.errors import Reason, Rejected
from economics.transactions import SignedTransaction
from economics.votes import Kind, SignedVote, Vote
from p2pnode.consensus import operator as operator_module
from p2pnode.consensus.executor import Executor
from p2pnode.consensus.operator import Operator
from p2pnode.keys import Key
from tests.p2pnode.finalchain import GENESIS, extend, open_executor, sign
from tests.p2pnode.threads import inline_threads as inline_threads
from tests.small import OPERATORS, OTHER_OWNER, OWNER, certify, make_blob, make_statement

pytestmark = pytest.mark.usefixtures("inline_threads")
LATER_S = 60


class Desk:
    """An operator whose transactions are kept, and executed if `executes`."""

    def __init__(self, path: Path, key: Key = OPERATORS[0]) -> None:
        self.executor: Executor = open_executor(path)
        self.sent: list[SignedTransaction] = []
        self.executes = True
        self.refusals: list[Reason] = []
        self.operator = Operator(executor=self.executor, key=key, submit=self.submit)

    async def submit(self, signed: SignedTransaction) -> None:
        await trio.lowlevel.checkpoint()
        if self.refusals:
            raise Rejected(self.refusals.pop(0))
        self.sent.append(signed)
        if self.executes:
            await extend(self.executor, signed)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.operator.run)
            yield
            nursery.cancel_scope.cancel()

    async def reserve(self) -> ReservationId:
        signed = sign(self.executor.ledger, OWNER, Reserve(1, 0, 2))
        await extend(self.executor, signed)
        return ReservationId(digest(Level.RESERVATION, signed.hash))

    def certificate(self, reservation: ReservationId, seed: int = 0) -> Certificate:
        header = make_blob(GENESIS.code, 10, seed).header
        statement = make_statement(GENESIS, header, reservation=reservation, salt=seed.to_bytes(16, "big"))
        return certify(GENESIS, statement, (0, 1, 2))


def make_evidence(view: int = 1) -> Evidence:
    votes = [Vote(Kind.NOTARIZE, 0, view, Digest(bytes([seed]) * 32), 2) for seed in (1, 2)]
    first, second = (SignedVote(vote, OPERATORS[2].sign(vote.encode(GENESIS.chain_id))) for vote in votes)
    return Evidence(first, second)


@pytest.fixture
async def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_it_certifies_what_a_client_left_behind(desk: Desk, autojump_clock: trio.testing.MockClock) -> None:
    certificate = desk.certificate(await desk.reserve())
    async with desk.running():
        desk.operator.certify(certificate)
        await trio.sleep(LATER_S)
    assert [signed.transaction.operation for signed in desk.sent] == [Certify(certificate)]
    assert desk.executor.ledger.blob(certificate.statement.blob_id) is not None


async def test_it_pays_for_no_certificate_whose_storage_was_moved_away(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    """Else a client could have every member pay for each blob, and use its storage again."""
    reservation = await desk.reserve()
    certificate = desk.certificate(reservation)
    other = desk.certificate(await desk.reserve(), 1)
    too_large = replace(other.statement, length=1 << 20)
    desk.operator.certify(certificate)
    desk.operator.certify(replace(other, statement=too_large))
    moved = HandOver(reservation, OwnerId(OTHER_OWNER.public))
    await extend(desk.executor, sign(desk.executor.ledger, OWNER, moved))
    async with desk.running():
        await trio.sleep(LATER_S)
    assert not desk.operator._tasks
    assert not desk.sent


async def test_it_accuses_whatever_else_waits_and_once(
    desk: Desk, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator_module, "CERTIFICATES_MAX", 2)
    reservation = await desk.reserve()
    for seed in range(5):
        desk.operator.certify(desk.certificate(reservation, seed))
    assert len(desk.operator._tasks) == 2
    node = NodeId(OPERATORS[2].public)
    for _ in range(2):
        desk.operator.accuse(make_evidence(), node=node, epoch=0, view=1)
    async with desk.running():
        await trio.sleep(LATER_S)
    evidence = [signed for signed in desk.sent if isinstance(signed.transaction.operation, Evidence)]
    assert len(evidence) == 1
    assert desk.executor.ledger.is_punished(node, epoch=0, view=1)


async def test_it_sends_again_what_found_no_room(desk: Desk, autojump_clock: trio.testing.MockClock) -> None:
    desk.refusals += [Reason.WRONG_NONCE, Reason.OVER_BUDGET]
    async with desk.running():
        desk.operator.accuse(make_evidence(), node=NodeId(OPERATORS[2].public), epoch=0, view=1)
        await trio.sleep(LATER_S)
    assert len(desk.sent) == 1


async def test_it_tries_again_what_it_cannot_pay_yet_and_says_so_once_a_day(
    desk: Desk, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = int(1.5 * operator_module.COMPLAIN_S / operator_module.POOR_S)
    desk.refusals += [Reason.UNFUNDED] * attempts
    async with desk.running():
        desk.operator.accuse(make_evidence(), node=NodeId(OPERATORS[2].public), epoch=0, view=1)
        await trio.sleep(2 * operator_module.COMPLAIN_S)
    assert len(desk.sent) == 1
    assert [record.getMessage().split(":")[1] for record in caplog.records if record.levelname == "WARNING"] == [
        " send it some"
    ] * 2


async def test_it_does_not_insist_on_what_is_refused_for_good(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    desk.refusals += [Reason.MALFORMED]
    async with desk.running():
        desk.operator.accuse(make_evidence(), node=NodeId(OPERATORS[2].public), epoch=0, view=1)
        await trio.sleep(LATER_S)
    assert not desk.sent
    assert not desk.operator._tasks


class TestWant:
    TO = OwnerId(OTHER_OWNER.public)

    async def test_sends_what_is_made_of_the_newest_ledger_once_there_is_something(
        self, desk: Desk, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with desk.running():
            desk.operator.want(
                b"height", lambda ledger: Transfer(self.TO, ledger.height) if ledger.height else None, lambda _: True
            )
            await trio.sleep(LATER_S)
            assert not desk.sent
            await extend(desk.executor)
            await trio.sleep(LATER_S)
        assert [signed.transaction.operation for signed in desk.sent] == [Transfer(self.TO, 1)]
        assert not desk.operator._tasks

    async def test_sends_nothing_that_is_wanted_no_more_and_each_name_once(
        self, desk: Desk, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with desk.running():
            for amount in (1, 2):
                desk.operator.want(b"a", Transfer(self.TO, amount), lambda _: True, 5)
                desk.operator.want(b"b", Transfer(self.TO, amount + 2), lambda ledger: ledger.height == 0, 9)
            await trio.sleep(4)
            assert not desk.sent
            await trio.sleep(LATER_S)
        assert [signed.transaction.operation for signed in desk.sent] == [Transfer(self.TO, 1)]

    async def test_sends_again_what_is_in_no_block(self, desk: Desk, autojump_clock: trio.testing.MockClock) -> None:
        desk.executes = False
        async with desk.running():
            desk.operator.want(b"a", Transfer(self.TO, 1), lambda _: True)
            await trio.sleep(operator_module.SETTLE_S * 1.5)
            assert len(desk.sent) == 1
            desk.executes = True
            await trio.sleep(LATER_S)
        assert len(desk.sent) == 2

    async def test_of_a_node_without_a_seat_is_sent_too(
        self, tmp_path: Path, autojump_clock: trio.testing.MockClock
    ) -> None:
        desk = Desk(tmp_path, OPERATORS[7])
        certificate = desk.certificate(await desk.reserve())
        async with desk.running():
            desk.operator.want(b"a", Transfer(self.TO, 1), lambda _: True)
            desk.operator.certify(certificate)  # which is for members to pay
            await trio.sleep(LATER_S)
        assert [type(signed.transaction.operation) for signed in desk.sent] == [Transfer]

    async def test_has_room_whatever_certificates_wait_but_an_end(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(operator_module, "TASKS_MAX", 3)
        for name in (b"a", b"b", b"c", b"d"):
            desk.operator.want(name, Transfer(self.TO, 1), lambda _: True)
        assert list(desk.operator._tasks) == [b"a", b"b", b"c"]


async def test_it_accuses_at_once_while_a_certificate_waits_its_turn(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    certificate = desk.certificate(await desk.reserve())
    while desk.executor.height % 4:  # its turn is the member's whose index fits the height
        await extend(desk.executor)
    async with desk.running():
        desk.operator.certify(certificate)
        await trio.sleep(operator_module.CERTIFY_AFTER_S / 2)
        desk.operator.accuse(make_evidence(), node=NodeId(OPERATORS[2].public), epoch=0, view=1)
        await trio.sleep(operator_module.STAGGER_S / 2)
    assert [type(signed.transaction.operation) for signed in desk.sent] == [Evidence]
