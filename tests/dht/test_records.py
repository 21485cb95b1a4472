"""Node records: one encoding, one signer, one chain, one hour."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from dht.records import (
    ADDRESS_BYTES_MAX,
    ADDRESSES_MAX,
    AHEAD_MS_MAX,
    LIFE_MS_MAX,
    RECORD_BYTES_MAX,
    NodeRecord,
    build_record,
    newest,
    next_sequence,
    node_of_key,
    parse_record,
    record_key,
    signed_bytes,
)
from economics import cbor
from economics.crypto import NodeId, Signature
from economics.errors import Reason, Rejected

CHAIN = b"c" * 32
KEY = SigningKey(b"k" * 32)
NODE = NodeId(bytes(KEY.verify_key))
STRANGER = SigningKey(b"s" * 32)
NOW = 1_700_000_000_000
ADDRESSES = ("/ip4/127.0.0.1/tcp/4001",)


def sign(message: bytes) -> Signature:
    return Signature(KEY.sign(message).signature)


def build(
    addresses: tuple[str, ...] = ADDRESSES,
    *,
    sequence_ms: int = NOW,
    life_ms: int = LIFE_MS_MAX,
    chain: bytes = CHAIN,
    node: NodeId = NODE,
    key: SigningKey = KEY,
) -> bytes:
    return build_record(
        node=node,
        addresses=addresses,
        sequence_ms=sequence_ms,
        life_ms=life_ms,
        chain_id=chain,
        sign=lambda message: Signature(key.sign(message).signature),
    )


def parse(data: bytes, *, now_ms: int = NOW, node: NodeId = NODE, chain: bytes = CHAIN) -> NodeRecord:
    return parse_record(data, chain_id=chain, node=node, now_ms=now_ms)


def forge(fields: object, *, signature: Signature | None = None) -> bytes:
    """A record with any body, properly signed."""
    body = cbor.encode(fields)  # type: ignore[arg-type]
    return cbor.encode([body, sign(signed_bytes(CHAIN, body)) if signature is None else signature])


BODY = {"addresses": list(ADDRESSES), "expires_ms": NOW + 1_000, "node": NODE, "sequence_ms": NOW}


def refusal(data: bytes, *, now_ms: int = NOW) -> Reason:
    with pytest.raises(Rejected) as caught:
        parse(data, now_ms=now_ms)
    return caught.value.reason


@given(
    addresses=st.lists(st.text(max_size=ADDRESS_BYTES_MAX // 4), max_size=ADDRESSES_MAX).map(tuple),
    sequence_ms=st.integers(0, (1 << 64) - 1 - LIFE_MS_MAX),
    life_ms=st.integers(1, LIFE_MS_MAX),
)
def test_a_record_comes_back_as_it_was_signed(addresses: tuple[str, ...], sequence_ms: int, life_ms: int) -> None:
    data = build(addresses, sequence_ms=sequence_ms, life_ms=life_ms)
    assert len(data) <= RECORD_BYTES_MAX
    assert parse(data, now_ms=sequence_ms) == NodeRecord(NODE, addresses, sequence_ms, sequence_ms + life_ms)


def test_the_longest_record_is_within_the_limit() -> None:
    data = build(("a" * ADDRESS_BYTES_MAX,) * ADDRESSES_MAX, sequence_ms=(1 << 64) - 1 - LIFE_MS_MAX)
    assert len(data) <= RECORD_BYTES_MAX
    assert len(parse(data, now_ms=(1 << 64) - 1 - LIFE_MS_MAX).addresses) == ADDRESSES_MAX


@given(st.binary(max_size=300))
@example(b"")
@example(bytes(RECORD_BYTES_MAX + 1))
def test_junk_is_only_ever_rejected(data: bytes) -> None:
    with pytest.raises(Rejected):
        parse(data)


@given(st.data())
def test_one_changed_byte_is_rejected(data: st.DataObject) -> None:
    record = bytearray(build())
    index = data.draw(st.integers(0, len(record) - 1))
    record[index] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Rejected):
        parse(bytes(record))


@given(st.data())
def test_a_cut_or_longer_record_is_rejected(data: st.DataObject) -> None:
    record = build()
    cut = data.draw(st.integers(0, len(record) - 1))
    for changed in (record[:cut], record + b"\0"):
        with pytest.raises(Rejected):
            parse(changed)


@pytest.mark.parametrize(
    "fields",
    [
        {**BODY, "extra": 1},
        {name: value for name, value in BODY.items() if name != "addresses"},
        {**BODY, "addresses": "text"},
        {**BODY, "addresses": [1]},
        {**BODY, "addresses": [b"bytes"]},
        {**BODY, "node": "text"},
        {**BODY, "node": NODE[:31]},
        {**BODY, "sequence_ms": True},
        {**BODY, "expires_ms": False},
        {**BODY, "sequence_ms": -1},
        {**BODY, "expires_ms": NOW - 1},
        {**BODY, "expires_ms": NOW + LIFE_MS_MAX + 1},
        [NOW],
        None,
    ],
)
def test_a_body_of_another_shape_is_malformed_even_if_signed(fields: object) -> None:
    assert refusal(forge(fields)) == Reason.MALFORMED


@pytest.mark.parametrize("addresses", [["/a"] * (ADDRESSES_MAX + 1), ["a" * (ADDRESS_BYTES_MAX + 1)], ["é" * 65]])
def test_too_many_or_too_long_addresses_are_too_large(addresses: list[str]) -> None:
    assert refusal(forge({**BODY, "addresses": addresses})) == Reason.TOO_LARGE


@pytest.mark.parametrize("outer", [[b"", b""], [b""], [1, 2], {"a": 1}, [b"", bytes(64), b""]])
def test_an_outer_value_of_another_shape_is_rejected(outer: object) -> None:
    with pytest.raises(Rejected):
        parse(cbor.encode(outer))  # type: ignore[arg-type]


def test_a_record_expires_at_its_hour_and_not_before() -> None:
    data = build(life_ms=1_000)
    assert parse(data, now_ms=NOW + 999).addresses == ADDRESSES
    assert refusal(data, now_ms=NOW + 1_000) == Reason.EXPIRED


def test_a_record_from_the_far_future_is_refused() -> None:
    data = build(sequence_ms=NOW + AHEAD_MS_MAX)
    assert parse(data).sequence_ms == NOW + AHEAD_MS_MAX
    assert refusal(data, now_ms=NOW - 1) == Reason.TOO_FAR_AHEAD


def test_a_record_of_another_chain_is_refused() -> None:
    assert refusal(build(chain=b"d" * 32)) == Reason.BAD_SIGNATURE


def test_a_record_signed_by_another_key_is_refused() -> None:
    assert refusal(build(key=STRANGER)) == Reason.BAD_SIGNATURE


def test_another_nodes_record_is_refused_under_this_key() -> None:
    other = NodeId(bytes(STRANGER.verify_key))
    assert refusal(build(node=other, key=STRANGER)) == Reason.UNKNOWN_SIGNER


def test_a_signature_of_another_length_is_malformed() -> None:
    assert refusal(forge(BODY, signature=Signature(bytes(63)))) == Reason.MALFORMED


def test_the_newest_record_wins_wherever_it_stands() -> None:
    old, new = build(sequence_ms=NOW), build(sequence_ms=NOW + 1)
    assert [newest([old, new]), newest([new, old]), newest([old]), newest([new, old, b"junk"])] == [1, 0, 0, 0]


@given(st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=6))
def test_a_tie_goes_to_the_last(sequences: list[int]) -> None:
    values = [build(sequence_ms=NOW + sequence) for sequence in sequences]
    best = max(sequences)
    assert newest(values) == len(sequences) - 1 - sequences[::-1].index(best)


def test_the_same_record_put_again_is_not_taken_for_older() -> None:
    data = build()
    assert newest([data, data]) == 1


def test_a_record_key_has_47_bytes_and_one_spelling() -> None:
    key = record_key(NODE)
    assert len(key.encode("ascii")) == 47
    assert node_of_key(key) == NODE


@given(st.one_of(st.text(max_size=60), st.text("/pn-_AZ09=", min_size=40, max_size=50).map("/pn/".__add__)))
def test_a_foreign_key_is_only_ever_rejected(key: str) -> None:
    try:
        node = node_of_key(key)
    except Rejected:
        return
    assert record_key(node) == key


def test_a_key_with_loose_bits_is_rejected() -> None:
    key = record_key(NODE)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    loose = key[:-1] + alphabet[alphabet.index(key[-1]) ^ 1]
    with pytest.raises(Rejected):
        node_of_key(loose)


def test_the_sequence_grows_even_when_the_clock_goes_back() -> None:
    assert [next_sequence(10, 4), next_sequence(10, 10), next_sequence(3, 10)] == [10, 11, 11]


def test_a_record_is_a_value() -> None:
    record = parse(build())
    assert replace(record, addresses=()) != record
