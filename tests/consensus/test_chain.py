"""The chain store holds a final chain and the state after it, of one and the same height whatever is killed when."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from economics.block import Finality
from economics.crypto import Digest
from economics.light import Boundary
from p2pnode.consensus.chain import ChainStore, DamagedChain, FinalBlock, StoredReceipt, StoredTransaction
from p2pnode.errors import ConfigError, DiskFailed
from tests.p2pnode.blocks import (
    ACCOUNTS,
    CHAIN,
    EPOCH_BLOCKS,
    GENESIS,
    GENESIS_STATE,
    make_block,
    make_chain,
    make_changes,
    make_finality,
    make_header,
    make_root,
    state_after,
)
from tests.p2pnode.disk import ROOT, run_on_disk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chain" / "chain.db"


def open_store(path: Path) -> ChainStore:
    return ChainStore.open(path, CHAIN, genesis_state=GENESIS_STATE.items())


def append(store: ChainStore, blocks: list[FinalBlock], *, at_once: int = 1) -> None:
    for at in range(0, len(blocks), at_once):
        batch = blocks[at : at + at_once]
        changes: dict[bytes, bytes | None] = {}
        for item in batch:
            changes |= make_changes(item.block.header.height)
        store.append(batch, finality=make_finality(batch[-1].block.header), changes=changes)


def own_finality(item: FinalBlock) -> Finality:
    return make_finality(item.block.header)


def check_holds(store: ChainStore, chain: list[FinalBlock]) -> None:
    """Assert that the store holds this chain from height 1 on, each block final by itself, and nothing else."""
    height = len(chain)
    assert (store.head(), store.base()) == (height, 1)
    for each, item in enumerate(chain, 1):
        block = item.block
        assert (store.header(each), store.block(each)) == (block.header, block)
        assert (store.bodies(each), store.root(each)) == (item.bodies, item.root)
        assert store.finality(each) == own_finality(item)
    assert store.block(height + 1) is None
    assert list(store.state_values()) == list(state_after(height).values())


class TestOpen:
    def test_makes_a_store_with_the_state_of_genesis(self, path: Path) -> None:
        for _ in range(2):
            store = open_store(path)
            check_holds(store, [])
            assert (store.header(0), store.finality(0), store.root(0), store.certified_from(0)) == (None,) * 4
            store.close()

    def test_refuses_another_chain_s(self, path: Path) -> None:
        open_store(path).close()
        with pytest.raises(ConfigError, match="another network's chain"):
            ChainStore.open(path, Digest(b"d" * 32), genesis_state=())
        open_store(path).close()

    @pytest.mark.parametrize("pragma", ["user_version = 3", "application_id = 7"])
    def test_refuses_another_version_s(self, path: Path, pragma: str) -> None:
        open_store(path).close()
        with sqlite3.connect(path) as connection:
            connection.execute(f"PRAGMA {pragma}")
        connection.close()
        with pytest.raises(ConfigError, match="another version of p2pnode"):
            open_store(path)

    def test_refuses_a_database_of_something_else(self, path: Path) -> None:
        path.parent.mkdir()
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE other (x)")
        connection.close()
        with pytest.raises(ConfigError, match="another version of p2pnode"):
            open_store(path)

    def test_says_that_it_is_no_database(self, path: Path) -> None:
        path.parent.mkdir()
        path.write_bytes(b"text" * 2_000)
        with pytest.raises(DamagedChain, match="set it aside, and the chain is fetched from peers"):
            open_store(path)

    def test_says_that_the_path_cannot_be_opened(self, path: Path) -> None:
        path.mkdir(parents=True)
        with pytest.raises(DiskFailed, match="cannot use"):
            open_store(path)

    def test_finds_pages_that_were_overwritten(self, path: Path) -> None:
        """Each page but the first in turn: found at the start, or as it was, for a page that nothing uses."""
        store = open_store(path)
        chain = make_chain(40)
        append(store, chain)
        store.close()
        data = path.read_bytes()
        found = 0
        for at in range(4096, len(data), 4096):
            path.write_bytes(data[:at] + Random(at).randbytes(4096) + data[at + 4096 :])
            try:
                store = open_store(path)
            except DamagedChain:
                found += 1
                continue
            check_holds(store, chain)
            store.close()
        assert found > len(data) // 4096 * 3 // 4

    def test_is_over_when_it_is_closed(self, path: Path) -> None:
        store = open_store(path)
        store.close()
        with pytest.raises(DiskFailed, match="closed, or failed before"):
            store.block(1)


class TestAppend:
    def test_keeps_blocks_bodies_proofs_and_state(self, path: Path) -> None:
        chain = make_chain(3 * EPOCH_BLOCKS + 5)
        store = open_store(path)
        append(store, chain)
        check_holds(store, chain)
        store.close()
        check_holds(open_store(path), chain)

    def test_of_several_blocks_proves_the_last_one(self, path: Path) -> None:
        chain = make_chain(9)
        store = open_store(path)
        append(store, chain, at_once=3)
        proofs = [store.finality(height) is not None for height in range(1, 10)]
        assert proofs == [False, False, True] * 3
        assert store.certified_from(1) == (3, own_finality(chain[2]))
        assert store.certified_from(4) == store.certified_from(6) == (6, own_finality(chain[5]))
        assert store.certified_from(10) is None
        assert list(store.state_values()) == list(state_after(9).values())

    def test_takes_only_what_follows_the_head(self, path: Path) -> None:
        chain = make_chain(5)
        store = open_store(path)
        with pytest.raises(AssertionError):
            append(store, chain[1:2])
        append(store, chain[:3])
        other = make_block(4, make_header(3, chain[0].block.header))
        for wrong in ([chain[2]], [chain[4]], [chain[3], chain[3]], [other], []):
            with pytest.raises(AssertionError):
                store.append(wrong, finality=own_finality(chain[3]), changes={b"k" * 32: b"wrong"})
            check_holds(store, chain[:3])

    def test_that_fails_half_way_changes_nothing(self, path: Path) -> None:
        chain = make_chain(6)
        store = open_store(path)
        append(store, chain[:4])
        short = replace(chain[5], receipts=())
        with pytest.raises(AssertionError):
            store.append([chain[4], short], finality=own_finality(short), changes=make_changes(5))
        check_holds(store, chain[:4])
        append(store, chain[4:])
        check_holds(store, chain)

    def test_on_a_full_disk_changes_nothing_and_goes_on_with_room(self, tmp_path: Path) -> None:
        body = """
from p2pnode.consensus.chain import ChainStore
from p2pnode.errors import SpaceError
from tests.p2pnode.blocks import *
path = disk / "chain" / "chain.db"
filler = disk / "filler"
filler.write_bytes(bytes(8 << 20))
store = ChainStore.open(path, CHAIN, genesis_state=GENESIS_STATE.items())
height, parent, full, left = 0, GENESIS, 0, 10
while left:
    block = make_block(height + 1, parent, count=40)
    proof = make_finality(block.block.header)
    try:
        store.append([block], finality=proof, changes=make_changes(height + 1))
        height, parent, left = height + 1, block.block.header, left - full
    except SpaceError as error:
        assert "is full: free some space" in str(error)
        full += 1
        assert store.head() == height
        assert list(store.state_values()) == list(state_after(height).values())
        assert full < 3, "no room after a file was deleted"
        filler.unlink()
store.close()
store = ChainStore.open(path, CHAIN, genesis_state=())
assert store.head() == height
assert list(store.state_values()) == list(state_after(height).values())
print(full)
"""
        assert run_on_disk(tmp_path / "disk", "size=12m", body) == "1\n"


CHILD = """
import sys
from pathlib import Path
from p2pnode.consensus.chain import ChainStore
from tests.p2pnode.blocks import *
store = ChainStore.open(Path(sys.argv[1]), CHAIN, genesis_state=GENESIS_STATE.items())
height = store.head()
parent = store.header(height) or GENESIS
while True:
    count = height % 3 + 1
    blocks = make_chain(count, first=height + 1, parent=parent)
    changes = {}
    for each in range(height + 1, height + count + 1):
        changes |= make_changes(each)
    height, parent = height + count, blocks[-1].block.header
    store.append(blocks, finality=make_finality(parent), changes=changes)
    print(height, flush=True)
"""


def test_a_killed_process_leaves_one_height(path: Path) -> None:
    """What was acknowledged is there, and blocks, proofs and state are of the same height, after each of 24 kills."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    heights = []
    for kill in range(24):
        command = [sys.executable, "-c", CHILD, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=ROOT) as child:
            assert child.stdout is not None
            acknowledged = int(child.stdout.readline())
            time.sleep(Random(kill).random() * 0.05)
            child.send_signal(signal.SIGKILL)
            acknowledged = int((child.stdout.read().split(b"\n")[:-1] or [b"%d" % acknowledged])[-1])
        store = open_store(path)
        head = store.head()
        assert acknowledged <= head <= acknowledged + 3
        assert list(store.state_values()) == list(state_after(head).values())
        assert store.finality(head) is not None
        assert store.block(head + 1) is None
        assert store.bodies(head + 1) == ()
        heights.append(head)
        store.close()
    assert heights == sorted(set(heights))
    store = open_store(path)
    chain = make_chain(store.head())
    assert [store.block(height) for height in range(1, len(chain) + 1)] == [item.block for item in chain]
    assert [store.bodies(height) for height in range(1, len(chain) + 1)] == [item.bodies for item in chain]


class TestReading:
    @pytest.fixture
    def chain(self) -> list[FinalBlock]:
        return make_chain(25)

    @pytest.fixture
    def store(self, path: Path, chain: list[FinalBlock]) -> ChainStore:
        store = open_store(path)
        append(store, chain)
        return store

    def test_boundaries_are_known_by_epoch(self, store: ChainStore) -> None:
        assert [store.boundary(epoch) for epoch in range(4)] == [10, 20, None, None]

    def test_a_transaction_is_known_by_its_hash(self, store: ChainStore, chain: list[FinalBlock]) -> None:
        for height, item in enumerate(chain, 1):
            for index, (receipt, raw) in enumerate(zip(item.receipts, item.bodies, strict=True)):
                row = StoredTransaction(height, index, receipt.hash, receipt.code, receipt.fee_frost, raw)
                assert store.transaction(receipt.hash) == row
        assert store.transaction(bytes(32)) is None

    @pytest.mark.parametrize(
        ("outcomes", "height"),
        [
            ([("wrong_nonce", 0), ("ok", 5), ("wrong_nonce", 0)], 2),
            ([("wrong_nonce", 0), ("unfunded", 5), ("wrong_nonce", 0)], 2),
            ([("ok", 0), ("wrong_nonce", 0), ("wrong_nonce", 0)], 1),
            ([("wrong_nonce", 0), ("unfunded_fee", 0), ("wrong_nonce", 0)], 3),
        ],
    )
    def test_a_transaction_in_several_blocks_is_where_it_had_its_effect(
        self, path: Path, outcomes: list[tuple[str, int]], height: int
    ) -> None:
        store = open_store(path)
        first = make_block(1, GENESIS, count=1)
        tx_hash = first.receipts[0].hash
        parent = GENESIS
        for each, (code, fee) in enumerate(outcomes, 1):
            header = make_header(each, parent, hashes=(tx_hash,))
            block = replace(first.block, header=header)
            item = replace(first, block=block, receipts=(StoredReceipt(tx_hash, code, fee),))
            store.append([item], finality=make_finality(header), changes={})
            parent = header
        row = store.transaction(tx_hash)
        assert row is not None
        assert (row.height, row.code, row.fee_frost) == (height, *outcomes[height - 1])

    def history_of(self, chain: list[FinalBlock], account: bytes) -> list[tuple[int, int]]:
        return [
            (height, index)
            for height, item in reversed(list(enumerate(chain, 1)))
            for index, keys in reversed(list(enumerate(item.touched)))
            if account in keys
        ]

    @pytest.mark.parametrize("account", ACCOUNTS)
    @pytest.mark.parametrize("limit", [1, 2, 7, 100])
    def test_history_is_paged_newest_first(
        self, store: ChainStore, chain: list[FinalBlock], account: bytes, limit: int
    ) -> None:
        pages: list[StoredTransaction] = []
        before: tuple[int, int] | None = None
        while page := store.history(account, before=before, limit=limit):
            assert len(page) <= limit
            pages += page
            before = page[-1].height, page[-1].index
        assert [(row.height, row.index) for row in pages] == self.history_of(chain, account)
        assert all(row.raw == chain[row.height - 1].bodies[row.index] for row in pages)

    def test_history_takes_any_place_to_start_from(self, store: ChainStore, chain: list[FinalBlock]) -> None:
        account, whole = ACCOUNTS[0], self.history_of(chain, ACCOUNTS[0])
        for before in ((1 << 62, 1 << 32), (1 << 43, 0), (26, 0), (25, 1 << 32), (9, 1 << 32), (9, 2), (9, 0), (0, 0)):
            rows = store.history(account, before=before, limit=100)
            assert [(row.height, row.index) for row in rows] == [place for place in whole if place < before]
        assert store.history(b"n" * 32, before=None, limit=100) == []

    def test_the_state_is_not_read_across_an_append(self, path: Path) -> None:
        items = ((index.to_bytes(32, "big"), b"value") for index in range(2_500))
        store = ChainStore.open(path, CHAIN, genesis_state=items)
        assert len(list(store.state_values())) == 2_500
        values = store.state_values()
        next(values)
        append(store, make_chain(1))
        with pytest.raises(AssertionError, match="moved on"):
            list(values)

    def test_a_stored_block_that_was_changed_is_never_returned(self, path: Path, store: ChainStore) -> None:
        store.close()
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE blocks SET rest = CAST(substr(rest, 1, 64) || zeroblob(32) AS BLOB)")
        connection.close()
        with pytest.raises(DamagedChain):
            open_store(path).block(4)


class TestSnapshot:
    STATE = state_after(30)

    def trail(self, chain: list[FinalBlock], *heights: int) -> list[Boundary]:
        """Return boundaries of which every other one names another committee."""
        return [
            Boundary(item.block.header, own_finality(item), b"" if at % 2 else b"members %d" % at)
            for at, item in enumerate(chain[height - 1] for height in heights)
        ]

    def test_takes_the_place_of_a_new_chain(self, path: Path) -> None:
        chain = make_chain(35)
        store = open_store(path)
        trail = self.trail(chain, 10, 20, 30)
        store.install_snapshot(trail, self.STATE.items(), root=make_root(30))
        for _ in range(2):
            assert (store.head(), store.base()) == (30, 31)
            assert list(store.state_values()) == list(self.STATE.values())
            assert [store.boundary(epoch) for epoch in range(4)] == [10, 20, 30, None]
            assert [store.header(height) for height in (10, 20, 30)] == [item.header for item in trail]
            assert [store.finality(height) for height in (10, 20, 30)] == [item.finality for item in trail]
            assert [store.boundary_of(epoch) for epoch in range(4)] == [*trail, None]
            assert [store.root(height) for height in (10, 20, 30)] == [None, None, make_root(30)]
            assert [store.block(height) for height in (10, 29, 30)] == [None] * 3
            store.close()
            store = open_store(path)
        append(store, chain[30:])
        assert (store.head(), store.base(), store.block(31)) == (35, 31, chain[30].block)
        assert list(store.state_values()) == list(state_after(35).values())

    def test_takes_the_place_of_a_chain_that_is_behind_and_leaves_its_history(self, path: Path) -> None:
        chain = make_chain(31)
        store = open_store(path)
        append(store, chain[:13])
        history = store.history(ACCOUNTS[0], before=None, limit=100)
        trail = self.trail(chain, 20, 30)
        store.install_snapshot(trail, self.STATE.items(), root=make_root(30))
        assert [store.boundary(epoch) for epoch in range(3)] == [10, 20, 30]
        assert (store.header(10), store.header(13)) == (chain[9].block.header, None)
        assert [store.block(height) for height in (1, 10, 13)] == [None] * 3
        assert store.root(10) == chain[9].root
        assert store.history(ACCOUNTS[0], before=None, limit=100) == history
        assert list(store.state_values()) == list(self.STATE.values())
        append(store, chain[30:])

    def test_is_all_or_nothing(self, path: Path) -> None:
        chain = make_chain(30)
        store = open_store(path)
        append(store, chain[:13])
        trail = self.trail(chain, 20, 30)
        with pytest.raises(sqlite3.IntegrityError):
            store.install_snapshot(trail, [(b"k", b"1"), (b"k", b"2")], root=make_root(30))
        check_holds(store, chain[:13])
        with pytest.raises(AssertionError):
            store.install_snapshot(self.trail(chain, 10), (), root=make_root(10))
        check_holds(store, chain[:13])
