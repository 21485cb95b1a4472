"""What challenges cost a node in a day: bytes and CPU of answering and auditing, measured on one round of two nodes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import trio

from economics import cbor
from economics.arguments import ReportAudit
from economics.blob import Header
from economics.committee import Committee, Member
from economics.crypto import Digest, NodeId, OwnerId
from economics.genesis import Genesis, Parameters
from economics.geometry import SEGMENT_BYTES, faulty_max
from economics.ledger import Ledger
from economics.nodes import Outcome, Round, Tally
from economics.transactions import Transaction
from p2pnode.auditing.answers import Answers
from p2pnode.auditing.audit import JITTER, Auditor
from p2pnode.auditing.rounds import Rounds, draw
from p2pnode.coding.codec import Codec
from p2pnode.coding.kernel import load_kernel
from p2pnode.consensus.executor import Executor
from p2pnode.members import Members
from p2pnode.network.frames import Incoming, build_header
from p2pnode.slivers.store import SliverStore
from scripts.benchmarks.timing import MIB, Row, random_bytes
from tests.p2pnode.reseated import Reseated
from tests.small import OPERATORS, make_pairs

NODES = 10
"""Each with one shard, as the testnet of the other figures."""
PARAMETERS = Parameters()


@dataclass
class Direct:
    """In place of `Members`: the request goes straight to the other node's answers, and its bytes are counted."""

    answers: Answers
    peer: NodeId
    sent_bytes: int = 0
    received_bytes: int = 0

    def seated(self, committee: Committee) -> "Direct":
        return self

    async def request(
        self, member: int, header: Mapping[str, cbor.Value], *, size_max: int, payload: bytes
    ) -> tuple[Incoming, bytes]:
        message = Incoming(dict(header), len(payload))
        reply, parts = await self.answers.operations()["challenge"].answer(self.peer, message, payload)
        answer = b"".join(parts)
        self.sent_bytes += len(build_header(header, len(payload))) + len(payload)
        self.received_bytes += len(build_header(reply, len(answer))) + len(answer)
        return Incoming(dict(reply), len(answer)), answer


@dataclass
class StandIn:
    """In place of an executor, which only says what network this is."""

    genesis: Genesis
    advanced: trio.Event = field(default_factory=trio.Event)


@dataclass(frozen=True)
class Side:
    """One of the two nodes."""

    store: SliverStore
    rounds: Rounds


def make_genesis() -> Genesis:
    owner = OwnerId(OPERATORS[0].public)
    keys = [
        *(key.public for key in OPERATORS),
        *(bytes([0xF0 + index]) * 32 for index in range(NODES - len(OPERATORS))),
    ]
    members = tuple(Member(NodeId(key), owner, 1) for key in keys)
    return Genesis("challenges", 0, SEGMENT_BYTES, members, parameters=PARAMETERS)


def bench_challenges(directory: Path) -> list[Row]:
    """Answering and auditing 16 samples of full segments; a day has 24 rounds, in each of which 3 of 10 are asked."""
    genesis = make_genesis()
    codec = Codec(genesis.code, load_kernel())
    sides = [open_side(directory / name, genesis, codec) for name in ("auditor", "target")]
    header = fill([side.store for side in sides], codec)
    ledger = Reseated(Ledger.at_genesis(genesis), {1: genesis.committee.in_epoch(1)}, epoch=1)
    ledger.certify(header)
    ledger.round = Round(1, 1, 50, 0, Digest(b"\x07" * 32), (Tally(1),), ())  # type: ignore[attr-defined]
    both, alone, moved = trio.run(partial(play, sides, ledger.as_ledger(), codec))
    asked = PARAMETERS.challenge_rounds * faulty_max(NODES) / NODES
    audited = PARAMETERS.challenge_rounds * faulty_max(NODES) - asked
    answers = asked * (NODES - 1)
    report = report_bytes(genesis)
    rows: list[Row] = [
        {"what": "one target's answers to all in a round", "CPU-ms": 1000 * (both - alone)},
        {"what": "one auditor's question to one target", "CPU-ms": 1000 * alone, "bytes": sum(moved)},
        {"what": "a report on chain", "bytes": report},
        {
            "what": "a node and day",
            "CPU-s": asked * (both - alone) + audited * alone,
            "KiB asking": audited * sum(moved) / 1024,
            "KiB answering": answers * sum(moved) / 1024,
            "KiB of all reports": PARAMETERS.challenge_rounds * NODES * report / 1024,
        },
    ]
    return rows


def open_side(directory: Path, genesis: Genesis, codec: Codec) -> Side:
    store = SliverStore(directory, codec=codec, chain_id=genesis.chain_id, quota_bytes=1 << 40)
    return Side(store, Rounds(executor=cast(Executor, StandIn(genesis)), store=store))


def fill(stores: list[SliverStore], codec: Codec) -> Header:
    """Give each node the slivers of its shard of as many full segments as are sampled."""
    buffer = memoryview(bytearray(codec.matrix_bytes(SEGMENT_BYTES)))
    data = memoryview(random_bytes(SEGMENT_BYTES + PARAMETERS.challenge_samples * MIB))
    roots = []
    for index in range(PARAMETERS.challenge_samples):
        segment = codec.encode(data[index * MIB : index * MIB + SEGMENT_BYTES], buffer)
        roots.append(segment.root)
        for shard, store in enumerate(stores):
            store.put_segment(segment.metadata, segment.z, make_pairs(segment, [shard]))
    header = Header(codec.code, SEGMENT_BYTES * len(roots), tuple(roots))
    for store in stores:
        store.put_header(header)
    return header


async def play(sides: list[Side], ledger: Ledger, codec: Codec) -> tuple[float, float, tuple[int, int]]:
    """Return the CPU seconds of an audit with the target's work, and without, and the bytes both ways."""
    (auditing, target), members = sides, ledger.committee.members
    for side in sides:
        side.rounds.sheet = draw(ledger, side.store, None)
        side.rounds.began = trio.current_time() - JITTER * side.rounds.window_s
    answers = Answers(rounds=target.rounds, store=target.store, codec=codec, node=members[1].node)
    spent = []
    for _ in range(2):
        direct = Direct(answers, members[0].node)
        auditor = Auditor(
            rounds=auditing.rounds,
            store=auditing.store,
            codec=codec,
            members=cast(Members, direct),
            node=members[0].node,
            want=lambda name, operation, is_wanted: None,
        )
        assert auditing.rounds.sheet is not None
        begun = time.process_time()
        assert await auditor.audit(auditing.rounds.sheet) == [Outcome.OK]
        spent.append(time.process_time() - begun)
    return spent[0], spent[1], (direct.sent_bytes, direct.received_bytes)


def report_bytes(genesis: Genesis) -> int:
    """Return the size of a report of one round."""
    operation = ReportAudit(1, 1, (Outcome.OK,) * faulty_max(NODES))
    sender = OwnerId(OPERATORS[0].public)
    return Transaction(genesis.chain_id, sender, 0, 0, 1, operation).encoded_bytes
