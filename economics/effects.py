"""What the consensus engine is told and what it wants done: plain data between it and whoever drives it."""

from dataclasses import dataclass

from economics.block import Block, BlockHeader, Finality, Proposal
from economics.crypto import Digest, Signature
from economics.votes import SignedVote, VoteCertificate


@dataclass(frozen=True, slots=True)
class Ask:
    """Asks for certificates and proposals of this view and later, and the highest in any case (FORMATS.md 12)."""

    epoch: int
    view: int


Message = SignedVote | VoteCertificate | Proposal | Ask


@dataclass(frozen=True, slots=True)
class Heard:
    """A message; `sender` is the member whose stream it came on, None for what came by another way."""

    message: Message
    sender: int | None


@dataclass(frozen=True, slots=True)
class Built:
    """The block that `Build` asked for, signed and checked by the shell."""

    view: int
    block: Block


@dataclass(frozen=True, slots=True)
class Judged:
    """The answer to `Judge`."""

    block_hash: Digest
    ok: bool


@dataclass(frozen=True, slots=True)
class Due:
    """From when on a new block is wanted; None: there is nothing to do. Said anew whenever it changes."""

    at_ms: int | None


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The `deadline` has come."""


Input = Heard | Built | Judged | Due | TimePassed


@dataclass(frozen=True, slots=True)
class Persist:
    """An own vote, or a certificate that a restart need not collect again; durable before messages leave."""

    record: SignedVote | VoteCertificate


@dataclass(frozen=True, slots=True)
class Keep:
    """A block to be durable with all its transactions before any message of this call leaves (S10)."""

    proposal: Proposal


@dataclass(frozen=True, slots=True)
class Broadcast:
    """To every other member."""

    message: Message


@dataclass(frozen=True, slots=True)
class Send:
    member: int
    message: Message


@dataclass(frozen=True, slots=True)
class Build:
    """Make and sign a block of this view on this parent, an empty one on a boundary; answer `Built`, or never."""

    view: int
    parent: BlockHeader
    parent_is_boundary: bool


@dataclass(frozen=True, slots=True)
class Judge:
    """Check what needs clock, state and transaction bodies; answer `Judged`, or never."""

    proposal: Proposal
    parent: BlockHeader
    sender: int | None


@dataclass(frozen=True, slots=True)
class Finalized:
    """New final blocks, parents first; `finality` proves the last of them final. Once each, in order of height."""

    finality: Finality
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Missing:
    """A certificate or a later block names this block, and it is not held. A member was asked already."""

    block_hash: Digest
    epoch: int
    view: int
    height_hint: int | None


Signed = SignedVote | tuple[BlockHeader, Signature]


@dataclass(frozen=True, slots=True)
class Guilty:
    """Two statements of one member that no honest one makes, both verified."""

    first: Signed
    second: Signed


@dataclass(frozen=True, slots=True)
class Silenced:
    """This node casts no more votes until `Engine.quiet` is None: somebody has one of its own that it did not cast."""

    reason: str


Effect = Persist | Keep | Broadcast | Send | Build | Judge | Finalized | Missing | Guilty | Silenced


@dataclass(frozen=True, slots=True)
class Quiet:
    """Says that own votes may have been forgotten: up to this view, or (None) up to one that peers have yet to tell."""

    until_view: int | None = None
