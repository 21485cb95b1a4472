"""Runs a command in this process against a testnet in it, and returns all that it says, with what differs cut out."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from p2pnode.cli.main import cli, explain


@dataclass(frozen=True, slots=True)
class Said:
    """How a command ended, and what it said."""

    code: int
    out: bytes
    err: str

    @property
    def last(self) -> str:
        """The last line of standard output: an ID, or JSON."""
        return self.out.decode().splitlines()[-1]

    @property
    def plain(self) -> str:
        """What went to standard error, without the numbers of blocks and prices."""
        return re.sub(r"block \d+", "block N", re.sub(r"[0-9.]+ WAL( \([^)]*\))?", "PRICE", self.err))


def run(home: Path, *words: object, typed: str | None = None) -> Said:
    runner = CliRunner()
    done = runner.invoke(cli, [*map(str, words), "--home", str(home)], input=typed)
    if done.exception is None or isinstance(done.exception, SystemExit):
        return Said(done.exit_code, done.stdout_bytes, done.stderr)
    with runner.isolation() as (_, err, _):
        code = explain(done.exception)
        return Said(code, done.stdout_bytes, done.stderr + err.getvalue().decode())


def fields(home: Path, *words: object) -> Any:
    import json

    done = run(home, *words, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)
