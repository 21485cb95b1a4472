"""The command line: words in, one line or JSON out, an exit code that tells kinds of failure apart.

Imports of libp2p and trio wait until a command needs them, so that `--help` answers at once.
"""

import os
import select
import sys
from typing import NoReturn

import click

from p2pnode.cli import (
    blobs,
    chain,
    gateway,
    node,
    owned,
    peers,
    reading,
    seats,
    sharing,
    stakes,
    storing,
    testnet,
    verify,
    wallet,
)
from p2pnode.cli.options import json_option
from p2pnode.cli.session import echo_json
from p2pnode.errors import ExitCode, NodeError, OutputClosed
from p2pnode.files import FULL


class Sections(click.Group):
    """A group whose help lists its commands by what they are for."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                width = formatter.width - 16
                formatter.write_dl([(command.name or "", command.get_short_help_str(width)) for command in commands])


@click.group(cls=Sections, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="p2pnode")
def cli() -> None:
    """Store blobs with peers: erasure-coded, certified by a quorum, read back bit for bit.

    Exit codes: 0 done, 1 a fault of p2pnode itself, 2 wrong usage, 3 unusable file or ID, 4 too few nodes answered,
    5 blob not available, 6 blob encoded inconsistently by its writer, 7 no space, 8 files of this home or testnet
    missing, foreign or in use, 9 not paid (the wallet has too little, or --max-cost says so), 10 the chain refused a
    transaction, 11 a disk failed, 130 interrupted, 141 nobody read the output to its end.
    """


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        code = say_interrupted()
    except SystemExit:  # click's answer to a broken pipe outside of trio
        code = leave_output()
    except click.ClickException as fault:
        fault.show()
        code = fault.exit_code
    except (NodeError, OSError, KeyboardInterrupt, BaseExceptionGroup) as fault:
        code = explain(fault)
    sys.exit(code if isinstance(code, int) else ExitCode.OK)


def explain(fault: BaseException) -> int:
    """Say what happened in one line and return the exit code; a fault of ours is raised again with its traceback."""
    leaves = leaves_of(fault)
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
        return say_interrupted()
    if is_output_closed() and any(isinstance(leaf, BrokenPipeError | OutputClosed) for leaf in leaves):
        return leave_output()
    if any(isinstance(leaf, OSError) and leaf.errno in FULL for leaf in leaves):
        click.echo("error: a disk is full: free some space and try again", err=True)
        leave_output()
        return ExitCode.SPACE
    for leaf in leaves:
        if not isinstance(leaf, NodeError):
            raise fault
    known = next(leaf for leaf in leaves if isinstance(leaf, NodeError))
    click.echo(f"error: {known}", err=True)
    return known.exit_code


def is_output_closed() -> bool:
    """Return whether nobody reads what this process says any more."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def leave_output() -> int:
    """Write nothing more: what waits in the buffers would fail once more at the interpreter's end, with many words."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    if is_output_closed():
        os.dup2(nowhere, 2)
    return ExitCode.UNREAD


def leaves_of(fault: BaseException) -> list[BaseException]:
    if isinstance(fault, BaseExceptionGroup):
        return [leaf for inner in fault.exceptions for leaf in leaves_of(inner)]
    return [fault]


def say_interrupted() -> int:
    click.echo("interrupted: what was stored so far stays; the same command goes on from there", err=True)
    return ExitCode.INTERRUPTED


@cli.command()
@json_option
def version(as_json: bool) -> None:
    """Print the versions in use: p2pnode, kernel, Python."""
    import platform

    from p2pnode.coding.kernel import load_kernel
    from p2pnode.version import VERSION

    fields = {"kernel": load_kernel().name, "p2pnode": VERSION, "python": platform.python_version()}
    if as_json:
        echo_json(fields)
    else:
        click.echo(f"p2pnode {VERSION}, kernel {fields['kernel']}, Python {fields['python']}")


SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Store and read": (storing.store, reading.read, reading.ls, owned.list_, owned.info, owned.extend, owned.delete),
    "Share, and sync between peers": (sharing.share, reading.open_, peers.serve, peers.get, peers.sync),
    "Serve others": (gateway.gateway, node.run),
    "A node and its seats": (node.init, seats.join, seats.leave, seats.replace, seats.vote, node.backup, node.restore),
    "Wallet and stakes": (wallet.wallet, wallet.faucet, stakes.stake, stakes.unstake, stakes.stakes),
    "Look at the network": (blobs.status, stakes.committee, chain.blocks, chain.tx),
    "Prove and trust": (verify.verify, blobs.blob_id_, verify.checkpoint, verify.trust),
    "For developers": (testnet.testnet, version),
}
for command in (command for section in SECTIONS.values() for command in section):
    cli.add_command(command)
