"""The parts that operations in the OpenAPI document are made of: parameters, answers, what each status means."""

from economics.operations import EPOCHS_AHEAD_MAX
from p2pnode.gateway.orders import ENCODING, EPOCHS
from p2pnode.gateway.shapes import Schema, ref

WHY = {
    400: "A parameter, a header or the body is malformed, unknown or contradicts another.",
    401: "The token is needed: `Authorization: Bearer <token>`.",
    402: "The gateway's wallet has less than it costs. Nothing was paid.",
    403: "The token is wrong, the origin is foreign, or the gateway has no wallet.",
    404: "There is no such blob, file or route.",
    405: "The path has other methods.",
    408: "The body stopped coming.",
    409: "The state of the ledger does not allow it.",
    410: "The blob has expired or was deleted.",
    412: "It is not what `If-Match` names.",
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


def build_operation(
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
            **{str(code): build_fault(code) for code in codes},
        },
        "summary": summary,
        "tags": ["read" if name.startswith("get") else "write"],
    }
    if description:
        found["description"] = description
    if body is not None:
        found["requestBody"] = {"content": body, "required": True}
    if security is not None:
        found["security"] = security
    return found


def build_fault(code: int) -> Schema:
    answer: Schema = {"content": {"application/json": {"schema": ref("Status")}}, "description": WHY[code]}
    if code in RETRIED:
        answer["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return answer


def json_answer(description: str, schema: Schema) -> Schema:
    return {"content": {"application/json": {"schema": schema}}, "description": description}


def bytes_answer(description: str) -> Schema:
    """Return the answer with a blob's bytes: of whatever type was stored with them."""
    header = {"schema": {"type": "string"}}
    return {
        "content": {"*/*": {"schema": {"contentEncoding": "binary", "type": "string"}}},
        "description": description,
        "headers": {"Accept-Ranges": header, "Content-Type": header, "ETag": header},
    }


def in_query(name: str, schema: Schema, description: str) -> Schema:
    return {"description": description, "in": "query", "name": name, "required": False, "schema": schema}


def in_path(name: str, schema: Schema, description: str) -> Schema:
    return {"description": description, "in": "path", "name": name, "required": True, "schema": schema}


def in_header(name: str, description: str) -> Schema:
    return {
        "description": description,
        "in": "header",
        "name": name,
        "required": False,
        "schema": {"type": "string"},
    }


FLAG: Schema = {"type": "boolean"}
STORE_PARAMETERS = (
    in_query(
        "epochs",
        {"default": EPOCHS, "maximum": EPOCHS_AHEAD_MAX, "minimum": 1, "type": "integer"},
        f"For how many epochs, the current one counted; {EPOCHS} as in Walrus unless said otherwise.",
    ),
    in_query("deletable", FLAG, "The wallet may delete it before it ends. This is so unless it is `permanent`."),
    in_query("permanent", FLAG, "Nobody can delete it before it ends."),
    in_query("send_object_to", {"type": "string"}, "The key of the gateway's own account: no other can be given one."),
    in_query("share", {"const": False, "type": "boolean"}, "The ledger has no shared blobs."),
    in_query("force", {"const": False, "type": "boolean"}, "A second entry of the same blob would only cost twice."),
    in_query(
        "reuse_resources", {"const": True, "type": "boolean"}, "Storage that the wallet holds is always used first."
    ),
    in_query("encoding_type", {"enum": [ENCODING], "type": "string"}, "The network has one code."),
)
CONDITIONS = (
    in_header("Range", "One range of bytes, such as `bytes=0-99`."),
    in_header("If-Range", "The ETag that the range belongs to."),
    in_header("If-Match", "ETags that the caller means: 412 where this is none of them."),
    in_header("If-None-Match", "ETags that the caller has: 304 where this is one."),
)
FILE_PARAMETERS = (
    in_query("strict_consistency_check", FLAG, "Prove by encoding it again that no other reader can get other bytes."),
    in_query("skip_consistency_check", FLAG, "Has no effect: what is fetched is always checked."),
    in_query("filename", {"maxLength": 255, "minLength": 1, "type": "string"}, "To save it under. Not in Walrus."),
)
OWN: list[dict[str, list[str]]] = [{"token": []}]
OWN_FROM_ELSEWHERE: list[dict[str, list[str]]] = [{}, {"token": []}]
"""Storing takes the token only where a gateway listens on more than loopback."""
BLOB_ID = in_path("blob_id", ref("BlobId"), "The blob's ID.")


def build_reads(name: str, summary: str, parameters: tuple[Schema, ...], *, of_file: bool = True) -> Schema:
    answers = {
        200: bytes_answer("All bytes."),
        206: bytes_answer("The bytes of the range, or of several as multipart/byteranges."),
        304: {"description": "The caller has them."},
    }
    get = build_operation(
        f"get_{name}",
        summary,
        answers=answers,
        faults=(*READING, 412, 416),
        parameters=(*parameters, *(FILE_PARAMETERS if of_file else ()), *CONDITIONS),
    )
    return {"get": get, "head": without_body(get, f"head_{name}")}


def without_body(get: Schema, name: str) -> Schema:
    """Return HEAD's part of what GET answers."""
    responses = {code: {"description": answer["description"]} for code, answer in get["responses"].items()}
    return {**get, "operationId": name, "responses": responses, "summary": f"{get['summary']} Headers only."}
