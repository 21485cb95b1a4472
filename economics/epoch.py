"""What is fixed for the length of an epoch, and the checks that need nothing else."""

from dataclasses import dataclass
from functools import cached_property

from economics.block import BlockHeader, Proposal, is_boundary, leader_of, verify_successor
from economics.committee import Committee
from economics.crypto import Digest
from economics.errors import Reason, Rejected
from economics.genesis import Parameters
from economics.votes import Kind, SignedVote, Verify, VoteCertificate


@dataclass(frozen=True)
class Epoch:
    """An epoch as one of its members sees it."""

    chain_id: Digest
    committee: Committee
    root: BlockHeader
    own: int | None
    """This node's index in the committee; None for an observer."""
    parameters: Parameters
    verify: Verify

    @cached_property
    def root_hash(self) -> Digest:
        return self.root.hash

    @cached_property
    def faulty(self) -> int:
        """f: as many shards may be silent or lie."""
        return self.committee.n - self.committee.quorum

    def leader_of(self, view: int) -> int:
        return leader_of(view, root_hash=self.root_hash, committee=self.committee)

    def is_boundary(self, header: BlockHeader) -> bool:
        return header != self.root and is_boundary(header, root=self.root, epoch_ms=self.parameters.epoch_ms)

    def follows(self, header: BlockHeader, parent: BlockHeader) -> bool:
        """Return whether a header is right after this parent, as far as that can be told without clock and state."""
        try:
            verify_successor(
                header,
                parent=parent,
                root=self.root,
                committee=self.committee,
                epoch_ms=self.parameters.epoch_ms,
            )
        except Rejected:
            return False
        return True

    def verify_epoch(self, epoch: int) -> None:
        if epoch != self.committee.epoch:
            raise Rejected(Reason.WRONG_EPOCH, f"epoch {epoch}, this is epoch {self.committee.epoch}")

    def verify_vote(self, signed: SignedVote) -> None:
        signed.verify(chain_id=self.chain_id, committee=self.committee, verify=self.verify)

    def verify_certificate(self, certificate: VoteCertificate) -> None:
        certificate.verify(chain_id=self.chain_id, committee=self.committee, verify=self.verify)

    def verify_proposer(self, proposal: Proposal) -> None:
        """Raise `Rejected` unless the leader of its view signed it, and a certificate with it is of its parent."""
        header, parent = proposal.block.header, proposal.parent
        if header.leader != self.leader_of(header.view):
            raise Rejected(Reason.WRONG_LEADER, f"member {header.leader} does not lead view {header.view}")
        if parent is not None and (
            parent.kind is Kind.NULLIFY
            or parent.epoch != header.epoch
            or (parent.view, parent.block_hash) != (header.parent_view, header.parent_hash)
        ):
            raise Rejected(Reason.WRONG_PARENT, "the certificate is not of the block's parent")
        proposal.block.verify_signature(committee=self.committee, verify=self.verify)
