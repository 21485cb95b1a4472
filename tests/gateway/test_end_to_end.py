"""A gateway on real nodes: what is stored comes back, whoever is away is told of, and what is cached serves others."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import trio

from economics.blob import build_blob_id_text, parse_blob_id
from economics.genesis import parse_key
from p2pnode import testnet
from p2pnode.content.views import read_all
from p2pnode.gateway.running import Gateway, Options, open_gateway, plain_owner
from p2pnode.home import Home
from p2pnode.peering.peer import open_peer
from p2pnode.testing import open_testnet
from p2pnode.testnet import Network
from tests.gateway.raw import Answer, ask, get

OPTIONS = Options(port=0, cache_bytes=32 << 20)
SEGMENT_BYTES = 64 << 10


def port_of(gateway: Gateway) -> int:
    return int(gateway.urls[0].rpartition(":")[2])


async def put(port: int, data: bytes, content_type: str = "image/png") -> str:
    answer = await ask(port, "PUT", "/v1/blobs?epochs=3", {"Content-Type": content_type}, data)
    assert answer.status == 200, answer.body
    blob_id: str = json.loads(answer.body)["newlyCreated"]["blobObject"]["blobId"]
    return blob_id


async def until(status: int, port: int, target: str) -> Answer:
    """Ask again until the answer has this status: nodes need a moment to be missed or found."""
    while True:
        with trio.move_on_after(120):
            answer = await get(port, target)
            if answer.status == status:
                return answer
            await trio.sleep(0.2)


async def test_a_blob_is_stored_read_missed_found_and_deleted(tmp_path: Path) -> None:
    data, later = Random(1).randbytes(300_000), Random(2).randbytes(200_000)
    with trio.fail_after(480):
        async with open_testnet(
            nodes=4, shards=4, epoch_s=None, segment_bytes=SEGMENT_BYTES, directory=tmp_path / "net"
        ) as net:
            home = net.client_home
            async with open_gateway(home, plain_owner(home), OPTIONS) as gateway:
                port = port_of(gateway)
                first, second = await put(port, data), await put(port, later, "text/html")
                third = await put(port, data[::-1])  # the second is not read yet: what is cached would not be missed
                answer = await get(port, f"/v1/blobs/{first}")
                assert (answer.status, answer.body, answer.headers["content-type"]) == (200, data, "image/png")
                part = await get(port, f"/v1/blobs/{third}", Range="bytes=65530-65545")
                assert (part.status, part.body) == (206, data[::-1][65_530:65_546])
                missing = build_blob_id_text(parse_blob_id(first[::-1][1:] + "A"))
                await until(404, port, f"/v1/blobs/{missing}")

                for index in (1, 2, 3):
                    await net.kill(index)
                absent = await until(503, port, f"/v1/blobs/{second}")
                assert (absent.headers["cache-control"], int(absent.headers["retry-after"]) > 0) == ("no-store", True)
                assert (await get(port, f"/v1/blobs/{first}")).body == data
                for index in (1, 2, 3):
                    await net.start(index)
                back = await until(200, port, f"/v1/blobs/{second}")
                assert (back.body, back.headers["content-type"]) == (later, "text/html")

                token = (home.path / "keys" / "gateway.token").read_text().strip()
                bearer = {"Authorization": f"Bearer {token}"}
                goes_on = False
                while not goes_on:  # once the nodes that came back have met
                    goes_on = (await ask(port, "PUT", "/v1/blobs", {}, b"the chain goes on")).status == 200
                assert (await ask(port, "DELETE", f"/v1/blobs/{first}", bearer)).status == 200
                await until(410, port, f"/v1/blobs/{first}")
                chain = gateway.services.session.chain
                while await chain.blob(parse_blob_id(first)) is not None:  # noqa: ASYNC110 - a chain has no event
                    await trio.sleep(0.1)  # who read it before that is shown would serve it from the cache for good
            stranger = Home(tmp_path / "stranger")
            stranger.put_genesis(home.load_genesis())
            async with open_gateway(stranger, None, replace(OPTIONS, shares=False)) as gateway:
                port = port_of(gateway)
                await until(410, port, f"/v1/blobs/{first}")
                assert (await get(port, f"/v1/blobs/{second}")).body == later
                answer = await ask(port, "PUT", "/v1/blobs", {}, b"x")
                assert (answer.status, json.loads(answer.body)["error"]["details"][0]["reason"]) == (403, "NO_WALLET")


async def test_what_is_cached_serves_peers_when_the_nodes_are_gone(tmp_path: Path) -> None:
    data = Random(3).randbytes(300_000)
    with trio.fail_after(480):
        async with open_testnet(
            nodes=4, shards=4, epoch_s=None, segment_bytes=SEGMENT_BYTES, directory=tmp_path / "net"
        ) as net:
            home = net.client_home
            async with open_gateway(home, plain_owner(home), OPTIONS) as gateway:
                port = port_of(gateway)
                text = await put(port, data)
                blob_id = parse_blob_id(text)
                assert (await get(port, f"/v1/blobs/{text}")).body == data
                reader = Home(tmp_path / "reader")
                reader.put_genesis(home.load_genesis())
                async with open_peer(reader) as peer:
                    providers: tuple[bytes, ...] = ()
                    while gateway.peer.network.node_id not in providers:
                        providers = await peer.discovery.find_providers(blob_id)
                        await trio.sleep(0.2)
                    for index in range(4):
                        await net.kill(index)
                    peer.swarm.add_peers([(node, (address,)) for node, address in gateway.peer.contacts()])
                    assert await read_all(await peer.swarm.open(blob_id), size_max=1 << 20) == data


def run(home: Path, *words: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a command that serves HTTP and return its process and port once it says that it does."""
    child = subprocess.Popen([sys.executable, "-m", "p2pnode", *words, "--home", str(home)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    ready = json.loads(child.stdout.readline())
    urls = ready.get("http") or ready["urls"]
    return child, int(urls[0].rpartition(":")[2])


def stop(child: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> None:
    with suppress(ProcessLookupError):
        child.send_signal(number)
    child.wait(240)
    assert child.stdout is not None
    child.stdout.close()


async def test_a_node_serves_http_and_a_gateway_survives_a_kill(tmp_path: Path) -> None:
    small = testnet.up(tmp_path / "net", nodes=4, shards=4)
    try:
        await serve_and_kill(small)
    finally:
        testnet.down(small)


async def serve_and_kill(small: Network) -> None:
    data = os.urandom(500_000)
    home = small.client_home.path
    node = small.process(3)
    testnet.kill(small, 3)
    child, port = await trio.to_thread.run_sync(run, Path(node.home), "run", "--http", "127.0.0.1:0")
    try:
        with trio.fail_after(480):
            gateway, other = await trio.to_thread.run_sync(run, home, "gateway", "--listen", "0")
            text = await put(other, data)
            for at in (other, port):  # a node reads its own network, itself among the members
                assert (await until(200, at, f"/v1/blobs/{text}")).body == data
            await trio.to_thread.run_sync(stop, gateway, signal.SIGKILL)
            gateway, other = await trio.to_thread.run_sync(run, home, "gateway", "--listen", "0", "--read-only")
            assert (await get(other, f"/v1/blobs/{text}")).body == data
            assert (await ask(other, "PUT", "/v1/blobs", {}, b"x")).status == 403
            await trio.to_thread.run_sync(stop, gateway)
            assert gateway.returncode == 0
            async with open_peer(small.client_home) as peer:  # what the node's gateway cached, the node serves to peers
                providers: tuple[bytes, ...] = ()
                while parse_key(node.node) not in providers:
                    providers = await peer.discovery.find_providers(parse_blob_id(text))
                    await trio.sleep(0.2)
    finally:
        await trio.to_thread.run_sync(stop, child)
    assert child.returncode == 0
