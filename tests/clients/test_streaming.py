"""A view's bytes piece by piece: all of them in order, in bounded memory, and never an end that is a failure."""

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio

from economics.blob import BlobId
from p2pnode.clients.session import Session
from p2pnode.clients.streaming import Feed, JudgedView, parse_range, write_to
from p2pnode.content.views import Write, verify_range
from p2pnode.errors import Closed, InconsistentBlob, InputError, NodeError, Unavailable

PIECES = (b"as ", b"you ", b"like ", b"it")
TEXT = b"".join(PIECES)


class Told:
    """A view of PIECES that counts what was taken, and may fail after some."""

    def __init__(self, *, failing_after: int | None = None) -> None:
        self.failing_after = failing_after
        self.given = 0
        self.ended = False

    @property
    def length(self) -> int:
        return len(TEXT)

    async def read(self, write: Write, *, start: int = 0, stop: int | None = None) -> None:
        assert (start, verify_range(start, stop, self.length)) == (0, len(TEXT))
        try:
            for number, piece in enumerate(PIECES):
                if number == self.failing_after:
                    async with trio.open_nursery():
                        raise Unavailable("too few slivers")
                await write([memoryview(piece[:1]), memoryview(piece[1:])])
                self.given += 1
        finally:
            self.ended = True


@asynccontextmanager
async def feeding(view: Told) -> AsyncIterator[Feed]:
    async with trio.open_nursery() as nursery:
        feed = Feed(view, start=0, stop=None)
        nursery.start_soon(feed.run)
        yield feed
        await feed.close()


async def test_all_pieces_come_in_order() -> None:
    async with feeding(Told()) as feed:
        assert [piece async for piece in feed] == list(PIECES)


async def test_a_piece_is_read_when_the_one_before_is_taken(autojump_clock: object) -> None:
    view = Told()
    async with feeding(view) as feed:
        assert await anext(feed) == PIECES[0]
        await trio.sleep(10)
        assert view.given == 1


async def test_a_reading_that_fails_raises_where_the_pieces_are_taken() -> None:
    async with feeding(Told(failing_after=2)) as feed:
        assert [await anext(feed), await anext(feed)] == [b"as ", b"you "]
        with pytest.raises(Unavailable):
            await anext(feed)


async def test_leaving_early_ends_the_reading() -> None:
    view = Told()
    async with feeding(view) as feed:
        await anext(feed)
    assert view.ended
    assert view.given < len(PIECES)


async def test_outside_its_block_there_are_no_pieces() -> None:
    async with feeding(Told()) as feed:
        await anext(feed)
    with pytest.raises(Closed):
        await anext(feed)


async def test_a_client_that_is_closed_meanwhile_is_no_end_of_the_bytes() -> None:
    feed = Feed(Told(), start=0, stop=None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run)
        await anext(feed)
        nursery.cancel_scope.cancel()
    with pytest.raises(Closed):
        await anext(feed)


class Judge:
    """A session that says of every blob but one that its writer is at fault."""

    def __init__(self, innocent: BlobId) -> None:
        self.innocent = innocent

    async def judge(self, blob_id: BlobId, fault: NodeError) -> NodeError:
        return fault if blob_id == self.innocent else InconsistentBlob("it is proven")


async def test_a_read_that_fails_by_its_writers_fault_says_so_and_any_other_raises_as_it_did() -> None:
    guilty, innocent = BlobId(bytes(32)), BlobId(bytes(31) + b"\1")
    session = cast(Session, Judge(innocent))
    with pytest.raises(InconsistentBlob) as raised:
        await write_to(JudgedView(session, guilty, Told(failing_after=1)), io.BytesIO())
    assert isinstance(raised.value.__cause__, Unavailable)
    with pytest.raises(Unavailable) as plain:
        await write_to(JudgedView(session, innocent, Told(failing_after=1)), io.BytesIO())
    assert plain.value.__cause__ is None
    assert await write_to(JudgedView(session, guilty, Told()), io.BytesIO()) == len(TEXT)


async def test_a_view_is_written_to_a_file() -> None:
    sink = io.BytesIO()
    assert (await write_to(Told(), sink), sink.getvalue()) == (len(TEXT), TEXT)


async def test_what_cannot_be_written_to_is_an_error_of_the_input() -> None:
    closed = io.BytesIO()
    closed.close()
    for sink in (io.StringIO(), closed, 7):
        with pytest.raises(InputError):
            await write_to(Told(), sink)  # type: ignore[arg-type]


def test_a_range_is_within_the_bytes() -> None:
    assert parse_range(3, None, Told()) == (3, len(TEXT))
    for start, stop in ((-1, 2), (0, len(TEXT) + 1), (3, 2), ("0", 2), (0, 1.5), (True, 2)):
        with pytest.raises(InputError):
            parse_range(start, stop, Told())  # type: ignore[arg-type]
