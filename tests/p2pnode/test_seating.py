"""What a home remembers of who holds what: read back as it was, of its own epoch only, and damage is seen."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
import trio

from economics.committee import Committee, Member
from economics.crypto import Digest, NodeId
from economics.errors import Rejected
from economics.nodes import Handover, NodeEntry, Seats, Stage, Terms
from economics.slots import HANDOVER_SLOT, SYSTEM_SLOT, Slot, node_slot, seats_slot, state_key, terms_slot
from economics.state import System, Value
from economics.tree import StateKey
from p2pnode.chainview import Seating
from p2pnode.seating import addresses_of, decode_seating, encode_seating, prove_seating, with_addresses
from p2pnode.trust import trusted_genesis
from tests.p2pnode.standbys import GENESIS

TRUSTED = trusted_genesis(GENESIS)
ROOT = TRUSTED.root.hash
SOURCE = replace(TRUSTED.committee, epoch=7, members=TRUSTED.committee.members[::-1])
SEATING = Seating(TRUSTED.committee, SOURCE, 3, Terms(0, 1, 2, 3))


STAGED = replace(SEATING, since_epoch=9, older=((3, SOURCE), (5, replace(SOURCE, epoch=4))))


@pytest.mark.parametrize("seating", [SEATING, replace(SEATING, source=None), STAGED])
def test_it_is_read_back_with_addresses(seating: Seating) -> None:
    found = decode_seating(encode_seating(seating, root=ROOT), replace(TRUSTED, committee=bare()))
    assert found == seating
    assert addresses_of(*found.committees) == addresses_of(*seating.committees) != {}


def bare() -> Committee:
    """Return the committee as a light client follows it."""
    return with_addresses(TRUSTED.committee, {member.node: () for member in TRUSTED.committee.members})


def test_it_means_nothing_for_another_epoch() -> None:
    other = replace(TRUSTED, root=replace(TRUSTED.root, time_ms=1))
    assert decode_seating(encode_seating(SEATING, root=ROOT), other) is None


def test_whatever_a_disk_makes_of_it_is_refused_or_a_seating() -> None:
    for seed in range(600):
        random = Random(seed)
        good = encode_seating((SEATING, STAGED)[seed % 2], root=ROOT)
        spoilt = bytearray(good)
        for _ in range(random.randrange(1, 4)):
            spoilt[random.randrange(len(spoilt))] = random.randrange(256)
        try:
            found = decode_seating(bytes(spoilt), TRUSTED)
        except Rejected:
            continue
        assert found is None or found.current == TRUSTED.committee


def test_readers_are_the_source_first_until_all_is_handed_over() -> None:
    assert SEATING.readers(2) == (SOURCE, TRUSTED.committee)
    assert SEATING.readers(3) == (TRUSTED.committee,)
    assert replace(SEATING, source=None).readers(2) == (TRUSTED.committee,)


def test_readers_are_the_sources_of_all_that_was_not_handed_over_in_time() -> None:
    first, second = STAGED.older[0][1], STAGED.older[1][1]
    assert STAGED.committees == STAGED.readers(2) == (first, second, SOURCE, TRUSTED.committee)
    assert STAGED.readers(3) == STAGED.readers(4) == (second, SOURCE, TRUSTED.committee)
    assert STAGED.readers(5) == (SOURCE, TRUSTED.committee)
    assert STAGED.readers(9) == (TRUSTED.committee,)


async def test_sources_of_all_stages_are_proven_with_where_their_members_are() -> None:
    """Of the members that have no seat any more the addresses are asked for, too."""
    members, current = TRUSTED.committee.members, TRUSTED.committee
    left = replace(members[0], node=NodeId(bytes([9]) * 32), addresses=())
    sources = [replace(bare(), epoch=epoch, members=(left, *bare().members[1:])) for epoch in (1, 4)]
    here = replace(left, addresses=("/ip4/1.2.3.4",))
    state: dict[Slot, Value] = {
        SYSTEM_SLOT: System(0, 0, 0, 0, Digest(bytes(32))),
        HANDOVER_SLOT: Handover(6, 4, 0, (), (Stage(2, 1),)),
        terms_slot(0): SEATING.terms,
        seats_slot(1): Seats(sources[0]),
        seats_slot(4): Seats(sources[1]),
        **{node_slot(member.node): entry_of(member) for member in (*members, here)},
    }
    values = {state_key(slot): value.encode() for slot, value in state.items()}

    async def prove(keys: Sequence[StateKey]) -> tuple[bytes | None, ...]:
        await trio.lowlevel.checkpoint()
        return tuple(values.get(key) for key in keys)

    found = await prove_seating(prove, replace(TRUSTED, committee=bare()))
    assert found is not None
    assert found.current == current
    assert [(since, seats.epoch) for since, seats in found.older] == [(2, 1)]
    assert (found.since_epoch, found.source and found.source.epoch) == (6, 4)
    for seats in found.committees[:-1]:
        assert [member.addresses for member in seats.members] == [member.addresses for member in (here, *members[1:])]
    del values[state_key(seats_slot(1))]
    assert await prove_seating(prove, replace(TRUSTED, committee=bare())) is None


def entry_of(member: Member) -> NodeEntry:
    return NodeEntry(member.node, member.owner, 1, 1, 1, 1, 1, 0, 0, 0, 0, member.addresses)
