"""PUT /v1/quilts: the files of a form become one blob, each of them readable alone."""

from functools import partial
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from economics.blob import parse_blob_id
from p2pnode.content.quilt import Quilt, QuiltFile, build_patch_id, build_quilt
from p2pnode.gateway.bodies import receive, verify_announced
from p2pnode.gateway.desk import Desk
from p2pnode.gateway.forms import Form, Part
from p2pnode.gateway.orders import QUILT_PARAMETERS, parse_wanted, read_query

WHAT = "a form"


def routes(desk: Desk) -> list[Route]:
    async def put_quilt(request: Request) -> Response:
        return await store_form(desk, request)

    return [Route("/v1/quilts", put_quilt, methods=["PUT"], name="put_quilt")]


async def store_form(desk: Desk, request: Request) -> Response:
    desk.services.access.may_store(request)
    wanted = parse_wanted(read_query(request, QUILT_PARAMETERS), owner=desk.owner_id)
    limit = desk.services.limits.quilt_bytes_max
    announced = verify_announced(request, limit=limit, what=WHAT)
    with desk.place():
        async with desk.spool.open(announced=announced) as spooled:
            form = Form(request.headers.get("content-type"), spooled)
            await receive(request, spooled, form.feed, limit=limit, what=WHAT)
            quilt = await trio.to_thread.run_sync(partial(_build, form))
            stored = await desk.store(quilt.source, wanted, content_type=None)
    return JSONResponse(describe(quilt, stored), headers={"Cache-Control": "no-store"})


def _build(form: Form) -> Quilt:
    return build_quilt([_as_file(part) for part in form.finish()])


def _as_file(part: Part) -> QuiltFile:
    return QuiltFile(part.name, part.piece, part.tags)


def describe(quilt: Quilt, stored: dict[str, Any]) -> dict[str, Any]:
    """Return the answer in the shape of Walrus' publisher; `range` counts bytes of the quilt, its end not in it."""
    blob_id = parse_blob_id(_blob_id_of(stored))
    patches = [
        {
            "identifier": entry.name,
            "quiltPatchId": build_patch_id(blob_id, entry.number),
            "range": [entry.start, entry.start + entry.length],
        }
        for entry in quilt.index.entries
    ]
    return {"blobStoreResult": stored, "storedQuiltBlobs": patches}


def _blob_id_of(stored: dict[str, Any]) -> str:
    created = stored.get("newlyCreated")
    text: str = stored["alreadyCertified"]["blobId"] if created is None else created["blobObject"]["blobId"]
    return text
