"""What must come true once the wires behave, each from a hard start: L1, L2, L4 to L7. L3 is in test_crashes."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from economics.block import Proposal
from economics.genesis import Parameters
from economics.votes import Kind, SignedVote, VoteCertificate
from tests.simulation.byzantine import Style
from tests.simulation.scenario import Outage, Scenario
from tests.simulation.simulation import Simulation

PARAMETERS = Parameters(timeout_ms=500, block_interval_ms=50, heartbeat_ms=1_000)
FOUR = Scenario(seed=1, shards=(1, 1, 1, 1), parameters=PARAMETERS, views=3, chaos_ms=4_000)


def play_with(scenario: Scenario, route: Callable[[Simulation, int, int, object], int | None]) -> Simulation:
    """Return the simulation after both acts; `route` has the wires in the first."""
    simulation = Simulation(scenario)
    simulation.network.route = lambda sender, receiver, payload: route(simulation, sender, receiver, payload)
    simulation.run()
    return simulation


def test_views_go_on_while_nothing_becomes_final() -> None:
    """L1: no proposal arrives for a minute."""

    def route(simulation: Simulation, sender: int, receiver: int, payload: object) -> int | None:
        return None if isinstance(payload, Proposal) else 20

    simulation = Simulation(replace(FOUR, views=1_000, chaos_ms=60_000))
    simulation.network.route = lambda sender, receiver, payload: route(simulation, sender, receiver, payload)
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


@pytest.mark.parametrize("seed", range(8))
def test_a_certified_split_heals(seed: int) -> None:
    """L7: for view 1 one half holds only the notarization, the other only the nullification; the next view is final."""
    late_ms = 4 * PARAMETERS.timeout_ms

    def route(simulation: Simulation, sender: int, receiver: int, payload: object) -> int | None:
        if not isinstance(payload, SignedVote | VoteCertificate):
            return 10
        vote = payload.vote if isinstance(payload, SignedVote) else payload
        if vote.view == 1 and vote.kind is Kind.NOTARIZE:
            return max(10, late_ms - simulation.world.now_ms) if receiver >= 2 else None
        if vote.view == 1 and vote.kind is Kind.NULLIFY:
            return None if receiver >= 2 else 10 if simulation.world.now_ms > late_ms + 100 else late_ms
        return 10

    simulation = Simulation(replace(FOUR, seed=seed, shards=(1, 1, 1, 1), views=2, chaos_ms=late_ms * 3))
    names = [f"{seed}-{index}" for index in range(2)]
    assert names
    simulation.network.route = lambda sender, receiver, payload: route(simulation, sender, receiver, payload)
    split: list[tuple[bool, bool]] = []

    def look() -> None:
        for shell in simulation.shells.values():
            held = [record for record in shell.disk.log if isinstance(record, VoteCertificate) and record.view == 1]
            kinds = {record.kind for record in held} | {record.kind for record in _waiting(shell.disk)}
            split.append((Kind.NOTARIZE in kinds, Kind.NULLIFY in kinds))

    simulation.world.after(late_ms + 60, look)
    result = simulation.run()
    assert split == [(False, True), (False, True), (True, False), (True, False)]
    assert result.honest_leaders <= 3


def _waiting(disk: object) -> list[VoteCertificate]:
    return [record for record in disk._pending if isinstance(record, VoteCertificate)]  # type: ignore[attr-defined]


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


def test_memory_is_bounded_while_there_is_no_quorum_for_hours() -> None:
    """L6: two of four are away for five hours, and a liar votes for views that nobody has reached all the while."""
    hours = 5 * 3_600_000
    scenario = replace(
        FOUR,
        byzantine=frozenset({3}),
        outages=(Outage(2_000, 1, hours),),
        style=Style(lie=100, replay=50),
        views=1_000_000,
        chaos_ms=hours,
    )
    simulation = Simulation(scenario)
    sizes: list[int] = []
    for hour in (1, 4):
        simulation.world.after(
            hour * 3_600_000, lambda: sizes.append(size_of(simulation.shells[0].engine) + size_of(simulation.shells[2].engine))
        )
    simulation.run()
    assert len(sizes) == 2
    assert sizes[1] < sizes[0] * 1.5 + 2_000
