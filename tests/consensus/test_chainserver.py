"""The chain protocol answers what FORMATS.md 15 says, to anyone, within bounds, and outlives whatever it is sent."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing

from economics import cbor
from economics.arguments import Reserve, Transfer
from economics.block import HEADER_BYTES, Block, BlockHeader, Finality
from economics.crypto import NodeId, OwnerId
from economics.errors import Reason
from economics.fields import Fields, sized, split_sized
from economics.light import Boundary, Trusted, follow
from economics.slots import account_key, reservation_slot, state_key
from economics.state import Account
from economics.transactions import SignedTransaction
from economics.tree import Proof
from p2pnode.consensus import chainserver as chainserver_module
from p2pnode.consensus.chainserver import ChainServer
from p2pnode.consensus.executor import Executor
from p2pnode.errors import NetworkError
from tests.chain import reservations_of
from tests.p2pnode.chainnet import CLIENT, serve
from tests.p2pnode.finalchain import GENESIS, Maker, end_epoch, extend, open_executor, sign
from tests.small import OPERATORS, OTHER_OWNER, OWNER
from tests.streams import MemoryStream, as_stream, ask, stream_pair

TO = OwnerId(OTHER_OWNER.public)
SENDER = OwnerId(OWNER.public)
UNKNOWN = bytes(32)
LONG_MS = 1 << 30
Answer = tuple[dict[str, cbor.Value], bytes]


@asynccontextmanager
async def connected(server: ChainServer, peer: NodeId = CLIENT) -> AsyncIterator[MemoryStream]:
    client, ours = stream_pair(peer, GENESIS.members[0].node, window=64 << 20)
    async with trio.open_nursery() as nursery:

        async def handle() -> None:
            with suppress(NetworkError):
                await server.handle(as_stream(ours))

        nursery.start_soon(handle)
        with trio.fail_after(120):
            yield client
        nursery.cancel_scope.cancel()


async def answer(server: ChainServer, op: str, payload: bytes = b"", **fields: cbor.Value) -> Answer:
    async with connected(server) as stream:
        reply, data = await ask(stream, {"op": op, **fields}, payload)
        return reply.header, data


async def refusal(server: ChainServer, op: str, payload: bytes = b"", **fields: cbor.Value) -> Reason:
    header, _ = await answer(server, op, payload, **fields)
    assert header["ok"] is False
    return Reason(str(header["error"]))


def pay(executor: Executor, nonce: int | None = None) -> SignedTransaction:
    return sign(executor.ledger, OWNER, Transfer(TO, 1), nonce=nonce)


@pytest.fixture
def executor(tmp_path: Path) -> Executor:
    return open_executor(tmp_path)


@pytest.fixture
def server(executor: Executor) -> ChainServer:
    return serve(executor)


class TestAnswers:
    async def test_head(self, executor: Executor, server: ChainServer) -> None:
        header, data = await answer(server, "head")
        assert (header["base"], header["epoch"], header["height"], data) == (1, 0, 0, b"")
        made = await extend(executor)
        header, data = await answer(server, "head")
        assert header["height"] == 1
        shown = BlockHeader.decode(data[:HEADER_BYTES], chain_id=GENESIS.chain_id)
        assert shown == made.block.header
        Finality.decode(data[HEADER_BYTES:], chain_id=GENESIS.chain_id).verify(shown, committee=GENESIS.committee)

    async def test_submit_nonce_and_bodies_of_what_waits(self, executor: Executor, server: ChainServer) -> None:
        signed = pay(executor)
        assert (await answer(server, "submit", signed.raw))[0]["hash"] == signed.hash
        assert (await answer(server, "nonce", owner=bytes(SENDER)))[0]["nonce"] == 1
        _, data = await answer(server, "bodies", UNKNOWN + signed.hash)
        assert split_sized(data, "parts") == [b"", signed.raw]
        assert await refusal(server, "submit", pay(executor, nonce=0).raw[:-1]) is Reason.MALFORMED
        assert await refusal(server, "submit", bytes(30_000)) is Reason.TOO_LARGE

    async def test_outcome_and_history(self, executor: Executor, server: ChainServer) -> None:
        first = pay(executor)
        await extend(executor, first)
        second = pay(executor)
        await extend(executor, second)
        header, raw = await answer(server, "outcome", hash=first.hash, wait_ms=0)
        assert (header["code"], header["height"], header["index"], raw) == ("ok", 1, 0, first.raw)
        assert header["fee_frost"] == first.transaction.fee_frost
        header, data = await answer(server, "history", owner=bytes(TO), height=1 << 62, index=0, limit=256)
        assert [row[:3] for row in header["rows"]] == [[2, 0, "ok"], [1, 0, "ok"]]  # type: ignore[union-attr,index]
        assert split_sized(data, "parts") == [second.raw, first.raw]
        header, data = await answer(server, "history", owner=bytes(TO), height=2, index=0, limit=256)
        assert split_sized(data, "parts") == [first.raw]

    async def test_an_outcome_is_waited_for(self, executor: Executor, server: ChainServer) -> None:
        signed = pay(executor)
        async with connected(server) as stream, trio.open_nursery() as nursery:

            async def wait() -> None:
                reply, _ = await ask(stream, {"hash": signed.hash, "op": "outcome", "wait_ms": 20_000})
                assert reply.header["code"] == "ok"

            nursery.start_soon(wait)
            await trio.sleep(0.05)
            await extend(executor)
            await extend(executor, signed)

    async def test_blocks_up_to_one_whose_finality_is_known_and_never_past_a_boundary(
        self, executor: Executor, server: ChainServer
    ) -> None:
        signed = pay(executor)
        maker = Maker(executor)
        for _ in range(2):
            maker.make()
        made = [*maker.made, maker.make(signed)]
        await maker.apply()  # the first two are final by the third
        half_ms = GENESIS.parameters.epoch_ms // 2
        made += [await extend(executor, after_ms=half_ms), await extend(executor, after_ms=half_ms)]
        await extend(executor)
        header, data = await answer(server, "blocks", first=1, count=3)
        assert header["count"] == 3
        parts = split_sized(data, "parts")
        assert parts[:3] == [item.block.encode() for item in made[:3]]
        assert parts[3] == signed.raw
        final = made[2].block.header
        Finality.decode(parts[4], chain_id=GENESIS.chain_id).verify(final, committee=GENESIS.committee)
        header, data = await answer(server, "blocks", first=1, count=256)
        assert header["count"] == 5
        assert (
            Block.decode(split_sized(data, "parts")[4], chain_id=GENESIS.chain_id, transactions_max=1) == made[3].block
        )
        assert await refusal(server, "blocks", first=0, count=9) is Reason.NOT_FOUND
        assert await refusal(server, "blocks", first=7, count=9) is Reason.NOT_FOUND

    async def test_blocks_of_a_long_run_that_became_final_together_part_by_part(
        self, executor: Executor, server: ChainServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After trouble hundreds of blocks become final by one vote: no reply could hold them all."""
        maker = Maker(executor)
        made = [maker.make(pay(executor, nonce=nonce)) for nonce in range(5)]
        await maker.apply()

        async def count_of(first: int, count: int) -> int:
            header, data = await answer(server, "blocks", first=first, count=count)
            last = made[first + int(str(header["count"])) - 2].block.header
            proof = Finality.decode(split_sized(data, "parts")[-1], chain_id=GENESIS.chain_id)
            proof.verify(last, committee=GENESIS.committee)
            assert len(proof.links) == 5 - last.height
            return int(str(header["count"]))

        assert [await count_of(1, 2), await count_of(3, 2), await count_of(5, 2)] == [2, 2, 1]
        with monkeypatch.context() as patched:
            patched.setattr(chainserver_module, "BLOCKS_BYTES_MAX", len(made[0].transactions[0].raw))
            assert await count_of(2, 2) == 1
        monkeypatch.setattr(chainserver_module, "LINKS_MAX", 2)
        assert await count_of(1, 1) == 3

    async def test_headers_downwards(self, executor: Executor, server: ChainServer) -> None:
        made = [(await extend(executor)).block.header for _ in range(3)]
        _, data = await answer(server, "headers", height=1 << 62, count=2)
        assert data == made[2].encode() + made[1].encode()
        _, data = await answer(server, "headers", height=1, count=9)
        assert data == made[0].encode()

    async def test_epochs_that_a_light_client_can_follow(self, executor: Executor, server: ChainServer) -> None:
        for _ in range(3):
            await extend(executor)
            await end_epoch(executor)
        trusted = Trusted(executor.genesis_header, GENESIS.committee)
        fields = Fields((await answer(server, "epochs", first=0))[1], "epochs")
        while fields.left:
            header = BlockHeader.take(fields, chain_id=GENESIS.chain_id)
            finality = Finality.decode(fields.take_sized(4), chain_id=GENESIS.chain_id)
            trusted = follow(trusted, Boundary(header, finality, fields.take_sized(4)), parameters=GENESIS.parameters)
        assert trusted == Trusted(executor.root_header, executor.ledger.committee)
        assert (await answer(server, "epochs", first=3))[1] == b""

    async def test_state_with_its_proofs(self, executor: Executor, server: ChainServer) -> None:
        await extend(executor, pay(executor))
        before = executor.ledger.account(SENDER)
        await extend(executor)
        keys = (account_key(SENDER), account_key(OwnerId(UNKNOWN)))
        fields = Fields((await answer(server, "state", b"".join(keys)))[1], "a state")
        header = BlockHeader.take(fields, chain_id=GENESIS.chain_id)
        Finality.decode(fields.take_sized(4), chain_id=GENESIS.chain_id).verify(header, committee=GENESIS.committee)
        value, proof = fields.take_sized(4), Proof.decode(fields.take_sized(4))
        proof.verify(header.state_root, keys[0], value)
        assert Account.decode(value) == before
        assert fields.take_sized(4) == b""
        Proof.decode(fields.take_sized(4)).verify(header.state_root, keys[1], None)
        for payload in (b"", bytes(33), bytes(65 * 32)):
            assert await refusal(server, "state", payload) is Reason.MALFORMED

    async def test_owned_page_by_page(
        self, executor: Executor, server: ChainServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(chainserver_module, "OWNED_MAX", 2)
        for _ in range(3):
            await extend(executor, sign(executor.ledger, OWNER, Reserve(1, 0, 2)))
        ledger = executor.ledger
        reserved = [state_key(reservation_slot(item.reservation)) for item in reservations_of(ledger, SENDER)]
        stakes = [state_key(item.slot) for item in ledger.stakes_of(SENDER)]  # of the first members
        owned = [*reserved, *stakes]
        header, data = await answer(server, "owned", owner=bytes(SENDER), first=0)
        assert (header["more"], data) == (True, b"".join(owned[:2]))
        header, data = await answer(server, "owned", owner=bytes(SENDER), first=2)
        assert (header["more"], data) == (True, b"".join(owned[2:4]))
        header, data = await answer(server, "owned", owner=bytes(SENDER), first=len(owned) - 1)
        assert (header["more"], data) == (False, owned[-1])

    async def test_snapshot_and_its_chunks(self, executor: Executor, server: ChainServer) -> None:
        await end_epoch(executor)
        boundary, values = executor.head, [value for _, value in executor.ledger.tree.items()]
        assert await refusal(server, "snapshot", epoch=0) is Reason.NOT_FOUND  # nothing proves its root yet
        await extend(executor)
        header, data = await answer(server, "snapshot", epoch=0)
        assert header["chunks"] == 1
        first = BlockHeader.decode(data[:HEADER_BYTES], chain_id=GENESIS.chain_id)
        assert first.parent_hash == boundary.hash
        Finality.decode(data[HEADER_BYTES:], chain_id=GENESIS.chain_id).verify(
            first, committee=executor.ledger.committee
        )
        assert split_sized((await answer(server, "chunk", epoch=0, chunk=0))[1], "parts") == values
        assert await refusal(server, "chunk", epoch=0, chunk=1) is Reason.NOT_FOUND


class TestBounds:
    async def test_bodies_end_where_they_are_large_whether_they_wait_or_are_final(
        self, executor: Executor, server: ChainServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A request of 320 KB for one transaction, 10,000 times, would be answered with 245 MB."""
        final = pay(executor)
        await extend(executor, final)
        waiting = pay(executor)
        await answer(server, "submit", waiting.raw)
        monkeypatch.setattr(chainserver_module, "BLOCKS_BYTES_MAX", 10 * len(final.raw))
        for signed in (final, waiting):
            parts = split_sized((await answer(server, "bodies", signed.hash * 100))[1], "parts")
            assert parts == [signed.raw] * 11 + [b""] * 89
        assert await refusal(server, "bodies", bytes(33)) is Reason.MALFORMED

    async def test_those_who_wait_for_outcomes_are_so_many_and_the_rest_is_answered_at_once(
        self, executor: Executor, server: ChainServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(chainserver_module, "WAITING_MAX", 1)
        monkeypatch.setattr(chainserver_module, "WAIT_MS_MAX", LONG_MS)
        async with connected(server) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(ask, stream, {"hash": UNKNOWN, "op": "outcome", "wait_ms": LONG_MS})
            await until(lambda: server._waiters)
            assert await refusal(server, "outcome", hash=UNKNOWN, wait_ms=LONG_MS) is Reason.NOT_FOUND
            nursery.cancel_scope.cancel()

    async def test_large_replies_are_bounded_together_for_strangers_and_for_each_member(
        self, executor: Executor, server: ChainServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        signed = pay(executor)
        await answer(server, "submit", signed.raw)
        monkeypatch.setattr(chainserver_module, "LARGE_BYTES", 100)
        monkeypatch.setattr(chainserver_module, "SENDING_BYTES_MAX", 2 * len(signed.raw))
        theirs, ours = stream_pair(CLIENT, GENESIS.members[0].node, window=10)  # it asks and does not read
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.handle, as_stream(ours))
            await theirs.send(frame({"op": "bodies", "size": 64}), signed.hash * 2)
            await until(lambda: server._sending)
            assert await refusal(server, "bodies", signed.hash * 2) is Reason.OVER_BUDGET
            assert (await answer(server, "head"))[0]["ok"]
            async with connected(server, GENESIS.members[2].node) as stream:
                reply, _ = await ask(stream, {"op": "bodies"}, signed.hash * 2)
                assert reply.header["ok"]
            nursery.cancel_scope.cancel()
        assert not server._sending

    async def test_what_is_no_message_ends_its_stream_with_a_reason(self, server: ChainServer) -> None:
        for junk, reason in ((bytes(4), Reason.TOO_LARGE), (b"\x00\x00\x00\x01\xff", Reason.MALFORMED)):
            async with connected(server) as stream:
                await stream.send(junk)
                reply, _ = await read_reply(stream)
                assert reply["error"] == reason
                assert await stream.receive_some(1) == b""
        async with connected(server) as stream:
            await stream.send(frame({"op": "submit", "size": 1 << 20}))
            reply, _ = await read_reply(stream)
            assert reply["error"] == Reason.TOO_LARGE
            assert await stream.receive_some(1) == b""


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that has no event."""
    while not condition():
        await trio.lowlevel.checkpoint()


def frame(header: dict[str, cbor.Value]) -> bytes:
    return sized(cbor.encode(header))


async def read_reply(stream: MemoryStream) -> tuple[dict[str, cbor.Value], bytes]:
    size = int.from_bytes(await stream.receive_exactly(4), "big")
    return cbor.decode(await stream.receive_exactly(size)), b""


OPS = ("head", "submit", "nonce", "outcome", "bodies", "blocks", "headers", "epochs", "state", "owned", "history")
NUMBERS = ("first", "count", "height", "limit", "index", "epoch", "chunk")


def values(random: Random) -> Sequence[cbor.Value]:
    numbers = (-1, 0, 1, 2, 255, 256, 1 << 32, (1 << 62) - 1, 1 << 62, (1 << 63) - 1, (1 << 64) - 1)
    found: list[cbor.Value] = [*numbers, True, None, "", "x", b"", UNKNOWN, random.randbytes(32), [], {}, [[1]]]
    return found


async def test_no_request_raises_anything_but_a_refusal(executor: Executor, server: ChainServer) -> None:
    """A handler that raises would only cost its stream; but then an honest peer's request could too."""
    await extend(executor, pay(executor))
    await end_epoch(executor)
    await extend(executor, pay(executor))
    answered = 0
    async with connected(server) as stream:
        for seed in range(600):
            random = Random(seed)
            names = [name for name in (*NUMBERS, "owner", "hash") if random.random() < 0.5]
            fields = {name: random.choice(values(random)) for name in names}
            fields["wait_ms"] = random.choice((0, 1, -1, 20_001, None))
            if random.random() < 0.7:  # as it should be, but for the numbers
                fields |= {"hash": UNKNOWN, "owner": bytes(SENDER)}
                fields |= {name: random.choice(values(random)[1:9]) for name in NUMBERS}
            payload = random.choice((b"", UNKNOWN, pay(executor).raw, random.randbytes(random.randrange(100))))
            reply, _ = await ask(
                stream, {"op": random.choice((*OPS, "snapshot", "chunk", "nothing")), **fields}, payload
            )
            answered += reply.header["ok"] is True
        assert answered > 50
        reply, _ = await ask(stream, {"op": "head"})
        assert reply.header["height"] == 4


async def test_a_member_s_reads_do_not_wait_behind_strangers(executor: Executor, server: ChainServer) -> None:
    await extend(executor)
    for _ in range(chainserver_module.READERS):
        await server._readers.acquire_on_behalf_of(object())
    member = NodeId(OPERATORS[1].public)
    async with connected(server, member) as stream:
        reply, _ = await ask(stream, {"count": 1, "first": 1, "op": "blocks"})
        assert reply.header["count"] == 1
