"""Answers challenges (FORMATS.md 7, 17): a hash of the symbols in which each auditor's slivers cross this node's own.

All auditors' answers about a sliver are made with one reading of it and kept for the round: asking again costs nothing.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import trio

from economics import challenges
from economics.blob import Root
from economics.crypto import DIGEST_BYTES, Digest, NodeId
from economics.errors import Reason, Rejected
from p2pnode.auditing.rounds import Rounds, Sheet
from p2pnode.coding.codec import Codec, Kind
from p2pnode.network.frames import Incoming
from p2pnode.slivers.storage import EPOCHS_MAX, LAG_S, Operation, Reply
from p2pnode.slivers.store import CorruptSliver, SliverStore

log = logging.getLogger("p2pnode.auditing.answers")

ASKED_MAX = 4_096
"""Slivers that one request may name."""
ASKED_BYTES = 2 + DIGEST_BYTES
ATTEMPTS_MAX = 3
"""Requests of one auditor for one of its shards in a round: a stream may break, but nobody asks for fun."""
NUMBER_MAX = (1 << 16) - 1

Asked = tuple[int, Root]
"""(target's shard, segment root)."""


def build_request(asked: Sequence[Asked]) -> bytes:
    """Return the payload that names these slivers."""
    return b"".join(shard.to_bytes(2, "big") + root for shard, root in asked)


def parse_request(payload: bytes) -> list[Asked]:
    """Return the slivers that a payload names, each once; raises `Rejected(MALFORMED)`."""
    count, rest = divmod(len(payload), ASKED_BYTES)
    rows = (payload[at : at + ASKED_BYTES] for at in range(0, len(payload), ASKED_BYTES))
    asked = [] if rest else [(int.from_bytes(row[:2], "big"), Root(row[2:])) for row in rows]
    if not 1 <= count <= ASKED_MAX or len(set(asked)) != count:
        raise Rejected(Reason.MALFORMED, f"the payload is 1 to {ASKED_MAX} distinct shards and roots")
    return asked


class Answers:
    """One node's answers."""

    def __init__(self, *, rounds: Rounds, store: SliverStore, codec: Codec, node: NodeId) -> None:
        self.rounds = rounds
        self.store = store
        self.codec = codec
        self.node = node
        self._sheet: Sheet | None = None
        """The round that what follows is of."""
        self._made: dict[Asked, Sequence[Digest]] = {}
        """Answers by auditor's shard; at most f shards' samples, 32n bytes each."""
        self._attempts: Counter[int] = Counter()
        """Requests by auditor's shard."""
        self._turn = trio.Lock()
        """One thread reads: a sampled sliver is read once, however many auditors ask at the same time."""

    def operations(self) -> Mapping[str, Operation]:
        return {"challenge": Operation(self._challenge, ASKED_MAX * ASKED_BYTES)}

    async def _challenge(self, peer: NodeId, message: Incoming, payload: bytes) -> Reply:
        name = message.integer("epoch", high=EPOCHS_MAX), message.integer("number", high=NUMBER_MAX)
        auditor = message.integer("shard", high=self.codec.code.n - 1)
        sheet = await self._await(name)
        if auditor not in sheet.committee.shards_of_node(peer):
            raise Rejected(Reason.UNKNOWN_SIGNER, f"shard {auditor} is not yours")
        asked = parse_request(payload)
        self._verify_sampled(sheet, asked)
        self._attempts[auditor] += 1
        if self._attempts[auditor] > ATTEMPTS_MAX:
            raise Rejected(Reason.OVER_BUDGET, "this was asked before")
        async with self._turn:
            missing = [one for one in asked if one not in self._made]
            if missing:
                self._made.update(await trio.to_thread.run_sync(self._make, sheet, missing))
            if self._sheet is not sheet:
                raise Rejected(Reason.WRONG_EPOCH, "that round is over")
        if any(one not in self._made for one in asked):
            raise Rejected(Reason.INCOMPLETE, "not all of it is held here")
        return {"ok": True}, tuple(self._made[one][auditor] for one in asked)

    async def _await(self, name: tuple[int, int]) -> Sheet:
        """Return the sheet of the current round if that is its name; one that others see begun may come here too."""
        with trio.move_on_after(LAG_S):
            sheet = await self.rounds.wait_until(lambda sheet: sheet.name >= name)
            if sheet.name == name:
                if self._sheet is not sheet:
                    self._sheet, self._made = sheet, {}
                    self._attempts.clear()
                return sheet
        raise Rejected(Reason.WRONG_EPOCH, "this is another round")

    def _verify_sampled(self, sheet: Sheet, asked: Sequence[Asked]) -> None:
        """Raise `Rejected` unless this node is to answer all of it: it reads nothing else for anybody's pleasure."""
        own = set(sheet.committee.shards_of_node(self.node))
        for shard, root in asked:
            if shard in own and (root, shard) in sheet.pairs:
                continue
            if shard in own and any(one.root is None for one in sheet.samples.get(shard, ())):
                raise Rejected(Reason.INCOMPLETE, "not every blob is known here")
            raise Rejected(Reason.WRONG_INDEX, f"shard {shard} is not asked about {root[:4].hex()} here")

    def _make(self, sheet: Sheet, asked: Sequence[Asked]) -> dict[Asked, Sequence[Digest]]:
        """Return the answers about what of this is held; for a worker thread."""
        made: dict[Asked, Sequence[Digest]] = {}
        for shard, root in asked:
            try:
                made[shard, root] = self._answer_all(sheet, shard, root)
            except CorruptSliver as fault:
                log.error("%s", fault)
            except Rejected as fault:
                if fault.reason is not Reason.NOT_FOUND:
                    raise
        return made

    def _answer_all(self, sheet: Sheet, shard: int, root: Root) -> list[Digest]:
        """Return the answers about one pair, by auditor's shard."""
        code, target = self.codec.code, sheet.committee.members[sheet.committee.holder(shard)].node
        pair = self.store.read_pair(root, shard)[1]
        z = len(pair.primary) // code.columns

        def one(auditor: int) -> Digest:
            crossing = code.pair_of_shard(auditor, root)
            return challenges.answer(
                sheet.round.seed,
                target=target,
                root=root,
                shard=shard,
                auditor_shard=auditor,
                row=self.codec.symbol(Kind.PRIMARY, pair.primary, code.n - 1 - crossing, z),
                column=self.codec.symbol(Kind.SECONDARY, pair.secondary, crossing, z),
            )

        return [one(auditor) for auditor in range(code.n)]
