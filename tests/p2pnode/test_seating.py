"""What a home remembers of who holds what: read back as it was, of its own epoch only, and damage is seen."""

from dataclasses import replace
from random import Random

import pytest

from economics.committee import Committee
from economics.errors import Rejected
from economics.nodes import Terms
from p2pnode.chainview import Seating
from p2pnode.seating import addresses_of, decode_seating, encode_seating, with_addresses
from p2pnode.trust import trusted_genesis
from tests.p2pnode.standbys import GENESIS

TRUSTED = trusted_genesis(GENESIS)
ROOT = TRUSTED.root.hash
SOURCE = replace(TRUSTED.committee, epoch=7, members=TRUSTED.committee.members[::-1])
SEATING = Seating(TRUSTED.committee, SOURCE, 3, Terms(0, 1, 2, 3))


@pytest.mark.parametrize("seating", [SEATING, replace(SEATING, source=None)])
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
    good = encode_seating(SEATING, root=ROOT)
    for seed in range(300):
        random = Random(seed)
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
