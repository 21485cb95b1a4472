"""What is inside blobs, as the gateway has it: the indexes of quilts and the manifests of folders read lately."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from economics.blob import BlobId
from p2pnode.content.contents import open_folder_file
from p2pnode.content.manifest import FolderFile, Manifest, NotAFolder, read_manifest
from p2pnode.content.quilt import Index, NotAQuilt, read_index
from p2pnode.content.views import View
from p2pnode.gateway.blobs import Blobs
from p2pnode.gateway.faults import HttpFault
from p2pnode.gateway.flights import Flights
from p2pnode.gateway.lists import Lists

THINGS_KEPT_MAX = 131_072
"""Files, tags and empty folders in all indexes kept in memory, up to some 500 bytes each."""
MANIFEST_BYTES_MAX = 8 << 20
"""Of a folder that a stranger made: some 80,000 files. Larger ones are for `p2pnode read`."""
PATHS_MAX = 131_072
"""Of its files, and of its empty folders: these would fit by the million."""
READ_AT_ONCE_MAX = 8
"""Indexes that are being read, 8 MiB each."""
PARSED_AT_ONCE_MAX = 2
"""Of these, parsed in a thread, up to 100 MiB each."""

T = TypeVar("T")


class Kept(Generic[T]):
    """What was read lately, as much as has so many things in it."""

    def __init__(self, flights: Flights[BlobId, T], count: Callable[[T], int]) -> None:
        self._flights = flights
        self._count = count
        self._kept: OrderedDict[BlobId, T] = OrderedDict()
        self._things = 0

    async def get(self, blob_id: BlobId, read: Callable[[], Awaitable[T]]) -> T:
        kept = self._kept.get(blob_id)
        if kept is not None:
            self._kept.move_to_end(blob_id)
            return kept
        found = await self._flights.get(blob_id, read)
        if blob_id not in self._kept:
            self._kept[blob_id] = found
            self._things += self._count(found)
        while self._things > THINGS_KEPT_MAX and len(self._kept) > 1:
            self._things -= self._count(self._kept.popitem(last=False)[1])
        return found


def count_index(index: Index) -> int:
    return 1 + sum(1 + len(entry.tags) for entry in index.entries)


def count_manifest(manifest: Manifest) -> int:
    return 1 + len(manifest.files) + len(manifest.empty)


class Contents:
    """Quilts and folders over one gateway's blobs."""

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs
        self.lists = Lists()
        self._indexes: Kept[Index] = Kept(Flights(blobs.nursery), count_index)
        self._manifests: Kept[Manifest] = Kept(Flights(blobs.nursery), count_manifest)
        self._reading = trio.CapacityLimiter(READ_AT_ONCE_MAX)
        self._parsing = trio.CapacityLimiter(PARSED_AT_ONCE_MAX)

    async def index(self, blob_id: BlobId) -> Index:
        """Return what is in a quilt; raises `HttpFault(404)` where the blob is none, and what `Blobs.find` does."""
        known = await self.blobs.find(blob_id)

        async def read() -> Index:
            try:
                async with self._reading:
                    return await read_index(self.blobs.view(known), parsing=self._parsing)
            except NotAQuilt as fault:
                raise HttpFault(404, str(fault), "NOT_A_QUILT") from fault

        return await self._indexes.get(blob_id, read)

    async def manifest(self, blob_id: BlobId) -> Manifest:
        """Return what is in a folder; raises `HttpFault(404)` where the blob is none, and what `Blobs.find` does."""
        known = await self.blobs.find(blob_id)

        async def read() -> Manifest:
            try:
                async with self._reading:
                    return await read_manifest(
                        self.blobs.view(known),
                        size_max=MANIFEST_BYTES_MAX,
                        paths_max=PATHS_MAX,
                        parsing=self._parsing,
                    )
            except NotAFolder as fault:
                raise HttpFault(404, str(fault), "NOT_A_FOLDER") from fault

        return await self._manifests.get(blob_id, read)

    async def file_view(self, manifest: Manifest, file: FolderFile, *, strict: bool = False) -> View:
        """Return the plain bytes of a file in a folder, whose manifest has the keys of what is sealed in it."""

        async def open_blob(blob_id: BlobId) -> View:
            return self.blobs.view(await self.blobs.find(blob_id), strict=strict)

        return await open_folder_file(open_blob, manifest, file)
