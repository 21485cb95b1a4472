"""The wires between simulated members: late, twice, out of order, or never, until the adversary is told to stop."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.world import World

Deliver = Callable[[int, int, Any], None]
"""(sender, receiver, payload)"""
Route = Callable[[int, int, object], int | None]
"""Returns by how many ms a payload is late, or None to lose it."""


@dataclass(frozen=True, slots=True)
class Weather:
    """What the wires do to a payload; probabilities in percent, delays in ms."""

    delay_ms: tuple[int, int] = (5, 60)
    loss: int = 0
    twice: int = 0
    late: int = 0
    """How many are late by up to `late_ms` more."""
    late_ms: int = 0


@dataclass(slots=True)
class Network:
    """Payloads travel as objects: all are immutable."""

    world: World
    deliver: Deliver
    weather: Weather
    groups: dict[int, int] = field(default_factory=dict)
    """Member -> side of a partition; payloads cross no border."""
    slow_ms: dict[int, int] = field(default_factory=dict)
    """Member -> what its links cost more."""
    route: Route | None = None
    """Set by a test that plays the wires itself."""
    sent: int = 0
    lost: int = 0

    def send(self, sender: int, receiver: int, payload: object) -> None:
        self.sent += 1
        if self.route is not None:
            late_ms = self.route(sender, receiver, payload)
            if late_ms is not None:
                self.world.after(late_ms, self.deliver, sender, receiver, payload)
            return
        weather = self.weather
        percent = self.world.random.random() * 100
        if percent < weather.loss or (self.groups and self.groups.get(sender) != self.groups.get(receiver)):
            self.lost += 1
            return
        self._post(sender, receiver, payload)
        if weather.twice and self.world.random.random() * 100 < weather.twice:
            self._post(sender, receiver, payload)

    def _post(self, sender: int, receiver: int, payload: object) -> None:
        weather, random = self.weather, self.world.random
        low, high = weather.delay_ms
        delay = low + int(random.random() * (high - low + 1))
        if weather.late and random.random() * 100 < weather.late:
            delay += int(random.random() * weather.late_ms)
        if self.slow_ms:
            delay += self.slow_ms.get(sender, 0) + self.slow_ms.get(receiver, 0)
        self.world.after(delay, self.deliver, sender, receiver, payload)

    def part(self, groups: dict[int, int]) -> None:
        self.groups = groups

    def calm(self, weather: Weather) -> None:
        """End every fault but those of `weather`."""
        self.weather = weather
        self.groups = {}
        self.slow_ms = {}
        self.route = None
