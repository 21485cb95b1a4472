"""The cache of good peers: bounded, replaced as a whole, and harmless whatever is in it."""

import json
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dht.cache import FILE_BYTES_MAX, PEERS_MAX, read_cache, write_cache
from dht.records import ADDRESS_BYTES_MAX, ADDRESSES_MAX
from economics.crypto import NodeId

PEERS = [(NodeId(bytes([index]) * 32), (f"/ip4/10.0.0.{index}/tcp/4001",)) for index in range(3)]
NODE = urlsafe_b64encode(bytes(32)).decode("ascii").rstrip("=")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    write_cache(path, PEERS)
    write_cache(path, PEERS[::-1])
    assert read_cache(path) == PEERS[::-1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["peers.json"]


def test_the_cache_is_bounded_and_the_fullest_fits(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    peers = [
        (NodeId(index.to_bytes(32, "big")), ("a" * ADDRESS_BYTES_MAX,) * ADDRESSES_MAX)
        for index in range(PEERS_MAX + 9)
    ]
    write_cache(path, peers)
    assert path.stat().st_size < FILE_BYTES_MAX
    assert read_cache(path) == peers[:PEERS_MAX]


def test_a_missing_cache_is_empty(tmp_path: Path) -> None:
    assert read_cache(tmp_path / "none") == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b'{"peers": 1}',
        b'{"peers": {"a": 1}}',
        b'{"peers": [1]}',
        b'{"peers": [{}]}',
        json.dumps({"peers": [{"node": NODE[:-2], "addresses": ["/a"]}]}).encode(),
        json.dumps({"peers": [{"node": NODE, "addresses": "text"}]}).encode(),
        json.dumps({"peers": [{"node": NODE, "addresses": []}]}).encode(),
        json.dumps({"peers": [{"node": NODE, "addresses": ["/a"] * 9}]}).encode(),
        json.dumps({"peers": [{"node": 1, "addresses": ["/a"]}]}).encode(),
        b" " * (FILE_BYTES_MAX + 1),
    ],
)
def test_a_hostile_cache_is_ignored(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "peers.json"
    path.write_bytes(content)
    assert read_cache(path) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_json_is_survived(tmp_path: Path, value: object) -> None:
    path = tmp_path / "peers.json"
    path.write_text(json.dumps({"peers": [value]}))
    assert read_cache(path) == []
