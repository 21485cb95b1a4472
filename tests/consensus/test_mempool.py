"""Transactions wait in the order of their nonces, within bounds, and no longer than a block may still hold them."""

from collections.abc import Collection, Sequence

import pytest

from economics.arguments import Transfer
from economics.crypto import Digest
from economics.errors import Reason
from economics.transactions import SignedTransaction, Transaction, build
from p2pnode.consensus import mempool as mempool_module
from p2pnode.consensus.mempool import NONCES_AHEAD_MAX, Mempool
from p2pnode.keys import Key
from tests.chain import EXPIRY_HEIGHT, Chain, key_of
from tests.refusals import reason
from tests.small import OPERATORS, OTHER_OWNER, OWNER, make_genesis

GENESIS = make_genesis()
FEE_FROST = 10_000
POOR = Key(bytes([0x66]) * 32)


def transfer(key: Key, nonce: int, *, amount: int = 1, expiry_height: int = EXPIRY_HEIGHT) -> SignedTransaction:
    plain = Transaction(
        chain_id=GENESIS.chain_id,
        sender=key_of(key),
        nonce=nonce,
        fee_frost=FEE_FROST,
        expiry_height=expiry_height,
        operation=Transfer(key_of(OPERATORS[7]), amount),
    )
    return build(plain, key.sign)


class Pool:
    """A mempool beside a chain of its own."""

    def __init__(self) -> None:
        self.chain = Chain.begin(GENESIS)
        self.mempool = Mempool()

    def add(self, signed: SignedTransaction) -> bool:
        return self.mempool.add(signed, ledger=self.chain.ledger)

    def add_all(self, transactions: Sequence[SignedTransaction]) -> None:
        for signed in transactions:
            assert self.add(signed)

    def executable(self, in_flight: Collection[SignedTransaction] = ()) -> list[SignedTransaction]:
        return list(self.mempool.executable(ledger=self.chain.ledger, in_flight=in_flight))

    def execute(self, *transactions: SignedTransaction) -> None:
        self.chain.block(*transactions)
        self.mempool.drop_executed(transactions, ledger=self.chain.ledger)

    def holds(self, *transactions: SignedTransaction) -> bool:
        """Return whether it holds just these, by all that it counts."""
        held = {signed.hash for signed in transactions}
        by_sender = [signed.hash for waiting in self.mempool._by_sender.values() for signed in waiting.values()]
        assert sorted(by_sender) == sorted(self.mempool._by_hash)
        assert all(self.mempool._by_sender.values())
        assert self.mempool.size == sum(len(signed.raw) for signed in self.mempool._by_hash.values())
        return held == set(self.mempool._by_hash) and len(self.mempool) == len(held)


@pytest.fixture
def pool() -> Pool:
    return Pool()


class TestOrder:
    def test_is_that_of_a_sender_s_nonces_whatever_came_first(self, pool: Pool) -> None:
        made = [transfer(OWNER, nonce) for nonce in range(4)]
        pool.add_all([made[index] for index in (2, 0, 3, 1)])
        assert pool.executable() == made

    def test_of_senders_is_that_of_their_arrival(self, pool: Pool) -> None:
        first, second = transfer(OTHER_OWNER, 0), transfer(OWNER, 0)
        pool.add_all([first, second])
        assert pool.executable() == [first, second]

    def test_stops_at_a_gap_until_it_is_filled(self, pool: Pool) -> None:
        made = [transfer(OWNER, nonce) for nonce in range(4)]
        other = transfer(OTHER_OWNER, 0)
        pool.add_all([made[0], made[2], made[3], other])
        assert pool.executable() == [made[0], other]
        pool.add(made[1])
        assert pool.executable() == [*made, other]

    def test_starts_at_the_account_s_nonce(self, pool: Pool) -> None:
        made = [transfer(OWNER, nonce) for nonce in range(3)]
        pool.add_all(made)
        pool.execute(made[0])
        assert pool.executable() == made[1:]

    def test_goes_on_after_what_is_in_blocks_that_are_not_executed_yet(self, pool: Pool) -> None:
        made = [transfer(OWNER, nonce) for nonce in range(4)]
        other = transfer(OTHER_OWNER, 0)
        pool.add_all([*made, other])
        assert pool.executable(in_flight=made[:2]) == [*made[2:], other]
        assert pool.executable(in_flight=[*made, other]) == []

    def test_goes_on_after_what_this_node_never_had(self, pool: Pool) -> None:
        """Another leader's block holds the first two: only its bodies were pulled."""
        made = [transfer(OWNER, nonce) for nonce in range(3)]
        pool.add(made[2])
        assert pool.executable() == []
        assert pool.executable(in_flight=[made[1], made[0]]) == [made[2]]

    def test_gives_no_other_transaction_with_a_nonce_that_is_in_flight(self, pool: Pool) -> None:
        ours, theirs, following = transfer(OWNER, 0), transfer(OWNER, 0, amount=2), transfer(OWNER, 1)
        pool.add_all([ours, following])
        assert pool.executable(in_flight=[theirs]) == [following]

    def test_leaves_out_what_the_next_block_may_not_hold_and_all_after_it(self, pool: Pool) -> None:
        made = [transfer(OWNER, 0), transfer(OWNER, 1, expiry_height=3), transfer(OWNER, 2)]
        pool.add_all(made)
        pool.chain.pass_blocks(1)
        assert pool.executable() == made
        pool.chain.pass_blocks(2)
        assert pool.executable() == made[:1]


class TestAdmission:
    def test_of_the_same_transaction_twice_is_no_news(self, pool: Pool) -> None:
        signed = transfer(OWNER, 0)
        assert pool.add(signed) is True
        assert pool.add(signed) is False
        assert pool.holds(signed)
        assert pool.mempool.get(signed.hash) is signed
        assert pool.mempool.get(Digest(bytes(32))) is None

    def test_of_another_transaction_with_a_nonce_that_waits_is_refused(self, pool: Pool) -> None:
        first = transfer(OWNER, 0)
        pool.add(first)
        assert reason(pool.add, transfer(OWNER, 0, amount=2)) is Reason.WRONG_NONCE
        assert pool.holds(first)

    def test_asks_the_ledger_as_it_is_now(self, pool: Pool) -> None:
        pool.execute(transfer(OWNER, 0))
        assert reason(pool.add, transfer(OWNER, 0)) is Reason.WRONG_NONCE
        assert reason(pool.add, transfer(OWNER, 1, expiry_height=2)) is Reason.EXPIRED
        assert reason(pool.add, transfer(POOR, 0)) is Reason.UNFUNDED
        assert pool.holds()
        pool.add(transfer(OWNER, 1, expiry_height=3))

    def test_of_one_sender_reaches_so_many_nonces_ahead_and_no_further(self, pool: Pool) -> None:
        assert reason(pool.add, transfer(OWNER, NONCES_AHEAD_MAX + 1)) is Reason.WRONG_NONCE
        made = [transfer(OWNER, nonce) for nonce in range(NONCES_AHEAD_MAX + 1)]
        pool.add_all(made)
        assert pool.holds(*made)
        pool.execute(made[0])
        pool.add(transfer(OWNER, NONCES_AHEAD_MAX + 1))

    def test_of_all_senders_is_bounded_in_number(self, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mempool_module, "TRANSACTIONS_MAX", 2)
        made = [transfer(key, 0) for key in (OWNER, OTHER_OWNER, OPERATORS[0])]
        pool.add_all(made[:2])
        assert reason(pool.add, made[2]) is Reason.OVER_BUDGET
        assert pool.add(made[0]) is False  # not refused: it is here
        assert pool.holds(*made[:2])
        pool.execute(made[0])
        pool.add(made[2])

    def test_of_all_senders_is_bounded_in_bytes(self, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
        made = [transfer(key, 0) for key in (OWNER, OTHER_OWNER, OPERATORS[0])]
        size = len(made[0].raw)
        monkeypatch.setattr(mempool_module, "BYTES_MAX", 3 * size - 1)
        pool.add_all(made[:2])
        assert reason(pool.add, made[2]) is Reason.OVER_BUDGET
        assert pool.holds(*made[:2])
        monkeypatch.setattr(mempool_module, "BYTES_MAX", 3 * size)
        pool.add(made[2])


class TestLeaving:
    def test_is_for_what_a_block_held(self, pool: Pool) -> None:
        made = [transfer(OWNER, nonce) for nonce in range(3)]
        other = transfer(OTHER_OWNER, 0)
        pool.add_all([*made, other])
        pool.execute(made[0], made[1])
        assert pool.holds(made[2], other)
        pool.execute(made[2], other)
        assert pool.holds()

    def test_is_for_what_a_block_has_overtaken(self, pool: Pool) -> None:
        """Nonce 1 came with another transaction than the one that waits here: ours can have no effect any more."""
        first, ours, theirs = transfer(OWNER, 0), transfer(OWNER, 1), transfer(OWNER, 1, amount=2)
        pool.add_all([first, ours])
        pool.execute(first, theirs)
        assert pool.holds()

    def test_ignores_what_never_waited_here(self, pool: Pool) -> None:
        waiting = transfer(OWNER, 0)
        pool.add(waiting)
        pool.execute(transfer(OTHER_OWNER, 0))
        assert pool.holds(waiting)

    def test_takes_with_it_what_no_block_can_hold_any_more(self, pool: Pool) -> None:
        expiring, lasting = transfer(OWNER, 0, expiry_height=3), transfer(OTHER_OWNER, 0, expiry_height=4)
        pool.add_all([expiring, lasting])
        pool.chain.pass_blocks(1)
        pool.mempool.drop_expired(ledger=pool.chain.ledger)
        assert pool.holds(expiring, lasting)
        pool.chain.pass_blocks(2)
        pool.mempool.drop_expired(ledger=pool.chain.ledger)
        assert pool.holds(lasting)

    def test_takes_with_it_what_was_overtaken_unseen(self, pool: Pool) -> None:
        ours, following = transfer(OWNER, 0), transfer(OWNER, 1)
        pool.add_all([ours, following])
        pool.execute(transfer(OWNER, 0, amount=2))
        pool.mempool.drop_expired(ledger=pool.chain.ledger)
        assert pool.holds(following)
