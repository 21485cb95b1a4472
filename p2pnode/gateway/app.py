"""The gateway as an ASGI application: which route answers what, and in what form errors are told."""

from collections.abc import MutableMapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from economics.errors import Rejected
from p2pnode.errors import NodeError
from p2pnode.gateway import about, openapi, publishing, reading
from p2pnode.gateway.access import READING, App, Guard
from p2pnode.gateway.faults import (
    RETRY_AFTER_S,
    HttpFault,
    answer_error,
    answer_http_exception,
    answer_ours,
    build_response,
)
from p2pnode.gateway.services import Services


def create_app(services: Services) -> App:
    """Return the application of one gateway; its lifespan does nothing, who serves it opens and closes `services`."""
    routes: list[BaseRoute] = [
        *about.routes(services),
        *reading.routes(services),
        *publishing.routes(services),
        *openapi.routes(services),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: answer_http_exception,
            HttpFault: answer_error,
            NodeError: answer_error,
            Rejected: answer_error,
            ExceptionGroup: answer_error,
            Exception: answer_ours,
        },
    )
    app.router.redirect_slashes = False  # a path that is nearly one of ours is none
    return Guard(Turnstile(app, services), services.access)


class Turnstile:
    """The application, for so many who read at once; uploads count their own places."""

    def __init__(self, app: App, services: Services) -> None:
        self.app = app
        self.health = services.health
        self.limits = services.limits

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/") or scope["method"] not in READING:
            await self.app(scope, receive, send)
            return
        if self.health.downloads >= self.limits.downloads_max:
            text = f"{self.health.downloads} downloads are under way, and no more are taken at once: try again later"
            fault = HttpFault(429, text, "BUSY", {"Retry-After": str(RETRY_AFTER_S)})
            await build_response(fault)(scope, receive, send)
            return
        self.health.downloads += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.health.downloads -= 1
