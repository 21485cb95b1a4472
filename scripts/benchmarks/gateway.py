"""The gateway on a testnet of processes: a large blob uncached and cached, small files by many clients; beside each
its floor in the same run: the command line's read of the same blob, and the same answers by a bare trio server."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from economics.blob import parse_blob_id
from p2pnode import testnet
from p2pnode.client import connect
from p2pnode.content.quilt import QuiltFile, build_patch_id, build_quilt
from p2pnode.content.sources import BytesSource
from scripts.benchmarks.network import run_cli, running_testnet
from scripts.benchmarks.timing import MIB, REPEATS, Failed, Row, random_bytes

SMALL_FILES = 100
SMALL_BYTES = 10_240
LOAD_S = 10.0
WARM_S = 2.0
"""For each file to be read at least once."""
CLIENTS = 50


def bench_gateway(directory: Path, *, nodes: int, shards: int, size: int) -> list[Row]:
    """Store a blob of `size` bytes and a quilt of small files, and read them by all ways."""
    file = directory / "file"
    with file.open("wb") as sink:
        for _ in range(size // MIB):
            sink.write(os.urandom(MIB))
    with running_testnet(directory / "net", nodes, shards) as network:
        blob_id = json.loads(run_cli(network, "store", "--json", file)[0])["blob_id"]
        patches = store_quilt(network, directory / "quilt")
        return [*measure_large(network, directory, blob_id, size), *measure_small(network, patches)]


def store_quilt(network: testnet.Network, path: Path) -> list[str]:
    """Store a quilt of small files and return the paths of them all."""
    files = [QuiltFile(f"{n:04}", BytesSource(random_bytes(SMALL_BYTES + n))) for n in range(SMALL_FILES)]
    source = build_quilt(files).source
    path.write_bytes(source.read(0, source.length))
    with connect(network.client_home.path) as client:
        stored = client.store(path)
    blob_id = parse_blob_id(stored.blob_id)
    return [f"/v1/blobs/by-quilt-patch-id/{build_patch_id(blob_id, n)}" for n in range(SMALL_FILES)]


def measure_large(network: testnet.Network, directory: Path, blob_id: str, size: int) -> list[Row]:
    """Return the median rates of all ways to the same bytes, taken in turns."""
    seconds: dict[str, list[float]] = {"read": [], "uncached": [], "cached": [], "bare": []}
    target, back = f"/v1/blobs/{blob_id}", directory / "back"
    for _ in range(REPEATS):
        idle = run_cli(network, "status")[1]
        seconds["read"].append(run_cli(network, "read", blob_id, "-o", back)[1] - idle)
        shutil.rmtree(network.client_home.path / "cache" / "blobs", ignore_errors=True)
        with running_gateway(network) as port:
            run_load("fetch", port, "/status")  # its import of the client, and its first connection
            seconds["uncached"].append(run_load("fetch", port, target)["seconds"])
            run_load("fetch", port, target)  # the first read from the disk compares each segment with its hash
            seconds["cached"].append(run_load("fetch", port, target)["seconds"])
        with running(sys.executable, "-m", "scripts.benchmarks.gateway", str(size)) as line:
            seconds["bare"].append(run_load("fetch", int(line), target)["seconds"])
    rates = {way: size / sorted(each)[len(each) // 2] / 1e6 for way, each in seconds.items()}
    name = f"{size // MIB} MiB"
    return [
        {"what": f"command line's read of {name}, less start-up", "MB/s": rates["read"], "of floor": 1.0},
        {"what": f"GET {name}, uncached", "MB/s": rates["uncached"], "of floor": rates["uncached"] / rates["read"]},
        {"what": f"bare trio server, {name}", "MB/s": rates["bare"], "of floor": 1.0},
        {"what": f"GET {name}, cached", "MB/s": rates["cached"], "of floor": rates["cached"] / rates["bare"]},
    ]


def measure_small(network: testnet.Network, paths: list[str]) -> list[Row]:
    """Return requests per second and latencies for files of a quilt that is cached."""
    rows = []
    with running_gateway(network) as port:
        run_load("load", port, "1", str(WARM_S), *paths)
        for clients in (1, CLIENTS):
            found = run_load("load", port, str(clients), str(LOAD_S), *paths)
            rows.append({"what": f"GET 10 KiB of a quilt, {clients} at once", **found})
    with running(sys.executable, "-m", "scripts.benchmarks.gateway", str(SMALL_BYTES)) as line:
        for clients in (1, CLIENTS):
            found = run_load("load", int(line), str(clients), str(LOAD_S), "/x")
            rows.append({"what": f"bare trio server, {clients} at once", **found})
    return rows


@contextmanager
def running_gateway(network: testnet.Network) -> Iterator[int]:
    """Run a gateway in a process of its own and yield its port."""
    home = str(network.client_home.path)
    words = ("-m", "p2pnode", "gateway", "--home", home, "--listen", "127.0.0.1:0", "--no-share", "--read-only")
    with running(sys.executable, *words) as line:
        yield int(json.loads(line)["urls"][0].rpartition(":")[2])


@contextmanager
def running(*command: str) -> Iterator[str]:
    """Run a process while the block lasts and yield its first line."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise Failed(f"{command[2]} did not start")
        yield line
    finally:
        child.terminate()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def run_load(what: str, port: int, *words: str) -> dict[str, float]:
    """Run the client in a process of its own."""
    command = [sys.executable, "-m", "scripts.benchmarks.httpload", what, str(port), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"a client failed: {done.stderr[-1_000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def serve_bare(size: int) -> None:
    """Answer every request with the same bytes, looking at nothing: what trio and loopback give at most."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode()
    piece = bytes(MIB)

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            while await stream.receive_some(65_536):
                if size <= MIB:
                    await stream.send_all(head + piece[:size])
                    continue
                await stream.send_all(head)
                for at in range(0, size, MIB):
                    await stream.send_all(piece[: min(MIB, size - at)])

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handle, 0)
        print(listeners[0].socket.getsockname()[1], flush=True)


if __name__ == "__main__":
    trio.run(serve_bare, int(sys.argv[1]))
