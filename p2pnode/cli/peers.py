"""Commands between peers, with or without a network behind them: serve, get, sync."""

import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pnode.cli.options import ID, IdCommand, home_option, json_option, max_cost_option
from p2pnode.cli.passphrase import passphrase_option
from p2pnode.cli.session import (
    echo_json,
    load_owner,
    printable,
    run_async,
    say_quote,
    set_up_logging,
    until_interrupted,
)
from p2pnode.errors import ConfigError, InputError, NodeError

if TYPE_CHECKING:
    from p2pnode.clients.payments import Order
    from p2pnode.content.sharing import Link
    from p2pnode.content.sources import Source
    from p2pnode.home import Home
    from p2pnode.keys import Key
    from p2pnode.members import Fault
    from p2pnode.peering.mirror import Shared
    from p2pnode.peering.peer import Peer
    from p2pnode.peering.providers import Contact

PAUSE_S = 2.0
PAUSE_MAX_S = 300.0
"""A network that is away is tried again after 2, 4, 8 ... 300 s."""

peer_option = click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="KEY@ADDRESS",
    help="Somebody to ask, such as KEY@/ip4/203.0.113.5/tcp/4002; a link may name some too. May be given again.",
)
listen_option = click.option(
    "--listen",
    multiple=True,
    metavar="ADDRESS",
    help="Where to listen; /ip4/0.0.0.0/tcp/4002, or any other port if that is in use, if not given.",
)
announce_option = click.option(
    "--announce",
    multiple=True,
    metavar="ADDRESS",
    help="Where others are to dial, if that differs: behind a router its own address and the port that it passes on.",
)


def peer_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what every command between peers takes."""
    for option in (json_option, home_option, peer_option, announce_option, listen_option):
        command = option(command)
    return command


keep_serving_option = click.option(
    "--keep-serving", is_flag=True, help="Serve it to others from the start, and afterwards until Ctrl-C."
)


# --- serve -----------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--encrypt", is_flag=True, help="Seal them: only who has the link can read.")
@click.option(
    "--store",
    "to_store",
    is_flag=True,
    help="Also store them with this home's network, for its wallet's money, as soon as it can be reached.",
)
@click.option(
    "--epochs", default=30, show_default=True, type=click.IntRange(1, 53), help="With --store: for so many epochs."
)
@max_cost_option
@passphrase_option
@peer_options
def serve(
    paths: tuple[Path, ...],
    encrypt: bool,
    to_store: bool,
    epochs: int,
    max_cost: int | None,
    passphrase_file: Path | None,
    listen: tuple[str, ...],
    announce: tuple[str, ...],
    peers: tuple[str, ...],
    home_path: Path,
    as_json: bool,
) -> None:
    """Serve files and folders to peers until Ctrl-C. Their bytes stay where they are.

    Prints for each its blob ID, a link, and what to type elsewhere. Needs no network and no money. What this home has
    served or fetched before is served too, for as long as its files are as they were.
    """
    from p2pnode.clients.payments import Order
    from p2pnode.home import Home
    from p2pnode.peering.mirror import share

    owner = load_owner(home_path, passphrase_file) if to_store else None
    order = Order(epochs=epochs, deletable=True, max_cost_frost=max_cost, on_quote=say_quote)
    for path in paths:
        if not path.exists():
            raise InputError(f"there is no {path}")

    async def work(peer: "Peer") -> None:
        import trio

        shared: list[Shared] = []
        for path in paths:
            keyring = peer.keyring if encrypt else None
            share_one = partial(share, path, peer.library, peer.codec, keyring)
            done = await trio.to_thread.run_sync(share_one, abandon_on_cancel=True)  # type: ignore[call-arg]  # old stubs
            shared.append(done)
            if not as_json:
                say_shared(peer, shared[-1])
        if as_json:
            echo_json(describe_serving(peer, shared))
        async with trio.open_nursery() as nursery:
            if owner is not None:
                nursery.start_soon(store_all, peer, owner, order, [one for each in shared for one in each.sources])
            await until_told(peer)
            nursery.cancel_scope.cancel()

    run_peer(Home(home_path), work, peers=parse_peers(peers), listen=listen, announce=announce, is_serving=True)


def say_shared(peer: "Peer", shared: "Shared") -> None:
    """Say what somebody else needs to have it."""
    fields = describe_shared(peer, shared)
    sealed = ", sealed" if shared.key is not None else ""
    click.echo(f"{printable(str(shared.path))}: {shared.length} bytes{sealed}")
    click.echo(f"  ID    {fields['blob_id']}")
    click.echo(f"  link  {fields['link']}")
    click.echo(f"  elsewhere: {fields['command']}")
    for one in shared.skipped:
        click.echo(f"left out: {printable(one.path)}: {printable(one.why)}", err=True)


def describe_shared(peer: "Peer", shared: "Shared") -> dict[str, Any]:
    from economics.blob import build_blob_id_text
    from p2pnode.content.sharing import PEERS_MAX, Link

    link = Link(shared.blob_id, key=shared.key, peers=tuple(peer.contacts()[:PEERS_MAX])).build()
    name = shared.path.resolve().name or "copy"
    command = f"p2pnode sync {quote(name)} '{link}'" if shared.is_folder else f"p2pnode get '{link}' -o {quote(name)}"
    return {
        "blob_id": build_blob_id_text(shared.blob_id),
        "command": command,
        "kind": "folder" if shared.is_folder else "file",
        "length": shared.length,
        "link": link,
        "path": str(shared.path),
        "sealed": shared.key is not None,
        "skipped": [f"{one.path}: {one.why}" for one in shared.skipped],
    }


def describe_serving(peer: "Peer", shared: "list[Shared]") -> dict[str, Any]:
    from p2pnode.peering.providers import build_contact

    contacts = [build_contact(node, address) for node, address in peer.contacts()]
    return {"blobs": [describe_shared(peer, one) for one in shared], "peers": contacts}


def quote(name: str) -> str:
    import shlex

    return shlex.quote(printable(name))


async def store_all(peer: "Peer", owner: "Key", order: "Order", sources: "list[Source]") -> None:
    """Store what is served with the network, each blob as soon as that goes; say what becomes of it."""
    import trio

    from economics.blob import build_blob_id_text
    from p2pnode.clients.payments import format_amount
    from p2pnode.clients.plain import plainly
    from p2pnode.clients.publish import Publisher

    assert peer.session is not None
    publisher = Publisher(peer.session, owner, order)
    for source in sources:
        pause_s = PAUSE_S
        done = None
        while done is None:
            try:
                with plainly():
                    done = await publisher.publish(source)
            except NodeError as fault:
                if not fault.retry:
                    click.echo(f"{printable(source.name)} is served and not stored: {fault}", err=True)
                    break
                click.echo(f"not stored yet, tried again in {pause_s:.0f} s: {fault}", err=True)
                await trio.sleep(pause_s)
                peer.session.members.forgive_all()
                pause_s = min(pause_s * 2, PAUSE_MAX_S)
        if done is not None:
            click.echo(
                f"stored: the network owes {build_blob_id_text(done.blob_id)} until epoch {done.end_epoch} begins; "
                f"paid {format_amount(done.paid_frost)}",
                err=True,
            )


# --- get and sync ----------------------------------------------------------------------------------------------------


@click.command(cls=IdCommand)
@click.argument("what", metavar="ID[/PATH]|LINK", type=ID)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; standard output if not given.")
@keep_serving_option
@peer_options
def get(
    what: str,
    output: Path | None,
    keep_serving: bool,
    listen: tuple[str, ...],
    announce: tuple[str, ...],
    peers: tuple[str, ...],
    home_path: Path,
    as_json: bool,
) -> None:
    """Fetch a blob from peers that have it, several at once. Else it comes from the network's nodes.

    Every byte is checked against the ID before it is written. Interrupted, run it again: it goes on from where it was.
    A link in quotes, or - to take it from standard input.
    """
    from p2pnode.home import Home

    if as_json and output is None:
        raise click.UsageError("--json needs --output: the bytes would be mixed with the JSON")
    link = parse_target(what)

    async def work(peer: "Peer") -> None:
        from economics.blob import build_blob_id_text
        from p2pnode.peering.mirror import Fetcher
        from p2pnode.progress import read_progress

        text = build_blob_id_text(link.blob_id)
        fetcher = Fetcher(peer, link)
        with read_progress(text[:8]) as report:
            got = await fetcher.get(output, sys.stdout.buffer, report)
        sys.stdout.buffer.flush()
        if as_json:
            echo_json({"blob_id": text, "kept_bytes": got.kept_bytes, "length": got.length, **describe_sources(peer)})
        else:
            there = f"; {got.kept_bytes} of them were there from an earlier call" if got.kept_bytes else ""
            click.echo(f"fetched {got.length} bytes, every one checked, {sum_up_sources(peer)}{there}", err=True)
        if got.is_sealed:
            click.echo("it is sealed and this home has no key for it: these are the sealed bytes", err=True)
        if keep_serving:
            await until_told(peer)

    contacts = [*link_peers(link), *parse_peers(peers)]
    run_peer(Home(home_path), work, peers=contacts, listen=listen, announce=announce, is_serving=keep_serving)


@click.command(cls=IdCommand)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("what", metavar="[ID[/PATH]|LINK]", type=ID, required=False)
@click.option("--delete", is_flag=True, help="Remove from DIR what the folder has not.")
@keep_serving_option
@peer_options
def sync(
    directory: Path,
    what: str | None,
    delete: bool,
    keep_serving: bool,
    listen: tuple[str, ...],
    announce: tuple[str, ...],
    peers: tuple[str, ...],
    home_path: Path,
    as_json: bool,
) -> None:
    """Make DIR equal to a folder that peers or the network have. Only what differs is fetched.

    The folder is named once: `p2pnode sync DIR` goes on with it. Interrupted, run it again.
    """
    from p2pnode.home import Home
    from p2pnode.peering.mirror import recall_mirror

    home = Home(home_path)
    link = recall_mirror(home, directory) if what is None else parse_target(what)
    link = with_peers(link, parse_peers(peers))

    async def work(peer: "Peer") -> None:
        from economics.blob import build_blob_id_text
        from p2pnode.clients.reading import count_of
        from p2pnode.peering.mirror import Fetcher
        from p2pnode.progress import read_progress

        with read_progress(directory.name) as report:
            done = await Fetcher(peer, link).sync(directory, delete=delete, report=report)
        fields = {
            "blob_id": build_blob_id_text(link.blob_id),
            "copied": done.copied,
            "fetched": done.fetched,
            "fetched_bytes": done.fetched_bytes,
            "kept": done.kept,
            "removed": done.removed,
        }
        if as_json:
            echo_json({**fields, **describe_sources(peer)})
        else:
            removed = f", {done.removed} removed" if done.removed else ""
            click.echo(
                f"{printable(str(directory))} is equal to the folder: {count_of(done.fetched, 'file')} "
                f"fetched, {count_of(done.fetched_bytes, 'byte')}, {sum_up_sources(peer)}; "
                f"{done.kept} {'was' if done.kept == 1 else 'were'} right already, "
                f"{done.copied} copied from others{removed}",
                err=True,
            )
        if keep_serving:
            await until_told(peer)

    run_peer(home, work, peers=link_peers(link), listen=listen, announce=announce, is_serving=keep_serving)


def describe_sources(peer: "Peer") -> dict[str, Any]:
    """Return who gave how much, and who failed how."""
    from economics.genesis import build_key_text

    given = {build_key_text(node): size for node, size in peer.swarm.received.items() if node is not None}
    members = {} if None not in peer.swarm.received else {"members": peer.swarm.received[None]}
    return {"faults": [str(fault) for fault in peer.swarm.faults], "from": {**given, **members}}


def sum_up_sources(peer: "Peer") -> str:
    count = sum(node is not None for node in peer.swarm.received)
    words = [f"{count} peer{'s' if count != 1 else ''}"] if count else []
    if None in peer.swarm.received:
        words.append("the network's nodes")
    return f"from {' and '.join(words)}" if words else "from nobody"


# --- how they run ----------------------------------------------------------------------------------------------------


def run_peer(
    home: "Home",
    work: "Callable[[Peer], Any]",
    *,
    peers: "list[Contact]",
    listen: tuple[str, ...],
    announce: tuple[str, ...],
    is_serving: bool,
) -> None:
    """Be a peer, do the work, leave; says at once which peer fails and how."""
    from p2pnode.peering.peer import ANY, SWITCH_S, USUAL, open_peer

    sys.setswitchinterval(SWITCH_S)
    set_up_logging(logging.ERROR)
    for address in (*listen, *announce):
        verify_listen(address)
    if (listen or announce) and not is_serving:
        raise click.UsageError("--listen and --announce are for those who serve: add --keep-serving")

    def say(fault: "Fault") -> None:
        click.echo(f"{fault.word}: {fault}", err=True)

    async def session() -> None:
        where = (listen or USUAL) if is_serving else ()
        or_else = () if listen or not is_serving else ANY
        async with open_peer(home, listen=where, or_else=or_else, announce=announce, peers=peers, on_fault=say) as peer:
            await work(peer)

    run_async(lambda: until_interrupted(session))


async def until_told(peer: "Peer") -> None:
    """Serve until SIGINT or SIGTERM, and end in good order."""
    import signal

    import trio

    where = ", ".join(address for _, address in peer.contacts())
    click.echo(f"serving at {where} until Ctrl-C", err=True)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            break
    click.echo(f"served {peer.server.sent_bytes} bytes", err=True)


def parse_target(text: str) -> "Link":
    """Return what an ID with or without a path, or a link, names; raises `InputError`."""
    from p2pnode.cli.reading import parse_what
    from p2pnode.content.sharing import Link, parse_link

    if text == "-":
        return parse_link(sys.stdin.readline())
    if "://" in text:
        return parse_link(text)
    return Link(*parse_what(text))


def link_peers(link: "Link") -> "list[Contact]":
    return [(node, (address,)) for node, address in link.peers]


def with_peers(link: "Link", peers: "list[Contact]") -> "Link":
    """Return a link that names these peers first, so that they are remembered with it."""
    from dataclasses import replace

    from p2pnode.content.sharing import PEERS_MAX

    named = [(node, address) for node, addresses in peers for address in addresses]
    return replace(link, peers=tuple(dict.fromkeys([*named, *link.peers]))[:PEERS_MAX])


def parse_peers(texts: tuple[str, ...]) -> "list[Contact]":
    """Return the peers of --peer; raises `InputError`."""
    from economics.errors import Rejected
    from p2pnode.peering.providers import parse_contact

    try:
        return [parse_contact(text) for text in texts]
    except Rejected as fault:
        raise InputError(f"--peer: {fault.detail}") from fault


def verify_listen(address: str) -> None:
    """Raise `InputError` for what is no address to listen on or to announce."""
    from p2pnode.home import verify_address

    try:
        verify_address(address)
    except ConfigError as fault:
        raise InputError(str(fault)) from fault
