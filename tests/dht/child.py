"""One node's discovery as a process: commands as JSON lines on stdin, one JSON line back for each. Only for tests."""

import base64
import contextlib
import json
import logging
import sys
import time
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from multiaddr import Multiaddr
from nacl.signing import SigningKey

from dht.discovery import Discovery, DiscoveryError, open_discovery
from economics.crypto import NodeId, Signature

CHAIN = b"chain of the discovery tests".ljust(32)


def seed_of(index: int) -> bytes:
    return f"discovery {index}".encode().ljust(32)


def node_id_of(index: int) -> NodeId:
    return NodeId(bytes(SigningKey(seed_of(index)).verify_key))


def strip(address: object) -> str:
    return str(address).split("/p2p/")[0]


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
            return await discovery.provide(base64.b64decode(command["blob"]))
        case "providers":
            return [node.hex() for node in await discovery.find_providers(base64.b64decode(command["blob"]))]
        case "size":
            return discovery.table_size()
        case "cpu":
            return time.process_time()
        case other:
            raise AssertionError(other)


async def main(index: int, server: bool, bootstrap: list[tuple[int, str]]) -> None:
    host = new_host(key_pair=create_new_key_pair(seed_of(index)))
    key = SigningKey(seed_of(index))
    listen = [Multiaddr("/ip4/127.0.0.1/tcp/0")] if server else []
    async with host.run(listen_addrs=listen):
        addresses = [strip(address) for address in host.get_addrs()]
        async with open_discovery(
            host=host,
            chain_id=CHAIN,
            sign=lambda message: Signature(key.sign(message).signature),
            node_id=node_id_of(index),
            addresses=lambda: addresses,
            server=server,
            bootstrap=[(node_id_of(peer), [address]) for peer, address in bootstrap],
            cache_path=None,
            clock_ms=lambda: time.time_ns() // 1_000_000,
        ) as discovery:
            print(json.dumps({"addresses": addresses}), flush=True)
            stdin = trio.wrap_file(sys.stdin)
            async for line in stdin:
                started = trio.current_time()
                result = await answer(discovery, json.loads(line))
                print(json.dumps({"result": result, "s": trio.current_time() - started}), flush=True)
        await host.close()


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    with contextlib.suppress(KeyboardInterrupt):
        trio.run(main, int(sys.argv[1]), sys.argv[2] == "server", json.loads(sys.argv[3]))
