"""The benchmark: each figure stands beside its floor, measured in the same run, since machines are noisy.

Parts: `codec` (encode and decode against plain zfec), `stages` (CPU-seconds per GiB of each stage), `wire` (two
processes), `sync` (a file from peer to peer), `gossip` (seven), `network` (a testnet of ten nodes), `chain` (finality
and transactions per second on testnets of four, seven and ten), `challenges` (a day's answers and audits), `heal` (a
node of ten that lost its disk is refilled), `join` (joins and leaves under load), `gateway` (GET of a large blob and
of small files), `quilt` (1,000 small files as one blob and as 1,000), `large` (2 GiB through a testnet of ten, for the
client's memory).
MB are 10^6 bytes.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
from rich.console import Console
from rich.table import Table

from p2pnode.coding.kernel import load_kernel
from p2pnode.errors import NodeError
from scripts.benchmarks.chain import bench_chain
from scripts.benchmarks.challenges import bench_challenges
from scripts.benchmarks.codec import bench_codec
from scripts.benchmarks.gateway import bench_gateway
from scripts.benchmarks.gossip import bench_gossip, run_gossip_node
from scripts.benchmarks.heal import bench_heal
from scripts.benchmarks.join import bench_join
from scripts.benchmarks.network import bench_network
from scripts.benchmarks.quilt import bench_quilt
from scripts.benchmarks.stages import bench_stages
from scripts.benchmarks.sync import bench_sync, serve_sync
from scripts.benchmarks.timing import GIB, MIB, Failed, Row
from scripts.benchmarks.wire import bench_wire, serve_wire
from scripts.soaking.fleet import NodeFailed
from scripts.soaking.load import flatten

FAULTS = (Failed, NodeFailed, NodeError, trio.TooSlowError)
"""Of what is measured: the other parts are still worth their time."""


def show(title: str, rows: list[Row]) -> None:
    """Print rows as tables: those with the same columns together, where the first of them stands."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append(row)
    for columns, group in groups.items():
        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column, justify="left" if isinstance(group[0][column], str) else "right")
        for row in group:
            cells = [row[column] for column in columns]
            table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells))
        Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    small = ("codec", "stages", "wire", "sync", "gossip")
    parts = (*small, "network", "challenges", "chain", "heal", "join", "gateway", "quilt", "large")
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"one or more of {', '.join(parts)}; all but large if none"
    )
    parser.add_argument(
        "--heal-mib", type=int, default=1024, help="what the network stores for heal; 1024 if not given"
    )
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--serve-sync", help=argparse.SUPPRESS)
    parser.add_argument("--gossip-node", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        trio.run(serve_wire, options.serve)
        return
    if options.serve_sync:
        trio.run(serve_sync, options.serve_sync)
        return
    if options.gossip_node is not None:
        trio.run(run_gossip_node, options.gossip_node)
        return
    chosen = options.parts or parts[:-1]
    report: dict[str, Any] = {
        "cores": os.cpu_count(),
        "kernel": load_kernel().name,
        "python": platform.python_version(),
    }
    print(json.dumps(report))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        measured: dict[str, Callable[[], list[Row]]] = {
            "codec": lambda: bench_codec([7, 10, 21, 31, 100], [MIB, 16 * MIB, 128 * MIB]),
            "stages": lambda: bench_stages(10, directory / "stages"),
            "wire": lambda: bench_wire(directory),
            "sync": lambda: bench_sync(directory / "sync"),
            "gossip": bench_gossip,
            "network": lambda: bench_network(directory, nodes=10, shards=10, size=100 * MIB),
            "challenges": lambda: bench_challenges(directory / "challenges"),
            "chain": lambda: bench_chain(directory),
            "heal": lambda: bench_heal(directory, size=options.heal_mib * MIB),
            "join": lambda: bench_join(directory / "join"),
            "quilt": lambda: bench_quilt(directory),
            "gateway": lambda: bench_gateway(directory, nodes=10, shards=10, size=100 * MIB),
            "large": lambda: bench_network(directory, nodes=10, shards=10, size=2 * GIB),
        }
        failures: list[str] = []
        for part in chosen:
            try:
                report[part] = measured[part]()
            except* FAULTS as group:
                failures += [f"{part} failed: {fault!r}" for fault in flatten(group)]
                print(failures[-1], flush=True)
            else:
                show(part, report[part])
    print(json.dumps(report))
    sys.exit("\n".join(failures) or 0)


if __name__ == "__main__":
    main()
