"""One fetch for all who want the same at once: it runs apart from them, and ends when nobody waits any more."""

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import trio

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass(slots=True)
class _Flight:
    waiting: int = 0
    done: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    result: Any = None
    fault: Exception | None = None


class Flights(Generic[K, T]):
    """Fetches under way, by what they fetch; their tasks are in the nursery."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._flights: dict[K, _Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def get(self, key: K, fetch: Callable[[], Awaitable[T]]) -> T:
        """Return what `fetch` returns, or raise what it raises, having it run once however many ask meanwhile."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            self._nursery.start_soon(self._fly, key, flight, fetch)
        flight.waiting += 1
        try:
            await flight.done.wait()
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.done.is_set():
                self._land(key, flight)
                flight.scope.cancel()
        if flight.fault is not None:
            raise flight.fault
        result: T = flight.result
        return result

    async def _fly(self, key: K, flight: _Flight, fetch: Callable[[], Awaitable[T]]) -> None:
        with flight.scope:
            try:
                flight.result = await fetch()
            except Exception as fault:
                flight.fault = fault
            self._land(key, flight)
            flight.done.set()

    def _land(self, key: K, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
