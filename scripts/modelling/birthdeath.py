"""What Monte Carlo cannot see: how long until too many shards are missing at once, by birth-death processes.

The state is the number of missing units. A unit is one holder with its mean number of shards; units fail independently
and are repaired side by side. Outages and disasters stay outside, as does a seat lost while its holder still fetches.
"""

import math
from dataclasses import dataclass

from scripts.modelling.churn import DISK_REPLACED_HOURS, HOURS_PER_YEAR
from scripts.modelling.scenario import ABSENCE_HOURS, SEAT_LOST_HOURS, Scenario


@dataclass(frozen=True, slots=True)
class BirthDeath:
    """Rates an hour: `births[k]` from k missing to k + 1, `deaths[k]` from k to k - 1 (`deaths[0]` is 0). The state
    len(births), one more than may be missing, ends it."""

    births: list[float]
    deaths: list[float]

    def hours_to_end(self) -> float:
        """Return the mean time from none missing until too many are.

        From k to k + 1 it takes h(k) = 1/b(k) + h(k-1) d(k)/b(k): wait, and come back if it went down first. All terms
        are positive, so nothing cancels; infinity beyond what a float holds.
        """
        hours, total = 0.0, 0.0
        for birth, death in zip(self.births, self.deaths, strict=True):
            hours = 1 / birth + hours * death / birth
            total += hours
        return total

    def per_year(self) -> float:
        """Return the probability that it ends within a year, once it has run for a while."""
        return -math.expm1(-HOURS_PER_YEAR / self.hours_to_end())

    def stationary(self) -> list[float]:
        """Return the share of time with 0, 1, ... missing, as long as it has not ended; each must be able to heal."""
        logs = [0.0]
        for birth, death in zip(self.births, self.deaths[1:], strict=False):
            logs.append(logs[-1] + math.log(birth) - math.log(death))
        weights = [math.exp(value - max(logs)) for value in logs]
        return [weight / sum(weights) for weight in weights]


def failures(scenario: Scenario) -> list[tuple[float, float]]:
    """Return the ways in which a holder's shards go missing: (times an hour, hours until rebuilding begins)."""
    churn = scenario.churn
    return [
        (churn.departures_per_hour, SEAT_LOST_HOURS),
        (churn.disk_deaths_per_hour, DISK_REPLACED_HOURS),
        (churn.absences_per_hour(ABSENCE_HOURS), 0.0),
    ]


def data_loss(scenario: Scenario, *, healing_to_the_end: bool) -> BirthDeath:
    """Return the process of lost data: it ends when more than 2f shards are missing, as a blob then does.

    With at most f missing, everything heals. Beyond that it depends on what is missing: primaries need S secondaries,
    and seats are given away by a quorum only. So one process heals to the end and gives too little loss, the other not
    at all once more than f shards are missing and gives too much; the truth lies between.
    """
    holders = len(scenario.holder_weights())
    rate = sum(times for times, _ in failures(scenario))
    wait = sum(times * hours for times, hours in failures(scenario)) / rate
    tolerated = int(2 * scenario.code.f * holders / scenario.n)
    healed = tolerated if healing_to_the_end else int(scenario.code.f * holders / scenario.n)
    deaths = [0.0] * (tolerated + 1)
    for missing in range(1, healed + 1):
        deaths[missing] = missing / (wait + fetch_hours(scenario, missing, holders))
    return BirthDeath([(holders - missing) * rate for missing in range(tolerated + 1)], deaths)


def fetch_hours(scenario: Scenario, receivers: int, holders: int) -> float:
    """Return how long a holder takes to rebuild its shards while so many do: its downlink or the others' uplinks."""
    available = scenario.churn.availability
    supply = (holders - receivers) * scenario.uplink_bytes_per_hour * available
    speed = min(scenario.downlink_bytes_per_hour, supply / receivers) * available
    return scenario.rebuild_bytes(scenario.n / holders) / speed


def halting(scenario: Scenario) -> BirthDeath:
    """Return the process of empty seats: it ends when holders of more than f shards have gone, for without a quorum no
    seat is given to anyone else."""
    holders = len(scenario.holder_weights())
    tolerated = int(scenario.code.f * holders / scenario.n)
    rate = scenario.churn.departures_per_hour
    return BirthDeath(
        [(holders - gone) * rate for gone in range(tolerated + 1)],
        [gone / SEAT_LOST_HOURS for gone in range(tolerated + 1)],
    )


def expected_rebuilt(scenario: Scenario) -> float:
    """Return the bytes sent to rebuild shards, per byte of blob and year."""
    holders = len(scenario.holder_weights())
    rate = sum(times for times, _ in failures(scenario)) * HOURS_PER_YEAR
    return rate * holders * scenario.rebuild_bytes(scenario.n / holders) / scenario.stored_bytes


def exceeded(process: BirthDeath, holders: int, share: float) -> float:
    """Return the probability that the process ends at once when each unit vanishes with probability `share`."""
    tolerated = len(process.births) - 1
    total = 0.0
    for missing, weight in enumerate(process.stationary()):
        total += weight * _binomial_above(holders - missing, share, tolerated - missing)
    return total


def _binomial_above(trials: int, probability: float, limit: int) -> float:
    """Return P(X > limit) of a binomial, summed from its smallest terms."""
    log_p, log_q = math.log(probability), math.log1p(-probability)
    logs = (
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * log_p + (trials - k) * log_q
        for k in range(trials, limit, -1)
    )
    return math.fsum(math.exp(value) for value in logs)
