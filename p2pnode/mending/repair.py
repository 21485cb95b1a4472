"""Pairs of slivers made again from symbols of others: optimistic first, then by leaves, and at last the writer's guilt.

For each sliver S or P helpers give one symbol each, which is as much as the sliver itself. The secondary comes first
and gives the primary one symbol: with f liars among the others, S - 1 honest ones are left. If what they give does not
make the committed sliver, their leaves tell who lied; who did is excluded, so f liars cost at most f such rounds. If
nobody lied, the writer encoded wrongly, and the symbols with their leaves prove it.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from economics import cbor
from economics.blob import Leaves, Root, SegmentMetadata
from economics.crypto import NodeId
from economics.errors import Reason, Rejected
from economics.ledger import Ledger
from p2pnode.coding.codec import Codec, Kind
from p2pnode.coding.recovery import (
    Evidence,
    InconsistencyProof,
    Witness,
    build_recovery_proof,
    find_liars,
    recover,
)
from p2pnode.errors import NodeError
from p2pnode.members import REQUEST_FAULTS
from p2pnode.mending.owed import Want, helpers
from p2pnode.mending.peers import Peers
from p2pnode.slivers.serving import LENGTH_BYTES
from p2pnode.slivers.sliverfile import Pair
from p2pnode.slivers.store import CorruptSliver, SliverKey, SliverStore

log = logging.getLogger("p2pnode.mending.repair")

HEDGE_S = 2.0
"""After which others are asked in place of helpers that have not answered."""


Sliver = tuple[bytes, Leaves]
"""One that has been checked, and the leaves that it expands to."""


class Inconsistent(NodeError):
    """A writer's commitments contradict each other."""

    def __init__(self, want: Want, proof: InconsistencyProof) -> None:
        super().__init__(f"segment {want.segment} is encoded wrongly: {proof.evidence}")
        self.want = want
        self.proof = proof


@dataclass(frozen=True, slots=True)
class _Given:
    """A helper's symbol, and who gave it; None for this node itself."""

    symbol: bytes
    node: NodeId | None
    leaves: Leaves | None = None
    """Of the sliver that it is from, where that is this node's and not on the disk yet."""


@dataclass(slots=True)
class _Collection:
    """The symbols of some segments for one kind of sliver of one shard, while they come in."""

    shard: int
    kind: Kind
    wants: Mapping[Root, Want]
    needed: int
    given: defaultdict[Root, dict[int, _Given]] = field(default_factory=lambda: defaultdict(dict))
    """By root, then by helper's shard."""
    changed: trio.Event = field(default_factory=trio.Event)
    pending: list[list[int]] = field(default_factory=list)
    """Shards that are being asked for, by request; those that are late are not waited for."""

    def lacking(self) -> list[Root]:
        return [root for root in self.wants if len(self.given[root]) < self.needed]

    def short(self) -> int:
        """Return how many symbols the worst supplied segment lacks."""
        return max((self.needed - len(self.given[root]) for root in self.wants), default=0)

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class Repair:
    """Recovers pairs from the symbols of other nodes."""

    def __init__(self, *, node: NodeId, store: SliverStore, codec: Codec, peers: Peers) -> None:
        self.node = node
        self.store = store
        self.codec = codec
        self.code = codec.code
        self.peers = peers

    async def recover_pairs(
        self, ledger: Ledger, wants: Sequence[Want]
    ) -> tuple[list[tuple[SegmentMetadata, Want, Pair]], list[Inconsistent]]:
        """Return those pairs that could be made again, and the writers' faults that came to light.

        All of this node's lost pairs of a segment belong together: their secondaries help each of their primaries.
        """
        metadata = await self._metadata_of(ledger, {want.root: want for want in wants})
        wanted = [want for want in wants if want.root in metadata]
        wrong: list[Inconsistent] = []
        secondaries = await self._make_all(ledger, Kind.SECONDARY, wanted, metadata, {}, wrong)
        wanted = [want for want in wanted if (want.root, want.shard) in secondaries]
        primaries = await self._make_all(ledger, Kind.PRIMARY, wanted, metadata, secondaries, wrong)
        made = []
        for want in wanted:
            if (want.root, want.shard) not in primaries:
                continue
            primary, secondary = (halves[want.root, want.shard] for halves in (primaries, secondaries))
            pair = Pair(want.shard, memoryview(primary[0]), memoryview(secondary[0]), primary[1], secondary[1])
            proof = padding_proof(self.codec, want, metadata[want.root], pair)
            if proof is None:
                made.append((metadata[want.root], want, pair))
            else:
                wrong.append(Inconsistent(want, proof))
        return made, wrong

    async def _make_all(
        self,
        ledger: Ledger,
        kind: Kind,
        wants: Sequence[Want],
        metadata: Mapping[Root, SegmentMetadata],
        secondaries: Mapping[SliverKey, Sliver],
        wrong: list[Inconsistent],
    ) -> dict[SliverKey, Sliver]:
        """Return the slivers of one kind that could be made, by root and shard; adds to `wrong` what writers did."""
        by_shard: defaultdict[int, dict[Root, Want]] = defaultdict(dict)
        for want in wants:
            by_shard[want.shard][want.root] = want
        found: dict[SliverKey, Sliver] = {}

        async def make(collection: _Collection) -> None:
            await self._collect(ledger, collection)
            for root, want in collection.wants.items():
                try:
                    made = await self._make_sliver(ledger, want, metadata[root], collection)
                except Inconsistent as fault:
                    wrong.append(fault)
                else:
                    if made is not None:
                        found[root, want.shard] = made

        async with trio.open_nursery() as nursery:
            for shard, owed in by_shard.items():
                collection = self._collection(shard, kind, owed)
                await trio.to_thread.run_sync(self._take_made, collection, secondaries)
                nursery.start_soon(make, collection)
        return found

    def _take_made(self, collection: _Collection, secondaries: Mapping[SliverKey, Sliver]) -> None:
        """Take the symbols that secondary slivers made just now give to primary ones; for a worker thread."""
        for (root, shard), (sliver, leaves) in secondaries.items():
            if root in collection.wants:
                row, z = self._index(Kind.PRIMARY, collection.shard, root), self._z(collection.wants[root])
                symbol = self.codec.symbol(Kind.SECONDARY, sliver, row, z)
                collection.given[root][shard] = _Given(symbol, None, leaves)

    def _collection(self, shard: int, kind: Kind, wants: Mapping[Root, Want]) -> _Collection:
        return _Collection(shard, kind, wants, self.codec.symbols(kind))

    async def _metadata_of(self, ledger: Ledger, wants: Mapping[Root, Want]) -> dict[Root, SegmentMetadata]:
        found: dict[Root, SegmentMetadata] = {}

        async def find(want: Want) -> None:
            try:
                found[want.root] = await trio.to_thread.run_sync(self.store.read_metadata, want.root)
            except Rejected:
                nodes = {node for shard in range(self.code.n) for node in helpers(ledger, shard, want.since)}
                try:
                    found[want.root] = await self.peers.metadata(sorted(nodes - {self.node}), want.root)
                except Rejected as fault:
                    log.debug("segment %s: %s", want.root[:4].hex(), fault)

        async with trio.open_nursery() as nursery:
            for want in wants.values():
                nursery.start_soon(find, want)
        return found

    # --- collecting ----------------------------------------------------------------------------------------------

    async def _collect(self, ledger: Ledger, collection: _Collection) -> None:
        """Ask for symbols until each segment has enough, or nobody is left; slow helpers are replaced meanwhile."""
        await trio.to_thread.run_sync(self._take_own, collection)
        candidates = self._candidates(ledger, collection)
        async with trio.open_nursery() as nursery:
            while (short := collection.short()) > 0:
                more = short - sum(map(len, collection.pending))
                if more > 0 and candidates:
                    for node, shards in self._choose(candidates, more).items():
                        collection.pending.append(shards)
                        nursery.start_soon(self._ask, collection, node, shards)
                    continue
                if not candidates and not nursery.child_tasks:
                    break
                with trio.move_on_after(HEDGE_S) as waiting:
                    await collection.changed.wait()
                if waiting.cancelled_caught:
                    collection.pending.clear()
            nursery.cancel_scope.cancel()

    def _take_own(self, collection: _Collection) -> None:
        """Take the symbols that this node's other slivers have; for a worker thread."""
        for root in collection.wants:
            for shard in set(range(self.code.n)) - set(self.store.missing(root, range(self.code.n))):
                if len(collection.given[root]) >= collection.needed:
                    break
                index = self._index(collection.kind, collection.shard, root)
                try:
                    symbol = self.store.read_crossing(root, shard, collection.kind, index)
                except (CorruptSliver, Rejected):
                    continue
                collection.given[root][shard] = _Given(symbol, None)

    def _candidates(self, ledger: Ledger, collection: _Collection) -> list[tuple[int, NodeId]]:
        """Return (shard, who may hold it) in the order of asking: everybody once before former holders."""
        since = min((want.since for want in collection.wants.values()), default=0)
        given = [collection.given[root] for root in collection.wants]
        shards = [shard for shard in range(self.code.n) if not all(shard in symbols for symbols in given)]
        shards = [shard for shard in shards if shard != collection.shard]
        self.peers.rng.shuffle(shards)
        held = {shard: [node for node in helpers(ledger, shard, since) if node != self.node] for shard in shards}
        depth = max(map(len, held.values()), default=0)
        found = [(shard, held[shard][at]) for at in range(depth) for shard in shards if at < len(held[shard])]
        return sorted(found, key=lambda item: self.peers.members.fault(item[1]) is not None)

    def _choose(self, candidates: list[tuple[int, NodeId]], count: int) -> dict[NodeId, list[int]]:
        """Take so many shards off the candidates, by node."""
        chosen: dict[NodeId, list[int]] = {}
        while candidates and count:
            shard, node = candidates.pop(0)
            if node in self.peers.excluded or any(shard in shards for shards in chosen.values()):
                continue
            chosen.setdefault(node, []).append(shard)
            count -= 1
        return chosen

    async def _ask(self, collection: _Collection, node: NodeId, shards: list[int]) -> None:
        """Ask one node for the symbols of its shards, page by page."""
        request: dict[str, cbor.Value] = {
            "from": list(shards),
            "kind": int(collection.kind),
            "op": "symbols",
            "shard": collection.shard,
        }
        roots = collection.lacking()
        try:
            while roots:
                size_max = sum(len(shards) * (LENGTH_BYTES + self._z(collection.wants[root])) for root in roots)
                items, size = await self.peers.ask_items(node, request, roots, size_max=size_max, each=len(shards))
                self.peers.traffic.symbols_bytes += size
                for root, symbols in zip(roots, items, strict=False):
                    self._take(collection, node, root, dict(zip(shards, symbols, strict=True)))
                roots = roots[len(items) :]
        except REQUEST_FAULTS as fault:
            log.info("no symbols of shards %s: %s", shards, fault)
        finally:
            if shards in collection.pending:  # not so if it was late
                collection.pending.remove(shards)
            collection.wake()

    def _z(self, want: Want) -> int:
        return self.code.symbol_bytes(want.length)

    def _take(self, collection: _Collection, node: NodeId, root: Root, symbols: Mapping[int, memoryview]) -> None:
        z = self._z(collection.wants[root])
        for shard, symbol in symbols.items():
            if symbol and len(symbol) != z:
                self.peers.exclude(node, f"a symbol of {len(symbol)} bytes instead of {z}")
                raise Rejected(Reason.MALFORMED, "a symbol of another size")
            if symbol:
                collection.given[root].setdefault(shard, _Given(bytes(symbol), node))

    def _index(self, kind: Kind, shard: int, root: Root) -> int:
        """Return the index of a shard's sliver of this kind."""
        pair = self.code.pair_of_shard(shard, root)
        return pair if kind is Kind.PRIMARY else self.code.n - 1 - pair

    # --- making --------------------------------------------------------------------------------------------------

    async def _make_sliver(
        self, ledger: Ledger, want: Want, metadata: SegmentMetadata, collection: _Collection
    ) -> Sliver | None:
        """Return a sliver and its leaves, or None without enough helpers; raises `Inconsistent`."""
        kind, root = collection.kind, want.root
        index, given = self._index(kind, want.shard, root), collection.given[root]
        for _ in range(self.code.f + 1):
            for shard in [shard for shard, item in given.items() if item.node in self.peers.excluded]:
                del given[shard]
            if len(given) < collection.needed:
                await self._collect(ledger, self._rest_of(collection, want))
            if len(given) < collection.needed:
                return None
            symbols = {self._index(kind.other, shard, root): item.symbol for shard, item in given.items()}
            make = partial(recover, self.codec, metadata, kind, index, symbols, z=self._z(want))
            try:
                return await trio.to_thread.run_sync(make)
            except Rejected as fault:
                log.warning("segment %s: symbols do not make the sliver: %s", root[:4].hex(), fault)
            await self._find_guilty(want, metadata, collection, index)
        return None

    def _rest_of(self, collection: _Collection, want: Want) -> _Collection:
        """Return the collection of one segment alone, which goes on with what is right."""
        rest = self._collection(want.shard, collection.kind, {want.root: want})
        rest.given = collection.given
        return rest

    async def _find_guilty(self, want: Want, metadata: SegmentMetadata, collection: _Collection, index: int) -> None:
        """Exclude who lied, and drop their symbols; raises `Inconsistent` if nobody did."""
        kind, root = collection.kind, want.root
        given = collection.given[root]
        leaves = await self._leaves_of(root, kind.other, given)
        symbols = {self._index(kind.other, shard, root): item.symbol for shard, item in given.items()}
        judge = partial(find_liars, self.codec, metadata, kind, index, symbols, leaves, z=self._z(want))
        liars = await trio.to_thread.run_sync(judge)
        if not liars:
            proof = build_recovery_proof(metadata, kind, index, symbols, leaves, segment=want.segment, code=self.code)
            raise Inconsistent(want, proof)
        guilty = [shard for shard in given if self._index(kind.other, shard, root) in liars]
        for shard in guilty:
            node = given.pop(shard).node
            if node is not None:
                self.peers.exclude(node, "it gave a symbol that its own sliver is not bound to, or hid its leaves")

    async def _leaves_of(self, root: Root, kind: Kind, given: Mapping[int, _Given]) -> dict[int, bytes]:
        """Return the leaves of the slivers that gave symbols, by index; nothing of who will not show them."""
        found: dict[int, bytes] = {}

        async def find(shard: int, item: _Given) -> None:
            index = self._index(kind, shard, root)
            if item.leaves:
                found[index] = item.leaves
                return
            if item.node is not None:
                found[index] = await self.peers.leaves(item.node, root, kind, index)
                return
            try:
                read = partial(self.store.read_symbols, root, kind, index, first=0, count=0)
                found[index] = (await trio.to_thread.run_sync(read)).leaves
            except (CorruptSliver, Rejected):
                found[index] = b""

        async with trio.open_nursery() as nursery:
            for shard, item in given.items():
                nursery.start_soon(find, shard, item)
        return found


def padding_proof(codec: Codec, want: Want, metadata: SegmentMetadata, pair: Pair) -> InconsistencyProof | None:
    """Return the proof that a checked pair has a byte other than zero behind its segment's end; None if it has not."""
    row, z = codec.code.pair_of_shard(want.shard, want.root), codec.code.symbol_bytes(want.length)
    for kind, index, sliver, leaves in (
        (Kind.PRIMARY, row, pair.primary, pair.primary_leaves),
        (Kind.SECONDARY, codec.code.n - 1 - row, pair.secondary, pair.secondary_leaves),
    ):
        if not codec.is_systematic(kind, index):
            continue
        start = codec.padding_start(kind, index, want.length)
        bad = next((at for at in range(start, len(sliver)) if sliver[at]), None)
        if bad is not None:
            place = bad // z
            witness = Witness(place, leaves, bytes(sliver[place * z : place * z + z]))
            return InconsistencyProof(Evidence.PADDING, want.segment, metadata.encode(), kind, index, (witness,))
    return None
