"""What this node itself has voted in an epoch, and whether it may vote now. Every own vote passes `Ballot.allows`.

Silence, the way back for a node that does not know what it has signed (a backup put back, a damaged log, a foreign
vote under its key). It must not vote in a view that it may have voted in. Let v be the highest view that it was ever
in; it voted in none above. To be in v it held a certificate of view v - 1 (or of a later one, which only raises what
follows). A quorum signed that: of members other than this one at least q - w shards, w its own, and of these all but
f are honest: at least n - 2f - w honest shards. Their owners were in view v - 1 by then, so each holds, on disk before
it voted there, a certificate of view v - 2 or higher. Who has heard of others with 2f + 1 shards has heard of one of
these, since 2f + 1 and n - 2f - w are more than the n - w shards of all others. Certificates prove their views, so
liars can only tell too little. Hence, once members with 2f + 1 shards have each sent their highest certificate, v is at
most c + 2, where c is the highest view of them all, and views from c + 3 on are safe. Each certificate heard moves this
node's own view to at least c + 1: its own view + 1 is that bound. Should all others hold fewer than 2f + 1 shards, they
are no quorum either: the chain waits for this node, nobody can tell what it signed, and it stays silent to the end of
the epoch.

Several certificates of one member may come in any order and some may get lost. Therefore a first while only listens:
what is heard then raises the view but counts for nobody, and the question is put again.
"""

from dataclasses import dataclass, field

from economics.committee import Committee
from economics.votes import Kind, SignedVote, Vote

FOR_GOOD = (1 << 64) - 1
"""No view is higher."""


class Ballot:
    """Own votes of one epoch: durable, since each was persisted before it was sent, and dropped only when final."""

    def __init__(self) -> None:
        self._cast: dict[tuple[int, Kind], SignedVote] = {}
        self.floor = 0
        """Nothing is cast at or below this view: it is final, or who knows what was cast there."""

    def allows(self, vote: Vote) -> bool:
        """Return whether an honest node may cast this now (rules 2 to 4, S7): the one gate of all own votes.

        Once per kind and view; never finalize and nullify in one view. Notarize after nullify is legal (rule 2).
        """
        if vote.view <= self.floor or (vote.view, vote.kind) in self._cast:
            return False
        match vote.kind:
            case Kind.NOTARIZE:
                return True
            case Kind.NULLIFY:
                return (vote.view, Kind.FINALIZE) not in self._cast
            case Kind.FINALIZE:
                return (vote.view, Kind.NULLIFY) not in self._cast

    def record(self, signed: SignedVote) -> None:
        self._cast[signed.vote.view, signed.vote.kind] = signed

    def cast(self, kind: Kind, view: int) -> SignedVote | None:
        """Return the own vote of this kind in this view."""
        return self._cast.get((view, kind))

    def holds(self, vote: Vote) -> bool:
        own = self._cast.get((vote.view, vote.kind))
        return own is not None and own.vote == vote

    def votes(self) -> list[SignedVote]:
        """Return the own votes above the floor, ascending."""
        return [self._cast[place] for place in sorted(self._cast)]

    def raise_floor(self, view: int) -> None:
        """Vote only above this view from now on, and forget the votes up to it."""
        self.floor = max(self.floor, view)
        for place in [place for place in self._cast if place[0] <= self.floor]:
            del self._cast[place]


@dataclass(slots=True)
class Silence:
    """Collects who has told its highest certificate, until the bound on what may have been signed is known."""

    committee: Committee
    own: int
    settle_ms: int
    """Until then nobody counts."""
    until_view: int | None = None
    """The highest view that may have been voted in; None: not yet known."""
    _heard: set[int] = field(default_factory=set)

    def hear(self, now_ms: int, *, member: int, view: int) -> None:
        """Note that `member` sent a certificate; `view` is this node's own by now, above every certificate it heard."""
        if self.until_view is not None or member == self.own or now_ms < self.settle_ms:
            return
        self._heard.add(member)
        faulty = self.committee.n - self.committee.quorum
        if self.committee.weight(self._heard) >= 2 * faulty + 1:
            self.until_view = view + 1
