"""Chain store: final blocks, their receipts and the state after the last of them, in one SQLite file. For threads.

One transaction stores a finalization: blocks, transactions, the proof that they are final, and the state. It is durable
on return, so the state is never ahead of the blocks or behind them. Judges nothing: the caller has executed the blocks.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from economics.block import HEADER_BYTES, Block, BlockHeader, Finality
from economics.crypto import Digest
from economics.errors import Rejected
from economics.light import Boundary
from p2pnode.errors import ConfigError, DiskFailed, SpaceError
from p2pnode.files import make_directory, sync_directory

APPLICATION_ID = 0x70326E63
SCHEMA_VERSION = 2
INDEX_BITS = 20
"""A transaction's number is its height, then its index in so many bits: 10,000 a block, and height below 2^43."""
TRANSACTIONS_MAX = 1 << INDEX_BITS
HEIGHT_MAX = (1 << 63 - INDEX_BITS) - 1
PAGE_ROWS = 1_000
CACHE_KIB = 16 << 10
"""Hashes fall anywhere in their index: without its pages in memory each insert reads the disk."""

SCHEMA = """
CREATE TABLE about (chain_id BLOB NOT NULL, base INTEGER NOT NULL) STRICT;
CREATE TABLE blocks (
    height INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, epoch INTEGER NOT NULL, is_boundary INTEGER NOT NULL,
    header BLOB NOT NULL, rest BLOB, root BLOB, finality BLOB, members BLOB) STRICT;
CREATE INDEX certified ON blocks (height) WHERE finality IS NOT NULL;
CREATE UNIQUE INDEX boundaries ON blocks (epoch) WHERE is_boundary;
CREATE TABLE transactions (
    number INTEGER PRIMARY KEY, hash BLOB NOT NULL, code TEXT NOT NULL, fee_frost INTEGER NOT NULL,
    raw BLOB NOT NULL) STRICT;
CREATE INDEX hashes ON transactions (hash);
CREATE TABLE touched (account BLOB NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (account, number))
    STRICT, WITHOUT ROWID;
CREATE TABLE state (key BLOB PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
"""
"""`rest` is a block's bytes behind its header, absent for a boundary that is known by its header alone; `members` is of
boundaries: the next committee as `economics.light.Boundary` shows it."""


class DamagedChain(DiskFailed):
    """The database is damaged. Whatever it held can be had from peers, so it may be set aside and fetched anew."""


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    """What became of a transaction."""

    hash: Digest
    code: str
    fee_frost: int


@dataclass(frozen=True, slots=True)
class FinalBlock:
    """A final block as it was executed."""

    block: Block
    bodies: tuple[bytes, ...]
    """Whole transactions, in order."""
    receipts: tuple[StoredReceipt, ...]
    touched: tuple[tuple[bytes, ...], ...]
    """For each transaction the keys of the accounts in whose history it belongs."""
    root: Digest
    """State root after it."""
    is_boundary: bool
    members: bytes = b""
    """Of a boundary: the next committee where that differs, as `economics.light.Boundary` shows it."""


@dataclass(frozen=True, slots=True)
class StoredTransaction:
    """A transaction of a final block, and what became of it."""

    height: int
    index: int
    hash: Digest
    code: str
    fee_frost: int
    raw: bytes


class ChainStore:
    """The chain on disk. Safe to call from several threads; each call waits for one that writes."""

    def __init__(self, path: Path, chain_id: Digest, connection: sqlite3.Connection) -> None:
        self.path = path
        self.chain_id = chain_id
        self._connection = connection
        self._lock = threading.RLock()
        self._failed = False
        self._head = 0
        self._base = 1

    # --- open and close ------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path, chain_id: Digest, *, genesis_state: Iterable[tuple[bytes, bytes]] = ()) -> "ChainStore":
        """Return the store at a path; a new one begins with the state (key, value) that genesis gives.

        Reads the whole file. Raises `ConfigError` for another chain's or version's, `DamagedChain`, `DiskFailed`.
        """
        make_directory(path.parent)
        try:
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as fault:
            raise DiskFailed(f"cannot use {path}: {fault}") from fault
        store = cls(path, chain_id, connection)
        try:
            with store._faults():
                store._prepare(genesis_state)
            sync_directory(path.parent)
        except BaseException:
            connection.close()
            raise
        return store

    def _prepare(self, genesis_state: Iterable[tuple[bytes, bytes]]) -> None:
        run = self._connection.execute
        version, application = self._pragma("user_version"), self._pragma("application_id")
        (tables,) = run("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables and (version, application) != (SCHEMA_VERSION, APPLICATION_ID):
            raise ConfigError(f"{self.path} is of another version of p2pnode: update, or move it away")
        if self._pragma("journal_mode = WAL") != "wal":
            raise ConfigError(f"{self.path} is on a file system that has no shared memory: use a local disk")
        for setting in ("synchronous = FULL", f"cache_size = -{CACHE_KIB}", "trusted_schema = OFF"):
            run(f"PRAGMA {setting}")
        if not tables:
            self._create(genesis_state)
        elif (found := run("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise self._damaged(found)
        chain_id, self._base = run("SELECT chain_id, base FROM about").fetchone()
        if chain_id != self.chain_id:
            raise ConfigError(f"{self.path} holds another network's chain: put its genesis file back, or move it away")
        (self._head,) = run("SELECT coalesce(max(height), 0) FROM blocks").fetchone()

    def _pragma(self, text: str) -> object:
        return self._connection.execute(f"PRAGMA {text}").fetchone()[0]

    def _create(self, genesis_state: Iterable[tuple[bytes, bytes]]) -> None:
        with self._transaction() as run:
            for statement in SCHEMA.split(";")[:-1]:
                run.execute(statement)
            run.execute("INSERT INTO about VALUES (?, 1)", (self.chain_id,))
            run.executemany("INSERT INTO state VALUES (?, ?)", genesis_state)
            run.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            run.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def close(self) -> None:
        with self._lock:
            self._failed = True
            self._connection.close()

    # --- failures ------------------------------------------------------------------------------------------------

    def _damaged(self, detail: object) -> DamagedChain:
        self._failed = True
        return DamagedChain(f"{self.path} is damaged ({detail}): set it aside, and the chain is fetched from peers")

    @contextmanager
    def _faults(self) -> Iterator[sqlite3.Connection]:
        """Hold the connection, and name what SQLite finds wrong with the disk."""
        with self._lock:
            if self._failed:
                raise DiskFailed(f"{self.path} is closed, or failed before: start the node again")
            try:
                yield self._connection
            except sqlite3.DatabaseError as fault:
                match fault.sqlite_errorcode & 0xFF:
                    case sqlite3.SQLITE_FULL:
                        raise SpaceError(f"the disk that holds {self.path} is full: free some space") from fault
                    case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                        raise self._damaged(fault) from fault
                    case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_BUSY:
                        self._failed = True
                        raise DiskFailed(f"cannot use {self.path}: {fault} ({fault.sqlite_errorname})") from fault
                    case _:
                        raise

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block as one durable transaction, or leave everything as it was."""
        with self._faults() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    # --- writing -------------------------------------------------------------------------------------------------

    def append(
        self, blocks: Sequence[FinalBlock], *, finality: Finality, changes: Mapping[bytes, bytes | None]
    ) -> None:
        """Store blocks that follow the head, what proves the last of them final, and the state's changes by all.

        Durable on return; on `SpaceError` nothing of it is kept.
        """
        assert blocks
        with self._lock:
            with self._transaction() as run:
                self._insert(run, blocks, finality, changes)
            self._head += len(blocks)

    def _insert(
        self,
        run: sqlite3.Connection,
        blocks: Sequence[FinalBlock],
        finality: Finality,
        changes: Mapping[bytes, bytes | None],
    ) -> None:
        parent = self._hash_of(self._head)
        for height, item in enumerate(blocks, self._head + 1):
            header = item.block.header
            assert header.height == height
            assert parent is None or header.parent_hash == parent
            self._insert_block(run, item, finality if item is blocks[-1] else None)
            self._insert_transactions(run, item)
            parent = header.hash
        gone = ((key,) for key, value in changes.items() if value is None)
        run.executemany("DELETE FROM state WHERE key = ?", gone)
        fresh = ((key, value) for key, value in changes.items() if value is not None)
        run.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", fresh)

    def _hash_of(self, height: int) -> bytes | None:
        row = self._one("SELECT hash FROM blocks WHERE height = ?", height)
        return None if row is None else row[0]

    def _insert_block(self, run: sqlite3.Connection, item: FinalBlock, finality: Finality | None) -> None:
        header, raw = item.block.header, item.block.encode()
        proof = None if finality is None else finality.encode()
        row = (
            *(header.height, header.hash, header.epoch, item.is_boundary),
            *(raw[:HEADER_BYTES], raw[HEADER_BYTES:], item.root, proof, item.members if item.is_boundary else None),
        )
        run.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def _insert_transactions(self, run: sqlite3.Connection, item: FinalBlock) -> None:
        count = len(item.block.transactions)
        assert {len(item.bodies), len(item.receipts), len(item.touched)} == {count}
        assert tuple(receipt.hash for receipt in item.receipts) == item.block.transactions
        assert count <= TRANSACTIONS_MAX
        first = item.block.header.height << INDEX_BITS
        rows = (
            (number, receipt.hash, receipt.code, receipt.fee_frost, raw)
            for number, (receipt, raw) in enumerate(zip(item.receipts, item.bodies, strict=True), first)
        )
        run.executemany("INSERT INTO transactions VALUES (?, ?, ?, ?, ?)", rows)
        accounts = ((key, number) for number, keys in enumerate(item.touched, first) for key in keys)
        run.executemany("INSERT OR IGNORE INTO touched VALUES (?, ?)", accounts)

    def install_snapshot(
        self, trail: Sequence[Boundary], items: Iterable[tuple[bytes, bytes]], *, root: Digest
    ) -> None:
        """Go on from the state (key, value) after the last boundary of `trail`, which is above the head.

        `trail` leads there from the current epoch, boundary by boundary; `root` is the state's. Durable on return.
        Blocks up to there are no longer held; the history of what was executed here stays.
        """
        boundary = trail[-1].header
        assert boundary.height > self._head
        with self._lock:
            with self._transaction() as run:
                run.execute("DELETE FROM blocks WHERE NOT is_boundary")
                run.execute("UPDATE blocks SET rest = NULL")
                for item in trail:
                    header = item.header
                    row = (header.height, header.hash, header.epoch, header.encode(), item.finality.encode())
                    run.execute("INSERT INTO blocks VALUES (?, ?, ?, TRUE, ?, NULL, NULL, ?, ?)", (*row, item.members))
                run.execute("UPDATE blocks SET root = ? WHERE height = ?", (root, boundary.height))
                run.execute("UPDATE about SET base = ?", (boundary.height + 1,))
                run.execute("DELETE FROM state")
                run.executemany("INSERT INTO state VALUES (?, ?)", items)
            self._head, self._base = boundary.height, boundary.height + 1

    # --- reading -------------------------------------------------------------------------------------------------

    def _one(self, query: str, *values: object) -> tuple[bytes, ...] | None:
        with self._faults() as run:
            row: tuple[bytes, ...] | None = run.execute(query, values).fetchone()
            return row

    def head(self) -> int:
        """Return the height of the last final block, 0 where that is genesis."""
        return self._head

    def base(self) -> int:
        """Return the lowest height whose block is held, were there one; above the head after a snapshot."""
        return self._base

    def header(self, height: int) -> BlockHeader | None:
        """Return the header of a block that is held, or of a boundary below."""
        row = self._one("SELECT header FROM blocks WHERE height = ?", height)
        if row is None:
            return None
        try:
            return BlockHeader.decode(row[0], chain_id=self.chain_id)
        except Rejected as fault:
            raise self._damaged(f"header {height}: {fault}") from fault

    def block(self, height: int) -> Block | None:
        row = self._one("SELECT header, rest FROM blocks WHERE height = ? AND rest IS NOT NULL", height)
        return None if row is None else self._decode_block(height, row[0] + row[1])

    def _decode_block(self, height: int, raw: bytes) -> Block:
        try:
            return Block.decode(raw, chain_id=self.chain_id, transactions_max=TRANSACTIONS_MAX)
        except Rejected as fault:
            raise self._damaged(f"block {height}: {fault}") from fault

    def bodies(self, height: int) -> tuple[bytes, ...]:
        """Return the transactions of a block that is held, in order."""
        query = "SELECT raw FROM transactions WHERE number >= ? AND number < ? ORDER BY number"
        with self._faults() as run:
            rows = run.execute(query, (height << INDEX_BITS, height + 1 << INDEX_BITS))
            return tuple(raw for (raw,) in rows)

    def finality(self, height: int) -> Finality | None:
        """Return what finalized this very block."""
        row = self._one("SELECT finality FROM blocks WHERE height = ? AND finality IS NOT NULL", height)
        return None if row is None else self._decode_finality(height, row[0])

    def _decode_finality(self, height: int, raw: bytes) -> Finality:
        try:
            return Finality.decode(raw, chain_id=self.chain_id)
        except Rejected as fault:
            raise self._damaged(f"finality {height}: {fault}") from fault

    def certified_from(self, height: int) -> tuple[int, Finality] | None:
        """Return the lowest block at or above a height that has a finality of its own; at the head there is one."""
        query = "SELECT height, finality FROM blocks WHERE height >= ? AND finality IS NOT NULL ORDER BY height LIMIT 1"
        with self._faults() as run:
            row = run.execute(query, (height,)).fetchone()
        return None if row is None else (row[0], self._decode_finality(*row))

    def boundary(self, epoch: int) -> int | None:
        """Return the height of the last block of an epoch."""
        with self._faults() as run:
            row = run.execute("SELECT height FROM blocks WHERE is_boundary AND epoch = ?", (epoch,)).fetchone()
        return None if row is None else int(row[0])

    def boundary_of(self, epoch: int) -> Boundary | None:
        """Return the end of an epoch as a light client takes it."""
        query = "SELECT height, header, finality, members FROM blocks WHERE is_boundary AND epoch = ?"
        with self._faults() as run:
            row = run.execute(query, (epoch,)).fetchone()
        if row is None:
            return None
        height, header, finality, members = row
        try:
            decoded = BlockHeader.decode(header, chain_id=self.chain_id)
        except Rejected as fault:
            raise self._damaged(f"header {height}: {fault}") from fault
        return Boundary(decoded, self._decode_finality(height, finality), members)

    def root(self, height: int) -> Digest | None:
        """Return the state root after a block that was executed here, or whose state a snapshot gave."""
        row = self._one("SELECT root FROM blocks WHERE height = ? AND root IS NOT NULL", height)
        return None if row is None else Digest(row[0])

    def transaction(self, tx_hash: bytes) -> StoredTransaction | None:
        """Return where a transaction had its effect or cost its fee, else where it was last without any."""
        query = (
            "SELECT number, hash, code, fee_frost, raw FROM transactions WHERE hash = ? "
            "ORDER BY fee_frost > 0 DESC, code = 'ok' DESC, number DESC LIMIT 1"
        )
        with self._faults() as run:
            row = run.execute(query, (tx_hash,)).fetchone()
        return None if row is None else _build_transaction(row)

    def history(self, account: bytes, *, before: tuple[int, int] | None, limit: int) -> list[StoredTransaction]:
        """Return transactions that touch an account, newest first, those before (height, index) or from the newest."""
        number = (1 << 63) - 1
        if before is not None and before[0] <= HEIGHT_MAX:
            number = (before[0] << INDEX_BITS) + min(before[1], TRANSACTIONS_MAX)
        query = (
            "SELECT number, hash, code, fee_frost, raw FROM touched JOIN transactions USING (number) "
            "WHERE account = ? AND number < ? ORDER BY number DESC LIMIT ?"
        )
        with self._faults() as run:
            return [_build_transaction(row) for row in run.execute(query, (account, number, limit))]

    def state_values(self) -> Iterator[bytes]:
        """Yield the values of the state after the head, ascending by key; nothing may be appended meanwhile."""
        head, last = self._head, b""
        while True:
            with self._faults() as run:
                query = "SELECT key, value FROM state WHERE key > ? ORDER BY key LIMIT ?"
                rows = run.execute(query, (last, PAGE_ROWS)).fetchall()
                assert head == self._head, "the state has moved on while it was read"
            yield from (value for _, value in rows)
            if len(rows) < PAGE_ROWS:
                return
            last = rows[-1][0]


def _build_transaction(row: tuple[int, bytes, str, int, bytes]) -> StoredTransaction:
    number, tx_hash, code, fee_frost, raw = row
    height, index = divmod(number, TRANSACTIONS_MAX)
    return StoredTransaction(height, index, Digest(tx_hash), code, fee_frost, raw)
