"""Runs the real command line as a process, as a user does."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended."""

    code: int
    out: bytes
    err: str
    resident_bytes_max: int
    """Of the process itself."""

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def start(*words: object, home: Path | None = None, passphrase: str | None = None) -> "subprocess.Popen[bytes]":
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    if passphrase is not None:
        environment["P2PNODE_PASSPHRASE"] = passphrase
    if home is not None:
        environment["P2PNODE_HOME"] = str(home)
    command = [sys.executable, "-m", "p2pnode", *map(str, words)]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: "subprocess.Popen[bytes]", *, timeout_s: float = 120) -> Result:
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Result(process.returncode, out, err.decode(), 0)


def p2pnode(*words: object, home: Path | None = None, passphrase: str | None = None) -> Result:
    return finish(start(*words, home=home, passphrase=passphrase))


def p2pnode_measured(*words: object, home: Path) -> Result:
    """Run a command that prints little, and measure its largest resident memory."""
    process = start(*words, home=home)
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Result(process.returncode, out, err.decode(), usage.ru_maxrss * 1024)
