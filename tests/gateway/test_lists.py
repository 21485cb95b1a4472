"""Lists of strangers' quilts and folders: right whatever their length, and nobody else waits for a long one."""

import json
import threading
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from economics.blob import BlobId, build_blob_id_text
from p2pnode.content.manifest import FolderBlob, FolderFile, Manifest
from p2pnode.content.manifest import read_manifest as real_read_manifest
from p2pnode.content.quilt import Entry, Index, build_patch_id
from p2pnode.gateway import contents as contents_module
from p2pnode.gateway import lists as module
from p2pnode.gateway.contents import Contents
from p2pnode.gateway.faults import HttpFault
from p2pnode.gateway.lists import ROWS_AT_ONCE, SHORT_FILES_MAX, Lists, build_page, build_patches, has_folder
from tests.gateway.raw import get
from tests.gateway.shelf import Shelf, open_shelf

ID = BlobId(bytes(32))


def folder(*paths: str, empty: tuple[str, ...] = ()) -> Manifest:
    return Manifest((FolderBlob(ID, 0),), tuple(FolderFile(path, 0, False, bytes(32), 0, 0) for path in paths), empty)


@pytest.mark.parametrize("count", [0, 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 1, 3 * ROWS_AT_ONCE])
def test_the_files_of_a_quilt_are_one_json_list(count: int) -> None:
    index = Index(tuple(Entry(number, f'ü"{number}', 0, 0, {"a": "\\"}) for number in range(count)))
    assert json.loads(build_patches(ID, index)) == [
        {"identifier": f'ü"{number}', "patch_id": build_patch_id(ID, number), "tags": {"a": "\\"}}
        for number in range(count)
    ]


def test_a_page_has_one_level_and_every_folder_is_found() -> None:
    paths = sorted("".join(parts) for parts in product(("a", "b", "a-"), ("/", "./"), ("x", "y/z")))
    made = folder(*paths, empty=("c/d", "e"))
    made.verify()
    above = {path[:at] for path in (*paths, "c/d/", "e/") for at in range(len(path)) if path[at] == "/"}
    for name in (*above, "a-x", "b", "c", "f", "x", "aa", "", "c/dd"):
        assert has_folder(made, f"{name}/") == (name in above)
    page = build_page(made, "").decode()
    for name in ("a/", "a./", "a-/", "a-./", "b/", "b./", "c/", "e/"):
        assert f'<a href="./{name}">{name}</a>' in page
    assert page.count("<tr>") == 8
    assert build_page(made, "a/").decode().count("<tr>") == 2


async def test_a_long_list_is_built_apart_from_the_loop() -> None:
    lists, built_in = Lists(), []

    def build() -> bytes:
        built_in.append(threading.get_ident())
        return b"[]"

    for files in (SHORT_FILES_MAX, SHORT_FILES_MAX + 1):
        await lists.answer(build, files=files, headers={})
    assert [thread == threading.get_ident() for thread in built_in] == [True, False]


async def test_long_lists_that_nobody_takes_are_bounded_and_short_ones_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FREE_BYTES_MAX", 10)
    monkeypatch.setattr(module, "WAITING_BYTES_MAX", 300)
    lists = Lists()
    sent: list[int] = []

    async def send(message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message.get("status", 0))

    async def send_to_nobody(message: dict[str, Any]) -> None:
        await trio.sleep_forever()

    async def answer(size: int, send: Any) -> None:
        response = await lists.answer(lambda: bytes(size), files=1, headers={})
        await response({"type": "http"}, trio.sleep_forever, send)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(answer, 100, send_to_nobody)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(HttpFault) as caught:
            await answer(100, send)
        assert (caught.value.code, sent) == (429, [])
        await answer(10, send)
        assert sent == [200, 0]
        nursery.cancel_scope.cancel()
    await answer(100, send)
    assert sent == [200, 0] * 2


async def test_folders_of_empty_folders_are_forgotten_as_any_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of a million empty ones has no file, and takes 100 MiB."""
    monkeypatch.setattr(contents_module, "THINGS_KEPT_MAX", 10)
    shelf, read = Shelf(), []
    ids = [shelf.put(Manifest((), (), tuple(f"{at}{no}" for no in range(8))).encode()) for at in "abc"]

    async def read_manifest(*args: Any, **kwargs: Any) -> Manifest:
        read.append(1)
        return await real_read_manifest(*args, **kwargs)

    monkeypatch.setattr(contents_module, "read_manifest", read_manifest)
    async with open_shelf(shelf, tmp_path) as opened:
        assert opened.services.blobs is not None
        contents = Contents(opened.services.blobs)
        for blob_id in (*ids, ids[0]):
            assert len((await contents.manifest(blob_id)).empty) == 8
    assert len(read) == 4


async def test_a_folder_of_more_paths_than_there_may_be_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents_module, "PATHS_MAX", 10)
    shelf = Shelf()
    ids = [shelf.put(Manifest((), (), tuple(f"{no:02}" for no in range(count))).encode()) for count in (10, 11)]
    async with open_shelf(shelf, tmp_path) as opened:
        urls = [f"/v1/blobs/by-folder-id/{build_blob_id_text(blob_id)}/" for blob_id in ids]
        assert [(await get(opened.port, url)).status for url in urls] == [200, 404]
