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
GAP_SHARE = 2
"""What cannot be executed yet, for want of a nonce before it, is taken only while this part of the room is free: it may
never have to pay, so it must not shut out what does."""


class Mempool:
    """Valid transactions by hash, first come first served. Whoever adds has checked signature and fee."""

    def __init__(self) -> None:
        self._by_hash: dict[Digest, SignedTransaction] = {}
        self._by_sender: dict[OwnerId, dict[int, SignedTransaction]] = {}
        self._ready: dict[OwnerId, None] = {}
        """Senders of whom the next nonce waits here: looking for work must not visit those of whom it does not."""
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
        account = ledger.account(transaction.sender)
        fees = transaction.fee_frost + sum(other.transaction.fee_frost for other in waiting.values())
        if fees > account.balance_frost:
            raise Rejected(Reason.UNFUNDED, f"{account.balance_frost} FROST do not cover all fees that wait")
        share = 1 if all(nonce in waiting for nonce in range(account.nonce, transaction.nonce)) else GAP_SHARE
        if len(self._by_hash) >= TRANSACTIONS_MAX // share or self.size + len(signed.raw) > BYTES_MAX // share:
            raise Rejected(Reason.OVER_BUDGET, "too many transactions wait already")
        self._by_sender.setdefault(transaction.sender, waiting)[transaction.nonce] = signed
        self._by_hash[signed.hash] = signed
        self.size += len(signed.raw)
        if transaction.nonce == account.nonce:
            self._ready[transaction.sender] = None
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
        spent: dict[OwnerId, int] = {}
        for signed in in_flight:
            sender = signed.transaction.sender
            after[sender] = max(after.get(sender, 0), signed.transaction.nonce + 1)
            spent[sender] = spent.get(sender, 0) + signed.transaction.fee_frost
        height = ledger.height + 1
        for sender in {**self._ready, **after}:
            waiting = self._by_sender.get(sender)
            if waiting is None:
                continue
            account = ledger.account(sender)
            nonce = max(account.nonce, after.get(sender, 0))
            left = account.balance_frost - spent.get(sender, 0)
            while (following := waiting.get(nonce)) is not None and following.hash not in taken:
                left -= following.transaction.fee_frost
                if following.transaction.expiry_height <= height or left < 0:
                    break
                yield following
                nonce += 1

    def drop_executed(self, transactions: Collection[SignedTransaction], *, ledger: Ledger) -> None:
        """Forget what blocks held, and what their senders' other transactions have become: overtaken, or unfunded."""
        for signed in transactions:
            held = self._by_hash.get(signed.hash)
            if held is not None:
                self._drop(held)
        for sender in dict.fromkeys(signed.transaction.sender for signed in transactions):
            self._review(sender, ledger=ledger)

    def senders(self) -> list[OwnerId]:
        """Return those of whom something waits."""
        return list(self._by_sender)

    def review(self, senders: Iterable[OwnerId], *, ledger: Ledger) -> None:
        """Look at senders again: the ledger has moved on otherwise than block by block. 20 us each."""
        for sender in senders:
            self._review(sender, ledger=ledger)

    def _review(self, sender: OwnerId, *, ledger: Ledger) -> None:
        account = ledger.account(sender)
        left = account.balance_frost
        for nonce, signed in sorted(self._by_sender.get(sender, {}).items()):
            if nonce >= account.nonce:
                left -= signed.transaction.fee_frost
            if nonce < account.nonce or left < 0:
                self._drop(signed)
        if account.nonce in self._by_sender.get(sender, {}):
            self._ready[sender] = None

    def drop_expired(self, *, ledger: Ledger) -> None:
        """Forget what no block can hold any more; visits every transaction."""
        for signed in list(self._by_hash.values()):
            if signed.transaction.expiry_height <= ledger.height + 1:
                self._drop(signed)

    def _drop(self, signed: SignedTransaction) -> None:
        transaction = signed.transaction
        del self._by_hash[signed.hash]
        self.size -= len(signed.raw)
        waiting = self._by_sender[transaction.sender]
        del waiting[transaction.nonce]
        if all(nonce > transaction.nonce for nonce in waiting):
            self._ready.pop(transaction.sender, None)
        if not waiting:
            del self._by_sender[transaction.sender]
