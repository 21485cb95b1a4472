"""A library serves what its files are, for as long as they are that."""

import os
from pathlib import Path
from random import Random

import pytest

from economics.blob import BlobId, build_blob_id_text
from economics.geometry import Code
from p2pnode.coding.codec import Codec
from p2pnode.content.folders import plan
from p2pnode.content.keyring import Keyring
from p2pnode.content.scan import scan
from p2pnode.content.sealed import SealedSource
from p2pnode.content.sources import BytesSource, FileSource, JoinedSource, Source, compute_header
from p2pnode.errors import InputError
from p2pnode.home import Home
from p2pnode.peering.library import Library
from tests.small import KERNEL

CODE = Code(7, 1_000)
CODEC = Codec(CODE, KERNEL)


def write(path: Path, size: int, seed: int = 1) -> Path:
    path.write_bytes(Random(seed).randbytes(size))
    return path


def read(library: Library, blob_id: BlobId) -> bytes | None:
    """Return all that a library has of a blob; None if a segment is not there."""
    header = library.header(blob_id)
    if header is None:
        return None
    parts = [library.segment(blob_id, index) for index in range(len(header.roots))]
    return None if None in parts else b"".join(part for part in parts if part is not None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "file", 5_432)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "library")


def test_a_file_is_served_as_the_blob_that_it_is(library: Library, file: Path) -> None:
    header = library.share(FileSource.open(file), CODEC)
    assert header == compute_header(FileSource.open(file), CODEC)
    assert library.header(header.blob_id) == header
    assert read(library, header.blob_id) == file.read_bytes()
    assert library.blob_ids() == [header.blob_id]


def test_what_one_process_adds_another_serves(tmp_path: Path, library: Library, file: Path) -> None:
    later = Library(tmp_path / "library")
    assert later.blob_ids() == []
    header = compute_header(FileSource.open(file), CODEC)
    library.add(header, FileSource.open(file))
    assert read(later, header.blob_id) == file.read_bytes()


def test_what_another_peer_named_is_kept_only_if_it_is_that(library: Library, file: Path, tmp_path: Path) -> None:
    header = compute_header(FileSource.open(file), CODEC)
    with pytest.raises(InputError, match="other bytes"):
        library.add(header, FileSource.open(write(tmp_path / "other", 5_432, seed=2)))
    assert library.blob_ids() == []


@pytest.mark.parametrize("size", [0, 1, 1_000, 1_001])
def test_a_joined_source_of_files_and_bytes_is_served(tmp_path: Path, library: Library, size: int) -> None:
    files = [write(tmp_path / name, size, seed) for seed, name in enumerate("ab")]
    joined = JoinedSource([BytesSource(b"index"), *map(FileSource.open, files)], "quilt")
    header = library.share(joined, CODEC)
    assert read(Library(library.path), header.blob_id) == b"index" + b"".join(one.read_bytes() for one in files)


def test_what_a_folder_is_planned_to_be_is_served_until_a_file_of_it_changes(library: Library, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for seed, name in enumerate("ab"):
        write(folder / name, 500, seed)
    write(folder / "large", (1 << 20) + 1)
    sources = plan(scan(folder), None, sealer=None).sources
    codec = Codec(Code(7, 1 << 20), KERNEL)
    ids = [library.share(source, codec).blob_id for source in sources]
    assert [read(library, blob_id) for blob_id in ids] == [source.read(0, source.length) for source in sources]
    write(folder / "b", 500, 9)
    large = next(id_ for id_, source in zip(ids, sources, strict=True) if source.length == (1 << 20) + 1)
    library.drop_changed()
    assert library.blob_ids() == [large]


def test_an_empty_file_is_served(library: Library, tmp_path: Path) -> None:
    header = library.share(FileSource.open(write(tmp_path / "empty", 0)), CODEC)
    assert read(library, header.blob_id) == b""


class TestAChangedFile:
    def change(self, path: Path, how: str) -> None:
        data = bytearray(path.read_bytes())
        before = path.stat().st_mtime_ns
        match how:
            case "other bytes":
                data[0] ^= 1
            case "longer":
                data += b"x"
            case _:
                data = data[:-1]
        path.write_bytes(data)
        os.utime(path, ns=(before, before + (how == "other bytes")))

    @pytest.mark.parametrize("how", ["other bytes", "longer", "shorter"])
    def test_drops_its_blob_when_it_is_read(self, library: Library, file: Path, how: str) -> None:
        blob_id = library.share(FileSource.open(file), CODEC).blob_id
        assert library.segment(blob_id, 0) is not None
        self.change(file, how)
        assert library.segment(blob_id, 0) is None
        assert library.header(blob_id) is None
        assert os.listdir(library.path) == []

    @pytest.mark.parametrize("how", ["other bytes", "longer", "shorter"])
    def test_drops_its_blob_when_it_is_looked_at(self, library: Library, file: Path, how: str) -> None:
        library.share(FileSource.open(file), CODEC)
        self.change(file, how)
        library.drop_changed()
        assert library.blob_ids() == []

    def test_that_is_another_file_by_the_same_name_drops_it(self, library: Library, file: Path) -> None:
        blob_id = library.share(FileSource.open(file), CODEC).blob_id
        times = file.stat()
        fresh = write(file.with_name("fresh"), 5_432, seed=2)
        os.utime(fresh, ns=(times.st_atime_ns, times.st_mtime_ns))
        fresh.replace(file)
        assert read(library, blob_id) is None

    def test_while_it_is_shared_is_refused(self, library: Library, file: Path) -> None:
        class Writing(FileSource):
            def read(self, start: int, stop: int) -> bytes:
                data = FileSource(self.path, self.length).read(start, stop)
                os.utime(self.path, ns=(1, 1))
                return data

        with pytest.raises(InputError, match="changed while it was read"):
            library.share(Writing(file, file.stat().st_size), CODEC)
        assert library.blob_ids() == []


def test_a_file_that_is_away_hides_its_blob_until_it_is_back(library: Library, file: Path) -> None:
    blob_id = library.share(FileSource.open(file), CODEC).blob_id
    away = file.rename(file.with_name("away"))
    assert library.segment(blob_id, 0) is None
    library.drop_changed()
    assert library.blob_ids() == [blob_id]
    away.rename(file)
    assert read(library, blob_id) == file.read_bytes()


@pytest.mark.parametrize("damage", [b"", b"\x00", b"\xa0", bytes(100), b"cut"])
def test_a_damaged_recipe_is_dropped(library: Library, file: Path, damage: bytes) -> None:
    blob_id = library.share(FileSource.open(file), CODEC).blob_id
    path = library.path / build_blob_id_text(blob_id)
    path.write_bytes(path.read_bytes()[:-1] if damage == b"cut" else damage)
    assert Library(library.path).header(blob_id) is None
    assert not path.exists()


class TestASealedBlob:
    @pytest.fixture
    def keyring(self, tmp_path: Path) -> Keyring:
        return Keyring(Home(tmp_path / "home"))

    def share(self, library: Library, keyring: Keyring, source: Source) -> BlobId:
        sealed = keyring.seal(source)
        header = library.share(sealed, CODEC)
        keyring.remember(header.blob_id, sealed.key)
        return header.blob_id

    def test_is_sealed_again_for_its_readers(self, tmp_path: Path, keyring: Keyring, file: Path) -> None:
        library = Library(tmp_path / "library", key_of=keyring.key_of)
        blob_id = self.share(library, keyring, FileSource.open(file))
        sealed = keyring.seal(FileSource.open(file))
        assert read(library, blob_id) == sealed.read(0, sealed.length)

    def test_of_a_file_that_has_other_bytes_is_never_sealed(self, tmp_path: Path, keyring: Keyring, file: Path) -> None:
        """Not even where the file looks as before: two texts under one key would give both away."""
        library = Library(tmp_path / "library", key_of=keyring.key_of)
        blob_id = self.share(library, keyring, FileSource.open(file))
        times, data = file.stat(), bytearray(file.read_bytes())
        data[3] ^= 1
        file.write_bytes(data)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert library.header(blob_id) is not None
        assert library.segment(blob_id, 0) is None

    def test_without_its_key_is_not_here(self, library: Library, keyring: Keyring, file: Path) -> None:
        assert library.header(self.share(library, keyring, FileSource.open(file))) is None

    def test_that_came_from_another_home_is_held_to_what_came(
        self, tmp_path: Path, keyring: Keyring, file: Path
    ) -> None:
        sealed = keyring.seal(FileSource.open(file))
        header = compute_header(sealed, CODEC)
        library = Library(tmp_path / "library", key_of=lambda blob_id: sealed.key)
        library.add(header, SealedSource(FileSource.open(file), sealed.key))
        assert read(library, header.blob_id) == sealed.read(0, sealed.length)
        with pytest.raises(InputError, match="other bytes"):
            library.add(header, SealedSource(FileSource.open(write(tmp_path / "other", 5_432, seed=3)), sealed.key))
