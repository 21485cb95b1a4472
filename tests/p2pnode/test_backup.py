"""A backup restores a home that is marked; anything but a whole backup changes nothing."""

import hashlib
import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from economics.blob import BlobId
from p2pnode import backup as backup_module
from p2pnode.backup import (
    FILES_MAX,
    MANIFEST,
    SMALL_BYTES_MAX,
    backup,
    clear_restored,
    is_restored,
    restore,
    set_chain_aside,
)
from p2pnode.consensus.chain import ChainStore, DamagedChain
from p2pnode.consensus.votelog import VoteLog
from p2pnode.content.keyring import Keyring
from p2pnode.content.sources import BytesSource
from p2pnode.errors import ConfigError, DiskFailed, InputError
from p2pnode.files import make_directory
from p2pnode.home import Config, Home
from p2pnode.wallet import create_wallet
from tests.p2pnode.blocks import CHAIN, GENESIS_STATE, make_chain, make_changes, make_finality, state_after
from tests.p2pnode.disk import run_on_disk
from tests.small import make_genesis


def open_store(home: Home) -> ChainStore:
    return ChainStore.open(home.chain_database_path, CHAIN, genesis_state=GENESIS_STATE.items())


def append(store: ChainStore, count: int) -> None:
    blocks = make_chain(store.head() + count)[store.head() :]
    for item in blocks:
        height = item.block.header.height
        store.append([item], finality=make_finality(item.block.header), changes=make_changes(height))


def make_home(path: Path) -> Home:
    """Return the home of a node with a chain of 7 blocks and one vote."""
    home = Home(path)
    create_wallet(home.owner_key_path, None)
    home.create(Config(quota_bytes=7))
    home.put_genesis(make_genesis())
    (path / "keys" / "faucet.key").write_bytes(b"another key")
    (path / "keys" / "half.key.new").write_bytes(b"left by a crash")
    (path / "store").mkdir()
    (path / "store" / "sliver").write_bytes(b"not backed up")
    store = open_store(home)
    append(store, 7)
    store.close()
    log, _ = VoteLog.open(home.votelog_path, CHAIN)
    log.append([(1, b"a vote")])
    log.close()
    return home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path / "home")


@pytest.fixture
def saved(home: Home, tmp_path: Path) -> Path:
    path = tmp_path / "saved.tar"
    backup(home, path)
    return path


def files_of(home: Home) -> dict[str, bytes]:
    return {
        str(path.relative_to(home.path)): path.read_bytes() for path in sorted(home.path.rglob("*")) if path.is_file()
    }


SMALL = ("config.toml", "genesis.json", "keys/faucet.key", "keys/operator.key", "keys/owner.key")


class TestBackup:
    def test_is_restored_into_a_marked_home(self, home: Home, saved: Path, tmp_path: Path) -> None:
        back = Home(tmp_path / "new" / "home")
        restore(saved, back)
        old, new = files_of(home), files_of(back)
        assert {name: new[name] for name in SMALL} == {name: old[name] for name in SMALL}
        assert set(new) == {*SMALL, "chain/chain.db", "chain/votes.log", "chain/restored"}
        assert back.load_config() == home.load_config()
        assert back.load_operator().seed == home.load_operator().seed
        store = open_store(back)
        assert (store.head(), list(store.state_values())) == (7, list(state_after(7).values()))
        assert VoteLog.open(back.votelog_path, CHAIN)[1].records == [(1, b"a vote")]
        assert is_restored(back)
        assert not is_restored(home)

    def test_carries_what_opens_sealed_blobs(self, home: Home, tmp_path: Path) -> None:
        """The secret, so that a file stored again is the same blob, and the key of each blob that was sealed."""
        keys = {BlobId(bytes([number, 255]) * 16): bytes([number]) * 32 for number in range(FILES_MAX + 50)}
        keyring, source = Keyring(home), BytesSource(b"bytes")
        sealed = keyring.seal(source)
        for blob_id, key in keys.items():
            keyring.remember(blob_id, key)
        (home.sealed_keys_path / "left-by-a-crash.1.2.new").write_bytes(b"half")
        backup(home, tmp_path / "saved.tar")
        back = Home(tmp_path / "back")
        restore(tmp_path / "saved.tar", back)
        assert {blob_id: Keyring(back).key_of(blob_id) for blob_id in keys} == keys
        assert Keyring(back).seal(source).key == sealed.key
        assert len(os.listdir(back.sealed_keys_path)) == len(keys)
        assert {path.stat().st_mode & 0o777 for path in back.sealed_keys_path.iterdir()} == {0o600}

    def test_of_a_home_that_only_opened_a_link_has_its_key(self, tmp_path: Path) -> None:
        Keyring(Home(tmp_path / "home")).remember(BlobId(bytes(32)), bytes(32))
        backup(Home(tmp_path / "home"), tmp_path / "saved.tar")
        restore(tmp_path / "saved.tar", Home(tmp_path / "back"))
        assert Keyring(Home(tmp_path / "back")).key_of(BlobId(bytes(32))) == bytes(32)

    @pytest.mark.parametrize("name", ["note.txt", "A" * 43])
    def test_names_a_file_among_the_keys_that_is_none(self, home: Home, tmp_path: Path, name: str) -> None:
        make_directory(home.sealed_keys_path)
        (home.sealed_keys_path / name).write_bytes(b"note")
        (home.sealed_keys_path / name).chmod(0o600)
        with pytest.raises(ConfigError, match=f"keys/sealed/{name} is not"):
            backup(home, tmp_path / "saved.tar")
        assert os.listdir(tmp_path) == ["home"]

    def test_is_only_the_user_s_to_read(self, saved: Path, tmp_path: Path) -> None:
        old = os.umask(0)
        try:
            (again := tmp_path / "again").mkdir()
            backup(make_home(again / "home"), again / "saved.tar")
            restore(again / "saved.tar", Home(again / "back"))
        finally:
            os.umask(old)
        for path in (saved, again / "saved.tar"):
            assert path.stat().st_mode & 0o777 == 0o600
            with tarfile.open(path) as tar:
                assert {info.mode for info in tar} == {0o600}
        modes = {path.is_dir(): path.stat().st_mode & 0o777 for path in (again / "back").rglob("*")}
        assert modes[True] == 0o700
        assert {path.stat().st_mode & 0o777 for path in (again / "back" / "keys").iterdir()} == {0o600}

    def test_of_a_client_is_its_key_and_network(self, tmp_path: Path) -> None:
        home = Home(tmp_path / "home")
        create_wallet(home.owner_key_path, None)
        home.put_genesis(make_genesis())
        backup(home, tmp_path / "saved.tar")
        restore(tmp_path / "saved.tar", Home(tmp_path / "back"))
        assert set(files_of(Home(tmp_path / "back"))) == {"chain/restored", "genesis.json", "keys/owner.key"}

    def test_of_a_running_node_is_of_one_height(self, home: Home, tmp_path: Path) -> None:
        store = open_store(home)
        append(store, 3)  # in the write-ahead log of an open database
        backup(home, tmp_path / "saved.tar")
        append(store, 2)
        restore(tmp_path / "saved.tar", Home(tmp_path / "back"))
        copy = open_store(Home(tmp_path / "back"))
        assert (copy.head(), list(copy.state_values())) == (10, list(state_after(10).values()))
        assert store.head() == 12

    def test_leaves_nothing_else_behind(self, home: Home, saved: Path, tmp_path: Path) -> None:
        assert sorted(os.listdir(tmp_path)) == ["home", "saved.tar"]
        before = saved.read_bytes()
        with pytest.raises(InputError, match="exists already: a backup never takes the place"):
            backup(home, saved)
        assert saved.read_bytes() == before

    def test_is_synced_before_it_takes_its_name(
        self, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[str] = []
        fsync, rename = os.fsync, os.rename

        def record_fsync(handle: int) -> None:
            calls.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
            fsync(handle)

        def record_rename(source: Path, target: Path) -> None:
            calls.append(f"rename {source.name} {target.name}")
            rename(source, target)

        monkeypatch.setattr(os, "fsync", record_fsync)
        monkeypatch.setattr(os, "rename", record_rename)
        backup(home, tmp_path / "saved.tar")
        assert calls == ["fsync saved.tar.new", "rename saved.tar.new saved.tar", f"fsync {tmp_path.name}"]

    def test_of_no_home_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="holds no key: name the --home"):
            backup(Home(tmp_path / "missing"), tmp_path / "saved.tar")
        assert os.listdir(tmp_path) == []

    def test_of_a_file_that_is_too_large_names_it(self, home: Home, tmp_path: Path) -> None:
        (home.path / "keys" / "film").write_bytes(bytes(SMALL_BYTES_MAX + 1))
        with pytest.raises(InputError, match=r"keys/film has a name or a size"):
            backup(home, tmp_path / "saved.tar")

    def test_into_a_missing_directory_is_refused(self, home: Home, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot back up"):
            backup(home, tmp_path / "missing" / "saved.tar")

    def test_of_a_damaged_database_says_so(self, home: Home, tmp_path: Path) -> None:
        home.chain_database_path.write_bytes(b"text" * 2_000)
        with pytest.raises(DiskFailed, match="cannot copy"):
            backup(home, tmp_path / "saved.tar")
        assert sorted(os.listdir(tmp_path)) == ["home"]

    @pytest.mark.parametrize("size", ["24k", "72k"])
    def test_on_a_full_disk_leaves_nothing(self, tmp_path: Path, size: str) -> None:
        """Full in the midst of the copy of the database, and of the tar."""
        body = """
from p2pnode.errors import SpaceError
from tests.p2pnode.test_backup import backup, make_home
import tempfile
home = make_home(Path(tempfile.mkdtemp(dir=disk.parent)) / "home")
try:
    backup(home, disk / "saved.tar")
except SpaceError as error:
    print(error)
print(list(disk.iterdir()))
"""
        disk = tmp_path / "disk"
        said = run_on_disk(disk, f"size={size}", body)
        assert said == f"the disk that holds {disk} is full: free some space or lower the quota\n[]\n"


class TestRestore:
    def test_is_into_an_empty_home_only(self, saved: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        restore(saved, Home(tmp_path / "empty"))
        before = files_of(Home(tmp_path / "empty"))
        (tmp_path / "file").write_bytes(b"1")
        for name in ("empty", "file"):
            with pytest.raises(InputError, match="is not empty: restore into a new --home"):
                restore(saved, Home(tmp_path / name))
        assert files_of(Home(tmp_path / "empty")) == before

    def test_marks_first_and_puts_the_settings_last(
        self, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whenever the machine stops, the home is marked, or has no key; and without settings it is no node."""
        back = Home(tmp_path / "back")
        states: list[set[str]] = []
        fsync = os.fsync

        def record(handle: int) -> None:
            fsync(handle)
            states.append({str(path.relative_to(back.path)) for path in back.path.rglob("*") if path.is_file()})

        monkeypatch.setattr(os, "fsync", record)
        restore(saved, back)
        keyed = [names for names in states if any(name.startswith("keys/") for name in names)]
        assert keyed
        assert all("chain/restored" in names for names in keyed)
        whole = {*SMALL, "chain/chain.db", "chain/votes.log", "chain/restored"}
        assert all(names == whole for names in states if "config.toml" in names)

    def test_cut_anywhere_is_refused_and_leaves_an_empty_home(self, saved: Path, tmp_path: Path) -> None:
        data = saved.read_bytes()
        cut = tmp_path / "cut.tar"
        with tarfile.open(saved) as tar:
            end = max(info.offset_data + info.size for info in tar)
        for size in [*range(0, min(8_192, end), 512), *range(8_192, end, 4_096 + 512)]:
            cut.write_bytes(data[:size])
            with pytest.raises(InputError):
                restore(cut, Home(tmp_path / "back"))
            assert list((tmp_path / "back").rglob("*")) == []

    def test_with_a_byte_changed_is_refused(self, saved: Path, tmp_path: Path) -> None:
        """A key that came back wrong would be found out when it is too late."""
        data = saved.read_bytes()
        with tarfile.open(saved) as tar:
            places = [info.offset_data + info.size // 2 for info in tar]
        for number, at in enumerate(places):
            saved.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with pytest.raises(InputError, match="is not a backup, or is cut short"):
                restore(saved, Home(tmp_path / f"back{number}"))
            assert files_of(Home(tmp_path / f"back{number}")) == {}

    def test_of_what_is_no_tar_is_refused(self, tmp_path: Path) -> None:
        for data in (b"", b"text", bytes(10_240), b"\x1f\x8b" + bytes(600)):
            (tmp_path / "file").write_bytes(data)
            with pytest.raises(InputError, match="is not a backup"):
                restore(tmp_path / "file", Home(tmp_path / "back"))
        with pytest.raises(InputError, match="cannot restore"):
            restore(tmp_path / "missing", Home(tmp_path / "back"))

    @pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
    def test_takes_no_header_of_gigabytes_into_memory(self, kind: bytes, tmp_path: Path) -> None:
        header = tarfile.TarInfo("header")
        header.size, header.type = 256 << 20, kind
        with (tmp_path / "file").open("wb") as file:
            file.write(header.tobuf(tarfile.GNU_FORMAT))
            file.truncate(header.size + 4_096)  # of which the disk has nothing
        tracemalloc.start()
        try:
            with pytest.raises(InputError, match="is not a backup"):
                restore(tmp_path / "file", Home(tmp_path / "back"))
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 16 << 20

    def test_on_a_full_disk_leaves_an_empty_home(self, saved: Path, tmp_path: Path) -> None:
        body = f"""
from p2pnode.backup import restore
from p2pnode.errors import SpaceError
from p2pnode.home import Home
try:
    restore(Path({str(saved)!r}), Home(disk))
except SpaceError as error:
    print(error)
print(list(disk.iterdir()))
"""
        disk = tmp_path / "disk"
        said = run_on_disk(disk, "size=64k", body)
        assert said == f"the disk that holds {disk / 'chain'} is full: free some space or lower the quota\n[]\n"


def plain(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def write_tar(
    path: Path, members: list[tuple[tarfile.TarInfo, bytes]], *, manifest: object = None, form: int = tarfile.PAX_FORMAT
) -> None:
    """Write a tar with a manifest that names these members, unless another is given."""
    files = [
        {"name": info.name, "size": info.size, "sha256": hashlib.sha256(data).hexdigest()} for info, data in members
    ]
    raw = json.dumps({"files": files, "version": 1} if manifest is None else manifest).encode()
    with tarfile.open(path, "w", format=form) as tar:
        tar.addfile(plain(MANIFEST, len(raw)), io.BytesIO(raw))
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))


def member(name: str, data: bytes = b"data", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = plain(name, len(data))
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


class TestHostileTar:
    def check(self, tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes], manifest: object = None) -> None:
        root = tmp_path / "root"
        root.mkdir(exist_ok=True)
        write_tar(tmp_path / "bad.tar", [member("keys/owner.key"), *members], manifest=manifest)
        with pytest.raises(InputError, match="is not a backup, or is cut short"):
            restore(tmp_path / "bad.tar", Home(root / "back"))
        assert [path for path in root.rglob("*") if path.is_file()] == []
        assert sorted(os.listdir(tmp_path)) == ["bad.tar", "root"]

    def test_would_be_a_backup_without_its_fault(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "good.tar", [member("keys/owner.key"), member("config.toml")])
        restore(tmp_path / "good.tar", Home(tmp_path / "back"))
        assert set(files_of(Home(tmp_path / "back"))) == {"chain/restored", "config.toml", "keys/owner.key"}

    @pytest.mark.parametrize(
        "name",
        [
            *("/etc/passwd", "../outside", "keys/../../outside", "keys/..", "keys/.", "keys/.hidden", "..", ".", ""),
            *("keys/a/b", "keys/", "keys", "chain/restored", "chain/lock", "chain/chain.db-wal", "store/x", "other"),
            *("keys\\x", "keys/a\\b", "keys/" + "a" * 101, "config.toml\n", "./config.toml", "Config.toml"),
        ],
    )
    def test_names_only_files_of_a_home(self, tmp_path: Path, name: str) -> None:
        self.check(tmp_path, member(name))

    @pytest.mark.parametrize(
        "kind",
        [
            *(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE),
            tarfile.CONTTYPE,
        ],
    )
    @pytest.mark.parametrize("name", ["keys/operator.key", "chain/chain.db"])
    def test_holds_plain_files_only(self, tmp_path: Path, kind: bytes, name: str) -> None:
        self.check(tmp_path, member(name, b"", type=kind, linkname="/etc/passwd"))

    def test_holds_no_sparse_file(self, tmp_path: Path) -> None:
        """A few bytes of tar could fill the disk."""
        headers = {"GNU.sparse.map": "0,4", "GNU.sparse.size": str(1 << 40), "GNU.sparse.numblocks": "1"}
        info, data = member("chain/chain.db", pax_headers=headers)
        files = [{"name": name, "size": 4, "sha256": hashlib.sha256(data).hexdigest()} for name in ("keys/owner.key",)]
        files.append({"name": "chain/chain.db", "size": 1 << 40, "sha256": "00"})
        self.check(tmp_path, (info, data), manifest={"files": files, "version": 1})

    def test_is_not_larger_than_its_kind(self, tmp_path: Path) -> None:
        self.check(tmp_path, member("keys/operator.key", bytes(SMALL_BYTES_MAX + 1)))

    @pytest.mark.parametrize(
        "data",
        [
            *(b"data", b"\n", b"\xff", b"A" * 43 + b" " + b"0" * 64, b"A" * 43 + b" " + b"0" * 63 + b"\n"),
            *(b"../" + b"A" * 40 + b" " + b"0" * 64 + b"\n", b"A" * 42 + b"B " + b"0" * 64 + b"\n"),
        ],
    )
    def test_holds_whole_keys_of_blobs(self, tmp_path: Path, data: bytes) -> None:
        self.check(tmp_path, member(backup_module.SEALED_KEYS, data))

    def test_names_a_file_once(self, tmp_path: Path) -> None:
        self.check(tmp_path, member("config.toml"), member("config.toml"))

    @pytest.mark.parametrize(
        "change",
        [
            lambda files: files[:-1],
            lambda files: [*files, {"name": "genesis.json", "size": 1, "sha256": "00"}],
            lambda files: files[::-1],
            lambda files: [files[0], {**files[1], "size": 3}],
            lambda files: [files[0], {**files[1], "size": -1}],
            lambda files: [files[0], {**files[1], "size": "4"}],
            lambda files: [files[0], {**files[1], "sha256": None}],
            lambda files: [files[0], {**files[1], "sha256": "00" * 32}],
            lambda files: [files[0], {**files[1], "name": 1}],
            lambda files: [files[0], "config.toml"],
            lambda files: files * FILES_MAX,
            lambda files: {"files": files},
        ],
    )
    def test_is_what_its_manifest_says(
        self, tmp_path: Path, change: Callable[[list[dict[str, object]]], object]
    ) -> None:
        sha256 = hashlib.sha256(b"data").hexdigest()
        files: list[dict[str, object]] = [
            {"name": name, "size": 4, "sha256": sha256} for name in ("keys/owner.key", "config.toml")
        ]
        self.check(tmp_path, member("config.toml"), manifest={"files": change(files), "version": 1})

    @pytest.mark.parametrize("manifest", [[], 1, {"version": 1}, {"version": 2, "files": []}, {"files": []}])
    def test_has_a_manifest_of_this_version(self, tmp_path: Path, manifest: object) -> None:
        self.check(tmp_path, manifest=manifest)

    @pytest.mark.parametrize(
        "raw", [b"", b"{", b"\xff", b"[" * 60_000, b" " * (backup_module.MANIFEST_BYTES_MAX + 1), b"1" * 60_000]
    )
    def test_has_a_manifest_that_can_be_read(self, tmp_path: Path, raw: bytes) -> None:
        with tarfile.open(tmp_path / "bad.tar", "w") as tar:
            tar.addfile(plain(MANIFEST, len(raw)), io.BytesIO(raw))
        with pytest.raises(InputError, match="is not a backup"):
            restore(tmp_path / "bad.tar", Home(tmp_path / "back"))

    def test_has_no_endless_size(self, tmp_path: Path) -> None:
        """A size below zero leads tarfile back to where it was."""
        write_tar(tmp_path / "bad.tar", [member("keys/owner.key"), member("chain/chain.db")], form=tarfile.GNU_FORMAT)
        data = bytearray((tmp_path / "bad.tar").read_bytes())
        for at in range(0, len(data), 512):
            block = bytearray(data[at : at + 512])
            if block[257:262] == b"ustar":
                block[124:136] = b"\xff" * 11 + b"\x00"
                block[148:156] = b" " * 8
                block[148:156] = b"%06o\0 " % sum(block)
                (tmp_path / "bad.tar").write_bytes(data[:at] + block + data[at + 512 :])
                with pytest.raises(InputError, match="is not a backup"):
                    restore(tmp_path / "bad.tar", Home(tmp_path / "back"))


class TestMark:
    def test_is_removed_durably(self, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        back = Home(tmp_path / "back")
        restore(saved, back)
        synced: list[str] = []
        fsync = os.fsync

        def record(handle: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{handle}"))
            fsync(handle)

        monkeypatch.setattr(os, "fsync", record)
        for _ in range(2):
            clear_restored(back)
            assert not is_restored(back)
        assert synced == [str(back.chain_path)] * 2

    def test_is_set_where_a_damaged_chain_is_set_aside(self, home: Home) -> None:
        """The vote log forgets what is below the head, and the head is lost."""
        for number in (1, 2):
            clear_restored(home)
            home.chain_database_path.write_bytes(b"text" * 2_000)
            with pytest.raises(DamagedChain):
                open_store(home)
            set_chain_aside(home)
            assert is_restored(home)
            store = open_store(home)
            assert (store.head(), list(store.state_values())) == (0, list(state_after(0).values()))
            store.close()
            assert home.chain_path.joinpath(f"chain.db.damaged-{number}").read_bytes() == b"text" * 2_000

    def test_is_not_of_a_home_that_was_never_restored(self, home: Home, tmp_path: Path) -> None:
        assert not is_restored(home)
        assert not is_restored(Home(tmp_path / "missing"))
