"""A ledger whose members take uploads."""

import pytest

from tests.gateway.ledgernet import LedgerNet


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> LedgerNet:
    net = LedgerNet()
    net.install(monkeypatch)
    return net
