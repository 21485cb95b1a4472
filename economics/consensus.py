"""Consensus engine (Simplex): votes, blocks and time in, effects out. It opens nothing, reads no clock, keeps no key.

One engine per epoch. Rule numbers are those of Simplex as TON's write-up has them: 1 propose, 2 notarize, 3 finalize,
4 nullify, 5 on a nullification or finalization, 6 certificates travel, 7 standstill, 8 backoff; S and L number the
invariants. Deviations from Chan & Pass, "Simplex Consensus" (eprint 2023/463):

- Weights are shards and a quorum is n - f of them. `nullify` is the paper's vote for the dummy block.
- A finalize vote names its block and is cast as soon as the block is notarized, held and valid, also for a view left
  long ago: finality needs no two honest leaders in a row.
- Certificates are not forwarded when they form, as votes go from all to all: proposals carry their parent's, others are
  asked for. A nullify vote that comes again for a view already left is answered like an `Ask`: its sender is stuck.
- A leader's timer runs only while a block is wanted (`Due`) or once a proposal came: an idle view waits for ever.
- Nullify votes of f + 1 shards, or the leader's own, end the waiting: at least one honest member gave up, and a view
  must not hang half nullified. Safe, as any member may nullify any view that it has not voted to finalize.
- A leader that missed its last three views is given no time (`SkipList`); each node judges by what it saw.
- Timeouts grow by half per view since the last finalization up to a minute, and fall by a new one alone (rule 8).
- A node that may have forgotten votes casts none until the chain has passed them (`Silence`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice

from economics.ballot import FOR_GOOD, Ballot, Silence
from economics.block import Block, BlockHeader, Finality, Proposal, is_boundary, leader_of, verify_successor
from economics.branches import Branches, Lack
from economics.committee import Committee
from economics.crypto import Digest, Signature, verify_signature
from economics.errors import Reason, Rejected
from economics.genesis import Parameters
from economics.pacing import BACKOFF_MAX_MS, SkipList, timeout_ms
from economics.tally import Tally
from economics.votes import ZERO_HASH, Kind, SignedVote, Verify, Vote, VoteCertificate

VIEWS_AHEAD_MAX = 64
"""Votes and proposals of views further ahead are refused: what is held has a bound (L6)."""
VIEWS_BEHIND_MAX = 256
"""Votes of views further behind are forgotten unless they made a certificate."""
ANSWER_ITEMS_MAX = 64
ANSWER_INTERVAL_MS = 200
"""A member is answered this often at most, however often it asks."""
STANDSTILL_MS_MIN = 3_000


@dataclass(frozen=True, slots=True)
class Ask:
    """Asks for certificates and proposals of this view and later, and the highest in any case (FORMATS.md 12)."""

    epoch: int
    view: int


Message = SignedVote | VoteCertificate | Proposal | Ask


@dataclass(frozen=True, slots=True)
class Heard:
    """A message; `sender` is the member whose stream it came on, None for what came by another way."""

    message: Message
    sender: int | None


@dataclass(frozen=True, slots=True)
class Built:
    """The block that `Build` asked for, signed and checked by the shell."""

    view: int
    block: Block


@dataclass(frozen=True, slots=True)
class Judged:
    """The answer to `Judge`."""

    block_hash: Digest
    ok: bool


@dataclass(frozen=True, slots=True)
class Due:
    """From when on a new block is wanted; None: there is nothing to do. Said anew whenever it changes."""

    at_ms: int | None


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The `deadline` has come."""


Input = Heard | Built | Judged | Due | TimePassed


@dataclass(frozen=True, slots=True)
class Persist:
    """An own vote, or a certificate that a restart need not collect again; durable before messages leave."""

    record: SignedVote | VoteCertificate


@dataclass(frozen=True, slots=True)
class Keep:
    """A block to be durable with all its transactions before any message of this call leaves (S10)."""

    proposal: Proposal


@dataclass(frozen=True, slots=True)
class Broadcast:
    """To every other member."""

    message: Message


@dataclass(frozen=True, slots=True)
class Send:
    member: int
    message: Message


@dataclass(frozen=True, slots=True)
class Build:
    """Make and sign a block of this view on this parent, an empty one on a boundary; answer `Built`, or never."""

    view: int
    parent: BlockHeader
    parent_is_boundary: bool


@dataclass(frozen=True, slots=True)
class Judge:
    """Check what needs clock, state and transaction bodies; answer `Judged`, or never."""

    proposal: Proposal
    parent: BlockHeader
    sender: int | None


@dataclass(frozen=True, slots=True)
class Finalized:
    """New final blocks, parents first; `finality` proves the last of them final. Once each, in order of height."""

    finality: Finality
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Missing:
    """A certificate or a later block names this block, and it is not held. A member was asked already."""

    block_hash: Digest
    epoch: int
    view: int
    height_hint: int | None


Signed = SignedVote | tuple[BlockHeader, Signature]


@dataclass(frozen=True, slots=True)
class Guilty:
    """Two statements of one member that no honest one makes, both verified."""

    first: Signed
    second: Signed


@dataclass(frozen=True, slots=True)
class Silenced:
    """This node casts no more votes until `Engine.quiet` is None: somebody has one of its own that it did not cast."""

    reason: str


Effect = Persist | Keep | Broadcast | Send | Build | Judge | Finalized | Missing | Guilty | Silenced


@dataclass(frozen=True, slots=True)
class Quiet:
    """Says that own votes may have been forgotten: up to this view, or (None) up to one that peers have yet to tell."""

    until_view: int | None = None


@dataclass(slots=True)
class Counters:
    """What happened since the engine was made."""

    views: int = 0
    nullified: int = 0
    finalized: int = 0
    asked: int = 0
    answered: int = 0
    standstills: int = 0


class _Verdict(Enum):
    PENDING = auto()
    GOOD = auto()
    BAD = auto()


class Engine:
    """Votes in one epoch, from the block `root` on (see `handle`). The root counts as notarized and final at view 0.

    Effects are acted on in order, and every `Persist` and `Keep` of a call is durable before any message of it leaves.
    """

    def __init__(
        self,
        *,
        chain_id: Digest,
        committee: Committee,
        root: BlockHeader,
        own: int | None,
        sign: Callable[[bytes], Signature],
        parameters: Parameters,
        next_committee_hash: Digest,
        now_ms: int,
        restored: Sequence[SignedVote | VoteCertificate | Proposal] = (),
        finalized: tuple[Block, VoteCertificate] | None = None,
        quiet: Quiet | None = None,
        verify: Verify = verify_signature,
    ) -> None:
        """`own` is None for an observer. `restored` is what the log holds of this epoch, in the order it was written;
        `finalized` the highest final block of this epoch that was stored already."""
        self.chain_id = chain_id
        self.committee = committee
        self.root = root
        self.own = own
        self.view = 1
        self.ended = False
        """The epoch's boundary is final: this engine only answers now."""
        self.counters = Counters()
        self._sign = sign
        self._parameters = parameters
        self._next_committee_hash = next_committee_hash
        self._verify = verify
        self._restored = tuple(restored)
        self._faulty = committee.n - committee.quorum
        self._branches = Branches(root)
        self._tally = Tally(committee)
        self._ballot = Ballot()
        self._skips = SkipList()
        self._silence: Silence | None = None
        self._forgotten_to = 0
        """Up to this view own votes may have been forgotten; 0: none were."""
        self._now = now_ms
        self._effects: list[Effect] = []
        self._stale = True
        """Something changed that `_settle` has to look at."""
        self._verdicts: dict[Digest, _Verdict] = {}
        self._kept: set[Digest] = set()
        self._senders: dict[Digest, int | None] = {}
        self._open: dict[int, Digest] = {}
        """Notarized blocks that an own finalize vote may still be cast for (rule 3)."""
        self._lacks: list[Lack] = []
        self._asked: dict[tuple[int, Digest | None], int] = {}
        self._ask_ms: int | None = None
        self._answered_ms: dict[int, int] = {}
        self._due_ms: int | None = None
        self._listen_ms = now_ms
        self._still_ms: int | None = None
        self._still_wait_ms = self._standstill_ms
        self._silence_ask_ms = now_ms
        self._entry: VoteCertificate | None = None
        self._leader = leader_of(1, root_hash=self._branches.root_hash, committee=committee)
        self._entered_ms = now_ms
        self._proposal_ms: int | None = None
        self._given_up = False
        self._build_asked = False
        self._resend_ms = now_ms
        if finalized is not None:
            self._branches.begin_at(finalized[0].header, finalized[1])
            self._ballot.raise_floor(finalized[1].view)
        if quiet is not None:
            self._begin_silence(quiet.until_view)

    # What the shell may read

    @property
    def final_header(self) -> BlockHeader:
        """The last block that was handed on as final, or the root."""
        return self._branches.delivered

    @property
    def final_height(self) -> int:
        return self._branches.delivered.height

    @property
    def final_certificate(self) -> VoteCertificate | None:
        """The highest finalization, which may be of a block that is still missing."""
        return self._branches.final

    @property
    def highest_certificate(self) -> VoteCertificate | None:
        return self._branches.highest

    @property
    def leader(self) -> int:
        """The index of the member that leads the view."""
        return self._leader

    @property
    def quiet(self) -> Quiet | None:
        """What an engine that takes this one's place after a restart must be given."""
        if self._silence is not None:
            return Quiet(self._silence.until_view)
        return Quiet(self._forgotten_to) if self._forgotten_to > self._branches.final_view else None

    @property
    def quiet_next_epoch(self) -> Quiet | None:
        """What the next epoch's engine must be given: this node may have voted there before it forgot.

        Had it been there, finalize votes for the boundary or what builds on it were cast before, by members that held
        certificates of these views: the bound of `Silence` would be above the boundary's view.
        """
        return Quiet() if self._silence is not None or self._forgotten_to > self._branches.delivered_view else None

    # Inputs

    def start(self, now_ms: int) -> list[Effect]:
        """Begin, or go on from the log: own votes are counted and sent again (L3). Called once, before `handle`."""
        self._now, self._effects = now_ms, []
        self._entered_ms = self._silence_ask_ms = now_ms
        if self._silence is not None:
            self._silence.settle_ms = now_ms + self._parameters.timeout_ms
        if self._branches.final is not None and self._branches.final.view >= self.view:
            self._enter(self._branches.final)
        self._restore()
        if self._restored:
            self._listen_ms = now_ms + self._parameters.timeout_ms
        if self.own is not None:
            self._resend_votes()
            for proposal in self._branches.proposals_of(self.view):
                if proposal.block.header.leader == self.own:
                    self._emit(Broadcast(proposal))
            self._emit(Broadcast(Ask(self.committee.epoch, self._branches.final_view + 1)))
        self._settle()
        return self._effects

    def handle(self, now_ms: int, item: Input) -> list[Effect]:
        """Take an input; return what is to be done. `now_ms` never goes back.

        Raises `Rejected` for a message that no honest sender sends; the state is unchanged then.
        """
        self._now, self._effects = max(now_ms, self._now), []
        if self.ended and not (isinstance(item, Heard) and isinstance(item.message, Ask)):
            return []
        match item:
            case Heard(message, sender):
                self._hear(message, sender)
            case Built():
                self._take_built(item)
            case Judged():
                self._take_judged(item)
            case Due(at_ms):
                self._due_ms, self._stale = at_ms, True
            case TimePassed():
                self._stale = True
        self._settle()
        return self._effects

    def deadline(self) -> int | None:
        """Return when `TimePassed` is due next, if ever."""
        if self.ended:
            return None
        times = [self._ask_ms, self._still_ms, self._give_up_ms()]
        if self._now < self._listen_ms:
            times.append(self._listen_ms)
        if self._silence is not None and self._silence.until_view is None:
            times.append(self._silence_ask_ms)
        if self._ballot.cast(Kind.NULLIFY, self.view) is not None and self._silence is None:
            times.append(self._resend_ms)
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

    def _hear(self, message: Message, sender: int | None) -> None:
        match message:
            case SignedVote():
                self._hear_vote(message, sender)
            case VoteCertificate():
                self._hear_certificate(message, sender)
            case Proposal():
                self._hear_proposal(message, sender)
            case Ask(epoch, view):
                self._verify_epoch(epoch)
                self._answer(sender, view)

    def _verify_epoch(self, epoch: int) -> None:
        if epoch != self.committee.epoch:
            raise Rejected(Reason.WRONG_EPOCH, f"epoch {epoch}, this is epoch {self.committee.epoch}")

    # Votes

    def _hear_vote(self, signed: SignedVote, sender: int | None) -> None:
        vote = signed.vote
        self._verify_epoch(vote.epoch)
        if vote.signer >= len(self.committee.members):
            raise Rejected(Reason.UNKNOWN_SIGNER, f"no member {vote.signer}")
        if vote.view > self.view + VIEWS_AHEAD_MAX:
            raise Rejected(Reason.TOO_FAR_AHEAD, f"a vote of view {vote.view} in view {self.view}")
        if vote.view <= self._branches.final_view or self._tally.holds(vote):
            if vote.kind is Kind.NULLIFY and vote.view < self.view:
                self._answer(sender, vote.view)
            return
        if vote.signer != self.own and sender == vote.signer and self._is_settled(vote):
            self._tally.note(signed)
            return
        signed.verify(chain_id=self.chain_id, committee=self.committee, verify=self._verify)
        if vote.view >= self.view:
            self._skips.redeem(vote.signer)
        self._take_vote(signed)

    def _is_settled(self, vote: Vote) -> bool:
        """Return whether a certificate says the same already: one more signature need not be checked."""
        held = self._branches.certificate(vote.kind, vote.view)
        return held is not None and held.block_hash == vote.block_hash

    def _take_vote(self, signed: SignedVote) -> None:
        """Count a verified vote."""
        vote = signed.vote
        if vote.signer == self.own and not self._ballot.holds(vote):
            self._meet_foreign_vote(vote)
            return
        self._blame_voter(signed)
        certificate = self._tally.add(signed)
        if certificate is not None:
            self._adopt(certificate)
        if vote.kind is Kind.NULLIFY and vote.view == self.view:
            self._stale = True

    def _blame_voter(self, signed: SignedVote) -> None:
        vote = signed.vote
        other = self._tally.contradiction(vote)
        if other is None or vote.signer == self.own:
            return
        try:
            other.verify(chain_id=self.chain_id, committee=self.committee, verify=self._verify)
        except Rejected:
            return
        if self._tally.blame(vote.view, vote.signer):
            self._emit(Guilty(other, signed))

    def _can_act(self, view: int) -> bool:
        """Return whether this node may sign anything new in this view by now."""
        silent = self._silence is not None or self._now < self._listen_ms
        return self.own is not None and not silent and view > self._ballot.floor

    def _cast(self, kind: Kind, view: int, block_hash: Digest) -> bool:
        """Cast an own vote if that is allowed: persist, send, count. Every own vote comes through here."""
        if self.own is None or not self._can_act(view):
            return False
        vote = Vote(kind, self.committee.epoch, view, block_hash, self.own)
        if not self._ballot.allows(vote):
            return False
        signed = SignedVote(vote, self._sign(vote.encode(self.chain_id)))
        self._ballot.record(signed)
        self._emit(Persist(signed))
        self._emit(Broadcast(signed))
        self._take_vote(signed)
        return True

    # Silence

    def _begin_silence(self, until_view: int | None) -> None:
        if self.own is None:
            return
        settle_ms = self._now + self._parameters.timeout_ms
        self._silence = Silence(self.committee, self.own, settle_ms, until_view)
        self._silence_ask_ms, self._stale = self._now, True

    def _meet_foreign_vote(self, vote: Vote) -> None:
        """A vote under this node's key that it did not cast: its log has lost it, or the key is used elsewhere too."""
        if self._silence is not None or vote.view <= self._ballot.floor:
            return
        again = self._forgotten_to > 0
        self._begin_silence(FOR_GOOD if again else None)
        self._emit(Silenced(f"a {vote.kind.name.lower()} vote of view {vote.view} under the own key is not in the log"))

    def _tend_silence(self) -> None:
        silence = self._silence
        if silence is None:
            return
        if silence.until_view is None:
            if self._now >= self._silence_ask_ms:
                self._silence_ask_ms = self._now + self._parameters.timeout_ms
                self._emit(Broadcast(Ask(self.committee.epoch, FOR_GOOD)))
        elif self.view > silence.until_view:
            self._silence, self._forgotten_to = None, silence.until_view
            self._ballot.raise_floor(silence.until_view)

    # Certificates

    def _hear_certificate(self, certificate: VoteCertificate, sender: int | None) -> None:
        self._verify_epoch(certificate.epoch)
        self._verify_certificate(certificate)
        self._adopt(certificate)
        if self._silence is not None and sender is not None:
            self._silence.hear(self._now, member=sender, view=self.view)
            self._stale = True

    def _verify_certificate(self, certificate: VoteCertificate) -> None:
        """Raise `Rejected` unless it holds; one that says nothing new is not looked at."""
        held = self._branches.certificate(certificate.kind, certificate.view)
        known = held is not None and held.block_hash == certificate.block_hash
        if not known and certificate.view > self._branches.final_view:
            certificate.verify(chain_id=self.chain_id, committee=self.committee, verify=self._verify)

    def _adopt(self, certificate: VoteCertificate, *, persisted: bool = False) -> None:
        """Take in a certificate that holds (rules 3 and 5)."""
        if certificate.view <= self._branches.final_view:
            return
        if certificate.kind is Kind.FINALIZE:
            self._finalize(certificate)
        else:
            fresh = self._branches.add_certificate(certificate)
            if not fresh:
                held = self._branches.certificate(certificate.kind, certificate.view)
                if held is not None and held.block_hash != certificate.block_hash:
                    self._count_signers(certificate)  # two of them convict; a known one was not verified again
                return
            if certificate.kind is Kind.NOTARIZE:
                self._open[certificate.view] = certificate.block_hash
        if not persisted:
            self._emit(Persist(certificate))
        if certificate.view >= self.view:
            self._enter(certificate)
        self._count_signers(certificate)
        self._stale = True

    def _count_signers(self, certificate: VoteCertificate) -> None:
        """Count its votes one by one: they may convict somebody, or show an own vote that the log lacks."""
        if certificate.view <= self._branches.final_view:
            return
        for signer, signature in certificate.signatures:
            vote = Vote(certificate.kind, certificate.epoch, certificate.view, certificate.block_hash, signer)
            if not self._tally.holds(vote):
                self._take_vote(SignedVote(vote, signature))

    def _finalize(self, certificate: VoteCertificate) -> None:
        """Note a finalization above the last one; what it makes useless is dropped (rule 5)."""
        self._branches.finalize(certificate)
        self._ballot.raise_floor(certificate.view)
        self._tally.drop_below(certificate.view + 1)
        self._open = {view: held for view, held in self._open.items() if view > certificate.view}
        self._still_ms, self._still_wait_ms = None, self._standstill_ms

    def _enter(self, certificate: VoteCertificate) -> None:
        """Enter the view behind this certificate's."""
        if certificate.view == self.view:
            self._review_leader(certificate)
        self.counters.views += 1
        self.view = certificate.view + 1
        self._entry = certificate
        self._leader = self._leader_of(self.view)
        self._entered_ms = self._now
        self._proposal_ms = self._now if self._branches.proposals_of(self.view) else None
        self._given_up = self._build_asked = False
        self._resend_ms = self._now + self._timeout_ms
        self._tally.drop_below(self.view - VIEWS_BEHIND_MAX)

    def _review_leader(self, certificate: VoteCertificate) -> None:
        if certificate.kind is not Kind.NULLIFY:
            self._skips.redeem(self._leader)
            return
        self.counters.nullified += 1
        if not self._has_proposal():
            self._skips.miss(self._leader)

    def _has_proposal(self) -> bool:
        """Return whether one of this view is held that is not known to be bad."""
        held = self._branches.proposals_of(self.view)
        return any(self._verdicts.get(proposal.block.hash) is not _Verdict.BAD for proposal in held)

    def _leader_of(self, view: int) -> int:
        return leader_of(view, root_hash=self._branches.root_hash, committee=self.committee)

    # Proposals

    def _hear_proposal(self, proposal: Proposal, sender: int | None) -> None:
        header = proposal.block.header
        block_hash = header.hash
        self._verify_epoch(header.epoch)
        wanted = any(lack.block_hash == block_hash for lack in self._lacks)
        certified = wanted or self._branches.certifies(header.view, block_hash) is not None
        old = header.view <= self._branches.final_view and not certified
        full = not certified and not self._branches.has_room(header.view)
        if old or full or self._branches.proposal(block_hash) or header.view <= self._branches.delivered_view:
            return
        self._verify_proposal(proposal, certified=certified)
        self._blame_leader(proposal)
        self._branches.add_proposal(proposal)
        self._branches.bound()
        self._senders[block_hash] = sender
        self._stale = True
        if header.view >= self.view:
            self._skips.redeem(header.leader)
        if header.view == self.view and self._proposal_ms is None:
            self._proposal_ms = self._now
        if proposal.parent is not None:
            self._adopt(proposal.parent)

    def _verify_proposal(self, proposal: Proposal, *, certified: bool) -> None:
        """Raise `Rejected` unless the view's leader signed it and its parent's certificate holds.

        A block that is certified already needs no certificate of its parent, as it names the parent's hash.
        """
        header, parent = proposal.block.header, proposal.parent
        reached = self.view if parent is None else max(self.view, parent.view + 1)
        if header.view > reached + VIEWS_AHEAD_MAX:
            raise Rejected(Reason.TOO_FAR_AHEAD, f"a proposal of view {header.view} in view {self.view}")
        if header.leader != self._leader_of(header.view):
            raise Rejected(Reason.WRONG_LEADER, f"member {header.leader} does not lead view {header.view}")
        proposal.block.verify_signature(committee=self.committee, verify=self._verify)
        if parent is not None:
            if (
                parent.kind is Kind.NULLIFY
                or parent.epoch != header.epoch
                or (parent.view, parent.block_hash) != (header.parent_view, header.parent_hash)
            ):
                raise Rejected(Reason.WRONG_PARENT, "the certificate is not of the block's parent")
            self._verify_certificate(parent)
        elif header.parent_view != 0 and not certified:
            raise Rejected(Reason.MALFORMED, "a proposal comes without its parent's certificate")

    def _blame_leader(self, proposal: Proposal) -> None:
        header = proposal.block.header
        for other in self._branches.proposals_of(header.view):
            if header.leader != self.own and self._tally.blame(header.view, header.leader):
                first = (other.block.header, other.block.signature)
                self._emit(Guilty(first, (header, proposal.block.signature)))

    def _judge(self, proposal: Proposal, *, notarized: bool = False) -> _Verdict | None:
        """Return what is known of a proposal; have it judged once all that it builds on is held (rule 2, b to d)."""
        header = proposal.block.header
        block_hash = header.hash
        verdict = self._verdicts.get(block_hash)
        if verdict is not None:
            return verdict
        root = header.parent_hash == self._branches.root_hash
        if (header.parent_view == 0) != root or header.parent_view < self._branches.final_view:
            return self._set_verdict(block_hash, _Verdict.BAD)
        if header.parent_view == self._branches.final_view and header.parent_hash != self._branches.final_hash:
            return self._set_verdict(block_hash, _Verdict.BAD)
        gap = None if notarized else self._branches.first_not_nullified(header.parent_view, header.view)
        parent = self._branches.header(header.parent_hash)
        if gap is not None:
            self._lacks.append(Lack(gap, None, header.leader))
        if parent is None:
            self._lacks.append(Lack(header.parent_view, header.parent_hash, header.leader, header.height - 1))
        if gap is not None or parent is None:
            return None
        if not self._follows(header, parent):
            return self._set_verdict(block_hash, _Verdict.BAD)
        self._emit(Judge(proposal, parent, self._senders.get(block_hash)))
        return self._set_verdict(block_hash, _Verdict.PENDING)

    def _set_verdict(self, block_hash: Digest, verdict: _Verdict) -> _Verdict:
        self._verdicts[block_hash] = verdict
        return verdict

    def _follows(self, header: BlockHeader, parent: BlockHeader) -> bool:
        try:
            verify_successor(
                header,
                parent=parent,
                root=self.root,
                committee=self.committee,
                next_committee_hash=self._next_committee_hash,
                epoch_ms=self._parameters.epoch_ms,
            )
        except Rejected:
            return False
        return True

    def _take_judged(self, item: Judged) -> None:
        if self._verdicts.get(item.block_hash) is _Verdict.PENDING:
            self._set_verdict(item.block_hash, _Verdict.GOOD if item.ok else _Verdict.BAD)
            self._stale = True

    def _take_built(self, item: Built) -> None:
        """Propose the own block (rule 1), unless the view is over by now."""
        header = item.block.header
        if item.view != self.view or not self._build_asked or self._branches.proposals_of(self.view):
            return
        if not self._can_act(self.view):
            return
        parent = self._branches.header(header.parent_hash)
        assert (header.view, header.leader) == (self.view, self.own), "a block of another view or leader"
        assert parent is not None, "the own block has another parent"
        assert self._follows(header, parent), "the own block does not follow its parent"
        proposal = Proposal(item.block, self._branches.certifies(header.parent_view, header.parent_hash))
        assert (proposal.parent is None) == (header.parent_view == 0), "the own block's parent is not certified"
        self._branches.add_proposal(proposal)
        self._set_verdict(header.hash, _Verdict.GOOD)
        self._proposal_ms, self._stale = self._now, True
        self._keep(proposal)
        self._emit(Broadcast(proposal))

    def _keep(self, proposal: Proposal) -> None:
        block_hash = proposal.block.hash
        if block_hash not in self._kept:
            self._kept.add(block_hash)
            self._emit(Keep(proposal))

    # What follows from all that

    def _settle(self) -> None:
        """Do whatever the state now calls for. A vote that changes nothing costs nothing here."""
        while self._stale and not self.ended:
            self._stale = False
            self._lacks = []
            self._deliver()
            self._tend_silence()
            self._vote_notarize()
            self._vote_finalize()
            self._vote_nullify()
            self._ask_to_build()
            if not self._stale:
                self._stir()
                self._ask_for_lacks()

    def _deliver(self) -> None:
        """Hand on new final blocks, but none behind the epoch's boundary (rule 5)."""
        found = self._branches.undelivered()
        if isinstance(found, Lack):
            self._lacks.append(found)
            return
        final = self._branches.final
        if not found or final is None:
            return
        headers = [proposal.block.header for proposal in found]
        last = next((at for at, header in enumerate(headers) if self._is_boundary(header)), len(headers) - 1)
        self._branches.deliver(headers[last])
        self._forget()
        self.counters.finalized += last + 1
        self.ended = self._is_boundary(headers[last])
        blocks = tuple(proposal.block for proposal in found[: last + 1])
        self._emit(Finalized(Finality(final, tuple(headers[last + 1 :])), blocks))

    def _is_boundary(self, header: BlockHeader) -> bool:
        return is_boundary(header, root=self.root, epoch_ms=self._parameters.epoch_ms)

    def _forget(self) -> None:
        """Forget what was thought of blocks that are no longer held."""
        held = self._branches.proposal
        self._verdicts = {block_hash: verdict for block_hash, verdict in self._verdicts.items() if held(block_hash)}
        self._senders = {block_hash: sender for block_hash, sender in self._senders.items() if held(block_hash)}
        self._kept = {block_hash for block_hash in self._kept if held(block_hash)}

    def _vote_notarize(self) -> None:
        """Rule 2, also after an own nullify vote: the first good proposal of the view, once."""
        if self.own is None:
            return
        for proposal in self._branches.proposals_of(self.view):
            match self._judge(proposal):
                case _Verdict.GOOD:
                    if self._can_act(self.view) and self._ballot.cast(Kind.NOTARIZE, self.view) is None:
                        self._keep(proposal)
                        self._cast(Kind.NOTARIZE, proposal.block.header.view, proposal.block.hash)
                case _Verdict.BAD:
                    self._given_up = True
                case _:
                    pass

    def _vote_finalize(self) -> None:
        """Rule 3: a block that is notarized, held and valid, if its view was not nullified by this node."""
        if self.own is None:
            return
        for view, block_hash in list(self._open.items()):
            if not self._ballot.allows(Vote(Kind.FINALIZE, self.committee.epoch, view, block_hash, self.own)):
                self._open.pop(view, None)
                continue
            proposal = self._branches.proposal(block_hash)
            if proposal is None:
                self._lacks.append(Lack(view, block_hash, self._leader_of(view)))
                continue
            verdict = self._judge(proposal, notarized=True)
            if verdict is _Verdict.GOOD and self._can_act(view):
                self._keep(proposal)
                self._cast(Kind.FINALIZE, view, block_hash)
            if verdict is _Verdict.BAD:
                self._open.pop(view, None)

    def _vote_nullify(self) -> None:
        """Rule 4: a timer fired, the proposal is bad, the leader or f + 1 shards gave up; and sending it again."""
        if self.own is None:
            return
        gave_up = self._tally.has_nullified(self.view, self._leader)
        if gave_up or self._tally.weight(Kind.NULLIFY, self.view, ZERO_HASH) > self._faulty:
            self._given_up = True
        at_ms = self._give_up_ms()
        if at_ms is not None and self._now >= at_ms:
            view, self._resend_ms = self.view, self._now + self._timeout_ms
            self._cast(Kind.NULLIFY, view, ZERO_HASH)
            return
        cast = self._ballot.cast(Kind.NULLIFY, self.view)
        if cast is not None and self._silence is None and self._now >= self._resend_ms:
            self._resend_ms = self._now + self._timeout_ms
            self._emit(Broadcast(cast))
            if self._entry is not None:
                self._emit(Broadcast(self._entry))

    @property
    def _timeout_ms(self) -> int:
        """Of this view's leader (rule 8)."""
        return timeout_ms(self._parameters.timeout_ms, self.view - self._branches.final_view)

    def _give_up_ms(self) -> int | None:
        """Return when this node votes to nullify the view; None while nothing is wanted, or it did, or it may not."""
        if self.own is None or self._silence is not None or self.view <= self._ballot.floor:
            return None
        if not self._ballot.allows(Vote(Kind.NULLIFY, self.committee.epoch, self.view, ZERO_HASH, self.own)):
            return None
        if self._given_up:
            return max(self._entered_ms, self._listen_ms)
        begun = [self._proposal_ms, None if self._due_ms is None else max(self._due_ms, self._entered_ms)]
        known = [at_ms for at_ms in begun if at_ms is not None]
        if not known:
            return None
        begun_ms = max(min(known), self._listen_ms)
        if self._has_proposal():
            return begun_ms + self._timeout_ms * 3 // 2
        return begun_ms if self._skips.skips(self._leader) else begun_ms + self._timeout_ms

    def _ask_to_build(self) -> None:
        """Rule 1, once a view, as soon as the parent and all that is skipped behind it are certified and held."""
        if self._leader != self.own or self._build_asked or not self._can_act(self.view):
            return
        if self._branches.proposals_of(self.view) or self._ballot.cast(Kind.NULLIFY, self.view) is not None:
            return
        parent = self._branches.parent_for(self.view)
        if isinstance(parent, Lack):
            self._lacks.append(parent)
            return
        self._build_asked = True
        boundary = parent != self.root and self._is_boundary(parent)
        self._emit(Build(self.view, parent, boundary))

    # Asking, answering, sending again

    def _ask_for_lacks(self) -> None:
        """Ask for what is missing: its proposer first, then one member after the other (rule 6)."""
        keys = {(lack.view, lack.block_hash): lack for lack in self._lacks}
        self._asked = {key: count for key, count in self._asked.items() if key in keys}
        if not keys:
            self._ask_ms = None
            return
        retry = self._ask_ms is not None and self._now >= self._ask_ms
        lowest = min(keys, key=lambda key: key[0])
        for key, lack in keys.items():
            if key not in self._asked and lack.block_hash is not None:
                self._emit(Missing(lack.block_hash, self.committee.epoch, lack.view, lack.height))
            if key not in self._asked or (retry and key == lowest):
                self._ask(lack, tries=self._asked.get(key, 0))
                self._asked[key] = self._asked.get(key, 0) + 1

    def _ask(self, lack: Lack, *, tries: int) -> None:
        self._ask_ms = self._now + max(self._parameters.timeout_ms // 2, 1)
        count = len(self.committee.members)
        first = lack.member if lack.member >= 0 else self._leader_of(lack.view)
        member = (first + tries) % count
        if member == self.own:
            member = (member + 1) % count
        if member != self.own:
            self.counters.asked += 1
            self._emit(Send(member, Ask(self.committee.epoch, lack.view)))

    def _answer(self, sender: int | None, view: int) -> None:
        """Send the highest certificate first, then what is held from `view` on; within bounds of number and rate."""
        if sender is None or sender == self.own:
            return
        last_ms = self._answered_ms.get(sender)
        if last_ms is not None and self._now < last_ms + ANSWER_INTERVAL_MS:
            return
        self._answered_ms[sender] = self._now
        self.counters.answered += 1
        for item in islice(self._answer_items(view), ANSWER_ITEMS_MAX):
            self._emit(Send(sender, item))

    def _answer_items(self, view: int) -> Iterable[VoteCertificate | Proposal]:
        highest, final = self._branches.highest, self._branches.final
        if highest is not None:
            yield highest
        if final is not None and final is not highest and view <= self.view:
            yield final
        for item in self._branches.items_from(view, to_view=self.view):
            if item is not highest:
                yield item

    def _stir(self) -> None:
        """Rule 7: nothing became final for long though something is under way: tell all that is above it again."""
        wanted = self._due_ms is not None and self._due_ms <= self._now
        under_way = self.view > self._branches.final_view + 1 or self._ballot.votes()
        if self.own is None or not (wanted or under_way):
            self._still_ms = None
        elif self._still_ms is None:
            self._still_ms = self._now + self._still_wait_ms
        elif self._now >= self._still_ms:
            self._still_wait_ms = min(self._still_wait_ms * 2, max(BACKOFF_MAX_MS, self._standstill_ms))
            self._still_ms = self._now + self._still_wait_ms
            self._tell_again()

    @property
    def _standstill_ms(self) -> int:
        return max(3 * self._parameters.timeout_ms, STANDSTILL_MS_MIN)

    def _tell_again(self) -> None:
        self.counters.standstills += 1
        highest, final = self._branches.highest, self._branches.final
        above = self._branches.certificates_above(self._branches.final_view)
        if len(above) > ANSWER_ITEMS_MAX:
            above = above[: ANSWER_ITEMS_MAX // 2] + above[-ANSWER_ITEMS_MAX // 2 :]
        told = [highest, None if final is highest else final, *(held for held in above if held is not highest)]
        for certificate in told:
            if certificate is not None:
                self._emit(Broadcast(certificate))
        self._resend_votes()

    def _resend_votes(self) -> None:
        if self._silence is None:
            for signed in self._ballot.votes()[-ANSWER_ITEMS_MAX:]:
                self._emit(Broadcast(signed))

    def _restore(self) -> None:
        """Take in what the log holds: blocks, own votes, certificates; then the own votes are counted again."""
        votes: list[SignedVote] = []
        for item in self._restored:
            match item:
                case Proposal():
                    self._restore_proposal(item)
                case SignedVote():
                    assert (item.vote.signer, item.vote.epoch) == (self.own, self.committee.epoch)
                    if item.vote.view > self._ballot.floor:
                        self._ballot.record(item)
                        votes.append(item)
                case VoteCertificate():
                    assert item.epoch == self.committee.epoch
        for item in self._restored:
            if isinstance(item, VoteCertificate):
                self._adopt(item, persisted=True)
        for signed in votes:
            if signed.vote.view > self._branches.final_view and not self._tally.holds(signed.vote):
                self._take_vote(signed)

    def _restore_proposal(self, proposal: Proposal) -> None:
        header = proposal.block.header
        block_hash = header.hash
        useful = header.view > self._branches.delivered_view or block_hash == self._branches.delivered_hash
        if useful and self._branches.proposal(block_hash) is None:
            self._branches.add_proposal(proposal)
            self._set_verdict(block_hash, _Verdict.GOOD)
            self._kept.add(block_hash)

    def _emit(self, effect: Effect) -> None:
        self._effects.append(effect)
