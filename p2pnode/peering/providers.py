"""The way to peers that may have a blob: dials, asks, remembers who failed and how. Judges no bytes, chooses nobody."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from dht.discovery import Discovery
from economics import cbor
from economics.blob import BlobId
from economics.crypto import NodeId
from economics.errors import Reason, Rejected
from economics.genesis import build_key_text, parse_key
from p2pnode.errors import Busy, NetworkError, PeerUnreachable, StreamBroken, TooSlow
from p2pnode.members import Fault, FaultKind, Refused, give_up, kind_of, verify_reply
from p2pnode.network.frames import Incoming, receive_message, send_message
from p2pnode.network.host import Network
from p2pnode.network.stream import Patience, Stream
from p2pnode.peering.blobserver import PROTOCOL

DIAL_S = 5.0
"""Twice what a dial takes over a slow home line."""
PATIENCE = Patience(idle_s=10.0, floor_bytes_per_s=16_384)
"""Of one piece of a reply: four requests to a home line of 1 Mbit/s get twice this each. Slower is as good as away."""
PIECE_BYTES_MIN = 64 << 10
PIECE_BYTES_MAX = 1 << 20
PIECE_S = 0.05
"""A reply is received in pieces that take about so long, so that it can be seen whether it still comes."""
REQUESTS_AT_ONCE = 4
"""To one provider: one is on its way while another is read from its disk; it has room for 8 streams of a peer."""
PAUSE_S = 0.5
STRIKES_MAX = 5
"""A provider that fails is asked again after 0.5, 1, 2, 4 s: it may have been restarted; then no more until all are
forgiven."""
REFUSALS_MAX = 20
"""In a row, each after a pause: whoever is always over its budget serves nobody."""
LACKS_MAX = 8
"""So often a provider is asked for a segment that it has not, over 18 s: one that is fetching the blob has it soon."""
LACK_S = 0.5
LACKS_IN_A_ROW_MAX = 24
"""Of one blob: whoever has nothing of three windows of it has nothing."""
RATED_BYTES = 65_536
"""What less than this takes is the way there and back, and says nothing of a rate."""
ADDRESS_CHARS_MAX = 300
KNOWN_MAX = 4_096
"""Peers remembered: anybody can make up more, for as long as a gateway runs."""

Contact = tuple[NodeId, tuple[str, ...]]
"""A node, and where it may be dialled; nowhere for one that the DHT is to find."""


def parse_contact(text: str) -> Contact:
    """Return a peer from `<node key>@<multiaddr>`, or raise `Rejected`."""
    key, at, address = text.partition("@")
    if not at or not address.startswith("/") or len(address) > ADDRESS_CHARS_MAX or not address.isprintable():
        raise Rejected(Reason.MALFORMED, "a peer is <node key>@<address>, as in KEY@/ip4/203.0.113.5/tcp/4001")
    return NodeId(parse_key(key)), (address,)


def build_contact(node: NodeId, address: str) -> str:
    return f"{build_key_text(node)}@{address}"


@dataclass(eq=False)
class Provider:
    """One peer, and how it has done in this run."""

    node: NodeId
    addresses: tuple[str, ...] = ()
    in_flight: int = 0
    room: int = REQUESTS_AT_ONCE
    rate: float | None = None
    """Bytes per second of one request, of those that came whole."""
    paused_until: float = 0.0
    strikes: int = 0
    refusals: int = 0
    is_slow: bool = False
    """It has kept a request waiting that another answered: it is asked when nobody else is left."""
    is_excluded: bool = False
    lacks: dict[tuple[BlobId, int], tuple[int, float]] = field(default_factory=dict)
    """Segments that it said it has not: how often, and until when it is not asked again."""
    lacks_in_a_row: Counter[BlobId] = field(default_factory=Counter)
    idle: list[Stream] = field(default_factory=list)

    def forgive(self) -> None:
        """Forget what it did and what it had not."""
        self.room, self.paused_until, self.strikes, self.refusals = REQUESTS_AT_ONCE, 0.0, 0, 0
        self.is_slow = self.is_excluded = False
        self.lacks.clear()
        self.lacks_in_a_row.clear()

    def note_good(self, blob_id: BlobId, size: int, seconds: float) -> None:
        if size >= RATED_BYTES:
            rate = size / max(seconds, 1e-6)
            self.rate = rate if self.rate is None else (self.rate + rate) / 2
        self.strikes = self.refusals = 0
        self.room = min(self.room + 1, REQUESTS_AT_ONCE)
        del self.lacks_in_a_row[blob_id]

    def note_lack(self, blob_id: BlobId, index: int | None) -> None:
        """Remember that it has not a segment, or nothing of a blob whose header it has not."""
        if index is None:
            self.lacks_in_a_row[blob_id] = LACKS_IN_A_ROW_MAX
            return
        self.lacks_in_a_row[blob_id] += 1
        count = self.lacks.get((blob_id, index), (0, 0.0))[0] + 1
        self.lacks[blob_id, index] = (count, trio.current_time() + LACK_S * count)

    def may_have(self, blob_id: BlobId, index: int | None) -> bool:
        """Return whether it is worth asking, now or later."""
        if self.is_excluded or self.lacks_in_a_row[blob_id] >= LACKS_IN_A_ROW_MAX:
            return False
        return index is None or self.lacks.get((blob_id, index), (0, 0.0))[0] < LACKS_MAX

    def lacks_now(self, blob_id: BlobId, index: int | None) -> bool:
        """Return whether it has just said that it has not a segment."""
        return index is not None and trio.current_time() < self.lacks.get((blob_id, index), (0, 0.0))[1]

    def is_ready(self, blob_id: BlobId, index: int | None) -> bool:
        """Return whether it is worth asking now, if it is at all."""
        limit = 1 if self.is_slow else self.room
        is_paused = trio.current_time() < self.paused_until
        return self.in_flight < limit and not is_paused and not self.lacks_now(blob_id, index)


@dataclass(eq=False)
class Progress:
    """How much of a reply has come."""

    begun: float = field(default_factory=trio.current_time)
    moved_at: float = field(default_factory=trio.current_time)
    moved_bytes: int = 0
    piece_bytes: int = PIECE_BYTES_MIN
    is_whole: bool = False

    def move(self, size: int) -> None:
        """Note a piece, and choose the size of the next."""
        spent = trio.current_time() - self.moved_at
        if spent < PIECE_S / 2:
            self.piece_bytes = min(self.piece_bytes * 2, PIECE_BYTES_MAX)
        elif spent > PIECE_S * 2:
            self.piece_bytes = max(self.piece_bytes // 2, PIECE_BYTES_MIN)
        self.moved_bytes += size
        self.moved_at = trio.current_time()

    def rate(self) -> float:
        return self.moved_bytes / max(trio.current_time() - self.begun, 1e-6)


class Providers:
    """Peers of one swarm, each with a few streams, one request at a time on each."""

    def __init__(
        self, network: Network, discovery: Discovery | None, *, on_fault: Callable[[Fault], None] = lambda fault: None
    ) -> None:
        self.network = network
        self.discovery = discovery
        self.faults: dict[NodeId, Fault] = {}
        """The first thing that each did wrong."""
        self.members_failed_at: float | None = None
        """When slivers could not be had last."""
        self._on_fault = on_fault
        self._known: dict[NodeId, Provider] = {}

    def get(self, node: NodeId, addresses: Sequence[str] = ()) -> Provider:
        """Return a peer, known from here on, with these addresses besides those that it has."""
        if node not in self._known:
            self._make_room()
        provider = self._known.setdefault(node, Provider(node))
        provider.addresses = tuple(dict.fromkeys((*provider.addresses, *addresses)))[:8]
        return provider

    def _make_room(self) -> None:
        """Forget the peer that has been known longest of those with nothing under way, if there are too many."""
        if len(self._known) >= KNOWN_MAX:
            spare = (node for node, one in self._known.items() if not one.in_flight and not one.idle)
            if (node := next(spare, None)) is not None:
                del self._known[node]
                self.faults.pop(node, None)

    def forgive(self) -> None:
        """Give every peer another chance but those that lied."""
        for provider in self._known.values():
            fault = self.faults.get(provider.node)
            if fault is None or fault.kind is not FaultKind.WRONG_BYTES:
                provider.forgive()

    def best_rate(self) -> float | None:
        """Return the bytes per second of the best peer's requests, None before any was answered."""
        rates = [one.rate for one in self._known.values() if one.rate is not None and not one.is_excluded]
        return max(rates, default=None)

    def blame(self, provider: Provider, fault: Exception) -> None:
        """Remember what a peer did, and when it may be asked again: never, after bytes that are not the blob's."""
        kind = kind_of(fault)
        if kind in (FaultKind.WRONG_BYTES, FaultKind.FOREIGN):
            provider.is_excluded = True
        provider.is_slow = provider.is_slow or kind is FaultKind.TOO_SLOW
        if trio.current_time() >= provider.paused_until:  # all requests on one connection fail together
            provider.strikes += 1
            provider.paused_until = trio.current_time() + PAUSE_S * 2 ** (provider.strikes - 1)
        provider.is_excluded = provider.is_excluded or provider.strikes >= STRIKES_MAX
        self._name(provider, kind, str(fault))

    def blame_slow(self, provider: Provider, detail: str) -> None:
        """Remember who kept everybody waiting while others answered: it is asked last from here on."""
        provider.is_slow = True
        self._name(provider, FaultKind.TOO_SLOW, detail)

    def _name(self, provider: Provider, kind: FaultKind, detail: str) -> None:
        known = self.faults.get(provider.node)
        if known is None or (kind is FaultKind.WRONG_BYTES and known.kind is not kind):
            fault = self.faults[provider.node] = Fault(None, build_key_text(provider.node), kind, detail)
            self._on_fault(fault)

    def note_refusal(self, provider: Provider) -> None:
        """Leave a peer alone for a moment that has no room now, and ask it for less at once."""
        provider.room = max(1, provider.room - 1)
        if trio.current_time() >= provider.paused_until:
            provider.refusals += 1
            provider.paused_until = trio.current_time() + PAUSE_S
        provider.is_excluded = provider.is_excluded or provider.refusals >= REFUSALS_MAX

    # --- asking ------------------------------------------------------------------------------------------------------

    async def request(
        self, provider: Provider, header: Mapping[str, cbor.Value], *, size_max: int, progress: Progress
    ) -> tuple[Incoming, bytearray]:
        """Ask once and return (reply, its payload of at most `size_max` bytes).

        Raises `NetworkError`, `Rejected`, `Refused`. A kept stream that turns out dead is replaced by a new one once.
        """
        provider.in_flight += 1
        try:
            if provider.idle:
                try:
                    return await self._request_on(provider.idle.pop(), provider, header, size_max, progress)
                except StreamBroken:
                    if progress.moved_bytes:
                        raise
            stream = await self._open_stream(provider)
            return await self._request_on(stream, provider, header, size_max, progress)
        finally:
            provider.in_flight -= 1

    async def _request_on(
        self,
        stream: Stream,
        provider: Provider,
        header: Mapping[str, cbor.Value],
        size_max: int,
        progress: Progress,
    ) -> tuple[Incoming, bytearray]:
        is_reusable = False
        stream.patience = PATIENCE
        try:
            await send_message(stream, header)
            message = await receive_message(stream)
            is_reusable = not message.size
            verify_reply(message)
            if message.size > size_max:
                is_reusable = False
                raise Rejected(Reason.TOO_LARGE, f"a reply of {message.size} bytes, at most {size_max}")
            data = bytearray(message.size)
            view = memoryview(data)
            while progress.moved_bytes < len(data):
                piece = view[progress.moved_bytes :][: progress.piece_bytes]
                await stream.receive_into(piece)
                progress.move(len(piece))
            is_reusable = True
            progress.is_whole = True
            return message, data
        finally:
            if is_reusable:
                provider.idle.append(stream)
            else:
                await give_up(stream)

    async def _open_stream(self, provider: Provider) -> Stream:
        """Open a stream, at the addresses that are known or else at those that the DHT finds now."""
        if provider.addresses:
            try:
                return await self._dial(provider)
            except (PeerUnreachable, TooSlow):
                if self.discovery is None:
                    raise
        if self.discovery is None:
            raise PeerUnreachable("no address of it is known")
        found = await self.discovery.find_node(provider.node, fresh=bool(provider.addresses))
        if not found or set(found) <= set(provider.addresses):
            raise PeerUnreachable("no answer at any known address")
        provider.addresses = tuple(dict.fromkeys((*found, *provider.addresses)))[:8]
        return await self._dial(provider)

    async def _dial(self, provider: Provider) -> Stream:
        return await self.network.open_stream(provider.node, PROTOCOL, addresses=provider.addresses, deadline_s=DIAL_S)

    async def close(self) -> None:
        """End the streams that are kept."""
        for provider in self._known.values():
            while provider.idle:
                await give_up(provider.idle.pop())


REQUEST_FAULTS = (NetworkError, Rejected, Refused)
"""All that a request may raise."""


def is_no_room(fault: Exception) -> bool:
    """Return whether a peer said that it has no room for a request now."""
    return isinstance(fault, Busy) or (isinstance(fault, Refused) and fault.reason is Reason.OVER_BUDGET)


def is_lack(fault: Exception) -> bool:
    """Return whether a peer said that it has not what was asked."""
    return isinstance(fault, Refused) and fault.reason is Reason.NOT_FOUND
