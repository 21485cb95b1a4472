"""Transactions that wait for a block: checked once, bounded in all and per sender, in order of their nonces."""

from collections.abc import Collection, Iterable, Iterator

from economics.crypto import Digest, OwnerId
from economics.errors import Reason, Rejected
from economics.ledger import Ledger
from economics.transactions import SignedTransaction

TRANSACTIONS_MAX = 20_000
BYTES_MAX = 16 << 20
"""Of all waiting transactions: 20 s of blocks at 1,000 transactions a second and 800 bytes each."""
NONCES_AHEAD_MAX = 64
"""How far ahead of its account a nonce may be: each costs all nodes a signature check before it has paid anything."""


class Mempool:
    """Valid transactions by hash, first come first served. Whoever adds has checked signature and fee."""

    def __init__(self) -> None:
        self._by_hash: dict[Digest, SignedTransaction] = {}
        self._by_sender: dict[OwnerId, dict[int, SignedTransaction]] = {}
        self.size = 0

    def __len__(self) -> int:
        return len(self._by_hash)

    def get(self, tx_hash: Digest) -> SignedTransaction | None:
        return self._by_hash.get(tx_hash)

    def add(self, signed: SignedTransaction, *, ledger: Ledger) -> bool:
        """Keep a transaction; return False if it is here already.

        Raises `Rejected`: EXPIRED, WRONG_NONCE, UNFUNDED by the ledger as it is now, OVER_BUDGET if there is no room.
        """
        if signed.hash in self._by_hash:
            return False
        transaction = signed.transaction
        ledger.verify_admissible(signed, nonce_ahead_max=NONCES_AHEAD_MAX)
        waiting = self._by_sender.get(transaction.sender, {})
        if transaction.nonce in waiting:
            raise Rejected(Reason.WRONG_NONCE, f"another transaction with nonce {transaction.nonce} waits already")
        if len(self._by_hash) >= TRANSACTIONS_MAX or self.size + len(signed.raw) > BYTES_MAX:
            raise Rejected(Reason.OVER_BUDGET, "too many transactions wait already")
        self._by_sender.setdefault(transaction.sender, waiting)[transaction.nonce] = signed
        self._by_hash[signed.hash] = signed
        self.size += len(signed.raw)
        return True

    def next_nonce(self, sender: OwnerId, *, ledger: Ledger) -> int:
        """Return the first nonce of an account that neither an executed nor a waiting transaction has used."""
        nonce = ledger.account(sender).nonce
        waiting = self._by_sender.get(sender, {})
        while nonce in waiting:
            nonce += 1
        return nonce

    def executable(self, *, ledger: Ledger, in_flight: Collection[SignedTransaction]) -> Iterator[SignedTransaction]:
        """Yield what may be in the next block: each sender's transactions without a gap in their nonces.

        `in_flight` are those in blocks that are not executed yet: they come before.
        """
        taken = {signed.hash for signed in in_flight}
        after: dict[OwnerId, int] = {}
        for signed in in_flight:
            sender = signed.transaction.sender
            after[sender] = max(after.get(sender, 0), signed.transaction.nonce + 1)
        height = ledger.height + 1
        for sender, waiting in self._by_sender.items():
            nonce = max(ledger.account(sender).nonce, after.get(sender, 0))
            while (following := waiting.get(nonce)) is not None and following.hash not in taken:
                if following.transaction.expiry_height <= height:
                    break
                yield following
                nonce += 1

    def drop_executed(self, hashes: Iterable[Digest], *, ledger: Ledger) -> None:
        """Forget what a block held, and what can have no effect any more."""
        touched: set[OwnerId] = set()
        for tx_hash in hashes:
            signed = self._by_hash.get(tx_hash)
            if signed is not None:
                touched.add(signed.transaction.sender)
                self._drop(signed)
        for sender in touched:
            nonce = ledger.account(sender).nonce
            for old in [old for old in self._by_sender.get(sender, {}).values() if old.transaction.nonce < nonce]:
                self._drop(old)

    def drop_expired(self, *, ledger: Ledger) -> None:
        """Forget what no block can hold any more, and whose sender's nonce has passed; visits every transaction."""
        for signed in list(self._by_hash.values()):
            transaction = signed.transaction
            stale = transaction.nonce < ledger.account(transaction.sender).nonce
            if stale or transaction.expiry_height <= ledger.height + 1:
                self._drop(signed)

    def _drop(self, signed: SignedTransaction) -> None:
        transaction = signed.transaction
        del self._by_hash[signed.hash]
        self.size -= len(signed.raw)
        waiting = self._by_sender[transaction.sender]
        del waiting[transaction.nonce]
        if not waiting:
            del self._by_sender[transaction.sender]
