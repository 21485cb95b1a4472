"""A member's journal: votes, certificates and blocks as records of its vote log, and what of them still matters.

What binds is on disk when `write` returns; certificates alone may wait for the next write, in the order they came: the
argument for a node that has forgotten votes relies on it (`economics.ballot`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from economics.block import Proposal
from economics.consensus import Effect, Keep, Persist, Quiet
from economics.fields import sized, split_sized
from economics.genesis import Genesis
from economics.transactions import SignedTransaction
from economics.votes import SignedVote, VoteCertificate
from p2pnode.consensus.executor import Candidate
from p2pnode.consensus.links import FrameType
from p2pnode.consensus.votelog import VoteLog

LOG_BYTES_MAX = 8 << 20
"""The log is written anew with what still matters when it has grown so far."""
HEADER_EPOCH_AT = 16 + 32 + 2
"""In a header, behind its tag, chain ID and protocol."""
RIDERS_MAX = 64
"""Certificates that may wait for a write: more are written by themselves."""

Restored = SignedVote | VoteCertificate | Proposal


@dataclass(frozen=True, slots=True)
class Record:
    """What the log holds of one thing: its frame type, and the bytes of FORMATS.md 12 (a proposal with its bodies)."""

    kind: FrameType
    body: bytes

    @property
    def place(self) -> tuple[int, int]:
        """Return epoch and view, from where FORMATS.md 9 and 12 put them: decoding a block's bodies takes 0.1 s."""
        at = 2 * 4 + HEADER_EPOCH_AT if self.kind is FrameType.PROPOSAL else 1
        return int.from_bytes(self.body[at : at + 8], "big"), int.from_bytes(self.body[at + 8 : at + 16], "big")


def encode_kept(proposal: Proposal, transactions: Sequence[SignedTransaction]) -> bytes:
    """Return a proposal and the bodies of its transactions as one record."""
    return b"".join((sized(proposal.encode()), *(sized(signed.raw) for signed in transactions)))


class Journal:
    """The log of one member, with its live records in memory."""

    def __init__(self, votes: VoteLog, records: Sequence[tuple[int, bytes]], *, genesis: Genesis) -> None:
        self.votes = votes
        self.genesis = genesis
        self._riders: list[Record] = []
        self._live = [Record(FrameType(kind), body) for kind, body in records]
        """What the log holds above the head."""

    # --- writing -------------------------------------------------------------------------------------------------

    async def write(self, effects: Sequence[Effect], held: Callable[[Proposal], Candidate | None]) -> None:
        """Make durable what binds among these effects. `held` gives a block with its bodies; one that it gives no
        more has been executed, and is in the store."""
        fresh: list[Record] = []
        binds = False
        for effect in effects:
            match effect:
                case Persist(SignedVote() as vote):
                    fresh.append(Record(FrameType.VOTE, vote.encode()))
                    binds = True
                case Persist(VoteCertificate() as certificate):
                    fresh.append(Record(FrameType.CERTIFICATE, certificate.encode()))
                case Keep(proposal) if (candidate := held(proposal)) is not None:
                    fresh.append(Record(FrameType.PROPOSAL, encode_kept(proposal, candidate.transactions)))
                    binds = True
                case _:
                    pass
        self._riders += fresh
        if not binds and len(self._riders) < RIDERS_MAX:
            return
        records, self._riders = self._riders, []
        self._live += records
        await trio.to_thread.run_sync(self.votes.append, [(int(item.kind), item.body) for item in records])

    def forget(self, place: tuple[int, int]) -> None:
        """Forget what the log holds up to an epoch and view: it is executed and stored."""
        self._live = [record for record in self._live if record.place > place]

    async def prune(self, place: tuple[int, int]) -> None:
        """Do so, and drop it from the disk too where the log has grown large."""
        if self.votes.size <= LOG_BYTES_MAX:
            return
        self.forget(place)
        # Each record is judged by what it says: a vote that is logged while this runs must stay.
        await trio.to_thread.run_sync(self.votes.prune, lambda kind, body: Record(FrameType(kind), body).place > place)

    # --- reading -------------------------------------------------------------------------------------------------

    def restore(self, *, epoch: int, height: int) -> tuple[list[Restored], list[Candidate]]:
        """Return what the log says of an epoch, as the engine takes it, and the blocks above `height` with bodies."""
        restored: list[Restored] = []
        candidates: list[Candidate] = []
        for record in self._live:
            if record.place[0] != epoch:
                continue
            match record.kind:
                case FrameType.VOTE:
                    restored.append(SignedVote.decode(record.body))
                case FrameType.CERTIFICATE:
                    restored.append(VoteCertificate.decode(record.body))
                case _:
                    proposal, candidate = self._decode_kept(record.body)
                    if proposal.block.header.height > height:
                        restored.append(proposal)
                        candidates.append(candidate)
        return restored, candidates

    def _decode_kept(self, body: bytes) -> tuple[Proposal, Candidate]:
        chain_id, limit = self.genesis.chain_id, self.genesis.parameters.block_transactions_max
        head, *bodies = split_sized(body, "a kept proposal")
        proposal = Proposal.decode(head, chain_id=chain_id, transactions_max=limit)
        transactions = (SignedTransaction.decode(raw, chain_id=chain_id) for raw in bodies)
        return proposal, Candidate(proposal.block, tuple(transactions))


@dataclass(frozen=True, slots=True)
class Binding:
    """What binds a member over its restarts."""

    journal: Journal
    quiet: Quiet | None
    """Set where it may have signed more than the journal holds."""
    on_silenced: Callable[[], None]
    """Remembers that durably; blocking."""
    on_loud: Callable[[], None]
    """Remembers durably that the chain has passed all that it may have signed; blocking."""
