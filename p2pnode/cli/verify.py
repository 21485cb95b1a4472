"""Commands that trust no node: prove that a blob is certified, with a peer or offline; carry a checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pnode.cli.options import ID, IdCommand, home_option, json_option
from p2pnode.cli.session import echo_json, format_time, run_client
from p2pnode.errors import InputError, Unavailable

if TYPE_CHECKING:
    from economics.blob import BlobId
    from economics.light import Proven, Receipt
    from p2pnode.clients.session import Session

RECEIPT_HELP = "Write the receipt here: it proves the same offline, to whoever has the genesis file."
OFFLINE_HELP = "Check this receipt file offline instead of asking a peer."
CHECKPOINT_HELP = "Trust this checkpoint file, and not the genesis alone: needed where genesis is older than unbonding."


def write_file(path: Path, data: bytes) -> None:
    from p2pnode.files import replace_synced

    try:
        replace_synced(path, (data,))
    except OSError as fault:
        raise InputError(f"cannot write {path}: {fault.strerror}") from fault


def read_file(path: Path) -> bytes:
    from economics.light import RECEIPT_BYTES_MAX
    from p2pnode.files import read_bounded

    try:
        return read_bounded(path, RECEIPT_BYTES_MAX)
    except OSError as fault:
        raise InputError(f"cannot read {path}: {fault.strerror}") from fault


@click.command(cls=IdCommand)
@click.argument("blob_id", metavar="ID", type=ID)
@click.option("--save", type=click.Path(path_type=Path), help=RECEIPT_HELP)
@click.option("--receipt", type=click.Path(path_type=Path), help=OFFLINE_HELP)
@click.option("--checkpoint", type=click.Path(path_type=Path), help=CHECKPOINT_HELP)
@home_option
@json_option
def verify(
    blob_id: str, save: Path | None, receipt: Path | None, checkpoint: Path | None, home_path: Path, as_json: bool
) -> None:
    """Prove that the network owes a blob, and until when.

    The genesis file, or a checkpoint, and one peer that need not be trusted suffice; with --receipt no peer at all.
    """
    from p2pnode.clients.session import parse_id

    parsed = parse_id(blob_id)
    trusted = None if checkpoint is None else read_file(checkpoint)
    if receipt is not None:
        show(verify_offline(home_path, parsed, read_file(receipt), trusted), as_json=as_json)
        return

    async def work(client: "Session") -> None:
        if trusted is not None:
            begin_from(client, trusted)
        made = await fetch(client, parsed)
        proven = check(made, client.chain.origin, client.genesis.parameters)
        if save is not None:
            write_file(save, made.encode())
        show(proven, as_json=as_json)

    run_client(home_path, work)


def begin_from(client: "Session", checkpoint: bytes) -> None:
    from economics.errors import Rejected

    try:
        client.chain.trust(checkpoint)
    except Rejected as fault:
        raise InputError(f"that is no checkpoint of this network: {fault}") from fault


async def fetch(client: "Session", blob_id: "BlobId") -> "Receipt":
    from economics.errors import Rejected
    from p2pnode.clients.payments import find_blob

    await find_blob(client.chain, blob_id)
    try:
        return await client.chain.receipt(blob_id)
    except Rejected as fault:
        raise Unavailable(f"the network owes no such blob: {fault.detail}") from fault


def check(receipt: "Receipt", trusted: Any, parameters: Any) -> "Proven":
    from economics.errors import Rejected

    try:
        return receipt.since(trusted.epoch).verify(trusted, parameters=parameters)
    except Rejected as fault:
        raise InputError(f"the receipt proves nothing: {fault}") from fault


def verify_offline(home_path: Path, blob_id: "BlobId", data: bytes, checkpoint: bytes | None) -> "Proven":
    """Return what a receipt file proves of a blob, to whoever trusts the home's genesis file or a checkpoint."""
    from economics.errors import Rejected
    from economics.light import Receipt, Trusted, is_stale
    from p2pnode.clients.trust import trusted_genesis
    from p2pnode.dialling import clock_ms
    from p2pnode.home import Home

    genesis = Home(home_path).load_genesis()
    try:
        receipt = Receipt.decode(data, chain_id=genesis.chain_id)
        start = trusted_genesis(genesis)
        trusted = start if checkpoint is None else Trusted.decode(checkpoint, chain_id=genesis.chain_id)
    except Rejected as fault:
        raise InputError(f"that is no receipt or checkpoint of this network: {fault}") from fault
    if is_stale(trusted, now_ms=clock_ms(), parameters=genesis.parameters):
        raise InputError("what is trusted is older than the unbonding time: name a recent --checkpoint")
    if receipt.blob_id != blob_id:
        raise InputError("the receipt is another blob's")
    return check(receipt, trusted, genesis.parameters)


def show(proven: "Proven", *, as_json: bool) -> None:
    from economics.blob import build_blob_id_text

    fields = {
        "as_of_height": proven.height,
        "as_of_ms": proven.time_ms,
        "blob_id": build_blob_id_text(proven.blob_id),
        "certified_height": proven.certified_height,
        "end_epoch": proven.end_epoch,
        "end_ms": proven.end_ms,
        "length": proven.length,
    }
    if as_json:
        echo_json(fields)
        return
    click.echo(
        f"proven: the network owes these {proven.length} bytes since block {proven.certified_height}, until epoch "
        f"{proven.end_epoch} begins, which is not before {format_time(proven.end_ms)}; as of block {proven.height}, "
        f"{format_time(proven.time_ms)}"
    )


@click.command()
@click.argument("output", type=click.Path(path_type=Path))
@home_option
@json_option
def checkpoint(output: Path, home_path: Path, as_json: bool) -> None:
    """Write a checkpoint of the newest epoch to OUTPUT. It is for others who trust you."""

    async def work(client: "Session") -> None:
        await client.chain.head()
        trusted = client.chain.trusted
        write_file(output, trusted.encode())
        if as_json:
            echo_json({"epoch": trusted.epoch, "root_height": trusted.root.height})
        else:
            click.echo(f"epoch {trusted.epoch}, which begins after block {trusted.root.height}", err=True)

    run_client(home_path, work)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@home_option
@json_option
def trust(checkpoint: Path, home_path: Path, as_json: bool) -> None:
    """Trust CHECKPOINT, a file from someone you trust. All commands of this home do so from now on.

    Needed where the genesis, or the last use of this home, is longer ago than the unbonding time.
    """
    from economics.errors import Rejected
    from p2pnode.clients.trust import keep_trusted, read_checkpoint
    from p2pnode.dialling import clock_ms
    from p2pnode.home import Home

    home = Home(home_path)
    genesis = home.load_genesis()
    try:
        trusted = read_checkpoint(read_file(checkpoint), genesis, now_ms=clock_ms())
    except Rejected as fault:
        raise InputError(f"{checkpoint} is no checkpoint of this network to trust: {fault}") from fault
    keep_trusted(home.trusted_path, trusted)
    if as_json:
        echo_json({"epoch": trusted.epoch, "root_height": trusted.root.height})
    else:
        click.echo(f"trusted: epoch {trusted.epoch}, which begins after block {trusted.root.height}", err=True)
