"""What a failed call raises: one exception that its caller can act on, never a group of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from economics.errors import Rejected
from p2pnode.errors import NetworkError, NodeError


@contextmanager
def plainly() -> Iterator[None]:
    """Let out a single exception where the block raises a group, and `NetworkError` for a peer's fault."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise simplify(choose(group)) from None
    except Rejected as fault:
        raise simplify(fault) from fault


def choose(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the exception of a group that matters most.

    A cancellation first, which must reach whoever asked for it; then what ends a program; then faults of ours; then the
    world's, first those that trying again does not mend.
    """
    return min(leaves_of(group), key=rank)


def rank(fault: BaseException) -> int:
    match fault:
        case trio.Cancelled():
            return 0
        case NodeError():
            return 4 if fault.retry else 3
        case Rejected():
            return 5
        case Exception():
            return 2
        case _:
            return 1


def simplify(fault: BaseException) -> BaseException:
    return NetworkError(f"a node answered what no node may: {fault}") if isinstance(fault, Rejected) else fault


def leaves_of(fault: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions in nested groups, or the one that is none."""
    if isinstance(fault, BaseExceptionGroup):
        for inner in fault.exceptions:
            yield from leaves_of(inner)
    else:
        yield fault
