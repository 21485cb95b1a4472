"""Consensus messages as frames of a link, and what a member says where its engine wants a message sent."""

from collections.abc import Callable, Sequence

from economics.block import Proposal
from economics.effects import Ask, Message
from economics.errors import Reason, Rejected
from economics.fields import Fields
from economics.genesis import Genesis
from economics.votes import SignedVote, VoteCertificate
from p2pnode.consensus.links import FrameType, build_frame


def encode_message(message: Message) -> bytes:
    """Return the frame of a message."""
    match message:
        case SignedVote():
            return build_frame(FrameType.VOTE, message.encode())
        case VoteCertificate():
            return build_frame(FrameType.CERTIFICATE, message.encode())
        case Proposal():
            return build_frame(FrameType.PROPOSAL, message.encode())
        case Ask():
            return build_frame(FrameType.ASK, message.epoch.to_bytes(8, "big") + message.view.to_bytes(8, "big"))


def decode_message(kind: FrameType, body: bytes, *, genesis: Genesis) -> Message:
    """Return the message in a frame; raises `Rejected` if there is none."""
    match kind:
        case FrameType.VOTE:
            return SignedVote.decode(body)
        case FrameType.CERTIFICATE:
            return VoteCertificate.decode(body)
        case FrameType.PROPOSAL:
            limit = genesis.parameters.block_transactions_max
            return Proposal.decode(body, chain_id=genesis.chain_id, transactions_max=limit)
        case FrameType.ASK:
            fields = Fields(body, "an ask")
            asked = Ask(fields.take_int(8), fields.take_int(8))
            fields.end()
            return asked
        case FrameType.TRANSACTIONS:
            raise Rejected(Reason.UNKNOWN_OPERATION, "transactions are no consensus message")


Speak = Callable[[Message], Sequence[Message]]
"""What is sent to all where the engine says to send a message; adversaries say more."""


def speak_honestly(message: Message) -> Sequence[Message]:
    return (message,)
