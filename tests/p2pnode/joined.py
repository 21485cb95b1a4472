"""A node's part in the chain with nobody around it, and transactions for it."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import cast

import pytest
import trio
import trio.testing

from economics.arguments import Transfer
from economics.crypto import NodeId, OwnerId
from economics.errors import Rejected
from economics.transactions import SignedTransaction
from gossip.pubsub import Gossip, Ignored
from p2pnode.consensus.executor import Executor
from p2pnode.consensus.participant import Participant
from p2pnode.consensus.speech import speak_honestly
from p2pnode.keys import Key
from p2pnode.members import Members
from tests.p2pnode.finalchain import GENESIS, open_executor, sign
from tests.p2pnode.member import Nobody, open_binding
from tests.small import OTHER_OWNER, OWNER

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


def ignored(call: Callable[[], object]) -> bool:
    with pytest.raises(Ignored):
        call()
    return True


def verify_all_spoilt(verify: Callable[[NodeId, bytes], None], good: bytes) -> None:
    """Have spoilt bytes judged, which may hold by chance; nothing but a verdict may come of it."""
    for seed in range(200):
        random = Random(seed)
        spoilt = bytearray(good)
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
    with trio.fail_after(120):
        while not condition():
            await trio.lowlevel.checkpoint()
