"""Commands of whoever runs a node: make it, run it."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pnode.cli.gateway import ADDRESS as GATEWAY_ADDRESS
from p2pnode.cli.gateway import build_options
from p2pnode.cli.options import ID, SIZE, IdCommand, home_option, json_option, parse_owner
from p2pnode.cli.passphrase import asking, passphrase_option, plain_option
from p2pnode.cli.session import echo_json, run_async, set_up_logging
from p2pnode.errors import InputError

if TYPE_CHECKING:
    from economics.genesis import Genesis


@click.command(cls=IdCommand)
@home_option
@click.option("--listen", multiple=True, help="Address to listen on, such as /ip4/0.0.0.0/tcp/4001; may be repeated.")
@click.option("--quota", type=SIZE, help="Most bytes of slivers to keep; 64 GiB if not given.")
@click.option("--genesis", type=click.Path(path_type=Path), help="Genesis file of the network to join.")
@click.option(
    "--owner",
    metavar="KEY",
    type=ID,
    help="Public key of the node's owner, whose wallet may be elsewhere; this home's wallet if not given.",
)
@plain_option
@passphrase_option
@json_option
def init(
    home_path: Path,
    listen: tuple[str, ...],
    quota: int | None,
    genesis: Path | None,
    owner: str | None,
    plain: bool,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Make the keys and settings of a new node."""
    from economics.crypto import NodeId
    from economics.genesis import build_key_text
    from p2pnode.home import Config, Home
    from p2pnode.wallet import create_wallet

    home = Home(home_path)
    network = load_network(genesis)
    named = None if owner is None else parse_owner(owner)
    changed = {**({"listen": listen} if listen else {}), **({"quota_bytes": quota} if quota is not None else {})}
    config = Config(**changed)  # type: ignore[arg-type]
    home.verify_new(config)
    if named is None and not home.owner_key_path.exists():
        create_wallet(home.owner_key_path, None if plain else asking(passphrase_file, confirm=True)())
    operator = home.create(config, owner=named)
    if network is not None:
        home.put_genesis(network)
    public = build_key_text(home.owner_public())
    fields = {"home": str(home.path), "node": build_key_text(operator.public), "owner": public}
    if as_json:
        echo_json(fields)
        return
    click.echo(f"made a node in {home.path}\n  node  {fields['node']}\n  owner {fields['owner']}")
    if network is None:
        click.echo(f"next: put your network's genesis file at {home.genesis_path}, then `p2pnode run`")
    elif network.committee.index_of(NodeId(operator.public)) is None:
        click.echo("next: `p2pnode join` for shards, which takes a stake; or `p2pnode run`, to hold none")
    else:
        click.echo("next: `p2pnode run`")


def load_network(path: Path | None) -> "Genesis | None":
    from economics.errors import Rejected
    from economics.genesis import parse_genesis
    from p2pnode.files import read_bounded
    from p2pnode.home import GENESIS_BYTES_MAX

    if path is None:
        return None
    try:
        return parse_genesis(read_bounded(path, GENESIS_BYTES_MAX).decode("utf-8"))
    except UnicodeDecodeError as fault:
        raise InputError(f"{path} is not a genesis file: it is not text") from fault
    except OSError as fault:
        raise InputError(f"cannot read {path}: {fault.strerror}") from fault
    except Rejected as fault:
        raise InputError(f"{path} is not a genesis file: {fault}") from fault


@click.command()
@home_option
@click.option(
    "--behaviour",
    type=click.Choice(["honest", "liar", "stalled", "silent", "equivocator"]),
    default="honest",
    help="On a testnet: be an adversary.",
)
@click.option(
    "--http",
    metavar="ADDRESS",
    is_flag=False,
    flag_value=GATEWAY_ADDRESS,
    help=f"Serve blobs over HTTP, too; at {GATEWAY_ADDRESS} if no address is given. `gateway --help` says more.",
)
def run(home_path: Path, behaviour: str, http: str | None) -> None:
    """Run a node until it is told to stop.

    With --http it stores for who asks on this machine if its wallet has no passphrase, and else only reads.
    """
    from p2pnode.adversary import Behaviour
    from p2pnode.home import Home
    from p2pnode.node import run_node

    options = None if http is None else build_options(http)
    set_up_logging(logging.INFO)
    run_async(lambda: run_node(Home(home_path), behaviour=Behaviour(behaviour), http=options))


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@home_option
@json_option
def backup(target: Path, home_path: Path, as_json: bool) -> None:
    """Put this home's keys, settings and chain in one file, TARGET. Slivers are not in it: the network has them.

    Keep the file as you keep keys. A node may run meanwhile.
    """
    from p2pnode.backup import backup as write
    from p2pnode.home import Home

    write(Home(home_path), target)
    fields = {"backup": str(target), "bytes": target.stat().st_size}
    if as_json:
        echo_json(fields)
    else:
        click.echo(f"{target}: {fields['bytes']} bytes, with keys: only you should read it")


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@home_option
@json_option
def restore(source: Path, home_path: Path, as_json: bool) -> None:
    """Make a home from a backup, SOURCE, where there is none.

    Its node follows the chain and votes again once the chain has passed whatever it may have signed since the backup.
    The node that the backup was made of must be gone for good: two with one key would be punished.
    """
    from p2pnode.backup import restore as read
    from p2pnode.home import Home

    read(source, Home(home_path))
    if as_json:
        echo_json({"home": str(home_path)})
    else:
        click.echo(
            f"restored {home_path}\nnext: `p2pnode run`; it votes when the chain has passed what it may have signed"
        )
