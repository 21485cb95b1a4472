"""Audits: the honest pass, who lost something is away, who lies is bad, who drips is slow; nobody pays for another."""

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from economics.arguments import ReportAudit
from economics.blob import Header, SegmentMetadata, sliver_hash
from economics.crypto import NodeId
from economics.errors import Reason, Rejected
from economics.nodes import Outcome
from p2pnode.adversary import MANNERS, Behaviour, send_wrong_symbols
from p2pnode.auditing import answers as answers_module
from p2pnode.auditing.audit import JITTER, PATIENCE
from p2pnode.auditing.rounds import Sheet
from p2pnode.coding.codec import EncodedSegment, Kind
from p2pnode.network.frames import Incoming
from p2pnode.network.stream import Stream
from p2pnode.slivers.sliverfile import Pair
from p2pnode.slivers.storage import Reply, send_honestly
from tests.p2pnode.challenged import (
    AUDITOR,
    BLOBS,
    CODE,
    GENESIS,
    OTHER,
    ROOTS,
    TARGET,
    WINDOW_S,
    World,
    make_ledger,
    make_round,
    open_world,
    put_all,
)
from tests.slivers.test_store import path_of
from tests.small import make_blob, make_codec, make_pairs

OWN = GENESIS.committee.shards_of(AUDITOR)
SHARDS = GENESIS.committee.shards_of(TARGET)
TARGETS = (TARGET, OTHER)
UNKNOWN, OK, BAD, OFFLINE, SLOW = Outcome
ASKING_S = JITTER * WINDOW_S
"""So long after the beginning every auditor asks at once."""
LATE_S = PATIENCE * WINDOW_S - 0.4
"""So long after it there is little time left to answer."""


async def audit(world: World, *, targets: Sequence[int] = TARGETS, ago_s: float = ASKING_S) -> list[Outcome]:
    """Let a round begin at all nodes, so long ago, and return what the auditor finds."""
    ledger = make_ledger(make_round(epoch=1, targets=targets))
    sheets = [node.begin(ledger, ago_s=ago_s) for node in world.nodes]
    with trio.fail_after(120):
        return await world.auditor.audit(sheets[AUDITOR])


def shorten(world: World, window_s: float) -> None:
    """Have an audit end after half of `window_s` where the round began a quarter of it ago: whoever is well has as long
    to answer."""
    assert (JITTER, PATIENCE) == (0.25, 0.75)
    for node in world.nodes:
        node.rounds.window_s = window_s


async def test_the_honest_pass(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        assert await audit(world) == [OK, OK]


async def test_a_node_does_not_audit_itself(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        assert await audit(world, targets=(AUDITOR, OTHER)) == [UNKNOWN, OK]
        assert {index for index, _ in world.network.dialled} == {OTHER}


async def test_who_lost_a_sampled_sliver_says_so_and_is_away(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.nodes[TARGET].drop(ROOTS[3], SHARDS[1])
        assert await audit(world) == [OFFLINE, OK]


async def test_a_liar_is_bad(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.nodes[TARGET].server.server.manner = MANNERS[Behaviour.LIAR]
        assert await audit(world) == [BAD, OK]


async def test_one_wrong_answer_among_right_ones_is_enough(tmp_path: Path) -> None:
    async def send(stream: Stream, operation: str, reply: Reply) -> None:
        header, payload = reply
        if operation == "challenge":
            reply = header, (*payload[:-1], bytes(32))
        await send_honestly(stream, operation, reply)

    async with open_world(tmp_path) as world:
        world.nodes[TARGET].server.server.manner = send
        assert await audit(world) == [BAD, OK]


async def test_who_answers_wrongly_and_shows_no_leaves_or_others_is_bad(tmp_path: Path) -> None:
    async def forge(stream: Stream, operation: str, reply: Reply) -> None:
        header, payload = reply
        if operation == "sliver":
            reply = header, (bytes(len(payload[0])), b"")
        await send_wrong_symbols(stream, operation, reply)

    async with open_world(tmp_path) as world:
        node = world.nodes[TARGET].server.server
        node.manner = forge
        assert await audit(world) == [BAD, OK]
        node.manner = send_wrong_symbols
        node.operations = {name: one for name, one in node.operations.items() if name != "sliver"}
        assert await audit(world) == [BAD, OK]


async def test_too_few_answers_are_bad(tmp_path: Path) -> None:
    async def send(stream: Stream, operation: str, reply: Reply) -> None:
        header, payload = reply
        await send_honestly(stream, operation, (header, payload[:-1] if operation == "challenge" else payload))

    async with open_world(tmp_path) as world:
        world.nodes[TARGET].server.server.manner = send
        assert await audit(world) == [BAD, OK]


@pytest.mark.parametrize("behaviour", [Behaviour.STALLED, Behaviour.SILENT])
async def test_who_drips_or_does_not_answer_is_slow(tmp_path: Path, behaviour: Behaviour) -> None:
    async with open_world(tmp_path) as world:
        world.nodes[TARGET].server.server.manner = MANNERS[behaviour]
        shorten(world, 4.0)
        assert await audit(world, targets=(TARGET,), ago_s=1.0) == [SLOW]


async def test_who_answers_wrongly_and_drips_its_leaves_is_slow(tmp_path: Path) -> None:
    async def send(stream: Stream, operation: str, reply: Reply) -> None:
        manner = MANNERS[Behaviour.STALLED] if operation == "sliver" else send_wrong_symbols
        await manner(stream, operation, reply)

    async with open_world(tmp_path) as world:
        world.nodes[TARGET].server.server.manner = send
        shorten(world, 4.0)
        assert await audit(world, targets=(TARGET,), ago_s=1.0) == [SLOW]


async def test_who_cannot_be_reached_is_away_and_is_tried_until_the_time_is_up(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.network.down = {TARGET}
        shorten(world, 8.0)
        assert await audit(world, ago_s=2.0) == [OFFLINE, OK]


class DownOnce(set[int]):
    """Members that answer from the second dial on."""

    def __contains__(self, member: object) -> bool:
        found = super().__contains__(member)
        self.discard(member)
        return found


async def test_who_comes_back_in_time_passes(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.network.down = DownOnce({TARGET})
        shorten(world, 8.0)
        assert await audit(world, targets=(TARGET,), ago_s=2.0) == [OK]
        assert len(world.network.dialled) == 2


async def test_who_is_in_another_round_is_away(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        for node in (world.nodes[AUDITOR], world.nodes[TARGET]):
            node.begin(ago_s=LATE_S)
        world.nodes[TARGET].begin(make_ledger(make_round(2, epoch=1)))
        sheet = world.nodes[AUDITOR].rounds.sheet
        assert sheet is not None
        with trio.fail_after(120):
            assert await world.auditor.audit(sheet) == [OFFLINE]


async def test_who_executes_the_round_s_block_late_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "LAG_S", 0.01)
    async with open_world(tmp_path) as world:
        auditing, target = world.nodes[AUDITOR], world.nodes[TARGET]
        wait, asked = target.answers._await, []

        async def wait_again(name: tuple[int, int]) -> Sheet:
            asked.append(name)
            if len(asked) == 2:
                target.begin()
            return await wait(name)

        monkeypatch.setattr(target.answers, "_await", wait_again)
        auditing.rounds.window_s = 8.0
        sheet = auditing.begin(ago_s=2.0)
        with trio.fail_after(120):
            assert await world.auditor.audit(sheet) == [OK]
        assert asked == [(1, 1)] * 3  # refused once, then answered for both shards


class TestOwnSlivers:
    async def test_an_auditor_without_slivers_cannot_tell(self, tmp_path: Path) -> None:
        async with open_world(tmp_path) as world:
            for root in ROOTS:
                for shard in OWN:
                    world.nodes[AUDITOR].drop(root, shard)
            assert await audit(world) == [UNKNOWN, UNKNOWN]
            assert world.network.dialled == []

    async def test_one_with_half_of_them_can_and_with_less_cannot(self, tmp_path: Path) -> None:
        async with open_world(tmp_path) as world:
            for root in ROOTS:
                world.nodes[AUDITOR].drop(root, OWN[0])
            assert await audit(world) == [OK, OK]
            world.nodes[AUDITOR].drop(ROOTS[0], OWN[1])
            assert await audit(world) == [UNKNOWN, UNKNOWN]

    async def test_a_rotten_one_is_dropped_and_nobody_is_blamed_for_it(self, tmp_path: Path) -> None:
        async with open_world(tmp_path) as world:
            store = world.nodes[AUDITOR].store
            path = path_of(store, ROOTS[0], OWN[0])
            data = bytearray(path.read_bytes())
            data[-40:] = bytes(byte ^ 1 for byte in data[-40:])
            path.write_bytes(data)
            assert await audit(world) == [OK, OK]
            assert (store.corrupt_slivers, store.missing(ROOTS[0], OWN)) == (1, [OWN[0]])

    async def test_what_is_fresh_or_unknown_here_is_not_asked_about(self, tmp_path: Path) -> None:
        """The target lacks a blob that was certified since the round before; it may still recover it."""
        fresh, unknown = make_blob(CODE, 30, seed=7), make_blob(CODE, 30, seed=8)
        async with open_world(tmp_path) as world:
            ledger = make_ledger(make_round(epoch=1), *BLOBS, fresh, unknown)
            ledger.certify(fresh.header, epoch=1)
            put_all(world.nodes[AUDITOR].store, OWN, [fresh])
            sheets = [node.begin(ledger, ago_s=ASKING_S) for node in world.nodes]
            with trio.fail_after(120):
                assert await world.auditor.audit(sheets[AUDITOR]) == [OK]


def contradict() -> tuple[Header, EncodedSegment, Pair]:
    """Return a blob of one segment whose writer committed to another row for one of the target's shards than its
    columns cross, and the pair of that shard as its holder was sent it."""
    codec = make_codec(GENESIS)
    for seed in range(100):
        honest = make_blob(CODE, 60, seed).segments[0]
        row = bytes(byte ^ 1 for byte in honest.primary(0))
        leaves = codec.expand(Kind.PRIMARY, row, honest.z)
        metadata = SegmentMetadata((sliver_hash(leaves), *honest.metadata.hashes[1:]))
        segment = replace(honest, metadata=metadata)
        shard = CODE.shard_of_pair(0, segment.root)
        if shard in SHARDS:
            (pair,) = make_pairs(segment, [shard])
            return (
                Header(CODE, 60, (segment.root,)),
                segment,
                replace(pair, primary=memoryview(row), primary_leaves=leaves),
            )
    raise AssertionError("no seed gives the row to the target")


@asynccontextmanager
async def open_contradicted(directory: Path) -> AsyncIterator[tuple[World, Sheet, Sheet]]:
    """Yield a world in which the target holds a pair that its writer committed to in contradiction to all others, the
    auditor's sheet, and one that asks about that pair alone."""
    header, segment, pair = contradict()
    async with open_world(directory) as world:
        for node in world.nodes:
            node.store.put_header(header)
            pairs = [pair if own.shard == pair.shard else own for own in make_pairs(segment, node.shards)]
            node.store.put_segment(segment.metadata, segment.z, pairs)
        ledger = make_ledger(make_round(epoch=1))
        ledger.certify(header)
        sheets = [node.begin(ledger, ago_s=ASKING_S) for node in world.nodes]
        sheet = sheets[AUDITOR]
        alone = [one for one in sheet.samples[pair.shard] if one.root == segment.root]
        with trio.fail_after(120):
            yield world, sheet, replace(sheet, samples=dict.fromkeys(SHARDS, ()) | {pair.shard: tuple(alone)})


async def test_who_answers_by_what_a_writer_committed_to_is_not_blamed_for_its_contradictions(tmp_path: Path) -> None:
    async with open_contradicted(tmp_path) as (world, sheet, only):
        assert await world.auditor.audit(only) == [UNKNOWN]
        assert await world.auditor.audit(sheet) == [OK]
        world.nodes[TARGET].server.server.manner = MANNERS[Behaviour.LIAR]
        assert await world.auditor.audit(sheet) == [BAD]


async def test_who_was_too_busy_to_show_its_leaves_is_asked_again(tmp_path: Path) -> None:
    """Anybody can keep a node busy: with a blob of his that contradicts itself he could have it slashed."""
    async with open_contradicted(tmp_path) as (world, _, only):
        server = world.nodes[TARGET].server.server
        honest = server.operations["sliver"]
        asked = itertools.count()

        async def answer(peer: NodeId, message: Incoming, payload: bytes) -> Reply:
            if not next(asked):
                raise Rejected(Reason.OVER_BUDGET, "too many transfers at once")
            return await honest.answer(peer, message, payload)

        server.operations = {**server.operations, "sliver": replace(honest, answer=answer)}
        assert await world.auditor.audit(only) == [UNKNOWN]
        assert next(asked) > 1


async def test_reports_what_it_found_once_a_round(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        node = world.nodes[AUDITOR]
        world.nodes[OTHER].drop(ROOTS[0], GENESIS.committee.shards_of(OTHER)[0])
        ledger = make_ledger(make_round(epoch=1, targets=(TARGET, OTHER)))
        for other in world.nodes[1:]:
            other.begin(ledger)
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.rounds.run)
                nursery.start_soon(world.auditor.run)
                node.executor.begin(ledger, ago_s=ASKING_S)
                await node.has_wanted.wait()
                nursery.cancel_scope.cancel()
        name = b"audit" + (1).to_bytes(8, "big") + (1).to_bytes(2, "big")
        assert node.wanted == [(name, ReportAudit(1, 1, (OK, OFFLINE)))]
