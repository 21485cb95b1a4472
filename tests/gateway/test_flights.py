"""What many want at once is fetched once."""

import pytest
import trio
import trio.testing

from p2pnode.errors import Unavailable
from p2pnode.gateway.flights import Flights


async def test_all_who_ask_at_once_have_it_of_one_fetch_and_who_asks_later_of_another() -> None:
    fetched, got = 0, []
    gate = trio.Event()

    async def fetch() -> int:
        nonlocal fetched
        fetched += 1
        await gate.wait()
        return fetched

    async with trio.open_nursery() as nursery:
        flights: Flights[str, int] = Flights(nursery)

        async def ask() -> None:
            got.append(await flights.get("a", fetch))

        for _ in range(5):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (got, await flights.get("a", fetch), len(flights)) == ([1] * 5, 2, 0)


async def test_a_failure_is_everybodys_and_is_not_kept() -> None:
    async def fail() -> int:
        await trio.lowlevel.checkpoint()
        raise Unavailable("not now")

    async def fetch() -> int:
        await trio.lowlevel.checkpoint()
        return 7

    async with trio.open_nursery() as nursery:
        flights: Flights[str, int] = Flights(nursery)
        for _ in range(2):
            with pytest.raises(Unavailable, match="not now"):
                await flights.get("a", fail)
        assert await flights.get("a", fetch) == 7


async def test_one_who_leaves_does_not_end_it_and_the_last_one_does() -> None:
    ended = []

    async def fetch() -> int:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(True)
        raise AssertionError

    async with trio.open_nursery() as nursery:
        flights: Flights[str, int] = Flights(nursery)
        scopes = [trio.CancelScope(), trio.CancelScope()]

        async def ask(scope: trio.CancelScope) -> None:
            with scope:
                await flights.get("a", fetch)

        for scope in scopes:
            nursery.start_soon(ask, scope)
        await trio.testing.wait_all_tasks_blocked()
        scopes[0].cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert (ended, len(flights)) == ([], 1)
        scopes[1].cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert (ended, len(flights)) == ([True], 0)
