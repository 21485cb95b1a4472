"""Blocks made on demand over the real ledger. Transactions carry blank signatures: applying a block checks none.

What the ledger does check while it applies, the signatures in a certificate of storage, is made with real keys.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from economics.arguments import Operation
from economics.block import BlockHeader, transactions_root
from economics.commitments import Certificate, Commitment, OwnerStatement
from economics.committee import Committee
from economics.crypto import Digest, Level, NodeId, OwnerId, Signature, digest
from economics.genesis import Genesis
from economics.ledger import Applied, Code, Ledger
from economics.transactions import (
    SignedTransaction,
    Transaction,
    build,
    least_fee,
)
from economics.votes import ZERO_HASH
from p2pnode.keys import Key

EXPIRY_HEIGHT = 1 << 40
BLANK = Signature(bytes(64))


def make_key(*names: object) -> Key:
    """Return a key that these names stand for: the same in every run."""
    return Key(digest(Level.MESSAGE, repr(names).encode()))


@dataclass(frozen=True, slots=True)
class Done:
    """A transaction and what became of it."""

    signed: SignedTransaction
    code: Code

    @property
    def operation(self) -> Operation:
        return self.signed.transaction.operation


class Chain:
    """A ledger, and what waits for its next block."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        self.ledger = Ledger.at_genesis(genesis)
        self.time_ms = genesis.time_ms
        self.codes: Counter[tuple[str, Code]] = Counter()
        """How often each operation ended how."""
        self._waiting: list[SignedTransaction] = []
        self._asked: Counter[OwnerId] = Counter()

    def ask(self, sender: OwnerId, operation: Operation) -> SignedTransaction:
        """Put a transaction into the next block."""
        nonce = self.ledger.account(sender).nonce + self._asked[sender]
        plain = Transaction(self.genesis.chain_id, sender, nonce, 0, EXPIRY_HEIGHT, operation)
        priced = replace(plain, fee_frost=least_fee(plain, self.genesis.parameters))
        signed = build(priced, lambda message: BLANK)
        self._waiting.append(signed)
        self._asked[sender] += 1
        return signed

    def block(self, time_ms: int, *, leader: int = 0, reveal: bytes = bytes(32)) -> tuple[Applied, list[Done]]:
        """Apply a block of what waits."""
        transactions, self._waiting = self._waiting, []
        self._asked.clear()
        self.time_ms = max(time_ms, self.time_ms + 1)
        applied = self.ledger.apply(self._header(transactions, leader=leader, reveal=reveal), transactions)
        done = [Done(signed, receipt.code) for signed, receipt in zip(transactions, applied.receipts, strict=True)]
        self.codes.update((type(each.operation).__name__, each.code) for each in done)
        return applied, done

    def _header(self, transactions: Sequence[SignedTransaction], *, leader: int, reveal: bytes) -> BlockHeader:
        ledger = self.ledger
        following = ledger.next_committee
        return BlockHeader(
            chain_id=self.genesis.chain_id,
            epoch=ledger.epoch,
            view=ledger.height + 1,
            height=ledger.height + 1,
            parent_view=ledger.height,
            parent_hash=ZERO_HASH,
            time_ms=self.time_ms,
            leader=leader,
            transactions_root=transactions_root([signed.hash for signed in transactions]),
            transactions_count=len(transactions),
            executed_height=ledger.height,
            state_root=ledger.root,
            committee_hash=ledger.committee.hash,
            next_committee_hash=ZERO_HASH if following is None else following.hash,
            reveal=reveal,
        )


def certify(statement: OwnerStatement, owner: Key, *, committee: Committee, keys: dict[NodeId, Key]) -> Certificate:
    """Return the certificate of the fewest members that reach a quorum, the largest first; 22 us a signature."""
    signers: list[int] = []
    for index in sorted(range(len(committee.members)), key=lambda index: (-committee.members[index].shards, index)):
        if committee.weight(signers) < committee.quorum:
            signers.append(index)
    signatures = tuple(
        (index, keys[committee.members[index].node].sign(_commitment(statement, committee, index)))
        for index in sorted(signers)
    )
    return Certificate(statement, owner.sign(statement.encode()), committee.epoch, signatures)


def _commitment(statement: OwnerStatement, committee: Committee, signer: int) -> bytes:
    return Commitment.build(statement, epoch=committee.epoch, signer=signer).encode()


class Onion:
    """A node's hash onion: what it commits to, and what it reveals one after the other."""

    def __init__(self, seed: Digest, length: int) -> None:
        self._steps = [seed]
        for _ in range(length):
            self._steps.append(digest(Level.BEACON, self._steps[-1]))
        self.tip = self._steps.pop()

    @property
    def top(self) -> Digest:
        """What it reveals next; the last for ever, once all is revealed."""
        return self._steps[-1]

    def peel(self) -> None:
        """Go on to the next, as the reveal has counted."""
        if len(self._steps) > 1:
            self._steps.pop()
