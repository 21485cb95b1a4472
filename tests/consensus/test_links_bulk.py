"""Transactions in bulk neither hold up votes nor push them out."""

import pytest
import trio

from p2pnode.consensus import links as links_module
from p2pnode.consensus.links import _Outbox


async def test_bulk_goes_frame_by_frame_behind_what_is_urgent() -> None:
    outbox = _Outbox()
    for frame in (b"bulk 1", b"bulk 2"):
        outbox.put_bulk(frame)
    outbox.put(b"vote 1")
    assert await outbox.take() == [b"vote 1", b"bulk 1"]
    outbox.put(b"vote 2")
    assert await outbox.take() == [b"vote 2", b"bulk 2"]
    with trio.move_on_after(0.01) as scope:
        await outbox.take()
    assert scope.cancelled_caught


def test_bulk_pushes_out_nothing_but_bulk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_module, "QUEUE_BYTES_MAX", 10)
    outbox = _Outbox()
    outbox.put(b"vote")
    for number in range(4):
        outbox.put_bulk(bytes([number]) * 5)
    assert list(outbox.frames) == [b"vote"]
    assert [frame[0] for frame in outbox.bulk] == [2, 3]
    assert (outbox.bulk_size, outbox.dropped) == (10, 2)
