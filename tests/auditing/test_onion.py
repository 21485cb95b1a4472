"""Onions: found again from the seed alone, revealed once a round, and renewed before they are used up."""

from dataclasses import dataclass, field, replace
from typing import cast

import pytest
import trio
import trio.testing

from economics import beacon
from economics.arguments import CommitBeacon, Operation
from economics.block import BlockHeader
from economics.crypto import Digest, Level, NodeId, digest
from economics.ledger import Code, Ledger
from economics.nodes import NO_COMMITMENT, Beacon
from p2pnode.auditing.onion import LATE_EPOCHS, LAYERS, NOTHING, SPARE, Onion, Onions, Revealer
from p2pnode.consensus.executor import Executor
from tests.chain import Chain, make_header, sign
from tests.small import OPERATORS, make_genesis

GENESIS = make_genesis()
KEY = OPERATORS[0]
NODE = NodeId(KEY.public)
ROUND_MS = GENESIS.parameters.epoch_ms // GENESIS.parameters.challenge_rounds


def make_onion(generation: int) -> Onion:
    return Onion.build(KEY.seed, GENESIS.chain_id, generation)


FIRST, LATER = make_onion(0), make_onion(5)


def layer(onion: Onion, number: int) -> Digest:
    """Return one of an onion's layers, from the tip, 0."""
    return Digest(onion.layers[32 * number : 32 * number + 32])


def make_onions() -> Onions:
    return Onions(seed=KEY.seed, chain_id=GENESIS.chain_id)


def bound(tip: Digest, from_epoch: int = 2, next_tip: Digest = NO_COMMITMENT, next_epoch: int = 0) -> Beacon:
    return Beacon(NODE, tip, from_epoch, next_tip, next_epoch, 0, 0)


class TestOnion:
    def test_each_layer_is_the_reveal_of_the_one_above(self) -> None:
        tip = FIRST.tip
        for left in range(LAYERS, 0, -1):
            assert FIRST.left(tip) == left
            reveal = FIRST.below(tip)
            assert beacon.peel(reveal) == tip
            tip = Digest(reveal)
        assert (FIRST.left(tip), FIRST.below(tip)) == (0, b"")

    def test_it_follows_from_seed_chain_and_generation(self) -> None:
        assert make_onion(0) == FIRST
        others = (
            make_onion(1),
            Onion.build(OPERATORS[1].seed, GENESIS.chain_id, 0),
            Onion.build(KEY.seed, Digest(bytes(32)), 0),
        )
        assert len({FIRST.tip, *(other.tip for other in others)}) == 4
        assert FIRST.left(others[0].tip) is None


class TestOnions:
    def test_who_is_bound_to_nothing_commits_to_the_onion_of_the_epoch(self) -> None:
        onions = make_onions()
        onions.prepare(None, epoch=5)
        assert onions.due(None, epoch=5) == LATER.tip

    @pytest.mark.parametrize("late", [0, LATE_EPOCHS])
    def test_an_onion_that_the_chain_has_is_found_again(self, late: int) -> None:
        held = bound(layer(LATER, 100), 5 + beacon.COMMITMENT_EPOCHS + late)
        onions = make_onions()
        onions.prepare(held, epoch=300)
        assert onions.below(held.tip) == layer(LATER, 101)
        assert onions.due(held, epoch=300) is None

    def test_one_of_another_key_reveals_nothing_and_is_replaced(self) -> None:
        held = bound(Digest(b"\x01" * 32))
        onions = make_onions()
        onions.prepare(held, epoch=5)
        assert (onions.below(held.tip), onions.due(held, epoch=5)) == (NOTHING, LATER.tip)

    @pytest.mark.parametrize(("left", "due"), [(SPARE, None), (SPARE - 1, LATER.tip), (0, LATER.tip)])
    def test_one_that_is_nearly_used_up_is_followed_by_another(self, left: int, due: Digest | None) -> None:
        held = bound(layer(FIRST, LAYERS - left))
        onions = make_onions()
        onions.prepare(held, epoch=5)
        assert onions.due(held, epoch=5) == due
        assert onions.below(held.tip) == (layer(FIRST, LAYERS - left + 1) if left else NOTHING)

    def test_while_the_next_one_waits_no_other_is_wanted_and_both_are_known(self) -> None:
        held = bound(layer(FIRST, LAYERS - 10), 2, LATER.tip, 7)
        onions = make_onions()
        onions.prepare(held, epoch=6)
        assert onions.due(held, epoch=6) is None
        assert onions.below(held.tip) == layer(FIRST, LAYERS - 9)
        assert onions.below(held.next_tip) == layer(LATER, 1)

    def test_the_same_epoch_commits_to_the_same_onion_but_once(self) -> None:
        onions = make_onions()
        onions.prepare(bound(LATER.tip, 7), epoch=5)
        assert onions.due(bound(LATER.tip, 7), epoch=5) is None


@dataclass
class StandIn:
    """In place of an executor: the ledger of a chain made on demand."""

    chain: Chain
    waited: trio.Event = field(default_factory=trio.Event)
    """Somebody waits for the next epoch: what was to be done in this one is done."""

    @property
    def ledger(self) -> Ledger:
        return self.chain.ledger

    @property
    def genesis(self) -> object:
        return GENESIS

    async def wait_epoch_beyond(self, epoch: int) -> None:
        self.waited.set()
        await trio.sleep_forever()


@dataclass
class Run:
    """One node's revealer on a chain, and what it wants of the operator."""

    chain: Chain
    wanted: list[tuple[bytes, Operation]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.executor = StandIn(self.chain)
        self.revealer = Revealer(executor=cast(Executor, self.executor), node=NODE, seed=KEY.seed, want=self.want)

    def want(self, name: bytes, operation: Operation, is_wanted: object) -> None:
        self.wanted.append((name, operation))

    async def keep_bound(self) -> None:
        """Let the node see to its onion in the present epoch."""
        self.wanted.clear()
        self.executor.waited = trio.Event()
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.revealer.run)
                await self.executor.waited.wait()
                nursery.cancel_scope.cancel()

    def header(self, after_ms: int = 1) -> BlockHeader:
        return make_header(self.chain.ledger, [], time_ms=self.chain.time_ms + after_ms)

    def show(self, after_ms: int = 1, *flight: BlockHeader) -> bytes:
        return self.revealer.reveal(self.header(after_ms), flight)

    def apply(self, reveal: bytes, after_ms: int = 1) -> None:
        self.chain.time_ms += after_ms
        header = replace(make_header(self.chain.ledger, [], time_ms=self.chain.time_ms), reveal=reveal)
        self.chain.ledger.apply(header, [])


@pytest.fixture
async def run() -> Run:
    """A member whose commitment of epoch 0 counts, as epoch 2 has begun."""
    made = Run(Chain.begin(GENESIS))
    await made.keep_bound()
    assert made.wanted == [(b"beacon" + FIRST.tip, CommitBeacon(FIRST.tip))]
    assert made.chain.run(KEY, made.wanted[0][1]) is Code.OK
    made.chain.end_epochs(2)
    return made


async def test_the_chain_takes_what_it_reveals(run: Run) -> None:
    seed = run.chain.ledger.system.seed
    assert run.show() == layer(FIRST, 1)
    run.apply(layer(FIRST, 1))
    assert run.chain.ledger.system.seed == digest(Level.SEED, seed + layer(FIRST, 1))
    assert run.show(ROUND_MS) == layer(FIRST, 2)


async def test_in_one_round_nothing_is_revealed_twice(run: Run) -> None:
    run.apply(layer(FIRST, 1))
    assert run.show() == NOTHING


async def test_own_blocks_that_are_not_executed_yet_count(run: Run) -> None:
    shown = replace(run.header(), reveal=run.show())
    assert run.show(2, shown) == NOTHING
    assert run.show(ROUND_MS, shown) == layer(FIRST, 2)


async def test_what_was_lost_with_a_block_is_revealed_again(run: Run) -> None:
    assert run.show() == run.show(ROUND_MS) == layer(FIRST, 1)


async def test_before_it_counts_nothing_is_revealed() -> None:
    run = Run(Chain.begin(GENESIS))
    assert run.show() == NOTHING
    run.chain.block(sign(run.chain.ledger, KEY, CommitBeacon(FIRST.tip)))
    assert run.show() == NOTHING


async def test_a_node_that_is_bound_wants_nothing(run: Run) -> None:
    await run.keep_bound()
    assert run.wanted == []
