"""Nodes gain and lose seats while the chain goes on: real stakes, real boundaries, five nodes in one process."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from economics.arguments import Operation, PutStake, Unstake
from economics.beginning import first_stake_id
from economics.consensus import Quiet
from economics.crypto import NodeId
from p2pnode.consensus import membership as membership_module
from p2pnode.consensus.links import FrameType, build_frame
from p2pnode.consensus.participant import Participant
from p2pnode.errors import StreamBroken
from p2pnode.protocols import consensus_protocol
from tests.p2pnode.finalchain import extend, sign
from tests.p2pnode.member import node_of
from tests.p2pnode.standbys import GENESIS as STAKED
from tests.p2pnode.standbys import STAKE_FROST, lose, registration, stake, unstake
from tests.p2pnode.village import World, join, network, pay, settle
from tests.small import OWNER

GENESIS = replace(
    STAKED,
    parameters=replace(
        STAKED.parameters,
        block_interval_ms=20,
        challenge_rounds=0,
        epoch_ms=4_000,
        heartbeat_ms=200,
        timeout_ms=500,
    ),
)
STANDBY = 4


def seats(node: Participant) -> list[NodeId]:
    return [member.node for member in node.executor.ledger.committee.members]


async def until(node: Participant, condition: Callable[[], bool]) -> None:
    while not condition():
        await node.executor.advanced.wait()


async def submit(node: Participant, operations: tuple[Operation, ...]) -> None:
    """Have the owner ask for these, one after the other."""
    for nonce, operation in enumerate(operations):
        await node.intake.submit(sign(node.executor.ledger, OWNER, operation, nonce=nonce))


async def swap(nodes: Sequence[Participant]) -> None:
    """Have the standby take the seat of member 0, which unstakes, and wait until all are in that epoch."""
    operations: tuple[Operation, ...] = (
        registration(STANDBY, nonce=0, chain_id=GENESIS.chain_id),
        PutStake(node_of(STANDBY), STAKE_FROST),
        Unstake(first_stake_id(node_of(0)), 0),
    )
    await submit(nodes[1], operations)
    for node in nodes:
        await until(node, lambda node=node: seats(node) == [node_of(own) for own in (1, 2, 3, 4)])  # type: ignore[misc]


def shunned(nodes: Sequence[Participant]) -> list[NodeId]:
    return [node for one in nodes if one.membership.links is not None for node in one.membership.links._shunned]


class TestSwap:
    async def test_gives_the_standby_a_vote_and_takes_it_from_who_left(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every index is another than before, and one of the old members is down: the rest needs the new one's vote."""
        monkeypatch.setattr(membership_module, "LINGER_S", 0.5)
        async with network(tmp_path, range(5), GENESIS) as (world, nodes):
            assert nodes[STANDBY].membership.validator is None
            await swap(nodes)
            world.stop(nodes[3])
            left = [nodes[own] for own in (0, 1, 2, 4)]
            for nonce, node in enumerate(left, start=3):
                await node.intake.submit(pay(nodes[1], nonce))
            await settle(left, 3 + len(left))
            assert [node.membership.own for node in left] == [None, 0, 1, 3]
            await until(nodes[0], lambda: nodes[0].membership.links is None)
            assert nodes[0].membership.validator is None
            assert shunned(left) == []

    async def test_goes_on_into_epochs_with_the_same_members(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with network(tmp_path, range(5), GENESIS) as (_, nodes):
            await swap(nodes)
            lingering = nodes[0].membership.validator
            assert lingering is not None
            assert lingering.has_ended
            assert nodes[0].links is None  # what it is given to pass on goes by gossip
            validator, links = nodes[1].membership.validator, nodes[1].membership.links
            epoch = nodes[1].executor.ledger.epoch
            for node in nodes[1:]:
                await node.executor.wait_epoch_beyond(epoch)
            await nodes[4].intake.submit(pay(nodes[4], 3))
            await settle(nodes, 4)
            assert nodes[1].membership.links is links
            assert nodes[1].membership.validator is not validator
            assert shunned(nodes) == []


async def test_a_member_that_was_away_while_its_seat_went_to_another_follows(tmp_path: Path) -> None:
    """It comes back with the committee of its time, which is no more: whoever answers leads it on."""
    async with network(tmp_path, (1, 2, 3, STANDBY), GENESIS) as (world, nodes):
        await swap(nodes)
        late = join(world, tmp_path / "0", 0)
        assert late.membership.own == 0
        world.start(late)
        await settle([*nodes, late], 3)
        while late.executor.ledger.epoch < nodes[0].executor.ledger.epoch:
            await late.executor.advanced.wait()
        assert late.membership.own is None
        assert shunned([*nodes, late]) == []


async def test_who_may_have_forgotten_votes_is_silent_in_the_epoch_that_gives_it_a_seat(tmp_path: Path) -> None:
    """An empty log says nothing about what a restored node has signed, with or without a seat in between."""
    async with trio.open_nursery() as nursery:
        node = join(World(nursery, STAKED), tmp_path, STANDBY)
        node.membership._binding = replace(node.membership._binding, quiet=Quiet())
        await stake(node.executor, STANDBY)
        nursery.start_soon(node.membership.run)
        await lose(node.executor, 0)
        with trio.fail_after(60):
            while node.membership.validator is None:
                await trio.lowlevel.checkpoint()
        assert node.membership.own == 3
        assert node.membership.validator.is_quiet
        nursery.cancel_scope.cancel()


class TestStream:
    async def test_of_a_member_of_the_next_committee_waits_for_its_time_and_makes_the_node_ask(
        self, tmp_path: Path
    ) -> None:
        """That of anyone else is refused: of the members of now this node is none yet."""
        async with trio.open_nursery() as nursery:
            world = World(nursery, STAKED)
            node = join(world, tmp_path, STANDBY)
            await stake(node.executor, STANDBY)
            await unstake(node.executor, 0)
            await extend(node.executor, after_ms=STAKED.parameters.epoch_ms // 2)
            node.news._behind = trio.Event()
            staying, leaving = (
                world.open_stream(node_of(own), node_of(STANDBY), consensus_protocol(STAKED)) for own in (1, 0)
            )
            with trio.fail_after(60):
                with pytest.raises(StreamBroken):
                    await leaving.receive_some(1)
                await node.news._behind.wait()
                nursery.start_soon(node.membership.run)
                await extend(node.executor, after_ms=STAKED.parameters.epoch_ms)
                await staying.send(build_frame(FrameType.TRANSACTIONS, b"news"))
                assert await node.intake._incoming.receive() == (node_of(1), b"news")
            nursery.cancel_scope.cancel()
