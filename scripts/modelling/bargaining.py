"""How operators bargain: what they vote for, when they buy disks, what they sell, when they come and leave."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from economics.arguments import CommitBeacon, PutStake, RegisterNode, Transfer, Unstake
from economics.crypto import OwnerId
from economics.genesis import FROST_PER_WAL
from economics.geometry import faulty_max
from economics.nodes import NodeEntry, Phase
from scripts.modelling.blocks import BLANK, Chain
from scripts.modelling.operators import Operator

LEAST_MARKUP = 1.15
"""Nobody votes for a price below its cost and this."""
USE_AIMED_AT = 0.75
PRICE_STEP = 0.15
"""A full network votes for 4 % more each epoch, an empty one for 11 % less."""
USE_SPREAD = 0.05
"""Operators differ by so much in what use they find right."""
WORTH_A_VOTE = 0.02
"""A vote that differs by less is not worth its fee."""
DISKS_AT_USE = 0.8
DISKS_GROWTH = 1.05
KEPT_FROST = 10 * FROST_PER_WAL
"""What an owner keeps at hand; half of the rest is sold for what disks and power cost."""
JOINS_AT_EPOCH = 20
JOINS_AT_MARKUP = 1.6
JOINING_FROST = 1_500 * FROST_PER_WAL
LEAVES_AFTER_EPOCHS = 20
"""With a loss."""
RAISES_AFTER_EPOCHS = 5
"""With a loss: where most of the stake is others', the owner has little of the rewards and all of the costs."""
COMMISSION_STEP = 500
COMMISSION_MAX = 5_000
SEATS_TO_SPARE = 6
"""While fewer shards could move, a large member that leaves keeps its seats."""
COMMISSION_BASIS_POINTS = 1_000


@dataclass(frozen=True, slots=True)
class Books:
    """What one operator had of an epoch, in FROST."""

    shards: int
    income_frost: int
    """What its accounts and stakes are worth more than an epoch before, what it sold added: below 0 after a slash."""
    cost_frost: int
    slashed_frost: int
    """What its own stake lost."""

    @property
    def profit_frost(self) -> int:
        return self.income_frost - self.cost_frost


class Bargaining:
    """What operators do at the beginning of an epoch, from what the last one brought them."""

    def __init__(self, exchange: OwnerId, random: Random) -> None:
        self._exchange = exchange
        self._random = random
        self._aims: dict[str, float] = {}
        self._losing: dict[str, int] = {}
        """Epochs running with a loss."""

    def bargain(self, chain: Chain, operators: Sequence[Operator], books: Mapping[str, Books]) -> dict[str, int]:
        """Ask for what operators change; return what each sells, in FROST."""
        sold = {}
        for operator in operators:
            entry = chain.ledger.node(operator.node)
            if entry is None:
                self._consider_joining(chain, operator)
                continue
            if entry.capacity_units and not self._consider_leaving(chain, operator, entry, books.get(operator.name)):
                self._vote(chain, operator, entry)
            spare = chain.ledger.account(operator.owner).balance_frost - KEPT_FROST
            if spare > KEPT_FROST:
                chain.ask(operator.owner, Transfer(self._exchange, spare // 2))
                sold[operator.name] = spare // 2
        return sold

    def _vote(self, chain: Chain, operator: Operator, entry: NodeEntry) -> None:
        vote, capacity = self._wanted_frost(chain, operator), self._wanted_units(chain, operator, entry)
        changed = abs(vote / max(1, entry.storage_vote_frost) - 1) > WORTH_A_VOTE
        commission = entry.next_commission_basis_points
        if self._losing.get(operator.name, 0) % RAISES_AFTER_EPOCHS == RAISES_AFTER_EPOCHS - 1:
            commission = min(commission + COMMISSION_STEP, COMMISSION_MAX)
        if changed or (capacity, commission) != (entry.capacity_units, entry.next_commission_basis_points):
            offer = replace(
                entry,
                capacity_units=capacity,
                storage_vote_frost=vote,
                write_vote_frost=vote // 2,
                next_commission_basis_points=commission,
            )
            register(chain, operator, offer)

    def _wanted_units(self, chain: Chain, operator: Operator, entry: NodeEntry) -> int:
        """Return its disk, grown a little where storing pays and space is short, its own or that of all."""
        ledger = chain.ledger
        shards = len(ledger.committee.shards_of_node(operator.node))
        filled = ledger.bucket(ledger.epoch).used_units * shards / ledger.committee.n
        pays = ledger.terms.storage_frost_per_unit > operator.profile.unit_cost_frost * LEAST_MARKUP
        is_short = filled > DISKS_AT_USE * entry.capacity_units or self._seats_to_spare(chain) < SEATS_TO_SPARE
        return round(entry.capacity_units * DISKS_GROWTH) if is_short and pays else entry.capacity_units

    def _seats_to_spare(self, chain: Chain) -> int:
        """Return how many shards more than all those that have disks for them could hold what is sold."""
        ledger = chain.ledger
        n, sold = ledger.committee.n, max(1, ledger.bucket(ledger.epoch).used_units)
        return sum(min(faulty_max(n), entry.capacity_units * n // sold) for entry in ledger.nodes()) - n

    def _wanted_frost(self, chain: Chain, operator: Operator) -> int:
        aimed_at = self._aims.setdefault(operator.name, self._random.gauss(USE_AIMED_AT, USE_SPREAD))
        step = 1 + PRICE_STEP * (self._use(chain) - aimed_at)
        wanted = chain.ledger.terms.storage_frost_per_unit * step
        return round(max(operator.profile.unit_cost_frost * LEAST_MARKUP, wanted))

    def _use(self, chain: Chain) -> float:
        ledger = chain.ledger
        return ledger.bucket(ledger.epoch).used_units / max(1, ledger.terms.capacity_units)

    def _consider_joining(self, chain: Chain, operator: Operator) -> None:
        ledger = chain.ledger
        price = ledger.terms.storage_frost_per_unit
        if ledger.epoch < JOINS_AT_EPOCH or price < operator.profile.unit_cost_frost * JOINS_AT_MARKUP:
            return
        capacity = 3 * ledger.terms.capacity_units // ledger.committee.n
        votes = self._wanted_frost(chain, operator)
        chain.ask(
            operator.owner,
            RegisterNode(operator.node, capacity, votes, votes // 2, COMMISSION_BASIS_POINTS, (), BLANK),
        )
        chain.ask(operator.owner, PutStake(operator.node, JOINING_FROST))
        chain.ask(operator.account, CommitBeacon(operator.onion.tip))

    def _consider_leaving(self, chain: Chain, operator: Operator, entry: NodeEntry, books: Books | None) -> bool:
        losing = books is not None and books.shards > 0 and books.profit_frost < 0
        self._losing[operator.name] = self._losing.get(operator.name, 0) + 1 if losing else 0
        if self._losing[operator.name] < LEAVES_AFTER_EPOCHS:
            return False
        register(chain, operator, replace(entry, capacity_units=0))
        for stake in chain.ledger.stakes_of(operator.owner):
            if stake.phase is Phase.ACTIVE:
                chain.ask(operator.owner, Unstake(stake.stake, 0))
        return True


def register(chain: Chain, operator: Operator, offer: NodeEntry) -> None:
    """Ask that a node offers this from now on."""
    chain.ask(
        operator.owner,
        RegisterNode(
            operator.node,
            offer.capacity_units,
            offer.storage_vote_frost,
            offer.write_vote_frost,
            offer.next_commission_basis_points,
            offer.addresses,
            BLANK,
        ),
    )
