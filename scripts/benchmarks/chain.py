"""The chain: finality and throughput on testnets of processes, what a block costs a node, and the pure parts alone."""

import itertools
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from economics import consensus
from economics.arguments import Transfer
from economics.block import Block, BlockHeader, genesis_header, transactions_root
from economics.committee import Member
from economics.crypto import Digest, NodeId, OwnerId
from economics.genesis import FROST_PER_WAL, Genesis, GenesisAccount, Parameters
from economics.ledger import Ledger
from economics.transactions import (
    SignedTransaction,
    Transaction,
    build,
    least_fee,
)
from p2pnode import testnet
from p2pnode.clients.payments import Order
from p2pnode.clients.publish import Publisher
from p2pnode.clients.session import Session, open_session
from p2pnode.content.sources import FileSource
from p2pnode.keys import Key, load_key
from p2pnode.network.frames import build_header, receive_message
from p2pnode.network.stream import Stream
from scripts.benchmarks.network import node_cpu, run_cli, running_testnet, settled_idle
from scripts.benchmarks.timing import MIB, Row, random_bytes, seconds_of
from tests.simulation.batch import play_all

LIGHT_TRANSACTIONS = 120
LIGHT_PAUSE_S = 0.35
"""Between two of them: longer than a block interval and its settling, so that each finds the chain at rest or not."""
ACCOUNTS = 250
NONCES = 40
"""Of each account, all at once: 10,000 transactions, which is within what a mempool takes of a sender and of all."""
PIPELINE = 50
"""Requests in one write: the load generator must leave the cores to the nodes."""
REPLY_S = 60.0
FUNDS_FROST = FROST_PER_WAL
STORES = 5
SIMULATED_SEEDS = 60
ENGINE_VIEWS = 300
LEDGER_TRANSACTIONS = 1_000
FIRST_STORE_BYTES = 10_000


def bench_simulation() -> Row:
    """Views of whole simulated networks, in one process; scripts/simulate plays more of them."""
    begin = time.process_time()
    views = sum(result.views for result in play_all(range(SIMULATED_SEEDS), processes=1))
    return {"what": "simulated views", "per CPU-second": views / (time.process_time() - begin)}


# --- testnets --------------------------------------------------------------------------------------------------------


def bench_chain(directory: Path) -> list[Row]:
    """Everything, each number of nodes on its own testnet."""
    rows: list[Row] = [bench_ledger(), bench_simulation(), *(bench_engine(members) for members in (4, 7, 10))]
    for nodes in (4, 7, 10):
        rows += bench_testnet(directory / f"chain{nodes}", nodes)
    return rows


def bench_testnet(directory: Path, nodes: int) -> list[Row]:
    """Finality and throughput at one number of nodes, one shard each; at 7 also what a store takes, of the command."""
    directory.mkdir()
    file = directory / "first"
    file.write_bytes(random_bytes(FIRST_STORE_BYTES))
    begin = time.perf_counter()
    with running_testnet(directory / "net", nodes, nodes) as network:
        up_s = time.perf_counter() - begin
        run_cli(network, "store", "--json", file)
        first_s = time.perf_counter() - begin
        idle = settled_idle(network) / nodes
        rows: list[Row] = [
            {"what": f"{nodes} nodes up", "seconds": up_s, "first store certified after s": first_s},
            {"what": f"{nodes} nodes, idle", "node % of a core": idle * 100},
            trio.run(bench_light, network, idle),
            trio.run(bench_saturated, network),
        ]
        if nodes == 7:
            rows += bench_stores(directory, network)
    return rows


async def bench_light(network: testnet.Network, idle: float) -> Row:
    """One transfer at a time, as a client sends it: from the first byte until it is told to be final."""
    key = load_key(network.client_home.owner_key_path)
    nodes = len(network.processes)
    async with open_session(network.client_home) as client:
        height, cpu, begin = (await client.chain.head()).height, node_cpu(network), time.perf_counter()
        times: list[float] = []
        for _ in range(LIGHT_TRANSACTIONS):
            signed = await client.chain.sign(key, Transfer(OwnerId(key.public), 1))
            start = time.perf_counter()
            await client.chain.submit(signed)
            await client.chain.wait(signed.hash, deadline_s=REPLY_S)
            times.append(time.perf_counter() - start)
            await trio.sleep(LIGHT_PAUSE_S)
        blocks = (await client.chain.head()).height - height
        spent = node_cpu(network) - cpu - idle * nodes * (time.perf_counter() - begin)
    ordered = sorted(times)
    return {
        "what": f"{nodes} nodes, one transfer at a time",
        "p50 s": statistics.median(ordered),
        "p99 s": ordered[int(len(ordered) * 0.99)],
        "CPU-ms per block and node": spent * 1e3 / blocks / nodes,
        "blocks": blocks,
    }


def sign_transfers(client: Session, keys: Sequence[Key], *, expiry: int) -> list[list[SignedTransaction]]:
    """Return each account's transfers to the next, in order of nonces."""
    following = itertools.cycle(keys)
    next(following)
    return [
        [sign_transfer(client.genesis, key, OwnerId(to.public), 1, nonce, expiry) for nonce in range(NONCES)]
        for key, to in zip(keys, following, strict=False)
    ]


def sign_transfer(genesis: Genesis, key: Key, to: OwnerId, amount: int, nonce: int, expiry: int) -> SignedTransaction:
    blank = Transaction(genesis.chain_id, OwnerId(key.public), nonce, 0, expiry, Transfer(to, amount))
    fee = least_fee(blank, genesis.parameters)
    return build(Transaction(genesis.chain_id, blank.sender, nonce, fee, expiry, blank.operation), key.sign)


async def fund(client: Session, faucet: Key, keys: Sequence[Key], *, expiry: int) -> None:
    """Give every account something, in batches that a mempool takes of one sender."""
    sender = OwnerId(faucet.public)
    for some in (keys[at : at + PIPELINE] for at in range(0, len(keys), PIPELINE)):
        first = (await client.chain.sign(faucet, Transfer(sender, 1))).transaction.nonce
        batch = [
            sign_transfer(client.genesis, faucet, OwnerId(key.public), FUNDS_FROST, nonce, expiry)
            for nonce, key in enumerate(some, first)
        ]
        async with streams_of(client, 1) as (stream,):
            assert await submit_all(stream, batch) == len(batch)
        outcome = await client.chain.wait(batch[-1].hash, deadline_s=REPLY_S)
        assert outcome.code == "ok"
        await trio.sleep(1)  # every member has executed it before it is asked about the accounts


@asynccontextmanager
async def streams_of(client: Session, count: int) -> AsyncIterator[tuple[Stream, ...]]:
    streams = [await client.chain.members.open_stream(member) for member in range(count)]
    try:
        yield tuple(streams)
    finally:
        for stream in streams:
            await stream.reset()


async def submit_all(stream: Stream, batch: Sequence[SignedTransaction]) -> int:
    """Submit on one stream, a pipeline at a time; return how many were taken."""
    taken = 0
    for at in range(0, len(batch), PIPELINE):
        some = batch[at : at + PIPELINE]
        parts = [part for signed in some for part in (build_header({"op": "submit"}, len(signed.raw)), signed.raw)]
        await stream.send(*parts)
        for _ in some:
            taken += (await receive_message(stream)).header.get("ok") is True
    return taken


async def bench_saturated(network: testnet.Network) -> Row:
    """10,000 signed transfers given to all members at once, each to one of them, until the last is final."""
    nodes = len(network.processes)
    faucet = load_key(network.client_home.faucet_key_path)
    keys = [Key.generate() for _ in range(ACCOUNTS)]
    async with open_session(network.client_home) as client:
        expiry = (await client.chain.head()).height + 100_000
        await fund(client, faucet, keys, expiry=expiry)
        transfers = await trio.to_thread.run_sync(lambda: sign_transfers(client, keys, expiry=expiry))
        shares = [list(interleave(transfers[member::nodes])) for member in range(nodes)]
        counts = [0] * nodes
        height, cpu, own, begin = (
            (await client.chain.head()).height,
            node_cpu(network),
            time.process_time(),
            time.perf_counter(),
        )

        async def feed(member: int, stream: Stream) -> None:
            counts[member] = await submit_all(stream, shares[member])

        async with streams_of(client, nodes) as streams:
            async with trio.open_nursery() as nursery:
                for member, stream in enumerate(streams):
                    nursery.start_soon(feed, member, stream)
            submitted = time.perf_counter() - begin
            for share in shares:
                await client.chain.wait(share[-1].hash, deadline_s=4 * REPLY_S)
        spent, wall = node_cpu(network) - cpu, time.perf_counter() - begin
        blocks = (await client.chain.head()).height - height
        total = ACCOUNTS * NONCES
        return {
            "what": f"{nodes} nodes, {total} transfers of {len(shares[0][0].raw)} bytes at once",
            "tx/s": sum(counts) / wall,
            "taken": sum(counts) / total,
            "submitted in s": submitted,
            "CPU-ms per tx and node": spent * 1e3 / total / nodes,
            "CPU-ms per tx, client": (time.process_time() - own) * 1e3 / total,
            "tx per block": total / blocks,
        }


def interleave(columns: Sequence[Sequence[SignedTransaction]]) -> "itertools.chain[SignedTransaction]":
    """Return all first ones, then all second ones: an account's own come in order."""
    return itertools.chain.from_iterable(zip(*columns, strict=True))


def bench_stores(directory: Path, network: testnet.Network) -> list[Row]:
    """1 MiB until the block that certifies it: the whole command, and within a session."""
    commands: list[float] = []
    for number in range(STORES):
        file = directory / f"mib{number}"
        file.write_bytes(number.to_bytes(8, "big") + random_bytes(MIB)[8:])
        _, wall, _, _ = run_cli(network, "store", "--json", file)
        commands.append(wall)
    sessions = trio.run(store_in_session, directory, network)
    nodes = len(network.processes)
    return [
        {"what": f"{nodes} nodes, store 1 MiB, the command", "p50 s": statistics.median(commands)},
        {"what": f"{nodes} nodes, store 1 MiB, in a session", "p50 s": statistics.median(sessions)},
    ]


async def store_in_session(directory: Path, network: testnet.Network) -> list[float]:
    key = load_key(network.client_home.owner_key_path)
    times: list[float] = []
    async with open_session(network.client_home) as client:
        for number in range(STORES + 1):  # the first dials and starts the workers
            file = directory / f"session{number}"
            await trio.to_thread.run_sync(file.write_bytes, number.to_bytes(8, "little") + random_bytes(MIB)[8:])
            begin = time.perf_counter()
            await Publisher(client, key, Order()).publish(FileSource.open(file))
            times.append(time.perf_counter() - begin)
    return times[1:]


# --- pure parts ------------------------------------------------------------------------------------------------------


def make_genesis(members: int, accounts: int = 0) -> tuple[Genesis, list[Key], list[Key]]:
    """Return a genesis with one shard a member, the members' keys and the accounts'."""
    keys = [Key(bytes([1, index]) * 16) for index in range(members)]
    owners = sorted((Key(index.to_bytes(32, "big")) for index in range(1, accounts + 1)), key=lambda key: key.public)
    listed = tuple(
        Member(NodeId(key.public), OwnerId(key.public), 1, (f"/ip4/127.0.0.1/tcp/{4001 + at}",))
        for at, key in enumerate(keys)
    )
    funds = tuple(GenesisAccount(OwnerId(key.public), FROST_PER_WAL) for key in owners)
    return Genesis("bench", 1_700_000_000_000, 1 << 20, listed, funds, Parameters()), keys, owners


def root_of(genesis: Genesis) -> tuple[BlockHeader, Ledger]:
    ledger = Ledger.at_genesis(genesis)
    header = genesis_header(
        chain_id=genesis.chain_id,
        time_ms=genesis.time_ms,
        state_root=ledger.root,
        committee_hash=ledger.committee.hash,
        next_committee_hash=ledger.next_committee_hash,
    )
    return header, ledger


def bench_ledger() -> Row:
    """Blocks of 1,000 transfers between 1,000 accounts on the ledger alone; signatures are checked elsewhere."""
    genesis, _, owners = make_genesis(4, LEDGER_TRANSACTIONS)
    root, ledger = root_of(genesis)
    rounds = itertools.count()
    parent = root

    def make(number: int) -> tuple[BlockHeader, list[SignedTransaction]]:
        batch = [
            sign_transfer(genesis, key, OwnerId(owners[at - 1].public), 1, number, 1 << 40)
            for at, key in enumerate(owners)
        ]
        return make_header(parent, view=number + 1, leader=0, hashes=[item.hash for item in batch]), batch

    blocks = []
    for _ in range(3):
        blocks.append(make(next(rounds)))
        parent = blocks[-1][0]
    upcoming = iter(blocks)
    wall, _ = seconds_of(lambda: ledger.apply(*next(upcoming)))
    return {"what": "ledger alone, transfers", "tx/s": LEDGER_TRANSACTIONS / wall}


def make_header(parent: BlockHeader, *, view: int, leader: int, hashes: Sequence[Digest] = ()) -> BlockHeader:
    return BlockHeader(
        chain_id=parent.chain_id,
        epoch=0,
        view=view,
        height=parent.height + 1,
        parent_view=parent.view,
        parent_hash=parent.hash,
        time_ms=parent.time_ms + 100,
        leader=leader,
        transactions_root=transactions_root(hashes),
        transactions_count=len(hashes),
        executed_height=0,
        state_root=parent.state_root,
        committee_hash=parent.committee_hash,
        next_committee_hash=parent.next_committee_hash,
    )


@dataclass(slots=True)
class EngineRun:
    """Engines of one committee in one process; every message arrives at once and in order."""

    engines: list[consensus.Engine]
    keys: list[Key]
    now_ms: int
    inputs: int = 0

    def run(self, views: int) -> None:
        """Go on until the first engine is in this view."""
        waiting = [(at, effect) for at, engine in enumerate(self.engines) for effect in engine.start(self.now_ms)]
        waiting += [item for at in range(len(self.engines)) for item in self._give(at, consensus.Due(0))]
        while self.engines[0].view < views:
            found = [item for at, effect in waiting for item in self._perform(at, effect)]
            assert found, "the engines stand still"
            waiting = found

    def _give(self, at: int, item: consensus.Input) -> list[tuple[int, consensus.Effect]]:
        self.inputs += 1
        return [(at, effect) for effect in self.engines[at].handle(self.now_ms, item)]

    def _perform(self, at: int, effect: consensus.Effect) -> list[tuple[int, consensus.Effect]]:
        match effect:
            case consensus.Broadcast(message):
                others = (other for other in range(len(self.engines)) if other != at)
                return [item for other in others for item in self._give(other, consensus.Heard(message, at))]
            case consensus.Send(member, message):
                return self._give(member, consensus.Heard(message, at))
            case consensus.Build(view, parent, _):
                header = make_header(parent, view=view, leader=at)
                return self._give(at, consensus.Built(view, Block(header, self.keys[at].sign(header.encode()), ())))
            case consensus.Judge(proposal, _, _):
                return self._give(at, consensus.Judged(proposal.block.hash, ok=True))
            case _:
                return []


def bench_engine(members: int) -> Row:
    """Views of a whole committee in one process, without disk or wire, signatures made and checked."""
    genesis, keys, _ = make_genesis(members)
    root, ledger = root_of(genesis)
    engines = [
        consensus.Engine(
            chain_id=genesis.chain_id,
            committee=ledger.committee,
            root=root,
            own=at,
            sign=key.sign,
            parameters=genesis.parameters,
            now_ms=root.time_ms,
        )
        for at, key in enumerate(keys)
    ]
    run = EngineRun(engines, keys, root.time_ms)
    begin = time.process_time()
    run.run(ENGINE_VIEWS)
    spent = time.process_time() - begin
    return {
        "what": f"engines of {members} members alone",
        "inputs/s": run.inputs / spent,
        "CPU-ms per block and node": spent * 1e3 / ENGINE_VIEWS / members,
    }
