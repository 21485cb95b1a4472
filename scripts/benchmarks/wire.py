"""One stream between two processes, against raw TCP and TLS."""

import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio

from economics.crypto import NodeId
from p2pnode.keys import Key
from p2pnode.network.host import open_network
from p2pnode.network.stream import Stream
from scripts.benchmarks.timing import GIB, Row

WIRE_BYTES = 1 << 30
WIRE_CHUNK = 1 << 20


async def send_all(send: Callable[[bytes], Any], size: int) -> None:
    chunk = bytes(WIRE_CHUNK)
    for _ in range(size // WIRE_CHUNK):
        await send(chunk)


async def serve_wire(kind: str) -> None:
    """Be the receiving process: print where, take `WIRE_BYTES`, print the CPU seconds that took."""
    done = trio.Event()
    begin = 0.0

    async def drain(receive: Callable[[], Any]) -> None:
        nonlocal begin
        begin = time.process_time()
        left = WIRE_BYTES
        while left:
            left -= len(await receive())
        done.set()

    if kind == "p2pnode":
        key = Key(bytes(32))

        async def handle(stream: Stream) -> None:
            await drain(lambda: stream.receive_some(WIRE_CHUNK))

        async with open_network(seed=key.seed, listen=("/ip4/127.0.0.1/tcp/0",)) as network:
            network.serve("/bench/1", handle)
            print(network.addresses()[0], flush=True)
            await done.wait()
            print(time.process_time() - begin, flush=True)
        return
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), partial(drain_tcp, drain, kind), 0)
        print(listeners[0].socket.getsockname()[1], flush=True)
        await done.wait()
        print(time.process_time() - begin, flush=True)
        nursery.cancel_scope.cancel()


async def drain_tcp(drain: Callable[[Callable[[], Any]], Any], kind: str, stream: trio.SocketStream) -> None:
    if kind == "tcp":
        await drain(lambda: stream.receive_some(256 << 10))
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(os.environ["BENCH_CERTIFICATE"])
    secured = trio.SSLStream(stream, context, server_side=True)
    await drain(lambda: secured.receive_some(256 << 10))


async def send_wire(kind: str, where: str) -> None:
    if kind == "p2pnode":
        node = NodeId(Key(bytes(32)).public)
        async with open_network(seed=Key(bytes([1]) * 32).seed, listen=()) as network:
            async with await network.open_stream(node, "/bench/1", addresses=[where]) as stream:
                await send_all(stream.send, WIRE_BYTES)
        return
    tcp = await trio.open_tcp_stream("127.0.0.1", int(where))
    if kind == "tcp":
        await send_all(tcp.send_all, WIRE_BYTES)
        return
    context = ssl.create_default_context(cafile=os.environ["BENCH_CERTIFICATE"])
    context.check_hostname = False
    secured = trio.SSLStream(tcp, context)
    await send_all(secured.send_all, WIRE_BYTES)


def bench_wire(directory: Path) -> list[Row]:
    os.environ["BENCH_CERTIFICATE"] = str(make_certificate(directory))
    rows = []
    for kind in ("tcp", "ssl", "p2pnode"):
        child = subprocess.Popen(
            [sys.executable, "-m", "scripts.benchmarks", "--serve", kind], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        where = child.stdout.readline().strip()
        wall, cpu = time.perf_counter(), time.process_time()
        trio.run(send_wire, kind, where)
        received = float(child.stdout.readline())
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        child.wait(30)
        name = {"tcp": "raw trio TCP", "ssl": "trio SSL", "p2pnode": "p2pnode stream"}[kind]
        both_ends = (cpu + received) * GIB / WIRE_BYTES
        rows.append({"wire": name, "MB/s": WIRE_BYTES / wall / 1e6, "CPU-s/GiB both ends": both_ends})
    return rows


def make_certificate(directory: Path) -> Path:
    path = directory / "certificate.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    subprocess.run(["openssl", *words.split(), "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path
