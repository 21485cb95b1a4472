"""What the peer protocol's server answers, and what it refuses; streams in memory."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from trio.testing import MockClock

from economics import cbor
from economics.blob import BlobId
from economics.crypto import NodeId
from economics.errors import Reason
from p2pnode import budget
from p2pnode.errors import NetworkError, StreamBroken
from p2pnode.network.frames import Incoming, receive_message, send_message
from p2pnode.network.stream import Stream
from p2pnode.peering import blobserver
from p2pnode.peering.blobserver import REQUESTS_BURST, BlobServer
from tests.p2pnode.swarming import BLOB, BLOB_ID, CODE, Shown
from tests.p2pnode.threads import inline_threads as inline_threads
from tests.small import OPERATORS, make_blob
from tests.streams import as_stream, stream_pair

PEER, OTHER, THIRD = (NodeId(key.public) for key in OPERATORS[:3])


@asynccontextmanager
async def connect(server: BlobServer, peer: NodeId = PEER) -> AsyncIterator[Stream]:
    """Yield a peer's end of a stream to the server."""
    client, served = stream_pair(peer, peer, window=1)

    async def handle() -> None:
        with suppress(NetworkError):
            await server.handle(as_stream(served))

    with trio.fail_after(1_000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle)
            yield as_stream(client)
            nursery.cancel_scope.cancel()


async def ask(stream: Stream, request: Mapping[str, cbor.Value], payload: bytes = b"") -> tuple[Incoming, bytes]:
    await send_message(stream, request, *([payload] if payload else []))
    reply = await receive_message(stream)
    return reply, await stream.receive_exactly(reply.size)


async def refusal(stream: Stream, request: Mapping[str, cbor.Value], payload: bytes = b"") -> tuple[object, object]:
    """Return (reason, whether to retry) of a request that is refused."""
    reply, _ = await ask(stream, request, payload)
    assert reply.header["ok"] is False
    return reply.header["error"], reply.header["retry"]


async def test_a_header_and_segments_are_given() -> None:
    async with connect(BlobServer(Shown(BLOB))) as stream:
        reply, data = await ask(stream, {"blob": BLOB_ID, "op": "header"})
        assert (reply.header["peers"], data) == ([], BLOB.header.encode())
        for index in (0, 12, 5):
            _, data = await ask(stream, {"blob": BLOB_ID, "index": index, "op": "segment"})
            assert data == BLOB.data[index * CODE.segment_bytes : (index + 1) * CODE.segment_bytes]


async def test_the_first_holdings_that_have_it_give_it() -> None:
    other = make_blob(CODE, 100, seed=5)
    server = BlobServer(Shown(BLOB, only=[1]), Shown(other), Shown(BLOB))
    async with connect(server) as stream:
        for index in (0, 1):
            _, data = await ask(stream, {"blob": BLOB_ID, "index": index, "op": "segment"})
            assert data == BLOB.data[index * CODE.segment_bytes : (index + 1) * CODE.segment_bytes]
        _, data = await ask(stream, {"blob": other.header.blob_id, "index": 0, "op": "segment"})
        assert data == other.data
    assert server.sent_bytes == 2 * CODE.segment_bytes + 100


@pytest.mark.parametrize(
    ("request_", "reason", "retry"),
    [
        ({"blob": bytes(32), "op": "header"}, Reason.NOT_FOUND, True),
        ({"blob": bytes(32), "index": 0, "op": "segment"}, Reason.NOT_FOUND, True),
        ({"blob": BLOB_ID, "index": 12, "op": "segment"}, Reason.NOT_FOUND, True),
        ({"blob": BLOB_ID, "index": 13, "op": "segment"}, Reason.WRONG_INDEX, False),
        ({"blob": BLOB_ID, "index": 131_072, "op": "segment"}, Reason.MALFORMED, False),
        ({"blob": BLOB_ID, "index": -1, "op": "segment"}, Reason.MALFORMED, False),
        ({"blob": BLOB_ID, "op": "segment"}, Reason.MALFORMED, False),
        ({"blob": BLOB_ID[:31], "op": "header"}, Reason.MALFORMED, False),
        ({"blob": "text", "op": "header"}, Reason.MALFORMED, False),
        ({"op": "header"}, Reason.MALFORMED, False),
        ({"op": "delete"}, Reason.UNKNOWN_OPERATION, False),
        ({}, Reason.UNKNOWN_OPERATION, False),
    ],
)
async def test_what_is_not_here_or_absurd_is_refused_and_the_stream_goes_on(
    request_: Mapping[str, cbor.Value], reason: Reason, retry: bool
) -> None:
    async with connect(BlobServer(Shown(BLOB, only=range(12)))) as stream:
        assert await refusal(stream, request_) == (reason, retry)
        assert (await ask(stream, {"blob": BLOB_ID, "op": "header"}))[1] == BLOB.header.encode()


async def test_a_request_with_a_payload_ends_the_stream() -> None:
    async with connect(BlobServer(Shown(BLOB))) as stream:
        assert await refusal(stream, {"blob": BLOB_ID, "op": "header"}, b"x") == (Reason.MALFORMED, False)
        with pytest.raises(StreamBroken):
            await ask(stream, {"blob": BLOB_ID, "op": "header"})


async def test_a_header_that_breaks_the_rules_ends_the_stream() -> None:
    async with connect(BlobServer(Shown(BLOB))) as stream:
        await stream.send((70_000).to_bytes(4, "big"))
        assert (await receive_message(stream)).header["error"] == Reason.TOO_LARGE
        with pytest.raises(StreamBroken):
            await receive_message(stream)


async def test_a_peer_that_asks_too_often_is_told_to_come_back_and_others_are_not(
    autojump_clock: MockClock, inline_threads: None
) -> None:
    server = BlobServer(Shown(BLOB))
    request: Mapping[str, cbor.Value] = {"blob": BLOB_ID, "op": "header"}
    async with connect(server) as stream, connect(server, OTHER) as other:
        for _ in range(REQUESTS_BURST):
            assert (await ask(stream, request))[0].header["ok"] is True
        assert await refusal(stream, request) == (Reason.OVER_BUDGET, True)
        assert (await ask(other, request))[0].header["ok"] is True
        await trio.sleep(1)
        assert (await ask(stream, request))[0].header["ok"] is True


async def test_segments_on_their_way_are_bounded_and_who_takes_none_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two peers that take nothing hold the room for two segments; who comes next gets it from them."""
    monkeypatch.setattr(blobserver, "REPLY_BUDGET_BYTES", 2 * CODE.segment_bytes)
    monkeypatch.setattr(budget, "FAIR_S", 0.2)
    shown = Shown(BLOB)
    server = BlobServer(shown)
    request: Mapping[str, cbor.Value] = {"blob": BLOB_ID, "index": 0, "op": "segment"}
    async with connect(server) as one, connect(server, OTHER) as two, connect(server, THIRD) as stream:
        await send_message(one, request)
        await send_message(two, request)
        while shown.asked[0] < 2:  # noqa: ASYNC110 - holdings have no event
            await trio.sleep(0.01)
        _, data = await ask(stream, {"blob": BLOB_ID, "index": 1, "op": "segment"})
        assert data == BLOB.data[CODE.segment_bytes : 2 * CODE.segment_bytes]
    assert server.sent_bytes == CODE.segment_bytes


async def test_it_tells_who_else_asked_lately() -> None:
    heard: list[tuple[BlobId, list[NodeId]]] = []

    def tell(blob_id: BlobId, asked: Sequence[NodeId]) -> list[str]:
        heard.append((blob_id, list(asked)))
        return ["told"] * 9

    server = BlobServer(Shown(BLOB), tell=tell)
    request: Mapping[str, cbor.Value] = {"blob": BLOB_ID, "op": "header"}
    for peer in (PEER, OTHER, THIRD, PEER):
        async with connect(server, peer) as stream:
            reply, _ = await ask(stream, request)
            assert reply.header["peers"] == ["told"] * 8
    assert heard == [(BLOB_ID, asked) for asked in ([], [PEER], [OTHER, PEER], [THIRD, OTHER])]
