"""Commands on bytes: store, read, ask the network how it is, compute an ID offline."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pnode.cli.options import home_option, json_option, max_cost_option
from p2pnode.cli.passphrase import passphrase_option
from p2pnode.cli.session import echo_json, load_owner, run_client, say_quote
from p2pnode.errors import ConfigError

if TYPE_CHECKING:
    from p2pnode.publish import Published
    from p2pnode.session import Session


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--epochs",
    default=30,
    show_default=True,
    type=click.IntRange(1, 53),
    help="Keep it for so many epochs, the current one counted: 30 is a month where an epoch is a day.",
)
@max_cost_option
@click.option("--permanent", is_flag=True, help="Let nobody delete it before it expires, not even its owner.")
@passphrase_option
@home_option
@json_option
def store(
    file: Path,
    epochs: int,
    max_cost: int | None,
    permanent: bool,
    passphrase_file: Path | None,
    home_path: Path,
    as_json: bool,
) -> None:
    """Store FILE and print its blob ID.

    The price is said first, and nothing is paid or sent if it is over --max-cost. The ID is printed once the block
    that certifies it is final: from then on the network owes the blob. Interrupted, run it again; a blob that is
    certified already moves no bytes.
    """
    from economics.blob import build_blob_id_text
    from p2pnode.payments import Order
    from p2pnode.progress import store_progress
    from p2pnode.publish import Publisher
    from p2pnode.sources import FileSource

    order = Order(epochs=epochs, deletable=not permanent, max_cost_frost=max_cost, on_quote=say_quote)
    owner = load_owner(home_path, passphrase_file)
    source = FileSource.open(file)

    async def work(client: "Session") -> None:
        with store_progress(file.name) as report:
            done = await Publisher(client, owner, order, report).publish(source)
        blob_id = build_blob_id_text(done.blob_id)
        if as_json:
            echo_json(describe(client, done))
            return
        click.echo(sum_up(client, done), err=True)
        click.echo(blob_id)

    run_client(home_path, work)


def describe(client: "Session", done: "Published") -> dict[str, Any]:
    """Return what storing a file ended with, as JSON shows it."""
    from economics.blob import build_blob_id_text

    committee = client.genesis.committee
    fields: dict[str, Any] = {
        "blob_id": build_blob_id_text(done.blob_id),
        "end_epoch": done.end_epoch,
        "length": done.length,
        "paid_frost": done.paid_frost,
        "quorum_shards": committee.quorum,
        "shards": committee.n,
        "transactions": done.transactions,
        "units": done.units,
    }
    if done.upload is None:
        return {**fields, "committed_shards": 0, "faults": [], "segments_present": 0, "sent_bytes": 0}
    stored, outcome = done.upload
    return {
        **fields,
        "certificate": stored.certificate.encode().hex(),
        "certified_height": outcome.height,
        "committed_shards": stored.committed,
        "faults": [str(fault) for fault in stored.faults],
        "segments_present": stored.present_segments,
        "sent_bytes": stored.sent_bytes,
        "transaction": outcome.hash.hex(),
    }


def sum_up(client: "Session", done: "Published") -> str:
    """Return the same as one line."""
    from p2pnode.payments import format_amount

    paid = f"paid {format_amount(done.paid_frost)}, kept until epoch {done.end_epoch} begins"
    if done.upload is None:
        return f"the network owes these {done.length} bytes already: nothing was sent; {paid}"
    stored, outcome = done.upload
    committee = client.genesis.committee
    signed = f"{stored.committed} of {committee.n} shards signed, {committee.quorum} needed"
    there = f"; {stored.present_segments} segment copies were there already" if stored.present_segments else ""
    return f"certified in block {outcome.height}: {stored.length} bytes, {signed}{there}; {paid}"


@click.command()
@home_option
@json_option
def status(home_path: Path, as_json: bool) -> None:
    """Ask every member of the network how it is; stake, seats and challenges are what the chain proves."""
    from p2pnode.payments import format_amount

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
    from p2pnode.home import Home
    from p2pnode.sources import FileSource, compute_blob_id

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
