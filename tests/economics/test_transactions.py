"""A transaction is the frozen bytes, has a price before it is signed, and holds for one chain, sender and nonce."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from nacl.signing import SigningKey

from economics.arguments import RegisterNode, inner_signatures, node_message
from economics.crypto import Digest, NodeId
from economics.errors import Reason, Rejected
from economics.genesis import Parameters
from economics.transactions import (
    BLOCK_BYTES_MAX,
    BLOCK_SIGNATURES_MAX,
    TRANSACTION_BYTES_MAX,
    SignedTransaction,
    Transaction,
    build,
    least_fee,
    verify_bodies,
)
from p2pnode.keys import Key
from tests import reference
from tests.economics.test_arguments import CHAIN, NODE, OPERATIONS, OWNER, SENDER, TO
from tests.refusals import reason

FROZEN: dict[str, Any] = json.loads((reference.VECTORS / "chain.json").read_text())["transactions"]
PARAMETERS = Parameters()
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


def test_of_another_chain_is_refused() -> None:
    data = build(PLAIN, SENDER.sign).raw
    assert reason(SignedTransaction.decode, data, chain_id=Digest(bytes(32))) is Reason.WRONG_CHAIN


def test_a_tag_of_another_object_is_refused() -> None:
    data = build(PLAIN, SENDER.sign).raw
    assert reason(decode, b"p2pnode/1 owner\0" + data[16:]) is Reason.MALFORMED


def test_bytes_cut_off_are_refused() -> None:
    raw = build(PLAIN, SENDER.sign).raw
    for size in range(169):
        assert reason(decode, raw[:size]) is Reason.MALFORMED
    assert reason(decode, raw[:-1]) is Reason.MALFORMED
    assert reason(decode, raw + b"\0") is Reason.MALFORMED


def test_an_unknown_operation_is_refused() -> None:
    assert reason(decode, with_arguments(0, b"")) is Reason.UNKNOWN_OPERATION


def test_the_largest_is_24576_bytes() -> None:
    head = with_arguments(99, b"")
    assert reason(decode, head + bytes(TRANSACTION_BYTES_MAX - len(head))) is Reason.UNKNOWN_OPERATION
    assert reason(decode, head + bytes(TRANSACTION_BYTES_MAX - len(head) + 1)) is Reason.TOO_LARGE


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
