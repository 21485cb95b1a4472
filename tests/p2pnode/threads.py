"""Work for threads done at once, for tests whose clock jumps while all tasks wait: it would not wait for a thread."""

from collections.abc import Callable

import pytest
import trio


@pytest.fixture
def inline_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(call: Callable[..., object], *args: object, **options: object) -> object:
        await trio.lowlevel.checkpoint()
        return call(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run)
