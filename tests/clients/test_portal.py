"""The portal: a loop in a background thread does what other threads ask, and ends when it is told to."""

import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from p2pnode.clients import portal as module
from p2pnode.clients.portal import Portal
from p2pnode.errors import Closed, ConfigError, InputError


class Opened:
    """What a manager opened, and whether it was closed in good order."""

    def __init__(self) -> None:
        self.is_closed = False


@asynccontextmanager
async def manage(opened: Opened) -> AsyncIterator[Opened]:
    yield opened
    await trio.lowlevel.checkpoint()
    opened.is_closed = True


@pytest.fixture
def portal() -> Iterator[Portal[Opened]]:
    opened = Portal(partial(manage, Opened()), name="a portal")
    opened.open()
    yield opened
    opened.close()


def is_there(name: str) -> bool:
    return any(thread.name == name for thread in threading.enumerate())


async def answer() -> int:
    await trio.lowlevel.checkpoint()
    return 42


async def fail() -> None:
    raise ValueError("as told")


def test_a_call_returns_what_the_work_does(portal: Portal[Opened]) -> None:
    assert portal.call(answer) == 42


def test_a_call_raises_what_the_work_does_and_the_loop_goes_on(portal: Portal[Opened]) -> None:
    with pytest.raises(ValueError, match="as told"):
        portal.call(fail)
    assert portal.call(answer) == 42


def test_a_call_raises_one_exception_where_a_nursery_raised_a_group(portal: Portal[Opened]) -> None:
    async def fail_in_nursery() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)

    with pytest.raises(ValueError, match="as told"):
        portal.call(fail_in_nursery)


def test_many_threads_are_served_at_once(portal: Portal[Opened]) -> None:
    """Each waits for all others in the loop: one at a time none would ever return."""
    arrived, everybody = 0, trio.Event()
    returned: list[int] = []

    async def meet(number: int) -> int:
        nonlocal arrived
        arrived += 1
        if arrived == 8:
            everybody.set()
        await everybody.wait()
        return number

    threads = [
        threading.Thread(target=lambda number=number: returned.append(portal.call(partial(meet, number))))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(returned) == list(range(8))


def test_ctrl_c_cancels_the_call_that_waits_and_nothing_else(portal: Portal[Opened]) -> None:
    cancelled = threading.Event()
    other = portal.start(partial(trio.sleep, 3600))

    async def wait() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled.set()
            raise

    with pytest.raises(KeyboardInterrupt):
        portal.call(wait)
    assert cancelled.is_set()
    assert not other.outcome.is_known
    assert portal.call(answer) == 42


def test_ctrl_c_at_any_moment_leaves_nothing_running_and_nobody_waiting(portal: Portal[Opened]) -> None:
    running = 0

    async def wait() -> None:
        nonlocal running
        running += 1
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await trio.sleep_forever()
        finally:
            running -= 1

    for _ in range(100):
        with pytest.raises(KeyboardInterrupt):
            portal.call(wait)
        assert running == 0
    assert portal.call(answer) == 42


def test_closing_ends_calls_that_go_on_and_then_what_was_opened(portal: Portal[Opened]) -> None:
    job = portal.start(trio.sleep_forever)
    portal.call(answer)
    portal.close()
    with pytest.raises(Closed):
        job.outcome.get()
    assert portal.value.is_closed
    assert not is_there("a portal")


def test_after_closing_a_call_says_so_and_closing_again_does_nothing(portal: Portal[Opened]) -> None:
    portal.close()
    portal.close()
    with pytest.raises(Closed):
        portal.call(answer)


def test_what_does_not_close_is_cancelled_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.05)

    @asynccontextmanager
    async def stubborn() -> AsyncIterator[None]:
        yield
        await trio.sleep_forever()

    portal = Portal(stubborn, name="a stubborn portal")
    portal.open()
    began = time.monotonic()
    portal.close()
    assert time.monotonic() - began < module.CLOSE_S
    assert not is_there("a stubborn portal")


def test_what_cannot_be_opened_is_raised_and_leaves_no_thread() -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        async with trio.open_nursery():
            raise ConfigError("no such home")
        yield

    portal = Portal(broken, name="a broken portal")
    with pytest.raises(ConfigError, match="no such home"):
        portal.open()
    assert not is_there("a broken portal")
    with pytest.raises(Closed):
        portal.call(answer)


def test_ctrl_c_while_it_opens_leaves_no_thread() -> None:
    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        os.kill(os.getpid(), signal.SIGINT)
        await trio.sleep_forever()
        yield

    portal = Portal(slow, name="a slow portal")
    with pytest.raises(KeyboardInterrupt):
        portal.open()
    assert not is_there("a slow portal")


def test_where_what_is_open_fails_its_calls_end_as_closed() -> None:
    crash = trio.Event()

    @asynccontextmanager
    async def crashing() -> AsyncIterator[trio.Event]:
        async def burst() -> None:
            await crash.wait()
            raise RuntimeError("burst")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(burst)
            yield crash

    portal = Portal(crashing, name="a crashing portal")
    portal.open()

    async def wait() -> None:
        crash.set()
        await trio.sleep_forever()

    with pytest.raises(Closed):
        portal.call(wait)
    portal.close()
    assert not is_there("a crashing portal")
    with pytest.raises(Closed):
        portal.call(answer)


def test_a_callback_that_calls_back_is_refused_rather_than_stuck(portal: Portal[Opened]) -> None:
    async def call_back() -> int:
        return portal.call(answer)

    with pytest.raises(InputError):
        portal.call(call_back)


def test_a_forked_process_is_told_to_open_its_own(portal: Portal[Opened], monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: own + 1)
    with pytest.raises(Closed, match="fork"):
        portal.call(answer)
    monkeypatch.undo()
    assert portal.call(answer) == 42
