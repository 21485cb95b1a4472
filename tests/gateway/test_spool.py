"""Bodies on their way: within the quota over all of them, and without a trace afterwards."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from p2pnode.errors import InputError, SpaceError
from p2pnode.gateway import spool as spooling
from p2pnode.gateway.spool import Piece, Spool, Spooled


async def test_a_body_is_read_back_from_any_place(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    async with spool.open(announced=0) as spooled:
        spooled.expect(10)
        spooled.write(b"01234")
        spooled.write(memoryview(b"56789"))
        assert (spooled.length, spooled.read(3, 7), spooled.read(0, 10)) == (10, b"3456", b"0123456789")
        assert Piece(spooled, 4, 3, "a file").read(1, 3) == b"56"
        with pytest.raises(InputError):
            spooled.read(5, 11)


async def test_bodies_share_a_quota_that_comes_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path, quota_bytes=100)
    async with spool.open(announced=60):
        with pytest.raises(SpaceError):
            async with spool.open(announced=41):
                pass
        async with spool.open(announced=0) as other:
            other.expect(40)
            other.expect(10)
            with pytest.raises(SpaceError):
                other.expect(41)
            assert spool.claimed_bytes == 100
    assert spool.claimed_bytes == 0


async def test_what_was_claimed_comes_back_from_a_request_that_is_cancelled(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with trio.CancelScope() as scope:
        async with spool.open(announced=60) as spooled:
            spooled.expect(1_000)
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert (spool.claimed_bytes, os.listdir(tmp_path)) == (0, [])


async def test_some_of_the_disk_is_left_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = os.statvfs(tmp_path)
    spool = Spool(tmp_path)
    monkeypatch.setattr(spooling, "KEPT_FREE_BYTES", stat.f_bavail * stat.f_frsize + (1 << 40))
    with pytest.raises(SpaceError, match="nearly full"):
        async with spool.open(announced=1):
            pass
    assert spool.claimed_bytes == 0


def test_nothing_outlives_a_kill(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, os, signal\n"
        "from p2pnode.gateway.spool import Spool, Spooled\n"
        f"spooled = Spooled(Spool(pathlib.Path({str(tmp_path)!r})), 1 << 20)\n"
        "spooled.write(bytes(1 << 20))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_more_than_was_claimed_is_a_fault_of_ours(tmp_path: Path) -> None:
    spooled = Spooled(Spool(tmp_path), 10)
    with pytest.raises(AssertionError):
        spooled.write(bytes(11))
