"""What README.md shows of Python runs as it stands there, against real nodes."""

import re
from pathlib import Path
from typing import Any

import pytest

from p2pnode.testing import LocalTestnet

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[int, str]]:
    """Return (line, source) of each block of Python."""
    text = README.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(1)) + 1, found[1]) for found in BLOCK.finditer(text)]


def test_there_are_examples_for_both_faces_and_for_tests() -> None:
    sources = [source for _, source in blocks()]
    for name in ("connect(", "open_client(", "p2pnode_testnet"):
        assert any(name in source for source in sources)


@pytest.mark.parametrize(("line", "source"), blocks(), ids=[f"line {line}" for line, _ in blocks()])
def test_an_example_runs(
    line: int, source: str, p2pnode_testnet: LocalTestnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2PNODE_HOME", str(p2pnode_testnet.home))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile("\n" * (line - 1) + source, str(README), "exec"), names)
    for name, value in list(names.items()):
        if name.startswith("test_"):
            value(p2pnode_testnet)
