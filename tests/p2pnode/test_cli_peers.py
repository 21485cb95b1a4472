"""serve, get and sync as a user types them, each in a process and a home of its own, without any network."""

import json
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from economics.genesis import build_key_text
from p2pnode.errors import ExitCode
from p2pnode.home import Home
from p2pnode.keys import load_key
from tests.p2pnode.command import WAIT_S, lies, make_file, p2pnode, start, wait_for
from tests.peering.test_mirror import FILES, make_folder, read_folder

LISTEN = ("--listen", "/ip4/127.0.0.1/tcp/0")


class Serving:
    """A `p2pnode serve` that is up, and what it said."""

    def __init__(self, directory: Path, *words: object) -> None:
        self.log = directory / "serve.log"
        with self.log.open("wb") as log:
            self.process = start("serve", *words, "--json", *LISTEN, home=directory / "server", log=log)
        assert self.process.stdout is not None
        self.said: Any = json.loads(self.process.stdout.readline() or b"null")
        assert self.said is not None, self.log.read_text()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(WAIT_S)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    file = make_file(tmp_path / "file", (17 << 20) + 3)
    folder = make_folder(tmp_path / "folder", FILES)
    opened = Serving(tmp_path, file, folder)
    yield opened
    opened.process.kill()
    opened.process.communicate()


def test_what_serve_prints_is_what_to_type_elsewhere(serving: Serving, tmp_path: Path) -> None:
    file, folder = serving.said["blobs"]
    assert (file["kind"], file["length"], folder["kind"]) == ("file", (17 << 20) + 3, "folder")
    for blob, name in ((file, "file"), (folder, "folder")):
        program, *words = shlex.split(blob["command"])
        words = [str(tmp_path / "reader" / name) if word == name else word for word in words]
        assert program == "p2pnode"
        (tmp_path / "reader").mkdir(exist_ok=True)
        done = p2pnode(*words, "--json", home=tmp_path / "home")
        assert done.code == ExitCode.OK, done.err
        assert lies(done.json["faults"]) == []
        assert list(done.json["from"]) == [serving.said["peers"][0].partition("@")[0]]
    assert (tmp_path / "reader" / "file").read_bytes() == (tmp_path / "file").read_bytes()
    assert read_folder(tmp_path / "reader" / "folder") == FILES

    (tmp_path / "reader" / "folder" / "a").write_bytes(b"changed")
    again = p2pnode("sync", tmp_path / "reader" / "folder", "--json", home=tmp_path / "home")
    assert (again.json["fetched"], again.json["kept"]) == (1, 3), again.err
    assert read_folder(tmp_path / "reader" / "folder") == FILES

    key, address = serving.said["peers"][0].split("@")
    named = p2pnode("get", f"{folder['blob_id']}/in/c", "--peer", f"{key}@{address}", home=tmp_path / "home")
    assert (named.code, named.out) == (ExitCode.OK, FILES["in/c"])

    assert serving.stop() == ExitCode.OK
    assert "served " in serving.log.read_text()


def test_a_get_that_is_killed_goes_on(serving: Serving, tmp_path: Path) -> None:
    link = serving.said["blobs"][0]["link"]
    process = start("get", link, "-o", tmp_path / "back", home=tmp_path / "home")

    def has_a_segment() -> bool:
        return process.poll() is not None or any(
            part.stat().st_size >= 8 << 20 for part in tmp_path.glob(".back.*.part")
        )

    wait_for(has_a_segment, pause_s=0.001)
    process.kill()
    process.communicate()
    done = p2pnode("get", link, "-o", tmp_path / "back", "--json", home=tmp_path / "home")
    assert done.code == ExitCode.OK, done.err
    assert done.json["kept_bytes"] >= 8 << 20
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()


def test_a_reader_that_keeps_serving_is_a_provider(serving: Serving, tmp_path: Path) -> None:
    link = serving.said["blobs"][1]["link"]
    with (tmp_path / "log").open("wb") as log:
        keeper = start(
            "sync", tmp_path / "one", link, "--json", "--keep-serving", *LISTEN, home=tmp_path / "keeper", log=log
        )
    try:
        assert keeper.stdout is not None
        assert json.loads(keeper.stdout.readline())["fetched"] == 4
        wait_for(lambda: b"serving at " in (tmp_path / "log").read_bytes())
        address = (tmp_path / "log").read_text().split("serving at ")[1].split()[0]
        assert serving.stop() == ExitCode.OK
        key = key_text(tmp_path / "keeper")
        blob_id = serving.said["blobs"][1]["blob_id"]
        done = p2pnode("sync", tmp_path / "two", blob_id, "--peer", f"{key}@{address}", home=tmp_path / "third")
        assert done.code == ExitCode.OK, done.err
        assert read_folder(tmp_path / "two") == FILES
        keeper.send_signal(signal.SIGTERM)
        assert keeper.wait(WAIT_S) == ExitCode.OK
    finally:
        keeper.kill()
        keeper.communicate()


def key_text(home: Path) -> str:
    return build_key_text(load_key(Home(home).peer_key_path).public)


def test_an_encrypted_file_opens_with_its_link_alone(tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", 100_000)
    serving = Serving(tmp_path, file, "--encrypt")
    try:
        (blob,) = serving.said["blobs"]
        assert blob["sealed"]
        opened = p2pnode("get", blob["link"], home=tmp_path / "reader")
        front, _, key = blob["link"].partition("#")
        assert key
        sealed = p2pnode("get", front, home=tmp_path / "other")
    finally:
        serving.process.kill()
        serving.process.communicate()
    assert opened.out == file.read_bytes()
    assert sealed.out.startswith(b"p2px")
    assert "no key" in sealed.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("get", "A" * 43), ExitCode.UNAVAILABLE, "name a --peer"),
        (("get", "A" * 42), ExitCode.INPUT, "not a blob ID"),
        (("get", "p2pnode://get/xyz"), ExitCode.INPUT, "cut or changed"),
        (("get", "A" * 43, "--peer", "somebody"), ExitCode.INPUT, "a peer is <node key>@<address>"),
        (("get", "A" * 43, "--json"), ExitCode.USAGE, "--json needs --output"),
        (("get", "A" * 43, "--listen", "/ip4/127.0.0.1/tcp/0"), ExitCode.USAGE, "add --keep-serving"),
        (("sync", "folder"), ExitCode.INPUT, "not synchronised from this home yet"),
        (("serve", "missing"), ExitCode.INPUT, "there is no missing"),
        (("serve", "/dev/null", "--listen", "nowhere"), ExitCode.INPUT, "is not an address"),
        (("serve", "/dev/null", "--store"), ExitCode.CONFIG, "no genesis file"),
    ],
)
def test_bad_input_is_named(words: tuple[str, ...], code: ExitCode, said: str, tmp_path: Path) -> None:
    done = p2pnode(*words, home=tmp_path)
    assert (done.code, done.out) == (code, b""), done.err
    assert said in done.err
    assert done.err.count("\n") <= 4, "one line, and usage where that is what is wrong"
