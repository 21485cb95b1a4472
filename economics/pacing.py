"""How long a view may take, and which leaders are not waited for. Local policy: no choice here can harm safety.

Integers only. Rule 8 of Simplex: the timeout grows with the views since the last finalization, and shrinks by a new
finalization alone.
"""

from collections import defaultdict

BACKOFF_MAX_MS = 60_000
"""A view takes at most this long once it has begun, unless the network's timeout is longer."""
SKIP_AFTER = 3
"""Views of a leader that were nullified one after the other, with no proposal seen, until it is not waited for."""


def timeout_ms(first_ms: int, views: int) -> int:
    """Return the leader's timeout, `views` after the last final one: half as much again for each beyond the first."""
    most = max(first_ms, BACKOFF_MAX_MS)
    grown = first_ms
    for _ in range(views - 1):
        if grown >= most:
            break
        grown += (grown + 1) // 2
    return min(grown, most)


class SkipList:
    """Leaders that are offline: each would cost a timeout whenever it is drawn."""

    def __init__(self) -> None:
        self._missed: defaultdict[int, int] = defaultdict(int)

    def miss(self, leader: int) -> None:
        """Note that a view of this leader, which this node went through, was nullified without a proposal."""
        self._missed[leader] += 1

    def redeem(self, member: int) -> None:
        """Note a sign of life: a valid vote or proposal of a view that is not yet over."""
        self._missed.pop(member, None)

    def skips(self, leader: int) -> bool:
        return self._missed.get(leader, 0) >= SKIP_AFTER
