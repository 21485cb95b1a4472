"""Four members with real engines, ledgers and files, joined by streams in memory: f = 1 of them may lie at will."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from economics.arguments import Transfer
from economics.block import Proposal, leader_of
from economics.crypto import Digest, NodeId, Signature
from economics.fields import sized
from economics.genesis import Genesis
from economics.ledger import Ledger
from economics.transactions import SignedTransaction
from economics.votes import Kind, SignedVote, Vote
from p2pnode.clients.trust import trusted_genesis
from p2pnode.consensus import chainsync as chainsync_module
from p2pnode.consensus.links import FrameType, build_frame
from p2pnode.consensus.speech import encode_message
from p2pnode.errors import NetworkError
from p2pnode.protocols import chain_protocol, consensus_protocol
from tests.p2pnode.chainnet import silent
from tests.p2pnode.finalchain import Maker, open_executor, sign
from tests.p2pnode.village import GENESIS, TO, join, network, pay, settle
from tests.small import OPERATORS, OWNER


async def test_they_execute_what_any_of_them_is_given(tmp_path: Path) -> None:
    async with network(tmp_path, range(4)) as (_, nodes):
        for nonce in range(8):
            await nodes[nonce % 4].intake.submit(pay(nodes[0], nonce))
        await settle(nodes, 8)


async def test_three_of_them_go_on_and_the_fourth_catches_up(tmp_path: Path) -> None:
    async with network(tmp_path, range(3)) as (world, nodes):
        for nonce in range(4):
            await nodes[0].intake.submit(pay(nodes[0], nonce))
        await settle(nodes, 4)
        late = join(world, tmp_path / "3", 3)
        world.start(late)
        await settle([late], 4)
        await late.intake.submit(pay(late, 4))
        await settle([*nodes, late], 5)


def lies() -> dict[str, bytes]:
    """Return what a member might flood the others with."""
    root = trusted_genesis(GENESIS).root
    view = next(view for view in range(1, 99) if leader_of(view, root_hash=root.hash, committee=GENESIS.committee) == 3)
    bad = SignedVote(Vote(Kind.NULLIFY, 0, view, Digest(bytes(32)), 1), Signature(bytes(64)))
    ahead = SignedVote(Vote(Kind.NULLIFY, 9, view, Digest(bytes(32)), 3), Signature(bytes(64)))
    forged = sign(Ledger.at_genesis(GENESIS), OWNER, Transfer(TO, 1), nonce=0).raw[:-64] + bytes(64)
    return {
        "votes of others": encode_message(bad),
        "votes of epochs to come": encode_message(ahead),
        "transactions": build_frame(FrameType.TRANSACTIONS, sized(forged) * 100),
        "frames of no type": b"\x00\x00\x00\x01\xff",
    }


@pytest.mark.parametrize("what", ["votes of others", "votes of epochs to come", "transactions", "frames of no type"])
async def test_three_of_them_go_on_while_the_fourth_floods_them(what: str, tmp_path: Path) -> None:
    flood = lies()[what]
    liar = NodeId(OPERATORS[3].public)
    async with network(tmp_path, range(3)) as (world, nodes):

        async def pour(member: int) -> None:
            while True:
                with suppress(NetworkError):
                    stream = world.open_stream(liar, NodeId(OPERATORS[member].public), consensus_protocol(GENESIS))
                    for _ in range(10_000):
                        await stream.send(flood * 50)
                await trio.sleep(0.01)

        for member in range(3):
            world.nursery.start_soon(pour, member)
        for nonce in range(4):
            await nodes[nonce % 3].intake.submit(pay(nodes[0], nonce))
        await settle(nodes, 4)


def led_first_by(member: int) -> Genesis:
    """Return a network whose first view this member leads."""
    for number in range(1_000):
        genesis = replace(GENESIS, name=f"small {number}")
        root = trusted_genesis(genesis).root
        if leader_of(1, root_hash=root.hash, committee=genesis.committee) == member:
            return genesis
    raise AssertionError("a draw among four")


async def test_three_of_them_go_on_when_the_fourth_proposes_what_nobody_has(tmp_path: Path) -> None:
    """It names a transaction that does not exist, and whoever asks it for the body is left waiting."""
    genesis = led_first_by(3)
    liar = NodeId(OPERATORS[3].public)
    made = Maker(open_executor(tmp_path / "liar", genesis)).make(pay_of(genesis, 63)).block
    frame = encode_message(Proposal(made, None))
    async with network(tmp_path, range(3), genesis) as (world, nodes):
        world.served[liar, chain_protocol(genesis)] = silent
        for member in range(3):
            stream = world.open_stream(liar, NodeId(OPERATORS[member].public), consensus_protocol(genesis))
            await stream.send(frame)
        for nonce in range(3):
            await nodes[nonce].intake.submit(pay(nodes[0], nonce))
        await settle(nodes, 3)
        stores = [node.executor.store for node in nodes]
        assert all(store.header(height) != made.header for store in stores for height in range(1, store.head() + 1))


async def test_one_that_was_away_catches_up_past_a_liar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The liar says that it is far ahead, and answers nothing more; and it shows the node votes of views to come."""
    monkeypatch.setattr(chainsync_module, "HEAD_S", 3.0)
    liar = NodeId(OPERATORS[2].public)
    async with network(tmp_path, (0, 1, 2)) as (world, nodes):
        for nonce in range(4):
            await nodes[0].intake.submit(pay(nodes[0], nonce))
        await settle(nodes, 4)
        world.served[liar, chain_protocol(GENESIS)] = silent
        late = join(world, tmp_path / "3", 3)
        world.start(late)
        ahead = SignedVote(Vote(Kind.NULLIFY, 9, 1, Digest(bytes(32)), 2), Signature(bytes(64)))
        stream = world.open_stream(liar, NodeId(OPERATORS[3].public), consensus_protocol(GENESIS))
        await stream.send(encode_message(ahead))
        await settle([late], 4)


def pay_of(genesis: Genesis, nonce: int) -> SignedTransaction:
    return sign(Ledger.at_genesis(genesis), OWNER, Transfer(TO, 1), nonce=nonce)
