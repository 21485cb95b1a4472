"""From an inconsistency proof to an invalid blob: checks proofs for others, and gathers who has checked this node's.

f + 1 shards of one epoch attest that they have checked the proof, so one honest node has: then the ledger refuses the
blob for ever, and every reader hears the same.
"""

import logging
from collections.abc import Callable, Mapping

import trio

from economics.arguments import Attestation, Invalidate
from economics.blob import BlobId, Header, build_blob_id_text
from economics.committee import Committee
from economics.crypto import DIGEST_BYTES, NodeId, Signature
from economics.errors import Reason, Rejected
from economics.genesis import Genesis
from economics.ledger import Ledger
from p2pnode.clients.attesting import Claim, gather
from p2pnode.coding.codec import Codec
from p2pnode.coding.recovery import InconsistencyProof, proof_bytes_max
from p2pnode.mending.healing import Wish, others
from p2pnode.mending.peers import Peers
from p2pnode.network.frames import Incoming
from p2pnode.slivers.storage import EPOCHS_MAX, Operation, Reply
from p2pnode.slivers.store import SliverStore

log = logging.getLogger("p2pnode.mending.proofs")

CHECKS_AT_ONCE = 2
"""Proofs of others: anyone may send some, each costs a decoding, and readers have the threads first."""
AGAIN_S = 20.0
"""Until the same blob's attestations are gathered again: the operation that they make may be lost."""


class Proofs:
    """What one node knows of writers that encoded wrongly."""

    def __init__(
        self,
        *,
        genesis: Genesis,
        node: NodeId,
        store: SliverStore,
        codec: Codec,
        peers: Peers,
        ledger: Callable[[], Ledger],
        sign: Callable[[bytes], Signature],
        want: Wish,
    ) -> None:
        self.genesis = genesis
        self.node = node
        self.store = store
        self.codec = codec
        self.peers = peers
        self.sign = sign
        self._ledger = ledger
        self._want = want
        self._news = trio.Event()
        self._checks = trio.CapacityLimiter(CHECKS_AT_ONCE)

    def operations(self) -> Mapping[str, Operation]:
        return {"attest": Operation(self._attest, proof_bytes_max(self.codec.code))}

    async def found(self, blob_id: BlobId, proof: InconsistencyProof) -> None:
        """Keep a proof that this node has made, and have the blob invalidated."""
        await trio.to_thread.run_sync(self.store.proofs.put, blob_id, proof.encode())
        self._news.set()

    async def run(self) -> None:
        """See proofs through to the ledger, those of an earlier run too."""
        while True:
            self._news = trio.Event()
            for blob_id in sorted(self.store.proofs.known()):
                ledger = self._ledger()
                if ledger.blob(blob_id) is not None and not ledger.is_invalid(blob_id):
                    await self._invalidate(ledger, blob_id)
            with trio.move_on_after(AGAIN_S):
                await self._news.wait()

    async def _invalidate(self, ledger: Ledger, blob_id: BlobId) -> None:
        proof = await trio.to_thread.run_sync(self.store.proofs.read, blob_id)
        assert proof is not None  # it is among those that the store has
        committee, shards = ledger.committee, self.codec.code.f + 1
        claim = Claim.before(committee, self.genesis, blob_id, proof)
        index = committee.index_of(self.node)
        own = {} if index is None else {index: self.sign(claim.message)}
        attestations = await gather(
            claim, committee, self.peers.ask, own=own, shards=shards, failed=self.peers.members.blame
        )
        enough = choose(committee, attestations, shards=shards)
        if enough is None:
            log.warning("%s is encoded wrongly, but too few members say so yet", build_blob_id_text(blob_id))
            return
        epoch = ledger.epoch

        def is_wanted(later: Ledger) -> bool:
            return later.epoch <= epoch + 1 and not later.is_invalid(blob_id)

        self._want(b"invalid" + blob_id, Invalidate(blob_id, epoch, claim.proof_hash, enough), is_wanted)

    # --- for others ----------------------------------------------------------------------------------------------

    async def _attest(self, peer: NodeId, message: Incoming, payload: bytes) -> Reply:
        """Sign that a proof holds, having checked and stored it: milliseconds for a sliver, whatever the blob."""
        blob_id = BlobId(message.raw("blob", DIGEST_BYTES))
        ledger = self._ledger()
        index = ledger.committee.index_of(self.node)
        if message.integer("epoch", high=EPOCHS_MAX) != ledger.epoch:
            raise Rejected(Reason.WRONG_EPOCH, f"this is epoch {ledger.epoch}")
        if index is None:
            raise Rejected(Reason.UNKNOWN_SIGNER, "this node has no shards in the current epoch")
        if ledger.blob(blob_id) is None:
            raise Rejected(Reason.NOT_FOUND, "the network owes no such blob")
        header = await self._header_of(ledger, blob_id)

        def check() -> None:
            InconsistencyProof.decode(payload, code=self.codec.code).verify(self.codec, header)
            if blob_id not in self.store.proofs.known():
                self.store.proofs.put(blob_id, payload)

        await trio.to_thread.run_sync(check, limiter=self._checks)
        signature = self.sign(Claim.before(ledger.committee, self.genesis, blob_id, payload).message)
        return {"index": index, "ok": True, "signature": signature}, ()

    async def _header_of(self, ledger: Ledger, blob_id: BlobId) -> Header:
        record = self.store.record(blob_id)
        if record is not None:
            return record.header
        found = await self.peers.headers(others(ledger, self.node), [blob_id])
        if blob_id not in found:
            raise Rejected(Reason.NOT_FOUND, "nobody has that blob's header")
        return found[blob_id]


def choose(committee: Committee, signatures: Mapping[int, Signature], *, shards: int) -> tuple[Attestation, ...] | None:
    """Return as few attestations as reach so many shards, ascending by signer; None if all of them do not."""
    chosen: list[int] = []
    for index in sorted(signatures, key=lambda index: (-committee.members[index].shards, index)):
        if committee.weight(chosen) < shards:
            chosen.append(index)
    if committee.weight(chosen) < shards:
        return None
    return tuple(Attestation(index, signatures[index]) for index in sorted(chosen))
