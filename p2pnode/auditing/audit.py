"""Audits: in each round this node asks the challenged members about what they owe, and reports what it found.

It compares with its own slivers. Only an answer that is proven wrong makes a member bad: where an answer differs, the
leaves of the member's sliver tell a lie from a blob whose writer contradicts itself, and an own sliver that went rotten
is found when it is read, before anybody is asked.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from economics import cbor, challenges
from economics.arguments import ReportAudit
from economics.blob import Root, SegmentMetadata, leaf
from economics.crypto import DIGEST_BYTES, Digest, Level, NodeId, digest
from economics.errors import Reason, Rejected
from economics.ledger import Ledger
from economics.nodes import Outcome
from p2pnode.auditing.answers import ASKED_MAX, Asked, build_request
from p2pnode.auditing.onion import Want
from p2pnode.auditing.rounds import Rounds, Sheet
from p2pnode.coding.codec import Codec, Kind
from p2pnode.errors import NetworkError, TooSlow
from p2pnode.members import Members, Refused
from p2pnode.slivers.store import CorruptSliver, SliverStore

log = logging.getLogger("p2pnode.auditing.audit")

TARGETS_AT_ONCE = 8
"""Members that are asked at the same time."""
JITTER = 0.25
"""Of the window: auditors do not ask all at once. Each has its own place in it, another one in each round."""
PATIENCE = 0.75
"""Of the window: who has not answered by then is slow; the rest is for looking into wrong answers."""
RETRIES = 16
"""A member that cannot be reached is tried again so many times in a window: a moment's outage is no offence."""
DISPUTES_MAX = 16
"""Wrong answers of one member that are looked into; one that is proven wrong settles it."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What one of this node's shards can tell of a member's slivers."""

    own: int
    answers: Mapping[Asked, Digest]


class Auditor:
    """One node's audits."""

    def __init__(
        self, *, rounds: Rounds, store: SliverStore, codec: Codec, members: Members, node: NodeId, want: Want
    ) -> None:
        self.rounds = rounds
        self.store = store
        self.codec = codec
        self.members = members
        self.node = node
        self._want = want
        self._room = trio.CapacityLimiter(TARGETS_AT_ONCE)

    async def run(self) -> None:
        """Audit each round that begins, for as long as it lasts."""
        last: Sheet | None = None
        while True:
            sheet = await self.rounds.wait_until(lambda sheet: sheet is not last)  # noqa: B023
            last = sheet
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_with, sheet, nursery.cancel_scope)
                if sheet.committee.index_of(self.node) is not None:
                    self._report(sheet, await self.audit(sheet))
                nursery.cancel_scope.cancel()

    async def _stop_with(self, sheet: Sheet, scope: trio.CancelScope) -> None:
        await self.rounds.wait_until(lambda current: current is not sheet)
        scope.cancel()

    def _report(self, sheet: Sheet, outcomes: Sequence[Outcome]) -> None:
        epoch, number = sheet.name

        def is_wanted(ledger: Ledger) -> bool:
            index, current = ledger.committee.index_of(self.node), ledger.round
            if current is None or (ledger.epoch, current.epoch, current.number) != (epoch, epoch, number):
                return False
            return index is not None and index not in current.reporters

        name = b"audit" + epoch.to_bytes(8, "big") + number.to_bytes(2, "big")
        self._want(name, ReportAudit(epoch, number, tuple(outcomes)), is_wanted)

    async def audit(self, sheet: Sheet) -> list[Outcome]:
        """Return what is to be said of each challenged member, in the order of the tallies; takes a window at most."""
        targets = [tally.member for tally in sheet.round.tallies]
        outcomes = dict.fromkeys(targets, Outcome.UNKNOWN)
        began, window_s = self.rounds.began, self.rounds.window_s
        members = self.members.seated(sheet.committee)

        async def look_at(target: int) -> None:
            async with self._room:
                audit = _Audit(self, sheet, members, target, deadline=began + PATIENCE * window_s)
                outcomes[target] = await audit.run()

        drawn = digest(Level.SAMPLE, sheet.round.seed + self.node)
        await trio.sleep_until(began + JITTER * window_s * drawn[0] / 256)
        async with trio.open_nursery() as nursery:
            for target in targets:
                if sheet.committee.members[target].node != self.node:
                    nursery.start_soon(look_at, target)
        for target, outcome in outcomes.items():
            if outcome in (Outcome.BAD, Outcome.OFFLINE, Outcome.SLOW):
                log.info("member %d is %s in round %d of epoch %d", target, outcome.name.lower(), *sheet.name[::-1])
        return [outcomes[target] for target in targets]


class _Audit:
    """The audit of one member in one round."""

    def __init__(self, auditor: Auditor, sheet: Sheet, members: Members, target: int, *, deadline: float) -> None:
        self.auditor = auditor
        self.sheet = sheet
        self.members = members
        self.target = target
        self.deadline = deadline
        self.code = auditor.codec.code

    async def run(self) -> Outcome:
        """Ask from each own shard until one finds fault."""
        own = self.sheet.committee.shards_of_node(self.auditor.node)
        expected, lacking = await trio.to_thread.run_sync(self._collect, own)
        if 2 * lacking > lacking + sum(len(one.answers) for one in expected):
            return Outcome.UNKNOWN
        found = Outcome.UNKNOWN
        for one in expected:
            outcome = await self._ask(one) if one.answers else Outcome.UNKNOWN
            if outcome is Outcome.OK:
                found = outcome
            elif outcome is not Outcome.UNKNOWN:
                return outcome
        return found

    # --- own slivers ---------------------------------------------------------------------------------------------

    def _collect(self, own: Sequence[int]) -> tuple[list[Expected], int]:
        """Return the right answers, and how many are unknown here for want of a sliver; for a worker thread."""
        shards = self.sheet.committee.shards_of(self.target)
        sampled = [(shard, one.root) for shard in shards for one in self.sheet.samples[shard] if not one.is_fresh]
        sampled = sampled[:ASKED_MAX]
        made = []
        for mine in own:
            answers = {}
            for shard, root in sampled:
                answer = None if root is None else self._expect(shard, root, mine)
                if root is not None and answer is not None:
                    answers[shard, root] = answer
            made.append(Expected(mine, answers))
        return made, len(sampled) * len(own) - sum(len(one.answers) for one in made)

    def _expect(self, shard: int, root: Root, mine: int) -> Digest | None:
        """Return the one right answer, or None if the own pair that it takes is not here, or rotten and now dropped."""
        try:
            row, column = (symbol for _, _, _, symbol in self._crossings(shard, root, mine))
        except CorruptSliver as fault:
            log.error("%s", fault)
            return None
        except Rejected as fault:
            if fault.reason is not Reason.NOT_FOUND:
                raise
            return None
        return challenges.answer(
            self.sheet.round.seed,
            target=self.sheet.committee.members[self.target].node,
            root=root,
            shard=shard,
            auditor_shard=mine,
            row=row,
            column=column,
        )

    def _crossings(self, shard: int, root: Root, mine: int) -> list[tuple[Kind, int, int, bytes]]:
        """Return for both of the target's slivers (kind, index, crossing, the own symbol there)."""
        pair, own = self.code.pair_of_shard(shard, root), self.code.pair_of_shard(mine, root)
        mirrored = self.code.n - 1 - pair
        read = partial(self.auditor.store.read_crossing, root, mine)
        return [
            (Kind.PRIMARY, pair, self.code.n - 1 - own, read(Kind.PRIMARY, pair)),
            (Kind.SECONDARY, mirrored, own, read(Kind.SECONDARY, mirrored)),
        ]

    # --- asking --------------------------------------------------------------------------------------------------

    async def _ask(self, expected: Expected) -> Outcome:
        """Ask until there is an answer or the time is up."""
        outcome, answers = Outcome.SLOW, None
        with trio.move_on_at(self.deadline):
            while answers is None:
                try:
                    answers = await self._request(expected)
                except Refused as fault:
                    outcome = Outcome.OFFLINE
                    if fault.reason not in (Reason.WRONG_EPOCH, Reason.OVER_BUDGET):
                        break
                except Rejected:
                    return Outcome.BAD
                except TooSlow:
                    outcome = Outcome.SLOW
                except NetworkError:
                    outcome = Outcome.OFFLINE
                if answers is None:
                    await trio.sleep(self.auditor.rounds.window_s / RETRIES)
        return outcome if answers is None else await self._compare(expected, answers)

    async def _request(self, expected: Expected) -> list[bytes]:
        """Return the member's answers; raises what `REQUEST_FAULTS` lists."""
        epoch, number = self.sheet.name
        header: dict[str, cbor.Value] = {"epoch": epoch, "number": number, "op": "challenge", "shard": expected.own}
        asked = list(expected.answers)
        size = DIGEST_BYTES * len(asked)
        _, payload = await self.members.request(self.target, header, size_max=size, payload=build_request(asked))
        if len(payload) != size:
            raise Rejected(Reason.MALFORMED, "not as many answers as questions")
        return [payload[at : at + DIGEST_BYTES] for at in range(0, size, DIGEST_BYTES)]

    async def _compare(self, expected: Expected, answers: Sequence[bytes]) -> Outcome:
        """Judge a member by its answers; one that does not show its leaves in time has not answered."""
        pairs = zip(expected.answers.items(), answers, strict=True)
        wrong = [asked for (asked, right), answer in pairs if answer != right]
        with trio.move_on_at(self.auditor.rounds.began + self.auditor.rounds.window_s):
            try:
                for asked in wrong[:DISPUTES_MAX]:
                    if await self._has_lied(*asked, expected.own):
                        return Outcome.BAD
            except TooSlow:
                return Outcome.SLOW
            except NetworkError:
                return Outcome.OFFLINE
            return Outcome.OK if len(wrong) < len(answers) else Outcome.UNKNOWN
        return Outcome.SLOW

    async def _has_lied(self, shard: int, root: Root, mine: int) -> bool:
        """Return whether the member is bound to the very symbols that this node has, and answered otherwise.

        Where the leaves of its slivers and of this node's differ, their writer is to blame, and nobody else.
        """
        try:
            metadata = await trio.to_thread.run_sync(self.auditor.store.read_metadata, root)
            crossings = await trio.to_thread.run_sync(self._crossings, shard, root, mine)
        except (CorruptSliver, Rejected):  # gone since it was compared: nothing can be proven any more
            return False
        for kind, index, crossing, symbol in crossings:
            try:
                leaves = await self._leaves(metadata, root, kind, index)
            except Refused as fault:
                return fault.reason is not Reason.INVALID
            except Rejected:
                return True
            if leaves[crossing * DIGEST_BYTES : (crossing + 1) * DIGEST_BYTES] != leaf(symbol):
                log.warning("segment %s: its writer's commitments contradict each other", root[:4].hex())
                return False
        return True

    async def _leaves(self, metadata: SegmentMetadata, root: Root, kind: Kind, index: int) -> bytes:
        """Return the leaves of one of the member's slivers, as its commitment binds them; raises `REQUEST_FAULTS`.

        Who is too busy is asked again: anybody can make a node so, and it would pay for a writer's contradiction.
        """
        header: dict[str, cbor.Value] = {
            "count": 0,
            "first": 0,
            "index": index,
            "kind": int(kind),
            "op": "sliver",
            "root": root,
        }
        while True:
            try:
                _, leaves = await self.members.request(self.target, header, size_max=DIGEST_BYTES * self.code.n)
                break
            except Refused as fault:
                if fault.reason is not Reason.OVER_BUDGET:
                    raise
            await trio.sleep(self.auditor.rounds.window_s / RETRIES)
        self.auditor.codec.check_leaves(metadata, kind, index, leaves)
        return leaves
