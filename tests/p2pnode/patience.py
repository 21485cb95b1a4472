"""Patience of clients in this process: they share a machine with much else, so nobody who is well is called slow,
and what was paid is waited for until it shows.

Clients in processes of their own have the usual patience: what they say of slow nodes depends on the machine.
"""

import pytest

from p2pnode import members
from p2pnode.clients import chainclient, download, payments, publish, upload
from p2pnode.content import folderstore

PATIENT_S = 30.0
UNKNOWN_S = 10.0
"""What is not on the chain at all is waited for so long each time."""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, seconds in (
        (chainclient, "SETTLE_S", PATIENT_S),
        (download, "HEDGE_S", PATIENT_S),
        (folderstore, "SETTLE_S", UNKNOWN_S),
        (members, "DIAL_S", PATIENT_S),
        (members, "HEDGE_S", PATIENT_S),
        (payments, "SETTLE_S", UNKNOWN_S),
        (publish, "PROOF_S", PATIENT_S),
        (upload, "BEHIND_GRACE_S", PATIENT_S),
        (upload, "TAIL_S", PATIENT_S),
    ):
        monkeypatch.setattr(module, name, seconds)
