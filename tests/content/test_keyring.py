"""Keys of sealed blobs: one secret a home, one key for one sequence of bytes, and files that only their owner reads."""

import json
import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest
import trio
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from economics.blob import BlobId, build_blob_id_text
from economics.geometry import BLOB_BYTES_MAX, Code
from p2pnode.clients.upload import Stored
from p2pnode.coding.encoder import open_encoder
from p2pnode.content.keyring import UNIT_BYTES, Keyring, derive_key, pin
from p2pnode.content.sealed import FRAME_BYTES, SealedSource, sealed_length
from p2pnode.content.sources import BytesSource, FileSource, compute_blob_id
from p2pnode.errors import ConfigError, InputError
from p2pnode.home import Home
from p2pnode.keys import keep_secret
from tests import reference
from tests.clients.test_upload import open_run
from tests.small import OWNER, encode_blob, make_codec

SECRET = bytes([9]) * 32
BLOB = BlobId(bytes(range(32)))
KEY = bytes([7]) * 32


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def keyring(home: Home) -> Keyring:
    return Keyring(home)


def write_secret(home: Home, text: str) -> None:
    home.seal_secret_path.parent.mkdir(parents=True, mode=0o700)
    home.seal_secret_path.write_text(text)
    home.seal_secret_path.chmod(0o600)


# --- the secret --------------------------------------------------------------------------------------------------


def test_a_secret_is_made_at_first_use_and_kept_from_others(home: Home, keyring: Keyring) -> None:
    old = os.umask(0)
    try:
        first = keyring.seal(BytesSource(b"bytes"))
    finally:
        os.umask(old)
    path = home.seal_secret_path
    secret = bytes.fromhex(path.read_text())
    assert (len(secret), path.stat().st_mode & 0o777) == (32, 0o600)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(path.parent) == ["seal.secret"]
    assert first.key == derive_key(secret, blake3(b"bytes").digest())
    assert Keyring(home).seal(BytesSource(b"bytes")).key == first.key
    assert bytes.fromhex(path.read_text()) == secret


def test_a_secret_is_durable_before_it_is_used(home: Home, keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def record(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    keyring.seal(BytesSource(b""))
    assert [name.partition(".")[0] for name in synced] == ["seal", "keys"]
    synced.clear()
    keyring.remember(BLOB, KEY)
    assert [name[:6] for name in synced] == ["keys", build_blob_id_text(BLOB)[:6], "sealed"]


def test_two_that_make_a_secret_at_once_end_with_the_same_one(
    home: Home, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Barrier(2)

    def meet(path: Path, data: bytes) -> None:
        both.wait(timeout=120)  # neither has a file yet
        keep_secret(path, data)

    monkeypatch.setattr("p2pnode.content.keyring.keep_secret", meet)
    with ThreadPoolExecutor(2) as pool:
        keys = {source.key for source in pool.map(keyring.seal, [BytesSource(b"one"), BytesSource(b"one")])}
    assert keys == {derive_key(bytes.fromhex(home.seal_secret_path.read_text()), blake3(b"one").digest())}
    assert os.listdir(home.seal_secret_path.parent) == ["seal.secret"]


SEAL_IN_A_PROCESS = """
import sys
from pathlib import Path
from p2pnode.home import Home
from p2pnode.content.keyring import Keyring
from p2pnode.content.sources import BytesSource
sys.stdin.read()
print(Keyring(Home(Path(sys.argv[1]))).seal(BytesSource(b"one")).key.hex())
"""


def test_two_processes_at_once_end_with_one_secret(home: Home) -> None:
    command = [sys.executable, "-c", SEAL_IN_A_PROCESS, str(home.path)]
    runs = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for run in runs:
        assert run.stdin is not None
        run.stdin.close()  # all of them go on only now
    keys = set()
    for run in runs:
        assert run.stdout is not None
        keys.add(run.stdout.read().strip())
        assert run.wait() == 0
    assert keys == {derive_key(bytes.fromhex(home.seal_secret_path.read_text()), blake3(b"one").digest()).hex()}


@pytest.mark.parametrize("text", ["", "00" * 31, "00" * 33, "zz" * 32, "AB" * 32, "00 " * 32])
def test_a_damaged_secret_is_named_and_never_replaced(home: Home, keyring: Keyring, text: str) -> None:
    write_secret(home, text)
    with pytest.raises(ConfigError, match=r"keys/seal\.secret is not a key file, 64 hex digits"):
        keyring.seal(BytesSource(b"bytes"))
    assert home.seal_secret_path.read_text() == text


def test_a_secret_that_others_may_read_is_refused(home: Home, keyring: Keyring) -> None:
    write_secret(home, SECRET.hex())
    home.seal_secret_path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"seal\.secret can be read by others: chmod 600 it"):
        keyring.seal(BytesSource(b"bytes"))


def test_a_home_that_cannot_be_written_is_named(home: Home, keyring: Keyring) -> None:
    home.path.write_bytes(b"a file")
    with pytest.raises(ConfigError, match=r"cannot keep the key in .*seal\.secret: Not a directory"):
        keyring.seal(BytesSource(b"bytes"))
    with pytest.raises(ConfigError, match=r"cannot keep the key in .*sealed/.*: (Not a directory|File exists)"):
        keyring.remember(BLOB, KEY)


# --- one key for one sequence of bytes ---------------------------------------------------------------------------


def test_keys_are_the_frozen_ones(home: Home, keyring: Keyring) -> None:
    write_secret(home, SECRET.hex())
    for vector in json.loads((reference.VECTORS / "sealed.json").read_text())["blobs"]:
        assert keyring.seal(BytesSource(reference.content(vector["length"]))).key.hex() == vector["key"]


@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(min_size=32, max_size=32))
def test_two_plaintexts_never_share_a_key_and_two_homes_never_do(one: bytes, other: bytes, secret: bytes) -> None:
    first = derive_key(SECRET, pin(BytesSource(one))[0])
    assert (first == derive_key(SECRET, pin(BytesSource(other))[0])) == (one == other)
    assert (first == derive_key(secret, pin(BytesSource(one))[0])) == (secret == SECRET)


def test_bytes_that_differ_anywhere_or_are_cut_anywhere_have_another_key(home: Home, keyring: Keyring) -> None:
    plain = reference.content(UNIT_BYTES + 10)
    keys = [keyring.seal(BytesSource(plain)).key]
    for at in (0, FRAME_BYTES, UNIT_BYTES - 1, UNIT_BYTES, UNIT_BYTES + 9):
        changed = plain[:at] + bytes((plain[at] ^ 1,)) + plain[at + 1 :]
        keys.append(keyring.seal(BytesSource(changed)).key)
        keys.append(keyring.seal(BytesSource(plain[:at])).key)
    assert len(set(keys)) == len(keys)


def test_the_same_file_stored_again_from_one_home_is_the_same_blob(tmp_path: Path, home: Home) -> None:
    """So an interrupted upload finds what it sent before; from another home it is another blob."""
    code = Code(4, 300_000)
    plain = reference.content(1_000_000)
    ids = []
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(plain)
        source = Keyring(Home(home.path)).seal(FileSource.open(tmp_path / name))
        ids.append(compute_blob_id(source, code))
    assert ids[0] == ids[1]
    other = Keyring(Home(tmp_path / "other")).seal(FileSource.open(tmp_path / "a"))
    assert compute_blob_id(other, code) not in ids
    assert compute_blob_id(FileSource.open(tmp_path / "a"), code) not in ids


async def test_an_upload_that_was_cut_short_goes_on_from_where_it_was(tmp_path: Path, home: Home) -> None:
    """The same call in another process: what members have of the sealed blob they are not sent again."""
    path = tmp_path / "film"
    path.write_bytes(reference.content(8_000))

    async with open_run(tmp_path) as run:

        async def store() -> Stored:
            source = Keyring(Home(home.path)).seal(FileSource.open(path))
            async with open_encoder(make_codec(run.genesis), length=source.length) as encoder:
                return await run.make_uploader(encoder, OWNER).run(source, partial(run.agree, OWNER))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store)
            await run.until(lambda now: now.stored >= 3)
            nursery.cancel_scope.cancel()
        stored = await store()
        again = await store()
    blob = SealedSource(BytesSource(reference.content(8_000)), Keyring(home).seal(FileSource.open(path)).key)
    assert stored.blob_id == again.blob_id == encode_blob(run.genesis.code, blob.read(0, blob.length)).header.blob_id
    assert stored.present_segments >= 3 * 3
    assert (again.sent_bytes, again.present_segments) == (0, 9 * 4)


@pytest.mark.parametrize("at", [0, UNIT_BYTES - 1, UNIT_BYTES, 2 * UNIT_BYTES + 99])
def test_a_file_that_changed_after_it_was_hashed_is_not_sealed_with_that_key(
    tmp_path: Path, keyring: Keyring, at: int
) -> None:
    """Its frames would be a second plaintext under one key and nonce, and the two could be told from each other."""
    plain, path = reference.content(2 * UNIT_BYTES + 100), tmp_path / "file"
    path.write_bytes(plain)
    before = path.stat()
    source = keyring.seal(FileSource.open(path))
    whole = source.read(0, source.length)
    path.write_bytes(plain[:at] + bytes((plain[at] ^ 1,)) + plain[at + 1 :])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    unit = at // UNIT_BYTES
    for index in range(3):
        start = 8 + sealed_length(UNIT_BYTES) * index - 8 * index
        stop = min(start + sealed_length(UNIT_BYTES) - 8, source.length)
        if index == unit:
            with pytest.raises(InputError, match=f"{path} changed while it was stored: store it again"):
                source.read(start, start + 1)
        else:
            assert source.read(start, stop) == whole[start:stop]
    assert keyring.seal(FileSource.open(path)).key != source.key


@dataclass(frozen=True)
class Zeros:
    length: int
    name: str = "zeros"

    def read(self, start: int, stop: int) -> bytes:
        return bytes(stop - start)


def test_a_large_source_is_hashed_and_sealed_in_bounded_memory(keyring: Keyring) -> None:
    tracemalloc.start()
    try:
        source = keyring.seal(Zeros(256 << 20))
        hashed = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        source.read(100 << 20, 108 << 20)
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert hashed < 6 * UNIT_BYTES
    assert read < (2 * 8 << 20) + 8 * UNIT_BYTES


def test_what_is_too_large_once_it_is_sealed_is_refused_before_it_is_read(keyring: Keyring) -> None:
    with pytest.raises(InputError, match=r"zeros, sealed, has \d+ bytes; a blob has at most"):
        keyring.seal(Zeros(BLOB_BYTES_MAX))


# --- keys that are kept ------------------------------------------------------------------------------------------


def test_a_key_is_kept_for_its_owner_alone(home: Home, keyring: Keyring) -> None:
    assert keyring.key_of(BLOB) is None
    old = os.umask(0)
    try:
        keyring.remember(BLOB, KEY)
        keyring.remember(BLOB, KEY)
    finally:
        os.umask(old)
    path = home.path / "keys" / "sealed" / build_blob_id_text(BLOB)
    assert (path.read_text(), path.stat().st_mode & 0o777) == (f"{KEY.hex()}\n", 0o600)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(path.parent) == [build_blob_id_text(BLOB)]
    assert Keyring(home).key_of(BLOB) == KEY
    assert keyring.key_of(BlobId(bytes(32))) is None


@pytest.mark.parametrize("data", [b"", b"00" * 31, b"x" * 64, "é".encode() * 32, b"00" * 33])
def test_a_damaged_key_file_is_named_and_a_right_key_takes_its_place(home: Home, keyring: Keyring, data: bytes) -> None:
    keyring.remember(BLOB, bytes(32))
    path = home.sealed_key_path(BLOB)
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=str(path)):
        keyring.key_of(BLOB)
    keyring.remember(BLOB, KEY)
    assert keyring.key_of(BLOB) == KEY
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others"):
        keyring.key_of(BLOB)
    with pytest.raises(InputError, match="has 32 bytes, this one has 5"):
        keyring.remember(BLOB, b"short")


def test_many_at_once_keep_one_whole_key(keyring: Keyring) -> None:
    keys = [bytes([number]) * 32 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: keyring.remember(BLOB, key), keys * 5))
    assert keyring.key_of(BLOB) in keys
    assert os.listdir(keyring.home.sealed_keys_path) == [build_blob_id_text(BLOB)]
