"""Makes a folder what a manifest says: only what differs is fetched, and nothing is written outside of it.

A file is fetched once whatever the number of its copies, and not at all where its bytes are in the folder already.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from economics.blob import BlobId
from p2pnode.clients.plain import choose
from p2pnode.content.beneath import faults_named
from p2pnode.content.landing import Landing
from p2pnode.content.manifest import FolderBlob, Manifest
from p2pnode.content.placing import Placing, Restored, Wanted
from p2pnode.content.views import View
from p2pnode.errors import InconsistentBlob

GAP_BYTES_MAX = 256 << 10
"""Files of a blob that lie no further apart are read in one go: asking again takes longer than these bytes."""

BLOBS_AT_ONCE = 2
"""One is asked for while another's bytes come; each has several segments in memory."""

OpenBlob = Callable[[BlobId, bytes | None], Awaitable[View]]
"""Returns the plain bytes of a blob, given its key if it is sealed."""


async def restore(
    manifest: Manifest,
    target: Path,
    open_blob: OpenBlob,
    *,
    delete: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Restored:
    """Make `target` hold what the manifest names, and nothing else if `delete`; `report` hears bytes done and in all.

    Interrupted, the same call goes on. Raises `InputError` before anything is fetched if something is in the way that
    `delete` would have to remove, `InconsistentBlob` if files are not what the manifest says, `SpaceError`, and what
    opening and reading blobs does.
    """
    work = await trio.to_thread.run_sync(lambda: Placing.begin(manifest, target, delete=delete))
    try:
        await fetch(work, open_blob, report)
        return await trio.to_thread.run_sync(work.end)
    finally:
        work.below.close()


async def fetch(work: Placing, open_blob: OpenBlob, report: Callable[[int, int], None]) -> None:
    """Fetch what is missing, a few blobs at once, in their order; the first that fails ends it."""
    by_blob: dict[int, list[Wanted]] = {}
    for wanted in work.missing:
        by_blob.setdefault(wanted.file.blob, []).append(wanted)
    fetching = _Fetching(work, open_blob, report, sum(wanted.length for wanted in work.missing))
    waiting = iter(sorted(by_blob.items()))

    async def fetch_next() -> None:
        for number, missing in waiting:
            await fetching.fetch_blob(work.manifest.blobs[number], missing)

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(min(BLOBS_AT_ONCE, len(by_blob))):
                nursery.start_soon(fetch_next)
    except BaseExceptionGroup as group:
        raise choose(group) from None


@dataclass(slots=True)
class _Fetching:
    """What is fetched into one folder."""

    work: Placing
    open_blob: OpenBlob
    report: Callable[[int, int], None]
    total: int
    writing: trio.Lock = field(default_factory=trio.Lock)
    """Held by the one thread that puts bytes into the folder."""

    async def fetch_blob(self, blob: FolderBlob, missing: list[Wanted]) -> None:
        view = await self.open_blob(blob.blob_id, blob.key or None)
        if view.length != blob.length:
            raise InconsistentBlob(f"a blob of the folder has {view.length} bytes, its manifest says {blob.length}")
        while missing:
            again: list[Wanted] = []
            for run in split_runs(missing):
                again += await self._fetch_run(view, run)
            missing = again
            self.total += sum(wanted.length for wanted in missing)

    async def _fetch_run(self, view: View, run: list[Wanted]) -> list[Wanted]:
        """Fetch files that lie close together, and return those whose part was damaged: they are fetched whole."""
        reading = _Run(self.work, run)

        async def write(pieces: list[memoryview]) -> None:
            async with self.writing:
                await trio.to_thread.run_sync(reading.feed, pieces)
            self.report(self.work.fetched_bytes, self.total)

        try:
            await write([])
            if reading.waiting:
                await view.read(write, start=reading.at, stop=run[-1].stop)
        finally:
            reading.close()
        assert not reading.waiting, "a view passes all bytes that it is asked for"
        return reading.again


@dataclass(slots=True)
class _Run:
    """Files that lie close together in a blob, in order, and the bytes that come for them. For worker threads."""

    work: Placing
    files: list[Wanted]
    at: int = field(init=False)
    """Where in the blob the next byte is from."""
    waiting: list[Wanted] = field(init=False)
    """The last one is the next."""
    again: list[Wanted] = field(default_factory=list)
    _landing: Landing | None = None

    def __post_init__(self) -> None:
        self.at = self.files[0].start
        self.waiting = self.files[::-1]

    def feed(self, pieces: Iterable[memoryview]) -> None:
        """Take the next bytes."""
        with faults_named(str(self.work.below.root)):
            self._end_files()
            for piece in pieces:
                rest = piece
                while rest and self.waiting:
                    rest = rest[self._take(rest) :]
                    self._end_files()

    def _take(self, rest: memoryview) -> int:
        """Use some of these bytes for the next file, or pass over those before it; return how many."""
        wanted = self.waiting[-1]
        if self.at < wanted.start:
            count = min(len(rest), wanted.start - self.at)
        else:
            count = min(len(rest), wanted.stop - self.at)
            self._land(wanted).write(rest[:count])
            self.work.fetched_bytes += count
        self.at += count
        return count

    def _land(self, wanted: Wanted) -> Landing:
        if self._landing is None:
            self._landing = Landing(self.work.below, wanted.file, resumed=wanted.resumed, replace=self.work.delete)
        return self._landing

    def _end_files(self) -> None:
        while self.waiting and self.at == self.waiting[-1].stop:
            wanted = self.waiting.pop()
            landing, self._landing = self._land(wanted), None
            if not self.work.finish(landing, wanted):
                self.again.append(Wanted(wanted.file))

    def close(self) -> None:
        if self._landing is not None:
            self._landing.__exit__()


def split_runs(wanted: list[Wanted]) -> list[list[Wanted]]:
    """Return files in the order of a blob, cut where one begins far behind the last one's end, or before it."""
    runs: list[list[Wanted]] = []
    for one in sorted(wanted, key=lambda one: (one.start, one.stop)):
        if runs and 0 <= one.start - runs[-1][-1].stop <= GAP_BYTES_MAX:
            runs[-1].append(one)
        else:
            runs.append([one])
    return runs
