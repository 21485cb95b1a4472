"""The shell of one simulated node: performs the engine's effects as the real one must. Logs before it tells.

A node has an engine in the epochs in which it has a seat; in the others it follows what is final, and never votes.

What it needs of its surroundings (wires, clock, watchers) is a `World`, a `Network` and an `Observer`.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from economics.block import (
    AHEAD_MS_MAX,
    BlockHeader,
    Finality,
    Proposal,
)
from economics.consensus import Engine
from economics.crypto import Digest, Signature
from economics.effects import (
    Ask,
    Broadcast,
    Build,
    Built,
    Due,
    Effect,
    Finalized,
    Guilty,
    Heard,
    Input,
    Judge,
    Judged,
    Keep,
    Message,
    Missing,
    Persist,
    Quiet,
    Send,
    Silenced,
    TimePassed,
)
from economics.errors import Reason, Rejected
from economics.genesis import Genesis
from economics.ledger import Ledger
from economics.transactions import SignedTransaction
from economics.votes import SignedVote, VoteCertificate
from tests.simulation.chain import BLOCKS_MAX, Blocks, Chain, Row
from tests.simulation.disk import Disk, Kept, PowerCut
from tests.simulation.keys import Roster
from tests.simulation.network import Network
from tests.simulation.operator import Operator
from tests.simulation.payloads import Identity, Observer, Payload, Transactions, WantBlocks, WantTransactions
from tests.simulation.world import World

JUDGE_MS_MAX = 30_000
PULL_MS = 250
STUCK_TIMEOUTS = 3
"""So many leader timeouts without a new final block, and others are asked."""


class Shell:
    """One node: its disk outlives every crash, all else is made anew by `start`."""

    def __init__(
        self,
        identity: Identity,
        *,
        world: World,
        network: Network,
        observer: Observer,
        genesis: Genesis,
        roster: Roster,
        origin: tuple[Ledger, BlockHeader],
        engine_type: type[Engine],
        checks_bodies: bool,
        report_ms: int,
    ) -> None:
        """`report_ms`: so long after an epoch with another committee began the node says that it holds its shards."""
        self.identity = identity
        self.number = identity.number
        self.node = roster.nodes[identity.number]
        self.roster = roster
        self.seated: Engine | None = None
        """The engine of an epoch in which this node has a seat."""
        self.quiet: Quiet | None = None
        """What binds the next engine."""
        self.world = world
        self.network = network
        self.observer = observer
        self.genesis = genesis
        self.disk = Disk()
        self.is_up = False
        self.life = 0
        """Counts starts: what an earlier life asked for is not for this one."""
        self.refused: dict[Reason, int] = {}
        self._origin = origin
        self._engine_type = engine_type
        self._checks_bodies = checks_bodies
        self.operator = Operator(self, report_ms=report_ms)
        self._committee = genesis.committee
        self.others: tuple[int, ...] = ()
        """The other members, by number."""

    # Life

    def start(self) -> None:
        """Boot from the disk."""
        assert not self.is_up
        self.is_up = True
        self.life += 1
        self.chain = Chain(
            self.genesis,
            self.disk,
            origin=self._origin,
            node=self.node,
            onion=self.operator.onion,
            sign=self.identity.sign,
            verify=self.identity.verify,
            clock_ms=self.clock_ms,
            tell=self._executed,
        )
        self._judging: dict[Digest, Judge] = {}
        self._building: Build | None = None
        self._final: deque[Finalized] = deque()
        """What the engine has handed on and is not executed yet, oldest first."""
        self._due_ms: int | None = None
        self._due_key: object = None
        self._timer_ms: int | None = None
        self._stuck_at = self.chain.head.height
        self._idle = 0
        """Looks since then that found no new final block."""
        self.seated = None
        self.quiet = Quiet() if self.disk.is_quiet else None
        self._renew(is_new_life=True)
        self.later(self.genesis.parameters.timeout_ms, self._watch_progress)

    def boot(self) -> None:
        """Start, unless the power fails again meanwhile."""
        self._guarded(self.start)

    def stop(self) -> None:
        """Cut the power."""
        if self.is_up:
            self.is_up = False
            self.disk.cut()
            self.world.note("down", self.number)
            self.observer.went_down(self)

    @property
    def index(self) -> int | None:
        """Its place in the committee; None without a seat."""
        return self.roster.index(self._committee, self.number)

    @property
    def engine(self) -> Engine:
        assert self.seated is not None, "a node without a seat has no engine"
        return self.seated

    def clock_ms(self) -> int:
        return self.genesis.time_ms + self.world.now_ms + self.identity.skew_ms

    def later(self, delay_ms: int, action: Callable[..., None], *arguments: Any) -> None:
        self.world.after(delay_ms, self._if_alive, self.life, action, arguments)

    def _if_alive(self, life: int, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if self.is_up and life == self.life:
            self._guarded(action, *arguments)

    def _guarded(self, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except PowerCut:
            self.stop()

    def _renew(self, *, is_new_life: bool = False) -> None:
        """Put a new engine in place of one whose epoch has ended, or that the chain has overtaken."""
        old, epoch = self.seated, self.chain.ledger.epoch
        if old is not None:
            self.quiet = old.quiet_next_epoch if old.epoch != epoch else old.quiet
        self._committee = self.chain.ledger.committee
        members = self.roster.numbers(self._committee)
        self.others = tuple(number for number in members if number != self.number)
        self.seated = self._make_engine() if self.number in members else None
        self._due_key = self._timer_ms = None
        self._due_ms = None
        self._building = None
        self._judging.clear()
        self._final.clear()
        if self.seated is None:
            return
        if is_new_life:
            for other in self.others:
                self.network.send(self.number, other, Ask(epoch, self.seated.view))
        self._perform(self.seated.start(self.clock_ms()))
        self._settle()

    def _make_engine(self) -> Engine:
        is_first = self.chain.head == self.chain.root_header
        row = None if is_first else self.disk.chain[-1]
        assert row is None or row.finality is not None
        return self._engine_type(
            chain_id=self.genesis.chain_id,
            committee=self._committee,
            root=self.chain.root_header,
            own=self.index,
            sign=self._sign,
            parameters=self.genesis.parameters,
            now_ms=self.clock_ms(),
            restored=self._restored(),
            finalized=None if row is None or row.finality is None else (row.block, row.finality.certificate),
            quiet=self.quiet,
            verify=self.identity.verify,
        )

    def _sign(self, message: bytes) -> Signature:
        self.observer.signed(self, message)
        return self.identity.sign(message)

    def _restored(self) -> list[SignedVote | VoteCertificate | Proposal]:
        epoch = self.chain.ledger.epoch
        restored: list[SignedVote | VoteCertificate | Proposal] = []
        for record in self.disk.log:
            match record:
                case SignedVote(vote) if vote.epoch == epoch:
                    restored.append(record)
                case VoteCertificate() if record.epoch == epoch:
                    restored.append(record)
                case Kept(proposal) if self.chain.is_ahead(proposal.block.header):
                    self.chain.candidates[proposal.block.hash] = record
                    restored.append(proposal)
                case _:
                    pass
        return restored

    # What others say

    def receive(self, sender: int, payload: Payload) -> None:
        if self.is_up:
            self._guarded(self._take, sender, payload)

    def _take(self, sender: int, payload: Payload) -> None:
        match payload:
            case Transactions(bodies):
                for signed in bodies:
                    self.submit(signed)
            case WantTransactions(hashes):
                found = tuple(body for tx_hash in hashes if (body := self.chain.body(tx_hash)) is not None)
                if found:
                    self.network.send(self.number, sender, Transactions(found))
            case WantBlocks(first):
                answer = self.chain.rows_from(first)
                if answer is not None:
                    self.network.send(self.number, sender, answer)
            case Blocks():
                self._catch_up(payload)
            case _ if self.seated is not None:
                index = self.roster.index(self._committee, sender)
                if index is not None:  # a stream of who has no seat is not listened to
                    self.feed(Heard(payload, index))
            case _:
                pass

    def submit(self, signed: SignedTransaction) -> None:
        """Take a transaction into the mempool."""
        transaction = signed.transaction
        if signed.hash in self.chain.mempool or transaction.nonce < self.chain.ledger.account(transaction.sender).nonce:
            return
        if self._checks_bodies:
            try:
                signed.verify(parameters=self.genesis.parameters)
            except Rejected:
                return
        self.chain.mempool[signed.hash] = signed
        self._retry_judging()
        self._settle()

    def greet(self, other: int) -> None:
        """Begin a stream to a member that has come up."""
        if self.is_up and self.seated is not None and other in self.others:
            self.network.send(self.number, other, Ask(self.chain.ledger.epoch, self.seated.view))

    def behind(self, member: int | None) -> None:
        """Ask somebody for final blocks: this member, or anybody that this node has heard of."""
        asked = self.world.random.choice(self._known()) if member is None else self._number(member)
        self.network.send(self.number, asked, WantBlocks(self.chain.head.height + 1))

    def _known(self) -> list[int]:
        """Return who may be asked for what anybody may give: all of this committee, the next and the first."""
        committees = (self._committee, self.chain.ledger.next_committee, self.genesis.committee)
        numbers = {number for seated in committees if seated is not None for number in self.roster.numbers(seated)}
        return sorted(numbers - {self.number})

    def _number(self, member: int) -> int:
        return self.roster.number(self._committee, member)

    def _watch_progress(self) -> None:
        """Ask around when nothing has become final for a while: sooner without a seat, from when it is lost on."""
        height = self.chain.head.height
        self._idle = self._idle + 1 if height == self._stuck_at else 0
        self._stuck_at = height
        if self._idle >= (1 if self.seated is None else STUCK_TIMEOUTS):
            self._idle = 0
            self.behind(None)
        self.later(self.genesis.parameters.timeout_ms, self._watch_progress)

    # The engine

    def feed(self, item: Input) -> None:
        """Give the engine one input and perform what it wants."""
        assert self.seated is not None
        try:
            effects = self.engine.handle(self.clock_ms(), item)
        except Rejected as fault:
            self.refuse(fault)
            if isinstance(item, Heard) and self._speaks_of_later(item.message, fault.reason):
                self.behind(item.sender)
            return
        if effects:
            self._perform(effects)
        self._settle()

    def refuse(self, fault: Rejected) -> None:
        """Count what broke a rule."""
        self.refused[fault.reason] = self.refused.get(fault.reason, 0) + 1

    def _speaks_of_later(self, message: Message, reason: Reason) -> bool:
        if reason not in (Reason.WRONG_EPOCH, Reason.TOO_FAR_AHEAD):
            return False
        match message:
            case SignedVote(vote):
                return vote.epoch > self.chain.ledger.epoch or vote.view > self.engine.view
            case VoteCertificate():
                return message.epoch > self.chain.ledger.epoch
            case Proposal(block):
                return block.header.epoch > self.chain.ledger.epoch
            case _:
                return False

    def _settle(self) -> None:
        """Set the timer, and say anew from when on a block is wanted, where the engine's answer has changed."""
        engine = self.seated
        if engine is None:
            return
        tip = engine.tip
        key = (tip, len(self.chain.mempool), self.chain.head.height)
        if key != self._due_key:
            self._due_key = key
            due = self.chain.due_ms(tip)
            if due != self._due_ms:
                self._due_ms = due
                self._perform(engine.handle(self.clock_ms(), Due(due)))
            if self._building is not None:
                self.later(0, self._try_building)
        deadline = engine.deadline()
        if deadline is not None and (self._timer_ms is None or deadline < self._timer_ms):
            self._timer_ms = deadline
            self.later(max(0, deadline - self.clock_ms()), self._wake, deadline)

    def _wake(self, planned_ms: int) -> None:
        if self._timer_ms != planned_ms:
            return
        self._timer_ms = None
        if self.seated is None:
            return
        deadline = self.engine.deadline()
        if deadline is not None and deadline <= self.clock_ms():
            self.feed(TimePassed())
            after = self.engine.deadline()
            assert after is None or after > self.clock_ms() or after != deadline, "a deadline that time cannot pass"
        else:
            self._settle()

    def _perform(self, effects: Sequence[Effect]) -> None:
        self._log(effects)
        for effect in effects:
            match effect:
                case Persist() | Keep():
                    pass
                case Broadcast(message):
                    self.observer.sent(self, message)
                    for other in self.others:
                        self.network.send(self.number, other, message)
                case Send(member, message):
                    self.observer.sent(self, message)
                    self.network.send(self.number, self._number(member), message)
                case Build():
                    self._building = effect
                    self.later(0, self._try_building)
                case Judge():
                    self._judging[effect.proposal.block.hash] = effect
                    self.later(self.world.random.randrange(8), self._judge, effect)
                    self.later(JUDGE_MS_MAX, self._end_judging, effect)
                case Finalized(finality=finality, blocks=blocks):
                    self.observer.finalized(self, blocks, finality)
                    self._final.append(effect)
                    if len(self._final) == 1:
                        self.later(self.world.random.randrange(8), self._execute_final)
                case Missing():
                    self.behind(None)
                case Guilty():
                    self.observer.accused(self, effect)
                case Silenced():
                    raise AssertionError(f"node {self.number} fell silent: {effect.reason}")
        if self.seated is not None and self.seated.quiet is None:
            self.disk.is_quiet = False

    def _log(self, effects: Sequence[Effect]) -> None:
        """Make durable what binds, before anything of the turn is sent."""
        disk, binds = self.disk, False
        for effect in effects:
            match effect:
                case Persist(record):
                    disk.write(record)
                    if isinstance(record, VoteCertificate):
                        self.observer.held(self, record)
                    else:
                        binds = True
                case Keep(proposal):
                    disk.write(Kept(proposal, self.chain.candidates[proposal.block.hash].transactions))
                    binds = True
                case _:
                    pass
        if binds:
            self.world.note("sync", self.number, disk.waiting)
            disk.sync()

    # Blocks

    def _try_building(self) -> None:
        wish = self._building
        if wish is None:
            return
        if self.engine.view != wish.view:
            self._building = None
            return
        wait_ms = self.chain.due_ms(wish.parent) - self.clock_ms()
        if wait_ms > 0:
            self.later(wait_ms, self._try_building)
            return
        if self.chain.ledger.height < wish.parent.executed_height:
            return
        self._building = None
        block, bodies = self.chain.make_block(wish.view, wish.parent, is_empty=wish.parent_is_boundary)
        self.chain.candidates[block.hash] = Kept(Proposal(block, None), bodies)
        self.feed(Built(wish.view, block))

    def _judge(self, wish: Judge) -> None:
        """Answer, or wait for the state and the bodies."""
        block = wish.proposal.block
        if self._judging.get(block.hash) is not wish:
            return
        header = block.header
        if header.time_ms - self.clock_ms() > AHEAD_MS_MAX:
            self._answer(wish, ok=False)
            return
        found = {tx_hash: self.chain.body(tx_hash) for tx_hash in block.transactions}
        missing = tuple(tx_hash for tx_hash, body in found.items() if body is None)
        if missing:
            asked = self.world.random.choice(self.others) if wish.sender is None else self._number(wish.sender)
            self.network.send(self.number, asked, WantTransactions(missing))
            self.later(PULL_MS, self._judge, wish)
            return
        if self.chain.ledger.height < header.executed_height:
            return
        is_good = (
            self.chain.is_true(header)
            and len(found) == len(block.transactions)
            and all(body is not None and body.transaction.expiry_height > header.height for body in found.values())
        )
        if is_good:
            bodies = tuple(body for body in found.values() if body is not None)
            self.chain.candidates[block.hash] = Kept(wish.proposal, bodies)
        self._answer(wish, ok=is_good)

    def _answer(self, wish: Judge, *, ok: bool) -> None:
        block_hash = wish.proposal.block.hash
        del self._judging[block_hash]
        self.world.note("judged", self.number, wish.proposal.block.header.view, ok)
        self.feed(Judged(block_hash, ok))

    def _end_judging(self, wish: Judge) -> None:
        if self._judging.get(wish.proposal.block.hash) is wish:
            self._answer(wish, ok=False)

    def _retry_judging(self) -> None:
        for wish in list(self._judging.values()):
            self.later(0, self._judge, wish)

    # What is final

    def _execute_final(self) -> None:
        """Execute what is final, in order, having asked everybody for bodies that are not here.

        Everybody, for nobody else may know that these blocks are final, and all who voted for them hold their bodies.
        """
        while self._final:
            effect = self._final[0]
            if effect.blocks[-1].header.height > self.chain.head.height:
                rows, missing = self.chain.collect(effect.blocks)
                if missing:
                    for other in self.others:
                        self.network.send(self.number, other, WantTransactions(missing))
                    self.later(PULL_MS, self._execute_final)
                    return
                if self._apply(rows, effect.finality):
                    self._renew()
                    return
            self._final.popleft()

    def _apply(self, rows: Sequence[Row], finality: Finality) -> bool:
        epoch_ended = self.chain.apply(rows, finality)
        self._retry_judging()
        self.operator.consider_reporting()
        return epoch_ended

    def _executed(self, header: BlockHeader, ledger: Ledger) -> None:
        self.world.note("executed", self.number, header.height, ledger.root.hex()[:8])
        self.observer.executed(self, header, ledger)

    def _catch_up(self, answer: Blocks) -> None:
        """Execute blocks that another has; nothing of it is believed but what the finality proves."""
        rows = [row for row in answer.rows if row[0].header.height > self.chain.head.height]
        if not rows:
            return
        try:
            self.chain.verify_blocks(rows, answer.finality)
        except Rejected as fault:
            self.refuse(fault)
            return
        self.world.note("caught up", self.number, rows[-1][0].header.height)
        self.observer.finalized(self, [block for block, _ in rows], answer.finality)
        epoch_ended = self._apply(rows, answer.finality)
        if epoch_ended or (self.seated is not None and self.chain.head.height > self.seated.final_height):
            self._renew()
        if epoch_ended or len(answer.rows) >= BLOCKS_MAX:
            self.behind(None)
