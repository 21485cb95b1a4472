"""Blobs by their ID in memory, and folders put there and taken from there as a network would."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio
from blake3 import blake3

from economics.blob import BlobId
from p2pnode.content.folders import Plan, plan
from p2pnode.content.keyring import Sealer
from p2pnode.content.manifest import Manifest
from p2pnode.content.scan import scan
from p2pnode.content.sources import Source
from p2pnode.content.views import View, Write, verify_range
from p2pnode.errors import Unavailable

PIECE = 50_000


@dataclass(slots=True)
class ShelfView:
    """A blob on a shelf; it can stop in the middle, or let something happen there."""

    shelf: "Shelf"
    data: bytes

    @property
    def length(self) -> int:
        return len(self.data)

    async def read(self, write: Write, *, start: int = 0, stop: int | None = None) -> None:
        end = verify_range(start, stop, self.length)
        self.shelf.reads.append((start, end))
        for at in range(start, end, PIECE):
            self.shelf.before_piece()
            view = memoryview(self.data)
            middle = min(at + PIECE // 3, end)
            await write([view[at:middle], view[middle : min(at + PIECE, end)]])


@dataclass(slots=True)
class Shelf:
    """Whoever has the ID has the bytes."""

    blobs: dict[BlobId, bytes] = field(default_factory=dict)
    moved: int = 0
    """Bytes of blobs that were not there before."""
    reads: list[tuple[int, int]] = field(default_factory=list)
    opened: list[tuple[BlobId, bytes | None]] = field(default_factory=list)
    meanwhile: Callable[[], object] = lambda: None
    """Happens before each piece of a blob."""
    pieces_left: int = 1 << 40
    """After so many the way to the shelf breaks."""

    def before_piece(self) -> None:
        self.meanwhile()
        if not self.pieces_left:
            raise Unavailable("the way broke")
        self.pieces_left -= 1

    def put(self, source: Source) -> BlobId:
        data = source.read(0, source.length)
        blob_id = BlobId(blake3(data).digest())
        if blob_id not in self.blobs:
            self.blobs[blob_id] = data
            self.moved += len(data)
        return blob_id

    def store(self, directory: Path, previous: Manifest | None = None, *, sealer: Sealer | None = None) -> Manifest:
        return self.carry_out(plan(scan(directory), previous, sealer=sealer))

    def carry_out(self, made: Plan) -> Manifest:
        manifest = made.build([self.put(source) for source in made.sources])
        assert Manifest.decode(manifest.encode()) == manifest
        return manifest

    async def open(self, blob_id: BlobId, key: bytes | None) -> View:
        await trio.lowlevel.checkpoint()
        self.opened.append((blob_id, key))
        return ShelfView(self, self.blobs[blob_id])


def tree(directory: Path) -> dict[str, object]:
    """Return all that is in a folder: bytes and whether it is executable, where a link leads, None for a folder."""
    found: dict[str, object] = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = path.readlink()
        elif path.is_dir():
            found[name] = None
        elif path.is_file():
            found[name] = (path.read_bytes(), bool(path.stat().st_mode & 0o100))
        else:
            found[name] = "special"
    return found


def fill(directory: Path, files: dict[str, bytes]) -> Path:
    """Write files into a folder; a name that ends with a slash is an empty folder."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        path = directory / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return directory
