"""What a gossip message costs: seven processes, each publishing once a second, against the same seven in silence."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence

import trio

from economics.crypto import NodeId
from gossip.pubsub import open_gossip
from p2pnode.keys import Key
from p2pnode.network.host import open_network
from scripts.benchmarks.timing import Row

NODES = 7
MESSAGE_BYTES = 512
WINDOW_S = 10
TOPIC = "/bench/gossip/1"


def key_of(index: int) -> Key:
    return Key(bytes([index + 1]) * 32)


async def run_gossip_node(index: int) -> None:
    """Be one of the seven: print where, read the others' addresses, then print CPU seconds and messages."""
    received = 0

    async def count(node: NodeId, data: bytes) -> None:
        nonlocal received
        received += 1

    key = key_of(index)
    async with open_network(seed=key.seed, listen=("/ip4/127.0.0.1/tcp/0",)) as network:
        print(network.addresses()[0], flush=True)
        others = json.loads(await trio.to_thread.run_sync(sys.stdin.readline))
        async with open_gossip(host=network.host, topics=[TOPIC]) as gossip:
            await gossip.subscribe(TOPIC, size_max=MESSAGE_BYTES, validate=lambda node, data: None, handle=count)
            for other, address in enumerate(others[:index]):
                await network.connect(NodeId(key_of(other).public), addresses=[address])
            await trio.sleep(WINDOW_S)  # the mesh forms at its heartbeats
            begin = time.process_time()
            await trio.sleep(WINDOW_S)
            idle_s = time.process_time() - begin
            begin = time.process_time()
            for number in range(WINDOW_S):
                await gossip.publish(TOPIC, f"{index} {number}".encode().ljust(MESSAGE_BYTES))
                await trio.sleep(1)
            busy_s = time.process_time() - begin
            await trio.sleep(2)  # the others' windows end a little later
            print(json.dumps([idle_s, busy_s, received]), flush=True)
            await trio.to_thread.run_sync(sys.stdin.readline)


def bench_gossip() -> list[Row]:
    """CPU milliseconds that a message of 512 bytes costs each node that it passes."""
    command = [sys.executable, "-m", "scripts.benchmarks", "--gossip-node"]
    pipe = subprocess.PIPE
    children = [subprocess.Popen([*command, str(index)], stdin=pipe, stdout=pipe, text=True) for index in range(NODES)]
    addresses = [read_line(child) for child in children]
    tell(children, json.dumps(addresses))
    results = [json.loads(read_line(child)) for child in children]
    tell(children, "done")
    for child in children:
        child.wait(30)
    idle_s, busy_s, received = (sum(column) for column in zip(*results, strict=True))
    expected = NODES * (NODES - 1) * WINDOW_S
    return [
        {
            "what": f"{NODES} nodes, {MESSAGE_BYTES} bytes, one message a second from each",
            "CPU-ms per message and node": (busy_s - idle_s) * 1e3 / (NODES * NODES * WINDOW_S),
            "delivered": received / expected,
            "CPU-ms per idle second": idle_s * 1e3 / NODES / WINDOW_S,
        }
    ]


def read_line(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def tell(children: "Sequence[subprocess.Popen[str]]", line: str) -> None:
    for child in children:
        assert child.stdin is not None
        child.stdin.write(line + "\n")
        child.stdin.flush()
