"""This node's own transactions, signed by its operator key: one at a time, each only while it is still wanted.

They are what anyone may send: the certificate of an upload whose client went away, and evidence of an equivocation.
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
from economics.ledger import Ledger
from economics.transactions import (
    SignedTransaction,
    Transaction,
    build,
    least_fee,
)
from p2pnode.executor import Executor
from p2pnode.keys import Key

log = logging.getLogger("p2pnode.operator")

QUEUE_MAX = 256
CERTIFY_AFTER_S = 6.0
"""A client that is still there certifies for itself well before."""
STAGGER_S = 1.0
"""Members take turns by their index: whoever is later finds it done."""
EXPIRY_HEIGHTS = 200
SETTLE_S = 10.0
"""How long one transaction is waited for before the next is sent."""

IsWanted = Callable[[Ledger], bool]


@dataclass(frozen=True, slots=True)
class _Task:
    """One operation, from when on it is sent, and whether it is still wanted then."""

    at: float
    operation: Operation
    is_wanted: IsWanted


class Operator:
    """Sends what this node owes to the chain."""

    def __init__(
        self,
        *,
        executor: Executor,
        key: Key,
        index: int,
        submit: Callable[[SignedTransaction], Awaitable[None]],
    ) -> None:
        self.executor = executor
        self.key = key
        self.owner = OwnerId(key.public)
        self.index = index
        self._submit = submit
        self._tasks: OrderedDict[bytes, _Task] = OrderedDict()
        self._news = trio.Event()

    def certify(self, certificate: Certificate) -> None:
        """See to it that a certificate reaches the chain, should its client not do so."""
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

        if len(self._tasks) < QUEUE_MAX:
            self._add(statement.hash, CERTIFY_AFTER_S, Certify(certificate), is_wanted)

    def accuse(self, evidence: Evidence, *, node: NodeId, epoch: int, view: int) -> None:
        """Report an equivocation, once; however many certificates wait, as there is one report a member and epoch."""

        def is_wanted(ledger: Ledger) -> bool:
            return not ledger.is_punished(node, epoch=epoch, view=view)

        self._add(node + epoch.to_bytes(8, "big") + view.to_bytes(8, "big"), 0.0, evidence, is_wanted)

    def _add(self, name: bytes, after_s: float, operation: Operation, is_wanted: IsWanted) -> None:
        if name in self._tasks:
            return
        turn = (self.index - self.executor.height) % max(1, len(self.executor.ledger.committee.members))
        self._tasks[name] = _Task(trio.current_time() + after_s + turn * STAGGER_S, operation, is_wanted)
        self._news.set()

    async def run(self) -> None:
        while True:
            self._news = trio.Event()
            name = min(self._tasks, key=lambda item: self._tasks[item].at, default=None)
            with trio.move_on_at(inf if name is None else self._tasks[name].at):
                await self._news.wait()
            if name is None or self._news.is_set():  # what came may be due before what was waited for
                continue
            task = self._tasks[name]
            del self._tasks[name]
            if task.is_wanted(self.executor.ledger) and not await self._send(task.operation):
                self._tasks[name] = replace(task, at=trio.current_time() + SETTLE_S)

    async def _send(self, operation: Operation) -> bool:
        """Send one transaction and wait until it is in a final block, or for a while; False if it is to be sent again.

        That is while the last one still waits, or the mempool is full.
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
            log.warning("own transaction refused: %s", fault)
            return fault.reason not in (Reason.WRONG_NONCE, Reason.OVER_BUDGET)
        with trio.move_on_after(SETTLE_S):
            while self.executor.ledger.account(self.owner).nonce <= nonce:
                await self.executor.advanced.wait()
        log.info("sent %s, transaction %s", type(operation).__name__.lower(), short(signed.hash))
        return True


def short(tx_hash: Digest) -> str:
    return tx_hash.hex()[:12]
