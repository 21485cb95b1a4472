"""A quilt of 1,000 small files against as many blobs: bytes sent and kept, transactions, mWAL, seconds."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from economics.genesis import FROST_PER_WAL, Parameters
from economics.geometry import SEGMENT_BYTES, Code
from p2pnode import testnet
from p2pnode.clients.payments import EPOCHS, Order
from p2pnode.clients.publish import Published, Publisher
from p2pnode.clients.session import Session, open_session
from p2pnode.content.quilt import QuiltFile, build_quilt
from p2pnode.content.sources import BytesSource, Source
from p2pnode.content.views import BlobView, SliceView, read_all
from p2pnode.errors import NodeError
from p2pnode.wallet import load_wallet
from scripts.benchmarks.network import running_testnet
from scripts.benchmarks.timing import Failed, Row

NODES = 10
FILES = 1_000
FILE_BYTES = 10 << 10
SINGLES = 50
"""Of the single blobs so many are stored, and what that takes is multiplied."""
ATTEMPTS = 5
"""Where a machine is so busy that its nodes miss what a client knows already, the same call goes on."""
SHARDS = (10, 31, 100, 256)
SETTLED_S = 3.0
SETTLE_S_MAX = 120.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What storing some files took."""

    sent_bytes: float
    disk_bytes: float
    transactions: float
    frost: float
    seconds: float

    def times(self, factor: float) -> "Cost":
        parts = (self.sent_bytes, self.disk_bytes, self.transactions, self.frost, self.seconds)
        return Cost(*(part * factor for part in parts))

    def row(self, what: str) -> Row:
        return {
            "what": what,
            "MB sent": self.sent_bytes / 1e6,
            "MB on disks": self.disk_bytes / 1e6,
            "transactions": self.transactions,
            "mWAL": self.frost * 1_000 / FROST_PER_WAL,
            "seconds": self.seconds,
        }


def bench_quilt(directory: Path) -> list[Row]:
    """Store the same files both ways on a testnet of ten nodes, and say what storage they take in larger ones."""
    rng = random.Random(FILES)
    files = [rng.randbytes(FILE_BYTES) for _ in range(FILES)]
    with running_testnet(directory / "quilt", NODES, NODES) as network:
        single, quilted = trio.run(measure, network, files)
    single = single.times(FILES / SINGLES)
    what = f"{FILES} files of {FILE_BYTES >> 10} KiB, {NODES} nodes"
    ratio = Cost(
        single.sent_bytes / quilted.sent_bytes,
        single.disk_bytes / quilted.disk_bytes,
        single.transactions / quilted.transactions,
        single.frost / quilted.frost,
        single.seconds / quilted.seconds,
    )
    return [
        quilted.row(f"{what}: one quilt"),
        single.row(f"{what}: a blob each ({SINGLES} stored, times {FILES // SINGLES})"),
        {
            "what": "a blob each / quilt",
            "MB sent": ratio.sent_bytes,
            "MB on disks": ratio.disk_bytes,
            "transactions": ratio.transactions,
            "mWAL": ratio.frost,
            "seconds": ratio.seconds,
        },
        *(storage_row(n, files) for n in SHARDS),
    ]


def storage_row(n: int, files: Sequence[bytes]) -> Row:
    """Return what the storage alone takes in a network of n shards: computed, at the first prices, without fees."""
    code, parameters = Code(n, SEGMENT_BYTES), Parameters()
    quilt = code.encoded_units(quilt_of(files).length)
    single = sum(code.encoded_units(len(data)) for data in files)
    price = EPOCHS * parameters.storage_frost_per_unit + parameters.write_frost_per_unit
    return {
        "what": f"storage for {EPOCHS} epochs, n = {n}, computed",
        "quilt mWAL": quilt * price * 1_000 / FROST_PER_WAL,
        "a blob each mWAL": single * price * 1_000 / FROST_PER_WAL,
        "a blob each / quilt": single / quilt,
    }


def quilt_of(files: Sequence[bytes]) -> Source:
    return build_quilt([QuiltFile(f"{index:04}", BytesSource(data)) for index, data in enumerate(files)]).source


async def measure(network: testnet.Network, files: Sequence[bytes]) -> tuple[Cost, Cost]:
    """Return what the first single blobs took, and what the quilt did; and read a file of it."""
    key = load_wallet(network.client_home.owner_key_path, lambda: "")
    async with open_session(network.client_home) as session:
        publisher = Publisher(session, key, Order())
        await publisher.publish(BytesSource(b"connections are open from here on"))
        singles = [BytesSource(data) for data in files[:SINGLES]]
        single, _ = await measure_stores(network, publisher, singles)
        quilted, (published,) = await measure_stores(network, publisher, [quilt_of(files)])
        await verify_file(session, published, files[-1], count=len(files))
    return single, quilted


async def measure_stores(
    network: testnet.Network, publisher: Publisher, sources: Sequence[Source]
) -> tuple[Cost, list[Published]]:
    """Store sources one after the other, over connections that are open, and return what that took."""
    before = await settled_bytes(network)
    done: list[Published] = []
    begin = time.perf_counter()
    for source in sources:
        done.append(await publish(publisher, source))
    seconds = time.perf_counter() - begin
    cost = Cost(
        sum(one.upload[0].sent_bytes for one in done if one.upload is not None),
        await settled_bytes(network) - before,
        sum(one.transactions for one in done),
        sum(one.paid_frost for one in done),
        seconds,
    )
    return cost, done


async def publish(publisher: Publisher, source: Source) -> Published:
    for left in reversed(range(ATTEMPTS)):
        try:
            return await publisher.publish(source)
        except NodeError as fault:
            if not fault.retry or not left:
                raise
    raise AssertionError("the last attempt returns or raises")


async def settled_bytes(network: testnet.Network) -> int:
    """Return the bytes in all nodes' stores once they do not change any more."""
    with trio.fail_after(SETTLE_S_MAX):
        last, now = -1, stored_bytes(network)
        while now != last:
            await trio.sleep(SETTLED_S)
            last, now = now, stored_bytes(network)
    return now


def stored_bytes(network: testnet.Network) -> int:
    return sum(path.stat().st_size for path in network.directory.rglob("store/**/*") if path.is_file())


async def verify_file(session: Session, published: Published, want: bytes, *, count: int) -> None:
    """Raise `Failed` unless the last file of a quilt is read back by its place."""
    view = BlobView(session.reader, await session.reader.header(published.blob_id))
    last = SliceView(view, view.length - len(want), len(want))
    if await read_all(last, size_max=len(want)) != want:
        raise Failed(f"file {count} of the quilt has other bytes")
