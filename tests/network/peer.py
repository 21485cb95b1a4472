"""A node in a process of its own, for tests that stop or kill it: prints its address, serves, waits to be ended."""

import sys

import trio

from p2pnode.network.host import open_network
from p2pnode.network.stream import Stream
from tests.network.conftest import ECHO, HOLD, LOCAL, echo, seed


async def source(stream: Stream) -> None:
    """Send for ever."""
    while True:
        await stream.send(bytes(1024 * 1024))


async def main(number: int) -> None:
    async with open_network(seed=seed(number), listen=[LOCAL]) as network:
        network.serve(ECHO, echo)
        network.serve(HOLD, source)
        print(network.addresses()[0], flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
