"""Canonical CBOR, FORMATS.md 6: one value has one encoding. The only importer of cbor2; nothing here waits or guesses.

cbor2 alone is no border: it takes duplicate keys, tags that run code, floats, long forms of short integers and trailing
bytes. So a scan of our own passes every byte first, and cbor2 only builds the value.
"""

from dataclasses import dataclass
from typing import Any

import cbor2

from economics.errors import Reason, Rejected

Value = int | bytes | str | bool | None | list["Value"] | dict[str, "Value"]

TEXT = 3
"""Major type of a text string."""
LIST = 4
INFO_BY_WIDTH = {24: 1, 25: 2, 26: 4, 27: 8}
SMALLEST_BY_INFO = {24: 24, 25: 1 << 8, 26: 1 << 16, 27: 1 << 32}
"""A longer form is canonical only from here on."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a reader is ready to hold of one value."""

    size_max: int = 65_536
    depth_max: int = 8
    elements_max: int = 4_096
    """Every item counts, keys too: a megabyte of empty arrays would otherwise become 70 MiB of objects."""


def encode(value: Value) -> bytes:
    """Return the one encoding of `value`; `decode` reverses it."""
    return cbor2.dumps(value, canonical=True)


def decode(data: bytes, *, budget: Budget = Budget()) -> Any:
    """Return the value that `data` encodes, or raise `Rejected`: TOO_LARGE over budget, MALFORMED for all else."""
    if len(data) > budget.size_max:
        raise Rejected(Reason.TOO_LARGE, f"{len(data)} bytes of CBOR, at most {budget.size_max}")
    scanner = _Scanner(data, budget)
    end = scanner.skip_item(0, depth=0)
    if end != len(data):
        raise Rejected(Reason.MALFORMED, "bytes after the value")
    return cbor2.loads(data)


class Items:
    """Takes a value apart item by item, so that a list of a million is never all there at once.

    Every method raises `Rejected` as `decode` does.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def open_list(self, *, items_max: int) -> int:
        """Step into the list that comes next and return how many items it has."""
        major, count, self.at = _Scanner(self.data, Budget()).read_head(self.at)
        if major != LIST:
            raise Rejected(Reason.MALFORMED, "not a list")
        if count > items_max:
            raise Rejected(Reason.TOO_LARGE, f"a list of {count} items, at most {items_max}")
        return count

    def take(self, *, budget: Budget) -> Any:
        """Return the next item."""
        begin = self.at
        self.at = _Scanner(self.data, budget).skip_item(begin, depth=0)
        if self.at - begin > budget.size_max:
            raise Rejected(Reason.TOO_LARGE, f"{self.at - begin} bytes of CBOR, at most {budget.size_max}")
        return cbor2.loads(self.data[begin : self.at])

    def end(self) -> None:
        """Raise `Rejected` unless every byte has been taken."""
        if self.at != len(self.data):
            raise Rejected(Reason.MALFORMED, "bytes after the value")


class _Scanner:
    """Walks one value without building it."""

    def __init__(self, data: bytes, budget: Budget) -> None:
        self.data = data
        self.budget = budget
        self.elements_left = budget.elements_max

    def skip_item(self, at: int, *, depth: int) -> int:
        """Return the offset behind the item at `at`."""
        self.elements_left -= 1
        if self.elements_left < 0 or depth > self.budget.depth_max:
            raise Rejected(Reason.TOO_LARGE, "too many or too deep CBOR items")
        major, argument, at = self.read_head(at)
        match major:
            case 0 | 1 | 7:
                return at
            case 2:
                return self.skip_bytes(at, argument)
            case 3:
                return self.skip_text(at, argument)
            case 4:
                for _ in range(self.bounded(argument)):
                    at = self.skip_item(at, depth=depth + 1)
                return at
            case _:
                return self.skip_map(at, self.bounded(argument), depth=depth + 1)

    def read_head(self, at: int) -> tuple[int, int, int]:
        """Return (major type, argument, offset behind the head)."""
        if at >= len(self.data):
            raise Rejected(Reason.MALFORMED, "CBOR ends early")
        major, info = self.data[at] >> 5, self.data[at] & 31
        if major == 7:
            if info not in (20, 21, 22):
                raise Rejected(Reason.MALFORMED, "floats and simple values are not used")
            return major, info, at + 1
        if major == 6:
            raise Rejected(Reason.MALFORMED, "tags are not used")
        if info < 24:
            return major, info, at + 1
        width = INFO_BY_WIDTH.get(info)
        if width is None:
            raise Rejected(Reason.MALFORMED, "indefinite or reserved length")
        end = self.skip_bytes(at + 1, width)
        argument = int.from_bytes(self.data[at + 1 : end], "big")
        if argument < SMALLEST_BY_INFO[info]:
            raise Rejected(Reason.MALFORMED, "not the shortest form")
        return major, argument, end

    def bounded(self, count: int) -> int:
        if count > self.elements_left:
            raise Rejected(Reason.TOO_LARGE, "too many CBOR items")
        return count

    def skip_bytes(self, at: int, count: int) -> int:
        if at + count > len(self.data):
            raise Rejected(Reason.MALFORMED, "CBOR ends early")
        return at + count

    def skip_text(self, at: int, count: int) -> int:
        end = self.skip_bytes(at, count)
        try:
            self.data[at:end].decode("utf-8")
        except UnicodeDecodeError as fault:
            raise Rejected(Reason.MALFORMED, "text is not UTF-8") from fault
        return end

    def skip_map(self, at: int, count: int, *, depth: int) -> int:
        """Keys are text, ascending by their encoded bytes, so distinct too."""
        last = b""
        for _ in range(count):
            if at >= len(self.data) or self.data[at] >> 5 != TEXT:
                raise Rejected(Reason.MALFORMED, "a map key is not text")
            end = self.skip_item(at, depth=depth)
            key = self.data[at:end]
            if key <= last:
                raise Rejected(Reason.MALFORMED, "map keys out of order")
            last = key
            at = self.skip_item(end, depth=depth)
        return at
