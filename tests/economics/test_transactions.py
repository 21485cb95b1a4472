"""A transaction is the frozen bytes, has a price before it is signed, and holds for one chain, sender and nonce."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from economics.blob import BlobId
from economics.block import BlockHeader
from economics.commitments import Certificate, ReservationId
from economics.crypto import Digest, NodeId, OwnerId, Signature
from economics.errors import Reason, Rejected
from economics.genesis import Parameters
from economics.nodes import Outcome
from economics.slots import StakeId
from economics.transactions import (
    BLOCK_BYTES_MAX,
    BLOCK_SIGNATURES_MAX,
    TRANSACTION_BYTES_MAX,
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
    SignedTransaction,
    SplitEpochs,
    SplitUnits,
    Transaction,
    Transfer,
    Unstake,
    build,
    inner_signatures,
    invalid_message,
    least_fee,
    node_message,
    verify_bodies,
)
from economics.votes import SIGNED_VOTE_BYTES, SignedVote
from p2pnode.keys import Key
from tests import reference
from tests.refusals import reason

FROZEN: dict[str, Any] = json.loads((reference.VECTORS / "chain.json").read_text())["transactions"]
CHAIN = Digest(bytes([7]) * 32)
PARAMETERS = Parameters()
SENDER, NODE = Key(bytes([0x10]) * 32), Key(bytes([2]) * 32)
OWNER = OwnerId(SENDER.public)
BLOB, ONE, TWO = BlobId(bytes([8]) * 32), ReservationId(bytes([9]) * 32), ReservationId(bytes([11]) * 32)
HASH = Digest(TWO)
TO = OwnerId(bytes([12]) * 32)


def arguments(name: str) -> bytes:
    return reference.operations()[name][1]


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
PLAIN = Transaction(CHAIN, OWNER, nonce=6, fee_frost=5, expiry_height=4, operation=OPERATIONS["transfer"])


def decode(data: bytes) -> SignedTransaction:
    return SignedTransaction.decode(data, chain_id=CHAIN)


def with_arguments(number: int, data: bytes) -> bytes:
    """Return a transaction of any arguments, well signed."""
    return reference.transaction(CHAIN, SigningKey(bytes([0x10]) * 32), 6, 10**9, 4, number, data)


@pytest.mark.parametrize("name", FROZEN)
def test_a_transaction_is_its_frozen_bytes_and_is_read_back(name: str) -> None:
    transaction, raw = replace(PLAIN, operation=OPERATIONS[name]), bytes.fromhex(FROZEN[name]["raw"])
    signed = build(transaction, SENDER.sign)
    assert signed.raw == raw
    assert decode(raw) == signed
    assert signed.hash.hex() == FROZEN[name]["hash"]
    assert raw == transaction.signing_bytes() + signed.signature


@pytest.mark.parametrize("name", FROZEN)
def test_size_and_least_fee_are_known_before_it_is_signed(name: str) -> None:
    transaction = replace(PLAIN, operation=OPERATIONS[name])
    assert transaction.encoded_bytes == len(bytes.fromhex(FROZEN[name]["raw"]))
    least = least_fee(transaction, PARAMETERS)
    assert least == FROZEN[name]["least_fee"]
    build(replace(transaction, fee_frost=least), SENDER.sign).verify(parameters=PARAMETERS)
    short = build(replace(transaction, fee_frost=least - 1), SENDER.sign)
    assert reason(short.verify, parameters=PARAMETERS) is Reason.LOW_FEE


def test_every_operation_has_a_vector() -> None:
    assert set(OPERATIONS) == set(FROZEN)
    assert {raw[16 + 32 + 32 + 24] for raw in (bytes.fromhex(one["raw"]) for one in FROZEN.values())} == {*range(1, 20)}


def test_of_another_chain_is_refused() -> None:
    data = build(PLAIN, SENDER.sign).raw
    assert reason(SignedTransaction.decode, data, chain_id=Digest(bytes(32))) is Reason.WRONG_CHAIN


def test_a_tag_of_another_object_is_refused() -> None:
    data = build(PLAIN, SENDER.sign).raw
    assert reason(decode, b"p2pnode/1 owner\0" + data[16:]) is Reason.MALFORMED


@pytest.mark.parametrize("name", FROZEN)
def test_bytes_cut_off_or_left_over_are_refused(name: str) -> None:
    number, data = reference.operations()[name]
    for other in (*(data[:size] for size in range(len(data))), data + b"\0"):
        assert reason(decode, with_arguments(number, other)) is Reason.MALFORMED, len(other)
    raw = bytes.fromhex(FROZEN[name]["raw"])
    for size in range(169):
        assert reason(decode, raw[:size]) is Reason.MALFORMED


@pytest.mark.parametrize("number", [0, 20, 255])
def test_an_unknown_operation_is_refused(number: int) -> None:
    assert reason(decode, with_arguments(number, b"")) is Reason.UNKNOWN_OPERATION


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
    assert reason(decode, with_arguments(number, data)) is (want or Reason.MALFORMED)


def test_the_largest_is_24576_bytes() -> None:
    head = with_arguments(99, b"")
    assert reason(decode, head + bytes(TRANSACTION_BYTES_MAX - len(head))) is Reason.UNKNOWN_OPERATION
    assert reason(decode, head + bytes(TRANSACTION_BYTES_MAX - len(head) + 1)) is Reason.TOO_LARGE


@settings(max_examples=300)
@given(
    st.integers(1, 19),
    st.binary(max_size=800),
    st.sampled_from([b"", *(data for _, data in reference.operations().values())]),
)
def test_whatever_is_read_is_written_back_alike(number: int, tail: bytes, front: bytes) -> None:
    raw = with_arguments(number, front + tail)
    try:
        signed = decode(raw)
    except Rejected:
        return
    assert signed.transaction.signing_bytes() + signed.signature == raw


def refusal(call: Callable[[], object]) -> Reason | None:
    try:
        call()
    except Rejected as verdict:
        return verdict.reason
    return None


@pytest.mark.parametrize("name", ["transfer", "certify", "register_node", "report_audit"])
def test_a_bit_changed_anywhere_is_refused(name: str) -> None:
    transaction = replace(PLAIN, operation=OPERATIONS[name], fee_frost=10**9)
    raw = build(transaction, SENDER.sign).raw
    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        assert refusal(lambda changed=changed: decode(changed).verify(parameters=PARAMETERS)), at  # type: ignore[misc]


def test_signed_by_another_than_its_sender_is_refused() -> None:
    signed = build(replace(PLAIN, fee_frost=10**9), NODE.sign)
    assert reason(signed.verify, parameters=PARAMETERS) is Reason.BAD_SIGNATURE


class TestRegisterNode:
    """A node's key agrees to one owner, in one transaction, on one chain."""

    def verify(self, *, signer: Key = NODE, **changes: Any) -> None:
        said = {"chain_id": CHAIN, "sender": OWNER, "nonce": 6, **changes}
        registration = RegisterNode(NodeId(NODE.public), 1, 1, 1, 0, (), signer.sign(node_message(**said)))
        transaction = replace(PLAIN, fee_frost=10**9, operation=registration)
        build(transaction, SENDER.sign).verify(parameters=PARAMETERS)

    def test_with_the_node_s_own_signature_is_taken(self) -> None:
        self.verify()

    @pytest.mark.parametrize(
        "changes", [{"signer": SENDER}, {"chain_id": Digest(bytes(32))}, {"sender": TO}, {"nonce": 7}]
    )
    def test_with_any_other_is_refused(self, changes: dict[str, Any]) -> None:
        assert reason(self.verify, **changes) is Reason.BAD_SIGNATURE


class TestBodies:
    """What one block may hold of transactions that are valid by themselves."""

    def signed(self, nonce: int, **changes: Any) -> SignedTransaction:
        return build(replace(PLAIN, nonce=nonce, **changes), SENDER.sign)

    def test_may_be_none_or_many(self) -> None:
        verify_bodies((), height=1)
        verify_bodies([self.signed(nonce) for nonce in range(3)], height=PLAIN.expiry_height - 1)

    def test_are_distinct(self) -> None:
        assert reason(verify_bodies, [self.signed(1)] * 2, height=1) is Reason.MALFORMED

    def test_have_not_expired(self) -> None:
        assert reason(verify_bodies, [self.signed(1)], height=PLAIN.expiry_height) is Reason.EXPIRED

    def test_are_bounded_in_bytes(self) -> None:
        one = self.signed(1, operation=OPERATIONS["transfer"])
        count = BLOCK_BYTES_MAX // len(one.raw)
        many = [replace(one, hash=Digest(number.to_bytes(32, "big"))) for number in range(count + 1)]
        verify_bodies(many[:-1], height=1)
        assert reason(verify_bodies, many, height=1) is Reason.TOO_LARGE

    def test_are_bounded_in_inner_signatures(self) -> None:
        one = self.signed(1, operation=OPERATIONS["evidence_of_votes"])
        assert inner_signatures(one.transaction.operation) == 2
        many = [
            replace(one, hash=Digest(number.to_bytes(32, "big"))) for number in range(BLOCK_SIGNATURES_MAX // 2 + 1)
        ]
        verify_bodies(many[:-1], height=1)
        assert reason(verify_bodies, many, height=1) is Reason.TOO_LARGE
