"""Collects commitments, from this node and from gossip, until they make a certificate. Bounded; opens nothing.

The batch that nodes gossip is only a container (FORMATS.md 7): each commitment in it is signed by itself.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from economics import cbor
from economics.commitments import STATEMENT_BYTES, Certificate, Commitment, OwnerStatement
from economics.committee import Committee
from economics.crypto import SIGNATURE_BYTES, Digest, NodeId, Signature
from economics.errors import Reason, Rejected
from gossip.pubsub import Ignored

BATCH_BYTES_MAX = 65_536
BATCH_ENTRIES_MAX = 128
"""Two signatures an entry: at most 15 ms of a core for a hostile batch."""
BATCH_BUDGET = cbor.Budget(size_max=BATCH_BYTES_MAX, depth_max=3, elements_max=1 + 6 * BATCH_ENTRIES_MAX)
TALLIES_MAX = 1_024
"""Statements that wait for their quorum; where there are more, the oldest of the member that brought in most of them is
forgotten: whoever makes up statements pushes out none but its own."""
UNSENT_MAX = 4_096

Entry = tuple[OwnerStatement, Signature, Commitment, Signature]
"""(statement, owner's signature, commitment, signer's signature)."""


def build_batch(entries: list[Entry]) -> bytes:
    rows: list[cbor.Value] = [
        [statement.encode(), statement_signature, commitment.epoch, commitment.signer, signature]
        for statement, statement_signature, commitment, signature in entries
    ]
    return cbor.encode(rows)


def parse_batch(data: bytes, *, chain_id: Digest) -> list[Entry]:
    """Return a batch's entries, their signatures not yet checked; raises `Rejected`."""
    rows = cbor.decode(data, budget=BATCH_BUDGET)
    if not isinstance(rows, list) or not 1 <= len(rows) <= BATCH_ENTRIES_MAX:
        raise Rejected(Reason.MALFORMED, f"a batch has 1 to {BATCH_ENTRIES_MAX} entries")
    return [_parse_row(row, chain_id) for row in rows]


def _parse_row(row: object, chain_id: Digest) -> Entry:
    match row:
        case [bytes(body), bytes(owner_signature), int(epoch), int(signer), bytes(signature)]:
            if isinstance(epoch, bool) or isinstance(signer, bool):
                raise Rejected(Reason.MALFORMED, "epoch and signer are integers")
            if not (0 <= epoch < 1 << 64 and 0 <= signer < 1 << 16):
                raise Rejected(Reason.MALFORMED, "epoch or signer out of range")
            if {len(owner_signature), len(signature)} != {SIGNATURE_BYTES} or len(body) != STATEMENT_BYTES:
                raise Rejected(Reason.MALFORMED, "a batch entry's sizes are off")
            statement = OwnerStatement.decode(body, chain_id=chain_id)
            commitment = Commitment.build(statement, epoch=epoch, signer=signer)
            return statement, Signature(owner_signature), commitment, Signature(signature)
        case _:
            raise Rejected(Reason.MALFORMED, "a batch entry is [statement, signature, epoch, index, signature]")


@dataclass(slots=True)
class _Tally:
    statement: OwnerStatement
    statement_signature: Signature
    opener: int
    """Whose commitment came first."""
    signatures: dict[int, Signature] = field(default_factory=dict)
    certificate: Certificate | None = None


class Certifier:
    """Tallies of commitments by statement for one committee, and this node's own that are still to be gossiped."""

    def __init__(
        self, *, chain_id: Digest, committee: Committee, committee_of: Callable[[int], Committee | None]
    ) -> None:
        self.chain_id = chain_id
        self.committee = committee
        self._committee_of = committee_of
        self._tallies: OrderedDict[Digest, _Tally] = OrderedDict()
        self._opened: Counter[int] = Counter()
        """Tallies by who brought them in."""
        self._unsent: OrderedDict[Digest, Entry] = OrderedDict()

    def begin_epoch(self, committee: Committee) -> None:
        """Tally for another committee from here on: what was signed under the last one makes no certificate now."""
        self.committee = committee
        self._tallies.clear()
        self._opened.clear()

    def open_batch(self, data: bytes, *, author: NodeId) -> list[Entry]:
        """Return the entries of a batch, all of them its author's own; checks no signature.

        Raises `Rejected`, as others' commitments could be put together anew without end, each time a message to check
        and to pass on; `Ignored` for a batch of an epoch whose committee is not known here, or that is long over.
        """
        entries = parse_batch(data, chain_id=self.chain_id)
        for _, _, commitment, _ in entries:
            if self._near(commitment.epoch).index_of(author) != commitment.signer:
                raise Rejected(Reason.UNKNOWN_SIGNER, "a batch with another member's commitment")
        return entries

    def verify_batch(self, entries: Sequence[Entry], *, height: int) -> list[Entry]:
        """Return the entries of an opened batch that are of this epoch; raises `Rejected` for a forged signature.

        Those of the epoch before or after are left out: their sender is at another block, which is no offence. Their
        signatures are checked all the same: a batch is passed on whole, and may be counted when the epoch has ended.
        Raises `Ignored` for a statement that does not hold at this height: at the sender's it may.
        """
        for statement, statement_signature, commitment, signature in entries:
            tally = self._tallies.get(statement.hash)
            if tally is None or tally.statement_signature != statement_signature:
                try:
                    statement.verify(statement_signature, height=height)
                except Rejected as fault:
                    if fault.reason in (Reason.EXPIRED, Reason.TOO_FAR_AHEAD):
                        raise Ignored(fault.detail) from fault
                    raise
            commitment.verify(signature, committee=self._near(commitment.epoch))
        return [entry for entry in entries if entry[2].epoch == self.committee.epoch]

    def _near(self, epoch: int) -> Committee:
        """Return the committee of this epoch or the one before or after; raises `Ignored` for any other.

        Whoever is at another block, which is no offence, may know more of that epoch than this node.
        """
        if epoch == self.committee.epoch:
            return self.committee
        near = self._committee_of(epoch) if abs(epoch - self.committee.epoch) == 1 else None
        if near is None:
            raise Ignored(f"of epoch {epoch}, whose committee is not known here")
        return near

    def add(self, entry: Entry, *, own: bool = False) -> Certificate | None:
        """Count a commitment whose signatures have been checked; one of another epoch counts for nothing.

        Returns the statement's certificate when this completes it, and with each own commitment after that: the node
        may have come to hold the blob only now.
        """
        statement, statement_signature, commitment, signature = entry
        if own:
            self._unsent[statement.hash] = entry
            if len(self._unsent) > UNSENT_MAX:
                self._unsent.popitem(last=False)
        if commitment.epoch != self.committee.epoch:
            return None
        tally = self._tallies.get(statement.hash)
        if tally is None:
            tally = self._tallies[statement.hash] = _Tally(statement, statement_signature, commitment.signer)
            self._opened[commitment.signer] += 1
            if len(self._tallies) > TALLIES_MAX:
                self._forget_one()
        tally.signatures[commitment.signer] = signature
        if tally.certificate is not None:
            return tally.certificate if own else None
        tally.certificate = Certificate.build(
            tally.statement, tally.statement_signature, committee=self.committee, signatures=tally.signatures
        )
        return tally.certificate

    def _forget_one(self) -> None:
        ((most, _),) = self._opened.most_common(1)
        oldest = next(name for name, tally in self._tallies.items() if tally.opener == most)
        del self._tallies[oldest]
        self._opened[most] -= 1

    def take_batch(self) -> bytes | None:
        """Return the next batch of own commitments to gossip, or None when there is no news."""
        entries = [self._unsent.popitem(last=False)[1] for _ in range(min(len(self._unsent), BATCH_ENTRIES_MAX))]
        return build_batch(entries) if entries else None
