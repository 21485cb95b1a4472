"""What the economy's runs amount to: tables and plots."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, median, quantiles, stdev
from typing import TypeVar

from rich.table import Table

from economics.genesis import FROST_PER_WAL
from scripts.modelling.plots import Axis, Band, Line, save_plot
from scripts.modelling.runs import Results
from scripts.modelling.trials import SHARDS, Home
from scripts.modelling.world import Snapshot

NORMAL_95 = 1.96
UNITS_PER_TIB = 2**24
WEEK = 7
LACKING_MIN = 0.5
_Row = TypeVar("_Row")
_Key = TypeVar("_Key")


def band(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean and the limits within which 95 % of seeds lie, if they are normal."""
    spread = NORMAL_95 * stdev(values) if len(values) > 1 else 0.0
    return mean(values) - spread, mean(values), mean(values) + spread


def wilson(count: int, of: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson)."""
    share, z = count / of, NORMAL_95
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return max(0.0, middle - half), min(1.0, middle + half)


def grouped(rows: Iterable[_Row], key: Callable[[_Row], _Key]) -> dict[_Key, list[_Row]]:
    groups: dict[_Key, list[_Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


def tables(results: Results) -> list[Table]:
    return [year_table(results.year), cheat_table(results), home_table(results), ring_table(results)]


def new_table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def year_table(year: Sequence[Snapshot]) -> Table:
    table = new_table(
        "the long run",
        *("epoch", "accounts", "pools", "buckets", "unbonding", "burned", "price", "votes", "sold", "capacity"),
        *("blobs", "members", "margin, median"),
    )
    shown = sorted({*range(19, len(year), 20), len(year) - 1})
    for snapshot in (year[index] for index in shown):
        amounts = (
            snapshot.accounts_frost,
            snapshot.pools_frost,
            snapshot.buckets_frost,
            snapshot.unbonding_frost,
            snapshot.burned_frost,
        )
        margins = margins_of([snapshot])
        table.add_row(
            str(snapshot.epoch),
            *(f"{amount / FROST_PER_WAL:,.1f}" for amount in amounts),
            f"{snapshot.storage_frost:,}",
            f"{snapshot.votes_frost[0]:,} .. {snapshot.votes_frost[-1]:,}",
            f"{snapshot.used_units / UNITS_PER_TIB:.2f} TiB",
            f"{snapshot.capacity_units / UNITS_PER_TIB:.2f} TiB",
            str(snapshot.live_blobs),
            str(snapshot.members),
            f"{median(margins):.0%}" if margins else "-",
        )
    return table


def margins_of(run: Sequence[Snapshot]) -> list[float]:
    """Return the margin of each that held shards all the time and earned something."""
    margins = []
    for name in run[0].books:
        books = [snapshot.books[name] for snapshot in run]
        income = sum(each.income_frost for each in books)
        if all(each.shards for each in books) and income > 0:
            margins.append(sum(each.profit_frost for each in books) / income)
    return margins


def cheat_table(results: Results) -> Table:
    table = new_table(
        "storing a part: profit as a share of an honest member's (95 % of seeds), and stake slashed",
        *("stored", "silent", "", "slashed", "guesses", "", "slashed"),
    )
    for stored, rows in sorted(grouped(results.cheats, lambda row: row.stored).items()):
        cells = []
        for guesses in (False, True):
            of_habit = [row for row in rows if row.guesses is guesses]
            low, middle, high = band([row.profit for row in of_habit])
            cells += [f"{middle:.0%}", f"{low:.0%} .. {high:.0%}", f"{mean(row.slashed for row in of_habit):.1%}"]
        table.add_row(f"{stored:.1%}", *cells)
    return table


def home_table(results: Results) -> Table:
    table = new_table(
        "honest homes: slashed within the run, and what they earn beside a dedicated node",
        *("uptime", "homes", "epochs", "slashed", "95 %", "longest outage", "income"),
    )
    rows: list[tuple[str, list[Home]]] = [
        (f"{uptime:.0%}", homes) for uptime, homes in sorted(grouped(results.homes, lambda row: row.uptime).items())
    ]
    rows += [
        (f"once {hours:.0f} h off", homes)
        for hours, homes in sorted(grouped(results.outages, lambda row: row.longest_hours).items())
    ]
    for name, homes in rows:
        slashed = sum(1 for row in homes if row.slashes)
        low, high = wilson(slashed, len(homes))
        table.add_row(
            name,
            str(len(homes)),
            str(homes[0].epochs),
            f"{slashed / len(homes):.1%}",
            f"{low:.1%} .. {high:.1%}",
            f"{max(row.longest_hours for row in homes):.1f} h",
            f"{mean(row.income for row in homes):.0%}",
        )
    return table


def ring_table(results: Results) -> Table:
    table = new_table(
        "rings that store nothing, praise each other and accuse all others",
        *("members", "share of shards", "profit of one", "honest profit", "honest stake slashed"),
    )
    fair = fair_frost(results)
    for size, rows in sorted(grouped(results.rings, lambda row: row.size).items()):
        table.add_row(
            str(size),
            f"{size / SHARDS:.0%}",
            f"{mean(row.profit_frost for row in rows) / fair:.0%}" if size else "-",
            f"{mean(row.honest_profit_frost for row in rows) / fair:.0%}",
            f"{mean(row.honest_slashed for row in rows):.1%}",
        )
    return table


def fair_frost(results: Results) -> float:
    """Return what a member makes in a network without a ring."""
    return mean(row.honest_profit_frost for row in results.rings if not row.size)


def plot_all(out: Path, results: Results) -> None:
    out.mkdir(parents=True, exist_ok=True)
    plot_supply(out / "supply.png", results.year)
    plot_prices(out / "prices.png", results.year)
    plot_sales(out / "sales.png", results.year)
    plot_margins(out / "margins.png", results.year)
    plot_cheats(out / "cheating.png", results)
    plot_homes(out / "false-slashes.png", results)
    plot_rings(out / "rings.png", results)


def plot_supply(path: Path, year: Sequence[Snapshot]) -> None:
    epochs = [snapshot.epoch for snapshot in year]
    parts = (
        ("accounts", [snapshot.accounts_frost for snapshot in year]),
        ("pools of stake", [snapshot.pools_frost for snapshot in year]),
        ("buckets, paid ahead", [snapshot.buckets_frost for snapshot in year]),
        ("unbonding, or waiting for a pool", [snapshot.unbonding_frost for snapshot in year]),
        ("burned", [snapshot.burned_frost for snapshot in year]),
    )
    save_plot(
        path,
        title=f"Where the {year[0].minted_frost / FROST_PER_WAL:,.0f} WAL are",
        x=Axis("epoch (day)"),
        y=Axis("WAL", log=True, limits=(1, year[0].minted_frost / FROST_PER_WAL)),
        curves=[
            Line(name, epochs, [max(amount, 1) / FROST_PER_WAL for amount in amounts], colour)
            for colour, (name, amounts) in enumerate(parts)
        ],
    )


def plot_prices(path: Path, year: Sequence[Snapshot]) -> None:
    epochs = [snapshot.epoch for snapshot in year]
    lowest, highest = ([snapshot.votes_frost[place] for snapshot in year] for place in (0, -1))
    top = 1.2 * max(snapshot.storage_frost for snapshot in year)
    save_plot(
        path,
        title="Prices: what two thirds of the shards vote for at most",
        x=Axis("epoch (day)"),
        y=Axis("FROST for a unit of 64 KiB, encoded", limits=(0, top)),
        curves=[
            Band("votes for storing, lowest to highest", epochs, lowest, highest, 0),
            Line("storing, an epoch", epochs, [snapshot.storage_frost for snapshot in year], 0),
            Line("writing", epochs, [snapshot.write_frost for snapshot in year], 1),
        ],
    )


def plot_sales(path: Path, year: Sequence[Snapshot]) -> None:
    epochs = [snapshot.epoch for snapshot in year]
    save_plot(
        path,
        title="What the network offers and what it has sold",
        x=Axis("epoch (day)"),
        y=Axis("TiB, encoded"),
        curves=[
            Line("capacity", epochs, [snapshot.capacity_units / UNITS_PER_TIB for snapshot in year], 0),
            Line("sold", epochs, [snapshot.used_units / UNITS_PER_TIB for snapshot in year], 1),
        ],
    )


def plot_margins(path: Path, year: Sequence[Snapshot]) -> None:
    weeks = [margins_of(year[at : at + WEEK]) for at in range(0, len(year) - WEEK + 1, WEEK)]
    shown = [(year[index * WEEK].epoch, margins) for index, margins in enumerate(weeks) if len(margins) > 1]
    epochs = [epoch for epoch, _ in shown]
    tenths = [quantiles(margins, n=10) for _, margins in shown]
    lows, highs = [100 * each[0] for each in tenths], [100 * each[-1] for each in tenths]
    save_plot(
        path,
        title="Margins of the members, week by week: (income - cost) / income",
        x=Axis("epoch (day)"),
        y=Axis("margin, %", limits=(-50, 100)),
        curves=[
            Band("eight of ten members", epochs, lows, highs),
            Line("median member", epochs, [100 * median(margins) for _, margins in shown]),
        ],
    )


def plot_cheats(path: Path, results: Results) -> None:
    curves: list[Line | Band] = [Line("an honest member", [LACKING_MIN, 100], [100, 100], 5, "--")]
    for colour, (guesses, name) in enumerate(((False, "says so when it lacks a segment"), (True, "guesses then"))):
        groups = grouped((row for row in results.cheats if row.guesses is guesses), lambda row: row.stored)
        shares = sorted((share for share in groups if share < 1), reverse=True)
        lows, middles, highs = zip(
            *(band([100 * row.profit for row in groups[share]]) for share in shares), strict=True
        )
        lacking = [100 * (1 - share) for share in shares]
        curves.append(Band(f"{name}: 95 % of seeds", lacking, lows, highs, colour))
        curves.append(Line(f"{name}: mean", lacking, middles, colour))
    save_plot(
        path,
        title="What a member makes of storing less than it owes, slashes included",
        x=Axis("not stored of what is owed, %", log=True, ticks=(0.5, 1, 2, 5, 10, 25, 50, 100)),
        y=Axis("profit, % of an honest member's", limits=(-400, 200)),
        curves=curves,
    )


def plot_homes(path: Path, results: Results) -> None:
    groups = grouped(results.homes, lambda row: row.uptime)
    uptimes = sorted(groups)
    shares = [sum(1 for row in groups[uptime] if row.slashes) / len(groups[uptime]) for uptime in uptimes]
    bounds = [wilson(sum(1 for row in groups[uptime] if row.slashes), len(groups[uptime])) for uptime in uptimes]
    lows, highs = zip(*((100 * low, 100 * high) for low, high in bounds), strict=True)
    percent = [100 * uptime for uptime in uptimes]
    save_plot(
        path,
        title=f"Honest homes: slashed within {results.homes[0].epochs} days, and income, by uptime",
        x=Axis("uptime of the home, % (outages of up to 48 h)"),
        y=Axis("%"),
        curves=[
            Band("slashed: 95 % interval", percent, lows, highs, 1),
            Line("slashed", percent, [100 * share for share in shares], 1),
            Line(
                "income, % of a dedicated node's",
                percent,
                [100 * mean(row.income for row in groups[uptime]) for uptime in uptimes],
                0,
            ),
        ],
    )


def plot_rings(path: Path, results: Results) -> None:
    groups, fair = grouped(results.rings, lambda row: row.size), fair_frost(results)
    sizes = sorted(size for size in groups if size)
    percent = [100 * size / SHARDS for size in sizes]
    liars = [100 * mean(row.profit_frost for row in groups[size]) / fair for size in sizes]
    honest = [100 * mean(row.honest_profit_frost for row in groups[size]) / fair for size in sizes]
    slashed = [100 * mean(row.honest_slashed for row in groups[size]) for size in sizes]
    save_plot(
        path,
        title="Members that store nothing, praise each other and accuse all others",
        x=Axis("shards of the ring, %"),
        y=Axis("%", limits=(-500, 500)),
        curves=[
            Line("profit of a member of the ring, % of a fair one", percent, liars, 0),
            Line("profit of an honest member, % of a fair one", percent, honest, 1),
            Line("stake of the honest that was slashed, %", percent, slashed, 2),
            Line("a third: what the network must stand", [100 / 3, 100 / 3], [-500, 500], 5, "--"),
        ],
    )
