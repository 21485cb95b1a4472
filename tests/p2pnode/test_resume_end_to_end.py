"""Kill the client at any moment with SIGKILL: the same command goes on, and next to nothing moves twice."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from economics.blob import parse_blob_id
from economics.geometry import Code
from p2pnode import testnet
from p2pnode.clients.payments import format_amount
from p2pnode.content.resume import build_part_path
from p2pnode.errors import ExitCode
from p2pnode.testnet import Network
from tests.p2pnode.command import WAIT_S, finish, make_file, p2pnode, start, wait_for, wait_for_height

CODE = Code(4, 1 << 20)
MEMBERS = 4
SEGMENTS = 40
SIZE = SEGMENTS * CODE.segment_bytes
PAIR_BYTES = CODE.pair_bytes(CODE.symbol_bytes(CODE.segment_bytes))
"""What one of four members with a shard each gets of a segment."""
ON_THEIR_WAY = 3
"""So many segments are sent at once; of each a member may have taken its part when the client is killed, or not."""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """4 nodes with a shard each, and segments of 1 MiB."""
    network = testnet.up(tmp_path_factory.mktemp("net"), nodes=4, shards=CODE.n, segment_bytes=CODE.segment_bytes)
    wait_for_height(network, 1)
    yield network
    testnet.down(network)


def stop_when(process: "subprocess.Popen[bytes]", condition: Callable[[], bool]) -> None:
    """Stop a process, so that it can be looked at and killed, as soon as something is so; fails where it ends first."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert process.poll() is None, f"it ended before it could be stopped: {finish(process)}"
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)


def kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    assert finish(process).code == -signal.SIGKILL


def pieces(network: Network) -> int:
    """Return how many segments' slivers are on the disks of all members."""
    return sum(len(list(Path(one.home, "store", "slivers").rglob("*.?"))) for one in network.processes)


def has_pieces(network: Network, count: int) -> bool:
    return pieces(network) >= count


def has_segments(part: Path, count: int) -> bool:
    return part.exists() and part.stat().st_size >= count * CODE.segment_bytes


def balance(home: Path) -> int:
    found: int = p2pnode("wallet", "balance", "--json", home=home).json["balance_frost"]
    return found


def test_a_store_that_is_killed_goes_on_and_is_paid_once(network: Network, tmp_path: Path) -> None:
    home = network.client_home.path
    price = p2pnode("store", "--json", make_file(tmp_path / "other", SIZE, seed=9), home=home).json["paid_frost"]
    file, before, there = make_file(tmp_path / "file", SIZE), balance(home), pieces(network)
    process = start("store", file, home=home)
    stop_when(process, partial(has_pieces, network, there + 8 * MEMBERS))
    while (reserved := before - balance(home)) == 0:  # paid while it uploads: there, unless the machine is very slow
        process.send_signal(signal.SIGCONT)
        stop_when(process, partial(has_pieces, network, pieces(network) + 1))
    on_disk = pieces(network) - there
    kill(process)

    stored = p2pnode("store", "--json", file, home=home)
    assert stored.code == ExitCode.OK, stored.err
    present, sent = stored.json["segments_present"], stored.json["sent_bytes"]
    assert sent <= (SEGMENTS * MEMBERS - on_disk) * PAIR_BYTES
    if not stored.json["faults"]:  # on a busy machine a member may be called slow, and get less
        assert on_disk <= present <= on_disk + ON_THEIR_WAY * MEMBERS
        assert sent == (SEGMENTS * MEMBERS - present) * PAIR_BYTES
    paid = reserved + stored.json["paid_frost"]
    assert stored.json["transactions"] == 1
    wait_for(lambda: before - balance(home) == paid)
    assert format_amount(paid)[:6] == format_amount(price)[:6]
    back = p2pnode("read", stored.json["blob_id"], "-o", tmp_path / "back", home=home)
    assert (back.code, (tmp_path / "back").read_bytes()) == (ExitCode.OK, file.read_bytes())


@pytest.mark.parametrize("words", [(), ("--encrypt",)], ids=["plain", "sealed"])
def test_a_read_that_is_killed_goes_on_and_its_target_stays_until_the_end(
    words: tuple[str, ...], network: Network, tmp_path: Path
) -> None:
    home, file, target = network.client_home.path, make_file(tmp_path / "file", SIZE, seed=2), tmp_path / "back"
    blob_id = p2pnode("store", *words, file, home=home).out.decode().split()[-1]
    part = build_part_path(target, parse_blob_id(blob_id))
    target.write_bytes(b"old")
    for segments in (3, 8):  # the second time there is something to go on with
        process = start("read", blob_id, "-o", target, home=home)
        stop_when(process, partial(has_segments, part, segments))
        refused = p2pnode("read", blob_id, "-o", target, home=home)
        kill(process)
        assert target.read_bytes() == b"old"
    assert (refused.code, "another process is writing the same blob" in refused.err) == (ExitCode.INPUT, True)
    kept = part.stat().st_size
    done = p2pnode("read", "--json", blob_id, "-o", target, home=home).json
    assert done["length"] == SIZE
    assert kept - CODE.segment_bytes - 2 * 65_536 <= done["kept_bytes"] <= kept
    assert target.read_bytes() == file.read_bytes()
    assert not part.exists()


def test_a_read_that_is_interrupted_says_that_it_goes_on(network: Network, tmp_path: Path) -> None:
    home, target = network.client_home.path, tmp_path / "back"
    blob_id = p2pnode("store", make_file(tmp_path / "file", SIZE, seed=2), home=home).out.decode().strip()
    part = build_part_path(target, parse_blob_id(blob_id))
    process = start("read", blob_id, "-o", target, home=home)
    stop_when(process, partial(has_segments, part, 3))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    interrupted = finish(process)
    assert interrupted.code == ExitCode.INTERRUPTED
    assert "the same command goes on from there" in interrupted.err
    assert has_segments(part, 3)


# --- folders ---------------------------------------------------------------------------------------------------------

FILES = {"a/large": 14, "b/large": 12, "c": 6}
"""MiB of each: a blob of its own."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    for seed, (name, mebibytes) in enumerate(FILES.items(), start=20):
        (root / name).parent.mkdir(exist_ok=True)
        make_file(root / name, mebibytes << 20, seed=seed)
    for number in range(10):
        make_file(root / f"{number}", 1000 + number, seed=number)
    return root


def size_of(directory: Path) -> int:
    """Return how many bytes are in a folder, in files that others may be renaming."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) if directory.exists() else 0


def has_bytes(directory: Path, count: int) -> bool:
    try:
        return size_of(directory) >= count
    except FileNotFoundError:
        return False


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder_id(network: Network, folder: Path) -> str:
    """Store the folder in two goes, the first of which is killed."""
    home, there = network.client_home.path, pieces(network)
    process = start("store", folder, home=home)
    stop_when(process, partial(has_pieces, network, there + 10 * MEMBERS))
    on_disk = pieces(network) - there
    kill(process)
    stored = p2pnode("store", "--json", folder, home=home)
    assert stored.code == ExitCode.OK, stored.err
    again = p2pnode("store", "--json", folder, home=home).json
    assert (again["sent_bytes"], again["paid_frost"], again["blob_id"]) == (0, 0, stored.json["blob_id"])
    whole = sum(FILES.values()) * MEMBERS * PAIR_BYTES
    small = MEMBERS * 5 * 20_000  # the quilt of small files, and the manifest
    again_bytes = ON_THEIR_WAY * MEMBERS * PAIR_BYTES
    assert stored.json["sent_bytes"] <= whole - on_disk * PAIR_BYTES + small + again_bytes
    found: str = stored.json["blob_id"]
    return found


@pytest.mark.parametrize("command", ["read", "sync"])
def test_a_folder_that_is_half_here_when_the_client_is_killed_is_fetched_by_halves(
    command: str, network: Network, folder: Path, folder_id: str, tmp_path: Path
) -> None:
    home, target = network.client_home.path, tmp_path / "back"
    words = ("read", folder_id, "-o", target) if command == "read" else ("sync", target, folder_id)
    process = start(*words, home=home)
    stop_when(process, partial(has_bytes, target, 16 << 20))
    kill(process)
    left = size_of(folder) - size_of(target)
    done = p2pnode(*words, "--json", home=home)
    assert done.code == ExitCode.OK, done.err
    assert 0 <= done.json["fetched_bytes"] - left <= CODE.segment_bytes
    assert contents(target) == contents(folder)
