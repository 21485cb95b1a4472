"""What a node owes comes back: from who held it, else from symbols, whoever lies; it costs little, nothing is lost."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from economics.arguments import Invalidate, ReportSync, invalid_message
from economics.blob import Header
from economics.crypto import NodeId, verify_signature
from economics.ledger import Ledger
from economics.nodes import Handover
from p2pnode.adversary import MANNERS, Behaviour
from p2pnode.coding.codec import Kind
from p2pnode.coding.recovery import InconsistencyProof
from p2pnode.mending import healing as healing_module
from p2pnode.mending import peers as peers_module
from p2pnode.mending.owed import holders
from p2pnode.mending.peers import ANSWER_S
from p2pnode.slivers import serving
from p2pnode.slivers.records import BlobRecord
from p2pnode.slivers.sliverfile import Pair
from p2pnode.slivers.storage import Manner, Reply, send_honestly
from tests.coding.test_recovery import Writer
from tests.p2pnode.healers import Healer, Town
from tests.p2pnode.threads import inline_threads as inline_threads
from tests.slivers.test_store import path_of
from tests.small import Blob, make_blob, make_codec, make_genesis, make_pairs

FOUR = make_genesis()
"""n = 4: f = 1, P = 2, S = 3."""
SEVEN = make_genesis((1,) * 7)
"""n = 7: f = 2, P = 3, S = 5."""


def expect_whole(town: Town, blob: Blob, shards: list[int]) -> None:
    """Fail unless the first node has just the slivers of these shards, and they are right."""
    store = town.servers[0].store
    for segment in blob.segments:
        assert store.missing(segment.root, range(town.code.n)) == [s for s in range(town.code.n) if s not in shards]
        for pair in make_pairs(segment, shards):
            assert store.read_pair(segment.root, pair.shard) == (segment.metadata, pair)


def operations(town: Town) -> list[str]:
    return [str(request["op"]) for _, request, _ in town.asked]


def traffic(healer: Healer) -> dict[str, Any]:
    return {name: value for name, value in healer.healing.status().items() if name.endswith("_bytes")}


class TestGainedShards:
    async def test_have_their_holders_looked_up_once_for_all_blobs_of_an_epoch(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A thousand wants took 0.07 s of the trio thread, for each holder that was asked."""
        asked: list[tuple[int, int]] = []

        def counted(ledger: Ledger, shard: int, since: int) -> list[NodeId]:
            asked.append((shard, since))
            return holders(ledger, shard, since)

        monkeypatch.setattr(healing_module, "holders", counted)
        town = Town(tmp_path)
        for seed in range(10):
            town.store_blob(make_blob(FOUR.code, 100, seed))
        town.seat(0, 0, 2, 3, epoch=1)
        async with town.healing() as healer:
            assert await healer.once()
        assert asked == [(1, 0)]

    async def test_of_the_next_epoch_come_from_who_holds_them_now(self, tmp_path: Path) -> None:
        town, blob = Town(tmp_path), make_blob(FOUR.code, 2500)
        town.store_blob(blob)
        town.seat(0, 0, 2, 3, epoch=1)
        async with town.healing() as healer:
            assert await healer.once()
            assert await healer.missing() == 0
            expect_whole(town, blob, [0, 1])
            size = sum(4 + 256 + FOUR.code.pair_bytes(segment.z) for segment in blob.segments)
            files = sum(healer.store.layout.file_bytes(segment.z) for segment in blob.segments)
            assert traffic(healer) == {
                "metadata_bytes": 0,
                "restored_bytes": files,
                "symbols_bytes": 0,
                "transfer_bytes": size,
            }
        assert [(member, request["op"]) for member, request, _ in town.asked] == [(1, "pairs")]
        assert town.wanted == []  # it says so only when the epoch has begun

    async def test_are_reported_when_all_is_here_and_not_before(self, tmp_path: Path) -> None:
        town, blob = Town(tmp_path), make_blob(FOUR.code, 2500)
        town.store_blob(blob)
        town.seat(0, 0, 2, 3, epoch=1)
        town.view.epoch, town.view.handover = 1, Handover(1, 0, 0, (1, 2))
        async with town.healing() as healer:
            await healer.missing()
            assert town.wanted == []
            await healer.once()
            assert await healer.missing() == 0
            ((operation, is_wanted),) = town.wanted
            assert operation == ReportSync(1)
            assert is_wanted(town.ledger)
            town.view.handover = Handover(1, 0, 0, (0, 1, 2))
            assert not is_wanted(town.ledger)

    async def test_of_what_was_certified_since_do_not_hold_the_report_up(self, tmp_path: Path) -> None:
        town = Town(tmp_path)
        town.seat(0, 0, 2, 3, epoch=1)
        town.view.epoch, town.view.handover = 1, Handover(1, 0, 0, (1, 2))
        town.store_blob(make_blob(FOUR.code, 100), epoch=1, but=(0,))
        async with town.healing() as healer:
            assert await healer.missing() == 1
        assert [operation for operation, _ in town.wanted] == [ReportSync(1)]

    async def test_come_from_a_former_holder_that_has_no_seat_any_more(self, tmp_path: Path) -> None:
        town, blob = Town(tmp_path), make_blob(FOUR.code, 1000)
        town.store_blob(blob)
        town.seat(0, 0, 2, 3, epoch=1)
        town.view.epoch, town.view.handover = 1, Handover(1, 0, 0, (1, 2))
        async with town.healing() as healer:
            await healer.once()
        expect_whole(town, blob, [0, 1])
        assert [(member, request["op"]) for member, request, _ in town.asked] == [(1, "pairs")]

    async def test_that_nobody_gives_are_recovered(self, tmp_path: Path) -> None:
        """The holder has no time, so the others' symbols make them."""
        town = Town(tmp_path, manners={1: MANNERS[Behaviour.REFUSER]})
        blob = make_blob(FOUR.code, 2500)
        town.store_blob(blob)
        town.seat(0, 0, 2, 3, epoch=1)
        async with town.healing() as healer:
            await healer.once()
            assert healer.peers.excluded == {}
            assert traffic(healer)["transfer_bytes"] == 0
        expect_whole(town, blob, [0, 1])

    async def test_that_were_forged_are_not_kept_and_their_forger_is_not_asked_again(self, tmp_path: Path) -> None:
        town = Town(tmp_path, manners={1: MANNERS[Behaviour.FORGER]})
        blob = make_blob(FOUR.code, 2500)
        town.store_blob(blob)
        town.seat(0, 0, 2, 3, epoch=1)
        async with town.healing() as healer:
            await healer.once()
            assert [*healer.peers.excluded] == [NodeId(town.servers[1].key.public)]
            expect_whole(town, blob, [0, 1])
            town.asked.clear()
            path_of(healer.store, blob.header.roots[0], 1).unlink()
            healer.store.drop_shard_file(blob.header.roots[0], 1)
            await healer.once()
            assert {member for member, _, _ in town.asked} == {2, 3}
            town.view.epoch = 1
            await healer.missing()
            assert healer.peers.excluded == {}  # it may have mended

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("the metadata", lambda item: bytes([item[0] ^ 1]) + item[1:]),
            ("the primary", lambda item: item[:256] + bytes([item[256] ^ 1]) + item[257:]),
            ("the secondary", lambda item: item[:-1] + bytes([item[-1] ^ 1])),
            ("a byte short", lambda item: item[:-1]),
            ("a byte long", lambda item: item + b"x"),
            ("another shard's", lambda item: item[:256] + item[256:][::-1]),
        ],
    )
    async def test_that_are_wrong_anywhere_are_not_kept(
        self, tmp_path: Path, name: str, change: Callable[[bytes], bytes]
    ) -> None:
        async def send_changed(stream: Any, operation: str, reply: Reply) -> None:
            header, payload = reply
            if operation == "pairs":
                item = change(b"".join(payload)[4:])
                payload = (len(item).to_bytes(4, "big"), item)
            await send_honestly(stream, operation, (header, payload))

        town, blob = Town(tmp_path, manners={1: send_changed}), make_blob(FOUR.code, 100)
        town.store_blob(blob)
        town.seat(0, 0, 2, 3, epoch=1)
        async with town.healing() as healer:
            await healer.once()
            assert [*healer.peers.excluded] == [NodeId(town.servers[1].key.public)]
            assert traffic(healer)["symbols_bytes"] > 0
        expect_whole(town, blob, [0, 1])

    async def test_are_asked_for_only_where_they_are_missing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The stream breaks after a page: what came is on disk, and the rest alone is asked for."""

        async def send_two(stream: Any, operation: str, reply: Reply) -> None:
            if operations(town)[2:]:
                await stream.reset()
            else:
                await send_honestly(stream, operation, reply)

        async def recover_nothing(*args: object) -> None:
            await trio.lowlevel.checkpoint()

        town = Town(tmp_path, manners={1: send_two})
        blob = make_blob(FOUR.code, 5000)
        town.store_blob(blob)
        town.seat(0, 0, 2, 3, epoch=1)
        monkeypatch.setattr(healing_module, "PAGE_BYTES", 1)  # one root a page
        async with town.healing() as healer:
            monkeypatch.setattr(healer.healing, "_recover", recover_nothing)
            assert await healer.once()
            assert await healer.missing() == 3
            for first, last in ((2, 4), (4, 5)):
                town.asked.clear()
                await healer.once()
                asked = [payload for _, request, payload in town.asked if request["op"] == "pairs"]
                assert asked[: last - first] == list(blob.header.roots[first:last])
        expect_whole(town, blob, [0, 1])


class TestLostDisk:
    @pytest.mark.parametrize("genesis", [FOUR, SEVEN, make_genesis((2, 2, 1, 1, 1))], ids=["4", "7", "7 of 5 nodes"])
    async def test_is_filled_again_by_symbols_of_its_own_size(self, tmp_path: Path, genesis: Any) -> None:
        genesis = replace(genesis, segment_bytes=60_000)
        town, blob = Town(tmp_path, genesis), make_blob(genesis.code, 500_000)
        town.store_blob(blob, but=(0,))
        async with town.healing() as healer:
            await healer.once()
            await healer.once()
            assert await healer.missing() == 0
            counted = traffic(healer)
        shards = genesis.committee.shards_of(0)
        expect_whole(town, blob, [*shards])
        assert town.servers[0].store.record(blob.header.blob_id) is not None
        lost = len(shards) * sum(genesis.code.pair_bytes(segment.z) for segment in blob.segments)
        received = counted["symbols_bytes"] + counted["metadata_bytes"] + counted["transfer_bytes"]
        assert counted["transfer_bytes"] == 0
        assert counted["restored_bytes"] >= lost
        assert received <= 1.3 * counted["restored_bytes"]
        assert received <= 1.3 * lost

    async def test_of_many_small_blobs_is_filled_again(self, tmp_path: Path) -> None:
        town = Town(tmp_path)
        blobs = [make_blob(FOUR.code, length, seed) for seed, length in enumerate((0, 1, 5, 999, 1000, 1001, 2000))]
        for blob in blobs:
            town.store_blob(blob, but=(0,))
        async with town.healing() as healer:
            for _ in range(2):
                await healer.once()
            assert await healer.missing() == 0
        for blob in blobs:
            expect_whole(town, blob, [0])

    @pytest.mark.parametrize("lost", [(), (1,)], ids=["symbols", "pairs"])
    async def test_comes_back_however_little_is_in_a_reply(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: tuple[int, ...]
    ) -> None:
        monkeypatch.setattr(serving, "REPLY_BYTES_MAX", 1)
        town, blob = Town(tmp_path), make_blob(FOUR.code, 5000)
        town.store_blob(blob, but=() if lost else (0,))
        town.seat(0, 0 if lost else 1, 2, 3, epoch=1)
        town.servers[0].store.put_header(blob.header)
        async with town.healing() as healer:
            await healer.once()
            assert await healer.missing() == 0
        expect_whole(town, blob, [0, *lost])

    @pytest.mark.parametrize("down", [{3}, {3, 6}])
    async def test_with_f_others_down_is_filled_again(self, tmp_path: Path, down: set[int]) -> None:
        town, blob = Town(tmp_path, SEVEN), make_blob(SEVEN.code, 2500)
        town.store_blob(blob, but=(0,))
        async with town.healing() as healer:
            healer.network.down = down
            await healer.once()
            await healer.once()
            assert await healer.missing() == 0
        expect_whole(town, blob, [0])

    async def test_stays_as_it_is_while_too_few_are_there(self, tmp_path: Path) -> None:
        town, blob = Town(tmp_path), make_blob(FOUR.code, 2500)
        town.store_blob(blob, but=(0,))
        async with town.healing() as healer:
            healer.network.down = {2, 3}
            assert await healer.once()  # a header
            assert not await healer.once()
            healer.network.down = set()
            assert await healer.once()
        expect_whole(town, blob, [0])


class TestLiars:
    @pytest.mark.parametrize(("operation", "count"), [("headers", 5), ("metadata", 2)])
    async def test_about_a_blob_s_names_are_not_believed(self, tmp_path: Path, operation: str, count: int) -> None:
        async def send_wrong(stream: Any, asked: str, reply: Reply) -> None:
            header, payload = reply
            if asked == operation:
                joined = b"".join(payload)
                payload = (joined[:-1] + bytes([joined[-1] ^ 1]),)
            await send_honestly(stream, asked, (header, payload))

        manners: dict[int, Manner] = dict.fromkeys(range(1, 1 + count), send_wrong)
        town, blob = Town(tmp_path, SEVEN, manners=manners), make_blob(SEVEN.code, 6000)
        town.store_blob(blob, but=(0,))
        async with town.healing() as healer:
            await healer.once()
            assert healer.store.record(blob.header.blob_id) == BlobRecord(blob.header, (), None)
            if operation == "metadata":  # of five liars nothing is left to recover from
                await healer.once()
                expect_whole(town, blob, [0])
            liars = {NodeId(town.servers[member].key.public) for member in manners}
            assert set() < {*healer.peers.excluded} <= liars

    async def test_f_of_them_are_found_by_their_leaves_and_cost_nothing_but_rounds(self, tmp_path: Path) -> None:
        forger = MANNERS[Behaviour.FORGER]
        town, blob = Town(tmp_path, SEVEN, manners={2: forger, 5: forger}), make_blob(SEVEN.code, 2500)
        town.store_blob(blob, but=(0,))
        async with town.healing() as healer:
            await healer.once()
            await healer.once()
            assert await healer.missing() == 0
            liars = {NodeId(town.servers[member].key.public) for member in (2, 5)}
            assert {*healer.peers.excluded} <= liars
            assert healer.peers.excluded
        expect_whole(town, blob, [0])
        shown = [request for _, request, _ in town.asked if request["op"] == "sliver"]
        assert 0 < len(shown) <= SEVEN.code.f * 2 * 3 * 6  # rounds, kinds, segments, helpers
        assert {request["count"] for request in shown} == {0}

    async def test_with_f_shards_leave_enough_for_a_node_with_several(self, tmp_path: Path) -> None:
        """n = 10, S = 7: 5 honest shards and this node's own two, which help each other."""
        genesis = make_genesis((2, 3, 3, 2))
        forger = MANNERS[Behaviour.FORGER]
        town, blob = Town(tmp_path, genesis, manners={1: forger}), make_blob(genesis.code, 2500)
        town.store_blob(blob, but=(0,))
        async with town.healing() as healer:
            await healer.once()
            await healer.once()
            assert await healer.missing() == 0
            assert {*healer.peers.excluded} <= {NodeId(town.servers[1].key.public)}
        expect_whole(town, blob, [0, 1])

    async def test_that_give_garbage_at_full_speed_stall_nobody(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(peers_module, "ANSWER_S", math.inf)
        babbler = MANNERS[Behaviour.BABBLER]
        town, blob = Town(tmp_path, SEVEN, manners={2: babbler, 5: babbler}), make_blob(SEVEN.code, 2500)
        town.store_blob(blob, but=(0,))
        async with town.healing() as healer:
            for _ in range(3):
                await healer.once()
            assert await healer.missing() == 0
            assert {*healer.peers.excluded} == {NodeId(town.servers[member].key.public) for member in (2, 5)}
        expect_whole(town, blob, [0])

    @pytest.mark.usefixtures("inline_threads")
    async def test_that_are_silent_are_replaced_meanwhile(
        self, tmp_path: Path, autojump_clock: trio.testing.MockClock
    ) -> None:
        async def say_nothing(stream: Any, operation: str, reply: Reply) -> None:
            if operation == "symbols":
                await trio.sleep_forever()
            await send_honestly(stream, operation, reply)

        town, blob = Town(tmp_path, SEVEN, manners={2: say_nothing, 5: say_nothing}), make_blob(SEVEN.code, 2500)
        town.store_blob(blob, but=(0,))
        async with town.healing() as healer:
            for _ in range(2):
                survey = await healer.healing.look(town.ledger)
                await healer.healing.heal(town.ledger, survey)
            assert await healer.missing() == 0
            assert healer.peers.excluded == {}
            assert trio.current_time() < ANSWER_S
        expect_whole(town, blob, [0])


@pytest.mark.usefixtures("inline_threads")
class TestDrippers:
    """Nodes that give one thing at a time, each just before a deadline, hold nobody up for longer than a silent one."""

    DELAY_S = 9.0
    """Streams give up after 10 s in which nothing moves."""

    async def test_with_headers_are_passed_by(
        self, tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def drip(stream: Any, operation: str, reply: Reply) -> None:
            if operation == "headers":
                await trio.sleep(self.DELAY_S)
                reply = {"count": 1, "ok": True}, (serving.NOTHING,)
            await send_honestly(stream, operation, reply)

        town = Town(tmp_path, SEVEN, manners={2: drip})
        for seed in range(12):
            town.store_blob(make_blob(SEVEN.code, 100, seed), but=(0,))
        async with town.healing() as healer:
            nodes = [NodeId(town.servers[member].key.public) for member in (2, 1)]
            monkeypatch.setattr(healer.peers, "_in_any_order", list)
            wanted = [blob.blob_id for blob in town.ledger.live_blobs()]
            assert len(await healer.peers.headers(nodes, wanted)) == 12
            assert trio.current_time() < 2 * ANSWER_S
            assert healer.peers.members.fault(nodes[0]) is not None, "it is asked last from here on"

    async def test_with_pairs_are_passed_by(self, tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
        async def drip(stream: Any, operation: str, reply: Reply) -> None:
            if operation == "pairs":
                await trio.sleep(self.DELAY_S)
                reply = {"count": 1, "ok": True}, reply[1][:4]  # length, metadata and both slivers
            await send_honestly(stream, operation, reply)

        town, blobs = Town(tmp_path, manners={1: drip}), [make_blob(FOUR.code, 2500, seed) for seed in range(12)]
        for blob in blobs:
            town.store_blob(blob)
        town.seat(0, 0, 2, 3, epoch=1)
        async with town.healing() as healer:
            await healer.healing.heal(town.ledger, await healer.healing.look(town.ledger))
            assert await healer.missing() == 0
            assert healer.peers.excluded == {}, "what it gave was right"
            assert trio.current_time() < 2 * ANSWER_S
        for blob in blobs:
            expect_whole(town, blob, [0, 1])


def as_segment(writer: Writer, code: Any) -> tuple[Any, int, list[Pair]]:
    """Return what the nodes hold of a segment by a writer who is not honest."""
    root = writer.metadata.root
    pairs = []
    for shard in range(code.n):
        row = code.pair_of_shard(shard, root)
        one, two = writer.slivers[Kind.PRIMARY, row], writer.slivers[Kind.SECONDARY, code.n - 1 - row]
        pairs.append(Pair(shard, memoryview(one.sliver), memoryview(two.sliver), one.leaves, two.leaves))
    return writer.metadata, code.symbol_bytes(writer.length), pairs


class TestWrongWriters:
    """Slivers that each hold by themselves and contradict each other: whoever loses one finds out, and proves it."""

    def town_of(self, directory: Path) -> tuple[Town, Header]:
        """Return nodes with a blob of which the first node's slivers are of other bytes than the rest."""
        town, code = Town(directory), FOUR.code
        codec = make_codec(FOUR)
        honest, other = (Writer.honest(codec, make_blob(code, 600, seed).data) for seed in (0, 1))
        for pair in range(code.n):
            keys = [(Kind.PRIMARY, pair), (Kind.SECONDARY, code.n - 1 - pair)]
            wrong = honest.with_slivers(other, keys)
            if code.shard_of_pair(pair, wrong.metadata.root) == 0:
                town.store_pairs(wrong.header, [as_segment(wrong, code)], but=(0,))
                return town, wrong.header
        raise AssertionError("no rotation puts the wrong slivers at the first node")

    async def test_end_in_an_invalid_blob_with_f_plus_one_attestations(self, tmp_path: Path) -> None:
        for seed in range(20):
            try:
                town, header = self.town_of(tmp_path / str(seed))
                break
            except AssertionError:
                continue
        async with town.healing() as healer:
            await healer.once()
            await healer.once()
            blob_id = header.blob_id
            assert healer.peers.excluded == {}
            assert healer.store.proofs.known() == {blob_id}
            proof = healer.store.proofs.read(blob_id)
            assert proof is not None
            InconsistencyProof.decode(proof, code=FOUR.code).verify(make_codec(FOUR), header)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(healer.proofs.run)
                with trio.fail_after(120):
                    await healer.wished.wait()
                nursery.cancel_scope.cancel()
            ((operation, is_wanted),) = town.wanted
            assert isinstance(operation, Invalidate)
            assert (operation.blob_id, operation.epoch) == (blob_id, 0)
            assert len(operation.attestations) == 2
            message = invalid_message(chain_id=FOUR.chain_id, epoch=0, blob_id=blob_id, proof_hash=operation.proof_hash)
            for attestation in operation.attestations:
                verify_signature(FOUR.members[attestation.signer].node, message, attestation.signature)
            assert is_wanted(town.ledger)
            assert await healer.missing() == 0  # it is not tried again
            town.view.invalid.add(blob_id)
            assert not is_wanted(town.ledger)


@pytest.mark.usefixtures("inline_threads")
class TestMissedUploads:
    async def test_are_left_to_their_client_for_a_while(
        self, tmp_path: Path, autojump_clock: trio.testing.MockClock
    ) -> None:
        town, blob = Town(tmp_path), make_blob(FOUR.code, 100)
        async with town.healing() as healer:
            assert await healer.missing() == 0
            town.store_blob(blob, but=(0,))
            survey = await healer.healing.look(town.ledger)
            assert (survey.headers, survey.wants, survey.next_due) == ([], [], trio.current_time() + 15)
            await trio.sleep(14.9)
            assert await healer.missing() == 0
            await trio.sleep(0.2)
            assert await healer.missing() == 1
            await healer.once()
            await healer.once()
        expect_whole(town, blob, [0])

    async def test_are_repaired_by_themselves_without_anyone_asking(
        self, tmp_path: Path, autojump_clock: trio.testing.MockClock
    ) -> None:
        town, blob = Town(tmp_path), make_blob(FOUR.code, 2500)
        never = trio.Event()
        async with town.healing() as healer, trio.open_nursery() as nursery:
            nursery.start_soon(healer.healing.run, lambda: never)
            await trio.sleep(5)
            town.store_blob(blob, but=(0,))
            healer.healing.wake()
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
        expect_whole(town, blob, [0])


class TestSpace:
    async def test_that_does_not_suffice_is_said_and_nothing_reported_or_lost(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        old, new = make_blob(FOUR.code, 1000, 1), make_blob(FOUR.code, 3000, 2)
        size = 568 + FOUR.code.pair_bytes(167)
        town = Town(tmp_path, quota=3 * size)
        town.store_blob(old)
        town.store_blob(new, but=(0,))
        town.seat(0, 0, 2, 3, epoch=1)
        town.view.epoch, town.view.handover = 1, Handover(1, 0, 0, (1, 2))
        async with town.healing() as healer:
            await healer.once()
            for _ in range(3):
                assert not await healer.once()
            assert await healer.missing() > 0
            assert healer.store.used_bytes <= 3 * size
            assert healer.store.missing(old.header.roots[0], [0]) == []
        assert town.wanted == []
        assert sum("does not fit" in record.getMessage() for record in caplog.records) == 1
