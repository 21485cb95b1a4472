"""Room for bytes in flight is bounded, and bytes go at their pace."""

import pytest
import trio
import trio.testing

from p2pnode.mending.throttle import Throttle


async def test_room_is_bounded_and_comes_back() -> None:
    throttle = Throttle(in_flight=100, bytes_per_s=0)
    inside = peak = 0

    async def transfer(size: int) -> None:
        nonlocal inside, peak
        async with throttle.taken(size):
            inside += min(size, 100)
            peak = max(peak, inside)
            await trio.testing.wait_all_tasks_blocked()
            inside -= min(size, 100)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for size in (60, 60, 40, 30, 1000, 10):
                nursery.start_soon(transfer, size)
    assert peak == 100
    assert throttle._free == 100


async def test_room_of_who_gave_up_waiting_is_not_lost(autojump_clock: trio.testing.MockClock) -> None:
    throttle = Throttle(in_flight=100, bytes_per_s=10)
    async with throttle.taken(50):
        with trio.move_on_after(1):
            async with throttle.taken(50):
                pytest.fail("the pace is 5 s")
    assert throttle._free == 100


@pytest.mark.parametrize(("rate", "took_s"), [(10, 20.0), (0, 0.0)])
async def test_pace_is_kept(autojump_clock: trio.testing.MockClock, rate: int, took_s: float) -> None:
    throttle = Throttle(in_flight=1000, bytes_per_s=rate)
    start = trio.current_time()
    for _ in range(3):
        async with throttle.taken(100):
            pass
    assert trio.current_time() - start == took_s
