"""What is read over HTTP: the right bytes in the right form, each failure told apart, and no success that is none."""

import json
from pathlib import Path
from random import Random
from urllib.parse import quote, urljoin

import pytest
import trio
import trio.testing
from blake3 import blake3

from economics.blob import BlobId, Header, build_blob_id_text
from p2pnode.content.manifest import FolderBlob, FolderFile, Manifest
from p2pnode.content.quilt import QuiltFile, build_patch_id, build_quilt
from p2pnode.content.sealed import SealedSource
from p2pnode.content.sources import BytesSource
from p2pnode.errors import InconsistentBlob, NodeError, PeerUnreachable, Unavailable
from p2pnode.gateway import blobs as module
from p2pnode.gateway.answers import FOR_EVER, SANDBOX, guess_type
from p2pnode.gateway.segments import AHEAD
from p2pnode.gateway.services import Limits
from tests.gateway.raw import Answer, ask, build, exchange, get, parse
from tests.gateway.shelf import GENESIS, Shelf, open_shelf
from tests.small import Blob

DATA = Random(1).randbytes(200_000)
"""Four segments of 64 KiB, the last one short."""
LARGE = Random(2).randbytes(3_000_000)


def url(blob_id: BlobId, rest: str = "") -> str:
    return f"/v1/blobs/{build_blob_id_text(blob_id)}{rest}"


def error_of(answer: Answer) -> tuple[int, str, str]:
    """Return status, code name and reason of an error in Walrus' shape, which is one line and kept by no cache."""
    error = json.loads(answer.body)["error"]
    assert set(error) == {"code", "details", "message", "status"}
    assert error["code"] == answer.status
    assert "\n" not in error["message"]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"
    return answer.status, error["status"], error["details"][0]["reason"]


# --- bytes and headers -----------------------------------------------------------------------------------------------


async def test_a_blob_is_answered_with_its_bytes_and_may_be_cached_for_ever(tmp_path: Path) -> None:
    shelf = Shelf()
    blob_id = shelf.put(DATA, content_type="image/png")
    async with open_shelf(shelf, tmp_path) as opened:
        for _ in range(2):
            answer = await get(opened.port, url(blob_id))
            assert (answer.status, answer.body) == (200, DATA)
            headers = {name: value for name, value in answer.headers.items() if name not in ("date", "connection")}
            assert headers == {
                "accept-ranges": "bytes",
                "access-control-allow-origin": "*",
                "access-control-expose-headers": "Accept-Ranges, Content-Length, Content-Range, ETag, Retry-After, "
                "X-Quilt-Patch-Identifier",
                "cache-control": FOR_EVER,
                "content-length": "200000",
                "content-security-policy": SANDBOX,
                "content-type": "image/png",
                "cross-origin-resource-policy": "cross-origin",
                "etag": f'"{build_blob_id_text(blob_id)}"',
                "referrer-policy": "no-referrer",
                "x-content-type-options": "nosniff",
            }


@pytest.mark.parametrize("data", [b"", b"x", DATA, LARGE], ids=["nothing", "a byte", "some", "much"])
async def test_head_says_what_get_would(tmp_path: Path, data: bytes) -> None:
    shelf = Shelf()
    blob_id = shelf.put(data)
    async with open_shelf(shelf, tmp_path) as opened:
        head = await ask(opened.port, "HEAD", url(blob_id))
        assert shelf.asked["segment"] == 0
        whole = await get(opened.port, url(blob_id))
    assert whole.body == data
    left = ("date", "connection")
    assert (head.status, {k: v for k, v in head.headers.items() if k not in left}) == (
        200,
        {k: v for k, v in whole.headers.items() if k not in left},
    )


async def test_a_type_that_is_no_type_is_not_passed_on(tmp_path: Path) -> None:
    shelf = Shelf()
    blob_id = shelf.put(b"x", content_type="text/html\r\nSet-Cookie: a=b")
    async with open_shelf(shelf, tmp_path) as opened:
        answer = await get(opened.port, url(blob_id))
    assert (answer.headers["content-type"], "set-cookie" in answer.headers) == ("application/octet-stream", False)


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "application/xhtml+xml", "text/html; charset=utf-8"])
async def test_pages_and_drawings_run_nothing_and_are_of_no_origin(tmp_path: Path, kind: str) -> None:
    shelf = Shelf()
    blob_id = shelf.put(b"<script>alert(1)</script>", content_type=kind)
    async with open_shelf(shelf, tmp_path) as opened:
        answer = await get(opened.port, url(blob_id))
    policy = answer.headers["content-security-policy"]
    assert (answer.headers["content-type"], answer.headers["x-content-type-options"]) == (kind, "nosniff")
    sandbox, rest = policy.split("; ", 1)
    assert set(sandbox.split()) == {
        "sandbox", "allow-downloads", "allow-popups", "allow-popups-to-escape-sandbox",
    }  # fmt: skip
    assert rest.startswith("default-src 'none'; ")
    assert "script-src" not in policy


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("text/plain", "text/plain; charset=utf-8"),
        ("text/x-python; a=b ;", "text/x-python; a=b; charset=utf-8"),
        ("Text/Plain; Charset=latin1", "Text/Plain; Charset=latin1"),
        ("text/html", "text/html"),
        ("text/xml ;a=b", "text/xml ;a=b"),
        ("image/svg+xml", "image/svg+xml"),
        ("", "application/octet-stream"),
    ],
)
async def test_text_is_in_utf_8_unless_it_may_say_otherwise(tmp_path: Path, told: str, shown: str) -> None:
    shelf = Shelf()
    blob_id = shelf.put("Grüße".encode(), content_type=told)
    async with open_shelf(shelf, tmp_path) as opened:
        assert (await get(opened.port, url(blob_id))).headers["content-type"] == shown


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.html", "text/html; charset=utf-8"),
        ("a/B.WebP", "image/webp"),
        ("read me.md", "text/markdown; charset=utf-8"),
        ("main.js", "text/javascript; charset=utf-8"),
        ("song.flac", "audio/flac"),
        ("face.woff2", "font/woff2"),
        ("100%.pdf", "application/pdf"),
        ("a.json", "application/json"),
        ("a.tar.gz", "application/octet-stream"),
        ("a.exe~", "application/octet-stream"),
        ("html", "application/octet-stream"),
    ],
)
def test_a_name_suggests_what_browsers_show_in_all_versions_of_python(name: str, kind: str) -> None:
    assert guess_type(name) == kind


async def test_a_download_may_be_named(tmp_path: Path) -> None:
    shelf = Shelf()
    blob_id = shelf.put(b"x")
    async with open_shelf(shelf, tmp_path) as opened:
        answer = await get(opened.port, url(blob_id, "?filename=a/b%22%0d%0ac.pdf"))
        assert error_of(answer)[0] == 400
        answer = await get(opened.port, url(blob_id, "?filename=../%C3%BC%22.pdf"))
    assert answer.headers["content-disposition"] == "attachment; filename=\"__.pdf\"; filename*=UTF-8''%C3%BC%22.pdf"
    assert answer.headers["content-type"] == "application/pdf"


# --- ranges and conditions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-99", 0, 100),
        ("bytes=65530-65545", 65_530, 65_546),
        ("bytes=199999-", 199_999, 200_000),
        ("bytes=-5", 199_995, 200_000),
        ("bytes=0-99999999999999", 0, 200_000),
        ("bytes=-99999999999999", 0, 200_000),
        ("BYTES = 7-7", 7, 8),
        ("bytes=0-4,5-9", 0, 10),
    ],
)
async def test_a_range_is_answered_with_206(tmp_path: Path, asked: str, start: int, stop: int) -> None:
    shelf = Shelf()
    blob_id = shelf.put(DATA)
    async with open_shelf(shelf, tmp_path) as opened:
        answer = await get(opened.port, url(blob_id), Range=asked)
    assert (answer.status, answer.body) == (206, DATA[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/200000"
    assert answer.headers["content-length"] == str(stop - start)


@pytest.mark.parametrize(
    "asked", ["bytes=200000-", "bytes=-0", "bytes=5-4", "bytes=a-b", "bytes=", "bytes=-", "bytes=--5", "bytes=1-2-3",
              "bytes=0x0-0x5", "bytes=99999999999999999999999-", "bytes=٣-٤"],
)  # fmt: skip
async def test_a_range_that_has_no_byte_is_answered_with_416(tmp_path: Path, asked: str) -> None:
    shelf = Shelf()
    blob_id = shelf.put(DATA)
    raw = build("GET", url(blob_id)).replace(b"\r\n\r\n", b"\r\nRange: " + asked.encode() + b"\r\n\r\n")
    async with open_shelf(shelf, tmp_path) as opened:
        (answer,) = parse(await exchange(opened.port, raw))
    assert error_of(answer) == (416, "OUT_OF_RANGE", "INVALID_BYTE_RANGE")
    assert answer.headers["content-range"] == "bytes */200000"


async def test_a_unit_that_nobody_knows_is_ignored(tmp_path: Path) -> None:
    shelf = Shelf()
    blob_id = shelf.put(DATA)
    async with open_shelf(shelf, tmp_path) as opened:
        answer = await get(opened.port, url(blob_id), Range="lines=1-2")
    assert (answer.status, answer.body) == (200, DATA)


async def test_several_ranges_are_several_parts(tmp_path: Path) -> None:
    shelf = Shelf()
    blob_id = shelf.put(DATA, content_type="text/plain")
    async with open_shelf(shelf, tmp_path) as opened:
        answer = await get(opened.port, url(blob_id), Range="bytes=100000-100003, 0-1,-2")
        many = await get(opened.port, url(blob_id), Range="bytes=" + ",".join(f"{10 * n}-{10 * n}" for n in range(17)))
    assert (answer.status, answer.is_whole) == (206, True)
    boundary = answer.headers["content-type"].removeprefix("multipart/byteranges; boundary=")
    parts = answer.body.split(f"\r\n--{boundary}".encode())
    assert (parts[0], parts[-1]) == (b"", b"--\r\n")
    heads, bodies = zip(*(part.split(b"\r\n\r\n", 1) for part in parts[1:-1]), strict=True)
    spans = [(0, 2), (100_000, 100_004), (199_998, 200_000)]
    assert list(bodies) == [DATA[start:stop] for start, stop in spans]
    assert list(heads) == [
        f"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Range: bytes {start}-{stop - 1}/200000".encode()
        for start, stop in spans
    ]
    assert (many.status, many.body) == (200, DATA)


async def test_who_has_the_bytes_is_told_so(tmp_path: Path) -> None:
    shelf = Shelf()
    blob_id = shelf.put(DATA)
    tag = f'"{build_blob_id_text(blob_id)}"'
    async with open_shelf(shelf, tmp_path) as opened:
        for condition in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            answer = await get(opened.port, url(blob_id), If_None_Match=condition)
            assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", tag)
        assert (await get(opened.port, url(blob_id), If_None_Match='"other"')).status == 200
        assert error_of(await get(opened.port, url(blob_id), If_Match='"other"'))[0] == 412
        assert (await get(opened.port, url(blob_id), If_Match=tag)).status == 200


async def test_a_range_of_other_bytes_is_the_whole(tmp_path: Path) -> None:
    shelf = Shelf()
    blob_id = shelf.put(DATA)
    tag = f'"{build_blob_id_text(blob_id)}"'
    async with open_shelf(shelf, tmp_path) as opened:
        same = await get(opened.port, url(blob_id), Range="bytes=1-2", If_Range=tag)
        others = [
            await get(opened.port, url(blob_id), Range="bytes=1-2", If_Range=condition)
            for condition in ('"other"', f"W/{tag}", "Wed, 21 Oct 2026 07:28:00 GMT")
        ]
    assert (same.status, same.body) == (206, DATA[1:3])
    assert [(other.status, other.body == DATA) for other in others] == [(200, True)] * 3


async def test_a_byte_range_by_parameters_is_a_resource_of_its_own(tmp_path: Path) -> None:
    shelf = Shelf()
    blob_id = shelf.put(DATA)
    async with open_shelf(shelf, tmp_path) as opened:
        answer = await get(opened.port, url(blob_id, "/byte-range?start=65530&length=20"))
        assert (answer.status, answer.body) == (200, DATA[65_530:65_550])
        assert answer.headers["etag"] == f'"{build_blob_id_text(blob_id)}-65530-20"'
        wrong = ["", "?start=0", "?start=0&length=0", "?start=199999&length=2", "?start=-1&length=5"]
        wrong += ["?start=0&length=1&length=2", f"?start={'9' * 25}&length=1", "?start=0&length=1&x=1"]
        for query in wrong:
            assert (await get(opened.port, url(blob_id, f"/byte-range{query}"))).status == 400


# --- what fails ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/blobs/abc", "/v1/blobs/" + "A" * 42 + "B", "/v1/blobs/" + "%00" * 43])
async def test_what_is_no_id_is_answered_with_400(tmp_path: Path, path: str) -> None:
    async with open_shelf(Shelf(), tmp_path) as opened:
        assert error_of(await get(opened.port, path)) == (400, "INVALID_ARGUMENT", "INVALID_ID")


async def test_a_parameter_that_is_unknown_or_contradicts_is_answered_with_400(tmp_path: Path) -> None:
    shelf = Shelf()
    blob_id = shelf.put(DATA)
    async with open_shelf(shelf, tmp_path) as opened:
        for query in ("?x=1", "?strict_consistency_check=yes",
                      "?strict_consistency_check=true&skip_consistency_check=true"):  # fmt: skip
            assert error_of(await get(opened.port, url(blob_id, query)))[0] == 400
        for query in ("?strict_consistency_check=true", "?skip_consistency_check=true"):
            assert (await get(opened.port, url(blob_id, query))).body == DATA


async def test_404_is_what_nobody_ever_had(tmp_path: Path) -> None:
    shelf = Shelf()
    missing = shelf.put(DATA, is_live=False, is_certified=False)
    shelf.lose(missing)
    async with open_shelf(shelf, tmp_path) as opened:
        assert error_of(await get(opened.port, url(missing))) == (404, "NOT_FOUND", "BLOB_NOT_FOUND")
        assert (await ask(opened.port, "HEAD", url(missing))).status == 404


@pytest.mark.parametrize("is_held", [True, False])
async def test_410_is_what_was_certified_and_is_owed_no_more(tmp_path: Path, is_held: bool) -> None:
    shelf = Shelf()
    blob_id = shelf.put(DATA, is_live=False)
    if not is_held:
        shelf.lose(blob_id)
    async with open_shelf(shelf, tmp_path) as opened:
        assert error_of(await get(opened.port, url(blob_id))) == (410, "NOT_FOUND", "BLOB_GONE")


async def test_410_is_what_was_deleted_here_though_it_was_cached(tmp_path: Path) -> None:
    shelf = Shelf()
    blob_id = shelf.put(DATA)
    async with open_shelf(shelf, tmp_path) as opened:
        assert (await get(opened.port, url(blob_id))).status == 200
        await opened.services.note_deleted(blob_id)
        assert error_of(await get(opened.port, url(blob_id)))[0] == 410
        assert opened.cache.header(blob_id) is None
        opened.services.note_stored(blob_id, "text/plain")
        answer = await get(opened.port, url(blob_id))
        assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")


async def test_what_was_deleted_here_and_stored_elsewhere_is_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob that only this gateway remembers stays 410 all the same: it was there."""
    monkeypatch.setattr(module, "FRESH_S", 0.0)
    shelf = Shelf()
    blob_id = shelf.put(DATA)
    live, certificate = shelf.live.pop(blob_id), shelf.certificates.pop(blob_id)
    shelf.lose(blob_id)
    async with open_shelf(shelf, tmp_path) as opened:
        await opened.services.note_deleted(blob_id)
        assert (await get(opened.port, url(blob_id))).status == 410
        shelf.put(DATA)
        shelf.live[blob_id], shelf.certificates[blob_id] = live, certificate
        assert (await get(opened.port, url(blob_id))).body == DATA


async def test_what_was_certified_just_now_is_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pnode.gateway.blobs.PROVING_S", 60.0)
    shelf = Shelf(epoch=5)
    blob_id = shelf.put(DATA, is_live=False, epoch=5)
    certificate = shelf.certificates[blob_id]

    async def show() -> None:
        while shelf.asked["prove"] < 2:  # noqa: ASYNC110 - a counter has no event
            await trio.sleep(0.1)
        shelf.put(DATA, epoch=5)
        shelf.certificates[blob_id] = certificate

    async with open_shelf(shelf, tmp_path) as opened, trio.open_nursery() as nursery:
        nursery.start_soon(show)
        assert opened.services.blobs is not None
        assert (await opened.services.blobs.find(blob_id)).is_live


async def test_422_is_what_is_proven_wrong(tmp_path: Path) -> None:
    shelf = Shelf()
    blob_id = shelf.put(DATA)
    shelf.invalid.add(blob_id)
    async with open_shelf(shelf, tmp_path) as opened:
        assert error_of(await get(opened.port, url(blob_id))) == (422, "FAILED_PRECONDITION", "INVALID_BLOB")


async def test_a_writer_is_told_of_once_however_many_read_meanwhile(tmp_path: Path) -> None:
    """Telling takes slivers and megabytes to every member: whoever asks on must not multiply it."""
    told = trio.Event()

    class Slow(Shelf):
        async def accuse(self, fault: NodeError) -> NodeError:
            self.accused.append(fault)
            await told.wait()
            return fault

    shelf = Slow(fault=InconsistentBlob("the blob was encoded inconsistently by its writer"))
    blob_id = shelf.put(DATA)
    async with open_shelf(shelf, tmp_path) as opened:
        for _ in range(3):
            assert (await get(opened.port, url(blob_id))).status == 422
        assert len(shelf.accused) == 1
        told.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (await get(opened.port, url(blob_id))).status == 422
        assert len(shelf.accused) == 2


async def test_a_writer_that_is_found_inconsistent_is_told_of(tmp_path: Path) -> None:
    shelf = Shelf()
    blob_id = shelf.put(DATA)
    shelf.fault = InconsistentBlob("the blob was encoded inconsistently by its writer")
    async with open_shelf(shelf, tmp_path) as opened:
        assert error_of(await get(opened.port, url(blob_id))) == (422, "FAILED_PRECONDITION", "INVALID_BLOB")
    assert shelf.accused == [shelf.fault]


@pytest.mark.parametrize(
    "fault", [Unavailable("segment 0: 1 of 2 slivers can be had"), PeerUnreachable("none of 4 nodes could be asked")]
)
async def test_503_is_what_can_be_had_later(tmp_path: Path, fault: Unavailable) -> None:
    shelf = Shelf()
    blob_id = shelf.put(DATA)
    shelf.fault = fault
    async with open_shelf(shelf, tmp_path) as opened:
        answer = await get(opened.port, url(blob_id))
        assert error_of(answer) == (503, "UNAVAILABLE", "BLOB_UNAVAILABLE")
        assert int(answer.headers["retry-after"]) > 0
        shelf.fault = None
        assert (await get(opened.port, url(blob_id))).body == DATA


async def test_503_is_a_live_blob_that_no_node_has_now(tmp_path: Path) -> None:
    shelf = Shelf()
    blob_id = shelf.put(DATA)
    shelf.lose(blob_id)
    async with open_shelf(shelf, tmp_path) as opened:
        answer = await get(opened.port, url(blob_id))
    assert error_of(answer) == (503, "UNAVAILABLE", "BLOB_UNAVAILABLE")
    assert b"the network owes this blob" in answer.body


async def test_503_is_a_network_that_does_not_answer(tmp_path: Path) -> None:
    shelf = Shelf(fault=PeerUnreachable("no answer"), chain_fault=PeerUnreachable("no answer"))
    blob_id = shelf.put(DATA)
    async with open_shelf(shelf, tmp_path) as opened:
        assert error_of(await get(opened.port, url(blob_id)))[0] == 503


async def test_a_blob_that_members_have_is_read_though_the_chain_is_silent(tmp_path: Path) -> None:
    shelf = Shelf(chain_fault=PeerUnreachable("no answer"))
    blob_id = shelf.put(DATA)
    async with open_shelf(shelf, tmp_path) as opened:
        assert (await get(opened.port, url(blob_id))).body == DATA


async def test_what_breaks_off_in_the_middle_is_a_broken_transfer(tmp_path: Path) -> None:
    shelf = Shelf(breaks_at=40)
    blob_id = shelf.put(LARGE)
    async with open_shelf(shelf, tmp_path) as opened:
        answer = await get(opened.port, url(blob_id))
    assert (answer.status, answer.is_whole) == (200, False)
    assert answer.body == LARGE[: 40 * 65_536]


async def test_what_breaks_off_before_the_first_byte_is_an_error(tmp_path: Path) -> None:
    shelf = Shelf(breaks_at=0)
    blob_id = shelf.put(LARGE)
    async with open_shelf(shelf, tmp_path) as opened:
        assert error_of(await get(opened.port, url(blob_id)))[0] == 503


async def test_only_a_strict_read_finds_what_does_not_encode_to_its_root(tmp_path: Path) -> None:
    shelf = Shelf()
    blob = shelf.blobs[shelf.put(DATA)]
    wrong = Blob(DATA, Header(GENESIS.code, len(DATA), (blob.header.roots[1], *blob.header.roots[1:])), blob.segments)
    blob_id = wrong.header.blob_id
    shelf.blobs[blob_id] = wrong
    async with open_shelf(shelf, tmp_path) as opened:
        assert (await get(opened.port, url(blob_id))).body == DATA
        answer = await get(opened.port, url(blob_id, "?strict_consistency_check=true"))
        assert error_of(answer) == (422, "FAILED_PRECONDITION", "INVALID_BLOB")
        assert opened.cache.blob_ids() == []
    assert (len(shelf.accused), shelf.suspect) == (1, (wrong.header, 0))


# --- peers -----------------------------------------------------------------------------------------------------------


async def test_what_only_a_peer_has_is_read_from_it(tmp_path: Path) -> None:
    shelf, peers = Shelf(), Shelf()
    blob_id = peers.put(DATA)
    async with open_shelf(shelf, tmp_path, peers=peers) as opened:
        assert (await get(opened.port, url(blob_id))).body == DATA
        missing = shelf.put(b"x", is_live=False, is_certified=False)
        shelf.lose(missing)
        assert (await get(opened.port, url(missing))).status == 404


async def test_peers_give_what_too_few_members_have(tmp_path: Path) -> None:
    shelf, peers = Shelf(breaks_at=2), Shelf()
    blob_id = shelf.put(DATA, content_type="image/png")
    peers.put(DATA)
    async with open_shelf(shelf, tmp_path, peers=peers) as opened:
        answer = await get(opened.port, url(blob_id))
    assert (answer.body, answer.headers["content-type"], peers.asked["segment"]) == (DATA, "image/png", 1)


async def test_peers_are_not_asked_for_what_is_gone_or_wrong(tmp_path: Path) -> None:
    shelf, peers = Shelf(), Shelf()
    gone, wrong = shelf.put(DATA, is_live=False), shelf.put(LARGE)
    shelf.invalid.add(wrong)
    for data in (DATA, LARGE):
        peers.put(data)
    async with open_shelf(shelf, tmp_path, peers=peers) as opened:
        assert [(await get(opened.port, url(blob_id))).status for blob_id in (gone, wrong)] == [410, 422]
    assert peers.asked.total() == 0


# --- at once ---------------------------------------------------------------------------------------------------------


async def test_a_segment_is_fetched_once_for_all_who_want_it(tmp_path: Path) -> None:
    shelf = Shelf(gate=trio.Event())
    blob_id = shelf.put(DATA)
    answers: list[Answer] = []
    async with open_shelf(shelf, tmp_path) as opened:

        async def read() -> None:
            answers.append(await get(opened.port, url(blob_id)))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(read)
            while opened.services.health.downloads < 20:  # noqa: ASYNC110 - a counter has no event
                await trio.sleep(0.01)
            assert shelf.gate is not None
            shelf.gate.set()
    assert [answer.body == DATA for answer in answers] == [True] * 20
    assert (shelf.asked["segment"], shelf.asked["header"]) == (4, 1)


async def test_more_than_are_taken_at_once_are_told_to_come_again(tmp_path: Path) -> None:
    shelf = Shelf(gate=trio.Event())
    blob_id = shelf.put(DATA)
    async with open_shelf(shelf, tmp_path, limits=Limits(downloads_max=2)) as opened, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(get, opened.port, url(blob_id))
        while opened.services.health.downloads < 2:  # noqa: ASYNC110 - a counter has no event
            await trio.sleep(0.01)
        answer = await get(opened.port, url(blob_id))
        assert error_of(answer) == (429, "RESOURCE_EXHAUSTED", "BUSY")
        assert int(answer.headers["retry-after"]) > 0
        assert (await get(opened.port, "/health/live")).status == 200
        assert shelf.gate is not None
        shelf.gate.set()


async def test_who_goes_away_ends_the_fetching(tmp_path: Path) -> None:
    shelf = Shelf(gate=trio.Event())
    blob_id = shelf.put(LARGE)
    async with open_shelf(shelf, tmp_path) as opened:
        stream = await trio.open_tcp_stream("127.0.0.1", opened.port)
        await stream.send_all(build("GET", url(blob_id)))
        while shelf.asked["segment"] < 1 + AHEAD:  # noqa: ASYNC110 - a counter has no event
            await trio.sleep(0.01)
        await stream.aclose()
        while opened.services.health.downloads:  # noqa: ASYNC110 - a counter has no event
            await trio.sleep(0.01)
        assert opened.services.blobs is not None
        assert opened.services.blobs.segments.under_way == 0
    assert shelf.asked["segment"] == 1 + AHEAD


async def test_without_a_cache_all_is_read_all_the_same(tmp_path: Path) -> None:
    shelf = Shelf()
    blob_id = shelf.put(DATA)
    async with open_shelf(shelf, tmp_path, quota_bytes=0) as opened:
        for _ in range(2):
            assert (await get(opened.port, url(blob_id))).body == DATA
        assert (await get(opened.port, url(blob_id), Range="bytes=70000-70009")).body == DATA[70_000:70_010]
    assert not (tmp_path / "cache" / "blobs").exists()


async def test_a_cached_blob_is_read_though_the_network_is_gone(tmp_path: Path) -> None:
    shelf = Shelf()
    blob_id = shelf.put(DATA, content_type="image/png")
    async with open_shelf(shelf, tmp_path) as opened:
        assert (await get(opened.port, url(blob_id))).body == DATA
        while not opened.cache.is_whole(blob_id):  # noqa: ASYNC110 - a file has no event
            await trio.sleep(0.01)
    lost = Shelf(fault=PeerUnreachable("no answer"), chain_fault=PeerUnreachable("no answer"))
    async with open_shelf(lost, tmp_path) as opened:
        answer = await get(opened.port, url(blob_id))
    assert (answer.body, answer.headers["content-type"], lost.asked.total()) == (DATA, "image/png", 0)


async def test_a_small_range_fetches_its_symbols_and_the_second_one_the_segment(tmp_path: Path) -> None:
    shelf = Shelf()
    blob_id = shelf.put(DATA)
    async with open_shelf(shelf, tmp_path) as opened:
        for start in (10, 20, 30):
            answer = await get(opened.port, url(blob_id), Range=f"bytes={start}-{start + 9}")
            assert answer.body == DATA[start : start + 10]
    assert (shelf.asked["range"], shelf.asked["segment"]) == (1, 1)


# --- quilts and folders ----------------------------------------------------------------------------------------------

FILES = {"a.txt": b"first", "dir/b.html": b"<p>second</p>", 'ü "%.bin': Random(3).randbytes(150_000), "z": b""}


def put_quilt(shelf: Shelf) -> BlobId:
    files = [
        QuiltFile(name, BytesSource(data), {"lang": "en"} if name == "a.txt" else {}) for name, data in FILES.items()
    ]
    files.append(QuiltFile("typed", BytesSource(b"{}"), {"content-type": "application/json"}))
    source = build_quilt(files).source
    return shelf.put(source.read(0, source.length))


async def test_a_file_of_a_quilt_is_read_by_its_name_and_by_its_patch_id(tmp_path: Path) -> None:
    shelf = Shelf()
    quilt = put_quilt(shelf)
    text = build_blob_id_text(quilt)
    async with open_shelf(shelf, tmp_path) as opened:
        patches = json.loads((await get(opened.port, f"/v1/quilts/{text}/patches")).body)
        names = sorted([*FILES, "typed"], key=lambda name: name.encode())
        assert patches == [
            {
                "identifier": name,
                "patch_id": build_patch_id(quilt, number),
                "tags": {"a.txt": {"lang": "en"}, "typed": {"content-type": "application/json"}}.get(name, {}),
            }
            for number, name in enumerate(names)
        ]
        by_patch = {row["identifier"]: await get(opened.port, f"/v1/blobs/by-quilt-patch-id/{row['patch_id']}")
                    for row in patches}  # fmt: skip
        paths = {
            "a.txt": "a.txt",
            "dir/b.html": "dir/b.html",
            "z": "z",
            'ü "%.bin': "%C3%BC%20%22%25.bin",
            "typed": "typed",
        }
        by_name = {name: await get(opened.port, f"/v1/blobs/by-quilt-id/{text}/{path}") for name, path in paths.items()}
    expected = {**FILES, "typed": b"{}"}
    assert {name: answer.body for name, answer in by_patch.items()} == expected
    assert {name: answer.body for name, answer in by_name.items()} == expected
    assert {name: (answer.headers["content-type"], answer.headers["x-quilt-patch-identifier"])
            for name, answer in by_name.items()} == {
        "a.txt": ("text/plain; charset=utf-8", "a.txt"),
        "dir/b.html": ("text/html; charset=utf-8", "dir/b.html"),
        "typed": ("application/json", "typed"),
        "ü \"%.bin": ("application/octet-stream", "%C3%BC %22%25.bin"),
        "z": ("application/octet-stream", "z"),
    }  # fmt: skip
    tags = {name: f'"{build_patch_id(quilt, number)}"' for number, name in enumerate(names)}
    assert {name: answer.headers["etag"] for name, answer in by_name.items()} == tags
    assert by_name["dir/b.html"].headers["content-security-policy"] == SANDBOX


async def test_a_range_of_a_file_in_a_quilt_is_the_files(tmp_path: Path) -> None:
    shelf = Shelf()
    text = build_blob_id_text(put_quilt(shelf))
    data = FILES['ü "%.bin']
    async with open_shelf(shelf, tmp_path) as opened:
        answer = await get(opened.port, f"/v1/blobs/by-quilt-id/{text}/%C3%BC%20%22%25.bin", Range="bytes=-1000")
    assert (answer.status, answer.body) == (206, data[-1000:])
    assert answer.headers["content-range"] == "bytes 149000-149999/150000"


async def test_what_is_in_no_quilt_is_not_found(tmp_path: Path) -> None:
    shelf = Shelf()
    quilt, blob = put_quilt(shelf), shelf.put(DATA)
    text = build_blob_id_text(quilt)
    async with open_shelf(shelf, tmp_path) as opened:
        for path in (f"{text}/no", f"{text}/dir", f"{text}/../a.txt", f"{text}/%2e%2e%2fa.txt", f"{text}/"):
            assert error_of(await get(opened.port, f"/v1/blobs/by-quilt-id/{path}"))[2] == "QUILT_PATCH_NOT_FOUND"
        answer = await get(opened.port, f"/v1/blobs/by-quilt-patch-id/{build_patch_id(quilt, 99)}")
        assert error_of(answer) == (404, "NOT_FOUND", "QUILT_PATCH_NOT_FOUND")
        answer = await get(opened.port, f"/v1/quilts/{build_blob_id_text(blob)}/patches")
        assert error_of(answer) == (404, "NOT_FOUND", "NOT_A_QUILT")
        assert error_of(await get(opened.port, "/v1/blobs/by-quilt-patch-id/abc"))[0] == 400


def put_folder(shelf: Shelf, *, style: bytes = b"body { color: red }") -> BlobId:
    """Store a folder whose style sheet is said to be 19 bytes of red."""
    index, sealed = b"<h1>index</h1>", b"what was sealed"
    plain = index + style
    secret = SealedSource(BytesSource(sealed), b"k" * 32)
    blobs = (
        FolderBlob(shelf.put(plain), len(plain)),
        FolderBlob(shelf.put(secret.read(0, secret.length)), 15, b"k" * 32),
    )
    files = (
        FolderFile("index.html", 14, False, blake3(index).digest(), 0, 0),
        FolderFile("style/main.css", 19, False, blake3(b"body { color: red }").digest(), 0, 14),
        FolderFile("style/secret", 15, True, blake3(sealed).digest(), 1, 0),
    )
    return shelf.put(Manifest(blobs, files, ("void",)).encode())


async def test_a_folder_is_a_site(tmp_path: Path) -> None:
    shelf = Shelf()
    base = f"/v1/blobs/by-folder-id/{build_blob_id_text(put_folder(shelf))}"
    async with open_shelf(shelf, tmp_path) as opened:
        index = await get(opened.port, f"{base}/")
        assert (index.status, index.body, index.headers["content-type"]) == (
            200, b"<h1>index</h1>", "text/html; charset=utf-8")  # fmt: skip
        style = await get(opened.port, f"{base}/style/main.css")
        assert (style.body, style.headers["content-type"]) == (b"body { color: red }", "text/css; charset=utf-8")
        secret = await get(opened.port, f"{base}/style/secret", Range="bytes=5-7")
        assert (secret.status, secret.body) == (206, b"was")
        moved = await get(opened.port, f"{base}/style")
        assert (moved.status, moved.headers["location"]) == (307, "./style/")
        listed = await get(opened.port, f"{base}/style/")
        assert (listed.status, listed.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert b'<a href="./main.css">main.css</a>' in listed.body
        assert "script" not in listed.headers["content-security-policy"]
        assert (await get(opened.port, f"{base}/void/")).status == 200
        for path in ("no", "style/no", "../x", "%2e%2e/%2e%2e/etc/passwd", "style//main.css", "/etc/passwd", "a%00b"):
            assert error_of(await get(opened.port, f"{base}/{path}"))[2] == "FILE_NOT_FOUND"


async def test_a_file_that_is_not_what_the_folder_says_is_not_given(tmp_path: Path) -> None:
    shelf = Shelf()
    base = f"/v1/blobs/by-folder-id/{build_blob_id_text(put_folder(shelf, style=b'body { color: tan }'))}"
    async with open_shelf(shelf, tmp_path) as opened:
        assert error_of(await get(opened.port, f"{base}/style/main.css")) == (404, "NOT_FOUND", "NOT_A_FOLDER")
        assert (await get(opened.port, f"{base}/index.html")).status == 200


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "100%",
        "what?",
        "#1",
        "x:y",
        "https:elsewhere.example",
        "%2f%2felsewhere.example",
        "\\elsewhere.example",
        "ü",
        "a&b=c",
        "'\"",
    ],
)
async def test_a_folder_of_any_name_is_found_by_its_path_without_a_slash(tmp_path: Path, name: str) -> None:
    shelf = Shelf()
    files = (FolderFile(f"{name}/within/a", 1, False, b"\x01" * 32, 0, 0),)
    folder = shelf.put(Manifest((FolderBlob(shelf.put(b"x"), 1),), files).encode())
    base = f"/v1/blobs/by-folder-id/{build_blob_id_text(folder)}"
    async with open_shelf(shelf, tmp_path) as opened:
        for path in ("", f"/{quote(name)}", f"/{quote(name)}/within", f"/{quote(f'{name}/within', safe='')}"):
            asked = f"http://localhost{base}{path}"
            query = "?skip_consistency_check=true" if path else ""
            moved = await get(opened.port, f"{base}{path}{query}")
            assert moved.status == 307
            assert urljoin(asked, moved.headers["location"]) == f"{asked}/{query}"
            assert (await get(opened.port, f"{base}{path}/")).status == 200
        assert error_of(await get(opened.port, "/v1/blobs/by-folder-id/abc")) == (400, "INVALID_ARGUMENT", "INVALID_ID")


async def test_what_is_no_folder_is_not_found(tmp_path: Path) -> None:
    shelf = Shelf()
    text = build_blob_id_text(shelf.put(DATA))
    async with open_shelf(shelf, tmp_path) as opened:
        answer = await get(opened.port, f"/v1/blobs/by-folder-id/{text}/index.html")
    assert error_of(answer) == (404, "NOT_FOUND", "NOT_A_FOLDER")
