"""The layers of ARCHITECTURE.md hold: an import may only point down, and some libraries have one room each."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("economics", "dht", "gossip", "p2pnode")
MAY_IMPORT = {
    "economics": {"economics"},
    "dht": {"dht", "economics"},
    "gossip": {"gossip", "economics"},
    "p2pnode": {"p2pnode", "dht", "gossip", "economics"},
}
PURE = {
    *("base64", "binascii", "bisect", "collections", "dataclasses", "enum", "fractions", "functools", "heapq"),
    *("itertools", "json", "operator", "struct", "typing"),
    *("blake3", "cbor2", "nacl"),
}
"""All that economics may use: the same inputs give the same outputs."""
ROOMS = {
    "libp2p": {"p2pnode/network/", "dht/discovery.py", "gossip/pubsub.py"},
    "multiaddr": {"p2pnode/network/", "dht/discovery.py", "gossip/pubsub.py"},
    "zfec": {"p2pnode/coding/kernel.py"},
    "cbor2": {"economics/cbor.py"},
    "click": {"p2pnode/cli/"},
    "rich": {"p2pnode/progress.py"},
    "starlette": {"p2pnode/gateway/"},
    "hypercorn": {"p2pnode/gateway/server.py", "p2pnode/gateway/protocol.py"},
    "h11": {"p2pnode/gateway/protocol.py"},
    "psutil": {"p2pnode/testnet.py", "p2pnode/dialling.py"},
}


def sources() -> list[str]:
    return [str(path.relative_to(ROOT)) for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]


def imports_of(source: str) -> Iterator[str]:
    """Yield the top-level names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source} imports by a relative path"
            yield str(node.module).split(".")[0]


def test_an_import_only_points_down() -> None:
    wrong = [
        f"{source} imports {name}"
        for source in sources()
        for name in imports_of(source)
        if name in PACKAGES and name not in MAY_IMPORT[source.split("/")[0]]
    ]
    assert wrong == []


def test_economics_is_pure() -> None:
    wrong = [
        f"{source} imports {name}"
        for source in sources()
        if source.startswith("economics/")
        for name in imports_of(source)
        if name not in PURE | {"economics"}
    ]
    assert wrong == []


def test_a_library_stays_in_its_room() -> None:
    wrong = [
        f"{source} imports {name}"
        for source in sources()
        for name in imports_of(source)
        if name in ROOMS and not any(source.startswith(room) for room in ROOMS[name])
    ]
    assert wrong == []


def test_a_module_says_what_lives_in_it_and_a_package_file_is_empty() -> None:
    for source in sources():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.endswith("__init__.py"):
            assert text == "", source
        else:
            assert ast.get_docstring(ast.parse(text)), source


def test_the_locks_name_no_index_and_hash_everything() -> None:
    for lock in (ROOT / "requirements").glob("*.lock"):
        text = lock.read_text(encoding="utf-8")
        assert "://" not in text, lock
        pins = re.findall(r"^[a-z0-9_.-]+==", text, flags=re.MULTILINE)
        assert pins
        assert len(re.findall(r"^[a-z0-9_.-]+==[^\n]*\\\n +--hash=sha256:", text, flags=re.MULTILINE)) == len(pins)
