"""Nodes: registered by their owners, paid by their shards, slashed once for each view in which they lied."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from economics.arguments import (
    Evidence,
    RegisterNode,
    node_message,
)
from economics.block import BlockHeader
from economics.crypto import Digest, NodeId, Signature
from economics.ledger import Code
from economics.nodes import NodeEntry
from economics.votes import ZERO_HASH, Kind, SignedVote, Vote
from p2pnode.keys import Key
from tests.chain import Chain, key_of, make_header, make_id, sign
from tests.small import BALANCE_FROST, OPERATORS, OTHER_OWNER, OWNER, make_genesis

GENESIS = make_genesis((1, 2, 4))
LIAR = OPERATORS[1]
STAKE = 2 * GENESIS.parameters.stake_frost_per_shard
ALICE, BOB = key_of(OWNER), key_of(OTHER_OWNER)
ONE, TWO = make_id(1), make_id(2)
VIEW = 40


@pytest.fixture
def chain() -> Chain:
    return Chain.begin(GENESIS)


def node_of(key: Key) -> NodeId:
    return NodeId(key.public)


def cast(
    kind: Kind, block: Digest, *, signer: int = 1, view: int = VIEW, epoch: int = 0, key: Key = LIAR
) -> SignedVote:
    vote = Vote(kind, epoch, view, ZERO_HASH if kind is Kind.NULLIFY else block, signer)
    return SignedVote(vote, key.sign(vote.encode(GENESIS.chain_id)))


def propose(chain: Chain, *, key: Key = LIAR, **changes: Any) -> tuple[BlockHeader, Signature]:
    header = replace(make_header(chain.ledger, [], time_ms=chain.time_ms + 1), leader=1, view=VIEW, **changes)
    return header, key.sign(header.encode())


NOTARIZE_ONE, NOTARIZE_TWO = cast(Kind.NOTARIZE, ONE), cast(Kind.NOTARIZE, TWO)
EQUIVOCATION = Evidence(NOTARIZE_ONE, NOTARIZE_TWO)


def stake(chain: Chain, key: Key = LIAR) -> int:
    node = chain.ledger.node(node_of(key))
    assert node is not None
    return node.stake_frost


class TestRegisterNode:
    newcomer = Key(bytes([0x55]) * 32)

    def register(self, chain: Chain, node: Key, owner: Key, **changes: Any) -> Code:
        nonce = chain.ledger.account(key_of(owner)).nonce
        agreed = node.sign(node_message(chain_id=GENESIS.chain_id, sender=key_of(owner), nonce=nonce))
        plain = RegisterNode(node_of(node), 5, 6, 7, 800, ("/ip4/127.0.0.1/tcp/9",), agreed)
        return chain.run(owner, replace(plain, **changes))

    def test_a_new_node_is_the_sender_s_and_has_no_stake(self, chain: Chain) -> None:
        assert self.register(chain, self.newcomer, OTHER_OWNER) is Code.OK
        node = node_of(self.newcomer)
        assert chain.ledger.node(node) == NodeEntry(node, BOB, 0, 0, 5, 6, 7, 800, 800, 0, 0, ("/ip4/127.0.0.1/tcp/9",))

    def test_only_its_owner_changes_it(self, chain: Chain) -> None:
        self.register(chain, self.newcomer, OTHER_OWNER)
        assert self.register(chain, self.newcomer, OWNER) is Code.NOT_OWNER
        assert self.register(chain, self.newcomer, OTHER_OWNER, capacity_units=8, addresses=()) is Code.OK
        node = node_of(self.newcomer)
        assert chain.ledger.node(node) == NodeEntry(node, BOB, 0, 0, 8, 6, 7, 800, 800, 2, 0, ())

    def test_a_member_s_stake_stays_when_it_changes_its_offer(self, chain: Chain) -> None:
        assert self.register(chain, LIAR, OTHER_OWNER) is Code.NOT_OWNER
        assert self.register(chain, LIAR, OWNER) is Code.OK
        node = node_of(LIAR)
        assert chain.ledger.node(node) == NodeEntry(
            node, ALICE, STAKE, STAKE, 5, 6, 7, 1_000, 800, 2, 0, ("/ip4/127.0.0.1/tcp/9",)
        )


class TestEvidence:
    def test_slashes_a_part_of_which_the_reporter_has_a_part_and_the_rest_is_burned(self, chain: Chain) -> None:
        signed = sign(chain.ledger, OTHER_OWNER, EQUIVOCATION)
        assert chain.block(signed).receipts[0].code is Code.OK
        slashed = STAKE * 5 // 100
        reward = slashed * 5 // 100
        assert stake(chain) == STAKE - slashed
        assert chain.ledger.account(BOB).balance_frost == BALANCE_FROST - signed.transaction.fee_frost + reward
        assert chain.ledger.system.burned_frost == slashed - reward

    @pytest.mark.parametrize(
        ("first", "second"), list(product([(kind, block) for kind in Kind for block in (ONE, TWO)], repeat=2))
    )
    def test_is_what_no_honest_member_signs_both_and_nothing_else(
        self, chain: Chain, first: tuple[Kind, Digest], second: tuple[Kind, Digest]
    ) -> None:
        pair = {first[0], second[0]}
        lied = pair == {Kind.FINALIZE, Kind.NULLIFY} or (
            first[0] is second[0] is not Kind.NULLIFY and first[1] != second[1]
        )
        code = chain.run(OTHER_OWNER, Evidence(cast(*first), cast(*second)))
        assert code is (Code.OK if lied else Code.NOT_EVIDENCE)
        assert (stake(chain) < STAKE) == lied

    def test_is_also_two_headers_of_one_view(self, chain: Chain) -> None:
        same = Evidence(propose(chain), propose(chain))
        assert chain.run(OTHER_OWNER, same) is Code.NOT_EVIDENCE
        two = Evidence(propose(chain), propose(chain, time_ms=chain.time_ms + 2))
        assert chain.run(OTHER_OWNER, two) is Code.OK
        assert stake(chain) == STAKE * 95 // 100

    def test_of_two_epochs_views_or_signers_proves_nothing(self, chain: Chain) -> None:
        for other in (
            cast(Kind.NOTARIZE, TWO, view=VIEW + 1),
            cast(Kind.NOTARIZE, TWO, epoch=1),
            cast(Kind.NOTARIZE, TWO, signer=2, key=OPERATORS[2]),
            propose(chain),
        ):
            assert chain.run(OTHER_OWNER, Evidence(NOTARIZE_ONE, other)) is Code.NOT_EVIDENCE
        changed_fields: list[dict[str, Any]] = [{"view": VIEW + 1}, {"leader": 2}, {"epoch": 1}]
        for changes in changed_fields:
            headers = propose(chain), propose(chain)
            changed = replace(headers[1][0], **changes)
            pair = Evidence(headers[0], (changed, LIAR.sign(changed.encode())))
            assert chain.run(OTHER_OWNER, pair) is Code.NOT_EVIDENCE
        assert stake(chain) == STAKE

    def test_that_the_accused_did_not_sign_frames_nobody(self, chain: Chain) -> None:
        forged = cast(Kind.NOTARIZE, TWO, key=OTHER_OWNER)
        for pair in ((NOTARIZE_ONE, forged), (forged, NOTARIZE_ONE)):
            assert chain.run(OTHER_OWNER, Evidence(*pair)) is Code.NOT_EVIDENCE
        header = propose(chain, time_ms=chain.time_ms + 9, key=OTHER_OWNER)
        assert chain.run(OTHER_OWNER, Evidence(propose(chain), header)) is Code.NOT_EVIDENCE
        nobody = Evidence(*(cast(Kind.NOTARIZE, block, signer=3) for block in (ONE, TWO)))
        assert chain.run(OTHER_OWNER, nobody) is Code.NOT_EVIDENCE
        nobody = Evidence(propose(chain), propose(chain, time_ms=chain.time_ms + 9))
        strangers = [(replace(header, leader=3), sig) for header, sig in (nobody.first, nobody.second)]  # type: ignore[misc]
        assert chain.run(OTHER_OWNER, Evidence(*strangers)) is Code.NOT_EVIDENCE
        assert stake(chain) == STAKE

    def test_punishes_once_for_a_view_whatever_was_signed_in_it(self, chain: Chain) -> None:
        assert chain.run(OTHER_OWNER, EQUIVOCATION) is Code.OK
        left = stake(chain)
        for again in (
            EQUIVOCATION,
            Evidence(NOTARIZE_TWO, NOTARIZE_ONE),
            Evidence(cast(Kind.FINALIZE, ONE), cast(Kind.NULLIFY, ONE)),
            Evidence(propose(chain), propose(chain, time_ms=chain.time_ms + 9)),
        ):
            assert chain.run(OTHER_OWNER, again) is Code.ALREADY_PUNISHED
        assert stake(chain) == left
        elsewhere = Evidence(*(cast(Kind.NOTARIZE, block, view=VIEW + 1) for block in (ONE, TWO)))
        assert chain.run(OTHER_OWNER, elsewhere) is Code.OK
        assert stake(chain) == left - left * 5 // 100

    def test_holds_for_as_long_as_stakes_are_bound(self) -> None:
        chain = Chain.begin(replace(GENESIS, parameters=replace(GENESIS.parameters, unbonding_epochs=2)))

        def lied_in(epoch: int, view: int) -> Evidence:
            votes = [Vote(Kind.NOTARIZE, epoch, view, block, 1) for block in (ONE, TWO)]
            chain_id = chain.ledger.genesis.chain_id
            return Evidence(*(SignedVote(vote, LIAR.sign(vote.encode(chain_id))) for vote in votes))

        assert chain.run(OTHER_OWNER, lied_in(1, 1)) is Code.WRONG_EPOCH
        for _ in range(3):
            chain.end_epoch()
        assert chain.run(OTHER_OWNER, lied_in(0, 1)) is Code.TOO_OLD
        assert chain.run(OTHER_OWNER, lied_in(1, 1)) is Code.OK
        assert chain.run(OTHER_OWNER, lied_in(3, 1)) is Code.OK

    def test_of_another_chain_proves_nothing(self, chain: Chain) -> None:
        other = make_genesis((1, 2, 5)).chain_id
        votes = [Vote(Kind.NOTARIZE, 0, VIEW, block, 1) for block in (ONE, TWO)]
        pair = [SignedVote(vote, LIAR.sign(vote.encode(other))) for vote in votes]
        assert chain.run(OTHER_OWNER, Evidence(*pair)) is Code.NOT_EVIDENCE

    def test_against_a_node_whose_stake_is_gone_burns_nothing(self) -> None:
        chain = Chain.begin(replace(GENESIS, parameters=replace(GENESIS.parameters, stake_frost_per_shard=0)))
        votes = [Vote(Kind.NOTARIZE, 0, VIEW, block, 1) for block in (ONE, TWO)]
        pair = [SignedVote(vote, LIAR.sign(vote.encode(chain.ledger.genesis.chain_id))) for vote in votes]
        assert chain.run(OTHER_OWNER, Evidence(*pair)) is Code.OK
        assert (stake(chain), chain.ledger.system.burned_frost) == (0, 0)
