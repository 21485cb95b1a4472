"""Four members with real engines, ledgers, stores and servers: what they find of each other is on the chain."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from economics.arguments import Certify
from economics.crypto import NodeId
from economics.ledger import Ledger
from economics.nodes import Marks
from p2pnode.adversary import MANNERS, Behaviour
from p2pnode.auditing.answers import Answers
from p2pnode.auditing.audit import Auditor
from p2pnode.auditing.onion import Onion
from p2pnode.auditing.rounds import Rounds
from p2pnode.consensus.executor import Executor
from p2pnode.consensus.participant import Participant
from p2pnode.members import Members
from p2pnode.network.host import Network
from p2pnode.protocols import storage_protocol
from tests.chain import Chain
from tests.p2pnode.challenged import put_all
from tests.p2pnode.finalchain import sign
from tests.p2pnode.server import Server
from tests.p2pnode.village import GENESIS as PLAIN
from tests.p2pnode.village import Place, World, network
from tests.small import OPERATORS, OWNER, certify, make_blob, make_codec, make_statement, reserve

PACE = replace(PLAIN.parameters, epoch_ms=200_000, challenge_rounds=200, challenge_samples=4, heartbeat_ms=250)
"""Rounds of a second: answers count for half of one."""
GENESIS = replace(PLAIN, parameters=PACE)
BLOB = make_blob(GENESIS.code, 2_500)
LIAR = 3


@dataclass
class Live:
    """In place of a chain made on demand: that of a member."""

    executor: Executor

    @property
    def ledger(self) -> Ledger:
        return self.executor.ledger


def serve(world: World, path: Path, own: int, participant: Participant) -> None:
    """Have a member store its part of the blob, answer and audit."""
    node = NodeId(OPERATORS[own].public)
    manner = MANNERS[Behaviour.LIAR if own == LIAR else Behaviour.HONEST]
    chain = cast(Chain, Live(participant.executor))
    server = Server(path, genesis=GENESIS, key=OPERATORS[own], manner=manner, chain=chain)
    put_all(server.store, GENESIS.committee.shards_of(own), [BLOB])
    codec = make_codec(GENESIS)
    rounds = Rounds(executor=participant.executor, store=server.store)
    answers = Answers(rounds=rounds, store=server.store, codec=codec, node=node)
    server.serving.frozen = rounds.frozen
    server.server.operations = {**server.serving.operations(), **answers.operations()}
    world.served[node, storage_protocol(GENESIS)] = server.server.handle
    place = cast(Network, Place(world, node))
    auditor = Auditor(
        rounds=rounds,
        store=server.store,
        codec=codec,
        members=Members(place, GENESIS, storage_protocol(GENESIS), None),
        node=node,
        want=participant.operator.want,
    )
    world.nursery.start_soon(rounds.run)
    world.nursery.start_soon(auditor.run)


@asynccontextmanager
async def challenged_network(path: Path) -> AsyncIterator[list[Participant]]:
    """Run four members that owe a blob."""
    async with network(path, range(4), GENESIS) as (world, nodes):
        for own, participant in enumerate(nodes):
            serve(world, path / f"{own}.store", own, participant)
        first = nodes[0]
        await first.intake.submit(reserve(GENESIS))
        certificate = certify(GENESIS, make_statement(GENESIS, BLOB.header), (0, 1, 2))
        await first.intake.submit(sign(first.executor.ledger, OWNER, Certify(certificate), nonce=1))
        yield nodes


async def test_the_honest_pass_a_liar_is_bad_and_all_are_bound_to_an_onion(tmp_path: Path) -> None:
    async with challenged_network(tmp_path) as nodes:
        executor = nodes[0].executor
        while not is_told(executor.ledger.standing.marks):
            await executor.advanced.wait()
        ledger = executor.ledger
        assert ledger.blob(BLOB.header.blob_id) is not None
        assert all(row.bad == 0 for row in ledger.standing.marks[:LIAR])
        assert ledger.standing.marks[LIAR].passed == 0
        for key in OPERATORS[:4]:
            bound = ledger.beacon(NodeId(key.public))
            assert bound is not None
            assert (bound.tip, bound.from_epoch) == (Onion.build(key.seed, GENESIS.chain_id, 0).tip, 2)


def is_told(marks: tuple[Marks, ...]) -> bool:
    """Return whether the liar was caught, and two others have passed."""
    return marks[LIAR].bad > 0 and sum(row.passed > 0 for row in marks[:LIAR]) >= 2
