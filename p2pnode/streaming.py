"""A view's bytes in pieces, to whoever takes them: an iterator, a file. A reader that is slow is waited for."""

from typing import BinaryIO

import trio

from p2pnode.errors import Closed, InputError
from p2pnode.plain import plainly
from p2pnode.resume import write_views
from p2pnode.views import View


class Feed:
    """Reads a view in a task of its own, one piece ahead of whoever iterates."""

    def __init__(self, view: View, *, start: int, stop: int | None) -> None:
        self._view = view
        self._start, self._stop = start, stop
        self._send, self._receive = trio.open_memory_channel[bytes](0)
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._fault: BaseException = Closed("it was closed before all bytes were read")
        self._is_whole = False

    async def run(self) -> None:
        """Read until all is taken or `close` is called; what fails is raised where the bytes are taken."""
        try:
            with self._scope:
                async with self._send:
                    try:
                        with plainly():
                            await self._view.read(self._give, start=self._start, stop=self._stop)
                    except Exception as fault:
                        self._fault = fault
                    else:
                        self._is_whole = True
        finally:
            self._ended.set()

    async def _give(self, views: list[memoryview]) -> None:
        if data := b"".join(views):
            await self._send.send(data)

    async def close(self) -> None:
        """End the task, and return when it has ended, even while being cancelled."""
        self._scope.cancel()
        self._receive.close()
        with trio.CancelScope(shield=True):
            await self._ended.wait()

    def __aiter__(self) -> "Feed":
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            if self._is_whole:
                raise StopAsyncIteration from None
            raise self._fault from None
        except trio.ClosedResourceError:
            raise Closed("the bytes are to be taken inside the block that `stream` begins") from None


async def write_to(view: View, sink: BinaryIO) -> int:
    """Write a view to a file that is open for bytes, in worker threads, and return its length.

    Raises `SpaceError`, `InputError` where the file cannot be written, and what `View.read` does.
    """
    if not hasattr(sink, "write"):
        raise InputError(f"a path or an open file can be written to, not {type(sink).__name__}")

    async def write(views: list[memoryview]) -> None:
        try:
            await trio.to_thread.run_sync(write_views, sink, views)
        except (TypeError, ValueError) as fault:
            raise InputError(f"cannot write the output: {fault}") from fault

    await view.read(write)
    return view.length
