"""Options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pnode.errors import InputError

if TYPE_CHECKING:
    from economics.crypto import OwnerId


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
        raise InputError(f"{text!r} is not a public key: it has 43 characters of A-Z a-z 0-9 - _") from fault
