"""What is read of a blob, and its bytes in pieces, to whoever takes them: an iterator, a file."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO

import trio

from economics.blob import BlobId, Header
from p2pnode.clients.plain import plainly
from p2pnode.clients.session import Session
from p2pnode.content.resume import write_views
from p2pnode.content.sealed import SealedView
from p2pnode.content.views import BlobView, View, Write, verify_range
from p2pnode.errors import Closed, InconsistentBlob, InputError, NetworkError, Unavailable


@dataclass(frozen=True, slots=True)
class JudgedView:
    """A view of what is in a blob whose failures say whether its writer is at fault."""

    session: Session
    blob_id: BlobId
    view: View

    @property
    def length(self) -> int:
        return self.view.length

    async def read(self, write: Write, *, start: int = 0, stop: int | None = None) -> None:
        async with judging(self.session, self.blob_id):
            await self.view.read(write, start=start, stop=stop)


@asynccontextmanager
async def judging(session: Session, blob_id: BlobId) -> AsyncIterator[None]:
    """Raise `InconsistentBlob` where the block fails to read a blob by its writer's fault."""
    try:
        with plainly():
            yield
    except (Unavailable, NetworkError, InconsistentBlob) as fault:
        judged = await session.judge(blob_id, fault)
        if judged is fault:
            raise
        raise judged from fault


class Blobs:
    """The blobs of a session, opened as they are asked for: a failure says whether the blob's writer is at fault.

    For one call: it keeps the header of each.
    """

    def __init__(self, session: Session, *, strict: bool = False) -> None:
        self.session = session
        self._strict = strict
        self._headers: dict[BlobId, Header] = {}

    async def header(self, blob_id: BlobId) -> Header:
        if blob_id not in self._headers:
            async with judging(self.session, blob_id):
                self._headers[blob_id] = await self.session.reader.header(blob_id)
        return self._headers[blob_id]

    async def open(self, blob_id: BlobId) -> View:
        """Return a blob's own bytes."""
        view = BlobView(self.session.reader, await self.header(blob_id), self._strict)
        return JudgedView(self.session, blob_id, view)

    async def open_plain(self, blob_id: BlobId, key: bytes | None) -> View:
        """Return a blob's plain bytes, given its key if it is sealed."""
        view = await self.open(blob_id)
        return view if key is None else SealedView(view, key)


def parse_range(start: int, stop: int | None, view: View) -> tuple[int, int]:
    """Return [start, stop) within a view; raises `InputError`."""
    for bound in (start, stop):
        if bound is not None and (not isinstance(bound, int) or isinstance(bound, bool)):
            raise InputError(f"a range goes from one whole number to another, and {bound!r} is none")
    return start, verify_range(start, stop, view.length)


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
