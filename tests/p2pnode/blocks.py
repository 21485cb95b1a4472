"""A chain of blocks for tests of what is stored: consistent in itself, signed by nobody, any state."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from random import Random

from economics.block import Block, BlockHeader, Finality, genesis_header, transactions_root
from economics.crypto import Digest, Level, Signature, digest
from economics.votes import Kind, VoteCertificate
from p2pnode.consensus.chain import FinalBlock, StoredReceipt

CHAIN = Digest(b"c" * 32)
ROOT = Digest(b"r" * 32)
GENESIS = genesis_header(chain_id=CHAIN, time_ms=1, state_root=ROOT, committee_hash=ROOT, next_committee_hash=ROOT)
ACCOUNTS = tuple(bytes([index]) * 32 for index in range(1, 5))
EPOCH_BLOCKS = 10
"""Every tenth block ends an epoch."""
KEYS = 200
GENESIS_STATE = {key: b"genesis" + key for key in (hashlib.sha256(b"%d" % index).digest() for index in range(20))}


def make_header(height: int, parent: BlockHeader, *, hashes: tuple[Digest, ...] = ()) -> BlockHeader:
    epoch, view = divmod(height - 1, EPOCH_BLOCKS)
    return replace(
        GENESIS,
        epoch=epoch,
        view=view + 1,
        height=height,
        parent_view=view,
        parent_hash=parent.hash,
        time_ms=height + 1,
        transactions_root=transactions_root(hashes),
        transactions_count=len(hashes),
        executed_height=height - 1,
    )


def make_bodies(height: int, count: int) -> tuple[bytes, ...]:
    return tuple(Random(f"{height} {index}").randbytes(248) for index in range(count))


def make_block(height: int, parent: BlockHeader, *, count: int | None = None) -> FinalBlock:
    """Return the block of a height with 0 to 4 transactions, or `count`."""
    bodies = make_bodies(height, height % 5 if count is None else count)
    hashes = tuple(digest(Level.TRANSACTION, raw) for raw in bodies)
    header = make_header(height, parent, hashes=hashes)
    return FinalBlock(
        block=Block(header, Signature(height.to_bytes(64, "big")), hashes),
        bodies=bodies,
        receipts=tuple(StoredReceipt(tx_hash, "ok", height + index) for index, tx_hash in enumerate(hashes)),
        touched=tuple((ACCOUNTS[0], ACCOUNTS[(height + index) % 4]) for index in range(len(hashes))),
        root=make_root(height),
        is_boundary=height % EPOCH_BLOCKS == 0,
    )


def make_chain(count: int, *, first: int = 1, parent: BlockHeader = GENESIS) -> list[FinalBlock]:
    made: list[FinalBlock] = []
    for height in range(first, first + count):
        made.append(make_block(height, made[-1].block.header if made else parent))
    return made


def make_root(height: int) -> Digest:
    return Digest(hashlib.sha256(b"root %d" % height).digest())


def make_finality(header: BlockHeader) -> Finality:
    signatures = tuple((index, Signature(bytes([index]) * 64)) for index in range(3))
    return Finality(VoteCertificate(Kind.FINALIZE, header.epoch, header.view, header.hash, signatures))


def make_changes(height: int) -> dict[bytes, bytes | None]:
    """Return what the block of a height changes in the state: some values set, some removed."""
    random = Random(height)
    keys = [hashlib.sha256(b"%d" % random.randrange(KEYS)).digest() for _ in range(8)]
    return {key: None if random.random() < 0.3 else b"%d " % height + key for key in keys}


def state_after(height: int, start: Mapping[bytes, bytes] = GENESIS_STATE, first: int = 1) -> dict[bytes, bytes]:
    state = dict(start)
    for each in range(first, height + 1):
        for key, value in make_changes(each).items():
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
    return dict(sorted(state.items()))
