"""Gossip over real sockets: what holds reaches everybody, what does not goes no further, and junk ends nobody."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from economics.crypto import NodeId
from economics.errors import Reason, Rejected
from gossip.pubsub import Gossip, open_gossip

TOPIC = "/p2pnode/00000000/commitments/1"
SIZE_MAX = 65_536


def validate(author: NodeId, data: bytes) -> None:
    if data.startswith(b"bad"):
        raise Rejected(Reason.BAD_SIGNATURE)
    if data.startswith(b"bug"):
        raise ValueError


class Member:
    def __init__(self, host: Any, gossip: Gossip) -> None:
        self.host = host
        self.gossip = gossip
        self.got: list[bytes] = []

    async def handle(self, author: NodeId, data: bytes) -> None:
        if data.startswith(b"crash"):
            raise ValueError
        self.got.append(data)


@asynccontextmanager
async def open_members(count: int) -> AsyncIterator[list[Member]]:
    async with AsyncExitStack() as stack:
        members = []
        for index in range(count):
            host = new_host(key_pair=create_new_key_pair(bytes([index + 1] * 32)))
            stack.push_async_callback(host.close)
            await stack.enter_async_context(host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]))
            gossip = await stack.enter_async_context(open_gossip(host=host, topics=[TOPIC]))
            member = Member(host, gossip)
            await gossip.subscribe(TOPIC, size_max=SIZE_MAX, validate=validate, handle=member.handle)
            members.append(member)
        yield members


async def link(one: Member, other: Member) -> None:
    await one.host.connect(PeerInfo(other.host.get_id(), other.host.get_addrs()))


async def until(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(15):
        while not is_so():
            await trio.sleep(0.02)


async def test_a_message_reaches_all() -> None:
    async with open_members(5) as members:
        for left, right in zip(members, members[1:], strict=False):
            await link(left, right)
        await until(lambda: all(member.gossip.mesh(TOPIC) for member in members))
        await members[0].gossip.publish(TOPIC, b"news")
        await until(lambda: all(member.got == [b"news"] for member in members[1:]))


async def test_an_invalid_message_is_not_forwarded() -> None:
    async with open_members(3) as (a, b, c):
        await link(a, b)
        await link(b, c)
        await until(lambda: b.gossip.mesh(TOPIC) == 2)
        await a.gossip.publish(TOPIC, b"bad news")
        await a.gossip.publish(TOPIC, b"good news")
        await until(lambda: c.got != [])
        assert (b.got, c.got) == ([b"good news"], [b"good news"])
        assert b.gossip.rejected == {Reason.BAD_SIGNATURE: 1}
