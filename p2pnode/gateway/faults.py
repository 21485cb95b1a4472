"""Errors as HTTP answers: one JSON shape for all of them, that of Walrus' gateway, never to be cached.

What a caller may conclude from each status is in `classify`; nothing here knows a route.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from economics.errors import Rejected
from p2pnode.content.contents import WrongFolder
from p2pnode.content.sealed import WrongKey
from p2pnode.errors import (
    ConfigError,
    InconsistentBlob,
    InputError,
    NetworkError,
    NodeError,
    SpaceError,
    TransactionFailed,
    Unavailable,
    Unpaid,
)
from p2pnode.network.host import sole_exception

RETRY_AFTER_S = 5
"""What a caller waits after 503 or 429: nodes come back, an epoch's shards arrive, a transfer ends, in seconds."""

STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "FAILED_PRECONDITION",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    410: "NOT_FOUND",
    411: "INVALID_ARGUMENT",
    412: "FAILED_PRECONDITION",
    413: "FAILED_PRECONDITION",
    414: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    416: "OUT_OF_RANGE",
    421: "INVALID_ARGUMENT",
    422: "FAILED_PRECONDITION",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    507: "RESOURCE_EXHAUSTED",
}
"""The name of google.rpc.Code that goes with each HTTP status, as in Walrus."""


@dataclass(slots=True)
class HttpFault(Exception):
    """An answer other than what was asked for: an HTTP status, and one line that says the cause and the next step."""

    code: int
    message: str
    reason: str = ""
    """A word that a program can tell this case by, such as BLOB_UNAVAILABLE; goes into `details`."""
    headers: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, int | str] = field(default_factory=dict)
    """What a program may want of it, such as a limit; goes into `details`."""

    def __str__(self) -> str:
        return f"{self.code} {self.message}"


def unavailable(message: str, reason: str = "BLOB_UNAVAILABLE") -> HttpFault:
    """Return 503: the same request may succeed later."""
    return HttpFault(503, message, reason, {"Retry-After": str(RETRY_AFTER_S)})


def classify(fault: Exception) -> HttpFault:
    """Return how an error of this program is told over HTTP; raises it again where it is a fault of ours."""
    match fault:
        case HttpFault():
            return fault
        case InconsistentBlob():
            return HttpFault(422, str(fault), "INVALID_BLOB")
        case WrongFolder() | WrongKey():  # the keys that a gateway has are those in folders
            return HttpFault(404, str(fault), "NOT_A_FOLDER")
        case InputError():
            return HttpFault(400, str(fault), "INVALID_INPUT")
        case Unpaid():
            return HttpFault(402, str(fault), "UNPAID")
        case TransactionFailed():
            return _refused(fault)
        case SpaceError():
            return HttpFault(507, str(fault), "NO_SPACE", {"Retry-After": str(RETRY_AFTER_S)})
        case Unavailable() | NetworkError():
            return unavailable(str(fault))
        case ConfigError():
            return HttpFault(503, str(fault), "CONFIG", {"Retry-After": str(RETRY_AFTER_S)})
        case NodeError():
            return HttpFault(503, str(fault), "FAILED", {"Retry-After": str(RETRY_AFTER_S)})
        case Rejected():
            return HttpFault(400, str(fault), str(fault.reason).upper())
        case _:
            raise fault


MEANWHILE = frozenset({"no_space", "not_covered", "wrong_epoch", "wrong_epochs", "wrong_nonce"})
"""What the ledger answers where an epoch ended or another transaction came in between: the next try starts anew."""


def _refused(fault: TransactionFailed) -> HttpFault:
    reason = fault.code.upper()
    if fault.code in ("unfunded", "unfunded_fee"):
        return HttpFault(402, str(fault), reason)
    if fault.code == "over_capacity":
        return HttpFault(507, str(fault), reason)
    return unavailable(str(fault), reason) if fault.code in MEANWHILE else HttpFault(409, str(fault), reason)


def build_response(fault: HttpFault) -> Response:
    """Return `{"error": {"code", "status", "message", "details"}}`, which no cache keeps."""
    details: list[dict[str, Any]] = []
    if fault.reason:
        metadata = {"metadata": dict(fault.facts)} if fault.facts else {}
        details.append({"@type": "ErrorInfo", "domain": "p2pnode", "reason": fault.reason, **metadata})
    message = " ".join(str(fault.message).split())
    error = {"code": fault.code, "details": details, "message": message, "status": STATUS.get(fault.code, "UNKNOWN")}
    return JSONResponse({"error": error}, fault.code, {"Cache-Control": "no-store", **fault.headers})


async def answer_error(request: Request, fault: Exception) -> Response:
    """Answer any error of a route that has not begun to answer."""
    if isinstance(fault, BaseExceptionGroup):
        sole = sole_exception(fault)
        if not isinstance(sole, Exception):
            raise sole
        fault = sole
    return build_response(classify(fault))


NOT_ROUTED = {
    404: ("nothing is at this path: /v1/api lists those that there are", "NO_ROUTE"),
    405: ("this path has other methods: /v1/api lists them", "NO_METHOD"),
}


async def answer_http_exception(request: Request, fault: Exception) -> Response:
    """Answer what the router itself refuses: an unknown path or method."""
    assert isinstance(fault, HTTPException)
    message, reason = NOT_ROUTED.get(fault.status_code, (fault.detail, ""))
    return build_response(HttpFault(fault.status_code, message, reason, fault.headers or {}))


async def answer_ours(request: Request, fault: Exception) -> Response:
    """Answer a fault of ours; the server logs it with its traceback."""
    return build_response(HttpFault(500, "the gateway failed: its log says how", "FAULT"))
