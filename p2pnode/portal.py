"""One trio loop in a background thread, and the way for other threads to have it do something. Knows no network."""

import atexit
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Generic, TypeVar

import trio

from p2pnode.errors import Closed, InputError
from p2pnode.plain import plainly

log = logging.getLogger("p2pnode.portal")

CLOSE_S = 15.0
"""For everything to be closed: a few seconds where peers do not answer, more where a thread waits for a disk."""
GRACE_S = 10.0
"""For what is open to close in good order, before it is cancelled too."""
assert GRACE_S < CLOSE_S
STOP_S = 10.0
"""For a call that Ctrl-C interrupts to tidy up; after that it is left to end by itself."""

T = TypeVar("T")
V = TypeVar("V")


class Job(Generic[T]):
    """One call that runs in the loop, or will, and how it ends."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self.scope = trio.CancelScope()
        self.result: Future[T] = Future()
        self._work = work

    async def run(self) -> None:
        with self.scope:
            try:
                with plainly():
                    value = await self._work()
                self.result.set_result(value)
            except trio.Cancelled:
                self.result.set_exception(Closed("it was closed or interrupted before the call had ended"))
                raise
            except BaseException as fault:
                self.result.set_exception(fault)


class Portal(Generic[V]):
    """A loop that holds what `manager` opens for as long as it runs.

    `open` and `close` are for one thread, `call` is for any number of them at once. Nobody needs to handle signals in
    the loop: Ctrl-C arrives in the main thread, and the call that waits there is cancelled before it is raised.
    """

    def __init__(self, manager: Callable[[], AbstractAsyncContextManager[V]], *, name: str) -> None:
        self._manager = manager
        self._opened: Future[V] = Future()
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        """Around everything, opening and closing too."""
        self._is_stopped = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run_loop, name=name, daemon=True)

    @property
    def value(self) -> V:
        """What the manager yielded."""
        return self._opened.result()

    @property
    def is_open(self) -> bool:
        return self._nursery is not None

    def open(self) -> None:
        """Start the loop and wait until the manager has opened; raises what it raises."""
        self._thread.start()
        try:
            self._opened.result()
        except BaseException:
            self._stop()
            self._thread.join(CLOSE_S)
            raise
        atexit.register(self.close)

    def close(self) -> None:
        """Cancel every call and end the loop, within `CLOSE_S`. Does nothing where that is done."""
        atexit.unregister(self.close)
        self._stop()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            log.warning("%s is still closing after %.0f s: it ends in the background", self._thread.name, CLOSE_S)

    def start(self, work: Callable[[], Awaitable[T]]) -> Job[T]:
        """Have the loop run `work`; raises `Closed`."""
        job = Job(work)
        if self._token is None:
            raise Closed("it is closed")
        if os.getpid() != self._process:
            raise Closed("its thread stayed in the process that forked this one: open another here")
        try:
            self._token.run_sync_soon(self._begin, job)
        except trio.RunFinishedError as fault:
            raise Closed("it is closed") from fault
        return job

    def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run `work` in the loop, wait for it and return what it does. Raises what it raises, and `Closed`.

        An exception that arrives meanwhile in the calling thread, such as `KeyboardInterrupt`, cancels it.
        """
        if threading.current_thread() is self._thread:
            raise InputError("what is called back runs between the calls of a client, and can make none itself")
        job = self.start(work)
        try:
            return job.result.result()
        except BaseException:
            if not job.result.done():
                self.cancel(job)
                with suppress(BaseException):  # what it ended with is no news: it was told to end
                    job.result.result(STOP_S)
            raise

    def cancel(self, job: Job[Any]) -> None:
        """Have a call end soon; does not wait, so any thread may, even the loop's own while it collects garbage."""
        assert self._token is not None
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(job.scope.cancel)

    def _begin(self, job: Job[Any]) -> None:
        if self._nursery is None:
            job.result.set_exception(Closed("it is closed"))
        else:
            self._nursery.start_soon(job.run)

    def _stop(self) -> None:
        self._is_stopped = True
        if self._token is not None and os.getpid() == self._process:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._end)

    def _end(self) -> None:
        if self._nursery is None:
            self._scope.cancel()
        else:
            self._nursery.cancel_scope.cancel()
            self._scope.deadline = trio.current_time() + GRACE_S

    def _run_loop(self) -> None:
        try:
            with plainly():
                trio.run(self._main)
        except BaseException as fault:
            if self._opened.done():
                log.exception("%s has failed", self._thread.name)
            else:
                self._opened.set_exception(fault)
        if not self._opened.done():
            self._opened.set_exception(Closed("it was closed before it was open"))

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        if self._is_stopped:
            return
        with self._scope:
            async with self._manager() as value, trio.open_nursery() as nursery:
                self._nursery = nursery
                self._opened.set_result(value)
                try:
                    await trio.sleep_forever()
                finally:
                    self._nursery = None
