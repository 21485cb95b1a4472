"""How a command runs: in trio, as a client of its home's network, until done or interrupted; and how it answers."""

import json
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pnode.cli.passphrase import asking

if TYPE_CHECKING:
    from p2pnode.clients.payments import Quote
    from p2pnode.clients.session import Session
    from p2pnode.keys import Key
    from p2pnode.members import Fault


def load_owner(home_path: Path, passphrase_file: Path | None) -> "Key":
    """Return the key of a home's wallet, opened before the network is joined; asks once there is a network to join."""
    from p2pnode.home import Home
    from p2pnode.wallet import load_wallet

    home = Home(home_path)
    home.load_genesis()
    return load_wallet(home.owner_key_path, asking(passphrase_file))


def run_async(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    import trio

    trio.run(work)


def run_client(home_path: Path, work: "Callable[[Session], Coroutine[Any, Any, object]]") -> None:
    """Join the network of a home, do the work, leave; says at once which member fails and how."""
    from p2pnode.clients.session import open_session
    from p2pnode.home import Home

    set_up_logging(logging.ERROR)

    def say(fault: "Fault") -> None:
        click.echo(f"{fault.word}: {fault}", err=True)

    async def session() -> None:
        async with open_session(Home(home_path), on_fault=say) as client:
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


def say_quote(quoted: "Quote") -> None:
    """Say a price before it is paid."""
    click.echo(f"it costs at most {quoted}", err=True)


def printable(text: str) -> str:
    """Return a text that is fit for a terminal: the chain holds what its owner wrote, a member says what it likes."""
    return "".join(char if char.isprintable() else "?" for char in text)


def format_time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def echo_json(fields: dict[str, Any]) -> None:
    click.echo(json.dumps(fields))
