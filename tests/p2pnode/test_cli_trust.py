"""Checkpoints: `p2pnode trust` keeps one of this network that is recent, and nothing else; where they cannot be put."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import p2pnode.dialling
from economics.light import Trusted
from p2pnode.cli.main import cli
from p2pnode.cli.verify import write_file
from p2pnode.clients.trust import trusted_genesis
from p2pnode.errors import InputError
from p2pnode.home import Home
from tests.small import make_genesis

GENESIS = make_genesis()
UNBONDING_MS = GENESIS.parameters.unbonding_epochs * GENESIS.parameters.epoch_ms
MADE = trusted_genesis(GENESIS)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(Home, "load_genesis", lambda home: GENESIS)
    monkeypatch.setattr(p2pnode.dialling, "clock_ms", lambda: GENESIS.time_ms + UNBONDING_MS)
    return Home(tmp_path / "home")


def trust(home: Home, data: bytes) -> BaseException | None:
    file = home.path.with_name("checkpoint")
    file.write_bytes(data)
    return CliRunner().invoke(cli, ["trust", str(file), "--home", str(home.path)], standalone_mode=False).exception


def test_keeps_a_recent_checkpoint(home: Home) -> None:
    assert trust(home, MADE.encode()) is None
    assert Trusted.decode(home.trusted_path.read_bytes(), chain_id=GENESIS.chain_id).root == MADE.root


@pytest.mark.parametrize("fault", ["junk", "old"])
def test_keeps_nothing_else(fault: str, home: Home) -> None:
    old = Trusted(replace(MADE.root, time_ms=GENESIS.time_ms - 1), MADE.committee)
    assert isinstance(trust(home, {"junk": b"junk", "old": old.encode()}[fault]), InputError)
    assert not home.trusted_path.exists()


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"cannot write {tmp_path}/none/receipt: No such file or directory"):
        write_file(tmp_path / "none" / "receipt", b"receipt")
