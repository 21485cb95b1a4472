"""Commands on the chain: its newest blocks, one transaction; and how a transaction is shown."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pnode.cli.options import ID, IdCommand, home_option, json_option, limit_option
from p2pnode.cli.session import echo_json, format_time, printable, run_client
from p2pnode.errors import InputError, Unavailable, say_form

if TYPE_CHECKING:
    from economics.arguments import Operation
    from economics.crypto import Digest
    from p2pnode.clients.chainview import HistoryRow
    from p2pnode.clients.session import Session


@click.command()
@limit_option
@home_option
@json_option
def blocks(limit: int, home_path: Path, as_json: bool) -> None:
    """List the newest final blocks, newest first."""
    from economics.genesis import build_key_text

    async def work(client: "Session") -> None:
        rows: list[dict[str, Any]] = [
            {
                "epoch": header.epoch,
                "hash": build_key_text(header.hash),
                "height": header.height,
                "leader": header.leader,
                "time_ms": header.time_ms,
                "transactions": header.transactions_count,
                "view": header.view,
            }
            for header in await client.chain.blocks(limit=limit)
        ]
        if as_json:
            echo_json({"blocks": rows})
            return
        for row in rows:
            click.echo(
                f"{row['height']:>8}  {row['hash']}  epoch {row['epoch']}  view {row['view']}  "
                f"leader {row['leader']}  {row['transactions']:>5} transactions  {format_time(row['time_ms'])}"
            )

    run_client(home_path, work)


@click.command(cls=IdCommand)
@click.argument("tx_hash", metavar="HASH", type=ID)
@home_option
@json_option
def tx(tx_hash: str, home_path: Path, as_json: bool) -> None:
    """Say what became of a transaction."""
    parsed = parse_hash(tx_hash)

    async def work(client: "Session") -> None:
        row = await client.chain.transaction(parsed)
        if row is None:
            raise Unavailable(f"no final block holds transaction {tx_hash}: check the hash, or wait a moment")
        if as_json:
            echo_json(row_fields(row))
        else:
            click.echo(row_line(row))

    run_client(home_path, work)


def parse_hash(text: str) -> "Digest":
    """Return a transaction's hash, or raise `InputError`."""
    from economics.crypto import Digest
    from economics.errors import Rejected
    from economics.genesis import parse_key

    try:
        return Digest(parse_key(text))
    except Rejected as fault:
        raise InputError(f"{text!r} is not a transaction's hash: {say_form(text)}") from fault


def row_fields(row: "HistoryRow") -> dict[str, Any]:
    """Return a transaction in a final block as `--json` shows it."""
    from economics.genesis import build_key_text

    transaction = row.signed.transaction
    name, arguments = describe(transaction.operation)
    return {
        "arguments": arguments,
        "code": row.code,
        "fee_frost": row.fee_frost,
        "hash": build_key_text(row.signed.hash),
        "height": row.height,
        "index": row.index,
        "nonce": transaction.nonce,
        "operation": name,
        "sender": build_key_text(transaction.sender),
    }


def row_line(row: "HistoryRow") -> str:
    from p2pnode.clients.payments import format_amount

    fields = row_fields(row)
    words = "  ".join(
        format_amount(value) if name == "amount_frost" else f"{name} {value}"
        for name, value in fields["arguments"].items()
    )
    outcome = "" if row.code == "ok" else f"  failed: {row.code}"
    fee = format_amount(row.fee_frost)
    return printable(f"{row.height:>8}  {fields['hash']}  {fields['operation']}  {words}{outcome}  fee {fee}")


def describe(operation: "Operation") -> tuple[str, dict[str, Any]]:
    """Return an operation's name and its arguments, bytes as base64url; of what is long only what names it."""
    from dataclasses import fields

    from economics.arguments import Certify, Evidence, RegisterNode
    from economics.genesis import build_key_text

    match operation:
        case Certify(certificate):
            statement = certificate.statement
            ids = {"blob_id": statement.blob_id, "owner": statement.owner, "reservation": statement.reservation}
            shown = {name: build_key_text(value) for name, value in ids.items()}
            return "certify", {**shown, "length": statement.length, "signers": len(certificate.signatures)}
        case RegisterNode():
            return "register_node", {"node": build_key_text(operation.node)}
        case Evidence():
            return "evidence", {}
        case _:
            name = "".join(f"_{char.lower()}" if char.isupper() else char for char in type(operation).__name__)
            values = {field.name: getattr(operation, field.name) for field in fields(operation)}
            return name.removeprefix("_"), {
                name: build_key_text(value) if isinstance(value, bytes) else value for name, value in values.items()
            }
