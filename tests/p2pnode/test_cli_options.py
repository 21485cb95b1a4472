"""Sizes, percentages and times are read exactly, and what is none is refused."""

import click
import pytest
from click.testing import CliRunner

from p2pnode.cli.options import DURATION, ID, PERCENT, SIZE, IdCommand


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000000", 10**6),
        ("500GB", 500 * 10**9),
        ("500 gb", 500 * 10**9),
        ("1.5TiB", 3 << 39),
        ("64KiB", 65_536),
        ("2m", 2 * 10**6),
    ],
)
def test_a_size_is_bytes(text: str, size: int) -> None:
    assert SIZE.convert(text, None, None) == size


@pytest.mark.parametrize(
    ("text", "points"), [("0", 0), ("10", 1_000), ("12.5", 1_250), ("2.25%", 225), ("100", 10_000)]
)
def test_a_percentage_is_basis_points(text: str, points: int) -> None:
    assert PERCENT.convert(text, None, None) == points


@pytest.mark.parametrize(("text", "seconds"), [("20", 20), ("20s", 20), ("10m", 600), ("1h", 3_600), ("1d", 86_400)])
def test_a_duration_is_seconds(text: str, seconds: int) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (SIZE, "much"),
        (SIZE, "-1"),
        (SIZE, "5iB"),
        (SIZE, "1e9"),
        (PERCENT, "101"),
        (PERCENT, "1.234"),
        (PERCENT, "-1"),
        (DURATION, "0s"),
        (DURATION, "1.5h"),
        (DURATION, "soon"),
    ],
)
def test_what_is_none_is_refused(kind: click.ParamType[int], text: str) -> None:
    with pytest.raises(click.BadParameter):
        kind.convert(text, None, None)


@pytest.mark.parametrize("path", ["", "/a file", "/-x", "/two\nlines"])
def test_an_id_that_begins_with_a_dash_is_no_option(path: str) -> None:
    """One in 64 does."""

    @click.command(cls=IdCommand)
    @click.argument("what", type=ID)
    @click.option("--raw", is_flag=True)
    def show(what: str, raw: bool) -> None:
        click.echo(f"{what} {raw}", nl=False)

    text = f"-{'A' * 42}{path}"
    assert CliRunner().invoke(show, [text, "--raw"]).output == f"{text} True"
