"""What one member builds another judges good; and it judges bad what an honest one would not build."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from economics import transactions as transactions_module
from economics.arguments import Transfer
from economics.block import AHEAD_MS_MAX, Block, BlockHeader, transactions_root, verify_successor
from economics.crypto import Digest, OwnerId
from economics.errors import Reason, Rejected
from economics.transactions import SignedTransaction
from economics.votes import ZERO_HASH
from p2pnode.consensus import blockmaker as blockmaker_module
from p2pnode.consensus.executor import Candidate
from tests.p2pnode.finalchain import GENESIS, Maker, end_epoch, extend, sign
from tests.p2pnode.member import Member
from tests.small import OPERATORS, OTHER_OWNER, OWNER

TO = OwnerId(OTHER_OWNER.public)
EPOCH_MS = GENESIS.parameters.epoch_ms


def pay(member: Member, nonce: int = 0, **fields: int) -> SignedTransaction:
    return sign(member.executor.ledger, OWNER, Transfer(TO, 1), nonce=nonce, **fields)


def judge_of(block: Block, bodies: Sequence[SignedTransaction] = ()) -> Block:
    """Return a block with these transactions in place of its own, signed again."""
    hashes = tuple(signed.hash for signed in bodies)
    header = replace(block.header, transactions_root=transactions_root(hashes), transactions_count=len(hashes))
    return sign_block(header, hashes)


def sign_block(header: BlockHeader, hashes: Sequence[Digest] = ()) -> Block:
    return Block(header, OPERATORS[header.leader].sign(header.encode()), tuple(hashes))


async def verdict(member: Member, block: Block) -> Reason | None:
    try:
        with trio.fail_after(120):
            await member.maker.judge(block, sender=1)
    except Rejected as fault:
        assert member.maker.held(block.hash) is None
        return fault.reason
    assert member.maker.held(block.hash) is not None
    return None


def serve(member: Member, *transactions: SignedTransaction) -> None:
    """Let a member pull these."""
    raw = {signed.hash: signed.raw for signed in transactions}
    member.pull = lambda hashes, sender: [raw[tx_hash] for tx_hash in hashes]


@pytest.fixture
async def leader(tmp_path: Path) -> Member:
    return Member(tmp_path / "leader", 0)


@pytest.fixture
async def voter(tmp_path: Path) -> Member:
    return Member(tmp_path / "voter", 1)


class TestBuilding:
    async def test_takes_what_waits_and_is_judged_good_by_who_has_it_not(self, leader: Member, voter: Member) -> None:
        waiting = [pay(leader, nonce) for nonce in range(3)]
        for signed in waiting:
            leader.mempool.add(signed, ledger=leader.executor.ledger)
        block = leader.maker.build(view=1, leader=0, parent=leader.executor.head, is_empty=False)
        assert block.transactions == tuple(signed.hash for signed in waiting)
        block.verify_signature(committee=GENESIS.committee)
        serve(voter, *waiting)
        assert await verdict(voter, block) is None
        held = voter.maker.held(block.hash)
        assert held == Candidate(block, tuple(waiting))
        assert voter.maker.transaction(waiting[2].hash) == waiting[2]

    async def test_follows_the_rules_on_any_parent(self, leader: Member) -> None:
        ledger, root = leader.executor.ledger, leader.executor.root_header
        for signed in (pay(leader, nonce) for nonce in range(3)):
            leader.mempool.add(signed, ledger=ledger)
        parent = root
        for view in range(1, 4):
            block = leader.maker.build(view=view, leader=0, parent=parent, is_empty=False)
            led = replace(block.header, leader=Maker(leader.executor, []).make(skip_views=view - 1).block.header.leader)
            verify_successor(
                led,
                parent=parent,
                root=root,
                committee=ledger.committee,
                epoch_ms=GENESIS.parameters.epoch_ms,
            )
            parent = block.header
        assert parent.transactions_count == 0  # all are in flight in the first

    async def test_holds_nothing_on_a_block_that_is_not_here(self, leader: Member, voter: Member) -> None:
        """What waits may be in it: the account's history would show that again, as failed."""
        for member in (leader, voter):
            member.mempool.add(pay(leader), ledger=member.executor.ledger)
        parent = leader.maker.build(view=1, leader=0, parent=leader.executor.head, is_empty=False)
        assert len(parent.transactions) == 1
        following = voter.maker.build(view=2, leader=1, parent=parent.header, is_empty=False)
        assert following.transactions == ()
        on_it = voter.maker.build(view=3, leader=1, parent=following.header, is_empty=False)
        assert on_it.transactions == ()
        serve(voter)
        assert await verdict(voter, parent) is None
        voter.mempool.add(pay(leader, 1), ledger=voter.executor.ledger)
        again = voter.maker.build(view=4, leader=1, parent=following.header, is_empty=False)
        assert again.transactions == (pay(leader, 1).hash,)

    async def test_on_a_boundary_is_empty_and_names_no_next_committee(self, leader: Member) -> None:
        leader.mempool.add(pay(leader), ledger=leader.executor.ledger)
        boundary = Maker(leader.executor).make(after_ms=GENESIS.parameters.epoch_ms).block.header
        block = leader.maker.build(view=2, leader=0, parent=boundary, is_empty=True)
        assert (block.transactions, block.header.next_committee_hash) == ((), ZERO_HASH)
        assert (block.header.reveal, leader.flights) == (bytes(32), [])

    async def test_reveals_what_follows_on_its_own_blocks_in_flight(self, leader: Member) -> None:
        """A block of another leader in between reveals nothing of this one's."""
        parent = leader.executor.root_header
        own = []
        for view, index in ((1, 0), (2, 1), (3, 0)):
            parent = leader.maker.build(view=view, leader=index, parent=parent, is_empty=False).header
            own += [parent] if index == 0 else []
        assert leader.flights == [(), (), (own[0],)]
        assert [header.reveal for header in own] == [b"\x01" * 32, b"\x03" * 32]

    async def test_stays_within_what_a_block_may_hold(self, leader: Member, monkeypatch: pytest.MonkeyPatch) -> None:
        waiting = [pay(leader, nonce) for nonce in range(3)]
        for signed in waiting:
            leader.mempool.add(signed, ledger=leader.executor.ledger)
        monkeypatch.setattr(blockmaker_module, "BLOCK_BYTES_MAX", 3 * len(waiting[0].raw) - 1)
        assert len(leader.maker.build(view=1, leader=0, parent=leader.executor.head, is_empty=False).transactions) == 2

    async def test_is_dated_within_the_epoch_while_the_next_committee_is_not_fixed(self, leader: Member) -> None:
        """After an outage of all of three epochs one block fixes it, and the next is the boundary."""
        executor = leader.executor
        await extend(executor)
        leader.late_ms = 3 * EPOCH_MS
        end_ms = executor.root_header.time_ms + EPOCH_MS
        first = leader.maker.build(view=2, leader=0, parent=executor.head, is_empty=False).header
        second = leader.maker.build(view=3, leader=0, parent=first, is_empty=False).header
        times = [first.time_ms, second.time_ms]
        assert times == [end_ms - EPOCH_MS // 4, end_ms - EPOCH_MS // 4 + 1]
        assert {first.next_committee_hash, second.next_committee_hash} == {ZERO_HASH}
        await extend(executor, after_ms=first.time_ms - executor.head.time_ms)
        before_ms = leader.clock_ms()
        last = leader.maker.build(view=3, leader=0, parent=executor.head, is_empty=False).header
        assert before_ms <= last.time_ms <= leader.clock_ms()
        assert last.next_committee_hash == executor.ledger.committee.in_epoch(1).hash

    async def test_is_due_where_the_epoch_turns(self, leader: Member) -> None:
        executor, parameters = leader.executor, GENESIS.parameters
        begun = executor.root_header.time_ms
        await extend(executor, after_ms=EPOCH_MS // 2 - 5_000)
        await extend(executor)
        assert leader.maker.due_ms(executor.head) == begun + EPOCH_MS // 2
        await extend(executor, after_ms=5_000)
        await extend(executor)
        assert leader.maker.due_ms(executor.head) == executor.head.time_ms + parameters.heartbeat_ms
        await extend(executor, after_ms=EPOCH_MS // 2 - 10_000)
        await extend(executor)
        assert leader.maker.due_ms(executor.head) == begun + EPOCH_MS

    async def test_is_due_for_transactions_at_once_then_to_settle_then_as_a_heartbeat(self, leader: Member) -> None:
        parameters, executor = GENESIS.parameters, leader.executor
        for _ in range(2):  # the first begins a round, which the second shows
            await extend(executor)
        tip = executor.head
        assert leader.maker.due_ms(tip) == tip.time_ms + parameters.heartbeat_ms
        signed = pay(leader)
        leader.mempool.add(signed, ledger=executor.ledger)
        assert leader.maker.due_ms(tip) == tip.time_ms + parameters.block_interval_ms
        await extend(executor, signed)
        leader.mempool.drop_executed([signed], ledger=executor.ledger)
        tip = executor.head
        assert leader.maker.due_ms(tip) == tip.time_ms + blockmaker_module.SETTLE_MS
        await extend(executor)
        assert leader.maker.due_ms(executor.head) == executor.head.time_ms + parameters.heartbeat_ms


class TestJudging:
    async def test_refuses_a_time_too_far_ahead(self, voter: Member, autojump_clock: trio.testing.MockClock) -> None:
        plain = Maker(voter.executor).make().block.header
        now = voter.clock_ms()
        assert await verdict(voter, sign_block(replace(plain, time_ms=now + AHEAD_MS_MAX + 1))) is Reason.WRONG_TIME
        assert await verdict(voter, sign_block(replace(plain, time_ms=now + AHEAD_MS_MAX))) is None

    async def test_refuses_another_state(self, voter: Member) -> None:
        plain = Maker(voter.executor).make().block.header
        assert await verdict(voter, sign_block(replace(plain, state_root=ZERO_HASH))) is Reason.WRONG_STATE

    async def test_refuses_another_next_committee_than_the_state_has_fixed(self, voter: Member) -> None:
        """Nobody may name it before, none but it after, and a voter who knows no more lets no third one in."""
        executor = voter.executor
        named = executor.ledger.committee.in_epoch(1).hash
        await extend(executor)
        early = Maker(executor).make().block.header
        assert await verdict(voter, sign_block(early)) is None
        assert await verdict(voter, sign_block(replace(early, next_committee_hash=named))) is Reason.WRONG_STATE
        await extend(executor, after_ms=EPOCH_MS // 2)
        plain = Maker(executor).make().block.header
        voter.late_ms = EPOCH_MS
        assert plain.next_committee_hash == named
        assert await verdict(voter, sign_block(plain)) is None
        wrong = executor.ledger.committee.hash
        for other in (ZERO_HASH, wrong):
            assert await verdict(voter, sign_block(replace(plain, next_committee_hash=other))) is Reason.WRONG_STATE
        root = executor.root(1)
        assert root is not None
        old = replace(plain, executed_height=1, state_root=root)
        executor._states.clear()
        for other, want in ((ZERO_HASH, None), (named, None), (wrong, Reason.WRONG_STATE)):
            assert await verdict(voter, sign_block(replace(old, next_committee_hash=other))) is want

    async def test_lets_what_builds_on_a_boundary_name_none(self, voter: Member) -> None:
        await extend(voter.executor, after_ms=EPOCH_MS // 2)
        voter.late_ms = EPOCH_MS
        maker = Maker(voter.executor)
        maker.make(after_ms=EPOCH_MS // 2)
        tail = maker.make(next_committee_hash=ZERO_HASH).block.header
        assert await verdict(voter, sign_block(tail)) is None

    async def test_waits_for_the_state_that_a_block_shows(self, leader: Member, voter: Member) -> None:
        made = await extend(leader.executor, pay(leader))
        block = leader.maker.build(view=2, leader=0, parent=leader.executor.head, is_empty=False)
        assert block.header.executed_height == 1
        judged: list[Reason | None] = []
        async with trio.open_nursery() as nursery:

            async def judge() -> None:
                judged.append(await verdict(voter, block))

            nursery.start_soon(judge)
            await trio.testing.wait_all_tasks_blocked()
            assert not judged
            maker = Maker(voter.executor, [made])
            await maker.apply()
        assert judged == [None]

    async def test_refuses_a_transaction_twice(self, voter: Member) -> None:
        signed = pay(voter)
        serve(voter, signed)
        block = judge_of(Maker(voter.executor).make().block, [signed, signed])
        assert await verdict(voter, block) is Reason.MALFORMED

    async def test_refuses_what_no_block_may_hold(self, voter: Member, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = Maker(voter.executor).make().block
        good = pay(voter)
        forged = SignedTransaction.decode(good.raw[:-64] + bytes(64), chain_id=GENESIS.chain_id)
        expired, cheap = pay(voter, expiry_height=1), pay(voter, fee_frost=1)
        bad = {Reason.BAD_SIGNATURE: forged, Reason.EXPIRED: expired, Reason.LOW_FEE: cheap}
        for reason, signed in bad.items():
            serve(voter, signed)
            assert await verdict(voter, judge_of(plain, [signed])) is reason
        serve(voter, good)
        monkeypatch.setattr(transactions_module, "BLOCK_BYTES_MAX", len(good.raw) - 1)
        assert await verdict(voter, judge_of(plain, [good])) is Reason.TOO_LARGE

    async def test_refuses_bodies_that_nobody_has_or_that_are_others(self, voter: Member) -> None:
        signed = pay(voter)
        block = judge_of(Maker(voter.executor).make().block, [signed])
        assert await verdict(voter, block) is Reason.NOT_FOUND
        voter.pull = lambda hashes, sender: [pay(voter, 1).raw]
        assert await verdict(voter, block) is Reason.HASH_MISMATCH
        serve(voter, signed)
        assert await verdict(voter, block) is None


async def test_what_the_chain_has_passed_is_forgotten(leader: Member) -> None:
    signed = pay(leader)
    maker = Maker(leader.executor)
    passed = maker.make(signed)
    leader.maker.hold(passed)
    await maker.apply()
    above = Maker(leader.executor).make()
    leader.maker.hold(above)
    leader.maker.drop_passed()
    assert leader.maker.held(passed.block.hash) is None
    assert leader.maker.transaction(signed.hash) is None
    assert leader.maker.held(above.block.hash) == above


async def test_an_epoch_s_first_block_shows_all_of_the_last(leader: Member) -> None:
    await end_epoch(leader.executor)
    root = leader.executor.root_header
    header = leader.maker.build(view=1, leader=0, parent=root, is_empty=False).header
    assert (header.parent_view, header.executed_height, header.epoch) == (0, root.height, 1)
