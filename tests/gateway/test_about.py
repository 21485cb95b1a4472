"""What a gateway says of itself, from memory and whoever is away."""

import json
from pathlib import Path

import pytest
import trio

from p2pnode.errors import PeerUnreachable
from p2pnode.gateway import services as module
from tests.gateway.raw import ask, get
from tests.gateway.shelf import GENESIS, Shelf, open_shelf

CASES = (
    ("GET", "/no", 404),
    ("GET", "/v1/no", 404),
    ("POST", "/status", 405),
    ("PATCH", f"/v1/blobs/{'A' * 43}", 405),
    ("GET", "/../../etc/passwd", 404),
    ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
    ("GET", "//", 404),
)


async def test_it_is_live_before_it_is_ready(tmp_path: Path) -> None:
    shelf = Shelf(chain_fault=PeerUnreachable("no member answers"))
    async with open_shelf(shelf, tmp_path) as opened, trio.open_nursery() as nursery:
        nursery.start_soon(opened.services.watch_head)
        while opened.services.health.fault != "no member answers":  # noqa: ASYNC110 - a field has no event
            await trio.sleep(0.01)
        assert (await get(opened.port, "/health/live")).status == 200
        answer = await get(opened.port, "/health/ready")
        assert (answer.status, json.loads(answer.body)) == (503, {"ready": False, "why": "no member answers"})
        assert (answer.headers["cache-control"], answer.headers["retry-after"]) == ("no-store", "5")
        nursery.cancel_scope.cancel()


async def test_it_is_ready_once_a_block_is_proven(tmp_path: Path) -> None:
    async with open_shelf(Shelf(epoch=7), tmp_path) as opened, trio.open_nursery() as nursery:
        nursery.start_soon(opened.services.watch_head)
        while opened.services.health.head is None:  # noqa: ASYNC110 - a field has no event
            await trio.sleep(0.01)
        assert json.loads((await get(opened.port, "/health/ready")).body) == {"ready": True}
        status = json.loads((await get(opened.port, "/status")).body)
        nursery.cancel_scope.cancel()
    assert {name: status[name] for name in ("chain", "epoch", "height", "ready", "stores", "downloads")} == {
        "chain": GENESIS.chain_id.hex(), "epoch": 7, "height": 100, "ready": True, "stores": False, "downloads": 0,
    }  # fmt: skip


async def test_members_that_failed_get_another_chance_each_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FORGIVE_S", 0.01)
    shelf = Shelf()
    async with open_shelf(shelf, tmp_path) as opened, trio.open_nursery() as nursery:
        nursery.start_soon(opened.services.forgive)
        with trio.fail_after(60):
            while shelf.forgiven < 2:  # noqa: ASYNC110 - a field has no event
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_its_page_has_no_script_and_needs_none(tmp_path: Path) -> None:
    async with open_shelf(Shelf(), tmp_path) as opened:
        answer = await get(opened.port, "/")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert b"<script" not in answer.body
    assert b"It only reads." in answer.body
    assert b"color-scheme: light dark" in answer.body, "links would be dark blue on black"


async def test_what_is_no_route_or_no_method_is_told_as_json(tmp_path: Path) -> None:
    async with open_shelf(Shelf(), tmp_path) as opened:
        for method, target, status in CASES:
            answer = await ask(opened.port, method, target)
            assert (answer.status, answer.headers["cache-control"]) == (status, "no-store")
            error = json.loads(answer.body)["error"]
            assert (error["code"], "/v1/api" in error["message"]) == (status, True)
