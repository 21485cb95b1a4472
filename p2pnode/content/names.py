"""What a file may be called in a quilt and in a folder (FORMATS.md 19 and 20). Knows no disk."""

import re

from economics.errors import Reason, Rejected

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""No name has one of these: they break terminals, headers and C strings."""
NAME_BYTES_MAX = 1_024
"""Of a file in a quilt."""
PART_BYTES_MAX = 255
"""Of one part of a path: what file systems allow."""
PATH_BYTES_MAX = 4_096


def encode_name(name: str, *, bytes_max: int) -> bytes:
    """Return a name's UTF-8 bytes; raises `Rejected` for none, too many, control characters, half a character."""
    try:
        raw = name.encode("utf-8")
    except UnicodeEncodeError as fault:
        raise Rejected(Reason.MALFORMED, f"{name!r} is not UTF-8") from fault
    if not raw:
        raise Rejected(Reason.MALFORMED, "a name is empty")
    if len(raw) > bytes_max:
        raise Rejected(Reason.TOO_LARGE, f"a name has {len(raw)} bytes, at most {bytes_max}")
    if CONTROL.search(name):
        raise Rejected(Reason.MALFORMED, f"{name!r} has control characters")
    return raw


def encode_path(path: str) -> bytes:
    """Return the UTF-8 bytes of a path below a folder; raises `Rejected` for one that leads anywhere else."""
    raw = encode_name(path, bytes_max=PATH_BYTES_MAX)
    for part in raw.split(b"/"):
        if part in (b"", b".", b".."):
            raise Rejected(Reason.MALFORMED, f"{path!r} is not a path below a folder")
        if len(part) > PART_BYTES_MAX:
            raise Rejected(Reason.TOO_LARGE, f"a part of {path!r} has {len(part)} bytes, at most {PART_BYTES_MAX}")
    return raw
