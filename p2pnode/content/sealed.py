"""Sealed blobs (FORMATS.md 21): XChaCha20-Poly1305 in frames, so that any range opens alone and a cut shows.

A nonce says nothing but a frame's place, so all rests on a key that seals one sequence of bytes only. `keyring` sees to
that: a key is derived from the hash of all the bytes, and a source that changes after it was hashed is refused before
it is sealed. Nobody else makes keys; whoever seals with a key that was given (to encode a part file again) keeps the
result to itself, or compares it with the blob's roots first.

Opening authenticates each frame, its place and whether it is the last one; a blob that lost its end is found where
that end is read. The cipher does not commit to its key: a writer can make one blob that opens with two keys, each to
bytes of its choice. So what a link shows is what its writer chose for that key, and only a content hash (of a folder's
manifest) says more.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO

import trio
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_ABYTES,
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_aead_xchacha20poly1305_ietf_KEYBYTES,
    crypto_aead_xchacha20poly1305_ietf_NPUBBYTES,
)
from nacl.exceptions import CryptoError

from economics.errors import Reason, Rejected
from p2pnode.content.sources import Source, verify_length
from p2pnode.content.views import View, Write, verify_range
from p2pnode.errors import InputError

MAGIC = b"p2px"
FRONT = MAGIC + bytes((1, 0, 0, 0))
"""Magic, version, three zero bytes; the associated data of every frame."""
FRONT_BYTES = len(FRONT)
FRAME_BYTES = 65_536
TAG_BYTES = 16
SEALED_FRAME_BYTES = FRAME_BYTES + TAG_BYTES
KEY_BYTES = 32
BATCH_FRAMES = 4
"""Frames that are read from a source at once: 256 KiB stay in the process's own heap, where larger pieces are new pages
each time, which cost as much as the cipher."""
OPEN_BYTES = 2 << 20
"""Sealed bytes that a worker thread opens at a time: 4 ms, forty times what it costs to go there and back."""
assert crypto_aead_xchacha20poly1305_ietf_KEYBYTES == KEY_BYTES
assert crypto_aead_xchacha20poly1305_ietf_ABYTES == TAG_BYTES
assert crypto_aead_xchacha20poly1305_ietf_NPUBBYTES == 15 + 8 + 1


class WrongKey(InputError):
    """The key does not open the blob, or the blob is not as it was sealed."""


# --- lengths -----------------------------------------------------------------------------------------------------


def count_frames(plain: int) -> int:
    return max(1, -(-plain // FRAME_BYTES))


def sealed_length(plain: int) -> int:
    """Return how many bytes a blob of `plain` bytes has once it is sealed."""
    return FRONT_BYTES + plain + TAG_BYTES * count_frames(plain)


def plain_length(sealed: int) -> int:
    """Return how many bytes are in a sealed blob of that length; raises `Rejected` for one that no blob has."""
    plain = sealed - FRONT_BYTES - TAG_BYTES * -(-(sealed - FRONT_BYTES) // SEALED_FRAME_BYTES)
    if plain < 0 or sealed_length(plain) != sealed:
        raise Rejected(Reason.MALFORMED, f"no sealed blob has {sealed} bytes")
    return plain


def is_sealed(prefix: bytes) -> bool:
    """Return whether a blob that begins so says that it is sealed; any other blob may say so too."""
    return prefix[:FRONT_BYTES] == FRONT


# --- frames ------------------------------------------------------------------------------------------------------


def build_nonce(index: int, *, is_last: bool) -> bytes:
    return bytes(15) + index.to_bytes(8, "big") + bytes((is_last,))


def verify_key(key: bytes) -> None:
    """Raise `InputError` for what is not a key."""
    if len(key) != KEY_BYTES:
        raise InputError(f"a key that opens a blob has {KEY_BYTES} bytes, this one has {len(key)}")


def verify_sealed_length(source: Source) -> None:
    """Raise `InputError` for a source that is larger than a blob once it is sealed."""
    verify_length(sealed_length(source.length), f"{source.name}, sealed,")


@dataclass(frozen=True, slots=True)
class SealedSource:
    """A source under a key, which must seal these bytes alone: see the head of this module, and `Keyring.seal`."""

    inner: Source
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        verify_key(self.key)
        verify_sealed_length(self.inner)

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def length(self) -> int:
        return sealed_length(self.inner.length)

    def read(self, start: int, stop: int) -> bytes:
        """Return sealed bytes [start, stop); reads and seals the frames that they are in (600 MB/s)."""
        sealed = BytesIO()
        sealed.write(FRONT[start:stop])
        first = max(0, start - FRONT_BYTES) // SEALED_FRAME_BYTES
        end = -(-max(0, stop - FRONT_BYTES) // SEALED_FRAME_BYTES)
        if start < stop:
            at = FRONT_BYTES + first * SEALED_FRAME_BYTES
            for frame in self._seal(first, end):
                sealed.write(frame[max(0, start - at) : stop - at])
                at += len(frame)
        return sealed.getvalue()

    def _seal(self, first: int, end: int) -> Iterator[bytes]:
        """Yield frames [first, end), read from the source in batches."""
        last = count_frames(self.inner.length) - 1
        while first < end:
            batch_end = min(end, first - first % BATCH_FRAMES + BATCH_FRAMES)
            begin = first * FRAME_BYTES
            plain = self.inner.read(begin, min(batch_end * FRAME_BYTES, self.inner.length))
            for index in range(first, batch_end):
                low = index * FRAME_BYTES - begin
                yield crypto_aead_xchacha20poly1305_ietf_encrypt(
                    plain[low : low + FRAME_BYTES], FRONT, build_nonce(index, is_last=index == last), self.key
                )
            first = batch_end


class _Opener:
    """Opens the frames of one read, in order, as their bytes come; for worker threads."""

    def __init__(self, key: bytes, length: int, *, start: int, stop: int) -> None:
        self._key = key
        self._length = length
        self._start = start
        self._stop = stop
        self._index = start // FRAME_BYTES
        self._end = count_frames(stop)
        self._last = count_frames(length) - 1
        self._is_front_done = self._index > 0
        self._held = bytearray()

    @property
    def wanted(self) -> tuple[int, int]:
        """Where in the sealed blob is what is still to come, as [begin, end): frames, the front before the first."""
        begin, end = (FRONT_BYTES + index * SEALED_FRAME_BYTES for index in (self._index, self._end))
        return begin if self._is_front_done else 0, min(end, sealed_length(self._length))

    def open(self, piece: memoryview) -> list[memoryview]:
        """Return the wanted bytes of the frames that are whole now; raises `WrongKey`."""
        self._held += piece
        at, opened = 0, []
        if not self._is_front_done:
            if len(self._held) < FRONT_BYTES:
                return []
            verify_front(bytes(self._held[:FRONT_BYTES]))
            at, self._is_front_done = FRONT_BYTES, True
        with memoryview(self._held) as held:
            while self._index < self._end:
                begin = self._index * FRAME_BYTES
                size = min(self._length - begin, FRAME_BYTES) + TAG_BYTES
                if len(held) - at < size:
                    break
                plain = self._open_frame(bytes(held[at : at + size]))
                opened.append(memoryview(plain)[max(0, self._start - begin) : self._stop - begin])
                self._index += 1
                at += size
        del self._held[:at]
        return [view for view in opened if view]

    def _open_frame(self, frame: bytes) -> bytes:
        nonce = build_nonce(self._index, is_last=self._index == self._last)
        try:
            return crypto_aead_xchacha20poly1305_ietf_decrypt(frame, FRONT, nonce, self._key)
        except CryptoError as fault:
            raise WrongKey(
                f"frame {self._index} of the sealed blob does not open: it is another blob's key, or damaged"
            ) from fault


class SealedView:
    """What is sealed in a blob: only bytes that the key authenticates are passed on."""

    def __init__(self, view: View, key: bytes) -> None:
        """Take a sealed blob and its key. Raises `InputError` for no key, `WrongKey` for a length that none has."""
        verify_key(key)
        try:
            self.length = plain_length(view.length)
        except Rejected as fault:
            raise WrongKey(f"the blob is not sealed, or was cut: {fault.detail}") from fault
        self._view = view
        self._key = key

    async def read(self, write: Write, *, start: int = 0, stop: int | None = None) -> None:
        """Pass plain bytes [start, stop) to `write`, opened in worker threads.

        Raises `WrongKey`, and what the blob's own view and `write` raise. Reading nothing of an empty blob checks the
        key too. The front is looked at where the first frame is read: it may be far from the range, and no frame opens
        that was sealed under another one.
        """
        stop = verify_range(start, stop, self.length)
        if start == stop and self.length:
            return
        opener = _Opener(self._key, self.length, start=start, stop=stop)
        begin, end = opener.wanted

        async def pass_on(views: list[memoryview]) -> None:
            for view in views:
                for at in range(0, len(view), OPEN_BYTES):
                    opened = await trio.to_thread.run_sync(opener.open, view[at : at + OPEN_BYTES])
                    if opened:
                        await write(opened)

        await self._view.read(pass_on, start=begin, stop=end)
        assert opener.wanted[0] >= end, "a view passes on all that it was asked for"


def verify_front(front: bytes) -> None:
    """Raise `WrongKey` unless a blob begins as a sealed one of this version."""
    if front[: len(MAGIC)] != MAGIC:
        raise WrongKey("the blob is not sealed: read it without a key")
    if front != FRONT:
        raise WrongKey("the blob is sealed in another version of the format: a newer p2pnode may open it")
