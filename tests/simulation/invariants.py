"""What must hold whatever the adversary does: S1 to S11, and E1 to E3 where committees change; seen from outside.

And what must come true once the wires behave: L2, L4 and L5, each with its bound (`Recovery`).

Nothing here believes a variable of an engine. E1: an epoch has one committee, for every node. E2: nobody votes in an
epoch in which it has no seat, under any index. E3: who follows boundaries alone, from genesis, finds the root and the
committee of every epoch. All others hold in each epoch with its own committee.

Every statement that honest members sign is counted, and Byzantine members count as having signed everything, for both
sides: what a quorum could then prove is held against the rules, whether or not somebody puts it together. That no two
contradictory quorums are possible even so is what n > 3f gives, and it finds a fault long before a fork.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from economics.block import Block, BlockHeader, Finality
from economics.committee import Committee
from economics.crypto import TAG_BYTES, Digest, OwnerId
from economics.effects import Ask, Guilty, Message
from economics.errors import Rejected
from economics.genesis import Genesis
from economics.ledger import Ledger
from economics.light import Boundary, Trusted, follow
from economics.votes import Kind, SignedVote, Verify, Vote, VoteCertificate
from tests.simulation.disk import FinalBlock
from tests.simulation.keys import Roster
from tests.simulation.shell import Shell

Slot = tuple[int, int]
"""(epoch, view)"""
TAGS = {
    kind: f"p2pnode/1 vote{letter}".encode("ascii").ljust(16, b"\0") for kind, letter in zip(Kind, "NXF", strict=True)
}
HONEST_LEADERS_MAX = 8
"""L2 and L5: so many views with an honest leader that is up, and what was published in the calm is final.

One would do if all began at once; some are spent on catching up, on ending an epoch and on what lay about before: 7 is
the most that 2,000 seeds took. Where wires still lose some and all votes of a quorum are needed, most views fail: each
percent of loss allows as many again (12 at most)."""
CATCH_UP_TIMEOUTS = 15
"""L4: so many leader timeouts, and everybody has caught up who is in the newest epoch and has voted: an answer that
did not come is asked for anew after one or two. Each percent of loss allows as many again, as for views."""
SILENT_EPOCHS = 2
"""And so many epochs more for who lost its disk. It asks what it may have signed, and nobody can tell while nothing of
an epoch is certified: the rest of the epoch that it catches up in may be too short. In the whole one after it, it is
told before the boundary is, as a block is due at the cut-off: then it votes in the next (`Engine.quiet_next_epoch`)."""
EPOCH_TIMEOUTS = 3
"""And so many more for each epoch that a node is behind: an answer ends with an epoch, and who was asked for the next
may be silent or behind, too."""


class Violation(AssertionError):
    """An invariant is broken; `rule` is its name."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule


class Unbounded(Exception):
    """The scenario has let the faulty have more than f shards: what follows would prove nothing."""


def vote_bytes(vote: Vote, chain_id: Digest) -> bytes:
    """Return the signed bytes of a vote, written from FORMATS.md 9 and not by the code under test."""
    numbers = vote.epoch.to_bytes(8, "big") + vote.view.to_bytes(8, "big")
    return TAGS[vote.kind] + chain_id + numbers + vote.block_hash + vote.signer.to_bytes(2, "big")


@dataclass(slots=True)
class Statements:
    """What honest nodes have signed for one view."""

    notarize: dict[Digest, set[int]] = field(default_factory=dict)
    finalize: dict[Digest, set[int]] = field(default_factory=dict)
    nullify: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Watch:
    """Sees every message, certificate and final block of the honest nodes, who are known by number."""

    genesis: Genesis
    roster: Roster
    root: BlockHeader
    verify: Verify
    byzantine: frozenset[int]
    overhear: Callable[[int, Message], None]
    """Tells the adversary."""
    restart: Callable[[Shell], None]
    """Sees to a node that went down."""
    is_bounded: Callable[[Committee], bool]
    """Whether the faulty have no more of a committee than they may, as a scenario must see to."""
    statements: dict[Slot, Statements] = field(default_factory=dict)
    headers: dict[Digest, BlockHeader] = field(default_factory=dict)
    chain: dict[int, BlockHeader] = field(default_factory=dict)
    """The final header of each height."""
    roots: dict[int, Digest] = field(default_factory=dict)
    heights: dict[int, int] = field(default_factory=dict)
    """Node -> its highest final height, over all its lives."""
    committees: dict[int, Committee] = field(default_factory=dict)
    """Of each epoch, since somebody executed what fixes it."""
    last_votes: dict[int, Slot] = field(default_factory=dict)
    evidence: list[Guilty] = field(default_factory=list)
    nullified: int = 0
    lost: set[int] = field(default_factory=set)
    """Nodes whose disk has forgotten something: what they proposed then they may hear again, and pass on."""
    _seen: set[tuple[int, SignedVote]] = field(default_factory=set)
    _valid: set[VoteCertificate] = field(default_factory=set)
    _spare: dict[int, int] = field(default_factory=dict)
    """Epoch -> the shards of the Byzantine members."""
    _told: dict[int, tuple[int, Digest]] = field(default_factory=dict)
    """Node -> the epoch that it is in and what it takes for the next committee."""

    def __post_init__(self) -> None:
        self.chain[0] = self.headers[self.root.hash] = self.root
        self._seat(self.genesis.committee)

    def _seat(self, committee: Committee) -> None:
        """E1, and that the scenario keeps what it promises."""
        known = self.committees.setdefault(committee.epoch, committee)
        if known != committee:
            raise Violation("E1", f"two committees in epoch {committee.epoch}")
        if committee.epoch not in self._spare:
            self._spare[committee.epoch] = self.roster.weight(committee, self.byzantine)
            if not self.is_bounded(committee):
                raise Unbounded(f"the faulty have too many shards in epoch {committee.epoch}")

    def is_possible(self, honest: set[int], epoch: int) -> bool:
        """Return whether these and the Byzantine members are a quorum of an epoch."""
        committee = self.committees[epoch]
        total = len(committee.holders)
        quorum = total - (total - 1) // 3
        return bool(honest) and self.roster.weight(committee, honest) + self._spare[epoch] >= quorum

    # The wire

    def sent(self, shell: Shell, message: Message) -> None:
        match message:
            case SignedVote(vote) if vote.signer == self._index(shell, vote.epoch):
                if (shell.number, message) not in self._seen:
                    self._seen.add((shell.number, message))
                    self._own_vote(shell, message)
            case VoteCertificate():
                self.held(shell, message)
            case Ask() | SignedVote():
                pass
            case _:
                header = message.block.header
                is_heard_again = message.block.hash in self.headers and shell.number in self.lost
                self.headers[message.block.hash] = header
                leads = header.leader == self._index(shell, header.epoch) and not is_heard_again
                if leads and message.block.hash not in shell.disk.kept:
                    raise Violation("S8", f"node {shell.number} proposes at view {header.view} what it may forget")
        self.overhear(shell.number, message)

    def _index(self, shell: Shell, epoch: int) -> int | None:
        committee = self.committees.get(epoch)
        return None if committee is None else committee.index_of(shell.node)

    def signed(self, shell: Shell, message: bytes) -> None:
        """E2: a node signs no vote but as the member that it is."""
        if message[:TAG_BYTES] not in TAGS.values():
            return
        epoch, signer = int.from_bytes(message[48:56], "big"), int.from_bytes(message[-2:], "big")
        if signer != self._index(shell, epoch):
            raise Violation("E2", f"node {shell.number} votes as member {signer} of epoch {epoch}")

    def _own_vote(self, shell: Shell, signed: SignedVote) -> None:
        vote, member = signed.vote, shell.number
        if signed not in shell.disk.votes:
            raise Violation("S8", f"node {member} sends {vote.kind.name} of view {vote.view} that is not durable")
        if vote.kind is not Kind.NULLIFY and vote.block_hash not in shell.disk.kept:
            raise Violation("S10", f"node {member} votes {vote.kind.name} at view {vote.view} for what it lacks")
        slot = (vote.epoch, vote.view)
        self.last_votes[member] = max(self.last_votes.get(member, slot), slot)
        said = self.statements.setdefault(slot, Statements())
        match vote.kind:
            case Kind.NOTARIZE:
                self._once(member, vote, said.notarize)
            case Kind.FINALIZE:
                self._once(member, vote, said.finalize)
            case Kind.NULLIFY:
                was_possible = self.is_possible(said.nullify, vote.epoch)
                said.nullify.add(member)
                self.nullified += self.is_possible(said.nullify, vote.epoch) and not was_possible
        finalizes = any(member in members for members in said.finalize.values())
        if finalizes and member in said.nullify:
            raise Violation("S7", f"node {member} finalizes and nullifies view {vote.view}")
        self._verify_view(slot, said)

    def _once(self, member: int, vote: Vote, said: dict[Digest, set[int]]) -> None:
        said.setdefault(vote.block_hash, set()).add(member)
        if sum(member in members for members in said.values()) > 1:
            raise Violation("S7", f"node {member} votes {vote.kind.name} twice at view {vote.view}")

    def _verify_view(self, slot: Slot, said: Statements) -> None:
        epoch, _ = slot
        finalized = [block_hash for block_hash, members in said.finalize.items() if self.is_possible(members, epoch)]
        if finalized and self.is_possible(said.nullify, epoch):
            raise Violation("S2", f"epoch and view {slot} can be finalized and nullified")
        notarized = [block_hash for block_hash, members in said.notarize.items() if self.is_possible(members, epoch)]
        if len(notarized) > 1 or len(finalized) > 1:
            raise Violation("S3", f"two blocks can be notarized or finalized at epoch and view {slot}")
        if any(block_hash not in notarized for block_hash in finalized):
            raise Violation("S4", f"what is finalized at epoch and view {slot} is not notarized")

    # Certificates

    def held(self, shell: Shell, certificate: VoteCertificate) -> None:
        """S6, for what an honest member keeps or passes on."""
        if certificate.epoch != shell.chain.ledger.epoch:
            raise Violation("S6", f"node {shell.number} takes a certificate of epoch {certificate.epoch} for its own")
        if certificate in self._valid:
            return
        members = self.committees[certificate.epoch].members
        shards = [member.shards for member in members]
        quorum = sum(shards) - (sum(shards) - 1) // 3
        indices = [index for index, _ in certificate.signatures]
        if indices != sorted(set(indices)) or not indices or indices[-1] >= len(members):
            raise Violation("S6", "the signers of a certificate are not distinct members in order")
        weight, lightest = sum(shards[index] for index in indices), min(shards[index] for index in indices)
        if not quorum <= weight < quorum + lightest:
            raise Violation("S6", f"a certificate of view {certificate.view} weighs {weight} of {quorum}")
        for index, signature in certificate.signatures:
            vote = Vote(certificate.kind, certificate.epoch, certificate.view, certificate.block_hash, index)
            try:
                self.verify(members[index].node, vote_bytes(vote, self.genesis.chain_id), signature)
            except Rejected as fault:
                raise Violation("S6", f"member {index} did not sign what a certificate says") from fault
        self._valid.add(certificate)

    # Final blocks

    def finalized(self, shell: Shell, blocks: Sequence[Block], finality: Finality) -> None:
        for block in blocks:
            header = block.header
            self.headers[block.hash] = header
            known = self.chain.get(header.height)
            if known is not None and known != header:
                raise Violation("S1", f"height {header.height} is final twice, at node {shell.number} another")
            if known is None:
                self._extend(header)
        last = blocks[-1].header
        for link in finality.links:
            if link.parent_hash != last.hash:
                raise Violation("S5", "the links of a finality do not join")
            last = link
        proof = finality.certificate
        if (proof.kind, proof.epoch, proof.view, proof.block_hash) != (Kind.FINALIZE, last.epoch, last.view, last.hash):
            raise Violation("S6", f"the finality of height {blocks[-1].header.height} is of another block")
        self.held(shell, proof)

    def _extend(self, header: BlockHeader) -> None:
        """S5: what is final follows from what is final, and every skipped view can be nullified, none finalized."""
        parent = self.chain.get(header.height - 1)
        if parent is None or header.parent_hash != parent.hash:
            raise Violation("S5", f"height {header.height} is final and does not build on what is final below it")
        is_first = parent.epoch != header.epoch or parent == self.root
        first = 1 if is_first else parent.view + 1
        if header.view < first or header.parent_view != first - 1:
            raise Violation("S5", f"height {header.height} is of view {header.view} on view {header.parent_view}")
        for view in range(first, header.view):
            said = self.statements.get((header.epoch, view), Statements())
            if not self.is_possible(said.nullify, header.epoch):
                raise Violation("S5", f"height {header.height} skips view {view}, which is not nullified")
            if any(self.is_possible(members, header.epoch) for members in said.finalize.values()):
                raise Violation("S5", f"height {header.height} skips view {view}, which is final")
        said = self.statements.get((header.epoch, header.view), Statements())
        if not self.is_possible(said.notarize.get(header.hash, set()), header.epoch):
            raise Violation("S4", f"height {header.height} is final and was not notarized")
        self.chain[header.height] = header

    def executed(self, shell: Shell, header: BlockHeader, ledger: Ledger) -> None:
        """S9 and E1, and for blocks executed again after a start too."""
        known = self.roots.setdefault(header.height, ledger.root)
        if known != ledger.root:
            raise Violation("S9", f"node {shell.number} has another state root at height {header.height}")
        if self.chain.get(header.height) != header:
            raise Violation("S9", f"node {shell.number} executes what is not final at height {header.height}")
        self.heights[shell.number] = max(self.heights.get(shell.number, 0), header.height)
        told = (ledger.epoch, ledger.next_committee_hash)
        if self._told.get(shell.number) != told:
            self._told[shell.number] = told
            for committee in (ledger.committee, ledger.next_committee):
                if committee is not None:
                    self._seat(committee)

    def started(self, shell: Shell) -> None:
        """S9: a start brings back all that was final."""
        if shell.chain.head.height < self.heights.get(shell.number, 0):
            raise Violation("S9", f"node {shell.number} lost final blocks")

    def lost_disk(self, shell: Shell) -> None:
        """Ask no more that a node has again what its disk has lost."""
        self.lost.add(shell.number)
        self.heights.pop(shell.number, None)
        self._told.pop(shell.number, None)

    def follow(self, rows: Sequence[FinalBlock]) -> int:
        """E3, by what one node's disk holds; return how many epochs a light client went through."""
        parameters, trusted = self.genesis.parameters, Trusted(self.root, self.genesis.committee)
        for row, after in pairwise(rows):
            header = row.block.header
            if after.block.header.epoch == header.epoch:
                continue
            assert row.finality is not None, "a boundary is final by itself or by what builds on it"
            following = self.committees[header.epoch + 1]
            stays = following == trusted.committee.in_epoch(following.epoch)
            boundary = Boundary(header, row.finality, b"" if stays else following.encode())
            try:
                trusted = follow(trusted, boundary, parameters=parameters, verify=self.verify)
            except Rejected as fault:
                raise Violation("E3", f"a light client does not follow into epoch {following.epoch}") from fault
            if trusted != Trusted(self.chain[header.height], following):
                raise Violation("E3", f"a light client has another root or committee of epoch {following.epoch}")
        return trusted.epoch

    def accused(self, shell: Shell, guilty: Guilty) -> None:
        """S11: evidence names who is guilty, and proves it."""
        signers = {self._accused(item) for item in (guilty.first, guilty.second)}
        if len(signers) != 1 or not signers <= self.byzantine:
            raise Violation("S11", f"node {shell.number} accuses {sorted(signers)}")
        if guilty.first == guilty.second:
            raise Violation("S11", "evidence of one thing said once")
        self.evidence.append(guilty)

    def _accused(self, exhibit: object) -> int:
        """Return the number of who signed this."""
        if isinstance(exhibit, SignedVote):
            return self.roster.number(self.committees[exhibit.vote.epoch], exhibit.vote.signer)
        assert isinstance(exhibit, tuple)
        header = exhibit[0]
        assert isinstance(header, BlockHeader)
        return self.roster.number(self.committees[header.epoch], header.leader)

    def went_down(self, shell: Shell) -> None:
        self.restart(shell)


@dataclass(slots=True)
class Recovery:
    """What must come true in the second act, from its beginning on.

    L2 and L5: two more blocks are final, with what was published, within so many views with an honest leader that is
    up. Everywhere, where the committee stays: all who live are its members, and up. Where committees change that is
    not to be had in views, but within a time: a node without a seat asks for blocks once a timeout, in which ten views
    may pass, and one whose disk is lost in the second act is off for as long as its scenario says. So there L2 and L5
    are of the chain, as somebody has it, and L4 is of the nodes: from then on, and from the last start of a node on,
    everybody has it, and has voted if it has a seat, within a time that grows with the epochs that a node is behind.
    """

    is_mixed: bool
    """Whether committees change."""
    loss: int
    """How many percent of what is said gets lost even now."""
    shells: Sequence[Shell]
    probes: Sequence[OwnerId]
    """Whose transactions were published when the act began."""
    watch: Watch
    _height: int = field(init=False)
    _votes_before: dict[int, Slot] = field(init=False)
    _lives: list[int] = field(default_factory=list)
    _late_ms: int = 0
    """When L4 is broken for who has lost nothing; 0 while the chain has not gone on. An idle chain gives cause to vote
    once a heartbeat."""

    def __post_init__(self) -> None:
        self._height = 2 + max(shell.chain.head.height for shell in self.shells)
        self._votes_before = dict(self.watch.last_votes)

    def is_done(self, *, now_ms: int, honest_leaders: int) -> bool:
        """Return whether all has come true; raises `Violation` when it should have."""
        if not self._late_ms:
            self._verify_views(honest_leaders)
            if self.is_mixed and any(map(self._has_gone_on, self.shells)):
                self._begin(now_ms)
        elif self._lives != [shell.life for shell in self.shells]:
            self._begin(now_ms)
        heads = {shell.chain.head for shell in self.shells}
        if all(map(self._has_recovered, self.shells)) and (self.is_mixed or len(heads) == 1):
            return True
        late = [shell.number for shell in self.shells if self._is_late(shell, now_ms=now_ms)]
        if late and all(shell.is_up for shell in self.shells):
            raise Violation("L4", f"nodes {late} have not caught up, or not voted")
        return False

    def _verify_views(self, honest_leaders: int) -> None:
        bound = HONEST_LEADERS_MAX * (1 + self.loss)
        if honest_leaders > bound:
            raise Violation("L2", f"{bound} honest leaders after the calm began have not sufficed")

    def _begin(self, now_ms: int) -> None:
        """Give everybody its time, from now on."""
        self._lives = [shell.life for shell in self.shells]
        epochs = [shell.chain.ledger.epoch for shell in self.shells]
        timeouts = CATCH_UP_TIMEOUTS * (1 + self.loss) + EPOCH_TIMEOUTS * (max(epochs) - min(epochs))
        parameters = self.watch.genesis.parameters
        self._late_ms = now_ms + timeouts * parameters.timeout_ms + parameters.heartbeat_ms

    def _is_late(self, shell: Shell, *, now_ms: int) -> bool:
        silent_ms = SILENT_EPOCHS * self.watch.genesis.parameters.epoch_ms if shell.number in self.watch.lost else 0
        return 0 < self._late_ms < now_ms - silent_ms and not self._has_recovered(shell)

    def _has_gone_on(self, shell: Shell) -> bool:
        ledger, height = shell.chain.ledger, shell.chain.head.height
        return shell.is_up and height >= self._height and all(ledger.account(owner).nonce for owner in self.probes)

    def _has_recovered(self, shell: Shell) -> bool:
        never = (0, 0)
        voted = self.watch.last_votes.get(shell.number, never) > self._votes_before.get(shell.number, never)
        return self._has_gone_on(shell) and (shell.seated is None or voted)
