"""What is written is durable before it has a name, and a full disk leaves nothing behind."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2pnode.errors import ConfigError
from p2pnode.files import (
    DESCRIPTORS,
    allow_descriptors,
    lock_directory,
    read_bounded,
    replace_synced,
    sync_directory,
    write_synced,
)
from tests.p2pnode.disk import ROOT, run_on_disk


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The system calls that matter to durability, in order. No crash can be made here, so the order is the claim."""
    made: list[str] = []

    def record(name: str, real: Callable[..., object], show: Callable[..., str]) -> None:
        def call(*args: object, **kwargs: object) -> object:
            made.append(f"{name} {show(*args)}")
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    record("fsync", os.fsync, lambda handle: Path(os.readlink(f"/proc/self/fd/{handle}")).name)
    record("rename", os.rename, lambda source, target: f"{Path(source).name} {Path(target).name}")
    record("replace", os.replace, lambda source, target: f"{Path(source).name} {Path(target).name}")
    return made


def test_a_file_is_synced_before_it_takes_its_name_and_the_name_after(tmp_path: Path, calls: list[str]) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"old")
    replace_synced(path, (b"new", memoryview(b"er"), bytearray(b"!")))
    assert path.read_bytes() == b"newer!"
    fresh = calls[0].removeprefix("fsync ")
    assert fresh.startswith("blob.")
    assert fresh.endswith(".new")
    assert calls == [f"fsync {fresh}", f"replace {fresh} blob", f"fsync {tmp_path.name}"]
    assert os.listdir(tmp_path) == ["blob"]


def test_two_who_replace_a_file_at_once_do_not_write_into_each_other(tmp_path: Path) -> None:
    path = tmp_path / "blob"

    def parts() -> Iterator[bytes]:
        yield b"slow and "
        replace_synced(path, (b"quick",))
        assert path.read_bytes() == b"quick"
        yield b"whole"

    replace_synced(path, parts())
    assert path.read_bytes() == b"slow and whole"
    assert os.listdir(tmp_path) == ["blob"]


def test_a_file_is_synced_when_it_is_written(tmp_path: Path, calls: list[str]) -> None:
    write_synced(tmp_path / "sliver", (b"a", b"b"))
    assert calls == ["fsync sliver"]
    assert (tmp_path / "sliver").read_bytes() == b"ab"
    sync_directory(tmp_path)
    assert calls[1:] == [f"fsync {tmp_path.name}"]


def test_a_file_has_the_mode_that_was_asked_for_from_the_start(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        write_synced(tmp_path / "key", (b"secret",), mode=0o600)
    finally:
        os.umask(old)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_disk_that_takes_a_few_bytes_at_a_time_gets_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:3]))
    write_synced(tmp_path / "file", (b"ten bytes.", b"", b"more"))
    assert (tmp_path / "file").read_bytes() == b"ten bytes.more"


FULL = """
from p2pnode.errors import SpaceError
from p2pnode.files import replace_synced, write_synced
(disk / "old").write_bytes(b"old")
for write in (write_synced, replace_synced):
    try:
        write(disk / ("fresh" if write is write_synced else "old"), FILL)
    except SpaceError as error:
        print(error)
print(sorted(path.name for path in disk.iterdir()), (disk / "old").read_bytes())
"""


def test_a_full_disk_is_named_and_leaves_only_what_was_there(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    said = run_on_disk(disk, "size=1m", FULL.replace("FILL", "[bytes(1 << 18)] * 5"))
    line = f"the disk that holds {disk} is full: free some space or lower the quota\n"
    assert said == f"{line}{line}['old'] b'old'\n"


def test_a_disk_without_room_for_another_file_is_full_too(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    said = run_on_disk(disk, "size=1m,nr_inodes=2", FULL.replace("FILL", "[b'1']"))  # the root and one file
    line = f"the disk that holds {disk} is full: free some space or lower the quota\n"
    assert said == f"{line}{line}['old'] b'old'\n"


def test_other_failures_of_the_disk_are_not_called_full(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_synced(tmp_path / "missing" / "file", (b"1",))


class TestLock:
    CHILD = "import sys; from pathlib import Path; from p2pnode.files import lock_directory\nBODY"

    def run(self, body: str, directory: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", self.CHILD.replace("BODY", body), str(directory)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)

    def test_a_directory_is_one_process_s_at_a_time(self, tmp_path: Path) -> None:
        body = "with lock_directory(Path(sys.argv[1])): print('held')"
        with lock_directory(tmp_path):
            other = self.run(body, tmp_path)
            assert other.returncode == 1
            assert f"{tmp_path} is in use by another p2pnode process" in other.stderr
            with pytest.raises(ConfigError), lock_directory(tmp_path):
                pass
        assert self.run(body, tmp_path).stdout == "held\n"

    def test_a_killed_process_leaves_no_lock(self, tmp_path: Path) -> None:
        body = "with lock_directory(Path(sys.argv[1])): import os; os.kill(os.getpid(), 9)"
        assert self.run(body, tmp_path).returncode == -9
        with lock_directory(tmp_path):
            pass


def test_a_process_may_open_as_much_as_the_system_lets_it() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = DESCRIPTORS if limits[1] == resource.RLIM_INFINITY else min(DESCRIPTORS, limits[1])
    try:
        for soft, after in ((highest - 1, highest), (highest, highest)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, limits[1]))
            allow_descriptors()
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (after, limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_no_more_is_read_of_a_file_than_its_kind_has(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    for size in (6, 1 << 40):
        os.truncate(path, size)
        with pytest.raises(OSError, match="it is larger than 5 bytes"):
            read_bounded(path, 5)
