"""Many seeds, on all cores, and what they add up to."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from multiprocessing import get_context

from tests.simulation.invariants import Violation
from tests.simulation.scenario import Scenario, draw
from tests.simulation.simulation import Result, Simulation

CHUNK = 10
"""Seeds that a process takes at a time."""


def play(scenario: Scenario, *, log: Callable[[str], None] | None = None) -> Result:
    """Return what a run was like; a broken invariant, or any error of the code under test, is in its `fault`."""
    simulation = Simulation(scenario, log=log)
    try:
        return simulation.run()
    except Violation as violation:
        rule, fault = violation.rule, str(violation)
    except Exception:
        rule, fault = "error", traceback.format_exc(limit=-6)
    result = simulation.result
    result.rule, result.fault, result.trace = rule, fault, simulation.world.trace_hash
    return result


def play_seed(job: tuple[int, int | None]) -> Result:
    seed, members = job
    return play(draw(seed, members))


def play_all(seeds: Iterable[int], *, members: int | None = None, processes: int = 2) -> Iterator[Result]:
    """Yield the results of seeds, in order."""
    jobs = [(seed, members) for seed in seeds]
    if processes == 1 or len(jobs) <= CHUNK:
        yield from map(play_seed, jobs)
        return
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(play_seed, jobs, chunksize=CHUNK)


def add_up(results: Iterable[Result]) -> dict[str, int]:
    """Return the sums of all counts."""
    names = [item.name for item in fields(Result) if item.name not in ("seed", "trace", "fault", "rule")]
    rows = list(results)
    return {name: sum(getattr(row, name) for row in rows) for name in names}
