"""The arithmetic of the code, on zfec or on ISA-L with zfec's own matrix. The only module that calls either.

zfec alone is no border: on indices from outside it hangs for ever with the GIL held (a duplicated systematic one),
reads beyond its matrix or returns wrong data (zfec 1.6.0.0, `_fecmodule.c`, `fec.c`). ISA-L trusts every pointer. So
`Kernel` checks each call, and the two backends behind it only compute.
"""

import ctypes
import functools
import importlib.metadata
import importlib.util
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import zfec

from economics.errors import Reason, Rejected

Buffer = bytes | bytearray | memoryview
"""Contiguous bytes. Outputs are writable memoryviews."""
Preference = Literal["auto", "zfec", "isa-l"]

BLOCKS_MAX = 256
"""GF(2^8) has no more rows."""
STRIPE_BYTES = 2 << 20
"""Inputs and outputs of one call of a backend together: beyond it n = 256 falls out of the caches (scripts/bench)."""
INVERSES_MAX = 64
"""Inverse matrices kept, of at most 29 KiB each: a node recovers many slivers from one set of helpers."""
TABLES_MAX = 8
"""Multiplication tables of whole codes kept, of at most 0.5 MiB each: one network has two."""
ISAL_TABLE_BYTES = 32
"""ISA-L's table for one coefficient (erasure_code.h)."""


class KernelError(Exception):
    """The kernel that was asked for by name cannot run here. The next step: `auto`, or install pyeclib."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of `size` bytes in one buffer, block i at `start + i * stride`; how many is the code's to say.

    A row, a column or a joined sliver of a matrix is described by this without being copied.
    """

    buffer: Buffer
    size: int
    stride: int
    start: int = 0

    def views(self, count: int) -> list[memoryview]:
        view = memoryview(self.buffer)
        ends = range(self.start + self.size, self.start + self.size + count * self.stride, self.stride)
        return [view[end - self.size : end] for end in ends]

    def check(self, count: int) -> None:
        """Raise `Rejected` unless `count` blocks lie inside the buffer and apart from each other."""
        view = memoryview(self.buffer)
        end = self.start + (count - 1) * self.stride + self.size
        fits = self.size >= 1 and self.start >= 0 and self.stride >= self.size and end <= view.nbytes
        if not fits or not view.c_contiguous or view.format != "B":
            raise Rejected(Reason.MALFORMED, f"{count} blocks of {self.size} bytes do not fit their buffer")


class Backend(Protocol):
    """What zfec and ISA-L have in common. Arguments are checked already."""

    name: str

    def extend(self, k: int, n: int, data: Blocks, parity: Blocks, rows: range) -> None: ...

    def decode(
        self, k: int, n: int, indices: tuple[int, ...], blocks: Sequence[Buffer], wanted: Sequence[int], out: Blocks
    ) -> None: ...


@functools.lru_cache(maxsize=TABLES_MAX)
def generator_rows(k: int, n: int) -> bytes:
    """Return the (n - k) x k coefficients of the parity rows, row by row, read out of zfec by encoding the identity."""
    assert 0 < k < n <= BLOCKS_MAX
    identity = [bytes(column == row for column in range(k)) for row in range(k)]
    return b"".join(zfec.Encoder(k, n).encode(identity, tuple(range(k, n))))


class Kernel:
    """Systematic k of n coding over GF(2^8) as FORMATS.md 2 defines it. Safe to share between threads."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def name(self) -> str:
        """The backend and its version, for people."""
        return self._backend.name

    def extend(self, k: int, n: int, data: Blocks, parity: Blocks, *, rows: range | None = None) -> None:
        """Write parity blocks `rows` (all of k to n-1 by default) of k data blocks into `parity`, in order.

        `data` and `parity` may lie in one buffer, but not on one another. Raises `Rejected`: WRONG_INDEX for a code or
        rows that do not exist, MALFORMED for blocks that do not fit.
        """
        _check_code(k, n)
        rows = range(k, n) if rows is None else rows
        if rows.step != 1 or not k <= rows.start < rows.stop <= n:
            raise Rejected(Reason.WRONG_INDEX, f"parity rows are {k} to {n - 1}")
        if data.size != parity.size:
            raise Rejected(Reason.MALFORMED, "blocks of one code have one size")
        data.check(k)
        parity.check(len(rows))
        self._backend.extend(k, n, data, parity, rows)

    def decode(
        self, k: int, n: int, indices: Sequence[int], blocks: Sequence[Buffer], *, wanted: Sequence[int], out: Blocks
    ) -> None:
        """Write the data blocks `wanted` (each below k) into `out`, in order, from any k distinct blocks of the n.

        Raises `Rejected`: WRONG_INDEX unless the indices are k different ones of the code, MALFORMED unless the sizes
        agree.
        """
        _check_code(k, n)
        _check_indices(indices, count=k, limit=n)
        _check_indices(wanted, count=len(wanted), limit=k)
        if len(blocks) != k or any(memoryview(block).nbytes != out.size for block in blocks):
            raise Rejected(Reason.MALFORMED, "blocks of one code have one size")
        if wanted:
            out.check(len(wanted))
            self._backend.decode(k, n, tuple(indices), blocks, wanted, out)


def _check_code(k: int, n: int) -> None:
    if not 0 < k < n <= BLOCKS_MAX:
        raise Rejected(Reason.WRONG_INDEX, f"no code {k} of {n}")


def _check_indices(indices: Sequence[int], *, count: int, limit: int) -> None:
    if len(indices) != count or len(set(indices)) != count or not all(0 <= index < limit for index in indices):
        raise Rejected(Reason.WRONG_INDEX, f"not {count} different indices below {limit}")


class Zfec:
    """zfec, the code's definition: a scalar loop over a table of products (1.85 GB/s of multiply-adds)."""

    def __init__(self) -> None:
        self.name = f"zfec {importlib.metadata.version('zfec')}"

    def extend(self, k: int, n: int, data: Blocks, parity: Blocks, rows: range) -> None:
        encoder = _encoder(k, n)
        for source, target in zip(_stripes(data, n), _stripes(parity, n), strict=True):
            made = encoder.encode(source.views(k), tuple(rows))
            for view, block in zip(target.views(len(rows)), made, strict=True):
                view[:] = block

    def decode(
        self, k: int, n: int, indices: tuple[int, ...], blocks: Sequence[Buffer], wanted: Sequence[int], out: Blocks
    ) -> None:
        # Lists of our own: zfec sorts what it is given in place, and a tuple of the caller's would come back permuted.
        made = zfec.Decoder(k, n).decode(list(blocks), list(indices))
        for view, index in zip(out.views(len(wanted)), wanted, strict=True):
            view[:] = made[index]


@functools.lru_cache(maxsize=TABLES_MAX)
def _encoder(k: int, n: int) -> zfec.Encoder:
    return zfec.Encoder(k, n)


def _stripes(blocks: Blocks, count: int) -> Iterator[Blocks]:
    """Cut `count` long blocks into parts that fit the cache together; the same cuts for the same sizes."""
    part = max(64, STRIPE_BYTES // count // 64 * 64)
    for at in range(0, blocks.size, part):
        yield Blocks(blocks.buffer, min(part, blocks.size - at), blocks.stride, blocks.start + at)


class _PyBuffer(ctypes.Structure):
    """`Py_buffer` of the stable ABI (CPython 3.11, `pybuffer.h`): the one way to a read-only buffer's address."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_READABLE, _WRITABLE = 0, 1
_get_buffer = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p, ctypes.c_int)(
    ("PyObject_GetBuffer", ctypes.pythonapi)
)
_release_buffer = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(("PyBuffer_Release", ctypes.pythonapi))


@contextmanager
def _pinned(buffer: Buffer, flags: int) -> Iterator[int]:
    """Yield the address of a contiguous buffer, which nobody can move or free meanwhile; `BufferError` if it is not."""
    view = _PyBuffer()
    _get_buffer(buffer, ctypes.addressof(view), flags)
    try:
        yield view.buf or 0
    finally:
        _release_buffer(ctypes.addressof(view))


class Isal:
    """ISA-L's `ec_encode_data` by ctypes, which releases the GIL, over the matrix read out of zfec."""

    def __init__(self, path: str) -> None:
        """Load the library at `path`. Raises `OSError` or `AttributeError` if it is not ISA-L's erasure code."""
        library = ctypes.CDLL(path)
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        self._encode = library.ec_encode_data
        self._encode.argtypes, self._encode.restype = (integer, integer, integer, pointer, pointer, pointer), None
        self._init_tables = library.ec_init_tables
        self._init_tables.argtypes, self._init_tables.restype = (integer, integer, pointer, pointer), None
        self._invert = library.gf_invert_matrix
        self._invert.argtypes, self._invert.restype = (pointer, pointer, integer), integer
        self.name = f"isa-l {_isal_version(library)}"
        self._tables = functools.lru_cache(maxsize=TABLES_MAX)(self._code_tables)
        self._inverse = functools.lru_cache(maxsize=INVERSES_MAX)(self._inverted)

    def extend(self, k: int, n: int, data: Blocks, parity: Blocks, rows: range) -> None:
        whole = len(rows) == n - k
        tables = self._tables(k, n) if whole else self._expand(k, _matrix_rows(k, n, rows))
        with _pinned(data.buffer, _READABLE) as source, _pinned(parity.buffer, _WRITABLE) as target:
            for stripe, made in zip(_stripes(data, n), _stripes(parity, n), strict=True):
                self._run(k, tables, _addresses(source, stripe, k), _addresses(target, made, len(rows)), stripe.size)

    def decode(
        self, k: int, n: int, indices: tuple[int, ...], blocks: Sequence[Buffer], wanted: Sequence[int], out: Blocks
    ) -> None:
        inverse = self._inverse(k, n, indices)
        tables = self._expand(k, b"".join(inverse[row * k : row * k + k] for row in wanted))
        with ExitStack() as pins:
            sources = array("Q", [pins.enter_context(_pinned(block, _READABLE)) for block in blocks])
            target = pins.enter_context(_pinned(out.buffer, _WRITABLE))
            for stripe, made in zip(_stripes(Blocks(b"", out.size, out.size), n), _stripes(out, n), strict=True):
                parts = array("Q", [address + stripe.start for address in sources])
                self._run(k, tables, parts, _addresses(target, made, len(wanted)), stripe.size)

    def _run(self, k: int, tables: bytes, sources: "array[int]", targets: "array[int]", size: int) -> None:
        self._encode(size, k, len(targets), tables, sources.buffer_info()[0], targets.buffer_info()[0])

    def _code_tables(self, k: int, n: int) -> bytes:
        return self._expand(k, generator_rows(k, n))

    def _expand(self, k: int, coefficients: bytes) -> bytes:
        """Return ISA-L's tables for some rows of k coefficients each."""
        tables = ctypes.create_string_buffer(len(coefficients) * ISAL_TABLE_BYTES)
        self._init_tables(k, len(coefficients) // k, coefficients, tables)
        return tables.raw

    def _inverted(self, k: int, n: int, indices: tuple[int, ...]) -> bytes:
        """Return the k x k matrix that makes the data blocks of blocks `indices`: 2 ms for k = 67, 10 ms for 171."""
        matrix = ctypes.create_string_buffer(b"".join(_matrix_row(k, n, index) for index in indices), k * k)
        inverse = ctypes.create_string_buffer(k * k)
        singular = self._invert(matrix, inverse, k)
        assert singular == 0, "any k rows of the generator are independent"
        return inverse.raw


def _matrix_row(k: int, n: int, index: int) -> bytes:
    if index < k:
        return bytes(column == index for column in range(k))
    return generator_rows(k, n)[(index - k) * k : (index - k + 1) * k]


def _matrix_rows(k: int, n: int, rows: range) -> bytes:
    return generator_rows(k, n)[(rows.start - k) * k : (rows.stop - k) * k]


def _addresses(base: int, blocks: Blocks, count: int) -> "array[int]":
    first = base + blocks.start
    return array("Q", range(first, first + count * blocks.stride, blocks.stride))


def _isal_version(library: ctypes.CDLL) -> str:
    """Return the version where the library tells it (from 2.32 on), else where it came from."""
    try:
        tell = library.isal_get_version_str
    except AttributeError:
        return "(system)"
    tell.restype = ctypes.c_char_p
    return (tell() or b"?").decode("ascii", "replace")


def isal_paths() -> list[str]:
    """Return where ISA-L may be: inside the wheel of pyeclib, which is not imported for it, then with the system."""
    paths = []
    spec = importlib.util.find_spec("pyeclib")
    for location in (spec and spec.submodule_search_locations) or ():
        paths += [str(path) for path in sorted(Path(location).parent.glob("pyeclib.libs/libisal*.so*"))]
    return [*paths, "libisal.so.2"]


SELF_TEST_CODES = ((2, 4), (3, 4), (4, 10), (7, 10), (34, 100), (67, 100), (86, 256))
SELF_TEST_SIZES = (1, 63, 97)


def agrees_with_zfec(backend: Backend) -> bool:
    """Return whether `backend` makes zfec's parity, and its data back out of parity, for a handful of codes (20 ms)."""
    return all(
        _traces(backend, k, n, size) == _traces(Zfec(), k, n, size)
        for k, n in SELF_TEST_CODES
        for size in SELF_TEST_SIZES
    )


def _traces(backend: Backend, k: int, n: int, size: int) -> tuple[bytes, bytes]:
    data = bytes((at * at + at // 7) & 255 for at in range(k * size))
    code = bytearray(data + bytes((n - k) * size))
    view = memoryview(code)
    backend.extend(k, n, Blocks(view, size, size), Blocks(view, size, size, k * size), range(k, n))
    kept = tuple(range(n - k, n))
    lost = tuple(index for index in range(k) if index < n - k)
    back = bytearray(len(lost) * size)
    blocks = [bytes(view[index * size : index * size + size]) for index in kept]
    backend.decode(k, n, kept, blocks, lost, Blocks(memoryview(back), size, size))
    return bytes(code), bytes(back)


def load_kernel(prefer: Preference = "auto") -> Kernel:
    """Return the kernel to run on, chosen once at start: ISA-L if it is here and agrees with zfec, else zfec.

    Raises `KernelError` if `isa-l` is asked for by name and cannot run.
    """
    if prefer == "zfec":
        return Kernel(Zfec())
    for path in isal_paths():
        try:
            backend = Isal(path)
        except (OSError, AttributeError):
            continue
        if agrees_with_zfec(backend):
            return Kernel(backend)
    if prefer == "isa-l":
        raise KernelError("ISA-L is not here or disagrees with zfec; use auto, or install pyeclib")
    return Kernel(Zfec())
