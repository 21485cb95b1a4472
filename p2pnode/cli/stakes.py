"""Commands of whoever puts WAL on nodes: stake it, take it back, see what it is worth, and how the members do."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pnode.cli.options import AMOUNT, ID, IdCommand, home_option, json_option, parse_owner
from p2pnode.cli.passphrase import passphrase_option
from p2pnode.cli.session import echo_json, load_owner, run_client
from p2pnode.errors import InputError, say_form

if TYPE_CHECKING:
    from economics.nodes import NodeEntry, Stake
    from economics.slots import StakeId
    from p2pnode.clients.overview import Overview
    from p2pnode.clients.session import Session


@click.command(cls=IdCommand)
@click.argument("node", metavar="NODE", type=ID)
@click.argument("amount", metavar="WAL", type=AMOUNT)
@passphrase_option
@home_option
@json_option
def stake(node: str, amount: int, passphrase_file: Path | None, home_path: Path, as_json: bool) -> None:
    """Put WAL on NODE, to have part in what the node earns. It is slashed with the node, too.

    It counts from the next epoch on, or from the one after it where the next one's members are chosen already.
    """
    from economics.crypto import NodeId
    from economics.genesis import build_key_text
    from p2pnode.clients import enrolment
    from p2pnode.clients.payments import format_amount

    named = NodeId(parse_owner(node))
    key = load_owner(home_path, passphrase_file)

    async def work(client: "Session") -> None:
        put, outcome = await enrolment.put_stake(client.chain, key, named, amount)
        if as_json:
            echo_json({"amount_frost": amount, "fee_frost": outcome.fee_frost, "stake": build_key_text(put)})
            return
        click.echo(f"staked {format_amount(amount)}, fee {format_amount(outcome.fee_frost)}", err=True)
        click.echo(build_key_text(put))

    run_client(home_path, work)


@click.command(cls=IdCommand)
@click.argument("stake_id", metavar="STAKE", type=ID)
@click.option("--shares", type=click.IntRange(min=1), help="Take only so many of its shares back.")
@passphrase_option
@home_option
@json_option
def unstake(stake_id: str, shares: int | None, passphrase_file: Path | None, home_path: Path, as_json: bool) -> None:
    """Take STAKE back. That is at once if it does not count yet, else when the unbonding time is over.

    `p2pnode stakes` lists the stakes of this wallet.
    """
    from p2pnode.clients import enrolment
    from p2pnode.clients.payments import format_amount

    named = parse_stake(stake_id)
    key = load_owner(home_path, passphrase_file)

    async def work(client: "Session") -> None:
        outcome = await enrolment.take_stake(client.chain, key, named, shares or 0)
        if as_json:
            echo_json({"fee_frost": outcome.fee_frost, "height": outcome.height, "stake": stake_id})
        else:
            click.echo(f"on its way, fee {format_amount(outcome.fee_frost)}: `p2pnode stakes` shows until when")

    run_client(home_path, work)


def parse_stake(text: str) -> "StakeId":
    """Return a stake's ID, or raise `InputError`."""
    from economics.crypto import Digest
    from economics.errors import Rejected
    from economics.genesis import parse_key
    from economics.slots import StakeId

    try:
        return StakeId(Digest(parse_key(text)))
    except Rejected as fault:
        raise InputError(f"{text!r} is not a stake's ID: {say_form(text)}") from fault


@click.command("stakes")
@home_option
@json_option
def stakes(home_path: Path, as_json: bool) -> None:
    """List what this wallet has on nodes, and what it is worth."""
    from p2pnode.clients.enrolment import find_node
    from p2pnode.clients.payments import format_amount
    from p2pnode.home import Home

    owner = Home(home_path).wallet_public()

    async def work(client: "Session") -> None:
        held = sorted(await client.chain.stakes(owner), key=lambda one: (one.node, one.stake))
        entries = {node: await find_node(client.chain, node) for node in dict.fromkeys(one.node for one in held)}
        rows = [stake_fields(one, entries[one.node]) for one in held]
        if as_json:
            echo_json({"stakes": rows})
            return
        for row in rows:
            until = "" if row["phase"] == "active" else f" until epoch {row['turn_epoch']} begins"
            worth = format_amount(row["worth_frost"])
            click.echo(f"{row['stake']}  on {row['node'][:8]}  {worth}  {row['phase']}{until}")
        if not rows:
            click.echo("this wallet has nothing staked", err=True)

    run_client(home_path, work)


def stake_fields(held: "Stake", entry: "NodeEntry | None") -> dict[str, Any]:
    """Return a stake as `--json` shows it."""
    from economics.genesis import build_key_text
    from p2pnode.clients.enrolment import stake_worth

    return {
        "node": build_key_text(held.node),
        "phase": held.phase.name.lower(),
        "shares": held.shares,
        "stake": build_key_text(held.stake),
        "turn_epoch": held.turn_epoch,
        "worth_frost": stake_worth(held, entry),
    }


@click.command()
@home_option
@json_option
def committee(home_path: Path, as_json: bool) -> None:
    """Show who holds how many shards now and next. Also with what stake, and how they stand their challenges."""
    from p2pnode.clients.overview import find_overview

    async def work(client: "Session") -> None:
        fields = committee_fields(await find_overview(client.chain))
        if as_json:
            echo_json(fields)
        else:
            show_committee(fields)

    run_client(home_path, work)


def committee_fields(found: "Overview") -> dict[str, Any]:
    """Return the members as `--json` shows them: those of this epoch, then those who are new in the next one."""
    from economics.genesis import build_key_text
    from economics.nodes import Marks

    later = found.following
    rows: list[dict[str, Any]] = []
    for node in found.nodes:
        index = found.committee.index_of(node)
        entry = found.nodes[node]
        marks = Marks() if index is None else found.marks(index)
        row = {
            "bad": marks.bad,
            "challenged": marks.challenged,
            "commission_percent": entry.commission_basis_points / 100,
            "has_reported": index in found.handover.reporters,
            "missed_epochs": entry.missed_epochs,
            "next_shards": None if later is None else len(later.shards_of_node(node)),
            "node": build_key_text(node),
            "passed": marks.passed,
            "shards": len(found.committee.shards_of_node(node)),
            "stake_frost": entry.stake_frost,
        }
        rows.append(row)
    return {
        "epoch": found.committee.epoch,
        "is_handed_over": found.handover.is_done,
        "members": rows,
        "next_is_fixed": later is not None,
        "quorum_shards": found.committee.quorum,
        "reported_shards": found.reported_shards,
        "rounds": found.standing.rounds,
        "same_since_epoch": found.handover.since_epoch,
        "shards": found.committee.n,
        "storage_frost_per_unit": found.terms.storage_frost_per_unit,
        "write_frost_per_unit": found.terms.write_frost_per_unit,
    }


def show_committee(fields: dict[str, Any]) -> None:
    from p2pnode.clients.payments import format_amount

    handed = "handed over" if fields["is_handed_over"] else "being handed over"
    click.echo(
        f"epoch {fields['epoch']}; these seats since epoch {fields['same_since_epoch']}, {handed}: members with "
        f"{fields['reported_shards']} of {fields['shards']} shards hold all they owe, {fields['quorum_shards']} are "
        f"needed\na unit of 64 KiB costs {fields['storage_frost_per_unit']} FROST an epoch and "
        f"{fields['write_frost_per_unit']} to write; {fields['rounds']} rounds of challenges so far"
    )
    for row in fields["members"]:
        later = "  ?" if row["next_shards"] is None else f"{row['next_shards']:3}"
        stood = f"  stood {row['passed']} of {row['challenged']} challenges" if row["challenged"] else ""
        missed = f"  away for {row['missed_epochs']} epochs" if row["missed_epochs"] else ""
        stake_text = format_amount(row["stake_frost"])
        click.echo(f"{row['node'][:8]}  {row['shards']:3} shards, next {later}  stake {stake_text}{stood}{missed}")
