"""A node attests a proof that it has checked against the blob's own header, and nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from economics import cbor
from economics.arguments import Certify, Invalidate, invalid_message
from economics.crypto import Level, NodeId, Signature, digest, verify_signature
from economics.errors import Reason
from economics.ledger import Code
from p2pnode.coding.codec import Kind
from p2pnode.coding.recovery import Evidence, InconsistencyProof, Witness, build_recovery_proof
from p2pnode.mending.proofs import choose
from p2pnode.network.frames import Incoming
from p2pnode.slivers.storage import Reply
from tests.chain import Chain
from tests.coding.test_recovery import Writer
from tests.mending.test_healing import FOUR, as_segment
from tests.p2pnode.healers import Town
from tests.slivers.test_storage import expect_refusal
from tests.small import OPERATORS, OWNER, certify, make_blob, make_codec, make_genesis, make_statement
from tests.streams import ask

CODEC = make_codec(FOUR)
HONEST = Writer.honest(CODEC, make_blob(FOUR.code, 600).data)
LYING = HONEST.with_leaves(Kind.PRIMARY, 0)
"""Its first row's leaves are not what its symbols expand to."""


def proof_of(writer: Writer) -> bytes:
    held = writer.slivers[Kind.PRIMARY, 0]
    witness = Witness(0, held.leaves, bytes(held.sliver))
    metadata = writer.metadata.encode()
    return InconsistencyProof(Evidence.EXPANSION, 0, metadata, Kind.PRIMARY, 0, (witness,)).encode()


async def attest(town: Town, member: int, payload: bytes, **changes: cbor.Value) -> Any:
    request: dict[str, cbor.Value] = {"blob": LYING.header.blob_id, "epoch": 0, "op": "attest", **changes}
    async with town.healing(), town.servers[member].stream() as stream:
        reply, _ = await ask(stream, request, payload)
    return reply


@pytest.fixture
def town(tmp_path: Path) -> Town:
    town = Town(tmp_path)
    town.store_pairs(LYING.header, [as_segment(LYING, FOUR.code)], but=(2,))
    town.store_pairs(HONEST.header, [as_segment(HONEST, FOUR.code)])
    return town


@pytest.mark.parametrize("member", [1, 2])
async def test_a_proof_that_holds_is_attested_and_kept(town: Town, member: int) -> None:
    """The third node does not even have the blob's header, and fetches it."""
    proof = proof_of(LYING)
    reply = await attest(town, member, proof)
    assert reply.header["index"] == member
    message = invalid_message(
        chain_id=FOUR.chain_id, epoch=0, blob_id=LYING.header.blob_id, proof_hash=digest(Level.PROOF, proof)
    )
    verify_signature(NodeId(town.servers[member].key.public), message, reply.raw("signature", 64))
    assert town.servers[member].store.proofs.read(LYING.header.blob_id) == proof


async def test_a_proof_against_an_honest_writer_is_refused(town: Town) -> None:
    expect_refusal(await attest(town, 1, proof_of(HONEST), blob=HONEST.header.blob_id), Reason.UNPROVEN)
    held = {index: HONEST.slivers[Kind.SECONDARY, index] for index in range(3)}
    symbols = {index: CODEC.symbol(Kind.SECONDARY, one.sliver, 3, 100) for index, one in held.items()}
    leaves: dict[int, bytes] = {index: one.leaves for index, one in held.items()}
    wrong = build_recovery_proof(HONEST.metadata, Kind.PRIMARY, 3, symbols, leaves, segment=0, code=FOUR.code)
    reply = await attest(town, 1, wrong.encode(), blob=HONEST.header.blob_id)
    expect_refusal(reply, Reason.UNPROVEN)
    assert town.servers[1].store.proofs.known() == set()


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({"blob": HONEST.header.blob_id}, Reason.HASH_MISMATCH),
        ({"blob": bytes(32)}, Reason.NOT_FOUND),
        ({"epoch": 1}, Reason.WRONG_EPOCH),
        ({"epoch": None}, Reason.MALFORMED),
    ],
)
async def test_a_proof_for_another_blob_or_epoch_is_refused(
    town: Town, changes: dict[str, cbor.Value], want: Reason
) -> None:
    expect_refusal(await attest(town, 1, proof_of(LYING), **changes), want)
    assert town.servers[1].store.proofs.known() == set()


async def test_what_is_no_proof_is_refused(town: Town) -> None:
    for payload in (b"", b"\xa0", proof_of(LYING)[:-1]):
        expect_refusal(await attest(town, 1, payload), Reason.MALFORMED)


async def test_only_signatures_that_hold_go_on_the_chain(town: Town) -> None:
    """Two of four shards are enough, and the first to answer signs something else."""

    async def lie(peer: NodeId, message: Incoming, payload: bytes) -> Reply:
        return {"index": 1, "ok": True, "signature": bytes(64)}, ()

    async with town.healing() as healer, trio.open_nursery() as nursery:
        for member in (1, 3):
            operations = town.servers[member].operations
            operations["attest"] = replace(operations["attest"], answer=lie)
        healer.store.proofs.put(LYING.header.blob_id, proof_of(LYING))
        nursery.start_soon(healer.proofs.run)
        with trio.fail_after(120):
            await healer.wished.wait()
        nursery.cancel_scope.cancel()
    ((operation, _),) = town.wanted
    assert isinstance(operation, Invalidate)
    assert [attestation.signer for attestation in operation.attestations] == [0, 2]
    chain = Chain.begin_reserved(FOUR)
    certificate = certify(FOUR, make_statement(FOUR, LYING.header), (0, 1, 2))
    assert chain.run(OWNER, Certify(certificate)) is Code.OK
    assert chain.run(OPERATORS[0], operation) is Code.OK
    assert chain.ledger.is_invalid(LYING.header.blob_id)


def test_as_few_attestations_are_chosen_as_reach_the_shards() -> None:
    committee = make_genesis((1, 3, 2, 1)).committee
    signatures = {index: Signature(bytes([index]) * 64) for index in range(4)}

    def chosen(shards: int, but: int | None = None) -> list[int] | None:
        given = {index: signature for index, signature in signatures.items() if index != but}
        found = choose(committee, given, shards=shards)
        return None if found is None else [item.signer for item in found]

    assert chosen(3) == [1]
    assert chosen(4) == chosen(5) == [1, 2]
    assert chosen(6) == [0, 1, 2]
    assert chosen(3, but=1) == [0, 2]
    assert chosen(5, but=1) is None
