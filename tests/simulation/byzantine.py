"""The adversary: holds the keys of members with up to f shards, hears everything at once, says anything to anyone.

It cannot forge an honest member's signature under this network's chain ID; of another network with the same members it
has as many as it likes. A node of its own that has lost its seat goes on signing, under the index that it last had. It
equivocates as a leader and as a voter, skips views without right, withholds, splits votes and certificates between
halves, replays what it heard, old epochs included, and lies about heights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from economics.block import (
    AHEAD_MS_MAX,
    Block,
    BlockHeader,
    Finality,
    Proposal,
    leader_of,
    transactions_root,
)
from economics.committee import Committee
from economics.crypto import DIGEST_BYTES, Digest, Level, Signature, digest
from economics.effects import Ask, Message
from economics.genesis import Genesis
from economics.votes import ZERO_HASH, Kind, SignedVote, Vote, VoteCertificate
from tests.simulation.chain import Blocks
from tests.simulation.invariants import vote_bytes
from tests.simulation.keys import Roster, Signer
from tests.simulation.network import Network
from tests.simulation.payloads import Payload, Transactions, WantBlocks, WantTransactions
from tests.simulation.shell import Shell
from tests.simulation.world import World

ARCHIVE_MAX = 400
OTHER_CHAIN = digest(Level.GENESIS, b"another network")
"""The chain ID of a network with the same members."""
Slot = tuple[int, int]
"""(epoch, view)"""
Statement = tuple[int, int, Kind, Digest]
"""(epoch, view, kind, block hash)"""


@dataclass(frozen=True, slots=True)
class Style:
    """How often in 100 the adversary does each thing when there is an occasion."""

    vote: int = 70
    """Give a member's vote to some: for any block, and for none."""
    lead: int = 90
    """Propose in its view; else withhold."""
    split: int = 50
    """Tell two fixed halves of the honest members different things about a view."""
    spread: int = 40
    """Give a certificate to some as soon as one is possible."""
    replay: int = 4
    lie: int = 6
    serve: int = 50
    """Answer requests."""
    turn: int = 0
    """Lie about the end of the epoch and who comes next."""


@dataclass(slots=True)
class Adversary:
    """All Byzantine members, in one mind."""

    world: World
    network: Network
    genesis: Genesis
    roster: Roster
    committees: Mapping[int, Committee]
    """Of each epoch, as far as anybody knows."""
    signers: Mapping[int, Signer]
    """Of its own nodes, by number."""
    honest: Mapping[int, Shell]
    style: Style
    tempo_ms: int
    """It acts within about so long of an occasion."""
    is_active: bool = True
    equivocations: int = 0
    _slot: Slot = (0, 0)
    _archive: list[Message] = field(default_factory=list)
    _tallies: dict[Statement, dict[int, Signature]] = field(default_factory=dict)
    _certificates: dict[Statement, VoteCertificate] = field(default_factory=dict)
    _blocks: dict[Digest, Block] = field(default_factory=dict)
    _halves: dict[Slot, frozenset[int]] = field(default_factory=dict)
    _indices: dict[int, int] = field(default_factory=dict)
    """Own node -> the last index that it has had in a committee."""
    _observer: Shell = field(init=False)
    """The honest node that is furthest: all it knows is public."""

    def __post_init__(self) -> None:
        self._observer = next(iter(self.honest.values()))

    # What it hears

    def overhear(self, sender: int, message: Message) -> None:
        """Take in what an honest member says to anybody."""
        if not self.is_active or not self.signers:
            return
        if len(self._archive) < ARCHIVE_MAX or not isinstance(message, SignedVote):
            self._archive.append(message)
        match message:
            case SignedVote(vote):
                self._enter((vote.epoch, vote.view))
                self._count(vote, message.signature)
            case VoteCertificate():
                self._certificates.setdefault(_statement(message), message)
            case Proposal(block):
                self._meet(block)
            case Ask():
                pass
        self._chatter()

    def receive(self, sender: int, receiver: int, payload: Payload) -> None:
        """Answer a request to one of its members, perhaps truthfully."""
        if not self._chance(self.style.serve):
            return
        match payload:
            case WantTransactions(hashes):
                waiting = self._observer.chain.mempool
                bodies = tuple(waiting[tx_hash] for tx_hash in hashes if tx_hash in waiting)
                self.network.send(receiver, sender, Transactions(bodies))
            case WantBlocks(first):
                self._serve_blocks(sender, receiver, first)
            case _:
                pass

    # Chance

    def _chance(self, percent: int) -> bool:
        return self.world.random.random() * 100 < percent

    def _some(self, slot: Slot) -> Sequence[int]:
        """Return whom to tell: one of the halves of this view, anybody, or everybody."""
        everybody = list(self.honest)
        if self._chance(self.style.split):
            half = self._half(slot)
            side = self.world.random.random() < 0.5
            return [index for index in everybody if (index in half) == side]
        if self._chance(30):
            return everybody
        return [index for index in everybody if self.world.random.random() < 0.5]

    def _half(self, slot: Slot) -> frozenset[int]:
        if slot not in self._halves:
            self._halves[slot] = frozenset(index for index in self.honest if self.world.random.random() < 0.5)
        return self._halves[slot]

    def _soon(self, action: Callable[..., None], *arguments: object) -> None:
        self.world.after(int(self.world.random.random() ** 2 * self.tempo_ms), self._act, action, arguments)

    def _act(self, action: Callable[..., None], arguments: tuple[object, ...]) -> None:
        if self.is_active:
            action(*arguments)

    def _tell(self, receivers: Sequence[int], message: Message, sender: int | None = None) -> None:
        source = self._any_member() if sender is None else sender
        for receiver in receivers:
            self.network.send(source, receiver, message)

    def _any_member(self) -> int:
        return self.world.random.choice(list(self.signers))

    # Votes

    def _committee(self, epoch: int) -> Committee:
        """Return an epoch's committee, or the last one that is known, for epochs nobody has heard of."""
        return self.committees[min(epoch, max(self.committees))]

    def _index(self, number: int, epoch: int) -> int:
        """Return the index under which one of its nodes signs; without a seat the last that it had, if any."""
        index = self.roster.index(self._committee(epoch), number)
        if index is not None:
            self._indices[number] = index
        return self._indices.get(number, 0)

    def _seated(self, epoch: int) -> dict[int, int]:
        """Return index and number of those of its nodes that have a seat."""
        found = {self.roster.index(self._committee(epoch), number): number for number in self.signers}
        return {index: number for index, number in found.items() if index is not None}

    def _sign(self, statement: Statement, number: int) -> SignedVote:
        epoch, view, kind, block_hash = statement
        vote = Vote(kind, epoch, view, block_hash, self._index(number, epoch))
        return SignedVote(vote, self.signers[number].sign(vote_bytes(vote, self.genesis.chain_id)))

    def _count(self, vote: Vote, signature: Signature) -> None:
        statement = (vote.epoch, vote.view, vote.kind, vote.block_hash)
        tally = self._tallies.setdefault(statement, {})
        tally[vote.signer] = signature
        if statement not in self._certificates:
            self._combine(statement, tally, vote)

    def _combine(self, statement: Statement, tally: dict[int, Signature], vote: Vote) -> None:
        committee, seated = self._committee(vote.epoch), self._seated(vote.epoch)
        if committee.weight({*tally, *seated}) < committee.quorum:
            return
        own = {index: self._sign(statement, number).signature for index, number in seated.items()}
        certificate = VoteCertificate.build(vote, committee=committee, signatures={**own, **tally})
        if certificate is None:
            return
        self._certificates[statement] = certificate
        if self._chance(self.style.spread):
            self._soon(self._spread, certificate)

    def _spread(self, certificate: VoteCertificate) -> None:
        self._tell(self._some((certificate.epoch, certificate.view)), certificate)

    def _enter(self, slot: Slot) -> None:
        """A view has begun somewhere."""
        if slot <= self._slot:
            return
        self._slot = slot
        self._observer = max(
            self.honest.values(), key=lambda shell: (shell.is_up, shell.chain.head.height, -shell.number)
        )
        for signer in self.signers:
            if self._chance(self.style.vote):
                self._soon(self._cast, signer, (*slot, Kind.NULLIFY, ZERO_HASH))
        root = self._root(slot[0])
        if root is None:
            return
        for view in (slot[1], slot[1] + 1):
            committee = self._committee(slot[0])
            leader = self.roster.number(committee, leader_of(view, root_hash=root.hash, committee=committee))
            if leader in self.signers and self._chance(self.style.lead):
                self._soon(self._lead, leader, (slot[0], view))

    def _root(self, epoch: int) -> BlockHeader | None:
        return next(
            (shell.chain.root_header for shell in self.honest.values() if shell.chain.ledger.epoch == epoch), None
        )

    def _meet(self, block: Block) -> None:
        header = block.header
        if block.hash in self._blocks:
            return
        self._blocks[block.hash] = block
        slot = (header.epoch, header.view)
        for signer in self.signers:
            for kind in (Kind.NOTARIZE, Kind.FINALIZE):
                if self._chance(self.style.vote):
                    self._soon(self._cast, signer, (*slot, kind, block.hash))

    def _cast(self, signer: int, statement: Statement) -> None:
        self._tell(self._some(statement[:2]), self._sign(statement, signer), signer)

    # Proposals

    def _lead(self, leader: int, slot: Slot) -> None:
        """Propose one or two blocks, of which at least one is often against the rules."""
        everybody = list(self.honest)
        half = self._half(slot)
        first = self._make(leader, slot)
        if first is None:
            return
        self._meet(first.block)
        if self._chance(35):
            self._tell(everybody, first, leader)
            return
        second = self._make(leader, slot)
        self._tell([index for index in everybody if index in half], first, leader)
        if second is not None and second.block != first.block:
            self._meet(second.block)
            self.equivocations += 1
            self._tell([index for index in everybody if index not in half], second, leader)
            if self._chance(30):
                self._tell(everybody, second, leader)

    def _make(self, leader: int, slot: Slot) -> Proposal | None:
        parent = self._parent(slot)
        if parent is None:
            return None
        header, certificate = parent
        block = self._block(leader, slot, header)
        return None if block is None else Proposal(block, certificate)

    def _parent(self, slot: Slot) -> tuple[BlockHeader, VoteCertificate | None] | None:
        """Return something to build on: the newest, an older one, or one that no quorum stands behind."""
        epoch, view = slot
        root = self._root(epoch)
        if root is None:
            return None
        options: list[tuple[BlockHeader, VoteCertificate | None]] = [(root, None)]
        for (at_epoch, at_view, kind, block_hash), certificate in self._certificates.items():
            if (at_epoch, kind) == (epoch, Kind.NOTARIZE) and at_view < view and block_hash in self._blocks:
                options.append((self._blocks[block_hash].header, certificate))
        options.sort(key=lambda option: (option[0].height, option[0].view))
        roll = self.world.random.random()
        if roll < 0.5:
            return options[-1]
        if roll < 0.75:
            return self.world.random.choice(options)
        return self._unproven(slot) or options[-1]

    def _unproven(self, slot: Slot) -> tuple[BlockHeader, VoteCertificate | None] | None:
        """Return a block that was proposed only, with a certificate that proves nothing."""
        blocks = [block for block in self._blocks.values() if block.header.epoch == slot[0]]
        blocks = [block for block in blocks if block.header.view < slot[1]]
        if not blocks:
            return None
        block = self.world.random.choice(blocks[-4:])
        return block.header, self._forge((slot[0], block.header.view, Kind.NOTARIZE, block.hash))

    def _block(self, leader: int, slot: Slot, parent: BlockHeader) -> Block | None:
        """Return a block on `parent` with the state root of an honest member, sometimes with one thing wrong."""
        shell, random = self._observer, self.world.random
        root = self._root(slot[0])
        if root is None or shell.chain.ledger.epoch != slot[0] or parent.executed_height >= len(shell.chain.roots):
            return None
        executed = root.height if parent == root else min(parent.height, shell.chain.head.height)
        executed = max(executed, parent.executed_height)
        is_tail = parent != root and shell.chain.ends_epoch(parent)
        named = ZERO_HASH if is_tail else shell.chain.nexts[executed]
        now_ms = shell.clock_ms() + random.randrange(3)
        header = BlockHeader(
            chain_id=self.genesis.chain_id,
            epoch=slot[0],
            view=slot[1],
            height=parent.height + 1,
            parent_view=0 if parent == root else parent.view,
            parent_hash=parent.hash,
            time_ms=shell.chain.date(now_ms, parent, names_next=named != ZERO_HASH),
            leader=self._index(leader, slot[0]),
            transactions_root=transactions_root(()),
            transactions_count=0,
            executed_height=executed,
            state_root=shell.chain.roots[executed],
            committee_hash=shell.chain.ledger.committee.hash,
            next_committee_hash=named,
            reveal=random.randbytes(DIGEST_BYTES),
        )
        hashes: tuple[Digest, ...] = ()
        if self._chance(self.style.turn):
            header = self._turn(header)
        elif self._chance(20):
            header, hashes = self._spoil(header)
        return Block(header, self.signers[leader].sign(header.encode()), hashes)

    def _turn(self, header: BlockHeader) -> BlockHeader:
        """Return it with another name of the next committee, or none, or dated at the end of the epoch or before it."""
        random, end_ms = self.world.random, self._end_ms(header)
        wrong = digest(Level.MESSAGE, random.randbytes(8))
        turned = [replace(header, next_committee_hash=wrong)]
        if header.next_committee_hash != ZERO_HASH:
            turned.append(replace(header, next_committee_hash=ZERO_HASH))
        if end_ms - self._observer.clock_ms() <= AHEAD_MS_MAX:
            late = replace(header, time_ms=max(header.time_ms, end_ms))
            turned += [late, late, replace(header, time_ms=end_ms - 1), replace(late, next_committee_hash=wrong)]
        return random.choice(turned)

    def _end_ms(self, header: BlockHeader) -> int:
        """Return when the header's epoch ends."""
        root = self._root(header.epoch)
        assert root is not None
        return root.time_ms + self.genesis.parameters.epoch_ms

    def _spoil(self, header: BlockHeader) -> tuple[BlockHeader, tuple[Digest, ...]]:
        wrong = digest(Level.MESSAGE, self.world.random.randbytes(8))
        spoilt = [
            replace(header, state_root=wrong),
            replace(header, time_ms=header.time_ms + 1_000_000),
            replace(header, time_ms=max(0, header.time_ms - 1_000_000)),
            replace(header, height=header.height + 1),
            replace(header, committee_hash=wrong),
            replace(header, parent_hash=wrong),
            replace(header, executed_height=header.height + 3),
            replace(header, transactions_root=transactions_root((wrong,)), transactions_count=1),
        ]
        chosen = self.world.random.choice(spoilt)
        return chosen, (wrong,) if chosen.transactions_count else ()

    # Lies

    def _chatter(self) -> None:
        if self._archive and self._chance(self.style.replay):
            self._soon(self._replay)
        if self._chance(self.style.lie):
            self._soon(self._lie)

    def _replay(self) -> None:
        message = self.world.random.choice(self._archive)
        self._tell(self._some(self._slot), message)

    def _lie(self) -> None:
        random, (epoch, view) = self.world.random, self._slot
        view = max(1, view + random.choice((-2, -1, 0, 0, 0, 0, 1, 5)))
        blocks = [block for block in self._blocks.values() if (block.header.epoch, block.header.view) == (epoch, view)]
        if blocks and random.random() < 0.6:
            kind = random.choice((Kind.NOTARIZE, Kind.FINALIZE))
            statement: Statement = (epoch, view, kind, random.choice(blocks).hash)
        else:
            statement = (epoch, view, Kind.NULLIFY, ZERO_HASH)
        roll = random.random()
        if roll < 0.4:
            self._tell(self._some(self._slot), self._forge(statement))
        elif roll < 0.6:
            self._impersonate(statement)
        elif roll < 0.75:
            self._tell(self._some(self._slot), Ask(epoch + random.randrange(2), view + random.randrange(1 << 20)))
        elif roll < 0.9:
            self._look_ahead(statement)
        else:
            self._mislabel(statement)

    def _forge(self, statement: Statement) -> VoteCertificate:
        """Return a certificate without a quorum: too few, one twice, made-up signatures, or another network's."""
        epoch, view, kind, block_hash = statement
        committee = self._committee(epoch)
        votes = dict(self._tallies.get(statement, {}))
        seated = self._seated(epoch)
        votes.update({index: self._sign(statement, number).signature for index, number in seated.items()})
        items = sorted(votes.items())
        roll = self.world.random.randrange(4)
        if roll == 0 and committee.weight(votes) < committee.quorum:
            items = sorted([*items, *items, *items])[: len(committee.members)]
        elif roll == 1:
            rest = [index for index in range(len(committee.members)) if index not in votes]
            items = sorted([*items, *((index, Signature(bytes(64))) for index in rest)])
            items = items[: _enough(committee, items)]
        elif roll == 2:
            items = [(index, self._foreign(statement, index)) for index in range(len(committee.members))]
            items = items[: _enough(committee, items)]
        return VoteCertificate(kind, epoch, view, block_hash, tuple(items))

    def _foreign(self, statement: Statement, signer: int) -> Signature:
        """Return what any member signed for the same view of another network."""
        epoch, view, kind, block_hash = statement
        number = self.roster.number(self._committee(epoch), signer)
        return self.roster.signers[number].sign(vote_bytes(Vote(kind, epoch, view, block_hash, signer), OTHER_CHAIN))

    def _impersonate(self, statement: Statement) -> None:
        """Vote in the name of others: with own signatures, made-up ones, or those of another network."""
        epoch, view, kind, block_hash = statement
        receivers = self._some(self._slot)
        how = self.world.random.randrange(3)
        for index, number in enumerate(self.roster.numbers(self._committee(epoch))):
            if number in self.signers:
                continue
            vote = Vote(kind, epoch, view, block_hash, index)
            message = vote_bytes(vote, self.genesis.chain_id)
            signature = (
                self._foreign(statement, index)
                if how == 0
                else self.signers[self._any_member()].sign(message)
                if how == 1
                else Signature(bytes(64))
            )
            self._tell(receivers, SignedVote(vote, signature))

    def _look_ahead(self, statement: Statement) -> None:
        """Vote for views that nobody has reached, and for members that do not exist."""
        epoch, view, kind, block_hash = statement
        signer = self._any_member()
        for step in (1, 3, 100, 1 << 40):
            self._tell(self._some(self._slot), self._sign((epoch, view + step, kind, block_hash), signer))
        nobody = Vote(kind, epoch, view, block_hash, len(self._committee(epoch).members))
        self._tell(self._some(self._slot), SignedVote(nobody, Signature(bytes(64))))

    def _mislabel(self, statement: Statement) -> None:
        """Say of honest signatures that they are of this epoch, of another kind or of another block."""
        epoch, view, kind, block_hash = statement
        votes = [item for item in self._archive if isinstance(item, SignedVote)]
        for signed in self.world.random.sample(votes, min(8, len(votes))):
            claimed = replace(signed.vote, epoch=epoch, view=view, kind=kind, block_hash=block_hash)
            self._tell(self._some(self._slot), SignedVote(claimed, signed.signature))

    def _serve_blocks(self, sender: int, receiver: int, first: int) -> None:
        """Claim a height that nobody has reached."""
        shell = self._observer
        parent = shell.chain.head
        if parent.height + 1 < first:
            return
        fake = self._block(receiver, (shell.chain.ledger.epoch, max(self._slot[1], parent.view) + 1), parent)
        if fake is None:
            return
        header = fake.header
        forged = self._forge((header.epoch, header.view, Kind.FINALIZE, fake.hash))
        rows = [(row.block, row.transactions) for row in shell.disk.chain[first - 1 :]]
        self.network.send(receiver, sender, Blocks((*rows, (fake, ())), Finality(forged)))


def _enough(committee: Committee, items: Sequence[tuple[int, Signature]]) -> int:
    """Return how many of these, from the first on, weigh as much as a quorum."""
    weight = 0
    for count, (index, _) in enumerate(items, start=1):
        weight += committee.members[index].shards
        if weight >= committee.quorum:
            return count
    return len(items)


def _statement(certificate: VoteCertificate) -> Statement:
    return (certificate.epoch, certificate.view, certificate.kind, certificate.block_hash)
