"""A wallet opens with its passphrase and no other, asks for nothing absurd, and an older plain key stays readable."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from economics.genesis import build_key_text
from p2pnode.errors import ConfigError
from p2pnode.keys import create_key
from p2pnode.wallet import INTERACTIVE, MODERATE, Cost, Sealed, create_wallet, load_wallet, read_wallet
from tests.small import OWNER

CHEAP = Cost(1, 8192)
"""The least that libsodium does: these tests are about the file."""


def refuse() -> str:
    raise AssertionError("a plain key has no passphrase")


def sealed(tmp_path: Path, **changes: Any) -> Path:
    """Return a wallet with the passphrase "secret" and some fields changed."""
    path = tmp_path / "owner.key"
    create_wallet(path, "secret", cost=CHEAP)
    fields = json.loads(path.read_text(encoding="ascii")) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}), encoding="ascii")
    return path


class TestSealed:
    def test_opens_with_its_passphrase(self, tmp_path: Path) -> None:
        path = tmp_path / "keys" / "owner.key"
        made = create_wallet(path, "correct horse", cost=INTERACTIVE)
        assert load_wallet(path, lambda: "correct horse").seed == made.seed
        assert path.stat().st_mode & 0o777 == 0o600
        assert os.listdir(path.parent) == ["owner.key"]

    def test_costs_a_guesser_256_mib_unless_told_otherwise(self, tmp_path: Path) -> None:
        create_wallet(tmp_path / "owner.key", "correct horse")
        held = read_wallet(tmp_path / "owner.key")
        assert isinstance(held, Sealed)
        assert held.cost == MODERATE == Cost(3, 256 << 20)

    def test_shows_its_public_key_and_hides_the_other(self, tmp_path: Path) -> None:
        path = tmp_path / "owner.key"
        made = create_wallet(path, "secret", cost=CHEAP)
        assert read_wallet(path).public == made.public
        text = path.read_text(encoding="ascii")
        assert build_key_text(made.public) in text
        assert made.seed.hex() not in text

    def test_has_a_salt_and_a_nonce_of_its_own(self, tmp_path: Path) -> None:
        files = [tmp_path / name for name in ("one", "other")]
        for path in files:
            create_wallet(path, "secret", cost=CHEAP)
        one, other = (json.loads(path.read_text(encoding="ascii")) for path in files)
        assert one["salt"] != other["salt"]
        assert one["box"][:48] != other["box"][:48]

    def test_opens_however_the_keyboard_spells_a_letter(self, tmp_path: Path) -> None:
        path = tmp_path / "owner.key"
        made = create_wallet(path, "caf\u00e9", cost=CHEAP)
        assert load_wallet(path, lambda: "cafe\u0301").seed == made.seed

    @pytest.mark.parametrize("wrong", ["", "Secret", "secret ", "secre"])
    def test_opens_with_no_other_passphrase(self, tmp_path: Path, wrong: str) -> None:
        with pytest.raises(ConfigError, match=r"the passphrase does not open .*owner.key: try again"):
            load_wallet(sealed(tmp_path), lambda: wrong)

    @pytest.mark.parametrize("at", [0, 24, 40, 71])
    def test_whose_box_was_touched_does_not_open(self, tmp_path: Path, at: int) -> None:
        path = sealed(tmp_path)
        box = bytearray.fromhex(json.loads(path.read_text(encoding="ascii"))["box"])
        box[at] ^= 1
        path = replaced(path, box=box.hex())
        with pytest.raises(ConfigError, match="does not open"):
            load_wallet(path, lambda: "secret")

    def test_that_names_another_public_key_is_refused(self, tmp_path: Path) -> None:
        path = sealed(tmp_path, public=build_key_text(OWNER.public))
        with pytest.raises(ConfigError, match="names another public key than the one it holds"):
            load_wallet(path, lambda: "secret")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"memory_bytes": (1 << 30) + 1}, "asks for 1073741825 bytes of memory"),
            ({"memory_bytes": 1 << 62}, "bytes of memory"),
            ({"memory_bytes": 0}, "bytes of memory"),
            ({"memory_bytes": -1}, "bytes of memory"),
            ({"passes": 17}, "asks for 17 passes"),
            ({"passes": 0}, "asks for 0 passes"),
            ({"passes": 1 << 80}, "passes to open it"),
            ({"passes": True}, "is not a wallet"),
            ({"passes": 1.0}, "is not a wallet"),
            ({"passes": "1"}, "is not a wallet"),
            ({"version": 2}, "of version 2: a newer p2pnode may open it"),
            ({"version": True}, "of version True"),
            ({"version": None}, "is not a wallet"),
            ({"kdf": "scrypt"}, "sealed in a way"),
            ({"cipher": "aes"}, "sealed in a way"),
            ({"salt": "00" * 15}, "is not a wallet"),
            ({"salt": 7}, "is not a wallet"),
            ({"box": "00" * 71}, "is not a wallet"),
            ({"box": None}, "is not a wallet"),
            ({"box": "x" * 144}, "is not a wallet"),
            ({"public": "A" * 42}, "is not a wallet"),
        ],
    )
    def test_that_is_off_is_refused_before_anything_is_derived(
        self, tmp_path: Path, changes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            load_wallet(sealed(tmp_path, **changes), refuse)

    @pytest.mark.parametrize("text", ["{", "{}", '{"version": 1}', "[" * 100_000, "{" + '"a":{' * 100_000])
    def test_that_is_no_object_of_ours_is_refused(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "owner.key"
        path.write_text(text, encoding="ascii")
        path.chmod(0o600)
        with pytest.raises(ConfigError, match="is not a"):
            load_wallet(path, refuse)

    def test_has_a_passphrase_that_is_not_empty(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"an empty passphrase protects nothing: .*--plain"):
            create_wallet(tmp_path / "owner.key", "")
        assert list(tmp_path.iterdir()) == []


def replaced(path: Path, **changes: Any) -> Path:
    fields = json.loads(path.read_text(encoding="ascii")) | changes
    path.write_text(json.dumps(fields), encoding="ascii")
    return path


def test_a_plain_key_needs_no_passphrase(tmp_path: Path) -> None:
    made = create_wallet(tmp_path / "owner.key", None)
    assert load_wallet(tmp_path / "owner.key", refuse).seed == made.seed


def test_a_key_made_before_wallets_were_is_one(tmp_path: Path) -> None:
    made = create_key(tmp_path / "owner.key")
    assert load_wallet(tmp_path / "owner.key", refuse).seed == made.seed


@pytest.mark.parametrize("passphrase", [None, "secret"])
def test_a_wallet_is_never_written_over_nor_read_by_others(tmp_path: Path, passphrase: str | None) -> None:
    path = tmp_path / "owner.key"
    create_wallet(path, passphrase, cost=CHEAP)
    before = path.read_bytes()
    for other in (None, "other"):
        with pytest.raises(ConfigError, match="never overwritten"):
            create_wallet(path, other, cost=CHEAP)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["owner.key"]
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others"):
        load_wallet(path, lambda: "secret")


def test_no_wallet_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no wallet at .*: make one with `p2pnode wallet new`"):
        load_wallet(tmp_path / "owner.key", refuse)
