"""What a simulated node says on the chain of its own: its onion, and that it holds its shards."""

from typing import TYPE_CHECKING

from economics.arguments import CommitBeacon, Operation, ReportSync
from economics.crypto import OwnerId
from economics.transactions import Transaction, build
from tests.simulation.keys import make_onion
from tests.simulation.payloads import Transactions

if TYPE_CHECKING:
    from tests.simulation.shell import Shell

OWN_FEE_FROST = 10**7
OWN_BLOCKS = 20
"""A report that is not in a block by then is made anew."""
ONION_LAYERS = 40


class Operator:
    """One node's own transactions, over all its lives."""

    def __init__(self, shell: "Shell", *, report_ms: int) -> None:
        """`report_ms`: so long after an epoch with another committee began the node says that it holds its shards."""
        self._shell = shell
        self._report_ms = report_ms
        self._reported_ms: int | None = None
        self._tip, self.onion = make_onion(shell.node, ONION_LAYERS)

    def consider_reporting(self) -> None:
        """Have it said on the chain, after a while and until it is there, that this node holds its shards."""
        own = self._shell.index
        handover = self._shell.chain.ledger.handover
        if own is None or handover.is_done or own in handover.reporters:
            self._reported_ms = None
            return
        if self._reported_ms is None:
            self._reported_ms = self._shell.world.now_ms + self._report_ms
            self._shell.later(self._report_ms, self.consider_reporting)
        elif self._shell.world.now_ms >= self._reported_ms:
            self._reported_ms = None
            self._report()

    def _report(self) -> None:
        self._transact(ReportSync(self._shell.chain.ledger.epoch))

    def commit(self) -> None:
        """Have it said on the chain what this node will reveal as a leader; if that gets lost, it reveals nothing."""
        if self._shell.is_up:
            self._transact(CommitBeacon(self._tip))

    def _transact(self, operation: Operation) -> None:
        """Send a transaction of the node's own account, the next that it can have."""
        account = OwnerId(self._shell.node)
        plain = Transaction(
            chain_id=self._shell.genesis.chain_id,
            sender=account,
            nonce=self._shell.chain.ledger.account(account).nonce,
            fee_frost=OWN_FEE_FROST,
            expiry_height=self._shell.chain.head.height + OWN_BLOCKS,
            operation=operation,
        )
        signed = build(plain, self._shell.identity.sign)
        self._shell.submit(signed)
        for other in self._shell.others:
            self._shell.network.send(self._shell.number, other, Transactions((signed,)))
