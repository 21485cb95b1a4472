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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from economics.asking import Asking
from economics.block import Block, BlockHeader, Finality, Proposal
from economics.branches import Branches, Lack
from economics.committee import Committee
from economics.crypto import Digest, Signature, verify_signature
from economics.effects import (
    Ask,
    Broadcast,
    Build,
    Built,
    Due,
    Effect,
    Finalized,
    Guilty,
    Heard,
    Input,
    Judge,
    Judged,
    Keep,
    Message,
    Missing,
    Persist,
    Quiet,
    Send,
    Silenced,
    TimePassed,
)
from economics.epoch import Epoch
from economics.errors import Reason, Rejected
from economics.genesis import Parameters
from economics.judging import Judging, Verdict
from economics.pacing import SkipList, timeout_ms
from economics.votes import ZERO_HASH, Kind, SignedVote, Verify, Vote, VoteCertificate
from economics.voting import Voting

__all__ = [
    "Ask",
    "Broadcast",
    "Build",
    "Built",
    "Counters",
    "Due",
    "Effect",
    "Engine",
    "Finalized",
    "Guilty",
    "Heard",
    "Input",
    "Judge",
    "Judged",
    "Keep",
    "Message",
    "Missing",
    "Persist",
    "Quiet",
    "Send",
    "Silenced",
    "TimePassed",
]

VIEWS_AHEAD_MAX = 64
"""Votes and proposals of views further ahead are refused: what is held has a bound (L6)."""
VIEWS_BEHIND_MAX = 256
"""Votes of views further behind are forgotten unless they made a certificate."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What happened since the engine was made."""

    views: int
    nullified: int
    finalized: int
    asked: int
    answered: int
    standstills: int


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
        now_ms: int,
        restored: Sequence[SignedVote | VoteCertificate | Proposal] = (),
        finalized: tuple[Block, VoteCertificate] | None = None,
        quiet: Quiet | None = None,
        is_restart: bool = True,
        verify: Verify = verify_signature,
    ) -> None:
        """`own` is None for an observer. `restored` is what the log holds of this epoch, in the order it was written;
        `finalized` the highest final block of this epoch that was stored already. An engine that takes the place of
        one in the same process is no restart: it need not listen first whether somebody else votes under its key."""
        self.view = 1
        self.ended = False
        """The epoch's boundary is final: this engine only answers now."""
        self._restored = tuple(restored)
        self._is_restart = is_restart
        self._epoch = Epoch(chain_id, committee, root, own, parameters, verify)
        self._branches = Branches(root)
        self._asking = Asking(self._epoch, self._branches, self._emit)
        self._judging = Judging(self._epoch, self._branches, emit=self._emit, lack=self._asking.lack)
        self._voting = Voting(self._epoch, sign=sign, emit=self._emit, adopt=self._adopt, now_ms=now_ms)
        self._skips = SkipList()
        self._now = now_ms
        self._effects: list[Effect] = []
        self._stale = True
        """Something changed that `_settle` has to look at."""
        self._views = self._nullified = self._finalized = 0
        self._open: dict[int, Digest] = {}
        """Notarized blocks that an own finalize vote may still be cast for (rule 3)."""
        self._due_ms: int | None = None
        self._entry: VoteCertificate | None = None
        self._leader = self._epoch.leader_of(1)
        self._entered_ms = now_ms
        self._proposal_ms: int | None = None
        self._given_up = False
        self._build_asked = False
        self._resend_ms = now_ms
        if finalized is not None:
            self._branches.begin_at(finalized[0].header, finalized[1])
            self._voting.ballot.raise_floor(finalized[1].view)
        if quiet is not None:
            self._voting.begin_silence(quiet.until_view)

    # What the shell may read

    @property
    def epoch(self) -> int:
        return self._epoch.committee.epoch

    @property
    def final_height(self) -> int:
        return self._branches.delivered.height

    @property
    def tip(self) -> BlockHeader:
        """The highest certified block that is held and may be built on, as far as this node can tell."""
        parent = self._branches.parent_for(self.view)
        return self._branches.delivered if isinstance(parent, Lack) else parent

    @property
    def counters(self) -> Counters:
        asking = self._asking
        return Counters(
            self._views, self._nullified, self._finalized, asking.asked, asking.answered, asking.standstills
        )

    @property
    def leader(self) -> int:
        """The index of the member that leads the view."""
        return self._leader

    @property
    def quiet(self) -> Quiet | None:
        """What an engine that takes this one's place after a restart must be given."""
        passed = self._voting.silence is None and self._voting.forgotten_to <= self._branches.final_view
        return None if passed else self._voting.quiet

    @property
    def quiet_next_epoch(self) -> Quiet | None:
        """What the next epoch's engine must be given: this node may have voted there before it forgot.

        Had it been there, the boundary of this one was final before: a quorum had signed at the boundary's view b or
        above, holding certificates of it, and what others tell now (`Silence`) would put the bound at b + 2 or above.
        """
        silence = self._voting.silence
        until_view = self._voting.forgotten_to if silence is None else silence.until_view
        was_there = until_view is None or until_view > self._branches.delivered_view + 1
        return Quiet() if was_there else None

    # Inputs

    def start(self, now_ms: int) -> list[Effect]:
        """Begin, or go on from the log: own votes are counted and sent again (L3). Called once, before `handle`."""
        self._now = self._voting.now_ms = self._entered_ms = now_ms
        self._effects = []
        if self._voting.silence is not None:
            self._voting.begin_silence(self._voting.silence.until_view)
        if self._branches.final is not None and self._branches.final.view >= self.view:
            self._enter(self._branches.final)
        self._restore()
        if self._restored and self._is_restart:
            self._voting.listen_ms = now_ms + self._epoch.parameters.timeout_ms
        if self._epoch.own is not None:
            self._asking.tell_votes(self._voting.votes_to_tell())
            for proposal in self._branches.proposals_of(self.view):
                if proposal.block.header.leader == self._epoch.own:
                    self._emit(Broadcast(proposal))
            self._emit(Broadcast(Ask(self._epoch.committee.epoch, self._branches.final_view + 1)))
        self._settle()
        return self._effects

    def handle(self, now_ms: int, item: Input) -> list[Effect]:
        """Take an input; return what is to be done. `now_ms` never goes back.

        Raises `Rejected` for a message that no honest sender sends; the state is unchanged then.
        """
        self._now = self._voting.now_ms = max(now_ms, self._now)
        self._effects = []
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
        times = [self._asking.ask_ms, self._asking.still_ms, self._give_up_ms()]
        if self._now < self._voting.listen_ms:
            times.append(self._voting.listen_ms)
        if self._voting.silence is not None and self._voting.silence.until_view is None:
            times.append(self._voting.ask_ms)
        if self._voting.ballot.cast(Kind.NULLIFY, self.view) is not None and self._voting.silence is None:
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
                self._epoch.verify_epoch(epoch)
                self._asking.answer(self._now, member=sender, view=view, own_view=self.view)

    # Votes

    def _hear_vote(self, signed: SignedVote, sender: int | None) -> None:
        vote = signed.vote
        self._epoch.verify_epoch(vote.epoch)
        if vote.signer >= len(self._epoch.committee.members):
            raise Rejected(Reason.UNKNOWN_SIGNER, f"no member {vote.signer}")
        if vote.view > self.view + VIEWS_AHEAD_MAX:
            raise Rejected(Reason.TOO_FAR_AHEAD, f"a vote of view {vote.view} in view {self.view}")
        if vote.view <= max(self._branches.final_view, self.view - VIEWS_BEHIND_MAX) or self._voting.tally.holds(vote):
            if vote.kind is Kind.NULLIFY and vote.view < self.view:
                self._asking.answer(self._now, member=sender, view=vote.view, own_view=self.view)
            return
        settled = sender == vote.signer and vote.signer != self._epoch.own and self._is_known(vote)
        if not settled:
            self._epoch.verify_vote(signed)
        if vote.view + 1 >= self.view:
            self._skips.redeem(vote.signer)
        if settled:
            self._voting.tally.note(signed)
        else:
            self._voting.take(signed)
        if vote.kind is Kind.NULLIFY and vote.view == self.view:
            self._stale = True

    # Certificates

    def _hear_certificate(self, certificate: VoteCertificate, sender: int | None) -> None:
        self._epoch.verify_epoch(certificate.epoch)
        self._verify_certificate(certificate)
        self._adopt(certificate)
        if self._voting.silence is not None and sender is not None:
            self._voting.silence.hear(self._now, member=sender, view=self.view)
            self._stale = True

    def _verify_certificate(self, certificate: VoteCertificate) -> None:
        """Raise `Rejected` unless it holds; one that says nothing new is not looked at."""
        if certificate.view > self._branches.final_view and not self._is_known(certificate):
            self._epoch.verify_certificate(certificate)

    def _is_known(self, what: VoteCertificate | Vote) -> bool:
        """Return whether a certificate that says the same is held."""
        held = self._branches.certificate(what.kind, what.view)
        return held is not None and held.block_hash == what.block_hash

    def _adopt(self, certificate: VoteCertificate, *, persisted: bool = False) -> None:
        """Take in a certificate that holds (rules 3 and 5)."""
        if certificate.view <= self._branches.final_view:
            return
        self._stale = True
        if certificate.kind is not Kind.FINALIZE and not self._branches.add_certificate(certificate):
            if persisted or not self._is_known(certificate):
                self._voting.take_signers(certificate)  # nobody has checked the signatures of a known one
            return
        if not persisted:
            self._emit(Persist(certificate))
        if certificate.kind is Kind.NOTARIZE:
            self._open[certificate.view] = certificate.block_hash
        if certificate.kind is Kind.FINALIZE:
            self._branches.finalize(certificate)
        self._voting.take_signers(certificate)
        if certificate.kind is Kind.FINALIZE:
            self._forget(certificate)
        if certificate.view >= self.view:
            self._enter(certificate)

    def _forget(self, certificate: VoteCertificate) -> None:
        """Drop what a finalization makes useless (rule 5)."""
        self._voting.ballot.raise_floor(certificate.view)
        self._voting.tally.drop_below(certificate.view + 1)
        self._open = {view: held for view, held in self._open.items() if view > certificate.view}
        self._asking.calm()

    def _enter(self, certificate: VoteCertificate) -> None:
        """Enter the view behind this certificate's."""
        if certificate.view == self.view:
            self._review_leader(certificate)
        self._views += 1
        self.view = certificate.view + 1
        self._entry = certificate
        self._leader = self._epoch.leader_of(self.view)
        self._entered_ms = self._now
        self._proposal_ms = self._now if self._branches.proposals_of(self.view) else None
        self._given_up = self._build_asked = False
        self._resend_ms = self._now + self._timeout_ms
        self._voting.tally.drop_below(self.view - VIEWS_BEHIND_MAX)

    def _review_leader(self, certificate: VoteCertificate) -> None:
        if certificate.kind is not Kind.NULLIFY:
            self._skips.redeem(self._leader)
            return
        self._nullified += 1
        if not self._has_proposal():
            self._skips.miss(self._leader)

    def _has_proposal(self) -> bool:
        """Return whether one of this view is held that is not known to be bad."""
        held = self._branches.proposals_of(self.view)
        return any(self._judging.verdict(proposal.block.hash) is not Verdict.BAD for proposal in held)

    # Proposals

    def _hear_proposal(self, proposal: Proposal, sender: int | None) -> None:
        header = proposal.block.header
        block_hash = header.hash
        self._epoch.verify_epoch(header.epoch)
        wanted = self._asking.wants(block_hash)
        certified = wanted or self._branches.certifies(header.view, block_hash) is not None
        full = not certified and not self._branches.has_room(header.view)
        if full or self._branches.proposal(block_hash) or header.view <= self._branches.delivered_view:
            return
        proposal = self._verify_proposal(proposal)
        if header.leader == self._epoch.own:
            self._voting.meet_foreign(header.view, "proposal")
        for other in self._branches.proposals_of(header.view):
            self._voting.blame_leader(other, proposal)
        self._branches.add_proposal(proposal)
        self._branches.bound()
        self._judging.note_sender(block_hash, sender)
        self._stale = True
        if header.view >= self.view:
            self._skips.redeem(header.leader)
        if header.view == self.view and self._proposal_ms is None:
            self._proposal_ms = self._now
        if proposal.parent is not None:
            self._adopt(proposal.parent)

    def _verify_proposal(self, proposal: Proposal) -> Proposal:
        """Return it, or raise `Rejected` unless the view's leader signed it and its parent's certificate holds.

        A certificate that is held already takes the place of one that says the same: nobody has checked the other's
        signatures. A block not above the last final one needs none, as hashes link them.
        """
        header, parent = proposal.block.header, proposal.parent
        reached = self.view if parent is None else max(self.view, parent.view + 1)
        if header.view > reached + VIEWS_AHEAD_MAX:
            raise Rejected(Reason.TOO_FAR_AHEAD, f"a proposal of view {header.view} in view {self.view}")
        self._epoch.verify_proposer(proposal)
        if parent is None:
            if header.parent_view != 0 and header.view > self._branches.final_view:
                raise Rejected(Reason.MALFORMED, "a proposal comes without its parent's certificate")
            return proposal
        held = self._branches.certifies(parent.view, parent.block_hash)
        if held is None:
            self._epoch.verify_certificate(parent)
        return Proposal(proposal.block, held or parent)

    def _take_judged(self, item: Judged) -> None:
        if self._judging.verdict(item.block_hash) is Verdict.PENDING:
            self._judging.settle(item.block_hash, Verdict.GOOD if item.ok else Verdict.BAD)
            self._stale = True

    def _take_built(self, item: Built) -> None:
        """Propose the own block (rule 1), unless the view is over by now."""
        header = item.block.header
        if item.view != self.view or not self._build_asked or self._branches.proposals_of(self.view):
            return
        if not self._voting.can_act(self.view):
            return
        parent = self._branches.header(header.parent_hash)
        assert (header.view, header.leader) == (self.view, self._epoch.own), "a block of another view or leader"
        assert parent is not None, "the own block has another parent"
        assert self._epoch.follows(header, parent), "the own block does not follow its parent"
        proposal = Proposal(item.block, self._branches.certifies(header.parent_view, header.parent_hash))
        assert (proposal.parent is None) == (header.parent_view == 0), "the own block's parent is not certified"
        self._branches.add_proposal(proposal)
        self._judging.settle(header.hash, Verdict.GOOD)
        self._proposal_ms, self._stale = self._now, True
        self._judging.keep(proposal)
        self._emit(Broadcast(proposal))

    # What follows from all that

    def _settle(self) -> None:
        """Do whatever the state now calls for. A vote that changes nothing costs nothing here."""
        while self._stale and not self.ended:
            self._stale = False
            self._asking.forget_lacks()
            self._deliver()
            if self.ended:
                return
            self._voting.tend_silence(self.view)
            self._vote_notarize()
            self._vote_finalize()
            self._vote_nullify()
            self._ask_to_build()
            if not self._stale:
                self._stir()
                self._asking.ask_for_lacks(self._now)

    def _deliver(self) -> None:
        """Hand on new final blocks, but none behind the epoch's boundary (rule 5)."""
        found = self._branches.undelivered()
        if isinstance(found, Lack):
            self._asking.lack(found)
            return
        final = self._branches.final
        if not found or final is None:
            return
        headers = [proposal.block.header for proposal in found]
        last = next((at for at, header in enumerate(headers) if self._epoch.is_boundary(header)), len(headers) - 1)
        self._branches.deliver(headers[: last + 1])
        self._judging.forget()
        self._finalized += last + 1
        self.ended = self._epoch.is_boundary(headers[last])
        blocks = tuple(proposal.block for proposal in found[: last + 1])
        self._emit(Finalized(Finality(final, tuple(headers[last + 1 :])), blocks))

    def _vote_notarize(self) -> None:
        """Rule 2, also after an own nullify vote: the first good proposal of the view, once."""
        if self._epoch.own is None:
            return
        for proposal in self._branches.proposals_of(self.view):
            match self._judging.judge(proposal):
                case Verdict.GOOD:
                    if self._voting.can_act(self.view) and self._voting.ballot.cast(Kind.NOTARIZE, self.view) is None:
                        self._judging.keep(proposal)
                        self._voting.cast(Kind.NOTARIZE, self.view, proposal.block.hash)
                        return
                case Verdict.BAD:
                    self._given_up = True
                case _:
                    pass

    def _vote_finalize(self) -> None:
        """Rule 3: a block that is notarized, held and valid, if its view was not nullified by this node."""
        if self._epoch.own is None:
            return
        for view, block_hash in list(self._open.items()):
            if not self._voting.allows(Kind.FINALIZE, view, block_hash):
                self._open.pop(view, None)
                continue
            proposal = self._branches.proposal(block_hash)
            if proposal is None:
                self._asking.lack(Lack(view, block_hash))
                continue
            verdict = self._judging.judge(proposal, notarized=True)
            if verdict is Verdict.GOOD and self._voting.can_act(view):
                self._judging.keep(proposal)
                self._voting.cast(Kind.FINALIZE, view, block_hash)
            if verdict is Verdict.BAD:
                self._open.pop(view, None)

    def _vote_nullify(self) -> None:
        """Rule 4: a timer fired, the proposal is bad, the leader or f + 1 shards gave up; and sending it again."""
        if self._epoch.own is None:
            return
        gave_up = self._voting.tally.has_nullified(self.view, self._leader)
        if gave_up or self._voting.tally.weight(Kind.NULLIFY, self.view, ZERO_HASH) > self._epoch.faulty:
            self._given_up = True
        at_ms = self._give_up_ms()
        if at_ms is not None and self._now >= at_ms:
            view, self._resend_ms = self.view, self._now + self._timeout_ms
            self._voting.cast(Kind.NULLIFY, view, ZERO_HASH)
            return
        cast = self._voting.ballot.cast(Kind.NULLIFY, self.view)
        if cast is not None and self._voting.silence is None and self._now >= self._resend_ms:
            self._resend_ms = self._now + self._timeout_ms
            self._emit(Broadcast(cast))
            if self._entry is not None:
                self._emit(Broadcast(self._entry))

    @property
    def _timeout_ms(self) -> int:
        """Of this view's leader (rule 8)."""
        return timeout_ms(self._epoch.parameters.timeout_ms, self.view - self._branches.final_view)

    def _give_up_ms(self) -> int | None:
        """Return when this node votes to nullify the view; None while nothing is wanted, or it did, or it may not."""
        if self._voting.silence is not None:
            return None
        if not self._voting.allows(Kind.NULLIFY, self.view, ZERO_HASH):
            return None
        if self._given_up:
            return max(self._entered_ms, self._voting.listen_ms)
        begun = [self._proposal_ms, None if self._due_ms is None else max(self._due_ms, self._entered_ms)]
        known = [at_ms for at_ms in begun if at_ms is not None]
        if not known:
            return None
        begun_ms = max(min(known), self._voting.listen_ms)
        if self._has_proposal():
            return begun_ms + self._timeout_ms * 3 // 2
        skipped = self._leader != self._epoch.own and self._skips.skips(self._leader)
        return begun_ms if skipped else begun_ms + self._timeout_ms

    def _ask_to_build(self) -> None:
        """Rule 1, once a view, as soon as the parent and all that is skipped behind it are certified and held."""
        if self._leader != self._epoch.own or self._build_asked or not self._voting.can_act(self.view):
            return
        if self._branches.proposals_of(self.view) or self._voting.ballot.cast(Kind.NULLIFY, self.view) is not None:
            return
        parent = self._branches.parent_for(self.view)
        if isinstance(parent, Lack):
            self._asking.lack(parent)
            return
        self._build_asked = True
        boundary = self._epoch.is_boundary(parent)
        self._emit(Build(self.view, parent, boundary))

    # Asking, answering, sending again

    def _stir(self) -> None:
        """Rule 7."""
        wanted = self._due_ms is not None and self._due_ms <= self._now
        above = self.view > self._branches.final_view + 1 or bool(self._voting.ballot.votes())
        under_way = self._epoch.own is not None and (wanted or above)
        self._asking.stir(self._now, under_way=under_way, votes=self._voting.votes_to_tell)

    def _restore(self) -> None:
        """Take in what the log holds: blocks, own votes, certificates; then the own votes are counted again."""
        votes: list[SignedVote] = []
        for item in self._restored:
            match item:
                case Proposal():
                    self._restore_proposal(item)
                case SignedVote():
                    assert (item.vote.signer, item.vote.epoch) == (self._epoch.own, self._epoch.committee.epoch)
                    if item.vote.view > self._voting.ballot.floor:
                        self._voting.ballot.record(item)
                        votes.append(item)
                case VoteCertificate():
                    assert item.epoch == self._epoch.committee.epoch
        for item in self._restored:
            if isinstance(item, VoteCertificate):
                self._adopt(item, persisted=True)
        for signed in votes:
            if signed.vote.view > self._branches.final_view and not self._voting.tally.holds(signed.vote):
                self._voting.take(signed)

    def _restore_proposal(self, proposal: Proposal) -> None:
        header = proposal.block.header
        block_hash = header.hash
        useful = header.view > self._branches.delivered_view or block_hash == self._branches.delivered_hash
        if useful and self._branches.proposal(block_hash) is None:
            self._branches.add_proposal(proposal)
            self._judging.restore(block_hash)

    def _emit(self, effect: Effect) -> None:
        self._effects.append(effect)
