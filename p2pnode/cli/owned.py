"""Commands on what one keeps: list it, look at one blob, keep it longer, delete it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pnode.cli.options import ID, IdCommand, home_option, json_option, max_cost_option
from p2pnode.cli.passphrase import passphrase_option
from p2pnode.cli.session import echo_json, format_time, load_owner, printable, run_client, say_quote

if TYPE_CHECKING:
    from economics.genesis import Genesis
    from economics.state import BlobEntry
    from p2pnode.clients.chainview import Head
    from p2pnode.clients.payments import Info
    from p2pnode.clients.session import Session


def entry_fields(entry: "BlobEntry", *, genesis: "Genesis", head: "Head") -> dict[str, Any]:
    """Return an entry as `--json` shows it."""
    from economics.blob import build_blob_id_text
    from p2pnode.clients.payments import latest_ms

    return {
        "blob_id": build_blob_id_text(entry.blob_id),
        "certified_height": entry.certified_height,
        "content_type": entry.content_type,
        "deletable": entry.deletable,
        "end_epoch": entry.end_epoch,
        "epochs_left": entry.end_epoch - head.epoch,
        "expires_ms": latest_ms(genesis, head, entry.end_epoch),
        "name": entry.name,
        "units": entry.units,
    }


@click.command("list")
@home_option
@json_option
def list_(home_path: Path, as_json: bool) -> None:
    """List the blobs that the network keeps for this wallet."""
    from p2pnode.clients.payments import find_blobs
    from p2pnode.home import Home

    owner = Home(home_path).wallet_public()

    async def work(client: "Session") -> None:
        head = await client.chain.head()
        entries = await client.chain.entries(owner)
        found = await find_blobs(client.chain, list({entry.blob_id for entry in entries}))
        lengths = {blob_id: summary.length for blob_id, summary in found.items()}
        rows = [
            {**entry_fields(entry, genesis=client.genesis, head=head), "length": lengths.get(entry.blob_id)}
            for entry in entries
        ]
        rows.sort(key=lambda row: (row["end_epoch"], row["blob_id"]))
        if as_json:
            echo_json({"blobs": rows, "epoch": head.epoch})
            return
        for row in rows:
            length = "?" if row["length"] is None else row["length"]
            click.echo(
                f"{row['blob_id']}  {length:>13} bytes  {row['units']:>6} units  "
                f"until epoch {row['end_epoch']}, {format_time(row['expires_ms'])}  {printable(row['name'])}".rstrip()
            )
        if not rows:
            click.echo("the network keeps nothing for this wallet", err=True)

    run_client(home_path, work)


@click.command(cls=IdCommand)
@click.argument("blob_id", metavar="ID", type=ID)
@home_option
@json_option
def info(blob_id: str, home_path: Path, as_json: bool) -> None:
    """Say whose a blob is, how large, and until when it is kept. Also how many shards may still fail."""
    from economics.genesis import build_key_text
    from p2pnode.clients.payments import info as ask
    from p2pnode.clients.session import parse_id
    from p2pnode.home import Home

    parsed = parse_id(blob_id)
    home = Home(home_path)
    owner = home.wallet_public() if home.owner_key_path.exists() else None

    async def work(client: "Session") -> None:
        found = await ask(client.chain, parsed, owner=owner)
        certificate = await client.certificate(parsed)
        answering = sum(row["shards"] for row in await client.status() if row["reachable"])
        fields = {
            **info_fields(found, client.genesis),
            "blob_id": blob_id,
            "certified_by": None if certificate is None else build_key_text(certificate.statement.owner),
            "shards_answering": answering,
            "shards_may_fail": max(0, answering - client.genesis.code.rows),
        }
        if as_json:
            echo_json(fields)
        else:
            show_info(fields)

    run_client(home_path, work)


def info_fields(found: "Info", genesis: "Genesis") -> dict[str, Any]:
    """Return what the chain says of a blob as `--json` shows it."""
    from p2pnode.clients.payments import latest_ms

    summary = found.summary
    return {
        "certified_epoch": summary.certified_epoch,
        "certified_height": summary.certified_height,
        "end_epoch": summary.end_epoch,
        "entries": sum(count for _, count in summary.entries),
        "epochs_left": found.epochs_left,
        "expires_ms": latest_ms(genesis, found.head, summary.end_epoch),
        "length": summary.length,
        "own": [entry_fields(entry, genesis=genesis, head=found.head) for entry in found.own],
        "shards": genesis.committee.n,
        "shards_needed": genesis.code.rows,
    }


def show_info(fields: dict[str, Any]) -> None:
    own = len(fields["own"])
    click.echo(
        f"blob       {fields['blob_id']}\n"
        f"owner      {fields['certified_by'] or 'no node that answers has its certificate'}\n"
        f"size       {fields['length']} bytes\n"
        f"certified  at height {fields['certified_height']}, in epoch {fields['certified_epoch']}\n"
        f"kept       until epoch {fields['end_epoch']}, {format_time(fields['expires_ms'])} at the latest, "
        f"by {fields['entries']} {'entry' if fields['entries'] == 1 else 'entries'}, {own} of this wallet\n"
        f"margin     {fields['epochs_left']} epochs with this one; nodes with {fields['shards_answering']} of "
        f"{fields['shards']} shards answer, and {fields['shards_may_fail']} of them may fail"
    )


@click.command(cls=IdCommand)
@click.argument("blob_id", metavar="ID", type=ID)
@click.argument("epochs", type=click.IntRange(1, 53))
@max_cost_option
@passphrase_option
@home_option
@json_option
def extend(
    blob_id: str, epochs: int, max_cost: int | None, passphrase_file: Path | None, home_path: Path, as_json: bool
) -> None:
    """Keep a blob of this wallet for EPOCHS more than it would be."""
    from p2pnode.clients.payments import extend as lengthen
    from p2pnode.clients.payments import format_amount
    from p2pnode.clients.session import parse_id

    parsed = parse_id(blob_id)
    key = load_owner(home_path, passphrase_file)

    async def work(client: "Session") -> None:
        done = await lengthen(client.chain, key, parsed, epochs=epochs, max_cost_frost=max_cost, on_quote=say_quote)
        if as_json:
            echo_json({"blob_id": blob_id, "cost_frost": done.cost_frost, "end_epoch": done.end_epoch})
        else:
            click.echo(f"kept until epoch {done.end_epoch}; paid {format_amount(done.cost_frost)}")

    run_client(home_path, work)


@click.command(cls=IdCommand)
@click.argument("blob_id", metavar="ID", type=ID)
@passphrase_option
@home_option
@json_option
def delete(blob_id: str, passphrase_file: Path | None, home_path: Path, as_json: bool) -> None:
    """Stop keeping a blob for this wallet.

    What was paid for and is left comes back as storage, which the next `store` uses. Another owner's entry stays.
    """
    from p2pnode.clients.payments import delete as remove
    from p2pnode.clients.session import parse_id

    parsed = parse_id(blob_id)
    key = load_owner(home_path, passphrase_file)

    async def work(client: "Session") -> None:
        done = await remove(client.chain, key, parsed)
        units = sum(entry.units for entry in done.entries)
        if as_json:
            fields = {"deleted": len(done.entries), "permanent": len(done.permanent), "units_back": units}
            echo_json({"blob_id": blob_id, **fields})
            return
        click.echo(f"deleted; {units} units of storage are free for the next blob")
        if done.permanent:
            click.echo("it is also kept by an entry stored with --permanent, until that expires", err=True)

    run_client(home_path, work)
