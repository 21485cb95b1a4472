"""What storing costs and how it is paid for: amounts, quotes, reservations, entries. All it knows is from a `Chain`."""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import trio

from economics.arguments import (
    Certify,
    CertifyAgain,
    Delete,
    Extend,
    Operation,
    Reserve,
    Transfer,
)
from economics.blob import BlobId, build_blob_id_text
from economics.commitments import SALT_BYTES, ZERO_RESERVATION, Certificate, OwnerStatement, ReservationId
from economics.committee import Committee
from economics.crypto import DIGEST_BYTES, KEY_BYTES, SIGNATURE_BYTES, Level, OwnerId, Signature, digest
from economics.genesis import FROST_MAX, FROST_PER_WAL, Genesis
from economics.nodes import Terms
from economics.operations import EPOCHS_AHEAD_MAX
from economics.slots import blob_key
from economics.state import BlobEntry, BlobSummary, Reservation
from economics.transactions import Transaction, least_fee
from p2pnode.clients.chainview import KEYS_AT_ONCE, Chain, Head, Outcome, Seating
from p2pnode.clients.till import Till
from p2pnode.errors import InputError, TransactionFailed, Unavailable, Unpaid
from p2pnode.keys import Key

EPOCHS = 30
"""What a blob is stored for unless said otherwise: about a month where an epoch is a day."""
SETTLE_S = 2.0
WAL_DECIMALS = 9
assert 10**WAL_DECIMALS == FROST_PER_WAL


# --- amounts ---------------------------------------------------------------------------------------------------------


def parse_amount(text: str) -> int:
    """Return the FROST of "1.5" (WAL, up to 9 decimals) or "1500000frost", exactly; raises `InputError`."""
    plain = text.strip().lower()
    if frost := re.fullmatch(r"([0-9]{1,19}) ?frost", plain):
        amount = int(frost[1])
    elif wal := re.fullmatch(rf"([0-9]{{1,10}})(?:\.([0-9]{{1,{WAL_DECIMALS}}}))?( ?wal)?", plain):
        amount = int(wal[1]) * FROST_PER_WAL + int((wal[2] or "").ljust(WAL_DECIMALS, "0"))
    else:
        raise InputError(f"{text!r} is not an amount: write WAL with up to 9 decimals, such as 1.5, or 1500000frost")
    if amount > FROST_MAX:
        raise InputError(f"{text!r} is more than there can ever be")
    return amount


def format_amount(frost: int) -> str:
    """Return an amount in WAL, exactly."""
    whole, part = divmod(frost, FROST_PER_WAL)
    decimals = f"{part:0{WAL_DECIMALS}}".rstrip("0")
    return f"{whole}.{decimals} WAL" if decimals else f"{whole} WAL"


# --- quotes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Quote:
    """The most that something costs its owner."""

    storage_frost: int
    """Goes to the nodes of each epoch."""
    write_frost: int
    """Goes to the nodes of this epoch."""
    fees_frost: int
    """Of the transactions."""

    @property
    def total_frost(self) -> int:
        return self.storage_frost + self.write_frost + self.fees_frost

    def __str__(self) -> str:
        parts = ((self.storage_frost, "storage"), (self.write_frost, "writing"), (self.fees_frost, "fees"))
        shown = ", ".join(f"{format_amount(frost)} {what}" for frost, what in parts if frost)
        return f"{format_amount(self.total_frost)} ({shown})"


def quote(genesis: Genesis, seating: Seating, *, units: int, epochs: int) -> Quote:
    """Return what storing `units` for `epochs` costs a client that holds no storage: it reserves, then certifies."""
    fees = fee_of(genesis, Reserve(units, 0, epochs)) + certify_fee(genesis, seating.current)
    return _quote(seating.terms, units=units, epochs=epochs, fees_frost=fees)


def quote_extension(genesis: Genesis, terms: Terms, entry: BlobEntry, epochs: int) -> Quote:
    fee = fee_of(genesis, Extend(entry.blob_id, entry.reservation, epochs))
    return _quote(terms, units=entry.units, epochs=epochs, fees_frost=fee)


def _quote(terms: Terms, *, units: int, epochs: int, fees_frost: int) -> Quote:
    storage = units * epochs * terms.storage_frost_per_unit
    return Quote(storage, units * terms.write_frost_per_unit, fees_frost)


def fee_of(genesis: Genesis, operation: Operation) -> int:
    """Return the least fee of an operation: its bytes and signatures make it, whoever sends it and when."""
    blank = Transaction(genesis.chain_id, OwnerId(bytes(KEY_BYTES)), 0, 0, 0, operation)
    return least_fee(blank, genesis.parameters)


def certify_fee(genesis: Genesis, committee: Committee) -> int:
    """Return the most that certifying can cost: what the certificate with the most signers does."""
    zero, signature = bytes(DIGEST_BYTES), Signature(bytes(SIGNATURE_BYTES))
    statement = OwnerStatement(
        genesis.chain_id, OwnerId(zero), ZERO_RESERVATION, BlobId(zero), 0, True, bytes(SALT_BYTES), 0
    )
    signatures = tuple((signer, signature) for signer in range(signers_max(committee)))
    return fee_of(genesis, Certify(Certificate(statement, signature, 0, signatures)))


def signers_max(committee: Committee) -> int:
    """Return a number of signers that no certificate exceeds: as many of the smallest members as make a quorum.

    Of any more the others would be a quorum without their largest, and a certificate holds no signature in vain.
    """
    weight = 0
    for count, shards in enumerate(sorted(member.shards for member in committee.members), start=1):
        weight += shards
        if weight >= committee.quorum:
            return count
    raise AssertionError("all members together are a quorum")


def verify_cost(quoted: Quote, *, max_cost_frost: int | None) -> None:
    """Raise `Unpaid` where the owner said to pay less."""
    if max_cost_frost is not None and quoted.total_frost > max_cost_frost:
        raise Unpaid(f"it costs {quoted}, and --max-cost says {format_amount(max_cost_frost)}: nothing was paid")


async def verify_funds(chain: Chain, owner: OwnerId, cost_frost: int) -> None:
    """Raise `Unpaid` where an account has less than something costs."""
    balance = (await chain.account(owner)).balance_frost
    if balance < cost_frost:
        raise Unpaid(
            f"it costs {format_amount(cost_frost)}, and the wallet has {format_amount(balance)}: have WAL sent to it "
            "(`p2pnode wallet show` prints its key), or on a testnet `p2pnode faucet KEY AMOUNT` from its client's home"
        )


# --- storing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """What an owner who stores wants and is ready to pay."""

    epochs: int = EPOCHS
    """From the current one on, which counts as the first."""
    deletable: bool = True
    max_cost_frost: int | None = None
    on_quote: Callable[[Quote], None] = lambda quoted: None
    """Hears the price before anything is paid."""
    till: Till = field(default_factory=Till, compare=False)
    """Shared by the orders of blobs that one owner stores at once."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """Storage that a blob can be certified under."""

    reservation: ReservationId
    end_epoch: int
    cost_frost: int
    """What this call paid: 0 where the owner had it already. The certifying transaction's fee is not in it."""
    units_left: int = 0
    """What the blob will leave of it."""


async def reserve_for(chain: Chain, key: Key, *, units: int, order: Order) -> Reserved:
    """Return a reservation for `units` from now on: one of the owner's own that is large enough, else a new one.

    It is taken in the order's till, and whoever fills it or gives up says so there. Raises `Unpaid` before anything is
    paid, `TransactionFailed` where the network has no such storage.
    """
    owner, till = OwnerId(key.public), order.till
    with ExitStack() as stack:
        async with till.looking:
            seating = await chain.seats()
            reserved = await _find(chain, owner, seating, units=units, order=order)
            if reserved is None:
                stack.enter_context(till.buying())
        if reserved is None:
            reserved = await _buy_soon(chain, key, seating, units=units, order=order)
        till.take(reserved.reservation)
    return reserved


async def _find(chain: Chain, owner: OwnerId, seating: Seating, *, units: int, order: Order) -> Reserved | None:
    """Return unused storage that is large enough, once the owner agrees to what certifying costs."""
    free = [] if order.till.is_empty else await _find_free(chain, owner, order.till)
    held = best_reservation(free, epoch=seating.current.epoch, units=units, epochs=order.epochs)
    if held is None:
        return None
    await _agree(chain, owner, Quote(0, 0, certify_fee(chain.genesis, seating.current)), order)
    return Reserved(held.reservation, held.end_epoch, 0, held.units - units)


async def _buy_soon(chain: Chain, key: Key, seating: Seating, *, units: int, order: Order) -> Reserved:
    """Buy storage; once more where the epoch ended meanwhile."""
    try:
        return await _buy(chain, key, seating, units=units, order=order)
    except TransactionFailed as fault:
        fresh = await chain.seats(fresh=True)
        if fault.code != "wrong_epochs" or fresh.current.epoch == seating.current.epoch:
            raise
        return await _buy(chain, key, fresh, units=units, order=order)


async def _find_free(chain: Chain, owner: OwnerId, till: Till) -> list[Reservation]:
    """Return the owner's reservations that no blob fills."""
    free = [one for one in await chain.reservations(owner) if till.is_free(one)]
    if not free:
        till.note_empty()
    return free


async def _buy(chain: Chain, key: Key, seating: Seating, *, units: int, order: Order) -> Reserved:
    """Buy storage from the current epoch on, at its price; fails where it ends meanwhile, for a fee."""
    quoted = quote(chain.genesis, seating, units=units, epochs=order.epochs)
    await _agree(chain, OwnerId(key.public), quoted, order)
    start, end = seating.current.epoch, seating.current.epoch + order.epochs
    outcome = await chain.transact(key, Reserve(units, start, end))
    paid = quoted.storage_frost + quoted.write_frost + outcome.fee_frost
    return Reserved(ReservationId(digest(Level.RESERVATION, outcome.hash)), end, paid)


async def _agree(chain: Chain, owner: OwnerId, quoted: Quote, order: Order) -> None:
    order.on_quote(quoted)
    verify_cost(quoted, max_cost_frost=order.max_cost_frost)
    await verify_funds(chain, owner, quoted.total_frost)


def best_reservation(held: list[Reservation], *, epoch: int, units: int, epochs: int) -> Reservation | None:
    """Return one that covers [epoch, epoch + epochs) with `units` and wastes least: the first to end, the smallest."""
    fit = [one for one in held if one.start_epoch <= epoch and one.end_epoch >= epoch + epochs and one.units >= units]
    return min(fit, key=lambda one: (one.end_epoch, one.units, one.reservation), default=None)


@dataclass(frozen=True, slots=True)
class Kept:
    """How a blob that was live already is now kept for its owner too."""

    end_epoch: int
    cost_frost: int
    transactions: int
    reservation: ReservationId
    """Names the owner's entry of the blob."""
    extended_epochs: int = 0
    """By which an entry of the owner's now lasts longer."""


async def keep_live(chain: Chain, key: Key, blob: BlobSummary, *, order: Order) -> Kept:
    """Have a live blob kept for `order.epochs` without moving a byte: nothing, an extension, or an entry of one's own.

    Takes no transaction where an entry of the owner's lasts as long already, one where it has an entry or storage.
    """
    owner = OwnerId(key.public)
    end = (await chain.head()).epoch + order.epochs
    own = [one for one in await chain.entries(owner) if one.blob_id == blob.blob_id]
    own = [one for one in own if one.deletable == order.deletable]
    last = max(own, key=lambda one: (one.end_epoch, one.reservation), default=None)
    if last is not None and last.end_epoch >= end:
        return Kept(last.end_epoch, 0, 0, last.reservation)
    if last is not None:
        more = end - last.end_epoch
        quoted = quote_extension(chain.genesis, (await chain.seats()).terms, last, more)
        await _agree(chain, owner, quoted, order)
        await chain.transact(key, Extend(blob.blob_id, last.reservation, more))
        return Kept(end, quoted.total_frost, 1, last.reservation, more)
    units = chain.genesis.code.encoded_units(blob.length)
    reserved = await reserve_for(chain, key, units=units, order=order)
    try:
        outcome = await chain.transact(key, CertifyAgain(reserved.reservation, blob.blob_id, order.deletable))
        order.till.fill(reserved.reservation, units_left=reserved.units_left)
    finally:
        order.till.give_back(reserved.reservation)
    paid, transactions = reserved.cost_frost + outcome.fee_frost, 2 if reserved.cost_frost else 1
    return Kept(reserved.end_epoch, paid, transactions, reserved.reservation)


# --- what one owns ---------------------------------------------------------------------------------------------------


async def own_entries(chain: Chain, owner: OwnerId, blob_id: BlobId) -> list[BlobEntry]:
    """Return an owner's entries of one blob, the last to end first; raises `InputError` where there is none."""
    found = [one for one in await chain.entries(owner) if one.blob_id == blob_id]
    if not found:
        raise InputError(f"this wallet keeps no blob {build_blob_id_text(blob_id)}: `p2pnode list` shows what it keeps")
    return sorted(found, key=lambda one: (-one.end_epoch, one.reservation))


@dataclass(frozen=True, slots=True)
class Extended:
    """An entry that lasts longer than before."""

    end_epoch: int
    cost_frost: int
    outcome: Outcome


async def extend(
    chain: Chain,
    key: Key,
    blob_id: BlobId,
    *,
    epochs: int,
    max_cost_frost: int | None,
    on_quote: Callable[[Quote], None],
) -> Extended:
    """Keep a blob of one's own for `epochs` more than it would be.

    Raises `InputError` where that is further ahead than storage is sold, `Unpaid`, `TransactionFailed`.
    """
    owner = OwnerId(key.public)
    entry = (await own_entries(chain, owner, blob_id))[0]
    most = (await chain.head()).epoch + EPOCHS_AHEAD_MAX - entry.end_epoch
    if epochs > most:
        how = f"for {most} more" if most > 0 else "for none more now"
        raise InputError(
            f"it is kept until epoch {entry.end_epoch} already, and storage is sold for {EPOCHS_AHEAD_MAX} epochs "
            f"ahead: it can be kept {how}"
        )
    quoted = quote_extension(chain.genesis, (await chain.seats()).terms, entry, epochs)
    await _agree(chain, owner, quoted, Order(epochs=epochs, max_cost_frost=max_cost_frost, on_quote=on_quote))
    outcome = await chain.transact(key, Extend(blob_id, entry.reservation, epochs))
    return Extended(entry.end_epoch + epochs, quoted.total_frost, outcome)


@dataclass(frozen=True, slots=True)
class Deleted:
    """Entries that are no more, and the storage that came back."""

    entries: tuple[BlobEntry, ...]
    permanent: tuple[BlobEntry, ...]
    """Those that nobody can delete."""


async def delete(chain: Chain, key: Key, blob_id: BlobId) -> Deleted:
    """End every deletable entry that an owner has of a blob; raises `InputError` where there is none."""
    entries = await own_entries(chain, OwnerId(key.public), blob_id)
    gone = tuple(one for one in entries if one.deletable)
    kept = tuple(one for one in entries if not one.deletable)
    if not gone:
        raise InputError(f"{build_blob_id_text(blob_id)} was stored with --permanent: it stays until it expires")
    for entry in gone:
        await chain.transact(key, Delete(blob_id, entry.reservation))
    return Deleted(gone, kept)


async def send(chain: Chain, key: Key, *, to: OwnerId, amount_frost: int) -> Outcome:
    """Transfer FROST; raises `InputError` for none, `Unpaid` where the account has less than that and the fee."""
    if amount_frost == 0:
        raise InputError("an amount of nothing cannot be sent")
    operation = Transfer(to, amount_frost)
    await verify_funds(chain, OwnerId(key.public), amount_frost + fee_of(chain.genesis, operation))
    return await chain.transact(key, operation)


@dataclass(frozen=True, slots=True)
class Info:
    """What the chain says of a live blob."""

    summary: BlobSummary
    head: Head
    own: tuple[BlobEntry, ...]
    """The entries of the owner who asks."""

    @property
    def epochs_left(self) -> int:
        """Counts the current epoch."""
        return self.summary.end_epoch - self.head.epoch


async def find_blob(chain: Chain, blob_id: BlobId) -> BlobSummary | None:
    """Return what the chain says of a blob, waiting a moment for one that was certified just now.

    Its block may be final while no later header shows the state after it: that takes half a second.
    """
    with trio.move_on_after(SETTLE_S):
        while (summary := await chain.blob(blob_id)) is None:  # noqa: ASYNC110 - the chain is elsewhere
            await trio.sleep(SETTLE_S / 8)
        return summary
    return None


async def find_blobs(chain: Chain, blob_ids: Sequence[BlobId]) -> dict[BlobId, BlobSummary]:
    """Return what the chain says of those of these blobs that it shows."""
    found: dict[BlobId, BlobSummary] = {}
    for at in range(0, len(blob_ids), KEYS_AT_ONCE):
        values = await chain.values([blob_key(blob_id) for blob_id in blob_ids[at : at + KEYS_AT_ONCE]])
        summaries = [BlobSummary.decode(value) for value in values if value is not None]
        found |= {summary.blob_id: summary for summary in summaries}
    return found


async def info(chain: Chain, blob_id: BlobId, *, owner: OwnerId | None) -> Info:
    """Return what the chain says of a blob; raises `Unavailable` if the network does not owe it."""
    summary = await find_blob(chain, blob_id)
    if summary is None:
        raise Unavailable(
            f"the chain keeps no blob {build_blob_id_text(blob_id)}: check the ID; it may have expired or been deleted"
        )
    own = () if owner is None else tuple(one for one in await chain.entries(owner) if one.blob_id == blob_id)
    return Info(summary, await chain.head(), own)


# --- time ------------------------------------------------------------------------------------------------------------


def latest_ms(genesis: Genesis, head: Head, end_epoch: int) -> int:
    """Return when an epoch begins at the latest, but for blocks that are late: no epoch before it is longer."""
    return head.time_ms + max(0, end_epoch - head.epoch) * genesis.parameters.epoch_ms
