"""Two thousand seeds keep every invariant, and a seed is one run, wherever it is played.

In 300 of them stake moves and the committees change: they take twice as long.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.batch import add_up
from tests.simulation.conftest import Windows
from tests.simulation.scenario import SIZES, draw, draw_mixed

ROOT = Path(__file__).parents[2]


def test_the_seeds_of_the_window_keep_every_invariant(windows: Windows) -> None:
    results = windows.results(draw)
    faults = [f"scripts/simulate --seed {row.seed}: {row.fault}" for row in results if row.fault is not None]
    assert faults == []
    sums = add_up(results)
    # A window in which nothing happened would prove nothing.
    few = {
        name for name in ("blocks", "nullified", "epochs", "restarts", "equivocations", "evidence") if sums[name] < 500
    }
    assert not few, sums
    assert sums["punished"] > 0


def test_the_seeds_of_the_window_keep_every_invariant_where_committees_change(windows: Windows) -> None:
    results = windows.results(draw_mixed)
    faults = [f"scripts/simulate --mixed --seed {row.seed}: {row.fault}" for row in results if row.fault is not None]
    assert faults == []
    sums = add_up(results)
    least = {"epochs": 900, "reseated": 200, "joined": 200, "shifted": 200, "losses": 50, "restarts": 900}
    assert not {name: sums[name] for name, count in least.items() if sums[name] < count}, sums
    assert sums["is_unbounded"] < len(results) // 20  # a run that ended so proves nothing


def test_sizes_and_signatures_are_drawn_as_often_as_said() -> None:
    drawn = [draw(seed) for seed in range(2_000)]
    shares = [sum(len(scenario.shards) == size for scenario in drawn) for size in SIZES]
    assert all(abs(share - 20 * percent) < 100 for share, percent in zip(shares, (45, 30, 20, 5), strict=True)), shares
    assert 60 <= sum(scenario.is_real for scenario in drawn) <= 140


@pytest.mark.parametrize("arguments", [["3"], ["26"], ["5", "--mixed"]])
def test_a_seed_replays_identically_in_another_process(arguments: list[str]) -> None:
    """Also where Python hashes otherwise, and whether or not somebody reads along."""
    traces: set[str] = set()
    for hash_seed in ("0", "1"):
        command = [sys.executable, "-m", "tests.simulation", "--quiet", "--seed", *arguments]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        traces.add(done.stdout.split("trace=")[1].split(",")[0])
    assert len(traces) == 1
