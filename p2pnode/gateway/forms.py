"""A form of many files (RFC 7578) as it comes in: its parts go to the disk, one behind the other, and are named here.

For worker threads: parsing a form of tiny parts takes long. Every bound is met before what it bounds is kept.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from economics.errors import Rejected
from p2pnode.content.names import NAME_BYTES_MAX, encode_name
from p2pnode.gateway.faults import HttpFault
from p2pnode.gateway.orders import bad_request, parse_content_type
from p2pnode.gateway.spool import Piece, Spooled

PARTS_MAX = 10_000
"""Ten times what the bench stores at once, fifteen times what a quilt of Walrus holds: 5 MB of names at most."""
HEADERS_MAX = 8
HEADER_BYTES_MAX = 4_096
"""Of one header of a part: a name of 1,024 bytes fits, percent-encoded too."""
METADATA = "_metadata"
METADATA_BYTES_MAX = 8 << 20
"""Of the JSON that names tags: the index that they go into has at most 4 MiB."""
METADATA_MARKS_MAX = 1_000_000
"""Commas and brackets in it, four times what 16 tags of each file have: each may be an object of 70 bytes, and all are
made in one call, during which no other thread runs."""
CONTENT_TYPE = "content-type"
PLAIN_ENCODINGS = frozenset({b"", b"7bit", b"8bit", b"binary"})


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a form."""

    name: str
    piece: Piece
    tags: Mapping[str, str]


class _Open:
    """The part that is coming in."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.headers: dict[bytes, bytes] = {}
        self.field = bytearray()
        self.value = bytearray()
        self.name = ""
        self.content_type: str | None = None


class Form:
    """Takes the bytes of a form's body; the files are in `finish`'s result once all of it was given."""

    def __init__(self, content_type: str | None, spooled: Spooled) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise HttpFault(
                415, "send the files as multipart/form-data, such as with `curl -X PUT -F name=@file`", "NOT_A_FORM"
            )
        self._spooled = spooled
        self._parts: dict[str, tuple[int, int, str | None]] = {}
        self._metadata: bytearray | None = None
        self._open: _Open | None = None
        self._end = b"\r\n--" + options[b"boundary"] + b"--"
        self._tail = b""
        """What came last, as long as the end is: it may be cut in two."""
        self._is_at_end = False
        self._parser = _build_parser(options[b"boundary"], self)

    def feed(self, data: bytes) -> None:
        """Take the next bytes; raises `HttpFault(400)` for what is no form, or more than the bounds."""
        behind = data if self._is_at_end else b""
        try:
            self._parser.write(data)
        except FormParserError as fault:
            raise bad_request(f"the form is malformed: {fault}", "BAD_FORM") from fault
        text = self._tail + data
        if self._is_at_end and not behind:
            behind = text.partition(self._end)[2]
        if behind.strip():
            raise bad_request("the form goes on behind its last boundary: choose one that is not in a file", "BAD_FORM")
        self._tail = text[-len(self._end) :]

    # --- called by the parser --------------------------------------------------------------------------------------

    def begin_part(self) -> None:
        if len(self._parts) >= PARTS_MAX:
            raise HttpFault(
                413, f"a quilt has at most {PARTS_MAX} files here", "TOO_MANY_FILES", facts={"limitFiles": PARTS_MAX}
            )
        self._open = _Open(self._spooled.length)

    def add_field(self, data: bytes, start: int, stop: int) -> None:
        self._current.field += data[start:stop]

    def add_value(self, data: bytes, start: int, stop: int) -> None:
        self._current.value += data[start:stop]

    def end_header(self) -> None:
        part = self._current
        field = bytes(part.field).lower()
        if field in part.headers:
            raise bad_request("a part of the form has a header twice", "BAD_FORM")
        part.headers[field] = bytes(part.value)
        part.field.clear()
        part.value.clear()

    def end_headers(self) -> None:
        part = self._current
        part.name = parse_name(part.headers.get(b"content-disposition"))
        if part.headers.get(b"content-transfer-encoding", b"").strip().lower() not in PLAIN_ENCODINGS:
            raise bad_request(
                "a part of the form has a Content-Transfer-Encoding: send the bytes as they are", "BAD_FORM"
            )
        part.content_type = parse_content_type(_latin(part.headers.get(b"content-type")))
        if part.name == METADATA:
            if self._metadata is not None:
                raise bad_request(f"the form has {METADATA} twice", "BAD_FORM")
            self._metadata = bytearray()
        elif part.name in self._parts:
            raise bad_request(
                f"the form names {part.name[:64]!r} twice: each file in a quilt has its own name", "BAD_FORM"
            )
        else:
            verify_name(part.name)

    def add_data(self, data: bytes, start: int, stop: int) -> None:
        if self._current.name != METADATA:
            self._spooled.write(memoryview(data)[start:stop])
            return
        assert self._metadata is not None
        if len(self._metadata) + stop - start > METADATA_BYTES_MAX:
            raise HttpFault(
                413,
                f"{METADATA} has at most {METADATA_BYTES_MAX} bytes",
                "TOO_LARGE",
                facts={"limitBytes": METADATA_BYTES_MAX},
            )
        self._metadata += data[start:stop]

    def end_part(self) -> None:
        part = self._current
        if part.name != METADATA:
            self._parts[part.name] = (part.offset, self._spooled.length - part.offset, part.content_type)
        self._open = None

    def end(self) -> None:
        self._is_at_end = True

    @property
    def _current(self) -> _Open:
        assert self._open is not None
        return self._open

    # --- the end ---------------------------------------------------------------------------------------------------

    def finish(self) -> list[Part]:
        """Return the files in the order in which they came; raises `HttpFault(400)` where the form is not whole."""
        if self._parser.state != MultipartState.END:
            raise bad_request("the form ends before its last boundary: send it again", "CUT_SHORT")
        if not self._parts:
            raise bad_request("the form has no file in it", "BAD_FORM")
        tags = parse_metadata(bytes(self._metadata)) if self._metadata is not None else {}
        for name in tags:
            if name not in self._parts:
                raise bad_request(
                    f"{METADATA} names {name[:64]!r}, and no file of the form is called so", "BAD_METADATA"
                )
        parts = []
        for name, (offset, length, content_type) in self._parts.items():
            told = {} if content_type is None else {CONTENT_TYPE: content_type}
            parts.append(Part(name, Piece(self._spooled, offset, length, name), {**told, **tags.get(name, {})}))
        return parts


def _build_parser(boundary: bytes, form: Form) -> MultipartParser:
    callbacks: dict[str, Callable[..., None]] = {
        "on_part_begin": form.begin_part,
        "on_header_field": form.add_field,
        "on_header_value": form.add_value,
        "on_header_end": form.end_header,
        "on_headers_finished": form.end_headers,
        "on_part_data": form.add_data,
        "on_part_end": form.end_part,
        "on_end": form.end,
    }
    try:
        return MultipartParser(
            boundary,
            callbacks,  # type: ignore[arg-type]
            max_header_count=HEADERS_MAX,
            max_header_size=HEADER_BYTES_MAX,
        )
    except FormParserError as fault:
        raise bad_request(f"the form's boundary is malformed: {fault}", "BAD_FORM") from fault


def _latin(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode("latin-1")


def parse_name(disposition: bytes | None) -> str:
    """Return the name of a part, which is that of its field; what the file was called elsewhere does not matter."""
    kind, options = parse_options_header(disposition)
    name = options.get(b"name")
    if kind != b"form-data" or name is None:
        raise bad_request("a part of the form has no name", "BAD_FORM")
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise bad_request("the name of a file is not UTF-8", "BAD_NAME") from fault


def verify_name(name: str) -> None:
    """Raise `HttpFault(400)` for a name that no quilt may have, or that no URL can end in."""
    try:
        encode_name(name, bytes_max=NAME_BYTES_MAX)
    except Rejected as fault:
        raise bad_request(fault.detail, "BAD_NAME") from fault
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise bad_request(f"{name[:64]!r} is no name for a file: no part of a path is empty, . or ..", "BAD_NAME")


def parse_metadata(raw: bytes) -> dict[str, dict[str, str]]:
    """Return the tags of each file that `_metadata` names; raises `HttpFault`: 400, and 413 for too much of it."""
    if sum(map(raw.count, (b",", b"[", b"{"))) > METADATA_MARKS_MAX:
        raise HttpFault(
            413,
            f"{METADATA} has at most {METADATA_MARKS_MAX} commas and brackets",
            "TOO_LARGE",
            facts={"limitMarks": METADATA_MARKS_MAX},
        )
    try:
        rows: Any = json.loads(raw)
    except (ValueError, RecursionError) as fault:
        raise bad_request(f"{METADATA} is not JSON", "BAD_METADATA") from fault
    if not isinstance(rows, list):
        raise bad_request(f"{METADATA} is a JSON list of files", "BAD_METADATA")
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        match row:
            case {"identifier": str(name), **rest} if not rest.keys() - {"tags"} and is_tags(rest.get("tags", {})):
                if name in found:
                    raise bad_request(f"{METADATA} names {name[:64]!r} twice", "BAD_METADATA")
                tags: Any = rest.get("tags", {})
                found[name] = tags
            case _:
                raise bad_request(
                    f'a file in {METADATA} is {{"identifier": "its name", "tags": {{"key": "value"}}}}', "BAD_METADATA"
                )
    return found


def is_tags(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(text, str) and _is_text(key + text) for key, text in value.items()
    )


def _is_text(text: str) -> bool:
    """Return whether a text that JSON can write has bytes in UTF-8: half of a surrogate pair has none."""
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in text)
