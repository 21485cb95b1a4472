"""A lookup converges, and neither a frozen nor a lying peer holds it up. Virtual time, no sockets."""

from collections.abc import Iterable, Mapping

import pytest
import trio
from trio.testing import MockClock

from dht.lookup import ASKED_MAX, CLOSEST, PARALLEL, STRAGGLER_S, lookup


class World:
    """Peers are integers, the target is 0; each knows some others, answers after a while, or never."""

    def __init__(self, knows: Mapping[int, Iterable[int]], *, frozen: Iterable[int] = (), failing: Iterable[int] = ()):
        self.knows = knows
        self.frozen = set(frozen)
        self.failing = set(failing)
        self.asked: list[int] = []
        self.given_up: set[int] = set()
        self.in_flight = 0
        self.in_flight_max = 0
        self.replies: list[int] = []

    async def ask(self, peer: int) -> list[int] | None:
        self.asked.append(peer)
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        try:
            await trio.sleep(float("inf") if peer in self.frozen else 0.1)
        finally:
            self.in_flight -= 1
        return None if peer in self.failing else list(self.knows.get(peer, ()))

    def take(self, peer: int, reply: list[int]) -> list[int]:
        self.replies.append(peer)
        return reply

    async def run(self, *starts: int, enough: int | None = None, deadline_s: float = 15) -> list[int]:
        return await lookup(
            starts,
            distance=abs,
            ask=self.ask,
            take=self.take,
            is_enough=lambda: enough is not None and len(self.replies) >= enough,
            give_up=self.given_up.add,
            deadline_s=deadline_s,
        )


async def test_a_lookup_converges_on_the_closest(autojump_clock: MockClock) -> None:
    knows = {peer: range(max(1, peer - 10), peer + 10) for peer in range(1, 200)}
    assert await World(knows).run(100) == list(range(1, CLOSEST + 1))


async def test_nobody_known_is_an_empty_answer(autojump_clock: MockClock) -> None:
    assert await World({}).run() == []


async def test_a_frozen_peer_costs_a_moment_and_is_given_up(autojump_clock: MockClock) -> None:
    world = World({1: [2, 3], 2: [], 3: []}, frozen=[2])
    started = trio.current_time()
    assert await world.run(1) == [1, 3]
    assert trio.current_time() - started == pytest.approx(0.2 + STRAGGLER_S)
    assert world.given_up == {2}


async def test_when_all_are_frozen_the_deadline_ends_it(autojump_clock: MockClock) -> None:
    world = World({}, frozen=range(1, 30))
    started = trio.current_time()
    assert await world.run(*range(1, 30), deadline_s=5) == []
    assert trio.current_time() - started == pytest.approx(5)


async def test_a_failed_peer_makes_room_for_the_next(autojump_clock: MockClock) -> None:
    peers = range(1, CLOSEST + 6)
    assert await World({}, failing=[1, 2, 3, 4, 5]).run(*peers) == list(range(6, CLOSEST + 6))


async def test_at_most_so_many_are_asked_at_once(autojump_clock: MockClock) -> None:
    world = World({})
    await world.run(*range(1, 100))
    assert world.in_flight_max == PARALLEL


async def test_it_ends_early_when_enough_have_answered(autojump_clock: MockClock) -> None:
    world = World({})
    assert len(await world.run(*range(1, 100), enough=3)) == 3


async def test_a_liar_who_invents_ever_closer_peers_is_bounded(autojump_clock: MockClock) -> None:
    world = World({peer: range(peer - 50, peer) for peer in range(1, 10_001)})
    await world.run(10_000, deadline_s=1_000)
    assert len(world.asked) == ASKED_MAX
