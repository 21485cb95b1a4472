"""Fields in bytes, in order, and parts behind their length: short bytes are refused, and so is what is left over."""

from economics.errors import Reason, Rejected


class Fields:
    """A cursor over bytes; every `take` raises `Rejected(MALFORMED)` where they end early."""

    def __init__(self, data: bytes, what: str) -> None:
        self.data = data
        self.what = what
        self.at = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.data):
            raise Rejected(Reason.MALFORMED, f"{self.what} ends early")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def take_int(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def take_flag(self) -> bool:
        value = self.take_int(1)
        if value > 1:
            raise Rejected(Reason.MALFORMED, f"a flag of {self.what} is 0 or 1")
        return bool(value)

    def take_sized(self, width: int) -> bytes:
        """Return bytes that come behind their own length of `width` bytes."""
        return self.take(self.take_int(width))

    def take_text(self, width: int) -> str:
        try:
            return self.take_sized(width).decode("utf-8")
        except UnicodeDecodeError as fault:
            raise Rejected(Reason.MALFORMED, f"a text of {self.what} is not UTF-8") from fault

    def end(self) -> None:
        """Raise `Rejected` unless every byte has been taken."""
        if self.left:
            raise Rejected(Reason.MALFORMED, f"{self.what} goes on behind its end")


def sized(part: bytes) -> bytes:
    """Return bytes behind their own length, a `u32`."""
    return len(part).to_bytes(4, "big") + part


def split_sized(data: bytes, what: str) -> list[bytes]:
    """Return the parts that are in `data` one after the other, each as `sized` has it."""
    fields = Fields(data, what)
    parts: list[bytes] = []
    while fields.left:
        parts.append(fields.take_sized(4))
    return parts
