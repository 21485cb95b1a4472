"""What a sender did wrong, as one stable name each: tests, metrics and peers match the name, never the message."""

from enum import StrEnum


class Reason(StrEnum):
    """Why a message, a signed object or a piece of a blob is refused. The names are part of the protocol."""

    MALFORMED = "malformed"
    """Not the one encoding that FORMATS.md gives this object."""
    TOO_LARGE = "too_large"
    """Over a limit on size, depth or count."""
    WRONG_CHAIN = "wrong_chain"
    """Made for another network."""
    WRONG_EPOCH = "wrong_epoch"
    """Made under another committee."""
    BAD_SIGNATURE = "bad_signature"
    UNKNOWN_SIGNER = "unknown_signer"
    """Signed by a key that has no say here."""
    NO_QUORUM = "no_quorum"
    """The signers' weight does not reach n - f shards."""
    NOT_MINIMAL = "not_minimal"
    """A certificate holds a signature that it does not need."""
    EXPIRED = "expired"
    TOO_FAR_AHEAD = "too_far_ahead"
    """Dated later than any honest sender would date it."""
    WRONG_ENCODING = "wrong_encoding"
    """Another encoding type, n or segment size than the network's."""
    HASH_MISMATCH = "hash_mismatch"
    """Bytes that do not hash to what was committed."""
    BAD_PADDING = "bad_padding"
    """Padding that is not zero."""
    INCONSISTENT = "inconsistent"
    """The writer's own commitments contradict each other."""
    INVALID = "invalid"
    """About a blob whose writer is proven to have encoded it wrongly: nobody can have it."""
    UNPROVEN = "unproven"
    """Evidence that is well formed and does not prove what it says."""
    WRONG_INDEX = "wrong_index"
    """An index outside the code, given twice, or not of this holder."""
    NOT_FOUND = "not_found"
    OVER_BUDGET = "over_budget"
    """A quota or a budget of the answering peer is used up; retry later or elsewhere."""
    INCOMPLETE = "incomplete"
    """Closed before every sliver that is owed was there."""
    UNKNOWN_OPERATION = "unknown_operation"
    WRONG_PARENT = "wrong_parent"
    """A block that does not follow from the one it names."""
    WRONG_LEADER = "wrong_leader"
    """A proposal by a member whose view it is not."""
    WRONG_STATE = "wrong_state"
    """A header with another state root or committee than executing the chain gives."""
    WRONG_TIME = "wrong_time"
    """A block time not after its parent's, or ahead of the clock."""
    LOW_FEE = "low_fee"
    """Less than the network's least fee for such a transaction."""
    WRONG_NONCE = "wrong_nonce"
    UNPAID = "unpaid"
    """No reservation covers it."""
    UNFUNDED = "unfunded"
    """The sender's balance does not cover it."""


class Rejected(Exception):
    """A message breaks a rule: it changes nothing, is counted, and its sender is scored."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail
