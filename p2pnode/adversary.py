"""Named adversaries: nodes that answer or vote wrongly on purpose, for testnets only."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

import trio

from economics.consensus import Message
from economics.crypto import Digest, Signature
from economics.errors import Reason
from economics.votes import Kind, SignedVote
from p2pnode.consensus.speech import Speak, speak_honestly
from p2pnode.network.frames import build_header, send_message
from p2pnode.network.stream import Stream
from p2pnode.slivers.serving import LENGTH_BYTES
from p2pnode.slivers.storage import Manner, Reply, send_honestly

DRIP_S = 1.0
"""A staller sends one byte each so many seconds: never idle, never done."""
BABBLE_BYTES = 64 << 10


READS = ("sliver", "metadata", "challenge")


class Behaviour(StrEnum):
    """How a node of a testnet behaves."""

    HONEST = "honest"
    LIAR = "liar"
    """Takes uploads and signs for them, then serves wrong symbols with the right leaf lists, and answers wrongly."""
    STALLED = "stalled"
    """Takes uploads, then drips its answers to reads byte by byte."""
    SILENT = "silent"
    """Takes uploads, then never answers a read."""
    FORGER = "forger"
    """Serves readers honestly, and whoever heals wrong pairs and wrong symbols, of the right size."""
    BABBLER = "babbler"
    """Answers whoever heals with random bytes, as fast as they are taken, and never stops."""
    REFUSER = "refuser"
    """Has no time for whoever heals."""
    EQUIVOCATOR = "equivocator"
    """Stores and serves honestly, and votes for two blocks in every view."""


def _bend(data: bytes | memoryview) -> bytes:
    return bytes([data[0] ^ 1]) + bytes(data[1:])


async def send_wrong_symbols(stream: Stream, operation: str, reply: Reply) -> None:
    header, payload = reply
    if operation == "sliver" and payload[1]:
        payload = (payload[0], _bend(payload[1]))
    elif operation == "challenge":
        payload = tuple(_bend(answer) for answer in payload)
    await send_message(stream, header, *payload)


async def send_dripping(stream: Stream, operation: str, reply: Reply) -> None:
    header, payload = reply
    if operation not in READS:
        await send_message(stream, header, *payload)
        return
    await stream.send(build_header(header, sum(len(part) for part in payload)))
    for part in payload:
        for byte in bytes(part):
            await stream.send(bytes([byte]))
            await trio.sleep(DRIP_S)


async def send_nothing(stream: Stream, operation: str, reply: Reply) -> None:
    if operation not in READS:
        await send_message(stream, reply[0], *reply[1])
        return
    await trio.sleep_forever()


HEALING = ("headers", "metadata", "pairs", "symbols")
"""What is asked by who heals, and hardly by anybody else."""


async def send_forged(stream: Stream, operation: str, reply: Reply) -> None:
    """Change the last byte of each item of a reply to many roots."""
    header, payload = reply
    if operation in ("pairs", "symbols"):
        forged = bytearray(b"".join(payload))
        at = 0
        while at < len(forged):
            size = int.from_bytes(forged[at : at + LENGTH_BYTES], "big")
            at += LENGTH_BYTES + size
            if size:
                forged[at - 1] ^= 1
        payload = (bytes(forged),)
    await send_message(stream, header, *payload)


async def send_garbage(stream: Stream, operation: str, reply: Reply) -> None:
    header, payload = reply
    if operation not in HEALING:
        await send_message(stream, header, *payload)
        return
    await stream.send(build_header(header, sum(len(part) for part in payload)))
    while True:
        await stream.send(os.urandom(BABBLE_BYTES))


async def send_refusal(stream: Stream, operation: str, reply: Reply) -> None:
    header, payload = reply
    if operation in HEALING:
        header = {"detail": "not now", "error": str(Reason.OVER_BUDGET), "ok": False, "retry": True}
        payload = ()
    await send_message(stream, header, *payload)


MANNERS: Mapping[Behaviour, Manner] = {
    Behaviour.HONEST: send_honestly,
    Behaviour.LIAR: send_wrong_symbols,
    Behaviour.STALLED: send_dripping,
    Behaviour.SILENT: send_nothing,
    Behaviour.FORGER: send_forged,
    Behaviour.BABBLER: send_garbage,
    Behaviour.REFUSER: send_refusal,
    Behaviour.EQUIVOCATOR: send_honestly,
}


def speaker(behaviour: Behaviour, *, sign: Callable[[bytes], Signature], chain_id: Digest) -> Speak:
    """Return what a node of this behaviour sends to all in place of a message."""

    def speak_twice(message: Message) -> Sequence[Message]:
        if not isinstance(message, SignedVote) or message.vote.kind is not Kind.NOTARIZE:
            return (message,)
        other = replace(message.vote, block_hash=Digest(message.vote.block_hash[::-1]))
        return (message, SignedVote(other, sign(other.encode(chain_id))))

    return speak_twice if behaviour is Behaviour.EQUIVOCATOR else speak_honestly
