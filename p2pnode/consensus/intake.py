"""Transactions that come to a node: checked, put to wait for a block, and passed on. Nothing on the say of a liar."""

import logging
import os
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence

import trio

from economics.arguments import Certify
from economics.crypto import Digest, NodeId
from economics.errors import Reason, Rejected
from economics.fields import sized, split_sized
from economics.transactions import SignedTransaction
from gossip.pubsub import Bucket, Gossip, Ignored
from p2pnode.consensus.executor import Executor
from p2pnode.consensus.links import FrameType, Links, build_frame
from p2pnode.consensus.mempool import NONCES_AHEAD_MAX, Mempool
from p2pnode.members import REQUEST_FAULTS, Members, nickname
from p2pnode.protocols import transactions_topic

log = logging.getLogger("p2pnode.consensus.intake")

FORWARD_S = 0.02
"""Transactions are passed on in batches: so much latency for a frame that many share."""
BATCH_BYTES_MAX = 256 << 10
BATCHES_AT_ONCE = 32
"""Nine members each send one every 20 ms: a worker thread for each costs more than what is in it."""
INCOMING_MAX = 256
"""Batches that wait to be checked; more are dropped, and pulled if a block names them."""
SENDER_INCOMING_MAX = 32
"""Of one member: 8 MiB at most, half a second of its batches; nobody fills the queue alone."""
GOSSIP_BYTES_MAX = 65_536
GOSSIP_TRANSACTIONS_MAX = 64
"""Of one message: a signature takes 55 us of the trio thread of every node."""
GOSSIP_S = 1.0
GOSSIP_CHECKS_PER_S = 500.0
GOSSIP_CHECKS_BURST = 1_000.0
"""Signatures of gossiped transactions that a node checks: 3 % of a core. Whoever is in a hurry asks a member itself."""
HAND_OVER_S = 3.0
"""What was submitted here and is in no block by then is handed to a member itself: gossip may lose it, or members may
have been a block behind and ignored it."""
TIDY_S = 20.0
TIDIED_AT_ONCE = 128
"""Senders that are looked at before others have their turn, 2.5 ms: 10,000 may wait for a nonce that never comes."""

MISDEEDS = frozenset(
    {
        Reason.BAD_SIGNATURE,
        Reason.LOW_FEE,
        Reason.MALFORMED,
        Reason.TOO_LARGE,
        Reason.UNKNOWN_OPERATION,
        Reason.WRONG_CHAIN,
    }
)
"""What no honest member passes on: it has checked the same. The rest depends on the state, which may differ."""


class Intake:
    """One node's transactions that wait, its own and others'."""

    def __init__(
        self,
        *,
        executor: Executor,
        node: NodeId,
        mempool: Mempool,
        gossip: Gossip,
        members: Members,
        links: Callable[[], Links | None],
        came: Callable[[], None],
    ) -> None:
        """`links` gives the streams to the other members, None without a seat; `came` hears that more waits."""
        self.executor = executor
        self.genesis = executor.genesis
        self.node = node
        self.mempool = mempool
        self.gossip = gossip
        self.refused: Counter[Reason] = Counter()
        """Transactions refused, by reason."""
        self._members = members
        self._links = links
        self._came = came
        self._fresh: deque[bytes] = deque()
        self._is_fresh = trio.Event()
        self._submitted: dict[Digest, float] = {}
        """When transactions that wait were submitted to this node, by hash."""
        self._send_incoming, self._incoming = trio.open_memory_channel[tuple[NodeId | None, bytes]](INCOMING_MAX)
        self._queued: Counter[NodeId | None] = Counter()
        self._gossip_checks = Bucket(burst=GOSSIP_CHECKS_BURST, per_s=GOSSIP_CHECKS_PER_S)
        self._checkers = trio.CapacityLimiter(1)
        """Threads for certificates that anybody may submit: journal and executor must not wait for them."""

    async def subscribe(self) -> None:
        """Hear what is gossiped from here on."""
        await self.gossip.subscribe(
            transactions_topic(self.genesis),
            size_max=GOSSIP_BYTES_MAX,
            validate=self._verify_gossip,
            handle=self._handle_gossip,
        )

    async def run(self) -> None:
        """Check, pass on and forget until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_on)
            nursery.start_soon(self._hand_over)
            nursery.start_soon(self._take_incoming)
            nursery.start_soon(self._tidy)

    async def submit(self, signed: SignedTransaction) -> None:
        """Take a transaction from anyone and pass it on; raises `Rejected`."""
        try:
            if self.mempool.get(signed.hash) is None:
                if isinstance(signed.transaction.operation, Certify):  # as many signatures as make a quorum
                    await trio.to_thread.run_sync(self._verify, signed, limiter=self._checkers)
                else:
                    self._verify(signed)
                self._add(signed)
                self._fresh.append(signed.raw)
                self._is_fresh.set()
                self._submitted[signed.hash] = trio.current_time()
        except Rejected as fault:
            self.refused[fault.reason] += 1
            raise

    def _verify(self, signed: SignedTransaction) -> None:
        """Raise `Rejected` unless a transaction may wait here; from any thread. Signatures last: they cost most."""
        ledger = self.executor.ledger
        ledger.verify_admissible(signed, nonce_ahead_max=NONCES_AHEAD_MAX)
        signed.verify(parameters=self.genesis.parameters)
        if isinstance(signed.transaction.operation, Certify):
            ledger.check_certificate(signed.transaction.operation.certificate)

    def _add(self, signed: SignedTransaction) -> None:
        """Let a transaction wait for a block; all its signatures have been checked."""
        ledger = self.executor.ledger
        operation = signed.transaction.operation
        if isinstance(operation, Certify) and operation.certificate.epoch == ledger.epoch:
            ledger.remember_certificate(operation.certificate)
        if self.mempool.add(signed, ledger=ledger):
            self._came()

    async def _pass_on(self) -> None:
        """Send fresh transactions to the other members, or gossip them from a node that is none."""
        while True:
            self._is_fresh = trio.Event()
            if not self._fresh:
                await self._is_fresh.wait()
            await trio.sleep(FORWARD_S)
            while self._fresh:
                links = self._links()
                batch: list[bytes] = []
                size = 0
                limit = GOSSIP_BYTES_MAX if links is None else BATCH_BYTES_MAX
                count = GOSSIP_TRANSACTIONS_MAX if links is None else len(self._fresh)
                while self._fresh and len(batch) < count and size + len(self._fresh[0]) + 4 <= limit:
                    batch.append(sized(self._fresh.popleft()))
                    size += len(batch[-1])
                if links is not None:
                    links.broadcast_bulk(build_frame(FrameType.TRANSACTIONS, b"".join(batch)))
                else:
                    await self.gossip.publish(transactions_topic(self.genesis), b"".join(batch))
                    await trio.sleep(GOSSIP_S)

    async def _hand_over(self) -> None:
        """While this node has no seat, give what was submitted here and waits too long to one member after another."""
        rng = random.Random(os.urandom(16))
        while True:
            await trio.sleep(HAND_OVER_S)
            self._submitted = {key: at for key, at in self._submitted.items() if self.mempool.get(key) is not None}
            late = [key for key, at in self._submitted.items() if trio.current_time() - at >= HAND_OVER_S]
            for tx_hash in late[:GOSSIP_TRANSACTIONS_MAX] if self._links() is None else ():
                signed = self.mempool.get(tx_hash)
                member = rng.choice(self._members.committee.members).node
                if signed is None or member == self.node:
                    continue
                try:
                    await self._members.request(member, {"op": "submit"}, size_max=0, payload=signed.raw)
                except REQUEST_FAULTS as fault:
                    log.debug("node %s did not take a transaction: %s", nickname(member), fault)

    async def take_batch(self, sender: NodeId, body: bytes) -> None:
        """Take the transactions that a member passes on."""
        if len(body) > BATCH_BYTES_MAX:
            raise Rejected(Reason.TOO_LARGE, f"a batch of {len(body)} bytes")
        self._enqueue(sender, body)

    def _enqueue(self, sender: NodeId | None, body: bytes) -> None:
        """Have a batch checked; `sender` is None for what was gossiped."""
        try:
            if self._queued[sender] >= SENDER_INCOMING_MAX:
                raise trio.WouldBlock
            self._send_incoming.send_nowait((sender, body))
            self._queued[sender] += 1
        except trio.WouldBlock:
            self.refused[Reason.OVER_BUDGET] += 1

    async def _take_incoming(self) -> None:
        """Check what others pass on, batch by batch, off the trio thread; who passes on lies is shunned."""
        while True:
            batches = await self._next_batches()
            checked = await trio.to_thread.run_sync(self._check_batches, [body for _, body in batches])
            for (sender, _), (fresh, refused) in zip(batches, checked, strict=True):
                self.refused.update(refused)
                links = self._links()
                if sender is not None and links is not None and MISDEEDS & refused.keys():
                    await links.shun(sender)
                for signed in fresh:
                    try:
                        self._add(signed)
                    except Rejected as fault:
                        self.refused[fault.reason] += 1

    async def _next_batches(self) -> list[tuple[NodeId | None, bytes]]:
        """Return what waits to be checked, once there is something, but nothing of who is shunned by now."""
        batches = [await self._incoming.receive()]
        while len(batches) < BATCHES_AT_ONCE:
            try:
                batches.append(self._incoming.receive_nowait())
            except trio.WouldBlock:
                break
        self._queued.subtract(sender for sender, _ in batches)
        links = self._links()
        return [item for item in batches if item[0] is None or links is None or not links.is_shunned(item[0])]

    async def _tidy(self) -> None:
        """Now and then forget transactions that no block can hold any more."""
        while True:
            await trio.sleep(TIDY_S)
            self.mempool.drop_expired(ledger=self.executor.ledger)
            senders = self.mempool.senders()
            for at in range(0, len(senders), TIDIED_AT_ONCE):
                self.mempool.review(senders[at : at + TIDIED_AT_ONCE], ledger=self.executor.ledger)
                await trio.lowlevel.checkpoint()

    def _check_batches(self, bodies: Sequence[bytes]) -> list[tuple[list[SignedTransaction], Counter[Reason]]]:
        """Check each; for a worker thread."""
        return [self._check_batch(body) for body in bodies]

    def _check_batch(self, body: bytes) -> tuple[list[SignedTransaction], Counter[Reason]]:
        """Return those that are new and may wait, and why others may not, up to the first lie; for a worker thread."""
        good: list[SignedTransaction] = []
        refused: Counter[Reason] = Counter()
        try:
            parts = split_sized(body, "a batch of transactions")
        except Rejected as fault:
            return [], Counter({fault.reason: 1})
        for raw in parts:
            try:
                signed = SignedTransaction.decode(raw, chain_id=self.genesis.chain_id)
                if self.mempool.get(signed.hash) is None:
                    self._verify(signed)
                    good.append(signed)
            except Rejected as fault:
                refused[fault.reason] += 1
                if fault.reason in MISDEEDS:
                    break
        return good, refused

    def _verify_gossip(self, author: NodeId, data: bytes) -> None:
        """Raise `Rejected` for gossiped transactions that must not be passed on."""
        parts = split_sized(data, "gossiped transactions")
        if not 1 <= len(parts) <= GOSSIP_TRANSACTIONS_MAX:
            raise Rejected(Reason.TOO_LARGE, f"a message has 1 to {GOSSIP_TRANSACTIONS_MAX} transactions")
        decoded = (SignedTransaction.decode(raw, chain_id=self.genesis.chain_id) for raw in parts)
        fresh = [signed for signed in decoded if self.mempool.get(signed.hash) is None]
        if not fresh:
            raise Ignored("no news")
        try:
            for signed in fresh:
                self.executor.ledger.verify_admissible(signed, nonce_ahead_max=NONCES_AHEAD_MAX)
        except Rejected as fault:
            raise Ignored(f"a transaction that cannot be executed here: {fault}") from fault
        if not self._gossip_checks.take(len(fresh)):
            raise Ignored("more signatures than this node checks for strangers")
        for signed in fresh:
            signed.verify(parameters=self.genesis.parameters)

    async def _handle_gossip(self, author: NodeId, data: bytes) -> None:
        if self.executor.ledger.committee.index_of(self.node) is not None:
            self._enqueue(None, data)
