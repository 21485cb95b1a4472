"""Members are asked to attest, and only a signature of their own over this claim counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import trio
import trio.testing

from economics import cbor
from economics.arguments import invalid_message
from economics.blob import BlobId
from economics.crypto import Level, NodeId, Signature, digest
from economics.errors import Reason, Rejected
from p2pnode.clients.attesting import ATTEST_S, Claim, gather
from p2pnode.members import Refused
from p2pnode.network.frames import Incoming
from tests.small import OPERATORS, make_genesis

GENESIS = make_genesis((1, 1, 2, 1, 1))
COMMITTEE = GENESIS.committee
BLOB = BlobId(bytes([7]) * 32)
PROOF = b"a proof"
CLAIM = Claim.before(COMMITTEE, GENESIS, BLOB, PROOF)
MESSAGE = invalid_message(chain_id=GENESIS.chain_id, epoch=0, blob_id=BLOB, proof_hash=digest(Level.PROOF, PROOF))
GOOD = {index: OPERATORS[index].sign(MESSAGE) for index in range(5)}


@dataclass
class Crowd:
    """Members that answer after so many seconds with a signature, or with what they refuse for."""

    answers: Mapping[int, bytes | Exception]
    after_s: Mapping[int, float] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    failed: dict[int, type[Exception]] = field(default_factory=dict)

    async def request(
        self, node: NodeId, header: Mapping[str, cbor.Value], /, *, size_max: int, payload: bytes
    ) -> tuple[Incoming, bytes]:
        index = COMMITTEE.index_of(node)
        assert index is not None
        assert (header, size_max, payload) == ({"blob": BLOB, "epoch": 0, "op": "attest"}, 0, PROOF)
        self.asked.append(index)
        await trio.sleep(self.after_s.get(index, 1.0))
        answer = self.answers[index]
        if isinstance(answer, Exception):
            raise answer
        return Incoming({"index": index, "ok": True, "signature": answer}, 0), b""

    async def gather(self, *, shards: int, own: Mapping[int, Signature] | None = None) -> dict[int, Signature]:
        def fail(node: NodeId, fault: Exception) -> None:
            index = COMMITTEE.index_of(node)
            assert index is not None
            self.failed[index] = type(fault)

        return await gather(CLAIM, COMMITTEE, self.request, own=own or {}, shards=shards, failed=fail)


async def test_only_signatures_that_hold_count(autojump_clock: trio.testing.MockClock) -> None:
    other = Claim.before(COMMITTEE, GENESIS, BLOB, b"another proof")
    answers: dict[int, bytes | Exception] = {
        0: GOOD[0],
        1: OPERATORS[1].sign(other.message),
        2: GOOD[3],
        3: Refused(Reason.UNPROVEN, "", retry=False),
        4: bytes(63),
    }
    crowd = Crowd(answers)
    assert await crowd.gather(shards=COMMITTEE.n) == {0: GOOD[0]}
    assert crowd.failed == {1: Rejected, 2: Rejected, 3: Refused, 4: Rejected}


async def test_enough_shards_end_it_and_the_own_count(autojump_clock: trio.testing.MockClock) -> None:
    crowd = Crowd(GOOD, after_s={1: 5.0, 2: 1.0, 3: 5.0, 4: 5.0})
    assert await crowd.gather(shards=3, own={0: GOOD[0]}) == {0: GOOD[0], 2: GOOD[2]}
    assert sorted(crowd.asked) == [1, 2, 3, 4]
    assert trio.current_time() == 1.0
    assert crowd.failed == {}


async def test_who_says_nothing_is_not_waited_for_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    crowd = Crowd(GOOD, after_s={4: 1_000.0})
    assert set(await crowd.gather(shards=COMMITTEE.n)) == {0, 1, 2, 3}
    assert trio.current_time() == ATTEST_S
