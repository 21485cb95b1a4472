"""What the gateway's wallet keeps: listed page by page, and deleted, by whoever has the token."""

from pathlib import Path
from random import Random

import pytest

from economics.arguments import Attributes
from economics.blob import build_blob_id_text, parse_blob_id
from economics.slots import entry_slot, state_key
from p2pnode.clients.payments import latest_ms
from p2pnode.gateway.owned import build_cursor
from tests.gateway.ledgernet import BEARER, GENESIS, Gateway, LedgerNet, open_gateway, reason_of
from tests.small import OTHER_OWNER, OWNER

MISSING = "A" * 43


async def put(gateway: Gateway, seed: int, query: str = "") -> str:
    answer = await gateway.json("PUT", "/v1/blobs" + query, body=Random(seed).randbytes(1_000 + seed))
    text: str = answer["newlyCreated"]["blobObject"]["blobId"]
    return text


class TestListing:
    async def test_says_of_each_entry_what_the_ledger_does(self, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            text = await put(gateway, 1, "?epochs=3&permanent=true")
            (entry,) = net.own_entries()
            await net.transact(OWNER, Attributes(entry.blob_id, entry.reservation, "image/png", "cat.png"))
            found = await gateway.json("GET", "/v1/blobs", BEARER)
        assert found == {
            "blobs": [
                {
                    "blobId": text,
                    "certifiedHeight": entry.certified_height,
                    "contentType": "image/png",
                    "deletable": False,
                    "endEpoch": 3,
                    "epochsLeft": 3,
                    "expiresMs": latest_ms(GENESIS, await net.head(), 3),
                    "id": "0x" + state_key(entry_slot(entry.blob_id, entry.reservation)).hex(),
                    "name": "cat.png",
                    "size": 1_001,
                    "storage": {"id": "0x" + entry.reservation.hex(), "storageSize": entry.units * 65_536},
                }
            ],
            "epoch": 0,
            "nextCursor": None,
        }

    async def test_goes_on_page_by_page_while_blobs_come_and_go(self, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            ids = sorted([await put(gateway, seed) for seed in range(5)], key=parse_blob_id)
            first = await gateway.json("GET", "/v1/blobs?limit=2", BEARER)
            await gateway.json("DELETE", f"/v1/blobs/{ids[1]}", BEARER)
            second = await gateway.json("GET", f"/v1/blobs?limit=2&cursor={first['nextCursor']}", BEARER)
            third = await gateway.json("GET", f"/v1/blobs?limit=2&cursor={second['nextCursor']}", BEARER)
        pages = [[row["blobId"] for row in page["blobs"]] for page in (first, second, third)]
        assert pages == [ids[:2], ids[2:4], ids[4:]]
        assert third["nextCursor"] is None

    async def test_of_nothing_is_empty(self, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            assert await gateway.json("GET", "/v1/blobs", BEARER) == {"blobs": [], "epoch": 0, "nextCursor": None}

    @pytest.mark.parametrize(
        "query",
        ["?limit=0", "?limit=1001", "?limit=x", "?cursor=", "?cursor=abc", "?cursor=" + "%C3%A9" * 43, "?after=1"],
    )
    async def test_refuses_a_parameter_that_cannot_be(self, query: str, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            assert await gateway.fails("GET", "/v1/blobs" + query, BEARER, status=400) == "INVALID_PARAMETER"

    async def test_takes_a_place_at_which_nothing_is_any_more(self, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            await put(gateway, 1)
            cursor = build_cursor(bytes([255]) * 64)
            assert (await gateway.json("GET", f"/v1/blobs?cursor={cursor}", BEARER))["blobs"] == []


class TestDeleting:
    async def test_ends_each_entry_and_the_storage_is_used_again(self, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            text = await put(gateway, 1)
            (entry,) = net.own_entries()
            found = await gateway.json("DELETE", f"/v1/blobs/{text}", BEARER)
            assert found == {"blobId": text, "deleted": 1, "permanent": 0, "storageSize": entry.units * 65_536}
            assert net.own_entries() == []
            assert await gateway.fails("DELETE", f"/v1/blobs/{text}", BEARER, status=404) == "NOT_OURS"
            again = await gateway.json("PUT", "/v1/blobs", body=Random(1).randbytes(1_001))
        assert "reuseStorage" in again["newlyCreated"]["resourceOperation"]

    async def test_leaves_what_is_permanent(self, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            text = await put(gateway, 1, "?permanent=true")
            assert await gateway.fails("DELETE", f"/v1/blobs/{text}", BEARER, status=409) == "NOT_DELETABLE"
            await put(gateway, 1, "?deletable=true")
            found = await gateway.json("DELETE", f"/v1/blobs/{text}", BEARER)
        assert (found["deleted"], found["permanent"]) == (1, 1)
        assert [entry.deletable for entry in net.own_entries()] == [False]

    async def test_knows_nothing_of_what_another_keeps(self, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path / "ours") as gateway:
            text = await put(gateway, 1)
        async with open_gateway(net, tmp_path / "others", owner=OTHER_OWNER) as gateway:
            assert await gateway.fails("DELETE", f"/v1/blobs/{text}", BEARER, status=404) == "NOT_OURS"
            assert await gateway.fails("DELETE", f"/v1/blobs/{MISSING}", BEARER, status=404) == "NOT_OURS"
        assert len(net.own_entries()) == 1

    @pytest.mark.parametrize("text", ["x", "A" * 44, "A" * 42 + "%2F", "..%2F..", "%00", "a%20b"])
    async def test_refuses_what_is_no_id(self, text: str, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            answer = await gateway.ask("DELETE", f"/v1/blobs/{text}", BEARER)
        assert answer.status in (400, 404)


class TestToken:
    @pytest.mark.parametrize(("method", "target"), [("GET", "/v1/blobs"), ("DELETE", f"/v1/blobs/{MISSING}")])
    @pytest.mark.parametrize(
        ("shown", "status"),
        [
            ("", 401),
            ("Bearer wrong", 403),
            ("Bearer ", 401),
            ("Basic YTpi", 401),
            (BEARER["Authorization"][:-1], 403),
            (BEARER["Authorization"] + "x", 403),
            ("Bearer \u00e9", 403),
        ],
    )
    async def test_is_needed(
        self, method: str, target: str, shown: str, status: int, net: LedgerNet, tmp_path: Path
    ) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            answer = await gateway.ask(method, target, {"Authorization": shown})
            assert reason_of(answer, status) == "TOKEN"
            assert (answer.headers.get("www-authenticate") == "Bearer") is (status == 401)

    async def test_does_not_help_where_there_is_no_wallet(self, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path, owner=None) as gateway:
            assert await gateway.fails("GET", "/v1/blobs", BEARER, status=403) == "NO_WALLET"
            assert await gateway.fails("DELETE", f"/v1/blobs/{MISSING}", BEARER, status=403) == "NO_WALLET"


def test_ids_in_lists_read_back() -> None:
    assert build_blob_id_text(parse_blob_id(MISSING)) == MISSING
