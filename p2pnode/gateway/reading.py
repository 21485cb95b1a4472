"""The routes that read: blobs, parts of them, files in quilts and folders. Paths and parameters are Walrus' own.

Folders are not in Walrus. What is encrypted stays so: this gateway opens nothing with the keys of its home.
"""

import base64
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from economics.blob import BlobId, build_blob_id_text
from p2pnode.content.quilt import Entry, build_patch_id, parse_patch_id
from p2pnode.content.views import SliceView
from p2pnode.errors import InputError
from p2pnode.gateway.answers import UNTOLD, Resource, answer, clean_type, guess_type, name_file
from p2pnode.gateway.contents import Contents
from p2pnode.gateway.faults import HttpFault
from p2pnode.gateway.lists import build_page, build_patches, has_folder
from p2pnode.gateway.orders import bad_request, parse_flag, parse_path_id, read_query
from p2pnode.gateway.page import CONTENT_SECURITY
from p2pnode.gateway.services import Services

READ_PARAMETERS = ("strict_consistency_check", "skip_consistency_check", "filename")
NUMBER_DIGITS_MAX = 20
LISTED = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}

Endpoint = Callable[[Request], Awaitable[Response]]


def routes(services: Services) -> list[Route]:
    if services.blobs is None:
        return []
    contents = Contents(services.blobs)

    async def get_blob(request: Request) -> Response:
        return await answer_blob(contents, request)

    async def get_byte_range(request: Request) -> Response:
        return await answer_byte_range(contents, request)

    async def get_quilt_file(request: Request) -> Response:
        return await answer_quilt_file(contents, request)

    async def get_patch(request: Request) -> Response:
        return await answer_patch(contents, request)

    async def get_patches(request: Request) -> Response:
        return await answer_patches(contents, request)

    async def get_folder(request: Request) -> Response:
        read_query(request, ())
        parse_path_id(request, "folder_id")
        return move_into(request)

    async def get_folder_file(request: Request) -> Response:
        return await answer_folder_file(contents, request)

    def route(path: str, endpoint: Endpoint) -> Route:
        return Route(path, endpoint, methods=["GET"], name=endpoint.__name__)  # Starlette adds HEAD

    return [
        route("/v1/blobs/by-quilt-id/{quilt_id}/{name:path}", get_quilt_file),
        route("/v1/blobs/by-quilt-patch-id/{patch_id}", get_patch),
        route("/v1/blobs/by-folder-id/{folder_id}", get_folder),
        route("/v1/blobs/by-folder-id/{folder_id}/{path:path}", get_folder_file),
        route("/v1/blobs/{blob_id}/byte-range", get_byte_range),
        route("/v1/blobs/{blob_id}", get_blob),
        route("/v1/quilts/{quilt_id}/patches", get_patches),
    ]


# --- blobs -----------------------------------------------------------------------------------------------------------


def parse_check(query: dict[str, str]) -> bool:
    """Return whether a read is to be strict. What is fetched is always checked, so that skipping it has no effect."""
    strict = parse_flag("strict_consistency_check", query.get("strict_consistency_check", "false"))
    skip = parse_flag("skip_consistency_check", query.get("skip_consistency_check", "false"))
    if strict and skip:
        raise bad_request("strict_consistency_check and skip_consistency_check exclude each other")
    return strict


def named(resource: Resource, query: dict[str, str]) -> Resource:
    """Return the resource to be saved as `filename`, of that name's type where none was stored."""
    name = query.get("filename")
    if name is None:
        return resource
    if not 1 <= len(name) <= 255 or not name.isprintable():
        raise bad_request("filename has 1 to 255 printable characters")
    kind = guess_type(name) if resource.content_type == UNTOLD else resource.content_type
    return Resource(resource.view, resource.tag, kind, {**resource.headers, "Content-Disposition": name_file(name)})


async def answer_blob(contents: Contents, request: Request) -> Response:
    query = read_query(request, READ_PARAMETERS)
    strict = parse_check(query)
    blob_id = parse_path_id(request, "blob_id")
    known = await contents.blobs.find(blob_id)
    view = contents.blobs.view(known, strict=strict)
    resource = Resource(view, build_blob_id_text(blob_id), clean_type(known.content_type))
    return await answer(request, named(resource, query))


def parse_count(query: dict[str, str], name: str) -> int:
    text = query.get(name, "")
    if not text.isascii() or not text.isdigit() or len(text) > NUMBER_DIGITS_MAX:
        raise bad_request(f"{name} is a number of bytes", "INVALID_BYTE_RANGE")
    return int(text)


async def answer_byte_range(contents: Contents, request: Request) -> Response:
    """Answer a part of a blob as a resource of its own: 200, so that any cache keeps it."""
    query = read_query(request, ("start", "length"))
    start, length = parse_count(query, "start"), parse_count(query, "length")
    blob_id = parse_path_id(request, "blob_id")
    known = await contents.blobs.find(blob_id)
    if not length or start + length > known.header.length:
        raise bad_request(
            f"bytes {start} to {start + length} are not in the blob, which has {known.header.length}; "
            "length is at least 1",
            "INVALID_BYTE_RANGE",
        )
    view = SliceView(contents.blobs.view(known), start, length)
    return await answer(request, Resource(view, f"{build_blob_id_text(blob_id)}-{start}-{length}"))


# --- quilts ----------------------------------------------------------------------------------------------------------


async def answer_quilt_file(contents: Contents, request: Request) -> Response:
    query = read_query(request, READ_PARAMETERS)
    blob_id = parse_path_id(request, "quilt_id")
    index = await contents.index(blob_id)
    try:
        entry = index.find(request.path_params["name"])
    except InputError as fault:
        raise HttpFault(404, str(fault), "QUILT_PATCH_NOT_FOUND") from fault
    return await answer_entry(contents, request, blob_id, entry, query)


async def answer_patch(contents: Contents, request: Request) -> Response:
    query = read_query(request, READ_PARAMETERS)
    blob_id, number = parse_patch_id(request.path_params["patch_id"])
    index = await contents.index(blob_id)
    try:
        entry = index.at(number)
    except InputError as fault:
        raise HttpFault(404, str(fault), "QUILT_PATCH_NOT_FOUND") from fault
    return await answer_entry(contents, request, blob_id, entry, query)


async def answer_entry(
    contents: Contents, request: Request, blob_id: BlobId, entry: Entry, query: dict[str, str]
) -> Response:
    strict = parse_check(query)
    known = await contents.blobs.find(blob_id)
    view = SliceView(contents.blobs.view(known, strict=strict), entry.start, entry.length)
    kind = clean_type(entry.tags["content-type"]) if "content-type" in entry.tags else guess_type(entry.name)
    headers = {"X-Quilt-Patch-Identifier": quote(entry.name, safe="/ !#$&'()*+,:;=?@[]~")}
    resource = Resource(view, build_patch_id(blob_id, entry.number), kind, headers)
    return await answer(request, named(resource, query))


async def answer_patches(contents: Contents, request: Request) -> Response:
    read_query(request, ())
    blob_id = parse_path_id(request, "quilt_id")
    index = await contents.index(blob_id)
    return await contents.lists.answer(
        lambda: build_patches(blob_id, index),
        files=len(index.entries),
        headers={**LISTED, "Content-Type": "application/json"},
    )


# --- folders ---------------------------------------------------------------------------------------------------------


async def answer_folder_file(contents: Contents, request: Request) -> Response:
    """Answer a file of a folder; of a folder in it its index.html, or a page that lists it."""
    query = read_query(request, READ_PARAMETERS)
    strict = parse_check(query)
    folder_id, path = parse_path_id(request, "folder_id"), request.path_params["path"]
    manifest = await contents.manifest(folder_id)
    wanted = f"{path}index.html" if not path or path.endswith("/") else path
    try:
        file = manifest.find(wanted)
    except InputError as fault:
        if path and not path.endswith("/") and has_folder(manifest, f"{path}/"):
            return move_into(request)
        if wanted != path and (not path or has_folder(manifest, path)):
            return await contents.lists.answer(
                lambda: build_page(manifest, path),
                files=len(manifest.files) + len(manifest.empty),
                headers={
                    **LISTED,
                    "Content-Security-Policy": CONTENT_SECURITY,
                    "Content-Type": "text/html; charset=utf-8",
                },
            )
        raise HttpFault(404, f"the folder has no file {path[:200]!r}", "FILE_NOT_FOUND") from fault
    view = await contents.file_view(manifest, file, strict=strict)
    tag = base64.urlsafe_b64encode(file.content_hash).rstrip(b"=").decode()
    return await answer(request, named(Resource(view, tag, guess_type(wanted)), query))


def move_into(request: Request) -> Response:
    """Send who asks for a folder to the same path with a slash, to which the links on its page are relative.

    The last part of the path goes back as it came: decoded, `x:y` would be another scheme and `a?b` a query.
    """
    last = request.scope["raw_path"].rpartition(b"/")[2].decode("ascii")
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"./{last}/{query}", 307, {"Cache-Control": "no-store"})
