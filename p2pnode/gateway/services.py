"""What the routes of a gateway share: the way to the network, the cache, the wallet, the limits. Knows no HTTP."""

import math
from dataclasses import dataclass, field

import trio

from economics.blob import BlobId
from p2pnode.clients.chainview import Head
from p2pnode.clients.session import Session
from p2pnode.errors import NodeError
from p2pnode.gateway.access import Access
from p2pnode.gateway.blobs import Blobs
from p2pnode.home import Home
from p2pnode.keys import Key

HEAD_S = 10.0
FORGIVE_S = 60.0
"""A node that was restarted is asked as before after so long; one that is still away costs a dial a minute."""
HEAD_OLD_S = 60.0
"""Without a proven block for so long the gateway says that it is not ready."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one gateway does at once, and for how long."""

    downloads_max: int = 256
    """Answers with a body that are under way; more are refused with 429. Walrus' aggregator has the same bound."""
    uploads_max: int = 8
    """Uploads under way, each of which encodes; more are refused with 429. Walrus' publisher has the same bound."""
    blob_bytes_max: int = 1 << 30
    """Of one body that is stored; it waits on the disk until it is certified."""
    quilt_bytes_max: int = 256 << 20
    """Of all files of one quilt together."""


@dataclass(slots=True)
class Health:
    """How the gateway is, kept in memory: whoever asks waits for nobody."""

    head: Head | None = None
    """The newest block that was proven to it."""
    head_at: float = -math.inf
    """When that was, on trio's clock."""
    fault: str = "the network has not answered yet"
    """Why there is no newer one; empty where there is."""
    downloads: int = 0
    """Answers under way."""
    started: float = field(default_factory=trio.current_time)

    def why_not_ready(self, now: float) -> str:
        """Return why blobs may not be had now; empty where they may."""
        if self.head is None or now - self.head_at > HEAD_OLD_S:
            return self.fault or f"no block was proven for {HEAD_OLD_S:.0f} s"
        return ""


@dataclass(frozen=True, slots=True)
class Services:
    """All that a route may use."""

    home: Home
    session: Session
    owner: Key | None
    """Who pays for what is stored and may delete it; None for a gateway that only reads."""
    access: Access
    limits: Limits = field(default_factory=Limits)
    blobs: Blobs | None = None
    """What is read; None for a gateway that only writes, as tests make one."""
    health: Health = field(default_factory=Health)

    async def watch_head(self) -> None:
        """Look at the chain now and then, for as long as the gateway runs."""
        while True:
            try:
                self.health.head = await self.session.chain.head()
                self.health.head_at, self.health.fault = trio.current_time(), ""
            except NodeError as fault:
                self.health.fault = str(fault)
            await trio.sleep(HEAD_S)

    async def forgive(self) -> None:
        """Give members that failed another chance now and then: nothing else does, for as long as the gateway runs."""
        while True:
            await trio.sleep(FORGIVE_S)
            self.session.forgive()

    def note_stored(self, blob_id: BlobId, content_type: str | None) -> None:
        """Have a blob found that was certified just now, whoever found it missing before."""
        if self.blobs is not None:
            self.blobs.learn(blob_id, content_type)

    async def note_deleted(self, blob_id: BlobId) -> None:
        """Have a blob be gone that nobody keeps any more, here at once."""
        if self.blobs is not None:
            self.blobs.forget(blob_id)
            await trio.to_thread.run_sync(self.blobs.cache.drop, blob_id)
