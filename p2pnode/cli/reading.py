"""Commands that get bytes back: read what an ID names, open what a link names, list what is in it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pnode.cli.options import ID, RANGE, IdCommand, home_option, json_option
from p2pnode.cli.session import echo_json, printable, run_client
from p2pnode.errors import InputError, NodeError

if TYPE_CHECKING:
    from economics.blob import BlobId
    from p2pnode.clients.reading import Fetched, Request
    from p2pnode.clients.session import Session
    from p2pnode.content.contents import Keys, Listed

RANGE_HELP = "First and last byte, counted from 0, as in HTTP: 0-99 is the first hundred; 100- is the rest."
ASK_PEERS = (
    "the link names peers, who may have it where the network does not: `p2pnode get LINK -o FILE` asks them, "
    "`p2pnode sync DIR LINK` for a folder"
)
output_option = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File to write, or for a folder the directory that is to hold it; standard output if not given.",
)


@click.command(cls=IdCommand)
@click.argument("what", metavar="ID[/PATH]", type=ID)
@output_option
@click.option("--range", "bounds", metavar="A-B", type=RANGE, help=RANGE_HELP)
@click.option(
    "--strict", is_flag=True, help="Also prove, by encoding it again, that no other reader can get other bytes."
)
@click.option("--raw", is_flag=True, help="The blob as it is stored: sealed, or a quilt or a folder's list of files.")
@home_option
@json_option
def read(
    what: str,
    output: Path | None,
    bounds: tuple[int, int | None] | None,
    strict: bool,
    raw: bool,
    home_path: Path,
    as_json: bool,
) -> None:
    """Read a blob, a folder, or a file in one.

    Every byte is checked against the ID before it is written. A folder is restored into --output: what is right
    there already is not fetched. A sealed blob is opened with the key that this home has. Interrupted, run it again:
    a file goes on from where it was.
    """
    from p2pnode.clients.reading import Request
    from p2pnode.content.keyring import Keyring
    from p2pnode.home import Home

    require_output(output, as_json=as_json)
    blob_id, path = parse_what(what)
    if raw and path is not None:
        raise click.UsageError("--raw is for a whole blob: leave the path out")
    request = Request(blob_id, path, output, bounds=bounds, strict=strict, raw=raw)
    keys = Keyring(Home(home_path)).key_of
    run_client(home_path, lambda client: fetch(client, request, keys, as_json=as_json))


@click.command("open")
@click.argument("link", metavar="LINK")
@output_option
@home_option
@json_option
def open_(link: str, output: Path | None, home_path: Path, as_json: bool) -> None:
    """Read what a p2pnode:// link names. Its key is kept in this home.

    LINK in quotes, or - to take it from standard input, where neither a list of processes nor a shell's history shows
    its key.
    """
    from p2pnode.clients.reading import Request
    from p2pnode.content.keyring import Keyring
    from p2pnode.content.sharing import parse_link
    from p2pnode.home import Home

    require_output(output, as_json=as_json)
    parsed = parse_link(sys.stdin.readline() if link == "-" else link)
    keyring = Keyring(Home(home_path))

    def key_of(blob_id: "BlobId") -> bytes | None:
        return parsed.key if blob_id == parsed.blob_id and parsed.key is not None else keyring.key_of(blob_id)

    async def work(client: "Session") -> None:
        import trio

        done = await fetch(client, Request(parsed.blob_id, parsed.path, output), key_of, as_json=as_json)
        if parsed.key is not None and done.is_sealed:
            await trio.to_thread.run_sync(keyring.remember, parsed.blob_id, parsed.key)

    try:
        run_client(home_path, work)
    except (NodeError, BaseExceptionGroup):
        if parsed.peers:
            click.echo(ASK_PEERS, err=True)
        raise


async def fetch(client: "Session", request: "Request", keys: "Keys", *, as_json: bool) -> "Fetched":
    """Do what was asked, say what came of it and return it."""
    from economics.blob import build_blob_id_text
    from p2pnode.clients import reading
    from p2pnode.progress import read_progress

    text = build_blob_id_text(request.blob_id)
    with read_progress(request.path or text[:8]) as report:
        done = await reading.read(client, request, keys, sys.stdout.buffer, report)
    if as_json:
        faults = [str(fault) for fault in client.members.faults.values()]
        echo_json({"blob_id": text, "faults": faults, **describe(done)})
    else:
        click.echo(sum_up(done, request), err=True)
    return done


def describe(done: "Fetched") -> dict[str, Any]:
    """Return what reading ended with, as JSON shows it."""
    if done.restored is None:
        return {"kept_bytes": done.kept_bytes, "length": done.length}
    found = done.restored
    return {
        "copied_files": found.copied,
        "fetched_bytes": found.fetched_bytes,
        "fetched_files": found.fetched,
        "kept_files": found.kept,
        "length": done.length,
    }


def sum_up(done: "Fetched", request: "Request") -> str:
    """Return the same as one line."""
    from p2pnode.clients.reading import count_of

    if done.restored is None:
        there = f"; {done.kept_bytes} of them were there from an earlier call" if done.kept_bytes else ""
        return f"read {done.length} bytes, every one checked{there}"
    found = done.restored
    there = f", {found.kept} were right already" if found.kept else ""
    copied = f", {found.copied} copied from others" if found.copied else ""
    fetched = f"{count_of(found.fetched, 'file')} fetched, {count_of(found.fetched_bytes, 'byte')}"
    return f"{request.output} is restored: {fetched}{there}{copied}"


@click.command(cls=IdCommand)
@click.argument("what", metavar="ID[/PATH]", type=ID)
@home_option
@json_option
def ls(what: str, home_path: Path, as_json: bool) -> None:
    """List the files in a quilt or a folder. Each line has bytes and path, and x for what is executable."""
    from economics.blob import build_blob_id_text
    from p2pnode.content.keyring import Keyring
    from p2pnode.home import Home

    blob_id, path = parse_what(what)
    keys = Keyring(Home(home_path)).key_of

    async def work(client: "Session") -> None:
        from p2pnode.clients.reading import count_of
        from p2pnode.clients.streaming import Blobs
        from p2pnode.content.contents import describe as look

        content = await look(Blobs(client).open, keys, blob_id)
        files = below(content.listing(), path)
        if as_json:
            rows = [
                {
                    "executable": file.executable,
                    "length": file.length,
                    "patch_id": file.patch_id,
                    "path": file.path,
                    "tags": dict(file.tags),
                }
                for file in files
            ]
            fields = {"blob_id": build_blob_id_text(blob_id), "kind": content.kind, "sealed": content.is_sealed}
            echo_json({**fields, "files": rows})
            return
        for file in files:
            click.echo(f"{file.length:>13} {'x' if file.executable else ' '} {printable(file.path)}")
        click.echo(f"{count_of(len(files), 'file')}, {sum(file.length for file in files)} bytes", err=True)

    run_client(home_path, work)


def below(files: "tuple[Listed, ...]", path: str | None) -> "list[Listed]":
    """Return the file of a path, or those in the folder of that path; raises `InputError` where there is neither."""
    found = [file for file in files if path is None or file.path == path or file.path.startswith(f"{path}/")]
    if not found and path is not None:
        raise InputError(f"there is no {path!r} in it: `p2pnode ls ID` shows what there is")
    return found


def require_output(output: Path | None, *, as_json: bool) -> None:
    if as_json and output is None:
        raise click.UsageError("--json needs --output: the bytes would be mixed with the JSON")


def parse_what(text: str) -> "tuple[BlobId, str | None]":
    """Return the blob ID and the path behind it, if there is one; raises `InputError`."""
    from p2pnode.clients.session import parse_id

    name, _, path = text.partition("/")
    return parse_id(name), path.rstrip("/") or None
