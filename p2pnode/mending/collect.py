"""Garbage: blobs that nobody owes any more, proofs against those that have ended, and slivers of shards that are other
nodes' now. Each after a grace.

What a final state does not owe may be owed again within the grace: an upload under way relies on what is here, and a
node that lags serves readers still. Slivers of a moved shard go only when its present holder has reported to hold them.
"""

import json
import logging
from collections.abc import Callable, Mapping

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
NOTICED = "garbage.json"
"""In the store's directory: the epoch in which each piece of garbage was noticed."""
STEP = 64
"""Files deleted in one go, so that no thread and no disk is busy with it for long."""


class Collect:
    """One node's collection of garbage. What it has noticed is on disk: a home that is off every night collects too."""

    def __init__(self, *, node: NodeId, store: SliverStore, admission: Admission, ledger: Callable[[], Ledger]) -> None:
        self.node = node
        self.store = store
        self.admission = admission
        self.collected_blobs = 0
        self.collected_slivers = 0
        """Of shards that other nodes hold now."""
        self._ledger = ledger
        self._path = store.directory / NOTICED
        self._since: dict[str, int] | None = None
        """The epoch in which each piece of garbage was noticed, by a name of it; None before the first look."""

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
        dead = {f"blob {build_blob_id_text(blob_id)}": blob_id for blob_id in records if blob_id not in live}
        known = self.store.proofs.known()
        ended = {f"proof {build_blob_id_text(blob_id)}": blob_id for blob_id in known if ledger.blob(blob_id) is None}
        gone = {f"shard {shard}": shard for shard in self._moved_out(ledger)}
        before = self._read(ledger.epoch) if self._since is None else self._since
        since = {name: before.get(name, ledger.epoch) for name in (*dead, *ended, *gone)}
        self._since = since
        if since != before:
            self._write(since)
        over = {name for name, noticed in since.items() if ledger.epoch > noticed + GRACE_EPOCHS}
        files = [(root, shard) for root, shard, _ in self.store.files() if f"shard {shard}" in over]
        return [dead[name] for name in dead if name in over], files, [ended[name] for name in ended if name in over]

    def _read(self, epoch: int) -> dict[str, int]:
        """Return what an earlier run had noticed; what is odd was not."""
        try:
            found = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as fault:
            log.info("the grace of garbage begins anew, %s is not used: %r", self._path, fault)
            return {}
        rows = found.items() if isinstance(found, dict) else ()
        return {name: noticed for name, noticed in rows if type(noticed) is int and 0 <= noticed <= epoch}

    def _write(self, since: Mapping[str, int]) -> None:
        """Replace the file as a whole. No fsync: if it is lost, the grace begins anew."""
        part = self._path.with_name(f"{NOTICED}.part")
        try:
            part.write_text(json.dumps(since), encoding="ascii")
            part.replace(self._path)
        except OSError as fault:
            log.warning("what is garbage is not noted: %s", fault)

    def _moved_out(self, ledger: Ledger) -> list[int]:
        """Return the shards that this node holds neither now nor next, and whose holder has reported."""
        committees = [ledger.committee, *([] if ledger.next_committee is None else [ledger.next_committee])]
        own = {shard for committee in committees for shard in committee.shards_of_node(self.node)}
        reporters = {*ledger.handover.reporters}
        return [
            shard
            for shard in range(ledger.committee.n)
            if shard not in own and ledger.committee.holder(shard) in reporters
        ]

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
