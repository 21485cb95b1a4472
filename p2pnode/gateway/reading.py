"""The routes that read: blobs, parts of them, files in quilts and folders."""

from starlette.routing import Route

from p2pnode.gateway.services import Services


def routes(services: Services) -> list[Route]:
    return []
