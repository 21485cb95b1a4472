"""A message is whole or it is an error; a header that breaks a rule is refused before anything is made of it."""

from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from economics import cbor
from economics.crypto import NodeId
from economics.errors import Reason, Rejected
from p2pnode.errors import StreamBroken
from p2pnode.network.frames import (
    HEADER_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    Incoming,
    build_header,
    parse_header,
    receive_message,
    receive_message_or_end,
    send_message,
)
from tests.refusals import reason
from tests.streams import MemoryStream, stream_pair

ONE, TWO = NodeId(bytes([1]) * 32), NodeId(bytes([2]) * 32)


async def incoming(data: bytes) -> MemoryStream:
    """Return a stream on which these bytes have come, and its end."""
    here, there = stream_pair(ONE, TWO)
    await there.send(data)
    await there.close_write()
    return here


async def refusal(data: bytes) -> Reason:
    with pytest.raises(Rejected) as verdict:
        await receive_message(await incoming(data))
    return verdict.value.reason


def framed(header: bytes) -> bytes:
    return len(header).to_bytes(4, "big") + header


class TestMessage:
    async def test_is_read_back_and_its_payload_stays_on_the_stream(self) -> None:
        here, there = stream_pair(ONE, TWO)
        await send_message(there, {"op": "have", "root": b"r"}, b"pay", memoryview(b"load"))
        await send_message(there, {"op": "status"})
        first = await receive_message(here)
        assert first == Incoming({"op": "have", "root": b"r", "size": 7}, 7)
        assert await here.receive_exactly(7) == b"payload"
        assert await receive_message_or_end(here) == Incoming({"op": "status"}, 0)

    def test_has_the_bytes_that_the_format_says(self) -> None:
        assert build_header({"op": "x"}, 5) == bytes.fromhex("0000000c a2 626f70 6178 6473697a65 05")
        assert build_header({"op": "x"}, 0) == bytes.fromhex("00000006 a1 626f70 6178")

    async def test_that_does_not_come_is_broken_where_a_reply_is_due_and_the_end_where_a_request_may_be(self) -> None:
        with pytest.raises(StreamBroken):
            await receive_message(await incoming(b""))
        assert await receive_message_or_end(await incoming(b"")) is None

    async def test_that_ends_early_is_broken_wherever_it_ends(self) -> None:
        whole = build_header({"op": "status"}, 0)
        for size in range(1, len(whole)):
            with pytest.raises(StreamBroken):
                await receive_message_or_end(await incoming(whole[:size]))
            with pytest.raises(StreamBroken):
                await receive_message(await incoming(whole[:size]))

    async def test_that_comes_byte_by_byte_is_whole(self) -> None:
        here, there = stream_pair(ONE, TWO, window=1)
        async with trio.open_nursery() as nursery:

            async def drip() -> None:
                for byte in build_header({"op": "status"}, 0):
                    await there.send(bytes([byte]))

            nursery.start_soon(drip)
            assert await receive_message_or_end(here) == Incoming({"op": "status"}, 0)


class TestLimits:
    async def test_a_header_has_1_to_65_536_bytes_and_is_refused_by_its_length_alone(self) -> None:
        for length in (0, HEADER_BYTES_MAX + 1, 2**32 - 1):
            assert await refusal(length.to_bytes(4, "big")) is Reason.TOO_LARGE
        largest = cbor.encode({"x": bytes(HEADER_BYTES_MAX - 8)})
        assert len(largest) == HEADER_BYTES_MAX - 2
        assert (await receive_message(await incoming(framed(largest)))).header == {"x": bytes(HEADER_BYTES_MAX - 8)}

    @pytest.mark.parametrize("size", [-1, PAYLOAD_BYTES_MAX + 1, 2**64 - 1, True, None, "5", b"5", [5]])
    def test_a_payload_has_an_honest_size(self, size: cbor.Value) -> None:
        assert reason(parse_header, cbor.encode({"size": size})) is Reason.MALFORMED

    def test_a_payload_of_the_largest_size_is_announced(self) -> None:
        assert parse_header(cbor.encode({"size": PAYLOAD_BYTES_MAX})).size == PAYLOAD_BYTES_MAX

    @pytest.mark.parametrize("value", [None, 1, "text", b"", [], [{}]])
    async def test_a_header_is_a_map(self, value: cbor.Value) -> None:
        assert await refusal(framed(cbor.encode(value))) is Reason.MALFORMED

    async def test_a_header_is_canonical(self) -> None:
        assert await refusal(framed(b"\xa1\x61a\x18\x01")) is Reason.MALFORMED
        assert await refusal(framed(b"\xa0\x00")) is Reason.MALFORMED

    def test_a_header_is_neither_deep_nor_of_many_items(self) -> None:
        assert reason(parse_header, cbor.encode({"a": [[[[1]]]]})) is Reason.TOO_LARGE
        assert reason(parse_header, cbor.encode({"a": [0] * 1_024})) is Reason.TOO_LARGE

    @settings(max_examples=500)
    @given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: b"\xa1\x64size" + tail))
    def test_a_header_of_any_bytes_is_refused_or_bounded(self, data: bytes) -> None:
        try:
            message = parse_header(data)
        except Rejected:
            return
        assert 0 <= message.size <= PAYLOAD_BYTES_MAX
        assert cbor.encode(message.header) == data


class TestFields:
    message = Incoming({"t": "text", "b": b"bytes", "i": 7, "true": True}, 0)

    def test_are_returned_if_they_are_of_their_kind(self) -> None:
        assert self.message.text("t") == "text"
        assert self.message.raw("b", 5) == b"bytes"
        assert self.message.integer("i", high=7) == 7

    @pytest.mark.parametrize(
        ("call", "arguments"),
        [
            ("text", ("b",)),
            ("text", ("missing",)),
            ("raw", ("t", 4)),
            ("raw", ("b", 4)),
            ("raw", ("b", 6)),
            ("raw", ("missing", 0)),
            ("integer", ("t",)),
            ("integer", ("true",)),
            ("integer", ("missing",)),
        ],
    )
    def test_of_another_kind_or_size_are_refused(self, call: str, arguments: Any) -> None:
        high = {"high": 100} if call == "integer" else {}
        assert reason(getattr(self.message, call), *arguments, **high) is Reason.MALFORMED

    def test_of_integers_have_bounds(self) -> None:
        assert reason(self.message.integer, "i", high=6) is Reason.MALFORMED
        assert reason(Incoming({"i": -1}, 0).integer, "i", high=6) is Reason.MALFORMED
