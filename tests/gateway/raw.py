"""HTTP by hand: exactly these bytes over a socket, and all that comes back."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from p2pnode.gateway.server import Bounds, open_server

ANSWER_S = 120.0
"""For what takes milliseconds, on a machine that has much else to do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; `body` may be shorter than its length says, where the connection was cut."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_whole(self) -> bool:
        return len(self.body) == int(self.headers.get("content-length", "-1"))


@asynccontextmanager
async def serving(app: Any, bounds: Bounds | None = None, *, patience_s: float = ANSWER_S) -> AsyncIterator[int]:
    """Serve an application on a free port of loopback while the block lasts."""
    with trio.fail_after(patience_s):
        async with open_server(lambda addresses: app, "127.0.0.1", 0, bounds) as addresses:
            yield addresses[0][1]


async def exchange(port: int, data: bytes, *, answer_s: float = ANSWER_S) -> bytes:
    """Send these bytes and return all that comes until the server ends."""
    received = b""
    with trio.fail_after(answer_s):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            try:
                await stream.send_all(data)
                while chunk := await stream.receive_some():
                    received += chunk
            except trio.BrokenResourceError:
                pass
    return received


def parse(raw: bytes, *, head: bool = False) -> list[Answer]:
    """Return the answers one after the other."""
    answers = []
    while raw:
        top, separator, raw = raw.partition(b"\r\n\r\n")
        assert separator, top
        status, *lines = top.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = 0 if head else int(headers.get("content-length", "0"))
        answers.append(Answer(int(status.split()[1]), headers, raw[:length]))
        raw = raw[length:]
    return answers


def build(method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> bytes:
    lines = [f"{method} {target} HTTP/1.1"]
    given = {"Host": "localhost", "Connection": "close", **(headers or {})}
    if body:
        given["Content-Length"] = str(len(body))
    lines += [f"{name}: {value}" for name, value in given.items() if value]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def ask(
    port: int,
    method: str,
    target: str,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    *,
    answer_s: float = ANSWER_S,
) -> Answer:
    """Make one request on a connection of its own."""
    raw = await exchange(port, build(method, target, headers, body), answer_s=answer_s)
    answers = parse(raw, head=method == "HEAD")
    assert len(answers) == 1, raw[:500]
    return answers[0]


async def get(port: int, target: str, **headers: str) -> Answer:
    return await ask(port, "GET", target, {name.replace("_", "-"): value for name, value in headers.items()})


def statuses(answers: Sequence[Answer]) -> list[int]:
    return [answer.status for answer in answers]
