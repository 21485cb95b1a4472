"""Trials of single questions in a small network: does cheating pay, is an honest home slashed, what can a ring do."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from scripts.modelling.market import Demand
from scripts.modelling.operators import Habit, Outage, Profile
from scripts.modelling.world import TIME_MS, Setting, Snapshot, World

SHARDS = 16
"""Of a trial's network: f = 5, one shard a node."""
TRIED_MAX = 5
"""As many nodes as may fail together are not honest, or not dedicated; the others are both."""
TRIAL_DEMAND = Demand(uploads=0, median_bytes=8 * 2**30, sigma=0.3, shared=0, initial_blobs=20)
"""Two thirds of 1 TiB are sold for all epochs of a trial: 21,000 segments."""
DEDICATED = Profile(uptime=0.995)


@dataclass(frozen=True, slots=True)
class Cheat:
    """What came of storing a part, in one run."""

    stored: float
    guesses: bool
    profit: float
    """Of all epochs, as a share of the mean honest member's."""
    slashed: float
    """Of the stake that it began with."""


@dataclass(frozen=True, slots=True)
class Home:
    """How one honest home fared."""

    uptime: float
    epochs: int
    slashes: int
    longest_hours: float
    """Of its outages."""
    income: float
    """As a share of the mean dedicated member's."""


@dataclass(frozen=True, slots=True)
class Ring:
    """What members that lie together did to the others, in one run."""

    size: int
    """0 for the network without a ring, that the others are compared with."""
    profit_frost: float
    """Of a member of the ring."""
    honest_profit_frost: float
    honest_slashed: float
    """The share that honest members lost of the stake that they began with."""


def trial(profiles: Sequence[Profile], *, seed: int) -> Setting:
    """Return a network of these and of dedicated nodes, one shard each."""
    others = [DEDICATED] * (SHARDS - len(profiles))
    return Setting(members=tuple((profile, 1) for profile in (*profiles, *others)), seed=seed, demand=TRIAL_DEMAND)


def run_on(world: World, epochs: int) -> list[Snapshot]:
    """Run one epoch in which blobs come, and return the next ones."""
    world.step()
    return world.run(epochs)


def cheat(stored: Sequence[float], *, guesses: bool, seed: int, epochs: int) -> list[Cheat]:
    """Run members that store these shares of what they owe beside honest ones."""
    profiles = [Profile(DEDICATED.uptime, habit=Habit(share, guesses=guesses)) for share in stored]
    world = World(trial(profiles, seed=seed))
    run = run_on(world, epochs)
    honest = mean(_profit(run, operator.name) for operator in world.operators[len(stored) :])
    stake = world.setting.parameters.stake_frost_per_shard
    return [
        Cheat(share, guesses, _profit(run, operator.name) / honest, _slashed(run, operator.name) / stake)
        for share, operator in zip(stored, world.operators, strict=False)
    ]


def home(uptimes: Sequence[float], *, seed: int, epochs: int) -> list[Home]:
    """Run honest homes of these uptimes beside dedicated nodes."""
    world = World(trial([Profile(uptime) for uptime in uptimes], seed=seed))
    run = run_on(world, epochs)
    dedicated = mean(_income(run, operator.name) for operator in world.operators[len(uptimes) :])
    return [
        Home(
            uptime,
            epochs,
            sum(1 for snapshot in run if snapshot.books[operator.name].slashed_frost),
            max((ended - begun for begun, ended in operator.line.outages), default=0.0) / 3_600_000,
            _income(run, operator.name) / dedicated,
        )
        for uptime, operator in zip(uptimes, world.operators, strict=False)
    ]


def outage(hours: float, *, seed: int, epochs: int) -> Home:
    """Run an honest node that is away once, for so long, from a moment of the third epoch that the seed names."""
    world = World(trial([Profile(1.0)], seed=seed))
    begun = TIME_MS + 2 * 86_400_000 + seed * 3_600_000
    tried = world.operators[0]
    tried.line = Outage(from_ms=begun, hours=hours)
    run = run_on(world, epochs)
    dedicated = mean(_income(run, operator.name) for operator in world.operators[1:])
    slashes = sum(1 for snapshot in run if snapshot.books[tried.name].slashed_frost)
    return Home(1.0, epochs, slashes, hours, _income(run, tried.name) / dedicated)


def ring(size: int, *, seed: int, epochs: int) -> Ring:
    """Run a ring that stores nothing, calls its own good and all others liars."""
    liar = Profile(DEDICATED.uptime, habit=Habit(0.0, in_ring=True))
    world = World(trial([liar] * size, seed=seed))
    run = run_on(world, epochs)
    stake = world.setting.parameters.stake_frost_per_shard
    liars, honest = world.operators[:size], world.operators[size:]
    return Ring(
        size,
        mean(_profit(run, operator.name) for operator in liars) if liars else 0.0,
        mean(_profit(run, operator.name) for operator in honest),
        mean(_slashed(run, operator.name) for operator in honest) / stake,
    )


def _profit(run: Sequence[Snapshot], name: str) -> int:
    return sum(snapshot.books[name].profit_frost for snapshot in run)


def _income(run: Sequence[Snapshot], name: str) -> int:
    return sum(snapshot.books[name].income_frost for snapshot in run)


def _slashed(run: Sequence[Snapshot], name: str) -> int:
    return sum(snapshot.books[name].slashed_frost for snapshot in run)
