"""Runs the real command line as a process, as a user does, and waits for what comes of it."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from p2pnode.members import FaultKind
from p2pnode.testnet import Network

ROOT = Path(__file__).parent.parent.parent
WAIT_S = 240.0
"""For what takes seconds, on a machine that may be busy."""

T = TypeVar("T")


def make_file(path: Path, size: int, *, seed: int = 1) -> Path:
    rng = random.Random(seed)
    with path.open("wb") as file:
        for at in range(0, size, 1 << 20):
            file.write(rng.randbytes(min(1 << 20, size - at)))
    return path


def wait_for(condition: Callable[[], T | None], *, pause_s: float = 0.1) -> T:
    """Return what `condition` says as soon as it is true."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(pause_s)
    return found


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


def start(
    *words: object,
    home: Path | None = None,
    passphrase: str | None = None,
    out: IO[bytes] | None = None,
    log: IO[bytes] | None = None,
) -> "subprocess.Popen[bytes]":
    return start_python("-m", "p2pnode", *words, home=home, passphrase=passphrase, out=out, log=log)


def start_python(
    *words: object,
    home: Path | None,
    passphrase: str | None = None,
    out: IO[bytes] | None = None,
    log: IO[bytes] | None = None,
) -> "subprocess.Popen[bytes]":
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    if passphrase is not None:
        environment["P2PNODE_PASSPHRASE"] = passphrase
    if home is not None:
        environment["P2PNODE_HOME"] = str(home)
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=out or subprocess.PIPE, stderr=log or subprocess.PIPE
    )


def finish(process: "subprocess.Popen[bytes]", *, timeout_s: float = 480) -> Result:
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Result(process.returncode, out, err.decode(), 0)


def p2pnode(*words: object, home: Path | None = None, passphrase: str | None = None) -> Result:
    return finish(start(*words, home=home, passphrase=passphrase))


MEASURE = """
import os, sys
pid = os.fork()
if not pid:
    os.execv(sys.executable, [sys.executable, "-m", "p2pnode", *sys.argv[1:]])
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss * 1024, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A process starts with the peak of whatever it was forked from: this one is small, the tests' is not."""


def p2pnode_measured(*words: object, home: Path) -> Result:
    """Run a command that prints little, and measure its largest resident memory."""
    done = finish(start_python("-c", MEASURE, *words, home=home))
    text, _, peak = done.err.rstrip().rpartition("\n")
    return Result(done.code, done.out, text, int(peak))


def lies(faults: Iterable[str]) -> list[str]:
    """Return what of a command's `faults` no honest node does, however busy the machine."""
    return [fault for fault in faults if FaultKind.WRONG_BYTES in fault or FaultKind.FOREIGN in fault]


def chain_status(network: Network) -> dict[int, dict[str, Any]]:
    """Return what each member that answers says of its chain."""
    rows = p2pnode("status", "--json", home=network.client_home.path).json["members"]
    return {row["member"]: row["chain"] for row in rows if row["reachable"]}


def wait_for_height(network: Network, height: int, *, members: int | None = None) -> dict[int, dict[str, Any]]:
    """Wait until so many members, all if not given, are at a height; return what each says of its chain."""
    wanted = len(network.processes) if members is None else members

    def is_there() -> dict[int, dict[str, Any]]:
        found = chain_status(network)
        there = [member for member, chain in found.items() if chain is not None and chain["height"] >= height]
        return found if len(there) >= wanted else {}

    return wait_for(is_there)
