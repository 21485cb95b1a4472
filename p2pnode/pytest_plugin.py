"""The fixture of `p2pnode.testing`, for pytest, which loads this module at each start: it imports nothing heavy."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from p2pnode.testing import LocalTestnet


@pytest.fixture(scope="session")
def p2pnode_testnet() -> "Iterator[LocalTestnet]":
    """A network of 4 real nodes in this process, one for all tests of the session: see `p2pnode.testing`."""
    from p2pnode.testing import local_testnet

    with local_testnet(nodes=4) as net:
        yield net
