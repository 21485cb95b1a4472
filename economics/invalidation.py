"""Blobs that their writer encoded wrongly: f + 1 shards attest it, so one honest member has checked the proof."""

from economics.arguments import Invalidate, invalid_message
from economics.committee import Committee
from economics.crypto import Digest, verify_signature
from economics.errors import Rejected
from economics.operations import Code, Context, Failed
from economics.slots import invalid_slot
from economics.state import Invalid


def invalidate(context: Context, operation: Invalidate, *, chain_id: Digest, committee: Committee | None) -> None:
    """Have a blob refused from here on, for ever; `committee` is that of the epoch in which it was attested.

    The signatures come last: they cost 55 us each.
    """
    if committee is None or not context.epoch - 1 <= operation.epoch <= context.epoch:
        raise Failed(Code.WRONG_EPOCH)
    if context.state.get(invalid_slot(operation.blob_id)) is not None:
        raise Failed(Code.INVALID_BLOB)
    signers = [attestation.signer for attestation in operation.attestations]
    if any(signer >= len(committee.members) for signer in signers):
        raise Failed(Code.NOT_PROVEN)
    if committee.weight(signers) <= committee.n - committee.quorum:
        raise Failed(Code.NOT_PROVEN)
    message = invalid_message(
        chain_id=chain_id, epoch=operation.epoch, blob_id=operation.blob_id, proof_hash=operation.proof_hash
    )
    try:
        for attestation in operation.attestations:
            verify_signature(committee.members[attestation.signer].node, message, attestation.signature)
    except Rejected as verdict:
        raise Failed(Code.NOT_PROVEN) from verdict
    context.state.write(Invalid(operation.blob_id, context.epoch, context.height, operation.proof_hash))
