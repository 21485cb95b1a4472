"""What a node serves is right and is for who asks; what it does not have, or may not give now, it says in place."""

from typing import ClassVar

import pytest

from economics import cbor
from economics.crypto import NodeId
from economics.errors import Reason
from p2pnode.coding.codec import EncodedSegment, Kind
from p2pnode.network.frames import Incoming
from p2pnode.slivers import serving
from tests.p2pnode.reseated import Reseated, seat
from tests.p2pnode.server import GENESIS, Server
from tests.slivers.test_storage import BLOB, CODE, UNPAID, close_request, expect_refusal, sliver_request, upload
from tests.slivers.test_storage import node as node
from tests.slivers.test_store import path_of
from tests.small import OPERATORS, OTHER_OWNER, Blob, encode_blob, make_blob, make_pairs
from tests.streams import ask

OWNERS = tuple(NodeId(key.public) for key in OPERATORS[:3])
STRANGER = NodeId(OTHER_OWNER.public)


def split_items(payload: bytes) -> list[bytes]:
    """Return the parts that each come behind their length."""
    items = []
    while payload:
        size = int.from_bytes(payload[:4], "big")
        items.append(payload[4 : 4 + size])
        assert len(items[-1]) == size
        payload = payload[4 + size :]
    return items


async def hold_all(node: Server, blob: Blob = BLOB) -> None:
    """Upload a blob, and put the slivers of all other shards beside what the node was sent."""
    await upload(node, blob)
    for segment in blob.segments:
        node.store.put_segment(segment.metadata, segment.z, make_pairs(segment, range(CODE.n)))


def pair_item(segment: EncodedSegment, shard: int) -> bytes:
    (pair,) = make_pairs(segment, [shard])
    return segment.metadata.encode() + bytes(pair.primary) + bytes(pair.secondary)


class TestPairs:
    """A shard's slivers go to who holds it now or in the next epoch."""

    REQUEST: ClassVar[dict[str, cbor.Value]] = {"epoch": 0, "op": "pairs", "shard": 2}

    async def ask(
        self, node: Server, peer: NodeId, *roots: bytes, **changes: cbor.Value
    ) -> tuple[Incoming, list[bytes]]:
        async with node.stream(peer) as stream:
            reply, payload = await ask(stream, {**self.REQUEST, **changes}, b"".join(roots))
        return reply, split_items(payload)

    async def test_go_to_the_shard_s_holder(self, node: Server) -> None:
        await hold_all(node)
        reply, items = await self.ask(node, OWNERS[1], *BLOB.header.roots, bytes(32))
        assert reply.header == {"count": 4, "ok": True, "size": reply.size}
        assert items == [*(pair_item(segment, 2) for segment in BLOB.segments), b""]

    async def test_go_to_nobody_else(self, node: Server) -> None:
        await hold_all(node)
        for peer in (OWNERS[0], OWNERS[2], STRANGER):
            expect_refusal((await self.ask(node, peer, BLOB.header.roots[0]))[0], Reason.UNKNOWN_SIGNER)

    async def test_go_to_the_holder_of_the_next_epoch(self, node: Server) -> None:
        await hold_all(node)
        committees = {0: GENESIS.committee, 1: seat(GENESIS, (0, 0, 2, 2), epoch=1)}
        node.chain.ledger = Reseated(node.chain.ledger, committees).as_ledger()
        for peer in OWNERS[1:]:
            assert (await self.ask(node, peer, BLOB.header.roots[0]))[1] == [pair_item(BLOB.segments[0], 2)]
        expect_refusal((await self.ask(node, STRANGER, BLOB.header.roots[0]))[0], Reason.UNKNOWN_SIGNER)

    async def test_of_another_epoch_are_refused(self, node: Server) -> None:
        await hold_all(node)
        reply, _ = await self.ask(node, OWNERS[1], BLOB.header.roots[0], epoch=1)
        assert reply.header["ok"] is True  # its asker is a block ahead
        reply, _ = await self.ask(node, OWNERS[1], BLOB.header.roots[0], epoch=2)
        expect_refusal(reply, Reason.WRONG_EPOCH)

    @pytest.mark.parametrize(
        ("payload", "changes"),
        [
            (b"", {}),
            (bytes(31), {}),
            (bytes(33), {}),
            (bytes(32 * 257), {}),
            (bytes(32), {"shard": 4}),
            (bytes(32), {"shard": None}),
            (bytes(32), {"epoch": -1}),
        ],
    )
    async def test_asked_for_wrongly_are_refused(
        self, node: Server, payload: bytes, changes: dict[str, cbor.Value]
    ) -> None:
        expect_refusal((await self.ask(node, OWNERS[1], payload, **changes))[0], Reason.MALFORMED)

    async def test_come_a_page_at_a_time(self, node: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        await hold_all(node)
        size = 4 + len(pair_item(BLOB.segments[0], 2))
        for limit, count in ((1, 1), (2 * size, 2), (2 * size - 1, 1)):
            monkeypatch.setattr(serving, "REPLY_BYTES_MAX", limit)
            reply, items = await self.ask(node, OWNERS[1], *BLOB.header.roots)
            assert (reply.header["count"], len(items)) == (count, count)

    async def test_under_a_challenge_or_rotten_are_not_had(self, node: Server) -> None:
        await hold_all(node)
        first, second, third = BLOB.header.roots
        node.frozen = {(first, 2), (second, 1)}
        path_of(node.store, third, 2).write_bytes(b"rotten")
        _, items = await self.ask(node, OWNERS[1], first, second, third)
        assert items == [b"", pair_item(BLOB.segments[1], 2), b""]


class TestSymbols:
    async def test_cross_the_sliver_that_was_lost(self, node: Server) -> None:
        await hold_all(node)
        for target in range(CODE.n):
            for kind in Kind:
                request: dict[str, cbor.Value] = {"from": [3, 1], "kind": int(kind), "op": "symbols", "shard": target}
                async with node.stream(OWNERS[GENESIS.committee.holder(target)]) as stream:
                    reply, payload = await ask(stream, request, b"".join((*BLOB.header.roots, bytes(32))))
                assert reply.header["count"] == 4
                want = [crossing(segment, kind, target, helper) for segment in BLOB.segments for helper in (3, 1)]
                assert split_items(payload) == [*want, b"", b""]

    async def test_go_to_nobody_but_who_lost_it(self, node: Server) -> None:
        """Each symbol of parity has a whole sliver read: that is for who needs it."""
        await hold_all(node)
        request: dict[str, cbor.Value] = {"from": [0], "kind": 0, "op": "symbols", "shard": 2}
        for peer in (OWNERS[0], OWNERS[2], STRANGER):
            async with node.stream(peer) as stream:
                reply, _ = await ask(stream, request, BLOB.header.roots[0])
            expect_refusal(reply, Reason.UNKNOWN_SIGNER)

    async def test_under_a_challenge_are_not_had(self, node: Server) -> None:
        await hold_all(node)
        root = BLOB.header.roots[0]
        node.frozen = {(root, 1)}
        request: dict[str, cbor.Value] = {"from": [3, 1], "kind": 0, "op": "symbols", "shard": 0}
        async with node.stream(OWNERS[0]) as stream:
            _, payload = await ask(stream, request, root)
            assert split_items(payload) == [crossing(BLOB.segments[0], Kind.PRIMARY, 0, 3), b""]
            row = sliver_request(root, Kind.PRIMARY, CODE.pair_of_shard(1, root), 0, 1)
            expect_refusal((await ask(stream, row))[0], Reason.OVER_BUDGET)
            leaves = BLOB.segments[0].leaves_of(Kind.PRIMARY, CODE.pair_of_shard(1, root))
            assert (await ask(stream, {**row, "count": 0}))[1] == leaves

    @pytest.mark.parametrize(
        "changes",
        [
            {"from": []},
            {"from": [0, 0]},
            {"from": [4]},
            {"from": [True]},
            {"from": 1},
            {"from": [0, 1, 2, 3, 4]},
            {"kind": 2},
            {"shard": 4},
        ],
    )
    async def test_asked_for_wrongly_are_refused(self, node: Server, changes: dict[str, cbor.Value]) -> None:
        request: dict[str, cbor.Value] = {"from": [0], "kind": 0, "op": "symbols", "shard": 0, **changes}
        async with node.stream() as stream:
            expect_refusal((await ask(stream, request, bytes(32)))[0], Reason.MALFORMED)


def crossing(segment: EncodedSegment, kind: Kind, target: int, helper: int) -> bytes:
    lost, own = (CODE.pair_of_shard(shard, segment.root) for shard in (target, helper))
    row, column = (lost, CODE.n - 1 - own) if kind is Kind.PRIMARY else (own, CODE.n - 1 - lost)
    start = (row * CODE.n + column) * segment.z
    return bytes(segment.matrix[start : start + segment.z])


class TestHeaders:
    async def test_come_in_numbers(self, node: Server) -> None:
        other = make_blob(CODE, 10, 1)
        for blob in (BLOB, other):
            await upload(node, blob)
        names = (other.header.blob_id, bytes(32), BLOB.header.blob_id)
        async with node.stream() as stream:
            reply, payload = await ask(stream, {"op": "headers"}, b"".join(names))
        assert reply.header["count"] == 3
        assert split_items(payload) == [other.header.encode(), b"", BLOB.header.encode()]


class TestInvalidBlobs:
    """Once the ledger says that a writer encoded wrongly, every reader hears the same of every node."""

    async def test_are_refused_whatever_is_asked(self, node: Server) -> None:
        await upload(node)
        view = Reseated(node.chain.ledger, {0: GENESIS.committee}, invalid={BLOB.header.blob_id})
        node.chain.ledger = view.as_ledger()
        root = BLOB.header.roots[0]
        requests: tuple[dict[str, cbor.Value], ...] = (
            {"blob": BLOB.header.blob_id, "op": "header"},
            {"blob": BLOB.header.blob_id, "op": "certificate"},
            {"op": "metadata", "root": root},
            sliver_request(root, Kind.PRIMARY, CODE.pair_of_shard(0, root), 0, 1),
        )
        async with node.stream() as stream:
            for request in requests:
                expect_refusal((await ask(stream, request))[0], Reason.INVALID)
            assert split_items((await ask(stream, {"op": "headers"}, BLOB.header.blob_id))[1]) == [b""]
            node.store.proofs.put(BLOB.header.blob_id, b"proof")
            assert (await ask(stream, {"blob": BLOB.header.blob_id, "op": "proof"}))[1] == b"proof"
        async with node.stream() as stream:
            await ask(stream, UNPAID)
            reply, _ = await ask(stream, close_request(BLOB.header), BLOB.header.encode())
            expect_refusal(reply, Reason.INVALID)

    async def test_take_no_segment_with_them_that_another_blob_shares(self, node: Server) -> None:
        shared = encode_blob(CODE, BLOB.data[:1000])
        for blob in (BLOB, shared):
            await upload(node, blob)
        view = Reseated(node.chain.ledger, {0: GENESIS.committee}, invalid={BLOB.header.blob_id})
        node.chain.ledger = view.as_ledger()
        async with node.stream() as stream:
            for index, want in ((0, True), (1, False)):
                reply, _ = await ask(stream, {"op": "metadata", "root": BLOB.header.roots[index]})
                assert reply.header["ok"] is want
