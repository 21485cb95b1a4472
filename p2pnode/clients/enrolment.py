"""How a node comes to seats and gives them up, and how stake goes in and out. All it knows is from a `Chain`.

Interrupted, the same call goes on: what is registered or staked already is not paid for again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import trio

from economics.arguments import Operation, PutStake, RegisterNode, Transfer, Unstake, node_message
from economics.committee import Committee
from economics.crypto import Level, NodeId, OwnerId, Signature, digest
from economics.genesis import FROST_PER_WAL, build_key_text
from economics.geometry import STORAGE_UNIT_BYTES
from economics.nodes import Handover, NodeEntry, Phase, Seats, Stake
from economics.operations import EPOCHS_AHEAD_MAX, Code
from economics.slots import HANDOVER_SLOT, StakeId, bucket_slot, node_slot, seats_slot, state_key
from economics.staking import STAKE_FROST_MIN
from economics.state import Bucket
from p2pnode.clients.chainview import Chain, Outcome
from p2pnode.clients.payments import fee_of, format_amount, verify_funds
from p2pnode.errors import ConfigError, InputError, SpaceError, TransactionFailed
from p2pnode.keys import Key

OPERATOR_FROST = FROST_PER_WAL
"""What an operator's account is brought to for the fees of its node: those of a year of reports."""
OPERATOR_FROST_MIN = OPERATOR_FROST // 10
CLOCK_MS_MAX = 5_000
"""By which a clock may be ahead of the chain's or behind it, beyond what an idle chain's head is old."""
COMMISSION_BASIS_POINTS = 1_000
"""As of the first members."""
POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Offer:
    """What a node says of itself on chain, but for its key."""

    capacity_units: int
    storage_vote_frost: int
    write_vote_frost: int
    commission_basis_points: int
    addresses: tuple[str, ...]


def offer_of(entry: NodeEntry) -> Offer:
    """Return what a node offers now, with the commission that it last said."""
    return Offer(
        entry.capacity_units,
        entry.storage_vote_frost,
        entry.write_vote_frost,
        entry.next_commission_basis_points,
        entry.addresses,
    )


def build_registration(node: NodeId, offer: Offer, signature: Signature) -> RegisterNode:
    return RegisterNode(
        node,
        offer.capacity_units,
        offer.storage_vote_frost,
        offer.write_vote_frost,
        offer.commission_basis_points,
        offer.addresses,
        signature,
    )


async def find_node(chain: Chain, node: NodeId) -> NodeEntry | None:
    """Return what the chain says of a node, None for one that nobody registered."""
    (value,) = await chain.values([state_key(node_slot(node))])
    return None if value is None else NodeEntry.decode(value)


async def own_node(chain: Chain, node: NodeId, owner: OwnerId) -> NodeEntry:
    """Return the same of a node that is registered; raises `InputError` where it is not, or is another owner's."""
    entry = await find_node(chain, node)
    if entry is None:
        raise InputError(f"node {build_key_text(node)} is not registered: `p2pnode join` does that")
    if entry.owner != owner:
        raise InputError(
            f"node {build_key_text(node)} is owned by {build_key_text(entry.owner)}: use the home with that wallet"
        )
    return entry


async def register(chain: Chain, owner: Key, operator: Key, offer: Offer) -> Outcome:
    """Say what a node offers; both keys sign. Raises `TransactionFailed`."""
    sender = OwnerId(owner.public)

    def make(nonce: int) -> Operation:
        message = node_message(chain_id=chain.genesis.chain_id, sender=sender, nonce=nonce)
        return build_registration(NodeId(operator.public), offer, operator.sign(message))

    return await chain.transact(owner, make)


# --- joining ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Demand:
    """What holding shards takes now."""

    shard_bytes: int
    """Of slivers that one shard has to hold, of all that is sold of the coming epochs."""
    sold_units: int


async def find_demand(chain: Chain) -> Demand:
    """Return what one shard takes, by what is sold of any epoch from the current one on."""
    epoch = (await chain.seats()).current.epoch
    keys = [state_key(bucket_slot(epoch + ahead)) for ahead in range(EPOCHS_AHEAD_MAX + 1)]
    buckets = [Bucket.decode(value) for value in await chain.values(keys) if value is not None]
    sold = max((bucket.used_units for bucket in buckets), default=0)
    return Demand(-(-sold * STORAGE_UNIT_BYTES // chain.genesis.committee.n), sold)


async def find_seat_frost(chain: Chain) -> int:
    """Return the stake that a new node needs for one shard, as things stand: more than any member has for each of its
    last shard (D'Hondt, FORMATS.md 18)."""
    members = (await chain.seats()).current.members
    values = await chain.values([state_key(node_slot(member.node)) for member in members])
    pools = [0 if value is None else NodeEntry.decode(value).stake_frost for value in values]
    return min(pool // member.shards for pool, member in zip(pools, members, strict=True)) + 1


async def verify_clock(chain: Chain, now_ms: int) -> None:
    """Raise `ConfigError` where this machine's clock cannot be the chain's: blocks with its time would not be taken."""
    head = await chain.head()
    if not head.height:
        return
    ahead_ms = now_ms - head.time_ms
    if ahead_ms < -CLOCK_MS_MAX or ahead_ms > CLOCK_MS_MAX + 2 * chain.genesis.parameters.heartbeat_ms:
        raise ConfigError(
            f"this machine's clock is {abs(ahead_ms) // 1000} s {'ahead of' if ahead_ms > 0 else 'behind'} the chain's "
            "newest block: set it by a time server; if it is right, the chain stands still, so try again later"
        )


def verify_room(demand: Demand, *, capacity_bytes: int, free_bytes: int) -> None:
    """Raise `SpaceError` where not even one shard would fit."""
    if min(capacity_bytes, free_bytes) < demand.shard_bytes:
        what = "--capacity" if capacity_bytes < free_bytes else "the disk's free space"
        raise SpaceError(
            f"a shard takes {demand.shard_bytes} bytes now, and {what} is {min(capacity_bytes, free_bytes)}: "
            "a node with room for none gets no seat"
        )


@dataclass(frozen=True, slots=True)
class Bid:
    """What an owner puts behind a node that is to get seats."""

    stake_frost: int
    offer: Offer


@dataclass(frozen=True, slots=True)
class Steps:
    """What is still to be done to join, and the most that it costs."""

    register: bool
    stake_frost: int
    fund_frost: int
    fees_frost: int

    @property
    def total_frost(self) -> int:
        return self.stake_frost + self.fund_frost + self.fees_frost

    def __str__(self) -> str:
        parts = ((self.stake_frost, "stake"), (self.fund_frost, "for the node's own fees"), (self.fees_frost, "fees"))
        shown = ", ".join(f"{format_amount(frost)} {what}" for frost, what in parts if frost)
        return f"{format_amount(self.total_frost)} ({shown})" if shown else "nothing: all of it is there"


async def plan_joining(chain: Chain, owner: OwnerId, node: NodeId, bid: Bid) -> Steps:
    """Return what is to be done; raises `InputError` for a stake that is too small or a node that is another's."""
    if bid.stake_frost < STAKE_FROST_MIN:
        raise InputError(f"a stake is at least {format_amount(STAKE_FROST_MIN)}")
    entry = await find_node(chain, node)
    if entry is not None and entry.owner != owner:
        raise InputError(f"node {build_key_text(node)} is another owner's: {build_key_text(entry.owner)}")
    held = sum(stake_worth(one, entry) for one in await _standing_stakes(chain, owner, node))
    missing = max(0, bid.stake_frost - held)
    balance = (await chain.account(OwnerId(node))).balance_frost
    fund = OPERATOR_FROST - balance if balance < OPERATOR_FROST_MIN else 0
    operations: list[Operation] = []
    is_new = entry is None or offer_of(entry) != bid.offer
    if is_new:
        operations.append(build_registration(node, bid.offer, Signature(bytes(64))))
    if missing:
        operations.append(PutStake(node, max(missing, STAKE_FROST_MIN)))
    if fund:
        operations.append(Transfer(OwnerId(node), fund))
    fees = sum(fee_of(chain.genesis, operation) for operation in operations)
    return Steps(is_new, max(missing, STAKE_FROST_MIN) if missing else 0, fund, fees)


async def _standing_stakes(chain: Chain, owner: OwnerId, node: NodeId) -> list[Stake]:
    """Return an owner's stakes on a node that have not been told to leave."""
    stakes = await chain.stakes(owner)
    return [one for one in stakes if one.node == node and one.phase in (Phase.WAITING, Phase.ACTIVE)]


def stake_worth(stake: Stake, entry: NodeEntry | None) -> int:
    """Return what a stake would be worth, were it paid back now."""
    if stake.shares and entry is not None and entry.shares:
        return stake.shares * entry.stake_frost // entry.shares
    return stake.frost


async def join(chain: Chain, owner: Key, operator: Key, bid: Bid, steps: Steps) -> None:
    """Register, stake and fund a node, as far as that is left to do. Raises `Unpaid` before anything is paid."""
    node = NodeId(operator.public)
    await verify_funds(chain, OwnerId(owner.public), steps.total_frost)
    if steps.register:
        await register(chain, owner, operator, bid.offer)
    if steps.stake_frost:
        await chain.transact(owner, PutStake(node, steps.stake_frost))
    if steps.fund_frost:
        await chain.transact(owner, Transfer(OwnerId(node), steps.fund_frost))


# --- stakes ----------------------------------------------------------------------------------------------------------


async def put_stake(chain: Chain, owner: Key, node: NodeId, amount_frost: int) -> tuple[StakeId, Outcome]:
    """Stake on a node; raises `InputError` for too little or on nobody, `Unpaid` where the wallet has less."""
    if amount_frost < STAKE_FROST_MIN:
        raise InputError(f"a stake is at least {format_amount(STAKE_FROST_MIN)}")
    entry = await find_node(chain, node)
    if entry is None or not entry.capacity_units:
        raise InputError(f"node {build_key_text(node)} offers nothing: `p2pnode committee` lists those that do")
    operation = PutStake(node, amount_frost)
    await verify_funds(chain, OwnerId(owner.public), amount_frost + fee_of(chain.genesis, operation))
    outcome = await chain.transact(owner, operation)
    return StakeId(digest(Level.STAKE, outcome.hash)), outcome


async def take_stake(chain: Chain, owner: Key, stake: StakeId, shares: int) -> Outcome:
    """Take a stake back, or so many of its shares (0: all); raises `InputError` where that cannot be."""
    held = next((one for one in await chain.stakes(OwnerId(owner.public)) if one.stake == stake), None)
    if held is None:
        raise InputError(f"this wallet has no stake {build_key_text(stake)}: `p2pnode stakes` lists what it has")
    if held.phase in (Phase.LEAVING, Phase.UNBONDING):
        raise InputError(f"it is on its way already: {held.phase.name.lower()} until epoch {held.turn_epoch} begins")
    if shares > held.shares:
        raise InputError(f"it has {held.shares} shares: leave --shares out to take all of it")
    return await chain.transact(owner, Unstake(stake, shares))


# --- leaving ---------------------------------------------------------------------------------------------------------


async def leave(chain: Chain, owner: Key, operator: Key) -> tuple[StakeId, ...]:
    """Have a node offer nothing any more and take its owner's stakes back; returns those that are on their way.

    One that waits for an epoch whose seats are fixed stays until then.
    """
    node, sender = NodeId(operator.public), OwnerId(owner.public)
    entry = await own_node(chain, node, sender)
    if entry.capacity_units:
        await register(chain, owner, operator, replace(offer_of(entry), capacity_units=0))
    stakes = await _standing_stakes(chain, sender, node)
    taken: list[StakeId] = []
    for stake in stakes:
        try:
            await chain.transact(owner, Unstake(stake.stake, 0))
        except TransactionFailed as fault:
            if fault.code != Code.WRONG_PHASE:  # the next epoch's seats count on it: it may go once that has begun
                raise
        else:
            taken.append(stake.stake)
    return tuple(taken)


@dataclass(frozen=True, slots=True)
class Owed:
    """What a node has to hold."""

    epoch: int
    shards: int
    next_shards: int | None
    """In the next epoch; None until its committee is fixed."""
    is_handed_over: bool
    """Whether the current committee holds what was certified before it."""

    @property
    def is_nothing(self) -> bool:
        """Whether nobody needs the node's slivers any more."""
        return not self.shards and not self.next_shards and self.is_handed_over

    def __str__(self) -> str:
        later = "not fixed yet" if self.next_shards is None else str(self.next_shards)
        why = "" if self.is_handed_over else "; shards are being handed over"
        if self.is_handed_over and self.next_shards:
            why = "; seats were fixed before it left, or the other nodes are too few or too full to hold all shards"
        return f"epoch {self.epoch}: {self.shards} shards, in the next one {later}{why}"


async def find_owed(chain: Chain, node: NodeId) -> Owed:
    """Return what a node has to hold now and soon, proven, of one state."""
    current = (await chain.seats()).current
    keys = [state_key(slot) for slot in (HANDOVER_SLOT, seats_slot(current.epoch), seats_slot(current.epoch + 1))]
    handover, now, later = await chain.values(keys)
    following = None if later is None else _shards(Seats.decode(later).committee, node)
    held = current if now is None else Seats.decode(now).committee
    is_done = handover is not None and Handover.decode(handover).is_done
    return Owed(current.epoch, _shards(held, node), following, is_done)


def _shards(committee: Committee, node: NodeId) -> int:
    return len(committee.shards_of_node(node))


async def wait_until_free(chain: Chain, node: NodeId, *, tell: Callable[[Owed], None]) -> Owed:
    """Return when a node owes nothing any more: what it held is with others.

    For as long as that takes, which is for ever where nobody else may hold its shards: `tell` hears why it waits.
    """
    told = None
    while True:
        owed = await find_owed(chain, node)
        if owed.is_nothing:
            return owed
        if owed != told:
            tell(owed)
            told = owed
        await trio.sleep(POLL_S)
