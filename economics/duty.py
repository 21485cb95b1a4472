"""What a node owes: to say what it offers, and never to contradict itself. What it earns is in rewards."""

from collections.abc import Callable

from economics import staking
from economics.arguments import Evidence, RegisterNode, SignedHeader
from economics.block import BlockHeader
from economics.committee import Committee
from economics.crypto import Digest, verify_signature
from economics.errors import Rejected
from economics.nodes import NodeEntry, Offence
from economics.operations import Code, Context, Failed, credit
from economics.slots import offence_slot
from economics.votes import Kind, SignedVote, Vote

SLASH_PERCENT = 5
"""Of a node's stake, for each view in which it contradicted itself."""
REPORTER_PERCENT = 5
"""Of what is slashed; the rest is burned, so reporting oneself never pays."""


def register_node(context: Context, operation: RegisterNode) -> None:
    """The node's own signature has been checked with the sender's; a node that is new has no stake."""
    old = context.state.node(operation.node)
    if old is not None and old.owner != context.sender:
        raise Failed(Code.NOT_OWNER)
    commission, epoch, missed = operation.commission_basis_points, context.epoch, 0
    if old is not None:
        if old.missed_epochs < context.parameters.missed_epochs_max:  # or nobody would ever be slashed for absence
            missed = old.missed_epochs
        counts = old.commission_epoch <= epoch + 1
        commission = old.next_commission_basis_points if counts else old.commission_basis_points
        epoch += 2
    context.state.write(
        NodeEntry(
            node=operation.node,
            owner=context.sender,
            stake_frost=0 if old is None else old.stake_frost,
            shares=0 if old is None else old.shares,
            capacity_units=operation.capacity_units,
            storage_vote_frost=operation.storage_vote_frost,
            write_vote_frost=operation.write_vote_frost,
            commission_basis_points=commission,
            next_commission_basis_points=operation.commission_basis_points,
            commission_epoch=epoch,
            missed_epochs=missed,
            addresses=operation.addresses,
        )
    )


def punish(
    context: Context, operation: Evidence, *, chain_id: Digest, committee_of: Callable[[int], Committee | None]
) -> None:
    """Slash the member that signed both; the sender has a share of it."""
    epoch, view, signer = _accused(operation)
    if epoch > context.epoch:
        raise Failed(Code.WRONG_EPOCH)
    if epoch < context.epoch - context.parameters.unbonding_epochs:
        raise Failed(Code.TOO_OLD)
    committee = committee_of(epoch)
    if committee is None or signer >= len(committee.members):
        raise Failed(Code.NOT_EVIDENCE)
    node = committee.members[signer].node
    if context.state.get(offence_slot(node, epoch=epoch, view=view)) is not None:
        raise Failed(Code.ALREADY_PUNISHED)
    try:
        for exhibit in (operation.first, operation.second):
            _verify_exhibit(exhibit, chain_id=chain_id, committee=committee)
    except Rejected as verdict:
        raise Failed(Code.NOT_EVIDENCE) from verdict
    context.state.write(Offence(node, epoch, view, context.height))
    slashed = staking.slash(context.state, node, SLASH_PERCENT)
    reward = slashed * REPORTER_PERCENT // 100
    staking.burn(context.state, slashed - reward)
    credit(context.state, context.sender, reward)


def _accused(operation: Evidence) -> tuple[int, int, int]:
    """Return (epoch, view, signer index) of two things that contradict each other, or raise `Failed`."""
    match operation:
        case Evidence(SignedVote(vote=first), SignedVote(vote=second)):
            places = {(vote.epoch, vote.view, vote.signer) for vote in (first, second)}
            guilty = _contradict(first, second)
        case Evidence((BlockHeader() as one, _), (BlockHeader() as other, _)):
            places = {(header.epoch, header.view, header.leader) for header in (one, other)}
            guilty = one != other
        case _:
            raise Failed(Code.NOT_EVIDENCE)
    if len(places) != 1 or not guilty:
        raise Failed(Code.NOT_EVIDENCE)
    return places.pop()


def _contradict(first: Vote, second: Vote) -> bool:
    """Return whether no honest member casts both votes in one view: two of a kind, or finalize and nullify."""
    kinds = {first.kind, second.kind}
    if kinds == {Kind.FINALIZE, Kind.NULLIFY}:
        return True
    return len(kinds) == 1 and first.block_hash != second.block_hash


def _verify_exhibit(exhibit: SignedVote | SignedHeader, *, chain_id: Digest, committee: Committee) -> None:
    if isinstance(exhibit, SignedVote):
        exhibit.verify(chain_id=chain_id, committee=committee)
    else:
        header, signature = exhibit
        verify_signature(committee.members[header.leader].node, header.encode(), signature)
