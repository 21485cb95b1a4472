"""What a request to store asks for: its query and its content type, checked before a byte of its body is read.

The parameters are those of Walrus' publisher; one that this network cannot fulfil is refused, never ignored.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from starlette.requests import Request

from economics.blob import BlobId, parse_blob_id
from economics.crypto import OwnerId
from economics.errors import Rejected
from economics.genesis import build_key_text, parse_key
from economics.operations import EPOCHS_AHEAD_MAX
from p2pnode.gateway.faults import HttpFault

EPOCHS = 1
"""What Walrus' publisher stores for unless told otherwise: scripts written for it count on paying for no more."""
ENCODING = "RS2"
"""What Walrus calls its code; ours is of that kind, two-dimensional Reed-Solomon, and a network has only one."""
QUILT_VERSIONS = ("v1", "V1", "1")
TEXT_BYTES_MAX = 255
"""Of a content type on chain (FORMATS.md 10): its length is one byte."""
UNTOLD_TYPES = frozenset({"application/octet-stream", "application/x-www-form-urlencoded"})
"""Say nothing of the bytes: the one means just that, the other is what curl's `-d` adds to anything."""
CONTENT_TYPE = re.compile(r"[!#$%&\'*+.^_`|~0-9A-Za-z-]+/[!#$%&\'*+.^_`|~0-9A-Za-z-]+(?:[ \t]*;[ \t!-~]*)?")
"""A media type and its parameters (RFC 9110, 8.3), in ASCII without control characters."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """For how long something is to be stored, and whether it may be deleted before."""

    epochs: int = EPOCHS
    deletable: bool = True


def bad_request(message: str, reason: str = "INVALID_PARAMETER") -> HttpFault:
    return HttpFault(400, message, reason)


def read_query(request: Request, allowed: Iterable[str]) -> dict[str, str]:
    """Return the query's parameters; raises `HttpFault(400)` for an unknown one and one that comes twice."""
    names = tuple(allowed)
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in names:
            others = f"there are {', '.join(names)}" if names else "there is none"
            raise bad_request(f"there is no parameter {name[:64]!r} here; {others}")
        if name in found:
            raise bad_request(f"the parameter {name} comes twice")
        found[name] = value
    return found


def parse_number(name: str, text: str, *, low: int, high: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise bad_request(f"{name} is a whole number from {low} to {high}")
    return int(text)


def parse_flag(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise bad_request(f"{name} is true or false")
    return text == "true"


BLOB_PARAMETERS = (
    "epochs",
    "deletable",
    "permanent",
    "send_object_to",
    "share",
    "force",
    "reuse_resources",
    "encoding_type",
)
QUILT_PARAMETERS = (*BLOB_PARAMETERS, "quilt_version")


def parse_wanted(query: dict[str, str], *, owner: OwnerId) -> Wanted:
    """Return what a query asks for; raises `HttpFault(400)` for what is malformed, contradicts itself or cannot be."""
    epochs = parse_number("epochs", query.get("epochs", str(EPOCHS)), low=1, high=EPOCHS_AHEAD_MAX)
    deletable = parse_flag("deletable", query.get("deletable", "false"))
    permanent = parse_flag("permanent", query.get("permanent", "false"))
    if deletable and permanent:
        raise bad_request("a blob is either deletable or permanent: name one of them")
    for name, judge in _JUDGES.items():
        if name in query:
            judge(query[name])
    if "send_object_to" in query:
        verify_receiver(query["send_object_to"], owner=owner)
    return Wanted(epochs, not permanent)


def verify_receiver(text: str, *, owner: OwnerId) -> None:
    """Raise `HttpFault(400)` for anybody but the account that pays."""
    try:
        receiver = parse_key(text)
    except Rejected as fault:
        raise bad_request("send_object_to names an account by its key, 43 characters of base64url") from fault
    if receiver != owner:
        raise bad_request(
            "the ledger gives no stored blob to another account, so send_object_to can only name this gateway's own, "
            f"{build_key_text(owner)}: the other owner stores the blob itself, which moves no bytes once it is here"
        )


def _refuse_share(text: str) -> None:
    if parse_flag("share", text):
        raise bad_request("the ledger has no shared blobs: anybody can keep a blob alive by storing it too")


def _refuse_force(text: str) -> None:
    if parse_flag("force", text):
        raise bad_request("a second entry of the same blob would only cost twice: use a larger `epochs` instead")


def _refuse_waste(text: str) -> None:
    if not parse_flag("reuse_resources", text):
        raise bad_request("storage that this account holds already is always used first")


def _verify_encoding(text: str) -> None:
    if text.upper() != ENCODING:
        raise bad_request(f"encoding_type is {ENCODING}: the network has one code")


def _verify_quilt_version(text: str) -> None:
    if text not in QUILT_VERSIONS:
        raise bad_request("quilt_version is v1")


_JUDGES: dict[str, Callable[[str], None]] = {
    "share": _refuse_share,
    "force": _refuse_force,
    "reuse_resources": _refuse_waste,
    "encoding_type": _verify_encoding,
    "quilt_version": _verify_quilt_version,
}


def parse_content_type(text: str | None) -> str | None:
    """Return what is to be put on chain, None where the header says nothing of the bytes; raises `HttpFault(400)`."""
    if text is None or not text.strip():
        return None
    shown = text.strip(" \t")
    if len(shown) > TEXT_BYTES_MAX or CONTENT_TYPE.fullmatch(shown) is None:
        raise bad_request(
            f"Content-Type is a media type of at most {TEXT_BYTES_MAX} ASCII characters, such as image/png; leave it "
            "out if there is none",
            "INVALID_CONTENT_TYPE",
        )
    return None if shown.partition(";")[0].strip().lower() in UNTOLD_TYPES else shown


def parse_path_id(request: Request, name: str) -> BlobId:
    """Return the blob ID in a path; raises `HttpFault(400)`."""
    try:
        return parse_blob_id(request.path_params[name])
    except Rejected as fault:
        raise bad_request("a blob ID has 43 characters of A-Z a-z 0-9 - _", "INVALID_ID") from fault


def read_length(request: Request) -> int | None:
    """Return what Content-Length says, None where the body comes in chunks."""
    text = request.headers.get("content-length")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise bad_request("Content-Length is a whole number", "INVALID_LENGTH")
    return int(text)
