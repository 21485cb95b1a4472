"""Who may ask what: names that this gateway goes by, foreign origins, the token. Answers before any route runs."""

import hmac
from dataclasses import dataclass

from starlette.requests import Request

from p2pnode.gateway.faults import HttpFault

TOKEN_HEADER = "authorization"


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one gateway."""

    token: str
    is_loopback: bool = True
    """Whether only this machine reaches it; from elsewhere storing takes the token too."""

    def require_token(self, request: Request) -> None:
        """Raise `HttpFault(401)` unless the request shows the token as `Authorization: Bearer <token>`."""
        scheme, _, shown = request.headers.get(TOKEN_HEADER, "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(shown.strip().encode(), self.token.encode()):
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
