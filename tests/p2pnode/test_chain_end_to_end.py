"""The chain on real processes: pay, prove, kill, join, accuse. Each test is a claim that a user relies on."""

import contextlib
import json
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
import trio

from economics.arguments import Transfer
from economics.blob import BlobId
from economics.crypto import Digest, NodeId, OwnerId
from economics.errors import Reason, Rejected
from economics.genesis import FROST_MAX, Parameters, build_key_text, parse_key
from economics.ledger import Ledger
from economics.light import Receipt
from economics.nodes import NodeEntry
from economics.slots import node_slot, state_key
from economics.transactions import build
from p2pnode import testnet
from p2pnode.clients.chainclient import ChainClient
from p2pnode.clients.payments import Order
from p2pnode.clients.publish import Publisher
from p2pnode.clients.session import Session, open_session
from p2pnode.clients.trust import trusted_genesis
from p2pnode.consensus.chain import ChainStore
from p2pnode.consensus.votelog import FRAME_BYTES, HEAD_BYTES
from p2pnode.content.sources import FileSource
from p2pnode.errors import ExitCode, NodeError
from p2pnode.files import replace_synced
from p2pnode.home import Config, Home
from p2pnode.keys import Key, load_key
from p2pnode.members import Refused
from p2pnode.testnet import Network
from tests.p2pnode.command import WAIT_S, Result, make_file, p2pnode, start, wait_for
from tests.p2pnode.onenode import open_one

T = TypeVar("T")
RECEIPT_BYTES_MAX = 16 << 10
SOMEBODY = OwnerId(bytes(range(32)))


@contextmanager
def running(directory: Path, **settings: Any) -> Iterator[Network]:
    """4 nodes with a shard each, f = 1."""
    network = testnet.up(directory, nodes=4, shards=4, **settings)
    try:
        yield network
    finally:
        testnet.down(testnet.load(directory))


async def until(condition: Callable[[], Awaitable[T | None]]) -> T:
    """Return what `condition` says as soon as it is true."""
    with trio.fail_after(WAIT_S):
        while not (found := await condition()):  # noqa: ASYNC110 - another process has no event for it
            await trio.sleep(0.2)
        return found


async def chains(client: Session) -> dict[int, dict[str, Any]]:
    """Return what each member that answers says of its chain."""
    return {row["member"]: row["chain"] for row in await client.status() if row["reachable"] and row["chain"]}


async def until_height(client: Session, height: int, *, among: set[int]) -> dict[int, dict[str, Any]]:
    """Wait until these members are at a height, and return what all say then."""

    async def are_there() -> dict[int, dict[str, Any]] | None:
        found = await chains(client)
        return found if all(found.get(member, {"height": -1})["height"] >= height for member in among) else None

    return await until(are_there)


async def top(client: Session) -> int:
    """Return the height of whoever is furthest."""
    heights: list[int] = [chain["height"] for chain in (await chains(client)).values()]
    return max(heights)


def faucet_of(network: Network) -> Key:
    return load_key(network.client_home.faucet_key_path)


async def pour(chain: ChainClient, key: Key, count: int) -> list[Digest]:
    """Send so many transfers without waiting for any, and return their hashes."""
    sent: list[Digest] = []
    while len(sent) < count:
        signed = await chain.sign(key, Transfer(SOMEBODY, 1))
        try:
            await chain.submit(signed)
            sent.append(signed.hash)
        except Refused as fault:
            if fault.reason is not Reason.WRONG_NONCE:
                raise
            await trio.sleep(0.1)  # too many of this sender wait already
    return sent


def make_wallet(path: Path, network: Network) -> Home:
    """Make another client of the network, with a wallet of its own."""
    home = Home(path)
    home.put_genesis(network.client_home.load_genesis())
    assert p2pnode("wallet", "new", "--plain", home=path).code == ExitCode.OK
    return home


def balance_of(home: Home) -> dict[str, Any]:
    fields: dict[str, Any] = p2pnode("wallet", "balance", "--json", home=home.path).json
    return fields


def listed(home: Home) -> dict[str, dict[str, Any]]:
    """Return what the network keeps for a wallet, by blob ID."""
    return {row["blob_id"]: row for row in p2pnode("list", "--json", home=home.path).json["blobs"]}


def store(home: Home, file: Path, *options: object) -> dict[str, Any]:
    done = p2pnode("store", "--json", file, *options, home=home.path)
    assert done.code == ExitCode.OK, done.err
    fields: dict[str, Any] = done.json
    return fields


async def same_roots(client: Session, *, members: int) -> set[str]:
    """Wait until so many members are at one height, and return the state roots that they have there."""

    async def meet() -> set[str] | None:
        found = list((await chains(client)).values())
        height = found[0]["height"]
        roots = [chain["root"] for chain in found if chain["height"] == height]
        return set(roots) if len(roots) >= members else None

    return await until(meet)


def ended(result: Result, code: ExitCode) -> Result | None:
    return result if result.code == code else None


@pytest.fixture(scope="class")
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """The network of a class, with its `parameters` and `behaviours`."""
    with running(tmp_path_factory.mktemp("net"), **request.cls.SETTINGS) as network:
        yield network


# --- a network that nobody harms -------------------------------------------------------------------------------------


class TestAtPeace:
    """One network; the last test ends it."""

    SETTINGS: ClassVar[dict[str, Any]] = {}

    def test_what_is_sent_arrives_and_can_be_looked_up(self, network: Network, tmp_path: Path) -> None:
        home, other = network.client_home, make_wallet(tmp_path / "other", network)
        key = build_key_text(other.wallet_public())
        before = balance_of(home)
        sent = p2pnode("wallet", "send", "--json", key, "2.5", home=home.path).json
        given = p2pnode("faucet", "--json", key, "4", home=home.path).json
        wait_for(lambda: balance_of(other)["balance_frost"] == 6_500_000_000)
        wait_for(lambda: balance_of(home)["nonce"] > before["nonce"])
        after = balance_of(home)
        assert after["balance_frost"] == before["balance_frost"] - 2_500_000_000 - sent["fee_frost"]
        assert after["nonce"] == before["nonce"] + 1
        rows = p2pnode("wallet", "history", "--json", home=other.path).json["transactions"]
        assert [row["hash"] for row in rows] == [given["hash"], sent["hash"]]
        assert p2pnode("tx", "--json", sent["hash"], home=other.path).json == rows[1]
        blocks = p2pnode("blocks", "--json", "--limit", 256, home=home.path).json["blocks"]
        assert [block["height"] for block in blocks] == list(range(blocks[0]["height"], 0, -1))
        assert sum(block["transactions"] for block in blocks if block["height"] == sent["height"]) >= 1

    def test_what_cannot_or_may_not_be_paid_changes_nothing(self, network: Network, tmp_path: Path) -> None:
        home = network.client_home
        poor = make_wallet(tmp_path / "poor", network)
        before = balance_of(home)
        for words in (
            ("wallet", "send", build_key_text(SOMEBODY), "1000000"),
            ("store", make_file(tmp_path / "file", 100_000, seed=9), "--max-cost", "1frost"),
        ):
            assert p2pnode(*words, home=home.path).code == ExitCode.UNPAID
        unpaid = p2pnode("store", tmp_path / "file", home=poor.path)
        assert (unpaid.code, unpaid.out) == (ExitCode.UNPAID, b"")
        assert "p2pnode faucet" in unpaid.err
        assert balance_of(home) == before
        assert balance_of(poor) == {"balance_frost": 0, "nonce": 0, "owner": build_key_text(poor.wallet_public())}

    def test_a_blob_that_is_certified_costs_one_transaction_at_most_and_moves_no_bytes(
        self, network: Network, tmp_path: Path
    ) -> None:
        home, other = network.client_home, make_wallet(tmp_path / "other", network)
        file, small = make_file(tmp_path / "file", 300_000, seed=2), make_file(tmp_path / "small", 300_000, seed=3)
        assert p2pnode("faucet", build_key_text(other.wallet_public()), home=home.path).code == ExitCode.OK
        first = store(home, file, "--epochs", 5)
        blob_id = first["blob_id"]
        again = store(home, file, "--epochs", 5)
        assert (again["transactions"], again["paid_frost"], again["sent_bytes"]) == (0, 0, 0)

        spare = store(other, small, "--epochs", 9)
        assert p2pnode("delete", spare["blob_id"], home=other.path).code == ExitCode.OK
        shared = store(other, file, "--epochs", 5)
        assert (shared["transactions"], shared["sent_bytes"], shared["end_epoch"]) == (1, 0, 9)

        assert p2pnode("extend", "--json", blob_id, 7, home=home.path).json["end_epoch"] == 12
        assert p2pnode("delete", blob_id, home=home.path).code == ExitCode.OK
        wait_for(lambda: blob_id not in listed(home))
        left = p2pnode("info", "--json", blob_id, home=other.path).json
        assert (left["entries"], left["end_epoch"], len(left["own"])) == (1, 9, 1)
        assert p2pnode("delete", blob_id, home=other.path).code == ExitCode.OK
        gone = wait_for(lambda: ended(p2pnode("info", blob_id, home=home.path), ExitCode.UNAVAILABLE))
        assert "expired or been deleted" in gone.err

    async def test_a_bad_transaction_is_refused_by_its_reason(self, network: Network) -> None:
        key, genesis = faucet_of(network), network.client_home.load_genesis()
        async with open_session(network.client_home) as client:
            done = await client.chain.transact(key, Transfer(SOMEBODY, 1))
            row = await client.chain.transaction(done.hash)
            assert row is not None
            good = await client.chain.sign(key, Transfer(SOMEBODY, 1))

            def changed(**fields: Any) -> bytes:
                return build(replace(good.transaction, **fields), key.sign).raw

            forged = bytearray(good.raw)
            forged[-1] ^= 1
            bad = {
                bytes(forged): Reason.BAD_SIGNATURE,
                changed(chain_id=Digest(bytes(32))): Reason.WRONG_CHAIN,
                changed(expiry_height=done.height): Reason.EXPIRED,
                changed(nonce=good.transaction.nonce + 1_000): Reason.WRONG_NONCE,
                changed(fee_frost=good.transaction.fee_frost - 1): Reason.LOW_FEE,
                row.signed.raw: Reason.WRONG_NONCE,
                good.raw[:-1]: Reason.MALFORMED,
                good.raw + b"\0": Reason.MALFORMED,
                b"": Reason.MALFORMED,
                random.Random(1).randbytes(200): Reason.MALFORMED,
                bytes(30_000): Reason.TOO_LARGE,
            }
            for raw, reason in bad.items():
                with pytest.raises(Refused) as refusal:
                    await client.chain.members.request(0, {"op": "submit"}, size_max=0, payload=raw)
                assert refusal.value.reason is reason, refusal.value
            counted = (await chains(client))[0]["refused_transactions"]
            assert {"bad_signature", "expired", "low_fee", "wrong_nonce"} <= set(counted)

            before = await client.chain.account(OwnerId(key.public))
            for amount in (FROST_MAX, (1 << 64) - 1, before.balance_frost):
                with pytest.raises(NodeError, match="unfunded"):
                    await client.chain.transact(key, Transfer(SOMEBODY, amount))
            outcome = await client.chain.transact(key, Transfer(SOMEBODY, 1))
            assert outcome.code == "ok"
            roots = await same_roots(client, members=4)
        assert len(roots) == 1
        assert genesis.chain_id.hex() == network.chain_id

    def test_one_peer_that_need_not_be_trusted_proves_a_blob_and_its_receipt_does_so_offline(
        self, network: Network, tmp_path: Path
    ) -> None:
        home, receipt = network.client_home, tmp_path / "receipt"
        blob_id, other_id = (
            store(home, make_file(tmp_path / f"{seed}", 1_000, seed=seed))["blob_id"] for seed in (5, 6)
        )
        wait_for(lambda: {blob_id, other_id} <= set(listed(home)))
        for index in (0, 1, 2):
            testnet.kill(network, index)
        proven = p2pnode("verify", "--json", blob_id, "--save", receipt, home=home.path)
        assert proven.code == ExitCode.OK, proven.err
        assert proven.json["length"] == 1_000
        data = receipt.read_bytes()
        assert len(data) < RECEIPT_BYTES_MAX
        testnet.kill(network, 3)

        stranger, foreign = Home(tmp_path / "stranger"), Home(tmp_path / "foreign")
        genesis = home.load_genesis()
        stranger.put_genesis(genesis)
        foreign.put_genesis(replace(genesis, name="another"))
        offline = p2pnode("verify", "--json", blob_id, "--receipt", receipt, home=stranger.path)
        assert offline.json == proven.json
        assert p2pnode("verify", other_id, "--receipt", receipt, home=stranger.path).code == ExitCode.INPUT
        assert p2pnode("verify", blob_id, "--receipt", receipt, home=foreign.path).code == ExitCode.INPUT
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        receipt.write_bytes(flipped)
        assert p2pnode("verify", blob_id, "--receipt", receipt, home=stranger.path).code == ExitCode.INPUT


# --- a network that nodes leave and come back to ---------------------------------------------------------------------

ALL = {0, 1, 2, 3}


def kill(network: Network, *members: int) -> None:
    for member in members:
        testnet.kill(testnet.load(network.directory), member)


def bring_back(network: Network, *members: int) -> None:
    """Start nodes again, all at once."""
    old = testnet.load(network.directory)
    fresh = {member: testnet.start_again(old, member) for member in members}
    processes = tuple(fresh.get(process.index, process) for process in old.processes)
    replace(old, processes=processes).save()
    for process in fresh.values():
        testnet.wait_ready(process)


def log_of(network: Network, member: int) -> str:
    return (testnet.home_of(network.directory, member).path / "node.log").read_text(encoding="utf-8")


async def goes_on(client: Session, *, among: set[int], blocks: int = 10) -> None:
    """Wait for so many more blocks at these members: what was under way is not enough."""
    await until_height(client, await top(client) + blocks, among=among)


class TestUnderFire:
    """One network that makes some ten blocks a second; each test leaves all its nodes up."""

    SETTINGS: ClassVar[dict[str, Any]] = {
        "parameters": Parameters(block_interval_ms=50, heartbeat_ms=100, timeout_ms=500),
    }

    async def test_a_killed_leader_is_missed_by_nobody_catches_up_and_votes_again(self, network: Network) -> None:
        async with open_session(network.client_home) as client:
            await until_height(client, 5, among=ALL)
            leader = (await client.chain.blocks(limit=1))[0].leader
            others = ALL - {leader}
            kill(network, leader)
            begin = await top(client)
            await pour(client.chain, faucet_of(network), 20)
            await until_height(client, begin + 100, among=others)
            bring_back(network, leader)
            await until_height(client, await top(client), among=ALL)
            needed = min(others)
            kill(network, needed)
            await goes_on(client, among=ALL - {needed})  # 3 of 4 make a quorum: without its votes nothing would
            bring_back(network, needed)
            assert len(await same_roots(client, members=3)) == 1

    async def test_all_nodes_killed_at_once_come_back_with_what_they_acknowledged(self, network: Network) -> None:
        async with open_session(network.client_home) as client:
            done = await client.chain.transact(faucet_of(network), Transfer(SOMEBODY, 1))
            for process in testnet.load(network.directory).processes:
                process.send(signal.SIGKILL)
            testnet.wait_stopped(testnet.load(network.directory).processes)
        bring_back(network, *ALL)
        async with open_session(network.client_home) as client:
            await until_height(client, done.height + 10, among=ALL)
            row = await client.chain.transaction(done.hash)
            assert row is not None
            assert (row.height, row.index, row.code) == (done.height, done.index, "ok")
            assert len(await same_roots(client, members=3)) == 1

    async def test_a_damaged_vote_log_silences_a_node_until_the_chain_has_passed_it(self, network: Network) -> None:
        async with open_session(network.client_home) as client:
            await goes_on(client, among=ALL)
            kill(network, 1, 2)
            path = testnet.home_of(network.directory, 1).votelog_path
            data = bytearray(path.read_bytes())
            data[HEAD_BYTES + FRAME_BYTES + 10] ^= 1
            path.write_bytes(data)
            bring_back(network, 1)
            assert "the vote log was damaged" in log_of(network, 1)
            stuck = await until_height(client, await top(client), among={0, 1, 3})  # it follows
            assert stuck[1]["quiet"]
            bring_back(network, 2)
            await goes_on(client, among=ALL)  # without its vote

            async def is_loud() -> bool:
                return (await chains(client))[1]["quiet"] is False

            await until(is_loud)
            kill(network, 2)
            await goes_on(client, among=ALL - {2})  # with its vote
            bring_back(network, 2)

    async def test_a_torn_vote_log_is_cut_and_the_node_votes_at_once(self, network: Network) -> None:
        async with open_session(network.client_home) as client:
            await goes_on(client, among=ALL)
            kill(network, 1, 2)
            with testnet.home_of(network.directory, 1).votelog_path.open("ab") as file:
                file.write(random.Random(1).randbytes(20))
            bring_back(network, 1)
            await goes_on(client, among=ALL - {2})
            assert "the last write to the vote log was cut off" in log_of(network, 1)
            assert not (await chains(client))[1]["quiet"]
            bring_back(network, 2)

    async def test_a_node_that_is_no_member_joins_from_genesis(self, network: Network, tmp_path: Path) -> None:
        async with joined(network, tmp_path / "node") as (chain, home):
            await follows_proves_and_passes_on(network, chain)
        assert "from a snapshot" not in (home.path / "node.log").read_text(encoding="utf-8")


@asynccontextmanager
async def joined(network: Network, path: Path, **settings: Any) -> AsyncIterator[tuple[ChainClient, Home]]:
    """Run a node that is no member, and yield a client that knows it alone."""
    home, listen = Home(path), "/ip4/127.0.0.1/tcp/0"
    genesis = network.client_home.genesis_path
    made = p2pnode("init", "--json", "--plain", "--genesis", genesis, "--listen", listen, home=path)
    assert made.code == ExitCode.OK, made.err
    replace_synced(home.config_path, (Config(listen=(listen,), **settings).to_toml().encode(),))
    with (path / "node.log").open("wb") as log, (path / "ready.json").open("wb") as out:
        process = start("run", home=path, out=out, log=log)
    try:
        ready = path / "ready.json"
        await until(lambda: trio.to_thread.run_sync(ready.read_bytes))
        fields = json.loads(ready.read_text(encoding="utf-8"))
        node = NodeId(parse_key(fields["node"]))
        async with open_one(network.client_home, node, fields["addresses"], path / "trusted") as chain:
            yield chain, home
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=WAIT_S) == ExitCode.OK


async def follows_proves_and_passes_on(network: Network, chain: ChainClient) -> None:
    """Check that a node does what a network's other nodes are there for."""
    key = faucet_of(network)
    async with open_session(network.client_home) as client:
        goal = await top(client)

        async def is_there() -> bool:
            with contextlib.suppress(NodeError):
                return (await chain.head()).height >= goal
            return False

        await until(is_there)
        outcome = await chain.transact(key, Transfer(SOMEBODY, 1))
        row = await client.chain.transaction(outcome.hash)
        assert row is not None
        assert (row.height, row.index) == (outcome.height, outcome.index)
        nonce = row.signed.transaction.nonce + 1

        async def is_proven() -> bool:
            with contextlib.suppress(NodeError):
                return (await chain.account(OwnerId(key.public))).nonce == nonce
            return False

        await until(is_proven)


# --- a network whose epochs are short, with a member that votes twice ------------------------------------------------


class TestEpochs:
    """One network with an equivocator; an epoch takes three seconds."""

    SETTINGS: ClassVar[dict[str, Any]] = {
        "behaviours": ["equivocator"],
        "parameters": Parameters(
            block_interval_ms=50, epoch_ms=3_000, heartbeat_ms=500, timeout_ms=500, unbonding_epochs=10_000
        ),
    }

    async def test_whoever_votes_twice_is_slashed_and_no_frost_is_lost(self, network: Network) -> None:
        genesis = network.client_home.load_genesis()
        full = genesis.parameters.stake_frost_per_shard
        keys = [state_key(node_slot(member.node)) for member in genesis.members]
        async with open_session(network.client_home) as client:

            async def are_slashed() -> list[int]:
                with contextlib.suppress(NodeError):
                    values = (await client.chain.prove(keys)).values
                    stakes = [NodeEntry.decode(value).stake_frost for value in values if value is not None]
                    return stakes if stakes[3] < full else []
                return []

            honest = (await until(are_slashed))[:3]
            assert min(honest) >= full  # what they earn stays in their pools
            kill(network, 0)
            kept = ChainStore.open(testnet.home_of(network.directory, 0).chain_database_path, genesis.chain_id)
            ledger = Ledger.load(genesis, items=kept.state_values(), height=kept.head())
            kept.close()
            ledger.verify_supply()
            assert ledger.system.burned_frost > 0
            bring_back(network, 0)
            await goes_on(client, among=ALL)

    async def test_epochs_pass_under_load_and_receipts_hold_across_them(self, network: Network, tmp_path: Path) -> None:
        home = network.client_home
        receipts: list[Receipt] = []
        async with open_session(home) as client, trio.open_nursery() as nursery:
            nursery.start_soon(pour, client.chain, faucet_of(network), 1_000_000)
            while len({receipt.header.epoch for receipt in receipts}) < 3:
                file = make_file(tmp_path / "file", 50_000, seed=100 + len(receipts))
                publisher = Publisher(client, load_key(home.owner_key_path), Order(epochs=20))
                stored = await publisher.publish(FileSource.open(file))
                assert stored.upload is not None
                receipts.append(await until(partial(receipt_of, client, stored.blob_id)))
            nursery.cancel_scope.cancel()
        genesis = home.load_genesis()
        for receipt in receipts:
            again = Receipt.decode(receipt.encode(), chain_id=genesis.chain_id)
            proven = again.verify(trusted_genesis(genesis), parameters=genesis.parameters)
            assert proven.length == 50_000

    async def test_a_node_that_is_far_behind_joins_by_a_snapshot(self, network: Network, tmp_path: Path) -> None:
        async with joined(network, tmp_path / "node", snapshot_blocks=5) as (chain, home):
            await follows_proves_and_passes_on(network, chain)
        assert "from a snapshot" in (home.path / "node.log").read_text(encoding="utf-8")


async def receipt_of(client: Session, blob_id: BlobId) -> Receipt | None:
    with contextlib.suppress(NodeError, Rejected):  # what can be proven is a block older than what is final
        return await client.chain.receipt(blob_id)
    return None
