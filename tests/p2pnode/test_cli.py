"""The command line without a network: help, offline IDs, bad input, exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from economics.blob import BlobId, build_blob_id_text
from p2pnode.client import output_file
from p2pnode.errors import ExitCode, InputError
from p2pnode.home import Home
from tests import reference
from tests.p2pnode.command import p2pnode


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


def test_an_output_that_is_no_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for special in (pipe, tmp_path):
        with pytest.raises(InputError), output_file(special):
            pass
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize(
    ("words", "code", "names"),
    [
        (("blob-id", "--shards", 10, "{tmp}/missing"), ExitCode.INPUT, "No such file"),
        (("blob-id", "--shards", 10, "{tmp}"), ExitCode.INPUT, "folder"),
        (("blob-id", "--shards", 3, "{tmp}/missing"), ExitCode.USAGE, "4<=x<=256"),
        (("read", "not-an-id"), ExitCode.INPUT, "is not a blob ID"),
        (("read", "A" * 43, "--range", "9-x"), ExitCode.INPUT, "is not a range"),
        (("read", "A" * 43, "--json"), ExitCode.USAGE, "--output"),
        (("read", "A" * 43), ExitCode.CONFIG, "no genesis file"),
        (("store", "{tmp}/missing"), ExitCode.CONFIG, "no genesis file"),
        (("run",), ExitCode.CONFIG, "no genesis file"),
        (("init", "--listen", "foo"), ExitCode.CONFIG, "is not an address"),
        (("init", "--quota", -5), ExitCode.USAGE, "-5 is not in the range"),
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
    fields = p2pnode("init", "--json", "--listen", "/ip4/127.0.0.1/tcp/4001", "--quota", 1 << 30, home=home).json
    config = Home(home).load_config()
    assert (config.listen, config.quota_bytes) == (("/ip4/127.0.0.1/tcp/4001",), 1 << 30)
    assert set(fields) == {"home", "node", "owner"}
    again = p2pnode("init", home=home)
    assert again.code == ExitCode.CONFIG
    assert "holds a node already" in again.err


def test_a_broken_genesis_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "genesis.json").write_text('{"version": 1}', encoding="utf-8")
    done = p2pnode("status", home=tmp_path)
    assert done.code == ExitCode.CONFIG
    assert "is not a genesis file" in done.err
