"""A node's side of the chain protocol (FORMATS.md 15): takes transactions, serves blocks, proofs and snapshots.

Whatever is served can be checked by whoever asks; nothing here changes the chain.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import trio

from economics import cbor
from economics.block import Block, BlockHeader, Finality
from economics.crypto import DIGEST_BYTES, KEY_BYTES, Digest, NodeId, OwnerId
from economics.errors import Reason, Rejected
from economics.fields import sized
from economics.slots import state_key
from economics.transactions import TRANSACTION_BYTES_MAX, SignedTransaction
from economics.tree import StateKey, Tree
from p2pnode.consensus.chain import StoredTransaction
from p2pnode.consensus.executor import STATES_KEPT, Executor
from p2pnode.network.frames import Incoming, receive_message_or_end, send_message
from p2pnode.network.stream import Patience, Stream

log = logging.getLogger("p2pnode.consensus.chainserver")

BLOCKS_MAX = 256
BLOCKS_BYTES_MAX = 8 << 20
"""Of one reply: what a node that was away takes in at once."""
BODIES_MAX = 10_000
KEYS_MAX = 64
EPOCHS_MAX = 256
ROWS_MAX = 256
WAIT_MS_MAX = 20_000
WAITING_MAX = 512
"""Who wait for an outcome; each looks again after every block. More are answered at once."""
OWNED_MAX = 1_024
LINKS_MAX = 255
"""Of a finality: their number is one byte."""
READERS = 4
"""Threads that read for members, and as many for all others: neither keeps blocks and votes from being written."""
LARGE_BYTES = 65_536
SENDING_BYTES_MAX = 64 << 20
"""Large replies in memory: so much to all who are no members, as much to each member."""
LARGE_PATIENCE = Patience(floor_bytes_per_s=131_072)
"""Whoever takes a large reply more slowly keeps others from theirs."""
PAYLOAD_BYTES_MAX = BODIES_MAX * DIGEST_BYTES

Reply = tuple[Mapping[str, cbor.Value], tuple[bytes, ...]]


class ChainServer:
    """Answers the chain protocol from what has been executed here."""

    def __init__(
        self,
        *,
        executor: Executor,
        submit: Callable[[SignedTransaction], Awaitable[None]],
        waiting: Callable[[Digest], SignedTransaction | None],
        next_nonce: Callable[[OwnerId], int],
    ) -> None:
        self.executor = executor
        self.store = executor.store
        self._submit = submit
        self._waiting = waiting
        self._next_nonce = next_nonce
        self._waiters = 0
        self._sending: Counter[NodeId | None] = Counter()
        """Bytes of large replies under way to each member, and under None to all others."""
        self._member_readers = trio.CapacityLimiter(READERS)
        self._readers = trio.CapacityLimiter(READERS)

    async def handle(self, stream: Stream) -> None:
        """Answer one stream until the peer ends it."""
        is_member = self.executor.ledger.committee.index_of(stream.peer) is not None
        try:
            while (message := await receive_message_or_end(stream)) is not None:
                if message.size > PAYLOAD_BYTES_MAX:
                    raise Rejected(Reason.TOO_LARGE, f"a payload of {message.size} bytes")
                payload = await stream.receive_exactly(message.size)
                try:
                    header, parts = await self._dispatch(message, payload, is_member)
                    with self._room(stream.peer if is_member else None, sum(map(len, parts))) as is_large:
                        stream.patience = LARGE_PATIENCE if is_large else Patience()
                        await send_message(stream, {"ok": True, **header}, *parts)
                        stream.patience = Patience()
                except Rejected as fault:
                    await refuse(stream, fault)
        except Rejected as fault:  # where the next message would begin is not known
            await refuse(stream, fault)
        await stream.close()

    @contextmanager
    def _room(self, name: NodeId | None, size: int) -> Iterator[bool]:
        """Count a reply while it is sent, if it is large; a single one always has room."""
        if size <= LARGE_BYTES:
            yield False
            return
        if self._sending[name] and self._sending[name] + size > SENDING_BYTES_MAX:
            raise Rejected(Reason.OVER_BUDGET, "too many large replies at once")
        self._sending[name] += size
        try:
            yield True
        finally:
            self._sending[name] -= size
            if not self._sending[name]:
                del self._sending[name]

    async def _dispatch(self, message: Incoming, payload: bytes, is_member: bool) -> Reply:
        """Return the reply to a request. What reads the database or walks the state does so in a thread."""
        read = partial(trio.to_thread.run_sync, limiter=self._member_readers if is_member else self._readers)
        match message.header.get("op"):
            case "head":
                return self._head()
            case "submit":
                return await self._take(payload)
            case "nonce":
                return {"nonce": self._next_nonce(OwnerId(message.raw("owner", KEY_BYTES)))}, ()
            case "outcome":
                return await self._outcome(message, read)
            case "bodies":
                return await read(self._bodies, payload)
            case "blocks":
                return await read(self._blocks, message)
            case "headers":
                return await read(self._headers, message)
            case "epochs":
                return await read(self._epochs, message)
            case "state":
                return await read(self._state, payload)
            case "owned":
                return await read(self._owned, message)
            case "history":
                return await read(self._history, message)
            case "snapshot":
                return await read(self._snapshot, message)
            case "chunk":
                return await read(self._chunk, message)
            case _:
                raise Rejected(Reason.UNKNOWN_OPERATION, "no such operation")

    # --- transactions --------------------------------------------------------------------------------------------

    async def _take(self, payload: bytes) -> Reply:
        if len(payload) > TRANSACTION_BYTES_MAX:
            raise Rejected(Reason.TOO_LARGE, f"a transaction has at most {TRANSACTION_BYTES_MAX} bytes")
        signed = SignedTransaction.decode(payload, chain_id=self.executor.genesis.chain_id)
        await self._submit(signed)
        return {"hash": signed.hash}, ()

    async def _outcome(self, message: Incoming, read: Callable[..., Awaitable[Any]]) -> Reply:
        """Return what became of a transaction, waiting a while for it to become final."""
        tx_hash = Digest(message.raw("hash", DIGEST_BYTES))
        wait_ms = message.integer("wait_ms", high=WAIT_MS_MAX)
        deadline = trio.current_time() + wait_ms / 1000
        while True:
            advanced = self.executor.advanced
            row: StoredTransaction | None = await read(self.store.transaction, tx_hash)
            if row is not None:
                return {
                    "code": row.code,
                    "fee_frost": row.fee_frost,
                    "height": row.height,
                    "index": row.index,
                }, (row.raw,)
            if self._waiters >= WAITING_MAX or trio.current_time() >= deadline:
                raise Rejected(Reason.NOT_FOUND, "not in a final block")
            self._waiters += 1
            try:
                with trio.move_on_at(deadline):
                    await advanced.wait()
            finally:
                self._waiters -= 1

    def _bodies(self, payload: bytes) -> Reply:
        if len(payload) % DIGEST_BYTES:
            raise Rejected(Reason.MALFORMED, "the payload is hashes of 32 bytes")
        parts: list[bytes] = []
        size = 0
        for at in range(0, len(payload), DIGEST_BYTES):
            raw = b"" if size > BLOCKS_BYTES_MAX else self._body(Digest(payload[at : at + DIGEST_BYTES]))
            size += len(raw)
            parts.append(sized(raw))
        return {}, tuple(parts)

    def _body(self, tx_hash: Digest) -> bytes:
        signed = self._waiting(tx_hash)
        if signed is not None:
            return signed.raw
        row = self.store.transaction(tx_hash)
        return b"" if row is None else row.raw

    def _history(self, message: Incoming) -> Reply:
        owner = message.raw("owner", KEY_BYTES)
        limit = message.integer("limit", high=ROWS_MAX)
        before = message.integer("height", high=1 << 62), message.integer("index", high=1 << 32)
        rows: list[cbor.Value] = []
        parts: list[bytes] = []
        for row in self.store.history(owner, before=before, limit=limit):
            rows.append([row.height, row.index, row.code, row.fee_frost])
            parts.append(sized(row.raw))
        return {"rows": rows}, tuple(parts)

    # --- blocks --------------------------------------------------------------------------------------------------

    def _head(self) -> Reply:
        finality = self.executor.finality
        fields: dict[str, cbor.Value] = {"base": self.store.base(), "epoch": self.executor.ledger.epoch}
        if finality is None:
            return {**fields, "height": 0}, ()
        return {**fields, "height": self.executor.height}, (self.executor.head.encode(), finality.encode())

    def _blocks(self, message: Incoming) -> Reply:
        """Return consecutive blocks of one epoch, and what proves the last of them final."""
        first = message.integer("first", high=1 << 62)
        count = message.integer("count", high=BLOCKS_MAX)
        last = self._last_of(first, count)
        finality = self._proof_of(last)
        parts: list[bytes] = []
        for height in range(first, last + 1):
            block = self._block(height)
            bodies = (sized(raw) for raw in self.store.bodies(height))
            parts += (sized(block.encode()), *bodies)
        return {"count": last - first + 1}, (*parts, sized(finality.encode()))

    def _certified_from(self, height: int) -> tuple[int, Finality]:
        found = self.store.certified_from(height)
        if found is None:
            raise Rejected(Reason.NOT_FOUND, "a snapshot has taken the place of these blocks")
        return found

    def _proof_of(self, height: int) -> Finality:
        """Return what finalized a block, or the next above that has a finality, with the headers in between."""
        certified, finality = self._certified_from(height)
        headers = tuple(self._block(item).header for item in range(height + 1, certified + 1))
        return Finality(finality.certificate, (*headers, *finality.links))

    def _block(self, height: int) -> Block:
        """Return a block; while this is read a snapshot may take the place of what was held."""
        block = self.store.block(height)
        if block is None:
            raise Rejected(Reason.NOT_FOUND, "no such block here")
        return block

    def _last_of(self, first: int, count: int) -> int:
        """Return the last height of a reply: the highest with a finality within its bounds.

        Where many blocks became final together there may be none: then the highest that links to the next one above.
        """
        if not self.store.base() <= first <= self.store.head():
            raise Rejected(Reason.NOT_FOUND, "no such block here")
        found, within, size = None, first, 0
        epoch = self._block(first).header.epoch
        for height in range(first, min(first + max(count, 1) - 1, self.store.head()) + 1):
            size += sum(map(len, self.store.bodies(height)))
            if self._block(height).header.epoch != epoch or (height > first and size > BLOCKS_BYTES_MAX):
                break
            within = height
            if self.store.finality(height) is not None:
                found = height
        if found is not None:
            return found
        certified, finality = self._certified_from(within)
        return max(within, certified + len(finality.links) - LINKS_MAX)

    def _headers(self, message: Incoming) -> Reply:
        """Return headers, newest first, from a height downwards."""
        height = min(message.integer("height", high=1 << 62), self.store.head())
        count = message.integer("count", high=ROWS_MAX)
        heights = range(height, max(height - count, self.store.base() - 1, 0), -1)
        headers = (self.store.header(item) for item in heights)
        return {}, tuple(header.encode() for header in headers if header is not None)

    def _epochs(self, message: Incoming) -> Reply:
        """Return the boundaries from an epoch on, each with its finality and the next committee where that differs."""
        first = message.integer("first", high=1 << 62)
        parts: list[bytes] = []
        for epoch in range(first, min(first + EPOCHS_MAX, self.executor.ledger.epoch)):
            boundary = self.store.boundary_of(epoch)
            if boundary is None:
                raise Rejected(Reason.NOT_FOUND, "this node holds no boundary of that epoch")
            parts += (boundary.header.encode(), sized(boundary.finality.encode()), sized(boundary.members))
        return {}, tuple(parts)

    # --- state ---------------------------------------------------------------------------------------------------

    def _provable(self) -> tuple[BlockHeader, Finality, Tree]:
        """Return the newest final header whose state is still here."""
        head = self.executor.height
        for height in range(head, max(head - STATES_KEPT, self.store.base() - 1, 0), -1):
            header, finality = self.executor.header(height), self.store.finality(height)
            if header is None or finality is None:
                continue
            tree = self.executor.tree(header.executed_height)
            if tree is not None:
                return header, finality, tree
        raise Rejected(Reason.NOT_FOUND, "no state that a final header vouches for yet: ask again after the next block")

    def _state(self, payload: bytes) -> Reply:
        """Return values with their proofs under one final header."""
        if not payload or len(payload) % DIGEST_BYTES or len(payload) > KEYS_MAX * DIGEST_BYTES:
            raise Rejected(Reason.MALFORMED, f"the payload is 1 to {KEYS_MAX} keys of 32 bytes")
        header, finality, tree = self._provable()
        parts = [header.encode(), sized(finality.encode())]
        for at in range(0, len(payload), DIGEST_BYTES):
            key = StateKey(payload[at : at + DIGEST_BYTES])
            parts += (sized(tree.get(key) or b""), sized(tree.prove(key).encode()))
        return {}, tuple(parts)

    def _owned(self, message: Incoming) -> Reply:
        """Return the state keys of what an owner has: hints, which `state` then proves."""
        owner = OwnerId(message.raw("owner", KEY_BYTES))
        slots = self.executor.ledger.slots_of(owner)
        first = message.integer("first", high=1 << 40)
        page = slots[first : first + OWNED_MAX]
        return {"more": len(slots) > first + len(page)}, tuple(map(state_key, page))

    def _snapshot(self, message: Incoming) -> Reply:
        """Return how many chunks the snapshot of the state after an epoch has, and the next header, final."""
        epoch = message.integer("epoch", high=1 << 62)
        chunks = self.executor.snapshots.chunks(epoch)
        height = self.store.boundary(epoch)
        found = None if height is None else self.store.certified_from(height + 1)
        if not chunks or height is None or found is None:
            raise Rejected(Reason.NOT_FOUND, "no snapshot of that epoch's end here")
        headers = [self.executor.header(item) for item in range(height + 1, found[0] + 1)]
        first, *links = (header for header in headers if header is not None)
        chain = (*links, *found[1].links)
        if len(chain) > LINKS_MAX:
            raise Rejected(Reason.NOT_FOUND, "no short proof of what follows that epoch's end here")
        finality = Finality(found[1].certificate, chain)
        return {"chunks": chunks}, (first.encode(), finality.encode())

    def _chunk(self, message: Incoming) -> Reply:
        epoch, index = message.integer("epoch", high=1 << 62), message.integer("chunk", high=1 << 32)
        chunk = self.executor.snapshots.chunk(epoch, index)
        if chunk is None:
            raise Rejected(Reason.NOT_FOUND, "no such chunk here")
        return {}, (chunk,)


async def refuse(stream: Stream, fault: Rejected) -> None:
    retry = fault.reason in (Reason.OVER_BUDGET, Reason.NOT_FOUND)
    await send_message(stream, {"detail": fault.detail, "error": str(fault.reason), "ok": False, "retry": retry})
