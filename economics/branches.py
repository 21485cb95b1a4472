"""Certificates and proposals of one epoch above its last final block, and which block builds on which. Casts no vote.

Whatever is taken in here has been verified; what is missing is named, so that somebody can be asked for it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from economics.block import BlockHeader, Proposal
from economics.crypto import Digest
from economics.votes import Kind, VoteCertificate

PROPOSALS_PER_VIEW_MAX = 2
"""A second one convicts its leader; only a certificate makes room for a third."""
UNDELIVERED_MAX = 256
"""Views at or below the last final one whose proposals are held while one among them is missing."""
DELIVERED_KEPT = 32
"""Final blocks that are still held for those who ask: who fell behind by a little need not fetch the chain."""


@dataclass(frozen=True, slots=True)
class Lack:
    """What is not held and by whom it is asked for: a block, or any certificate of `view`."""

    view: int
    block_hash: Digest | None
    member: int | None = None
    """Whom to ask first; None: the leader of that view."""
    height: int | None = None
    from_view: int | None = None
    """The view that the answer should begin at, if not at this one."""


class Branches:
    """All that this node knows of the epoch's blocks; memory is bounded by the views above the last final block."""

    def __init__(self, root: BlockHeader) -> None:
        self.root_hash = root.hash
        self.delivered = root
        """The header of the last block that was handed on as final."""
        self.delivered_hash = self.root_hash
        self.delivered_view = 0
        """The root's own view is one of the epoch before: here it counts as view 0."""
        self.final: VoteCertificate | None = None
        """The highest finalization."""
        self._headers = {self.root_hash: root}
        self._recent: list[Digest] = []
        """The last delivered blocks, ascending."""
        self._proposals: dict[Digest, Proposal] = {}
        self._by_view: dict[int, list[Digest]] = {}
        self._notarizations: dict[int, VoteCertificate] = {}
        self._nullifications: dict[int, VoteCertificate] = {}

    @property
    def final_view(self) -> int:
        return 0 if self.final is None else self.final.view

    @property
    def final_hash(self) -> Digest:
        return self.root_hash if self.final is None else self.final.block_hash

    @property
    def highest(self) -> VoteCertificate | None:
        """The certificate of the highest view."""
        known = [*self._notarizations.values(), *self._nullifications.values()]
        return max(known, key=lambda held: held.view, default=self.final)

    def begin_at(self, header: BlockHeader, certificate: VoteCertificate) -> None:
        """Go on behind a final block that was handed on before a restart."""
        self.final = certificate
        self.delivered, self.delivered_hash, self.delivered_view = header, header.hash, header.view
        self._headers[self.delivered_hash] = header
        self._recent = [self.delivered_hash]

    # Certificates

    def certificate(self, kind: Kind, view: int) -> VoteCertificate | None:
        if kind is Kind.FINALIZE:
            return self.final if view == self.final_view else None
        return (self._notarizations if kind is Kind.NOTARIZE else self._nullifications).get(view)

    def certifies(self, view: int, block_hash: Digest) -> VoteCertificate | None:
        """Return the finalization or notarization of this block, if held."""
        for held in (self.certificate(Kind.FINALIZE, view), self._notarizations.get(view)):
            if held is not None and held.block_hash == block_hash:
                return held
        return None

    def add_certificate(self, certificate: VoteCertificate) -> bool:
        """Take in a notarization or nullification; return whether it is the first of its view."""
        held = self._notarizations if certificate.kind is Kind.NOTARIZE else self._nullifications
        return held.setdefault(certificate.view, certificate) is certificate

    def finalize(self, certificate: VoteCertificate) -> None:
        """Take in a finalization above the last one, and forget certificates that it makes useless."""
        self.final = certificate
        for held in (self._notarizations, self._nullifications):
            for view in [view for view in held if view <= certificate.view]:
                del held[view]

    def certificates_above(self, view: int) -> list[VoteCertificate]:
        """Return notarizations and nullifications of higher views, ascending, the notarization first."""
        known = [*self._notarizations.values(), *self._nullifications.values()]
        return sorted((held for held in known if held.view > view), key=lambda held: (held.view, held.kind))

    # Proposals

    def header(self, block_hash: Digest) -> BlockHeader | None:
        return self._headers.get(block_hash)

    def proposal(self, block_hash: Digest) -> Proposal | None:
        return self._proposals.get(block_hash)

    def proposals_of(self, view: int) -> list[Proposal]:
        """Return the proposals of a view in the order they came."""
        return [self._proposals[block_hash] for block_hash in self._by_view.get(view, ())]

    def has_room(self, view: int) -> bool:
        return len(self._by_view.get(view, ())) < PROPOSALS_PER_VIEW_MAX

    def add_proposal(self, proposal: Proposal) -> None:
        header = proposal.block.header
        block_hash = header.hash
        self._proposals[block_hash], self._headers[block_hash] = proposal, header
        self._by_view.setdefault(header.view, []).append(block_hash)

    def items_from(self, view: int, *, to_view: int) -> Iterator[VoteCertificate | Proposal]:
        """Yield what is held of these views, ascending: certificates of a view, then its proposals."""
        views = {*self._by_view, *self._notarizations, *self._nullifications}
        for at in sorted(held for held in views if view <= held <= to_view):
            for certificate in (self._notarizations.get(at), self._nullifications.get(at)):
                if certificate is not None:
                    yield certificate
            yield from self.proposals_of(at)

    # Ancestry

    def first_not_nullified(self, low: int, high: int) -> int | None:
        """Return the lowest view strictly between two views that no nullification is held of."""
        return next((view for view in range(low + 1, high) if view not in self._nullifications), None)

    def parent_for(self, view: int) -> BlockHeader | Lack:
        """Return the highest block that one of `view` may build on (rule 1), or what is missing to know it."""
        for below in range(view - 1, self.final_view, -1):
            notarized = self._notarizations.get(below)
            header = None if notarized is None else self._headers.get(notarized.block_hash)
            if header is not None:
                return header
            if below not in self._nullifications:
                return Lack(below, None if notarized is None else notarized.block_hash)
        header = self._headers.get(self.final_hash)
        return Lack(self.final_view, self.final_hash) if header is None else header

    def undelivered(self) -> list[Proposal] | Lack:
        """Return the final blocks that were not handed on yet, ascending, or which one of them is missing (rule 5)."""
        path: list[Proposal] = []
        cursor, view, height = self.final_hash, self.final_view, None
        while cursor != self.delivered_hash and view > self.delivered_view:
            proposal = self._proposals.get(cursor)
            if proposal is None:
                return Lack(view, cursor, height=height, from_view=self.delivered_view + 1)
            path.append(proposal)
            header = proposal.block.header
            cursor, view, height = header.parent_hash, header.parent_view, header.height - 1
        assert cursor == self.delivered_hash or not path, "two final chains: more than f shards are faulty"
        return path[::-1]

    def deliver(self, blocks: Sequence[BlockHeader]) -> None:
        """Note that these blocks were handed on; drop what is below them and was not."""
        last = blocks[-1]
        self.delivered, self.delivered_hash, self.delivered_view = last, last.hash, last.view
        self._recent = [*self._recent, *(header.hash for header in blocks)][-DELIVERED_KEPT:]
        self._drop(up_to=last.view)

    def bound(self) -> None:
        """Drop the lowest proposals while too many wait for one that is missing: then the chain is fetched."""
        waiting = sorted(view for view in self._by_view if self.delivered_view < view <= self.final_view)
        if len(waiting) > UNDELIVERED_MAX:
            self._drop(up_to=waiting[-UNDELIVERED_MAX - 1])

    def _drop(self, *, up_to: int) -> None:
        for view in [view for view in self._by_view if view <= up_to]:
            kept = [block_hash for block_hash in self._by_view[view] if block_hash in self._recent]
            for block_hash in self._by_view[view]:
                if block_hash not in kept:
                    del self._proposals[block_hash], self._headers[block_hash]
            self._by_view[view] = kept
            if not kept:
                del self._by_view[view]
