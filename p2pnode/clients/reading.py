"""What reading comes to: a blob, a file in one or a folder, to standard output or into place. Knows no command line."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import trio

from economics.blob import BlobId
from p2pnode.clients.session import Session
from p2pnode.clients.streaming import Blobs
from p2pnode.content.contents import Content, Keys, Kind, NoKey, describe
from p2pnode.content.manifest import FolderBlob, FolderFile, Manifest
from p2pnode.content.placing import Restored
from p2pnode.content.restore import restore
from p2pnode.content.resume import copy, output_file, save
from p2pnode.content.unpack import unpack
from p2pnode.content.views import View
from p2pnode.errors import InputError

Report = Callable[[int, int], None]
"""Hears of bytes done and bytes in all."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be read, and where to."""

    blob_id: BlobId
    path: str | None = None
    """Of a file in it."""
    output: Path | None = None
    """None for the sink that is given."""
    bounds: tuple[int, int | None] | None = None
    """First and last byte; None for the end."""
    strict: bool = False
    raw: bool = False
    """The blob's own bytes, whatever they are."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a request ended with."""

    length: int
    """Bytes written, or of a file what it has now."""
    kept_bytes: int = 0
    """Of these, what an earlier call had left in the part file."""
    restored: Restored | None = None
    """Of a folder."""
    is_sealed: bool = False
    """That the blob was opened with a key."""


async def read(session: Session, request: Request, keys: Keys, sink: BinaryIO, report: Report) -> Fetched:
    """Do as asked; raises `InputError` for what the blob is not, and what opening, reading and writing do."""
    blobs = Blobs(session, strict=request.strict)
    if request.raw:
        view = await blobs.open(request.blob_id)
        return await _read_blob(blobs, view, request, None, sink, report)
    content = await describe(blobs.open, keys, request.blob_id)
    return replace(await _read(blobs, content, request, keys, sink, report), is_sealed=content.is_sealed)


async def _read(
    blobs: Blobs, content: Content, request: Request, keys: Keys, sink: BinaryIO, report: Report
) -> Fetched:
    if request.path is not None:
        return await _read_path(blobs, content, request.path, request, sink, report)
    match content.kind:
        case Kind.SEALED:
            raise NoKey(
                "this blob is sealed, and this home does not have its key: open the link that has it "
                "(`p2pnode open LINK`), or read it sealed with --raw"
            )
        case Kind.QUILT:
            key = await trio.to_thread.run_sync(keys, request.blob_id) if content.is_sealed else None
            return await _unpack(blobs, content, request, key, report)
        case Kind.FOLDER:
            assert content.manifest is not None
            return await _restore(blobs, content.manifest, request, report)
        case Kind.BYTES:
            key = await trio.to_thread.run_sync(keys, request.blob_id) if content.is_sealed else None
            return await _read_blob(blobs, content.view, request, key, sink, report)


async def _read_blob(
    blobs: Blobs, view: View, request: Request, key: bytes | None, sink: BinaryIO, report: Report
) -> Fetched:
    """Read a whole blob, or a range of it."""
    if request.output is None or request.bounds is not None:
        return await _copy(view, request, sink, report)
    header = await blobs.header(request.blob_id)
    codec = blobs.session.codec
    saved = await save(view, request.output, header=header, codec=codec, key=key, report=report)
    return Fetched(saved.length, saved.kept_bytes)


async def _read_path(
    blobs: Blobs, content: Content, path: str, request: Request, sink: BinaryIO, report: Report
) -> Fetched:
    if content.manifest is not None and not any(file.path == path for file in content.manifest.files):
        inner = content.manifest.inside(path)
        if inner is not None:
            return await _restore(blobs, inner, request, report)
    if content.manifest is not None and request.output is not None and request.bounds is None:
        file = content.manifest.find(path)
        blob = content.manifest.blobs[file.blob]
        if (file.offset, file.length) == (0, blob.length):
            return await _save_file(blobs, blob, file, request.output, report)
    view = await content.open_file(blobs.open, path)
    return await _copy(view, request, sink, report)


async def _save_file(blobs: Blobs, blob: FolderBlob, file: FolderFile, output: Path, report: Report) -> Fetched:
    """Read a file of a folder that is a blob of its own: it may be large, so it outlives a kill."""
    key = blob.key or None
    saved = await save(
        await blobs.open_plain(blob.blob_id, key),
        output,
        header=await blobs.header(blob.blob_id),
        codec=blobs.session.codec,
        key=key,
        content_hash=file.content_hash,
        report=report,
    )
    return Fetched(saved.length, saved.kept_bytes)


async def _unpack(blobs: Blobs, content: Content, request: Request, key: bytes | None, report: Report) -> Fetched:
    assert content.index is not None
    output = verify_directory(request, "a quilt", len(content.index.entries))
    restored = await unpack(
        content.view,
        content.index,
        output,
        header=await blobs.header(request.blob_id),
        codec=blobs.session.codec,
        key=key,
        report=report,
    )
    return Fetched(sum(entry.length for entry in content.index.entries), restored=restored)


def verify_directory(request: Request, kind: str, files: int) -> Path:
    """Return where several files are to go; raises `InputError` where that is not said, or is a file."""
    if request.output is None or request.bounds is not None:
        raise InputError(
            f"this is {kind} of {count_of(files, 'file')}: `p2pnode ls ID` shows what is in it, `p2pnode read ID/PATH` "
            "reads one, `-o DIR` restores all of it into DIR"
        )
    if request.output.exists() and not request.output.is_dir():
        raise InputError(f"{request.output} is a file, and this is {kind}: name a directory for it")
    return request.output


async def _restore(blobs: Blobs, manifest: Manifest, request: Request, report: Report) -> Fetched:
    output = verify_directory(request, "a folder", len(manifest.files))
    restored = await restore(manifest, output, blobs.open_plain, report=report)
    return Fetched(sum(file.length for file in manifest.files), restored=restored)


def count_of(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


async def _copy(view: View, request: Request, sink: BinaryIO, report: Report) -> Fetched:
    """Write a view, or a range of it, to where it is to go."""
    start, stop = parse_bounds(request.bounds, view.length)
    if request.output is not None:
        async with output_file(request.output) as file:
            return Fetched(await copy(view, file, report, start=start, stop=stop))
    done = await copy(view, sink, report, start=start, stop=stop)
    await trio.to_thread.run_sync(sink.flush)
    return Fetched(done)


def parse_bounds(bounds: tuple[int, int | None] | None, length: int) -> tuple[int, int]:
    """Return [start, stop) for a first and a last byte (None: to the end); raises `InputError` outside of the bytes."""
    if bounds is None:
        return 0, length
    first, last = bounds
    stop = length if last is None else min(last + 1, length)
    if first >= length or stop <= first:
        raise InputError(f"no such range: there are {length} bytes, counted from 0")
    return first, stop
