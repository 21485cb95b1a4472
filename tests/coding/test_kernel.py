"""Both kernels make the same bytes, and no index or size from outside reaches either."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from economics.errors import Reason, Rejected
from p2pnode.coding import kernel as kernel_module
from p2pnode.coding.kernel import (
    Blocks,
    Buffer,
    Isal,
    Kernel,
    KernelError,
    Zfec,
    agrees_with_zfec,
    generator_rows,
    isal_paths,
    load_kernel,
)
from tests import reference

ZFEC = load_kernel("zfec")


@pytest.fixture(scope="module")
def isal() -> Kernel:
    try:
        return load_kernel("isa-l")
    except KernelError:
        pytest.skip("no ISA-L here")


@pytest.fixture(params=["zfec", "isa-l"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    if request.param == "zfec":
        return ZFEC
    found: Kernel = request.getfixturevalue("isal")
    return found


def dimensions(n: int) -> tuple[int, int]:
    f = (n - 1) // 3
    return n - 2 * f, n - f


def random_blocks(k: int, size: int, seed: object) -> list[bytes]:
    random = Random(repr(seed))
    return [random.randbytes(size) for _ in range(k)]


def extended(kernel: Kernel, k: int, n: int, blocks: list[bytes]) -> list[bytes]:
    """Return all n blocks; guards of 8 bytes between them show a write out of bounds."""
    size = len(blocks[0])
    out = bytearray(b"guarded!" * ((n - k) * (size // 8 + 3)))
    want = bytes(out)
    parity = Blocks(memoryview(out), size, size + 8, 8)
    kernel.extend(k, n, Blocks(b"".join(blocks), size, size), parity)
    made = [bytes(view) for view in parity.views(n - k)]
    for view in parity.views(n - k):
        view[:] = bytes(size)
    blank = bytearray(want)
    for view in Blocks(memoryview(blank), size, size + 8, 8).views(n - k):
        view[:] = bytes(size)
    assert out == blank, "written beside the blocks"
    return [*blocks, *made]


def decoded(kernel: Kernel, k: int, n: int, indices: list[int], blocks: list[bytes], wanted: list[int]) -> list[bytes]:
    size = len(blocks[0])
    out = Blocks(memoryview(bytearray(len(wanted) * size)), size, size)
    kernel.decode(k, n, indices, blocks, wanted=wanted, out=out)
    return [bytes(view) for view in out.views(len(wanted))]


class TestTheSameBytes:
    """zfec is the definition; ISA-L must not differ in one of them."""

    @pytest.mark.parametrize("n", range(4, 65))
    def test_in_both_dimensions_of_every_small_network(self, isal: Kernel, n: int) -> None:
        for k in dimensions(n):
            for size in (1, 2 + n % 31, 64, 97 + n):
                blocks = random_blocks(k, size, (n, k, size))
                code = extended(ZFEC, k, n, blocks)
                assert extended(isal, k, n, blocks) == code
                kept = sorted(Random(n).sample(range(n), k), key=lambda index: index * 7 % n)
                lost = [index for index in range(k) if index not in kept]
                if lost:
                    held = [code[index] for index in kept]
                    assert decoded(isal, k, n, kept, held, lost) == [blocks[index] for index in lost]
                    assert decoded(ZFEC, k, n, kept, held, lost) == [blocks[index] for index in lost]

    @settings(max_examples=25, deadline=None)
    @given(data=st.data())
    def test_in_any_code_up_to_256(self, isal: Kernel, data: st.DataObject) -> None:
        n = data.draw(st.integers(2, 256))
        k = data.draw(st.integers(1, n - 1))
        size = data.draw(st.integers(1, 300))
        blocks = random_blocks(k, size, (n, k, size))
        code = extended(ZFEC, k, n, blocks)
        assert extended(isal, k, n, blocks) == code
        kept = data.draw(st.permutations(range(n)))[:k]
        wanted = data.draw(st.permutations(range(k)))[:3]
        held = [code[index] for index in kept]
        assert decoded(isal, k, n, kept, held, wanted) == [blocks[index] for index in wanted]
        assert decoded(ZFEC, k, n, kept, held, wanted) == [blocks[index] for index in wanted]

    @pytest.mark.parametrize(("k", "n"), [(2, 4), (7, 10), (34, 100), (67, 100), (86, 256), (171, 256)])
    def test_as_the_reference_makes(self, kernel: Kernel, k: int, n: int) -> None:
        blocks = random_blocks(k, 5, (k, n))
        assert extended(kernel, k, n, blocks) == reference.extend(blocks, n)
        assert generator_rows(k, n) == b"".join(reference.generator(k, n)[k:])

    def test_whether_or_not_the_blocks_are_cut_for_the_cache(
        self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        blocks = random_blocks(4, 1000, "stripes")
        whole = extended(kernel, 4, 10, blocks)
        monkeypatch.setattr(kernel_module, "STRIPE_BYTES", 1280)  # parts of 128 bytes, and a rest
        assert extended(kernel, 4, 10, blocks) == whole
        assert decoded(kernel, 4, 10, [6, 7, 8, 9], whole[6:], [0, 1, 2, 3]) == blocks

    def test_one_row_alone_is_that_row_of_all(self, kernel: Kernel) -> None:
        blocks = random_blocks(7, 33, "rows")
        code = extended(kernel, 7, 10, blocks)
        for row in range(7, 10):
            out = bytearray(33)
            kernel.extend(7, 10, Blocks(b"".join(blocks), 33, 33), Blocks(out, 33, 33), rows=range(row, row + 1))
            assert out == code[row]

    def test_in_place_with_data_and_parity_interleaved(self, kernel: Kernel) -> None:
        blocks = random_blocks(4, 20, "in place")
        matrix = bytearray(b"".join(block + b"\xff" * 5 for block in [*blocks, *[bytes(20)] * 6]))
        kernel.extend(4, 10, Blocks(matrix, 20, 25), Blocks(matrix, 20, 25, 4 * 25))
        want = extended(kernel, 4, 10, blocks)
        assert matrix == b"".join(block + b"\xff" * 5 for block in want)

    def test_from_threads_that_share_a_kernel(self, kernel: Kernel) -> None:
        cases = [(k, n, random_blocks(k, 4096, seed)) for seed in range(8) for k, n in ((4, 10), (7, 10), (34, 100))]
        want = [extended(ZFEC, k, n, blocks) for k, n, blocks in cases]
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(lambda case: extended(kernel, *case), cases)) == want


class TestHostileIndices:
    """Each of these hangs zfec, makes it read out of bounds, or makes it return wrong data (zfec 1.6.0.0)."""

    blocks = extended(ZFEC, 4, 10, random_blocks(4, 16, "hostile"))

    def check(self, kernel: Kernel, indices: list[int], reason: Reason, blocks: list[bytes] | None = None) -> None:
        held = [self.blocks[index % 10] for index in indices] if blocks is None else blocks
        with pytest.raises(Rejected) as verdict:
            decoded(kernel, 4, 10, indices, held, [0, 1])
        assert verdict.value.reason is reason

    def test_a_systematic_index_given_twice_does_not_hang(self) -> None:
        """In a process of its own: zfec would keep the GIL, and no timeout here could end it."""
        call = (
            "from p2pnode.coding.kernel import Blocks, load_kernel\n"
            "from economics.errors import Rejected\n"
            "out = Blocks(bytearray(1), 1, 1)\n"
            "for name in ('zfec', 'auto'):\n"
            "    try:\n"
            "        load_kernel(name).decode(4, 10, (0, 0, 1, 2), [b'x'] * 4, wanted=[3], out=out)\n"
            "    except Rejected as verdict:\n"
            "        print(verdict.reason)\n"
        )
        done = subprocess.run([sys.executable, "-c", call], timeout=300, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["wrong_index", "wrong_index"]

    def test_a_parity_index_given_twice(self, kernel: Kernel) -> None:
        self.check(kernel, [5, 6, 5, 8], Reason.WRONG_INDEX)

    @pytest.mark.parametrize("index", [10, 12, 256, 4000, -1, -4000, 2**63])
    def test_an_index_outside_the_code(self, kernel: Kernel, index: int) -> None:
        self.check(kernel, [index, 1, 2, 3], Reason.WRONG_INDEX)

    @pytest.mark.parametrize("indices", [[], [1, 2, 3], [0, 1, 2, 3, 4]])
    def test_too_few_or_too_many(self, kernel: Kernel, indices: list[int]) -> None:
        self.check(kernel, indices, Reason.WRONG_INDEX, [self.blocks[0]] * 4)
        self.check(kernel, [6, 7, 8, 9], Reason.MALFORMED, [self.blocks[index] for index in indices] or [b""])

    def test_blocks_of_different_sizes(self, kernel: Kernel) -> None:
        self.check(kernel, [6, 7, 8, 9], Reason.MALFORMED, [*self.blocks[6:9], self.blocks[9][:-1]])
        self.check(kernel, [6, 7, 8, 9], Reason.MALFORMED, [*self.blocks[6:9], self.blocks[9] + b"x"])

    def test_blocks_of_no_size(self, kernel: Kernel) -> None:
        self.check(kernel, [6, 7, 8, 9], Reason.MALFORMED, [b""] * 4)

    @pytest.mark.parametrize("wanted", [[4], [-1], [0, 0], [4000]])
    def test_wanting_what_is_no_data_block(self, kernel: Kernel, wanted: list[int]) -> None:
        with pytest.raises(Rejected) as verdict:
            decoded(kernel, 4, 10, [6, 7, 8, 9], self.blocks[6:], wanted)
        assert verdict.value.reason is Reason.WRONG_INDEX

    @pytest.mark.parametrize(("start", "stop"), [(3, 5), (-1, 1), (4, 4), (9, 11), (4000, 4001)])
    def test_encoding_rows_that_do_not_exist(self, kernel: Kernel, start: int, stop: int) -> None:
        with pytest.raises(Rejected) as verdict:
            kernel.extend(4, 10, Blocks(bytes(64), 16, 16), Blocks(bytearray(64), 16, 16), rows=range(start, stop))
        assert verdict.value.reason is Reason.WRONG_INDEX

    @pytest.mark.parametrize(("k", "n"), [(0, 4), (4, 4), (5, 4), (4, 257), (-1, 4)])
    def test_a_code_that_does_not_exist(self, kernel: Kernel, k: int, n: int) -> None:
        with pytest.raises(Rejected) as verdict:
            kernel.extend(k, n, Blocks(bytes(999), 1, 1), Blocks(bytearray(999), 1, 1))
        assert verdict.value.reason is Reason.WRONG_INDEX

    @pytest.mark.parametrize(
        ("data", "parity"),
        [
            (Blocks(bytes(63), 16, 16), Blocks(bytearray(96), 16, 16)),
            (Blocks(bytes(64), 16, 16), Blocks(bytearray(95), 16, 16)),
            (Blocks(bytes(64), 16, 16, 1), Blocks(bytearray(96), 16, 16)),
            (Blocks(bytes(64), 16, 16, -16), Blocks(bytearray(96), 16, 16)),
            (Blocks(bytes(64), 16, 15), Blocks(bytearray(96), 16, 16)),
            (Blocks(bytes(64), 16, 16), Blocks(bytearray(999), 15, 16)),
            (Blocks(bytes(64), 0, 16), Blocks(bytearray(96), 0, 16)),
            (Blocks(memoryview(bytes(128))[::2], 16, 16), Blocks(bytearray(96), 16, 16)),
        ],
    )
    def test_blocks_that_do_not_fit_their_buffer(self, kernel: Kernel, data: Blocks, parity: Blocks) -> None:
        with pytest.raises(Rejected) as verdict:
            kernel.extend(4, 10, data, parity)
        assert verdict.value.reason is Reason.MALFORMED

    def test_a_read_only_output_is_never_written(self, kernel: Kernel) -> None:
        out = bytes(96)
        with pytest.raises((BufferError, TypeError)):
            kernel.extend(4, 10, Blocks(b"x" * 64, 16, 16), Blocks(out, 16, 16))
        assert out == bytes(96)

    def test_the_caller_s_tuples_stay_as_they_were(self, kernel: Kernel) -> None:
        """zfec sorts the tuple that it is given in place: the same call again would decode wrongly."""
        indices, blocks = (9, 2, 0, 5), tuple(self.blocks[index] for index in (9, 2, 0, 5))
        for _ in range(2):
            out = bytearray(16)
            kernel.decode(4, 10, indices, blocks, wanted=(1,), out=Blocks(out, 16, 16))
            assert out == self.blocks[1]
        assert indices == (9, 2, 0, 5)
        assert blocks == tuple(self.blocks[index] for index in (9, 2, 0, 5))


class Miscalculating:
    """A library for other hardware: it loads, runs, and gets one byte wrong."""

    name = "broken"

    def extend(self, k: int, n: int, data: Blocks, parity: Blocks, rows: range) -> None:
        Zfec().extend(k, n, data, parity, rows)
        if n == 100:
            parity.views(len(rows))[-1][-1] ^= 1

    def decode(
        self, k: int, n: int, indices: tuple[int, ...], blocks: list[Buffer], wanted: list[int], out: Blocks
    ) -> None:
        Zfec().decode(k, n, indices, blocks, wanted, out)


class TestTheChoiceAtStart:
    def test_names_what_it_chose(self, isal: Kernel) -> None:
        assert load_kernel("zfec").name.startswith("zfec 1.6")
        assert load_kernel("auto").name == isal.name
        assert isal.name.startswith("isa-l ")

    def test_is_zfec_where_there_is_no_isa_l(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernel_module, "isal_paths", lambda: ["/nowhere/libisal.so.2"])
        assert load_kernel("auto").name == ZFEC.name
        with pytest.raises(KernelError):
            load_kernel("isa-l")

    def test_is_zfec_where_the_library_is_another(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernel_module, "isal_paths", lambda: ["libc.so.6"])
        assert load_kernel("auto").name == ZFEC.name

    def test_is_zfec_where_isa_l_gets_a_byte_wrong(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert agrees_with_zfec(Zfec())
        assert not agrees_with_zfec(Miscalculating())  # type: ignore[arg-type]
        monkeypatch.setattr(kernel_module, "isal_paths", lambda: ["somewhere"])
        monkeypatch.setattr(kernel_module, "Isal", lambda path: Miscalculating())
        assert load_kernel("auto").name == ZFEC.name
        with pytest.raises(KernelError):
            load_kernel("isa-l")

    def test_does_not_import_pyeclib(self) -> None:
        call = "import sys, p2pnode.coding.kernel as k; k.load_kernel(); print('pyeclib' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", call], timeout=300, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"

    def test_keeps_no_more_inverses_than_its_bound(self, isal: Kernel) -> None:
        backend = next(backend for path in isal_paths() if (backend := try_isal(path)))
        for seed in range(kernel_module.INVERSES_MAX + 20):
            kept = tuple(Random(seed).sample(range(31), 11))
            out = Blocks(bytearray(1), 1, 1)
            backend.decode(11, 31, kept, [b"x"] * 11, [0], out)
        assert backend._inverse.cache_info().currsize <= kernel_module.INVERSES_MAX


def try_isal(path: str) -> Isal | None:
    try:
        return Isal(path)
    except OSError:
        return None
