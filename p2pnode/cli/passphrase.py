"""Where a wallet's passphrase comes from: a file, the environment or a terminal; no argument, since all can see it."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from p2pnode.errors import ConfigError, InputError

VARIABLE = "P2PNODE_PASSPHRASE"
PASSPHRASE_BYTES_MAX = 4_096

passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help=f"File whose first line is the wallet's passphrase; else {VARIABLE} is read, else the terminal asked.",
)
plain_option = click.option(
    "--plain", is_flag=True, help="Keep the key without a passphrase: for testnets, where nothing is worth stealing."
)


def asking(file: Path | None, *, confirm: bool = False) -> Callable[[], str]:
    """Return how to get the passphrase, once it is needed; it raises `ConfigError` where there is nobody to ask."""

    def ask() -> str:
        if file is not None:
            return read_first_line(file)
        if VARIABLE in os.environ:
            return os.environ[VARIABLE]
        if not sys.stdin.isatty():
            raise ConfigError(f"the wallet has a passphrase: set {VARIABLE}, or name a --passphrase-file")
        words = "New passphrase" if confirm else "Passphrase"
        return str(click.prompt(words, hide_input=True, confirmation_prompt=confirm, err=True))

    return ask


def read_first_line(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return opened.readline(PASSPHRASE_BYTES_MAX).rstrip(b"\r\n").decode("utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise InputError(f"cannot read the passphrase in {file}: {fault}") from fault
