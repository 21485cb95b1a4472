"""Commands that move no bytes: ask the network how it is, compute an ID offline."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pnode.cli.options import home_option, json_option
from p2pnode.cli.session import echo_json, run_client
from p2pnode.errors import ConfigError

if TYPE_CHECKING:
    from p2pnode.clients.session import Session


@click.command()
@home_option
@json_option
def status(home_path: Path, as_json: bool) -> None:
    """Ask every member of the network how it is. Stake, seats and challenges are what the chain proves."""
    from p2pnode.clients.payments import format_amount

    async def work(client: "Session") -> None:
        rows = await client.status()
        if as_json:
            echo_json({"chain_id": client.genesis.chain_id.hex(), "members": rows})
            return
        for row in rows:
            state = "up" if row["reachable"] else f"no answer ({row['why']})"
            held = f"{row['blobs']} blobs, {row['used_bytes']} bytes" if row["reachable"] else ""
            stake = "" if row["stake_frost"] is None else f"stake {format_amount(row['stake_frost'])}"
            later = "" if row["next_shards"] in (None, row["shards"]) else f", then {row['next_shards']}"
            seats = f"{row['shards']:3} shards{later}"
            click.echo(f"{row['member']:3} {row['node'][:8]}  {seats}  {state}  {held}  {stake}".rstrip())
            chain = row.get("chain")
            if row["reachable"] and isinstance(chain, dict):
                click.echo(f"      block {chain.get('height')}, epoch {chain.get('epoch')}, view {chain.get('view')}")
            upkeep = row.get("upkeep")
            if isinstance(upkeep, dict) and upkeep.get("missing"):
                click.echo(f"      heals: {upkeep['missing']} pieces of what it owes are missing")
            if row["challenged"]:
                click.echo(f"      stood {row['passed']} of {row['challenged']} challenges in this epoch")
            for fault in row.get("caught", ()):
                click.echo(f"      says that {fault}")

    run_client(home_path, work)


@click.command("blob-id")
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
    from p2pnode.content.sources import FileSource, compute_blob_id
    from p2pnode.home import Home

    try:
        code = Code(shards) if shards is not None else Home(home_path).load_genesis().code
    except ConfigError as fault:
        raise ConfigError(
            f"{fault}; or name the network's number of shards with --shards: the ID depends on it"
        ) from fault
    text = build_blob_id_text(compute_blob_id(FileSource.open(file), code))
    if as_json:
        echo_json({"blob_id": text, "shards": code.n})
    else:
        click.echo(text)
