"""A testnet of processes: store and read rates, CPU, memory, bytes on the wire and on disk."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import trio

from p2pnode import testnet
from p2pnode.clients.session import open_session
from p2pnode.network.frames import Header
from scripts.benchmarks.timing import GIB, MIB, Failed, Row

IDLE_S = 10.0
SETTLE_WINDOWS = 6
"""After a minute the figure is what it is."""


@contextmanager
def running_testnet(directory: Path, nodes: int, shards: int) -> Iterator[testnet.Network]:
    network = testnet.up(directory, nodes=nodes, shards=shards, limits={"spot_check_s": 30})
    try:
        yield network
    finally:
        testnet.down(network)


def node_cpu(network: testnet.Network) -> float:
    times = [psutil.Process(process.pid).cpu_times() for process in network.processes]
    return float(sum(item.user + item.system for item in times))


def node_resident(network: testnet.Network) -> float:
    return float(max(psutil.Process(process.pid).memory_info().rss for process in network.processes) / MIB)


def run_cli(network: testnet.Network, *words: object) -> tuple[bytes, float, float, float]:
    """Run a command and return (output, wall seconds, CPU seconds with its workers, MiB resident at most)."""
    environment = dict(os.environ, P2PNODE_HOME=str(network.client_home.path))
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "p2pnode", *map(str, words)]
    with tempfile.TemporaryFile() as said:
        child = psutil.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=said)
        resident = 0.0
        while child.poll() is None:
            resident = max(resident, resident_of(child))
            time.sleep(0.05)
        out = child.stdout.read()
        wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        said.seek(0)
        if child.returncode:
            raise Failed(f"`p2pnode {words[0]}` failed: {said.read().decode(errors='replace').strip()}")
    return out, wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, resident


def resident_of(process: psutil.Process) -> float:
    """Return the MiB of a process and its workers; memory that they share counts for each."""
    total = 0
    try:
        for part in (process, *process.children(recursive=True)):
            total += part.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total / MIB


def bench_network(directory: Path, *, nodes: int, shards: int, size: int) -> list[Row]:
    """Store and read a file of `size` bytes on a testnet, with what it costs in CPU, memory, wire and disk."""
    file, back = directory / "file", directory / "back"
    with file.open("wb") as sink:
        for _ in range(size // MIB):
            sink.write(os.urandom(MIB))
    start = time.perf_counter()
    with running_testnet(directory / "net", nodes, shards) as network:
        ready, resident = time.perf_counter() - start, node_resident(network)
        idle = settled_idle(network) / nodes
        what = f"{size // MIB} MiB, {nodes} nodes, {shards} shards"
        stored, store_row = measure(network, size, f"store {what}", "store", "--json", file)
        used = sum(path.stat().st_size for path in (directory / "net").rglob("store/**/*") if path.is_file())
        store_row |= {"wire bytes/byte": stored["sent_bytes"] / size, "disk bytes/byte": used / size}
        _, read_row = measure(network, size, f"read {what}", "read", "--json", stored["blob_id"], "-o", back)
        subprocess.run(["cmp", file, back], check=True)
        request = request_cpu(network)
    up = {"what": f"{nodes} nodes up", "seconds": ready, "node MiB": resident, "CPU-ms per idle second": idle * 1e3}
    asked = {"what": "one small request, both ends", "CPU-ms per message": request * 1e3}
    return [store_row, read_row, up, asked]


def settled_idle(network: testnet.Network) -> float:
    """Wait until the nodes have found each other and return the CPU seconds that all spend in an idle second."""
    idle = float("inf")
    for _ in range(SETTLE_WINDOWS):
        before = node_cpu(network)
        time.sleep(IDLE_S)
        last, idle = idle, (node_cpu(network) - before) / IDLE_S
        if idle > 0.8 * last:  # no longer falling
            break
    return idle


def measure(network: testnet.Network, size: int, what: str, *words: object) -> tuple[Any, Row]:
    """Run a command on a file of `size` bytes; `status`, which does little else, measures a client's start-up."""
    _, empty_wall, empty_cpu, _ = run_cli(network, "status")
    before = node_cpu(network)
    out, wall, client_cpu, client_resident = run_cli(network, *words)
    row = {
        "what": what,
        "MB/s": size / wall / 1e6,
        "MB/s less start-up": size / max(wall - empty_wall, 1e-3) / 1e6,
        "CPU-s/GiB nodes": (node_cpu(network) - before) * GIB / size,
        "CPU-s/GiB client": (client_cpu - empty_cpu) * GIB / size,
        "client MiB": client_resident,
        "node MiB": node_resident(network),
    }
    return json.loads(out), row


def request_cpu(network: testnet.Network, count: int = 500) -> float:
    """Return the CPU seconds, at both ends, of one request on an open stream."""

    async def ask() -> float:
        async with open_session(network.client_home) as client:
            request: Header = {"op": "status"}
            await client.members.request(0, request, size_max=0)
            node = psutil.Process(network.processes[0].pid)
            before = time.process_time() + float(sum(node.cpu_times()[:2]))
            for _ in range(count):
                await client.members.request(0, request, size_max=0)
            return (time.process_time() + float(sum(node.cpu_times()[:2])) - before) / count

    return trio.run(ask)
