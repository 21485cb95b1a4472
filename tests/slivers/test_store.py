"""What the store acknowledges is on disk, what it serves is checked from the root down, and what it counts is true."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from economics import cbor
from economics.blob import BlobId, Root, build_blob_id_text
from economics.commitments import OwnerStatement, ReservationId
from economics.crypto import Signature
from economics.errors import Reason, Rejected
from p2pnode.coding.codec import EncodedSegment, Kind
from p2pnode.errors import SpaceError
from p2pnode.slivers import store as store_module
from p2pnode.slivers.records import ENTRIES_MAX, BlobRecord, Entry
from p2pnode.slivers.store import CorruptSliver, SliverStore
from tests import reference
from tests.p2pnode.disk import run_on_disk
from tests.refusals import reason
from tests.small import (
    Blob,
    certify,
    commit,
    encode_blob,
    make_blob,
    make_codec,
    make_genesis,
    make_pairs,
    make_statement,
    sign_statement,
)

GENESIS = make_genesis((2, 1, 1))
"""n = 4: P = 2, S = 3. The store is the first member's, with shards 0 and 1."""
CODE = GENESIS.code
SHARDS = (0, 1)
QUOTA = 1 << 30


def open_store(directory: Path, *, quota: int = QUOTA) -> SliverStore:
    codec = make_codec(GENESIS)
    return SliverStore(directory, codec=codec, chain_id=GENESIS.chain_id, quota_bytes=quota)


def put(store: SliverStore, segment: EncodedSegment, shards: Sequence[int] = SHARDS) -> None:
    store.put_segment(segment.metadata, segment.z, make_pairs(segment, shards))


def put_blob(store: SliverStore, blob: Blob) -> None:
    for segment in blob.segments:
        put(store, segment)
    store.put_entry(blob.header, make_entry(blob))


def make_entry(blob: Blob, salt: int = 0) -> Entry:
    statement = make_statement(GENESIS, blob.header, salt=salt.to_bytes(16, "big"))
    return Entry(statement, sign_statement(statement), 0, commit(statement, 0)[1])


def segment_of(length: int, seed: int = 0) -> EncodedSegment:
    return make_blob(CODE, length, seed).segments[0]


def files_of(store: SliverStore) -> dict[str, bytes]:
    return {
        str(path.relative_to(store.directory)): path.read_bytes()
        for path in sorted(store.directory.rglob("*"))
        if path.is_file()
    }


@dataclass(frozen=True)
class State:
    """All that a store shows, and its directory."""

    used_bytes: int
    unclosed_bytes: int
    records: dict[BlobId, BlobRecord]
    missing: dict[Root, list[int]]
    files: dict[str, bytes]


def state(store: SliverStore, *roots: Root) -> State:
    missing = {root: store.missing(root, SHARDS) for root in roots}
    return State(store.used_bytes, store.unclosed_bytes, store.records(), missing, files_of(store))


def path_of(store: SliverStore, root: Root, shard: int) -> Path:
    """FORMATS.md says what is in a sliver file; its name is the store's."""
    return store.directory / "slivers" / root[:1].hex() / f"{build_blob_id_text(BlobId(root))}.{shard}"


def all_slivers(segment: EncodedSegment, shard: int) -> dict[tuple[Kind, int], bytes]:
    pair = CODE.pair_of_shard(shard, segment.root)
    column = CODE.n - 1 - pair
    primary, secondary = bytes(segment.primary(pair)), b"".join(segment.secondary(column))
    return {(Kind.PRIMARY, pair): primary, (Kind.SECONDARY, column): secondary}


def serve(store: SliverStore, segment: EncodedSegment, shard: int) -> dict[str, Any]:
    """Ask for all that the store has of a shard; return what came, by what was asked."""
    served: dict[str, Any] = {}
    questions: dict[str, Callable[[], Any]] = {"metadata": lambda: store.read_metadata(segment.root)}
    for (kind, index), _ in all_slivers(segment, shard).items():
        width = CODE.columns if kind is Kind.PRIMARY else CODE.rows
        questions[kind.name] = lambda kind=kind, index=index, width=width: store.read_symbols(  # type: ignore[misc]
            segment.root, kind, index, first=0, count=width
        )
    for name, question in questions.items():
        try:
            served[name] = question()
        except (CorruptSliver, Rejected) as fault:
            served[name] = type(fault)
    return served


def truth(segment: EncodedSegment, shard: int) -> dict[str, Any]:
    served: dict[str, Any] = {"metadata": segment.metadata}
    for (kind, index), data in all_slivers(segment, shard).items():
        served[kind.name] = store_module.Symbols(segment.leaves_of(kind, index), data)
    return served


class TestSliverFile:
    def test_has_the_bytes_that_the_format_says(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        segment, data = segment_of(100), make_blob(CODE, 100).data
        put(store, segment, range(4))
        matrix = reference.expanded(4, data)
        hashes = reference.metadata(matrix)
        for shard in range(4):
            assert path_of(store, segment.root, shard).read_bytes() == reference.sliver_file(4, matrix, hashes, shard)

    def test_serves_any_range_of_symbols_with_the_leaves(self, tmp_path: Path) -> None:
        store, segment = open_store(tmp_path), segment_of(100)
        put(store, segment)
        z = segment.z
        for shard in SHARDS:
            for (kind, index), data in all_slivers(segment, shard).items():
                width = CODE.columns if kind is Kind.PRIMARY else CODE.rows
                for first in range(width):
                    for count in range(1, width - first + 1):
                        symbols = store.read_symbols(segment.root, kind, index, first=first, count=count)
                        assert symbols.data == data[first * z : (first + count) * z]
                        assert symbols.leaves == segment.leaves_of(kind, index)
        assert store.read_metadata(segment.root) == segment.metadata

    @pytest.mark.parametrize(
        ("kind", "index", "first", "count"),
        [
            (Kind.PRIMARY, -1, 0, 1),
            (Kind.PRIMARY, 4, 0, 1),
            (Kind.PRIMARY, 0, -1, 1),
            (Kind.PRIMARY, 0, 0, -1),
            (Kind.PRIMARY, 0, 0, 4),
            (Kind.PRIMARY, 0, 3, 1),
            (Kind.SECONDARY, 0, 0, 3),
            (Kind.SECONDARY, 0, 2, 1),
        ],
    )
    def test_has_no_symbols_outside_of_its_slivers(
        self, tmp_path: Path, kind: Kind, index: int, first: int, count: int
    ) -> None:
        store, segment = open_store(tmp_path), segment_of(100)
        put(store, segment, range(4))
        assert reason(store.read_symbols, segment.root, kind, index, first=first, count=count) is Reason.WRONG_INDEX

    def test_of_another_holder_or_an_unknown_segment_is_not_found(self, tmp_path: Path) -> None:
        store, segment = open_store(tmp_path), segment_of(100)
        put(store, segment)
        pair = CODE.pair_of_shard(3, segment.root)
        assert reason(store.read_symbols, segment.root, Kind.PRIMARY, pair, first=0, count=1) is Reason.NOT_FOUND
        assert reason(store.read_symbols, Root(bytes(32)), Kind.PRIMARY, 0, first=0, count=1) is Reason.NOT_FOUND
        assert reason(store.read_metadata, Root(bytes(32))) is Reason.NOT_FOUND

    def test_is_synced_before_it_takes_its_name_and_its_name_before_it_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No crash can be made here, so the order of the calls is the claim."""
        store, segment = open_store(tmp_path), segment_of(100)
        calls: list[str] = []
        fsync, rename = os.fsync, os.replace

        def record_fsync(handle: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{handle}"))
            calls.append(f"fsync {path.relative_to(tmp_path).parts[0]}{' directory' * path.is_dir()}")
            assert store.missing(segment.root, SHARDS) == list(SHARDS)
            fsync(handle)

        def record_replace(source: Path, target: Path) -> None:
            calls.append(f"{source.parent.name} to {target.parent.parent.name}")
            rename(source, target)

        monkeypatch.setattr(os, "fsync", record_fsync)
        monkeypatch.setattr(os, "replace", record_replace)
        put(store, segment)
        synced, named = ["fsync tmp"] * 2, ["tmp to slivers"] * 2
        assert calls == [*synced, "fsync slivers directory", *named, "fsync slivers directory"]
        assert store.missing(segment.root, SHARDS) == []


class TestStart:
    def fill(self, directory: Path) -> tuple[SliverStore, list[Root]]:
        store = open_store(directory)
        closed, certified, given_up = make_blob(CODE, 1500), make_blob(CODE, 10, 1), make_blob(CODE, 2000, 2)
        put_blob(store, closed)
        put_blob(store, certified)
        assert store.put_certificate(certify(GENESIS, make_entry(certified).statement, (0, 1)))
        put(store, given_up.segments[0])
        put(store, given_up.segments[1], [1])
        return store, [root for blob in (closed, certified, given_up) for root in blob.header.roots]

    def test_reads_everything_off_the_directory(self, tmp_path: Path) -> None:
        store, roots = self.fill(tmp_path)
        again = open_store(tmp_path)
        assert state(again, *roots) == state(store, *roots)
        assert (again.foreign_files, again.corrupt_slivers) == (0, 0)
        assert again.used_bytes == sum(len(data) for name, data in files_of(again).items() if name.startswith("sliv"))
        assert 0 < again.unclosed_bytes < again.used_bytes
        assert again.missing(roots[-1], SHARDS) == [0]

    def test_remembers_the_order_in_which_uploads_came(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        segments = [segment_of(100, seed) for seed in range(5)]
        for age, segment in enumerate(segments):
            put(store, segment)
            for shard in SHARDS:
                os.utime(path_of(store, segment.root, shard), ns=(0, 10**18 - age))
        again = open_store(tmp_path)
        for left in range(4, -1, -1):
            again.evict(1)
            assert [not again.missing(segment.root, SHARDS) for segment in segments] == [True] * left + [False] * (
                5 - left
            )

    def test_removes_what_a_crash_left(self, tmp_path: Path) -> None:
        store, roots = self.fill(tmp_path)
        before = state(store, *roots)
        (tmp_path / "tmp" / "half.0.1").write_bytes(b"half")
        name = next((tmp_path / "blobs").iterdir()).name
        (tmp_path / "blobs" / f"{name}.new").write_bytes(b"half")
        again = open_store(tmp_path)
        assert state(again, *roots) == before
        assert again.foreign_files == 0

    def test_leaves_foreign_files_alone_and_does_not_count_them(self, tmp_path: Path) -> None:
        store, roots = self.fill(tmp_path)
        real = path_of(store, roots[0], 0)
        foreign = {
            "slivers/readme": b"1",
            "slivers/00/readme": b"2",
            "slivers/00/x.0": b"3",
            f"slivers/00/{real.name}": b"in another drawer",
            f"slivers/{real.name}": b"in no drawer",
            f"slivers/{real.parent.name}.bak/{real.name}": b"a copy of a drawer",
            f"{real.parent.relative_to(tmp_path)}/{real.stem}.4": b"of no shard",
            f"{real.parent.relative_to(tmp_path)}/{real.stem}.01": b"another spelling",
            f"{real.parent.relative_to(tmp_path)}/{real.stem}.": b"no shard",
            f"{real.parent.relative_to(tmp_path)}/{real.stem}": b"no dot",
            "blobs/readme": b"4",
            f"blobs/{build_blob_id_text(BlobId(bytes(32)))}": b"no record",
            f"blobs/{build_blob_id_text(BlobId(bytes([1]) * 32))}/file": b"5",
            "blobs/folder.new/file": b"6",
            "tmp/folder/file": b"7",
        }
        if real.parent.name == "00":
            del foreign[f"slivers/00/{real.name}"]
        before = state(store, *roots)
        for name, data in foreign.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(data)
        again = open_store(tmp_path)
        assert state(again, *roots) == replace(before, files={**before.files, **foreign})
        assert again.foreign_files == len(foreign) - 1  # tmp is not looked through

    def test_takes_no_record_for_another_blob_s(self, tmp_path: Path) -> None:
        store, _ = self.fill(tmp_path)
        one, two = (tmp_path / "blobs" / build_blob_id_text(blob_id) for blob_id in store.records())
        one.write_bytes(two.read_bytes())
        again = open_store(tmp_path)
        assert len(again.records()) == 1
        assert again.foreign_files == 1


class TestDamage:
    """One file of one shard, n = 4: head 56, metadata 256, leaves 2 x 128, primary 3z, secondary 2z."""

    segment = segment_of(12)
    other = segment_of(12, 1)
    shard = 1

    @pytest.fixture
    def store(self, tmp_path: Path) -> SliverStore:
        store = open_store(tmp_path)
        put(store, self.segment)
        put(store, self.other)
        return store

    def expect_dropped(self, store: SliverStore, spared: Sequence[str] = ()) -> None:
        """The other shard's file still has the metadata; nothing of the damaged one comes but what is `spared`."""
        expected = truth(self.segment, self.shard)
        before = store.used_bytes
        served = serve(store, self.segment, self.shard)
        wrong = {
            name: value for name, value in served.items() if value not in (expected[name], CorruptSliver, Rejected)
        }
        assert wrong == {}
        assert {name for name in served if served[name] == expected[name]} == {"metadata", *spared}
        assert store.missing(self.segment.root, SHARDS) == [self.shard]
        assert store.corrupt_slivers == 1
        assert store.used_bytes == before - store.layout.file_bytes(self.segment.z)
        assert store.unclosed_bytes == store.used_bytes
        assert not path_of(store, self.segment.root, self.shard).exists()
        put(store, self.segment)
        assert serve(store, self.segment, self.shard) == expected
        assert store.used_bytes == before

    def test_of_one_byte_in_any_part_is_found_and_the_file_dropped(self, store: SliverStore) -> None:
        path = path_of(store, self.segment.root, self.shard)
        whole = path.read_bytes()
        assert len(whole) == store.layout.file_bytes(self.segment.z) == 568 + 5 * 2
        regions = (0, 16, 18, 20, 24, 56, 312, 440, 568, 574, len(whole))
        ends = {at for start in regions for at in (start - 1, start)} - {-1, len(whole)}
        for at in sorted(ends | set(range(0, len(whole), 9))):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            store.corrupt_slivers = 0
            # The primary sliver is asked for first, and is right if only the secondary's part is wrong.
            spares = at in range(440, 568) or at >= 574
            self.expect_dropped(store, ["PRIMARY"] if spares else [])

    @pytest.mark.parametrize("size", [0, 1, 55, 56, 567, 568, 577])
    def test_of_the_end_is_found(self, store: SliverStore, size: int) -> None:
        os.truncate(path_of(store, self.segment.root, self.shard), size)
        self.expect_dropped(store)

    def test_that_makes_it_longer_is_found(self, store: SliverStore) -> None:
        with path_of(store, self.segment.root, self.shard).open("ab") as file:
            file.write(b"\0")
        self.expect_dropped(store)

    def test_that_leaves_symbols_of_no_bytes_is_found(self, store: SliverStore) -> None:
        path = path_of(store, self.segment.root, self.shard)
        whole = path.read_bytes()
        path.write_bytes(whole[:20] + bytes(4) + whole[24:568])
        self.expect_dropped(store)

    def test_by_a_write_meant_for_another_segment_is_found(self, store: SliverStore) -> None:
        theirs = path_of(store, self.other.root, self.shard).read_bytes()
        path_of(store, self.segment.root, self.shard).write_bytes(theirs)
        self.expect_dropped(store)

    def test_by_a_write_meant_for_another_shard_is_found(self, store: SliverStore) -> None:
        theirs = path_of(store, self.segment.root, 0).read_bytes()
        path_of(store, self.segment.root, self.shard).write_bytes(theirs)
        self.expect_dropped(store)

    def test_by_a_lost_file_is_found(self, store: SliverStore) -> None:
        path_of(store, self.segment.root, self.shard).unlink()
        self.expect_dropped(store)

    def test_of_the_first_file_s_metadata_is_made_good_by_the_second(self, store: SliverStore) -> None:
        for shard in SHARDS:
            assert store.read_metadata(self.segment.root) == self.segment.metadata
            os.truncate(path_of(store, self.segment.root, shard), 100)
        assert reason(store.read_metadata, self.segment.root) is Reason.NOT_FOUND
        assert store.missing(self.segment.root, SHARDS) == list(SHARDS)
        assert store.corrupt_slivers == 2


class TestQuota:
    def test_is_hard_to_the_last_byte(self, tmp_path: Path) -> None:
        segment = segment_of(100)
        size = 2 * open_store(tmp_path / "other").layout.file_bytes(segment.z)
        store = open_store(tmp_path / "short", quota=size - 1)
        before = state(store, segment.root)
        with pytest.raises(SpaceError, match=f"the quota of {size - 1} bytes is used up"):
            put(store, segment)
        assert state(store, segment.root) == before
        store = open_store(tmp_path / "exact", quota=size)
        put(store, segment)
        assert store.used_bytes == size

    def test_makes_room_by_the_oldest_uploads_that_nobody_refers_to(self, tmp_path: Path) -> None:
        segments = [segment_of(100, seed) for seed in range(7)]
        size = 2 * open_store(tmp_path / "other").layout.file_bytes(segments[0].z)
        store = open_store(tmp_path / "store", quota=6 * size)
        referred = make_blob(CODE, 100, 0)
        assert referred.header.roots == (segments[0].root,)
        put_blob(store, referred)
        held: set[Root] = set()
        with store.held(held):
            for segment in segments[1:6]:
                put(store, segment)
            store.hold(held, segments[1].root)
            put(store, segments[6])
            assert [not store.missing(one.root, SHARDS) for one in segments] == [
                True,
                True,
                False,
                True,
                True,
                True,
                True,
            ]
            store.evict(10 * size)
            assert [not store.missing(one.root, SHARDS) for one in segments] == [True, True, *[False] * 5]
            assert (store.used_bytes, store.unclosed_bytes) == (2 * size, size)
        store.evict(1)
        assert [not store.missing(one.root, SHARDS) for one in segments] == [True, *[False] * 6]
        assert (store.used_bytes, store.unclosed_bytes) == (size, 0)
        assert len([name for name in files_of(store) if name.startswith("slivers")]) == 2

    def test_holds_are_counted_by_upload(self, tmp_path: Path) -> None:
        store, segment = open_store(tmp_path), segment_of(100)
        put(store, segment)
        one: set[Root] = set()
        with store.held(one):
            two: set[Root] = set()
            with store.held(two):
                store.hold(one, segment.root)
                store.hold(one, segment.root)
                store.hold(two, segment.root)
            store.evict(1)
            assert not store.missing(segment.root, SHARDS)
        store.evict(1)
        assert store.missing(segment.root, SHARDS)

    def test_refuses_when_what_is_there_may_not_go(self, tmp_path: Path) -> None:
        blob, segment = make_blob(CODE, 100), segment_of(100, 1)
        size = 2 * open_store(tmp_path / "other").layout.file_bytes(segment.z)
        store = open_store(tmp_path / "store", quota=2 * size - 1)
        put_blob(store, blob)
        before = state(store, segment.root)
        with pytest.raises(SpaceError):
            put(store, segment)
        assert state(store, segment.root) == before

    def test_is_never_passed_in_between(self, tmp_path: Path) -> None:
        """A segment is counted from before its first byte is written: no other thread sees it uncounted."""
        store, segment = open_store(tmp_path), segment_of(100)
        seen: list[int] = []

        class Lock:
            """The store's lock, which notes what others may see when it is free."""

            def __init__(self) -> None:
                self.real = threading.RLock()
                self.depth = 0

            def __enter__(self) -> None:
                self.real.acquire()
                self.depth += 1

            def __exit__(self, *_: object) -> None:
                self.depth -= 1
                if not self.depth:
                    seen.append(store.used_bytes)
                self.real.release()

        store._lock = Lock()  # type: ignore[assignment]
        put(store, segment)
        assert seen == sorted(seen)
        assert {*seen} == {0, 2 * store.layout.file_bytes(segment.z)}


class TestSegments:
    def test_put_twice_is_put_once(self, tmp_path: Path) -> None:
        store, segment = open_store(tmp_path), segment_of(100)
        put(store, segment)
        before = state(store, segment.root)
        put(store, segment)
        assert state(store, segment.root) == before
        assert before.used_bytes == before.unclosed_bytes == 2 * store.layout.file_bytes(segment.z)

    def test_are_shared_by_the_blobs_that_have_them(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        same = make_blob(CODE, 1000)
        twice, more = encode_blob(CODE, same.data * 2), encode_blob(CODE, same.data + b"more")
        put_blob(store, twice)
        size = 2 * store.layout.file_bytes(same.segments[0].z)
        assert (store.used_bytes, store.unclosed_bytes) == (size, 0)
        put_blob(store, more)
        tail = 2 * store.layout.file_bytes(more.segments[1].z)
        assert (store.used_bytes, store.unclosed_bytes) == (size + tail, 0)
        again = open_store(tmp_path)
        again.evict(QUOTA)
        assert (again.used_bytes, again.unclosed_bytes) == (size + tail, 0)

    def test_are_unclosed_until_a_record_refers_to_them(self, tmp_path: Path) -> None:
        store, blob = open_store(tmp_path), make_blob(CODE, 1500)
        for segment in blob.segments:
            put(store, segment)
        assert store.unclosed_bytes == store.used_bytes > 0
        store.put_entry(blob.header, make_entry(blob))
        assert store.unclosed_bytes == 0

    def test_that_are_held_in_part_get_the_rest(self, tmp_path: Path) -> None:
        store, segment = open_store(tmp_path), segment_of(100)
        put(store, segment, [1])
        assert store.missing(segment.root, SHARDS) == [0]
        put(store, segment)
        assert not store.missing(segment.root, SHARDS)
        assert store.used_bytes == 2 * store.layout.file_bytes(segment.z)

    def test_put_by_two_threads_at_once_count_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store, segment = open_store(tmp_path), segment_of(100)
        both = threading.Barrier(2)
        fsync = os.fsync
        met = threading.local()

        def meet(handle: int) -> None:
            if not getattr(met, "done", False):
                met.done = True
                both.wait(timeout=120)  # both have found it missing
            fsync(handle)

        monkeypatch.setattr(os, "fsync", meet)
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(put, store, segment) for _ in range(2)]:
                done.result()
        assert store.used_bytes == store.unclosed_bytes == 2 * store.layout.file_bytes(segment.z)
        assert len(files_of(store)) == 2
        assert serve(store, segment, 0) == truth(segment, 0)


class TestCheckSegment:
    """What a node makes sure of before it signs. n = 4: P = 2 rows, S = 3 columns."""

    def test_passes_what_the_codec_made(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        for length in (0, 1, 5, 6, 7, 100, 999, 1000):
            segment = segment_of(length)
            put(store, segment, range(4))
            store.check_segment(segment.root, length, range(4))

    def test_refuses_missing_slivers(self, tmp_path: Path) -> None:
        store, segment = open_store(tmp_path), segment_of(100)
        assert reason(store.check_segment, segment.root, 100, SHARDS) is Reason.INCOMPLETE
        put(store, segment, [0])
        assert reason(store.check_segment, segment.root, 100, SHARDS) is Reason.INCOMPLETE

    @pytest.mark.parametrize("length", [96, 103, 0, 1000])
    def test_refuses_symbols_of_another_length_s_size(self, tmp_path: Path, length: int) -> None:
        store, segment = open_store(tmp_path), segment_of(100)
        put(store, segment)
        assert reason(store.check_segment, segment.root, length, SHARDS) is Reason.WRONG_ENCODING

    def test_refuses_padding_that_is_not_zero(self, tmp_path: Path) -> None:
        """A writer encodes 120 bytes and says 112: z is the same, and bytes 112 to 119 would be read by nobody.

        n = 5: P = 3, S = 4. The last row and the last column, which hold them, are of different pairs.
        """
        genesis = make_genesis((1, 1, 1, 1, 1))
        padded = make_blob(genesis.code, 120).segments[0]
        seen = set()
        for shard in range(5):
            codec = make_codec(genesis)
            store = SliverStore(tmp_path / str(shard), codec=codec, chain_id=genesis.chain_id, quota_bytes=QUOTA)
            put(store, padded, [shard])
            store.check_segment(padded.root, 120, [shard])
            pair = genesis.code.pair_of_shard(shard, padded.root)
            seen.add(pair)
            if pair in (2, 1):  # row 2, and column 3, which is of pair 5 - 1 - 3
                assert reason(store.check_segment, padded.root, 112, [shard]) is Reason.BAD_PADDING
            else:
                store.check_segment(padded.root, 112, [shard])
        assert seen == {0, 1, 2, 3, 4}

    def test_finds_a_file_that_was_lost(self, tmp_path: Path) -> None:
        store, segment = open_store(tmp_path), segment_of(100)
        put(store, segment)
        path_of(store, segment.root, 1).unlink()
        with pytest.raises(CorruptSliver):
            store.check_segment(segment.root, 100, SHARDS)
        assert reason(store.check_segment, segment.root, 100, SHARDS) is Reason.INCOMPLETE


class TestRecords:
    blob = make_blob(CODE, 1500)

    def test_keep_every_statement_once_and_the_first_certificate(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        one, two = make_entry(self.blob), self.of_reservation(1)
        certificate = certify(GENESIS, one.statement, (0, 1))
        assert not store.put_certificate(certificate)  # of a blob that is not held here
        store.put_entry(self.blob.header, one)
        store.put_entry(self.blob.header, two)
        store.put_entry(self.blob.header, one)
        assert store.put_certificate(certificate)
        assert not store.put_certificate(certify(GENESIS, two.statement, (0, 2)))
        want = {self.blob.header.blob_id: BlobRecord(self.blob.header, (two, one), certificate)}
        assert store.records() == open_store(tmp_path).records() == want
        assert store.record(BlobId(bytes(32))) is None

    def test_are_counted_and_so_are_those_with_a_certificate(self, tmp_path: Path) -> None:
        store, other = open_store(tmp_path), make_blob(CODE, 100)
        store.put_header(other.header)
        store.put_entry(self.blob.header, make_entry(self.blob))
        assert (store.blobs, store.certificates) == (2, 0)
        assert store.put_certificate(certify(GENESIS, make_entry(self.blob).statement, (0, 1)))
        store.put_entry(self.blob.header, self.of_reservation(1))
        again = open_store(tmp_path)
        assert (store.blobs, store.certificates) == (again.blobs, again.certificates) == (2, 1)
        for blob_id, record in again.records().items():
            again.drop_blob(blob_id, record)
        assert (again.blobs, again.certificates) == (0, 0)

    def of_reservation(self, number: int) -> Entry:
        """Return an entry of another reservation; nobody looks at its signatures."""
        plain = make_entry(self.blob)
        reservation = ReservationId(number.to_bytes(32, "big"))
        return replace(plain, statement=replace(plain.statement, reservation=reservation))

    def test_keep_the_newest_statement_of_a_reservation_alone(self, tmp_path: Path) -> None:
        """Else whoever has one could sign so many that no other owner of the same bytes finds room."""
        store, other = open_store(tmp_path), self.of_reservation(1)
        store.put_entry(self.blob.header, other)
        for salt in range(ENTRIES_MAX + 1):
            store.put_entry(self.blob.header, make_entry(self.blob, salt))
        want = (other, make_entry(self.blob, ENTRIES_MAX))
        assert store.records() == {self.blob.header.blob_id: BlobRecord(self.blob.header, want, None)}

    def test_keep_a_bounded_number_of_statements(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        full = BlobRecord(self.blob.header, tuple(self.of_reservation(salt) for salt in range(ENTRIES_MAX)), None)
        (tmp_path / "blobs" / build_blob_id_text(self.blob.header.blob_id)).write_bytes(full.encode())
        store = open_store(tmp_path)
        assert store.records() == {self.blob.header.blob_id: full}
        before = state(store)
        assert reason(store.put_entry, self.blob.header, self.of_reservation(ENTRIES_MAX)) is Reason.OVER_BUDGET
        assert state(store) == before
        store.put_entry(self.blob.header, self.of_reservation(0))  # known: no more than before

    def test_that_are_being_synced_delay_nobody_who_only_looks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The trio thread looks, and a disk may take a second to sync."""
        store = open_store(tmp_path)
        syncing, go_on = threading.Event(), threading.Event()

        def slow(handle: int) -> None:
            syncing.set()
            assert go_on.wait(timeout=240)

        monkeypatch.setattr(os, "fsync", slow)
        writer = threading.Thread(target=store.put_entry, args=(self.blob.header, make_entry(self.blob)))
        writer.start()
        try:
            assert syncing.wait(timeout=120)
            looks = threading.Thread(target=store.record, args=(self.blob.header.blob_id,))
            looks.start()
            looks.join(timeout=120)
            assert not looks.is_alive()
            assert store.record(self.blob.header.blob_id) is None  # not before it is durable
        finally:
            go_on.set()
            writer.join()
            looks.join()
        assert store.record(self.blob.header.blob_id) is not None

    @settings(max_examples=300)
    @given(
        st.sampled_from(["header", "entries", "certificate", "more", "0", "1", "2", "3"]),
        st.none()
        | st.booleans()
        | st.integers(-(2**64), 2**64 - 1)
        | st.binary(max_size=70)
        | st.text(max_size=3)
        | st.lists(st.integers(0, 1) | st.binary(max_size=3), max_size=5),
    )
    def test_of_any_content_are_refused_or_are_that_content(self, place: str, value: cbor.Value) -> None:
        entry = make_entry(self.blob)
        row: list[cbor.Value] = [entry.statement.encode(), entry.statement_signature, entry.epoch, entry.signature]
        if place.isdecimal():
            row[int(place)] = value
        fields: dict[str, cbor.Value] = {"certificate": None, "entries": [row], "header": self.blob.header.encode()}
        if not place.isdecimal():
            fields[place] = value
        data = cbor.encode(fields)
        try:
            record = BlobRecord.decode(data, code=CODE, blob_id=self.blob.header.blob_id, chain_id=GENESIS.chain_id)
        except Rejected:
            return
        assert record.encode() == data

    @pytest.mark.parametrize(
        ("place", "value"), [(1, bytes(63)), (2, True), (2, -1), (3, bytes(65)), (0, bytes(177)), (0, b"")]
    )
    def test_with_a_field_out_of_bounds_are_refused(self, place: int, value: cbor.Value) -> None:
        entry = make_entry(self.blob)
        row: list[cbor.Value] = [entry.statement.encode(), entry.statement_signature, entry.epoch, entry.signature]
        row[place] = value
        data = cbor.encode({"certificate": None, "entries": [row], "header": self.blob.header.encode()})
        blob_id = self.blob.header.blob_id
        assert (
            reason(BlobRecord.decode, data, code=CODE, blob_id=blob_id, chain_id=GENESIS.chain_id) is Reason.MALFORMED
        )

    def test_give_back_the_commitment_that_was_signed(self) -> None:
        entry = make_entry(self.blob)
        statement, signature, commitment, signed = entry.as_commitment(0)
        assert isinstance(statement, OwnerStatement)
        assert (statement, signature, signed) == (entry.statement, entry.statement_signature, entry.signature)
        commitment.verify(Signature(signed), committee=GENESIS.committee)


ON_DISK = """
from p2pnode.slivers import store as module
from p2pnode.errors import SpaceError
from p2pnode.slivers.store import SliverStore
from tests.small import *
genesis = make_genesis((2, 1, 1), segment_bytes=1 << 20)
store = SliverStore(disk, codec=make_codec(genesis), chain_id=genesis.chain_id, quota_bytes=1 << 30)
def put(length, seed):
    segment = make_blob(genesis.code, length, seed).segments[0]
    try:
        store.put_segment(segment.metadata, segment.z, make_pairs(segment, (0, 1)))
    except SpaceError as error:
        print(error)
    print(store.used_bytes, sum(path.stat().st_size for path in disk.rglob("*") if path.is_file()))
"""


class TestFullDisk:
    """A real one, of its own."""

    def test_leaves_nothing_of_a_segment_that_does_not_fit(self, tmp_path: Path) -> None:
        body = "module.DISK_RESERVE_BYTES = -(1 << 40)  # or the store would not even try\nput(100, 0); put(1 << 20, 1)"
        said = run_on_disk(tmp_path / "disk", "size=1m", ON_DISK + body).splitlines()
        small = 2 * (568 + 5 * 17)
        assert said == [f"{small} {small}", *self.full(tmp_path / "disk" / "tmp"), f"{small} {small}"]

    def test_leaves_nothing_of_a_segment_whose_names_do_not_fit(self, tmp_path: Path) -> None:
        inodes = 5 + 2  # the disk, four rooms, and the two files, which then want a drawer
        said = run_on_disk(tmp_path / "disk", f"size=64m,nr_inodes={inodes}", ON_DISK + "put(100, 0)").splitlines()
        assert said == [*self.full(tmp_path / "disk"), "0 0"]

    def test_keeps_a_reserve(self, tmp_path: Path) -> None:
        said = run_on_disk(tmp_path / "disk", "size=17m", ON_DISK + "put(100, 0); put(1 << 20, 1)").splitlines()
        small = 2 * (568 + 5 * 17)
        assert said == [f"{small} {small}", *self.full(tmp_path / "disk"), f"{small} {small}"]

    @staticmethod
    def full(directory: Path) -> list[str]:
        return [f"the disk that holds {directory} is full: free some space or lower the quota"]


class TestOtherShards:
    """A node's shards change: files of any shard are kept and served, and go one by one."""

    def test_are_indexed_and_served_after_a_start(self, tmp_path: Path) -> None:
        segment = segment_of(100)
        put(open_store(tmp_path), segment, [3])
        again = open_store(tmp_path)
        assert (again.missing(segment.root, range(4)), again.foreign_files) == ([0, 1, 2], 0)
        assert serve(again, segment, 3) == truth(segment, 3)
        assert again.files() == [(segment.root, 3, again.layout.file_bytes(segment.z))]

    def test_are_dropped_one_by_one_whatever_refers_to_them(self, tmp_path: Path) -> None:
        store, blob = open_store(tmp_path), make_blob(CODE, 100)
        put(store, blob.segments[0], range(3))
        store.put_entry(blob.header, make_entry(blob))
        store.drop_shard_file(blob.segments[0].root, 1)
        store.drop_shard_file(blob.segments[0].root, 3)
        assert store.missing(blob.segments[0].root, range(4)) == [1, 3]
        assert store.used_bytes == 2 * store.layout.file_bytes(blob.segments[0].z)
        assert store.files() == open_store(tmp_path).files()

    def test_pairs_are_read_whole(self, tmp_path: Path) -> None:
        store, segment = open_store(tmp_path), segment_of(100)
        put(store, segment, range(4))
        for want in make_pairs(segment, range(4)):
            assert store.read_pair(segment.root, want.shard) == (segment.metadata, want)

    @pytest.mark.parametrize("at", range(0, 578, 17))
    def test_a_pair_with_a_wrong_byte_is_dropped_and_never_read(self, tmp_path: Path, at: int) -> None:
        store, segment = open_store(tmp_path), segment_of(10)
        put(store, segment, [2])
        path = path_of(store, segment.root, 2)
        whole = path.read_bytes()
        assert len(whole) == 578
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CorruptSliver):
            store.read_pair(segment.root, 2)
        assert store.missing(segment.root, [2]) == [2]
        assert reason(store.read_pair, segment.root, 2) is Reason.NOT_FOUND

    def test_leaves_can_be_had_alone(self, tmp_path: Path) -> None:
        store, segment = open_store(tmp_path), segment_of(100)
        put(store, segment, range(4))
        for kind in Kind:
            for index in range(4):
                want = store_module.Symbols(segment.leaves_of(kind, index), b"")
                assert store.read_symbols(segment.root, kind, index, first=0, count=0) == want

    def test_give_the_symbol_that_crosses_any_sliver(self, tmp_path: Path) -> None:
        store, segment = open_store(tmp_path), segment_of(100)
        put(store, segment, range(4))
        z = segment.z
        for shard in range(4):
            pair = CODE.pair_of_shard(shard, segment.root)
            for lost in range(4):
                for kind, row, column in ((Kind.PRIMARY, lost, 3 - pair), (Kind.SECONDARY, pair, lost)):
                    start = (row * 4 + column) * z
                    want = bytes(segment.matrix[start : start + z])
                    assert store.read_crossing(segment.root, shard, kind, lost) == want
        assert reason(store.read_crossing, segment.root, 0, Kind.PRIMARY, 4) is Reason.WRONG_INDEX
        assert reason(store.read_crossing, bytes(32), 0, Kind.PRIMARY, 0) is Reason.NOT_FOUND


def drop(store: SliverStore, blob: Blob) -> set[Root]:
    record = store.record(blob.header.blob_id)
    assert record is not None
    return store.drop_blob(blob.header.blob_id, record)


class TestBlobsThatGo:
    def test_came_by_transfer_and_have_no_statement(self, tmp_path: Path) -> None:
        store, blob = open_store(tmp_path), make_blob(CODE, 1500)
        put(store, blob.segments[0])
        store.put_header(blob.header)
        want = {blob.header.blob_id: BlobRecord(blob.header, (), None)}
        assert store.records() == open_store(tmp_path).records() == want
        assert store.unclosed_bytes == 0
        entry = make_entry(blob)
        store.put_entry(blob.header, entry)
        store.put_header(blob.header)
        assert store.record(blob.header.blob_id) == BlobRecord(blob.header, (entry,), None)

    def test_free_what_no_other_blob_shares(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        one, two = encode_blob(CODE, bytes(2500)), encode_blob(CODE, bytes(1500))  # one full segment shared
        for blob in (one, two):
            put_blob(store, blob)
        freed = drop(store, one)
        assert freed == {one.header.roots[2]} - {*two.header.roots}
        shared = one.header.roots[0]
        store.drop_unreferenced((*freed, shared))
        assert store.missing(shared, SHARDS) == []
        assert store.record(one.header.blob_id) is None
        assert {*drop(store, two)} == {*two.header.roots}
        assert store.unclosed_bytes == store.used_bytes > 0
        store.drop_unreferenced(two.header.roots)
        assert (store.used_bytes, store.unclosed_bytes) == (0, 0)
        assert files_of(store) == {}

    def test_stay_if_they_were_signed_for_meanwhile(self, tmp_path: Path) -> None:
        store, blob = open_store(tmp_path), make_blob(CODE, 100)
        put_blob(store, blob)
        record = store.record(blob.header.blob_id)
        assert record is not None
        store.put_entry(blob.header, make_entry(blob, 1))
        before = state(store, *blob.header.roots)
        assert store.drop_blob(blob.header.blob_id, record) == set()
        assert state(store, *blob.header.roots) == before

    def test_keep_what_a_live_upload_relies_on(self, tmp_path: Path) -> None:
        store, blob = open_store(tmp_path), make_blob(CODE, 100)
        put_blob(store, blob)
        root = blob.header.roots[0]
        roots: set[Root] = set()
        with store.held(roots):
            store.hold(roots, root)
            assert drop(store, blob) == {root}
            store.drop_unreferenced([root])
            assert store.missing(root, SHARDS) == []
        store.drop_unreferenced([root])
        assert store.missing(root, SHARDS) == list(SHARDS)

    def test_leave_the_proof_against_their_writer(self, tmp_path: Path) -> None:
        store, blob_id = open_store(tmp_path), BlobId(bytes(range(32)))
        assert store.proofs.read(blob_id) is None
        store.proofs.put(blob_id, b"proof")
        again = open_store(tmp_path)
        assert (again.proofs.read(blob_id), again.proofs.known(), again.foreign_files) == (
            b"proof",
            frozenset({blob_id}),
            0,
        )
