"""Runs a scenario: builds the members, lets both acts happen, and tells what was seen. Raises `Violation`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from economics.arguments import Evidence, Operation, Transfer
from economics.block import BlockHeader, Proposal, genesis_header, leader_of
from economics.committee import Committee, Member
from economics.consensus import Engine
from economics.crypto import NodeId, OwnerId
from economics.effects import Ask, Guilty, Message
from economics.errors import Rejected
from economics.genesis import Genesis, GenesisAccount
from economics.ledger import Ledger
from economics.transactions import (
    SignedTransaction,
    Transaction,
    build,
    least_fee,
)
from economics.votes import SignedVote, VoteCertificate
from tests.simulation.byzantine import Adversary
from tests.simulation.invariants import Violation, Watch
from tests.simulation.keys import Signer, make_signer, make_verify
from tests.simulation.network import Network
from tests.simulation.scenario import Scenario
from tests.simulation.shell import Identity, Payload, Shell, Transactions
from tests.simulation.world import World

GENESIS_MS = 1_700_000_000_000
ACCOUNTS = 6
EVIDENCE_ACCOUNT = 3
PROBE_ACCOUNTS = (4, 5)
"""What they send in the second act is known to all: it must be included (L5)."""
FIRST_ACCOUNT = 1_000
BALANCE_FROST = 10**12
HONEST_LEADERS_MAX = 8
"""L2 and L5: so many views with an honest leader that is up, and the second act's transactions are final everywhere.

One would do if all began at once; some are spent on catching up, on ending an epoch and on what lay about before: 7 is
the most that 2,000 seeds took. Where wires still lose some and all votes of a quorum are needed, most views fail: each
percent of loss allows as many again (12 at most)."""


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
    crashes: int = 0
    restarts: int = 0
    equivocations: int = 0
    evidence: int = 0
    punished: int = 0
    refused: int = 0
    honest_leaders: int = 0
    """Views with a live honest leader that the second act took."""
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
    accounts: list[Signer] = field(init=False)
    nonces: list[int] = field(init=False)
    probes: list[OwnerId] = field(init=False)
    _slots: dict[tuple[int, int], None] = field(default_factory=dict)
    """Views that some honest member has voted in."""
    _roots: dict[int, BlockHeader] = field(default_factory=dict)
    _reported: int = 0
    _away: set[int] = field(default_factory=set)
    """Members that are off by an outage, whose end brings them back."""
    _calm: bool = False
    _have_fallen: bool = False

    def __post_init__(self) -> None:
        scenario = self.scenario
        self.result = Result(scenario.seed)
        self.world = World(scenario.seed, log=self.log)
        signers = [make_signer(index, is_real=scenario.is_real) for index in range(len(scenario.shards))]
        self.accounts = [make_signer(FIRST_ACCOUNT + index, is_real=scenario.is_real) for index in range(ACCOUNTS)]
        self.nonces = [0] * ACCOUNTS
        self.probes = [OwnerId(self.accounts[account].public) for account in PROBE_ACCOUNTS]
        self.genesis = self._make_genesis(signers)
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
        self.watch = Watch(self.genesis, origin[1], verify, scenario.byzantine, self._overhear, self._went_down)
        self.shells = {
            index: Shell(
                Identity(index, signer.sign, verify, (scenario.skews_ms or (0,) * len(signers))[index]),
                world=self.world,
                network=self.network,
                observer=self.watch,
                genesis=self.genesis,
                origin=origin,
                engine_type=Engine,
                checks_bodies=scenario.is_real,
            )
            for index, signer in enumerate(signers)
            if index not in scenario.faulty
        }
        self.adversary = Adversary(
            world=self.world,
            network=self.network,
            genesis=self.genesis,
            signers={index: signers[index] for index in sorted(scenario.byzantine)},
            foreign=lambda index, message: signers[index].sign(message),
            honest=self.shells,
            style=scenario.style,
            tempo_ms=scenario.tempo_ms,
        )

    def _make_genesis(self, signers: list[Signer]) -> Genesis:
        owner = OwnerId(self.accounts[0].public)
        members = tuple(
            Member(NodeId(signer.public), owner, shards, ())
            for signer, shards in zip(signers, self.scenario.shards, strict=True)
        )
        accounts = tuple(
            GenesisAccount(key, BALANCE_FROST) for key in sorted(OwnerId(account.public) for account in self.accounts)
        )
        return Genesis("simulation", GENESIS_MS, 1_000, members, accounts, self.scenario.parameters)

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
        if isinstance(message, SignedVote) and message.vote.signer == sender:
            slot = (message.vote.epoch, message.vote.view)
            if slot not in self._slots:
                self._begin_view(slot)
        self.adversary.overhear(sender, message)

    def _begin_view(self, slot: tuple[int, int]) -> None:
        self._slots[slot] = None
        self.result.views += 1
        if not self._calm:
            return
        root = next((shell.chain.root_header for shell in self.up() if shell.chain.ledger.epoch == slot[0]), None)
        if root is not None:
            leader = leader_of(slot[1], root_hash=root.hash, committee=Committee(slot[0], self.genesis.members))
            self.result.honest_leaders += leader in self.shells

    def up(self) -> list[Shell]:
        return [shell for shell in self.shells.values() if shell.is_up]

    # Life and death

    def _went_down(self, shell: Shell) -> None:
        self.result.crashes += 1
        if shell.index in self._away:
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
        self.world.note("boot", shell.index)
        shell.boot()
        if shell.life > 1:
            self.result.restarts += 1
            for other in self.shells.values():
                if other is not shell:
                    other.greet(shell.index)
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
            shell.receive(shell.index, Transactions((signed,)))
        if not to_all:
            for shell in self.shells.values():
                if shell is not chosen[0]:
                    self.network.send(chosen[0].index, shell.index, Transactions((signed,)))

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
        self._away.discard(shell.index)
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
        votes_before = dict(self.watch.last_votes)
        height = max(shell.chain.head.height for shell in self.shells.values())
        self._await(partial(self._has_recovered, height, votes_before))

    def _has_recovered(self, height: int, votes_before: dict[int, tuple[int, int]]) -> bool:
        """Return whether L2, L4 and L5 have come true: new blocks, with what was published, everywhere, and votes."""
        shells = list(self.shells.values())
        bound = HONEST_LEADERS_MAX * (1 + self.scenario.calm.loss)
        if self.result.honest_leaders > bound:
            raise Violation("L2", f"{bound} honest leaders after the calm began have not sufficed")
        first = shells[0]
        return all(
            shell.is_up
            and shell.chain.head.height >= height + 2
            and shell.chain.head == first.chain.head
            and all(shell.chain.ledger.account(owner).nonce for owner in self.probes)
            and self.watch.last_votes.get(shell.index, (0, 0)) > votes_before.get(shell.index, (0, 0))
            for shell in shells
        )

    def _await(self, is_done: Callable[[], bool]) -> None:
        if not self.world.run(is_done, until_ms=self.world.now_ms + self.scenario.calm_ms):
            chains = ((shell.chain, shell.engine.view) for shell in self.shells.values())
            slots = sorted((chain.ledger.epoch, view, chain.head.height) for chain, view in chains)
            raise Violation("L1", f"nothing becomes final any more: epochs, views and heights {slots}")

    def _end(self) -> None:
        """Compare all members, and count."""
        result, shells = self.result, list(self.shells.values())
        for shell in shells:
            if shell.chain.ledger.root != shells[0].chain.ledger.root:
                raise Violation("S9", "two members at one height have different states")
            shell.chain.ledger.verify_supply()
        self._verify_punished()
        result.trace = self.world.trace_hash
        result.events, result.messages = self.world.events, self.network.sent
        result.blocks, result.nullified = len(self.watch.chain) - 1, self.watch.nullified
        result.epochs = shells[0].chain.ledger.epoch
        result.equivocations, result.evidence = self.adversary.equivocations, len(self.watch.evidence)
        result.refused = sum(sum(shell.refused.values()) for shell in shells)

    def _verify_punished(self) -> None:
        """S11: the chain has punished nobody but the guilty."""
        full = self.genesis.parameters.stake_frost_per_shard
        ledger = next(iter(self.shells.values())).chain.ledger
        for index, member in enumerate(self.genesis.members):
            node = ledger.node(member.node)
            is_whole = node is not None and node.stake_frost == member.shards * full
            self.result.punished += not is_whole
            if not is_whole and index not in self.scenario.byzantine:
                raise Violation("S11", f"honest member {index} has been punished")


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
