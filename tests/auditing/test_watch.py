"""A spot check names who serves wrong bytes or nothing at all, and never an honest member; adversaries act as named."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from economics import cbor
from economics.blob import Root
from economics.crypto import NodeId
from p2pnode.adversary import DRIP_S, MANNERS, Behaviour
from p2pnode.auditing.watch import Watch
from p2pnode.members import FaultKind
from p2pnode.network.frames import build_header, receive_message
from p2pnode.slivers.records import Entry
from p2pnode.slivers.storage import Reply
from tests.p2pnode.server import CLIENT, GENESIS, MemoryNetwork, Server, make_members
from tests.slivers.test_store import path_of
from tests.small import (
    OPERATORS,
    Blob,
    certify,
    commit,
    make_blob,
    make_codec,
    make_pairs,
    make_statement,
    sign_statement,
)
from tests.streams import as_stream, ask, stream_pair

SEGMENT = make_blob(GENESIS.code, 100).segments[0]
LIAR = 1


@dataclass
class Watched:
    """Three nodes that hold a segment; the first watches the others."""

    servers: list[Server]
    network: MemoryNetwork
    watch: Watch

    async def check(self, member: int, times: int = 20) -> list[FaultKind]:
        """Check a member often enough that every choice of sliver comes up; return what it was caught at."""
        for _ in range(times):
            await self.watch.check(NodeId(OPERATORS[member].public), SEGMENT.root)
        return [fault.kind for fault in self.watch.last_faults.values()]


@asynccontextmanager
async def open_watched(directory: Path, behaviour: Behaviour = Behaviour.HONEST) -> AsyncIterator[Watched]:
    servers = []
    for index in range(3):
        manner = MANNERS[behaviour if index == LIAR else Behaviour.HONEST]
        servers.append(Server(directory / str(index), key=OPERATORS[index], manner=manner))
        pairs = make_pairs(SEGMENT, GENESIS.committee.shards_of(index))
        servers[-1].store.put_segment(SEGMENT.metadata, SEGMENT.z, pairs)
    async with trio.open_nursery() as nursery:
        network = MemoryNetwork(servers, nursery)
        members = make_members(network, GENESIS)
        own = NodeId(OPERATORS[0].public)
        watch = Watch(members=members, store=servers[0].store, codec=make_codec(GENESIS), own=own, rng=random.Random(1))
        yield Watched(servers, network, watch)
        nursery.cancel_scope.cancel()


async def test_an_honest_member_passes(tmp_path: Path) -> None:
    async with open_watched(tmp_path) as watched:
        assert await watched.check(1) == []
        assert await watched.check(2) == []
        assert watched.watch.checks == 40


async def test_a_liar_is_caught_at_once_and_an_honest_member_beside_it_is_not(tmp_path: Path) -> None:
    async with open_watched(tmp_path, Behaviour.LIAR) as watched:
        assert await watched.check(2) == []
        assert await watched.check(LIAR, times=1) == [FaultKind.WRONG_BYTES]
        assert set(watched.watch.last_faults) == {OPERATORS[LIAR].public}


async def test_who_answers_rightly_again_is_cleared(tmp_path: Path) -> None:
    async with open_watched(tmp_path) as watched:
        watched.network.down = {2}
        assert await watched.check(2) == [FaultKind.UNREACHABLE]
        watched.network.down.clear()
        assert await watched.check(2) == []
        watched.servers[2].server.manner = MANNERS[Behaviour.LIAR]
        assert await watched.check(2) == [FaultKind.WRONG_BYTES]  # not what it was caught at before


async def test_who_does_not_hold_a_sliver_is_not_at_fault(tmp_path: Path) -> None:
    async with open_watched(tmp_path) as watched:
        watched.servers[2].store.evict(1 << 30)
        assert await watched.check(2) == []


async def test_nobody_is_blamed_for_what_the_watcher_lost_itself(tmp_path: Path) -> None:
    async with open_watched(tmp_path) as watched:
        for shard in GENESIS.committee.shards_of(0):
            path_of(watched.servers[0].store, SEGMENT.root, shard).unlink()
        assert await watched.check(1) == []
        assert await watched.check(2) == []
        assert (watched.watch.members.faults, watched.watch.checks) == ({}, 0)


async def test_only_others_are_checked_and_only_what_is_certified(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[NodeId, Root]] = []

    async def note(watch: Watch, node: NodeId, root: Root) -> None:
        asked.append((node, root))

    monkeypatch.setattr(Watch, "check", note)
    blobs = [make_blob(GENESIS.code, 1500, seed) for seed in (1, 2)]
    async with open_watched(tmp_path) as watched:
        for blob in blobs:
            put_record(watched.servers[0], blob)
        watched.servers[0].store.put_certificate(certify(GENESIS, make_statement(GENESIS, blobs[1].header), (0, 1)))
        with trio.move_on_after(100):
            await watched.watch.run(1)
    assert 60 < len(asked) < 150
    assert {node for node, _ in asked} == {OPERATORS[1].public, OPERATORS[2].public}
    assert {root for _, root in asked} == set(blobs[1].header.roots)


def put_record(server: Server, blob: Blob) -> None:
    statement = make_statement(GENESIS, blob.header)
    server.store.put_entry(blob.header, Entry(statement, sign_statement(statement), 0, commit(statement, 0)[1]))


class TestAdversary:
    """What each does to a read of one symbol; uploads and other questions it answers like anybody."""

    def request(self) -> dict[str, cbor.Value]:
        (shard,) = GENESIS.committee.shards_of(LIAR)
        pair = GENESIS.code.pair_of_shard(shard, SEGMENT.root)
        return {"count": 1, "first": 0, "index": pair, "kind": 0, "op": "sliver", "root": SEGMENT.root}

    async def test_a_liar_serves_a_wrong_symbol_with_the_right_leaves(self, tmp_path: Path) -> None:
        async with open_watched(tmp_path, Behaviour.LIAR) as watched:
            async with watched.servers[2].stream() as honest, watched.servers[LIAR].stream() as liar:
                assert (await ask(honest, {"op": "metadata", "root": SEGMENT.root}))[1] == SEGMENT.metadata.encode()
                assert (await ask(liar, {"op": "metadata", "root": SEGMENT.root}))[1] == SEGMENT.metadata.encode()
                _, payload = await ask(liar, self.request())
            (shard,) = GENESIS.committee.shards_of(LIAR)
            (pair,) = make_pairs(SEGMENT, [shard])
            assert payload[:128] == pair.primary_leaves
            right = bytes(pair.primary[: SEGMENT.z])
            assert payload[128:] == bytes([right[0] ^ 1]) + right[1:]

    @pytest.mark.parametrize(
        ("behaviour", "moved"), [(Behaviour.STALLED, len(build_header({"ok": True}, 9)) + 6), (Behaviour.SILENT, 0)]
    )
    @pytest.mark.parametrize("operation", ["sliver", "metadata"])
    async def test_others_are_never_done(
        self, autojump_clock: trio.testing.MockClock, behaviour: Behaviour, moved: int, operation: str
    ) -> None:
        """In 5.5 s a staller has moved six of nine bytes, and a silent one none."""
        here, there = stream_pair(CLIENT, NodeId(OPERATORS[LIAR].public))
        reply: Reply = {"ok": True}, (b"leaves", b"sym")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(MANNERS[behaviour], as_stream(there), operation, reply)
            with trio.move_on_after(5.5 * DRIP_S):
                await here.receive_exactly(1000)
            assert here.received_bytes == moved
            nursery.cancel_scope.cancel()

    @pytest.mark.parametrize("behaviour", list(Behaviour))
    async def test_all_answer_an_upload_and_other_questions_like_anybody(self, behaviour: Behaviour) -> None:
        here, there = stream_pair(CLIENT, NodeId(OPERATORS[LIAR].public))
        for operation in ("open", "have", "segment", "close", "header", "certificate", "status"):
            await MANNERS[behaviour](as_stream(there), operation, ({"ok": True}, (b"bytes",)))
            assert (await receive_message(here)).header == {"ok": True, "size": 5}
            assert await here.receive_exactly(5) == b"bytes"
