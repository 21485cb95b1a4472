"""Gets one thing, a header or a segment, from whoever gives it right first. Knows no bytes and no blob's shape.

One peer is asked at a time, or two; another one for each that fails; another one besides for each that lags. Members
are asked when no peer is left, or when all keep it waiting.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

from dht.discovery import Discovery, DiscoveryError
from economics import cbor
from economics.blob import BlobId, build_blob_id_text
from economics.errors import Reason, Rejected
from p2pnode.errors import NetworkError, NodeError, PeerUnreachable, Unavailable
from p2pnode.network.frames import Incoming
from p2pnode.network.host import sole_exception
from p2pnode.peering.providers import (
    REQUEST_FAULTS,
    Contact,
    Progress,
    Provider,
    Providers,
    is_lack,
    is_no_room,
    parse_contact,
)

PROVIDERS_AT_ONCE = 8
"""Peers asked at once; more would share the same line."""
PROVIDERS_MAX = 64
"""Peers remembered for a blob: anybody can make up more."""
TOLD_MAX = 32
"""Of these, known from other peers alone: one that makes up peers is to leave room for those that the DHT finds."""
PEERS_TOLD_MAX = 8
POLL_S = 0.25
"""How often it is looked whether a request lags."""
STALL_S = 2.0
"""A request of which nothing has come for so long is made elsewhere, too: a healthy peer is dialled and answers."""
LAG_S = 3.0
LAG_FACTOR = 8
"""So is one that runs longer than this at an eighth of what the best peer gave."""
LAGGING_MAX = 2
"""Requests that lag beside one that does not: more would be the same bytes too often."""
LOOK_AGAIN_S = 3.0
"""The DHT is not asked for further peers more often than this."""
LOOK_S = 10.0
MEMBERS_WAIT_S = 2.0
"""Members are asked when no peer has been free for so long."""
MEMBERS_REST_S = 30.0
"""Members that failed are asked so soon again only where no peer is left."""

T = TypeVar("T")


@dataclass(eq=False)
class Search:
    """Who may have one blob."""

    blob_id: BlobId
    providers: list[Provider] = field(default_factory=list)
    good: list[Provider] = field(default_factory=list)
    """Those that gave something of it."""
    told: int = 0
    """How many are known from other peers alone."""
    looked_at: float | None = None
    """When the DHT was asked last."""
    is_looking: bool = False
    changed: trio.Event = field(default_factory=trio.Event)

    def add(self, provider: Provider) -> None:
        """Remember a peer, in the place of one that is not asked any more where there is no other."""
        if provider in self.providers:
            return
        if len(self.providers) >= PROVIDERS_MAX:
            self.providers = [one for one in self.providers if not one.is_excluded]
        if len(self.providers) < PROVIDERS_MAX:
            self.providers.append(provider)
            self.wake()

    def add_told(self, providers: Providers, contacts: Iterable[Contact]) -> None:
        """Remember peers that another one named, as far as there is room for such."""
        known = {one.node for one in self.providers}
        for node, addresses in contacts:
            if node not in known and node != providers.network.node_id and self.told < TOLD_MAX:
                self.told += 1
                self.add(providers.get(node, addresses))

    def wake(self) -> None:
        """Have those look again who wait for a peer."""
        self.changed.set()
        self.changed = trio.Event()

    async def look(self, providers: Providers, discovery: Discovery) -> None:
        """Ask the DHT who has the blob."""
        self.is_looking = True
        try:
            with trio.move_on_after(LOOK_S):
                for node in await discovery.find_providers(self.blob_id, deadline_s=LOOK_S):
                    self.add(providers.get(node))
            self.looked_at = trio.current_time()
        except DiscoveryError:
            self.looked_at = trio.current_time()
        finally:
            self.is_looking = False
            self.wake()

    def is_due(self, pause_s: float = LOOK_AGAIN_S) -> bool:
        """Return whether the DHT may be asked again."""
        return not self.is_looking and (self.looked_at is None or trio.current_time() - self.looked_at >= pause_s)


@dataclass(frozen=True)
class Want(Generic[T]):
    """A header, or a segment."""

    search: Search
    index: int | None
    """Of the segment; None for the header."""
    request: dict[str, cbor.Value]
    size_max: int
    accept: Callable[[bytearray], T]
    """Checks and decodes a reply, in a worker thread; raises `Rejected`."""
    from_members: Callable[[], Awaitable[T]] | None
    """Raises `Unavailable`, `NetworkError`; anything else ends the pursuit."""

    @property
    def what(self) -> str:
        text = build_blob_id_text(self.search.blob_id)
        return f"the blob {text}" if self.index is None else f"segment {self.index} of {text}"


@dataclass(eq=False)
class Attempt:
    """One request on its way; to the members where there is no provider."""

    provider: Provider | None
    progress: Progress = field(default_factory=Progress)

    def is_lagging(self, best_rate: float | None) -> bool:
        now = trio.current_time()
        if self.provider is None or self.progress.is_whole:
            return False
        if now - self.progress.moved_at >= STALL_S:
            return True
        is_late = now - self.progress.begun >= LAG_S
        return is_late and best_rate is not None and self.progress.rate() * LAG_FACTOR < best_rate


class Pursuit(Generic[T]):
    """One want, until it is had or hopeless."""

    def __init__(
        self,
        want: Want[T],
        providers: Providers,
        discovery: Discovery | None,
        *,
        ahead: int,
        checking: trio.CapacityLimiter,
    ) -> None:
        """Take how many peers are asked at once, and the limit on threads that check replies."""
        self.want = want
        self.search = want.search
        self.providers = providers
        self.discovery = discovery
        self.ahead = ahead
        self.checking = checking
        self.running: list[Attempt] = []
        self.members_fault: NodeError | None = None
        self._begun = trio.current_time()
        self._send, self._receive = trio.open_memory_channel[tuple[Attempt, list[T]]](PROVIDERS_MAX)

    async def run(self) -> tuple[T, Provider | None]:
        """Return what is wanted, and who gave it (None for the members).

        Raises `Unavailable` where nobody has it, `PeerUnreachable` where nobody answers.
        """
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    self._start_more(nursery)
                    if not self.running and self._is_hopeless():
                        raise self._failure()
                    done = await self._hear()
                    if done is None:
                        continue
                    attempt, results = done
                    self.running.remove(attempt)
                    if results:
                        self._name_late()
                        nursery.cancel_scope.cancel()
                        return results[0], attempt.provider
        except BaseExceptionGroup as group:
            raise sole_exception(group) from None
        raise AssertionError("the loop ends by returning or raising")

    async def _hear(self) -> tuple[Attempt, list[T]] | None:
        """Return what an attempt ended with; None after a moment, or when somebody may be free for one that waits."""
        with trio.move_on_after(POLL_S):
            if self.running:
                return await self._receive.receive()
            await self.search.changed.wait()
        return None

    # --- whom to ask -------------------------------------------------------------------------------------------------

    def _start_more(self, nursery: trio.Nursery) -> None:
        """Start as many requests as there should be now, and look for further peers where there are too few."""
        best_rate = self.providers.best_rate()
        lagging = sum(attempt.is_lagging(best_rate) for attempt in self.running)
        while len(self.running) < self.ahead + min(lagging, LAGGING_MAX):
            attempt = self._next_attempt(nursery)
            if attempt is None:
                break
            self.running.append(attempt)
            nursery.start_soon(self._attempt, attempt)

    def _next_attempt(self, nursery: trio.Nursery) -> Attempt | None:
        provider = self._pick()
        if provider is not None:
            return Attempt(provider)
        if self.discovery is not None and self.search.is_due():
            nursery.start_soon(self.search.look, self.providers, self.discovery)
            self.search.is_looking = True
        return Attempt(None) if self._may_ask_members() else None

    def _pick(self) -> Provider | None:
        """Return the peer that is likely to answer first: a slow one only where there is no other."""
        blob_id, index = self.search.blob_id, self.want.index
        asked = [attempt.provider for attempt in self.running]
        able = [one for one in self.search.providers if one not in asked and one.may_have(blob_id, index)]
        sound = [one for one in able if not one.is_slow] or able
        is_full = sum(one.in_flight > 0 for one in self.search.providers) >= PROVIDERS_AT_ONCE
        ready = [one for one in sound if one.is_ready(blob_id, index) and (one.in_flight or not is_full)]
        best_rate = self.providers.best_rate() or 1.0
        return min(ready, key=lambda one: (one.in_flight + 1) / (one.rate or best_rate), default=None)

    def _is_deserted(self) -> bool:
        """Return whether no peer is left that may have it, and none is being looked for."""
        if any(one.may_have(self.search.blob_id, self.want.index) for one in self.search.providers):
            return False
        return self.discovery is None or not (self.search.is_looking or self.search.is_due())

    def _may_ask_members(self) -> bool:
        if self.want.from_members is None or self.members_fault is not None:
            return False
        if any(attempt.provider is None for attempt in self.running):
            return False
        if self._is_deserted():
            return True
        now, failed_at = trio.current_time(), self.providers.members_failed_at
        if failed_at is not None and now - failed_at < MEMBERS_REST_S:
            return False
        if now - self._begun >= MEMBERS_WAIT_S:
            return True
        blob_id, index = self.search.blob_id, self.want.index
        hopes = [one for one in self.search.providers if one.may_have(blob_id, index)]
        return bool(hopes) and all(one.lacks_now(blob_id, index) for one in hopes)

    def _is_hopeless(self) -> bool:
        return self._is_deserted() and not self._may_ask_members()

    def _failure(self) -> NodeError:
        asked = self.search.providers
        absent = sum(self.search.blob_id in one.lacks_in_a_row for one in asked)
        faults = [str(self.providers.faults[one.node]) for one in asked if one.node in self.providers.faults]
        causes = "; ".join([*faults[:4], *([str(self.members_fault)] if self.members_fault else [])])
        tail = f" ({causes})" if causes else ""
        if isinstance(self.members_fault, Unavailable) or absent:
            return Unavailable(f"{self.want.what} is not to be had from {len(asked)} peers{tail}: try again later")
        if not asked and self.members_fault is None:
            return Unavailable(f"nobody is known to have {self.want.what}: name a --peer, or use a link that does")
        return PeerUnreachable(f"nobody who may have {self.want.what} answers{tail}: try again later")

    # --- asking ------------------------------------------------------------------------------------------------------

    async def _attempt(self, attempt: Attempt) -> None:
        results: list[T] = []
        try:
            if attempt.provider is None:
                results = await self._ask_members()
            else:
                results = await self._ask(attempt.provider, attempt.progress)
        finally:
            self._send.send_nowait((attempt, results))
            self.search.wake()

    async def _ask_members(self) -> list[T]:
        assert self.want.from_members is not None
        try:
            return [await self.want.from_members()]
        except (Unavailable, NetworkError) as fault:
            self.members_fault = fault
            self.providers.members_failed_at = trio.current_time()
            return []

    async def _ask(self, provider: Provider, progress: Progress) -> list[T]:
        """Return what a peer gave, checked; nothing, and remember why, if it was not that."""
        want = self.want
        try:
            message, data = await self.providers.request(
                provider, want.request, size_max=want.size_max, progress=progress
            )
            seconds = trio.current_time() - progress.begun
            result = await trio.to_thread.run_sync(want.accept, data, limiter=self.checking)
            told = parse_told(message)
        except REQUEST_FAULTS as fault:
            if is_lack(fault):
                provider.note_lack(self.search.blob_id, want.index)
            elif is_no_room(fault):
                self.providers.note_refusal(provider)
            else:
                self.providers.blame(provider, fault)
            return []
        provider.note_good(self.search.blob_id, len(data), seconds)
        if provider not in self.search.good:
            self.search.good.append(provider)
        self.search.add_told(self.providers, told)
        return [result]

    def _name_late(self) -> None:
        """Name those that lag when another one has answered."""
        best_rate = self.providers.best_rate()
        for attempt in self.running:
            if attempt.provider is not None and attempt.is_lagging(best_rate):
                moved = attempt.progress.moved_bytes
                self.providers.blame_slow(attempt.provider, f"{moved} bytes had come when another peer had sent all")


def parse_told(message: Incoming) -> list[Contact]:
    """Return the peers that a reply names; raises `Rejected` for anything else in their place."""
    told = message.header.get("peers", [])
    if not isinstance(told, list) or len(told) > PEERS_TOLD_MAX:
        raise Rejected(Reason.MALFORMED, f"peers are at most {PEERS_TOLD_MAX} texts")
    contacts = []
    for text in told:
        if not isinstance(text, str):
            raise Rejected(Reason.MALFORMED, f"peers are at most {PEERS_TOLD_MAX} texts")
        contacts.append(parse_contact(text))
    return contacts
