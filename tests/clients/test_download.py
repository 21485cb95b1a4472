"""No read fails while shards are on their way, or audited; what a writer encoded inconsistently is proven."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing

from economics.committee import Committee
from p2pnode.clients import download
from p2pnode.clients.chainview import Seating
from p2pnode.clients.download import Reader
from p2pnode.errors import NetworkError, Unavailable
from tests.p2pnode.reseated import seat
from tests.p2pnode.server import MemoryNetwork, Server, make_members
from tests.small import OPERATORS, make_blob, make_codec, make_genesis, make_pairs

GENESIS = make_genesis((1,) * 7)
"""7 shards, f = 2: P = 3, S = 5."""
BLOB = make_blob(GENESIS.code, 1_000)
(SEGMENT,) = BLOB.segments
ROOT = SEGMENT.root
BEFORE = seat(GENESIS, (0, 1, 2, 3, 4, 5, 6), epoch=1)
MOVED = seat(GENESIS, (1, 2, 3, 4, 5, 6, 0), epoch=2)
"""Every shard is another member's."""


class Net:
    """Seven servers with the shards that a test gives them, and a reader."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.servers = [Server(directory / str(index), genesis=GENESIS, key=OPERATORS[index]) for index in range(7)]
        self.network = MemoryNetwork(self.servers, nursery)
        self.members = make_members(self.network, GENESIS)
        self.seatings: list[Seating] = []
        """What is told one after the other; the last one stays. With none, nobody can tell."""
        self.reader = Reader(members=self.members, seats=self.seats, codec=make_codec(GENESIS), rng=Random(1))

    async def seats(self) -> Seating:
        await trio.lowlevel.checkpoint()
        if not self.seatings:
            raise NetworkError("nobody can tell")
        return self.seatings.pop(0) if len(self.seatings) > 1 else self.seatings[0]

    def tell(self, current: Committee, source: Committee | None = None) -> None:
        terms = self.servers[0].chain.ledger.terms
        self.seatings.append(Seating(current, source, current.epoch, terms))

    def give(self, committee: Committee, shards: Sequence[int] = range(7)) -> None:
        """Have the holders of these shards hold the segment."""
        for shard in shards:
            pairs = make_pairs(SEGMENT, [shard])
            self.servers[committee.holder(shard)].store.put_segment(SEGMENT.metadata, SEGMENT.z, pairs)

    async def read(self) -> bytes:
        return b"".join(await self.reader.segment(BLOB.header, 0))


@pytest.fixture
async def net(tmp_path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> Net:
    return Net(tmp_path, nursery)


class TestWhileShardsAreOnTheirWay:
    async def test_who_held_them_is_asked(self, net: Net) -> None:
        net.tell(MOVED, BEFORE)
        net.give(BEFORE)
        assert await net.read() == BLOB.data

    async def test_who_holds_them_now_is_asked_where_the_other_has_them_not(self, net: Net) -> None:
        net.tell(MOVED, BEFORE)
        net.give(MOVED)
        assert await net.read() == BLOB.data

    async def test_both_are_enough_together(self, net: Net) -> None:
        net.tell(MOVED, BEFORE)
        net.give(BEFORE, [0])
        net.give(MOVED, [2, 4])
        assert await net.read() == BLOB.data

    async def test_seats_that_changed_meanwhile_are_asked_for_again(self, net: Net) -> None:
        net.tell(BEFORE)
        net.tell(MOVED)
        net.give(MOVED)
        assert await net.read() == BLOB.data

    async def test_seats_that_changed_meanwhile_are_asked_for_again_by_each_of_two_reads(self, net: Net) -> None:
        net.tell(BEFORE)
        net.tell(MOVED)
        net.give(MOVED)
        read: list[bytes] = []

        async def read_one() -> None:
            read.append(await net.read())

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(read_one)
        assert read == [BLOB.data, BLOB.data]

    async def test_those_of_genesis_are_asked_where_nobody_can_tell(self, net: Net) -> None:
        net.give(GENESIS.committee)
        assert await net.read() == BLOB.data

    async def test_what_too_few_hold_is_not_there(self, net: Net) -> None:
        net.tell(MOVED, BEFORE)
        net.give(BEFORE, [0, 1])
        with pytest.raises(Unavailable):
            await net.read()


class TestWhatIsAudited:
    FROZEN_S = 4.0
    """Less than the 30 s of an audit, so that the test need not wait for as long."""

    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(download, "FROZEN_S", self.FROZEN_S)

    async def test_is_had_from_others_without_blame(self, net: Net) -> None:
        net.tell(BEFORE)
        net.give(BEFORE)
        for shard in (0, 1):
            net.servers[shard].frozen = {(ROOT, shard)}
        assert await net.read() == BLOB.data
        assert not net.members.faults

    async def test_is_waited_for_where_others_are_down(self, net: Net) -> None:
        net.tell(BEFORE)
        net.give(BEFORE, [0, 1, 2])
        net.servers[0].frozen = {(ROOT, 0)}

        async def thaw() -> None:
            await trio.sleep(self.FROZEN_S / 2)
            net.servers[0].frozen = set()

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thaw)
            assert await net.read() == BLOB.data
        assert trio.current_time() >= began + self.FROZEN_S / 2

    async def test_is_waited_for_by_each_of_two_reads(self, net: Net) -> None:
        """One that begins later must not make the other forget why it was refused."""
        net.tell(BEFORE)
        net.give(BEFORE, [0, 1, 2])
        net.servers[0].frozen = {(ROOT, 0)}
        read: list[bytes] = []

        async def read_one() -> None:
            read.append(await net.read())

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(read_one)
            await trio.sleep(self.FROZEN_S / 2)
            net.servers[0].frozen = set()
        assert read == [BLOB.data, BLOB.data]
