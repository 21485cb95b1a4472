"""Messages on a stream: header length, canonical CBOR header, raw payload (FORMATS.md 7). Knows no operation's meaning.

A message is whole or it is an error: an end of stream inside one is `StreamBroken`, never an answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from economics import cbor
from economics.errors import Reason, Rejected

LENGTH_BYTES = 4
HEADER_BYTES_MAX = 65_536
PAYLOAD_BYTES_MAX = 64 << 20
"""A whole segment's slivers for one node that holds every shard: 8 MiB times 4.5, with the metadata."""
HEADER_BUDGET = cbor.Budget(size_max=HEADER_BYTES_MAX, depth_max=4, elements_max=1_024)

Header = dict[str, cbor.Value]


class ByteStream(Protocol):
    """What framing needs of a stream: the adapter's `Stream`, or one in memory."""

    async def send(self, *parts: bytes | bytearray | memoryview) -> None: ...

    async def receive_exactly(self, size: int) -> bytes: ...

    async def receive_some(self, size_max: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message whose header has been read; its `size` payload bytes are still on the stream."""

    header: Header
    size: int

    def text(self, name: str) -> str:
        value = self.header.get(name)
        if not isinstance(value, str):
            raise Rejected(Reason.MALFORMED, f"{name} is text")
        return value

    def raw(self, name: str, size: int) -> bytes:
        value = self.header.get(name)
        if not isinstance(value, bytes) or len(value) != size:
            raise Rejected(Reason.MALFORMED, f"{name} is {size} bytes")
        return value

    def integer(self, name: str, *, high: int) -> int:
        """Return an integer from 0 to `high`."""
        value = self.header.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= high:
            raise Rejected(Reason.MALFORMED, f"{name} is an integer from 0 to {high}")
        return value


def build_header(header: Mapping[str, cbor.Value], size: int) -> bytes:
    """Return the bytes in front of a payload of `size` bytes."""
    encoded = cbor.encode({**header, "size": size} if size else dict(header))
    assert len(encoded) <= HEADER_BYTES_MAX
    return len(encoded).to_bytes(LENGTH_BYTES, "big") + encoded


def parse_header(data: bytes) -> Incoming:
    """Return the message that this header announces, or raise `Rejected`."""
    header = cbor.decode(data, budget=HEADER_BUDGET)
    if not isinstance(header, dict):
        raise Rejected(Reason.MALFORMED, "a message header is a map")
    size = Incoming(header, 0).integer("size", high=PAYLOAD_BYTES_MAX) if "size" in header else 0
    return Incoming(header, size)


def parse_length(data: bytes) -> int:
    length = int.from_bytes(data, "big")
    if not 1 <= length <= HEADER_BYTES_MAX:
        raise Rejected(Reason.TOO_LARGE, f"a message header of {length} bytes")
    return length


async def send_message(
    stream: ByteStream, header: Mapping[str, cbor.Value], *payload: bytes | bytearray | memoryview
) -> None:
    """Send one message. The payload's parts go out as they are: nothing is joined."""
    await stream.send(build_header(header, sum(len(part) for part in payload)), *payload)


async def receive_message(stream: ByteStream) -> Incoming:
    """Return the next message's header; the caller reads or refuses its payload. `StreamBroken` if none comes."""
    length = parse_length(await stream.receive_exactly(LENGTH_BYTES))
    return parse_header(await stream.receive_exactly(length))


async def receive_message_or_end(stream: ByteStream) -> Incoming | None:
    """Return the next message's header, or None if the peer ended the stream between two messages."""
    first = await stream.receive_some(LENGTH_BYTES)
    if not first:
        return None
    if len(first) < LENGTH_BYTES:
        first += await stream.receive_exactly(LENGTH_BYTES - len(first))
    return parse_header(await stream.receive_exactly(parse_length(first)))
