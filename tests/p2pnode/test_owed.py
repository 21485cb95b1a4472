"""What a node owes and lacks is found whatever the committees, in bounded pieces, and who may have it is known."""

from pathlib import Path

import pytest

from economics.crypto import NodeId
from economics.nodes import Handover, Stage
from p2pnode import owed
from p2pnode.healing import others
from p2pnode.owed import Surveyor, Want, helpers, holders
from tests.p2pnode.healers import Town
from tests.p2pnode.test_healing import FOUR
from tests.small import OPERATORS, encode_blob, make_blob, make_pairs

NODES = [NodeId(key.public) for key in OPERATORS[:4]]


def surveyor(town: Town, member: int = 0) -> Surveyor:
    return Surveyor(node=NODES[member], store=town.servers[member].store, delay_s=15.0)


def wanted(found: owed.Survey) -> set[tuple[int, int]]:
    """Return (segment, shard) of what a survey of one blob found."""
    return {(want.segment, want.shard) for want in found.wants}


def test_the_shards_of_this_epoch_and_the_next_are_owed(tmp_path: Path) -> None:
    town, blob = Town(tmp_path), make_blob(FOUR.code, 1500)
    town.store_blob(blob)
    town.servers[0].store.drop_shard_file(blob.header.roots[1], 0)
    look = surveyor(town)
    assert wanted(look.survey(town.ledger, now=0, proven=set())) == {(1, 0)}
    town.seat(3, 0, 0, 3, epoch=1)  # its own goes, two come
    found = look.survey(town.ledger, now=0, proven=set())
    assert wanted(found) == {(1, 0), (0, 1), (1, 1), (0, 2), (1, 2)}
    root = blob.header.roots[1]
    assert Want(root, 2, blob.header.blob_id, 1, 500, 0) in found.wants
    town.view.epoch = 1
    assert wanted(look.survey(town.ledger, now=0, proven=set())) == {(0, 1), (1, 1), (0, 2), (1, 2)}


def test_a_node_without_shards_owes_nothing(tmp_path: Path) -> None:
    town = Town(tmp_path)
    town.seat(1, 1, 2, 3, epoch=0)
    town.store_blob(make_blob(FOUR.code, 100))
    found = surveyor(town).survey(town.ledger, now=0, proven=set())
    assert (found.headers, found.wants) == ([], [])


def test_what_is_proven_wrong_or_invalid_is_not_owed(tmp_path: Path) -> None:
    town, blob = Town(tmp_path), make_blob(FOUR.code, 100)
    town.store_blob(blob, but=(0,))
    blob_id = blob.header.blob_id
    assert surveyor(town).survey(town.ledger, now=0, proven=set()).headers == [blob_id]
    assert surveyor(town).survey(town.ledger, now=0, proven={blob_id}).headers == []
    town.view.invalid.add(blob_id)
    assert surveyor(town).survey(town.ledger, now=0, proven=set()).headers == []


def test_a_segment_that_blobs_share_is_wanted_once(tmp_path: Path) -> None:
    town, blob = Town(tmp_path), make_blob(FOUR.code, 1000)
    twice = make_blob(FOUR.code, 1000).data * 2
    town.store_blob(encode_blob(FOUR.code, twice), but=(0,))
    town.store_blob(blob, but=(0,))
    for header in (encode_blob(FOUR.code, twice).header, blob.header):
        town.servers[0].store.put_header(header)
    assert len(surveyor(town).survey(town.ledger, now=0, proven=set()).wants) == 1


def test_more_than_one_survey_holds_is_found_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owed, "WANTS_MAX", 3)
    town = Town(tmp_path)
    blobs = [make_blob(FOUR.code, 1500, seed) for seed in range(4)]
    for blob in blobs:
        town.store_blob(blob, but=(0,))
        town.servers[0].store.put_header(blob.header)
    look = surveyor(town)
    seen = set()
    for _ in range(3):
        found = look.survey(town.ledger, now=0, proven=set())
        assert len(found.wants) == 3
        seen |= {want.root for want in found.wants}
    assert seen == {root for blob in blobs for root in blob.header.roots}


def test_a_member_is_in_step_only_with_all_of_the_past(tmp_path: Path) -> None:
    """What counts is what was certified before the shards moved, of the shards that it holds now."""
    town, blob = Town(tmp_path), make_blob(FOUR.code, 100)
    town.store_blob(blob)
    town.seat(0, 0, 2, 3, epoch=1)
    town.view.epoch, town.view.handover = 1, Handover(1, 0, 0, (1, 2))
    look, store = surveyor(town), town.servers[0].store
    assert not look.survey(town.ledger, now=0, proven=set()).synced
    for segment in blob.segments:
        store.put_segment(segment.metadata, segment.z, make_pairs(segment, [1]))
    assert look.survey(town.ledger, now=0, proven=set()).synced
    town.seat(0, 0, 0, 3, epoch=2)
    assert look.survey(town.ledger, now=0, proven=set()).synced  # shard 2 is for later
    town.store_blob(make_blob(FOUR.code, 100, 1), epoch=1, but=(0,))
    assert look.survey(town.ledger, now=0, proven=set()).synced
    town.view.certify(make_blob(FOUR.code, 100, 2).header, epoch=0)
    assert not look.survey(town.ledger, now=0, proven=set()).synced


class TestHolders:
    def town_of(self, directory: Path) -> Town:
        """Shard 0 was the first node's in epoch 0, the second's in 1, the third's in 2."""
        town = Town(directory)
        town.seat(1, 1, 2, 3, epoch=1)
        town.seat(2, 1, 2, 3, epoch=2)
        town.view.epoch, town.view.handover = 2, Handover(2, 0, 0, ())
        return town

    def test_are_those_since_the_blob_was_certified_newest_first(self, tmp_path: Path) -> None:
        ledger = self.town_of(tmp_path).ledger
        assert holders(ledger, 0, 0) == [NODES[2], NODES[1], NODES[0]]
        assert holders(ledger, 0, 1) == [NODES[2], NODES[1]]
        assert holders(ledger, 0, 2) == [NODES[2]]
        assert holders(ledger, 3, 0) == [NODES[3]]

    def test_that_are_sure_to_have_it_help_first_until_the_handover_is_done(self, tmp_path: Path) -> None:
        town = self.town_of(tmp_path)
        assert helpers(town.ledger, 0, 0) == [NODES[0], NODES[2], NODES[1]]
        assert helpers(town.ledger, 0, 2) == [NODES[2]]
        town.view.handover = Handover(2, 2, 9, (0, 1, 2))
        assert helpers(town.ledger, 0, 0) == [NODES[2], NODES[1], NODES[0]]

    def test_of_every_stage_of_a_handover_are_known_however_old(self, tmp_path: Path) -> None:
        """Shard 0 goes on to the fourth node long after; what is older than a stage is first with its source."""
        town = self.town_of(tmp_path)
        for epoch in range(3, 40):
            town.view.committees[epoch] = town.view.committees[2].in_epoch(epoch)
        town.seat(3, 1, 2, 3, epoch=40)
        town.view.epoch, town.view.handover = 40, Handover(40, 39, 0, (), (Stage(1, 0), Stage(2, 1)))
        for forgotten in (2, 3, 4):
            del town.view.committees[forgotten]
        assert holders(town.ledger, 0, 0) == [NODES[3], NODES[2], NODES[1], NODES[0]]
        assert helpers(town.ledger, 0, 0) == [NODES[0], NODES[3], NODES[2], NODES[1]]
        assert helpers(town.ledger, 0, 1) == [NODES[1], NODES[3], NODES[2]]
        assert helpers(town.ledger, 0, 2) == [NODES[2], NODES[3]]
        assert others(town.ledger, NODES[3]) == [NODES[1], NODES[2], NODES[0]]
