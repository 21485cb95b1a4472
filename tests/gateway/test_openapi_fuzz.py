"""Requests made up from the gateway's own description, good ones and bad ones, over a real socket.

Whatever comes, the gateway answers as described, and never with a fault of its own. The same requests in each run.
"""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import schemathesis
import trio
from blake3 import blake3
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from economics.blob import parse_blob_id
from p2pnode.content.manifest import FolderBlob, FolderFile, Manifest
from p2pnode.gateway.openapi import build_document
from p2pnode.gateway.services import Limits
from tests.gateway.ledgernet import BEARER, LedgerNet, open_gateway
from tests.gateway.test_quilts import CAT, DOG, FORM, form

EXAMPLES = 20
"""Of each route and kind; a run takes half a minute."""
LIMITS = Limits(blob_bytes_max=65_536, quilt_bytes_max=65_536)
DOCUMENT = build_document(LIMITS)
SCHEMA: Any = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS: dict[str, Any] = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations()}
CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
REJECTED = [*CHECKS, negative_data_rejection]


def can_be_bad(label: str) -> bool:
    """Return whether a route takes anything; HEAD takes what GET does."""
    operation = OPERATIONS[label]
    takes = (operation.query, operation.path_parameters, operation.headers, operation.body)
    return not label.startswith("HEAD") and any(map(len, takes))


@dataclass(frozen=True)
class Live:
    """A gateway that listens, in a thread of its own, and what is stored there."""

    url: str
    parts: dict[str, str]
    spare: dict[str, str]
    """The same for who deletes it."""
    seen: dict[str, set[int]]
    """Statuses that good requests to each route came to."""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    ports: queue.Queue[tuple[int, trio.lowlevel.TrioToken, trio.Event]] = queue.Queue()

    async def run() -> None:
        net, done = LedgerNet(), trio.Event()
        with pytest.MonkeyPatch.context() as patch:
            net.install(patch)
            path = tmp_path_factory.mktemp("gateway")
            async with (
                trio.open_nursery() as nursery,
                open_gateway(net, path, limits=LIMITS, patience_s=3_600.0) as gateway,
            ):
                nursery.start_soon(gateway.services.watch_head)
                ports.put((gateway.port, trio.lowlevel.current_trio_token(), done))
                await done.wait()
                nursery.cancel_scope.cancel()

    thread = threading.Thread(target=trio.run, args=(run,))
    thread.start()
    port, token, done = ports.get(timeout=240)
    url = f"http://127.0.0.1:{port}"
    blob = put(url, b"a blob")
    file = FolderFile("a/b.txt", 6, False, blake3(b"a blob").digest(), 0, 0)
    folder = Manifest((FolderBlob(parse_blob_id(blob), 6),), (file,))
    quilt = requests.put(f"{url}/v1/quilts", data=form(CAT, DOG), headers=FORM, timeout=240).json()
    parts = {
        "blob_id": blob,
        "folder_id": put(url, folder.encode()),
        "name": "dogs/dog.txt",
        "patch_id": quilt["storedQuiltBlobs"][0]["quiltPatchId"],
        "path": "a/b.txt",
        "quilt_id": quilt["blobStoreResult"]["newlyCreated"]["blobObject"]["blobId"],
    }
    yield Live(url, parts, {"blob_id": put(url, b"to be deleted")}, {})
    token.run_sync_soon(done.set)
    thread.join(timeout=240)
    assert not thread.is_alive()


def put(url: str, data: bytes) -> str:
    text: str = requests.put(f"{url}/v1/blobs", data=data, timeout=240).json()["newlyCreated"]["blobObject"]["blobId"]
    return text


def point(live: Live, case: Any, *, plain: bool) -> None:
    """Have a request be of what is there, and one that nothing else stands against if it is to be `plain`."""
    if plain:
        case.headers, case.query = {}, {}
    parts = live.spare if case.method == "DELETE" else live.parts
    case.path_parameters = {name: parts.get(name, value) for name, value in case.path_parameters.items()}
    if "byte-range" in case.operation.path:
        case.query = {"length": 2, "start": 1}
    if case.operation.path == "/v1/quilts":
        case.body = {"a": b"a file", "b/c": b"another"}


def ask(live: Live, case: Any, checks: list[Any], *, known: bool, plain: bool, token: bool) -> None:
    """Make a request, of what is there where it is to be `known`, and hold the answer to the description."""
    if known:
        point(live, case, plain=plain)
    response = case.call(base_url=live.url, headers=BEARER if token else {}, timeout=240)
    case.validate_response(response, checks=checks)
    live.seen.setdefault(case.operation.label, set()).add(response.status_code)


def fuzz(live: Live, label: str, mode: GenerationMode, checks: list[Any]) -> None:
    flags = st.fixed_dictionaries({"known": st.booleans(), "plain": st.booleans(), "token": st.booleans()})

    @given(case=OPERATIONS[label].as_strategy(generation_mode=mode), flags=flags)
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def run(case: Any, flags: dict[str, bool]) -> None:
        known = flags["known"] and mode is GenerationMode.POSITIVE
        ask(live, case, checks, known=known, plain=flags["plain"], token=flags["token"])

    run()


@pytest.mark.parametrize("label", OPERATIONS)
def test_good_requests_are_answered_as_described(live: Live, label: str) -> None:
    fuzz(live, label, GenerationMode.POSITIVE, CHECKS)
    assert live.seen[label] & {200, 206, 307}, "no request came through, so nothing was tested"


@pytest.mark.parametrize("label", [label for label in OPERATIONS if can_be_bad(label)])
def test_bad_requests_are_refused_as_described(live: Live, label: str) -> None:
    fuzz(live, label, GenerationMode.NEGATIVE, REJECTED)


@pytest.mark.parametrize("path", DOCUMENT["paths"])
@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "PATCH", "DELETE", "TRACE", "PROPFIND", "get"])
def test_methods_that_are_not_described_are_not_allowed(live: Live, path: str, method: str) -> None:
    if method.lower() in DOCUMENT["paths"][path]:
        return
    for name, value in live.parts.items():
        path = path.replace(f"{{{name}}}", value)
    answer = requests.request(method, live.url + path, headers=BEARER, timeout=240)
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == 405
