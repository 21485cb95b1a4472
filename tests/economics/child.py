"""A busy chain of its own seed, to be run in processes of other hash seeds: prints the root after each block."""

import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random

from economics.arguments import (
    Attributes,
    Certify,
    CertifyAgain,
    Delete,
    Extend,
    HandOver,
    Merge,
    Operation,
    Reserve,
    SplitEpochs,
    SplitUnits,
    Transfer,
)
from economics.blob import BlobId
from economics.commitments import OwnerStatement, ReservationId
from economics.ledger import Code
from economics.state import BlobEntry
from p2pnode.keys import Key
from tests.chain import EXPIRY_HEIGHT, Chain, key_of, make_id, reservations_of, sign
from tests.small import OPERATORS, make_genesis

KEYS = OPERATORS[:4]


def draw(rng: Random, chain: Chain, owner: Key) -> Operation:
    """Return an operation that often succeeds."""
    ledger = chain.ledger
    reservations = [one.reservation for one in reservations_of(ledger, key_of(owner))] or [ReservationId(make_id(0))]
    entries = ledger.entries_of(key_of(owner)) or [
        BlobEntry(BlobId(make_id(0)), ReservationId(make_id(0)), key_of(owner), 0, 0, 0, False)
    ]
    entry, one, two = rng.choice(entries), rng.choice(reservations), rng.choice(reservations)
    blobs = [blob.blob_id for blob in ledger.live_blobs()] or [BlobId(make_id(0))]
    to = key_of(rng.choice(KEYS))
    choices: list[Operation] = [
        Transfer(to, rng.randrange(1000)),
        Reserve(rng.randrange(1, 20), ledger.epoch, ledger.epoch + rng.randrange(1, 4)),
        Reserve(rng.randrange(1, 20), ledger.epoch + 1, ledger.epoch + rng.randrange(1, 4)),
        SplitUnits(one, rng.randrange(1, 10)),
        SplitEpochs(one, ledger.epoch + 1),
        Merge(one, two),
        HandOver(one, to),
        *[_certify(rng, chain, owner, one)] * 4,
        CertifyAgain(one, rng.choice(blobs), True),
        Extend(entry.blob_id, entry.reservation, rng.randrange(3)),
        Delete(entry.blob_id, entry.reservation),
        Attributes(entry.blob_id, entry.reservation, "text/plain", str(rng.random())),
    ]
    return rng.choice(choices)


def _certify(rng: Random, chain: Chain, owner: Key, reservation: ReservationId) -> Certify:
    index = rng.randrange(12)
    expiry_height = rng.choice([chain.ledger.height + 9, EXPIRY_HEIGHT])
    statement = OwnerStatement(
        chain_id=chain.ledger.genesis.chain_id,
        owner=key_of(owner),
        reservation=reservation,
        blob_id=BlobId(make_id(index)),
        length=index * 1_000,
        deletable=rng.random() < 0.8,
        salt=rng.randbytes(16),
        expiry_height=expiry_height,
    )
    return Certify(chain.certificate(statement, owner))


@dataclass
class Walk:
    """What was done, and what came of it."""

    roots: list[str] = field(default_factory=list)
    outcomes: Counter[tuple[type[Operation], Code]] = field(default_factory=Counter)


def walk(seed: int, blocks: int) -> Walk:
    genesis = make_genesis()
    members = tuple(replace(member, owner=key_of(key)) for member, key in zip(genesis.members, KEYS, strict=True))
    chain, rng, made = Chain.begin(replace(genesis, members=members)), Random(seed), Walk()
    for _ in range(blocks):
        transactions = [sign(chain.ledger, key, draw(rng, chain, key)) for key in KEYS]
        applied = chain.block(*transactions, after_ms=rng.choice([1, 1, 1, 1, genesis.parameters.epoch_ms]))
        made.roots.append(chain.ledger.root.hex())
        for signed, receipt in zip(transactions, applied.receipts, strict=True):
            made.outcomes[type(signed.transaction.operation), receipt.code] += 1
    return made


if __name__ == "__main__":
    print("\n".join(walk(int(sys.argv[1]), int(sys.argv[2])).roots))
