"""What names a blob binds it: no other bytes pass for its header, its metadata or its ID."""

import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from economics.blob import (
    BlobId,
    Header,
    Root,
    SegmentMetadata,
    build_blob_id_text,
    header_bytes,
    join_leaves,
    leaf,
    parse_blob_id,
    sliver_hash,
    split_hashes,
)
from economics.crypto import Digest, Level, digest
from economics.errors import Reason, Rejected
from economics.geometry import BLOB_BYTES_MAX, Code
from tests import reference

CODE = Code(7, 1000)
DIGESTS = st.binary(min_size=32, max_size=32).map(Digest)


def reason(call: Callable[..., object], *args: object, **kwargs: object) -> Reason:
    with pytest.raises(Rejected) as verdict:
        call(*args, **kwargs)
    return verdict.value.reason


def header(length: int) -> Header:
    return Header(CODE, length, tuple(Root(os.urandom(32)) for _ in range(CODE.segment_count(length))))


class TestHeader:
    @pytest.mark.parametrize("length", [0, 1, 999, 1000, 1001, 5000])
    def test_is_read_back_and_names_the_blob(self, length: int) -> None:
        made = header(length)
        data = made.encode()
        assert len(data) == header_bytes(CODE, length)
        assert data == reference.header(7, 1000, length, list(made.roots))
        assert made.blob_id == reference.hashed("blob", data)
        assert Header.decode(data, code=CODE, blob_id=made.blob_id) == made

    def test_of_another_blob_is_refused(self) -> None:
        made, other = header(1500), header(1500)
        assert reason(Header.decode, made.encode(), code=CODE, blob_id=other.blob_id) is Reason.HASH_MISMATCH
        longer = made.encode() + bytes(32)
        assert reason(Header.decode, longer, code=CODE, blob_id=made.blob_id) is Reason.HASH_MISMATCH

    @pytest.mark.parametrize(
        ("type_", "n", "length", "segment_bytes", "roots", "want"),
        [
            (2, 7, 1500, 1000, 2, Reason.WRONG_ENCODING),
            (0, 7, 1500, 1000, 2, Reason.WRONG_ENCODING),
            (1, 8, 1500, 1000, 2, Reason.WRONG_ENCODING),
            (1, 7, 1500, 1001, 2, Reason.WRONG_ENCODING),
            (1, 7, 1500, 1000, 1, Reason.MALFORMED),
            (1, 7, 1500, 1000, 3, Reason.MALFORMED),
            (1, 7, 0, 1000, 0, Reason.MALFORMED),
            (1, 7, BLOB_BYTES_MAX + 1, 1000, 2, Reason.TOO_LARGE),
            (1, 7, 2**64 - 1, 1000, 2, Reason.TOO_LARGE),
        ],
    )
    def test_that_a_writer_hashed_but_no_network_would_take(
        self, type_: int, n: int, length: int, segment_bytes: int, roots: int, want: Reason
    ) -> None:
        fields = (type_.to_bytes(1), n.to_bytes(2), length.to_bytes(8), segment_bytes.to_bytes(4), bytes(32 * roots))
        data = b"".join(fields)
        assert reason(Header.decode, data, code=CODE, blob_id=BlobId(digest(Level.BLOB, data))) is want

    @given(st.binary(max_size=60))
    def test_of_any_bytes_is_refused_or_is_those_bytes(self, data: bytes) -> None:
        blob_id = BlobId(digest(Level.BLOB, data))
        try:
            assert Header.decode(data, code=CODE, blob_id=blob_id).encode() == data
        except Rejected as verdict:
            assert verdict.reason in {Reason.MALFORMED, Reason.WRONG_ENCODING, Reason.TOO_LARGE}  # noqa: PT017


class TestSegmentMetadata:
    @given(st.lists(DIGESTS, min_size=8, max_size=8))
    def test_is_read_back_and_hashes_to_the_root(self, hashes: list[Digest]) -> None:
        metadata = SegmentMetadata.build(primary=hashes[:4], secondary=hashes[4:])
        assert metadata.encode() == b"".join(hashes)
        assert metadata.root == reference.hashed("segment", b"".join(hashes))
        assert SegmentMetadata.decode(metadata.encode(), n=4, root=metadata.root) == metadata
        assert metadata.n == 4
        assert [metadata.primary(index) for index in range(4)] == hashes[:4]
        assert [metadata.secondary(index) for index in range(4)] == hashes[4:]

    def test_of_another_root_or_size_is_refused(self) -> None:
        metadata = SegmentMetadata(tuple(Digest(os.urandom(32)) for _ in range(8)))
        data = metadata.encode()
        assert reason(SegmentMetadata.decode, data, n=4, root=Root(bytes(32))) is Reason.HASH_MISMATCH
        for other in (data[:-1], data + b"x", data + bytes(64), b""):
            root = Root(digest(Level.SEGMENT, other))
            assert reason(SegmentMetadata.decode, other, n=4, root=root) is Reason.MALFORMED


class TestHashes:
    def test_leaf_and_sliver_are_those_of_the_reference(self) -> None:
        leaves = [leaf(bytes([byte]) * 9) for byte in range(4)]
        assert leaves == [reference.hashed("leaf", bytes([byte]) * 9) for byte in range(4)]
        joined = join_leaves(leaves)
        assert split_hashes(joined) == leaves
        assert sliver_hash(joined) == reference.hashed("sliver", b"".join(leaves))

    def test_no_level_s_hash_is_another_s(self) -> None:
        assert len({digest(level, b"the same bytes") for level in Level}) == len(Level)


class TestBlobIdText:
    @given(DIGESTS)
    def test_is_read_back(self, raw: Digest) -> None:
        text = build_blob_id_text(BlobId(raw))
        assert len(text) == 43
        assert parse_blob_id(text) == BlobId(raw)

    @given(st.text(max_size=50))
    def test_has_one_spelling(self, text: str) -> None:
        try:
            assert build_blob_id_text(parse_blob_id(text)) == text
        except Rejected as verdict:
            assert verdict.reason is Reason.MALFORMED  # noqa: PT017

    @pytest.mark.parametrize(
        "text", ["", "A" * 42, "A" * 44, "A" * 43 + "=", "A" * 42 + "B", "+" + "A" * 42, "A" * 42 + "é", " " + "A" * 42]
    )
    def test_that_is_nearly_one_is_refused(self, text: str) -> None:
        assert reason(parse_blob_id, text) is Reason.MALFORMED
