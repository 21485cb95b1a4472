"""Who may upload how much: budgets for what is under way, and what the ledger says is paid for. Touches no disk.

A node signs only for a final, unexpired reservation whose unspent units cover all that it has signed for and that is
not on chain yet: so one reservation shown to many nodes with different blobs is worth no more than it paid for.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from economics.blob import BlobId
from economics.commitments import ZERO_RESERVATION, OwnerStatement, ReservationId, Ticket
from economics.crypto import Digest, NodeId, OwnerId
from economics.errors import Reason, Rejected
from economics.geometry import STORAGE_UNIT_BYTES, Code
from economics.ledger import Ledger
from economics.state import Reservation


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Budgets of one node for what no closed upload refers to, in bytes of slivers on its own disk."""

    unclosed_peer_bytes_max: int = 2 << 30
    """Slivers that one peer has sent and not yet closed."""
    unclosed_bytes_max: int = 4 << 30
    """The same of all peers; the oldest are evicted first."""


@dataclass(frozen=True, slots=True)
class _Accepted:
    """What one reservation has had taken in one epoch."""

    units: int = 0
    """The most that were unspent in this epoch: what is certified meanwhile was paid for too."""
    size: int = 0
    """Bytes of slivers, dropped ones included."""


class Admission:
    """Budgets for uploads; every refusal is `Rejected` and changes nothing."""

    def __init__(self, limits: UploadLimits, *, code: Code, node: NodeId, ledger: Callable[[], Ledger]) -> None:
        self.limits = limits
        self.code = code
        self.node = node
        self._ledger = ledger
        self._open: defaultdict[NodeId, int] = defaultdict(int)
        self._signed: defaultdict[ReservationId, dict[BlobId, OwnerStatement]] = defaultdict(dict)
        """The newest statement about each blob: whatever is signed again, a reservation pays for a blob once."""
        self._accepted: dict[ReservationId, _Accepted] = {}
        """What was taken against each reservation in `_accepted_epoch`."""
        self._accepted_epoch = 0

    def restore(self, statements: Iterable[OwnerStatement]) -> None:
        """Count the statements that are on disk at the start."""
        for statement in statements:
            self._signed[statement.reservation][statement.blob_id] = statement

    # --- what the ledger says ------------------------------------------------------------------------------------

    def _reservation(self, reservation: ReservationId, owner: OwnerId) -> Reservation:
        """Return an owner's reservation that holds now; raises `Rejected`."""
        ledger = self._ledger()
        found = ledger.reservation(reservation)
        if found is None:
            raise Rejected(Reason.NOT_FOUND, "no such reservation in the final state here")
        if found.owner != owner:
            raise Rejected(Reason.UNKNOWN_SIGNER, "the reservation is another owner's")
        if not found.start_epoch <= ledger.epoch < found.end_epoch:
            raise Rejected(Reason.EXPIRED, f"the reservation does not cover epoch {ledger.epoch}")
        return found

    def verify_ticket(self, ticket: Ticket) -> None:
        """Raise `Rejected` unless the ticket's reservation is its owner's and holds now.

        The zero reservation stands for one that is still to come: such uploads live in the budget for unclosed ones.
        """
        if ticket.reservation != ZERO_RESERVATION:
            self._reservation(ticket.reservation, ticket.owner)

    def verify_statement(self, statement: OwnerStatement) -> None:
        """Raise `Rejected` unless the statement's reservation covers it with all else that was signed against it."""
        if statement.reservation == ZERO_RESERVATION:
            raise Rejected(Reason.UNPAID, "nobody signs for what is not paid: reserve storage first")
        found = self._reservation(statement.reservation, statement.owner)
        ledger = self._ledger()
        if ledger.is_used(statement.hash):
            raise Rejected(Reason.EXPIRED, "the statement has been used up by its certificate")
        others = (item for item in self._live(statement.reservation) if item.blob_id != statement.blob_id)
        signed = sum(self.code.encoded_units(item.length) for item in others)
        wanted = self.code.encoded_units(statement.length)
        if signed + wanted > found.units:
            raise Rejected(Reason.UNPAID, f"{found.units} units are unspent, {signed} signed for, {wanted} wanted")

    def _live(self, reservation: ReservationId) -> list[OwnerStatement]:
        """Return what was signed against a reservation and can still be certified; forgets the rest.

        That is nothing used, expired or of an owner who handed the reservation over, and no blob that has an entry
        under it: no certificate makes a second one, and its units are spent.
        """
        ledger = self._ledger()
        found = ledger.reservation(reservation)
        signed = self._signed.get(reservation, {})
        for blob_id, statement in list(signed.items()):
            if (
                statement.expiry_height <= ledger.height
                or ledger.is_used(statement.hash)
                or (found is not None and found.owner != statement.owner)
                or ledger.entry(blob_id, reservation) is not None
            ):
                del signed[blob_id]
        if not signed:
            self._signed.pop(reservation, None)
        return list(signed.values())

    def live_statements(self) -> dict[Digest, OwnerStatement]:
        """Return all that was signed and can still reach the chain: its owner's reservation holds now."""
        live = (statement for reservation in list(self._signed) for statement in self._live(reservation))
        return {statement.hash: statement for statement in live if self._is_held(statement)}

    def _is_held(self, statement: OwnerStatement) -> bool:
        try:
            self._reservation(statement.reservation, statement.owner)
        except Rejected:
            return False
        return True

    @contextmanager
    def closing(self, statement: OwnerStatement) -> Iterator[None]:
        """Count a statement as signed, unless the block fails to store it.

        For the trio thread: nothing may come between the check and the count.
        """
        self.verify_statement(statement)
        signed = self._signed[statement.reservation]
        before = signed.get(statement.blob_id)
        signed[statement.blob_id] = statement
        try:
            yield
        except BaseException:
            if before is None:
                del signed[statement.blob_id]
            else:
                signed[statement.blob_id] = before
            raise

    # --- what is under way ---------------------------------------------------------------------------------------

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

    def accept(self, ticket: Ticket, size: int) -> None:
        """Count bytes sent under a ticket: in one epoch at most 1.5 times what its reservation makes this node hold.

        Raises `Rejected(OVER_BUDGET)` beyond that. What the zero reservation sends is bounded as unclosed only.
        """
        if ticket.reservation == ZERO_RESERVATION:
            return
        found = self._reservation(ticket.reservation, ticket.owner)
        committee = self._ledger().committee
        epoch, shards = committee.epoch, len(committee.shards_of_node(self.node))
        if epoch != self._accepted_epoch:
            self._accepted, self._accepted_epoch = {}, epoch
        before = self._accepted.get(ticket.reservation, _Accepted())
        after = _Accepted(max(before.units, found.units), before.size + size)
        share = after.units * STORAGE_UNIT_BYTES * shards // self.code.n
        if after.size > share * 3 // 2:
            raise Rejected(Reason.OVER_BUDGET, "more was sent against this reservation than it pays for")
        self._accepted[ticket.reservation] = after


class OpenUpload:
    """The bytes that one open upload has sent."""

    def __init__(self, admission: Admission, peer: NodeId) -> None:
        self._admission = admission
        self._peer = peer
        self.size = 0

    def grow(self, size: int) -> None:
        self._admission._grow(self._peer, size)
        self.size += size
