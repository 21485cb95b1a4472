"""Members come, go and lose their disks while epochs end, on real processes: whatever happens, every read succeeds.

One testnet of 7 nodes with 21 shards lives through it, test by test: each costs a busy machine an epoch or two.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from p2pnode import testnet
from p2pnode.home import Home
from p2pnode.testnet import Network
from tests.p2pnode.command import finish, make_file, p2pnode, start, wait_for

EPOCH_S = 20
BIG_BYTES = (8 << 20) + 123
"""Two segments: sending them while epochs of 20 s end takes a busy machine over a boundary now and then."""


@dataclass
class Town:
    """A testnet whose members change, and what was stored in it."""

    directory: Path
    network: Network
    blobs: dict[str, Path]

    @property
    def home(self) -> Path:
        return self.network.client_home.path

    def store(self, name: str, size: int) -> str:
        file = make_file(self.directory / name, size, seed=size)
        done = p2pnode("store", "--json", file, home=self.home)
        assert done.code == 0, done.err
        self.blobs[done.json["blob_id"]] = file
        return str(done.json["blob_id"])

    def read_all(self) -> None:
        """Read every blob; each must be there, and be what it was."""
        for blob_id, file in self.blobs.items():
            done = p2pnode("read", blob_id, "-o", self.directory / "back", home=self.home)
            assert done.code == 0, done.err
            assert (self.directory / "back").read_bytes() == file.read_bytes()

    def committee(self) -> dict[str, Any]:
        done = p2pnode("committee", "--json", home=self.home)
        assert done.code == 0, done.err
        return dict(done.json)

    def member(self, index: int) -> dict[str, Any] | None:
        """Return what the chain says of a node, None if it has no seat now and none in the next epoch."""
        node = self.network.process(index).node
        return next((row for row in self.committee()["members"] if row["node"] == node), None)

    def upkeep(self, index: int) -> dict[str, Any] | None:
        """Return what a node says of its healing."""
        rows = p2pnode("status", "--json", home=self.home).json["members"]
        found = next((row for row in rows if row["node"] == self.network.process(index).node), None)
        return None if found is None or not found["reachable"] else found["upkeep"]

    def read_until(self, condition: Any) -> Any:
        """Read every blob again and again, each time with success, until something has come about."""

        def look() -> Any:
            self.read_all()
            return condition()

        return wait_for(look)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    directory = tmp_path_factory.mktemp("town")
    network = testnet.up(directory / "net", nodes=7, shards=21, parameters=testnet.parameters_of(EPOCH_S))
    found = Town(directory, network, {})
    found.store("small", 5_000)
    found.store("large", BIG_BYTES)
    yield found
    testnet.down(testnet.load(network.directory))


def test_a_node_that_joins_gets_shards_and_holds_what_was_stored_before(town: Town) -> None:
    town.network = testnet.add(town.network)

    def has_joined() -> bool:
        row = town.member(7)
        return row is not None and row["shards"] > 0 and row["has_reported"]

    town.read_until(has_joined)
    held = wait_for(lambda: town.upkeep(7))
    assert held["missing"] == 0
    assert held["restored_pairs"] >= 2 * (1 + 2)  # two shards at least, of a blob of one segment and one of two


def test_reads_and_writes_go_on_through_two_epoch_changes_and_a_kill(town: Town) -> None:
    began = town.committee()["epoch"]
    testnet.kill(town.network, 3)
    file = make_file(town.directory / "crossing", BIG_BYTES, seed=9)
    writing = start("store", "--json", file, home=town.home)
    town.read_until(lambda: town.committee()["epoch"] >= began + 2)
    written = finish(writing)
    assert written.code == 0, written.err
    town.blobs[written.json["blob_id"]] = file
    town.read_all()
    town.network = testnet.restart(town.network, 3)


def test_a_node_whose_disk_is_lost_refills_itself(town: Town) -> None:
    town.network = testnet.replace(town.network, 2)

    def is_refilled() -> bool:
        said = town.upkeep(2)
        return said is not None and said["restored_pairs"] > 0 and said["missing"] == 0

    town.read_until(is_refilled)
    assert (Home(Path(town.network.process(2).home)).store_path).exists()


def test_a_node_that_leaves_may_stop_when_others_have_what_it_held(town: Town) -> None:
    testnet.remove(town.network, 1)
    assert not town.network.process(1).is_running
    row = town.member(1)
    assert row is None or (row["shards"], row["next_shards"]) in ((0, 0), (0, None))
    town.read_all()
    stakes = p2pnode("stakes", "--json", home=Path(town.network.process(1).home)).json["stakes"]
    assert [one["phase"] for one in stakes] == ["unbonding"]
