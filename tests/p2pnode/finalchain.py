"""Final blocks for tests, as a network makes them: led by the view's leader, finalized by a quorum of the operators."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from economics.arguments import Operation
from economics.block import Block, BlockHeader, Finality, leader_of, transactions_root
from economics.committee import Committee
from economics.crypto import Digest, OwnerId
from economics.genesis import Genesis
from economics.ledger import Ledger
from economics.transactions import (
    SignedTransaction,
    Transaction,
    build,
    least_fee,
)
from economics.votes import ZERO_HASH, Kind, Vote, VoteCertificate
from p2pnode.consensus.chain import ChainStore
from p2pnode.consensus.executor import Candidate, Executor
from p2pnode.consensus.snapshots import Snapshots
from p2pnode.keys import Key
from tests.small import OPERATORS, make_genesis

NEVER = 1 << 40
GENESIS = make_genesis()
"""Four members of one shard: f = 1, three are a quorum."""


def open_executor(path: Path, genesis: Genesis = GENESIS) -> Executor:
    start = list(Ledger.at_genesis(genesis).tree.items())
    store = ChainStore.open(path / "chain.sqlite", genesis.chain_id, genesis_state=start)
    return Executor(genesis, store, Snapshots(path / "snapshots", genesis.chain_id))


def sign(
    ledger: Ledger,
    key: Key,
    operation: Operation,
    *,
    nonce: int | None = None,
    expiry_height: int = NEVER,
    fee_frost: int | None = None,
) -> SignedTransaction:
    """Return a transaction with the account's nonce and the least fee, unless stated."""
    sender = OwnerId(key.public)
    number = ledger.account(sender).nonce if nonce is None else nonce
    plain = Transaction(ledger.genesis.chain_id, sender, number, 0, expiry_height, operation)
    fee = least_fee(plain, ledger.genesis.parameters) if fee_frost is None else fee_frost
    return build(Transaction(ledger.genesis.chain_id, sender, number, fee, expiry_height, operation), key.sign)


def operator_of(committee: Committee, index: int) -> Key:
    """Return the key of a member."""
    return next(key for key in OPERATORS if key.public == committee.members[index].node)


def certify_vote(
    vote: Vote, chain_id: Digest, signers: Sequence[int] = (0, 1, 2), *, committee: Committee = GENESIS.committee
) -> VoteCertificate:
    signatures = tuple(
        (
            index,
            operator_of(committee, index).sign(
                Vote(vote.kind, vote.epoch, vote.view, vote.block_hash, index).encode(chain_id)
            ),
        )
        for index in signers
    )
    return VoteCertificate(vote.kind, vote.epoch, vote.view, vote.block_hash, signatures)


def finalize(
    header: BlockHeader, *, signers: Sequence[int] = (0, 1, 2), committee: Committee = GENESIS.committee
) -> Finality:
    vote = Vote(Kind.FINALIZE, header.epoch, header.view, header.hash, 0)
    return Finality(certify_vote(vote, header.chain_id, signers, committee=committee))


@dataclass
class Maker:
    """Makes blocks on an executor's head, one on the other, that are not executed until they are applied."""

    executor: Executor
    made: list[Candidate] = field(default_factory=list)

    def make(
        self, *transactions: SignedTransaction, after_ms: int = 100, skip_views: int = 0, **changes: object
    ) -> Candidate:
        """Return the next block; `changes` are of its header, which then may be wrong."""
        executor = self.executor
        root, ledger = executor.root_header, executor.ledger
        parent = self.made[-1].block.header if self.made else executor.head
        is_first = parent == root
        view = (0 if is_first else parent.view) + 1 + skip_views
        hashes = tuple(signed.hash for signed in transactions)
        fields: dict[str, object] = {
            "chain_id": root.chain_id,
            "epoch": ledger.epoch,
            "view": view,
            "height": parent.height + 1,
            "parent_view": 0 if is_first else parent.view,
            "parent_hash": parent.hash,
            "time_ms": parent.time_ms + after_ms,
            "leader": leader_of(view, root_hash=root.hash, committee=ledger.committee),
            "transactions_root": transactions_root(hashes),
            "transactions_count": len(hashes),
            "executed_height": executor.height,
            "state_root": ledger.root,
            "committee_hash": ledger.committee.hash,
            "next_committee_hash": ZERO_HASH if is_first else ledger.next_committee_hash,
        }
        header = BlockHeader(**{**fields, **changes})  # type: ignore[arg-type]
        block = Block(header, operator_of(ledger.committee, header.leader).sign(header.encode()), hashes)
        self.made.append(Candidate(block, transactions))
        return self.made[-1]

    async def apply(self) -> None:
        """Finalize all that was made and execute it."""
        finality = finalize(self.made[-1].block.header, committee=self.executor.ledger.committee)
        await self.executor.apply(self.made, finality)
        self.made.clear()


async def extend(executor: Executor, *transactions: SignedTransaction, after_ms: int = 100) -> Candidate:
    """Make, finalize and execute one block."""
    maker = Maker(executor)
    made = maker.make(*transactions, after_ms=after_ms)
    await maker.apply()
    return made


async def end_epoch(executor: Executor) -> Candidate:
    """Make the block that fixes the next committee, then the boundary, and return that."""
    epoch_ms = executor.genesis.parameters.epoch_ms
    await extend(executor, after_ms=epoch_ms // 2)
    return await extend(executor, after_ms=epoch_ms)
