"""An upload ends with a quorum's certificate, drops who is late only when it may, and names why it cannot end."""

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing

from economics.arguments import Certify, Reserve
from economics.commitments import ZERO_RESERVATION, ReservationId
from economics.errors import Reason
from economics.genesis import Genesis
from economics.ledger import Code
from p2pnode.clients import upload as module
from p2pnode.clients.upload import (
    BEHIND_GRACE_S,
    TAIL_S,
    Deal,
    EpochEnded,
    Progress,
    Stored,
    TooFewNodes,
    Uploader,
)
from p2pnode.coding.codec import Kind
from p2pnode.coding.encoder import Encoder, open_encoder
from p2pnode.content.sources import FileSource
from p2pnode.errors import InputError, NodeError, PeerUnreachable, SpaceError, Unpaid
from p2pnode.keys import Key
from p2pnode.members import FaultKind, Refused
from p2pnode.network.stream import Stream
from p2pnode.slivers.storage import Reply, send_honestly
from tests.chain import Chain
from tests.p2pnode.reseated import seat
from tests.p2pnode.server import MemoryNetwork, Server, make_members
from tests.small import (
    OPERATORS,
    OTHER_OWNER,
    OWNER,
    UPLOADER,
    encode_blob,
    make_codec,
    make_genesis,
    reservation_of,
)

PATIENT_S = 60.0
FOUR = make_genesis((1, 1, 1, 1))
"""Quorum 3 of 4 members."""
THREE = make_genesis((1, 2, 4))
"""7 shards, quorum 5: the third member and any other."""


@pytest.fixture(autouse=True)
def _patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no member be late in the machine's time, of which it may have little: only in that of a clock in hand."""
    if "mock_clock" not in request.fixturenames:
        monkeypatch.setattr(module, "BEHIND_GRACE_S", PATIENT_S)
        monkeypatch.setattr(module, "TAIL_S", PATIENT_S)


class Run:
    """One upload to servers in memory, and what it reports."""

    def __init__(self, directory: Path, genesis: Genesis, nursery: trio.Nursery) -> None:
        self.genesis = genesis
        self.chain = Chain.begin_reserved(genesis)
        self.servers = [
            Server(directory / str(index), genesis=genesis, key=OPERATORS[index], chain=self.chain)
            for index in range(len(genesis.members))
        ]
        for index, server in enumerate(self.servers):
            server.server.manner = partial(self.answer, index)
        self.network = MemoryNetwork(self.servers, nursery)
        self.members = make_members(self.network, genesis)
        self.file = directory / "file"
        self.held: set[tuple[int, str]] = set()
        """(member, operation): answers that wait."""
        self.progress: list[Progress] = []
        self.stored: Stored | None = None
        self.encoder: Encoder | None = None
        self._changed = trio.Event()

    async def answer(self, index: int, stream: Stream, operation: str, reply: Reply) -> None:
        while (index, operation) in self.held:
            await self._changed.wait()
        await send_honestly(stream, operation, reply)

    def change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def let_go(self) -> None:
        self.held.clear()
        self.change()

    def report(self, progress: Progress) -> None:
        self.progress.append(progress)
        self.change()

    async def until(self, condition: Callable[[Progress], bool]) -> None:
        while not (self.progress and condition(self.progress[-1])):
            await self._changed.wait()

    async def store(self, data: bytes, *, owner: Key = OWNER) -> Stored:
        self.file.write_bytes(data)
        async with open_encoder(make_codec(self.genesis), length=len(data)) as self.encoder:
            uploader = self.make_uploader(self.encoder, owner)
            self.stored = await uploader.run(FileSource(self.file, len(data)), partial(self.agree, owner))
            assert len(self.encoder._free) == len(self.encoder.slots)
        return self.stored

    def make_uploader(self, encoder: Encoder, owner: Key) -> Uploader:
        return Uploader(
            members=self.members.seated(self.chain.ledger.committee),
            encoder=encoder,
            owner=owner,
            uploader=UPLOADER.public,
            height=self.chain.ledger.height,
            report=self.report,
        )

    async def agree(self, owner: Key) -> Deal:
        return self.deal(reservation_of(self.genesis, owner))

    def deal(self, reservation: ReservationId) -> Deal:
        """Return what the chain says now."""
        ledger = self.chain.ledger
        return Deal(ledger.committee, ledger.height, reservation, deletable=True)


@asynccontextmanager
async def open_run(directory: Path, genesis: Genesis = FOUR) -> AsyncIterator[Run]:
    """Run servers while the block lasts, at most 20 s of the real time: most tests here stop the clock of trio."""
    done = threading.Event()

    async def watch() -> None:
        if not await trio.to_thread.run_sync(done.wait, 20):
            raise TimeoutError("nothing that the test waits for has come")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        try:
            yield Run(directory, genesis, nursery)
        finally:
            done.set()
        nursery.cancel_scope.cancel()


def content(length: int) -> bytes:
    return Random(length).randbytes(length)


async def failure(run: Run, data: bytes) -> NodeError:
    """Return the error that an upload ends with, bare: callers catch it by its kind."""
    with pytest.raises(NodeError) as caught:
        await run.store(data)
    return caught.value


async def settle(seconds: float, clock: trio.testing.MockClock) -> None:
    """Let so much time pass, and all that follows from it happen."""
    await trio.testing.wait_all_tasks_blocked()
    clock.jump(seconds)
    await trio.testing.wait_all_tasks_blocked(0.02)


@pytest.mark.parametrize("genesis", [FOUR, THREE], ids=["4 of 1 shard", "3 of 7 shards"])
@pytest.mark.parametrize("length", [0, 1, 1000, 1001, 4500])
async def test_every_member_ends_with_what_it_owes_and_anyone_can_verify_the_certificate(
    tmp_path: Path, genesis: Genesis, length: int
) -> None:
    data = content(length)
    blob = encode_blob(genesis.code, data)
    async with open_run(tmp_path, genesis) as run:
        stored = await run.store(data)
    assert (stored.blob_id, stored.length, stored.faults) == (blob.header.blob_id, length, ())
    assert (stored.committed, stored.present_segments) == (genesis.code.n, 0)
    statement = stored.certificate.statement
    assert (statement.blob_id, statement.length, statement.owner) == (blob.header.blob_id, length, OWNER.public)
    assert statement.reservation == reservation_of(genesis)
    stored.certificate.verify(committee=genesis.committee)
    sent = sum(genesis.code.n * genesis.code.pair_bytes(segment.z) for segment in blob.segments)
    assert stored.sent_bytes == sent
    for index, server in enumerate(run.servers):
        for segment in blob.segments:
            for shard in genesis.committee.shards_of(index):
                pair = genesis.code.pair_of_shard(shard, segment.root)
                read = server.store.read_symbols(segment.root, Kind.PRIMARY, pair, first=0, count=genesis.code.columns)
                assert read.data == segment.primary(pair)
    last = run.progress[-1]
    assert last == Progress(len(blob.segments), len(blob.segments), len(blob.segments), last.committed, last.quorum)


async def test_the_same_file_again_sends_nothing(tmp_path: Path) -> None:
    async with open_run(tmp_path) as run:
        first = await run.store(content(2500))
        again = await run.store(content(2500))
        assert (again.sent_bytes, again.present_segments) == (0, 3 * 4)
        assert again.blob_id == first.blob_id
        assert again.certificate.statement != first.certificate.statement
        theirs = await run.store(content(2500), owner=OTHER_OWNER)
        assert theirs.sent_bytes == 0
        more = await run.store(content(2500)[:2000] + b"another end")
        assert more.present_segments == 2 * 4


class TestReservation:
    async def test_may_come_while_the_file_is_sent_and_the_statement_names_it(self, tmp_path: Path) -> None:
        async with open_run(tmp_path) as run:
            run.file.write_bytes(content(2500))

            async def buy() -> Deal:
                """Only now, when all is sent, does it exist."""
                await run.until(lambda now: now.stored == now.segments)
                assert all(server.store.unclosed_bytes for server in run.servers)
                return run.deal(run.chain.reserve(OWNER, Reserve(units=1, start_epoch=0, end_epoch=1)))

            async with open_encoder(make_codec(FOUR), length=2500) as encoder:
                stored = await run.make_uploader(encoder, OWNER).run(FileSource(run.file, 2500), buy)
        assert run.chain.run(OWNER, Certify(stored.certificate)) is Code.OK
        entry = run.chain.ledger.entry(stored.blob_id, stored.certificate.statement.reservation)
        assert entry is not None
        assert (entry.units, entry.end_epoch) == (1, 1)

    async def test_that_cannot_be_had_ends_the_upload_with_its_own_error(self, tmp_path: Path) -> None:
        async with open_run(tmp_path) as run:
            run.file.write_bytes(content(10))

            async def refuse() -> Deal:
                raise Unpaid("the wallet is empty")

            async with open_encoder(make_codec(FOUR), length=10) as encoder:
                with pytest.raises(Unpaid, match="the wallet is empty"):
                    await run.make_uploader(encoder, OWNER).run(FileSource(run.file, 10), refuse)

    async def test_that_is_another_owner_s_is_signed_for_by_nobody(self, tmp_path: Path) -> None:
        async with open_run(tmp_path) as run:
            run.file.write_bytes(content(10))

            async def borrow() -> Deal:
                return await run.agree(OTHER_OWNER)

            async with open_encoder(make_codec(FOUR), length=10) as encoder:
                with pytest.raises(TooFewNodes, match="the reservation is another owner's"):
                    await run.make_uploader(encoder, OWNER).run(FileSource(run.file, 10), borrow)
        assert [server.signed for server in run.servers] == [[]] * 4

    async def test_that_is_refused_is_told_whatever_members_did_in_calls_before(self, tmp_path: Path) -> None:
        """A client that stays open stores again: who refuses now may have been away an hour ago."""
        async with open_run(tmp_path) as run:
            run.file.write_bytes(content(10))
            for member in range(4):
                run.members.blame(member, PeerUnreachable("an hour ago"))

            async def reserve_nothing() -> Deal:
                return run.deal(ZERO_RESERVATION)

            async with open_encoder(make_codec(FOUR), length=10) as encoder:
                with pytest.raises(TooFewNodes, match="nobody signs for what is not paid") as caught:
                    await run.make_uploader(encoder, OWNER).run(FileSource(run.file, 10), reserve_nothing)
        assert caught.value.unpaid
        assert "an hour ago" not in str(caught.value)


class TestEpochs:
    def fall_behind(self, run: Run, *members: int) -> None:
        """End an epoch everywhere but at these members."""
        for member in members:
            run.servers[member].chain = Chain(run.chain.ledger.fork(), run.chain.time_ms)
        run.chain.end_epoch()

    async def test_a_commitment_of_the_last_one_does_not_count(self, tmp_path: Path) -> None:
        """Its member is behind, or ahead: the upload goes on without it, and that is no fault of it."""
        async with open_run(tmp_path) as run:
            self.fall_behind(run, 2)
            stored = await run.store(content(10))
        assert stored.faults == ()
        assert [signer for signer, _ in stored.certificate.signatures] == [0, 1, 3]
        stored.certificate.verify(committee=run.chain.ledger.committee)

    async def test_without_a_quorum_under_the_newest_there_is_no_certificate_until_the_rest_follows(
        self, tmp_path: Path
    ) -> None:
        async with open_run(tmp_path) as run:
            self.fall_behind(run, 2, 3)
            assert isinstance(await failure(run, content(10)), EpochEnded)
            for member in (2, 3):
                run.servers[member].chain = run.chain
            stored = await run.store(content(10))
        assert (stored.present_segments, stored.committed) == (2, 4)
        assert stored.certificate.epoch == 1

    async def test_with_another_committee_end_the_upload(self, tmp_path: Path) -> None:
        """What was dealt to the old members is not what the new ones owe."""
        async with open_run(tmp_path) as run:
            other = seat(FOUR, (1, 0, 2, 3), epoch=1)
            deal = Deal(other, 1, reservation_of(FOUR, OWNER), deletable=True)
            run.deal = lambda reservation: deal  # type: ignore[method-assign]
            assert isinstance(await failure(run, content(10)), EpochEnded)

    async def test_that_end_while_the_file_is_sent_change_nothing(self, tmp_path: Path) -> None:
        async with open_run(tmp_path) as run, trio.open_nursery() as nursery:
            run.held = {(index, "segment") for index in range(4)}
            nursery.start_soon(run.store, content(10))
            await run.until(lambda now: now.encoded == 1)
            run.chain.end_epoch()
            run.let_go()
            await run.until(lambda now: now.committed == 4)
        assert run.stored is not None
        assert run.chain.run(OWNER, Certify(run.stored.certificate)) is Code.OK


class TestLateMembers:
    async def test_are_dropped_when_a_quorum_is_ahead_and_the_grace_is_over(
        self, tmp_path: Path, mock_clock: trio.testing.MockClock
    ) -> None:
        async with open_run(tmp_path) as run, trio.open_nursery() as nursery:
            run.held = {(3, "segment")}
            nursery.start_soon(run.store, content(4500))
            await run.until(lambda now: (now.encoded, now.stored) == (3, 3))
            await settle(BEHIND_GRACE_S - 0.01, mock_clock)
            assert (run.members.faults, run.progress[-1].encoded) == ({}, 3)
            mock_clock.jump(0.02)
            await run.until(lambda now: now.committed == 3)
        assert run.stored is not None
        assert [(fault.member, fault.kind, fault.detail) for fault in run.stored.faults] == [
            (3, FaultKind.REFUSED, "incomplete: 2 segments behind")
        ]
        assert run.stored.committed == 3

    async def test_that_catch_up_within_the_grace_are_kept(
        self, tmp_path: Path, mock_clock: trio.testing.MockClock
    ) -> None:
        async with open_run(tmp_path) as run, trio.open_nursery() as nursery:
            run.held = {(3, "segment")}
            nursery.start_soon(run.store, content(4500))
            await run.until(lambda now: (now.encoded, now.stored) == (3, 3))
            await settle(BEHIND_GRACE_S - 0.01, mock_clock)
            run.let_go()
            await run.until(lambda now: now.committed == 4)
        assert run.stored is not None
        assert (run.stored.committed, run.stored.faults) == (4, ())

    async def test_are_waited_for_while_no_quorum_is_ahead(
        self, tmp_path: Path, mock_clock: trio.testing.MockClock
    ) -> None:
        async with open_run(tmp_path) as run, trio.open_nursery() as nursery:
            run.held = {(2, "segment"), (3, "segment")}
            nursery.start_soon(run.store, content(4500))
            await run.until(lambda now: now.encoded == 3)
            await settle(100 * BEHIND_GRACE_S, mock_clock)
            assert run.members.faults == {}
            assert run.progress[-1] == Progress(5, 3, 0, 0, 3)
            run.let_go()
            await run.until(lambda now: now.committed == 4)
        assert run.stored is not None
        assert run.stored.faults == ()

    async def test_get_a_short_tail_to_sign_after_the_quorum(
        self, tmp_path: Path, mock_clock: trio.testing.MockClock
    ) -> None:
        async with open_run(tmp_path) as run, trio.open_nursery() as nursery:
            run.held = {(3, "close")}
            nursery.start_soon(run.store, content(100))
            await run.until(lambda now: now.committed == 3)
            await settle(TAIL_S - 0.01, mock_clock)
            assert run.stored is None
            mock_clock.jump(0.02)
        assert run.stored is not None
        assert (run.stored.committed, run.stored.faults) == (3, ())

    async def test_cost_no_processor_while_commitments_are_waited_for(
        self, tmp_path: Path, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        turns = 0
        wait = Uploader._next_change

        async def count(uploader: Uploader, limit_s: float = float("inf")) -> bool:
            nonlocal turns
            turns += 1
            return await wait(uploader, limit_s)

        monkeypatch.setattr(Uploader, "_next_change", count)
        async with open_run(tmp_path) as run, trio.open_nursery() as nursery:
            run.held = {(3, "segment"), (0, "close"), (1, "close"), (2, "close")}
            nursery.start_soon(run.store, content(2500))
            await run.until(lambda now: (now.encoded, now.stored) == (3, 3))
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(10 * BEHIND_GRACE_S)
            before = turns
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            assert turns - before < 10
            run.let_go()
        assert run.stored is not None
        assert run.stored.committed == 4


class TestFailure:
    async def test_of_fewer_members_than_spoil_the_quorum_is_named_and_no_more(self, tmp_path: Path) -> None:
        async with open_run(tmp_path) as run:
            run.network.down = {1}
            stored = await run.store(content(4500))
        assert stored.committed == 3
        assert [(fault.member, fault.kind) for fault in stored.faults] == [(1, FaultKind.UNREACHABLE)]

    async def test_of_too_many_names_each(self, tmp_path: Path) -> None:
        async with open_run(tmp_path) as run:
            run.network.down = {1, 3}
            error = await failure(run, content(4500))
        assert isinstance(error, TooFewNodes)
        assert "members with 2 shards take part, 3 are needed" in str(error)
        for member in (1, 3):
            assert str(run.members.faults[member]) in str(error)
        assert "unreachable: no answer" in str(error)

    async def test_of_the_heaviest_member_alone_can_be_too_many(self, tmp_path: Path) -> None:
        async with open_run(tmp_path, THREE) as run:
            run.network.down = {2}
            assert isinstance(await failure(run, content(10)), TooFewNodes)
            run.network.down = {0}
            run.members.forgive_all()
            assert (await run.store(content(10))).committed == 6

    async def test_for_want_of_space_says_so(self, tmp_path: Path) -> None:
        async with open_run(tmp_path) as run:
            run.servers[2].store.quota_bytes = 1000
            stored = await run.store(content(4500))
            assert [(fault.member, fault.kind) for fault in stored.faults] == [(2, FaultKind.REFUSED)]
            run.servers[1].store.quota_bytes = 1000
            error = await failure(run, content(4600))
        assert isinstance(error, SpaceError)
        assert str(error).count("over_budget: the quota of 1000 bytes is used up") == 2

    async def test_says_what_failed_now_and_not_what_did_in_calls_before(self, tmp_path: Path) -> None:
        async with open_run(tmp_path) as run:
            run.members.blame(1, Refused(Reason.OVER_BUDGET, "full an hour ago", retry=True))
            assert (await run.store(content(4500))).faults == ()
            run.network.down = {1, 3}
            error = await failure(run, content(4600))
        assert isinstance(error, TooFewNodes)
        assert str(error).count("unreachable: no answer") == 2

    async def test_keeps_what_was_sent_for_the_next_try(self, tmp_path: Path) -> None:
        async with open_run(tmp_path) as run:
            run.held = {(1, "close"), (3, "close")}
            for index in (1, 3):
                run.servers[index].server.sign = OPERATORS[5].sign
            async with trio.open_nursery() as nursery:

                async def fail() -> None:
                    assert isinstance(await failure(run, content(10)), TooFewNodes)

                nursery.start_soon(fail)
                await run.until(lambda now: now.committed == 2)
                run.let_go()
            for index in (1, 3):
                run.servers[index].server.sign = OPERATORS[index].sign
            run.members.forgive_all()
            stored = await run.store(content(10))
        assert (stored.sent_bytes, stored.present_segments, stored.committed) == (0, 4, 4)

    async def test_of_a_member_to_sign_as_itself_leaves_it_out(self, tmp_path: Path) -> None:
        async with open_run(tmp_path) as run:
            run.servers[1].server.sign = OPERATORS[5].sign
            stored = await run.store(content(10))
        assert stored.committed == 3
        assert 1 not in [signer for signer, _ in stored.certificate.signatures]
        assert [(fault.member, fault.kind) for fault in stored.faults] == [(1, FaultKind.WRONG_BYTES)]

    async def test_of_a_file_that_shrinks_is_the_user_s_to_mend(self, tmp_path: Path) -> None:
        async with open_run(tmp_path) as run:
            run.file.write_bytes(content(1500))
            async with open_encoder(make_codec(FOUR), length=2500) as encoder:
                with pytest.raises(InputError, match="became shorter while it was read"):
                    await run.make_uploader(encoder, OWNER).run(FileSource(run.file, 2500), partial(run.agree, OWNER))
