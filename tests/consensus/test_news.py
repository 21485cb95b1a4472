"""What a node makes of announcements of final blocks: nothing on the say of a liar."""

from dataclasses import replace
from pathlib import Path

import pytest

from economics.block import Finality
from economics.crypto import NodeId, Signature
from economics.errors import Reason
from p2pnode.consensus.participant import Participant
from tests.p2pnode.finalchain import GENESIS, Maker, end_epoch, extend, finalize
from tests.p2pnode.joined import AUTHOR, ignored, join, verify_all_spoilt
from tests.p2pnode.member import node_of
from tests.refusals import reason
from tests.small import OPERATORS, OTHER_OWNER


@pytest.fixture
async def member(tmp_path: Path) -> Participant:
    return join(tmp_path, OPERATORS[0])


@pytest.fixture
async def guest(tmp_path: Path) -> Participant:
    return join(tmp_path, OTHER_OWNER)


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
        assert reason(guest.news._verify_announcement, AUTHOR, made[0].encode() + bad.encode()) is Reason.BAD_SIGNATURE
        guest.news._verify_announcement(AUTHOR, first)
        other = made[0].encode() + finalize(made[0], signers=(1, 2, 3)).encode()
        assert ignored(lambda: guest.news._verify_announcement(AUTHOR, other))
        await guest.news._handle_announcement(NodeId(OPERATORS[2].public), first)
        assert guest.news._behind.is_set()
        assert guest.news._ahead == node_of(2)

    async def test_go_on_through_a_node_that_has_the_block_already(self, guest: Participant) -> None:
        header = (await extend(guest.executor)).block.header
        guest.news._verify_announcement(AUTHOR, header.encode() + finalize(header).encode())

    async def test_of_epochs_that_cannot_be_told_go_nowhere(self, guest: Participant) -> None:
        header = Maker(guest.executor).make(epoch=7, height=99).block.header
        data = header.encode() + finalize(header).encode()
        assert ignored(lambda: guest.news._verify_announcement(AUTHOR, data))
        await end_epoch(guest.executor)
        await extend(guest.executor, after_ms=GENESIS.parameters.epoch_ms // 2)
        coming = replace(Maker(guest.executor).make().block.header, epoch=2)
        guest.news._verify_announcement(AUTHOR, coming.encode() + finalize(coming).encode())


async def test_no_bytes_raise_anything_but_a_verdict(member: Participant) -> None:
    header = Maker(member.executor).make().block.header
    verify_all_spoilt(member.news._verify_announcement, header.encode() + finalize(header).encode())
