"""What is in quilts and folders, as JSON and as pages. Long lists are built apart from the loop and kept few in memory.

Who stored a quilt or a folder may be anybody: one of 65,535 files takes a third of a second and 15 MB to list.
"""

import html
import json
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import trio
from starlette.responses import Response

from economics.blob import BlobId
from p2pnode.content.manifest import FolderFile, Manifest
from p2pnode.content.quilt import Index, build_patch_id
from p2pnode.gateway.faults import RETRY_AFTER_S, HttpFault
from p2pnode.gateway.page import STYLE

LISTED_MAX = 10_000
"""Of one level of a folder on its page."""
SHORT_FILES_MAX = 256
"""Listed in place, in 2 ms: nobody waits for the long lists of others."""
ROWS_AT_ONCE = 256
"""Turned into JSON in one call, which lets no other thread run."""
FREE_BYTES_MAX = 1 << 20
"""A list of so many bytes is no more than any other answer has in memory."""
WAITING_BYTES_MAX = 64 << 20
"""Of longer ones on their way to clients, which may take their time."""

T = TypeVar("T")


class Lists:
    """Builds lists, one long one at a time, and knows how many bytes of them wait for clients."""

    def __init__(self) -> None:
        self.waiting_bytes = 0
        self._building = trio.CapacityLimiter(1)

    async def answer(self, build: Callable[[], bytes], *, files: int, headers: Mapping[str, str]) -> Response:
        """Return the answer with the list that `build` makes of so many files."""
        if files <= SHORT_FILES_MAX:
            body = build()
        else:
            body = await trio.to_thread.run_sync(build, limiter=self._building)
        return _Listed(self, body, headers)


class _Listed(Response):
    def __init__(self, lists: Lists, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(body, headers=dict(headers))
        self._lists = lists

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it; raises `HttpFault(429)` where too many long ones are on their way."""
        size = len(self.body) if len(self.body) > FREE_BYTES_MAX else 0
        if size and self._lists.waiting_bytes + size > WAITING_BYTES_MAX:
            text = "too many long lists are on their way to others: try again later"
            raise HttpFault(429, text, "BUSY", {"Retry-After": str(RETRY_AFTER_S)})
        self._lists.waiting_bytes += size
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._lists.waiting_bytes -= size


# --- quilts ----------------------------------------------------------------------------------------------------------


def build_patches(blob_id: BlobId, index: Index) -> bytes:
    """Return the JSON that names the files of a quilt."""
    pieces = []
    for at in range(0, len(index.entries), ROWS_AT_ONCE):
        rows = [
            {"identifier": entry.name, "patch_id": build_patch_id(blob_id, entry.number), "tags": dict(entry.tags)}
            for entry in index.entries[at : at + ROWS_AT_ONCE]
        ]
        pieces.append(json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()[1:-1])
    return b"[" + b",".join(pieces) + b"]"


# --- folders ---------------------------------------------------------------------------------------------------------


def find_below(things: Sequence[T], path_of: Callable[[T], str], prefix: str) -> Iterator[T]:
    """Yield those whose path begins with a prefix, out of some that ascend by their path's UTF-8 bytes."""
    wanted = prefix.encode("utf-8", "surrogatepass")
    at = bisect_left(things, wanted, key=lambda thing: path_of(thing).encode("utf-8"))
    while at < len(things) and path_of(things[at]).startswith(prefix):
        yield things[at]
        at += 1


def _path_of(file: FolderFile) -> str:
    return file.path


def has_folder(manifest: Manifest, prefix: str) -> bool:
    """Return whether a folder has one of this path, which ends in a slash."""
    path = prefix[:-1]
    return (
        any(True for _ in find_below(manifest.files, _path_of, prefix))
        or any(True for _ in find_below(manifest.empty, str, prefix))
        or next(find_below(manifest.empty, str, path), None) == path
    )


def build_page(manifest: Manifest, prefix: str) -> bytes:
    """Return a page with the files and folders of one level."""
    names: dict[str, int | None] = {}
    for file in find_below(manifest.files, _path_of, prefix):
        name, slash, _ = file.path[len(prefix) :].partition("/")
        names[name + slash] = None if slash else file.length
    for path in find_below(manifest.empty, str, prefix):
        names[path[len(prefix) :].partition("/")[0] + "/"] = None
    rows = [
        f'<tr><td><a href="./{html.escape(quote(name))}">{html.escape(name)}</a></td>'
        f"<td>{'' if length is None else f'{length} bytes'}</td></tr>"
        for name, length in list(names.items())[:LISTED_MAX]
    ]
    if len(names) > LISTED_MAX:
        rows.append(f"<tr><td>and {len(names) - LISTED_MAX} more</td></tr>")
    up = '<p><a href="../">up</a></p>' if prefix else ""
    title = html.escape(f"/{prefix}")
    page = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n<style>{STYLE}</style>\n'
        f"<h1>{title}</h1>\n{up}<table>{''.join(rows)}</table>\n</html>\n"
    )
    return page.encode()
