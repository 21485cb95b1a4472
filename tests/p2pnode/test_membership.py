"""Nodes gain and lose seats while the chain goes on: real stakes, real boundaries, five nodes in one process."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from economics.arguments import Operation, PutStake, RegisterNode, Unstake, node_message
from economics.beginning import first_stake_id
from economics.crypto import NodeId, OwnerId
from economics.genesis import FROST_PER_WAL
from p2pnode import membership as membership_module
from p2pnode.participant import Participant
from tests.p2pnode.finalchain import sign
from tests.p2pnode.member import node_of
from tests.p2pnode.village import GENESIS as STILL
from tests.p2pnode.village import PACE, join, network, pay, settle
from tests.small import OPERATORS, OWNER

GENESIS = replace(
    STILL,
    parameters=replace(
        PACE, epoch_ms=4_000, heartbeat_ms=200, challenge_rounds=0, stake_frost_per_shard=10 * FROST_PER_WAL
    ),
)
"""Four members of one shard and of 10 WAL each: three are a quorum."""
STANDBY = 4


def registration(nonce: int) -> RegisterNode:
    """Return how the owner registers the standby."""
    message = node_message(chain_id=GENESIS.chain_id, sender=OwnerId(OWNER.public), nonce=nonce)
    signature = OPERATORS[STANDBY].sign(message)
    return RegisterNode(node_of(STANDBY), 1 << 24, 1_000, 500, 0, ("/ip4/127.0.0.1/tcp/9",), signature)


def seats(node: Participant) -> list[NodeId]:
    return [member.node for member in node.executor.ledger.committee.members]


async def until(node: Participant, condition: Callable[[], bool]) -> None:
    while not condition():
        await node.executor.advanced.wait()


async def submit(node: Participant, operations: tuple[Operation, ...]) -> None:
    """Have the owner ask for these, one after the other."""
    for nonce, operation in enumerate(operations):
        await node.submit(sign(node.executor.ledger, OWNER, operation, nonce=nonce))


async def swap(nodes: Sequence[Participant]) -> None:
    """Have the standby take the seat of member 0, which unstakes, and wait until all are in that epoch."""
    operations: tuple[Operation, ...] = (
        registration(0),
        PutStake(node_of(STANDBY), 5 * FROST_PER_WAL),
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
                await node.submit(pay(nodes[1], nonce))
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
            validator, links = nodes[1].membership.validator, nodes[1].membership.links
            epoch = nodes[1].executor.ledger.epoch
            for node in nodes[1:]:
                await node.executor.wait_epoch_beyond(epoch)
            await nodes[4].submit(pay(nodes[4], 3))
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
