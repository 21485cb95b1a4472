"""Progress on a terminal, by stage; nothing where standard error is not one."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from p2pnode.clients.upload import Progress as UploadProgress
from p2pnode.content.folderstore import FolderProgress


@contextmanager
def bars() -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description:24}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), disable=not sys.stderr.isatty()) as progress:
        yield progress


@contextmanager
def store_progress(name: str) -> Iterator[Callable[[UploadProgress], None]]:
    """Show an upload's stages: segments encoded, segments that a quorum holds, shards that have signed."""
    with bars() as progress:
        encode = progress.add_task(f"encode {name}"[:24], total=None)
        slivers = progress.add_task("slivers at a quorum", total=None)
        certificate = progress.add_task("certificate", total=None)

        def report(now: UploadProgress) -> None:
            progress.update(encode, completed=now.encoded, total=now.segments)
            progress.update(slivers, completed=now.stored, total=now.segments)
            progress.update(certificate, completed=min(now.committed, now.quorum), total=now.quorum)

        yield report


@contextmanager
def folder_progress(name: str) -> Iterator[Callable[[FolderProgress], None]]:
    """Show how many of a folder's new bytes a quorum holds, and how many of its new blobs are certified."""
    with bars() as progress:
        stored = progress.add_task(f"store {name}"[:24], total=None)
        certified = progress.add_task("certificates", total=None)

        def report(now: FolderProgress) -> None:
            progress.update(stored, completed=now.stored, total=max(now.length, 1))
            progress.update(certified, completed=now.blobs_done, total=max(now.blobs, 1))

        yield report


@contextmanager
def read_progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many checked bytes have been written."""
    with bars() as progress:
        task = progress.add_task(f"read {name}"[:24], total=None)

        def report(done: int, total: int) -> None:
            progress.update(task, completed=done, total=max(total, 1))

        yield report
