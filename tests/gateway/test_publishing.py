"""PUT /v1/blobs as a script written for Walrus meets it, and as one that means harm does."""

import json
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from economics.arguments import CertifyAgain, Transfer
from economics.blob import BlobId, build_blob_id_text
from economics.crypto import OwnerId
from economics.genesis import build_key_text
from economics.geometry import STORAGE_UNIT_BYTES
from economics.operations import quote as price_of
from economics.slots import entry_slot, state_key
from economics.state import Reservation
from p2pnode.clients.payments import Order, fee_of, reserve_for, send
from p2pnode.clients.till import Till
from p2pnode.content.sources import BytesSource, compute_blob_id
from p2pnode.errors import TransactionFailed
from p2pnode.gateway import bodies
from p2pnode.gateway.services import Limits
from p2pnode.keys import Key
from tests.chain import key_of, reservations_of
from tests.gateway.ledgernet import BEARER, GENESIS, LedgerNet, open_gateway, reason_of
from tests.gateway.raw import build, exchange, parse
from tests.small import OTHER_OWNER, OWNER

DATA = Random(5).randbytes(200_000)
ID = compute_blob_id(BytesSource(DATA), GENESIS.code)
ID_TEXT = build_blob_id_text(ID)
UNITS = GENESIS.code.encoded_units(len(DATA))


def created(net: LedgerNet, **changes: Any) -> dict[str, Any]:
    """Return what storing `DATA` for one epoch answers, by what the ledger says."""
    (entry,) = net.own_entries()
    return {
        "newlyCreated": {
            "blobObject": {
                "blobId": ID_TEXT,
                "certifiedEpoch": 0,
                "contentType": None,
                "deletable": True,
                "encodingType": "RS2",
                "id": "0x" + state_key(entry_slot(ID, entry.reservation)).hex(),
                "registeredEpoch": 0,
                "size": 200_000,
                "storage": {
                    "endEpoch": 1,
                    "id": "0x" + entry.reservation.hex(),
                    "startEpoch": 0,
                    "storageSize": UNITS * STORAGE_UNIT_BYTES,
                },
                **changes,
            },
            "cost": price_of(net.ledger.terms, units=UNITS, epochs=1),
            "resourceOperation": {
                "registerFromScratch": {"encodedLength": GENESIS.code.encoded_bytes(200_000), "epochsAhead": 1}
            },
        }
    }


class TestStoring:
    async def test_answers_as_walrus_does_once_the_ledger_has_it(self, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            answer = await gateway.json("PUT", "/v1/blobs", body=DATA)
            assert answer == created(net)
            assert net.blobs == {ID: DATA}
            assert await gateway.leaves_nothing()

    async def test_stores_an_empty_body_and_one_in_chunks(self, net: LedgerNet, tmp_path: Path) -> None:
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (DATA[:70_000], DATA[70_000:]))
        raw = build("PUT", "/v1/blobs", {"Transfer-Encoding": "chunked"}) + chunks + b"0\r\n\r\n"
        async with open_gateway(net, tmp_path) as gateway:
            (answer,) = parse(await exchange(gateway.port, raw))
            assert json.loads(answer.body) == created(net)
            empty = await gateway.json("PUT", "/v1/blobs")
            assert empty["newlyCreated"]["blobObject"]["size"] == 0

    async def test_waits_for_leave_to_send_where_the_client_does(self, net: LedgerNet, tmp_path: Path) -> None:
        head = build("PUT", "/v1/blobs", {"Content-Length": str(len(DATA)), "Expect": "100-continue"})
        async with (
            open_gateway(net, tmp_path) as gateway,
            await trio.open_tcp_stream("127.0.0.1", gateway.port) as stream,
        ):
            with trio.fail_after(60):
                await stream.send_all(head)
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
                await stream.send_all(DATA)
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")

    @pytest.mark.parametrize(
        ("query", "epochs", "deletable"),
        [
            ("?epochs=3", 3, True),
            ("?permanent=true", 1, False),
            ("?deletable=true&permanent=false&epochs=53", 53, True),
            ("?deletable=false", 1, True),
            (f"?send_object_to={build_key_text(OWNER.public)}&share=false&force=false&reuse_resources=true", 1, True),
            ("?encoding_type=RS2", 1, True),
        ],
    )
    async def test_does_as_the_parameters_say(
        self, query: str, epochs: int, deletable: bool, net: LedgerNet, tmp_path: Path
    ) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            await gateway.json("PUT", "/v1/blobs" + query, body=DATA)
        assert [(entry.end_epoch, entry.deletable) for entry in net.own_entries()] == [(epochs, deletable)]

    async def test_again_costs_nothing_and_longer_extends(self, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            first = (await gateway.json("PUT", "/v1/blobs?epochs=2", body=DATA))["newlyCreated"]["blobObject"]
            paid = net.spent_frost
            again = await gateway.json("PUT", "/v1/blobs?epochs=2", body=DATA)
            assert again == {
                "alreadyCertified": {
                    "blobId": ID_TEXT,
                    "contentType": None,
                    "endEpoch": 2,
                    "event": {"eventSeq": "0", "txDigest": first["id"]},
                    "object": first["id"],
                }
            }
            assert net.spent_frost == paid
            longer = (await gateway.json("PUT", "/v1/blobs?epochs=5", body=DATA))["newlyCreated"]
        extended = {"encodedLength": GENESIS.code.encoded_bytes(200_000), "epochsExtended": 3}
        assert longer["resourceOperation"] == {"reuseAndExtend": extended}
        assert longer["blobObject"]["id"] == first["id"]
        assert [entry.end_epoch for entry in net.own_entries()] == [5]
        assert net.uploads == [ID]

    async def test_uses_storage_that_the_wallet_holds(self, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            await gateway.json("PUT", "/v1/blobs", body=DATA)
            await gateway.json("DELETE", f"/v1/blobs/{ID_TEXT}", BEARER)
            answer = (await gateway.json("PUT", "/v1/blobs", body=DATA[:-1]))["newlyCreated"]
        assert answer["cost"] == 0
        assert answer["resourceOperation"] == {"reuseStorage": {"encodedLength": GENESIS.code.encoded_bytes(199_999)}}


class TestContentType:
    async def test_is_put_on_chain_once(self, net: LedgerNet, tmp_path: Path) -> None:
        headers = {"Content-Type": "image/png"}
        async with open_gateway(net, tmp_path) as gateway:
            answer = await gateway.json("PUT", "/v1/blobs", headers, DATA)
            assert answer == created(net, contentType="image/png")
            assert [entry.content_type for entry in net.own_entries()] == ["image/png"]
            height = net.ledger.height
            again = await gateway.json("PUT", "/v1/blobs", headers, DATA)
            assert again["alreadyCertified"]["contentType"] == "image/png"
            assert net.ledger.height == height
            other = await gateway.json("PUT", "/v1/blobs", {"Content-Type": "text/plain; charset=utf-8"}, DATA)
            assert other["alreadyCertified"]["contentType"] == "text/plain; charset=utf-8"
            plain = await gateway.json("PUT", "/v1/blobs", body=DATA)
            assert plain["alreadyCertified"]["contentType"] == "text/plain; charset=utf-8"

    @pytest.mark.parametrize("name", ["application/octet-stream", "application/x-www-form-urlencoded", ""])
    async def test_that_says_nothing_is_not(self, name: str, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            await gateway.json("PUT", "/v1/blobs", {"Content-Type": name}, DATA)
        assert [entry.content_type for entry in net.own_entries()] == [""]

    @pytest.mark.parametrize("name", ["png", "image/", "image/png\u00e9", "a/" + "b" * 300, "text/html, text/plain"])
    async def test_that_is_none_is_refused(self, name: str, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            reason = await gateway.fails("PUT", "/v1/blobs", {"Content-Type": name}, DATA, status=400)
        assert reason == "INVALID_CONTENT_TYPE"

    async def test_that_cannot_be_paid_for_leaves_the_blob_stored(self, net: LedgerNet, tmp_path: Path) -> None:
        """The wallet has what storing costs, and not a FROST more."""
        async with open_gateway(net, tmp_path / "a") as gateway:
            await gateway.json("PUT", "/v1/blobs", body=DATA)
        balance = net.spent_frost
        poor = LedgerNet()
        left = GENESIS.accounts[0].balance_frost - balance - fee_of(GENESIS, Transfer(key_of(OTHER_OWNER), 1))
        await send(poor, OWNER, to=key_of(OTHER_OWNER), amount_frost=left)
        async with open_gateway(poor, tmp_path / "b") as gateway:
            with pytest.MonkeyPatch.context() as patch:
                poor.install(patch)
                answer = await gateway.json("PUT", "/v1/blobs", {"Content-Type": "image/png"}, DATA)
        assert "newlyCreated" in answer
        assert answer["newlyCreated"]["blobObject"]["contentType"] is None
        assert "not" in answer["newlyCreated"]["notice"]


BAD_QUERIES = [
    "?epochs=0",
    "?epochs=54",
    "?epochs=-1",
    "?epochs=1.5",
    "?epochs=",
    "?epochs=%D9%A1",
    "?epochs=" + "9" * 5_000,
    "?epochs=1&epochs=2",
    "?deletable=true&permanent=true",
    "?permanent=yes",
    "?deletable=True",
    "?share=true",
    "?share=1",
    "?force=true",
    "?reuse_resources=false",
    "?encoding_type=RS1",
    "?quilt_version=v1",
    "?send_object_to=",
    "?send_object_to=0x02a212de6a9dfa3a69e22387acfbafbb1a9e591bd9d636e7895dcfc8de0",
    f"?send_object_to={build_key_text(OTHER_OWNER.public)}",
    "?unknown=1",
    "?%ff=1",
    "?=",
]


class TestRefusing:
    @pytest.mark.parametrize("query", BAD_QUERIES)
    async def test_a_parameter_that_is_unknown_or_cannot_be(self, query: str, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            assert await gateway.fails("PUT", "/v1/blobs" + query, body=DATA, status=400) == "INVALID_PARAMETER"

    async def test_where_there_is_no_wallet(self, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path, owner=None) as gateway:
            assert await gateway.fails("PUT", "/v1/blobs", body=DATA, status=403) == "NO_WALLET"

    async def test_from_elsewhere_without_the_token(self, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path, is_loopback=False) as gateway:
            assert await gateway.fails("PUT", "/v1/blobs", body=DATA, status=401) == "TOKEN"
            assert "newlyCreated" in await gateway.json("PUT", "/v1/blobs", BEARER, DATA)

    async def test_where_the_wallet_has_too_little(self, net: LedgerNet, tmp_path: Path) -> None:
        poor = Key(bytes([0x77]) * 32)
        async with open_gateway(net, tmp_path, owner=poor) as gateway:
            answer = await gateway.ask("PUT", "/v1/blobs", body=DATA)
            assert reason_of(answer, 402) == "UNPAID"
            assert b"0 WAL" in answer.body
            assert await gateway.leaves_nothing()
        assert net.uploads == []

    async def test_more_than_the_limit_before_the_body_is_read(self, net: LedgerNet, tmp_path: Path) -> None:
        head = build("PUT", "/v1/blobs", {"Content-Length": "1001"})
        async with open_gateway(net, tmp_path, limits=Limits(blob_bytes_max=1_000)) as gateway:
            async with await trio.open_tcp_stream("127.0.0.1", gateway.port) as stream:
                with trio.fail_after(60):
                    await stream.send_all(head)
                    (answer,) = parse(await stream.receive_some())
        assert reason_of(answer, 413) == "TOO_LARGE"
        assert json.loads(answer.body)["error"]["details"][0]["metadata"] == {"limitBytes": 1_000}

    async def test_more_than_the_limit_that_was_not_announced(self, net: LedgerNet, tmp_path: Path) -> None:
        raw = build("PUT", "/v1/blobs", {"Transfer-Encoding": "chunked"}) + b"3e9\r\n" + bytes(1_001) + b"\r\n0\r\n\r\n"
        async with open_gateway(net, tmp_path, limits=Limits(blob_bytes_max=1_000)) as gateway:
            (answer,) = parse(await exchange(gateway.port, raw))
            assert reason_of(answer, 413) == "TOO_LARGE"
            assert await gateway.leaves_nothing()
            assert "newlyCreated" in await gateway.json("PUT", "/v1/blobs", body=bytes(1_000))

    async def test_a_body_that_ends_early(self, net: LedgerNet, tmp_path: Path) -> None:
        raw = build("PUT", "/v1/blobs", {"Content-Length": "200000"}) + DATA[:-1]
        async with open_gateway(net, tmp_path) as gateway:
            async with await trio.open_tcp_stream("127.0.0.1", gateway.port) as stream:
                with trio.fail_after(60):
                    await stream.send_all(raw)
                    await stream.send_eof()
                    while await stream.receive_some():
                        pass
            assert (net.spent_frost, net.uploads) == (0, [])
            assert await gateway.leaves_nothing()
            assert "newlyCreated" in await gateway.json("PUT", "/v1/blobs", body=DATA)

    async def test_a_body_that_stalls(self, net: LedgerNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bodies, "STALL_S", 0.2)
        raw = build("PUT", "/v1/blobs", {"Content-Length": "200000"}) + DATA[:-1]
        async with open_gateway(net, tmp_path) as gateway:
            (answer,) = parse(await exchange(gateway.port, raw))
            assert reason_of(answer, 408) == "STALLED"
            assert (net.spent_frost, net.uploads) == (0, [])
            assert await gateway.leaves_nothing()

    async def test_what_does_not_fit_the_spool(
        self, net: LedgerNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("p2pnode.gateway.spool.QUOTA_BYTES", 0)
        async with open_gateway(net, tmp_path) as gateway:
            monkeypatch.setattr("p2pnode.gateway.spool.KEPT_FREE_BYTES", 1 << 60)
            assert await gateway.fails("PUT", "/v1/blobs", body=DATA, status=507) == "NO_SPACE"


class TestManyAtOnce:
    async def test_different_blobs_are_all_stored_with_storage_of_their_own(
        self, net: LedgerNet, tmp_path: Path
    ) -> None:
        sent = [Random(seed).randbytes(50_000) for seed in range(8)]
        answers: list[Any] = []
        async with open_gateway(net, tmp_path) as gateway:

            async def put(body: bytes) -> None:
                answers.append(await gateway.json("PUT", "/v1/blobs", body=body))

            async with trio.open_nursery() as nursery:
                for body in sent:
                    nursery.start_soon(put, body)
        entries = net.own_entries()
        assert sorted(net.blobs.values()) == sorted(sent)
        assert len({entry.reservation for entry in entries}) == len(entries) == 8
        assert all("newlyCreated" in answer for answer in answers)
        assert reservations_of(net.ledger, key_of(OWNER)) == []

    async def test_uploads_go_on_side_by_side(self, net: LedgerNet, tmp_path: Path) -> None:
        net.gate = trio.Event()
        async with open_gateway(net, tmp_path) as gateway, trio.open_nursery() as nursery:
            for seed in range(3):
                nursery.start_soon(gateway.json, "PUT", "/v1/blobs", None, Random(seed).randbytes(1_000))
            with trio.fail_after(60):
                while net.under_way < 3:  # noqa: ASYNC110 - the members in memory have no event for it
                    await trio.sleep(0.01)
            net.gate.set()
        assert len(net.uploads) == net.most_under_way == 3

    async def test_the_same_blob_twice_is_paid_for_once(
        self, net: LedgerNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers: list[str] = []
        net.gate = trio.Event()
        wanted = 0
        plain = Till.blob

        def blob(till: Till, blob_id: BlobId) -> AbstractAsyncContextManager[None]:
            nonlocal wanted
            wanted += 1
            return plain(till, blob_id)

        monkeypatch.setattr(Till, "blob", blob)
        async with open_gateway(net, tmp_path) as gateway:

            async def put() -> None:
                answers.extend(await gateway.json("PUT", "/v1/blobs", body=DATA))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(put)
                nursery.start_soon(put)
                with trio.fail_after(60):
                    while wanted < 2:  # noqa: ASYNC110 - both are to be at the till
                        await trio.sleep(0.01)
                net.gate.set()
        assert sorted(answers) == ["alreadyCertified", "newlyCreated"]
        assert (len(net.own_entries()), net.uploads) == (1, [ID])

    async def test_a_held_reservation_is_filled_by_one_of_them(self, net: LedgerNet, tmp_path: Path) -> None:
        async with open_gateway(net, tmp_path) as gateway:
            await gateway.json("PUT", "/v1/blobs", body=DATA)
            await gateway.json("DELETE", f"/v1/blobs/{ID_TEXT}", BEARER)
            operations: list[str] = []

            async def put(body: bytes) -> None:
                answer = (await gateway.json("PUT", "/v1/blobs", body=body))["newlyCreated"]
                operations.extend(answer["resourceOperation"])

            async with trio.open_nursery() as nursery:
                nursery.start_soon(put, DATA[1:])
                nursery.start_soon(put, DATA[2:])
        assert sorted(operations) == ["registerFromScratch", "reuseStorage"]

    async def test_storage_that_a_late_chain_shows_as_unused_is_not_used_again(
        self, net: LedgerNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown: list[Reservation] = []

        async def reservations(owner: OwnerId) -> list[Reservation]:
            await trio.lowlevel.checkpoint()
            return shown

        monkeypatch.setattr(net, "reservations", reservations)
        async with open_gateway(net, tmp_path) as gateway:
            await gateway.json("PUT", "/v1/blobs", body=DATA)
            (entry,) = net.own_entries()
            shown.append(Reservation(entry.reservation, key_of(OWNER), UNITS, 0, entry.end_epoch))
            answer = (await gateway.json("PUT", "/v1/blobs", body=DATA[1:]))["newlyCreated"]
        assert list(answer["resourceOperation"]) == ["registerFromScratch"]

    async def test_more_than_the_places_are_told_to_come_later(self, net: LedgerNet, tmp_path: Path) -> None:
        net.gate = trio.Event()
        async with (
            open_gateway(net, tmp_path, limits=Limits(uploads_max=1)) as gateway,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(gateway.json, "PUT", "/v1/blobs", None, DATA)
            with trio.fail_after(60):
                while net.under_way < 1:  # noqa: ASYNC110 - the members in memory have no event for it
                    await trio.sleep(0.01)
            answer = await gateway.ask("PUT", "/v1/blobs", body=DATA[1:])
            assert reason_of(answer, 429) == "BUSY"
            assert answer.headers["retry-after"] == "5"
            net.gate.set()

    async def test_a_client_that_leaves_after_its_body_is_there_does_not_stop_it(
        self, net: LedgerNet, tmp_path: Path
    ) -> None:
        net.gate = trio.Event()
        async with open_gateway(net, tmp_path) as gateway:
            async with await trio.open_tcp_stream("127.0.0.1", gateway.port) as stream:
                await stream.send_all(build("PUT", "/v1/blobs", body=DATA))
                with trio.fail_after(60):
                    while net.under_way < 1:  # noqa: ASYNC110 - the members in memory have no event for it
                        await trio.sleep(0.01)
            net.gate.set()
            answer = await gateway.json("PUT", "/v1/blobs", body=DATA)
        assert "alreadyCertified" in answer
        assert net.uploads == [ID]


class TestReadingBack:
    async def test_what_was_stored_is_there_at_once_and_gone_once_deleted(self, net: LedgerNet, tmp_path: Path) -> None:
        target = f"/v1/blobs/{ID_TEXT}"
        async with open_gateway(net, tmp_path) as gateway:
            assert (await gateway.ask("GET", target)).status == 404
            await gateway.json("PUT", "/v1/blobs", {"Content-Type": "image/png"}, DATA)
            found = await gateway.ask("GET", target)
            assert (found.status, found.headers["content-type"], found.body) == (200, "image/png", DATA)
            await gateway.json("DELETE", target, BEARER)
            assert (await gateway.ask("GET", target)).status == 410
            await gateway.json("PUT", "/v1/blobs", body=DATA)
            assert (await gateway.ask("GET", target)).status == 200

    async def test_what_another_keeps_too_stays(self, net: LedgerNet, tmp_path: Path) -> None:
        target = f"/v1/blobs/{ID_TEXT}"
        async with open_gateway(net, tmp_path / "other", owner=OTHER_OWNER) as gateway:
            reserved = await reserve_for(net, OTHER_OWNER, units=UNITS, order=Order(epochs=1))
            async with open_gateway(net, tmp_path / "ours") as ours:
                await ours.json("PUT", "/v1/blobs", body=DATA)
                await net.transact(OTHER_OWNER, CertifyAgain(reserved.reservation, ID, True))
                await ours.json("DELETE", target, BEARER)
                assert (await ours.ask("GET", target)).status == 200
            await gateway.json("DELETE", target, BEARER)
            assert (await gateway.ask("GET", target)).status == 410


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("unfunded", 402),
        ("unfunded_fee", 402),
        ("over_capacity", 507),
        ("too_far_ahead", 409),
        ("wrong_epoch", 503),
        ("no_space", 503),
        ("wrong_nonce", 503),
    ],
)
async def test_what_the_ledger_refuses_is_told_apart(
    code: str, status: int, net: LedgerNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise TransactionFailed(code, fee_frost=0)

    monkeypatch.setattr(net, "transact", refuse)
    async with open_gateway(net, tmp_path) as gateway:
        answer = await gateway.ask("PUT", "/v1/blobs", body=DATA)
    assert reason_of(answer, status) == code.upper()
    assert ("retry-after" in answer.headers) is (status == 503)
