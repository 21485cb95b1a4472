"""Who trusts one epoch's root and nobody else follows the committees, and takes of a receipt just what they signed."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from economics import cbor
from economics.blob import BlobId
from economics.block import BlockHeader, Finality, genesis_header, leader_of, transactions_root
from economics.committee import Committee, Member
from economics.crypto import Digest, NodeId, OwnerId
from economics.errors import Reason, Rejected
from economics.genesis import Genesis, Parameters
from economics.light import RECEIPT_BYTES_MAX, Boundary, Proven, Receipt, Trusted, follow, is_stale, verify_final
from economics.slots import blob_key
from economics.state import BlobSummary
from economics.tree import Proof, StateKey, Tree
from economics.votes import ZERO_HASH, Kind, Vote, VoteCertificate
from p2pnode.keys import Key
from tests.refusals import reason
from tests.small import OPERATORS, OWNER, make_genesis

KEYS = (*OPERATORS, *(Key(bytes([0x40 + index]) * 32) for index in range(12)))
KEY_OF = {key.public: key for key in KEYS}
PARAMETERS = Parameters(epoch_ms=1000, unbonding_epochs=14)
BLOB = BlobSummary(BlobId(bytes([7]) * 32), 123_456, 40, 0, ((5, 2), (9, 1)))
OTHER_BLOB = replace(BLOB, blob_id=BlobId(bytes([8]) * 32))
ABSENT = BlobId(bytes([9]) * 32)
FILLER: dict[StateKey, bytes | None] = {
    blob_key(BlobId(index.to_bytes(32, "big"))): b"filler" for index in range(1, 200)
}
STATE = Tree.empty().update(
    {**FILLER, blob_key(BLOB.blob_id): BLOB.encode(), blob_key(OTHER_BLOB.blob_id): OTHER_BLOB.encode()}
)

Shares = Sequence[tuple[int, int]]
"""(key, shards) of each member of a committee."""
FOUR: Shares = ((0, 1), (1, 1), (2, 1), (3, 1))
COMMITTEES = st.lists(
    st.tuples(st.integers(0, 19), st.integers(1, 6)), min_size=1, max_size=6, unique_by=lambda row: row[0]
).filter(lambda shares: sum(count for _, count in shares) >= 4)
TEN: Shares = tuple((index, 1) for index in range(10))


def seat(epoch: int, shares: Shares) -> Committee:
    owner = OwnerId(OWNER.public)
    return Committee(epoch, tuple(Member(NodeId(KEYS[key].public), owner, count, ()) for key, count in shares))


def sign(committee: Committee, header: BlockHeader, signers: Sequence[int], kind: Kind = Kind.FINALIZE) -> Finality:
    """Return a certificate of just these signers, valid or not."""
    signatures = []
    for index in signers:
        vote = Vote(kind, header.epoch, header.view, header.hash, index)
        signer = KEY_OF[committee.members[index % len(committee.members)].node]
        signatures.append((index, signer.sign(vote.encode(header.chain_id))))
    return Finality(VoteCertificate(kind, header.epoch, header.view, header.hash, tuple(signatures)))


def finalize(committee: Committee, header: BlockHeader) -> Finality:
    vote = Vote(Kind.FINALIZE, header.epoch, header.view, header.hash, 0)
    signatures = {
        index: KEY_OF[member.node].sign(replace(vote, signer=index).encode(header.chain_id))
        for index, member in enumerate(committee.members)
    }
    certificate = VoteCertificate.build(vote, committee=committee, signatures=signatures)
    assert certificate is not None
    return Finality(certificate)


def build_on(
    parent: BlockHeader, trusted: Trusted, *, after_ms: int, next_committee: Committee, state_root: Digest = STATE.root
) -> BlockHeader:
    """Return a header of the trusted epoch that follows `parent`, as the leader of its view makes it."""
    first = parent == trusted.root
    view = 1 if first else parent.view + 1
    return BlockHeader(
        chain_id=parent.chain_id,
        epoch=trusted.epoch,
        view=view,
        height=parent.height + 1,
        parent_view=0 if first else parent.view,
        parent_hash=parent.hash,
        time_ms=parent.time_ms + after_ms,
        leader=leader_of(view, root_hash=trusted.root.hash, committee=trusted.committee),
        transactions_root=transactions_root(()),
        transactions_count=0,
        executed_height=parent.height,
        state_root=state_root,
        committee_hash=trusted.committee.hash,
        next_committee_hash=next_committee.hash,
    )


@dataclass(frozen=True)
class Chain:
    """What a peer holds: the boundary of each epoch but the last, and a final header of the last."""

    trusted: tuple[Trusted, ...]
    """The root of each epoch."""
    boundaries: tuple[Boundary, ...]
    header: BlockHeader
    finality: Finality

    def prove(self, blob_id: BlobId = BLOB.blob_id, **changes: Any) -> Receipt:
        proof, value = STATE.prove(blob_key(blob_id)), STATE.get(blob_key(blob_id)) or b""
        plain = Receipt(blob_id, self.boundaries, self.header, self.finality, proof, value)
        return replace(plain, **changes)


def make_root(genesis: Genesis, committee: Committee, following: Committee) -> Trusted:
    header = genesis_header(
        chain_id=genesis.chain_id,
        time_ms=genesis.time_ms,
        state_root=Tree.empty().root,
        committee_hash=committee.hash,
        next_committee_hash=following.hash,
    )
    return Trusted(header, committee)


def make_chain(shares: Sequence[Shares], *, genesis: Genesis | None = None) -> Chain:
    """Return a chain in whose epochs these members sit; the last is the committee of an epoch not yet begun."""
    committees = [seat(epoch, row) for epoch, row in enumerate(shares)]
    trusted = [make_root(genesis or make_genesis(), committees[0], committees[1])]
    boundaries = []
    for next_one in committees[1:-1]:
        now = trusted[-1]
        middle = build_on(now.root, now, after_ms=400, next_committee=next_one)
        header = build_on(middle, now, after_ms=700, next_committee=next_one)
        same = replace(now.committee, epoch=now.epoch + 1) == next_one
        boundaries.append(Boundary(header, finalize(now.committee, header), b"" if same else next_one.encode()))
        trusted.append(Trusted(header, next_one))
    now = trusted[-1]
    first = build_on(now.root, now, after_ms=300, next_committee=committees[-1])
    header = build_on(first, now, after_ms=300, next_committee=committees[-1])
    return Chain(tuple(trusted), tuple(boundaries), header, finalize(now.committee, header))


CHAIN = make_chain([FOUR, FOUR, ((4, 2), (1, 1), (5, 1)), ((6, 1), (4, 3)), FOUR])
"""Four epochs: the committee stays, changes, and changes again."""
START = CHAIN.trusted[0]
CHAIN_ID = START.root.chain_id
SHORT = make_chain([FOUR, ((4, 2), (1, 1), (5, 1)), FOUR])


def check(receipt: Receipt, trusted: Trusted = START) -> Proven:
    """As a stranger does: from bytes."""
    read = Receipt.decode(receipt.encode(), chain_id=CHAIN_ID)
    assert read == receipt
    return read.verify(trusted, parameters=PARAMETERS)


def step(trusted: Trusted, boundary: Boundary, **changes: Any) -> Trusted:
    return follow(trusted, replace(boundary, **changes), parameters=PARAMETERS)


class TestFollow:
    def test_leads_from_the_genesis_over_every_committee(self) -> None:
        trusted = START
        for boundary, after in zip(CHAIN.boundaries, CHAIN.trusted[1:], strict=True):
            trusted = step(trusted, boundary)
            assert trusted == after
        verify_final(trusted, header=CHAIN.header, finality=CHAIN.finality)

    def test_skips_no_epoch_and_repeats_none(self) -> None:
        first, second, _ = CHAIN.boundaries
        assert reason(step, START, second) is Reason.WRONG_EPOCH
        assert reason(step, CHAIN.trusted[1], first) is Reason.WRONG_EPOCH

    def test_takes_a_boundary_that_is_final_through_what_builds_on_it(self) -> None:
        header = CHAIN.boundaries[0].header
        links = [header]
        for _ in range(2):
            links.append(build_on(links[-1], START, after_ms=1, next_committee=CHAIN.trusted[1].committee))
        finality = replace(finalize(START.committee, links[-1]), links=tuple(links[1:]))
        assert step(START, CHAIN.boundaries[0], finality=finality) == CHAIN.trusted[1]
        gap = replace(finality, links=finality.links[1:])
        assert reason(step, START, CHAIN.boundaries[0], finality=gap) is Reason.WRONG_PARENT

    def test_refuses_a_final_block_that_does_not_end_its_epoch(self) -> None:
        following = CHAIN.trusted[1].committee
        for after_ms, ends in ((1, False), (999, False), (1000, True)):
            header = build_on(START.root, START, after_ms=after_ms, next_committee=following)
            boundary = Boundary(header, finalize(START.committee, header))
            if ends:
                assert step(START, boundary).committee == following
            else:
                assert reason(step, START, boundary) is Reason.WRONG_TIME

    def test_does_not_take_what_builds_on_a_boundary_for_it(self) -> None:
        header = CHAIN.boundaries[0].header
        child = build_on(header, START, after_ms=1, next_committee=CHAIN.trusted[1].committee)
        tail = replace(child, next_committee_hash=ZERO_HASH)
        assert reason(step, START, Boundary(tail, finalize(START.committee, tail))) is Reason.HASH_MISMATCH

    def test_refuses_another_next_committee_than_the_header_names(self) -> None:
        stays, changes, _ = CHAIN.boundaries
        grown = seat(2, ((4, 3), (1, 1), (5, 1)))
        later = replace(CHAIN.trusted[2].committee, epoch=3)
        for members in (b"", grown.encode(), later.encode(), changes.members + b"\0", changes.members[:-1]):
            assert reason(step, CHAIN.trusted[1], changes, members=members) is Reason.HASH_MISMATCH
        assert reason(step, START, stays, members=changes.members) is Reason.HASH_MISMATCH

    def test_refuses_a_committee_that_stays_and_is_named_again(self) -> None:
        named = replace(START.committee, epoch=1).encode()
        assert reason(step, START, CHAIN.boundaries[0], members=named) is Reason.MALFORMED

    def test_refuses_a_committee_that_no_network_can_have(self) -> None:
        for shares in ((), ((0, 1), (1, 2)), ((0, 4), (1, 0)), ((0, 2), (0, 2)), ((0, 200), (1, 57))):
            impossible = seat(1, shares)
            header = build_on(START.root, START, after_ms=1000, next_committee=impossible)
            boundary = Boundary(header, finalize(START.committee, header), impossible.encode())
            assert reason(step, START, boundary) is Reason.MALFORMED


def change_header(finality: Finality, **changes: Any) -> Finality:
    return replace(finality, certificate=replace(finality.certificate, **changes))


class TestFinality:
    """Of the last header; the same check guards each boundary."""

    @pytest.fixture(params=["last", "boundary"], name="place")
    def make_place(self, request: pytest.FixtureRequest) -> Iterator[tuple[Trusted, BlockHeader, Finality]]:
        if request.param == "last":
            yield SHORT.trusted[1], SHORT.header, SHORT.finality
        else:
            yield SHORT.trusted[0], SHORT.boundaries[0].header, SHORT.boundaries[0].finality

    def refuse(self, place: tuple[Trusted, BlockHeader, Finality], finality: Finality) -> Reason:
        """Return why, alone and inside a receipt."""
        trusted, header, _ = place
        why = reason(verify_final, trusted, header=header, finality=finality)
        receipt = SHORT.prove(finality=finality)
        if header != SHORT.header:
            receipt = SHORT.prove(epochs=(replace(SHORT.boundaries[0], finality=finality),))
        assert reason(check, receipt, SHORT.trusted[0]) is why
        return why

    def test_of_a_quorum_holds(self, place: tuple[Trusted, BlockHeader, Finality]) -> None:
        trusted, header, finality = place
        verify_final(trusted, header=header, finality=finality)

    def test_of_too_few_is_refused(self, place: tuple[Trusted, BlockHeader, Finality]) -> None:
        trusted, header, finality = place
        enough = [index for index, _ in finality.certificate.signatures]
        for signers in ([], enough[:1], enough[1:], enough[:-1]):
            assert self.refuse(place, sign(trusted.committee, header, signers)) is Reason.NO_QUORUM

    def test_of_one_signer_twice_is_refused(self, place: tuple[Trusted, BlockHeader, Finality]) -> None:
        trusted, header, _ = place
        for signers in ([0, 0, 0], [0, 1, 1], [0, 2, 1], [2, 1, 0]):
            assert self.refuse(place, sign(trusted.committee, header, signers)) is Reason.MALFORMED

    def test_of_one_signer_too_many_is_refused(self, place: tuple[Trusted, BlockHeader, Finality]) -> None:
        trusted, header, _ = place
        everyone = range(len(trusted.committee.members))
        assert self.refuse(place, sign(trusted.committee, header, everyone)) is Reason.NOT_MINIMAL

    def test_of_indices_that_nobody_has_is_refused(self, place: tuple[Trusted, BlockHeader, Finality]) -> None:
        trusted, header, _ = place
        for signers in ([0, 1, 4], [0, 1, 65_535]):
            assert self.refuse(place, sign(trusted.committee, header, signers)) is Reason.UNKNOWN_SIGNER

    def test_of_those_who_hold_no_shard_is_refused(self, place: tuple[Trusted, BlockHeader, Finality]) -> None:
        """Keys of strangers under the members' indices; the members of another epoch are strangers too."""
        _, header, finality = place
        signers = [index for index, _ in finality.certificate.signatures]
        for strangers in (seat(header.epoch, ((10, 1), (11, 1), (12, 1), (13, 1))), SHORT.trusted[1 - header.epoch]):
            committee = strangers if isinstance(strangers, Committee) else strangers.committee
            assert self.refuse(place, sign(committee, header, signers)) is Reason.BAD_SIGNATURE

    @pytest.mark.parametrize("kind", [Kind.NOTARIZE, Kind.NULLIFY])
    def test_of_another_kind_of_vote_is_refused(self, place: tuple[Trusted, BlockHeader, Finality], kind: Kind) -> None:
        trusted, header, finality = place
        signers = [index for index, _ in finality.certificate.signatures]
        other = sign(trusted.committee, header, signers, kind)
        assert reason(verify_final, trusted, header=header, finality=other) is Reason.NO_QUORUM
        renamed = change_header(other, kind=Kind.FINALIZE)
        assert self.refuse(place, renamed) is Reason.BAD_SIGNATURE

    def test_of_another_epoch_view_or_block_is_refused(self, place: tuple[Trusted, BlockHeader, Finality]) -> None:
        trusted, header, finality = place
        assert self.refuse(place, change_header(finality, epoch=header.epoch + 1)) is Reason.WRONG_EPOCH
        assert self.refuse(place, change_header(finality, view=header.view + 1)) is Reason.WRONG_EPOCH
        other = replace(header, time_ms=header.time_ms + 1)
        assert self.refuse(place, finalize(trusted.committee, other)) is Reason.NO_QUORUM

    def test_of_another_chain_is_refused_though_its_members_are_ours(self) -> None:
        theirs = make_chain([FOUR, FOUR, FOUR], genesis=replace(make_genesis(), name="other"))
        assert reason(verify_final, CHAIN.trusted[1], header=theirs.header, finality=theirs.finality) is (
            Reason.WRONG_CHAIN
        )
        assert reason(step, START, theirs.boundaries[0]) is Reason.WRONG_CHAIN
        assert reason(check, theirs.prove()) is Reason.WRONG_CHAIN
        read = Receipt.decode(theirs.prove().encode(), chain_id=theirs.header.chain_id)
        assert reason(read.verify, START, parameters=PARAMETERS) is Reason.WRONG_CHAIN


class TestReceipt:
    def test_proves_a_blob_and_until_when(self) -> None:
        assert check(CHAIN.prove()) == Proven(
            blob_id=BLOB.blob_id,
            length=123_456,
            certified_height=40,
            end_epoch=9,
            end_ms=1_700_000_000_000 + 3 * 1100 + 6 * 1000,
            epoch=3,
            height=8,
            state_height=7,
            time_ms=1_700_000_000_000 + 3 * 1100 + 600,
        )

    def test_is_the_map_of_format_13(self) -> None:
        boundary, receipt = SHORT.boundaries[0], SHORT.prove()
        assert cbor.decode(receipt.encode()) == {
            "blob": BLOB.blob_id,
            "epochs": [[boundary.header.encode(), boundary.finality.encode(), boundary.members]],
            "final": [SHORT.header.encode(), SHORT.finality.encode()],
            "proof": STATE.prove(blob_key(BLOB.blob_id)).encode(),
            "value": BLOB.encode(),
            "version": 1,
        }

    def test_of_the_first_epoch_needs_no_boundary(self) -> None:
        chain = make_chain([FOUR, FOUR])
        assert chain.prove().epochs == ()
        assert check(chain.prove()).epoch == 0

    def test_may_end_with_a_boundary(self) -> None:
        """An epoch that has just begun has nothing final yet."""
        last = CHAIN.boundaries[-1]
        receipt = CHAIN.prove(epochs=CHAIN.boundaries[:-1], header=last.header, finality=last.finality)
        assert check(receipt).epoch == 2

    def test_holds_from_any_epoch_that_is_trusted_and_only_there(self) -> None:
        receipt = CHAIN.prove()
        for trusted in CHAIN.trusted:
            carried = Trusted.decode(trusted.encode(), chain_id=CHAIN_ID)
            assert check(receipt.since(trusted.epoch), carried) == check(receipt)
            if trusted.epoch:
                assert reason(check, receipt, carried) is Reason.WRONG_EPOCH
                assert reason(check, receipt.since(trusted.epoch)) is Reason.WRONG_EPOCH

    def test_of_another_blob_is_refused(self) -> None:
        other = CHAIN.prove(OTHER_BLOB.blob_id)
        check(other)
        for forged in (
            replace(other, blob_id=BLOB.blob_id),
            CHAIN.prove(value=other.value),
            CHAIN.prove(proof=other.proof),
            CHAIN.prove(proof=other.proof, value=other.value),
        ):
            assert reason(check, forged) is Reason.HASH_MISMATCH

    def test_of_a_blob_that_is_not_there_is_refused(self) -> None:
        for value in (b"", replace(BLOB, blob_id=ABSENT).encode()):
            assert reason(check, CHAIN.prove(ABSENT, value=value)) is Reason.HASH_MISMATCH
        assert reason(check, CHAIN.prove(proof=STATE.prove(blob_key(ABSENT)))) is Reason.HASH_MISMATCH

    def test_under_a_header_with_another_state_is_refused(self) -> None:
        now = CHAIN.trusted[-1]
        without = STATE.update({blob_key(BLOB.blob_id): None})
        header = replace(CHAIN.header, state_root=without.root)
        deleted = CHAIN.prove(header=header, finality=finalize(now.committee, header))
        assert reason(check, deleted) is Reason.HASH_MISMATCH

    @pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
    def test_with_any_byte_changed_is_refused(self, flip: int) -> None:
        data = SHORT.prove().encode()
        for at in range(len(data)):
            forged = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
            with pytest.raises(Rejected):
                Receipt.decode(forged, chain_id=CHAIN_ID).verify(SHORT.trusted[0], parameters=PARAMETERS)

    @pytest.mark.parametrize(
        "changes",
        [
            {"version": 2},
            {"version": True},
            {"version": b"1"},
            {"more": 1},
            {"blob": bytes(31)},
            {"blob": "text"},
            {"epochs": {}},
            {"epochs": [b""]},
            {"epochs": [[b"", b""]]},
            {"epochs": [[b"", b"", b""]]},
            {"final": b""},
            {"final": []},
            {"final": [1, 2]},
            {"proof": b""},
            {"proof": None},
            {"value": 1},
            {"value": [b""]},
        ],
    )
    def test_of_another_shape_is_refused(self, changes: dict[str, Any]) -> None:
        value = {**cbor.decode(SHORT.prove().encode()), **changes}
        assert reason(Receipt.decode, cbor.encode(value), chain_id=CHAIN_ID) is Reason.MALFORMED

    def test_with_a_field_missing_or_bytes_behind_it_is_refused(self) -> None:
        data = SHORT.prove().encode()
        for name in cbor.decode(data):
            less = {key: value for key, value in cbor.decode(data).items() if key != name}
            assert reason(Receipt.decode, cbor.encode(less), chain_id=CHAIN_ID) is Reason.MALFORMED
        for other in (b"", data[:-1], data + b"\0", cbor.encode([1]), cbor.encode(1)):
            assert reason(Receipt.decode, other, chain_id=CHAIN_ID) is Reason.MALFORMED

    def test_over_4_mib_is_refused_unread(self) -> None:
        huge = bytes(RECEIPT_BYTES_MAX + 1)
        assert reason(Receipt.decode, huge, chain_id=CHAIN_ID) is Reason.TOO_LARGE
        many = SHORT.prove(epochs=SHORT.boundaries * 10_000).encode()
        assert reason(Receipt.decode, many, chain_id=CHAIN_ID) is Reason.TOO_LARGE

    def test_whose_value_is_no_blob_s_is_refused(self) -> None:
        """Only a quorum that breaks the rules can sign such a state."""
        for value in (b"", b"\x03", bytes([4]) + BLOB.encode()[1:], BLOB.encode() + b"\0", OTHER_BLOB.encode()):
            state = STATE.update({blob_key(BLOB.blob_id): value})
            now = CHAIN.trusted[-1]
            header = replace(CHAIN.header, state_root=state.root)
            receipt = CHAIN.prove(
                header=header,
                finality=finalize(now.committee, header),
                proof=state.prove(blob_key(BLOB.blob_id)),
                value=value,
            )
            assert reason(check, receipt) is Reason.MALFORMED

    def test_of_ten_members_is_under_16_kib_and_grows_by_under_1_6_kib_an_epoch(self) -> None:
        """With a committee that changes each time, and a proof as deep as that of a billion values."""
        other = tuple((index + 8, 1) for index in range(10))
        shares = [TEN, *(other if epoch % 2 else TEN for epoch in range(1, 6)), TEN]
        sizes = []
        deep = Proof((Digest(bytes(32)),) * 40, STATE.prove(blob_key(BLOB.blob_id)).end)
        for epochs in range(2, 7):
            chain = make_chain(shares[:epochs])
            check(chain.prove(), chain.trusted[0])
            sizes.append(len(chain.prove(proof=deep).encode()))
        growth = [after - before for before, after in itertools.pairwise(sizes)]
        assert sizes[0] == 2263
        assert growth == [1482] * 4
        assert sizes[0] < 16 * 1024
        assert max(growth) < 1.6 * 1024

    rows = st.lists(
        st.tuples(st.integers(0, 19), st.integers(1, 6)), min_size=1, max_size=6, unique_by=lambda row: row[0]
    )

    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(COMMITTEES, min_size=2, max_size=6),
        st.lists(st.booleans(), min_size=6, max_size=6),
    )
    def test_of_any_chain_of_up_to_five_epochs_holds(self, shares: list[Shares], stays: list[bool]) -> None:
        for epoch in range(1, len(shares)):
            if stays[epoch]:
                shares[epoch] = shares[epoch - 1]
        chain = make_chain(shares)
        proven = check(chain.prove(), chain.trusted[0])
        assert (proven.epoch, proven.height) == (len(shares) - 2, chain.header.height)
        for trusted in chain.trusted[1:]:
            assert check(chain.prove().since(trusted.epoch), trusted) == proven


class TestCheckpoint:
    def test_is_read_back(self) -> None:
        for trusted in CHAIN.trusted:
            assert Trusted.decode(trusted.encode(), chain_id=CHAIN_ID) == trusted

    def test_of_the_genesis_is_read_back_without_addresses(self) -> None:
        genesis = make_genesis()
        trusted = make_root(genesis, genesis.committee, replace(genesis.committee, epoch=1))
        read = Trusted.decode(trusted.encode(), chain_id=CHAIN_ID)
        assert read.root == trusted.root
        assert read.committee.hash == genesis.committee.hash
        assert {member.addresses for member in read.committee.members} == {()}

    def test_with_any_byte_changed_is_refused_or_is_of_another_root(self) -> None:
        """A boundary's bytes are its author's word, but its committee is bound to it."""
        for trusted in CHAIN.trusted[:3]:
            data = trusted.encode()
            for at in range(len(data)):
                forged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                try:
                    read = Trusted.decode(forged, chain_id=CHAIN_ID)
                except Rejected:
                    continue
                assert read.root != trusted.root
                assert read.committee == trusted.committee

    def test_whose_committee_is_not_seated_by_its_root_is_refused(self) -> None:
        for trusted in CHAIN.trusted[:3]:
            for committee in (
                replace(trusted.committee, epoch=trusted.epoch + 1),
                seat(trusted.epoch, ((10, 2), (11, 2))),
            ):
                forged = replace(trusted, committee=committee).encode()
                assert reason(Trusted.decode, forged, chain_id=CHAIN_ID) is Reason.HASH_MISMATCH
            displaced = replace(trusted, root=replace(trusted.root, epoch=trusted.root.epoch + 1, height=1))
            assert reason(Trusted.decode, displaced.encode(), chain_id=CHAIN_ID) is Reason.HASH_MISMATCH
        skipped = Trusted(START.root, CHAIN.trusted[1].committee)
        assert reason(Trusted.decode, skipped.encode(), chain_id=CHAIN_ID) is Reason.HASH_MISMATCH

    def test_of_another_chain_or_shape_is_refused(self) -> None:
        data = START.encode()
        assert reason(Trusted.decode, data, chain_id=Digest(bytes(32))) is Reason.WRONG_CHAIN
        value = cbor.decode(data)
        shapes: tuple[dict[str, Any], ...] = ({"version": 2}, {"root": 1}, {"committee": []}, {"more": 1})
        for changes in shapes:
            assert reason(Trusted.decode, cbor.encode({**value, **changes}), chain_id=CHAIN_ID) is Reason.MALFORMED
        for other in (b"", data[:-1], data + b"\0", SHORT.prove().encode()):
            assert reason(Trusted.decode, other, chain_id=CHAIN_ID) is Reason.MALFORMED

    def test_is_stale_once_it_is_older_than_the_unbonding_time(self) -> None:
        bound_until = START.root.time_ms + 14 * 1000
        assert not is_stale(START, now_ms=bound_until, parameters=PARAMETERS)
        assert is_stale(START, now_ms=bound_until + 1, parameters=PARAMETERS)
        assert not is_stale(CHAIN.trusted[1], now_ms=bound_until + 1, parameters=PARAMETERS)
        assert not is_stale(START, now_ms=0, parameters=PARAMETERS)
