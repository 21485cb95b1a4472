"""Runs code of a test on a disk of its own, which can be full: a tmpfs in a mount namespace that ends with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP = """
import sys
from pathlib import Path
disk = Path(sys.argv[1])
"""


def run_on_disk(directory: Path, options: str, body: str) -> str:
    """Run `body` where `disk` is an empty tmpfs mounted with `options`; return what it printed.

    Needs the right to mount: skips without it.
    """
    directory.mkdir()
    mount = f'mount -t tmpfs -o {options} tmpfs "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", str(directory), sys.executable, TOP + body]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
            pytest.skip("no right to make a mount namespace here")
    except FileNotFoundError:
        pytest.skip("no `unshare` here")
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
