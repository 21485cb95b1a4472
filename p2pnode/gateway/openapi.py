"""What the gateway says of itself: an OpenAPI 3.1 document and a page that shows it. A test holds it to the routes."""

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from p2pnode.gateway.operations import (
    BLOB_ID,
    OWN,
    OWN_FROM_ELSEWHERE,
    READING,
    STORE_PARAMETERS,
    WRITING,
    build_operation,
    build_reads,
    in_path,
    in_query,
    json_answer,
    without_body,
)
from p2pnode.gateway.orders import QUILT_VERSIONS
from p2pnode.gateway.owned import LIST_DEFAULT, LIST_MAX
from p2pnode.gateway.page import CONTENT_SECURITY, build_page
from p2pnode.gateway.services import Limits, Services
from p2pnode.gateway.shapes import COUNT, Schema, build_schemas, ref, told
from p2pnode.version import VERSION

CACHED = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
ABOUT = """\
Blobs by their content, over HTTP, with the paths, parameters and JSON of Walrus' aggregator and publisher. But:

- The ledger knows no objects and no events. `id` is the key of its entry for a blob, `storage.id` the reservation.
- Nothing stored can be given away or shared: `send_object_to` can only name the gateway's own account.
- Listing and deleting what the gateway's wallet keeps is possible, with its token.
- A quilt patch ID has 37 bytes, and `range` counts bytes.
- 402 means that the wallet has too little, 410 that a blob has expired or was deleted.
- 503 means that the same request may succeed later."""


def routes(services: Services) -> list[Route]:
    document = build_document(services.limits)
    packed = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    page = build_page(document).encode()

    async def get_document(request: Request) -> Response:
        return Response(packed, media_type="application/json", headers=CACHED)

    async def get_page(request: Request) -> Response:
        headers = {**CACHED, "Content-Security-Policy": CONTENT_SECURITY}
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    return [
        Route("/v1/api/openapi.json", get_document, methods=["GET"], name="get_openapi"),
        Route("/v1/api", get_page, methods=["GET"], name="get_api"),
    ]


def build_document(limits: Limits) -> dict[str, Any]:
    """Return the OpenAPI document of a gateway with these limits."""
    return {
        "components": {
            "schemas": build_schemas(),
            "securitySchemes": {
                "token": {
                    "description": "What is in `keys/gateway.token` of the gateway's home.",
                    "scheme": "bearer",
                    "type": "http",
                }
            },
        },
        "info": {
            "description": ABOUT,
            "license": {"identifier": "Apache-2.0", "name": "Apache-2.0"},
            "title": "p2pnode gateway",
            "version": VERSION,
        },
        "openapi": "3.1.0",
        "paths": {**_blobs(limits), **_quilts(limits), **_about()},
    }


# --- the paths -------------------------------------------------------------------------------------------------------


def _blobs(limits: Limits) -> dict[str, Schema]:
    put = build_operation(
        "put_blob",
        "Store the body as a blob.",
        answers={200: json_answer("It is stored: the network owes it.", ref("BlobStoreResult"))},
        faults=WRITING,
        parameters=STORE_PARAMETERS,
        body={"*/*": {}},
        security=OWN_FROM_ELSEWHERE,
        description=(
            f"At most {limits.blob_bytes_max} bytes. The content type of the request is put on chain, unless it is "
            "application/octet-stream or application/x-www-form-urlencoded, which say nothing of the bytes."
        ),
    )
    listing = build_operation(
        "list_blobs",
        "List what the gateway's wallet keeps.",
        answers={200: json_answer("A page of it, ascending by blob ID.", ref("OwnBlobs"))},
        faults=(401, 503),
        parameters=(
            in_query(
                "limit", {"default": LIST_DEFAULT, "maximum": LIST_MAX, "minimum": 1, "type": "integer"}, "Of a page."
            ),
            in_query("cursor", {"type": "string"}, "`nextCursor` of the page before."),
        ),
        security=OWN,
        description="Not in Walrus.",
    )
    delete = build_operation(
        "delete_blob",
        "Delete every deletable entry that the gateway's wallet has of a blob.",
        answers={200: json_answer("They are deleted.", ref("Deleted"))},
        faults=(401, 402, 409, 503, 507),
        parameters=(BLOB_ID,),
        security=OWN,
        description="Not in Walrus. Another owner's entries keep the blob.",
    )
    return {
        "/v1/blobs": {"get": listing, "head": without_body(listing, "head_blobs"), "put": put},
        "/v1/blobs/{blob_id}": {**build_reads("blob", "Read a blob.", (BLOB_ID,)), "delete": delete},
        "/v1/blobs/{blob_id}/byte-range": build_reads(
            "byte_range",
            "Read a part of a blob as a resource of its own: 200, so that every cache keeps it.",
            (
                BLOB_ID,
                {**in_query("start", COUNT, "Its first byte, counted from 0."), "required": True},
                {**in_query("length", {"minimum": 1, "type": "integer"}, "Its bytes."), "required": True},
            ),
            of_file=False,
        ),
        **_parts(),
    }


def _parts() -> dict[str, Schema]:
    """Return the routes to what is inside a blob."""
    name = in_path("name", {"minLength": 1, "type": "string"}, "The file's name, which may have slashes.")
    quilt = in_path("quilt_id", ref("BlobId"), "The quilt's blob ID.")
    patch = in_path("patch_id", ref("QuiltPatchId"), "The file's patch ID.")
    folder = in_path("folder_id", ref("BlobId"), "The folder's blob ID.")
    path = in_path("path", {"minLength": 1, "type": "string"}, "Of a file, or of a folder in it: that ends in a slash.")
    moved: Schema = {"description": "It is a folder: its path ends in a slash."}
    to_folder = build_operation(
        "get_folder", "Find a folder's index.html, or its page.", answers={307: moved}, faults=(), parameters=(folder,)
    )
    in_folder = build_reads("folder_file", "Read a file of a folder, or the page of a folder in it.", (folder, path))
    for operation in in_folder.values():
        operation["responses"]["307"] = moved
    return {
        "/v1/blobs/by-quilt-id/{quilt_id}/{name}": build_reads(
            "quilt_file", "Read a file of a quilt by its name.", (quilt, name)
        ),
        "/v1/blobs/by-quilt-patch-id/{patch_id}": build_reads(
            "patch", "Read a file of a quilt by its patch ID.", (patch,)
        ),
        "/v1/blobs/by-folder-id/{folder_id}": {"get": to_folder, "head": without_body(to_folder, "head_folder")},
        "/v1/blobs/by-folder-id/{folder_id}/{path}": in_folder,
    }


def _quilts(limits: Limits) -> dict[str, Schema]:
    put = build_operation(
        "put_quilt",
        "Store the files of a form as one blob, each of them readable alone.",
        answers={200: json_answer("It is stored: the network owes it.", ref("QuiltStoreResult"))},
        faults=(*WRITING, 415),
        parameters=(
            *STORE_PARAMETERS,
            in_query("quilt_version", {"enum": list(QUILT_VERSIONS), "type": "string"}, "There is one."),
        ),
        body={
            "multipart/form-data": {
                "schema": {
                    "additionalProperties": {"contentEncoding": "binary", "type": "string"},
                    "properties": {
                        "_metadata": told(
                            {"contentMediaType": "application/json", "type": "string"},
                            'A JSON list of {"identifier": name, "tags": {key: value}}.',
                        )
                    },
                    "type": "object",
                }
            }
        },
        security=OWN_FROM_ELSEWHERE,
        description=(
            f"A field of the form is a file, its name is the file's. At most {limits.quilt_bytes_max} bytes in all. "
            "A part's content type is kept as the tag `content-type`."
        ),
    )
    patches = build_operation(
        "get_patches",
        "List the files of a quilt.",
        answers={200: json_answer("Its files, ascending by name.", ref("Patches"))},
        faults=READING,
        parameters=(in_path("quilt_id", ref("BlobId"), "The quilt's blob ID."),),
    )
    return {
        "/v1/quilts": {"put": put},
        "/v1/quilts/{quilt_id}/patches": {"get": patches, "head": without_body(patches, "head_patches")},
    }


def _about() -> dict[str, Schema]:
    page: Schema = {"content": {"text/html": {"schema": {"type": "string"}}}, "description": "A page."}
    ready = build_operation(
        "get_ready", "Say whether blobs can be had.", answers={200: json_answer("They can.", ref("Ready"))}, faults=()
    )
    ready["responses"]["503"] = json_answer("They cannot, and why.", ref("Ready"))
    paths = {
        "/": build_operation("get_home", "A page for people.", answers={200: page}, faults=()),
        "/status": build_operation(
            "get_status",
            "Say how the gateway is.",
            answers={200: json_answer("At once: it asks nobody.", ref("GatewayStatus"))},
            faults=(),
        ),
        "/health/live": build_operation(
            "get_live", "Say that the gateway runs.", answers={200: json_answer("It does.", ref("Live"))}, faults=()
        ),
        "/health/ready": ready,
        "/v1/api": build_operation("get_api", "This page.", answers={200: page}, faults=()),
        "/v1/api/openapi.json": build_operation(
            "get_openapi",
            "This document.",
            answers={200: json_answer("An OpenAPI document.", {"type": "object"})},
            faults=(),
        ),
    }
    return {
        path: {"get": get, "head": without_body(get, get["operationId"].replace("get_", "head_"))}
        for path, get in paths.items()
    }
