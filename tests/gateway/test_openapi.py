"""The document says what the gateway does: its routes, and shapes that its answers have."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from p2pnode.gateway.app import create_app
from p2pnode.gateway.openapi import build_document
from p2pnode.gateway.page import CONTENT_SECURITY, build_page
from p2pnode.gateway.services import Limits
from tests.gateway.ledgernet import LedgerNet, open_gateway

DOCUMENT = build_document(Limits())
METHODS = {"delete", "get", "head", "put"}


def starlette_of(app: Any) -> Starlette:
    while not isinstance(app, Starlette):
        app = app.app
    return app


async def test_every_route_is_described_and_nothing_else(net: LedgerNet, tmp_path: Path) -> None:
    async with open_gateway(net, tmp_path) as gateway:
        routes = starlette_of(create_app(gateway.services)).routes
    served = {
        (method.lower(), route.path_format)
        for route in routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }
    described = {
        (method, path) for path, operations in DOCUMENT["paths"].items() for method in operations if method in METHODS
    }
    assert described == served


def test_names_and_references_hold() -> None:
    text = json.dumps(DOCUMENT)
    named = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    operations = [operation for path in DOCUMENT["paths"].values() for operation in path.values()]
    identifiers = [operation["operationId"] for operation in operations]
    assert named <= set(DOCUMENT["components"]["schemas"])
    assert len(set(identifiers)) == len(identifiers)
    for path, methods in DOCUMENT["paths"].items():
        for operation in methods.values():
            told = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
            assert told == set(re.findall(r"{(\w+)}", path))


def test_says_the_limits_of_this_gateway() -> None:
    put = build_document(Limits(blob_bytes_max=12_345))["paths"]["/v1/blobs"]["put"]
    assert "12345 bytes" in put["description"]


class Outward(HTMLParser):
    """Collects what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [(name, value) for name, value in attributes if name in ("src", "href") or name.startswith("on")]
        if tag in ("script", "iframe", "object"):
            self.found.append((tag, None))


async def test_the_page_loads_and_runs_nothing(net: LedgerNet, tmp_path: Path) -> None:
    async with open_gateway(net, tmp_path) as gateway:
        answer = await gateway.ask("GET", "/v1/api")
        document = await gateway.ask("GET", "/v1/api/openapi.json")
    outward = Outward()
    outward.feed(answer.body.decode())
    assert outward.found == [("href", "/v1/api/openapi.json")]
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY
    assert "script" not in CONTENT_SECURITY
    assert json.loads(document.body) == build_document(gateway.services.limits)


def test_the_page_shows_every_route_and_shape_and_escapes_them() -> None:
    document = json.loads(json.dumps(DOCUMENT))
    document["info"]["title"] = "<script>alert(1)</script>"
    page = build_page(document)
    assert "<script>" not in page
    for path in document["paths"]:
        assert f" {path}</code>" in page
    for name in document["components"]["schemas"]:
        assert f'id="{name}"' in page


@pytest.mark.parametrize("path", ["/v1/blobs/", "/v1/quilts/", "/v1/api/", "/v1//blobs", "/V1/blobs"])
async def test_a_path_that_is_nearly_one_is_none(path: str, net: LedgerNet, tmp_path: Path) -> None:
    async with open_gateway(net, tmp_path) as gateway:
        assert (await gateway.ask("PUT", path, body=b"x")).status == 404
