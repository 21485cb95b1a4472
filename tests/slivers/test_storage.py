"""A node takes what is owed and proven, signs once it is on disk, serves what is right, and refuses without a trace."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from economics import cbor
from economics.arguments import Certify, Reserve
from economics.blob import Header, Root
from economics.commitments import ZERO_RESERVATION, Commitment, OwnerStatement, ReservationId
from economics.crypto import Digest, NodeId, Signature
from economics.errors import Reason
from economics.geometry import Code
from economics.ledger import Code as Outcome
from p2pnode.budget import BUDGET_WAIT_S, ByteBudget
from p2pnode.coding.codec import Kind
from p2pnode.errors import NetworkError, SpaceError, StreamBroken, TooSlow
from p2pnode.keys import Key
from p2pnode.network.frames import Incoming, receive_message, send_message
from p2pnode.slivers import storage
from p2pnode.slivers.admission import UploadLimits
from p2pnode.slivers.certifier import Entry
from p2pnode.slivers.records import Entry as Kept
from p2pnode.slivers.storage import PAYLOAD_BUDGET_BYTES
from tests.chain import key_of
from tests.p2pnode.reseated import Reseated, seat
from tests.p2pnode.server import CLIENT, GENESIS, Server
from tests.slivers.test_store import State, path_of, state
from tests.small import (
    OPERATORS,
    OTHER_OWNER,
    OWNER,
    Blob,
    certify,
    encode_blob,
    make_blob,
    make_pairs,
    make_payload,
    make_statement,
    make_ticket,
    reservation_of,
    sign_statement,
)
from tests.streams import MemoryStream, as_stream, ask, stream_pair

CODE = GENESIS.code
"""n = 4: P = 2, S = 3. The node is the first member, with shards 0 and 1."""
NODE = NodeId(OPERATORS[0].public)
SHARDS = range(2)
BLOB = make_blob(CODE, 2500)


def state_of(node: Server, blob: Blob = BLOB) -> tuple[State, list[Entry], dict[Digest, OwnerStatement]]:
    """Return all that a refusal must leave as it was: the disk, what was told, what counts as signed."""
    return state(node.store, *blob.header.roots), list(node.told), node.admission.live_statements()


@pytest.fixture
def node(tmp_path: Path) -> Server:
    return Server(tmp_path)


def open_request(owner: Key = OWNER, **changes: Any) -> dict[str, cbor.Value]:
    changes = {"reservation": reservation_of(GENESIS, owner), **changes}
    ticket = make_ticket(GENESIS, owner=key_of(owner), **changes)
    return {"epoch": 0, "op": "open", "signature": owner.sign(ticket.encode()), "ticket": ticket.encode()}


def close_request(header: Header, owner: Key = OWNER, **changes: Any) -> dict[str, cbor.Value]:
    changes = {"reservation": reservation_of(GENESIS, owner), **changes}
    statement = make_statement(GENESIS, header, owner=key_of(owner), **changes)
    return {"op": "close", "signature": sign_statement(statement, owner), "statement": statement.encode()}


UNPAID = open_request(reservation=ZERO_RESERVATION)
"""Opens an upload whose reservation is still on its way."""


async def send_segments(stream: MemoryStream, blob: Blob, shards: Sequence[int] = SHARDS) -> list[Incoming]:
    return [
        (await ask(stream, {"op": "segment", "symbol_bytes": one.z}, make_payload(one, shards)))[0]
        for one in blob.segments
    ]


async def upload(node: Server, blob: Blob = BLOB, **changes: Any) -> Incoming:
    """Store a blob the whole way; `changes` are to OWNER's statement."""
    async with node.stream() as stream:
        assert (await ask(stream, UNPAID))[0].header["ok"] is True
        assert all(reply.header == {"ok": True} for reply in await send_segments(stream, blob))
        return (await ask(stream, close_request(blob.header, **changes), blob.header.encode()))[0]


def expect_refusal(reply: Incoming, reason: Reason) -> None:
    assert (reply.header["ok"], reply.header["error"], reply.size) == (False, str(reason), 0)
    assert isinstance(reply.header["detail"], str)
    assert reply.header["retry"] is (reason in storage.RETRIED)


async def expect_break(stream: MemoryStream) -> None:
    with pytest.raises(StreamBroken):
        await stream.receive_some(1)


async def expect_end(stream: MemoryStream) -> None:
    assert await stream.receive_some(1) == b""


class TestUpload:
    async def test_ends_with_a_commitment_that_anyone_can_verify(self, node: Server) -> None:
        reply = await upload(node)
        statement = make_statement(GENESIS, BLOB.header)
        commitment = Commitment.build(statement, epoch=0, signer=0)
        signature = Signature(reply.raw("signature", 64))
        assert reply.header == {"epoch": 0, "index": 0, "ok": True, "signature": signature}
        commitment.verify(signature, committee=GENESIS.committee)
        assert node.told == [(statement, sign_statement(statement), commitment, signature)]
        assert node.signed == [commitment.encode()]
        record = node.store.record(BLOB.header.blob_id)
        assert record is not None
        assert [entry.as_commitment(0) for entry in record.entries] == node.told
        assert node.store.unclosed_bytes == 0
        assert node.store.used_bytes == sum(2 * node.store.layout.file_bytes(segment.z) for segment in BLOB.segments)

    async def test_opens_with_the_node_s_place_and_height(self, node: Server) -> None:
        node.chain.pass_blocks(7)
        async with node.stream() as stream:
            assert (await ask(stream, open_request()))[0].header == {"height": 7, "index": 0, "ok": True}

    async def test_is_signed_for_and_told_only_after_the_record_is_on_disk(
        self, node: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object) -> None:
            raise SpaceError("the disk is full")

        monkeypatch.setattr(node.store, "put_entry", fail)
        before = state_of(node)
        expect_refusal(await upload(node), Reason.OVER_BUDGET)
        assert state_of(node)[1:] == before[1:]
        monkeypatch.undo()
        assert (await upload(node)).header["ok"] is True

    async def test_of_nothing_is_an_upload(self, node: Server) -> None:
        empty = make_blob(CODE, 0)
        assert (await upload(node, empty)).header["ok"] is True
        assert node.store.missing(empty.header.roots[0], SHARDS) == []

    async def test_that_was_broken_off_goes_on_where_it_was(self, node: Server) -> None:
        async with node.stream() as stream:
            await ask(stream, open_request())
            await send_segments(stream, replace(BLOB, segments=BLOB.segments[:2]))
            await stream.reset()
        async with node.stream() as stream:
            await ask(stream, open_request())
            reply, payload = await ask(stream, {"op": "have"}, b"".join(BLOB.header.roots))
            assert (reply.header["ok"], payload) == (True, b"\1\1\0")
            await send_segments(stream, replace(BLOB, segments=BLOB.segments[2:]))
            close = await ask(stream, close_request(BLOB.header), BLOB.header.encode())
            assert close[0].header["ok"] is True

    async def test_that_was_told_that_a_segment_is_held_keeps_it_from_eviction(self, node: Server) -> None:
        async with node.stream() as stream:
            await ask(stream, open_request())
            await send_segments(stream, BLOB)
        async with node.stream() as stream:
            await ask(stream, open_request())
            await ask(stream, {"op": "have"}, BLOB.header.roots[1])
            node.store.evict(1 << 30)
            assert [not node.store.missing(root, SHARDS) for root in BLOB.header.roots] == [False, True, False]
        node.store.evict(1 << 30)
        assert node.store.missing(BLOB.header.roots[1], SHARDS)

    async def test_keeps_its_segments_from_eviction_while_it_is_closed(
        self, node: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put_entry = node.store.put_entry

        def evict_first(*args: Any) -> None:
            node.store.evict(1 << 30)
            put_entry(*args)

        monkeypatch.setattr(node.store, "put_entry", evict_first)
        async with node.stream() as stream:
            await ask(stream, open_request())
            await send_segments(stream, BLOB)
        async with node.stream() as stream:
            await ask(stream, open_request())
            reply, _ = await ask(stream, close_request(BLOB.header), BLOB.header.encode())
            assert reply.header["ok"] is True
        assert all(not node.store.missing(root, SHARDS) for root in BLOB.header.roots)

    async def test_of_a_blob_that_is_held_already_moves_no_segment(self, node: Server) -> None:
        await upload(node)
        async with node.stream() as stream:
            await ask(stream, open_request(owner=OTHER_OWNER))
            request = close_request(BLOB.header, OTHER_OWNER)
            assert (await ask(stream, request, BLOB.header.encode()))[0].header["ok"] is True
        record = node.store.record(BLOB.header.blob_id)
        assert record is not None
        assert [entry.statement.owner for entry in record.entries] == [OWNER.public, OTHER_OWNER.public]

    async def test_to_a_node_without_shards_is_refused(self, tmp_path: Path) -> None:
        node = Server(tmp_path, key=OPERATORS[5])
        async with node.stream() as stream:
            expect_refusal((await ask(stream, open_request()))[0], Reason.UNKNOWN_SIGNER)


class TestTicket:
    @pytest.mark.parametrize(
        ("request_", "want"),
        [
            (open_request(uploader=OTHER_OWNER.public), Reason.UNKNOWN_SIGNER),
            (open_request(expiry_height=10), Reason.EXPIRED),
            (open_request(expiry_height=2_000_000), Reason.TOO_FAR_AHEAD),
            (open_request(chain_id=bytes(32)), Reason.WRONG_CHAIN),
            (open_request(reservation=ReservationId(bytes([1]) * 32)), Reason.NOT_FOUND),
            (open_request(reservation=reservation_of(GENESIS, OTHER_OWNER)), Reason.UNKNOWN_SIGNER),
            ({**open_request(), "signature": bytes(64)}, Reason.BAD_SIGNATURE),
            ({**open_request(), "signature": bytes(63)}, Reason.MALFORMED),
            ({**open_request(), "ticket": bytes(152)}, Reason.MALFORMED),
            ({"op": "open"}, Reason.MALFORMED),
        ],
    )
    async def test_that_does_not_hold_opens_nothing(
        self, node: Server, request_: dict[str, cbor.Value], want: Reason
    ) -> None:
        node.chain.pass_blocks(10)
        before = state_of(node)
        async with node.stream() as stream:
            expect_refusal((await ask(stream, request_))[0], want)
            expect_refusal((await ask(stream, {"op": "have"}))[0], Reason.UNKNOWN_SIGNER)  # still not open
            assert (await ask(stream, open_request(expiry_height=11)))[0].header["ok"] is True
        assert state_of(node) == before

    async def test_over_a_reservation_opens_only_while_its_epochs_last(self, node: Server) -> None:
        early = node.chain.reserve(OWNER, Reserve(units=1, start_epoch=1, end_epoch=2))
        request = open_request(reservation=early)
        async with node.stream() as stream:
            expect_refusal((await ask(stream, request))[0], Reason.EXPIRED)
            node.chain.end_epochs(1)
            assert (await ask(stream, {**request, "epoch": 1}))[0].header["ok"] is True
            node.chain.end_epochs(2)
            expect_refusal((await ask(stream, {**request, "epoch": 2}))[0], Reason.NOT_FOUND)

    @pytest.mark.parametrize("operation", ["have", "segment", "close"])
    async def test_is_needed_for_every_part_of_an_upload(self, node: Server, operation: str) -> None:
        before = state_of(node)
        header = {**close_request(BLOB.header), "op": operation, "symbol_bytes": BLOB.segments[0].z}
        async with node.stream() as stream:
            expect_refusal(
                (await ask(stream, header, make_payload(BLOB.segments[0], SHARDS)))[0], Reason.UNKNOWN_SIGNER
            )
            await expect_end(stream)
        assert state_of(node) == before


def mangle(at: int) -> Callable[[bytes], bytes]:
    return lambda payload: payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]


class TestSegment:
    """A payload: root 32, metadata 256, then primary 3z and secondary 2z of each of two shards."""

    segment = BLOB.segments[0]

    @pytest.mark.parametrize(
        ("name", "symbol_bytes", "change", "want"),
        [
            ("another root", None, mangle(0), Reason.HASH_MISMATCH),
            ("other metadata", None, mangle(40), Reason.HASH_MISMATCH),
            ("a wrong primary sliver", None, mangle(288), Reason.HASH_MISMATCH),
            ("a wrong secondary sliver", None, mangle(288 + 167 * 3), Reason.HASH_MISMATCH),
            ("a wrong last byte", None, mangle(288 + 167 * 10 - 1), Reason.HASH_MISMATCH),
            ("a byte short", None, lambda payload: payload[:-1], Reason.MALFORMED),
            ("a byte long", None, lambda payload: payload + b"\0", Reason.MALFORMED),
            ("one shard's slivers", None, lambda payload: payload[: 288 + 167 * 5], Reason.MALFORMED),
            ("symbols of no bytes", 0, lambda payload: payload[:288], Reason.MALFORMED),
            ("symbols of another size", 166, lambda payload: payload, Reason.MALFORMED),
            ("symbols over the segment's size", 168, lambda payload: payload + bytes(10), Reason.MALFORMED),
            ("symbols of text", "167", lambda payload: payload, Reason.MALFORMED),
        ],
    )
    async def test_that_is_not_what_is_owed_is_not_stored(
        self, node: Server, name: str, symbol_bytes: cbor.Value, change: Callable[[bytes], bytes], want: Reason
    ) -> None:
        assert self.segment.z == 167
        payload = change(make_payload(self.segment, SHARDS))
        before = state_of(node)
        async with node.stream() as stream:
            await ask(stream, open_request())
            z = 167 if symbol_bytes is None else symbol_bytes
            header: dict[str, cbor.Value] = {"op": "segment", "symbol_bytes": z}
            expect_refusal((await ask(stream, header, payload))[0], want)
            await expect_end(stream)
        assert state_of(node) == before
        assert not node.admission._open

    async def test_with_the_shards_in_another_order_is_not_stored(self, node: Server) -> None:
        before = state_of(node)
        async with node.stream() as stream:
            await ask(stream, open_request())
            header: dict[str, cbor.Value] = {"op": "segment", "symbol_bytes": 167}
            payload = make_payload(self.segment, range(1, -1, -1))
            expect_refusal((await ask(stream, header, payload))[0], Reason.HASH_MISMATCH)
        assert state_of(node) == before

    async def test_over_the_peer_s_limit_is_refused_before_it_is_read(self, tmp_path: Path) -> None:
        owed = 2 * CODE.pair_bytes(167)
        node = Server(tmp_path, limits=UploadLimits(unclosed_peer_bytes_max=2 * owed - 1))
        async with node.stream() as stream:
            await ask(stream, UNPAID)
            first, second, *_ = await send_segments(stream, replace(BLOB, segments=BLOB.segments[:2]))
            assert first.header["ok"] is True
            expect_refusal(second, Reason.OVER_BUDGET)
            await expect_end(stream)
        assert [not node.store.missing(root, SHARDS) for root in BLOB.header.roots] == [True, False, False]
        assert not node.admission._open  # returned with the stream

    async def test_is_taken_half_as_often_again_as_is_paid_for_whatever_becomes_of_it(self, node: Server) -> None:
        """One unit pays for 32,768 bytes here; what is dropped, or held already, was sent all the same."""
        paid = node.chain.reserve(OWNER, Reserve(units=1, start_epoch=0, end_epoch=4))
        header: dict[str, cbor.Value] = {"op": "segment", "symbol_bytes": 167}
        payload = make_payload(self.segment, SHARDS)
        taken = 49_152 // (2 * CODE.pair_bytes(167))
        async with node.stream() as stream:
            await ask(stream, open_request(reservation=paid))
            expect_refusal((await ask(stream, header, mangle(400)(payload)))[0], Reason.HASH_MISMATCH)
        for refused in (Reason.OVER_BUDGET, None):
            async with node.stream() as stream:
                await ask(stream, {**open_request(reservation=paid), "epoch": node.chain.ledger.epoch})
                for _ in range(taken - 1):
                    assert (await ask(stream, header, payload))[0].header == {"ok": True}
                reply, _ = await ask(stream, header, payload)
                if refused is None:
                    assert reply.header == {"ok": True}
                else:
                    expect_refusal(reply, refused)
            node.chain.end_epoch()

    async def test_that_is_paid_for_needs_no_room_among_unpaid_ones(self, tmp_path: Path) -> None:
        node = Server(tmp_path, limits=UploadLimits(unclosed_peer_bytes_max=10, unclosed_bytes_max=10))
        async with node.stream() as stream:
            await ask(stream, open_request())
            replies = await send_segments(stream, BLOB)
        assert [reply.header["ok"] for reply in replies] == [True, True, True]

    async def test_over_the_node_s_limit_for_open_uploads_displaces_only_what_nobody_holds(
        self, tmp_path: Path
    ) -> None:
        given_up = make_blob(CODE, 1000, 1)
        size = Server(tmp_path / "other").store.layout.file_bytes(167) * 2
        node = Server(tmp_path / "node", limits=UploadLimits(unclosed_bytes_max=2 * size + 10))
        async with node.stream() as stream:
            await ask(stream, UNPAID)
            await send_segments(stream, given_up)
        async with node.stream() as stream:
            await ask(stream, UNPAID)
            replies = await send_segments(stream, BLOB)
            assert [reply.header["ok"] for reply in replies] == [True, True, False]
            expect_refusal(replies[2], Reason.OVER_BUDGET)
        assert node.store.missing(given_up.header.roots[0], SHARDS)
        assert [not node.store.missing(root, SHARDS) for root in BLOB.header.roots] == [True, True, False]

    async def test_over_the_quota_is_refused(self, tmp_path: Path) -> None:
        node = Server(tmp_path, quota=1000)
        before = state_of(node)
        async with node.stream() as stream:
            await ask(stream, open_request())
            reply, *_ = await send_segments(stream, replace(BLOB, segments=BLOB.segments[:1]))
            expect_refusal(reply, Reason.OVER_BUDGET)
            await expect_end(stream)
        assert state_of(node) == before

    async def test_that_finds_no_room_in_memory_is_told_to_come_back(
        self, node: Server, autojump_clock: trio.testing.MockClock
    ) -> None:
        payload = make_payload(self.segment, SHARDS)
        node.server._payloads = ByteBudget(len(payload))
        async with node.stream() as stream, node.server._payloads.taken(CLIENT, 1):
            await ask(stream, open_request())
            start = trio.current_time()
            header: dict[str, cbor.Value] = {"op": "segment", "symbol_bytes": 167}
            expect_refusal((await ask(stream, header, payload))[0], Reason.OVER_BUDGET)
            assert trio.current_time() - start == BUDGET_WAIT_S
        assert node.server._payloads._free == len(payload)

    async def test_that_finds_no_room_in_memory_gets_it_when_another_is_done(self, node: Server) -> None:
        payload = make_payload(self.segment, SHARDS)
        node.server._payloads = ByteBudget(len(payload))
        async with node.stream() as stream:
            await ask(stream, open_request())
            async with node.server._payloads.taken(CLIENT, 1):
                await send_message(stream, {"op": "segment", "symbol_bytes": 167}, payload)
                await trio.testing.wait_all_tasks_blocked()
                assert node.server._payloads._free == len(payload) - 1
            assert (await receive_message(stream)).header == {"ok": True}

    async def test_that_drips_makes_room_for_others(self, node: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        """It stays above the floor of its stream for ever, and holds all the room there is."""
        monkeypatch.setattr("p2pnode.budget.FAIR_S", 0.2)
        payload = make_payload(self.segment, SHARDS)
        node.server._payloads = ByteBudget(len(payload))
        header: dict[str, cbor.Value] = {"op": "segment", "size": len(payload), "symbol_bytes": 167}
        encoded = cbor.encode(header)
        async with node.stream() as dripping, node.stream(NodeId(OTHER_OWNER.public)) as stream:
            await ask(dripping, open_request())
            await dripping.send(len(encoded).to_bytes(4, "big") + encoded + payload[:9])
            assert (await ask(stream, open_request(uploader=OTHER_OWNER.public)))[0].header["ok"] is True
            assert (await send_segments(stream, BLOB))[0].header == {"ok": True}
            await expect_break(dripping)
        assert node.server._payloads._free == len(payload)
        assert not node.server._payloads._moving
        assert not node.server._payloads._peer_turns

    async def test_waits_behind_each_other_peer_once(
        self, node: Server, autojump_clock: trio.testing.MockClock
    ) -> None:
        budget = ByteBudget(100)
        order: list[str] = []

        async def transfer(name: str, peer: NodeId) -> None:
            async with budget.taken(peer, 100):
                order.append(name)
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            for name, peer in (("first", CLIENT), ("second", CLIENT), ("third", CLIENT), ("other", NODE)):
                nursery.start_soon(transfer, name, peer)
                await trio.testing.wait_all_tasks_blocked()
        assert order.index("other") == 2


async def test_a_peer_does_not_fill_the_log(node: Server, caplog: pytest.LogCaptureFixture) -> None:
    """The same refusal of the same peer is said once; `status` counts the rest."""
    async with node.stream() as stream:
        for _ in range(50):
            expect_refusal((await ask(stream, {"op": "nonsense"}))[0], Reason.UNKNOWN_OPERATION)
    assert len(caplog.records) == 1
    assert list(node.server.refused.values()) == [50]


class TestSlowReaders:
    async def test_make_room_for_others(self, node: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        """A reply is in memory for as long as its reader takes: it counts, and the slowest goes first."""
        monkeypatch.setattr("p2pnode.budget.FAIR_S", 0.2)
        await upload(node)
        root = BLOB.header.roots[0]
        pair = CODE.pair_of_shard(0, root)
        request: dict[str, cbor.Value] = {
            "count": CODE.columns,
            "first": 0,
            "index": pair,
            "kind": 0,
            "op": "sliver",
            "root": root,
        }
        size = 32 * CODE.n + CODE.columns * 167
        node.server._replies = ByteBudget(size)
        client, server = stream_pair(CLIENT, NODE, window=1)
        broken: list[NetworkError] = []

        async def handle() -> None:
            try:
                await node.server.handle(as_stream(server))
            except NetworkError as fault:
                broken.append(fault)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle)
            await send_message(client, request)  # and never reads the reply
            while node.server._replies._free:  # noqa: ASYNC110 - a budget has no event for it
                await trio.sleep(0.01)
            async with node.stream(NodeId(OTHER_OWNER.public)) as stream:
                reply, payload = await ask(stream, request)
                assert (reply.header["ok"], len(payload)) == (True, size)
        assert [type(fault) for fault in broken] == [TooSlow]
        assert node.server._replies._free == size


class TestClose:
    async def test_over_more_units_than_are_paid_for_costs_no_work_for_each_segment(
        self, node: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One root that is held, named 100,000 times: each would be read and hashed before anyone asks who pays."""
        checked: list[Root] = []
        check = node.store.check_segment

        def count(root: Root, length: int, shards: Sequence[int]) -> None:
            checked.append(root)
            check(root, length, shards)

        monkeypatch.setattr(node.store, "check_segment", count)
        full = encode_blob(CODE, bytes(CODE.segment_bytes))
        for times, accepted in ((100_000, False), (10, True)):
            header = Header(CODE, times * CODE.segment_bytes, full.header.roots * times)
            async with node.stream() as stream:
                await ask(stream, open_request())
                assert (await send_segments(stream, full))[0].header == {"ok": True}
                await send_message(stream, close_request(header), header.encode())
                reply = await receive_message(stream)
            assert reply.header["ok"] is accepted
            assert len(checked) == 2 * accepted

    async def refused(
        self,
        node: Server,
        request: dict[str, cbor.Value],
        payload: bytes,
        want: Reason,
        *,
        ticket: dict[str, cbor.Value] = UNPAID,
    ) -> None:
        """Everything has been sent; the close is refused and leaves no more than that."""
        async with node.stream() as stream:
            assert (await ask(stream, ticket))[0].header["ok"] is True
            await send_segments(stream, BLOB)
            before = state_of(node)
            expect_refusal((await ask(stream, request, payload))[0], want)
            if payload:
                await expect_end(stream)
            assert state_of(node) == before
        assert node.signed == []

    @pytest.mark.parametrize(
        ("request_", "want"),
        [
            (close_request(BLOB.header, OTHER_OWNER), Reason.UNKNOWN_SIGNER),
            (close_request(BLOB.header, expiry_height=10), Reason.EXPIRED),
            (close_request(BLOB.header, expiry_height=2_000_000), Reason.TOO_FAR_AHEAD),
            (close_request(BLOB.header, chain_id=bytes(32)), Reason.WRONG_CHAIN),
            (close_request(BLOB.header, reservation=ZERO_RESERVATION), Reason.UNPAID),
            (close_request(BLOB.header, reservation=ReservationId(bytes([1]) * 32)), Reason.NOT_FOUND),
            (close_request(BLOB.header, reservation=reservation_of(GENESIS, OTHER_OWNER)), Reason.UNKNOWN_SIGNER),
            (close_request(BLOB.header, length=2499), Reason.MALFORMED),
            (close_request(BLOB.header, length=1), Reason.MALFORMED),
            (close_request(BLOB.header, length=2**64 - 1), Reason.MALFORMED),
            (close_request(BLOB.header, blob_id=bytes(32)), Reason.HASH_MISMATCH),
            ({**close_request(BLOB.header), "signature": bytes(64)}, Reason.BAD_SIGNATURE),
            ({**close_request(BLOB.header), "statement": bytes(177)}, Reason.MALFORMED),
        ],
    )
    async def test_by_a_statement_that_does_not_hold_is_refused(
        self, node: Server, request_: dict[str, cbor.Value], want: Reason
    ) -> None:
        node.chain.pass_blocks(10)
        await self.refused(node, request_, BLOB.header.encode(), want)

    @pytest.mark.parametrize(
        "request_",
        [
            close_request(BLOB.header, OTHER_OWNER),
            close_request(BLOB.header, reservation=ZERO_RESERVATION),
            close_request(BLOB.header, reservation=ReservationId(bytes([1]) * 32)),
        ],
        ids=["another owner", "none", "another"],
    )
    async def test_over_another_reservation_than_the_ticket_s_is_refused(
        self, node: Server, request_: dict[str, cbor.Value]
    ) -> None:
        await self.refused(node, request_, BLOB.header.encode(), Reason.UNKNOWN_SIGNER, ticket=open_request())

    @pytest.mark.parametrize("ticket", [UNPAID, open_request()], ids=["a ticket over none", "a ticket over the same"])
    async def test_over_a_paid_reservation_is_signed_for(self, node: Server, ticket: dict[str, cbor.Value]) -> None:
        async with node.stream() as stream:
            await ask(stream, ticket)
            await send_segments(stream, BLOB)
            assert (await ask(stream, close_request(BLOB.header), BLOB.header.encode()))[0].header["ok"] is True

    async def test_over_a_reservation_outside_of_its_epochs_is_refused(self, node: Server) -> None:
        early = node.chain.reserve(OWNER, Reserve(units=1, start_epoch=1, end_epoch=2))
        request = close_request(BLOB.header, reservation=early)
        await self.refused(node, request, BLOB.header.encode(), Reason.EXPIRED)
        node.chain.end_epochs(2)
        late = {**UNPAID, "epoch": 2}
        await self.refused(node, request, BLOB.header.encode(), Reason.NOT_FOUND, ticket=late)

    async def test_unpaid_keeps_the_bytes_only_until_somebody_needs_the_room(self, node: Server) -> None:
        unpaid = close_request(BLOB.header, reservation=ZERO_RESERVATION)
        await self.refused(node, unpaid, BLOB.header.encode(), Reason.UNPAID)
        assert node.store.unclosed_bytes == node.store.used_bytes > 0
        assert (await upload(node, make_blob(CODE, 10, 1))).header["ok"] is True
        node.store.evict(1 << 30)
        assert node.store.used_bytes == 2 * node.store.layout.file_bytes(CODE.symbol_bytes(10))

    async def test_of_many_blobs_over_one_reservation_is_signed_for_up_to_its_units(
        self, node: Server, tmp_path: Path
    ) -> None:
        """Each node refuses by itself, so showing every node another blob gains nothing."""
        paid = node.chain.reserve(OWNER, Reserve(units=2, start_epoch=0, end_epoch=4))
        another = Server(tmp_path / "another", key=OPERATORS[1], chain=node.chain)
        blobs = [make_blob(CODE, 10, seed) for seed in range(3)]
        for server in (node, another):
            shards = GENESIS.committee.shards_of(int(server is another))
            for blob, signed in zip(blobs, (True, True, False), strict=True):
                async with server.stream() as stream:
                    await ask(stream, UNPAID)
                    await send_segments(stream, blob, shards)
                    request = close_request(blob.header, reservation=paid)
                    reply, _ = await ask(stream, request, blob.header.encode())
                assert reply.header["ok"] is signed
            expect_refusal(reply, Reason.UNPAID)
            assert len(server.signed) == len(server.told) == 2

    async def test_with_another_header_is_refused(self, node: Server) -> None:
        data = BLOB.header.encode()
        await self.refused(node, close_request(BLOB.header), data[:-1] + b"\0", Reason.HASH_MISMATCH)
        await self.refused(node, close_request(BLOB.header), data + bytes(32), Reason.MALFORMED)
        await self.refused(node, close_request(BLOB.header), b"", Reason.MALFORMED)

    async def test_of_a_blob_of_another_code_is_refused(self, node: Server) -> None:
        other = Header(Code(7, 1000), 2500, BLOB.header.roots)
        await self.refused(node, close_request(other), other.encode(), Reason.WRONG_ENCODING)

    async def test_without_a_segment_is_refused_and_may_be_made_good(self, node: Server) -> None:
        async with node.stream() as stream:
            await ask(stream, open_request())
            await send_segments(stream, replace(BLOB, segments=BLOB.segments[1:]))
            before = state_of(node)
            reply, _ = await ask(stream, close_request(BLOB.header), BLOB.header.encode())
            expect_refusal(reply, Reason.INCOMPLETE)
            assert state_of(node) == before
        assert node.signed == []
        assert (await upload(node)).header["ok"] is True

    async def test_of_segments_that_belong_to_another_length_is_refused(self, node: Server) -> None:
        """The roots are the writer's choice; the size of the last one's symbols is not."""
        shorter = Header(CODE, 2400, BLOB.header.roots)
        await self.refused(node, close_request(shorter), shorter.encode(), Reason.WRONG_ENCODING)

    async def test_of_a_segment_with_bytes_behind_its_end_is_refused(self, node: Server) -> None:
        """z is the same for 500 and 499 bytes; a node whose sliver holds byte 499 sees that it is not padding."""
        data = make_blob(CODE, 2499).data + b"\xff"
        full = encode_blob(CODE, data)
        lying = Header(CODE, 2499, full.header.roots)
        roots = full.header.roots
        owner = next(index for index in range(3) if self.covers_the_end(index, roots[2]))
        node = Server(node.directory / str(owner), key=OPERATORS[owner])
        async with node.stream() as stream:
            await ask(stream, open_request())
            await send_segments(stream, full, GENESIS.committee.shards_of(owner))
            before = state_of(node, full)
            expect_refusal((await ask(stream, close_request(lying), lying.encode()))[0], Reason.BAD_PADDING)
            assert state_of(node, full) == before

    @staticmethod
    def covers_the_end(member: int, root: Root) -> bool:
        pairs = [CODE.pair_of_shard(shard, root) for shard in GENESIS.committee.shards_of(member)]
        return any(pair == CODE.rows - 1 or CODE.n - 1 - pair == CODE.columns - 1 for pair in pairs)

    async def test_over_a_file_that_was_lost_is_refused_and_may_be_made_good(self, node: Server) -> None:
        async with node.stream() as stream:
            await ask(stream, open_request())
            await send_segments(stream, BLOB)
            path_of(node.store, BLOB.header.roots[1], 1).unlink()
            reply, _ = await ask(stream, close_request(BLOB.header), BLOB.header.encode())
            expect_refusal(reply, Reason.NOT_FOUND)
            assert node.signed == []
            assert (await ask(stream, {"op": "have"}, BLOB.header.roots[1]))[1] == b"\0"
            await send_segments(stream, replace(BLOB, segments=BLOB.segments[1:2]))
            close = await ask(stream, close_request(BLOB.header), BLOB.header.encode())
            assert close[0].header["ok"] is True


def sliver_files(node: Server) -> dict[str, bytes]:
    return {name: data for name, data in state(node.store).files.items() if name.startswith("slivers")}


class TestNextEpoch:
    """What was signed in one epoch makes no certificate in the next: nodes sign anew, and nothing is sent again."""

    async def test_has_live_statements_signed_anew_without_moving_bytes(self, node: Server) -> None:
        await upload(node)
        slivers = sliver_files(node)
        node.chain.end_epoch()
        await node.server.sign_again()
        _, (statement, statement_signature, commitment, signature) = node.told
        assert commitment == Commitment.build(make_statement(GENESIS, BLOB.header), epoch=1, signer=0)
        commitment.verify(signature, committee=node.chain.ledger.committee)
        record = node.store.record(BLOB.header.blob_id)
        assert record is not None
        assert record.entries == (Kept(statement, statement_signature, 1, signature),)
        assert sliver_files(node) == slivers
        await node.server.sign_again()
        assert len(node.signed) == 2

    async def test_has_a_blob_that_is_closed_again_signed_for_under_it(self, node: Server) -> None:
        await upload(node)
        node.chain.end_epoch()
        async with node.stream() as stream:
            await ask(stream, {**UNPAID, "epoch": 1})
            reply, _ = await ask(stream, close_request(BLOB.header), BLOB.header.encode())
        assert (reply.header["ok"], reply.header["epoch"]) == (True, 1)

    async def test_leaves_alone_what_can_no_longer_reach_the_chain(self, node: Server) -> None:
        ended = node.chain.reserve(OWNER, Reserve(units=1, start_epoch=0, end_epoch=1))
        await upload(node, expiry_height=8)
        await upload(node, salt=bytes([1]) * 16, reservation=ended)
        used = make_statement(GENESIS, BLOB.header, salt=bytes([2]) * 16)
        await upload(node, salt=used.salt)
        assert node.chain.run(OWNER, Certify(certify(GENESIS, used, (0, 1)))) is Outcome.OK
        node.chain.pass_blocks(8)
        node.chain.end_epoch()
        before = state_of(node)
        await node.server.sign_again()
        assert state_of(node) == before
        assert len(node.signed) == 3

    async def test_that_begins_while_an_upload_is_closed_is_the_one_it_is_signed_under(
        self, node: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`sign_again` may have looked before the record was there: a commitment of the last epoch counts nowhere."""
        put_entry = node.store.put_entry

        def end_epoch_first(*args: Any) -> None:
            node.chain.end_epochs(1)
            put_entry(*args)

        monkeypatch.setattr(node.store, "put_entry", end_epoch_first)
        reply = await upload(node)
        assert (reply.header["ok"], reply.header["epoch"]) == (True, 1)
        assert [told[2].epoch for told in node.told] == [1]
        record = node.store.record(BLOB.header.blob_id)
        assert record is not None
        assert [entry.epoch for entry in record.entries] == [1]

    async def test_finds_a_full_disk_and_goes_on_with_what_there_is_room_for(
        self, node: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        blobs = [make_blob(CODE, 10, seed) for seed in range(3)]
        for blob in blobs:
            await upload(node, blob)
        node.chain.end_epoch()
        put_entry = node.store.put_entry

        def fail_once(header: Header, entry: Kept) -> None:
            if header == blobs[1].header:
                raise SpaceError("the disk is full")
            put_entry(header, entry)

        monkeypatch.setattr(node.store, "put_entry", fail_once)
        await node.server.sign_again()
        assert [told[0].blob_id for told in node.told[3:]] == [blobs[0].header.blob_id, blobs[2].header.blob_id]


class TestReads:
    async def test_serve_what_was_stored(self, node: Server) -> None:
        await upload(node)
        certificate = certify(GENESIS, make_statement(GENESIS, BLOB.header), (0, 1))
        async with node.stream(NodeId(OWNER.public)) as stream:
            blob_id, segment = BLOB.header.blob_id, BLOB.segments[1]
            assert (await ask(stream, {"blob": blob_id, "op": "header"}))[1] == BLOB.header.encode()
            expect_refusal((await ask(stream, {"blob": blob_id, "op": "certificate"}))[0], Reason.NOT_FOUND)
            assert node.store.put_certificate(certificate)
            assert (await ask(stream, {"blob": blob_id, "op": "certificate"}))[1] == certificate.encode()
            assert (await ask(stream, {"op": "metadata", "root": segment.root}))[1] == segment.metadata.encode()
            assert (await ask(stream, {"op": "status"}))[0].header == {"ok": True, "status": {"blobs": 1}}
            for shard in SHARDS:
                pair = CODE.pair_of_shard(shard, segment.root)
                column = CODE.n - 1 - pair
                for kind, index, whole, width in (
                    (Kind.PRIMARY, pair, bytes(segment.primary(pair)), 3),
                    (Kind.SECONDARY, column, b"".join(segment.secondary(column)), 2),
                ):
                    for first, count in ((0, width), (1, 1), (width - 1, 1)):
                        _, payload = await ask(stream, sliver_request(segment.root, kind, index, first, count))
                        wanted = whole[first * segment.z : (first + count) * segment.z]
                        assert payload == segment.leaves_of(kind, index) + wanted

    @pytest.mark.parametrize(
        ("request_", "want"),
        [
            ({"blob": bytes(32), "op": "header"}, Reason.NOT_FOUND),
            ({"blob": bytes(32), "op": "certificate"}, Reason.NOT_FOUND),
            ({"op": "metadata", "root": bytes(32)}, Reason.NOT_FOUND),
            ({"blob": bytes(31), "op": "header"}, Reason.MALFORMED),
            ({"op": "certificate"}, Reason.MALFORMED),
            ({"op": "metadata", "root": "x" * 32}, Reason.MALFORMED),
            ({"op": "drop"}, Reason.UNKNOWN_OPERATION),
            ({"op": ["status"]}, Reason.UNKNOWN_OPERATION),
            ({"op": 0}, Reason.UNKNOWN_OPERATION),
            ({}, Reason.UNKNOWN_OPERATION),
        ],
    )
    async def test_of_what_is_not_there_are_refused_and_the_stream_goes_on(
        self, node: Server, request_: dict[str, cbor.Value], want: Reason
    ) -> None:
        async with node.stream() as stream:
            expect_refusal((await ask(stream, request_))[0], want)
            assert (await ask(stream, {"op": "status"}))[0].header["ok"] is True

    @pytest.mark.parametrize(
        ("change", "want"),
        [
            ({"kind": 2}, Reason.MALFORMED),
            ({"index": 4}, Reason.MALFORMED),
            ({"first": -1}, Reason.MALFORMED),
            ({"count": 2**63}, Reason.MALFORMED),
            ({"count": None}, Reason.MALFORMED),
            ({"first": 3}, Reason.WRONG_INDEX),
            ({"first": 1, "count": 3}, Reason.WRONG_INDEX),
            ({"root": bytes(32)}, Reason.NOT_FOUND),
        ],
    )
    async def test_of_symbols_that_are_not_there_are_refused(
        self, node: Server, change: dict[str, cbor.Value], want: Reason
    ) -> None:
        await upload(node)
        root = BLOB.header.roots[0]
        plain = sliver_request(root, Kind.PRIMARY, CODE.pair_of_shard(0, root), 0, 1)
        async with node.stream() as stream:
            assert (await ask(stream, plain))[0].header["ok"] is True
            expect_refusal((await ask(stream, {**plain, **change}))[0], want)

    async def test_of_another_member_s_sliver_are_not_found(self, node: Server) -> None:
        await upload(node)
        root = BLOB.header.roots[0]
        request = sliver_request(root, Kind.PRIMARY, CODE.pair_of_shard(3, root), 0, 1)
        async with node.stream() as stream:
            expect_refusal((await ask(stream, request))[0], Reason.NOT_FOUND)

    async def test_of_a_damaged_file_are_answered_with_an_error_and_never_with_its_bytes(self, node: Server) -> None:
        await upload(node)
        root = BLOB.header.roots[0]
        path = path_of(node.store, root, 0)
        whole = path.read_bytes()
        path.write_bytes(whole[:568] + bytes([whole[568] ^ 1]) + whole[569:])
        request = sliver_request(root, Kind.PRIMARY, CODE.pair_of_shard(0, root), 0, 1)
        async with node.stream() as stream:
            reply, _ = await ask(stream, request)
            expect_refusal(reply, Reason.NOT_FOUND)
            assert "damaged" in reply.text("detail")
            assert not path.exists()
            again, _ = await ask(stream, request)
            expect_refusal(again, Reason.NOT_FOUND)
            assert "does not hold" in again.text("detail")
        assert node.store.corrupt_slivers == 1

    @pytest.mark.parametrize("operation", ["open", "header", "certificate", "metadata", "sliver", "status", "drop"])
    async def test_with_a_payload_end_the_stream_so_that_it_is_never_read_as_a_request(
        self, node: Server, operation: str
    ) -> None:
        hidden = b"\0\0\0\x0b" + cbor.encode({"op": "status"})
        async with node.stream() as stream:
            reply, _ = await ask(stream, {**open_request(), "op": operation}, hidden)
            assert (reply.header["ok"], reply.size) == (False, 0)
            await expect_end(stream)


def sliver_request(root: Root, kind: Kind, index: int, first: int, count: int) -> dict[str, cbor.Value]:
    return {"count": count, "first": first, "index": index, "kind": int(kind), "op": "sliver", "root": root}


class TestHostilePeers:
    async def test_that_send_no_header_are_told_why_and_cut_off(self, node: Server) -> None:
        for data in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1\x00", b"\0\0\0\2\xa1\x00"):
            async with node.stream() as stream:
                await stream.send(data)
                reply = await receive_message(stream)
                assert reply.header["ok"] is False
                await expect_end(stream)

    async def test_that_break_off_end_only_their_stream(self, node: Server) -> None:
        client, server = stream_pair(CLIENT, NODE)
        await client.send(b"\0\0\0\x40\xa1")
        await client.close_write()
        with pytest.raises(StreamBroken):
            await node.server.handle(as_stream(server))
        assert not node.admission._open

    async def test_that_break_off_inside_a_payload_give_back_their_memory(self, node: Server) -> None:
        before = state_of(node)
        async with node.stream() as stream:
            await ask(stream, open_request())
            header: dict[str, cbor.Value] = {"op": "segment", "size": 288 + 1670, "symbol_bytes": 167}
            encoded = cbor.encode(header)
            await stream.send(len(encoded).to_bytes(4, "big") + encoded + b"half")
            await stream.close_write()
        assert node.server._payloads._free == PAYLOAD_BUDGET_BYTES
        assert state_of(node) == before
        assert not node.admission._open

    @pytest.mark.parametrize("operation", ["have", "close", "segment"])
    async def test_that_announce_64_mib_are_refused_before_a_byte_of_it(self, node: Server, operation: str) -> None:
        header = {**close_request(BLOB.header), "op": operation, "size": 64 << 20, "symbol_bytes": 167}
        encoded = cbor.encode(header)
        async with node.stream() as stream:
            await ask(stream, open_request())
            await stream.send(len(encoded).to_bytes(4, "big") + encoded)
            expect_refusal(await receive_message(stream), Reason.MALFORMED)
            await expect_end(stream)

    async def test_are_counted_by_peer_and_reason_up_to_a_bound(
        self, node: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(storage, "REFUSED_MAX", 3)
        for number in (1, 1, 2, 3, 4, 5, 1):
            async with node.stream(NodeId(bytes([number]) * 32)) as stream:
                await ask(stream, {"op": "drop"})
        assert sorted(node.server.refused.values()) == [1, 1, 3]

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(
            st.dictionaries(
                st.sampled_from(
                    [
                        "op",
                        "ticket",
                        "signature",
                        "statement",
                        "blob",
                        "root",
                        "kind",
                        "index",
                        "first",
                        "count",
                        "size",
                    ]
                ),
                st.sampled_from(["open", "have", "segment", "close", "header", "certificate", "metadata", "sliver"])
                | st.integers(-2, 40)
                | st.sampled_from([bytes(32), bytes(64), bytes(152), bytes(177), BLOB.header.blob_id])
                | st.sampled_from([BLOB.header.roots[0], open_request()["ticket"], open_request()["signature"]])
                | st.none()
                | st.booleans()
                | st.lists(st.integers(), max_size=2),
                max_size=8,
            )
            | st.binary(max_size=40),
            max_size=6,
        )
    )
    def test_of_any_words_meet_an_answer_or_an_end(
        self, tmp_path_factory: pytest.TempPathFactory, words: list[dict[str, cbor.Value] | bytes]
    ) -> None:
        node = shared_node(tmp_path_factory)
        before = state_of(node)

        async def talk() -> None:
            client, server = stream_pair(CLIENT, NODE)
            for word in words:
                encoded = word if isinstance(word, bytes) else cbor.encode(word)
                await client.send(len(encoded).to_bytes(4, "big") + encoded)
            await client.close_write()
            with suppress(NetworkError), trio.fail_after(120):
                await node.server.handle(as_stream(server))

        trio.run(talk)
        assert state_of(node) == before
        assert node.server._payloads._free == PAYLOAD_BUDGET_BYTES
        assert not node.admission._open


SHARED: list[Server] = []


def shared_node(factory: pytest.TempPathFactory) -> Server:
    """Return one node that holds a blob, for all examples: each must leave it as it was."""
    if not SHARED:
        node = Server(factory.mktemp("shared"))
        trio.run(upload, node)
        SHARED.append(node)
    return SHARED[0]


class TestEpochs:
    """What a client deals is for the shards of one epoch."""

    async def test_of_the_client_is_the_node_s_or_the_upload_is_not_opened(
        self, node: Server, autojump_clock: trio.testing.MockClock
    ) -> None:
        node.chain.end_epoch()
        async with node.stream() as stream:
            for epoch in (0, 2, 3):
                expect_refusal((await ask(stream, {**UNPAID, "epoch": epoch}))[0], Reason.WRONG_EPOCH)
            assert (await ask(stream, {**UNPAID, "epoch": 1}))[0].header["ok"] is True
            expect_refusal((await ask(stream, {**UNPAID, "epoch": None}))[0], Reason.MALFORMED)

    async def test_that_the_client_knows_of_first_is_waited_for(self, node: Server) -> None:
        async with node.stream() as stream:
            await send_message(stream, {**UNPAID, "epoch": 1})
            await trio.testing.wait_all_tasks_blocked(0.01)
            node.chain.end_epoch()
            assert (await receive_message(stream)).header["ok"] is True

    @pytest.mark.parametrize("operation", ["segment", "close"])
    async def test_that_changes_the_node_s_shards_ends_the_upload(self, node: Server, operation: str) -> None:
        view = Reseated(node.chain.ledger, {0: GENESIS.committee, 1: seat(GENESIS, (0, 0, 0, 1), epoch=1)})
        node.chain.ledger = view.as_ledger()
        async with node.stream() as stream:
            await ask(stream, UNPAID)
            assert (await send_segments(stream, BLOB))[0].header["ok"] is True
            view.epoch = 1
            if operation == "segment":
                reply = (await send_segments(stream, replace(BLOB, segments=BLOB.segments[:1])))[0]
            else:
                reply, _ = await ask(stream, close_request(BLOB.header), BLOB.header.encode())
            expect_refusal(reply, Reason.WRONG_EPOCH)
        assert node.signed == []

    async def test_that_changes_the_node_s_shards_while_it_signs_has_nothing_told(
        self, node: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        view = Reseated(node.chain.ledger, {0: GENESIS.committee, 1: seat(GENESIS, (0, 0, 0, 1), epoch=1)})
        node.chain.ledger = view.as_ledger()
        put_entry = node.store.put_entry

        def turn(*args: Any) -> None:
            view.epoch = 1
            put_entry(*args)

        monkeypatch.setattr(node.store, "put_entry", turn)
        expect_refusal(await upload(node), Reason.WRONG_EPOCH)
        assert node.told == []

    async def test_that_keeps_the_node_s_shards_and_changes_others_goes_on(self, node: Server) -> None:
        view = Reseated(node.chain.ledger, {0: GENESIS.committee, 1: seat(GENESIS, (0, 0, 2, 2), epoch=1)})
        node.chain.ledger = view.as_ledger()
        async with node.stream() as stream:
            await ask(stream, UNPAID)
            await send_segments(stream, BLOB)
            view.epoch = 1
            reply, _ = await ask(stream, close_request(BLOB.header), BLOB.header.encode())
        assert (reply.header["ok"], reply.header["epoch"], reply.header["index"]) == (True, 1, 0)

    async def test_has_nothing_signed_again_by_who_lacks_what_it_gained(
        self, node: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        """That is no fault of anybody: no error is logged."""
        await upload(node)
        view = Reseated(node.chain.ledger, {0: GENESIS.committee, 1: seat(GENESIS, (0, 0, 0, 1), epoch=1)})
        node.chain.ledger = view.as_ledger()
        view.epoch = 1
        await node.server.sign_again()
        assert len(node.told) == 1
        assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []
        for segment in BLOB.segments:
            node.store.put_segment(segment.metadata, segment.z, make_pairs(segment, [2]))
        await node.server.sign_again()
        assert [told[2].epoch for told in node.told] == [0, 1]
