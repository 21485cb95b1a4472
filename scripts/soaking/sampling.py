"""The sampler: reads of random acknowledged blobs through one long-lived client, ten a second, each one judged.

A read has failed if it does not return the right bytes within its deadline although at most f shards were down all the
while. Knows nothing of who is struck, only from the fleet since when it was no more than that.
"""

import io
import itertools
import random
from collections import Counter
from collections.abc import Callable

import trio

from economics.errors import Rejected
from p2pnode.clients.session import Session
from p2pnode.clients.streaming import Blobs, write_to
from p2pnode.errors import NodeError
from scripts.soaking.fleet import Fleet
from scripts.soaking.load import Load, StoredBlob, flatten

PERIOD_S = 0.1
DEADLINE_S = 20.0
"""A reader goes round a node that stands still in 2 s, and round slivers that are being audited in a few."""
IN_FLIGHT_MAX = 8
"""Reads at once: beyond that a tick begins none, so that on a slow machine reads do not keep each other waiting."""
FAILURES_SHOWN = 20


class Sampler:
    """Reads all the time, and counts."""

    def __init__(self, client: Session, fleet: Fleet, load: Load, *, seed: int, tell: Callable[[str], None]) -> None:
        self.client = client
        self.fleet = fleet
        self.load = load
        self.counts: Counter[str] = Counter()
        """Of reads by what came of them, and of ticks without one."""
        self.failures: list[str] = []
        self.times: list[float] = []
        """Seconds of each read that was right."""
        self._rng = random.Random(f"{seed} samples")
        self._tell = tell
        self._in_flight = 0

    async def run(self, is_over: Callable[[], bool]) -> None:
        """Begin a read every tenth of a second until it is over, and wait for the last ones."""
        begin = trio.current_time()
        async with trio.open_nursery() as nursery:
            for tick in itertools.count(1):
                if is_over():
                    break
                if self._in_flight >= IN_FLIGHT_MAX:
                    self.counts["skipped"] += 1
                elif self.load.blobs:
                    nursery.start_soon(self._sample, self._rng.choice(self.load.blobs))
                await trio.sleep_until(begin + tick * PERIOD_S)

    async def _sample(self, blob: StoredBlob) -> None:
        begin = trio.current_time()
        self._in_flight += 1
        try:
            fault = await self._read(blob)
        finally:
            self._in_flight -= 1
        spent = trio.current_time() - begin
        if fault is None:
            self.counts["right"] += 1
            self.times.append(spent)
        elif self.fleet.crowded_at >= begin:
            self.counts["excused"] += 1
        else:
            self.counts["failed"] += 1
            if len(self.failures) < FAILURES_SHOWN:
                self.failures.append(self._describe(blob, spent, fault))
                self._tell(f"a read failed: {self.failures[-1]}")

    def _describe(self, blob: StoredBlob, spent: float, fault: str) -> str:
        fleet = self.fleet
        handover = "done" if fleet.handover.is_done else "under way"
        return (
            f"{blob.path.name} in epoch {fleet.committee.epoch}, {spent:.1f} s, down {sorted(fleet.down)}, "
            f"refilling {sorted(fleet.refilling)}, handover {handover}: {fault}"
        )

    async def _read(self, blob: StoredBlob) -> str | None:
        """Return what is wrong with a read of a blob, or None."""
        sink = io.BytesIO()
        said: list[str] = []
        with trio.move_on_after(DEADLINE_S) as scope:
            try:
                await write_to(await Blobs(self.client).open(blob.blob_id), sink)
            except* (NodeError, Rejected) as faults:
                said = [str(fault) for fault in flatten(faults)]
        if said:
            return "; ".join(said)
        if scope.cancelled_caught:
            return f"not read within {DEADLINE_S:.0f} s"
        if sink.getvalue() != blob.path.read_bytes():
            return "came back with other bytes"
        return None

    def summary(self) -> dict[str, object]:
        """Return the availability with its counts; seconds of reads by rank."""
        judged = self.counts["right"] + self.counts["failed"]
        times = sorted(self.times) or [0.0]
        return {
            "percent": round(100 * self.counts["right"] / judged, 3) if judged else None,
            **{name: self.counts[name] for name in ("right", "failed", "excused", "skipped")},
            "p50_s": round(times[len(times) // 2], 3),
            "p99_s": round(times[len(times) * 99 // 100], 3),
            "max_s": round(times[-1], 3),
        }
