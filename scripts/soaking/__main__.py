"""The soak: nodes of a testnet are killed at random while a client sends and stores; nothing acknowledged may be lost.

With --epochs nodes join, leave and lose their disks too, through so many short epochs, and a reader samples ten blobs a
second: every read must come back right while at most f shards are down. Prints lines as it goes and a summary in JSON.
Exit code 1 if anything is wrong; the directory is kept then.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import trio

from economics.operations import EPOCHS_AHEAD_MAX
from p2pnode import testnet
from p2pnode.clients.session import Session, open_session
from p2pnode.errors import InputError
from p2pnode.home import Home
from p2pnode.keys import load_key
from scripts.soaking.checks import check_databases, compare_chains, compare_headers, read_logs, wait_for_agreement
from scripts.soaking.fleet import POLL_S, Fleet, NodeFailed
from scripts.soaking.killing import Counts, Killer
from scripts.soaking.load import Load
from scripts.soaking.sampling import Sampler
from scripts.soaking.turnover import Turnover, wait_until_whole

KILLS = 100
KILLS_EPOCH_S = 40
EPOCHS_EPOCH_S = 20
SECONDS_PER_KILL = 8.0
"""With its share of outages, on two cores that others use too."""
READ_S = 300.0
WHOLE_S = 120.0
"""Until nobody misses anything, when all are back."""
SLOW = 3
"""Times as long as its epochs a soak may take before it counts as stuck: blocks that come late make epochs longer."""
CALM_PAUSE_S = (3.0, 8.0)
"""Between blows where nodes come and go as well: each start of a process takes seconds of two cores."""
CALM_ACCOUNTS = 3
CALM_LOAD_PAUSE_S = 2.0
"""So that most of the machine is left to reads and to nodes that start."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--nodes", type=int, default=7)
    parser.add_argument("--shards", type=int, default=21)
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--kills", type=int, default=KILLS, help="how many, with the same nodes all the time")
    extent.add_argument("--epochs", type=int, help="how many, with joins, leaves, lost disks and sampled reads")
    parser.add_argument("--seed", type=int, default=1, help="of all choices; the machine's speed still has its say")
    parser.add_argument(
        "--epoch", type=int, metavar="SECONDS", help=f"{KILLS_EPOCH_S} if not given, {EPOCHS_EPOCH_S} with --epochs"
    )
    parser.add_argument("--dir", type=Path, help="a new directory for the testnet; a temporary one if not given")
    parser.add_argument("--keep", action="store_true", help="keep the directory even if all went well")
    options = parser.parse_args()
    if options.epoch is None:
        options.epoch = KILLS_EPOCH_S if options.epochs is None else EPOCHS_EPOCH_S
    if options.epochs is not None and options.epochs > EPOCHS_AHEAD_MAX - 5:
        parser.error(f"blobs would expire before the end: at most {EPOCHS_AHEAD_MAX - 5} epochs")
    return options


class Soak:
    """One soak: what goes on at once, and what it came to."""

    def __init__(self, network: testnet.Network, client: Session, options: argparse.Namespace) -> None:
        self.options = options
        self.client = client
        self.fleet = Fleet(network, client)
        self.begin = time.monotonic()
        files = network.directory / "blobs"
        files.mkdir()
        faucet = load_key(network.client_home.faucet_key_path)
        if options.epochs is None:
            self.load = Load(client, faucet, files, seed=options.seed)
            self.killer = Killer(self.fleet, seed=options.seed, report=self._report_kills)
        else:
            self.load = Load(
                client, faucet, files, seed=options.seed, accounts=CALM_ACCOUNTS, pause_s=CALM_LOAD_PAUSE_S
            )
            self.killer = Killer(self.fleet, seed=options.seed, pause_s=CALM_PAUSE_S, outage_share=0.0)
        self.turnover: Turnover | None = None
        self.sampler: Sampler | None = None

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self.begin:6.0f} s  {text}", flush=True)

    def _told(self) -> str:
        counts = self.killer.counts
        return (
            f"{counts.kills} kills, {counts.stops} stops, {counts.outages} outages; {len(self.load.outcomes)} "
            f"transactions, {len(self.load.blobs)} blobs; {self.load.failures.total()} attempts failed"
        )

    def _report_kills(self, counts: Counts) -> None:
        self._say(self._told())

    async def run(self) -> None:
        """Load and strike until it is over. Raises `NodeFailed` and `trio.TooSlowError`."""
        options = self.options
        await self.load.fund()
        with trio.fail_after(self._limit_s()):
            async with trio.open_nursery() as nursery:
                for task in (self.fleet.tend, self.fleet.follow_seats, self.load.run):
                    nursery.start_soon(task)
                if options.epochs is None:
                    await self.killer.run(lambda counts: counts.kills >= options.kills)
                else:
                    await self._run_epochs(options.epochs)
                nursery.cancel_scope.cancel()

    def _limit_s(self) -> float:
        options = self.options
        if options.epochs is not None:
            return float(SLOW * options.epochs * options.epoch + WHOLE_S)
        limit_s = float((EPOCHS_AHEAD_MAX - 5) * options.epoch)
        if limit_s < options.kills * SECONDS_PER_KILL:
            raise InputError("blobs would expire before the end: name longer epochs")
        return limit_s

    async def _run_epochs(self, epochs: int) -> None:
        """Read, strike and change nodes until this epoch has begun and all are back."""
        fleet, seed = self.fleet, self.options.seed
        self.turnover = Turnover(fleet, self.load, seed=seed, epochs=epochs)

        def is_over(_: object = None) -> bool:
            return fleet.committee.epoch >= epochs

        home = Home(fleet.network.directory / "reader")  # it learns of nothing but by its own reads
        home.put_genesis(self.client.genesis)
        async with open_session(home) as reader:
            self.sampler = Sampler(reader, fleet, self.load, seed=seed, tell=self._say)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._report_epochs, is_over)
                nursery.start_soon(self.killer.run, is_over)
                nursery.start_soon(self.turnover.run)
                nursery.start_soon(self.sampler.run, is_over)

    async def _report_epochs(self, is_over: Callable[[], bool]) -> None:
        """Say how it goes whenever an epoch has begun."""
        fleet, told = self.fleet, -1
        while not is_over():
            epoch = fleet.committee.epoch
            if epoch > told and self.turnover is not None and self.sampler is not None:
                changes, counts = self.turnover.changes, self.sampler.counts
                self._say(
                    f"epoch {epoch}: nodes {sorted(fleet.seated)}; {len(changes.join_s)} joins, {len(changes.leave_s)} "
                    f"leaves, {len(changes.refill_s)} refills; {self._told()}; {counts['right']} reads right, "
                    f"{counts['failed']} failed, {counts['excused']} excused"
                )
                told = epoch
            await trio.sleep(POLL_S)

    async def check(self) -> tuple[list[str], dict[str, Any]]:
        """Ask the nodes, now that all are back, what they have; return what is wrong, and what they agree on."""
        wrong, agreed = await wait_for_agreement(self.client)
        if not wrong:
            wrong += await compare_headers(self.client, agreed["height"])
            wrong += await self._await_whole(agreed["height"])
            with trio.fail_after(READ_S):
                wrong += await self.load.lost_blobs()
        if not self.load.outcomes or not self.load.blobs:
            wrong.append("nothing was acknowledged: there was no load")
        return wrong + self._judge_reads(), agreed

    async def _await_whole(self, height: int) -> list[str]:
        """Wait until every node with a seat holds all that it owes; return who does not."""
        missing = self.fleet.seated & self.fleet.indexes

        async def wait(index: int) -> None:
            await wait_until_whole(self.fleet, index, height=height, blobs=len(self.load.blobs))
            missing.discard(index)

        with trio.move_on_after(WHOLE_S):
            async with trio.open_nursery() as nursery:
                for index in sorted(missing):
                    nursery.start_soon(wait, index)
        return [f"node {index} misses slivers after {WHOLE_S:.0f} s" for index in sorted(missing)]

    def _judge_reads(self) -> list[str]:
        if self.sampler is None or self.turnover is None:
            return []
        wrong = [f"a read failed: {failure}" for failure in self.sampler.failures]
        if not self.sampler.counts["right"]:
            wrong.append("no read was sampled")
        changes = asdict(self.turnover.changes)
        return wrong + [f"there was not one {name.removesuffix('_s')}" for name, times in changes.items() if not times]

    def summary(self) -> dict[str, Any]:
        told = {
            **asdict(self.killer.counts),
            "acknowledged_transactions": len(self.load.outcomes),
            "acknowledged_blobs": len(self.load.blobs),
            "failed_attempts": dict(self.load.failures.most_common(20)),
            "commands_repeated": self.fleet.retries,
        }
        if self.turnover is not None and self.sampler is not None:
            changes = asdict(self.turnover.changes)
            told |= {name: [round(seconds, 1) for seconds in times] for name, times in changes.items()}
            told["availability"] = self.sampler.summary()
        return told


async def soak(network: testnet.Network, options: argparse.Namespace, kept: dict[str, Any]) -> list[str]:
    """Soak and check; returns what is wrong. What must outlive a fault is put into `kept`."""
    async with open_session(network.client_home) as client:
        running = Soak(network, client, options)
        try:
            await running.run()
        finally:
            kept["network"], kept["outcomes"] = running.fleet.network, running.load.outcomes
            kept["summary"] = running.summary()
        wrong, kept["agreed"] = await running.check()
        return wrong


def main() -> None:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    directory = options.dir or Path(tempfile.mkdtemp(prefix="p2pnode-soak-")) / "net"
    parameters = testnet.parameters_of(options.epoch)
    network = testnet.up(directory.absolute(), nodes=options.nodes, shards=options.shards, parameters=parameters)
    print(f"{options.nodes} nodes with {options.shards} shards in {directory}, seed {options.seed}", flush=True)
    kept: dict[str, Any] = {"network": network, "outcomes": [], "summary": {}, "agreed": {}}
    begin = time.monotonic()
    try:
        wrong = trio.run(partial(soak, network, options, kept))
    except* (NodeFailed, trio.TooSlowError) as faults:
        wrong = [repr(fault) for fault in faults.exceptions]
    finally:
        network = kept["network"]
        testnet.down(network)
    if kept["agreed"]:
        wrong += check_databases(network, kept["outcomes"])
        wrong += compare_chains(network)
    fatal, warnings = read_logs(network)
    wrong += fatal
    summary = {"seed": options.seed, "nodes": options.nodes, "shards": options.shards, **kept["summary"]}
    summary |= {"agreed": kept["agreed"], "warnings": warnings, "seconds": round(time.monotonic() - begin)}
    if not wrong and not options.keep:
        shutil.rmtree(directory)
    summary |= {"directory": str(directory) if wrong or options.keep else None, "wrong": wrong[:50]}
    print(json.dumps(summary, indent=2))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
