"""Bytes as HTTP answers: ranges and conditions, headers that keep what strangers stored harmless, bodies that stream.

A status that says success is sent with the first byte that was checked; where a later one fails, the transfer breaks.
"""

import logging
import mimetypes
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import trio
from starlette.requests import Request
from starlette.responses import Response

from economics.errors import Rejected
from p2pnode.content.views import View, read_all
from p2pnode.errors import NodeError
from p2pnode.gateway.faults import HttpFault
from p2pnode.gateway.ranges import Span, Unsatisfiable, is_other, is_unchanged, parse_ranges, wants_part
from p2pnode.network.host import sole_exception

log = logging.getLogger("p2pnode.gateway")

FOR_EVER = "public, max-age=29030400, immutable"
"""48 weeks, what is named by its content never changes; nginx and CDNs take it as a year."""
UNTOLD = "application/octet-stream"
SMALL_BYTES_MAX = 1 << 20
"""Answered in one piece."""
MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,100}/[A-Za-z0-9!#$&^_.+-]{1,100}(?:[ \t]*;[ \t!-~]{0,200})?")
SANDBOX = (
    "sandbox allow-downloads allow-popups allow-popups-to-escape-sandbox; "
    "default-src 'none'; img-src 'self' data:; media-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "font-src 'self' data:; base-uri 'none'; form-action 'none'"
)
"""A page or drawing that a stranger stored: it is shown, runs nothing, and is of no origin.

Its links may save a file or open a tab: with nothing that runs, only who clicks on one does that.
"""
SAFETY = {
    "Accept-Ranges": "bytes",
    "Cache-Control": FOR_EVER,
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
UNSANDBOXED = frozenset({"application/pdf"})
"""Browsers show it in a viewer with a sandbox of its own, and not at all in ours."""
SAYING = frozenset({"text/html", "text/xml"})
"""Such a file may say its charset itself, and what a header says would come before that."""
SHOWN_TYPES = {
    ".flac": "audio/flac",
    ".ico": "image/x-icon",
    ".js": "text/javascript",
    ".log": "text/plain",
    ".m4a": "audio/mp4",
    ".m4v": "video/mp4",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".mkv": "video/x-matroska",
    ".oga": "audio/ogg",
    ".ogg": "audio/ogg",
    ".ogv": "video/ogg",
    ".opus": "audio/ogg",
    ".otf": "font/otf",
    ".ttf": "font/ttf",
    ".wav": "audio/wav",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".xhtml": "application/xhtml+xml",
}
"""What browsers show or play, and would save to a file: some versions of Python know no type of these, or another."""
_TYPES = mimetypes.MimeTypes(filenames=())
for _ending, _type in SHOWN_TYPES.items():
    _TYPES.add_type(_type, _ending)


@dataclass(frozen=True, slots=True)
class Resource:
    """Bytes that a URL names, once and for all."""

    view: View
    tag: str
    """What names these bytes: the ID, without quotes."""
    content_type: str = UNTOLD
    headers: Mapping[str, str] = field(default_factory=dict)


def guess_type(name: str) -> str:
    """Return the media type that a file's name suggests; the same on every machine."""
    guessed, coding = _TYPES.guess_type(f"file:{quote(name)}", strict=True)
    if guessed is None or coding is not None:
        return UNTOLD
    return f"{guessed}; charset=utf-8" if guessed.startswith("text/") else guessed


def clean_type(text: str | None) -> str:
    """Return a media type that a stranger gave, or `UNTOLD` where it is none.

    Text whose charset nobody gave is in UTF-8: browsers would take it for Windows-1252.
    """
    if not text or not MEDIA_TYPE.fullmatch(text):
        return UNTOLD
    kind, _, parameters = text.lower().partition(";")
    if not kind.startswith("text/") or kind.strip() in SAYING or "charset=" in parameters:
        return text
    return text.rstrip("; \t") + "; charset=utf-8"


def build_headers(resource: Resource) -> dict[str, str]:
    headers = {**SAFETY, "ETag": f'"{resource.tag}"', "Content-Type": resource.content_type, **resource.headers}
    if resource.content_type.partition(";")[0].strip().lower() not in UNSANDBOXED:
        headers["Content-Security-Policy"] = SANDBOX
    return headers


def name_file(name: str) -> str:
    """Return the Content-Disposition that saves a download under a name (RFC 6266).

    It comes twice: `curl -OJ` knows only the plain form, which has no letter that is read in more than one way.
    """
    last = name.rpartition("/")[2]
    plain = re.sub(r'[^ -~]|["%\\]', "_", last)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(last, safe='')}"


async def answer(request: Request, resource: Resource) -> Response:
    """Return the answer to GET or HEAD. Raises `HttpFault` 412 and 416, and what reading small ones does."""
    headers, length, tag = build_headers(resource), resource.view.length, f'"{resource.tag}"'
    if is_other(request.headers, tag):
        raise HttpFault(412, f"these bytes are {tag}, and If-Match names others", "PRECONDITION")
    if is_unchanged(request.headers, tag):
        return Response(status_code=304, headers={name: headers[name] for name in ("ETag", "Cache-Control")})
    spans: Sequence[Span] = ()
    if request.method == "GET" and wants_part(request.headers, tag):
        try:
            spans = parse_ranges(request.headers["range"], length)
        except Unsatisfiable as fault:
            raise HttpFault(
                416, f"no such range: there are {length} bytes, counted from 0", "INVALID_BYTE_RANGE",
                {"Content-Range": f"bytes */{length}"},
            ) from fault  # fmt: skip
    match spans:
        case []:
            return await _answer_span(request, resource.view, 200, headers, Span(0, length))
        case [span]:
            headers["Content-Range"] = span.describe(length)
            return await _answer_span(request, resource.view, 206, headers, span)
        case _:
            return Parts(resource.view, headers, spans)


async def _answer_span(request: Request, view: View, status: int, headers: dict[str, str], span: Span) -> Response:
    headers["Content-Length"] = str(span.length)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    if span.length <= SMALL_BYTES_MAX:
        body = await read_all(view, start=span.start, stop=span.stop, size_max=SMALL_BYTES_MAX)
        return Response(body, status, headers)
    return Streamed(view, status, headers, [(b"", span)])


class Streamed(Response):
    """A body passed on as it is read, piece by piece; each piece is sent before the next is asked for."""

    def __init__(
        self,
        view: View,
        status: int,
        headers: Mapping[str, str],
        pieces: Sequence[tuple[bytes, Span]],
        end: bytes = b"",
    ) -> None:
        super().__init__(status_code=status, headers=headers)
        self.view = view
        self.pieces = pieces
        """(bytes to send first, what of the view to send then)."""
        self.end = end

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it. Raises what reading does as long as nothing is sent, else leaves the body unfinished."""
        started, finished, ahead = False, False, b""

        async def put(data: bytes) -> None:
            nonlocal started
            if not started:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                started = True
            await send({"type": "http.response.body", "body": data, "more_body": True})

        async def write(views: list[memoryview]) -> None:
            nonlocal ahead
            await put(b"".join((ahead, *views)) if ahead else as_bytes(views))
            ahead = b""

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                for head, span in self.pieces:
                    ahead = head
                    await self.view.read(write, start=span.start, stop=span.stop)
                finished = True
                nursery.cancel_scope.cancel()
        except (NodeError, Rejected, HttpFault, BaseExceptionGroup) as fault:
            sole = sole_exception(fault) if isinstance(fault, BaseExceptionGroup) else fault
            if not started or not isinstance(sole, NodeError | Rejected | HttpFault):
                raise sole from None
            log.warning("a download broke off: %s", sole)
        if finished:  # with nobody watching: the server says that the client is gone when all is sent, too
            await send({"type": "http.response.body", "body": self.end, "more_body": False})


def as_bytes(views: list[memoryview]) -> bytes:
    """Return the views' bytes, without a copy where they are one whole object."""
    match views:
        case [memoryview(obj=bytes() as whole) as view] if len(whole) == view.nbytes:
            return whole
        case _:
            return b"".join(views)


class Parts(Streamed):
    """Several ranges as one body (RFC 9110, 14.6)."""

    def __init__(self, view: View, headers: Mapping[str, str], spans: Sequence[Span]) -> None:
        boundary = secrets.token_hex(16)
        inner = headers["Content-Type"]
        heads = [
            f"\r\n--{boundary}\r\nContent-Type: {inner}\r\nContent-Range: {span.describe(view.length)}\r\n\r\n".encode()
            for span in spans
        ]
        end = f"\r\n--{boundary}--\r\n".encode()
        length = sum(len(head) + span.length for head, span in zip(heads, spans, strict=True)) + len(end)
        outer = {"Content-Type": f"multipart/byteranges; boundary={boundary}", "Content-Length": str(length)}
        super().__init__(view, 206, {**headers, **outer}, list(zip(heads, spans, strict=True)), end)
