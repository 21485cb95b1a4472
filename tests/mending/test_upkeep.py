"""A node of real processes that lost its slivers has them again, for about as many bytes as were lost."""

import shutil
from pathlib import Path
from typing import Any

from p2pnode import testnet
from p2pnode.testnet import Network
from tests.p2pnode.command import make_file, p2pnode, wait_for


def slivers_of(network: Network, index: int) -> dict[str, bytes]:
    store = Path(network.process(index).home, "store")
    return {path.name: path.read_bytes() for path in (store / "slivers").rglob("*") if path.is_file()}


def test_a_node_that_lost_its_store_refills_itself(small: Network, tmp_path: Path) -> None:
    home = small.client_home.path
    file = make_file(tmp_path / "file", 20_000_000)
    blob_id = p2pnode("store", file, home=home).out.decode().strip()
    before = wait_for(lambda: slivers_of(small, 2) if len(slivers_of(small, 2)) == 3 else None)
    testnet.kill(small, 2)
    shutil.rmtree(Path(small.process(2).home, "store", "slivers"))
    shutil.rmtree(Path(small.process(2).home, "store", "blobs"))
    testnet.restart(small, 2)

    def refilled() -> dict[str, Any] | None:
        row = p2pnode("status", "--json", home=home).json["members"][2]
        upkeep = row.get("upkeep") if row["reachable"] else None
        return upkeep if upkeep and upkeep["restored_pairs"] == 3 else None

    upkeep = wait_for(refilled)
    assert slivers_of(small, 2) == before
    lost = sum(map(len, before.values()))
    assert upkeep["restored_bytes"] == lost
    assert upkeep["symbols_bytes"] + upkeep["metadata_bytes"] + upkeep["transfer_bytes"] <= 1.3 * lost
    testnet.kill(small, 0)
    assert p2pnode("read", blob_id, "-o", tmp_path / "back", home=home).code == 0
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
