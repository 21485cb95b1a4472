"""A client over HTTP that costs little: sockets and a search for the end of the head. Runs in a process of its own."""

import json
import sys
import time

import trio

RECEIVE_BYTES = 1 << 20


async def exchange(stream: trio.SocketStream, request: bytes) -> int:
    """Ask once on a connection that stays, and return the length of a whole answer with 200."""
    await stream.send_all(request)
    head = b""
    while b"\r\n\r\n" not in head:
        chunk = await stream.receive_some(RECEIVE_BYTES)
        assert chunk, "the server ended the connection"
        head += chunk
    top, _, body = head.partition(b"\r\n\r\n")
    lines = top.lower().split(b"\r\n")
    assert lines[0].split()[1] == b"200", top
    length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
    left = length - len(body)
    while left:
        chunk = await stream.receive_some(min(left, RECEIVE_BYTES))
        assert chunk, f"{left} bytes are missing"
        left -= len(chunk)
    return length


def build(port: int, target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()


async def load(port: int, clients: int, seconds: float, targets: list[str]) -> dict[str, float]:
    """Have so many clients ask one after the other for so long; returns requests per second and latencies in ms."""
    took: list[float] = []
    requests = [build(port, target) for target in targets]

    async def client(number: int) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            at = number
            while time.perf_counter() < end:
                begin = time.perf_counter()
                await exchange(stream, requests[at % len(requests)])
                took.append(time.perf_counter() - begin)
                at += clients

    begin = time.perf_counter()
    end = begin + seconds
    async with trio.open_nursery() as nursery:
        for number in range(clients):
            nursery.start_soon(client, number)
    wall = time.perf_counter() - begin
    took.sort()
    p50, p99 = (1e3 * took[int(share * (len(took) - 1))] for share in (0.5, 0.99))
    return {"requests/s": len(took) / wall, "p50 ms": p50, "p99 ms": p99}


async def fetch(port: int, target: str) -> dict[str, float]:
    """Return bytes and seconds of one GET, the connection counted."""
    begin = time.perf_counter()
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        size = await exchange(stream, build(port, target))
    return {"bytes": size, "seconds": time.perf_counter() - begin}


def main() -> None:
    what, port, *rest = sys.argv[1:]
    if what == "fetch":
        print(json.dumps(trio.run(fetch, int(port), rest[0])))
    else:
        clients, seconds, *targets = rest
        print(json.dumps(trio.run(load, int(port), int(clients), float(seconds), targets)))


if __name__ == "__main__":
    main()
