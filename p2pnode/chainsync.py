"""Catches up with the chain from peers, trusting certificates only: blocks in order, or a snapshot where far behind.

A peer's claim of a height moves nothing: what it sends must carry a finality by the committee of its epoch.
"""

import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

import trio

from economics import cbor
from economics.block import HEADER_BYTES, Block, BlockHeader, Finality, verify_successor
from economics.crypto import Digest, Level, digest
from economics.errors import Reason, Rejected
from economics.fields import Fields
from economics.light import Boundary, Trusted, follow
from economics.transactions import SignedTransaction
from p2pnode.errors import TooSlow
from p2pnode.executor import Candidate, Executor
from p2pnode.members import REQUEST_FAULTS, Members, Refused
from p2pnode.network.frames import Incoming
from p2pnode.snapshots import CHUNK_BYTES_MAX

log = logging.getLogger("p2pnode.chainsync")

BLOCKS_AT_ONCE = 256
REPLY_BYTES_MAX = 32 << 20
REPLY_BLOCKS_MAX = 2 * BLOCKS_AT_ONCE
"""A reply ends with a block whose finality is known, which may be behind what was asked for."""
REQUEST_S = 60.0
"""One reply of the largest size over 4 Mbit/s; a member that drips must not keep this node from the others."""
HEAD_S = 5.0
"""The head, some KB: whoever takes longer has nothing to offer."""
PULL_S = 5.0
"""The bodies of one block; a view is over soon after."""
CHUNKS_MAX = 512
"""Of a snapshot: 512 MiB. Only the last chunk tells whether they are the state, and memory holds them until then."""
HEAD_BYTES_MAX = 1 << 20

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
        own: int | None,
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
        self._faults: Counter[int] = Counter()
        """How often each member was no help; they are asked in this order."""
        self.blocks = 0
        """Blocks taken from peers since the start."""

    async def catch_up(self, prefer: int | None = None) -> bool:
        """Ask members, one that is preferred first, until two have nothing newer; return whether the head moved."""
        async with self._turn:
            begin = self.executor.height
            others = [index for index in range(self.members.count) if index != self.own]
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
                    log.debug("member %d refused: %s", member, fault)
                    self._faults[member] += self.executor.height == before
                except REQUEST_FAULTS as fault:
                    log.debug("member %d is no help in catching up: %s", member, fault)
                    self._faults[member] += 1
                    continue
                level += self.executor.height == before
                if level >= 2:
                    break
            return self.executor.height > begin

    async def _follow(self, member: int) -> None:
        """Take from one member all that it has above the head."""
        reply, _ = await request_within(
            self.members, member, {"op": "head"}, size_max=HEAD_BYTES_MAX, deadline_s=HEAD_S
        )
        height, epoch = reply.integer("height", high=1 << 62), reply.integer("epoch", high=1 << 62)
        base = reply.integer("base", high=1 << 62)
        far = height - self.executor.height > self._snapshot_blocks and epoch > self.executor.ledger.epoch
        if far or base > self.executor.height + 1:
            await self._take_snapshot(member)
        while self.executor.height < height:
            await self._take_blocks(member)

    async def _take_blocks(self, member: int) -> None:
        first = self.executor.height + 1
        reply, payload = await request_within(
            self.members,
            member,
            {"count": BLOCKS_AT_ONCE, "first": first, "op": "blocks"},
            size_max=REPLY_BYTES_MAX,
            deadline_s=REQUEST_S,
        )
        count = reply.integer("count", high=REPLY_BLOCKS_MAX)
        candidates, finality = await trio.to_thread.run_sync(self._check_blocks, count, payload)
        self.blocks += len(candidates)
        await self._apply(candidates, finality)

    def _check_blocks(self, count: int, payload: bytes) -> tuple[list[Candidate], Finality]:
        """Return blocks that follow the head and are final; for a worker thread."""
        executor = self.executor
        genesis, ledger, root = executor.genesis, executor.ledger, executor.root_header
        if not count:
            raise Rejected(Reason.MALFORMED, "no blocks")
        fields = Fields(payload, "blocks")
        limit = genesis.parameters.block_transactions_max
        candidates = take_blocks(fields, count, chain_id=genesis.chain_id, transactions_max=limit)
        finality = Finality.decode(fields.take_sized(4), chain_id=genesis.chain_id)
        fields.end()
        parent = executor.head
        for item in candidates:
            header = item.block.header
            if executor.ends_epoch(parent) and parent != root:
                raise Rejected(Reason.WRONG_PARENT, "a block behind the end of its epoch")
            verify_successor(
                header,
                parent=parent,
                root=root,
                committee=ledger.committee,
                next_committee_hash=ledger.next_committee.hash,
                epoch_ms=genesis.parameters.epoch_ms,
            )
            parent = header
        finality.verify(parent, committee=ledger.committee)
        return candidates, finality

    # --- snapshots -----------------------------------------------------------------------------------------------

    async def _take_snapshot(self, member: int) -> None:
        """Follow the committees to the member's newest snapshot and put its state in place of ours."""
        executor = self.executor
        start = Trusted(executor.root_header, executor.ledger.committee)
        trail = await take_epochs(self.members, member, start)
        if not trail:
            return
        last, trusted = trail[-1]
        boundary = last.header
        if boundary.height <= executor.height:
            return
        reply, payload = await request_within(
            self.members,
            member,
            {"epoch": boundary.epoch, "op": "snapshot"},
            size_max=HEAD_BYTES_MAX,
            deadline_s=REQUEST_S,
        )
        chunks = reply.integer("chunks", high=CHUNKS_MAX)
        root = self._check_snapshot_root(payload, trusted)
        values: list[bytes] = []
        for index in range(chunks):
            request: dict[str, cbor.Value] = {"chunk": index, "epoch": boundary.epoch, "op": "chunk"}
            _, chunk = await request_within(
                self.members, member, request, size_max=CHUNK_BYTES_MAX, deadline_s=REQUEST_S
            )
            if not chunk:
                raise Rejected(Reason.MALFORMED, "a snapshot's chunk holds something")
            fields = Fields(chunk, "a snapshot's chunk")
            while fields.left:
                values.append(fields.take_sized(4))
        await executor.install([item for item, _ in trail], values, root=root)
        log.info("took the state at the end of epoch %d, height %d, from a snapshot", boundary.epoch, boundary.height)

    def _check_snapshot_root(self, payload: bytes, trusted: Trusted) -> Digest:
        """Return the state root after a boundary, as the first block of the next epoch has it."""
        chain_id = self.executor.genesis.chain_id
        header = BlockHeader.decode(payload[:HEADER_BYTES], chain_id=chain_id)
        finality = Finality.decode(payload[HEADER_BYTES:], chain_id=chain_id)
        finality.verify(header, committee=trusted.committee)
        if header.parent_hash != trusted.root.hash or header.executed_height != trusted.root.height:
            raise Rejected(Reason.WRONG_STATE, "not the first block after the boundary")
        return header.state_root


async def take_epochs(members: Members, member: int, trusted: Trusted) -> list[tuple[Boundary, Trusted]]:
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
    member: int,
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
    members: Members, own: int, hashes: Sequence[Digest], sender: int | None, *, bytes_max: int
) -> list[bytes]:
    """Fetch transactions by their hashes, from one member first; raises the last fault if nobody has them all.

    What does not hash to what was asked for counts as not sent: whoever is asked next may have it.
    """
    others = [index for index in range(members.count) if index != own]
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
