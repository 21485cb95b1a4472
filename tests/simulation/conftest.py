"""The windows of seeds are played beside the other tests, which often wait for processes: the cores have time left.

They yield to everything else, and are asked for their results when it is their turn.
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


WINDOWS = pytest.StashKey[Windows]()


def pytest_collection_finish(session: pytest.Session) -> None:
    if (
        any("windows" in getattr(item, "fixturenames", ()) for item in session.items)
        and not session.config.option.collectonly
    ):
        session.stash[WINDOWS] = Windows()


@pytest.fixture(scope="session")
def windows(request: pytest.FixtureRequest) -> Iterator[Windows]:
    yield request.session.stash[WINDOWS]
    request.session.stash[WINDOWS].close()
