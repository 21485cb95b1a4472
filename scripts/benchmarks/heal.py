"""What it takes to refill a node that lost its disk: seconds, bytes by kind, CPU of all; a testnet of processes.

The node is full when every sliver file that it had is there again, byte for byte.
"""

import hashlib
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import trio

from economics.crypto import NodeId
from economics.genesis import parse_key
from p2pnode import testnet
from p2pnode.clients.session import STATUS_BYTES_MAX, open_session, parse_status
from p2pnode.home import Home
from scripts.benchmarks.network import node_cpu, run_cli, running_testnet, settled_idle
from scripts.benchmarks.timing import MIB, Failed, Row, random_bytes

NODES = 10
FILE_BYTES_MAX = 256 * MIB
SETTLE_S_MAX = 120.0
"""Until all nodes hold what was stored: what an upload did not bring is repaired by itself."""
HEAL_S_MAX = 1_200.0
POLL_S = 0.5
SAY_S = 15.0
AIM = 1.3
"""Bytes received for each byte lost, when no helper lies."""
KINDS = ("transfer", "symbols", "metadata")


@dataclass(frozen=True, slots=True)
class Disk:
    """What sliver files a node has."""

    sizes: dict[str, int]
    hash: bytes
    """Of all files' names and bytes."""

    @property
    def total_bytes(self) -> int:
        return sum(self.sizes.values())


def sliver_files(process: testnet.Process) -> dict[str, Path]:
    root = Home(Path(process.home)).store_path / "slivers"
    return {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}


def look_at(process: testnet.Process, *, names: Collection[str] | None = None) -> Disk:
    """Return what a node has of these files; of all, if none are named."""
    files, state, sizes = sliver_files(process), hashlib.blake2b(), {}
    for name, path in files.items():
        if names is not None and name not in names:
            continue
        data = path.read_bytes()
        sizes[name] = len(data)
        state.update(name.encode() + len(data).to_bytes(8, "big") + data)
    return Disk(sizes, state.digest())


def store_files(directory: Path, network: testnet.Network, size: int) -> None:
    for number, at in enumerate(range(0, size, FILE_BYTES_MAX)):
        file = directory / f"heal{number}"
        file.write_bytes(random_bytes(min(FILE_BYTES_MAX, size - at)))
        run_cli(network, "store", "--json", file)
        file.unlink()


def ask_status(network: testnet.Network, index: int) -> dict[str, Any]:
    """Return what a node says of its upkeep."""
    node = NodeId(parse_key(network.process(index).node))

    async def ask() -> dict[str, Any]:
        async with open_session(network.client_home) as client:
            reply, _ = await client.members.request(node, {"op": "status"}, size_max=STATUS_BYTES_MAX)
            upkeep = parse_status(reply.header.get("status"))["upkeep"]
            assert isinstance(upkeep, dict)
            return upkeep

    return trio.run(ask)


def wait_full(network: testnet.Network, limit_s: float) -> None:
    """Wait until every node says that it misses nothing. Raises `Failed`."""
    deadline = time.monotonic() + limit_s
    while True:
        missing = [ask_status(network, process.index)["missing"] for process in network.processes]
        if not any(missing):
            return
        if time.monotonic() > deadline:
            raise Failed(f"after {limit_s:.0f} s the nodes miss {missing} slivers")
        time.sleep(POLL_S)


def wait_refilled(process: testnet.Process, lost: Disk, *, begin: float) -> None:
    """Wait until a node has as many bytes in sliver files as it lost. Raises `Failed`."""
    told = time.monotonic()
    while True:
        held = sum(path.stat().st_size for name, path in sliver_files(process).items() if name in lost.sizes)
        spent = time.monotonic() - begin
        if held == lost.total_bytes:
            return
        if spent > HEAL_S_MAX or not process.is_running:
            why = f"within {spent:.0f} s" if process.is_running else "and ended by itself"
            raise Failed(
                f"node {process.index} has {held / 1e6:.1f} of {lost.total_bytes / 1e6:.1f} MB back {why}: "
                f"see {process.home}/node.log"
            )
        if time.monotonic() > told + SAY_S:
            told = time.monotonic()
            print(f"  {spent:.0f} s: {held / 1e6:.1f} of {lost.total_bytes / 1e6:.1f} MB are back", flush=True)
        time.sleep(POLL_S)


def bench_heal(directory: Path, *, size: int) -> list[Row]:
    """Store `size` bytes on ten nodes, wipe the last one's disk but for its keys, and wait until it is as it was."""
    with running_testnet(directory / "heal", NODES, NODES) as network:
        store_files(directory, network, size)
        wait_full(network, SETTLE_S_MAX)
        victim = network.processes[-1]
        lost = look_at(victim)
        idle = settled_idle(network)
        old, before, begin = cpu_of(victim), node_cpu(network), time.monotonic()
        network = testnet.replace(network, victim.index)
        fresh = network.process(victim.index)
        try:
            up_s = time.monotonic() - begin
            wait_refilled(fresh, lost, begin=begin)
            seconds, cpu = time.monotonic() - begin, node_cpu(network) - (before - old)
            if look_at(fresh, names=lost.sizes) != lost:
                raise Failed(f"node {victim.index} has other bytes than it had before")
            wait_full(network, SETTLE_S_MAX)
            healing = ask_status(network, victim.index)
        finally:
            testnet.down(network)  # the fresh process too, which the one who started the others does not know
    return rows_of(size, lost, healing, seconds=seconds, up_s=up_s, cpu=cpu, idle=idle)


def rows_of(
    size: int, lost: Disk, healing: dict[str, Any], *, seconds: float, up_s: float, cpu: float, idle: float
) -> list[Row]:
    received = sum(healing[f"{kind}_bytes"] for kind in KINDS)
    ratio = received / lost.total_bytes
    what = f"1 of {NODES} nodes refilled, {size // MIB} MiB stored"
    return [
        {"what": what, "lost MB": lost.total_bytes / 1e6, "seconds": seconds, "of it to be up": up_s},
        {
            "what": "received, MB",
            **{kind: healing[f"{kind}_bytes"] / 1e6 for kind in KINDS},
            "in all": received / 1e6,
            "restored": healing["restored_bytes"] / 1e6,
        },
        {
            "what": "received for each byte lost",
            "ratio": ratio,
            "aim": AIM,
            "is met": "yes" if ratio <= AIM else "NO",
            "whole data / received": size / received,
        },
        {
            "what": "CPU of all nodes",
            "CPU-s": cpu,
            "idle before, in as long": idle * seconds,
            "CPU-ms per MB": 1e9 * cpu / received,
        },
    ]


def cpu_of(process: testnet.Process) -> float:
    return float(sum(psutil.Process(process.pid).cpu_times()[:2]))
