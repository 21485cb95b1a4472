"""What a node makes of others' transactions and announcements: cheap checks first, nothing on the say of a liar."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import cast

import pytest
import trio
import trio.testing

from economics.arguments import Certify, Transfer
from economics.block import Finality
from economics.crypto import NodeId, OwnerId, Signature
from economics.errors import Reason, Rejected
from economics.fields import sized
from economics.transactions import SignedTransaction
from gossip.pubsub import Gossip, Ignored
from p2pnode import participant as participant_module
from p2pnode.errors import PeerUnreachable
from p2pnode.executor import Executor
from p2pnode.keys import Key
from p2pnode.members import Members
from p2pnode.participant import GOSSIP_TRANSACTIONS_MAX, HAND_OVER_S, SENDER_INCOMING_MAX, Participant
from p2pnode.validator import speak_honestly
from tests.p2pnode.finalchain import GENESIS, Maker, end_epoch, extend, finalize, open_executor, sign
from tests.p2pnode.member import Nobody, node_of, open_binding
from tests.refusals import reason
from tests.small import OPERATORS, OTHER_OWNER, OWNER, certify, make_blob, make_statement

TO = OwnerId(OTHER_OWNER.public)
POOR = Key(bytes([0x66]) * 32)
AUTHOR = NodeId(POOR.public)


class Mouth:
    """A gossip that keeps what is published."""

    def __init__(self) -> None:
        self.published: list[tuple[float, bytes]] = []

    async def publish(self, topic: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.published.append((trio.current_time(), data))


def join(path: Path, key: Key) -> Participant:
    executor = open_executor(path)
    members = cast(Members, Nobody())
    members.genesis, members.count = GENESIS, 4  # type: ignore[misc]
    return Participant(
        executor=executor,
        key=key,
        clock_ms=lambda: GENESIS.time_ms,
        binding=open_binding(path)[1],
        chain_members=members,
        consensus_members=members,
        gossip=cast(Gossip, Mouth()),
        snapshot_blocks=5_000,
        speak=speak_honestly,
    )


def pay(executor: Executor, key: Key = OWNER, nonce: int = 0) -> SignedTransaction:
    return sign(executor.ledger, key, Transfer(TO, 1), nonce=nonce)


def forge(signed: SignedTransaction) -> SignedTransaction:
    raw = signed.raw[:-64] + bytes(64)
    return SignedTransaction.decode(raw, chain_id=GENESIS.chain_id)


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


def ignored(call: Callable[[], object]) -> bool:
    with pytest.raises(Ignored):
        call()
    return True


class TestSubmit:
    async def test_takes_what_is_good_and_passes_it_on(self, member: Participant) -> None:
        signed = pay(member.executor)
        await member.submit(signed)
        await member.submit(signed)
        assert member.mempool.get(signed.hash) is signed
        assert list(member._fresh) == [signed.raw]

    async def test_checks_no_signature_of_who_cannot_pay(
        self, member: Participant, checks: list[SignedTransaction]
    ) -> None:
        with pytest.raises(Rejected) as verdict:
            await member.submit(pay(member.executor, POOR))
        assert verdict.value.reason is Reason.UNFUNDED
        assert not checks
        with pytest.raises(Rejected) as verdict:
            await member.submit(forge(pay(member.executor)))
        assert verdict.value.reason is Reason.BAD_SIGNATURE

    async def test_checks_a_certificate_once(self, member: Participant, monkeypatch: pytest.MonkeyPatch) -> None:
        statement = make_statement(GENESIS, make_blob(GENESIS.code, 10).header)
        good = sign(member.executor.ledger, OWNER, Certify(certify(GENESIS, statement, (0, 1, 2))))
        bad = sign(member.executor.ledger, OWNER, Certify(certify(GENESIS, statement, (0, 1))))
        with pytest.raises(Rejected) as verdict:
            await member.submit(bad)
        assert verdict.value.reason is Reason.NO_QUORUM
        await member.submit(good)
        assert isinstance(good.transaction.operation, Certify)
        monkeypatch.setattr(type(good.transaction.operation.certificate), "verify", None)
        member.executor.ledger.verify_certificate(good.transaction.operation.certificate)


class TestBatches:
    async def test_of_a_member_are_taken_and_its_lies_end_its_stream(self, member: Participant) -> None:
        assert member.links is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(member._take_incoming)
            good, unfunded = pay(member.executor), pay(member.executor, POOR)
            await member._take_batch(node_of(1), sized(unfunded.raw) + sized(good.raw))
            await until(lambda: member.mempool.get(good.hash))
            assert member.refused == {Reason.UNFUNDED: 1}
            assert not member.links.is_shunned(node_of(1))  # its state may be newer than this node's
            lie = sized(forge(pay(member.executor, nonce=1)).raw)
            await member._take_batch(node_of(2), lie * 10)
            await until(lambda: member.links is not None and member.links.is_shunned(node_of(2)))
            assert member.refused[Reason.BAD_SIGNATURE] == 1
            await member._take_batch(node_of(3), b"\x00")
            await until(lambda: member.links is not None and member.links.is_shunned(node_of(3)))
            nursery.cancel_scope.cancel()

    async def test_of_one_member_leave_room_for_those_of_others(self, member: Participant) -> None:
        batch = sized(pay(member.executor).raw)
        for _ in range(SENDER_INCOMING_MAX + 5):
            await member._take_batch(node_of(1), batch)
        assert member.refused == {Reason.OVER_BUDGET: 5}
        await member._take_batch(node_of(2), batch)
        assert member.refused == {Reason.OVER_BUDGET: 5}
        with pytest.raises(Rejected):
            await member._take_batch(node_of(1), bytes(participant_module.BATCH_BYTES_MAX + 1))


class TestGossipedTransactions:
    async def test_go_on_where_they_are_new_and_may_be_executed(self, member: Participant) -> None:
        signed = pay(member.executor)
        member._verify_gossip(AUTHOR, sized(signed.raw))
        await member.submit(signed)
        assert ignored(lambda: member._verify_gossip(AUTHOR, sized(signed.raw)))

    async def test_that_cost_their_sender_nothing_cost_no_signature_check_and_go_nowhere(
        self, member: Participant, checks: list[SignedTransaction]
    ) -> None:
        data = sized(pay(member.executor).raw) + sized(pay(member.executor, POOR).raw)
        assert ignored(lambda: member._verify_gossip(AUTHOR, data))
        assert not checks

    async def test_that_are_lies_are_held_against_who_passed_them_on(self, member: Participant) -> None:
        lie = sized(forge(pay(member.executor)).raw)
        assert reason(member._verify_gossip, AUTHOR, lie) is Reason.BAD_SIGNATURE
        assert reason(member._verify_gossip, AUTHOR, b"") is Reason.TOO_LARGE
        many = sized(pay(member.executor).raw) * (GOSSIP_TRANSACTIONS_MAX + 1)
        assert reason(member._verify_gossip, AUTHOR, many) is Reason.TOO_LARGE

    async def test_are_checked_within_a_budget(
        self, member: Participant, checks: list[SignedTransaction], autojump_clock: trio.testing.MockClock
    ) -> None:
        data = sized(pay(member.executor).raw)
        while True:
            try:
                member._verify_gossip(AUTHOR, data)
            except Ignored:
                break
        assert len(checks) == participant_module.GOSSIP_CHECKS_BURST
        await trio.sleep(1)
        member._verify_gossip(AUTHOR, data)

    async def test_of_a_node_that_is_no_member_leave_in_few_messages(
        self, guest: Participant, autojump_clock: trio.testing.MockClock
    ) -> None:
        for nonce in range(8):
            await guest.submit(pay(guest.executor, nonce=nonce))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest._pass_on)
            await trio.sleep(0.5)
            for nonce in range(8, 12):
                await guest.submit(pay(guest.executor, nonce=nonce))
                await trio.sleep(0.1)
            await trio.sleep(5)
            nursery.cancel_scope.cancel()
        published = cast(Mouth, guest.gossip).published
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

        guest._members.committee = GENESIS.committee
        monkeypatch.setattr(guest._members, "request", refuse, raising=False)
        await guest.submit(early)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest._hand_over)
            await trio.sleep(2 * HAND_OVER_S + 1)
            assert {payload for _, payload in asked} == {early.raw}
            await guest.submit(late)
            await trio.sleep(40 * HAND_OVER_S)
            assert {node for node, _ in asked} == {member.node for member in GENESIS.members}
            guest.mempool._drop(early)
            guest.mempool._drop(late)
            asked.clear()
            await trio.sleep(10 * HAND_OVER_S)
            nursery.cancel_scope.cancel()
        assert asked == []
        assert guest._submitted == {}


class TestAnnouncements:
    async def test_go_on_once_for_each_height_and_are_checked(self, guest: Participant) -> None:
        made = [Maker(guest.executor).make().block.header]
        first = made[0].encode() + finalize(made[0]).encode()
        bad = Finality(
            replace(
                finalize(made[0]).certificate,
                signatures=tuple((index, Signature(bytes(64))) for index in range(3)),
            )
        )
        assert reason(guest._verify_announcement, AUTHOR, made[0].encode() + bad.encode()) is Reason.BAD_SIGNATURE
        guest._verify_announcement(AUTHOR, first)
        other = made[0].encode() + finalize(made[0], signers=(1, 2, 3)).encode()
        assert ignored(lambda: guest._verify_announcement(AUTHOR, other))
        await guest._handle_announcement(NodeId(OPERATORS[2].public), first)
        assert guest._behind.is_set()
        assert guest._ahead == node_of(2)

    async def test_go_on_through_a_node_that_has_the_block_already(self, guest: Participant) -> None:
        header = (await extend(guest.executor)).block.header
        guest._verify_announcement(AUTHOR, header.encode() + finalize(header).encode())

    async def test_of_epochs_that_cannot_be_told_go_nowhere(self, guest: Participant) -> None:
        header = Maker(guest.executor).make(epoch=7, height=99).block.header
        data = header.encode() + finalize(header).encode()
        assert ignored(lambda: guest._verify_announcement(AUTHOR, data))
        await end_epoch(guest.executor)
        await extend(guest.executor, after_ms=GENESIS.parameters.epoch_ms // 2)
        coming = replace(Maker(guest.executor).make().block.header, epoch=2)
        guest._verify_announcement(AUTHOR, coming.encode() + finalize(coming).encode())


async def test_no_bytes_raise_anything_but_a_verdict(member: Participant) -> None:
    header = Maker(member.executor).make().block.header
    good = (
        (member._verify_gossip, sized(pay(member.executor).raw) * 2),
        (member._verify_announcement, header.encode() + finalize(header).encode()),
    )
    for seed in range(400):
        random = Random(seed)
        verify, data = good[seed % 2]
        spoilt = bytearray(data)
        for _ in range(random.randrange(1, 4)):
            spoilt[random.randrange(len(spoilt))] = random.randrange(256)
        if random.random() < 0.3:
            del spoilt[random.randrange(len(spoilt)) :]
        try:
            verify(AUTHOR, bytes(spoilt))
        except (Rejected, Ignored):
            continue


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that has no event."""
    with trio.fail_after(20):
        while not condition():
            await trio.lowlevel.checkpoint()
