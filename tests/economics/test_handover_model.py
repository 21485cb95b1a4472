"""No blob becomes unreadable while seats change hands: random histories of stakes, uploads, reports and deletions.

A model of what nodes have on their disks, by the rules of FORMATS.md 18, around the ledger's own handover.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from economics import handover
from economics.apportionment import apportion, reseat
from economics.arguments import ReportSync
from economics.committee import Committee, Member
from economics.crypto import NodeId, OwnerId
from economics.genesis import Parameters
from economics.nodes import Handover
from economics.operations import Context
from economics.working import WorkingState

N, Q, F = 10, 7, 3
NODES = [NodeId(bytes([number]) * 32) for number in range(8)]
OWNERS = {node: OwnerId(bytes(node)) for node in NODES}
PARAMETERS = Parameters(missed_epochs_max=2)


@dataclass
class Notebook:
    """All that a handover needs of a state."""

    value: Handover

    def handover(self) -> Handover:
        return self.value

    def write(self, value: Handover) -> None:
        self.value = value


@dataclass
class World:
    """Nodes with their disks, and the committees of all epochs."""

    random: Random
    reluctance: float
    """The part of reports that do not come."""
    committees: list[Committee] = field(default_factory=list)
    blobs: list[int] = field(default_factory=list)
    """By blob: the epoch in which it was certified."""
    disks: set[tuple[NodeId, int, int]] = field(default_factory=set)
    """(node, shard, blob)."""
    stages_most: int = 0
    unstuck: int = 0
    """Handovers that ended with more than one stage."""

    def __post_init__(self) -> None:
        members = tuple(Member(node, OWNERS[node], shards) for node, shards in zip(NODES, (3, 3, 2, 2), strict=False))
        self.committees.append(Committee(0, members))
        self.book = Notebook(Handover(0, 0, 0, (0, 1, 2, 3)))

    @property
    def committee(self) -> Committee:
        return self.committees[-1]

    def readers(self, blob: int) -> list[Committee]:
        sources = self.book.value.sources(self.blobs[blob])
        return [*(self.committees[epoch] for epoch in sources), self.committee]

    def readable(self, blob: int) -> list[int]:
        """Return the shards whose slivers of a blob some reader finds where it looks."""
        return [
            shard
            for shard in range(N)
            if any((seats.members[seats.holder(shard)].node, shard, blob) in self.disks for seats in self.readers(blob))
        ]

    def certify(self) -> None:
        """Have the holders of a quorum of shards store a new blob."""
        self.blobs.append(self.committee.epoch)
        members = list(range(len(self.committee.members)))
        self.random.shuffle(members)
        stored: list[int] = []
        while self.committee.weight(stored) < Q:
            stored.append(members.pop())
        for index in stored:
            self.store(index, len(self.blobs) - 1)

    def store(self, index: int, blob: int) -> None:
        node = self.committee.members[index].node
        self.disks |= {(node, shard, blob) for shard in self.committee.shards_of(index)}

    def report(self, index: int) -> None:
        """Have a member fetch or recover all that it owes, then say so."""
        for blob, certified in enumerate(self.blobs):
            if certified < self.book.value.since_epoch:
                self.store(index, blob)
        context = SimpleNamespace(
            state=self.book, sender=self.committee.members[index].node, epoch=self.committee.epoch, height=9
        )
        before = self.book.value
        handover.report(cast(Context, cast(Any, context)), ReportSync(self.committee.epoch), self.committee)
        self.unstuck += len(before.stages) > 1 and self.book.value.is_done

    def heal(self) -> None:
        """Have who keeps up store what it missed of its own epochs."""
        for index in self.book.value.reporters:
            for blob in range(len(self.blobs)):
                self.store(index, blob)

    def collect(self, following: Committee) -> None:
        """Have everybody drop what it may."""
        reporters = self.book.value.reporters
        for node, shard, blob in list(self.disks):
            own = {*self.committee.shards_of_node(node), *following.shards_of_node(node)}
            if shard not in own and self.committee.holder(shard) in reporters:
                self.disks.remove((node, shard, blob))

    def elect(self) -> Committee:
        epoch = self.committee.epoch + 1
        if handover.is_waited_for(self.book.value, next_epoch=epoch, parameters=PARAMETERS):
            return self.committee.in_epoch(epoch)
        stakes = {node: self.random.randrange(1, 100) for node in self.random.sample(NODES, 6)}
        due = apportion(stakes, dict.fromkeys(stakes, F), n=N)
        assert due is not None
        return reseat(self.committee, due, OWNERS, epoch=epoch)

    def pass_epoch(self) -> None:
        for _ in range(self.random.randrange(3)):
            self.certify()
        for index in range(len(self.committee.members)):
            if index not in self.book.value.reporters and self.random.random() > self.reluctance:
                self.report(index)
        self.heal()
        following = self.elect()
        self.collect(following)
        before = self.committee
        self.committees.append(following)
        handover.begin(cast(WorkingState, cast(Any, self.book)), before, following, height=9)
        self.stages_most = max(self.stages_most, len(self.book.value.stages))


def histories() -> Iterator[World]:
    for seed in range(60):
        random = Random(seed)
        yield World(random, reluctance=random.choice((0.3, 0.6, 0.8, 0.95)))


def test_a_quorum_of_shards_of_every_blob_is_found_at_all_times() -> None:
    most = unstuck = 0
    for world in histories():
        for _ in range(30):
            world.pass_epoch()
            for blob in range(len(world.blobs)):
                assert len(world.readable(blob)) >= Q, (blob, world.book.value)
        most, unstuck = max(most, world.stages_most), unstuck + world.unstuck
    assert most == handover.STAGES_MAX
    assert unstuck > 10


def test_the_newest_source_alone_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = Handover.sources
    monkeypatch.setattr(Handover, "sources", lambda self, epoch: sources(self, epoch)[-1:])
    with pytest.raises(AssertionError, match=r"older=\(Stage"):
        test_a_quorum_of_shards_of_every_blob_is_found_at_all_times()


def test_the_oldest_source_alone_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = Handover.sources
    monkeypatch.setattr(Handover, "sources", lambda self, epoch: sources(self, epoch)[:1])
    with pytest.raises(AssertionError, match=r"older=\(Stage"):
        test_a_quorum_of_shards_of_every_blob_is_found_at_all_times()


def test_seats_wait_for_a_handover_only_so_long() -> None:
    going = Handover(5, 4, 0, ())
    staged = replace(going, older=((1, 0), (2, 1), (3, 2)))  # type: ignore[arg-type]
    assert [handover.is_waited_for(going, next_epoch=epoch, parameters=PARAMETERS) for epoch in (6, 7)] == [True, False]
    assert handover.is_waited_for(staged, next_epoch=99, parameters=PARAMETERS)
    assert not handover.is_waited_for(replace(going, source_epoch=5), next_epoch=6, parameters=PARAMETERS)
