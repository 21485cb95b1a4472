"""`scripts/simulate`: runs seeds, or replays one, or runs the planted faults."""

import argparse
import sys
import time
from functools import partial

from tests.simulation.batch import Draw, add_up, play, play_all
from tests.simulation.mutants import MUTANTS, hunt_all
from tests.simulation.scenario import Scenario, draw, draw_mixed
from tests.simulation.simulation import Result


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description="Simulates the consensus from seeds.")
    parser.add_argument("--seeds", type=int, default=200, metavar="N", help="how many seeds (default 200)")
    parser.add_argument("--first", type=int, default=0, metavar="S", help="the first of them (default 0)")
    parser.add_argument("--nodes", type=int, metavar="n", help="members in each (default: 4, 7, 10 or 31 by the seed)")
    parser.add_argument("--mixed", action="store_true", help="scenarios in which the committees change")
    parser.add_argument("--seed", type=int, metavar="S", help="replay one seed, every event of it")
    parser.add_argument("--quiet", action="store_true", help="with --seed: only the outcome")
    parser.add_argument("--processes", type=int, default=2, metavar="P", help="at a time (default 2)")
    parser.add_argument("--mutants", action="store_true", help="plant each fault, and say which seed finds it")
    return parser.parse_args()


def replay(scenario: Scenario, *, is_quiet: bool) -> int:
    result = play(scenario, log=None if is_quiet else partial(print, end=""))
    print(scenario)
    print(result)
    if result.fault is not None:
        print(result.fault)
    return result.fault is not None


def drawn_by(arguments: argparse.Namespace) -> Draw:
    """Return what makes a scenario of a seed."""
    return draw_mixed if arguments.mixed else partial(draw, members=arguments.nodes)


def run_seeds(arguments: argparse.Namespace) -> int:
    began = time.perf_counter()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    results: list[Result] = []
    for result in play_all(seeds, draws=drawn_by(arguments), processes=arguments.processes):
        results.append(result)
        if result.fault is not None:
            size = "" if arguments.nodes is None else f" --nodes {arguments.nodes}"
            kind = " --mixed" if arguments.mixed else size
            print(f"seed {result.seed}: {result.fault}\n  replay: scripts/simulate --seed {result.seed}{kind}")
    seconds = time.perf_counter() - began
    sums = add_up(results)
    failed = sum(result.fault is not None for result in results)
    print(f"{len(results)} seeds in {seconds:.1f} s: {len(results) / seconds:.1f} seeds/s, ", end="")
    print(f"{sums['views'] / seconds:.0f} views/s, {sums['events'] / seconds:.0f} events/s; {failed} failed")
    print(", ".join(f"{name} {count}" for name, count in sums.items()))
    return failed > 0


def run_mutants(processes: int) -> int:
    """Print after how many seeds each planted fault was found, and by which rule."""
    missed = 0
    harmless = {mutant.name for mutant in MUTANTS if mutant.is_harmless}
    for found in hunt_all(processes):
        if found.result is None or found.result.fault is None:
            missed += found.name not in harmless
            outcome = "harmless, as expected" if found.name in harmless else "NOT FOUND"
        else:
            outcome = f"seed {found.seeds}: {found.result.fault.strip().splitlines()[-1][:100]}"
        print(f"{found.name:58} {found.seconds:5.1f} s  {outcome}")
    return missed > 0


def main() -> int:
    arguments = parse_arguments()
    if arguments.mutants:
        return run_mutants(arguments.processes)
    if arguments.seed is not None:
        return replay(drawn_by(arguments)(arguments.seed), is_quiet=arguments.quiet)
    return run_seeds(arguments)


if __name__ == "__main__":
    sys.exit(main())
