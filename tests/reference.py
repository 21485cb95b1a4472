"""The reference encoder: FORMATS.md word for word, slowly, sharing no code with the project. The tests' oracle.

`python -m tests.reference` writes tests/vectors again.
"""

import base64
import functools
import json
import math
from pathlib import Path
from typing import Any

from blake3 import blake3
from nacl.signing import SigningKey

VECTORS = Path(__file__).parent / "vectors"

# 1. Tags


def hashed(level: str, data: bytes) -> bytes:
    return blake3(data, key=f"p2pnode/1 {level}".encode().ljust(32, b"\0")).digest()


def tag(name: str) -> bytes:
    return f"p2pnode/1 {name}".encode().ljust(16, b"\0")


# 2. The code


def double(x: int) -> int:
    return x << 1 ^ (0x11D if x & 0x80 else 0)


POWERS = [1]
for _ in range(254):
    POWERS.append(double(POWERS[-1]))
LOG = {power: exponent for exponent, power in enumerate(POWERS)}


def times(x: int, y: int) -> int:
    return POWERS[(LOG[x] + LOG[y]) % 255] if x and y else 0


PRODUCTS = [bytes(times(x, y) for y in range(256)) for x in range(256)]


def combine(coefficients: bytes, blocks: list[bytes]) -> bytes:
    """Return the sum of the blocks, each times its coefficient; a sum in this field is an exclusive or."""
    total = 0
    for coefficient, block in zip(coefficients, blocks, strict=True):
        total ^= int.from_bytes(block.translate(PRODUCTS[coefficient]), "big")
    return total.to_bytes(len(blocks[0]), "big")


def inverse(matrix: list[bytes]) -> list[bytes]:
    """Gauss and Jordan, on rows with the identity to their right."""
    k = len(matrix)
    rows = [row + bytes(column == index for column in range(k)) for index, row in enumerate(matrix)]
    for column in range(k):
        pivot = next(row for row in range(column, k) if rows[row][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = rows[column].translate(PRODUCTS[POWERS[-LOG[rows[column][column]] % 255]])
        for row in range(k):
            if row != column:
                rows[row] = combine(bytes((1, rows[row][column])), [rows[row], rows[column]])
    return [row[k:] for row in rows]


@functools.cache
def generator(k: int, n: int) -> list[bytes]:
    """The n x k Vandermonde matrix of the points 0, 1, a, a^2, ..., times the inverse of its first k rows."""
    points = [0, *POWERS][:n]
    vandermonde = [bytes([1, *(POWERS[LOG[x] * e % 255] if x else 0 for e in range(1, k))]) for x in points]
    normal = inverse(vandermonde[:k])
    return [combine(row, normal) for row in vandermonde]


def extend(blocks: list[bytes], n: int) -> list[bytes]:
    return [combine(row, blocks) for row in generator(len(blocks), n)]


def shape(n: int) -> tuple[int, int]:
    f = (n - 1) // 3
    return n - 2 * f, n - f


def symbol_bytes(n: int, length: int) -> int:
    return max(1, math.ceil(length / math.prod(shape(n))))


def expanded(n: int, segment: bytes) -> list[list[bytes]]:
    """The n x n symbols. Rows are extended all at once, each column of n symbols as one block."""
    (p, s), z = shape(n), symbol_bytes(n, len(segment))
    padded = segment.ljust(p * s * z, b"\0")
    rows = extend([padded[at : at + s * z] for at in range(0, p * s * z, s * z)], n)
    columns = extend([b"".join(row[at : at + z] for row in rows) for at in range(0, s * z, z)], n)
    return [[column[at : at + z] for column in columns] for at in range(0, n * z, z)]


def slivers(n: int, matrix: list[list[bytes]]) -> tuple[list[bytes], list[bytes]]:
    p, s = shape(n)
    return [b"".join(row[:s]) for row in matrix], [b"".join(row[j] for row in matrix[:p]) for j in range(n)]


# 3. Hashed objects


def metadata(matrix: list[list[bytes]]) -> bytes:
    leaves = [[hashed("leaf", symbol) for symbol in row] for row in matrix]
    return b"".join(hashed("sliver", b"".join(line)) for line in [*leaves, *zip(*leaves, strict=True)])


def cut(blob: bytes, segment_bytes: int) -> list[bytes]:
    return [blob[at : at + segment_bytes] for at in range(0, len(blob), segment_bytes)] or [b""]


def header(n: int, segment_bytes: int, length: int, roots: list[bytes]) -> bytes:
    return bytes([1]) + u(2, n) + u(8, length) + u(4, segment_bytes) + b"".join(roots)


def encoded_bytes(n: int, segment_bytes: int, length: int) -> int:
    """Before rounding to units of 65,536 bytes."""
    sizes = [len(part) for part in cut(bytes(length), segment_bytes)]
    return n * sum(sum(shape(n)) * symbol_bytes(n, size) + 128 * n + 32 for size in sizes)


def u(width: int, value: int) -> bytes:
    return value.to_bytes(width, "big")


# 4. Signed objects


def ticket(chain: bytes, owner: bytes, reservation: bytes, uploader: bytes, expiry: int) -> bytes:
    return tag("ticket") + chain + owner + reservation + uploader + u(8, expiry)


def statement(
    chain: bytes,
    owner: bytes,
    reservation: bytes,
    blob_id: bytes,
    length: int,
    deletable: int,
    salt: bytes,
    expiry: int,
) -> bytes:
    return tag("owner") + chain + owner + reservation + blob_id + u(8, length) + u(1, deletable) + salt + u(8, expiry)


def commitment(chain: bytes, epoch: int, signer: int, blob_id: bytes, length: int, statement_hash: bytes) -> bytes:
    return tag("commit") + chain + u(8, epoch) + u(2, signer) + blob_id + u(8, length) + statement_hash


def certificate(statement: bytes, signature: bytes, epoch: int, signers: list[tuple[int, bytes]]) -> bytes:
    entries = b"".join(u(2, index) + signature for index, signature in signers)
    return statement + signature + u(8, epoch) + u(2, len(signers)) + entries


# 8. Sliver file


def sliver_file(n: int, matrix: list[list[bytes]], hashes: bytes, shard: int) -> bytes:
    root = hashed("segment", hashes)
    pair = (shard - int.from_bytes(root, "big")) % n
    primary, secondary = (lines[index] for lines, index in zip(slivers(n, matrix), (pair, n - 1 - pair), strict=True))
    row, column = matrix[pair], [line[n - 1 - pair] for line in matrix]
    leaves = b"".join(hashed("leaf", symbol) for symbol in [*row, *column])
    head = b"p2pnode sliver 1" + u(2, n) + u(2, shard) + u(4, len(row[0]))
    return head + root + hashes + leaves + primary + secondary


# 9. Votes and blocks

VOTES = {"notarize": (1, "voteN"), "nullify": (2, "voteX"), "finalize": (3, "voteF")}


def vote(kind: str, chain: bytes, epoch: int, view: int, block_hash: bytes, signer: int) -> bytes:
    return tag(VOTES[kind][1]) + chain + u(8, epoch) + u(8, view) + block_hash + u(2, signer)


def vote_on_wire(kind: str, epoch: int, view: int, block_hash: bytes, signer: int, signature: bytes) -> bytes:
    return u(1, VOTES[kind][0]) + u(8, epoch) + u(8, view) + block_hash + u(2, signer) + signature


def vote_certificate(kind: str, epoch: int, view: int, block_hash: bytes, signers: list[tuple[int, bytes]]) -> bytes:
    entries = b"".join(u(2, index) + signature for index, signature in signers)
    return u(1, VOTES[kind][0]) + u(8, epoch) + u(8, view) + block_hash + u(2, len(signers)) + entries


def block_header(chain: bytes, numbers: list[tuple[int, int]], parent: bytes, roots: list[bytes]) -> bytes:
    """`numbers` are (width, value) of epoch, view, height, parent view, time, leader, count, executed height; the last
    of the `roots` is the reveal."""
    epoch, view, height, parent_view, time, leader, count, executed = (u(*number) for number in numbers)
    transactions, state, committee, following, reveal = roots
    front = tag("header") + chain + u(2, 2) + epoch + view + height + parent_view + parent + time + leader
    return front + transactions + count + executed + state + committee + following + reveal


def committee(epoch: int, keys: list[tuple[bytes, bytes]], holders: list[int]) -> bytes:
    """The keys are (node, owner) of each member; `holders` is the index of the member that holds each shard."""
    members = b"".join(node + owner for node, owner in keys)
    return u(8, epoch) + u(2, len(keys)) + members + u(2, len(holders)) + bytes(holders)


def leader(root_hash: bytes, view: int, holders: list[int]) -> int:
    return holders[int.from_bytes(hashed("leader", root_hash + u(8, view)), "big") % len(holders)]


# 19, 20. Quilts and folders


def cbor(value: Any) -> bytes:
    """Whole numbers, bytes, text, truth, lists and maps of text, each in its shortest form."""

    def head(major: int, argument: int) -> bytes:
        if argument < 24:
            return bytes((major << 5 | argument,))
        width = next(index for index in range(4) if argument < 1 << (8 << index))
        return bytes((major << 5 | 24 + width,)) + u(1 << width, argument)

    match value:
        case bool():
            return b"\xf5" if value else b"\xf4"
        case int():
            return head(0, value)
        case bytes():
            return head(2, len(value)) + value
        case str():
            return head(3, len(value.encode())) + value.encode()
        case list():
            return head(4, len(value)) + b"".join(map(cbor, value))
        case _:
            pairs = sorted((cbor(key), cbor(inner)) for key, inner in value.items())
            return head(5, len(pairs)) + b"".join(key + inner for key, inner in pairs)


def quilt(files: list[tuple[str, dict[str, str], bytes]]) -> bytes:
    ordered = sorted(files, key=lambda file: file[0].encode())
    index = cbor([[name, len(data), tags] for name, tags, data in ordered])
    return b"p2pq" + u(1, 1) + u(4, len(index)) + index + b"".join(data for _, _, data in ordered)


def folder(blobs: list[Any], files: list[Any], empty: list[str]) -> bytes:
    return b"p2pf" + u(1, 1) + cbor([blobs, files, empty])


# The vectors


def quilts_vector() -> list[dict[str, Any]]:
    """None, one, some with tags and every width of a length, names in the order of bytes and not of letters."""
    cases: list[list[tuple[str, dict[str, str], bytes]]] = [
        [],
        [("a", {}, b"")],
        [
            ("b/c.html", {"content-type": "text/html", "x": ""}, content(23)),
            ("B", {"\u00fc": "\u00fc"}, content(24)),
            ("\uffee", {}, content(255)),
            ("\U0001f600", {}, content(256)),
            ("a b", {"long": "x" * 300, "b": "1", "aa": "2"}, content(70_000)),
        ],
    ]
    return [
        {
            "files": [{"name": name, "tags": tags, "length": len(data)} for name, tags, data in files],
            "front": quilt(files)[: len(quilt(files)) - sum(len(data) for _, _, data in files)].hex(),
            "blake3": blake3(quilt(files)).hexdigest(),
        }
        for files in cases
    ]


def folders_vector() -> list[dict[str, Any]]:
    one, other, key = hashed("blob", b"one"), hashed("blob", b"other"), hashed("leaf", b"key")
    digest = blake3(b"content").digest()
    cases: list[tuple[list[Any], list[Any], list[str]]] = [
        ([], [], []),
        ([], [], ["a", "b/c"]),
        (
            [[other, 1 << 40, b""], [one, 70_000, key]],
            [
                ["A", 1 << 40, False, digest, 0, 0],
                ["a-b", 24, False, digest, 1, 300],
                ["a/b", 0, True, digest, 1, 70_000],
                ["a/\U0001f600", 65_536, False, digest, 0, 1 << 32],
            ],
            ["a/empty", "\u00fc"],
        ),
    ]
    names = ("path", "length", "executable", "content_hash", "blob", "offset")
    return [
        {
            "blobs": [{"id": blob[0].hex(), "length": blob[1], "key": blob[2].hex()} for blob in blobs],
            "files": [dict(zip(names, (*file[:3], file[3].hex(), *file[4:]), strict=True)) for file in files],
            "empty": empty,
            "data": folder(blobs, files, empty).hex(),
        }
        for blobs, files, empty in cases
    ]


def signed_vote(chain: bytes, kind: int, epoch: int, view: int, block: bytes, index: int, key: SigningKey) -> bytes:
    """The 115 bytes of a wire."""
    said = u(8, epoch) + u(8, view) + block + u(2, index)
    return u(1, kind) + said + key.sign(tag(f"vote{' NXF'[kind]}") + chain + said).signature


def signed_header(chain: bytes, epoch: int, view: int, time_ms: int, index: int, key: SigningKey) -> bytes:
    """A header of height 9 that says nothing else, and its leader's signature: 360 bytes."""
    head = tag("header") + chain + u(2, 2) + u(8, epoch) + u(8, view) + u(8, 9) + u(8, view - 1) + bytes(32)
    data = head + u(8, time_ms) + u(2, index) + bytes(32) + u(4, 0) + u(8, 8) + bytes(32 * 4)
    return data + key.sign(data).signature


# 10. Transactions


def transaction(
    chain: bytes, key: SigningKey, nonce: int, fee: int, expiry: int, operation: int, arguments: bytes
) -> bytes:
    head = tag("tx") + chain + bytes(key.verify_key) + u(8, nonce) + u(8, fee) + u(8, expiry)
    data = head + u(1, operation) + arguments
    return data + key.sign(data).signature


def text(value: str) -> bytes:
    return u(1, len(value.encode())) + value.encode()


def agreement(chain: bytes, sender: bytes, nonce: int) -> bytes:
    """What a node signs to be owned."""
    return tag("node") + chain + sender + u(8, nonce)


def attestation(chain: bytes, epoch: int, blob_id: bytes, proof_hash: bytes) -> bytes:
    """What a member signs that has checked a proof."""
    return tag("attest") + chain + u(8, epoch) + blob_id + proof_hash


# 11. State


def state_key(kind: int, identity: bytes) -> bytes:
    return hashed("state-key", u(1, kind) + identity)


def account(key: bytes, balance: int, nonce: int) -> bytes:
    return u(1, 1) + key + u(8, balance) + u(8, nonce)


def node(
    key: bytes,
    owner: bytes,
    offer: tuple[int, ...],
    commission: tuple[int, int, int],
    missed: int,
    addresses: list[str],
) -> bytes:
    """The offer: stake, shares, capacity, storage price vote, write price vote; commission: now, next, since when."""
    now, following, epoch = commission
    rest = u(2, now) + u(2, following) + u(8, epoch) + u(2, missed) + u(1, len(addresses))
    return u(1, 7) + key + owner + b"".join(u(8, number) for number in offer) + rest + b"".join(map(text, addresses))


def system(epoch: int, start_ms: int, minted: int, burned: int, seed: bytes) -> bytes:
    return u(1, 9) + u(8, epoch) + u(8, start_ms) + u(8, minted) + u(8, burned) + seed


def seats(committee: bytes) -> bytes:
    return u(1, 10) + committee


def terms(epoch: int, capacity: int, storage: int, write: int) -> bytes:
    return u(1, 11) + u(8, epoch) + u(8, capacity) + u(8, storage) + u(8, write)


def stake(identity: bytes, owner: bytes, node: bytes, phase: int, frost: int, shares: int, turn: int) -> bytes:
    return u(1, 12) + identity + owner + node + u(1, phase) + u(8, frost) + u(8, shares) + u(8, turn)


def indices(members: list[int]) -> bytes:
    return u(2, len(members)) + b"".join(u(2, member) for member in members)


def handover(
    since: int, source: int, done: int, reporters: list[int], older: tuple[tuple[int, int], ...] = ()
) -> bytes:
    """The older stages: since and source."""
    stages = b"".join(u(8, epoch) for stage in older for epoch in stage)
    return u(1, 13) + u(8, since) + u(8, source) + u(8, done) + indices(reporters) + stages


def round_of(
    numbers: tuple[int, int, int, int], seed: bytes, tallies: list[tuple[int, int, int, int, int]], reporters: list[int]
) -> bytes:
    """The numbers: epoch, number, height, start; a tally: member, then shards that said ok, bad, offline, slow."""
    epoch, number, height, start = numbers
    rows = b"".join(u(2, value) for row in tallies for value in row)
    head = u(1, 14) + u(8, epoch) + u(2, number) + u(8, height) + u(8, start) + seed
    return head + u(2, len(tallies)) + rows + indices(reporters)


def standing(epoch: int, rounds: int, marks: list[tuple[int, int, int, int]]) -> bytes:
    """Rounds with reports; marks of each member: rounds challenged, passed, bad, unreported."""
    values = b"".join(u(2, value) for row in marks for value in row)
    return u(1, 15) + u(8, epoch) + u(2, rounds) + u(2, len(marks)) + values


def beacon(node: bytes, tip: tuple[bytes, int], following: tuple[bytes, int], revealed: tuple[int, int]) -> bytes:
    """A tip and the first epoch in which it counts; the epoch and round of the last reveal."""
    (now, since), (later, then), (epoch, number) = tip, following, revealed
    return u(1, 16) + node + now + u(8, since) + later + u(8, then) + u(8, epoch) + u(2, number)


def invalid(blob_id: bytes, epoch: int, height: int, proof_hash: bytes) -> bytes:
    return u(1, 17) + blob_id + u(8, epoch) + u(8, height) + proof_hash


def state_leaf(key: bytes, value: bytes) -> bytes:
    return hashed("state-leaf", key + hashed("state-value", value))


def side(key: bytes, depth: int) -> int:
    return int.from_bytes(key, "big") >> (255 - depth) & 1


def sides(leaves: dict[bytes, bytes], depth: int) -> list[dict[bytes, bytes]]:
    return [{key: value for key, value in leaves.items() if side(key, depth) == bit} for bit in (0, 1)]


def state_root(leaves: dict[bytes, bytes], depth: int = 0) -> bytes:
    """The root of the subtree at `depth` that has just these leaves."""
    if not leaves:
        return bytes(32)
    if len(leaves) == 1:
        return state_leaf(*next(iter(leaves.items())))
    return hashed("state-node", b"".join(state_root(half, depth + 1) for half in sides(leaves, depth)))


def state_proof(leaves: dict[bytes, bytes], key: bytes) -> bytes:
    siblings: list[bytes] = []
    while len(leaves) > 1:
        halves = sides(leaves, len(siblings))
        near = side(key, len(siblings))
        siblings.append(state_root(halves[1 - near], len(siblings) + 1))
        leaves = halves[near]
    head = u(2, len(siblings)) + b"".join(siblings)
    if not leaves:
        return head + u(1, 0)
    if key in leaves:
        return head + u(1, 1)
    other, value = next(iter(leaves.items()))
    return head + u(1, 2) + other + hashed("state-value", value)


# 17. Rounds of challenges


def round_number(start_ms: int, time_ms: int, epoch_ms: int, rounds: int) -> int:
    return min((time_ms - start_ms) // (epoch_ms // rounds) + 1, rounds)


def challenged(seed: bytes, shards: list[int]) -> list[int]:
    """The members, in the order in which they are drawn, whose shards together are at most f."""
    left, drawn = (sum(shards) - 1) // 3, []
    for index in sorted(range(len(shards)), key=lambda index: hashed("sample", seed + u(2, index))):
        if shards[index] <= left:
            left -= shards[index]
            drawn.append(index)
    return sorted(drawn)


def sample(
    blobs: list[tuple[bytes, int]], seed: bytes, shard: int, segment_bytes: int, count: int
) -> list[tuple[bytes, int]]:
    """(blob ID, segment index) of what is drawn; the blobs are (ID, length), ascending."""
    segments = [
        (blob_id, index) for blob_id, length in blobs for index in range(max(1, math.ceil(length / segment_bytes)))
    ]
    if len(segments) <= count:
        return segments
    draws = (hashed("sample", seed + u(2, shard) + u(4, draw)) for draw in range(count))
    return list(dict.fromkeys(segments[int.from_bytes(drawn, "big") % len(segments)] for drawn in draws))


def answer(matrix: list[list[bytes]], seed: bytes, node: bytes, root: bytes, target: int, auditor: int) -> bytes:
    """What `target`, a shard of `node`, answers to the shard `auditor` about one segment."""
    n = len(matrix)
    pair, own = ((shard - int.from_bytes(root, "big")) % n for shard in (target, auditor))
    crossings = matrix[pair][n - 1 - own] + matrix[own][n - 1 - pair]
    return hashed("answer", seed + node + root + u(2, target) + u(2, auditor) + crossings)


def content(length: int) -> bytes:
    """The blob of every vector: BLAKE3's extended output for ASCII `p2pnode vector`."""
    return blake3(b"p2pnode vector").digest(length)


def blob_vector(n: int, segment_bytes: int, length: int) -> dict[str, Any]:
    segments, roots = [], []
    for part in cut(content(length), segment_bytes):
        matrix = expanded(n, part)
        hashes = metadata(matrix)
        primary, secondary = slivers(n, matrix)
        roots.append(hashed("segment", hashes))
        segments.append(
            {
                "symbol_bytes": symbol_bytes(n, len(part)),
                "blake3_of_primaries": blake3(b"".join(primary)).hexdigest(),
                "blake3_of_secondaries": blake3(b"".join(secondary)).hexdigest(),
                "blake3_of_metadata": blake3(hashes).hexdigest(),
                "root": roots[-1].hex(),
                "blake3_of_sliver_file_of_shard_1": blake3(sliver_file(n, matrix, hashes, 1)).hexdigest(),
            }
        )
    raw = header(n, segment_bytes, length, roots)
    size = encoded_bytes(n, segment_bytes, length)
    return {
        "n": n,
        "segment_bytes": segment_bytes,
        "length": length,
        "segments": segments,
        "header": raw.hex(),
        "blob_id": hashed("blob", raw).hex(),
        "encoded_bytes": size,
        "encoded_units": math.ceil(size / 65536),
    }


def code_vector(n: int) -> dict[str, Any]:
    matrices = {k: blake3(b"".join(generator(k, n))).hexdigest() for k in shape(n)}
    return {"n": n, "blake3_of_generator": {str(k): matrix for k, matrix in matrices.items()}}


def signed_vector() -> dict[str, Any]:
    """Keys are from seeds of one repeated byte: the owner's 0x10, the uploader's 0x11, member i's i + 1; n = 4."""
    owner, uploader = SigningKey(bytes([0x10]) * 32), SigningKey(bytes([0x11]) * 32)
    members = [SigningKey(bytes([index + 1]) * 32) for index in range(4)]
    chain, blob_id, reservation, salt = (bytes([byte]) * size for byte, size in ((7, 32), (8, 32), (9, 32), (10, 16)))
    key = bytes(owner.verify_key)
    pass_bytes = ticket(chain, key, reservation, bytes(uploader.verify_key), 1001)
    statement_bytes = statement(chain, key, bytes(32), blob_id, 123_456_789, 1, salt, 1002)
    signature = owner.sign(statement_bytes).signature
    statement_hash = hashed("statement", statement_bytes)
    committed = [commitment(chain, 5, index, blob_id, 123_456_789, statement_hash) for index in range(4)]
    signers = [(index, members[index].sign(committed[index]).signature) for index in (0, 1, 3)]
    return {
        "ticket": pass_bytes.hex(),
        "ticket_signature": owner.sign(pass_bytes).signature.hex(),
        "statement": statement_bytes.hex(),
        "statement_signature": signature.hex(),
        "statement_hash": statement_hash.hex(),
        "commitment_of_3": committed[3].hex(),
        "commitment_signature_of_3": signers[2][1].hex(),
        "certificate_of_0_1_3": certificate(statement_bytes, signature, 5, signers).hex(),
    }


def tree_vector(keys: list[bytes], asked: list[bytes]) -> dict[str, Any]:
    """The value of the i-th key is i bytes of 0x5a."""
    leaves = {key: b"Z" * index for index, key in enumerate(keys)}
    return {
        "keys": [key.hex() for key in keys],
        "root": state_root(leaves).hex(),
        "proofs": {key.hex(): state_proof(leaves, key).hex() for key in asked},
    }


def tree_vectors() -> list[dict[str, Any]]:
    """No key, one, two that differ in the first or in the last bit, 40 spread evenly; asked for keys inside and not."""
    zero, low, high = bytes(32), bytes(31) + b"\1", b"\x80" + bytes(31)
    keys = [hashed("state-key", u(1, 1) + u(32, index)) for index in range(45)]
    cases = [[], [zero], [zero, high], [zero, low]]
    return [*(tree_vector(case, [zero, low, high]) for case in cases), tree_vector(keys[:40], keys[35:])]


def operations() -> dict[str, tuple[int, bytes]]:
    """Each operation's number and arguments; keys and chain as in `signed_vector`, the nonce is 6."""
    signed = {name: bytes.fromhex(value) for name, value in signed_vector().items()}
    owner, member = SigningKey(bytes([0x10]) * 32), SigningKey(bytes([2]) * 32)
    chain, blob, one, two, to = (bytes([byte]) * 32 for byte in (7, 8, 9, 11, 12))
    agreed = member.sign(agreement(chain, bytes(owner.verify_key), 6)).signature
    offer = u(8, 100) + u(8, 200) + u(8, 300) + u(2, 10_000)
    addresses = u(1, 2) + text("/ip4/127.0.0.1/tcp/1") + text("/dns/\u00e9/tcp/2")
    attested = attestation(chain, 18, blob, two)
    attesters = [(index, SigningKey(bytes([index + 1]) * 32).sign(attested).signature) for index in (0, 2)]
    attestations = u(2, 2) + b"".join(u(2, index) + signature for index, signature in attesters)
    votes = [signed_vote(chain, kind, 3, 40, bytes([kind - 2]) * 32, 1, member) for kind in (2, 3)]
    headers = [signed_header(chain, 3, 40, time_ms, 1, member) for time_ms in (50, 51)]
    return {
        "transfer": (1, to + u(8, 2**64 - 1)),
        "reserve": (2, u(8, 13) + u(8, 14) + u(8, 15)),
        "split_units": (3, one + u(8, 16)),
        "split_epochs": (4, one + u(8, 17)),
        "merge": (5, one + two),
        "hand_over": (6, one + to),
        "certify": (7, signed["certificate_of_0_1_3"]),
        "certify_again": (8, one + blob + u(1, 1)),
        "extend": (9, blob + one + u(2, 65_535)),
        "delete": (10, blob + one),
        "attributes": (11, blob + one + text("text/plain") + text("caf\u00e9")),
        "register_node": (12, bytes(member.verify_key) + offer + addresses + agreed),
        "evidence_of_votes": (13, u(1, 1) + b"".join(votes)),
        "evidence_of_headers": (13, u(1, 2) + b"".join(headers)),
        "put_stake": (14, bytes(member.verify_key) + u(8, 10**9)),
        "unstake": (15, one + u(8, 0)),
        "report_sync": (16, u(8, 19)),
        "report_audit": (17, u(8, 20) + u(2, 21) + u(2, 5) + bytes([1, 0, 2, 3, 4])),
        "commit_beacon": (18, two),
        "invalidate": (19, blob + u(8, 18) + two + attestations),
    }


def transaction_vector(number: int, arguments: bytes, signatures: int) -> dict[str, Any]:
    """The sender is the owner of `signed_vector`; the least fee is of 10 FROST a byte and 500 a signature."""
    raw = transaction(bytes([7]) * 32, SigningKey(bytes([0x10]) * 32), 6, 5, 4, number, arguments)
    return {
        "raw": raw.hex(),
        "hash": hashed("tx", raw).hex(),
        "least_fee": len(raw) * 10 + signatures * 500,
        "new_reservation": hashed("reservation", hashed("tx", raw)).hex(),
    }


def state_values() -> dict[str, bytes]:
    key, member, blob, one = (bytes([byte]) * 32 for byte in (1, 2, 8, 9))
    return {
        "account": account(key, 2**63 - 1, 5),
        "reservation": u(1, 2) + one + key + u(8, 6) + u(8, 7) + u(8, 8),
        "blob": u(1, 3) + blob + u(8, 9) + u(8, 10) + u(8, 11) + u(2, 2) + u(8, 12) + u(4, 1) + u(8, 13) + u(4, 14),
        "entry": u(1, 4)
        + blob
        + one
        + key
        + u(8, 6)
        + u(8, 8)
        + u(8, 9)
        + u(1, 1)
        + text("text/plain")
        + text("\u00e9"),
        "used_statement": u(1, 5) + bytes([10]) * 32 + u(8, 1002),
        "bucket": u(1, 6) + u(8, 3) + u(8, 4) + u(8, 5),
        "node": node(member, key, (1, 2, 3, 4, 5), (6, 10_000, 8), 9, ["/ip4/127.0.0.1/tcp/1", ""]),
        "offence": u(1, 8) + member + u(8, 3) + u(8, 40) + u(8, 41),
        "system": system(3, 4, 5, 6, bytes([7]) * 32),
        "seats": seats(committee(3, [(member, key), (key, key)], [1, 0, 1, 1, 0])),
        "terms": terms(3, 4, 5, 6),
        "stake": stake(one, key, member, 4, 5, 0, 6),
        "handover": handover(3, 2, 40, [0, 2]),
        "staged_handover": handover(9, 8, 0, [1], ((2, 1), (5, 4))),
        "round": round_of((3, 4, 50, 60), blob, [(0, 1, 2, 3, 4), (2, 5, 6, 7, 8)], [1, 3]),
        "standing": standing(3, 4, [(4, 3, 2, 1), (0, 0, 0, 65_535)]),
        "beacon": beacon(member, (one, 3), (blob, 5), (2, 4)),
        "invalid": invalid(blob, 3, 40, one),
    }


IDENTITY_BYTES = {1: 32, 2: 32, 3: 32, 4: 64, 5: 32, 6: 8, 7: 32, 8: 48, 9: 0}
IDENTITY_BYTES |= {10: 8, 11: 8, 12: 32, 13: 0, 14: 0, 15: 0, 16: 32, 17: 32}


def key_of(value: bytes) -> bytes:
    return state_key(value[0], value[1 : 1 + IDENTITY_BYTES[value[0]]])


def genesis_values() -> list[bytes]:
    """Time 1000; accounts 0x20 and 0x21 repeated, with 0 and 77 FROST; members 1 and 2 repeated, owned by 0x21, with 3
    and 4 shards of 10 FROST stake; 50 units of capacity, 6 FROST for storing and 7 for writing one."""
    accounts = [account(bytes([byte]) * 32, balance, 0) for byte, balance in ((0x20, 0), (0x21, 77))]
    one, two, owner = (bytes([byte]) * 32 for byte in (1, 2, 0x21))
    held = {one: 3, two: 4}
    nodes = [
        node(key, owner, (10 * shards, 10 * shards, math.ceil(50 * shards / 7), 6, 7), (1_000, 1_000, 0), 0, ["/a"])
        for key, shards in held.items()
    ]
    stakes = [stake(hashed("stake", key), owner, key, 2, 0, 10 * shards, 0) for key, shards in held.items()]
    seated = seats(committee(0, [(one, owner), (two, owner)], [0, 0, 0, 1, 1, 1, 1]))
    begun = [handover(0, 0, 0, [0, 1]), standing(0, 0, [(0, 0, 0, 0)] * 2)]
    return [system(0, 1000, 77 + 70, 0, bytes(32)), *accounts, *nodes, *stakes, seated, terms(0, 50, 6, 7), *begun]


def chain_vector() -> dict[str, Any]:
    signatures = {"certify": 4, "register_node": 1, "evidence_of_votes": 2, "evidence_of_headers": 2, "invalidate": 2}
    values = state_values()
    return {
        "transactions": {
            name: transaction_vector(number, arguments, signatures.get(name, 0))
            for name, (number, arguments) in operations().items()
        },
        "values": {name: {"key": key_of(value).hex(), "value": value.hex()} for name, value in values.items()},
        "genesis_root": state_root({key_of(value): value for value in genesis_values()}).hex(),
    }


def blocks_vector() -> dict[str, Any]:
    """Member i's key is from a seed of i + 1, repeated; the members have 2, 2 and 3 shards."""
    members = [SigningKey(bytes([index + 1]) * 32) for index in range(3)]
    chain, block_hash, state, seated, following, reveal = (bytes([byte]) * 32 for byte in (7, 8, 9, 10, 11, 12))
    owners = [bytes([0x20 + index]) * 32 for index in range(3)]
    keys = [(bytes(member.verify_key), owner) for member, owner in zip(members, owners, strict=True)]
    moved = committee(6, keys, [2, 0, 1, 1, 2, 0, 2])
    votes = {}
    for kind in VOTES:
        named = bytes(32) if kind == "nullify" else block_hash
        signed = vote(kind, chain, 5, 1_000, named, 2)
        wire = vote_on_wire(kind, 5, 1_000, named, 2, members[2].sign(signed).signature)
        votes[kind] = {"signed": signed.hex(), "wire": wire.hex()}
    signers = [
        (index, members[index].sign(vote("notarize", chain, 5, 1_000, block_hash, index)).signature) for index in (0, 2)
    ]
    transactions = [bytes([4]) * 32, bytes([5]) * 32]
    root = hashed("txs", b"".join(transactions))
    numbers = [(8, 5), (8, 1_000), (8, 70_000), (8, 998), (8, 1_700_000_000_123), (2, 2), (4, 2), (8, 69_990)]
    header_bytes = block_header(chain, numbers, block_hash, [root, state, seated, following, reveal])
    block = header_bytes + members[2].sign(header_bytes).signature + b"".join(transactions)
    return {
        "votes": votes,
        "certificate": vote_certificate("notarize", 5, 1_000, block_hash, signers).hex(),
        "transactions_root": root.hex(),
        "header": header_bytes.hex(),
        "block_hash": hashed("block", header_bytes).hex(),
        "block": block.hex(),
        "leaders": [leader(block_hash, view, [0, 0, 1, 1, 2, 2, 2]) for view in range(1, 33)],
        "committee": moved.hex(),
        "committee_hash": hashed("committee", moved).hex(),
        "leaders_of_committee": [leader(block_hash, view, [2, 0, 1, 1, 2, 0, 2]) for view in range(1, 33)],
    }


def challenges_vector() -> dict[str, Any]:
    """The seed is 0x07 repeated, an onion begins with 0x08 repeated; blob i of six has the ID H(message, `u64` i) and
    1,000 i bytes in segments of 777; the answers are of n = 7 and `content(1000)`."""
    seed, node, matrix = bytes([7]) * 32, bytes([2]) * 32, expanded(7, content(1000))
    onion = [bytes([8]) * 32]
    while len(onion) < 4:
        onion.append(hashed("beacon", onion[-1]))
    blobs = sorted((hashed("message", u(8, index)), 1_000 * index) for index in range(6))
    drawn = {count: [sample(blobs, seed, shard, 777, count) for shard in range(4)] for count in (0, 1, 8, 22, 23)}
    root = hashed("segment", metadata(matrix))
    times = (0, 1, 99, 100, 249, 999, 1_000, 5_000)
    return {
        "onion": [step.hex() for step in onion],
        "seed_after_a_reveal": hashed("seed", seed + onion[2]).hex(),
        "seed_of_a_round": hashed("seed", seed + u(8, 5) + u(2, 3)).hex(),
        "rounds": [[time, round_number(50, 50 + time, 1_000, 9)] for time in times],
        "challenged": [[shards, challenged(seed, shards)] for shards in ([1] * 10, [2, 2, 3], [9, 1, 5, 1, 4, 1])],
        "samples": {
            str(count): [[[blob_id.hex(), index] for blob_id, index in rows] for rows in of_shards]
            for count, of_shards in drawn.items()
        },
        "root": root.hex(),
        "answers": [[answer(matrix, seed, node, root, target, own).hex() for own in range(7)] for target in range(7)],
    }


# 21. Sealed blob


def quarter_rounds(state: list[int]) -> list[int]:
    """The ten double rounds of ChaCha20 (RFC 8439, 2.3), without the addition at their end."""
    x = list(state)
    columns = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
    diagonals = [(0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
    for a, b, c, d in (columns + diagonals) * 10:
        for left, right, other, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[left] = x[left] + x[right] & 0xFFFFFFFF
            x[other] ^= x[left]
            x[other] = (x[other] << turn | x[other] >> 32 - turn) & 0xFFFFFFFF
    return x


def words(data: bytes) -> list[int]:
    return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]


def chacha_stream(key: bytes, nonce: bytes, blocks: int) -> bytes:
    stream = []
    for counter in range(blocks):
        state = [*words(b"expand 32-byte k" + key), counter, *words(nonce)]
        for word, start in zip(quarter_rounds(state), state, strict=True):
            stream.append((word + start & 0xFFFFFFFF).to_bytes(4, "little"))
    return b"".join(stream)


def hchacha(key: bytes, nonce: bytes) -> bytes:
    x = quarter_rounds(words(b"expand 32-byte k" + key + nonce))
    return b"".join(word.to_bytes(4, "little") for word in (*x[:4], *x[12:]))


def poly1305(key: bytes, data: bytes) -> bytes:
    r, total = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF, 0
    for at in range(0, len(data), 16):
        total = (total + int.from_bytes(data[at : at + 16] + b"\1", "little")) * r % (2**130 - 5)
    return (total + int.from_bytes(key[16:], "little") & 2**128 - 1).to_bytes(16, "little")


def seal_frame(key: bytes, nonce: bytes, front: bytes, plain: bytes) -> bytes:
    """XChaCha20-Poly1305: draft-irtf-cfrg-xchacha, 2; RFC 8439, 2.8."""
    stream = chacha_stream(hchacha(key, nonce[:16]), bytes(4) + nonce[16:], 1 + math.ceil(len(plain) / 64))
    sealed = bytes(x ^ y for x, y in zip(plain, stream[64:], strict=False))
    sizes = len(front).to_bytes(8, "little") + len(sealed).to_bytes(8, "little")
    padded = [part + bytes(-len(part) % 16) for part in (front, sealed)]
    return sealed + poly1305(stream[:32], b"".join(padded) + sizes)


def sealed(key: bytes, plain: bytes) -> bytes:
    front = b"p2px" + u(1, 1) + bytes(3)
    frames = [plain[at : at + 65_536] for at in range(0, len(plain), 65_536)] or [b""]
    nonces = [bytes(15) + u(8, index) + u(1, index == len(frames) - 1) for index in range(len(frames))]
    return front + b"".join(seal_frame(key, nonce, front, frame) for nonce, frame in zip(nonces, frames, strict=True))


def link(blob_id: bytes, path: str, peers: list[tuple[bytes, str]], key: bytes) -> str:
    """An empty path or key is none."""
    safe = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~"

    def escape(text: str, kept: bytes) -> str:
        return "".join(chr(byte) if byte in safe + kept else f"%{byte:02X}" for byte in text.encode())

    def shown(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    query = "&".join(f"peer={shown(node)}@{escape(address, b'')}" for node, address in peers)
    tail = (
        (f"/{escape(path, b'/')}" if path else "") + (f"?{query}" if peers else "") + (f"#{shown(key)}" if key else "")
    )
    return f"p2pnode://get/{shown(blob_id)}{tail}"


def sealed_vector() -> dict[str, Any]:
    """The secret is 0x09 repeated, a blob is `content(length)`; the IDs, nodes and keys of links repeat one byte."""
    secret, blobs = bytes([9]) * 32, []
    for length in (0, 1, 100, 65_535, 65_536, 65_537, 131_072, 140_000):
        key = blake3(b"p2pnode seal 1" + blake3(content(length)).digest(), key=secret).digest()
        data = sealed(key, content(length))
        shown = {"sealed": data.hex()} if length <= 100 else {"blake3_of_sealed": blake3(data).hexdigest()}
        blobs.append({"length": length, "key": key.hex(), "sealed_length": len(data), **shown})
    peers = [(bytes([3]) * 32, "/ip4/203.0.113.5/tcp/4001"), (bytes([4]) * 32, "/dns/a.example/tcp/1")]
    blob_id, key = bytes([1]) * 32, bytes([255]) * 32
    cases = [("", [], b""), ("", [], key), ("a b/é?#&%.txt", peers[:1], key), ("x", peers, b""), ("", peers, key)]
    return {"blobs": blobs, "links": [link(blob_id, *case) for case in cases]}


SHARDS = (4, 7, 10, 21, 31, 100, 256)


def blob_cases(n: int) -> list[tuple[int, int]]:
    """(segment size, length): empty, one byte, a full matrix of one byte, odd sizes, several, a full last one."""
    area = math.prod(shape(n))
    return [(8 << 20, size) for size in (0, 1, area, 2 * area + 1, 12_345)] + [(777, 2000), (500, 1000)]


def vectors() -> dict[str, Any]:
    """File name to content."""
    blobs = {f"blobs-{n}.json": [blob_vector(n, *case) for case in blob_cases(n)] for n in SHARDS}
    codes = [code_vector(n) for n in SHARDS]
    chain = {"chain.json": chain_vector(), "tree.json": tree_vectors(), "blocks.json": blocks_vector()}
    challenges = {"challenges.json": challenges_vector()}
    files = {"quilts.json": quilts_vector(), "folders.json": folders_vector(), "sealed.json": sealed_vector()}
    return {"codes.json": codes, "signed.json": signed_vector(), **chain, **challenges, **blobs, **files}


if __name__ == "__main__":
    VECTORS.mkdir(exist_ok=True)
    for name, value in vectors().items():
        (VECTORS / name).write_text(json.dumps(value, indent=1) + "\n")
