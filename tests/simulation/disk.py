"""What a simulated member finds again after a crash: records that were synced, and final blocks. Nothing else."""

from dataclasses import dataclass, field

from economics.block import Block, Finality, Proposal
from economics.transactions import SignedTransaction
from economics.votes import SignedVote, VoteCertificate


class PowerCut(Exception):
    """The node that was writing is off."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A proposal with the bodies of its transactions."""

    proposal: Proposal
    transactions: tuple[SignedTransaction, ...]


Record = SignedVote | VoteCertificate | Kept


def place_of(record: Record) -> tuple[int, int]:
    """Return epoch and view."""
    match record:
        case SignedVote(vote):
            return vote.epoch, vote.view
        case VoteCertificate():
            return record.epoch, record.view
        case Kept(proposal):
            return proposal.block.header.epoch, proposal.block.header.view


@dataclass(frozen=True, slots=True)
class FinalBlock:
    """A row of the chain; `finality` is of the last block of one write."""

    block: Block
    transactions: tuple[SignedTransaction, ...]
    finality: Finality | None


@dataclass(frozen=True, slots=True)
class Fuse:
    """Where the power fails: at the record of this number (from 1), before or after it is durable."""

    record: int
    is_durable: bool


@dataclass(slots=True)
class Disk:
    """One node's disk. What was written and not synced is gone after a cut, but for what happened to reach it."""

    log: list[Record] = field(default_factory=list)
    chain: list[FinalBlock] = field(default_factory=list)
    fuses: list[Fuse] = field(default_factory=list)
    votes: set[SignedVote] = field(default_factory=set)
    """Of the durable log, for quick questions."""
    kept: set[bytes] = field(default_factory=set)
    """Hashes of the blocks that are durable with their bodies."""
    is_quiet: bool = False
    """Marks that more may have been signed than is on this disk."""
    forgets: bool = False
    """A planted fault: `sync` returns before anything is durable."""
    _pending: list[Record] = field(default_factory=list)

    def write(self, record: Record) -> None:
        self._pending.append(record)

    @property
    def waiting(self) -> int:
        return len(self._pending)

    def sync(self) -> None:
        """Make durable what was written; raises `PowerCut` at a fuse, after which a prefix of it is durable."""
        first, last = len(self.log) + 1, len(self.log) + len(self._pending)
        fuse = next((fuse for fuse in self.fuses if first <= fuse.record <= last), None)
        if fuse is None:
            self._settle(last)
            return
        self.fuses.remove(fuse)
        self._settle(fuse.record if fuse.is_durable else fuse.record - 1)
        raise PowerCut

    def _settle(self, last: int) -> None:
        if self.forgets:
            return
        for record in self._pending[: last - len(self.log)]:
            self.log.append(record)
            match record:
                case SignedVote():
                    self.votes.add(record)
                case Kept(proposal):
                    self.kept.add(proposal.block.hash)
                case _:
                    pass
        self._pending.clear()

    def cut(self) -> None:
        """Lose what was not synced."""
        self._pending.clear()

    def roll_back(self, *, chain: int, log: int) -> None:
        """Be as this disk was when it held so little, 0 of either for a new one; what was signed since is forgotten."""
        self.chain[chain:] = []
        self.log[log:] = []
        self.fuses.clear()
        self._pending.clear()
        self.votes = {record for record in self.log if isinstance(record, SignedVote)}
        self.kept = {record.proposal.block.hash for record in self.log if isinstance(record, Kept)}
        self.kept.update(row.block.hash for row in self.chain)
        self.is_quiet = True

    def append(self, rows: list[FinalBlock]) -> None:
        """Store final blocks, all or none."""
        self.chain += rows
        self.kept.update(row.block.hash for row in rows)
