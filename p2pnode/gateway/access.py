"""Who may ask what: names that this gateway goes by, foreign origins, the token. Answers before any route runs."""

import hmac
import ipaddress
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from p2pnode.errors import ConfigError
from p2pnode.gateway.faults import HttpFault, build_response
from p2pnode.keys import keep_secret

READING = frozenset({"GET", "HEAD"})
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
ANYBODY = frozenset({"*"})
"""Pages of any origin, which ask without credentials."""
TOKEN_BYTES = 32
TOKEN_BYTES_MAX = 256
PREFLIGHT_S = 86_400
READ_HEADERS = "If-Match, If-None-Match, If-Range, Range"
SHOWN_HEADERS = "Accept-Ranges, Content-Length, Content-Range, ETag, Retry-After, X-Quilt-Patch-Identifier"

_HOST = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9_.-]{1,253})(?::[0-9]{1,5})?")

App = Callable[[Any, Any, Any], Awaitable[None]]


def load_token(path: Path) -> str:
    """Return the token of a gateway, made where there is none yet; raises `ConfigError`."""
    if not path.exists():
        keep_secret(path, secrets.token_urlsafe(TOKEN_BYTES).encode() + b"\n")
    try:
        with path.open("rb") as file:
            token = file.read(TOKEN_BYTES_MAX + 1).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"cannot read the token in {path}: remove the file, and a new one is made") from fault
    if not 16 <= len(token) <= TOKEN_BYTES_MAX or not token.isprintable():
        raise ConfigError(f"{path} holds no token of 16 to {TOKEN_BYTES_MAX} characters: remove it, and one is made")
    return token


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one gateway."""

    token: str
    is_loopback: bool = True
    """Whether only this machine reaches it; from elsewhere storing takes the token too."""
    names: frozenset[str] = frozenset()
    """Names that it goes by besides those of loopback and its addresses."""
    origins: frozenset[str] = frozenset()
    """Foreign origins whose pages may store and delete, and send the token, such as https://app.example."""
    readers: frozenset[str] = ANYBODY
    """Foreign origins whose pages may read."""

    def require_token(self, request: Request) -> None:
        """Raise `HttpFault` unless the request has `Authorization: Bearer <token>`: 401 for none, 403 for another."""
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(shown.strip().encode(), self.token.encode()):
            return
        if scheme.lower() == "bearer" and shown.strip():
            raise HttpFault(403, "the token is not this gateway's, which is in keys/gateway.token of its home", "TOKEN")
        raise HttpFault(
            401,
            "this takes `Authorization: Bearer <token>`; the token is in keys/gateway.token of this gateway's home",
            "TOKEN",
            {"WWW-Authenticate": "Bearer"},
        )

    def may_store(self, request: Request) -> None:
        """Raise `HttpFault(401)` for a store that comes from where the token is needed and does not show it."""
        if not self.is_loopback:
            self.require_token(request)

    def verify_host(self, host: str) -> None:
        """Raise `HttpFault(421)` for a name that is not this gateway's: a page elsewhere may have it point here."""
        name = name_of(host)
        if name in LOOPBACK_NAMES or name in self.names or (not self.is_loopback and is_address(name)):
            return
        raise HttpFault(
            421, f"this gateway does not go by {name[:80]!r}: its operator can add a name with --host", "HOST"
        )

    def is_own(self, origin: str, host: str) -> bool:
        """Return whether a page of this origin came from here."""
        return origin in (f"http://{host}", f"https://{host}")

    def may_read_from(self, origin: str) -> bool:
        return "*" in self.readers or origin in self.readers or origin in self.origins


def name_of(host: str) -> str:
    """Return a Host header's name or address without its port, in lower case; empty for anything else."""
    found = _HOST.fullmatch(host)
    return "" if found is None else found[1].strip("[]").rstrip(".").lower()


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """The application behind its rules."""

    def __init__(self, app: App, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin, host = headers.get("origin"), headers.get("host", "")
        try:
            self.access.verify_host(host)
            foreign = origin if origin is not None and not self.access.is_own(origin, host) else None
            if scope["method"] == "OPTIONS":
                answer: Response | None = self._preflight(foreign, headers)
            else:
                self._verify_origin(foreign, scope["method"])
                answer = None
        except HttpFault as fault:
            answer = build_response(fault)
            foreign = None
        if answer is not None:
            await answer(scope, receive, send)
            return
        shown = self._shown(foreign, scope["method"])

        async def send_on(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *shown]
            await send(message)

        await self.app(scope, receive, send_on)

    def _verify_origin(self, foreign: str | None, method: str) -> None:
        """Raise `HttpFault(403)` for a foreign page that would change something."""
        if foreign is not None and method not in READING and foreign not in self.access.origins:
            raise HttpFault(
                403, "pages of other origins may not store or delete here: its operator can allow one", "ORIGIN"
            )

    def _shown(self, foreign: str | None, method: str) -> list[tuple[bytes, bytes]]:
        """Return the headers by which a browser lets a foreign page see the answer."""
        shown = [("Vary", "Origin")]
        if method in READING and "*" in self.access.readers:
            shown = [("Access-Control-Allow-Origin", "*"), ("Access-Control-Expose-Headers", SHOWN_HEADERS)]
        elif foreign is not None and (foreign in self.access.origins or self.access.may_read_from(foreign)):
            shown += [("Access-Control-Allow-Origin", foreign), ("Access-Control-Expose-Headers", SHOWN_HEADERS)]
        return [(name.lower().encode(), value.encode("latin-1")) for name, value in shown]

    def _preflight(self, foreign: str | None, headers: Mapping[str, str]) -> Response:
        """Answer what a browser asks before it lets a foreign page ask."""
        method = headers.get("access-control-request-method", "GET")
        if foreign is None:
            return Response(status_code=204, headers={"Allow": "GET, HEAD, PUT, DELETE, OPTIONS"})
        if foreign in self.access.origins:
            allowed = {"Methods": "GET, HEAD, PUT, DELETE", "Headers": f"Authorization, Content-Type, {READ_HEADERS}"}
        elif method in READING and self.access.may_read_from(foreign):
            allowed = {"Methods": "GET, HEAD", "Headers": READ_HEADERS}
        else:
            raise HttpFault(
                403, "pages of other origins may not store or delete here: its operator can allow one", "ORIGIN"
            )
        shown = {f"Access-Control-Allow-{name}": value for name, value in allowed.items()}
        shown |= {"Access-Control-Allow-Origin": foreign, "Access-Control-Max-Age": str(PREFLIGHT_S), "Vary": "Origin"}
        return Response(status_code=204, headers=shown)
