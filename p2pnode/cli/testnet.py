"""Commands on a network of nodes on this machine."""

import json
from pathlib import Path

import click

from p2pnode.cli.options import AMOUNT, DURATION, SIZE, directory_option
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
@click.option("--quota", type=SIZE, help="Most bytes of slivers each node keeps; 64 GiB if not given.")
@click.option("--equivocator", default=0, type=click.IntRange(min=0), help="Number of nodes that vote for two blocks.")
@click.option("--epoch", type=DURATION, help="How long an epoch is, such as 20s or 1h; a day if not given.")
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
    """Start a testnet in the background. Prints its endpoints, keys and pids as JSON."""
    from p2pnode import testnet as room

    behaviours = ["equivocator"] * equivocator + ["silent"] * silent + ["stalled"] * stalled + ["liar"] * liar
    limits: dict[str, int] = {}
    if quota is not None:
        limits["quota_bytes"] = quota
    parameters = None if epoch is None else room.parameters_of(epoch)
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


@testnet.command()
@directory_option
@click.argument("count", metavar="[N]", default=1, type=click.IntRange(1, 64))
@click.option("--stake", metavar="WAL", type=AMOUNT, help="What each stakes; as much as a first member if not given.")
@click.option("--quota", type=SIZE, help="Most bytes of slivers each keeps; 64 GiB if not given.")
def add(directory: Path, count: int, stake: int | None, quota: int | None) -> None:
    """Start N more nodes, one if not given, that join. They have shards from the next epoch on, or the one after."""
    from p2pnode import testnet as room

    changed = room.load(directory.absolute())
    before = len(changed.processes)
    for _ in range(count):
        changed = room.add(changed, stake_frost=stake, quota_bytes=quota)
    added = [{"index": one.index, "node": one.node, "pid": one.pid} for one in changed.processes[before:]]
    echo_json({"added": added})


@testnet.command()
@directory_option
@click.argument("node", type=int)
def remove(directory: Path, node: int) -> None:
    """Have node NODE leave, and stop it once others hold its shards. That takes an epoch or two."""
    from p2pnode import testnet as room

    testnet = room.load(directory)
    room.remove(testnet, node)
    echo_json({"node": testnet.process(node).node, "removed": node})


@testnet.command()
@directory_option
@click.argument("node", type=int)
def replace(directory: Path, node: int) -> None:
    """Kill node NODE, wipe its disk but for its keys, restart it. It refills itself from the others."""
    from p2pnode import testnet as room

    changed = room.replace(room.load(directory), node)
    echo_json({"node": changed.process(node).node, "pid": changed.process(node).pid, "replaced": node})


@testnet.command("status")
@directory_option
def testnet_status(directory: Path) -> None:
    """Print which nodes run, and their endpoints, keys and pids."""
    from p2pnode import testnet as room

    click.echo(json.dumps(room.load(directory).to_json(), indent=2))
