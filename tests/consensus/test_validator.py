"""The shell around the engine: what it makes of lies, floods and catch-ups. The engine's rules have their own tests."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing

from economics.arguments import Transfer
from economics.block import Proposal, leader_of
from economics.consensus import Finalized, Heard, Quiet
from economics.crypto import Digest, OwnerId, Signature
from economics.errors import Reason, Rejected
from economics.votes import Kind, Vote
from p2pnode.clients.trust import trusted_genesis
from p2pnode.consensus.links import FrameType
from p2pnode.consensus.speech import encode_message
from p2pnode.consensus.validator import SENDER_INPUTS_MAX
from p2pnode.errors import StreamBroken
from tests.p2pnode.finalchain import GENESIS, Maker, certify_vote, end_epoch, extend, finalize, open_executor, sign
from tests.p2pnode.member import Member, node_of, vote
from tests.p2pnode.threads import inline_threads as inline_threads
from tests.small import OTHER_OWNER, OWNER
from tests.streams import as_stream, stream_pair

pytestmark = pytest.mark.usefixtures("inline_threads")


def leader(view: int = 1) -> int:
    return leader_of(view, root_hash=trusted_genesis(GENESIS).root.hash, committee=GENESIS.committee)


async def test_a_leader_that_a_catch_up_overtakes_builds_nothing_on_what_it_left(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """It waits for its block to be due while blocks come by another way: its own would be ahead of its parent."""
    executor = open_executor(tmp_path)
    await extend(executor)
    executor.store.close()
    member = Member(tmp_path, leader(view=2))
    async with member.running():
        await trio.testing.wait_all_tasks_blocked()
        maker = Maker(member.executor)
        for _ in range(3):
            maker.make()
        await maker.apply()  # and the engine is told later, when the catch-up is at its end
        for _ in range(1_000):
            await trio.sleep(0.1)
        member.validator.synced()
        while member.validator.engine.final_height != 4:  # noqa: ASYNC110 - the engine has no event
            await trio.sleep(0.1)


async def test_a_final_block_that_was_never_judged_is_fetched_by_its_hashes(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """This member alone may know that it is final: then no catch-up can bring it."""
    member = Member(tmp_path, 0)
    signed = sign(member.executor.ledger, OWNER, Transfer(OwnerId(OTHER_OWNER.public), 1))
    block = Maker(member.executor).make(signed).block
    asked = 0

    def pull(hashes: Sequence[Digest], sender: int | None) -> list[bytes]:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise Rejected(Reason.NOT_FOUND, "nobody has them yet")
        assert list(hashes) == [signed.hash]
        return [signed.raw]

    member.pull = pull
    async with member.running():
        await member.validator._send_final.send(Finalized(finalize(block.header), (block,)))
        await member.executor.wait_beyond(0)
    assert (member.executor.height, asked) == (1, 3)


async def test_an_engine_stays_unless_the_executor_knows_more(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A member that lives on catch-ups would otherwise begin anew again and again, and never vote."""
    member = Member(tmp_path, 0)
    async with member.running():
        first = member.validator.engine
        member.validator.synced()
        await trio.sleep(0.1)
        assert member.validator.engine is first
        await extend(member.executor)
        member.validator.synced()
        while member.validator.engine is first:  # noqa: ASYNC110 - a turn has no event
            await trio.sleep(0.1)
        assert member.validator.engine.final_height == 1


async def test_the_engine_of_an_epoch_that_has_ended_stays_and_what_binds_is_handed_on(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """It may have voted in the next epoch too, before it forgot."""
    member = Member(tmp_path, 0)
    member.validator.engine = first = member.validator._make_engine(Quiet(), is_restart=True)
    async with member.running():
        await end_epoch(member.executor)
        member.validator.synced()
        await trio.sleep(1)
    assert member.validator.has_ended
    assert member.validator.engine is first
    assert (await member.validator.hand_on()).quiet == Quiet()


class TestLies:
    async def test_end_the_stream_of_who_sent_them_and_it_is_not_heard_for_a_while(
        self, tmp_path: Path, autojump_clock: trio.testing.MockClock
    ) -> None:
        own, liar = 0, 1
        member = Member(tmp_path, own)
        async with member.running(), trio.open_nursery() as nursery:
            theirs, ours = stream_pair(GENESIS.members[liar].node, GENESIS.members[own].node)

            async def handle() -> None:
                with suppress(StreamBroken):
                    await member.links.handle(as_stream(ours))

            nursery.start_soon(handle)
            bad = encode_message(vote(2, good=False))
            await theirs.send(bad * 40)
            await trio.sleep(1)
            assert member.links.is_shunned(node_of(liar))
            assert member.validator.refused == {Reason.BAD_SIGNATURE: 1}
            again = stream_pair(GENESIS.members[liar].node, GENESIS.members[own].node)[1]
            await member.links.handle(as_stream(again))  # refused at once
            await trio.sleep(60)
            assert not member.links.is_shunned(node_of(liar))
            nursery.cancel_scope.cancel()

    async def test_about_another_s_proposal_are_not_held_against_who_passed_it_on(
        self, tmp_path: Path, autojump_clock: trio.testing.MockClock
    ) -> None:
        """A node does not check all of a proposal that it can finalize without; it may pass on a leader's lie."""
        first = leader()
        own, between = [index for index in range(4) if index != first][:2]
        member = Member(tmp_path, own)
        block = Maker(member.executor).make().block
        lie = Proposal(replace(block, signature=Signature(bytes(64))), None)
        async with member.running():
            await member.receive(between, FrameType.PROPOSAL, lie.encode())
            await trio.sleep(1)
            assert member.validator.refused == {Reason.BAD_SIGNATURE: 1}
            assert not member.links.is_shunned(node_of(between))
            await member.receive(first, FrameType.PROPOSAL, lie.encode())
            await trio.sleep(1)
            assert member.links.is_shunned(node_of(first))

    async def test_of_a_later_epoch_only_make_the_node_ask(
        self, tmp_path: Path, autojump_clock: trio.testing.MockClock
    ) -> None:
        member = Member(tmp_path, 0)
        async with member.running():
            await member.receive(1, FrameType.VOTE, vote(2, epoch=9, good=False).encode())
            await trio.sleep(0.1)
            assert member.behind[-1] == node_of(1)
            assert not member.links.is_shunned(node_of(1))


async def test_who_floods_waits_for_itself(tmp_path: Path) -> None:
    """The engine does not run: what one member may have waiting ends, what another sends is taken."""
    member = Member(tmp_path, 0)
    sent = 0
    async with trio.open_nursery() as nursery:

        async def flood() -> None:
            nonlocal sent
            while True:
                await member.receive(1, FrameType.VOTE, vote(1).encode())
                sent += 1

        nursery.start_soon(flood)
        await trio.testing.wait_all_tasks_blocked()
        assert sent == SENDER_INPUTS_MAX
        with trio.fail_after(60):
            await member.receive(2, FrameType.VOTE, vote(2).encode())
        nursery.cancel_scope.cancel()
    member.votes.close()


def spoil(body: bytes, random: Random) -> bytes:
    """Return a message with some bytes changed, cut off or added, or as it is."""
    spoilt = bytearray(body)
    for _ in range(random.randrange(4)):
        spoilt[random.randrange(len(spoilt))] = random.randrange(256)
    match random.randrange(4):
        case 0:
            del spoilt[random.randrange(len(spoilt)) :]
        case 1:
            spoilt += random.randbytes(random.randrange(1, 80))
        case _:
            pass
    return bytes(spoilt)


async def test_no_bytes_of_a_member_raise_anything_but_a_refusal(tmp_path: Path) -> None:
    member = Member(tmp_path, 0)
    block = Maker(member.executor).make().block
    notarized = certify_vote(Vote(Kind.NOTARIZE, 0, 1, block.hash, 0), GENESIS.chain_id)
    child = replace(block.header, view=2, parent_view=1, parent_hash=block.hash, height=2)
    good = {
        FrameType.VOTE: vote(1).encode(),
        FrameType.CERTIFICATE: notarized.encode(),
        FrameType.PROPOSAL: Proposal(replace(block, header=child), notarized).encode(),
        FrameType.ASK: bytes(16),
    }
    taken = 0
    for seed in range(400):
        random = Random(seed)
        kind = random.choice(list(good))
        with suppress(Rejected):
            await member.receive(1, kind, spoil(good[kind], random))
        with suppress(trio.WouldBlock):
            item = member.validator._inbox.receive_nowait()
            assert isinstance(item, Heard)
            member.validator._shares[1].release()
            with suppress(Rejected):
                member.validator.engine.handle(GENESIS.time_ms, item)
                taken += 1
    assert taken
    member.votes.close()
