"""Garbage goes after its grace and not before; what is shared, live, signed for or not yet handed over stays."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from economics.blob import build_blob_id_text
from economics.crypto import NodeId
from economics.nodes import Handover
from p2pnode.mending.collect import NOTICED, Collect
from tests.mending.test_healing import FOUR
from tests.p2pnode.healers import Town
from tests.small import Blob, encode_blob, make_blob, make_statement, sign_statement


class Case:
    """The first of four nodes, each with a shard, and its collection."""

    def __init__(self, directory: Path) -> None:
        self.town = Town(directory)
        own = self.town.servers[0]
        self.store = own.store
        self.admission = own.admission
        self.restart()

    def restart(self) -> None:
        self.collect = Collect(
            node=NodeId(self.town.servers[0].key.public),
            store=self.store,
            admission=self.admission,
            ledger=lambda: self.town.ledger,
        )

    async def pass_epochs(self, count: int, *, restarts: bool = False) -> None:
        """Collect in the present epoch and in each of so many that follow with the same seats."""
        await self.collect.collect()
        for _ in range(count):
            if restarts:
                self.restart()
            view = self.town.view
            view.committees[view.epoch + 1] = view.committee.in_epoch(view.epoch + 1)
            view.epoch += 1
            await self.collect.collect()

    def held(self, blob: Blob, shard: int = 0) -> list[bool]:
        return [not self.store.missing(root, [shard]) for root in blob.header.roots]

    def forget(self, blobs: Iterable[Blob]) -> None:
        for blob in blobs:
            del self.town.view.blobs[blob.header.blob_id]


async def test_a_blob_that_nobody_owes_goes_after_a_whole_epoch(tmp_path: Path) -> None:
    case, dead, live = Case(tmp_path), make_blob(FOUR.code, 2500, 1), make_blob(FOUR.code, 2500, 2)
    for blob in (dead, live):
        case.town.store_blob(blob)
    case.forget([dead])
    await case.pass_epochs(1)
    assert case.held(dead) == [True] * 3
    assert case.store.record(dead.header.blob_id) is not None
    await case.pass_epochs(1)
    assert case.held(dead) == [False] * 3
    assert case.store.record(dead.header.blob_id) is None
    assert case.held(live) == [True] * 3
    assert (case.store.unclosed_bytes, case.collect.collected_blobs) == (0, 1)


async def test_a_blob_that_is_owed_again_within_the_grace_stays_for_as_long_again(tmp_path: Path) -> None:
    case, blob = Case(tmp_path), make_blob(FOUR.code, 2500)
    case.town.store_blob(blob)
    case.forget([blob])
    await case.pass_epochs(1)
    case.town.view.certify(blob.header, epoch=1)
    await case.pass_epochs(1)
    case.forget([blob])
    await case.pass_epochs(1)
    assert case.held(blob) == [True] * 3
    await case.pass_epochs(1)
    assert case.held(blob) == [False] * 3


async def test_a_node_that_runs_for_an_epoch_at_a_time_collects_too(tmp_path: Path) -> None:
    """A home that is off every night would keep all that ever ended."""
    case, blob = Case(tmp_path), make_blob(FOUR.code, 2500)
    case.town.store_blob(blob)
    case.forget([blob])
    await case.pass_epochs(1, restarts=True)
    assert case.held(blob) == [True] * 3
    await case.pass_epochs(1, restarts=True)
    assert case.held(blob) == [False] * 3


@pytest.mark.parametrize(
    "noted", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"blob": true}', b'{"blob %s": -1}', b'{"blob %s": 9}']
)
async def test_what_was_noted_oddly_was_not_noticed(tmp_path: Path, noted: bytes) -> None:
    case, blob = Case(tmp_path), make_blob(FOUR.code, 100)
    case.town.store_blob(blob)
    case.forget([blob])
    name = build_blob_id_text(blob.header.blob_id).encode("ascii")
    (case.store.directory / NOTICED).write_bytes(noted.replace(b"%s", name))
    await case.pass_epochs(1)
    assert case.held(blob) == [True]
    await case.pass_epochs(1)
    assert case.held(blob) == [False]


async def test_what_a_live_blob_shares_stays(tmp_path: Path) -> None:
    case = Case(tmp_path)
    one, two = encode_blob(FOUR.code, bytes(2500)), encode_blob(FOUR.code, bytes(1000))
    for blob in (one, two):
        case.town.store_blob(blob)
    case.forget([one])
    await case.pass_epochs(2)
    assert case.held(one) == [True, True, False]
    assert case.held(two) == [True]
    case.forget([two])
    await case.pass_epochs(2)
    assert case.store.files() == []


async def test_an_invalid_blob_goes_and_its_proof_stays(tmp_path: Path) -> None:
    case, blob = Case(tmp_path), make_blob(FOUR.code, 100)
    case.town.store_blob(blob)
    case.store.proofs.put(blob.header.blob_id, b"proof")
    case.town.view.invalid.add(blob.header.blob_id)
    await case.pass_epochs(2)
    assert case.held(blob) == [False]
    assert case.store.proofs.read(blob.header.blob_id) == b"proof"


async def test_a_proof_goes_a_whole_epoch_after_its_blob_has_ended(tmp_path: Path) -> None:
    """Wrong blobs are cheap: kept for ever, their proofs would fill the disk, which no quota counts."""
    case, blob = Case(tmp_path), make_blob(FOUR.code, 100)
    case.town.store_blob(blob)
    case.store.proofs.put(blob.header.blob_id, b"proof")
    case.town.view.invalid.add(blob.header.blob_id)
    case.forget([blob])
    await case.pass_epochs(1)
    assert case.store.proofs.read(blob.header.blob_id) == b"proof"
    await case.pass_epochs(1)
    assert case.store.proofs.read(blob.header.blob_id) is None
    assert not list((tmp_path / "0").glob("proofs/*"))


async def test_what_was_signed_for_and_may_reach_the_chain_stays(tmp_path: Path) -> None:
    case, blob = Case(tmp_path), make_blob(FOUR.code, 100)
    case.town.store_blob(blob)
    case.forget([blob])
    statement = make_statement(FOUR, blob.header)
    case.admission.live_statements = lambda: {statement.hash: statement}  # type: ignore[method-assign]
    await case.pass_epochs(3)
    assert case.held(blob) == [True]
    case.admission.live_statements = dict  # type: ignore[method-assign]
    await case.pass_epochs(2)
    assert case.held(blob) == [False]
    assert sign_statement(statement)


class TestMovedShards:
    """The first node's shard has gone to the second."""

    def move(self, case: Case, blob: Blob, *, reporters: tuple[int, ...]) -> None:
        case.town.store_blob(blob)
        case.town.seat(1, 1, 2, 3, epoch=1)
        case.town.view.epoch, case.town.view.handover = 1, Handover(1, 0, 0, reporters)

    async def test_go_when_their_holder_has_reported_and_the_grace_is_over(self, tmp_path: Path) -> None:
        case, blob = Case(tmp_path), make_blob(FOUR.code, 2500)
        self.move(case, blob, reporters=(0,))  # the first of the new committee, which is the second node
        await case.pass_epochs(1)
        assert case.held(blob) == [True] * 3
        await case.pass_epochs(1)
        assert case.held(blob) == [False] * 3
        assert case.collect.collected_slivers == 3
        assert case.store.record(blob.header.blob_id) is not None

    async def test_stay_while_their_holder_has_not_reported(self, tmp_path: Path) -> None:
        case, blob = Case(tmp_path), make_blob(FOUR.code, 2500)
        self.move(case, blob, reporters=(1, 2))
        await case.pass_epochs(5)
        assert case.held(blob) == [True] * 3

    async def test_stay_if_this_node_gets_them_back(self, tmp_path: Path) -> None:
        case, blob = Case(tmp_path), make_blob(FOUR.code, 2500)
        self.move(case, blob, reporters=(0,))
        await case.collect.collect()
        case.town.seat(0, 1, 2, 3, epoch=2)
        await case.collect.collect()
        case.town.view.epoch, case.town.view.handover = 2, Handover(2, 1, 0, (1, 2, 3))
        await case.pass_epochs(3)
        assert case.held(blob) == [True] * 3
