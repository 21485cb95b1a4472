"""The cache gives back what was put in or nothing, stays within its quota, and survives whatever happens to it."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from economics.blob import BlobId, Header, build_blob_id_text
from p2pnode.peering import cache as module
from p2pnode.peering.cache import SegmentCache
from tests.small import Blob, encode_blob, make_codec, make_genesis

GENESIS = make_genesis(segment_bytes=4_096)
CODEC = make_codec(GENESIS)
FILE_BYTES = 4_096 + 32


def open_cache(path: Path, quota_bytes: int = 1 << 20) -> SegmentCache:
    return SegmentCache(path / "blobs", CODEC, quota_bytes=quota_bytes)


def make(seed: int, length: int = 10_000) -> Blob:
    return encode_blob(GENESIS.code, Random(seed).randbytes(length))


def pieces_of(blob: Blob, index: int) -> list[bytes]:
    data = blob.data[index * 4_096 : (index + 1) * 4_096]
    return [data[:1_000], data[1_000:]]


def put(cache: SegmentCache, blob: Blob, content_type: str | None = "") -> None:
    cache.put_header(blob.header, content_type)
    for index in range(len(blob.header.roots)):
        assert cache.put(blob.header.blob_id, index, pieces_of(blob, index))


def load(cache: SegmentCache, header: Header, index: int) -> bytes | None:
    length = GENESIS.code.segment_length(header.length, index)
    segment = cache.open(header.blob_id, index, length)
    if segment is None:
        return None
    try:
        return segment.read(0, length)
    finally:
        segment.close()


def whole(cache: SegmentCache, blob: Blob) -> bytes | None:
    parts = [load(cache, blob.header, index) for index in range(len(blob.header.roots))]
    return None if None in parts else b"".join(part for part in parts if part is not None)


def on_disk(path: Path) -> int:
    total = 0
    for folder, _, names in os.walk(path / "blobs"):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += 0 if name == "lock" else os.stat(os.path.join(folder, name)).st_size
    return total


def test_what_was_put_in_comes_out_also_of_another_process(tmp_path: Path) -> None:
    blob = make(1)
    cache = open_cache(tmp_path)
    assert (whole(cache, blob), cache.header(blob.header.blob_id)) == (None, None)
    put(cache, blob, "image/png")
    for opened in (cache, open_cache(tmp_path)):
        assert whole(opened, blob) == blob.data
        assert opened.header(blob.header.blob_id) == blob.header
        assert opened.content_type(blob.header.blob_id) == "image/png"
        assert opened.has_all(blob.header)
        assert opened.used_bytes == on_disk(tmp_path)


def test_the_quota_holds_and_the_oldest_go_first(tmp_path: Path) -> None:
    quota = 20 * FILE_BYTES
    cache = open_cache(tmp_path, quota)
    blobs = [make(seed, 4_096) for seed in range(40)]
    first = blobs[0]
    for number, blob in enumerate(blobs):
        put(cache, blob)
        os.utime(cache.directory(blob.header.blob_id) / "0", (number, number))
        assert on_disk(tmp_path) <= quota
        if whole(cache, first) is not None:  # its use makes it the newest
            os.utime(cache.directory(first.header.blob_id) / "0", (1_000, 1_000))
    kept = [number for number, blob in enumerate(blobs) if whole(cache, blob) is not None]
    assert kept[0] == 0
    assert kept[1:] == list(range(40 - len(kept) + 1, 40))
    assert len(kept) >= 14
    assert len(list((tmp_path / "blobs").iterdir())) == len(kept) + 1  # what says what a blob is goes with it


def test_a_use_makes_a_segment_newer(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    blob = make(1, 4_096)
    put(cache, blob)
    path = cache.directory(blob.header.blob_id) / "0"
    os.utime(path, (1, 1))
    assert whole(cache, blob) == blob.data
    assert path.stat().st_mtime > 1_000_000


def test_an_open_segment_is_read_though_it_is_evicted(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, 3 * FILE_BYTES)
    blob = make(1, 4_096)
    put(cache, blob)
    segment = cache.open(blob.header.blob_id, 0, 4_096)
    assert segment is not None
    for seed in range(2, 8):
        put(cache, make(seed, 4_096))
    assert load(cache, blob.header, 0) is None
    assert segment.read(0, 4_096) == blob.data
    segment.close()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "grow", "other"])
def test_a_damaged_segment_is_none_and_is_removed(tmp_path: Path, damage: str) -> None:
    blob, other = make(1), make(2)
    put(open_cache(tmp_path), blob)
    cache = open_cache(tmp_path)
    path = cache.directory(blob.header.blob_id) / "1"
    raw = bytearray(path.read_bytes())
    match damage:
        case "flip":
            raw[100] ^= 1
        case "cut":
            del raw[-1]
        case "empty":
            raw.clear()
        case "grow":
            raw += b"x"
        case _:
            raw[:4_096] = other.data[:4_096]
    path.write_bytes(raw)
    assert load(cache, blob.header, 1) is None
    assert not path.exists()
    assert load(cache, blob.header, 0) == blob.data[:4_096]


def test_a_damaged_header_is_none_and_the_blob_is_dropped(tmp_path: Path) -> None:
    blob = make(1)
    cache = open_cache(tmp_path)
    put(cache, blob)
    (cache.directory(blob.header.blob_id) / "header").write_bytes(make(2).header.encode())
    assert cache.header(blob.header.blob_id) is None
    assert not cache.directory(blob.header.blob_id).exists()


def test_only_a_blob_that_is_whole_and_encodes_to_its_id_is_offered(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    blob, part = make(1), make(2)
    put(cache, blob)
    cache.put_header(part.header, "")
    cache.put(part.header.blob_id, 0, pieces_of(part, 0))
    assert (cache.verify_whole(blob.header), cache.verify_whole(part.header)) == (True, False)
    assert cache.blob_ids() == [blob.header.blob_id]
    assert [cache.segment(blob.header.blob_id, index) for index in range(4)] == [
        blob.data[:4_096], blob.data[4_096:8_192], blob.data[8_192:], None]  # fmt: skip
    assert cache.segment(part.header.blob_id, 0) is None


def test_a_blob_that_its_writer_encoded_wrongly_is_not_offered(tmp_path: Path) -> None:
    blob = make(1)
    wrong = Header(GENESIS.code, blob.header.length, (blob.header.roots[1], *blob.header.roots[1:]))
    cache = open_cache(tmp_path)
    cache.put_header(wrong, "")
    for index in range(3):
        cache.put(wrong.blob_id, index, pieces_of(blob, index))
    assert not cache.verify_whole(wrong)
    assert cache.blob_ids() == []


def test_a_blob_that_loses_a_segment_is_offered_no_more(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, 8 * FILE_BYTES)
    blob = make(1)
    put(cache, blob)
    assert cache.verify_whole(blob.header)
    for index in range(3):
        os.utime(cache.directory(blob.header.blob_id) / str(index), (index + 1, index + 1))
    for seed in range(2, 9):
        put(cache, make(seed, 4_096))
    assert cache.blob_ids() == []
    assert cache.segment(blob.header.blob_id, 2) is None


def test_a_dropped_blob_is_gone(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    blob = make(1)
    put(cache, blob)
    cache.drop(blob.header.blob_id)
    assert (whole(cache, blob), cache.header(blob.header.blob_id), cache.used_bytes) == (None, None, 0)


def test_without_a_quota_nothing_is_written(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, 0)
    blob = make(1)
    cache.put_header(blob.header, "")
    assert (cache.is_usable, cache.put(blob.header.blob_id, 0, pieces_of(blob, 0))) == (False, False)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_no_fault_and_keeps_its_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(tmp_path)
    blob = make(1)
    monkeypatch.setattr(module, "FREE_BYTES_MIN", 1 << 62)
    assert not cache.put(blob.header.blob_id, 0, pieces_of(blob, 0))
    monkeypatch.undo()
    assert cache.put(blob.header.blob_id, 0, pieces_of(blob, 0))


def test_a_directory_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("a file in its place")
    cache = open_cache(tmp_path)
    blob = make(1)
    assert (cache.is_usable, cache.put(blob.header.blob_id, 0, pieces_of(blob, 0))) == (False, False)
    assert whole(cache, blob) is None


@contextlib.contextmanager
def without_descriptors() -> Iterator[None]:
    """Have the process be unable to open anything, as when somebody holds all the connections that it can have."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open("/dev/null", os.O_RDONLY)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_process_that_can_open_nothing_for_a_while_loses_nothing(tmp_path: Path) -> None:
    blob, other = make(1), make(2)
    cache = open_cache(tmp_path)
    put(cache, blob)
    with without_descriptors():
        assert cache.header(blob.header.blob_id) is None
        assert whole(cache, blob) is None
        assert not cache.put(other.header.blob_id, 0, pieces_of(other, 0))
        cache._make_room(cache.quota_bytes)
    assert cache.is_usable
    assert cache.header(blob.header.blob_id) == blob.header
    assert whole(cache, blob) == blob.data
    put(cache, other)


def test_two_of_one_directory_do_not_spoil_each_other(tmp_path: Path) -> None:
    quota = 40 * FILE_BYTES
    caches = [open_cache(tmp_path, quota) for _ in range(2)]
    blobs = [make(seed) for seed in range(30)]
    wrong: list[BlobId] = []
    most = 0

    def measure() -> None:
        nonlocal most
        most = max(most, on_disk(tmp_path))

    both = threading.Barrier(2, action=measure)  # while neither of them writes

    def work(cache: SegmentCache, order: list[Blob]) -> None:
        for blob in order:
            cache.put_header(blob.header, "")
            for index in range(3):
                cache.put(blob.header.blob_id, index, pieces_of(blob, index))
                for other in order[:5]:
                    data = load(cache, other.header, index)
                    if data not in (None, other.data[index * 4_096 : (index + 1) * 4_096]):
                        wrong.append(other.header.blob_id)
            both.wait(timeout=120)

    threads = [threading.Thread(target=work, args=(cache, blobs[:: 1 - 2 * n])) for n, cache in enumerate(caches)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert most > quota // 2
    assert most <= quota + 2 * quota // module.SLACK + 4 * FILE_BYTES


KILLED = """
import sys
from pathlib import Path
from tests.peering.test_cache import make, open_cache, put
cache = open_cache(Path(sys.argv[1]))
print("begun", flush=True)
for seed in range(1_000_000):
    put(cache, make(seed % 20))
"""


def test_a_kill_leaves_whole_segments_or_none(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"begun\n"
    blobs = [make(seed) for seed in range(20)]
    while not (tmp_path / "blobs" / build_blob_id_text(blobs[12].header.blob_id)).exists():
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    cache = open_cache(tmp_path)
    found = 0
    for blob in blobs:
        for index in range(3):
            data = load(cache, blob.header, index)
            assert data in (None, blob.data[index * 4_096 : (index + 1) * 4_096])
            found += data is not None
    assert found >= 36
