"""A node's side of the chain protocol (FORMATS.md 15): takes transactions, serves blocks, proofs and snapshots.

Whatever is served can be checked by whoever asks; nothing here changes the chain.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping

import trio

from economics import cbor
from economics.block import BlockHeader, Finality
from economics.crypto import DIGEST_BYTES, KEY_BYTES, Digest, OwnerId
from economics.errors import Reason, Rejected
from economics.state import BlobEntry, Reservation, state_key
from economics.transactions import TRANSACTION_BYTES_MAX, SignedTransaction
from economics.tree import StateKey, Tree
from p2pnode.executor import TREES_KEPT, Executor
from p2pnode.network.frames import Incoming, receive_message_or_end, send_message
from p2pnode.network.stream import Stream

log = logging.getLogger("p2pnode.chainserver")

BLOCKS_MAX = 256
BLOCKS_BYTES_MAX = 8 << 20
"""Of one reply: what a node that was away takes in at once."""
BODIES_MAX = 10_000
KEYS_MAX = 64
EPOCHS_MAX = 256
ROWS_MAX = 256
WAIT_MS_MAX = 20_000
PAYLOAD_BYTES_MAX = BODIES_MAX * DIGEST_BYTES

Reply = tuple[Mapping[str, cbor.Value], tuple[bytes, ...]]


def sized(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


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

    async def handle(self, stream: Stream) -> None:
        """Answer one stream until the peer ends it."""
        while (message := await receive_message_or_end(stream)) is not None:
            try:
                if message.size > PAYLOAD_BYTES_MAX:
                    raise Rejected(Reason.TOO_LARGE, f"a payload of {message.size} bytes")
                payload = await stream.receive_exactly(message.size)
                header, parts = await self._dispatch(message, payload)
            except Rejected as fault:
                await refuse(stream, fault)
                if message.size > PAYLOAD_BYTES_MAX:
                    break
                continue
            await send_message(stream, {"ok": True, **header}, *parts)
        await stream.close()

    async def _dispatch(self, message: Incoming, payload: bytes) -> Reply:
        match message.header.get("op"):
            case "head":
                return self._head()
            case "submit":
                return await self._take(payload)
            case "nonce":
                return {"nonce": self._next_nonce(OwnerId(message.raw("owner", KEY_BYTES)))}, ()
            case "outcome":
                return await self._outcome(message)
            case "bodies":
                return await trio.to_thread.run_sync(self._bodies, payload)
            case "blocks":
                return await trio.to_thread.run_sync(self._blocks, message)
            case "headers":
                return await trio.to_thread.run_sync(self._headers, message)
            case "epochs":
                return await trio.to_thread.run_sync(self._epochs, message)
            case "state":
                return self._state(payload)
            case "owned":
                return self._owned(message)
            case "history":
                return await trio.to_thread.run_sync(self._history, message)
            case "snapshot":
                return await trio.to_thread.run_sync(self._snapshot, message)
            case "chunk":
                return await trio.to_thread.run_sync(self._chunk, message)
            case _:
                raise Rejected(Reason.UNKNOWN_OPERATION, "no such operation")

    # --- transactions --------------------------------------------------------------------------------------------

    async def _take(self, payload: bytes) -> Reply:
        if len(payload) > TRANSACTION_BYTES_MAX:
            raise Rejected(Reason.TOO_LARGE, f"a transaction has at most {TRANSACTION_BYTES_MAX} bytes")
        signed = SignedTransaction.decode(payload, chain_id=self.executor.genesis.chain_id)
        await self._submit(signed)
        return {"hash": signed.hash}, ()

    async def _outcome(self, message: Incoming) -> Reply:
        """Return what became of a transaction, waiting a while for it to become final."""
        tx_hash = Digest(message.raw("hash", DIGEST_BYTES))
        wait_ms = message.integer("wait_ms", high=WAIT_MS_MAX)
        advanced = self.executor.advanced
        row = await trio.to_thread.run_sync(self.store.transaction, tx_hash)
        with trio.move_on_after(wait_ms / 1000):
            while row is None:
                await advanced.wait()
                advanced = self.executor.advanced
                row = await trio.to_thread.run_sync(self.store.transaction, tx_hash)
        if row is None:
            raise Rejected(Reason.NOT_FOUND, "not in a final block")
        fields: dict[str, cbor.Value] = {
            "code": row.code,
            "fee_frost": row.fee_frost,
            "height": row.height,
            "index": row.index,
        }
        return fields, (row.raw,)

    def _bodies(self, payload: bytes) -> Reply:
        hashes = [Digest(payload[at : at + DIGEST_BYTES]) for at in range(0, len(payload), DIGEST_BYTES)]
        parts: list[bytes] = []
        size = 0
        for tx_hash in hashes:
            signed = self._waiting(tx_hash)
            raw = b"" if signed is None or size > BLOCKS_BYTES_MAX else signed.raw
            if not raw and (row := self.store.transaction(tx_hash)) is not None:
                raw = row.raw
            size += len(raw)
            parts.append(sized(raw))
        return {}, tuple(parts)

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
        """Return consecutive blocks that end with one whose finality is known, never past a boundary."""
        first = message.integer("first", high=1 << 62)
        count = message.integer("count", high=BLOCKS_MAX)
        last = self._last_of(first, count)
        parts: list[bytes] = []
        for height in range(first, last + 1):
            block = self.store.block(height)
            assert block is not None
            bodies = (sized(raw) for raw in self.store.bodies(height))
            parts += (sized(block.encode()), *bodies)
        finality = self.store.finality(last)
        assert finality is not None
        return {"count": last - first + 1}, (*parts, sized(finality.encode()))

    def _last_of(self, first: int, count: int) -> int:
        """Return the last height of a reply: the highest with a finality within its bounds, else the next above."""
        if not self.store.base() <= first <= self.store.head():
            raise Rejected(Reason.NOT_FOUND, "no such block here")
        found = None
        size = 0
        header = self.store.header(first)
        assert header is not None
        epoch = header.epoch
        for height in range(first, self.store.head() + 1):
            block = self.store.block(height)
            assert block is not None
            if block.header.epoch != epoch or (found is not None and (height >= first + count)):
                break
            size += sum(map(len, self.store.bodies(height)))
            if found is not None and size > BLOCKS_BYTES_MAX:
                break
            if self.store.finality(height) is not None:
                found = height
        assert found is not None, "the head has a finality"
        return found

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
            height = self.store.boundary(epoch)
            if height is None:
                raise Rejected(Reason.NOT_FOUND, "this node holds no boundary of that epoch")
            header, finality = self.store.header(height), self.store.finality(height)
            assert header is not None
            assert finality is not None
            parts += (header.encode(), sized(finality.encode()), sized(b""))
        return {}, tuple(parts)

    # --- state ---------------------------------------------------------------------------------------------------

    def _provable(self) -> tuple[BlockHeader, Finality, Tree]:
        """Return the newest final header whose state is still here."""
        head = self.executor.height
        for height in range(head, max(head - TREES_KEPT, self.store.base() - 1, 0), -1):
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
        ledger = self.executor.ledger
        items: list[Reservation | BlobEntry] = [*ledger.reservations_of(owner), *ledger.entries_of(owner)]
        first = message.integer("first", high=1 << 40)
        page = items[first : first + 1_024]
        return {"more": len(items) > first + len(page)}, tuple(state_key(item.slot) for item in page)

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
        finality = Finality(found[1].certificate, tuple(links))
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
