"""A round's sheet: who is asked about what, what is too fresh to be asked about, and what is frozen until when."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from economics.genesis import Parameters
from p2pnode.auditing.rounds import Rounds, Sampled, draw, window_s
from p2pnode.slivers.store import SliverStore
from tests.p2pnode.challenged import (
    AUDITOR,
    BLOBS,
    CODE,
    GENESIS,
    OTHER,
    ROOTS,
    TARGET,
    WINDOW_S,
    StandIn,
    make_ledger,
    make_round,
    put_all,
)
from tests.small import make_blob, make_codec

SHARDS = GENESIS.committee.shards_of(TARGET)


@pytest.fixture
def store(tmp_path: Path) -> SliverStore:
    made = SliverStore(tmp_path, codec=make_codec(GENESIS), chain_id=GENESIS.chain_id, quota_bytes=1 << 30)
    put_all(made, GENESIS.committee.shards_of(AUDITOR))
    return made


def test_every_challenged_shard_is_asked_about_what_is_live(store: SliverStore) -> None:
    sheet = draw(make_ledger().as_ledger(), store, None)
    assert sheet.name == (1, 1)
    assert set(sheet.samples) == set(SHARDS)
    places = {(blob.header.blob_id, index, root) for blob in BLOBS for index, root in enumerate(blob.header.roots)}
    for asked in sheet.samples.values():
        assert {(one.blob_id, one.segment, one.root) for one in asked} == places
    assert sheet.pairs == {(root, shard) for root in ROOTS for shard in SHARDS}


def test_a_blob_that_is_not_known_here_has_no_root(store: SliverStore) -> None:
    unknown = make_blob(CODE, 10, seed=9)
    sheet = draw(make_ledger(None, BLOBS[0], unknown).as_ledger(), store, None)
    for asked in sheet.samples.values():
        assert Sampled(unknown.header.blob_id, 0, None, False) in asked
    assert sheet.pairs == {(root, shard) for root in BLOBS[0].header.roots for shard in SHARDS}


@pytest.mark.parametrize(("ripe_height", "is_fresh"), [(59, True), (60, False), (None, True)])
def test_what_was_certified_since_the_round_before_is_fresh(
    store: SliverStore, ripe_height: int | None, is_fresh: bool
) -> None:
    """If it is not known when that began: what was certified in this epoch."""
    ledger = make_ledger(make_round(epoch=1))
    blob_id = BLOBS[1].header.blob_id
    ledger.blobs[blob_id] = replace(ledger.blobs[blob_id], certified_height=60, certified_epoch=1)
    sheet = draw(ledger.as_ledger(), store, ripe_height)
    for asked in sheet.samples.values():
        assert {one.blob_id: one.is_fresh for one in asked}[blob_id] is is_fresh
        assert sum(one.is_fresh for one in asked) == is_fresh


def test_the_window_is_half_a_round_and_half_a_minute_at_most() -> None:
    assert window_s(Parameters(epoch_ms=24_000, challenge_rounds=24)) == 0.5
    assert window_s(Parameters(epoch_ms=86_400_000, challenge_rounds=24)) == WINDOW_S


async def test_a_node_follows_the_rounds_that_it_executes(store: SliverStore) -> None:
    executor = StandIn()
    rounds = Rounds(executor=executor.as_executor(), store=store)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rounds.run)
            executor.begin(make_ledger(make_round(1)))
            first = await rounds.wait_until(lambda sheet: True)
            executor.begin(make_ledger(make_round(2, height=70, targets=(OTHER,))))
            second = await rounds.wait_until(lambda sheet: sheet is not first)
            nursery.cancel_scope.cancel()
    assert [sheet.name for sheet in (first, second)] == [(0, 1), (0, 2)]
    assert rounds.began == executor.round_since
    assert set(second.samples) == set(GENESIS.committee.shards_of(OTHER))
    fresh = {one.is_fresh for asked in first.samples.values() for one in asked}
    assert fresh == {True}  # of the first epoch, and the round before it is not known
    assert not any(one.is_fresh for asked in second.samples.values() for one in asked)


async def test_what_is_sampled_is_frozen_for_the_window(
    store: SliverStore, autojump_clock: trio.testing.MockClock
) -> None:
    rounds = Rounds(executor=StandIn().as_executor(), store=store)
    assert not rounds.frozen()
    rounds.sheet, rounds.began = draw(make_ledger().as_ledger(), store, None), trio.current_time()
    await trio.sleep(WINDOW_S - 0.1)
    assert rounds.frozen() == {(root, shard) for root in ROOTS for shard in SHARDS}
    await trio.sleep(0.1)
    assert not rounds.frozen()
