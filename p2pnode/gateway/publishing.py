"""PUT /v1/blobs: the body of the request becomes a blob that the gateway's wallet keeps.

The request is judged before its body is read, the body is on the disk before anything is paid, and the answer comes
when the network owes the blob.
"""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from p2pnode.gateway import owned, quilts
from p2pnode.gateway.bodies import receive, verify_announced
from p2pnode.gateway.desk import Desk
from p2pnode.gateway.orders import BLOB_PARAMETERS, parse_content_type, parse_wanted, read_query
from p2pnode.gateway.services import Services
from p2pnode.gateway.spool import Spool

WHAT = "a blob"


def routes(services: Services) -> list[Route]:
    """Return the routes that store, list and delete: they share a wallet, and so a desk."""
    desk = Desk(services, Spool(services.home.path / "cache" / "spool"))

    async def put_blob(request: Request) -> Response:
        return await store_body(desk, request)

    blobs = Route("/v1/blobs", put_blob, methods=["PUT"], name="put_blob")
    return [blobs, *quilts.routes(desk), *owned.routes(desk)]


async def store_body(desk: Desk, request: Request) -> Response:
    desk.services.access.may_store(request)
    wanted = parse_wanted(read_query(request, BLOB_PARAMETERS), owner=desk.owner_id)
    content_type = parse_content_type(request.headers.get("content-type"))
    limit = desk.services.limits.blob_bytes_max
    announced = verify_announced(request, limit=limit, what=WHAT)
    with desk.place():
        async with desk.spool.open(announced=announced) as spooled:
            await receive(request, spooled, spooled.write, limit=limit, what=WHAT)
            answer = await desk.store(spooled, wanted, content_type=content_type)
    return JSONResponse(answer, headers={"Cache-Control": "no-store"})
