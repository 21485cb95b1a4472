"""The command: it says what it assumes, prints its tables and draws its plots."""

from pathlib import Path

import pytest

from scripts.modelling.churn import PROFILES
from scripts.modelling.durability import main, probability


def test_a_quick_run_prints_assumptions_and_tables_and_writes_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--quick", "--seed", "7", "--out", str(tmp_path / "new" / "plots")])
    printed = capsys.readouterr().out
    for churn in PROFILES:
        assert f"churn {churn.name}: {churn.source}" in printed
    for title in ("networks: ", "accelerated failure", "vanishes at once"):
        assert title in printed
    plots = sorted((tmp_path / "new" / "plots").iterdir())
    assert [plot.name for plot in plots] == [
        "accelerated.png",
        "loss-by-shards.png",
        "loss-by-uplink.png",
        "repair-traffic.png",
        "shards-missing.png",
        "share-vanishing.png",
    ]
    assert all(plot.read_bytes().startswith(b"\x89PNG") for plot in plots)


@pytest.mark.parametrize(
    ("value", "shown"), [(1e-31, "< 1e-30"), (3.4e-9, "3e-09"), (0.0099, "1e-02"), (0.5, "0.50"), (1.0, "1.00")]
)
def test_probabilities_are_short(value: float, shown: str) -> None:
    assert probability(value) == shown
