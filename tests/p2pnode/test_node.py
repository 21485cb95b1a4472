"""What a node announces, where it starts, and what gossip it takes. Running nodes are tested end to end."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio.testing

from economics.committee import Member
from economics.crypto import NodeId, OwnerId
from gossip.pubsub import Ignored
from p2pnode.adversary import Behaviour
from p2pnode.coding.kernel import load_kernel
from p2pnode.dialling import bootstrap_of, dialable
from p2pnode.home import Config, Home
from p2pnode.node import BATCHES_BURST, Node
from p2pnode.slivers.certifier import build_batch
from tests.p2pnode.finalchain import GENESIS, open_executor
from tests.small import OPERATORS, commit, make_blob, make_statement, sign_statement


@pytest.mark.parametrize("wildcard", ["/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001"])
def test_a_wildcard_is_never_announced(wildcard: str) -> None:
    for address in dialable((wildcard,)):
        assert address.split("/")[2] not in ("0.0.0.0", "::")
        assert address.endswith("/tcp/4001")


def test_a_plain_address_is_announced_as_it_is() -> None:
    assert dialable(("/ip4/127.0.0.1/tcp/1", "/dns4/example.org/tcp/2")) == (
        "/ip4/127.0.0.1/tcp/1",
        "/dns4/example.org/tcp/2",
    )


def test_it_starts_from_where_members_said_last_that_they_are() -> None:
    owner, stays, moved = OwnerId(bytes(32)), NodeId(b"s" * 32), NodeId(b"m" * 32)
    founders = (Member(stays, owner, 1, ("/ip4/127.0.0.1/tcp/1",)), Member(moved, owner, 1, ("/ip4/127.0.0.1/tcp/2",)))
    newest = (Member(moved, owner, 1, ("/ip4/127.0.0.1/tcp/3",)), Member(stays, owner, 1))
    assert bootstrap_of(Config(), (*founders, *newest)) == [
        (stays, ("/ip4/127.0.0.1/tcp/1",)),
        (moved, ("/ip4/127.0.0.1/tcp/3",)),
    ]


async def test_batches_of_a_member_beyond_its_pace_go_no_further(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Each costs every node up to 15 ms: one member could keep them all busy."""
    node = Node(
        genesis=GENESIS,
        key=OPERATORS[0],
        config=Config(),
        home=Home(tmp_path),
        kernel=load_kernel(),
        behaviour=Behaviour.HONEST,
        executor=open_executor(tmp_path),
    )
    plain = make_statement(GENESIS, make_blob(GENESIS.code, 10).header)

    def batch(member: int, salt: int) -> bytes:
        made = replace(plain, salt=salt.to_bytes(16, "big"))
        return build_batch([(made, sign_statement(made), *commit(made, member))])

    one, two = (NodeId(OPERATORS[member].public) for member in (1, 2))
    for salt in range(BATCHES_BURST):
        node.verify_gossip(one, batch(1, salt))
    with pytest.raises(Ignored):
        node.verify_gossip(one, batch(1, BATCHES_BURST))
    node.verify_gossip(two, batch(2, 0))
    await trio.sleep(1)
    node.verify_gossip(one, batch(1, BATCHES_BURST))
