"""The vote log keeps what it acknowledged, drops a torn batch as a whole, and tells a tear from damage."""

import errno
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from economics.crypto import Digest
from p2pnode.consensus import votelog as votelog_module
from p2pnode.consensus.votelog import FRAME_BYTES, HEAD_BYTES, Record, Replay, VoteLog
from p2pnode.errors import ConfigError, DiskFailed, SpaceError
from tests.p2pnode.disk import run_on_disk

CHAIN = Digest(b"c" * 32)
BATCHES: list[list[Record]] = [[(1, b"first")], [(2, b""), (255, bytes(range(256)))], [(1, b"third"), (3, b"x" * 40)]]


def flat(batches: list[list[Record]]) -> list[Record]:
    return [record for batch in batches for record in batch]


def reopen(path: Path) -> Replay:
    log, replay = VoteLog.open(path, CHAIN)
    log.close()
    return replay


def write(path: Path, batches: list[list[Record]]) -> list[int]:
    """Make a log of these batches; return the size of its file before each and at the end."""
    log, _ = VoteLog.open(path, CHAIN)
    sizes = [log.size]
    for batch in batches:
        log.append(batch)
        sizes.append(log.size)
    log.close()
    assert path.stat().st_size == sizes[-1]
    return sizes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chain" / "votes.log"


class TestReplay:
    def test_of_a_new_log_is_empty_and_says_so(self, path: Path) -> None:
        assert reopen(path) == Replay([], 0, corrupt=False, created=True)
        assert reopen(path) == Replay([], 0, corrupt=False, created=False)

    def test_returns_what_was_appended_in_order_over_many_starts(self, path: Path) -> None:
        expected: list[Record] = []
        for start in range(4):
            log, replay = VoteLog.open(path, CHAIN)
            assert replay == Replay(expected, 0, corrupt=False, created=start == 0)
            for batch in BATCHES:
                log.append(batch)
                expected = expected + batch
            log.close()

    def test_of_another_chain_s_log_is_refused_and_leaves_it(self, path: Path) -> None:
        write(path, BATCHES)
        before = path.read_bytes()
        with pytest.raises(ConfigError, match="another network's votes"):
            VoteLog.open(path, Digest(b"d" * 32))
        assert path.read_bytes() == before
        assert reopen(path).records == flat(BATCHES)

    def test_of_another_version_s_log_is_refused(self, path: Path) -> None:
        write(path, [])
        head = b"p2pnode votes 9\n" + path.read_bytes()[16 : HEAD_BYTES - 4]
        path.write_bytes(head + zlib.crc32(head).to_bytes(4, "big"))
        with pytest.raises(ConfigError, match="not a vote log of this version"):
            VoteLog.open(path, CHAIN)


class TestTornTail:
    """Whatever a crash leaves of the last batch, the batches before it are there and the log goes on."""

    def check(self, path: Path, damaged: bytes, kept: list[list[Record]], cut_bytes: int) -> None:
        path.write_bytes(damaged)
        log, replay = VoteLog.open(path, CHAIN)
        assert replay == Replay(flat(kept), cut_bytes, corrupt=False, created=False)
        log.append([(7, b"after")])
        log.close()
        assert reopen(path).records == [*flat(kept), (7, b"after")]
        assert sorted(os.listdir(path.parent)) == [path.name]

    def test_cut_at_every_byte_is_dropped(self, path: Path) -> None:
        sizes = write(path, BATCHES)
        data = path.read_bytes()
        for end in range(sizes[-2], sizes[-1]):
            self.check(path, data[:end], BATCHES[:-1], end - sizes[-2])

    def test_cut_at_every_byte_with_zeros_behind_is_dropped(self, path: Path) -> None:
        sizes = write(path, BATCHES)
        data = path.read_bytes()
        for end in range(sizes[-2], sizes[-1] - 1):
            self.check(path, data[:end] + bytes(sizes[-1] - end), BATCHES[:-1], sizes[-1] - sizes[-2])
            if end < sizes[-2] + FRAME_BYTES - 4:  # a file system may show the rest of a block
                self.check(path, data[:end] + bytes(4096), BATCHES[:-1], end + 4096 - sizes[-2])

    def test_with_garbage_from_every_byte_on_is_dropped(self, path: Path) -> None:
        sizes = write(path, BATCHES)
        data = path.read_bytes()
        for end in range(sizes[-2], sizes[-1] - 1):
            garbage = Random(end).randbytes(sizes[-1] - end)
            self.check(path, data[:end] + garbage, BATCHES[:-1], sizes[-1] - sizes[-2])

    def test_with_any_byte_changed_is_dropped(self, path: Path) -> None:
        sizes = write(path, BATCHES)
        data = path.read_bytes()
        for at in range(sizes[-2], sizes[-1]):
            self.check(path, change(data, at), BATCHES[:-1], sizes[-1] - sizes[-2])

    def test_with_any_mixture_of_its_sectors_is_dropped(self, path: Path) -> None:
        batch: list[Record] = [(1, Random(1).randbytes(700)), (2, Random(2).randbytes(900))]
        sizes = write(path, [*BATCHES, batch])
        data = path.read_bytes()
        starts = range(sizes[-2] - sizes[-2] % 64, sizes[-1], 64)
        for seed in range(200):
            torn = bytearray(data)
            lost = [start for start in starts if Random(f"{seed} {start}").random() < 0.5]
            for start in lost:
                first, end = max(start, sizes[-2]), min(start + 64, sizes[-1])
                torn[first:end] = bytes(end - first)
            if lost:
                self.check(path, bytes(torn), BATCHES, sizes[-1] - sizes[-2])

    def test_that_is_a_frame_of_an_older_file_is_dropped(self, path: Path) -> None:
        """A disk may bring back a block that another file held before."""
        other = path.with_name("older")
        first, *_ = write(other, BATCHES)
        stale = other.read_bytes()[first:]
        other.unlink()
        write(path, BATCHES)
        self.check(path, path.read_bytes() + stale, BATCHES, len(stale))

    def test_that_holds_what_looks_like_a_log_is_dropped(self, path: Path) -> None:
        """A member may put any bytes in a transaction, but it cannot know the marker."""
        write(path, BATCHES)
        log = path.read_bytes()
        path.unlink()
        sizes = write(path, [*BATCHES, [(3, log + b"end")]])
        self.check(path, path.read_bytes()[:-2], BATCHES, sizes[-1] - 2 - sizes[-2])


def change(data: bytes, at: int) -> bytes:
    mask = Random(at).randrange(1, 256)
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


class TestDamage:
    """What no crash leaves is damage: the file is kept, and the caller told until it says that all is well."""

    def check(self, path: Path, damaged: bytes, kept: list[Record]) -> None:
        path.write_bytes(damaged)
        replay = reopen(path)
        assert (replay.records, replay.corrupt, replay.created) == (kept, True, False)
        aside = path.with_name(f"{path.name}.damaged-1")
        assert aside.read_bytes() == damaged
        aside.unlink()

    def test_of_any_byte_before_the_last_batch_is_never_a_wrong_record(self, path: Path) -> None:
        sizes = write(path, BATCHES)
        data = path.read_bytes()
        for at in range(sizes[0], sizes[-2]):
            whole = sum(size <= at for size in sizes) - 1
            self.check(path, change(data, at), flat(BATCHES[:whole]))

    def test_of_any_byte_of_the_head_is_found(self, path: Path) -> None:
        write(path, BATCHES)
        data = path.read_bytes()
        for at in range(HEAD_BYTES):
            self.check(path, change(data, at), [])

    def test_of_what_was_there_at_the_start_is_never_called_a_tear(self, path: Path) -> None:
        """It was whole when the file took its name, be it the last frame or not."""
        write(path, BATCHES)
        assert reopen(path).records == flat(BATCHES)  # written anew
        data = path.read_bytes()
        for at in range(HEAD_BYTES, len(data)):
            path.write_bytes(change(data, at))
            replay = reopen(path)
            assert replay.corrupt
            assert replay.records == flat(BATCHES)[: len(replay.records)]
        path.write_bytes(data[:-1])
        assert reopen(path).corrupt

    def test_of_two_batches_at_the_end_is_found(self, path: Path) -> None:
        sizes = write(path, BATCHES)
        data = path.read_bytes()
        lost = data[: sizes[1] + FRAME_BYTES + 3] + bytes(sizes[-1] - sizes[1] - FRAME_BYTES - 3)
        self.check(path, lost, flat(BATCHES[:1]))

    def test_by_a_batch_that_is_missing_or_there_twice_is_found(self, path: Path) -> None:
        sizes = write(path, BATCHES)
        data = path.read_bytes()
        self.check(path, data[: sizes[1]] + data[sizes[2] :], flat(BATCHES[:1]))
        self.check(path, data + data[sizes[2] :], flat(BATCHES))

    def test_stays_known_over_starts_until_it_is_healed(self, path: Path) -> None:
        sizes = write(path, BATCHES)
        path.write_bytes(change(path.read_bytes(), sizes[1] + 2))
        assert reopen(path).corrupt
        log, replay = VoteLog.open(path, CHAIN)
        assert (replay.corrupt, replay.cut_bytes) == (True, 0)
        log.append([(9, b"new")])
        log.prune(lambda kind, _payload: kind == 9)
        assert reopen(path).corrupt
        log, _ = VoteLog.open(path, CHAIN)
        log.heal()
        log.append([(9, b"more")])
        log.close()
        assert reopen(path) == Replay([(9, b"new"), (9, b"more")], 0, corrupt=False, created=False)

    def test_files_are_all_kept(self, path: Path) -> None:
        for number in range(1, 4):
            sizes = write(path, BATCHES)
            path.write_bytes(change(path.read_bytes(), sizes[0] - 1))
            assert reopen(path).corrupt
            names = {f"{path.name}.damaged-{count}" for count in range(1, number + 1)}
            assert set(os.listdir(path.parent)) == {path.name, *names}

    def test_leaves_a_log_under_its_name_whenever_the_machine_stops(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without one a start would look like the first of all, and sign."""
        sizes = write(path, BATCHES)
        path.write_bytes(change(path.read_bytes(), sizes[1] + 2))

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        for name in ("link", "fsync", "replace"):
            with monkeypatch.context() as patch:
                patch.setattr(os, name, stop)
                with pytest.raises(KeyboardInterrupt):
                    VoteLog.open(path, CHAIN)
            assert path.exists()
        assert reopen(path).corrupt


class TestDurability:
    @pytest.fixture
    def calls(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The system calls that matter, in order."""
        made: list[str] = []

        def record(name: str, real: Callable[..., object], show: Callable[..., str]) -> None:
            def call(*args: object) -> object:
                made.append(f"{name} {show(*args)}")
                return real(*args)

            monkeypatch.setattr(os, name, call)

        def name_of(handle: int, *_: object) -> str:
            return Path(os.readlink(f"/proc/self/fd/{handle}")).name

        for name in ("fsync", "fdatasync", "pwrite", "ftruncate"):
            record(name, getattr(os, name), name_of)
        for name in ("replace", "link"):
            record(name, getattr(os, name), lambda source, target: f"{Path(source).name} {Path(target).name}")
        return made

    REWRITE = ("fsync votes.log.new", "replace votes.log.new votes.log", "fsync chain")

    def test_of_an_append_is_one_write_and_one_sync(self, path: Path, calls: list[str]) -> None:
        log, _ = VoteLog.open(path, CHAIN)
        calls.clear()
        for batch in BATCHES:
            log.append(batch)
        assert calls == ["pwrite votes.log", "fdatasync votes.log"] * 3

    def test_of_a_new_log_includes_every_directory(self, path: Path, tmp_path: Path, calls: list[str]) -> None:
        reopen(path)
        assert calls == [f"fsync {tmp_path.name}", *self.REWRITE]

    def test_of_a_replay_is_made_anew(self, path: Path, calls: list[str]) -> None:
        """An fsync that failed may have left bytes in the page cache alone; the log was read from there."""
        write(path, BATCHES)
        calls.clear()
        reopen(path)
        assert calls == [*self.REWRITE]

    def test_of_a_damaged_file_s_second_name_comes_first(self, path: Path, calls: list[str]) -> None:
        sizes = write(path, BATCHES)
        path.write_bytes(change(path.read_bytes(), sizes[1] + 2))
        calls.clear()
        reopen(path)
        assert calls == ["link votes.log votes.log.damaged-1", "fsync chain", *self.REWRITE]

    def test_of_a_log_written_anew_comes_before_its_name(self, path: Path, calls: list[str]) -> None:
        log, _ = VoteLog.open(path, CHAIN)
        calls.clear()
        log.rewrite(flat(BATCHES))
        assert calls == [*self.REWRITE]
        log.append([(1, b"more")])
        assert log.size == path.stat().st_size
        log.close()
        assert reopen(path).records == [*flat(BATCHES), (1, b"more")]

    def test_gets_all_of_a_batch_where_the_disk_takes_a_few_bytes(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: pwrite(handle, data[:3], offset))
        write(path, BATCHES)
        assert reopen(path).records == flat(BATCHES)


class TestPrune:
    def test_keeps_what_is_wanted_and_shrinks_the_file(self, path: Path) -> None:
        log, _ = VoteLog.open(path, CHAIN)
        for batch in BATCHES:
            log.append(batch)
        before = log.size
        log.prune(lambda kind, payload: kind == 1 and payload != b"first")
        assert log.size == path.stat().st_size < before
        log.append([(2, b"later")])
        log.close()
        assert reopen(path).records == [(1, b"third"), (2, b"later")]

    def test_finds_out_that_the_file_has_changed(self, path: Path) -> None:
        log, _ = VoteLog.open(path, CHAIN)
        log.append(BATCHES[0])
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(DiskFailed, match="other bytes than were written"):
            log.prune(lambda _kind, _payload: True)
        with pytest.raises(DiskFailed):
            log.append(BATCHES[1])


class TestFailure:
    def fail(self, code: int, after: int = 0) -> Callable[..., object]:
        left = [after]

        def call(*args: object) -> object:
            left[0] -= 1
            if left[0] >= 0:
                return os.write(args[0], args[1][:5])  # type: ignore[arg-type,index]
            raise OSError(code, os.strerror(code))

        return call

    @pytest.mark.parametrize("name", ["fdatasync", "pwrite"])
    def test_of_the_disk_ends_the_log_for_good(self, path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        """The sync after a failed one may succeed and have written nothing."""
        log, _ = VoteLog.open(path, CHAIN)
        log.append(BATCHES[0])
        with monkeypatch.context() as patch:
            patch.setattr(os, name, self.fail(errno.EIO))
            with pytest.raises(DiskFailed, match="cannot write"):
                log.append(BATCHES[1])
        with pytest.raises(DiskFailed, match="start the node again"):
            log.append(BATCHES[1])
        with pytest.raises(DiskFailed, match="start the node again"):
            log.rewrite([])
        assert reopen(path).records[:1] == BATCHES[0]

    def test_of_a_sync_for_want_of_room_ends_it_too(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        log, _ = VoteLog.open(path, CHAIN)
        monkeypatch.setattr(os, "fdatasync", self.fail(errno.ENOSPC))
        with pytest.raises(DiskFailed):
            log.append(BATCHES[1])

    @pytest.mark.parametrize("name", ["fsync", "replace", "write"])
    def test_of_writing_it_anew_ends_it(self, path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        write(path, BATCHES)
        log, _ = VoteLog.open(path, CHAIN)
        with monkeypatch.context() as patch:
            patch.setattr(os, name, self.fail(errno.EIO))
            with pytest.raises(DiskFailed):
                log.rewrite([])
        with pytest.raises(DiskFailed):
            log.append(BATCHES[0])
        assert reopen(path).records == flat(BATCHES)

    def test_for_want_of_room_adds_nothing_and_the_log_goes_on(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log, _ = VoteLog.open(path, CHAIN)
        log.append(BATCHES[0])
        size = log.size
        pwrite = os.pwrite
        taken: list[int] = []

        def fill(handle: int, data: bytes, offset: int) -> int:
            if taken:
                raise OSError(errno.ENOSPC, "full")
            taken.append(pwrite(handle, data[: len(data) - 4], offset))
            return taken[0]

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", fill)
            with pytest.raises(SpaceError, match="is full: free some space"):
                log.append(BATCHES[1])
        assert log.size == path.stat().st_size == size
        log.append(BATCHES[2])
        log.close()
        assert reopen(path).records == [*BATCHES[0], *BATCHES[2]]

    def test_of_undoing_a_write_ends_it(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        log, _ = VoteLog.open(path, CHAIN)
        monkeypatch.setattr(os, "pwrite", self.fail(errno.ENOSPC))
        monkeypatch.setattr(os, "ftruncate", self.fail(errno.EIO))
        with pytest.raises(DiskFailed):
            log.append(BATCHES[0])

    def test_on_a_full_disk_keeps_the_old_log(self, tmp_path: Path) -> None:
        body = """
from p2pnode.errors import SpaceError
from p2pnode.consensus.votelog import VoteLog
path = disk / "chain" / "votes.log"
log, _ = VoteLog.open(path, bytes(32))
log.append([(1, b"first")])
for change in (lambda: log.append([(1, bytes(1 << 20))]), lambda: log.rewrite([(1, bytes(1 << 20))])):
    try:
        change()
    except SpaceError:
        print("full")
log.append([(2, b"second")])
log.close()
print(VoteLog.open(path, bytes(32))[1].records)
"""
        said = run_on_disk(tmp_path / "disk", "size=512k", body)
        assert said == "full\nfull\n[(1, b'first'), (2, b'second')]\n"

    def test_is_named_where_the_log_cannot_be_read(self, path: Path) -> None:
        path.mkdir(parents=True)
        with pytest.raises(DiskFailed, match="cannot read"):
            VoteLog.open(path, CHAIN)


def test_a_batch_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(votelog_module, "BODY_BYTES_MAX", 100)
    log, _ = VoteLog.open(path, CHAIN)
    log.append([(1, bytes(95))])
    too_small: list[Record] = []
    for batch in (too_small, [(1, bytes(96))]):
        with pytest.raises(AssertionError):
            log.append(batch)
