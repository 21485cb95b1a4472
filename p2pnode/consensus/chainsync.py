"""Catches up with the chain from peers, trusting certificates only: blocks in order, or a snapshot where far behind.

A peer's claim of a height moves nothing: what it sends must carry a finality by the committee of its epoch.
"""

import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import trio

from economics import cbor
from economics.block import HEADER_BYTES, Block, BlockHeader, Finality, is_boundary, verify_successor
from economics.crypto import Digest, Level, NodeId, digest
from economics.errors import Reason, Rejected
from economics.fields import Fields, split_sized
from economics.ledger import Ledger
from economics.light import Boundary, Trusted, follow
from economics.transactions import SignedTransaction
from p2pnode.consensus.executor import Candidate, Executor
from p2pnode.consensus.snapshots import CHUNK_BYTES_MAX
from p2pnode.errors import TooSlow
from p2pnode.members import REQUEST_FAULTS, Members, Refused, Who, nickname
from p2pnode.network.frames import Incoming

log = logging.getLogger("p2pnode.consensus.chainsync")

BLOCKS_AT_ONCE = 256
REPLY_BYTES_MAX = 32 << 20
REPLY_BLOCKS_MAX = 2 * BLOCKS_AT_ONCE
"""A reply ends with a block whose finality is known, which may be behind what was asked for."""
REQUEST_S = 60.0
"""One reply of the largest size over 4 Mbit/s; a member that drips must not keep this node from the others."""
BLOCKS_PER_S = 8
"""What is slower than the chain never reaches its head."""
BYTES_PER_S = 262_144
"""Large blocks or the chunks of a snapshot over 2 Mbit/s: 512 MiB take 34 minutes."""
HEAD_S = 5.0
"""The head, some KB: whoever takes longer has nothing to offer."""
TRAIL_S = 2 * REQUEST_S
"""All ends of epochs that this node has missed, some hundred bytes each and 17 KB at most."""
PULL_S = 5.0
"""The bodies of one block; a view is over soon after."""
CHUNKS_MAX = 512
"""Of a snapshot: 512 MiB. Only the last chunk tells whether they are the state, and memory holds them until then."""
HEAD_BYTES_MAX = 1 << 20


class Patience:
    """How long one member may still keep this node waiting: spent while it is asked, earned by what it brings.

    No more than `REQUEST_S` can be saved up: then whoever drips after a good start is left as soon.
    """

    def __init__(self) -> None:
        self.left_s = REQUEST_S

    def spend(self, seconds: float) -> None:
        self.left_s -= seconds

    def earn(self, *, blocks: int = 0, size: int) -> None:
        self.left_s = min(REQUEST_S, self.left_s + max(blocks / BLOCKS_PER_S, size / BYTES_PER_S))


Apply = Callable[[Sequence[Candidate], Finality], Awaitable[None]]


def take_blocks(fields: Fields, count: int, *, chain_id: Digest, transactions_max: int) -> list[Candidate]:
    """Return `count` blocks with their bodies, each body the one that its block names; raises `Rejected`."""
    found: list[Candidate] = []
    for _ in range(count):
        block = Block.decode(fields.take_sized(4), chain_id=chain_id, transactions_max=transactions_max)
        bodies: list[SignedTransaction] = []
        for tx_hash in block.transactions:
            signed = SignedTransaction.decode(fields.take_sized(4), chain_id=chain_id)
            if signed.hash != tx_hash:
                raise Rejected(Reason.HASH_MISMATCH, "a transaction that its block does not name")
            bodies.append(signed)
        found.append(Candidate(block, tuple(bodies)))
    return found


class ChainSync:
    """One node's way to the head of the chain."""

    def __init__(
        self,
        *,
        executor: Executor,
        members: Members,
        own: NodeId,
        apply: Apply,
        rng: random.Random,
        snapshot_blocks: int,
    ) -> None:
        self.executor = executor
        self.members = members
        self.own = own
        self._apply = apply
        self._rng = rng
        self._snapshot_blocks = snapshot_blocks
        self._turn = trio.Lock()
        self._faults: Counter[NodeId] = Counter()
        """How often each node was no help; they are asked in this order."""
        self.blocks = 0
        """Blocks taken from peers since the start."""

    async def catch_up(self, prefer: NodeId | None = None) -> bool:
        """Ask members, one that is preferred first, until two have nothing newer; return whether the head moved."""
        async with self._turn:
            begin = self.executor.height
            others = self._others()
            self._rng.shuffle(others)
            others.sort(key=lambda member: self._faults[member])
            if prefer in others and not self._faults[prefer]:
                others.remove(prefer)
                others.insert(0, prefer)
            level = 0
            for member in others:
                before = self.executor.height
                try:
                    await self._follow(member)
                    self._faults.pop(member, None)
                except Refused as fault:
                    log.debug("node %s refused: %s", nickname(member), fault)
                    self._faults[member] += self.executor.height == before
                except REQUEST_FAULTS as fault:
                    log.debug("node %s is no help in catching up: %s", nickname(member), fault)
                    self._faults[member] += 1
                    continue
                level += self.executor.height == before
                if level >= 2:
                    break
            return self.executor.height > begin

    def _others(self) -> list[NodeId]:
        """Return who may know more: the newest committees known here, and the first, should all of those have left."""
        ledger, genesis = self.executor.ledger, self.executor.genesis
        known = [ledger.committee, ledger.next_committee, genesis.committee]
        nodes = (member.node for committee in known if committee is not None for member in committee.members)
        return [node for node in dict.fromkeys(nodes) if node != self.own]

    async def _follow(self, member: NodeId) -> None:
        """Take from one node all that it has above the head."""
        reply, _ = await request_within(
            self.members, member, {"op": "head"}, size_max=HEAD_BYTES_MAX, deadline_s=HEAD_S
        )
        height, epoch = reply.integer("height", high=1 << 62), reply.integer("epoch", high=1 << 62)
        base = reply.integer("base", high=1 << 62)
        if height - self.executor.height > self._snapshot_blocks and epoch > self.executor.ledger.epoch:
            await self._take_snapshot(member, ahead_min=self._snapshot_blocks)
        patience = Patience()
        while (begin := self.executor.height) < height:
            try:
                await self._take_blocks(member, patience)
            except Refused as fault:
                if fault.reason is not Reason.NOT_FOUND or base <= begin + 1:
                    raise
                if not await self._take_snapshot(member):
                    raise

    async def _ask(
        self, member: NodeId, header: Mapping[str, cbor.Value], patience: Patience, *, size_max: int
    ) -> tuple[Incoming, bytes]:
        """Ask once, for as long as there is patience with this member."""
        begin = trio.current_time()
        try:
            return await request_within(
                self.members, member, header, size_max=size_max, deadline_s=max(patience.left_s, 0)
            )
        finally:
            patience.spend(trio.current_time() - begin)

    async def _take_blocks(self, member: NodeId, patience: Patience) -> None:
        first = self.executor.height + 1
        request: dict[str, cbor.Value] = {"count": BLOCKS_AT_ONCE, "first": first, "op": "blocks"}
        reply, payload = await self._ask(member, request, patience, size_max=REPLY_BYTES_MAX)
        count = reply.integer("count", high=REPLY_BLOCKS_MAX)
        executor = self.executor
        check = partial(self._check_blocks, count, payload, first, executor.ledger, executor.root_header, executor.head)
        candidates, finality = await trio.to_thread.run_sync(check)
        bodies = sum(len(signed.raw) for item in candidates for signed in item.transactions)
        patience.earn(blocks=len(candidates), size=bodies)
        self.blocks += len(candidates)
        await self._apply(candidates, finality)

    def _check_blocks(
        self, count: int, payload: bytes, first: int, ledger: Ledger, root: BlockHeader, head: BlockHeader
    ) -> tuple[list[Candidate], Finality]:
        """Return blocks from `first` on that follow this head and are final, without those that it has passed.

        For a worker thread: the executor may move on meanwhile, so what it has is handed over.
        """
        genesis = self.executor.genesis
        if not count:
            raise Rejected(Reason.MALFORMED, "no blocks")
        fields = Fields(payload, "blocks")
        limit = genesis.parameters.block_transactions_max
        candidates = take_blocks(fields, count, chain_id=genesis.chain_id, transactions_max=limit)
        finality = Finality.decode(fields.take_sized(4), chain_id=genesis.chain_id)
        fields.end()
        candidates = candidates[head.height + 1 - first :]
        if not candidates:
            return [], finality
        parent = head
        for item in candidates:
            header = item.block.header
            if parent != root and is_boundary(parent, root=root, epoch_ms=genesis.parameters.epoch_ms):
                raise Rejected(Reason.WRONG_PARENT, "a block behind the end of its epoch")
            verify_successor(
                header,
                parent=parent,
                root=root,
                committee=ledger.committee,
                epoch_ms=genesis.parameters.epoch_ms,
            )
            parent = header
        finality.verify(parent, committee=ledger.committee)
        return candidates, finality

    # --- snapshots -----------------------------------------------------------------------------------------------

    async def _take_snapshot(self, member: NodeId, *, ahead_min: int = 0) -> bool:
        """Follow the committees to the member's newest snapshot and put its state in place of ours.

        Returns whether it was taken: not unless its height, which is proven first, is more than `ahead_min` above ours.
        """
        executor = self.executor
        trail = await self._take_trail(member)
        if not trail or trail[-1][0].header.height - executor.height <= ahead_min:
            return False
        last, trusted = trail[-1]
        boundary = last.header
        patience = Patience()
        about: dict[str, cbor.Value] = {"epoch": boundary.epoch, "op": "snapshot"}
        reply, payload = await self._ask(member, about, patience, size_max=HEAD_BYTES_MAX)
        chunks = reply.integer("chunks", high=CHUNKS_MAX)
        root = self._check_snapshot_root(payload, trusted)
        values: list[bytes] = []
        for index in range(chunks):
            request: dict[str, cbor.Value] = {"chunk": index, "epoch": boundary.epoch, "op": "chunk"}
            _, chunk = await self._ask(member, request, patience, size_max=CHUNK_BYTES_MAX)
            if boundary.height <= executor.height:
                return False
            if not chunk:
                raise Rejected(Reason.MALFORMED, "a snapshot's chunk holds something")
            patience.earn(size=len(chunk))
            values += split_sized(chunk, "a snapshot's chunk")
        if not await executor.install([item for item, _ in trail], values, root=root):
            return False
        log.info("took the state at the end of epoch %d, height %d, from a snapshot", boundary.epoch, boundary.height)
        return True

    async def _take_trail(self, member: NodeId) -> list[tuple[Boundary, Trusted]]:
        """Return the proven boundaries from the current epoch on; raises `TooSlow` where they take too long."""
        start = Trusted(self.executor.root_header, self.executor.ledger.committee)
        with trio.move_on_after(TRAIL_S):
            return await take_epochs(self.members, member, start)
        raise TooSlow(f"not all ends of epochs within {TRAIL_S:.0f} s")

    def _check_snapshot_root(self, payload: bytes, trusted: Trusted) -> Digest:
        """Return the state root after a boundary, as the first block of the next epoch has it."""
        chain_id = self.executor.genesis.chain_id
        header = BlockHeader.decode(payload[:HEADER_BYTES], chain_id=chain_id)
        finality = Finality.decode(payload[HEADER_BYTES:], chain_id=chain_id)
        finality.verify(header, committee=trusted.committee)
        if header.parent_hash != trusted.root.hash or header.executed_height != trusted.root.height:
            raise Rejected(Reason.WRONG_STATE, "not the first block after the boundary")
        return header.state_root


async def take_epochs(members: Members, member: Who, trusted: Trusted) -> list[tuple[Boundary, Trusted]]:
    """Return the boundaries that a member knows from a trusted epoch on, each checked, with what it makes trusted."""
    genesis = members.genesis
    trail: list[tuple[Boundary, Trusted]] = []
    while True:
        request: dict[str, cbor.Value] = {"first": trusted.epoch, "op": "epochs"}
        _, payload = await request_within(members, member, request, size_max=REPLY_BYTES_MAX, deadline_s=REQUEST_S)
        if not payload:
            return trail
        fields = Fields(payload, "epochs")
        while fields.left:
            header = BlockHeader.take(fields, chain_id=genesis.chain_id)
            finality = Finality.decode(fields.take_sized(4), chain_id=genesis.chain_id)
            boundary = Boundary(header, finality, fields.take_sized(4))
            trusted = follow(trusted, boundary, parameters=genesis.parameters)
            trail.append((boundary, trusted))
            await trio.lowlevel.checkpoint()


async def request_within(
    members: Members,
    member: Who,
    header: Mapping[str, cbor.Value],
    *,
    size_max: int,
    payload: bytes = b"",
    deadline_s: float,
) -> tuple[Incoming, bytes]:
    """Ask once; raises what `REQUEST_FAULTS` lists, `TooSlow` after the deadline."""
    with trio.move_on_after(deadline_s):
        return await members.request(member, header, size_max=size_max, payload=payload)
    raise TooSlow(f"no whole reply within {deadline_s:.0f} s")


async def pull_bodies(
    members: Members, own: NodeId, hashes: Sequence[Digest], sender: int | None, *, bytes_max: int
) -> list[bytes]:
    """Fetch transactions by their hashes, from one member first; raises the last fault if nobody has them all.

    What does not hash to what was asked for counts as not sent: whoever is asked next may have it.
    """
    others = [index for index in range(members.count) if members.node_of(index) != own]
    if sender in others:
        others.remove(sender)
        others.insert(0, sender)
    wanted = dict.fromkeys(hashes, b"")
    last: Exception = Rejected(Reason.NOT_FOUND, "nobody has the transactions of a block")
    for member in others:
        missing = [tx_hash for tx_hash, raw in wanted.items() if not raw]
        if not missing:
            break
        try:
            _, payload = await request_within(
                members,
                member,
                {"op": "bodies"},
                size_max=bytes_max + 4 * len(missing),
                payload=b"".join(missing),
                deadline_s=PULL_S,
            )
            fields = Fields(payload, "bodies")
            for tx_hash in missing:
                raw = fields.take_sized(4)
                if digest(Level.TRANSACTION, raw) == tx_hash:
                    wanted[tx_hash] = raw
        except REQUEST_FAULTS as fault:
            last = fault
    if not all(wanted.values()):
        raise last if isinstance(last, Rejected) else Rejected(Reason.NOT_FOUND, str(last))
    return [wanted[tx_hash] for tx_hash in hashes]
