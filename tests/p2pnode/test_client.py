"""The two faces of a client, over real nodes: what comes back, what it costs, what fails and how, what is left."""

import io
import math
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from economics.blob import parse_blob_id
from p2pnode import client as module
from p2pnode.client import Client, SyncClient, connect, open_client
from p2pnode.errors import (
    Closed,
    ConfigError,
    InputError,
    NetworkError,
    NodeError,
    Unavailable,
    Unpaid,
)
from p2pnode.home import Home
from p2pnode.testing import LocalTestnet, local_testnet
from p2pnode.wallet import INTERACTIVE, create_wallet
from tests.p2pnode.command import wait_for
from tests.p2pnode.patience import patience as patience

ROOT = Path(__file__).parent.parent.parent
TEXT = b"as you like it"
UNKNOWN = "A" * 43
SEGMENT_BYTES = 8 << 20


def some_bytes(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.fixture(scope="module")
def client(p2pnode_testnet: LocalTestnet) -> Iterator[SyncClient]:
    with p2pnode_testnet.client() as client:
        yield client


@pytest.fixture(scope="module")
def large(client: SyncClient) -> tuple[str, bytes]:
    """A blob of three segments."""
    data = some_bytes(7, 2 * SEGMENT_BYTES + 1_000_000)
    return client.store(data).blob_id, data


def raised_by(call: Any) -> NodeError:
    with pytest.raises(NodeError) as caught:
        call()
    return caught.value


# --- round trips -----------------------------------------------------------------------------------------------------


def test_what_is_stored_is_read_and_stored_again_moves_and_costs_nothing(client: SyncClient) -> None:
    before = client.balance()
    stored = client.store(TEXT)
    again = client.store(TEXT)
    assert client.read(stored.blob_id) == client.read(parse_blob_id(stored.blob_id)) == TEXT
    assert (stored.length, stored.was_there, stored.end_epoch) == (len(TEXT), False, 30)
    assert (again.blob_id, again.was_there, again.paid) == (stored.blob_id, True, 0)
    assert client.balance() == before - stored.paid < before


def test_a_file_is_read_into_a_file_whole_in_part_and_in_pieces(
    client: SyncClient, large: tuple[str, bytes], tmp_path: Path
) -> None:
    blob_id, data = large
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data)
    target.write_bytes(b"what was there before")
    told: list[tuple[int, int]] = []
    stored = client.store(source, progress=lambda done, total: told.append((done, total)))
    assert (stored.blob_id, stored.was_there, told) == (blob_id, True, [])
    sink = io.BytesIO()
    assert (client.read_to(blob_id, str(target)), client.read_to(blob_id, sink)) == (len(data), len(data))
    assert target.read_bytes() == sink.getvalue() == data
    assert sorted(tmp_path.iterdir()) == [source, target]
    at = SEGMENT_BYTES
    assert client.read_range(blob_id, at - 3, at + 3) == data[at - 3 : at + 3]
    assert client.read_range(blob_id, len(data) - 5, None) == data[-5:]
    assert client.read_range(blob_id, 5, 5) == b""
    with client.stream(blob_id, start=1) as pieces:
        assert b"".join(pieces) == data[1:]


def test_progress_ends_with_all_bytes_at_a_quorum(client: SyncClient) -> None:
    told: list[tuple[int, int]] = []
    client.store(some_bytes(8, 100_000), progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (100_000, 100_000)


def test_nothing_at_all_is_a_blob_too(client: SyncClient) -> None:
    blob_id = client.store(b"").blob_id
    assert client.read(blob_id) == b""
    assert client.info(blob_id).kind == "bytes"
    assert list(client.stream(blob_id)) == []


# --- quilts and sealed blobs -----------------------------------------------------------------------------------------


def test_many_files_are_one_blob_and_each_is_read_alone(client: SyncClient, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"of a file")
    stored = client.store_many({"a/b": b"one", "c": tmp_path / "file", "empty": b""})
    assert client.info(stored.blob_id).kind == "quilt"
    assert [client.read(stored.blob_id, name) for name in ("a/b", "c", "empty")] == [b"one", b"of a file", b""]
    assert client.read_range(stored.blob_id, 3, None, "c") == b"a file"
    assert client.read_to(stored.blob_id, tmp_path / "c", "c") == 9
    assert (tmp_path / "c").read_bytes() == b"".join(client.stream(stored.blob_id, "c")) == b"of a file"
    assert client.store_many({"empty": b"", "c": b"of a file", "a/b": b"one"}).blob_id == stored.blob_id
    for call in (partial(client.read, stored.blob_id, "d"), partial(client.read, client.store(TEXT).blob_id, "c")):
        assert isinstance(raised_by(call), InputError)


def test_what_is_encrypted_opens_at_this_home_alone(
    p2pnode_testnet: LocalTestnet, client: SyncClient, tmp_path: Path
) -> None:
    data = some_bytes(11, 200_000)
    stored = client.store(data, encrypt=True)
    files = client.store_many({"a": b"one"}, encrypt=True)
    assert stored.length > len(data)
    assert client.store(data, encrypt=True).was_there
    assert client.read(stored.blob_id) == data
    assert client.read_range(stored.blob_id, 65_530, 65_540) == data[65_530:65_540]
    assert client.read_to(stored.blob_id, tmp_path / "plain") == len(data)
    assert (tmp_path / "plain").read_bytes() == data
    assert client.read(files.blob_id, "a") == b"one"
    infos = [client.info(blob_id) for blob_id in (stored.blob_id, files.blob_id)]
    assert [(info.is_encrypted, info.kind) for info in infos] == [(True, "bytes"), (True, "quilt")]
    kept = set(Home(p2pnode_testnet.home).sealed_keys_path.iterdir())
    assert isinstance(raised_by(partial(client.store, b"dear", encrypt=True, max_cost=0)), Unpaid)
    assert len(set(Home(p2pnode_testnet.home).sealed_keys_path.iterdir()) - kept) == 1  # kept before it is paid for
    home = Home(tmp_path / "other")
    home.put_genesis(Home(p2pnode_testnet.home).load_genesis())
    with connect(home) as other:
        assert other.info(files.blob_id).kind == "sealed"
        assert data[:64] not in other.read(stored.blob_id)
        assert isinstance(raised_by(partial(other.read, files.blob_id, "a")), InputError)


# --- folders ---------------------------------------------------------------------------------------------------------


def tree(directory: Path) -> dict[str, bytes | None]:
    """Return what is below a folder: the bytes of each file, None for a folder."""
    found = sorted(directory.rglob("*"))
    return {str(path.relative_to(directory)): None if path.is_dir() else path.read_bytes() for path in found}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    directory = tmp_path / "folder"
    (directory / "inner").mkdir(parents=True)
    (directory / "nothing").mkdir()
    (directory / "a").write_bytes(b"one")
    (directory / "inner" / "b").write_bytes(some_bytes(12, 300_000))
    (directory / "inner" / "large").write_bytes(some_bytes(13, 2_000_000))
    return directory


@pytest.mark.parametrize("encrypt", [False, True], ids=["open", "encrypted"])
def test_a_folder_is_stored_read_and_stored_again_for_what_changed(
    client: SyncClient, folder: Path, tmp_path: Path, encrypt: bool
) -> None:
    (folder / "link").symlink_to("a")
    told: list[tuple[int, int]] = []
    stored = client.store_folder(folder, encrypt=encrypt, progress=lambda done, total: told.append((done, total)))
    assert (stored.files, stored.length, stored.end_epoch, stored.was_there) == (3, 2_300_003, 30, False)
    assert told[-1][0] == told[-1][1] > stored.length
    assert [line.partition(":")[0] for line in stored.skipped] == [str(folder / "link")]
    (folder / "link").unlink()
    again = client.store_folder(str(folder), encrypt=encrypt)
    assert (again.blob_id, again.was_there, again.paid) == (stored.blob_id, True, 0)
    info = client.info(stored.blob_id)
    assert (info.is_encrypted, info.kind) == (encrypt, "folder")
    assert [file.path for file in client.files(stored.blob_id)] == ["a", "inner/b", "inner/large", "nothing/"]
    assert client.read(stored.blob_id, "inner/b") == (folder / "inner" / "b").read_bytes()
    assert client.read_folder(stored.blob_id, tmp_path / "copy").fetched == 3
    assert tree(tmp_path / "copy") == tree(folder)
    (folder / "a").write_bytes(b"two")
    changed = client.store_folder(folder, encrypt=encrypt)
    assert 0 < changed.paid < stored.paid / 10, (changed.paid, stored.paid)
    restored = client.read_folder(changed.blob_id, tmp_path / "copy", delete=True)
    assert (restored.fetched, tree(tmp_path / "copy")) == (1, tree(folder))


def test_what_is_no_folder_is_said_so(client: SyncClient, folder: Path, tmp_path: Path) -> None:
    plain = client.store(TEXT).blob_id
    for call in (
        partial(client.store_folder, folder / "a"),
        partial(client.store_folder, folder / "none"),
        partial(client.read_folder, plain, tmp_path / "copy"),
        partial(client.files, plain),
    ):
        assert isinstance(raised_by(call), InputError)
    assert not (tmp_path / "copy").exists()


# --- what a wallet keeps ---------------------------------------------------------------------------------------------


def test_a_blob_is_listed_extended_once_and_deleted(client: SyncClient) -> None:
    stored = client.store(b"for a while", epochs=2)
    claim = next(entry for entry in client.list() if entry.blob_id == stored.blob_id)
    assert (claim.end_epoch, claim.length, claim.deletable) == (2, 11, True)
    before = client.balance()
    extended = client.extend(stored.blob_id, 5)
    after = client.balance()
    assert after < before
    assert client.extend(stored.blob_id, 5) == client.extend(stored.blob_id, 4) == extended
    assert (extended.end_epoch, client.balance()) == (5, after)
    info = client.info(stored.blob_id)
    assert (info.is_live, info.epoch, info.length, info.end_epoch, info.entries) == (True, 0, 11, 5, ((5, 1),))
    assert info.own == (extended,)
    deleted = client.delete(stored.blob_id)
    assert (deleted.blob_id, deleted.entries, deleted.permanent) == (stored.blob_id, 1, 0)
    assert stored.blob_id not in [entry.blob_id for entry in client.list()]
    assert isinstance(raised_by(partial(client.delete, stored.blob_id)), InputError)


def test_what_is_permanent_cannot_be_deleted(client: SyncClient) -> None:
    stored = client.store(b"for ever, nearly", deletable=False)
    fault = raised_by(partial(client.delete, stored.blob_id))
    assert (type(fault), fault.retry) == (InputError, False)


def test_a_blob_that_nobody_knows_is_not_live(client: SyncClient) -> None:
    info = client.info(UNKNOWN)
    assert (info.is_live, info.length, info.end_epoch, info.entries, info.own) == (False, None, None, (), ())
    assert info.kind is None


# --- failures --------------------------------------------------------------------------------------------------------


def failing(client: SyncClient, blob_id: str, tmp_path: Path) -> list[tuple[Any, type[NodeError], bool]]:
    """Return calls, the error that each raises, and whether that says that it may be tried again."""
    return [
        (lambda: client.read("x"), InputError, False),
        (lambda: client.read(None), InputError, False),  # type: ignore[arg-type]
        (lambda: client.read(blob_id, size_max=3), InputError, False),
        (lambda: client.read_range(blob_id, 0, 1 << 40), InputError, False),
        (lambda: client.read_range(blob_id, -1, 2), InputError, False),
        (lambda: client.stream(blob_id, start=1 << 40), InputError, False),
        (lambda: client.read_to(blob_id, tmp_path), InputError, False),
        (lambda: client.read_to(blob_id, tmp_path / "no" / "such"), InputError, False),
        (lambda: client.store(tmp_path), InputError, False),
        (lambda: client.store(tmp_path / "none"), InputError, False),
        (lambda: client.store(TEXT, epochs=0), InputError, False),
        (lambda: client.store(TEXT, max_cost="much"), InputError, False),
        (lambda: client.extend(blob_id, "tomorrow"), InputError, False),  # type: ignore[arg-type]
        (lambda: client.extend(UNKNOWN, 9), InputError, False),
        (lambda: client.extend(blob_id, 54), InputError, False),
        (lambda: client.store(b"too dear", max_cost=1), Unpaid, False),
        (lambda: client.read(UNKNOWN), Unavailable, True),
        (lambda: client.stream(UNKNOWN), Unavailable, True),
    ]


def test_each_failure_has_one_type_and_says_whether_to_try_again(client: SyncClient, tmp_path: Path) -> None:
    blob_id = client.store(TEXT, epochs=2).blob_id
    before = client.balance()
    for number, (call, kind, retry) in enumerate(failing(client, blob_id, tmp_path)):
        fault = raised_by(call)
        assert (number, type(fault), fault.retry, "\n" in str(fault)) == (number, kind, retry, False)
    assert client.balance() == before
    assert list(tmp_path.iterdir()) == []


def test_with_too_few_nodes_a_store_may_be_tried_again_and_then_goes_on(
    p2pnode_testnet: LocalTestnet, client: SyncClient
) -> None:
    data = some_bytes(9, 50_000)
    client.delete(client.store(some_bytes(10, 50_000)).blob_id)  # what it took is left: no transaction to wait for
    client.balance()  # the chain shows it
    for index in (0, 1):
        p2pnode_testnet.kill(index)
    try:
        fault = raised_by(partial(client.store, data))
    finally:
        for index in (0, 1):
            p2pnode_testnet.restart(index)
    assert isinstance(fault, NetworkError)
    assert fault.retry
    assert client.read(client.store(data).blob_id) == data


def test_a_home_without_a_network_or_a_wallet_says_so(p2pnode_testnet: LocalTestnet, tmp_path: Path) -> None:
    assert isinstance(raised_by(partial(connect, tmp_path)), ConfigError)
    assert isinstance(raised_by(partial(connect, 7)), InputError)  # type: ignore[arg-type]
    Home(tmp_path).put_genesis(Home(p2pnode_testnet.home).load_genesis())
    with connect(tmp_path) as reader:
        assert reader.owner is None
        assert isinstance(raised_by(partial(reader.store, TEXT)), ConfigError)
        assert isinstance(raised_by(reader.balance), ConfigError)
        assert isinstance(raised_by(reader.list), ConfigError)


def test_a_sealed_wallet_reads_and_looks_without_its_passphrase(
    p2pnode_testnet: LocalTestnet, client: SyncClient, tmp_path: Path
) -> None:
    home = Home(tmp_path)
    home.put_genesis(Home(p2pnode_testnet.home).load_genesis())
    public = create_wallet(home.owner_key_path, "open sesame", cost=INTERACTIVE).public
    blob_id = client.store(TEXT).blob_id
    with connect(home) as reader:
        assert (reader.owner, reader.balance(), reader.read(blob_id)) == (public, 0, TEXT)
        assert isinstance(raised_by(partial(reader.store, TEXT)), ConfigError)
    with connect(str(tmp_path), passphrase="open sesame") as poor:
        assert isinstance(raised_by(partial(poor.store, b"unpaid")), Unpaid)
    assert isinstance(raised_by(partial(connect, tmp_path, passphrase="open barley")), ConfigError)


def test_a_closed_client_leaves_no_thread_and_raises_closed(p2pnode_testnet: LocalTestnet, client: SyncClient) -> None:
    blob_id = client.store(TEXT).blob_id
    before = [thread.name for thread in threading.enumerate()].count("p2pnode client")
    closed = connect(p2pnode_testnet.home)
    pieces = closed.stream(blob_id)
    closed.close()
    assert [thread.name for thread in threading.enumerate()].count("p2pnode client") == before
    assert [type(raised_by(call)) for call in (closed.balance, partial(next, pieces), pieces.close)] == [
        *(Closed, Closed, Closed),
    ]


# --- many at once ----------------------------------------------------------------------------------------------------


def test_many_threads_share_a_client(client: SyncClient) -> None:
    found: dict[int, bytes] = {}

    def work(number: int) -> None:
        stored = client.store(some_bytes(number, 1_000 + number))
        found[number] = client.read(stored.blob_id)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20, 26)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: some_bytes(number, 1_000 + number) for number in range(20, 26)}


async def test_sixteen_tasks_share_a_client_and_pay_for_what_each_stores(p2pnode_testnet: LocalTestnet) -> None:
    paid: list[int] = []
    found: dict[int, bytes] = {}
    async with open_client(p2pnode_testnet.home) as client:
        before = await client.balance()

        async def work(number: int) -> None:
            stored = await client.store(some_bytes(number, 2_000 + number))
            paid.append(stored.paid)
            found[number] = await client.read(stored.blob_id)

        with trio.fail_after(480):
            async with trio.open_nursery() as nursery:
                for number in range(40, 56):
                    nursery.start_soon(work, number)
        assert found == {number: some_bytes(number, 2_000 + number) for number in range(40, 56)}
        assert await client.balance() == before - sum(paid)


# --- interrupted -----------------------------------------------------------------------------------------------------


async def test_a_store_cancelled_in_the_middle_goes_on_when_it_is_called_again(p2pnode_testnet: LocalTestnet) -> None:
    data = some_bytes(60, 2 * SEGMENT_BYTES)
    async with open_client(p2pnode_testnet.home) as client:
        before = await client.balance()
        with trio.CancelScope() as scope:

            def stop(done: int, total: int) -> None:
                if done:
                    scope.cancel()

            await client.store(data, progress=stop)
        assert scope.cancelled_caught
        stored = await client.store(data)
        assert await client.read(stored.blob_id) == data
        held = [await client.balance(), stored.paid]
    async with open_client(p2pnode_testnet.home) as other:
        assert held[0] == await other.balance() < before


async def test_a_stream_is_left_in_the_middle_by_break_error_and_cancellation(
    p2pnode_testnet: LocalTestnet, large: tuple[str, bytes]
) -> None:
    blob_id, data = large
    async with open_client(p2pnode_testnet.home) as client:
        async with client.stream(blob_id) as pieces:
            async for piece in pieces:
                assert data.startswith(piece)
                break

        async def fail() -> None:
            async with client.stream(blob_id) as pieces:
                await anext(pieces)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        with trio.CancelScope() as scope:
            async with client.stream(blob_id) as pieces:
                await anext(pieces)
                scope.cancel()
                await anext(pieces)
        assert scope.cancelled_caught
        assert await client.read(blob_id) == data


async def test_what_the_block_of_a_client_raises_leaves_it_as_it_is(p2pnode_testnet: LocalTestnet) -> None:
    seen: list[Client] = []

    async def fail(fault: BaseException) -> None:
        async with open_client(p2pnode_testnet.home) as client:
            seen.append(client)
            raise fault

    for fault in (ValueError("mine"), KeyboardInterrupt(), ExceptionGroup("mine", [ValueError(), TypeError()])):
        with pytest.raises(type(fault)) as raised:
            await fail(fault)
        assert raised.value is fault
        with pytest.raises(Closed):
            await seen.pop().balance()


def test_ctrl_c_stops_the_call_and_leaves_the_client(client: SyncClient) -> None:
    data = some_bytes(61, 2 * SEGMENT_BYTES)
    sent = threading.Event()

    def interrupt(done: int, total: int) -> None:
        if done and not sent.is_set():
            sent.set()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        client.store(data, progress=interrupt)
    assert client.read(client.store(data).blob_id) == data


def test_what_a_callback_raises_is_raised_by_the_call(client: SyncClient) -> None:
    def fail(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.store(some_bytes(62, 1_000), progress=fail)


# --- nodes come and go -----------------------------------------------------------------------------------------------


def test_a_node_that_dies_while_a_blob_is_read_is_gone_round(
    p2pnode_testnet: LocalTestnet, client: SyncClient, large: tuple[str, bytes]
) -> None:
    blob_id, data = large
    with client.stream(blob_id) as pieces:
        found = [next(pieces)]
        p2pnode_testnet.kill(2)
        try:
            found += list(pieces)
            stored = client.store(some_bytes(63, 1_000))
        finally:
            p2pnode_testnet.restart(2)
    assert b"".join(found) == data
    assert client.read(stored.blob_id) == some_bytes(63, 1_000)


def test_a_node_that_failed_gets_another_chance_when_no_call_goes_on(
    p2pnode_testnet: LocalTestnet, client: SyncClient, large: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the one that was ended alone: on a machine that is busy others may be called slow meanwhile."""
    monkeypatch.setattr(module, "FORGIVE_S", math.inf)
    members = client._portal.value.session.members
    p2pnode_testnet.kill(2)
    try:
        wait_for(lambda: client.read(large[0]) and 2 in members.faults)
    finally:
        p2pnode_testnet.restart(2)
    found = members.faults[2]
    client.read(large[0])
    assert members.faults[2] == found
    monkeypatch.setattr(module, "FORGIVE_S", 0.0)
    wait_for(lambda: client.read(large[0]) and members.faults.get(2) != found)


def test_a_plain_script_that_forgets_to_close_its_client_runs_once_and_ends_quietly(tmp_path: Path) -> None:
    """Encoding small symbols in processes would run it once more in each of them."""
    script = tmp_path / "script.py"
    script.write_text(
        "from p2pnode.client import connect\n"
        "client = connect()\n"
        "data = bytes(range(100)) * 500\n"
        "assert client.read(client.store(data).blob_id) == data\n"
        "print('done')\n"
    )
    with local_testnet(segment_bytes=4_096) as net:
        environment = {**os.environ, "P2PNODE_HOME": str(net.home), "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=480)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_client_outlives_a_restart_of_every_node(
    p2pnode_testnet: LocalTestnet, client: SyncClient, large: tuple[str, bytes]
) -> None:
    blob_id, data = large
    for index in range(p2pnode_testnet.nodes):
        p2pnode_testnet.kill(index)
    for index in range(p2pnode_testnet.nodes):
        p2pnode_testnet.restart(index)
    assert client.read(blob_id) == data
    assert client.read(client.store(some_bytes(64, 1_000)).blob_id) == some_bytes(64, 1_000)
