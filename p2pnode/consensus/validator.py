"""The shell around the consensus engine: performs its effects for one member. Logs before it tells; decides no vote.

One task owns the engine. What binds this node is on disk, by one fdatasync a turn, before any frame of that turn is
queued. A validator lives for one epoch, as its committee does; a catch-up within it puts a new engine in place.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import trio

from economics.block import Block, Finality, Proposal
from economics.consensus import (
    Ask,
    Broadcast,
    Build,
    Built,
    Due,
    Effect,
    Engine,
    Finalized,
    Guilty,
    Heard,
    Input,
    Judge,
    Judged,
    Keep,
    Missing,
    Persist,
    Quiet,
    Send,
    Silenced,
    TimePassed,
)
from economics.crypto import NodeId, Signature
from economics.errors import Reason, Rejected
from economics.votes import SignedVote, VoteCertificate
from p2pnode.consensus.blockmaker import BlockMaker
from p2pnode.consensus.executor import Candidate, Executor
from p2pnode.consensus.journal import Binding
from p2pnode.consensus.links import FrameType, Links
from p2pnode.consensus.speech import Speak, decode_message, encode_message
from p2pnode.errors import NetworkError

log = logging.getLogger("p2pnode.consensus.validator")

INBOX_MAX = 1_024
TURN_INPUTS_MAX = 32
"""Each may cost a signature check of 55 us: a turn stays below some 5 ms."""
SENDER_INPUTS_MAX = 32
"""Of one member in the inbox: whoever floods waits for itself, and the others' votes do not wait behind it."""
JUDGE_S_MAX = 30.0
FETCH_PAUSE_S = 1.0
STUCK_S = 5.0
"""So long without a new final block, while others may be ahead, and this node asks them."""

MISDEEDS = frozenset(
    {
        Reason.BAD_SIGNATURE,
        Reason.MALFORMED,
        Reason.NO_QUORUM,
        Reason.NOT_MINIMAL,
        Reason.UNKNOWN_SIGNER,
        Reason.WRONG_LEADER,
        Reason.WRONG_PARENT,
    }
)
"""What no honest member sends of its own. A proposal of another it may pass on without having checked all of it."""


@dataclass(frozen=True, slots=True)
class _Synced:
    """The executor has moved on by other means than this engine: it needs a new one."""


@dataclass(frozen=True, slots=True)
class _Made:
    """A block for the engine that asked for it: to one that took its place meanwhile it means nothing."""

    engine: Engine
    built: Built


class Validator:
    """One member's part in the consensus of one epoch."""

    def __init__(
        self,
        *,
        executor: Executor,
        maker: BlockMaker,
        binding: Binding,
        links: Links,
        sign: Callable[[bytes], Signature],
        own: int,
        clock_ms: Callable[[], int],
        on_guilty: Callable[[Guilty], None],
        on_behind: Callable[[NodeId | None], None],
        speak: Speak,
        is_restart: bool,
    ) -> None:
        self.executor = executor
        self.genesis = executor.genesis
        self.committee = executor.ledger.committee
        self.maker = maker
        self.journal = binding.journal
        self.links = links
        self.own = own
        self.clock_ms = clock_ms
        self.refused: Counter[Reason] = Counter()
        self._sign = sign
        self._speak = speak
        self._on_guilty = on_guilty
        self._on_behind = on_behind
        self._binding = binding
        self._was_quiet = binding.quiet is not None
        self._send_inbox, self._inbox = trio.open_memory_channel[Input | _Synced | _Made](INBOX_MAX)
        self._send_final, self._final = trio.open_memory_channel[Finalized](INBOX_MAX)
        self._shares = [trio.Semaphore(SENDER_INPUTS_MAX) for _ in self.committee.members]
        self._arrived = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._due_ms: int | None = None
        self._wish: Build | None = None
        """The block that the engine waits for."""
        self._building: trio.CancelScope | None = None
        self.engine = self._make_engine(binding.quiet, is_restart=is_restart)

    # --- engines -------------------------------------------------------------------------------------------------

    def _make_engine(self, quiet: Quiet | None, *, is_restart: bool) -> Engine:
        """Return an engine that knows what the log and the store know."""
        executor = self.executor
        self.journal.forget(self._passed)
        restored, candidates = self.journal.restore(epoch=executor.ledger.epoch, height=executor.height)
        for candidate in candidates:
            self.maker.hold(candidate)
        finality = executor.finality
        head = executor.head
        is_first = head == executor.root_header
        assert is_first or finality is not None
        block = None if is_first else executor.store.block(head.height)
        return Engine(
            chain_id=self.genesis.chain_id,
            committee=self.committee,
            root=executor.root_header,
            own=self.own,
            sign=self._sign,
            parameters=self.genesis.parameters,
            now_ms=self.clock_ms(),
            restored=restored,
            finalized=None if block is None or finality is None else (block, finality.certificate),
            quiet=quiet,
            is_restart=is_restart,
        )

    def synced(self) -> None:
        """Say that the executor was moved on by a catch-up."""
        self._post(_Synced())

    @property
    def is_quiet(self) -> bool:
        """Whether this node may have signed more than its log holds, and so votes no more for now."""
        return self.engine.quiet is not None

    @property
    def has_ended(self) -> bool:
        """Whether the epoch's boundary is executed: what is left is to answer those who have not got so far."""
        return self.executor.ledger.epoch != self.committee.epoch

    async def hand_on(self) -> Binding:
        """Return what binds this node in later epochs, once the epoch has ended and `run` too."""
        quiet = self.engine.quiet_next_epoch
        if self._was_quiet and quiet is None:
            await self._be_loud()
        return replace(self._binding, quiet=quiet)

    async def _be_loud(self) -> None:
        log.warning("the chain has passed what this node may have signed: it votes again")
        await trio.to_thread.run_sync(self._binding.on_loud)

    # --- what others say -----------------------------------------------------------------------------------------

    def greet(self) -> bytes:
        """Return what a new stream begins with: a wish for what this node has missed."""
        return encode_message(Ask(self.committee.epoch, self.engine.view))

    async def receive(self, sender: NodeId, kind: FrameType, body: bytes) -> None:
        """Take one frame of a member; raises `Rejected` if it is none."""
        index = self.committee.index_of(sender)
        if index is None:
            return  # a member of the next committee only: it is told again
        message = decode_message(kind, body, genesis=self.genesis)
        await self._shares[index].acquire()
        try:
            await self._send_inbox.send(Heard(message, index))
        except BaseException:
            self._shares[index].release()
            raise

    def _post(self, item: Input | _Synced | _Made) -> None:
        """Give the engine's task something of this node's own."""
        try:
            self._send_inbox.send_nowait(item)
        except trio.WouldBlock:
            assert self._nursery is not None
            self._nursery.start_soon(self._send_inbox.send, item)

    # --- the engine's task ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take part until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._watch_progress)
            nursery.start_soon(self._execute_final)
            await self._perform(self.engine.start(self.clock_ms()))
            while True:
                await self._turn()

    async def _turn(self) -> None:
        self.wake()
        items = await self._next_items()
        effects: list[Effect] = []
        for item in items:
            if isinstance(item, _Synced):
                await self._perform(effects)
                effects = self._renew() if self._is_behind() else []
                continue
            if isinstance(item, _Made):
                if item.engine is not self.engine:
                    continue
                item = item.built
            if not self._is_welcome(item):
                continue
            try:
                effects += self.engine.handle(self.clock_ms(), item)
            except Rejected as fault:
                self._refuse(item, fault)
                liar = self._liar(item, fault)
                if liar is not None:
                    await self.links.shun(self._node(liar))
        await self._perform(effects)

    async def _next_items(self) -> list[Input | _Synced | _Made]:
        """Return what waits; after the engine's deadline, that it has passed."""
        items = await self._await_items()
        for item in items:
            if isinstance(item, Heard) and item.sender is not None:
                self._shares[item.sender].release()
        return items

    async def _await_items(self) -> list[Input | _Synced | _Made]:
        deadline = self.engine.deadline()
        wait_s = float("inf") if deadline is None else max(0.0, (deadline - self.clock_ms()) / 1000)
        items: list[Input | _Synced | _Made] = []
        with trio.move_on_after(wait_s):
            items.append(await self._inbox.receive())
        if not items:
            return [TimePassed()]
        while len(items) < TURN_INPUTS_MAX:
            try:
                items.append(self._inbox.receive_nowait())
            except trio.WouldBlock:
                break
        return items

    def _is_welcome(self, item: Input) -> bool:
        """Return whether the engine is to see this: nothing of a member that lied just now, no block for an older one.

        An engine that a catch-up has replaced may have had a block made on a parent that the new one never saw.
        """
        match item:
            case Heard(_, sender):
                return sender is None or not self.links.is_shunned(self._node(sender))
            case Built(_, block):
                return self._wish is not None and self._wish.parent.hash == block.header.parent_hash
            case _:
                return True

    def _liar(self, item: Input, fault: Rejected) -> int | None:
        """Return the sender of what no honest member sends."""
        if not isinstance(item, Heard) or fault.reason not in MISDEEDS:
            return None
        passed_on = isinstance(item.message, Proposal) and item.message.block.header.leader != item.sender
        return None if passed_on else item.sender

    def _refuse(self, item: Input, fault: Rejected) -> None:
        self.refused[fault.reason] += 1
        sender = item.sender if isinstance(item, Heard) else None
        log.debug("member %s: %s", sender, fault)
        if fault.reason in (Reason.WRONG_EPOCH, Reason.TOO_FAR_AHEAD) and self._speaks_of_later(item):
            self._on_behind(None if sender is None else self._node(sender))

    def _node(self, member: int) -> NodeId:
        return self.committee.members[member].node

    def _speaks_of_later(self, item: Input) -> bool:
        epoch = self.committee.epoch
        match item:
            case Heard(SignedVote(vote)):
                return vote.epoch > epoch or vote.view > self.engine.view
            case Heard(VoteCertificate() as certificate):
                return certificate.epoch > epoch
            case Heard(Proposal(block)):
                return block.header.epoch > epoch
            case _:
                return False

    def wake(self) -> None:
        """Look again from when on a block is wanted: a transaction has come, or the chain has moved."""
        due = self.maker.due_ms(self.engine.tip)
        if due != self._due_ms:
            self._due_ms = due
            self._post(Due(due))
            self._arrived.set()
            self._arrived = trio.Event()

    def transaction_came(self) -> None:
        """Do so unless a block is wanted as early as one can be: looking costs more the more waits."""
        if self._due_ms is None or self._due_ms > self.maker.earliest_ms(self.engine.tip):
            self.wake()

    # --- effects -------------------------------------------------------------------------------------------------

    async def _perform(self, effects: Sequence[Effect]) -> None:
        """Make durable what binds, then do the rest in order."""
        await self.journal.write(effects, self._held)
        for effect in effects:
            match effect:
                case Persist() | Keep():
                    pass  # on disk already
                case Broadcast(message):
                    for spoken in self._speak(message):
                        self.links.broadcast(encode_message(spoken))
                case Send(member, message):
                    self.links.send(self._node(member), encode_message(message))
                case Build():
                    self._start_building(effect)
                case Judge():
                    assert self._nursery is not None
                    self._nursery.start_soon(self._judge, effect)
                case Finalized():
                    await self._send_final.send(effect)
                case Missing():
                    self._on_behind(None)
                case Guilty():
                    self._on_guilty(effect)
                case Silenced(reason):
                    log.error("this node votes no more for now: %s", reason)
                    await trio.to_thread.run_sync(self._binding.on_silenced)
        if self._was_quiet and not self.is_quiet:
            await self._be_loud()
        self._was_quiet = self.is_quiet

    def _held(self, proposal: Proposal) -> Candidate | None:
        """Return a block that is to be kept, None where a catch-up has executed it: then it is in the store."""
        candidate = self.maker.held(proposal.block.hash)
        executed = proposal.block.header.height <= self.executor.height
        assert candidate is not None or executed, "a block is judged before it is voted for"
        return candidate

    # --- blocks --------------------------------------------------------------------------------------------------

    def _start_building(self, wish: Build) -> None:
        if self._building is not None:
            self._building.cancel()
        self._wish, self._building = wish, trio.CancelScope()
        assert self._nursery is not None
        self._nursery.start_soon(self._build, wish, self._building)

    async def _build(self, wish: Build, scope: trio.CancelScope) -> None:
        """Wait until a block is wanted, then make it; a later wish ends this one."""
        engine = self.engine
        with scope:
            while True:
                if engine is not self.engine or engine.view != wish.view or self._is_overtaken(wish):
                    return
                wait_ms = self.maker.due_ms(wish.parent) - self.clock_ms()
                if wait_ms <= 0 and self.executor.height >= wish.parent.executed_height:
                    break
                with trio.move_on_after(max(wait_ms, 5) / 1000):
                    await self._arrived.wait()
            block = self.maker.build(
                view=wish.view, leader=self.own, parent=wish.parent, is_empty=wish.parent_is_boundary
            )
            self._post(_Made(engine, Built(wish.view, block)))

    def _is_overtaken(self, wish: Build) -> bool:
        """Return whether a catch-up has executed more than the block would build on; the next engine will know."""
        return self.executor.height > wish.parent.height or self.has_ended

    async def _judge(self, wish: Judge) -> None:
        block = wish.proposal.block
        if self.has_ended:  # nothing of the epoch is voted for here any more
            self._post(Judged(block.hash, ok=False))
            return
        fault: Exception
        try:
            with trio.move_on_after(JUDGE_S_MAX):
                await self.maker.judge(block, sender=wish.sender)
                self._post(Judged(block.hash, ok=True))
                return
            fault = Rejected(Reason.INCOMPLETE, "its transactions or its state did not come in time")
        except (Rejected, NetworkError) as error:
            fault = error
        log.warning("a block of member %d at view %d: %s", block.header.leader, block.header.view, fault)
        self._post(Judged(block.hash, ok=False))

    async def _execute_final(self) -> None:
        """Execute and store what has become final, in order, up to the boundary."""
        async for effect in self._final:
            known = [item for block in effect.blocks if (item := await self._fetch(block)) is not None]
            if not known or known[0].block.header.height > self.executor.height + 1:
                continue  # a catch-up was quicker, or comes
            await self.apply(known, effect.finality)
            self.wake()

    async def _fetch(self, block: Block) -> Candidate | None:
        """Return a final block with its bodies, which this node may never have judged, or None once it is executed.

        They are pulled by their hashes: this member alone may know that the block is final.
        """
        while block.header.height > self.executor.height:
            candidate = self.maker.held(block.hash)
            if candidate is not None:
                return candidate
            try:
                await self.maker.fetch(block)
            except (Rejected, NetworkError) as fault:
                log.warning("the transactions of final block %d are missing: %s", block.header.height, fault)
                self._on_behind(None)
                await trio.sleep(FETCH_PAUSE_S)
        return None

    async def apply(self, candidates: Sequence[Candidate], finality: Finality) -> None:
        """Execute and store final blocks, then forget what they make needless."""
        await self.executor.apply(candidates, finality)
        executed = [signed for item in candidates for signed in item.transactions]
        self.maker.mempool.drop_executed(executed, ledger=self.executor.ledger)
        self.maker.drop_passed()
        await self.journal.prune(self._passed)

    @property
    def _passed(self) -> tuple[int, int]:
        """Epoch and view of the head: what the log holds up to here is needless."""
        head = self.executor.head
        return self.executor.ledger.epoch, 0 if head == self.executor.root_header else head.view

    def _is_behind(self) -> bool:
        """Return whether the executor knows more of the epoch to be final than the engine does."""
        return not self.has_ended and self.executor.height > self.engine.final_height

    def _renew(self) -> list[Effect]:
        """Put a new engine in place of one that the executor has overtaken."""
        self.engine = self._make_engine(self.engine.quiet, is_restart=False)
        self._due_ms = None
        self._wish = None
        if self._building is not None:
            self._building.cancel()
        return self.engine.start(self.clock_ms())

    async def _watch_progress(self) -> None:
        """Ask around when nothing has become final for a while: others may have gone on."""
        height = -1
        while True:
            if height == self.executor.height:
                self._on_behind(None)
            height = self.executor.height
            await trio.sleep(STUCK_S)
