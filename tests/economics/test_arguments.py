"""An operation's arguments are the frozen bytes, and no other bytes are arguments."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from economics.arguments import (
    Attestation,
    Attributes,
    Certify,
    CertifyAgain,
    CommitBeacon,
    Delete,
    Evidence,
    Extend,
    HandOver,
    Invalidate,
    Merge,
    Operation,
    PutStake,
    RegisterNode,
    ReportAudit,
    ReportSync,
    Reserve,
    SplitEpochs,
    SplitUnits,
    Transfer,
    Unstake,
    decode_arguments,
    encode_arguments,
    inner_signatures,
    invalid_message,
    node_message,
    number_of,
)
from economics.blob import BlobId
from economics.block import BlockHeader
from economics.commitments import Certificate, ReservationId
from economics.crypto import Digest, NodeId, OwnerId, Signature
from economics.errors import Reason, Rejected
from economics.nodes import Outcome
from economics.slots import StakeId
from economics.votes import SIGNED_VOTE_BYTES, SignedVote
from p2pnode.keys import Key
from tests import reference
from tests.refusals import reason

CHAIN = Digest(bytes([7]) * 32)
SENDER, NODE = Key(bytes([0x10]) * 32), Key(bytes([2]) * 32)
OWNER = OwnerId(SENDER.public)
BLOB, ONE, TWO = BlobId(bytes([8]) * 32), ReservationId(bytes([9]) * 32), ReservationId(bytes([11]) * 32)
HASH = Digest(TWO)
TO = OwnerId(bytes([12]) * 32)
FROZEN = reference.operations()


def arguments(name: str) -> bytes:
    return FROZEN[name][1]


def make_operations() -> dict[str, Operation]:
    """The operations of the vectors, from their parts."""
    votes, headers = arguments("evidence_of_votes")[1:], arguments("evidence_of_headers")[1:]
    exhibits = [
        (BlockHeader.decode(half[:296], chain_id=CHAIN), Signature(half[296:]))
        for half in (headers[:360], headers[360:])
    ]
    agreed = NODE.sign(node_message(chain_id=CHAIN, sender=OWNER, nonce=6))
    attested = invalid_message(chain_id=CHAIN, epoch=18, blob_id=BLOB, proof_hash=HASH)
    attestations = tuple(Attestation(index, Key(bytes([index + 1]) * 32).sign(attested)) for index in (0, 2))
    return {
        "transfer": Transfer(TO, 2**64 - 1),
        "reserve": Reserve(units=13, start_epoch=14, end_epoch=15),
        "split_units": SplitUnits(ONE, 16),
        "split_epochs": SplitEpochs(ONE, 17),
        "merge": Merge(ONE, TWO),
        "hand_over": HandOver(ONE, TO),
        "certify": Certify(Certificate.decode(arguments("certify"), chain_id=CHAIN)),
        "certify_again": CertifyAgain(ONE, BLOB, deletable=True),
        "extend": Extend(BLOB, ONE, 65_535),
        "delete": Delete(BLOB, ONE),
        "attributes": Attributes(BLOB, ONE, "text/plain", "café"),
        "register_node": RegisterNode(
            NodeId(NODE.public), 100, 200, 300, 10_000, ("/ip4/127.0.0.1/tcp/1", "/dns/é/tcp/2"), agreed
        ),
        "evidence_of_votes": Evidence(
            SignedVote.decode(votes[:SIGNED_VOTE_BYTES]), SignedVote.decode(votes[SIGNED_VOTE_BYTES:])
        ),
        "evidence_of_headers": Evidence(*exhibits),
        "put_stake": PutStake(NodeId(NODE.public), 10**9),
        "unstake": Unstake(StakeId(Digest(ONE)), shares=0),
        "report_sync": ReportSync(19),
        "report_audit": ReportAudit(20, 21, (Outcome.OK, Outcome.UNKNOWN, Outcome.BAD, Outcome.OFFLINE, Outcome.SLOW)),
        "commit_beacon": CommitBeacon(HASH),
        "invalidate": Invalidate(BLOB, 18, HASH, attestations),
    }


OPERATIONS = make_operations()


def decode(number: int, data: bytes) -> Operation:
    return decode_arguments(number, data, chain_id=CHAIN)


@pytest.mark.parametrize("name", FROZEN)
def test_arguments_are_their_frozen_bytes_and_are_read_back(name: str) -> None:
    number, data = FROZEN[name]
    operation = OPERATIONS[name]
    assert (number_of(operation), encode_arguments(operation)) == (number, data)
    assert decode(number, data) == operation


def test_every_operation_has_a_vector() -> None:
    assert set(OPERATIONS) == set(FROZEN)
    assert {number for number, _ in FROZEN.values()} == {*range(1, 20)}


@pytest.mark.parametrize("name", FROZEN)
def test_bytes_cut_off_or_left_over_are_refused(name: str) -> None:
    number, data = FROZEN[name]
    for other in (*(data[:size] for size in range(len(data))), data + b"\0"):
        assert reason(decode, number, other) is Reason.MALFORMED, len(other)


@pytest.mark.parametrize("number", [0, 20, 255])
def test_an_unknown_operation_is_refused(number: int) -> None:
    assert reason(decode, number, b"") is Reason.UNKNOWN_OPERATION


MALFORMED = [
    ("a flag of 2", 8, ONE + BLOB + b"\2", Reason.MALFORMED),
    ("a content type that is not UTF-8", 11, BLOB + ONE + b"\1\xff\0", Reason.MALFORMED),
    ("evidence of no form", 13, b"\3" + bytes(230), Reason.MALFORMED),
    ("evidence of a vote of no kind", 13, b"\1" + bytes(230), Reason.MALFORMED),
    ("evidence of two forms", 13, arguments("evidence_of_votes")[:116] + arguments("evidence_of_headers")[361:], None),
    ("a header of another chain", 13, b"\2" + reference.tag("header") + bytes(704), Reason.WRONG_CHAIN),
    ("a commission over the whole", 12, bytes(56) + (10_001).to_bytes(2, "big") + bytes(65), Reason.MALFORMED),
    ("nine addresses", 12, bytes(58) + b"\x09" + b"\1a" * 9 + bytes(64), Reason.TOO_LARGE),
    ("a long address", 12, bytes(58) + b"\x01" + reference.text("a" * 129) + bytes(64), Reason.TOO_LARGE),
    ("an outcome that there is not", 17, bytes(10) + b"\0\1\5", Reason.MALFORMED),
    ("an attestation twice", 19, bytes(72) + b"\0\2" + bytes(132), Reason.MALFORMED),
    ("attestations out of order", 19, bytes(72) + b"\0\2" + b"\0\1" + bytes(130), Reason.MALFORMED),
    ("a certificate of a statement of another chain", 7, arguments("certify")[:16] + bytes(500), Reason.WRONG_CHAIN),
]


@pytest.mark.parametrize(("number", "data", "want"), [row[1:] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_malformed_arguments_are_refused(number: int, data: bytes, want: Reason | None) -> None:
    assert reason(decode, number, data) is (want or Reason.MALFORMED)


@settings(max_examples=300)
@given(
    st.integers(1, 19),
    st.binary(max_size=800),
    st.sampled_from([b"", *(data for _, data in FROZEN.values())]),
)
def test_whatever_is_read_is_written_back_alike(number: int, tail: bytes, front: bytes) -> None:
    try:
        operation = decode(number, front + tail)
    except Rejected:
        return
    assert encode_arguments(operation) == front + tail


@settings(max_examples=300)
@given(st.sampled_from(list(FROZEN)), st.data())
def test_arguments_with_a_few_bytes_changed_are_refused_or_written_back_alike(name: str, data: st.DataObject) -> None:
    number, changed = FROZEN[name][0], bytearray(FROZEN[name][1])
    for at in data.draw(st.lists(st.integers(0, len(changed) - 1), min_size=1, max_size=4)):
        changed[at] = data.draw(st.integers(0, 255))
    try:
        operation = decode(number, bytes(changed))
    except Rejected:
        return
    assert encode_arguments(operation) == changed


@pytest.mark.parametrize(
    ("name", "count"),
    [("certify", 4), ("register_node", 1), ("evidence_of_headers", 2), ("invalidate", 2), ("delete", 0)],
)
def test_signatures_inside_are_counted(name: str, count: int) -> None:
    assert inner_signatures(OPERATIONS[name]) == count
