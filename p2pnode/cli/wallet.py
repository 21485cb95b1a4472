"""Commands on the key that owns what is stored and pays for it."""

from pathlib import Path

import click

from p2pnode.cli.options import home_option, json_option
from p2pnode.cli.passphrase import asking, passphrase_option, plain_option
from p2pnode.cli.session import echo_json


@click.group()
def wallet() -> None:
    """Make a wallet, and use its WAL."""


@wallet.command()
@plain_option
@passphrase_option
@home_option
@json_option
def new(plain: bool, passphrase_file: Path | None, home_path: Path, as_json: bool) -> None:
    """Make the key that owns what is stored from this home."""
    from economics.genesis import build_key_text
    from p2pnode.errors import ConfigError
    from p2pnode.home import Home
    from p2pnode.wallet import create_wallet

    path = Home(home_path).owner_key_path
    if path.exists():
        raise ConfigError(f"{path} exists already: a key is never overwritten; name another --home")
    key = create_wallet(path, None if plain else asking(passphrase_file, confirm=True)())
    fields = {"encrypted": not plain, "owner": build_key_text(key.public), "path": str(path)}
    if as_json:
        echo_json(fields)
        return
    click.echo(fields["owner"])
    lost = "whoever reads it has your WAL" if plain else "without it and the passphrase what it owns is lost"
    click.echo(f"made {path}: keep a copy; {lost}", err=True)


@wallet.command()
@home_option
@json_option
def show(home_path: Path, as_json: bool) -> None:
    """Print the wallet's public key, which others send WAL to."""
    from economics.genesis import build_key_text
    from p2pnode.home import Home
    from p2pnode.wallet import Sealed, read_wallet

    path = Home(home_path).owner_key_path
    held = read_wallet(path)
    fields = {"encrypted": isinstance(held, Sealed), "owner": build_key_text(held.public), "path": str(path)}
    if as_json:
        echo_json(fields)
        return
    click.echo(fields["owner"])
    click.echo(f"{path}, {'encrypted' if fields['encrypted'] else 'a plain testnet key, not encrypted'}", err=True)
