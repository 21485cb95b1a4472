"""Casting own votes and counting all: what is signed here is signed once, and who contradicts itself is found.

Own votes go one way only: the ballot allows it, it is persisted, then sent, then counted with the others'.
"""

from collections.abc import Callable

from economics.ballot import FOR_GOOD, Ballot, Silence
from economics.block import Proposal
from economics.crypto import Digest, Signature
from economics.effects import Ask, Broadcast, Effect, Guilty, Persist, Quiet, Silenced
from economics.epoch import Epoch
from economics.errors import Rejected
from economics.tally import Tally
from economics.votes import Kind, SignedVote, Vote, VoteCertificate


class Voting:
    """The votes of an epoch, own and others', and whether this node may vote at all."""

    def __init__(
        self,
        epoch: Epoch,
        *,
        sign: Callable[[bytes], Signature],
        emit: Callable[[Effect], None],
        adopt: Callable[[VoteCertificate], None],
        now_ms: int,
    ) -> None:
        """`adopt` is called with each certificate that a vote completes."""
        self._epoch = epoch
        self._sign = sign
        self._emit = emit
        self._adopt = adopt
        self.tally = Tally(epoch.committee)
        self.ballot = Ballot()
        self.silence: Silence | None = None
        self.forgotten_to = 0
        """Up to this view own votes may have been forgotten; 0: none were."""
        self.now_ms = now_ms
        self.listen_ms = now_ms
        """Nothing is cast before."""
        self.ask_ms = now_ms
        """When others are asked again for their highest certificate, while silent."""

    def can_act(self, view: int) -> bool:
        """Return whether this node may sign anything new in this view by now."""
        silent = self.silence is not None or self.now_ms < self.listen_ms
        return self._epoch.own is not None and not silent and view > self.ballot.floor

    def allows(self, kind: Kind, view: int, block_hash: Digest) -> bool:
        """Return whether such a vote would not contradict an own one; it may still be too early to cast it."""
        own = self._epoch.own
        return own is not None and self.ballot.allows(Vote(kind, self._epoch.committee.epoch, view, block_hash, own))

    def cast(self, kind: Kind, view: int, block_hash: Digest) -> None:
        """Cast an own vote if that is allowed: persist, send, count. Every own vote comes through here."""
        if self._epoch.own is None or not self.can_act(view) or not self.allows(kind, view, block_hash):
            return
        vote = Vote(kind, self._epoch.committee.epoch, view, block_hash, self._epoch.own)
        signed = SignedVote(vote, self._sign(vote.encode(self._epoch.chain_id)))
        self.ballot.record(signed)
        self._emit(Persist(signed))
        self._emit(Broadcast(signed))
        self.take(signed)

    def votes_to_tell(self) -> list[SignedVote]:
        """Return the own votes above the last final view; none while silent."""
        return self.ballot.votes() if self.silence is None else []

    def take(self, signed: SignedVote) -> None:
        """Count a verified vote."""
        vote = signed.vote
        if vote.signer == self._epoch.own and not self.ballot.holds(vote):
            self.meet_foreign(vote.view, f"{vote.kind.name.lower()} vote")
            return
        self._blame_voter(signed)
        certificate = self.tally.add(signed)
        if certificate is not None:
            self._adopt(certificate)

    def take_signers(self, certificate: VoteCertificate) -> None:
        """Count the votes of a certificate: they may convict somebody, or show an own vote that the log lacks."""
        for signer, signature in certificate.signatures:
            vote = Vote(certificate.kind, certificate.epoch, certificate.view, certificate.block_hash, signer)
            if not self.tally.holds(vote):
                self.take(SignedVote(vote, signature))

    # Guilt

    def _blame_voter(self, signed: SignedVote) -> None:
        vote = signed.vote
        other = self.tally.contradiction(vote)
        if other is None or vote.signer == self._epoch.own:
            return
        try:
            self._epoch.verify_vote(other)
        except Rejected:
            return
        if self.tally.blame(vote.view, vote.signer):
            self._emit(Guilty(other, signed))

    def blame_leader(self, one: Proposal, other: Proposal) -> None:
        """Report the leader of two verified proposals of one view."""
        header = other.block.header
        if header.leader != self._epoch.own and self.tally.blame(header.view, header.leader):
            self._emit(Guilty((one.block.header, one.block.signature), (header, other.block.signature)))

    # Silence

    @property
    def quiet(self) -> Quiet | None:
        if self.silence is not None:
            return Quiet(self.silence.until_view)
        return Quiet(self.forgotten_to) if self.forgotten_to > 0 else None

    def begin_silence(self, until_view: int | None) -> None:
        if self._epoch.own is not None:
            settle_ms = self.now_ms + self._epoch.parameters.timeout_ms
            self.silence = Silence(self._epoch.committee, self._epoch.own, settle_ms, until_view)
            self.ask_ms = self.now_ms

    def meet_foreign(self, view: int, what: str) -> None:
        """Something is signed with the own key that the log lacks: the log is an old one, or the key is used elsewhere.

        A second time can only mean the latter; then this node is silent for the rest of the epoch.
        """
        if self.silence is not None or view <= self.ballot.floor:
            return
        self.begin_silence(FOR_GOOD if self.forgotten_to > 0 else None)
        self._emit(Silenced(f"a {what} of view {view} under the own key is not in the log"))

    def tend_silence(self, view: int) -> None:
        """Ask what others have seen, or end the silence once the chain is behind it."""
        silence = self.silence
        if silence is None:
            return
        if silence.until_view is None:
            if self.now_ms >= self.ask_ms:
                self.ask_ms = self.now_ms + self._epoch.parameters.timeout_ms
                self._emit(Broadcast(Ask(self._epoch.committee.epoch, FOR_GOOD)))
        elif view > silence.until_view:
            self.silence, self.forgotten_to = None, silence.until_view
            self.ballot.raise_floor(silence.until_view)
