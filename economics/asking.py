"""Asking members for what is missing, answering them, and telling all again at a standstill (rules 6 and 7 of Simplex).

All of it is bounded in number and rate: sending again without bound is how a slow network dies.
"""

from collections.abc import Callable, Iterable
from itertools import islice

from economics.block import Proposal
from economics.branches import Branches, Lack
from economics.crypto import Digest
from economics.effects import Ask, Broadcast, Effect, Missing, Send
from economics.epoch import Epoch
from economics.pacing import BACKOFF_MAX_MS
from economics.votes import SignedVote, VoteCertificate

ANSWER_ITEMS_MAX = 64
ANSWER_PROPOSALS_MAX = 16
"""Each may hold the hashes of as many transactions as a block may have."""
ANSWER_INTERVAL_MS = 200
"""A member is answered this often at most, however often it asks."""
STANDSTILL_MS_MIN = 3_000


class Asking:
    """What this node lacks and whom it has asked, whom it has answered, and since when nothing moves."""

    def __init__(self, epoch: Epoch, branches: Branches, emit: Callable[[Effect], None]) -> None:
        self._epoch = epoch
        self._branches = branches
        self._emit = emit
        self.asked = 0
        self.answered = 0
        self.standstills = 0
        self.ask_ms: int | None = None
        """When to ask the next member."""
        self.still_ms: int | None = None
        """When to tell all again."""
        self._still_wait_ms = self._standstill_ms
        self._lacks: list[Lack] = []
        self._tries: dict[tuple[int, Digest | None], int] = {}
        self._answered_ms: dict[int, int] = {}

    # Lacks

    def forget_lacks(self) -> None:
        """Begin to collect anew what is missing."""
        self._lacks = []

    def lack(self, lack: Lack) -> None:
        self._lacks.append(lack)

    def wants(self, block_hash: Digest) -> bool:
        return any(lack.block_hash == block_hash for lack in self._lacks)

    def ask_for_lacks(self, now_ms: int) -> None:
        """Ask for what is missing: its proposer first, then one member after the other (rule 6)."""
        lacks = {(lack.view, lack.block_hash): lack for lack in reversed(self._lacks)}
        self._tries = {key: tries for key, tries in self._tries.items() if key in lacks}
        if not lacks:
            self.ask_ms = None
            return
        again = self.ask_ms is not None and now_ms >= self.ask_ms
        lowest = min(lacks, key=lambda key: key[0])
        for key, lack in lacks.items():
            tries = self._tries.get(key, 0)
            if tries == 0 and lack.block_hash is not None:
                self._emit(Missing(lack.block_hash, self._epoch.committee.epoch, lack.view, lack.height))
            if tries == 0 or (again and key == lowest):
                self._tries[key] = tries + 1
                self._ask(now_ms, lack, tries=tries)

    def _ask(self, now_ms: int, lack: Lack, *, tries: int) -> None:
        self.ask_ms = now_ms + max(self._epoch.parameters.timeout_ms // 2, 1)
        first = self._epoch.leader_of(lack.view) if lack.member is None else lack.member
        members, own = len(self._epoch.committee.members), self._epoch.own
        others = [index for at in range(members) if (index := (first + at) % members) != own]
        if others:
            self.asked += 1
            view = lack.view if lack.from_view is None else lack.from_view
            self._emit(Send(others[tries % len(others)], Ask(self._epoch.committee.epoch, view)))

    # Answers

    def answer(self, now_ms: int, *, member: int | None, view: int, own_view: int) -> None:
        """Send the highest certificate first, then what is held from `view` on."""
        if member is None or member == self._epoch.own:
            return
        last_ms = self._answered_ms.get(member)
        if last_ms is not None and now_ms < last_ms + ANSWER_INTERVAL_MS:
            return
        self._answered_ms[member] = now_ms
        self.answered += 1
        proposals = 0
        for item in islice(self._items(view, own_view), ANSWER_ITEMS_MAX):
            proposals += isinstance(item, Proposal)
            if proposals > ANSWER_PROPOSALS_MAX:
                break
            self._emit(Send(member, item))

    def _items(self, view: int, own_view: int) -> Iterable[VoteCertificate | Proposal]:
        highest, final = self._branches.highest, self._branches.final
        if highest is not None:
            yield highest
        if final is not None and final is not highest and view <= own_view:
            yield final
        for item in self._branches.items_from(view, to_view=own_view):
            bare = isinstance(item, Proposal) and item.parent is None and item.block.header.parent_view != 0
            if item is not highest and not bare:
                yield item

    # Standstill

    @property
    def _standstill_ms(self) -> int:
        return max(3 * self._epoch.parameters.timeout_ms, STANDSTILL_MS_MIN)

    def calm(self) -> None:
        """Something became final."""
        self.still_ms, self._still_wait_ms = None, self._standstill_ms

    def stir(self, now_ms: int, *, under_way: bool, votes: Callable[[], list[SignedVote]]) -> None:
        """Tell all again, ever more rarely, while nothing becomes final though something is under way (rule 7)."""
        if not under_way:
            self.still_ms = None
        elif self.still_ms is None:
            self.still_ms = now_ms + self._still_wait_ms
        elif now_ms >= self.still_ms:
            self._still_wait_ms = min(self._still_wait_ms * 2, max(BACKOFF_MAX_MS, self._standstill_ms))
            self.still_ms = now_ms + self._still_wait_ms
            self.standstills += 1
            self._tell_certificates()
            self.tell_votes(votes())
            self._ask(now_ms, Lack(self._branches.final_view + 1, None, self._epoch.own), tries=self.standstills)

    def _tell_certificates(self) -> None:
        highest, final = self._branches.highest, self._branches.final
        above = self._branches.certificates_above(self._branches.final_view)
        if len(above) > ANSWER_ITEMS_MAX:
            above = above[: ANSWER_ITEMS_MAX // 2] + above[-ANSWER_ITEMS_MAX // 2 :]
        if highest is not None:
            self._emit(Broadcast(highest))
        for certificate in (final, *above):
            if certificate is not None and certificate is not highest:
                self._emit(Broadcast(certificate))

    def tell_votes(self, votes: list[SignedVote]) -> None:
        for signed in votes[-ANSWER_ITEMS_MAX:]:
            self._emit(Broadcast(signed))
