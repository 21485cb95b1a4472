"""How long a join and a leave take, from the command on, while a client stores and reads; a testnet of processes.

An epoch's committee is fixed half an epoch before: each is measured just after an epoch has begun, and just after the
next committee was fixed, which costs an epoch more.
"""

from functools import partial
from pathlib import Path

import trio

from p2pnode import testnet
from p2pnode.clients.session import open_session
from p2pnode.home import Home
from p2pnode.keys import load_key
from scripts.benchmarks.timing import Row
from scripts.soaking.fleet import Fleet, wait_until
from scripts.soaking.load import Load
from scripts.soaking.sampling import Sampler
from scripts.soaking.turnover import node_status

NODES = 7
SHARDS = 21
EPOCH_S = 20
LATE_SHARE = 0.6
"""Of an epoch, when the next committee is fixed for sure."""
STEP_S_MAX = 8.0 * EPOCH_S
ACCOUNTS = 2
PAUSE_S = 2.0


def bench_join(directory: Path) -> list[Row]:
    """Two joins and two leaves on seven nodes, epochs of 20 s, ten reads a second and a store or two."""
    parameters = testnet.parameters_of(EPOCH_S)
    network = testnet.up(directory, nodes=NODES, shards=SHARDS, parameters=parameters)
    running = [network]
    try:
        return trio.run(partial(measure, network, running))
    finally:
        testnet.down(running[-1])


async def measure(network: testnet.Network, running: list[testnet.Network]) -> list[Row]:
    """Return the rows; what of the testnet is to be stopped is at the end of `running`."""
    files = network.directory / "blobs"
    files.mkdir()
    reading = Home(network.directory / "reader")
    reading.put_genesis(network.client_home.load_genesis())
    async with open_session(network.client_home) as client, open_session(reading) as reader:
        fleet = Fleet(network, client)
        faucet = load_key(network.client_home.faucet_key_path)
        load = Load(client, faucet, files, seed=1, accounts=ACCOUNTS, pause_s=PAUSE_S)
        sampler = Sampler(reader, fleet, load, seed=1, tell=partial(print, flush=True))
        over = trio.Event()
        await load.fund()
        try:
            async with trio.open_nursery() as nursery:
                for task in (fleet.tend, fleet.follow_seats, load.run):
                    nursery.start_soon(task)
                nursery.start_soon(sampler.run, over.is_set)
                rows = [
                    await join(fleet, late=False),
                    await join(fleet, late=True),
                    await leave(fleet, 0, late=False),
                    await leave(fleet, 1, late=True),
                ]
                over.set()
                nursery.cancel_scope.cancel()
        finally:
            running.append(fleet.network)
    stores: Row = {"what": "stores meanwhile", "blobs": len(load.blobs), "attempts failed": load.failures.total()}
    return [*rows, stores, {"what": "reads meanwhile", **sampler.summary()}]


async def await_phase(fleet: Fleet, *, late: bool) -> None:
    """Wait until an epoch has begun, and until its next committee is fixed if it is to be late."""
    epoch = fleet.committee.epoch
    with trio.fail_after(STEP_S_MAX):
        await wait_until(lambda: fleet.committee.epoch > epoch)
        await trio.sleep(LATE_SHARE * EPOCH_S if late else 0)


async def join(fleet: Fleet, *, late: bool) -> Row:
    await await_phase(fleet, late=late)
    begin = trio.current_time()
    with trio.fail_after(STEP_S_MAX):
        index = await fleet.join()
        up_s = trio.current_time() - begin
        await wait_until(lambda: index in fleet.seated)
        seated_s = trio.current_time() - begin
        await wait_until(lambda: fleet.has_reported(index))
        holds_s = trio.current_time() - begin
    upkeep = (await node_status(fleet, index) or {}).get("upkeep") or {}
    return {
        "what": f"join {'after the cut-off' if late else 'as an epoch begins'}",
        "s to be up": up_s,
        "s to a seat": seated_s,
        "s to hold its shards": holds_s,
        "in epochs": holds_s / EPOCH_S,
        "shards": fleet.shards([index]),
        "restored KB": upkeep.get("restored_bytes", 0) / 1e3,
    }


async def leave(fleet: Fleet, index: int, *, late: bool) -> Row:
    await await_phase(fleet, late=late)
    shards, begin = fleet.shards([index]), trio.current_time()
    with trio.fail_after(STEP_S_MAX):
        await fleet.leave(index)
    spent = trio.current_time() - begin
    return {
        "what": f"leave {'after the cut-off' if late else 'as an epoch begins'}",
        "shards before": shards,
        "s to owe nothing": spent,
        "in epochs": spent / EPOCH_S,
    }
