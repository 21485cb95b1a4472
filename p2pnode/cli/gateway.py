"""The command that serves blobs over HTTP."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pnode.cli.options import SIZE, home_option
from p2pnode.cli.passphrase import passphrase_option
from p2pnode.cli.session import load_owner, run_async, set_up_logging

if TYPE_CHECKING:
    from p2pnode.gateway.running import Options
    from p2pnode.home import Home
    from p2pnode.keys import Key

ADDRESS = "127.0.0.1:31415"


@click.command()
@click.option(
    "--listen",
    metavar="ADDRESS",
    default=ADDRESS,
    show_default=True,
    help="Host and port; 0.0.0.0:31415 lets other machines in, and storing takes the token then.",
)
@click.option("--host", "names", multiple=True, metavar="NAME", help="A further name that it goes by. Repeat for more.")
@click.option(
    "--origin", "origins", multiple=True, help="A foreign origin whose pages may store, such as https://app.example."
)
@click.option(
    "--reader",
    "readers",
    multiple=True,
    metavar="ORIGIN",
    help="A foreign origin whose pages may read, in place of all. Repeat for more.",
)
@click.option(
    "--cache", "cache_bytes", metavar="SIZE", type=SIZE, help="What it keeps on the disk at most; 8 GiB if not given."
)
@click.option("--max-blob", "blob_bytes", metavar="SIZE", type=SIZE, help="Largest body it stores; 1 GiB if not given.")
@click.option("--no-share", is_flag=True, help="Do not tell other peers what is cached, and do not serve it to them.")
@click.option("--read-only", is_flag=True, help="Store and delete nothing: the wallet stays closed.")
@passphrase_option
@home_option
def gateway(
    listen: str,
    names: tuple[str, ...],
    origins: tuple[str, ...],
    readers: tuple[str, ...],
    cache_bytes: int | None,
    blob_bytes: int | None,
    no_share: bool,
    read_only: bool,
    passphrase_file: Path | None,
    home_path: Path,
) -> None:
    """Serve blobs over HTTP until told to stop. Says in one line of JSON where.

    What it stores is paid by this home's wallet; without one it only reads. On loopback storing takes no token; listing
    and deleting always take the one in keys/gateway.token.
    """
    from p2pnode.home import Home

    options = build_options(listen, names, origins, readers, cache_bytes, blob_bytes, shares=not no_share)
    home = Home(home_path)
    owner = None if read_only or not home.owner_key_path.exists() else load_owner(home_path, passphrase_file)
    set_up_logging(logging.WARNING)
    run_async(lambda: serve(home, owner, options))


def build_options(
    listen: str,
    names: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
    readers: tuple[str, ...] = (),
    cache_bytes: int | None = None,
    blob_bytes: int | None = None,
    *,
    shares: bool = True,
) -> "Options":
    """Return what a gateway is told; raises `InputError`."""
    from p2pnode.gateway.access import ANYBODY
    from p2pnode.gateway.running import Options, parse_address, parse_names, parse_origins
    from p2pnode.gateway.services import Limits
    from p2pnode.peering.cache import QUOTA_BYTES

    host, port = parse_address(listen)
    allowed, reading = parse_origins(origins), parse_origins(readers) or ANYBODY
    limits = Limits() if blob_bytes is None else Limits(blob_bytes_max=blob_bytes, quilt_bytes_max=blob_bytes)
    quota = QUOTA_BYTES if cache_bytes is None else cache_bytes
    return Options(host, port, parse_names(names), allowed, reading, quota, shares, limits)


async def serve(home: "Home", owner: "Key | None", options: "Options") -> None:
    from p2pnode.gateway.running import Gateway, run_gateway

    def say(opened: Gateway) -> None:
        click.echo(json.dumps({"event": "ready", "stores": owner is not None, "urls": list(opened.urls)}))

    await run_gateway(home, owner, options, say)
