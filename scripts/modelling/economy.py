"""The storage economy: months of agents on the real ledger, and trials of cheating, of false slashes and of rings.

Every payment, vote, stake, audit and reward is a transaction in a block that `economics.ledger` applies; all FROST is
counted at the end of every epoch. Prints what it assumes, then tables, and writes PNG plots. The same seed gives the
same figures.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from economics.genesis import FROST_PER_WAL, Parameters
from scripts.modelling import bargaining, operators, trials
from scripts.modelling.figures import plot_all, tables
from scripts.modelling.market import Delegators
from scripts.modelling.runs import FULL, QUICK, YEAR_COSTS, YEAR_DEMAND, run_all


def assumptions() -> list[str]:
    """Return what all runs share, a line each."""
    parameters, demand = Parameters(), YEAR_DEMAND
    return [
        f"the network's own parameters: an epoch of {parameters.epoch_ms // 3_600_000} h,"
        f" {parameters.challenge_rounds} rounds"
        f" of {parameters.challenge_samples} samples a shard, {parameters.burn_basis_points / 100:g} % of rewards"
        f" burned,"
        f" {parameters.stake_frost_per_shard // FROST_PER_WAL:,} WAL of stake a shard at genesis, unbonding for"
        f" {parameters.unbonding_epochs} epochs, a seat lost after {parameters.missed_epochs_max} missed ones",
        "blocks are real but for signatures that the ledger does not check as it applies them; certificates are signed",
        f"holding one unit (64 KiB over all shards) for an epoch costs an operator {min(YEAR_COSTS)} to"
        f" {max(YEAR_COSTS)}"
        f" FROST, paid in outside money at par; the first price is {parameters.storage_frost_per_unit}",
        f"the long run: {demand.uploads:g} uploads an epoch, median {demand.median_bytes / 2**30:g} GiB, growing"
        f" {(demand.growth - 1) * 100:.1f} % an epoch, elasticity {demand.elasticity:g}, paid for"
        f" {' or '.join(map(str, demand.durations))} epochs, {demand.renewed:.0%} renewed at the first price",
        f"operators vote for the last price, raised where over {bargaining.USE_AIMED_AT:.0%} is sold and lowered"
        f" where less,"
        f" never below {bargaining.LEAST_MARKUP:g} of their cost, and buy disks above {bargaining.DISKS_AT_USE:.0%};"
        f" standbys join from epoch {bargaining.JOINS_AT_EPOCH} on at {bargaining.JOINS_AT_MARKUP:g} times their cost,"
        f" members leave after {bargaining.LEAVES_AFTER_EPOCHS} epochs of loss",
        f"{Delegators.LOOKING:.0%} of the delegators look around each epoch, compare yields over"
        f" {Delegators.WINDOW} epochs,"
        f" and move for one better by {(Delegators.BETTER - 1) * 100:.0f} %",
        f"homes are away in stretches: log-normal, median {operators.ABSENCE_MEDIAN_HOURS:g} h, mean"
        f" {operators.mean_absence_hours():.1f} h, at most {operators.ABSENCE_HOURS_MAX:g} h (who is away for"
        f" longer is not"
        f" slashed falsely); {operators.SLOW_SHARE:.0%} of answers come too late",
        f"trials: {trials.SHARDS} nodes of one shard (f = 5), at most {trials.TRIED_MAX} of them tried but for"
        f" rings; the"
        f" others are up {trials.DEDICATED.uptime:.1%}; {trials.TRIAL_DEMAND.initial_blobs} blobs of 8 GiB, sold at"
        f" twice"
        " what holding them costs",
        "who stores a share p lacks the rest for good; asked for some of it, it says so, or guesses wrongly",
        "who lost its seat for being away registers again at once",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("economy-out"), help="where the plots go")
    parser.add_argument("--quick", action="store_true", help="a few epochs of everything: seconds, no figures")
    options = parser.parse_args(arguments)
    console = Console(width=200)
    for line in assumptions():
        console.print(f"- {line}", highlight=False, soft_wrap=True)
    results = run_all(QUICK if options.quick else FULL, options.seed)
    for table in tables(results):
        console.print(table)
    plot_all(options.out, results)
    print(f"plots: {options.out}")


if __name__ == "__main__":
    main()
