"""Four first members and nodes that stake to take their seats, block by block on one executor."""

from dataclasses import replace

from economics.arguments import Operation, PutStake, RegisterNode, Unstake, node_message
from economics.beginning import first_stake_id
from economics.crypto import Digest, OwnerId
from economics.genesis import FROST_PER_WAL
from p2pnode.consensus.executor import Executor
from tests.p2pnode.finalchain import GENESIS as PLAIN
from tests.p2pnode.finalchain import end_epoch, extend, sign
from tests.p2pnode.member import node_of
from tests.small import OPERATORS, OWNER

GENESIS = replace(PLAIN, parameters=replace(PLAIN.parameters, stake_frost_per_shard=10 * FROST_PER_WAL))
"""Four members of one shard and of 10 WAL each: three are a quorum."""
STAKE_FROST = 5 * FROST_PER_WAL
"""Of a standby: less than that of a first member, whose seat it gets only when that one leaves."""


def registration(own: int, *, nonce: int, chain_id: Digest = GENESIS.chain_id) -> RegisterNode:
    """Return how the owner registers a node with a transaction of this nonce."""
    message = node_message(chain_id=chain_id, sender=OwnerId(OWNER.public), nonce=nonce)
    address = f"/ip4/127.0.0.1/tcp/{own}"
    return RegisterNode(node_of(own), 1 << 24, 1_000, 500, 0, (address,), OPERATORS[own].sign(message))


async def do(executor: Executor, *operations: Operation) -> None:
    """Have the owner do these, each in a block of its own."""
    for operation in operations:
        await extend(executor, sign(executor.ledger, OWNER, operation))


async def stake(executor: Executor, own: int) -> None:
    """Have a node registered, with a standby's stake."""
    nonce = executor.ledger.account(OwnerId(OWNER.public)).nonce
    await do(executor, registration(own, nonce=nonce), PutStake(node_of(own), STAKE_FROST))


async def unstake(executor: Executor, own: int) -> None:
    """Have a first member leave."""
    await do(executor, Unstake(first_stake_id(node_of(own)), 0))


async def lose(executor: Executor, *members: int) -> None:
    """Have first members leave for standbys, and go on into the epoch without them."""
    for own in members:
        await unstake(executor, own)
    await end_epoch(executor)
    for _ in range(2):
        await extend(executor)
