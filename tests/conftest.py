"""For all tests: the same examples each time, no property fails for being slow, and testnets.

Those of real processes are only as many as the tests need: each costs five seconds of both cores to start.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from p2pnode import testnet
from p2pnode.testnet import Network

settings.register_profile("p2pnode", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("p2pnode")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in what a shell starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["p2pnode.pytest_plugin"]
"""As an installed p2pnode has pytest load it; whichever is first, it is loaded once."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have what takes longest begin first: with two workers the other one goes on with all the rest."""
    items.sort(key=lambda item: "simulation/test_simulation.py" not in item.nodeid)


@pytest.fixture(scope="module")
def adversarial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """7 nodes with 21 shards, f = 6: one lies, one drips, and so no other may fail."""
    directory = tmp_path_factory.mktemp("adversarial")
    network = testnet.up(directory, nodes=7, shards=21, behaviours=["stalled", "liar"])
    yield network
    testnet.down(network)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Network]:
    """4 nodes with a shard each, f = 1, for tests that break it."""
    network = testnet.up(tmp_path / "net", nodes=4, shards=4)
    yield network
    testnet.down(testnet.load(network.directory))
