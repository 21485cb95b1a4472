"""Durability under churn: how often a network of home nodes loses a blob, and what keeping it whole costs in traffic.

Monte Carlo plays networks hour by hour; losses of well-sized networks are too rare for it, so birth-death processes
estimate them, and are checked where failures are so fast that both can see them. Prints what it assumes, then tables,
and writes PNG plots. The same seed gives the same figures.
"""

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from scripts.modelling.birthdeath import data_loss, exceeded, expected_rebuilt, halting
from scripts.modelling.churn import CASUAL, DEDICATED, DESKTOP, HOURS_PER_YEAR, RESTLESS, Churn, assumptions
from scripts.modelling.network import Outcome, simulate
from scripts.modelling.plots import Axis, Band, Line, save_plot
from scripts.modelling.scenario import (
    DISK_SHARDS,
    DOWN_PER_UP,
    EPOCH_HOURS,
    MISSED_EPOCHS_MAX,
    REPAIR_SHARE,
    SEAT_LOST_HOURS,
    SHARD_TB,
    STAKE_SIGMA,
    UPLINK_MBIT,
    Scenario,
)

NODES = (100, 300, 1_000, 3_000, 10_000)
SHARDS = (4, 7, 10, 13, 16, 21, 31, 46, 64, 100, 160, 256)
UPLINKS = (0.5, 1, 2, 5, 10, 20, 50, 100)
SHARES = tuple(percent / 100 for percent in range(2, 76))
FLOOR = 1e-30
"""Below this a probability is only called small: the world has other ends in store."""
BASE = Scenario(1_000, 100, DEDICATED)
SCENARIOS = (
    *(Scenario(nodes, 256, DEDICATED) for nodes in NODES),
    *(replace(BASE, n=n) for n in (21, 31, 64, 100)),
    *(replace(BASE, uplink_mbit=uplink) for uplink in (2.0, 5.0)),
    *(replace(BASE, churn=churn) for churn in (RESTLESS, DESKTOP, CASUAL)),
    *(replace(BASE, n=n, whole_blob=True) for n in (31, 100, 256)),
)
QUICK = (replace(BASE, n=31, years=0.2, networks=4), replace(BASE, n=31, whole_blob=True, years=0.2, networks=4))


def accelerated(*, life_days: float = 1e6, disk_deaths_per_year: float = 1e-3) -> Scenario:
    """Return a small network that fails fast, one shard at a time: always up, one shard a holder, no common cause."""
    churn = Churn(
        name="accelerated",
        session_median=1e6,
        session_sigma=0.1,
        absence_median=1.0,
        absence_sigma=0.1,
        life_hours=life_days * 24,
        announced=0.0,
        source="made up for the check",
        disk_deaths_per_year=disk_deaths_per_year,
    )
    return Scenario(13, 13, churn, correlated=False, stake_sigma=0.0, years=2.0, networks=100)


HALTING = tuple(accelerated(life_days=days) for days in (20.0, 35.0, 60.0))
LOSING = tuple(accelerated(disk_deaths_per_year=deaths) for deaths in (20.0, 35.0, 60.0))


@dataclass(frozen=True, slots=True)
class Check:
    """One accelerated network: mean years to its end by Monte Carlo, and the shortest and longest by birth-death."""

    what: str
    ends: int
    measured: float
    shortest: float
    longest: float


def simulate_all(scenarios: Sequence[Scenario], seed: int) -> list[Outcome]:
    """Run them side by side on all cores; each has a generator of its own, so the order of work does not matter."""
    generators = [np.random.default_rng([seed, index]) for index in range(len(scenarios))]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(simulate, scenarios, generators))


def check(scenario: Scenario, outcome: Outcome) -> Check:
    by_disks = scenario.churn.disk_deaths_per_year > 1
    ends = len(outcome.losses if by_disks else outcome.halts)
    processes = (
        [data_loss(scenario, healing_to_the_end=healing) for healing in (False, True)]
        if by_disks
        else [halting(scenario)]
    )
    years = [process.hours_to_end() / HOURS_PER_YEAR for process in processes]
    what = (
        f"lost, {scenario.churn.disk_deaths_per_year:.0f} disk deaths a year"
        if by_disks
        else f"halted, a life of {scenario.churn.life_hours / 24:.0f} days"
    )
    return Check(what, ends, outcome.network_years / max(1, ends), min(years), max(years))


def setting() -> list[str]:
    """Return what the networks are, a line each."""
    return [
        "one network = one committee: GF(2^8) has 256 shards at most, so D'Hondt over stakes seats their holders, and"
        " all other nodes are standbys that hold nothing and take the seats of those that go; more nodes add neither"
        " space nor redundancy, they spread the same shards over more holders",
        f"stakes are log-normal, sigma {STAKE_SIGMA:g}; at most {DISK_SHARDS} shards a node where nodes are enough; who"
        " departs is followed by one with as much stake (assumed)",
        f"a shard takes {SHARD_TB:g} TB, so n = {BASE.n} stores {BASE.stored_bytes / 1e12:.1f} TB of blobs; a segment"
        " (8 MiB) has one primary and one secondary sliver in each shard, so it is readable with P shards, and lost"
        " with fewer: when more than 2f are gone",
        f"lines: {UPLINK_MBIT:g} Mbit/s up, {UPLINK_MBIT * DOWN_PER_UP:g} down; repair may use {REPAIR_SHARE:.0%}"
        " (assumed); helpers share the load evenly",
        f"an epoch is {EPOCH_HOURS} h; who answers less than half of the challenges of {MISSED_EPOCHS_MAX} epochs"
        f" running loses its seat, {SEAT_LOST_HOURS:.0f} h after it went; until then nobody rebuilds its shards",
        "below its quorum of q shards the chain stands still and gives no seat to anyone; once the holders of more than"
        " f shards have gone for good and still have their seats, it has halted for good and nothing heals any more",
        "rebuilding from symbols moves the slivers' own size, from whole blobs P primaries, and 2n hashes a segment",
        "lives are exponential, sessions and absences log-normal; independent but for regions and disasters",
    ]


def probability(value: float) -> str:
    return f"< {FLOOR:.0e}" if value < FLOOR else f"{value:.0e}" if value < 0.01 else f"{value:.2f}"


def make_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a plain table; a column whose name begins with a space is set left."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column.strip(), justify="left" if column.startswith(" ") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def outcome_table(scenarios: Sequence[Scenario], outcomes: Sequence[Outcome]) -> Table:
    columns = (
        *("nodes", "n", "holders", " churn", " repair", "Mbit/s\nup", "lost", "halted", "fewest\nwhole", "P"),
        *("unread-\nable", "stands\nstill", "rebuilt\nB/B/year", "moved\nB/B/year", "kbit/s\na holder"),
        *("P(lost) a year\nleast .. most", "P(halt)\na year"),
    )
    return make_table(columns, [outcome_row(*pair) for pair in zip(scenarios, outcomes, strict=True)])


def outcome_row(scenario: Scenario, outcome: Outcome) -> list[str]:
    holders = len(scenario.holder_weights())
    bits = outcome.rebuilt_per_stored * scenario.stored_bytes * 8 / holders / HOURS_PER_YEAR / 3600
    least, most = (data_loss(scenario, healing_to_the_end=healing).per_year() for healing in (True, False))
    return [
        f"{scenario.nodes:,}",
        str(scenario.n),
        str(holders),
        scenario.churn.name,
        "whole blob" if scenario.whole_blob else "symbols",
        f"{scenario.uplink_mbit:g}",
        str(len(outcome.losses)),
        str(len(outcome.halts)),
        str(outcome.intact_min),
        str(scenario.code.rows),
        f"{outcome.unreadable:.2%}",
        f"{outcome.stalled:.2%}",
        f"{outcome.rebuilt_per_stored:.1f}",
        f"{outcome.moved_per_stored:.1f}",
        f"{bits / 1e3:.0f}",
        f"{probability(least)} .. {probability(most)}",
        probability(halting(scenario).per_year()),
    ]


def check_table(checks: Sequence[Check]) -> Table:
    rows = []
    for row in checks:
        spread = f"{row.shortest:.3f}" if row.shortest == row.longest else f"{row.shortest:.3f} .. {row.longest:.3f}"
        rows.append([row.what, str(row.ends), f"{row.measured:.3f}", spread])
    return make_table((" network", "ends seen", "Monte Carlo", "birth-death"), rows)


def share_table() -> Table:
    shares = (0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7)
    rows = []
    for n in (21, 31, 100, 256):
        scenario = replace(BASE, n=n)
        holders, process = len(scenario.holder_weights()), data_loss(scenario, healing_to_the_end=True)
        rows.append([str(n), *(probability(exceeded(process, holders, share)) for share in shares)])
    return make_table(("n", *(f"{share:.0%}" for share in shares)), rows)


def plot_all(out: Path, scenarios: Sequence[Scenario], outcomes: Sequence[Outcome], checks: Sequence[Check]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    plot_traffic(out / "repair-traffic.png", scenarios, outcomes)
    plot_shards(out / "loss-by-shards.png")
    plot_uplink(out / "loss-by-uplink.png")
    plot_shares(out / "share-vanishing.png")
    plot_missing(out / "shards-missing.png", scenarios[0], outcomes[0])
    plot_checks(out / "accelerated.png", checks)


def plot_traffic(path: Path, scenarios: Sequence[Scenario], outcomes: Sequence[Outcome]) -> None:
    curves: list[Line | Band] = []
    for colour, (whole, name) in enumerate(((True, "whole blobs"), (False, "symbols"))):
        expected = [expected_rebuilt(replace(BASE, n=n, whole_blob=whole)) for n in SHARDS]
        curves.append(Line(f"{name}, if every rebuilding succeeds", SHARDS, expected, colour))
        sought = replace(BASE, whole_blob=whole)
        points = [
            (scenario.n, outcome.rebuilt_per_stored)
            for scenario, outcome in zip(scenarios, outcomes, strict=True)
            if replace(scenario, n=sought.n, years=sought.years, networks=sought.networks) == sought
        ]
        note = ": refills outlast the seat and begin again" if whole else ""
        curves.append(
            Line(f"{name}, Monte Carlo{note}", [n for n, _ in points], [rebuilt for _, rebuilt in points], colour, "o")
        )
    save_plot(
        path,
        title="Repair traffic of 1,000 dedicated home nodes",
        x=Axis("shards n", log=True, ticks=(4, 7, 13, 31, 64, 100, 256)),
        y=Axis("bytes rebuilt per byte of blob and year", log=True, limits=(1.0, 1_000.0)),
        curves=curves,
    )


def plot_shards(path: Path) -> None:
    curves: list[Line | Band] = []
    for colour, churn in enumerate((DEDICATED, RESTLESS)):
        scenarios = [replace(BASE, n=n, churn=churn) for n in SHARDS]
        least, most = (
            [data_loss(scenario, healing_to_the_end=healing).per_year() for scenario in scenarios]
            for healing in (True, False)
        )
        halts = [halting(scenario).per_year() for scenario in scenarios]
        curves.append(Band(f"{churn.name}: a blob is lost", SHARDS, least, most, colour))
        curves.append(Line(f"{churn.name}: the chain halts for good", SHARDS, halts, colour, "--"))
    save_plot(
        path,
        title="Independent failures, 1,000 nodes (birth-death; bands: healing to the end .. none above f)",
        x=Axis("shards n", log=True, ticks=(4, 7, 13, 31, 64, 100, 256)),
        y=Axis("probability within a year", log=True, limits=(1e-30, 2.0)),
        curves=curves,
    )


def plot_uplink(path: Path) -> None:
    curves: list[Line | Band] = []
    for colour, n in enumerate((31, 100, 256)):
        for whole, style in ((False, "-"), (True, "--")):
            losses = [
                data_loss(
                    replace(BASE, n=n, churn=RESTLESS, uplink_mbit=uplink, whole_blob=whole), healing_to_the_end=True
                ).per_year()
                for uplink in UPLINKS
            ]
            curves.append(Line(f"n = {n}, {'whole blobs' if whole else 'symbols'}", UPLINKS, losses, colour, style))
    save_plot(
        path,
        title="Restless nodes (life 3 months): rebuilding from symbols against whole blobs (birth-death)",
        x=Axis("uplink, Mbit/s (downlink 5 times that, half of both for repair)", log=True, ticks=UPLINKS),
        y=Axis("probability, at least, that a blob is lost in a year", log=True, limits=(1e-30, 2.0)),
        curves=curves,
    )


def plot_shares(path: Path) -> None:
    curves: list[Line | Band] = []
    for colour, n in enumerate((21, 31, 100, 256)):
        scenario = replace(BASE, n=n)
        holders = len(scenario.holder_weights())
        for process, style, what in (
            (data_loss(scenario, healing_to_the_end=True), "-", "a blob is lost"),
            (halting(scenario), "--", "the chain halts for good"),
        ):
            ends = [exceeded(process, holders, share) for share in SHARES]
            curves.append(Line(f"n = {n}: {what}", [100 * share for share in SHARES], ends, colour, style))
    save_plot(
        path,
        title="A disaster: a share of all nodes vanishes at once, for good (1,000 dedicated nodes)",
        x=Axis("nodes that vanish, %"),
        y=Axis("probability of the outcome", log=True, limits=(1e-15, 2.0)),
        curves=curves,
    )


def plot_missing(path: Path, scenario: Scenario, outcome: Outcome) -> None:
    observed = outcome.missing / outcome.missing.sum()
    holders = len(scenario.holder_weights())
    stationary = data_loss(scenario, healing_to_the_end=True).stationary()
    shown = range(int(np.flatnonzero(outcome.missing)[-1]) + 1)
    units = [unit for unit in range(len(stationary)) if unit * scenario.n / holders <= shown[-1]]
    save_plot(
        path,
        title=f"Shards that are not whole at a random hour: {scenario.nodes} nodes, n = {scenario.n}",
        x=Axis(f"shards missing (a blob is lost above {2 * scenario.code.f})"),
        y=Axis("share of the time", log=True, limits=(1e-6, 1.0)),
        curves=[
            Line(
                "Monte Carlo, with a disaster every 5 years", list(shown), [float(observed[k]) for k in shown], 0, "o"
            ),
            Line(
                "birth-death, independent failures",
                [unit * scenario.n / holders for unit in units],
                [stationary[unit] * holders / scenario.n for unit in units],
                1,
            ),
        ],
    )


def plot_checks(path: Path, checks: Sequence[Check]) -> None:
    low, high = min(row.shortest for row in checks) / 2, max(row.longest for row in checks) * 2
    halts = [row for row in checks if row.shortest == row.longest]
    losses = [row for row in checks if row.shortest != row.longest]
    save_plot(
        path,
        title="Accelerated failure, n = 13: mean time to the end, Monte Carlo against birth-death",
        x=Axis("Monte Carlo, years", log=True, limits=(low, high)),
        y=Axis("birth-death, years", log=True, limits=(low, high)),
        curves=[
            Line("equal", [low, high], [low, high], 5, "--"),
            Line("the chain halts for good", [row.measured for row in halts], [row.longest for row in halts], 0, "o"),
            Line("lost; healing to the end", [row.measured for row in losses], [row.longest for row in losses], 1, "^"),
            Line(
                "lost; no healing above f", [row.measured for row in losses], [row.shortest for row in losses], 1, "v"
            ),
        ],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="scripts/durability", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("durability-out"), help="where the plots go")
    parser.add_argument("--quick", action="store_true", help="two small networks and short checks: seconds, no figures")
    options = parser.parse_args(arguments)
    console = Console(width=180)
    for line in (*setting(), *assumptions()):
        console.print(f"- {line}", highlight=False, soft_wrap=True)
    scenarios: Sequence[Scenario] = QUICK if options.quick else SCENARIOS
    accelerations = [
        replace(scenario, years=0.1, networks=20) if options.quick else scenario for scenario in (*HALTING, *LOSING)
    ]
    outcomes = simulate_all([*scenarios, *accelerations], options.seed)
    checks = [
        check(scenario, outcome) for scenario, outcome in zip(accelerations, outcomes[len(scenarios) :], strict=True)
    ]
    outcomes = outcomes[: len(scenarios)]
    years = outcomes[0].network_years
    for title, table in (
        (
            f"networks: {years:.0f} years of each by Monte Carlo; P by birth-death, for independent failures alone",
            outcome_table(scenarios, outcomes),
        ),
        ("accelerated failure, n = 13: mean years to the end, by Monte Carlo and by birth-death", check_table(checks)),
        ("1,000 dedicated nodes, of which a share vanishes at once, for good: P(a blob is lost)", share_table()),
    ):
        console.print(f"\n{title}", highlight=False)
        console.print(table)
    plot_all(options.out, scenarios, outcomes, checks)
    print(f"plots: {options.out}")


if __name__ == "__main__":
    main()
