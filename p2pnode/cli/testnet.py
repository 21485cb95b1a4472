"""Commands on a network of nodes on this machine."""

import json
from pathlib import Path

import click

from p2pnode.cli.options import directory_option
from p2pnode.cli.session import echo_json


@click.group()
def testnet() -> None:
    """Run a network of nodes on this machine."""


@testnet.command()
@directory_option
@click.option("--nodes", default=7, show_default=True, type=click.IntRange(1, 256), help="Number of nodes.")
@click.option(
    "--shards", default=21, show_default=True, type=click.IntRange(4, 256), help="Shards, dealt to the nodes."
)
@click.option("--liar", default=0, type=click.IntRange(min=0), help="Number of nodes that serve wrong symbols.")
@click.option("--stalled", default=0, type=click.IntRange(min=0), help="Number of nodes that drip their answers.")
@click.option("--silent", default=0, type=click.IntRange(min=0), help="Number of nodes that never answer a read.")
@click.option("--quota", type=click.IntRange(min=0), help="Most bytes of slivers each node keeps; 64 GiB if not given.")
@click.option("--equivocator", default=0, type=click.IntRange(min=0), help="Number of nodes that vote for two blocks.")
@click.option("--epoch", type=click.IntRange(min=1), help="Seconds of an epoch; a day if not given.")
def up(
    directory: Path,
    nodes: int,
    shards: int,
    liar: int,
    stalled: int,
    silent: int,
    equivocator: int,
    quota: int | None,
    epoch: int | None,
) -> None:
    """Start a testnet in the background and print its endpoints, keys and pids as JSON."""
    from economics.genesis import Parameters
    from p2pnode import testnet as room

    behaviours = ["equivocator"] * equivocator + ["silent"] * silent + ["stalled"] * stalled + ["liar"] * liar
    limits: dict[str, int] = {}
    if quota is not None:
        limits["quota_bytes"] = quota
    parameters = Parameters()
    if epoch is not None:  # a client that was away for a day still follows
        bound = max(parameters.unbonding_epochs, 86_400 // epoch)
        parameters = Parameters(epoch_ms=1000 * epoch, unbonding_epochs=bound)
    started = room.up(
        directory.absolute(), nodes=nodes, shards=shards, behaviours=behaviours, limits=limits, parameters=parameters
    )
    click.echo(json.dumps(started.to_json(), indent=2))


@testnet.command()
@directory_option
@click.option("--wipe", is_flag=True, help="Remove the testnet's files too.")
def down(directory: Path, wipe: bool) -> None:
    """Stop every node of the testnet."""
    import shutil

    from p2pnode import testnet as room

    stopped = room.load(directory)
    room.down(stopped)
    if wipe:
        shutil.rmtree(directory)
    echo_json({"stopped": [process.pid for process in stopped.processes], "wiped": wipe})


@testnet.command()
@directory_option
@click.argument("node", type=int)
def kill(directory: Path, node: int) -> None:
    """End node NODE with SIGKILL, as a power cut would."""
    from p2pnode import testnet as room

    process = room.kill(room.load(directory), node)
    echo_json({"killed": node, "node": process.node, "pid": process.pid})


@testnet.command()
@directory_option
@click.argument("node", type=int)
def restart(directory: Path, node: int) -> None:
    """Start node NODE again after it was killed."""
    from p2pnode import testnet as room

    changed = room.restart(room.load(directory), node)
    echo_json({"node": changed.process(node).node, "pid": changed.process(node).pid, "restarted": node})


@testnet.command("status")
@directory_option
def testnet_status(directory: Path) -> None:
    """Print the testnet's endpoints, keys and pids, and which nodes run."""
    from p2pnode import testnet as room

    click.echo(json.dumps(room.load(directory).to_json(), indent=2))
