"""What is in a blob is told by its bytes and its key, and whatever was stored is read again as it was."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from economics.blob import BlobId
from p2pnode.content.contents import HashedView, Keys, Kind, Listed, NoKey, describe, open_content
from p2pnode.content.manifest import FolderBlob, FolderFile, Manifest
from p2pnode.content.quilt import QuiltFile, build_patch_id, build_quilt
from p2pnode.content.sealed import FRAME_BYTES, FRONT, SealedSource, WrongKey
from p2pnode.content.sources import BytesSource, Source
from p2pnode.content.views import View, read_all
from p2pnode.errors import InputError, Unavailable
from tests import reference
from tests.p2pnode.bytesview import BytesView

KEY, OTHER = bytes(range(32)), bytes(32)
LARGE = reference.content(3 * FRAME_BYTES + 5)
FILES = {"a.txt": b"first", "b/c.txt": b"", "b/d.bin": LARGE}


@dataclass
class Blobs:
    """A network that holds blobs in memory."""

    held: dict[BlobId, BytesView] = field(default_factory=dict)
    opened: list[BlobId] = field(default_factory=list)

    def put(self, source: Source | bytes, key: bytes | None = None) -> BlobId:
        plain = BytesSource(source) if isinstance(source, bytes) else source
        blob = plain if key is None else SealedSource(plain, key)
        data = blob.read(0, blob.length)
        blob_id = BlobId(blake3(data).digest())
        self.held[blob_id] = BytesView(data)
        return blob_id

    async def open(self, blob_id: BlobId) -> View:
        self.opened.append(blob_id)
        if blob_id not in self.held:
            raise Unavailable("no node has it")
        return self.held[blob_id]

    async def read(self, blob_id: BlobId, path: str | None = None, *, keys: Keys = lambda blob_id: None) -> bytes:
        return await read_all(await open_content(self.open, keys, blob_id, path), size_max=1 << 30)


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


def knows(*keys: tuple[BlobId, bytes]) -> Keys:
    return dict(keys).get


def quilt(files: dict[str, bytes] = FILES) -> Source:
    return build_quilt(
        [QuiltFile(name, BytesSource(data), {"content-type": "x"}) for name, data in files.items()]
    ).source


def folder(blobs: Blobs, *, key: bytes = b"", wrong: Sequence[str] = ()) -> Manifest:
    """A folder of FILES: the small ones in a quilt, the large one alone, all sealed where there is a key."""
    small = build_quilt([QuiltFile(name, BytesSource(data)) for name, data in FILES.items() if data is not LARGE])
    ids = [blobs.put(small.source, key or None), blobs.put(LARGE, key or None)]
    lengths = (small.source.length, len(LARGE))
    places = {entry.name: (0, entry.start) for entry in small.index.entries} | {"b/d.bin": (1, 0)}
    hashes = {path: blake3(b"wrong" if path in wrong else data).digest() for path, data in FILES.items()}
    files = [FolderFile(path, len(FILES[path]), path == "a.txt", hashes[path], *places[path]) for path in sorted(FILES)]
    return Manifest(
        tuple(FolderBlob(id_, length, key) for id_, length in zip(ids, lengths, strict=True)), tuple(files), ("b/e",)
    )


# --- bytes -------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(
        [b"", b"p2px", FRONT, FRONT + bytes(16), b"p2pq\1", b"p2pq\1\0\0\0\1\x80", b"p2pf\1", b"p2pf\1\x83"]
    )
    | st.binary(max_size=20),
    st.binary(max_size=100),
)
async def test_whatever_was_stored_is_read_as_it_was(front: bytes, rest: bytes) -> None:
    """Also bytes that begin as if they were a sealed blob, a quilt or a folder."""
    blobs = Blobs()
    data = front + rest
    blob_id = blobs.put(data)
    assert await blobs.read(blob_id) == data
    content = await describe(blobs.open, knows(), blob_id)
    assert content.kind in (Kind.BYTES, Kind.SEALED, Kind.QUILT)
    assert (await read_all(content.view, size_max=1_000), content.is_sealed) == (data, False)


async def test_a_blob_without_a_key_is_read_without_a_look_at_its_front(blobs: Blobs) -> None:
    blob_id = blobs.put(LARGE)
    view = await open_content(blobs.open, knows(), blob_id, None)
    assert (view, blobs.held[blob_id].reads) == (blobs.held[blob_id], [])


async def test_a_sealed_blob_is_opened_with_its_key_and_else_it_is_bytes(blobs: Blobs) -> None:
    blob_id = blobs.put(LARGE, KEY)
    assert await blobs.read(blob_id, keys=knows((blob_id, KEY))) == LARGE
    content = await describe(blobs.open, knows((blob_id, KEY)), blob_id)
    assert (content.kind, content.is_sealed, content.view.length) == (Kind.BYTES, True, len(LARGE))
    assert await read_all(content.view, size_max=1 << 20) == LARGE
    assert await blobs.read(blob_id) == blobs.held[blob_id].data
    without = await describe(blobs.open, knows(), blob_id)
    assert (without.kind, without.is_sealed, without.view) == (Kind.SEALED, False, blobs.held[blob_id])
    wrong = knows((blob_id, OTHER))
    with pytest.raises(WrongKey):
        await blobs.read(blob_id, keys=wrong)
    with pytest.raises(WrongKey):
        await describe(blobs.open, wrong, blob_id)


async def test_a_key_for_a_blob_that_is_not_sealed_changes_nothing(blobs: Blobs) -> None:
    """Whoever opened a link with one must go on reading the blob."""
    for data in (LARGE, b"", b"short", FRONT, bytes(24)):
        blob_id = blobs.put(data)
        keys = knows((blob_id, KEY))
        assert await blobs.read(blob_id, keys=keys) == data
        content = await describe(blobs.open, keys, blob_id)
        assert (content.kind, content.is_sealed, content.view.length) == (Kind.BYTES, False, len(data))


async def test_what_begins_as_sealed_and_has_a_length_that_no_sealed_blob_has_is_bytes(blobs: Blobs) -> None:
    for data, kind in ((FRONT, Kind.BYTES), (FRONT + bytes(15), Kind.BYTES), (FRONT + bytes(16), Kind.SEALED)):
        content = await describe(blobs.open, knows(), blobs.put(data))
        assert (content.kind, content.view.length) == (kind, len(data))


async def test_sealed_twice_is_opened_once(blobs: Blobs) -> None:
    inner = SealedSource(BytesSource(b"bytes"), OTHER)
    blob_id = blobs.put(inner, KEY)
    content = await describe(blobs.open, knows((blob_id, KEY)), blob_id)
    assert (content.kind, await read_all(content.view, size_max=100)) == (Kind.BYTES, inner.read(0, inner.length))


# --- quilts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, KEY])
async def test_a_file_in_a_quilt_is_read_by_its_name(blobs: Blobs, key: bytes | None) -> None:
    blob_id = blobs.put(quilt(), key)
    keys = knows() if key is None else knows((blob_id, key))
    assert {name: await blobs.read(blob_id, name, keys=keys) for name in FILES} == FILES
    content = await describe(blobs.open, keys, blob_id)
    assert (content.kind, content.is_sealed) == (Kind.QUILT, key is not None)
    assert content.listing() == tuple(
        Listed(name, len(data), False, {"content-type": "x"}, build_patch_id(blob_id, number))
        for number, (name, data) in enumerate(FILES.items())
    )
    assert content.index is not None
    assert await read_all(content.open_entry(content.index.at(0)), size_max=9) == b"first"
    for name in ("a", "b", "a.txt/", "/a.txt", "../a.txt", ""):
        with pytest.raises(InputError, match="the quilt has no file"):
            await blobs.read(blob_id, name, keys=keys)


# --- folders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, KEY])
async def test_a_file_in_a_folder_is_read_by_its_path(blobs: Blobs, key: bytes | None) -> None:
    """The keys of a folder's blobs are in its manifest; the home need not know them."""
    manifest = folder(blobs, key=key or b"")
    blob_id = blobs.put(manifest.encode(), key)
    keys = knows() if key is None else knows((blob_id, key))
    assert {path: await blobs.read(blob_id, path, keys=keys) for path in FILES} == FILES
    assert await blobs.read(blob_id, keys=keys) == manifest.encode()
    content = await describe(blobs.open, keys, blob_id)
    assert (content.kind, content.is_sealed, content.manifest) == (Kind.FOLDER, key is not None, manifest)
    listed = [Listed("a.txt", 5, True), Listed("b/c.txt", 0), Listed("b/d.bin", len(LARGE)), Listed("b/e/", 0)]
    assert content.listing() == tuple(listed)
    for path in ("b", "b/e", "b/", "/a.txt", "b/../a.txt", "", "\ud800"):
        with pytest.raises(InputError, match="the folder has no file"):
            await blobs.read(blob_id, path, keys=keys)


async def test_only_the_blob_of_the_wanted_file_is_opened(blobs: Blobs) -> None:
    manifest = folder(blobs)
    blob_id = blobs.put(manifest.encode())
    view = await open_content(blobs.open, knows(), blob_id, "b/d.bin")
    assert blobs.opened == [blob_id, manifest.blobs[1].blob_id]
    assert await read_all(view, start=FRAME_BYTES, stop=FRAME_BYTES + 9, size_max=9) == LARGE[FRAME_BYTES:][:9]
    assert blobs.held[manifest.blobs[1].blob_id].reads == [(FRAME_BYTES, FRAME_BYTES + 9)]


async def test_a_folder_that_lies_about_a_file_is_found_out_at_its_end(blobs: Blobs) -> None:
    blob_id = blobs.put(folder(blobs, wrong=["a.txt", "b/c.txt"]).encode())
    for path in ("a.txt", "b/c.txt"):
        view = await open_content(blobs.open, knows(), blob_id, path)
        assert isinstance(view, HashedView)

        async def write(views: list[memoryview]) -> None:
            pass

        with pytest.raises(InputError, match=f"'{path}' is not what the folder says"):
            await view.read(write)
    assert await blobs.read(blob_id, "b/d.bin") == LARGE


async def test_a_folder_that_lies_about_a_blob_or_its_key_is_refused(blobs: Blobs) -> None:
    honest = folder(blobs, key=KEY)

    async def read(blob: FolderBlob) -> bytes:
        lying = Manifest((honest.blobs[0], blob), honest.files, honest.empty)
        return await blobs.read(blobs.put(lying.encode()), "b/d.bin")

    held = honest.blobs[1]
    assert await read(held) == LARGE
    for length in (held.length + 1, held.length + FRAME_BYTES):
        with pytest.raises(InputError, match=r"the folder is wrong about the blob that 'b/d.bin' is in"):
            await read(FolderBlob(held.blob_id, length, held.key))
    with pytest.raises(InputError, match="the folder is wrong about the blob"):
        await read(FolderBlob(held.blob_id, held.length, b""))
    with pytest.raises(WrongKey):
        await read(FolderBlob(held.blob_id, held.length, OTHER))
    with pytest.raises(Unavailable):
        await read(FolderBlob(BlobId(bytes(32)), held.length, held.key))


async def test_a_large_manifest_is_bytes_for_who_says_so(blobs: Blobs) -> None:
    manifest = folder(blobs)
    blob_id = blobs.put(manifest.encode())
    content = await describe(blobs.open, knows(), blob_id, manifest_bytes_max=len(manifest.encode()) - 1)
    assert (content.kind, content.view) == (Kind.BYTES, blobs.held[blob_id])
    with pytest.raises(InputError, match="at most"):
        content.listing()


# --- what has no files -------------------------------------------------------------------------------------------


async def test_a_path_in_what_has_no_files_is_an_error_that_says_why(blobs: Blobs) -> None:
    broken = quilt().read(0, quilt().length) + b"more"
    for blob_id, message in (
        (blobs.put(LARGE), "this blob is one file, neither a quilt nor a folder: read it without a path"),
        (blobs.put(b""), "this blob is one file"),
        (blobs.put(broken), "this blob is not a quilt: the files of a quilt end at"),
        (blobs.put(b"p2pf\1" + bytes(9)), "this blob is not a folder"),
    ):
        with pytest.raises(InputError, match=message):
            await blobs.read(blob_id, "a.txt")
        with pytest.raises(InputError, match=message):
            (await describe(blobs.open, knows(), blob_id)).listing()
    with pytest.raises(NoKey, match="is sealed and its key is not known here: open the link"):
        await blobs.read(blobs.put(quilt(), KEY), "a.txt")
