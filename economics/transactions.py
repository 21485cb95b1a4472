"""Transactions: their bytes, their price, and what can be told of one without the state (FORMATS.md 10). No keys here.

Whether a transaction has an effect is the ledger's to say; what is wrong here makes every block that holds it invalid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct

from economics.arguments import (
    Operation,
    RegisterNode,
    decode_arguments,
    encode_arguments,
    inner_signatures,
    node_message,
    number_of,
)
from economics.crypto import (
    SIGNATURE_BYTES,
    TAG_TRANSACTION,
    Digest,
    Level,
    OwnerId,
    Signature,
    digest,
    verify_signature,
)
from economics.errors import Reason, Rejected
from economics.genesis import Parameters

TRANSACTION_BYTES_MAX = 24_576
"""Holds a certificate of 256 members of one shard each twice over."""
BLOCK_BYTES_MAX = 2 << 20
"""Of the transactions of one block: two seconds of a 10 Mbit/s uplink."""
BLOCK_SIGNATURES_MAX = 2_000
"""Inside the arguments of a block's transactions: a tenth of a second to check, should the mempool not have."""

_HEAD = Struct(">16s32s32sQQQB")
"""Tag, chain ID, sender, nonce, fee, expiry height, operation."""
_LEAST_BYTES = _HEAD.size + SIGNATURE_BYTES


@dataclass(frozen=True, slots=True)
class Transaction:
    """What a sender asks of the ledger, once: `nonce` is the one of its account when it is executed."""

    chain_id: Digest
    sender: OwnerId
    nonce: int
    fee_frost: int
    expiry_height: int
    """It can be in a block of a height below this."""
    operation: Operation

    def signing_bytes(self) -> bytes:
        head = _HEAD.pack(
            TAG_TRANSACTION,
            self.chain_id,
            self.sender,
            self.nonce,
            self.fee_frost,
            self.expiry_height,
            number_of(self.operation),
        )
        return head + encode_arguments(self.operation)

    @property
    def encoded_bytes(self) -> int:
        """Its size on the wire, signature included; the fee is of fixed width, so it may still be open."""
        return len(self.signing_bytes()) + SIGNATURE_BYTES


def least_fee(transaction: Transaction, parameters: Parameters) -> int:
    """Return the FROST below which no node takes the transaction (FORMATS.md 10)."""
    return _least_fee(transaction.encoded_bytes, transaction.operation, parameters)


def _least_fee(size: int, operation: Operation, parameters: Parameters) -> int:
    return size * parameters.fee_frost_per_byte + inner_signatures(operation) * parameters.fee_frost_per_signature


@dataclass(frozen=True, slots=True)
class SignedTransaction:
    """A transaction as it travels."""

    transaction: Transaction
    signature: Signature
    raw: bytes
    """All its bytes, signature included."""
    hash: Digest

    @classmethod
    def decode(cls, data: bytes, *, chain_id: Digest) -> "SignedTransaction":
        """Return the transaction, or raise `Rejected`; its signatures are not yet checked."""
        if len(data) > TRANSACTION_BYTES_MAX:
            raise Rejected(Reason.TOO_LARGE, f"a transaction has at most {TRANSACTION_BYTES_MAX} bytes")
        if len(data) < _LEAST_BYTES or not data.startswith(TAG_TRANSACTION):
            raise Rejected(Reason.MALFORMED, "not a transaction")
        _, chain, sender, nonce, fee, expiry_height, number = _HEAD.unpack_from(data)
        if chain != chain_id:
            raise Rejected(Reason.WRONG_CHAIN, "a transaction of another network")
        operation = decode_arguments(number, data[_HEAD.size : -SIGNATURE_BYTES], chain_id=chain_id)
        transaction = Transaction(chain_id, sender, nonce, fee, expiry_height, operation)
        return cls(transaction, Signature(data[-SIGNATURE_BYTES:]), data, digest(Level.TRANSACTION, data))

    def verify(self, *, parameters: Parameters) -> None:
        """Raise `Rejected` unless the sender, and a node that it registers, signed it, and it pays the least fee.

        That is all that can be told without the state, but for the expiry height and a certificate's signatures.
        """
        transaction = self.transaction
        least = _least_fee(len(self.raw), transaction.operation, parameters)
        if transaction.fee_frost < least:
            raise Rejected(Reason.LOW_FEE, f"{transaction.fee_frost} FROST, the least fee is {least}")
        verify_signature(transaction.sender, self.raw[:-SIGNATURE_BYTES], self.signature)
        if isinstance(transaction.operation, RegisterNode):
            message = node_message(chain_id=transaction.chain_id, sender=transaction.sender, nonce=transaction.nonce)
            verify_signature(transaction.operation.node, message, transaction.operation.signature)


def build(transaction: Transaction, sign: Callable[[bytes], Signature]) -> SignedTransaction:
    """Return the transaction with its sender's signature."""
    message = transaction.signing_bytes()
    signature = sign(message)
    raw = message + signature
    return SignedTransaction(transaction, signature, raw, digest(Level.TRANSACTION, raw))


def verify_bodies(transactions: Sequence[SignedTransaction], *, height: int) -> None:
    """Raise `Rejected` unless a block of this height may hold these transactions together (FORMATS.md 10).

    Each has been verified by itself.
    """
    if len({signed.hash for signed in transactions}) != len(transactions):
        raise Rejected(Reason.MALFORMED, "a transaction twice in one block")
    if sum(len(signed.raw) for signed in transactions) > BLOCK_BYTES_MAX:
        raise Rejected(Reason.TOO_LARGE, f"transactions of over {BLOCK_BYTES_MAX} bytes in one block")
    if sum(inner_signatures(signed.transaction.operation) for signed in transactions) > BLOCK_SIGNATURES_MAX:
        raise Rejected(Reason.TOO_LARGE, f"over {BLOCK_SIGNATURES_MAX} signatures in the arguments of one block")
    if any(signed.transaction.expiry_height <= height for signed in transactions):
        raise Rejected(Reason.EXPIRED, "a block holds a transaction that has expired")
