"""Spot checks: a node now and then asks another for a symbol that both can check, and says who fails and how.

Nothing follows from a failure but a line in the log and in `status`: what a ledger would judge, an operator sees here.
"""

import logging
import random
from functools import partial

import trio

from economics import cbor
from economics.blob import Root, SegmentMetadata
from economics.crypto import DIGEST_BYTES, NodeId
from economics.errors import Reason, Rejected
from economics.geometry import Code
from p2pnode.coding.codec import Codec, Kind
from p2pnode.members import REQUEST_FAULTS, Fault, Members, Refused, nickname
from p2pnode.slivers.store import SliverStore

log = logging.getLogger("p2pnode.auditing.watch")


class Watch:
    """One node's spot checks of the other members."""

    def __init__(self, *, members: Members, store: SliverStore, codec: Codec, own: NodeId, rng: random.Random) -> None:
        self.members = members
        self.store = store
        self.codec = codec
        self.own = own
        self.rng = rng
        self.checks = 0
        """Checks made since the start, passed or not."""
        self.last_faults: dict[NodeId, Fault] = {}
        """Of nodes whose last check failed."""

    @property
    def code(self) -> Code:
        return self.codec.code

    async def run(self, pause_s: float) -> None:
        """Check one member every `pause_s` seconds, give or take half."""
        while True:
            await trio.sleep(pause_s * self.rng.uniform(0.5, 1.5))
            others = [member.node for member in self.members.committee.members if member.node != self.own]
            certified = [record for record in self.store.records().values() if record.certificate is not None]
            if certified and others:
                await self.check(self.rng.choice(others), self.rng.choice(self.rng.choice(certified).header.roots))

    async def check(self, node: NodeId, root: Root) -> None:
        """Ask a member for one symbol of a sliver that it owes, and compare it with the segment's metadata."""
        try:
            metadata = await trio.to_thread.run_sync(self.store.read_metadata, root)
        except Rejected as fault:
            log.error("no metadata to check others by: %s", fault)  # our own copies are gone; nobody else is to blame
            return
        self.checks += 1
        try:
            await self._ask(node, root, metadata)
        except REQUEST_FAULTS as fault:
            self._note(node, fault)
        else:
            if self.last_faults.pop(node, None) is not None:
                log.info("node %s passes its checks again", nickname(node))
                self.members.forgive(node)

    async def _ask(self, node: NodeId, root: Root, metadata: SegmentMetadata) -> None:
        shard = self.rng.choice(self.members.committee.shards_of_node(node))
        kind = self.rng.choice(list(Kind))
        pair = self.code.pair_of_shard(shard, root)
        index = pair if kind is Kind.PRIMARY else self.code.n - 1 - pair
        first = self.rng.randrange(self.codec.symbols(kind))
        request: dict[str, cbor.Value] = {
            "count": 1,
            "first": first,
            "index": index,
            "kind": int(kind),
            "op": "sliver",
            "root": root,
        }
        leaves_bytes = DIGEST_BYTES * self.code.n
        size_max = leaves_bytes + self.code.symbol_bytes(self.code.segment_bytes)
        _, payload = await self.members.request(node, request, size_max=size_max)
        leaves, symbol = payload[:leaves_bytes], payload[leaves_bytes:]
        if not symbol:
            raise Rejected(Reason.MALFORMED, "a sliver without symbols")
        check = partial(self.codec.check_symbols, metadata, kind, index, leaves, first=first, symbols=symbol)
        await trio.to_thread.run_sync(partial(check, z=len(symbol)))

    def _note(self, node: NodeId, fault: Exception) -> None:
        """Name a member when it first fails; one that does not hold the sliver is not at fault: it may heal.

        Nor is one that keeps it back while it is being audited.
        """
        if isinstance(fault, Refused) and fault.reason is Reason.OVER_BUDGET:
            return
        self.members.blame(node, fault)
        known = self.members.fault(node)
        if known is not None and node not in self.last_faults:
            self.last_faults[node] = known
            log.warning("%s: %s", known.word, known)
