"""A snapshot is cut into chunks that are served whole or not at all; two are kept."""

import os
import struct
from pathlib import Path
from random import Random

import pytest

from economics.crypto import Digest
from p2pnode.consensus.snapshots import CHUNK_BYTES_MAX, Snapshots
from tests.p2pnode.blocks import CHAIN

VALUES = [Random(index).randbytes(index % 400) for index in range(20_000)]
"""Some 4 MB: several chunks."""


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path / "chain" / "snapshots", CHAIN)


def values_of(snapshots: Snapshots, epoch: int) -> list[bytes]:
    found: list[bytes] = []
    for index in range(snapshots.chunks(epoch)):
        chunk = snapshots.chunk(epoch, index)
        assert chunk is not None
        assert len(chunk) <= CHUNK_BYTES_MAX
        while chunk:
            (size,) = struct.unpack_from(">I", chunk)
            found.append(chunk[4 : 4 + size])
            chunk = chunk[4 + size :]
    return found


def test_is_read_back_in_order(snapshots: Snapshots) -> None:
    snapshots.write(7, iter(VALUES))
    assert values_of(snapshots, 7) == VALUES
    assert snapshots.chunks(7) == 4
    assert [snapshots.chunk(7, index) for index in (-1, 4)] == [None, None]


def test_of_any_number_of_values_fills_its_chunks(snapshots: Snapshots) -> None:
    half = bytes(CHUNK_BYTES_MAX // 2 - 4)
    for values, chunks in (([], 0), ([b""], 1), ([half] * 2, 1), ([half] * 2 + [b""], 2), ([half + half], 1)):
        snapshots.write(1, values)
        assert (snapshots.chunks(1), values_of(snapshots, 1)) == (chunks, values)
    with pytest.raises(AssertionError):
        snapshots.write(2, [bytes(CHUNK_BYTES_MAX)])


def test_only_the_last_two_are_kept(snapshots: Snapshots) -> None:
    assert snapshots.epochs() == []
    for epoch in (8, 9, 10, 11):
        snapshots.write(epoch, [b"%d" % epoch])
    assert snapshots.epochs() == [10, 11]
    assert [values_of(snapshots, epoch) for epoch in (9, 10, 11)] == [[], [b"10"], [b"11"]]
    assert [snapshots.chunks(epoch) for epoch in (1, 1 << 62, 1 << 64)] == [0, 0, 0]


def test_that_was_cut_short_leaves_the_old_ones_and_goes_at_the_next(snapshots: Snapshots) -> None:
    def fail() -> object:
        yield b"value"
        raise KeyboardInterrupt

    snapshots.write(1, VALUES[:9])
    with pytest.raises(KeyboardInterrupt):
        snapshots.write(2, fail())  # type: ignore[arg-type]
    assert values_of(snapshots, 1) == VALUES[:9]
    assert snapshots.epochs() == [1]
    snapshots.write(3, VALUES[:5])
    assert sorted(os.listdir(snapshots.directory)) == ["1.state", "3.state"]


def test_of_another_chain_is_none(snapshots: Snapshots) -> None:
    snapshots.write(1, VALUES[:5])
    assert Snapshots(snapshots.directory, Digest(b"d" * 32)).chunks(1) == 0


def test_with_any_byte_changed_or_cut_is_never_a_wrong_chunk(snapshots: Snapshots) -> None:
    snapshots.write(1, VALUES[:20])
    path = snapshots.directory / "1.state"
    data = path.read_bytes()
    whole = snapshots.chunk(1, 0)
    assert whole is not None
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert snapshots.chunk(1, 0) is None
        path.write_bytes(data[:at])
        assert snapshots.chunk(1, 0) is None
