"""The windows of seeds are played beside the tests of other files, which often wait for processes: cores have time.

They begin first (tests/conftest.py) and yield to everything else.
"""

import os
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.pool import AsyncResult, Pool
from pathlib import Path

import pytest

from tests.simulation.batch import CHUNK, Draw, play_drawn
from tests.simulation.scenario import draw, draw_mixed
from tests.simulation.simulation import Result

FIRST = int((Path(__file__).parent / "window").read_text(encoding="ascii"))
"""The windows begin here: whoever adds to it has the tests look at seeds that nobody has seen."""
SEEDS = {draw: 1_700, draw_mixed: 300}
PROCESSES = 2
YIELD_TO_ALL = 19
"""The weakest claim on a core that there is."""


class Windows:
    """Seeds under way in processes of their own."""

    def __init__(self) -> None:
        self._pool: Pool = get_context("spawn").Pool(PROCESSES, initializer=os.nice, initargs=(YIELD_TO_ALL,))
        self._results: dict[Draw, AsyncResult[list[Result]]] = {
            drawn: self._pool.map_async(play_drawn, [(drawn, FIRST + seed) for seed in range(count)], chunksize=CHUNK)
            for drawn, count in SEEDS.items()
        }

    def results(self, drawn: Draw) -> list[Result]:
        return self._results[drawn].get()

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()


@pytest.fixture(scope="session")
def windows() -> Iterator[Windows]:
    opened = Windows()
    yield opened
    opened.close()
