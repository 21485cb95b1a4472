"""Commands on the key that owns what is stored and pays for it."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pnode.cli.chain import row_fields, row_line
from p2pnode.cli.options import AMOUNT, ID, IdCommand, home_option, json_option, limit_option, parse_owner
from p2pnode.cli.passphrase import asking, passphrase_option, plain_option
from p2pnode.cli.session import echo_json, load_owner, run_client
from p2pnode.errors import ConfigError

if TYPE_CHECKING:
    from economics.crypto import OwnerId
    from p2pnode.clients.session import Session
    from p2pnode.keys import Key

KEY_CHARS = 43
GIFT_FROST = 10 * 10**9


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


@wallet.command(cls=IdCommand)
@click.argument("key", metavar="[KEY]", required=False, type=ID)
@home_option
@json_option
def balance(key: str | None, home_path: Path, as_json: bool) -> None:
    """Print what this wallet, or the account KEY, has."""
    from economics.genesis import build_key_text
    from p2pnode.clients.payments import format_amount
    from p2pnode.home import Home

    owner = Home(home_path).wallet_public() if key is None else parse_owner(key)

    async def work(client: "Session") -> None:
        account = await client.chain.account(owner)
        if as_json:
            fields = {"balance_frost": account.balance_frost, "nonce": account.nonce}
            echo_json({**fields, "owner": build_key_text(owner)})
        else:
            click.echo(format_amount(account.balance_frost))

    run_client(home_path, work)


@wallet.command(cls=IdCommand)
@click.argument("key", metavar="KEY", type=ID)
@click.argument("amount", type=AMOUNT)
@passphrase_option
@home_option
@json_option
def send(key: str, amount: int, passphrase_file: Path | None, home_path: Path, as_json: bool) -> None:
    """Send AMOUNT to the account KEY. It is in WAL, such as 1.5, or such as 1500000frost."""
    to = parse_owner(key)
    own = load_owner(home_path, passphrase_file)
    run_client(home_path, sending(own, to, amount, as_json=as_json))


@wallet.command()
@limit_option
@home_option
@json_option
def history(limit: int, home_path: Path, as_json: bool) -> None:
    """List this wallet's newest transactions, newest first."""
    from p2pnode.home import Home

    owner = Home(home_path).wallet_public()

    async def work(client: "Session") -> None:
        rows = await client.chain.history(owner, limit=limit)
        if as_json:
            echo_json({"transactions": [row_fields(row) for row in rows]})
            return
        for row in rows:
            click.echo(row_line(row))

    run_client(home_path, work)


@click.command(cls=IdCommand)
@click.argument("key", metavar="[KEY]", required=False, type=ID)
@click.argument("amount", metavar="[AMOUNT]", required=False, type=AMOUNT)
@home_option
@json_option
def faucet(key: str | None, amount: int | None, home_path: Path, as_json: bool) -> None:
    """On a testnet: have WAL sent to this wallet or the account KEY. AMOUNT is 10 WAL if not given."""
    from p2pnode.clients.payments import parse_amount
    from p2pnode.home import Home
    from p2pnode.keys import load_key

    home = Home(home_path)
    if not home.faucet_key_path.exists():
        raise ConfigError(f"no faucet in {home_path}: testnets alone have one, in the home of their client")
    if key is not None and amount is None and len(key) < KEY_CHARS:
        amount, key = parse_amount(key), None
    to = home.wallet_public() if key is None else parse_owner(key)
    frost = GIFT_FROST if amount is None else amount
    run_client(home_path, sending(load_key(home.faucet_key_path), to, frost, as_json=as_json))


def sending(
    key: "Key", to: "OwnerId", amount_frost: int, *, as_json: bool
) -> "Callable[[Session], Coroutine[Any, Any, None]]":
    """Return the work of a transfer."""
    from economics.genesis import build_key_text
    from p2pnode.clients import payments

    async def work(client: "Session") -> None:
        outcome = await payments.send(client.chain, key, to=to, amount_frost=amount_frost)
        fields = {"amount_frost": amount_frost, "fee_frost": outcome.fee_frost, "height": outcome.height}
        if as_json:
            echo_json({**fields, "hash": build_key_text(outcome.hash), "to": build_key_text(to)})
            return
        paid = f"{payments.format_amount(amount_frost)}, fee {payments.format_amount(outcome.fee_frost)}"
        click.echo(f"sent {paid}; final at height {outcome.height}", err=True)
        click.echo(build_key_text(outcome.hash))

    return work
