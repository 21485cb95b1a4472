"""A client among members of whom some lie: it goes on with the others, in bounded time and memory."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from economics import cbor
from economics.arguments import Transfer
from economics.crypto import OwnerId
from economics.errors import Reason
from economics.slots import account_key
from p2pnode.clients import chainclient as chainclient_module
from p2pnode.clients import chainreader as chainreader_module
from p2pnode.clients.chainclient import ChainClient
from p2pnode.consensus.executor import Executor
from p2pnode.errors import NetworkError, TooSlow
from p2pnode.network.frames import Incoming
from tests.p2pnode.chainnet import ChainNet, Handler, liar, serve, silent
from tests.p2pnode.finalchain import GENESIS, extend, open_executor, sign
from tests.small import OTHER_OWNER, OWNER

SENDER = OwnerId(OWNER.public)
PAY = Transfer(OwnerId(OTHER_OWNER.public), 3)
Said = tuple[dict[str, cbor.Value], bytes]


@asynccontextmanager
async def asking(
    path: Path, handlers: Sequence[Handler | None], *, late_ms: int = 1_000
) -> AsyncIterator[tuple[ChainClient, ChainNet]]:
    """Run a client that asks these members in their order."""
    async with trio.open_nursery() as nursery:
        net = ChainNet(handlers, nursery)
        client = ChainClient(members=net.members(), cache=path / "trusted", clock_ms=lambda: GENESIS.time_ms + late_ms)
        client._order = [member.node for member in GENESIS.members]
        yield client, net
        nursery.cancel_scope.cancel()


@pytest.fixture
async def executor(tmp_path: Path) -> Executor:
    executor = open_executor(tmp_path / "node")
    await extend(executor, sign(executor.ledger, OWNER, PAY))
    await extend(executor)
    return executor


async def test_a_value_is_taken_from_the_first_member_that_proves_it(executor: Executor, tmp_path: Path) -> None:
    honest = serve(executor)

    def forged(message: Incoming, payload: bytes) -> Said:
        if message.header["op"] != "state":
            return {}, b""
        return {}, b"".join(honest._state(payload)[1]).replace(SENDER, bytes(32))

    async with asking(tmp_path, [None, liar(forged), honest.handle]) as (client, net):
        assert await client.account(SENDER) == executor.ledger.account(SENDER)
        assert net.asked[-1] == 2


async def test_what_a_member_hides_is_had_from_another(executor: Executor, tmp_path: Path) -> None:
    """Old blocks prove what once was true: that a blob is not there yet, or that money is still there."""
    newer = open_executor(tmp_path / "newer")
    hour_ms = 3_600_000
    await extend(newer, sign(newer.ledger, OWNER, PAY), after_ms=hour_ms)
    await extend(newer)
    hiding, honest = serve(executor).handle, serve(newer).handle
    async with asking(tmp_path, [hiding, honest], late_ms=hour_ms + 1_000) as (client, _):
        assert (await client.head()).time_ms == newer.head.time_ms
        client._order = [member.node for member in GENESIS.members]
        assert (await client.prove([account_key(SENDER)])).header.time_ms == newer.head.time_ms
    async with asking(tmp_path, [hiding], late_ms=hour_ms + 1_000) as (client, _):  # the chain may have stopped
        assert (await client.head()).time_ms == executor.head.time_ms


async def test_a_member_that_falls_silent_is_passed_over(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chainreader_module, "ANSWER_S", 4.0)
    async with asking(tmp_path, [silent, serve(executor).handle]) as (client, _):
        assert (await client.head()).height == 2


@pytest.mark.parametrize("lie", [0, 5, 1 << 61])
async def test_one_liar_does_not_choose_the_nonce(lie: int, executor: Executor, tmp_path: Path) -> None:
    honest = serve(executor).handle
    async with asking(tmp_path, [liar(lambda _, __: ({"nonce": lie}, b"")), honest, honest]) as (client, _):
        assert await client._next_nonce(SENDER) == 1


async def test_what_a_liar_says_of_an_outcome_is_passed_over(executor: Executor, tmp_path: Path) -> None:
    signed = sign(executor.ledger, OWNER, PAY)
    await extend(executor, signed)
    other = sign(executor.ledger, OTHER_OWNER, PAY)
    told: dict[str, cbor.Value] = {"code": "ok", "fee_frost": 1, "height": 9, "index": 0}
    lies: list[Said] = [(told, b"junk"), (told, other.raw), ({**told, "code": 5}, signed.raw), ({}, signed.raw)]
    for lie in lies:
        async with asking(tmp_path, [liar(lambda _, __, lie=lie: lie), serve(executor).handle]) as (client, _):  # type: ignore[misc]
            outcome = await client.wait(signed.hash, deadline_s=20)
            assert (outcome.code, outcome.height) == ("ok", 3)


async def test_members_that_answer_at_once_are_not_asked_without_a_pause(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    asked = 0

    def unknown(message: Incoming, payload: bytes) -> Said:
        nonlocal asked
        asked += 1
        return {"detail": "", "error": str(Reason.NOT_FOUND), "ok": False, "retry": True}, b""

    async with asking(tmp_path, [liar(unknown)] * 4) as (client, _):
        with pytest.raises(TooSlow):
            await client.wait(GENESIS.chain_id, deadline_s=10)
    assert asked <= 4 * (10 / chainreader_module.PAUSE_S + 2)


async def test_a_list_that_never_ends_is_a_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chainclient_module, "OWNED_MAX", 100)
    endless = liar(lambda _, __: ({"more": True}, bytes(32)))
    async with asking(tmp_path, [endless]) as (client, _):
        with pytest.raises(NetworkError):
            await client.owned(SENDER)


async def test_a_member_that_lacks_what_is_asked_does_not_keep_an_old_answer_from_being_had(
    executor: Executor, tmp_path: Path
) -> None:
    hour_ms = 3_600_000
    lacking = liar(lambda _, __: ({"detail": "", "error": str(Reason.NOT_FOUND), "ok": False, "retry": True}, b""))
    async with asking(tmp_path, [serve(executor).handle, lacking, lacking, lacking], late_ms=hour_ms) as (client, _):
        assert (await client.head()).time_ms == executor.head.time_ms


@pytest.mark.parametrize("behind", ["a liar", "a silent member", "nobody"])
async def test_a_transaction_reaches_a_member_that_passes_it_on(
    behind: str, executor: Executor, tmp_path: Path
) -> None:
    """One of four may lie: that one has taken it is not enough."""
    servers = [serve(executor), serve(executor)]
    bad = {"a liar": liar(lambda _, __: ({}, b"")), "a silent member": silent, "nobody": None}[behind]
    async with asking(tmp_path, [bad, *(server.handle for server in servers)]) as (client, _):
        signed = sign(executor.ledger, OWNER, PAY)
        await client.submit(signed)
        assert servers[0]._waiting(signed.hash) is not None


async def test_members_that_are_silent_hold_up_no_nonce(executor: Executor, tmp_path: Path) -> None:
    async with asking(tmp_path, [silent, serve(executor).handle], late_ms=1_000) as (client, _):
        with trio.fail_after(50):
            assert await client._next_nonce(SENDER) == 1
