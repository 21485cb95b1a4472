"""A member's journal holds what binds it: nothing that was sent is forgotten before the chain has passed it."""

from pathlib import Path

import pytest

import p2pnode.consensus.journal as journal_module
from economics.block import Proposal
from p2pnode.consensus.journal import Record, encode_kept
from p2pnode.consensus.links import FrameType
from p2pnode.consensus.votelog import VoteLog
from tests.p2pnode.finalchain import GENESIS, Maker, certify_vote, open_executor
from tests.p2pnode.member import Member, vote


async def test_a_vote_that_is_logged_while_the_log_is_pruned_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between the choice of what is kept and the pruning itself, and has been sent: to forget it is to lie."""
    member = Member(tmp_path, 0)
    old, fresh = vote(0, view=1), vote(0, view=9)
    maker = Maker(member.executor)
    for _ in range(3):
        maker.make()
    await maker.apply()
    member.votes.append([(FrameType.VOTE, old.encode())])
    prune = member.votes.prune

    def late(keep: object) -> None:
        member.votes.append([(FrameType.VOTE, fresh.encode())])
        prune(keep)  # type: ignore[arg-type]

    monkeypatch.setattr(member.votes, "prune", late)
    monkeypatch.setattr(journal_module, "LOG_BYTES_MAX", 0)
    await member.validator.journal.prune((0, 3))
    member.votes.close()
    log, replay = VoteLog.open(tmp_path / "votes.log", GENESIS.chain_id)
    log.close()
    assert replay.records == [(int(FrameType.VOTE), fresh.encode())]


async def test_a_record_s_epoch_and_view_are_read_without_its_bodies(tmp_path: Path) -> None:
    executor = open_executor(tmp_path)
    block = Maker(executor).make(skip_views=6).block
    executor.store.close()
    signed = vote(0, view=9, epoch=3)
    certificate = certify_vote(signed.vote, GENESIS.chain_id)
    records = (
        Record(FrameType.VOTE, signed.encode()),
        Record(FrameType.CERTIFICATE, certificate.encode()),
        Record(FrameType.PROPOSAL, encode_kept(Proposal(block, None), ())),
    )
    assert [record.place for record in records] == [(3, 9), (3, 9), (0, block.header.view)]
    assert block.header.view == 7
