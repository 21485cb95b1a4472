"""A testnet inside the process: nodes that can be killed, epochs that pass, and nothing that stays behind."""

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import Closed, InputError
from p2pnode.testing import LocalTestnet, local_testnet
from tests.p2pnode.patience import patience as patience

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import pytest
import trio

from p2pnode.client import open_client

CHAINS = set()


def test_sync(p2pnode_testnet):
    CHAINS.add(p2pnode_testnet.home)
    with p2pnode_testnet.client() as client:
        assert client.read(client.store(b"one").blob_id) == b"one"


@pytest.mark.trio
async def test_trio(p2pnode_testnet):
    CHAINS.add(p2pnode_testnet.home)
    async with open_client(p2pnode_testnet.home) as client:
        assert await client.read((await client.store(b"two")).blob_id) == b"two"


def test_it_was_one_network(p2pnode_testnet):
    assert CHAINS == {p2pnode_testnet.home}
"""


def settings_of_the_process() -> dict[str, Any]:
    return {
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
        "switch interval": sys.getswitchinterval(),
        "handlers": list(logging.getLogger().handlers),
        "directory": os.getcwd(),
        "threads": sorted(thread.name for thread in threading.enumerate() if not thread.name.startswith("Trio thread")),
    }


def test_two_networks_one_after_the_other_leave_nothing_behind() -> None:
    homes, ids, before = [], [], settings_of_the_process()
    for _ in range(2):
        with local_testnet(nodes=4, shards=7) as net:
            with net.client() as client:
                ids.append(client.store(b"as you like it").blob_id)
                assert client.read(ids[-1]) == b"as you like it"
            assert net.home.exists()
            homes.append(net.home)
        with pytest.raises(Closed):
            net.kill(0)
    assert settings_of_the_process() == before
    assert ids[0] == ids[1]
    assert homes[0] != homes[1]
    assert [home.parent.exists() for home in homes] == [False, False]


def test_a_node_is_killed_and_started_again_with_its_disk(p2pnode_testnet: LocalTestnet) -> None:
    everybody = tuple(range(p2pnode_testnet.nodes))
    assert p2pnode_testnet.running == everybody
    with p2pnode_testnet.client() as client:
        blob_id = client.store(b"what a node keeps").blob_id
        p2pnode_testnet.kill(1)
        assert set(p2pnode_testnet.running) == {0, 2, 3}
        with pytest.raises(InputError):
            p2pnode_testnet.kill(1)
        p2pnode_testnet.restart(1)
        assert p2pnode_testnet.running == everybody
        p2pnode_testnet.kill(0)
        assert client.read(blob_id) == b"what a node keeps"
        p2pnode_testnet.restart(0)
    for wrong in (p2pnode_testnet.nodes, -1, "0"):
        with pytest.raises(InputError):
            p2pnode_testnet.restart(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        p2pnode_testnet.restart(0)


def test_a_client_that_was_idle_for_epochs_goes_on(tmp_path: Path) -> None:
    with local_testnet(epoch_s=4, directory=tmp_path) as net, net.client() as client:
        early = client.store(b"before", epochs=50)
        begun = client.info(early.blob_id).epoch
        net.wait_epoch(begun + 3)
        assert client.read(early.blob_id) == b"before"
        late = client.store(b"after", epochs=50)
        assert late.end_epoch >= begun + 53
        assert {entry.blob_id for entry in client.list()} == {early.blob_id, late.blob_id}
    assert (tmp_path / "client" / "genesis.json").exists()


@pytest.mark.parametrize(
    "wrong", [{"nodes": 0}, {"nodes": 5, "shards": 4}, {"shards": 3}, {"shards": 257}, {"epoch_s": 0}], ids=str
)
def test_numbers_that_make_no_network_are_refused(wrong: dict[str, int]) -> None:
    before = settings_of_the_process()
    with pytest.raises(InputError), local_testnet(**wrong):  # type: ignore[arg-type]
        pass
    assert settings_of_the_process() == before


def test_pytest_has_the_fixture_for_tests_of_either_kind(tmp_path: Path) -> None:
    (tmp_path / "test_program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "p2pnode.pytest_plugin", "-p", "no:cacheprovider", "."]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=480
    )
    assert (done.returncode, "3 passed" in done.stdout) == (0, True), done.stdout + done.stderr


def test_the_plugin_imports_nothing_heavy() -> None:
    program = "import sys, pytest; import p2pnode.pytest_plugin; print({'trio', 'libp2p', 'nacl'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
