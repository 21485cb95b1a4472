"""Options, arguments and their forms that several commands share."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pnode.errors import InputError, say_form

if TYPE_CHECKING:
    from economics.crypto import OwnerId

DASHED_ID = re.compile("-[A-Za-z0-9_-]{42}(/.*)?", re.DOTALL)


class IdCommand(click.Command):
    """A command that takes IDs, perhaps with a path, or keys: one in 64 begins with a dash, and is no option for it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f"={word}" if DASHED_ID.fullmatch(word) else word for word in args])


class IdType(click.ParamType[str]):
    """An ID or key as `IdCommand` passes it on."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value).removeprefix("=")


ID = IdType()


class AmountType(click.ParamType[int]):
    """An amount of WAL as FROST."""

    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from p2pnode.clients.payments import parse_amount

        if isinstance(value, int):
            return value
        try:
            return parse_amount(str(value))
        except InputError as fault:
            self.fail(str(fault), param, ctx)


AMOUNT = AmountType()

SIZE_FORM = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,3}))? ?([kmgtp]?)(i?)b?", re.IGNORECASE)
DURATION_FORM = re.compile(r"([0-9]{1,9}) ?([smhd]?)")
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


class SizeType(click.ParamType[int]):
    """A number of bytes, such as 500GB, 1.5TiB or 1000000."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        parts = SIZE_FORM.fullmatch(str(value).strip())
        if parts is None or (parts[4] and not parts[3]):
            self.fail(f"{value!r} is not a size: write bytes, or such as 500GB or 1.5TiB", param, ctx)
        whole, decimals, prefix, binary = parts[1], parts[2] or "", parts[3].lower(), parts[4]
        unit = (1024 if binary else 1000) ** " kmgtp".index(prefix or " ")
        return int(int(whole + decimals) * unit // 10 ** len(decimals))


class PercentType(click.ParamType[int]):
    """A percentage with up to 2 decimals, as basis points."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        parts = re.fullmatch(r"([0-9]{1,3})(?:\.([0-9]{1,2}))?%?", str(value).strip())
        points = None if parts is None else int(parts[1]) * 100 + int((parts[2] or "").ljust(2, "0"))
        if points is None or points > 10_000:
            self.fail(f"{value!r} is not a percentage from 0 to 100, such as 12.5", param, ctx)
        return points


class DurationType(click.ParamType[int]):
    """A time in seconds, such as 20s, 10m, 12h or 1d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        parts = DURATION_FORM.fullmatch(str(value).strip().lower())
        if parts is None or not int(parts[1]):
            self.fail(f"{value!r} is not a time: write such as 20s, 10m, 12h or 1d", param, ctx)
        return int(parts[1]) * SECONDS[parts[2]]


class RangeType(click.ParamType[tuple[int, int | None]]):
    """A first and a last byte, or none for the end, such as 0-99 or 100-."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int | None]:
        if isinstance(value, tuple):
            return value
        parts = re.fullmatch(r"([0-9]{1,18})-([0-9]{1,18})?", str(value))
        if parts is None:
            self.fail(f"{value!r} is not a range: write first and last byte, such as 0-99 or 100-", param, ctx)
        return int(parts[1]), int(parts[2]) if parts[2] else None


SIZE = SizeType()
RANGE = RangeType()
PERCENT = PercentType()
DURATION = DurationType()


def default_home() -> Path:
    import platformdirs

    return Path(platformdirs.user_data_dir("p2pnode"))


def default_testnet() -> Path:
    return default_home() / "testnet"


home_option = click.option(
    "--home",
    "home_path",
    type=click.Path(path_type=Path),
    default=default_home,
    envvar="P2PNODE_HOME",
    show_envvar=True,
    help="Directory with this node's or client's keys, genesis file and data; the user's data directory if not given.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of words.")
max_cost_option = click.option(
    "--max-cost", metavar="WAL", type=AMOUNT, help="Pay no more than this, such as 0.5 or 500frost; else do nothing."
)
limit_option = click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 256), help="Most rows.")
directory_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    default=default_testnet,
    envvar="P2PNODE_TESTNET",
    show_envvar=True,
    help="Directory of the testnet; `testnet` in the user's data directory if not given.",
)


def parse_owner(text: str) -> "OwnerId":
    """Return an account's key, or raise `InputError`."""
    from economics.crypto import OwnerId
    from economics.errors import Rejected
    from economics.genesis import parse_key

    try:
        return OwnerId(parse_key(text))
    except Rejected as fault:
        raise InputError(f"{text!r} is not a public key: {say_form(text)}") from fault
