"""The ledger: applies final blocks to the state (FORMATS.md 10 and 11). It never waits, asks or guesses.

Double entry: at every height, what was minted less what was burned is all that anyone has (`verify_supply`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from economics import beacon, challenges, duty, election, handover, invalidation, operations, rewards, staking
from economics.arguments import (
    Attributes,
    Certify,
    CertifyAgain,
    CommitBeacon,
    Delete,
    Evidence,
    Extend,
    HandOver,
    Invalidate,
    Merge,
    Operation,
    PutStake,
    RegisterNode,
    ReportAudit,
    ReportSync,
    Reserve,
    SplitEpochs,
    SplitUnits,
    Transfer,
    Unstake,
)
from economics.beginning import genesis_values
from economics.blob import BlobId
from economics.block import BlockHeader
from economics.commitments import Certificate, ReservationId
from economics.committee import Committee, Member
from economics.crypto import Digest, NodeId, OwnerId
from economics.errors import Reason, Rejected
from economics.genesis import FROST_MAX, Genesis
from economics.nodes import Beacon, Handover, Marks, NodeEntry, Round, Stake, Standing, Terms
from economics.operations import Code as Code
from economics.operations import Context, Failed
from economics.slots import (
    HANDOVER_SLOT,
    STANDING_SLOT,
    SYSTEM_SLOT,
    Slot,
    StakeId,
    account_slot,
    invalid_slot,
    offence_slot,
    seats_slot,
    statement_slot,
    terms_slot,
)
from economics.state import Account, BlobEntry, BlobSummary, Bucket, Reservation, System, Value, decode_value
from economics.transactions import SignedTransaction
from economics.tree import StateKey, Tree
from economics.votes import ZERO_HASH
from economics.working import ALL, WorkingState

CERTIFICATES_KEPT_MAX = 2_048
"""Certificates known to hold, so that a block does not check what the mempool has: 12 MB at most with 171 signers."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one transaction of a block."""

    hash: Digest
    sender: OwnerId
    code: Code
    fee_frost: int
    """What it cost: 0 where it had no effect at all."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What a block did."""

    receipts: tuple[Receipt, ...]
    """In the order of the block's transactions."""
    changes: Mapping[StateKey, bytes | None]
    """The values that are others than before, None for those that are gone."""
    epoch_ended: bool
    round_began: bool


class Ledger:
    """The state after one height."""

    def __init__(self, genesis: Genesis, state: WorkingState, *, height: int) -> None:
        self.genesis = genesis
        self.height = height
        self._state = state
        self._verified: dict[Certificate, None] = {}
        """Oldest first."""
        self._committees: dict[int, Committee] = {}
        """With the addresses that the nodes have now; emptied when one of them changes."""

    @classmethod
    def at_genesis(cls, genesis: Genesis) -> "Ledger":
        """Return the state that a network begins with (FORMATS.md 11)."""
        values = (value.encode() for value in genesis_values(genesis))
        return cls(genesis, WorkingState.load(values), height=0)

    @classmethod
    def load(cls, genesis: Genesis, *, items: Iterable[bytes], height: int) -> "Ledger":
        """Return the ledger whose tree holds these values; the caller compares its root with a proven one.

        Raises `Rejected` for bytes that are no state. Costs 40 us a value.
        """
        state = WorkingState.load(items)
        system = state.get(SYSTEM_SLOT)
        if not isinstance(system, System):
            raise Rejected(Reason.MALFORMED, "a state without its system value")
        needed = (HANDOVER_SLOT, STANDING_SLOT, seats_slot(system.epoch), terms_slot(system.epoch))
        if any(state.get(slot) is None for slot in needed):
            raise Rejected(Reason.MALFORMED, "a state without seats, terms, handover or standing of its epoch")
        return cls(genesis, state, height=height)

    def fork(self) -> "Ledger":
        """Return a ledger that goes on apart from this one; they share what neither of them changes."""
        forked = Ledger(self.genesis, self._state.fork(), height=self.height)
        forked._verified = dict(self._verified)
        forked._committees = dict(self._committees)
        return forked

    @property
    def tree(self) -> Tree:
        return self._state.tree

    @property
    def root(self) -> Digest:
        return self._state.tree.root

    @property
    def system(self) -> System:
        return self._state.system()

    @property
    def epoch(self) -> int:
        return self._state.system().epoch

    @property
    def committee(self) -> Committee:
        """The committee of the current epoch."""
        committee = self.committee_of(self.epoch)
        assert committee is not None
        return committee

    @property
    def next_committee(self) -> Committee | None:
        """The committee of the next epoch, once the cut-off has fixed it."""
        return self.committee_of(self.epoch + 1)

    @property
    def next_committee_hash(self) -> Digest:
        """What a header names: zero until the next committee is fixed."""
        committee = self._state.seats(self.epoch + 1)
        return ZERO_HASH if committee is None else committee.hash

    @property
    def cut_off_passed(self) -> bool:
        """Whether the next epoch's committee and terms are fixed: no stake that is put now changes them."""
        return self._state.seats(self.epoch + 1) is not None

    def committee_of(self, epoch: int) -> Committee | None:
        """Return an epoch's committee, its members with the addresses they have now; None if the state has it not."""
        seated = self._committees.get(epoch) or self._state.seats(epoch)
        if seated is not None and epoch not in self._committees:
            seated = replace(seated, members=tuple(self._with_addresses(member) for member in seated.members))
            self._committees[epoch] = seated
        return seated

    def _with_addresses(self, member: Member) -> Member:
        entry = self._state.node(member.node)
        return member if entry is None else replace(member, addresses=entry.addresses)

    @property
    def terms(self) -> Terms:
        """What the current epoch sells storage for."""
        return self._state.terms(self.epoch)

    @property
    def handover(self) -> Handover:
        return self._state.handover()

    @property
    def standing(self) -> Standing:
        """How the members have stood this epoch's challenges, up to the last round that is over."""
        return self._state.standing()

    @property
    def round(self) -> Round | None:
        """The newest round of challenges; it is over if it is of an earlier epoch. None before the first."""
        return challenges.current_round(self._state)

    def beacon(self, node: NodeId) -> Beacon | None:
        """Return the onion that a node is bound to."""
        return beacon.beacon_of(self._state, node)

    def account(self, owner: OwnerId) -> Account:
        return self._state.account(owner)

    def reservation(self, reservation: ReservationId) -> Reservation | None:
        return self._state.reservation(reservation)

    def blob(self, blob_id: BlobId) -> BlobSummary | None:
        return self._state.blob(blob_id)

    def entry(self, blob_id: BlobId, reservation: ReservationId) -> BlobEntry | None:
        return self._state.entry(blob_id, reservation)

    def bucket(self, epoch: int) -> Bucket:
        return self._state.bucket(epoch)

    def node(self, node: NodeId) -> NodeEntry | None:
        return self._state.node(node)

    def stake(self, stake: StakeId) -> Stake | None:
        return self._state.stake(stake)

    def stakes_of(self, owner: OwnerId) -> list[Stake]:
        """Return an owner's stakes, ascending by ID."""
        slots = self._state.indexes.owned.get(owner)
        return [value for value in self._values(slots) if isinstance(value, Stake)]

    def nodes(self) -> Iterator[NodeEntry]:
        """Yield the registered nodes, ascending."""
        return self._state.nodes()

    def is_used(self, statement: Digest) -> bool:
        """Return whether a certificate has used an owner statement up; True until the statement expires."""
        return self._state.get(statement_slot(statement)) is not None

    def is_punished(self, node: NodeId, *, epoch: int, view: int) -> bool:
        return self._state.get(offence_slot(node, epoch=epoch, view=view)) is not None

    def live_blobs(self) -> Iterator[BlobSummary]:
        """Yield the blobs that the network owes, ascending by ID."""
        for value in self._values(self._state.indexes.blobs.get(ALL)):
            assert isinstance(value, BlobSummary)
            if not self.is_invalid(value.blob_id):
                yield value

    def is_invalid(self, blob_id: BlobId) -> bool:
        """Return whether a blob was proven to be wrongly encoded: nobody owes it, whatever entries it has."""
        return self._state.get(invalid_slot(blob_id)) is not None

    def readers(self, blob: BlobSummary) -> tuple[Committee, ...]:
        """Return the committees whose members hold a blob, those who are sure to first."""
        return (*self.sources(blob.certified_epoch), self.committee)

    def sources(self, certified_epoch: int) -> tuple[Committee, ...]:
        """Return the committees but the current one that may hold what was certified in this epoch (`Handover`)."""
        found = [self.committee_of(epoch) for epoch in self.handover.sources(certified_epoch)]
        assert None not in found, "the seats of a handover's sources are kept"
        return tuple(committee for committee in found if committee is not None)

    def entries_of(self, owner: OwnerId) -> list[BlobEntry]:
        """Return an owner's entries, ascending by blob ID and reservation."""
        slots = self._state.indexes.owned.get(owner)
        return [value for value in self._values(slots) if isinstance(value, BlobEntry)]

    def slots_of(self, owner: OwnerId) -> list[Slot]:
        """Return the slots of what an owner has but its account, ascending, without reading them; 1 us each."""
        return sorted(self._state.indexes.owned.get(owner))

    def _values(self, slots: Iterable[Slot]) -> Iterator[Value]:
        for slot in sorted(slots):
            value = self._state.get(slot)
            assert value is not None
            yield value

    def verify_admissible(self, signed: SignedTransaction, *, nonce_ahead_max: int) -> None:
        """Raise `Rejected` unless the next block, or one soon after it, may hold the transaction.

        WRONG_NONCE: used already, or over `nonce_ahead_max` ahead of the account's. UNFUNDED: the balance is below the
        fee. EXPIRED: not even the next block may hold it.
        """
        transaction = signed.transaction
        account = self.account(transaction.sender)
        if transaction.expiry_height <= self.height + 1:
            raise Rejected(Reason.EXPIRED, f"it expires at height {transaction.expiry_height}")
        if not account.nonce <= transaction.nonce <= account.nonce + nonce_ahead_max:
            raise Rejected(Reason.WRONG_NONCE, f"nonce {transaction.nonce}, the account's next is {account.nonce}")
        if account.balance_frost < transaction.fee_frost:
            raise Rejected(Reason.UNFUNDED, f"{account.balance_frost} FROST do not cover the fee")

    def verify_certificate(self, certificate: Certificate) -> None:
        """Raise `Rejected` unless the current committee made it; one that holds is not checked twice."""
        self.check_certificate(certificate)
        self.remember_certificate(certificate)

    def check_certificate(self, certificate: Certificate) -> None:
        """Do the same and remember nothing: for threads beside the one that this ledger belongs to. 55 us a signer."""
        if certificate.epoch != self.epoch:
            raise Rejected(Reason.WRONG_EPOCH, f"epoch {certificate.epoch}, the current one is {self.epoch}")
        if certificate not in self._verified:
            certificate.verify(committee=self.committee)

    def remember_certificate(self, certificate: Certificate) -> None:
        """Take a certificate, which was checked, for one that holds."""
        if certificate in self._verified:
            return
        if len(self._verified) >= CERTIFICATES_KEPT_MAX:
            del self._verified[next(iter(self._verified))]
        self._verified[certificate] = None

    def apply(self, header: BlockHeader, transactions: Sequence[SignedTransaction]) -> Applied:
        """Go on to the next height. The block is final: its transactions are as `SignedTransaction.verify` wants them,
        and have not expired."""
        assert header.height == self.height + 1
        assert header.epoch == self.epoch
        assert header.transactions_count == len(transactions)
        round_began = challenges.begin_block(
            self._state, header, committee=self.committee, parameters=self.genesis.parameters
        )
        receipts = tuple(self._execute(signed, header.height) for signed in transactions)
        for slot in sorted(self._state.indexes.expiring.get(header.height)):
            self._state.put(slot, None)
        age_ms = header.time_ms - self.system.epoch_start_ms
        if age_ms >= self.genesis.parameters.epoch_ms // 2 and not self.cut_off_passed:
            election.fix_next_epoch(self._state, self.committee, self.genesis.parameters)
        epoch_ended = age_ms >= self.genesis.parameters.epoch_ms
        if epoch_ended:
            self._end_epoch(header)
        self.height = header.height
        return Applied(receipts, self._state.flush(), epoch_ended, round_began)

    def _execute(self, signed: SignedTransaction, height: int) -> Receipt:
        transaction, state = signed.transaction, self._state
        assert height < transaction.expiry_height
        sender, fee_frost = transaction.sender, transaction.fee_frost
        account = state.account(sender)
        if transaction.nonce != account.nonce:
            return Receipt(signed.hash, sender, Code.WRONG_NONCE, 0)
        if account.balance_frost < fee_frost:
            return Receipt(signed.hash, sender, Code.UNFUNDED_FEE, 0)
        epoch = self.epoch
        state.put(account_slot(sender), Account(sender, account.balance_frost - fee_frost, account.nonce + 1))
        operations.add_rewards(state, epoch, fee_frost)
        state.mark()
        context = Context(
            state=state,
            parameters=self.genesis.parameters,
            geometry=self.genesis.code,
            height=height,
            epoch=epoch,
            sender=sender,
            transaction=signed.hash,
            open_epoch=epoch + (2 if self.cut_off_passed else 1),
            verify_certificate=self.verify_certificate,
        )
        try:
            self._perform(context, transaction.operation)
        except Failed as failure:
            state.undo()
            return Receipt(signed.hash, sender, failure.code, fee_frost)
        return Receipt(signed.hash, sender, Code.OK, fee_frost)

    def _perform(self, context: Context, operation: Operation) -> None:
        match operation:
            case Transfer():
                operations.transfer(context, operation)
            case Reserve():
                operations.reserve(context, operation)
            case SplitUnits():
                operations.split_units(context, operation)
            case SplitEpochs():
                operations.split_epochs(context, operation)
            case Merge():
                operations.merge(context, operation)
            case HandOver():
                operations.hand_over(context, operation)
            case Certify(certificate):
                operations.certify(context, certificate)
            case CertifyAgain():
                operations.certify_again(context, operation)
            case Extend():
                operations.extend(context, operation)
            case Delete():
                operations.delete(context, operation)
            case Attributes():
                operations.attributes(context, operation)
            case RegisterNode():
                duty.register_node(context, operation)
                self._committees.clear()
            case Evidence():
                chain_id = self.genesis.chain_id
                duty.punish(context, operation, chain_id=chain_id, committee_of=self._state.seats)
            case ReportAudit():
                challenges.report_audit(context, operation, self.committee)
            case CommitBeacon():
                beacon.commit(context, operation)
            case PutStake():
                staking.put(context, operation)
            case Unstake():
                staking.unstake(context, operation)
            case ReportSync():
                handover.report(context, operation, self.committee)
            case Invalidate():
                chain_id, committee = self.genesis.chain_id, self._state.seats(operation.epoch)
                invalidation.invalidate(context, operation, chain_id=chain_id, committee=committee)

    def _end_epoch(self, header: BlockHeader) -> None:
        """Settle the epoch, then begin the next one (FORMATS.md 18): linear in what ends and turns."""
        state, system, before = self._state, self.system, self.committee
        parameters, epoch = self.genesis.parameters, system.epoch + 1
        standing = challenges.close_epoch(state, before)
        rewards.settle(state, before, standing.marks, rounds=standing.rounds, parameters=parameters)
        staking.turn(state, epoch, unbonding_epochs=parameters.unbonding_epochs)
        state.write(replace(self.system, epoch=epoch, epoch_start_ms=header.time_ms))
        self._committees.clear()
        self._end_storage(epoch)
        handover.begin(state, before, self.committee, height=header.height)
        state.write(Standing(epoch, 0, tuple(Marks() for _ in self.committee.members)))
        self._forget(epoch)

    def _end_storage(self, epoch: int) -> None:
        for slot in sorted(self._state.indexes.ending.get(epoch)):
            value = self._state.get(slot)
            if isinstance(value, BlobEntry):
                operations.end_entry(self._state, value)
            else:
                self._state.put(slot, None)

    def _forget(self, epoch: int) -> None:
        """Let go of terms that are past, and of seats and offences that nobody can be punished for any more."""
        state = self._state
        state.put(terms_slot(epoch - 1), None)
        oldest = epoch - self.genesis.parameters.unbonding_epochs
        last = state.handover()
        kept = {seats_slot(epoch) for epoch in (last.source_epoch, *(stage.source_epoch for stage in last.older))}
        for past in sorted(past for past in state.indexes.aging if past < oldest):
            for slot in sorted(state.indexes.aging.get(past)):
                if slot not in kept:
                    state.put(slot, None)

    def verify_supply(self) -> None:
        """Assert that all FROST is somewhere, and no more of it: minted - burned = balances + rewards + stakes."""
        held = 0
        for _, data in self.tree.items():
            match decode_value(data):
                case Account(balance_frost=amount) | Bucket(rewards_frost=amount):
                    held += amount
                case NodeEntry(stake_frost=amount) | Stake(frost=amount):
                    held += amount
                case _:
                    pass
        system = self.system
        assert held == system.minted_frost - system.burned_frost, (held, system)
        assert 0 <= held <= FROST_MAX
