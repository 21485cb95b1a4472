"""Asking members to attest that a blob was encoded inconsistently by its writer, and who has."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import trio

from economics import cbor
from economics.arguments import invalid_message
from economics.blob import BlobId
from economics.committee import Committee
from economics.crypto import SIGNATURE_BYTES, Digest, Level, NodeId, Signature, digest, verify_signature
from economics.genesis import Genesis
from p2pnode.members import REQUEST_FAULTS
from p2pnode.network.frames import Incoming

log = logging.getLogger("p2pnode.clients.attesting")

ATTEST_S = 30.0
"""For all members to check one proof: each fetches the blob's header if it lacks it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """That a blob is encoded inconsistently, with its proof, as it is put before the members of an epoch."""

    chain_id: Digest
    epoch: int
    blob_id: BlobId
    proof: bytes
    """An encoded `InconsistencyProof`."""

    @classmethod
    def before(cls, committee: Committee, genesis: Genesis, blob_id: BlobId, proof: bytes) -> "Claim":
        return cls(genesis.chain_id, committee.epoch, blob_id, proof)

    @property
    def proof_hash(self) -> Digest:
        return digest(Level.PROOF, self.proof)

    @property
    def message(self) -> bytes:
        """What an attestation signs (FORMATS.md 4)."""
        return invalid_message(
            chain_id=self.chain_id, epoch=self.epoch, blob_id=self.blob_id, proof_hash=self.proof_hash
        )


class Request(Protocol):
    """Asks a node once; raises `REQUEST_FAULTS`."""

    async def __call__(
        self, node: NodeId, header: Mapping[str, cbor.Value], /, *, size_max: int, payload: bytes
    ) -> tuple[Incoming, bytes]: ...


async def gather(
    claim: Claim,
    committee: Committee,
    request: Request,
    *,
    own: Mapping[int, Signature],
    shards: int,
    failed: Callable[[NodeId, Exception], None],
) -> dict[int, Signature]:
    """Ask all members but those of `own` at once, until so many shards have attested or the time is up.

    Returns the signatures that hold, by index, with the own ones. `failed` hears of who refused, failed or lied.
    """
    found = dict(own)
    message = claim.message
    header: dict[str, cbor.Value] = {"blob": bytes(claim.blob_id), "epoch": claim.epoch, "op": "attest"}

    async def ask(index: int, scope: trio.CancelScope) -> None:
        node = committee.members[index].node
        try:
            reply, _ = await request(node, header, size_max=0, payload=claim.proof)
            signature = Signature(reply.raw("signature", SIGNATURE_BYTES))
            verify_signature(node, message, signature)
        except REQUEST_FAULTS as fault:
            log.info("member %d does not attest: %s", index, fault)
            failed(node, fault)
            return
        found[index] = signature
        if committee.weight(found) >= shards:
            scope.cancel()

    with trio.move_on_after(ATTEST_S):
        async with trio.open_nursery() as nursery:
            for index in range(len(committee.members)):
                if index not in own:
                    nursery.start_soon(ask, index, nursery.cancel_scope)
    return found
