"""A state under way: what is undone never was, what is flushed is in the tree, and the indexes follow both."""

from copy import deepcopy
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from economics import working
from economics.blob import BlobId
from economics.commitments import ReservationId
from economics.crypto import NodeId, OwnerId
from economics.nodes import NodeEntry, Offence, Phase, Stake
from economics.slots import Slot, StakeId, state_key
from economics.state import Account, BlobEntry, BlobSummary, Reservation, UsedStatement, Value, decode_value
from economics.working import ALL, Index, WorkingState
from tests.chain import make_id

OWNER, OTHER = OwnerId(bytes([1]) * 32), OwnerId(bytes([2]) * 32)
BLOB, RESERVATION = BlobId(make_id(1)), ReservationId(make_id(2))
ACCOUNT = Account(OWNER, 5, 0)
HELD = Reservation(RESERVATION, OWNER, 9, 0, 4)
ENTRY = BlobEntry(BLOB, RESERVATION, OWNER, 9, 4, 1, True)
SUMMARY = BlobSummary(BLOB, 1, 1, 0, ((4, 1),))
USED = UsedStatement(make_id(3), 7)
NODE = NodeEntry(NodeId(bytes([3]) * 32), OWNER, 5, 5, 1, 1, 1, 0, 0, 0, 0, ())
STAKE = Stake(StakeId(make_id(4)), OWNER, NODE.node, Phase.LEAVING, 0, 5, 6)
OFFENCE = Offence(NODE.node, 2, 1, 1)
VALUES: tuple[Value, ...] = (ACCOUNT, HELD, ENTRY, SUMMARY, USED, STAKE, NODE, OFFENCE)


@pytest.fixture
def state() -> WorkingState:
    return WorkingState.load(value.encode() for value in VALUES)


def indexed(state: WorkingState) -> list[dict[Any, set[Slot]]]:
    indexes: list[Index[Any]] = [
        state.indexes.ending,
        state.indexes.expiring,
        state.indexes.owned,
        state.indexes.blobs,
        state.indexes.staked,
        state.indexes.turning,
        state.indexes.nodes,
        state.indexes.aging,
    ]
    return [{key: set(index.get(key)) for key in index} for index in indexes]


def test_what_is_loaded_is_there_and_indexed(state: WorkingState) -> None:
    assert [state.get(value.slot) for value in VALUES] == list(VALUES)
    both = {HELD.slot, ENTRY.slot}
    stakes = {STAKE.slot}
    assert indexed(state) == [
        {4: both},
        {7: {USED.slot}},
        {OWNER: both | stakes},
        {ALL: {SUMMARY.slot}},
        {STAKE.node: stakes},
        {6: stakes},
        {ALL: {NODE.slot}},
        {2: {OFFENCE.slot}},
    ]


def test_what_is_undone_never_was(state: WorkingState) -> None:
    before, root = indexed(state), state.tree.root
    state.mark()
    state.write(replace(HELD, end_epoch=5))
    state.write(replace(HELD, end_epoch=6, owner=OTHER))
    state.put(ENTRY.slot, None)
    state.put(SUMMARY.slot, None)
    state.put(USED.slot, None)
    state.put(STAKE.slot, None)
    state.write(replace(STAKE, turn_epoch=7))
    state.write(Account(OTHER, 1, 0))
    state.write(replace(ACCOUNT, nonce=1))
    state.undo()
    assert [state.get(value.slot) for value in VALUES] == list(VALUES)
    assert state.account(OTHER) == Account(OTHER, 0, 0)
    assert indexed(state) == before
    assert state.flush() == {}
    assert state.tree.root == root


def test_only_what_came_after_the_mark_is_undone(state: WorkingState) -> None:
    state.write(replace(ACCOUNT, nonce=1))
    state.mark()
    state.write(replace(ACCOUNT, nonce=2))
    state.undo()
    assert state.account(OWNER).nonce == 1


def test_the_tree_changes_once_with_all_that_did(state: WorkingState) -> None:
    before = state.tree
    state.write(replace(ACCOUNT, nonce=1))
    state.write(replace(ACCOUNT, nonce=2))
    state.put(USED.slot, None)
    state.write(Account(OTHER, 1, 0))
    state.put(state.account(OTHER).slot, None)
    assert state.tree is before
    assert state.flush() == {state_key(ACCOUNT.slot): replace(ACCOUNT, nonce=2).encode(), state_key(USED.slot): None}
    assert {decode_value(data) for _, data in state.tree.items()} == {
        *VALUES[1:4],
        *VALUES[5:],
        replace(ACCOUNT, nonce=2),
    }
    assert state.flush() == {}


def test_a_fork_changes_apart(state: WorkingState) -> None:
    fork = state.fork()
    before = indexed(state)
    for value in VALUES[1:]:
        fork.put(value.slot, None)
    assert not any(indexed(fork))
    assert indexed(state) == before
    state.put(HELD.slot, None)
    state.write(HELD)
    assert not any(indexed(fork))
    assert state.get(HELD.slot) == HELD
    with pytest.raises(AssertionError):
        fork.fork()


def test_a_full_cache_is_emptied_and_nothing_is_lost(state: WorkingState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "CACHE_MAX", 1)
    state.write(replace(ACCOUNT, nonce=1))
    state.get(HELD.slot)
    state.write(replace(ACCOUNT, nonce=2))
    state.write(replace(HELD, units=1))
    state.mark()
    state.write(replace(HELD, units=2))
    state.undo()
    state.flush()
    assert state.account(OWNER) == replace(ACCOUNT, nonce=2)
    assert state.get(HELD.slot) == replace(HELD, units=1)


def test_readers_do_not_fill_the_memory(state: WorkingState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "CACHE_MAX", 3)
    for seed in range(10):
        assert state.blob(BlobId(make_id(seed + 50))) is None
    assert state.get(HELD.slot) == HELD
    assert len(state._cache) == 3


def test_copies_of_an_index_change_apart_whichever_changes_first() -> None:
    """Held against plain sets, copied deeply, through copies of copies that all go on."""
    rng = Random(1)
    pairs: list[tuple[Index[int], dict[int, set[Slot]]]] = [(Index(), {})]
    for _ in range(4_000):
        index, model = rng.choice(pairs)
        key, slot = rng.randrange(3), Slot(bytes([rng.randrange(6), rng.randrange(2)]))
        if slot in model.get(key, ()):
            index.remove(key, slot)
            model[key].remove(slot)
        else:
            index.add(key, slot)
            model.setdefault(key, set()).add(slot)
        if rng.random() < 0.1:
            pairs = [*pairs[-5:], (index.copy(), deepcopy(model))]
        for held, want in pairs:
            assert {key: set(held.get(key)) for key in held} == {key: slots for key, slots in want.items() if slots}
