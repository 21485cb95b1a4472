"""Spot checks: a node now and then asks another for a symbol that both can check, and says who fails and how.

Nothing follows from a failure but a line in the log and in `status`: what a ledger would judge, an operator sees here.
"""

import logging
import random
from functools import partial

import trio

from economics import cbor
from economics.blob import Root, SegmentMetadata
from economics.crypto import DIGEST_BYTES
from economics.errors import Reason, Rejected
from economics.geometry import Code
from p2pnode.codec import Codec, Kind
from p2pnode.members import REQUEST_FAULTS, Fault, Members
from p2pnode.store import SliverStore

log = logging.getLogger("p2pnode.watch")


class Watch:
    """One node's spot checks of the other members."""

    def __init__(
        self, *, members: Members, store: SliverStore, codec: Codec, own_index: int, rng: random.Random
    ) -> None:
        self.members = members
        self.store = store
        self.codec = codec
        self.own_index = own_index
        self.rng = rng
        self.checks = 0
        """Checks made since the start, passed or not."""
        self.last_faults: dict[int, Fault] = {}
        """Members whose last check failed."""

    @property
    def code(self) -> Code:
        return self.codec.code

    async def run(self, pause_s: float) -> None:
        """Check one member every `pause_s` seconds, give or take half."""
        others = [member for member in range(self.members.count) if member != self.own_index]
        while others:
            await trio.sleep(pause_s * self.rng.uniform(0.5, 1.5))
            certified = [record for record in self.store.records().values() if record.certificate is not None]
            if certified:
                await self.check(self.rng.choice(others), self.rng.choice(self.rng.choice(certified).header.roots))

    async def check(self, member: int, root: Root) -> None:
        """Ask `member` for one symbol of a sliver that it owes, and compare it with the segment's metadata."""
        try:
            metadata = await trio.to_thread.run_sync(self.store.read_metadata, root)
        except Rejected as fault:
            log.error("no metadata to check others by: %s", fault)  # our own copies are gone; nobody else is to blame
            return
        self.checks += 1
        try:
            await self._ask(member, root, metadata)
        except REQUEST_FAULTS as fault:
            self._note(member, fault)
        else:
            if self.last_faults.pop(member, None) is not None:
                log.info("node %d passes its checks again", member)
                self.members.faults.pop(member, None)

    async def _ask(self, member: int, root: Root, metadata: SegmentMetadata) -> None:
        shard = self.rng.choice(self.members.genesis.committee.shards_of(member))
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
        _, payload = await self.members.request(member, request, size_max=size_max)
        leaves, symbol = payload[:leaves_bytes], payload[leaves_bytes:]
        if not symbol:
            raise Rejected(Reason.MALFORMED, "a sliver without symbols")
        check = partial(self.codec.check_symbols, metadata, kind, index, leaves, first=first, symbols=symbol)
        await trio.to_thread.run_sync(partial(check, z=len(symbol)))

    def _note(self, member: int, fault: Exception) -> None:
        """Name a member when it first fails; one that does not hold the sliver is not at fault: it may heal."""
        self.members.blame(member, fault)
        if member in self.members.faults and member not in self.last_faults:
            self.last_faults[member] = self.members.faults[member]
            log.warning("%s: %s", self.last_faults[member].word, self.last_faults[member])
