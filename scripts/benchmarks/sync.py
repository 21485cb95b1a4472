"""Direct sync: a file from one peer's process to another's, against copies of its bytes over TCP, TLS and a stream.

The copies carry the bytes and check nothing; the peers encrypt, and the reader encodes every segment to its root.
"""

import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import trio

from economics.blob import BlobId, build_blob_id_text, parse_blob_id
from p2pnode.content.sharing import Link
from p2pnode.content.sources import FileSource
from p2pnode.home import Home
from p2pnode.keys import Key
from p2pnode.network.host import open_network
from p2pnode.network.stream import Stream
from p2pnode.peering.mirror import Fetcher
from p2pnode.peering.peer import SWITCH_S, open_peer
from p2pnode.peering.providers import Contact, build_contact, parse_contact
from scripts.benchmarks.timing import GIB, MIB, Failed, Row, random_bytes
from scripts.benchmarks.wire import make_certificate

CHUNK = 256 << 10
STREAM = "/bench/sync/1"
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
Send = Callable[[bytes], Awaitable[None]]


async def serve_sync(words: str) -> None:
    """Be the serving process of `<kind>:<file>:<directory>`: print where, serve until standard input ends, print the
    CPU seconds that took."""
    kind, name, directory = words.split(":")
    sys.setswitchinterval(SWITCH_S)
    if kind == "p2pnode":
        async with open_peer(Home(Path(directory)), listen=LOOPBACK) as peer:
            header = await trio.to_thread.run_sync(peer.library.share, FileSource.open(Path(name)), peer.codec)
            node, address = peer.network.node_id, peer.network.addresses()[0]
            print(f"{build_contact(node, address)} {build_blob_id_text(header.blob_id)}", flush=True)
            await count_until_end()
        return

    if kind == "stream":

        async def give(stream: Stream) -> None:
            await stream.receive_exactly(1)
            await send_file(stream.send, Path(name))

        async with open_network(seed=bytes(32), listen=LOOPBACK) as network:
            network.serve(STREAM, give)
            print(build_contact(network.node_id, network.addresses()[0]), flush=True)
            await count_until_end()
        return

    async def handle(stream: trio.SocketStream) -> None:
        if kind == "tcp":
            await send_file(stream.send_all, Path(name))
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(os.environ["BENCH_CERTIFICATE"])
        await send_file(trio.SSLStream(stream, context, server_side=True).send_all, Path(name))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, host="127.0.0.1"), 0)
        print(listeners[0].socket.getsockname()[1], flush=True)
        await count_until_end()
        nursery.cancel_scope.cancel()


async def count_until_end() -> None:
    begin = time.process_time()
    await trio.to_thread.run_sync(sys.stdin.readline)
    print(time.process_time() - begin, flush=True)


async def send_file(send: Send, path: Path) -> None:
    with path.open("rb") as file:
        while chunk := await trio.to_thread.run_sync(file.read, MIB):
            await send(chunk)


async def copy(kind: str, where: str, sink: BinaryIO, size: int) -> tuple[float, float]:
    """Copy a file from a raw server; return the wall and CPU seconds that took."""
    wall, cpu = time.perf_counter(), time.process_time()
    if kind == "stream":
        node, addresses = parse_contact(where)
        async with open_network(seed=Key.generate().seed, listen=()) as network:
            wall, cpu = time.perf_counter(), time.process_time()
            async with await network.open_stream(node, STREAM, addresses=addresses) as opened:
                await opened.send(b"!")
                await drain(opened.receive_some, sink, size)
                return time.perf_counter() - wall, time.process_time() - cpu
    stream: Any = await trio.open_tcp_stream("127.0.0.1", int(where))
    if kind == "ssl":
        context = ssl.create_default_context(cafile=os.environ["BENCH_CERTIFICATE"])
        context.check_hostname = False
        stream = trio.SSLStream(stream, context)
    await drain(stream.receive_some, sink, size)
    return time.perf_counter() - wall, time.process_time() - cpu


async def drain(receive: Callable[[int], Awaitable[bytes]], sink: BinaryIO, size: int) -> None:
    left, held = size, bytearray()
    while left:
        data = await receive(CHUNK)
        if not data:
            raise Failed("the copy broke off")
        held += data
        left -= len(data)
        if len(held) >= MIB or not left:
            await trio.to_thread.run_sync(sink.write, bytes(held))
            held.clear()
    sink.flush()
    os.fsync(sink.fileno())


async def fetch(where: str, directory: Path, output: Path) -> tuple[float, float]:
    """Fetch a blob from the serving peer; return the wall and CPU seconds that took, dialling included."""
    sys.setswitchinterval(SWITCH_S)
    contact, _, text = where.partition(" ")
    blob_id: BlobId = parse_blob_id(text)
    peer_contact: Contact = parse_contact(contact)
    async with open_peer(Home(directory), peers=[peer_contact]) as peer:
        wall, cpu = time.perf_counter(), time.process_time()
        await Fetcher(peer, Link(blob_id)).get(output, sys.stdout.buffer, lambda done, total: None)
        return time.perf_counter() - wall, time.process_time() - cpu


def bench_sync(directory: Path, *, size: int = 100 * MIB) -> list[Row]:
    directory.mkdir(parents=True, exist_ok=True)
    os.environ["BENCH_CERTIFICATE"] = str(make_certificate(directory))
    source, output = directory / "source", directory / "copy"
    source.write_bytes(random_bytes(size))
    rows = []
    for kind in ("tcp", "ssl", "stream", "p2pnode"):
        words = f"{kind}:{source}:{directory / 'server'}"
        child = subprocess.Popen(
            [sys.executable, "-m", "scripts.benchmarks", "--serve-sync", words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        where = child.stdout.readline().strip()
        if kind == "p2pnode":
            seconds, read = trio.run(fetch, where, directory / "client", output)
        else:
            with output.open("wb") as sink:
                seconds, read = trio.run(copy, kind, where, sink, size)
        served = float(child.communicate("\n", timeout=30)[0])
        if output.read_bytes() != source.read_bytes():
            raise Failed(f"{kind}: the copy is not the file")
        output.unlink()
        names = {"tcp": "raw trio TCP", "ssl": "trio SSL", "stream": "a stream", "p2pnode": "sync, every byte checked"}
        cost = {"reader's CPU-s/GiB": read * GIB / size, "both ends'": (read + served) * GIB / size}
        rows.append({f"direct sync of {size // MIB} MiB": names[kind], "MB/s": size / seconds / 1e6, **cost})
    shutil.rmtree(directory / "server", ignore_errors=True)
    return rows
