"""Where the body of a request waits until it is stored: files without a name, so that nothing of them outlives a crash.

Bounded by a quota over all requests; what one has claimed of it comes back when the request ends.
"""

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from p2pnode.errors import InputError, SpaceError
from p2pnode.files import full_disk_named, make_directory

QUOTA_BYTES = 4 << 30
"""Of all bodies that wait at once: a few of the largest, or thousands of those that people send."""
KEPT_FREE_BYTES = 256 << 20
"""Left to the rest of the machine: a full disk stops the node that may share it."""


class Spool:
    """A directory for bodies on their way, and how much of its quota they have claimed. Of the trio thread."""

    def __init__(self, directory: Path, *, quota_bytes: int = QUOTA_BYTES) -> None:
        make_directory(directory)
        self.directory = directory
        self.quota_bytes = quota_bytes
        self.claimed_bytes = 0

    def claim(self, size: int) -> None:
        """Set so many bytes aside, or raise `SpaceError`."""
        if self.claimed_bytes + size > self.quota_bytes:
            raise SpaceError("uploads that are under way fill the gateway's quota for them: try again later")
        stat = os.statvfs(self.directory)
        if stat.f_bavail * stat.f_frsize < size + KEPT_FREE_BYTES:
            raise SpaceError("the disk of the gateway is nearly full: its operator has to free some space")
        self.claimed_bytes += size

    @asynccontextmanager
    async def open(self, *, announced: int) -> AsyncIterator["Spooled"]:
        """Yield an empty file that ends with the block; raises `SpaceError` where so many bytes do not fit."""
        self.claim(announced)
        spooled = None
        try:
            spooled = await trio.to_thread.run_sync(Spooled, self, announced)
            yield spooled
        finally:
            self.claimed_bytes -= announced if spooled is None else spooled.claimed
            if spooled is not None:
                with trio.CancelScope(shield=True):  # freeing the blocks of a large file takes the disk a while
                    await trio.to_thread.run_sync(spooled.close)


class Spooled:
    """One body on its way, and a `Source` of what there is of it. Written and read in worker threads."""

    name = "the body of the request"

    def __init__(self, spool: Spool, claimed: int) -> None:
        self._spool = spool
        self.claimed = claimed
        self.length = 0
        with full_disk_named(spool.directory):
            self._file = tempfile.TemporaryFile(dir=spool.directory, buffering=0)  # noqa: SIM115 - `close` closes it

    def expect(self, size: int) -> None:
        """Claim room for `size` bytes in all; raises `SpaceError`. Of the trio thread."""
        if size > self.claimed:
            self._spool.claim(size - self.claimed)
            self.claimed = size

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes that a claim covers."""
        view = memoryview(data)
        assert self.length + len(view) <= self.claimed
        with full_disk_named(self._spool.directory):
            while view:
                written = os.pwrite(self._file.fileno(), view, self.length)
                self.length += written
                view = view[written:]

    def read(self, start: int, stop: int) -> bytes:
        pieces = []
        while start < stop:
            try:
                piece = os.pread(self._file.fileno(), stop - start, start)
            except OSError as fault:
                raise InputError(f"the body cannot be read back: {fault.strerror}; send it again") from fault
            if not piece:
                raise InputError("the body became shorter on the disk: send it again")
            pieces.append(piece)
            start += len(piece)
        return b"".join(pieces)

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a spooled body as a source of its own, such as one file of a form."""

    whole: Spooled
    offset: int
    length: int
    name: str

    def read(self, start: int, stop: int) -> bytes:
        return self.whole.read(self.offset + start, self.offset + stop)
