"""A file that a node certified for its owner meanwhile is stored: the call that came too late does not fail."""

from dataclasses import replace
from typing import Any, cast

import pytest
import trio
import trio.testing

from economics.arguments import (
    Certify,
    HandOver,
    Operation,
    Reserve,
)
from economics.blob import BlobId
from economics.commitments import ReservationId
from economics.crypto import OwnerId
from economics.state import Account, BlobEntry, BlobSummary
from p2pnode.clients.chainview import Outcome
from p2pnode.clients.payments import Order, Reserved, delete
from p2pnode.clients.publish import Publisher, _Reserving
from p2pnode.clients.session import Session
from p2pnode.clients.upload import Stored, TooFewNodes
from p2pnode.content.sources import BytesSource, Source, compute_blob_id
from p2pnode.errors import SpaceError, TransactionFailed
from p2pnode.keys import Key
from tests.chain import key_of, reservations_of
from tests.p2pnode.ledgerchain import LedgerChain
from tests.small import OTHER_OWNER, OWNER, certify, make_blob, make_genesis, make_statement

GENESIS = make_genesis()
BLOB = make_blob(GENESIS.code, 5_000)
ID = BLOB.header.blob_id


class Net(LedgerChain):
    """A chain, the client that sees it, and what its members say to an upload."""

    def __init__(self) -> None:
        super().__init__(GENESIS)
        self.chain = self
        self.members = cast(Any, self)
        self.faults: dict[int, Any] = {}
        self.hidden = 0
        """For how many questions more an entry cannot be proven."""

    async def settle(self, key: Key, operation: Operation) -> Outcome:
        row = self.apply([self.sign(key, operation)])[0]
        return Outcome(row.signed.hash, row.height, row.index, row.code, row.fee_frost)

    async def entry(self, blob_id: Any, reservation: ReservationId) -> BlobEntry | None:
        await trio.lowlevel.checkpoint()
        self.hidden -= 1
        return None if self.hidden >= 0 else self.ledger.entry(blob_id, reservation)

    async def reserve(self, epochs: int = 3) -> ReservationId:
        await self.transact(OWNER, Reserve(GENESIS.code.encoded_units(5_000), 0, epochs))
        return reservations_of(self.ledger, key_of(OWNER))[-1].reservation

    def stored(self, reservation: ReservationId, salt: int) -> Stored:
        statement = make_statement(GENESIS, BLOB.header, reservation=reservation, salt=bytes([salt]) * 16)
        return Stored(ID, 5_000, certify(GENESIS, statement, (0, 1, 2)), 3, 0, 0, ())

    def publisher(self) -> Publisher:
        return Publisher(cast(Session, self), OWNER, Order())


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.mark.parametrize("salt", [1, 2])
async def test_a_certificate_that_came_too_late_is_no_failure(
    salt: int, net: Net, autojump_clock: trio.testing.MockClock
) -> None:
    """The statement of this call (1), or another of an earlier one (2): the same storage paid for the same blob."""
    reservation = await net.reserve()
    quicker = await net.transact(OTHER_OWNER, Certify(net.stored(reservation, 1).certificate))
    net.hidden = 3
    outcome = await net.publisher()._certify(net.stored(reservation, salt))
    assert outcome.code != "ok"
    assert outcome.height == quicker.height
    assert outcome.fee_frost > 0


async def test_a_certificate_that_fails_where_nothing_is_owed_is_a_failure(
    net: Net, autojump_clock: trio.testing.MockClock
) -> None:
    reservation = await net.reserve()
    await net.transact(OWNER, HandOver(reservation, key_of(OTHER_OWNER)))
    with pytest.raises(TransactionFailed):
        await net.publisher()._certify(net.stored(reservation, 1))


@pytest.mark.parametrize(("unpaid", "certified"), [(True, True), (True, False), (False, True)])
async def test_members_that_refuse_what_is_certified_already_are_right(
    unpaid: bool,
    certified: bool,
    net: Net,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reservation = await net.reserve()
    if certified:
        await net.transact(OTHER_OWNER, Certify(net.stored(reservation, 1).certificate))

    async def refuse(*_: object) -> Stored:
        await trio.lowlevel.checkpoint()
        raise TooFewNodes("refused", unpaid=unpaid)

    monkeypatch.setattr(Publisher, "_send", refuse)
    reserving = _Reserving()
    reserving._reserved = Reserved(reservation, 3, 0)
    publisher = net.publisher()
    if unpaid and certified:
        assert await publisher._upload(BytesSource(bytes(5_000)), ID, reserving) is None
    else:
        with pytest.raises(TooFewNodes):
            await publisher._upload(BytesSource(bytes(5_000)), ID, reserving)


async def test_a_blob_is_named_before_anything_is_paid_or_sent(net: Net) -> None:
    """What is certified may be so by a node, after the call was killed: the key that opens it must be kept by then."""
    named: list[BlobId] = []

    def refuse(blob_id: BlobId) -> None:
        named.append(blob_id)
        raise SpaceError("the disk is full")

    data = bytes(5_000)
    with pytest.raises(SpaceError):
        await replace(net.publisher(), on_named=refuse).publish(BytesSource(data))
    assert named == [compute_blob_id(BytesSource(data), GENESIS.code)]
    assert not reservations_of(net.ledger, key_of(OWNER))


async def test_what_this_client_has_just_deleted_is_stored_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its block is final before any header shows that the blob is gone."""

    class Behind(Net):
        shown: BlobSummary | None = None

        async def settled_account(self, owner: OwnerId) -> Account:
            self.shown = None
            return await super().settled_account(owner)

        async def blob(self, blob_id: BlobId) -> BlobSummary | None:
            return self.shown or await super().blob(blob_id)

    async def store_anew(self: Publisher, source: Source, blob_id: BlobId) -> str:
        return "stored anew"

    monkeypatch.setattr(Publisher, "_publish", store_anew)
    net = Behind()
    await net.transact(OWNER, Certify(net.stored(await net.reserve(), 1).certificate))
    net.shown = net.ledger.blob(ID)
    assert net.shown is not None
    await delete(net, OWNER, ID)
    assert str(await net.publisher().publish(BytesSource(BLOB.data))) == "stored anew"


async def test_what_an_earlier_call_has_just_stored_is_not_paid_again() -> None:
    """Its block is final before any header shows the state after it."""

    class Behind(Net):
        is_settled = False

        async def settle_others(self, owner: OwnerId) -> None:
            self.is_settled = True

        async def blob(self, blob_id: BlobId) -> BlobSummary | None:
            return await super().blob(blob_id) if self.is_settled else None

    net = Behind()
    await net.transact(OWNER, Certify(net.stored(await net.reserve(epochs=30), 1).certificate))
    before = net.ledger.account(key_of(OWNER))
    published = await net.publisher().publish(BytesSource(BLOB.data))
    assert (published.blob_id, published.paid_frost, published.upload) == (ID, 0, None)
    assert net.ledger.account(key_of(OWNER)) == before
