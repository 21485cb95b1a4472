"""Options that several commands share."""

from pathlib import Path

import click


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
