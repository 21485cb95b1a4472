"""The command line: words in, one line or JSON out, an exit code that tells kinds of failure apart.

Imports of libp2p and trio wait until a command needs them, so that `--help` answers at once.
"""

import json
import logging
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from p2pnode.errors import ConfigError, ExitCode, InputError, NodeError

if TYPE_CHECKING:
    from p2pnode.client import Client
    from p2pnode.members import Fault

RANGE_HELP = "First and last byte, counted from 0, as in HTTP: 0-99 is the first hundred; 100- is the rest."


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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="p2pnode")
def cli() -> None:
    """Store blobs with peers: erasure-coded, certified by a quorum, read back bit for bit.

    Exit codes: 0 done, 1 a fault of p2pnode itself, 2 wrong usage, 3 unusable file or ID, 4 too few nodes answered,
    5 blob not available, 6 blob encoded inconsistently by its writer, 7 no space, 8 files of this home or testnet
    missing, foreign or in use, 130 interrupted.
    """


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        code = say_interrupted()
    except click.ClickException as fault:
        fault.show()
        code = fault.exit_code
    except (NodeError, KeyboardInterrupt, BaseExceptionGroup) as fault:
        code = explain(fault)
    sys.exit(code if isinstance(code, int) else ExitCode.OK)


def explain(fault: BaseException) -> int:
    """Say what happened in one line and return the exit code; a fault of ours is raised again with its traceback."""
    leaves = leaves_of(fault)
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
        return say_interrupted()
    for leaf in leaves:
        if not isinstance(leaf, NodeError):
            raise fault
    known = next(leaf for leaf in leaves if isinstance(leaf, NodeError))
    click.echo(f"error: {known}", err=True)
    return known.exit_code


def leaves_of(fault: BaseException) -> list[BaseException]:
    if isinstance(fault, BaseExceptionGroup):
        return [leaf for inner in fault.exceptions for leaf in leaves_of(inner)]
    return [fault]


def say_interrupted() -> int:
    click.echo("interrupted: what was stored so far stays; the same command goes on from there", err=True)
    return ExitCode.INTERRUPTED


def run_async(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    import trio

    trio.run(work)


def run_client(home_path: Path, work: "Callable[[Client], Coroutine[Any, Any, None]]") -> None:
    """Join the network of a home, do the work, leave; says at once which member fails and how."""
    from p2pnode.client import open_client
    from p2pnode.home import Home

    set_up_logging(logging.ERROR)

    def say(fault: "Fault") -> None:
        click.echo(f"{fault.word}: {fault}", err=True)

    async def session() -> None:
        async with open_client(Home(home_path), on_fault=say) as client:
            await work(client)

    run_async(lambda: until_interrupted(session))


async def until_interrupted(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do the work, or stop it at Ctrl-C and raise `KeyboardInterrupt` when it has tidied up.

    Python's own way raises it in whatever code runs just then, and a library's callback may lose it.
    """
    import signal

    import trio

    interrupted = False

    async def watch(nursery: trio.Nursery, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        nonlocal interrupted
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            task_status.started()
            async for _ in signals:
                interrupted = True
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(watch, nursery)
        await work()
        nursery.cancel_scope.cancel()
    if interrupted:
        raise KeyboardInterrupt


def set_up_logging(level: int) -> None:
    """Log to standard error, one line each; libraries only from ERROR on."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.ERROR)
    for name in ("p2pnode", "dht", "gossip"):
        logging.getLogger(name).setLevel(level)


def echo_json(fields: dict[str, Any]) -> None:
    click.echo(json.dumps(fields))


@cli.command()
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


@cli.command()
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


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@home_option
@json_option
def store(file: Path, home_path: Path, as_json: bool) -> None:
    """Store FILE and print its blob ID.

    It is printed once nodes with a quorum of shards have signed that their slivers are on their disks.
    """
    from economics.blob import build_blob_id_text
    from p2pnode.progress import store_progress

    async def work(client: "Client") -> None:
        with store_progress(file.name) as report:
            stored = await client.store(file, report=report)
        blob_id = build_blob_id_text(stored.blob_id)
        fields = {
            "blob_id": blob_id,
            "certificate": stored.certificate.encode().hex(),
            "committed_shards": stored.committed,
            "faults": [str(fault) for fault in stored.faults],
            "length": stored.length,
            "quorum_shards": client.genesis.committee.quorum,
            "segments_present": stored.present_segments,
            "sent_bytes": stored.sent_bytes,
            "shards": client.genesis.committee.n,
        }
        if as_json:
            echo_json(fields)
            return
        quorum = f"{stored.committed} of {client.genesis.committee.n} shards signed, {fields['quorum_shards']} needed"
        there = f"; {stored.present_segments} segment copies were there already" if stored.present_segments else ""
        click.echo(f"certified: {stored.length} bytes, {quorum}{there}", err=True)
        click.echo(blob_id)

    run_client(home_path, work)


@cli.command()
@click.argument("blob_id")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; standard output if not given.")
@click.option("--range", "bounds", metavar="A-B", help=RANGE_HELP)
@click.option(
    "--strict", is_flag=True, help="Also prove, by encoding it again, that no other reader can get other bytes."
)
@home_option
@json_option
def read(blob_id: str, output: Path | None, bounds: str | None, strict: bool, home_path: Path, as_json: bool) -> None:
    """Read a blob.

    Every byte is checked against BLOB_ID before it is written.
    """
    from p2pnode.client import output_file, parse_id
    from p2pnode.progress import read_progress

    if as_json and output is None:
        raise click.UsageError("--json needs --output: the bytes would be mixed with the JSON")
    parsed = parse_id(blob_id)
    wanted = parse_range(bounds)

    async def work(client: "Client") -> None:
        with read_progress(blob_id[:8]) as report:
            if output is None:
                done = await client.read(parsed, sys.stdout.buffer, bounds=wanted, strict=strict, report=report)
                sys.stdout.buffer.flush()
            else:
                with output_file(output) as sink:
                    done = await client.read(parsed, sink, bounds=wanted, strict=strict, report=report)
        if as_json:
            echo_json({"blob_id": blob_id, "faults": [str(fault) for fault in done.faults], "length": done.length})
        else:
            click.echo(f"read {done.length} bytes, every one checked", err=True)

    run_client(home_path, work)


def parse_range(text: str | None) -> tuple[int, int | None] | None:
    if text is None:
        return None
    first, dash, last = text.partition("-")
    if not dash or not first.isdecimal() or (last and not last.isdecimal()):
        raise InputError(f"{text!r} is not a range: write first and last byte, such as 0-99 or 100-")
    return int(first), int(last) if last else None


@cli.command()
@home_option
@json_option
def status(home_path: Path, as_json: bool) -> None:
    """Ask every member of the network how it is."""

    async def work(client: "Client") -> None:
        rows = await client.status()
        if as_json:
            echo_json({"chain_id": client.genesis.chain_id.hex(), "members": rows})
            return
        for row in rows:
            state = "up" if row["reachable"] else f"no answer ({row['why']})"
            held = f"{row['blobs']} blobs, {row['used_bytes']} bytes" if row["reachable"] else ""
            click.echo(f"{row['member']:3} {row['node'][:8]}  {row['shards']:3} shards  {state}  {held}")
            for fault in row.get("caught", ()):
                click.echo(f"      says that {fault}")

    run_client(home_path, work)


@cli.command("blob-id")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--shards", type=click.IntRange(4, 256), help="Shards of the network; as in the home's genesis if not given."
)
@home_option
@json_option
def blob_id_(file: Path, shards: int | None, home_path: Path, as_json: bool) -> None:
    """Compute the ID that FILE has, without any network."""
    from economics.blob import build_blob_id_text
    from economics.geometry import Code
    from p2pnode.client import compute_blob_id
    from p2pnode.home import Home

    try:
        code = Code(shards) if shards is not None else Home(home_path).load_genesis().code
    except ConfigError as fault:
        raise ConfigError(
            f"{fault}; or name the network's number of shards with --shards: the ID depends on it"
        ) from fault
    text = build_blob_id_text(compute_blob_id(file, code))
    if as_json:
        echo_json({"blob_id": text, "shards": code.n})
    else:
        click.echo(text)


@cli.command()
@json_option
def version(as_json: bool) -> None:
    """Print the versions in use: p2pnode, kernel, Python."""
    import platform

    from p2pnode.kernel import load_kernel
    from p2pnode.version import VERSION

    fields = {"kernel": load_kernel().name, "p2pnode": VERSION, "python": platform.python_version()}
    if as_json:
        echo_json(fields)
    else:
        click.echo(f"p2pnode {VERSION}, kernel {fields['kernel']}, Python {fields['python']}")


@cli.group()
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
@click.option(
    "--free", type=click.IntRange(min=0), help="Most unpaid bytes a node keeps, of one owner and in all; 4 GiB."
)
def up(
    directory: Path,
    nodes: int,
    shards: int,
    liar: int,
    stalled: int,
    silent: int,
    quota: int | None,
    free: int | None,
) -> None:
    """Start a testnet in the background and print its endpoints, keys and pids as JSON."""
    from p2pnode import testnet as room

    behaviours = ["silent"] * silent + ["stalled"] * stalled + ["liar"] * liar
    limits: dict[str, int] = {}
    if quota is not None:
        limits["quota_bytes"] = quota
    if free is not None:
        limits["free_owner_bytes_max"] = limits["free_bytes_max"] = free
    started = room.up(directory.absolute(), nodes=nodes, shards=shards, behaviours=behaviours, limits=limits)
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
