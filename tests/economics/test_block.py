"""Blocks: their bytes, what a header owes to its parent, proposals and what proves a header final."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from economics.block import (
    HEADER_BYTES,
    Block,
    BlockHeader,
    Finality,
    Proposal,
    block_time_ms,
    genesis_header,
    is_boundary,
    leader_of,
    transactions_root,
    verify_successor,
)
from economics.committee import Committee
from economics.crypto import Digest, Signature
from economics.errors import Reason, Rejected
from economics.votes import ZERO_HASH, Kind, Vote, VoteCertificate
from tests.refusals import reason
from tests.small import OPERATORS, make_genesis

CHAIN = Digest(bytes([7]) * 32)
EPOCH_MS = 10_000
COMMITTEE = make_genesis((2, 2, 3)).committee  # n = 7, f = 2, q = 5
LATER = Committee(1, COMMITTEE.members)
ROOT = genesis_header(
    chain_id=CHAIN,
    time_ms=1_000,
    state_root=Digest(bytes([3]) * 32),
    committee_hash=COMMITTEE.hash,
    next_committee_hash=ZERO_HASH,
)
END_MS = ROOT.time_ms + EPOCH_MS
TRANSACTIONS = (Digest(bytes([4]) * 32), Digest(bytes([5]) * 32))
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "blocks.json").read_text(encoding="utf-8"))


def after(parent: BlockHeader, **changes: Any) -> BlockHeader:
    """Return a valid header of the next view but one."""
    view = 2 if parent == ROOT else parent.view + 2
    header = BlockHeader(
        chain_id=CHAIN,
        epoch=0,
        view=view,
        height=parent.height + 1,
        parent_view=0 if parent == ROOT else parent.view,
        parent_hash=parent.hash,
        time_ms=parent.time_ms + 1,
        leader=leader_of(view, root_hash=ROOT.hash, committee=COMMITTEE),
        transactions_root=transactions_root(()),
        transactions_count=0,
        executed_height=parent.executed_height,
        state_root=ROOT.state_root,
        committee_hash=COMMITTEE.hash,
        next_committee_hash=parent.next_committee_hash if parent.time_ms < END_MS else ZERO_HASH,
    )
    return replace(header, **changes)


def boundary_on(parent: BlockHeader) -> BlockHeader:
    return after(parent, time_ms=END_MS, next_committee_hash=LATER.hash)


def check(header: BlockHeader, parent: BlockHeader = ROOT, root: BlockHeader = ROOT) -> None:
    verify_successor(header, parent=parent, root=root, committee=COMMITTEE, epoch_ms=EPOCH_MS)


def sign(header: BlockHeader, transactions: tuple[Digest, ...] = ()) -> Block:
    return Block(header, OPERATORS[header.leader].sign(header.encode()), transactions)


def certify(kind: Kind, header: BlockHeader) -> VoteCertificate:
    votes = [Vote(kind, header.epoch, header.view, header.hash, signer) for signer in (0, 2)]
    signatures = tuple((vote.signer, OPERATORS[vote.signer].sign(vote.encode(CHAIN))) for vote in votes)
    return VoteCertificate(kind, header.epoch, header.view, header.hash, signatures)


def filled(parent: BlockHeader = ROOT) -> Block:
    header = after(parent, transactions_root=transactions_root(TRANSACTIONS), transactions_count=2)
    return sign(header, TRANSACTIONS)


class TestHeader:
    def test_is_296_bytes_and_comes_back(self) -> None:
        header = after(ROOT)
        assert len(header.encode()) == HEADER_BYTES == 296
        assert BlockHeader.decode(header.encode(), chain_id=CHAIN) == header

    def test_its_bytes_and_hash_are_those_of_the_reference(self) -> None:
        header = BlockHeader(
            chain_id=CHAIN,
            epoch=5,
            view=1_000,
            height=70_000,
            parent_view=998,
            parent_hash=Digest(bytes([8]) * 32),
            time_ms=1_700_000_000_123,
            leader=2,
            transactions_root=transactions_root(TRANSACTIONS),
            transactions_count=2,
            executed_height=69_990,
            state_root=Digest(bytes([9]) * 32),
            committee_hash=Digest(bytes([10]) * 32),
            next_committee_hash=Digest(bytes([11]) * 32),
            reveal=bytes([12]) * 32,
        )
        assert header.encode().hex() == VECTORS["header"]
        assert header.hash.hex() == VECTORS["block_hash"]
        assert header.transactions_root.hex() == VECTORS["transactions_root"]
        assert sign(header, TRANSACTIONS).encode().hex() == VECTORS["block"]

    def test_reveals_what_its_leader_likes(self) -> None:
        header = after(ROOT, reveal=bytes(range(32)))
        assert BlockHeader.decode(header.encode(), chain_id=CHAIN) == header

    def test_its_hash_binds_every_field(self) -> None:
        header = after(ROOT)
        changes: list[dict[str, Any]] = [
            {name: getattr(header, name) + 1}
            for name in (
                *("epoch", "view", "height", "parent_view", "time_ms", "leader", "transactions_count"),
                "executed_height",
            )
        ] + [
            {name: Digest(bytes([99]) * 32)}
            for name in (
                *("chain_id", "parent_hash", "transactions_root", "state_root"),
                *("committee_hash", "next_committee_hash", "reveal"),
            )
        ]
        assert len({replace(header, **change).hash for change in changes} | {header.hash}) == len(changes) + 1 == 16

    def test_of_another_chain_or_protocol_is_refused(self) -> None:
        data = after(ROOT).encode()
        assert reason(BlockHeader.decode, data, chain_id=ZERO_HASH) is Reason.WRONG_CHAIN
        for at in (0, 48, 49):
            forged = bytes([*data[:at], data[at] ^ 1, *data[at + 1 :]])
            assert reason(BlockHeader.decode, forged, chain_id=CHAIN) is Reason.MALFORMED
        for other in (b"", data[:-1], data + b"\0"):
            assert reason(BlockHeader.decode, other, chain_id=CHAIN) is Reason.MALFORMED


class TestLeader:
    def test_is_drawn_by_shards(self) -> None:
        drawn = [leader_of(view, root_hash=ROOT.hash, committee=COMMITTEE) for view in range(1, 7_001)]
        for index, member in enumerate(COMMITTEE.members):
            assert abs(drawn.count(index) - 1_000 * member.shards) < 150

    def test_is_another_draw_in_another_epoch(self) -> None:
        draws = [
            [leader_of(view, root_hash=root, committee=COMMITTEE) for view in range(1, 50)]
            for root in (ROOT.hash, after(ROOT).hash)
        ]
        assert draws[0] != draws[1]

    def test_is_the_one_of_the_reference(self) -> None:
        known = VECTORS["leaders"]
        drawn = [
            leader_of(view, root_hash=Digest(bytes([8]) * 32), committee=COMMITTEE) for view in range(1, len(known) + 1)
        ]
        assert drawn == known

    def test_holds_the_shard_that_is_drawn_however_shards_have_moved(self) -> None:
        known, moved = VECTORS["leaders_of_committee"], Committee.decode(bytes.fromhex(VECTORS["committee"]))
        root = Digest(bytes([8]) * 32)
        assert [leader_of(view, root_hash=root, committee=moved) for view in range(1, len(known) + 1)] == known


class TestBlock:
    @pytest.mark.parametrize("block", [sign(after(ROOT)), filled()])
    def test_comes_back_from_its_bytes(self, block: Block) -> None:
        data = block.encode()
        assert len(data) == 296 + 64 + 32 * len(block.transactions)
        assert Block.decode(data, chain_id=CHAIN, transactions_max=2) == block
        block.verify_signature(committee=COMMITTEE)

    def test_hashes_that_are_not_the_header_s_are_refused(self) -> None:
        block = filled()
        swapped = replace(block, transactions=block.transactions[::-1])
        assert reason(Block.decode, swapped.encode(), chain_id=CHAIN, transactions_max=2) is Reason.HASH_MISMATCH
        fewer = replace(block, transactions=block.transactions[:1])
        assert reason(Block.decode, fewer.encode(), chain_id=CHAIN, transactions_max=2) is Reason.MALFORMED
        more = replace(block, transactions=(*block.transactions, block.transactions[0]))
        assert reason(Block.decode, more.encode(), chain_id=CHAIN, transactions_max=9) is Reason.MALFORMED

    def test_too_many_transactions_are_refused_before_they_are_read(self) -> None:
        header = after(ROOT, transactions_count=(1 << 32) - 1)
        assert reason(Block.decode, sign(header).encode(), chain_id=CHAIN, transactions_max=2) is Reason.TOO_LARGE

    def test_a_leader_that_is_no_member_or_did_not_sign_is_refused(self) -> None:
        block = sign(after(ROOT))
        nobody = replace(block, header=replace(block.header, leader=3))
        assert reason(nobody.verify_signature, committee=COMMITTEE) is Reason.UNKNOWN_SIGNER
        other = replace(block, header=replace(block.header, leader=(block.header.leader + 1) % 3))
        assert reason(other.verify_signature, committee=COMMITTEE) is Reason.BAD_SIGNATURE

    @settings(max_examples=200)
    @given(st.binary(max_size=500), st.integers(0, 360))
    def test_of_any_bytes_is_refused(self, tail: bytes, front: int) -> None:
        data = filled().encode()[:front] + tail
        try:
            block = Block.decode(data, chain_id=CHAIN, transactions_max=2)
        except Rejected:
            return
        assert block.encode() == data


class TestSuccessor:
    def test_a_header_that_follows_is_accepted(self) -> None:
        first = after(ROOT)
        check(first)
        check(after(first), first)
        check(after(first, executed_height=1), first)

    @pytest.mark.parametrize(
        ("changes", "want"),
        [
            ({"epoch": 1}, Reason.WRONG_EPOCH),
            ({"chain_id": Digest(bytes(32))}, Reason.WRONG_EPOCH),
            ({"height": 3}, Reason.WRONG_PARENT),
            ({"height": 1}, Reason.WRONG_PARENT),
            ({"parent_hash": ROOT.hash}, Reason.WRONG_PARENT),
            ({"parent_view": 0}, Reason.WRONG_PARENT),
            ({"parent_view": 1}, Reason.WRONG_PARENT),
            ({"view": 2}, Reason.WRONG_PARENT),
            ({"view": 1}, Reason.WRONG_PARENT),
            ({"time_ms": 1_001}, Reason.WRONG_TIME),
            ({"time_ms": 1_000}, Reason.WRONG_TIME),
            ({"executed_height": 2}, Reason.WRONG_STATE),
            ({"committee_hash": LATER.hash}, Reason.WRONG_STATE),
        ],
    )
    def test_one_that_does_not_is_refused(self, changes: dict[str, Any], want: Reason) -> None:
        parent = after(ROOT)
        header = after(parent)
        assert (header.view, header.parent_view, header.time_ms) == (4, 2, 1_002)
        assert reason(check, replace(header, **changes), parent) is want

    def test_only_the_leader_of_the_view_may_propose(self) -> None:
        header = after(ROOT)
        for more in (1, 2):
            other = replace(header, leader=(header.leader + more) % 3)
            assert reason(check, other) is Reason.WRONG_LEADER

    def test_the_executed_height_never_goes_back(self) -> None:
        first = after(ROOT)
        second = after(first, executed_height=1)
        assert reason(check, after(second, executed_height=0), second) is Reason.WRONG_STATE
        check(after(second, executed_height=2), second)
        assert reason(check, after(second, executed_height=3), second) is Reason.WRONG_STATE

    def test_the_first_of_an_epoch_has_executed_all_of_the_last_one(self) -> None:
        root = replace(ROOT, height=9, view=57, executed_height=7)
        leader = leader_of(1, root_hash=root.hash, committee=COMMITTEE)
        first = replace(
            after(ROOT), view=1, height=10, parent_view=0, parent_hash=root.hash, executed_height=9, leader=leader
        )
        check(first, root, root)
        for executed in (7, 8):
            assert reason(check, replace(first, executed_height=executed), root, root) is Reason.WRONG_STATE
        assert reason(check, replace(first, parent_view=57, view=58), root, root) is Reason.WRONG_PARENT

    def test_what_builds_on_a_boundary_is_empty_and_names_no_committee(self) -> None:
        boundary = boundary_on(after(ROOT))
        assert is_boundary(boundary, root=ROOT, epoch_ms=EPOCH_MS)
        assert not is_boundary(replace(boundary, time_ms=boundary.time_ms - 1), root=ROOT, epoch_ms=EPOCH_MS)
        tail = after(boundary)
        check(tail, boundary)
        check(after(tail), tail)
        assert reason(check, filled(boundary).header, boundary) is Reason.WRONG_PARENT
        for parent in (boundary, tail):
            named = after(parent, next_committee_hash=LATER.hash)
            assert reason(check, named, parent) is Reason.WRONG_STATE
        before = replace(boundary, time_ms=boundary.time_ms - 1)
        check(filled(before).header, before)


class TestNextCommittee:
    def test_is_named_at_any_time_behind_the_first_block_and_by_all_that_follow(self) -> None:
        first = after(ROOT)
        second = after(first)
        check(second, first)
        named = after(second, next_committee_hash=LATER.hash)
        check(named, second)
        check(after(named), named)
        for other in (ZERO_HASH, COMMITTEE.hash):
            assert reason(check, after(named, next_committee_hash=other), named) is Reason.WRONG_STATE

    def test_is_named_by_no_first_block(self) -> None:
        """It has executed the root alone, whose state cannot have fixed it; also where the root names its own."""
        root = replace(ROOT, next_committee_hash=LATER.hash)
        leader = leader_of(2, root_hash=root.hash, committee=COMMITTEE)
        first = replace(after(ROOT), parent_hash=root.hash, leader=leader)
        check(first, root, root)
        assert reason(check, replace(first, next_committee_hash=LATER.hash), root, root) is Reason.WRONG_STATE

    def test_is_named_by_every_boundary(self) -> None:
        first = after(ROOT)
        check(boundary_on(first), first)
        nameless = after(first, time_ms=END_MS)
        assert reason(check, nameless, first) is Reason.WRONG_TIME
        assert reason(check, after(ROOT, time_ms=END_MS)) is Reason.WRONG_TIME
        check(replace(nameless, time_ms=END_MS - 1), first)

    def test_time_stands_still_in_the_last_millisecond_where_it_cannot_be_named_yet(self) -> None:
        """What was notarized there and not finalized would have no successor else, and the chain none ever after."""
        last = after(after(ROOT), time_ms=END_MS - 1)
        still = after(last, time_ms=END_MS - 1)
        check(still, last)
        check(after(still, time_ms=END_MS - 1), still)
        check(boundary_on(still), still)
        assert reason(check, after(last, time_ms=END_MS - 2), last) is Reason.WRONG_TIME
        assert reason(check, after(last, time_ms=END_MS - 1, next_committee_hash=LATER.hash), last) is Reason.WRONG_TIME
        earlier = after(after(ROOT), time_ms=END_MS - 2)
        assert reason(check, after(earlier, time_ms=END_MS - 2), earlier) is Reason.WRONG_TIME

    @given(
        st.integers(0, 2 * EPOCH_MS), st.integers(0, EPOCH_MS + 2), st.booleans(), st.sampled_from((1, 2, 3, EPOCH_MS))
    )
    def test_any_block_has_a_successor_in_any_state(
        self, now_ms: int, parent_ms: int, is_fixed: bool, epoch_ms: int
    ) -> None:
        """As a leader dates it, whatever its clock says and whatever it has executed."""
        end_ms = ROOT.time_ms + epoch_ms
        parent = ROOT if not parent_ms else after(after(ROOT), time_ms=ROOT.time_ms + parent_ms)
        if parent.time_ms >= end_ms:
            parent = replace(parent, next_committee_hash=LATER.hash)
        is_tail, is_fixed = parent.time_ms >= end_ms, is_fixed and parent != ROOT
        names_next = is_fixed and not is_tail
        time_ms = block_time_ms(
            ROOT.time_ms + now_ms, parent=parent, root=ROOT, epoch_ms=epoch_ms, names_next=names_next
        )
        header = after(parent, time_ms=time_ms, next_committee_hash=LATER.hash if names_next else ZERO_HASH)
        verify_successor(header, parent=parent, root=ROOT, committee=COMMITTEE, epoch_ms=epoch_ms)
        assert time_ms <= max(ROOT.time_ms + now_ms, parent.time_ms + 1)


class TestProposal:
    def decode(self, data: bytes) -> Proposal:
        return Proposal.decode(data, chain_id=CHAIN, transactions_max=2)

    def test_comes_back_from_its_bytes(self) -> None:
        first = filled()
        second = Proposal(sign(after(first.header)), certify(Kind.NOTARIZE, first.header))
        for proposal in (Proposal(first, None), second, replace(second, parent=certify(Kind.FINALIZE, first.header))):
            assert self.decode(proposal.encode()) == proposal

    def test_a_certificate_missing_or_too_many_is_refused(self) -> None:
        first = filled()
        certificate = certify(Kind.NOTARIZE, first.header)
        assert reason(self.decode, Proposal(sign(after(first.header)), None).encode()) is Reason.MALFORMED
        assert reason(self.decode, Proposal(first, certificate).encode()) is Reason.MALFORMED

    def test_a_certificate_of_another_block_is_refused(self) -> None:
        first = filled()
        block = sign(after(first.header))
        good = certify(Kind.NOTARIZE, first.header)
        nothing = VoteCertificate(Kind.NULLIFY, 0, first.header.view, ZERO_HASH, good.signatures)
        for wrong in (
            nothing,
            replace(good, view=good.view + 1),
            replace(good, epoch=1),
            replace(good, block_hash=CHAIN),
        ):
            assert reason(self.decode, Proposal(block, wrong).encode()) is Reason.WRONG_PARENT

    def test_bytes_too_few_or_too_many_are_refused(self) -> None:
        first = filled()
        data = Proposal(sign(after(first.header)), certify(Kind.NOTARIZE, first.header)).encode()
        for at in range(0, len(data), 7):
            with pytest.raises(Rejected):
                self.decode(data[:at])
        assert reason(self.decode, data + b"\0") is Reason.MALFORMED


class TestFinality:
    def test_of_the_header_itself_or_of_what_builds_on_it(self) -> None:
        first = after(ROOT)
        second = after(first)
        third = after(second)
        for finality in (
            Finality(certify(Kind.FINALIZE, first)),
            Finality(certify(Kind.FINALIZE, second), (second,)),
            Finality(certify(Kind.FINALIZE, third), (second, third)),
        ):
            read = Finality.decode(finality.encode(), chain_id=CHAIN)
            assert read == finality
            read.verify(first, committee=COMMITTEE)

    def test_of_another_header_or_with_a_gap_is_refused(self) -> None:
        first = after(ROOT)
        second = after(first)
        third = after(second)
        cases = [
            (Finality(certify(Kind.NOTARIZE, first)), Reason.NO_QUORUM),
            (Finality(certify(Kind.FINALIZE, second)), Reason.NO_QUORUM),
            (Finality(certify(Kind.FINALIZE, first), (second,)), Reason.NO_QUORUM),
            (Finality(certify(Kind.FINALIZE, third), (third,)), Reason.WRONG_PARENT),
            (Finality(certify(Kind.FINALIZE, third), (third, second)), Reason.WRONG_PARENT),
            (Finality(replace(certify(Kind.FINALIZE, first), view=9)), Reason.WRONG_EPOCH),
            (Finality(replace(certify(Kind.FINALIZE, first), epoch=1)), Reason.WRONG_EPOCH),
        ]
        for finality, want in cases:
            assert reason(finality.verify, first, committee=COMMITTEE) is want
        forged = certify(Kind.FINALIZE, first)
        forged = replace(forged, signatures=((0, Signature(bytes(64))), forged.signatures[1]))
        assert reason(Finality(forged).verify, first, committee=COMMITTEE) is Reason.BAD_SIGNATURE

    def test_bytes_too_few_or_too_many_are_refused(self) -> None:
        first = after(ROOT)
        data = Finality(certify(Kind.FINALIZE, after(first)), (after(first),)).encode()
        for other in (b"", data[:1], data[:297], data[:-1], data + b"\0", b"\xff" + data[1:]):
            assert reason(Finality.decode, other, chain_id=CHAIN) is Reason.MALFORMED
