"""Keeps what this node owes on its disk: takes it over from who held it before, or recovers it from symbols of others.

What is on disk is not asked for again, so whatever ends this, it goes on where it was. Bytes in flight and per second
are bounded. It asks for what the ledger owes only, and checks every sliver before it is kept.
"""

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import cache, partial
from random import Random

import trio

from economics import cbor
from economics.arguments import Operation, ReportSync
from economics.blob import BlobId, Root, SegmentMetadata, build_blob_id_text
from economics.crypto import DIGEST_BYTES, NodeId
from economics.errors import Reason, Rejected
from economics.ledger import Ledger
from p2pnode.coding.codec import Codec, Kind
from p2pnode.coding.recovery import InconsistencyProof
from p2pnode.errors import SpaceError
from p2pnode.members import REQUEST_FAULTS
from p2pnode.mending.owed import Survey, Surveyor, Want, holders
from p2pnode.mending.peers import PAGE_BYTES_PER_S, Patience, Peers
from p2pnode.mending.repair import Inconsistent, Repair, padding_proof
from p2pnode.mending.throttle import Throttle
from p2pnode.network.host import sole_exception
from p2pnode.slivers.serving import ITEMS_MAX, LENGTH_BYTES, REPLY_BYTES_MAX
from p2pnode.slivers.sliverfile import Pair
from p2pnode.slivers.store import SliverStore

log = logging.getLogger("p2pnode.mending.healing")

IN_FLIGHT_BYTES = 32 << 20
"""Of pairs that are asked for, checked and written at once: a home node has 256 MiB to give to all it does."""
PAGE_BYTES = 4 << 20
"""Of one request for pairs or symbols; a pair that is larger goes alone."""
assert PAGE_BYTES < REPLY_BYTES_MAX
RECOVERIES_AT_ONCE = 4
PAUSE_MIN_S = 1.0
PAUSE_MAX_S = 300.0
"""When nothing can be had, it is tried again after 1 s, then twice as long each time, up to 5 minutes."""
SURVEY_S = 1.0
SURVEY_MAX_S = 10.0
SURVEY_SHARE = 50
"""A survey costs time for each live blob: one a second, less where that is over a fiftieth of a core."""
MISSED_S = 15.0
MISSED_SHARE = 8
"""What an upload did not bring to this node is left to its client for 15 s, but at most an eighth of an epoch."""

Wish = Callable[[bytes, Operation, Callable[[Ledger], bool]], None]
"""How an operation is put on the chain (`Operator.want`)."""
Accuse = Callable[[BlobId, InconsistencyProof], Awaitable[None]]


class Healing:
    """One node's care for what it owes."""

    def __init__(
        self,
        *,
        node: NodeId,
        store: SliverStore,
        codec: Codec,
        peers: Peers,
        ledger: Callable[[], Ledger],
        throttle: Throttle,
        accuse: Accuse,
        want: Wish,
        rng: Random,
    ) -> None:
        self.node = node
        self.store = store
        self.codec = codec
        self.code = codec.code
        self.peers = peers
        self.repair = Repair(node=node, store=store, codec=codec, peers=peers)
        self.throttle = throttle
        self.missing = 0
        """Pairs and headers found missing by the last survey."""
        self._ledger = ledger
        self._accuse = accuse
        self._want = want
        self._rng = rng
        epoch_s = ledger().genesis.parameters.epoch_ms / 1000
        self._surveyor = Surveyor(node=node, store=store, delay_s=min(MISSED_S, epoch_s / MISSED_SHARE))
        self._woken = trio.Event()
        self._survey_s = 0.0
        self._is_full = False

    def status(self) -> dict[str, cbor.Value]:
        return {"excluded": len(self.peers.excluded), "missing": self.missing, **self.peers.traffic.show()}

    def wake(self) -> None:
        """Look at once: something was lost."""
        self._woken.set()

    async def run(self, advanced: Callable[[], trio.Event]) -> None:
        """Heal for as long as the node runs; `advanced` gives an event that is set by the next block."""
        pause_s = PAUSE_MIN_S
        while True:
            self._woken = trio.Event()
            ledger = self._ledger()
            survey = await self.look(ledger)
            if not self.missing:
                pause_s = PAUSE_MIN_S
                await self._await_news(advanced(), until=survey.next_due)
            elif await self.heal(ledger, survey):
                pause_s = PAUSE_MIN_S
            else:
                await self._rest(pause_s * self._rng.uniform(0.5, 1.0), seats_of(ledger), advanced)
                pause_s = min(2 * pause_s, PAUSE_MAX_S)

    async def look(self, ledger: Ledger) -> Survey:
        """Look for what is missing, and report to the chain when nothing of the handover is."""
        self.peers.begin(ledger.epoch)
        start = trio.current_time()
        proven = self.store.proofs.known()
        survey = await trio.to_thread.run_sync(lambda: self._surveyor.survey(ledger, now=start, proven=proven))
        self._survey_s = trio.current_time() - start
        self.missing = len(survey.headers) + len(survey.wants)
        if survey.synced:
            self._report(ledger)
        return survey

    def _report(self, ledger: Ledger) -> None:
        epoch, index = ledger.epoch, ledger.committee.index_of(self.node)
        if index is None or index in ledger.handover.reporters:
            return

        def is_wanted(later: Ledger) -> bool:
            return later.epoch == epoch and index not in later.handover.reporters

        self._want(b"sync" + epoch.to_bytes(8, "big"), ReportSync(epoch), is_wanted)

    async def _await_news(self, advanced: trio.Event, *, until: float) -> None:
        """Wait for a block, and for a while at least, or until something is known to be lost; or to be due."""
        with trio.move_on_after(min(max(SURVEY_S, SURVEY_SHARE * self._survey_s), SURVEY_MAX_S)):
            await self._woken.wait()
        with trio.move_on_at(until):
            async with trio.open_nursery() as nursery:
                for event in (advanced, self._woken):
                    nursery.start_soon(_cancel_after, event, nursery.cancel_scope)

    async def _rest(self, pause_s: float, seats: tuple[object, ...], advanced: Callable[[], trio.Event]) -> None:
        """Wait before the next attempt; no longer than until other nodes may have what is missing."""
        with trio.move_on_after(pause_s):
            while seats_of(self._ledger()) == seats:
                await advanced().wait()

    # --- one pass ------------------------------------------------------------------------------------------------

    async def heal(self, ledger: Ledger, survey: Survey) -> bool:
        """Fetch what a survey found missing; return whether anything of it is here now. A full disk ends it."""
        before, found, was_full = self.peers.traffic.restored_pairs, 0, self._is_full
        self._is_full = False
        try:
            found = await self._take_headers(ledger, survey.headers)
            left = await self._transfer(ledger, survey.wants)
            await self._recover(ledger, left)
        except* SpaceError as fault:
            self._is_full = True
            if not was_full:
                log.error("what this node owes does not fit: %s", sole_exception(fault))
        return bool(found) or self.peers.traffic.restored_pairs > before

    async def _take_headers(self, ledger: Ledger, wanted: Sequence[BlobId]) -> int:
        """Store the headers of blobs; return how many were found."""
        if not wanted:
            return 0
        found = await self.peers.headers(others(ledger, self.node), wanted)
        for blob_id in wanted:
            if blob_id in found:
                await trio.to_thread.run_sync(self.store.put_header, found[blob_id])
        return len(found)

    def _pages(self, groups: Sequence[Sequence[Want]]) -> Iterator[list[Want]]:
        """Cut wants into pages that are asked for together; those of a group stay together."""
        page: list[Want] = []
        count = size = 0
        for group in groups:
            more = sum(map(self._item_bytes, group))
            if page and (count >= ITEMS_MAX or size + more > PAGE_BYTES):
                yield page
                page, count, size = [], 0, 0
            page += group
            count += 1
            size += more
        if page:
            yield page

    def _item_bytes(self, want: Want) -> int:
        """Return the size of a pair in a reply, with its metadata."""
        z = self.code.symbol_bytes(want.length)
        return LENGTH_BYTES + 2 * self.code.n * DIGEST_BYTES + self.code.pair_bytes(z)

    def _files_bytes(self, wants: Sequence[Want]) -> int:
        """Return what the files of these pairs take of the disk."""
        return sum(self.store.layout.file_bytes(self.code.symbol_bytes(want.length)) for want in wants)

    async def _store(self, made: Sequence[tuple[SegmentMetadata, Want, Pair]]) -> None:
        """Keep pairs that have been checked; each is durable by itself."""
        for metadata, want, pair in made:
            z = self.code.symbol_bytes(want.length)
            await trio.to_thread.run_sync(self.store.put_segment, metadata, z, [pair])
            self.peers.traffic.restored_bytes += self.store.layout.file_bytes(z)
            self.peers.traffic.restored_pairs += 1

    async def _condemn(self, fault: Inconsistent) -> None:
        log.warning("blob %s: %s", build_blob_id_text(fault.want.blob_id), fault)
        await self._accuse(fault.want.blob_id, fault.proof)

    # --- from who held it before ---------------------------------------------------------------------------------

    async def _transfer(self, ledger: Ledger, wants: Sequence[Want]) -> list[Want]:
        """Take pairs over from those who hold or held their shard, one after the other; return what none has."""
        left = list(wants)
        asked: defaultdict[int, set[NodeId]] = defaultdict(set)
        holders_of = cache(partial(holders, ledger))  # 60 us each: a thousand wants are of few shards and epochs
        while True:
            groups: defaultdict[tuple[NodeId, int], list[Want]] = defaultdict(list)
            for want in left:
                nodes = holders_of(want.shard, want.since)
                node = next(
                    (node for node in self.peers.willing(nodes) if node not in asked[want.shard] | {self.node}), None
                )
                if node is not None:
                    groups[node, want.shard].append(want)
            if not groups:
                return left
            async with trio.open_nursery() as nursery:
                for (node, shard), group in groups.items():
                    asked[shard].add(node)
                    nursery.start_soon(self._take_over, ledger.epoch, node, shard, group)
            left = [want for want in left if self.store.missing(want.root, [want.shard])]

    async def _take_over(self, epoch: int, node: NodeId, shard: int, wants: Sequence[Want]) -> None:
        """Ask one node for pairs of one shard, page by page, until it fails or is too slow."""
        patience = Patience()
        for page in self._pages([[want] for want in wants]):
            size = sum(map(self._item_bytes, page))
            async with self.throttle.taken(size):
                await trio.to_thread.run_sync(self.store.verify_room, self._files_bytes(page))
                try:
                    await self._take_page(epoch, node, shard, page, size, patience)
                except REQUEST_FAULTS as fault:
                    self.peers.members.blame(node, fault)
                    log.info("shard %d is not had from its holder: %s", shard, fault)
                    return

    async def _take_page(
        self, epoch: int, node: NodeId, shard: int, page: Sequence[Want], size: int, patience: Patience
    ) -> None:
        request: dict[str, cbor.Value] = {"epoch": epoch, "op": "pairs", "shard": shard}
        while page:
            roots, begin = [want.root for want in page], trio.current_time()
            items, received = await self.peers.ask_items(node, request, roots, size_max=size)
            spent_s = trio.current_time() - begin
            self.peers.traffic.transfer_bytes += received
            held = [(want, item) for want, (item,) in zip(page, items, strict=False) if item]
            try:
                made = await trio.to_thread.run_sync(lambda held=held: [self._check(*one) for one in held])
            except Rejected as fault:
                self.peers.exclude(node, str(fault))
                raise
            for metadata, want, pair in made:
                proof = padding_proof(self.codec, want, metadata, pair)
                if proof is not None:
                    await self._condemn(Inconsistent(want, proof))
            await self._store(made)
            page = page[len(items) :]
            patience.spend(spent_s, earned_s=received / PAGE_BYTES_PER_S)

    def _check(self, want: Want, item: memoryview) -> tuple[SegmentMetadata, Want, Pair]:
        """Return the pair that an item holds, both slivers re-expanded; raises `Rejected`. For a worker thread."""
        code, z = self.code, self.code.symbol_bytes(want.length)
        start = 2 * code.n * DIGEST_BYTES
        middle = start + code.columns * z
        if len(item) != start + code.pair_bytes(z):
            raise Rejected(Reason.MALFORMED, f"a pair of {len(item)} bytes")
        metadata = SegmentMetadata.decode(bytes(item[:start]), n=code.n, root=Root(want.root))
        row = code.pair_of_shard(want.shard, want.root)
        primary, secondary = item[start:middle], item[middle:]
        primary_leaves = self.codec.check_sliver(metadata, Kind.PRIMARY, row, primary, z)
        secondary_leaves = self.codec.check_sliver(metadata, Kind.SECONDARY, code.n - 1 - row, secondary, z)
        return metadata, want, Pair(want.shard, primary, secondary, primary_leaves, secondary_leaves)

    # --- from symbols --------------------------------------------------------------------------------------------

    async def _recover(self, ledger: Ledger, wants: Sequence[Want]) -> None:
        """Recover pairs from symbols, some pages at once."""
        by_root: defaultdict[Root, list[Want]] = defaultdict(list)
        for want in wants:
            by_root[want.root].append(want)
        room = trio.CapacityLimiter(RECOVERIES_AT_ONCE)

        async def recover(page: list[Want]) -> None:
            async with room, self.throttle.taken(sum(map(self._item_bytes, page))):
                await trio.to_thread.run_sync(self.store.verify_room, self._files_bytes(page))
                made, wrong = await self.repair.recover_pairs(ledger, page)
                await self._store(made)
                for fault in wrong:
                    await self._condemn(fault)

        async with trio.open_nursery() as nursery:
            for page in self._pages(list(by_root.values())):
                nursery.start_soon(recover, page)


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def others(ledger: Ledger, node: NodeId) -> list[NodeId]:
    """Return the members of the current committee and of those that still hold what was certified before it."""
    handover = ledger.handover
    epochs = [ledger.epoch, handover.source_epoch, *(stage.source_epoch for stage in reversed(handover.older))]
    committees = [committee for epoch in epochs if (committee := ledger.committee_of(epoch)) is not None]
    nodes = dict.fromkeys(member.node for committee in committees for member in committee.members)
    return [other for other in nodes if other != node]


def seats_of(ledger: Ledger) -> tuple[object, ...]:
    """Return what says who has what: the epoch, the next committee's hash, and who has reported."""
    later = ledger.next_committee
    return ledger.epoch, None if later is None else later.hash, ledger.handover
