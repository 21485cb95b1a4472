"""What a node announces and where it starts. Running nodes are tested end to end."""

import pytest

from economics.committee import Member
from economics.crypto import NodeId, OwnerId
from p2pnode.dialling import bootstrap_of, dialable
from p2pnode.home import Config


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
