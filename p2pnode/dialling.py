"""Where to begin and what to be dialled at: what every process that opens a network needs, nodes and clients alike."""

import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

import psutil

from economics.committee import Member
from economics.crypto import NodeId
from economics.genesis import ADDRESSES_MAX
from p2pnode.home import Config
from p2pnode.network.host import Network


def clock_ms() -> int:
    return time.time_ns() // 1_000_000


def bootstrap_of(config: Config, members: Iterable[Member]) -> list[tuple[NodeId, Sequence[str]]]:
    """Return the peers to start from: those of the settings and these members, at the last addresses they come with."""
    return [*config.bootstrap_peers, *{member.node: member.addresses for member in members if member.addresses}.items()]


def dialable(addresses: Sequence[str]) -> tuple[str, ...]:
    """Return addresses that others can dial: a wildcard becomes this machine's own, loopback if there is no other.

    IPv4 and IPv6; at most as many as a node record holds.
    """
    found: list[str] = []
    for address in addresses:
        _, version, host, *rest = address.split("/")
        if host not in ("0.0.0.0", "::"):
            found.append(address)
            continue
        family = socket.AF_INET if version == "ip4" else socket.AF_INET6
        own = [item.address for items in psutil.net_if_addrs().values() for item in items if item.family == family]
        public = [ip for ip in own if not ip.startswith(("127.", "::1", "fe80:", "169.254."))]
        found += ["/".join(("", version, ip, *rest)) for ip in public or own]
    return tuple(found[:ADDRESSES_MAX])


def dialler(network: Network) -> Callable[[NodeId, Sequence[str]], Awaitable[None]]:
    """Return how discovery has a connection made."""

    async def connect(node: NodeId, addresses: Sequence[str]) -> None:
        await network.connect(node, addresses=addresses)

    return connect
