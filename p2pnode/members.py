"""A client's way to the members of the committee: dials, asks, and remembers who failed and how. Judges no blob."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import trio

from dht.discovery import Discovery
from economics import cbor
from economics.errors import Reason, Rejected
from economics.genesis import Genesis, build_key_text
from p2pnode.errors import NetworkError, NodeError, PeerUnreachable, ProtocolUnsupported, StreamBroken, TooSlow
from p2pnode.network.frames import Incoming, receive_message, send_message
from p2pnode.network.host import Network
from p2pnode.network.stream import Stream

DIAL_S = 5.0
"""Twice what a dial takes over a slow home line; a member that needs longer is asked last."""
RESET_S = 1.0
REQUESTS_AT_ONCE = 4
"""To one member: a member with many shards is asked for many slivers, and has room for 16 streams of a peer."""
HEDGE_S = 1.0
"""After which another member is asked too: a healthy one has answered, dialling included."""
ASK_S = 60.0
"""For all members together to answer."""
DETAIL_CHARS_MAX = 160
"""Of a peer's own words about an error: they end up in logs, on terminals and in this node's own status."""

T = TypeVar("T")


class FaultKind(StrEnum):
    """What a member did, as the user reads it."""

    WRONG_BYTES = "served wrong bytes"
    UNREACHABLE = "unreachable"
    TOO_SLOW = "too slow"
    FOREIGN = "is of another network or version"
    BROKE_OFF = "broke off"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing that a member did wrong in this run."""

    member: int
    node: str
    kind: FaultKind
    detail: str

    def __str__(self) -> str:
        return f"node {self.member} ({self.node[:8]}) {self.kind}: {self.detail}"

    @property
    def word(self) -> str:
        """How to announce it: a lie is caught, anything else may be bad luck."""
        return "caught" if self.kind is FaultKind.WRONG_BYTES else "without"


def shorten(text: str) -> str:
    """Return a peer's words as they may be logged, shown on a terminal and passed on: one short line, printable."""
    return "".join(char if char.isprintable() else "?" for char in text[:DETAIL_CHARS_MAX])


class Refused(NodeError):
    """A member answered with a typed error; `retry` says whether the same request may succeed later."""

    def __init__(self, reason: Reason, detail: str, *, retry: bool) -> None:
        shown = shorten(detail)
        super().__init__(f"{reason}: {shown}" if shown else str(reason))
        self.reason = reason
        self.retry = retry


def kind_of(fault: Exception) -> FaultKind:
    """Return how to name an exception of a request to the user."""
    match fault:
        case Rejected():
            return FaultKind.WRONG_BYTES
        case Refused():
            return FaultKind.REFUSED
        case TooSlow():
            return FaultKind.TOO_SLOW
        case ProtocolUnsupported():
            return FaultKind.FOREIGN
        case PeerUnreachable():
            return FaultKind.UNREACHABLE
        case _:
            return FaultKind.BROKE_OFF


REQUEST_FAULTS = (NetworkError, Rejected, Refused)
"""All that a request to a member may raise."""


def verify_reply(message: Incoming) -> None:
    """Raise `Refused` if the message is a typed error, `Rejected` if it is no reply at all."""
    if message.header.get("ok") is True:
        return
    try:
        reason = Reason(message.text("error"))
    except ValueError as fault:
        raise Rejected(Reason.MALFORMED, "a reply with an unknown reason") from fault
    raise Refused(reason, message.text("detail"), retry=message.header.get("retry") is True)


class Members:
    """Streams to the members, by their index; one request at a time on each."""

    def __init__(
        self,
        network: Network,
        genesis: Genesis,
        protocol: str,
        discovery: Discovery | None,
        *,
        on_fault: Callable[[Fault], None] = lambda fault: None,
    ) -> None:
        self.network = network
        self.genesis = genesis
        self.protocol = protocol
        self.discovery = discovery
        self.faults: dict[int, Fault] = {}
        self._on_fault = on_fault
        self._idle: defaultdict[int, list[Stream]] = defaultdict(list)
        self._room: defaultdict[int, trio.CapacityLimiter] = defaultdict(lambda: trio.CapacityLimiter(REQUESTS_AT_ONCE))

    @property
    def count(self) -> int:
        return len(self.genesis.members)

    def blame(self, member: int, fault: Exception) -> None:
        """Remember what a member did; it is asked last from here on. A refusal that says "not here" is no fault."""
        if member in self.faults or (isinstance(fault, Refused) and fault.reason is Reason.NOT_FOUND):
            return
        node = build_key_text(self.genesis.members[member].node)
        self.faults[member] = Fault(member, node, kind_of(fault), str(fault))
        self._on_fault(self.faults[member])

    async def open_stream(self, member: int) -> Stream:
        """Open a stream: first at the addresses of the genesis file, then at those that the DHT knows now."""
        known = self.genesis.members[member]
        try:
            return await self.network.open_stream(
                known.node, self.protocol, addresses=known.addresses, deadline_s=DIAL_S
            )
        except (PeerUnreachable, TooSlow):
            if self.discovery is None:
                raise
        addresses = await self.discovery.find_node(known.node, fresh=True)
        if not addresses or set(addresses) <= set(known.addresses):
            raise PeerUnreachable("no answer at any known address")
        return await self.network.open_stream(known.node, self.protocol, addresses=addresses, deadline_s=DIAL_S)

    async def request(
        self, member: int, header: Mapping[str, cbor.Value], *, size_max: int, payload: bytes = b""
    ) -> tuple[Incoming, bytes]:
        """Ask once and return (reply, its payload of at most `size_max` bytes).

        Raises what `REQUEST_FAULTS` lists. A kept stream that turns out dead is replaced by a new one once.
        """
        async with self._room[member]:
            if self._idle[member]:
                try:
                    return await self._request_on(self._idle[member].pop(), member, header, size_max, payload)
                except StreamBroken:
                    for stale in self._idle.pop(member, []):
                        await give_up(stale)
            return await self._request_on(await self.open_stream(member), member, header, size_max, payload)

    async def _request_on(
        self, stream: Stream, member: int, header: Mapping[str, cbor.Value], size_max: int, payload: bytes
    ) -> tuple[Incoming, bytes]:
        reusable = False
        try:
            await send_message(stream, header, *([payload] if payload else []))
            message = await receive_message(stream)
            reusable = not message.size
            verify_reply(message)
            if message.size > size_max:
                raise Rejected(Reason.TOO_LARGE, f"a reply of {message.size} bytes, at most {size_max}")
            answer = await stream.receive_exactly(message.size)
            reusable = True
            return message, answer
        finally:
            if reusable:
                self._idle[member].append(stream)
            else:
                await give_up(stream)


async def ask_many(
    members: Members, order: Sequence[int], ask: Callable[[int], Awaitable[T]], *, shards: int, patience_s: float
) -> tuple[dict[int, T], dict[int, Exception]]:
    """Ask members at once, in this order no more than needed, until those with so many shards have answered.

    One that fails is replaced by the next, and so is, after `HEDGE_S`, one that is slow. Once one has answered the
    others have `patience_s`. Returns the answers, and how others failed.
    """
    committee = members.genesis.committee
    answers: dict[int, T] = {}
    faults: dict[int, Exception] = {}
    slow = TooSlow("no answer in time")
    asked: set[int] = set()
    changed = trio.Event()

    async def hear(member: int, scope: trio.CancelScope) -> None:
        nonlocal changed
        try:
            answers[member] = await ask(member)
        except REQUEST_FAULTS as fault:
            members.blame(member, fault)
            faults[member] = fault
        else:
            faults.pop(member, None)
            scope.deadline = min(scope.deadline, trio.current_time() + patience_s)
            if committee.weight(answers) >= shards:
                scope.cancel()
        changed.set()
        changed = trio.Event()

    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + ASK_S
        for member in list(order):
            while committee.weight(asked - set(faults)) >= shards:
                with trio.move_on_after(HEDGE_S) as waiting:
                    await changed.wait()
                if waiting.cancelled_caught:
                    faults.update((late, slow) for late in asked - set(answers) - set(faults))
            nursery.start_soon(hear, member, nursery.cancel_scope)
            asked.add(member)
    if committee.weight(answers) < shards:
        faults.update((late, slow) for late in asked - set(answers) - set(faults))
    return answers, faults


async def give_up(stream: Stream) -> None:
    """Reset a stream, even while being cancelled: the peer must not wait for the rest."""
    with trio.CancelScope(deadline=trio.current_time() + RESET_S, shield=True):
        await stream.reset()
