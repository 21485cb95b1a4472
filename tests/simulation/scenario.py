"""From a seed to everything that will happen: nodes and weights, faults, crashes, parameters, the adversary's style.

Two acts. In the first the adversary rules: wires lose, repeat, delay and part, power fails at any record, up to f of
the weight lies. In the second it has stopped ruling the wires: everything arrives soon, everybody is up again.
"""

from dataclasses import dataclass, replace
from enum import Enum, auto
from random import Random

from economics.genesis import Parameters
from economics.geometry import quorum
from tests.simulation.byzantine import Style
from tests.simulation.disk import Fuse
from tests.simulation.network import Weather

SIZES = (4, 7, 10, 31)
SIZE_WEIGHTS = (45, 30, 20, 5)
"""How often each number of members is drawn: small ones find most faults, large ones those of counting."""
REAL_PERCENT = 5
"""Seeds with Ed25519 signatures, all messages in their wire encoding, and evidence that goes on chain."""
CALM = Weather(delay_ms=(2, 40))
LONG_EPOCH_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Outage:
    """A member is off from a time on, for so long."""

    at_ms: int
    member: int
    down_ms: int


class Forgets(Enum):
    """What a disk that is replaced lacks."""

    ALL = auto()
    HALF = auto()
    EPOCH = auto()
    """All since shortly before the epoch began."""


@dataclass(frozen=True, slots=True)
class Loss:
    """With its first vote from a view on a node's disk is lost; it goes on with an older state of it, or a new one."""

    node: int
    slot: tuple[int, int]
    """(epoch, view)"""
    down_ms: int
    forgets: Forgets


class MoveKind(Enum):
    """What the staker does."""

    JOIN = auto()
    """Registers a node and stakes on it."""
    PUT = auto()
    TAKE = auto()
    """Takes some of the first stake back."""
    LEAVE = auto()
    """Takes all back and has the node offer nothing."""


@dataclass(frozen=True, slots=True)
class Move:
    """Stake goes to a node or comes back from it, as much as so many percent of a shard's at genesis."""

    at_ms: int
    kind: MoveKind
    node: int
    shards_percent: int = 0


@dataclass(frozen=True, slots=True)
class Partition:
    """The members are on sides that hear nothing of each other, from a time on, for so long."""

    at_ms: int
    length_ms: int
    sides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scenario:
    """All of a seed's choices but those made while it runs, which come from the same seed."""

    seed: int
    shards: tuple[int, ...]
    """Of each first member."""
    standby: int = 0
    """Nodes without a seat at first; their numbers follow those of the members."""
    byzantine: frozenset[int] = frozenset()
    dead: frozenset[int] = frozenset()
    """Never start; together with the Byzantine members and those that lose their disk they are at most f by weight."""
    is_real: bool = False
    parameters: Parameters = Parameters(timeout_ms=500, heartbeat_ms=1_000, block_interval_ms=50)  # noqa: RUF009
    weather: Weather = CALM
    calm: Weather = CALM
    slow_ms: tuple[tuple[int, int], ...] = ()
    skews_ms: tuple[int, ...] = ()
    outages: tuple[Outage, ...] = ()
    fuses: tuple[tuple[int, Fuse], ...] = ()
    all_fall: bool = False
    """The first power cut of a fuse takes everybody down at once."""
    partitions: tuple[Partition, ...] = ()
    moves: tuple[Move, ...] = ()
    losses: tuple[Loss, ...] = ()
    report_ms: int = 0
    """So long after another committee has begun its members say that they hold their shards."""
    epochs: int = 0
    """The second act goes on for so many epochs; 0: the committees stay as they are."""
    style: Style = Style()  # noqa: RUF009
    tempo_ms: int = 200
    stays_active: bool = False
    """The Byzantine members go on in the second act."""
    transactions: int = 6
    views: int = 6
    """The first act ends when so many views have begun, or so much time has passed."""
    chaos_ms: int = 20_000
    calm_ms: int = 3_600_000
    """L1: the second act lasts at most so long; a view of the longest backoff is a minute."""
    down_ms: int = 500
    """A member whose fuse blew is off for about so long."""

    @property
    def nodes(self) -> int:
        return len(self.shards) + self.standby

    @property
    def faulty(self) -> frozenset[int]:
        return self.byzantine | self.dead

    @property
    def unreliable(self) -> frozenset[int]:
        """Who may not have more than f shards of any committee: a node that has lost its disk is silent for long."""
        return self.faulty | {loss.node for loss in self.losses}


def draw(seed: int, members: int | None = None) -> Scenario:
    """Return the scenario of a seed, with this many members if that is said."""
    random = Random(seed)
    drawn = random.choices(SIZES, SIZE_WEIGHTS)[0]
    size = drawn if members is None else members
    shards = _draw_shards(random, size)
    byzantine, dead = _draw_faulty(random, shards)
    timeout_ms = random.choice((120, 250, 500, 1_000))
    views = random.randrange(2, 5) if size > 10 else random.randrange(3, 9)
    chaos_ms = timeout_ms * views * 6
    is_harsh = random.random() < 0.6
    return Scenario(
        seed=seed,
        shards=shards,
        byzantine=byzantine,
        dead=dead,
        is_real=random.randrange(100) < REAL_PERCENT,
        parameters=Parameters(
            timeout_ms=timeout_ms,
            block_interval_ms=random.choice((10, 50, 100)),
            heartbeat_ms=random.choice((200, 600, 1_500)),
            epoch_ms=random.choice((LONG_EPOCH_MS, LONG_EPOCH_MS, timeout_ms * 2, timeout_ms * 5)),
        ),
        weather=_draw_weather(random, timeout_ms, is_harsh=is_harsh),
        calm=Weather(delay_ms=(2, 40), loss=random.choice((0, 0, 0, 5))),
        slow_ms=tuple((random.randrange(size), random.randrange(2 * timeout_ms)) for _ in range(random.randrange(3))),
        skews_ms=tuple(random.randrange(-200, 200) if random.random() < 0.3 else 0 for _ in range(size)),
        outages=_draw_outages(random, size, chaos_ms),
        fuses=_draw_fuses(random, size),
        all_fall=random.random() < 0.1,
        partitions=_draw_partitions(random, size, chaos_ms),
        style=_draw_style(random),
        tempo_ms=random.choice((timeout_ms // 4, timeout_ms, timeout_ms * 2)),
        stays_active=random.random() < 0.5,
        transactions=random.randrange(0, 9),
        views=views,
        chaos_ms=chaos_ms,
        down_ms=random.choice((20, 300, 3 * timeout_ms)),
    )


# Scenarios in which the committees change


def draw_mixed(seed: int) -> Scenario:
    """Return a scenario of several epochs in which stake moves, and nodes join, leave and lose their disks."""
    random = Random(f"mixed {seed}")
    members = random.choice((4, 4, 5, 6, 7))
    shards = _draw_shards(random, members)
    while max(shards) > sum(shards) - quorum(sum(shards)):  # no first member has more than the cap lets it keep
        shards = _draw_shards(random, members)
    standby = random.randrange(1, 4)
    size = len(shards) + standby
    faulty = sorted(frozenset.union(*_draw_faulty(random, shards)))
    roles = dict(zip(faulty, random.choices(("byzantine", "dead", "lost"), (45, 10, 45), k=len(faulty)), strict=True))
    byzantine, dead, lost = (
        frozenset(number for number in faulty if roles[number] == role) for role in ("byzantine", "dead", "lost")
    )
    timeout_ms = random.choice((120, 250, 500))
    epoch_ms = timeout_ms * random.choice((4, 8, 16)) if random.random() < 0.9 else random.choice((1, 2, 4, 50))
    chaos_ms = max(epoch_ms, 5 * timeout_ms) * random.choice((2, 3, 4))
    scenario = Scenario(
        seed=seed,
        shards=shards,
        standby=standby,
        byzantine=byzantine,
        dead=dead,
        is_real=random.randrange(100) < REAL_PERCENT,
        parameters=Parameters(
            timeout_ms=timeout_ms,
            block_interval_ms=random.choice((10, 50, 100)),
            heartbeat_ms=random.choice((100, 200, 600)),
            epoch_ms=epoch_ms,
            challenge_rounds=random.choice((0, 4)),
        ),
        weather=_draw_weather(random, timeout_ms, is_harsh=random.random() < 0.4),
        calm=Weather(delay_ms=(2, 40), loss=random.choice((0, 0, 0, 5))),
        skews_ms=tuple(random.randrange(-200, 200) if random.random() < 0.3 else 0 for _ in range(size)),
        outages=(*_draw_outages(random, size, chaos_ms), *_draw_turns(random, size, epoch_ms, chaos_ms)),
        fuses=tuple(
            (number, replace(fuse, record=random.randrange(1, 150))) for number, fuse in _draw_fuses(random, size)
        ),
        all_fall=random.random() < 0.2,
        partitions=_draw_partitions(random, size, chaos_ms),
        losses=_draw_losses(random, lost, timeout_ms),
        report_ms=random.choice((0, timeout_ms, 6 * timeout_ms)),
        epochs=random.choice((2, 3)),
        style=_draw_style(random),
        tempo_ms=random.choice((timeout_ms // 4, timeout_ms, timeout_ms * 2)),
        stays_active=random.random() < 0.5,
        transactions=random.randrange(0, 5),
        views=random.randrange(8, 36),
        chaos_ms=chaos_ms,
        down_ms=random.choice((20, 300, 3 * timeout_ms)),
    )
    return replace(scenario, moves=_draw_moves(random, scenario))


def draw_forgetful(seed: int) -> Scenario:
    """Return one in which a member forgets the epoch that it is in while a quarter of what is said gets lost.

    Then the views that it has voted in are still open when it has caught up with the others.
    """
    mixed = draw_mixed(seed)
    return replace(
        mixed,
        byzantine=frozenset(),
        dead=frozenset(),
        fuses=(),
        outages=(),
        partitions=(),
        moves=(),
        weather=Weather(delay_ms=(1, mixed.parameters.timeout_ms // 2), loss=25),
        losses=(Loss(0, (1, 2), 5, Forgets.EPOCH),),
        views=40,
    )


def _draw_turns(random: Random, size: int, epoch_ms: int, chaos_ms: int) -> tuple[Outage, ...]:
    """Return outages around the ends of epochs and, of everybody, over several of them."""
    span_ms = max(epoch_ms, 500)
    outages = [
        Outage(max(0, end_ms + random.randrange(-150, 150)), random.randrange(size), random.randrange(10, span_ms))
        for end_ms in range(epoch_ms, chaos_ms, max(epoch_ms, chaos_ms // 4))
        if random.random() < 0.5
    ]
    if random.random() < 0.4:
        at_ms, down_ms = random.randrange(chaos_ms), random.randrange(span_ms // 2, 3 * span_ms)
        outages += [Outage(at_ms + random.randrange(10), number, down_ms) for number in range(size)]
    return tuple(outages)


def _draw_losses(random: Random, lost: frozenset[int], timeout_ms: int) -> tuple[Loss, ...]:
    """Return one loss for each of these; they are back soon, while what they forgot may still be under way."""
    return tuple(
        Loss(
            number,
            (random.randrange(4), random.randrange(1, 4)),
            random.randrange(1, 20 * timeout_ms if random.random() < 0.3 else 50),
            random.choice(list(Forgets)),
        )
        for number in sorted(lost)
    )


def _draw_moves(random: Random, scenario: Scenario) -> tuple[Move, ...]:
    """Return moves, done in this order, after each of which D'Hondt would give the unreliable at most f shards.

    What has been asked for before a cut-off counts in it, what comes later does not: so each committee is one of these.
    """
    stakes = {number: 100 * count for number, count in enumerate(scenario.shards)}
    mine = dict(stakes)
    """Of each node's stake what is left of the first one, which alone is taken from in part."""
    moves: list[Move] = []
    for at_ms in sorted(random.randrange(scenario.chaos_ms) for _ in range(random.randrange(2, 9))):
        honest = [number for number in range(scenario.nodes) if number not in scenario.unreliable]
        number = random.choice(honest)
        amount = random.randrange(20, 300)
        if number not in stakes:
            move = Move(at_ms, MoveKind.JOIN, number, amount)
        elif random.random() < 0.4:
            move = Move(at_ms, MoveKind.LEAVE, number)
        elif random.random() < 0.5 and mine.get(number, 0) > 1:
            move = Move(at_ms, MoveKind.TAKE, number, random.randrange(1, mine[number]))
        else:
            move = Move(at_ms, MoveKind.PUT, number, amount)
        after = dict(stakes)
        match move.kind:
            case MoveKind.LEAVE:
                del after[number]
            case MoveKind.TAKE:
                after[number] -= move.shards_percent
            case _:
                after[number] = after.get(number, 0) + move.shards_percent
        if not _is_bounded(scenario, after):
            continue
        moves.append(move)
        stakes = after
        if move.kind is MoveKind.LEAVE:
            mine.pop(number, None)
        if move.kind is MoveKind.TAKE:
            mine[number] -= move.shards_percent
    return tuple(moves)


def _is_bounded(scenario: Scenario, stakes: dict[int, int]) -> bool:
    """Return whether D'Hondt gives the unreliable at most f shards, however it breaks ties."""
    n = sum(scenario.shards)
    f = n - quorum(n)
    seats = dict.fromkeys(stakes, 0)
    for _ in range(n):
        open_to = [number for number in stakes if seats[number] < f]
        if not open_to:
            return True  # the committee stays as it is
        order = [(stakes[number] / (seats[number] + 1), number in scenario.unreliable, number) for number in open_to]
        seats[max(order)[2]] += 1
    return sum(count for number, count in seats.items() if number in scenario.unreliable) <= f


# What is drawn for both


def _draw_shards(random: Random, size: int) -> tuple[int, ...]:
    if random.random() < 0.7:
        return (1,) * size
    return tuple(random.randrange(1, 5) for _ in range(size))


def _draw_faulty(random: Random, shards: tuple[int, ...]) -> tuple[frozenset[int], frozenset[int]]:
    """Return Byzantine and dead members: as many as f allows, in random order, mostly Byzantine."""
    left = sum(shards) - quorum(sum(shards))
    byzantine: set[int] = set()
    dead: set[int] = set()
    if random.random() < 0.1:
        return frozenset(), frozenset()
    for member in random.sample(range(len(shards)), len(shards)):
        if shards[member] <= left:
            left -= shards[member]
            (byzantine if random.random() < 0.85 else dead).add(member)
    return frozenset(byzantine), frozenset(dead)


def _draw_weather(random: Random, timeout_ms: int, *, is_harsh: bool) -> Weather:
    slowest = timeout_ms if is_harsh else timeout_ms // 5
    return Weather(
        delay_ms=(1, random.randrange(5, 6 + slowest)),
        loss=random.choice((0, 2, 10, 25)) if is_harsh else 0,
        twice=random.choice((0, 5, 20)),
        late=random.choice((0, 5, 20)) if is_harsh else 0,
        late_ms=4 * timeout_ms,
    )


def _draw_outages(random: Random, size: int, chaos_ms: int) -> tuple[Outage, ...]:
    if random.random() < 0.4:
        return ()
    outages = [
        Outage(random.randrange(chaos_ms // 2), random.randrange(size), random.randrange(10, chaos_ms // 4))
        for _ in range(random.randrange(1, 4))
    ]
    if random.random() < 0.2:
        at_ms = random.randrange(chaos_ms // 2)
        outages += [Outage(at_ms, member, random.randrange(10, 500)) for member in range(size)]
    return tuple(outages)


def _draw_fuses(random: Random, size: int) -> tuple[tuple[int, Fuse], ...]:
    if random.random() < 0.4:
        return ()
    count = random.randrange(1, size + 1)
    return tuple(
        (random.randrange(size), Fuse(random.randrange(1, 25), is_durable=random.random() < 0.5)) for _ in range(count)
    )


def _draw_partitions(random: Random, size: int, chaos_ms: int) -> tuple[Partition, ...]:
    if random.random() < 0.6:
        return ()
    return tuple(
        Partition(
            random.randrange(chaos_ms // 2),
            random.randrange(50, chaos_ms // 3),
            tuple(random.randrange(2) for _ in range(size)),
        )
        for _ in range(random.randrange(1, 3))
    )


def _draw_style(random: Random) -> Style:
    return Style(
        vote=random.choice((30, 70, 100)),
        lead=random.choice((0, 90, 100, 100)),
        split=random.choice((0, 50, 90)),
        spread=random.choice((0, 40, 90)),
        replay=random.choice((0, 4, 10)),
        lie=random.choice((0, 5, 10)),
        serve=random.choice((0, 50, 100)),
        turn=random.choice((0, 40, 80)),
    )


CRASHES = Scenario(
    seed=11,
    shards=(1, 1, 1, 1),
    dead=frozenset({3}),
    parameters=Parameters(timeout_ms=150, block_interval_ms=30, heartbeat_ms=300, epoch_ms=1_000),
    views=10,
    chaos_ms=6_000,
    calm_ms=60_000,
    down_ms=200,
)
"""Each of the three that live is needed for a quorum; the fourth costs a timeout whenever it leads."""


def crash_at(record: int, *, is_durable: bool, all_fall: bool) -> Scenario:
    """Return a plain run in which the power fails at one record of member 0, for it alone or for all at once."""
    return replace(CRASHES, fuses=((0, Fuse(record, is_durable)),), all_fall=all_fall)
