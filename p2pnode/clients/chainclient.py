"""A client's dealings with the chain: what accounts have, proven, and the transactions that they send.

What peers alone can tell (an outcome, a history) says so.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from economics import cbor
from economics.arguments import Operation
from economics.crypto import Digest, NodeId, OwnerId
from economics.errors import Reason, Rejected
from economics.fields import Fields
from economics.nodes import Stake
from economics.state import Account, BlobEntry, Reservation, decode_value
from economics.transactions import (
    TRANSACTION_BYTES_MAX,
    SignedTransaction,
    Transaction,
    build,
    least_fee,
)
from economics.tree import StateKey
from p2pnode.clients.chainreader import PAUSE_S, ChainReader
from p2pnode.clients.chainview import KEYS_AT_ONCE, HistoryRow, Make, Outcome
from p2pnode.consensus.chainsync import REPLY_BYTES_MAX, request_within
from p2pnode.errors import NetworkError, TooSlow, TransactionFailed
from p2pnode.keys import Key
from p2pnode.members import REQUEST_FAULTS, Members, Refused

WAIT_S = 10.0
"""Of one request for an outcome."""
OWNED_MAX = 1 << 16
"""Reservations and entries of one owner that a member may name: each is proven, so a liar costs the time of asking."""
NONCE_S = 3.0
"""For members to tell a nonce once the first has: those who are slow must not hold up the rest."""
NONCES_AHEAD_MAX = 256
"""Of the nonce that is proven: 64 wait at a member, and some blocks may be final but not proven yet."""
IN_FLIGHT_MAX = 32
"""Transactions of one account: half of what members let wait, so that another client of its finds room."""
SETTLE_S = 5.0
"""For what an account has under way to be shown by a final header: some blocks, or never if it cannot be executed."""
SETTLE_PAUSE_S = 0.1
SUBMIT_S = 10.0
"""For members to take a transaction that some have taken already."""
EXPIRY_AHEAD = 600
"""Heights for which a client's transaction holds: a minute of full blocks, hours of an idle chain."""


class _Sender:
    """What one account has under way here: transactions are signed one after the other and waited for together."""

    def __init__(self) -> None:
        self.room = trio.CapacityLimiter(IN_FLIGHT_MAX)
        self.turn = trio.Lock()
        """Held from asking for the next nonce until members have the transaction that uses it."""
        self.next_nonce = 0
        """At least: by what this client has sent, which not all members may have yet."""
        self.own_since = 0
        """The first nonce of those before `next_nonce` that this client alone has used."""
        self._spent = 0

    def note_sent(self, nonce: int) -> None:
        if nonce != self.next_nonce:
            self.own_since = nonce
        self.next_nonce = nonce + 1

    def note_spent(self, nonce: int) -> None:
        """A final block holds it."""
        self._spent = max(self._spent, nonce + 1)
        self.next_nonce = max(self.next_nonce, self._spent)

    def note_lost(self) -> None:
        """One may never be in a block, and what comes after it waits for its nonce: members know which is next."""
        self.next_nonce = self._spent


class ChainClient(ChainReader):
    """One client's view of the chain, with what accounts have and send."""

    def __init__(self, *, members: Members, cache: Path, clock_ms: Callable[[], int]) -> None:
        super().__init__(members=members, cache=cache, clock_ms=clock_ms)
        self._senders: dict[OwnerId, _Sender] = {}

    # --- what an owner has ---------------------------------------------------------------------------------------

    async def settled_account(self, owner: OwnerId) -> Account:
        """Return an account, proven, as its own transactions left it."""
        await self._settle(owner)
        return await self.account(owner)

    async def settle_others(self, owner: OwnerId) -> None:
        """Wait as long for what other clients of an account have sent, and an earlier process of this one."""
        target = await self._next_nonce(owner)
        sender = self._senders.get(owner)
        if sender is not None and sender.next_nonce == target:
            target = sender.own_since
        await self._settle_until(owner, target)

    async def owned(self, owner: OwnerId) -> list[Reservation | BlobEntry | Stake]:
        """Return an owner's reservations, entries and stakes, each proven; a member could leave some out.

        They are as its own transactions left them, so that nothing is paid for twice.
        """
        await self._settle(owner)
        keys = await self._from_anyone(lambda member: self._owned_keys(member, owner))
        found: list[Reservation | BlobEntry | Stake] = []
        for at in range(0, len(keys), KEYS_AT_ONCE):
            for raw in (await self.prove(keys[at : at + KEYS_AT_ONCE])).values:
                match None if raw is None else decode_value(raw):
                    case Reservation() | BlobEntry() | Stake() as value if value.owner == owner:
                        found.append(value)
                    case _:
                        pass
        return found

    async def _settle(self, owner: OwnerId) -> None:
        """Wait until what can be proven shows an account's transactions that a member has or waits for; not for long:
        a final block shows what the blocks before it did."""
        await self._settle_until(owner, await self._next_nonce(owner))

    async def _settle_until(self, owner: OwnerId, target: int) -> None:
        with trio.move_on_after(SETTLE_S):
            while (await self.account(owner)).nonce < target:  # noqa: ASYNC110 - members tell only when asked
                await trio.sleep(SETTLE_PAUSE_S)

    async def _owned_keys(self, member: NodeId, owner: OwnerId) -> list[StateKey]:
        keys: list[StateKey] = []
        while True:
            request: dict[str, cbor.Value] = {"first": len(keys), "op": "owned", "owner": bytes(owner)}
            reply, payload = await self.members.request(member, request, size_max=REPLY_BYTES_MAX)
            fields = Fields(payload, "keys")
            while fields.left:
                keys.append(StateKey(fields.take(32)))
            if len(keys) > OWNED_MAX:
                raise Rejected(Reason.TOO_LARGE, f"more than {OWNED_MAX} things of one owner")
            if reply.header.get("more") is not True or not payload:
                return keys

    async def entries(self, owner: OwnerId) -> list[BlobEntry]:
        return [value for value in await self.owned(owner) if isinstance(value, BlobEntry)]

    async def reservations(self, owner: OwnerId) -> list[Reservation]:
        return [value for value in await self.owned(owner) if isinstance(value, Reservation)]

    async def stakes(self, owner: OwnerId) -> list[Stake]:
        return [value for value in await self.owned(owner) if isinstance(value, Stake)]

    # --- transactions --------------------------------------------------------------------------------------------

    async def transact(self, key: Key, operation: Operation | Make, *, deadline_s: float = 30.0) -> Outcome:
        """Sign and send a transaction and wait until it is final.

        Raises `TransactionFailed` with its code where it had no effect or failed, `TooSlow` where nothing is known.
        """
        outcome = await self.settle(key, operation, deadline_s=deadline_s)
        if outcome.code != "ok":
            raise TransactionFailed(outcome.code, fee_frost=outcome.fee_frost)
        return outcome

    async def settle(self, key: Key, operation: Operation | Make, *, deadline_s: float = 30.0) -> Outcome:
        """Do the same, and return the outcome whatever its code; raises `TransactionFailed` only if nobody takes it."""
        sender = self._senders.setdefault(OwnerId(key.public), _Sender())
        async with sender.room:
            async with sender.turn:
                signed = await self.sign(key, operation)
                try:
                    await self.submit(signed)
                except Refused as fault:
                    raise TransactionFailed(str(fault.reason), fee_frost=0) from fault
                sender.note_sent(signed.transaction.nonce)
            try:
                outcome = await self.wait(signed.hash, deadline_s=deadline_s)
            except TooSlow:
                sender.note_lost()
                raise
        if outcome.fee_frost:
            sender.note_spent(signed.transaction.nonce)
        else:  # it may have had no effect
            sender.note_lost()
        return outcome

    async def sign(self, key: Key, wanted: Operation | Make) -> SignedTransaction:
        """Return a transaction with the account's next nonce and the least fee."""
        sender = OwnerId(key.public)
        nonce = await self._next_nonce(sender)
        operation = wanted(nonce) if callable(wanted) else wanted
        height = (await self.head()).height
        plain = Transaction(self.genesis.chain_id, sender, nonce, 0, height + EXPIRY_AHEAD, operation)
        fee = least_fee(plain, self.genesis.parameters)
        return build(Transaction(self.genesis.chain_id, sender, nonce, fee, height + EXPIRY_AHEAD, operation), key.sign)

    async def _next_nonce(self, owner: OwnerId) -> int:
        """Return the nonce after all that members have executed and that waits there: newer than what can be proven."""

        async def ask(member: NodeId) -> int:
            request: dict[str, cbor.Value] = {"op": "nonce", "owner": bytes(owner)}
            reply, _ = await request_within(self.members, member, request, size_max=0, deadline_s=WAIT_S)
            return reply.integer("nonce", high=1 << 62)

        trusted = None
        while trusted is not self.trusted:  # it is for the newest committee to tell
            trusted = self.trusted
            told, _ = await self._from_many(ask, shards=2 * self._f + 1, patience_s=NONCE_S)
            proven = (await self.account(owner)).nonce
        if not told:
            raise NetworkError("no member told the account's nonce")
        middle = middle_of(told)
        known = self._senders[owner].next_nonce if owner in self._senders else 0
        return max(min(middle, proven + NONCES_AHEAD_MAX), proven, known)

    async def submit(self, signed: SignedTransaction) -> None:
        """Give a transaction to members of whom one is honest; raises a refusal if none takes it."""
        assert len(signed.raw) <= TRANSACTION_BYTES_MAX

        async def give(member: NodeId) -> None:
            await self.members.request(member, {"op": "submit"}, size_max=0, payload=signed.raw)

        taken, last = await self._from_many(give, shards=self._f + 1, patience_s=SUBMIT_S)
        if not taken:
            raise last or NetworkError("this network has no members")

    async def wait(self, tx_hash: Digest, *, deadline_s: float) -> Outcome:
        """Return what became of a transaction once it is in a final block; raises `TooSlow`."""
        until = trio.current_time() + deadline_s
        while (left := until - trio.current_time()) > 0:
            wait_s = min(WAIT_S / 2, left)
            for member in list(self._order):
                row = await self._outcome(member, tx_hash, wait_s)
                if row is not None:
                    return Outcome(tx_hash, row.height, row.index, row.code, row.fee_frost)
                if trio.current_time() >= until:
                    break
            await trio.sleep(min(PAUSE_S, max(0.0, until - trio.current_time())))
        raise TooSlow(f"the transaction was not in a final block within {deadline_s:.0f} s; it may still come")

    async def _outcome(self, member: NodeId, tx_hash: Digest, wait_s: float) -> HistoryRow | None:
        request: dict[str, cbor.Value] = {"hash": bytes(tx_hash), "op": "outcome", "wait_ms": int(wait_s * 1000)}
        try:
            reply, raw = await request_within(
                self.members, member, request, size_max=TRANSACTION_BYTES_MAX, deadline_s=wait_s + WAIT_S
            )
            signed = SignedTransaction.decode(raw, chain_id=self.genesis.chain_id)
            if signed.hash != tx_hash:
                raise Rejected(Reason.HASH_MISMATCH, "another transaction than the one that was asked for")
            return HistoryRow(
                reply.integer("height", high=1 << 62),
                reply.integer("index", high=1 << 32),
                reply.text("code"),
                reply.integer("fee_frost", high=1 << 63),
                signed,
            )
        except Refused:
            return None
        except REQUEST_FAULTS as fault:
            self.members.blame(member, fault)
            self._put_last(member)
            return None

    async def transaction(self, tx_hash: Digest) -> HistoryRow | None:
        """Return a transaction in a final block, as a member tells."""

        for member in list(self._order):
            row = await self._outcome(member, tx_hash, 0)
            if row is not None:
                return row
        return None

    async def history(self, owner: OwnerId, *, limit: int) -> list[HistoryRow]:
        """Return an account's newest transactions, as a member tells."""

        async def ask(member: NodeId) -> list[HistoryRow]:
            request: dict[str, cbor.Value] = {
                "height": 1 << 62,
                "index": 0,
                "limit": limit,
                "op": "history",
                "owner": bytes(owner),
            }
            reply, payload = await self.members.request(member, request, size_max=REPLY_BYTES_MAX)
            rows = reply.header.get("rows")
            fields = Fields(payload, "a history")
            if not isinstance(rows, list):
                raise Rejected(Reason.MALFORMED, "a history has rows")
            return [self._parse_row(row, fields.take_sized(4)) for row in rows]

        return await self._from_anyone(ask)

    def _parse_row(self, row: object, raw: bytes) -> HistoryRow:
        match row:
            case [int(height), int(index), str(code), int(fee)]:
                signed = SignedTransaction.decode(raw, chain_id=self.genesis.chain_id)
                return HistoryRow(height, index, code, fee, signed)
            case _:
                raise Rejected(Reason.MALFORMED, "not a row of a history")


def middle_of(told: Sequence[tuple[int, int]]) -> int:
    """Return what those with half of the shards say at most, of (number, shards): of 2f+1 shards no f choose it."""
    weight, half = 0, sum(shards for _, shards in told)
    for number, shards in sorted(told):
        weight += shards
        if 2 * weight >= half:
            return number
    raise AssertionError("somebody told a number")
