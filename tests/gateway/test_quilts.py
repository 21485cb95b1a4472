"""PUT /v1/quilts: forms as curl sends them, and forms that are made to do harm."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from economics.blob import parse_blob_id
from p2pnode.content.quilt import Index, build_patch_id, read_index
from p2pnode.gateway.forms import PARTS_MAX
from p2pnode.gateway.services import Limits
from tests.content.test_quilt import MemoryView
from tests.gateway.ledgernet import BEARER, LedgerNet, open_gateway, reason_of
from tests.gateway.raw import build, exchange, parse

BOUNDARY = "----------------------------d74496d66958873e"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(disposition: str, data: bytes, *headers: str) -> bytes:
    lines = [f"Content-Disposition: form-data; {disposition}", *headers]
    return f"--{BOUNDARY}\r\n".encode() + "\r\n".join(lines).encode() + b"\r\n\r\n" + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def metadata(value: Any) -> bytes:
    return part('name="_metadata"', json.dumps(value).encode())


CAT = part('name="cat"; filename="C:\\\\cat.png"', b"a cat", "Content-Type: image/png")
DOG = part('name="dogs/dog.txt"', b"a dog\r\n--almost a boundary")


async def index_of(net: LedgerNet) -> Index:
    (data,) = net.blobs.values()
    return await read_index(MemoryView(data))


class TestStoring:
    async def test_answers_as_walrus_does_and_each_file_is_there(self, net: LedgerNet, tmp_path: Path) -> None:
        tags = [{"identifier": "dogs/dog.txt", "tags": {"kind": "dog", "content-type": "text/plain"}}]
        async with open_gateway(net, tmp_path) as gateway:
            body = form(DOG, CAT, metadata(tags), part('name="empty"', b""))
            answer = await gateway.json("PUT", "/v1/quilts?epochs=2&quilt_version=V1", FORM, body)
            assert await gateway.leaves_nothing()
        (data,) = net.blobs.values()
        index = await index_of(net)
        created = answer["blobStoreResult"]["newlyCreated"]["blobObject"]
        blob_id = parse_blob_id(created["blobId"])
        assert created["size"] == len(data)
        assert answer["storedQuiltBlobs"] == [
            {"identifier": name, "quiltPatchId": build_patch_id(blob_id, number), "range": [start, stop]}
            for number, (name, start, stop) in enumerate(
                (entry.name, entry.start, entry.stop) for entry in index.entries
            )
        ]
        assert {entry.name: (data[entry.start : entry.stop], dict(entry.tags)) for entry in index.entries} == {
            "cat": (b"a cat", {"content-type": "image/png"}),
            "dogs/dog.txt": (b"a dog\r\n--almost a boundary", {"kind": "dog", "content-type": "text/plain"}),
            "empty": (b"", {}),
        }

    async def test_again_names_what_is_there(self, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            first = await gateway.json("PUT", "/v1/quilts", FORM, form(CAT, DOG))
            again = await gateway.json("PUT", "/v1/quilts", FORM, form(DOG, CAT))
        assert list(again["blobStoreResult"]) == ["alreadyCertified"]
        assert again["storedQuiltBlobs"] == first["storedQuiltBlobs"]

    async def test_takes_names_in_any_script_and_a_form_cut_anywhere(self, net: LedgerNet, tmp_path: Path) -> None:
        body = form(part('name="Köln ☕ \\"x\\""', b"1"), DOG)
        raw = build("PUT", "/v1/quilts", {**FORM, "Transfer-Encoding": "chunked"})
        raw += b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        async with open_gateway(net, tmp_path) as gateway:
            (answer,) = parse(await exchange(gateway.port, raw))
        names = [row["identifier"] for row in json.loads(answer.body)["storedQuiltBlobs"]]
        assert names == ['Köln ☕ "x"', "dogs/dog.txt"]

    async def test_takes_a_thousand_files(self, net: LedgerNet, tmp_path: Path) -> None:
        body = form(*(part(f'name="file-{number:04}"', bytes([number % 256]) * 100) for number in range(1_000)))
        async with open_gateway(net, tmp_path) as gateway:
            answer = await gateway.json("PUT", "/v1/quilts", FORM, body)
        assert len(answer["storedQuiltBlobs"]) == len((await index_of(net)).entries) == 1_000


def named(name: str) -> bytes:
    return part(f'name="{name}"', b"x")


BAD_FORMS: dict[str, tuple[bytes, int, str]] = {
    "no file": (form(), 400, "BAD_FORM"),
    "only tags": (form(metadata([])), 400, "BAD_FORM"),
    "nothing": (b"", 400, "CUT_SHORT"),
    "no form": (b"a" * 1_000, 400, "BAD_FORM"),
    "no end": (CAT + DOG, 400, "CUT_SHORT"),
    "an end cut off": (form(CAT)[:-5], 400, "CUT_SHORT"),
    "another boundary": (form(CAT).replace(BOUNDARY.encode(), b"x"), 400, "BAD_FORM"),
    "a name twice": (form(CAT, CAT), 400, "BAD_FORM"),
    "a part without a name": (form(part('filename="x"', b"x")), 400, "BAD_FORM"),
    "a part without headers": (form(f"--{BOUNDARY}\r\n\r\nx\r\n".encode()), 400, "BAD_FORM"),
    "a part that is no field": (form(part("", b"").replace(b"form-data", b"attachment")), 400, "BAD_FORM"),
    "a header twice": (form(part('name="a"', b"x", "X: 1", "X: 2")), 400, "BAD_FORM"),
    "a header without a colon": (form(part('name="a"', b"x", "nonsense")), 400, "BAD_FORM"),
    "bytes in another coding": (form(part('name="a"', b"eA==", "Content-Transfer-Encoding: base64")), 400, "BAD_FORM"),
    "a content type that is none": (form(part('name="a"', b"x", "Content-Type: x")), 400, "INVALID_CONTENT_TYPE"),
    "many headers": (form(part('name="a"', b"x", *(f"X-{at}: 1" for at in range(20)))), 400, "BAD_FORM"),
    "a header of a megabyte": (form(part('name="a"', b"x", "X: " + "a" * (1 << 20))), 400, "BAD_FORM"),
    "a header that never ends": (f"--{BOUNDARY}\r\n".encode() + b"A" * (1 << 20), 400, "BAD_FORM"),
    "a name of 64 KiB": (form(named("n" * 65_536)), 400, "BAD_FORM"),
    "a name of 1,025 bytes": (form(named("n" * 1_025)), 400, "BAD_NAME"),
    "an empty name": (form(named("")), 400, "BAD_NAME"),
    "a name that leads out": (form(named("../../etc/passwd")), 400, "BAD_NAME"),
    "a name from the root": (form(named("/etc/passwd")), 400, "BAD_NAME"),
    "a name of a dot": (form(named("a/./b")), 400, "BAD_NAME"),
    "a name with a gap": (form(named("a//b")), 400, "BAD_NAME"),
    "a name with a bell": (form(named("a\x07")), 400, "BAD_NAME"),
    "a name with a NUL": (form(named("a\x00b")), 400, "BAD_NAME"),
    "a name in Latin-1": (form(named("a").replace(b'"a"', b'"\xe9"')), 400, "BAD_NAME"),
    "tags that are no JSON": (form(CAT, part('name="_metadata"', b"{")), 400, "BAD_METADATA"),
    "tags that nest": (form(CAT, part('name="_metadata"', b"[" * 200_000)), 400, "BAD_METADATA"),
    "tags that are no list": (form(CAT, metadata({})), 400, "BAD_METADATA"),
    "tags of nobody": (form(CAT, metadata([{"identifier": "bird"}])), 400, "BAD_METADATA"),
    "tags twice for a file": (form(CAT, metadata([{"identifier": "cat"}] * 2)), 400, "BAD_METADATA"),
    "tags that are numbers": (form(CAT, metadata([{"identifier": "cat", "tags": {"a": 1}}])), 400, "BAD_METADATA"),
    "tags with half a letter": (
        form(CAT, metadata([{"identifier": "cat", "tags": {"a": "\ud800"}}])),
        400,
        "BAD_METADATA",
    ),
    "tags in something unknown": (form(CAT, metadata([{"identifier": "cat", "x": 1}])), 400, "BAD_METADATA"),
    "two lists of tags": (form(CAT, metadata([]), metadata([])), 400, "BAD_FORM"),
    "too many tags for a file": (
        form(CAT, metadata([{"identifier": "cat", "tags": {str(at): "" for at in range(100)}}])),
        400,
        "INVALID_INPUT",
    ),
    "too many files": (form(*(named(f"{at}") for at in range(PARTS_MAX + 1))), 413, "TOO_MANY_FILES"),
    "a form in a form": (
        form(part('name="a"', b"x", "Content-Type: multipart/mixed; boundary=" + BOUNDARY)).replace(
            b"x\r\n", form(CAT) * 2, 1
        ),
        400,
        "BAD_FORM",
    ),
}


class TestRefusing:
    @pytest.mark.parametrize(("body", "status", "reason"), BAD_FORMS.values(), ids=BAD_FORMS.keys())
    async def test_a_bad_form_soon_and_without_a_trace(
        self, body: bytes, status: int, reason: str, net: LedgerNet, tmp_path: Path
    ) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            with trio.fail_after(60):
                assert await gateway.fails("PUT", "/v1/quilts", FORM, body, status=status) == reason
            assert await gateway.leaves_nothing()

    async def test_a_hundred_thousand_parts_while_others_are_served(self, net: LedgerNet, tmp_path: Path) -> None:
        body = form(*(b"--%b\r\n\r\n\r\n" % BOUNDARY.encode() for _ in range(60_000)))
        longest = 0.0
        async with open_gateway(net, tmp_path) as gateway, trio.open_nursery() as nursery:

            async def others() -> None:
                nonlocal longest
                while True:
                    started = time.thread_time()
                    await gateway.ask("GET", "/v1/api/openapi.json")
                    longest = max(longest, time.thread_time() - started)

            nursery.start_soon(others)
            with trio.fail_after(60):
                assert await gateway.fails("PUT", "/v1/quilts", FORM, body, status=400) == "BAD_FORM"
            nursery.cancel_scope.cancel()
        assert longest < 2, "seconds of this thread, whatever else the machine does"

    @pytest.mark.parametrize(
        "content_type",
        [
            "",
            "application/json",
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/mixed; boundary=x",
        ],
    )
    async def test_what_is_no_form(self, content_type: str, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            headers = {"Content-Type": content_type}
            assert await gateway.fails("PUT", "/v1/quilts", headers, form(CAT), status=415) == "NOT_A_FORM"

    async def test_a_boundary_that_is_too_long(self, net: LedgerNet, tmp_path: Path) -> None:
        headers = {"Content-Type": "multipart/form-data; boundary=" + "b" * 5_000}
        async with open_gateway(net, tmp_path) as gateway:
            assert await gateway.fails("PUT", "/v1/quilts", headers, form(CAT), status=400) == "BAD_FORM"

    async def test_more_than_the_limit(self, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path, limits=Limits(quilt_bytes_max=1_000)) as gateway:
            answer = await gateway.ask("PUT", "/v1/quilts", FORM, form(part('name="a"', bytes(1_000))))
            assert reason_of(answer, 413) == "TOO_LARGE"
            assert json.loads(answer.body)["error"]["details"][0]["metadata"] == {"limitBytes": 1_000}

    async def test_without_a_wallet_or_the_token(self, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path, owner=None) as gateway:
            assert await gateway.fails("PUT", "/v1/quilts", FORM, form(CAT), status=403) == "NO_WALLET"
        async with open_gateway(net, tmp_path, is_loopback=False) as gateway:
            assert await gateway.fails("PUT", "/v1/quilts", FORM, form(CAT), status=401) == "TOKEN"
            assert "storedQuiltBlobs" in await gateway.json("PUT", "/v1/quilts", {**BEARER, **FORM}, form(CAT))

    @pytest.mark.parametrize(
        "query", ["?quilt_version=v2", "?epochs=0", "?unknown=1", "?deletable=true&permanent=true"]
    )
    async def test_a_parameter_that_cannot_be(self, query: str, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            reason = await gateway.fails("PUT", "/v1/quilts" + query, FORM, form(CAT), status=400)
        assert reason == "INVALID_PARAMETER"
