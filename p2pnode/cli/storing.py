"""The command that stores: a file, files in a quilt, a folder; sealed or not."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pnode.cli.options import home_option, json_option, max_cost_option
from p2pnode.cli.passphrase import passphrase_option
from p2pnode.cli.session import echo_json, load_owner, printable, run_client, say_quote
from p2pnode.errors import InputError

if TYPE_CHECKING:
    from p2pnode.clients.publish import Published, Publisher
    from p2pnode.clients.session import Session
    from p2pnode.content.folderstore import StoredFolder
    from p2pnode.content.keyring import Keyring
    from p2pnode.content.scan import Skipped
    from p2pnode.content.sources import Source

SEALED = "sealed: only this home can open it, so keep a backup of it; `p2pnode share ID` makes a link for others"


@click.command()
@click.argument("paths", metavar="FILE|DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--epochs",
    default=30,
    show_default=True,
    type=click.IntRange(1, 53),
    help="Keep it for so many epochs, the current one counted: 30 is a month where an epoch is a day.",
)
@max_cost_option
@click.option("--permanent", is_flag=True, help="Let nobody delete it before it expires, not even its owner.")
@click.option("--encrypt", is_flag=True, help="Seal it: only this home and whoever has a link from it can read it.")
@click.option("--quilt", "as_quilt", is_flag=True, help="Put all the files, also those in a DIR, into one blob.")
@passphrase_option
@home_option
@json_option
def store(
    paths: Sequence[Path],
    epochs: int,
    max_cost: int | None,
    permanent: bool,
    encrypt: bool,
    as_quilt: bool,
    passphrase_file: Path | None,
    home_path: Path,
    as_json: bool,
) -> None:
    """Store a FILE, several in one blob, or a DIR, and print the ID.

    The price is said first, and nothing is paid or sent if it is over --max-cost. The ID is printed once the block
    that certifies it is final: from then on the network owes the blob. Interrupted, run it again; a blob that is
    certified already moves no bytes.

    One FILE is a blob of its own. Several make a quilt, which costs as one blob. A DIR is stored as a folder: storing
    it again moves only what has changed. `read ID/PATH` reads one file of either, `read ID -o DIR` restores all.
    """
    from p2pnode.clients.payments import Order
    from p2pnode.content.keyring import Keyring
    from p2pnode.home import Home

    order = Order(epochs=epochs, deletable=not permanent, max_cost_frost=max_cost, on_quote=say_quote)
    owner = load_owner(home_path, passphrase_file)
    home = Home(home_path)
    keyring = Keyring(home)
    is_folder = len(paths) == 1 and paths[0].is_dir() and not as_quilt
    source = None if is_folder else choose_source(paths, as_quilt=as_quilt)

    async def work(client: "Session") -> None:
        from p2pnode.clients.publish import Publisher

        publisher = Publisher(client, owner, order)
        if source is None:
            await store_directory(publisher, paths[0], keyring, encrypt=encrypt, as_json=as_json)
        else:
            await store_source(publisher, source, keyring if encrypt else None, as_json=as_json)

    run_client(home_path, work)


def choose_source(paths: Sequence[Path], *, as_quilt: bool) -> "Source":
    """Return the one blob that these files make; raises `InputError`."""
    from p2pnode.content.quilt import QuiltFile, build_quilt
    from p2pnode.content.scan import hash_files, scan
    from p2pnode.content.sources import FileSource

    if len(paths) == 1 and not as_quilt:
        return FileSource.open(paths[0])
    files: list[QuiltFile] = []
    for path in paths:
        if not path.is_dir():
            files.append(QuiltFile(path.name, FileSource.open(path)))
        elif not as_quilt:
            raise InputError(f"{path} is a folder: store it by itself, or all of its files in one blob with --quilt")
        else:
            scanned = scan(path)
            hashed, unread = hash_files(scanned)
            say_skipped((*scanned.skipped, *unread))
            front = "" if len(paths) == 1 else f"{path.resolve().name}/"
            files += [QuiltFile(f"{front}{file.path}", file.source) for file in hashed]
    names = Counter(file.name for file in files)
    for name, count in names.items():
        if count > 1:
            raise InputError(f"{count} of the files are called {name!r}: a quilt tells them apart by name, rename them")
    return build_quilt(files).source


def say_skipped(skipped: "Sequence[Skipped]") -> None:
    """Say what is not stored, and why."""
    for one in skipped:
        click.echo(f"left out: {printable(one.path)}: {one.why}", err=True)


async def store_source(publisher: "Publisher", source: "Source", keyring: "Keyring | None", *, as_json: bool) -> None:
    """Store one blob and say what came of it."""
    import trio

    from economics.blob import build_blob_id_text
    from p2pnode.progress import store_progress

    sealed = None if keyring is None else await trio.to_thread.run_sync(keyring.seal, source)
    if keyring is not None and sealed is not None:
        publisher = replace(publisher, on_named=partial(keyring.remember, key=sealed.key))
    with store_progress(Path(source.name).name) as report:
        done = await replace(publisher, report=report).publish(sealed or source)
    if as_json:
        echo_json({**describe(publisher.client, done), "sealed": sealed is not None})
        return
    click.echo(sum_up(publisher.client, done), err=True)
    if sealed is not None:
        click.echo(SEALED, err=True)
    click.echo(build_blob_id_text(done.blob_id))


async def store_directory(
    publisher: "Publisher", directory: Path, keyring: "Keyring", *, encrypt: bool, as_json: bool
) -> None:
    """Store a folder, moving what has changed since the last time, and say what came of it."""
    from economics.blob import build_blob_id_text
    from p2pnode.clients.depot import store_again
    from p2pnode.progress import folder_progress

    with folder_progress(directory.name or str(directory)) as report:
        done = await store_again(publisher, directory, keyring, encrypt=encrypt, report=report)
    if as_json:
        echo_json(describe_folder(done))
        return
    say_skipped(done.skipped)
    click.echo(sum_up_folder(done), err=True)
    if encrypt:
        click.echo(SEALED, err=True)
    click.echo(build_blob_id_text(done.blob_id))


def describe_folder(done: "StoredFolder") -> dict[str, Any]:
    """Return what storing a folder ended with, as JSON shows it."""
    from economics.blob import build_blob_id_text

    uploads = [one.upload[0] for one in done.published if one.upload is not None]
    return {
        "blob_id": build_blob_id_text(done.blob_id),
        "blobs": len(done.manifest.blobs) + 1,
        "end_epoch": done.end_epoch,
        "faults": sorted({str(fault) for upload in uploads for fault in upload.faults}),
        "files": len(done.manifest.files),
        "length": sum(file.length for file in done.manifest.files),
        "paid_frost": done.paid_frost,
        "sealed": bool(done.key),
        "segments_present": sum(upload.present_segments for upload in uploads),
        "sent_bytes": done.sent_bytes,
        "skipped": [{"path": one.path, "why": one.why} for one in done.skipped],
        "stored_blobs": len(uploads),
        "transactions": done.transactions,
    }


def sum_up_folder(done: "StoredFolder") -> str:
    """Return the same as one line."""
    from p2pnode.clients.payments import format_amount
    from p2pnode.clients.reading import count_of

    length = sum(file.length for file in done.manifest.files)
    uploads = [one.upload[0] for one in done.published if one.upload is not None]
    new = sum(upload.length for upload in uploads)
    moved = (
        f"{new} bytes were new, in {count_of(len(uploads), 'blob')}"
        if uploads
        else "nothing was new, and nothing was sent"
    )
    paid = f"paid {format_amount(done.paid_frost)}, kept until epoch {done.end_epoch} begins"
    return f"stored {count_of(len(done.manifest.files), 'file')}, {length} bytes: {moved}; {paid}"


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
    from p2pnode.clients.payments import format_amount

    paid = f"paid {format_amount(done.paid_frost)}, kept until epoch {done.end_epoch} begins"
    if done.upload is None:
        return f"the network owes these {done.length} bytes already: nothing was sent; {paid}"
    stored, outcome = done.upload
    committee = client.genesis.committee
    signed = f"{stored.committed} of {committee.n} shards signed, {committee.quorum} needed"
    there = f"; {stored.present_segments} segment copies were there already" if stored.present_segments else ""
    return f"certified in block {outcome.height}: {stored.length} bytes, {signed}{there}; {paid}"
