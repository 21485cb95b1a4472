"""Planted faults: each takes one rule out of the code, and some seed must find it. A tester that misses one is kind.

The first nine are those that the literature's own checkers plant (Simplex, restarts, quorums), the others are faults
that were shipped elsewhere, or were made and found here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from time import perf_counter
from typing import Any
from unittest.mock import patch

from economics import block, tally
from economics.asking import Asking
from economics.ballot import Ballot
from economics.block import BlockHeader, Finality, Proposal
from economics.branches import Branches, Lack
from economics.committee import Committee
from economics.consensus import Engine
from economics.crypto import Digest
from economics.effects import Broadcast, Effect, Judge, Persist, Send
from economics.epoch import Epoch
from economics.errors import Rejected
from economics.judging import Judging, Verdict
from economics.votes import ZERO_HASH, Kind, SignedVote, Verify, Vote, VoteCertificate
from economics.voting import Voting
from tests.simulation import chain
from tests.simulation.batch import play
from tests.simulation.byzantine import OTHER_CHAIN
from tests.simulation.chain import Chain
from tests.simulation.disk import Disk, FinalBlock, Kept
from tests.simulation.keys import Roster
from tests.simulation.scenario import Scenario, crash_at, draw, draw_forgetful, draw_mixed
from tests.simulation.shell import Shell
from tests.simulation.simulation import Result

Patch = tuple[Any, str, Any]
"""(class or module, name, what stands there instead)"""


SEEDS_MAX = 150
"""Within so many seeds each fault must be found."""
MIXED_SEEDS_MAX = 50
"""Those of the rules for changing committees within so many."""
SIZES = (4, 4, 7)
"""Of committees that faults are looked for in, in turn: small ones are quick."""


def draw_for_mutants(seed: int) -> Scenario:
    return draw(seed, SIZES[seed % len(SIZES)])


def draw_fall(number: int) -> Scenario:
    """Return a run in which all members crash at once: at one record after the other."""
    return crash_at(number + 1, is_durable=True, all_fall=True)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault, made of replacements in the code under test or in the shell around it."""

    name: str
    patches: tuple[Patch, ...]
    draw: Callable[[int], Scenario] = draw_for_mutants
    """What it is looked for in, one number after the other."""
    seeds_max: int = SEEDS_MAX
    is_harmless: bool = False
    """No rule protects against it, as it breaks none."""

    @contextmanager
    def planted(self) -> Iterator[None]:
        with ExitStack() as stack:
            for owner, name, value in self.patches:
                stack.enter_context(patch.object(owner, name, value))
            yield


@dataclass(frozen=True, slots=True)
class Hunt:
    """What became of a search for a fault."""

    name: str
    seeds: int | None
    """How many were played until one found it."""
    result: Result | None
    """Of the last one."""
    seconds: float


def hunt(mutant: Mutant) -> Hunt:
    """Plant a fault and play seeds until one finds it."""
    began = perf_counter()
    with mutant.planted():
        for number in range(mutant.seeds_max):
            result = play(mutant.draw(number))
            if result.fault is not None:
                return Hunt(mutant.name, number + 1, result, perf_counter() - began)
    return Hunt(mutant.name, None, None, perf_counter() - began)


def hunt_named(name: str) -> Hunt:
    return hunt(next(mutant for mutant in MUTANTS if mutant.name == name))


def hunt_all(processes: int = 2) -> list[Hunt]:
    """Return the hunts of all faults, in their order."""
    with get_context("spawn").Pool(processes) as pool:
        return pool.map(hunt_named, [mutant.name for mutant in MUTANTS], chunksize=1)


def _nothing(*_: object, **__: object) -> None:
    return None


# Votes

_allows, _cast, _restored = Ballot.allows, Ballot.cast, Shell._restored


def _allow_also(kind: Kind) -> Callable[[Ballot, Vote], bool]:
    def allows(self: Ballot, vote: Vote) -> bool:
        if vote.kind is kind:
            return vote.view > self.floor and (kind is Kind.NOTARIZE or _cast(self, kind, vote.view) is None)
        return _allows(self, vote)

    return allows


def _notarize_each(self: Engine) -> None:
    """Vote for every good proposal of the view."""
    for proposal in self._branches.proposals_of(self.view):
        if self._judging.judge(proposal) is Verdict.GOOD and self._voting.can_act(self.view):
            own, block_hash = self._epoch.own, proposal.block.hash
            assert own is not None
            if not self._voting.tally.holds(
                Vote(Kind.NOTARIZE, self._epoch.committee.epoch, self.view, block_hash, own)
            ):
                self._judging.keep(proposal)
                self._voting.cast(Kind.NOTARIZE, self.view, block_hash)


def _forget_on_restart(*kinds: Kind, certificates: bool = False) -> tuple[Patch, ...]:
    """Lose votes of these kinds from the log, and the guard that tells such a loss from others' messages."""

    def is_lost(item: object) -> bool:
        if isinstance(item, VoteCertificate):
            return certificates
        return isinstance(item, SignedVote) and item.vote.kind in kinds

    def restored(self: Shell) -> list[Any]:
        return [item for item in _restored(self) if not is_lost(item)]

    return (Shell, "_restored", restored), (Voting, "meet_foreign", _nothing)


_vote_notarize = Engine._vote_notarize


def _vote_outside_the_view(self: Engine) -> None:
    """Notarize also what came too late for its view."""
    _vote_notarize(self)
    for view in range(max(1, self.view - 3), self.view):
        for proposal in self._branches.proposals_of(view):
            if self._judging.judge(proposal) is Verdict.GOOD and self._voting.can_act(view):
                self._judging.keep(proposal)
                self._voting.cast(Kind.NOTARIZE, view, proposal.block.hash)


_restore, _vote_nullify = Engine._restore, Engine._vote_nullify


def _restore_uncounted(self: Engine) -> None:
    """Know the own votes of the log, but do not count them."""
    with patch.object(Voting, "take", _nothing):
        _restore(self)


def _nullify_the_last_view_too(self: Engine) -> None:
    """Give up the view before with this one: legal but for what was finalized there."""
    ballot = self._voting.ballot
    before = ballot.cast(Kind.NULLIFY, self.view)
    _vote_nullify(self)
    if before is None and ballot.cast(Kind.NULLIFY, self.view) is not None:
        self._voting.cast(Kind.NULLIFY, self.view - 1, ZERO_HASH)


def _nullify_once(self: Engine) -> None:
    self._resend_ms = 1 << 62
    _vote_nullify(self)
    self._resend_ms = 1 << 62


def _verify_nothing_of_a_vote(self: SignedVote, *, chain_id: Digest, committee: Committee, verify: Verify) -> None:
    del self, chain_id, committee, verify


# Certificates

_verify_vote, _verify_certificate = SignedVote.verify, VoteCertificate.verify


def _count_twice(self: VoteCertificate, *, chain_id: Digest, committee: Committee, verify: Verify) -> None:
    weight = sum(committee.members[index].shards for index, _ in self.signatures)
    if weight < committee.quorum:
        _verify_certificate(self, chain_id=chain_id, committee=committee, verify=verify)
    for index, signature in self.signatures:
        vote = Vote(self.kind, self.epoch, self.view, self.block_hash, index)
        verify(committee.members[index].node, vote.encode(chain_id), signature)


def _unsigned(self: VoteCertificate, *, chain_id: Digest, committee: Committee, verify: Verify) -> None:
    _verify_certificate(self, chain_id=chain_id, committee=committee, verify=lambda *_: None)


def _any_chain(check: Callable[..., None]) -> Callable[..., None]:
    def verify(self: Any, *, chain_id: Digest, committee: Committee, verify: Verify) -> None:
        try:
            check(self, chain_id=chain_id, committee=committee, verify=verify)
        except Rejected:
            check(self, chain_id=OTHER_CHAIN, committee=committee, verify=verify)

    return verify


def _any_epoch(check: Callable[..., None]) -> Callable[..., None]:
    def verify(self: Any, *, chain_id: Digest, committee: Committee, verify: Verify) -> None:
        epoch = self.vote.epoch if isinstance(self, SignedVote) else self.epoch
        check(self, chain_id=chain_id, committee=replace(committee, epoch=epoch), verify=verify)

    return verify


def _no_parent_certificate(self: Engine, proposal: Proposal) -> Proposal:
    self._epoch.verify_proposer(proposal)
    return proposal


_adopt = Engine._adopt


def _adopt_and_count(self: Engine, certificate: VoteCertificate, *, persisted: bool = False) -> None:
    """Count the signers of a certificate that says nothing new, whose signatures nobody has checked."""
    _adopt(self, certificate, persisted=persisted)
    if certificate.view > self._branches.final_view:
        self._voting.take_signers(certificate)


_add = tally.Tally.add


def _nullified_by_one_honest(self: tally.Tally, signed: SignedVote) -> VoteCertificate | None:
    """Take f + 1 shards for a nullification."""
    certificate = _add(self, signed)
    vote, committee = signed.vote, self._committee
    weight = self.weight(Kind.NULLIFY, vote.view, vote.block_hash)
    if certificate is not None or vote.kind is not Kind.NULLIFY or weight <= committee.n - committee.quorum:
        return certificate
    signatures = self._views[vote.view].signatures[vote.kind, vote.block_hash]
    return VoteCertificate(vote.kind, vote.epoch, vote.view, vote.block_hash, tuple(sorted(signatures.items())))


def _one_shard_each(self: Committee, indices: Sequence[int]) -> int:
    return len(set(indices)) * self.n // len(self.members)


# Blocks

_undelivered = Branches.undelivered


def _last_only(self: Branches) -> list[Any] | Lack:
    found = _undelivered(self)
    return found if isinstance(found, Lack) else found[-1:]


def _unproven_finality(self: Finality, header: BlockHeader, **_: object) -> None:
    del self, header


# Shells and disks

_perform = Shell._perform


def _send_then_log(self: Shell, effects: Sequence[Effect]) -> None:
    first = [effect for effect in effects if isinstance(effect, Broadcast | Send)]
    rest = [effect for effect in effects if not isinstance(effect, Broadcast | Send)]
    with patch.object(Shell, "_log", lambda *_: None):
        _perform(self, first)
    _perform(self, rest)


def _no_sync(self: Disk, last: int) -> None:
    del self, last


def _append_nothing(self: Disk, rows: list[FinalBlock]) -> None:
    """Keep final blocks in memory only: they are gone with the next start."""
    self.kept.update(row.block.hash for row in rows)


def _perform_without_persist(kind: Kind) -> Callable[[Shell, Sequence[Effect]], None]:
    def perform(self: Shell, effects: Sequence[Effect]) -> None:
        def is_it(effect: Effect) -> bool:
            return (
                isinstance(effect, Persist)
                and isinstance(effect.record, SignedVote)
                and effect.record.vote.kind is kind
            )

        _perform(self, [effect for effect in effects if not is_it(effect)])

    return perform


def _judge_good(self: Shell, wish: Judge) -> None:
    """Take any block whose transactions are here: look at no clock and no state root."""
    block = wish.proposal.block
    if self._judging.get(block.hash) is wish:
        bodies = [self.chain.body(tx_hash) for tx_hash in block.transactions]
        if None not in bodies:
            self.chain.candidates[block.hash] = Kept(wish.proposal, tuple(body for body in bodies if body is not None))
            self._answer(wish, ok=True)


# Committees that change

_make_engine, _roll_back = Shell._make_engine, Disk.roll_back


def _newest_name(self: Chain, header: BlockHeader) -> bool:
    """Compare the name of the next committee with the newest state, whatever the header has executed."""
    is_tail = header.next_committee_hash == ZERO_HASH and self.ends_epoch(header)
    is_named = is_tail or header.next_committee_hash == self.nexts[-1]
    return is_named and self.roots[header.executed_height] == header.state_root


def _any_name(self: Chain, header: BlockHeader) -> bool:
    return self.roots[header.executed_height] == header.state_root


def _undated(now_ms: int, *, parent: BlockHeader, **_: object) -> int:
    return max(now_ms, parent.time_ms + 1)


def _before(shell: Shell) -> Committee:
    """Return the committee of the epoch before, as one of this epoch."""
    ledger = shell.chain.ledger
    return (ledger.committee_of(max(0, ledger.epoch - 1)) or ledger.committee).in_epoch(ledger.epoch)


def _with_the_last_committee(self: Shell) -> Engine:
    self._committee = _before(self)
    self.others = tuple(number for number in self.roster.numbers(self._committee) if number != self.number)
    return _make_engine(self)


def _with_the_last_index(self: Shell) -> Engine:
    index = self.roster.index(_before(self), self.number)
    with patch.object(Roster, "index", lambda *_: index if index is not None else 0):
        return _make_engine(self)


def _forget_silently(self: Disk, *, chain: int, log: int) -> None:
    _roll_back(self, chain=chain, log=log)
    self.is_quiet = False


def _patches(*patches: Patch) -> tuple[Patch, ...]:
    return patches


CONTRADICTIONS: Mapping[Kind, tuple[Kind, ...]] = {**tally.CONTRADICTIONS, Kind.NULLIFY: (Kind.FINALIZE, Kind.NOTARIZE)}

MUTANTS = (
    # The nine of the literature.
    Mutant(
        "notarize twice in a view",
        _patches((Ballot, "allows", _allow_also(Kind.NOTARIZE)), (Engine, "_vote_notarize", _notarize_each)),
    ),
    Mutant("finalize after nullify", _patches((Ballot, "allows", _allow_also(Kind.FINALIZE)))),
    Mutant(
        "nullify after finalize",
        _patches((Ballot, "allows", _allow_also(Kind.NULLIFY)), (Engine, "_vote_nullify", _nullify_the_last_view_too)),
    ),
    Mutant("votes lost on restart", _forget_on_restart(*Kind)),
    Mutant("nullification of skipped views not checked", _patches((Branches, "first_not_nullified", _nothing))),
    Mutant("parent certificate not checked", _patches((Engine, "_verify_proposal", _no_parent_certificate))),
    Mutant("quorum of half the shards", _patches((Committee, "quorum", property(lambda self: self.n // 2)))),
    Mutant("one signer counted twice", _patches((VoteCertificate, "verify", _count_twice))),
    Mutant(
        "vote outside the current view", _patches((Engine, "_vote_notarize", _vote_outside_the_view)), is_harmless=True
    ),
    # Ours.
    Mutant("votes sent before they are synced", _patches((Shell, "_perform", _send_then_log))),
    Mutant("the sync left out", _patches((Disk, "_settle", _no_sync))),
    Mutant("nullify votes not logged", _patches((Shell, "_perform", _perform_without_persist(Kind.NULLIFY)))),
    Mutant(
        "the lock forgotten: finalized and notarized lost on restart",
        _forget_on_restart(Kind.FINALIZE, certificates=True),
    ),
    Mutant("nullify votes lost on restart", _forget_on_restart(Kind.NULLIFY)),
    Mutant("final blocks not on disk", _patches((Disk, "append", _append_nothing))),
    Mutant("a vote's signature not checked", _patches((SignedVote, "verify", _verify_nothing_of_a_vote))),
    Mutant("a certificate's signatures not checked", _patches((VoteCertificate, "verify", _unsigned))),
    Mutant("a known certificate's signers counted unchecked", _patches((Engine, "_adopt", _adopt_and_count))),
    Mutant(
        "another network's votes taken",
        _patches(
            (SignedVote, "verify", _any_chain(_verify_vote)),
            (VoteCertificate, "verify", _any_chain(_verify_certificate)),
        ),
    ),
    Mutant(
        "an old epoch's votes taken",
        _patches(
            (Epoch, "verify_epoch", _nothing),
            (SignedVote, "verify", _any_epoch(_verify_vote)),
            (VoteCertificate, "verify", _any_epoch(_verify_certificate)),
        ),
    ),
    Mutant("f + 1 shards nullify", _patches((tally.Tally, "add", _nullified_by_one_honest))),
    Mutant("every member weighs the same", _patches((Committee, "weight", _one_shard_each))),
    Mutant("blocks voted for that are not kept", _patches((Judging, "keep", _nothing))),
    Mutant("only the last final block handed on", _patches((Branches, "undelivered", _last_only))),
    Mutant("the engine goes on behind a boundary", _patches((Epoch, "is_boundary", lambda *_: False))),
    Mutant("state root and time of a block not judged", _patches((Shell, "_judge", _judge_good))),
    Mutant("blocks caught up without a finality", _patches((Finality, "verify", _unproven_finality))),
    Mutant("honest members blamed for notarize and nullify", _patches((tally, "CONTRADICTIONS", CONTRADICTIONS))),
    Mutant(
        "own votes not counted again after a restart",
        _patches((Engine, "_restore", _restore_uncounted)),
        draw=draw_fall,
    ),
    Mutant("nothing sent again", _patches((Engine, "_vote_nullify", _nullify_once), (Engine, "_stir", _nothing))),
    Mutant("nothing asked for", _patches((Asking, "_ask", _nothing), (Shell, "behind", _nothing))),
    # Committees that change.
    Mutant(
        "a boundary that names no committee taken",
        _patches((block, "_verify_boundary", _nothing)),
        draw=draw_mixed,
        seeds_max=MIXED_SEEDS_MAX,
    ),
    Mutant(
        "a boundary made that names no committee",
        _patches((chain, "block_time_ms", _undated)),
        draw=draw_mixed,
        seeds_max=MIXED_SEEDS_MAX,
    ),
    Mutant(
        "the next committee's name not judged",
        _patches((Chain, "is_true", _any_name)),
        draw=draw_mixed,
        seeds_max=MIXED_SEEDS_MAX,
    ),
    Mutant(
        "the next committee's name judged by the newest state",
        _patches((Chain, "is_true", _newest_name)),
        draw=draw_mixed,
        seeds_max=MIXED_SEEDS_MAX,
    ),
    Mutant(
        "no time left before the end of an epoch",
        _patches((block, "_stands_still", lambda *_, **__: False)),
        draw=draw_mixed,
        seeds_max=MIXED_SEEDS_MAX,
    ),
    Mutant(
        "the last epoch's committee kept",
        _patches((Shell, "_make_engine", _with_the_last_committee)),
        draw=draw_mixed,
        seeds_max=MIXED_SEEDS_MAX,
    ),
    Mutant(
        "the last epoch's index kept",
        _patches((Shell, "_make_engine", _with_the_last_index)),
        draw=draw_mixed,
        seeds_max=MIXED_SEEDS_MAX,
    ),
    Mutant(
        "a lost disk not noticed",
        _patches((Disk, "roll_back", _forget_silently), (Voting, "meet_foreign", _nothing)),
        draw=draw_mixed,
        seeds_max=MIXED_SEEDS_MAX,
    ),
    Mutant(
        "silence ended by the end of an epoch",
        _patches((Engine, "quiet_next_epoch", None), (Voting, "meet_foreign", _nothing)),
        draw=draw_forgetful,
        seeds_max=MIXED_SEEDS_MAX,
    ),
)
