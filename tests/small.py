"""A small network for tests: keys from small numbers, committees, blobs of a few segments, signed for when asked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any

from economics.arguments import Reserve
from economics.blob import Header
from economics.commitments import Certificate, Commitment, OwnerStatement, ReservationId, Ticket
from economics.committee import Member
from economics.crypto import Level, NodeId, OwnerId, Signature, digest
from economics.genesis import Genesis, GenesisAccount
from economics.geometry import Code
from economics.transactions import (
    SignedTransaction,
    Transaction,
    build,
    least_fee,
)
from p2pnode.coding.codec import Codec, EncodedSegment, Kind
from p2pnode.coding.kernel import load_kernel
from p2pnode.keys import Key
from p2pnode.slivers.sliverfile import Pair

KERNEL = load_kernel()
OPERATORS = tuple(Key(bytes([index + 1]) * 32) for index in range(8))
OWNER = Key(bytes([0x10]) * 32)
OTHER_OWNER = Key(bytes([0x12]) * 32)
UPLOADER = Key(bytes([0x11]) * 32)
SEGMENT_BYTES = 1000
BALANCE_FROST = 10**12
"""What each owner and operator of a small network begins with."""
RESERVATION = Reserve(units=1_000, start_epoch=0, end_epoch=4)
"""What each owner buys first, where a test has a chain."""
EXPIRY_HEIGHT = 1_000_000
"""Of transactions: no test goes on for so long."""


def make_genesis(shards: Sequence[int] = (1, 1, 1, 1), *, segment_bytes: int = SEGMENT_BYTES) -> Genesis:
    members = tuple(
        Member(NodeId(key.public), OwnerId(OWNER.public), share, ("/ip4/127.0.0.1/tcp/1",))
        for key, share in zip(OPERATORS, shards, strict=False)
    )
    funded = sorted(OwnerId(key.public) for key in (OWNER, OTHER_OWNER, *OPERATORS))
    accounts = tuple(GenesisAccount(key, BALANCE_FROST) for key in funded)
    return Genesis("small", 1_700_000_000_000, segment_bytes, members, accounts)


def make_codec(genesis: Genesis) -> Codec:
    return Codec(genesis.code, KERNEL)


@dataclass(frozen=True)
class Blob:
    """A blob with all of its encoding in memory."""

    data: bytes
    header: Header
    segments: tuple[EncodedSegment, ...]


def make_blob(code: Code, length: int, seed: int = 0) -> Blob:
    data = Random(seed).randbytes(length)
    return encode_blob(code, data)


def encode_blob(code: Code, data: bytes) -> Blob:
    codec = Codec(code, KERNEL)
    parts = [data[at : at + code.segment_bytes] for at in range(0, len(data), code.segment_bytes)] or [b""]
    segments = tuple(codec.encode(part, memoryview(bytearray(codec.matrix_bytes(len(part))))) for part in parts)
    return Blob(data, Header(code, len(data), tuple(segment.root for segment in segments)), segments)


def make_pairs(segment: EncodedSegment, shards: Sequence[int]) -> list[Pair]:
    """Return what a node with these shards stores of a segment."""
    code = segment.code
    made = []
    for shard in shards:
        pair = code.pair_of_shard(shard, segment.root)
        column = code.n - 1 - pair
        secondary = memoryview(b"".join(segment.secondary(column)))
        leaves = segment.leaves_of(Kind.PRIMARY, pair), segment.leaves_of(Kind.SECONDARY, column)
        made.append(Pair(shard, segment.primary(pair), secondary, *leaves))
    return made


def make_payload(segment: EncodedSegment, shards: Sequence[int]) -> bytes:
    """Return the payload of `segment` (FORMATS.md 7)."""
    slivers = b"".join(bytes(pair.primary) + bytes(pair.secondary) for pair in make_pairs(segment, shards))
    return segment.root + segment.metadata.encode() + slivers


@cache
def reserve(genesis: Genesis, key: Key = OWNER) -> SignedTransaction:
    """Return an owner's first transaction: it buys `RESERVATION`."""
    plain = Transaction(genesis.chain_id, OwnerId(key.public), 0, 0, EXPIRY_HEIGHT, RESERVATION)
    return build(replace(plain, fee_frost=least_fee(plain, genesis.parameters)), key.sign)


def made_by(signed: SignedTransaction) -> ReservationId:
    """Return the ID of the reservation that a transaction makes."""
    return ReservationId(digest(Level.RESERVATION, signed.hash))


def reservation_of(genesis: Genesis, key: Key = OWNER) -> ReservationId:
    """Return the ID of what an owner buys first."""
    return made_by(reserve(genesis, key))


def make_ticket(genesis: Genesis, **changes: Any) -> Ticket:
    plain = Ticket(genesis.chain_id, OwnerId(OWNER.public), reservation_of(genesis), UPLOADER.public, 1000)
    return replace(plain, **changes)


def make_statement(genesis: Genesis, header: Header, **changes: Any) -> OwnerStatement:
    plain = OwnerStatement(
        chain_id=genesis.chain_id,
        owner=OwnerId(OWNER.public),
        reservation=reservation_of(genesis),
        blob_id=header.blob_id,
        length=header.length,
        deletable=True,
        salt=bytes(16),
        expiry_height=1000,
    )
    return replace(plain, **changes)


def sign_statement(statement: OwnerStatement, owner: Key = OWNER) -> Signature:
    return owner.sign(statement.encode())


def commit(statement: OwnerStatement, signer: int, *, epoch: int = 0) -> tuple[Commitment, Signature]:
    commitment = Commitment.build(statement, epoch=epoch, signer=signer)
    return commitment, OPERATORS[signer].sign(commitment.encode())


def certify(
    genesis: Genesis, statement: OwnerStatement, signers: Sequence[int], *, epoch: int = 0, owner: Key = OWNER
) -> Certificate:
    """Return a certificate of just these signers, valid or not."""
    signatures = tuple((signer, commit(statement, signer, epoch=epoch)[1]) for signer in signers)
    return Certificate(statement, sign_statement(statement, owner), epoch, signatures)
