"""Restoring: a folder becomes what its manifest says, whatever was there; nothing outside is touched, nothing lost."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from economics.blob import BlobId
from p2pnode.content import placing
from p2pnode.content.beneath import Below, Blocked
from p2pnode.content.landing import part_of
from p2pnode.content.manifest import FolderBlob, FolderFile, Manifest
from p2pnode.content.placing import Restored
from p2pnode.content.restore import BLOBS_AT_ONCE, restore
from p2pnode.content.views import View
from p2pnode.errors import InconsistentBlob, InputError, SpaceError, Unavailable
from tests.content.test_folders import noise
from tests.p2pnode.shelf import Shelf, fill, tree

LARGE = 3 << 20


def make(tmp_path: Path, files: dict[str, bytes]) -> tuple[Shelf, Manifest, Path]:
    """Return a shelf that has a folder of these files, its manifest, and where to restore it."""
    shelf = Shelf()
    return shelf, shelf.store(fill(tmp_path / "in", files)), tmp_path / "out"


def lying(path: str, data: bytes, said: bytes) -> tuple[Shelf, Manifest]:
    """Return a shelf with a blob, and a manifest that says it is another content."""
    blob_id = BlobId(blake3(data).digest())
    file = FolderFile(path, len(data), False, blake3(said).digest(), 0, 0)
    return Shelf({blob_id: data}), Manifest((FolderBlob(blob_id, len(data)),), (file,))


FILES = {"a": b"1", "b/c": noise(30_000), "b/d/e": b"", "large": noise(LARGE), "n/": b"", "b/\U0001f600 x": b"2"}


async def test_a_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    shelf, manifest, out = make(tmp_path, FILES)
    (tmp_path / "in/a").chmod(0o755)
    manifest = shelf.store(tmp_path / "in", manifest)
    said: list[tuple[int, int]] = []
    done = await restore(manifest, out, shelf.open, report=lambda *now: said.append(now))
    total = 1 + 30_000 + LARGE + 1
    assert done == Restored(kept=0, copied=0, fetched=5, removed=0, fetched_bytes=total)
    assert tree(out) == tree(tmp_path / "in")
    assert said[-1] == (total, total)
    assert said == sorted(said)
    shelf.opened.clear()
    assert await restore(manifest, out, shelf.open) == Restored(5, 0, 0, 0, 0)
    assert shelf.opened == []


async def test_only_what_differs_is_fetched_and_strangers_go_if_asked(tmp_path: Path) -> None:
    shelf, manifest, out = make(tmp_path, FILES)
    await restore(manifest, out, shelf.open)
    fill(out, {"b/c": noise(30_000, 1), "stranger": b"s", "b/deep/er/x": b"y", "n/full": b"z"})
    (out / "large").chmod(0o755)
    os.mkfifo(out / "b/pipe")
    shelf.reads.clear()
    assert await restore(manifest, out, shelf.open) == Restored(4, 0, 1, 0, 30_000)
    assert sum(stop - start for start, stop in shelf.reads) == 30_000
    assert (out / "stranger").read_bytes() == b"s"
    # "stranger", "b/deep" and all in it, "b/pipe", "n/full"
    assert await restore(manifest, out, shelf.open, delete=True) == Restored(5, 0, 0, 4, 0)
    assert tree(out) == tree(tmp_path / "in")


async def test_a_file_that_was_renamed_copied_or_swapped_is_not_fetched(tmp_path: Path) -> None:
    shelf, manifest, out = make(tmp_path, {"a": noise(LARGE), "b": noise(LARGE, 1), "c": noise(10), "d": noise(LARGE)})
    done = await restore(manifest, out, shelf.open)
    assert done == Restored(0, 1, 3, 0, 2 * LARGE + 10)  # of "a" and "d", one
    for old, new in (("a", "x"), ("b", "a"), ("x", "b"), ("c", "elsewhere")):
        (out / old).rename(out / new)
    (out / "d").unlink()
    shelf.opened.clear()
    assert await restore(manifest, out, shelf.open, delete=True) == Restored(0, 4, 0, 1, 0)
    assert shelf.opened == []
    assert tree(out) == tree(tmp_path / "in")


async def test_files_near_each_other_are_read_in_one_go(tmp_path: Path) -> None:
    shelf, manifest, out = make(tmp_path, {f"{at:03}": noise(5_000, at) for at in range(200)})
    await restore(manifest, out, shelf.open)
    first, last = manifest.find("000"), manifest.find("199")
    assert shelf.reads == [(first.offset, last.offset + last.length)]
    for name in ("010", "020", "150"):
        (out / name).unlink()
    shelf.reads.clear()
    assert (await restore(manifest, out, shelf.open)).fetched == 3
    ends = [(manifest.find(name).offset, manifest.find(name).offset + 5_000) for name in ("010", "020", "150")]
    assert shelf.reads == [(ends[0][0], ends[1][1]), ends[2]]


async def test_one_blob_is_fetched_while_another_keeps_waiting(tmp_path: Path) -> None:
    shelf, manifest, out = make(tmp_path, {str(at): noise(LARGE, at) for at in range(5)})
    waiting, most = 0, 0

    async def open_slowly(blob_id: BlobId, key: bytes | None) -> View:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await trio.testing.wait_all_tasks_blocked()
        waiting -= 1
        return await shelf.open(blob_id, key)

    assert (await restore(manifest, out, open_slowly)).fetched == 5
    assert most == BLOBS_AT_ONCE
    assert tree(out) == tree(tmp_path / "in")


@pytest.mark.parametrize("overlap", [0, 1, 50])
async def test_files_that_overlap_in_a_blob_are_each_right(tmp_path: Path, overlap: int) -> None:
    data = noise(100)
    blob = FolderBlob(BlobId(blake3(data).digest()), 100)
    spans = [("a", 0, 60), ("b", 60 - overlap, 100), ("c", 60 - overlap, 70), ("d", 0, 100)]
    manifest = Manifest(
        (blob,),
        tuple(FolderFile(p, j - i, False, blake3(data[i:j]).digest(), 0, i) for p, i, j in spans),
    )
    await restore(manifest, tmp_path, Shelf({blob.blob_id: data}).open)
    assert tree(tmp_path) == {path: (data[start:stop], False) for path, start, stop in spans}


@settings(max_examples=30)
@given(
    st.dictionaries(st.sampled_from(["a", "b/c", "b/d", "e/f/g", "h"]), st.integers(0, 4), max_size=5),
    st.dictionaries(st.sampled_from(["a/x", "b", "b/c", "b/d", "e/f", "h", "z/"]), st.integers(0, 4), max_size=4),
)
async def test_whatever_is_there_a_mirror_becomes_the_folder(
    tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, int], there: dict[str, int]
) -> None:
    base = tmp_path_factory.mktemp("mirror")
    sizes = (0, 1, 3_000, 300_000, (1 << 20) + 5)
    shelf, manifest, out = make(base, {path: noise(sizes[size]) for path, size in wanted.items()})
    out.mkdir()
    for path, size in there.items():
        try:
            fill(out, {path: noise(sizes[size])})
        except OSError:
            continue
    await restore(manifest, out, shelf.open, delete=True)
    assert tree(out) == tree(base / "in")


class TestInterrupted:
    async def test_a_large_file_goes_on_where_it_stopped(self, tmp_path: Path) -> None:
        shelf, manifest, out = make(tmp_path, {"d/large": noise(LARGE)})
        shelf.pieces_left = 40
        with pytest.raises(Unavailable):
            await restore(manifest, out, shelf.open)
        part = out / "/".join(part_of(manifest.find("d/large")))
        assert (part.stat().st_size, list((out / "d").iterdir())) == (40 * 50_000, [part])
        shelf.pieces_left = 1_000
        shelf.reads.clear()
        done = await restore(manifest, out, shelf.open)
        assert done == Restored(0, 0, 1, 0, LARGE - 40 * 50_000)
        assert shelf.reads == [(40 * 50_000, LARGE)]
        assert tree(out) == tree(tmp_path / "in")

    async def test_a_part_that_is_whole_is_not_fetched(self, tmp_path: Path) -> None:
        shelf, manifest, out = make(tmp_path, {"large": noise(LARGE)})
        fill(out, {part_of(manifest.files[0])[1]: noise(LARGE)})
        assert await restore(manifest, out, shelf.open) == Restored(0, 0, 1, 0, 0)
        assert (tree(out), shelf.reads) == (tree(tmp_path / "in"), [])

    @pytest.mark.parametrize("part", [noise(2 << 20, 5), noise(LARGE, 5), bytes(LARGE), noise(LARGE) + b"x", b"x"])
    async def test_a_part_with_other_bytes_is_fetched_whole(self, tmp_path: Path, part: bytes) -> None:
        shelf, manifest, out = make(tmp_path, {"large": noise(LARGE), "z": noise(LARGE, 2)})
        fill(out, {part_of(manifest.files[0])[1]: part})
        done = await restore(manifest, out, shelf.open)
        assert (done.fetched, shelf.reads[-1]) == (2, (0, LARGE))
        assert tree(out) == tree(tmp_path / "in")

    async def test_a_part_that_is_a_link_or_has_another_name_is_not_written_to(self, tmp_path: Path) -> None:
        shelf, manifest, out = make(tmp_path, {"large": noise(LARGE), "small": noise(9)})
        victims = fill(tmp_path / "victims", {"hard": noise(LARGE)[: 2 << 20], "soft": b"v", "small": b"w"})
        fill(out, {})
        (out / part_of(manifest.find("large"))[1]).hardlink_to(victims / "hard")
        (out / part_of(manifest.find("small"))[1]).symlink_to(victims / "small")
        before = tree(victims)
        assert (await restore(manifest, out, shelf.open)).fetched_bytes == LARGE + 9
        assert (tree(out), tree(victims)) == (tree(tmp_path / "in"), before)

    async def test_two_at_once_are_refused(self, tmp_path: Path) -> None:
        shelf, manifest, out = make(tmp_path, {"a": b"1"})
        out.mkdir()
        with Below(out) as other:
            other.lock()
            with pytest.raises(InputError, match="another p2pnode is writing into"):
                await restore(manifest, out, shelf.open)
        await restore(manifest, out, shelf.open)


class TestInTheWay:
    """What is where a file or a folder belongs."""

    async def refuse(self, tmp_path: Path, shelf: Shelf, manifest: Manifest, match: str) -> None:
        before = tree(tmp_path)
        with pytest.raises(Blocked, match=match):
            await restore(manifest, tmp_path / "out", shelf.open)
        assert (tree(tmp_path), shelf.opened) == (before, [])

    async def test_a_symlinked_folder_is_not_followed(self, tmp_path: Path) -> None:
        shelf, manifest, out = make(tmp_path, {"a/b/c": b"1", "a/b/keep": b"2", "z": b"3"})
        outside = fill(tmp_path / "outside", {"c": b"mine", "keep": b"mine"})
        fill(out, {"a/": b""})
        (out / "a/b").symlink_to(outside)
        await self.refuse(tmp_path, shelf, manifest, "out/a/b is a link or a file, where a folder is wanted")
        await restore(manifest, out, shelf.open, delete=True)
        assert tree(out) == tree(tmp_path / "in")
        assert tree(outside) == {"c": (b"mine", False), "keep": (b"mine", False)}

    async def test_an_empty_folder_is_not_made_behind_a_link(self, tmp_path: Path) -> None:
        shelf, manifest, out = make(tmp_path, {"a/b/": b"", "c/": b""})
        outside = fill(tmp_path / "outside", {})
        fill(out, {})
        (out / "a").symlink_to(outside)
        await self.refuse(tmp_path, shelf, manifest, "out/a is a link or a file")
        (out / "a").unlink()
        (out / "c").symlink_to(outside)
        await self.refuse(tmp_path, shelf, manifest, "out/c is in the way of a folder")
        await restore(manifest, out, shelf.open, delete=True)
        assert (tree(out), tree(outside)) == (tree(tmp_path / "in"), {})

    @pytest.mark.parametrize("kind", ["symlink", "dangling", "fifo", "hard link"])
    async def test_what_is_in_a_files_place_is_replaced_and_not_written_to(self, tmp_path: Path, kind: str) -> None:
        shelf, manifest, out = make(tmp_path, {"a": noise(5_000)})
        outside = fill(tmp_path / "outside", {"victim": noise(5_000, 1)})
        fill(out, {})
        match kind:
            case "symlink":
                (out / "a").symlink_to(outside / "victim")
            case "dangling":
                (out / "a").symlink_to(outside / "none")
            case "fifo":
                os.mkfifo(out / "a")
            case _:
                (out / "a").hardlink_to(outside / "victim")
        await restore(manifest, out, shelf.open)
        assert tree(out) == tree(tmp_path / "in")
        assert tree(outside) == {"victim": (noise(5_000, 1), False)}

    async def test_a_symlink_to_the_right_bytes_is_not_the_file(self, tmp_path: Path) -> None:
        shelf, manifest, out = make(tmp_path, {"a": noise(5_000)})
        fill(out, {})
        (out / "a").symlink_to(tmp_path / "in/a")
        assert (await restore(manifest, out, shelf.open)).fetched == 1
        assert not (out / "a").is_symlink()

    async def test_a_folder_in_a_files_place_goes_only_if_asked(self, tmp_path: Path) -> None:
        shelf, manifest, out = make(tmp_path, {"a": b"1"})
        outside = fill(tmp_path / "outside", {"x": b"y"})
        fill(out, {"a/mine": b"2", "a/deep/er/x": b"3"})
        (out / "a/link").symlink_to(outside)
        await self.refuse(tmp_path, shelf, manifest, "out/a is a folder, where a file belongs")
        await restore(manifest, out, shelf.open, delete=True)
        assert (tree(out), tree(outside)) == ({"a": (b"1", False)}, {"x": (b"y", False)})

    async def test_a_file_in_a_folders_place_goes_only_if_asked(self, tmp_path: Path) -> None:
        shelf, manifest, out = make(tmp_path, {"a/b": b"1", "a/c": b"1"})
        fill(out, {"a": b"mine"})
        await self.refuse(tmp_path, shelf, manifest, "out/a is a link or a file")
        await restore(manifest, out, shelf.open, delete=True)
        assert tree(out) == tree(tmp_path / "in")

    async def test_a_file_with_another_name_elsewhere_keeps_its_mode_there(self, tmp_path: Path) -> None:
        shelf, _, out = make(tmp_path, {"a": b"#!"})
        (tmp_path / "in/a").chmod(0o755)
        manifest = shelf.store(tmp_path / "in")
        other = fill(tmp_path / "other", {"a": b"#!"})
        fill(out, {})
        (out / "a").hardlink_to(other / "a")
        assert await restore(manifest, out, shelf.open) == Restored(0, 1, 0, 0, 0)
        assert (tree(out), tree(other)) == ({"a": (b"#!", True)}, {"a": (b"#!", False)})

    async def test_strangers_that_are_links_go_and_what_they_lead_to_stays(self, tmp_path: Path) -> None:
        shelf, manifest, out = make(tmp_path, {"a": b"1"})
        outside = fill(tmp_path / "outside", {"x/y": b"z"})
        fill(out, {"own/": b""})
        (out / "file").symlink_to(outside / "x/y")
        (out / "folder").symlink_to(outside)
        (out / "own/folder").symlink_to(outside / "x")
        assert (await restore(manifest, out, shelf.open, delete=True)).removed == 3
        assert tree(out) == tree(tmp_path / "in")
        assert (outside / "x/y").read_bytes() == b"z"


@pytest.mark.parametrize("files", [{"a": b"1"}, {"own": b"a file"}, {"own/keys/x": b"1"}])
async def test_a_mirror_removes_no_keys(tmp_path: Path, files: dict[str, bytes]) -> None:
    shelf, manifest, out = make(tmp_path, files)
    for key in ("owner.key", "seal.secret"):
        fill(out, {f"own/keys/{key}": b"secret"})
        with pytest.raises(Blocked, match=f"out/own/keys/{key} is a key of p2pnode, and would be removed"):
            await restore(manifest, out, shelf.open, delete=True)
        assert (out / "own/keys" / key).read_bytes() == b"secret"
        (out / "own/keys" / key).rename(tmp_path / key)
    await restore(manifest, out, shelf.open, delete=True)
    assert tree(out) == tree(tmp_path / "in")


@pytest.mark.parametrize("delete", [False, True])
async def test_a_folder_replaces_no_keys(tmp_path: Path, delete: bool) -> None:
    shelf, manifest = lying("keys/owner.key", b"another's", b"another's")
    fill(tmp_path, {"keys/owner.key": b"mine"})
    with pytest.raises(Blocked, match=r"keys/owner.key is a key of p2pnode, and would be replaced"):
        await restore(manifest, tmp_path, shelf.open, delete=delete)
    assert tree(tmp_path) == {"keys": None, "keys/owner.key": (b"mine", False)}


class TestPlantedMeanwhile:
    """Another process of the same user plants links between two pieces."""

    @pytest.mark.parametrize("delete", [False, True])
    async def test_a_link_that_is_planted_in_a_folders_place_leads_nowhere(self, tmp_path: Path, delete: bool) -> None:
        shelf, manifest, out = make(tmp_path, {"a/1": noise(100_000), "a/2": noise(100_000, 1), "b/3": noise(9)})
        outside = fill(tmp_path / "outside", {"2": b"mine", "3": b"mine"})

        def plant() -> None:
            if (out / "a/1").exists() and not (out / "a").is_symlink():
                (out / "a").rename(tmp_path / "moved")
                (out / "a").symlink_to(outside)
                (out / "b").symlink_to(outside)

        shelf.meanwhile = plant
        if delete:
            await restore(manifest, out, shelf.open, delete=True)
            assert set(tree(out)) >= {"a/2", "b/3"}
        else:
            with pytest.raises(Blocked, match="is a link or a file"):
                await restore(manifest, out, shelf.open)
        assert tree(outside) == {"2": (b"mine", False), "3": (b"mine", False)}

    async def test_a_link_that_is_planted_in_a_files_place_is_replaced(self, tmp_path: Path) -> None:
        shelf, manifest, out = make(tmp_path, {"a": noise(100_000), "b": noise(100_000, 1)})
        outside = fill(tmp_path / "outside", {"victim": b"mine"})

        def plant() -> None:
            if not (out / "b").is_symlink():
                (out / "b").symlink_to(outside / "victim")

        shelf.meanwhile = plant
        await restore(manifest, out, shelf.open)
        assert (tree(out), tree(outside)) == (tree(tmp_path / "in"), {"victim": (b"mine", False)})

    async def test_a_folder_that_is_planted_in_a_files_place_is_no_harm(self, tmp_path: Path) -> None:
        shelf, manifest, out = make(tmp_path, {"a": noise(100_000)})
        shelf.meanwhile = lambda: fill(out, {"a/x": b""})
        with pytest.raises(Blocked, match="out/a is a folder, where a file belongs"):
            await restore(manifest, out, shelf.open)
        shelf.meanwhile = lambda: None
        await restore(manifest, out, shelf.open, delete=True)
        assert tree(out) == tree(tmp_path / "in")


class TestLies:
    async def test_other_bytes_than_the_manifest_says_never_get_a_name(self, tmp_path: Path) -> None:
        shelf, manifest = lying("d/a", noise(LARGE), noise(LARGE, 1))
        with pytest.raises(InconsistentBlob, match="1 of 1 files are not what the folder's writer said of them"):
            await restore(manifest, tmp_path, shelf.open)
        assert tree(tmp_path) == {"d": None}

    async def test_one_lie_does_not_cost_the_other_files_and_nothing_is_removed(self, tmp_path: Path) -> None:
        shelf, manifest, out = make(tmp_path, {"a": noise(50), "b": noise(60), "c": b"", "d": noise(60)})
        files = [replace(file, content_hash=bytes(32)) if file.path in "bcd" else file for file in manifest.files]
        fill(out, {"stranger": b"s", "b": b"old"})
        with pytest.raises(InconsistentBlob, match=r"3 of 4 files .* such as 'c'"):
            await restore(replace(manifest, files=tuple(files)), out, shelf.open, delete=True)
        assert tree(out) == {"a": (noise(50), False), "b": (b"old", False), "stranger": (b"s", False)}

    async def test_a_blob_of_another_length_is_not_read(self, tmp_path: Path) -> None:
        shelf, manifest = lying("a", noise(10), noise(10))
        bad = replace(manifest, blobs=(replace(manifest.blobs[0], length=11),))
        with pytest.raises(InconsistentBlob, match="has 10 bytes, its manifest says 11"):
            await restore(bad, tmp_path, shelf.open)
        assert (shelf.reads, tree(tmp_path)) == ([], {})

    @pytest.mark.parametrize("path", ["../a", "/a", "a/../../b", "a\0b", "", ".p2pnode-part", "a/x.p2pnode-part/b"])
    async def test_a_manifest_that_was_never_checked_is_checked(self, tmp_path: Path, path: str) -> None:
        shelf, manifest = lying(path, b"1", b"1")
        for bad in (manifest, Manifest((), (), (path,))):
            with pytest.raises(InputError, match=r"not a folder|only unfinished downloads"):
                await restore(bad, tmp_path / "out", shelf.open)
        assert tree(tmp_path) == {}


async def test_paths_that_are_one_to_the_disk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for files, shown in (
        ({"README": b"1", "readme": b"2"}, "readme"),
        ({"A": b"1", "a/b": b"2"}, "a"),
        ({"caf\u00e9": b"1", "cafe\u0301": b"2"}, "caf\u00e9"),
    ):
        base = tmp_path / shown
        shelf, manifest, out = make(base, files)
        await restore(manifest, out, shelf.open)
        assert tree(out) == tree(base / "in")
        with monkeypatch.context() as patch:
            patch.setattr(placing, "is_case_blind", lambda below: True)
            with pytest.raises(InputError, match=f"two paths of the folder are both '{shown}' to this disk"):
                await restore(manifest, base / "other", shelf.open)
        assert tree(base / "other") == {}


def test_this_disk_tells_cases_apart_and_keeps_nothing_of_the_question(tmp_path: Path) -> None:
    with Below(tmp_path) as below:
        assert not placing.is_case_blind(below)
        (tmp_path / ".CASE.P2PNODE-PART").write_bytes(b"")
        assert placing.is_case_blind(below)
    assert list(tree(tmp_path)) == [".CASE.P2PNODE-PART"]


async def test_a_very_deep_folder_is_restored_and_mirrored_away(tmp_path: Path) -> None:
    path = "/".join(["d"] * 2_040 + ["file"])
    shelf, manifest = lying(path, noise(100), noise(100))
    assert (await restore(manifest, tmp_path, shelf.open)).fetched == 1
    with Below(tmp_path) as below, below.file(path) as handle:
        assert os.read(handle, 200) == noise(100)
    assert await restore(manifest, tmp_path, shelf.open, delete=True) == Restored(1, 0, 0, 0, 0)
    assert await restore(Manifest((), ()), tmp_path, shelf.open, delete=True) == Restored(0, 0, 0, 1, 0)
    assert tree(tmp_path) == {}


async def test_keys_are_given_to_whoever_opens_blobs(tmp_path: Path) -> None:
    shelf, manifest = lying("a", b"1", b"1")
    await restore(replace(manifest, blobs=(replace(manifest.blobs[0], key=bytes(32)),)), tmp_path, shelf.open)
    (tmp_path / "a").unlink()
    await restore(manifest, tmp_path, shelf.open)
    assert [key for _, key in shelf.opened] == [bytes(32), None]


async def test_a_target_that_is_no_folder_and_a_full_disk_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, manifest, out = make(tmp_path, {"a": b"1"})
    out.write_bytes(b"")
    with pytest.raises(InputError, match=f"cannot use {out}: File exists"):
        await restore(manifest, out, shelf.open)
    out.unlink()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(SpaceError, match="is full: free some space and run it again"):
            await restore(manifest, out, shelf.open)
    await restore(manifest, out, shelf.open)
    assert tree(out) == tree(tmp_path / "in")


async def test_new_files_have_the_users_own_mode(tmp_path: Path) -> None:
    shelf, manifest, out = make(tmp_path, {"a/b": b"1"})
    before = os.umask(0o027)
    try:
        await restore(manifest, out, shelf.open)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((out / path).stat().st_mode) for path in ("a/b", "a")] == [0o640, 0o750]


async def test_descriptors_are_all_given_back(tmp_path: Path) -> None:
    shelf, manifest, out = make(tmp_path, {f"{at}/{at}": noise(LARGE, at) for at in range(3)})
    before = len(os.listdir("/proc/self/fd"))
    shelf.pieces_left = 70
    for _ in range(3):
        with pytest.raises(Unavailable):
            await restore(manifest, out, shelf.open)

    async def broken(blob_id: BlobId, key: bytes | None) -> View:
        raise Unavailable("none")

    with pytest.raises(Unavailable):
        await restore(manifest, out, broken)
    assert len(os.listdir("/proc/self/fd")) == before
