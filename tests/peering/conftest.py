"""Patience with peers: here they share a machine with much else, so only a test that is about slow ones may call one
slow."""

import pytest

from p2pnode.network.stream import Patience
from p2pnode.peering import providers, pursuit

PATIENT_S = 600.0
"""Longer than any test takes."""


@pytest.fixture(autouse=True)
def patience_with_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pursuit, "STALL_S", PATIENT_S)
    monkeypatch.setattr(pursuit, "LAG_S", PATIENT_S)
    monkeypatch.setattr(pursuit, "MEMBERS_WAIT_S", PATIENT_S)
    monkeypatch.setattr(providers, "DIAL_S", PATIENT_S)
    monkeypatch.setattr(providers, "PATIENCE", Patience(idle_s=PATIENT_S))
