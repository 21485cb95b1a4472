"""The frozen bytes: what the reference encoder wrote down, what it writes today, and what the project makes."""

import json
from typing import Any

import pytest
from blake3 import blake3
from nacl.signing import SigningKey

from economics.blob import BlobId, Header
from economics.commitments import Certificate, Commitment, OwnerStatement, ReservationId, Ticket
from economics.crypto import Digest, OwnerId, Signature, verify_signature
from economics.geometry import Code
from p2pnode.coding.codec import Codec, Kind
from p2pnode.coding.kernel import Kernel, KernelError, generator_rows, load_kernel
from tests import reference


def load(name: str) -> Any:
    return json.loads((reference.VECTORS / name).read_text())


BLOBS = [
    pytest.param(vector, id=f"{vector['n']}-{vector['segment_bytes']}-{vector['length']}")
    for n in reference.SHARDS
    for vector in load(f"blobs-{n}.json")
]


@pytest.fixture(params=["zfec", "isa-l"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    try:
        return load_kernel(request.param)
    except KernelError:
        pytest.skip("no ISA-L here")


def test_the_reference_still_writes_the_vectors() -> None:
    vectors = reference.vectors()
    assert {path.name for path in reference.VECTORS.iterdir()} == set(vectors)
    for name, value in vectors.items():
        assert json.loads(json.dumps(value)) == load(name), name


@pytest.mark.parametrize("vector", load("codes.json"), ids=lambda vector: str(vector["n"]))
def test_the_generator_matrix(vector: dict[str, Any]) -> None:
    for k, frozen in vector["blake3_of_generator"].items():
        size = int(k)
        identity = b"".join(bytes(column == row for column in range(size)) for row in range(size))
        assert blake3(identity + generator_rows(size, vector["n"])).hexdigest() == frozen


@pytest.mark.parametrize("vector", BLOBS)
def test_a_blob_has_the_frozen_slivers_roots_header_and_id(kernel: Kernel, vector: dict[str, Any]) -> None:
    codec = Codec(Code(vector["n"], vector["segment_bytes"]), kernel)
    code, blob, made, roots = codec.code, reference.content(vector["length"]), [], []
    for index, length in enumerate(code.segment_lengths(len(blob))):
        segment = blob[index * code.segment_bytes : index * code.segment_bytes + length]
        encoded = codec.encode(segment, memoryview(bytearray(b"\xaa" * codec.matrix_bytes(length))))
        roots.append(encoded.root)
        symbols = [symbol for column in range(code.n) for symbol in encoded.secondary(column)]
        made.append(
            {
                "symbol_bytes": encoded.z,
                "blake3_of_primaries": blake3(b"".join(map(encoded.primary, range(code.n)))).hexdigest(),
                "blake3_of_secondaries": blake3(b"".join(symbols)).hexdigest(),
                "blake3_of_metadata": blake3(encoded.metadata.encode()).hexdigest(),
                "root": encoded.root.hex(),
                "blake3_of_sliver_file_of_shard_1": blake3(sliver_file(codec, encoded.root, encoded, 1)).hexdigest(),
            }
        )
    header = Header(code, len(blob), tuple(roots))
    assert made == vector["segments"]
    assert header.encode().hex() == vector["header"]
    assert header.blob_id.hex() == vector["blob_id"]
    assert Header.decode(bytes.fromhex(vector["header"]), code=code, blob_id=header.blob_id) == header
    assert code.encoded_bytes(len(blob)) == vector["encoded_bytes"]
    assert code.encoded_units(len(blob)) == vector["encoded_units"]


def sliver_file(codec: Codec, root: bytes, encoded: Any, shard: int) -> bytes:
    """FORMATS.md 8, from the codec's parts."""
    n = codec.code.n
    pair = codec.code.pair_of_shard(shard, root)
    assert codec.code.shard_of_pair(pair, root) == shard
    return b"".join(
        (
            b"p2pnode sliver 1",
            n.to_bytes(2, "big"),
            shard.to_bytes(2, "big"),
            encoded.z.to_bytes(4, "big"),
            root,
            encoded.metadata.encode(),
            encoded.leaves_of(Kind.PRIMARY, pair),
            encoded.leaves_of(Kind.SECONDARY, n - 1 - pair),
            encoded.primary(pair),
            *encoded.secondary(n - 1 - pair),
        )
    )


class TestSignedObjects:
    frozen = {name: bytes.fromhex(value) for name, value in load("signed.json").items()}  # noqa: RUF012
    chain = Digest(bytes([7]) * 32)
    owner = OwnerId(bytes(SigningKey(bytes([0x10]) * 32).verify_key))
    statement = OwnerStatement(
        chain,
        owner,
        ReservationId(bytes(32)),
        BlobId(bytes([8]) * 32),
        123_456_789,
        deletable=True,
        salt=bytes([10]) * 16,
        expiry_height=1002,
    )

    def test_the_ticket(self) -> None:
        uploader = bytes(SigningKey(bytes([0x11]) * 32).verify_key)
        ticket = Ticket(self.chain, self.owner, ReservationId(bytes([9]) * 32), uploader, 1001)
        assert ticket.encode() == self.frozen["ticket"]
        assert Ticket.decode(self.frozen["ticket"], chain_id=self.chain) == ticket
        ticket.verify(self.frozen["ticket_signature"], uploader=uploader, height=1000)

    def test_the_owner_statement(self) -> None:
        assert self.statement.encode() == self.frozen["statement"]
        assert self.statement.hash == self.frozen["statement_hash"]
        assert OwnerStatement.decode(self.frozen["statement"], chain_id=self.chain) == self.statement
        self.statement.verify(self.frozen["statement_signature"], height=1001)

    def test_the_storage_commitment(self) -> None:
        commitment = Commitment.build(self.statement, epoch=5, signer=3)
        assert commitment.encode() == self.frozen["commitment_of_3"]
        signer = bytes(SigningKey(bytes([4]) * 32).verify_key)
        verify_signature(signer, commitment.encode(), self.frozen["commitment_signature_of_3"])

    def test_the_certificate(self) -> None:
        certificate = Certificate.decode(self.frozen["certificate_of_0_1_3"], chain_id=self.chain)
        signatures = []
        for index in (0, 1, 3):
            commitment = Commitment.build(self.statement, epoch=5, signer=index).encode()
            signatures.append((index, Signature(SigningKey(bytes([index + 1]) * 32).sign(commitment).signature)))
        signature = Signature(self.frozen["statement_signature"])
        assert certificate == Certificate(self.statement, signature, 5, tuple(signatures))
        assert certificate.encode() == self.frozen["certificate_of_0_1_3"]
