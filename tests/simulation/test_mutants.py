"""The simulator bites: every planted fault is found, and the seeds that find them pass without the fault."""

from tests.simulation.batch import play
from tests.simulation.mutants import MUTANTS, hunt_all


def test_every_planted_fault_is_found_and_its_seeds_are_clean_without_it() -> None:
    hunts = hunt_all()
    harmless = {mutant.name for mutant in MUTANTS if mutant.is_harmless}
    missed = [found.name for found in hunts if found.seeds is None and found.name not in harmless]
    assert missed == []
    assert len(hunts) - len(harmless) >= 20
    killers = [found for found in hunts if found.seeds is not None]
    draws = {mutant.name: mutant.draw for mutant in MUTANTS}
    scenarios = {draws[found.name](found.seeds - 1): found.name for found in killers if found.seeds is not None}
    for scenario, name in scenarios.items():
        assert play(scenario).fault is None, (name, scenario.seed)
    assert not [found for found in killers if found.name in harmless], "a harmless change does harm"
