"""The state tree: its root is its content's, whatever came before, and a proof shows what is there and nothing else."""

import json
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from economics.crypto import Digest, Level, digest
from economics.errors import Reason, Rejected
from economics.tree import EMPTY_HASH, KEY_BITS, Proof, Slot, StateKey, Tree
from tests import reference
from tests.refusals import reason

State = dict[StateKey, bytes]

NEAR_KEYS = tuple(
    StateKey(bytes([first]) * 31 + bytes([last])) for first in (0, 1, 0x80, 0xFF) for last in (0, 1, 2, 0x80, 0xFF)
)
"""Keys that share up to 255 bits with each other: every shape of collapse happens among a few."""
keys = st.sampled_from(NEAR_KEYS) | st.binary(min_size=32, max_size=32).map(StateKey)
states = st.dictionaries(keys, st.binary(max_size=4), max_size=20)
updates = st.lists(st.dictionaries(keys, st.none() | st.binary(max_size=1), max_size=6), max_size=8)


def make_state(count: int, seed: int = 0) -> State:
    random = Random(seed)
    return {StateKey(random.randbytes(32)): random.randbytes(random.randrange(80)) for _ in range(count)}


def build(state: State) -> Tree:
    return Tree.empty().update(state)


def plain(state: State) -> dict[bytes, bytes]:
    return {bytes(key): value for key, value in state.items()}


def lowest_bit(key: StateKey) -> StateKey:
    """Return the key that differs in the last bit alone."""
    return StateKey(key[:-1] + bytes([key[-1] ^ 1]))


class TestRoot:
    def test_is_that_of_the_frozen_vectors(self) -> None:
        for vector in json.loads((reference.VECTORS / "tree.json").read_text()):
            state = {StateKey(bytes.fromhex(key)): b"Z" * index for index, key in enumerate(vector["keys"])}
            tree = build(state)
            assert tree.root.hex() == vector["root"]
            for text, proof in vector["proofs"].items():
                key = StateKey(bytes.fromhex(text))
                assert tree.prove(key).encode().hex() == proof
                Proof.decode(bytes.fromhex(proof)).verify(tree.root, key, state.get(key))

    def test_of_nothing_is_zero_and_of_one_key_its_leaf(self) -> None:
        assert Tree.empty().root == bytes(32)
        key = StateKey(bytes([7]) * 32)
        leaf = digest(Level.STATE_LEAF, key + digest(Level.STATE_VALUE, b"value"))
        assert build({key: b"value"}).root == leaf

    @settings(max_examples=40, deadline=None)
    @given(states)
    def test_is_the_reference_s_for_any_content(self, state: State) -> None:
        assert build(state).root == reference.state_root(plain(state))

    @given(updates)
    def test_depends_on_content_and_never_on_history(self, history: list[dict[StateKey, bytes | None]]) -> None:
        tree, state = Tree.empty(), State()
        for changes in history:
            tree = tree.update(changes)
            for key, value in changes.items():
                state.pop(key, None)
                if value is not None:
                    state[key] = value
            assert tree.root == build(state).root
            assert list(tree.items()) == sorted(state.items())
            assert len(tree) == len(state)

    @given(states, st.randoms(use_true_random=False))
    def test_is_the_same_for_keys_one_by_one_in_any_order(self, state: State, random: Random) -> None:
        order = list(state.items())
        random.shuffle(order)
        tree = Tree.empty()
        for key, value in order:
            tree = tree.update({key: value})
        assert tree.root == build(state).root

    def test_differs_with_a_key_a_value_and_a_key_less(self) -> None:
        state = make_state(50)
        key = next(iter(state))
        others = (
            {**state, key: state[key] + b"\0"},
            {other: value for other, value in state.items() if other != key},
            {**state, lowest_bit(key): b""},
        )
        assert len({build(state).root, *(build(other).root for other in others)}) == 4


class TestVersions:
    def test_an_old_version_keeps_its_content_and_its_proofs(self) -> None:
        random = Random(1)
        state = make_state(200)
        versions = [(build(state), dict(state))]
        for _ in range(20):
            changes: dict[StateKey, bytes | None] = {key: random.randbytes(8) for key in random.sample(list(state), 9)}
            changes |= dict.fromkeys(random.sample(list(state), 3))
            for key, value in changes.items():
                state.pop(key, None)
                if value is not None:
                    state[key] = value
            versions.append((versions[-1][0].update(changes), dict(state)))
        for tree, content in versions:
            assert dict(tree.items()) == content
            assert tree.root == build(content).root
            for key in make_state(200):
                assert tree.get(key) == content.get(key)
                tree.prove(key).verify(tree.root, key, content.get(key))

    def test_a_new_version_shares_all_but_the_changed_paths(self) -> None:
        state = make_state(1000)
        tree = build(state)
        key = next(iter(state))
        changed = tree.update({key: b"other"})

        def nodes(version: Tree) -> set[int]:
            found, waiting = set(), [version._top]
            while waiting:
                node = waiting.pop()
                if node is not None:
                    found.add(id(node))
                    waiting += [getattr(node, "left", None), getattr(node, "right", None)]
            return found

        assert len(nodes(changed) - nodes(tree)) == len(tree.prove(key).siblings) + 1 < 25

    def test_an_update_that_changes_nothing_makes_nothing(self) -> None:
        state = make_state(100)
        tree = build(state)
        absent = dict.fromkeys(make_state(10, seed=1))
        assert tree.update({})._top is tree._top
        assert tree.update(state)._top is tree._top
        assert tree.update(absent)._top is tree._top

    def test_the_deepest_tree_is_built_changed_and_emptied(self) -> None:
        """Its keys share 255 bits: 256 levels."""
        pair = {StateKey(bytes(32)): b"zero", lowest_bit(StateKey(bytes(32))): b"one"}
        tree = build(pair)
        for key, value in pair.items():
            assert len(tree.prove(key).siblings) == KEY_BITS
            tree.prove(key).verify(tree.root, key, value)
        first, second = pair
        assert tree.update({first: b"new"}).get(second) == b"one"
        assert tree.update({first: None}).root == build({second: b"one"}).root
        assert tree.update(dict.fromkeys(pair)).root == EMPTY_HASH

    def test_an_empty_value_is_a_value(self) -> None:
        key = StateKey(bytes(32))
        tree = build({key: b""})
        assert tree.get(key) == b""
        assert len(tree) == 1
        tree.prove(key).verify(tree.root, key, b"")
        assert reason(tree.prove(key).verify, tree.root, key, None) is Reason.HASH_MISMATCH


class TestProof:
    @settings(max_examples=40, deadline=None)
    @given(states, st.lists(keys, max_size=5))
    def test_shows_what_is_there_and_that_nothing_is(self, state: State, asked: list[StateKey]) -> None:
        tree = build(state)
        for key in (*state, *asked):
            proof = tree.prove(key)
            assert proof.encode() == reference.state_proof(plain(state), key)
            assert Proof.decode(proof.encode()) == proof
            proof.verify(tree.root, key, state.get(key))
            lies = {None, b"lie", *state.values()} - {state.get(key)}
            for lie in lies:
                assert reason(proof.verify, tree.root, key, lie) is Reason.HASH_MISMATCH

    def test_of_one_key_is_none_of_another_and_none_under_another_root(self) -> None:
        state = make_state(30)
        tree = build(state)
        first, second = list(state)[:2]
        with pytest.raises(Rejected):
            tree.prove(first).verify(tree.root, second, state[second])
        with pytest.raises(Rejected):
            tree.prove(first).verify(tree.root, second, None)
        other = tree.update({second: None})
        assert reason(tree.prove(first).verify, other.root, first, state[first]) is Reason.HASH_MISMATCH

    @pytest.mark.parametrize("slot", list(Slot))
    def test_with_any_byte_changed_is_refused(self, slot: Slot) -> None:
        state = make_state(12)
        tree = build(state)
        key = next(key for key in (*state, *make_state(500, seed=1)) if tree.prove(key).slot is slot)
        data = tree.prove(key).encode()
        for at in range(len(data)):
            for flip in (1, 0x80, 0xFF):
                forged = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
                with pytest.raises(Rejected):
                    Proof.decode(forged).verify(tree.root, key, state.get(key))

    def test_short_long_or_with_more_behind_it_is_refused(self) -> None:
        state = make_state(12)
        tree = build(state)
        absent = next(key for key in make_state(500, seed=1) if tree.prove(key).slot is Slot.OTHER)
        for key in (next(iter(state)), absent):
            data = tree.prove(key).encode()
            for other in (data[:-1], data + b"\0", data[:1], b"", data[:34]):
                assert reason(Proof.decode, other) is Reason.MALFORMED
        assert reason(Proof.decode, (257).to_bytes(2, "big") + bytes(257 * 32 + 1)) is Reason.MALFORMED
        assert reason(Proof.decode, b"\xff\xff" + bytes(65_535 * 32 + 1)) is Reason.MALFORMED
        assert Proof.decode(b"\0\0\0") == Proof((), Slot.EMPTY)
        assert reason(Proof.decode, b"\0\0\3") is Reason.MALFORMED

    def test_of_more_than_256_siblings_is_refused_however_it_was_made(self) -> None:
        proof = Proof((EMPTY_HASH,) * 257, Slot.EMPTY)
        assert reason(proof.verify, EMPTY_HASH, StateKey(bytes(32)), None) is Reason.MALFORMED

    def test_that_the_slot_is_another_s_needs_another_key_on_the_same_path(self) -> None:
        """Else a leaf that is there proves every key absent: itself, or those elsewhere."""
        state = make_state(40)
        tree = build(state)
        for key, value in state.items():
            own = tree.prove(key)
            leaf = key, digest(Level.STATE_VALUE, value)
            forged = replace(own, slot=Slot.OTHER, other=leaf)
            assert reason(forged.verify, tree.root, key, None) is Reason.MALFORMED
            elsewhere = StateKey(bytes([key[0] ^ 0x80]) + key[1:])
            assert reason(forged.verify, tree.root, elsewhere, None) is Reason.MALFORMED
            near = lowest_bit(key)
            assert tree.prove(near) == forged
            forged.verify(tree.root, near, None)

    def test_that_a_branch_is_an_empty_slot_or_a_leaf_is_refused(self) -> None:
        """A path cut short, with the branch's hash in the place of what a proof ends with."""
        state = make_state(40)
        tree = build(state)
        key = next(iter(state))
        siblings = tree.prove(key).siblings
        for cut in range(len(siblings)):
            for other in (None, (lowest_bit(key), siblings[cut])):
                forged = Proof(siblings[:cut], Slot.EMPTY if other is None else Slot.OTHER, other)
                assert reason(forged.verify, tree.root, key, None) is Reason.HASH_MISMATCH

    def test_with_a_leaf_missing_or_beside_the_point_is_refused(self) -> None:
        key, root = StateKey(bytes(32)), EMPTY_HASH
        assert reason(Proof((), Slot.OTHER).verify, root, key, None) is Reason.MALFORMED
        leaf = StateKey(bytes([1]) * 32), Digest(bytes(32))
        assert reason(Proof((), Slot.EMPTY, leaf).verify, root, key, None) is Reason.MALFORMED
        assert reason(Proof((), Slot.OWN, leaf).verify, root, key, b"") is Reason.MALFORMED

    def test_of_the_empty_tree_says_that_no_key_is_there(self) -> None:
        key = StateKey(bytes(32))
        proof = Tree.empty().prove(key)
        proof.verify(EMPTY_HASH, key, None)
        assert reason(proof.verify, EMPTY_HASH, key, b"") is Reason.HASH_MISMATCH

    @settings(max_examples=300)
    @given(st.binary(max_size=200))
    def test_of_any_bytes_is_refused_or_is_read_back(self, data: bytes) -> None:
        try:
            proof = Proof.decode(data)
        except Rejected:
            return
        assert proof.encode() == data
