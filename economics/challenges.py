"""Challenges: who is asked for what in a round, what is the right answer, and what the auditors' word does to marks.

A round begins with a block and is over when the next one begins, or the epoch ends (FORMATS.md 17).
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate

from economics import beacon, handover
from economics.arguments import ReportAudit
from economics.blob import BlobId, Root
from economics.block import BlockHeader
from economics.committee import Committee
from economics.crypto import Digest, Level, NodeId, digest
from economics.genesis import Parameters
from economics.geometry import Code as Geometry
from economics.geometry import faulty_max
from economics.nodes import Marks, Round, Standing, Tally
from economics.operations import Code, Context, Failed
from economics.slots import ROUND_SLOT, STANDING_SLOT
from economics.state import System
from economics.working import WorkingState


def round_number(time_ms: int, *, system: System, parameters: Parameters) -> int:
    """Return the number, from 1, of the round that a block of this time belongs to; all are 1 where there are none."""
    rounds = max(1, parameters.challenge_rounds)
    elapsed_ms = time_ms - system.epoch_start_ms
    return min(elapsed_ms // slice_ms(parameters) + 1, rounds)


def slice_ms(parameters: Parameters) -> int:
    """Return how long a round is."""
    return max(1, parameters.epoch_ms // max(1, parameters.challenge_rounds))


def current_round(state: WorkingState) -> Round | None:
    value = state.get(ROUND_SLOT)
    assert value is None or isinstance(value, Round)
    return value


def begin_block(state: WorkingState, header: BlockHeader, *, committee: Committee, parameters: Parameters) -> bool:
    """Do what comes before a block's transactions: take the leader's reveal, then begin a round if one is due.

    Returns whether a round began. In this order, as all others have mostly revealed long before a round ends: nobody
    but the leader who begins the next one may know what it asks for while that can still be had from others.
    """
    system = state.system()
    number = round_number(header.time_ms, system=system, parameters=parameters)
    beacon.reveal(state, header, committee, number=number)
    due = _is_due(state, number, epoch=system.epoch, parameters=parameters)
    if due:
        _close(state, committee, epoch=system.epoch)
        state.write(_begun(header, number, system=state.system(), committee=committee))
    return due


def _is_due(state: WorkingState, number: int, *, epoch: int, parameters: Parameters) -> bool:
    """Numbers may be skipped; while shards are on their way nobody is challenged, unless that is overdue."""
    going, last = state.handover(), current_round(state)
    waits = not going.is_done and not handover.is_overdue(going, epoch=epoch, parameters=parameters)
    if parameters.challenge_rounds == 0 or waits:
        return False
    return last is None or (last.epoch, last.number) < (epoch, number)


def _begun(header: BlockHeader, number: int, *, system: System, committee: Committee) -> Round:
    seed = round_seed(system.seed, epoch=system.epoch, number=number)
    tallies = tuple(Tally(index) for index in challenged(committee, seed))
    return Round(system.epoch, number, header.height, header.time_ms, seed, tallies, reporters=())


def round_seed(running: Digest, *, epoch: int, number: int) -> Digest:
    """Return what a round draws by: rounds differ even while nobody reveals, as in the first epochs."""
    return digest(Level.SEED, running + epoch.to_bytes(8, "big") + number.to_bytes(2, "big"))


def challenged(committee: Committee, seed: Digest) -> tuple[int, ...]:
    """Return the members that a seed challenges, ascending: at most f shards, so what they keep frozen stays readable.

    A member with more than f shards is never one of them.
    """
    left = faulty_max(committee.n)
    drawn = sorted(
        range(len(committee.members)), key=lambda index: digest(Level.SAMPLE, seed + index.to_bytes(2, "big"))
    )
    taken = []
    for index in drawn:
        if committee.members[index].shards <= left:
            left -= committee.members[index].shards
            taken.append(index)
    return tuple(sorted(taken))


@dataclass(frozen=True, slots=True)
class Owed:
    """The segments that every shard owes a pair of slivers of: those of all live blobs, in the order of their IDs."""

    blobs: tuple[BlobId, ...]
    ends: tuple[int, ...]
    """How many segments there are up to and with each blob."""

    @classmethod
    def of(cls, blobs: Iterable[tuple[BlobId, int]], code: Geometry) -> "Owed":
        """Return the segments of blobs of these lengths, which come ascending by ID; 0.5 us a blob."""
        rows = [(blob_id, code.segment_count(length)) for blob_id, length in blobs]
        return cls(tuple(blob_id for blob_id, _ in rows), tuple(accumulate(count for _, count in rows)))

    @property
    def total(self) -> int:
        return self.ends[-1] if self.ends else 0

    def at(self, position: int) -> tuple[BlobId, int]:
        """Return the blob and the index in it of one of the segments."""
        place = bisect_right(self.ends, position)
        return self.blobs[place], position - (self.ends[place - 1] if place else 0)


def sample(owed: Owed, *, seed: Digest, shard: int, count: int) -> list[tuple[BlobId, int]]:
    """Return the segments that a challenged shard is asked about: `count` draws, what is drawn twice once.

    Every segment is as likely, so who keeps a part p of them stands a round with a probability of p^count.
    """
    if owed.total <= count:
        return [owed.at(position) for position in range(owed.total)]
    place = seed + shard.to_bytes(2, "big")
    drawn = (digest(Level.SAMPLE, place + draw.to_bytes(4, "big")) for draw in range(count))
    return [owed.at(position) for position in dict.fromkeys(int.from_bytes(one, "big") % owed.total for one in drawn)]


def answer(
    seed: Digest, *, target: NodeId, root: Root, shard: int, auditor_shard: int, row: bytes, column: bytes
) -> Digest:
    """Return the one right answer about a segment: a hash of both symbols in which the two shards' slivers cross.

    `row` is the symbol of the target's primary sliver, `column` that of its secondary one. The target's name is in the
    hash: no answer serves anyone else.
    """
    places = shard.to_bytes(2, "big") + auditor_shard.to_bytes(2, "big")
    return digest(Level.ANSWER, b"".join((seed, target, root, places, row, column)))


def report_audit(context: Context, operation: ReportAudit, committee: Committee) -> None:
    """Count what a member says of each challenged one, by its own shards; nobody's word on itself counts."""
    index, current = committee.index_of(NodeId(context.sender)), current_round(context.state)
    if index is None:
        raise Failed(Code.NOT_MEMBER)
    if operation.epoch != context.epoch:
        raise Failed(Code.WRONG_EPOCH)
    if current is None or (current.epoch, current.number) != (operation.epoch, operation.number):
        raise Failed(Code.WRONG_ROUND)
    if index in current.reporters:
        raise Failed(Code.ALREADY_REPORTED)
    if len(operation.outcomes) != len(current.tallies):
        raise Failed(Code.WRONG_AMOUNT)
    shards = committee.members[index].shards
    tallies = tuple(
        tally if tally.member == index else tally.with_outcome(outcome, shards)
        for tally, outcome in zip(current.tallies, operation.outcomes, strict=True)
    )
    reporters = tuple(sorted((*current.reporters, index)))
    context.state.write(replace(current, tallies=tallies, reporters=reporters))


def close_epoch(state: WorkingState, committee: Committee) -> Standing:
    """End the epoch's last round and return how its members stand."""
    return _close(state, committee, epoch=state.system().epoch)


def _close(state: WorkingState, committee: Committee, *, epoch: int) -> Standing:
    """Turn what was said in the round that is going on into marks; one of an earlier epoch is closed already."""
    standing, current = state.get(STANDING_SLOT), current_round(state)
    assert isinstance(standing, Standing)
    if current is None or current.epoch != epoch:
        return standing
    marks = list(standing.marks)
    for tally in current.tallies:
        marks[tally.member] = _with_verdict(marks[tally.member], tally, faulty=faulty_max(committee.n))
    if committee.weight(current.reporters) > faulty_max(committee.n):
        for index in set(range(len(marks))).difference(current.reporters):
            marks[index] = replace(marks[index], unreported=marks[index].unreported + 1)
        standing = replace(standing, rounds=standing.rounds + 1)
    standing = replace(standing, marks=tuple(marks))
    state.write(standing)
    return standing


def _with_verdict(marks: Marks, tally: Tally, *, faulty: int) -> Marks:
    """Without the word of more than f shards a round is void: liars alone neither pass a member nor fail it."""
    said = tally.ok + tally.bad + tally.offline + tally.slow
    if said <= faulty:
        return marks
    return replace(
        marks,
        challenged=marks.challenged + 1,
        passed=marks.passed + (2 * tally.ok > said),
        bad=marks.bad + (2 * tally.bad > said),
    )
