"""Seconds and bytes: what every part of the benchmark measures with."""

import os
import random
import time
from collections.abc import Callable
from typing import Any

GIB = 1 << 30
MIB = 1 << 20
REPEATS = 3
Row = dict[str, Any]


class Failed(Exception):
    """What was to be measured did not happen."""


def seconds_of(work: Callable[[], object], *, repeats: int = REPEATS) -> tuple[float, float]:
    """Return the median wall and CPU seconds of `work`."""
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return sorted(walls)[repeats // 2], sorted(cpus)[repeats // 2]


def random_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size) if size < 128 * MIB else os.urandom(size)
