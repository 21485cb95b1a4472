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
    return [*_of_the_network(), *_of_the_market(), *_of_the_trials()]


def _of_the_network() -> list[str]:
    parameters = Parameters()
    return [
        f"the network's own parameters: an epoch of {parameters.epoch_ms // 3_600_000} h with"
        f" {parameters.challenge_rounds} rounds of {parameters.challenge_samples} samples a shard,"
        f" {parameters.burn_basis_points / 100:g} % of rewards burned,"
        f" {parameters.stake_frost_per_shard // FROST_PER_WAL:,} WAL of stake a shard at genesis,"
        f" {parameters.unbonding_epochs} epochs to unbond, {parameters.missed_epochs_max} missed ones cost a seat",
        "blocks are real but for signatures that the ledger does not check as it applies them; certificates are signed",
        f"homes are away in stretches: log-normal, median {operators.ABSENCE_MEDIAN_HOURS:g} h, mean"
        f" {operators.mean_absence_hours():.1f} h, at most {operators.ABSENCE_HOURS_MAX:g} h (who is away for longer is"
        f" not slashed falsely); {operators.SLOW_SHARE:.0%} of answers come too late",
        "who lost its seat for being away registers again at once",
    ]


def _of_the_market() -> list[str]:
    demand = YEAR_DEMAND
    return [
        "holding one unit (64 KiB over all shards) for an epoch costs an operator"
        f" {min(YEAR_COSTS)} to {max(YEAR_COSTS)} FROST, in outside money at par; the first price is"
        f" {Parameters().storage_frost_per_unit}",
        f"the long run: {demand.uploads:g} uploads an epoch, median {demand.median_bytes / 2**30:g} GiB, growing"
        f" {(demand.growth - 1) * 100:.1f} % an epoch, elasticity {demand.elasticity:g}, paid for"
        f" {' or '.join(map(str, demand.durations))} epochs, {demand.renewed:.0%} renewed at the first price",
        "operators vote for the last price, raised where more is sold than they find right"
        f" ({bargaining.USE_AIMED_AT:.0%} give or take {bargaining.USE_SPREAD:.0%}) and lowered where less, never below"
        f" {bargaining.LEAST_MARKUP:g} of their cost, and buy disks above {bargaining.DISKS_AT_USE:.0%}",
        f"standbys join from epoch {bargaining.JOINS_AT_EPOCH} on at {bargaining.JOINS_AT_MARKUP:g} times their cost;"
        f" members raise their commission after {bargaining.RAISES_AFTER_EPOCHS} epochs of loss and leave after"
        f" {bargaining.LEAVES_AFTER_EPOCHS}",
        f"{Delegators.LOOKING:.0%} of the delegators look around each epoch, compare yields over"
        f" {Delegators.WINDOW} epochs, and move for one better by {(Delegators.BETTER - 1) * 100:.0f} %",
    ]


def _of_the_trials() -> list[str]:
    return [
        f"trials: {trials.SHARDS} nodes of one shard (f = 5), at most {trials.TRIED_MAX} of them tried but for rings,"
        f" the others up {trials.DEDICATED.uptime:.1%}; {trials.TRIAL_DEMAND.initial_blobs} blobs of 8 GiB, sold at"
        " twice what holding them costs",
        "who stores a share p lacks the rest for good; asked for some of it, it says so, or guesses wrongly",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="scripts/economy", description=__doc__)
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
