"""The economy: all WAL is somewhere, cheating does not pay, an outage of a day costs no stake, a third cannot slash."""

from dataclasses import replace
from pathlib import Path

import pytest

from economics.genesis import Parameters
from scripts.modelling.economy import assumptions, main
from scripts.modelling.runs import year_setting
from scripts.modelling.trials import cheat, outage, ring
from scripts.modelling.world import Snapshot, World

CALM = Parameters(challenge_rounds=6)


def bustle(*, seed: int = 1, epochs: int = 5) -> list[Snapshot]:
    """Run a market in which everybody does something, with few rounds."""
    return World(replace(year_setting(seed), parameters=CALM)).run(epochs)


def test_all_wal_is_somewhere_at_every_epoch() -> None:
    run = bustle()
    for snapshot in run:
        held = snapshot.accounts_frost + snapshot.pools_frost + snapshot.buckets_frost + snapshot.unbonding_frost
        assert held + snapshot.burned_frost == snapshot.minted_frost
    last = run[-1]
    assert all((last.live_blobs, last.burned_frost, last.buckets_frost))
    assert any(snapshot.unbonding_frost for snapshot in run)


def test_the_same_seed_gives_the_same_economy() -> None:
    assert bustle(epochs=3) == bustle(epochs=3)
    assert bustle(epochs=3) != bustle(seed=2, epochs=3)


@pytest.mark.parametrize("guesses", [False, True])
def test_a_node_that_stores_nothing_earns_nothing_and_an_honest_one_does(guesses: bool) -> None:
    lazy, honest = cheat((0.0, 1.0), guesses=guesses, seed=1, epochs=3)
    assert lazy.profit < 0.01
    assert (lazy.slashed > 0.05) is guesses
    assert honest.profit > 0.8
    assert honest.slashed == 0


@pytest.mark.parametrize("phase", [0, 5, 12, 20])
def test_an_outage_of_a_day_costs_an_honest_node_income_but_no_stake(phase: int) -> None:
    tried = outage(24.0, seed=phase, epochs=6)
    assert tried.slashes == 0
    assert 0.6 < tried.income < 0.95


def test_who_is_away_for_longer_than_a_week_of_epochs_is_slashed() -> None:
    assert outage(10 * 24.0, seed=1, epochs=12).slashes == 1


def test_a_ring_below_a_third_harms_nobody_and_one_of_a_majority_does() -> None:
    nobody, below, majority = (ring(size, seed=1, epochs=2) for size in (0, 5, 9))
    assert (nobody.honest_slashed, below.honest_slashed) == (0, 0)
    assert below.profit_frost < 0 < nobody.honest_profit_frost < below.honest_profit_frost
    assert majority.honest_slashed > 0.05


def test_a_quick_run_prints_assumptions_and_tables_and_writes_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--quick", "--seed", "7", "--out", str(tmp_path / "new" / "plots")])
    printed = capsys.readouterr().out
    for line in assumptions():
        assert line in printed
    for title in ("the long run", "storing a part", "honest homes", "rings that store nothing"):
        assert title in printed
    plots = sorted((tmp_path / "new" / "plots").iterdir())
    assert [plot.name for plot in plots] == [
        "cheating.png",
        "false-slashes.png",
        "margins.png",
        "prices.png",
        "rings.png",
        "sales.png",
        "supply.png",
    ]
    assert all(plot.read_bytes().startswith(b"\x89PNG") for plot in plots)
