"""Storing folders: one price said first, only what changed sent, what is used again kept for as long as is ordered."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from economics.blob import BlobId
from economics.state import BlobEntry
from p2pnode.clients.payments import Order, Quote, keep_live, reserve_for
from p2pnode.clients.publish import Published, Publisher
from p2pnode.clients.session import open_session
from p2pnode.clients.upload import Progress
from p2pnode.content.foldercache import FolderCache
from p2pnode.content.folders import SMALL_BYTES_MAX
from p2pnode.content.folderstore import FolderProgress, StoredFolder, find_live, store_folder
from p2pnode.content.keyring import Keyring
from p2pnode.content.manifest import Manifest, read_manifest
from p2pnode.content.quilt import QuiltFile, build_quilt, read_index
from p2pnode.content.restore import restore
from p2pnode.content.sealed import SealedView
from p2pnode.content.sources import BytesSource, Source
from p2pnode.content.views import BlobView, SliceView, View, read_all
from p2pnode.errors import InputError, SpaceError, TransactionFailed, Unpaid
from p2pnode.home import Home
from p2pnode.keys import Key
from p2pnode.testing import Nodes, open_testnet
from p2pnode.wallet import load_wallet
from tests.chain import key_of
from tests.content.test_folders import Keys, noise
from tests.p2pnode.ledgerchain import LedgerChain
from tests.p2pnode.shelf import fill, tree
from tests.p2pnode.threads import inline_threads as inline_threads
from tests.small import OTHER_OWNER, OWNER, encode_blob, make_genesis

KIB = 1 << 10
LARGE = SMALL_BYTES_MAX + 1
FILES = {**{f"{at:02}": noise(10 * KIB, at) for at in range(40)}, "d/large": noise(LARGE)}


@dataclass(frozen=True, slots=True)
class LedgerPublisher:
    """Stores on a chain without a network: all members sign for whatever is reserved."""

    chain: LedgerChain
    key: Key = OWNER
    order: Order = field(default_factory=lambda: Order(epochs=3))
    report: Callable[[Progress], None] = lambda progress: None
    sent: list[int] = field(default_factory=list)
    """The length of each blob that was not there."""
    before: Callable[[Source], None] = lambda source: None

    async def publish(self, source: Source) -> Published:
        await trio.lowlevel.checkpoint()
        self.before(source)
        blob = encode_blob(self.chain.genesis.code, source.read(0, source.length))
        units = self.chain.genesis.code.encoded_units(source.length)
        live = await self.chain.blob(blob.header.blob_id)
        if live is not None:
            kept = await keep_live(self.chain, self.key, live, order=self.order)
            cost, count, end, reservation = kept.cost_frost, kept.transactions, kept.end_epoch, kept.reservation
        else:
            reserved = await reserve_for(self.chain, self.key, units=units, order=self.order)
            done = await self.chain.certify(blob, reserved.reservation, owner=self.key, deletable=self.order.deletable)
            self.order.till.give_back(reserved.reservation)
            cost, count = reserved.cost_frost + done.fee_frost, 2
            end, reservation = reserved.end_epoch, reserved.reservation
            self.sent.append(source.length)
        self.report(Progress(1, 1, 1, 3, 3))
        return Published(blob.header.blob_id, source.length, units, end, cost, count, None, reservation)

    async def store(
        self, directory: Path, previous: Manifest | None = None, *, is_sealed: bool = False
    ) -> StoredFolder:
        """Store a folder, and check that it was paid for as is said."""
        self.sent.clear()
        balance = self.chain.ledger.account(key_of(self.key)).balance_frost
        rows = len(self.chain.rows)
        stored = await store_folder(
            cast(Publisher, self), directory, previous=previous, sealer=Keys() if is_sealed else None
        )
        assert stored.paid_frost == balance - self.chain.ledger.account(key_of(self.key)).balance_frost
        assert stored.transactions == len(self.chain.rows) - rows
        return stored

    def entries(self) -> dict[BlobId, BlobEntry]:
        return {entry.blob_id: entry for entry in self.chain.ledger.entries_of(key_of(self.key))}


@pytest.fixture
def publisher() -> LedgerPublisher:
    return LedgerPublisher(LedgerChain(make_genesis(segment_bytes=1 << 20)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fill(tmp_path / "in", FILES)


def lengths(stored: StoredFolder) -> list[int]:
    return [one.length for one in stored.published]


async def test_a_folder_is_a_quilt_its_large_files_and_a_manifest(publisher: LedgerPublisher, root: Path) -> None:
    stored = await publisher.store(root)
    assert lengths(stored) == [LARGE, stored.manifest.blobs[0].length, len(stored.manifest.encode())]
    assert sorted(publisher.sent) == sorted(lengths(stored))
    assert set(publisher.entries()) == {*(blob.blob_id for blob in stored.manifest.blobs), stored.blob_id}
    assert (stored.key, stored.end_epoch, stored.transactions, stored.kept) == (b"", 3, 6, ())


async def test_stored_again_nothing_moves_and_nothing_is_paid(publisher: LedgerPublisher, root: Path) -> None:
    stored = await publisher.store(root)
    again = await publisher.store(root, stored.manifest)
    assert (again.blob_id, again.manifest) == (stored.blob_id, stored.manifest)
    assert (publisher.sent, again.paid_frost, again.transactions) == ([], 0, 0)
    unknown = await publisher.store(root)
    assert (unknown.blob_id, unknown.paid_frost, publisher.sent) == (stored.blob_id, 0, [])


async def test_after_one_change_that_file_and_the_manifest_move(publisher: LedgerPublisher, root: Path) -> None:
    stored = await publisher.store(root)
    fill(root, {"07": noise(11 * KIB, 99)})
    again = await publisher.store(root, stored.manifest)
    quilt, manifest = publisher.sent
    assert (11 * KIB < quilt < 11 * KIB + 100, manifest) == (True, len(again.manifest.encode()))
    assert [kept.cost_frost for kept in again.kept] == [0, 0]
    assert again.transactions == 4


async def test_what_is_used_again_is_kept_for_as_long_as_is_ordered(publisher: LedgerPublisher, root: Path) -> None:
    stored = await publisher.store(root)
    publisher.chain.apply(ends_epoch=True)
    fill(root, {"07": noise(11 * KIB, 99)})
    again = await publisher.store(root, stored.manifest)
    assert [(kept.transactions, kept.extended_epochs, kept.end_epoch) for kept in again.kept] == [(1, 1, 4)] * 2
    assert len(publisher.sent) == 2
    ends = {blob_id: entry.end_epoch for blob_id, entry in publisher.entries().items()}
    assert [ends[blob.blob_id] for blob in again.manifest.blobs] == [4, 4, 4]
    assert again.end_epoch == ends[again.blob_id] == 4


@pytest.mark.usefixtures("inline_threads")
async def test_what_has_expired_is_stored_anew(
    publisher: LedgerPublisher, root: Path, autojump_clock: trio.testing.MockClock
) -> None:
    stored = await publisher.store(root)
    for _ in range(3):
        publisher.chain.apply(ends_epoch=True)
    again = await publisher.store(root, stored.manifest)
    assert (again.blob_id, again.kept, again.end_epoch) == (stored.blob_id, (), 6)
    assert sorted(publisher.sent) == sorted(lengths(stored))


async def test_what_another_owner_has_stored_is_kept_for_this_one_too(publisher: LedgerPublisher, root: Path) -> None:
    stored = await publisher.store(root)
    other = replace(publisher, key=OTHER_OWNER, order=Order(epochs=2), sent=[])
    again = await other.store(root, stored.manifest)
    assert (again.blob_id, other.sent, [kept.transactions for kept in again.kept]) == (stored.blob_id, [], [2, 2])
    assert set(other.entries()) == set(publisher.entries())


async def test_the_owner_hears_one_price_and_pays_no_more(publisher: LedgerPublisher, root: Path) -> None:
    heard: list[Quote] = []
    first = replace(publisher, order=replace(publisher.order, on_quote=heard.append))
    stored = await first.store(root)
    assert len(heard) == 1
    assert 0.9 * heard[0].total_frost < stored.paid_frost <= heard[0].total_frost  # fees are quoted at their most
    fees = sum(row.fee_frost for row in publisher.chain.rows)
    assert heard[0].storage_frost + heard[0].write_frost == stored.paid_frost - fees
    publisher.chain.apply(ends_epoch=True)
    fill(root, {"07": noise(11 * KIB, 99)})
    again = await first.store(root, stored.manifest)
    assert 0 < again.paid_frost <= heard[1].total_frost < heard[0].total_frost


async def test_too_high_a_price_is_refused_before_anything_is_paid(publisher: LedgerPublisher, root: Path) -> None:
    heard: list[Quote] = []
    asked = replace(publisher, order=replace(publisher.order, on_quote=heard.append))
    await asked.store(root)
    price = heard[0].total_frost
    fresh = LedgerPublisher(LedgerChain(make_genesis(segment_bytes=1 << 20)))
    with pytest.raises(Unpaid, match="--max-cost says"):
        await replace(fresh, order=Order(epochs=3, max_cost_frost=price - 1)).store(root)
    assert (fresh.chain.rows, fresh.sent) == ([], [])
    assert (await replace(fresh, order=Order(epochs=3, max_cost_frost=price)).store(root)).paid_frost <= price


async def test_an_interrupted_call_goes_on_with_what_money_is_left(publisher: LedgerPublisher, root: Path) -> None:
    """All of it at once would cost more than is allowed; the blobs that are stored already count for nothing."""

    def fail(source: Source) -> None:
        if source.length < 10 * KIB:
            raise SpaceError("full")

    with pytest.raises(SpaceError, match="full"):
        await replace(publisher, before=fail).store(root)
    assert len(publisher.entries()) == 2
    heard: list[Quote] = []
    order = replace(publisher.order, max_cost_frost=1, on_quote=heard.append)
    with pytest.raises(Unpaid):
        await replace(publisher, order=order).store(root)
    price = heard[0].total_frost
    stored = await replace(publisher, order=replace(order, max_cost_frost=price)).store(root)
    assert [one.paid_frost for one in stored.published[:2]] == [0, 0]
    assert (len(publisher.sent), heard[1].total_frost) == (1, price)
    assert price < 0.1 * sum(entry.units for entry in publisher.entries().values()) * 3 * 1_000


async def test_the_first_failure_is_raised_as_it_is(publisher: LedgerPublisher, root: Path) -> None:
    def fail(source: Source) -> None:
        raise TransactionFailed("over_capacity", fee_frost=1)

    with pytest.raises(TransactionFailed):
        await replace(publisher, before=fail).store(root)

    def break_down(source: Source) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):  # a fault of ours, and no word for the user
        await replace(publisher, before=break_down).store(root)


async def test_a_sealed_folder_needs_the_key_of_its_manifest_alone(publisher: LedgerPublisher, root: Path) -> None:
    stored = await publisher.store(root, is_sealed=True)
    assert len(stored.key) == 32
    assert [len(blob.key) for blob in stored.manifest.blobs] == [32, 32]
    assert publisher.sent[-1] > len(stored.manifest.encode())
    again = await publisher.store(root, stored.manifest, is_sealed=True)
    assert (again.blob_id, again.key, again.paid_frost) == (stored.blob_id, stored.key, 0)


async def test_progress_ends_with_all_of_it(publisher: LedgerPublisher, root: Path) -> None:
    said: list[FolderProgress] = []
    stored = await store_folder(cast(Publisher, publisher), root, previous=None, sealer=None, report=said.append)
    total = sum(blob.length for blob in stored.manifest.blobs)
    assert said[-1] == FolderProgress(blobs=2, blobs_done=2, length=total, stored=total)
    assert [now.stored for now in said] == sorted(now.stored for now in said)


async def test_a_folder_without_files_is_a_manifest(publisher: LedgerPublisher, tmp_path: Path) -> None:
    stored = await publisher.store(fill(tmp_path / "in", {"e/": b""}))
    assert (stored.manifest, lengths(stored)) == (Manifest((), (), ("e",)), [len(stored.manifest.encode())])


async def test_live_blobs_are_asked_for_in_questions_of_64(autojump_clock: trio.testing.MockClock) -> None:
    publisher = LedgerPublisher(LedgerChain(make_genesis(segment_bytes=1 << 20)))
    ids = [(await publisher.publish(BytesSource(bytes([at])))).blob_id for at in range(66)]
    none = BlobId(bytes(32))
    assert await find_live(publisher.chain, []) == {}
    found = await find_live(publisher.chain, [*ids[:65], none, ids[65]])
    assert {blob_id: summary.blob_id for blob_id, summary in found.items()} == {blob_id: blob_id for blob_id in ids}


@pytest.mark.usefixtures("inline_threads")
async def test_a_blob_that_was_certified_just_now_is_waited_for(
    publisher: LedgerPublisher, root: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = await publisher.store(root)
    ids = [blob.blob_id for blob in stored.manifest.blobs]
    values, hidden = publisher.chain.values, [2]

    async def late(keys: list[object]) -> tuple[bytes | None, ...]:
        hidden[0] -= 1
        return tuple(None for _ in keys) if hidden[0] >= 0 else await values(keys)  # type: ignore[arg-type]

    monkeypatch.setattr(publisher.chain, "values", late)
    assert set(await find_live(publisher.chain, ids)) == set(ids)


class TestCache:
    def test_the_newest_manifest_of_each_folder_is_known(self, tmp_path: Path) -> None:
        cache = FolderCache(tmp_path / "cache/folders")
        one, two = fill(tmp_path / "one", {}), fill(tmp_path / "t\udcffwo", {})
        assert cache.newest(one) is None
        cache.remember(one, BlobId(bytes(32)), b"")
        cache.remember(two, BlobId(b"2" * 32), b"k" * 32)
        cache.remember(one, BlobId(b"1" * 32), b"")
        (tmp_path / "link").symlink_to(one)
        assert [cache.newest(path) for path in (one, two, tmp_path / "link", tmp_path)] == [
            (b"1" * 32, b""),
            (b"2" * 32, b"k" * 32),
            (b"1" * 32, b""),
            None,
        ]
        assert {path.stat().st_mode & 0o777 for path in cache.path.iterdir()} == {0o600}

    @pytest.mark.parametrize("damage", [b"", b"\x00", b"\x83", b"x" * 100_000])
    def test_a_damaged_file_is_no_file(self, tmp_path: Path, damage: bytes) -> None:
        cache = FolderCache(tmp_path / "cache")
        cache.remember(tmp_path, BlobId(bytes(32)), b"")
        (file,) = cache.path.iterdir()
        file.write_bytes(damage)
        assert cache.newest(tmp_path) is None
        cache.remember(tmp_path, BlobId(bytes(32)), b"")
        assert cache.newest(tmp_path) == (bytes(32), b"")


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with open_testnet(nodes=4, shards=4, epoch_s=None, segment_bytes=1 << 20, directory=tmp_path / "net") as net:
        yield net


async def test_on_a_real_network_a_folder_is_stored_changed_mirrored_and_its_quilt_is_one_blob(
    nodes: Nodes, tmp_path: Path
) -> None:
    home: Home = nodes.client_home
    files = {f"{at % 9}/{at:03}": noise(10 * KIB, at) for at in range(1_000)}
    root = fill(tmp_path / "in", {**files, "empty/": b""})
    key, keyring = load_wallet(home.owner_key_path, lambda: ""), Keyring(home)
    async with open_session(home) as session:
        publisher = Publisher(session, key, Order(epochs=2))

        async def open_blob(blob_id: BlobId, key: bytes | None) -> View:
            view = BlobView(session.reader, await session.reader.header(blob_id))
            return view if key is None else SealedView(view, key)

        quilt = build_quilt([QuiltFile(name, BytesSource(data)) for name, data in files.items()])
        published = await publisher.publish(quilt.source)
        assert (published.transactions, len(await publisher.chain.entries(key_of(key)))) == (2, 1)
        view = await open_blob(published.blob_id, None)
        entry = (await read_index(view)).find("4/400")
        assert await read_all(SliceView(view, entry.start, entry.length), size_max=entry.length) == files["4/400"]

        first = await store_folder(publisher, root, previous=None, sealer=keyring)
        assert (len(first.published), first.transactions) == (2, 4)
        fill(root, {"5/500": noise(10 * KIB, 5_000)})
        previous = await read_manifest(await open_blob(first.blob_id, first.key))
        assert previous == first.manifest
        second = await store_folder(publisher, root, previous=previous, sealer=keyring)
        assert [len(one.published) for one in (first, second)] == [2, 2]
        assert [kept.cost_frost for kept in second.kept] == [0]
        assert second.sent_bytes < first.sent_bytes / 30
        manifest = await read_manifest(await open_blob(second.blob_id, second.key))
        restored = await restore(manifest, tmp_path / "out", open_blob)
        assert (restored.fetched, tree(tmp_path / "out")) == (1_000, tree(root))
        with pytest.raises(InputError):
            await read_manifest(await open_blob(second.blob_id, None))
