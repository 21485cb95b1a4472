"""Many seeds, on all cores, and what they add up to."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from multiprocessing import get_context

from tests.simulation.invariants import Unbounded, Violation
from tests.simulation.scenario import Scenario, draw
from tests.simulation.simulation import Result, Simulation

Draw = Callable[[int], Scenario]
CHUNK = 10
"""Seeds that a process takes at a time."""


def play(scenario: Scenario, *, log: Callable[[str], None] | None = None) -> Result:
    """Return what a run was like; a broken invariant, or any error of the code under test, is in its `fault`."""
    simulation = Simulation(scenario, log=log)
    try:
        return simulation.run()
    except Unbounded:
        simulation.result.is_unbounded = True
        return simulation.result
    except Violation as violation:
        rule, fault = violation.rule, str(violation)
    except Exception:
        rule, fault = "error", traceback.format_exc(limit=-6)
    result = simulation.result
    result.rule, result.fault, result.trace = rule, fault, simulation.world.trace_hash
    return result


def play_drawn(job: tuple[Draw, int]) -> Result:
    draws, seed = job
    return play(draws(seed))


def play_all(seeds: Iterable[int], *, draws: Draw = draw, processes: int = 2) -> Iterator[Result]:
    """Yield the results of seeds, in order; `draws` makes a scenario of each."""
    jobs = [(draws, seed) for seed in seeds]
    if processes == 1 or len(jobs) <= CHUNK:
        yield from map(play_drawn, jobs)
        return
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(play_drawn, jobs, chunksize=CHUNK)


def add_up(results: Iterable[Result]) -> dict[str, int]:
    """Return the sums of all counts."""
    names = [item.name for item in fields(Result) if item.name not in ("seed", "trace", "fault", "rule")]
    rows = list(results)
    return {name: sum(getattr(row, name) for row in rows) for name in names}
