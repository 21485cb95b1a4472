"""What nodes send each other beside consensus messages, what a node is, and who watches it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from economics.block import Block, BlockHeader, Finality
from economics.crypto import Digest, Signature
from economics.effects import Guilty, Message
from economics.ledger import Ledger
from economics.transactions import SignedTransaction
from economics.votes import Verify, VoteCertificate
from tests.simulation.chain import Blocks

if TYPE_CHECKING:
    from tests.simulation.shell import Shell


@dataclass(frozen=True, slots=True)
class Transactions:
    """Bodies, whether asked for or new."""

    bodies: tuple[SignedTransaction, ...]


@dataclass(frozen=True, slots=True)
class WantTransactions:
    hashes: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class WantBlocks:
    """Final blocks from this height on."""

    first: int


Payload = Message | Transactions | WantTransactions | WantBlocks | Blocks


class Observer(Protocol):
    """Who watches all members at once; each call may raise."""

    def sent(self, shell: "Shell", message: Message) -> None: ...

    def signed(self, shell: "Shell", message: bytes) -> None: ...

    def held(self, shell: "Shell", certificate: VoteCertificate) -> None: ...

    def finalized(self, shell: "Shell", blocks: Sequence[Block], finality: Finality) -> None: ...

    def executed(self, shell: "Shell", header: BlockHeader, ledger: Ledger) -> None: ...

    def accused(self, shell: "Shell", guilty: Guilty) -> None: ...

    def went_down(self, shell: "Shell") -> None: ...


@dataclass(frozen=True, slots=True)
class Identity:
    """What a node is, whatever happens to its process."""

    number: int
    """Its place on the wires; its index in a committee is another, and none where it has no seat."""
    sign: Callable[[bytes], Signature]
    verify: Verify
    skew_ms: int = 0
    """Its clock's error."""
