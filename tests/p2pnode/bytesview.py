"""A view of bytes in memory, passed on in pieces as a network would."""

from dataclasses import dataclass, field

from p2pnode.content.views import Write, verify_range


@dataclass
class BytesView:
    """Bytes in pieces of `piece`; `reads` says what was asked for."""

    data: bytes
    piece: int = 1 << 20
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.data)

    async def read(self, write: Write, *, start: int = 0, stop: int | None = None) -> None:
        stop = verify_range(start, stop, self.length)
        self.reads.append((start, stop))
        for at in range(start, stop, self.piece):
            held = bytearray(self.data[at : min(at + self.piece, stop)])
            middle = len(held) // 2
            await write([memoryview(held)[:middle], memoryview(held)[middle:]])
            held[:] = bytes(len(held))  # the views hold only until `write` returns
