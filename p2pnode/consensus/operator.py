"""This node's own transactions, signed by its operator key: one at a time, each only while it is still wanted.

They are what anyone may send, as a certificate whose client went away, and what this node alone can: its reports, its
commitment to the beacon. It needs no seat for them, only FROST for their fees.
"""

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from math import inf

import trio

from economics.arguments import Certify, Evidence, Operation
from economics.commitments import Certificate
from economics.crypto import Digest, NodeId, OwnerId
from economics.errors import Reason, Rejected
from economics.genesis import build_key_text
from economics.ledger import Ledger
from economics.transactions import (
    SignedTransaction,
    Transaction,
    build,
    least_fee,
)
from p2pnode.consensus.executor import Executor
from p2pnode.keys import Key

log = logging.getLogger("p2pnode.consensus.operator")

CERTIFICATES_MAX = 256
TASKS_MAX = 1_024
"""However many certificates wait, there is room for the rest: a few names an epoch."""
assert CERTIFICATES_MAX < TASKS_MAX
CERTIFY_AFTER_S = 6.0
"""A client that is still there certifies for itself well before."""
STAGGER_S = 1.0
"""Members take turns by their index: whoever is later finds it done."""
EXPIRY_HEIGHTS = 200
SETTLE_S = 10.0
"""How long one transaction is waited for before the next is sent, and until it is tried again."""
POOR_S = 60.0
"""Until a node that could not pay a fee tries again."""
COMPLAIN_S = 86_400.0
"""Once a day it says that it cannot: one line, not one for each attempt."""

IsWanted = Callable[[Ledger], bool]
Make = Callable[[Ledger], Operation | None]
"""Returns the operation as it is to be sent now, None while there is nothing to send yet."""


@dataclass(frozen=True, slots=True)
class _Task:
    """What is wanted, from when on it is sent, and whether it still is then."""

    at: float
    operation: Operation | Make
    is_wanted: IsWanted


class Operator:
    """Sends what this node owes to the chain."""

    def __init__(
        self,
        *,
        executor: Executor,
        key: Key,
        submit: Callable[[SignedTransaction], Awaitable[None]],
    ) -> None:
        self.executor = executor
        self.key = key
        self.owner = OwnerId(key.public)
        self._submit = submit
        self._tasks: OrderedDict[bytes, _Task] = OrderedDict()
        self._news = trio.Event()
        self._complained = -inf

    def want(self, name: bytes, operation: Operation | Make, is_wanted: IsWanted, after_s: float = 0.0) -> None:
        """Have an operation executed, once, while `is_wanted` says so of the newest ledger; a name waits only once.

        It is sent until it is in a final block, whatever it does there: nobody pays twice for what fails.
        """
        if name in self._tasks:
            return
        if len(self._tasks) >= TASKS_MAX:
            log.error("%d own transactions wait already: another is not sent", TASKS_MAX)
            return
        self._tasks[name] = _Task(trio.current_time() + after_s, operation, is_wanted)
        self._news.set()

    def _turn_s(self) -> float | None:
        """Return how long this member leaves the others time to do what any of them can; None for no member."""
        ledger = self.executor.ledger
        index = ledger.committee.index_of(NodeId(self.key.public))
        return None if index is None else (index - ledger.height) % len(ledger.committee.members) * STAGGER_S

    def certify(self, certificate: Certificate) -> None:
        """See to it that a certificate reaches the chain, should its client not do so: a member's duty."""
        statement = certificate.statement
        units = self.executor.genesis.code.encoded_units(statement.length)

        def is_wanted(ledger: Ledger) -> bool:
            """A client that moves its storage away meanwhile would have every member pay for a failure."""
            reservation = ledger.reservation(statement.reservation)
            return (
                reservation is not None
                and reservation.owner == statement.owner
                and reservation.start_epoch <= ledger.epoch < reservation.end_epoch
                and reservation.units >= units
                and certificate.epoch == ledger.epoch
                and statement.expiry_height > ledger.height
                and not ledger.is_used(statement.hash)
                and ledger.entry(statement.blob_id, statement.reservation) is None
            )

        turn_s = self._turn_s()
        if turn_s is not None and len(self._tasks) < CERTIFICATES_MAX:
            self.want(statement.hash, Certify(certificate), is_wanted, CERTIFY_AFTER_S + turn_s)

    def accuse(self, evidence: Evidence, *, node: NodeId, epoch: int, view: int) -> None:
        """Report an equivocation, once; however many certificates wait, as there is one report a member and epoch."""

        def is_wanted(ledger: Ledger) -> bool:
            return not ledger.is_punished(node, epoch=epoch, view=view)

        name = node + epoch.to_bytes(8, "big") + view.to_bytes(8, "big")
        self.want(name, evidence, is_wanted, self._turn_s() or 0.0)

    async def run(self) -> None:
        while True:
            self._news = trio.Event()
            name = min(self._tasks, key=lambda item: self._tasks[item].at, default=None)
            with trio.move_on_at(inf if name is None else self._tasks[name].at):
                await self._news.wait()
            if name is None or self._news.is_set():  # what came may be due before what was waited for
                continue
            pause_s = await self._try(self._tasks[name])
            if pause_s is None:
                del self._tasks[name]
            else:
                self._tasks[name] = replace(self._tasks[name], at=trio.current_time() + pause_s)

    async def _try(self, task: _Task) -> float | None:
        """Do what is still wanted; return in how many seconds to try again, None if that is not needed."""
        ledger = self.executor.ledger
        if not task.is_wanted(ledger):
            return None
        operation = task.operation(ledger) if callable(task.operation) else task.operation
        return SETTLE_S if operation is None else await self._send(operation)

    async def _send(self, operation: Operation) -> float | None:
        """Send one transaction and wait until it is in a final block, or for a while; return as `_try` does.

        It is to be sent again while the last one still waits, the mempool is full or the fee cannot be paid.
        """
        ledger = self.executor.ledger
        nonce = ledger.account(self.owner).nonce
        chain_id = self.executor.genesis.chain_id
        expiry = ledger.height + EXPIRY_HEIGHTS
        plain = Transaction(chain_id, self.owner, nonce, 0, expiry, operation)
        fee = least_fee(plain, self.executor.genesis.parameters)
        signed = build(Transaction(chain_id, self.owner, nonce, fee, expiry, operation), self.key.sign)
        try:
            await self._submit(signed)
        except Rejected as fault:
            return self._pause_after(fault)
        with trio.move_on_after(SETTLE_S):
            while self.executor.ledger.account(self.owner).nonce <= nonce:
                await self.executor.advanced.wait()
            log.info("sent %s, transaction %s", type(operation).__name__.lower(), short(signed.hash))
            return None
        return SETTLE_S

    def _pause_after(self, fault: Rejected) -> float | None:
        if fault.reason is Reason.UNFUNDED:
            if trio.current_time() - self._complained >= COMPLAIN_S:
                self._complained = trio.current_time()
                account = build_key_text(self.owner)
                log.warning("own transactions wait until account %s has FROST for their fees: send it some", account)
            return POOR_S
        if fault.reason in (Reason.WRONG_NONCE, Reason.OVER_BUDGET):
            log.debug("own transaction not taken yet: %s", fault)
            return SETTLE_S
        log.warning("own transaction refused: %s", fault)
        return None


def short(tx_hash: Digest) -> str:
    return tx_hash.hex()[:12]
