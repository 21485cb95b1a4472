"""A gateway on a network of real nodes: stored at once, read back, listed and deleted, as with curl."""

import json
from pathlib import Path
from random import Random
from typing import Any

import trio

from economics.geometry import SEGMENT_BYTES
from p2pnode.gateway.running import Options, open_gateway, plain_owner
from p2pnode.testing import open_testnet
from tests.gateway.raw import Answer, ask
from tests.gateway.test_quilts import CAT, DOG, FORM, form
from tests.p2pnode.patience import patience as patience

BODIES = [Random(seed).randbytes(20_000 + seed) for seed in range(8)]
TEXT = {"Content-Type": "text/plain"}
TWICE = Random(100).randbytes(30_000)


def id_of(answer: dict[str, Any]) -> str:
    text: str = answer["newlyCreated"]["blobObject"]["blobId"]
    return text


async def test_a_gateway_stores_many_at_once_and_each_is_read_back(tmp_path: Path) -> None:
    async with open_testnet(nodes=4, shards=4, epoch_s=None, segment_bytes=SEGMENT_BYTES, directory=tmp_path) as nodes:
        home = nodes.client_home
        async with open_gateway(home, plain_owner(home), Options(port=0)) as gateway:
            port = int(gateway.urls[0].rpartition(":")[2])
            bearer = {"Authorization": f"Bearer {gateway.services.access.token}"}
            answers: dict[int, Answer] = {}

            async def put(number: int, body: bytes) -> None:
                answers[number] = await ask(
                    port, "PUT", "/v1/blobs", {"Content-Type": "text/plain"}, body, answer_s=480
                )

            async def put_all(bodies: list[bytes]) -> list[dict[str, Any]]:
                answers.clear()
                async with trio.open_nursery() as nursery:
                    for number, body in enumerate(bodies):
                        nursery.start_soon(put, number, body)
                assert {answer.status for answer in answers.values()} == {200}, answers
                return [json.loads(answers[number].body) for number in range(len(bodies))]

            stored = await put_all(BODIES)
            assert len({answer["newlyCreated"]["blobObject"]["storage"]["id"] for answer in stored}) == 8
            for answer, body in zip(stored, BODIES, strict=True):
                found = await ask(port, "GET", f"/v1/blobs/{id_of(answer)}")
                assert (found.status, found.headers["content-type"], found.body) == (
                    200,
                    "text/plain; charset=utf-8",
                    body,
                )
            assert sorted(key for answer in await put_all([TWICE, TWICE]) for key in answer) == [
                "alreadyCertified",
                "newlyCreated",
            ]

            quilt = json.loads((await ask(port, "PUT", "/v1/quilts", FORM, form(CAT, DOG), answer_s=480)).body)
            quilt_id = id_of(quilt["blobStoreResult"])
            by_name = await ask(port, "GET", f"/v1/blobs/by-quilt-id/{quilt_id}/cat")
            by_patch = await ask(
                port, "GET", f"/v1/blobs/by-quilt-patch-id/{quilt['storedQuiltBlobs'][0]['quiltPatchId']}"
            )
            assert by_name.body == by_patch.body == b"a cat"

            listed = json.loads((await ask(port, "GET", "/v1/blobs", bearer, answer_s=480)).body)
            assert {row["blobId"] for row in listed["blobs"]} > {id_of(answer) for answer in stored} | {quilt_id}
            assert len(listed["blobs"]) == 10
            gone = id_of(stored[0])
            assert (await ask(port, "DELETE", f"/v1/blobs/{gone}", bearer, answer_s=480)).status == 200
            assert (await ask(port, "GET", f"/v1/blobs/{gone}")).status == 410
            assert (await ask(port, "DELETE", f"/v1/blobs/{gone}", bearer, answer_s=480)).status == 404
