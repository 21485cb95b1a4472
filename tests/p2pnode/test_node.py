"""What a node announces. Running nodes are tested end to end."""

import pytest

from p2pnode.node import dialable


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
