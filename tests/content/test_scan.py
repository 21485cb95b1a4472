"""Scanning: files as they are, links never followed, what cannot be stored named, and depth no danger."""

import os
import socket
from pathlib import Path

import pytest
import trio
from blake3 import blake3

from p2pnode.content import scan as scanning
from p2pnode.content.beneath import Below
from p2pnode.content.scan import FolderSource, Scanned, Skipped, hash_file, hash_files, scan
from p2pnode.errors import InputError
from tests.p2pnode.shelf import fill


def test_a_folder_is_seen_as_it_is(tmp_path: Path) -> None:
    root = fill(
        tmp_path / "in", {"b": b"1", "a/b": b"22", "a-b": b"", "a/\U0001f600": b"x", "a/\uffee": b"y", "e/f/": b""}
    )
    (root / "b").chmod(0o744)
    scanned = scan(root)
    assert scanned == Scanned(root, ("a-b", "a/b", "a/\uffee", "a/\U0001f600", "b"), ("e/f",), ())
    hashed, skipped = hash_files(scanned)
    assert skipped == []
    assert [(file.path, file.source.length, file.executable, file.content_hash) for file in hashed] == [
        ("a-b", 0, False, blake3(b"").digest()),
        ("a/b", 2, False, blake3(b"22").digest()),
        ("a/\uffee", 1, False, blake3(b"y").digest()),
        ("a/\U0001f600", 1, False, blake3(b"x").digest()),
        ("b", 1, True, blake3(b"1").digest()),
    ]


def test_what_is_no_file_is_named_and_never_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = fill(tmp_path / "outside", {"secret": b"s"})
    root = fill(tmp_path / "in", {"a": b"1", "only/.x.p2pnode-part": b""})
    (root / "link").symlink_to(outside / "secret")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe")
    monkeypatch.chdir(root)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    (root / "a\nb").write_bytes(b"")
    os.mkdir(os.fsencode(root) + b"/\xff")
    shown = str(root)
    assert scan(root) == Scanned(
        root,
        ("a",),
        ("only",),
        (
            Skipped(f"{shown}/a\\nb", "'a\\nb' has control characters"),
            Skipped(f"{shown}/folder", "it is a symbolic link"),
            Skipped(f"{shown}/link", "it is a symbolic link"),
            Skipped(f"{shown}/loop", "it is a symbolic link"),
            Skipped(f"{shown}/pipe", "it is a pipe, a socket or a device"),
            Skipped(f"{shown}/socket", "it is a pipe, a socket or a device"),
            Skipped(f"{shown}/\\udcff", "'\\udcff' is not UTF-8"),
            Skipped(f"{shown}/only/.x.p2pnode-part", "an interrupted download left it"),
        ),
    )


@pytest.mark.parametrize("key", ["operator.key", "owner.key", "faucet.key", "seal.secret"])
def test_a_home_of_p2pnode_is_never_stored(tmp_path: Path, key: str) -> None:
    root = fill(tmp_path / "all", {"a": b"1", "own/.p2pnode/genesis.json": b"{}", "own/mine": b"2", "keys/house": b"3"})
    fill(root, {f"own/.p2pnode/keys/{key}": b"secret", "b/keys": b"a file"})
    scanned = scan(root)
    assert (scanned.files, scanned.empty) == (("a", "b/keys", "keys/house", "own/mine"), ())
    assert scanned.skipped == (Skipped(f"{root}/own/.p2pnode", "it is a home of p2pnode, with its keys"),)
    (tmp_path / "link").symlink_to(root / "own/.p2pnode/keys")
    for path in (root / "own/.p2pnode", root / "own/.p2pnode/keys", tmp_path / "link"):
        with pytest.raises(InputError, match="is a home of p2pnode: its keys are for nobody else"):
            scan(path)


def test_a_tree_deeper_than_any_path_is_walked_to_its_limit_and_removed(tmp_path: Path) -> None:
    """2,500 folders in each other: more than a process has descriptors, and than a path has bytes."""
    handle = os.open(tmp_path, os.O_RDONLY)
    for _ in range(2_500):
        os.mkdir("d", dir_fd=handle)
        inner = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)
    scanned = scan(tmp_path)
    assert scanned.files == ()
    assert scanned.empty == ("/".join(["d"] * 2_048),)
    assert [one.why for one in scanned.skipped] == ["a name has 4097 bytes, at most 4096"]
    with Below(tmp_path) as below:
        below.remove("d")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name in ("none", "file"):
        with pytest.raises(InputError, match=f"cannot use .*{name}"):
            scan(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    root = fill(tmp_path, {"a": b"1", "b": b"2", "c/d": b"3"})
    (root / "b").chmod(0)
    (root / "c").chmod(0)
    try:
        scanned = scan(root)
        hashed, skipped = hash_files(scanned)
    finally:
        (root / "c").chmod(0o700)
    assert [one.path for one in hashed] == ["a"]
    assert [one.why for one in (*scanned.skipped, *skipped)] == ["cannot be read: Permission denied"] * 2


def test_a_file_that_became_another_thing_is_not_opened(tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", {"x/y": b"secret"})
    root = fill(tmp_path / "in", {"a": b"1", "b": b"2", "c/d": b"3", "x/y": b"4", "z": b"5"})
    scanned = scan(root)
    (root / "a").unlink()
    (root / "a").symlink_to(outside / "x/y")
    (root / "b").unlink()
    os.mkfifo(root / "b")
    (root / "c/d").unlink()
    (root / "x/y").unlink()
    (root / "x").rmdir()
    (root / "x").symlink_to(outside / "x")
    hashed, skipped = hash_files(scanned)
    assert [file.path for file in hashed] == ["z"]
    assert [one.why.removeprefix(f"cannot be read: {root}/") for one in skipped] == [
        "a is a symbolic link",
        "b is a pipe, a socket or a device",
        "cannot be read: No such file or directory",
        "x is a link or a file, where a folder is wanted: move it away",
    ]


def test_a_file_gives_the_bytes_that_were_hashed_or_none(tmp_path: Path) -> None:
    root = fill(tmp_path, {"a": b"12345"})
    with Below(root) as below:
        source = hash_file(below, "a").source
    assert [source.read(0, 5), source.read(1, 3), source.name] == [b"12345", b"23", str(root / "a")]
    status = (root / "a").stat()
    (root / "a").write_bytes(b"123x5")
    os.utime(root / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    for change in (lambda: None, lambda: (root / "a").write_bytes(b"1234")):
        change()
        with pytest.raises(InputError, match="changed while it was stored: store the folder again"):
            source.read(0, 5)
    (root / "a").unlink()
    with pytest.raises(InputError, match="No such file"):
        source.read(0, 5)


def test_a_file_that_is_always_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path, {"log": b"1"})
    hash_handle, calls = scanning.hash_handle, []

    def hash_while_it_grows(file: int) -> bytes:
        calls.append(file)
        if len(calls) < stop:
            with (root / "log").open("ab") as log:
                log.write(b"2")
        return hash_handle(file)

    monkeypatch.setattr(scanning, "hash_handle", hash_while_it_grows)
    with Below(root) as below:
        stop = 3
        assert hash_file(below, "log").source == FolderSource(root, "log", 3, scanning.stamp_of((root / "log").stat()))
        stop = 100
        with pytest.raises(InputError, match="log is being written to: store the folder when that is done"):
            hash_file(below, "log")


async def test_a_long_reading_ends_when_nobody_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    pieces: list[int] = []
    pread = os.pread

    def read_a_piece(file: int, size: int, at: int) -> bytes:
        pieces.append(at)
        if len(pieces) == 3:
            trio.from_thread.run_sync(scope.cancel)
        return pread(file, size, at)

    monkeypatch.setattr(os, "pread", read_a_piece)
    with trio.CancelScope() as scope:
        await trio.to_thread.run_sync(hash_files, scan(tmp_path))
    assert (scope.cancelled_caught, len(pieces)) == (True, 3)
