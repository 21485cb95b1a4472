"""Who holds which shards in an epoch, and what their signatures weigh. Weight comes from here, never from a message."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Committee:
    """The members of one epoch in index order; shards are dealt in that order, from 0."""

    epoch: int
    members: tuple[Member, ...]

    @cached_property
    def n(self) -> int:
        return sum(member.shards for member in self.members)

    @cached_property
    def quorum(self) -> int:
        """q = n - f shards."""
        return quorum(self.n)

    @cached_property
    def _holder(self) -> tuple[int, ...]:
        return tuple(index for index, member in enumerate(self.members) for _ in range(member.shards))

    @cached_property
    def _index(self) -> dict[NodeId, int]:
        return {member.node: index for index, member in enumerate(self.members)}

    def index_of(self, node: NodeId) -> int | None:
        """Return the member's index, or None for a node without a seat."""
        return self._index.get(node)

    def encode(self) -> bytes:
        """Return what the committee hash is of (FORMATS.md 9); addresses are no part of it."""
        rows = (member.node + member.owner + member.shards.to_bytes(2, "big") for member in self.members)
        return b"".join((self.epoch.to_bytes(8, "big"), len(self.members).to_bytes(2, "big"), *rows))

    @classmethod
    def decode(cls, data: bytes) -> "Committee":
        """Return the committee of these bytes, its members without addresses; raises `Rejected(MALFORMED)`."""
        fields = Fields(data, "a committee")
        epoch, count = fields.take_int(8), fields.take_int(2)
        members = tuple(
            Member(NodeId(fields.take(KEY_BYTES)), OwnerId(fields.take(KEY_BYTES)), fields.take_int(2), ())
            for _ in range(count)
        )
        fields.end()
        committee = cls(epoch, members)
        if not SHARDS_MIN <= committee.n <= SHARDS_MAX or not all(member.shards for member in members):
            raise Rejected(Reason.MALFORMED, f"members hold {SHARDS_MIN} to {SHARDS_MAX} shards, each some")
        if len({member.node for member in members}) != count:
            raise Rejected(Reason.MALFORMED, "a node is a member twice")
        return committee

    @cached_property
    def hash(self) -> Digest:
        return digest(Level.COMMITTEE, self.encode())

    def holder(self, shard: int) -> int:
        """Return the index of the member that holds `shard`."""
        return self._holder[shard]

    def shards_of(self, index: int) -> range:
        first = sum(member.shards for member in self.members[:index])
        return range(first, first + self.members[index].shards)

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
