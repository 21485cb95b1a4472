"""What a node does for its slivers besides serving them: heals, proves, scrubs, collects. Puts these four together."""

from collections.abc import Callable, Mapping
from random import Random

import trio

from economics import cbor
from economics.arguments import Operation as Wanted
from economics.crypto import NodeId
from economics.ledger import Ledger
from p2pnode.coding.codec import Codec
from p2pnode.consensus.executor import Executor
from p2pnode.consensus.operator import Operator
from p2pnode.keys import Key
from p2pnode.members import Members
from p2pnode.mending.collect import Collect
from p2pnode.mending.healing import IN_FLIGHT_BYTES, Healing
from p2pnode.mending.peers import Peers
from p2pnode.mending.proofs import Proofs
from p2pnode.mending.scrub import Scrub
from p2pnode.mending.throttle import Throttle
from p2pnode.slivers.admission import Admission
from p2pnode.slivers.storage import Operation
from p2pnode.slivers.store import SliverStore


class Upkeep:
    """One node's care for what it holds and owes."""

    def __init__(
        self,
        *,
        executor: Executor,
        key: Key,
        store: SliverStore,
        codec: Codec,
        admission: Admission,
        members: Members,
        operator: Operator,
        repair_bytes_per_s: int,
        scrub_bytes_per_s: int,
        rng: Random,
    ) -> None:
        node = NodeId(key.public)
        self._executor = executor
        self._members = members

        def want(name: bytes, operation: Wanted, is_wanted: Callable[[Ledger], bool]) -> None:
            operator.want(name, operation, is_wanted)

        peers = Peers(members=members, code=codec.code, rng=rng)
        self.proofs = Proofs(
            genesis=executor.genesis,
            node=node,
            store=store,
            codec=codec,
            peers=peers,
            ledger=self._ledger,
            sign=key.sign,
            want=want,
        )
        self.healing = Healing(
            node=node,
            store=store,
            codec=codec,
            peers=peers,
            ledger=self._ledger,
            throttle=Throttle(in_flight=IN_FLIGHT_BYTES, bytes_per_s=repair_bytes_per_s),
            accuse=self.proofs.found,
            want=want,
            rng=rng,
        )
        self.scrub = Scrub(store=store, bytes_per_s=scrub_bytes_per_s, on_rotten=self.healing.wake, rng=rng)
        self.collect = Collect(node=node, store=store, admission=admission, ledger=self._ledger)

    def _ledger(self) -> Ledger:
        return self._executor.ledger

    def _advanced(self) -> trio.Event:
        return self._executor.advanced

    def operations(self) -> Mapping[str, Operation]:
        return self.proofs.operations()

    def status(self) -> dict[str, cbor.Value]:
        return {
            "collected_blobs": self.collect.collected_blobs,
            "collected_slivers": self.collect.collected_slivers,
            **self.healing.status(),
            **self.scrub.status(),
        }

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_seats)
            nursery.start_soon(self.healing.run, self._advanced)
            nursery.start_soon(self.proofs.run)
            nursery.start_soon(self.scrub.run)
            nursery.start_soon(self.collect.run, self._advanced)

    async def _follow_seats(self) -> None:
        """Know the addresses of the current committee's members; former ones are looked up."""
        while True:
            await self._members.seat(self._ledger().committee)
            epoch = self._ledger().epoch
            while self._ledger().epoch == epoch:
                await self._advanced().wait()
