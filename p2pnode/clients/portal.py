"""One trio loop in a background thread, and the way for other threads to have it do something. Knows no network."""

import atexit
import logging
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from inspect import signature
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

import trio

from p2pnode.clients.plain import plainly
from p2pnode.errors import Closed, InputError

log = logging.getLogger("p2pnode.clients.portal")

CLOSE_S = 15.0
"""For everything to be closed: a few seconds where peers do not answer, more where a thread waits for a disk."""
GRACE_S = 10.0
"""For what is open to close in good order, before it is cancelled too."""
assert GRACE_S < CLOSE_S
LOOK_S = 1.0
"""A signal that comes just before a thread begins to wait does not wake it: it is seen after so long."""
STOP_S = 10.0
"""For a call that Ctrl-C interrupts to tidy up; after that it is left to end by itself."""

P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V")


class Outcome(Generic[T]):
    """What a call ends with: told once, in the loop, and waited for by one thread.

    A bare lock, since Ctrl-C may strike at any instruction of the thread that waits: in a `Future` it can leave the
    condition's lock held for ever, and then the loop stands still.
    """

    def __init__(self) -> None:
        self.is_known = False
        self._told = threading.Lock()
        self._told.acquire()
        self._value: T | None = None
        self._fault: BaseException | None = None

    def tell(self, value: T) -> None:
        self._value = value
        self._end()

    def tell_fault(self, fault: BaseException) -> None:
        self._fault = fault
        self._end()

    def _end(self) -> None:
        assert not self.is_known
        self.is_known = True
        self._told.release()

    def wait(self, patience_s: float = math.inf) -> None:
        """Return when it is known, or after so long."""
        until = time.monotonic() + patience_s
        while not self.is_known and (left := until - time.monotonic()) > 0:
            self._told.acquire(timeout=min(left, LOOK_S))

    def get(self) -> T:
        """Return or raise it, as soon as it is known."""
        self.wait()
        if self._fault is not None:
            raise self._fault
        return cast(T, self._value)


class Job(Generic[T]):
    """One call that runs in the loop, or will, and how it ends."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self.scope = trio.CancelScope()
        self.outcome: Outcome[T] = Outcome()
        self.has_begun = False
        self._work = work

    def cancel(self) -> None:
        """End it; in the loop, behind its beginning."""
        self.scope.cancel()
        if not self.has_begun and not self.outcome.is_known:
            self.outcome.tell_fault(Closed("it was interrupted before it had begun"))

    async def run(self) -> None:
        with self.scope:
            try:
                with plainly():
                    value = await self._work()
            except trio.Cancelled:
                self.outcome.tell_fault(Closed("it was closed or interrupted before the call had ended"))
                raise
            except BaseException as fault:
                self.outcome.tell_fault(fault)
            else:
                self.outcome.tell(value)


class Portal(Generic[V]):
    """A loop that holds what `manager` opens for as long as it runs.

    `open` and `close` are for one thread, `call` is for any number of them at once. Nobody needs to handle signals in
    the loop: Ctrl-C arrives in the main thread, and the call that waits there is cancelled before it is raised.
    """

    def __init__(self, manager: Callable[[], AbstractAsyncContextManager[V]], *, name: str) -> None:
        self._manager = manager
        self._opened: Outcome[V] = Outcome()
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
        return self._opened.get()

    @property
    def is_open(self) -> bool:
        return self._nursery is not None

    def open(self) -> None:
        """Start the loop and wait until the manager has opened; raises what it raises."""
        try:
            self._thread.start()
            self._opened.get()
        except BaseException:
            self._stop()
            with suppress(RuntimeError):  # it was interrupted before it had started, and ends as it does
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
        self._submit(job)
        return job

    def _submit(self, job: Job[Any]) -> None:
        if self._token is None:
            raise Closed("it is closed")
        if os.getpid() != self._process:
            raise Closed("its thread stayed in the process that forked this one: open another here")
        try:
            self._token.run_sync_soon(self._begin, job)
        except trio.RunFinishedError as fault:
            raise Closed("it is closed") from fault

    def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run `work` in the loop, wait for it and return what it does. Raises what it raises, and `Closed`.

        An exception that arrives meanwhile in the calling thread, such as `KeyboardInterrupt`, cancels it.
        """
        if threading.current_thread() is self._thread:
            raise InputError("what is called back runs between the calls of a client, and can make none itself")
        job = Job(work)
        try:
            self._submit(job)
            return job.outcome.get()
        except Closed:
            raise
        except BaseException:
            if not job.outcome.is_known:
                self._cancel(job)
                with suppress(KeyboardInterrupt):  # once more: it is being stopped already
                    job.outcome.wait(STOP_S)
            raise

    def _cancel(self, job: Job[Any]) -> None:
        """Have a call end soon, whether or not it has been submitted."""
        assert self._token is not None
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(job.cancel)

    def _begin(self, job: Job[Any]) -> None:
        if self._nursery is None:
            job.outcome.tell_fault(Closed("it is closed"))
        else:
            job.has_begun = True
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
            if self._opened.is_known:
                log.exception("%s has failed", self._thread.name)
            else:
                self._opened.tell_fault(fault)
        if not self._opened.is_known:
            self._opened.tell_fault(Closed("it was closed before it was open"))

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        if self._is_stopped:
            return
        with self._scope:
            async with self._manager() as value, trio.open_nursery() as nursery:
                self._nursery = nursery
                self._opened.tell(value)
                try:
                    await trio.sleep_forever()
                finally:
                    self._nursery = None


class InPortal(Generic[V]):
    """The base of an object for any thread whose calls run in a portal, on what the portal holds."""

    def __init__(self, portal: Portal[V]) -> None:
        self._portal = portal


def blocking(
    method: Callable[Concatenate[V, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[InPortal[V], P], T]:
    """Return an asynchronous method as one that waits, with its arguments and its description."""

    def call(self: InPortal[V], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._portal.call(partial(method, self._portal.value, *args, **kwargs))

    call.__doc__, call.__name__ = method.__doc__, method.__name__
    call.__signature__ = signature(method)  # type: ignore[attr-defined]
    return call


class Pieces(Iterator[bytes]):
    """Bytes piece by piece, out of an asynchronous iterator in a portal."""

    def __init__(self, portal: Portal[Any], opening: AbstractAsyncContextManager[AsyncIterator[bytes]]) -> None:
        self._portal = portal
        self._opening = opening
        self._pieces: AsyncIterator[bytes] | None = portal.call(opening.__aenter__)

    def __next__(self) -> bytes:
        if self._pieces is None:
            raise StopIteration
        piece = self._portal.call(partial(take, self._pieces))
        if piece is None:
            self.close()
            raise StopIteration
        return piece

    def close(self) -> None:
        """End the reading."""
        if self._pieces is not None:
            self._pieces = None
            self._portal.call(self._leave)

    async def _leave(self) -> None:
        await self._opening.__aexit__(None, None, None)

    def __enter__(self) -> "Pieces":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_pieces", None) is not None:
            with suppress(Closed):  # its loop has ended, and so has the reading
                self._portal.start(self._leave)


async def take(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)
