"""One Kademlia lookup: ever closer peers are asked, several at a time, and nobody frozen is waited for. No libp2p."""

import heapq
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

CLOSEST = 20
"""Peers that hold a record: Kademlia's k, and the library's."""
PARALLEL = 8
"""Requests in flight."""
ASKED_MAX = 100
"""Requests in all: whoever invents ever closer peers ends a lookup no later than this."""
STRAGGLER_S = 2.0
"""So long are the last peers waited for when nobody else is left to ask: one of them may be frozen."""

Peer = TypeVar("Peer")
Reply = TypeVar("Reply")


async def lookup(
    starts: Iterable[Peer],
    *,
    distance: Callable[[Peer], int],
    ask: Callable[[Peer], Awaitable[Reply | None]],
    take: Callable[[Peer, Reply], Iterable[Peer]],
    is_enough: Callable[[], bool],
    give_up: Callable[[Peer], None],
    deadline_s: float,
) -> list[Peer]:
    """Return the peers that answered, the closest first, at most CLOSEST.

    `ask` returns a reply, or None if the peer failed; `take` is given each reply and returns the peers that it names;
    `give_up` is told of each peer whose answer was not waited for. Ends when the CLOSEST known have been asked.
    """
    known = {peer: distance(peer) for peer in starts}
    asked: set[Peer] = set()
    failed: set[Peer] = set()
    answered: list[Peer] = []
    send, receive = trio.open_memory_channel[tuple[Peer, Reply | None]](PARALLEL)

    async def query(peer: Peer) -> None:
        reply = await ask(peer)
        await send.send((peer, reply))

    def candidate() -> Peer | None:
        if len(asked) >= ASKED_MAX:
            return None
        closest = heapq.nsmallest(CLOSEST, known.keys() - failed, key=known.__getitem__)
        return next((peer for peer in closest if peer not in asked), None)

    with trio.move_on_after(deadline_s):
        async with trio.open_nursery() as nursery:
            in_flight = 0
            while not is_enough():
                while in_flight < PARALLEL and (peer := candidate()) is not None:
                    asked.add(peer)
                    in_flight += 1
                    nursery.start_soon(query, peer)
                if not in_flight:
                    break
                is_tail = bool(answered) and in_flight < PARALLEL
                with trio.move_on_after(STRAGGLER_S if is_tail else deadline_s) as waiting:
                    peer, reply = await receive.receive()
                if waiting.cancelled_caught:
                    for straggler in asked.difference(answered, failed):
                        give_up(straggler)
                    break
                in_flight -= 1
                if reply is None:
                    failed.add(peer)
                    continue
                answered.append(peer)
                for named in take(peer, reply):
                    known.setdefault(named, distance(named))
            nursery.cancel_scope.cancel()
    return heapq.nsmallest(CLOSEST, answered, key=known.__getitem__)
