"""A home is made whole or can be made again; its files are read back, and one that is off is refused by name."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from economics.blob import BlobId, build_blob_id_text
from economics.crypto import OwnerId
from p2pnode.clients.trust import Trust
from p2pnode.content.keyring import Keyring
from p2pnode.errors import ConfigError, NodeError
from p2pnode.home import GENESIS_BYTES_MAX, Config, Home, parse_config
from p2pnode.keys import Key
from p2pnode.peering.library import Library
from p2pnode.peering.mirror import mirror_path, recall_mirror
from p2pnode.slivers.admission import UploadLimits
from p2pnode.wallet import INTERACTIVE, create_wallet
from tests.small import OTHER_OWNER, make_genesis

STRANGER = OwnerId(OTHER_OWNER.public)
OTHER = Config(
    listen=("/ip4/127.0.0.1/tcp/1", '/dns/"odd"\\/tcp/2'),
    quota_bytes=1,
    spot_check_s=0,
    unclosed_peer_bytes_max=2,
    unclosed_bytes_max=3,
)


class TestConfig:
    @pytest.mark.parametrize("config", [Config(), OTHER, Config(quota_bytes=7)])
    def test_is_read_back(self, config: Config) -> None:
        assert parse_config(config.to_toml()) == config

    def test_shows_defaults_as_comments(self) -> None:
        lines = Config(quota_bytes=7).to_toml().splitlines()
        assert [line for line in lines if not line.startswith("# ")] == ["quota_bytes = 7"]
        assert len(lines) == 10

    def test_names_peers_to_start_from(self) -> None:
        peer = "A" * 43 + "@/ip4/203.0.113.5/tcp/4001"
        assert Config(bootstrap=(peer,)).bootstrap_peers == [(bytes(32), ("/ip4/203.0.113.5/tcp/4001",))]

    def test_holds_the_upload_limits(self) -> None:
        assert OTHER.upload_limits == UploadLimits(unclosed_peer_bytes_max=2, unclosed_bytes_max=3)
        assert Config().upload_limits == UploadLimits()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("quota_bytes = ", "not TOML"),
            ("quota_bytes = " + "9" * 10_000, "not TOML"),
            ("listen = " + "[" * 10_000, "not TOML"),
            ("free_bytes_max = 1", "no setting is called free_bytes_max"),
            ("quota = 1", "no setting is called quota; there are listen, announce, bootstrap, quota_bytes"),
            ("quota_bytes = -1", "quota_bytes is a whole number, not negative"),
            ("quota_bytes = 1.5", "quota_bytes is a whole number"),
            ('quota_bytes = "1"', "quota_bytes is a whole number"),
            ("quota_bytes = true", "quota_bytes is a whole number"),
            ("unclosed_bytes_max = []", "unclosed_bytes_max is a whole number"),
            ('listen = "/ip4/0.0.0.0/tcp/1"', "listen is a list of texts"),
            ("listen = []", "listen names at least one address"),
            ('listen = ["localhost:4001"]', "is not an address: write it as"),
            ("announce = [1]", "announce is a list of texts"),
            ('bootstrap = ["/ip4/127.0.0.1/tcp/1"]', "is not <node key>@<address>"),
            ('bootstrap = ["KEY@tcp"]'.replace("KEY", "A" * 43), "is not <node key>@<address>"),
        ],
    )
    def test_that_is_off_is_refused_by_name(self, text: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            parse_config(text)


class TestHome:
    def test_is_made_with_keys_and_settings(self, tmp_path: Path) -> None:
        home = Home(tmp_path / "home")
        owner = create_wallet(home.owner_key_path, None)
        operator = home.create(OTHER)
        assert home.load_operator().seed == operator.seed
        assert home.owner_public() == owner.public
        assert home.load_config() == OTHER
        assert home.path.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in (home.path / "keys").iterdir()} == {0o600}

    def test_that_holds_a_node_is_left_as_it_is(self, tmp_path: Path) -> None:
        home = Home(tmp_path)
        operator = home.create(OTHER, owner=STRANGER)
        with pytest.raises(ConfigError, match="holds a node already: choose another --home"):
            home.create(Config())
        assert (home.load_operator().seed, home.owner_public()) == (operator.seed, STRANGER)
        assert home.load_config() == OTHER

    def test_of_a_client_becomes_a_node_s_with_the_same_owner(self, tmp_path: Path) -> None:
        home = Home(tmp_path)
        owner = create_wallet(home.owner_key_path, "secret", cost=INTERACTIVE)
        home.create(Config())
        assert home.owner_public() == owner.public
        assert home.load_config() == Config()

    def test_needs_only_the_public_key_of_its_owner(self, tmp_path: Path) -> None:
        """A node's machine is on line day and night: what the node earns is safest elsewhere."""
        home = Home(tmp_path)
        home.create(Config(), owner=STRANGER)
        assert home.owner_public() == STRANGER
        assert {path.name for path in (home.path / "keys").iterdir()} == {"operator.key", "owner.pub"}

    def test_of_a_node_whose_owner_is_elsewhere_may_hold_another_wallet(self, tmp_path: Path) -> None:
        home = Home(tmp_path)
        home.create(Config(), owner=STRANGER)
        create_wallet(home.owner_key_path, None)
        assert home.owner_public() == STRANGER

    def test_without_an_owner_is_not_made_a_node(self, tmp_path: Path) -> None:
        home = Home(tmp_path)
        with pytest.raises(ConfigError, match=r"no wallet at .*: make one with `p2pnode wallet new`"):
            home.create(Config())
        assert not home.config_path.exists()

    def test_that_a_crash_left_half_made_is_finished_with_its_keys(self, tmp_path: Path) -> None:
        home = Home(tmp_path)
        operator = home.create(Config(), owner=STRANGER)
        home.config_path.unlink()
        owner = create_wallet(home.owner_key_path, None)
        assert home.create(Config()).seed == operator.seed
        assert home.owner_public() == owner.public

    def test_with_a_bad_key_is_not_made_a_node(self, tmp_path: Path) -> None:
        home = Home(tmp_path)
        create_wallet(home.owner_key_path, None)
        home.owner_key_path.chmod(0o644)
        with pytest.raises(ConfigError, match="can be read by others"):
            home.create(Config())
        assert not home.config_path.exists()

    @pytest.mark.parametrize("data", [b"", b"A" * 42, b"\xff" * 43])
    def test_with_an_owner_that_is_no_key_says_so(self, tmp_path: Path, data: bytes) -> None:
        home = Home(tmp_path)
        home.create(Config(), owner=STRANGER)
        home.owner_public_path.write_bytes(data)
        with pytest.raises(ConfigError, match="is not a public key"):
            home.owner_public()

    def test_keeps_the_genesis(self, tmp_path: Path) -> None:
        home = Home(tmp_path / "client")
        with pytest.raises(ConfigError, match="no genesis file at"):
            home.load_genesis()
        home.put_genesis(make_genesis())
        assert home.load_genesis() == make_genesis()

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"{}", "is not a genesis file: malformed"),
            (b"\xff", "no genesis file at"),
            (b" " * (GENESIS_BYTES_MAX + 1), "larger than any genesis file"),
        ],
    )
    def test_with_a_file_that_is_no_genesis_says_so(self, tmp_path: Path, data: bytes, message: str) -> None:
        home = Home(tmp_path)
        home.genesis_path.write_bytes(data)
        with pytest.raises(ConfigError, match=message):
            home.load_genesis()

    def test_without_settings_says_how_to_make_them(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="make them with `p2pnode init`"):
            Home(tmp_path).load_config()

    def test_makes_room_for_its_cache(self, tmp_path: Path) -> None:
        assert Home(tmp_path).make_cache().parent.is_dir()


def test_a_store_stays_with_its_network(tmp_path: Path) -> None:
    """Under another genesis its slivers would belong to no blob, and be evicted for the next upload."""
    home = Home(tmp_path)
    one, other = make_genesis((1, 1, 1, 1)), make_genesis((2, 1, 1))
    home.claim_store(one.chain_id)
    home.claim_store(one.chain_id)
    with pytest.raises(ConfigError, match="another network's data"):
        home.claim_store(other.chain_id)
    home.claim_store(one.chain_id)


def test_a_store_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.store_path.write_bytes(b"a file")
    with pytest.raises(ConfigError, match="cannot use the store"):
        home.claim_store(make_genesis().chain_id)


def test_a_home_takes_the_key_of_a_lost_node_but_never_in_place_of_another(tmp_path: Path) -> None:
    home, lost = Home(tmp_path / "home"), Key.generate()
    home.adopt_operator(lost)
    home.adopt_operator(lost)
    assert home.load_operator().public == lost.public
    with pytest.raises(ConfigError, match="another node's"):
        home.adopt_operator(Key.generate())
    assert home.load_operator().public == lost.public


@pytest.mark.parametrize("damage", ["of gigabytes", "a folder"])
def test_a_file_of_a_home_that_cannot_be_one_is_named(damage: str, tmp_path: Path) -> None:
    """What a damaged disk or a wrong copy leaves is never read as a whole, and ends in one line."""
    home = Home(tmp_path / "home")
    target = tmp_path / "mirror"
    blob_id = BlobId(bytes(32))
    readers: dict[Path, Callable[[], object]] = {
        home.config_path: home.load_config,
        home.genesis_path: home.load_genesis,
        home.operator_key_path: home.load_operator,
        home.owner_key_path: home.wallet_public,
        home.owner_public_path: home.owner_public,
        home.sealed_key_path(blob_id): lambda: Keyring(home).key_of(blob_id),
        mirror_path(home, target): lambda: recall_mirror(home, target),
        home.trusted_path: lambda: Trust(make_genesis(), home.trusted_path, lambda: 0),
    }
    for path, read in readers.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if damage == "a folder":
            path.mkdir()
        else:
            path.touch(mode=0o600)
            os.truncate(path, 1 << 40)  # of which the disk has nothing
        with pytest.raises(NodeError) as caught:
            read()
        assert len(str(caught.value).splitlines()) == 1


def test_a_blob_of_the_library_of_gigabytes_is_not_there(tmp_path: Path) -> None:
    home, blob_id = Home(tmp_path), BlobId(bytes(32))
    home.library_path.mkdir()
    path = home.library_path / build_blob_id_text(blob_id)
    path.touch()
    os.truncate(path, 1 << 40)
    library = Library(home.library_path)
    assert library.header(blob_id) is None
    library.drop_changed()
