"""The cache of good peers on disk: a way back in when every bootstrap peer is gone. Its content is never trusted."""

import json
import logging
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from pathlib import Path

from dht.records import ADDRESS_BYTES_MAX, ADDRESSES_MAX
from economics.crypto import KEY_BYTES, NodeId

logger = logging.getLogger(__name__)

PEERS_MAX = 64
FILE_BYTES_MAX = 131_072
assert PEERS_MAX * (ADDRESSES_MAX * (ADDRESS_BYTES_MAX + 16) + 128) < FILE_BYTES_MAX

KnownPeer = tuple[NodeId, tuple[str, ...]]


def read_cache(path: Path) -> list[KnownPeer]:
    """Return the good peers of an earlier run, at most PEERS_MAX. A file that is missing or odd is a cache lost."""
    if not path.exists():
        return []
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise ValueError("too long")
        return [_read_peer(entry) for entry in json.loads(data)["peers"][:PEERS_MAX]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, Base64Error) as fault:
        logger.info("the cache of peers at %s is not used: %r", path, fault)
        return []


def _read_peer(entry: dict[str, object]) -> KnownPeer:
    match entry:
        case {"node": str(text), "addresses": [*addresses]}:
            node = urlsafe_b64decode(text + "=")
        case _:
            raise ValueError("a peer is a node and its addresses")
    if len(node) != KEY_BYTES or not 0 < len(addresses) <= ADDRESSES_MAX:
        raise ValueError("a peer is a node and its addresses")
    kept = tuple(address for address in addresses if isinstance(address, str) and len(address) <= ADDRESS_BYTES_MAX)
    return NodeId(node), kept


def write_cache(path: Path, peers: Sequence[KnownPeer]) -> None:
    """Replace the file as a whole. No fsync: a cache may be lost, but never half written."""
    entries = [
        {"addresses": list(addresses), "node": urlsafe_b64encode(node).decode("ascii").rstrip("=")}
        for node, addresses in peers[:PEERS_MAX]
    ]
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps({"peers": entries}, indent=1), encoding="utf-8")
    os.replace(part, path)
