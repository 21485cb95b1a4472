"""The commands that pay and look, against the real ledger in this process: what they say, and how they end."""

import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import pytest
import trio
from click.testing import CliRunner

import p2pnode.clients.session
from economics.arguments import Attributes, Reserve
from economics.blob import BlobId, build_blob_id_text
from economics.commitments import Certificate
from economics.crypto import OwnerId
from economics.genesis import FROST_PER_WAL, build_key_text
from economics.operations import EPOCHS_AHEAD_MAX
from p2pnode.cli import storing
from p2pnode.cli.main import cli, explain
from p2pnode.clients.payments import EPOCHS, Order, reserve_for
from p2pnode.errors import ExitCode, TransactionFailed
from p2pnode.home import Home
from p2pnode.keys import keep_secret
from tests.p2pnode.ledgerchain import LedgerChain
from tests.small import BALANCE_FROST, OTHER_OWNER, OWNER, certify, make_blob, make_genesis, make_statement

GENESIS = make_genesis()
BLOB = make_blob(GENESIS.code, 5_000)
BLOB_TEXT = build_blob_id_text(BLOB.header.blob_id)
UNITS = GENESIS.code.encoded_units(5_000)
OTHER_TEXT = build_key_text(OTHER_OWNER.public)


class StandIn:
    """A client of a network whose members are one ledger."""

    def __init__(self, chain: LedgerChain) -> None:
        self.chain = chain
        self.genesis = chain.genesis

    async def certificate(self, blob_id: BlobId) -> Certificate:
        return certify(GENESIS, make_statement(GENESIS, BLOB.header), range(3))

    async def status(self) -> list[dict[str, Any]]:
        return [{"reachable": member > 0, "shards": 1} for member in range(4)]


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> LedgerChain:
    chain = LedgerChain(GENESIS)

    @asynccontextmanager
    async def open_stand_in(home: Home, *, on_fault: object) -> AsyncIterator[StandIn]:
        yield StandIn(chain)

    monkeypatch.setattr(p2pnode.clients.session, "open_session", open_stand_in)
    return chain


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """The owner's, with a faucet that the other owner fills."""
    home = Home(tmp_path)
    home.put_genesis(GENESIS)
    keep_secret(home.owner_key_path, OWNER.seed.hex().encode())
    keep_secret(home.faucet_key_path, OTHER_OWNER.seed.hex().encode())
    return home


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """A command sets the level of its logs for its whole process, which here goes on."""
    loggers = [logging.getLogger(name) for name in ("p2pnode", "dht", "gossip")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def store(chain: LedgerChain, *, epochs: int = 3, deletable: bool = True) -> None:
    async def work() -> None:
        reserved = await reserve_for(chain, OWNER, units=UNITS, order=Order(epochs=epochs))
        await chain.certify(BLOB, reserved.reservation, deletable=deletable)

    trio.run(work)


def words(home: Home, *args: object) -> str:
    done = CliRunner().invoke(cli, [*map(str, args), "--home", str(home.path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def fields(home: Home, *args: object) -> Any:
    return json.loads(words(home, *args, "--json"))


def refusal(home: Home, *args: object) -> tuple[int, str]:
    """Return the exit code of a command that fails for a reason, and what it says."""
    done = CliRunner().invoke(cli, [*map(str, args), "--home", str(home.path)])
    assert done.exception is not None
    with CliRunner().isolation() as (_, err, _):
        code = explain(done.exception)
        return code, err.getvalue().decode()


def balance(chain: LedgerChain) -> int:
    return chain.ledger.account(OwnerId(OWNER.public)).balance_frost


class TestWallet:
    def test_shows_what_an_account_has(self, chain: LedgerChain, home: Home) -> None:
        assert words(home, "wallet", "balance") == "1000 WAL\n"
        assert words(home, "wallet", "balance", build_key_text(bytes(32))) == "0 WAL\n"
        owner = build_key_text(OWNER.public)
        assert fields(home, "wallet", "balance") == {"balance_frost": BALANCE_FROST, "nonce": 0, "owner": owner}

    def test_sends_and_tells_of_it(self, chain: LedgerChain, home: Home) -> None:
        sent = fields(home, "wallet", "send", OTHER_TEXT, "1.5")
        assert balance(chain) == BALANCE_FROST - 1_500_000_000 - sent["fee_frost"]
        row = fields(home, "wallet", "history")["transactions"][0]
        assert row == fields(home, "tx", sent["hash"])
        assert row == {
            "arguments": {"amount_frost": 1_500_000_000, "to": OTHER_TEXT},
            "code": "ok",
            "fee_frost": sent["fee_frost"],
            "hash": sent["hash"],
            "height": 1,
            "index": 0,
            "nonce": 0,
            "operation": "transfer",
            "sender": build_key_text(OWNER.public),
        }
        assert f"transfer  to {OTHER_TEXT}  1.5 WAL  fee " in words(home, "wallet", "history")

    def test_does_not_send_what_it_has_not(self, chain: LedgerChain, home: Home) -> None:
        assert refusal(home, "wallet", "send", OTHER_TEXT, "1000")[0] == ExitCode.UNPAID
        assert refusal(home, "wallet", "send", "me", "1")[0] == ExitCode.INPUT
        assert chain.rows == []

    @pytest.mark.parametrize(("args", "frost"), [((), 10 * FROST_PER_WAL), (("2.5",), 2_500_000_000), (("7frost",), 7)])
    def test_is_filled_by_a_testnet_s_faucet(
        self, chain: LedgerChain, home: Home, args: tuple[str, ...], frost: int
    ) -> None:
        fields(home, "faucet", *args)
        assert balance(chain) == BALANCE_FROST + frost

    def test_of_another_is_filled_by_the_faucet_too(self, chain: LedgerChain, home: Home) -> None:
        key = bytes(32)
        fields(home, "faucet", build_key_text(key), "3")
        assert chain.ledger.account(OwnerId(key)).balance_frost == 3 * FROST_PER_WAL

    def test_has_no_faucet_elsewhere(self, chain: LedgerChain, home: Home) -> None:
        home.faucet_key_path.unlink()
        code, said = refusal(home, "faucet")
        assert code == ExitCode.CONFIG
        assert "testnets alone" in said


class TestBlobs:
    def test_are_listed_for_their_owner(self, chain: LedgerChain, home: Home) -> None:
        assert words(home, "list") == ""
        store(chain)
        row = fields(home, "list")["blobs"][0]
        assert (row["blob_id"], row["length"], row["units"], row["epochs_left"]) == (BLOB_TEXT, 5_000, UNITS, 3)
        assert words(home, "list").startswith(f"{BLOB_TEXT}           5000 bytes")

    def test_tell_whose_they_are_and_what_may_still_fail(self, chain: LedgerChain, home: Home) -> None:
        store(chain)
        told = fields(home, "info", BLOB_TEXT)
        assert told["certified_by"] == build_key_text(OWNER.public)
        assert (told["length"], told["certified_height"], told["certified_epoch"]) == (5_000, 2, 0)
        assert (told["end_epoch"], told["epochs_left"], told["entries"], len(told["own"])) == (3, 3, 1, 1)
        assert (told["shards"], told["shards_needed"], told["shards_answering"], told["shards_may_fail"]) == (
            4,
            2,
            3,
            1,
        )
        assert "1 of them may fail" in words(home, "info", BLOB_TEXT)

    def test_that_nobody_keeps_are_not_there(self, chain: LedgerChain, home: Home) -> None:
        code, said = refusal(home, "info", BLOB_TEXT)
        assert code == ExitCode.UNAVAILABLE
        assert "check the ID" in said

    def test_have_names_that_cannot_command_a_terminal(self, chain: LedgerChain, home: Home) -> None:
        store(chain)
        entry = chain.ledger.entries_of(OwnerId(OWNER.public))[0]
        trio.run(chain.transact, OWNER, Attributes(entry.blob_id, entry.reservation, "", "caf\u00e9\x1b[2J\n"))
        assert words(home, "list").endswith("  caf\u00e9?[2J?\n")
        assert "\x1b" not in words(home, "wallet", "history")

    def test_are_kept_longer_for_a_price_that_is_said_first(self, chain: LedgerChain, home: Home) -> None:
        store(chain)
        before = balance(chain)
        assert refusal(home, "extend", BLOB_TEXT, 2, "--max-cost", "1frost")[0] == ExitCode.UNPAID
        assert balance(chain) == before
        done = CliRunner().invoke(cli, ["extend", BLOB_TEXT, "2", "--json", "--home", str(home.path)])
        assert "it costs at most " in done.stderr
        told = json.loads(done.stdout)
        assert told == {"blob_id": BLOB_TEXT, "cost_frost": before - balance(chain), "end_epoch": 5}

    def test_are_deleted_and_leave_their_storage(self, chain: LedgerChain, home: Home) -> None:
        store(chain)
        told = fields(home, "delete", BLOB_TEXT)
        assert told == {"blob_id": BLOB_TEXT, "deleted": 1, "permanent": 0, "units_back": UNITS}
        assert chain.ledger.blob(BLOB.header.blob_id) is None
        assert refusal(home, "delete", BLOB_TEXT)[0] == ExitCode.INPUT


class TestChain:
    def test_lists_its_blocks_newest_first(self, chain: LedgerChain, home: Home) -> None:
        store(chain)
        rows = fields(home, "blocks")["blocks"]
        assert [(row["height"], row["transactions"]) for row in rows] == [(2, 1), (1, 1)]
        assert rows[0]["hash"] == build_key_text(chain.headers[-1].hash)
        assert len(words(home, "blocks", "--limit", 1).splitlines()) == 1

    def test_tells_what_was_certified(self, chain: LedgerChain, home: Home) -> None:
        store(chain)
        newest, reserved = fields(home, "wallet", "history")["transactions"]
        assert newest["operation"] == "certify"
        assert newest["arguments"]["blob_id"] == BLOB_TEXT
        assert newest["arguments"]["signers"] == 3
        assert reserved["arguments"] == {"end_epoch": 3, "start_epoch": 0, "units": UNITS}

    def test_says_why_a_transaction_failed(self, chain: LedgerChain, home: Home) -> None:
        with pytest.raises(TransactionFailed):
            trio.run(chain.transact, OWNER, Reserve(UNITS, 5, 5))
        assert "reserve  units 1  start_epoch 5  end_epoch 5  failed: wrong_epochs" in words(home, "wallet", "history")

    def test_has_not_every_transaction(self, chain: LedgerChain, home: Home) -> None:
        assert refusal(home, "tx", "A" * 43)[0] == ExitCode.UNAVAILABLE
        assert refusal(home, "tx", "00")[0] == ExitCode.INPUT


@pytest.mark.parametrize("command", [("info",), ("delete",), ("read",), ("wallet", "balance"), ("tx",)])
def test_an_id_that_begins_with_a_dash_is_no_option(chain: LedgerChain, home: Home, command: tuple[str, ...]) -> None:
    """One in 64 does."""
    text = build_key_text(b"\xfb" + bytes(31))
    assert text.startswith("-")
    done = CliRunner().invoke(cli, [*command, text, "--home", str(home.path)])
    assert "No such option" not in done.output
    assert done.exit_code != ExitCode.USAGE


def test_storing_offers_the_epochs_that_are_sold() -> None:
    option = next(param for param in storing.store.params if param.name == "epochs")
    assert option.default == EPOCHS
    assert isinstance(option.type, click.IntRange)
    assert option.type.max == EPOCHS_AHEAD_MAX
