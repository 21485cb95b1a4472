"""Quilts: many files in one blob, each readable alone by its name or its number (FORMATS.md 19). Knows no network."""

import base64
import binascii
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import trio

from economics import cbor
from economics.blob import BlobId
from economics.crypto import DIGEST_BYTES
from economics.errors import Reason, Rejected
from economics.fields import Fields
from economics.geometry import BLOB_BYTES_MAX
from p2pnode.content.names import NAME_BYTES_MAX, encode_name
from p2pnode.content.sources import BytesSource, JoinedSource, Source
from p2pnode.content.views import View, read_all
from p2pnode.errors import InputError

MAGIC = b"p2pq"
VERSION = 1
FRONT_BYTES = len(MAGIC) + 1 + 4
INDEX_BYTES_MAX = 4 << 20
FILES_MAX = 65_535
TAGS_MAX = 16
"""Of one file."""
TAG_BYTES_MAX = 65_536
"""Of all tags of one file, names and values."""
ENTRY_BUDGET = cbor.Budget(size_max=INDEX_BYTES_MAX, depth_max=2, elements_max=4 + 2 * TAGS_MAX)
FIRST_BYTES = 65_536
"""Read at once: the index of a thousand files, mostly; a longer one takes a second read."""

PATCH_VERSION = 1
PATCH_BYTES = DIGEST_BYTES + 1 + 4
PATCH_CHARACTERS = 50


class NotAQuilt(InputError):
    """A blob is no quilt, or one that breaks the format."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a quilt: bytes [start, start + length) of the blob."""

    number: int
    """Its place in the index, from 0."""
    name: str
    start: int
    length: int
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Index:
    """The files of a quilt, ascending by their names' UTF-8 bytes."""

    entries: tuple[Entry, ...]

    def encode(self) -> bytes:
        """Return the front of the blob: magic, version and the index behind its length; `decode` reverses it.

        Raises `Rejected` where a reader would.
        """
        rows: list[cbor.Value] = [[entry.name, entry.length, dict(entry.tags)] for entry in self.entries]
        verify_count(len(rows))
        last = b""
        for entry in self.entries:
            last = verify_entry(entry.name, entry.length, entry.tags, last=last)
        packed = cbor.encode(rows)
        verify_index_length(len(packed))
        return MAGIC + bytes((VERSION,)) + len(packed).to_bytes(4, "big") + packed

    @classmethod
    def decode(cls, packed: bytes, *, blob_length: int) -> "Index":
        """Return the index that these bytes are in a blob of so many; raises `Rejected`.

        Costs about 7 us for each file: for a worker thread.
        """
        verify_index_length(len(packed))
        items = cbor.Items(packed)
        entries: list[Entry] = []
        at, last = FRONT_BYTES + len(packed), b""
        for number in range(items.open_list(items_max=FILES_MAX)):
            match items.take(budget=ENTRY_BUDGET):
                case [str(name), int(length), dict(tags)]:
                    last = verify_entry(name, length, tags, last=last)
                case _:
                    raise Rejected(Reason.MALFORMED, "a file of a quilt is [name, length, tags]")
            entries.append(Entry(number, name, at, length, tags))
            at += length
        items.end()
        if at != blob_length:
            raise Rejected(Reason.MALFORMED, f"the files of a quilt end at {at}, the blob at {blob_length}")
        return cls(tuple(entries))

    def find(self, name: str) -> Entry:
        """Return the file of this name; raises `InputError` where there is none."""
        wanted = name.encode("utf-8", "surrogatepass")
        at = bisect_left(self.entries, wanted, key=lambda entry: entry.name.encode("utf-8"))
        if at == len(self.entries) or self.entries[at].name != name:
            raise InputError(f"the quilt has no file {name!r}: `p2pnode ls` shows what it has")
        return self.entries[at]

    def at(self, number: int) -> Entry:
        """Return the file of this number; raises `InputError` where there is none."""
        if not 0 <= number < len(self.entries):
            raise InputError(f"the quilt has {len(self.entries)} files, and none of number {number}, counted from 0")
        return self.entries[number]


@dataclass(frozen=True, slots=True)
class QuiltFile:
    """A file to put into a quilt."""

    name: str
    source: Source
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Quilt:
    """A quilt to store."""

    source: Source
    index: Index


def build_quilt(files: Sequence[QuiltFile]) -> Quilt:
    """Return the one quilt of these files, in whichever order they come; raises `InputError` naming what is off."""
    try:
        ordered = sorted(files, key=lambda file: encode_name(file.name, bytes_max=NAME_BYTES_MAX))
        draft = Index(tuple(Entry(0, file.name, 0, file.source.length, file.tags) for file in ordered))
        front = draft.encode()
        length = len(front) + sum(file.source.length for file in ordered)
        index = Index.decode(front[FRONT_BYTES:], blob_length=length)
    except Rejected as fault:
        raise InputError(f"these files make no quilt: {fault.detail}") from fault
    parts: list[Source] = [BytesSource(front), *(file.source for file in ordered)]
    return Quilt(JoinedSource(parts, f"a quilt of {len(files)} files"), index)


async def read_index(view: View, *, parsing: trio.CapacityLimiter | None = None) -> Index:
    """Return what is in a quilt; raises `NotAQuilt`, and what reading does. `parsing` limits the threads that parse."""
    first = await read_all(view, stop=min(view.length, FIRST_BYTES), size_max=FIRST_BYTES)
    try:
        end = parse_front(first, blob_length=view.length)
        rest = b"" if end <= len(first) else await read_all(view, start=len(first), stop=end, size_max=INDEX_BYTES_MAX)
        packed = (first + rest)[FRONT_BYTES:end]
        return await trio.to_thread.run_sync(lambda: Index.decode(packed, blob_length=view.length), limiter=parsing)
    except Rejected as fault:
        raise NotAQuilt(f"this blob is not a quilt: {fault.detail}") from fault


def parse_front(first: bytes, *, blob_length: int) -> int:
    """Return where the index of a blob ends that begins with `first`; raises `Rejected` if it is no quilt."""
    fields = Fields(first[:FRONT_BYTES], "a quilt")
    if fields.take(len(MAGIC)) != MAGIC or fields.take_int(1) != VERSION:
        raise Rejected(Reason.MALFORMED, "it does not begin as one")
    length = fields.take_int(4)
    verify_index_length(length)
    if FRONT_BYTES + length > blob_length:
        raise Rejected(Reason.MALFORMED, "its index ends early")
    return FRONT_BYTES + length


def is_quilt(prefix: bytes) -> bool:
    """Return whether a blob that begins so claims to be a quilt."""
    return prefix.startswith(MAGIC + bytes((VERSION,)))


def verify_index_length(length: int) -> None:
    if length > INDEX_BYTES_MAX:
        raise Rejected(Reason.TOO_LARGE, f"the index of a quilt has {length} bytes, at most {INDEX_BYTES_MAX}")


def verify_count(count: int) -> None:
    if count > FILES_MAX:
        raise Rejected(Reason.TOO_LARGE, f"a quilt has {count} files, at most {FILES_MAX}")


def verify_entry(name: str, length: int, tags: Mapping[str, str], *, last: bytes) -> bytes:
    """Return the name's UTF-8 bytes; raises `Rejected` for a file that may not stand behind one named `last`."""
    raw = encode_name(name, bytes_max=NAME_BYTES_MAX)
    if raw == last:
        raise Rejected(Reason.MALFORMED, f"two files are called {name!r}")
    if raw < last:
        raise Rejected(Reason.MALFORMED, "the files are not in order")
    if isinstance(length, bool) or not 0 <= length <= BLOB_BYTES_MAX:
        raise Rejected(Reason.MALFORMED, f"{name!r} has a length of {length}")
    verify_tags(name, tags)
    return raw


def verify_tags(name: str, tags: Mapping[str, str]) -> None:
    """Raise `Rejected` for tags that are no text, or too many or too long."""
    if len(tags) > TAGS_MAX:
        raise Rejected(Reason.TOO_LARGE, f"{name!r} has {len(tags)} tags, at most {TAGS_MAX}")
    size = 0
    for text in (*tags, *tags.values()):
        if not isinstance(text, str):
            raise Rejected(Reason.MALFORMED, f"a tag of {name!r} is not text")
        try:
            size += len(text.encode("utf-8"))
        except UnicodeEncodeError as fault:
            raise Rejected(Reason.MALFORMED, f"a tag of {name!r} is not UTF-8") from fault
    if size > TAG_BYTES_MAX:
        raise Rejected(Reason.TOO_LARGE, f"the tags of {name!r} have {size} bytes, at most {TAG_BYTES_MAX}")


# --- patch IDs -------------------------------------------------------------------------------------------------------


def build_patch_id(blob_id: BlobId, number: int) -> str:
    """Return what names one file of a quilt: 50 characters of base64url."""
    raw = blob_id + bytes((PATCH_VERSION,)) + number.to_bytes(4, "big")
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def parse_patch_id(text: str) -> tuple[BlobId, int]:
    """Return the quilt and the file's number in it; raises `InputError`."""
    wrong = InputError(
        f"{text!r} is not the ID of a file in a quilt: it has {PATCH_CHARACTERS} characters of A-Z a-z 0-9 - _"
    )
    if len(text) != PATCH_CHARACTERS:
        raise wrong
    try:
        raw = base64.b64decode(text.encode("ascii") + b"==", altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as fault:
        raise wrong from fault
    if len(raw) != PATCH_BYTES or raw[DIGEST_BYTES] != PATCH_VERSION:
        raise wrong
    blob_id, number = BlobId(raw[:DIGEST_BYTES]), int.from_bytes(raw[DIGEST_BYTES + 1 :], "big")
    if build_patch_id(blob_id, number) != text:
        raise wrong
    return blob_id, number
