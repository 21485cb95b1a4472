"""Store, read, ls, share and open, as a user types them: what they print, what they put where, how they end."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from economics.blob import parse_blob_id
from p2pnode.content.keyring import Keyring
from p2pnode.content.quilt import QuiltFile, build_quilt
from p2pnode.content.resume import build_part_path
from p2pnode.content.sharing import Link, parse_link
from p2pnode.content.sources import BytesSource, Source
from p2pnode.errors import ExitCode
from p2pnode.home import Home
from p2pnode.testing import LocalTestnet
from tests.p2pnode.command import make_file
from tests.p2pnode.daily import Said, fields, run
from tests.p2pnode.patience import patience as patience

CERTIFIED = "it costs at most PRICE\ncertified in block N: {} bytes, 4 of 4 shards signed, 3 needed; paid PRICE, kept "
CERTIFIED += "until epoch 30 begins\n"
SEALED = "sealed: only this home can open it, so keep a backup of it; `p2pnode share ID` makes a link for others\n"


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """A command sets the level of its logs for its whole process, which here goes on."""
    loggers = [logging.getLogger(name) for name in ("p2pnode", "dht", "gossip")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def home(p2pnode_testnet: LocalTestnet) -> Path:
    return p2pnode_testnet.home


@pytest.fixture
def stranger(home: Path, tmp_path: Path) -> Path:
    """A home of the same network that knows no key and has no wallet."""
    other = Home(tmp_path / "stranger")
    other.put_genesis(Home(home).load_genesis())
    return other.path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two small files, one of them to be run, one that is a blob of its own, an empty folder and a link."""
    root = tmp_path / "folder"
    (root / "sub").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "a.txt").write_text("first\n", encoding="utf-8")
    (root / "sub" / "run").write_text("#!/bin/sh\n", encoding="utf-8")
    (root / "sub" / "run").chmod(0o755)
    make_file(root / "large", 1_500_000, seed=70)
    (root / "link").symlink_to("/etc/passwd")
    return root


def contents(root: Path) -> dict[str, bytes | None]:
    """Return all that is in a folder, by path: of a folder nothing."""
    found = sorted(path for path in root.rglob("*") if not path.is_symlink())
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in found}


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_stored_and_read_by_its_id(home: Path, tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", 5_000, seed=71)
    stored = run(home, "store", file)
    assert (stored.code, stored.plain) == (0, CERTIFIED.format(5_000))
    assert stored.out.decode() == f"{stored.last}\n"
    assert run(home, "store", file).plain.endswith(
        "the network owes these 5000 bytes already: nothing was sent; paid PRICE, kept until epoch 30 begins\n"
    )
    read = run(home, "read", stored.last)
    assert read == Said(0, file.read_bytes(), "read 5000 bytes, every one checked\n")
    assert run(home, "read", stored.last, "--range", "4990-").out == file.read_bytes()[4_990:]
    target = tmp_path / "back"
    assert fields(home, "read", stored.last, "-o", target) == {
        "blob_id": stored.last,
        "faults": [],
        "kept_bytes": 0,
        "length": 5_000,
    }
    assert target.read_bytes() == file.read_bytes()


def test_a_read_says_what_it_went_on_from(home: Path, tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", (8 << 20) + 100, seed=72)
    stored = run(home, "store", file).last
    part = build_part_path(tmp_path / "back", parse_blob_id(stored))
    part.write_bytes(file.read_bytes()[: (8 << 20) + 50])
    assert run(home, "read", stored, "-o", tmp_path / "back").err == (
        "read 8388708 bytes, every one checked; 8388608 of them were there from an earlier call\n"
    )
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert not part.exists()


def test_several_files_are_one_quilt(home: Path, tmp_path: Path) -> None:
    first, second = make_file(tmp_path / "b.bin", 300, seed=73), make_file(tmp_path / "a.bin", 20, seed=74)
    quilt = run(home, "store", first, second)
    assert (quilt.code, quilt.plain) == (0, CERTIFIED.format(350))
    listed = run(home, "ls", quilt.last)
    assert listed == Said(0, b"           20   a.bin\n          300   b.bin\n", "2 files, 320 bytes\n")
    assert run(home, "read", f"{quilt.last}/b.bin").out == first.read_bytes()
    assert run(home, "read", f"{quilt.last}/b.bin", "--range", "10-19").out == first.read_bytes()[10:20]
    rows = fields(home, "ls", quilt.last)
    assert (rows["kind"], rows["sealed"], [row["path"] for row in rows["files"]]) == (
        "quilt",
        False,
        ["a.bin", "b.bin"],
    )
    assert rows["files"][1] == {
        "executable": False,
        "length": 300,
        "patch_id": rows["files"][1]["patch_id"],
        "path": "b.bin",
        "tags": {},
    }
    raw = run(home, "read", quilt.last, "--raw").out
    assert (len(raw), raw.endswith(second.read_bytes() + first.read_bytes())) == (350, True)


def test_a_folder_may_be_one_quilt(home: Path, folder: Path) -> None:
    quilt = run(home, "store", "--quilt", folder, folder / "a.txt")
    assert f"left out: {folder}/link: it is a symbolic link\n" in quilt.err
    paths = [row["path"] for row in fields(home, "ls", quilt.last)["files"]]
    assert paths == ["a.txt", "folder/a.txt", "folder/large", "folder/sub/run"]
    assert run(home, "read", f"{quilt.last}/folder/sub/run").out == b"#!/bin/sh\n"


def test_a_quilt_is_restored_as_a_folder_too(home: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "a.txt").write_text("in a quilt\n", encoding="utf-8")
    for words in ((), ("--encrypt",)):
        quilt, target = run(home, "store", "--quilt", *words, folder).last, tmp_path / f"back{len(words)}"
        part = build_part_path(target / f".{quilt}.p2pnode-part", parse_blob_id(quilt))
        part.parent.mkdir()
        part.write_bytes(b"damaged")
        done = run(home, "read", quilt, "-o", target)
        assert done == Said(0, b"", f"{target} is restored: 3 files fetched, 1500021 bytes\n")
        assert contents(target) == {path: data for path, data in contents(folder).items() if path != "empty"}
        assert fields(home, "read", quilt, "-o", target)["kept_files"] == 3


def test_a_quilt_whose_names_lead_elsewhere_is_not_restored(home: Path, tmp_path: Path) -> None:
    for names in (("../escape", "b"), ("/absolute", "b"), ("a", "a/b")):
        files = [QuiltFile(name, BytesSource(name.encode())) for name in names]
        (tmp_path / "quilt").write_bytes(read_whole(build_quilt(files).source))
        quilt = run(home, "store", tmp_path / "quilt").last
        done = run(home, "read", quilt, "-o", tmp_path / "inner" / "back")
        assert (done.code, "read them one by one, ID/NAME" in done.err) == (ExitCode.INPUT, True)
        assert run(home, "read", f"{quilt}/{names[0]}").out == names[0].encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quilt"]


def read_whole(source: Source) -> bytes:
    return source.read(0, source.length)


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_stored_restored_and_stored_again_by_what_changed(home: Path, folder: Path, tmp_path: Path) -> None:
    stored = run(home, "store", folder)
    assert (stored.code, stored.plain) == (
        0,
        "it costs at most PRICE\n"
        f"left out: {folder}/link: it is a symbolic link\n"
        "stored 3 files, 1500016 bytes: 1500283 bytes were new, in 3 blobs; paid PRICE, kept until epoch 30 begins\n",
    )
    target = tmp_path / "back"
    restored = run(home, "read", stored.last, "-o", target)
    assert restored == Said(0, b"", f"{target} is restored: 3 files fetched, 1500016 bytes\n")
    assert contents(target) == contents(folder)
    assert (target / "sub" / "run").stat().st_mode & 0o111

    (folder / "a.txt").write_text("second\n", encoding="utf-8")
    again = fields(home, "store", folder)
    assert (again["stored_blobs"], again["files"], again["length"]) == (2, 3, 1_500_017)
    assert again["sent_bytes"] < 10_000
    assert fields(home, "read", again["blob_id"], "-o", target) == {
        "blob_id": again["blob_id"],
        "copied_files": 0,
        "faults": [],
        "fetched_bytes": 7,
        "fetched_files": 1,
        "kept_files": 2,
        "length": 1_500_017,
    }
    assert contents(target) == contents(folder)


def test_what_is_in_a_folder_is_listed_and_read_alone(home: Path, folder: Path, tmp_path: Path) -> None:
    stored = run(home, "store", folder).last
    assert run(home, "ls", stored) == Said(
        0,
        b"            6   a.txt\n            0   empty/\n      1500000   large\n           10 x sub/run\n",
        "4 files, 1500016 bytes\n",
    )
    assert run(home, "ls", f"{stored}/sub").out == b"           10 x sub/run\n"
    assert run(home, "read", f"{stored}/a.txt").out == b"first\n"
    part = build_part_path(tmp_path / "large", parse_blob_id(blob_of_large(home, folder)))
    part.write_bytes((folder / "large").read_bytes())
    assert fields(home, "read", f"{stored}/large", "-o", tmp_path / "large")["kept_bytes"] == 1_500_000
    assert (tmp_path / "large").read_bytes() == (folder / "large").read_bytes()
    run(home, "read", f"{stored}/sub/", "-o", tmp_path / "inner")
    assert contents(tmp_path / "inner") == {"run": b"#!/bin/sh\n"}


def blob_of_large(home: Path, folder: Path) -> str:
    return run(home, "blob-id", folder / "large").last


# --- sealed ----------------------------------------------------------------------------------------------------------


def test_a_sealed_file_is_read_here_and_elsewhere_by_its_link_alone(home: Path, stranger: Path, tmp_path: Path) -> None:
    file = make_file(tmp_path / "secret", 200_000, seed=75)
    stored = run(home, "store", "--encrypt", file)
    assert stored.plain == CERTIFIED.format(200_072) + SEALED
    assert run(home, "read", stored.last).out == file.read_bytes()
    assert run(home, "read", stored.last, "--range", "65530-65545").out == file.read_bytes()[65_530:65_546]
    assert len(run(home, "read", stored.last, "--raw").out) == 200_072
    refused = run(stranger, "read", stored.last)
    assert refused == Said(
        ExitCode.INPUT,
        b"",
        "error: this blob is sealed, and this home does not have its key: open the link that has it (`p2pnode open "
        "LINK`), or read it sealed with --raw\n",
    )

    shared = run(home, "share", stored.last)
    assert shared.err == "whoever has this link can read it, and it cannot be recalled: send it only to those who may\n"
    key = Keyring(Home(home)).key_of(parse_blob_id(stored.last))
    assert parse_link(shared.last).key == key is not None
    opened = run(stranger, "open", "-", "-o", tmp_path / "back", typed=f"{shared.last}\n")
    assert opened.err == "read 200000 bytes, every one checked\n"
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert run(stranger, "read", stored.last).out == file.read_bytes()


def test_a_sealed_folder_is_shared_whole(home: Path, stranger: Path, folder: Path, tmp_path: Path) -> None:
    stored = run(home, "store", "--encrypt", folder)
    assert stored.plain.endswith(SEALED)
    link = fields(home, "share", stored.last)
    assert link["sealed"] is True
    assert run(stranger, "open", link["link"], "-o", tmp_path / "back").code == 0
    assert contents(tmp_path / "back") == contents(folder)
    inner = run(home, "share", f"{stored.last}/sub/run")
    assert inner.err.splitlines()[1:] == [
        "its key opens everything in the blob, not this file alone: store the file by itself to share less"
    ]
    assert run(stranger, "open", inner.last).out == b"#!/bin/sh\n"


def test_a_folder_that_is_sealed_once_and_once_not_shares_nothing_with_itself(home: Path, folder: Path) -> None:
    make_file(folder / "large", 1_200_000, seed=80)
    (folder / "a.txt").write_text("once and once\n", encoding="utf-8")
    assert fields(home, "store", folder)["stored_blobs"] == 3
    assert fields(home, "store", "--encrypt", folder)["stored_blobs"] == 3
    (folder / "a.txt").write_text("third\n", encoding="utf-8")
    assert fields(home, "store", folder)["stored_blobs"] == 2


def test_a_wrong_key_opens_nothing_and_is_not_kept(home: Path, stranger: Path, tmp_path: Path) -> None:
    stored = run(home, "store", "--encrypt", make_file(tmp_path / "secret", 1_000, seed=76)).last
    link = run(home, "share", stored).last
    wrong = link[:-2] + ("AA" if link[-2:] != "AA" else "BA")
    done = run(stranger, "open", wrong, "-o", tmp_path / "back")
    assert (done.code, done.out) == (ExitCode.INPUT, b"")
    assert done.err == "error: frame 0 of the sealed blob does not open: it is another blob's key, or damaged\n"
    assert list(tmp_path.glob("*back*")) == []
    assert Keyring(Home(stranger)).key_of(parse_blob_id(stored)) is None


def test_a_key_to_what_is_not_sealed_is_not_kept(home: Path, stranger: Path, tmp_path: Path) -> None:
    """A link can name a key for any blob: `share` would pass it on, and call the blob sealed."""
    stored = run(home, "store", make_file(tmp_path / "file", 300, seed=79)).last
    link = Link(parse_blob_id(stored), key=bytes(32)).build()
    assert run(stranger, "open", link, "-o", tmp_path / "back").code == 0
    assert Keyring(Home(stranger)).key_of(parse_blob_id(stored)) is None


def test_sharing_what_is_not_sealed_says_so(home: Path) -> None:
    shared = run(home, "share", f"{'A' * 43}/a b")
    assert shared == Said(
        0,
        f"p2pnode://get/{'A' * 43}/a%20b\n".encode(),
        "this home has no key for it: whoever has this link, or learns the ID, can read it, unless it was sealed "
        "elsewhere; then this link does not open it\n",
    )


# --- what cannot be --------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_says_what_to_do(home: Path, folder: Path, tmp_path: Path) -> None:
    stored, file = run(home, "store", folder).last, make_file(tmp_path / "file", 10, seed=77)
    other = make_file(tmp_path / "other", 11, seed=78)
    single, quilt = run(home, "store", file).last, run(home, "store", file, other).last
    whole = (
        "this is a folder of 3 files: `p2pnode ls ID` shows what is in it, `p2pnode read ID/PATH` reads one, `-o DIR` "
        "restores all of it into DIR"
    )
    for words, message in (
        ((stored,), whole),
        ((stored, "-o", tmp_path / "new", "--range", "0-3"), whole),
        ((stored, "-o", file), f"{file} is a file, and this is a folder: name a directory for it"),
        ((f"{stored}/none",), "the folder has no file 'none': `p2pnode ls` shows what it has"),
        ((f"{stored}/a.txt", "-o", folder), f"{folder} is a folder: name a file in it"),
        ((single, "-o", folder), f"{folder} is a folder: name a file in it"),
        ((f"{single}/a",), "this blob is one file, neither a quilt nor a folder: read it without a path"),
        ((single, "--range", "10-"), "no such range: there are 10 bytes, counted from 0"),
        ((f"{quilt}/none",), "the quilt has no file 'none': `p2pnode ls` shows what it has"),
        (
            (quilt,),
            "this is a quilt of 2 files: `p2pnode ls ID` shows what is in it, `p2pnode read ID/PATH` reads one, `-o "
            "DIR` restores all of it into DIR",
        ),
    ):
        assert run(home, "read", *words) == Said(ExitCode.INPUT, b"", f"error: {message}\n")
    assert file.stat().st_size == 10
    assert not (tmp_path / "new").exists()
    assert run(home, "ls", single) == Said(
        ExitCode.INPUT, b"", "error: this blob is one file, neither a quilt nor a folder: read it without a path\n"
    )
    assert run(home, "ls", f"{stored}/none").err == (
        "error: there is no 'none' in it: `p2pnode ls ID` shows what there is\n"
    )


def test_what_cannot_be_stored_says_what_to_do(home: Path, folder: Path, tmp_path: Path) -> None:
    one = make_file(tmp_path / "a.txt", 10, seed=79)
    for words, message in (
        ((one, folder), f"{folder} is a folder: store it by itself, or all of its files in one blob with --quilt"),
        (
            (one, folder / "a.txt"),
            "2 of the files are called 'a.txt': a quilt tells them apart by name, rename them",
        ),
        ((one, tmp_path / "none"), f"cannot read {tmp_path}/none: No such file or directory"),
    ):
        assert run(home, "store", *words) == Said(ExitCode.INPUT, b"", f"error: {message}\n")
    costly = run(home, "store", "--max-cost", "1frost", folder)
    assert (costly.code, costly.out) == (ExitCode.UNPAID, b"")
    assert "and --max-cost says" in costly.err


def test_a_link_that_names_peers_says_how_to_ask_them(home: Path) -> None:
    peer = "A" * 43 + "@" + "%2Fip4%2F127.0.0.1%2Ftcp%2F1"
    failed = run(home, "open", f"p2pnode://get/{'A' * 43}?peer={peer}")
    assert (failed.code, failed.out) == (ExitCode.UNAVAILABLE, b"")
    assert failed.err == (
        "the link names peers, who may have it where the network does not: `p2pnode get LINK -o FILE` asks them, "
        "`p2pnode sync DIR LINK` for a folder\n"
        "error: 4 of 4 nodes answered, and none has the blob: check the ID\n"
    )
