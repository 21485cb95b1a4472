"""Blocks: header, leader's signature, transaction hashes (FORMATS.md 9), and what a header owes to its parent."""

from collections.abc import Sequence
from dataclasses import dataclass

from economics.committee import Committee
from economics.crypto import (
    DIGEST_BYTES,
    SIGNATURE_BYTES,
    TAG_BYTES,
    TAG_HEADER,
    Digest,
    Level,
    Signature,
    digest,
    verify_signature,
)
from economics.errors import Reason, Rejected
from economics.fields import Fields, sized
from economics.votes import ZERO_HASH, Kind, Verify, VoteCertificate

PROTOCOL = 2
HEADER_BYTES = 296
AHEAD_MS_MAX = 2_000
"""A block is dated at most this far ahead of a voter's clock."""


@dataclass(frozen=True, slots=True)
class BlockHeader:
    """All that is signed of a block. `state_root` is the root after the block of `executed_height`."""

    chain_id: Digest
    epoch: int
    view: int
    height: int
    parent_view: int
    parent_hash: Digest
    time_ms: int
    leader: int
    transactions_root: Digest
    transactions_count: int
    executed_height: int
    state_root: Digest
    committee_hash: Digest
    next_committee_hash: Digest
    reveal: bytes = bytes(DIGEST_BYTES)
    """The leader's next preimage for the beacon, or zero; one that is wrong counts for nothing (FORMATS.md 17)."""

    def encode(self) -> bytes:
        return b"".join(
            (
                TAG_HEADER,
                self.chain_id,
                PROTOCOL.to_bytes(2, "big"),
                self.epoch.to_bytes(8, "big"),
                self.view.to_bytes(8, "big"),
                self.height.to_bytes(8, "big"),
                self.parent_view.to_bytes(8, "big"),
                self.parent_hash,
                self.time_ms.to_bytes(8, "big"),
                self.leader.to_bytes(2, "big"),
                self.transactions_root,
                self.transactions_count.to_bytes(4, "big"),
                self.executed_height.to_bytes(8, "big"),
                self.state_root,
                self.committee_hash,
                self.next_committee_hash,
                self.reveal,
            )
        )

    @classmethod
    def take(cls, fields: Fields, *, chain_id: Digest) -> "BlockHeader":
        if fields.take(TAG_BYTES) != TAG_HEADER:
            raise Rejected(Reason.MALFORMED, "not a block header")
        if fields.take(DIGEST_BYTES) != chain_id:
            raise Rejected(Reason.WRONG_CHAIN, "a block of another network")
        if fields.take_int(2) != PROTOCOL:
            raise Rejected(Reason.MALFORMED, f"a block of another protocol than {PROTOCOL}")
        return cls(
            chain_id=chain_id,
            epoch=fields.take_int(8),
            view=fields.take_int(8),
            height=fields.take_int(8),
            parent_view=fields.take_int(8),
            parent_hash=Digest(fields.take(DIGEST_BYTES)),
            time_ms=fields.take_int(8),
            leader=fields.take_int(2),
            transactions_root=Digest(fields.take(DIGEST_BYTES)),
            transactions_count=fields.take_int(4),
            executed_height=fields.take_int(8),
            state_root=Digest(fields.take(DIGEST_BYTES)),
            committee_hash=Digest(fields.take(DIGEST_BYTES)),
            next_committee_hash=Digest(fields.take(DIGEST_BYTES)),
            reveal=fields.take(DIGEST_BYTES),
        )

    @classmethod
    def decode(cls, data: bytes, *, chain_id: Digest) -> "BlockHeader":
        fields = Fields(data, "a block header")
        header = cls.take(fields, chain_id=chain_id)
        fields.end()
        return header

    @property
    def hash(self) -> Digest:
        """The block hash; 3 us."""
        return digest(Level.BLOCK, self.encode())


def transactions_root(hashes: Sequence[bytes]) -> Digest:
    return digest(Level.TRANSACTIONS, b"".join(hashes))


def leader_of(view: int, *, root_hash: Digest, committee: Committee) -> int:
    """Return the index of the member that leads a view: a draw weighted by shards (FORMATS.md 9)."""
    drawn = digest(Level.LEADER, root_hash + view.to_bytes(8, "big"))
    return committee.holder(int.from_bytes(drawn, "big") % committee.n)


@dataclass(frozen=True, slots=True)
class Block:
    """A header with its leader's signature and the hashes of its transactions, whose bodies travel elsewhere."""

    header: BlockHeader
    signature: Signature
    transactions: tuple[Digest, ...]

    @property
    def hash(self) -> Digest:
        return self.header.hash

    def encode(self) -> bytes:
        return b"".join((self.header.encode(), self.signature, *self.transactions))

    @classmethod
    def decode(cls, data: bytes, *, chain_id: Digest, transactions_max: int) -> "Block":
        """Return the block; raises `Rejected` also if its hashes are too many or not those of its header."""
        fields = Fields(data, "a block")
        header = BlockHeader.take(fields, chain_id=chain_id)
        signature = Signature(fields.take(SIGNATURE_BYTES))
        if header.transactions_count > transactions_max:
            raise Rejected(Reason.TOO_LARGE, f"a block has at most {transactions_max} transactions")
        if fields.left != header.transactions_count * DIGEST_BYTES:
            raise Rejected(Reason.MALFORMED, "the transaction hashes are not as many as the header says")
        hashes = tuple(Digest(fields.take(DIGEST_BYTES)) for _ in range(header.transactions_count))
        if transactions_root(hashes) != header.transactions_root:
            raise Rejected(Reason.HASH_MISMATCH, "the transaction hashes are not those of the header")
        return cls(header, signature, hashes)

    def verify_signature(self, *, committee: Committee, verify: Verify = verify_signature) -> None:
        """Raise `Rejected` unless the member that the header names as leader signed it."""
        if self.header.leader >= len(committee.members):
            raise Rejected(Reason.UNKNOWN_SIGNER, f"no member {self.header.leader}")
        verify(committee.members[self.header.leader].node, self.header.encode(), self.signature)


def is_boundary(header: BlockHeader, *, root: BlockHeader, epoch_ms: int) -> bool:
    """Return whether a block of the epoch that began at `root` is its last one, or builds on its last one."""
    return header.time_ms >= root.time_ms + epoch_ms


def block_time_ms(now_ms: int, *, parent: BlockHeader, root: BlockHeader, epoch_ms: int, names_next: bool) -> int:
    """Return when to date a block on `parent`: now, but within the epoch where it does not name the next committee.

    Then its last quarter has room for blocks a millisecond apart, until one is executed that fixes the committee.
    """
    time_ms, end_ms = max(now_ms, parent.time_ms + 1), root.time_ms + epoch_ms
    if names_next or time_ms < end_ms or parent.time_ms >= end_ms:
        return time_ms
    return min(max(parent.time_ms + 1, end_ms - epoch_ms // 4), end_ms - 1)


def verify_successor(
    header: BlockHeader, *, parent: BlockHeader, root: BlockHeader, committee: Committee, epoch_ms: int
) -> None:
    """Raise `Rejected` unless `header` may follow `parent` in the epoch that began at `root` (FORMATS.md 9).

    What needs a clock or the state (time ahead, state root, which committee is next) is the voter's to check. Every
    block that is no boundary has a valid successor in any state.
    """
    first = parent == root
    if header.epoch != committee.epoch or header.chain_id != root.chain_id:
        raise Rejected(Reason.WRONG_EPOCH, f"a block of epoch {header.epoch} in epoch {committee.epoch}")
    if (header.height, header.parent_hash) != (parent.height + 1, parent.hash):
        raise Rejected(Reason.WRONG_PARENT, "height or parent hash are not the parent's")
    if header.parent_view != (0 if first else parent.view) or header.view <= header.parent_view:
        raise Rejected(Reason.WRONG_PARENT, "the parent's view is another")
    if header.time_ms <= parent.time_ms and not _stands_still(header, parent, end_ms=root.time_ms + epoch_ms):
        raise Rejected(Reason.WRONG_TIME, "a block is later than its parent")
    if header.leader != leader_of(header.view, root_hash=root.hash, committee=committee):
        raise Rejected(Reason.WRONG_LEADER, f"member {header.leader} does not lead view {header.view}")
    if not parent.executed_height <= header.executed_height <= parent.height:
        raise Rejected(Reason.WRONG_STATE, "the executed height went back, or is not below the block's own")
    if first and header.executed_height != root.height:
        raise Rejected(Reason.WRONG_STATE, "the first block of an epoch has executed all of the last one")
    is_tail = not first and is_boundary(parent, root=root, epoch_ms=epoch_ms)
    if is_tail and header.transactions_count:
        raise Rejected(Reason.WRONG_PARENT, "what builds on a boundary is empty")
    if header.committee_hash != committee.hash:
        raise Rejected(Reason.WRONG_STATE, "another committee")
    _verify_name(header.next_committee_hash, parent=None if first or is_tail else parent)
    if not is_tail and is_boundary(header, root=root, epoch_ms=epoch_ms):
        _verify_boundary(header)


def _verify_name(named: Digest, *, parent: BlockHeader | None) -> None:
    """Raise `Rejected` if the name of the next committee is another than the parent's, if that has one, or comes where
    none can be (parent None): right behind the root or a boundary."""
    if parent is None and named != ZERO_HASH:
        raise Rejected(Reason.WRONG_STATE, "nobody can know the next committee yet")
    if parent is not None and parent.next_committee_hash not in (ZERO_HASH, named):
        raise Rejected(Reason.WRONG_STATE, "another next committee than the parent's")


def _verify_boundary(header: BlockHeader) -> None:
    if header.next_committee_hash == ZERO_HASH:
        raise Rejected(Reason.WRONG_TIME, "a block that ends an epoch names the next committee")


def _stands_still(header: BlockHeader, parent: BlockHeader, *, end_ms: int) -> bool:
    """Return whether time may stand still: in the last millisecond before an end that nobody can date a block at yet.

    Else blocks that were notarized there and not finalized would leave nothing to build on them.
    """
    return header.next_committee_hash == ZERO_HASH and header.time_ms == parent.time_ms == end_ms - 1


@dataclass(frozen=True, slots=True)
class Proposal:
    """A block on its way to the voters, with the certificate of its parent (None where that is the epoch's root)."""

    block: Block
    parent: VoteCertificate | None

    def encode(self) -> bytes:
        block = self.block.encode()
        return b"".join((sized(block), b"" if self.parent is None else self.parent.encode()))

    @classmethod
    def decode(cls, data: bytes, *, chain_id: Digest, transactions_max: int) -> "Proposal":
        """Return the proposal; raises `Rejected` also if the certificate is not of the block's parent."""
        fields = Fields(data, "a proposal")
        block = Block.decode(fields.take_sized(4), chain_id=chain_id, transactions_max=transactions_max)
        certificate = VoteCertificate.take(fields) if fields.left else None
        fields.end()
        header = block.header
        if (certificate is None) != (header.parent_view == 0):
            raise Rejected(
                Reason.MALFORMED, "a proposal holds its parent's certificate, unless that is the epoch's root"
            )
        if certificate is not None and (
            certificate.kind is Kind.NULLIFY
            or (certificate.epoch, certificate.view, certificate.block_hash)
            != (header.epoch, header.parent_view, header.parent_hash)
        ):
            raise Rejected(Reason.WRONG_PARENT, "the certificate is not of the block's parent")
        return cls(block, certificate)


@dataclass(frozen=True, slots=True)
class Finality:
    """Proves a header final: a finalization of the header itself, or of the last of `links` that build on it.

    A boundary needs links, as what builds on it in its own epoch finalizes it and is no part of the chain; so does any
    other block that became final with a later one, where it is shown without that one.
    """

    certificate: VoteCertificate
    links: tuple[BlockHeader, ...] = ()

    def encode(self) -> bytes:
        parts = (link.encode() for link in self.links)
        return b"".join((len(self.links).to_bytes(1, "big"), *parts, self.certificate.encode()))

    @classmethod
    def decode(cls, data: bytes, *, chain_id: Digest) -> "Finality":
        fields = Fields(data, "a finality")
        links = tuple(BlockHeader.take(fields, chain_id=chain_id) for _ in range(fields.take_int(1)))
        certificate = VoteCertificate.take(fields)
        fields.end()
        return cls(certificate, links)

    def verify(self, header: BlockHeader, *, committee: Committee, verify: Verify = verify_signature) -> None:
        """Raise `Rejected` unless a quorum of the committee of the header's epoch made it final."""
        last = header
        for link in self.links:
            if (link.parent_hash, link.epoch) != (last.hash, header.epoch):
                raise Rejected(Reason.WRONG_PARENT, "a finality's links do not build on the header")
            last = link
        certificate = self.certificate
        if certificate.kind is not Kind.FINALIZE or certificate.block_hash != last.hash:
            raise Rejected(Reason.NO_QUORUM, "the certificate finalizes another block")
        if (certificate.epoch, certificate.view) != (last.epoch, last.view):
            raise Rejected(Reason.WRONG_EPOCH, "the certificate is of another epoch or view")
        certificate.verify(chain_id=header.chain_id, committee=committee, verify=verify)


def genesis_header(
    *, chain_id: Digest, time_ms: int, state_root: Digest, committee_hash: Digest, next_committee_hash: Digest
) -> BlockHeader:
    """Return the root of epoch 0, which nobody signs (FORMATS.md 9)."""
    return BlockHeader(
        chain_id=chain_id,
        epoch=0,
        view=0,
        height=0,
        parent_view=0,
        parent_hash=ZERO_HASH,
        time_ms=time_ms,
        leader=0,
        transactions_root=transactions_root(()),
        transactions_count=0,
        executed_height=0,
        state_root=state_root,
        committee_hash=committee_hash,
        next_committee_hash=next_committee_hash,
    )
