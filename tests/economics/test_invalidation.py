"""An invalid blob: f + 1 shards say so, nobody owes it from then on, and its ID stays refused."""

from dataclasses import replace

import pytest

from economics.arguments import Attestation, Certify, CertifyAgain, Extend, Invalidate, Reserve, invalid_message
from economics.blob import BlobId
from economics.commitments import OwnerStatement, ReservationId
from economics.crypto import Level, digest
from economics.ledger import Code
from tests.chain import Chain, key_of, make_id
from tests.small import OPERATORS, OWNER, make_genesis

GENESIS = make_genesis()
BLOB = BlobId(make_id(1))
PROOF = digest(Level.PROOF, b"proof")


def attest(*signers: int, epoch: int = 0, blob_id: BlobId = BLOB, signed_epoch: int | None = None) -> Invalidate:
    message = invalid_message(
        chain_id=GENESIS.chain_id,
        epoch=epoch if signed_epoch is None else signed_epoch,
        blob_id=blob_id,
        proof_hash=PROOF,
    )
    rows = tuple(Attestation(signer, OPERATORS[signer].sign(message)) for signer in signers)
    return Invalidate(blob_id, epoch, PROOF, rows)


def statement(reservation: ReservationId, salt: int = 0) -> OwnerStatement:
    return OwnerStatement(
        chain_id=GENESIS.chain_id,
        owner=key_of(OWNER),
        reservation=reservation,
        blob_id=BLOB,
        length=1,
        deletable=True,
        salt=bytes([salt]) * 16,
        expiry_height=100,
    )


@pytest.fixture
def chain() -> Chain:
    return Chain.begin(GENESIS)


def certify(chain: Chain, reservation: ReservationId) -> Code:
    return chain.run(OWNER, Certify(chain.certificate(statement(reservation), OWNER)))


def test_f_plus_one_shards_make_it_so_for_ever(chain: Chain) -> None:
    reservation = chain.reserve(OWNER, Reserve(10, 0, 4))
    assert certify(chain, reservation) is Code.OK
    assert [blob.blob_id for blob in chain.ledger.live_blobs()] == [BLOB]
    assert chain.run(OWNER, attest(1, 3)) is Code.OK
    assert chain.ledger.is_invalid(BLOB)
    assert list(chain.ledger.live_blobs()) == []
    assert chain.ledger.entry(BLOB, reservation) is not None
    other = chain.reserve(OWNER, Reserve(10, 0, 4))
    assert certify(chain, other) is Code.INVALID_BLOB
    assert chain.run(OWNER, CertifyAgain(other, BLOB, True)) is Code.INVALID_BLOB
    assert chain.run(OWNER, Extend(BLOB, reservation, 1)) is Code.INVALID_BLOB
    assert chain.run(OWNER, attest(0, 2)) is Code.INVALID_BLOB
    chain.end_epochs(5)
    assert chain.ledger.blob(BLOB) is None
    assert chain.ledger.is_invalid(BLOB)


def test_of_the_epoch_before_it_still_counts(chain: Chain) -> None:
    chain.end_epoch()
    assert chain.run(OWNER, attest(0, 1)) is Code.OK


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        (attest(2), Code.NOT_PROVEN),
        (attest(), Code.NOT_PROVEN),
        (attest(1, 2, signed_epoch=1), Code.NOT_PROVEN),
        (replace(attest(1, 2), blob_id=BlobId(make_id(2))), Code.NOT_PROVEN),
        (replace(attest(1, 2), attestations=(*attest(1).attestations, *attest(5).attestations)), Code.NOT_PROVEN),
        (attest(1, 2, epoch=1), Code.WRONG_EPOCH),
    ],
)
def test_anything_less_is_refused(chain: Chain, operation: Invalidate, code: Code) -> None:
    assert chain.run(OWNER, operation) is code
    assert not chain.ledger.is_invalid(operation.blob_id)


def test_of_two_epochs_ago_it_does_not_count(chain: Chain) -> None:
    chain.end_epochs(2)
    assert chain.run(OWNER, attest(0, 1)) is Code.WRONG_EPOCH
