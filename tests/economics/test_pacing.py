from economics.pacing import SkipList, timeout_ms


def test_a_timeout_grows_by_half_a_view_up_to_a_minute() -> None:
    assert [timeout_ms(1_000, views) for views in range(1, 6)] == [1_000, 1_500, 2_250, 3_375, 5_063]
    assert timeout_ms(1_000, 12) == timeout_ms(1_000, 1 << 62) == 60_000
    assert [timeout_ms(1, views) for views in range(1, 5)] == [1, 2, 3, 5]
    assert timeout_ms(1, 1 << 62) == 60_000
    assert timeout_ms(90_000, 1) == timeout_ms(90_000, 50) == 90_000


def test_a_leader_is_skipped_after_three_misses_until_it_is_heard() -> None:
    skips = SkipList()
    for _ in range(2):
        skips.miss(1)
    assert not skips.skips(1)
    skips.miss(1)
    assert skips.skips(1)
    assert not skips.skips(2)
    skips.redeem(1)
    skips.miss(1)
    assert not skips.skips(1)
