"""What the gateway says of itself: an OpenAPI 3.1 document and a page that shows it. A test holds it to the routes."""

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from economics.operations import EPOCHS_AHEAD_MAX
from p2pnode.gateway.orders import ENCODING, EPOCHS, QUILT_VERSIONS
from p2pnode.gateway.owned import LIST_DEFAULT, LIST_MAX
from p2pnode.gateway.page import CONTENT_SECURITY, build_page
from p2pnode.gateway.services import Limits, Services
from p2pnode.gateway.shapes import Schema, build_schemas, ref, told
from p2pnode.version import VERSION

CACHED = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
ABOUT = """\
Blobs by their content, over HTTP, with the paths, parameters and JSON of Walrus' aggregator and publisher. But:

- The ledger knows no objects and no events. `id` is the key of its entry for a blob, `storage.id` the reservation.
- Nothing stored can be given away or shared: `send_object_to` can only name the gateway's own account.
- Listing and deleting what the gateway's wallet keeps is possible, with its token.
- A quilt patch ID has 37 bytes, and `range` counts bytes.
- 402 means that the wallet has too little, 410 that a blob has expired, 503 that the same request may succeed later."""

WHY = {
    400: "A parameter, a header or the body is malformed, unknown or contradicts another.",
    401: "The token is needed: `Authorization: Bearer <token>`.",
    402: "The gateway's wallet has less than it costs. Nothing was paid.",
    403: "The token is wrong, the origin is foreign, or the gateway has no wallet.",
    404: "There is no such blob, file or route.",
    405: "The path has other methods.",
    408: "The body stopped coming.",
    409: "The state of the ledger does not allow it.",
    410: "The blob has expired.",
    412: "It is not what `If-Match` or `If-Unmodified-Since` names.",
    413: "The body is larger than the limit, which is in `details`.",
    415: "The body is no form.",
    416: "No byte of the blob is in the range.",
    421: "The gateway does not go by this name.",
    422: "The blob was encoded inconsistently by its writer: nobody can have it.",
    429: "As many requests are under way as the gateway takes at once.",
    431: "The headers of the request are too large.",
    500: "A fault of the gateway: please report it.",
    503: "Too few nodes answer: the same request may succeed later.",
    507: "The gateway's disk, or the network, has no room left.",
}
RETRIED = frozenset({429, 503})
EVERYWHERE = (400, 403, 404, 405, 421, 429, 431)
READING = (401, 410, 422, 503)
WRITING = (401, 402, 408, 409, 413, 422, 503, 507)


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


# --- the parts of an operation ---------------------------------------------------------------------------------------


def _operation(
    name: str,
    summary: str,
    *,
    answers: dict[int, Schema],
    faults: tuple[int, ...],
    parameters: tuple[Schema, ...] = (),
    body: Schema | None = None,
    security: list[dict[str, list[str]]] | None = None,
    description: str = "",
) -> Schema:
    codes = sorted({*EVERYWHERE, *faults})
    found: Schema = {
        "operationId": name,
        "parameters": list(parameters),
        "responses": {
            **{str(code): answer for code, answer in sorted(answers.items())},
            **{str(code): _fault(code) for code in codes},
        },
        "summary": summary,
        "tags": ["read" if name.startswith(("get", "head")) else "write"],
    }
    if description:
        found["description"] = description
    if body is not None:
        found["requestBody"] = {"content": body, "required": True}
    if security is not None:
        found["security"] = security
    return found


def _fault(code: int) -> Schema:
    answer: Schema = {"content": {"application/json": {"schema": ref("Status")}}, "description": WHY[code]}
    if code in RETRIED:
        answer["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return answer


def _json(description: str, schema: Schema) -> Schema:
    return {"content": {"application/json": {"schema": schema}}, "description": description}


def _bytes(description: str) -> Schema:
    """Return the answer with a blob's bytes: of whatever type was stored with them."""
    header = {"schema": {"type": "string"}}
    return {
        "content": {"*/*": {"schema": {"contentEncoding": "binary", "type": "string"}}},
        "description": description,
        "headers": {"Accept-Ranges": header, "Content-Type": header, "ETag": header},
    }


def _query(name: str, schema: Schema, description: str) -> Schema:
    return {"description": description, "in": "query", "name": name, "required": False, "schema": schema}


def _path(name: str, schema: Schema, description: str) -> Schema:
    return {"description": description, "in": "path", "name": name, "required": True, "schema": schema}


def _header(name: str, description: str) -> Schema:
    return {
        "description": description,
        "in": "header",
        "name": name,
        "required": False,
        "schema": {"type": "string"},
    }


FLAG: Schema = {"type": "boolean"}
STORE_PARAMETERS = (
    _query(
        "epochs",
        {"default": EPOCHS, "maximum": EPOCHS_AHEAD_MAX, "minimum": 1, "type": "integer"},
        f"For how many epochs, the current one counted; {EPOCHS} as in Walrus unless said otherwise.",
    ),
    _query("deletable", FLAG, "The wallet may delete it before it ends. This is so unless it is `permanent`."),
    _query("permanent", FLAG, "Nobody can delete it before it ends."),
    _query("send_object_to", {"type": "string"}, "The key of the gateway's own account; no other can be given a blob."),
    _query("share", {"const": False, "type": "boolean"}, "The ledger has no shared blobs."),
    _query("force", {"const": False, "type": "boolean"}, "A second entry of the same blob would only cost twice."),
    _query(
        "reuse_resources", {"const": True, "type": "boolean"}, "Storage that the wallet holds is always used first."
    ),
    _query("encoding_type", {"enum": [ENCODING], "type": "string"}, "The network has one code."),
)
CONDITIONS = (
    _header("Range", "One range of bytes, such as `bytes=0-99`."),
    _header("If-Range", "The ETag that the range belongs to."),
    _header("If-None-Match", "ETags that the caller has: 304 where this is one."),
)
OWN: list[dict[str, list[str]]] = [{"token": []}]
OWN_FROM_ELSEWHERE: list[dict[str, list[str]]] = [{}, {"token": []}]
"""Storing takes the token only where a gateway listens on more than loopback."""
BLOB_ID = _path("blob_id", ref("BlobId"), "The blob's ID.")


def _reads(name: str, summary: str, parameters: tuple[Schema, ...]) -> Schema:
    answers = {
        200: _bytes("All bytes."),
        206: _bytes("The bytes of the range."),
        304: {"description": "The caller has them."},
    }
    get = _operation(
        f"get_{name}", summary, answers=answers, faults=(*READING, 416), parameters=(*parameters, *CONDITIONS)
    )
    head = _operation(
        f"head_{name}",
        f"{summary} Headers only.",
        answers={code: {"description": answer["description"]} for code, answer in answers.items()},
        faults=(*READING, 416),
        parameters=(*parameters, *CONDITIONS),
    )
    for code, answer in head["responses"].items():
        head["responses"][code] = {"description": answer["description"]}
    return {"get": get, "head": head}


# --- the paths -------------------------------------------------------------------------------------------------------


def _blobs(limits: Limits) -> dict[str, Schema]:
    put = _operation(
        "put_blob",
        "Store the body as a blob.",
        answers={200: _json("It is stored: the network owes it.", ref("BlobStoreResult"))},
        faults=WRITING,
        parameters=STORE_PARAMETERS,
        body={"*/*": {"schema": {"contentEncoding": "binary", "type": "string"}}},
        security=OWN_FROM_ELSEWHERE,
        description=(
            f"At most {limits.blob_bytes_max} bytes. The content type of the request is put on chain, unless it is "
            "application/octet-stream or application/x-www-form-urlencoded, which say nothing of the bytes."
        ),
    )
    listing = _operation(
        "list_blobs",
        "List what the gateway's wallet keeps.",
        answers={200: _json("A page of it, ascending by blob ID.", ref("OwnBlobs"))},
        faults=(401, 503),
        parameters=(
            _query(
                "limit", {"default": LIST_DEFAULT, "maximum": LIST_MAX, "minimum": 1, "type": "integer"}, "Of a page."
            ),
            _query("cursor", {"type": "string"}, "`nextCursor` of the page before."),
        ),
        security=OWN,
        description="Not in Walrus.",
    )
    delete = _operation(
        "delete_blob",
        "Delete every deletable entry that the gateway's wallet has of a blob.",
        answers={200: _json("They are deleted.", ref("Deleted"))},
        faults=(401, 402, 409, 503, 507),
        parameters=(BLOB_ID,),
        security=OWN,
        description="Not in Walrus. Another owner's entries keep the blob.",
    )
    name = _path("name", {"minLength": 1, "type": "string"}, "The file's name, which may have slashes.")
    quilt = _path("quilt_id", ref("BlobId"), "The quilt's blob ID.")
    patch = _path("patch_id", ref("QuiltPatchId"), "The file's patch ID.")
    return {
        "/v1/blobs": {"get": listing, "put": put},
        "/v1/blobs/{blob_id}": {**_reads("blob", "Read a blob.", (BLOB_ID,)), "delete": delete},
        "/v1/blobs/by-quilt-id/{quilt_id}/{name}": _reads(
            "quilt_file", "Read a file of a quilt by its name.", (quilt, name)
        ),
        "/v1/blobs/by-quilt-patch-id/{patch_id}": _reads("patch", "Read a file of a quilt by its patch ID.", (patch,)),
    }


def _quilts(limits: Limits) -> dict[str, Schema]:
    put = _operation(
        "put_quilt",
        "Store the files of a form as one blob, each of them readable alone.",
        answers={200: _json("It is stored: the network owes it.", ref("QuiltStoreResult"))},
        faults=(*WRITING, 415),
        parameters=(
            *STORE_PARAMETERS,
            _query("quilt_version", {"enum": list(QUILT_VERSIONS), "type": "string"}, "There is one."),
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
    patches = _operation(
        "get_patches",
        "List the files of a quilt.",
        answers={200: _json("Its files.", {"type": "array"})},
        faults=READING,
        parameters=(_path("quilt_id", ref("BlobId"), "The quilt's blob ID."),),
    )
    return {"/v1/quilts": {"put": put}, "/v1/quilts/{quilt_id}/patches": {"get": patches}}


def _about() -> dict[str, Schema]:
    return {
        "/status": {
            "get": _operation(
                "get_status", "Say that the gateway runs.", answers={200: {"description": "It does."}}, faults=()
            )
        },
        "/v1/api": {
            "get": _operation(
                "get_api",
                "This page.",
                answers={200: {"content": {"text/html": {"schema": {"type": "string"}}}, "description": "A page."}},
                faults=(),
            )
        },
        "/v1/api/openapi.json": {
            "get": _operation(
                "get_openapi",
                "This document.",
                answers={200: _json("An OpenAPI document.", {"type": "object"})},
                faults=(),
            )
        },
    }
