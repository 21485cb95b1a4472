"""Patience of clients in this process: they share a machine with much else, so nobody who is well is called slow,
and what was paid is waited for until it shows.

Clients in processes of their own have the usual patience: what they say of slow nodes depends on the machine.
"""

import pytest

from p2pnode import members
from p2pnode.clients import chainclient, download, upload

PATIENT_S = 30.0


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (chainclient, "SETTLE_S"),
        (members, "DIAL_S"),
        (members, "HEDGE_S"),
        (download, "HEDGE_S"),
        (upload, "BEHIND_GRACE_S"),
        (upload, "TAIL_S"),
    ):
        monkeypatch.setattr(module, name, PATIENT_S)
