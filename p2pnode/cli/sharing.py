"""The command that gives something away: share."""

from pathlib import Path

import click

from p2pnode.cli.options import ID, IdCommand, home_option, json_option
from p2pnode.cli.reading import parse_what
from p2pnode.cli.session import echo_json


@click.command(cls=IdCommand)
@click.argument("what", metavar="ID[/PATH]", type=ID)
@home_option
@json_option
def share(what: str, home_path: Path, as_json: bool) -> None:
    """Print a link to a blob, a folder or a file in one. It has the key that opens it. Asks nobody.

    Whoever has the link can read, with `p2pnode open LINK`, for as long as somebody keeps the blob.
    """
    from p2pnode.content.keyring import Keyring
    from p2pnode.content.sharing import Link
    from p2pnode.home import Home

    blob_id, path = parse_what(what)
    key = Keyring(Home(home_path)).key_of(blob_id)
    link = Link(blob_id, path, key).build()
    for line in warnings(path, is_sealed=key is not None):
        click.echo(line, err=True)
    if as_json:
        echo_json({"link": link, "sealed": key is not None})
    else:
        click.echo(link)


def warnings(path: str | None, *, is_sealed: bool) -> list[str]:
    """Return what the user is to know before a link is given away."""
    if not is_sealed:
        return [
            "this home has no key for it: whoever has this link, or learns the ID, can read it, unless it was sealed "
            "elsewhere; then this link does not open it"
        ]
    said = ["whoever has this link can read it, and it cannot be recalled: send it only to those who may"]
    if path is not None:
        said.append("its key opens everything in the blob, not this file alone: store the file by itself to share less")
    return said
