"""Bytes to read in order, wherever they come from: a blob, what is sealed in one, a file in a quilt."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from economics.blob import Header
from p2pnode.clients.download import Reader
from p2pnode.errors import InputError
from p2pnode.network.host import sole_exception

Write = Callable[[list[memoryview]], Awaitable[None]]
"""Takes the next bytes, in pieces; the views hold only until it returns."""


class View(Protocol):
    """Bytes that can be read in order, from any place on, every one checked."""

    @property
    def length(self) -> int: ...

    async def read(self, write: Write, *, start: int = 0, stop: int | None = None) -> None:
        """Pass bytes [start, stop) to `write`, in order, in bounded memory.

        Raises `InputError` for a range outside, `Unavailable`, `NetworkError`, `InconsistentBlob`, and whatever
        `write` does.
        """
        ...


@dataclass(frozen=True, slots=True)
class BlobView:
    """A blob, from the members of its network."""

    reader: Reader
    header: Header
    strict: bool = False
    """Encode again what is read: then no other reader can get other bytes."""

    @property
    def length(self) -> int:
        return self.header.length

    async def read(self, write: Write, *, start: int = 0, stop: int | None = None) -> None:
        try:
            await self.reader.read(self.header, write, start=start, stop=stop, strict=self.strict)
        except BaseExceptionGroup as group:
            raise sole_exception(group) from None


@dataclass(frozen=True, slots=True)
class SliceView:
    """A part of another view, such as a file in a quilt."""

    whole: View
    offset: int
    length: int

    def __post_init__(self) -> None:
        if not 0 <= self.offset <= self.offset + self.length <= self.whole.length:
            raise InputError(f"bytes {self.offset} to {self.offset + self.length} are not all in the blob")

    async def read(self, write: Write, *, start: int = 0, stop: int | None = None) -> None:
        stop = verify_range(start, stop, self.length)
        await self.whole.read(write, start=self.offset + start, stop=self.offset + stop)


def verify_range(start: int, stop: int | None, length: int) -> int:
    """Return the range's end, `length` where it is None; raises `InputError` for a range outside."""
    end = length if stop is None else stop
    if not 0 <= start <= end <= length:
        raise InputError(f"the range {start}-{end} is not within {length} bytes")
    return end


async def read_all(view: View, *, start: int = 0, stop: int | None = None, size_max: int) -> bytes:
    """Return bytes [start, stop); raises `InputError` for more than `size_max` of them."""
    end = verify_range(start, stop, view.length)
    if end - start > size_max:
        raise InputError(f"{end - start} bytes are more than the {size_max} that fit here")
    pieces: list[bytes] = []

    async def keep(views: list[memoryview]) -> None:
        pieces.extend(map(bytes, views))

    if end > start:
        await view.read(keep, start=start, stop=end)
    return b"".join(pieces)
