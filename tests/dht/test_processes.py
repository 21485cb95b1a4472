"""Nodes as processes: one is killed and comes back elsewhere, one is frozen meanwhile, and all find it again."""

import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from subprocess import PIPE
from typing import Any

import trio

COUNT = 6
MOVED = 3
FROZEN = 5
WAIT_S = 240.0
"""For what takes seconds: six processes that begin at once import much."""


class Child:
    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.lines = self._lines()
        self.addresses: list[str] = []

    async def _lines(self) -> AsyncIterator[bytes]:
        assert self.process.stdout is not None
        rest = b""
        async for chunk in self.process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line

    async def receive(self) -> Any:
        with trio.fail_after(WAIT_S):
            return json.loads(await anext(self.lines))["result"]

    async def ask(self, do: str, **arguments: object) -> Any:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(json.dumps({"do": do, **arguments}).encode() + b"\n")
        return await self.receive()

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


class Children:
    """Starts them; ends every one that it started, frozen or not."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.started: list[Child] = []

    async def start(self, index: int, bootstrap: Sequence[tuple[int, str]]) -> Child:
        command = [sys.executable, "-m", "tests.dht.child", str(index), "server", json.dumps(bootstrap)]
        process = await trio.lowlevel.open_process(command, stdin=PIPE, stdout=PIPE)
        child = Child(process)
        self.started.append(child)
        child.addresses = await child.receive()
        return child

    async def start_all(self, indices: Sequence[int], bootstrap: Sequence[tuple[int, str]]) -> list[Child]:
        children: dict[int, Child] = {}

        async def start(index: int) -> None:
            children[index] = await self.start(index, bootstrap)

        async with trio.open_nursery() as nursery:
            for index in indices:
                nursery.start_soon(start, index)
        return [children[index] for index in indices]


@asynccontextmanager
async def open_children() -> AsyncIterator[Children]:
    async with trio.open_nursery() as nursery:
        children = Children(nursery)
        try:
            yield children
        finally:
            with trio.CancelScope(shield=True):
                for child in children.started:
                    await child.kill()


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(WAIT_S):
        while True:
            if await is_so():
                return
            await trio.sleep(0.1)


async def test_a_node_that_moved_is_found_again_even_by_one_that_slept_meanwhile() -> None:
    async with open_children() as children:
        first = await children.start(0, [])
        bootstrap = [(0, first.addresses[0])]
        nodes = [first, *await children.start_all(range(1, COUNT), bootstrap)]

        async def all_know(addresses: list[str], of: Sequence[Child], *, fresh: bool) -> bool:
            return all([await node.ask("find", node=MOVED, fresh=fresh) == addresses for node in of])

        async def tables_are_full() -> bool:
            return all([await node.ask("size") == COUNT - 1 for node in nodes])

        await until(tables_are_full)
        moved, frozen = nodes[MOVED], nodes[FROZEN]
        await until(lambda: all_know(moved.addresses, nodes, fresh=False))

        os.kill(frozen.process.pid, signal.SIGSTOP)
        await moved.kill()
        nodes[MOVED] = await children.start(MOVED, bootstrap)
        assert nodes[MOVED].addresses != moved.addresses
        awake = [node for node in nodes if node not in (frozen, nodes[MOVED])]

        # The others were not restarted, and need not ask anew: the record was put to them.
        await until(lambda: all_know(nodes[MOVED].addresses, awake, fresh=False))

        async def is_announced_to_all() -> bool:
            return bool(await nodes[MOVED].ask("announce") == len(awake))

        await until(is_announced_to_all)
        await until(lambda: all_know(nodes[MOVED].addresses, awake, fresh=True))

        os.kill(frozen.process.pid, signal.SIGCONT)
        assert await frozen.ask("find", node=MOVED, fresh=False) in (moved.addresses, nodes[MOVED].addresses)
        await until(lambda: all_know(nodes[MOVED].addresses, [frozen], fresh=True))
        assert await frozen.ask("find", node=MOVED, fresh=False) == nodes[MOVED].addresses
