"""A node catches up with the help of anyone, whatever others tell it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from economics import cbor
from economics.arguments import Transfer
from economics.block import Finality
from economics.crypto import Digest, OwnerId
from economics.errors import Reason, Rejected
from economics.fields import sized
from economics.votes import ZERO_HASH
from p2pnode.consensus import chainsync as chainsync_module
from p2pnode.consensus.chainsync import ChainSync, pull_bodies
from p2pnode.consensus.executor import Candidate, Executor
from p2pnode.network.frames import Incoming
from tests.p2pnode.chainnet import ChainNet, Handler, liar, lying_head, passing, serve, silent
from tests.p2pnode.finalchain import GENESIS, Maker, end_epoch, extend, finalize, open_executor, sign
from tests.p2pnode.member import node_of
from tests.p2pnode.standbys import GENESIS as STAKED
from tests.p2pnode.standbys import lose, stake
from tests.small import OTHER_OWNER, OWNER

PAY = Transfer(OwnerId(OTHER_OWNER.public), 5)


async def grow(executor: Executor, blocks: int) -> None:
    for _ in range(blocks):
        await extend(executor, sign(executor.ledger, OWNER, PAY))


@asynccontextmanager
async def syncing(
    executor: Executor,
    handlers: Sequence[Handler | None],
    *,
    seed: int = 0,
    snapshot_blocks: int = 5_000,
    deadline_s: float = 400,
) -> AsyncIterator[tuple[ChainSync, ChainNet]]:
    async with trio.open_nursery() as nursery:
        net = ChainNet(handlers, nursery, executor.genesis)
        apply: Callable[[Sequence[Candidate], Finality], Awaitable[object]] = executor.apply
        sync = ChainSync(
            executor=executor,
            members=net.members(),
            own=node_of(3),
            apply=apply,  # type: ignore[arg-type]
            rng=Random(seed),
            snapshot_blocks=snapshot_blocks,
        )
        with trio.fail_after(deadline_s):
            yield sync, net
        nursery.cancel_scope.cancel()


@pytest.fixture
def full(tmp_path: Path) -> Executor:
    return open_executor(tmp_path / "full")


HALF_MS = GENESIS.parameters.epoch_ms // 2


@pytest.fixture
def late(tmp_path: Path) -> Executor:
    return open_executor(tmp_path / "late")


async def test_it_takes_blocks_over_the_ends_of_epochs(full: Executor, late: Executor) -> None:
    await grow(full, 3)
    await end_epoch(full)
    await grow(full, 2)
    async with syncing(late, [None, serve(full).handle, None]) as (sync, _):
        assert await sync.catch_up()
        assert (late.height, late.ledger.epoch, late.ledger.root) == (7, 1, full.ledger.root)
        assert not await sync.catch_up()


async def test_far_behind_it_takes_a_snapshot_and_goes_on_from_there(full: Executor, late: Executor) -> None:
    await grow(full, 3)
    await end_epoch(full)
    await grow(full, 2)
    async with syncing(late, [serve(full).handle] * 3, snapshot_blocks=2) as (sync, _):
        assert await sync.catch_up()
        assert (late.height, late.ledger.root) == (7, full.ledger.root)
        assert late.store.base() == 6


async def test_from_a_member_that_holds_no_older_blocks_it_takes_a_snapshot(
    full: Executor, late: Executor, tmp_path: Path
) -> None:
    await grow(full, 3)
    await end_epoch(full)
    await grow(full, 1)
    pruned = open_executor(tmp_path / "pruned")
    async with syncing(pruned, [serve(full).handle, None, None], snapshot_blocks=2) as (sync, _):
        assert await sync.catch_up()
    await end_epoch(pruned)
    await grow(pruned, 1)
    async with syncing(late, [lying_head(serve(pruned), {"base": 1}), None, None]) as (sync, _):
        assert not await sync.catch_up()  # it refuses what it says it holds
    async with syncing(late, [serve(pruned).handle, None, None]) as (sync, _):
        assert await sync.catch_up()
        assert (late.height, late.ledger.root, late.store.base()) == (9, pruned.ledger.root, 9)


async def test_a_snapshot_comes_with_every_committee_on_the_way(tmp_path: Path) -> None:
    """And whoever took it can show them to others, who follow from genesis."""
    full, late = (open_executor(tmp_path / name, STAKED) for name in ("full", "late"))
    await stake(full, 4)
    await lose(full, 0)
    await stake(full, 5)
    await lose(full, 1)
    assert [member.node for member in full.ledger.committee.members] == [node_of(own) for own in (2, 3, 4, 5)]
    async with syncing(late, [None, None, serve(full).handle], snapshot_blocks=2) as (sync, _):
        assert await sync.catch_up()
    assert (late.height, late.ledger.root, late.ledger.committee) == (
        full.height,
        full.ledger.root,
        full.ledger.committee,
    )
    assert late.store.base() == full.root_header.height + 1
    ends = [late.store.boundary_of(epoch) for epoch in range(full.ledger.epoch)]
    assert ends == [full.store.boundary_of(epoch) for epoch in range(full.ledger.epoch)]
    assert [end is not None and len(end.members) > 0 for end in ends] == [True, True]


class TestForgeries:
    async def refused(self, late: Executor, candidates: Sequence[Candidate], finality: Finality) -> bool:
        """Return whether a node refuses these blocks, and stays where it is."""
        parts = [
            sized(item.block.encode()) + b"".join(sized(tx.raw) for tx in item.transactions) for item in candidates
        ]
        payload = b"".join((*parts, sized(finality.encode())))
        begin = late.height

        def answer(message: object, _: bytes) -> tuple[dict[str, object], bytes]:
            if message.header["op"] == "head":  # type: ignore[attr-defined]
                return {"base": 1, "epoch": 0, "height": begin + len(candidates)}, b""
            return {"count": len(candidates)}, payload

        async with syncing(late, [liar(answer), None, None]) as (sync, _):  # type: ignore[arg-type]
            return not await sync.catch_up() and late.height == begin

    async def test_without_a_quorum_are_refused(self, full: Executor, late: Executor) -> None:
        made = Maker(full).make()
        assert await self.refused(late, [made], finalize(made.block.header, signers=(0, 1)))
        good = finalize(made.block.header)
        bad = tuple((index, signature[::-1]) for index, signature in good.certificate.signatures)
        assert await self.refused(late, [made], Finality(replace(good.certificate, signatures=bad)))  # type: ignore[arg-type]
        assert not await self.refused(late, [made], good)

    async def test_with_another_transaction_than_the_block_names_are_refused(
        self, full: Executor, late: Executor
    ) -> None:
        made = Maker(full).make(sign(full.ledger, OWNER, PAY))
        other = replace(made, transactions=(sign(full.ledger, OTHER_OWNER, PAY),))
        assert await self.refused(late, [other], finalize(made.block.header))

    async def test_that_skip_a_block_are_refused(self, full: Executor, late: Executor) -> None:
        maker = Maker(full)
        maker.make()
        second = maker.make()
        assert await self.refused(late, [second], finalize(second.block.header))

    async def test_behind_the_end_of_an_epoch_are_refused(self, full: Executor, late: Executor) -> None:
        maker = Maker(full)
        await extend(full, after_ms=HALF_MS)
        await extend(late, after_ms=HALF_MS)
        end = maker.make(after_ms=HALF_MS)
        behind = maker.make(next_committee_hash=ZERO_HASH)
        assert await self.refused(late, [end, behind], finalize(behind.block.header))
        assert not await self.refused(late, [end], finalize(end.block.header))

    async def test_that_end_an_epoch_and_name_no_next_committee_are_refused(
        self, full: Executor, late: Executor
    ) -> None:
        maker = Maker(full)
        maker.make()
        end = maker.make(after_ms=2 * HALF_MS)
        assert end.block.header.next_committee_hash == ZERO_HASH
        assert await self.refused(late, maker.made, finalize(end.block.header))


class TestLiars:
    async def test_that_claim_a_height_and_fall_silent_are_left_and_asked_last(
        self, full: Executor, late: Executor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(chainsync_module, "HEAD_S", 4.0)
        await grow(full, 3)
        async with syncing(late, [silent, serve(full).handle, serve(full).handle]) as (sync, net):
            assert await sync.catch_up(node_of(0))
            assert late.height == 3
            net.asked.clear()
            await sync.catch_up(node_of(0))
            assert 0 not in net.asked

    async def test_with_a_snapshot_that_never_ends_are_left(
        self, full: Executor, late: Executor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(chainsync_module, "CHUNKS_MAX", 3)
        await grow(full, 1)
        await end_epoch(full)
        await grow(full, 2)
        honest = serve(full)
        asked: list[str] = []
        chunk = sized(b"x" * 1_000)

        def answer(message: object, _: bytes) -> tuple[dict[str, object], bytes]:
            op = message.header["op"]  # type: ignore[attr-defined]
            asked.append(op)
            match op:
                case "head":
                    return {"base": 3, "epoch": 1, "height": 1 << 40}, b""
                case "epochs" if message.header["first"] == 0:  # type: ignore[attr-defined]
                    return {}, b"".join(honest._epochs(message)[1])  # type: ignore[arg-type]
                case "epochs":
                    return {}, b""
                case "snapshot":
                    return {"chunks": chunks}, b"".join(honest._snapshot(message)[1])  # type: ignore[arg-type]
                case _:
                    return {}, chunk

        for chunks, reply in ((4, chunk), (3, b""), (3, chunk)):
            asked.clear()
            chunk = reply
            async with syncing(late, [liar(answer), None, None], snapshot_blocks=1) as (sync, _):  # type: ignore[arg-type]
                assert not await sync.catch_up()
            assert asked.count("chunk") == {(4, True): 0, (3, False): 1, (3, True): 3}[chunks, bool(reply)]
            assert late.height == 0

    async def test_that_claim_a_height_make_no_node_drop_its_blocks(self, full: Executor, late: Executor) -> None:
        """One epoch behind, but not far: only a boundary that is proven tells how far."""
        await grow(full, 2)
        await end_epoch(full)
        await grow(full, 1)
        honest = serve(full)
        for lie in ({"base": 1, "height": 1 << 40}, {"base": 1 << 40, "height": 5}):
            async with syncing(late, [lying_head(honest, {"epoch": 1 << 40, **lie}), None, None]) as (sync, _):
                await sync.catch_up()
            assert (late.height, late.store.base()) == (5, 1)

    async def test_that_drip_true_blocks_are_left(
        self, full: Executor, late: Executor, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each reply comes within its own deadline; together they would keep this node from the others for long."""
        await grow(full, 9)
        asked: list[int] = []

        def drip(message: Incoming) -> None:
            if message.header["op"] == "blocks":
                asked.append(1)
                mock_clock.jump(59)

        monkeypatch.setattr(chainsync_module, "BLOCKS_AT_ONCE", 1)
        slow = passing(serve(full), before=drip)
        async with syncing(late, [slow, serve(full).handle, None], deadline_s=1e6) as (sync, _):
            assert await sync.catch_up(node_of(0))
            assert (late.height, len(asked)) == (9, 2)
            assert sync._faults[node_of(0)] == 1

    async def test_that_drip_a_snapshot_are_left(
        self, full: Executor, late: Executor, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await grow(full, 3)
        await end_epoch(full)
        await grow(full, 1)
        asked: list[int] = []

        def answer(message: Incoming, _: bytes) -> tuple[Mapping[str, cbor.Value], bytes]:
            match message.header["op"]:
                case "head":
                    header, parts = honest._head()
                case "epochs":
                    header, parts = honest._epochs(message)
                case "snapshot":
                    header, parts = {"chunks": 512}, honest._snapshot(message)[1]
                case _:
                    asked.append(1)
                    mock_clock.jump(59)
                    return {}, sized(b"x" * 1_000)
            return header, b"".join(parts)

        honest = serve(full)
        async with syncing(late, [liar(answer), None, None], snapshot_blocks=2, deadline_s=1e6) as (sync, _):
            assert not await sync.catch_up(node_of(0))
            assert (late.height, len(asked), sync._faults[node_of(0)]) == (0, 2, 1)


class TestMovingOn:
    """A node that votes executes blocks while it asks for them: no honest member is to blame for that."""

    @pytest.mark.parametrize("passed", [1, 4, 5])
    async def test_while_blocks_come_passes_over_them(self, full: Executor, late: Executor, passed: int) -> None:
        made = [await extend(full) for _ in range(2)]
        made += [await extend(full, after_ms=HALF_MS), await extend(full, after_ms=HALF_MS), await extend(full)]

        async def move_on(message: Incoming) -> None:
            if message.header["op"] == "blocks" and late.height < passed:
                for item in made[:passed]:
                    await late.apply([item], finalize(item.block.header))

        async with syncing(late, [passing(serve(full), then=move_on), None, None]) as (sync, _):
            assert await sync.catch_up()
            assert (late.height, late.ledger.root) == (5, full.ledger.root)
            assert not sync._faults[node_of(0)]

    async def test_while_a_snapshot_comes_leaves_it(self, full: Executor, late: Executor) -> None:
        made = [await extend(full) for _ in range(2)]
        made += [await extend(full, after_ms=HALF_MS), await extend(full, after_ms=HALF_MS), await extend(full)]

        async def move_on(message: Incoming) -> None:
            if message.header["op"] == "chunk":
                for item in made[:4]:
                    await late.apply([item], finalize(item.block.header))

        handlers = [passing(serve(full), then=move_on), None, None]
        async with syncing(late, handlers, snapshot_blocks=2) as (sync, _):
            assert await sync.catch_up()
            assert (late.height, late.store.base()) == (5, 1)
            assert not sync._faults[node_of(0)]


async def test_it_takes_a_long_run_that_became_final_together(
    full: Executor, late: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = Maker(full)
    for _ in range(5):
        maker.make()
    await maker.apply()
    monkeypatch.setattr(chainsync_module, "BLOCKS_AT_ONCE", 2)
    monkeypatch.setattr(chainsync_module, "REPLY_BLOCKS_MAX", 2)
    async with syncing(late, [serve(full).handle, None, None]) as (sync, _):
        assert await sync.catch_up()
        assert (late.height, late.ledger.root) == (5, full.ledger.root)


class TestBodies:
    async def test_come_from_whoever_has_them_whatever_others_send(self, full: Executor) -> None:
        """A liar asked first must not make a good block look bad."""
        signed = sign(full.ledger, OWNER, PAY)
        honest = serve(full)
        await honest._submit(signed)
        lies = [b"junk", sign(full.ledger, OTHER_OWNER, PAY).raw, b""]
        for lie in lies:
            async with trio.open_nursery() as nursery:
                net = ChainNet([liar(lambda _, __, lie=lie: ({}, sized(lie))), honest.handle], nursery)  # type: ignore[misc]
                pulled = await pull_bodies(net.members(), node_of(3), [signed.hash], 0, bytes_max=1 << 20)
                assert (pulled, net.asked) == ([signed.raw], [0, 1])
                nursery.cancel_scope.cancel()

    async def test_are_not_waited_for_where_a_member_drips(
        self, full: Executor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(chainsync_module, "PULL_S", 3.0)
        signed = sign(full.ledger, OWNER, PAY)
        honest = serve(full)
        await honest._submit(signed)
        async with trio.open_nursery() as nursery:
            net = ChainNet([silent, honest.handle], nursery)
            with trio.fail_after(120):
                assert await pull_bodies(net.members(), node_of(3), [signed.hash], 0, bytes_max=1 << 20) == [signed.raw]
            nursery.cancel_scope.cancel()

    async def test_that_nobody_has_are_named(self, full: Executor) -> None:
        async with trio.open_nursery() as nursery:
            net = ChainNet([serve(full).handle] * 3, nursery)
            with pytest.raises(Rejected) as verdict:
                await pull_bodies(net.members(), node_of(3), [Digest(b"x" * 32)], 1, bytes_max=1 << 20)
            assert verdict.value.reason is Reason.NOT_FOUND
            nursery.cancel_scope.cancel()
