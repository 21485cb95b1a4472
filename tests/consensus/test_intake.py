"""What a node makes of others' transactions: cheap checks first, nothing on the say of a liar."""

from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from economics.arguments import Certify
from economics.crypto import NodeId, OwnerId
from economics.errors import Reason, Rejected
from economics.fields import sized
from economics.transactions import SignedTransaction
from gossip.pubsub import Ignored
from p2pnode.consensus.intake import (
    BATCH_BYTES_MAX,
    GOSSIP_CHECKS_BURST,
    GOSSIP_TRANSACTIONS_MAX,
    HAND_OVER_S,
    SENDER_INCOMING_MAX,
    TIDIED_AT_ONCE,
    TIDY_S,
)
from p2pnode.consensus.participant import Participant
from p2pnode.errors import PeerUnreachable
from tests.p2pnode.finalchain import GENESIS, sign
from tests.p2pnode.joined import AUTHOR, POOR, Mouth, forge, ignored, join, pay, until, verify_all_spoilt
from tests.p2pnode.member import node_of
from tests.refusals import reason
from tests.small import OPERATORS, OTHER_OWNER, OWNER, certify, make_blob, make_statement


@pytest.fixture
async def member(tmp_path: Path) -> Participant:
    return join(tmp_path, OPERATORS[0])


@pytest.fixture
async def guest(tmp_path: Path) -> Participant:
    return join(tmp_path, OTHER_OWNER)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[SignedTransaction]:
    """Collect the transactions whose signatures are checked."""
    found: list[SignedTransaction] = []
    verify = SignedTransaction.verify

    def counted(signed: SignedTransaction, **fields: object) -> None:
        found.append(signed)
        verify(signed, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(SignedTransaction, "verify", counted)
    return found


class TestSubmit:
    async def test_takes_what_is_good_and_passes_it_on(self, member: Participant) -> None:
        signed = pay(member.executor)
        await member.intake.submit(signed)
        await member.intake.submit(signed)
        assert member.mempool.get(signed.hash) is signed
        assert list(member.intake._fresh) == [signed.raw]

    async def test_checks_no_signature_of_who_cannot_pay(
        self, member: Participant, checks: list[SignedTransaction]
    ) -> None:
        with pytest.raises(Rejected) as verdict:
            await member.intake.submit(pay(member.executor, POOR))
        assert verdict.value.reason is Reason.UNFUNDED
        assert not checks
        with pytest.raises(Rejected) as verdict:
            await member.intake.submit(forge(pay(member.executor)))
        assert verdict.value.reason is Reason.BAD_SIGNATURE

    async def test_checks_a_certificate_once(self, member: Participant, monkeypatch: pytest.MonkeyPatch) -> None:
        statement = make_statement(GENESIS, make_blob(GENESIS.code, 10).header)
        good = sign(member.executor.ledger, OWNER, Certify(certify(GENESIS, statement, (0, 1, 2))))
        bad = sign(member.executor.ledger, OWNER, Certify(certify(GENESIS, statement, (0, 1))))
        with pytest.raises(Rejected) as verdict:
            await member.intake.submit(bad)
        assert verdict.value.reason is Reason.NO_QUORUM
        await member.intake.submit(good)
        assert isinstance(good.transaction.operation, Certify)
        monkeypatch.setattr(type(good.transaction.operation.certificate), "verify", None)
        member.executor.ledger.verify_certificate(good.transaction.operation.certificate)


class TestBatches:
    async def test_of_a_member_are_taken_and_its_lies_end_its_stream(self, member: Participant) -> None:
        assert member.links is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(member.intake._take_incoming)
            good, unfunded = pay(member.executor), pay(member.executor, POOR)
            await member.intake.take_batch(node_of(1), sized(unfunded.raw) + sized(good.raw))
            await until(lambda: member.mempool.get(good.hash))
            assert member.intake.refused == {Reason.UNFUNDED: 1}
            assert not member.links.is_shunned(node_of(1))  # its state may be newer than this node's
            lie = sized(forge(pay(member.executor, nonce=1)).raw)
            await member.intake.take_batch(node_of(2), lie * 10)
            await until(lambda: member.links is not None and member.links.is_shunned(node_of(2)))
            assert member.intake.refused[Reason.BAD_SIGNATURE] == 1
            await member.intake.take_batch(node_of(3), b"\x00")
            await until(lambda: member.links is not None and member.links.is_shunned(node_of(3)))
            nursery.cancel_scope.cancel()

    async def test_of_one_member_leave_room_for_those_of_others(self, member: Participant) -> None:
        batch = sized(pay(member.executor).raw)
        for _ in range(SENDER_INCOMING_MAX + 5):
            await member.intake.take_batch(node_of(1), batch)
        assert member.intake.refused == {Reason.OVER_BUDGET: 5}
        await member.intake.take_batch(node_of(2), batch)
        assert member.intake.refused == {Reason.OVER_BUDGET: 5}
        with pytest.raises(Rejected):
            await member.intake.take_batch(node_of(1), bytes(BATCH_BYTES_MAX + 1))


async def test_tidying_gives_others_their_turn(
    member: Participant, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    reviewed: list[int] = []
    senders = [OwnerId(number.to_bytes(32, "big")) for number in range(1_000)]
    monkeypatch.setattr(member.mempool, "senders", lambda: senders)
    monkeypatch.setattr(member.mempool, "review", lambda some, ledger: reviewed.append(len(some)))
    with trio.move_on_after(1.5 * TIDY_S):
        await member.intake._tidy()
    assert sum(reviewed) == 1_000
    assert max(reviewed) <= TIDIED_AT_ONCE


class TestGossipedTransactions:
    async def test_go_on_where_they_are_new_and_may_be_executed(self, member: Participant) -> None:
        signed = pay(member.executor)
        member.intake._verify_gossip(AUTHOR, sized(signed.raw))
        await member.intake.submit(signed)
        assert ignored(lambda: member.intake._verify_gossip(AUTHOR, sized(signed.raw)))

    async def test_that_cost_their_sender_nothing_cost_no_signature_check_and_go_nowhere(
        self, member: Participant, checks: list[SignedTransaction]
    ) -> None:
        data = sized(pay(member.executor).raw) + sized(pay(member.executor, POOR).raw)
        assert ignored(lambda: member.intake._verify_gossip(AUTHOR, data))
        assert not checks

    async def test_that_are_lies_are_held_against_who_passed_them_on(self, member: Participant) -> None:
        lie = sized(forge(pay(member.executor)).raw)
        assert reason(member.intake._verify_gossip, AUTHOR, lie) is Reason.BAD_SIGNATURE
        assert reason(member.intake._verify_gossip, AUTHOR, b"") is Reason.TOO_LARGE
        many = sized(pay(member.executor).raw) * (GOSSIP_TRANSACTIONS_MAX + 1)
        assert reason(member.intake._verify_gossip, AUTHOR, many) is Reason.TOO_LARGE

    async def test_are_checked_within_a_budget(
        self, member: Participant, checks: list[SignedTransaction], autojump_clock: trio.testing.MockClock
    ) -> None:
        data = sized(pay(member.executor).raw)
        while True:
            try:
                member.intake._verify_gossip(AUTHOR, data)
            except Ignored:
                break
        assert len(checks) == GOSSIP_CHECKS_BURST
        await trio.sleep(1)
        member.intake._verify_gossip(AUTHOR, data)

    async def test_of_a_node_that_is_no_member_leave_in_few_messages(
        self, guest: Participant, autojump_clock: trio.testing.MockClock
    ) -> None:
        for nonce in range(8):
            await guest.intake.submit(pay(guest.executor, nonce=nonce))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest.intake._pass_on)
            await trio.sleep(0.5)
            for nonce in range(8, 12):
                await guest.intake.submit(pay(guest.executor, nonce=nonce))
                await trio.sleep(0.1)
            await trio.sleep(5)
            nursery.cancel_scope.cancel()
        published = cast(Mouth, guest.intake.gossip).published
        assert [data.count(GENESIS.chain_id) for _, data in published] == [8, 4]
        assert published[1][0] - published[0][0] >= 1

    async def test_of_a_node_that_is_no_member_are_handed_to_one_member_after_another_until_they_are_in_a_block(
        self, guest: Participant, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
    ) -> None:
        early, late = pay(guest.executor), pay(guest.executor, nonce=1)
        asked: list[tuple[NodeId, bytes]] = []

        async def refuse(who: NodeId, header: dict[str, str], *, size_max: int, payload: bytes) -> None:
            await trio.lowlevel.checkpoint()
            assert header == {"op": "submit"}
            asked.append((who, payload))
            raise PeerUnreachable("no answer")

        guest.intake._members.committee = GENESIS.committee
        monkeypatch.setattr(guest.intake._members, "request", refuse, raising=False)
        await guest.intake.submit(early)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest.intake._hand_over)
            await trio.sleep(2 * HAND_OVER_S + 1)
            assert {payload for _, payload in asked} == {early.raw}
            await guest.intake.submit(late)
            await trio.sleep(40 * HAND_OVER_S)
            assert {node for node, _ in asked} == {member.node for member in GENESIS.members}
            guest.mempool._drop(early)
            guest.mempool._drop(late)
            asked.clear()
            await trio.sleep(10 * HAND_OVER_S)
            nursery.cancel_scope.cancel()
        assert asked == []
        assert guest.intake._submitted == {}


async def test_no_bytes_raise_anything_but_a_verdict(member: Participant) -> None:
    verify_all_spoilt(member.intake._verify_gossip, sized(pay(member.executor).raw) * 2)
