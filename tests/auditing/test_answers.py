"""Answers: right ones to members that audit, about what is sampled and held; anything else is refused."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from economics import cbor
from economics.challenges import answer
from economics.crypto import NodeId
from economics.errors import Reason
from p2pnode.auditing import answers as answers_module
from p2pnode.auditing.answers import Asked, build_request, parse_request
from p2pnode.coding.codec import EncodedSegment, Kind
from p2pnode.network.frames import Incoming
from tests.p2pnode.challenged import (
    AUDITOR,
    BLOBS,
    CODE,
    GENESIS,
    OTHER,
    ROOTS,
    SEED,
    TARGET,
    WINDOW_S,
    Node,
    make_ledger,
    make_round,
)
from tests.refusals import reason
from tests.slivers.test_store import path_of
from tests.small import OPERATORS, UPLOADER, make_blob
from tests.streams import ask

OWN = GENESIS.committee.shards_of(AUDITOR)
SHARDS = GENESIS.committee.shards_of(TARGET)
ALL = [(shard, root) for shard in SHARDS for root in ROOTS]
SEGMENTS = {segment.root: segment for blob in BLOBS for segment in blob.segments}


def node_of(index: int) -> NodeId:
    return NodeId(OPERATORS[index].public)


def symbol(segment: EncodedSegment, row: int, column: int) -> bytes:
    start = (row * CODE.n + column) * segment.z
    return bytes(segment.matrix[start : start + segment.z])


def right_answer(shard: int, root: bytes, own: int) -> bytes:
    """Return the answer of FORMATS.md 17, from the whole matrix."""
    segment = next(segment for key, segment in SEGMENTS.items() if key == root)
    pair, crossing = CODE.pair_of_shard(shard, root), CODE.pair_of_shard(own, root)
    return answer(
        SEED,
        target=node_of(TARGET),
        root=segment.root,
        shard=shard,
        auditor_shard=own,
        row=symbol(segment, pair, CODE.n - 1 - crossing),
        column=symbol(segment, crossing, CODE.n - 1 - pair),
    )


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path, TARGET)


async def request(
    node: Node, asked: Sequence[Asked] = ALL, *, peer: NodeId | None = None, **changes: cbor.Value
) -> tuple[Incoming, bytes]:
    header: dict[str, cbor.Value] = {"epoch": 1, "number": 1, "op": "challenge", "shard": OWN[0]}
    async with node.server.stream(node_of(AUDITOR) if peer is None else peer) as stream:
        return await ask(stream, {**header, **changes}, build_request(asked))


async def refusal(
    node: Node, asked: Sequence[Asked] = ALL, *, peer: NodeId | None = None, **changes: cbor.Value
) -> Reason:
    reply, _ = await request(node, asked, peer=peer, **changes)
    assert reply.header["ok"] is False
    return Reason(reply.text("error"))


@pytest.mark.parametrize("own", OWN)
async def test_every_sampled_sliver_is_answered_for_every_auditor_s_shard(node: Node, own: int) -> None:
    node.begin()
    reply, payload = await request(node, shard=own)
    assert reply.header == {"ok": True, "size": 32 * len(ALL)}
    assert payload == b"".join(right_answer(shard, root, own) for shard, root in ALL)


async def test_answers_come_in_the_order_of_the_questions(node: Node) -> None:
    node.begin()
    asked = ALL[::-3]
    assert (await request(node, asked))[1] == b"".join(right_answer(shard, root, OWN[0]) for shard, root in asked)


async def test_nobody_but_the_holder_of_the_shard_may_ask(node: Node) -> None:
    node.begin()
    for peer in (NodeId(UPLOADER.public), node_of(OTHER)):
        assert await refusal(node, peer=peer) is Reason.UNKNOWN_SIGNER


async def test_another_round_than_the_current_one_is_refused(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "LAG_S", 0.05)
    assert await refusal(node) is Reason.WRONG_EPOCH
    node.begin()
    assert await refusal(node, number=2) is Reason.WRONG_EPOCH
    assert await refusal(node, epoch=0) is Reason.WRONG_EPOCH
    assert await refusal(node, epoch=2) is Reason.WRONG_EPOCH


async def test_a_round_that_others_saw_begin_is_waited_for(node: Node) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.rounds.run)
        async with node.server.stream(node_of(AUDITOR)) as stream:
            header: dict[str, cbor.Value] = {"epoch": 1, "number": 1, "op": "challenge", "shard": OWN[0]}
            nursery.start_soon(ask_later, node)
            reply, _ = await ask(stream, header, build_request(ALL))
        nursery.cancel_scope.cancel()
    assert reply.header["ok"] is True


async def ask_later(node: Node) -> None:
    await trio.testing.wait_all_tasks_blocked()
    node.executor.begin(make_ledger())


async def test_only_what_is_sampled_of_own_shards_is_answered(node: Node) -> None:
    node.begin(make_ledger(None, BLOBS[0]))
    assert await refusal(node, [(SHARDS[0], BLOBS[1].header.roots[0])]) is Reason.WRONG_INDEX
    assert await refusal(node, [(OWN[0], ROOTS[0])]) is Reason.WRONG_INDEX
    assert await refusal(node, [(65_535, ROOTS[0])]) is Reason.WRONG_INDEX


async def test_who_is_not_challenged_answers_nothing(node: Node) -> None:
    node.begin(make_ledger(make_round(epoch=1, targets=(OTHER,))))
    assert await refusal(node) is Reason.WRONG_INDEX


async def test_a_lost_sliver_makes_the_answer_incomplete(node: Node) -> None:
    node.begin()
    node.drop(ROOTS[2], SHARDS[1])
    assert await refusal(node) is Reason.INCOMPLETE
    rest = [one for one in ALL if one != (SHARDS[1], ROOTS[2])]
    assert (await request(node, rest))[0].header["ok"] is True


async def test_a_rotten_sliver_makes_it_incomplete_too_and_is_dropped(node: Node) -> None:
    node.begin()
    path = path_of(node.store, ROOTS[0], SHARDS[0])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert await refusal(node) is Reason.INCOMPLETE
    assert (node.store.corrupt_slivers, path.exists()) == (1, False)


async def test_a_blob_that_never_came_makes_it_incomplete(node: Node) -> None:
    unknown = make_blob(CODE, 10, seed=9)
    node.begin(make_ledger(None, *BLOBS, unknown))
    assert await refusal(node, [(SHARDS[0], unknown.header.roots[0])]) is Reason.INCOMPLETE


async def test_an_auditor_asks_a_few_times_a_round_for_each_of_its_shards(node: Node) -> None:
    node.begin()
    for _ in range(answers_module.ATTEMPTS_MAX):
        assert (await request(node))[0].header["ok"] is True
    assert await refusal(node) is Reason.OVER_BUDGET
    assert (await request(node, shard=OWN[1]))[0].header["ok"] is True
    node.begin(make_ledger(make_round(2, epoch=1)))
    assert (await request(node, number=2))[0].header["ok"] is True


async def test_a_sliver_is_read_once_for_all_auditors(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.begin()
    await request(node)
    for root in ROOTS:
        for shard in SHARDS:
            node.drop(root, shard)
    reply, payload = await request(node, shard=OWN[1])
    assert payload == b"".join(right_answer(shard, root, OWN[1]) for shard, root in ALL)
    assert reply.header["ok"] is True


def test_a_request_names_each_sliver_once_and_not_too_many() -> None:
    assert parse_request(build_request(ALL)) == ALL
    for wrong in (b"", build_request(ALL)[:-1], build_request([ALL[0], ALL[0]])):
        assert reason(parse_request, wrong) is Reason.MALFORMED


async def test_sampled_slivers_are_not_served_in_the_window_and_served_after_it(node: Node) -> None:
    node.begin()
    shard, root = ALL[0]
    index = CODE.pair_of_shard(shard, root)
    read: dict[str, cbor.Value] = {
        "count": 1,
        "first": 0,
        "index": index,
        "kind": int(Kind.PRIMARY),
        "op": "sliver",
        "root": root,
    }
    async with node.server.stream() as stream:
        reply, _ = await ask(stream, read)
        assert (reply.header["ok"], reply.header["error"], reply.header["retry"]) == (False, "over_budget", True)
        leaves, _ = await ask(stream, {**read, "count": 0})
        assert leaves.header["ok"] is True
        node.rounds.began -= WINDOW_S
        reply, _ = await ask(stream, read)
        assert reply.header["ok"] is True
