"""Node records, FORMATS.md 5: who may be dialled where, signed by the node itself. Pure: no clock, no socket."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from economics import cbor
from economics.crypto import KEY_BYTES, SIGNATURE_BYTES, TAG_RECORD, NodeId, Signature, verify_signature
from economics.errors import Reason, Rejected

NAMESPACE = "pn"
"""The only DHT namespace whose values are stored."""
KEY_PREFIX = f"/{NAMESPACE}/"
RECORD_KEY_BYTES = 47

RECORD_BYTES_MAX = 2_048
ADDRESSES_MAX = 8
ADDRESS_BYTES_MAX = 128
LIFE_MS_MAX = 3_600_000
"""One hour: so long may a node that is gone be dialled in vain."""
AHEAD_MS_MAX = 300_000
"""Five minutes: no honest clock is off by more, and a record from the far future could not be replaced."""

OUTER = cbor.Budget(size_max=RECORD_BYTES_MAX, depth_max=1, elements_max=3)
BODY = cbor.Budget(size_max=RECORD_BYTES_MAX, depth_max=2, elements_max=1 + 4 + 4 + ADDRESSES_MAX)
FIELDS = {"addresses", "expires_ms", "node", "sequence_ms"}

# Eight of the longest addresses fit, with their heads, the other fields, the signature and the outer heads.
assert ADDRESSES_MAX * (ADDRESS_BYTES_MAX + 2) + 128 + KEY_BYTES + SIGNATURE_BYTES <= RECORD_BYTES_MAX


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """What a node says of itself. `sequence_ms` orders its records; a later one replaces an earlier one."""

    node: NodeId
    addresses: tuple[str, ...]
    sequence_ms: int
    expires_ms: int


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """A record, the bytes of it that are signed, and the signature; nothing here says that the signature holds."""

    record: NodeRecord
    body: bytes
    signature: Signature


def record_key(node: NodeId) -> str:
    """Return the DHT key of a node's record: `/pn/` + base64url of its key, 47 bytes."""
    return KEY_PREFIX + urlsafe_b64encode(node).decode("ascii").rstrip("=")


def node_of_key(key: str) -> NodeId:
    """Return the node whose record belongs under `key`, or raise `Rejected`; reverses `record_key`."""
    if not key.startswith(KEY_PREFIX) or len(key) != RECORD_KEY_BYTES:
        raise Rejected(Reason.MALFORMED, "not a record's key")
    try:
        node = NodeId(urlsafe_b64decode(key.removeprefix(KEY_PREFIX) + "="))
    except (Base64Error, ValueError) as fault:
        raise Rejected(Reason.MALFORMED, "not a record's key") from fault
    if len(node) != KEY_BYTES or record_key(node) != key:
        raise Rejected(Reason.MALFORMED, "a key has one spelling")
    return node


def provider_key(blob_id: bytes) -> bytes:
    """Return the DHT key of a blob's providers: the multihash of CIDv1, raw, sha2-256 of the blob ID, 34 bytes."""
    return b"\x12\x20" + sha256(blob_id).digest()


def next_sequence(clock_ms: int, last: int) -> int:
    """Return the sequence after `last`: it grows even when the clock goes back (FORMATS.md 5)."""
    return max(clock_ms, last + 1)


def build_record(
    *,
    node: NodeId,
    addresses: Sequence[str],
    sequence_ms: int,
    life_ms: int,
    chain_id: bytes,
    sign: Callable[[bytes], Signature],
) -> bytes:
    """Return the encoded, signed record; asserts that it keeps the limits, since they are the caller's to keep."""
    assert 0 < life_ms <= LIFE_MS_MAX
    assert len(addresses) <= ADDRESSES_MAX
    assert all(len(address.encode("utf-8")) <= ADDRESS_BYTES_MAX for address in addresses)
    body = cbor.encode(
        {
            "addresses": list(addresses),
            "expires_ms": sequence_ms + life_ms,
            "node": node,
            "sequence_ms": sequence_ms,
        }
    )
    return cbor.encode([body, sign(signed_bytes(chain_id, body))])


def signed_bytes(chain_id: bytes, body: bytes) -> bytes:
    """Return what the signature covers: the tag, the chain ID and the body."""
    return TAG_RECORD + chain_id + body


def parse_record(data: bytes, *, chain_id: bytes, node: NodeId, now_ms: int) -> NodeRecord:
    """Return the record of `node` in `data`, or raise `Rejected`: by form, subject, time, then signature (55 us).

    A record of another chain has a signature that does not hold here: BAD_SIGNATURE. Of another node: UNKNOWN_SIGNER.
    """
    signed = decode_record(data)
    record = signed.record
    if record.node != node:
        raise Rejected(Reason.UNKNOWN_SIGNER, "another node's record")
    if now_ms >= record.expires_ms:
        raise Rejected(Reason.EXPIRED)
    if record.sequence_ms > now_ms + AHEAD_MS_MAX:
        raise Rejected(Reason.TOO_FAR_AHEAD)
    verify_signature(node, signed_bytes(chain_id, signed.body), signed.signature)
    return record


def decode_record(data: bytes) -> SignedRecord:
    """Return the record that `data` spells, its time and its signature unchecked, or raise `Rejected`."""
    outer = cbor.decode(data, budget=OUTER)
    match outer:
        case [bytes(body), bytes(signature)] if len(signature) == SIGNATURE_BYTES:
            return SignedRecord(_decode_body(body), body, Signature(signature))
        case _:
            raise Rejected(Reason.MALFORMED, "a node record is [body, signature]")


def _decode_body(body: bytes) -> NodeRecord:
    fields = cbor.decode(body, budget=BODY)
    if not isinstance(fields, dict) or fields.keys() != FIELDS:
        raise Rejected(Reason.MALFORMED, "a record's body has four fields")
    match fields["addresses"], fields["node"], fields["sequence_ms"], fields["expires_ms"]:
        case [list(addresses), bytes(node), int(sequence_ms), int(expires_ms)]:
            pass
        case _:
            raise Rejected(Reason.MALFORMED, "a field of the wrong type")
    if isinstance(sequence_ms, bool) or isinstance(expires_ms, bool) or len(node) != KEY_BYTES:
        raise Rejected(Reason.MALFORMED, "a field of the wrong type")
    if not 0 <= sequence_ms <= expires_ms <= sequence_ms + LIFE_MS_MAX:
        raise Rejected(Reason.MALFORMED, "a record lives at most an hour")
    if len(addresses) > ADDRESSES_MAX:
        raise Rejected(Reason.TOO_LARGE, "too many addresses")
    for address in addresses:
        if not isinstance(address, str):
            raise Rejected(Reason.MALFORMED, "an address is text")
        if len(address.encode("utf-8")) > ADDRESS_BYTES_MAX:
            raise Rejected(Reason.TOO_LARGE, "an address is too long")
    return NodeRecord(NodeId(node), tuple(addresses), sequence_ms, expires_ms)


def newest(values: Sequence[bytes]) -> int:
    """Return the index of the highest sequence, on a tie the *last*; what does not decode is older than all.

    The library's server asks for `[held, offered]` and takes 0 for a refusal: were a tie 0, nothing could be put twice.
    """
    assert values
    sequences = [_sequence(value) for value in values]
    return max(range(len(values)), key=lambda index: (sequences[index], index))


def _sequence(value: bytes) -> int:
    try:
        return decode_record(value).record.sequence_ms
    except Rejected:
        return -1
