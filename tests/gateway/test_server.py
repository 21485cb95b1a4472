"""The server on a real socket: what is no HTTP is refused, nothing is smuggled, and nobody holds it up for ever."""

import json
import math
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from p2pnode.errors import ConfigError
from p2pnode.gateway import server
from p2pnode.gateway.server import Bounds, group_of, open_server
from tests.gateway.raw import ask, build, exchange, get, parse, serving, statuses

BIG = 8 << 20


class Seen:
    """An application that says what it was asked, and remembers it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.app = Starlette(
            routes=[
                Route("/big", self.big),
                Route("/refuse", self.refuse, methods=["PUT"]),
                Route("/half", self.half),
                Route("/{rest:path}", self.echo, methods=["GET", "POST", "PUT"]),
            ]
        )

    async def echo(self, request: Request) -> Response:
        body = await request.body()
        self.asked.append(f"{request.method} {request.url.path} {len(body)}")
        return PlainTextResponse(f"{request.method} {request.url.path} {len(body)}")

    async def refuse(self, request: Request) -> Response:
        return PlainTextResponse("too large", 413)

    async def big(self, request: Request) -> Response:
        return Response(bytes(BIG))

    async def half(self, request: Request) -> Response:
        return Half()


class Half(Response):
    """Promises ten bytes and sends five."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"12345", "more_body": True})


HOST = b"Host: localhost\r\n"
GARBAGE = {
    "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
    "a length and chunks": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\nX",
    "chunks and a length": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n"
    b"0\r\n\r\nX",
    "two lengths": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n123456",
    "two lengths in one": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5, 6\r\n\r\n123456",
    "a length with a sign": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +5\r\n\r\n12345",
    "a negative length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -5\r\n\r\n12345",
    "a length in hex": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 0x5\r\n\r\n12345",
    "a name that ends in a blank": b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "a folded header to begin with": b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "a NUL in a value": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n",
    "a NUL in the path": b"GET /\x00 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a blank in the path": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\n" + HOST + b"Host: evil\r\n\r\n",
    "a header without a colon": b"GET / HTTP/1.1\r\n" + HOST + b"nonsense\r\n\r\n",
    "an absolute target": b"GET http://evil/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method with a colon": b"GE:T / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a bare carriage return": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\rb\r\n\r\n",
}


@pytest.mark.parametrize("raw", GARBAGE.values(), ids=GARBAGE.keys())
async def test_what_is_no_request_is_answered_400_and_the_connection_ends(raw: bytes) -> None:
    seen = Seen()
    async with serving(seen.app) as port:
        answers = parse(await exchange(port, raw + build("GET", "/smuggled")))
    assert statuses(answers) == [400]
    assert seen.asked == []
    assert answers[0].headers["connection"] == "close"
    assert answers[0].headers["cache-control"] == "no-store"
    assert json.loads(answers[0].body)["error"]["code"] == 400


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n" * 70 + b"\r\n", 431),
        (b"GET /" + b"a" * 13_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"GET / HTTP/1.9\r\n" + HOST + b"\r\n", 505),
    ],
    ids=["a header too large", "headers too many", "a target too long", "a foreign coding", "a version of later"],
)
async def test_what_is_too_much_or_unknown_says_so(raw: bytes, status: int) -> None:
    seen = Seen()
    async with serving(seen.app) as port:
        assert statuses(parse(await exchange(port, raw))) == [status]
    assert seen.asked == []


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"-5\r\nabcde\r\n", b"5\r\nabcdefgh\r\n", b"1" * 40 + b"\r\n"])
async def test_a_bad_chunk_ends_the_connection_with_400(chunk: bytes) -> None:
    seen = Seen()
    raw = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk
    async with serving(seen.app) as port:
        assert statuses(parse(await exchange(port, raw + build("GET", "/smuggled")))) == [400]
    assert seen.asked == []


async def test_requests_behind_each_other_are_answered_in_order() -> None:
    seen = Seen()
    raw = b"".join(build("GET", f"/{number}", {"Connection": ""}) for number in range(20)) + build("GET", "/last")
    async with serving(seen.app) as port:
        answers = parse(await exchange(port, raw))
    expected = [f"GET /{name} 0" for name in (*range(20), "last")]
    assert [answer.body.decode() for answer in answers] == expected == seen.asked


async def test_a_connection_stays_for_any_number_of_requests() -> None:
    seen = Seen()
    async with serving(seen.app) as port, await trio.open_tcp_stream("127.0.0.1", port) as stream:
        for number in range(1_200):
            await stream.send_all(build("GET", f"/{number}", {"Connection": ""}))
            answer = parse(await stream.receive_some())[0]
            assert (answer.status, "connection" in answer.headers) == (200, False)


async def test_a_folded_header_is_one_value_and_hides_no_request() -> None:
    seen = Seen()
    raw = b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    async with serving(seen.app) as port:
        assert statuses(parse(await exchange(port, raw))) == [200]
    assert seen.asked == ["GET / 0"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__"},
        {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x", "Sec-WebSocket-Version": "13"},
    ],
    ids=["HTTP/2", "a websocket"],
)
async def test_no_request_changes_the_protocol(headers: dict[str, str]) -> None:
    raw = build("GET", "/", headers) + build("GET", "/again")
    async with serving(Seen().app) as port:
        assert statuses(parse(await exchange(port, raw))) == [200, 200]


async def test_the_preface_of_http_2_is_refused() -> None:
    async with serving(Seen().app) as port:
        raw = await exchange(port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert statuses(parse(raw)) in ([400], [505])


async def test_an_answer_that_stops_short_is_a_broken_transfer() -> None:
    async with serving(Seen().app) as port:
        answer = await get(port, "/half")
    assert (answer.status, answer.body, answer.is_whole) == (200, b"12345", False)


async def test_a_refused_body_is_still_answered_and_its_tasks_end() -> None:
    async with serving(Seen().app) as port:
        await trio.testing.wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living
        answer = await ask(port, "PUT", "/refuse", body=bytes(BIG))
        assert (answer.status, answer.body) == (413, b"too large")
        with trio.fail_after(60):
            while trio.lowlevel.current_statistics().tasks_living > before:  # noqa: ASYNC110 - trio tells of no end
                await trio.sleep(0.01)


async def test_who_reads_nothing_is_cut_off() -> None:
    async with serving(Seen().app, Bounds(stall_s=0.3)) as port:
        await trio.testing.wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(build("GET", "/big"))
            received = len(await stream.receive_some(1))
            while trio.lowlevel.current_statistics().tasks_living > before:  # noqa: ASYNC110 - trio tells of no end
                await trio.sleep(0.01)
            with suppress(trio.BrokenResourceError):
                while chunk := await stream.receive_some():
                    received += len(chunk)
            assert received < BIG


async def test_who_sends_half_a_request_is_cut_off() -> None:
    async with serving(Seen().app, Bounds(keep_alive_s=0.3)) as port:
        assert await exchange(port, b"GET / HTTP/1.1\r\nHost: loc") == b""


async def test_who_waits_too_long_for_a_second_request_is_cut_off() -> None:
    async with serving(Seen().app, Bounds(keep_alive_s=2)) as port:
        assert statuses(parse(await exchange(port, build("GET", "/", {"Connection": ""})))) == [200]


async def test_too_many_connections_are_turned_away() -> None:
    async with serving(Seen().app, Bounds(connections_address_max=2)) as port:
        held = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        for stream in held:
            await stream.send_all(build("GET", "/", {"Connection": ""}))
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        answers = parse(await exchange(port, build("GET", "/")))
        assert (statuses(answers), answers[0].headers["retry-after"]) == ([503], "5")
        for stream in held:
            await stream.aclose()
        with trio.fail_after(60):
            while statuses(parse(await exchange(port, build("GET", "/")))) != [200]:
                pass


async def test_a_flood_of_connections_holds_no_more_than_a_few_that_are_turned_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "LINGER_S", 60.0)
    monkeypatch.setattr(server, "TURNED_AWAY_MAX", 2)
    async with serving(Seen().app, Bounds(connections_address_max=1)) as port:
        held = await trio.open_tcp_stream("127.0.0.1", port)
        await held.send_all(build("GET", "/", {"Connection": ""}))
        assert (await held.receive_some()).startswith(b"HTTP/1.1 200")
        before = trio.lowlevel.current_statistics().tasks_living
        streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(20)]
        for stream in streams:
            with suppress(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass
        with trio.fail_after(10):
            while trio.lowlevel.current_statistics().tasks_living > before + 2:  # noqa: ASYNC110 - trio tells of no end
                await trio.sleep(0.01)
        for stream in (*streams, held):
            await stream.aclose()


async def test_stopping_waits_for_nobody_who_reads_nothing() -> None:
    async with serving(Seen().app, Bounds(grace_s=0.2, stall_s=math.inf)) as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(build("GET", "/big"))
        assert await stream.receive_some(1) == b"H"
    await stream.aclose()


def test_all_addresses_of_one_ipv6_network_count_as_one() -> None:
    """A machine there has 2 to the 64 of them."""
    assert group_of("2001:db8::1") == group_of("2001:db8::ffff:1:2%eth0") != group_of("2001:db8:0:1::1")
    assert group_of("::ffff:192.0.2.1") == group_of("192.0.2.1") != group_of("192.0.2.2")


async def test_an_address_in_use_is_named() -> None:
    async with serving(Seen().app) as port:
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}: .*; name another address"):
            async with open_server(lambda addresses: None, "127.0.0.1", port):
                raise AssertionError


async def test_a_body_that_is_refused_halfway_gets_its_answer() -> None:
    """A route that answers while more of the body waits for it than the queue to it holds."""

    async def refuse(request: Request) -> Response:
        async for _ in request.stream():
            await trio.sleep(0.2)  # for the queue to fill
            break
        return PlainTextResponse("no", 400)

    app = Starlette(routes=[Route("/", refuse, methods=["PUT"])])
    async with serving(app) as port:
        assert statuses(parse(await exchange(port, build("PUT", "/", body=bytes(BIG))))) == [400]
