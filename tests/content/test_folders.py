"""Folders: the same files make the same blobs, and only what changed moves."""

import random
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from economics.blob import BlobId
from p2pnode.content import folders
from p2pnode.content.folders import MERGED_BYTES_MAX, MERGED_MIN, SMALL_BYTES_MAX, plan
from p2pnode.content.manifest import Manifest
from p2pnode.content.quilt import Index, read_index
from p2pnode.content.scan import scan
from p2pnode.content.sealed import SealedSource, SealedView
from p2pnode.content.sources import Source
from p2pnode.content.views import SliceView, View, read_all
from p2pnode.errors import InputError
from tests.content.test_quilt import MemoryView
from tests.p2pnode.bytesview import BytesView
from tests.p2pnode.shelf import Shelf, fill

KIB = 1 << 10


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{size} {seed}").randbytes(size)


class Keys:
    """Seals by the bytes alone."""

    def seal(self, source: Source) -> SealedSource:
        return SealedSource(source, blake3(source.read(0, source.length)).digest())


async def contents(shelf: Shelf, manifest: Manifest) -> dict[str, bytes]:
    """Return the bytes of each file, out of the blobs."""
    found = {}
    for file in manifest.files:
        blob = manifest.blobs[file.blob]
        view: View = BytesView(shelf.blobs[blob.blob_id])
        view = SealedView(view, blob.key) if blob.key else view
        assert view.length == blob.length
        found[file.path] = await read_all(SliceView(view, file.offset, file.length), size_max=file.length)
        assert blake3(found[file.path]).digest() == file.content_hash
    return found


def where(manifest: Manifest) -> dict[str, tuple[BlobId, int]]:
    return {file.path: (manifest.blobs[file.blob].blob_id, file.offset) for file in manifest.files}


async def test_small_files_are_one_quilt_and_large_ones_blobs_of_their_own(tmp_path: Path) -> None:
    files = {f"{at:03}": noise(10 * KIB, at) for at in range(100)}
    large = {"large": noise(SMALL_BYTES_MAX + 1), "b/large": noise(SMALL_BYTES_MAX + 2)}
    root = fill(tmp_path, {**files, **large, "b/empty": b"", "e/": b""})
    shelf = Shelf()
    manifest = shelf.store(root)
    assert await contents(shelf, manifest) == {**files, **large, "b/empty": b""}
    assert (len(manifest.blobs), len(shelf.blobs), manifest.empty) == (3, 3, ("e",))
    quilt = await read_index(MemoryView(shelf.blobs[manifest.blobs[manifest.find("000").blob].blob_id]))
    assert [entry.name for entry in quilt.entries] == sorted([*files, "b/empty"])
    assert shelf.blobs[manifest.blobs[manifest.find("large").blob].blob_id] == large["large"]


async def test_a_folder_stored_again_moves_nothing_and_after_one_change_that_file(tmp_path: Path) -> None:
    files = {f"d{at % 7}/{at:03}": noise(10 * KIB, at) for at in range(200)}
    root = fill(tmp_path, {**files, "large": noise(3 << 20)})
    shelf = Shelf()
    first = shelf.store(root)
    shelf.moved = 0
    assert shelf.store(root, first) == first
    assert shelf.store(root) == first  # resumed by content, where nothing is known of the last time
    assert shelf.moved == 0
    fill(root, {"d3/003": noise(11 * KIB, 999)})
    second = shelf.store(root, first)
    assert 11 * KIB < shelf.moved < 11 * KIB + 100
    assert (await contents(shelf, second))["d3/003"] == noise(11 * KIB, 999)
    assert where(second) == {**where(first), "d3/003": where(second)["d3/003"]}
    assert {blob.blob_id for blob in first.blobs} < {blob.blob_id for blob in second.blobs}
    shelf.moved = 0
    fill(root, {"large": noise((3 << 20) + 1)})
    assert (await contents(shelf, shelf.store(root, second)))["large"] == noise((3 << 20) + 1)
    assert shelf.moved == (3 << 20) + 1


async def test_a_file_that_is_renamed_copied_or_made_executable_does_not_move(tmp_path: Path) -> None:
    root = fill(tmp_path, {"a": noise(2 << 20), "b": noise(600 * KIB, 1), "c": noise(600 * KIB, 2)})
    shelf = Shelf()
    first = shelf.store(root)
    shelf.moved = 0
    (root / "a").rename(root / "z")
    fill(root, {"copies/b": noise(600 * KIB, 1), "copies/large": noise(2 << 20)})
    (root / "b").chmod(0o755)
    second = shelf.store(root, first)
    assert shelf.moved == 0
    assert {file.path: file.executable for file in second.files} == {
        "b": True,
        "c": False,
        "copies/b": False,
        "copies/large": False,
        "z": False,
    }
    assert second.find("copies/b").offset == second.find("b").offset == first.find("b").offset
    assert set(second.blobs) == set(first.blobs)


async def test_many_small_changes_stay_few_blobs_and_each_moves_little(tmp_path: Path) -> None:
    root = fill(tmp_path, {f"{at:03}": noise(10 * KIB, at) for at in range(200)})
    shelf = Shelf()
    manifest = shelf.store(root)
    moved = []
    for change in range(120):
        shelf.moved = 0
        fill(root, {f"{change:03}": noise(10 * KIB, 1_000 + change)})
        manifest = shelf.store(root, manifest)
        moved.append(shelf.moved)
    assert sorted(moved)[100] < 11 * KIB  # mostly the file that changed
    assert sorted(moved)[-2] < MERGED_BYTES_MAX + MERGED_MIN * 11 * KIB
    assert sorted(moved)[-1] < (1 << 20) + MERGED_BYTES_MAX  # once, when half of the first quilt is gone
    assert len(manifest.blobs) < 2 * MERGED_MIN
    live = sum(len(shelf.blobs[blob.blob_id]) for blob in manifest.blobs)
    assert live < 2 * 200 * 10 * KIB
    assert (await contents(shelf, manifest))["119"] == noise(10 * KIB, 1_119)


async def test_a_quilt_of_which_less_than_half_is_left_is_packed_anew(tmp_path: Path) -> None:
    root = fill(tmp_path, {f"{at}": noise(300 * KIB, at) for at in range(10)})
    shelf = Shelf()
    first = shelf.store(root)
    for gone in range(4):
        (root / f"{gone}").unlink()
    kept = shelf.store(root, first)
    assert [blob.blob_id for blob in kept.blobs] == [blob.blob_id for blob in first.blobs]
    for gone in range(4, 6):
        (root / f"{gone}").unlink()
    anew = shelf.store(root, kept)
    assert anew.blobs[0].length < 4 * 300 * KIB + 500
    assert await contents(shelf, anew) == {f"{at}": noise(300 * KIB, at) for at in range(6, 10)}


async def test_blobs_that_the_network_has_lost_are_stored_anew(tmp_path: Path) -> None:
    root = fill(tmp_path, {"small": noise(5), "large": noise(2 << 20)})
    shelf = Shelf()
    first = shelf.store(root)
    lost = {first.blobs[first.find("large").blob].blob_id}
    made = plan(scan(root), first, sealer=None, lost=lost)
    assert [source.name for source in made.sources] == [str(root / "large")]
    assert [blob.blob_id for blob in made.reused] == [blob.blob_id for blob in first.blobs if blob.blob_id not in lost]
    assert shelf.carry_out(made) == first


async def test_what_is_sealed_is_not_mixed_with_what_is_not(tmp_path: Path) -> None:
    files = {"a": noise(100), "b": noise(2 << 20)}
    root = fill(tmp_path, files)
    shelf = Shelf()
    plain = shelf.store(root)
    sealed = shelf.store(root, plain, sealer=Keys())
    assert [len(blob.key) for blob in sealed.blobs] == [32, 32]
    assert {blob.blob_id for blob in sealed.blobs}.isdisjoint(blob.blob_id for blob in plain.blobs)
    assert await contents(shelf, sealed) == files
    shelf.moved = 0
    assert shelf.store(root, sealed, sealer=Keys()) == sealed
    assert shelf.store(root, sealed) == plain
    assert shelf.moved == 0


async def test_quilts_have_their_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{at:02}": noise(1_000, at) for at in range(20)}
    root = fill(tmp_path, files)
    for name, value, blobs in (("QUILT_BYTES_MAX", 5 * 1_034, 4), ("FILES_MAX", 7, 3), ("INDEX_BYTES_MAX", 10 * 34, 2)):
        with monkeypatch.context() as patch:
            patch.setattr(folders, name, value)
            shelf = Shelf()
            manifest = shelf.store(root)
            assert (name, len(manifest.blobs)) == (name, blobs)
            assert await contents(shelf, manifest) == files


async def test_a_path_too_long_for_a_quilt_travels_under_its_hash(tmp_path: Path) -> None:
    long = "/".join(["x" * 200] * 6)
    shelf = Shelf()
    manifest = shelf.store(fill(tmp_path, {long: b"1", "short": b"2"}))
    assert await contents(shelf, manifest) == {long: b"1", "short": b"2"}
    index: Index = await read_index(MemoryView(shelf.blobs[manifest.blobs[0].blob_id]))
    assert [entry.name for entry in index.entries] == [f"/{blake3(b'1').hexdigest()}", "short"]


async def test_an_empty_folder_is_a_manifest_without_blobs(tmp_path: Path) -> None:
    assert Shelf().store(tmp_path) == Manifest((), (), ())


async def test_a_file_that_changes_while_it_is_sent_is_no_part_of_a_folder(tmp_path: Path) -> None:
    root = fill(tmp_path, {"a": b"1" * 100})
    made = plan(scan(root), None, sealer=None)
    fill(root, {"a": b"2" * 100})
    with pytest.raises(InputError, match="changed while it was stored: store the folder again"):
        Shelf().carry_out(made)


STEPS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c/d", "c/e", "f"]), st.none() | st.integers(0, 5)), min_size=1, max_size=6
)


@settings(max_examples=40)
@given(st.lists(STEPS, min_size=1, max_size=4))
async def test_whatever_changes_a_manifest_leads_to_the_bytes_that_are_there(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[tuple[str, int | None]]]
) -> None:
    root = tmp_path_factory.mktemp("in")
    shelf, manifest = Shelf(), None
    wanted: dict[str, bytes] = {}
    for changes in steps:
        for path, size in changes:
            if size is None:
                (root / path).unlink(missing_ok=True)
                wanted.pop(path, None)
            else:
                wanted[path] = noise((0, 1, 100, 70_000, 300_000, SMALL_BYTES_MAX + 1)[size])
                fill(root, {path: wanted[path]})
        manifest = shelf.store(root, manifest)
        assert await contents(shelf, manifest) == wanted
