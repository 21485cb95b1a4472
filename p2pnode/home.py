"""A home: the directory of one node or client, with its keys, genesis and settings. Runs nothing.

genesis.json   the network            config.toml   settings of a node
keys/          operator.key, owner.key (0600): a wallet; owner.pub: who owns the node, if not this wallet; faucet.key;
               seal.secret, sealed/: what opens sealed blobs
store/         slivers and blob records             cache/   peers seen lately
chain/         chain.db, votes.log, snapshots/; restored: this home comes from a backup
"""

import json
import os
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import platformdirs

from economics.blob import BlobId, build_blob_id_text
from economics.crypto import Digest, NodeId, OwnerId
from economics.errors import Rejected
from economics.genesis import Genesis, build_key_text, parse_genesis, parse_key
from p2pnode.errors import ConfigError
from p2pnode.files import read_bounded, replace_synced
from p2pnode.keys import Key, keep_secret, load_key, load_or_create_key
from p2pnode.slivers.admission import UploadLimits
from p2pnode.wallet import read_wallet

HOME_VARIABLE = "P2PNODE_HOME"
QUOTA_BYTES = 64 << 30
GENESIS_BYTES_MAX = 1 << 20
CONFIG_BYTES_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one node, all with a default; `config.toml` holds those that differ."""

    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4001",)
    announce: tuple[str, ...] = ()
    """Addresses that others are told to dial; what is listened on if empty. Behind a router these differ."""
    bootstrap: tuple[str, ...] = ()
    """Peers to start from besides the genesis file's: "<node key>@/ip4/203.0.113.5/tcp/4001"."""
    quota_bytes: int = QUOTA_BYTES
    spot_check_s: int = 30
    """Seconds between two spot checks of other members; 0 for none."""
    snapshot_blocks: int = 5_000
    """Behind by more blocks than this, and by an epoch, a node takes a snapshot: some minutes of executing."""
    repair_bytes_per_s: int = 0
    """At which slivers that this node owes are fetched; 0 for as fast as it goes."""
    scrub_bytes_per_s: int = 4 << 20
    """At which the slivers on the disk are checked, faster where that takes more than a week; 0 for no checks."""
    unclosed_peer_bytes_max: int = UploadLimits().unclosed_peer_bytes_max
    unclosed_bytes_max: int = UploadLimits().unclosed_bytes_max

    @property
    def bootstrap_peers(self) -> list[tuple[NodeId, tuple[str, ...]]]:
        return [parse_peer(text) for text in self.bootstrap]

    @property
    def upload_limits(self) -> UploadLimits:
        names = [field.name for field in fields(UploadLimits)]
        return UploadLimits(**{name: getattr(self, name) for name in names})

    def to_toml(self) -> str:
        default = Config()
        lines = []
        for field in fields(self):
            value = getattr(self, field.name)
            shown = json.dumps(list(value) if isinstance(value, tuple) else value)
            lines.append(f"{'# ' if value == getattr(default, field.name) else ''}{field.name} = {shown}\n")
        return "".join(lines)


def parse_config(text: str) -> Config:
    """Return the settings that a TOML text holds; raises `ConfigError` naming what is off."""
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as fault:  # also numbers and lists beyond what Python takes
        raise ConfigError(f"config.toml is not TOML: {fault}") from fault
    kinds = {field.name: type(getattr(Config(), field.name)) for field in fields(Config)}
    for name, value in values.items():
        if name not in kinds:
            raise ConfigError(f"config.toml: no setting is called {name}; there are {', '.join(kinds)}")
        if kinds[name] is tuple and not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
            raise ConfigError(f'config.toml: {name} is a list of texts such as ["/ip4/0.0.0.0/tcp/4001"]')
        if kinds[name] is int and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise ConfigError(f"config.toml: {name} is a whole number, not negative")
    settings: dict[str, Any] = {n: tuple(value) if kinds[n] is tuple else value for n, value in values.items()}
    config = Config(**settings)
    for address in (*config.listen, *config.announce):
        verify_address(address)
    if not config.listen:
        raise ConfigError("config.toml: listen names at least one address, such as /ip4/0.0.0.0/tcp/4001")
    for peer in config.bootstrap:
        parse_peer(peer)
    return config


def verify_address(text: str) -> None:
    """Raise `ConfigError` unless the text is an address over TCP; the network judges the rest of it."""
    if re.fullmatch(r"/(ip4|ip6|dns|dns4|dns6)/[^/]+/tcp/\d{1,5}", text) is None:
        raise ConfigError(f"{text!r} is not an address: write it as /ip4/0.0.0.0/tcp/4001")


def parse_peer(text: str) -> tuple[NodeId, tuple[str, ...]]:
    """Return (node, addresses) of a bootstrap peer, or raise `ConfigError`."""
    key, at, address = text.partition("@")
    try:
        node = NodeId(parse_key(key))
    except Rejected as fault:
        raise ConfigError(f"config.toml: bootstrap: {text!r} is not <node key>@<address>") from fault
    if not at or not address.startswith("/"):
        raise ConfigError(f"config.toml: bootstrap: {text!r} is not <node key>@<address>")
    return node, (address,)


def default_home() -> Path:
    """Return the home of whoever names none: that of the environment, or the user's."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(named) if named else platformdirs.user_data_path("p2pnode")


@dataclass(frozen=True, slots=True)
class Home:
    """Where the files of one node or client are."""

    path: Path

    @property
    def operator_key_path(self) -> Path:
        return self.path / "keys" / "operator.key"

    @property
    def owner_key_path(self) -> Path:
        """The wallet: the key that owns what is stored from this home."""
        return self.path / "keys" / "owner.key"

    @property
    def owner_public_path(self) -> Path:
        return self.path / "keys" / "owner.pub"

    @property
    def faucet_key_path(self) -> Path:
        """A testnet's key that gives to whoever asks; only the home of its client has it."""
        return self.path / "keys" / "faucet.key"

    @property
    def seal_secret_path(self) -> Path:
        """What the keys of sealed blobs come of."""
        return self.path / "keys" / "seal.secret"

    @property
    def sealed_keys_path(self) -> Path:
        """The keys of sealed blobs, each in a file that is called by the blob's ID."""
        return self.path / "keys" / "sealed"

    def sealed_key_path(self, blob_id: BlobId) -> Path:
        return self.sealed_keys_path / build_blob_id_text(blob_id)

    @property
    def peer_key_path(self) -> Path:
        """The key under which this home serves blobs to peers while no node of its own runs."""
        return self.path / "keys" / "peer.key"

    @property
    def library_path(self) -> Path:
        """What of this machine's files makes up the blobs that this home serves to peers."""
        return self.path / "library"

    @property
    def mirrors_path(self) -> Path:
        """Of each folder that is kept equal to one that peers have: the link to it."""
        return self.path / "cache" / "mirrors"

    @property
    def genesis_path(self) -> Path:
        return self.path / "genesis.json"

    @property
    def config_path(self) -> Path:
        return self.path / "config.toml"

    @property
    def store_path(self) -> Path:
        return self.path / "store"

    @property
    def peers_path(self) -> Path:
        return self.path / "cache" / "peers.json"

    @property
    def folders_path(self) -> Path:
        """What each folder of this machine was stored as last."""
        return self.path / "cache" / "folders"

    @property
    def trusted_path(self) -> Path:
        """The newest epoch that a client of this home has followed."""
        return self.path / "cache" / "trusted.cbor"

    @property
    def chain_path(self) -> Path:
        return self.path / "chain"

    @property
    def chain_database_path(self) -> Path:
        """Blocks, receipts and state."""
        return self.chain_path / "chain.db"

    @property
    def votelog_path(self) -> Path:
        return self.chain_path / "votes.log"

    @property
    def snapshots_path(self) -> Path:
        return self.chain_path / "snapshots"

    @property
    def restored_path(self) -> Path:
        """The mark of a home whose node may have signed more than its log holds: it comes from a backup."""
        return self.chain_path / "restored"

    def make_cache(self) -> Path:
        """Return where peers seen lately are kept; its directory exists from here on."""
        self.peers_path.parent.mkdir(parents=True, exist_ok=True)
        return self.peers_path

    def verify_new(self, config: Config) -> None:
        """Raise `ConfigError` unless a node with these settings can be made here."""
        if self.config_path.exists():
            raise ConfigError(f"{self.path} holds a node already: choose another --home")
        for address in (*config.listen, *config.announce):
            verify_address(address)

    def create(self, config: Config, *, owner: OwnerId | None = None) -> Key:
        """Make the files of a new node and return its operator's key; raises `ConfigError` where one exists.

        The node is `owner`'s, or its home's wallet's. The settings come last: without them a crash cut an earlier
        call short, or a client lives here, and its keys stay.
        """
        self.verify_new(config)
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        operator = load_or_create_key(self.operator_key_path)
        if owner is None:
            read_wallet(self.owner_key_path)
            self.owner_public_path.unlink(missing_ok=True)
        else:
            replace_synced(self.owner_public_path, (build_key_text(owner).encode() + b"\n",))
        replace_synced(self.config_path, (config.to_toml().encode(),))
        return operator

    def adopt_operator(self, operator: Key) -> None:
        """Have this home's node be the one of a key that was kept elsewhere; raises `ConfigError` if it has another."""
        if not self.operator_key_path.exists():
            keep_secret(self.operator_key_path, operator.seed.hex().encode() + b"\n")
        elif self.load_operator().public != operator.public:
            raise ConfigError(f"{self.path} is another node's: choose another --home")

    def owner_public(self) -> OwnerId:
        """Return whose node this is: whoever `init` was told, or the wallet's owner. Raises `ConfigError`."""
        path = self.owner_public_path
        if not path.exists():
            return self.wallet_public()
        try:
            return OwnerId(parse_key(read_bounded(path, CONFIG_BYTES_MAX).decode("ascii").strip()))
        except (OSError, UnicodeDecodeError, Rejected) as fault:
            raise ConfigError(f"{path} is not a public key: write the owner's 43 characters there") from fault

    def wallet_public(self) -> OwnerId:
        """Return the account of this home's wallet, which needs no passphrase. Raises `ConfigError`."""
        return OwnerId(read_wallet(self.owner_key_path).public)

    def put_genesis(self, genesis: Genesis) -> None:
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_synced(self.genesis_path, (genesis.to_json().encode(),))

    def load_genesis(self) -> Genesis:
        """Return the network this home belongs to; raises `ConfigError`."""
        try:
            if self.genesis_path.stat().st_size > GENESIS_BYTES_MAX:
                raise ConfigError(f"{self.genesis_path} is larger than any genesis file")
            return parse_genesis(self.genesis_path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as fault:
            raise ConfigError(
                f"no genesis file at {self.genesis_path}: copy your network's there, or name a --home that has one"
            ) from fault
        except Rejected as fault:
            raise ConfigError(f"{self.genesis_path} is not a genesis file: {fault}") from fault

    def claim_store(self, chain_id: Digest) -> None:
        """Mark the store as this network's; raises `ConfigError` if it is another's, whose slivers would look like
        given up uploads here and be evicted, or if it cannot be written."""
        path, own = self.store_path / "chain", chain_id.hex().encode()
        try:
            self.store_path.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                replace_synced(path, (own,))
            held = path.read_bytes()
        except OSError as fault:
            raise ConfigError(f"cannot use the store in {self.store_path}: {fault.strerror}") from fault
        if held != own:
            raise ConfigError(
                f"{self.store_path} holds another network's data: put its genesis file back, or move the data away"
            )

    def load_config(self) -> Config:
        try:
            return parse_config(read_bounded(self.config_path, CONFIG_BYTES_MAX).decode("utf-8"))
        except FileNotFoundError as fault:
            raise ConfigError(f"no settings at {self.config_path}: make them with `p2pnode init`") from fault
        except OSError as fault:
            raise ConfigError(f"cannot read the settings in {self.config_path}: {fault.strerror}") from fault
        except UnicodeDecodeError as fault:
            raise ConfigError(f"{self.config_path} is not TOML: it is not UTF-8") from fault

    def load_config_or_default(self) -> Config:
        """Return a client's settings: it needs none."""
        return self.load_config() if self.config_path.exists() else Config()

    def load_operator(self) -> Key:
        return load_key(self.operator_key_path)
