"""Commands of whoever runs a node: make it, run it."""

import logging
from pathlib import Path

import click

from p2pnode.cli.options import home_option, json_option
from p2pnode.cli.session import echo_json, run_async, set_up_logging
from p2pnode.errors import InputError


@click.command()
@home_option
@click.option("--listen", multiple=True, help="Address to listen on, such as /ip4/0.0.0.0/tcp/4001; may be repeated.")
@click.option("--quota", type=click.IntRange(min=0), help="Most bytes of slivers to keep; 64 GiB if not given.")
@click.option("--genesis", type=click.Path(path_type=Path), help="Genesis file of the network to join.")
@json_option
def init(home_path: Path, listen: tuple[str, ...], quota: int | None, genesis: Path | None, as_json: bool) -> None:
    """Make the keys and settings of a new node."""
    from economics.crypto import NodeId
    from economics.errors import Rejected
    from economics.genesis import build_key_text, parse_genesis
    from p2pnode.home import Config, Home

    home = Home(home_path)
    network = None
    if genesis is not None:
        try:
            network = parse_genesis(genesis.read_text(encoding="utf-8"))
        except UnicodeDecodeError as fault:
            raise InputError(f"{genesis} is not a genesis file: it is not text") from fault
        except (OSError, Rejected) as fault:
            raise InputError(f"{genesis} is not a genesis file: {fault}") from fault
    changed = {**({"listen": listen} if listen else {}), **({"quota_bytes": quota} if quota is not None else {})}
    operator, owner = home.create(Config(**changed))  # type: ignore[arg-type]
    if network is not None:
        home.put_genesis(network)
    fields = {"home": str(home.path), "node": build_key_text(operator.public), "owner": build_key_text(owner.public)}
    if as_json:
        echo_json(fields)
        return
    click.echo(f"made a node in {home.path}\n  node  {fields['node']}\n  owner {fields['owner']}")
    if network is None:
        click.echo(f"next: put your network's genesis file at {home.genesis_path}, then `p2pnode run`")
    elif network.committee.index_of(NodeId(operator.public)) is None:
        click.echo("next: `p2pnode run`; it will hold no shards, since only members of the genesis file do")
    else:
        click.echo("next: `p2pnode run`")


@click.command()
@home_option
@click.option(
    "--behaviour",
    type=click.Choice(["honest", "liar", "stalled", "silent"]),
    default="honest",
    help="On a testnet: be an adversary.",
)
def run(home_path: Path, behaviour: str) -> None:
    """Run a node until it is told to stop."""
    from p2pnode.adversary import Behaviour
    from p2pnode.home import Home
    from p2pnode.node import run_node

    set_up_logging(logging.INFO)
    run_async(lambda: run_node(Home(home_path), behaviour=Behaviour(behaviour)))
