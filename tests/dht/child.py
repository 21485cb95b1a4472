"""One node's discovery as a process: commands as JSON lines on stdin, one JSON line back for each. Only for tests."""

import base64
import contextlib
import json
import logging
import sys
import time
from typing import Any

import trio
from nacl.signing import SigningKey

from dht.discovery import Discovery, DiscoveryError, open_discovery
from economics.crypto import NodeId, Signature
from p2pnode.network.host import open_network

CHAIN = b"chain of the discovery tests".ljust(32)


def seed_of(index: int) -> bytes:
    return f"discovery {index}".encode().ljust(32)


def node_id_of(index: int) -> NodeId:
    return NodeId(bytes(SigningKey(seed_of(index)).verify_key))


async def answer(discovery: Discovery, command: dict[str, Any]) -> object:
    match command["do"]:
        case "find":
            return await discovery.find_node(node_id_of(command["node"]), fresh=command["fresh"])
        case "announce":
            try:
                return await discovery.announce()
            except DiscoveryError:
                return 0
        case "provide":
            await discovery.provide(base64.b64decode(command["blob"]))
            return None
        case "providers":
            return [node.hex() for node in await discovery.find_providers(base64.b64decode(command["blob"]))]
        case "size":
            return discovery.table_size()
        case "cpu":
            return time.process_time()
        case other:
            raise AssertionError(other)


async def main(index: int, server: bool, bootstrap: list[tuple[int, str]]) -> None:
    key = SigningKey(seed_of(index))
    listen = ["/ip4/127.0.0.1/tcp/0"] if server else []
    async with (
        open_network(seed=seed_of(index), listen=listen) as network,
        open_discovery(
            host=network.host,
            chain_id=CHAIN,
            sign=lambda message: Signature(key.sign(message).signature),
            node_id=network.node_id,
            addresses=network.addresses,
            connect=lambda node, addresses: network.connect(node, addresses=addresses, deadline_s=5),
            server=server,
            bootstrap=[(node_id_of(peer), [address]) for peer, address in bootstrap],
            cache_path=None,
            clock_ms=lambda: time.time_ns() // 1_000_000,
        ) as discovery,
    ):
        print(json.dumps({"result": network.addresses()}), flush=True)
        async for line in trio.wrap_file(sys.stdin):
            started = trio.current_time()
            result = await answer(discovery, json.loads(line))
            print(json.dumps({"result": result, "s": trio.current_time() - started}), flush=True)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    with contextlib.suppress(KeyboardInterrupt):
        trio.run(main, int(sys.argv[1]), sys.argv[2] == "server", json.loads(sys.argv[3]))
