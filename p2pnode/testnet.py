"""A testnet on this machine: homes, a genesis, one process a node, and verbs on them. Knows processes, no protocol."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from dataclasses import replace as replace_field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from economics.committee import Member
from economics.crypto import NodeId, OwnerId
from economics.genesis import FROST_PER_WAL, Genesis, GenesisAccount, Parameters, build_key_text, parse_genesis
from economics.geometry import SEGMENT_BYTES, SHARDS_MAX, SHARDS_MIN
from p2pnode.errors import ConfigError, InputError, PeerUnreachable
from p2pnode.files import replace_synced
from p2pnode.home import Config, Home
from p2pnode.wallet import create_wallet

READY_S = 240.0
"""Ten processes that each import libp2p take 10 s on two cores, and on a busy machine many times as long."""
STOP_S = 10.0
POLL_S = 0.05
SPOT_CHECK_S = 2
"""Nodes of a testnet check each other often, so that an adversary is soon named."""
FAUCET_FROST = 1_000_000 * FROST_PER_WAL
CLIENT_FROST = 1_000 * FROST_PER_WAL
ROUND_S = 5
"""A round of challenges takes a few seconds on a busy machine."""
PORTS = range(10_000, 31_000)
"""Below those that systems hand out by themselves, of which one could be gone before its node listens, or while it is
down."""
AWAY_S = 86_400
"""A client that was away for a day still follows."""
NODE_FROST = 100 * FROST_PER_WAL
"""What each node's owner and operator begin with: an operator pays the fees of what its node sends."""


@dataclass(frozen=True, slots=True)
class Process:
    """One node of the testnet as a process; the start time tells it from a later one with the same pid."""

    index: int
    node: str
    owner: str
    behaviour: str
    home: str
    address: str
    pid: int
    created: float

    @property
    def is_running(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return bool(process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def send(self, number: signal.Signals) -> None:
        if self.is_running:
            os.kill(self.pid, number)


@dataclass(frozen=True, slots=True)
class Network:
    """What `up` started, as it is on disk."""

    directory: Path
    chain_id: str
    shards: int
    processes: tuple[Process, ...]

    @property
    def client_home(self) -> Home:
        return Home(self.directory / "client")

    def to_json(self) -> dict[str, Any]:
        nodes = [{**asdict(process), "running": process.is_running} for process in self.processes]
        client = str(self.client_home.path)
        return {"chain_id": self.chain_id, "client_home": client, "nodes": nodes, "shards": self.shards}

    def save(self) -> None:
        replace_synced(self.directory / "testnet.json", (json.dumps(self.to_json(), indent=2).encode(),))

    def with_process(self, fresh: Process) -> "Network":
        """Return the testnet with one process more, or in the place of an earlier one of its index."""
        processes = {process.index: process for process in (*self.processes, fresh)}
        return replace_field(self, processes=tuple(processes.values()))

    def process(self, index: int) -> Process:
        if not 0 <= index < len(self.processes):
            raise InputError(f"there is no node {index}: nodes are 0 to {len(self.processes) - 1}")
        return self.processes[index]


def load(directory: Path) -> Network:
    """Return the testnet of a directory, or raise `ConfigError` if there is none."""
    try:
        fields = json.loads((directory / "testnet.json").read_text(encoding="utf-8"))
        for node in fields["nodes"]:
            del node["running"]
        processes = tuple(Process(**node) for node in fields["nodes"])
        return Network(directory, fields["chain_id"], fields["shards"], processes)
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise ConfigError(f"no testnet in {directory}: start one with `p2pnode testnet up`") from fault


def deal_shards(shards: int, nodes: int) -> list[int]:
    """Return how many shards each node gets: as even as it goes, the first ones the rest."""
    each, rest = divmod(shards, nodes)
    return [each + (index < rest) for index in range(nodes)]


def free_addresses(count: int) -> list[str]:
    """Return loopback addresses that nobody listens on now, and that nobody gets who asks for any port."""
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < count:
            listener, port = stack.enter_context(socket.socket()), random.choice(PORTS)
            with suppress(OSError):  # in use
                listener.bind(("127.0.0.1", port))
                ports.append(port)
    return [f"/ip4/127.0.0.1/tcp/{port}" for port in ports]


def up(
    directory: Path,
    *,
    nodes: int,
    shards: int,
    behaviours: Sequence[str] = (),
    segment_bytes: int = SEGMENT_BYTES,
    limits: Mapping[str, int] = MappingProxyType({}),
    parameters: Parameters | None = None,
) -> Network:
    """Make homes and a genesis, start a process for each node and wait until all are ready.

    `behaviours` gives the adversaries, which are the last nodes, and `limits` some of `Config`'s numbers. Raises
    `ConfigError` if one runs there already, `InputError` for numbers that make no network, `PeerUnreachable` naming
    the log of a node that does not start.
    """
    if not SHARDS_MIN <= shards <= SHARDS_MAX or not 1 <= nodes <= shards:
        raise InputError(f"a testnet has {SHARDS_MIN} to {SHARDS_MAX} shards, and at least one for each node")
    if len(behaviours) > nodes:
        raise InputError("there are more adversaries than nodes")
    if (directory / "testnet.json").exists():
        if any(process.is_running for process in load(directory).processes):
            raise ConfigError(f"a testnet runs in {directory}: `p2pnode testnet down` stops it")
        raise ConfigError(f"{directory} holds an earlier testnet: `p2pnode testnet down --wipe` removes it")
    directory.mkdir(parents=True, exist_ok=True)
    members = [
        make_node(home_of(directory, index), address, share, limits)
        for index, (address, share) in enumerate(zip(free_addresses(nodes), deal_shards(shards, nodes), strict=True))
    ]
    client = Home(directory / "client")
    accounts = make_accounts(client, members)
    genesis = Genesis(
        "testnet", time.time_ns() // 1_000_000, segment_bytes, tuple(members), accounts, parameters or Parameters()
    )
    parse_genesis(genesis.to_json())
    for home in (client, *(home_of(directory, index) for index in range(nodes))):
        home.put_genesis(genesis)
    all_behaviours = ["honest"] * (nodes - len(behaviours)) + [*behaviours]
    processes = tuple(
        start(
            directory,
            index,
            node=build_key_text(member.node),
            owner=build_key_text(member.owner),
            address=member.addresses[0],
            behaviour=all_behaviours[index],
        )
        for index, member in enumerate(genesis.members)
    )
    testnet = Network(directory, genesis.chain_id.hex(), shards, processes)
    testnet.save()
    try:
        for process in processes:
            wait_ready(process)
    except BaseException:
        down(testnet)
        raise
    return testnet


def make_node(home: Home, address: str, shards: int, limits: Mapping[str, int]) -> Member:
    """Make a node's home, with an owner of its own: a plain key, as all of a testnet are."""
    settings: dict[str, Any] = {"spot_check_s": SPOT_CHECK_S, **limits, "listen": (address,)}
    create_wallet(home.owner_key_path, None)
    operator = home.create(Config(**settings))
    return Member(NodeId(operator.public), home.owner_public(), shards, (address,))


def parameters_of(epoch_s: int) -> Parameters:
    """Return the parameters of a network whose epochs are so short that one can watch them."""
    epoch_ms = 1000 * epoch_s
    return Parameters(
        epoch_ms=epoch_ms,
        heartbeat_ms=min(Parameters().heartbeat_ms, max(500, epoch_ms // 20)),
        challenge_rounds=min(Parameters().challenge_rounds, max(1, epoch_s // ROUND_S)),
        unbonding_epochs=max(Parameters().unbonding_epochs, AWAY_S // epoch_s),
    )


def make_accounts(client: Home, members: Sequence[Member]) -> tuple[GenesisAccount, ...]:
    """Make the client's wallet and the faucet in its home, and return who begins with how much."""
    keys = {client.owner_key_path: CLIENT_FROST, client.faucet_key_path: FAUCET_FROST}
    funds = {OwnerId(create_wallet(path, None).public): frost for path, frost in keys.items()}
    for member in members:
        funds |= {member.owner: NODE_FROST, OwnerId(member.node): NODE_FROST}
    return tuple(GenesisAccount(key, funds[key]) for key in sorted(funds))


def home_of(directory: Path, index: int) -> Home:
    return Home(directory / f"node{index}")


def start(directory: Path, index: int, *, node: str, owner: str, address: str, behaviour: str) -> Process:
    """Start one node in the background; its log is `node.log` in its home."""
    home = home_of(directory, index)
    command = [sys.executable, "-m", "p2pnode", "run", "--home", str(home.path), "--behaviour", behaviour]
    with (home.path / "node.log").open("ab") as log, (home.path / "ready.json").open("wb") as ready:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=ready, stderr=log, start_new_session=True, close_fds=True
        )
    return Process(
        index=index,
        node=node,
        owner=owner,
        behaviour=behaviour,
        home=str(home.path),
        address=address,
        pid=child.pid,
        created=psutil.Process(child.pid).create_time(),
    )


def wait_ready(process: Process) -> None:
    """Wait for the line that a node prints when it takes requests."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.is_running:
        if (Path(process.home) / "ready.json").stat().st_size:
            return
        time.sleep(POLL_S)
    raise PeerUnreachable(f"node {process.index} did not start: see {process.home}/node.log")


def restart(testnet: Network, index: int) -> Network:
    """Start a node that is not running again; the rest of the testnet is left alone."""
    if testnet.process(index).is_running:
        raise InputError(f"node {index} is running")
    fresh = start_again(testnet, index)
    changed = testnet.with_process(fresh)
    changed.save()
    wait_ready(fresh)
    return changed


def start_again(testnet: Network, index: int) -> Process:
    """Start a node as it was before, and do not wait for it."""
    old = testnet.process(index)
    return start(testnet.directory, index, node=old.node, owner=old.owner, address=old.address, behaviour=old.behaviour)


def add(testnet: Network, *, stake_frost: int | None = None, quota_bytes: int | None = None) -> Network:
    """Start one more node, which joins: its stake, as much as a first member's if not given, is from the faucet."""
    parameters = testnet.client_home.load_genesis().parameters
    first = testnet.shards * parameters.stake_frost_per_shard // len(testnet.client_home.load_genesis().members)
    stake = first if stake_frost is None else stake_frost
    index, (address,) = len(testnet.processes), free_addresses(1)
    home = home_of(testnet.directory, index)
    member = make_node(home, address, 0, {} if quota_bytes is None else {"quota_bytes": quota_bytes})
    home.put_genesis(testnet.client_home.load_genesis())
    owner = build_key_text(member.owner)
    call("faucet", "--home", testnet.client_home.path, owner, f"{stake + NODE_FROST}frost")
    call("join", "--home", home.path, "--stake", f"{stake}frost", "--no-run")
    fresh = start(
        testnet.directory, index, node=build_key_text(member.node), owner=owner, address=address, behaviour="honest"
    )
    changed = testnet.with_process(fresh)
    changed.save()
    wait_ready(fresh)
    return changed


def remove(testnet: Network, index: int) -> None:
    """Have a node leave, and stop it when others have what it held: that takes an epoch or two."""
    process = testnet.process(index)
    if not process.is_running:
        raise InputError(f"node {index} is not running: what it holds cannot be handed over")
    call("leave", "--home", process.home)
    process.send(signal.SIGTERM)
    if not wait_stopped([process]):
        process.send(signal.SIGKILL)
        wait_stopped([process])


def replace(testnet: Network, index: int) -> Network:
    """End a node with SIGKILL, wipe its disk but for its keys and settings, and start it again: it refills itself."""
    process = testnet.process(index)
    if process.is_running:
        kill(testnet, index)
    wipe(process)
    call("replace", "--home", process.home)
    return restart(testnet, index)


def wipe(process: Process) -> None:
    """Remove what a lost disk takes from a node that does not run: all but its keys, its settings and its log."""
    home = Home(Path(process.home))
    for path in (home.chain_path, home.store_path, home.make_cache().parent):
        shutil.rmtree(path, ignore_errors=True)


def call(*words: object) -> None:
    """Run a command as a process; raises `PeerUnreachable` with its last words where it fails."""
    command = [sys.executable, "-m", "p2pnode", *map(str, words)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise PeerUnreachable(f"`p2pnode {words[0]}` failed: {said[-1].removeprefix('error: ')}")


def kill(testnet: Network, index: int) -> Process:
    """End a node with SIGKILL, as a power cut would."""
    process = testnet.process(index)
    if not process.is_running:
        raise InputError(f"node {index} is not running")
    process.send(signal.SIGKILL)
    wait_stopped([process])
    return process


def down(testnet: Network) -> None:
    """Stop every node that is still running: politely, then not."""
    for process in testnet.processes:
        process.send(signal.SIGCONT)
        process.send(signal.SIGTERM)
    if not wait_stopped(testnet.processes):
        for process in testnet.processes:
            process.send(signal.SIGKILL)
        wait_stopped(testnet.processes)


def wait_stopped(processes: Sequence[Process]) -> bool:
    deadline = time.monotonic() + STOP_S
    while any(process.is_running for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
