"""PNG plots of the models: lines, points and bands on one pair of axes. Only this module knows matplotlib."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COLOURS = ("#0b559f", "#c1440e", "#2a7f3e", "#7b3fa0", "#8a6d00", "#444444")
"""Dark enough for lines on white, and apart in lightness too."""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve; `colour` indexes COLOURS. A style is matplotlib's: "-" or "--" for lines, "o" for points."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int = 0
    style: str = "-"


@dataclass(frozen=True, slots=True)
class Band:
    """What lies between two curves."""

    label: str
    xs: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]
    colour: int = 0


@dataclass(frozen=True, slots=True)
class Axis:
    """A label with its unit. Outside of `limits` nothing is drawn; `ticks` are named as they are."""

    label: str
    log: bool = False
    limits: tuple[float, float] | None = None
    ticks: Sequence[float] = ()


def save_plot(path: Path, *, title: str, x: Axis, y: Axis, curves: Sequence[Line | Band]) -> None:
    """Write one PNG of 1,600 x 1,000 pixels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=200, layout="constrained")
    axes.set_title(title, fontsize=11)
    for curve in curves:
        colour = COLOURS[curve.colour]
        if isinstance(curve, Band):
            axes.fill_between(
                curve.xs, curve.lows, curve.highs, color=colour, alpha=0.2, label=curve.label, linewidth=0
            )
        else:
            axes.plot(curve.xs, curve.ys, curve.style, color=colour, label=curve.label, linewidth=1.6, markersize=6)
    axes.set(xlabel=x.label, xscale="log" if x.log else "linear", xlim=x.limits)
    axes.set(ylabel=y.label, yscale="log" if y.log else "linear", ylim=y.limits)
    for asked, axis in ((x, axes.xaxis), (y, axes.yaxis)):
        if asked.ticks:
            axis.set_ticks(list(asked.ticks), [f"{tick:g}" for tick in asked.ticks])
            axis.set_ticks([], minor=True)
    axes.grid(True, which="major", linewidth=0.4, alpha=0.6)
    axes.legend(fontsize=8, framealpha=0.9)
    figure.savefig(path)
    pyplot.close(figure)
