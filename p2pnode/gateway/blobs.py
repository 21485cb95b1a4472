"""Blobs as the gateway has them: what is known of each, and whether it can be read.

Whether a blob was never stored, is gone, is wrong or is only out of reach just now is decided here, and nowhere else.
"""

import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio

from economics.blob import BlobId, Header, build_blob_id_text
from economics.commitments import Certificate
from economics.errors import Rejected
from economics.slots import blob_key, invalid_slot, state_key
from economics.state import BlobEntry, BlobSummary
from p2pnode.clients.chainview import Head
from p2pnode.clients.session import Session
from p2pnode.errors import InconsistentBlob, NodeError, Unavailable
from p2pnode.gateway.faults import HttpFault, unavailable
from p2pnode.gateway.flights import Flights
from p2pnode.gateway.segments import PEERS_S, CachedView, Segments
from p2pnode.network.host import sole_exception
from p2pnode.peering.cache import SegmentCache
from p2pnode.peering.swarm import Swarm

log = logging.getLogger("p2pnode.gateway")

KNOWN_MAX = 4_096
FRESH_S = 60.0
"""For which what the chain said of a blob holds: one that was deleted elsewhere is found gone after this at the latest,
unless all of it is in the cache, and one that was deleted here and stored again elsewhere is found again."""
CERTIFICATE_S = 5.0
"""For a member to show a blob's certificate: members are asked one after the other."""
PEERS_ASKING_MAX = 8
"""Blobs that peers are asked for at once: anybody can ask for what nobody has."""
PROVING_S = 4.0
PROVING_PAUSE_S = 0.5
"""What a block did is proven by the next ones: a blob that was certified just now is not gone."""


@dataclass(frozen=True, slots=True)
class Known:
    """A blob that can be read, as far as is known."""

    header: Header
    content_type: str
    """As its owner said on chain; empty where nobody did."""
    is_live: bool
    """Whether the chain says that the network owes it."""


class Blobs:
    """What the routes read from. Its tasks are in the nursery."""

    def __init__(
        self, session: Session, cache: SegmentCache, nursery: trio.Nursery, *, swarm: Swarm | None = None
    ) -> None:
        self.session = session
        self.cache = cache
        self.nursery = nursery
        self.swarm = swarm
        self.segments = Segments(session.reader, cache, nursery, swarm)
        self._known: OrderedDict[BlobId, tuple[Known, float]] = OrderedDict()
        self._gone: OrderedDict[BlobId, float] = OrderedDict()
        """Blobs that were deleted through this gateway, and until when the chain need not be asked."""
        self._types: OrderedDict[BlobId, str] = OrderedDict()
        """Content types that were put on chain through this gateway: by another entry, maybe, than the first."""
        self._lookups: Flights[BlobId, Known] = Flights(nursery)
        self._is_accusing = False
        self._asking_peers = trio.CapacityLimiter(PEERS_ASKING_MAX)

    # --- what is known of a blob ---------------------------------------------------------------------------------

    def learn(self, blob_id: BlobId, content_type: str | None) -> None:
        """Remember that a blob was certified just now, so that who stored it can read it at once."""
        self._gone.pop(blob_id, None)
        self._known.pop(blob_id, None)
        if content_type:
            self._types[blob_id] = content_type
            if len(self._types) > KNOWN_MAX:
                self._types.popitem(last=False)

    def forget(self, blob_id: BlobId) -> None:
        """Remember that a blob is deleted, and drop what is cached of it; for a worker thread is `cache.drop`."""
        self._known.pop(blob_id, None)
        self._gone[blob_id] = trio.current_time() + FRESH_S
        if len(self._gone) > KNOWN_MAX:
            self._gone.popitem(last=False)
        self.segments.forget(blob_id)

    def _remember(self, known: Known) -> Known:
        blob_id = known.header.blob_id
        self._known[blob_id] = known, trio.current_time() + FRESH_S
        self._known.move_to_end(blob_id)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        return known

    def _doubt(self, blob_id: BlobId, fault: NodeError) -> None:
        """Look again at a blob that could not be read, and have the network know of one that is encoded wrongly."""
        self._known.pop(blob_id, None)
        if isinstance(fault, InconsistentBlob) and not self._is_accusing:  # who reads meanwhile must not multiply it
            self._is_accusing = True
            self.nursery.start_soon(self._accuse, fault)

    async def _accuse(self, fault: InconsistentBlob) -> None:
        try:
            log.warning("%s", await self.session.accuse(fault))
        except (NodeError, Rejected) as failed:
            log.warning("%s; nobody could be told: %s", fault, failed)
        finally:
            self._is_accusing = False

    async def find(self, blob_id: BlobId) -> Known:
        """Return what is known of a blob that can be read.

        Raises `HttpFault`: 404 if nobody has it and the chain does not know it, 410 if it was certified and is owed no
        more, 422 if it is proven wrong, 503 if it cannot be told or read now.
        """
        if trio.current_time() < self._gone.get(blob_id, -math.inf):
            raise gone(blob_id)
        known, until = self._known.get(blob_id, (None, 0.0))
        if known is not None and trio.current_time() < until:
            return known
        return await self._lookups.get(blob_id, partial(self._look_up, blob_id))

    async def _look_up(self, blob_id: BlobId) -> Known:
        cached = await trio.to_thread.run_sync(self._cached, blob_id)
        if cached is not None:
            return self._remember(cached)
        found = _Found(await trio.to_thread.run_sync(self.cache.header, blob_id))
        async with trio.open_nursery() as nursery:
            if found.header is None:
                nursery.start_soon(found.look, "header", partial(self.session.reader.header, blob_id))
            nursery.start_soon(found.look, "state", partial(self._state, blob_id))
            nursery.start_soon(found.look, "certificate", partial(self._certificate, blob_id))
        await self._look_closer(blob_id, found)
        try:
            known = self._judge(blob_id, found)
        except HttpFault as fault:
            header = await self._from_peers(blob_id) if fault.code in (404, 503) else None
            if header is None:
                raise
            known = Known(header, found.stored_as or "", found.state not in (None, (None, False)))
        kept_type = known.content_type if found.stored_as is not None else None
        await trio.to_thread.run_sync(self.cache.put_header, known.header, kept_type)
        return self._remember(known)

    async def _from_peers(self, blob_id: BlobId) -> Header | None:
        """Return the header of a blob that members do not give and some peer does; None where there is none soon."""
        if self.swarm is None:
            return None
        with trio.move_on_after(PEERS_S):
            async with self._asking_peers:
                try:
                    header = await self.swarm.header(blob_id)
                except NodeError:
                    return None
            return header if header.code == self.cache.code else None
        return None

    def _cached(self, blob_id: BlobId) -> Known | None:
        """Return a blob that is here whole and whose content type is known: nobody is asked for it."""
        if not self.cache.is_whole(blob_id):
            return None
        header, content_type = self.cache.header(blob_id), self.cache.content_type(blob_id)
        if header is None or content_type is None or not self.cache.has_all(header):
            return None
        return Known(header, content_type, True)

    async def _state(self, blob_id: BlobId) -> tuple[BlobSummary | None, bool]:
        """Return what the chain says: the blob if the network owes it, and whether it is proven to be wrong."""
        keys = [blob_key(blob_id), state_key(invalid_slot(blob_id))]
        blob, wrong = (await self.session.chain.prove(keys)).values
        return None if blob is None else BlobSummary.decode(blob), wrong is not None

    async def _certificate(self, blob_id: BlobId) -> Certificate | None:
        with trio.move_on_after(CERTIFICATE_S):
            return await self.session.certificate(blob_id)
        return None

    async def _look_closer(self, blob_id: BlobId, found: "_Found") -> None:
        """Look again for a blob that was certified just now, and for what its first owner said that it is."""
        if found.certificate is None:
            found.stored_as = self._types.get(blob_id)
            return
        until = trio.current_time() + PROVING_S
        while found.state == (None, False) and trio.current_time() < until:
            await found.look("head", self.session.chain.head)
            if found.head is None or found.head.epoch != found.certificate.epoch:
                break
            await trio.sleep(PROVING_PAUSE_S)
            await found.look("state", partial(self._state, blob_id))
        reservation = found.certificate.statement.reservation
        await found.look("entry", partial(self.session.chain.entry, blob_id, reservation))
        found.stored_as = self._types.get(blob_id) or ("" if found.entry is None else found.entry.content_type)

    def _judge(self, blob_id: BlobId, found: "_Found") -> Known:
        """Return the blob, or raise what its absence means."""
        if found.state is not None:
            live, is_invalid = found.state
            if is_invalid:
                raise invalid(blob_id)
            if live is None and found.certificate is not None:
                raise gone(blob_id)
        if found.header is not None:
            is_live = found.state is not None and found.state[0] is not None
            return Known(found.header, found.stored_as or "", is_live)
        fault = found.faults.get("header")
        match found.state:
            case None:
                raise unavailable(f"the network does not answer, so nobody knows of this blob: {fault}") from fault
            case (None, _) if isinstance(fault, Unavailable):
                raise (gone if blob_id in self._gone else missing)(blob_id) from fault
            case (None, _):
                raise unavailable(f"too few nodes answer to tell whether the blob was ever stored: {fault}") from fault
            case _:
                raise unavailable(f"the network owes this blob and cannot be read now: {fault}") from fault

    def view(self, known: Known, *, strict: bool = False) -> CachedView:
        return CachedView(self.segments, known.header, strict, partial(self._doubt, known.header.blob_id))


class _Found:
    """What the questions about a blob came to."""

    def __init__(self, header: Header | None) -> None:
        self.header = header
        self.state: tuple[BlobSummary | None, bool] | None = None
        self.certificate: Certificate | None = None
        self.head: Head | None = None
        self.entry: BlobEntry | None = None
        self.stored_as: str | None = None
        """The content type; "" where the owner gave none, None where the blob has no certificate."""
        self.faults: dict[str, Exception] = {}

    async def look(self, name: str, ask: Callable[[], Awaitable[object]]) -> None:
        """Keep the answer under its name, or how it failed."""
        try:
            setattr(self, name, await ask())
        except BaseExceptionGroup as group:
            fault = sole_exception(group)
            if not isinstance(fault, NodeError | Rejected):
                raise
            self.faults[name] = fault
        except (NodeError, Rejected) as fault:
            self.faults[name] = fault


def missing(blob_id: BlobId) -> HttpFault:
    return HttpFault(
        404, f"no blob {build_blob_id_text(blob_id)}: nobody has it, and the chain does not know it", "BLOB_NOT_FOUND"
    )


def gone(blob_id: BlobId) -> HttpFault:
    return HttpFault(
        410, f"the blob {build_blob_id_text(blob_id)} was stored, and has expired or was deleted", "BLOB_GONE"
    )


def invalid(blob_id: BlobId) -> HttpFault:
    return HttpFault(
        422,
        f"the blob {build_blob_id_text(blob_id)} was encoded wrongly by its writer, which is proven on chain",
        "INVALID_BLOB",
    )
