"""Garbage: blobs that nobody owes any more, proofs against those that have ended, and slivers of shards that are other
nodes' now. Each after a grace.

What a final state does not owe may be owed again within the grace: an upload under way relies on what is here, and a
node that lags serves readers still. Slivers of a moved shard go only when its present holder has reported to hold them.
"""

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

import trio

from economics.blob import BlobId, Root, build_blob_id_text
from economics.crypto import NodeId
from economics.ledger import Ledger
from p2pnode.slivers.admission import Admission
from p2pnode.slivers.records import BlobRecord
from p2pnode.slivers.store import SliverStore

log = logging.getLogger("p2pnode.mending.collect")

GRACE_EPOCHS = 1
"""Whole epochs for which garbage stays: an extension, or a certificate of the last minute, costs no byte."""
PAUSE_MAX_S = 60.0
PAUSE_SHARE = 8
"""Each look costs time for each blob and file: one a minute, or eight an epoch where that is short."""
STEP = 64
"""Files deleted in one go, so that no thread and no disk is busy with it for long."""


T = TypeVar("T")


class Collect:
    """One node's collection of garbage. What it has noticed is in memory: after a restart the grace begins anew."""

    def __init__(self, *, node: NodeId, store: SliverStore, admission: Admission, ledger: Callable[[], Ledger]) -> None:
        self.node = node
        self.store = store
        self.admission = admission
        self.collected_blobs = 0
        self.collected_slivers = 0
        """Of shards that other nodes hold now."""
        self._ledger = ledger
        self._dead_since: dict[BlobId, int] = {}
        self._moved_since: dict[tuple[Root, int], int] = {}
        self._proven_since: dict[BlobId, int] = {}
        """Proofs against blobs that have no entry: one may have megabytes, and its blob cost next to nothing."""

    async def run(self, advanced: Callable[[], trio.Event]) -> None:
        """Collect in each epoch: what is noticed in one is deleted when the grace has passed."""
        while True:
            news = advanced()
            await self.collect()
            epoch_s = self._ledger().genesis.parameters.epoch_ms / 1000
            await trio.sleep(min(PAUSE_MAX_S, epoch_s / PAUSE_SHARE))
            await news.wait()

    async def collect(self) -> None:
        """Look once, and delete what has been garbage for the grace."""
        ledger = self._ledger()
        wanted = {statement.blob_id for statement in self.admission.live_statements().values()}
        records = self.store.records()
        dead, moved, proven = await trio.to_thread.run_sync(self._notice, ledger, records, wanted)
        for blob_id in dead:
            await self._drop_blob(blob_id, records[blob_id])
        for at in range(0, len(moved), STEP):
            await trio.to_thread.run_sync(self._drop_files, moved[at : at + STEP])
        for blob_id in proven:
            await trio.to_thread.run_sync(self.store.proofs.drop, blob_id)

    def _notice(
        self, ledger: Ledger, records: Mapping[BlobId, BlobRecord], wanted: set[BlobId]
    ) -> tuple[list[BlobId], list[tuple[Root, int]], list[BlobId]]:
        """Return the blobs, files and proofs that may go now, and remember the rest with its epoch; for a worker
        thread."""
        live = {blob.blob_id for blob in ledger.live_blobs()} | wanted
        dead = {blob_id: ledger.epoch for blob_id in records if blob_id not in live}
        moved = dict.fromkeys(self._moved_out(ledger), ledger.epoch)
        self._dead_since = {blob_id: self._dead_since.get(blob_id, now) for blob_id, now in dead.items()}
        self._moved_since = {key: self._moved_since.get(key, now) for key, now in moved.items()}
        ended = {blob_id: ledger.epoch for blob_id in self.store.proofs.known() if ledger.blob(blob_id) is None}
        self._proven_since = {blob_id: self._proven_since.get(blob_id, now) for blob_id, now in ended.items()}
        return (
            _past_grace(self._dead_since, ledger.epoch),
            _past_grace(self._moved_since, ledger.epoch),
            _past_grace(self._proven_since, ledger.epoch),
        )

    def _moved_out(self, ledger: Ledger) -> list[tuple[Root, int]]:
        """Return the files of shards that this node holds neither now nor next, and whose holder has reported."""
        committees = [ledger.committee, *([] if ledger.next_committee is None else [ledger.next_committee])]
        own = {shard for committee in committees for shard in committee.shards_of_node(self.node)}
        reporters = {*ledger.handover.reporters}
        gone = {
            shard
            for shard in range(ledger.committee.n)
            if shard not in own and ledger.committee.holder(shard) in reporters
        }
        return [(root, shard) for root, shard, _ in self.store.files() if shard in gone]

    async def _drop_blob(self, blob_id: BlobId, record: BlobRecord) -> None:
        freed = sorted(await trio.to_thread.run_sync(self.store.drop_blob, blob_id, record))
        for at in range(0, len(freed), STEP):
            await trio.to_thread.run_sync(self.store.drop_unreferenced, freed[at : at + STEP])
        self.collected_blobs += 1
        log.info("dropped %s: nobody owes it any more", build_blob_id_text(blob_id))

    def _drop_files(self, files: list[tuple[Root, int]]) -> None:
        for root, shard in files:
            self.store.drop_shard_file(root, shard)
        self.collected_slivers += len(files)


def _past_grace(since: Mapping[T, int], epoch: int) -> list[T]:
    return [item for item, noticed in since.items() if epoch > noticed + GRACE_EPOCHS]
