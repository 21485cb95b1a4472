"""The segments that came last, in memory: for whoever reads next to them, and for peers that ask meanwhile."""

import threading
from collections import OrderedDict
from collections.abc import Sequence

from economics.blob import BlobId, Header

RECENT_BYTES_MAX = 32 << 20
"""Four of the largest segments: readers of one blob at the same time are rarely further apart."""
SEGMENTS_MAX = 256
"""However small: each comes with its blob's header, of up to 4 MiB."""


class Recent:
    """A `Holdings` of what was fetched and checked lately. Any thread may use it."""

    def __init__(self, bytes_max: int = RECENT_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._segments: OrderedDict[tuple[BlobId, int], tuple[Header, bytes | bytearray]] = OrderedDict()
        self._headers: OrderedDict[BlobId, tuple[Header, int]] = OrderedDict()
        """With how many segments are here of each."""
        self._size = 0

    def put(self, blob_id: BlobId, header: Header, index: int, data: bytes | bytearray) -> None:
        """Keep a segment that is right and stays as it is; others go for it, the oldest first."""
        with self._lock:
            if (blob_id, index) in self._segments or len(data) > self._bytes_max:
                return
            self._segments[blob_id, index] = header, data
            self._headers[blob_id] = header, self._headers.get(blob_id, (header, 0))[1] + 1
            self._size += len(data)
            while self._size > self._bytes_max or len(self._segments) > SEGMENTS_MAX:
                (gone, _), (_, old) = self._segments.popitem(last=False)
                self._size -= len(old)
                kept, count = self._headers.pop(gone)
                if count > 1:
                    self._headers[gone] = kept, count - 1

    def header(self, blob_id: BlobId) -> Header | None:
        with self._lock:
            found = self._headers.get(blob_id)
            return None if found is None else found[0]

    def segment(self, blob_id: BlobId, index: int) -> bytes | bytearray | None:
        with self._lock:
            found = self._segments.get((blob_id, index))
            return None if found is None else found[1]

    def blob_ids(self) -> Sequence[BlobId]:
        """Return nothing: what is here is gone in a moment."""
        return ()
