"""Whoever floods the mempool pays for what it holds, or leaves room for those who do."""

import pytest

from economics.arguments import Transfer
from economics.crypto import OwnerId
from economics.errors import Reason
from economics.ledger import Ledger
from economics.transactions import SignedTransaction
from p2pnode.consensus import mempool as mempool_module
from p2pnode.consensus.mempool import NONCES_AHEAD_MAX, Mempool
from p2pnode.keys import Key
from tests.chain import Chain
from tests.p2pnode.finalchain import sign
from tests.refusals import reason
from tests.small import OPERATORS, OTHER_OWNER, OWNER, make_genesis

GENESIS = make_genesis()
POOR = Key(bytes([0x66]) * 32)
TO = OwnerId(OPERATORS[7].public)


def pay(ledger: Ledger, key: Key, nonce: int, *, amount: int = 1) -> SignedTransaction:
    return sign(ledger, key, Transfer(TO, amount), nonce=nonce)


def fund(chain: Chain, *, fees: int) -> int:
    """Give POOR the fees of so many transfers; return one fee."""
    fee = pay(chain.ledger, OWNER, 0).transaction.fee_frost
    chain.run(OWNER, Transfer(OwnerId(POOR.public), fees * fee))
    return fee


def test_a_sender_s_waiting_transactions_are_covered_by_its_balance_together() -> None:
    chain, mempool = Chain.begin(GENESIS), Mempool()
    fund(chain, fees=2)
    for nonce in range(2):
        mempool.add(pay(chain.ledger, POOR, nonce), ledger=chain.ledger)
    assert reason(mempool.add, pay(chain.ledger, POOR, 2), ledger=chain.ledger) is Reason.UNFUNDED


def test_what_cannot_pay_its_fee_any_more_is_put_in_no_block_and_forgotten() -> None:
    """Its sender shows one transaction to this node and spends all by another of the same nonce elsewhere."""
    chain, mempool = Chain.begin(GENESIS), Mempool()
    fee = fund(chain, fees=5)
    shown = [pay(chain.ledger, POOR, nonce) for nonce in range(4)]
    for signed in shown:
        mempool.add(signed, ledger=chain.ledger)
    elsewhere = pay(chain.ledger, POOR, 0, amount=4 * fee)
    in_flight = list(mempool.executable(ledger=chain.ledger, in_flight=[elsewhere]))
    assert in_flight == shown[1:]  # what it pays is known only when it is executed
    chain.block(elsewhere)
    assert chain.ledger.account(OwnerId(POOR.public)).balance_frost == 0
    assert not list(mempool.executable(ledger=chain.ledger, in_flight=[]))
    mempool.drop_executed([elsewhere], ledger=chain.ledger)
    assert len(mempool) == 0
    assert mempool.size == 0


def test_what_waits_behind_a_gap_leaves_half_of_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempool_module, "TRANSACTIONS_MAX", 8)
    chain, mempool = Chain.begin(GENESIS), Mempool()
    for nonce in range(1, 5):
        mempool.add(pay(chain.ledger, OWNER, nonce), ledger=chain.ledger)
    assert reason(mempool.add, pay(chain.ledger, OWNER, 5), ledger=chain.ledger) is Reason.OVER_BUDGET
    assert reason(mempool.add, pay(chain.ledger, OPERATORS[0], 1), ledger=chain.ledger) is Reason.OVER_BUDGET
    for nonce in range(4):
        mempool.add(pay(chain.ledger, OTHER_OWNER, nonce), ledger=chain.ledger)
    assert len(mempool) == 8


def test_looking_for_work_does_not_visit_those_who_wait_behind_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    chain, mempool = Chain.begin(GENESIS), Mempool()
    for key in OPERATORS:
        mempool.add(pay(chain.ledger, key, NONCES_AHEAD_MAX), ledger=chain.ledger)
    mempool.add(pay(chain.ledger, OWNER, 0), ledger=chain.ledger)
    asked: list[OwnerId] = []
    account = Ledger.account

    def counted(ledger: Ledger, owner: OwnerId) -> object:
        asked.append(owner)
        return account(ledger, owner)

    monkeypatch.setattr(Ledger, "account", counted)
    assert len(list(mempool.executable(ledger=chain.ledger, in_flight=[]))) == 1
    assert asked == [OwnerId(OWNER.public)]


def test_a_ledger_that_moved_on_by_a_snapshot_has_everything_looked_at_again() -> None:
    chain, mempool = Chain.begin(GENESIS), Mempool()
    overtaken, following = pay(chain.ledger, OWNER, 0), pay(chain.ledger, OWNER, 1)
    for signed in (overtaken, following):
        mempool.add(signed, ledger=chain.ledger)
    chain.block(pay(chain.ledger, OWNER, 0, amount=7))
    mempool.review(mempool.senders(), ledger=chain.ledger)
    assert mempool.get(overtaken.hash) is None
    assert list(mempool.executable(ledger=chain.ledger, in_flight=[])) == [following]
