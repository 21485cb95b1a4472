"""A client's view of the chain: every value it returns is proven under a final header by a committee it has followed.

It trusts the genesis file, or a checkpoint, and no peer.
"""

import os
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio

from economics import cbor
from economics.blob import BlobId
from economics.block import HEADER_BYTES, BlockHeader, Finality
from economics.commitments import ReservationId
from economics.committee import Committee
from economics.crypto import NodeId, OwnerId
from economics.errors import Reason, Rejected
from economics.fields import Fields
from economics.light import Receipt, Trusted, verify_final
from economics.nodes import NodeEntry
from economics.slots import account_key, blob_key, entry_slot, node_slot, state_key
from economics.state import Account, BlobEntry, BlobSummary
from economics.tree import Proof, StateKey
from p2pnode.clients.chainview import Head, Seating
from p2pnode.clients.seating import addresses_of, prove_seating, with_addresses
from p2pnode.clients.trust import Trust
from p2pnode.consensus.chainsync import HEAD_BYTES_MAX, REPLY_BYTES_MAX, take_epochs
from p2pnode.errors import NetworkError, TooSlow
from p2pnode.members import REQUEST_FAULTS, Members, Refused, ask_many

ANSWER_S = 60.0
"""One answer of one member, however many requests it takes: a member that drips is passed over."""
OLD_MS_MIN = 60_000
OLD_HEARTBEATS = 6
"""A head older than a minute and so many of the chain's heartbeats is of a member that is behind or hides the rest."""
PAUSE_S = 0.2
"""Between two rounds of asking, should all members answer at once that they do not know yet."""
SEATS_S = 20.0
"""For a state of the epoch that has just begun: its first block comes soon after the boundary."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Proven:
    """Values of the state under one final header, with what proves it."""

    header: BlockHeader
    finality: Finality
    values: tuple[bytes | None, ...]
    proofs: tuple[Proof, ...]


class ChainReader:
    """One client's view of the chain of one network."""

    def __init__(self, *, members: Members, cache: Path, clock_ms: Callable[[], int]) -> None:
        self.members = members
        self.genesis = members.genesis
        self.clock_ms = clock_ms
        self._trust = Trust(self.genesis, cache, clock_ms)
        self._keeping = trio.Lock()
        self._order: list[NodeId] = []
        """Whom to ask, the best first."""
        self._rng = random.Random(os.urandom(16))
        self._turn_to_committee()
        members.committee = self._committee

    @property
    def origin(self) -> Trusted:
        """Where trust begins."""
        return self._trust.origin

    @property
    def trusted(self) -> Trusted:
        """The newest epoch that this client has followed."""
        return self._trust.newest

    # --- trust ---------------------------------------------------------------------------------------------------

    def trust(self, checkpoint: bytes) -> Trusted:
        """Begin from a checkpoint that the user vouches for, and keep it; raises `Rejected` as `read_checkpoint`."""
        self._trust.begin(checkpoint)
        self._turn_to_committee()
        return self.trusted

    @property
    def _committee(self) -> Committee:
        """The newest committee that this client has followed to, with what is known of where its members are."""
        seating = self._trust.seating
        known = addresses_of(self.members.committee, *(() if seating is None else seating.committees))
        return with_addresses(self.trusted.committee, known)

    def _turn_to_committee(self) -> None:
        """Ask the newest members first; those of genesis too, as any node that answers leads to the newest."""
        newest = [member.node for member in self.trusted.committee.members]
        founders = [member.node for member in self.genesis.members]
        for nodes in (newest, founders):
            self._rng.shuffle(nodes)
        kept = [node for node in self._order if node in newest]  # in the order that experience has put them
        self._order = list(dict.fromkeys((*kept, *newest, *founders)))

    async def _follow(self, member: NodeId) -> Trusted:
        """Follow the committees as far as a member leads, and return the epoch that its next answer is to be of."""
        begin = self.trusted
        self._trust.verify_age()
        trail = await take_epochs(self.members, member, begin)
        if not trail:
            return begin
        newest = trail[-1][1]
        async with self._keeping:
            if newest.epoch > self.trusted.epoch:  # another request may have followed further meanwhile
                self._trust.newest, self._trust.seating = newest, None
                self._turn_to_committee()
                await self.members.seat(self._committee)
                await trio.to_thread.run_sync(self._trust.keep_newest)
        return newest

    async def _from_anyone(self, ask: Callable[[NodeId], Awaitable[T]]) -> T:
        """Return the first answer that holds; members that lie, fail or do not know are passed over."""
        last: Exception = NetworkError("this network has no members")
        for member in list(self._order):
            try:
                with trio.move_on_after(ANSWER_S):
                    return await ask(member)
                raise TooSlow(f"no whole answer within {ANSWER_S:.0f} s")
            except REQUEST_FAULTS as fault:
                self.members.blame(member, fault)
                last = fault
                self._put_last(member)
        if isinstance(last, Refused):
            raise last
        raise NetworkError(f"no member gave an answer that holds, the last of them: {last}") from last

    def _put_last(self, member: NodeId) -> None:
        """Ask a node that failed after all others from here on."""
        if member in self._order:
            self._order.remove(member)
            self._order.append(member)

    @property
    def _f(self) -> int:
        """The shards of members that may lie."""
        return self.trusted.committee.n - self.trusted.committee.quorum

    async def _from_many(
        self, ask: Callable[[NodeId], Awaitable[T]], *, shards: int, patience_s: float
    ) -> tuple[list[tuple[T, int]], Exception | None]:
        """Return what members with so many shards, or fewer, answer, each with its shards, and the last failure."""
        members = self.members.seated(self._committee)
        committee = members.committee
        order = [index for node in self._order if (index := committee.index_of(node)) is not None]
        answers, faults = await ask_many(
            members, order, lambda index: ask(members.node_of(index)), shards=shards, patience_s=patience_s
        )
        for index in faults:
            self._put_last(members.node_of(index))
        told = [(answer, committee.members[index].shards) for index, answer in answers.items()]
        return told, next(reversed(faults.values()), None)

    # --- proven --------------------------------------------------------------------------------------------------

    async def _newest(self, ask: Callable[[NodeId, bool], Awaitable[T]]) -> T:
        """Return the first answer that holds and is not old; only if there is none, an old one: the chain may stand."""
        try:
            return await self._from_anyone(lambda member: ask(member, True))
        except (NetworkError, Refused):
            return await self._from_anyone(lambda member: ask(member, False))

    def _verify_age(self, header: BlockHeader) -> None:
        """Raise `TooSlow` for a header that is too old to be the newest, by this client's clock."""
        age_ms = self.clock_ms() - header.time_ms
        if age_ms > max(OLD_MS_MIN, OLD_HEARTBEATS * self.genesis.parameters.heartbeat_ms):
            raise TooSlow(f"its newest block is {age_ms // 1000} s old")

    async def head(self) -> Head:
        """Return a member's head: final, and not old if any member has a newer one."""

        async def ask(member: NodeId, fresh: bool) -> Head:
            trusted = await self._follow(member)
            reply, payload = await self.members.request(member, {"op": "head"}, size_max=HEAD_BYTES_MAX)
            if not reply.integer("height", high=1 << 62):
                header = self.origin.root
            else:
                header = self._final_header(Fields(payload, "a head"), trusted, sized=False)[0]
            if fresh:
                self._verify_age(header)
            return Head(header.epoch, header.height, header.hash, header.time_ms)

        return await self._newest(ask)

    def _final_header(self, fields: Fields, trusted: Trusted, *, sized: bool) -> tuple[BlockHeader, Finality]:
        """Return a header of the trusted epoch, or its root, and its finality, which is not looked at for the root."""
        header = BlockHeader.decode(fields.take(HEADER_BYTES), chain_id=self.genesis.chain_id)
        raw = fields.take_sized(4) if sized else fields.take(fields.left)
        finality = Finality.decode(raw, chain_id=self.genesis.chain_id)
        if header != trusted.root:  # a member's head is the boundary until the next epoch's first block is final
            verify_final(trusted, header=header, finality=finality)
        return header, finality

    async def prove(self, keys: Sequence[StateKey]) -> Proven:
        """Return the values of these keys, each proven; None where the state has none."""

        async def ask(member: NodeId, fresh: bool) -> Proven:
            trusted = await self._follow(member)
            _, payload = await self.members.request(
                member, {"op": "state"}, size_max=REPLY_BYTES_MAX, payload=b"".join(keys)
            )
            fields = Fields(payload, "a proven state")
            header, finality = self._final_header(fields, trusted, sized=True)
            if fresh:
                self._verify_age(header)
            values: list[bytes | None] = []
            proofs: list[Proof] = []
            for key in keys:
                value = fields.take_sized(4) or None
                proof = Proof.decode(fields.take_sized(4))
                proof.verify(header.state_root, key, value)
                values.append(value)
                proofs.append(proof)
            fields.end()
            return Proven(header, finality, tuple(values), tuple(proofs))

        return await self._newest(ask)

    async def account(self, owner: OwnerId) -> Account:
        """Return an account, proven; an empty one where there is none."""
        value = (await self.prove([account_key(owner)])).values[0]
        return Account(owner, 0, 0) if value is None else Account.decode(value)

    async def blob(self, blob_id: BlobId) -> BlobSummary | None:
        """Return what the chain says of a blob, proven; None if the network does not owe it."""
        value = (await self.prove([blob_key(blob_id)])).values[0]
        return None if value is None else BlobSummary.decode(value)

    async def entry(self, blob_id: BlobId, reservation: ReservationId) -> BlobEntry | None:
        """Return the claim on a blob that a reservation paid for, proven; None if there is none."""
        value = (await self.prove([state_key(entry_slot(blob_id, reservation))])).values[0]
        return None if value is None else BlobEntry.decode(value)

    async def nodes(self, nodes: Sequence[NodeId]) -> list[NodeEntry | None]:
        """Return what the chain says of nodes, proven; None for one that nobody registered."""
        values = (await self.prove([state_key(node_slot(node)) for node in nodes])).values
        return [None if value is None else NodeEntry.decode(value) for value in values]

    async def seats(self, *, fresh: bool = False) -> Seating:
        """Return who holds what. Unless it is to be `fresh`, what is known may serve for as long as it must be true by
        this client's clock; raises `TooSlow` if the chain stands still where an epoch begins."""
        known = self._trust.known_seating()
        if known is not None and not fresh:
            return known
        with trio.move_on_after(SEATS_S):
            while True:
                trusted = self.trusted
                found = await self._find_seating(trusted)
                if found is not None and trusted is self.trusted:
                    return await self._keep_seating(found)
                if trusted is self.trusted:  # a boundary is the head: the next block shows the epoch that it began
                    await trio.sleep(PAUSE_S)
        raise TooSlow(f"no member showed the state of the current epoch within {SEATS_S:.0f} s")

    async def _find_seating(self, trusted: Trusted) -> Seating | None:
        """Return who holds what, None where a block is still to come: an epoch's first, or a network's."""
        try:
            return await prove_seating(self.values, trusted)
        except Refused as refusal:
            if refusal.reason is Reason.NOT_FOUND:
                return None
            raise

    async def values(self, keys: Sequence[StateKey]) -> tuple[bytes | None, ...]:
        return (await self.prove(keys)).values

    async def _keep_seating(self, seating: Seating) -> Seating:
        self._trust.seating = seating
        await self.members.seat(seating.current)
        async with self._keeping:
            await trio.to_thread.run_sync(self._trust.keep_seating, seating)
        return seating

    async def receipt(self, blob_id: BlobId) -> Receipt:
        """Return a receipt that proves offline, from where trust begins, that the network owes a blob.

        Raises `Rejected(NOT_FOUND)` if it does not.
        """
        proven = await self.prove([blob_key(blob_id)])
        if proven.values[0] is None:
            raise Rejected(Reason.NOT_FOUND, "the chain has no such blob")
        trail = await self._from_anyone(lambda member: take_epochs(self.members, member, self.origin))
        epochs = tuple(boundary for boundary, _ in trail if boundary.header.epoch < proven.header.epoch)
        checked = (boundary.finality for boundary, _ in trail if boundary.header == proven.header)
        finality = next(checked, proven.finality)
        return Receipt(blob_id, epochs, proven.header, finality, proven.proofs[0], proven.values[0])

    async def blocks(self, *, limit: int) -> list[BlockHeader]:
        """Return the newest headers, newest first: linked to each other, the first of them proven final."""

        async def ask(member: NodeId) -> list[BlockHeader]:
            head = await self.head()
            request: dict[str, cbor.Value] = {"count": limit, "height": head.height, "op": "headers"}
            _, payload = await self.members.request(member, request, size_max=REPLY_BYTES_MAX)
            fields = Fields(payload, "headers")
            headers: list[BlockHeader] = []
            expected = head.hash
            while fields.left:
                header = BlockHeader.take(fields, chain_id=self.genesis.chain_id)
                if header.hash != expected:
                    raise Rejected(Reason.WRONG_PARENT, "headers that do not follow from each other")
                headers.append(header)
                expected = header.parent_hash
            return headers

        return await self._from_anyone(ask)
