"""What the gateway's wallet keeps: GET /v1/blobs lists it, DELETE /v1/blobs/{id} ends it. Both take the token."""

import base64
import binascii
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from economics.blob import build_blob_id_text
from economics.geometry import STORAGE_UNIT_BYTES
from economics.state import BlobEntry, BlobSummary
from p2pnode.clients.chainview import Head
from p2pnode.clients.payments import delete as end_entries
from p2pnode.clients.payments import find_blobs, latest_ms
from p2pnode.gateway.desk import Desk, build_entry_id
from p2pnode.gateway.faults import HttpFault
from p2pnode.gateway.orders import bad_request, parse_number, parse_path_id, read_query

LIST_MAX = 1_000
LIST_DEFAULT = 100
NO_STORE = {"Cache-Control": "no-store"}


def routes(desk: Desk) -> list[Route]:
    async def list_blobs(request: Request) -> Response:
        return await answer_list(desk, request)

    async def delete_blob(request: Request) -> Response:
        return await answer_delete(desk, request)

    return [
        Route("/v1/blobs", list_blobs, methods=["GET"], name="list_blobs"),
        Route("/v1/blobs/{blob_id}", delete_blob, methods=["DELETE"], name="delete_blob"),
    ]


async def answer_list(desk: Desk, request: Request) -> Response:
    """Answer a page of the wallet's entries, ascending by blob ID and reservation."""
    desk.services.access.require_token(request)
    query = read_query(request, ("cursor", "limit"))
    limit = parse_number("limit", query.get("limit", str(LIST_DEFAULT)), low=1, high=LIST_MAX)
    after = parse_cursor(query["cursor"]) if "cursor" in query else b""
    chain = desk.services.session.chain
    head = await chain.head()
    entries = sorted(await chain.entries(desk.owner_id), key=place_of)
    left = [entry for entry in entries if place_of(entry) > after]
    page = left[:limit]
    found = await find_blobs(chain, list(dict.fromkeys(entry.blob_id for entry in page)))
    rows = [describe(desk, entry, found.get(entry.blob_id), head) for entry in page]
    cursor = build_cursor(place_of(page[-1])) if len(left) > limit else None
    return JSONResponse({"blobs": rows, "epoch": head.epoch, "nextCursor": cursor}, headers=NO_STORE)


def describe(desk: Desk, entry: BlobEntry, summary: BlobSummary | None, head: Head) -> dict[str, Any]:
    return {
        "blobId": build_blob_id_text(entry.blob_id),
        "certifiedHeight": entry.certified_height,
        "contentType": entry.content_type or None,
        "deletable": entry.deletable,
        "endEpoch": entry.end_epoch,
        "epochsLeft": max(0, entry.end_epoch - head.epoch),
        "expiresMs": latest_ms(desk.services.session.genesis, head, entry.end_epoch),
        "id": build_entry_id(entry.blob_id, entry.reservation),
        "name": entry.name or None,
        "size": None if summary is None else summary.length,
        "storage": {"id": "0x" + entry.reservation.hex(), "storageSize": entry.units * STORAGE_UNIT_BYTES},
    }


def place_of(entry: BlobEntry) -> bytes:
    """Return what a list is ordered by: it stays when other entries come and go."""
    return entry.blob_id + entry.reservation


def build_cursor(place: bytes) -> str:
    return base64.urlsafe_b64encode(place).rstrip(b"=").decode()


def parse_cursor(text: str) -> bytes:
    try:
        place = base64.b64decode(text.encode("ascii") + b"==", altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as fault:
        raise bad_request("cursor is what the last page gave as nextCursor") from fault
    if len(place) != 64 or build_cursor(place) != text:
        raise bad_request("cursor is what the last page gave as nextCursor")
    return place


async def answer_delete(desk: Desk, request: Request) -> Response:
    """End every deletable entry that the wallet has of a blob."""
    desk.services.access.require_token(request)
    read_query(request, ())
    owner = desk.owner
    blob_id = parse_path_id(request, "blob_id")
    chain = desk.services.session.chain
    async with desk.till.blob(blob_id):
        own = [entry for entry in await chain.entries(desk.owner_id) if entry.blob_id == blob_id]
        if not own:
            raise HttpFault(
                404, "this gateway's wallet keeps no such blob: GET /v1/blobs lists what it keeps", "NOT_OURS"
            )
        if not any(entry.deletable for entry in own):
            raise HttpFault(409, "the blob is permanent: it stays until it expires", "NOT_DELETABLE")
        summary = await chain.blob(blob_id)
        done = await end_entries(chain, owner, blob_id)
        desk.till.note_deleted(blob_id)
        if summary is None or sum(count for _, count in summary.entries) <= len(done.entries):
            await desk.services.note_deleted(blob_id)
    answer = {
        "blobId": build_blob_id_text(blob_id),
        "deleted": len(done.entries),
        "permanent": len(done.permanent),
        "storageSize": sum(entry.units for entry in done.entries) * STORAGE_UNIT_BYTES,
    }
    return JSONResponse(answer, headers=NO_STORE)
