"""The command line without a network: help, offline IDs, bad input, exit codes."""

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from economics.blob import BlobId, build_blob_id_text
from economics.genesis import build_key_text, parse_key
from p2pnode.errors import ExitCode
from p2pnode.home import Home
from p2pnode.wallet import INTERACTIVE, create_wallet, load_wallet
from tests import reference
from tests.p2pnode.command import ROOT, p2pnode
from tests.small import OTHER_OWNER, make_genesis


def test_help_imports_neither_libp2p_nor_trio() -> None:
    check = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from p2pnode.cli.main import cli\n"
        "assert 'store' in CliRunner().invoke(cli, ['--help']).output\n"
        "print([name for name in ('libp2p', 'trio') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, check=True, text=True)
    assert done.stdout == "[]\n"


def test_version_names_the_kernel() -> None:
    fields = p2pnode("version", "--json").json
    assert set(fields) == {"kernel", "p2pnode", "python"}
    assert fields["kernel"].startswith(("isa-l", "zfec"))


def test_a_blob_id_is_computed_offline(tmp_path: Path) -> None:
    file = tmp_path / "blob"
    file.write_bytes(reference.content(1000))
    root = reference.hashed("segment", reference.metadata(reference.expanded(10, reference.content(1000))))
    expected = reference.hashed("blob", reference.header(10, 8 << 20, 1000, [root]))
    assert p2pnode("blob-id", "--shards", 10, file).out.decode() == build_blob_id_text(BlobId(expected)) + "\n"


def test_a_pipe_is_not_stored_as_an_empty_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for special in (pipe, Path("/dev/zero")):
        done = p2pnode("blob-id", "--shards", 10, special)
        assert (done.code, done.out) == (ExitCode.INPUT, b"")
        assert "pipe or a device" in done.err


@pytest.mark.parametrize(
    ("words", "code", "names"),
    [
        (("blob-id", "--shards", 10, "{tmp}/missing"), ExitCode.INPUT, "No such file"),
        (("blob-id", "--shards", 10, "{tmp}"), ExitCode.INPUT, "folder"),
        (("blob-id", "--shards", 3, "{tmp}/missing"), ExitCode.USAGE, "4<=x<=256"),
        (("read", "not-an-id"), ExitCode.INPUT, "is not a blob ID"),
        (("read", "A" * 42 + "B"), ExitCode.INPUT, "its last character is not what it was"),
        (("tx", "A" * 42 + "B"), ExitCode.INPUT, "its last character is not what it was"),
        (("unstake", "A" * 42 + "B"), ExitCode.INPUT, "its last character is not what it was"),
        (("wallet", "balance", "A" * 42 + "B"), ExitCode.INPUT, "its last character is not what it was"),
        (("read", "A" * 43, "--range", "9-x"), ExitCode.USAGE, "is not a range"),
        (("read", "A" * 43, "--json"), ExitCode.USAGE, "--output"),
        (("read", "A" * 43), ExitCode.CONFIG, "no genesis file"),
        (("read", "A" * 43 + "/file", "--raw"), ExitCode.USAGE, "leave the path out"),
        (("ls", "not-an-id/file"), ExitCode.INPUT, "'not-an-id' is not a blob ID"),
        (("share", "-" + "A" * 41), ExitCode.USAGE, "No such option"),
        (("share", "A" * 42), ExitCode.INPUT, "is not a blob ID"),
        (("open", "https://example.org"), ExitCode.INPUT, "that is no link: one begins with p2pnode://get/"),
        (("open", "p2pnode://get/" + "A" * 43 + "#cut"), ExitCode.INPUT, "its key has 43 characters"),
        (("open", "p2pnode://get/" + "A" * 43, "--json"), ExitCode.USAGE, "--output"),
        (("store",), ExitCode.USAGE, "Missing argument"),
        (("store", "{tmp}/missing"), ExitCode.CONFIG, "no genesis file"),
        (("run",), ExitCode.CONFIG, "no genesis file"),
        (("init", "--listen", "foo"), ExitCode.CONFIG, "is not an address"),
        (("init", "--genesis", "{tmp}/missing"), ExitCode.INPUT, "/missing: No such file or directory"),
        (("init",), ExitCode.CONFIG, "P2PNODE_PASSPHRASE"),
        (("init", "--owner", "me"), ExitCode.INPUT, "is not a public key"),
        (("wallet", "show"), ExitCode.CONFIG, "make one with `p2pnode wallet new`, or name a --home that has one"),
        (("leave",), ExitCode.CONFIG, "no genesis file"),
        (("wallet", "new", "--passphrase-file", "{tmp}/missing"), ExitCode.INPUT, "cannot read the passphrase"),
        (("init", "--quota", -5), ExitCode.USAGE, "'-5' is not a size"),
        (("store", "{tmp}", "--max-cost", "much"), ExitCode.USAGE, "'much' is not an amount"),
        (("wallet", "send", "A" * 43, "1,5"), ExitCode.USAGE, "'1,5' is not an amount"),
        (("blob-id", "{tmp}/missing"), ExitCode.CONFIG, "--shards"),
        (("testnet", "up", "--dir", "{tmp}/net", "--liar", -1), ExitCode.USAGE, "-1 is not in the range"),
        (("testnet", "status", "--dir", "{tmp}"), ExitCode.CONFIG, "no testnet"),
        (("testnet", "up", "--dir", "{tmp}/net", "--shards", 4, "--nodes", 5), ExitCode.INPUT, "one for each node"),
    ],
)
def test_bad_input_is_named_and_has_its_exit_code(
    words: tuple[object, ...], code: ExitCode, names: str, tmp_path: Path
) -> None:
    done = p2pnode(*(str(word).format(tmp=tmp_path) for word in words), home=tmp_path / "home")
    assert (done.code, done.out) == (code, b"")
    assert names in done.err
    assert "Traceback" not in done.err


def test_init_makes_a_node_once(tmp_path: Path) -> None:
    home = tmp_path / "home"
    words = ("init", "--plain", "--json", "--listen", "/ip4/127.0.0.1/tcp/4001", "--quota", 1 << 30)
    fields = p2pnode(*words, home=home).json
    config = Home(home).load_config()
    assert (config.listen, config.quota_bytes) == (("/ip4/127.0.0.1/tcp/4001",), 1 << 30)
    assert set(fields) == {"home", "node", "owner"}
    assert p2pnode("wallet", "show", home=home).out.decode() == fields["owner"] + "\n"
    again = p2pnode("init", home=home)
    assert again.code == ExitCode.CONFIG
    assert "holds a node already" in again.err


def test_init_takes_the_public_key_of_an_owner_elsewhere(tmp_path: Path) -> None:
    owner = build_key_text(OTHER_OWNER.public)
    assert p2pnode("init", "--json", "--owner", owner, home=tmp_path / "home").json["owner"] == owner
    assert not Home(tmp_path / "home").owner_key_path.exists()


def test_a_wallet_is_sealed_with_the_passphrase_of_the_environment_or_a_file(tmp_path: Path) -> None:
    made = p2pnode("wallet", "new", "--json", home=tmp_path / "one", passphrase="open sesame").json
    shown = p2pnode("wallet", "show", "--json", home=tmp_path / "one").json
    assert shown == made == {**made, "encrypted": True}
    assert load_wallet(Path(made["path"]), lambda: "open sesame").public == parse_key(made["owner"])
    (tmp_path / "passphrase").write_text("from a file\nand nothing else", encoding="utf-8")
    p2pnode("wallet", "new", "--passphrase-file", tmp_path / "passphrase", home=tmp_path / "two", passphrase="not this")
    load_wallet(Home(tmp_path / "two").owner_key_path, lambda: "from a file")


def test_a_plain_key_is_made_only_when_asked_for(tmp_path: Path) -> None:
    refused = p2pnode("wallet", "new", home=tmp_path)
    assert (refused.code, refused.out) == (ExitCode.CONFIG, b"")
    assert "P2PNODE_PASSPHRASE" in refused.err
    assert p2pnode("wallet", "new", "--plain", "--json", home=tmp_path).json["encrypted"] is False
    again = p2pnode("wallet", "new", "--plain", home=tmp_path)
    assert again.code == ExitCode.CONFIG
    assert "never overwritten" in again.err


def test_a_terminal_is_asked_for_a_new_passphrase_twice_and_shows_neither(tmp_path: Path) -> None:
    """A real terminal: what a user types there is not echoed, and a slip of the finger makes no wallet."""
    typed, shown = converse(["open sesame", "open sesamy", "open sesame", "open sesame"], home=tmp_path)
    assert typed == 0, shown
    assert "sesam" not in shown
    assert shown.count("Repeat for confirmation") == 2
    load_wallet(Home(tmp_path).owner_key_path, lambda: "open sesame")


def converse(answers: list[str], *, home: Path) -> tuple[int, str]:
    """Run `wallet new` on a terminal, answer each question, and return its exit code and all that was shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"P2PNODE_HOME": str(home), "PYTHONPATH": str(ROOT)}
        os.environ.pop("P2PNODE_PASSPHRASE", None)
        os.execv(sys.executable, [sys.executable, "-m", "p2pnode", "wallet", "new"])
    shown = b""
    with contextlib.suppress(OSError):  # Linux says EIO when the other end is closed
        while data := os.read(terminal, 1024):
            shown += data
            if shown.endswith(b": ") and answers:
                os.write(terminal, answers.pop(0).encode() + b"\n")
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def test_storing_without_a_wallet_says_how_to_make_one(tmp_path: Path) -> None:
    Home(tmp_path).put_genesis(make_genesis())
    done = p2pnode("store", "/dev/null", home=tmp_path)
    assert done.code == ExitCode.CONFIG
    assert "make one with `p2pnode wallet new`" in done.err


def test_a_wrong_passphrase_is_found_before_the_network_is_joined(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.put_genesis(make_genesis())
    create_wallet(home.owner_key_path, "right", cost=INTERACTIVE)
    done = p2pnode("store", "/dev/null", home=tmp_path, passphrase="wrong")
    assert done.code == ExitCode.CONFIG
    assert "the passphrase does not open" in done.err


def test_a_broken_genesis_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "genesis.json").write_text('{"version": 1}', encoding="utf-8")
    done = p2pnode("status", home=tmp_path)
    assert done.code == ExitCode.CONFIG
    assert "is not a genesis file" in done.err
