"""Backups: one tar of what binds a node or a client, and the way back into an empty home. Slivers are not in it.

Tar: `p2pnode-backup` first, JSON with the name, size and SHA-256 of each file that follows, in order. `sealed.keys`
holds all of `keys/sealed/`, which may be many: a line `<blob ID> <key>` each. A node may have signed more after its
backup than its log holds, so a restored home is marked: its node stays silent until the chain has passed what it may
have signed (S7), and only then is the mark removed.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, cast

from p2pnode.content.keyring import Keyring
from p2pnode.errors import DiskFailed, InputError
from p2pnode.files import full_disk_named, make_directory, replace_synced, sync_directory, write_synced
from p2pnode.home import GENESIS_BYTES_MAX, Home

MANIFEST = "p2pnode-backup"
VERSION = 1
MANIFEST_BYTES_MAX = 1 << 16
SMALL_BYTES_MAX = GENESIS_BYTES_MAX
"""Of a key, the settings and the genesis file; the chain's files may be as large as the disk takes."""
SEALED_KEYS = "sealed.keys"
SEALED_BYTES_MAX = 128 << 20
"""A million keys."""
FILES_MAX = 100
PIECE_BYTES = 1 << 20
NAME = re.compile(
    r"config\.toml|sealed\.keys|genesis\.json|chain/chain\.db|chain/votes\.log|keys/[^./\\\0][^/\\\0]{0,99}"
)
TAR_FAULTS = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the manifest."""

    name: str
    size: int
    sha256: str


def is_restored(home: Home) -> bool:
    """Return whether the node of this home may have signed more than its log holds."""
    return home.restored_path.exists()


def clear_restored(home: Home) -> None:
    """Say durably that the chain has passed whatever the node may have signed."""
    home.restored_path.unlink(missing_ok=True)
    sync_directory(home.chain_path)


def mark_restored(home: Home) -> None:
    make_directory(home.chain_path)
    replace_synced(home.restored_path, (b"silent until the chain has passed what this node may have signed\n",))


def set_chain_aside(home: Home) -> None:
    """Rename a damaged database, so that the next start fetches the chain from peers.

    The vote log no longer holds what is older than the lost head, so the home is marked like a restored one first.
    """
    mark_restored(home)
    path = home.chain_database_path
    number = 1
    while path.with_name(f"{path.name}.damaged-{number}").exists():
        number += 1
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(f"{path.name}{suffix}").rename(path.with_name(f"{path.name}{suffix}.damaged-{number}"))
    sync_directory(home.chain_path)


# --- backup ------------------------------------------------------------------------------------------------------


def backup(home: Home, target: Path) -> None:
    """Write keys, settings, genesis, vote log and chain to a new tar that only the user can read; durable on return.

    The node may run meanwhile. Raises `InputError` for a target that exists or cannot be written.
    """
    if target.exists():
        raise InputError(f"{target} exists already: a backup never takes the place of another file")
    fresh, copy = (target.with_name(f"{target.name}{suffix}") for suffix in (".new", ".db.new"))
    try:
        with full_disk_named(target.parent):
            _write_tar(home, fresh, copy)
            fresh.rename(target)
            sync_directory(target.parent)
    except OSError as fault:
        raise InputError(f"cannot back up {home.path} to {target}: {fault}") from fault
    finally:
        for leftover in (fresh, copy, copy.with_name(f"{copy.name}-journal")):
            leftover.unlink(missing_ok=True)


def _write_tar(home: Home, path: Path, copy: Path) -> None:
    held = _read_small_files(home)
    if home.votelog_path.exists():  # before the database: what is older than its head is needless
        held["chain/votes.log"] = home.votelog_path.read_bytes()
    rows = [_File(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in held.items()]
    if home.chain_database_path.exists():
        _copy_database(home.chain_database_path, copy)
        with copy.open("rb") as file:
            rows.append(_File("chain/chain.db", copy.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()))
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(handle, "wb") as out:
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            _add(tar, MANIFEST, _build_manifest(rows))
            for row in rows:
                if row.name in held:
                    _add(tar, row.name, held[row.name])
                else:
                    with copy.open("rb") as file:
                        tar.addfile(_build_info(row.name, row.size), file)
        out.flush()
        os.fsync(handle)


def _read_small_files(home: Home) -> dict[str, bytes]:
    paths = [home.config_path, home.genesis_path, *sorted(home.operator_key_path.parent.glob("*"))]
    held: dict[str, bytes] = {}
    for path in paths:
        if path.is_file() and path.suffix != ".new":
            held[str(path.relative_to(home.path))] = path.read_bytes()
    if keys := Keyring(home).dump():
        held[SEALED_KEYS] = keys
    for name, data in held.items():
        if not NAME.fullmatch(name) or len(data) > _bytes_max(name):
            raise InputError(f"{home.path / name} has a name or a size that a backup does not take: move it away")
    if not any(name.startswith("keys/") or name == SEALED_KEYS for name in held):
        raise InputError(f"{home.path} holds no key: name the --home to back up")
    return held


def _bytes_max(name: str) -> float:
    if name.startswith("chain/"):
        return math.inf
    return SEALED_BYTES_MAX if name == SEALED_KEYS else SMALL_BYTES_MAX


def _copy_database(source: Path, target: Path) -> None:
    """Copy a database that may be in use, as of one moment."""
    target.unlink(missing_ok=True)
    target.touch(mode=0o600, exist_ok=False)
    try:
        with (
            contextlib.closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True)) as old,
            contextlib.closing(sqlite3.connect(target)) as new,
        ):
            new.execute("PRAGMA synchronous = OFF")
            old.backup(new)
    except sqlite3.DatabaseError as fault:
        if fault.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, "the copy of the database") from fault
        raise DiskFailed(f"cannot copy {source}: {fault}") from fault


def _build_manifest(rows: list[_File]) -> bytes:
    files = [{"name": row.name, "sha256": row.sha256, "size": row.size} for row in rows]
    return json.dumps({"files": files, "version": VERSION}, indent=1).encode()


def _build_info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    tar.addfile(_build_info(name, len(data)), BytesIO(data))


# --- restore -----------------------------------------------------------------------------------------------------


def restore(source: Path, home: Home) -> None:
    """Unpack a backup into a home that is empty or not there yet, marked as restored; durable on return.

    Raises `InputError` for a tar that is anything but a whole backup. After a failure the home is empty again. The
    mark comes first and the settings last: what a crash leaves is no node, and is marked.
    """
    if home.path.exists() and (not home.path.is_dir() or any(home.path.iterdir())):
        raise InputError(f"{home.path} is not empty: restore into a new --home")
    try:
        with source.open("rb") as file, tarfile.open(fileobj=cast(IO[bytes], _Bounded(file)), mode="r:") as tar:
            rows = _verify_members(tar)
            make_directory(home.path)
            try:
                _unpack(tar, rows, home)
            except BaseException:
                for path in home.path.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                raise
    except TAR_FAULTS as fault:
        raise InputError(f"{source} is not a backup, or is cut short: {fault}") from fault
    except OSError as fault:
        raise InputError(f"cannot restore {source} to {home.path}: {fault}") from fault


class _Bounded:
    """A tar that is read in pieces: of a header that says it has gigabytes `tarfile` would take all at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if size > PIECE_BYTES:
            raise ValueError(f"a header of {size} bytes")
        return self._file.read(size)


def _verify_members(tar: tarfile.TarFile) -> list[_File]:
    """Return the files that the manifest names, if these and no others follow it, each a plain file of that size."""
    rows = [_File(MANIFEST, -1, "")]
    for index in range(FILES_MAX + 2):
        info = tar.next()
        if info is None:
            if index != len(rows):
                raise ValueError("files are missing")
            return rows[1:]
        if index >= len(rows) or info.name != rows[index].name:
            raise ValueError(f"{info.name!r} does not belong there")
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.sparse is not None:
            raise ValueError(f"{info.name!r} is not a plain file")
        if index == 0:
            rows += _parse_manifest(_read_member(tar, info))
        elif info.size != rows[index].size:
            raise ValueError(f"{info.name!r} has another size than the manifest says")
    raise ValueError("too many files")


def _read_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    if not 0 <= info.size <= MANIFEST_BYTES_MAX:
        raise ValueError("the manifest is too large")
    return _open_member(tar, info).read()


def _open_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(info)
    assert file is not None, "a plain file has content"
    return file


def _parse_manifest(data: bytes) -> list[_File]:
    match json.loads(data):
        case {"version": int(version), "files": list(files)} if version == VERSION and len(files) <= FILES_MAX:
            rows = [_parse_row(row) for row in files]
        case _:
            raise ValueError("a manifest of another version")
    if len({row.name for row in rows}) != len(rows):
        raise ValueError("a file is named twice")
    return rows


def _parse_row(row: Any) -> _File:
    match row:
        case {"name": str(name), "size": int(size), "sha256": str(sha256)} if NAME.fullmatch(name):
            if not 0 <= size <= _bytes_max(name):
                raise ValueError(f"{name!r} is too large")
            return _File(name, size, sha256)
        case _:
            raise ValueError(f"no file of a backup: {row!r:.100}")


def _unpack(tar: tarfile.TarFile, rows: list[_File], home: Home) -> None:
    mark_restored(home)
    for row in sorted(rows, key=lambda row: row.name == home.config_path.name):
        pieces = _pieces(_open_member(tar, tar.getmember(row.name)), row)
        if row.name == SEALED_KEYS:
            Keyring(home).load(b"".join(pieces))
            continue
        path = home.path / row.name
        make_directory(path.parent)
        write_synced(path, pieces, mode=0o600)
        sync_directory(path.parent)


def _pieces(file: IO[bytes], row: _File) -> Iterator[bytes]:
    """Yield a file's bytes; at their end raises `ValueError` if they are not those of the manifest."""
    found = hashlib.sha256()
    while piece := file.read(PIECE_BYTES):
        found.update(piece)
        yield piece
    if found.hexdigest() != row.sha256:
        raise ValueError(f"{row.name!r} is damaged")
