"""The body of a request, brought to the disk in bounded memory: too large, too slow or cut short, it leaves nothing."""

from collections.abc import Callable

import trio
from starlette.requests import ClientDisconnect, Request

from p2pnode.gateway.faults import HttpFault
from p2pnode.gateway.orders import read_length
from p2pnode.gateway.spool import Spooled

STALL_S = 30.0
STALL_BYTES = 65_536
"""A body that brings fewer bytes than this in 30 s is given up: it holds one of a few places for uploads."""
BATCH_BYTES = 1 << 20
"""Goes to a worker thread at once: a hop for each packet would cost more than the write."""


def too_large(limit: int, what: str) -> HttpFault:
    message = f"{what} has at most {limit} bytes here: use `p2pnode store`, or ask the operator of this gateway"
    return HttpFault(413, message, "TOO_LARGE", facts={"limitBytes": limit})


def verify_announced(request: Request, *, limit: int, what: str) -> int:
    """Return the length that the request announces, 0 if none; raises `HttpFault(413)` before the body is read."""
    length = read_length(request) or 0
    if length > limit:
        raise too_large(limit, what)
    return length


async def receive(request: Request, spooled: Spooled, take: Callable[[bytes], None], *, limit: int, what: str) -> None:
    """Give the whole body to `take`, in order, in worker threads; it may write as many bytes as it was given.

    Raises `HttpFault`: 413 where the body is longer than `limit`, 408 where it stalls, 400 where it ends early;
    `SpaceError`, and what `take` does.
    """
    total = counted = 0
    batch = bytearray()
    with trio.CancelScope(deadline=trio.current_time() + STALL_S) as waiting:
        try:
            async for chunk in request.stream():
                total += len(chunk)
                if total > limit:
                    raise too_large(limit, what)
                batch += chunk
                if len(batch) >= BATCH_BYTES:
                    await _pass_on(batch, total, spooled, take)
                if total - counted >= STALL_BYTES:
                    counted, waiting.deadline = total, trio.current_time() + STALL_S
        except ClientDisconnect as fault:
            raise ended_early() from fault
    if waiting.cancelled_caught:
        raise HttpFault(408, "the body stopped coming: nothing was stored, send it again", "STALLED")
    await _pass_on(batch, total, spooled, take)
    if read_length(request) not in (None, total):
        raise ended_early()


async def _pass_on(batch: bytearray, total: int, spooled: Spooled, take: Callable[[bytes], None]) -> None:
    spooled.expect(total)
    if batch:
        await trio.to_thread.run_sync(take, bytes(batch))
        batch.clear()


def ended_early() -> HttpFault:
    return HttpFault(400, "the body ended before all of it was sent: nothing was stored, send it again", "CUT_SHORT")
