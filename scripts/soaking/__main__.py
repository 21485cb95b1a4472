"""The soak: nodes of a testnet are killed at random while a client sends and stores; nothing acknowledged may be lost.

Prints a line every ten kills and a summary in JSON. Exit code 1 if anything is wrong; the directory is kept then.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

from economics.genesis import Parameters
from economics.operations import EPOCHS_AHEAD_MAX
from p2pnode import testnet
from p2pnode.client import open_client
from p2pnode.errors import InputError
from p2pnode.keys import load_key
from scripts.soaking.checks import check_databases, compare_headers, read_logs, wait_for_agreement
from scripts.soaking.killing import Counts, Killer, NodeFailed
from scripts.soaking.load import Load

SECONDS_PER_KILL = 8.0
"""With its share of outages, on two cores that others use too."""
READ_S = 300.0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=7)
    parser.add_argument("--shards", type=int, default=21)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="of all choices; the machine's speed still has its say")
    parser.add_argument("--epoch", type=int, default=40, metavar="SECONDS")
    parser.add_argument("--dir", type=Path, help="a new directory for the testnet; a temporary one if not given")
    parser.add_argument("--keep", action="store_true", help="keep the directory even if all went well")
    return parser.parse_args()


async def soak(network: testnet.Network, options: argparse.Namespace, summary: dict[str, Any]) -> list[str]:
    """Load and kill, then ask the nodes what they have; returns what is wrong."""
    begin = time.monotonic()
    files = network.directory / "blobs"
    files.mkdir()
    faucet = load_key(network.client_home.faucet_key_path)
    limit_s = (EPOCHS_AHEAD_MAX - 5) * options.epoch
    if limit_s < options.kills * SECONDS_PER_KILL:
        raise InputError("blobs would expire before the end: name longer epochs")

    async with open_client(network.client_home) as client:
        load = Load(client, faucet, files, seed=options.seed, epochs=EPOCHS_AHEAD_MAX)

        def report(counts: Counts) -> None:
            spent = time.monotonic() - begin
            print(
                f"{spent:6.0f} s  {counts.kills} kills, {counts.stops} stops, {counts.outages} outages; "
                f"{len(load.outcomes)} transactions, {len(load.blobs)} blobs; {load.failures.total()} attempts failed",
                flush=True,
            )

        killer = Killer(network, seed=options.seed, report=report)
        try:
            await load.fund()
            with trio.fail_after(limit_s):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(load.run)
                    await killer.run(options.kills)
                    nursery.cancel_scope.cancel()
        finally:
            summary |= {"kills": killer.counts.kills, "stops": killer.counts.stops, "outages": killer.counts.outages}
            summary |= {"acknowledged_transactions": len(load.outcomes), "acknowledged_blobs": len(load.blobs)}
            summary |= {"failed_attempts": dict(load.failures.most_common(20))}
            summary["outcomes"] = load.outcomes
            summary["network"] = killer.network
        wrong, agreed = await wait_for_agreement(client)
        summary["agreed"] = agreed
        if not wrong:
            wrong += await compare_headers(client, agreed["height"])
            with trio.fail_after(READ_S):
                wrong += await load.lost_blobs()
        if not load.outcomes or not load.blobs:
            wrong.append("nothing was acknowledged: there was no load")
        return wrong


def main() -> None:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    directory = options.dir or Path(tempfile.mkdtemp(prefix="p2pnode-soak-")) / "net"
    parameters = Parameters(epoch_ms=1000 * options.epoch)
    network = testnet.up(directory.absolute(), nodes=options.nodes, shards=options.shards, parameters=parameters)
    print(f"{options.nodes} nodes with {options.shards} shards in {directory}, seed {options.seed}", flush=True)
    summary: dict[str, Any] = {"seed": options.seed, "nodes": options.nodes, "shards": options.shards}
    begin = time.monotonic()
    try:
        wrong = trio.run(soak, network, options, summary)
    except* (NodeFailed, trio.TooSlowError) as faults:
        wrong = [repr(fault) for fault in faults.exceptions]
    finally:
        network = summary.pop("network", network)
        testnet.down(network)
    outcomes = summary.pop("outcomes", [])
    if summary.get("agreed"):
        wrong += check_databases(network, outcomes, root=summary["agreed"]["root"])
    fatal, summary["warnings"] = read_logs(network)
    wrong += fatal
    summary |= {"seconds": round(time.monotonic() - begin), "wrong": wrong[:50], "directory": str(directory)}
    if not wrong and not options.keep:
        shutil.rmtree(directory)
        summary["directory"] = None
    print(json.dumps(summary, indent=2))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
