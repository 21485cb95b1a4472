"""What must hold when all nodes are back: one chain, one state, exact supply, nothing acknowledged lost.

Each check returns what is wrong as lines to read; nothing wrong is an empty list.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

from economics import cbor
from economics.block import HEADER_BYTES, BlockHeader
from economics.crypto import Digest
from economics.genesis import Genesis
from economics.ledger import Ledger
from economics.transactions import SignedTransaction
from p2pnode.clients.chainview import Outcome
from p2pnode.clients.session import Session
from p2pnode.consensus.chain import ChainStore
from p2pnode.consensus.chainsync import REPLY_BYTES_MAX
from p2pnode.testnet import Network, home_of

AGREE_S = 120.0
"""A timeout that has grown may be up to a minute."""
POLL_S = 0.5
HEADERS_AT_ONCE = 256
FATAL = ("Traceback", "AssertionError", "caught: member", "CRITICAL", " ERROR ")
"""In a log: a fault of ours, or an honest node that seems to have signed two things."""


async def wait_for_agreement(client: Session) -> tuple[list[str], dict[str, Any]]:
    """Wait until all nodes report one height and state root; return what is wrong and what they report."""
    seen: list[Any] = []
    with trio.move_on_after(AGREE_S):
        while True:
            status = await client.status()
            chains = [answer.get("chain") for answer in status]
            seen = [answer.get("why") if chain is None else chain for answer, chain in zip(status, chains, strict=True)]
            marks = {(chain["height"], chain["root"]) for chain in chains if isinstance(chain, dict)}
            if None not in chains and len(marks) == 1:
                height, root = marks.pop()
                return [], {"height": height, "root": root, "epoch": max(chain["epoch"] for chain in chains if chain)}
            await trio.sleep(POLL_S)
    return [f"no agreement within {AGREE_S:.0f} s: {seen}"], {}


async def compare_headers(client: Session, height: int) -> list[str]:
    """Ask every node for all its headers and compare block for block."""
    chains = [await fetch_hashes(client, member, height) for member in range(client.members.count)]
    return [
        f"height {at}: nodes have {len({chain.get(at) for chain in chains})} different blocks, or lack it"
        for at in range(1, height + 1)
        if len({chain.get(at) for chain in chains}) != 1 or chains[0].get(at) is None
    ]


async def fetch_hashes(client: Session, member: int, height: int) -> dict[int, Digest]:
    found: dict[int, Digest] = {}
    while height > 0:
        request: dict[str, cbor.Value] = {"count": HEADERS_AT_ONCE, "height": height, "op": "headers"}
        _, payload = await client.chain.members.request(member, request, size_max=REPLY_BYTES_MAX)
        for at in range(0, len(payload), HEADER_BYTES):
            header = BlockHeader.decode(payload[at : at + HEADER_BYTES], chain_id=client.genesis.chain_id)
            found[header.height] = header.hash
        if not payload:
            break
        height -= len(payload) // HEADER_BYTES
    return found


def check_databases(network: Network, outcomes: Sequence[Outcome]) -> list[str]:
    """Open each stopped node's chain: supply, the same root by replaying, and every acknowledged transaction."""
    genesis = network.client_home.load_genesis()
    found: list[str] = []
    for process in network.processes:
        store = ChainStore.open(home_of(network.directory, process.index).chain_database_path, genesis.chain_id)
        try:
            found += [f"node {process.index}: {fault}" for fault in check_chain(genesis, store, outcomes)]
        finally:
            store.close()
    return found


def check_chain(genesis: Genesis, store: ChainStore, outcomes: Sequence[Outcome]) -> list[str]:
    found: list[str] = []
    ledger = Ledger.load(genesis, items=store.state_values(), height=store.head())
    try:
        ledger.verify_supply()
    except AssertionError as fault:
        found.append(f"the supply is not exact: {fault}")
    if store.root(store.head()) != ledger.root:
        found.append("the stored state is not that of its root")
    if store.base() == 1:
        found += replay(genesis, store)
    else:
        found.append("it took a snapshot: what it says of the past cannot be checked")
    for outcome in outcomes:
        if outcome.height > store.head():  # a node that has left; the others' heads are compared
            continue
        row = store.transaction(outcome.hash)
        told = (outcome.height, outcome.index, outcome.code, outcome.fee_frost)
        if row is None:
            found.append(f"transaction {outcome.hash.hex()} of height {outcome.height} is lost")
        elif (row.height, row.index, row.code, row.fee_frost) != told:
            found.append(f"transaction {outcome.hash.hex()} was told as {told}, and is {row.height} {row.code}")
    return found


def replay(genesis: Genesis, store: ChainStore) -> list[str]:
    """Execute all blocks from genesis: every root must be the stored one (S9)."""
    ledger = Ledger.at_genesis(genesis)
    for height in range(1, store.head() + 1):
        block = store.block(height)
        if block is None:
            return [f"block {height} is missing"]
        bodies = [SignedTransaction.decode(raw, chain_id=genesis.chain_id) for raw in store.bodies(height)]
        ledger.apply(block.header, bodies)
        if ledger.root != store.root(height):
            return [f"replaying gives another state root after height {height}"]
    return []


def compare_chains(network: Network) -> list[str]:
    """Compare the stopped nodes' chains, block by block and root by root, those of nodes that have left too."""
    chain_id = network.client_home.load_genesis().chain_id
    chains: dict[int, list[tuple[Digest | None, Digest | None]]] = {}
    for process in network.processes:
        store = ChainStore.open(home_of(network.directory, process.index).chain_database_path, chain_id)
        try:
            heights = range(1, store.head() + 1)
            blocks = [store.block(height) for height in heights]
            chains[process.index] = [
                (None if block is None else block.header.hash, store.root(height))
                for height, block in zip(heights, blocks, strict=True)
            ]
        finally:
            store.close()
    longest = max(chains.values(), key=len)
    return [
        f"node {index} has another block or root than others at height {at + 1}"
        for index, chain in chains.items()
        for at in [next((at for at, mark in enumerate(chain) if mark != longest[at]), None)]
        if at is not None
    ]


def read_logs(network: Network) -> tuple[list[str], dict[str, int]]:
    """Return the lines of the nodes' logs that no honest network has, and how often which warning came."""
    fatal: list[str] = []
    warnings: Counter[str] = Counter()
    for process in network.processes:
        for line in (Path(process.home) / "node.log").read_text(encoding="utf-8", errors="replace").splitlines():
            if any(word in line for word in FATAL):
                fatal.append(f"node {process.index}: {line}")
            elif " WARNING " in line:
                warnings[shape_of(line)] += 1
    return fatal, dict(warnings.most_common(30))


def shape_of(line: str) -> str:
    """Return a log line without its time and numbers, so that like ones count as one."""
    text = line.split(" ", 2)[-1]
    return "".join("#" if char.isdigit() else char for char in text)[:120]
