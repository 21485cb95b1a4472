"""One heap, one clock, one seed: whatever happens in a simulation is an event here, in an order that a seed repeats."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any

from blake3 import blake3


class World:
    """Virtual time in ms from 0. Events at one time happen in the order in which they were asked for."""

    def __init__(self, seed: int, *, log: Callable[[str], None] | None = None) -> None:
        self.random = Random(seed)
        self.now_ms = 0
        self.events = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._trace = blake3()
        self._log = log

    def after(self, delay_ms: int, action: Callable[..., None], *arguments: Any) -> None:
        heappush(self._heap, (self.now_ms + delay_ms, next(self._order), action, arguments))

    def note(self, *what: object) -> None:
        """Add to the trace. Every delivery and effect is noted, so equal hashes mean equal runs."""
        line = f"{self.now_ms} {what}\n"
        self._trace.update(line.encode("utf-8"))
        if self._log is not None:
            self._log(line)

    @property
    def trace_hash(self) -> str:
        return self._trace.hexdigest(16)

    def run(self, is_done: Callable[[], bool], *, until_ms: int) -> bool:
        """Let events happen until `is_done`, asked after each; False if time or the events ran out before."""
        heap = self._heap
        while not is_done():
            if not heap or heap[0][0] > until_ms:
                self.now_ms = max(self.now_ms, until_ms)
                return False
            self.now_ms, _, action, arguments = heappop(heap)
            self.events += 1
            action(*arguments)
        return True
