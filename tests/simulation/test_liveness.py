"""What must come true once the wires behave, each from a hard start: L1, L2, L4 to L7. L3 is in test_crashes."""

from dataclasses import replace

import pytest

from economics.block import Proposal
from economics.effects import Ask
from economics.genesis import Parameters
from economics.votes import Kind, SignedVote
from tests.simulation.batch import play
from tests.simulation.byzantine import Style
from tests.simulation.invariants import Slot, Violation
from tests.simulation.scenario import Forgets, Loss, Outage, Scenario, draw_mixed
from tests.simulation.simulation import Simulation

PARAMETERS = Parameters(timeout_ms=500, block_interval_ms=50, heartbeat_ms=1_000)
FOUR = Scenario(seed=1, shards=(1, 1, 1, 1), parameters=PARAMETERS, views=3, chaos_ms=4_000)


def test_views_go_on_while_nothing_becomes_final() -> None:
    """L1: no proposal arrives for a minute."""

    simulation = Simulation(replace(FOUR, views=1_000, chaos_ms=60_000))
    simulation.network.route = lambda sender, receiver, payload: None if isinstance(payload, Proposal) else 20
    before: list[list[int]] = []
    for at_ms in (5_000, 30_000, 59_000):
        simulation.world.after(
            at_ms, lambda: before.append([shell.engine.view for shell in simulation.shells.values()])
        )
    simulation.run()
    assert len(before) == 3
    assert all(low < high for low, high in zip(before[0], before[1], strict=True))
    assert all(low < high for low, high in zip(before[1], before[2], strict=True))
    assert simulation.result.nullified >= 5


def test_who_was_away_catches_up_over_epochs_and_votes() -> None:
    """L4: a member misses several epochs; the second act ends when it has all of them and has voted."""
    parameters = replace(PARAMETERS, epoch_ms=2_000)
    scenario = replace(
        FOUR, parameters=parameters, outages=(Outage(10, 2, 100_000),), views=40, chaos_ms=20_000, transactions=5
    )
    simulation = Simulation(scenario)
    result = simulation.run()
    assert result.epochs >= 4
    assert simulation.shells[2].life == 2


@pytest.mark.parametrize("seed", range(6))
def test_a_certified_split_heals(seed: int) -> None:
    """L7: of view 1 one half holds only the notarization, the other only the nullification; what follows is final."""
    late_ms = 4 * PARAMETERS.timeout_ms
    simulation = Simulation(replace(FOUR, seed=seed, views=1_000, chaos_ms=late_ms + 100))

    def route(sender: int, receiver: int, payload: object) -> int | None:
        """Votes of view 1 are late for all: each half gets the one kind, when everybody has nullified."""
        if isinstance(payload, Ask):
            return None
        if not isinstance(payload, SignedVote) or payload.vote.view != 1:
            return 10
        hears = payload.vote.kind is (Kind.NOTARIZE if receiver >= 2 else Kind.NULLIFY)
        return max(10, late_ms - simulation.world.now_ms) if hears else None

    split: list[tuple[bool, bool]] = []

    def look() -> None:
        for shell in simulation.shells.values():
            known = shell.engine._branches
            kinds = (Kind.NOTARIZE, Kind.NULLIFY)
            split.append((known.certificate(kinds[0], 1) is not None, known.certificate(kinds[1], 1) is not None))

    simulation.network.route = route
    simulation.world.after(late_ms + 1, look)
    result = simulation.run()
    assert split == [(False, True), (False, True), (True, False), (True, False)]
    assert result.honest_leaders <= 4


def size_of(thing: object, seen: set[int] | None = None) -> int:
    """Return how many objects hang on this one, through containers and attributes."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, str | bytes | int | type) or callable(thing):
        return 0
    seen.add(id(thing))
    if isinstance(thing, dict):
        return 1 + sum(size_of(key, seen) + size_of(value, seen) for key, value in thing.items())
    if isinstance(thing, list | tuple | set | frozenset):
        return 1 + sum(size_of(item, seen) for item in thing)
    names = [*getattr(thing, "__dict__", ()), *getattr(type(thing), "__slots__", ())]
    return 1 + sum(size_of(getattr(thing, name, None), seen) for name in names)


def test_memory_is_bounded_while_there_is_no_quorum() -> None:
    """L6: three of seven are away for an hour; a liar votes for views that nobody has reached, and replays."""
    hour_ms = 3_600_000
    scenario = replace(
        FOUR,
        shards=(1,) * 7,
        byzantine=frozenset({6}),
        outages=tuple(Outage(1_000, member, 2 * hour_ms) for member in (3, 4, 5)),
        style=Style(vote=0, lead=0, spread=0, lie=8, replay=4),
        views=1_000_000,
        chaos_ms=hour_ms,
    )
    simulation = Simulation(scenario)
    sizes: list[int] = []
    views: list[int] = []

    def look() -> None:
        sizes.append(sum(size_of(simulation.shells[index].engine) for index in range(3)))
        views.append(simulation.shells[0].engine.view)

    for at_ms in (hour_ms // 4, hour_ms - 1_000):
        simulation.world.after(at_ms, look)
    simulation.run()
    assert views[0] == views[1]
    assert sizes[1] < sizes[0] * 1.25 + 500


@pytest.mark.parametrize("seed", range(6))
def test_who_lost_its_disk_votes_two_epochs_after_it_caught_up_though_an_idle_one_has_two_blocks(seed: int) -> None:
    """L4: one at the cut-off, then the boundary; a bound on own votes is two views above what others tell.

    It catches up in the epoch in which it lost its disk, or in the next.
    """
    parameters = replace(PARAMETERS, timeout_ms=120, heartbeat_ms=1_000, epoch_ms=1_000)
    loss = Loss(2, (2, 1), 450, Forgets.ALL)
    scenario = replace(
        FOUR, seed=seed, parameters=parameters, losses=(loss,), epochs=1, transactions=0, views=1_000, chaos_ms=7_000
    )
    simulation = Simulation(scenario)
    seen: list[Slot] = []
    """The last vote known of it, now and then after it forgot."""

    def look() -> None:
        if simulation.shells[loss.node].life == 2:
            seen.append(simulation.watch.last_votes[loss.node])

    for at_ms in range(0, scenario.chaos_ms, 50):
        simulation.world.after(at_ms, look)
    simulation.run()
    forgotten, *later = dict.fromkeys(seen)
    assert forgotten[0] == 2
    assert later[0][0] in (3, 4, 5)


@pytest.mark.parametrize("seed", [78, 327, 422, 491])
def test_the_chain_does_not_wait_for_who_is_off_or_has_no_seat(seed: int) -> None:
    """L2 and L4 where a disk is lost in the calm (327, 491), or before it (78), or a seat of epochs of 50 ms (422)."""
    result = play(draw_mixed(seed))
    assert result.fault is None
    assert not result.is_unbounded


@pytest.mark.parametrize("seed", [118, 172])
def test_seats_go_on_changing_hands_where_nobody_says_that_it_has_taken_over(seed: int) -> None:
    """All invariants hold with three stages of a handover, and restarts and lost disks in them."""
    mixed = draw_mixed(seed)
    parameters = replace(mixed.parameters, missed_epochs_max=1)
    simulation = Simulation(replace(mixed, report_ms=1_000_000_000, parameters=parameters))
    assert simulation.run().reseated == 3
    ledgers = [shell.chain.ledger for shell in simulation.shells.values()]
    assert {len(ledger.handover.stages) for ledger in ledgers} == {3}
    assert len(ledgers[0].sources(0)) == 3


def test_who_has_no_seat_and_never_asks_is_missed() -> None:
    """The bound of L4 is one: 422 with a node that does not catch up."""
    simulation = Simulation(draw_mixed(422))
    simulation.shells[7].behind = lambda member: None  # type: ignore[method-assign]
    with pytest.raises(Violation, match=r"L4: nodes \[7\] have not caught up"):
        simulation.run()


def test_a_chain_that_stands_still_in_the_calm_is_missed() -> None:
    """The bound of L2 is one where committees change, too: no vote for a block ever arrives."""
    simulation = Simulation(draw_mixed(422))
    deliver = simulation.network.deliver

    def lose(sender: int, receiver: int, payload: object) -> None:
        if not isinstance(payload, SignedVote) or payload.vote.kind is Kind.NULLIFY:
            deliver(sender, receiver, payload)

    simulation.network.deliver = lose
    with pytest.raises(Violation, match="L2: 8 honest leaders after the calm began have not sufficed"):
        simulation.run()
