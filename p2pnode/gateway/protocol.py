"""HTTP/1.1 as the gateway speaks it: Hypercorn's protocol over h11, stricter, and never another one."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import h11
from hypercorn.events import RawData
from hypercorn.protocol.events import Request as StreamRequest
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream

from p2pnode.gateway.faults import STATUS

HEADER_BYTES_MAX = 16_384
"""Of a request's line and headers together, as in nginx and h11."""
HEADERS_MAX = 64
TARGET_BYTES_MAX = 12_300
"""The longest path of a folder, 4,096 bytes each written as %XX."""
JOINED_BYTES_MAX = 32_768
"""What is copied behind an answer's head rather than sent by itself."""


class StrictParser(h11.Connection):
    """h11, refusing also what two parsers in a row may read differently, and what no route of ours needs."""

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            verify_request(event)
        return event


def verify_request(request: h11.Request) -> None:
    """Raise `h11.RemoteProtocolError` with the status that answers it."""
    names = Counter(name.lower() for name, _ in request.headers)
    if b"transfer-encoding" in names and b"content-length" in names:
        raise h11.RemoteProtocolError("both a length and chunks", 400)
    if names[b"host"] > 1 or (request.http_version == b"1.1" and not names[b"host"]):
        raise h11.RemoteProtocolError("one Host", 400)
    size = sum(len(name) + len(value) + 4 for name, value in request.headers)
    if sum(names.values()) > HEADERS_MAX or size > HEADER_BYTES_MAX:  # h11 itself bounds only what it waits for
        raise h11.RemoteProtocolError("too many headers", 431)
    if len(request.target) > TARGET_BYTES_MAX:
        raise h11.RemoteProtocolError("a long target", 414)
    if not request.target.startswith(b"/") and request.target != b"*":
        raise h11.RemoteProtocolError("a target that is no path", 400)
    if request.http_version not in (b"1.0", b"1.1"):
        raise h11.RemoteProtocolError("another version", 505)


MESSAGES = {
    400: "this is not an HTTP/1.1 request",
    414: f"a path has at most {TARGET_BYTES_MAX} bytes",
    431: f"headers have at most {HEADER_BYTES_MAX} bytes and {HEADERS_MAX} lines",
    501: "no such transfer coding is known here",
    505: "this is not an HTTP/1.1 request",
    503: "too many connections: try again later",
}


def build_error(code: int) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return headers and body of an answer to what never reaches a route."""
    error = {"code": code, "details": [], "message": MESSAGES.get(code, MESSAGES[400])}
    body = json.dumps({"error": {**error, "status": STATUS.get(code, "INVALID_ARGUMENT")}}).encode()
    return [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
    ], body


class Http11(H11Protocol):
    """Hypercorn's protocol, with a strict parser, no change of protocol, and errors that say what was wrong."""

    def __init__(self, *args: Any, on_refused: Callable[[], None]) -> None:
        super().__init__(*args)
        self.connection = StrictParser(h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size)
        self.on_refused = on_refused
        self._head = b""

    async def _send_h11_event(self, event: Any) -> None:
        """Send an event's bytes, an answer's head with what follows it: one packet where that is short."""
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response):
            self._head = data or b""
        elif self._head and len(data or b"") > JOINED_BYTES_MAX:
            head, self._head = self._head, b""
            await self.send(RawData(data=head))
            await self.send(RawData(data=data))
        elif self._head or data:
            data, self._head = self._head + (data or b""), b""
            await self.send(RawData(data=data))

    async def _check_protocol(self, event: h11.Request) -> None:
        """Stay with HTTP/1.1, whatever the request offers."""

    async def _create_stream(self, request: h11.Request) -> None:
        self.stream = HTTPStream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await self.stream.handle(
            StreamRequest(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1

    async def _send_error_response(self, status_code: int) -> None:
        self.on_refused()
        headers, body = build_error(status_code)
        all_headers = [*headers, *self.config.response_headers("h11")]
        await self._send_h11_event(h11.Response(status_code=status_code, headers=all_headers))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())

    async def _maybe_recycle(self) -> None:
        if self.connection.their_state is h11.SEND_BODY:
            self.on_refused()
        await super()._maybe_recycle()
