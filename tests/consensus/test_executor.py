"""Final blocks are executed whole or not at all, alike everywhere, and once: over restarts and whoever brings them."""

from pathlib import Path

import pytest
import trio

from economics.arguments import Transfer
from economics.crypto import Digest, OwnerId
from economics.errors import Reason, Rejected
from economics.light import Boundary
from economics.votes import ZERO_HASH
from p2pnode.consensus.executor import STATES_KEPT, Diverged, Executor
from p2pnode.errors import SpaceError
from tests.p2pnode.finalchain import GENESIS, Maker, end_epoch, extend, finalize, open_executor, sign
from tests.small import OTHER_OWNER, OWNER

TO = OwnerId(OTHER_OWNER.public)


def shown(executor: Executor) -> tuple[object, ...]:
    return (
        executor.height,
        executor.head,
        executor.root_header,
        executor.finality,
        executor.ledger.root,
        executor.ledger.epoch,
    )


@pytest.fixture
def executor(tmp_path: Path) -> Executor:
    return open_executor(tmp_path)


HALF_MS = GENESIS.parameters.epoch_ms // 2
"""Past the cut-off after one, at the epoch's end after two."""


async def grow(executor: Executor, blocks: int) -> None:
    for _ in range(blocks):
        await extend(executor, sign(executor.ledger, OWNER, Transfer(TO, 1)))


async def test_a_restart_finds_everything_as_it_was(executor: Executor, tmp_path: Path) -> None:
    assert executor.finality is None
    for blocks in (3, 2):
        await grow(executor, blocks)
        await end_epoch(executor)
        before = shown(executor)
        executor.store.close()
        executor = open_executor(tmp_path)
        assert shown(executor) == before
    await grow(executor, 1)
    assert executor.height == 10


async def test_readers_see_the_state_before_or_after_and_are_woken(executor: Executor) -> None:
    """The ledger that a reader holds does not change under it."""
    before = executor.ledger
    root = before.root
    maker = Maker(executor)
    for nonce in range(3):
        maker.make(sign(executor.ledger, OWNER, Transfer(TO, 1), nonce=nonce))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(executor.wait_beyond, 2)
        await maker.apply()
    assert before.root == root
    assert (executor.height, executor.ledger.height) == (3, 3)
    assert executor.ledger.account(OwnerId(OWNER.public)).nonce == 3


async def test_blocks_that_come_twice_are_executed_once(executor: Executor) -> None:
    maker = Maker(executor)
    made = [maker.make(sign(executor.ledger, OWNER, Transfer(TO, 1))), maker.make()]
    finality = finalize(made[-1].block.header)
    receipts: list[object] = []

    async def apply() -> None:
        receipts.append(await executor.apply(made, finality))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(apply)
        nursery.start_soon(apply)
    assert sorted(len(found) for found in receipts) == [0, 1]  # type: ignore[arg-type]
    assert executor.height == 2


async def test_a_final_header_with_another_root_stops_the_node_and_changes_nothing(
    executor: Executor, tmp_path: Path
) -> None:
    before = shown(executor)
    maker = Maker(executor)
    maker.make()
    maker.make(state_root=Digest(b"x" * 32))
    with pytest.raises(Diverged):
        await maker.apply()
    assert shown(executor) == before
    executor.store.close()
    assert shown(open_executor(tmp_path)) == before


async def test_a_final_header_that_names_another_next_committee_stops_the_node(executor: Executor) -> None:
    await extend(executor, after_ms=HALF_MS)
    before = shown(executor)
    for named in (ZERO_HASH, executor.ledger.committee.hash):
        maker = Maker(executor)
        maker.make(next_committee_hash=named)
        with pytest.raises(Diverged):
            await maker.apply()
        assert shown(executor) == before
    await extend(executor)


async def test_the_next_committee_is_known_for_every_height_that_a_header_may_name(
    executor: Executor, tmp_path: Path
) -> None:
    """Zero until it is fixed; a restart knows no more than it has executed since, where it was fixed before."""
    await grow(executor, 2)
    assert [executor.next_committee_hash(height) for height in range(4)] == [ZERO_HASH] * 3 + [None]
    executor.store.close()
    executor = open_executor(tmp_path)
    assert [executor.next_committee_hash(height) for height in range(4)] == [ZERO_HASH] * 3 + [None]
    await extend(executor, after_ms=HALF_MS)
    named = executor.ledger.committee.in_epoch(1).hash
    assert [executor.next_committee_hash(height) for height in (2, 3)] == [ZERO_HASH, named]
    executor.store.close()
    executor = open_executor(tmp_path)
    assert [executor.next_committee_hash(height) for height in (1, 3)] == [None, named]
    await extend(executor, after_ms=HALF_MS)
    assert [executor.next_committee_hash(height) for height in (2, 3, 4)] == [None, named, ZERO_HASH]


async def test_being_stopped_leaves_no_block_half_applied(executor: Executor, tmp_path: Path) -> None:
    maker = Maker(executor)
    maker.make(sign(executor.ledger, OWNER, Transfer(TO, 1)))
    with trio.CancelScope() as scope:
        scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
        await executor.apply(maker.made, finalize(maker.made[-1].block.header))
    in_memory = shown(executor)
    executor.store.close()
    assert shown(open_executor(tmp_path)) == in_memory


async def test_a_full_disk_changes_nothing(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    before = shown(executor)

    def full(*_: object, **__: object) -> None:
        raise SpaceError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(executor.store, "append", full)
        with pytest.raises(SpaceError):
            await extend(executor)
    assert shown(executor) == before
    await extend(executor)


@pytest.mark.parametrize("fault", [SpaceError("the disk is full"), OSError("no such device")])
async def test_a_snapshot_that_cannot_be_written_keeps_no_block_from_being_executed(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(executor.snapshots, "write", fail)
    await end_epoch(executor)
    await extend(executor)
    assert (executor.height, executor.ledger.epoch, executor.snapshots.chunks(0)) == (3, 1, 0)
    in_memory = shown(executor)
    executor.store.close()
    assert shown(open_executor(tmp_path)) == in_memory


async def test_a_snapshot_that_blocks_have_overtaken_changes_nothing(executor: Executor, tmp_path: Path) -> None:
    """Chunks take a while; a node that also votes may execute the boundary itself, or one on the way there."""
    full = open_executor(tmp_path / "full")
    trail: list[Boundary] = []
    states: list[tuple[list[bytes], Digest]] = []
    ends = []
    for _ in range(2):
        ends += [await extend(full, after_ms=HALF_MS), await extend(full, after_ms=HALF_MS)]
        assert full.finality is not None
        trail.append(Boundary(full.head, full.finality))
        states.append(([value for _, value in full.ledger.tree.items()], full.ledger.root))
    await executor.apply(ends[:2], trail[0].finality)
    before = shown(executor)
    assert not await executor.install(trail[:1], states[0][0], root=states[0][1])
    assert shown(executor) == before
    assert await executor.install(trail, states[1][0], root=states[1][1])
    assert shown(executor) == shown(full)


async def test_a_snapshot_is_taken_only_if_it_is_the_state_that_was_signed_for(
    executor: Executor, tmp_path: Path
) -> None:
    full = open_executor(tmp_path / "full")
    await grow(full, 2)
    await end_epoch(full)
    assert full.finality is not None
    trail = [Boundary(full.head, full.finality)]
    values = [value for _, value in full.ledger.tree.items()]
    before = shown(executor)
    for bad in (values[:-1], [*values[:-1], b"junk"], [*values, values[0]], []):
        with pytest.raises(Rejected):
            await executor.install(trail, bad, root=full.ledger.root)
        assert shown(executor) == before
    with pytest.raises(Rejected) as verdict:
        await executor.install(trail, values, root=Digest(b"x" * 32))
    assert verdict.value.reason is Reason.HASH_MISMATCH
    await executor.install(trail, values, root=full.ledger.root)
    assert shown(executor) == shown(full)
    executor.store.close()
    assert shown(open_executor(tmp_path)) == shown(full)


async def test_roots_and_trees_of_the_last_heights_are_kept(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = [executor.ledger.root]
    await extend(executor)
    roots.append(executor.ledger.root)
    maker = Maker(executor)
    for _ in range(STATES_KEPT + 2):
        maker.make()
    await maker.apply()
    await grow(executor, 1)
    roots.append(executor.ledger.root)
    assert executor.root(0) == roots[0]
    assert executor.tree(1) is None
    assert executor.root(1) == roots[1]
    monkeypatch.setattr(executor.store, "root", None)  # the last ones are told without it
    assert executor.root(executor.height) == roots[2]


async def test_the_state_that_a_round_began_in_is_kept_until_the_next_one(executor: Executor, tmp_path: Path) -> None:
    parameters = executor.genesis.parameters
    round_ms = parameters.epoch_ms // parameters.challenge_rounds
    assert executor.round_ledger is None
    await extend(executor)
    first, since = executor.round_ledger, executor.round_since
    assert first is not None
    assert first.round is not None
    assert (first.height, first.round.number, first.root) == (1, 1, executor.root(1))
    await grow(executor, 2)
    assert (executor.round_ledger, executor.round_since) == (first, since)
    maker = Maker(executor)
    maker.make(after_ms=round_ms)
    maker.make()
    await maker.apply()
    second = executor.round_ledger
    assert second is not None
    assert second.round is not None
    assert (second.height, second.round.number, second.root) == (4, 2, executor.root(4))
    assert executor.round_since >= since
    executor.store.close()
    assert open_executor(tmp_path).round_ledger is None  # what is sampled is not known any more


async def test_a_round_that_ends_with_its_epoch_is_none(executor: Executor) -> None:
    await extend(executor, after_ms=HALF_MS)
    before = executor.round_ledger
    await extend(executor, after_ms=HALF_MS)
    assert executor.ledger.epoch == 1
    assert executor.round_ledger is before
