"""The way to the members of a committee: dials, asks, and remembers who failed and how. Judges no blob.

Committees change, nodes stay: streams, their number and faults are kept by node.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

import trio

from dht.discovery import Discovery
from economics import cbor
from economics.committee import Committee
from economics.crypto import NodeId
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
Who = int | NodeId
"""A member by its index in the committee that is asked, or any node by its ID."""


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
    """The first thing that a node did wrong in this run."""

    member: int | None
    """Its index in the committee, None for a node that is no member."""
    node: str
    kind: FaultKind
    detail: str

    def __str__(self) -> str:
        name = self.node[:8] if self.member is None else f"{self.member} ({self.node[:8]})"
        return f"node {name} {self.kind}: {self.detail}"

    @property
    def word(self) -> str:
        """How to announce it: a lie is caught, anything else may be bad luck."""
        return "caught" if self.kind is FaultKind.WRONG_BYTES else "without"


def nickname(node: NodeId) -> str:
    """Return how a node is called in logs."""
    return build_key_text(node)[:8]


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


class _Nodes:
    """What is kept of each node, whichever committees it is a member of."""

    def __init__(self, genesis: Genesis) -> None:
        self.founders = {member.node: member.addresses for member in genesis.members}
        self.faults: dict[NodeId, Fault] = {}
        self.idle: defaultdict[NodeId, list[Stream]] = defaultdict(list)
        self.room: defaultdict[NodeId, trio.CapacityLimiter] = defaultdict(
            lambda: trio.CapacityLimiter(REQUESTS_AT_ONCE)
        )


class Members:
    """Streams to the members of one committee at a time, and to any other node; one request at a time on each.

    Who names members by their index over an `await` needs a committee that stays: its own `seated` one.
    """

    def __init__(
        self,
        network: Network,
        genesis: Genesis,
        protocol: str,
        discovery: Discovery | None,
        *,
        committee: Committee | None = None,
        on_fault: Callable[[Fault], None] = lambda fault: None,
    ) -> None:
        self.network = network
        self.genesis = genesis
        self.protocol = protocol
        self.discovery = discovery
        self.committee = genesis.committee if committee is None else committee
        """Who is asked, and what each one's answer weighs; without any other, that of genesis."""
        self._on_fault = on_fault
        self._nodes = _Nodes(genesis)

    @property
    def count(self) -> int:
        return len(self.committee.members)

    def seated(self, committee: Committee) -> "Members":
        """Return the way to another committee's members; both share the streams and faults of each node."""
        other = copy(self)
        other.committee = committee
        return other

    async def seat(self, committee: Committee) -> None:
        """Ask another committee from here on; idle streams to nodes that are no members of it are ended."""
        self.committee = committee
        async with trio.open_nursery() as nursery:
            for node in [node for node in self._nodes.idle if committee.index_of(node) is None]:
                nursery.start_soon(self._hang_up, node)

    async def _hang_up(self, node: NodeId) -> None:
        for stream in self._nodes.idle.pop(node, []):
            await give_up(stream)

    def node_of(self, who: Who) -> NodeId:
        return self.committee.members[who].node if isinstance(who, int) else who

    def _addresses(self, node: NodeId) -> tuple[str, ...]:
        """Return where a node said on chain that it is, else what the genesis file says."""
        index = self.committee.index_of(node)
        known = () if index is None else self.committee.members[index].addresses
        return known or self._nodes.founders.get(node, ())

    @property
    def faults(self) -> Mapping[int, Fault]:
        """What members did, by their index."""
        found = ((self.committee.index_of(node), fault) for node, fault in self._nodes.faults.items())
        return {index: replace(fault, member=index) for index, fault in found if index is not None}

    def fault(self, who: Who) -> Fault | None:
        return self._nodes.faults.get(self.node_of(who))

    def blame(self, who: Who, fault: Exception) -> None:
        """Remember what a node did; it is asked last from here on. A refusal that says "not here", or that
        an epoch has ended, is no fault."""
        node = self.node_of(who)
        if node in self._nodes.faults:
            return
        if isinstance(fault, Refused) and fault.reason in (Reason.NOT_FOUND, Reason.WRONG_EPOCH):
            return
        found = Fault(self.committee.index_of(node), build_key_text(node), kind_of(fault), str(fault))
        self._nodes.faults[node] = found
        self._on_fault(found)

    def forgive(self, who: Who) -> None:
        """Forget what a node did: it has done better since."""
        self._nodes.faults.pop(self.node_of(who), None)

    def forgive_all(self) -> None:
        """Give every node another chance but those that served wrong bytes."""
        faults = self._nodes.faults
        for node in [node for node, fault in faults.items() if fault.kind is not FaultKind.WRONG_BYTES]:
            del faults[node]

    async def open_stream(self, who: Who) -> Stream:
        """Open a stream: first at the addresses that the chain or the genesis file names, then at those that the DHT
        knows now."""
        node = self.node_of(who)
        known = self._addresses(node)
        try:
            return await self.network.open_stream(node, self.protocol, addresses=known, deadline_s=DIAL_S)
        except (PeerUnreachable, TooSlow):
            if self.discovery is None:
                raise
        addresses = await self.discovery.find_node(node, fresh=True)
        if not addresses or set(addresses) <= set(known):
            raise PeerUnreachable("no answer at any known address")
        return await self.network.open_stream(node, self.protocol, addresses=addresses, deadline_s=DIAL_S)

    async def request(
        self, who: Who, header: Mapping[str, cbor.Value], *, size_max: int, payload: bytes = b""
    ) -> tuple[Incoming, bytes]:
        """Ask once and return (reply, its payload of at most `size_max` bytes).

        Raises what `REQUEST_FAULTS` lists. A kept stream that turns out dead is replaced by a new one once.
        """
        node = self.node_of(who)
        idle = self._nodes.idle
        async with self._nodes.room[node]:
            if idle[node]:
                try:
                    return await self._request_on(idle[node].pop(), node, header, size_max, payload)
                except StreamBroken:
                    await self._hang_up(node)
            return await self._request_on(await self.open_stream(node), node, header, size_max, payload)

    async def _request_on(
        self, stream: Stream, node: NodeId, header: Mapping[str, cbor.Value], size_max: int, payload: bytes
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
                self._nodes.idle[node].append(stream)
            else:
                await give_up(stream)


async def ask_many(
    members: Members, order: Sequence[int], ask: Callable[[int], Awaitable[T]], *, shards: int, patience_s: float
) -> tuple[dict[int, T], dict[int, Exception]]:
    """Ask members at once, in this order no more than needed, until those with so many shards have answered.

    The committee must stay while they are asked.

    One that fails is replaced by the next, and so is, after `HEDGE_S`, one that is slow. Once one has answered the
    others have `patience_s`. Returns the answers, and how others failed.
    """
    committee = members.committee
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
