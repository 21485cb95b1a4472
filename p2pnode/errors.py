"""Failures of the world, as one node or client meets them; each names its cause. Nothing here decides.

A message of a peer that breaks a rule is `economics.errors.Rejected` instead; a fault of ours is an `assert`.
"""

import re
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line: a script can tell kinds of failure apart."""

    OK = 0
    FAULT = 1
    """A fault of ours: an error that nobody foresaw."""
    USAGE = 2
    """The words of the call are off (click's own code)."""
    INPUT = 3
    """A file or an ID that the user named cannot be used."""
    UNREACHABLE = 4
    """Too few nodes answered."""
    UNAVAILABLE = 5
    """The network answered, and does not have enough of the blob."""
    CORRUPT = 6
    """The blob's own encoding is inconsistent: no reader can have it."""
    SPACE = 7
    """A disk, a quota or a budget is full."""
    CONFIG = 8
    """This node's own files are missing, foreign or in use."""
    UNPAID = 9
    """The wallet has less than it costs, or its owner said to pay less."""
    REFUSED = 10
    """A transaction is final and failed, or no node takes it: the state of the chain does not allow it."""
    DISK = 11
    """A disk failed, or gave back other bytes than were written to it."""
    INTERRUPTED = 130
    """Ctrl-C; what was stored so far stays, and the same call goes on from there."""
    UNREAD = 141
    """Whoever read the output has gone, as `head` does: what a shell says of any command that ends so."""


class NodeError(Exception):
    """The world failed. `str(error)` is one line for the user; `retry` says whether the same call may succeed later."""

    exit_code = ExitCode.FAULT
    retry = False


class InputError(NodeError):
    """A file or an ID that the user named cannot be used."""

    exit_code = ExitCode.INPUT


class OutputClosed(InputError):
    """The reader of a pipe has gone before all of it was written."""

    exit_code = ExitCode.UNREAD


class ConfigError(NodeError):
    """This node's own files are missing, foreign or in use."""

    exit_code = ExitCode.CONFIG


class SpaceError(NodeError):
    """A disk, a quota or a budget is full."""

    exit_code = ExitCode.SPACE
    retry = True


class DiskFailed(NodeError):
    """A disk did not make bytes durable, or what is on it is damaged: the node stops rather than build on it."""

    exit_code = ExitCode.DISK


class Closed(NodeError):
    """The client was closed before the call, or while it went on."""


class Unavailable(NodeError):
    """The network answered, and does not have enough of the blob."""

    exit_code = ExitCode.UNAVAILABLE
    retry = True


class InconsistentBlob(NodeError):
    """The writer's commitments contradict each other: no reader can have this blob."""

    exit_code = ExitCode.CORRUPT


class NetworkError(NodeError):
    """A peer or the way to it failed."""

    exit_code = ExitCode.UNREACHABLE
    retry = True


class PeerUnreachable(NetworkError):
    """No address of the peer could be dialled, or its answer did not come in time."""


class StreamBroken(NetworkError):
    """The stream ended or was reset before the message was whole: an end of file is never an answer."""


class TooSlow(NetworkError):
    """The peer missed a deadline or fell below the floor on progress."""


class ProtocolUnsupported(NetworkError):
    """The peer does not speak the protocol: another version or another network."""

    retry = False


class Busy(NetworkError):
    """A budget of streams or bytes is used up, the peer's or ours."""


class Unpaid(NodeError):
    """The wallet has less than it costs, or its owner said to pay less. Nothing was paid."""

    exit_code = ExitCode.UNPAID


ID_FORM = re.compile("[A-Za-z0-9_-]{43}")


def say_form(text: str) -> str:
    """Return what is off with a text that is no ID and no key: 43 characters have two bits more than 32 bytes."""
    if ID_FORM.fullmatch(text):
        return "its last character is not what it was: copy it once more"
    return "it has 43 characters of A-Z a-z 0-9 - _"


FAILURES = {
    "wrong_nonce": "another transaction of this wallet came first: try again",
    "unfunded_fee": "the wallet does not cover the fee: `p2pnode wallet balance` shows what it has",
    "unfunded": "the wallet does not cover it: `p2pnode wallet balance` shows what it has",
    "not_found": "the chain has no such storage, blob or stake: it has expired, was deleted or paid back",
    "not_owner": "it is another owner's",
    "wrong_epochs": "an epoch ended meanwhile: try again",
    "too_far_ahead": "storage is not sold for so many epochs ahead: name fewer",
    "over_capacity": "the network has not as much storage left: name fewer epochs, or wait until some expires",
    "wrong_epoch": "an epoch ended meanwhile: try again",
    "no_space": "another blob took this storage: try again",
    "not_covered": "the storage has expired: try again",
    "not_deletable": "it was stored with --permanent: it stays until it expires",
    "invalid_blob": "its writer encoded it inconsistently, which is proven: store the file anew",
    "wrong_amount": "it is nothing, or more than there is; a stake is at least 1 WAL",
    "not_a_node": "no node of this key takes stake: it is not registered, or it is leaving",
    "wrong_phase": "the stake is on its way, or the next epoch's seats count on it: `p2pnode stakes` shows until when",
}


PASSING = frozenset({"wrong_nonce", "wrong_epochs", "wrong_epoch", "no_space", "not_covered"})
"""Codes of what came in between: the same call asks the chain anew, and may succeed at once."""
assert FAILURES.keys() >= PASSING


class TransactionFailed(NodeError):
    """A transaction is final and had no effect but its fee, or no node takes it."""

    def __init__(self, code: str, *, fee_frost: int) -> None:
        meaning = FAILURES.get(code)
        super().__init__(f"the chain refused it, {code}{f': {meaning}' if meaning else ''}")
        self.code = code
        self.fee_frost = fee_frost
        self.retry = code in PASSING
        self.exit_code = ExitCode.UNPAID if code in ("unfunded", "unfunded_fee") else ExitCode.REFUSED
