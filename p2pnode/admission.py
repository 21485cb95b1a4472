"""Who may upload how much before a ledger says what is paid for. Counts bytes; touches no disk and no stream.

Until reservations exist only the zero reservation does, and it counts as paid up to a limit per owner key and in all.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from economics.blob import BlobId
from economics.commitments import ZERO_RESERVATION, OwnerStatement, ReservationId
from economics.crypto import NodeId, OwnerId
from economics.errors import Reason, Rejected


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Budgets of one node, in bytes of slivers on its own disk."""

    free_owner_bytes_max: int = 4 << 30
    """Closed uploads of one owner against the zero reservation."""
    free_bytes_max: int = 4 << 30
    """The same of all owners together."""
    unclosed_peer_bytes_max: int = 2 << 30
    """Slivers that one peer has sent and not yet closed."""
    unclosed_bytes_max: int = 4 << 30
    """Slivers on disk that no closed upload refers to, of all peers."""


class Admission:
    """Budgets for uploads; every refusal is `Rejected(OVER_BUDGET)` and changes nothing."""

    def __init__(self, limits: UploadLimits) -> None:
        self.limits = limits
        self._open: defaultdict[NodeId, int] = defaultdict(int)
        self._free: defaultdict[OwnerId, dict[BlobId, int]] = defaultdict(dict)

    def restore(self, statements: Iterable[tuple[OwnerStatement, int]]) -> None:
        """Count the statements that are on disk at the start, each with its bytes here."""
        for statement, size in statements:
            self._free[statement.owner][statement.blob_id] = size

    def verify_reservation(self, reservation: ReservationId) -> None:
        if reservation != ZERO_RESERVATION:
            raise Rejected(Reason.NOT_FOUND, "no such reservation: this network knows the zero reservation only")

    @contextmanager
    def upload(self, peer: NodeId) -> Iterator["OpenUpload"]:
        """Count one upload's bytes against its peer while it is open."""
        upload = OpenUpload(self, peer)
        try:
            yield upload
        finally:
            self._open[peer] -= upload.size
            if not self._open[peer]:
                del self._open[peer]

    def _grow(self, peer: NodeId, size: int) -> None:
        if self._open[peer] + size > self.limits.unclosed_peer_bytes_max:
            raise Rejected(Reason.OVER_BUDGET, "close what you have uploaded before you send more")
        self._open[peer] += size

    def _is_counted(self, statement: OwnerStatement) -> bool:
        return statement.blob_id in self._free.get(statement.owner, {})

    def verify_room(self, statement: OwnerStatement, size: int) -> None:
        """Raise `Rejected` unless `size` bytes more may be stored for the statement's owner."""
        if self._is_counted(statement):
            return
        if sum(self._free.get(statement.owner, {}).values()) + size > self.limits.free_owner_bytes_max:
            raise Rejected(Reason.OVER_BUDGET, "this owner's unpaid storage here is used up")
        if sum(sum(blobs.values()) for blobs in self._free.values()) + size > self.limits.free_bytes_max:
            raise Rejected(Reason.OVER_BUDGET, "this node's unpaid storage is used up")

    @contextmanager
    def closing(self, statement: OwnerStatement, size: int) -> Iterator[None]:
        """Count `size` bytes as stored for good by the statement's owner, unless the block fails to store them.

        The same blob again costs nothing. For the trio thread: nothing may come between the check and the count.
        """
        if self._is_counted(statement):
            yield
            return
        self.verify_room(statement, size)
        self._free[statement.owner][statement.blob_id] = size
        try:
            yield
        except BaseException:
            self._forget(statement)
            raise

    def _forget(self, statement: OwnerStatement) -> None:
        del self._free[statement.owner][statement.blob_id]
        if not self._free[statement.owner]:
            del self._free[statement.owner]


class OpenUpload:
    """The bytes that one open upload has sent."""

    def __init__(self, admission: Admission, peer: NodeId) -> None:
        self._admission = admission
        self._peer = peer
        self.size = 0

    def grow(self, size: int) -> None:
        self._admission._grow(self._peer, size)
        self.size += size
