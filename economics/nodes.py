"""The values of the ledger's state about nodes: stake, seats, what an epoch demands, challenges (FORMATS.md 11).

Formats only: no rule of the ledger.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from struct import Struct
from typing import ClassVar, NamedTuple

from economics.committee import Committee
from economics.crypto import DIGEST_BYTES, KEY_BYTES, Digest, NodeId, OwnerId
from economics.errors import Reason, Rejected
from economics.fields import Fields
from economics.slots import (
    HANDOVER_SLOT,
    ROUND_SLOT,
    STANDING_SLOT,
    Slot,
    StakeId,
    beacon_slot,
    encode_texts,
    node_slot,
    offence_slot,
    open_fields,
    seats_slot,
    stake_slot,
    terms_slot,
    unpack,
)

_NODE = Struct(">B32s32sQQQQQHHQHB")
_OFFENCE = Struct(">B32sQQQ")
_TERMS = Struct(">BQQQQ")
_STAKE = Struct(">B32s32s32sBQQQ")
_BEACON = Struct(">B32s32sQ32sQQH")
_HANDOVER = Struct(">BQQQH")
_ROUND = Struct(">BQHQQ32sH")
_TALLY = Struct(">HHHHH")
_STANDING = Struct(">BQHH")
_MARKS = Struct(">HHHH")
NO_COMMITMENT = Digest(bytes(DIGEST_BYTES))


@dataclass(frozen=True, slots=True)
class NodeEntry:
    """A registered node with its pool of stake; `owner` alone may change what it offers."""

    KIND: ClassVar[int] = 7
    node: NodeId
    owner: OwnerId
    stake_frost: int
    """Of the pool: what all its shares are worth together."""
    shares: int
    capacity_units: int
    """What its disk can hold, in units of 64 KiB of slivers; 0 for a node that is leaving."""
    storage_vote_frost: int
    """What its owner would have one unit cost for one epoch."""
    write_vote_frost: int
    """What its owner would have the writing of one unit cost."""
    commission_basis_points: int
    """The owner's part of the pool's rewards, until `commission_epoch`."""
    next_commission_basis_points: int
    commission_epoch: int
    """The epoch from whose rewards on the next commission counts."""
    missed_epochs: int
    """Epochs running in which it did not stand most of its challenges for being away."""
    addresses: tuple[str, ...]

    @property
    def slot(self) -> Slot:
        return node_slot(self.node)

    def encode(self) -> bytes:
        head = _NODE.pack(
            self.KIND,
            self.node,
            self.owner,
            self.stake_frost,
            self.shares,
            self.capacity_units,
            self.storage_vote_frost,
            self.write_vote_frost,
            self.commission_basis_points,
            self.next_commission_basis_points,
            self.commission_epoch,
            self.missed_epochs,
            len(self.addresses),
        )
        return head + encode_texts(self.addresses)

    @classmethod
    def decode(cls, data: bytes) -> "NodeEntry":
        fields = open_fields(data, kind=cls.KIND, what="a node")
        node, owner = NodeId(fields.take(KEY_BYTES)), OwnerId(fields.take(KEY_BYTES))
        stake, shares, capacity, storage, write = (fields.take_int(8) for _ in range(5))
        commission, following, epoch, missed = (fields.take_int(size) for size in (2, 2, 8, 2))
        addresses = tuple(fields.take_text(1) for _ in range(fields.take_int(1)))
        fields.end()
        return cls(
            node, owner, stake, shares, capacity, storage, write, commission, following, epoch, missed, addresses
        )


@dataclass(frozen=True, slots=True)
class Offence:
    """A view for which a node has been punished; it is not punished for it again."""

    KIND: ClassVar[int] = 8
    node: NodeId
    epoch: int
    view: int
    height: int

    @property
    def slot(self) -> Slot:
        return offence_slot(self.node, epoch=self.epoch, view=self.view)

    def encode(self) -> bytes:
        return _OFFENCE.pack(self.KIND, self.node, self.epoch, self.view, self.height)

    @classmethod
    def decode(cls, data: bytes) -> "Offence":
        return cls(*unpack(_OFFENCE, data, kind=cls.KIND, what="an offence"))  # type: ignore[arg-type]


class Phase(IntEnum):
    """Where a stake is on its way; it goes through them in order."""

    WAITING = 1
    """Paid; it joins its node's pool when the epoch `turn_epoch` begins."""
    ACTIVE = 2
    """In the pool, as shares of it."""
    LEAVING = 3
    """Still in the pool, until the epoch `turn_epoch` begins."""
    UNBONDING = 4
    """Out of the pool but still slashed with it, until it is paid back when the epoch `turn_epoch` begins."""


@dataclass(frozen=True, slots=True)
class Stake:
    """What an owner has put on a node."""

    KIND: ClassVar[int] = 12
    stake: StakeId
    owner: OwnerId
    node: NodeId
    phase: Phase
    frost: int
    """0 while it is in the pool."""
    shares: int
    """0 while it is not in the pool."""
    turn_epoch: int
    """The epoch at whose beginning its phase ends; 0 for an active one."""

    @property
    def slot(self) -> Slot:
        return stake_slot(self.stake)

    def encode(self) -> bytes:
        return _STAKE.pack(
            self.KIND, self.stake, self.owner, self.node, self.phase, self.frost, self.shares, self.turn_epoch
        )

    @classmethod
    def decode(cls, data: bytes) -> "Stake":
        stake, owner, node, phase, *numbers = unpack(_STAKE, data, kind=cls.KIND, what="a stake")
        if phase not in list(Phase):
            raise Rejected(Reason.MALFORMED, "a stake is in no such phase")
        return cls(stake, owner, node, Phase(int(phase)), *numbers)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Seats:
    """The committee of an epoch; kept while its members may be punished, or hold what others are to take over."""

    KIND: ClassVar[int] = 10
    committee: Committee

    @property
    def slot(self) -> Slot:
        return seats_slot(self.committee.epoch)

    def encode(self) -> bytes:
        """Return the kind and the bytes of the committee, which begin with the epoch."""
        return self.KIND.to_bytes(1, "big") + self.committee.encode()

    @classmethod
    def decode(cls, data: bytes) -> "Seats":
        fields = open_fields(data, kind=cls.KIND, what="a committee's seats")
        return cls(Committee.decode(fields.take(fields.left)))


@dataclass(frozen=True, slots=True)
class Terms:
    """What an epoch sells storage for, and how much of it: the members' votes of the epoch before."""

    KIND: ClassVar[int] = 11
    epoch: int
    capacity_units: int
    """Of encoded bytes, over all shards together."""
    storage_frost_per_unit: int
    """Of one unit for one epoch."""
    write_frost_per_unit: int
    """Of reserving or extending one unit, however long."""

    @property
    def slot(self) -> Slot:
        return terms_slot(self.epoch)

    def encode(self) -> bytes:
        return _TERMS.pack(
            self.KIND, self.epoch, self.capacity_units, self.storage_frost_per_unit, self.write_frost_per_unit
        )

    @classmethod
    def decode(cls, data: bytes) -> "Terms":
        return cls(*unpack(_TERMS, data, kind=cls.KIND, what="an epoch's terms"))  # type: ignore[arg-type]


class Stage(NamedTuple):
    """A part of a handover: what was certified before an epoch was held by the committee of an earlier one."""

    since_epoch: int
    source_epoch: int


@dataclass(frozen=True, slots=True)
class Handover:
    """Whether the committee holds what was certified before it: until then others are read from (FORMATS.md 18)."""

    KIND: ClassVar[int] = 13
    since_epoch: int
    """The first epoch in which exactly these members held exactly these shards."""
    source_epoch: int
    """Whose committee holds what was certified before `since_epoch`; that epoch itself once all is handed over."""
    done_height: int
    """The height at which a quorum of shards had reported; 0 while it has not."""
    reporters: tuple[int, ...]
    """Members that hold all they owe of what was certified before `since_epoch`, ascending."""
    older: tuple[Stage, ...] = ()
    """What had not been handed over when seats were dealt anew, the oldest first."""

    @property
    def slot(self) -> Slot:
        return HANDOVER_SLOT

    @property
    def is_done(self) -> bool:
        return self.source_epoch == self.since_epoch

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is being handed over, the oldest first; none once all is."""
        return () if self.is_done else (*self.older, Stage(self.since_epoch, self.source_epoch))

    def sources(self, certified_epoch: int) -> list[int]:
        """Return the epochs whose committees may hold what was certified then, beside the current one.

        The first is sure to; the others hold it as far as their members have reported.
        """
        return [stage.source_epoch for stage in self.stages if certified_epoch < stage.since_epoch]

    def encode(self) -> bytes:
        head = _HANDOVER.pack(self.KIND, self.since_epoch, self.source_epoch, self.done_height, len(self.reporters))
        older = b"".join(epoch.to_bytes(8, "big") for stage in self.older for epoch in stage)
        return head + _encode_indices(self.reporters) + older

    @classmethod
    def decode(cls, data: bytes) -> "Handover":
        fields = open_fields(data, kind=cls.KIND, what="a handover")
        since, source, height = (fields.take_int(8) for _ in range(3))
        reporters = _take_indices(fields)
        older: list[Stage] = []
        while fields.left:
            older.append(Stage(fields.take_int(8), fields.take_int(8)))
        found = cls(since, source, height, reporters, tuple(older))
        epochs = [epoch for stage in found.stages for epoch in reversed(stage)]
        is_fit = epochs == sorted(epochs) and all(stage.source_epoch < stage.since_epoch for stage in found.stages)
        if not is_fit or (older and found.is_done):
            raise Rejected(Reason.MALFORMED, "the stages of a handover follow each other")
        return found


def _encode_indices(indices: Sequence[int]) -> bytes:
    return b"".join(index.to_bytes(2, "big") for index in indices)


def _take_indices(fields: Fields) -> tuple[int, ...]:
    indices = tuple(fields.take_int(2) for _ in range(fields.take_int(2)))
    if list(indices) != sorted(set(indices)):
        raise Rejected(Reason.MALFORMED, "members are ascending and distinct")
    return indices


@dataclass(frozen=True, slots=True)
class Beacon:
    """A node's hash onion: its tip is the hash of what it reveals next (FORMATS.md 17)."""

    KIND: ClassVar[int] = 16
    node: NodeId
    tip: Digest
    """H(beacon, next reveal); zero for none."""
    from_epoch: int
    """The first epoch in which reveals of the tip count."""
    next_tip: Digest
    """Takes the tip's place in the epoch `next_epoch`; zero for none."""
    next_epoch: int
    revealed_epoch: int
    revealed_round: int
    """The round, counted from 1, in which its last reveal counted; 0 for none: one a round does."""

    @property
    def slot(self) -> Slot:
        return beacon_slot(self.node)

    def encode(self) -> bytes:
        return _BEACON.pack(
            self.KIND,
            self.node,
            self.tip,
            self.from_epoch,
            self.next_tip,
            self.next_epoch,
            self.revealed_epoch,
            self.revealed_round,
        )

    @classmethod
    def decode(cls, data: bytes) -> "Beacon":
        return cls(*unpack(_BEACON, data, kind=cls.KIND, what="a beacon"))  # type: ignore[arg-type]


class Outcome(IntEnum):
    """What an auditor says of a challenged member."""

    UNKNOWN = 0
    """The auditor cannot tell: it lacks its own slivers, or was away itself."""
    OK = 1
    BAD = 2
    """It answered, and wrongly."""
    OFFLINE = 3
    """It was not to be reached, or said itself that it does not hold all that it owes."""
    SLOW = 4
    """It answered too late."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What the auditors of a round said of one challenged member, in shards."""

    member: int
    ok: int = 0
    bad: int = 0
    offline: int = 0
    slow: int = 0

    def with_outcome(self, outcome: Outcome, shards: int) -> "Tally":
        match outcome:
            case Outcome.UNKNOWN:
                return self
            case Outcome.OK:
                return replace(self, ok=self.ok + shards)
            case Outcome.BAD:
                return replace(self, bad=self.bad + shards)
            case Outcome.OFFLINE:
                return replace(self, offline=self.offline + shards)
            case Outcome.SLOW:
                return replace(self, slow=self.slow + shards)


@dataclass(frozen=True, slots=True)
class Round:
    """The round of challenges that is going on. It stays in the state, closed, until the next one begins."""

    KIND: ClassVar[int] = 14
    epoch: int
    number: int
    """Counted from 1 in each epoch."""
    height: int
    """Of the block that began it: what is sampled was live before it."""
    start_ms: int
    seed: Digest
    tallies: tuple[Tally, ...]
    """Of the challenged members, ascending."""
    reporters: tuple[int, ...]
    """Members whose audit is on chain, ascending."""

    @property
    def slot(self) -> Slot:
        return ROUND_SLOT

    def encode(self) -> bytes:
        head = _ROUND.pack(self.KIND, self.epoch, self.number, self.height, self.start_ms, self.seed, len(self.tallies))
        rows = (_TALLY.pack(row.member, row.ok, row.bad, row.offline, row.slow) for row in self.tallies)
        return b"".join((head, *rows, len(self.reporters).to_bytes(2, "big"), _encode_indices(self.reporters)))

    @classmethod
    def decode(cls, data: bytes) -> "Round":
        fields = open_fields(data, kind=cls.KIND, what="a round")
        epoch, number, height, start = (fields.take_int(size) for size in (8, 2, 8, 8))
        seed = Digest(fields.take(DIGEST_BYTES))
        tallies = tuple(Tally(*_TALLY.unpack(fields.take(_TALLY.size))) for _ in range(fields.take_int(2)))
        reporters = _take_indices(fields)
        fields.end()
        if any(low.member >= high.member for low, high in itertools.pairwise(tallies)):
            raise Rejected(Reason.MALFORMED, "challenged members are ascending and distinct")
        return cls(epoch, number, height, start, seed, tallies, reporters)


@dataclass(frozen=True, slots=True)
class Marks:
    """How one member has stood an epoch's rounds so far."""

    challenged: int = 0
    """Rounds in which it was challenged and enough auditors said something of it."""
    passed: int = 0
    bad: int = 0
    unreported: int = 0
    """Rounds in which its own audit never came."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The marks of the current epoch, by member."""

    KIND: ClassVar[int] = 15
    epoch: int
    rounds: int
    """Rounds so far in which more than f shards reported."""
    marks: tuple[Marks, ...]

    @property
    def slot(self) -> Slot:
        return STANDING_SLOT

    def encode(self) -> bytes:
        rows = (_MARKS.pack(row.challenged, row.passed, row.bad, row.unreported) for row in self.marks)
        return _STANDING.pack(self.KIND, self.epoch, self.rounds, len(self.marks)) + b"".join(rows)

    @classmethod
    def decode(cls, data: bytes) -> "Standing":
        fields = open_fields(data, kind=cls.KIND, what="a standing")
        epoch, rounds = fields.take_int(8), fields.take_int(2)
        marks = tuple(Marks(*_MARKS.unpack(fields.take(_MARKS.size))) for _ in range(fields.take_int(2)))
        fields.end()
        return cls(epoch, rounds, marks)
