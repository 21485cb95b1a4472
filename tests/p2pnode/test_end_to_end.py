"""The main job on real processes: store, kill, lie, read. Each test is a claim that a user relies on."""

import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from economics.blob import parse_blob_id
from economics.commitments import ZERO_RESERVATION, Certificate, ReservationId
from economics.committee import Committee
from p2pnode import testnet
from p2pnode.clients.payments import Order, reserve_for
from p2pnode.clients.session import Session, open_session
from p2pnode.clients.upload import Deal, TooFewNodes, Uploader
from p2pnode.coding.encoder import Encoder, open_encoder
from p2pnode.content.sources import FileSource
from p2pnode.errors import ExitCode
from p2pnode.files import replace_synced
from p2pnode.home import Config, Home
from p2pnode.keys import load_key
from p2pnode.members import FaultKind
from p2pnode.network.frames import send_message
from p2pnode.network.stream import Stream
from p2pnode.slivers.sliverfile import MAGIC
from p2pnode.testnet import Network
from p2pnode.wallet import create_wallet
from tests.p2pnode.command import (
    WAIT_S,
    finish,
    lies,
    make_file,
    p2pnode,
    p2pnode_measured,
    start,
    wait_for,
    wait_for_height,
)

# --- with a liar and a staller ---------------------------------------------------------------------------------------


def test_a_file_reads_back_bit_for_bit_and_adversaries_are_named(adversarial: Network, tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", (20 << 20) + 12_345)
    home = adversarial.client_home.path
    stored = p2pnode("store", "--json", file, home=home).json
    assert stored["committed_shards"] >= stored["quorum_shards"] == 15
    assert stored["transactions"] == 2
    read = p2pnode("read", "--json", stored["blob_id"], "-o", tmp_path / "back", home=home)
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert all("node 6" in fault for fault in lies(read.json["faults"])), read.json

    def named(node: int, what: str) -> bool:
        logs = [Path(process.home, "node.log").read_text(encoding="utf-8") for process in adversarial.processes[:5]]
        return any(f": node {node} " in line and what in line for log in logs for line in log.splitlines())

    wait_for(lambda: named(6, "served wrong bytes"))
    wait_for(lambda: named(5, "too slow"))


def test_a_certificate_convinces_whoever_has_the_genesis_file(adversarial: Network, tmp_path: Path) -> None:
    stored = p2pnode("store", "--json", make_file(tmp_path / "file", 1000), home=adversarial.client_home.path).json
    genesis = adversarial.client_home.load_genesis()
    certificate = Certificate.decode(bytes.fromhex(stored["certificate"]), chain_id=genesis.chain_id)
    certificate.verify(committee=genesis.committee)
    assert certificate.statement.blob_id == parse_blob_id(stored["blob_id"])

    def is_known() -> Any:
        done = p2pnode("info", "--json", stored["blob_id"], home=adversarial.client_home.path)
        return done.json if done.code == ExitCode.OK else None

    assert wait_for(is_known)["certified_height"] == stored["certified_height"]
    offline = p2pnode("blob-id", "--json", tmp_path / "file", home=adversarial.client_home.path).json
    assert offline == {"blob_id": stored["blob_id"], "shards": 21}


@pytest.mark.parametrize("strict", [False, True])
def test_a_range_is_the_slice_of_the_blob(adversarial: Network, tmp_path: Path, strict: bool) -> None:
    file = make_file(tmp_path / "file", (8 << 20) + 5_000, seed=2)
    home = adversarial.client_home.path
    blob_id = p2pnode("store", file, home=home).out.decode().strip()
    words = ("--strict",) if strict else ()
    for first, last in ((0, 0), ((8 << 20) - 3, (8 << 20) + 2), ((8 << 20) + 4_990, None)):
        done = p2pnode("read", blob_id, "--range", f"{first}-{'' if last is None else last}", *words, home=home)
        assert done.out == file.read_bytes()[first : None if last is None else last + 1]


def test_an_empty_file_is_legal(adversarial: Network, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    home = adversarial.client_home.path
    blob_id = p2pnode("store", tmp_path / "empty", home=home).out.decode().strip()
    assert p2pnode("read", blob_id, "-o", tmp_path / "back", home=home).code == ExitCode.OK
    assert (tmp_path / "back").read_bytes() == b""


def test_bad_input_is_named_and_loses_nothing(adversarial: Network, tmp_path: Path) -> None:
    home = adversarial.client_home.path
    kept = make_file(tmp_path / "kept", 10)
    unknown = p2pnode("read", "A" * 43, "-o", kept, home=home)
    assert (unknown.code, kept.stat().st_size) == (ExitCode.UNAVAILABLE, 10)
    assert "check the ID" in unknown.err
    blob_id = p2pnode("store", kept, home=home).out.decode().strip()
    outside = p2pnode("read", blob_id, "--range", "10-", home=home)
    assert (outside.code, outside.out) == (ExitCode.INPUT, b"")
    assert "there are 10 bytes, counted from 0" in outside.err
    assert p2pnode("store", tmp_path / "missing", home=home).code == ExitCode.INPUT
    assert p2pnode("read", blob_id, "-o", tmp_path / "no" / "folder", home=home).code == ExitCode.INPUT


def test_memory_does_not_grow_with_the_file(adversarial: Network, tmp_path: Path) -> None:
    home = adversarial.client_home.path
    resident: dict[int, list[int]] = {}
    for mebibytes in (32, 128):
        file = make_file(tmp_path / f"{mebibytes}", mebibytes << 20, seed=mebibytes)
        stored = p2pnode_measured("store", "--json", file, home=home)
        assert stored.code == ExitCode.OK, stored.err
        read = p2pnode_measured("read", stored.json["blob_id"], "-o", tmp_path / "back", home=home)
        assert read.code == ExitCode.OK, read.err
        assert (tmp_path / "back").stat().st_size == mebibytes << 20
        resident[mebibytes] = [stored.resident_bytes_max, read.resident_bytes_max]
    for small, large in zip(resident[32], resident[128], strict=True):
        assert large < min(small * 1.25, 400 << 20), resident


def test_another_network_is_not_spoken_to(adversarial: Network, tmp_path: Path) -> None:
    genesis = adversarial.client_home.load_genesis()
    other = Home(tmp_path / "other")
    create_wallet(other.owner_key_path, None)
    other.put_genesis(type(genesis)("another", genesis.time_ms, genesis.segment_bytes, genesis.members))
    done = p2pnode("store", make_file(tmp_path / "file", 1000), home=other.path)
    assert done.code == ExitCode.UNREACHABLE
    assert done.err.count("is of another network or version") >= 1  # of each, as long as none is slow


# --- that break their network ----------------------------------------------------------------------------------------


def test_a_killed_node_is_missed_by_nobody_and_found_again_on_another_port(small: Network, tmp_path: Path) -> None:
    home = small.client_home.path
    file = make_file(tmp_path / "file", 3_000_000)
    blob_id = p2pnode("store", file, home=home).out.decode().strip()
    testnet.kill(small, 2)
    assert p2pnode("read", blob_id, "-o", tmp_path / "back", home=home).code == ExitCode.OK
    assert (tmp_path / "back").read_bytes() == file.read_bytes()

    moved = Home(Path(small.process(2).home))
    replace_synced(moved.config_path, (Config(listen=("/ip4/127.0.0.1/tcp/0",)).to_toml().encode(),))
    testnet.restart(small, 2)

    def is_found() -> bool:
        rows = p2pnode("status", "--json", home=home).json["members"]
        return bool(rows[2]["reachable"] and rows[2]["blobs"] == 1)

    wait_for(is_found)


def test_a_stopped_node_is_named_and_not_waited_for(small: Network, tmp_path: Path) -> None:
    home = small.client_home.path
    file = make_file(tmp_path / "file", 40 << 20)
    small.process(3).send(signal.SIGSTOP)
    stored = p2pnode("store", "--json", file, home=home)
    assert stored.code == ExitCode.OK, stored.err
    assert stored.json["committed_shards"] == 3
    assert "node 3" in [fault.split(" (")[0] for fault in stored.json["faults"]]
    assert p2pnode("read", stored.json["blob_id"], "-o", tmp_path / "back", home=home).code == ExitCode.OK
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


def test_a_damaged_sliver_is_detected_and_served_by_others(small: Network, tmp_path: Path) -> None:
    home = small.client_home.path
    file = make_file(tmp_path / "file", 500_000)
    blob_id = p2pnode("store", file, home=home).out.decode().strip()
    damaged = Path(small.process(0).home, "store", "slivers")
    for path in damaged.rglob("*.0"):
        content = bytearray(path.read_bytes())
        assert content.startswith(MAGIC)
        content[-1] ^= 1
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert p2pnode("read", blob_id, "-o", tmp_path / "back", home=home).code == ExitCode.OK
    assert (tmp_path / "back").read_bytes() == file.read_bytes()

    def is_noticed() -> bool:
        return bool(p2pnode("status", "--json", home=home).json["members"][0]["corrupt_slivers"])

    wait_for(is_noticed)


def test_too_few_nodes_are_named_and_what_was_sent_is_kept(small: Network, tmp_path: Path) -> None:
    home = small.client_home.path
    file = make_file(tmp_path / "file", 2_000_000)
    wait_for_height(small, 1)
    for index in (1, 2):
        testnet.kill(small, index)
    failed = p2pnode("store", file, home=home)
    assert failed.code == ExitCode.UNREACHABLE
    assert "node 1" in failed.err
    assert "node 2" in failed.err
    for index in (1, 2):
        small = testnet.restart(small, index)
    stored = p2pnode("store", "--json", file, home=home).json
    assert stored["committed_shards"] >= 3


def test_an_interrupted_store_sends_only_what_is_missing(small: Network, tmp_path: Path) -> None:
    home = small.client_home.path
    file = make_file(tmp_path / "file", 160 << 20)
    process = start("store", file, home=home)
    slivers = Path(small.process(0).home, "store", "slivers")
    wait_for(lambda: len(list(slivers.rglob("*.0"))) >= 2)
    process.send_signal(signal.SIGINT)
    interrupted = finish(process)
    assert interrupted.code == ExitCode.INTERRUPTED
    assert "goes on from there" in interrupted.err
    stored = p2pnode("store", "--json", file, home=home).json
    whole = 4 * 5 * (160 << 20) // 6
    assert stored["segments_present"] >= 2
    assert stored["sent_bytes"] < whole
    assert p2pnode("read", stored["blob_id"], "-o", tmp_path / "back", home=home).code == ExitCode.OK
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


def test_a_few_nodes_may_hold_many_shards(tmp_path: Path) -> None:
    network = testnet.up(tmp_path / "net", nodes=4, shards=64)
    home = network.client_home.path
    file = make_file(tmp_path / "file", 20 << 20)
    try:
        stored = p2pnode("store", "--json", file, home=home).json
        read = p2pnode("read", "--json", stored["blob_id"], "-o", tmp_path / "back", home=home).json
    finally:
        testnet.down(network)
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert lies(stored["faults"]) == lies(read["faults"]) == []
    assert stored["committed_shards"] >= stored["quorum_shards"] == 43


def test_a_full_quota_is_named(tmp_path: Path) -> None:
    network = testnet.up(tmp_path / "net", nodes=4, shards=4, limits={"quota_bytes": 3 << 20})
    try:
        small = p2pnode("store", make_file(tmp_path / "small", 1 << 20), home=network.client_home.path)
        large = p2pnode("store", make_file(tmp_path / "large", 8 << 20), home=network.client_home.path)
        again = p2pnode("read", small.out.decode().strip(), home=network.client_home.path)
    finally:
        testnet.down(network)
    assert (small.code, large.code) == (ExitCode.OK, ExitCode.SPACE)
    assert "quota" in large.err
    assert again.out == (tmp_path / "small").read_bytes()


# --- closing without paying, and without waiting ---------------------------------------------------------------------


class VanishingUploader(Uploader):
    """Dies when it has closed its upload everywhere, without waiting for any answer."""

    closed = 0

    async def _close(self, stream: Stream, member: int) -> None:
        while self._statement is None:
            await self._changed.wait()
        statement, signature, header = self._statement
        await send_message(
            stream, {"op": "close", "signature": signature, "statement": statement.encode()}, header.encode()
        )
        self.closed += 1
        await trio.sleep_forever()


def make_uploader(kind: type[Uploader], client: Session, home: Home, encoder: Encoder, deal: Deal) -> Uploader:
    return kind(
        members=client.members,
        encoder=encoder,
        owner=load_key(home.owner_key_path),
        uploader=client.key.public,
        height=deal.height,
    )


async def make_deal(client: Session, reservation: ReservationId) -> Deal:
    head = await client.chain.head()
    return Deal(Committee(head.epoch, client.genesis.members), head.height, reservation, deletable=True)


async def test_nobody_signs_for_what_is_not_paid(small: Network, tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", 100_000)
    with trio.fail_after(WAIT_S):
        async with open_session(small.client_home) as client, open_encoder(client.codec, length=100_000) as encoder:
            deal = await make_deal(client, ZERO_RESERVATION)
            uploader = make_uploader(Uploader, client, small.client_home, encoder, deal)

            async def agree() -> Deal:
                return deal

            with pytest.RaisesGroup(TooFewNodes, flatten_subgroups=True, allow_unwrapped=True):
                await uploader.run(FileSource.open(file), agree)
            faults = [str(fault) for fault in client.members.faults.values()]
    assert len(faults) >= 2
    told = [fault for fault in faults if FaultKind.TOO_SLOW not in fault and FaultKind.UNREACHABLE not in fault]
    assert told
    assert all("reserve storage first" in fault for fault in told), faults


async def test_a_blob_whose_client_dies_after_closing_is_certified_by_a_node(small: Network, tmp_path: Path) -> None:
    home, size = small.client_home, 1_000_000
    file = make_file(tmp_path / "file", size)
    blob_id = p2pnode("blob-id", file, home=home.path).out.decode().strip()
    with trio.fail_after(WAIT_S):
        async with open_session(home) as client:
            units = client.genesis.code.encoded_units(size)
            reserved = await reserve_for(
                client.chain, load_key(home.owner_key_path), units=units, order=Order(epochs=3)
            )
            deal = await make_deal(client, reserved.reservation)

            async def agree() -> Deal:
                return deal

            async with open_encoder(client.codec, length=size) as encoder, trio.open_nursery() as nursery:
                uploader = make_uploader(VanishingUploader, client, home, encoder, deal)
                assert isinstance(uploader, VanishingUploader)
                nursery.start_soon(uploader.run, FileSource.open(file), agree)
                while uploader.closed < 4:  # noqa: ASYNC110 - the uploader has no event for it
                    await trio.sleep(0.05)
                nursery.cancel_scope.cancel()

    def is_listed() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = p2pnode("list", "--json", home=home.path).json["blobs"]
        return found

    (row,) = wait_for(is_listed)
    assert (row["blob_id"], row["length"], row["end_epoch"]) == (blob_id, size, reserved.end_epoch)
    assert p2pnode("read", blob_id, home=home.path).out == file.read_bytes()
