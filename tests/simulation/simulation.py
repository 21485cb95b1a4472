"""Runs a scenario: builds the nodes, lets both acts happen, and tells what was seen. Raises `Violation`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from economics.arguments import (
    Evidence,
    Operation,
    Transfer,
)
from economics.block import BlockHeader, Proposal, genesis_header, leader_of
from economics.committee import Committee, Member
from economics.consensus import Engine
from economics.crypto import OwnerId
from economics.effects import Ask, Guilty, Message
from economics.errors import Rejected
from economics.genesis import Genesis, GenesisAccount
from economics.ledger import Ledger
from economics.nodes import Offence
from economics.state import decode_value
from economics.transactions import (
    SignedTransaction,
    Transaction,
    build,
    least_fee,
)
from economics.votes import SignedVote, VoteCertificate
from tests.simulation.byzantine import Adversary
from tests.simulation.chain import NOTHING
from tests.simulation.disk import Disk, place_of
from tests.simulation.invariants import Recovery, Violation, Watch
from tests.simulation.keys import Roster, Signer, make_signer, make_verify
from tests.simulation.network import Network
from tests.simulation.payloads import Identity, Payload, Transactions
from tests.simulation.scenario import Forgets, Loss, Move, Scenario
from tests.simulation.shell import Shell
from tests.simulation.staker import Staker
from tests.simulation.world import World

GENESIS_MS = 1_700_000_000_000
ACCOUNTS = 7
EVIDENCE_ACCOUNT = 3
PROBE_ACCOUNTS = (4, 5)
"""What they send in the second act is known to all: it must be included (L5)."""
STAKER = 6
"""Owns all first members and stakes for all others: what it asks for is done in order."""
STAKER_FROST = 10**18
FIRST_ACCOUNT = 1_000
BALANCE_FROST = 10**12


@dataclass(slots=True)
class Result:
    """What a run was like."""

    seed: int
    trace: str = ""
    events: int = 0
    messages: int = 0
    views: int = 0
    blocks: int = 0
    nullified: int = 0
    epochs: int = 0
    reseated: int = 0
    """Epochs that began with another committee than the one before."""
    joined: int = 0
    """Seats that a node took in an epoch and had not in the one before."""
    shifted: int = 0
    """Members whose index is another than in the epoch before."""
    reveals: int = 0
    """Blocks whose leader revealed something that may count."""
    losses: int = 0
    """Disks that were lost, or replaced by an older state of theirs."""
    crashes: int = 0
    restarts: int = 0
    equivocations: int = 0
    evidence: int = 0
    punished: int = 0
    refused: int = 0
    honest_leaders: int = 0
    """Views with a live honest leader that the second act took."""
    is_unbounded: bool = False
    """The faulty came to have more than f shards of a committee: the run ended, and proves nothing."""
    fault: str | None = None
    """The invariant that broke, and how."""
    rule: str | None = None


@dataclass(slots=True)
class Simulation:
    """One run of one scenario."""

    scenario: Scenario
    log: Callable[[str], None] | None = None
    prepare: Callable[["Simulation"], None] | None = None
    """Changes the members before they start: for planted faults in a shell."""
    result: Result = field(init=False)
    world: World = field(init=False)
    genesis: Genesis = field(init=False)
    network: Network = field(init=False)
    watch: Watch = field(init=False)
    adversary: Adversary = field(init=False)
    shells: dict[int, Shell] = field(init=False)
    roster: Roster = field(init=False)
    staker: Staker = field(init=False)
    accounts: list[Signer] = field(init=False)
    nonces: list[int] = field(init=False)
    probes: list[OwnerId] = field(init=False)
    _slots: dict[tuple[int, int], None] = field(default_factory=dict)
    """Views that some honest member has voted in."""
    _roots: dict[int, BlockHeader] = field(default_factory=dict)
    _reported: int = 0
    _away: set[int] = field(default_factory=set)
    """Nodes that are off by an outage, whose end brings them back."""
    _doomed: dict[int, Loss] = field(default_factory=dict)
    """Nodes that are to lose their disk."""
    _calm: bool = False
    _have_fallen: bool = False

    def __post_init__(self) -> None:
        scenario = self.scenario
        self.result = Result(scenario.seed)
        self.world = World(scenario.seed, log=self.log)
        signers = [make_signer(number, is_real=scenario.is_real) for number in range(scenario.nodes)]
        self.roster = Roster(signers)
        self.accounts = [make_signer(FIRST_ACCOUNT + index, is_real=scenario.is_real) for index in range(ACCOUNTS)]
        self.nonces = [0] * ACCOUNTS
        self.probes = [OwnerId(self.accounts[account].public) for account in PROBE_ACCOUNTS]
        self.genesis = self._make_genesis()
        self.staker = Staker(self.genesis, self.roster, OwnerId(self.accounts[STAKER].public))
        ledger = Ledger.at_genesis(self.genesis)
        origin = (
            ledger,
            genesis_header(
                chain_id=self.genesis.chain_id,
                time_ms=GENESIS_MS,
                state_root=ledger.root,
                committee_hash=ledger.committee.hash,
                next_committee_hash=ledger.next_committee_hash,
            ),
        )
        self._roots[0] = origin[1]
        verify = make_verify(is_real=scenario.is_real)
        self.network = Network(self.world, self._deliver, scenario.weather, slow_ms=dict(scenario.slow_ms))
        self.watch = Watch(
            self.genesis,
            self.roster,
            origin[1],
            verify,
            scenario.byzantine,
            self._overhear,
            self._went_down,
            self._is_bounded,
        )
        self.shells = {
            number: Shell(
                Identity(number, signer.sign, verify, (scenario.skews_ms or (0,) * len(signers))[number]),
                world=self.world,
                network=self.network,
                observer=self.watch,
                genesis=self.genesis,
                roster=self.roster,
                origin=origin,
                engine_type=Engine,
                checks_bodies=scenario.is_real,
                report_ms=scenario.report_ms,
            )
            for number, signer in enumerate(signers)
            if number not in scenario.faulty
        }
        self.adversary = Adversary(
            world=self.world,
            network=self.network,
            genesis=self.genesis,
            roster=self.roster,
            committees=self.watch.committees,
            signers={number: signers[number] for number in sorted(scenario.byzantine)},
            honest=self.shells,
            style=scenario.style,
            tempo_ms=scenario.tempo_ms,
        )

    def _make_genesis(self) -> Genesis:
        owner = OwnerId(self.accounts[STAKER].public)
        members = tuple(
            Member(node, owner, shards, ())
            for node, shards in zip(self.roster.nodes, self.scenario.shards, strict=False)
        )
        balances = {OwnerId(account.public): BALANCE_FROST for account in self.accounts}
        balances |= {OwnerId(node): BALANCE_FROST for node in self.roster.nodes}
        balances[owner] = STAKER_FROST
        accounts = tuple(GenesisAccount(*row) for row in sorted(balances.items()))
        return Genesis("simulation", GENESIS_MS, 1_000, members, accounts, self.scenario.parameters)

    def _is_bounded(self, committee: Committee) -> bool:
        return self.roster.weight(committee, self.scenario.unreliable) <= committee.n - committee.quorum

    # Wires

    def _deliver(self, sender: int, receiver: int, payload: Payload) -> None:
        self.world.note("deliver", sender, receiver, type(payload).__name__)
        shell = self.shells.get(receiver)
        if shell is None:
            if receiver in self.scenario.byzantine:
                self.adversary.receive(sender, receiver, payload)
            return
        if self.scenario.is_real:
            try:
                payload = self._recode(payload)
            except Rejected as fault:
                shell.refuse(fault)
                return
        shell.receive(sender, payload)

    def _recode(self, payload: Payload) -> Payload:
        """Return what arrives of a message that travels as bytes."""
        match payload:
            case SignedVote():
                return SignedVote.decode(payload.encode())
            case VoteCertificate():
                return VoteCertificate.decode(payload.encode())
            case Proposal():
                limit = self.genesis.parameters.block_transactions_max
                return Proposal.decode(payload.encode(), chain_id=self.genesis.chain_id, transactions_max=limit)
            case _:
                return payload

    def _overhear(self, sender: int, message: Message) -> None:
        self.world.note("sent", sender, _describe(message))
        if isinstance(message, SignedVote):
            vote = message.vote
            if self.roster.number(self.watch.committees[vote.epoch], vote.signer) == sender:
                self._begin_view((vote.epoch, vote.view))
                loss = self._doomed.get(sender)
                if loss is not None and loss.slot <= (vote.epoch, vote.view):
                    del self._doomed[sender]
                    self.world.after(1 + self.world.random.randrange(10), self._lose, loss)
        self.adversary.overhear(sender, message)

    def _begin_view(self, slot: tuple[int, int]) -> None:
        if slot in self._slots:
            return
        self._slots[slot] = None
        self.result.views += 1
        if not self._calm:
            return
        root = next((shell.chain.root_header for shell in self.up() if shell.chain.ledger.epoch == slot[0]), None)
        if root is not None:
            committee = self.watch.committees[slot[0]]
            leader = leader_of(slot[1], root_hash=root.hash, committee=committee)
            shell = self.shells.get(self.roster.number(committee, leader))
            self.result.honest_leaders += shell is not None and shell.is_up

    def up(self) -> list[Shell]:
        return [shell for shell in self.shells.values() if shell.is_up]

    # Life and death

    def _went_down(self, shell: Shell) -> None:
        self.result.crashes += 1
        if shell.number in self._away:
            return
        self.world.after(1 + self.world.random.randrange(2 * self.scenario.down_ms), self.boot, shell)
        if self.scenario.all_fall and not self._have_fallen:
            self._have_fallen = True
            for other in self.up():
                other.stop()

    def boot(self, shell: Shell) -> None:
        """Start a member if it is off; the others open their streams to it anew."""
        if shell.is_up:
            return
        self.world.note("boot", shell.number)
        shell.boot()
        if shell.life > 1:
            self.result.restarts += 1
            for other in self.shells.values():
                if other is not shell:
                    other.greet(shell.number)
        if shell.is_up:
            self.watch.started(shell)

    # Transactions

    def make_transaction(self, account: int, operation: Operation | None = None) -> SignedTransaction:
        signer = self.accounts[account]
        to = OwnerId(self.accounts[(account + 1) % ACCOUNTS].public)
        plain = Transaction(
            chain_id=self.genesis.chain_id,
            sender=OwnerId(signer.public),
            nonce=self.nonces[account],
            fee_frost=10**7,
            expiry_height=1_000_000,
            operation=Transfer(to, 1 + account) if operation is None else operation,
        )
        assert plain.fee_frost >= least_fee(plain, self.genesis.parameters)
        self.nonces[account] += 1
        return build(plain, signer.sign)

    def publish(self, signed: SignedTransaction, *, to_all: bool) -> None:
        """Give a transaction to one member that is up, which passes it on, or to all."""
        shells = self.up()
        if not shells:
            return
        chosen = shells if to_all else [self.world.random.choice(shells)]
        for shell in chosen:
            shell.receive(shell.number, Transactions((signed,)))
        if not to_all:
            for shell in self.shells.values():
                if shell is not chosen[0]:
                    self.network.send(chosen[0].number, shell.number, Transactions((signed,)))

    def _publish_one(self) -> None:
        self.publish(self.make_transaction(self.world.random.randrange(EVIDENCE_ACCOUNT)), to_all=False)

    def _publish_evidence(self) -> None:
        """Put what honest members found on chain; that needs signatures which the ledger can check."""
        fresh: list[Guilty] = self.watch.evidence[self._reported :]
        self._reported = len(self.watch.evidence)
        if self.scenario.is_real:
            for guilty in fresh[:3]:
                evidence = Evidence(guilty.first, guilty.second)
                self.publish(self.make_transaction(EVIDENCE_ACCOUNT, evidence), to_all=True)

    # The acts

    def run(self) -> Result:
        """Play both acts; raises `Violation`, or what the code under test raised."""
        if self.prepare is not None:
            self.prepare(self)
        self._plan_chaos()
        for shell in self.shells.values():
            self.boot(shell)
        self.world.run(lambda: len(self._slots) >= self.scenario.views, until_ms=self.scenario.chaos_ms)
        self._calm_down()
        self._end()
        return self.result

    def _plan_chaos(self) -> None:
        scenario, world = self.scenario, self.world
        for member, fuse in scenario.fuses:
            if member in self.shells:
                self.shells[member].disk.fuses.append(fuse)
        for outage in scenario.outages:
            if outage.member in self.shells:
                world.after(outage.at_ms, self._cut, outage.member, outage.down_ms)
        for partition in scenario.partitions:
            world.after(partition.at_ms, self._part, dict(enumerate(partition.sides)))
            world.after(partition.at_ms + partition.length_ms, self._part, {})
        for _ in range(scenario.transactions):
            world.after(world.random.randrange(max(1, scenario.chaos_ms // 3)), self._publish_one)
        if scenario.epochs:
            for shell in self.shells.values():
                world.after(world.random.randrange(100), shell.operator.commit)
        for move in scenario.moves:
            world.after(move.at_ms, self._move, move)
        self._doomed = {loss.node: loss for loss in scenario.losses}

    def _move(self, move: Move) -> None:
        for operation in self.staker.operations(move):
            signed = self.make_transaction(STAKER, operation)
            self.staker.asked.append(signed)
            self.publish(signed, to_all=True)

    def _lose(self, loss: Loss) -> None:
        """Cut a node's power and have its disk be as it was once; it comes back, and knows that it has forgotten."""
        shell = self.shells[loss.node]
        self.result.losses += 1
        self._away.add(loss.node)
        shell.stop()
        self._forget(shell.disk, loss.forgets)
        self.watch.lost_disk(shell)
        self.world.after(loss.down_ms, self._come_back, shell)

    def _forget(self, disk: Disk, forgets: Forgets) -> None:
        """Roll a disk back, to a block that became final by itself."""
        epoch = disk.chain[-1].block.header.epoch if disk.chain else 0
        rows, records = len(disk.chain), len(disk.log)
        match forgets:
            case Forgets.ALL:
                rows = records = 0
            case Forgets.HALF:
                rows, records = rows // 2, records // 2
            case Forgets.EPOCH:
                rows = max(0, sum(row.block.header.epoch < epoch for row in disk.chain) - 1)
                records = sum(place_of(record) < (epoch, 0) for record in disk.log)
        while rows and disk.chain[rows - 1].finality is None:
            rows -= 1
        disk.roll_back(chain=rows, log=records)

    def _part(self, groups: dict[int, int]) -> None:
        if not self._calm:
            self.network.part(groups)

    def _cut(self, member: int, down_ms: int) -> None:
        shell = self.shells[member]
        if not self._calm and shell.is_up:
            self._away.add(member)
            shell.stop()
            self.world.after(down_ms, self._come_back, shell)

    def _come_back(self, shell: Shell) -> None:
        self._away.discard(shell.number)
        self.boot(shell)

    def _calm_down(self) -> None:
        """Begin the second act: what is said from now on arrives, and all who live are up."""
        self._calm = True
        self.network.calm(self.scenario.calm)
        self.adversary.is_active = self.scenario.stays_active
        self._away.clear()
        for shell in self.shells.values():
            shell.disk.fuses.clear()
            self.boot(shell)
        self._publish_evidence()
        for account in PROBE_ACCOUNTS:
            self.publish(self.make_transaction(account), to_all=True)
        for signed in self.staker.asked:  # some may have been known to nobody who is up
            self.publish(signed, to_all=True)
        recovery = Recovery(
            is_mixed=self.scenario.epochs > 0,
            loss=self.scenario.calm.loss,
            shells=list(self.shells.values()),
            probes=self.probes,
            watch=self.watch,
        )
        self._await(lambda: recovery.is_done(now_ms=self.world.now_ms, honest_leaders=self.result.honest_leaders))
        epoch = max(shell.chain.ledger.epoch for shell in self.shells.values()) + self.scenario.epochs
        self._await(partial(self._has_reached, epoch))

    def _has_reached(self, epoch: int) -> bool:
        """Return whether everybody is in this epoch, or a later one."""
        return all(shell.chain.ledger.epoch >= epoch for shell in self.shells.values())

    def _await(self, is_done: Callable[[], bool]) -> None:
        if not self.world.run(is_done, until_ms=self.world.now_ms + self.scenario.calm_ms):
            slots = sorted(
                (shell.chain.ledger.epoch, shell.seated.view if shell.seated else 0, shell.chain.head.height)
                for shell in self.shells.values()
            )
            raise Violation("L1", f"nothing becomes final any more: epochs, views and heights {slots}")

    def _end(self) -> None:
        """Compare all nodes, and count."""
        result, shells = self.result, list(self.shells.values())
        for shell in shells:
            if shell.chain.ledger.root != self.watch.roots[shell.chain.head.height]:
                raise Violation("S9", "two nodes at one height have different states")
            shell.chain.ledger.verify_supply()
            self.watch.follow(shell.disk.chain)
        self._verify_punished()
        self._count_seats()
        result.trace = self.world.trace_hash
        result.events, result.messages = self.world.events, self.network.sent
        result.blocks, result.nullified = len(self.watch.chain) - 1, self.watch.nullified
        result.epochs = shells[0].chain.ledger.epoch
        result.equivocations, result.evidence = self.adversary.equivocations, len(self.watch.evidence)
        result.refused = sum(sum(shell.refused.values()) for shell in shells)

    def _verify_punished(self) -> None:
        """S11: the chain has punished nobody but the guilty."""
        ledger = next(iter(self.shells.values())).chain.ledger
        values = (decode_value(value) for _, value in ledger.tree.items())
        nodes = {value.node for value in values if isinstance(value, Offence)}
        self.result.punished = len(nodes)
        if not nodes <= {self.roster.nodes[number] for number in self.scenario.byzantine}:
            raise Violation("S11", "an honest node has been punished")

    def _count_seats(self) -> None:
        self.result.reveals = sum(header.reveal != NOTHING for header in self.watch.chain.values())
        committees = [self.watch.committees[epoch] for epoch in sorted(self.watch.committees)]
        for before, after in pairwise(committees):
            self.result.reseated += before.in_epoch(after.epoch) != after
            for index, member in enumerate(after.members):
                old = before.index_of(member.node)
                self.result.joined += old is None
                self.result.shifted += old not in (None, index)


def _describe(message: Message) -> str:
    """Return one line that differs for different messages."""
    match message:
        case SignedVote(vote):
            return f"{vote.kind.name} {vote.epoch}.{vote.view} {vote.block_hash.hex()[:8]} by {vote.signer}"
        case VoteCertificate():
            signers = [index for index, _ in message.signatures]
            return f"{message.kind.name}* {message.epoch}.{message.view} {message.block_hash.hex()[:8]} by {signers}"
        case Proposal(block):
            header = block.header
            return f"PROPOSAL {header.epoch}.{header.view} {block.hash.hex()[:8]} on {header.parent_hash.hex()[:8]}"
        case Ask():
            return f"ASK {message.epoch}.{message.view}"
