"""A node's part in the chain: puts executor, mempool, validator, catch-up and server together, and owns their tasks.

A member votes; any other node follows the announcements of final blocks and passes transactions on by gossip.
"""

import logging
import os
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence

import trio

from economics import cbor
from economics.arguments import Certify, Evidence
from economics.block import HEADER_BYTES, BlockHeader, Finality
from economics.consensus import Guilty
from economics.crypto import Digest, NodeId
from economics.errors import Reason, Rejected
from economics.fields import sized, split_sized
from economics.transactions import BLOCK_BYTES_MAX, SignedTransaction
from economics.votes import SignedVote
from gossip.pubsub import Bucket, Gossip, Ignored
from p2pnode.blockmaker import BlockMaker
from p2pnode.chainserver import ChainServer
from p2pnode.chainsync import ChainSync, pull_bodies
from p2pnode.executor import Candidate, Executor
from p2pnode.journal import Binding
from p2pnode.keys import Key
from p2pnode.links import FrameType, Links, build_frame
from p2pnode.members import REQUEST_FAULTS, Members, nickname
from p2pnode.membership import Membership
from p2pnode.mempool import NONCES_AHEAD_MAX, Mempool
from p2pnode.onion import Revealer
from p2pnode.operator import Operator
from p2pnode.protocols import blocks_topic, transactions_topic
from p2pnode.speech import Speak, speak_honestly

log = logging.getLogger("p2pnode.participant")

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
POLL_S = 10.0
"""A node that is no member asks for news as often, should no announcement reach it."""
ANNOUNCE_S = 1.0
"""A gossip message costs every node 5 ms of CPU: at most one announcement a second."""
ANNOUNCED_BEHIND_MAX = 64
"""Announcements of blocks that are this much older than the head are of no use to anybody."""
TIDY_S = 20.0
CATCH_UP_S = 0.5
"""Least time between two rounds of catching up."""

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


class Participant:
    """What one running node knows and does of the chain."""

    def __init__(
        self,
        *,
        executor: Executor,
        key: Key,
        clock_ms: Callable[[], int],
        binding: Binding,
        chain_members: Members,
        consensus_members: Members,
        gossip: Gossip,
        snapshot_blocks: int,
        speak: Speak = speak_honestly,
    ) -> None:
        self.executor = executor
        self.genesis = executor.genesis
        self.node = NodeId(key.public)
        self.mempool = Mempool()
        self.gossip = gossip
        self.refused: Counter[Reason] = Counter()
        """Transactions refused, by reason."""
        self.operator = Operator(executor=executor, key=key, submit=self.submit)
        self._members = chain_members
        self._fresh: deque[bytes] = deque()
        self._is_fresh = trio.Event()
        self._submitted: dict[Digest, float] = {}
        """When transactions that wait were submitted to this node, by hash."""
        self._send_incoming, self._incoming = trio.open_memory_channel[tuple[NodeId | None, bytes]](INCOMING_MAX)
        self._queued: Counter[NodeId | None] = Counter()
        self._gossip_checks = Bucket(burst=GOSSIP_CHECKS_BURST, per_s=GOSSIP_CHECKS_PER_S)
        self._checkers = trio.CapacityLimiter(1)
        """Threads for certificates that anybody may submit: journal and executor must not wait for them."""
        self._behind = trio.Event()
        self._ahead: NodeId | None = None
        self._announced = 0
        """The highest block whose announcement was passed on."""
        self._accused: set[tuple[int, int]] = set()
        """(member, epoch) of reported equivocations."""
        self.revealer = Revealer(executor=executor, node=self.node, seed=key.seed, want=self.operator.want)
        self.maker = BlockMaker(
            executor=executor,
            mempool=self.mempool,
            sign=key.sign,
            clock_ms=clock_ms,
            pull=self._pull,
            reveal=self.revealer.reveal,
        )
        self.membership = Membership(
            executor=executor,
            maker=self.maker,
            binding=binding,
            key=key,
            members=consensus_members,
            clock_ms=clock_ms,
            take=self._take_batch,
            on_guilty=self._accuse,
            on_behind=self.fall_behind,
            speak=speak,
        )
        self.sync = ChainSync(
            executor=executor,
            members=chain_members,
            own=self.node,
            apply=self.apply,
            rng=random.Random(os.urandom(16)),
            snapshot_blocks=snapshot_blocks,
        )
        self.server = ChainServer(
            executor=executor,
            submit=self.submit,
            waiting=self.maker.transaction,
            next_nonce=lambda owner: self.mempool.next_nonce(owner, ledger=executor.ledger),
        )

    @property
    def links(self) -> Links | None:
        """The streams to the other members; None where this node has no seat in the current epoch."""
        return None if self.membership.own is None else self.membership.links

    async def run(self) -> None:
        """Take part until cancelled."""
        await self.gossip.subscribe(
            transactions_topic(self.genesis),
            size_max=GOSSIP_BYTES_MAX,
            validate=self._verify_gossip,
            handle=self._handle_gossip,
        )
        await self.gossip.subscribe(
            blocks_topic(self.genesis),
            size_max=GOSSIP_BYTES_MAX,
            validate=self._verify_announcement,
            handle=self._handle_announcement,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.membership.run)
            nursery.start_soon(self.operator.run)
            nursery.start_soon(self.revealer.run)
            nursery.start_soon(self._follow_epochs)
            nursery.start_soon(self._keep_up)
            nursery.start_soon(self._poll)
            nursery.start_soon(self._announce)
            nursery.start_soon(self._pass_on)
            nursery.start_soon(self._hand_over)
            nursery.start_soon(self._take_incoming)
            nursery.start_soon(self._tidy)

    async def _follow_epochs(self) -> None:
        """At the start and in each new epoch turn to its committee."""
        while True:
            committee = self.executor.ledger.committee
            await self._members.seat(committee)
            await self.executor.wait_epoch_beyond(committee.epoch)

    def status(self) -> dict[str, cbor.Value]:
        validator, links = self.membership.validator, self.links
        return {
            "epoch": self.executor.ledger.epoch,
            "height": self.executor.height,
            "leader": None if validator is None else validator.engine.leader,
            "links": 0 if links is None else len(links.up),
            "mempool": len(self.mempool),
            "quiet": validator is not None and validator.is_quiet,
            "refused_messages": {} if validator is None else {str(key): n for key, n in validator.refused.items()},
            "refused_transactions": {str(key): n for key, n in self.refused.items()},
            "root": self.executor.ledger.root.hex(),
            "view": 0 if validator is None else validator.engine.view,
        }

    # --- transactions --------------------------------------------------------------------------------------------

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
        if self.mempool.add(signed, ledger=ledger) and self.membership.validator is not None:
            self.membership.validator.transaction_came()

    async def _pass_on(self) -> None:
        """Send fresh transactions to the other members, or gossip them from a node that is none."""
        while True:
            self._is_fresh = trio.Event()
            if not self._fresh:
                await self._is_fresh.wait()
            await trio.sleep(FORWARD_S)
            while self._fresh:
                links = self.links
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
            for tx_hash in late[:GOSSIP_TRANSACTIONS_MAX] if self.links is None else ():
                signed = self.mempool.get(tx_hash)
                member = rng.choice(self._members.committee.members).node
                if signed is None or member == self.node:
                    continue
                try:
                    await self._members.request(member, {"op": "submit"}, size_max=0, payload=signed.raw)
                except REQUEST_FAULTS as fault:
                    log.debug("node %s did not take a transaction: %s", nickname(member), fault)

    async def _take_batch(self, sender: NodeId, body: bytes) -> None:
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
                links = self.links
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
        links = self.links
        return [item for item in batches if item[0] is None or links is None or not links.is_shunned(item[0])]

    async def _tidy(self) -> None:
        """Now and then forget transactions that no block can hold any more."""
        while True:
            await trio.sleep(TIDY_S)
            self.mempool.drop_expired(ledger=self.executor.ledger)
            self.mempool.review(ledger=self.executor.ledger)

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
        if self.membership.own is not None:
            self._enqueue(None, data)

    async def _pull(self, hashes: Sequence[Digest], sender: int | None) -> list[bytes]:
        """Fetch bodies from the validator's committee; `sender` is one of its members."""
        validator = self.membership.validator
        committee = self.executor.ledger.committee if validator is None else validator.committee
        members = self._members.seated(committee)
        return await pull_bodies(members, self.node, hashes, sender, bytes_max=BLOCK_BYTES_MAX)

    # --- blocks --------------------------------------------------------------------------------------------------

    async def apply(self, candidates: Sequence[Candidate], finality: Finality) -> None:
        """Execute final blocks that came by a catch-up."""
        if self.membership.validator is not None:
            await self.membership.validator.apply(candidates, finality)
        else:
            await self.executor.apply(candidates, finality)
            executed = [signed for item in candidates for signed in item.transactions]
            self.mempool.drop_executed(executed, ledger=self.executor.ledger)
            self.maker.drop_passed()

    def fall_behind(self, member: NodeId | None) -> None:
        """Say that others may have gone on without this node; a member who showed it is asked first."""
        self._ahead = member
        self._behind.set()

    async def _keep_up(self) -> None:
        """Catch up whenever something says that others have gone on, and once at the start."""
        self._behind.set()
        while True:
            await self._behind.wait()
            self._behind = trio.Event()
            if await self.sync.catch_up(self._ahead):
                self.mempool.review(ledger=self.executor.ledger)
                if self.membership.validator is not None:
                    self.membership.validator.synced()
            await trio.sleep(CATCH_UP_S)

    async def _poll(self) -> None:
        """Ask for news where none came for a while; a member's validator sees to that itself."""
        height = -1
        while True:
            if self.membership.own is None and height == self.executor.height:
                self.fall_behind(None)
            height = self.executor.height
            await trio.sleep(POLL_S)

    async def _announce(self) -> None:
        """Tell those who are no members of new final blocks: the leader of the newest does, at most once a second.

        Of a boundary too, whether or not it has a seat in the epoch that begins: new members wait for it.
        """
        told = self.executor.height
        while True:
            await self.executor.wait_beyond(told)
            told = self.executor.height
            head, finality = self.executor.head, self.executor.finality
            committee = self.executor.ledger.committee_of(head.epoch)
            leads = committee is not None and committee.index_of(self.node) == head.leader
            if leads and finality is not None:
                data = head.encode() + finality.encode()
                if len(data) <= GOSSIP_BYTES_MAX:  # a proof with many links, in the midst of a catch-up, is no news
                    await self.gossip.publish(blocks_topic(self.genesis), data)
            await trio.sleep(ANNOUNCE_S)

    def _verify_announcement(self, author: NodeId, data: bytes) -> None:
        """Raise `Rejected` for an announcement of no final block, `Ignored` for what cannot be told or was passed on.

        Each height goes on once, and none below it: a quorum's signatures make many proofs of one block.
        """
        header = BlockHeader.decode(data[:HEADER_BYTES], chain_id=self.genesis.chain_id)
        finality = Finality.decode(data[HEADER_BYTES:], chain_id=self.genesis.chain_id)
        ledger = self.executor.ledger
        if header.height <= self._announced or header.height < self.executor.height - ANNOUNCED_BEHIND_MAX:
            raise Ignored("no news")
        committee = ledger.committee_of(header.epoch)
        if committee is None:
            raise Ignored("of an epoch whose committee is not known here")
        finality.verify(header, committee=committee)
        self._announced = header.height

    async def _handle_announcement(self, author: NodeId, data: bytes) -> None:
        header = BlockHeader.decode(data[:HEADER_BYTES], chain_id=self.genesis.chain_id)
        if self.membership.own is None and header.height > self.executor.height:
            self.fall_behind(author)

    # --- evidence ------------------------------------------------------------------------------------------------

    def _accuse(self, guilty: Guilty) -> None:
        first, second = guilty.first, guilty.second
        if isinstance(first, SignedVote):
            index, epoch, view = first.vote.signer, first.vote.epoch, first.vote.view
        else:
            index, epoch, view = first[0].leader, first[0].epoch, first[0].view
        if (index, epoch) in self._accused:
            return  # once an epoch: it is slashed each time, and each time costs every node a block
        self._accused = {key for key in self._accused if key[1] == epoch} | {(index, epoch)}
        committee = self.executor.ledger.committee_of(epoch)
        if committee is None:
            return  # so long ago that nobody is punished for it any more
        node = committee.members[index].node
        log.warning("caught: member %d signed two things that contradict each other in view %d", index, view)
        self.operator.accuse(Evidence(first, second), node=node, epoch=epoch, view=view)
