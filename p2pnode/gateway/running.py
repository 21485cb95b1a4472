"""A gateway from its home to its socket: a session of its own with the network, a cache, the server. Runs in trio."""

import ipaddress
import logging
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from p2pnode.errors import InputError
from p2pnode.files import allow_descriptors
from p2pnode.gateway.access import ANYBODY, Access, load_token
from p2pnode.gateway.app import create_app
from p2pnode.gateway.blobs import Blobs
from p2pnode.gateway.server import Bounds, open_server
from p2pnode.gateway.services import Limits, Services
from p2pnode.home import Home
from p2pnode.keys import Key
from p2pnode.peering.cache import QUOTA_BYTES, SegmentCache
from p2pnode.peering.peer import ANY, SWITCH_S, USUAL, Peer, open_peer
from p2pnode.wallet import read_wallet

log = logging.getLogger("p2pnode.gateway")

ADDRESS = "127.0.0.1:31415"
"""That of Walrus' daemon."""
_ADDRESS = re.compile(r"(?:(\[[0-9a-fA-F:.]+\]|[^:\[\]/\s]+):)?(\d{1,5})")
_NAME = re.compile(r"[a-z0-9_.-]{1,253}|[0-9a-f:.]{2,45}")
_ORIGIN = re.compile(r"https?://[a-z0-9_.-]{1,253}(?::\d{1,5})?|https?://\[[0-9a-f:.]+\](?::\d{1,5})?")


@dataclass(frozen=True, slots=True)
class Options:
    """What whoever starts a gateway may choose."""

    host: str = "127.0.0.1"
    port: int = 31415
    names: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    readers: frozenset[str] = ANYBODY
    cache_bytes: int = QUOTA_BYTES
    shares: bool = True
    """Whether other peers are told of what is cached, and served it."""
    limits: Limits = field(default_factory=Limits)
    bounds: Bounds = field(default_factory=Bounds)


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of such as 127.0.0.1:31415, [::1]:80 or 8080, which is loopback's; raises `InputError`."""
    found = _ADDRESS.fullmatch(text.strip())
    if found is None or int(found[2]) > 65_535:
        raise InputError(f"{text!r} is no address to listen on: write such as {ADDRESS}, [::1]:8080 or 8080")
    return (found[1] or "127.0.0.1").strip("[]"), int(found[2])


def parse_names(names: Sequence[str]) -> frozenset[str]:
    """Return the names that `--host` gives; raises `InputError`."""
    for name in names:
        if _NAME.fullmatch(name.lower()) is None:
            raise InputError(f"{name!r} is no name of a host: write such as gateway.example, without a port")
    return frozenset(name.lower() for name in names)


def parse_origins(origins: Sequence[str]) -> frozenset[str]:
    """Return origins as browsers send them; raises `InputError`."""
    for origin in origins:
        if _ORIGIN.fullmatch(origin.lower()) is None:
            raise InputError(f"{origin!r} is no origin: write such as https://app.example")
    return frozenset(origin.lower() for origin in origins)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches who listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def plain_owner(home: Home) -> Key | None:
    """Return the key of a wallet without a passphrase; None where there is no such wallet."""
    if not home.owner_key_path.exists():
        return None
    wallet = read_wallet(home.owner_key_path)
    return wallet if isinstance(wallet, Key) else None


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that listens."""

    services: Services
    urls: tuple[str, ...]
    peer: Peer
    """What it is to other peers."""
    cache: SegmentCache


@asynccontextmanager
async def serve(peer: Peer, owner: Key | None, options: Options) -> AsyncIterator[Gateway]:
    """Serve what a peer of a network reads while the block lasts. Raises `ConfigError`."""
    home, session = peer.home, peer.session
    assert session is not None
    token = await trio.to_thread.run_sync(load_token, home.path / "keys" / "gateway.token")
    cache = await trio.to_thread.run_sync(
        lambda: SegmentCache(home.path / "cache" / "blobs", session.codec, quota_bytes=options.cache_bytes)
    )
    access = Access(
        token,
        is_loopback=is_loopback(options.host),
        names=options.names | {options.host},
        origins=options.origins,
        readers=options.readers,
    )
    async with trio.open_nursery() as nursery:
        blobs = Blobs(session, cache, nursery, swarm=peer.swarm)
        services = Services(home, session, owner, access, options.limits, blobs)
        nursery.start_soon(services.watch_head)
        nursery.start_soon(services.forgive)
        with peer.serving(cache):
            async with open_server(
                lambda addresses: create_app(services), options.host, options.port, options.bounds
            ) as addresses:
                hosts = [(f"[{host}]" if ":" in host else host, port) for host, port in addresses]
                yield Gateway(services, tuple(f"http://{host}:{port}" for host, port in hosts), peer, cache)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_gateway(home: Home, owner: Key | None, options: Options) -> AsyncIterator[Gateway]:
    """Join the network of a home and serve it over HTTP while the block lasts. Raises `ConfigError`."""
    home.load_genesis()
    listen, or_else = (USUAL, ANY) if options.shares and options.cache_bytes else ((), ())
    async with open_peer(home, listen=listen, or_else=or_else) as peer, serve(peer, owner, options) as gateway:
        yield gateway


async def run_gateway(home: Home, owner: Key | None, options: Options, say: Callable[[Gateway], None]) -> None:
    """Run a gateway until SIGINT or SIGTERM; `say` is called when it takes requests. Raises `ConfigError`."""
    allow_descriptors()
    sys.setswitchinterval(SWITCH_S)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def work() -> None:
                async with open_gateway(home, owner, options) as gateway:
                    say(gateway)
                    await trio.sleep_forever()

            nursery.start_soon(work)
            async for number in signals:
                log.info("stopping on %s", signal.Signals(number).name)
                nursery.cancel_scope.cancel()
                break
