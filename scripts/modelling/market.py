"""Those who pay and those who lend: customers store what the price lets them, delegators follow the best yield."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from economics.arguments import Certify, CertifyAgain, Extend, PutStake, Reserve, Transfer, Unstake
from economics.blob import BlobId
from economics.commitments import OwnerStatement, ReservationId
from economics.crypto import Level, NodeId, OwnerId, digest
from economics.genesis import FROST_PER_WAL
from economics.ledger import Code, Ledger
from economics.nodes import Phase
from economics.transactions import SignedTransaction
from p2pnode.keys import Key
from scripts.modelling.blocks import Chain, Done, certify, make_key
from scripts.modelling.operators import Operator

STATEMENT_HEIGHTS = 100_000


@dataclass(frozen=True, slots=True)
class Demand:
    """What customers want. Sizes are log-normal and grow; the number of uploads follows the price."""

    uploads: float = 4.0
    """Expected in an epoch, at the reference price."""
    median_bytes: float = 1.5 * 2**30
    sigma: float = 1.0
    growth: float = 1.01
    """Of the wanted bytes, an epoch."""
    elasticity: float = 0.8
    """A price that doubles takes 43 % of the demand away."""
    reference_frost: float = 1_000.0
    """The storage price to which all this refers."""
    durations: tuple[int, ...] = (7, 14, 30, 52)
    renewed: float = 0.6
    """Of the entries that are about to end, at the reference price."""
    shared: float = 0.1
    """Of the uploads are of a blob that is live already: paid again, moved never."""
    initial_blobs: int = 0
    """Uploaded in epoch 0, for as long as can be paid ahead."""

    def appetite(self, storage_frost: int) -> float:
        """Return what is wanted at this price, 1 at the reference."""
        return float((self.reference_frost / max(1, storage_frost)) ** self.elasticity)


class Customers:
    """They buy WAL from the exchange, reserve, certify what members have signed, and renew."""

    def __init__(self, demand: Demand, random: Random, *, count: int, exchange: OwnerId) -> None:
        self.demand = demand
        self.keys = {OwnerId(key.public): key for key in (make_key("customer", index) for index in range(count))}
        self._random = random
        self._exchange = exchange
        self._serial = 0
        self._reserved: dict[bytes, tuple[Key, int, BlobId | None]] = {}
        """By the reserving transaction's hash: whose, how many bytes, of which live blob if of one."""

    def shop(self, chain: Chain) -> None:
        """Ask for what the epoch's first block is to hold: renewals, and reservations for new blobs."""
        ledger, demand = chain.ledger, self.demand
        price = ledger.terms.storage_frost_per_unit
        for owner in self.keys:
            self._top_up(chain, owner)
            for entry in ledger.entries_of(owner):
                if entry.end_epoch == ledger.epoch + 2 and self._random.random() < demand.renewed * demand.appetite(
                    price
                ):
                    epochs = self._random.choice(demand.durations)
                    chain.ask(owner, Extend(entry.blob_id, entry.reservation, min(epochs, 50)))
        count = demand.initial_blobs if ledger.epoch == 0 else self._poisson(demand.uploads * demand.appetite(price))
        for _ in range(count):
            self._reserve(chain)

    def _top_up(self, chain: Chain, owner: OwnerId) -> None:
        if chain.ledger.account(owner).balance_frost < 50 * FROST_PER_WAL:
            chain.ask(self._exchange, Transfer(owner, 100 * FROST_PER_WAL))

    def _reserve(self, chain: Chain) -> None:
        ledger, random, demand = chain.ledger, self._random, self.demand
        owner = random.choice(list(self.keys))
        live = list(ledger.live_blobs()) if random.random() < demand.shared else []
        if live:
            blob = random.choice(live)
            length, known = blob.length, blob.blob_id
        else:
            median = math.log(demand.median_bytes * demand.growth**ledger.epoch)
            length, known = int(random.lognormvariate(median, demand.sigma)), None
        start, duration = ledger.epoch, 53 if ledger.epoch == 0 else random.choice(demand.durations)
        signed = chain.ask(owner, Reserve(chain.genesis.code.encoded_units(length), start, start + duration))
        self._reserved[signed.hash] = (self.keys[owner], length, known)

    def certify(self, chain: Chain, done: Sequence[Done], nodes: dict[NodeId, Key]) -> None:
        """Ask for the certificates of what was reserved in the last block; nothing if the network was full."""
        for each in done:
            if each.signed.hash in self._reserved and each.code is Code.OK:
                self._certify(chain, each.signed, nodes)
        self._reserved.clear()

    def _certify(self, chain: Chain, reserved: SignedTransaction, nodes: dict[NodeId, Key]) -> None:
        owner, length, known = self._reserved[reserved.hash]
        reservation = ReservationId(digest(Level.RESERVATION, reserved.hash))
        if known is not None:
            chain.ask(OwnerId(owner.public), CertifyAgain(reservation, known, deletable=False))
            return
        self._serial += 1
        statement = OwnerStatement(
            chain_id=chain.genesis.chain_id,
            owner=OwnerId(owner.public),
            reservation=reservation,
            blob_id=BlobId(digest(Level.MESSAGE, b"blob" + self._serial.to_bytes(8, "big"))),
            length=length,
            deletable=False,
            salt=bytes(16),
            expiry_height=chain.ledger.height + STATEMENT_HEIGHTS,
        )
        made = certify(statement, owner, committee=chain.ledger.committee, keys=nodes)
        chain.ask(OwnerId(owner.public), Certify(made))

    def _poisson(self, mean: float) -> int:
        count, left = 0, self._random.expovariate(1.0)
        while left < mean:
            count += 1
            left += self._random.expovariate(1.0)
        return count


class Delegators:
    """Each has all its stake on one node, and now and then looks for a better one."""

    LOOKING = 0.1
    """Of them look around in an epoch."""
    WINDOW = 14
    """Epochs of which the yield is compared."""
    BETTER = 1.1
    """A move costs two weeks of unbonding, so it must be worth it."""

    def __init__(self, random: Random, *, count: int) -> None:
        self.owners = [OwnerId(make_key("delegator", index).public) for index in range(count)]
        self._random = random
        self._rates: list[dict[NodeId, float]] = []

    def move(self, chain: Chain) -> None:
        """Ask for stakes and their ends, once an epoch."""
        ledger = chain.ledger
        self._rates = [
            *self._rates[-self.WINDOW :],
            {entry.node: pool_rate(ledger, entry.node) for entry in ledger.nodes()},
        ]
        yields = self._yields(ledger)
        for owner in self.owners:
            balance = ledger.account(owner).balance_frost
            if balance > 2 * FROST_PER_WAL:
                chain.ask(owner, PutStake(self._choose(yields), balance - FROST_PER_WAL))
            elif self._random.random() < self.LOOKING:
                self._reconsider(chain, owner, yields)

    def _yields(self, ledger: Ledger) -> dict[NodeId, float]:
        first, last = self._rates[0], self._rates[-1]
        staying = [entry.node for entry in ledger.nodes() if entry.capacity_units]
        return {node: last[node] / first[node] for node in staying if first.get(node) and last.get(node)}

    def _choose(self, yields: dict[NodeId, float]) -> NodeId:
        """Return the best of a few that one happens to know."""
        known = self._random.sample(sorted(yields), min(5, len(yields)))
        return max(known, key=lambda node: yields[node])

    def _reconsider(self, chain: Chain, owner: OwnerId, yields: dict[NodeId, float]) -> None:
        best = self._choose(yields)
        for stake in chain.ledger.stakes_of(owner):
            entry = chain.ledger.node(stake.node)
            leaves = entry is not None and not entry.capacity_units
            is_better = yields[best] - 1 > self.BETTER * (yields.get(stake.node, 1.0) - 1)
            if stake.phase is Phase.ACTIVE and (leaves or is_better):
                chain.ask(owner, Unstake(stake.stake, 0))


def pool_rate(ledger: Ledger, node: NodeId) -> float:
    """Return what a share of a node's pool is worth, in FROST; 0 for a pool without shares."""
    entry = ledger.node(node)
    return entry.stake_frost / entry.shares if entry is not None and entry.shares else 0.0


def wealth_frost(ledger: Ledger, operator: Operator) -> int:
    """Return what an operator has: its accounts, and its own stakes wherever they are."""
    held = sum(ledger.account(owner).balance_frost for owner in {operator.owner, operator.account})
    for stake in ledger.stakes_of(operator.owner):
        held += stake.frost
        entry = ledger.node(stake.node)
        if stake.shares and entry is not None:
            held += stake.shares * entry.stake_frost // entry.shares
    return held
