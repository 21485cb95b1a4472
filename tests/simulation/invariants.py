"""What must hold whatever the adversary does: S1 to S11, seen from outside. Believes no variable of an engine.

Every statement that honest members sign is counted, and Byzantine members count as having signed everything, for both
sides: what a quorum could then prove is held against the rules, whether or not somebody puts it together. That no two
contradictory quorums are possible even so is what n > 3f gives, and it finds a fault long before a fork.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from economics.block import Block, BlockHeader, Finality
from economics.crypto import Digest
from economics.effects import Ask, Guilty, Message
from economics.errors import Rejected
from economics.genesis import Genesis
from economics.votes import Kind, SignedVote, Verify, Vote, VoteCertificate
from tests.simulation.shell import Shell

Slot = tuple[int, int]
"""(epoch, view)"""
TAGS = {
    kind: f"p2pnode/1 vote{letter}".encode("ascii").ljust(16, b"\0") for kind, letter in zip(Kind, "NXF", strict=True)
}


class Violation(AssertionError):
    """An invariant is broken; `rule` is its name."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule


def vote_bytes(vote: Vote, chain_id: Digest) -> bytes:
    """Return the signed bytes of a vote, written from FORMATS.md 9 and not by the code under test."""
    numbers = vote.epoch.to_bytes(8, "big") + vote.view.to_bytes(8, "big")
    return TAGS[vote.kind] + chain_id + numbers + vote.block_hash + vote.signer.to_bytes(2, "big")


@dataclass(slots=True)
class Statements:
    """What honest members have signed for one view."""

    notarize: dict[Digest, set[int]] = field(default_factory=dict)
    finalize: dict[Digest, set[int]] = field(default_factory=dict)
    nullify: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Watch:
    """Sees every message, certificate and final block of the honest members."""

    genesis: Genesis
    root: BlockHeader
    verify: Verify
    byzantine: frozenset[int]
    overhear: Callable[[int, Message], None]
    """Tells the adversary."""
    restart: Callable[[Shell], None]
    """Sees to a member that went down."""
    statements: dict[Slot, Statements] = field(default_factory=dict)
    headers: dict[Digest, BlockHeader] = field(default_factory=dict)
    chain: dict[int, BlockHeader] = field(default_factory=dict)
    """The final header of each height."""
    roots: dict[int, Digest] = field(default_factory=dict)
    heights: dict[int, int] = field(default_factory=dict)
    """Member -> its highest final height, over all its lives."""
    last_votes: dict[int, Slot] = field(default_factory=dict)
    evidence: list[Guilty] = field(default_factory=list)
    nullified: int = 0
    _seen: set[tuple[int, SignedVote]] = field(default_factory=set)
    _valid: set[VoteCertificate] = field(default_factory=set)
    _shards: tuple[int, ...] = ()
    _quorum: int = 0
    _spare: int = 0
    """The shards of the Byzantine members."""

    def __post_init__(self) -> None:
        self.chain[0] = self.headers[self.root.hash] = self.root
        self._shards = tuple(member.shards for member in self.genesis.members)
        total = sum(self._shards)
        self._quorum = total - (total - 1) // 3
        self._spare = self._weight(self.byzantine)

    def _weight(self, members: Iterable[int]) -> int:
        return sum(self._shards[index] for index in members)

    def is_possible(self, honest: set[int]) -> bool:
        """Return whether these and the Byzantine members are a quorum."""
        return bool(honest) and self._weight(honest) + self._spare >= self._quorum

    # The wire

    def sent(self, shell: Shell, message: Message) -> None:
        match message:
            case SignedVote(vote) if vote.signer == shell.index:
                if (shell.index, message) not in self._seen:
                    self._seen.add((shell.index, message))
                    self._own_vote(shell, message)
            case VoteCertificate():
                self.held(shell, message)
            case Ask() | SignedVote():
                pass
            case _:
                header = message.block.header
                self.headers[message.block.hash] = header
                if header.leader == shell.index and message.block.hash not in shell.disk.kept:
                    raise Violation("S8", f"member {shell.index} proposes at view {header.view} what it may forget")
        self.overhear(shell.index, message)

    def _own_vote(self, shell: Shell, signed: SignedVote) -> None:
        vote, member = signed.vote, shell.index
        if signed not in shell.disk.votes:
            raise Violation("S8", f"member {member} sends {vote.kind.name} of view {vote.view} that is not durable")
        if vote.kind is not Kind.NULLIFY and vote.block_hash not in shell.disk.kept:
            raise Violation("S10", f"member {member} votes {vote.kind.name} at view {vote.view} for what it lacks")
        slot = (vote.epoch, vote.view)
        self.last_votes[member] = max(self.last_votes.get(member, slot), slot)
        said = self.statements.setdefault(slot, Statements())
        match vote.kind:
            case Kind.NOTARIZE:
                self._once(member, vote, said.notarize)
            case Kind.FINALIZE:
                self._once(member, vote, said.finalize)
            case Kind.NULLIFY:
                was_possible = self.is_possible(said.nullify)
                said.nullify.add(member)
                self.nullified += self.is_possible(said.nullify) and not was_possible
        finalizes = any(member in members for members in said.finalize.values())
        if finalizes and member in said.nullify:
            raise Violation("S7", f"member {member} finalizes and nullifies view {vote.view}")
        self._verify_view(slot, said)

    def _once(self, member: int, vote: Vote, said: dict[Digest, set[int]]) -> None:
        said.setdefault(vote.block_hash, set()).add(member)
        if sum(member in members for members in said.values()) > 1:
            raise Violation("S7", f"member {member} votes {vote.kind.name} twice at view {vote.view}")

    def _verify_view(self, slot: Slot, said: Statements) -> None:
        finalized = [block_hash for block_hash, members in said.finalize.items() if self.is_possible(members)]
        if finalized and self.is_possible(said.nullify):
            raise Violation("S2", f"epoch and view {slot} can be finalized and nullified")
        notarized = [block_hash for block_hash, members in said.notarize.items() if self.is_possible(members)]
        if len(notarized) > 1 or len(finalized) > 1:
            raise Violation("S3", f"two blocks can be notarized or finalized at epoch and view {slot}")
        if any(block_hash not in notarized for block_hash in finalized):
            raise Violation("S4", f"what is finalized at epoch and view {slot} is not notarized")

    # Certificates

    def held(self, shell: Shell, certificate: VoteCertificate) -> None:
        """S6, for what an honest member keeps or passes on."""
        if certificate.epoch != shell.chain.ledger.epoch:
            raise Violation("S6", f"member {shell.index} takes a certificate of epoch {certificate.epoch} for its own")
        if certificate in self._valid:
            return
        indices = [index for index, _ in certificate.signatures]
        if indices != sorted(set(indices)) or not indices or indices[-1] >= len(self._shards):
            raise Violation("S6", "the signers of a certificate are not distinct members in order")
        weight, lightest = self._weight(indices), min(self._shards[index] for index in indices)
        if not self._quorum <= weight < self._quorum + lightest:
            raise Violation("S6", f"a certificate of view {certificate.view} weighs {weight} of {self._quorum}")
        for index, signature in certificate.signatures:
            vote = Vote(certificate.kind, certificate.epoch, certificate.view, certificate.block_hash, index)
            try:
                self.verify(self.genesis.members[index].node, vote_bytes(vote, self.genesis.chain_id), signature)
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
                raise Violation("S1", f"height {header.height} is final twice, at member {shell.index} another")
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
            if not self.is_possible(said.nullify):
                raise Violation("S5", f"height {header.height} skips view {view}, which is not nullified")
            if any(self.is_possible(members) for members in said.finalize.values()):
                raise Violation("S5", f"height {header.height} skips view {view}, which is final")
        said = self.statements.get((header.epoch, header.view), Statements())
        if not self.is_possible(said.notarize.get(header.hash, set())):
            raise Violation("S4", f"height {header.height} is final and was not notarized")
        self.chain[header.height] = header

    def executed(self, shell: Shell, header: BlockHeader, root: Digest) -> None:
        """S9, and for blocks executed again after a start too."""
        known = self.roots.setdefault(header.height, root)
        if known != root:
            raise Violation("S9", f"member {shell.index} has another state root at height {header.height}")
        if self.chain.get(header.height) != header:
            raise Violation("S9", f"member {shell.index} executes what is not final at height {header.height}")
        self.heights[shell.index] = max(self.heights.get(shell.index, 0), header.height)

    def started(self, shell: Shell) -> None:
        """S9: a start brings back all that was final."""
        if shell.chain.head.height < self.heights.get(shell.index, 0):
            raise Violation("S9", f"member {shell.index} lost final blocks")

    def accused(self, shell: Shell, guilty: Guilty) -> None:
        """S11: evidence names who is guilty, and proves it."""
        signers = {_accused(item) for item in (guilty.first, guilty.second)}
        if len(signers) != 1 or not signers <= self.byzantine:
            raise Violation("S11", f"member {shell.index} accuses {sorted(signers)}")
        if guilty.first == guilty.second:
            raise Violation("S11", "evidence of one thing said once")
        self.evidence.append(guilty)

    def went_down(self, shell: Shell) -> None:
        self.restart(shell)


def _accused(exhibit: object) -> int:
    if isinstance(exhibit, SignedVote):
        return exhibit.vote.signer
    assert isinstance(exhibit, tuple)
    header = exhibit[0]
    assert isinstance(header, BlockHeader)
    return header.leader
