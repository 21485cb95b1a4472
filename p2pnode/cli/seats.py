"""Commands of whoever gives the network a disk: join it, leave it, come back from a lost disk, name one's prices."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pnode.cli.node import load_network
from p2pnode.cli.options import AMOUNT, PERCENT, SIZE, home_option, json_option
from p2pnode.cli.passphrase import asking, passphrase_option, plain_option
from p2pnode.cli.session import echo_json, load_owner, run_async, run_client, set_up_logging
from p2pnode.errors import ConfigError, InputError

if TYPE_CHECKING:
    from economics.genesis import Genesis
    from p2pnode.clients.enrolment import Offer, Owed
    from p2pnode.clients.session import Session
    from p2pnode.home import Config, Home
    from p2pnode.keys import Key

listen_option = click.option(
    "--listen", multiple=True, help="Address to listen on, such as /ip4/0.0.0.0/tcp/4001; may be repeated."
)


@click.command()
@click.option(
    "--genesis", type=click.Path(path_type=Path), help="Genesis file of the network; the home's if not given."
)
@click.option("--stake", metavar="WAL", type=AMOUNT, required=True, help="What this wallet is to have on the node.")
@click.option("--capacity", type=SIZE, help="Most bytes of slivers to hold, such as 500GB; 64 GiB if not given.")
@click.option(
    "--commission", metavar="PERCENT", type=PERCENT, help="Owner's part of what the stakes earn; 10 at first."
)
@listen_option
@click.option("--no-run", is_flag=True, help="Leave running the node to `p2pnode run`.")
@plain_option
@passphrase_option
@home_option
def join(
    genesis: Path | None,
    stake: int,
    capacity: int | None,
    commission: int | None,
    listen: tuple[str, ...],
    no_run: bool,
    plain: bool,
    passphrase_file: Path | None,
    home_path: Path,
) -> None:
    """Give this machine's disk to a network, with a stake. Registers its node, puts the stake on it, and runs it until
    told to stop.

    Makes the home if there is none. Shards come with the next epoch, or the one after it. Interrupted, or without
    enough WAL, the same command goes on: nothing is paid for twice.
    """
    from p2pnode.home import Home
    from p2pnode.node import run_node
    from p2pnode.wallet import create_wallet, load_wallet

    home = Home(home_path)
    take_genesis(home, genesis)
    if home.owner_key_path.exists():
        owner = load_wallet(home.owner_key_path, asking(passphrase_file))
    else:
        owner = create_wallet(home.owner_key_path, None if plain else asking(passphrase_file, confirm=True)())
    operator = take_node(home, listen=listen, capacity=capacity)
    quota = home.load_config().quota_bytes

    async def work(client: "Session") -> None:
        await enrol(client, home, owner, operator, stake=stake, quota=quota, commission=commission)

    run_client(home_path, work)
    if not no_run:
        set_up_logging(logging.INFO)
        run_async(lambda: run_node(home))


def take_genesis(home: "Home", path: Path | None) -> "Genesis":
    """Return the network of a home, put there if it has none; raises `ConfigError` where it is of another."""
    named = load_network(path)
    if named is None:
        return home.load_genesis()
    if not home.genesis_path.exists():
        home.put_genesis(named)
    elif home.load_genesis().chain_id != named.chain_id:
        raise ConfigError(f"{home.path} is of another network than {path}: name another --home")
    return named


def take_node(home: "Home", *, listen: tuple[str, ...], capacity: int | None) -> "Key":
    """Return the operator's key of a home, whose node is made if there is none; its settings stay."""
    if not home.config_path.exists():
        return home.create(new_config(listen, capacity))
    config = home.load_config()
    for name, value in settings_of(listen, capacity).items():
        if getattr(config, name) != value:
            raise ConfigError(f"{home.config_path} says another {name}: change it there, then leave the option out")
    return home.load_operator()


async def enrol(
    client: "Session",
    home: "Home",
    owner: "Key",
    operator: "Key",
    *,
    stake: int,
    quota: int,
    commission: int | None,
) -> None:
    """Do on chain what joining takes, after the checks that spare a node without a chance its fees."""
    import shutil

    from economics.crypto import NodeId, OwnerId
    from economics.genesis import build_key_text
    from p2pnode.clients import enrolment
    from p2pnode.clients.payments import format_amount
    from p2pnode.dialling import clock_ms

    chain, node = client.chain, NodeId(operator.public)
    await enrolment.verify_clock(chain, clock_ms())
    demand = await enrolment.find_demand(chain)
    enrolment.verify_room(demand, capacity_bytes=quota, free_bytes=shutil.disk_usage(home.path).free)
    offer = await find_offer(client, home, node, quota=quota, commission=commission)
    bid = enrolment.Bid(stake, offer)
    steps = await enrolment.plan_joining(chain, OwnerId(owner.public), node, bid)
    click.echo(f"joining as node {build_key_text(node)} costs at most {steps}", err=True)
    await enrolment.join(chain, owner, operator, bid, steps)
    owed = await enrolment.find_owed(chain, node)
    click.echo(f"registered and staked; {owed}", err=True)
    if not owed.shards and stake < (least := await enrolment.find_seat_frost(chain)):
        click.echo(
            f"no shard comes with so little now: one takes {format_amount(least)} on a node, from whomever; "
            "`p2pnode stake` adds to it",
            err=True,
        )


async def find_offer(client: "Session", home: "Home", node: bytes, *, quota: int, commission: int | None) -> "Offer":
    """Return what a node is to say of itself: as it did before, else the network's prices, for all that it has room."""
    from economics.crypto import NodeId
    from economics.geometry import STORAGE_UNIT_BYTES
    from p2pnode.clients.enrolment import COMMISSION_BASIS_POINTS, Offer, find_node, offer_of
    from p2pnode.dialling import dialable

    entry = await find_node(client.chain, NodeId(node))
    terms = (await client.chain.seats()).terms
    before = None if entry is None else offer_of(entry)
    config = home.load_config()
    said = COMMISSION_BASIS_POINTS if before is None else before.commission_basis_points
    return Offer(
        quota // STORAGE_UNIT_BYTES,
        terms.storage_frost_per_unit if before is None else before.storage_vote_frost,
        terms.write_frost_per_unit if before is None else before.write_vote_frost,
        said if commission is None else commission,
        config.announce or dialable(config.listen),
    )


@click.command()
@click.option("--no-wait", is_flag=True, help="Do not wait until the node may be stopped.")
@passphrase_option
@home_option
@json_option
def leave(no_wait: bool, passphrase_file: Path | None, home_path: Path, as_json: bool) -> None:
    """Give this home's seats up and take its stakes back. Those are its wallet's stakes on its own node.

    The node must run on until its shards are with others, which this command waits for. What was staked is paid back
    when the unbonding time is over, as `p2pnode stakes` shows.
    """
    from economics.crypto import NodeId
    from economics.genesis import build_key_text
    from p2pnode.clients import enrolment
    from p2pnode.home import Home

    owner = load_owner(home_path, passphrase_file)
    operator = Home(home_path).load_operator()
    node = NodeId(operator.public)

    def tell(owed: "Owed") -> None:
        click.echo(f"keep the node running; {owed}", err=True)

    async def work(client: "Session") -> None:
        stakes = await enrolment.leave(client.chain, owner, operator)
        if no_wait:
            owed = await enrolment.find_owed(client.chain, node)
        else:
            owed = await enrolment.wait_until_free(client.chain, node, tell=tell)
        if as_json:
            fields = {"epoch": owed.epoch, "node": build_key_text(node), "unstaked": len(stakes)}
            echo_json({**fields, "may_stop": owed.is_nothing, "next_shards": owed.next_shards, "shards": owed.shards})
        elif owed.is_nothing:
            click.echo(f"left; {owed}: the node may be stopped now")
        else:
            click.echo(f"leaving; keep the node running until it owes nothing: {owed}")

    run_client(home_path, work)


@click.command()
@click.option(
    "--genesis", type=click.Path(path_type=Path), help="Genesis file of the network; the home's if not given."
)
@click.option("--key", type=click.Path(path_type=Path), help="The node's operator.key; the home's if not given.")
@listen_option
@click.option("--capacity", type=SIZE, help="Most bytes of slivers to hold, such as 500GB; 64 GiB if not given.")
@home_option
@json_option
def replace(
    genesis: Path | None,
    key: Path | None,
    listen: tuple[str, ...],
    capacity: int | None,
    home_path: Path,
    as_json: bool,
) -> None:
    """Make a home for a node whose disk is lost, from its key. `p2pnode run` then refills it from the others.

    It votes again once the chain has passed whatever it may have signed. The old node must be gone for good: two with
    one key would be punished.
    """
    from economics.crypto import NodeId, OwnerId
    from economics.genesis import build_key_text
    from p2pnode.backup import mark_restored
    from p2pnode.home import Home
    from p2pnode.keys import load_key

    home = Home(home_path)
    if any(path.exists() for path in (home.chain_database_path, home.votelog_path, home.store_path)):
        raise ConfigError(f"{home_path} has data of a node: `p2pnode run` heals it; move it away if it is another's")
    operator = load_key(home.operator_key_path if key is None else key)
    take_genesis(home, genesis)
    owners: list[OwnerId] = []

    async def ask(client: "Session") -> None:
        from p2pnode.clients.enrolment import find_node

        entry = await find_node(client.chain, NodeId(operator.public))
        if entry is None:
            raise InputError("no node of this key is registered: `p2pnode join` makes a new one")
        owners.append(entry.owner)

    run_client(home_path, ask)
    mark_restored(home)
    home.adopt_operator(operator)
    if not home.config_path.exists():
        home.create(new_config(listen, capacity), owner=owners[0])
    if as_json:
        echo_json({"home": str(home_path), "node": build_key_text(operator.public)})
    else:
        click.echo(f"made node {build_key_text(operator.public)} anew in {home_path}\nnext: `p2pnode run`; it refills")


def new_config(listen: tuple[str, ...], capacity: int | None) -> "Config":
    from p2pnode.home import Config

    return Config(**settings_of(listen, capacity))


def settings_of(listen: tuple[str, ...], capacity: int | None) -> dict[str, Any]:
    """Return the settings that a command names."""
    named: dict[str, Any] = {"listen": listen or None, "quota_bytes": capacity}
    return {name: value for name, value in named.items() if value is not None}


@click.command()
@click.option("--storage", metavar="FROST", type=click.IntRange(0, 1 << 40), help="Price of 64 KiB for an epoch.")
@click.option("--write", metavar="FROST", type=click.IntRange(0, 1 << 40), help="Price of writing 64 KiB.")
@click.option("--capacity", type=SIZE, help="Most bytes of slivers that this node will hold.")
@click.option(
    "--commission", metavar="PERCENT", type=PERCENT, help="Owner's part of what the stakes earn, in 2 epochs."
)
@passphrase_option
@home_option
@json_option
def vote(
    storage: int | None,
    write: int | None,
    capacity: int | None,
    commission: int | None,
    passphrase_file: Path | None,
    home_path: Path,
    as_json: bool,
) -> None:
    """Say what this home's node sells storage for, and how much. What is not named stays.

    The next epoch's prices are the lowest that members with a quorum of shards agree to.
    """
    from dataclasses import replace as changed

    from economics.crypto import NodeId, OwnerId
    from economics.geometry import STORAGE_UNIT_BYTES
    from p2pnode.clients import enrolment
    from p2pnode.home import Home

    named = {
        "storage_vote_frost": storage,
        "write_vote_frost": write,
        "capacity_units": None if capacity is None else capacity // STORAGE_UNIT_BYTES,
        "commission_basis_points": commission,
    }
    said: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if not said:
        raise click.UsageError("name at least one of --storage, --write, --capacity and --commission")
    if said.get("capacity_units") == 0:
        raise click.UsageError("a capacity below 64 KiB means to leave: `p2pnode leave` does that")
    owner = load_owner(home_path, passphrase_file)
    operator = Home(home_path).load_operator()

    async def work(client: "Session") -> None:
        entry = await enrolment.own_node(client.chain, NodeId(operator.public), OwnerId(owner.public))
        offer = changed(enrolment.offer_of(entry), **said)
        outcome = await enrolment.register(client.chain, owner, operator, offer)
        fields = {
            "capacity_bytes": offer.capacity_units * STORAGE_UNIT_BYTES,
            "commission_percent": offer.commission_basis_points / 100,
            "storage_frost": offer.storage_vote_frost,
            "write_frost": offer.write_vote_frost,
        }
        if as_json:
            echo_json({**fields, "fee_frost": outcome.fee_frost, "height": outcome.height})
        else:
            click.echo("  ".join(f"{name} {value}" for name, value in fields.items()))

    run_client(home_path, work)
