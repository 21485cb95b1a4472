"""Counts the votes of one epoch in shards, view by view, and finds who contradicts itself. Knows no clock and no rules.

A member's first vote of each kind counts; a second, different one is kept as evidence only.
"""

from dataclasses import dataclass, field

from economics.committee import Committee
from economics.crypto import Digest, Signature
from economics.votes import Kind, SignedVote, Vote, VoteCertificate

VOTES_MAX = 2
"""Different votes of one kind remembered of a member in a view: the one that counts and the one that convicts it."""

CONTRADICTIONS = {
    Kind.NOTARIZE: (Kind.NOTARIZE,),
    Kind.NULLIFY: (Kind.FINALIZE,),
    Kind.FINALIZE: (Kind.FINALIZE, Kind.NULLIFY),
}
"""What an honest member never casts in one view: two notarize, two finalize, or finalize and nullify (S7)."""


@dataclass(slots=True)
class _View:
    """The votes of one view."""

    cast: dict[tuple[int, Kind], list[SignedVote]] = field(default_factory=dict)
    signatures: dict[tuple[Kind, Digest], dict[int, Signature]] = field(default_factory=dict)
    weights: dict[tuple[Kind, Digest], int] = field(default_factory=dict)
    unverified: set[tuple[int, Kind]] = field(default_factory=set)
    blamed: set[int] = field(default_factory=set)


class Tally:
    """The votes of an epoch: at most two of each kind for each member and view that is not yet dropped."""

    def __init__(self, committee: Committee) -> None:
        self._committee = committee
        self._views: dict[int, _View] = {}

    def holds(self, vote: Vote) -> bool:
        """Return whether this very vote is there, under whichever signature."""
        seen = self._views.get(vote.view)
        return seen is not None and any(old.vote == vote for old in seen.cast.get((vote.signer, vote.kind), ()))

    def weight(self, kind: Kind, view: int, block_hash: Digest) -> int:
        """Return the shards that stand behind this."""
        seen = self._views.get(view)
        return 0 if seen is None else seen.weights.get((kind, block_hash), 0)

    def has_nullified(self, view: int, signer: int) -> bool:
        seen = self._views.get(view)
        return seen is not None and (signer, Kind.NULLIFY) in seen.cast

    def add(self, signed: SignedVote) -> VoteCertificate | None:
        """Count a verified vote; return the certificate that it completes."""
        vote = signed.vote
        seen = self._views.setdefault(vote.view, _View())
        place = (vote.signer, vote.kind)
        cast = seen.cast.setdefault(place, [])
        if any(old.vote == vote for old in cast) or len(cast) >= VOTES_MAX:
            return None
        cast.append(signed)
        if len(cast) > 1 and place not in seen.unverified:
            return None
        what = (vote.kind, vote.block_hash)
        before = seen.weights.get(what, 0)
        seen.weights[what] = before + self._committee.members[vote.signer].shards
        signatures = seen.signatures.setdefault(what, {})
        signatures[vote.signer] = signed.signature
        if before < self._committee.quorum <= seen.weights[what]:
            return VoteCertificate.build(vote, committee=self._committee, signatures=signatures)
        return None

    def note(self, signed: SignedVote) -> None:
        """Remember a vote whose signature nobody has checked, as one that came too late to matter: only to blame by."""
        vote = signed.vote
        seen = self._views.setdefault(vote.view, _View())
        place = (vote.signer, vote.kind)
        if place not in seen.cast:
            seen.cast[place] = [signed]
            seen.unverified.add(place)

    def contradiction(self, vote: Vote) -> SignedVote | None:
        """Return a vote of the same member that no honest member casts beside `vote`; once for a member and view."""
        seen = self._views.get(vote.view)
        if seen is None or vote.signer in seen.blamed:
            return None
        for kind in CONTRADICTIONS[vote.kind]:
            for old in seen.cast.get((vote.signer, kind), ()):
                if old.vote != vote:
                    return old
        return None

    def blame(self, view: int, signer: int) -> bool:
        """Note that this member is blamed for this view; return whether it was not before."""
        blamed = self._views.setdefault(view, _View()).blamed
        if signer in blamed:
            return False
        blamed.add(signer)
        return True

    def drop_below(self, view: int) -> None:
        """Forget every view below `view`."""
        for old in [old for old in self._views if old < view]:
            del self._views[old]
