"""A key is made once, kept from others, and never written over."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from economics.crypto import verify_signature
from p2pnode import keys
from p2pnode.errors import ConfigError
from p2pnode.keys import Key, create_key, load_key, load_or_create_key


def test_a_key_signs_for_its_public_half() -> None:
    key = Key(bytes(32))
    assert Key(key.seed).public == key.public
    verify_signature(key.public, b"message", key.sign(b"message"))
    assert Key.generate().seed != Key.generate().seed


def test_a_key_is_read_back_from_a_file_that_only_its_owner_may_read(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "operator.key"
    old = os.umask(0)
    try:
        made = create_key(path)
    finally:
        os.umask(old)
    assert load_key(path).seed == made.seed
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(path.parent) == ["operator.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o644])
def test_a_key_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "operator.key"
    create_key(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="can be read by others: chmod 600 it"):
        load_key(path)


def test_a_key_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "owner.key"
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="a key is never overwritten"):
        create_key(path)
    assert path.read_bytes() == b""
    assert os.listdir(tmp_path) == ["owner.key"]


def test_two_that_make_a_key_at_once_end_with_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two uploads from a new home at once: what one of them signs as its owner must stay its owner's."""
    path = tmp_path / "owner.key"
    both = Barrier(2)
    generate = Key.generate

    def meet() -> Key:
        both.wait(timeout=120)  # neither has a file yet
        return generate()

    monkeypatch.setattr(keys.Key, "generate", meet)
    with ThreadPoolExecutor(2) as pool:
        made = {key.seed for key in pool.map(load_or_create_key, (path, path))}
    assert made == {load_key(path).seed}
    assert os.listdir(tmp_path) == ["owner.key"]


@pytest.mark.parametrize("text", ["", "00" * 31, "00" * 33, "x" * 64, "é" * 32])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "operator.key"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="key"):
        load_key(path)


def test_a_key_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make one with `p2pnode init`"):
        load_key(tmp_path / "operator.key")
