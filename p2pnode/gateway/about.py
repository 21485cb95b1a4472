"""What a gateway says of itself: a page for people, its state for programs. Answered from memory, whoever is away."""

import html
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from p2pnode.gateway.faults import RETRY_AFTER_S
from p2pnode.gateway.page import CONTENT_SECURITY, STYLE
from p2pnode.gateway.services import Services
from p2pnode.version import VERSION

NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
ROUTES = (
    ("GET /v1/blobs/{id}", "a blob; Range, If-Range and If-None-Match work as they should"),
    ("GET /v1/blobs/{id}/byte-range?start=&amp;length=", "a part of it, which every cache keeps"),
    ("GET /v1/blobs/by-quilt-id/{id}/{name}", "a file of a quilt by its name"),
    ("GET /v1/blobs/by-quilt-patch-id/{id}", "the same by its patch ID"),
    ("GET /v1/quilts/{id}/patches", "the files of a quilt"),
    ("GET /v1/blobs/by-folder-id/{id}/{path}", "a file of a folder, its index.html, or a list"),
)


def routes(services: Services) -> list[Route]:
    async def get_home(request: Request) -> Response:
        headers = {**NO_STORE, "Content-Security-Policy": CONTENT_SECURITY}
        return Response(build_page(services), media_type="text/html; charset=utf-8", headers=headers)

    async def get_status(request: Request) -> Response:
        return JSONResponse(build_status(services), headers=NO_STORE)

    async def get_live(request: Request) -> Response:
        return JSONResponse({"live": True}, headers=NO_STORE)

    async def get_ready(request: Request) -> Response:
        why = services.health.why_not_ready(trio.current_time())
        if not why:
            return JSONResponse({"ready": True}, headers=NO_STORE)
        return JSONResponse({"ready": False, "why": why}, 503, {**NO_STORE, "Retry-After": str(RETRY_AFTER_S)})

    return [
        Route("/", get_home, name="get_home"),
        Route("/status", get_status, name="get_status"),
        Route("/health/live", get_live, name="get_live"),
        Route("/health/ready", get_ready, name="get_ready"),
    ]


def build_status(services: Services) -> dict[str, Any]:
    """Return the gateway's state; answers in well under 50 ms, since it asks nobody."""
    health, limits = services.health, services.limits
    head = health.head
    cache = None if services.blobs is None else services.blobs.cache
    return {
        "cache": None if cache is None else {"quota_bytes": cache.quota_bytes, "used_bytes": cache.used_bytes},
        "chain": services.session.genesis.chain_id.hex(),
        "downloads": health.downloads,
        "epoch": None if head is None else head.epoch,
        "height": None if head is None else head.height,
        "limits": {
            "blob_bytes": limits.blob_bytes_max,
            "downloads": limits.downloads_max,
            "quilt_bytes": limits.quilt_bytes_max,
            "uploads": limits.uploads_max,
        },
        "ready": not health.why_not_ready(trio.current_time()),
        "stores": services.owner is not None,
        "uptime_s": int(trio.current_time() - health.started),
        "version": VERSION,
    }


def build_page(services: Services) -> str:
    status = build_status(services)
    why = services.health.why_not_ready(trio.current_time())
    limits = status["limits"]
    rows = "".join(f"<tr><td><code>{path}</code></td><td>{text}</td></tr>" for path, text in ROUTES)
    stores = (
        "<p>It stores, too: <code>curl -T FILE 'http://HOST/v1/blobs?epochs=5'</code> takes up to "
        f"{limits['blob_bytes']:,} bytes, a quilt of many files {limits['quilt_bytes']:,}.</p>"
        if status["stores"]
        else "<p>It only reads.</p>"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>p2pnode gateway</title>\n<style>{STYLE}</style>\n<h1>p2pnode gateway</h1>\n"
        "<p>It gives what peers store: a blob's name is the hash of its bytes, which are checked before they are "
        "sent. It cannot know what they are: pages and drawings run nothing here.</p>\n"
        f"<p>{'Ready' if not why else 'Not ready: ' + html.escape(why)}; epoch {status['epoch']}, "
        f"block {status['height']}.</p>\n<table>{rows}</table>\n{stores}\n"
        f"<p>At once it answers {limits['downloads']} downloads and {limits['uploads']} uploads; more are told to come "
        'again.</p>\n<p><a href="/v1/api">All routes</a>, <a href="/status">status</a>, '
        f'<a href="/health/ready">health</a>. Version {html.escape(VERSION)}.</p>\n</html>\n'
    )
