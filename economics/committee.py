"""Who holds which shards in an epoch, and what their signatures weigh. Weight comes from here, never from a message."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from economics.crypto import KEY_BYTES, Digest, Level, NodeId, OwnerId, digest
from economics.errors import Reason, Rejected
from economics.fields import Fields
from economics.geometry import SHARDS_MAX, SHARDS_MIN, quorum


@dataclass(frozen=True, slots=True)
class Member:
    """One node of a committee; `shards` is how many it holds."""

    node: NodeId
    owner: OwnerId
    shards: int
    addresses: tuple[str, ...] = field(default=(), compare=False)
    """Where it said it can be reached; no part of who it is."""


@dataclass(frozen=True)
class Committee:
    """The members of one epoch in index order, and which of them holds each shard."""

    epoch: int
    members: tuple[Member, ...]
    holders: tuple[int, ...] = ()
    """The index of each shard's holder. If not given, shards are dealt in index order, from 0, as at genesis."""

    def __post_init__(self) -> None:
        if not self.holders:
            dealt = tuple(index for index, member in enumerate(self.members) for _ in range(member.shards))
            object.__setattr__(self, "holders", dealt)

    def in_epoch(self, epoch: int) -> "Committee":
        """Return the same members with the same shards, in another epoch."""
        return replace(self, epoch=epoch)

    @cached_property
    def n(self) -> int:
        return sum(member.shards for member in self.members)

    @cached_property
    def quorum(self) -> int:
        """q = n - f shards."""
        return quorum(self.n)

    @cached_property
    def _shards(self) -> tuple[tuple[int, ...], ...]:
        held: list[list[int]] = [[] for _ in self.members]
        for shard, index in enumerate(self.holders):
            held[index].append(shard)
        return tuple(tuple(shards) for shards in held)

    @cached_property
    def _index(self) -> dict[NodeId, int]:
        return {member.node: index for index, member in enumerate(self.members)}

    def index_of(self, node: NodeId) -> int | None:
        """Return the member's index, or None for a node without a seat."""
        return self._index.get(node)

    def encode(self) -> bytes:
        """Return what the committee hash is of (FORMATS.md 9); addresses are no part of it."""
        rows = (member.node + member.owner for member in self.members)
        return b"".join(
            (
                self.epoch.to_bytes(8, "big"),
                len(self.members).to_bytes(2, "big"),
                *rows,
                self.n.to_bytes(2, "big"),
                bytes(self.holders),
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> "Committee":
        """Return the committee of these bytes, its members without addresses; raises `Rejected(MALFORMED)`."""
        fields = Fields(data, "a committee")
        epoch, count = fields.take_int(8), fields.take_int(2)
        keys = [(NodeId(fields.take(KEY_BYTES)), OwnerId(fields.take(KEY_BYTES))) for _ in range(count)]
        holders = tuple(fields.take(fields.take_int(2)))
        fields.end()
        held = Counter(holders)
        if not SHARDS_MIN <= len(holders) <= SHARDS_MAX or set(held) != set(range(count)):
            raise Rejected(Reason.MALFORMED, f"members hold {SHARDS_MIN} to {SHARDS_MAX} shards, each some")
        if len({node for node, _ in keys}) != count:
            raise Rejected(Reason.MALFORMED, "a node is a member twice")
        members = tuple(Member(node, owner, held[index]) for index, (node, owner) in enumerate(keys))
        return cls(epoch, members, holders)

    @cached_property
    def hash(self) -> Digest:
        return digest(Level.COMMITTEE, self.encode())

    def holder(self, shard: int) -> int:
        """Return the index of the member that holds `shard`."""
        return self.holders[shard]

    def shards_of(self, index: int) -> tuple[int, ...]:
        """Return the shards of the member of this index, ascending."""
        return self._shards[index]

    def shards_of_node(self, node: NodeId) -> tuple[int, ...]:
        """Return the shards of a node, ascending; none for one without a seat."""
        index = self.index_of(node)
        return () if index is None else self._shards[index]

    def weight(self, indices: Iterable[int]) -> int:
        """Return the shards of these distinct members together."""
        return sum(self.members[index].shards for index in set(indices))

    def verify_minimal_quorum(self, indices: Sequence[int]) -> None:
        """Raise `Rejected` unless these distinct members reach the quorum, and would not without any one of them."""
        weight = self.weight(indices)
        if weight < self.quorum:
            raise Rejected(Reason.NO_QUORUM, f"{weight} of {self.quorum} shards")
        if weight - min(self.members[index].shards for index in indices) >= self.quorum:
            raise Rejected(Reason.NOT_MINIMAL, "the quorum is reached without one of the signers")
