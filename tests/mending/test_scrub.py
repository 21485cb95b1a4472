"""Rotten files are found though nobody reads them, dropped, and restored by healing; at a pace, all within a week."""

from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing

from p2pnode.mending import scrub as scrub_module
from p2pnode.mending.scrub import Scrub
from tests.mending.test_healing import FOUR, expect_whole
from tests.p2pnode.healers import Town
from tests.p2pnode.threads import inline_threads as inline_threads
from tests.slivers.test_store import open_store, path_of, put, segment_of
from tests.small import make_blob


async def test_a_rotten_file_is_found_dropped_and_restored(tmp_path: Path) -> None:
    town, blob = Town(tmp_path), make_blob(FOUR.code, 2500)
    town.store_blob(blob)
    async with town.healing() as healer:
        path = path_of(healer.store, blob.header.roots[1], 0)
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        woken: list[bool] = []
        scrub = Scrub(store=healer.store, bytes_per_s=1 << 30, on_rotten=lambda: woken.append(True), rng=Random(1))
        assert await healer.missing() == 0
        await scrub.check_all()
        assert (scrub.rotten, woken) == (1, [True])
        assert await healer.missing() == 1
        await healer.once()
        assert path.read_bytes() == whole
        await scrub.check_all()
        assert scrub.rotten == 1
        assert scrub.status() == {"checked_bytes": 2 * sum(size for _, _, size in healer.store.files()), "rotten": 1}
    expect_whole(town, blob, [0])


@pytest.mark.usefixtures("inline_threads")
async def test_the_pace_is_what_is_set_or_a_week_for_all(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    for seed in range(10):
        put(store, segment_of(1000, seed))
    monkeypatch.setattr(scrub_module, "IDLE_S", 0.0)
    rate = store.used_bytes // 100
    scrub = Scrub(store=store, bytes_per_s=rate, on_rotten=lambda: None, rng=Random(1))
    with trio.move_on_after(1000):
        await scrub.run()
    assert scrub.checked_bytes == pytest.approx(10 * store.used_bytes, rel=0.05)
    monkeypatch.setattr(scrub_module, "PASS_S", 10.0)
    fast = Scrub(store=store, bytes_per_s=rate, on_rotten=lambda: None, rng=Random(1))
    with trio.move_on_after(100):
        await fast.run()
    assert fast.checked_bytes == pytest.approx(10 * store.used_bytes, rel=0.1)


async def test_a_store_without_files_and_a_pace_of_0_are_legal(tmp_path: Path) -> None:
    scrub = Scrub(store=open_store(tmp_path), bytes_per_s=0, on_rotten=lambda: None, rng=Random(1))
    await scrub.check_all()
    with trio.fail_after(60):
        await scrub.run()


async def test_a_file_that_goes_meanwhile_is_not_rotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, segment = open_store(tmp_path), segment_of(100)
    put(store, segment)
    scrub = Scrub(store=store, bytes_per_s=1 << 30, on_rotten=lambda: None, rng=Random(1))
    files = store.files()
    monkeypatch.setattr(store, "files", lambda: files)
    store.drop_shard_file(segment.root, 1)
    await scrub.check_all()
    assert scrub.rotten == 0
