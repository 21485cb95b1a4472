"""Monte Carlo: networks that lose, rebuild and hand over shards, an hour at a time, many side by side in arrays.

A row is a network, a column the seat of one holder with its shards. Nothing is drawn but from the generator that is
given, so a seed gives one run. Where this departs from the real node, it is to the worse: a shard counts as lost until
its last segment is rebuilt, and a holder that lost its seat takes its slivers with it.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from scripts.modelling.churn import (
    DISASTER_SHARE,
    DISASTERS_PER_YEAR,
    DISK_REPLACED_HOURS,
    HOURS_PER_YEAR,
    REGION_OUTAGE_MEDIAN_HOURS,
    REGION_OUTAGE_SIGMA,
    REGION_OUTAGES_PER_YEAR,
    REGION_SHARES,
)
from scripts.modelling.scenario import EPOCH_HOURS, MISSED_EPOCHS_MAX, Scenario

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

NEVER = np.inf


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened in all networks of a scenario together."""

    network_years: float
    losses: list[float]
    """Years from a network's beginning to each loss: fewer than P shards whole. Then it begins anew, with all."""
    halts: list[float]
    """Years from a network's beginning to each halt: the holders of more than f shards have gone for good before their
    seats could be given to others, so no quorum is left to do so and nothing heals any more. Then it begins anew."""
    intact_min: int
    """The fewest shards whose data was whole, on disks of nodes that come back; below P a blob is lost."""
    unreadable: float
    """The share of the time in which fewer than P whole shards could be reached."""
    stalled: float
    """The share in which holders of fewer than q shards could be reached: nothing is certified, no epoch ends."""
    rebuilt_per_stored: float
    """Bytes sent to rebuild shards, per byte of blob and year."""
    moved_per_stored: float
    """Bytes sent by holders that leave with notice, per byte of blob and year."""
    missing: Integers
    """Network-hours by the number of shards that were not whole, 0 to n."""


@dataclass(slots=True)
class Fleet:
    """The state of all networks at one hour. Arrays of shape (networks, holders), unless said otherwise."""

    scenario: Scenario
    rng: np.random.Generator
    weight: Integers = field(init=False)
    """Shards of each holder, shape (holders,)."""
    online: Bools = field(init=False)
    toggles_at: Floats = field(init=False)
    departs_at: Floats = field(init=False)
    disk_dies_at: Floats = field(init=False)
    region: Integers = field(init=False)
    gone: Bools = field(init=False)
    """Departed for good, and still holding its seat."""
    left: Floats = field(init=False)
    """Shards that are still to be rebuilt."""
    ready_at: Floats = field(init=False)
    """When rebuilding may begin."""
    gained: Bools = field(init=False)
    """Rebuilding for the first time: it has not reported that it holds what it owes."""
    answered: Floats = field(init=False)
    """Hours of this epoch in which challenges were answered, weighed by the part of its shards that it held."""
    missed: Integers = field(init=False)
    """Epochs missed in a row."""
    leaving: Bools = field(init=False)
    """Its seat is another's from the next epoch on."""
    outage_until: Floats = field(init=False)
    """Shape (networks, regions)."""
    asked: Integers = field(init=False)
    """Hours of this epoch in which challenges were asked, shape (networks,)."""
    epoch_age: Integers = field(init=False)
    """Hours since this epoch began, shape (networks,)."""
    shard_bytes: Floats = field(init=False)
    """What rebuilding one shard of each holder costs, shape (holders,)."""

    def __post_init__(self) -> None:
        self.weight = np.array(self.scenario.holder_weights(), dtype=np.int64)
        networks, shape = self.scenario.networks, (self.scenario.networks, len(self.weight))
        for name in ("toggles_at", "departs_at", "disk_dies_at", "left", "ready_at", "answered"):
            setattr(self, name, np.zeros(shape))
        for name in ("online", "gone", "gained", "leaving"):
            setattr(self, name, np.zeros(shape, dtype=np.bool_))
        for name in ("region", "missed"):
            setattr(self, name, np.zeros(shape, dtype=np.int64))
        self.outage_until = np.zeros((networks, len(REGION_SHARES)))
        self.asked, self.epoch_age = np.zeros((2, networks), dtype=np.int64)
        self.shard_bytes = np.array([self.scenario.rebuild_bytes(count) / count for count in self.weight.tolist()])
        self.begin(np.ones(networks, dtype=np.bool_), 0.0)

    def begin(self, rows: Bools, now: float) -> None:
        """Set these networks to all shards whole."""
        seats = np.broadcast_to(rows[:, None], self.online.shape)
        self._seat(seats, now)
        self.online[seats] = self.rng.random(int(seats.sum())) < self.scenario.churn.availability
        self.left[seats] = 0.0
        self.gained[seats] = False
        self.outage_until[rows] = 0.0
        self.asked[rows] = 0
        self.epoch_age[rows] = 0

    def _seat(self, seats: Bools, now: float) -> None:
        """Give these seats to new nodes, which are online and hold nothing yet."""
        count = int(seats.sum())
        if not count:
            return
        churn, rng = self.scenario.churn, self.rng
        self.online[seats] = True
        self.toggles_at[seats] = now + rng.lognormal(np.log(churn.session_median), churn.session_sigma, count)
        self.departs_at[seats] = now + rng.exponential(churn.life_hours, count)
        self.disk_dies_at[seats] = now + rng.exponential(1 / churn.disk_deaths_per_hour, count)
        self.region[seats] = rng.choice(len(REGION_SHARES), count, p=REGION_SHARES)
        self.gone[seats] = False
        self.left[seats] = np.broadcast_to(self.weight, self.left.shape)[seats]
        self.ready_at[seats] = now
        self.gained[seats] = True
        self.answered[seats] = 0.0
        self.missed[seats] = 0
        self.leaving[seats] = False

    def come_and_go(self, now: float) -> None:
        """End sessions and absences, and begin and end outages of regions."""
        churn, rng = self.scenario.churn, self.rng
        ended = self.toggles_at <= now
        self.online ^= ended
        for up, median, sigma in (
            (True, churn.session_median, churn.session_sigma),
            (False, churn.absence_median, churn.absence_sigma),
        ):
            begun = ended & (self.online == up)
            self.toggles_at[begun] += rng.lognormal(np.log(median), sigma, int(begun.sum()))
        if not self.scenario.correlated:
            return
        for row in np.flatnonzero(rng.random(self.scenario.networks) < REGION_OUTAGES_PER_YEAR / HOURS_PER_YEAR):
            region = rng.integers(len(REGION_SHARES))
            hours = rng.lognormal(np.log(REGION_OUTAGE_MEDIAN_HOURS), REGION_OUTAGE_SIGMA)
            self.outage_until[row, region] = max(self.outage_until[row, region], now + hours)

    def lose(self, now: float) -> int:
        """Let lives, disks and disasters take their toll; return the shards that leavers have handed over."""
        churn, rng = self.scenario.churn, self.rng
        departed = self.departs_at <= now
        noticed = departed & (self.left == 0)
        noticed[noticed] = rng.random(int(noticed.sum())) < churn.announced
        if self.scenario.correlated:
            for row in np.flatnonzero(rng.random(self.scenario.networks) < DISASTERS_PER_YEAR / HOURS_PER_YEAR):
                departed[row] |= rng.random(departed.shape[1]) < DISASTER_SHARE
        self._vanish(departed & ~noticed)
        dead = self.disk_dies_at <= now
        count = int(dead.sum())
        self.left[dead] = np.broadcast_to(self.weight, dead.shape)[dead]
        self.ready_at[dead] = now + rng.exponential(DISK_REPLACED_HOURS, count)
        self.disk_dies_at[dead] = now + rng.exponential(1 / churn.disk_deaths_per_hour, count)
        self._seat(noticed, now)
        self.left[noticed] = 0.0
        self.gained[noticed] = False
        return int((noticed * self.weight).sum())

    def _vanish(self, seats: Bools) -> None:
        if not seats.any():
            return
        self.gone[seats] = True
        self.online[seats] = False
        self.left[seats] = np.broadcast_to(self.weight, self.left.shape)[seats]
        for times in (self.toggles_at, self.departs_at, self.disk_dies_at, self.ready_at):
            times[seats] = NEVER

    def held(self) -> Integers:
        """Return the whole shards of each holder."""
        if self.scenario.whole_blob:
            return np.where(self.left == 0, self.weight, 0)
        return self.weight - np.ceil(self.left).astype(np.int64)

    def reached(self, now: float) -> Bools:
        rows = np.arange(self.scenario.networks)[:, None]
        return self.online & (self.outage_until[rows, self.region] <= now)

    def rebuild(self, now: float, reached: Bools, held: Integers) -> float:
        """Fetch for one hour wherever it is possible; return the bytes that travelled.

        Secondary slivers need P whole primaries; primaries need S secondaries, rebuilt ones included. A receiver is
        bound by its downlink, and all together by the uplinks of the helpers, who share the load evenly.
        """
        scenario, code = self.scenario, self.scenario.code
        fetching = reached & (self.left > 0) & (self.ready_at <= now)
        helping = (reached * held).sum(axis=1)
        with_rebuilt = helping + (fetching * (self.weight - held)).sum(axis=1)
        fetching &= ((helping >= code.rows) & (with_rebuilt >= code.columns))[:, None]
        if not fetching.any():
            return 0.0
        supply = (reached & (held > 0)).sum(axis=1) * scenario.uplink_bytes_per_hour
        each = np.minimum(scenario.downlink_bytes_per_hour, supply / np.maximum(fetching.sum(axis=1), 1))
        done = np.where(fetching, np.minimum(self.left, each[:, None] / self.shard_bytes), 0.0)
        self.left -= done
        self.left[self.left < 1e-9] = 0.0
        self.gained &= self.left > 0
        return float((done * self.shard_bytes).sum())

    def end_hour(self, now: float, reached: Bools) -> Bools:
        """Ask this hour's challenges and, where an epoch is over, end it; return which chains stand still.

        While a handover is under way, no challenge is asked and no committee chosen. A chain that stands still does
        neither, and ends its epoch as soon as it goes on.
        """
        code = self.scenario.code
        stalled: Bools = (reached * self.weight).sum(axis=1) < code.n - code.f
        settled = ~stalled & ((self.gained * self.weight).sum(axis=1) <= code.f)
        self.asked += settled
        self.answered += reached * (1 - self.left / self.weight) * settled[:, None]
        self.epoch_age += 1
        over = ~stalled & (self.epoch_age >= EPOCH_HOURS)
        if over.any():
            self._end_epoch(now, over, settled)
        return stalled

    def _end_epoch(self, now: float, over: Bools, settled: Bools) -> None:
        """Count missed epochs, and seat others for those who had missed too many when the committee was fixed."""
        counted = (over & (self.asked > 0))[:, None]
        failed = self.answered * 2 < self.asked[:, None]
        self.missed = np.where(counted, np.where(failed, self.missed + 1, 0), self.missed)
        self._seat(self.leaving & (over & settled)[:, None], now)
        self.leaving |= self.missed >= MISSED_EPOCHS_MAX
        self.answered[over] = 0.0
        self.asked[over] = 0
        self.epoch_age[over] = 0


def simulate(scenario: Scenario, rng: np.random.Generator) -> Outcome:
    """Run the scenario: 0.15 to 0.3 ms of CPU for each hour simulated."""
    fleet = Fleet(scenario, rng)
    code, hours = scenario.code, int(scenario.years * HOURS_PER_YEAR)
    losses: list[float] = []
    halts: list[float] = []
    started = np.zeros(scenario.networks)
    missing = np.zeros(code.n + 1, dtype=np.int64)
    moved, unreadable, stalled_hours, rebuilt = 0, 0, 0, 0.0
    for hour in range(hours):
        now = float(hour)
        fleet.come_and_go(now)
        moved += fleet.lose(now)
        held, reached = fleet.held(), fleet.reached(now)
        intact = held.sum(axis=1)
        missing += np.bincount(code.n - intact, minlength=code.n + 1)
        lost = intact < code.rows
        halted = ~lost & ((fleet.gone * fleet.weight).sum(axis=1) > code.f)
        for times, rows in ((losses, lost), (halts, halted)):
            if rows.any():
                times += ((now - started[rows]) / HOURS_PER_YEAR).tolist()
                started[rows] = now
                fleet.begin(rows, now)
                held, reached = fleet.held(), fleet.reached(now)
        unreadable += int(((reached * held).sum(axis=1) < code.rows).sum())
        rebuilt += fleet.rebuild(now, reached, held)
        stalled_hours += int(fleet.end_hour(now, reached).sum())
    network_hours = hours * scenario.networks
    network_years = network_hours / HOURS_PER_YEAR
    per_year = scenario.stored_bytes * network_years
    handed = moved * scenario.segments * code.encoded_bytes(code.segment_bytes) / code.n
    return Outcome(
        network_years=network_years,
        losses=losses,
        halts=halts,
        intact_min=int(code.n - np.flatnonzero(missing)[-1]),
        unreadable=unreadable / network_hours,
        stalled=stalled_hours / network_hours,
        rebuilt_per_stored=rebuilt / per_year,
        moved_per_stored=handed / per_year,
        missing=missing,
    )
