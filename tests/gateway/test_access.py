"""Who may ask what: names, origins, the token; each over a real socket."""

import os
from pathlib import Path

import pytest

from p2pnode.errors import ConfigError, InputError
from p2pnode.gateway.access import Access, load_token
from p2pnode.gateway.running import is_loopback, parse_address, parse_names, parse_origins
from tests.gateway.raw import ask, get
from tests.gateway.shelf import TOKEN, Shelf, open_shelf

PAGE = "https://page.example"
APP = "https://app.example"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:31415", "127.0.0.1", "127.0.0.1:80", "[::1]:80", "gate.example"]
)
async def test_it_answers_to_its_names(tmp_path: Path, host: str) -> None:
    async with open_shelf(Shelf(), tmp_path, access=Access(TOKEN, names=frozenset({"gate.example"}))) as opened:
        assert (await get(opened.port, "/status", Host=host)).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "192.0.2.1", "localhost.evil", "[::1", "a@localhost:b"]
)
async def test_a_name_that_is_not_its_own_is_answered_with_421(tmp_path: Path, host: str) -> None:
    async with open_shelf(Shelf(), tmp_path) as opened:
        answer = await get(opened.port, "/status", Host=host)
    assert (answer.status, answer.headers["cache-control"]) == (421, "no-store")
    assert "access-control-allow-origin" not in answer.headers


async def test_beyond_loopback_any_address_is_a_name_and_no_foreign_name_is(tmp_path: Path) -> None:
    async with open_shelf(Shelf(), tmp_path, access=Access(TOKEN, is_loopback=False)) as opened:
        assert (await get(opened.port, "/status", Host="192.0.2.1:80")).status == 200
        assert (await get(opened.port, "/status", Host="[2001:db8::1]")).status == 200
        assert (await get(opened.port, "/status", Host="rebound.example")).status == 421


async def test_any_page_may_read_and_none_may_store_or_delete(tmp_path: Path) -> None:
    shelf = Shelf()
    async with open_shelf(shelf, tmp_path) as opened:
        read = await get(opened.port, "/status", Origin=PAGE)
        assert (read.status, read.headers["access-control-allow-origin"]) == (200, "*")
        assert "access-control-allow-credentials" not in read.headers
        for method, target in (("PUT", "/v1/blobs"), ("DELETE", "/v1/blobs/x"), ("PUT", "/v1/quilts"), ("POST", "/")):
            answer = await ask(opened.port, method, target, {"Origin": PAGE}, b"x")
            assert (answer.status, "access-control-allow-origin" in answer.headers) == (403, False)
            assert (await ask(opened.port, method, target, {"Origin": "null"}, b"x")).status == 403


async def test_reading_may_be_left_to_some_pages(tmp_path: Path) -> None:
    access = Access(TOKEN, readers=frozenset({APP}))
    async with open_shelf(Shelf(), tmp_path, access=access) as opened:
        allowed, other = [await get(opened.port, "/status", Origin=origin) for origin in (APP, PAGE)]
        headers = {"Origin": PAGE, "Access-Control-Request-Method": "GET"}
        assert (await ask(opened.port, "OPTIONS", "/v1/blobs", headers)).status == 403
    assert (allowed.headers["access-control-allow-origin"], allowed.headers["vary"]) == (APP, "Origin")
    assert ("access-control-allow-origin" in other.headers, other.headers["vary"]) == (False, "Origin")


async def test_before_it_asks_a_page_learns_what_it_may(tmp_path: Path) -> None:
    async with open_shelf(Shelf(), tmp_path, access=Access(TOKEN, origins=frozenset({APP}))) as opened:

        async def preflight(origin: str, method: str) -> tuple[int, str | None, str | None]:
            headers = {"Origin": origin, "Access-Control-Request-Method": method}
            answer = await ask(opened.port, "OPTIONS", "/v1/blobs", headers)
            allowed = answer.headers.get("access-control-allow-methods")
            return answer.status, allowed, answer.headers.get("access-control-allow-headers")

        reading = "If-Match, If-None-Match, If-Range, Range"
        assert await preflight(PAGE, "GET") == (204, "GET, HEAD", reading)
        assert await preflight(PAGE, "PUT") == (403, None, None)
        assert await preflight(PAGE, "DELETE") == (403, None, None)
        assert await preflight(APP, "PUT") == (204, "GET, HEAD, PUT, DELETE", f"Authorization, Content-Type, {reading}")


async def test_a_page_of_its_own_or_an_allowed_one_may_store(tmp_path: Path) -> None:
    async with open_shelf(Shelf(), tmp_path, access=Access(TOKEN, origins=frozenset({APP}))) as opened:
        for origin in ("http://localhost", APP):
            answer = await ask(opened.port, "PUT", "/v1/blobs", {"Origin": origin}, b"x")
            assert (answer.status, b"NO_WALLET" in answer.body) == (403, True)  # it came as far as the wallet


LISTING_AND_DELETING = (("GET", "/v1/blobs"), ("DELETE", f"/v1/blobs/{'A' * 43}"))


@pytest.mark.parametrize("shown", ["", "Bearer", f"Basic {TOKEN}", f"bearer{TOKEN}", TOKEN])
async def test_without_the_token_nobody_lists_or_deletes(tmp_path: Path, shown: str) -> None:
    async with open_shelf(Shelf(), tmp_path) as opened:
        for method, target in LISTING_AND_DELETING:
            answer = await ask(opened.port, method, target, {"Authorization": shown})
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("shown", ["Bearer wrong", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer \xff"])
async def test_with_another_token_nobody_lists_or_deletes(tmp_path: Path, shown: str) -> None:
    async with open_shelf(Shelf(), tmp_path) as opened:
        for method, target in LISTING_AND_DELETING:
            answer = await ask(opened.port, method, target, {"Authorization": shown})
            assert (answer.status, b'"TOKEN"' in answer.body) == (403, True)


async def test_beyond_loopback_nobody_stores_without_the_token(tmp_path: Path) -> None:
    async with open_shelf(Shelf(), tmp_path, access=Access(TOKEN, is_loopback=False)) as opened:
        assert (await ask(opened.port, "PUT", "/v1/blobs", {}, b"x")).status == 401
        answer = await ask(opened.port, "PUT", "/v1/blobs", {"Authorization": f"Bearer {TOKEN}"}, b"x")
        assert (answer.status, b"NO_WALLET" in answer.body) == (403, True)


def test_a_token_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "gateway.token"
    token = load_token(path)
    assert (len(token), load_token(path), os.stat(path).st_mode & 0o777) == (43, token, 0o600)


@pytest.mark.parametrize("text", [b"", b"short\n", b"\xff" * 20, b"a" * 300])
def test_a_file_that_holds_no_token_is_named(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "gateway.token"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r"gateway\.token"):
        load_token(path)


def test_addresses_are_read() -> None:
    assert [parse_address(text) for text in ("127.0.0.1:31415", "8080", "[::1]:80", "0.0.0.0:1", "localhost:0")] == [
        ("127.0.0.1", 31415), ("127.0.0.1", 8080), ("::1", 80), ("0.0.0.0", 1), ("localhost", 0)]  # fmt: skip
    for text in ("", ":", "a:b", "127.0.0.1", "127.0.0.1:99999", "::1:80", "http://localhost:80"):
        with pytest.raises(InputError, match="is no address to listen on"):
            parse_address(text)
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "192.0.2.1", "x")] == [
        True, True, True, False, False, False]  # fmt: skip


def test_names_and_origins_are_read() -> None:
    assert parse_names(["Gate.Example", "192.0.2.1"]) == {"gate.example", "192.0.2.1"}
    assert parse_origins([APP, "http://localhost:3000"]) == {APP, "http://localhost:3000"}
    for name in ("", "a b", "x:80"):
        with pytest.raises(InputError, match="is no name of a host"):
            parse_names([name])
    for origin in ("app.example", f"{APP}/", "*"):
        with pytest.raises(InputError, match="is no origin"):
            parse_origins([origin])
