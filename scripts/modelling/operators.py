"""Those who run nodes: what a node costs, when its home line is up, what it really stores, what it says of others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from economics.blob import BlobId
from economics.crypto import Level, NodeId, OwnerId, digest
from economics.nodes import Outcome
from p2pnode.keys import Key
from scripts.modelling.blocks import Onion, make_key

HOUR_MS = 3_600_000
ABSENCE_MEDIAN_HOURS = 2.0
ABSENCE_SIGMA = 1.7
"""Log-normal, as in the durability model: one absence in fourteen is longer than a day."""
ABSENCE_HOURS_MAX = 48.0
"""Whoever is away for longer is not what a slash must spare."""
SLOW_SHARE = 0.01
"""Answers that come too late although the node is up: the household is watching a film."""
ONION_LENGTH = 1_024


@dataclass(frozen=True, slots=True)
class Habit:
    """What a node does with what it owes."""

    stored: float = 1.0
    """The share of the sampled things that it really holds."""
    guesses: bool = False
    """Whether it answers at random where it lacks one, instead of not at all."""
    in_ring: bool = False
    """Whether it calls those of its ring good, and all others liars."""


HONEST = Habit()


@dataclass(frozen=True, slots=True)
class Profile:
    """What an operator is like. Costs are in FROST: what its owner would sell WAL for."""

    uptime: float = 0.995
    unit_cost_frost: float = 500.0
    """Of holding one stored unit for an epoch."""
    fixed_cost_frost: int = 0
    """Of an epoch, whatever it stores: power, the line."""
    megabytes_per_s: float = 5.0
    """What its line takes in when it gains shards."""
    habit: Habit = HONEST


class Line:
    """Up and down by turns: times up are exponential, absences log-normal and bounded."""

    def __init__(self, uptime: float, random: Random, *, start_ms: int) -> None:
        self._random = random
        self._up_hours = mean_absence_hours() * uptime / (1 - uptime) if uptime < 1 else math.inf
        self.is_up = True
        self._turn_ms = float(start_ms)
        self.outages: list[tuple[float, float]] = []
        """(from, to) in ms, begun so far."""
        if self._up_hours < math.inf and random.random() > uptime:
            self._turn()
        else:
            self._stay_up()

    def _stay_up(self) -> None:
        self.is_up = True
        hours = self._random.expovariate(1 / self._up_hours) if self._up_hours < math.inf else math.inf
        self._turn_ms += hours * HOUR_MS

    def _turn(self) -> None:
        if not self.is_up:
            self._stay_up()
            return
        self.is_up = False
        begun = self._turn_ms
        hours = ABSENCE_HOURS_MAX + 1
        while hours > ABSENCE_HOURS_MAX:
            hours = self._random.lognormvariate(math.log(ABSENCE_MEDIAN_HOURS), ABSENCE_SIGMA)
        self._turn_ms += hours * HOUR_MS
        self.outages.append((begun, self._turn_ms))

    def at(self, time_ms: int) -> bool:
        """Return whether it is up; times never go back."""
        while self._turn_ms <= time_ms:
            self._turn()
        return self.is_up


class Outage(Line):
    """Up but for one outage."""

    def __init__(self, *, from_ms: int, hours: float) -> None:
        self.outages = [(from_ms, from_ms + hours * HOUR_MS)]

    def at(self, time_ms: int) -> bool:
        ((begun, ended),) = self.outages
        return not begun <= time_ms < ended


def mean_absence_hours() -> float:
    """Return the mean of the log-normal below its bound."""
    mu, sigma, bound = math.log(ABSENCE_MEDIAN_HOURS), ABSENCE_SIGMA, math.log(ABSENCE_HOURS_MAX)

    def phi(x: float) -> float:
        return 0.5 * (1 + math.erf(x / math.sqrt(2)))

    return math.exp(mu + sigma**2 / 2) * phi((bound - mu) / sigma - sigma) / phi((bound - mu) / sigma)


class Operator:
    """One node with its owner."""

    def __init__(self, name: str, profile: Profile, line: Line) -> None:
        self.name = name
        self.profile = profile
        self.line = line
        self.key: Key = make_key("node", name)
        self.node = NodeId(self.key.public)
        self.account = OwnerId(self.key.public)
        """Pays for what the node itself sends."""
        self.owner = OwnerId(make_key("owner", name).public)
        self.onion = Onion(digest(Level.MESSAGE, self.key.seed), ONION_LENGTH)
        self.synced_ms = 0
        """When it holds the shards that it gained with this committee."""

    def holds(self, blob_id: BlobId, segment: int, shard: int) -> bool:
        """Return whether it kept its slivers of a segment: always the same ones, so much of all."""
        if self.profile.habit.stored >= 1:
            return True
        drawn = digest(Level.MESSAGE, self.key.seed + blob_id + segment.to_bytes(4, "big") + bytes([shard]))
        return int.from_bytes(drawn[:4], "big") < self.profile.habit.stored * 2**32

    def says(self, others: Sequence["Operator"], seen: Sequence[Outcome]) -> tuple[Outcome, ...]:
        """Return its report of what an auditor sees of these challenged operators."""
        ring = self.profile.habit.in_ring
        judged = zip(others, seen, strict=True)
        return tuple(self._judge(other, outcome) if ring else outcome for other, outcome in judged)

    def _judge(self, other: "Operator", seen: Outcome) -> Outcome:
        return Outcome.OK if other.profile.habit.in_ring else Outcome.BAD
