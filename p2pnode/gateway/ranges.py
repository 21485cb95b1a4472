"""Which bytes of a resource a request asks for, and whether it needs any: RFC 9110, 13 and 14. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RANGES_MAX = 16
"""More than this, once those that touch are joined, is answered with the whole: no viewer needs them."""
SPECS_MAX = 64
"""Looked at in one header."""
_SPEC = re.compile(r"(\d{0,20})-(\d{0,20})")
_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')


class Unsatisfiable(Exception):
    """No byte that is asked for is there: 416."""


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [start, stop), at least one."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    def describe(self, length: int) -> str:
        """Return the value of Content-Range."""
        return f"bytes {self.start}-{self.stop - 1}/{length}"


def parse_ranges(value: str, length: int) -> Sequence[Span]:
    """Return the parts of a resource of `length` bytes that a Range header asks for; empty for all of it.

    Parts that overlap or touch are joined, in the order of their first byte: nobody gets more than the whole. A unit
    other than bytes is ignored, as the RFC demands; what is no range of bytes raises `Unsatisfiable`.
    """
    unit, equals, text = value.partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return ()
    specs = [spec.strip(" \t") for spec in text.split(",", SPECS_MAX)]
    if len(specs) > SPECS_MAX:
        return ()
    spans = [span for spec in specs if spec for span in _parse_spec(spec, length)]
    if not spans:
        raise Unsatisfiable
    joined: list[Span] = []
    for span in sorted(spans, key=lambda span: span.start):
        if joined and span.start <= joined[-1].stop:
            joined[-1] = Span(joined[-1].start, max(joined[-1].stop, span.stop))
        else:
            joined.append(span)
    if len(joined) > RANGES_MAX or (joined == [Span(0, length)] and len(specs) > 1):
        return ()
    return joined


def _parse_spec(spec: str, length: int) -> Sequence[Span]:
    """Return the bytes of one range, none where it is past the end; raises `Unsatisfiable` for what is no range."""
    found = _SPEC.fullmatch(spec)
    if found is None or spec == "-":
        raise Unsatisfiable
    first, last = found.groups()
    if not first:
        count = min(int(last), length)
        return [Span(length - count, length)] if count else []
    if last and int(last) < int(first):
        raise Unsatisfiable
    stop = min(int(last) + 1, length) if last else length
    return [Span(int(first), stop)] if int(first) < stop else []


def matches(value: str, tag: str, *, weak: bool) -> bool:
    """Return whether a list of entity tags, or `*`, has this strong one; compared weakly, `W/` does not matter."""
    if value.strip() == "*":
        return True
    found = _TAG.findall(value)
    return any(f'"{opaque}"' == tag and (weak or not is_weak) for is_weak, opaque in found)


def is_unchanged(headers: Mapping[str, str], tag: str) -> bool:
    """Return whether the caller has these bytes already: 304."""
    value = headers.get("if-none-match")
    return value is not None and matches(value, tag, weak=True)


def is_other(headers: Mapping[str, str], tag: str) -> bool:
    """Return whether the caller wants only what it names, and that is not this: 412."""
    value = headers.get("if-match")
    return value is not None and not matches(value, tag, weak=False)


def wants_part(headers: Mapping[str, str], tag: str) -> bool:
    """Return whether a Range counts: it does not where If-Range names anything but exactly these bytes."""
    if "range" not in headers:
        return False
    condition = headers.get("if-range")
    return condition is None or condition.strip() == tag
