"""The gateway as an ASGI application: which route answers what, and in what form errors are told."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from economics.errors import Rejected
from p2pnode.errors import NodeError
from p2pnode.gateway import openapi, publishing, reading
from p2pnode.gateway.faults import HttpFault, answer_error, answer_http_exception, answer_ours
from p2pnode.gateway.services import Services


def create_app(services: Services) -> Starlette:
    """Return the application of one gateway; its lifespan does nothing, who serves it opens and closes `services`."""
    routes: list[BaseRoute] = [*reading.routes(services), *publishing.routes(services), *openapi.routes(services)]
    return Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: answer_http_exception,
            HttpFault: answer_error,
            NodeError: answer_error,
            Rejected: answer_error,
            BaseExceptionGroup: answer_error,
            Exception: answer_ours,
        },
    )
