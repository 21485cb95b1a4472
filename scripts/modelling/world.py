"""An economy of agents over the real ledger: every transfer, vote, stake, audit and reward is a transaction in a block.

One step is one epoch: for each round of challenges a block that begins it and one with the audits, then the boundary.
"""

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from economics.arguments import CommitBeacon, ReportAudit, ReportSync
from economics.challenges import Owed, sample
from economics.committee import Committee, Member
from economics.crypto import OwnerId
from economics.genesis import FROST_PER_WAL, Genesis, GenesisAccount, Parameters
from economics.geometry import SEGMENT_BYTES, STORAGE_UNIT_BYTES
from economics.nodes import NodeEntry, Outcome, Stake
from economics.state import Account, Bucket, decode_value
from scripts.modelling.bargaining import Bargaining, Books, register
from scripts.modelling.blocks import Chain, make_key
from scripts.modelling.market import Customers, Delegators, Demand, wealth_frost
from scripts.modelling.operators import SLOW_SHARE, Line, Operator, Profile

CUSTOMER_FROST = 200 * FROST_PER_WAL
DELEGATOR_FROST = 500 * FROST_PER_WAL
EXCHANGE_FROST = 5_000 * FROST_PER_WAL
OWNER_FROST = 10 * FROST_PER_WAL
STANDBY_FROST = 2_000 * FROST_PER_WAL
NODE_FROST = FROST_PER_WAL
"""For what a node sends itself: a report costs 2,000 FROST."""
TIME_MS = 1_800_000_000_000


@dataclass(frozen=True, slots=True)
class Setting:
    """Who there is when a network begins, and whether they bargain."""

    members: tuple[tuple[Profile, int], ...]
    """With their shards."""
    seed: int = 1
    standbys: tuple[Profile, ...] = ()
    """They register when it pays."""
    demand: Demand = field(default_factory=Demand)
    customers: int = 12
    delegators: int = 0
    bargains: bool = False
    """Whether operators vote on prices, buy disks, sell what they earn, join and leave."""
    parameters: Parameters = field(default_factory=Parameters)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A network as an epoch begins, and what the one before it brought."""

    epoch: int
    accounts_frost: int
    pools_frost: int
    buckets_frost: int
    unbonding_frost: int
    """With what waits to join a pool."""
    burned_frost: int
    minted_frost: int
    storage_frost: int
    write_frost: int
    votes_frost: tuple[int, ...]
    """The members' for storing one unit, ascending."""
    capacity_units: int
    used_units: int
    members: int
    live_blobs: int
    books: dict[str, Books]
    """By the operator's name."""


class World:
    """The ledger and all who act on it. The same setting gives the same blocks."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._random = Random(f"{setting.seed} world")
        profiles = [*(profile for profile, _ in setting.members), *setting.standbys]
        self.operators = [self._make_operator(index, profile) for index, profile in enumerate(profiles)]
        self._by_node = {operator.node: operator for operator in self.operators}
        self._keys = {operator.node: operator.key for operator in self.operators}
        self._exchange = OwnerId(make_key("exchange").public)
        random = Random(f"{setting.seed} market")
        self.customers = Customers(setting.demand, random, count=setting.customers, exchange=self._exchange)
        self.delegators = Delegators(random, count=setting.delegators)
        self.chain = Chain(self._make_genesis())
        self.ledger = self.chain.ledger
        self.bargaining = Bargaining(self._exchange, Random(f"{setting.seed} votes"))
        self._sold: dict[str, int] = {}
        self._books: dict[str, Books] = {}
        self._wealth = {operator.name: wealth_frost(self.ledger, operator) for operator in self.operators}

    def _make_operator(self, index: int, profile: Profile) -> Operator:
        random = Random(f"{self.setting.seed} line {index}")
        return Operator(f"node {index}", profile, Line(profile.uptime, random, start_ms=TIME_MS))

    def _make_genesis(self) -> Genesis:
        setting, first = self.setting, len(self.setting.members)
        members = tuple(
            Member(operator.node, operator.owner, shards, ("/ip4/127.0.0.1/tcp/1",))
            for operator, (_, shards) in zip(self.operators, setting.members, strict=False)
        )
        balances = {self._exchange: EXCHANGE_FROST}
        balances |= dict.fromkeys(self.customers.keys, CUSTOMER_FROST)
        balances |= dict.fromkeys(self.delegators.owners, DELEGATOR_FROST)
        balances |= {operator.account: NODE_FROST for operator in self.operators}
        balances |= {operator.owner: OWNER_FROST for operator in self.operators[:first]}
        balances |= {operator.owner: STANDBY_FROST for operator in self.operators[first:]}
        accounts = tuple(GenesisAccount(key, balance) for key, balance in sorted(balances.items()))
        return Genesis("economy", TIME_MS, SEGMENT_BYTES, members, accounts, setting.parameters)

    def run(self, epochs: int) -> list[Snapshot]:
        return [self.step() for _ in range(epochs)]

    def step(self) -> Snapshot:
        """Go through one epoch; asserts that all FROST is somewhere at its end."""
        ledger, parameters = self.ledger, self.setting.parameters
        start_ms, epoch = ledger.system.epoch_start_ms, ledger.epoch
        rounds = max(1, parameters.challenge_rounds)
        slice_ms = parameters.epoch_ms // rounds
        self._plan(epoch)
        for number in range(1, rounds + 1):
            self._round(number, start_ms + (number - 1) * slice_ms + 1, slice_ms)
        return self._end_epoch(start_ms + parameters.epoch_ms)

    def _plan(self, epoch: int) -> None:
        if epoch == 0:
            for operator in self.operators[: len(self.setting.members)]:
                self.chain.ask(operator.account, CommitBeacon(operator.onion.tip))
        self.customers.shop(self.chain)
        if self.setting.delegators:
            self.delegators.move(self.chain)
        for operator in self.operators:
            entry = self.ledger.node(operator.node)
            if entry is not None and entry.missed_epochs >= self.setting.parameters.missed_epochs_max:
                register(self.chain, operator, entry)
        if self.setting.bargains:
            self._sold = self.bargaining.bargain(self.chain, self.operators, self._books)

    def _round(self, number: int, time_ms: int, slice_ms: int) -> None:
        """Apply the block that begins a round, and half a slice later the one with what members say of it."""
        leader = self._draw_leader(time_ms)
        onion = self._operator(leader).onion
        _, done = self.chain.block(time_ms, leader=leader, reveal=onion.top)
        beacon = self.ledger.beacon(self._operator(leader).node)
        if beacon is not None and beacon.tip == onion.top:
            onion.peel()
        self.customers.certify(self.chain, done, self._keys)
        self._audit(number, time_ms)
        self._report_sync(time_ms)
        self.chain.block(time_ms + slice_ms // 2, leader=leader)

    def _operator(self, index: int) -> Operator:
        return self._by_node[self.ledger.committee.members[index].node]

    def _draw_leader(self, time_ms: int) -> int:
        committee = self.ledger.committee
        drawn = [committee.holder(self._random.randrange(committee.n)) for _ in range(20)]
        return next((index for index in drawn if self._operator(index).line.at(time_ms)), drawn[0])

    def _audit(self, number: int, time_ms: int) -> None:
        """Have the members that are up report what they see of the challenged, if a round has begun."""
        ledger, current = self.ledger, self.ledger.round
        if current is None or (current.epoch, current.number) != (ledger.epoch, number):
            return
        challenged = [self._operator(tally.member) for tally in current.tallies]
        owed = Owed.of(((blob.blob_id, blob.length) for blob in ledger.live_blobs()), self.chain.genesis.code)
        seen = [self._answer(operator, owed, time_ms) for operator in challenged]
        for member in ledger.committee.members:
            auditor = self._by_node[member.node]
            if auditor.line.at(time_ms):
                said = auditor.says(challenged, seen)
                own = tuple(
                    Outcome.UNKNOWN if other is auditor else outcome
                    for other, outcome in zip(challenged, said, strict=True)
                )
                self.chain.ask(auditor.account, ReportAudit(ledger.epoch, number, own))

    def _answer(self, operator: Operator, owed: Owed, time_ms: int) -> Outcome:
        """Return what honest auditors see of a challenged operator."""
        if not operator.line.at(time_ms):
            return Outcome.OFFLINE
        if not self._holds_sampled(operator, owed):
            return Outcome.BAD if operator.profile.habit.guesses else Outcome.OFFLINE
        return Outcome.SLOW if self._random.random() < SLOW_SHARE else Outcome.OK

    def _holds_sampled(self, operator: Operator, owed: Owed) -> bool:
        if operator.profile.habit.stored >= 1:
            return True
        count, current = self.setting.parameters.challenge_samples, self.ledger.round
        assert current is not None
        return all(
            operator.holds(blob_id, segment, shard)
            for shard in self.ledger.committee.shards_of_node(operator.node)
            for blob_id, segment in sample(owed, seed=current.seed, shard=shard, count=count)
        )

    def _report_sync(self, time_ms: int) -> None:
        ledger = self.ledger
        for index, member in enumerate(ledger.committee.members):
            operator = self._by_node[member.node]
            if index not in ledger.handover.reporters and operator.synced_ms <= time_ms and operator.line.at(time_ms):
                self.chain.ask(operator.account, ReportSync(ledger.epoch))

    def _end_epoch(self, time_ms: int) -> Snapshot:
        """Apply the boundary, and note what it made of everybody."""
        ledger = self.ledger
        before, used = ledger.committee, ledger.bucket(ledger.epoch).used_units
        stakes = {operator.name: self._own_stake(operator) for operator in self.operators}
        applied, _ = self.chain.block(time_ms, leader=self._draw_leader(time_ms))
        assert applied.epoch_ended
        ledger.verify_supply()
        books = {}
        for operator in self.operators:
            wealth = wealth_frost(ledger, operator)
            income = wealth - self._wealth[operator.name] + self._sold.pop(operator.name, 0)
            shards = len(before.shards_of_node(operator.node))
            cost = self._cost_frost(operator, used * shards / before.n, is_member=shards > 0)
            slashed = max(0, stakes[operator.name] - self._own_stake(operator))
            books[operator.name] = Books(shards, income, cost, slashed)
            self._wealth[operator.name] = wealth
            self._note_gains(operator, before, used)
        self._books = books
        return self._snapshot(used, books)

    def _own_stake(self, operator: Operator) -> int:
        ledger = self.ledger
        return wealth_frost(ledger, operator) - sum(
            ledger.account(owner).balance_frost for owner in (operator.owner, operator.account)
        )

    def _cost_frost(self, operator: Operator, units: float, *, is_member: bool) -> int:
        profile = operator.profile
        return round(units * profile.unit_cost_frost * profile.habit.stored) + profile.fixed_cost_frost * is_member

    def _note_gains(self, operator: Operator, before: Committee, used: int) -> None:
        """Let what a member gained travel over its line before it reports that it holds it."""
        now = self.ledger.committee
        gained = set(now.shards_of_node(operator.node)) - set(before.shards_of_node(operator.node))
        if gained:
            megabytes = len(gained) * used * STORAGE_UNIT_BYTES / now.n / 1e6
            operator.synced_ms = self.chain.time_ms + round(megabytes / operator.profile.megabytes_per_s * 1_000)

    def _snapshot(self, used: int, books: dict[str, Books]) -> Snapshot:
        ledger, held = self.ledger, Counter[str]()
        for _, data in ledger.tree.items():
            match decode_value(data):
                case Account(balance_frost=amount):
                    held["accounts"] += amount
                case NodeEntry(stake_frost=amount):
                    held["pools"] += amount
                case Bucket(rewards_frost=amount):
                    held["buckets"] += amount
                case Stake(frost=amount):
                    held["unbonding"] += amount
                case _:
                    pass
        members = [ledger.node(member.node) for member in ledger.committee.members]
        return Snapshot(
            epoch=ledger.epoch,
            accounts_frost=held["accounts"],
            pools_frost=held["pools"],
            buckets_frost=held["buckets"],
            unbonding_frost=held["unbonding"],
            burned_frost=ledger.system.burned_frost,
            minted_frost=ledger.system.minted_frost,
            storage_frost=ledger.terms.storage_frost_per_unit,
            write_frost=ledger.terms.write_frost_per_unit,
            votes_frost=tuple(sorted(entry.storage_vote_frost for entry in members if entry is not None)),
            capacity_units=ledger.terms.capacity_units,
            used_units=used,
            members=len(members),
            live_blobs=sum(1 for _ in ledger.live_blobs()),
            books=books,
        )
