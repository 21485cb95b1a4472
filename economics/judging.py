"""Which proposals this node may vote for: what it can check itself (rule 2), and what its shell says of the rest."""

from collections.abc import Callable
from enum import Enum, auto

from economics.block import BlockHeader, Proposal
from economics.branches import Branches, Lack
from economics.crypto import Digest
from economics.effects import Effect, Judge, Keep
from economics.epoch import Epoch


class Verdict(Enum):
    """What is thought of a proposal."""

    PENDING = auto()
    """The shell was asked."""
    GOOD = auto()
    BAD = auto()


class Judging:
    """Verdicts on the proposals that `Branches` holds."""

    def __init__(
        self,
        epoch: Epoch,
        branches: Branches,
        *,
        emit: Callable[[Effect], None],
        lack: Callable[[Lack], None],
    ) -> None:
        self._epoch = epoch
        self._branches = branches
        self._emit = emit
        self._lack = lack
        self._verdicts: dict[Digest, Verdict] = {}
        self._senders: dict[Digest, int | None] = {}
        self._kept: set[Digest] = set()

    def verdict(self, block_hash: Digest) -> Verdict | None:
        return self._verdicts.get(block_hash)

    def settle(self, block_hash: Digest, verdict: Verdict) -> Verdict:
        """Note a verdict; it is never revised."""
        self._verdicts[block_hash] = verdict
        return verdict

    def note_sender(self, block_hash: Digest, sender: int | None) -> None:
        """Remember who sent a proposal: it has the transactions too."""
        self._senders[block_hash] = sender

    def judge(self, proposal: Proposal, *, notarized: bool = False) -> Verdict | None:
        """Return the verdict; have the shell judge once all that the block builds on is held (rule 2, b to d).

        Of a block that is `notarized` a quorum has seen the nullifications behind it.
        """
        header = proposal.block.header
        block_hash = header.hash
        verdict = self._verdicts.get(block_hash)
        if verdict is not None:
            return verdict
        if self._misses_final(header):
            return self.settle(block_hash, Verdict.BAD)
        gap = None if notarized else self._branches.first_not_nullified(header.parent_view, header.view)
        parent = self._branches.header(header.parent_hash)
        if gap is not None:
            self._lack(Lack(gap, None, header.leader))
        if parent is None:
            self._lack(Lack(header.parent_view, header.parent_hash, header.leader, header.height - 1))
        if gap is not None or parent is None:
            return None
        if not self._epoch.follows(header, parent):
            return self.settle(block_hash, Verdict.BAD)
        self._emit(Judge(proposal, parent, self._senders.get(block_hash)))
        return self.settle(block_hash, Verdict.PENDING)

    def _misses_final(self, header: BlockHeader) -> bool:
        """Return whether a block builds neither on the last final block nor above it, or names a false root."""
        if (header.parent_view == 0) != (header.parent_hash == self._epoch.root_hash):
            return True
        final_view = self._branches.final_view
        on_it = header.parent_view == final_view
        return header.parent_view < final_view or (on_it and header.parent_hash != self._branches.final_hash)

    def keep(self, proposal: Proposal) -> None:
        """Have a block made durable, once, before the first own vote for it (S10)."""
        block_hash = proposal.block.hash
        if block_hash not in self._kept:
            self._kept.add(block_hash)
            self._emit(Keep(proposal))

    def restore(self, block_hash: Digest) -> None:
        """Note that a block was kept before a restart, hence judged good."""
        self._kept.add(block_hash)
        self.settle(block_hash, Verdict.GOOD)

    def forget(self) -> None:
        """Forget what was thought of blocks that are no longer held."""
        held = self._branches.proposal
        self._verdicts = {block_hash: verdict for block_hash, verdict in self._verdicts.items() if held(block_hash)}
        self._senders = {block_hash: sender for block_hash, sender in self._senders.items() if held(block_hash)}
        self._kept = {block_hash for block_hash in self._kept if held(block_hash)}
