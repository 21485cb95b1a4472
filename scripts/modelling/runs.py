"""What is run of the economy: the long run of a whole market, and the trials, each from a seed of its own."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from economics.genesis import FROST_PER_WAL
from scripts.modelling.market import Demand
from scripts.modelling.operators import Profile
from scripts.modelling.trials import Cheat, Home, Ring, cheat, home, outage, ring
from scripts.modelling.world import Setting, Snapshot, World

YEAR_SHARDS = (4, 4, 3, 3, 3, 3, 2, 2, 2, 2, 2, 1)
"""n = 31, f = 10: twelve operators begin."""
YEAR_COSTS = (300, 420, 350, 500, 600, 380, 450, 700, 550, 400, 650, 800)
"""What holding one stored unit (64 KiB of all shards together) for an epoch costs each of them, in FROST."""
STANDBY_COSTS = (320, 360, 410, 470, 520, 580)
YEAR_DEMAND = Demand(uploads=4.0, median_bytes=0.5 * 2**30, growth=1.004)
STORED = ((0.0, 0.25, 0.5, 0.75, 0.9), (0.95, 0.98, 0.99, 0.995, 1.0))
UPTIMES = ((0.4, 0.5, 0.6, 0.65, 0.7), (0.75, 0.8, 0.9, 0.95, 0.99))
OUTAGES_HOURS = (24.0, 48.0)
RINGS = (0, 2, 4, 5, 6, 7, 8, 9, 10)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is run."""

    year_epochs: int
    cheat_seeds: int
    cheat_epochs: int
    home_seeds: int
    home_epochs: int
    outage_phases: int
    ring_seeds: int
    ring_epochs: int


FULL = Plan(240, 8, 30, 32, 60, 24, 3, 16)
QUICK = Plan(6, 2, 3, 2, 3, 1, 1, 3)


@dataclass(frozen=True, slots=True)
class Results:
    """All that the plots and the tables show."""

    year: list[Snapshot]
    cheats: list[Cheat]
    homes: list[Home]
    outages: list[Home]
    rings: list[Ring]


def year_setting(seed: int) -> Setting:
    """Return the network of the long run: homes of different costs and lines, customers, delegators, standbys."""
    lines = (0.995, 0.99, 0.98, 0.97)
    profiles = [
        Profile(lines[index % len(lines)], float(cost), fixed_cost_frost=FROST_PER_WAL // 100)
        for index, cost in enumerate((*YEAR_COSTS, *STANDBY_COSTS))
    ]
    first = len(YEAR_SHARDS)
    return Setting(
        members=tuple(zip(profiles[:first], YEAR_SHARDS, strict=True)),
        seed=seed,
        standbys=tuple(profiles[first:]),
        demand=YEAR_DEMAND,
        delegators=20,
        bargains=True,
    )


def run_year(seed: int, epochs: int) -> list[Snapshot]:
    return World(year_setting(seed)).run(epochs)


def run_all(plan: Plan, seed: int) -> Results:
    """Run everything, side by side on all cores; each run has a seed of its own, so their order does not matter."""
    cheats = [
        partial(cheat, stored, guesses=guesses, seed=seed * 1_000 + index, epochs=plan.cheat_epochs)
        for stored in STORED
        for guesses in (False, True)
        for index in range(plan.cheat_seeds)
    ]
    homes = [
        partial(home, uptimes, seed=seed * 1_000 + index, epochs=plan.home_epochs)
        for uptimes in UPTIMES
        for index in range(plan.home_seeds)
    ]
    outages = [
        partial(outage, hours, seed=phase, epochs=8) for hours in OUTAGES_HOURS for phase in range(plan.outage_phases)
    ]
    rings = [
        partial(ring, size, seed=seed * 1_000 + index, epochs=plan.ring_epochs)
        for size in RINGS
        for index in range(plan.ring_seeds)
    ]
    tasks: list[Callable[[], Any]] = [partial(run_year, seed, plan.year_epochs), *homes, *cheats, *rings, *outages]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        done = iter(list(pool.map(_call, tasks)))
    return Results(
        year=next(done),
        homes=[row for _ in homes for row in next(done)],
        cheats=[row for _ in cheats for row in next(done)],
        rings=[next(done) for _ in rings],
        outages=[next(done) for _ in outages],
    )


def _call(task: Callable[[], Any]) -> Any:
    return task()
